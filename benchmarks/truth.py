"""Whether a contender is right: its loss and every entry of its gradient against float64.

`xent.oracle` is the truth, and takes 300 ns an entry. Here the same is worked out in blocks of rows by the textbook's
formulas in float64, good to 1e-13 on the random logits that are timed; tests hold the two together. Entries of
linear_ce's gradients are sums that may cancel: they are held against the truth as a whole, relative to its norm.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from . import machine
from .workloads import Workload

Array = NDArray[Any]
BLOCK = 1 << 16  # entries worked out at a time, in float64: they stay in the cache
THREADS = 8  # at most: other processes check, too
HELD, WIDENED = 1 << 26, 1 << 22  # of linear_ce: logits that are there at a time, entries of the weight

# Roundoff, and the smallest number whose relative accuracy anyone could expect.
UNIT = {"float64": 2.0**-53, "float32": 2.0**-24, "float16": 2.0**-11, "bfloat16": 2.0**-8}
TINY = {"float64": 2.0**-1022, "float32": 2.0**-126, "float16": 2.0**-14, "bfloat16": 2.0**-126}


def tolerance(dtype: str, ours: bool, linear: bool = False) -> float:
    """Beyond it a contender counts as wrong, not merely coarse; `dtype` is that of its result.

    xent rounds once. Rivals that compute in 16 bits throughout, exp(x - lse) included, come to some ten roundoffs.
    linear: of linear_ce's inputs' dtype, for which xent promises 1e-6, and rounds what it multiplies as well. Rivals
    may multiply with 11 bits (TensorFloat-32), as some do on a GPU if they are not told otherwise.
    """
    if linear:
        if ours:
            return {"float64": 1e-13, "float32": 1e-6}.get(dtype, 2 * UNIT[dtype])
        return {"float64": 1e-10, "float32": 1e-3}.get(dtype, 16 * UNIT[dtype])
    if ours:
        return {"float64": 1e-12, "float32": 1e-5}.get(dtype, 1.01 * UNIT[dtype])
    return {"float64": 1e-10, "float32": 1e-4}.get(dtype, 16 * UNIT[dtype])


def rounded(x: Array, dtype: str) -> Array:
    """float32 values that the dtype holds exactly."""
    if dtype == "float16":
        return x.astype(np.float16).astype(np.float32)
    if dtype != "bfloat16":
        return x
    bits = x.view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) & np.uint32(0xFFFF0000)).view(np.float32)


class Truth(NamedTuple):
    """Mean loss, and what its gradient is made of."""

    workload: Workload
    x: Array  # as the contenders see it
    labels: Array
    loss: float
    lse: Array  # by row of the flattened logits


class LinearTruth(NamedTuple):
    """Mean loss, and its gradients in hidden states and weight."""

    loss: float
    gradients: tuple[Array, Array]


def truth(workload: Workload, x: Any, labels: Array) -> Truth | LinearTruth:
    if workload.linear:
        h, weight = x
        return _linear(h, weight, labels)
    given = x, labels
    x, labels = _flat(workload, x, labels)
    lse = np.empty(len(x))

    def total(block: slice) -> float:
        wide = x[block].astype(np.float64)
        if workload.loss == "sigmoid_ce":
            softplus = np.log1p(np.exp(-np.abs(wide)))
            return float(np.sum(np.maximum(wide, 0) - wide * labels[block] + softplus))
        top = wide.max(1)
        lse[block] = top + np.log(np.exp(wide - top[:, None]).sum(1))
        if workload.loss == "sparse_ce":
            return float(np.sum(lse[block] - wide[np.arange(len(wide)), labels[block]]))
        t = labels[block].astype(np.float64)
        return float(np.sum(t.sum(1) * lse[block] - (t * wide).sum(1)))

    count = x.size if workload.loss == "sigmoid_ce" else len(x)
    return Truth(workload, *given, math.fsum(_each(total, x.shape)) / count, lse)


def value_error(true: Truth | LinearTruth, loss: Any) -> float:
    """Relative; NaN where the loss is."""
    return abs(float(loss) - true.loss) / true.loss


def gradient_error(true: Truth | LinearTruth, gradient: Any, dtype: str) -> float:
    """The worst entry's error, relative to the larger of the two terms that are subtracted in it; of linear_ce that of
    the worse of two gradients, relative to its norm. NaN if an entry is."""
    if isinstance(true, LinearTruth):
        return float(np.max([_of_norm(*pair) for pair in zip(gradient, true.gradients, strict=True)]))
    x, labels = _flat(true.workload, true.x, true.labels)
    flat, gradient = true._replace(x=x, labels=labels), _rows(true.workload, gradient)
    count = x.size if true.workload.loss == "sigmoid_ce" else len(x)  # of a mean

    def worst(block: slice) -> float:
        exact, size = _gradient(flat, block)
        error = gradient[block].astype(np.float64)
        error *= count
        error -= exact
        np.abs(error, out=error)
        error /= np.maximum(size, TINY[dtype] * count, out=size)
        return float(error.max())

    return float(np.max(_each(worst, x.shape)))  # NaN stays


def _gradient(true: Truth, block: slice) -> tuple[Array, Array]:
    """Of the sum: its entries, and the larger of each one's two terms, for logits and labels in rows."""
    x, labels = true.x[block].astype(np.float64), true.labels[block]
    if true.workload.loss == "sigmoid_ce":
        p = 1 / (1 + np.exp(-x))
        return p - labels, np.maximum(p, labels)
    x -= true.lse[block, None]
    p = np.exp(x, out=x)
    if true.workload.loss == "sparse_ce":
        exact, rows = p.copy(), np.arange(len(p))
        exact[rows, labels] -= 1
        p[rows, labels] = 1
        return exact, p
    t = labels.astype(np.float64)
    p *= t.sum(1, keepdims=True)
    return p - t, np.maximum(p, t)


