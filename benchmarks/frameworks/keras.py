"""Keras's losses, on whichever backend KERAS_BACKEND names when it is first imported."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from typing import Any

from xent.benchmarks.frameworks import Contender, Mode, in_modes, installed
from xent.benchmarks.workloads import Workload

Array = Any


def contenders(workload: Workload, modes: dict[str, Mode]) -> Iterator[Contender]:
    """None of linear_ce, where Keras would hold the logits as its backend's own loss does."""
    if workload.linear or not installed("keras"):
        return
    keras = importlib.import_module("keras")
    losses, axis = keras.losses, workload.axis
    names = {
        "sparse_ce": losses.sparse_categorical_crossentropy,
        "softmax_ce": losses.categorical_crossentropy,
        "sigmoid_ce": losses.binary_crossentropy,
    }

    def loss(x: Array, y: Array) -> Array:
        x = x if axis == -1 else keras.ops.moveaxis(x, axis, -1)  # some of its backends know the last axis only
        return keras.ops.mean(names[workload.loss](y, x, from_logits=True))

    yield from in_modes(modes, "keras.losses", loss)
