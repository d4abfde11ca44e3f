"""xent.compat.tensorflow beside TensorFlow: a walk over its arguments, the table of what differs."""

import functools
import inspect
import itertools
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pytest
from compat_rows import agree, outcome, rows, undocumented

tf = pytest.importorskip("tensorflow", reason="tensorflow is not installed")
import xent  # noqa: E402
from xent.compat import tensorflow as ours  # noqa: E402

pytestmark = pytest.mark.backend("tensorflow")
THEIRS = SimpleNamespace(nn=tf.nn, losses=tf.compat.v1.losses)
Reduction = tf.compat.v1.losses.Reduction
NN = tuple(vars(ours.nn))
LOSSES = tuple(name for name in vars(ours.losses) if name != "Reduction")


# ---- the table


def gradient(loss, at):
    at = tf.constant(at, tf.float32)
    with tf.GradientTape() as tape:
        tape.watch(at)
        value = loss(at)
    return tape.gradient(value, at, unconnected_gradients="zero")


X = np.array([[2, 0.5, 6], [0.1, 0, 3]], np.float32)
GIVEN = {
    "x": X,
    "x16": tf.constant(X, tf.float16),
    "eye": np.eye(2, 3, dtype=np.float32),
    "eye16": np.eye(2, 3, dtype=np.float16),
    "ids": [2, 1],
    "column": np.array([[1], [2]], np.float32),
    "huge": np.array([[1e39, 0]]),
    "ones": lambda shape: np.ones(shape, np.float32),
    "gradient": gradient,
    "graph": lambda loss, labels: tf.function(loss)(tf.constant(labels)),
}


@pytest.mark.parametrize(("call", "theirs", "xents"), rows(ours))
def test_table(call, theirs, xents):
    for library, expected in ((THEIRS, theirs), (ours, xents)):
        assert outcome(call, {**GIVEN, "nn": library.nn, "losses": library.losses}) == expected


@pytest.mark.parametrize(
    ("call", "expected"),
    [
        ("nn.softmax_cross_entropy_with_logits([[0, 0, 1], [0, 1, 0]], x)", [0.02215516, 3.0996735]),
        ("nn.softmax_cross_entropy_with_logits([[0.4, 0.1, 0.5], [0.3, 0.6, 0.1]], x)", [2.1721554, 2.7696736]),
        ("nn.sparse_softmax_cross_entropy_with_logits(labels=[2, 1], logits=x)", [0.02215516, 3.0996735]),
        ("losses.sparse_softmax_cross_entropy([2], [[3.0, 1.0, -3.0]])", 6.1291089),
        ("losses.sparse_softmax_cross_entropy([[2]], [[3.0, 1.0, -3.0]])", 6.1291089),
    ],
)
def test_known_figures(call, expected):
    for library in (THEIRS, ours):
        value = eval(call, {"x": X, "nn": library.nn, "losses": library.losses})
        assert value.numpy() == pytest.approx(np.array(expected), rel=2e-6)


# ---- a walk over TensorFlow's arguments


class Case(NamedTuple):
    name: str
    dtype: str = "float32"
    shape: tuple = (4, 5)
    logits: str = "normal"
    labels: str = "soft"
    axis: int = -1
    pos_weight: Any = None
    weights: Any = None  # of tf.compat.v1.losses
    smoothing: float = 0
    reduction: Any = None

    @property
    def is_loss(self):
        return self.name in LOSSES

    @property
    def has_ids(self):
        return self.name.startswith("sparse")

    @property
    def is_sigmoid(self):
        return self.name.startswith(("sigmoid", "weighted"))


