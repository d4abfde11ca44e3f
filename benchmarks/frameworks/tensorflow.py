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
OWN = {"sparse_ce": "sparse_softmax", "softmax_ce": "softmax", "sigmoid_ce": "sigmoid", "linear_ce": "sparse_softmax"}


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
        modes=modes,
        mean=tf.reduce_mean,
        peak=lambda: peak("CPU:0" if device == "cpu" else device),
    )


def contenders(workload: Workload, modes: dict[str, Mode]) -> Iterator[Contender]:
    yield from in_modes(modes, "xent", ours(workload))
    yield from keras(workload, {"compiled": modes["compiled"]})
    name = f"{OWN[workload.loss]}_cross_entropy_with_logits"
    class_axis_last = [*np.delete(range(len(workload.shape)), workload.axis), workload.axis]

    def own(x: Inputs, y: Array) -> Array:
        logits = tf.matmul(*x, transpose_b=True) if workload.linear else x
        logits = logits if workload.axis == -1 else tf.transpose(logits, class_axis_last)  # tf.nn takes no other
        return tf.reduce_mean(getattr(tf.nn, name)(labels=y, logits=logits))

    yield from in_modes(modes, f"tf.nn.{name}", own)


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
    """The allocator's own count, because it never gives memory back to the system.

    On a CPU, TensorFlow counts only where it uses oneDNN (AVX-512 VNNI and the like). Elsewhere memory comes from the C
    library, and the process's peak is right.
    """
    memory = tf.config.experimental
    try:
        memory.reset_memory_stats(device)
        before: int = memory.get_memory_info(device)["current"]
    except ValueError:
        return lambda: None
    return lambda: memory.get_memory_info(device)["peak"] - before
