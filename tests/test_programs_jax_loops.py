"""Second and third derivatives of losses in JAX's loops, against textbook formulas in float64.

The first derivative of a loop's body uses up all `custom_jvp`s, so the second one is that of the kernels themselves.
"""

import numpy as np
import pytest

jax = pytest.importorskip("jax", reason="jax is not installed")
jnp = jax.numpy
import xent  # noqa: E402
from jax.nn import log_softmax, logsumexp, sigmoid, softmax, softplus  # noqa: E402
from programs import cover  # noqa: E402

pytestmark = [pytest.mark.backend("jax"), pytest.mark.compiled]
rng = np.random.default_rng(0)
X, ALONG, WEIGHT = rng.normal(size=(5, 7)), rng.normal(size=(5, 7)), rng.normal(size=(9, 7))
IDS, SOFT = np.array([0, 1, 2, 6, 3]), rng.dirichlet(np.ones(7), 5)
SOME, EACH_CLASS = np.array([1.0, 0, 2, 0.5, 1]), rng.uniform(0.5, 2, 7)
FACTORS = np.array([1.0, 0.5])


@pytest.fixture(autouse=True)
def x64():
    with jax.enable_x64(True):
        yield


def nll(x):
    return logsumexp(x, -1) - jnp.take_along_axis(x, IDS[:, None], -1)[:, 0]


def cross_entropy(x, t):
    return (t * (logsumexp(x, -1, keepdims=True) - x)).sum(-1)


def options(x):
    lse = logsumexp(x, -1)
    return (SOME * (0.9 * nll(x) + 0.1 * (lse - x.mean(-1)) + 0.1 * lse**2)).sum() / SOME.sum()


def bce(x):
    return softplus(x) - SOFT * x


def weighted_bce(x):
    return (1 - SOFT) * softplus(x) + EACH_CLASS * SOFT * softplus(-x)


def entropy(x):
    return -(softmax(x) * log_softmax(x)).sum(-1)


LOSSES = {
    "sparse": (lambda x: xent.sparse_ce(x, IDS), lambda x: nll(x).mean()),
    "each": (lambda x: (xent.sparse_ce(x, IDS, reduce="none") ** 2).sum(), lambda x: (nll(x) ** 2).sum()),
    "options": (lambda x: xent.sparse_ce(x, IDS, sample_weight=SOME, label_smoothing=0.1, z_loss=0.1), options),
    "soft": (lambda x: xent.softmax_ce(x, SOFT), lambda x: cross_entropy(x, SOFT).mean()),
    "learned_labels": (
        lambda x: xent.softmax_ce(x, softmax(x[::-1])),
        lambda x: cross_entropy(x, softmax(x[::-1])).mean(),
    ),
    "sigmoid": (lambda x: xent.sigmoid_ce(x, SOFT), lambda x: bce(x).mean()),
    "sigmoid_each": (
        lambda x: (xent.sigmoid_ce(x, SOFT, reduce="none", pos_weight=EACH_CLASS) ** 2).sum(),
        lambda x: (weighted_bce(x) ** 2).sum(),
    ),
    "learned_weight": (
        lambda x: xent.sigmoid_ce(x, SOFT, sample_weight=sigmoid(x), reduce="sum"),
        lambda x: (sigmoid(x) * bce(x)).sum(),
    ),
    "linear": (lambda x: xent.linear_ce(x, WEIGHT, IDS), lambda x: nll(x @ WEIGHT.T).mean()),
    "entropy": (lambda x: (xent.entropy(x) ** 2).sum(), lambda x: (entropy(x) ** 2).sum()),
    "weighted_entropy": (
        lambda x: xent.entropy(x, sample_weight=SOME).sum(),
        lambda x: (SOME * entropy(x)).sum(),
    ),
    "gradient": (
        lambda x: (xent.value_and_grad(xent.sparse_ce)(x, IDS)[1] ** 2).sum(),
        lambda x: (jax.grad(lambda x: nll(x).mean())(x) ** 2).sum(),
    ),
    "sigmoid_gradient": (
        lambda x: (xent.value_and_grad(xent.sigmoid_ce)(x, SOFT)[1] ** 2).sum(),
        lambda x: (jax.grad(lambda x: bce(x).mean())(x) ** 2).sum(),
    ),
}
LOOPS = {
    "scan": lambda f: lambda x: jax.lax.scan(lambda sum, s: (sum + f(x * s), None), 0.0, FACTORS)[0],
    "fori_loop": lambda f: lambda x: jax.lax.fori_loop(0, 2, lambda i, sum: sum + f(x * (1 + i)), 0.0),
    "checkpoints": lambda f: (
        lambda x: jax.lax.scan(jax.checkpoint(lambda sum, s: (sum + f(x * s), None)), 0.0, FACTORS)[0]
    ),
    "batches": lambda f: lambda x: jax.lax.map(lambda s: jax.vmap(f)(jnp.stack([x * s, x + s])).sum(), FACTORS).sum(),
}


def slope(f):
    """In one direction."""
    return lambda x: jnp.vdot(jax.grad(f)(x), ALONG)


def second(f):
    return jax.grad(slope(f))


def assert_same(derivative, loss, around=lambda f: f):
    ours, textbook = (jax.jit(derivative(around(f)))(jnp.asarray(X)) for f in LOSSES[loss])
    np.testing.assert_allclose(ours, textbook, rtol=0, atol=1e-10 * np.abs(textbook).max())


@pytest.mark.parametrize(("loop", "loss"), cover(LOOPS, [*LOSSES], each=4))
def test_second_derivative(loop, loss):
    assert_same(second, loss, LOOPS[loop])


@pytest.mark.parametrize("loss", ["sparse", "learned_weight", "weighted_entropy"])
def test_third_derivative(loss):
    """In a loop of steps of gradient descent, as in meta-learning, and without one."""
    assert_same(lambda f: second(slope(f)), loss)
    assert_same(
        second,
        loss,
        lambda f: lambda x: f(jax.lax.scan(lambda x, s: (x - 0.1 * s * jax.grad(f)(x), None), x, FACTORS)[0]),
    )