DTYPES = ("float32", "float64", "float16", "bfloat16")
WEIGHTS = ("default", "scalar", "zero", "each", "each with a 0", "ones", "with a last 1", "a 0 for NaN")
CASES = [
    *(Case(name, dtype, logits=logits) for name, dtype, logits in itertools.product(NN, DTYPES, ("normal", "-inf"))),
    *(Case(NN[0], shape=(2, 3, 4), axis=axis) for axis in (0, 1, 2, -1, -2)),
    *(Case(NN[0], labels=labels) for labels in ("one-hot", "int", "broadcast", "sum of 2")),
    *(Case(NN[1], shape=(2, 3, 4), labels=labels) for labels in ("ids", "-1", "C", "bool", "float", "with a last 1")),
    *(Case(name, labels=labels) for name in NN[2:] for labels in ("one-hot", "int", "broadcast")),
    *(Case(NN[3], pos_weight=pos_weight) for pos_weight in (2.0, "each class", "larger than the logits")),
    *(
        Case(name, weights=weights, reduction=reduction, smoothing=0 if name.startswith("sparse") else 0.1)
        for name, weights, reduction in itertools.product(LOSSES, WEIGHTS, sorted({*Reduction.all()}))
        if name.startswith("sparse") or weights != "with a last 1"
    ),
    *(Case(name, dtype, weights="each") for name in LOSSES for dtype in DTYPES[1:]),
    *(Case(name, weights="default", smoothing=smoothing) for name in LOSSES[::2] for smoothing in (0, 1, 1.5, -0.1)),
    *(Case(LOSSES[1], weights="each", labels=labels) for labels in ("with a last 1", "logits with a last 1", "-1")),
    *(
        Case(LOSSES[0], labels="sum of 2", weights="each", smoothing=0.1, reduction=reduction)
        for reduction in sorted({*Reduction.all()})
    ),
    Case(LOSSES[0], "float64", labels="sum of 2", weights="zero"),
    *(Case(NN[0], dtype, (2, 3, 4), labels="sum of 2", axis=1) for dtype in DTYPES),
]
# The weights' derivative at weights that are all 0 is not 0 there.
KEEP_ZEROS = (Reduction.NONE, Reduction.SUM, Reduction.SUM_OVER_BATCH_SIZE)
# Where the outcomes differ, and the row of the table that says so.
DIFFERENT = {
    "nn.softmax_cross_entropy_with_logits(eye16, x16).dtype": lambda case: case.dtype.endswith("16"),
    "nn.softmax_cross_entropy_with_logits([[0, 1, 0]], [[1.0, 2.0, -inf]])": lambda case: (
        case.logits == "-inf" and not case.has_ids
    ),
    "gradient(lambda t: nn.softmax_cross_entropy_with_logits(t, x), [[1]])": lambda case: (
        case.labels == "broadcast" and not case.is_sigmoid
    ),
    "nn.softmax_cross_entropy_with_logits(eye, x, axis=-2)": lambda case: case.axis == -2,
    "nn.sparse_softmax_cross_entropy_with_logits([2, -1], x)": lambda case: case.labels in ("-1", "C"),
    "nn.sparse_softmax_cross_entropy_with_logits([True, False], x)": lambda case: case.labels == "bool",
    "nn.sparse_softmax_cross_entropy_with_logits([2.0, 1.0], x)": lambda case: case.labels == "float",
    "nn.sigmoid_cross_entropy_with_logits([0, 1], [0.5, 0.5])": lambda case: (
        case.is_sigmoid and not case.is_loss and case.labels == "int"
    ),
    "nn.weighted_cross_entropy_with_logits([1.0], [0.0], column)": lambda case: (
        case.pos_weight == "larger than the logits"
    ),
    "losses.sparse_softmax_cross_entropy(ids, [[nan, 1, 2], [0.1, 0, 3]], weights=[0, 1])": lambda case: (
        case.weights == "a 0 for NaN"
    ),
    "gradient(lambda w: losses.sparse_softmax_cross_entropy(ids, x, w), [0, 1])": lambda case: (
        case.weights == "each with a 0" or (case.weights == "zero" and case.reduction in KEEP_ZEROS)
    ),
    "losses.softmax_cross_entropy(eye, x, label_smoothing=2)": lambda case: case.smoothing > 1,
    "losses.softmax_cross_entropy(eye, x, label_smoothing=-0.5)": lambda case: case.smoothing < 0,
}


