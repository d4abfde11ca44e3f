"""A row whose classes are split into shards: what each shard hands out of it, and what the row's statistics are then.

Shard k holds C_k consecutive classes, and no other shard's logits. Of each row it hands out

    m_k     its largest logit; -inf where it has no class, or only impossible ones
    s_k     sum of exp(x - m_k) over all of its classes but one maximal one
    g_k     the label's logit where the label is its own, else 0; of soft labels sum_j t_j (m_k - x_j)
    d_k     for the entropy, sum of exp(x - m_k) (m_k - x)
    T_k     of soft labels sum_j t_j
    h_k     with smoothing weights sum_j u_j (m_k - x_j), and once for all rows U_k = sum_j u_j

and of all shards together, where M = max m_k and n shards have it,

    S      = (sum of s_k where m_k = M) + (n - 1) + (sum of (1 + s_k) exp(m_k - M) elsewhere)
    nll    = (M - x_y) + log1p(S), x_y being the sum of the g_k
    soft   = sum_k (g_k + T_k (M - m_k)) + T log1p(S)
    smooth = sum_k (h_k + U_k (M - m_k)) + U log1p(S)
    D      = sum_k (d_k + (1 + s_k) (M - m_k)) exp(m_k - M)

and the first class with the largest logit is that of the first shard that has M.

No term is negative, so nothing cancels, and a shard's rounding of x - m_k is no larger than that of x - M would be.

The derivatives are those of `formulas.pull`, with M and S in the place of the shard's own m and s. What the classes of
other shards add to them is the same for every class of this one, as the derivative of lse is, and is added to it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from xent.adapter import Array, Layout, Ops, RowResults, Scalar

from .softmax import behind, finite_or_nan, where_present
from .sums import times, widened

INF = float("inf")
DIGIT = 1 << 12  # class ids are handed out in two numbers below it: float32 holds no whole ones above 2^24


class Shard(NamedTuple):
    """Where a shard's classes are among all, and how it hears from the others."""

    start: Scalar  # the id of its first class
    length: Any  # an int: how many it has
    classes: Scalar  # how many there are in all
    is_own: Array  # [shards] of bool: where this one is among the shards, in the order of their classes
    # gather(arrays) -> the arrays of all shards, each stacked along a new first axis; they are of one dtype
    gather: Callable[[tuple[Array, ...]], tuple[Array, ...]]
    part: Callable[[Array], Array]  # a vector [C] -> the shard's part of it
    # where the rows are split as well: a number of this shard's rows -> the sum over all, differentiable in that number
    over_rows: Callable[[Array], Array] | None = None

    def holds(self, ids: Array) -> Array:
        """Whether a class id is one of the shard's own."""
        return (ids >= self.start) & (ids < self.start + self.length)

    def own_ids(self, ops: Ops, ids: Array) -> Array:
        """Class ids among the shard's; those of other shards are 0, and negative ones stay as they are."""
        return ops.where(ids < 0, ids, ops.where(self.holds(ids), ids - self.start, 0))

    def own_labels(self, ops: Ops, layout: Layout, ids: Array | None) -> tuple[Array | None, Array | None]:
        """`own_ids` and `holds`; of soft labels, ids that only mark rows, and None."""
        return (self.own_ids(ops, ids), self.holds(ids)) if layout.hard and ids is not None else (ids, None)


class Statistics(NamedTuple):
    """What a shard hands out. All keep the class axis but `smoothing`, which is 0-d."""

    m: Array
    s: Array
    label: Array  # g_k
    targets: Array | None  # T_k; None where labels are class ids
    smooth: Array | None  # h_k; None where there are no smoothing weights
    smoothing: Array | None  # U_k
    gap_sum: Array | None = None  # d_k; None where the entropy is not asked for
    argmax_high: Array | None = None  # of the first class with the largest logit, among all: its id // DIGIT, and the
    argmax_low: Array | None = None  # rest; None as gap_sum
    extra: Array | None = None  # a number of each row to be added up besides


