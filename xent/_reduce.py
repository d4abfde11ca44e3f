"""From per-row statistics to the loss: masks, weights, class weights, smoothing, z-loss, reductions; for all adapters.

A row contributes  w_loss * loss + w_lse * lse^2 + w_smooth * smooth  (for sigmoid, w_loss * loss). These weights are
known before the kernel runs, so they also scale its derivative.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from xent._options import Options
from xent.adapter import ABSENT, INVALID, Array, Ops, RowResults, Scalar, Slopes


def code(ops: Ops, labels: Array, classes: Scalar, ignored: int | None, out_of_range: str) -> Array:
    """Class ids with ABSENT and INVALID marked, compared in their own width before they are narrowed."""
    wide = ops.integer(labels)
    ids = ops.astype(wide, ops.index_dtype)
    if out_of_range != "raise":
        valid = (wide >= 0) & (wide < classes)
        ids = ops.where(valid, ids, INVALID if out_of_range == "nan" else ABSENT)
    if ignored is not None:
        ids = ops.where(wide == _as_held(ignored, ops.dtype(wide)), ABSENT, ids)
    return ids


def _as_held(ignored: int, dtype: str) -> int:
    """The ignored id in the dtype of `Ops.integer`, where a large unsigned id may have become negative."""
    bits = int(dtype.removeprefix("u").removeprefix("int"))
    return ignored - 2**bits if dtype.startswith("int") and ignored >= 2 ** (bits - 1) else ignored


def hard_class_weight(ops: Ops, table: Array, ids: Array) -> Array:
    """The class weight of each label; 1 where there is no class to have one."""
    return ops.where(ids < 0, 1.0, ops.take(table, ops.where(ids < 0, 0, ids)))


def soft_class_weight(ops: Ops, table: Array, column: Array, t: Array, axis: int) -> Array:
    """The label-weighted average of the class weights; their plain average where labels add up to 0."""
    return ops.squeeze(average_class_weight(ops, table, ops.sum(t, axis), ops.sum(t * column, axis)), axis)


def average_class_weight(ops: Ops, table: Array, share: Array, weighted: Array) -> Array:
    """From the sums of a row's labels, and of its labels times the class weights."""
    classes = ops.shape(table)[0]
    flat = over(ops, ops.sum(table, 0), ops.size(table) if classes is None else classes)
    return ops.where(share == 0, flat, weighted / ops.where(share == 0, 1.0, share))


def over(ops: Ops, x: Array, count: Scalar) -> Array:
    """x / count; count is an array where a graph does not know it yet."""
    is_number = (
        ops.unknown is None or isinstance(count, int) or not hasattr(count, "dtype")
    )  # torch.SymInt has no dtype
    return x / (count if is_number else ops.astype(count, ops.dtype(x)))


def along(ops: Ops, table: Array, x: Array, axis: int) -> Array:
    """The vector table [C], shaped to broadcast along x's class axis."""
    for _ in range(len(ops.shape(x)) - 1 - axis):
        table = ops.expand_dims(table, -1)
    return table


def product(sample_weight: Array | None, class_weight: Array | None) -> Array | None:
    if sample_weight is None or class_weight is None:
        return class_weight if sample_weight is None else sample_weight
    return sample_weight * class_weight


def mark_absent(ops: Ops, ids: Array | None, weight: Array) -> Array:
    """ids with ABSENT in rows of weight 0."""
    return ops.astype(weight == 0, ops.index_dtype) * ABSENT if ids is None else ops.where(weight == 0, ABSENT, ids)


def zero_absent(ops: Ops, ids: Array, weight: Array | None) -> Array | None:
    return None if weight is None else ops.where(ids == ABSENT, 0.0, weight)


