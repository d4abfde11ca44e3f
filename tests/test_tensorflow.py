"""TensorFlow's own transforms: every derivative, batched, compiled, against log_softmax in float64."""

import functools
import math
import re
import sys

import numpy as np
import pytest

tf = pytest.importorskip("tensorflow", reason="tensorflow is not installed")

import xent  # noqa: E402
from cases import T, V, W, X, Y, Z  # noqa: E402
from programs import cover  # noqa: E402
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
    "linear": (
        lambda x, v: xent.linear_ce(
            x, v, tf.constant(Y), softcap=2.0, sample_weight=W, label_smoothing=0.1, z_loss=0.3, chunk_rows=2
        ),
        linear_reference,
        V,
    ),
    "linear_each": (each_linear, each_reference, V),
    "sigmoid": (lambda x, z: xent.sigmoid_ce(x, z, pos_weight=2.0), sigmoid_reference, Z),
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
MODES = {
    "eager": lambda f, _: f,
    "graph": lambda f, _: tf.function(f),
    "xla": lambda f, _: tf.function(f, jit_compile=True),
    "unknown_batch": lambda f, t: tf.function(
        f, input_signature=[tf.TensorSpec([None, 4], tf.float64), tf.TensorSpec([t, 4], tf.float64)]
    ),
    "of_a_graph": lambda f, _: f,
    "in_and_of_a_graph": lambda f, _: tf.function(f),
}


# "unknown_batch" is a graph, too. Through one that is there TensorFlow has rev_over_fwd wrong, of its own operations as
# well.
TRIED_IN = {
    "graph": ("value", "grad", "jvp", "vmap"),
    "of_a_graph": ("grad", "jvp", "rev_over_rev", "vmap_grad"),
    "in_and_of_a_graph": ("jvp", "rev_over_rev"),
}
TRIED = [
    (transform, mode)
    for transform in TRANSFORMS
    for mode in list(MODES)[1:]
    if transform in TRIED_IN.get(mode, TRANSFORMS)
]


@functools.cache
def wanted(loss, transform):
    """The same for all modes."""
    _, reference, second = PAIRS[loss]
    return tf.nest.flatten(TRANSFORMS[transform](reference)(tf.constant(X), tf.constant(second)))


@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("loss", PAIRS)
def test_transform(loss, transform):
    check_transform(loss, transform, "eager")


@pytest.mark.compiled
@pytest.mark.parametrize(("tried", "loss"), cover(TRIED, PAIRS, each=1))
def test_compiled_transform(tried, loss):
    check_transform(loss, *tried)


def check_transform(loss, transform, mode):
    ours, _, second = PAIRS[loss]
    x, t = tf.constant(X), tf.constant(second)
    if "of_a_graph" in mode:  # which was traced when nobody asked for a derivative yet
        ours = tf.function(ours)
        ours(x, t)
    # a head's classes have to be known
    got = MODES[mode](TRANSFORMS[transform](ours), 4 if second is V else None)(x, t)
    for g, w in zip(tf.nest.flatten(got), wanted(loss, transform), strict=True):
        np.testing.assert_allclose(g, w, rtol=1e-11, atol=1e-13)


@pytest.mark.compiled
@pytest.mark.parametrize(("transform", "loss"), cover(["value", "grad"], PAIRS))
def test_xla_of_a_function_that_was_traced_before(loss, transform):
    """XLA has no kernels of ours; it takes the formulas that are in the graph beside them."""
    ours, _, second = PAIRS[loss]
    x, t = tf.constant(X), tf.constant(second)
    traced = tf.function(ours)
    traced(x, t)
    got = tf.function(TRANSFORMS[transform](traced), jit_compile=True)(x, t)
    for g, w in zip(tf.nest.flatten(got), wanted(loss, transform), strict=True):
        np.testing.assert_allclose(g, w, rtol=1e-11, atol=1e-13)


