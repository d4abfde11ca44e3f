"""What an evaluation adds up, class by class, in float64."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

Vector = Any  # of NumPy


class Tally(NamedTuple):
    """Of some rows: the classes that are labels of them, and for each how often, its losses' sum, how often right."""

    rows: int
    classes: Vector
    count: Vector
    loss: Vector
    correct: Vector


def tally(ids: Vector, present: Vector, nll: Vector, correct: Vector) -> Tally:
    """`present`: which rows count."""
    classes, place = np.unique(ids[present].astype(np.int64), return_inverse=True)
    count, loss, right = (
        np.bincount(place, weights, len(classes)) for weights in (None, nll[present], correct[present])
    )
    return Tally(ids.size, classes, count, loss, right.astype(np.int64))


class Totals(NamedTuple):
    """Of all parts so far. It never changes: so an interruption finds it whole, whenever it comes."""

    done: int  # parts
    rows: int
    count: Vector  # [classes]
    loss: Vector
    correct: Vector

    def plus(self, part: Tally) -> Totals:
        sums = [k.copy() for k in self[2:]]
        for k, more in zip(sums, part[2:], strict=True):
            k[part.classes] += more
        return Totals(self.done + 1, self.rows + part.rows, *sums)


def nothing(classes: int) -> Totals:
    return Totals(0, 0, np.zeros(classes, np.int64), np.zeros(classes), np.zeros(classes, np.int64))


@dataclass(frozen=True)
class Report:
    """Of the rows that count. A class that is no row's label has the mean loss and the accuracy NaN."""

    rows: int
    ignored: int
    loss: float  # the mean, in nats; 0 where no row counts
    perplexity: float
    accuracy: float
    class_count: Vector
    class_loss: Vector  # the means
    class_accuracy: Vector

    def worst(self, most: int) -> Vector:
        """The classes with the largest mean loss. NaN comes first: it is what the mean of all is NaN for."""
        labelled = np.flatnonzero(self.class_count)
        loss = self.class_loss[labelled]
        return labelled[np.lexsort((-loss, ~np.isnan(loss)))[:most]]

    def to_dict(self) -> dict[str, Any]:
        per_class = {name: getattr(self, f"class_{name}").tolist() for name in ("count", "loss", "accuracy")}
        names = ("rows", "ignored", "loss", "perplexity", "accuracy")
        return {**{name: getattr(self, name) for name in names}, "classes": per_class}


def report(totals: Totals) -> Report:
    with np.errstate(all="ignore"):
        count = int(totals.count.sum())
        loss = float(totals.loss.sum()) / max(count, 1)
        accuracy = int(totals.correct.sum()) / count if count else float("nan")
        means = totals.loss / totals.count, totals.correct / totals.count
        return Report(totals.rows, totals.rows - count, loss, float(np.exp(loss)), accuracy, totals.count, *means)
