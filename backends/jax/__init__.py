"""JAX."""

from __future__ import annotations

from dataclasses import replace

import jax
from xent.adapter import Adapter
from xent.backends import cpu

from . import kernels, native
from .linear import LINEAR
from .ops import OPS

FORMULAS = Adapter(
    name="jax",
    types=(jax.Array,),
    ops=OPS,
    rows=kernels.rows,
    sigmoid=kernels.sigmoid,
    value_and_grad=kernels.value_and_grad,
    linear=LINEAR,
    run=kernels.compiled,
)
NATIVE = replace(
    FORMULAS,
    rows=native.rows,
    sigmoid=native.sigmoid,
    sigmoid_sum=native.sigmoid_sum,
    rows_both=native.rows_both,
    sigmoid_both=native.sigmoid_both,
    fuse=native.fuse,
    linear=native.LINEAR,
    narrow=True,
)
ADAPTER = FORMULAS if cpu.native is None else NATIVE
