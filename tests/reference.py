"""Every loss by the textbook's formulas in long double: written from docs/semantics.md, and from nothing in xent.

Each number is a `Near`: its value, and how far xent may be from it. What a row of logits starts with (its
probabilities, their logarithms) has the accuracy that docs/semantics.md promises.

Arguments are what the call means, as the computation holds it: `work` is the name of the dtype that it computes in.
Gradients are those of sum(upstream * value).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from near import WORK, Long, Near, accurate
from reference_rows import Softmax, as_rows, capped_and_scaled, from_rows, softmax, spread


class Answer(NamedTuple):
    value: Near
    grads: dict[str, Near]  # by the argument's name
    stats: dict[str, Any]  # by the field's name, for class ids


# ---- examples, one by one


class Examples(NamedTuple):
    """Each one's loss and weight, [R], and their derivatives, [R, C]; the weight is what its classes make of it."""

    loss: Near
    weight: Near
    d_logits: Near
    d_labels: Near
    d_weight: Near


def examples(each: Softmax, t: Any, table: Any, hard: bool, smoothing: float, z_loss: float) -> Examples:
    """t: labels [R, C], one-hot where they are ids; table: class weights [C], or None."""
    work, (count, classes) = each.p.work, t.shape
    k = Near(np.ones(classes) if table is None else table, 0, work)
    weighted = Near(t * k.value, 0 if table is None else work.unit * np.abs(t * k.value), work)
    weight, d_weight = class_weight(t, k, weighted, hard)
    nothing = Near(np.zeros((count, classes)), 0, work)
    loss, d_logits, d_labels = nothing.sum(-1), nothing, nothing
    if smoothing != 1:
        keep = Near(1 - smoothing, work.unit * smoothing, work)
        loss, d_logits, d_labels = keep * weighted.of(each.nll).sum(-1), keep * slope(weighted, each), k.of(each.nll)
        d_labels = keep * d_labels
    if smoothing:
        uniform = Near(smoothing, work.unit * smoothing, work) * k / classes
        loss, d_logits = loss + uniform.of(each.nll).sum(-1), d_logits + (uniform.sum() * each.p - uniform)
    if z_loss:
        z = Near(z_loss, work.unit * abs(z_loss), work)
        square = z * each.lse * each.lse
        loss = loss + weight * square
        d_logits = d_logits + (z * weight * each.lse * 2)[:, None] * each.p
        d_labels = d_labels + d_weight * square[:, None]
    return Examples(loss, weight, d_logits, d_labels, d_weight)


def class_weight(t: Any, k: Near, weighted: Near, hard: bool) -> tuple[Near, Near]:
    """The average of class weights by label, and its derivative in the labels."""
    if hard:
        weight = Near(weighted.value.sum(-1), 0, k.work)
        return weight, Near(np.zeros_like(t), 0, k.work)
    share = Near(t, 0, k.work).sum(-1)
    zero = share.value == 0
    share = share.where(~zero, 1)
    weight = (weighted.sum(-1) / share).where(~zero, k.sum() / k.value.size)
    return weight, ((k - weight[:, None]) / share[:, None]).where(~zero[:, None])


def slope(t: Near, each: Softmax) -> Near:
    """(sum t) p - t; entry by entry where a row has one entry, whose rest is exactly 0."""
    total = t.sum(-1)[:, None]
    alone = (t.value != 0).sum(-1, keepdims=True) == 1
    return (-(t * each.miss)).where(alone & (t.value != 0), (total * each.p).where(alone, total * each.p - t))


# ---- reductions


class Reduced(NamedTuple):
    value: Near
    scale: Near  # of an example's derivatives, [R]; 0 where it is left out
    moving: Near  # the mean, where its denominator moves with the weights, else 0
    sample_weight: Near  # the derivative in `sample_weight`


