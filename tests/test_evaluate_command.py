"""`xent evaluate`, as people run it: what it prints, interruptions, bad input, a cluster."""

import contextlib
import dataclasses
import json
import os
import signal
import sys
from concurrent.futures import CancelledError
from types import SimpleNamespace
from typing import Any, NamedTuple
from unittest import mock

import numpy as np
import pytest
from cases import needs_installed
from stores import X, Y, evaluation, judge, stored
from typer.testing import CliRunner
from xent import _console, cli
from xent.evaluation import command, run
from xent.evaluation.run import Evaluation, checked
from xent.evaluation.tally import report


def invoke(*arguments):
    return CliRunner().invoke(cli.app, ["evaluate", *map(str, arguments)], env={"COLUMNS": "100"})


# ---- what is printed


def test_logits_that_are_not_finite(tmp_path):
    x = X.copy()
    x[1, Y[1]], x[2, Y[2]] = -np.inf, np.nan
    options = stored(tmp_path, x)
    found = json.loads(invoke(*options, "--ignore-index", -100, "--json").stdout)
    assert found["loss"] is found["classes"]["loss"][Y[2]] is None
    assert found["classes"]["loss"][Y[1]] in ("inf", None)
    worst = report(evaluation(tmp_path).go_on()).worst(2)
    assert set(worst) == {Y[1], Y[2]}
    assert worst[0] == Y[2]


def test_terminal(tmp_path):
    shown = invoke(*stored(tmp_path), "--ignore-index", "-100")
    assert shown.exit_code == 0, shown.output
    found = report(evaluation(tmp_path).go_on())
    assert f"loss        {found.loss:.9g}" in shown.stdout
    assert f"perplexity  {found.perplexity:.9g}" in shown.stdout
    assert "40, 5 ignored" in shown.stdout
    assert "classes of the largest mean loss, 6 of 6 with labels, 7 in all" in shown.stdout
    listed = [int(line.split()[0]) for line in shown.stdout.splitlines()[-6:]]
    assert listed == sorted(listed, key=lambda k: -found.class_loss[k])
    assert "1 of 1: evaluating" in shown.stderr


def test_json(tmp_path):
    shown = invoke(*stored(tmp_path), "--ignore-index", "-100", "--json")
    found, want = json.loads(shown.stdout), report(evaluation(tmp_path, part_bytes=10**6).go_on())
    assert {name: found[name] for name in ("rows", "ignored", "loss", "perplexity", "accuracy")} == {
        name: getattr(want, name) for name in ("rows", "ignored", "loss", "perplexity", "accuracy")
    }
    assert found["classes"]["count"] == want.class_count.tolist()
    assert found["classes"]["loss"][:6] == want.class_loss[:6].tolist()
    assert found["classes"]["accuracy"][6] is None


def test_a_line_for_each_percent():
    steps = []
    progress = command.percent_by_percent(lambda *step: steps.append(step[1:]))
    for done in range(1, 1001):
        progress("", done, 1000)
    assert steps[0] == (1, 1000)
    assert steps[-1] == (1000, 1000)
    assert len(steps) == 101


# ---- interrupted


def small_parts(monkeypatch):
    monkeypatch.setattr(command, "checked", lambda *given: dataclasses.replace(checked(*given), part_bytes=100))


def after(monkeypatch, count, act):
    """`act` is called where progress is shown the count-th time."""
    shown = iter(range(1, 100))
    step = _console.Steps._step
    monkeypatch.setattr(_console.Steps, "_step", lambda *given: (step(*given), next(shown) == count and act()))


@contextlib.contextmanager
def handlers_restored():
    before = {kind: signal.getsignal(kind) for kind in (signal.SIGINT, signal.SIGTERM)}
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background ignores it
    try:
        yield
    finally:
        for kind, handler in before.items():
            signal.signal(kind, handler)


@pytest.mark.parametrize("kind", ["SIGINT", "SIGTERM"])
def test_interrupted_it_goes_on(tmp_path, monkeypatch, kind):
    options = (*stored(tmp_path), "--ignore-index", "-100", "--json")
    small_parts(monkeypatch)
    whole = invoke(*options).stdout
    kept = tmp_path / "kept.npz"
    number = getattr(signal, kind)
    with handlers_restored(), monkeypatch.context() as patch:
        after(patch, 5, lambda: os.kill(os.getpid(), number) if os.name == "posix" else signal.raise_signal(number))
        save = Evaluation.save
        patch.setattr(Evaluation, "save", lambda *given: (signal.raise_signal(number), save(*given)))  # once more
        first = invoke(*options, "--resume", kept)
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert first.exit_code == 130
    assert f"{kept} is not there yet: from the beginning" in first.stderr.replace("\n", "")
    assert f"5 of 14 parts are done, kept in {kept}" in first.stderr.replace("\n", "")
    second = invoke(*options, "--resume", kept)
    assert second.exit_code == 0, second.output
    assert "going on after 5 of 14 parts" in second.stderr
    assert second.stdout == whole


