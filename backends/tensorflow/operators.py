"""The kernels as operators of TensorFlow's graphs, in the place of xent's formulas.

A graph does not know where it will run, nor whether XLA will compile it. So it holds a call of the formulas, and this
process has a function of the kernels under the same name; TensorFlow's own graph optimizer takes that one where it
finds the call on a CPU (as Keras had it choose between cuDNN's LSTM and its own). XLA and GPUs keep the formulas, and
so does a graph that is saved: it runs where xent is not installed.
"""

from __future__ import annotations

import ctypes
import uuid
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import tensorflow as tf
from tensorflow.python.eager import record  # no public name makes all tapes look away
from tensorflow.python.eager.context import eager_mode  # nor leaves a graph of TensorFlow 1
from xent.adapter import Array, Layout, RowResults, Scalar, computed_in
from xent.backends import dense
from xent.backends.cpu.calls import native

# ---- the operators


def load() -> Any:
    """None where there are none, or the TensorFlow at hand does not take them."""
    if native is None:
        return None
    library = Path(native.__file__).with_name("_tensorflow.so")  # where an editable install puts both
    if not library.exists():
        return None
    try:
        operators = tf.load_op_library(str(library))
    except (tf.errors.OpError, RuntimeError):
        return None
    if not hasattr(operators, "xent_accumulate"):  # the last one
        return None
    attach = ctypes.CDLL(str(library)).xent_attach
    attach.restype = ctypes.c_bool
    return operators if attach(ctypes.c_void_p(native.runners())) else None


OPERATORS = load()


def usable() -> bool:
    """In a graph, unless it is plain already that XLA will compile it, or that it is inside of tf.vectorized_map."""
    return (
        OPERATORS is not None
        and not tf.executing_eagerly()
        and tf.__internal__.get_enclosing_xla_context() is None
        and not inside_vectorized_map()
    )


def inside_vectorized_map() -> bool:
    """Inside tf.vectorized_map, by the scope that it traces in."""
    return any(scope.startswith("loop_body") for scope in tf.get_current_name_scope().split("/"))


# ---- the choice


class Traced:
    """A body as a function of TensorFlow's that is outside of every graph, whose own tensors it may not take."""

    def __init__(self, body: Callable[..., Any], operands: Any, **attributes: str) -> None:
        self.given = [k for k in tf.nest.flatten(operands) if tf.is_tensor(k)]

        def run(*given: Array) -> list[Array]:
            self.results = body(*repack(operands, given))
            return tensors_in(self.results)

        with tf.init_scope(), eager_mode():
            function = tf.function(run, autograph=False, experimental_attributes=attributes)
            self.function = function.get_concrete_function(*(tf.TensorSpec(k.shape, k.dtype) for k in self.given))

    def call(self) -> Any:
        return repack(self.results, self.function(*self.given))


# By the formula whose place it takes. TensorFlow drops a function that nothing refers to.
KERNEL_OF: weakref.WeakKeyDictionary[Any, Any] = weakref.WeakKeyDictionary()


def kernel_or_formula(formula: Callable[..., Any], kernel: Callable[..., Any], *operands: Any) -> Any:
    """formula(*operands), or kernel(*operands) where that can run, whose derivatives on tapes are the caller's to say.

    Operands and results are tensors, Python numbers, None, and tuples of such; both functions give results alike.
    """
    name = f"xent_{uuid.uuid4().hex}"  # no name that a graph was saved with elsewhere
    fast, default = (
        Traced(body, operands, api_implements=name, api_preferred_device=device)
        for body, device in ((kernel, "CPU"), (formula, "NONE"))
    )
    KERNEL_OF[default.function.inference_fn] = fast.function
    with record.stop_recording():  # a tape would have TensorFlow call another function, which gives more
        return default.call()


def tensors_in(results: Any) -> list[Array]:
    return [k for k in tf.nest.flatten(results) if k is not None]


def repack(like: Any, tensors: Any) -> Any:
    """`like` with these in the place of its tensors."""
    left = iter(tensors)
    return tf.nest.map_structure(lambda k: next(left) if tf.is_tensor(k) else k, like)