def reduce_(
    found: Examples, ignored: Any, shape: Any, reduce: str, sample_weight: Any, denom: Any, upstream: Any
) -> Reduced:
    work = found.loss.work
    given = np.asarray(1 if sample_weight is None else sample_weight, Long)
    sample = Near(np.broadcast_to(given, shape).ravel(), 0, work)
    weight = sample * found.weight
    there = ~ignored & (weight.value != 0)
    weight, up = weight.where(there), Near(upstream, 0, work)
    each, scale = (sample * found.loss).where(there), (sample * up).where(there)
    divisors = {
        "mean": lambda: weight.sum() if denom is None else Near(denom, 0, work),
        "mean_nonzero": lambda: Near(there.sum(), 0, work),
        "mean_all": lambda: Near(there.size, 0, work),
    }
    divisor = divisors[reduce]() if reduce in divisors else Near(1, 0, work)
    value = each.mapped(lambda k: k.reshape(shape)) if reduce == "none" else each.sum() / divisor
    scale, up = scale / divisor, up / divisor
    if divisor.value == 0:  # over nothing, and so is every derivative
        value, scale, there = Near(0, 0, work), Near(np.zeros(there.shape), 0, work), np.zeros_like(there)
    moving = value if reduce == "mean" and denom is None else Near(0, 0, work)
    d_weights = (up * (found.loss - moving * found.weight)).where(there)
    return Reduced(value, scale, moving, summed_to(d_weights.mapped(lambda k: k.reshape(shape)), given.shape))


def summed_to(d: Near, shape: Any) -> Near:
    """The derivative in what was broadcast."""
    if shape == ():
        return d.sum()
    for axis, n in enumerate(shape):
        if n == 1:
            d = d.sum(axis).mapped(lambda k, axis=axis: np.expand_dims(k, axis))
    return d


# ---- the losses


def softmax_ce(
    logits: Any,
    labels: Any,
    *,
    work: str,
    axis: int = -1,
    reduce: str = "mean",
    sample_weight: Any = None,
    class_weight: Any = None,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    softcap: float | None = None,
    logit_scale: float | None = None,
    denom: Any = None,
    upstream: Any = 1,
) -> Answer:
    with np.errstate(all="ignore"):
        x, whole = as_rows(logits, axis, work)
        t, _ = as_rows(labels, axis, work)
        x, bend, t = *capped_and_scaled(x, softcap, logit_scale), t.value
        each = softmax(x)
        found = examples(each, t, class_weight, False, label_smoothing, z_loss)
        how = reduce_(found, np.zeros(len(t), bool), whole[:-1], reduce, sample_weight, denom, np.ravel(upstream))
        scale = how.scale[:, None]
        d_labels = scale * (found.d_labels - how.moving * found.d_weight)
        d_logits, d_labels = (k.where(scale.value != 0) for k in (scale * found.d_logits, d_labels))
        d_logits, d_labels = (from_rows(d, whole, axis) for d in (through(d_logits, bend), d_labels))
    return Answer(how.value, {"logits": d_logits, "labels": d_labels, "sample_weight": how.sample_weight}, {})


def sparse_ce(
    logits: Any,
    labels: Any,
    *,
    work: str,
    axis: int = -1,
    softcap: float | None = None,
    logit_scale: float | None = None,
    **options: Any,
) -> Answer:
    with np.errstate(all="ignore"):
        x, whole = as_rows(logits, axis, work)
        x, bend = capped_and_scaled(x, softcap, logit_scale)
        value, d_logits, d_weights, stats, _ = by_ids(x, labels, whole[:-1], **options)
        d_logits = from_rows(through(d_logits, bend), whole, axis)
    return Answer(value, {"logits": d_logits, "sample_weight": d_weights}, stats)


def log_prob(logits: Any, labels: Any, **options: Any) -> Answer:
    found = sparse_ce(logits, labels, reduce="none", **options)
    return Answer(-found.value, {"logits": -found.grads["logits"]}, {})


