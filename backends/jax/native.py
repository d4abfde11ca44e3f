"""JAX on the native CPU kernels: each with xent's formula, which serves other devices and all higher derivatives.

Reverse mode is a kernel as well: the tangent of a loss is a primitive that is linear in the tangents, and its transpose
is the kernel's backward pass. So (m, s) are kept, not the probabilities, and forward mode works too. `static` is a
hashable description of a call; None stands for an operand or result that is absent.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero
from xent import formulas
from xent.adapter import Layout, Slopes

from . import linear as chunks
from . import parts
from .kernels import compiled, pieces, still
from .operators import PRODUCTS, ROWS, kernel, linear, spare
from .ops import OPS, promoting

Array = Any


wide = partial(formulas.widened, OPS)


def tangents_of(*tangents: Any) -> list[Any]:
    return [None if isinstance(d, SymbolicZero) else d for d in tangents]


# ---- rows: the formulas


@promoting
def _forward(static: Any, x: Array, t: Any, smoothing_weights: Any, ids: Any) -> tuple[Any, ...]:
    (layout,) = static
    return parts.flat_results(layout, formulas.rows(OPS, layout, wide(x), t, smoothing_weights, ids))


@promoting
def _backward(
    static: Any,
    x: Array,
    t: Any,
    smoothing_weights: Any,
    ids: Any,
    m: Array,
    s: Array,
    *up: Any,
    pieces: Any = formulas.pieces,
) -> tuple[Any, Any]:
    layout, wrt_x, wrt_t = static
    m, s = jnp.expand_dims(m, layout.axis), jnp.expand_dims(s, layout.axis)
    parts = pieces(OPS, layout, wide(x), ids, m, s)
    dx = formulas.pull(OPS, layout, parts, wide(x), t, smoothing_weights, ids, up).astype(x.dtype) if wrt_x else None
    return dx, formulas.pull_labels(OPS, layout, parts, ids, up) if wrt_t else None


def _both(static: Any, x: Array, t: Any, smoothing_weights: Any, ids: Any, *slopes: Any) -> tuple[Any, ...]:
    results = _forward(static, x, t, smoothing_weights, ids)
    m, s, _, lse, *_ = results
    up = Slopes(*slopes).coefficients(lse)
    return *results, _backward((*static, True, False), x, t, smoothing_weights, ids, m, s, *up)[0]


@promoting
def _push(
    static: Any, dx: Any, dt: Any, x: Array, t: Any, smoothing_weights: Any, ids: Any, m: Array, s: Array
) -> tuple[Any, ...]:
    (layout,) = static
    m, s = jnp.expand_dims(m, layout.axis), jnp.expand_dims(s, layout.axis)
    x = wide(x)
    dx = jnp.zeros_like(x) if dx is None else wide(dx)
    return formulas.push(OPS, layout, pieces(layout, x, ids, m, s), x, t, smoothing_weights, ids, dx, dt)


def _pull(static: Any, wrt: tuple[bool, ...], *operands: Any) -> list[Array]:
    *residuals, a, b, c = operands
    a = jnp.zeros_like(residuals[4]) if a is None else a
    return [d for d in backward((*static, *wrt), *residuals, a, b, c) if d is not None]


def _slots(static: Any, present: tuple[bool, ...]) -> tuple[bool, ...]:
    layout = static[0]
    return True, True, True, layout.lse, present[2], layout.stats, layout.stats


def _all_slots(static: Any, present: tuple[bool, ...]) -> tuple[bool, ...]:
    return *_slots(static, present), True


forward = kernel("rows_forward", ROWS, _forward, _slots, parts.forward)
backward = kernel("rows_backward", ROWS, _backward, lambda static, _there: static[1:], parts.backward)
on_parts = partial(parts.both, forward, backward)
both = kernel("rows_both", ROWS, _both, _all_slots, on_parts)
both_over = kernel("rows_both", ROWS, _both, _all_slots, on_parts, over=True)
spare("rows_both", "rows_forward", 4)
push = linear("rows_push", ROWS, _push, _pull, lambda static, present: (True, static[0].lse, present[4]))


# ---- rows: the derivatives


def rows(layout: Layout, x: Array, t: Any, smoothing_weights: Any, ids: Any) -> Any:
    return parts.row_results(layout, *forward((layout,), x, t, smoothing_weights, _each_row(layout, x, ids)))


@partial(forward.defjvp, symbolic_zeros=True)
def _forward_jvp(static: Any, primals: Any, tangents: Any) -> Any:
    dx, dt = tangents_of(*tangents[:2])
    results = forward(static, *primals)
    m, s, _, _, _, *for_stats = results
    moved = push(static, jnp.zeros_like(primals[0]) if dx is None and dt is None else dx, dt, *primals, m, s)
    # only this derivative rule uses the statistics, and it treats them as constants
    return results, (*still((m, s)), *moved, *still(for_stats))


def rows_push(
    layout: Layout, dx: Any, dt: Any, x: Array, t: Any, smoothing_weights: Any, ids: Any, m: Array, s: Array
) -> Any:
    """The tangents of nll, lse and smooth; linear in dx and dt, None for 0."""
    dx = jnp.zeros_like(x) if dx is None and dt is None else dx
    m, s = jnp.squeeze(m, layout.axis), jnp.squeeze(s, layout.axis)
    return push((layout,), dx, dt, x, t, smoothing_weights, _each_row(layout, x, ids), m, s)


@backward.defjvp
def _backward_jvp(static: Any, primals: Any, tangents: Any) -> Any:
    x, t, u, ids, m, s, *up = primals

    def smooth(x: Array, t: Any, *up: Any) -> Any:
        return _backward(static, x, t, u, ids, m, s, *up, pieces=formulas.smooth_pieces)

    return backward(static, *primals), jax.jvp(smooth, (x, t, *up), (*tangents[:2], *tangents[6:]))[1]


def rows_value_and_grad(layout: Layout, x: Array, t: Any, smoothing_weights: Any, ids: Any, slopes: Slopes) -> Any:
    shape = x.shape[: layout.axis] + x.shape[layout.axis + 1 :]
    like = wide(x[:0]).dtype
    full = (None if k is None else jnp.broadcast_to(jnp.asarray(k, like), shape) for k in slopes)
    *results, dx = both((layout,), x, t, smoothing_weights, _each_row(layout, x, ids), *full)
    return parts.row_results(layout, *results), dx


def rows_both_over(layout: Layout, x: Array, t: None, smoothing_weights: Any, ids: Any, slopes: Slopes) -> Any:
    """`rows_value_and_grad` that writes the derivative over logits, which are not needed or differentiated later."""
    full = (None if k is None else jnp.broadcast_to(jnp.asarray(k, x.dtype), ids.shape) for k in slopes)
    *results, dx = both_over((layout,), x, t, smoothing_weights, ids, *full)
    return parts.row_results(layout, *results), dx


@both_over.defjvp
@both.defjvp
def _both_jvp(static: Any, primals: Any, tangents: Any) -> Any:
    x, t, u, ids, *slopes = primals

    def smooth(x: Array, t: Any, *slopes: Any) -> Any:
        results = forward(static, x, t, u, ids)
        m, s, _, lse, *_ = results
        up = Slopes(*slopes).coefficients(lse)
        dx = _backward((*static, True, False), x, t, u, ids, m, s, *up, pieces=formulas.smooth_pieces)[0]
        return *results, dx

    return both(static, *primals), jax.jvp(smooth, (x, t, *slopes), (*tangents[:2], *tangents[4:]))[1]


def _each_row(layout: Layout, x: Array, ids: Any) -> Any:
    return None if ids is None else jnp.broadcast_to(ids, x.shape[: layout.axis] + x.shape[layout.axis + 1 :])


# ---- linear_ce


def product(name: str, formula: Callable[..., Array], over: bool = False) -> Callable[..., Array]:
    call = kernel(name, PRODUCTS, lambda _, *operands: (formula(*operands),), lambda *_: (True,), over=over)
    return lambda *operands: call((), *operands)[0]


project = product("project", chunks.project)
LINEAR = replace(
    chunks.LINEAR,
    rows=rows,
    rows_value_and_grad=rows_both_over,
    project=lambda h, weight, _over: project(h, weight),
    pull=product("pull", chunks.pull),
    accumulate=product("accumulate", chunks.accumulate, over=True),
)


# ---- a loss with its derivative


def fuse_value_and_grad(
    loss: Callable[..., Array], both: Callable[..., Any], static: Any, x: Array, *arrays: Any
) -> Array:
    """Loss and derivative in one visit of the logits, where the compiler can see the upstream gradient.

    Inside jax.jit that is nearly always 1. Outside, scaling the derivative would cost more than a second visit. In
    float16 the upstream gradient often is a factor that keeps the derivative from underflowing.
    """
    if not isinstance(x, jax.core.Tracer) or x.to_concrete_value() is not None or x.dtype == "float16":
        return compiled(loss, static, x, *arrays)
    return _fused(loss, both, static, x, *arrays)


@partial(jax.custom_jvp, nondiff_argnums=(0, 1, 2))
def _fused(loss: Any, both: Any, static: Any, *arrays: Any) -> Array:
    return compiled(loss, static, *arrays)


@partial(_fused.defjvp, symbolic_zeros=True)
def _fused_jvp(loss: Any, both: Any, static: Any, primals: Any, tangents: Any) -> Any:
    moving = [d is not None and not isinstance(d, SymbolicZero) for d in tangents]
    if moving[0] and not any(moving[1:]):
        value, grad = compiled(both, static, *primals)
        return value, jnp.sum(grad.astype(value.dtype) * tangents[0].astype(value.dtype))

    def moved(*some: Any) -> Array:
        given = iter(some)
        return compiled(loss, static, *(next(given) if m else k for k, m in zip(primals, moving, strict=True)))

    chosen = [(k, d) for k, d, m in zip(primals, tangents, moving, strict=True) if m]
    return jax.jvp(moved, tuple(k for k, _ in chosen), tuple(d for _, d in chosen))
