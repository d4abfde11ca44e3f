"""JAX's kernels from formulas: `custom_jvp`s with a rematerialised tangent, so that reverse mode keeps (m, s), not the
probabilities, and every transform works. Losses run jitted: op by op they would be 5 to 14 times slower."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero
from xent import formulas
from xent.adapter import Layout

from .mesh import automatic
from .ops import OPS, promoting

Array = Any


def rows(lay: Layout, x: Array, t: Array | None, u: Array | None, ids: Array | None) -> Any:
    return _rows_and_stats(lay, x, t, u, ids)[0]


@partial(jax.custom_jvp, nondiff_argnums=(0,))
@promoting
def _rows_and_stats(lay: Layout, x: Array, t: Array | None, u: Array | None, ids: Array | None) -> Any:
    return formulas.rows(OPS, lay, x, t, u, ids)


@partial(_rows_and_stats.defjvp, symbolic_zeros=True)
def _rows_jvp(lay: Layout, primals: Any, tangents: Any) -> Any:
    x, t, u, ids = primals
    dx, dt = (None if isinstance(d, SymbolicZero) else d for d in tangents[:2])
    results, (m, s) = _rows_and_stats(lay, *primals)

    @jax.checkpoint
    @promoting
    def tangent(dx: Array, dt: Array | None, x: Array, t: Any, u: Any, ids: Any, m: Array, s: Array) -> Any:
        parts = pieces(lay, x, ids, m, s)
        return formulas.push(OPS, lay, parts, x, t, u, ids, dx, dt)

    dx = jnp.zeros_like(x) if dx is None else dx
    # nothing but the kernel's own derivative uses the statistics, and it does not depend on how they move
    still = jnp.zeros_like(m)
    return (results, (m, s)), ((*tangent(dx, dt, x, t, u, ids, m, s), still), (still, jnp.zeros_like(s)))


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def pieces(lay: Layout, x: Array, ids: Array | None, m: Array, s: Array) -> formulas.Pieces:
    return formulas.pieces(OPS, lay, x, ids, m, s)


@pieces.defjvp
def _pieces_jvp(lay: Layout, primals: Any, tangents: Any) -> Any:
    x, ids, m, s = primals
    _, tangent = jax.jvp(lambda x: formulas.smooth_pieces(OPS, lay, x, ids, m, s), (x,), tangents[:1])
    return pieces(lay, *primals), tangent


@partial(jax.custom_jvp, nondiff_argnums=(0,))
@promoting
def sigmoid(e: float, x: Array, z: Array, p: Array | None, absent: Array | None) -> Array:
    return formulas.sigmoid(OPS, e, x, z, p, absent)


@sigmoid.defjvp
def _sigmoid_jvp(e: float, primals: Any, tangents: Any) -> Any:
    @jax.checkpoint
    @promoting
    def tangent(dx: Array, dz: Array, x: Array, z: Array, p: Any, absent: Any) -> Array:
        slope_x, slope_z = formulas.sigmoid_pull(OPS, e, x, z, p, absent, jnp.ones_like(x))
        return dx * slope_x + dz * slope_z

    return sigmoid(e, *primals), tangent(*tangents[:2], *primals)


def value_and_grad(f: Callable[[Any], Any], x: Any) -> tuple[Any, Any]:
    def summed(x: Any) -> tuple[Array, Any]:
        value = f(x)
        return (value[0] if isinstance(value, tuple) else value).sum(), value

    (_, value), grad = jax.value_and_grad(summed, has_aux=True)(x)
    return value, grad


compiled = jax.jit(promoting(automatic), static_argnums=(0, 1))
