"""A loss in two steps: a plan (checked arguments; nothing computed), and its execution as the adapter likes to run it.

A plan is hashable and holds no numbers of arrays, so that a compiler may specialise on it; the arrays travel beside it.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from xent import _check, _reduce
from xent._adapter import Adapter, Array, Layout, Ops, Scalar, computed_in
from xent._dispatch import contents, find
from xent._shapes import class_axis, fitted, flattened, known, length, ranked, reshaped, shape_of

# ---- plans


class SoftmaxPlan(NamedTuple):
    xp: Adapter
    axis: int
    classes: int | None  # None: a graph finds out when it runs
    hard: bool
    masked: bool
    dtype: str
    reduce: str
    smoothing: float
    z_loss: float
    ignore_index: int | None = None
    invalid: str | None = None  # None: the ids are coded already
    stats: bool = False  # also return the rows' statistics
    lengths: Any = None  # the loss's, as a graph has them, where logits of unknown rank were flattened

    @property
    def fusible(self) -> bool:
        return self.reduce != "none" and not self.stats


class SigmoidPlan(NamedTuple):
    xp: Adapter
    dtype: str
    reduce: str
    smoothing: float
    lengths: Any = None  # as above
    stats: bool = False

    @property
    def fusible(self) -> bool:
        return self.reduce != "none"


def softmax(
    xp: Adapter,
    logits: Array,
    labels: Array,
    axis: int,
    reduce: str,
    weights: Any,
    class_weights: Any,
    label_smoothing: float,
    z_loss: float,
    denom: Any,
) -> tuple[SoftmaxPlan, tuple[Any, ...]]:
    x, dtype = floating(xp, "logits", logits)
    labels, weights = _real(xp, "labels", labels, x, dtype), _real(xp, "weights", weights, x, dtype)
    lengths = None
    if not ranked(xp, x):
        given = (_check.SOFT_LABELS, labels), (_check.WEIGHTS, weights)
        x, axis, lengths, (labels, weights) = flattened(xp, x, axis, given)
    shape = shape_of(xp, x)
    x, axis, classes = class_axis(xp, x, shape, axis)
    labels = fitted(xp, _check.SOFT_LABELS, labels, shape)
    weights, table, denom = _row_arguments(xp, x, shape, axis, dtype, reduce, weights, class_weights, denom)
    plan = SoftmaxPlan(
        xp,
        axis,
        classes,
        False,
        weights is not None or table is not None,
        dtype,
        reduce,
        _check.number("label_smoothing", label_smoothing, 0, 1),
        _check.number("z_loss", z_loss),
        lengths=lengths,
    )
    return plan, (x, labels, weights, table, denom)


def sparse(
    xp: Adapter,
    logits: Array,
    labels: Array,
    axis: int,
    reduce: str,
    weights: Any,
    class_weights: Any,
    label_smoothing: float,
    z_loss: float,
    ignore_index: int | None,
    invalid: str,
    denom: Any,
    stats: bool = False,
) -> tuple[SoftmaxPlan, tuple[Any, ...]]:
    x, dtype = floating(xp, "logits", logits)
    lengths = None
    if not ranked(xp, x):
        x, axis, lengths, (labels, weights) = flattened_rows(xp, x, dtype, axis, labels, weights)
    shape = shape_of(xp, x)
    x, axis, _ = class_axis(xp, x, shape, axis)
    # fmt: off
    plan, rest = sparse_rows(
        xp, x, dtype, shape, labels, axis, reduce, weights, class_weights, label_smoothing, z_loss, ignore_index,
        invalid, denom, stats
    )
    # fmt: on
    return plan if lengths is None else plan._replace(lengths=lengths), (x, *rest)


def sparse_rows(
    xp: Adapter,
    x: Array,
    dtype: str,
    shape: tuple[Any, ...],
    labels: Array,
    axis: int,
    reduce: str,
    weights: Any,
    class_weights: Any,
    label_smoothing: float,
    z_loss: float,
    ignore_index: int | None,
    invalid: str,
    denom: Any,
    stats: bool,
) -> tuple[SoftmaxPlan, tuple[Any, ...]]:
    """Everything but the logits, which need not be there: theirs are `dtype`, `shape` and the class axis. x is an array
    on their device, of their shape but for that axis."""
    rows, classes = shape[:axis] + shape[axis + 1 :], known(xp, shape)[axis]
    own, labels = _ids(xp, labels, x)
    label_dtype = own.ops.dtype(labels)
    if classes is None:  # NumPy's ids cannot be compared with it
        own, labels = xp, xp.ops.asarray(labels, x)
    if own is not xp:
        _check.IDS.check(own.ops.shape(labels), known(xp, rows))
    weights = _real(xp, "weights", weights, x, dtype)
    weights, table, denom = _row_arguments(xp, x, shape, axis, dtype, reduce, weights, class_weights, denom)

    _check.choice("invalid", invalid, _check.INVALID_MODES)
    ignore_index = _check.representable(_check.index("ignore_index", ignore_index), label_dtype)
    if invalid == "auto":
        # an id of weight 0 may be anything
        readable = classes is not None and (weights is None or xp.ops.host(weights) is not None)
        values = own.ops.host(labels) if readable else None
        invalid = "nan" if values is None else "raise"
    elif invalid == "raise":
        if classes is None:
            raise _check.unknown_classes()
        values = own.ops.fetch(labels)
        if values is None:
            raise _check.unreadable_ids()
    if invalid == "raise":
        _check.ids_in_range(values, classes, ignore_index, weights, xp.ops)
        invalid = "raise" if weights is None else "ignore"  # what is left of them has weight 0
    masked = invalid != "raise" or ignore_index is not None or weights is not None or table is not None
    coded = own is not xp
    if coded:
        labels = xp.ops.asarray(_reduce.code(own.ops, labels, classes, ignore_index, invalid), x)
    labels = fitted(xp, _check.IDS, labels, rows)
    plan = SoftmaxPlan(
        xp,
        axis,
        classes,
        True,
        masked,
        dtype,
        reduce,
        _check.number("label_smoothing", label_smoothing, 0, 1),
        _check.number("z_loss", z_loss),
        ignore_index,
        None if coded else invalid,
        _check.flag("stats", stats),
    )
    return plan, (labels, weights, table, denom)


def sigmoid(
    xp: Adapter,
    logits: Array,
    labels: Array,
    reduce: str,
    weights: Any,
    pos_weight: Any,
    label_smoothing: float,
    denom: Any,
) -> tuple[SigmoidPlan, tuple[Any, ...]]:
    x, dtype = floating(xp, "logits", logits)
    names = {"labels": labels, "weights": weights, "pos_weight": pos_weight}
    labels, weights, pos_weight = (_real(xp, name, value, x, dtype) for name, value in names.items())
    lengths = None
    if not ranked(xp, x):
        given = (_check.SOFT_LABELS, labels), (_check.WEIGHTS, weights), (_check.POS_WEIGHT, pos_weight)
        x, _, lengths, (labels, weights, pos_weight) = flattened(xp, x, None, given)
    shape = shape_of(xp, x)
    labels = fitted(xp, _check.SOFT_LABELS, labels, shape)
    _check.reduction(reduce, denom)
    weights = fitted(xp, _check.WEIGHTS, weights, shape)
    pos_weight = fitted(xp, _check.POS_WEIGHT, pos_weight, shape)
    plan = SigmoidPlan(xp, dtype, reduce, _check.number("label_smoothing", label_smoothing, 0, 1), lengths)
    return plan, (x, labels, weights, pos_weight, _denom(xp, denom, x, dtype))


def floating(xp: Adapter, argument: str, value: Array) -> tuple[Array, str]:
    """The array, and the dtype to compute in."""
    value = contents(value)
    _check.dense(argument, xp, value)
    x = xp.ops.asarray(value, value)
    dtype = xp.ops.dtype(x)
    _check.floating(argument, dtype)
    return x, computed_in(dtype)


def beside(xp: Adapter, argument: str, value: Any, x: Array) -> tuple[Adapter, Array]:
    """value as an array, with its adapter: the logits' or NumPy's."""
    own = find(value, argument)
    _check.same_framework(argument, own, xp)
    value = contents(value)
    _check.dense(argument, own, value)
    if own is not xp and xp.ops.adopts_numpy():
        return xp, xp.ops.asarray(value, x)
    return own, own.ops.asarray(value, value)


def _ids(xp: Adapter, labels: Any, x: Array) -> tuple[Adapter, Array]:
    own, labels = beside(xp, "labels", _check.class_ids(labels), x)
    _check.integral("labels", own.ops.dtype(labels))
    return own, labels


def _real(xp: Adapter, argument: str, value: Any, x: Array, dtype: str) -> Array | None:
    """value in the logits' framework, on their device, in the dtype they are computed in."""
    if value is None:
        return None
    own, value = beside(xp, argument, value, x)
    _check.real(argument, own.ops.dtype(value))
    value = own.ops.astype(value, dtype)
    return xp.ops.asarray(value, x)


