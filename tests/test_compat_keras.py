"""xent.compat.keras beside Keras, on each of its backends: compat_keras_*.py, one process a backend."""

import importlib.util
import os
import sys
from pathlib import Path

import pytest
from processes import run_tests

WALK, FIT, OWN = (Path(__file__).parent / f"compat_keras_{name}.py" for name in ("walk", "fit", "own"))


@pytest.mark.parametrize(
    "backend", [pytest.param(name, marks=pytest.mark.backend(name)) for name in ("tensorflow", "jax", "torch")]
)
def test_on_backend(backend, pytestconfig, subtests):
    """Keras's own tests are in its source distribution only. KERAS_SOURCE names its unpacked folder, whose Keras is
    imported then."""
    for needed in ("keras", backend):
        if importlib.util.find_spec(needed) is None:
            pytest.skip(f"{needed} is not installed")
    source = os.environ.get("KERAS_SOURCE")
    files = (WALK, FIT, OWN) if source else (WALK, FIT)
    path = os.pathsep.join(filter(None, (source, *sys.path)))
    run_tests(pytestconfig, "--backend", backend, *files, KERAS_BACKEND=backend, PYTHONPATH=path)
    with subtests.test("Keras's own tests"):
        if not source:
            pytest.skip("KERAS_SOURCE names no unpacked source distribution of Keras")
