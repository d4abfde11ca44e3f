"""PyTorch."""

from __future__ import annotations

import torch
from xent.adapter import Adapter, Autodiff, EntropyKernels, SigmoidKernels, SoftmaxKernels

from . import entropy, kernels
from .linear import LINEAR
from .ops import OPS

ADAPTER = Adapter(
    name="torch",
    types=(torch.Tensor,),
    ops=OPS,
    softmax=SoftmaxKernels(kernels.rows, kernels.rows_value_and_grad, kernels.mean_value_and_grad),
    sigmoid=SigmoidKernels(kernels.sigmoid, kernels.sigmoid_total, kernels.sigmoid_value_and_grad),
    autodiff=Autodiff(kernels.value_and_grad, kernels.needs_framework_autodiff, kernels.fuse_value_and_grad),
    linear=LINEAR,
    entropy=EntropyKernels(entropy.value, entropy.value_and_grad),
    takes_16bit=True,
)