def _row_arguments(
    xp: Adapter,
    x: Array,
    shape: tuple[Any, ...],
    axis: int,
    dtype: str,
    reduce: str,
    weights: Array | None,
    class_weights: Any,
    denom: Any,
) -> tuple[Array | None, Array | None, Scalar | None]:
    _check.reduction(reduce, denom)
    weights = fitted(xp, _check.WEIGHTS, weights, shape[:axis] + shape[axis + 1 :])
    table = _real(xp, "class_weights", class_weights, x, dtype)
    table = fitted(xp, _check.CLASS_WEIGHTS, table, shape[axis : axis + 1])
    return weights, table, _denom(xp, denom, x, dtype)


def _denom(xp: Adapter, denom: Any, x: Array, dtype: str) -> Scalar | None:
    return fitted(xp, _check.DENOM, _real(xp, "denom", denom, x, dtype), ())


def flattened_rows(
    xp: Adapter, x: Array, dtype: str, axis: Any, labels: Any, weights: Any
) -> tuple[Array, int, Any, list[Array | None]]:
    """`flattened` for class ids."""
    labels, weights = xp.ops.asarray(_ids(xp, labels, x)[1], x), _real(xp, "weights", weights, x, dtype)
    return flattened(xp, x, axis, ((_check.IDS, labels), (_check.WEIGHTS, weights)))


