"""From arguments to a checked call: a plan, and the operands that go with it. Nothing is computed yet.

A plan is hashable and holds no numbers of arrays, so that a compiler may specialise on it.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from xent import _check, _reduce, _rules
from xent._dispatch import contents, find
from xent._options import Operands, Options
from xent._shapes import Shape, class_axis, fitted, flattened, known, ranked, shape_of
from xent.adapter import Adapter, Array, Layout, computed_in


class Plan(NamedTuple):
    """A checked call without its arrays."""

    adapter: Adapter
    options: Options
    dtype: str  # what is computed in
    layout: Layout | None = None  # None: sigmoid
    classes: int | None = None  # None: a graph finds out when it runs
    # what is left to be done with class ids, where that is not None: which to ignore, and what becomes of those that
    # are no class
    ignored: int | None = None
    out_of_range: str | None = None
    lengths: Any = None  # the loss's, as a graph has them, where inputs of unknown rank were flattened

    @property
    def fusible(self) -> bool:
        """Whether the loss is a scalar and nothing besides."""
        return self.options.reduce != "none" and not self.options.stats


def softmax(adapter: Adapter, given: Operands, options: Options) -> tuple[Plan, Operands]:
    options = options.checked(given.denom)
    x, dtype = floating(adapter, "logits", given.inputs)
    labels, sample_weight = (
        real(adapter, "labels", _check.given("labels", given.labels), x, dtype),
        real(adapter, "sample_weight", given.sample_weight, x, dtype),
    )
    axis, lengths = options.axis, None
    if not ranked(adapter, x):
        rules = (_rules.SOFT_LABELS, labels), (_rules.WEIGHTS, sample_weight)
        x, axis, lengths, (labels, sample_weight) = flattened(adapter, x, axis, rules)
    shape = shape_of(adapter, x)
    x, axis, classes = class_axis(adapter, x, shape, axis)
    labels = fitted(adapter, _rules.DISTRIBUTIONS, labels, shape, shape)
    sample_weight = fitted(adapter, _rules.WEIGHTS, sample_weight, shape[:axis] + shape[axis + 1 :])
    table = _class_weight(adapter, given.class_weight, x, dtype, shape[axis : axis + 1])
    layout = Layout(axis, False, sample_weight is not None or table is not None, options.takes_lse)
    plan = Plan(adapter, options, dtype, layout, classes, lengths=lengths)
    return plan, Operands(x, labels, sample_weight, table, _denom(adapter, given.denom, x, dtype))


def sparse(adapter: Adapter, given: Operands, options: Options) -> tuple[Plan, Operands]:
    options = options.checked(given.denom)
    x, dtype = floating(adapter, "logits", given.inputs)
    axis, lengths = options.axis, None
    if not ranked(adapter, x):
        x, axis, lengths, given = flattened_rows(adapter, x, dtype, axis, given)
    shape = shape_of(adapter, x)
    x, axis, _ = class_axis(adapter, x, shape, axis)
    return of_rows(adapter, x, dtype, shape, axis, given, options, lengths)


def entropy(adapter: Adapter, given: Operands, options: Options) -> tuple[Plan, Operands]:
    options = options.checked(None)
    x, dtype = floating(adapter, "logits", given.inputs)
    sample_weight, axis, lengths = real(adapter, "sample_weight", given.sample_weight, x, dtype), options.axis, None
    if not ranked(adapter, x):
        x, axis, lengths, (sample_weight,) = flattened(adapter, x, axis, ((_rules.WEIGHTS, sample_weight),))
    shape = shape_of(adapter, x)
    x, axis, classes = class_axis(adapter, x, shape, axis)
    sample_weight = fitted(adapter, _rules.WEIGHTS, sample_weight, shape[:axis] + shape[axis + 1 :])
    layout = Layout(axis, False, sample_weight is not None, False)
    return Plan(adapter, options, dtype, layout, classes, lengths=lengths), Operands(x, None, sample_weight)


def linear(adapter: Adapter, given: Operands, options: Options) -> tuple[Plan, Operands]:
    if adapter.linear is None:
        raise _check.no_linear(adapter.name)
    options = options.checked(given.denom)
    h, dtype = floating(adapter, "hidden", given.inputs)
    weight, bias = parameter(adapter, "weight", given.weight, h), given.bias
    if not ranked(adapter, weight):
        raise _rules.unknown_head("an unknown rank")
    lengths = None
    if not ranked(adapter, h):
        h, _, lengths, given = flattened_rows(adapter, h, dtype, -1, given)
    shape, of_weight = shape_of(adapter, h), shape_of(adapter, weight)
    _rules.head_shapes(known(adapter, shape), adapter.ops.shape(weight))
    classes = of_weight[:1]
    if known(adapter, shape)[-1] is None:
        h = _with_features(adapter, h, shape, of_weight)
    weight = fitted(adapter, _rules.HEAD, weight, classes + shape[-1:])
    if bias is not None:
        bias = fitted(adapter, _rules.BIAS, parameter(adapter, "bias", bias, h), classes)
    given = given._replace(weight=weight, bias=bias)
    return of_rows(adapter, h, dtype, shape[:-1] + classes, len(shape) - 1, given, options, lengths)


def sigmoid(adapter: Adapter, given: Operands, options: Options) -> tuple[Plan, Operands]:
    options = options.checked(given.denom)
    x, dtype = floating(adapter, "logits", given.inputs)
    labels, sample_weight, positive = (
        real(adapter, "labels", _check.given("labels", given.labels), x, dtype),
        real(adapter, "sample_weight", given.sample_weight, x, dtype),
        real(adapter, "pos_weight", given.pos_weight, x, dtype),
    )
    lengths = None
    if not ranked(adapter, x):
        rules = (_rules.SOFT_LABELS, labels), (_rules.WEIGHTS, sample_weight), (_rules.POS_WEIGHT, positive)
        x, _, lengths, (labels, sample_weight, positive) = flattened(adapter, x, None, rules)
    shape = shape_of(adapter, x)
    labels = fitted(adapter, _rules.SOFT_LABELS, labels, shape)
    sample_weight = fitted(adapter, _rules.WEIGHTS, sample_weight, shape)
    positive = fitted(adapter, _rules.POS_WEIGHT, positive, shape)
    plan = Plan(adapter, options, dtype, lengths=lengths)
    return plan, Operands(x, labels, sample_weight, None, _denom(adapter, given.denom, x, dtype), positive)


def of_rows(
    adapter: Adapter, x: Array, dtype: str, shape: Shape, axis: int, given: Operands, options: Options, lengths: Any
) -> tuple[Plan, Operands]:
    """Logits that need not be there, for `linear_ce`: theirs are `dtype`, `shape` and the class axis. x is an array on
    their device, of their shape but for that axis."""
    ops = adapter.ops
    rows, classes = shape[:axis] + shape[axis + 1 :], known(adapter, shape)[axis]
    logits = shape if given.weight is None else ()
    own, labels = class_ids(adapter, given.labels, x)
    ignored = _check.representable(options.ignore_index, own.ops.dtype(labels))
    if classes is None:  # NumPy's ids cannot be compared with it
        own, labels = adapter, ops.asarray(labels, x)
    if own is not adapter:
        _rules.IDS.check(own.ops.shape(labels), known(adapter, rows), logits)
    sample_weight = fitted(adapter, _rules.WEIGHTS, real(adapter, "sample_weight", given.sample_weight, x, dtype), rows)
    table = _class_weight(adapter, given.class_weight, x, dtype, shape[axis : axis + 1])
    denom = _denom(adapter, given.denom, x, dtype)
    mode = _looked_at(adapter, own, labels, classes, ignored, sample_weight, options)
    masked = mode != "raise" or ignored is not None or sample_weight is not None or table is not None
    to_do: tuple[Any, Any] = ignored, mode
    if own is not adapter:
        labels, to_do = ops.asarray(_reduce.code(own.ops, labels, classes, *to_do), x), (None, None)
    labels = fitted(adapter, _rules.IDS, labels, rows, logits)
    layout = Layout(axis, True, masked, options.takes_lse, options.stats)
    plan = Plan(adapter, options, dtype, layout, classes, *to_do, lengths)
    return plan, Operands(x, labels, sample_weight, table, denom, None, given.weight, given.bias)


def _looked_at(
    adapter: Adapter,
    own: Adapter,
    labels: Array,
    classes: int | None,
    ignored: int | None,
    sample_weight: Array | None,
    options: Options,
) -> str:
    """What becomes of ids that are no class, after those that can be read were; "raise": there are none."""
    mode = options.invalid
    if mode == "auto":
        # an id of weight 0 may be anything
        readable = classes is not None and (sample_weight is None or adapter.ops.host(sample_weight) is not None)
        values = own.ops.host(labels) if readable else None
        if values is None:
            return "nan"
    elif mode != "raise":
        return mode
    else:
        if classes is None:
            raise _check.unknown_classes()
        values = own.ops.fetch(labels)
        if values is None:
            raise _check.unreadable_ids()
    assert classes is not None
    _check.ids_in_range(values, classes, ignored, sample_weight, adapter.ops)
    return "raise" if sample_weight is None else "ignore"  # what is left of them has weight 0


# ---- arguments, one by one


def floating(adapter: Adapter, argument: str, value: Array) -> tuple[Array, str]:
    """The array, and the dtype to compute in."""
    value = contents(value)
    _check.dense(argument, adapter, value)
    x = adapter.ops.asarray(value, value)
    dtype = adapter.ops.dtype(x)
    _check.floating(argument, dtype)
    return x, computed_in(dtype)


def with_adapter(adapter: Adapter, argument: str, value: Any, x: Array) -> tuple[Adapter, Array]:
    """value as an array, and whose it is: the logits' framework's or NumPy's."""
    own = find(value, argument)
    _check.same_framework(argument, own, adapter)
    value = contents(value)
    _check.dense(argument, own, value)
    if own is not adapter and adapter.ops.adopts_numpy():
        return adapter, adapter.ops.asarray(value, x)
    return own, own.ops.asarray(value, value)


