"""linear_ce's loop over chunks of rows, for an adapter's own `Linear.head` to run and to attach derivative rules to.

A chunk's logits become its rows' statistics and, where gradients are wanted, their own derivative, which is multiplied
out at once: into the hidden states' gradient, row by row, and into the weight's, a sum over the chunks. Everything that
a row's loss is multiplied by depends on labels and weights alone, so it is known before the first chunk.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from xent import _reduce
from xent.adapter import ABSENT, INVALID, Array, Layout, Linear, Ops

from .sums import compute_dtype, widened

# Rows of a chunk. Below the first, products wait for the weight's gradient to come and go; above the second, nothing
# is gained (docs/performance.md).
FEWEST, MOST = 128, 2048
PANEL = 32  # products take so many rows at a time, or a part of it
MEMORY = 19 << 20  # bytes of a chunk's logits
# Enough for 600 rows of 220,000 classes. The products of a chunk of R rows do 6 R operations an element of the weight
# and move 12 bytes of it and its gradient; a Hopper does 295 operations a byte, by its data sheet.
MEMORY_ON_A_GPU = 512 << 20
BLOCK = 1 << 20  # elements of the weight to convert at a time, or of its gradient to add up in the cache


class Head(NamedTuple):
    """What the loop knows before it sees a number; hashable, so that a compiler may specialise on it."""

    kit: Linear
    lay: Layout
    softcap: float | None
    chunk: int
    each: bool  # the value is every row's, not their sum
    stats: bool


# ---- the loop, for all frameworks. Operands: h [N, D], weight [C, D], bias [C], u [C], ids [N], a, z, c [N]


def forward(
    head: Head, h: Array, weight: Array, bias: Any, u: Any, ids: Array, a: Any, z: Any, c: Any
) -> tuple[Array | None, ...]:
    """Every row's loss, lse, smooth, and whether its label holds the maximum; None where that is not asked for."""

    over = _buffer(head, h, weight)

    def step(carry: None, h: Array, ids: Array) -> tuple[None, tuple[Array | None, ...]]:
        x = _logits(head, _blank(head, h, ids), weight, bias, over)
        return carry, _results(head, head.kit.rows(head.lay, x, None, u, ids), _at_label(head, x, ids))

    return head.kit.scan(step, None, (h, ids), head.chunk, _present(head, ids))[1]


def both(
    head: Head, wanted: tuple[bool, ...], h: Array, weight: Array, bias: Any, u: Any, ids: Array, a: Any, z: Any, c: Any
) -> tuple[tuple[Array | None, ...], tuple[Array | None, ...]]:
    """The same, and the derivatives of sum(a loss + z lse^2 + c smooth) in h, weight and bias, those that are wanted,
    in the dtype that is computed in: 16 bits are rounded once, when everything is added up."""
    kit = head.kit
    ops = kit.ops
    dtype = compute_dtype(ops, h)
    classes, features = ops.shape(weight)
    assert classes is not None
    assert features is not None
    over = _buffer(head, h, weight)

    def step(carry: Any, h: Array, ids: Array, a: Any, z: Any, c: Any) -> tuple[Any, tuple[Array | None, ...]]:
        dw, db = carry
        h = _blank(head, h, ids)
        x = _logits(head, h, weight, bias, over)
        slope, x_y = _slope(head, x), _at_label(head, x, ids)
        results, dx = kit.rows_both(head.lay, x, None, u, ids, 0.0 if a is None else a, z, c)
        if slope is not None:
            dx *= slope
        dw = None if dw is None else kit.accumulate(dw, dx, h)
        db = None if db is None else kit.accumulate(db, dx, ops.expand_dims(ops.astype(ids, dtype) * 0 + 1, 1))
        return (dw, db), (*_results(head, results, x_y), kit.pull(dx, weight) if wanted[0] else None)

    carry = tuple(
        ops.full(shape, 0.0, dtype, h) if is_wanted else None
        for shape, is_wanted in zip(((classes, features), (classes, 1)), wanted[1:], strict=True)
    )
    (dw, db), (*results, dh) = kit.scan(step, carry, (h, ids, a, z, c), head.chunk, _present(head, ids))
    grads: tuple[Array | None, ...] = (dh, dw, None if db is None else ops.squeeze(db, 1))
    empty = _empty(head, a, z, c)
    if empty is not None:
        grads = tuple(None if d is None else ops.where(empty, 0.0, d) for d in grads)
    return tuple(results), grads


def run(head: Head, wanted: tuple[bool, ...], *operands: Any) -> tuple[tuple[Array | None, ...], tuple[Any, ...]]:
    """`both` where a derivative is wanted, else `forward` beside three times None."""
    return both(head, wanted, *operands) if any(wanted) else (forward(head, *operands), (None, None, None))


