"""The kernels as operators of TensorFlow's graphs, in the place of xent's formulas.

A graph does not know where it will run, nor whether XLA will compile it. So it calls a function of the formulas, and
this process registers a function of the kernels as another implementation of it. TensorFlow's graph optimizer swaps
that one in where the call runs on a CPU, a mechanism that Keras used for cuDNN's LSTM. XLA and GPUs keep the formulas,
and so does a saved graph, which can run where xent is not installed.
"""

from __future__ import annotations

import ctypes
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import tensorflow as tf
from tensorflow.python.eager import record  # no public name makes all tapes look away
from tensorflow.python.eager.context import eager_mode  # nor leaves a graph of TensorFlow 1
from xent.adapter import Array, Layout, RowResults, Scalar, Slopes, computed_in
from xent.backends import dense
from xent.backends.cpu.calls import native

from .rules import custom_gradient

# ---- the operators


def load() -> Any:
    """TensorFlow's module of the operators; None where they were not built or this TensorFlow does not load them."""
    if native is None:
        return None
    library = Path(native.__file__).with_name("_tensorflow.so")  # an editable install puts both there
    if not library.exists():
        return None
    try:
        operators = tf.load_op_library(str(library))
    except (tf.errors.OpError, RuntimeError):
        return None
    if not hasattr(operators, "xent_accumulate"):  # registered last: all are there, or none
        return None
    attach = ctypes.CDLL(str(library)).xent_attach
    attach.restype = ctypes.c_bool
    return operators if attach(ctypes.c_void_p(native.runners())) else None


OPERATORS = load()


def usable() -> bool:
    """In a graph that is neither known to be compiled by XLA nor inside tf.vectorized_map."""
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
    """A tf.function of `body`, traced outside of the current graph, so that it captures none of its tensors."""

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


def kernel_or_formula(formula: Callable[..., Any], kernel: Callable[..., Any], *operands: Any) -> Any:
    """kernel(*operands) where that can run, else formula(*operands); the caller attaches the derivatives.

    Operands and results are tensors, Python numbers, None, and tuples of these. Both functions return the same.
    """
    name = f"xent_{uuid.uuid4().hex}"  # unique, also among graphs that were saved elsewhere
    fast, default = (
        Traced(body, operands, api_implements=name, api_preferred_device=device)
        for body, device in ((kernel, "CPU"), (formula, "NONE"))
    )
    # The kernel's function lives as long as the formula's: TensorFlow drops functions that nothing refers to.
    default.function.inference_fn.xent_kernel = fast.function
    with record.stop_recording():  # under a tape TensorFlow would call another function
        return default.call()


def tensors_in(results: Any) -> list[Array]:
    return [k for k in tf.nest.flatten(results) if k is not None]


def repack(like: Any, tensors: Any) -> Any:
    """`like` with `tensors` in the place of its own."""
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
    """Copies in the current graph. It may be a derivative's, where tf.gradients cannot reach tensors outside it, or a
    branch's, whose derivative cannot use them."""
    if tf.executing_eagerly():
        return operands
    return tf.nest.map_structure(lambda k: tf.identity(k) if tf.is_tensor(k) else k, operands)


def derivatives(f: Callable[[Any], Any], floats: Any, up: Any) -> list[Array]:
    """Derivatives of sum(up f(floats)). In graphs by tf.gradients: a tape records nothing during forward mode."""
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
    """`kernel_or_formula` whose derivatives are those of smooth(*operands), computed when they are asked for."""
    flat = tf.nest.flatten(in_current_graph(operands))
    places = [i for i, k in enumerate(flat) if tf.is_tensor(k) and k.dtype.is_floating]

    def moved(floats: Any) -> Any:
        return tf.nest.pack_sequence_as(operands, with_values_at(flat, places, floats))

    results = None

    @custom_gradient
    def call(*floats: Array) -> Any:
        nonlocal results
        results = kernel_or_formula(formula, kernel, *moved(floats))
        return tensors_in(results), lambda *up: derivatives(
            lambda floats: smooth(*in_current_graph(moved(floats))), floats, up
        )

    found = call(*(flat[i] for i in places))
    return repack(results, found)


# ---- the methods of `Kernels`, in a graph. An empty tensor stands for None, among operands and results.


def _compute(x: Array) -> Any:
    return tf.as_dtype(computed_in(x.dtype.name))


def _empty(x: Array, *operands: Array | None) -> list[Array]:
    return [tf.zeros([0], _compute(x)) if k is None else k for k in operands]


def _ids(x: Array, ids: Array | None, axis: int) -> Array:
    return tf.zeros([0], tf.int32) if ids is None else _each_row(x, ids, axis)


def _each_row(x: Array, array: Scalar, axis: int) -> Array:
    """The array broadcast to one element for each row."""
    if not isinstance(array, float) and array.shape.is_fully_defined() and array.shape == _without(x.shape, axis):
        return array
    return tf.broadcast_to(
        tf.convert_to_tensor(array, _compute(x)) if isinstance(array, float) else array, _rows(x, axis)
    )


def _rows(x: Array, axis: int) -> Array:
    shape = tf.shape(x)
    return tf.concat([shape[:axis], shape[axis + 1 :]], 0)


def _without(shape: Any, axis: int) -> Any:
    return shape[:axis].concatenate(shape[axis + 1 :])