class Stats(NamedTuple):
    """What a training loop logs of each row: constants, of the labels' shape, 0 and False in rows that are left out.

    Perplexity is exp(sum(w nll) / sum(w)), accuracy sum(w correct) / sum(w), for w = sample_weight.

    Attributes:
        nll: -log p of the label: unsmoothed, unweighted.
        lse: log(sum_j exp(x_j)).
        correct: bool: no class has a larger logit than the label.
        sample_weight: `sample_weight` x class weight of the label.
        entropy: -sum_j p_j log p_j of the row's softmax, as accurate as that of `xent.entropy`, which has derivatives;
            NaN where the label is no class, or the logits have no softmax.
        argmax: the first class with the largest logit; -1 where the row is left out, or its entropy is NaN.

    Example:
        >>> import numpy as np, xent
        >>> loss, stats = xent.sparse_ce(np.array([[2.0, 0.5, 6.0], [0.1, 0.0, 3.0]]), [2, 1], stats=True)
        >>> print(stats.nll.round(4), stats.correct)
        [0.0222 3.0997] [ True False]
        >>> print(stats.entropy.round(4), stats.argmax)
        [0.1131 0.3644] [2 2]
    """

    nll: Array
    lse: Array
    correct: Array
    sample_weight: Array
    entropy: Array
    argmax: Array


def stats(ops: Ops, results: RowResults, x: Array, ids: Array, weight: Array | None, axis: int) -> Stats:
    """From a kernel's results with lse; x: the logits."""
    label = ops.expand_dims(ops.where(ids < 0, 0, ids), axis)
    x_y = ops.astype(ops.pick(x, label, axis), ops.dtype(results.m))
    return described(ops, unmarked(ops, results, x_y == results.m, weight, axis), ids)


def unmarked(ops: Ops, results: RowResults, correct: Any, weight: Array | None, axis: int) -> Stats:
    """What `described` starts with; `correct` keeps the class axis."""
    correct, spread, argmax = (ops.squeeze(k, axis) for k in (correct, entropy(ops, results), results.argmax))
    return Stats(results.nll, results.lse, correct, weight, spread, argmax)


def entropy(ops: Ops, results: RowResults) -> Array:
    """It keeps the class axis."""
    return ops.log1p(results.s) + results.gap_sum / (1 + results.s)


def described(ops: Ops, rows: Stats, ids: Array) -> Stats:
    """The statistics with masked rows marked, where `correct`, `entropy` and `argmax` were of any value.

    Their sample_weight broadcasts; it is None where all rows that are not masked have weight 1.
    """
    there = ops.astype(ids != ABSENT, ops.dtype(rows.nll))
    spread = ops.where(ids == ABSENT, 0.0, ops.where(ids == INVALID, float("nan"), rows.entropy))
    marked = rows._replace(
        correct=rows.correct & (ids >= 0),
        sample_weight=there if rows.sample_weight is None else there * rows.sample_weight,
        entropy=spread,
        argmax=ops.where(ids < 0, -1, ops.where(spread == spread, rows.argmax, -1)),  # NaN: there is no softmax
    )
    return Stats(*map(ops.stop_gradient, marked))


class RowWeights(NamedTuple):
    """What a row's three statistics are multiplied by. None: 1 for `loss`; for the others, that they take no part."""

    loss: Scalar | None
    lse: Any = None
    smooth: Any = None

    @property
    def plain(self) -> bool:
        """Nothing but the sum of the losses."""
        return self.loss is None and self.lse is None and self.smooth is None

    def contribution(self, loss: Array, lse: Any, smooth: Array | None) -> Array:
        if isinstance(self.loss, float) and self.loss == 0:  # smoothed away, infinite or not
            value, smooth = self.smooth * smooth, None
        else:
            value = loss if self.loss is None else self.loss * loss
        if self.lse is not None:
            value = value + self.lse * (lse * lse)
        return value if smooth is None else value + self.smooth * smooth

    def slopes(self, upstream: Scalar) -> Slopes:
        """Those of upstream times the sum of all contributions."""
        return Slopes(
            upstream if self.loss is None else upstream * self.loss,
            None if self.lse is None else upstream * self.lse,
            None if self.smooth is None else upstream * self.smooth,
        )


