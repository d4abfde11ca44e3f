"""xent.compat.optax beside optax: its own tests, a walk over its arguments, the table of what differs."""

import functools
import inspect
import itertools
import unittest
from typing import Any, NamedTuple

import numpy as np
import pytest
from compat_rows import agree, outcome, rows, undocumented

jax = pytest.importorskip("jax", reason="jax is not installed")
optax = pytest.importorskip("optax", reason="optax is not installed")
import jax.numpy as jnp  # noqa: E402
import xent  # noqa: E402
from cases import quick  # noqa: E402
from xent.compat import optax as ours  # noqa: E402

pytestmark = pytest.mark.backend("jax")
NAMES = (
    "softmax_cross_entropy",
    "softmax_cross_entropy_with_integer_labels",
    "safe_softmax_cross_entropy",
    "sigmoid_binary_cross_entropy",
)


# ---- the table


def on_arrays(loss):
    """optax takes no lists."""

    def call(logits, labels, **options):
        if "where" in options:
            options["where"] = np.asarray(options["where"])
        logits = logits if hasattr(logits, "dtype") else jnp.asarray(logits, jnp.float32)
        if not hasattr(labels, "dtype"):
            labels = np.asarray(labels)
            labels = labels.astype(np.float32) if labels.dtype == float else labels
        return loss(logits, labels, **options)

    return call


X = np.array([[2, 0.5, 6], [0.1, 0, 3]], np.float32)
ARRAYS = {
    "x": X,
    "x16": jnp.asarray(X, jnp.float16),
    "eye": np.eye(2, 3, dtype=np.float32),
    "eye16": jnp.eye(2, 3, dtype=jnp.float16),
    "ids": np.array([2, 1]),
}


@pytest.mark.parametrize(("call", "theirs", "xents"), rows(ours))
def test_table(call, theirs, xents):
    for library, expected in ((optax, theirs), (ours, xents)):
        losses = {name: on_arrays(getattr(library, name)) for name in NAMES}
        assert outcome(call, {**ARRAYS, **losses, "labels_gradient": labels_gradient}) == expected


def labels_gradient(loss, logits, labels, **options):
    return jax.grad(lambda labels: loss(logits, labels, **options).sum())(jnp.asarray(labels))


# ---- a walk over optax's arguments


class Case(NamedTuple):
    name: str
    dtype: str = "float32"
    logits: str = "normal"
    labels: str = "soft"
    axis: Any = -1
    where: str = "all"

    @property
    def with_axis(self):
        return self.name in NAMES[:2]


SHAPE = (3, 4, 5)
AXES = (-1, 0, 1, (0, 2), (-1, -2), (2, 0, 1))
WHERE = ("all", "some rows", "some classes", "the label's class missing")
PLACES = [*((axis, "all") for axis in AXES), *((axis, where) for axis in (1, (2, 0)) for where in WHERE[1:])]
EVERY = [
    *(Case(NAMES[0], axis=axis, where=where) for axis, where in [*PLACES, (None, "all")]),
    *(Case(NAMES[1], labels="ids", axis=axis, where=where) for axis, where in PLACES),
    *(Case(NAMES[1], labels=labels) for labels in ("-1", "C", "bool")),
    *(
        Case(name, dtype, logits, "ids" if name == NAMES[1] else labels)
        for name, dtype, logits, labels in itertools.product(
            NAMES, ("float32", "float16", "bfloat16"), ("normal", "-inf"), ("soft", "one-hot", "broadcast")
        )
        if labels == "soft" or (name != NAMES[1] and dtype == "float32")
    ),
]
CASES = [*dict.fromkeys(EVERY)]  # the places and the kinds of logits have one in common
# Where the outcomes differ, and the row of the table that says so.
DIFFERENT = {
    "softmax_cross_entropy(x16, eye16).dtype": lambda case: case.dtype != "float32" and case.labels != "broadcast",
    "softmax_cross_entropy([[1, 2, -inf]], [[0, 1, 0]])": lambda case: case.name == NAMES[0] and case.logits == "-inf",
    "labels_gradient(softmax_cross_entropy, x, eye, where=[True, False])[1]": (
        lambda case: case.name == NAMES[0] and case.where != "all"
    ),
    "softmax_cross_entropy(x, [[0, 1, 0]])": lambda case: case.labels == "broadcast",
    "softmax_cross_entropy_with_integer_labels(x, [2, -1])": lambda case: case.labels == "-1",
    "softmax_cross_entropy_with_integer_labels(x, [2, 3])": lambda case: case.labels == "C",
    "softmax_cross_entropy_with_integer_labels(x, [True, False])": lambda case: case.labels == "bool",
    "softmax_cross_entropy_with_integer_labels([[0.1, 0, 3]], [0], where=[[False, True, True]])": (
        lambda case: case.name == NAMES[1] and case.where == "the label's class missing"
    ),
    "sigmoid_binary_cross_entropy([-inf], [0.0])": lambda case: case.name == NAMES[3] and case.logits == "-inf",
}


