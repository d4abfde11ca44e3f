"""xent.compat.keras beside Keras: a walk over its arguments, the table of what differs; see test_compat_keras.py."""

import inspect
import itertools
from typing import Any, NamedTuple

import cases
import keras
import numpy as np
import pytest
import xent
from allpairspy import AllPairs
from compat_keras_backend import BACKEND, BINARY, CATEGORICAL, EYE, IDS, MARKS, NAMES, SPARSE, X, in_turn
from compat_rows import agree, outcome, rows, undocumented
from keras.src.backend import set_keras_mask
from xent.compat import keras as ours

pytestmark = MARKS


# ---- variables


def variable(value):
    return keras.Variable(value, dtype=value.dtype.name, trainable=value.dtype.kind == "f")


WEIGHT = np.array([2.0, 1.0], np.float32)
HEAD = np.ones((4, 3), np.float32)
IDS32 = IDS.astype(np.int32)  # as JAX has them


@pytest.mark.parametrize(
    ("loss", "rest", "options"),
    [
        (xent.sparse_ce, [IDS32], {"sample_weight": WEIGHT, "class_weight": HEAD[0], "denom": WEIGHT[0]}),
        (xent.softmax_ce, [EYE], {"sample_weight": WEIGHT}),
        (xent.sigmoid_ce, [EYE], {"sample_weight": X, "pos_weight": HEAD[0]}),
        (xent.linear_ce, [HEAD, IDS32], {"bias": HEAD[:, 0]}),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_variables(loss, rest, options):
    """A Keras model's weights, in every argument of xent's own losses. First, as nothing has loaded the adapter yet."""

    def numbers(*given, **named):
        value, grads = xent.value_and_grad(loss)(*given, **named)
        return [keras.ops.convert_to_numpy(k) for k in (value, *(grads if isinstance(grads, tuple) else [grads]))]

    moved, named = [variable(k) for k in rest], {name: variable(k) for name, k in options.items()}
    plain = keras.ops.convert_to_tensor(X)
    assert type(loss(variable(X), *rest)) is type(loss(plain, *rest))
    wanted = numbers(plain, *rest, **options)
    for x in (plain, variable(X)):
        for got, want in zip(numbers(x, *moved, **named), wanted, strict=True):
            np.testing.assert_allclose(got, want, rtol=1e-6)


# ---- the table


def of(losses, name):
    def call(y_true, y_pred, sample_weight=None, mask=None, **options):
        y_true = np.asarray(y_true)
        y_true = y_true.astype(np.float32) if y_true.dtype == float else y_true
        y_pred = keras.ops.convert_to_tensor(np.asarray(y_pred, np.float32))
        if mask is not None:
            set_keras_mask(y_pred, keras.ops.convert_to_tensor(mask))
        return getattr(losses, name)(from_logits=True, **options)(y_true, y_pred, sample_weight)

    return call


GIVEN = {
    "x": X,
    "eye": EYE,
    "ids": IDS,
    "ones": np.ones,
    "shape": lambda loss: tuple(loss.shape),
    "dtype": lambda loss: keras.backend.standardize_dtype(loss.dtype),
}


@pytest.mark.parametrize(("call", "theirs", "xents"), rows(ours))
def test_table(call, theirs, xents):
    each = theirs.split(" / ")
    expected = each[("tensorflow", "jax", "torch").index(BACKEND)] if len(each) == 3 else theirs
    for losses, wanted in ((keras.losses, expected), (ours, xents)):
        calls = {"categorical": of(losses, CATEGORICAL), "sparse": of(losses, SPARSE), "binary": of(losses, BINARY)}
        assert outcome(call, {**GIVEN, **calls, "losses": losses}) == wanted


# ---- a walk over Keras's arguments


class Case(NamedTuple):
    name: str
    reduction: Any = "sum_over_batch_size"
    shape: tuple = (4, 3)
    labels: str = "right"
    axis: int = -1
    weights: str = "none"
    mask: str = "none"
    smoothing: float = 0.0
    ignore_class: Any = None
    dtype: Any = None
    logits: str = "normal"


def pairs(*values):
    """Any two values meet; --full: all of them."""
    return itertools.product(*values) if cases.FULL else AllPairs(values)


REDUCTIONS = ("sum_over_batch_size", "sum", "mean_with_sample_weight", "mean", "none", None)
MASKED = (("each", "none"), ("a 0", "none"), ("none", "some"), ("each", "some"), ("each", "all gone"))
CASES = [
    *(
        Case(name, reduction, weights=weights, mask=mask)
        for name, reduction, (weights, mask) in pairs(NAMES, REDUCTIONS[:3], MASKED)
    ),
    *(Case(name, reduction, weights="each", mask="some") for name in NAMES for reduction in REDUCTIONS[3:]),
    *(Case(name, reduction) for name in NAMES for reduction in REDUCTIONS),
    *(Case(name, weights=weights) for name in NAMES for weights in ("scalar", "with a last 1", "a 0 for NaN")),
    *(Case(name, "none", weights="with a last 1") for name in NAMES),
    *(Case(name, dtype=dtype) for name in NAMES for dtype in ("float32", "float16", "bfloat16")),
    *(Case(name, smoothing=smoothing) for name in NAMES[::2] for smoothing in (0.1, 1.0, 1.5)),
    *(Case(name, shape=(2, 3, 4), weights="each", mask="some") for name in NAMES),
    *(Case(name, shape=(2, 3, 4), mask="of rows") for name in NAMES),
    *(Case(name, shape=(4, 1, 3), weights="without a last 1") for name in NAMES),
    *(Case(name, shape=(2, 3, 4), axis=1) for name in NAMES),
    Case(CATEGORICAL, shape=(2, 3, 4), axis=1, smoothing=0.1),
    *(Case(name, logits="-inf") for name in NAMES),
    *(Case(name, labels="with a last 1") for name in NAMES[1:]),
    *(Case(SPARSE, labels=labels) for labels in ("floating", "fractional", "-1", "C", "uint8")),
    *(
        Case(SPARSE, reduction, ignore_class=ignored, labels=labels, weights=weights, mask=mask)
        for reduction, (weights, mask), (ignored, labels) in pairs(
            REDUCTIONS[:3],
            (("none", "none"), ("each", "none"), ("each", "some")),
            ((1, "right"), (-1, "-1"), (-1, "floating"), (255, "uint8")),
        )
    ),
]
# Where the outcomes differ, and the row of the table that says so.
DIFFERENT = {
    'dtype(categorical(eye, x, dtype="float16"))': lambda case: case.dtype in ("float16", "bfloat16"),
    "categorical(eye, [[nan, 1, 2], [0.1, 0, 3]], [0, 1])": lambda case: case.weights == "a 0 for NaN",
    "shape(categorical(eye, x, [[1], [2]], reduction=None))": lambda case: (
        case.reduction == "none" and case.weights == "with a last 1"
    ),
    "categorical(eye, x, label_smoothing=2)": lambda case: case.smoothing > 1,
    "categorical(ones((2, 3, 4)) / 3, ones((2, 3, 4)), axis=1, label_smoothing=0.5)": lambda case: (
        case.axis == 1 and case.smoothing > 0
    ),
    "categorical([[0, 1, 0]], [[1, 2, -inf]])": lambda case: case.logits == "-inf" and case.name == CATEGORICAL,
    "binary([[0.0]], [[-inf]])": lambda case: case.logits == "-inf" and case.name == BINARY,
    "sparse(ones((2, 4)), ones((2, 3, 4)), axis=1)": lambda case: (
        case.name == SPARSE and case.axis == 1 and BACKEND != "torch"
    ),
    "sparse([1], [[1, 2, -inf]])": lambda case: case.logits == "-inf" and case.name == SPARSE and BACKEND == "jax",
    "sparse([2, -1], x)": lambda case: case.labels == "-1" and case.ignore_class is None,
    "sparse([2, 3], x)": lambda case: case.labels == "C",
    "sparse([2.5, 1], x)": lambda case: case.labels == "fractional",
}


class Given(NamedTuple):
    y_true: Any
    y_pred: Any
    sample_weight: Any
    mask: Any


def arguments(case):
    """From a seed of the case's own place."""
    random = np.random.default_rng(CASES.index(case))
    rest = list(case.shape)
    classes = rest.pop(case.axis)
    y_pred = random.normal(size=case.shape).astype(np.float32)
    y_true = np.moveaxis(random.dirichlet(np.ones(classes), size=rest), -1, case.axis).astype(np.float32)
    if case.name == BINARY:
        y_true = random.integers(2, size=case.shape).astype(np.float32)
    if case.logits == "-inf":
        y_pred.flat[0], y_true.flat[0] = -np.inf, 0
    if case.name == SPARSE:
        y_true = random.integers(1, classes, size=rest)
        special = {"-1": -1, "C": classes, "floating": case.ignore_class, "uint8": case.ignore_class}.get(case.labels)
        y_true.flat[1] = 1 if special is None else special
        y_true = y_true + (0.5 if case.labels == "fractional" else 0)
        y_true = y_true.astype(
            {"floating": "float32", "fractional": "float32", "uint8": "uint8"}.get(case.labels, "int32")
        )
    if case.labels == "with a last 1":
        y_true, y_pred = (y_true[..., None], y_pred) if case.name == SPARSE else (y_true[:, 0], y_pred[:, :1])
    weight = random.uniform(0.5, 2, size=rest).astype(np.float32)
    if case.weights in ("a 0", "a 0 for NaN"):
        weight.flat[0] = 0
    if case.weights == "a 0 for NaN":
        y_pred[0, 0] = np.nan
    given = {
        "none": None,
        "scalar": np.float32(0.7),
        "with a last 1": weight[..., None],
        "without a last 1": weight[..., 0],
    }
    some = random.integers(2, size=rest).astype(bool)
    mask = {"some": some, "all gone": np.zeros(rest, bool), "of rows": np.array([[True], [False]])}.get(case.mask)
    return Given(y_true, y_pred, given.get(case.weights, weight), mask)


def result(losses, case):
    """The loss and its derivative in the predictions, by the backend's own differentiation."""
    y_true, y_pred, sample_weight, mask = arguments(case)
    options = {"reduction": case.reduction, "dtype": case.dtype, "axis": case.axis}
    if case.smoothing:
        options["label_smoothing"] = case.smoothing
    if case.ignore_class is not None:
        options["ignore_class"] = case.ignore_class

    def values(y_pred):
        if mask is not None:
            set_keras_mask(y_pred, keras.ops.convert_to_tensor(mask))
        return loss(keras.ops.convert_to_tensor(y_true), y_pred, sample_weight)

    try:
        loss = getattr(losses, case.name)(from_logits=True, **options)
        y_pred = keras.ops.convert_to_tensor(y_pred)
        _, gradient = xent.value_and_grad(lambda y_pred: keras.ops.sum(values(y_pred)))(y_pred)
        return values(y_pred), gradient
    except Exception as error:
        return type(error)


@pytest.mark.parametrize("case", in_turn([(case,) for case in CASES]))
def test_walk(case):
    """Equal, or different for a reason that the table has."""
    theirs, xents = result(keras.losses, case), result(ours, case)
    reasons = [row for row, applies in DIFFERENT.items() if applies(case)]
    same = agree(theirs, xents, 32 * float(np.finfo(np.float32).eps), keras.ops.convert_to_numpy)
    assert same == (not reasons), (reasons, theirs, xents)


def test_reasons_are_in_the_table():
    assert DIFFERENT.keys() <= {call for call, _, _ in rows(ours)}


@pytest.mark.parametrize("name", NAMES)
def test_signature(name):
    theirs, xents = (inspect.signature(getattr(losses, name)).parameters.values() for losses in (keras.losses, ours))
    assert [(p.name, p.kind, p.default) for p in theirs] == [(p.name, p.kind, p.default) for p in xents]


def test_every_argument_is_on_the_page():
    assert undocumented("keras.md", [getattr(ours, name) for name in NAMES]) == []


@pytest.mark.parametrize("name", NAMES)
def test_probabilities_are_refused(name):
    for options in ({}, {"from_logits": False}):
        with pytest.raises(
            ValueError, match=r"from_logits: expected True, got False; .*no activation.*from_logits=True"
        ):
            getattr(ours, name)(**options)


@pytest.mark.parametrize("ignore_class", [None, -1])
def test_fractional_labels(ignore_class):
    """They are no class, and none that is ignored."""
    loss = ours.SparseCategoricalCrossentropy(from_logits=True, ignore_class=ignore_class)
    with pytest.raises(xent.LabelError, match=r"1 of 2 class ids out of range, the first at \[1\] .*no whole number"):
        loss(np.array([0, 1.5]), X)


@pytest.mark.parametrize("given", [np.array([257.0]), [257.0], np.array([257])], ids=["floating", "list", "ids"])
def test_ids_that_the_loss_s_dtype_cannot_hold(given):
    """bfloat16 has no 257; ids are not logits."""
    loss = ours.SparseCategoricalCrossentropy(from_logits=True, dtype="bfloat16")
    value = loss(given, 9 * np.eye(1, 1000, 257))
    np.testing.assert_allclose(keras.ops.convert_to_numpy(value), 0.11626, rtol=1e-3)


@pytest.mark.parametrize("name", NAMES)
def test_axis_that_is_not_there(name):
    y_true = IDS if name == SPARSE else EYE
    with pytest.raises(ValueError, match=r"axis: expected -2 to 1 for y_pred of shape \(2, 3\), got 2"):
        getattr(ours, name)(from_logits=True, axis=2)(y_true, X)


@pytest.mark.parametrize("mask", [[True, False, True], [[True], [False], [True]]], ids=["of rows", "with a last 1"])
def test_masks_beside_an_ignored_class(mask):
    call = of(ours, SPARSE)
    masked = call([0, 1, 2], np.arange(12).reshape(3, 4) ** 2, mask=mask, ignore_class=0, reduction="none")
    assert keras.ops.convert_to_numpy(masked).tolist() == [0, 0, pytest.approx(21, rel=1e-4)]


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        ("categorical(eye[:1], x)", ValueError, r"y_true: expected shape \(2, 3\) \(the y_pred's\), got \(1, 3\)$"),
        ("categorical(ids, x)", ValueError, r"y_true: .*; for class ids use SparseCategoricalCrossentropy$"),
        ("categorical(eye, x, ones(3))", ValueError, r"sample_weight: expected a scalar, shape \(2,\) \(the loss's\)"),
        ("categorical(ones((2, 0)), ones((2, 0)))", ValueError, r"y_pred: expected at least one class, got shape"),
        ("sparse([0], x)", ValueError, r"y_true: expected shape \(2,\) \(the y_pred's without axis\), got \(1,\)$"),
        ("sparse(ones((2, 4), int), ones((2, 3, 4)))", ValueError, r"got \(2, 4\); they fit axis=1$"),
        ("sparse([-100, 1], x)", xent.LabelError, r"y_true: 1 of 2 .*; ignore_class=-100 leaves it out$"),
        (
            "sparse([3, 1], x, ignore_class=1)",
            xent.LabelError,
            r"y_true: 1 of 2 .*; expected 0 to 2$",
        ),
        ("binary(eye[:1], x)", ValueError, r"y_true: expected shape \(2, 3\) \(the y_pred's\), got \(1, 3\)$"),
        ("binary(ones((2, 0)), ones((2, 0)))", ValueError, r"y_pred: expected at least one class, got shape"),
    ],
)
def test_errors_have_keras_names(call, error, words):
    calls = {"categorical": of(ours, CATEGORICAL), "sparse": of(ours, SPARSE), "binary": of(ours, BINARY)}
    with pytest.raises(error, match=words):
        eval(call, {**GIVEN, **calls})


def test_ignored_class_is_compared_in_full_width():
    """-1 in 8 bits without sign would be 255."""
    ids = keras.ops.convert_to_tensor(np.array([0, 255], np.uint8))
    with pytest.raises(xent.LabelError, match="is 255; expected 0 to 2"):
        ours.SparseCategoricalCrossentropy(from_logits=True, ignore_class=-1)(ids, X)


def test_ids_keep_their_width():
    """NumPy's are not narrowed before they are checked."""
    with pytest.raises(xent.LabelError, match="4294967296"):
        ours.SparseCategoricalCrossentropy(from_logits=True)(np.array([2**32, 1]), X)
