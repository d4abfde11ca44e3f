"""`xent.doctor` and `xent doctor`: each diagnosis has a batch that it is made for, and a near miss that it is not."""

import json
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import pytest
import xent
from typer.testing import CliRunner
from xent import cli
from xent._console import json_text
from xent.verify import faults, remarks
from xent.verify.rows import rows

RNG = np.random.default_rng(0)
X = np.array([[2, 0.5, 6], [0.1, 0, 3]])
Y = np.array([2, 1])
NORMAL, IDS = RNG.normal(size=(4, 6, 5)), RNG.integers(0, 5, (4, 6))
NAN, INF = np.nan, np.inf
MANY_IDS = np.arange(60) % 3  # 20 of each class
CONFIDENT = np.array([[30.0, 0, 0], [0.5, 1, 2]])  # float32's log_softmax gives exactly 0 for class 0


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def at(x, place, value):
    x = np.array(x)
    x[place] = value
    return x


class Batch(NamedTuple):
    logits: Any
    labels: Any
    options: Mapping = MappingProxyType({})
    dtype: str = "float32"


HOT = np.eye(3)[Y]
TWO_HOT = np.array([[1.0, 0, 1], [0, 1, 0]])
# Diagnosis: a batch that triggers it, a near miss that does not.
CASES = [
    ("swapped", Batch(Y, X), Batch(X, Y)),
    ("swapped", Batch(softmax(X), -X), Batch(softmax(X), X)),  # by their values; labels may be above 0 and not add up
    ("one_hot_as_ids", Batch(X, HOT.astype(int)), Batch(X, HOT)),
    ("one_hot_as_ids", Batch(X, HOT, {"loss": "sparse_ce"}), Batch(X, HOT.astype(int), {"loss": "softmax_ce"})),
    ("one_hot_as_ids", Batch(X, TWO_HOT.astype(int)), Batch(X, TWO_HOT.astype(int), {"loss": "sigmoid_ce"})),
    ("ids_as_soft_labels", Batch(X, Y * 1.0), Batch(X, Y)),
    ("ids_as_soft_labels", Batch(X, Y, {"loss": "softmax_ce"}), Batch(X[0], HOT[0], {"loss": "softmax_ce"})),
    ("ids_of_another_axis", Batch(NORMAL, IDS % 4, {"axis": 0}), Batch(NORMAL, IDS)),
    ("ids_of_another_axis", Batch(NORMAL.swapaxes(1, 2), IDS), Batch(NORMAL.swapaxes(1, 2), IDS, {"axis": 1})),
    ("probabilities", Batch(softmax(X), Y), Batch(softmax(X) * 1.1, Y)),
    ("probabilities", Batch(softmax(X), HOT), Batch(at(softmax(X), (1, 1), -0.1), HOT)),
    ("probabilities", Batch(softmax(NORMAL).swapaxes(1, 2), IDS, {"axis": 1}), Batch(X, Y)),
    ("probabilities", Batch(softmax(X), HOT, {"loss": "sigmoid_ce"}), Batch(softmax(X), HOT * 0, {"axis": 0})),
    ("nothing_counts", Batch(X, [7, 7], {"ignore_index": 7}), Batch(X, [7, 1], {"ignore_index": 7})),
    ("nothing_counts", Batch(X[:0], Y[:0]), Batch(X[:1], Y[:1])),
    ("minus_100", Batch(X, [2, -100]), Batch(X, [2, -100], {"ignore_index": -100})),
    ("minus_100", Batch(X, [2, -100]), Batch(X, [2, -99])),
    ("ids_from_1", Batch(X, [3, 1]), Batch(X, [2, 1])),
    ("ids_from_1", Batch(X, [3, -100], {"ignore_index": -100}), Batch(X, [3, 0])),
    ("ids_out_of_range", Batch(X, [3, 0]), Batch(X, [3, 1])),
    ("ids_out_of_range", Batch(X, [2, -1]), Batch(X, [2, -1], {"ignore_index": -1})),
    ("ids_out_of_range", Batch(X, [2, -100], {"ignore_index": 0}), Batch(X, [2, -100])),
    ("several_positives", Batch(X, TWO_HOT), Batch(X, HOT)),
    ("several_positives", Batch(X, TWO_HOT), Batch(X, TWO_HOT, {"loss": "sigmoid_ce"})),
    ("several_positives", Batch(X, TWO_HOT), Batch(X, at(TWO_HOT, (0, 1), 0.5))),
    ("logits_not_finite", Batch(at(X, (1, 2), NAN), Y), Batch(at(X, (1, 2), NAN), [2, 7], {"ignore_index": 7})),
    ("logits_not_finite", Batch(at(X, (1, 2), INF), Y), Batch(at(X, (1, 2), -INF), Y)),
    ("logits_not_finite", Batch(at(X, 1, -INF), Y), Batch(at(X, (1, 2), INF), HOT, {"loss": "sigmoid_ce"})),
    ("labels_not_finite", Batch(X, at(HOT, (0, 1), NAN)), Batch(X, at(HOT, (0, 1), 9))),
    ("labels_not_finite", Batch(X, at(HOT, (0, 1), -INF)), Batch(X, Y)),
    ("impossible_labels", Batch(at(X, (1, 1), -INF), Y), Batch(at(X, (1, 0), -INF), Y)),
    ("impossible_labels", Batch([[-INF, 1]], [[1.0, 0]], {"loss": "sigmoid_ce"}), Batch([[-INF, 1]], [[0.0, 1]])),
    ("log_probabilities", Batch(np.log(softmax(X)), Y), Batch(np.log(softmax(X)) - 0.1, Y)),
    ("log_probabilities", Batch(np.log(softmax(X)), HOT), Batch(softmax(X), HOT)),
    (
        "log_probabilities",
        Batch(np.log(softmax(X)).T, [2, 7], {"axis": 0, "ignore_index": 7}),
        Batch(at(np.log(softmax(X)), (0, 2), 1), Y),
    ),
    ("one_positive", Batch(X, HOT, {"loss": "sigmoid_ce"}), Batch(X, TWO_HOT, {"loss": "sigmoid_ce"})),
    ("one_positive", Batch(X, HOT, {"loss": "sigmoid_ce"}), Batch(X, HOT)),
    ("unseen_classes", Batch(np.zeros((60, 3)), MANY_IDS // 2), Batch(np.zeros((60, 3)), MANY_IDS)),
    ("unseen_classes", Batch(np.zeros((30, 3)), np.zeros(30, int)), Batch(np.zeros((29, 3)), np.zeros(29, int))),
    (
        "mostly_ignored",
        Batch(NORMAL[0], [1, 7, 7, 7, 7, 2], {"ignore_index": 7}),
        Batch(NORMAL[0], [1, 7, 7, 7, 3, 2], {"ignore_index": 7}),
    ),
    ("extreme_spread", Batch(at(X, (0, 0), -1001), Y), Batch(at(X, (0, 0), -990), Y)),
    ("extreme_spread", Batch(at(X, (0, 0), -1001), Y), Batch(at(X, (0, 0), -INF), Y)),
    ("extreme_offset", Batch(X + 1001, Y), Batch(X + 999, Y)),
    ("extreme_offset", Batch(X - 1007, Y), Batch(at(X - 1007, (..., 0), 1), Y)),
    ("near_overflow", Batch(X * 1e4, Y, {}, "float16"), Batch(X * 1e3, Y, {}, "float16")),
    ("near_overflow", Batch(X * -1e4, Y, {}, "float16"), Batch(X * 1e4, Y)),
    ("labels_that_do_not_add_up", Batch(X, HOT * 0.9), Batch(X, HOT * 0.9 + 0.1 / 3)),
    ("labels_that_do_not_add_up", Batch(X, HOT * 0.9), Batch(X, HOT * 0.9, {"loss": "sigmoid_ce"})),
    ("labels_that_do_not_add_up", Batch(X, at(HOT, (0, 0), -0.2)), Batch(X, TWO_HOT)),
    ("loss_beside_chance", Batch(np.zeros((60, 3)), MANY_IDS), Batch(np.zeros((9, 3)), MANY_IDS[:9])),
    ("loss_beside_chance", Batch(-9 * np.eye(3)[MANY_IDS], MANY_IDS), Batch(9 * np.eye(3)[MANY_IDS], MANY_IDS)),
    ("own_loss_is_0", Batch(CONFIDENT, [0, 2]), Batch(CONFIDENT / 2, [0, 2])),
    ("own_loss_is_0", Batch(CONFIDENT, [0, 2]), Batch(CONFIDENT, [7, 2], {"ignore_index": 7})),
    ("ruled_out", Batch(at(X, (1, 0), -INF), Y), Batch(at(X, (1, 0), -90), Y)),
    ("ruled_out", Batch(at(X, (1, 0), -INF), Y), Batch(at(X, (1, 0), -INF), [2, 7], {"ignore_index": 7})),
]


def arrays(live, batch):
    if batch.dtype not in live.dtypes:
        pytest.skip(f"{live.name} has no {batch.dtype}")
    given = [np.asarray(batch.logits), np.asarray(batch.labels)]
    kinds = [batch.dtype if array.dtype.kind == "f" else "int32" for array in given]
    return [live.array(array, kind, "cpu") for array, kind in zip(given, kinds, strict=True)]


def names(report):
    return [finding.name for finding in report.findings]


def test_every_diagnosis_has_a_case():
    table = faults.OF_FORM + faults.OF_FIGURES + remarks.REMARKS
    assert {name for name, *_ in CASES} == {diagnosis.name for diagnosis in table}


@pytest.mark.parametrize(("name", "odd", "near_miss"), CASES, ids=[f"{i}-{case[0]}" for i, case in enumerate(CASES)])
def test_diagnosis(live, name, odd, near_miss):
    report = xent.doctor(*arrays(live, odd), **odd.options)
    (finding,) = [finding for finding in report.findings if finding.name == name]
    expected = {d.name: d.severity for d in faults.OF_FORM + faults.OF_FIGURES + remarks.REMARKS}[name]
    assert finding.severity == expected
    assert bool(report) == (not report.faults)
    assert finding.sentence in repr(report)
    assert "{" not in finding.sentence
    json_text(report.to_dict())
    assert name not in names(xent.doctor(*arrays(live, near_miss), **near_miss.options))


def test_the_trap_of_softmax_taken_twice(live):
    probabilities = live.array(softmax(X), "float32", "cpu")
    labels = live.array(Y, "int32", "cpu")
    report = xent.doctor(probabilities, labels)
    assert not report
    (finding,) = report.findings
    assert finding.name == "probabilities"
    assert finding.figures["losses"] == pytest.approx([0.56551915, 1.4743223], rel=1e-6)
    assert finding.figures["instead"] == pytest.approx([0.02215516, 3.0996735], rel=1e-5)
    assert finding.figures["floor"] == pytest.approx(np.log(1 + 2 / np.e))
    healthy = xent.doctor(live.array(X, "float32", "cpu"), labels)
    assert healthy
    assert healthy.findings == ()
    assert healthy.mean == pytest.approx(1.5609144)


def test_a_place_in_many_rows(live):
    x = live.array(at(NORMAL, (2, 3, 1), NAN), "float32", "cpu")
    report = xent.doctor(x, live.array(IDS, "int32", "cpu"))
    (finding,) = report.faults
    assert finding.sentence.startswith(
        "the logits hold NaN or infinity in 1 of 24 rows (the first: [2, 3]): it has nan at class 1"
    )
    assert finding.figures == {
        "count": 1,
        "of": 24,
        "first": [2, 3],
        "argument": "logits",
        "value": "nan",
        "place": 1,
    }


def test_bfloat16(live):
    if "bfloat16" not in live.dtypes:
        pytest.skip(f"{live.name} has no bfloat16")
    report = xent.doctor(live.array(softmax(X), "bfloat16", "cpu"), live.array(Y, "int32", "cpu"))
    assert names(report) == ["probabilities"]
    assert report.logits == "bfloat16 (2, 3)"


LEFT_OUT = [  # a batch with a fault or remark in its first row, which has weight 0
    Batch(at(X, (0, 1), NAN), Y),
    Batch(X, at(Y, 0, 7)),
    Batch(X, at(Y, 0, -100)),
    Batch(X, at(HOT, (0, 1), NAN)),
    Batch(X, at(HOT, (0, 1), 1)),
    Batch(X, at(HOT, (0, 1), -0.2)),
    Batch(at(X, 0, 5000), Y),
    Batch(at(X, (0, 2), -INF), Y),
    Batch(at(X, (0, 2), NAN), HOT * [[1], [0]], {"loss": "sigmoid_ce"}),
    Batch(at(X, (0, 2), -INF), HOT * [[1], [0]], {"loss": "sigmoid_ce"}),
]


@pytest.mark.parametrize("batch", LEFT_OUT, ids=map(str, range(len(LEFT_OUT))))
def test_weight_0_leaves_out(live, batch):
    """As ignored ids are; with a weight, the row is found."""
    x, y = arrays(live, batch)
    shape = (2, 1) if batch.options else (2,)
    weight = np.array([0.0, 2.0]).reshape(shape)
    report = xent.doctor(x, y, sample_weight=live.array(weight, "float32", "cpu"), **batch.options)
    assert report.findings == ()
    assert names(xent.doctor(x, y, sample_weight=weight + 1, **batch.options))
    alone = [part[1:] for part in (np.asarray(batch.logits), np.asarray(batch.labels))]
    assert report.mean == pytest.approx(xent.doctor(*alone, **batch.options).mean, rel=1e-6)


def test_weights_of_elements():
    """An element of weight 0 may be anything, beside others that count."""
    x, weight = at(X, (0, 1), NAN), at(np.ones((2, 3)), (0, 1), 0)
    options = {"loss": "sigmoid_ce", "sample_weight": weight}
    assert names(xent.doctor(x, TWO_HOT, **options)) == []
    assert names(xent.doctor(at(x, (0, 2), NAN), TWO_HOT, **options)) == ["logits_not_finite"]
    expected = xent.sigmoid_ce(x, TWO_HOT, sample_weight=weight)
    assert xent.doctor(x, TWO_HOT, **options).mean == pytest.approx(float(expected))


def test_weights():
    report = xent.doctor(X, Y, sample_weight=[1, 3])
    assert report.mean == pytest.approx(float(xent.sparse_ce(X, Y, sample_weight=[1, 3])))
    (finding,) = xent.doctor(X, Y, sample_weight=0).findings
    assert finding.sentence.startswith("all 2 labels are ignored or have weight 0")
    few = xent.doctor(np.zeros((5, 3)), [0, 1, 2, 0, 1], sample_weight=[1, 0, 0, 0, 0])
    assert few.findings[0].sentence.startswith("80% of the labels are ignored or have weight 0 (4 of 5 labels")


def test_nothing_is_changed(live):
    for values, labels in ((X, Y), (softmax(X), HOT), (np.log(softmax(X)), HOT)):
        given = arrays(live, Batch(values, labels))
        before = [np.array(live.numpy(array)) for array in given]
        xent.doctor(*given)
        for array, old in zip(given, before, strict=True):
            np.testing.assert_array_equal(live.numpy(array), old)


def test_read_only_arrays_and_views():
    x, y = np.asfortranarray(softmax(NORMAL)), IDS.copy()
    x.flags.writeable = y.flags.writeable = False
    assert names(xent.doctor(x, y)) == names(xent.doctor(x[::-1], y[::-1])) == ["probabilities"]
    assert names(xent.doctor(x.astype(">f4"), y)) == ["probabilities"]


def test_one_row():
    assert xent.doctor(X[0], 2).findings == ()
    assert names(xent.doctor(softmax(X[0]), np.array(2))) == ["probabilities"]


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("shape", [(300, 5), (3, 70, 200), (2, 5, 300, 400), (3, 300_000)])
def test_figures_of_rows(dtype, shape):
    """Block by block, they are NumPy's of the whole, on every axis."""
    x = np.random.default_rng(1).normal(size=shape).astype(dtype)
    x[0, ..., 0], x[-1, ..., -1] = -NAN, INF
    for axis in range(x.ndim):
        found = rows(x, axis)
        np.testing.assert_array_equal(found.low, x.min(axis))
        np.testing.assert_array_equal(found.high, x.max(axis))
        shares = np.random.default_rng(2).random(shape).astype(dtype)
        np.testing.assert_allclose(rows(shares, axis).total, shares.sum(axis, dtype=np.float64), rtol=1e-4)


@pytest.mark.parametrize(
    ("arguments", "options", "error", "sentence"),
    [
        ((X, [1, 2, 0, 1]), {}, ValueError, r"labels: expected shape \(2,\)"),
        ((X, None), {}, TypeError, "labels: expected an array"),
        ((X, Y), {"loss": "linear_ce"}, ValueError, "loss: expected 'sparse_ce', 'softmax_ce' or 'sigmoid_ce', got"),
        ((X, Y), {"axis": 2}, ValueError, "axis"),
        ((X, Y), {"ignore_index": 0.5}, TypeError, "ignore_index: expected an int or None, got 0.5"),
        ((X * 1j, Y), {}, TypeError, "logits: expected 'float16'"),
        ((X, X * 1j), {}, TypeError, "labels: expected real numbers, got complex128"),
        ((Y, Y), {}, TypeError, "logits: expected .* swapped"),
        ((X, Y), {"sample_weight": [1, 2, 3]}, ValueError, "sample_weight: expected a scalar, shape"),
        ((X, Y), {"sample_weight": [1j, 2]}, TypeError, "sample_weight: expected real numbers, got complex128"),
    ],
)
def test_bad_input(arguments, options, error, sentence):
    with pytest.raises(error, match=sentence):
        xent.doctor(*arguments, **options)


@pytest.mark.backend("jax")
def test_inside_jit():
    jax = pytest.importorskip("jax", reason="jax is not installed")
    with pytest.raises(ValueError, match="logits: the doctor reads values, and there are none while a function is"):
        jax.jit(xent.doctor)(X, Y)


# ---- the command


def invoke(folder, logits, labels, *arguments):
    for name, array in (("x", logits), ("y", labels)):
        np.save(folder / f"{name}.npy", array)
    given = ["doctor", "--logits", folder / "x.npy", "--labels", folder / "y.npy", *arguments]
    return CliRunner().invoke(cli.app, [str(a) for a in given], env={"COLUMNS": "100"})


def test_command_with_a_fault(tmp_path):
    done = invoke(tmp_path, softmax(X), Y)
    assert done.exit_code == 1
    assert "fault: every row of the logits lies in [0, 1] and adds up to 1" in done.stdout
    assert "1 fault, 0 remarks" in done.stdout


def test_command_with_a_remark(tmp_path):
    done = invoke(tmp_path, np.log(softmax(X)), Y)
    assert done.exit_code == 0
    assert "remark: the logits are log-probabilities" in done.stdout
    done = invoke(tmp_path, X, Y)
    assert done.exit_code == 0
    assert "nothing found" in done.stdout


def test_command_as_json(tmp_path):
    found = json.loads(invoke(tmp_path, at(X, (0, 0), NAN), Y, "--json").stdout)
    assert (found["healthy"], found["loss"]) == (False, "sparse_ce")
    assert [finding["name"] for finding in found["findings"]] == ["logits_not_finite"]


def test_command_with_options(tmp_path):
    assert invoke(tmp_path, X.T, [2, -7], "--axis", "0", "--ignore-index", "-7").exit_code == 0
    assert "one positive" in invoke(tmp_path, X, HOT, "--loss", "sigmoid_ce").stdout
    np.save(tmp_path / "w.npy", [0.0, 1.0])
    weighted = invoke(tmp_path, at(X, (0, 0), NAN), Y, "--sample-weight", tmp_path / "w.npy")
    assert weighted.exit_code == 0, weighted.output


@pytest.mark.parametrize(
    ("labels", "arguments", "sentence"),
    [
        ([0, 1, 2, 1], (), "labels: expected shape (2,)"),
        (Y, ("--loss", "mse"), "Invalid value"),
        (Y, ("--logits", "nowhere.npy"), "nowhere.npy: no such file"),
    ],
)
def test_command_with_bad_input(tmp_path, labels, arguments, sentence):
    done = invoke(tmp_path, X, labels, *arguments)
    assert done.exit_code == 2
    assert sentence in done.stderr.replace("\n", " ")
