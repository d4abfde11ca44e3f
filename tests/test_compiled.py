"""The compiled tests, one process a framework: TensorFlow followed by Triton in one process aborts it."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent


@pytest.mark.parametrize(
    "framework", [pytest.param(name, marks=pytest.mark.backend(name)) for name in ("torch", "tensorflow", "jax")]
)
def test_in_a_process_of_its_own(framework):
    if importlib.util.find_spec(framework) is None:
        pytest.skip(f"{framework} is not installed")
    files = [str(HERE / name) for name in ("test_matrix.py", "test_linear.py", f"test_{framework}.py")]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--compiled", "--backend", framework]
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("COV_", "PYTEST_"))}
    run = subprocess.run(
        [*command, *files], cwd=HERE.parent, env=environment, capture_output=True, text=True, timeout=900, check=False
    )
    assert run.returncode == 0, run.stdout[-6000:] + run.stderr[-2000:]
    assert " passed" in run.stdout
    assert "skipped" not in run.stdout, run.stdout[-2000:]