def test_interrupted_without_a_file(tmp_path, monkeypatch):
    options = stored(tmp_path)
    monkeypatch.chdir(tmp_path)
    small_parts(monkeypatch)

    def interrupt():
        raise KeyboardInterrupt

    after(monkeypatch, 2, interrupt)
    with handlers_restored():
        shown = invoke(*options, "--ignore-index", "-100")
    (kept,) = tmp_path.glob("xent-evaluate-*.npz")
    assert shown.exit_code == 130
    assert f"go on with the same command and --resume {kept.name}" in shown.stderr.replace("\n", "")
    again = evaluation(tmp_path)
    again.load(kept)
    judge(report(again.go_on()))


def test_what_is_done_cannot_be_kept(tmp_path, monkeypatch):
    options = stored(tmp_path)
    small_parts(monkeypatch)

    def full(*_):
        raise OSError(28, "No space left on device")

    def interrupt():
        raise KeyboardInterrupt

    after(monkeypatch, 2, interrupt)
    monkeypatch.setattr(Evaluation, "save", full)
    with handlers_restored():
        shown = invoke(*options, "--ignore-index", "-100", "--resume", tmp_path / "kept.npz")
    assert shown.exit_code == 130
    assert "kept.npz: what is done could not be kept: [Errno 28] No space left" in shown.stderr.replace("\n", "")


# ---- what cannot be evaluated


def junk(path, content=b"no such format"):
    path.write_bytes(content)


