"""The losses inside TensorFlow programs as users write them: value and gradient against the oracle."""

import itertools

import numpy as np
import pytest

tf = pytest.importorskip("tensorflow", reason="tensorflow is not installed")

import xent  # noqa: E402
from programs import IDS, LOGITS, ONE_OF_EACH_LOSS, PROBLEMS, assert_close, cover, each_loss, each_problem  # noqa: E402

pytestmark = [pytest.mark.backend("tensorflow"), pytest.mark.compiled]


def call(problem, x, **more):
    return getattr(xent, problem.loss)(x, *problem.rest, **problem.options, **more)


def with_gradient(f, x, **options):
    with tf.GradientTape(**options) as tape:
        tape.watch(x)
        value = f(x)
    return value, tape.gradient(value, x)


def check(problem, found, truth=None, scale=1.0):
    value, gradient = problem.truth() if truth is None else truth
    assert_close(found[0], value, problem, "loss")
    assert_close(found[1], scale * gradient, problem, "gradient")


MODES = {"eager": lambda f: f, "graph": tf.function, "xla": lambda f: tf.function(f, jit_compile=True)}


# ---- steps before the loss, in one graph with it


@pytest.mark.parametrize(("mode", "problem"), cover(MODES))
def test_product_before(problem, mode):
    """A temperature, which a compiler may join with the loss's first subtraction."""
    x = tf.constant(problem.x)
    found = MODES[mode](lambda x: with_gradient(lambda x: call(problem, x / 0.7), x))(x)
    value, gradient = problem.truth(np.float32(problem.x) / np.float32(0.7))
    check(problem, found, (value, gradient / np.float64(np.float32(0.7))))


@pytest.mark.parametrize("mode", MODES)
def test_equal_logits_of_a_product(mode):
    f = MODES[mode](lambda x: xent.sparse_ce(x / 1.3, IDS))
    np.testing.assert_allclose(f(tf.fill([4, 64], 3.9e9)), np.log(64), rtol=1e-6)


@pytest.mark.parametrize(("mode", "problem"), cover(MODES, ONE_OF_EACH_LOSS[::-1], each=1))
def test_softcap_before(problem, mode):
    x = tf.constant(problem.x)
    found = MODES[mode](lambda x: with_gradient(lambda x: call(problem, 5 * tf.tanh(x / 5)), x))(x)
    bent = np.tanh(problem.x.astype(np.float64) / 5)
    value, gradient = problem.truth(5 * bent)
    check(problem, found, (value, gradient * (1 - bent**2)))


# ---- shapes that are not known while the graph is traced


UNKNOWN = list(itertools.product(("batch", "lengths", "rank"), ("graph", "xla")))
SPARSE, SOFTMAX, SIGMOID, LINEAR = ONE_OF_EACH_LOSS  # linear_ce once, of which test_tensorflow_graphs.py has the others


@pytest.mark.parametrize(("unknown", "problem"), cover(UNKNOWN, [SPARSE, SIGMOID, LINEAR, SOFTMAX], each=1))
def test_unknown_shapes(problem, unknown):
    """The batch, every length, the rank."""
    known, how = unknown
    shape = {"batch": [None, problem.x.shape[1]], "lengths": [None, None], "rank": None}[known]
    labels = problem.rest[-1]
    of_labels = [None, *labels.shape[1:]] if known == "batch" else None if known == "rank" else [None] * labels.ndim
    signature = [tf.TensorSpec(shape, tf.float32), tf.TensorSpec(of_labels, labels.dtype)]

    @tf.function(input_signature=signature, jit_compile=how == "xla")
    def step(x, y):
        rest = (*problem.rest[:-1], y)
        return with_gradient(lambda x: call(problem._replace(rest=rest), x), x)

    check(problem, step(problem.x, labels))


@pytest.mark.parametrize(("axis", "xla"), cover([-1, 1, 0], [False, True], each=1))
def test_each_example_of_logits_of_unknown_rank(axis, xla):
    x = np.random.default_rng(4).normal(size=(3, 5, 4)).astype(np.float32)
    y = np.zeros([n for i, n in enumerate(x.shape) if i != axis % 3], np.int32)
    sample_weight = np.arange(float(y.shape[1]))[None].repeat(y.shape[0], 0)

    @tf.function(input_signature=[tf.TensorSpec(None, k) for k in ("float32", "int32", "float64")], jit_compile=xla)
    def step(x, y, w):
        return xent.sparse_ce(x, y, axis=axis, sample_weight=w, reduce="none", label_smoothing=0.1, stats=True)

    (loss, stats), (want, of_numpy) = (
        step(x, y, sample_weight),
        xent.sparse_ce(x, y, axis=axis, sample_weight=sample_weight, reduce="none", label_smoothing=0.1, stats=True),
    )
    np.testing.assert_allclose(loss, want, rtol=1e-5, atol=1e-6)
    for got, expected in zip(stats, of_numpy, strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)


