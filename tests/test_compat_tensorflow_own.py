"""TensorFlow's own tests of its losses, as it installs them, with xent's functions in place of its own."""

import functools
import re
import unittest
from typing import Any, NamedTuple

import pytest

tf = pytest.importorskip("tensorflow", reason="tensorflow is not installed")
from xent.compat import tensorflow as ours  # noqa: E402

pytestmark = pytest.mark.backend("tensorflow")


def their_tests():
    reason = "this TensorFlow installs no tests"
    kernels = "tensorflow.python.kernel_tests"
    soft = pytest.importorskip(f"{kernels}.nn_ops.xent_op_test_base", reason=reason).XentOpTestBase
    sparse = pytest.importorskip(f"{kernels}.sparse_ops.sparse_xent_op_test_base", reason=reason).SparseXentOpTestBase
    tests = [test for case in (soft, sparse) for test in unittest.defaultTestLoader.loadTestsFromTestCase(case)]
    return {test.id().split("test_base.")[-1]: test for test in tests if not test.id().endswith("test_session")}


class Failure(NamedTuple):
    """Why a test of theirs fails, and what has to change in it so that it passes."""

    why: str
    said: str  # what its traceback has
    expecting: Any = None  # what the test takes in the place of its own expectations


# The reasons: an error's sentence, an operator's name, the dtype of 16-bit losses.
SENTENCE, MISFIT = "the error is the same, its sentence is xent's", r"labels: expected shape\W.*got"
OPERATOR = Failure("an operator's name: BatchMatMulV2 is to be in the graph", "'BatchMatMulV2' not found in")
DTYPE = Failure("the loss of bfloat16 is float32, and what is expected is rounded to bfloat16", "dtype = float32")
FAIL = {
    "XentOpTestBase.testBfloat16": DTYPE,
    "SparseXentOpTestBase.testBfloat16": DTYPE,
    "XentOpTestBase.testSecondGradient": OPERATOR,
    "SparseXentOpTestBase.testSecondGradient": OPERATOR,
    "SparseXentOpTestBase.testShapeMismatch": Failure(
        SENTENCE, r"`labels.shape.rank` must .* match \"labels: expected"
    ),
    "SparseXentOpTestBase.testScalar": Failure(SENTENCE, '`logits` cannot be a scalar.* match "logits: expected at'),
    "SparseXentOpTestBase.testInvalidLabelCPU": Failure(
        SENTENCE, 'Received a label.* match "labels: 2 of 4', {"expected_regex": "2 of 4 class ids out of range"}
    ),
    "SparseXentOpTestBase.testLabelsPlaceholderScalar": Failure(SENTENCE, MISFIT, {"expected_error_message": MISFIT}),
    "SparseXentOpTestBase.testScalarHandling": Failure(SENTENCE, MISFIT, {"expected_regex": MISFIT}),
}


def failures(test, monkeypatch, like_logits=lambda loss, _: loss):
    """What fails of it, with nothing but the functions replaced."""
    from tensorflow.python.ops import nn_ops

    def softmax(labels, logits, axis=-1, name=None):
        return like_logits(ours.nn.softmax_cross_entropy_with_logits(labels, logits, axis, name), logits)

    def sparse(labels, logits, name=None):
        return like_logits(ours.nn.sparse_softmax_cross_entropy_with_logits(labels, logits, name), logits)

    def softmax_of_constant_labels(labels, logits, dim=-1, name=None):
        """TF1's spelling, which the tests use."""
        return softmax(tf.stop_gradient(labels), logits, dim, name)

    monkeypatch.setattr(nn_ops, "softmax_cross_entropy_with_logits", softmax_of_constant_labels)
    monkeypatch.setattr(nn_ops, "softmax_cross_entropy_with_logits_v2", softmax)
    monkeypatch.setattr(nn_ops, "sparse_softmax_cross_entropy_with_logits_v2", sparse)
    found = unittest.TestResult()
    test.run(found)
    assert found.testsRun == 1
    if found.skipped:
        pytest.skip(found.skipped[0][1])
    return "".join(text for _, text in found.failures + found.errors)


def in_turn(name):
    """Those of second gradients run once, below; --full: here, too."""
    return pytest.param(name, marks=pytest.mark.full if FAIL.get(name) is OPERATOR else ())


@pytest.mark.parametrize("name", [*map(in_turn, their_tests())])
def test_tensorflow_own_tests(name, monkeypatch):
    """What fails is listed with its reason."""
    found = failures(their_tests()[name], monkeypatch)
    if name in FAIL:
        assert re.search(FAIL[name].said, found), found
    else:
        assert not found


@pytest.mark.parametrize("name", [name for name, failure in FAIL.items() if failure.expecting])
def test_what_they_expect_else(name, monkeypatch):
    """Those of their tests that take expectations, for the sake of TensorFlow's own devices."""
    test = their_tests()[name]
    method = getattr(test, f"_{test._testMethodName}")
    monkeypatch.setattr(test, test._testMethodName, functools.partial(method, **FAIL[name].expecting))
    assert not failures(test, monkeypatch)


@pytest.mark.parametrize("name", [name for name, failure in FAIL.items() if failure is DTYPE])
def test_they_pass_in_the_logits_dtype(name, monkeypatch):
    def rounded(loss, logits):
        return tf.cast(loss, tf.convert_to_tensor(logits).dtype)

    assert not failures(their_tests()[name], monkeypatch, rounded)


@pytest.mark.parametrize("name", [name for name, failure in FAIL.items() if failure is OPERATOR])
def test_they_pass_without_names_of_operators(name, monkeypatch):
    """At which they do not look where operators are to be deterministic."""
    from tensorflow.python.framework import config

    monkeypatch.setattr(config, "is_op_determinism_enabled", lambda: True)
    assert not failures(their_tests()[name], monkeypatch)
