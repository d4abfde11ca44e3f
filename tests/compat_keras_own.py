"""Keras's own tests of the three losses, with logits, in a source distribution of Keras; see test_compat_keras.py."""

import inspect
import unittest
from types import SimpleNamespace

import pytest
from compat_keras_backend import MARKS, NAMES
from keras.src.losses import losses_test
from xent.compat import keras as ours

pytestmark = MARKS
THEIRS = losses_test.losses


def with_logits():
    """Their tests that make a loss of logits."""
    suites = [getattr(losses_test, f"{name}Test") for name in NAMES]
    tests = [test for suite in suites for test in unittest.defaultTestLoader.loadTestsFromTestCase(suite)]
    found = [k for k in tests if "from_logits=True" in inspect.getsource(getattr(k, k._testMethodName))]
    assert found
    return found


def of_logits(name, made):
    """The loss of the name: xent's of logits, and Keras's of probabilities, which xent refuses."""

    def loss(*args, **options):
        if not options.get("from_logits"):
            return getattr(THEIRS, name)(*args, **options)
        made.append(name)
        return getattr(ours, name)(*args, **options)

    return loss


@pytest.mark.parametrize("test", with_logits(), ids=lambda test: test.id().split("losses_test.")[-1])
def test_keras_own_tests(test, monkeypatch):
    """With nothing but the losses replaced."""
    made = []
    monkeypatch.setattr(losses_test, "losses", SimpleNamespace(**{name: of_logits(name, made) for name in NAMES}))
    found = unittest.TestResult()
    test.run(found)
    assert found.testsRun == 1
    assert made
    assert not found.failures + found.errors
