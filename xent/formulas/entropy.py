"""The entropy of a row's softmax, as accurate as it is small, and its derivatives.

With d_j = m - x_j >= 0, e_j = exp(-d_j), s the sum of e_j over all but one maximal class, p_j = e_j / (1 + s):

    H  = log1p(s) + a,  a = sum_j p_j d_j              both terms >= 0: nothing cancels, also near 0
    dH / dx_j = p_j (d_j - a)                          at the maximum -p a; the textbook's -p (log p + H) cancels there
"""

from __future__ import annotations

from typing import NamedTuple

from xent.adapter import Array, Ops, Scalar

from .softmax import behind
from .sums import INF, times


class Spread(NamedTuple):
    """Of each row. All keep the class axis."""

    m: Array
    s: Array
    value: Array  # H
    p: Array
    centred: Array  # d - a; 0 where the logit is -inf, whose probability is 0


def entropy(ops: Ops, axis: int, x: Array) -> Array:
    """H, without the class axis, of logits in the compute dtype.

    Automatic differentiation of any kind and order is right by itself: H is written as an exact function of the moves
    of the logits, which have the value 0 and their derivatives, from what the row is now, which is constant. So its
    first derivative is p (d - a) as it stands, where that of the definition would be a difference of two larger terms.
    """
    now = _spread(ops, axis, ops.stop_gradient(x))
    p, centred = now.p, now.centred
    moves = _moves(ops, axis, x, now)
    growth = ops.exp(moves)
    gain = growth - 1
    total = ops.sum(p * gain, axis)  # what the sum of the probabilities would be, less 1
    drift = ops.sum(p * (centred * gain - moves * growth), axis)
    # H + log1p(total) + drift / (1 + total), with what is of first order put together class by class
    first = ops.sum(p * (centred * gain + (gain - moves * growth)), axis)
    beyond = (ops.log1p(total) - total) - drift * (total / (1 + total))
    return ops.squeeze(now.value + first + beyond, axis)


def entropy_value_and_grad(ops: Ops, axis: int, x: Array, slope: Scalar) -> tuple[Array, Array]:
    """H, and d/dx of sum(slope H); `slope` has the class axis, or is a number."""
    now = _spread(ops, axis, x)
    return ops.squeeze(now.value, axis), slope * (now.p * now.centred)


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
