"""From a call with `sharded=` to the loss: each process holds some of the classes, and all compute the same loss.

What has a class axis is the process's own part: logits, soft labels, a head's weight and bias. Everything else is the
same everywhere: hidden states, class ids, weights; class weights, which are those of all classes.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

from xent import _check, _plan, _reduce, _rules, formulas
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
from xent.adapter import Adapter, Array, Layout, Ops, RowResults
from xent.formulas import sharding
from xent.formulas.linear import LoopOperands, LoopSpec
from xent.formulas.sharding import Row, Shard


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
    logits = of_group(given, options, group)
    ops, shard, collectives = logits.adapter.ops, logits.shard, _check.collectives("sharded", logits.adapter)
    plan, checked = of_ids(logits, given, options)
    plan, rows = prepared(logits, plan, checked)
    u = smoothing_weights(logits, plan.options, checked.class_weight)
    if rows.empty is not None:
        rows = rows._replace(x=_reduce.constant_where(ops, rows.empty, rows.x))
    x = capped_and_scaled(plan, visible(plan, rows)).x if options.cap_and_scale else rows.x
    kernel, constant = logits.adapter.softmax.rows, ops.stop_gradient(x)
    own = sharding.statistics(ops, kernel, rows.layout, shard, constant, None, u, rows.ids)
    row = sharding.combine(ops, shard, own)
    results = collectives.attach(group, rows.layout, shard, x, None, u, rows.ids, row)
    return loss(shard, plan, rows, results, unmarked(ops, rows, results, row) if options.stats else None)


def _softmax(given: Operands, options: Options, group: Any) -> Any:
    options = options.checked(given.denom)
    logits = of_group(given, options, group)
    adapter, x, dtype, _, axis, shard = logits
    ops, collectives = adapter.ops, _check.collectives("sharded", adapter)
    soft = soft_labels(logits, given, options)
    layout = Layout(axis, False, False, options.takes_lse)
    seen = formulas.capped_and_scaled(ops, ops.astype(x, dtype), *options.cap_and_scale) if options.cap_and_scale else x
    constant = ops.stop_gradient(seen), ops.stop_gradient(soft.t), soft.u, None
    extra = None if soft.share is None else ops.stop_gradient(soft.share)
    own = sharding.statistics(ops, adapter.softmax.rows, layout, shard, *constant, extra)
    row = sharding.combine(ops, shard, own)

    sums = row.extra, row.targets
    if soft.share is not None:
        sums = (
            collectives.summed(group, soft.share, row.extra),
            collectives.summed(group, soft.weighted, row.targets),
        )
    plan, rows = of_soft_labels(logits, given, options, soft.table, row, *sums)
    if options.cap_and_scale:  # now it is known which rows are left out
        x = capped_and_scaled(plan, visible(plan, rows._replace(x=x))).x
    results = collectives.attach(group, rows.layout, shard, x, soft.t, soft.u, rows.ids, row)
    return loss(shard, plan, rows, results)


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
    logits = Logits(adapter, h, dtype, (*shape[:-1], classes), len(shape) - 1, shard)

    plan, checked = of_ids(logits, given._replace(weight=weight, bias=bias), options)
    plan, rows = prepared(logits, plan, checked)
    u = smoothing_weights(logits, options, checked.class_weight)
    kernels, ops = adapter.linear, adapter.ops
    assert kernels is not None
    if rows.empty is not None:
        h, weight, bias = (None if k is None else _reduce.constant_where(ops, rows.empty, k) for k in (h, weight, bias))
    chunk = rows_of_a_chunk(kernels, h, plan._replace(classes=classes or 1), ops.size(rows.ids))
    spec = LoopSpec(kernels, rows.layout._replace(axis=1), options.softcap, chunk, True)
    operands = LoopOperands(kernels.flat(h, 1), weight, bias, u, kernels.flat(rows.ids, 0))
    row, results = collectives.linear(group, spec, shard, operands)

    def shaped(k: Array | None) -> Array | None:
        return None if k is None else kernels.shaped(k, rows.ids)

    stats = None
    if options.stats:
        flat = _reduce.unmarked(ops, results, row.correct, None, 1)
        stats = _reduce.Stats(*map(shaped, flat))._replace(sample_weight=rows.w)
    nll, lse, smooth, *rest = results
    return loss(shard, plan, rows, RowResults(*map(shaped, (nll, lse, smooth)), *rest), stats)


def of_rows(function: Loss, given: Operands, options: Options, over_rows: Callable[[Array], Array]) -> Any:
    """Of rows, or of elements of `sigmoid_ce`, that are split over processes, which each has its own of everything."""
    options = options.checked(given.denom)
    adapter = find(given.inputs, function.first)
    divisor = None
    if options.reduce not in ("none", "sum"):
        plan, checked = function.plan(adapter, given, options)
        own = (elements if function is SIGMOID else prepare)(plan, checked).divisor
        divisor = total_divisor(adapter, own, plan.dtype, checked, over_rows)
        given = given._replace(denom=adapter.ops.stop_gradient(divisor))
        options = options._replace(reduce="mean")
    result = run(function, given, options)
    if options.reduce == "none":
        return result
    if options.stats:
        return _summed(adapter, result[0], divisor, over_rows), result[1]
    return _summed(adapter, result, divisor, over_rows)


# ---- reductions


def _summed(adapter: Adapter, own: Array, divisor: Array | None, over_rows: Callable[[Array], Array]) -> Array:
    """The sum of terms that have been divided by the divisor's value; its derivative is that of the whole sum's."""
    value, ops = over_rows(own), adapter.ops
    if divisor is None:
        return value
    none = divisor == 0
    return value * ops.where(none, 1.0, ops.stop_gradient(divisor) / ops.where(none, 1.0, divisor))


def unmarked(ops: Ops, rows: Rows, results: RowResults, row: Row) -> _reduce.Stats:
    """What `_reduce.described` starts with."""
    return _reduce.unmarked(ops, results, row.correct, rows.w, rows.layout.axis)


def loss(shard: Shard, plan: Plan, rows: Rows, results: RowResults, stats: _reduce.Stats | None = None) -> Any:
    """The loss; beside the rows' statistics where `stats`, those with no row marked, is not None."""
    ops, options = plan.adapter.ops, plan.options
    plain, divisor = plan._replace(options=options._replace(stats=False)), rows.divisor
    if shard.over_rows is None or options.reduce == "none":
        value = softmax_loss(plain, rows, results)
    else:
        constant = None if divisor is None else ops.stop_gradient(divisor)
        own = softmax_loss(plain, rows._replace(divisor=constant), results)
        value = _summed(plan.adapter, own, divisor, shard.over_rows)
    return value if stats is None else (value, _reduce.described(ops, stats, rows.ids))


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
