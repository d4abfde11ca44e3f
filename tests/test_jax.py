"""JAX's own transforms: every derivative of every order, batched, compiled, against log_softmax in float64."""

import numpy as np
import pytest

jax = pytest.importorskip("jax", reason="jax is not installed")
jnp = jax.numpy

import xent  # noqa: E402
from cases import T, W, X, Y, Z  # noqa: E402

pytestmark = pytest.mark.backend("jax")


@pytest.fixture(autouse=True)
def x64():
    with jax.enable_x64(True):
        yield


def softmax_reference(x, t, z_loss=0.0):
    lse = jax.nn.logsumexp(x, -1)
    return (W * ((t * (lse[:, None] - x)).sum(-1) + z_loss * lse**2)).sum() / W.sum()


def sparse_reference(x, t):
    return softmax_reference(x, 0.9 * jax.nn.one_hot(Y, 4) + 0.1 / 4, 0.3)


def sigmoid_reference(x, z):
    return (2 * z * jax.nn.softplus(-x) + (1 - z) * jax.nn.softplus(x)).mean()


PAIRS = {
    "sparse": (
        lambda x, t: xent.sparse_ce(x, jnp.asarray(Y), weights=W, label_smoothing=0.1, z_loss=0.3, invalid="nan"),
        sparse_reference,
        T,
    ),
    "softmax": (lambda x, t: xent.softmax_ce(x, t, weights=W), softmax_reference, T),
    "sigmoid": (lambda x, z: xent.sigmoid_ce(x, z, pos_weight=2.0), sigmoid_reference, Z),
}
TRANSFORMS = {
    "value": lambda f: f,
    "grad": lambda f: jax.grad(f, (0, 1)),
    "jvp": lambda f: lambda x, t: jax.jvp(f, (x, t), (jnp.cos(x), jnp.sin(t))),
    "hessian": lambda f: jax.hessian(f, (0, 1)),
    "rev_over_rev": lambda f: jax.jacrev(jax.jacrev(f)),
    "fwd_over_fwd": lambda f: jax.jacfwd(jax.jacfwd(f, 1)),
    "rev_over_fwd": lambda f: jax.jacrev(jax.jacfwd(f)),
    "third_order": lambda f: jax.jacfwd(jax.hessian(f)),
    "vmap_grad": lambda f: lambda x, t: jax.vmap(jax.grad(f), (0, None))(jnp.stack([x, 2 * x]), t),
    "grad_of_vmap": lambda f: (
        lambda x, t: jax.grad(lambda xs: jax.vmap(f, (0, None))(xs, t).sum())(jnp.stack([x, 2 * x]))
    ),
    "value_and_grad": lambda f: jax.value_and_grad(f),
    "checkpoint": lambda f: jax.grad(jax.checkpoint(f)),
    "linearize": lambda f: lambda x, t: jax.linearize(lambda x: f(x, t), x)[1](jnp.cos(x)),
}


MODES = {"eager": lambda f: f, "jit": jax.jit}


@pytest.mark.parametrize("mode", ["eager", pytest.param("jit", marks=pytest.mark.compiled)])
@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("loss", PAIRS)
def test_transform(loss, transform, mode):
    ours, reference, second = PAIRS[loss]
    got = MODES[mode](TRANSFORMS[transform](ours))(jnp.asarray(X), jnp.asarray(second))
    want = TRANSFORMS[transform](reference)(jnp.asarray(X), jnp.asarray(second))
    jax.tree.map(lambda g, w: np.testing.assert_allclose(g, w, rtol=1e-11, atol=1e-13), got, want)
