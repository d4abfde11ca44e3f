"""Graphs of a loss over Dask's chunks: which block is computed from which others.

Chunks of classes are combined by their statistics, so no chunk of logits is joined with another. Labels and weights are
cut as the logits are. Sums over chunks are float64.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import dask.array as da
import numpy as np
from xent import _check
from xent._dispatch import find
from xent._execute import SIGMOID, SOFTMAX, SPARSE, Loss, WithGradient
from xent._linear import LINEAR
from xent._options import Operands, Options
from xent._reduce import Stats
from xent.adapter import computed_in

from . import blocks
from .blocks import Call

Array = Any
Axes = tuple[int, ...]


class Blocks(NamedTuple):
    """An array, and the logits' axes along which its blocks lie; None: it is no Dask array, and as it is for each."""

    array: Array | None
    axes: Axes | None = None  # negative: no axis of the logits


def of_chunks(loss: Loss, operands: Operands, options: Options) -> Any:
    """The loss; or (loss, derivative), where the logits come as a `WithGradient`."""
    derive = type(operands.inputs) is WithGradient
    x = operands.inputs.inputs if derive else operands.inputs
    if loss is LINEAR:
        raise _check.no_linear("dask")
    if loss not in (SOFTMAX, SPARSE, SIGMOID):
        raise _check.no_dask("logits")
    why = "which Dask has only when it computes"
    options = options._replace(invalid=_check.unread_ids(options.invalid, why))
    given = arrays(operands._replace(inputs=x))
    plan = checked(loss, given, options)
    every = tuple(range(x.ndim))
    rows = every if plan.layout is None else every[: plan.layout.axis] + every[plan.layout.axis + 1 :]
    weight = beside(x, given.sample_weight, rows)
    inputs = Blocks(x, every)
    if plan.layout is None:
        call = Call(plan.options, plan.dtype)
        apart = inputs, beside(x, given.labels, every), weight, beside(x, given.pos_weight, every)
        parts = block(partial(blocks.sigmoid_part, call), rows, *apart)
        gradient, of_gradient = partial(blocks.sigmoid_gradient, call.for_gradient()), list(apart)
    else:
        axis = plan.layout.axis
        call = Call(plan.options, plan.dtype, axis, loss is SOFTMAX, x.chunks[axis])
        labels = beside(x, given.labels, every if call.soft else rows)
        place = Blocks(da.from_array(np.arange(x.numblocks[axis]), chunks=1), (axis,))
        table = entire(given.class_weight)
        own = block(partial(blocks.statistics, call), every, inputs, labels, place, table)
        whole = Blocks(block(blocks.gathered, rows, Blocks(own, every)), rows)
        ids = Blocks(None) if call.soft else labels
        parts = block(partial(blocks.part, call), rows, whole, ids, weight, table)
        gradient = partial(blocks.gradient, call.for_gradient())
        of_gradient = [inputs, labels, place, whole, weight, table]
    value, divisor = reduced(parts, rows, plan, given.denom)
    if not derive:
        return value
    return value, block(gradient, every, *of_gradient, entire(divisor), dtype=x.dtype)


# ---- arguments


def arrays(given: Operands) -> Operands:
    """Dask's and NumPy's arrays, and what NumPy makes of lists and numbers."""
    adapter = find(given.inputs)

    def array(argument: str, k: Any) -> Any:
        if k is None:
            return None
        _check.same_framework(argument, find(k, argument), adapter)
        return k if isinstance(k, da.Array) else np.asarray(k)

    labels = given.labels
    if labels is not None and not isinstance(labels, da.Array):
        labels = _check.class_ids(labels)
    found = Operands(*(array(name, k) for name, k in zip(Operands._fields, given._replace(labels=labels), strict=True)))
    for name, k in zip(Operands._fields, found, strict=True):
        if isinstance(k, da.Array):
            argument = "logits" if name == "inputs" else name
            _check.array(k._meta, argument)
            if np.isnan(k.shape).any() or not isinstance(k._meta, np.ndarray):
                raise _check.unknown_chunks(argument)
    return found


