"""Losses as strangers write them, right ones and wrong ones, for test_contender.py; a process imports them by name."""

import importlib
import os

import numpy as np
import xent


def right(x, y):
    return xent.sparse_ce(x, y)


def right_by_row(x, y):
    return xent.sparse_ce(x, y, reduce="none")


def smoothed(x, y):
    return xent.value_and_grad(xent.sparse_ce)(x, y, label_smoothing=0.1)


def right_with_gradient(x, y):
    return xent.value_and_grad(xent.sparse_ce)(x, y)


def sum_for_mean(x, y):
    return xent.sparse_ce(x, y, reduce="sum")


def mean_of_pairs(x, y):
    """Labels that broadcast: every row's loss with every row's label, which one row forgives."""
    lse = xent.sparse_ce(x, y, reduce="none", stats=True)[1].lse
    taken = x[:, y] if isinstance(x, np.ndarray) else importlib.import_module("torch").index_select(x, 1, y)
    return (lse[:, None] - taken).mean()


def naive(x, y):
    """log(softmax(x)), as in the textbook."""
    e = np.exp(x)
    p = e / e.sum(-1, keepdims=True)
    loss = -np.log(p[np.arange(len(x)), y])
    return loss, p - np.eye(x.shape[-1], dtype=x.dtype)[y]


def naive_torch(x, y):
    return -x.softmax(-1).log().gather(1, y[:, None]).mean()


def naive_tensorflow(x, y):
    tf = importlib.import_module("tensorflow")
    return -tf.reduce_mean(tf.math.log(tf.gather(tf.nn.softmax(x), y, axis=1, batch_dims=1)))


def naive_jax(x, y):
    jax = importlib.import_module("jax")
    return -jax.numpy.log(jax.numpy.take_along_axis(jax.nn.softmax(x), y[:, None], 1)).mean()


def cross_entropy(x, y):
    return importlib.import_module("torch").nn.functional.cross_entropy(x, y, reduction="none")


def tf_nn(x, y):
    return importlib.import_module("tensorflow").nn.sparse_softmax_cross_entropy_with_logits(labels=y, logits=x)


def optax(x, y):
    return importlib.import_module("optax").softmax_cross_entropy_with_integer_labels(x, y)


def _spoiled(grad):
    """An error of 1e-3 in the first entry of every row."""
    return np.concatenate([grad[:, :1] * 1.001, grad[:, 1:]], 1).astype(grad.dtype)


def planted(x, y):
    loss, grad = xent.value_and_grad(xent.sparse_ce)(x, y, reduce="none")
    return loss, _spoiled(grad)


def planted_torch(x, y):
    torch = importlib.import_module("torch")

    class Planted(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, grad):
            return torch.from_numpy(_spoiled(grad.numpy()))

    return xent.sparse_ce(Planted.apply(x), y)


def planted_tensorflow(x, y):
    tf = importlib.import_module("tensorflow")

    @tf.custom_gradient
    def planted(x):
        return tf.identity(x), lambda grad: tf.concat([grad[:, :1] * 1.001, grad[:, 1:]], 1)

    return xent.sparse_ce(planted(x), y)


def planted_jax(x, y):
    jax = importlib.import_module("jax")
    planted = jax.custom_vjp(lambda x: x)
    planted.defvjp(lambda x: (x, None), lambda _, grad: (grad.at[:, 0].multiply(1.001),))
    return xent.sparse_ce(planted(x), y)


def forgets_upstream(x, y):
    """A backward pass that takes the loss for the last step."""
    torch = importlib.import_module("torch")
    loss, grad = xent.value_and_grad(xent.sparse_ce)(x.detach(), y)

    class Forgets(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return loss

        @staticmethod
        def backward(ctx, upstream):
            return grad

    return Forgets.apply(x)


def raises(x, y):
    raise RuntimeError("no kernel for this shape\nand more")


def another_shape(x, y):
    return x


def a_dict(x, y):
    return {"loss": xent.sparse_ce(x, y)}


def changes_logits(x, y):
    x -= x.max(-1, keepdims=True)
    return xent.sparse_ce(x, y)


def changes_labels(x, y):
    y[:] = 0
    return xent.sparse_ce(x, y)


def ends_the_process(x, y):
    os._exit(3)


def sigmoid(x, z):
    return xent.sigmoid_ce(x, z)


def sigmoid_sum(x, z):
    return xent.sigmoid_ce(x, z, reduce="sum")


def soft(x, t):
    return xent.softmax_ce(x, t)
