"""Softmax losses: per-row results from the statistics about the maximum, and their derivatives in both modes."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

from xent._reduce import along
from xent.adapter import ABSENT, INVALID, Array, Layout, Ops, RowResults, Scalar, Slopes, SoftmaxKernels

from .sums import INF, NAN, times


def finite_or_nan(ops: Ops, m: Array) -> Array:
    """A row whose maximum is infinite has no softmax: NaN, as every framework says (fp16 overflow must show)."""
    return ops.where(ops.abs(m) == INF, NAN, m)


def top(ops: Ops, x: Array, axis: int, barrier: Callable[[Array], Array] = lambda m: m) -> tuple[Array, Array]:
    """`Ops.top` without an argmax, which compilers neither fuse nor vectorise.

    `barrier` keeps a compiler from computing both sums in one loop, which some of them then do not vectorise.
    """
    m = finite_or_nan(ops, ops.max(x, axis))
    others = ops.sum(ops.where(x == m, 0.0, ops.exp(x - m)), axis)
    ties = ops.sum(ops.astype(x == barrier(m), ops.dtype(x)), axis)
    return m, others + (ties - 1)


def behind(ops: Ops, x: Array, m: Array) -> Array:
    """m - x, and exactly 0 at the maximum.

    When compiled, a subtraction alone is not always 0 there: if x is a product, x - m becomes a fused multiply-add,
    which subtracts the rounded product m from the exact one. A comparison is not affected.
    """
    return ops.where(x == m, 0.0, m - x)


def _zero_at_maximum(ops: Ops, x: Array, m: Array) -> Array:
    """0, with x's derivative where x is maximal."""
    largest = ops.where(x == m, x, 0.0)
    return largest - ops.stop_gradient(largest)


def _class(ops: Ops, layout: Layout, ids: Array) -> Array:
    return ops.where(ids < 0, 0, ids) if layout.masked else ids


def _zero_masked(ops: Ops, x: Array, ids: Array) -> Array:
    """x with 0 in masked rows: 0 * NaN is NaN, so what a masked row holds must not reach a product."""
    return ops.where(ids < 0, 0, x)


def where_present(ops: Ops, k: Scalar, ids: Array, like: Array) -> Array:
    """k for each row, 0 in an absent one and NaN in an invalid one; linear in k."""
    one = ops.zeros_like(like) + 1
    return ops.where(ids == ABSENT, 0.0, one * k) * ops.where(ids == INVALID, NAN, one)


# Softmax: results and statistics


def rows(
    ops: Ops,
    layout: Layout,
    x: Array,
    t: Array | None,
    smoothing_weights: Array | None,
    ids: Array | None,
    *,
    differentiable: bool = False,
) -> RowResults:
    """`SoftmaxKernels.rows`, for logits in the compute dtype.

    Where `differentiable`, automatic differentiation of these formulas is right, and as accurate as the kernels' own
    derivative: for transforms that ignore a framework's custom derivatives.
    """
    axis = layout.axis
    ids = None if ids is None else ops.expand_dims(ids, axis)
    if differentiable and layout.masked:
        x, t = _zero_masked(ops, x, ids), None if t is None else _zero_masked(ops, t, ids)
    if differentiable:
        m = finite_or_nan(ops, ops.stop_gradient(ops.max(x, axis)))
        top = _smooth_top(ops, x, m, axis)
    else:
        top = Top(*ops.top(x, axis))
    m, s = top.m, top.s
    log1p_s = ops.log1p(s)
    lse = smooth = None
    if t is None:
        loss = top.gap(ops, ops.pick(x, _class(ops, layout, ids), axis)) + log1p_s
    else:
        loss = ops.sum(times(ops, t, top.gap(ops, x)), axis) + ops.sum(t, axis) * log1p_s
    if layout.lse:
        lse = m + log1p_s if top.shift is None else m + log1p_s + top.shift
    if smoothing_weights is not None:
        smooth = (
            ops.sum(times(ops, along(ops, smoothing_weights, x, axis), top.gap(ops, x)), axis)
            + ops.sum(smoothing_weights, 0) * log1p_s
        )

    def finish(result: Array | None) -> Array | None:
        if result is None:
            return None
        return ops.squeeze(where_present(ops, result, ids, result) if layout.masked else result, axis)

    constants = (m, s, *gap_sum_and_argmax(ops, ops.stop_gradient(x), m, axis)) if layout.stats else (m, s)
    if layout.masked:
        constants = tuple(_zero_masked(ops, k, ids) for k in constants)
    return RowResults(finish(loss), finish(lse), finish(smooth), *constants)


def gap_sum_and_argmax(ops: Ops, x: Array, m: Array, axis: int) -> tuple[Array, Array]:
    gap = behind(ops, x, m)
    return ops.sum(times(ops, ops.exp(-gap), gap), axis), ops.argmax(x, axis)


