"""What the reference's losses start with: rows of logits in long double, their softmax, entropy, caps and scales."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from near import WORK, Long, Near, accurate


class Softmax(NamedTuple):
    """Of rows of logits [R, C]: -log p, p and 1 - p of every class, and each row's log-sum-exp, [R]."""

    nll: Near
    p: Near
    miss: Near
    lse: Near


def softmax(x: Near) -> Softmax:
    value, work = x.value, x.work
    m = value.max(-1, keepdims=True)
    m = np.where(np.isfinite(m), m, np.nan)  # a row with a +inf has no softmax, nor has one of -inf alone
    gap, e = m - value, np.exp(value - m)
    others, total = sum_of_others(e), e.sum(-1, keepdims=True)
    p, miss = e / total, others / total
    nll = np.where(p > 0.5, np.log1p(others / e), gap + np.log(total))
    runner_up = np.sort(value, -1)[:, -2:][:, :1]  # where there is one class, itself
    lead = np.where((gap == 0) & np.isfinite(runner_up), m - runner_up, 0)
    off = x.error.max(-1, keepdims=True)  # a logit that is off by this moves the odds by twice as much, relatively
    moved = np.expm1(2 * off)

    def found(value: Any, distance: Any, moved: Any) -> Near:
        promised = accurate(value, distance, work)
        return Near(value, promised.error + moved, work)

    lse = Near(m, off, work) + accurate(np.log(total), lead.max(-1, keepdims=True), work)
    return Softmax(
        found(nll, lead, moved * miss),
        found(p, np.where(np.isfinite(gap), gap, 0), moved * p),
        found(miss, lead, moved * miss),
        lse[:, 0],
    )


def sum_of_others(e: Any) -> Any:
    """Of all entries of the row but the one in each place, without a subtraction."""
    zero = np.zeros_like(e[:, :1])
    before = np.concatenate([zero, np.cumsum(e, -1)[:, :-1]], -1)
    after = np.concatenate([np.cumsum(e[:, ::-1], -1)[:, ::-1][:, 1:], zero], -1)
    return before + after


def spread(x: Near) -> tuple[Near, Near]:
    """Each row's entropy, and its derivative p (gap - mean gap), as accurate as the larger of its two terms."""
    each, m = softmax(x), x.value.max(-1, keepdims=True)
    gap = np.where(each.p.value == 0, 0, m - x.value)
    mean = (each.p.value * gap).sum(-1, keepdims=True)
    runner_up = np.sort(x.value, -1)[:, -2:][:, :1]
    lead = np.where(np.isfinite(runner_up), m - runner_up, 0)
    off = x.error.max(-1, keepdims=True)
    larger, moved = np.maximum(gap, mean), np.expm1(4 * off)  # of odds that are off by twice as much, and their squares
    value = accurate((each.p.value * np.where(each.p.value == 0, 0, each.nll.value)).sum(-1), lead[:, 0], x.work)
    flushed = x.work.tiny * (1 + np.maximum(larger, lead))  # where a p below the smallest normal number is 0
    moves = moved * each.p.value * (larger + 1)
    value = Near(value.value, value.error + moves.sum(-1) + x.work.tiny * (1 + lead[:, 0]), x.work)
    terms = accurate(each.p.value * larger, np.maximum(gap, lead), x.work)
    slope = each.p.value * np.where(each.p.value == 0, 0, gap - mean)
    return value, Near(slope, terms.error + moves + flushed, x.work)


def as_rows(values: Any, axis: int, work: str) -> tuple[Near, Any]:
    """[R, C], and the shape with the classes last."""
    x = np.moveaxis(np.asarray(values, Long), axis, -1)
    return Near(x.reshape((-1, x.shape[-1]) if x.size else (0, x.shape[-1])), 0, WORK[work]), x.shape


def from_rows(d: Near, whole: Any, axis: int) -> Near:
    return d.mapped(lambda k: np.moveaxis(k.reshape(whole), -1, axis))


def capped_and_scaled(x: Near, cap: float | None, scale: float | None) -> tuple[Near, Near | None]:
    """scale cap tanh(x / cap) and its slope; both have the accuracy of exp, relative to themselves."""
    if cap is scale is None:
        return x, None
    k = Long(1 if scale is None else scale)
    if cap is None:
        return x * k, Near(k, x.work.unit * k, x.work)
    y = x.value / Long(cap)
    t, e = np.tanh(y), np.exp(-2 * np.abs(y))
    bend = 4 * k * e / (1 + e) ** 2
    off = (8 + 4 * np.nan_to_num(np.abs(y), posinf=0)) * x.work.unit
    return Near(k * Long(cap) * t, 8 * x.work.unit * np.abs(k * cap * t), x.work), Near(bend, off * bend, x.work)
