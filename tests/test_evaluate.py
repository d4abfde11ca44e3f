"""`xent evaluate`: stores on disk, part by part, against the loss of the whole arrays."""

import contextlib
import dataclasses
import json
import os
import signal

import numpy as np
import pytest
import xent
from cases import needs_installed
from typer.testing import CliRunner
from xent import _console, cli
from xent.evaluation import command
from xent.evaluation.run import Evaluation, checked
from xent.evaluation.stores import open_store, parts
from xent.evaluation.tally import report

RNG = np.random.default_rng(0)
X = RNG.normal(size=(40, 7)).astype("f")
Y = np.where(np.arange(40) % 9, RNG.integers(0, 6, 40), -100)  # no row has the label 6


def invoke(*arguments):
    return CliRunner().invoke(cli.app, ["evaluate", *map(str, arguments)], env={"COLUMNS": "100"})


def stored(folder, x=X, y=Y, kind="npy", chunks=(3, 2)):
    """The options that name the stores."""
    paths = [folder / f"{name}.{kind}" for name in ("logits", "labels")]
    for path, array in zip(paths, (x, y), strict=True):
        if kind == "npy":
            np.save(path, array)
        else:
            zarr = pytest.importorskip("zarr", reason="zarr is not installed")
            lengths = chunks[: array.ndim]
            zarr.create_array(path, shape=array.shape, dtype=array.dtype, chunks=lengths)[:] = array
    return "--logits", paths[0], "--labels", paths[1]


def evaluation(folder, axis=-1, ignore_index=-100, part_bytes=100):
    suffix = "npy" if (folder / "logits.npy").exists() else "zarr"
    stores = (open_store(folder / f"{name}.{suffix}", name) for name in ("logits", "labels"))
    return Evaluation(dataclasses.replace(checked(*stores, axis, ignore_index), part_bytes=part_bytes))


def judge(found, x=X, y=Y, axis=-1):
    """The report against the whole arrays; sums are float64, each row's loss the kernel's own."""
    _, rows = xent.sparse_ce(x, y, axis=axis, reduce="none", ignore_index=-100, stats=True)
    nll, there = rows.nll.astype(float), y != -100
    assert (found.rows, found.ignored) == (y.size, y.size - there.sum())
    np.testing.assert_allclose(found.loss, nll.sum() / there.sum(), rtol=1e-14)
    np.testing.assert_allclose(found.perplexity, np.exp(found.loss), rtol=1e-15)
    assert found.accuracy == rows.correct.sum() / there.sum()
    for k in range(x.shape[axis]):
        own = y == k
        assert found.class_count[k] == own.sum()
        if own.any():
            np.testing.assert_allclose(found.class_loss[k], nll[own].mean(), rtol=1e-14)
            assert found.class_accuracy[k] == rows.correct[own].mean()
        else:
            assert np.isnan(found.class_loss[k])
            assert np.isnan(found.class_accuracy[k])


# ---- the digits


@pytest.mark.parametrize("part_bytes", [1, 100, 10**6])
@pytest.mark.parametrize("dtype", ["float16", "float32", ">f8"])
def test_digits(tmp_path, dtype, part_bytes):
    x = X.astype(dtype)
    stored(tmp_path, x)
    judge(report(evaluation(tmp_path, part_bytes=part_bytes).go_on()), x)


@pytest.mark.parametrize("shape", [(5, 8, 7), (1, 40, 7), (5, 0, 7), (7,)])
@pytest.mark.parametrize("axis", [-1, 0])
@pytest.mark.parametrize("order", ["C", "F"])
def test_shapes(tmp_path, shape, axis, order):
    """Rows of any rank; the classes first; what `np.save` makes of transposed arrays."""
    x = RNG.normal(size=shape)
    y = RNG.integers(0, 7, shape[:-1])
    stored(tmp_path, np.asarray(np.moveaxis(x, -1, axis), order=order), y)
    found = report(evaluation(tmp_path, axis).go_on())
    if y.size:
        judge(found, x, y)
    else:
        assert (found.rows, found.loss, found.perplexity) == (0, 0, 1)
        assert np.isnan(found.accuracy)


@pytest.mark.parametrize("chunks", [(3, 2), (40, 7), (1, 7)])
def test_zarr(tmp_path, chunks):
    stored(tmp_path, kind="zarr", chunks=chunks)
    judge(report(evaluation(tmp_path).go_on()))


def test_logits_that_are_not_finite(tmp_path):
    x = X.copy()
    x[1, Y[1]], x[2, Y[2]] = -np.inf, np.nan
    options = stored(tmp_path, x)
    found = json.loads(invoke(*options, "--ignore-index", -100, "--json").stdout)
    assert found["loss"] is found["classes"]["loss"][Y[2]] is None
    assert found["classes"]["loss"][Y[1]] in ("inf", None)


def test_parts_cover_everything_once():
    for shape, chunks in (((7, 3, 5), (2, 3, 5)), ((4,), None), ((2, 3), (1, 2)), ((), None), ((0, 3), None)):
        for most in (1, 4, 15, 31, 1000):
            seen = np.zeros(shape, int)
            for part in parts(shape, most, chunks):
                seen[part] += 1
                assert np.size(seen[part]) <= most
            assert (seen == 1).all()


def test_whole_chunks_are_read_once():
    assert [part[0] for part in parts((20, 2), 15, (3, 2))] == [slice(k, min(k + 6, 20)) for k in range(0, 20, 6)]


def test_a_part_alone_is_mapped(tmp_path):
    """A mapping of the whole file would not fit where its address space is limited."""
    stored(tmp_path)
    part = open_store(tmp_path / "logits.npy", "logits").read((slice(4, 6),))
    np.testing.assert_array_equal(part, X[4:6])
    assert part.base.size == part.size


# ---- the command


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
    try:
        yield before
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
    with handlers_restored() as before, monkeypatch.context() as patch:
        after(patch, 5, lambda: os.kill(os.getpid(), number) if os.name == "posix" else signal.raise_signal(number))
        save = Evaluation.save
        patch.setattr(Evaluation, "save", lambda *given: (signal.raise_signal(number), save(*given)))  # once more
        first = invoke(*options, "--resume", kept)
        assert signal.getsignal(signal.SIGINT) is before[signal.SIGINT]
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


def test_only_the_same_evaluation_goes_on(tmp_path):
    stored(tmp_path)
    kept = tmp_path / "kept.npz"
    evaluation(tmp_path).save(kept)
    with pytest.raises(ValueError, match=r"kept\.npz: of another evaluation: ignore_index was -100, is 3"):
        evaluation(tmp_path, ignore_index=3).load(kept)
    np.save(tmp_path / "logits.npy", X.astype(float))
    with pytest.raises(ValueError, match="of another evaluation: logits' dtype was <f4, is <f8"):
        evaluation(tmp_path).load(kept)
    np.save(tmp_path / "logits.npy", X)
    os.utime(tmp_path / "logits.npy", (1, 1))
    with pytest.raises(ValueError, match="of another evaluation: logits' changed was"):
        evaluation(tmp_path).load(kept)


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
