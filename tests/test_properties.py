"""Identities that hold for any logits, so that no reference and no tolerance of a rival is needed to catch a mistake."""

import importlib
from importlib.util import find_spec

import numpy as np
import pytest
import xent
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from xent._live import live

settings.register_profile("identities", derandomize=True, deadline=None, max_examples=25)
identity = settings.get_profile("identities")
ROWS, CLASSES = 4, 5
# A relative error that both sides may have where the loss is tiny: (8 + lead) roundoffs each, of which the lead is 100.
RTOL = 2 * 108 * 2.0**-53


@pytest.fixture(scope="module", params=["numpy", "torch", "tensorflow", "jax"])
def framework(request):
    if find_spec(request.param) is None:
        pytest.skip(f"{request.param} is not installed")
    if request.param == "tensorflow" and find_spec("torch"):
        importlib.import_module("torch")  # after TensorFlow its compiler aborts the process
    return live(request.param)


# Eighths, so that sums and differences are exact; with ties, and leads up to 100.
def eighths(*shape):
    return hnp.arrays(np.float64, shape, elements=st.integers(-400, 400).map(lambda k: k / 8))


def ids(*shape):
    return hnp.arrays(np.int64, shape, elements=st.integers(0, CLASSES - 1))


def between(low, high, *shape):
    return hnp.arrays(np.float64, shape, elements=st.integers(low * 8, high * 8).map(lambda k: k / 8))


def run(framework, loss, logits, labels, **options):
    """The loss and its gradient in the logits as NumPy arrays, the arguments given as the framework's."""
    with framework.double():
        x, y = framework.array(logits, "float64", "cpu"), framework.array(labels, None, "cpu")
        return [framework.numpy(result) for result in xent.value_and_grad(loss)(x, y, **options)]


def assert_same(got, want, rtol=RTOL):
    """The loss relatively; the gradient relatively to 1, what its terms are at most (times the weights)."""
    np.testing.assert_allclose(got[0], want[0], rtol=rtol, atol=0)
    np.testing.assert_allclose(got[1], want[1], rtol=rtol, atol=rtol)