class Row(NamedTuple):
    """What all shards together say of the rows. All keep the class axis but `smoothing` and `other_smoothing`, 0-d."""

    m: Array
    s: Array
    gap: Array  # M - x_y, or the sum over the shards of g_k + T_k (M - m_k)
    targets: Array | None  # T
    smooth: Array | None  # the sum over the shards of h_k + U_k (M - m_k)
    smoothing: Array | None  # U
    other_targets: Array | None  # T and U without this shard's
    other_smoothing: Array | None
    correct: Array | None = None  # whether no class has a larger logit than the label; None where labels are soft
    gap_sum: Array | None = None  # D; None where it is not asked for, as argmax
    argmax: Array | None = None
    extra: Array | None = None

    def for_derivatives(self, m: Array, s: Array) -> Row:
        """What `coefficients` and `formulas.pull` read of it, with these m and s."""
        others = self.other_targets, self.other_smoothing
        return Row(m, s, None, None, None, None, *others)


# ---- of one shard


def statistics(
    ops: Ops,
    rows: Callable[..., RowResults],
    layout: Layout,
    shard: Shard,
    x: Array,
    t: Array | None,
    u: Array | None,
    ids: Array | None,
    extra: Array | None = None,
) -> Statistics:
    """Of the shard's logits, soft labels and smoothing weights. `rows` is the adapter's kernel; ids are those of all
    classes, without the class axis."""
    axis = layout.axis
    if not shard.length:
        zero = widened(ops, ops.sum(x, axis))
        nothing = zero if u is None else ops.sum(u, None)
        soft, smooth, smoothing = (None if given is None else k for given, k in ((t, zero), (u, zero), (u, nothing)))
        found = Statistics(zero - INF, zero, zero, soft, smooth, smoothing, extra=extra)
        return found._replace(gap_sum=zero, argmax_high=zero, argmax_low=zero) if layout.stats else found
    own: Any = None if ids is None else shard.own_ids(ops, ids)
    results = rows(layout._replace(lse=False), x, t, u, own)
    m, s, gap_sum = results.m, results.s, results.gap_sum
    smooth = targets = high = low = None
    if gap_sum is not None:
        argmax = results.argmax + shard.start
        high, low = (ops.astype(k, ops.dtype(m)) for k in (argmax // DIGIT, argmax % DIGIT))
    if u is not None:
        smooth = ops.expand_dims(results.smooth, axis) - ops.sum(u, None) * ops.log1p(s)
    if t is not None:
        targets = ops.sum(t, axis)
        label = ops.expand_dims(results.nll, axis) - targets * ops.log1p(s)
    else:
        place = ops.expand_dims(ops.where(own < 0, 0, own), axis)
        label = widened(ops, ops.pick(x, place, axis))
        label = ops.where(ops.expand_dims(shard.holds(ids), axis), label, 0.0)
    values = ops.host(m)
    if values is None or np.isnan(values).any():
        impossible = widened(ops, ops.max(x, axis)) == -INF
        m, s = ops.where(impossible, -INF, m), ops.where(impossible, 0.0, s)
        label = label if t is None else ops.where(impossible, 0.0, label)
        smooth = None if smooth is None else ops.where(impossible, 0.0, smooth)
        gap_sum = None if gap_sum is None else ops.where(impossible, 0.0, gap_sum)
    smoothing = None if u is None else ops.sum(u, None)
    return Statistics(m, s, label, targets, smooth, smoothing, gap_sum, high, low, extra)


# ---- of all shards


def combine(ops: Ops, shard: Shard, own: Statistics) -> Row:
    """By one `gather`."""
    gathered = iter(shard.gather(tuple(k for k in own if k is not None)))
    every = Statistics(*(None if k is None else next(gathered) for k in own))

    def total(k: Array) -> Array:
        return None if k is None else ops.squeeze(ops.sum(k, 0), 0)

    def others(k: Array) -> Array:
        return None if k is None else total(ops.where(_leading(ops, shard.is_own, k), 0.0, k))

    m = finite_or_nan(ops, ops.squeeze(ops.max(every.m, 0), 0))
    short = behind(ops, every.m, m)
    best = every.m == m
    others_at_m = total(ops.astype(best, ops.dtype(m))) - 1
    power = ops.exp(-short)
    s = total(ops.where(best, every.s, (1 + every.s) * power)) + others_at_m
    if every.targets is None:
        x_y = total(every.label)
        gap, correct = behind(ops, x_y, m), x_y == m
    else:
        gap, correct = total(every.label + times(ops, every.targets, short)), None
    smooth = None
    if every.smooth is not None:
        smooth = total(every.smooth + times(ops, _leading(ops, every.smoothing, short), short))
    gap_sum = argmax = None
    if every.gap_sum is not None:
        gap_sum = total(power * every.gap_sum + (1 + every.s) * times(ops, power, short))
        first = ops.argmax(every.m, 0)
        high, low = (
            ops.astype(ops.squeeze(ops.pick(k, first, 0), 0), ops.index_dtype)
            for k in (every.argmax_high, every.argmax_low)
        )
        argmax = high * DIGIT + low
    sums = total(every.targets), smooth, total(every.smoothing)
    rest = others(every.targets), others(every.smoothing), correct, gap_sum, argmax
    return Row(m, s, gap, *sums, *rest, total(every.extra))


def _leading(ops: Ops, k: Array, like: Array) -> Array:
    """k [shards], with as many axes as `like` has."""
    for _ in range(len(ops.shape(like)) - 1):
        k = ops.expand_dims(k, -1)
    return k


def results(ops: Ops, layout: Layout, row: Row, ids: Array | None) -> RowResults:
    """What a kernel would have found out about all classes; ids mark rows that are masked."""
    axis, log1p_s = layout.axis, ops.log1p(row.s)
    marks = ops.expand_dims(ids, axis) if layout.masked else None

    def finish(k: Array) -> Array:
        return ops.squeeze(k if marks is None else where_present(ops, k, marks, k), axis)

    nll = finish(row.gap + (log1p_s if row.targets is None else row.targets * log1p_s))
    lse = finish(row.m + log1p_s) if layout.lse else None
    smooth = None if row.smooth is None else finish(row.smooth + row.smoothing * log1p_s)
    m, s = (k if marks is None else ops.where(marks < 0, 0.0, k) for k in (row.m, row.s))
    return RowResults(nll, lse, smooth, m, s, row.gap_sum, row.argmax)


# ---- the derivative


def coefficients(
    ops: Ops, layout: Layout, row: Row, held: Array | None, a: Array, b: Array | None, c: Array | None
) -> tuple[Array, Array, Array | None]:
    """What `formulas.pull` is to multiply a shard's nll, lse and smooth by, for the derivative of a nll + b lse +
    c smooth of all classes in the shard's logits. Its m and s are the rows', its other arguments the shard's.
    """
    if layout.hard:
        nll, rest = ops.where(held, a, 0.0), ops.where(held, 0.0, a)
    else:
        nll, rest = a, a * ops.squeeze(row.other_targets, layout.axis)
    if b is not None:
        rest = rest + b
    return nll, rest if c is None else rest + c * row.other_smoothing, c


def tangents(
    ops: Ops, layout: Layout, row: Row, held: Array | None, nll: Array, lse: Array, smooth: Array | None
) -> tuple[Array, Array, Array | None]:
    """What a shard adds to the tangents of nll, lse and smooth of all classes, of what `formulas.push` makes of its own
    logits' tangents, with the rows' m and s: forward mode, of which `coefficients` is the transpose."""
    others = None if layout.hard else ops.squeeze(row.other_targets, layout.axis)
    nll = ops.where(held, nll, lse) if others is None else nll + others * lse
    return nll, lse, None if smooth is None else smooth + row.other_smoothing * lse
