"""TensorFlow: its fused losses, eager, in a tf.function, and under XLA."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf
from xent import _live

from ..workloads import Workload
from . import Contender, Framework, Inputs, Loss, ours

Array = Any
Call = Callable[[Inputs, Array], Any]


def make(device: str) -> Framework:
    live = _live.live("tensorflow")
    return Framework(
        array=lambda x, dtype: live.array(x, dtype if x.dtype.kind == "f" else None, device),
        numpy=lambda x: np.asarray(tf.cast(x, tf.float32) if x.dtype.size == 2 else x),
        wait=(lambda result: tf.test.experimental.sync_devices()) if device != "cpu" else (lambda result: None),
        contenders=contenders,
        versions=("tensorflow",),
        peak=lambda: peak("CPU:0" if device == "cpu" else device),
    )


def contenders(workload: Workload) -> list[Contender]:
    name, theirs = rival(workload)
    found = []
    for mode, wrap in modes().items():
        found.append(Contender("xent", mode, True, *wrap(ours(workload))))
        found.append(Contender(name, mode, False, *wrap(theirs)))
    return found


def rival(workload: Workload) -> tuple[str, Loss]:
    nn, axis, mean = tf.nn, workload.axis, tf.reduce_mean
    if workload.loss == "sigmoid_ce":
        name = "tf.nn.sigmoid_cross_entropy_with_logits"
        return name, lambda x, z: mean(nn.sigmoid_cross_entropy_with_logits(labels=z, logits=x))
    if workload.loss == "softmax_ce":
        name = "tf.nn.softmax_cross_entropy_with_logits"
        return name, lambda x, t: mean(nn.softmax_cross_entropy_with_logits(labels=t, logits=x, axis=axis))
    name = "tf.nn.sparse_softmax_cross_entropy_with_logits" + ("" if axis == -1 else ", transposed")
    order = None if axis == -1 else [*(i for i in range(len(workload.shape)) if i != axis), axis]

    def sparse(x: Array, y: Array) -> Array:
        x = x if order is None else tf.transpose(x, order)  # it knows no axis
        return mean(nn.sparse_softmax_cross_entropy_with_logits(labels=y, logits=x))

    if workload.linear:
        return name, lambda x, y: sparse(tf.matmul(*x, transpose_b=True), y)
    return name, sparse


def modes() -> dict[str, Callable[[Loss], tuple[Call, Call]]]:
    return {
        "eager": lambda loss: wrap(loss, lambda f: f),
        "graph": lambda loss: wrap(loss, tf.function),
        "compiled": lambda loss: wrap(loss, lambda f: tf.function(f, jit_compile=True)),
    }


def wrap(loss: Loss, compiler: Callable[[Call], Call]) -> tuple[Call, Call]:
    def both(x: Inputs, y: Array) -> tuple[Array, Inputs]:
        with tf.GradientTape() as tape:
            tape.watch(x)
            value = loss(x, y)
        return value, tape.gradient(value, x)

    def forward(x: Inputs, y: Array) -> Array:
        return loss(x, y)

    return compiler(forward), compiler(both)


def peak(device: str) -> Callable[[], int | None]:
    """The allocator's own count, for it keeps what it once had. On a CPU it counts only where TensorFlow uses oneDNN
    (AVX-512 VNNI and the like); elsewhere memory is the C library's, and the process's peak tells."""
    memory = tf.config.experimental
    try:
        memory.reset_memory_stats(device)
        before: int = memory.get_memory_info(device)["current"]
    except ValueError:
        return lambda: 0 if device == "CPU:0" else None
    return lambda: memory.get_memory_info(device)["peak"] - before
