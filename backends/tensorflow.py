"""TensorFlow. The kernels are `custom_gradient`s that keep the row statistics (m, s), never the probabilities, and
whose gradient is made of operations with right gradients of their own."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import tensorflow as tf
from tensorflow.python import pywrap_tfe  # no public name says which tapes watch a tensor
from tensorflow.python.framework import op_callbacks  # nor whether somebody checks every operation's results
from xent import formulas
from xent._adapter import Adapter, Layout, Ops

from . import _tensorflow_shapes as shapes
from . import numpy as host_numpy
from .cpu import calls
from .cpu.tensorflow_operators import here

Array = Any


# ---- arrays


def host(x: Array) -> Any:
    return None if "GPU" in x.device else fetch(x)


def fetch(x: Array) -> Any:
    return x.numpy() if hasattr(x, "numpy") else None


def asarray(value: Any, like: Array) -> Array:
    return tf.convert_to_tensor(value)


def full(shape: Any, value: Any, dtype: str, like: Array) -> Array:
    """tf.cast would make float32 of a Python number first, beside float64 too."""
    return tf.fill(shape, tf.cast(value, dtype) if tf.is_tensor(value) else tf.constant(value, dtype))


def where(condition: Array, a: Any, b: Any) -> Array:
    """tf.where would make float32 of a Python number beside float64."""
    if not tf.is_tensor(a):
        a = tf.cast(a, b.dtype)
    return tf.where(condition, a, b if tf.is_tensor(b) else tf.cast(b, a.dtype))


# ---- mathematics along an axis


BLOCK = 8  # terms that one running total in float32 may add


def total(x: Array, axis: int | None) -> Array:
    """Reductions by XLA do not block, and a graph does not know whether XLA will compile it."""
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
    """Quicker than additions, and XLA cannot join two sums that a cast separates."""
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
    """A gather where rows are whole; elsewhere it would take a transpose."""
    if axis == len(x.shape) - 1:
        return tf.gather(x, ids, axis=axis, batch_dims=axis)
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
    full=full,
    take=lambda table, ids: tf.gather(table, ids),
    size=lambda x: tf.size(x, tf.int64),
    stop_gradient=tf.stop_gradient,
    exp=tf.exp,
    log1p=tf.math.log1p,
    abs=tf.abs,
    max=lambda x, axis: tf.reduce_max(x, axis, keepdims=True),
    sum=total,
    top=top,
    pick=pick,
    put=put,
    unknown=shapes.UNKNOWN,
    index_dtype="int32",
)


# ---- eager: the native kernels, on the memory of tensors that are values


def reachable(*arrays: Array | None) -> bool:
    return (
        NATIVE
        and tf.executing_eagerly()
        and all(k is None or (isinstance(k, EAGER) and k.device.endswith("CPU:0")) for k in arrays)
    )


def order(*arrays: Array | None) -> int:
    """The highest derivative in these that somebody may ask for: 2 stands for forward mode, and for all above 1."""
    given = [k for k in arrays if k is not None]
    if pywrap_tfe.TFE_Py_PackJVPs(given)[0]:
        return 2
    found: int = pywrap_tfe.TFE_Py_TapeSetPossibleGradientTypes(given)
    return found


def constant(*upstream: Array | None) -> bool:
    """Upstream gradients may be mapped over (tape.jacobian does), or depend on what another tape watches."""
    return reachable(*upstream) and order(*upstream) == 0


def view(x: Array | None) -> Any:
    return None if x is None else x._numpy_internal()


LARGE = 1 << 20  # bytes; for less an operation of TensorFlow's costs more than fresh memory


def empty(shape: tuple[int, ...], dtype: str, like: Any) -> Any:
    """Aligned as TensorFlow wants memory that it adopts; its own where fresh memory would cost more than the kernel."""
    kind = like.dtype if host_numpy.OPS.dtype(like) == dtype else np.dtype(dtype)
    size = math.prod(shape) * kind.itemsize
    if size >= LARGE and not op_callbacks.should_invoke_op_callbacks():  # enable_check_numerics would look at it now
        with tf.device("CPU:0"):
            return view(tf.raw_ops.Empty(shape=shape, dtype=dtype))
    memory = np.empty(size + 64, np.uint8)
    start = -host_numpy.address(memory) % 64
    return memory[start : start + size].view(kind).reshape(shape)


def tensor(x: Any) -> Array:
    """Without a copy where x is aligned."""
    x = np.asarray(x)
    if host_numpy.address(x) % 64:
        x, unaligned = empty(x.shape, x.dtype.name, x), x
        x[...] = unaligned
    if x.dtype.name == "bfloat16":  # unknown to NumPy's DLPack
        return tf.bitcast(tensor(x.view(np.uint16)), tf.bfloat16)
    return tf.experimental.dlpack.from_dlpack(x.__dlpack__())


NATIVE = calls.native is not None
EAGER = tf.__internal__.EagerTensor
KERNELS = replace(host_numpy.KERNELS, empty=empty)
HOST = replace(
    host_numpy.ADAPTER, rows_both=KERNELS.rows_both, mean_both=KERNELS.mean_both, sigmoid_both=KERNELS.sigmoid_both
)


def on_host(function: Callable[..., Any], static: Any, *arrays: Array | None) -> Any:
    """A loss of values is NumPy's, on the same memory."""
    results = HOST.run(function, static._replace(xp=HOST), *map(view, arrays))
    return tf.nest.map_structure(tensor, results)