def _shaped(shape: Any, *results: Array) -> None:
    for result in results:
        result.set_shape(shape)


def _row_results(layout: Layout, x: Array, smoothing_weights: Array | None, results: Any) -> Any:
    m, s, loss, lse, smooth, *for_stats = results
    _shaped(_without(x.shape, layout.axis), m, s, loss)
    given = loss, lse if layout.lse else None, None if smoothing_weights is None else smooth
    kept = m, s, *(for_stats if layout.stats else ())
    _shaped(loss.shape, *(k for k in (*given, *kept) if k is not None))
    return RowResults(*given, *(tf.expand_dims(k, layout.axis) for k in kept))


def _attributes(layout: Layout) -> dict[str, Any]:
    return {"axis": layout.axis, "with_lse": layout.lse, "with_stats": layout.stats}


def rows(layout: Layout, x: Array, t: Array | None, smoothing_weights: Array | None, ids: Array | None) -> Any:
    operands = *_empty(x, t, smoothing_weights), _ids(x, ids, layout.axis)
    return _row_results(layout, x, smoothing_weights, OPERATORS.xent_rows(x, *operands, **_attributes(layout)))


def rows_backward(
    labels: bool, layout: Layout, x: Array, t: Any, smoothing_weights: Any, ids: Any, stats: Any, up: Any
) -> Array:
    """The derivative in the labels if `labels`, else in the logits."""
    per_row = [None if k is None else _each_row(x, k, layout.axis) for k in up]
    operands = (
        *_empty(x, t, smoothing_weights),
        _ids(x, ids, layout.axis),
        *(tf.squeeze(k, layout.axis) for k in stats),
        *_empty(x, *per_row),
    )
    d = OPERATORS.xent_rows_backward(x, *operands, axis=layout.axis, labels=labels)[labels]
    _shaped(x.shape, d)
    return d


def rows_value_and_grad(layout: Layout, x: Array, t: Any, smoothing_weights: Any, ids: Any, slopes: Slopes) -> Any:
    per_row = [None if k is None else _each_row(x, k, layout.axis) for k in slopes]
    operands = *_empty(x, t, smoothing_weights), _ids(x, ids, layout.axis), *_empty(x, *per_row)
    *results, dx = OPERATORS.xent_rows_both(x, *operands, **_attributes(layout))
    _shaped(x.shape, dx)
    return _row_results(layout, x, smoothing_weights, results), dx


def _elements(
    smoothing: float, x: Array, targets: Array, *patterns: Array | None
) -> tuple[list[Array], dict[str, int]]:
    arrays, inners = zip(*(_pattern(x, k) for k in patterns), strict=True)
    return [x, targets, *arrays, tf.constant(smoothing, tf.float64)], dict(
        zip(("p_inner", "w_inner"), inners, strict=True)
    )


def _pattern(x: Array, array: Array | None) -> tuple[Array, int]:
    if array is None:
        return *_empty(x, array), 1
    if not (x.shape.is_fully_defined() and array.shape.is_fully_defined()):
        return tf.broadcast_to(array, tf.shape(x)), 1
    shape, inner = dense.pattern(tuple(array.shape), tuple(x.shape))
    return tf.broadcast_to(array, shape), inner


def sigmoid(
    smoothing: float, x: Array, targets: Array, pos_weight: Array | None, weight: Array | None, each: bool
) -> Array:
    operands, inner = _elements(smoothing, x, targets, pos_weight, weight)
    loss, total = OPERATORS.xent_sigmoid(*operands, **inner, each=each)
    _shaped(x.shape if each else (), loss if each else total)
    return loss if each else total


def sigmoid_backward(labels: bool, smoothing: float, x: Array, targets: Array, pos_weight: Any, weight: Array) -> Array:
    """The derivative in the labels if `labels`, else in the logits."""
    operands, inner = _elements(smoothing, x, targets, pos_weight, weight)
    d = OPERATORS.xent_sigmoid_backward(*operands, tf.ones([], _compute(x)), **inner, labels=labels)[labels]
    _shaped(x.shape, d)
    return d


def sigmoid_value_and_grad(
    smoothing: float, x: Array, targets: Array, pos_weight: Any, weight: Any, upstream: Scalar, each: bool
) -> tuple[Array, Array]:
    operands, inner = _elements(smoothing, x, targets, pos_weight, weight)
    loss, total, dx = OPERATORS.xent_sigmoid_both(
        *operands, tf.convert_to_tensor(upstream, _compute(x)), **inner, each=each
    )
    _shaped(x.shape, dx, *[loss] * each)
    _shaped((), total)
    return (loss if weight is None else weight * loss) if each else total, dx


def project(hidden: Array, weight: Array, _over: None = None) -> Array:
    x = OPERATORS.xent_project(hidden, weight, C=_compute(hidden))
    _shaped((hidden.shape[0], weight.shape[0]), x)
    return x


def pull(dx: Array, weight: Array) -> Array:
    dh = OPERATORS.xent_pull(dx, weight)
    _shaped((dx.shape[0], weight.shape[1]), dh)
    return dh


def accumulate(sums: Array, dx: Array, hidden: Array) -> Array:
    """sums + dx.T @ hidden in the memory of the sums. Empty sums stand for 0."""
    total = OPERATORS.xent_accumulate(sums, dx, hidden)
    _shaped((dx.shape[1], hidden.shape[1]), total)
    return total
