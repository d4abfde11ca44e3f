"""Shapes that a graph may not know while it is traced: what is known is checked at once, the rest when the graph runs.

A shape is a tuple of ints, with a 0-d array for each length that is not known. Where not even the rank is known,
arguments are flattened to a known one.
"""

from __future__ import annotations

from typing import Any

from xent import _rules
from xent._options import Options
from xent._reduce import Stats
from xent.adapter import Adapter, Array, Ops, Scalar

Shape = tuple[Any, ...]


def ranked(adapter: Adapter, x: Array) -> bool:
    return adapter.ops.unknown is None or adapter.ops.unknown.ranked(x)


def shape_of(adapter: Adapter, x: Array) -> Shape:
    shape = adapter.ops.shape(x)
    return shape if adapter.ops.unknown is None or None not in shape else adapter.ops.unknown.lengths(x)


def length(ops: Ops, x: Array, axis: int) -> Scalar:
    """The length along an axis, as an array: it is not known yet."""
    assert ops.unknown is not None
    return ops.unknown.lengths(x)[axis]


def known(adapter: Adapter, shape: Shape) -> Shape:
    """The shape, with None for what is not known yet."""
    if adapter.ops.unknown is not None:
        for n in shape:
            if type(n) is not int:  # all lengths are ints in most calls
                return tuple(n if isinstance(n, int) else None for n in shape)
    return shape


def class_axis(adapter: Adapter, x: Array, shape: Shape, axis: Any) -> tuple[Array, int, Any]:
    """The logits, checked to have at least one class; the class axis, never negative; the class count, or None."""
    lengths = known(adapter, shape)
    axis = _rules.class_axis(lengths, axis)
    if lengths[axis] is None:
        assert adapter.ops.unknown is not None
        x = adapter.ops.unknown.require(x, shape[axis] > 0, _rules.no_class(shape, axis), lengths)
    return x, axis, lengths[axis]


def fitted(
    adapter: Adapter, rule: _rules.ShapeRule, value: Array | None, shape: Shape, logits: Shape = ()
) -> Array | None:
    """value, checked to have the shape that the rule wants beside `shape`; `logits`, their shape, is for advice."""
    if value is None:
        return None
    unknown, lengths = adapter.ops.unknown, known(adapter, shape)
    if ranked(adapter, value):
        own = adapter.ops.shape(value)
        rule.check(own, lengths, logits)
        if not own or not (None in own or None in lengths):
            return value
    assert unknown is not None
    return unknown.fit(value, shape, lengths, rule)


def flattened(
    adapter: Adapter, x: Array, axis: Any, given: tuple[tuple[_rules.ShapeRule, Array | None], ...]
) -> tuple[Array, int, Any, list[Array | None]]:
    """For logits of unknown rank: the logits as [before, classes, after], [before, classes] or [elements]; their class
    axis; the loss's lengths; and the other arguments, flattened to match."""
    unknown = adapter.ops.unknown
    assert unknown is not None
    x, whole, rows = unknown.flatten(x, None if axis is None else _rules.axis_number(axis))
    shape = shape_of(adapter, x)
    values: list[Array | None] = []
    for rule, value in given:
        of_rows = axis is not None and rule in (_rules.IDS, _rules.WEIGHTS)
        lengths, flat = (rows, shape[:1] + shape[2:]) if of_rows else (whole, shape)
        values.append(None if value is None else unknown.spread(unknown.fit(value, lengths, None, rule), lengths, flat))
    return x, 0 if axis is None else 1, rows, values


def reshaped(ops: Ops, options: Options, lengths: Any, result: Any) -> Any:
    """The result of a loss whose arguments were flattened, in `lengths`, the loss's own."""
    assert ops.unknown is not None
    reshape = ops.unknown.reshape
    loss, rows = result if options.stats else (result, None)
    loss = reshape(loss, lengths) if options.reduce == "none" else loss
    return loss if rows is None else (loss, Stats(*(reshape(k, lengths) for k in rows)))