def with_values_at(operands: Any, places: list[int], values: Any) -> list[Any]:
    """The operands with these values in those places."""
    moved = dict(zip(places, values, strict=True))
    return [moved.get(i, k) for i, k in enumerate(operands)]


def of_rank(upstream: Array, result: Array) -> Array:
    """An upstream gradient that has its result's rank: TensorFlow 1's placeholders need have none."""
    return upstream if upstream.shape.rank is not None else tf.ensure_shape(upstream, result.shape)


def in_current_graph(operands: Any) -> Any:
    """In this graph, which may be that of a derivative: that one's derivatives do not reach what is further out."""
    if tf.executing_eagerly():
        return operands
    return tf.nest.map_structure(lambda k: tf.identity(k) if tf.is_tensor(k) else k, operands)


def derivatives(f: Callable[[Any], Any], floats: Any, up: Any) -> list[Array]:
    """Of sum(up f(floats)). In graphs not by a tape, which sees nothing while forward mode is at work."""
    if not tf.executing_eagerly():
        floats = in_current_graph(list(floats))
        return list(tf.gradients(tensors_in(f(floats)), floats, list(up), unconnected_gradients="zero"))
    with tf.GradientTape() as tape:
        tape.watch(floats)
        results = f(floats)
    return list(tape.gradient(results, floats, up, unconnected_gradients="zero"))


def replaced(
    formula: Callable[..., Any], kernel: Callable[..., Any], smooth: Callable[..., Any], *operands: Any
) -> Any:
    """The same, with the derivatives of smooth(*operands), which are computed when they are asked for."""
    flat = tf.nest.flatten(in_current_graph(operands))
    places = [i for i, k in enumerate(flat) if tf.is_tensor(k) and k.dtype.is_floating]

    def moved(floats: Any) -> Any:
        return tf.nest.pack_sequence_as(operands, with_values_at(flat, places, floats))

    results = None

    @tf.custom_gradient
    def call(*floats: Array) -> Any:
        nonlocal results
        results = kernel_or_formula(formula, kernel, *moved(floats))
        return tensors_in(results), lambda *up: derivatives(
            lambda floats: smooth(*in_current_graph(moved(floats))), floats, up
        )

    found = call(*(flat[i] for i in places))
    return repack(results, found)


# ---- `Kernels`, in a graph. An operand that is not there has no elements, nor has a result.


def _compute(x: Array) -> Any:
    return tf.as_dtype(computed_in(x.dtype.name))


def _empty(x: Array, *operands: Array | None) -> list[Array]:
    return [tf.zeros([0], _compute(x)) if k is None else k for k in operands]


def _ids(x: Array, ids: Array | None, axis: int) -> Array:
    return tf.zeros([0], tf.int32) if ids is None else _each_row(x, ids, axis)


def _each_row(x: Array, k: Scalar, axis: int) -> Array:
    """One for each row."""
    if not isinstance(k, float) and k.shape.is_fully_defined() and k.shape == _without(x.shape, axis):
        return k
    return tf.broadcast_to(tf.convert_to_tensor(k, _compute(x)) if isinstance(k, float) else k, _rows(x, axis))


def _rows(x: Array, axis: int) -> Array:
    shape = tf.shape(x)
    return tf.concat([shape[:axis], shape[axis + 1 :]], 0)


def _without(shape: Any, axis: int) -> Any:
    return shape[:axis].concatenate(shape[axis + 1 :])


def _shaped(shape: Any, *results: Array) -> None:
    for result in results:
        result.set_shape(shape)


def _row_results(layout: Layout, x: Array, u: Array | None, results: Any) -> Any:
    m, s, loss, lse, smooth = results
    _shaped(_without(x.shape, layout.axis), m, s, loss)
    given = loss, lse if layout.lse else None, None if u is None else smooth
    _shaped(loss.shape, *(k for k in given if k is not None))
    m, s = (tf.expand_dims(k, layout.axis) for k in (m, s))
    return RowResults(*given, m, s)


def rows(layout: Layout, x: Array, t: Array | None, u: Array | None, ids: Array | None) -> Any:
    operands = *_empty(x, t, u), _ids(x, ids, layout.axis)
    return _row_results(layout, x, u, OPERATORS.xent_rows(x, *operands, axis=layout.axis, with_lse=layout.lse))