# ---- kernels


def rows(lay: Layout, x: Array, t: Array | None, u: Array | None, ids: Array | None) -> Any:
    native = reachable(x, t, u, ids) and order(x, t) < 2
    wanted = True, t is not None and (not native or order(t) > 0)

    @tf.custom_gradient
    def kernel(x: Array, t: Array | None = None) -> Any:
        if native:
            results, (m, s) = KERNELS.rows(lay, *map(view, (x, t, u, ids)))
            results = [None if result is None else tensor(result) for result in results]
        else:  # vectorized_map drops custom gradients, and forward mode looks through them
            results, (m, s) = formulas.rows(OPS, lay, formulas.widened(OPS, x), t, u, ids, differentiable=True)

        def backward(*upstream: Array) -> Any:
            given = iter(upstream)
            up = tuple(None if result is None else next(given) for result in results[:3])
            if native and constant(*up):
                coefficients = tuple(map(view, up))
                dx, dt = KERNELS.rows_backward(lay, view(x), view(t), view(u), view(ids), (m, s), coefficients, wanted)
                return tensor(dx) if t is None else (tensor(dx), None if dt is None else tensor(dt))
            wide = formulas.widened(OPS, x)
            parts = formulas.smooth_pieces(OPS, lay, wide, ids, *stats(m, s))
            dx = tf.cast(formulas.pull(OPS, lay, parts, wide, t, u, ids, up), x.dtype)
            return dx if t is None else (dx, formulas.pull_labels(OPS, lay, parts, ids, up))

        return [result for result in results if result is not None], backward

    given = iter(kernel(x) if t is None else kernel(x, t))
    return next(given), next(given) if lay.lse else None, None if u is None else next(given), next(given)


def stats(m: Any, s: Any) -> tuple[Array, Array]:
    return tf.convert_to_tensor(m), tf.convert_to_tensor(s)


def sigmoid(e: float, x: Array, z: Array, p: Array | None, absent: Array | None) -> Array:
    @tf.custom_gradient
    def kernel(x: Array, z: Array) -> Any:
        wide = formulas.widened(OPS, x)
        loss = formulas.sigmoid(OPS, e, wide, z, p, absent)

        def backward(g: Array) -> Any:
            dx, dz = formulas.sigmoid_pull(OPS, e, formulas.widened(OPS, x), z, p, absent, g)
            return tf.cast(dx, x.dtype), dz

        return loss, backward

    return kernel(x, z)


# ---- loss and derivative in one visit


@tf.autograph.experimental.do_not_convert
def fuse(loss: Any, both: Any, static: Any, x: Array, *arrays: Array | None) -> Array:
    if not reachable(x, *arrays) or order(*arrays):
        return loss(static, x, *arrays)
    highest = order(x)
    if highest == 0:
        return on_host(loss, static, x, *arrays)
    if highest > 1 or x.dtype.size == 2:  # 16 bits are not rounded twice
        return loss(static, x, *arrays)

    @tf.custom_gradient
    def fused(x: Array) -> Any:
        value, dx = on_host(both, static, x, *arrays)
        return value, partial(times, dx)

    return fused(x)


def times(dx: Array, g: Array) -> Array:
    """Without a visit of dx where g is 1; in a graph, that shows when it runs."""
    if tf.executing_eagerly():
        return dx if constant(g) and float(g) == 1 else dx * g
    if order(g) > 1:  # forward mode looks through the rule
        return dx * g

    @tf.custom_gradient
    def product(dx: Array, g: Array) -> Any:
        return tf.cond(g == 1, lambda: dx, lambda: dx * g), lambda up: (up * g, total(up * dx, None))

    return product(*here((dx, g)))


@tf.autograph.experimental.do_not_convert
def run(function: Callable[..., Any], static: Any, *arrays: Any) -> Any:
    if reachable(*arrays) and order(*arrays) == 0:
        return on_host(function, static, *arrays)
    return function(static, *arrays)


def watched(x: Array) -> bool:
    return not (tf.executing_eagerly() and NATIVE and pywrap_tfe.TFE_Py_TapeSetIsEmpty())


def value_and_grad(f: Callable[[Any], Any], x: Any) -> tuple[Any, Any]:
    with tf.GradientTape() as tape:
        tape.watch(x)
        value = f(x)
    return value, tape.gradient(value[0] if isinstance(value, tuple) else value, x)


def rows_both(lay: Layout, x: Array, *rest: Any) -> Any:
    return formulas.rows_both(OPS, lay, formulas.widened(OPS, x), *rest)


def sigmoid_both(e: float, x: Array, *rest: Any) -> Any:
    return formulas.sigmoid_both(OPS, e, formulas.widened(OPS, x), *rest)


def adapter() -> Adapter:
    from . import _tensorflow_graph as graph  # which are built from what is above
    from ._tensorflow_linear import LINEAR

    return Adapter(
        name="tensorflow",
        types=(tf.Tensor, tf.Variable),
        ops=OPS,
        rows=graph.rows,
        sigmoid=graph.sigmoid,
        sigmoid_sum=graph.sigmoid_sum,
        rows_both=graph.rows_both,
        sigmoid_both=graph.sigmoid_both,
        value_and_grad=value_and_grad,
        watched=watched,
        fuse=graph.fuse,
        linear=LINEAR,
        run=run,
        narrow=True,
    )


ADAPTER = adapter()
