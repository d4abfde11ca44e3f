"""`xent.compare`: linear_ce, the class axis, each kind of logits by itself, and how it says what it does."""

import io

import cases
import numpy as np
import pytest
import xent
from rich.console import Console
from typer.testing import CliRunner
from xent import cli
from xent.verify import batches, frameworks, judge, linear, regimes, worker
from xent.verify.comparison import Comparison, InRegime, Row
from xent.verify.page import STYLE, page
from xent.verify.show import show
from xent.verify.task import Outcome, Task, in_rows, laid_out

RNG = np.random.default_rng(0)
ON = cases.backends("numpy", "torch", "tensorflow", "jax")


def answered(backend, batch):
    return worker.answer(cases.framework(backend, batch.dtype), Task(backend, "eager", "cpu", batch))


# ---- linear_ce


@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16"])
def test_products_are_exact(dtype):
    """So the truth is that of the logits, whatever a product rounds."""
    batch = linear.batch(dtype, 10)
    compute = "float64" if dtype == "float64" else "float32"
    products = batch.hidden.astype(compute) @ batch.weight.astype(compute).T
    np.testing.assert_array_equal(products, batch.logits)
    assert batch.regimes[0] == "ordinary"
    assert "-inf" not in batch.regimes


@pytest.mark.parametrize("backend", ON)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_linear_ce(backend, dtype):
    if dtype != "float32":
        cases.only_full_on_jax(cases.framework(backend, dtype))
    batch = linear.batch(dtype, 10)
    answer = answered(backend, batch)
    truth = judge.truth_of(batch)
    assert answer.ours.problem == ""
    ours, theirs = (judge.judge(batch, truth, outcome) for outcome in (answer.ours, answer.native))
    assert ours.share <= 1
    assert theirs.share > 1
    assert "hidden @ weight.T" in answer.native_name
    if dtype == "float32":
        assert max(judge.in_regime(batch, theirs, "ordinary")) < 1e-5 / 1e-6, "ordinary logits are no trouble"


@pytest.mark.parametrize("place", [(-1, -1), (0, -1), (-1, 0)])
def test_linear_ce_that_is_wrong(place):
    """By 1e-4 in one entry of the gradient in hidden states or weight."""
    batch = linear.batch("float32", 10)
    truth = judge.truth_of(batch)
    grad = truth.logits.copy()
    assert judge.judge(batch, truth, Outcome(truth.loss, grad)).share == 0
    grad[place] += 1e-4 * max(abs(grad[place]), 1e-3)
    assert judge.judge(batch, truth, Outcome(truth.loss, grad)).share > 1
    assert judge.judge(batch, truth, Outcome(truth.loss * (1 + 1e-4), truth.logits)).share > 1


def test_linear_ce_takes_no_logits():
    with pytest.raises(ValueError, match="losses: linear_ce takes hidden states and a weight, not logits"):
        xent.compare("numpy", losses="linear_ce", logits=np.zeros((2, 3)), labels=[0, 1])
    with pytest.raises(ValueError, match="losses: expected the one that the contenders compute"):
        xent.compare("numpy", losses="linear_ce", contenders={"mine": len})


# ---- the class axis


def test_axis_of_own_arrays():
    x, y = RNG.normal(size=(2, 5, 3)).astype("f"), RNG.integers(0, 5, (2, 3))
    found = xent.compare("numpy", logits=x, labels=y, axis=1)
    assert found.agrees
    assert found.rows[0].native_value < 1e-5, "the framework's own loss gets rows"
    soft = xent.compare("numpy", logits=x, labels=np.moveaxis(RNG.dirichlet(np.ones(5), (2, 3)), -1, 1), axis=1)
    assert soft.agrees
    with pytest.raises(ValueError, match="axis: expected -3 to 2 for logits of shape"):
        xent.compare("numpy", logits=x, labels=y, axis=3)


def test_axis_reaches_xent():
    """Its logits have the caller's layout, and what comes back is row by row again."""
    ((_, batch), *_) = batches.own(RNG.normal(size=(2, 5, 3)), np.zeros((2, 3), int), [], [], {}, 1)
    given = laid_out(batch)
    assert given.logits.shape == (2, 5, 3)
    assert given.labels.shape == (2, 3)
    assert batch.logits.shape == (6, 5)
    np.testing.assert_array_equal(in_rows(batch, given.logits), batch.logits)
    answer = worker.answer(frameworks.load("numpy"), Task("numpy", "eager", "cpu", batch))
    assert answer.ours.grad.shape == (6, 5)


@pytest.mark.parametrize("axis", [0, -2])
def test_axis_of_our_own_logits(axis):
    assert xent.compare("numpy", losses=["sparse_ce", "softmax_ce"], dtypes="float32", axis=axis).agrees
    ((_, batch), *_) = batches.of_regimes(["sparse_ce"], ["float32"], {}, axis, full=False)
    assert laid_out(batch).logits.shape == batch.logits.T.shape


