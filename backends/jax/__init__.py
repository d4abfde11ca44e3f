"""JAX."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import jax
from xent import formulas
from xent.adapter import Adapter, Autodiff, EntropyKernels, SigmoidKernels, SoftmaxKernels
from xent.backends import cpu

from . import elements, entropy, kernels, native, sharded
from .linear import LINEAR
from .ops import OPS

FORMULAS = Adapter(
    name="jax",
    types=(jax.Array,),
    ops=OPS,
    softmax=replace(formulas.softmax_kernels(OPS), rows=kernels.rows),
    sigmoid=replace(
        formulas.sigmoid_kernels(OPS),
        losses=kernels.sigmoid,
        total=partial(formulas.sigmoid_total, OPS, kernels.sigmoid),
    ),
    autodiff=Autodiff(
        kernels.value_and_grad, lambda _x: True, lambda value, _both, *call: kernels.compiled(value, *call)
    ),
    linear=LINEAR,
    collectives=sharded.collectives(kernels.push),
    run=kernels.compiled,
)
NATIVE = replace(
    FORMULAS,
    softmax=SoftmaxKernels(
        native.rows, native.rows_value_and_grad, partial(formulas.mean_value_and_grad, OPS, native.rows_value_and_grad)
    ),
    sigmoid=SigmoidKernels(elements.sigmoid, elements.sigmoid_total, elements.sigmoid_value_and_grad),
    autodiff=Autodiff(kernels.value_and_grad, lambda _x: False, native.fuse_value_and_grad),
    linear=native.LINEAR,
    entropy=EntropyKernels(entropy.value, entropy.value_and_grad),
    collectives=sharded.collectives(native.rows_push),
    takes_16bit=True,
)
ADAPTER = FORMULAS if cpu.native is None else NATIVE
