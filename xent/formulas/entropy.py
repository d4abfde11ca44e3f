"""The entropy of a row's softmax, as accurate as it is small, and its derivatives.

With d_j = m - x_j >= 0, e_j = exp(-d_j), s the sum of e_j over all but one maximal class, p_j = e_j / (1 + s):

    H  = log1p(s) + a,  a = sum_j p_j d_j              both terms >= 0: nothing cancels, also near 0
    dH / dx_j = p_j (d_j - a)                          at the maximum -p a; the textbook's -p (log p + H) cancels there
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

from xent.adapter import Array, EntropyKernels, Ops

from .softmax import behind
from .sums import INF, times, widened


class Spread(NamedTuple):
    """Of each row. All keep the class axis."""

    m: Array
    s: Array
    value: Array  # H
    p: Array
    centred: Array  # d - a; 0 where the logit is -inf, whose probability is 0


def entropy(ops: Ops, axis: int, x: Array, weight: Array | None) -> Array:
    """`EntropyKernels.value`.

    Automatic differentiation of any kind and order is right by itself: H is written as an exact function of moves of
    the logits, which have the value 0 and their derivatives, from what the row is now, which is constant. So its first
    derivative is p (d - a) as it stands, where that of the definition would be a difference of two larger terms.
    """
    x = _visible(ops, axis, x, weight)
    now = _spread(ops, axis, ops.stop_gradient(x))
    moves = _moves(ops, axis, x, now)
    # of log p, so that the probabilities p exp(moves) go on adding up to 1
    moves = moves - ops.log1p(ops.sum(now.p * (ops.exp(moves) - 1), axis))
    # H + sum of p exp(moves) (d - a - moves), plus the sum of p (exp(moves) - 1), which is 0 wherever the logits move:
    # so the derivatives of `bend` cancel class by class, in a node of their own, before they meet smaller ones. It is a
    # product, since JAX and TensorFlow's graphs drop a sum with 0.
    apart = moves * 1.0
    grown = ops.exp(apart)
    bend = (grown - 1) - apart * grown
    change = ops.sum(now.p * (now.centred * (ops.exp(moves) - 1) + bend), axis)
    return _where_present(ops, ops.squeeze(now.value + change, axis), weight)


def entropy_value_and_grad(ops: Ops, axis: int, x: Array, weight: Array | None) -> tuple[Array, Array]:
    """`EntropyKernels.value_and_grad`."""
    now = _spread(ops, axis, _visible(ops, axis, x, weight))
    value, dx = _where_present(ops, ops.squeeze(now.value, axis), weight), now.p * now.centred
    return value, dx if weight is None else ops.expand_dims(weight, axis) * dx


def entropy_kernels(ops: Ops) -> EntropyKernels:
    """The whole group by formulas."""
    return EntropyKernels(partial(entropy, ops), partial(entropy_value_and_grad, ops))


def _visible(ops: Ops, axis: int, x: Array, weight: Array | None) -> Array:
    """In the compute dtype, and 0 in rows of weight 0: 0 times what they hold may be NaN."""
    x = widened(ops, x)
    return x if weight is None else ops.where(ops.expand_dims(weight == 0, axis), 0.0, x)


def _where_present(ops: Ops, value: Array, weight: Array | None) -> Array:
    return value if weight is None else ops.where(weight == 0, 0.0, value)


def _spread(ops: Ops, axis: int, x: Array) -> Spread:
    m, s = ops.top(x, axis)
    d = behind(ops, x, m)
    p = ops.exp(-d) / (1 + s)
    a = ops.sum(times(ops, p, d), axis)
    return Spread(m, s, ops.log1p(s) + a, p, ops.where(d == INF, 0.0, d - a))


def _moves(ops: Ops, axis: int, x: Array, now: Spread) -> Array:
    """0, with the logits' derivatives; relative to the logit of a class that has more than half of the probability, so
    that second derivatives keep p (1 - p) where p rounds to 1: entropy does not see what all logits have in common."""
    finite = ops.where(ops.stop_gradient(now.m - x) == INF, 0.0, x)
    moves = finite - ops.stop_gradient(finite)
    best = ops.stop_gradient(x) == now.m
    lead = ops.sum(ops.where(best, moves, 0.0), axis)
    return ops.where(now.s < 1, ops.where(best, 0.0, moves - lead), moves)