def rows_backward(labels: bool, layout: Layout, x: Array, t: Any, u: Any, ids: Any, stats: Any, up: Any) -> Array:
    """In the labels, or else in the logits."""
    per_row = [None if k is None else _each_row(x, k, layout.axis) for k in up]
    operands = (
        *_empty(x, t, u),
        _ids(x, ids, layout.axis),
        *(tf.squeeze(k, layout.axis) for k in stats),
        *_empty(x, *per_row),
    )
    d = OPERATORS.xent_rows_backward(x, *operands, axis=layout.axis, labels=labels)[labels]
    _shaped(x.shape, d)
    return d


def rows_value_and_grad(layout: Layout, x: Array, t: Any, u: Any, ids: Any, *slopes: Scalar | None) -> Any:
    per_row = [None if k is None else _each_row(x, k, layout.axis) for k in slopes]
    operands = *_empty(x, t, u), _ids(x, ids, layout.axis), *_empty(x, *per_row)
    *results, dx = OPERATORS.xent_rows_both(x, *operands, axis=layout.axis, with_lse=layout.lse)
    _shaped(x.shape, dx)
    return _row_results(layout, x, u, results), dx


def _elements(
    smoothing: float, x: Array, targets: Array, *patterns: Array | None
) -> tuple[list[Array], dict[str, int]]:
    arrays, inners = zip(*(_pattern(x, k) for k in patterns), strict=True)
    return [x, targets, *arrays, tf.constant(smoothing, tf.float64)], dict(
        zip(("p_inner", "w_inner"), inners, strict=True)
    )


def _pattern(x: Array, k: Array | None) -> tuple[Array, int]:
    if k is None:
        return *_empty(x, k), 1
    if not (x.shape.is_fully_defined() and k.shape.is_fully_defined()):
        return tf.broadcast_to(k, tf.shape(x)), 1
    shape, inner = dense.pattern(tuple(k.shape), tuple(x.shape))
    return tf.broadcast_to(k, shape), inner


def sigmoid(
    smoothing: float, x: Array, targets: Array, pos_weight: Array | None, weight: Array | None, each: bool
) -> Array:
    operands, inner = _elements(smoothing, x, targets, pos_weight, weight)
    loss, total = OPERATORS.xent_sigmoid(*operands, **inner, each=each)
    _shaped(x.shape if each else (), loss if each else total)
    return loss if each else total


def sigmoid_backward(labels: bool, smoothing: float, x: Array, targets: Array, pos_weight: Any, weight: Array) -> Array:
    """In the labels, or else in the logits."""
    operands, inner = _elements(smoothing, x, targets, pos_weight, weight)
    d = OPERATORS.xent_sigmoid_backward(*operands, tf.ones([], _compute(x)), **inner, labels=labels)[labels]
    _shaped(x.shape, d)
    return d


def sigmoid_value_and_grad(
    smoothing: float, x: Array, targets: Array, pos_weight: Any, weight: Any, g: Scalar, each: bool
) -> tuple[Array, Array]:
    operands, inner = _elements(smoothing, x, targets, pos_weight, weight)
    loss, total, dx = OPERATORS.xent_sigmoid_both(*operands, tf.convert_to_tensor(g, _compute(x)), **inner, each=each)
    _shaped(x.shape, dx, *[loss] * each)
    _shaped((), total)
    return (loss if weight is None else weight * loss) if each else total, dx


def project(h: Array, weight: Array, _over: None = None) -> Array:
    x = OPERATORS.xent_project(h, weight, C=_compute(h))
    _shaped((h.shape[0], weight.shape[0]), x)
    return x


def pull(dx: Array, weight: Array) -> Array:
    dh = OPERATORS.xent_pull(dx, weight)
    _shaped((dx.shape[0], weight.shape[1]), dh)
    return dh


def accumulate(sums: Array, dx: Array, h: Array) -> Array:
    """In the memory of the sums; the first has none."""
    total = OPERATORS.xent_accumulate(sums, dx, h)
    _shaped((dx.shape[1], h.shape[1]), total)
    return total
