"""Python, and tests, in a process of their own."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def python(*arguments, cwd=None, timeout=600, **environment):
    """The finished process. It imports from where this one does, and gets none of pytest's own variables."""
    inherited = {key: value for key, value in os.environ.items() if not key.startswith(("COV_", "PYTEST_"))}
    env = inherited | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))} | environment
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(
        command, cwd=cwd, env=env, capture_output=True, text=True, encoding="utf-8", timeout=timeout, check=False
    )


def printed(*arguments, **options):
    """What Python printed, once it is asserted that it succeeded."""
    run = python(*arguments, **options)
    assert run.returncode == 0, run.stdout[-6000:] + run.stderr[-4000:]
    return run.stdout


def run_tests(config, *arguments, **options):
    """What pytest prints of tests that are asserted to pass."""
    options = {"timeout": None} | options
    full = ["--full"] if config.getoption("--full", False) else []
    told = printed("-m", "pytest", "-q", "-p", "no:cacheprovider", *full, *arguments, cwd=ROOT, **options)
    assert " passed" in told
    return told
