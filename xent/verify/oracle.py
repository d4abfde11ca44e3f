"""The truth, in float64: every loss and every derivative, by other formulas and other code than the kernels'.

Each row is worked out on its own, from probabilities and their complements instead of the kernels' statistics: sums
are exact (math.fsum), differences of logits carry their rounding error along, and 1 - p never comes from p. Good to a
few units of float64 roundoff, which tests/test_oracle.py checks against mpmath at 60 digits. Slow, and meant to be.

Takes what the losses take, as NumPy arrays, and returns the loss with its derivatives. 16-bit and float32 inputs are
exact in float64, so the result is the truth for them too.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]


class Truth(NamedTuple):
    """The loss, and the derivatives of its sum in the arguments; `labels` is None where they are class ids."""

    loss: Floats
    logits: Floats
    labels: Floats | None
    sample_weight: Floats


class LinearTruth(NamedTuple):
    """The same for `linear_ce`; `bias` is there whether or not one was given."""

    loss: Floats
    hidden: Floats
    weight: Floats
    bias: Floats
    sample_weight: Floats


class _Row(NamedTuple):
    """-log p, p, 1 - p and log-sum-exp of one row of logits."""

    nll: Floats
    p: Floats
    q: Floats
    lse: float


def _row(x: Floats) -> _Row:
    best = int(np.argmax(x))
    m = float(x[best])
    if not math.isfinite(m):
        nan = np.full_like(x, np.nan)
        return _Row(nan, nan, nan, math.nan)
    difference = x - m
    e = np.exp(difference) * (1 + _rounding(x, m, difference))
    others = _exact(np.delete(e, best))
    total = 1 + others
    p, q = e / total, (total - e) / total
    q[best] = others / total
    nll = math.log(total) - difference
    if p[best] > 0.5:
        nll[best] = -math.log1p(-q[best])
    return _Row(nll, p, q, m + math.log1p(others))


def _exact(x: Floats) -> float:
    """The sum, rounded once. Zeros take as long as other numbers, and one-hot rows are full of them."""
    return math.fsum(x[x != 0])


def _rounding(x: Floats, m: float, difference: Floats) -> Floats:
    """What x - m lost when it was rounded to `difference` (Knuth's two-sum), 0 at -inf."""
    with np.errstate(invalid="ignore"):
        taken = difference - x
        lost = (x - (difference - taken)) - (m + taken)
    return np.where(np.isfinite(x), lost, 0.0)


class _Part(NamedTuple):
    """One example, or many stacked: its loss for weight 1, its weight from the classes, and their derivatives."""

    loss: Any
    weight: Any
    d_logits: Floats
    d_labels: Floats
    d_weight: Floats  # of `weight`, in the labels


def _example(x: Floats, t: Floats, table: Floats, smoothing: float, z_loss: float) -> _Part:
    row = _row(x)
    smooth = ((1 - smoothing) * t + smoothing / len(x)) * table
    loss = _exact(_product(smooth, row.nll))
    share = _exact(t)
    weight = _exact(t * table) / share if share else float(np.mean(table))
    d_weight = (table - weight) / share if share else np.zeros_like(t)
    rest = _rest(smooth)
    lse_term = z_loss * row.lse**2 if z_loss else 0.0
    d_logits = row.p * rest - smooth * row.q
    if z_loss:
        d_logits = d_logits + weight * 2 * z_loss * row.lse * row.p
    d_labels = _product((1 - smoothing) * table, row.nll) + d_weight * lse_term
    return _Part(loss + weight * lse_term, weight, d_logits, d_labels, d_weight)


def _rest(t: Floats) -> Floats:
    """The sum of all the others', exact where one entry is all there is."""
    entries = np.flatnonzero(t)
    if len(entries) == 1:
        rest = np.full_like(t, t[entries[0]])
        rest[entries[0]] = 0
        return rest
    return _exact(t) - t


def _product(weight: Floats | float, x: Floats) -> Floats:
    """0 * inf = 0."""
    with np.errstate(invalid="ignore"):
        return np.where(weight == 0, 0.0, weight * x)


def _transformed(logits: ArrayLike, softcap: float | None, scale: float | None) -> tuple[Floats, Floats]:
    """scale cap tanh(x / cap), and its derivative in x."""
    x, k = np.asarray(logits, np.longdouble), 1.0 if scale is None else scale
    if softcap is None:
        return np.asarray(k * x, np.float64), np.full(x.shape, k)
    with np.errstate(over="ignore"):
        slope = k / np.cosh(x / softcap) ** 2
    return np.asarray(k * softcap * np.tanh(x / softcap), np.float64), np.asarray(slope, np.float64)


# ---- the losses


def _of_rows(
    part: Callable[[Floats, tuple[int, ...]], _Part],
    logits: ArrayLike,
    axis: int,
    softcap: float | None,
    logit_scale: float | None,
    *reduction: Any,
) -> Truth:
    """part(row of logits, its place) of every row; reduction: reduce, sample_weight, denom."""
    seen, slope = _transformed(logits, softcap, logit_scale)
    x = np.moveaxis(seen, axis, -1)
    parts = [part(x[place], place) for place in np.ndindex(x.shape[:-1])]
    truth = _reduced(_stack(parts, x.shape[:-1], x.shape[-1]), axis, *reduction)
    return truth._replace(logits=_product(truth.logits, slope))


def _table(class_weight: ArrayLike | None, classes: int) -> Floats:
    return np.ones(classes) if class_weight is None else np.asarray(class_weight, np.float64)


def softmax_ce(
    logits: ArrayLike,
    labels: ArrayLike,
    *,
    axis: int = -1,
    reduce: str = "mean",
    sample_weight: ArrayLike | None = None,
    class_weight: ArrayLike | None = None,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    softcap: float | None = None,
    logit_scale: float | None = None,
    denom: float | None = None,
) -> Truth:
    t = np.moveaxis(np.asarray(labels, np.float64), axis, -1)
    table = _table(class_weight, t.shape[-1])

    def part(x: Floats, place: tuple[int, ...]) -> _Part:
        return _example(x, t[place], table, label_smoothing, z_loss)

    return _of_rows(part, logits, axis, softcap, logit_scale, reduce, sample_weight, denom)


def sparse_ce(
    logits: ArrayLike,
    labels: ArrayLike,
    *,
    axis: int = -1,
    reduce: str = "mean",
    sample_weight: ArrayLike | None = None,
    class_weight: ArrayLike | None = None,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    softcap: float | None = None,
    logit_scale: float | None = None,
    ignore_index: int | None = None,
    invalid: str = "nan",
    denom: float | None = None,
) -> Truth:
    ids, classes = np.asarray(labels), np.shape(logits)[axis]
    table, zero = _table(class_weight, classes), np.zeros(classes)

    def part(x: Floats, place: tuple[int, ...]) -> _Part:
        y = int(ids[place])
        if 0 <= y < classes and y != ignore_index:
            return _example(x, np.eye(1, classes, y)[0], table, label_smoothing, z_loss)
        if y == ignore_index or invalid == "ignore":
            return _Part(0.0, 0.0, zero, zero, zero)
        return _Part(math.nan, 1.0, zero + math.nan, zero, zero)

    truth = _of_rows(part, logits, axis, softcap, logit_scale, reduce, sample_weight, denom)
    return truth._replace(labels=None)


def linear_ce(
    hidden: ArrayLike,
    weight: ArrayLike,
    labels: ArrayLike,
    *,
    bias: ArrayLike | None = None,
    softcap: float | None = None,
    reduce: str = "mean",
    sample_weight: ArrayLike | None = None,
    class_weight: ArrayLike | None = None,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    ignore_index: int | None = None,
    invalid: str = "nan",
    denom: float | None = None,
) -> LinearTruth:
    """All logits at once, their sums in extended precision where the machine has it."""
    h, w = np.asarray(hidden, np.longdouble), np.asarray(weight, np.longdouble)
    with np.errstate(invalid="ignore"):
        x = h @ w.T + np.asarray(0.0 if bias is None else bias, np.longdouble)
        y, slope = _transformed(x, softcap, None)
        options = {"sample_weight": sample_weight, "class_weight": class_weight, "label_smoothing": label_smoothing}
        options |= {"z_loss": z_loss, "ignore_index": ignore_index, "invalid": invalid, "denom": denom}
        truth = sparse_ce(y, labels, reduce=reduce, **options)  # type: ignore[arg-type]
        dx = _product(truth.logits, slope)
        there = dx.any(axis=-1, keepdims=True)  # a masked row may hold anything
        dx, h = dx.reshape(-1, len(w)), np.where(there, h, 0).reshape(-1, w.shape[1])
    d_hidden = (dx @ w).reshape(np.shape(hidden))
    d_hidden, d_weight, d_bias = (np.asarray(d, np.float64) for d in (d_hidden, dx.T @ h, dx.sum(axis=0)))
    return LinearTruth(truth.loss, d_hidden, d_weight, d_bias, truth.sample_weight)


def log_prob(
    logits: ArrayLike,
    labels: ArrayLike,
    *,
    axis: int = -1,
    ignore_index: int | None = None,
    invalid: str = "nan",
    softcap: float | None = None,
    logit_scale: float | None = None,
) -> Truth:
    options: dict[str, Any] = {"ignore_index": ignore_index, "invalid": invalid}
    options |= {"softcap": softcap, "logit_scale": logit_scale}
    truth = sparse_ce(logits, labels, axis=axis, reduce="none", **options)
    return truth._replace(loss=0.0 - truth.loss, logits=0.0 - truth.logits)


def entropy(
    logits: ArrayLike,
    *,
    axis: int = -1,
    sample_weight: ArrayLike | None = None,
    softcap: float | None = None,
    logit_scale: float | None = None,
) -> Truth:
    """`loss` is every row's entropy, times its weight."""
    truth = _of_rows(lambda x, _: _entropy(x), logits, axis, softcap, logit_scale, "none", sample_weight, None)
    return truth._replace(labels=None)


def _entropy(x: Floats) -> _Part:
    row, zero = _row(x), np.zeros_like(x)
    if math.isnan(row.lse):
        return _Part(math.nan, 1.0, np.full_like(x, np.nan), zero, zero)
    gap = x.max() - x
    spread = gap - _exact(_product(row.p, gap))
    return _Part(_exact(_product(row.p, row.nll)), 1.0, _product(row.p, spread), zero, zero)


def sigmoid_ce(
    logits: ArrayLike,
    labels: ArrayLike,
    *,
    reduce: str = "mean",
    sample_weight: ArrayLike | None = None,
    pos_weight: ArrayLike | None = None,
    label_smoothing: float = 0.0,
    denom: float | None = None,
) -> Truth:
    x, z = np.asarray(logits, np.float64), np.asarray(labels, np.float64)
    z, rest = ((1 - label_smoothing) * t + label_smoothing / 2 for t in (z, 1 - z))
    p = np.broadcast_to(1.0 if pos_weight is None else np.asarray(pos_weight, np.float64), x.shape)
    up, down = np.logaddexp(0, -x), np.logaddexp(0, x)  # -log sigmoid(x), -log sigmoid(-x)
    with np.errstate(invalid="ignore"):
        d_labels = _product(1 - label_smoothing, np.where(p == 1, -x, _product(p, up) - down))
    parts = _Part(
        _product(p * z, up) + _product(rest, down),
        np.ones_like(x),
        (rest * logistic(x) - p * z * logistic(-x))[..., None],
        d_labels[..., None],
        np.zeros_like(x)[..., None],
    )
    truth = _reduced(parts, -1, reduce, sample_weight, denom)
    assert truth.labels is not None
    return Truth(truth.loss, truth.logits[..., 0], truth.labels[..., 0], truth.sample_weight)


def logistic(x: Floats) -> Floats:
    e = np.exp(-np.abs(x))
    return np.asarray(np.where(x > 0, 1.0, e) / (1 + e))


# ---- reductions


def _stack(parts: list[_Part], shape: tuple[int, ...], classes: int) -> _Part:
    if not parts:
        empty = np.zeros((*shape, classes))
        return _Part(np.zeros(shape), np.zeros(shape), empty, empty, empty)
    return _Part(*(np.stack(field).reshape((*shape, *np.shape(field[0]))) for field in zip(*parts, strict=True)))


def _reduced(parts: _Part, axis: int, reduce: str, sample_weight: ArrayLike | None, denom: float | None) -> Truth:
    """sum of w_i loss_i / D, with D by the rules of `reduce`; examples whose weight is 0 do not exist."""
    given = np.asarray(1.0 if sample_weight is None else sample_weight, np.float64)
    w = np.broadcast_to(given, parts.loss.shape)
    there = w * parts.weight != 0
    divisors = {
        "none": 1.0,
        "sum": 1.0,
        "mean": math.fsum((w * parts.weight)[there]),
        "mean_nonzero": float(there.sum()),
        "mean_all": float(there.size),
    }
    divisor = divisors[reduce] if denom is None else float(denom)
    inverse = 1 / divisor if divisor else 0.0
    each = _product(np.where(there, w, 0.0), parts.loss)
    loss = each if reduce == "none" else np.asarray(_total(each) * inverse if divisor else 0.0)
    mean = float(loss) if reduce == "mean" and denom is None else 0.0  # a denominator that moves with the weights
    present, scale = there[..., None], (inverse * w)[..., None]
    d_labels = _product(np.where(present, scale, 0.0), parts.d_labels - mean * parts.d_weight)
    return Truth(
        loss,
        np.moveaxis(_product(np.where(present, scale, 0.0), parts.d_logits), -1, axis),
        np.moveaxis(d_labels, -1, axis),
        _unbroadcast(np.where(there, inverse * (parts.loss - mean * parts.weight), 0.0), given.shape),
    )


def _total(each: Floats) -> float:
    """math.fsum refuses infinities of both signs."""
    return math.fsum(each.ravel()) if np.isfinite(each).all() else float(each.sum())


def _unbroadcast(gradient: Floats, shape: tuple[int, ...]) -> Floats:
    for _ in range(gradient.ndim - len(shape)):
        gradient = gradient.sum(axis=0)
    for axis, n in enumerate(shape):
        if n == 1:
            gradient = gradient.sum(axis=axis, keepdims=True)
    return gradient
