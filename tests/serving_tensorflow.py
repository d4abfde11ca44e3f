"""TensorFlow's files with a loss in them. Knows nothing of xent."""

import importlib
from types import SimpleNamespace

import numpy as np
import pytest
import tensorflow as tf

v1 = tf.compat.v1


def save_model(loss, x, rest, path):
    """The loss, and the loss with its gradient, for any batch."""

    def value_and_grad(x, *rest):
        with tf.GradientTape() as tape:
            tape.watch(x)
            value = loss(x, *rest)
        return value, tape.gradient(value, x)

    *weight, labels = rest  # linear_ce's, which has no batch
    specs = [open_batch(x), *(tf.TensorSpec(k.shape, k.dtype) for k in weight), open_batch(labels)]
    module = tf.Module()
    module.loss = tf.function(loss, input_signature=specs)
    module.value_and_grad = tf.function(value_and_grad, input_signature=specs)
    tf.saved_model.save(module, str(path))


def open_batch(k):
    return tf.TensorSpec([None, *k.shape[1:]], k.dtype)


def load_model(path, x, rest):
    """The gradient that is inside the file; a tape around the loaded loss has to find the same."""
    module = tf.saved_model.load(str(path))
    x, *rest = map(tf.constant, (x, *rest))
    value, gradient = module.value_and_grad(x, *rest)
    with tf.GradientTape() as tape:
        tape.watch(x)
        loss = module.loss(x, *rest)
    np.testing.assert_allclose(tape.gradient(loss, x), gradient, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(loss, value, rtol=1e-6)
    return value, gradient


def save_graph(loss, x, rest, path):
    """As TensorFlow 1 writes it."""
    with tf.Graph().as_default() as graph:
        x, *rest = (v1.placeholder(k.dtype, k.shape, name=f"k{i}") for i, k in enumerate((x, *rest)))
        value = tf.identity(loss(x, *rest), "loss")
        tf.identity(tf.gradients(value, x)[0], "gradient")
    path.write_bytes(graph.as_graph_def().SerializeToString())


def load_graph(path, x, rest):
    with tf.Graph().as_default(), v1.Session() as session:
        tf.import_graph_def(v1.GraphDef.FromString(path.read_bytes()), name="")
        return session.run(["loss:0", "gradient:0"], {f"k{i}:0": k for i, k in enumerate((x, *rest))})


def check_keras(path):
    """Keras's error names the import that a compiled model needs; predicting needs none."""
    keras = importlib.import_module("keras")
    with pytest.raises(TypeError, match=r"Could not locate class[\s\S]*'module': 'xent.compat.keras'"):
        keras.saving.load_model(path)
    assert keras.saving.load_model(path, compile=False).predict(keras.ops.ones((2, 4)), verbose=0).shape == (2, 3)


FORMATS = {
    "saved_model": SimpleNamespace(save=save_model, load=load_model),
    "graph_def": SimpleNamespace(save=save_graph, load=load_graph),
}