@pytest.mark.compiled
@pytest.mark.parametrize(
    "loss", [k if k in ("sparse", "linear") else pytest.param(k, marks=pytest.mark.full) for k in PAIRS]
)
def test_derivatives_of_what_was_differentiated_in_a_graph(loss):
    """Its own tape asked for the first operand's alone; who calls it may ask for more."""
    ours, reference, second = PAIRS[loss]

    def outer(f):
        def run(x, t):
            with tf.GradientTape() as tape:
                tape.watch(x)
                value = f(x, t)
            return value + tf.reduce_sum(tf.sin(x) * tape.gradient(value, x))

        return run

    x, t = tf.constant(X), tf.constant(second)
    got, want = grad(tf.function(outer(ours)))(x, t), grad(outer(reference))(x, t)
    for g, w in zip(got, want, strict=True):
        np.testing.assert_allclose(g, w, rtol=1e-11, atol=1e-13)


@pytest.mark.compiled
@pytest.mark.parametrize(("upstream", "loss"), cover([(1.0, "inside"), (1.0, "outside"), (1.5, "outside")], PAIRS))
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

    of = {"inside": lambda f: tf.function(grad(f)), "outside": lambda f: grad(tf.function(f))}[tape]
    args = tf.constant(alpha, tf.float64), tf.constant(X)
    for g, w in zip(of(outer(ours))(*args), grad(outer(reference))(*args), strict=True):
        np.testing.assert_allclose(g, w, rtol=1e-11, atol=1e-13)
    moved = [tf.function(jvp(outer(f)))(*args) for f in (ours, reference)]
    np.testing.assert_allclose(*moved, rtol=1e-11)


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
    cover(
        [
            (k, how)
            for how in (("none", "inside"), ("none", "outside"), ("mean", "inside"))
            for k in ("float32", "float16")
        ],
        BY_KERNELS,
    ),
)
def test_graphs_run_the_kernels(call, name):
    """What comes out is what NumPy gets of them, to the last bit, which is not what the formulas give."""
    dtype, (reduce, tape) = call
    loss, (args, options), x = getattr(xent, name), BY_KERNELS[name](dtype), ROWS.astype(dtype)
    f = lambda x: loss(x, *args, **options, reduce=reduce)  # noqa: E731
    run = tf.function(with_gradient(f)) if tape == "inside" else with_gradient(tf.function(f))
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
    """Their derivative is the gap, not 0."""
    ours, reference, second = PAIRS[loss]
    x, t = tf.constant(X), tf.constant(np.round(second))
    got, want = TRANSFORMS[transform](ours)(x, t), TRANSFORMS[transform](reference)(x, t)
    for g, w in zip(tf.nest.flatten(got), tf.nest.flatten(want), strict=True):
        np.testing.assert_allclose(g, w, rtol=1e-11, atol=1e-13)


SEVEN = np.zeros((1, 7), np.float32)
ROW, IDS = np.ones(7, np.float32), np.zeros(1, np.int32)
MISFITS = {  # each is of one argument, beside logits [1, 7] or hidden states [1, 7]
    "ids": ("sparse_ce", {"logits": SEVEN, "labels": np.zeros(5, np.int32)}),
    "ids of another rank": ("sparse_ce", {"logits": SEVEN, "labels": IDS[None]}),
    "sample_weight": ("sparse_ce", {"logits": SEVEN, "labels": IDS, "sample_weight": ROW[:5]}),
    "weights of another rank": ("sparse_ce", {"logits": SEVEN, "labels": IDS, "sample_weight": ROW[:1, None]}),
    "class weights": ("sparse_ce", {"logits": SEVEN, "labels": IDS, "class_weight": ROW[:1]}),
    "class weights of another rank": ("softmax_ce", {"logits": SEVEN, "labels": SEVEN, "class_weight": ROW[None]}),
    "a denominator for each": ("sparse_ce", {"logits": SEVEN, "labels": IDS, "denom": ROW[:1]}),
    "no class": ("sparse_ce", {"logits": SEVEN[:, :0], "labels": IDS}),
    "soft labels": ("softmax_ce", {"logits": SEVEN, "labels": SEVEN[:, :1]}),
    "turned soft labels": ("softmax_ce", {"logits": SEVEN, "labels": SEVEN.T}),
    "soft labels' weights": ("softmax_ce", {"logits": SEVEN, "labels": SEVEN, "sample_weight": ROW[:2]}),
    "binary labels": ("sigmoid_ce", {"logits": SEVEN, "labels": SEVEN[:, :1]}),
    "binary labels' weights": ("sigmoid_ce", {"logits": SEVEN, "labels": SEVEN, "sample_weight": np.ones((5, 7), "f")}),
    "pos_weight": ("sigmoid_ce", {"logits": SEVEN, "labels": SEVEN, "pos_weight": ROW[:2]}),
    "pos_weight of more rows": ("sigmoid_ce", {"logits": SEVEN, "labels": SEVEN, "pos_weight": np.ones((5, 1), "f")}),
    "weight": ("linear_ce", {"hidden": SEVEN, "weight": np.ones((3, 6), "f"), "labels": IDS}),
    "bias": ("linear_ce", {"hidden": SEVEN, "weight": np.ones((3, 7), "f"), "labels": IDS, "bias": ROW[:1]}),
    "linear_ce's weights": (
        "linear_ce", {"hidden": SEVEN, "weight": np.ones((3, 7), "f"), "labels": IDS, "sample_weight": ROW[:5]}
    ),
}  # fmt: skip


