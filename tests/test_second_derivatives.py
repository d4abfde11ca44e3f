"""Second derivatives of confident predictions: p (1 - p), also where p rounds to 1."""

import numpy as np
import pytest
import xent
from cases import backends
from mpmath import mp, mpf
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
        yield np.asarray(jax.jit(jax.hessian(loss))(x))  # of the kernel that has the gradient, too
        yield np.asarray(jax.jacrev(jax.grad(loss))(x))  # of that of the gradient alone
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


def in_many_digits(function, x):
    """Second derivatives of a function of a row, by differences."""
    with mp.workdps(200):
        at, step = [mpf(float(k)) for k in x], mpf(10) ** -30

        def moved(*places):
            return function([k + sum(sign * step for i, sign in places if i == j) for j, k in enumerate(at)])

        def entry(i, j):
            corners = [moved((i, a), (j, b)) * a * b for a in (1, -1) for b in (1, -1)]
            return mp.fsum(corners) / (4 * step * step)

        return np.array([[float(entry(i, j)) for j in range(len(x))] for i in range(len(x))])


def entropy_of(x):
    total = mp.fsum(map(mp.exp, x))
    return mp.fsum(mp.exp(k) / total * (mp.log(total) - k) for k in x)


def capped_log_prob_of_1(x):
    seen = [mpf(3) / 4 * 30 * mp.tanh(k / 30) for k in x]
    return seen[1] - mp.log(mp.fsum(map(mp.exp, seen)))


def capped(x):
    return xent.log_prob(x, [1] * len(ROWS), softcap=30.0, logit_scale=0.75)


@pytest.mark.parametrize("framework", backends("torch", "tensorflow", "jax"))
@pytest.mark.parametrize(("function", "definition"), [(xent.entropy, entropy_of), (capped, capped_log_prob_of_1)])
def test_entropy_and_capped_logits(framework, function, definition):
    """The diagonal entry by entry, as above."""
    rows = ROWS + np.float32([0.25, 0, 0])  # of three equal classes they are almost 0
    wants = [in_many_digits(definition, x) for x in rows]
    for hessian in hessians(framework, lambda x: total(framework, function(x)), rows):
        for row, want in enumerate(wants):
            got = hessian[row, :, row]
            np.testing.assert_allclose(np.diag(got), np.diag(want), rtol=4e-5)
            np.testing.assert_allclose(got, want, rtol=0, atol=4e-6 * np.abs(want).max())


def total(framework, x):
    return pytest.importorskip("tensorflow").reduce_sum(x) if framework == "tensorflow" else x.sum()
