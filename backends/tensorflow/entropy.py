"""The entropy of rows on TensorFlow: the native kernels on eager CPU tensors, xent's formula everywhere else."""

from __future__ import annotations

from functools import partial
from typing import Any

import tensorflow as tf
from xent import formulas

from .native import KERNELS, constant, order, reachable, tensor, view
from .operators import derivatives
from .ops import OPS
from .rules import custom_gradient

Array = Any


def value(axis: int, x: Array, weight: Array | None) -> Array:
    if not reachable(x, weight) or order(x) > 1:
        return formulas.entropy(OPS, axis, x, weight)

    @custom_gradient
    def kernel(x: Array) -> Any:
        def backward(g: Array) -> Array:
            if not constant(g):
                formula = partial(formulas.entropy, OPS, axis, weight=weight)
                return derivatives(lambda floats: formula(x=floats[0]), [x], [g])[0]
            weights = g if weight is None else tf.where(weight == 0, tf.zeros_like(g), g)
            return tensor(KERNELS.entropy(axis, view(x), view(weights), True)[1])

        return tensor(KERNELS.entropy(axis, view(x), view(weight), False)[0]), backward

    return kernel(x)


value_and_grad = partial(formulas.entropy_value_and_grad, OPS)