class Top(NamedTuple):
    """A row's maximum m and the sum s of the others' exp(x - m), keeping the axis; m has no derivative.

    Where one class has more than half of the probability, its logit takes the place of m, so that nothing cancels in
    derivatives of s, and second derivatives keep p (1 - p) where p rounds to 1.
    """

    m: Array
    s: Array
    shift: Array | None = None  # 0, with the derivative of the dominant logit; None: no derivatives are asked for
    dominant: Array | None = None

    def gap(self, ops: Ops, x: Array) -> Array:
        """m - x. `x` may be some of the row's logits."""
        gap = behind(ops, x, self.m)
        if self.shift is None:
            return gap
        at_maximum = ops.where(self.dominant, 0.0, -_zero_at_maximum(ops, x, self.m))
        return gap + ops.where(x == self.m, at_maximum, self.shift)


def _smooth_top(ops: Ops, x: Array, m: Array, axis: int) -> Top:
    """From a constant maximum, with everything else a differentiable function of x."""
    best, zero = x == m, _zero_at_maximum(ops, x, m)
    e = ops.exp(zero - behind(ops, x, m))
    others = ops.sum(ops.where(best, 0.0, e), axis)
    ties = ops.sum(ops.where(best, e, 0.0), axis) - 1
    dominant = ops.stop_gradient(others + ties) < 1
    lead = ops.sum(zero, axis)
    s = ops.where(dominant, others * ops.exp(-lead), others + ties)
    return Top(m, s, ops.where(dominant, lead, 0.0), dominant)


# Softmax: the derivative. Its pieces come either straight from the saved statistics, or as functions of x whose own
# derivatives are right. Both have the same values.


class Pieces(NamedTuple):
    """With p = e / (1 + s) the probabilities. All keep the class axis."""

    m: Array
    s: Array
    gap: Array | None  # m - x, where labels are soft
    e: Array
    e_y: Array | None  # the label's e, where labels are class ids
    p_label_minus_1: Array | None  # the label's (p - 1) (1 + s), where labels are class ids


def pieces(ops: Ops, layout: Layout, x: Array, ids: Array | None, m: Array, s: Array) -> Pieces:
    """From the statistics: one exp for each logit."""
    return _pieces(ops, layout, Top(m, s), *_labelled(ops, layout, x, ids))


def smooth_pieces(ops: Ops, layout: Layout, x: Array, ids: Array | None, m: Array, s: Array) -> Pieces:
    """The same values as differentiable functions of x."""
    x, label = _labelled(ops, layout, x, ids)
    return _pieces(ops, layout, _smooth_top(ops, x, ops.stop_gradient(m), layout.axis), x, label)


def _pieces(ops: Ops, layout: Layout, top: Top, x: Array, label: Array | None) -> Pieces:
    gap = top.gap(ops, x)
    e = ops.exp(-gap)
    if label is None:
        return Pieces(top.m, top.s, gap, e, None, None)
    x_y = ops.pick(x, label, layout.axis)
    e_y = ops.exp(-top.gap(ops, x_y))  # picked from e, it would make compilers store all of e
    return Pieces(top.m, top.s, None, e, e_y, _p_minus_1(ops, x_y == top.m, e_y, top.s))


def _p_minus_1(ops: Ops, best: Array, e: Array, s: Array) -> Array:
    """(p - 1) (1 + s), without cancellation also at the maximum, where e is 1."""
    return ops.where(best, (e - ops.stop_gradient(e)) - s, e - (1 + s))


def _labelled(ops: Ops, layout: Layout, x: Array, ids: Array | None) -> tuple[Array, Array | None]:
    """x with masked rows set to 0, and the class ids keeping the axis, or None where labels are soft."""
    return _unmasked(ops, layout, x, ids), _class(
        ops, layout, ops.expand_dims(ids, layout.axis)
    ) if layout.hard else None


def _unmasked(ops: Ops, layout: Layout, x: Array | None, ids: Array | None) -> Array | None:
    return _zero_masked(ops, x, ops.expand_dims(ids, layout.axis)) if layout.masked and x is not None else x


def pull(
    ops: Ops,
    layout: Layout,
    parts: Pieces,
    x: Array,
    t: Array | None,
    smoothing_weights: Array | None,
    ids: Array | None,
    coefficients: tuple[Scalar | None, ...],
) -> Array:
    """Reverse mode: d/dx of sum(a loss + b lse + c smooth), with (a, b, c) = coefficients, None for 0."""
    scaled: tuple[Any, ...] = _scaled(ops, layout, ids, coefficients, parts.s)
    a, b, c = scaled
    r = 1 / (1 + parts.s)
    rest: Any = 0.0 if b is None else b
    if c is not None:
        rest = rest + c * ops.sum(smoothing_weights, 0)
    if layout.hard:
        label = _class(ops, layout, ops.expand_dims(ids, layout.axis))
        at_label = (a * parts.p_label_minus_1 + rest * parts.e_y) * r
        dx = ops.put(parts.e * ((a + rest) * r), label, at_label, layout.axis)
    else:
        t = _unmasked(ops, layout, t, ids)
        unlabelled, at_label = ops.sum(t, layout.axis) - t, t * _each_p_minus_1(ops, layout, parts, x, ids)
        dx = parts.e * ((a * unlabelled + rest) * r) + a * at_label * r
    return dx if c is None else dx - c * along(ops, smoothing_weights, x, layout.axis)


