"""`xent compare --contender`: users' own losses are judged as xent's are."""

import dataclasses
import importlib
import importlib.util
import re

import cases
import contenders
import numpy as np
import pytest
import xent
from test_bench import serve
from typer.testing import CliRunner
from xent import cli
from xent.benchmarks.frameworks import why_not_users
from xent.benchmarks.workloads import WORKLOADS
from xent.verify import contender, frameworks, judge, regimes, tolerance
from xent.verify.comparison import contender_text, rows
from xent.verify.page import page
from xent.verify.task import Answer, Contender, Outcome, Task

MADE = {}  # batches and their truths


def judged(name, backend="numpy", loss="sparse_ce", classes=(10,), function=None, mode="eager", **options):
    """The row of one of the contenders in float32, in this process."""
    if importlib.util.find_spec(backend) is None:
        pytest.skip(f"{backend} is not installed")
    framework = frameworks.load(backend)
    who = Contender(name, function or getattr(contenders, name))
    tasks = []
    for c in classes:
        key = (loss, c, *options.items())
        if key not in MADE:
            batch = dataclasses.replace(regimes.batch(loss, "float32", c), options=options)
            MADE[key] = batch, batch.truth()
        tasks.append(Task(backend, mode, "cpu", MADE[key][0], who))
    answers = [Answer(contender.outcome(framework, task, who.function)) for task in tasks]
    (row,) = rows(tasks, answers, {id(batch): truth for batch, truth in MADE.values()})
    return row


ON = [pytest.param(name, marks=pytest.mark.backend(name)) for name in ("numpy", "torch", "tensorflow", "jax")]
NATIVE = {"torch": "cross_entropy", "tensorflow": "tf_nn", "jax": "optax"}


@pytest.mark.parametrize("backend", ON)
@pytest.mark.parametrize("name", ["right", "right_by_row"])
def test_right(backend, name):
    row = judged(name, backend)
    assert row.agrees, contender_text(row)
    assert np.isnan(row.gradient) if backend == "numpy" else row.gradient < 1e-5, "NumPy derives nothing"


@pytest.mark.parametrize("backend", ON)
def test_naive(backend):
    """It overflows where the logits are large, and the smallest input says so."""
    row = judged("naive" if backend == "numpy" else f"naive_{backend}", backend)
    assert not row.agrees
    assert row.worst_regime in ("offset", "spread", "behind", "-inf")
    assert_said(row)


def assert_said(row):
    """The report names the regime and a small input."""
    assert re.search(r"logits \[\[.*\]\], labels \[.*\]: .*, expected ", row.example)
    assert len(row.example) < 300
    assert f"wrong, worst where logits are {row.worst_regime!r}: {row.example}" in contender_text(row)


@pytest.mark.parametrize("backend", ON)
def test_planted_error(backend):
    """1e-3 in one entry of the gradient."""
    row = judged("planted" if backend == "numpy" else f"planted_{backend}", backend)
    assert row.value < 1e-5
    assert row.gradient == pytest.approx(1e-3, rel=0.01)
    assert not row.agrees
    assert "gradient[" in row.example
    assert ", 0]" in row.example
    assert_said(row)


@pytest.mark.parametrize("backend", ON[1:])
def test_frameworks_own(backend):
    """It is judged as `compare` judges it beside xent."""
    if backend == "jax" and importlib.util.find_spec("optax") is None:
        pytest.skip("optax is not installed")
    row = judged(NATIVE[backend], backend)
    framework = frameworks.load(backend)
    batch, truth = MADE["sparse_ce", 10]
    arrays = framework.array(batch.logits, "float32", "cpu"), framework.array(batch.labels, None, "cpu")
    got = framework.builtin_losses()["sparse_ce"].value_and_grad(*arrays)
    verdict = judge.judge(batch, truth, Outcome(*map(framework.numpy, got)))
    assert (row.value, row.gradient, row.share) == (verdict.value, verdict.gradient, verdict.share)
    assert row.value == pytest.approx(1)
    assert not row.agrees
    assert row.worst_regime in ("lead", "equal"), "where it says 0"
    assert "loss is 0, expected" in row.example
    assert_said(row)


def test_smallest_input():
    few, many = (judged("planted", classes=classes).example for classes in ((10, 2), (1000,)))
    assert few.startswith("logits [[")
    assert few.count(",") < 8
    assert "of xent.verify.regimes.batch('sparse_ce', 'float32', 1000, 0, 1)" in many


