"""From a checked call to the loss, or to the loss and its gradient, as the adapter likes to run it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Concatenate, NamedTuple

from xent import _plan, _reduce, formulas
from xent._dispatch import find
from xent._options import Operands, Options
from xent._plan import Plan
from xent._shapes import length, reshaped
from xent.adapter import ABSENT, Adapter, Array, Layout, Ops, RowResults, Scalar, Shortcut, Slopes

# ---- a loss, whole


class Loss(NamedTuple):
    """What a public function is made of. `value` and `value_and_grad` are handed an `Operands`, field by field: so they
    can go through the transforms of every framework."""

    first: str  # the first argument's name
    plan: Callable[[Adapter, Operands, Options], tuple[Plan, Operands]]
    value: Callable[Concatenate[Plan, ...], Any]
    # with the derivative in the first argument; None where no kernel has both
    value_and_grad: Callable[Concatenate[Plan, ...], tuple[Any, Any]] | None
    # (plan, operands, first argument as it was given) -> the same in another way
    gradient: Callable[[Plan, Operands, Array], tuple[Any, Any]] | None = None
    shortcut: bool = False  # whether `Adapter.shortcut` computes it


class WithGradient(NamedTuple):
    """In a loss's first argument: return the loss and its gradient, by xent's own rules."""

    inputs: Array


def run(loss: Loss, operands: Operands, options: Options) -> Any:
    """The public function."""
    inputs = operands.inputs
    if type(inputs) is WithGradient:
        return _with_gradient(loss, inputs.inputs, operands, options)
    adapter = find(inputs, loss.first)
    if adapter.of_parts is not None:
        return adapter.of_parts(loss, operands, options)
    shortcut = _shortcut(loss, adapter, operands, options)
    if shortcut is not None:
        result = shortcut.value(options.axis, options.ignore_index, inputs, operands.labels, _again)
        if result is not None:
            return result
    plan, checked = loss.plan(adapter, operands, options)
    if adapter.autodiff is None or loss.value_and_grad is None or not plan.fusible:
        result = adapter.run(loss.value, plan, *checked)
    else:
        result = adapter.autodiff.fuse_value_and_grad(loss.value, loss.value_and_grad, plan, *checked)
    return result if plan.lengths is None else in_shape(plan, result)


def _with_gradient(loss: Loss, inputs: Array, operands: Operands, options: Options) -> tuple[Any, Any]:
    adapter = find(inputs, loss.first)
    if adapter.of_parts is not None:
        both: tuple[Any, Any] = adapter.of_parts(loss, operands, options)
        return both
    shortcut = _shortcut(loss, adapter, operands, options)
    if shortcut is not None:
        found = shortcut.value_and_grad(options.axis, options.ignore_index, inputs, operands.labels)
        if found is not None:
            return found
    _, *others = operands
    plan, checked = loss.plan(adapter, Operands(inputs, *others), options)
    if loss.gradient is not None:
        return loss.gradient(plan, checked, inputs)
    result: tuple[Any, Any] = adapter.run(loss.value_and_grad, plan, *checked)
    return result


def _shortcut(loss: Loss, adapter: Adapter, operands: Operands, options: Options) -> Shortcut | None:
    """The adapter's, where the call has logits and labels and nothing else."""
    plain = operands.sample_weight is operands.class_weight is operands.denom is None
    return adapter.shortcut if loss.shortcut and plain and options.untouched else None


def _again(axis: int, ignored: int | None, logits: Array, labels: Array) -> Array:
    """What the shortcut computed, by the general way."""
    plan, operands = SPARSE.plan(find(logits), Operands(logits, labels), Options(axis, ignored))
    loss: Array = plan.adapter.run(SPARSE.value, plan, *operands)
    return loss


def in_shape(plan: Plan, result: Any) -> Any:
    """The result in the loss's shape, where inputs of unknown rank were flattened."""
    return reshaped(plan.adapter.ops, plan.options, plan.lengths, result)


# ---- softmax


class Rows(NamedTuple):
    """What goes into the kernel, and what its results are then multiplied by."""

    layout: Layout
    x: Array
    t: Array | None
    u: Array | None
    ids: Array | None
    scale: _reduce.RowWeights
    w: Array | None
    divisor: Scalar | None
    empty: Array | None  # whether no gradient may pass, though the rows are there: their statistics are asked for


