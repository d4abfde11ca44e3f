"""next_token and total_weight, on every backend: against loops in Python, and beside the losses that they are for."""

import numpy as np
import pytest
import xent
from xent import _dispatch

TOKENS = np.array([[5, 6, 7, 8], [1, 2, -100, 4]])
SEGMENTS = np.array([[0, 0, 1, 1], [2, 2, 2, 3]])
LOGITS = np.random.default_rng(0).normal(size=(2, 4, 9))
WEIGHTS = {
    "none": {},
    "ignored": {"ignore_index": -100},
    "sample_weight": {"ignore_index": -100, "sample_weight": np.array([[1.0, 0.5, 0.0, 1.0], [1.0, 1.0, 2.0, 0.25]])},
    "a weight for each sequence": {"ignore_index": -100, "sample_weight": np.array([[0.5], [2.0]])},
    "a number": {"ignore_index": -100, "sample_weight": 0.5},
    "class_weight": {"ignore_index": -100, "class_weight": np.linspace(0, 2, 9)},
    "both": {"ignore_index": -100, "sample_weight": [[1.0], [2.0]], "class_weight": np.linspace(1, 2, 9)},
}


def by_hand(tokens, segments, ignore_index):
    """The next token of each position in its segment."""
    found = np.full_like(tokens, ignore_index)
    for row, position in np.ndindex(tokens.shape[0], tokens.shape[1] - 1):
        if segments[row, position] == segments[row, position + 1]:
            found[row, position] = tokens[row, position + 1]
    return found


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("ignored", [-100, 0])
def test_next_token(live, packed, ignored):
    segments = SEGMENTS if packed else np.zeros_like(SEGMENTS)
    labels = live.array(TOKENS, "int32", "cpu")
    given = {"segment_ids": live.array(SEGMENTS, "int32", "cpu")} if packed else {}
    got = xent.next_token(labels, ignored, **given)
    ops = _dispatch.find(got).ops
    assert ops.dtype(got) == "int32"
    np.testing.assert_array_equal(live.numpy(got), by_hand(TOKENS, segments, ignored))
    np.testing.assert_array_equal(live.numpy(labels), TOKENS)


def test_next_token_of_one_and_of_none(live):
    for length in (1, 0):
        got = xent.next_token(live.array(np.zeros((2, length), np.int32), "int32", "cpu"))
        np.testing.assert_array_equal(live.numpy(got), np.full((2, length), -100))


def test_next_token_is_what_is_predicted(live):
    """The whole logits against the next tokens are the logits but the last against the tokens but the first."""
    x = live.array(LOGITS, "float32", "cpu")
    whole = xent.sparse_ce(x, xent.next_token(live.array(TOKENS, "int32", "cpu")), ignore_index=-100)
    cut = xent.sparse_ce(LOGITS[:, :-1].astype(np.float32), TOKENS[:, 1:], ignore_index=-100)
    np.testing.assert_allclose(live.numpy(whole), cut, rtol=1e-6)


@pytest.mark.parametrize("weights", WEIGHTS)
def test_total_weight_is_the_denominator_of_the_mean(live, weights):
    given = WEIGHTS[weights]
    labels = live.array(TOKENS, "int32", "cpu")
    if not given:
        labels = live.array(np.abs(TOKENS) % 9, "int32", "cpu")
    total = xent.total_weight(labels, **given)
    x = live.array(LOGITS, "float32", "cpu")
    mean, summed = (live.numpy(xent.sparse_ce(x, labels, **given, reduce=how)) for how in ("mean", "sum"))
    np.testing.assert_allclose(summed / live.numpy(total), mean, rtol=1e-6)
    np.testing.assert_allclose(live.numpy(xent.sparse_ce(x, labels, **given, denom=total)), mean, rtol=1e-6)


def test_total_weight_has_the_weights_own_precision(live):
    labels = live.array(TOKENS, "int32", "cpu")
    with live.double():
        for dtype in ("float32", "float64"):
            total = xent.total_weight(labels, sample_weight=live.array(np.ones((2, 4)), dtype, "cpu"))
            assert _dispatch.find(total).ops.dtype(total) == dtype


def test_total_weight_of_nothing():
    assert xent.total_weight([]) == 0
    assert xent.total_weight([-100, -100], ignore_index=-100) == 0
    assert xent.total_weight(3) == 1