def arguments(case):
    """Labels, logits and options, from a seed of the case's own place."""
    random = np.random.default_rng(CASES.index(case))
    logits = random.normal(size=case.shape)
    rest = list(case.shape)
    classes = rest.pop(case.axis)
    soft = np.moveaxis(random.dirichlet(np.ones(classes), size=rest), -1, case.axis)
    if case.is_sigmoid:
        soft = random.uniform(size=case.shape)
    if case.logits == "-inf":
        logits.flat[0], soft.flat[0] = -np.inf, 0
    ids = random.integers(1, classes, size=rest)
    hot = np.moveaxis(np.eye(classes)[ids], -1, case.axis)
    labels = {"one-hot": hot, "int": hot, "broadcast": soft[:1], "sum of 2": 2 * soft}.get(case.labels, soft)
    labels = labels.astype(int) if case.labels == "int" else tf.cast(labels, case.dtype)
    if case.has_ids:
        wrong = {"-1": -1, "C": classes}.get(case.labels, 0)
        labels = np.where(ids == ids.max(), wrong, ids) if wrong else ids
        labels = labels.astype({"bool": bool, "float": np.float32}.get(case.labels, np.int64))
        labels = labels[..., None] if case.labels == "with a last 1" else labels
    options = {"axis": case.axis} if case.name == NN[0] else {}
    if case.name == NN[3]:
        each = random.uniform(size=case.shape[-1])
        given = {None: 1.0, "each class": each, "larger than the logits": random.uniform(size=(2, *case.shape))}
        options["pos_weight"] = tf.constant(given.get(case.pos_weight, case.pos_weight), case.dtype)
    if case.smoothing:
        options["label_smoothing"] = case.smoothing
    if case.reduction:
        options["reduction"] = case.reduction
    losses = random.uniform(0.5, 2, size=case.shape if case.is_sigmoid else rest)
    some = losses.copy()
    some.flat[0] = 0
    if case.weights == "a 0 for NaN":
        logits[0, 0] = np.nan
    given = {
        "scalar": 0.7,
        "zero": 0.0,
        "each": losses,
        "ones": losses[:1],
        "with a last 1": losses[..., None],
        "each with a 0": some,
        "a 0 for NaN": some,
    }
    weights = tf.constant(given[case.weights], tf.float32) if case.weights in given else None
    return labels, tf.constant(logits, case.dtype), weights, options


def result(loss, case):
    """The loss, and its derivatives in logits, soft labels and weights; of what fails the error's type."""
    labels, logits, weights, options = arguments(case)
    logits = logits[..., None] if case.labels == "logits with a last 1" else logits
    given = [k for k in (logits, labels, weights) if tf.is_tensor(k) and k.dtype.is_floating]
    try:
        with tf.GradientTape() as tape:
            for k in given:
                tape.watch(k)
            value = loss(labels, logits, **options, **({} if weights is None else {"weights": weights}))
        return value, *tape.gradient(value, given, unconnected_gradients="zero")
    except (TypeError, ValueError, tf.errors.OpError) as error:
        return type(error)


@pytest.mark.parametrize("case", CASES, ids=lambda case: "-".join(map(str, case)))
def test_walk(case):
    """Equal, or different for a reason that the table has."""
    theirs, xents = (
        result(getattr(library.losses if case.is_loss else library.nn, case.name), case) for library in (THEIRS, ours)
    )
    reasons = [row for row, applies in DIFFERENT.items() if applies(case)]
    # TF1's losses are weighted and summed in float32, whatever the logits are
    tolerance = 32 * {"float16": 2.0**-10, "bfloat16": 2.0**-7}.get(case.dtype, 2.0**-23)
    assert agree(theirs, xents, tolerance, lambda k: tf.cast(k, tf.float64)) == (not reasons), (reasons, theirs, xents)


def test_reasons_are_in_the_table():
    assert DIFFERENT.keys() <= {call for call, _, _ in rows(ours)}