def class_ids(adapter: Adapter, labels: Any, x: Array) -> tuple[Adapter, Array]:
    own, labels = with_adapter(adapter, "labels", _check.class_ids(labels), x)
    _check.integral("labels", own.ops.dtype(labels))
    return own, labels


def real(adapter: Adapter, argument: str, value: Any, x: Array, dtype: str | None) -> Array | None:
    """value in the framework of x, on its device, in the dtype that is computed in, or its own for None."""
    if value is None:
        return None
    own, value = with_adapter(adapter, argument, value, x)
    _check.real(argument, own.ops.dtype(value))
    value = value if dtype is None else own.ops.astype(value, dtype)
    return adapter.ops.asarray(value, x)


def _class_weight(adapter: Adapter, value: Any, x: Array, dtype: str, classes: Shape) -> Array | None:
    if value is None:
        return None
    return fitted(adapter, _rules.CLASS_WEIGHT, real(adapter, "class_weight", value, x, dtype), classes)


def _denom(adapter: Adapter, value: Any, x: Array, dtype: str) -> Array | None:
    if value is None:
        return None
    return fitted(adapter, _rules.DENOM, real(adapter, "denom", value, x, dtype), ())


def parameter(adapter: Adapter, argument: str, value: Any, h: Array) -> Array:
    found = find(value, argument)
    if found.of_parts is not None:
        raise _check.parameter_in_parts(argument, found.name)
    own, value = with_adapter(adapter, argument, value, h)
    _check.parameter_dtype(argument, own.ops.dtype(value), adapter.ops.dtype(h))
    return adapter.ops.asarray(value, h)


def _with_features(adapter: Adapter, h: Array, shape: Shape, of_weight: Shape) -> Array:
    """Hidden states with as many features as the weight has, which a graph finds out when it runs."""
    assert adapter.ops.unknown is not None
    words = _rules.HEAD.words(of_weight[:1] + shape[-1:], of_weight)
    has, wants = shape[-1], of_weight[1]
    equal = (has >= wants) & (has <= wants)  # `==` compares identities in graphs of TensorFlow 1
    return adapter.ops.unknown.require(h, equal, words, known(adapter, shape)[:-1] + of_weight[1:])


def flattened_rows(
    adapter: Adapter, x: Array, dtype: str, axis: Any, given: Operands
) -> tuple[Array, int, Any, Operands]:
    """`flattened` for class ids."""
    labels = adapter.ops.asarray(class_ids(adapter, given.labels, x)[1], x)
    sample_weight = real(adapter, "sample_weight", given.sample_weight, x, dtype)
    rules = (_rules.IDS, labels), (_rules.WEIGHTS, sample_weight)
    x, axis, lengths, (labels, sample_weight) = flattened(adapter, x, axis, rules)
    return x, axis, lengths, given._replace(labels=labels, sample_weight=sample_weight)
