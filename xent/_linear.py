"""linear_ce: the loss of a linear layer's outputs, which exist for a chunk of rows at a time and never all at once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from xent import _plan, _reduce
from xent._execute import Loss, in_shape, prepare
from xent._options import Operands
from xent._plan import Plan
from xent.adapter import Array, LinearKernels, Scalar
from xent.formulas import linear as loop


class Grads(NamedTuple):
    """The derivatives of `linear_ce`, each of its argument's shape and dtype."""

    hidden: Array
    weight: Array
    bias: Array | None


def value(plan: Plan, *operands: Any) -> Any:
    """The loss. Its derivatives come from the adapter's `LinearKernels.head`."""
    spec, of_loop, finish = _problem(plan, Operands(*operands))
    return finish(*spec.linear.head(spec, of_loop))


def gradient(plan: Plan, operands: Operands, given: Array) -> tuple[Any, Grads]:
    adapter = plan.adapter
    if adapter.autodiff is None:
        result: tuple[Any, Grads] = adapter.run(value_and_grads, plan, *operands)
        return result

    def at(parameters: tuple[Array, ...]) -> Any:
        hidden, weight, *bias = parameters
        moved = operands._replace(inputs=hidden, weight=weight, bias=bias[0] if bias else None)
        return adapter.run(value, plan, *moved)

    parameters = operands.inputs, operands.weight, operands.bias
    loss, (dh, dw, *db) = adapter.autodiff.value_and_grad(at, tuple(k for k in parameters if k is not None))
    if plan.lengths is not None:
        assert adapter.linear is not None
        loss, dh = in_shape(plan, loss), adapter.linear.shaped(dh, given)
    return loss, Grads(dh, dw, db[0] if db else None)


def value_and_grads(plan: Plan, *operands: Any) -> tuple[Any, Grads]:
    """For a framework without differentiation."""
    given = Operands(*operands)
    spec, of_loop, finish = _problem(plan, given)
    ops, parameters = spec.linear.ops, (given.inputs, given.weight, given.bias)
    results, grads = loop.value_and_grads(spec, (True, True, given.bias is not None), of_loop)
    dh, dw, db = (None if d is None else ops.astype(d, ops.dtype(k)) for d, k in zip(grads, parameters, strict=True))
    loss = finish(loop.value(spec, results, of_loop), results)
    return loss, Grads(spec.linear.shaped(dh, given.inputs), dw, db)


def _problem(plan: Plan, operands: Operands) -> tuple[loop.LoopSpec, loop.LoopOperands, Callable[..., Any]]:
    """The loop's description and operands, flattened to rows, and a function that makes the loss of its results."""
    linear, options, dtype = plan.adapter.linear, plan.options, plan.dtype
    assert linear is not None
    ops, each, hidden = linear.ops, options.reduce == "none", operands.inputs
    rows = prepare(plan, operands)
    divisor = rows.divisor
    slopes = rows.scale.slopes(_reduce.inverse(ops, divisor, dtype))
    slopes = slopes._replace(nll_scale=None) if options.label_smoothing == 1 else slopes
    chunk = rows_of_a_chunk(linear, hidden, plan, ops.size(rows.ids))
    spec = loop.LoopSpec(linear, rows.layout._replace(axis=1), options.softcap, chunk, each)

    def finish(value: Array, results: loop.LoopResults) -> Any:
        if each:
            value = linear.shaped(value, rows.ids)
        elif divisor is not None and not isinstance(divisor, int):  # a mean over nothing is 0, even of infinities
            value = ops.where(ops.astype(divisor, dtype) == 0, 0.0, value)
        if not options.stats:
            return value
        found = loop.LoopResults(*(None if k is None else linear.shaped(k, rows.ids) for k in results))
        return value, _reduce.described(ops, found.unmarked(rows.w), rows.ids)

    flat = linear.flat(hidden, 1), operands.weight, operands.bias, rows.u, linear.flat(rows.ids, 0)
    return spec, loop.LoopOperands(*flat, *(_per_row(linear, rows.ids, k, dtype) for k in slopes)), finish


def _per_row(linear: LinearKernels, ids: Array, k: Scalar | None, dtype: str) -> Array | None:
    return None if k is None else linear.flat(linear.ops.astype(ids, dtype) * 0 + k, 0)


def rows_of_a_chunk(linear: LinearKernels, hidden: Array, plan: Plan, count: Any) -> int:
    """Rows of a chunk: as many as the memory allows, in chunks of nearly equal length. `count` may be unknown."""
    asked_for = plan.options.chunk_rows
    assert plan.classes is not None
    row = plan.classes * (8 if plan.dtype == "float64" else 4) * (1 if plan.options.softcap is None else 2)
    most = asked_for or loop.fitting(linear.memory(hidden), row)
    if not isinstance(count, int):
        return most
    if asked_for:
        return min(most, max(count, 1))
    even = -(-count // max(-(-count // most), 1))
    return min(-(-even // loop.PANEL) * loop.PANEL, count) or 1


LINEAR = Loss("hidden", _plan.linear, value, None, gradient)
