"""`xent compare`, as people run it."""

import dataclasses
import importlib
import importlib.util
import io
import itertools
import json
import re
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import xent
from processes import python
from rich.console import Console
from typer.testing import CliRunner
from xent import _console, _files, cli
from xent.verify.comparison import Comparison, InRegime, Pair, Row
from xent.verify.page import page as html_page
from xent.verify.show import show

FAST = ["compare", "--backend", "numpy", "--dtype", "float32"]


def invoke(*arguments):
    return CliRunner().invoke(cli.app, [str(a) for a in arguments], env={"COLUMNS": "100"})


ODD = "[/b] :x: [red]"  # what rich would fail on, replace and leave out


def test_compare_prints_what_is_not_ours_as_it_is(capsys, monkeypatch):
    monkeypatch.setattr(_console.out, "width", 400)
    kinds = (InRegime("ordinary", 0.0, 0.0, 0.0),)
    fine = Row(ODD + "1", "loss", ODD + "2", "eager", 0.0, "", 0.0, "", 0.0, native=ODD + "3", regimes=kinds)
    broken = dataclasses.replace(fine, problem=ODD + "4", share=2.0)
    pair = Pair((ODD + "5", "numpy"), "loss", ODD + "2", 0.0, 0.0)
    show(Comparison([fine, broken], [pair], [ODD + "6"], {}), _console.out)
    show(Comparison([fine], [], [], {"numpy": ODD + "7"}), _console.out)
    shown = capsys.readouterr().out
    assert not [i for i in range(1, 8) if f"{ODD}{i}" not in shown]


def test_progress_shows_what_is_not_ours_as_it_is(monkeypatch):
    shown = io.StringIO()
    for name in ("err", "out"):
        monkeypatch.setattr(_console, name, Console(file=shown, force_terminal=True, emoji=False, width=200))
    with _console.Steps("starting") as step:
        step(ODD, 1, 2)
    assert ODD in re.sub(r"\x1b\[[\d;?]*[a-zA-Z]", "", shown.getvalue())


def test_compare():
    shown = invoke(*FAST)
    assert shown.exit_code == 0, shown.stdout
    assert "all 4 agree with the truth" in shown.stdout
    assert "textbook" in shown.stdout  # what NumPy users write themselves, and how far off it is


def test_compare_json():
    found = json.loads(invoke(*FAST, "--loss", "sparse_ce", "--json").stdout)
    (row,) = found["rows"]
    assert found["agrees"] is row["agrees"] is True
    assert 0 < row["value"] < 2e-6
    assert row["native_value"] == "inf"  # one-hot times -inf


def test_what_numpy_users_write_takes_memory_for_the_logits_alone():
    """One-hot labels by np.eye would be 160 GB here."""
    x = np.zeros((2, 200_000), np.float32)
    tracemalloc.start()
    try:
        cli.frameworks.load("numpy").builtin_losses()["sparse_ce"].value_and_grad(x, np.array([0, 199_999]))
        assert tracemalloc.get_traced_memory()[1] < 20 * x.nbytes
    finally:
        tracemalloc.stop()


def test_compare_html(tmp_path):
    page = tmp_path / "report.html"
    assert invoke(*FAST, "--html", page).exit_code == 0
    text = page.read_text(encoding="utf-8")
    assert text.count("<table") == 5  # all kinds of logits together; each by itself, a table a loss
    assert "http" not in text.replace("http-equiv", "")  # nothing from elsewhere
    assert "all 4 agree" in text


def test_compare_html_has_what_is_not_ours_as_it_is():
    kinds = (InRegime("<m>", 0.0, 0.0, 0.0),)
    row = Row("<a>", "<b>", "<c>", "<d>", 0.0, "<e>", 0.0, "<f>", 0.0, native="<g>", regimes=kinds)
    broken = dataclasses.replace(row, problem="<h>")
    pair = Pair(("<i>", "<j>"), "<b>", "<c>", 0.0, 0.0)
    page = html_page(Comparison([row, broken], [pair], ["<k>"], {"numpy": "<l>"}))
    assert "&lt;m&gt;" in page
    assert not [letter for letter in "abcdefghijklm" if f"<{letter}>" in page]


def test_compare_html_to_any_name(tmp_path):
    """Brackets and colons are a name's, not markup."""
    page = tmp_path / "a[" / "b] :x:.html"
    missing = invoke(*FAST, "--html", page)
    assert missing.exit_code == 2
    assert f"{page}: no such folder" in missing.stderr.replace("\n", "")
    page.parent.mkdir()
    shown = invoke(*FAST, "--loss", "sigmoid_ce", "--html", page)
    assert shown.exit_code == 0, shown.exception
    assert f"wrote {page}" in shown.stdout.replace("\n", "")
    assert page.exists()


@pytest.mark.parametrize("suffix", [".npy", ".npz", ".safetensors"])
def test_own_arrays(tmp_path, suffix):
    rng = np.random.default_rng(0)
    paths = save(tmp_path, suffix, rng.normal(size=(4, 6, 5)).astype("f"), rng.integers(0, 5, (4, 6)))
    shown = invoke("compare", "--backend", "numpy", "--logits", paths[0], "--labels", paths[1])
    assert shown.exit_code == 0, shown.output
    assert "sparse_ce float32" in shown.stdout