# ---- execution


class Rows(NamedTuple):
    """What goes into the kernel, and what its results are then multiplied by."""

    lay: Layout
    x: Array
    t: Array | None
    u: Array | None
    ids: Array | None
    scale: _reduce.RowWeights
    w: Array | None
    divisor: Scalar | None
    empty: Array | None  # whether no gradient may pass, though the rows are there: their statistics are asked for


def softmax_loss(
    plan: SoftmaxPlan, x: Array, labels: Array, weights: Array | None, table: Array | None, denom: Scalar | None
) -> Array:
    rows = prepare(plan, x, labels, weights, table, denom)
    if rows.empty is not None:
        rows = rows._replace(x=_reduce.constant_where(plan.xp.ops, rows.empty, rows.x))
    return _softmax_value(plan, rows, plan.xp.rows(*rows[:5]))


def softmax_both(
    plan: SoftmaxPlan, x: Array, labels: Array, weights: Array | None, table: Array | None, denom: Scalar | None
) -> tuple[Array, Array]:
    """The loss and its derivative in the logits, in one visit of them."""
    xp, ops = plan.xp, plan.xp.ops
    assert xp.rows_both is not None
    rows = prepare(plan, x, labels, weights, table, denom)
    divisor = rows.divisor
    if xp.mean_both is not None and plan.fusible and rows.scale.plain and isinstance(divisor, int | None):
        value, dx = xp.mean_both(rows.lay, rows.x, rows.t, rows.ids, divisor or 1)
        return value, ops.astype(dx, ops.dtype(x))
    slopes = rows.scale.slopes(_reduce.inverse(ops, divisor, plan.dtype))
    rank = len(ops.shape(x)) - 1
    results, dx = xp.rows_both(*rows[:5], *(k if isinstance(k, float) else _ranked(ops, k, rank) for k in slopes))
    dx = dx if rows.empty is None else ops.where(rows.empty, 0.0, dx)
    return _softmax_value(plan, rows, results), ops.astype(dx, ops.dtype(x))


