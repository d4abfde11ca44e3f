"""What the README says of the frameworks' own losses is still true."""

import numpy as np
import pytest

X = np.array([[2, 0.5, 6], [0.1, 0, 3]], np.float32)
BIG = np.array([2, 2**32])
LOG_P = np.log(np.array([[0.7, 0.2, 0.1], [0.1, 0.8, 0.1], [0.15, 0.05, 0.8]], np.float32))
IMPOSSIBLE, ONEHOT = np.array([[1, 2, -np.inf]], np.float32), np.array([[0, 1, 0]], np.float32)
LOW, NO = np.array([-np.inf], np.float32), np.zeros(1, np.float32)
ROW, SHORT = np.array([[1, 2, 3]], np.float32), np.array([[0.3, 0.4, 0.1]], np.float32)
HALF = np.zeros((10_000, 1000), np.float16)
LEAD, OFFSET, TRUE = np.array([[20, 0]], np.float32), np.array([[1010, 1000]], np.float32), np.log1p(np.exp(-10.0))
THREE = np.zeros(3, np.float32)


def slope():
    p = np.exp(ROW) / np.exp(ROW).sum()
    return SHORT.sum() * p - SHORT


@pytest.mark.backend("torch")
def test_torch():
    torch = pytest.importorskip("torch", reason="torch is not installed")
    ce, sigmoid = torch.nn.functional.cross_entropy, torch.nn.functional.binary_cross_entropy_with_logits
    a = torch.tensor
    for ids in ([2, -1], BIG):
        with pytest.raises(IndexError):
            ce(a(X), torch.as_tensor(ids))
    weight = a([1.0, 2, 3])
    assert ce(a(LOG_P), a([0, 1, 2]), weight=weight).item() == pytest.approx(0.245, abs=5e-4)
    assert ce(a(LOG_P), torch.eye(3), weight=weight).item() == pytest.approx(0.491, abs=5e-4)
    assert ce(a(X), a([-100, -100])).isnan()
    assert ce(a(IMPOSSIBLE), a(ONEHOT)).isnan()
    assert sigmoid(a(LOW), a(NO)).isnan()
    x = a([[np.nan, 1, 2], [0.1, 0, 3]], requires_grad=True)
    ce(x, a([-100, 0])).backward()
    assert x.grad[0].isnan().all()
    x = a(ROW, requires_grad=True)
    ce(x, a(SHORT)).backward()
    np.testing.assert_allclose(x.grad, slope(), rtol=1e-5)
    assert ce(a(HALF), torch.zeros(len(HALF), dtype=torch.long)).isinf()
    assert ce(a(LEAD), a([0])) == 0
    assert ce(a(OFFSET), a([0])).item() / TRUE - 1 == pytest.approx(4e-4, abs=1e-4)
    with pytest.raises(ValueError, match="must be the same"):
        sigmoid(a(THREE), a(THREE[:, None]))
    with pytest.raises(ValueError, match="batch_size"):
        ce(a(X), a(ONEHOT))


@pytest.mark.backend("tensorflow")
def test_tensorflow():
    tf = pytest.importorskip("tensorflow", reason="tensorflow is not installed")
    sparse, soft = tf.nn.sparse_softmax_cross_entropy_with_logits, tf.nn.softmax_cross_entropy_with_logits
    sigmoid = tf.nn.sigmoid_cross_entropy_with_logits
    for ids in (np.array([2, -1]), BIG):
        with pytest.raises(tf.errors.InvalidArgumentError):
            sparse(labels=ids, logits=X)
        compiled = tf.function(sparse, jit_compile=True)(labels=tf.constant(ids), logits=X)
        assert np.isnan(compiled).tolist() == [False, True]
    assert tf.compat.v1.losses.sparse_softmax_cross_entropy([2, 1], X, weights=[0.0, 0.0]) == 0
    assert np.isnan(soft(labels=ONEHOT, logits=IMPOSSIBLE)).all()
    assert np.isnan(sigmoid(labels=NO, logits=LOW)).all()
    x = tf.constant(ROW)
    with tf.GradientTape() as tape:
        tape.watch(x)
        loss = soft(labels=SHORT, logits=x)
    assert np.abs(tape.gradient(loss, x) - slope()).max() > 0.1
    assert np.isinf(tf.reduce_mean(sparse(labels=np.zeros(len(HALF), int), logits=HALF)))
    assert sparse(labels=[0], logits=LEAD) == 0
    assert sparse(labels=[0], logits=OFFSET).numpy()[0] / TRUE - 1 == pytest.approx(4e-4, abs=1e-4)
    with pytest.raises(ValueError, match="same shape"):
        sigmoid(labels=THREE[:, None], logits=THREE)
    assert soft(labels=ONEHOT, logits=X).shape == (2,)


@pytest.mark.backend("jax")
def test_optax():
    optax = pytest.importorskip("optax", reason="optax is not installed")
    import jax

    sparse, soft = optax.softmax_cross_entropy_with_integer_labels, optax.softmax_cross_entropy
    np.testing.assert_array_equal(sparse(X, np.array([2, -1])), sparse(X, np.array([2, 2])))
    np.testing.assert_array_equal(sparse(X, BIG), sparse(X, np.array([2, 0])))
    assert np.isnan(soft(IMPOSSIBLE, ONEHOT)).all()
    assert np.isnan(optax.sigmoid_binary_cross_entropy(LOW, NO)).all()
    np.testing.assert_allclose(jax.grad(lambda x: soft(x, SHORT).sum())(ROW), slope(), rtol=1e-5)
    assert float(sparse(HALF, np.zeros(len(HALF), int)).mean()) == pytest.approx(6.906, abs=5e-4)
    assert sparse(LEAD, np.array([0])) == 0
    assert float(sparse(OFFSET, np.array([0]))[0]) / TRUE - 1 == pytest.approx(0.34, abs=0.01)
    assert optax.sigmoid_binary_cross_entropy(THREE, THREE[:, None]).shape == (3, 3)
    assert soft(X, ONEHOT).shape == (2,)
