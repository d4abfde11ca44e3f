"""From a call with `sharded=` to the loss: each process holds some of the classes, and all compute the same loss.

What has a class axis is the process's own part: logits, soft labels, a head's weight and bias. Everything else is the
same everywhere: hidden states, class ids, weights; class weights, which are those of all classes.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

from xent import _check, _plan, _reduce, _rules, _sharding, formulas
from xent._dispatch import find
from xent._execute import (
    SIGMOID,
    Loss,
    Rows,
    WithGradient,
    capped_and_scaled,
    elements,
    prepare,
    run,
    softmax_loss,
    visible,
)
from xent._linear import Grads, rows_of_a_chunk
from xent._options import Operands, Options
from xent._plan import Plan
from xent._shapes import Shape, fitted, shape_of
from xent._sharding import Shard
from xent.adapter import Adapter, Array, Collectives, Layout, RowResults
from xent.formulas.linear import LoopOperands, LoopSpec


class Logits(NamedTuple):
    """The first argument of a loss, checked."""

    adapter: Adapter
    collectives: Collectives
    group: Any  # what the caller gave as `sharded=`
    x: Array  # in the compute dtype, or in 16 bits where the adapter takes them
    dtype: str  # what is computed in
    shape: Shape
    axis: int
    shard: Shard

    @property
    def rows(self) -> Shape:
        return self.shape[: self.axis] + self.shape[self.axis + 1 :]


def sparse(given: Operands, options: Options, group: Any) -> Any:
    return _run(_sparse, "logits", given, options, group)


def softmax(given: Operands, options: Options, group: Any) -> Any:
    return _run(_softmax, "logits", given, options, group)


def linear(given: Operands, options: Options, group: Any) -> Any:
    """Each process has the weight and bias of its own classes, and all hidden states."""
    return _run(_linear, "hidden", given, options, group)


def _run(function: Callable[..., Any], first: str, given: Operands, options: Options, group: Any) -> Any:
    with_gradient = type(given.inputs) is WithGradient
    adapter = find(given.inputs.inputs if with_gradient else given.inputs, first)
    collectives = _check.collectives("sharded", adapter)
    return collectives.run(partial(_value_and_grad, function) if with_gradient else function, given, options, group)


def _sparse(given: Operands, options: Options, group: Any) -> Any:
    options = options.checked(given.denom)
    logits = _logits(given, options, group)
    ops, collectives, shard = logits.adapter.ops, logits.collectives, logits.shard
    plan, checked = of_ids(logits, given, options)
    plan, rows = prepared(logits, plan, checked)
    u = smoothing_weights(logits, plan.options, checked.class_weight)
    if rows.empty is not None:
        rows = rows._replace(x=_reduce.constant_where(ops, rows.empty, rows.x))
    x = capped_and_scaled(plan, visible(plan, rows)).x if options.cap_and_scale else rows.x
    kernel, constant = logits.adapter.softmax.rows, ops.stop_gradient(x)
    own = _sharding.statistics(ops, kernel, rows.layout, shard, constant, None, u, rows.ids)
    row = _sharding.combine(ops, shard, own)
    results = collectives.attach(group, rows.layout, shard, x, None, u, rows.ids, row)
    return loss(shard, plan, rows, results, ops.squeeze(row.correct, logits.axis))


def _softmax(given: Operands, options: Options, group: Any) -> Any:
    options = options.checked(given.denom)
    logits = _logits(given, options, group)
    adapter, collectives, _, x, dtype, shape, axis, shard = logits
    ops = adapter.ops
    t = _plan.real(adapter, "labels", _check.given("labels", given.labels), x, dtype)
    t = fitted(adapter, _rules.DISTRIBUTIONS, t, shape, shape)
    sample_weight = _plan.real(adapter, "sample_weight", given.sample_weight, x, dtype)
    sample_weight = fitted(adapter, _rules.WEIGHTS, sample_weight, logits.rows)
    denom = fitted(adapter, _rules.DENOM, _plan.real(adapter, "denom", given.denom, x, dtype), ())
    table = class_weight(logits, given)

    share = None
    if table is not None:
        table = ops.stop_gradient(table)
        column = _reduce.along(ops, shard.part(table), x, axis)
        share = ops.sum(t, axis)
        weighted = ops.sum(t * column, axis)
        t = ops.where(column == 0, 0.0, t * column)
    t = ops.stop_gradient(t) if options.label_smoothing == 1 else t
    u = smoothing_weights(logits, options, table)
    layout = Layout(axis, False, False, bool(options.z_loss))
    seen = formulas.capped_and_scaled(ops, ops.astype(x, dtype), *options.cap_and_scale) if options.cap_and_scale else x
    constant = ops.stop_gradient(seen), ops.stop_gradient(t), u, None
    extra = None if share is None else ops.stop_gradient(share)
    own = _sharding.statistics(ops, adapter.softmax.rows, layout, shard, *constant, extra)
    row = _sharding.combine(ops, shard, own)

    w = sample_weight
    if share is not None:
        share = collectives.summed(group, share, row.extra)
        weighted = collectives.summed(group, weighted, row.targets)
        average = ops.squeeze(_reduce.average_class_weight(ops, table, share, weighted), axis)
        w = _reduce.product(sample_weight, average)
    plan = Plan(adapter, options, dtype, layout._replace(masked=w is not None), 1)
    plan, rows = prepared(logits, plan, Operands(row.m, row.m, w, None, denom))
    options = plan.options
    if share is not None:
        sample_weight = _reduce.zero_absent(ops, rows.ids, sample_weight)
        rows = rows._replace(scale=_reduce.row_weights(options, sample_weight, rows.w, sample_weight))
    if options.cap_and_scale:  # now it is known which rows are left out
        x = capped_and_scaled(plan, visible(plan, rows._replace(x=x))).x
    return loss(shard, plan, rows, collectives.attach(group, rows.layout, shard, x, t, u, rows.ids, row))


def _linear(given: Operands, options: Options, group: Any) -> Any:
    options = options.checked(given.denom)
    adapter = find(given.inputs, "hidden")
    collectives = _check.collectives("sharded", adapter)
    h, dtype = _plan.floating(adapter, "hidden", given.inputs)
    weight, bias = _plan.parameter(adapter, "weight", given.weight, h), given.bias
    shape, of_weight = shape_of(adapter, h), shape_of(adapter, weight)
    _rules.head_shapes(shape, of_weight if 0 not in of_weight[:1] else (1, *of_weight[1:]))  # a process may have none
    classes = of_weight[0]
    if bias is not None:
        bias = fitted(adapter, _rules.BIAS, _plan.parameter(adapter, "bias", bias, h), (classes,))
    shard = collectives.shard(group, classes, math.prod(shape[:-1]), h)
    logits = Logits(adapter, collectives, group, h, dtype, (*shape[:-1], classes), len(shape) - 1, shard)

    plan, checked = of_ids(logits, given._replace(weight=weight, bias=bias), options)
    plan, rows = prepared(logits, plan, checked)
    u = smoothing_weights(logits, options, checked.class_weight)
    kernels, ops = adapter.linear, adapter.ops
    assert kernels is not None
    if rows.empty is not None:
        h, weight, bias = (None if k is None else _reduce.constant_where(ops, rows.empty, k) for k in (h, weight, bias))
    chunk = rows_of_a_chunk(kernels, h, plan._replace(classes=classes or 1), ops.size(rows.ids))
    spec = LoopSpec(kernels, rows.layout._replace(axis=1), options.softcap, chunk, True, options.stats)
    operands = LoopOperands(kernels.flat(h, 1), weight, bias, u, kernels.flat(rows.ids, 0), None, None, None)
    row, results = collectives.linear(group, spec, shard, operands)
    nll, lse, smooth, correct = (
        None if k is None else kernels.shaped(k, rows.ids) for k in (*results[:3], row.correct)
    )
    return loss(shard, plan, rows, RowResults(nll, lse, smooth, results.m, results.s), correct)


def of_rows(function: Loss, given: Operands, options: Options, over_rows: Callable[[Array], Array]) -> Any:
    """Of rows, or of elements of `sigmoid_ce`, that are split over processes, which each has its own of everything."""
    options = options.checked(given.denom)
    adapter = find(given.inputs, function.first)
    divisor = None
    if options.reduce not in ("none", "sum"):
        plan, checked = function.plan(adapter, given, options)
        own = (elements if function is SIGMOID else prepare)(plan, checked).divisor
        divisor = _divisor(adapter, own, plan.dtype, checked, over_rows)
        given = given._replace(denom=adapter.ops.stop_gradient(divisor))
        options = options._replace(reduce="mean")
    result = run(function, given, options)
    if options.reduce == "none":
        return result
    if options.stats:
        return _summed(adapter, result[0], divisor, over_rows), result[1]
    return _summed(adapter, result, divisor, over_rows)


# ---- weights and reductions


def prepared(logits: Logits, plan: Plan, operands: Operands) -> tuple[Plan, Rows]:
    """`prepare`, with the denominator of all rows, where they are split as well."""
    rows, over_rows = prepare(plan, operands), logits.shard.over_rows
    if over_rows is None or rows.divisor is None:
        return plan, rows
    divisor = _divisor(logits.adapter, rows.divisor, plan.dtype, operands, over_rows)
    plan = plan._replace(options=plan.options._replace(reduce="mean"))
    return plan, prepare(plan, operands._replace(denom=divisor))


def _divisor(adapter: Adapter, own: Any, dtype: str, operands: Operands, over_rows: Callable[[Array], Array]) -> Array:
    """Of all rows."""
    if operands.denom is not None:
        return operands.denom
    ops = adapter.ops
    return over_rows(ops.full((), own, dtype, operands.inputs) if isinstance(own, int) else ops.astype(own, dtype))


def _summed(adapter: Adapter, own: Array, divisor: Array | None, over_rows: Callable[[Array], Array]) -> Array:
    """The sum of terms that have been divided by the divisor's value; its derivative is that of the whole sum's."""
    value, ops = over_rows(own), adapter.ops
    if divisor is None:
        return value
    none = divisor == 0
    return value * ops.where(none, 1.0, ops.stop_gradient(divisor) / ops.where(none, 1.0, divisor))


def loss(shard: Shard, plan: Plan, rows: Rows, results: RowResults, correct: Array | None = None) -> Any:
    """The loss, beside the rows' statistics where they are asked for."""
    ops, options = plan.adapter.ops, plan.options
    plain, divisor = plan._replace(options=options._replace(stats=False)), rows.divisor
    if shard.over_rows is None or options.reduce == "none":
        value = softmax_loss(plain, rows, results)
    else:
        constant = None if divisor is None else ops.stop_gradient(divisor)
        own = softmax_loss(plain, rows._replace(divisor=constant), results)
        value = _summed(plan.adapter, own, divisor, shard.over_rows)
    if not options.stats:
        return value
    return value, _reduce.described(ops, results.nll, results.lse, correct, rows.ids, rows.w)