@pytest.mark.compiled
@pytest.mark.parametrize("backend", ON[1:])
def test_compiled(backend):
    """The framework's compiler compiles the loss; its gradient is judged, too."""
    if backend != "torch" or cases.FULL:  # Inductor generates seconds of code for this one
        row = judged(f"naive_{backend}", backend, mode="compiled")
        assert not row.problem
        assert not row.agrees
    assert judged("right_by_row", backend, mode="compiled").agrees


@pytest.mark.parametrize(
    ("name", "backend", "loss", "right"),
    [
        ("right_with_gradient", "numpy", "sparse_ce", True),
        ("sum_for_mean", "numpy", "sparse_ce", False),
        pytest.param("sum_for_mean", "torch", "sparse_ce", False, marks=pytest.mark.backend("torch")),
        pytest.param("mean_of_pairs", "torch", "sparse_ce", False, marks=pytest.mark.backend("torch")),
        ("soft", "numpy", "softmax_ce", True),
        ("sigmoid", "numpy", "sigmoid_ce", True),
        ("sigmoid_sum", "numpy", "sigmoid_ce", False),
        pytest.param("forgets_upstream", "torch", "sparse_ce", False, marks=pytest.mark.backend("torch")),
        pytest.param("soft", "torch", "softmax_ce", True, marks=pytest.mark.backend("torch")),
        pytest.param("sigmoid", "torch", "sigmoid_ce", True, marks=pytest.mark.backend("torch")),
    ],
)
def test_means(name, backend, loss, right):
    """Row by row; and of some rows together, where a sum is no mean."""
    row = judged(name, backend, loss)
    assert row.agrees is right, contender_text(row)


def test_options():
    assert judged("smoothed", classes=(1000,), label_smoothing=0.1).agrees, "where p is close to e / C, too"
    assert not judged("right", label_smoothing=0.1).agrees
    assert not judged("smoothed").agrees


def test_smoothed_ids_of_many_classes():
    """Their one-hot form takes memory for the logits alone."""
    batch = dataclasses.replace(
        regimes.batch("sparse_ce", "float32", 262144, every=20), options={"label_smoothing": 0.1}
    )
    truth = batch.truth()
    assert not tolerance.errors(batch, truth, truth.loss, truth.logits).grad_share.any()


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("raises", "RuntimeError: no kernel for this shape"),
        ("another_shape", "returns shape (3, 10) for logits (3, 10), expected () or (3,)"),
        ("a_dict", "returns dict, expected the loss"),
        ("changes_logits", "changes its argument: logits"),
        ("changes_labels", "changes its argument: labels"),
    ],
)
def test_problems(name, problem):
    row = judged(name)
    assert row.problem == problem
    assert not row.agrees
    assert contender_text(row) == f"{name} on numpy, float32, eager: {problem}"


@pytest.mark.parametrize(
    ("reference", "problem"),
    [
        ("no_such_module:f", "cannot be imported: ModuleNotFoundError: No module named 'no_such_module'"),
        ("contenders:gone", "cannot be imported: AttributeError: module 'contenders' has no attribute 'gone'"),
        ("contenders:MADE", "cannot be imported: AttributeError: module 'contenders' has no attribute 'MADE'"),
        ("contenders:__name__", "cannot be imported: TypeError: expected a function, got str"),
    ],
)
def test_references(reference, problem):
    assert judged("mine", function=reference).problem == problem


def test_compare_goes_on():
    """By name or as a function, beside xent; one that ends its process takes no other with it."""
    given = {
        "gone": "contenders:ends_the_process",
        "by name": "contenders:planted",
        "a function": lambda x, y: contenders.right_with_gradient(x, y),
    }
    x = np.random.default_rng(0).normal(size=(4, 5)).astype("f")
    y = np.array([0, 1, 2, 4])
    found = xent.compare("numpy", losses="sparse_ce", modes="eager", contenders=given, logits=x, labels=y)
    ours, *theirs = found.rows
    assert ours.agrees
    assert [row.contender for row in theirs] == list(given)
    assert [row.agrees for row in theirs] == [False, False, True]
    assert theirs[0].problem == "its process ended: status 3"
    assert theirs[1].worst_regime == "yours"
    assert not found.agrees
    assert [contender_text(row) in repr(found) for row in theirs] == [True] * 3
    shown = page(found)
    assert "your own" in shown
    assert shown.count("by name, numpy") == 2, "all kinds of logits together, and each by itself"
    assert theirs[1].value == pytest.approx(ours.value)


