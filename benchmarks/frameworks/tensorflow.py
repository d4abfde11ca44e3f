"""TensorFlow: its fused losses, eager, in a tf.function, and under XLA."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf
from xent.benchmarks.frameworks import Call, Contender, Framework, Inputs, Loss, installed, keras, missing, ours
from xent.benchmarks.workloads import Workload
from xent.verify.frameworks import load

Array = Any


def make(device: str) -> Framework:
    live = load("tensorflow")
    return Framework(
        array=lambda x, dtype: live.array(x, dtype if x.dtype.kind == "f" else None, device),
        numpy=lambda x: np.asarray(tf.cast(x, tf.float32) if x.dtype.size == 2 else x),
        contenders=contenders,
        versions=("tensorflow", *filter(installed, ("keras",))),
        missing=missing("keras"),
        wait=(lambda _: None) if device == "cpu" else (lambda _: tf.test.experimental.sync_devices()),
        limit=tf.config.threading.set_intra_op_parallelism_threads,
        peak=lambda: peak("CPU:0" if device == "cpu" else device),
    )


def contenders(workload: Workload) -> list[Contender]:
    name, theirs = rival(workload)
    found = []
    for mode, wrap in MODES.items():
        found.append(Contender("xent", mode, True, *wrap(ours(workload))))
        found.append(Contender(name, mode, False, *wrap(theirs)))
    for name, loss in keras.rivals(workload).items():
        found.append(Contender(name, "compiled", False, *MODES["compiled"](loss)))
    return found


def rival(workload: Workload) -> tuple[str, Loss]:
    nn, axis, mean = tf.nn, workload.axis, tf.reduce_mean
    if workload.loss == "sigmoid_ce":
        name = "tf.nn.sigmoid_cross_entropy_with_logits"
        return name, lambda x, z: mean(nn.sigmoid_cross_entropy_with_logits(labels=z, logits=x))
    if workload.loss == "softmax_ce":
        name = "tf.nn.softmax_cross_entropy_with_logits"
        return name, lambda x, t: mean(nn.softmax_cross_entropy_with_logits(labels=t, logits=x, axis=axis))
    order = None if axis == -1 else [*(i for i in range(len(workload.shape)) if i != axis), axis]

    def sparse(x: Array, y: Array) -> Array:
        x = x if order is None else tf.transpose(x, order)  # it knows the last axis only
        return mean(nn.sparse_softmax_cross_entropy_with_logits(labels=y, logits=x))

    name = "tf.nn.sparse_softmax_cross_entropy_with_logits"
    return name, (lambda x, y: sparse(tf.matmul(*x, transpose_b=True), y)) if workload.linear else sparse


def _wrapped(compiler: Callable[[Call], Call]) -> Callable[[Loss], tuple[Call, Call]]:
    def wrap(loss: Loss) -> tuple[Call, Call]:
        def both(x: Inputs, y: Array) -> tuple[Array, Inputs]:
            with tf.GradientTape() as tape:
                tape.watch(x)
                value = loss(x, y)
            return value, tape.gradient(value, x)

        return compiler(lambda x, y: loss(x, y)), compiler(both)

    return wrap


MODES = {
    "eager": _wrapped(lambda f: f),
    "graph": _wrapped(tf.function),
    "compiled": _wrapped(lambda f: tf.function(f, jit_compile=True)),
}


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