# ---- arguments


def _logits(given: Operands, options: Options, group: Any) -> Logits:
    adapter = find(given.inputs, "logits")
    collectives = _check.collectives("sharded", adapter)
    x, dtype = _plan.floating(adapter, "logits", given.inputs)
    shape = shape_of(adapter, x)
    axis = _rules.place_of_classes(shape, options.axis)
    shard = collectives.shard(group, shape[axis], math.prod(shape[:axis] + shape[axis + 1 :]), x)
    x = x if adapter.takes_16bit else adapter.ops.astype(x, dtype)
    return Logits(adapter, collectives, group, x, dtype, shape, axis, shard)


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


def _value_and_grad(function: Callable[..., Any], given: Operands, options: Options, group: Any) -> tuple[Any, Any]:
    """The loss, and its derivatives in logits, or in hidden states, weight and bias."""
    first = given.inputs.inputs
    head = {name: k for name, k in (("weight", given.weight), ("bias", given.bias)) if k is not None}
    adapter = find(first)
    collectives = _check.collectives("sharded", adapter)
    assert adapter.autodiff is not None

    def at(parameters: tuple[Array, ...]) -> Any:
        first, *rest = parameters
        return function(given._replace(inputs=first, **dict(zip(head, rest, strict=True))), options, group)

    value, (d_first, *own) = adapter.autodiff.value_and_grad(at, (first, *head.values()))
    if not head:
        return value, collectives.gradients(group, (), (d_first,))[1][0]
    (dh,), (dw, *db) = collectives.gradients(group, (d_first,), tuple(own))
    return value, Grads(dh, dw, db[0] if db else None)
