"""Second derivatives of confident predictions: p (1 - p), also where p rounds to 1."""

import numpy as np
import pytest
import xent
from cases import backends
from xent.verify import frameworks

LEADS = np.array([0.0, 1.0, 5.0, 20.0, 40.0])  # float32 rounds 1 - p to 0 from 17 on
ROWS = np.stack([0 * LEADS + 0.5, 0.5 + LEADS, 0 * LEADS - 2], -1).astype(np.float32)  # class 1 leads

each_framework = pytest.mark.parametrize("framework", backends("torch", "tensorflow", "jax"))


def hessians(framework, loss, x):
    """The second derivative by every way that the framework has."""
    if framework == "torch":
        torch = pytest.importorskip("torch", reason="torch is not installed")
        given = torch.tensor(x)
        yield torch.autograd.functional.hessian(loss, given).numpy()
        yield torch.func.hessian(loss)(given).numpy()
    elif framework == "jax":
        jax = pytest.importorskip("jax", reason="jax is not installed")
        yield np.asarray(jax.hessian(loss)(x))
        yield np.asarray(jax.jacrev(jax.grad(loss))(x))
    else:
        tf = pytest.importorskip("tensorflow", reason="tensorflow is not installed")

        def nested(x):
            with tf.GradientTape() as outer:
                outer.watch(x)
                with tf.GradientTape() as inner:
                    inner.watch(x)
                    value = loss(x)
                gradient = inner.gradient(value, x)
            return outer.jacobian(gradient, x)

        yield nested(tf.constant(x)).numpy()
        yield tf.function(nested)(tf.constant(x)).numpy()


def probabilities(x):
    """p, and 1 - p without cancellation, in float64."""
    e = np.exp(x.astype(np.float64) - x.max())
    return e / e.sum(), np.array([np.delete(e, j).sum() for j in range(len(e))]) / e.sum()


@each_framework
@pytest.mark.parametrize("form", ["ids", "soft"])
def test_softmax(framework, form):
    """The diagonal entry by entry; what lies off it relative to the row's largest entry."""
    array, labels = frameworks.load(framework).array, np.array([0, 1, 1, 0, 1])
    if form == "ids":
        loss, y = xent.sparse_ce, array(labels, "int32", "cpu")
    else:
        loss, y = xent.softmax_ce, array(np.eye(3)[labels], "float32", "cpu")
    for hessian in hessians(framework, lambda x: loss(x, y, reduce="sum"), ROWS):
        for row, x in enumerate(ROWS):
            got, (p, q) = hessian[row, :, row], probabilities(x)
            want = np.where(np.eye(3), p * q, -np.outer(p, p))
            np.testing.assert_allclose(np.diag(got), np.diag(want), rtol=2e-5)
            np.testing.assert_allclose(got, want, rtol=0, atol=2e-6 * np.abs(want).max())


@each_framework
def test_sigmoid(framework):
    xs = np.array([0, 1, -1, 17.5, -17.5, 40, -40, 80], np.float32)
    y = frameworks.load(framework).array(np.array([0, 1, 0, 1, 0.25, 0, 1, 0.75]), "float32", "cpu")
    for hessian in hessians(framework, lambda x: xent.sigmoid_ce(x, y, reduce="sum"), xs):
        for got, x in zip(np.diag(hessian), xs, strict=True):
            p, q = probabilities(np.array([x, 0]))
            np.testing.assert_allclose(got, p[0] * q[0], rtol=2e-5)