def _linear(h: Array, weight: Array, labels: Array) -> LinearTruth:
    """In blocks of rows, and of classes that are widened at a time."""
    count, h, total = len(h), h.astype(np.float64), []
    dh, dw = np.zeros(h.shape), np.zeros(weight.shape)
    for part in _blocks((count, len(weight)), HELD):
        x, places = np.empty((len(h[part]), len(weight))), (np.arange(len(h[part])), labels[part])
        for some in _blocks(weight.shape, WIDENED):
            x[:, some] = h[part] @ weight[some].astype(np.float64).T
        x -= x.max(1, keepdims=True)
        at_label = x[places]
        np.exp(x, out=x)
        sums = x.sum(1, keepdims=True)
        total.append(float(np.sum(np.log(sums[:, 0]) - at_label)))
        x /= sums * count
        x[places] -= 1 / count
        for some in _blocks(weight.shape, WIDENED):
            dh[part] += x[:, some] @ weight[some].astype(np.float64)
            dw[some] += x[:, some].T @ h[part]
    return LinearTruth(math.fsum(total) / count, (dh, dw))


def _of_norm(got: Array, want: Array) -> float:
    if got.shape != want.shape:
        raise ValueError(f"gradient: expected shape {want.shape}, got {got.shape}")
    squares = [float(np.square(got[block] - want[block]).sum()) for block in _blocks(want.shape)]
    return math.sqrt(math.fsum(squares)) / float(np.linalg.norm(want))


def _flat(workload: Workload, x: Array, labels: Array) -> tuple[Array, Array]:
    return _rows(workload, x), labels.reshape(-1) if workload.loss == "sparse_ce" else _rows(workload, labels)


def _rows(workload: Workload, x: Array) -> Array:
    return np.moveaxis(x, workload.axis, -1).reshape(-1, workload.classes)


def _each(function: Callable[[slice], float], shape: tuple[int, ...]) -> list[float]:
    """Of blocks of rows, some at a time: NumPy's loops let each other run."""
    with ThreadPoolExecutor(min(machine.cores(), THREADS)) as pool:
        return list(pool.map(function, _blocks(shape)))


def _blocks(shape: tuple[int, ...], entries: int | None = None) -> Iterator[slice]:
    """Of rows, so many that they have about so many entries."""
    rows, row = shape
    step = max(1, (entries or BLOCK) // row)
    return (slice(start, start + step) for start in range(0, rows, step))