def value(head: Head, results: tuple[Any, ...], a: Any, z: Any, c: Any) -> Array:
    """a loss + z lse^2 + c smooth, each row's or their sum."""
    loss, lse, smooth, _ = results
    scale = _reduce.RowWeights(0.0 if a is None else a, z, c)
    each = scale.contribution(loss, None if z is None else lse, smooth)
    return each if head.each else head.kit.ops.sum(each, None)


def composite(
    head: Head, h: Array, weight: Array, bias: Any, u: Any, ids: Array, a: Any, z: Any, c: Any
) -> tuple[Array, tuple[Array | None, ...]]:
    """The same value from all logits at once, by operations that every transform of the framework goes through."""
    kit, empty = head.kit, _empty(head, a, z, c)
    if empty is not None:
        h, weight, bias = (None if k is None else _reduce.constant_where(kit.ops, empty, k) for k in (h, weight, bias))
    h, weight = (widened(kit.ops, k) for k in (_blank(head, h, ids), weight))
    x = kit.matmul(h, weight)
    x = x if bias is None else x + widened(kit.ops, bias)
    x = x if head.softcap is None else head.softcap * kit.smooth_tanh(x / head.softcap)
    loss, *others = _results(head, kit.rows(head.lay, x, None, u, ids), _at_label(head, x, ids))
    if head.lay.masked:
        loss = loss + _poison(kit.ops, x, ids)
    results = (loss, *others)
    return value(head, results, a, z, c), results


def _empty(head: Head, a: Any, z: Any, c: Any) -> Array | None:
    """Whether no row counts, a 0-d bool, where all are there for their statistics: 0 times their NaN would be NaN.

    None where that cannot be, or is known not to be so.
    """
    if not head.stats:
        return None
    ops = head.kit.ops
    empty = sum(ops.sum(ops.abs(k), None) for k in (a, z, c) if k is not None) == 0
    value = ops.host(empty)
    return empty if value is None or value else None


def _poison(ops: Ops, x: Array, ids: Array) -> Array:
    """NaN in rows of an invalid label, with derivatives that are NaN as well."""
    bad = ops.where(ops.expand_dims(ids, 1) == INVALID, x, 0.0)
    return ops.squeeze(ops.sum(bad, 1), 1) * ops.where(ids == INVALID, float("nan"), ops.astype(ids, ops.dtype(x)) * 0)


# ---- one chunk. Where arrays can be changed, the operators below change them: a chunk is there once.


def _buffer(head: Head, h: Array, weight: Array) -> Array | None:
    classes = head.kit.ops.shape(weight)[0]
    assert classes is not None
    return head.kit.buffer(head.chunk, classes, compute_dtype(head.kit.ops, h), h)


def _logits(head: Head, h: Array, weight: Array, bias: Array | None, over: Array | None) -> Array:
    x = head.kit.project(h, weight, over)
    if bias is not None:
        x += head.kit.ops.astype(bias, head.kit.ops.dtype(x))
    if head.softcap is not None:
        x /= head.softcap
        x = head.kit.tanh(x)
        x *= head.softcap
    return x


def _slope(head: Head, x: Array) -> Array | None:
    """The softcap's own, from its result: 1 - tanh^2."""
    if head.softcap is None:
        return None
    slope = x / head.softcap
    slope *= slope
    slope *= -1.0
    slope += 1.0
    return slope


def _at_label(head: Head, x: Array, ids: Array) -> Array | None:
    """The label's logit, before its derivative is written over it."""
    ops = head.kit.ops
    return ops.pick(x, ops.expand_dims(ops.where(ids < 0, 0, ids), 1), 1) if head.stats else None


def _results(head: Head, results: tuple[Any, ...], x_y: Array | None) -> tuple[Array | None, ...]:
    loss, lse, smooth, m = results
    return loss, lse, smooth, None if x_y is None else head.kit.ops.squeeze(x_y == m, 1)


def _blank(head: Head, h: Array, ids: Array) -> Array:
    """0 in masked rows: what they hold must not reach a product."""
    ops = head.kit.ops
    return ops.astype(ops.where(ops.expand_dims(ids, 1) == ABSENT, 0.0, h), ops.dtype(h)) if head.lay.masked else h


def _present(head: Head, ids: Array) -> Any:
    """Where the rows are that are there; None where all are, or where that is not known without waiting."""
    values = head.kit.ops.host(ids) if head.lay.masked else None
    if values is None:
        return None
    kept = np.flatnonzero(values != ABSENT)
    return None if kept.size == values.size else kept


# ---- the size of a chunk


def fitting(memory: int, row: int) -> int:
    """Rows of a chunk whose logits take so many bytes each."""
    return min(max(memory // row // PANEL * PANEL, FEWEST), MOST)


def even(count: int, chunk: int) -> int:
    """Rows of a chunk, at most `chunk`: so many that chunks fill the rows, if that does not take twice as many."""
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
    """`Linear.scan`; empty(shape, like, zeros) -> an array of like's dtype, 0 where `zeros`."""
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
