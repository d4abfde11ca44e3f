"""JAX's arrays: facts about them, glue, and mathematics along an axis."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from xent import formulas
from xent.adapter import Ops

from .mesh import vary, varying

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
    following=lambda x, last: jnp.concatenate([x[..., 1:], jnp.full_like(x[..., :1], last)], -1),
    squeeze=jnp.squeeze,
    zeros_like=jnp.zeros_like,
    full=lambda shape, value, dtype, like: vary(jnp.full(shape, value, dtype), varying(like)),
    take=lambda table, ids: table[ids],
    size=size,
    stop_gradient=jax.lax.stop_gradient,
    exp=jnp.exp,
    log1p=jnp.log1p,
    tanh=jnp.tanh,
    abs=jnp.abs,
    max=lambda x, axis: jnp.max(x, axis, keepdims=True),
    sum=total,
    top=top,
    pick=pick,
    put=put,
    index_dtype="int32",
)
