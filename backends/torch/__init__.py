"""PyTorch."""

from __future__ import annotations

import importlib
import sys
from dataclasses import replace

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
    return replace(
        ADAPTER,
        name="torch.distributed.tensor",
        autodiff=Autodiff(kernels.value_and_grad, lambda _x: True, kernels.fuse_value_and_grad),
        linear=None,
        collectives=None,
        shortcut=None,
        of_parts=importlib.import_module("xent.backends.torch.mesh").on_mesh,
    )


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