# ---- loops and maps


@each_loss
def test_while_loop(problem):
    """A sum over batches that are the same, each with a factor, which is then the upstream gradient."""
    x = tf.constant(problem.x)

    @tf.function
    def step(x):
        def total(x):
            return tf.while_loop(lambda i, _: i < 3, lambda i, sum: (i + 1, sum + 2 * call(problem, x)), (0, 0.0))[1]

        return with_gradient(total, x)

    value, gradient = problem.truth()
    check(problem, step(x), (6 * value, 6 * gradient))


@each_loss
def test_scan(problem):
    @tf.function
    def step(x):
        def last(x):
            return tf.scan(lambda sum, x: sum + call(problem, x), tf.stack([x, x]), 0.0)[-1]

        return with_gradient(last, x)

    value, gradient = problem.truth()
    check(problem, step(tf.constant(problem.x)), (2 * value, 2 * gradient))


@each_loss
def test_vectorized_map(problem):
    x = tf.constant(problem.x)
    values, gradients = tf.vectorized_map(lambda x: with_gradient(lambda x: call(problem, x), x), tf.stack([x, x]))
    for found in zip(values, gradients, strict=True):
        check(problem, found)


@pytest.mark.parametrize("mode", ["eager", "graph"])
@each_loss
def test_jacobian(problem, mode):
    """Of the loss of each example, whose sum's gradient is the sum of theirs."""

    def rows(x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            losses = tf.reshape(call(problem, x, reduce="none"), [-1])
        return losses, tape.jacobian(losses, x)

    losses, rows_of_jacobian = MODES[mode](rows)(tf.constant(problem.x))
    summed = problem._replace(options={**problem.options, "reduce": "sum"})
    check(summed, (tf.reduce_sum(losses), tf.reduce_sum(rows_of_jacobian, 0)))


# ---- branches that take the logits from outside of them, as their derivatives do


BRANCHES = {
    "cond": lambda certain, f: tf.cond(certain, f, lambda: 0.0),
    "switch_case": lambda certain, f: tf.switch_case(tf.cast(certain, tf.int32), [lambda: 0.0, f]),
    "nested": lambda certain, f: tf.cond(certain, lambda: tf.cond(certain, f, lambda: 0.0), lambda: 0.0),
}
TAPES = {
    "outside": lambda f, x: with_gradient(tf.function(f), x),
    "outside_xla": lambda f, x: with_gradient(tf.function(f, jit_compile=True), x),
    "persistent": lambda f, x: tf.function(lambda x: with_gradient(f, x, persistent=True))(x),
}


@pytest.mark.parametrize(("program", "problem"), cover([*itertools.product(BRANCHES, TAPES)], ONE_OF_EACH_LOSS, each=1))
def test_branch(problem, program):
    branch, tape = program
    f = BRANCHES[branch]
    check(problem, TAPES[tape](lambda x: f(x[0, 0] < 99, lambda: call(problem, x)), tf.constant(problem.x)))


@each_loss
def test_branch_with_the_loss_of_each_example(problem):
    @tf.function
    def total(x):
        return tf.cond(x[0, 0] < 99, lambda: tf.reduce_sum(call(problem, x, reduce="none")), lambda: 0.0)

    summed = problem._replace(options={**problem.options, "reduce": "sum"})
    check(summed, with_gradient(total, tf.constant(problem.x)))


# ---- tapes


@each_problem
def test_persistent_tape(problem):
    x = tf.constant(problem.x)
    check(problem, with_gradient(lambda x: call(problem, x), x, persistent=True))


@pytest.mark.parametrize(("mode", "problem"), cover(["eager", "graph"], ONE_OF_EACH_LOSS, each=1))
def test_nested_tapes_and_forward_mode(problem, mode):
    """A gradient penalty's gradient is the tangent of the gradient along the gradient, twice."""

    def run(x):
        with tf.GradientTape() as outer:
            outer.watch(x)
            _, gradient = with_gradient(lambda x: call(problem, x), x)
            penalty = tf.reduce_sum(gradient**2)
        direction = tf.stop_gradient(gradient)
        with tf.autodiff.ForwardAccumulator(x, direction) as forward:
            value, moved = with_gradient(lambda x: call(problem, x), x)
        return (value, gradient), outer.gradient(penalty, x), forward.jvp(moved)

    found, of_penalty, tangent = MODES[mode](run)(tf.constant(problem.x))
    check(problem, found)
    np.testing.assert_allclose(of_penalty, 2 * tangent, rtol=1e-3, atol=1e-7)


@each_loss
def test_recompute_grad(problem):
    x = tf.constant(problem.x)
    check(problem, with_gradient(tf.recompute_grad(lambda x: call(problem, x)), x))


# ---- training


@each_loss
def test_variable(problem):
    x = tf.Variable(problem.x)
    check(problem, with_gradient(lambda x: call(problem, x), x))
    check(problem, tf.function(lambda: with_gradient(lambda x: call(problem, x), x))())


@pytest.mark.parametrize("remainder", [True, pytest.param(False, marks=pytest.mark.full)])
def test_pipeline_and_train_step(remainder):
    """Batches of 3 and a last one of 1, or of known length."""
    batches = tf.data.Dataset.from_tensor_slices((LOGITS, IDS)).batch(3, drop_remainder=not remainder)
    bias = tf.Variable(tf.zeros([64]))

    @tf.function
    def step(x, y):
        with tf.GradientTape() as tape:
            loss = xent.sparse_ce(x + bias, y, denom=4.0)
        return loss, tape.gradient(loss, bias)

    found = [step(x, y) for x, y in batches]
    kept = 4 if remainder else 3
    want = xent.value_and_grad(xent.sparse_ce)(LOGITS[:kept].astype(np.float64), IDS[:kept], denom=4)
    np.testing.assert_allclose(sum(loss for loss, _ in found), want[0], rtol=1e-6)
    np.testing.assert_allclose(sum(grad for _, grad in found), want[1].sum(0), rtol=1e-4, atol=1e-7)


@each_loss
def test_mixed_precision(problem):
    """bfloat16 logits, from float32 weights: the loss comes in float32, the gradient through the cast."""

    def narrow(k):
        return tf.cast(k, tf.bfloat16) if np.ndim(k) == 2 and problem.loss == "linear_ce" else k

    rounded = problem._replace(rest=tuple(map(narrow, problem.rest)))
    x = tf.Variable(problem.x)
    value, gradient = with_gradient(lambda x: call(rounded, tf.cast(x, tf.bfloat16)), x)
    assert value.dtype == gradient.dtype == tf.float32
    want = problem.truth(tf.cast(tf.cast(x, tf.bfloat16), tf.float64))
    np.testing.assert_allclose(value, want[0], rtol=1e-2)
    np.testing.assert_allclose(gradient, want[1], rtol=0, atol=2e-2 * np.abs(want[1]).max())


@each_loss
def test_mirrored_strategy(problem):
    strategy = tf.distribute.MirroredStrategy(["CPU:0"])
    count = float(problem.x.size if problem.loss == "sigmoid_ce" else len(problem.x))
    problem = problem._replace(options={**problem.options, "denom": count})

    @tf.function
    def step(x):
        return strategy.run(lambda x: with_gradient(lambda x: call(problem, x), x), (x,))

    check(problem, step(tf.constant(problem.x)))


def test_keras_training_loop():
    import keras

    class Model(keras.Model):
        def __init__(self):
            super().__init__()
            self.head = keras.layers.Dense(64, kernel_initializer="zeros")

        def call(self, x):
            return self.head(x)

        def train_step(self, data):
            x, y = data
            with tf.GradientTape() as tape:
                loss = xent.sparse_ce(self(x, training=True), y)
            self.optimizer.apply_gradients(
                zip(tape.gradient(loss, self.trainable_weights), self.trainable_weights, strict=True)
            )
            return {"cross_entropy": loss}

    model = Model()
    model.compile(optimizer=keras.optimizers.SGD(0.1))
    losses = model.fit(LOGITS, IDS, batch_size=4, epochs=2, verbose=0, shuffle=False).history["cross_entropy"]
    np.testing.assert_allclose(losses[0], np.log(64), rtol=1e-6)
    assert losses[1] < losses[0]


@pytest.mark.full  # test_serving.py loads such files without xent, test_compat_tensorflow_sums.py beside it
def test_saved_model(tmp_path):
    class Module(tf.Module):
        @tf.function(input_signature=[tf.TensorSpec([None, 64], tf.float32), tf.TensorSpec([None], tf.int64)])
        def loss(self, x, y):
            return with_gradient(lambda x: xent.sparse_ce(x, y), x)

    tf.saved_model.save(Module(), str(tmp_path))
    check(PROBLEMS[0], tf.saved_model.load(str(tmp_path)).loss(LOGITS, IDS))


@each_loss
def test_functions_run_eagerly(problem):
    tf.config.run_functions_eagerly(True)
    try:
        check(problem, tf.function(lambda x: with_gradient(lambda x: call(problem, x), x))(tf.constant(problem.x)))
    finally:
        tf.config.run_functions_eagerly(False)


def test_numpy_logits_beside_tensorflows_labels():
    with pytest.raises(TypeError, match=r"^labels: a tensorflow array beside numpy arrays; convert it"):
        xent.sparse_ce(LOGITS, tf.constant(IDS))
