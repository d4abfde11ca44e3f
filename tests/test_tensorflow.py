"""TensorFlow's own transforms: every derivative, batched, compiled, against log_softmax in float64."""

import functools
import itertools
import math
import sys

import numpy as np
import pytest

tf = pytest.importorskip("tensorflow", reason="tensorflow is not installed")

import cases  # noqa: E402
import xent  # noqa: E402
from cases import T, V, W, X, Y, Z  # noqa: E402
from programs import cover, name  # noqa: E402
from xent.backends import numpy as with_numpy  # noqa: E402
from xent.backends.tensorflow import native as with_tensorflow  # noqa: E402
from xent.backends.tensorflow import operators  # noqa: E402

pytestmark = pytest.mark.backend("tensorflow")


def softmax_reference(x, t, z_loss=0.0):
    lse = tf.reduce_logsumexp(x, -1)
    return tf.reduce_sum(W * (tf.reduce_sum(t * (lse[:, None] - x), -1) + z_loss * lse**2)) / W.sum()


def sparse_reference(x, t):
    return softmax_reference(x, 0.9 * tf.one_hot(Y, 4, dtype=x.dtype) + 0.1 / 4, 0.3)


def linear_reference(x, v):
    return sparse_reference(2 * tf.tanh(tf.matmul(x, v, transpose_b=True) / 2), None)


EACH = np.linspace(-1, 2, 3)


def each_reference(x, v):
    logits = tf.matmul(x, v, transpose_b=True)
    return tf.reduce_sum(
        EACH * W * (tf.reduce_logsumexp(logits, -1) - tf.reduce_sum(tf.one_hot(Y, 4, dtype=x.dtype) * logits, -1))
    )


def each_linear(x, v):
    return tf.reduce_sum(EACH * xent.linear_ce(x, v, tf.constant(Y), sample_weight=W, reduce="none", chunk_rows=2))


def sigmoid_reference(x, z):
    return tf.reduce_mean(2 * z * tf.nn.softplus(-x) + (1 - z) * tf.nn.softplus(x))


PAIRS = {
    "sparse": (
        lambda x, t: xent.sparse_ce(x, tf.constant(Y), sample_weight=W, label_smoothing=0.1, z_loss=0.3),
        sparse_reference,
        T,
    ),
    "softmax": (lambda x, t: xent.softmax_ce(x, t, sample_weight=W), softmax_reference, T),
    "sigmoid": (lambda x, z: xent.sigmoid_ce(x, z, pos_weight=2.0), sigmoid_reference, Z),
    "linear_each": (each_linear, each_reference, V),
    "linear": (
        lambda x, v: xent.linear_ce(
            x, v, tf.constant(Y), softcap=2.0, sample_weight=W, label_smoothing=0.1, z_loss=0.3, chunk_rows=2
        ),
        linear_reference,
        V,
    ),
}


def grad(f):
    def run(x, t):
        with tf.GradientTape() as tape:
            tape.watch((x, t))
            y = f(x, t)
        return tape.gradient(y, (x, t), unconnected_gradients="zero")

    return run


def jvp(f):
    def run(x, t):
        with tf.autodiff.ForwardAccumulator((x, t), (tf.cos(x), tf.sin(t))) as acc:
            y = f(x, t)
        return acc.jvp(y)

    return run


def directional(f):
    """The gradient of a direction's component of the gradient."""
    return lambda x, t: grad(lambda x, t: tf.reduce_sum(tf.cos(tf.stop_gradient(x)) * grad(f)(x, t)[0]))(x, t)