def softmax_value(plan: Plan, *operands: Any) -> Any:
    rows = prepare(plan, Operands(*operands))
    if rows.empty is not None:
        rows = rows._replace(x=_reduce.constant_where(plan.adapter.ops, rows.empty, rows.x))
    if plan.options.cap_and_scale:
        rows = capped_and_scaled(plan, visible(plan, rows))
    return softmax_loss(plan, rows, plan.adapter.softmax.rows(rows.layout, rows.x, rows.t, rows.u, rows.ids))


def softmax_value_and_grad(plan: Plan, *operands: Any) -> tuple[Any, Array]:
    """The loss and its derivative in the logits, in one visit of them."""
    x, ops = operands[0], plan.adapter.ops
    rows = prepare(plan, Operands(*operands))
    if plan.options.cap_and_scale:
        rows = visible(plan, rows)
        value, dx = _value_and_grad(plan, capped_and_scaled(plan, rows))
        dx = dx * formulas.slope(ops, rows.x, *plan.options.cap_and_scale)
    else:
        value, dx = _value_and_grad(plan, rows)
    dx = dx if rows.empty is None else ops.where(rows.empty, 0.0, dx)
    return value, ops.astype(dx, ops.dtype(x))


def _value_and_grad(plan: Plan, rows: Rows) -> tuple[Any, Array]:
    kernels, ops, divisor = plan.adapter.softmax, plan.adapter.ops, rows.divisor
    if plan.fusible and rows.scale.plain and isinstance(divisor, int | None):
        return kernels.mean_value_and_grad(rows.layout, rows.x, rows.t, rows.ids, divisor or 1)
    slopes = rows.scale.slopes(_reduce.inverse(ops, divisor, plan.dtype))
    slopes = Slopes(*(k if isinstance(k, float) else ranked(ops, k, rows.x, 1) for k in slopes))
    results, dx = kernels.rows_value_and_grad(rows.layout, rows.x, rows.t, rows.u, rows.ids, slopes)
    return softmax_loss(plan, rows, results), dx


def visible(plan: Plan, rows: Rows) -> Rows:
    """In the compute dtype, with 0 in rows that are left out: 0 times the slope at what they hold would be NaN."""
    ops = plan.adapter.ops
    x = ops.astype(rows.x, plan.dtype)
    if rows.ids is not None and rows.layout.masked:
        x = ops.where(ops.expand_dims(rows.ids, rows.layout.axis) == ABSENT, 0.0, x)
    return rows._replace(x=x)


def capped_and_scaled(plan: Plan, rows: Rows) -> Rows:
    """Visible logits, capped and scaled: those that the loss is of."""
    return rows._replace(x=formulas.capped_and_scaled(plan.adapter.ops, rows.x, *plan.options.cap_and_scale))


def softmax_loss(plan: Plan, rows: Rows, results: RowResults) -> Any:
    """The loss, beside the rows' statistics where they are asked for."""
    ops, options = plan.adapter.ops, plan.options
    value = rows.scale.contribution(results.nll, results.lse, results.smooth)
    if options.reduce != "none":
        value = _reduce.divided(ops, ops.sum(value, None), rows.divisor)
    if not options.stats:
        return value
    return value, _reduce.stats(ops, results, rows.x, rows.ids, rows.w, rows.layout.axis)


def prepare(plan: Plan, operands: Operands) -> Rows:
    """The inputs are the logits, or an array that has their shape but for the class axis."""
    adapter, options, layout, dtype = plan.adapter, plan.options, plan.layout, plan.dtype
    assert layout is not None
    ops, axis = adapter.ops, layout.axis
    x = operands.inputs if adapter.takes_16bit else ops.astype(operands.inputs, dtype)
    classes = length(ops, x, axis) if plan.classes is None else plan.classes
    sample_weight, table = ranked(ops, operands.sample_weight, x, 1), operands.class_weight
    table = None if table is None else ops.stop_gradient(table)
    k = t = ids = None
    if layout.hard:
        ids = _class_ids(plan, operands.labels, classes)
        if table is not None:
            k = _reduce.hard_class_weight(ops, table, ids)
    else:
        t = operands.labels
        if table is not None:
            t = t if sample_weight is None else ops.where(ops.expand_dims(sample_weight, axis) == 0, 0.0, t)
            column = _reduce.along(ops, table, x, axis)
            k = _reduce.soft_class_weight(ops, table, column, t, axis)
            t = ops.where(column == 0, 0.0, t * column)  # even where the derivative in t is infinite
        if options.label_smoothing == 1:
            t = ops.stop_gradient(t)  # smoothed away
    w = _reduce.product(sample_weight, k)
    if w is not None:
        ids = _reduce.mark_absent(ops, ids, w)
        w, sample_weight = _reduce.zero_absent(ops, ids, w), _reduce.zero_absent(ops, ids, sample_weight)
    count = ops.size(ids) if layout.hard else ops.size(x) // classes
    present = ids if layout.masked else None
    divisor = _reduce.denominator(ops, options, count, dtype, w, present, operands.denom)
    empty = _reduce.empty(ops, options, w, operands.denom, divisor)
    if empty is not None and options.stats:
        w, sample_weight = (None if k is None else _reduce.constant_where(ops, empty, k) for k in (w, sample_weight))
    elif empty is not None:
        ids = _reduce.mark_empty(ops, ids, empty, len(ops.shape(x)) - 1)
        layout, empty = layout._replace(masked=True), None
        w, sample_weight = _reduce.zero_absent(ops, ids, w), _reduce.zero_absent(ops, ids, sample_weight)
    u = None
    if options.label_smoothing:
        u = ops.full((classes,), 1 / classes, dtype, x) if table is None else _reduce.over(ops, table, classes)
    scale = _reduce.row_weights(options, w if layout.hard else sample_weight, w, sample_weight)
    return Rows(layout, x, t, u, ids, scale, w, divisor, empty)