BAD = {
    "missing": (lambda folder: (folder / "logits.npy").unlink(), "logits.npy: no such file or folder"),
    "junk": (lambda folder: junk(folder / "logits.npy"), "logits.npy: not a readable .npy file (ValueError)"),
    "cut short": (
        lambda folder: junk(folder / "logits.npy", (folder / "logits.npy").read_bytes()[:-4]),
        "logits.npy: expected 1248 bytes, as it says itself, got 1244",
    ),
    "objects": (lambda folder: np.save(folder / "labels.npy", np.array([None] * 40)), "labels: expected class ids of"),
    "bytes": (lambda folder: np.save(folder / "logits.npy", np.zeros((40, 7), "V2")), "save bfloat16 as .safetensors"),
    "ints": (lambda folder: np.save(folder / "logits.npy", X.astype(int)), "logits: expected 'float16'"),
    "soft labels": (lambda folder: np.save(folder / "labels.npy", X), "labels: expected class ids of"),
    "shapes": (
        lambda folder: np.save(folder / "labels.npy", Y[1:]),
        "labels: expected shape (40,) (the logits' without axis), got (39,)",
    ),
    "no class": (
        lambda folder: np.save(folder / "logits.npy", X[:, :0]),
        "logits: expected at least one class, got shape (40, 0) with none along axis 1",
    ),
    "ids": (
        lambda folder: np.save(folder / "labels.npy", np.where(np.arange(40) == 8, 7, Y)),
        "labels[6:9]: 1 of 3 class ids out of range, the first at [2] is 7; expected 0 to 6",
    ),
    "kept": (lambda folder: junk(folder / "kept.npz"), "kept.npz: not a file that an evaluation was kept in"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input(tmp_path, monkeypatch, name):
    spoil, sentence = BAD[name]
    options = stored(tmp_path)
    small_parts(monkeypatch)
    spoil(tmp_path)
    shown = invoke(*options, "--ignore-index", "-100", "--resume", tmp_path / "kept.npz")
    assert shown.exit_code == 2, shown.output
    assert sentence in " ".join(shown.stderr.split())
    assert "Traceback" not in shown.stderr


def test_folders_that_are_no_zarr_array(tmp_path):
    needs_installed("zarr")
    shown = invoke("--logits", tmp_path, "--labels", tmp_path)
    assert shown.exit_code == 2
    assert f"{tmp_path}: not a readable zarr array" in " ".join(shown.stderr.split())


def test_files_of_another_kind(tmp_path):
    (tmp_path / "x.csv").touch()
    shown = invoke("--logits", tmp_path / "x.csv", "--labels", tmp_path)
    assert shown.exit_code == 2
    assert "x.csv: expected a .npy file or the folder of a zarr array" in shown.stderr


# ---- on a cluster


def test_cluster(tmp_path, monkeypatch):
    """The same bits; and an error is the same sentence."""
    distributed = pytest.importorskip("distributed", reason="distributed is not installed")
    options = stored(tmp_path)
    small_parts(monkeypatch)
    alone = invoke(*options, "--ignore-index", "-100", "--json").stdout
    own = {"n_workers": 2, "threads_per_worker": 1, "processes": False, "dashboard_address": None}
    with distributed.LocalCluster(**own) as cluster:
        at = "--cluster", cluster.scheduler_address
        shown = invoke(*options, "--ignore-index", "-100", "--json", *at)
        assert shown.exit_code == 0, shown.output
        assert shown.stdout == alone
        wrong = invoke(*options, *at)
    assert wrong.exit_code == 2
    assert "labels[0:3]: 1 of 3 class ids out of range, the first at [0] is -100" in wrong.stderr


def test_a_worker_lacks_what_reads_the_stores(tmp_path):
    """Which Dask would wait for for ever. To start a process, it sets variables of this one, and leaves them set."""
    distributed = pytest.importorskip("distributed", reason="distributed is not installed")
    options = stored(tmp_path, kind="zarr")
    own = {"n_workers": 1, "threads_per_worker": 1, "dashboard_address": None}
    unchanged = mock.patch.dict(os.environ)
    with unchanged, distributed.LocalCluster(**own) as cluster, distributed.Client(cluster) as client:
        (worker,) = client.scheduler_info()["workers"]
        for module in ("zarr", "xent.evaluation.run"):
            client.run(exec, f"import sys; sys.modules['{module}'] = None", {})
            shown = invoke(*options, "--ignore-index", "-100", "--cluster", cluster.scheduler_address)
            assert shown.exit_code == 2
            sentence = f"--cluster: the worker {worker} cannot import {module}: import of {module} halted"
            assert sentence in " ".join(shown.stderr.split())


class KilledWorker(Exception):
    pass


def test_a_scheduler_lacks_xent(tmp_path, monkeypatch):
    def import_there(_, module):
        raise ModuleNotFoundError(f"No module named '{module}'")

    client = SimpleNamespace(run_on_scheduler=import_there)
    stand_in = SimpleNamespace(Client=lambda _: contextlib.nullcontext(client), KilledWorker=KilledWorker)
    monkeypatch.setitem(sys.modules, "distributed", stand_in)
    shown = invoke(*stored(tmp_path), "--cluster", "a")
    assert shown.exit_code == 2
    assert "--cluster: the scheduler cannot import xent.evaluation.run: No module" in " ".join(shown.stderr.split())


@pytest.mark.parametrize("lost", [KilledWorker, CancelledError])
def test_a_cluster_that_is_lost(tmp_path, monkeypatch, lost):
    """What is done is kept. Nothing but a worker's memory limit, or a scheduler's end, makes Dask's own do so."""
    options = stored(tmp_path)
    small_parts(monkeypatch)

    class Future(NamedTuple):
        tally: Any
        part: Any

        def result(self):
            if self.part[0].start == 9:
                raise lost("it had no\nmemory left")
            return self.tally(self.part)

    @contextlib.contextmanager
    def client(address):
        yield SimpleNamespace(map=lambda tally, parts, pure: [Future(tally, part) for part in parts])

    monkeypatch.setattr(run, "check_imports", lambda *_: None)
    monkeypatch.setitem(sys.modules, "distributed", SimpleNamespace(Client=client, KilledWorker=KilledWorker))
    kept = tmp_path / "kept.npz"
    shown = invoke(*options, "--ignore-index", "-100", "--cluster", "a", "--resume", kept)
    assert shown.exit_code == 2
    assert "xent: --cluster: it had no memory left" in shown.stderr
    again = evaluation(tmp_path)
    again.load(kept)
    assert str(again) == "3 of 14 parts"


@pytest.mark.parametrize(("module", "more"), [("distributed", ("--cluster", "tcp://x:1")), ("zarr", ())])
def test_what_is_not_installed(tmp_path, monkeypatch, module, more):
    options = stored(tmp_path)
    monkeypatch.setitem(sys.modules, module, None)
    options = options if more else ("--logits", tmp_path, "--labels", tmp_path)
    shown = invoke(*options, "--ignore-index", "-100", *more)
    assert shown.exit_code == 2
    assert f"needs: pip install {module}" in " ".join(shown.stderr.split())
