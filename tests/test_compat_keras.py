"""xent.compat.keras beside Keras, on each of its backends: compat_keras_*.py, one process a backend."""

import importlib.util
import os
from pathlib import Path

import pytest
from processes import run_tests

WALK, FIT, OWN = (Path(__file__).parent / f"compat_keras_{name}.py" for name in ("walk", "fit", "own"))


@pytest.mark.parametrize(
    "backend", [pytest.param(name, marks=pytest.mark.backend(name)) for name in ("tensorflow", "jax", "torch")]
)
def test_on_backend(backend, pytestconfig):
    for needed in ("keras", backend):
        if importlib.util.find_spec(needed) is None:
            pytest.skip(f"{needed} is not installed")
    run_tests(pytestconfig, "--backend", backend, WALK, FIT, KERAS_BACKEND=backend)


@pytest.mark.parametrize(
    "backend", [pytest.param(name, marks=pytest.mark.backend(name)) for name in ("tensorflow", "jax", "torch")]
)
def test_keras_own_tests(backend, pytestconfig):
    """They are in Keras's source distribution only. KERAS_SOURCE names its unpacked folder, whose Keras is imported."""
    source = os.environ.get("KERAS_SOURCE")
    if not source:
        pytest.skip("KERAS_SOURCE names no unpacked source distribution of Keras")
    if importlib.util.find_spec(backend) is None:
        pytest.skip(f"{backend} is not installed")
    path = os.pathsep.join(filter(None, (source, os.environ.get("PYTHONPATH"))))
    run_tests(pytestconfig, "--backend", backend, OWN, KERAS_BACKEND=backend, PYTHONPATH=path)
