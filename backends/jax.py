"""JAX. The kernels are `custom_jvp`s with a rematerialised tangent, so that reverse mode keeps (m, s), not the
probabilities, and every transform works. Losses run jitted: op by op they would be 5 to 14 times slower."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial, wraps
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.custom_derivatives import SymbolicZero
from xent import formulas
from xent._adapter import Adapter, Layout, Ops

from ._jax_mesh import automatic, vary, varying
from .cpu import native

Array = Any


def promoting(function: Callable[..., Any]) -> Callable[..., Any]:
    """Vectors broadcast against rows in xent's formulas, also where a user has forbidden it to his own
    (`jax_numpy_rank_promotion`). For derivative rules too: JAX traces them later."""

    @wraps(function)
    def run(*args: Any, **kwargs: Any) -> Any:
        with jax.numpy_rank_promotion("allow"):
            return function(*args, **kwargs)

    return run


# ---- arrays


def host(x: Array) -> Any:
    if isinstance(x, np.ndarray):
        return x
    if isinstance(x, jax.core.Tracer) or any(device.platform != "cpu" for device in x.devices()):
        return None
    return fetch(x)


def fetch(x: Array) -> Any:
    if isinstance(x, np.ndarray):
        return x
    return None if isinstance(x, jax.core.Tracer) or not x.is_fully_addressable else np.asarray(x)


def asarray(value: Any, like: Array) -> Array:
    """NumPy arrays go in as they are: the compiled loss places them with the logits."""
    return value


def integer(x: Array) -> Array:
    """Narrow ids in 32 bits; wider ones stay, since 64 bits may be switched off. Unsigned ones in signed integers of
    their width: an id that then is negative is no class."""
    return x.astype(jnp.int32 if x.dtype.itemsize <= 4 else jnp.int64)


def size(x: Array) -> Any:
    """A dimension that jax.export leaves open is neither an int nor an array."""
    count = jnp.size(x)
    return count if isinstance(count, int) else jnp.asarray(count)


def device(x: Array) -> str:
    return "traced" if isinstance(x, jax.core.Tracer) else ", ".join(sorted(str(d) for d in x.devices()))


# ---- mathematics along an axis


def total(x: Array, axis: int | None) -> Array:
    """XLA's own sums block in JAX (not in TensorFlow); adding by hand would cost their vectorisation."""
    return jnp.sum(x) if axis is None else jnp.sum(x, axis, keepdims=True)


def top(x: Array, axis: int) -> tuple[Array, Array]:
    """The outer barrier keeps what is done with them out of the loops over the classes: soft labels took XLA three
    arrays like x besides."""
    m, s = jax.lax.optimization_barrier(formulas.top(OPS, x, axis, jax.lax.optimization_barrier))
    return m, s


def pick(x: Array, ids: Array, axis: int) -> Array:
    """JAX gathers only along lengths of which it can prove that they are not 0, as jax.export leaves some open."""
    if all(isinstance(length, int) for length in x.shape):
        return jnp.take_along_axis(x, ids, axis)
    return total(jnp.where(jax.lax.broadcasted_iota(ids.dtype, x.shape, axis) == ids, x, 0), axis)


def put(x: Array, ids: Array, values: Array, axis: int) -> Array:
    return jnp.where(jax.lax.broadcasted_iota(ids.dtype, x.shape, axis) == ids, values, x)


OPS = Ops(
    dtype=lambda x: x.dtype.name,
    shape=np.shape,
    device=device,
    host=host,
    fetch=fetch,
    asarray=asarray,
    astype=lambda x, dtype: jnp.asarray(x).astype(dtype),  # x: a count, too
    integer=integer,
    where=jnp.where,
    expand_dims=jnp.expand_dims,
    squeeze=jnp.squeeze,
    zeros_like=jnp.zeros_like,
    full=lambda shape, value, dtype, like: vary(jnp.full(shape, value, dtype), varying(like)),
    take=lambda table, ids: table[ids],
    size=size,
    stop_gradient=jax.lax.stop_gradient,
    exp=jnp.exp,
    log1p=jnp.log1p,
    abs=jnp.abs,
    max=lambda x, axis: jnp.max(x, axis, keepdims=True),
    sum=total,
    top=top,
    pick=pick,
    put=put,
    index_dtype="int32",
)


# ---- kernels


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


def adapter() -> Adapter:
    from ._jax_linear import LINEAR  # which is built from what is above

    formulas_only = Adapter(
        name="jax",
        types=(jax.Array,),
        ops=OPS,
        rows=rows,
        sigmoid=sigmoid,
        value_and_grad=value_and_grad,
        linear=LINEAR,
        run=compiled,
    )
    if native is None:
        return formulas_only
    from . import _jax_native as kernels

    return replace(
        formulas_only,
        rows=kernels.rows,
        sigmoid=kernels.sigmoid,
        sigmoid_sum=kernels.sigmoid_sum,
        rows_both=kernels.rows_both,
        sigmoid_both=kernels.sigmoid_both,
        fuse=kernels.fuse,
        linear=kernels.LINEAR,
        narrow=True,
    )


ADAPTER = adapter()
