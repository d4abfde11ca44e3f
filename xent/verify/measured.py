"""A batch as `xent doctor` looks at it: NumPy's values, every row's loss, smallest and largest number."""

from __future__ import annotations

from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import xent
from xent import _check, _plan, _rules
from xent._dispatch import find
from xent.verify.rows import Rows, rows

ROUGH = ("float16", "bfloat16")


class Values(NamedTuple):
    """An array's values, and the name of its own dtype: NumPy has no bfloat16."""

    array: Any
    dtype: str

    def __str__(self) -> str:
        return f"{self.dtype} {self.array.shape}"

    @property
    def integral(self) -> bool:
        return _check.is_integral(self.dtype)

    @property
    def tolerance(self) -> float:
        """How far from 1 a sum may be that is meant to be 1."""
        return 1e-2 if self.dtype in ROUGH else 1e-3


def values(argument: str, value: Any, beside: Any) -> Values:
    own, x = _plan.with_adapter(find(beside), argument, value, beside)
    dtype = own.ops.dtype(x)
    host = own.ops.fetch(own.ops.astype(x, "float32") if dtype == "bfloat16" else x)
    if host is None:
        raise ValueError(f"{argument}: the doctor reads values, and there are none while a function is traced")
    return Values(np.asarray(host), dtype)


def add_up(found: Rows, tolerance: float) -> Any:
    """Which rows lie in [0, 1] and add up to 1."""
    return np.abs(found.total - 1) <= tolerance


def zeros_and_ones(array: Any) -> bool:
    return bool(array.size and ((array == 0) | (array == 1)).all())


def first(mask: Any) -> tuple[int, ...]:
    return tuple(int(i) for i in np.unravel_index(int(np.argmax(mask)), np.shape(mask)))


