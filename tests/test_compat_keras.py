"""xent.compat.keras beside Keras, on each of its backends: compat_keras_walk.py, one process a backend."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

FILE = Path(__file__).parent / "compat_keras_walk.py"


@pytest.mark.parametrize(
    "backend", [pytest.param(name, marks=pytest.mark.backend(name)) for name in ("tensorflow", "jax", "torch")]
)
def test_on_backend(backend, pytestconfig):
    for needed in ("keras", backend):
        if importlib.util.find_spec(needed) is None:
            pytest.skip(f"{needed} is not installed")
    inherited = {key: value for key, value in os.environ.items() if not key.startswith("PYTEST_")}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--backend", backend, str(FILE)]
    command += ["--full"] if pytestconfig.getoption("--full") else []
    environment = inherited | {"KERAS_BACKEND": backend}
    run = subprocess.run(command, cwd=FILE.parents[1], env=environment, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout[-6000:] + run.stderr[-2000:]
    assert " passed" in run.stdout
