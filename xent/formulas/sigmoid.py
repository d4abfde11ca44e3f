"""Sigmoid losses, as |x| times the weight of one side plus log1p(exp(-|x|)): neither term loses digits to the other."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from xent.adapter import Array, Ops, Scalar, SigmoidKernels

from .sums import times


def sigmoid(
    ops: Ops, smoothing: float, x: Array, targets: Array, pos_weight: Array | None, absent: Array | None
) -> Array:
    """`SigmoidKernels.losses`."""
    if absent is not None:
        x, targets = ops.where(absent, 0.0, x), ops.where(absent, 0.0, targets)
    positive, negative = _both(smoothing, targets, pos_weight)
    size = _size(ops, x)
    loss = times(ops, ops.where(x > 0, negative, positive), size) + (negative + positive) * ops.log1p(ops.exp(-size))
    return loss if absent is None else ops.where(absent, 0.0, loss)


def sigmoid_pull(
    ops: Ops,
    smoothing: float,
    x: Array,
    targets: Array,
    pos_weight: Array | None,
    absent: Array | None,
    upstream: Array,
) -> tuple[Array, Array]:
    """Reverse mode: the derivatives of sum(g loss) in x and targets; differentiable further."""
    if absent is not None:
        x, targets, upstream = (ops.where(absent, 0.0, k) for k in (x, targets, upstream))
    positive, negative = _both(smoothing, targets, pos_weight)
    q = ops.exp(-_size(ops, x))  # sigmoid(x) and sigmoid(-x) keep derivatives in q where they round to 1
    dx = upstream * ((negative * ops.where(x > 0, 1.0, q) - positive * ops.where(x > 0, q, 1.0)) / (1 + q))
    if smoothing == 1:  # smoothed away: labels do not count
        return dx, ops.zeros_like(x)
    slope = -x if pos_weight is None else times(ops, pos_weight, _softplus(ops, -x)) - _softplus(ops, x)
    return dx, upstream * (slope * (1 - smoothing))


def sigmoid_value_and_grad(
    ops: Ops,
    smoothing: float,
    x: Array,
    targets: Array,
    pos_weight: Array | None,
    weight: Array | None,
    upstream: Scalar,
    each: bool,
) -> tuple[Array, Array]:
    """`SigmoidKernels.value_and_grad`, for logits in the compute dtype."""
    absent = None if weight is None else weight == 0
    loss = sigmoid(ops, smoothing, x, targets, pos_weight, absent)
    loss = loss if weight is None else weight * loss
    slope = upstream + ops.zeros_like(x) if weight is None else upstream * weight
    return loss if each else ops.sum(loss, None), sigmoid_pull(ops, smoothing, x, targets, pos_weight, absent, slope)[0]


def sigmoid_total(
    ops: Ops,
    losses: Callable[..., Array],
    smoothing: float,
    x: Array,
    targets: Array,
    pos_weight: Array | None,
    weight: Array | None,
) -> Array:
    """`SigmoidKernels.total`, by way of the group's `losses`."""
    loss = losses(smoothing, x, targets, pos_weight, None if weight is None else weight == 0)
    return ops.sum(loss if weight is None else weight * loss, None)


def sigmoid_kernels(ops: Ops) -> SigmoidKernels:
    """The group made of formulas, for a framework without differentiation."""
    losses = partial(sigmoid, ops)
    return SigmoidKernels(losses, partial(sigmoid_total, ops, losses), partial(sigmoid_value_and_grad, ops))


def _both(smoothing: float, targets: Array, pos_weight: Array | None) -> tuple[Array, Array]:
    """The weights of -log sigmoid(x) and -log sigmoid(-x), smoothed separately: 1 - (a smoothed label) would round."""
    positive, negative = targets, 1 - targets
    if smoothing:
        half = smoothing / 2
        positive, negative = (1 - smoothing) * positive + half, (1 - smoothing) * negative + half
    return positive if pos_weight is None else pos_weight * positive, negative


def _softplus(ops: Ops, x: Array) -> Array:
    return ops.where(x > 0, x, 0.0) + ops.log1p(ops.exp(-_size(ops, x)))


def _size(ops: Ops, x: Array) -> Array:
    """|x| as two branches, each smooth at 0, where abs has no derivative."""
    return ops.where(x > 0, x, -x)
