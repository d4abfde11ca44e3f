"""From a call with `sharded=` to the loss: each process holds some of the classes, and all compute the same loss.

What has a class axis is the process's own part: logits, soft labels, a head's weight and bias. Everything else is the
same everywhere: hidden states, class ids, weights; class weights, which are those of all classes.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from xent import _check, _plan, _reduce, _rules, _sharding, formulas
from xent._dispatch import find
from xent._execute import SIGMOID, Rows, WithGradient, capped_and_scaled, elements, run, softmax_loss, visible
from xent._linear import Grads, rows_of_a_chunk
from xent._options import Operands, Options
from xent._plan import Plan
from xent._plan_sharded import (
    Logits,
    of_group,
    of_ids,
    of_soft_labels,
    prepared,
    smoothing_weights,
    soft_labels,
    total_divisor,
)
from xent._shapes import fitted, shape_of
from xent._sharding import Shard
from xent.adapter import Adapter, Array, Layout, RowResults
from xent.formulas.linear import LoopOperands, LoopSpec


def sparse(given: Operands, options: Options, group: Any) -> Any:
    if type(given.inputs) is WithGradient:
        return _value_and_grad(sparse, given, options, group)
    options = options.checked(given.denom)
    logits = of_group(given, options, group)
    ops, shard, collectives = logits.adapter.ops, logits.shard, _check.collectives("sharded", logits.adapter)
    plan, checked = of_ids(logits, given, options)
    plan, rows = prepared(logits, plan, checked)
    u = smoothing_weights(logits, plan.options, checked.class_weight)
    if rows.empty is not None:
        rows = rows._replace(x=_reduce.constant_where(ops, rows.empty, rows.x))
    x = capped_and_scaled(plan, visible(plan, rows)).x if options.cap_and_scale else rows.x
    kernel, constant = logits.adapter.softmax.rows, ops.stop_gradient(x)
    own = _sharding.statistics(ops, kernel, rows.layout, shard, constant, None, u, rows.ids)
    row = _sharding.combine(ops, shard, own)
    local, held = shard.own_ids(ops, rows.ids), shard.holds(rows.ids)
    correct = ops.squeeze(row.correct, logits.axis)
    return loss(shard, plan, rows, collectives.attach(rows.layout, x, None, u, local, held, row), correct)


def softmax(given: Operands, options: Options, group: Any) -> Any:
    if type(given.inputs) is WithGradient:
        return _value_and_grad(softmax, given, options, group)
    options = options.checked(given.denom)
    logits = of_group(given, options, group)
    adapter, x, dtype, _, axis, shard = logits
    ops, collectives = adapter.ops, _check.collectives("sharded", adapter)
    soft = soft_labels(logits, given, options)
    layout = Layout(axis, False, False, bool(options.z_loss))
    seen = formulas.capped_and_scaled(ops, ops.astype(x, dtype), *options.cap_and_scale) if options.cap_and_scale else x
    constant = ops.stop_gradient(seen), ops.stop_gradient(soft.t), soft.u, None
    extra = None if soft.share is None else ops.stop_gradient(soft.share)
    own = _sharding.statistics(ops, adapter.softmax.rows, layout, shard, *constant, extra)
    row = _sharding.combine(ops, shard, own)

    sums = row.extra, row.targets
    if soft.share is not None:
        sums = collectives.summed(soft.share, row.extra), collectives.summed(soft.weighted, row.targets)
    plan, rows = of_soft_labels(logits, given, options, soft.table, row, *sums)
    if options.cap_and_scale:  # now it is known which rows are left out
        x = capped_and_scaled(plan, visible(plan, rows._replace(x=x))).x
    return loss(shard, plan, rows, collectives.attach(rows.layout, x, soft.t, soft.u, rows.ids, None, row))


def linear(given: Operands, options: Options, group: Any) -> Any:
    """Each process has the weight and bias of its own classes, and all hidden states."""
    if type(given.inputs) is WithGradient:
        return _linear_value_and_grads(given, options, group)
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
    logits = Logits(adapter, h, dtype, (*shape[:-1], classes), len(shape) - 1, shard)

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


def sigmoid(given: Operands, options: Options, over_rows: Callable[[Array], Array]) -> Array:
    """Of elements that are split over processes, which each has its own of everything."""
    options = options.checked(given.denom)
    adapter = find(given.inputs)
    divisor = None
    if options.reduce not in ("none", "sum"):
        plan, checked = _plan.sigmoid(adapter, given, options)
        divisor = total_divisor(adapter, elements(plan, checked).divisor, plan.dtype, checked, over_rows)
        given = given._replace(denom=adapter.ops.stop_gradient(divisor))
        options = options._replace(reduce="mean")
    value = run(SIGMOID, given, options)
    return value if options.reduce == "none" else _summed(adapter, value, divisor, over_rows)


# ---- weights and reductions


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


def _value_and_grad(function: Any, given: Operands, options: Options, group: Any) -> Any:
    x = given.inputs.inputs
    adapter = find(x)
    _check.collectives("sharded", adapter)
    assert adapter.autodiff is not None
    return adapter.autodiff.value_and_grad(lambda x: function(given._replace(inputs=x), options, group), x)


def _linear_value_and_grads(given: Operands, options: Options, group: Any) -> tuple[Any, Grads]:
    hidden = given.inputs.inputs
    adapter = find(hidden, "hidden")
    _check.collectives("sharded", adapter)
    assert adapter.autodiff is not None

    def at(parameters: tuple[Array, ...]) -> Any:
        hidden, weight, *bias = parameters
        return linear(given._replace(inputs=hidden, weight=weight, bias=bias[0] if bias else None), options, group)

    parameters = hidden, given.weight, given.bias
    loss, (dh, dw, *db) = adapter.autodiff.value_and_grad(at, tuple(k for k in parameters if k is not None))
    return loss, Grads(dh, dw, db[0] if db else None)
