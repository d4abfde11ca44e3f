"""TensorFlow: its fused losses, eager, in a tf.function, and under XLA."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import tensorflow as tf
from xent.benchmarks.frameworks import Call, Contender, Framework, Inputs, Loss, Mode, in_modes, keras, ours
from xent.benchmarks.workloads import Workload
from xent.verify.frameworks import load

Array = Any


def make(device: str) -> Framework:
    live = load("tensorflow")
    modes = {mode: _mode(compiler) for mode, compiler in live.compilers.items()}
    return Framework(
        array=lambda x, dtype: live.array(x, dtype if x.dtype.kind == "f" else None, device),
        numpy=lambda x: np.asarray(tf.cast(x, tf.float32) if x.dtype.size == 2 else x),
        contenders=lambda workload: contenders(workload, modes),
        distributions=("tensorflow", "keras"),
        wait=(lambda _: None) if device == "cpu" else (lambda _: tf.test.experimental.sync_devices()),
        limit=tf.config.threading.set_intra_op_parallelism_threads,
        peak=lambda: peak("CPU:0" if device == "cpu" else device),
    )


def contenders(workload: Workload, modes: dict[str, Mode]) -> Iterator[Contender]:
    yield from in_modes(modes, "xent", ours(workload))
    yield from keras.contenders(workload, {"compiled": modes["compiled"]})
    nn, axis, mean = tf.nn, workload.axis, tf.reduce_mean
    order = None if axis == -1 else [*(i for i in range(len(workload.shape)) if i != axis), axis]

    def sigmoid(x: Array, z: Array) -> Array:
        return mean(nn.sigmoid_cross_entropy_with_logits(labels=z, logits=x))

    def soft(x: Array, t: Array) -> Array:
        return mean(nn.softmax_cross_entropy_with_logits(labels=t, logits=x, axis=axis))

    def sparse(x: Array, y: Array) -> Array:
        x = x if order is None else tf.transpose(x, order)  # it knows the last axis only
        return mean(nn.sparse_softmax_cross_entropy_with_logits(labels=y, logits=x))

    def linear(inputs: Inputs, y: Array) -> Array:
        return sparse(tf.matmul(*inputs, transpose_b=True), y)

    name, loss = {
        "sigmoid_ce": ("sigmoid_cross_entropy_with_logits", sigmoid),
        "softmax_ce": ("softmax_cross_entropy_with_logits", soft),
        "sparse_ce": ("sparse_softmax_cross_entropy_with_logits", sparse),
        "linear_ce": ("sparse_softmax_cross_entropy_with_logits", linear),
    }[workload.loss]
    yield from in_modes(modes, f"tf.nn.{name}", loss)


def _mode(compiler: Callable[[Call], Call]) -> Mode:
    def wrap(loss: Loss) -> tuple[Call, Call]:
        def both(x: Inputs, y: Array) -> tuple[Array, Inputs]:
            with tf.GradientTape() as tape:
                tape.watch(x)
                value = loss(x, y)
            return value, tape.gradient(value, x)

        return compiler(lambda x, y: loss(x, y)), compiler(both)

    return wrap


def peak(device: str) -> Callable[[], int | None]:
    """The allocator's own count, for it keeps what it once had. On a CPU it counts only where TensorFlow uses oneDNN
    (AVX-512 VNNI and the like); elsewhere memory is the C library's, and the process's peak tells."""
    memory = tf.config.experimental
    try:
        memory.reset_memory_stats(device)
        before: int = memory.get_memory_info(device)["current"]
    except ValueError:
        return lambda: None
    return lambda: memory.get_memory_info(device)["peak"] - before