@pytest.mark.parametrize("name", NN + LOSSES)
def test_signature(name):
    theirs, xents = (
        inspect.signature(getattr(library.losses if name in LOSSES else library.nn, name)).parameters.values()
        for library in (THEIRS, ours)
    )
    assert [(p.name, p.kind, p.default) for p in theirs] == [(p.name, p.kind, p.default) for p in xents]


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (
            "nn.softmax_cross_entropy_with_logits(ids, x)",
            r"labels: expected shape \(2, 3\) \(the logits'\), or that with 1s; got \(2,\); "
            "for class ids use sparse_softmax_cross_entropy_with_logits$",
        ),
        (
            "nn.sparse_softmax_cross_entropy_with_logits(ones((2, 4)) > 0, ones((2, 3, 4)))",
            r"labels: expected shape \(2, 3\) \(the logits' without the last axis\), got \(2, 4\)$",
        ),
        ("nn.sparse_softmax_cross_entropy_with_logits([-100, 1], x)", "labels: 1 of 2 .*; expected 0 to 2$"),
        ("losses.sparse_softmax_cross_entropy([-100, 1], x)", "labels: .*; a weight of 0 leaves it out$"),
        ("losses.softmax_cross_entropy([[0, 1, 0]], x)", r"onehot_labels: expected shape \(2, 3\)"),
        ("losses.sigmoid_cross_entropy([0, 1, 0], x)", r"multi_class_labels: expected shape \(2, 3\)"),
        ("losses.softmax_cross_entropy(eye, x, weights=x)", r"weights: expected a scalar, shape \(2,\) \(the loss's\)"),
        ("nn.sigmoid_cross_entropy_with_logits(logits=x)", "labels: expected an array, got None"),
        ("nn.softmax_cross_entropy_with_logits(x, None)", "logits: expected an array, got None"),
        ("nn.weighted_cross_entropy_with_logits(x, x, None)", "pos_weight: expected an array, got None"),
        ("losses.softmax_cross_entropy(None, x)", "onehot_labels: expected an array, got None"),
        ("losses.sigmoid_cross_entropy(x, x, None)", "weights: expected an array, got None"),
        (
            "losses.sparse_softmax_cross_entropy([2, 1], x, reduction='mean')",
            "reduction: expected one of 'none', .*'mean'",
        ),
    ],
)
def test_errors(call, words):
    with pytest.raises(ValueError, match=words):
        eval(call, {**GIVEN, "nn": ours.nn, "losses": ours.losses})


@pytest.mark.parametrize(
    ("name", "labels", "weights", "words"),
    [
        (LOSSES[0], X[:1], 1.0, r"onehot_labels: expected shape\W"),
        (LOSSES[0], X, [1.0, 2.0, 3.0], r"\Wweights: expected a scalar"),
        (LOSSES[1], [2], 1.0, r"without the last axis\), got"),
        (LOSSES[2], X[:1], 1.0, r"multi_class_labels: expected shape\W"),
    ],
)
def test_errors_of_graphs(name, labels, weights, words):
    """In the same words, where a graph finds out when it runs."""
    given = [tf.constant(k) for k in (labels, X, weights)]
    specs = [tf.TensorSpec([None] * k.shape.rank, k.dtype) for k in given]
    loss = tf.function(getattr(ours.losses, name), input_signature=specs)
    with pytest.raises(tf.errors.InvalidArgumentError, match=words):
        loss(*given)


def test_class_ids_out_of_range_are_tensorflows_error_too():
    """Eagerly, and as AutoGraph hands it on."""
    loss = functools.partial(ours.nn.sparse_softmax_cross_entropy_with_logits, [2, 3])
    for call in (loss, tf.function(lambda x: ours.nn.sparse_softmax_cross_entropy_with_logits([2, 3], x))):
        with pytest.raises(tf.errors.InvalidArgumentError, match="labels: 1 of 2 class ids out of range") as caught:
            call(tf.constant(X))
        assert isinstance(caught.value, xent.LabelError)