class Batch:
    """What the caller gave. Figures are found when they are first asked for, and only once."""

    def __init__(
        self, logits: Any, labels: Any, loss: str | None, axis: int, ignore_index: int | None, sample_weight: Any
    ) -> None:
        labels = _check.class_ids(_check.given("labels", labels))
        self.logits = values("logits", _check.given("logits", logits), logits)
        self.labels = values("labels", labels, logits)
        self.sample_weight = None if sample_weight is None else values("sample_weight", sample_weight, logits)
        self.ignore_index = _check.index("ignore_index", ignore_index)
        self.asked = loss
        self.swapped = self.logits.integral and not self.labels.integral
        _check.real("labels", self.labels.dtype)
        if self.sample_weight is not None:
            _check.real("sample_weight", self.sample_weight.dtype)
        if not self.swapped:
            _check.floating("logits", self.logits.dtype)
        self.x, self.y = self.logits.array, self.labels.array
        self.axis = _rules.class_axis((self.y if self.swapped else self.x).shape, axis)

    @property
    def loss(self) -> str:
        return self.asked or ("sparse_ce" if self.labels.integral else "softmax_ce")

    @property
    def hard(self) -> bool:
        return self.loss == "sparse_ce"

    @property
    def classes(self) -> int:
        return int(self.x.shape[self.axis])

    @property
    def without_axis(self) -> tuple[int, ...]:
        shape: tuple[int, ...] = self.x.shape
        return shape[: self.axis] + shape[self.axis + 1 :]

    # ---- which rows count

    @cached_property
    def weights(self) -> Any:
        """In the loss's shape; None where none are given."""
        if self.sample_weight is None:
            return None
        shape = self.x.shape if self.loss == "sigmoid_ce" else self.without_axis
        _rules.WEIGHTS.check(self.sample_weight.array.shape, shape)
        return np.broadcast_to(self.sample_weight.array, shape)

    @cached_property
    def counts(self) -> Any:
        """Rows that are not ignored, and that have a weight."""
        counts = np.ones(self.without_axis, bool)
        if self.weights is not None:
            counts = self.weights != 0
            counts = counts.any(self.axis) if self.loss == "sigmoid_ce" else counts
        ignored = _check.representable(self.ignore_index, self.labels.dtype) if self.hard else None
        return counts if ignored is None else counts & (self.y != ignored)

    @cached_property
    def invalid(self) -> Any:
        """Ids that are no class, among the rows that count."""
        return self.counts & ((self.y < 0) | (self.y >= self.classes))

    @cached_property
    def valid(self) -> Any:
        return self.counts & ~self.invalid if self.hard else self.counts

    # ---- figures

    @cached_property
    def of_logits(self) -> Rows:
        return rows(self.weighed(self.x), self.axis)

    @cached_property
    def of_labels(self) -> Rows:
        """Of labels that are like the logits."""
        return rows(self.weighed(self.y), self.axis)

    def weighed(self, array: Any) -> Any:
        """With 0 for each element of weight 0, of which only sigmoid_ce has some in rows that count."""
        masked = self.loss == "sigmoid_ce" and self.weights is not None and not self.weights.all()
        return np.where(self.weights != 0, array, np.zeros((), array.dtype)) if masked else array

    @cached_property
    def losses(self) -> Any:
        """Of every row; of every element for sigmoid_ce. Raises what the loss raises."""
        x, y, axis = self.x, self.y, self.axis
        there = None if self.weights is None else self.weights != 0
        if self.loss == "sigmoid_ce":
            return np.asarray(xent.sigmoid_ce(x, y, reduce="none", sample_weight=there))
        options: dict[str, Any] = {"axis": axis, "reduce": "none", "sample_weight": there}
        if self.loss == "softmax_ce":
            return np.asarray(xent.softmax_ce(x, y, **options))
        return np.asarray(xent.sparse_ce(x, y, ignore_index=self.ignore_index, invalid="nan", **options))

    @cached_property
    def mean(self) -> float | None:
        """Of the rows' losses that are finite, weighted; of sigmoid_ce's if all are. None where there are none."""
        if self.loss == "sigmoid_ce":  # elements would take as much memory as the logits
            mean = float(xent.sigmoid_ce(self.x, self.y, sample_weight=self.weights))
            return mean if np.isfinite(mean) else None
        if not self.finite_losses.size:
            return None
        if self.weights is None:
            return float(self.finite_losses.mean())
        weights = self.weights[self.valid & np.isfinite(self.losses)].astype(np.float64)
        total = float(weights.sum())
        return float((weights * self.finite_losses).sum()) / total if total else 0.0

    @cached_property
    def lse(self) -> Any:
        """Every valid row's log-sum-exp: of ids the loss and the label's logit, else by another visit of the logits."""
        if self.hard:
            ids = np.expand_dims(np.where(self.valid, self.y, 0).astype(np.int64), self.axis)
            return self.losses + np.take_along_axis(self.x, ids, self.axis).reshape(self.without_axis)
        ids = np.zeros(self.without_axis, np.int64)
        return np.asarray(xent.sparse_ce(self.x, ids, axis=self.axis, reduce="none", stats=True)[1].lse)

    @cached_property
    def finite_losses(self) -> Any:
        """Of rows that count."""
        return self.losses[self.valid & np.isfinite(self.losses)]

    def row(self, array: Any, place: tuple[int, ...]) -> Any:
        """One row of an array that has the class axis."""
        return np.moveaxis(array, self.axis, -1)[place]

    # ---- what several diagnoses ask

    @cached_property
    def are_probabilities(self) -> bool:
        """Whether every row of the logits that counts is one of probabilities."""
        found = add_up(self.of_logits, self.logits.tolerance)[self.counts]
        return self.classes > 1 and bool(found.size) and bool(found.all())

    @cached_property
    def swapped_values(self) -> bool:
        """Whether the labels look like logits beside logits that look like labels."""
        return not self.hard and self.are_probabilities and bool(self.negative_labels.any())

    @cached_property
    def negative_labels(self) -> Any:
        """Rows with a label below 0."""
        return self.counts & (self.of_labels.low < 0)

    @cached_property
    def multi_hot(self) -> Any:
        """Rows with more than one positive, if there is nothing but 0 and 1 in the first of them."""
        several = self.counts & (self.of_labels.total >= 2) & (self.of_labels.low == 0) & (self.of_labels.high == 1)
        known = several.any() and zeros_and_ones(self.row(self.y, first(several)))
        return several if known else np.zeros_like(several)

    @cached_property
    def odd_sums(self) -> Any:
        """Rows of the labels that are no distribution."""
        finite = np.isfinite(self.of_labels.low) & np.isfinite(self.of_labels.high)
        return self.counts & finite & ~add_up(self.of_labels, self.labels.tolerance)