def test_own_distributions_and_ignored_ids(tmp_path):
    rng = np.random.default_rng(0)
    x, t, y = rng.normal(size=(6, 5)), rng.dirichlet(np.ones(5), 6), rng.integers(0, 5, 6)
    soft = save(tmp_path, ".npy", x, t)
    shown = invoke("compare", "--backend", "numpy", "--logits", soft[0], "--labels", soft[1])
    assert "softmax_ce float64" in shown.stdout
    y[2] = -100
    hard = save(tmp_path, ".npy", x, y)
    own = ["compare", "--backend", "numpy", "--logits", hard[0], "--labels", hard[1]]
    assert invoke(*own, "--ignore-index", "-100").exit_code == 0
    refused = invoke(*own)
    assert refused.exit_code == 2
    assert "1 of 6 class ids out of range, the first at [2] is -100" in refused.stderr


def save(folder, suffix, *arrays):
    paths = [folder / f"{name}{suffix}" for name in ("logits", "labels")]
    for path, array in zip(paths, arrays, strict=True):
        if suffix == ".npy":
            np.save(path, array)
        elif suffix == ".npz":
            np.savez(path, data=array)
        else:
            safetensors = pytest.importorskip("safetensors.numpy", reason="safetensors is not installed")
            safetensors.save_file({"a": array}, path)
    return paths


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--backend", "mxnet"], "backend 'mxnet': expected one of 'numpy', 'torch', 'tensorflow', 'jax'"),
        (["--backend", "numpy", "--device", "cuda:9"], "nothing to compare: numpy: no device 'cuda:9', only cpu"),
        (["--logits", "nowhere.npy"], "nowhere.npy: no such file"),
        (["--logits", "x.csv"], "x.csv: expected .npy, .npz or .safetensors"),
        (["--labels", "y.npy"], "y.npy: no such file"),
    ],
)
def test_what_cannot_be_run(arguments, sentence):
    done = invoke("compare", *arguments)
    assert done.exit_code == 2
    assert sentence in done.stderr.replace("\n", " ")


def test_logits_without_labels(tmp_path):
    (path, _) = save(tmp_path, ".npy", np.zeros((2, 3)), np.zeros(2, int))
    done = invoke("compare", "--logits", path)
    assert done.exit_code == 2
    assert "labels: expected beside logits, got None" in done.stderr
    done = invoke("compare", "--labels", path)
    assert done.exit_code == 2
    assert "logits: expected beside labels, got None" in done.stderr


FLOATS = "'float16', 'bfloat16', 'float32' or 'float64'"


@pytest.mark.parametrize(
    ("dtype", "got"),
    [("complex64", "complex64"), ("int32", "int32 (are"), ("bool", "bool (are"), ("U3", "str"), ("V2", "void16")],
)
def test_own_logits_of_another_kind(dtype, got):
    """The TypeError of the loss itself: nothing casts them before it is asked."""
    x, y = np.zeros((4, 3), dtype), np.zeros(4, int)
    with pytest.raises(TypeError, match=re.escape(f"logits: expected {FLOATS}, got {got}")):
        xent.compare("numpy", logits=x, labels=y)
    with pytest.raises(TypeError, match=re.escape(f"logits: expected {FLOATS}, got {got}")):
        xent.compare("numpy", losses="sigmoid_ce", logits=x, labels=np.zeros((4, 3)))


@pytest.mark.parametrize(
    ("shape", "labels", "dtype", "sentence"),
    [
        ((0, 3), (0,), "float32", "logits: expected at least one row to compare, got shape (0, 3)"),
        ((2, 0, 3), (2, 0), "float32", "logits: expected at least one row to compare, got shape (2, 0, 3)"),
        ((2, 3), (2,), "float16", "logits: 6 of 6 values are beyond float16's largest number"),
    ],
)
def test_own_logits_with_nothing_to_compare(shape, labels, dtype, sentence):
    with pytest.raises(ValueError, match=re.escape(sentence)):
        xent.compare("numpy", dtypes=dtype, logits=np.full(shape, 1e6, "f"), labels=np.zeros(labels, int))


def test_own_infinite_logits():
    found = xent.compare("numpy", logits=np.array([[np.inf, 1, -np.inf]], "f"), labels=np.array([0]))
    assert found.agrees


@pytest.mark.backend("torch")
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_own_tensors(dtype):
    """Of any framework, with a gradient or without, in dtypes that NumPy does not have."""
    torch = pytest.importorskip("torch", reason="torch is not installed")
    x = torch.randn(4, 5, dtype=getattr(torch, dtype), requires_grad=True)
    (row,) = xent.compare("numpy", modes="eager", logits=x, labels=torch.tensor([0, 1, 2, 4])).rows
    assert row.dtype == dtype
    assert row.agrees