def test_bench():
    """Among the rivals, or without them; one that is wrong or cannot be imported is not timed."""
    names = [f"contenders:{name}" for name in ("right_with_gradient", "planted", "right", "gone")]
    found = xent.bench("tiny", backends="numpy", rivals=False, contenders=names, rounds=1)
    ours, *theirs = found.cases[0].series
    assert [series.name for series in theirs] == names
    assert [series.time is not None for series in theirs] == [True, False, False, False]
    assert [series.problem for series in theirs[:3]] == ["", "wrong: gradient off by 1e-03", "wrong: gradient missing"]
    assert "AttributeError: module 'contenders' has no attribute 'gone'" in theirs[3].problem
    assert ours.ours
    assert not found.failures


def test_bench_says_what_leaves_a_contender_out():
    """A loss of (logits, labels) has no hidden states, and its classes are last."""
    found = xent.bench("linear-small", backends="numpy", rivals=False, contenders="contenders:right", rounds=1)
    assert [series.name for series in found.cases[0].series] == ["xent"]
    reason = "contenders:right on linear-small: its inputs are hidden states and a weight, not logits"
    assert found.absent == [reason]
    said = why_not_users(WORKLOADS["segmentation"])
    assert said == "its classes are on axis 1, not on the last one"
    assert not why_not_users(WORKLOADS["tiny"])


@pytest.mark.parametrize(
    ("backend", "modes"),
    [
        pytest.param("torch", ["eager"], marks=pytest.mark.backend("torch")),
        pytest.param("tensorflow", ["graph", "compiled"], marks=pytest.mark.backend("tensorflow")),
        pytest.param("jax", ["eager", "compiled"], marks=pytest.mark.backend("jax")),
    ],
)
def test_bench_on_frameworks(backend, modes):
    """A loss a row counts as its mean."""
    if importlib.util.find_spec(backend) is None:
        pytest.skip(f"{backend} is not installed")
    framework = importlib.import_module(f"xent.benchmarks.frameworks.{backend}").make("cpu")
    framework = dataclasses.replace(framework, modes={mode: framework.modes[mode] for mode in modes})
    theirs = serve(framework, users=["contenders:right_by_row"])
    assert [series.mode for series in theirs] == modes
    assert not any(series.problem for series in theirs)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"losses": "sparse_ce"}, "backends: expected the contenders' framework, got None"),
        ({"backends": "numpy"}, "losses: expected the one that the contenders compute, of sparse_ce, softmax_ce"),
        ({"backends": "numpy", "losses": "sparse_ce", "contenders": {"f": "no_colon"}}, "'package.module:function'"),
        ({"backends": "numpy", "losses": "sparse_ce", "contenders": {"": len}}, "contenders: expected names, got ''"),
        (
            {"backends": "numpy", "losses": "sigmoid_ce", "options": {"z_loss": 1.0}},
            "option 'z_loss': expected one that sigmoid_ce has, of",
        ),
        (
            {"backends": "numpy", "losses": "sparse_ce", "options": {"label_smoothing": 2.0}},
            "label_smoothing: expected a number from 0 to 1",
        ),
    ],
)
def test_bad_calls(arguments, sentence):
    with pytest.raises(ValueError, match=re.escape(sentence)):
        xent.compare(**{"contenders": {"mine": contenders.right}, **arguments})


def test_command():
    command = ["compare", "--backend", "numpy", "--loss", "sparse_ce", "--dtype", "float16", "--contender"]
    shown = CliRunner().invoke(cli.app, [*command, "contenders:planted", "--option", "z_loss=0.0"])
    assert shown.exit_code == 1
    text = shown.stdout.replace("\n", " ")
    assert "contenders:planted on numpy, float16, eager: wrong, worst where logits are" in text
    assert "1 of 2 disagree with the truth" in text
    bad = CliRunner().invoke(cli.app, [*command, "contenders:planted", "--option", "z_loss"])
    assert bad.exit_code == 2
    assert "--option z_loss: expected name=number, such as label_smoothing=0.1" in bad.stderr
