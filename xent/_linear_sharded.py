"""linear_ce's loop over chunks of rows where a process has a part of the classes: once for what it hands out of every
row, and once, when the rows are known, for the derivatives."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from xent import _sharding
from xent._sharding import Row, Shard, Statistics
from xent.adapter import Array
from xent.formulas import compute_dtype
from xent.formulas import linear as loop
from xent.formulas.linear import Grads, LoopOperands, LoopSpec


def statistics(spec: LoopSpec, shard: Shard, operands: LoopOperands) -> Statistics:
    """Of the shard's weight and bias; the ids are those of all classes."""
    linear, ops = spec.linear, spec.linear.ops
    hidden, weight, bias, u, ids, *_ = loop.of_one_dtype(spec, operands)
    if not shard.length:
        return _sharding.statistics(ops, linear.rows, spec.layout, shard, hidden[:, :0], None, u, ids)
    over = loop.buffer_of(spec, operands)

    def step(carry: None, h: Array, ids: Array) -> tuple[None, tuple[Array | None, ...]]:
        x = loop.logits(spec, loop.zero_masked(spec, h, ids), weight, bias, over)
        own = _sharding.statistics(ops, linear.rows, spec.layout, shard, x, None, u, ids)
        return carry, (own.m, own.s, own.label, own.smooth)

    _, (m, s, label, smooth) = linear.scan(step, None, (hidden, ids), spec.chunk, loop.rows_that_count(spec, ids))
    return Statistics(m, s, label, None, smooth, None if u is None else ops.sum(u, None))


def gradients(
    spec: LoopSpec, pull: Callable[..., Array], wanted: tuple[bool, ...], operands: LoopOperands, row: Row, up: Any
) -> Grads:
    """The derivatives in the hidden states, those of this shard's classes alone, and in its weight and bias.

    The ids are those of `Shard.own_ids`; up: `_sharding.coefficients`; pull(x, u, ids, m, s, up) -> the derivative in a
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