TRANSFORMS = {
    "value": lambda f: f,
    "grad": grad,
    "jvp": jvp,
    "rev_over_rev": directional,
    "fwd_over_rev": lambda f: jvp(lambda x, t: grad(f)(x, t)[0]),
    "rev_over_fwd": lambda f: grad(lambda x, t: jvp(f)(x, t)),
    "third_order": lambda f: directional(lambda x, t: tf.reduce_sum(grad(f)(x, t)[0] ** 2)),
    "vmap": lambda f: lambda x, t: tf.vectorized_map(lambda x: f(x, t), tf.stack([x, 2 * x])),
    "vmap_grad": lambda f: lambda x, t: tf.vectorized_map(lambda x: grad(f)(x, t), tf.stack([x, 2 * x])),
    "grad_of_vmap": lambda f: (
        lambda x, t: grad(lambda x, t: tf.reduce_sum(tf.vectorized_map(lambda x: f(x, t), tf.stack([x, 2 * x]))))(x, t)
    ),
}
traced = functools.partial(tf.function, autograph=False)  # it takes as long as tracing; one mode is enough for it
MODES = {
    "eager": lambda f, _: f,
    "graph": lambda f, _: tf.function(f),
    "xla": lambda f, _: traced(f, jit_compile=True),
    "unknown_batch": lambda f, t: traced(
        f, input_signature=[tf.TensorSpec([None, 4], tf.float64), tf.TensorSpec([t, 4], tf.float64)]
    ),
    "of_a_graph": lambda f, _: f,
    "in_and_of_a_graph": lambda f, _: traced(f),
}


# "unknown_batch" is a graph as well. TensorFlow's own rev_over_fwd is wrong through a function that was traced before.
TRIED_IN = {
    "graph": ("value", "grad", "jvp", "vmap"),
    "of_a_graph": ("grad", "jvp", "rev_over_rev", "vmap_grad"),
    "in_and_of_a_graph": ("jvp", "rev_over_rev"),
}
if not cases.FULL:  # XLA has no more to it than the graph of the formulas, and takes seconds for a higher derivative
    TRIED_IN |= {"xla": ("value", "grad", "jvp", "rev_over_rev", "vmap_grad"), "graph": ("grad",)}
TRIED = [
    (transform, mode)
    for transform in TRANSFORMS
    for mode in list(MODES)[1:]
    if transform in TRIED_IN.get(mode, TRANSFORMS)
]
# A layer's loops are traced for seconds, so few of its pairs are tried: a gradient that is asked for after the graph
# was traced, forward mode and maps. Its second derivatives in graphs are a test of their own, below.
LAYERS = ("linear_each", "linear")
OF_LAYERS = [
    (("grad", "of_a_graph"), "linear_each"),
    (("jvp", "unknown_batch"), "linear_each"),
    (("vmap_grad", "unknown_batch"), "linear"),
    (("grad_of_vmap", "unknown_batch"), "linear_each"),
]
COMPILED = [
    *cover(TRIED, [loss for loss in PAIRS if loss not in LAYERS], each=1),
    *(itertools.product(TRIED, LAYERS) if cases.FULL else OF_LAYERS),
]


@functools.cache
def wanted(loss, transform):
    """The reference's answer, which all modes share."""
    _, reference, second = PAIRS[loss]
    return TRANSFORMS[transform](reference)(tf.constant(X), tf.constant(second))


