"""Shapes that a graph may not know while it is traced: what is known is checked at once, the rest when the graph runs.

A shape is a tuple of ints, and of 0-d arrays in the place of those that are not known. Where not even their number is
known, arguments are flattened to one that is.
"""

from __future__ import annotations

from typing import Any

from xent import _check
from xent._adapter import Adapter, Array, Ops, Scalar
from xent._reduce import Stats

Shape = tuple[Any, ...]


def ranked(xp: Adapter, x: Array) -> bool:
    return xp.ops.unknown is None or xp.ops.unknown.ranked(x)


def shape_of(xp: Adapter, x: Array) -> Shape:
    shape = xp.ops.shape(x)
    return shape if xp.ops.unknown is None or None not in shape else xp.ops.unknown.lengths(x)


def length(ops: Ops, x: Array, axis: int) -> Scalar:
    """Along an axis where it is not known yet."""
    assert ops.unknown is not None
    return ops.unknown.lengths(x)[axis]


def known(xp: Adapter, shape: Shape) -> Shape:
    """The shape, with None for what is not known yet."""
    return shape if xp.ops.unknown is None else tuple(n if isinstance(n, int) else None for n in shape)


def class_axis(xp: Adapter, x: Array, shape: Shape, axis: Any) -> tuple[Array, int, Any]:
    """The logits, which have a class; where their classes are, never negative; how many there are, or None."""
    lengths = known(xp, shape)
    axis = _check.class_axis(lengths, axis)
    if lengths[axis] is None:
        assert xp.ops.unknown is not None
        x = xp.ops.unknown.require(x, shape[axis] > 0, _check.no_class(shape, axis), lengths)
    return x, axis, lengths[axis]


def fitted(xp: Adapter, rule: _check.ShapeRule, value: Array | None, shape: Shape) -> Array | None:
    """value, of a shape that the rule wants beside this one."""
    if value is None:
        return None
    unknown, lengths = xp.ops.unknown, known(xp, shape)
    if ranked(xp, value):
        own = xp.ops.shape(value)
        rule.check(own, lengths)
        if not own or not (None in own or None in lengths):
            return value
    assert unknown is not None
    return unknown.fit(value, shape, lengths, rule)


def flattened(
    xp: Adapter, x: Array, axis: Any, given: tuple[tuple[_check.ShapeRule, Array | None], ...]
) -> tuple[Array, int, Any, list[Array | None]]:
    """Logits of unknown rank as [before, classes, after], [before, classes] or [elements]; where their classes are;
    the loss's lengths; and the other arguments with their elements in the same order."""
    unknown = xp.ops.unknown
    assert unknown is not None
    x, whole, rows = unknown.flatten(x, None if axis is None else _check.axis_number(axis))
    shape = shape_of(xp, x)
    values: list[Array | None] = []
    for rule, value in given:
        of_rows = axis is not None and rule in (_check.IDS, _check.WEIGHTS)
        lengths, flat = (rows, shape[:1] + shape[2:]) if of_rows else (whole, shape)
        values.append(None if value is None else unknown.spread(unknown.fit(value, lengths, None, rule), lengths, flat))
    return x, 0 if axis is None else 1, rows, values


def reshaped(xp: Adapter, static: Any, result: Any) -> Any:
    """The result of a plan, in the loss's shape where that was flattened."""
    if static.lengths is None:
        return result
    assert xp.ops.unknown is not None
    reshape = xp.ops.unknown.reshape
    loss, stats = result if static.stats else (result, None)
    loss = reshape(loss, static.lengths) if static.reduce == "none" else loss
    return loss if stats is None else (loss, Stats(*(reshape(k, static.lengths) for k in stats)))
