"""The gradient of xent.compat.tensorflow where labels do not add up to 1: TensorFlow's, not the loss's derivative."""

import numpy as np
import pytest

tf = pytest.importorskip("tensorflow", reason="tensorflow is not installed")
import xent  # noqa: E402
from xent.compat import tensorflow as ours  # noqa: E402

pytestmark = pytest.mark.backend("tensorflow")


def gradient_at(loss, logits):
    logits = tf.constant(logits, tf.float32)
    with tf.GradientTape() as tape:
        tape.watch(logits)
        value = loss(logits)
    return tape.gradient(value, logits)


def derivatives(loss):
    """Of labels and logits -> the loss, its derivatives in logits and labels, and one of the former's in the logits."""

    def of(labels, logits):
        with tf.GradientTape() as outer:
            outer.watch(logits)
            with tf.GradientTape() as tape:
                tape.watch([logits, labels])
                value = loss(labels, logits)
            of_logits, of_labels = tape.gradient(value, [logits, labels])
            some = of_logits[..., 1]
        return value, of_logits, of_labels, outer.gradient(some, logits)

    return of


SUMS = tf.constant([[0, 0, 1], [0, 2, 0], [0, 0, 0], [0.5, 0.25, 0.125]])
AT = tf.constant([[2, 0.5, 6], [0.1, 0, 3], [1, 2, 3], [-1, 0, 2]])


@pytest.mark.parametrize("compiled", [lambda f: f, tf.function], ids=["eager", "graph"])
def test_the_gradient_is_softmax_minus_labels(compiled):
    """Whatever the labels add up to; where that is 1 it is xent's own, bit for bit."""
    theirs, ours_, own = (
        compiled(derivatives(loss))(SUMS, AT)
        for loss in (
            tf.nn.softmax_cross_entropy_with_logits,
            ours.nn.softmax_cross_entropy_with_logits,
            lambda labels, logits: xent.softmax_ce(logits, labels, reduce="none"),
        )
    )
    for want, got in zip(theirs, ours_, strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-6, atol=1e-6)
    np.testing.assert_array_equal(ours_[1][0], own[1][0])
    assert not np.allclose(ours_[1][1], own[1][1])


def test_a_graph_visits_the_logits_once():
    spec = tf.TensorSpec((4, 3))
    graph = tf.function(ours.nn.softmax_cross_entropy_with_logits).get_concrete_function(spec, spec).graph
    library = graph.as_graph_def().library.function
    kinds = [op.type for op in graph.get_operations()] + [node.op for f in library for node in f.node_def]
    assert kinds.count("Max") == 1


def test_the_gradient_in_vectorized_map():
    def of_logits(given):
        return derivatives(ours.nn.softmax_cross_entropy_with_logits)(*given)[1]

    got = tf.vectorized_map(of_logits, (SUMS, AT))
    np.testing.assert_allclose(got, tf.nn.softmax(AT) - SUMS, rtol=1e-6, atol=1e-6)


def test_forward_mode_in_a_function():
    """Of the loss, and of its gradient."""
    direction = tf.ones_like(AT) * [0.0, 1, 2]

    def products(loss):
        @tf.function
        def of(logits):
            with tf.autodiff.ForwardAccumulator(logits, direction) as pushed, tf.GradientTape() as tape:
                tape.watch(logits)
                value = loss(SUMS, logits)
                of_logits = tape.gradient(value, logits)
            return pushed.jvp(value), pushed.jvp(of_logits)

        return of(AT)

    for want, got in zip(
        products(tf.nn.softmax_cross_entropy_with_logits),
        products(ours.nn.softmax_cross_entropy_with_logits),
        strict=True,
    ):
        np.testing.assert_allclose(got, want, rtol=1e-6, atol=1e-6)


def test_the_gradient_in_tensorflow_1_after_a_session_ran_the_loss():
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        logits = tf.constant(AT.numpy())
        loss = ours.nn.softmax_cross_entropy_with_logits(SUMS.numpy(), logits)
        session.run(loss)
        got = session.run(tf.gradients(loss, logits)[0])
    np.testing.assert_allclose(got, tf.nn.softmax(AT) - SUMS, rtol=1e-6, atol=1e-6)


def test_the_gradient_of_a_loaded_model(tmp_path):
    model = tf.Module()
    model.loss = tf.function(ours.nn.softmax_cross_entropy_with_logits, input_signature=[tf.TensorSpec((None, 3))] * 2)
    options = tf.saved_model.SaveOptions(experimental_custom_gradients=True)
    tf.saved_model.save(model, str(tmp_path), options=options)
    loaded = tf.saved_model.load(str(tmp_path))
    got = gradient_at(lambda x: loaded.loss(SUMS, x), AT)
    np.testing.assert_allclose(got, tf.nn.softmax(AT) - SUMS, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(("dtype", "roundoff"), [("float32", 17 * 2.0**-23), ("bfloat16", 2.0**-7 + 2.0**-19)])
def test_sums_within_roundoff_are_1(dtype, roundoff):
    for more, want in ((roundoff * 0.9, (0.5, -0.5)), (2 * roundoff, (0, -1))):
        labels = tf.cast([[0.5, 0.5 + more]], dtype)
        more = float(tf.reduce_sum(tf.cast(labels, tf.float64))) - 1
        got = gradient_at(lambda x, t=labels: ours.nn.softmax_cross_entropy_with_logits(t, x), [[0.0, 0.0]])
        np.testing.assert_allclose(got, [np.multiply(want, more)], atol=2.0**-24)


def test_a_weight_of_0_masks_labels_that_do_not_add_up_to_1():
    logits = [[np.nan, 1, 2], [0.1, 0, 3]]
    got = gradient_at(lambda x: ours.losses.softmax_cross_entropy([[0, 0, 2], [0, 2, 0]], x, [0, 1]), logits)
    np.testing.assert_allclose(got, [[0, 0, 0], tf.nn.softmax(logits[1]) - [0, 2, 0]], rtol=1e-6)
