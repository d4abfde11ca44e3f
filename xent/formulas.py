"""The mathematics of the kernels, written once over an adapter's `Ops`; adapters attach derivative rules to it.

With m = max_j x_j and s = sum of exp(x_j - m) over all j but one maximal one:

    nll  = (m - x_y) + log1p(s)                           both terms >= 0: nothing cancels
    soft = sum_j t_j (m - x_j) + (sum_j t_j) log1p(s)
    p_j  = exp(x_j - m) / (1 + s)
    p_y - 1 = -s / (1 + s) at the maximum, (exp(x_y - m) - (1 + s)) / (1 + s) elsewhere, where p_y <= 1/2

The textbook's logsumexp(x) - x_y rounds to 0 once the label leads by 17 (float32), and loses every digit under a
common offset. The last line stands for -expm1(-nll) without its expm1, which compilers get wrong (Inductor's is 0 below
6e-8).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from xent._adapter import ABSENT, INVALID, Array, Layout, Ops, Scalar, computed_in
from xent._reduce import along

INF, NAN = float("inf"), float("nan")
_STEEP = 1e30  # (m - x) * _STEEP exceeds 1 for every difference that exp can tell from 0


def compute_dtype(ops: Ops, x: Array) -> str:
    return computed_in(ops.dtype(x))


def widened(ops: Ops, x: Array) -> Array:
    """Logits in the compute dtype."""
    return ops.astype(x, compute_dtype(ops, x))


def finite_or_nan(ops: Ops, m: Array) -> Array:
    """A row whose maximum is infinite has no softmax: NaN, as every framework says (fp16 overflow must show)."""
    return ops.where(ops.abs(m) == INF, NAN, m)


def top(ops: Ops, x: Array, axis: int, barrier: Callable[[Array], Array] = lambda m: m) -> tuple[Array, Array]:
    """`Ops.top` out of arithmetic alone: compilers fuse and vectorise it, which they do not do to an argmax.

    `distinct` is 0 where x is maximal and 1 elsewhere; in the sliver between, exp(x - m) is 1 to working accuracy,
    so that `distinct` terms of it and 1 - `distinct` ties count the element once. The barrier keeps compilers that
    lose vectorisation when two sums share a loop from joining them.
    """
    m = finite_or_nan(ops, ops.max(x, axis))
    others = ops.sum(ops.exp(x - m) * _distinct(ops, x, m), axis)
    ties = ops.sum(1 - _distinct(ops, x, barrier(m)), axis)
    return m, others + (ties - 1)


def _distinct(ops: Ops, x: Array, m: Array) -> Array:
    return ops.minimum((m - x) * _STEEP, 1.0)


def tree_sum(
    x: Array, n: int | None, add_eighths: Callable[[Array, int], Array], total: Callable[[Array], Array]
) -> Array:
    """Sum in blocks, so that the error grows with log n: add eighths onto each other until 16 terms are left.

    Compilers turn a plain sum into one running total per vector lane: 1e-4 relative after 262,144 equal terms. They
    also join sums of sums into one; they cannot do that to elementwise additions.
    """
    while n is not None and n > 16:
        n = -(-n // 8)
        x = add_eighths(x, n)
    return total(x)


def add_pairs(parts: list[Array]) -> Array:
    """Eight arrays added as a tree."""
    while len(parts) > 1:
        parts = [left + right for left, right in zip(parts[::2], parts[1::2], strict=True)]
    return parts[0]


def _times(ops: Ops, weight: Array, gap: Array) -> Array:
    """weight * gap with 0 * inf = 0: a class that has no weight adds nothing, however impossible it is.

    Only the infinite gap is replaced: the derivative in a weight of 0 is the gap.
    """
    return weight * ops.where((weight == 0) & (gap == INF), 0.0, gap)


def _class(ops: Ops, lay: Layout, ids: Array) -> Array:
    return ops.where(ids < 0, 0, ids) if lay.masked else ids


def _blank(ops: Ops, x: Array, ids: Array) -> Array:
    """x with 0 in masked rows: 0 * NaN is NaN, so what a masked row holds must not reach a product."""
    return ops.where(ids < 0, 0.0, x)


def _present(ops: Ops, k: Scalar, ids: Array, like: Array) -> Array:
    """Per-row k, linearly: k itself, 0 in an absent row, NaN in an invalid one."""
    one = ops.zeros_like(like) + 1
    return ops.where(ids == ABSENT, 0.0, one * k) * ops.where(ids == INVALID, NAN, one)


# Softmax: results and statistics


def rows(
    ops: Ops,
    lay: Layout,
    x: Array,
    t: Array | None,
    u: Array | None,
    ids: Array | None,
    *,
    differentiable: bool = False,
) -> tuple[tuple[Array, Array | None, Array | None, Array], tuple[Array, Array]]:
    """The results of `Adapter.rows`, and the statistics (m, s), keeping the axis, that the derivative starts from.

    Where `differentiable`, automatic differentiation of the formulas is right by itself, and as accurate as the
    kernels' own derivative: for transforms that a framework's custom derivatives do not survive.
    """
    axis = lay.axis
    ids = None if ids is None else ops.expand_dims(ids, axis)
    loss = None
    if differentiable and lay.hard:
        m, s, loss, x = _without_label(ops, lay, x, ids)
    else:
        if differentiable and lay.masked:
            x, t = _blank(ops, x, ids), None if t is None else _blank(ops, t, ids)
        m, s = _smooth_top(ops, x, axis) if differentiable else ops.top(x, axis)
    spread = ops.log1p(s)
    lse = smooth = None
    if t is None and loss is None:
        loss = (m - ops.pick(x, _class(ops, lay, ids), axis)) + spread
    elif t is not None:
        loss = ops.sum(_times(ops, t, m - x), axis) + ops.sum(t, axis) * spread
    if lay.lse:
        lse = m + spread
    if u is not None:
        smooth = ops.sum(_times(ops, along(ops, u, x, axis), m - x), axis) + ops.sum(u, 0) * spread

    def finish(result: Array | None) -> Array | None:
        if result is None:
            return None
        return ops.squeeze(_present(ops, result, ids, result) if lay.masked else result, axis)

    if lay.masked:
        m, s = _blank(ops, m, ids), _blank(ops, s, ids)
    return (finish(loss), finish(lse), finish(smooth), m), (m, s)


def _smooth_top(ops: Ops, x: Array, axis: int) -> tuple[Array, Array]:
    """`top`, where m is a constant and 1 + s the sum of all exp(x - m)."""
    m = finite_or_nan(ops, ops.stop_gradient(ops.max(x, axis)))
    e, best = ops.exp(x - m), x == m
    others = ops.sum(ops.where(best, 0.0, e), axis)
    return m, others + (ops.sum(ops.where(best, e, 0.0), axis) - 1)


def _without_label(ops: Ops, lay: Layout, x: Array, ids: Array) -> tuple[Array, Array, Array, Array]:
    """m, s and the nll, from the sum over all classes but the label; and x without what masked rows hold.

    Where the label is maximal, that sum is s, and every term of d nll/dx_y is negative; elsewhere p_y <= 1/2, and
    nothing cancels either. Masks come after max and pick: compilers would store what these read.
    """
    axis, label = lay.axis, _class(ops, lay, ids)
    m, x_y = ops.stop_gradient(ops.max(x, axis)), ops.pick(x, label, axis)
    if lay.masked:
        m, x_y, x = (_blank(ops, k, ids) for k in (m, x_y, x))
    m = finite_or_nan(ops, m)
    e_y = ops.exp(x_y - m)
    others = ops.sum(ops.put(ops.exp(x - m), label, ops.zeros_like(m), axis), axis)
    best = x_y == m
    s = ops.where(best, others + (e_y - ops.stop_gradient(e_y)), (others - 1) + e_y)
    nll = ops.where(best, ops.log1p(others / ops.where(best, e_y, 1.0)), (m - x_y) + ops.log1p(s))
    return m, s, nll, x


# Softmax: the derivative. Its pieces come either straight from the saved statistics, or as functions of x whose own
# derivatives are right (m is a constant in them: the probabilities do not depend on it). Both have the same values.


class Pieces(NamedTuple):
    """With p = e r the probabilities: e, the label's e and (p - 1) / r, r, and log1p(s). All keep the class axis."""

    e: Array
    e_y: Array | None
    miss: Array | None
    r: Array
    spread: Array


