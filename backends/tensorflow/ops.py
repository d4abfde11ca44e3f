"""TensorFlow's tensors: facts about them, glue, and mathematics along an axis."""

from __future__ import annotations

from typing import Any

import tensorflow as tf
from xent import formulas
from xent.adapter import Ops

from . import shapes

Array = Any


# ---- arrays


def host(x: Array) -> Any:
    return None if "GPU" in x.device else fetch(x)


def fetch(x: Array) -> Any:
    return x.numpy() if hasattr(x, "numpy") else None


def asarray(value: Any, like: Array) -> Array:
    return tf.convert_to_tensor(value)


def full(shape: Any, value: Any, dtype: str, like: Array) -> Array:
    """Not by tf.cast alone, which makes a Python number float32 first, even for float64."""
    return tf.fill(shape, tf.cast(value, dtype) if tf.is_tensor(value) else tf.constant(value, dtype))


def where(condition: Array, a: Any, b: Any) -> Array:
    """tf.where with Python numbers cast first: it would make them float32 beside float64."""
    if not tf.is_tensor(a):
        a = tf.cast(a, b.dtype)
    return tf.where(condition, a, b if tf.is_tensor(b) else tf.cast(b, a.dtype))


# ---- mathematics along an axis


def argmax(x: Array, axis: int) -> Array:
    """By comparison: which of several equal logits tf.argmax takes is not said."""
    best = x == tf.reduce_max(x, axis, keepdims=True)
    return tf.reduce_min(tf.where(best, places(x, tf.int32, axis), tf.int32.max), axis, keepdims=True)


BLOCK = 8  # the most terms that are added up in one float32 running total


def total(x: Array, axis: int | None) -> Array:
    """Blocked: XLA's own sums are not, and a graph does not know whether XLA will compile it."""
    if axis is None:
        x = tf.reshape(x, [-1])
        if x.dtype == tf.float32:  # XLA takes minutes to compile many levels of additions
            return tf.cast(tf.reduce_sum(tf.cast(x, tf.float64)), x.dtype)
        return tf.squeeze(total(x, 0), 0)
    n = x.shape[axis]
    if x.dtype != tf.float32 or (n is not None and n <= 2 * BLOCK):
        return tree(x, axis)
    if n is None:  # 0s fill the last block
        short = -tf.shape(x)[axis] % BLOCK
        return block_sums(tf.pad(x, [[0, short if i == axis else 0] for i in range(len(x.shape))]), axis)
    if n % BLOCK == 0:
        return block_sums(x, axis)
    head, tail = tf.split(x, [n - n % BLOCK, n % BLOCK], axis)
    return block_sums(head, axis) + tf.reduce_sum(tail, axis, keepdims=True)


def block_sums(x: Array, axis: int) -> Array:
    """Sums of blocks, then of these in float64: faster than a tree, and XLA cannot join sums across a cast."""
    shape = tf.shape(x)
    blocks = tf.concat([shape[:axis], [shape[axis] // BLOCK, BLOCK], shape[axis + 1 :]], 0)
    sums = tf.cast(tf.reduce_sum(tf.reshape(x, blocks), axis + 1), tf.float64)
    return tf.cast(tf.reduce_sum(sums, axis, keepdims=True), x.dtype)


def tree(x: Array, axis: int) -> Array:
    def add_eighths(x: Array, n: int) -> Array:
        pad = [[0, 8 * n - x.shape[axis] if i == axis else 0] for i in range(len(x.shape))]
        return tf.add_n(tf.split(tf.pad(x, pad), 8, axis))

    return formulas.tree_sum(x, x.shape[axis], add_eighths, lambda x: tf.reduce_sum(x, axis, keepdims=True))


def top(x: Array, axis: int) -> tuple[Array, Array]:
    return formulas.top(OPS, x, axis)


def pick(x: Array, ids: Array, axis: int) -> Array:
    """A gather if the class axis is the last; elsewhere a gather would need a transpose."""
    if axis == len(x.shape) - 1:
        return tf.gather(x, ids, axis=axis, batch_dims=axis)
    return tf.reduce_sum(tf.where(hot(x, ids, axis), x, tf.zeros([], x.dtype)), axis, keepdims=True)


def put(x: Array, ids: Array, values: Array, axis: int) -> Array:
    return tf.where(hot(x, ids, axis), values, x)


def hot(x: Array, ids: Array, axis: int) -> Array:
    return places(x, ids.dtype, axis) == ids


def places(x: Array, dtype: Any, axis: int) -> Array:
    """0, 1, 2, ... along the axis, broadcasting against x."""
    return tf.reshape(tf.range(tf.shape(x, dtype)[axis], dtype=dtype), [-1] + [1] * (len(x.shape) - 1 - axis))


OPS = Ops(
    dtype=lambda x: x.dtype.name,
    shape=shapes.of,
    device=lambda x: x.device,
    host=host,
    fetch=fetch,
    asarray=asarray,
    astype=lambda x, dtype: tf.cast(x, dtype),
    integer=lambda x: tf.cast(x, tf.int64),
    where=where,
    expand_dims=tf.expand_dims,
    following=lambda x, last: tf.concat([x[..., 1:], tf.fill(tf.shape(x[..., :1]), tf.cast(last, x.dtype))], -1),
    squeeze=tf.squeeze,
    zeros_like=tf.zeros_like,
    full=full,
    take=lambda table, ids: tf.gather(table, ids),
    size=lambda x: tf.size(x, tf.int64),
    stop_gradient=tf.stop_gradient,
    exp=tf.exp,
    log1p=tf.math.log1p,
    tanh=tf.tanh,
    abs=tf.abs,
    max=lambda x, axis: tf.reduce_max(x, axis, keepdims=True),
    argmax=argmax,
    sum=total,
    top=top,
    pick=pick,
    put=put,
    unknown=shapes.UNKNOWN,
    index_dtype="int32",
)
