"""JAX's arrays: facts about them, glue, and mathematics along an axis."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, wraps
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from xent import formulas
from xent.adapter import Ops

from .mesh import vary, varying

Array = Any


def promoting(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function with rank promotion allowed, which xent's formulas need, whatever `jax_numpy_rank_promotion` is.

    Derivative rules need it as well: JAX traces them later.
    """

    @wraps(function)
    def run(*args: Any, **kwargs: Any) -> Any:
        with jax.numpy_rank_promotion("allow"):
            return function(*args, **kwargs)

    return run


# ---- arrays

name_of = cache(lambda dtype: dtype.name)  # NumPy puts it together each time


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
    """NumPy arrays stay NumPy arrays: the compiled loss places them beside the logits."""
    return value


def integer(x: Array) -> Array:
    """ids as int32, or int64 where they are wider (in JAX's x64 mode).

    An unsigned id too large for the signed dtype becomes negative, and so is still no class.
    """
    return x.astype(jnp.int32 if x.dtype.itemsize <= 4 else jnp.int64)


def size(x: Array) -> Any:
    """The number of elements: an int, or an array where jax.export leaves a dimension open."""
    count = jnp.size(x)
    return count if isinstance(count, int) else jnp.asarray(count)


def device(x: Array) -> str:
    return "traced" if isinstance(x, jax.core.Tracer) else ", ".join(sorted(str(d) for d in x.devices()))


# ---- mathematics along an axis


def total(x: Array, axis: int | None) -> Array:
    """XLA's own sums: in JAX they are blocked, unlike in TensorFlow, and faster than a tree of additions."""
    return jnp.sum(x) if axis is None else jnp.sum(x, axis, keepdims=True)


def top(x: Array, axis: int) -> tuple[Array, Array]:
    """The outer barrier keeps later operations out of the loops over the classes: without it, XLA allocates three
    more arrays like x for soft labels."""
    m, s = jax.lax.optimization_barrier(formulas.top(OPS, x, axis, jax.lax.optimization_barrier))
    return m, s


def argmax(x: Array, axis: int) -> Array:
    """By comparison, since compilers neither fuse nor vectorise an argmax, nor know one of a length left open."""
    best, last = x == jnp.max(x, axis, keepdims=True), jnp.iinfo("int32").max
    return jnp.min(jnp.where(best, jax.lax.broadcasted_iota("int32", x.shape, axis), last), axis, keepdims=True)


def pick(x: Array, ids: Array, axis: int) -> Array:
    """Not a gather where jax.export leaves a length open: JAX would have to prove that it is not 0."""
    if all(isinstance(length, int) for length in x.shape):
        return jnp.take_along_axis(x, ids, axis)
    return total(jnp.where(jax.lax.broadcasted_iota(ids.dtype, x.shape, axis) == ids, x, 0), axis)


def put(x: Array, ids: Array, values: Array, axis: int) -> Array:
    return jnp.where(jax.lax.broadcasted_iota(ids.dtype, x.shape, axis) == ids, values, x)


OPS = Ops(
    dtype=lambda x: name_of(x.dtype),
    shape=np.shape,
    device=device,
    host=host,
    fetch=fetch,
    asarray=asarray,
    astype=lambda x, dtype: jnp.asarray(x).astype(dtype),  # x may be a number
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
    argmax=argmax,
    sum=total,
    top=top,
    pick=pick,
    put=put,
    index_dtype="int32",
)
