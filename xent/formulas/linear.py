"""linear_ce's loop over chunks of rows; `LinearKernels.head` runs it and attaches derivative rules.

A chunk's logits give its rows' statistics and, where gradients are wanted, the derivative in the logits. That is
multiplied at once into the rows of the hidden states' gradient, and into the weight's, which is a sum over the chunks.
What each row's loss is multiplied by depends on labels and weights alone, so it is known before the first chunk.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from xent import _reduce
from xent.adapter import ABSENT, INVALID, Array, Layout, LinearKernels, Ops, RowResults, Slopes

from .logits import capped_and_scaled
from .sums import compute_dtype, widened

# Rows of a chunk. With fewer than FEWEST, products wait for the weight's gradient to be read and written; more than
# MOST gain nothing (docs/performance.md).
FEWEST, MOST = 128, 2048
PANEL = 32  # the products work on this many rows at a time, or on a divisor of it
MEMORY = 19 << 20  # bytes of a chunk's logits
# Enough for 600 rows of 220,000 classes. For each element of the weight, the products of a chunk of R rows do 6 R
# operations and move 12 bytes, of the weight and its gradient; a Hopper GPU does 295 operations in the time of a byte.
MEMORY_ON_A_GPU = 512 << 20
BLOCK = 1 << 20  # elements of the weight to convert at a time, or of its gradient to add up in the cache


class LoopSpec(NamedTuple):
    """Static description of a loop, known at trace time. Hashable: compilers specialise on it."""

    linear: LinearKernels
    layout: Layout
    softcap: float | None
    chunk: int
    each: bool  # the value is every row's, not their sum


class LoopOperands(NamedTuple):
    """The arrays of N rows, D features, C classes; None: not there."""

    hidden: Array  # [N, D]
    # weight and bias have hidden's dtype or, beside 16 bits, float32. Then they are rounded to
    # hidden's dtype, but their gradients are not.
    weight: Array  # [C, D]
    bias: Array | None  # [C]
    smoothing_weights: Array | None  # [C]
    ids: Array  # [N]
    # [N] each: the loss is the sum of nll_scale nll + lse2 lse^2 + smooth_scale smooth. nll_scale: None for 0
    nll_scale: Array | None = None
    lse2: Array | None = None
    smooth_scale: Array | None = None

    @property
    def parameters(self) -> tuple[Array, Array, Array | None]:
        """In which gradients are formed with the loss."""
        return self.hidden, self.weight, self.bias

    @property
    def slopes(self) -> Slopes:
        return Slopes(self.nll_scale, self.lse2, self.smooth_scale)

    def with_slopes(self, *slopes: Array | None) -> LoopOperands:
        return self._replace(**Slopes(*slopes)._asdict())


class LoopResults(NamedTuple):
    """Of every row; None where that is not asked for."""

    nll: Array
    lse: Array | None
    smooth: Array | None
    # for `Stats`, and of any value in masked rows
    correct: Array | None = None
    entropy: Array | None = None
    argmax: Array | None = None

    def unmarked(self, weight: Array | None) -> _reduce.Stats:
        """What `_reduce.described` starts with."""
        return _reduce.Stats(self.nll, self.lse, self.correct, weight, self.entropy, self.argmax)


Grads = tuple[Array | None, ...]  # in hidden, weight and bias, those that are wanted


# ---- the loop, for all frameworks


def forward(spec: LoopSpec, operands: LoopOperands) -> LoopResults:
    operands = of_one_dtype(spec, operands)
    _, weight, bias, smoothing_weights, ids, *_ = operands
    over = buffer_of(spec, operands)

    def step(carry: None, hidden: Array, ids: Array) -> tuple[None, LoopResults]:
        x = logits(spec, zero_masked(spec, hidden, ids), weight, bias, over)
        x_y = _at_label(spec, x, ids)
        return carry, _results(spec, spec.linear.rows(spec.layout, x, None, smoothing_weights, ids), x_y)

    return LoopResults(*spec.linear.scan(step, None, (operands.hidden, ids), spec.chunk, rows_that_count(spec, ids))[1])


def value_and_grads(spec: LoopSpec, wanted: tuple[bool, ...], operands: LoopOperands) -> tuple[LoopResults, Grads]:
    """`forward`, and the derivatives of the loss in hidden, weight and bias.

    They are in the compute dtype: 16-bit gradients are rounded once, after all chunks are added up.
    """
    operands = of_one_dtype(spec, operands)
    hidden, weight, bias, smoothing_weights, ids, *slopes = operands
    linear = spec.linear
    ops, dtype = linear.ops, compute_dtype(linear.ops, hidden)
    classes, features = ops.shape(weight)
    assert classes is not None
    assert features is not None
    over = buffer_of(spec, operands)

    def step(
        carry: Any, hidden: Array, ids: Array, nll_scale: Array | None, *others: Array | None
    ) -> tuple[Any, tuple[Array | None, ...]]:
        dw, db = carry
        hidden = zero_masked(spec, hidden, ids)
        x = logits(spec, hidden, weight, bias, over)
        slope, x_y = slope_of_cap(spec, x), _at_label(spec, x, ids)
        slopes = Slopes(0.0 if nll_scale is None else nll_scale, *others)
        results, dx = linear.rows_value_and_grad(spec.layout, x, None, smoothing_weights, ids, slopes)
        if slope is not None:
            dx *= slope
        dw = None if dw is None else linear.accumulate(dw, dx, hidden)
        db = None if db is None else linear.accumulate(db, dx, ops.expand_dims(ops.astype(ids, dtype) * 0 + 1, 1))
        return (dw, db), (*_results(spec, results, x_y), linear.pull(dx, weight) if wanted[0] else None)

    carry = tuple(
        ops.full(shape, 0.0, dtype, hidden) if is_wanted else None
        for shape, is_wanted in zip(((classes, features), (classes, 1)), wanted[1:], strict=True)
    )
    (dw, db), (*results, dh) = linear.scan(step, carry, (hidden, ids, *slopes), spec.chunk, rows_that_count(spec, ids))
    grads: Grads = (dh, dw, None if db is None else ops.squeeze(db, 1))
    empty = _empty(spec, operands)
    if empty is not None:
        grads = tuple(None if d is None else ops.where(empty, 0.0, d) for d in grads)
    return LoopResults(*results), grads


def run(spec: LoopSpec, wanted: tuple[bool, ...], operands: LoopOperands) -> tuple[LoopResults, Grads]:
    """`value_and_grads` where a derivative is wanted, else `forward` with no gradients."""
    if any(wanted):
        return value_and_grads(spec, wanted, operands)
    return forward(spec, operands), (None, None, None)


def of_one_dtype(spec: LoopSpec, operands: LoopOperands) -> LoopOperands:
    """Weight and bias in the hidden states' dtype, for products."""
    ops, (hidden, *parameters) = spec.linear.ops, operands.parameters
    weight, bias = (None if k is None else ops.astype(k, ops.dtype(hidden)) for k in parameters)
    return operands._replace(weight=weight, bias=bias)


