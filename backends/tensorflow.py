"""TensorFlow. The kernels are `custom_gradient`s that keep the row statistics (m, s), never the probabilities, and
whose gradient is made of operations with right gradients of their own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tensorflow as tf
from xent import formulas
from xent._adapter import Adapter, Layout, Ops

Array = Any


# ---- arrays


def host(x: Array) -> Any:
    return None if "GPU" in x.device else fetch(x)


def fetch(x: Array) -> Any:
    return x.numpy() if hasattr(x, "numpy") else None


def asarray(value: Any, like: Array) -> Array:
    return tf.convert_to_tensor(value)


def where(condition: Array, a: Any, b: Any) -> Array:
    """tf.where would make float32 of a Python number beside float64."""
    if not tf.is_tensor(a):
        a = tf.cast(a, b.dtype)
    return tf.where(condition, a, b if tf.is_tensor(b) else tf.cast(b, a.dtype))


def same_shape(value: Array, like: Array, axis: int | None) -> Array:
    """An assertion for its sentence, and a reshape because XLA drops assertions."""
    shape = tf.shape(like)
    if axis is not None:
        shape = tf.concat([shape[:axis], shape[axis + 1 :]], 0)
    message = "labels: expected another shape"
    with tf.control_dependencies([tf.debugging.assert_equal(tf.shape(value), shape, message)]):
        return tf.reshape(value, shape)


# ---- mathematics along an axis


def total(x: Array, axis: int | None) -> Array:
    """Reductions by XLA do not block, and a graph does not know whether XLA will compile it."""
    if axis is None:
        return tf.squeeze(total(tf.reshape(x, [-1]), 0), 0)

    def add_eighths(x: Array, n: int) -> Array:
        pad = [[0, 8 * n - x.shape[axis] if i == axis else 0] for i in range(len(x.shape))]
        return tf.add_n(tf.split(tf.pad(x, pad), 8, axis))

    return formulas.tree_sum(x, x.shape[axis], add_eighths, lambda x: tf.reduce_sum(x, axis, keepdims=True))


def top(x: Array, axis: int) -> tuple[Array, Array]:
    return formulas.top(OPS, x, axis)


def pick(x: Array, ids: Array, axis: int) -> Array:
    return tf.reduce_sum(tf.where(hot(x, ids, axis), x, tf.zeros([], x.dtype)), axis, keepdims=True)


def put(x: Array, ids: Array, values: Array, axis: int) -> Array:
    return tf.where(hot(x, ids, axis), values, x)


def hot(x: Array, ids: Array, axis: int) -> Array:
    places = tf.range(tf.shape(x, ids.dtype)[axis], dtype=ids.dtype)
    return tf.reshape(places, [-1] + [1] * (len(x.shape) - 1 - axis)) == ids


OPS = Ops(
    dtype=lambda x: x.dtype.name,
    shape=lambda x: tuple(x.shape),
    device=lambda x: x.device,
    host=host,
    fetch=fetch,
    asarray=asarray,
    astype=lambda x, dtype: tf.cast(x, dtype),
    integer=lambda x: tf.cast(x, tf.int64),
    where=where,
    expand_dims=tf.expand_dims,
    squeeze=tf.squeeze,
    zeros_like=tf.zeros_like,
    full=lambda n, value, like: tf.fill([n], tf.constant(value, like.dtype)),
    take=lambda table, ids: tf.gather(table, ids),
    size=tf.size,
    stop_gradient=tf.stop_gradient,
    exp=tf.exp,
    log1p=tf.math.log1p,
    abs=tf.abs,
    minimum=tf.minimum,
    sigmoid=tf.sigmoid,
    max=lambda x, axis: tf.reduce_max(x, axis, keepdims=True),
    sum=total,
    top=top,
    pick=pick,
    put=put,
    same_shape=same_shape,
    index_dtype="int32",
)


# ---- kernels


def rows(lay: Layout, x: Array, t: Array | None, u: Array | None, ids: Array | None) -> Any:
    @tf.custom_gradient
    def kernel(x: Array, t: Array | None = None) -> Any:
        # vectorized_map drops custom gradients, and forward mode looks through them
        results, (m, s) = formulas.rows(OPS, lay, x, t, u, ids, differentiable=True)

        def backward(*upstream: Array) -> Any:
            given = iter(upstream)
            coefficients = tuple(None if result is None else next(given) for result in results)
            parts = formulas.smooth_pieces(OPS, lay, x, ids, m, s)
            dx = formulas.pull(OPS, lay, parts, x, t, u, ids, coefficients)
            return dx if t is None else (dx, formulas.pull_labels(OPS, lay, parts, x, m, ids, coefficients))

        return [result for result in results if result is not None], backward

    given = iter(kernel(x) if t is None else kernel(x, t))
    return next(given), next(given) if lay.lse else None, None if u is None else next(given)


def sigmoid(e: float, x: Array, z: Array, p: Array | None, absent: Array | None) -> Array:
    @tf.custom_gradient
    def kernel(x: Array, z: Array) -> Any:
        loss = formulas.sigmoid(OPS, e, x, z, p, absent)
        return loss, lambda g: formulas.sigmoid_pull(OPS, e, x, z, p, absent, g)

    return kernel(x, z)


def value_and_grad(f: Callable[[Array], Array], x: Array) -> tuple[Array, Array]:
    with tf.GradientTape() as tape:
        tape.watch(x)
        value = f(x)
    return value, tape.gradient(value, x)


@tf.autograph.experimental.do_not_convert
def run(function: Callable[..., Any], static: Any, *arrays: Any) -> Any:
    return function(static, *arrays)


ADAPTER = Adapter(
    name="tensorflow",
    types=(tf.Tensor, tf.Variable),
    ops=OPS,
    rows=rows,
    sigmoid=sigmoid,
    value_and_grad=value_and_grad,
    run=run,
)
