"""Classes that are split over processes, which go through all checks of sharded_torch.py in one life."""

import os
import sys

import pytest
from processes import ROOT, python


@pytest.mark.backend("torch")
@pytest.mark.parametrize("processes", [2, pytest.param(4, marks=pytest.mark.full)])
def test_sharded(processes):
    """What it prints says which check was the last one that passed."""
    torch = pytest.importorskip("torch", reason="torch is not installed")
    if not (torch.distributed.is_available() and torch.distributed.is_gloo_available() and hasattr(os, "fork")):
        pytest.skip("there is no gloo here")
    loopback = "lo" if sys.platform == "linux" else "lo0"
    path = os.pathsep.join([str(ROOT / "tests"), *filter(None, sys.path)])
    script = ROOT / "tests" / "sharded_torch.py"
    done = python(script, processes, timeout=None, PYTHONPATH=path, GLOO_SOCKET_IFNAME=loopback)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "passed" in done.stdout
