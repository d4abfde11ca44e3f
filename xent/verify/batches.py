"""What `xent compare` gives the frameworks: its own kinds of logits, or the caller's arrays, row by row."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import xent
from xent import _dispatch, _rules
from xent.verify import frameworks, linear, regimes
from xent.verify.precision import DTYPES, PRECISION, rounded
from xent.verify.regimes import Batch

MODES = ("eager", "compiled")
CLASSES = {"eager": regimes.CLASSES[:4], "compiled": (1000,)}  # compiling takes seconds for each shape
MANY = regimes.CLASSES[4]  # with `full`
WIDE = regimes.CLASSES[5]  # with `full`, and only for ids in float32 and float64: the oracle takes seconds, too


OPTIONS: dict[str, tuple[str, ...]] = {
    "sparse_ce": ("label_smoothing", "z_loss", "ignore_index"),
    "linear_ce": ("label_smoothing", "z_loss", "ignore_index"),
    "softmax_ce": ("label_smoothing", "z_loss"),
    "sigmoid_ce": ("label_smoothing",),
}


def checked_options(options: Mapping[str, float], losses: list[str]) -> dict[str, Any]:
    """Those that every one of the losses has, checked by the losses themselves."""
    for loss in losses or linear.LOSSES if options else ():
        for name in options:
            if name not in OPTIONS[loss]:
                raise ValueError(f"option {name!r}: expected one that {loss} has, of {', '.join(OPTIONS[loss])}")
        inputs = [np.zeros((1, 1)), np.zeros((2, 1))] if loss == "linear_ce" else [np.zeros((1, 2))]
        getattr(xent, loss)(*inputs, [0] if "ignore_index" in OPTIONS[loss] else [[0.0, 1.0]], **options)
    return dict(options)


def of_regimes(
    losses: list[str], dtypes: list[str], options: dict[str, Any], axis: int, full: bool
) -> list[tuple[str, Batch]]:
    """Each with the mode it is for."""
    made: dict[tuple[str, str, int], Batch] = {}
    found = []
    for loss, dtype, mode in itertools.product(losses or linear.LOSSES, dtypes or DTYPES, MODES):
        for classes in _classes(loss, dtype, mode, full):
            key = (loss, dtype, classes)
            made[key] = made.get(key) or _made(*key, options, axis)
            found.append((mode, made[key]))
    return found


def _classes(loss: str, dtype: str, mode: str, full: bool) -> Iterator[int]:
    yield from CLASSES[mode]
    if full and loss != "linear_ce":
        if mode == "eager":
            yield MANY
        if loss == "sparse_ce" and PRECISION[dtype].compute == dtype:
            yield WIDE


def _made(loss: str, dtype: str, classes: int, options: dict[str, Any], axis: int) -> Batch:
    if loss == "linear_ce":
        return replace(linear.batch(dtype, classes), options=options)
    batch = replace(regimes.batch(loss, dtype, classes, every=3 if classes == WIDE else 1), options=options)
    return _with_axis(batch, batch.logits.shape[:1], _rules.class_axis(batch.logits.shape, axis))


def _with_axis(batch: Batch, shape: tuple[int, ...], place: int) -> Batch:
    """Rows here; when xent is called, the loss has this shape, and the classes are at this place among its axes."""
    if place == len(shape) or batch.loss == "sigmoid_ce":  # which has no axis
        return batch
    return replace(batch, shape=shape, axis=place)


def own(
    logits: Any, labels: Any, losses: list[str], dtypes: list[str], options: dict[str, Any], axis: int
) -> list[tuple[str, Batch]]:
    """The caller's arrays, as rows with the classes last."""
    if "linear_ce" in losses:
        raise ValueError("losses: linear_ce takes hidden states and a weight, not logits; compare makes its own")
    given, x = _values(logits, "logits")
    y = _values(labels, "labels")[1]
    hard = y.ndim == x.ndim - 1
    found = []
    for loss in losses or ["sparse_ce" if hard else "softmax_ce"]:
        own_options = {name: value for name, value in options.items() if name in OPTIONS[loss]}
        extra: dict[str, Any] = {"invalid": "raise"} if loss == "sparse_ce" else {}
        extra |= {} if loss == "sigmoid_ce" else {"axis": axis}
        getattr(xent, loss)(logits, labels, **own_options, **extra)  # as they came: checks and sentences of any call
        place = _rules.class_axis(x.shape, axis)
        rows = _rows_of(x, place)
        for dtype in dtypes or [given]:
            mine = rounded(rows, dtype)
            _check_range(rows, mine, dtype)
            shaped = y.reshape(-1) if hard else _rows_of(y, place)
            shaped = shaped if hard else rounded(shaped.astype(np.float64), PRECISION[dtype].compute)
            batch = Batch(loss, dtype, mine, shaped, ("yours",) * len(mine), own_options)
            batch = _with_axis(batch, x.shape[:place] + x.shape[place + 1 :], place)
            found += [(mode, batch) for mode in MODES]
    return found


def _values(x: Any, argument: str) -> tuple[str, Any]:
    """The dtype's name, and the values as NumPy has them, floating ones as float64."""
    adapter = _dispatch.find(x, argument)
    x = np.asarray(x) if adapter.name == "numpy" else x
    return adapter.ops.dtype(x), frameworks.load(adapter.name).numpy(x)


def _rows_of(x: Any, axis: int) -> Any:
    if not x.size:
        raise ValueError(f"logits: expected at least one row to compare, got shape {x.shape}")
    return np.moveaxis(x, axis, -1).reshape(-1, x.shape[axis])


def _check_range(x: Any, as_dtype: Any, dtype: str) -> None:
    """Raises where logits overflow in this dtype: NaN in every result would count as agreement."""
    lost = int((np.isfinite(x) & ~np.isfinite(as_dtype)).sum())
    if lost:
        raise ValueError(f"logits: {lost} of {x.size} values are beyond {dtype}'s largest number")
