"""Keras on the backend that KERAS_BACKEND names, for the tests of xent.compat.keras: one process for each."""

import os
import sys

import numpy as np
import pytest

BACKEND = os.environ["KERAS_BACKEND"]
if BACKEND == "tensorflow":
    import tensorflow as tf

    tf.config.set_logical_device_configuration(
        tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * 2
    )
else:
    sys.modules["tensorflow"] = None  # which Keras imports to set its random seed, too
    os.environ["XLA_FLAGS"] = "--xla_backend_optimization_level=0"  # most of the time is XLA's

import keras  # noqa: E402

assert keras.backend.backend() == BACKEND
MARKS = [
    pytest.mark.backend(BACKEND),
    pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning"),  # Keras's
]
CATEGORICAL, SPARSE, BINARY = NAMES = (
    "CategoricalCrossentropy",
    "SparseCategoricalCrossentropy",
    "BinaryCrossentropy",
)
X, EYE, IDS = np.array([[2, 0.5, 6], [0.1, 0, 3]], np.float32), np.eye(2, 3, dtype=np.float32), np.array([2, 1])


# JAX, which compiles for seconds, has the fewest.
TURNS = ("torch", "tensorflow", "jax", "torch", "tensorflow", "torch", "tensorflow", "torch")


def in_turn(cases):
    """Each on one backend; on all with --full."""
    marks = [() if TURNS[place % len(TURNS)] == BACKEND else pytest.mark.full for place in range(len(cases))]
    ids = ["-".join(map(str, case)) for case in cases]
    return [pytest.param(*case, marks=mark, id=name) for case, mark, name in zip(cases, marks, ids, strict=True)]