def entropy(
    logits: Any,
    *,
    work: str,
    axis: int = -1,
    sample_weight: Any = None,
    softcap: float | None = None,
    logit_scale: float | None = None,
    upstream: Any = 1,
) -> Answer:
    with np.errstate(all="ignore"):
        x, whole = as_rows(logits, axis, work)
        x, bend = capped_and_scaled(x, softcap, logit_scale)
        loss, d_logits = spread(x)
        ones, zeros = Near(np.ones(loss.value.shape), 0, x.work), np.zeros(loss.value.shape, bool)
        found = Examples(loss, ones, d_logits, d_logits, d_logits)
        how = reduce_(found, zeros, whole[:-1], "none", sample_weight, None, np.ravel(upstream))
        d_logits = (how.scale[:, None] * d_logits).where(how.scale.value[:, None] != 0)
        d_logits = from_rows(through(d_logits, bend), whole, axis)
    return Answer(how.value, {"logits": d_logits, "sample_weight": how.sample_weight}, {})


def through(d: Near, bend: Near | None) -> Near:
    if bend is None:
        return d
    bent, flushed = d * bend, 4 * d.work.tiny  # the slope's factor of 4 may come last, after what is too small
    return Near(bent.value, bent.error + flushed, d.work).where(d.value != 0)


def by_ids(
    x: Near,
    labels: Any,
    shape: Any,
    *,
    reduce: str = "mean",
    sample_weight: Any = None,
    class_weight: Any = None,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    ignore_index: int | None = None,
    invalid: str = "nan",
    denom: Any = None,
    upstream: Any = 1,
) -> tuple[Near, Near, Near, dict[str, Any], Any]:
    """For logits [R, C]: the value, the derivatives in logits and weights, statistics, which rows count."""
    ids = np.array([int(y) for y in np.ravel(labels)], object)  # of any width
    classes = x.value.shape[1]
    valid = np.array([0 <= y < classes for y in ids], bool)
    ignored = np.array([y == ignore_index for y in ids], bool) | (~valid & (invalid == "ignore"))
    bad = ~valid & ~ignored
    y = np.where(valid, ids, 0).astype(int)
    t = (np.arange(classes) == y[:, None]).astype(Long)
    each = softmax(x)
    found = examples(each, t, class_weight, True, label_smoothing, z_loss)
    poison = np.where(bad, np.nan, 0)
    found = found._replace(
        loss=found.loss + poison, weight=found.weight.where(~bad, 1), d_logits=found.d_logits + poison[:, None]
    )
    how = reduce_(found, ignored, shape, reduce, sample_weight, denom, np.ravel(upstream))
    given = np.broadcast_to(np.asarray(1 if sample_weight is None else sample_weight, Long), shape).ravel()
    weight = found.weight * given
    there = ~ignored & (weight.value != 0)
    rows = np.arange(len(y))
    top = x.value.max(-1)
    stats = {
        "nll": (each.nll[rows, y] + poison).where(there),
        "lse": (each.lse + poison).where(there),
        "sample_weight": weight.where(there),
        "entropy": (spread(x)[0] + poison).where(there),
        "argmax": np.where(there & ~bad & np.isfinite(top), x.value.argmax(-1), -1),
        "correct": there & ~bad & np.isfinite(top) & (x.value[rows, y] == top),
        # where logits are off themselves, which one is the largest may not be known
        "known": (x.error.max(-1) == 0) | (np.sum(x.value >= (top - 2 * x.error.max(-1))[:, None], -1) < 2),
    }
    stats = {
        name: k.mapped(lambda k: k.reshape(shape)) if isinstance(k, Near) else k.reshape(shape)
        for name, k in stats.items()
    }
    counts = how.scale.value != 0
    d_logits = (how.scale[:, None] * found.d_logits).where(counts[:, None])
    return how.value, d_logits, how.sample_weight, stats, counts


