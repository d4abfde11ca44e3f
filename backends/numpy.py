"""NumPy. It has no differentiation of its own, so the kernels return derivatives beside the losses."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache, partial
from typing import Any

import numpy as np
from xent import formulas
from xent.adapter import Adapter, EntropyKernels, LinearKernels, Ops, Shortcut, SigmoidKernels, SoftmaxKernels
from xent.backends.cpu import calls
from xent.formulas import linear as loop

Array = Any


# ---- arrays


def asarray(value: Any, like: Array) -> Array:
    """In the machine's byte order: other frameworks reject arrays of the other order, or misread them."""
    x = np.asarray(value)
    return x if x.dtype.isnative else x.astype(x.dtype.newbyteorder("="))


def astype(x: Array, dtype: str) -> Array:
    return x.astype(dtype, copy=False)


def integer(x: Array) -> Array:
    return x if x.dtype.kind == "i" else x.astype(np.int64)


_name = cache(lambda dtype: dtype.name)  # NumPy makes a new string each time


# ---- mathematics along an axis


def total(x: Array, axis: int | None) -> Array:
    """NumPy adds pairwise along contiguous memory only, one after the other along any other axis."""
    if axis is None:
        return x.sum()
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


OPS = Ops(
    dtype=lambda x: _name(x.dtype),
    shape=np.shape,
    device=lambda x: "cpu",
    host=lambda x: x,
    fetch=lambda x: x,
    asarray=asarray,
    astype=astype,
    integer=integer,
    where=np.where,
    expand_dims=np.expand_dims,
    following=lambda x, last: np.concatenate([x[..., 1:], np.full_like(x[..., :1], last)], -1),
    squeeze=np.squeeze,
    zeros_like=np.zeros_like,
    full=lambda shape, value, dtype, like: np.full(shape, value, dtype)[()],  # a scalar, as NumPy's functions return
    take=np.take,
    size=np.size,
    stop_gradient=lambda x: x,
    exp=np.exp,
    log1p=np.log1p,
    tanh=np.tanh,
    abs=np.abs,
    max=lambda x, axis: np.max(x, axis=axis, keepdims=True),
    argmax=lambda x, axis: np.argmax(x, axis=axis, keepdims=True),
    sum=total,
    top=top,
    pick=np.take_along_axis,
    put=put,
)


# ---- kernels


def address(x: Array) -> int:
    """The address of an array's memory. A scalar has none: its `__array_interface__` is that of a freed copy."""
    place: int = x.ctypes.data
    return place


def dense(x: Array, shape: tuple[int, ...]) -> Array:
    if x.shape == shape and x.flags.c_contiguous and x.dtype.isnative:
        return np.asarray(x)
    return np.asarray(x if x.shape == shape else np.broadcast_to(x, shape), x.dtype.newbyteorder("="), order="C")


def empty(shape: tuple[int, ...], dtype: str, like: Array) -> Array:
    """New memory. The dtype comes from `like` where it can: NumPy does not know bfloat16 by name."""
    kind = like.dtype
    if dtype != _name(kind):
        return np.empty(shape, dtype)
    return np.empty(shape, kind if kind.isnative else kind.newbyteorder("="))


NATIVE = calls.native is not None
KERNELS = calls.Kernels(ops=OPS, address=address, dense=dense, empty=empty, turn=np.moveaxis, threads=lambda: 0)


def sigmoid(smoothing: float, x: Array, targets: Array, pos_weight: Array | None, absent: Array | None) -> Array:
    return KERNELS.sigmoid(
        smoothing, x, targets, pos_weight, None if absent is None else (~absent).astype(targets.dtype), each=True
    )


def entropy_kernels(kernels: calls.Kernels) -> EntropyKernels:
    return EntropyKernels(
        lambda axis, x, weight: kernels.entropy(axis, x, weight, False)[0],
        lambda axis, x, weight: kernels.entropy(axis, x, weight, True),
    )


SOFTMAX, SIGMOID = formulas.softmax_kernels(OPS), formulas.sigmoid_kernels(OPS)
ENTROPY = formulas.entropy_kernels(OPS)
if NATIVE:
    ENTROPY = entropy_kernels(KERNELS)
    SOFTMAX = SoftmaxKernels(KERNELS.rows, KERNELS.rows_value_and_grad, KERNELS.mean_value_and_grad)
    SIGMOID = SigmoidKernels(sigmoid, partial(KERNELS.sigmoid, each=False), KERNELS.sigmoid_value_and_grad)


# ---- `sparse_ce` with no option but `axis` and `ignore_index` in one call