def with_rounded_values(spec: LoopSpec, operands: LoopOperands) -> LoopOperands:
    """weight and bias with the values that hidden's dtype can hold, but in their own dtype.

    A cast would also round their derivatives.
    """
    ops = spec.linear.ops
    dtype = ops.dtype(operands.hidden)

    def rounded(k: Array | None) -> Array | None:
        if k is None or ops.dtype(k) == dtype:
            return k
        return k + ops.stop_gradient(ops.astype(ops.astype(k, dtype), ops.dtype(k)) - k)

    return operands._replace(weight=rounded(operands.weight), bias=rounded(operands.bias))


def value(spec: LoopSpec, results: LoopResults, operands: LoopOperands) -> Array:
    """nll_scale nll + lse2 lse^2 + smooth_scale smooth, each row's or their sum."""
    nll_scale, *others = operands.slopes
    scale = _reduce.RowWeights(0.0 if nll_scale is None else nll_scale, *others)
    each = scale.contribution(results.nll, results.lse, results.smooth)
    return each if spec.each else spec.linear.ops.sum(each, None)


def in_slopes(results: LoopResults) -> Slopes:
    """The derivatives of each row's value in its slopes."""
    return Slopes(results.nll, None if results.lse is None else results.lse * results.lse, results.smooth)


def composite(spec: LoopSpec, operands: LoopOperands) -> tuple[Array, LoopResults]:
    """The same value from all logits at once, by operations that every transform of the framework goes through."""
    linear, empty = spec.linear, _empty(spec, operands)
    ops, ids, smoothing_weights = linear.ops, operands.ids, operands.smoothing_weights
    operands = with_rounded_values(spec, operands)
    h, weight, bias = operands.parameters
    if empty is not None:
        h, weight, bias = (None if k is None else _reduce.constant_where(ops, empty, k) for k in (h, weight, bias))
    x = all_logits(spec, operands._replace(hidden=h, weight=weight, bias=bias))
    results = _results(spec, linear.rows(spec.layout, x, None, smoothing_weights, ids), _at_label(spec, x, ids))
    if spec.layout.masked:
        results = results._replace(nll=results.nll + _poison(ops, x, ids))
    return value(spec, results, operands), results


def all_logits(spec: LoopSpec, operands: LoopOperands) -> Array:
    """Of all rows at once, for every transform of the framework; parameters have rounded values already."""
    linear, ops = spec.linear, spec.linear.ops
    h = zero_masked(spec, operands.hidden, operands.ids)
    x = linear.matmul(widened(ops, h), widened(ops, operands.weight))
    x = x if operands.bias is None else x + widened(ops, operands.bias)
    return x if spec.softcap is None else capped_and_scaled(ops, x, spec.softcap, None)


def _empty(spec: LoopSpec, operands: LoopOperands) -> Array | None:
    """Whether no row counts, as a 0-d bool. None where that is impossible, or known to be false.

    With `Layout.stats`, rows that do not count are computed all the same, and 0 times the NaN that they may hold would
    be NaN.
    """
    if not spec.layout.stats:
        return None
    ops = spec.linear.ops
    empty = sum(ops.sum(ops.abs(k), None) for k in operands.slopes if k is not None) == 0
    value = ops.host(empty)
    return empty if value is None or value else None


