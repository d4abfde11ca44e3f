"""Python, and tests, in a process of their own."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def python(*arguments, cwd=None, timeout=600, **environment):
    """What came of it; pytest's own variables are not handed on."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("PYTEST_")}
    command, env = [sys.executable, *map(str, arguments)], kept | environment
    return subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=timeout, check=False)


def run_tests(config, *arguments, timeout=None, **environment):
    """What pytest prints of them, which is asserted to be no failure."""
    options = ["-q", "-p", "no:cacheprovider", *(["--full"] if config.getoption("--full", False) else [])]
    run = python("-m", "pytest", *options, *arguments, cwd=ROOT, timeout=timeout, **environment)
    assert run.returncode == 0, run.stdout[-6000:] + run.stderr[-2000:]
    assert " passed" in run.stdout
    return run.stdout
