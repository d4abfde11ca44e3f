"""JAX's kernels from formulas: `custom_jvp`s whose tangent is computed under jax.checkpoint, so that reverse mode keeps
(m, s), not the probabilities, and every transform works.

Losses are jitted: op by op they take 5 to 14 times as long.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero, zero_from_primal
from xent import formulas
from xent.adapter import Layout, RowResults

from .mesh import automatic
from .ops import OPS, promoting

Array = Any


@partial(jax.custom_jvp, nondiff_argnums=(0,))
@promoting
def rows(layout: Layout, x: Array, t: Array | None, smoothing_weights: Array | None, ids: Array | None) -> RowResults:
    return formulas.rows(OPS, layout, x, t, smoothing_weights, ids)


@partial(rows.defjvp, symbolic_zeros=True)
def _rows_jvp(layout: Layout, primals: Any, tangents: Any) -> Any:
    x, t, u, ids = primals
    dx, dt = (None if isinstance(d, SymbolicZero) else d for d in tangents[:2])
    results = rows(layout, *primals)
    m, s = results.m, results.s

    # only this derivative rule uses the statistics, and it treats them as constants
    nll, lse, smooth = push(layout, dx, dt, x, t, u, ids, m, s)
    return results, RowResults(nll, lse, smooth, *still(results[3:]))


still = partial(zero_from_primal, symbolic_zeros=True)  # the tangents of constants


@partial(jax.checkpoint, static_argnums=(0,))
@promoting
def push(
    layout: Layout,
    dx: Array | None,
    dt: Array | None,
    x: Array,
    t: Array | None,
    smoothing_weights: Array | None,
    ids: Array | None,
    m: Array,
    s: Array,
) -> tuple[Any, ...]:
    """The tangents of nll, lse and smooth; linear in dx and dt, None for 0."""
    parts, dx = pieces(layout, x, ids, m, s), jnp.zeros_like(x) if dx is None else dx
    return formulas.push(OPS, layout, parts, x, t, smoothing_weights, ids, dx, dt)


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def pieces(layout: Layout, x: Array, ids: Array | None, m: Array, s: Array) -> formulas.Pieces:
    return formulas.pieces(OPS, layout, x, ids, m, s)


@pieces.defjvp
def _pieces_jvp(layout: Layout, primals: Any, tangents: Any) -> Any:
    x, ids, m, s = primals
    _, tangent = jax.jvp(lambda x: formulas.smooth_pieces(OPS, layout, x, ids, m, s), (x,), tangents[:1])
    return pieces(layout, *primals), tangent


@partial(jax.custom_jvp, nondiff_argnums=(0,))
@promoting
def sigmoid(smoothing: float, x: Array, targets: Array, pos_weight: Array | None, absent: Array | None) -> Array:
    return formulas.sigmoid(OPS, smoothing, x, targets, pos_weight, absent)


@sigmoid.defjvp
def _sigmoid_jvp(smoothing: float, primals: Any, tangents: Any) -> Any:
    @jax.checkpoint
    @promoting
    def tangent(dx: Array, dz: Array, x: Array, targets: Array, pos_weight: Any, absent: Any) -> Array:
        slope_x, slope_z = formulas.sigmoid_pull(OPS, smoothing, x, targets, pos_weight, absent, jnp.ones_like(x))
        return dx * slope_x + dz * slope_z

    return sigmoid(smoothing, *primals), tangent(*tangents[:2], *primals)


def value_and_grad(f: Callable[[Any], Any], x: Any) -> tuple[Any, Any]:
    def summed(x: Any) -> tuple[Array, Any]:
        value = f(x)
        return (value[0] if isinstance(value, tuple) else value).sum(), value

    (_, value), grad = jax.value_and_grad(summed, has_aux=True)(x)
    return value, grad


compiled = jax.jit(promoting(automatic), static_argnums=(0, 1))


def fuse_value_and_grad(value: Callable[..., Array], _value_and_grad: Any, plan: Any, *operands: Any) -> Array:
    """The compiler joins the formulas for the loss with those for its derivative."""
    return compiled(value, plan, *operands)
