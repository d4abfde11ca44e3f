"""xent.compat.keras beside Keras, on each of its backends: compat_keras_*.py, one process a backend."""

import importlib.util
from pathlib import Path

import pytest
from processes import run_tests

FILES = [Path(__file__).parent / f"compat_keras_{name}.py" for name in ("walk", "fit")]


@pytest.mark.parametrize(
    "backend", [pytest.param(name, marks=pytest.mark.backend(name)) for name in ("tensorflow", "jax", "torch")]
)
def test_on_backend(backend, pytestconfig):
    for needed in ("keras", backend):
        if importlib.util.find_spec(needed) is None:
            pytest.skip(f"{needed} is not installed")
    run_tests(pytestconfig, "--backend", backend, *FILES, KERAS_BACKEND=backend)
