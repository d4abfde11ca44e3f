"""Classes that are split over processes. They are started once, and then go through all checks of sharded_torch.py."""

import os
import sys

import pytest
from processes import ROOT, python

torch = pytest.importorskip("torch", reason="torch is not installed")
import sharded_torch  # noqa: E402  (it needs torch)

pytestmark = pytest.mark.backend("torch")


@pytest.fixture(scope="module")
def done(request):
    if not (torch.distributed.is_available() and torch.distributed.is_gloo_available() and hasattr(os, "fork")):
        pytest.skip("there is no gloo here")
    loopback = "lo" if sys.platform == "linux" else "lo0"
    path = os.pathsep.join([str(ROOT / "tests"), *filter(None, sys.path)])
    runs = [
        python(ROOT / "tests" / "sharded_torch.py", count, timeout=None, PYTHONPATH=path, GLOO_SOCKET_IFNAME=loopback)
        for count in ((2, 4) if request.config.getoption("--full") else (2,))
    ]
    return [(run.stdout.splitlines(), run.stderr) for run in runs]


@pytest.mark.parametrize("name", sharded_torch.CHECKS)
def test_sharded(done, name):
    for passed, errors in done:
        assert f"passed {name}" in passed, errors
