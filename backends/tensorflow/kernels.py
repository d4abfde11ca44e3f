"""TensorFlow's kernels: `custom_gradient`s that keep the row statistics (m, s), never the probabilities. Their gradient
consists of operations that TensorFlow can differentiate again."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import tensorflow as tf
from tensorflow.python import pywrap_tfe  # no public name says whether there are tapes
from xent import formulas
from xent.adapter import Layout, RowResults

from .native import KERNELS, NATIVE, constant, on_host, order, reachable, tensor, view
from .operators import in_current_graph, of_rank
from .ops import OPS, total
from .rules import custom_gradient
from .tf1 import with_equality

Array = Any


def rows(layout: Layout, x: Array, t: Array | None, smoothing_weights: Array | None, ids: Array | None) -> Any:
    native = reachable(x, t, smoothing_weights, ids) and order(x, t) < 2
    wanted = True, t is not None and (not native or order(t) > 0)

    @custom_gradient
    def kernel(x: Array, t: Array | None = None) -> Any:
        if native:
            found = KERNELS.rows(layout, *map(view, (x, t, smoothing_weights, ids)))
            results = RowResults(*(None if result is None else tensor(result) for result in found))
        else:  # vectorized_map drops custom gradients, and forward mode looks through them
            found = formulas.rows(OPS, layout, formulas.widened(OPS, x), t, smoothing_weights, ids, differentiable=True)
            results = found

        def backward(*upstream: Array) -> Any:
            given = iter(upstream)
            up = tuple(None if k is None else of_rank(next(given), k) for k in results[:3])
            if native and constant(*up):
                coefficients = tuple(map(view, up))
                dx, dt = KERNELS.rows_backward(
                    layout, view(x), view(t), view(smoothing_weights), view(ids), found[3:5], coefficients, wanted
                )
                return tensor(dx) if t is None else (tensor(dx), None if dt is None else tensor(dt))
            wide = formulas.widened(OPS, x)
            parts = formulas.smooth_pieces(OPS, layout, wide, ids, results.m, results.s)
            dx = tf.cast(formulas.pull(OPS, layout, parts, wide, t, smoothing_weights, ids, up), x.dtype)
            return dx if t is None else (dx, formulas.pull_labels(OPS, layout, parts, ids, up))

        return [result for result in results if result is not None], backward

    return row_results(layout, smoothing_weights, kernel(x) if t is None else kernel(x, t))


def row_results(layout: Layout, smoothing_weights: Array | None, found: Any) -> RowResults:
    """RowResults from those of its fields that are not None, in their order."""
    given = iter(found)
    nll, lse, smooth = (
        next(given),
        next(given) if layout.lse else None,
        None if smoothing_weights is None else next(given),
    )
    return RowResults(nll, lse, smooth, *given)


def sigmoid(smoothing: float, x: Array, targets: Array, pos_weight: Array | None, absent: Array | None) -> Array:
    @custom_gradient
    def kernel(x: Array, targets: Array) -> Any:
        wide = formulas.widened(OPS, x)
        loss = formulas.sigmoid(OPS, smoothing, wide, targets, pos_weight, absent)

        def backward(upstream: Array) -> Any:
            upstream, wide = of_rank(upstream, loss), formulas.widened(OPS, x)
            dx, dz = formulas.sigmoid_pull(OPS, smoothing, wide, targets, pos_weight, absent, upstream)
            return tf.cast(dx, x.dtype), dz

        return loss, backward

    return kernel(x, targets)


# ---- loss and derivative in one visit


@tf.autograph.experimental.do_not_convert
def fuse_value_and_grad(loss: Any, both: Any, static: Any, x: Array, *arrays: Array | None) -> Array:
    if not reachable(x, *arrays) or order(*arrays):
        return with_equality(loss, static, x, *arrays)
    highest = order(x)
    if highest == 0:
        return on_host(loss, static, x, *arrays)
    if highest > 1 or x.dtype.size == 2:  # 16 bits are not rounded twice
        return loss(static, x, *arrays)

    @custom_gradient
    def fused(x: Array) -> Any:
        value, dx = on_host(both, static, x, *arrays)
        return value, partial(times, dx)

    return fused(x)


def times(dx: Array, upstream: Array) -> Array:
    """dx * upstream, which leaves dx alone where upstream is 1; a graph decides that when it runs."""
    if tf.executing_eagerly():
        return dx if constant(upstream) and float(upstream) == 1 else dx * upstream
    if order(upstream) > 1:  # forward mode looks through the rule
        return dx * upstream

    @custom_gradient
    def product(dx: Array, upstream: Array) -> Any:
        return tf.cond(upstream == 1, lambda: dx, lambda: dx * upstream), lambda up: (
            up * upstream,
            total(up * dx, None),
        )

    return product(*in_current_graph((dx, upstream)))


@tf.autograph.experimental.do_not_convert
def run(function: Callable[..., Any], static: Any, *arrays: Any) -> Any:
    if reachable(*arrays) and order(*arrays) == 0:
        return on_host(function, static, *arrays)
    return with_equality(function, static, *in_current_graph(arrays))


def needs_framework_autodiff(x: Array) -> bool:
    return not (tf.executing_eagerly() and NATIVE and pywrap_tfe.TFE_Py_TapeSetIsEmpty())


def value_and_grad(f: Callable[[Any], Any], x: Any) -> tuple[Any, Any]:
    with tf.GradientTape() as tape:
        tape.watch(x)
        value = f(x)
    return value, tape.gradient(value[0] if isinstance(value, tuple) else value, x)


def rows_value_and_grad(layout: Layout, x: Array, *rest: Any) -> Any:
    return formulas.rows_value_and_grad(OPS, layout, formulas.widened(OPS, x), *rest)


def sigmoid_value_and_grad(smoothing: float, x: Array, *rest: Any) -> Any:
    return formulas.sigmoid_value_and_grad(OPS, smoothing, formulas.widened(OPS, x), *rest)
