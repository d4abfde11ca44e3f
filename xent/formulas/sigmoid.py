"""Sigmoid losses, as |x| times the weight of one side plus log1p(exp(-|x|)): neither term loses digits to the other."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from xent.adapter import Array, Ops, Scalar, SigmoidKernels

from .sums import times


def sigmoid(ops: Ops, e: float, x: Array, z: Array, p: Array | None, absent: Array | None) -> Array:
    """`SigmoidKernels.losses`."""
    if absent is not None:
        x, z = ops.where(absent, 0.0, x), ops.where(absent, 0.0, z)
    positive, negative = _both(e, z, p)
    size = _size(ops, x)
    loss = times(ops, ops.where(x > 0, negative, positive), size) + (negative + positive) * ops.log1p(ops.exp(-size))
    return loss if absent is None else ops.where(absent, 0.0, loss)


def sigmoid_pull(
    ops: Ops, e: float, x: Array, z: Array, p: Array | None, absent: Array | None, g: Array
) -> tuple[Array, Array]:
    """Reverse mode: d/dx and d/dz of sum(g loss); differentiable further."""
    if absent is not None:
        x, z, g = (ops.where(absent, 0.0, k) for k in (x, z, g))
    positive, negative = _both(e, z, p)
    q = ops.exp(-_size(ops, x))  # by it sigmoid(x) and sigmoid(-x) keep their derivatives where they round to 1
    dx = g * ((negative * ops.where(x > 0, 1.0, q) - positive * ops.where(x > 0, q, 1.0)) / (1 + q))
    if e == 1:  # smoothed away: labels do not count
        return dx, ops.zeros_like(x)
    slope = -x if p is None else times(ops, p, _softplus(ops, -x)) - _softplus(ops, x)
    return dx, g * (slope * (1 - e))


def sigmoid_value_and_grad(
    ops: Ops, e: float, x: Array, z: Array, p: Array | None, w: Array | None, g: Scalar, each: bool
) -> tuple[Array, Array]:
    """`SigmoidKernels.value_and_grad`, for logits in the compute dtype."""
    absent = None if w is None else w == 0
    loss = sigmoid(ops, e, x, z, p, absent)
    loss = loss if w is None else w * loss
    slope = g + ops.zeros_like(x) if w is None else g * w
    return loss if each else ops.sum(loss, None), sigmoid_pull(ops, e, x, z, p, absent, slope)[0]


def sigmoid_total(
    ops: Ops, losses: Callable[..., Array], e: float, x: Array, z: Array, p: Array | None, w: Array | None
) -> Array:
    """`SigmoidKernels.total`, by way of the group's `losses`."""
    loss = losses(e, x, z, p, None if w is None else w == 0)
    return ops.sum(loss if w is None else w * loss, None)


def sigmoid_kernels(ops: Ops) -> SigmoidKernels:
    """The whole group by formulas, for a framework without differentiation."""
    losses = partial(sigmoid, ops)
    return SigmoidKernels(losses, partial(sigmoid_total, ops, losses), partial(sigmoid_value_and_grad, ops))


def _both(e: float, z: Array, p: Array | None) -> tuple[Array, Array]:
    """The weights of log sigmoid(x) and log sigmoid(-x), each smoothed by itself: 1 - (smoothed z) would round."""
    positive, negative = z, 1 - z
    if e:
        positive, negative = (1 - e) * positive + e / 2, (1 - e) * negative + e / 2
    return positive if p is None else p * positive, negative


def _softplus(ops: Ops, x: Array) -> Array:
    return ops.where(x > 0, x, 0.0) + ops.log1p(ops.exp(-_size(ops, x)))


def _size(ops: Ops, x: Array) -> Array:
    """|x| by branches: both halves of the formulas around it are smooth through 0, where abs has no derivative."""
    return ops.where(x > 0, x, -x)