def dense_arrays(*arrays: Any) -> bool:
    """Whether the native kernels take these as they are, whatever their shapes and dtypes."""
    return all(type(k) is np.ndarray and k.flags.c_contiguous and k.dtype.isnative for k in arrays)


def shortcut(kernels: calls.Kernels) -> Shortcut | None:
    """With these kernels' memory for the gradient."""

    def value(axis: int, ignored: int | None, x: Any, ids: Any, _again: Any) -> Array | None:
        found = kernels.mean_of_ids(axis, ignored, x, ids, False) if dense_arrays(x, ids) else None
        return None if found is None else found[0]

    def value_and_grad(axis: int, ignored: int | None, x: Any, ids: Any) -> Any:
        return kernels.mean_of_ids(axis, ignored, x, ids, True) if dense_arrays(x, ids) else None

    return Shortcut(value, value_and_grad) if NATIVE else None


SHORTCUT = shortcut(KERNELS)


def quietly(function: Callable[..., Any], static: Any, *arrays: Any) -> Any:
    """Runs a loss without NumPy's warnings: NaN from inf - inf is a defined result here."""
    with np.errstate(all="ignore"):
        return function(static, *arrays)


# ---- matrices


def direct(*operands: Array) -> bool:
    """Whether the native kernels take all operands without a copy; a weight may be any view."""
    return NATIVE and all(k.flags.c_contiguous and k.dtype.isnative and k.size for k in operands)


def project(hidden: Array, weight: Array, over: Array) -> Array:
    x = over[: len(hidden)]
    if direct(hidden, weight):
        KERNELS.project(hidden, weight, x)
        return x
    if hidden.dtype == x.dtype:
        return np.matmul(hidden, weight.T, out=x)
    hidden = hidden.astype(np.float32)
    for part in loop.blocks(*weight.shape):
        np.matmul(hidden, weight[part].astype(np.float32).T, out=x[:, part])
    return x


def pull(dx: Array, weight: Array) -> Array:
    if direct(dx, weight):
        dh = np.empty((len(dx), weight.shape[1]), dx.dtype)
        KERNELS.pull(dx, weight, dh)
        return dh
    if weight.dtype == dx.dtype:
        return dx @ weight
    return np.add.reduce([dx[:, part] @ weight[part].astype(dx.dtype) for part in loop.blocks(*weight.shape)])


def accumulate(sums: Array, dx: Array, hidden: Array) -> Array:
    """Some classes at a time, so that their product is still in the cache when it is added.

    All products share memory: getting new memory for each would take half as long as the product itself.
    """
    if direct(sums, dx, hidden):
        KERNELS.accumulate(dx, hidden, sums)
        return sums
    hidden = hidden.astype(sums.dtype, copy=False)
    parts = loop.blocks(*sums.shape)
    products = np.empty_like(sums[parts[0]])
    for part in parts:
        product = products[: part.stop - part.start]
        sums[part] += np.matmul(dx[:, part].T, hidden, out=product)
    return sums


def head(spec: loop.LoopSpec, operands: loop.LoopOperands) -> tuple[Array, loop.LoopResults]:
    results = loop.forward(spec, operands)
    return loop.value(spec, results, operands), results


IN_PLACE = replace(KERNELS, in_place=True)  # writes a chunk's derivative over its logits
LINEAR = LinearKernels(
    ops=OPS,
    rows=SOFTMAX.rows,
    rows_value_and_grad=IN_PLACE.rows_value_and_grad if NATIVE else SOFTMAX.rows_value_and_grad,
    tanh=lambda x: np.tanh(x, out=x),
    matmul=lambda h, weight: h @ weight.T,
    flat=lambda x, kept: x.reshape(-1, *x.shape[x.ndim - kept :]),
    shaped=lambda x, like: x.reshape(like.shape),
    project=project,
    buffer=lambda rows, classes, dtype, like: np.empty((rows, classes), dtype),
    pull=pull,
    accumulate=accumulate,
    scan=partial(loop.scan, lambda shape, like, zeros: (np.zeros if zeros else np.empty)(shape, like.dtype)),
    head=head,
    memory=lambda x: loop.MEMORY,
)


ADAPTER = Adapter(
    name="numpy",
    types=(np.ndarray, np.generic),
    ops=OPS,
    softmax=SOFTMAX,
    sigmoid=SIGMOID,
    linear=LINEAR,
    shortcut=SHORTCUT,
    entropy=ENTROPY,
    takes_16bit=NATIVE,
    run=quietly,
)