def pieces(ops: Ops, lay: Layout, x: Array, ids: Array | None, m: Array, s: Array) -> Pieces:
    """From the statistics: one exp for each logit."""
    x, label = _labelled(ops, lay, x, ids)
    e_y = miss = None
    if label is not None:
        x_y = ops.pick(x, label, lay.axis)
        e_y = ops.exp(x_y - m)  # picking it from e would make compilers store e
        miss = ops.where(x_y == m, (e_y - ops.stop_gradient(e_y)) - s, e_y - (1 + s))
    return Pieces(ops.exp(x - m), e_y, miss, 1 / (1 + s), ops.log1p(s))


def smooth_pieces(ops: Ops, lay: Layout, x: Array, ids: Array | None, m: Array, s: Array) -> Pieces:
    """The same values as differentiable functions of x."""
    x, label = _labelled(ops, lay, x, ids)
    m, s = ops.stop_gradient(m), ops.stop_gradient(s)
    e = ops.exp(x - m)
    total = ops.sum(e, lay.axis)
    e_y = miss = None
    if label is not None:
        e_y = ops.exp(ops.pick(x, label, lay.axis) - m)
        miss = -ops.sum(ops.put(e, label, ops.zeros_like(m), lay.axis), lay.axis)
    return Pieces(e, e_y, miss, 1 / total, ops.log1p(s) + ops.log1p(total / ops.stop_gradient(total) - 1))


