"""The kernel of the entropy behind the frameworks that it serves: used where it can be, and right where it cannot."""

import numpy as np
import pytest
import xent
from xent import oracle
from xent.backends.cpu import native, why_not

if native is None:
    pytest.skip(f"native kernels: {why_not}", allow_module_level=True)

X = np.random.default_rng(0).normal(size=(6, 5, 4)).astype(np.float32)
ROWS = X[..., 0]
WANT = oracle.entropy(ROWS)
STEP = 1e-5
# Twice the second derivative along the gradient: the derivative of the squared gradient
CURVATURE = sum(sign * oracle.entropy(ROWS + sign * STEP * WANT.logits).logits for sign in (1, -1)) / STEP


@pytest.fixture
def calls(monkeypatch):
    """One entry for each call of the kernel."""
    found = []
    kernel = native.entropy
    monkeypatch.setattr(native, "entropy", lambda **given: (found.append(given["dx"] != 0), kernel(**given)))
    return found


def close(got, want):
    got = got.detach() if hasattr(got, "detach") else got
    np.testing.assert_allclose(np.asarray(got), want, rtol=4e-6, atol=1e-6)


MAKERS = {"numpy": "array", "torch": "tensor", "tensorflow": "constant"}


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("framework", [pytest.param(name, marks=pytest.mark.backend(name)) for name in MAKERS])
def test_value_and_gradient(framework, axis, calls):
    module = pytest.importorskip(framework, reason=f"{framework} is not installed")
    x, want = getattr(module, MAKERS[framework])(X), oracle.entropy(X, axis=axis)
    close(xent.entropy(x, axis=axis), want.loss)
    value, grad = xent.value_and_grad(xent.entropy)(x, axis=axis)
    assert calls == [False, True]
    close(value, want.loss)
    close(grad, want.logits)


@pytest.mark.backend("torch")
def test_pytorchs_derivatives(calls):
    """The first by the kernel; those beyond, and batches of them, by the formula."""
    torch = pytest.importorskip("torch", reason="torch is not installed")
    x = torch.tensor(ROWS, requires_grad=True)
    value = xent.entropy(x)
    close(torch.autograd.grad(value.sum(), x, retain_graph=True)[0], WANT.logits)
    assert calls == [False, True]
    each = torch.autograd.grad(value, x, torch.eye(6), is_grads_batched=True, retain_graph=True)[0]
    close(each.sum(0), WANT.logits)
    (first,) = torch.autograd.grad(value.sum(), x, create_graph=True)
    close(torch.autograd.grad(first.square().sum(), x)[0], CURVATURE)


@pytest.mark.backend("tensorflow")
def test_tensorflows_derivatives(calls):
    pytest.importorskip("torch", reason="torch is not installed")  # before TensorFlow
    tf = pytest.importorskip("tensorflow", reason="tensorflow is not installed")

    def gradient(function, x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            value = function(x)
        return tape.gradient(value, x)

    x = tf.constant(ROWS)
    close(gradient(xent.entropy, x), WANT.logits)
    assert calls == [False, True]
    with tf.GradientTape() as tape:
        tape.watch(x)
        value = xent.entropy(x)
    close(tf.reduce_sum(tape.jacobian(value, x), 0), WANT.logits)
    close(gradient(lambda x: tf.reduce_sum(gradient(xent.entropy, x) ** 2), x), CURVATURE)


@pytest.mark.backend("torch")
def test_a_weight_that_is_learned(calls):
    """Its derivative is the entropy; 0 where the weight is 0, whatever the row holds."""
    torch = pytest.importorskip("torch", reason="torch is not installed")
    spoiled = ROWS.copy()
    spoiled[2] = np.nan
    x = torch.tensor(spoiled, requires_grad=True)
    w = torch.tensor([1.0, 2.0, 0.0, 0.5, 1.0, 1.0], requires_grad=True)
    xent.entropy(x, sample_weight=w).sum().backward()
    there = np.arange(6) != 2
    close(w.grad, np.where(there, WANT.loss, 0))
    close(x.grad, WANT.logits * np.where(there, w.detach().numpy(), 0)[:, None])
    assert calls == [False, True]
