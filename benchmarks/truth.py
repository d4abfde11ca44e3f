"""Whether a contender is right: its loss and every entry of its gradient against float64.

`xent.oracle` is the truth, and takes 300 ns an entry. Here the textbook's formulas, the same that time NumPy, are
computed in float64, in blocks of rows: good to 1e-13 on the random logits that are timed. The tests hold the two
together.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from xent.benchmarks import machine
from xent.benchmarks.frameworks import Inputs, each
from xent.benchmarks.frameworks.numpy import in_place
from xent.benchmarks.result import Series
from xent.benchmarks.workloads import WIDTH, Workload
from xent.verify.precision import PRECISION

Array = Any
BLOCK = 1 << 16  # entries at a time, in float64: they stay in the cache

# The largest relative error that still counts as right: of xent, of a rival. xent rounds once. Rivals that compute in
# 16 bits throughout come to some ten roundoffs.
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


@dataclass
class Truth:
    """The mean loss and its gradient in float64."""

    workload: Workload
    labels: Array  # by row
    loss: float
    gradient: Any  # in the logits, in rows; of linear_ce a pair, in hidden states and weight

    def value_error(self, loss: Array) -> float:
        """Relative; NaN where the loss is."""
        return abs(float(loss) - self.loss) / self.loss

    def gradient_error(self, gradient: Inputs, dtype: str) -> float:
        """The worst entry's error, relative to the larger of the two terms that are subtracted in it.

        Entries of linear_ce's gradients are sums that may cancel: each gradient is compared as a whole, relative to
        its norm. NaN if an entry is.
        """
        if self.workload.linear:
            return max(map(_error_of_norm, gradient, self.gradient), key=lambda error: (math.isnan(error), error))
        if gradient.shape != self.workload.shape:
            raise ValueError(f"gradient: expected shape {self.workload.shape}, got {gradient.shape}")
        rows, count, tiny = _rows(self.workload, gradient), _count(self.workload), _smallest(dtype)

        def worst(block: slice) -> float:
            exact, labels = self.gradient[block], self._distributions(block) / count
            size = np.maximum(np.maximum(exact + labels, labels), tiny)
            return float(np.max(np.abs(rows[block] - exact) / size))

        return float(np.max(_over_blocks(worst, rows)))  # np.max keeps NaN

    def _distributions(self, block: slice) -> Array:
        if not self.workload.ids:
            return self.labels[block].astype(np.float64)
        return self.labels[block, None] == np.arange(self.workload.classes)


def truth(workload: Workload, inputs: Inputs, labels: Array) -> Truth:
    if workload.linear:
        _, both = in_place(workload)
        loss, gradients = both(each(lambda array: array.astype(np.float64), inputs), labels)
        return Truth(workload, labels, float(loss), gradients)
    x, labels = _rows(workload, inputs), labels.reshape(-1) if workload.ids else _rows(workload, labels)
    gradient = np.empty(x.shape)

    def part(block: slice) -> float:
        """What a block of rows adds to the mean."""
        wide, share = x[block].astype(np.float64), len(x[block]) / len(x)
        _, both = in_place(replace(workload, shape=wide.shape, axis=-1))
        loss, gradient[block] = both(wide, labels[block] if workload.ids else labels[block].astype(np.float64))
        gradient[block] *= share
        return float(loss) * share

    return Truth(workload, labels, math.fsum(_over_blocks(part, x)), gradient)


def wrong(workload: Workload, dtype: str, returned: str, series: Series) -> str:
    """What is wrong with a loss of dtype `returned` and its gradient in `dtype`, or ""."""
    of_gradient = ALLOWED_LINEAR if workload.linear else ALLOWED
    of_loss = ALLOWED if WIDTH[dtype] == 2 else of_gradient  # a float32 loss of 16-bit inputs is held to 1e-5
    checks = [("loss", series.value_error, of_loss[returned])]
    if series.which == "both":
        checks.append(("gradient", series.gradient_error, of_gradient[dtype]))
    for what, error, (ours, rivals) in checks:
        if error is None or not math.isfinite(error):
            return f"wrong: {what} not finite"
        if error > (ours if series.ours else rivals):
            return f"wrong: {what} off by {error:.0e}"
    return ""


def _error_of_norm(got: Array, want: Array) -> float:
    if got.shape != want.shape:
        raise ValueError(f"gradient: expected shape {want.shape}, got {got.shape}")
    return float(np.linalg.norm(got - want) / np.linalg.norm(want))


def _smallest(dtype: str) -> float:
    """The smallest number whose relative accuracy can be expected."""
    known = PRECISION[dtype]
    return 2.0**known.smallest if known.mantissa else known.tiny


def _count(workload: Workload) -> int:
    """What the mean divides by."""
    return workload.logits if workload.loss == "sigmoid_ce" else workload.rows


def _rows(workload: Workload, x: Array) -> Array:
    return np.moveaxis(x, workload.axis, -1).reshape(-1, workload.classes)


def _over_blocks(function: Callable[[slice], float], rows: Array) -> list[float]:
    """Of each block of rows; NumPy's loops let several threads run."""
    step = max(1, BLOCK // rows.shape[1])
    with ThreadPoolExecutor(machine.cores()) as pool:
        return list(pool.map(function, (slice(start, start + step) for start in range(0, len(rows), step))))