def pull_labels(
    ops: Ops, layout: Layout, parts: Pieces, ids: Array | None, coefficients: tuple[Array | None, ...]
) -> Array:
    """Reverse mode in the soft labels: a (lse - x)."""
    a: Any = _scaled(ops, layout, ids, coefficients, parts.s)[0]
    return a * (parts.gap + ops.log1p(parts.s))


def _each_p_minus_1(ops: Ops, layout: Layout, parts: Pieces, x: Array, ids: Array | None) -> Array:
    """(p - 1) (1 + s) of every class, for labels that may be one-hot at any of them."""
    return _p_minus_1(ops, _unmasked(ops, layout, x, ids) == parts.m, parts.e, parts.s)


def _scaled(
    ops: Ops, layout: Layout, ids: Array | None, coefficients: tuple[Scalar | None, ...], like: Array
) -> tuple[Scalar | None, ...]:
    """Per-row coefficients with the class axis: 0 in absent rows, NaN in invalid ones."""

    def scaled(k: Scalar | None) -> Scalar | None:
        kept = k if k is None or isinstance(k, float) else ops.expand_dims(k, layout.axis)
        return kept if k is None or not layout.masked else where_present(ops, kept, ids, like)

    ids = ops.expand_dims(ids, layout.axis) if layout.masked else None
    return tuple(map(scaled, coefficients))


def push(
    ops: Ops,
    layout: Layout,
    parts: Pieces,
    x: Array,
    t: Array | None,
    smoothing_weights: Array | None,
    ids: Array | None,
    dx: Array,
    dt: Array | None,
) -> tuple[Array, Array | None, Array | None]:
    """Forward mode: the tangents of (loss, lse, smooth) for tangents dx and dt (None for 0); linear in both."""
    axis = layout.axis
    r = 1 / (1 + parts.s)
    mean = ops.sum(parts.e * dx, axis) * r
    if layout.hard:
        label = _class(ops, layout, ops.expand_dims(ids, axis))
        loss = ops.sum(ops.put(parts.e, label, parts.p_label_minus_1, axis) * dx, axis) * r
    else:
        t = _unmasked(ops, layout, t, ids)
        slope = parts.e * (ops.sum(t, axis) - t) + t * _each_p_minus_1(ops, layout, parts, x, ids)
        loss = ops.sum(slope * dx, axis) * r
        if dt is not None:
            loss = loss + ops.sum(dt * (parts.gap + ops.log1p(parts.s)), axis)
    smooth = (
        None
        if smoothing_weights is None
        else ops.sum(smoothing_weights, 0) * mean - ops.sum(along(ops, smoothing_weights, x, axis) * dx, axis)
    )

    def finish(tangent: Array) -> Array:
        if layout.masked:
            tangent = where_present(ops, tangent, ops.expand_dims(ids, axis), tangent)
        return ops.squeeze(tangent, axis)

    return finish(loss), finish(mean) if layout.lse else None, None if smooth is None else finish(smooth)


def rows_value_and_grad(
    ops: Ops,
    layout: Layout,
    x: Array,
    t: Array | None,
    smoothing_weights: Array | None,
    ids: Array | None,
    slopes: Slopes,
) -> tuple[RowResults, Array]:
    """`SoftmaxKernels.rows_value_and_grad`, for logits in the compute dtype."""
    results = rows(ops, layout, x, t, smoothing_weights, ids)
    parts = pieces(ops, layout, x, ids, results.m, results.s)
    return results, pull(ops, layout, parts, x, t, smoothing_weights, ids, slopes.coefficients(results.lse))


def mean_value_and_grad(
    ops: Ops, both: Callable[..., Any], layout: Layout, x: Array, t: Array | None, ids: Array | None, count: int
) -> tuple[Array, Array]:
    """`SoftmaxKernels.mean_value_and_grad`, by way of the group's `rows_value_and_grad`."""
    results, dx = both(layout, x, t, None, ids, Slopes(1 / count))
    return ops.sum(results.nll, None) / count, dx


def softmax_kernels(ops: Ops) -> SoftmaxKernels:
    """The group made of formulas, for a framework without differentiation."""
    both = partial(rows_value_and_grad, ops)
    return SoftmaxKernels(partial(rows, ops), both, partial(mean_value_and_grad, ops, both))
