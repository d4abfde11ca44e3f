"""Eager TensorFlow: the native kernels on the memory of its tensors."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import tensorflow as tf
from tensorflow.python import pywrap_tfe  # no public name says which tapes watch a tensor
from tensorflow.python.framework import op_callbacks  # nor whether every operation's results are checked
from xent.backends import numpy as host_numpy
from xent.backends.cpu import calls

from .ops import OPS

Array = Any


def reachable(*arrays: Array | None) -> bool:
    return (
        NATIVE
        and tf.executing_eagerly()
        and all(k is None or (isinstance(k, EAGER) and k.device.endswith("CPU:0")) for k in arrays)
    )


def order(*arrays: Array | None) -> int:
    """The highest order of derivative that may be asked for: 0, 1, or 2 for more and for forward mode."""
    given = [k for k in arrays if k is not None]
    if pywrap_tfe.TFE_Py_PackJVPs(given)[0]:
        return 2
    found: int = pywrap_tfe.TFE_Py_TapeSetPossibleGradientTypes(given)
    return found


def constant(*upstream: Array | None) -> bool:
    """Whether these are plain values: tape.jacobian maps over upstream gradients, and other tapes may watch them."""
    return reachable(*upstream) and order(*upstream) == 0


def view(x: Array | None) -> Any:
    return None if x is None else x._numpy_internal()


LARGE = 1 << 20  # bytes; for less an operation of TensorFlow's costs more than fresh memory


def empty(shape: tuple[int, ...], dtype: str, like: Any) -> Any:
    """Memory aligned so that TensorFlow can adopt it; large memory is its own: fresh pages cost more than a kernel."""
    kind = like.dtype if host_numpy.OPS.dtype(like) == dtype else np.dtype(dtype)
    size = math.prod(shape) * kind.itemsize
    if (
        size >= LARGE and not op_callbacks.should_invoke_op_callbacks()
    ):  # enable_check_numerics would check it unwritten
        with tf.device("CPU:0"):
            return view(tf.raw_ops.Empty(shape=shape, dtype=dtype))
    memory = np.empty(size + 64, np.uint8)
    start = -host_numpy.address(memory) % 64
    return memory[start : start + size].view(kind).reshape(shape)


def tensor(x: Any) -> Array:
    """A tensor on x's memory, without a copy if that is aligned."""
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
    host_numpy.ADAPTER,
    ops=replace(host_numpy.OPS, index_dtype=OPS.index_dtype),  # in which `Stats.argmax` is returned
    softmax=replace(
        host_numpy.SOFTMAX,
        rows_value_and_grad=KERNELS.rows_value_and_grad,
        mean_value_and_grad=KERNELS.mean_value_and_grad,
    ),
    sigmoid=replace(host_numpy.SIGMOID, value_and_grad=KERNELS.sigmoid_value_and_grad),
    entropy=host_numpy.entropy_kernels(KERNELS),
)


def on_host(function: Callable[..., Any], static: Any, *arrays: Array | None) -> Any:
    """NumPy's loss on the tensors' memory."""
    results = HOST.run(function, static._replace(adapter=HOST), *map(view, arrays))
    if isinstance(results, np.ndarray | np.generic):  # most are, and a walk takes longer than the loss
        return tensor(results)
    return tf.nest.map_structure(tensor, results)
