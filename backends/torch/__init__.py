"""PyTorch."""

from __future__ import annotations

import torch
from xent.adapter import Adapter

from . import kernels, native
from .linear import LINEAR
from .ops import OPS

NATIVE = native.OPERATORS is not None
ADAPTER = Adapter(
    name="torch",
    types=(torch.Tensor,),
    ops=OPS,
    rows=kernels.rows,
    sigmoid=kernels.sigmoid,
    sigmoid_sum=kernels.sigmoid_sum if NATIVE else None,
    rows_both=kernels.rows_both if NATIVE else None,
    mean_both=kernels.mean_both if NATIVE else None,
    sigmoid_both=kernels.sigmoid_both if NATIVE else None,
    value_and_grad=kernels.value_and_grad,
    watched=kernels.watched,
    fuse=kernels.fuse if NATIVE else None,
    linear=LINEAR,
    narrow=True,
)
