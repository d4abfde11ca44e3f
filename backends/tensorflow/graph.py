"""TensorFlow's graphs: the kernels where they can run, the formulas where not, and the derivatives of both.

Each function calls its namesake in kernels.py where there is no graph, or where the formulas are needed: in forward
mode and nested tapes (`order`), vectorized_map and XLA.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import tensorflow as tf
from xent import formulas
from xent.adapter import Array, Layout, Slopes

from . import kernels as plain
from . import operators as kernels
from .kernels import row_results, times
from .native import order
from .operators import derivatives, in_current_graph, kernel_or_formula, of_rank, replaced, usable, with_values_at
from .ops import OPS
from .rules import custom_gradient
from .tf1 import with_equality

wide = partial(formulas.widened, OPS)


# ---- rows


def rows(layout: Layout, x: Array, t: Array | None, smoothing_weights: Array | None, ids: Array | None) -> Any:
    if not usable() or order(x, t) > 1:
        return plain.rows(layout, x, t, smoothing_weights, ids)

    @custom_gradient
    def kernel(x: Array, t: Array | None = None) -> Any:
        results = kernel_or_formula(partial(_rows, layout), partial(kernels.rows, layout), x, t, smoothing_weights, ids)

        def backward(*upstream: Array) -> Any:
            given = iter(upstream)
            up = tuple(None if k is None else of_rank(next(given), k) for k in results[:3])

            def pull(labels: bool) -> Array:
                each = (partial(f, labels, layout) for f in (_rows_backward, kernels.rows_backward, _rows_further))
                return replaced(*each, x, t, smoothing_weights, ids, (results.m, results.s), up)

            return pull(False) if t is None else (pull(False), pull(True))  # TensorFlow drops the one that is not used

        return [result for result in results if result is not None], backward

    return row_results(layout, smoothing_weights, kernel(x) if t is None else kernel(x, t))


def rows_value_and_grad(layout: Layout, x: Array, *rest: Any) -> Any:
    if not usable():
        return plain.rows_value_and_grad(layout, x, *rest)
    formula, kernel = (partial(f, layout) for f in (rows_both_formula, kernels.rows_value_and_grad))
    return replaced(formula, kernel, formula, x, *rest)


def _rows(layout: Layout, x: Array, *rest: Any) -> Any:
    return formulas.rows(OPS, layout, wide(x), *rest, differentiable=True)


def _rows_backward(
    labels: bool,
    layout: Layout,
    x: Array,
    t: Any,
    smoothing_weights: Any,
    ids: Any,
    stats: Any,
    up: Any,
    pieces: Any = formulas.pieces,
) -> Array:
    parts = pieces(OPS, layout, wide(x), ids, *stats)
    if labels:
        return formulas.pull_labels(OPS, layout, parts, ids, up)
    return tf.cast(formulas.pull(OPS, layout, parts, wide(x), t, smoothing_weights, ids, up), x.dtype)


_rows_further = partial(_rows_backward, pieces=formulas.smooth_pieces)  # the statistics are constants


def rows_both_formula(layout: Layout, x: Array, t: Any, smoothing_weights: Any, ids: Any, slopes: Slopes) -> Any:
    """`formulas.rows_value_and_grad` with results that TensorFlow can differentiate."""
    results = _rows(layout, x, t, smoothing_weights, ids)
    up = slopes.coefficients(results.lse)
    return results, _rows_further(False, layout, x, t, smoothing_weights, ids, (results.m, results.s), up)


# ---- elements


def sigmoid(smoothing: float, x: Array, targets: Array, pos_weight: Array | None, absent: Array | None) -> Array:
    if not usable() or order(x, targets) > 1:
        return plain.sigmoid(smoothing, x, targets, pos_weight, absent)

    @custom_gradient
    def kernel(x: Array, targets: Array) -> Any:
        value = kernel_or_formula(
            partial(_sigmoid, smoothing), partial(_sigmoid_kernel, smoothing), x, targets, pos_weight, absent
        )
        return value, lambda g: _sigmoid_pull(smoothing, x, targets, pos_weight, absent, of_rank(g, value))

    return kernel(x, targets)


def sigmoid_total(smoothing: float, x: Array, targets: Array, pos_weight: Array | None, weight: Array | None) -> Array:
    absent = None if weight is None else weight == 0
    if not usable() or order(x, targets, weight) > 1:
        return _weighted(plain.sigmoid(smoothing, x, targets, pos_weight, absent), weight)

    @custom_gradient
    def kernel(x: Array, targets: Array, weight: Array | None = None) -> Any:
        value = kernel_or_formula(
            partial(_sigmoid_sum, smoothing),
            partial(kernels.sigmoid, smoothing, each=False),
            x,
            targets,
            pos_weight,
            weight,
        )

        def backward(upstream: Array) -> Any:
            x_, z_, p_, w_, absent_ = in_current_graph((x, targets, pos_weight, weight, absent))
            pulled = _sigmoid_pull(smoothing, x_, z_, p_, absent_, upstream if weight is None else upstream * w_)
            if weight is None:
                return pulled
            loss = sigmoid(smoothing, x_, z_, p_, absent_)
            return *pulled, *derivatives(lambda weight: _weighted(loss, *weight), [w_], [upstream])

        return value, backward

    return kernel(x, targets) if weight is None else kernel(x, targets, weight)


def sigmoid_value_and_grad(smoothing: float, x: Array, *rest: Any) -> Any:
    if not usable():
        return plain.sigmoid_value_and_grad(smoothing, x, *rest)
    *operands, each = rest
    formula, kernel = (partial(f, smoothing, each=each) for f in (_sigmoid_both, kernels.sigmoid_value_and_grad))
    return replaced(formula, kernel, formula, x, *operands)


def _sigmoid(smoothing: float, x: Array, targets: Array, pos_weight: Any, absent: Any) -> Array:
    return formulas.sigmoid(OPS, smoothing, wide(x), targets, pos_weight, absent)


def _sigmoid_kernel(smoothing: float, x: Array, targets: Array, pos_weight: Any, absent: Any) -> Array:
    return kernels.sigmoid(
        smoothing, x, targets, pos_weight, None if absent is None else tf.cast(~absent, targets.dtype), each=True
    )


def _weighted(loss: Array, weight: Array | None) -> Array:
    return OPS.sum(loss if weight is None else weight * loss, None)


def _sigmoid_sum(smoothing: float, x: Array, targets: Array, pos_weight: Any, weight: Any) -> Array:
    return _weighted(_sigmoid(smoothing, x, targets, pos_weight, None if weight is None else weight == 0), weight)


def _sigmoid_pull(
    smoothing: float, x: Array, targets: Array, pos_weight: Any, absent: Any, upstream: Array
) -> tuple[Array, ...]:
    """Derivatives in logits and labels; TensorFlow drops one that is not used."""

    def pull(labels: bool) -> Array:
        formula, kernel = (partial(f, labels, smoothing) for f in (_sigmoid_backward, _sigmoid_backward_kernel))
        return replaced(formula, kernel, formula, x, targets, pos_weight, absent, upstream)

    return pull(False), pull(True)


def _sigmoid_backward(
    labels: bool, smoothing: float, x: Array, targets: Array, pos_weight: Any, absent: Any, upstream: Array
) -> Array:
    d = formulas.sigmoid_pull(OPS, smoothing, wide(x), targets, pos_weight, absent, upstream)[labels]
    return tf.cast(d, targets.dtype if labels else x.dtype)


def _sigmoid_backward_kernel(
    labels: bool, smoothing: float, x: Array, targets: Array, pos_weight: Any, absent: Any, upstream: Array
) -> Array:
    """The upstream gradient of each element goes in as its weight: where it is 0, so is the result."""
    weight = upstream if absent is None else OPS.where(absent, 0.0, upstream)
    return kernels.sigmoid_backward(labels, smoothing, x, targets, pos_weight, weight)


def _sigmoid_both(smoothing: float, x: Array, *rest: Any, each: bool) -> Any:
    loss, dx = plain.sigmoid_value_and_grad(smoothing, x, *rest, each)
    return loss, tf.cast(dx, x.dtype)


# ---- loss and derivative in one visit


@tf.autograph.experimental.do_not_convert
def fuse_value_and_grad(loss: Any, both: Any, static: Any, x: Array, *arrays: Array | None) -> Array:
    x, *arrays = in_current_graph((x, *arrays))
    if not usable():
        return plain.fuse_value_and_grad(loss, both, static, x, *arrays)
    if order(x) != 1 or order(*arrays) or x.dtype.size == 2:  # 16 bits are not rounded twice
        return with_equality(loss, static, x, *arrays)
    places = [i for i, k in enumerate(arrays) if k is not None and k.dtype.is_floating]

    @custom_gradient
    def fused(x: Array, *_: Array) -> Any:
        """A function of the other operands too: a tape outside the graph may ask for their derivatives later."""
        value, dx = both(static, x, *arrays)

        def backward(upstream: Array) -> Any:
            logits, given = in_current_graph((x, arrays))

            def again(floats: Any) -> Array:
                return loss(static, logits, *with_values_at(given, places, floats))

            others = derivatives(again, [given[i] for i in places], [upstream]) if places else ()
            return times(dx, upstream), *others

        return value, backward

    return fused(x, *(arrays[i] for i in places))
