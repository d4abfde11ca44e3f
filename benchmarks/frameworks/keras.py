"""Keras, which runs one backend a process: its losses as `fit` would run them, compiled but on PyTorch."""

from __future__ import annotations

import dataclasses
import importlib
import os
from typing import Any

from ..workloads import Workload
from . import Contender, Framework, Loss

Array = Any


def make(device: str, backend: str) -> Framework:
    os.environ["KERAS_BACKEND"] = backend
    base: Any = importlib.import_module(f"xent.benchmarks.frameworks.{backend}")
    importlib.import_module("keras")

    def contenders(workload: Workload) -> list[Contender]:
        if workload.linear:
            return []  # with it the logits are there, as they are for its framework's own loss
        mode = "eager" if backend == "torch" else "compiled"
        name = "keras.losses" + ("" if workload.axis == -1 else ", transposed")
        return [Contender(name, mode, False, *base.modes()[mode](rival(workload)))]

    framework: Framework = base.make(device)
    return dataclasses.replace(framework, contenders=contenders, versions=("keras",), absent=[])


def rival(workload: Workload) -> Loss:
    keras = importlib.import_module("keras")
    losses, mean, axis = keras.losses, keras.ops.mean, workload.axis
    if workload.loss == "sigmoid_ce":
        return lambda x, z: mean(losses.binary_crossentropy(z, x, from_logits=True))
    function = (
        losses.sparse_categorical_crossentropy if workload.loss == "sparse_ce" else losses.categorical_crossentropy
    )

    def loss(x: Array, y: Array) -> Array:
        x = x if axis == -1 else keras.ops.moveaxis(x, axis, -1)  # some backends of Keras know the last axis only
        return mean(function(y, x, from_logits=True))

    return loss