# ---- ids to ignore


@pytest.mark.parametrize("backend", ON)
@pytest.mark.parametrize("ignored", [-100, 1])
def test_own_loss_beside_ignored_ids(backend, ignored):
    """It is judged on what counts, by its own option where it has one."""
    y = RNG.integers(0, 5, 6)
    y[[0, 3]] = ignored
    ((_, batch), *_) = batches.own(RNG.normal(size=(6, 5)).astype("f"), y, [], [], {"ignore_index": ignored}, -1)
    answer = answered(backend, batch)
    for outcome in (answer.ours, answer.native):
        verdict = judge.judge(batch, judge.truth_of(batch), outcome)
        assert verdict.value < 1e-5
        assert verdict.gradient < 1e-5


@pytest.mark.backend("torch")
def test_own_option_for_ignored_ids():
    """PyTorch's gradient is NaN where an ignored row holds NaN: its own `ignore_index` is what is called."""
    x = RNG.normal(size=(3, 5)).astype("f")
    x[1, 2] = np.nan
    ((_, batch), *_) = batches.own(x, np.array([0, -100, 2]), [], [], {"ignore_index": -100}, -1)
    answer = answered("torch", batch)
    assert judge.judge(batch, judge.truth_of(batch), answer.ours).share <= 1
    assert np.isnan(answer.native.grad[1]).any()


def test_ignored_ids_are_of_own_labels():
    with pytest.raises(ValueError, match="ignore_index: expected beside your own logits and labels"):
        xent.compare("numpy", ignore_index=-100)


# ---- each kind of logits by itself


def test_ordinary_logits_come_first():
    """What a framework's own loss loses on hard logits does not look as if it lost it on all."""
    (row,) = xent.compare("numpy", losses="sparse_ce", dtypes="float32").rows
    assert [found.regime for found in row.regimes] == list(regimes.REGIMES)
    ordinary, *hard = row.regimes
    assert ordinary.native_value < 1e-6
    assert ordinary.native_gradient < 1e-6
    assert max(found.native_value for found in hard) > 0.9
    assert row.value == max(found.value for found in row.regimes)
    assert row.share == max(found.share for found in row.regimes)


def made(backend, loss="sparse_ce", **options):
    kinds = tuple(InRegime(name, 1e-7, 1e-7, 0.5, 1.0, 1.0) for name in regimes.REGIMES)
    return Row(backend, loss, "bfloat16", "compiled", 1e-7, "lead", 1e-7, "lead", 0.5, "its", regimes=kinds, **options)


def test_terminal_of_80_columns():
    found = Comparison([made("array_api_strict", "softmax_ce"), made("tensorflow", "linear_ce")], [], [], {})
    shown = io.StringIO()
    show(found, Console(file=shown, width=80))
    text = shown.getvalue()
    assert "…" not in text
    assert max(map(len, text.splitlines())) <= 80
    assert all(f"\n{name:11}{regimes.about(name)}" in text for name in regimes.REGIMES)
    assert text.count("ordinary sharp offset") == 2


def test_page_is_read_without_hovering():
    text = page(Comparison([made("numpy"), made("numpy", contender="mine")], [], [], {}))
    assert "title=" not in text
    assert all(f"<dt>{name}</dt><dd>{regimes.about(name)}</dd>" in text for name in regimes.REGIMES)
    assert text.count("1e-07<br>1e-07") == text.count("1e+00<br>1e+00") == 2 * len(regimes.REGIMES)
    assert "prefers-color-scheme:dark" in STYLE
    assert "max-width:40rem" in STYLE


# ---- what it says meanwhile


def test_what_it_does_and_how_far_it_is():
    command = ["compare", "--backend", "numpy", "--dtype", "float32", "--loss", "sparse_ce", "--loss", "sigmoid_ce"]
    shown = CliRunner().invoke(cli.app, command)
    first, second, *steps = shown.stderr.splitlines()
    assert first == "checking numpy: sparse_ce, sigmoid_ce in float32,"
    assert "eager and compiled, over 8 kinds of logits, against float64; about " in second
    assert [step.partition(" s  ")[2] for step in steps] == [
        "1 of 2: numpy sparse_ce float32",
        "2 of 2: numpy sigmoid_ce float32",
    ]
    assert "checking" not in shown.stdout


def test_full():
    """What takes longest comes only when it is asked for."""
    for loss, dtype, more in (("sparse_ce", "float64", [33333, 262144]), ("sigmoid_ce", "float16", [33333])):
        usual, full = (list(batches._classes(loss, dtype, "eager", full)) for full in (False, True))
        assert usual == [1, 2, 10, 1000]
        assert full == usual + more
    assert "--full" in CliRunner().invoke(cli.app, ["compare", "--help"]).stdout