def linear_ce(
    hidden: Any, weight: Any, labels: Any, *, work: str, bias: Any = None, softcap: float | None = None, **options: Any
) -> Answer:
    precision = WORK[work]
    with np.errstate(all="ignore"):
        whole = np.shape(hidden)
        h = Near(np.asarray(hidden, Long).reshape(-1, whole[-1]), 0, precision)
        w = Near(weight, 0, precision)
        x = h.product(w.mapped(np.transpose))
        x = x if bias is None else x + np.asarray(bias, Long)
        x, bend = (x, None) if softcap is None else capped(x, softcap)
        value, dx, d_weights, stats, counts = by_ids(x, labels, whole[:-1], **options)
        dx = through(dx, bend)
        h = h.where(counts[:, None])  # a row that is left out may hold anything
        grads = {
            "hidden": dx.product(w).mapped(lambda k: k.reshape(whole)),
            "weight": dx.mapped(np.transpose).product(h),
            "sample_weight": d_weights,
        }
        if bias is not None:
            ones = Near(np.ones((len(h.value), 1)), 0, precision)
            grads["bias"] = dx.mapped(np.transpose).product(ones)[:, 0]
    return Answer(value, grads, stats)


def capped(x: Near, cap: float) -> tuple[Near, Near]:
    """cap tanh(x / cap) and its slope 1 - tanh^2. Frameworks' tanh are good to a few units of roundoff of 1."""
    t = np.tanh(x.value / cap)
    bent = 1 - t * t
    off = x.error * bent / cap + x.work.unit * (4 * np.abs(t) + np.abs(np.nan_to_num(x.value / cap * bent)))
    return Near(cap * t, cap * off, x.work), Near(bent, 2 * np.abs(t) * off + 2 * x.work.unit, x.work)


def sigmoid_ce(
    logits: Any,
    labels: Any,
    *,
    work: str,
    reduce: str = "mean",
    sample_weight: Any = None,
    pos_weight: Any = None,
    label_smoothing: float = 0.0,
    denom: Any = None,
    upstream: Any = 1,
) -> Answer:
    precision, shape = WORK[work], np.shape(logits)

    def exactly(k: Any) -> Near:
        return Near(np.broadcast_to(np.asarray(k, Long), shape).ravel(), 0, precision)

    with np.errstate(all="ignore"):
        x, z = exactly(logits).value, exactly(labels)
        distance = np.where(np.isfinite(x), np.abs(x), 0)
        up, down = (accurate(softplus(k), distance, precision) for k in (-x, x))  # -log sigmoid(x), -log sigmoid(-x)
        at, beside = (accurate(1 / (1 + np.exp(-k)), distance, precision) for k in (x, -x))
        keep = Near(1 - label_smoothing, precision.unit * label_smoothing, precision)
        half = Near(label_smoothing / 2, 0, precision)
        positive, negative = (keep * z + half, keep * (1 - z.value) + half) if label_smoothing else (z, exactly(1) - z)
        p = exactly(1 if pos_weight is None else pos_weight)
        positive = positive if pos_weight is None else p * positive
        d_labels = Near(-x, 0, precision) if pos_weight is None else p.of(up) - down
        ones = Near(np.ones(x.shape), 0, precision)
        found = Examples(
            positive.of(up) + negative.of(down),
            ones,
            negative * at - positive * beside,
            (keep * d_labels).where(label_smoothing != 1),  # smoothed away, labels do not count
            ones * 0,
        )
        how = reduce_(found, np.zeros(x.shape, bool), shape, reduce, sample_weight, denom, np.ravel(upstream))
        counts = how.scale.value != 0
        grads = {"logits": how.scale * found.d_logits, "labels": how.scale * found.d_labels}
        grads = {name: d.where(counts).mapped(lambda k: k.reshape(shape)) for name, d in grads.items()}
    return Answer(how.value, grads | {"sample_weight": how.sample_weight}, {})


def softplus(x: Any) -> Any:
    return np.maximum(x, 0) + np.log1p(np.exp(-np.abs(x)))
