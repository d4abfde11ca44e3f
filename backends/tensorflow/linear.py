"""linear_ce on TensorFlow: NumPy's loop on the memory of tensors that are values, a `tf.while_loop` in graphs.

Where a tape watches the loss, the gradients are formed along with it; where the tape is outside the graph, when they
are asked for. Derivatives of gradients, nested tapes and forward mode take `chunks.composite`.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import tensorflow as tf
from xent import formulas
from xent.adapter import Array, LinearKernels
from xent.backends import numpy as host_numpy
from xent.formulas import linear as chunks
from xent.formulas.linear import LoopOperands, LoopResults, LoopSpec

from . import operators as kernels
from .graph import rows_both_formula
from .kernels import rows, times
from .native import empty, order, reachable, tensor, view
from .operators import derivatives, in_current_graph, inside_vectorized_map, kernel_or_formula, usable, with_values_at
from .ops import OPS
from .rules import custom_gradient

# ---- eager: NumPy's loop, in memory that TensorFlow can adopt


def aligned(shape: tuple[int, ...], like: Any, zeros: bool) -> Any:
    x = empty(shape, like.dtype.name, like)
    if zeros:
        x[...] = 0
    return x


def full(shape: tuple[int, ...], value: float, dtype: str, like: Any) -> Any:
    x = empty(shape, dtype, np.empty(0, dtype))
    x[...] = value
    return x


HOST = replace(host_numpy.LINEAR, ops=replace(host_numpy.OPS, full=full), scan=partial(chunks.scan, aligned))


def host_loop(spec: LoopSpec, wanted: tuple[bool, ...], operands: LoopOperands) -> Any:
    with np.errstate(all="ignore"):
        found = chunks.run(spec._replace(linear=HOST), wanted, LoopOperands(*map(view, operands)))
    return tf.nest.map_structure(lambda k: None if k is None else tensor(k), found)


# ---- graphs


def no_sums(shape: tuple[int, ...], value: float, dtype: str, like: Any) -> Array:
    """An empty array for sums to begin with: zeros would become a constant in the graph, as large as the gradient."""
    return tf.fill([0, shape[1]], tf.constant(value, dtype))


def project(hidden: Array, weight: Array, _over: None = None) -> Array:
    """By einsum: matmul takes twice as long where one side has few rows and the other is transposed."""
    return tf.einsum("nd,cd->nc", formulas.widened(OPS, hidden), formulas.widened(OPS, weight))


def pull(dx: Array, weight: Array) -> Array:
    return tf.matmul(dx, tf.cast(weight, dx.dtype))


def accumulate(sums: Array, dx: Array, hidden: Array) -> Array:
    """Takes a second array like the sums: graphs have no in-place addition that XLA knows as well."""
    product = tf.matmul(dx, tf.cast(hidden, sums.dtype), transpose_a=True)
    return product if sums.shape[0] == 0 else sums + product


def scan(step: Any, carry: Any, rows: Any, chunk: int, keep: None) -> Any:
    """In chunks of equal length where the count has such a divisor; else rows are padded, which takes a copy."""
    known = rows[0].shape[0]
    chunk = chunk if known is None else chunks.even(known, chunk)
    count = tf.shape(rows[0])[0] if known is None else known
    steps = (count + chunk - 1) // chunk
    steps = tf.maximum(steps, 1) if known is None else max(steps, 1)  # no rows: one chunk of padding

    def cut(k: Array | None) -> Array | None:
        if k is None:
            return None
        if known is None or known != steps * chunk:
            k = tf.pad(k, [[0, steps * chunk - count]] + [[0, 0]] * (len(k.shape) - 1))
        return tf.reshape(k, [steps, chunk, *k.shape[1:]])

    cuts = [cut(k) for k in rows]

    def at(i: Any, carry: Any) -> Any:
        return step(carry, *(None if k is None else k[i] for k in cuts))

    carry, first = at(0, carry)  # shows which outputs there are
    arrays = [tf.TensorArray(k.dtype, steps, element_shape=k.shape).write(0, k) for k in kernels.tensors_in(first)]

    def body(i: Array, carried: Any, arrays: Any) -> Any:
        moved, outputs = at(i, kernels.repack(carry, carried))
        written = [array.write(i, k) for array, k in zip(arrays, kernels.tensors_in(outputs), strict=True)]
        return i + 1, kernels.tensors_in(moved), written

    with tf.control_dependencies(
        kernels.tensors_in((carry, first))
    ):  # else the first two chunks could be in memory at once
        start = tf.constant(1)
    loop = (start, kernels.tensors_in(carry), arrays)
    _, carried, arrays = tf.while_loop(lambda i, *_: i < steps, body, loop, parallel_iterations=1)
    joined = [_joined(array.stack(), count) for array in arrays]
    return kernels.repack(carry, carried), kernels.repack(first, joined)


def _joined(k: Array, count: Any) -> Array:
    k = tf.reshape(k, [-1, *k.shape[2:]])
    return k if k.shape[0] == count else k[:count]


def loop(spec: LoopSpec, wanted: tuple[bool, ...], operands: LoopOperands) -> tuple[LoopResults, Any]:
    if reachable(*operands):
        found: tuple[LoopResults, Any] = host_loop(spec, wanted, operands)
        return found
    if not usable():
        return chunks.run(spec, wanted, operands)
    formula, kernel = (partial(chunks.run, spec._replace(linear=linear), wanted) for linear in (LINEAR, KERNELS))
    results, grads = kernel_or_formula(formula, kernel, operands)
    return LoopResults(*results), grads


# ---- the derivative rule


@tf.autograph.experimental.do_not_convert
def head(spec: LoopSpec, operands: LoopOperands) -> tuple[Array, LoopResults]:
    floating = [operands[i] for i in FLOATING]
    if order(*floating) > 1 or inside_vectorized_map():
        value, results = chunks.composite(spec, operands)
    else:
        value, results = _head(spec, operands)
    return value, tf.nest.map_structure(lambda k: None if k is None else tf.stop_gradient(k), results)


FLOATING = [i for i, name in enumerate(LoopOperands._fields) if name not in ("smoothing_weights", "ids")]


def _head(spec: LoopSpec, operands: LoopOperands) -> tuple[Array, LoopResults]:
    places = [i for i in FLOATING if operands[i] is not None]
    wanted: Any = tuple(not spec.each and k is not None and order(k) > 0 for k in operands.parameters)
    asked_for: list[bool] = []

    @custom_gradient
    def kernel(*_: Array) -> Any:
        results, grads = loop(spec, wanted, operands)
        value = chunks.value(spec, results, operands)
        asked_for[:] = [k is not None for k in results]

        def backward(upstream: Array, *_: Any) -> list[Array | None]:
            early = grads if any(wanted) else None
            found = dict(_pull(spec, places, operands, results, early, upstream))
            if not tf.executing_eagerly() and len(found) < len(places):  # an outer tape may need them later
                found = dict(_pull(spec, places, operands, results, None, upstream)) | found
            return [found.get(i) for i in places]

        return (value, *(k for k in results if k is not None)), backward

    value, *found = kernel(*(operands[i] for i in places))
    given = iter(found)
    return value, LoopResults(*(next(given) if is_there else None for is_there in asked_for))


def _pull(
    spec: LoopSpec, places: list[int], operands: LoopOperands, results: LoopResults, early: Any, upstream: Array
) -> Any:
    """Pairs (place, derivative), from `early` gradients or computed now. They can be differentiated again."""
    upstream, operands = in_current_graph((upstream, operands))
    in_slopes = chunks.in_slopes(results)
    chosen = [i for i in places if i > 2 or early is None or early[i] is not None]

    @custom_gradient
    def pull(upstream: Array, *_: Array) -> Any:
        grads = early
        if early is None:
            scaled = operands.with_slopes(*(None if k is None else k * upstream for k in operands.slopes))
            _, grads = loop(spec, (True, True, operands.bias is not None), scaled)
        else:
            grads = [None if d is None else times(d, upstream) for d in early]
        typed = (None if d is None else tf.cast(d, k.dtype) for d, k in zip(grads, operands.parameters, strict=True))
        slots = (*typed, None, None, *(None if k is None else k * upstream for k in in_slopes))

        def backward(*up: Array) -> Any:
            given = in_current_graph(operands)

            def first(moved: list[Array]) -> list[Array]:
                around = with_values_at(given, places, moved[1:])

                def value(floats: Any) -> Array:
                    return chunks.composite(spec, LoopOperands(*with_values_at(around, chosen, floats)))[0]

                return derivatives(value, [around[i] for i in chosen], moved[:1])

            return derivatives(first, [upstream, *(given[i] for i in places)], up)

        return [slots[i] for i in chosen], backward

    return zip(chosen, pull(upstream, *(operands[i] for i in places)), strict=True)


LINEAR = LinearKernels(
    ops=replace(OPS, full=no_sums),
    rows=rows,
    rows_value_and_grad=rows_both_formula,
    tanh=tf.tanh,
    matmul=project,
    flat=lambda x, kept: tf.reshape(x, [-1, *x.shape[len(x.shape) - kept :]]),
    shaped=lambda x, like: tf.reshape(x, tf.shape(like)),
    project=project,
    buffer=lambda rows, classes, dtype, like: None,
    pull=pull,
    accumulate=accumulate,
    scan=scan,
    head=head,
    memory=lambda x: chunks.MEMORY,
)
KERNELS = replace(
    LINEAR,
    rows=kernels.rows,
    rows_value_and_grad=kernels.rows_value_and_grad,
    project=kernels.project,
    pull=kernels.pull,
    accumulate=kernels.accumulate,
)