@pytest.mark.backend("tensorflow")
@pytest.mark.parametrize("shape", [[None, None], None], ids=["lengths", "rank"])
def test_what_a_graph_does_not_know(shape):
    tf = pytest.importorskip("tensorflow", reason="tensorflow is not installed")

    @tf.function(input_signature=[tf.TensorSpec(shape, tf.int32)] * 2 + [tf.TensorSpec(shape, tf.float32)])
    def step(labels, segments, weight):
        total = xent.total_weight(labels, ignore_index=-100, sample_weight=weight)
        packed = xent.next_token(labels, segment_ids=segments) if shape else labels
        return xent.next_token(labels), packed, total

    shifted, packed, total = step(TOKENS, SEGMENTS, np.full((2, 1), 0.5, np.float32))
    np.testing.assert_array_equal(shifted, by_hand(TOKENS, np.zeros_like(TOKENS), -100))
    np.testing.assert_array_equal(packed, by_hand(TOKENS, SEGMENTS, -100) if shape else TOKENS)
    assert total == 3.5
    if shape:
        with pytest.raises((ValueError, tf.errors.InvalidArgumentError), match="segment_ids"):
            step(TOKENS, SEGMENTS[:1], np.ones((2, 4), np.float32))


INTEGERS = ("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64")


@pytest.mark.parametrize("dtype", INTEGERS)
@pytest.mark.parametrize("framework", ["numpy", "torch", "tensorflow", "jax"])
def test_next_token_of_every_integer_dtype(framework, dtype):
    make = {
        "numpy": lambda np_array: np_array,
        "torch": lambda np_array: pytest.importorskip("torch").from_numpy(np_array),
        "tensorflow": lambda np_array: pytest.importorskip("tensorflow").constant(np_array),
        "jax": lambda np_array: pytest.importorskip("jax").numpy.asarray(np_array.astype(dtype.replace("64", "32"))),
    }[framework]
    tokens = np.array([[5, 6, 7, 8]], dtype)
    got = xent.next_token(make(tokens), np.int64(100), segment_ids=[[0, 2**32, 2**32, 1]])
    assert _dispatch.find(got).ops.dtype(got) == (dtype.replace("64", "32") if framework == "jax" else dtype)
    np.testing.assert_array_equal(np.asarray(got), [[100, 7, 100, 100]])


@pytest.mark.parametrize(
    ("call", "error", "sentence"),
    [
        (lambda: xent.next_token(np.array(3)), ValueError, "labels: expected at least one dimension, the tokens"),
        (lambda: xent.next_token(np.ones(3)), TypeError, "labels: expected class ids of an integer or bool dtype, got"),
        (
            lambda: xent.next_token(np.ones(3, np.uint8)),
            ValueError,
            "ignore_index: expected a number that labels of uint8 can hold, got -100",
        ),
        (lambda: xent.next_token([1, 2], 0.5), TypeError, "ignore_index: expected an int or None, got 0.5"),
        (
            lambda: xent.next_token(TOKENS, segment_ids=[1, 2]),
            ValueError,
            r"segment_ids: expected shape \(2, 4\) \(the labels'\), got \(2,\)",
        ),
        (lambda: xent.total_weight([0.5]), TypeError, "labels: expected class ids of an integer or bool dtype, got"),
        (lambda: xent.total_weight(TOKENS, sample_weight=[1, 2]), ValueError, "sample_weight: expected a scalar"),
        *(
            (
                lambda k=k: xent.total_weight([1], class_weight=k),
                ValueError,
                rf"class_weight: expected shape \(classes,\), got \({shape}\)",
            )
            for k, shape in ((2.0, ""), ([], "0,"), ([[1.0, 2.0]], "1, 2"))
        ),
        (lambda: xent.next_token([True]), TypeError, "labels: expected token ids of an integer dtype, got bool"),
        (lambda: xent.next_token([1], segment_ids=2), ValueError, "segment_ids: expected at least one dimension"),
        (
            lambda: xent.total_weight([1], weights=2),
            TypeError,
            "weights: total_weight has no such argument; use sample",
        ),
    ],
)
def test_sentences(call, error, sentence):
    with pytest.raises(error, match=f"^{sentence}"):
        call()