def class_axes(case):
    axis = range(3) if case.axis is None else np.atleast_1d(case.axis)
    return tuple(int(place) % 3 for place in axis)


def arguments(case):
    """Logits, labels and options, from a seed of the case's own place."""
    random = np.random.default_rng(CASES.index(case))
    axes = class_axes(case)
    rest = tuple(place for place in range(3) if place not in axes)
    classes = int(np.prod([SHAPE[place] for place in axes]))
    logits = random.normal(size=SHAPE).astype(np.float32)
    ids = random.integers(classes, size=[SHAPE[place] for place in rest])
    moved = np.eye(classes)[ids].reshape(*ids.shape, *(SHAPE[place] for place in axes))
    hot = np.transpose(moved, np.argsort(rest + axes)).astype(np.float32)
    soft = random.dirichlet(np.ones(5), size=SHAPE[:-1]).astype(np.float32)
    if case.logits == "-inf":
        logits[0, 1, 2] = -np.inf
        soft[0, 1, 2] = hot[0, 1, 2] = 0
        ids = ids if case.axis != -1 else np.where((np.arange(3)[:, None] == 0) & (np.arange(4) == 1), 0, ids)
    labels = {"soft": soft, "one-hot": hot, "ids": ids, "broadcast": soft[:1], "bool": ids > 0}.get(case.labels)
    if labels is None:
        labels = np.where(ids == ids.max(), {"-1": -1, "C": classes}[case.labels], ids)
    options = {"axis": case.axis} if case.with_axis else {}
    if case.where == "some rows":
        options["where"] = random.integers(2, size=ids.shape).astype(bool)
    elif case.where != "all":
        there = random.integers(2, size=SHAPE).astype(bool)
        options["where"] = (there | (hot > 0)) if case.where == "some classes" else there & (hot == 0)
    labels = labels if labels.dtype.kind in "bi" else jnp.asarray(labels, case.dtype)
    return jnp.asarray(logits, case.dtype), labels, options


def result(loss, logits, labels, options):
    """The losses, and the derivatives of their sum in whatever is floating. Ids are constants, so they can be read."""
    given = (logits, labels) if labels.dtype.kind not in "bi" else (logits,)

    def total(*arrays):
        losses = loss(*arrays, *(() if len(arrays) == 2 else (labels,)), **options)
        return losses.sum(), losses

    (_, losses), gradients = jax.value_and_grad(total, range(len(given)), has_aux=True)(*given)
    return losses, *gradients


@functools.cache
def results():
    """Of each case, what optax and xent make of it: losses and derivatives, or an error's type. One program has them
    all, since XLA takes its time for each."""
    given, errors = [arguments(case) for case in CASES], {}
    floating = [(logits, None if labels.dtype.kind in "bi" else labels) for logits, labels, _ in given]

    def every(floating):
        for case, (logits, moving), (_, labels, options) in zip(CASES, floating, given, strict=True):
            for library in (optax, ours):
                loss = getattr(library, case.name)
                try:
                    yield result(loss, logits, labels if moving is None else moving, options)
                except (TypeError, ValueError) as error:
                    errors[case, library] = type(error)
                    yield None

    found = iter(quick(lambda floating: [*every(floating)])(floating))
    return {case: [next(found) or errors[case, library] for library in (optax, ours)] for case in CASES}


