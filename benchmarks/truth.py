"""Whether a contender is right: its loss and every entry of its gradient against float64.

`xent.oracle` is the truth, and takes 300 ns an entry. Here the same is computed in blocks of rows by the textbook's
formulas, good to 1e-13 on the random logits that are timed; the tests hold the two together. Entries of linear_ce's
gradients are sums that may cancel: each gradient is compared as a whole, relative to its norm.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from xent.benchmarks import machine
from xent.benchmarks.result import Series
from xent.benchmarks.workloads import WIDTH, Workload

Array = NDArray[Any]
BLOCK = 1 << 16  # entries at a time, in float64: they stay in the cache
HELD = 1 << 26  # of linear_ce: logits at a time

# Roundoff, and the smallest number whose relative accuracy can be expected.
UNIT = {"float64": 2.0**-53, "float32": 2.0**-24, "float16": 2.0**-11, "bfloat16": 2.0**-8}
TINY = {"float64": 2.0**-1022, "float32": 2.0**-126, "float16": 2.0**-14, "bfloat16": 2.0**-126}


def tolerance(dtype: str, ours: bool, linear: bool = False) -> float:
    """The largest error of a result of this dtype that still counts as right.

    xent rounds once. Rivals that compute in 16 bits throughout come to some ten roundoffs. linear_ce rounds its
    products as well, and rivals may multiply with 11 bits (TensorFloat-32), the default of some on a GPU.
    """
    if linear:
        known = {"float64": 1e-13, "float32": 1e-6} if ours else {"float64": 1e-10, "float32": 1e-3}
        return known.get(dtype, (2 if ours else 16) * UNIT[dtype])
    known = {"float64": 1e-12, "float32": 1e-5} if ours else {"float64": 1e-10, "float32": 1e-4}
    return known.get(dtype, (1.01 if ours else 16) * UNIT[dtype])


def rounded(x: Array, dtype: str) -> Array:
    """float32 values that the dtype holds exactly."""
    if dtype == "float16":
        return x.astype(np.float16).astype(np.float32)
    if dtype != "bfloat16":
        return x
    bits = x.view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) & np.uint32(0xFFFF0000)).view(np.float32)


class Truth(NamedTuple):
    """Mean loss, and what its gradient is made of; of linear_ce the gradients themselves."""

    workload: Workload
    x: Array  # logits in rows, as the contenders see them
    labels: Array
    loss: float
    lse: Array  # by row
    gradients: tuple[Array, Array] | None = None  # in hidden states and weight


def truth(workload: Workload, x: Any, labels: Array) -> Truth:
    if workload.linear:
        loss, gradients = _linear(x[0], x[1], labels)
        return Truth(workload, np.empty(0), labels, loss, np.empty(0), gradients)
    x = _rows(workload, x)
    labels = labels.reshape(-1) if workload.ids else _rows(workload, labels)
    lse = np.empty(len(x))

    def total(block: slice) -> float:
        wide, t = x[block].astype(np.float64), labels[block]
        if workload.loss == "sigmoid_ce":
            return float(np.sum(np.maximum(wide, 0) - wide * t + np.log1p(np.exp(-np.abs(wide)))))
        top = wide.max(1)
        lse[block] = top + np.log(np.exp(wide - top[:, None]).sum(1))
        if workload.ids:
            return float(np.sum(lse[block] - wide[np.arange(len(wide)), t]))
        t = t.astype(np.float64)
        return float(np.sum(t.sum(1) * lse[block] - (t * wide).sum(1)))

    return Truth(workload, x, labels, math.fsum(_over_blocks(total, x.shape)) / _count(workload), lse)


def value_error(true: Truth, loss: Any) -> float:
    """Relative; NaN where the loss is."""
    return abs(float(loss) - true.loss) / true.loss


def gradient_error(true: Truth, gradient: Any, dtype: str) -> float:
    """The worst entry's error, relative to the larger of the two terms that are subtracted in it; of linear_ce the
    worse gradient's, relative to its norm. NaN if an entry is."""
    if true.gradients is not None:
        return float(np.max([_of_norm(*pair) for pair in zip(gradient, true.gradients, strict=True)]))
    gradient, count = _rows(true.workload, gradient), _count(true.workload)

    def worst(block: slice) -> float:
        exact, size = _gradient(true, block)
        error = gradient[block].astype(np.float64)
        error *= count
        error -= exact
        np.abs(error, out=error)
        error /= np.maximum(size, TINY[dtype] * count, out=size)
        return float(error.max())

    return float(np.max(_over_blocks(worst, true.x.shape)))  # np.max keeps NaN