def _class_ids(plan: Plan, labels: Array, classes: Scalar) -> Array:
    """Coded as kernels want them, unless they came from NumPy and are so already."""
    ops = plan.adapter.ops
    if plan.out_of_range is None:
        return ops.astype(labels, ops.index_dtype)
    return _reduce.code(ops, labels, classes, plan.ignored, plan.out_of_range)


def ranked(ops: Ops, k: Array | None, x: Array, fewer: int) -> Array | None:
    """A scalar with as many axes as the loss, which are the logits' or one fewer."""
    if k is not None:
        for _ in range(len(ops.shape(x)) - fewer - len(ops.shape(k))):
            k = ops.expand_dims(k, 0)
    return k


# ---- sigmoid


class Elements(NamedTuple):
    """What the kernels start with, and the divisor."""

    smoothing: float
    x: Array
    targets: Array
    pos_weight: Array | None
    weight: Array | None
    divisor: Scalar | None


def sigmoid_value(plan: Plan, *operands: Any) -> Array:
    kernels = plan.adapter.sigmoid
    smoothing, x, targets, pos_weight, weight, divisor = elements(plan, Operands(*operands))
    if plan.options.reduce != "none":
        total = kernels.total(smoothing, x, targets, pos_weight, weight)
        return _reduce.divided(plan.adapter.ops, total, divisor)
    losses = kernels.losses(smoothing, x, targets, pos_weight, None if weight is None else weight == 0)
    return losses if weight is None else weight * losses


def sigmoid_value_and_grad(plan: Plan, *operands: Any) -> tuple[Array, Array]:
    ops, each = plan.adapter.ops, plan.options.reduce == "none"
    *given, divisor = elements(plan, Operands(*operands))
    slope = _reduce.inverse(ops, divisor, plan.dtype)
    loss, dx = plan.adapter.sigmoid.value_and_grad(*given, slope, each)
    return _reduce.divided(ops, loss, divisor), ops.astype(dx, ops.dtype(operands[0]))


def elements(plan: Plan, operands: Operands) -> Elements:
    ops, options = plan.adapter.ops, plan.options
    x = operands.inputs if plan.adapter.takes_16bit else ops.astype(operands.inputs, plan.dtype)
    positive = None if operands.pos_weight is None else ops.stop_gradient(operands.pos_weight)
    w = ranked(ops, operands.sample_weight, x, 0)
    w = None if w is None else ops.where(w == 0, 0.0, w)
    divisor = _reduce.denominator(ops, options, ops.size(x), plan.dtype, w, None, operands.denom)
    empty = _reduce.empty(ops, options, w, operands.denom, divisor)
    if empty is not None:
        ones = (1,) * len(ops.shape(x))
        w = ops.where(ranked(ops, empty, x, 0), 0.0, ops.full(ones, 1.0, plan.dtype, x) if w is None else w)
    return Elements(options.label_smoothing, x, operands.labels, positive, w, divisor)


SOFTMAX = Loss("logits", _plan.softmax, softmax_value, softmax_value_and_grad)
SPARSE = Loss("logits", _plan.sparse, softmax_value, softmax_value_and_grad, shortcut=True)
SIGMOID = Loss("logits", _plan.sigmoid, sigmoid_value, sigmoid_value_and_grad)