def _poison(ops: Ops, x: Array, ids: Array) -> Array:
    """NaN in rows of an invalid label, with derivatives that are NaN as well."""
    bad = ops.where(ops.expand_dims(ids, 1) == INVALID, x, 0.0)
    return ops.squeeze(ops.sum(bad, 1), 1) * ops.where(ids == INVALID, float("nan"), ops.astype(ids, ops.dtype(x)) * 0)


# ---- one chunk. `+=` and the like work in place where arrays can be changed, so that there is one copy of a chunk.


def buffer_of(spec: LoopSpec, operands: LoopOperands) -> Array | None:
    classes, h = spec.linear.ops.shape(operands.weight)[0], operands.hidden
    assert classes is not None
    return spec.linear.buffer(spec.chunk, classes, compute_dtype(spec.linear.ops, h), h)


def logits(spec: LoopSpec, hidden: Array, weight: Array, bias: Array | None, over: Array | None) -> Array:
    x = spec.linear.project(hidden, weight, over)
    if bias is not None:
        x += spec.linear.ops.astype(bias, spec.linear.ops.dtype(x))
    if spec.softcap is not None:
        x /= spec.softcap
        x = spec.linear.tanh(x)
        x *= spec.softcap
    return x


def slope_of_cap(spec: LoopSpec, x: Array) -> Array | None:
    """The softcap's derivative, 1 - tanh^2, from the capped logits."""
    if spec.softcap is None:
        return None
    slope = x / spec.softcap
    slope *= slope
    slope *= -1.0
    slope += 1.0
    return slope


def _at_label(spec: LoopSpec, x: Array, ids: Array) -> Array | None:
    """The label's logit, before its derivative is written over it."""
    ops = spec.linear.ops
    return ops.pick(x, ops.expand_dims(ops.where(ids < 0, 0, ids), 1), 1) if spec.layout.stats else None


def _results(spec: LoopSpec, results: RowResults, x_y: Array | None) -> LoopResults:
    found = LoopResults(results.nll, results.lse, results.smooth)
    if x_y is None:
        return found
    rows = _reduce.unmarked(spec.linear.ops, results, x_y == results.m, None, 1)
    return found._replace(correct=rows.correct, entropy=rows.entropy, argmax=rows.argmax)


def zero_masked(spec: LoopSpec, hidden: Array, ids: Array) -> Array:
    """The hidden states with 0 in masked rows: what those hold must not reach a product."""
    if not spec.layout.masked:
        return hidden
    ops = spec.linear.ops
    return ops.astype(ops.where(ops.expand_dims(ids, 1) == ABSENT, 0.0, hidden), ops.dtype(hidden))


def rows_that_count(spec: LoopSpec, ids: Array) -> Any:
    """The numbers of the rows that are not masked; None where none is masked, or where ids cannot be read at once."""
    values = spec.linear.ops.host(ids) if spec.layout.masked else None
    if values is None:
        return None
    kept = np.flatnonzero(values != ABSENT)
    return None if kept.size == values.size else kept


# ---- the size of a chunk


def fitting(memory: int, row: int) -> int:
    """How many rows of `row` bytes of logits make a chunk that fits in `memory` bytes."""
    return min(max(memory // row // PANEL * PANEL, FEWEST), MOST)


def even(count: int, chunk: int) -> int:
    """Rows of a chunk, at most `chunk`, that divide `count`, unless that takes twice as many chunks."""
    fewest = -(-count // chunk)
    chunks = next((n for n in range(fewest, 2 * fewest) if count % n == 0), fewest)
    return -(-count // chunks) if chunks else chunk


# ---- for arrays that can be sliced and changed


def blocks(classes: int, features: int) -> list[slice]:
    """A weight's classes, some at a time."""
    step = min(max(BLOCK // features, 1), classes)
    return [slice(start, min(start + step, classes)) for start in range(0, classes, step)]


def scan(
    empty: Callable[..., Array], step: Any, carry: Any, rows: tuple[Any, ...], chunk: int, keep: Any
) -> tuple[Any, tuple[Any, ...]]:
    """`LinearKernels.scan`; empty(shape, like, zeros) -> an array of like's dtype, 0 where `zeros`."""
    count = len(rows[0])
    places = count if keep is None else len(keep)
    outputs: tuple[Any, ...] = ()
    for start in range(0, max(places, 1), chunk):
        part = slice(start, start + chunk) if keep is None else keep[start : start + chunk]
        carry, results = step(carry, *(None if k is None else k[part] for k in rows))
        if not outputs:
            outputs = tuple(None if k is None else empty((count, *k.shape[1:]), k, keep is not None) for k in results)
        for output, result in zip(outputs, results, strict=True):
            if output is not None:
                output[part] = result
        del results  # a chunk's memory is free for the next one
    return carry, outputs