def row_weights(
    options: Options, on_loss: Array | None, weight: Array | None, sample_weight: Array | None
) -> RowWeights:
    """(1 - smoothing) loss + smoothing * smooth + z_loss lse^2, weighted.

    `on_loss` weights the labels' term, `weight` is the row's whole weight, `sample_weight` the caller's; None: 1. Class
    weights act per class, so they are inside `smooth` already, and inside soft labels.
    """
    smoothing, z_loss = options.label_smoothing, options.z_loss
    if smoothing == 1:
        on_loss = 0.0
    elif smoothing:
        on_loss = (1 - smoothing) * (1.0 if on_loss is None else on_loss)
    return RowWeights(
        on_loss,
        z_loss * (1.0 if weight is None else weight) if z_loss else None,
        smoothing * (1.0 if sample_weight is None else sample_weight) if smoothing else None,
    )


def denominator(
    ops: Ops, options: Options, count: Scalar, dtype: str, weight: Array | None, ids: Array | None, denom: Scalar | None
) -> Scalar | None:
    """What the sum over `count` examples is divided by, or None.

    weight: every example's, broadcasting; None where all that are not masked have weight 1. ids: None where no example
    is masked.
    """
    reduce = options.reduce
    if reduce in ("none", "sum"):
        return None
    if denom is not None:
        return denom
    if reduce == "mean_all" or (weight is None and ids is None):
        return count
    if weight is None:
        weight = ops.astype(ids != ABSENT, dtype)
    elif reduce == "mean_nonzero":
        weight = ops.astype(weight != 0, dtype)
    return ops.sum(weight, None) * _repeats(ops, count, ops.size(weight), dtype)


def empty(
    ops: Ops, options: Options, weight: Array | None, denom: Scalar | None, divisor: Scalar | None
) -> Array | None:
    """Whether the divisor is 0 although not all rows are masked, as a 0-d bool: 0 times a row's NaN would be NaN.

    None where it cannot be so: a count is 0 only if all rows are masked, and a divisor may be readable and not 0.
    """
    if denom is None and (weight is None or options.reduce != "mean"):
        return None
    value = ops.host(divisor)
    return divisor == 0 if value is None or value == 0 else None


def mark_empty(ops: Ops, ids: Array | None, empty: Array, rank: int) -> Array:
    """ids with every row masked if `empty`; `rank` is the loss's."""
    if ids is None:
        ids = ops.astype(empty, ops.index_dtype) * 0
    for _ in range(rank - len(ops.shape(ids))):
        ids = ops.expand_dims(ids, 0)
    return ops.where(empty, ABSENT, ids)


def constant_where(ops: Ops, condition: Array, x: Array) -> Array:
    """x, as a constant where the condition holds: 0 times a derivative of NaN would be NaN."""
    return ops.where(condition, ops.stop_gradient(x), x)


def _repeats(ops: Ops, count: Scalar, given: Scalar, dtype: str) -> Scalar:
    """How many examples each of the given weights stands for."""
    if isinstance(count, int) and isinstance(given, int):
        return count // max(given, 1)
    given = ops.astype(given, dtype)
    return ops.astype(count, dtype) / ops.where(given == 0, 1.0, given)


def inverse(ops: Ops, divisor: Scalar | None, dtype: str) -> Scalar:
    """1 / divisor, and 0 for 0: a mean over nothing is 0."""
    if divisor is None:
        return 1.0
    if isinstance(divisor, int):
        return 1.0 / divisor if divisor else 0.0
    divisor = ops.astype(divisor, dtype)
    return ops.where(divisor == 0, 0.0, 1.0 / ops.where(divisor == 0, 1.0, divisor))


def divided(ops: Ops, total: Array, divisor: Scalar | None) -> Array:
    if divisor is None:
        return total
    if isinstance(divisor, int):  # a count: of no examples the sum is 0 already
        return total / max(divisor, 1)
    divisor = ops.astype(divisor, ops.dtype(total))
    return ops.where(divisor == 0, 0.0, total / ops.where(divisor == 0, 1.0, divisor))