def test_own_bfloat16_as_npy(tmp_path):
    """.npy cannot say that it holds bfloat16."""
    ml_dtypes = pytest.importorskip("ml_dtypes", reason="ml_dtypes is not installed")
    paths = save(tmp_path, ".npy", np.ones((2, 3), ml_dtypes.bfloat16), np.array([0, 2]))
    done = invoke("compare", "--logits", paths[0], "--labels", paths[1])
    assert done.exit_code == 2
    sentence = f"{paths[0]}: logits has the dtype |V2, raw bytes; save bfloat16 as .safetensors or as float32"
    assert sentence in done.stderr.replace("\n", "")


def safetensors_file(path, dtype, data):
    header = json.dumps({"a": {"dtype": dtype, "shape": [2, 3], "data_offsets": [0, len(data)]}}).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header + data)


def test_own_bfloat16_as_safetensors(tmp_path):
    """NumPy has it from ml_dtypes, which need not be installed."""
    pytest.importorskip("safetensors", reason="safetensors is not installed")
    path = tmp_path / "b.safetensors"
    safetensors_file(path, "BF16", b"\x80\x3f" * 6)
    code = f"from pathlib import Path; from xent import _files; print(_files.load(Path({str(path)!r}), 'logits').dtype)"
    done = python("-c", f"import sys; sys.modules['ml_dtypes'] = None; {code}")
    assert f"ValueError: {path}: a is BF16, which NumPy reads with: pip install ml_dtypes" in done.stderr
    pytest.importorskip("ml_dtypes", reason="ml_dtypes is not installed")
    assert _files.load(path, "logits").dtype.name == "bfloat16"


def test_own_dtype_that_numpy_does_not_have(tmp_path):
    pytest.importorskip("safetensors", reason="safetensors is not installed")
    path = tmp_path / "c.safetensors"
    safetensors_file(path, "F8_E4M3", bytes(6))
    done = invoke("compare", "--logits", path, "--labels", path)
    assert f"{path}: a is F8_E4M3, which NumPy does not have" in done.stderr.replace("\n", "")


def test_disagreement(monkeypatch):
    """A backend that is off by 1e-4 is found out, and says so by exit status."""
    monkeypatch.syspath_prepend(Path(__file__).parent / "toy_wrong")
    shown = invoke("compare", "--backend", "wrong_framework", "--loss", "sparse_ce", "--dtype", "float32")
    assert shown.exit_code == 1, shown.output
    assert "1 of 1 disagree with the truth" in shown.stdout
    assert "1e-04" in shown.stdout


def test_from_python():
    steps = []
    found = xent.compare(["numpy"], dtypes=["float64"], progress=lambda *step: steps.append(step))
    assert found
    assert found.agrees
    assert "sparse_ce" in repr(found)
    assert "all 4 agree" in repr(found)
    assert [done for _, done, of in steps] == list(range(1, steps[-1][2] + 1))


def test_pairs():
    there = ["numpy", *(name for name in ("torch", "array_api_strict") if importlib.util.find_spec(name))]
    found = xent.compare(there, losses=["sparse_ce"], dtypes=["float64"], modes=["eager"])
    assert found.agrees
    assert [pair.backends for pair in found.pairs] == list(itertools.combinations(there, 2))
    assert all(pair.value < 1e-14 for pair in found.pairs)


def test_without_typer():
    """What to install, instead of a traceback."""
    done = python("-c", "import sys; sys.modules['typer'] = None; from xent.__main__ import main; main()")
    assert done.stderr.strip() == "xent: the command line needs typer: pip install typer rich psutil"
    assert done.returncode == 1


@pytest.mark.parametrize("suffix", [".npy", ".npz", ".safetensors"])
@pytest.mark.parametrize("content", [b"", b"no such format" * 9])
def test_files_that_are_none(tmp_path, suffix, content):
    if suffix == ".safetensors":
        pytest.importorskip("safetensors", reason="safetensors is not installed")
    path = tmp_path / f"junk{suffix}"
    path.write_bytes(content)
    done = invoke("compare", "--logits", path, "--labels", path)
    assert done.exit_code == 2
    assert f"not a readable {suffix} file" in done.stderr.replace("\n", " ").replace("  ", " ")


def test_own_arrays_that_do_not_fit(tmp_path):
    paths = save(tmp_path, ".npy", np.zeros((2, 3, 4)), np.zeros((3, 2), int))
    done = invoke("compare", "--backend", "numpy", "--logits", paths[0], "--labels", paths[1])
    assert done.exit_code == 2
    assert "labels: expected shape (2, 3)" in done.stderr


def test_a_framework_that_does_not_import(tmp_path, monkeypatch):
    """It is reported, and the others are compared."""
    (tmp_path / "jax.py").write_text("raise ImportError('its library is missing')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(
        cli.frameworks, "available", lambda: iter(["numpy", "jax"])
    )  # to import the others takes a while
    shown = invoke("backends")
    assert shown.exit_code == 0
    assert "broken" in shown.stdout
    assert json.loads(invoke("backends", "--json").stdout)["jax"]["problem"].endswith("its library is missing")
    found = xent.compare(["numpy", "jax"], losses=["sigmoid_ce"], dtypes=["float32"])
    assert found.agrees
    assert found.skipped == ["jax: ImportError: its library is missing"]