def assert_close(got, want):
    for g, w in zip(*map(tf.nest.flatten, (got, want)), strict=True):
        np.testing.assert_allclose(g, w, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("loss", PAIRS)
def test_transform(loss, transform):
    check_transform(loss, transform, "eager")


@pytest.mark.compiled
@pytest.mark.parametrize(("tried", "loss"), COMPILED, ids=name)
def test_compiled_transform(tried, loss):
    check_transform(loss, *tried)


def check_transform(loss, transform, mode):
    ours, _, second = PAIRS[loss]
    x, t = tf.constant(X), tf.constant(second)
    if "of_a_graph" in mode:  # which is traced before a derivative is asked for
        ours = traced(ours)
        ours(x, t)
    # a head's classes have to be known
    assert_close(MODES[mode](TRANSFORMS[transform](ours), 4 if second is V else None)(x, t), wanted(loss, transform))


@pytest.mark.compiled
@pytest.mark.parametrize(("transform", "loss"), cover(["grad", "value"], PAIRS, each=1))
def test_xla_of_a_function_that_was_traced_before(loss, transform):
    """XLA cannot run the kernels, but the graph also has the formulas."""
    ours, _, second = PAIRS[loss]
    x, t = tf.constant(X), tf.constant(second)
    before = traced(ours)
    before(x, t)
    assert_close(traced(TRANSFORMS[transform](before), jit_compile=True)(x, t), wanted(loss, transform))


@pytest.mark.compiled
@pytest.mark.parametrize(
    "loss", [k if k in ("softmax", "linear") else pytest.param(k, marks=pytest.mark.full) for k in PAIRS]
)
def test_derivatives_of_what_was_differentiated_in_a_graph(loss):
    """The tape inside the graph asks for the logits' derivative alone; a tape outside may ask for all others."""
    ours, reference, second = PAIRS[loss]

    def outer(f):
        def run(x, t):
            with tf.GradientTape() as tape:
                tape.watch(x)
                value = f(x, t)
            return value + tf.reduce_sum(tf.sin(x) * tape.gradient(value, x))

        return run

    x, t = tf.constant(X), tf.constant(second)
    assert_close(grad(traced(outer(ours)))(x, t), grad(outer(reference))(x, t))


@pytest.mark.compiled
@pytest.mark.parametrize(
    ("upstream", "loss"),
    cover(
        [(1.0, "inside"), (1.0, "outside"), (1.5, "outside")], ["sparse", "softmax", "linear_each", "sigmoid"], each=1
    ),
)
def test_derivative_in_the_upstream_gradient(upstream, loss):
    """Also where it is 1, and nothing is multiplied; the tape is inside of the graph or outside."""
    alpha, tape = upstream
    ours, reference, second = PAIRS[loss]

    def outer(f):
        def run(alpha, x):
            with tf.GradientTape() as tape:
                tape.watch(x)
                value = alpha * f(x, tf.constant(second))
            return tf.reduce_sum(tape.gradient(value, x) ** 2)

        return run

    of = {"inside": lambda f: traced(grad(f)), "outside": lambda f: grad(traced(f))}[tape]
    args = tf.constant(alpha, tf.float64), tf.constant(X)
    assert_close(of(outer(ours))(*args), grad(outer(reference))(*args))
    np.testing.assert_allclose(traced(jvp(outer(ours)))(*args), jvp(outer(reference))(*args), rtol=1e-11)


@pytest.mark.parametrize("mode", ["eager", pytest.param("of_a_graph", marks=pytest.mark.compiled)])
def test_derivative_in_an_upstream_of_zero(mode):
    """The gradient is linear in the upstream one: its derivative there does not depend on what that is."""
    x, z, f = tf.constant(X), tf.constant(Z), lambda x: xent.sigmoid_ce(x, tf.constant(Z), reduce="none")
    f = tf.function(f) if mode == "of_a_graph" else f
    g = tf.zeros_like(f(x))
    with tf.GradientTape() as outer:
        outer.watch(g)
        with tf.GradientTape() as inner:
            inner.watch(x)
            losses = f(x)
        dx = inner.gradient(losses, x, g)
    np.testing.assert_allclose(outer.gradient(dx, g), tf.sigmoid(x) - z, rtol=1e-12)


GRAPHS = operators.OPERATORS is not None
ROWS = np.random.default_rng(5).normal(size=(64, 300))
HEAD = np.random.default_rng(6).normal(size=(90, 300)).astype("float32")
BY_KERNELS = {
    "sparse_ce": lambda dtype: ((np.arange(64),), {"sample_weight": np.linspace(0, 1, 64)}),
    "softmax_ce": lambda dtype: ((np.full((64, 300), 0.01),), {}),
    "sigmoid_ce": lambda dtype: ((np.full((64, 300), 0.3),), {"pos_weight": np.linspace(0, 2, 300)}),
    "linear_ce": lambda dtype: ((HEAD.astype(dtype), np.arange(64)), {"chunk_rows": 16}),
}


@pytest.mark.compiled
@pytest.mark.skipif(
    not (with_tensorflow.NATIVE and sys.platform == "linux"), reason="there are no operators for graphs here"
)
@pytest.mark.parametrize(
    ("call", "name"),
    [
        *cover(
            [*itertools.product(("float32", "float16"), (("none", "inside"), ("none", "outside")))], BY_KERNELS, each=1
        ),
        *cover([*itertools.product(("float32", "float16"), (("mean", "inside"),))], BY_KERNELS),
    ],
)
def test_graphs_run_the_kernels(call, name):
    """The results are those of the kernels on NumPy, to the last bit; the formulas' would differ."""
    dtype, (reduce, tape) = call
    loss, (args, options), x = getattr(xent, name), BY_KERNELS[name](dtype), ROWS.astype(dtype)
    f = lambda x: loss(x, *args, **options, reduce=reduce)  # noqa: E731
    run = traced(with_gradient(f)) if tape == "inside" else with_gradient(traced(f))
    got = run(tf.constant(x))
    if reduce == "none":
        np.testing.assert_array_equal(got[0], f(x))
    if name == "sigmoid_ce" and reduce == "none":  # of which eager TensorFlow gets the formulas
        wanted = xent.value_and_grad(loss)(x, *args, **options, reduce="none")[1]
    else:
        wanted = with_gradient(f)(tf.constant(x))[1]
    np.testing.assert_array_equal(got[1], wanted)


def with_gradient(f):
    def run(x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            loss = f(x)
        return loss, tape.gradient(loss, x)

    return run


@pytest.mark.parametrize("transform", ["jvp", "grad", "grad_of_vmap"])
@pytest.mark.parametrize("loss", ["softmax", "sigmoid"])
def test_labels_of_exactly_zero(loss, transform):
    """The derivative in a label of 0 is the gap, lse - x, not 0."""
    ours, reference, second = PAIRS[loss]
    x, t = tf.constant(X), tf.constant(np.round(second))
    assert_close(TRANSFORMS[transform](ours)(x, t), TRANSFORMS[transform](reference)(x, t))


@pytest.fixture
def check_numerics():
    tf.debugging.enable_check_numerics()
    yield
    tf.debugging.disable_check_numerics()


gradient_of = xent.value_and_grad(xent.sparse_ce)
LARGE = tf.random.stateless_normal([1024, 512], [1, 2]), np.zeros(1024, int)


def test_large_gradients_are_in_tensorflows_own_memory(monkeypatch):
    """Its allocator has pages already; getting fresh ones would take longer than the kernel."""
    if not with_tensorflow.NATIVE:
        pytest.skip("without the native kernels all results are")
    places, empty = [], tf.raw_ops.Empty

    def noted(**options):
        memory = empty(**options)
        places.append(with_numpy.address(memory._numpy_internal()))
        return memory

    monkeypatch.setattr(tf.raw_ops, "Empty", noted)
    _, gradient = gradient_of(*LARGE)
    assert places == [with_numpy.address(gradient._numpy_internal())]


def test_numbers_are_not_checked_before_they_are_there(check_numerics):
    del_me = tf.fill(LARGE[0].shape, math.nan)
    del del_me  # so that this is the memory that comes next
    _, gradient = gradient_of(*LARGE)
    assert np.isfinite(gradient).all()


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
@pytest.mark.parametrize("shape", [(3, 5), (1024, 1024)])
def test_results_are_not_copied(shape, dtype):
    x = with_tensorflow.empty(shape, dtype, np.empty(0, np.float32))
    assert with_numpy.address(x) == with_numpy.address(with_tensorflow.tensor(x)._numpy_internal())


def test_smoothing_of_float64_under_a_tape():
    """1 / classes is a Python number, which tf.cast would round to float32 before it widens it."""
    x, y = np.random.default_rng(0).normal(size=(3, 31)), np.array([0, 30, 7])
    given = tf.constant(x)
    with tf.GradientTape() as tape:
        tape.watch(given)
        loss = xent.sparse_ce(given, y, label_smoothing=0.5, reduce="none")
    np.testing.assert_allclose(loss, xent.sparse_ce(x, y, label_smoothing=0.5, reduce="none"), rtol=1e-14)
