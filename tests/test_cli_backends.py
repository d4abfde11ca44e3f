"""`xent backends`, as people run it."""

import importlib
import json
from types import SimpleNamespace

import cases
import numpy as np
import pytest
import xent
from processes import printed
from typer.testing import CliRunner
from xent import _console, cli


def invoke(*arguments):
    return CliRunner().invoke(cli.app, [str(a) for a in arguments], env={"COLUMNS": "100"})


def test_backends(monkeypatch):
    if not cases.FULL:  # each in a process of its own
        monkeypatch.setattr(cli.frameworks, "available", lambda: iter(["numpy", "jax"]))
    found = json.loads(invoke("backends", "--json").stdout)
    assert found["numpy"]["devices"] == ["cpu"]
    assert "cpu" in found["jax"]["devices"]
    assert set(found) >= {"numpy", "torch", "tensorflow", "jax"}
    monkeypatch.setattr(cli, "facts", lambda names: {name: found[name] for name in names})  # once is enough
    shown = invoke("backends")
    assert shown.exit_code == 0
    assert np.__version__ in shown.stdout


def test_backends_says_which_xent_this_is(monkeypatch):
    """Another project's xent may be installed, too."""
    monkeypatch.setattr(cli.frameworks, "available", lambda: iter(()))
    assert f"xent {xent.__version__}: {xent.__file__}" in invoke("backends").stdout
    assert json.loads(invoke("backends", "--json").stdout)["xent"]["file"] == xent.__file__


ODD = "[/b] :x: [red]"  # what rich would fail on, replace and leave out


def test_backends_prints_what_is_not_ours_as_it_is(monkeypatch):
    monkeypatch.setattr(cli.frameworks, "available", lambda: iter(["numpy", "torch", ODD]))
    known = {name: "".join((ODD, name)) for name in ("version", "device", "mode", "why", "dtype")}
    fine = {
        "version": known["version"],
        "devices": [known["device"]],
        "modes": {known["mode"]: known["why"]},
        "dtypes": [known["dtype"]],
    }
    monkeypatch.setattr(cli, "facts", lambda names: {**dict.fromkeys(names, fine), "torch": {"problem": ODD}})
    monkeypatch.setattr(_console.out, "width", 400)
    shown = invoke("backends")
    assert shown.exit_code == 0, shown.exception
    table = [line for line in shown.stdout.splitlines() if ODD in line]
    assert len(table) == 3
    assert all(text in table[0] for text in known.values())
    assert table[2].startswith(ODD)


def test_backends_says_whether_the_kernels_are_in_use(monkeypatch):
    cpu = importlib.import_module("xent.backends.cpu")
    monkeypatch.setattr(cli.frameworks, "available", lambda: iter(["numpy"]))
    monkeypatch.setattr(cpu, "native", None)
    monkeypatch.setattr(cpu, "why_not", "switched off [by hand]")
    assert "native CPU kernels: not in use: switched off [by hand]" in invoke("backends").stdout
    monkeypatch.setattr(cpu, "native", SimpleNamespace(isa=lambda: "avx2", max_threads=lambda: 3))
    assert "native CPU kernels: avx2, up to 3 threads" in invoke("backends").stdout
    assert json.loads(invoke("backends", "--json").stdout)["native"] == {"isa": "avx2", "threads": 3}


def test_backends_says_whether_the_triton_kernels_are_in_use(monkeypatch):
    cuda = importlib.import_module("xent.backends.triton")
    monkeypatch.setattr(cli.frameworks, "available", lambda: iter(["torch"]))
    known = {"version": "2", "devices": ["cpu", "cuda:0"], "modes": {"eager": ""}, "dtypes": []}
    monkeypatch.setattr(cli, "facts", lambda names: dict.fromkeys(names, known))
    monkeypatch.setattr(cuda, "why_not", "switched off [by hand]")
    line = "Triton kernels for PyTorch on CUDA"
    assert f"{line}: not in use: switched off [by hand]" in invoke("backends").stdout
    monkeypatch.setattr(cuda, "why_not", None)
    assert f"{line}: in use" in invoke("backends").stdout
    assert json.loads(invoke("backends", "--json").stdout)["triton"] == {"in_use": True}
    known["devices"] = ["cpu"]
    assert f"{line}: not in use: PyTorch has no CUDA device here" in invoke("backends").stdout


@pytest.mark.parametrize("switch", ["0", "1"])
def test_kernels_can_be_switched_off(switch):
    """XENT_NATIVE=0 is the whole switch; the tests run both ways."""
    code = "from xent import cli; from xent.backends import numpy; print(cli.native(), not numpy.ADAPTER.takes_16bit)"
    shown = printed("-c", code, XENT_NATIVE=switch)
    off = "switched off by XENT_NATIVE=0" in shown
    assert off is (switch == "0")
    assert off <= shown.endswith("True\n")


def test_backends_says_what_installs_a_missing_one(monkeypatch):
    monkeypatch.setattr(cli.frameworks, "available", lambda: iter(["numpy"]))
    assert "pip install jax" in invoke("backends").stdout