@pytest.mark.parametrize("case", CASES, ids=lambda case: "-".join(map(str, case)))
def test_walk(case):
    """Equal, or different for a reason that the table has."""
    theirs, xents = results()[case]
    reasons = [row for row, applies in DIFFERENT.items() if applies(case)]
    same = agree(theirs, xents, 32 * float(jnp.finfo(case.dtype).eps), lambda k: np.asarray(k, np.float64))
    assert same == (not reasons), (reasons, theirs, xents)


def test_reasons_are_in_the_table():
    assert DIFFERENT.keys() <= {call for call, _, _ in rows(ours)}


@pytest.mark.parametrize("name", NAMES)
def test_signature(name):
    theirs, xents = (inspect.signature(getattr(library, name)).parameters.values() for library in (optax, ours))
    assert [(p.name, p.kind, p.default) for p in theirs] == [(p.name, p.kind, p.default) for p in xents]


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        ("softmax_cross_entropy(x, eye, where=ids)", TypeError, "where: expected booleans, got int32"),
        ("softmax_cross_entropy(ids, ids, where=ids > 1)", TypeError, "logits: expected 'float16', .* got int32"),
        (
            "softmax_cross_entropy_with_integer_labels(x, ids, axis=None)",
            ValueError,
            "axis: expected an int or a tuple of ints, got None",
        ),
        (
            "softmax_cross_entropy(x, ids)",
            ValueError,
            r"labels: expected shape \(2, 3\) .* got \(2,\); for class ids use \w+_with_integer_labels$",
        ),
        (
            "softmax_cross_entropy_with_integer_labels(x, eye)",
            TypeError,
            r"labels: expected class ids .* for distributions over the classes use softmax_cross_entropy\)$",
        ),
        (
            "softmax_cross_entropy_with_integer_labels(x, [2, -100])",
            xent.LabelError,
            r"labels: 1 of 2 class ids out of range, .*; where=False leaves it out$",
        ),
    ],
)
def test_errors(call, error, words):
    with pytest.raises(error, match=words):
        eval(call, {**ARRAYS, **{name: getattr(ours, name) for name in NAMES}})


def test_what_where_leaves_out_may_be_anything():
    """Neither the loss nor the gradient sees it, NaN and ids out of range included."""
    where = np.array([True, False])
    logits = np.array([X[0], [np.nan, np.inf, 0]], np.float32)
    for loss, labels in (
        (ours.softmax_cross_entropy, ARRAYS["eye"]),
        (ours.softmax_cross_entropy_with_integer_labels, [2, 9]),
    ):
        total = functools.partial(lambda loss, x, t: loss(x, t, where=where).sum(), loss)
        value, gradient = jax.value_and_grad(total)(jnp.asarray(logits), labels)
        assert np.isfinite(value)
        assert not np.asarray(gradient)[1].any()


def test_every_argument_is_on_the_page():
    assert undocumented("optax.md", [getattr(ours, name) for name in NAMES]) == []


# ---- optax's own tests


def their_tests():
    module = pytest.importorskip("optax.losses._classification_test", reason="this optax installs no tests")
    wanted = ("SoftmaxCrossEntropyTest", "SafeSoftmaxCrossEntropyTest", "SoftmaxCrossEntropyWithIntegerLabelsTest")
    suites = [getattr(module, name) for name in (*wanted, "SigmoidCrossEntropyTest")]
    return [test for case in suites for test in unittest.defaultTestLoader.loadTestsFromTestCase(case)]


@pytest.mark.parametrize("test", their_tests(), ids=lambda test: test.id().split(".", 3)[-1])
def test_optax_own_tests(test, monkeypatch):
    """With nothing but the functions replaced."""
    from optax.losses import _classification

    # They draw masks, one in 32 of which leaves no class: xent raises, see the table.
    np.random.seed(0)  # noqa: NPY002 (the generator that they draw from)
    for name in NAMES:
        monkeypatch.setattr(_classification, name, getattr(ours, name))
    found = unittest.TestResult()
    test.run(found)
    assert found.testsRun == 1
    assert not found.failures + found.errors