# TensorFlow's optimizer may let the operation that cannot take them run before the assertion: another error then.
EITHER_ERROR = ("weight", "class weights of another rank")


def unknown(value, argument, axes):
    """A signature of unknown lengths or rank, but for linear_ce's weight."""
    shape = value.shape if argument == "weight" else [None] * value.ndim if axes == "lengths" else None
    return tf.TensorSpec(shape, value.dtype)


@pytest.mark.parametrize(
    ("graph", "name"), cover([("lengths", True), ("rank", False), ("rank", True), ("lengths", False)], MISFITS, each=8)
)
def test_what_does_not_fit_is_found_when_a_graph_runs(graph, name):
    """With the sentence of eager calls; XLA tells its words as an operation's name."""
    axes, xla = graph
    loss, given = MISFITS[name]
    with pytest.raises(ValueError, match="expected") as eager:
        getattr(xent, loss)(**given)
    words = re.split(r"\([\d, ]*\)|\(classes, 7\)", str(eager.value))  # without the shapes
    f = tf.function(
        lambda *args: getattr(xent, loss)(**dict(zip(given, args, strict=True))),
        input_signature=[unknown(value, argument, axes) for argument, value in given.items()],
        jit_compile=xla,
    )
    with pytest.raises((tf.errors.InvalidArgumentError, ValueError)) as caught:
        f(*given.values())
    said = str(caught.value).replace("\\", "")
    for word in () if name in EITHER_ERROR and not xla else words:
        assert (re.sub(r"\W+", "_", word.strip()) if xla and "node" in said else word.strip()) in said


@pytest.mark.compiled
@pytest.mark.parametrize("xla", [False, True])
@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("classes", [12, 1000, 1025, 33333, 262144])  # a tree; blocks; with a tail; many; blocks
def test_long_sums_of_equal_terms(classes, axis, xla):
    x = np.zeros((2, classes), np.float32)
    x[:, 0] = 5.3, 9.1
    loss = tf.function(lambda x: xent.sparse_ce(x, [0, 0], axis=axis, reduce="none"), jit_compile=xla)
    want = np.log1p((classes - 1) * np.exp(-np.float64(x[:, 0])))
    np.testing.assert_allclose(loss(tf.constant(x if axis else x.T)), want, rtol=2e-7)


@pytest.mark.parametrize("xla", [False, True])
def test_numpy_parameters_in_the_other_byte_order(xla):
    """TensorFlow would take a constant's bytes for the machine's own."""
    weight, bias = np.array([[1, 0], [0, 1]], ">f4"), np.array([0, 0.5], ">f4")
    loss = tf.function(lambda h: xent.linear_ce(h, weight, np.array([1], ">i8"), bias=bias), jit_compile=xla)
    np.testing.assert_allclose(loss(tf.constant([[1.0, 2.0]])), np.log1p(np.exp(-1.5)), rtol=1e-6)