def checked(loss: Loss, given: Operands, options: Options) -> Any:
    """The plan that NumPy's arrays of these dtypes and shapes have, by which all errors are told; nothing is read."""
    dtype = computed_in(given.inputs.dtype.name)

    def stand_in(argument: str, k: Any) -> Any:
        if k is None or argument == "inputs" or (argument == "labels" and loss is SPARSE):
            return k if k is None else np.broadcast_to(np.zeros((), k.dtype), k.shape)
        _check.real(argument, k.dtype.name)
        return np.broadcast_to(np.zeros((), dtype), k.shape)

    stands = Operands(*(stand_in(name, k) for name, k in zip(Operands._fields, given, strict=True)))
    return loss.plan(blocks.ADAPTER, stands, options)[0]


def entire(k: Array | None) -> Blocks:
    """All of it for each block. Given without axes, Dask would compute what it is made of a second time."""
    if not isinstance(k, da.Array):
        return Blocks(k)
    return Blocks(k.rechunk(-1), tuple(range(-k.ndim, 0)))


def beside(x: Array, k: Array | None, axes: Axes) -> Blocks:
    """k, whose last axes are the last ones of these axes of the logits, cut as these are; lengths of 1 stay."""
    if k is None or not k.ndim:
        return entire(k)
    axes = axes[len(axes) - k.ndim :]
    chunks = tuple(x.chunks[axis] if n == x.shape[axis] else n for n, axis in zip(k.shape, axes, strict=True))
    k = k.rechunk(chunks) if isinstance(k, da.Array) else da.from_array(k, chunks=chunks)
    return Blocks(k, axes)


# ---- blocks


def block(function: Callable[..., Any], axes: Axes, *operands: Blocks, dtype: Any = object) -> Array:
    """function(*blocks) for all blocks along these axes; what is no array is a block, too. Of an operand that has other
    axes besides, it is given a list of blocks."""
    pairs = [k for operand in operands for k in operand]
    meta = np.empty((0,) * len(axes), dtype)
    return da.blockwise(function, axes, *pairs, dtype=dtype, meta=meta, align_arrays=False, token="xent")


# ---- results


def reduced(parts: Array, rows: Axes, plan: Any, denom: Any) -> tuple[Any, Array | None]:
    """The loss, beside the rows' statistics where they are asked for; and what the sum of all rows was divided by."""
    reduce, whole, divisor = plan.options.reduce, Blocks(parts, rows), None
    if reduce == "none":
        value = block(blocks.value, rows, whole, dtype=plan.dtype)
    else:
        if reduce != "sum":
            divisor = total(blocks.divisor, whole) if denom is None else denom
        sums = entire(total(blocks.value, whole)), entire(divisor)
        value = block(partial(blocks.quotient, plan.dtype), (), *sums, dtype=plan.dtype)
    if not plan.options.stats:
        return value, divisor
    kinds = {"correct": bool, "argmax": blocks.OPS.index_dtype}
    stats = (
        block(partial(blocks.stat, name), rows, whole, dtype=kinds.get(name, plan.dtype)) for name in Stats._fields
    )
    return (value, Stats(*stats)), divisor


def total(of_part: Callable[..., Any], parts: Blocks) -> Array:
    """The sum of a number that each chunk of rows has, in float64."""
    assert parts.array is not None
    rows = tuple(range(parts.array.ndim))
    ones = {axis: (1,) * n for axis, n in enumerate(parts.array.numblocks)}
    numbers = da.blockwise(
        partial(blocks.number, of_part),
        rows,
        parts.array,
        rows,
        dtype=float,
        meta=np.empty((0,) * len(rows)),
        adjust_chunks=ones,
        align_arrays=False,
        token="xent",
    )
    return numbers.sum()
