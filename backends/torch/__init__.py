"""PyTorch."""

from __future__ import annotations

import importlib
import sys
from dataclasses import replace
from types import SimpleNamespace

import torch
from xent.adapter import Adapter, Autodiff, Collectives, EntropyKernels, SigmoidKernels, SoftmaxKernels

from . import entropy, kernels, sharded
from .linear import LINEAR
from .ops import OPS
from .sharded_linear import linear
from .shortcut import SHORTCUT


def of_type(kind: type) -> Adapter:
    """DTensors want another adapter, whose module is imported only where the caller has imported theirs."""
    tensors = sys.modules.get("torch.distributed.tensor")
    if not issubclass(kind, getattr(tensors, "DTensor", ())):
        return ADAPTER
    _import_mesh()
    on_mesh: Adapter = _made.on_mesh
    return on_mesh


_made = SimpleNamespace()


def _import_mesh() -> None:
    """Called for real where torch.compile traces the first dispatch."""
    if not hasattr(_made, "on_mesh"):
        _made.on_mesh = replace(
            ADAPTER,
            name="torch.distributed.tensor",
            autodiff=Autodiff(kernels.value_and_grad, lambda _x: True, kernels.fuse_value_and_grad),
            linear=None,
            collectives=None,
            shortcut=None,
            of_parts=importlib.import_module("xent.backends.torch.mesh").on_mesh,
        )


_import_mesh._dynamo_marked_constant = True  # type: ignore[attr-defined]


ADAPTER = Adapter(
    name="torch",
    types=(torch.Tensor,),
    ops=OPS,
    softmax=SoftmaxKernels(kernels.rows, kernels.rows_value_and_grad, kernels.mean_value_and_grad),
    sigmoid=SigmoidKernels(kernels.sigmoid, kernels.sigmoid_total, kernels.sigmoid_value_and_grad),
    autodiff=Autodiff(kernels.value_and_grad, kernels.needs_framework_autodiff, kernels.fuse_value_and_grad),
    linear=LINEAR,
    shortcut=SHORTCUT,
    collectives=Collectives(sharded.shard, sharded.attach, sharded.summed, linear, sharded.total_weight),
    entropy=EntropyKernels(entropy.value, entropy.value_and_grad),
    takes_16bit=True,
    of_type=of_type,
)