@pytest.mark.parametrize("transform", ["persistent", "nested"])
def test_a_bias_of_16_bits(transform):
    h, weight, bias = (tf.cast(k, tf.bfloat16) for k in ([[1.0, 2.0]], np.eye(2), [0.5, 0.25]))
    with tf.GradientTape(persistent=transform == "persistent") as outer, tf.GradientTape() as inner:
        for tape in (outer, inner):
            tape.watch((h, weight, bias))
        loss = xent.linear_ce(h, weight, [1], bias=bias)
    want = xent.value_and_grad(xent.linear_ce)(h, weight, [1], bias=bias)
    for tape in (outer, inner):
        for got, grad in zip((loss, *tape.gradient(loss, (h, weight, bias))), (want[0], *want[1]), strict=True):
            assert got.dtype == grad.dtype
            np.testing.assert_allclose(tf.cast(got, tf.float32), tf.cast(grad, tf.float32), rtol=1e-2)


def test_label_error_inside_a_function():
    """AutoGraph hands it on as what it is."""
    with pytest.raises(xent.LabelError, match="class ids out of range"):
        tf.function(lambda x: xent.sparse_ce(x, [0, 9, 1]))(tf.constant(X))


def all_graphs(graph):
    """Itself and those of all functions that it may call, and that those may."""
    return [graph, *(g for name in graph._functions for g in all_graphs(graph._get_function(name).graph))]


@pytest.mark.parametrize("asked", ["loss", "grad"])
def test_head_in_a_graph_is_a_loop(asked):
    """Not unrolled, with all rows' logits nowhere in it."""
    signature = [tf.TensorSpec([64, 4], tf.float32), tf.TensorSpec([11, 4], tf.float32)]
    f = lambda h, v: xent.linear_ce(h, v, np.arange(64) % 11, chunk_rows=4)  # noqa: E731
    graph = tf.function(grad(f) if asked == "grad" else f, input_signature=signature).get_concrete_function().graph
    inside = {id(g): g for g in all_graphs(graph)}.values()
    kinds = [op.type for g in inside for op in g.get_operations()]
    assert sum("While" in kind for kind in kinds) == (2 if GRAPHS else 1)  # the kernels' loop, and the formulas'
    shapes = [tuple(out.shape) for g in inside for op in g.get_operations() for out in op.outputs if out.shape.rank]
    assert (4, 11) in shapes
    assert (64, 11) not in shapes


@pytest.mark.parametrize("xla", [False, True])
def test_head_of_an_unknown_batch(xla):
    unknown = [tf.TensorSpec([None, 4], tf.float64), tf.TensorSpec([4, 4], tf.float64), tf.TensorSpec([None], tf.int32)]
    run = tf.function(
        lambda h, v, y: xent.value_and_grad(xent.linear_ce)(h, v, y, chunk_rows=2),
        input_signature=unknown,
        jit_compile=xla,
    )
    loss, grads = run(X, V, Y.astype("int32"))
    want, wanted = xent.value_and_grad(xent.linear_ce)(X, V, Y)
    np.testing.assert_allclose(loss, want, rtol=1e-12)
    np.testing.assert_allclose(grads.hidden, wanted.hidden, rtol=1e-11, atol=1e-14)
    np.testing.assert_allclose(grads.weight, wanted.weight, rtol=1e-11, atol=1e-14)
    loss, grads = run(X[:0], V, Y[:0].astype("int32"))
    assert loss == 0
    assert not grads.weight.numpy().any()


@pytest.fixture
def check_numerics():
    tf.debugging.enable_check_numerics()
    yield
    tf.debugging.disable_check_numerics()


gradient_of = xent.value_and_grad(xent.sparse_ce)
LARGE = tf.random.stateless_normal([1024, 512], [1, 2]), np.zeros(1024, int)


def test_large_gradients_are_in_tensorflows_own_memory(monkeypatch):
    """Which is there already, where fresh pages would take longer than the kernel."""
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


def test_nobody_checks_numbers_before_they_are_there(check_numerics):
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
