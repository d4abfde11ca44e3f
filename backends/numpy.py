"""NumPy. It has no differentiation of its own, so `rows_vjp` and `sigmoid_vjp` state it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from xent import formulas
from xent._adapter import Adapter, Layout, Ops

Array = Any


# ---- arrays


def asarray(value: Any, like: Array) -> Array:
    return np.asarray(value)


def astype(x: Array, dtype: str) -> Array:
    return x.astype(dtype, copy=False)


def integer(x: Array) -> Array:
    return x if x.dtype.kind == "i" else x.astype(np.int64)


# ---- mathematics along an axis


def total(x: Array, axis: int | None) -> Array:
    """NumPy adds pairwise along contiguous memory only, one after the other along any other axis."""
    if axis is None:
        return np.sum(x)
    last = np.ascontiguousarray(np.moveaxis(x, axis, -1))
    return np.expand_dims(np.sum(last, axis=-1), axis)


def top(x: Array, axis: int) -> tuple[Array, Array]:
    place = np.argmax(x, axis=axis, keepdims=True)
    m = formulas.finite_or_nan(OPS, np.take_along_axis(x, place, axis))
    e = np.exp(x - m)
    np.put_along_axis(e, place, 0, axis)
    return m, total(e, axis)


def put(x: Array, ids: Array, values: Array, axis: int) -> Array:
    np.put_along_axis(x, ids, values, axis)
    return x


def logistic(x: Array) -> Array:
    q = np.exp(-np.abs(x))
    return np.where(x > 0, 1, q) / (1 + q)


OPS = Ops(
    dtype=lambda x: x.dtype.name,
    shape=np.shape,
    device=lambda x: "cpu",
    host=lambda x: x,
    fetch=lambda x: x,
    asarray=asarray,
    astype=astype,
    integer=integer,
    where=np.where,
    expand_dims=np.expand_dims,
    squeeze=np.squeeze,
    zeros_like=np.zeros_like,
    full=lambda n, value, like: np.full(n, value, like.dtype),
    take=np.take,
    size=np.size,
    stop_gradient=lambda x: x,
    exp=np.exp,
    log1p=np.log1p,
    abs=np.abs,
    minimum=np.minimum,
    sigmoid=logistic,
    max=lambda x, axis: np.max(x, axis=axis, keepdims=True),
    sum=total,
    top=top,
    pick=np.take_along_axis,
    put=put,
)


# ---- kernels


def rows(lay: Layout, x: Array, t: Array | None, u: Array | None, ids: Array | None) -> Any:
    return formulas.rows(OPS, lay, x, t, u, ids)[0]


def rows_vjp(lay: Layout, x: Array, t: Array | None, u: Array | None, ids: Array | None) -> Any:
    results, stats = formulas.rows(OPS, lay, x, t, u, ids)

    def pull(*coefficients: Array | None) -> Array:
        return formulas.pull(OPS, lay, formulas.pieces(OPS, lay, x, ids, *stats), x, t, u, ids, coefficients)

    return results, pull


def sigmoid(e: float, x: Array, z: Array, p: Array | None, absent: Array | None) -> Array:
    return formulas.sigmoid(OPS, e, x, z, p, absent)


def sigmoid_vjp(e: float, x: Array, z: Array, p: Array | None, absent: Array | None) -> Any:
    return sigmoid(e, x, z, p, absent), lambda g: formulas.sigmoid_pull(OPS, e, x, z, p, absent, g)[0]


def quietly(function: Callable[..., Any], static: Any, *arrays: Any) -> Any:
    """inf - inf and the like are part of the meaning, not accidents to warn of."""
    with np.errstate(all="ignore"):
        return function(static, *arrays)


ADAPTER = Adapter(
    name="numpy",
    types=(np.ndarray, np.generic),
    ops=OPS,
    rows=rows,
    sigmoid=sigmoid,
    rows_vjp=rows_vjp,
    sigmoid_vjp=sigmoid_vjp,
    run=quietly,
)
