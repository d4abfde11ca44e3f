"""Whether a contender is right: its loss and every entry of its gradient against float64.

`xent.oracle` takes 300 ns an entry. So the textbook's formulas, those of the NumPy contender, are computed in float64
here, in blocks of rows: accurate to 1e-13 on the random logits that are timed. The tests compare both.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from xent.benchmarks.frameworks import Call, Inputs, each
from xent.benchmarks.frameworks.numpy import in_place
from xent.benchmarks.result import Series
from xent.benchmarks.workloads import WIDTH, Workload

Array = Any
BLOCK = 1 << 16  # entries at a time, in float64: they stay in the cache

# The largest relative error that counts as right, of xent and of a rival. xent rounds once. Rivals that compute in
# 16 bits throughout have errors of about ten roundoffs.
ROUNDOFF = {"float16": 2.0**-11, "bfloat16": 2.0**-8}
ALLOWED = {
    "float64": (1e-12, 1e-10),
    "float32": (1e-5, 1e-4),
    **{dtype: (1.01 * unit, 16 * unit) for dtype, unit in ROUNDOFF.items()},
}
# linear_ce rounds its products as well, and on a GPU some rivals multiply with 11 bits (TensorFloat-32).
ALLOWED_LINEAR = {
    "float64": (1e-13, 1e-10),
    "float32": (1e-6, 1e-3),
    **{dtype: (2 * unit, 16 * unit) for dtype, unit in ROUNDOFF.items()},
}
# The smallest number whose relative accuracy can be expected.
SMALLEST = {"float64": 2.0**-1022, "float32": 2.0**-126, "float16": 2.0**-14, "bfloat16": 2.0**-126}


@dataclass
class Truth:
    """The mean loss in float64, and the inputs from which its gradient is computed; for linear_ce the gradients."""

    workload: Workload
    x: Array  # logits in rows
    labels: Array  # by row
    loss: float = 0.0
    gradients: tuple[Array, ...] = ()

    def value_error(self, loss: Array) -> float:
        """Relative; NaN where the loss is."""
        return abs(float(loss) - self.loss) / self.loss

    def gradient_error(self, gradient: Inputs, dtype: str) -> float:
        """The worst entry's error, relative to the larger of the two terms that are subtracted in it.

        Entries of linear_ce's gradients are sums that may cancel: each gradient is compared as a whole, relative to
        its norm. NaN if an entry is.
        """
        if self.workload.linear:
            pairs = zip(gradient, self.gradients, strict=True)
            return float(np.max([np.linalg.norm(got - want) / np.linalg.norm(want) for got, want in pairs]))
        rows, smallest = _rows(self.workload, gradient), SMALLEST[dtype]
        worst = []
        for block in _blocks(rows):
            _, both, arguments, share = self.block(block)
            _, exact = both(*arguments)
            exact *= share
            error = rows[block] - exact
            np.abs(error, out=error)
            terms = self._larger_terms(block, exact)
            error /= np.maximum(terms, smallest, out=terms)
            worst.append(error.max())
        return float(np.max(worst))  # which keeps NaN

    def block(self, block: slice) -> tuple[Call, Call, tuple[Array, Array], float]:
        """Of some rows: the loss, the loss with its gradient, their arguments, the rows' share in the mean."""
        x, labels = self.x[block].astype(np.float64), self.labels[block]
        labels = labels if self.workload.ids else labels.astype(np.float64)
        return *in_place(replace(self.workload, shape=x.shape, axis=-1)), (x, labels), len(x) / len(self.x)

    def _larger_terms(self, block: slice, exact: Array) -> Array:
        """Of a probability and a label, both divided as the mean is; where the exact gradient was."""
        labels = self.labels[block]
        if self.workload.ids:
            terms = np.abs(exact, out=exact)
            terms[np.arange(len(terms)), labels] = 1 / self.workload.rows
            return terms
        labels = labels / (self.workload.logits if self.workload.loss == "sigmoid_ce" else self.workload.rows)
        exact += labels
        return np.maximum(exact, labels, out=exact)


def truth(workload: Workload, inputs: Inputs, labels: Array) -> Truth:
    if workload.linear:
        _, both = in_place(workload)
        loss, gradients = both(each(lambda array: array.astype(np.float64), inputs), labels)
        return Truth(workload, inputs, labels, float(loss), gradients)
    labels = labels.reshape(-1) if workload.ids else _rows(workload, labels)
    found = Truth(workload, _rows(workload, inputs), labels)
    for block in _blocks(found.x):
        forward, _, arguments, share = found.block(block)
        found.loss += float(forward(*arguments)) * share
    return found


def wrong(workload: Workload, dtype: str, returned: str, series: Series) -> str:
    """What is wrong with a loss of dtype `returned` and its gradient in `dtype`, or ""."""
    of_gradient = ALLOWED_LINEAR if workload.linear else ALLOWED
    of_loss = ALLOWED if WIDTH[dtype] == 2 else of_gradient  # a float32 loss of 16-bit inputs is held to 1e-5
    checks = [("loss", series.value_error, of_loss[returned])]
    if series.which == "both":
        checks.append(("gradient", series.gradient_error, of_gradient[dtype]))
    for what, error, (ours, rivals) in checks:
        if error is None or not math.isfinite(error):
            return f"wrong: {what} {'missing' if error is None else 'not finite'}"
        if error > (ours if series.ours else rivals):
            return f"wrong: {what} off by {error:.0e}"
    return ""


def _rows(workload: Workload, x: Array) -> Array:
    return np.moveaxis(x, workload.axis, -1).reshape(-1, workload.classes)


def _blocks(rows: Array) -> Iterator[slice]:
    step = max(1, BLOCK // rows.shape[1])
    return (slice(start, start + step) for start in range(0, len(rows), step))
