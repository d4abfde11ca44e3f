"""Any library whose arrays follow the array API standard (2024.12): CuPy from 14 on, array_api_strict.

Each library gets an adapter that is made from its namespace: the formulas alone, on whatever device the arrays are. The
standard has no differentiation, and `xent.value_and_grad` needs none.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
from xent import formulas
from xent.adapter import Adapter, Ops
from xent.backends.numpy import quietly

Array = Any
DEVICES = {1: "cpu", 2: "cuda", 10: "rocm"}  # DLPack's numbers


# ---- arrays


def device(x: Array) -> str:
    kind, index = map(int, x.__dlpack_device__())
    name = DEVICES.get(kind, f"device type {kind}")
    return name if name == "cpu" else f"{name}:{index}"


def host(x: Array) -> Any:
    return fetch(x) if device(x) == "cpu" else None


def fetch(x: Array) -> Any:
    return x.get() if hasattr(x, "get") else np.from_dlpack(x)  # CuPy's arrays have `get`


def asarray(xp: Any, value: Any, like: Array) -> Array:
    """By way of NumPy, so that Python floats become float64."""
    x = value if isinstance(value, type(like)) else xp.asarray(np.asarray(value))
    return x if like is None or x.device == like.device else x.to_device(like.device)


def astype(xp: Any, x: Array, dtype: str) -> Array:
    return xp.astype(x, getattr(xp, dtype), copy=False)


def name(x: Array) -> str:
    """array_api_strict's dtypes have no `name`, and their text begins with the module's name."""
    return str(getattr(x.dtype, "name", x.dtype)).rpartition(".")[2]


def following(xp: Any, x: Array, last: int) -> Array:
    if not x.shape[-1]:
        return x  # a slice may not begin past the end
    return xp.concat([x[..., 1:], xp.full_like(x[..., :1], last)], axis=-1)


# ---- mathematics along an axis


def total(xp: Any, x: Array, axis: int | None) -> Array:
    """By elementwise additions: the standard does not say how its sum adds."""
    if axis is None:
        return xp.squeeze(total(xp, xp.reshape(x, (-1,)), 0), axis=0)
    place = (slice(None),) * axis

    def add_eighths(x: Array, n: int) -> Array:
        short = [*x.shape[:axis], 8 * n - x.shape[axis], *x.shape[axis + 1 :]]
        x = xp.concat([x, xp.zeros(tuple(short), dtype=x.dtype, device=x.device)], axis=axis) if short[axis] else x
        return formulas.add_pairs([x[(*place, slice(i * n, (i + 1) * n), ...)] for i in range(8)])

    return formulas.tree_sum(x, x.shape[axis], add_eighths, lambda x: xp.sum(x, axis=axis, keepdims=True))


def put(xp: Any, x: Array, ids: Array, values: Array, axis: int) -> Array:
    """The standard has no scatter."""
    places = xp.arange(x.shape[axis], dtype=ids.dtype, device=x.device)
    return xp.where(xp.reshape(places, (-1,) + (1,) * (x.ndim - 1 - axis)) == ids, values, x)


def operations(xp: Any) -> Ops:
    ops = Ops(
        dtype=name,
        shape=lambda x: tuple(x.shape),
        device=device,
        host=host,
        fetch=fetch,
        asarray=partial(asarray, xp),
        astype=partial(astype, xp),
        integer=lambda x: astype(xp, x, "int64"),
        where=xp.where,
        expand_dims=lambda x, axis: xp.expand_dims(x, axis=axis),
        following=partial(following, xp),
        squeeze=lambda x, axis: xp.squeeze(x, axis=axis),
        zeros_like=xp.zeros_like,
        full=lambda shape, value, dtype, like: xp.full(shape, value, dtype=getattr(xp, dtype), device=like.device),
        take=lambda table, ids: xp.reshape(xp.take(table, xp.reshape(ids, (-1,)), axis=0), ids.shape),
        size=lambda x: x.size,
        stop_gradient=lambda x: x,
        exp=xp.exp,
        log1p=xp.log1p,
        tanh=xp.tanh,
        abs=xp.abs,
        max=lambda x, axis: xp.max(x, axis=axis, keepdims=True),
        argmax=lambda x, axis: xp.argmax(x, axis=axis, keepdims=True),
        sum=partial(total, xp),
        top=lambda x, axis: formulas.top(ops, x, axis),
        pick=lambda x, ids, axis: xp.take_along_axis(x, ids, axis=axis),
        put=partial(put, xp),
    )
    return ops


# ---- the library's adapter


def adapter(xp: Any) -> Adapter:
    ops = operations(xp)
    return Adapter(
        name=xp.__name__.partition(".")[0],
        types=(type(xp.zeros(())),),
        ops=ops,
        softmax=formulas.softmax_kernels(ops),
        sigmoid=formulas.sigmoid_kernels(ops),
        run=quietly,
    )