def _softmax_value(plan: SoftmaxPlan, rows: Rows, results: tuple[Any, ...]) -> Any:
    """The loss, beside the rows' statistics where they are asked for."""
    ops, (loss, lse, smooth, _) = plan.xp.ops, results
    value = rows.scale.contribution(loss, lse if plan.z_loss else None, smooth)
    if plan.reduce != "none":
        value = _reduce.divided(ops, ops.sum(value, None), rows.divisor)
    return (value, _reduce.stats(ops, results, rows.x, rows.ids, rows.w, plan.axis)) if plan.stats else value


def prepare(
    plan: SoftmaxPlan, x: Array, labels: Array, weights: Array | None, table: Array | None, denom: Scalar | None
) -> Rows:
    """x: the logits, or an array that has their shape but for the class axis."""
    ops, axis, e = plan.xp.ops, plan.axis, plan.smoothing
    x = x if plan.xp.narrow else ops.astype(x, plan.dtype)
    classes = length(ops, x, axis) if plan.classes is None else plan.classes
    weights = _ranked(ops, weights, len(ops.shape(x)) - 1)
    table = None if table is None else ops.stop_gradient(table)
    k = t = ids = None
    if plan.hard:
        if plan.invalid is None:
            ids = ops.astype(labels, ops.index_dtype)
        else:
            ids = _reduce.code(ops, labels, classes, plan.ignore_index, plan.invalid)
        if table is not None:
            k = _reduce.hard_class_weights(ops, table, ids)
    else:
        t = labels
        if table is not None:
            t = t if weights is None else ops.where(ops.expand_dims(weights, axis) == 0, 0.0, t)
            column = _reduce.along(ops, table, x, axis)
            k = _reduce.soft_class_weights(ops, table, column, t, axis)
            t = ops.where(column == 0, 0.0, t * column)  # even where the derivative in t is infinite
        if e == 1:
            t = ops.stop_gradient(t)  # smoothed away
    w = _reduce.product(weights, k)
    ids = _reduce.mark_absent(ops, ids, w)
    w, weights = _reduce.zero_absent(ops, ids, w), _reduce.zero_absent(ops, ids, weights)
    count = ops.size(ids) if plan.hard else ops.size(x) // classes
    divisor = _reduce.denominator(ops, plan.reduce, count, plan.dtype, w, ids if plan.masked else None, denom)
    empty = _reduce.empty(ops, plan.reduce, w, denom, divisor)
    masked = plan.masked
    if empty is not None and plan.stats:
        w, weights = (None if k is None else _reduce.constant_where(ops, empty, k) for k in (w, weights))
    elif empty is not None:
        ids, masked, empty = _reduce.mark_empty(ops, ids, empty, len(ops.shape(x)) - 1), True, None
        w, weights = _reduce.zero_absent(ops, ids, w), _reduce.zero_absent(ops, ids, weights)
    u = None
    if e:
        u = ops.full((classes,), 1 / classes, plan.dtype, x) if table is None else _reduce.over(ops, table, classes)
    scale = _reduce.row_weights(w if plan.hard else weights, w, weights, e, plan.z_loss)
    lay = Layout(axis, plan.hard, masked, bool(plan.z_loss or plan.stats))
    return Rows(lay, x, t, u, ids, scale, w, divisor, empty)