def _labelled(ops: Ops, lay: Layout, x: Array, ids: Array | None) -> tuple[Array, Array | None]:
    """x without what masked rows hold, and the class ids keeping the axis, or None where labels are soft."""
    return _unmasked(ops, lay, x, ids), _class(ops, lay, ops.expand_dims(ids, lay.axis)) if lay.hard else None


def _unmasked(ops: Ops, lay: Layout, x: Array | None, ids: Array | None) -> Array | None:
    return _blank(ops, x, ops.expand_dims(ids, lay.axis)) if lay.masked and x is not None else x


def pull(
    ops: Ops,
    lay: Layout,
    parts: Pieces,
    x: Array,
    t: Array | None,
    u: Array | None,
    ids: Array | None,
    coefficients: tuple[Scalar | None, ...],
) -> Array:
    """Reverse mode: d/dx of sum(a loss + b lse + c smooth), with (a, b, c) = coefficients, None for 0."""
    e, e_y, miss, r, _ = parts
    scaled: tuple[Any, ...] = _scaled(ops, lay, ids, coefficients, parts.r)
    a, b, c = scaled
    t = _unmasked(ops, lay, t, ids)
    rest: Any = 0.0 if b is None else b
    if c is not None:
        rest = rest + c * ops.sum(u, 0)
    if lay.hard:
        label = _class(ops, lay, ops.expand_dims(ids, lay.axis))
        at_label = (a * miss + rest * e_y) * r
        dx = ops.put(e * ((a + rest) * r), label, at_label, lay.axis)
    else:
        dx = e * ((a * ops.sum(t, lay.axis) + rest) * r) - a * t
    return dx if c is None else dx - c * along(ops, u, x, lay.axis)


def pull_labels(
    ops: Ops, lay: Layout, parts: Pieces, x: Array, m: Array, ids: Array | None, coefficients: tuple[Array | None, ...]
) -> Array:
    """Reverse mode in the soft labels: a (lse - x)."""
    a: Any = _scaled(ops, lay, ids, coefficients, parts.r)[0]
    return a * _gap(ops, lay, parts, x, ids, m)


def _gap(ops: Ops, lay: Layout, parts: Pieces, x: Array, ids: Array | None, m: Array) -> Array:
    return (ops.stop_gradient(m) - _unmasked(ops, lay, x, ids)) + parts.spread


def _scaled(
    ops: Ops, lay: Layout, ids: Array | None, coefficients: tuple[Scalar | None, ...], like: Array
) -> tuple[Scalar | None, ...]:
    """Per-row coefficients with the class axis: 0 in absent rows, NaN in invalid ones."""

    def scaled(k: Scalar | None) -> Scalar | None:
        kept = k if k is None or isinstance(k, float) else ops.expand_dims(k, lay.axis)
        return kept if k is None or not lay.masked else _present(ops, kept, ids, like)

    ids = ops.expand_dims(ids, lay.axis) if lay.masked else None
    return tuple(map(scaled, coefficients))


