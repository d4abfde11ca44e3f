"""Keras's losses, on whichever backend KERAS_BACKEND names when it is first imported."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from typing import Any

from xent.benchmarks.frameworks import Contender, Mode, in_modes, installed
from xent.benchmarks.workloads import Workload

Array = Any
OWN = {
    "sparse_ce": "sparse_categorical_crossentropy",
    "softmax_ce": "categorical_crossentropy",
    "sigmoid_ce": "binary_crossentropy",
}


def contenders(workload: Workload, modes: dict[str, Mode]) -> Iterator[Contender]:
    """None of linear_ce, where Keras would hold the logits as its backend's own loss does."""
    if workload.loss in OWN and installed("keras"):
        keras = importlib.import_module("keras")

        def loss(x: Array, y: Array) -> Array:
            # Some of its backends know the last axis only.
            x = x if workload.axis == -1 else keras.ops.moveaxis(x, workload.axis, -1)
            return keras.ops.mean(getattr(keras.losses, OWN[workload.loss])(y, x, from_logits=True))

        yield from in_modes(modes, "keras.losses", loss)