def sigmoid_loss(
    plan: SigmoidPlan, x: Array, z: Array, weights: Array | None, p: Array | None, denom: Scalar | None
) -> Array:
    xp, ops = plan.xp, plan.xp.ops
    (e, x, z, p, w), divisor = _elements(plan, x, z, weights, p, denom)
    if plan.reduce != "none" and xp.sigmoid_sum is not None:
        return _reduce.divided(ops, xp.sigmoid_sum(e, x, z, p, w), divisor)
    loss = _reduce.RowWeights(w).contribution(xp.sigmoid(e, x, z, p, None if w is None else w == 0), None, None)
    return loss if plan.reduce == "none" else _reduce.divided(ops, ops.sum(loss, None), divisor)


def sigmoid_both(
    plan: SigmoidPlan, x: Array, z: Array, weights: Array | None, p: Array | None, denom: Scalar | None
) -> tuple[Array, Array]:
    assert plan.xp.sigmoid_both is not None
    ops = plan.xp.ops
    arguments, divisor = _elements(plan, x, z, weights, p, denom)
    slope = _reduce.inverse(ops, divisor, plan.dtype)
    loss, dx = plan.xp.sigmoid_both(*arguments, slope, plan.reduce == "none")
    return _reduce.divided(ops, loss, divisor), ops.astype(dx, ops.dtype(x))


def _elements(
    plan: SigmoidPlan, x: Array, z: Array, weights: Array | None, p: Array | None, denom: Scalar | None
) -> tuple[tuple[float, Array, Array, Array | None, Array | None], Scalar | None]:
    """What the kernels start with, and the divisor."""
    ops = plan.xp.ops
    x = x if plan.xp.narrow else ops.astype(x, plan.dtype)
    p = None if p is None else ops.stop_gradient(p)
    rank = len(ops.shape(x))
    w = _ranked(ops, weights, rank)
    w = None if w is None else ops.where(w == 0, 0.0, w)
    divisor = _reduce.denominator(ops, plan.reduce, ops.size(x), plan.dtype, w, None, denom)
    empty = _reduce.empty(ops, plan.reduce, w, denom, divisor)
    if empty is not None:
        w = ops.where(_ranked(ops, empty, rank), 0.0, ops.full((1,) * rank, 1.0, plan.dtype, x) if w is None else w)
    return (plan.smoothing, x, z, p, w), divisor


def _ranked(ops: Ops, weights: Array | None, rank: int) -> Array | None:
    """A scalar with the rank of the loss."""
    while weights is not None and len(ops.shape(weights)) < rank:
        weights = ops.expand_dims(weights, 0)
    return weights


# ---- a loss, whole


class Loss(NamedTuple):
    """plan(xp, ...) -> (static, arrays); value(static, *arrays); both(static, *arrays) -> (value, derivative)."""

    plan: Any
    value: Any
    both: Any

    def __call__(self, xp: Adapter, *args: Any) -> Array:
        static, arrays = self.plan(xp, *args)
        if xp.fuse is None or not static.fusible:
            return reshaped(xp, static, xp.run(self.value, static, *arrays))
        return reshaped(xp, static, xp.fuse(self.value, self.both, static, *arrays))

    def with_gradient(self, xp: Adapter, *args: Any, **kwargs: Any) -> tuple[Array, Array]:
        static, arrays = self.plan(xp, *args, **kwargs)
        result: tuple[Array, Array] = xp.run(self.both, static, *arrays)
        return result


SOFTMAX = Loss(softmax, softmax_loss, softmax_both)
SPARSE = Loss(sparse, softmax_loss, softmax_both)
SIGMOID = Loss(sigmoid, sigmoid_loss, sigmoid_both)