def push(
    ops: Ops,
    lay: Layout,
    parts: Pieces,
    x: Array,
    t: Array | None,
    u: Array | None,
    ids: Array | None,
    m: Array,
    dx: Array,
    dt: Array | None,
) -> tuple[Array, Array | None, Array | None]:
    """Forward mode: the tangents of (loss, lse, smooth) for tangents dx and dt (None for 0); linear in both."""
    e, _, miss, r, _ = parts
    axis = lay.axis
    mean = ops.sum(e * dx, axis) * r
    if lay.hard:
        label = _class(ops, lay, ops.expand_dims(ids, axis))
        loss = ops.sum(ops.put(e, label, miss, axis) * dx, axis) * r
    else:
        t = _unmasked(ops, lay, t, ids)
        loss = ops.sum(t, axis) * mean - ops.sum(t * dx, axis)
        if dt is not None:
            loss = loss + ops.sum(dt * _gap(ops, lay, parts, x, ids, m), axis)
    smooth = None if u is None else ops.sum(u, 0) * mean - ops.sum(along(ops, u, x, axis) * dx, axis)

    def finish(tangent: Array) -> Array:
        if lay.masked:
            tangent = _present(ops, tangent, ops.expand_dims(ids, axis), tangent)
        return ops.squeeze(tangent, axis)

    return finish(loss), finish(mean) if lay.lse else None, None if smooth is None else finish(smooth)


def rows_both(
    ops: Ops,
    lay: Layout,
    x: Array,
    t: Array | None,
    u: Array | None,
    ids: Array | None,
    a: Scalar,
    z: Scalar | None,
    c: Scalar | None,
) -> tuple[tuple[Array, Array | None, Array | None, Array], Array]:
    """`Adapter.rows_both`, for x in the compute dtype."""
    results, stats = rows(ops, lay, x, t, u, ids)
    b = None if z is None else 2 * z * results[1]
    return results, pull(ops, lay, pieces(ops, lay, x, ids, *stats), x, t, u, ids, (a, b, c))


# Sigmoid


def sigmoid(ops: Ops, e: float, x: Array, z: Array, p: Array | None, absent: Array | None) -> Array:
    """The result of `Adapter.sigmoid`: whichever of the two terms is linear in |x| loses nothing to the other."""
    if absent is not None:
        x, z = ops.where(absent, 0.0, x), ops.where(absent, 0.0, z)
    positive, negative = _both(e, z, p)
    size = _size(ops, x)
    loss = _times(ops, ops.where(x > 0, negative, positive), size) + (negative + positive) * ops.log1p(ops.exp(-size))
    return loss if absent is None else ops.where(absent, 0.0, loss)


def sigmoid_pull(
    ops: Ops, e: float, x: Array, z: Array, p: Array | None, absent: Array | None, g: Array
) -> tuple[Array, Array]:
    """Reverse mode: d/dx and d/dz of sum(g loss); differentiable further."""
    if absent is not None:
        x, z, g = (ops.where(absent, 0.0, k) for k in (x, z, g))
    positive, negative = _both(e, z, p)
    dx = g * (negative * ops.sigmoid(x) - positive * ops.sigmoid(-x))
    if e == 1:  # smoothed away: labels do not count
        return dx, ops.zeros_like(x)
    slope = -x if p is None else _times(ops, p, _softplus(ops, -x)) - _softplus(ops, x)
    return dx, g * (slope * (1 - e))


def sigmoid_both(
    ops: Ops, e: float, x: Array, z: Array, p: Array | None, w: Array | None, g: Scalar, each: bool
) -> tuple[Array, Array]:
    """`Adapter.sigmoid_both`, for x in the compute dtype."""
    absent = None if w is None else w == 0
    loss = sigmoid(ops, e, x, z, p, absent)
    loss = loss if w is None else w * loss
    slope = g + ops.zeros_like(x) if w is None else g * w
    return loss if each else ops.sum(loss, None), sigmoid_pull(ops, e, x, z, p, absent, slope)[0]


def _both(e: float, z: Array, p: Array | None) -> tuple[Array, Array]:
    """The weights of log sigmoid(x) and log sigmoid(-x), each smoothed by itself: 1 - (smoothed z) would round."""
    positive, negative = z, 1 - z
    if e:
        positive, negative = (1 - e) * positive + e / 2, (1 - e) * negative + e / 2
    return positive if p is None else p * positive, negative


def _softplus(ops: Ops, x: Array) -> Array:
    return ops.where(x > 0, x, 0.0) + ops.log1p(ops.exp(-_size(ops, x)))


def _size(ops: Ops, x: Array) -> Array:
    """|x| by branches: both halves of the formulas around it are smooth through 0, where abs has no derivative."""
    return ops.where(x > 0, x, -x)