def wrong(workload: Workload, dtype: str, returned: str, series: Series) -> str:
    """What is wrong with a loss of dtype `returned` and its gradient in `dtype`, or ""."""
    narrow = WIDTH[dtype] == 2  # a float32 loss of 16-bit inputs is held to 1e-5
    of_loss = tolerance(returned, series.ours, workload.linear and not narrow)
    checks = [("loss", series.value_error, of_loss)]
    if series.which == "both":
        checks.append(("gradient", series.gradient_error, tolerance(dtype, series.ours, workload.linear)))
    for what, error, limit in checks:
        if error is None or not error <= limit:
            error = math.nan if error is None else error
            return f"wrong: {what} off by {error:.0e}" if math.isfinite(error) else f"wrong: {what} not finite"
    return ""


def _gradient(true: Truth, block: slice) -> tuple[Array, Array]:
    """Of the sum: its entries, and the larger of each one's two terms."""
    x, labels = true.x[block].astype(np.float64), true.labels[block]
    if true.workload.loss == "sigmoid_ce":
        p = 1 / (1 + np.exp(-x))
        return p - labels, np.maximum(p, labels)
    x -= true.lse[block, None]
    p = np.exp(x, out=x)
    if true.workload.ids:
        exact, at_label = p.copy(), (np.arange(len(p)), labels)
        exact[at_label] -= 1
        p[at_label] = 1
        return exact, p
    t = labels.astype(np.float64)
    p *= t.sum(1, keepdims=True)
    return p - t, np.maximum(p, t)


def _linear(h: Array, weight: Array, labels: Array) -> tuple[float, tuple[Array, Array]]:
    h, weight, total = h.astype(np.float64), weight.astype(np.float64), []
    dh, dw = np.zeros(h.shape), np.zeros(weight.shape)
    for part in _blocks((len(h), len(weight)), HELD):
        at_label = np.arange(len(h[part])), labels[part]
        x = h[part] @ weight.T
        x -= x.max(1, keepdims=True)
        target = x[at_label]
        np.exp(x, out=x)
        sums = x.sum(1, keepdims=True)
        total.append(float(np.sum(np.log(sums[:, 0]) - target)))
        x /= sums * len(h)
        x[at_label] -= 1 / len(h)
        dh[part] = x @ weight
        dw += x.T @ h[part]
    return math.fsum(total) / len(h), (dh, dw)


def _of_norm(got: Array, want: Array) -> float:
    if got.shape != want.shape:
        raise ValueError(f"gradient: expected shape {want.shape}, got {got.shape}")
    return float(np.linalg.norm(got - want) / np.linalg.norm(want))


def _count(workload: Workload) -> int:
    """What the mean divides by."""
    return workload.logits if workload.loss == "sigmoid_ce" else workload.rows


def _rows(workload: Workload, x: Array) -> Array:
    return np.moveaxis(x, workload.axis, -1).reshape(-1, workload.classes)


def _over_blocks(function: Callable[[slice], float], shape: tuple[int, ...]) -> list[float]:
    """Of each block of rows; NumPy's loops let several threads run."""
    with ThreadPoolExecutor(machine.cores()) as pool:
        return list(pool.map(function, _blocks(shape, BLOCK)))


def _blocks(shape: tuple[int, ...], entries: int) -> Iterator[slice]:
    """Of rows, with about so many entries each."""
    rows, row = shape
    step = max(1, entries // row)
    return (slice(start, start + step) for start in range(0, rows, step))
