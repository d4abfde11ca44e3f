"""Keras's losses, on whichever backend KERAS_BACKEND names when it is first imported."""

from __future__ import annotations

import importlib
from typing import Any

from xent.benchmarks.frameworks import Loss, installed
from xent.benchmarks.workloads import Workload

Array = Any


def rivals(workload: Workload) -> dict[str, Loss]:
    """By name; none of linear_ce, where Keras would hold the logits as its backend's own loss does."""
    if workload.linear or not installed("keras"):
        return {}
    keras = importlib.import_module("keras")
    losses, mean, axis = keras.losses, keras.ops.mean, workload.axis
    if workload.loss == "sigmoid_ce":
        return {"keras.losses": lambda x, z: mean(losses.binary_crossentropy(z, x, from_logits=True))}
    function = losses.sparse_categorical_crossentropy if workload.ids else losses.categorical_crossentropy

    def loss(x: Array, y: Array) -> Array:
        x = x if axis == -1 else keras.ops.moveaxis(x, axis, -1)  # some of its backends know the last axis only
        return mean(function(y, x, from_logits=True))

    return {"keras.losses": loss}