def test_graphs_collect_their_losses():
    """In TF1's collections, by its names; an eager loss is in none."""
    with tf.Graph().as_default():
        x, ids = tf.compat.v1.placeholder(tf.float32, [None, 3]), tf.compat.v1.placeholder(tf.int32, [None, 1])
        loss = ours.losses.sparse_softmax_cross_entropy(ids, x, scope="mine")
        other = ours.losses.sparse_softmax_cross_entropy(ids, x, loss_collection="others")
        assert tf.compat.v1.losses.get_losses() == [loss]
        assert tf.compat.v1.get_collection("others") == [other]
        assert loss.name.startswith("mine/")
        with tf.compat.v1.Session() as session:
            assert session.run(loss, {x: X, ids: [[2], [1]]}) == pytest.approx(1.5609144)


@pytest.mark.parametrize("name", NN + LOSSES)
def test_graphs_have_the_names_that_are_given(name):
    with tf.Graph().as_default():
        labels = tf.constant([2, 1]) if "sparse" in name else tf.constant(X)
        rest = [1.0] if name == NN[3] else []
        given = {"scope" if name in LOSSES else "name": "mine"}
        value = getattr(ours.losses if name in LOSSES else ours.nn, name)(labels, tf.constant(X), *rest, **given)
        assert value.name.startswith("mine/")


@pytest.mark.parametrize("ids", [np.array([2, 7]), np.array([[2], [7]]), [[2], [7]]])
def test_ids_of_numpy_are_checked_in_graphs(ids):
    """They have values while a graph is traced, and the default weights of 1.0 mask none."""
    with pytest.raises(xent.LabelError, match="is 7; expected 0 to 2"):
        tf.function(lambda x: ours.losses.sparse_softmax_cross_entropy(ids, x))(tf.constant(X))


@pytest.mark.parametrize(
    ("loss", "expected"),
    [
        (THEIRS.losses.sparse_softmax_cross_entropy, "1.561"),
        (ours.losses.sparse_softmax_cross_entropy, "InvalidArgumentError"),
    ],
)
def test_labels_of_unknown_rank_are_not_squeezed(loss, expected):
    traced = tf.function(lambda ids: loss(ids, X), input_signature=[tf.TensorSpec(None, tf.int32)])
    ids = tf.constant([[2], [1]])
    assert outcome("traced(ids[:, 0])", {"traced": traced, "ids": ids}) == "1.561"
    assert outcome("traced(ids)", {"traced": traced, "ids": ids}) == expected


@pytest.mark.parametrize("unknown", [[None, None], None], ids=["lengths", "rank"])
def test_labels_broadcast_in_graphs(unknown):
    """As eagerly, with the loss's derivative in them."""

    def gradients(labels, logits):
        loss = ours.nn.softmax_cross_entropy_with_logits(labels, logits)
        return loss, *tf.gradients(loss, [labels, logits])

    traced = tf.function(gradients, input_signature=[tf.TensorSpec(unknown)] * 2)
    whole = tf.function(gradients)
    for labels in np.float32([[0.5, 0.25, 1]]), np.float32([[0.5], [2]]):
        loss, of_labels, of_logits = traced(labels, X)
        want = whole(tf.constant(labels * np.ones_like(X)), tf.constant(X))
        np.testing.assert_allclose(loss, want[0], rtol=1e-6)
        np.testing.assert_allclose(of_logits, want[2], rtol=1e-6)
        np.testing.assert_allclose(of_labels, np.sum(want[1], labels.shape.index(1), keepdims=True), rtol=1e-6)
    only_loss = tf.function(ours.nn.softmax_cross_entropy_with_logits, input_signature=traced.input_signature)
    for labels in np.ones((3, 3), np.float32), np.ones(3, np.float32):
        if unknown is None or labels.ndim == 2:
            with pytest.raises(tf.errors.InvalidArgumentError, match=r"labels: expected shape\W"):
                only_loss(labels, X)


def test_every_argument_is_on_the_page():
    functions = [*vars(ours.nn).values(), *(getattr(ours.losses, name) for name in LOSSES)]
    assert undocumented("tensorflow.md", functions) == []
