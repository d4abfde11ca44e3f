"""The arguments of a loss whose classes are in shards: checked, and what each shard needs of them.

What has a class axis is the shard's own part: logits, soft labels. Everything else is that of all classes.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

from xent import _check, _plan, _reduce, _rules
from xent._dispatch import find
from xent._execute import Rows, prepare
from xent._options import Operands, Options
from xent._plan import Plan
from xent._shapes import Shape, fitted, shape_of
from xent.adapter import Adapter, Array, Layout
from xent.formulas.sharding import Row, Shard


class Logits(NamedTuple):
    """The first argument of a loss, checked."""

    adapter: Adapter
    x: Array  # in the compute dtype, or in 16 bits where the adapter takes them
    dtype: str  # what is computed in
    shape: Shape
    axis: int
    shard: Shard

    @property
    def rows(self) -> Shape:
        return self.shape[: self.axis] + self.shape[self.axis + 1 :]


def of_group(given: Operands, options: Options, group: Any) -> Logits:
    adapter = find(given.inputs, "logits")
    collectives = _check.collectives("sharded", adapter)
    x, dtype = _plan.floating(adapter, "logits", given.inputs)
    shape = shape_of(adapter, x)
    axis = _rules.place_of_classes(shape, options.axis)
    shard = collectives.shard(group, shape[axis], math.prod(shape[:axis] + shape[axis + 1 :]), x)
    x = x if adapter.takes_16bit else adapter.ops.astype(x, dtype)
    return Logits(adapter, x, dtype, shape, axis, shard)


def of_ids(logits: Logits, given: Operands, options: Options) -> tuple[Plan, Operands]:
    """What `_plan.of_rows` says of the rows, their class ids coded already."""
    adapter, shard, axis = logits.adapter, logits.shard, logits.axis
    ops, read = adapter.ops, isinstance(shard.classes, int) or options.invalid == "raise"
    classes = known_classes(logits) if read else None
    shape = (*logits.shape[:axis], classes, *logits.shape[axis + 1 :])
    table = class_weight(logits, given)
    rest = given._replace(inputs=logits.x, class_weight=None if classes is None else table)
    plan, checked = _plan.of_rows(adapter, logits.x, logits.dtype, shape, axis, rest, options, None)
    ids = checked.labels
    if plan.out_of_range is not None:
        ids = _reduce.code(ops, ids, shard.classes, plan.ignored, plan.out_of_range)
    assert plan.layout is not None
    layout = plan.layout if table is None else plan.layout._replace(masked=True)
    plan = plan._replace(layout=layout, classes=1, ignored=None, out_of_range=None)
    return plan, checked._replace(labels=ids, class_weight=table)


class SoftLabels(NamedTuple):
    """A shard's own, and what follows from them."""

    t: Array  # times the class weights
    u: Array | None  # smoothing weights
    table: Array | None  # the class weights, of all classes
    share: Array | None  # where there are class weights: sum_j t_j without them, and with them
    weighted: Array | None


def soft_labels(logits: Logits, given: Operands, options: Options) -> SoftLabels:
    adapter, x, dtype, shape, axis, shard = logits
    ops = adapter.ops
    t = _plan.real(adapter, "labels", _check.given("labels", given.labels), x, dtype)
    t = fitted(adapter, _rules.DISTRIBUTIONS, t, shape, shape)
    table, share, weighted = class_weight(logits, given), None, None
    if table is not None:
        table = ops.stop_gradient(table)
        column = _reduce.along(ops, shard.part(table), x, axis)
        share = ops.sum(t, axis)
        weighted = ops.sum(t * column, axis)
        t = ops.where(column == 0, 0.0, t * column)
    t = ops.stop_gradient(t) if options.label_smoothing == 1 else t
    return SoftLabels(t, smoothing_weights(logits, options, table), table, share, weighted)


def of_soft_labels(
    logits: Logits,
    given: Operands,
    options: Options,
    table: Array | None,
    row: Row,
    share: Array | None,
    weighted: Array | None,
) -> tuple[Plan, Rows]:
    """`prepared` for soft labels; `share` and `weighted` are their sums over the classes of all shards."""
    adapter, x, dtype, axis = logits.adapter, logits.x, logits.dtype, logits.axis
    ops = adapter.ops
    sample_weight = _plan.real(adapter, "sample_weight", given.sample_weight, x, dtype)
    sample_weight = fitted(adapter, _rules.WEIGHTS, sample_weight, logits.rows)
    denom = fitted(adapter, _rules.DENOM, _plan.real(adapter, "denom", given.denom, x, dtype), ())
    w = sample_weight
    if table is not None:
        average = _reduce.average_class_weight(ops, table, share, weighted)
        w = _reduce.product(sample_weight, ops.squeeze(average, axis))
    layout = Layout(axis, False, w is not None, options.takes_lse)
    plan, rows = prepared(logits, Plan(adapter, options, dtype, layout, 1), Operands(row.m, row.m, w, None, denom))
    if table is not None:
        sample_weight = _reduce.zero_absent(ops, rows.ids, sample_weight)
        rows = rows._replace(scale=_reduce.row_weights(plan.options, sample_weight, rows.w, sample_weight))
    return plan, rows


def class_weight(logits: Logits, given: Operands) -> Array | None:
    """Of all classes. Where their number is not known until a graph runs, weights of another number are NaN."""
    adapter, ops = logits.adapter, logits.adapter.ops
    table = _plan.real(adapter, "class_weight", given.class_weight, logits.x, logits.dtype)
    if table is None:
        return None
    classes = known_classes(logits)
    if classes is not None:
        return fitted(adapter, _rules.CLASS_WEIGHT, table, (classes,))
    _rules.class_weights(shape_of(adapter, table))
    return ops.where(logits.shard.classes == ops.size(table), table, float("nan"))


def known_classes(logits: Logits) -> int | None:
    """How many there are in all, read from the device where it has to be."""
    classes = logits.shard.classes
    fetched = classes if isinstance(classes, int) else logits.adapter.ops.fetch(classes)
    return None if fetched is None else int(fetched)


def smoothing_weights(logits: Logits, options: Options, table: Array | None) -> Array | None:
    """The shard's own part of them."""
    if not options.label_smoothing:
        return None
    ops, shard = logits.adapter.ops, logits.shard
    own = ops.full((shard.length,), 1.0, logits.dtype, logits.x) if table is None else shard.part(table)
    return ops.stop_gradient(_reduce.over(ops, own, shard.classes))


# ---- weights and their sum


def prepared(logits: Logits, plan: Plan, operands: Operands) -> tuple[Plan, Rows]:
    """`prepare`, with the denominator of all rows, where they are split as well."""
    rows, over_rows = prepare(plan, operands), logits.shard.over_rows
    if over_rows is None or rows.divisor is None:
        return plan, rows
    divisor = total_divisor(logits.adapter, rows.divisor, plan.dtype, operands, over_rows)
    plan = plan._replace(options=plan.options._replace(reduce="mean"))
    return plan, prepare(plan, operands._replace(denom=divisor))


def total_divisor(
    adapter: Adapter, own: Any, dtype: str, operands: Operands, over_rows: Callable[[Array], Array]
) -> Array:
    """Of all rows."""
    if operands.denom is not None:
        return operands.denom
    ops = adapter.ops
    return over_rows(ops.full((), own, dtype, operands.inputs) if isinstance(own, int) else ops.astype(own, dtype))
