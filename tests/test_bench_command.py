"""`xent bench`, as people run it."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from processes import printed
from typer.testing import CliRunner
from xent import cli
from xent.benchmarks import run
from xent.benchmarks.result import Result

NEVER = Path(__file__).parent / "toy"  # any folder that holds no results


def invoke(*arguments):
    return CliRunner().invoke(cli.app, [str(a) for a in arguments], env={"COLUMNS": "100"})


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--workload", "nonesuch"], "nonesuch"),
        (["--device", "cuda", "--backend", "numpy"], "numpy: no cuda here, only cpu"),
        (["--rounds", "0"], "rounds: expected 1 to"),
        (["--threads", "100000"], "threads: expected 1 to"),
        (["--sweep", "rows", "--workload", "segmentation"], "sweep: expected a workload of shape (rows, classes)"),
        (["--json", NEVER / "no" / "f.json"], "no such folder"),
        (["--json", NEVER], "expected a file that can be written"),
        (["--diff", "nonesuch.json", "nonesuch.json"], "nonesuch.json: No such file"),
        (["--diff", __file__, __file__], "expected JSON written by xent bench"),
    ],
)
def test_bad_input(arguments, says):
    shown = invoke("bench", *arguments)
    assert shown.exit_code == 2
    assert says in shown.output.replace("\n", " ")


def test_command(tmp_path):
    files = {suffix: tmp_path / f"found.{suffix}" for suffix in ("json", "html", "png")}
    options = [part for suffix, file in files.items() for part in (f"--{suffix}", file)]
    shown = invoke("bench", "--workload", "tiny", "--backend", "numpy", "--rounds", 2, *options)
    assert shown.exit_code == 0, shown.output
    assert "NumPy, in place" in shown.stdout
    found = Result.load(files["json"])
    assert [series.time.rounds for series in found.cases[0].series] == [2, 2]
    assert files["html"].read_text(encoding="utf-8").startswith("<!doctype html>")
    assert files["png"].read_bytes().startswith(b"\x89PNG")
    assert invoke("bench", "--diff", files["json"], files["json"]).exit_code == 0


@pytest.mark.parametrize(("ours", "status"), [(True, 1), (False, 0)])
def test_exit_status_of_a_wrong_contender(ours, status, monkeypatch):
    """1 if it is xent's; a rival's is only told."""
    start = "import sys; sys.path.pop(0); from xent.benchmarks import process\n"
    start += f"process.wrong = lambda w, d, r, s: 'wrong: planted' if s.ours == {ours} else ''\nprocess.main()"
    monkeypatch.setattr(run, "START", start)
    shown = invoke("bench", "--workload", "tiny", "--backend", "numpy", "--rounds", 1)
    assert shown.exit_code == status
    assert "wrong: planted" in shown.stdout


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_interrupted(tmp_path, sent):
    """By Ctrl-C or by a time limit, in the second workload: the first is on disk."""
    listening = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"
    start = [sys.executable, "-c", f"{listening}; from xent.__main__ import main; main()"]
    command = [*start, "bench", "--workload", "tiny", "--workload", "soft", "--backend", "numpy"]
    child = subprocess.Popen(
        [*command, "--rounds", "3", "--json", tmp_path / "f.json"], cwd=tmp_path, stdout=subprocess.PIPE, text=True
    )
    while not (tmp_path / "f.json").exists():
        assert child.poll() is None
        time.sleep(0.05)
    child.send_signal(sent)
    shown, _ = child.communicate()
    assert child.returncode == 130
    assert "f.json" in shown
    assert Result.load(tmp_path / "f.json").cases[0].workload.name == "tiny"


def test_not_from_the_current_folder(tmp_path):
    """A file of the caller's that is called as a module is."""
    (tmp_path / "platform.py").write_text("raise SystemExit('the wrong one')")
    code = "import sys; sys.path.pop(0); import xent; xent.bench('tiny', backends='numpy', rivals=False, rounds=1)"
    printed("-c", code, cwd=tmp_path)
