"""linear_ce's loop over chunks of rows where a process has a part of the classes: once for what it hands out of every
row, and once, when the rows are known, for the derivatives, in reverse mode or in forward mode."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from xent.adapter import Array

from . import linear as loop
from . import sharding
from .linear import Grads, LoopOperands, LoopSpec
from .sharding import Row, Shard, Statistics
from .sums import compute_dtype, widened


def statistics(spec: LoopSpec, shard: Shard, operands: LoopOperands) -> Statistics:
    """Of the shard's weight and bias; the ids are those of all classes."""
    linear, ops = spec.linear, spec.linear.ops
    hidden, weight, bias, u, ids, *_ = loop.of_one_dtype(spec, operands)
    if not shard.length:
        return sharding.statistics(ops, linear.rows, spec.layout, shard, hidden[:, :0], None, u, ids)
    over = loop.buffer_of(spec, operands)

    def step(carry: None, h: Array, ids: Array) -> tuple[None, Statistics]:
        x = loop.logits(spec, loop.zero_masked(spec, h, ids), weight, bias, over)
        own = sharding.statistics(ops, linear.rows, spec.layout, shard, x, None, u, ids)
        return carry, own._replace(smoothing=None)

    _, found = linear.scan(step, None, (hidden, ids), spec.chunk, loop.rows_that_count(spec, ids))
    return Statistics(*found)._replace(smoothing=None if u is None else ops.sum(u, None))


def gradients(
    spec: LoopSpec, pull: Callable[..., Array], wanted: tuple[bool, ...], operands: LoopOperands, row: Row, up: Any
) -> Grads:
    """The derivatives in the hidden states, those of this shard's classes alone, and in its weight and bias.

    The ids are those of `Shard.own_ids`; up: `sharding.coefficients`; pull(x, u, ids, m, s, up) -> the derivative in a
    chunk's logits.
    """
    linear, ops, (hidden, weight, bias, u, ids, *_) = spec.linear, spec.linear.ops, loop.of_one_dtype(spec, operands)
    dtype, (classes, features) = compute_dtype(ops, hidden), ops.shape(weight)
    assert classes is not None
    assert features is not None
    shapes = (classes, features), (classes, 1)
    dw, db = (ops.full(n, 0.0, dtype, hidden) if k else None for n, k in zip(shapes, wanted[1:], strict=True))
    if not classes:
        dh = ops.zeros_like(ops.astype(hidden, dtype)) if wanted[0] else None
        return dh, dw, None if db is None else ops.squeeze(db, 1)
    over = loop.buffer_of(spec, operands)

    def step(carry: Any, h: Array, ids: Array, m: Array, s: Array, *up: Any) -> tuple[Any, tuple[Array | None, ...]]:
        dw, db = carry
        h = loop.zero_masked(spec, h, ids)
        x = loop.logits(spec, h, weight, bias, over)
        slope = loop.slope_of_cap(spec, x)
        dx = pull(x, u, ids, m, s, up)
        if slope is not None:
            dx *= slope
        dw = None if dw is None else linear.accumulate(dw, dx, h)
        db = None if db is None else linear.accumulate(db, dx, ops.expand_dims(ops.astype(ids, dtype) * 0 + 1, 1))
        return (dw, db), (linear.pull(dx, weight) if wanted[0] else None,)

    rows = (hidden, ids, row.m, row.s, *up)
    (dw, db), (dh,) = linear.scan(step, (dw, db), rows, spec.chunk, loop.rows_that_count(spec, ids))
    return dh, dw, None if db is None else ops.squeeze(db, 1)


def tangents(
    spec: LoopSpec, push: Callable[..., Any], operands: LoopOperands, row: Row, moving: Grads
) -> tuple[Array | None, ...]:
    """What the shard adds to the tangents of nll, lse and smooth of its own classes, before `sharding.tangents`.

    moving: the tangents of hidden states, weight and bias in the compute dtype, None for 0.
    push(dx, x, u, ids, m, s) -> the three of a chunk, for the tangent dx of its logits.
    """
    linear, ops, (hidden, weight, bias, u, ids, *_) = spec.linear, spec.linear.ops, loop.of_one_dtype(spec, operands)
    dh, dw, db = moving

    def step(carry: None, h: Array, ids: Array, m: Array, s: Array, dh: Array | None) -> tuple[None, Any]:
        h = loop.zero_masked(spec, h, ids)
        x = loop.logits(spec, h, weight, bias, None)
        slope, dx = loop.slope_of_cap(spec, x), ops.zeros_like(x)
        if dh is not None:
            dx = dx + linear.matmul(loop.zero_masked(spec, dh, ids), widened(ops, weight))
        if dw is not None:
            dx = dx + linear.matmul(widened(ops, h), dw)
        dx = dx if db is None else dx + db
        return carry, push(dx if slope is None else dx * slope, x, u, ids, m, s)

    moved: tuple[Array | None, ...] = linear.scan(step, None, (hidden, ids, row.m, row.s, dh), spec.chunk, None)[1]
    return moved
