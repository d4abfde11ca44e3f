"""PyTorch."""

from __future__ import annotations

import torch
from xent.adapter import Adapter, Autodiff, SigmoidKernels, SoftmaxKernels

from . import kernels
from .linear import LINEAR
from .ops import OPS
from .sharded import COLLECTIVES

ADAPTER = Adapter(
    name="torch",
    types=(torch.Tensor,),
    ops=OPS,
    softmax=SoftmaxKernels(kernels.rows, kernels.rows_value_and_grad, kernels.mean_value_and_grad),
    sigmoid=SigmoidKernels(kernels.sigmoid, kernels.sigmoid_total, kernels.sigmoid_value_and_grad),
    autodiff=Autodiff(kernels.value_and_grad, kernels.needs_framework_autodiff, kernels.fuse_value_and_grad),
    linear=LINEAR,
    collectives=COLLECTIVES,
    takes_16bit=True,
)
