"""JAX's own transforms: every derivative of every order, batched, compiled, sharded; and which kernels they run on."""

import functools
import re
from pathlib import Path

import numpy as np
import pytest

jax = pytest.importorskip("jax", reason="jax is not installed")
jnp = jax.numpy
import cases  # noqa: E402
import xent  # noqa: E402
from cases import T, V, W, X, Y, Z, quick  # noqa: E402
from jax.extend.core import jaxprs_in_params  # noqa: E402
from processes import printed  # noqa: E402
from programs import cover  # noqa: E402
from xent.backends.cpu import native  # noqa: E402
from xent.verify.precision import DTYPES  # noqa: E402
from xent.verify.regimes import LOSSES  # noqa: E402

pytestmark = pytest.mark.backend("jax")


@pytest.fixture(autouse=True)
def x64():
    with jax.enable_x64(True):
        yield


# ---- derivatives of every order, against log_softmax in float64


def softmax_reference(x, t, z_loss=0.0):
    lse = jax.nn.logsumexp(x, -1)
    return (W * ((t * (lse[:, None] - x)).sum(-1) + z_loss * lse**2)).sum() / W.sum()


def sparse_reference(x, t):
    return softmax_reference(x, 0.9 * jax.nn.one_hot(Y, 4) + 0.1 / 4, 0.3)


def linear_reference(x, v):
    return sparse_reference(2 * jnp.tanh(x @ v.T / 2), None)


EACH = np.linspace(-1, 2, 3)


def each_reference(x, v):
    return -EACH @ (W * (jax.nn.log_softmax(x @ v.T) * jax.nn.one_hot(Y, 4)).sum(-1))


def each_linear(x, v):
    return EACH @ xent.linear_ce(x, v, jnp.asarray(Y), sample_weight=W, reduce="none", invalid="nan", chunk_rows=2)


def sigmoid_reference(x, z):
    return (2 * z * jax.nn.softplus(-x) + (1 - z) * jax.nn.softplus(x)).mean()


PAIRS = {
    "sparse": (
        lambda x, t: xent.sparse_ce(x, jnp.asarray(Y), sample_weight=W, label_smoothing=0.1, z_loss=0.3, invalid="nan"),
        sparse_reference,
        T,
    ),
    "softmax": (lambda x, t: xent.softmax_ce(x, t, sample_weight=W), softmax_reference, T),
    "linear": (
        lambda x, v: xent.linear_ce(
            x,
            v,
            jnp.asarray(Y),
            softcap=2.0,
            sample_weight=W,
            label_smoothing=0.1,
            z_loss=0.3,
            invalid="nan",
            chunk_rows=2,
        ),
        linear_reference,
        V,
    ),
    "linear_each": (each_linear, each_reference, V),
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


def assert_close(got, want):
    jax.tree.map(lambda g, w: np.testing.assert_allclose(g, w, rtol=1e-11, atol=1e-13), got, want)


def modes(pair):
    """Op by op, JAX compiles derivatives of so high an order for seconds."""
    slow = [pytest.mark.full] if pair.values[0] in ("hessian", "third_order") else []
    for mode, marks in (("eager", slow), ("jit", [pytest.mark.compiled])):
        yield pytest.param(*pair.values, mode, marks=[*pair.marks, *marks], id=f"{pair.id}-{mode}")


@pytest.mark.parametrize(
    ("transform", "loss", "mode"), [k for pair in cover(TRANSFORMS, PAIRS, each=1) for k in modes(pair)]
)
def test_transform(loss, transform, mode):
    ours, reference, second = PAIRS[loss]
    got = MODES[mode](TRANSFORMS[transform](ours))(jnp.asarray(X), jnp.asarray(second))
    want = quick(TRANSFORMS[transform](reference))(jnp.asarray(X), jnp.asarray(second))
    assert_close(got, want)


AT_ONCE = {
    "sigmoid": (xent.sigmoid_ce, Z, {"pos_weight": 2.0}),
    "sparse": (xent.sparse_ce, Y, {"label_smoothing": 0.1, "z_loss": 0.3, "sample_weight": W}),
    "softmax": (xent.softmax_ce, T, {"sample_weight": W}),
}


@pytest.mark.parametrize(
    ("transform", "loss"),
    cover(["hessian", "rev_over_rev", "fwd_over_fwd", "vmap_grad", "grad_of_vmap"], AT_ONCE, each=1),
)
def test_transforms_of_value_and_grad(loss, transform):
    """The derivative that comes along with the value can itself be differentiated and batched."""
    (function, labels, options), (_, reference, second) = AT_ONCE[loss], PAIRS[loss]

    def transformed(both):
        def f(x, t):
            value, grad = both(x)
            return value + (grad * jnp.cos(t)).sum()

        return TRANSFORMS[transform](f)

    x, t = jnp.asarray(X), jnp.asarray(T)
    got = transformed(lambda x: xent.value_and_grad(function)(x, jnp.asarray(labels), **options))
    want = transformed(jax.value_and_grad(lambda x: reference(x, jnp.asarray(second))))
    assert_close(*quick(lambda *given: (got(*given), want(*given)))(x, t))


@pytest.mark.parametrize("loss", ["sparse_ce", "linear_ce"])
def test_moves_of_a_gradient_beside_statistics(loss):
    """They are what they are without the statistics, which are constants."""
    rest = (jnp.asarray(Y),) if loss == "sparse_ce" else (jnp.asarray(V), jnp.asarray(Y))

    def moved(x, **options):
        both = xent.value_and_grad(getattr(xent, loss))
        return jax.jvp(lambda x: jax.tree.leaves(both(x, *rest, **options)[1]), (x,), (jnp.cos(x),))[1]

    assert_close(*quick(lambda x: (moved(x, stats=True), moved(x)))(jnp.asarray(X)))


# ---- both ways of a gradient: eager in two visits of the logits, compiled in one


def test_derivatives_of_entropy_and_its_gradient():
    """In logits and weights, one of which leaves its row out, whatever that holds."""

    def reference(x, w):
        log_p = jax.nn.log_softmax(x, 0)
        return -w * (jnp.exp(log_p) * log_p).sum(0)

    def twice(entropy):
        return lambda x, w: entropy(x, w) @ EACH, lambda x, w: (both(entropy)(x, w)[1] * jnp.asarray(X.T)).sum()

    def both(entropy):
        if entropy is reference:
            return lambda x, w: (reference(x, w), jax.grad(lambda x: reference(x, w).sum())(x))
        return lambda x, w: xent.value_and_grad(xent.entropy)(x, axis=0, sample_weight=w)

    x, w = jnp.asarray(X.T), jnp.asarray(W)
    spoiled = jnp.where(w == 0, jnp.nan, x)
    pairs = zip(twice(lambda x, w: xent.entropy(x, axis=0, sample_weight=w)), twice(reference), strict=True)
    for function, wanted in pairs:
        got, want = jax.grad(function, (0, 1))(spoiled, w), quick(jax.grad(wanted, (0, 1)))(x, w)
        assert_close(got[0], want[0])
        assert_close(got[1], jnp.where(w == 0, 0.0, want[1]))


@pytest.mark.parametrize(("dtype", "loss"), cover(DTYPES, LOSSES, each=1))
def test_gradients_by_jax(loss, dtype):
    """Masked rows, the class axis in the middle, 16-bit logits as they are: against the oracle."""
    with jax.enable_x64(dtype == "float64"):
        for case in cases.few(loss):
            options = cases.held(case.options, dtype)
            x, y = cases.arguments(loss, dtype, options)
            want = cases.truth(loss, x, y, options).logits
            logits, labels = jnp.asarray(x, dtype), jnp.asarray(y, None if loss == "sparse_ce" else logits_type(dtype))
            grad = jax.grad(lambda x: getattr(xent, loss)(x, labels, **options).sum())  # noqa: B023
            got = (grad if options["reduce"] == "none" else jax.jit(grad))(logits)
            assert got.dtype == dtype
            cases.assert_close(np.asarray(got, np.float64), want, dtype, f"{case} {dtype} gradient")


def logits_type(dtype):
    return "float64" if dtype == "float64" else "float32"


# ---- which kernels a program runs on


def sparse(x, y):
    return xent.sparse_ce(x, y, label_smoothing=0.1)


def each(x, y):
    return jnp.cos(xent.sparse_ce(x, y, reduce="none")).sum()


def sigmoid(x, z):
    return xent.sigmoid_ce(x, z, pos_weight=2.0)


def linear(h, y):
    return xent.linear_ce(h, jnp.ones((5, h.shape[1]), h.dtype), y)


TWICE = "rows_backward rows_forward"
PROGRAMS = {
    "value": (sparse, Y, "rows_forward"),
    "soft": (xent.softmax_ce, T, "rows_forward"),
    "grad": (jax.grad(sparse), Y, "rows_both"),
    "soft_grad": (jax.grad(xent.softmax_ce), T, "rows_both"),
    "labels_grad": (jax.value_and_grad(xent.softmax_ce, (0, 1)), T, TWICE),
    "each_grad": (jax.value_and_grad(each), Y, TWICE),
    "value_and_grad": (xent.value_and_grad(xent.sparse_ce), Y, "rows_both"),
    "vmap_grad": (jax.vmap(jax.grad(sparse)), Y, "rows_both"),
    "grad_vmap": (jax.grad(lambda x, y: jax.vmap(sparse)(x, y).sum()), Y, "rows_both"),
    "each_vmap_grad": (jax.vmap(jax.value_and_grad(each)), Y, TWICE),
    "each_grad_vmap": (jax.value_and_grad(lambda x, y: jax.vmap(each)(x, y).sum()), Y, TWICE),
    "checkpoint": (jax.value_and_grad(lambda x, y: jax.checkpoint(sparse)(x, y)), Y, "rows_both rows_forward"),
    "linear": (linear, Y, "project rows_forward"),
    "linear_grad": (jax.value_and_grad(linear), Y, "project pull rows_both"),
    "linear_grads": (lambda h, y: jax.grad(xent.linear_ce, (0, 1))(h, h, y), Y, "accumulate project pull rows_both"),
    "entropy": (lambda x, _: xent.entropy(x), Y, "entropy"),
    "entropy_grad": (jax.grad(lambda x, _: xent.entropy(x).sum()), Y, "entropy"),
    "entropy_vmap_grad": (jax.vmap(jax.grad(lambda x, _: xent.entropy(x))), Y, "entropy"),
    "sigmoid": (sigmoid, Z, "sigmoid_forward"),
    "sigmoid_grad": (jax.value_and_grad(sigmoid), Z, "sigmoid_both"),
    "sigmoid_vmap_grad": (jax.vmap(jax.value_and_grad(sigmoid)), Z, "sigmoid_both"),
}


def custom_calls(text):
    return " ".join(sorted(set(re.findall(r"custom_call @xent_(\w+)", text))))


@pytest.mark.parametrize("program", PROGRAMS)
def test_native_kernels_are_used(program):
    function, labels, want = PROGRAMS[program]
    lowered = jax.jit(function).lower(jnp.asarray(X), jnp.asarray(labels))
    assert custom_calls(lowered.as_text()) == ("" if native is None else want)
    assert 'custom_call_target="xent' in lowered.compile().as_text() or native is None


def test_native_kernels_are_used_eagerly():
    """The gradient in a second visit: scaling the first's would cost more."""
    x, y = jnp.asarray(X), jnp.asarray(Y)
    value = str(jax.make_jaxpr(lambda: sparse(x, y))())
    grad = str(jax.make_jaxpr(lambda: jax.grad(sparse)(x, y))())
    assert ("xent_rows_forward" in value) == (native is not None)
    assert ("xent_rows_backward" in grad) == (native is not None)
    assert "xent_rows_both" not in grad


def test_16_bit_logits_are_not_copied():
    if native is None:
        pytest.skip("the formulas convert 16-bit logits")
    x, y = jnp.zeros((4, 100, 3), "bfloat16"), jnp.zeros((4, 3), int)
    text = jax.jit(jax.value_and_grad(lambda x: xent.sparse_ce(x, y, axis=1))).lower(x).compile().as_text()
    assert "f32[4,100,3]" not in text
    assert "transpose(" not in re.sub(r"metadata={.*}", "", text)


def test_other_programs_use_the_formulas():
    """On a GPU, and where a program is exported for some other process."""
    x, y = jnp.asarray(X), jnp.asarray(Y)
    traced = jax.jit(jax.value_and_grad(sparse)).trace(x, y)
    assert custom_calls(traced.lower(lowering_platforms=("cuda",)).as_text()) == ""
    exported = jax.export.export(jax.jit(jax.value_and_grad(sparse)))(x, y)
    assert custom_calls(exported.mlir_module()) == ""
    assert_close(exported.call(x, y), jax.value_and_grad(sparse)(x, y))


def test_dimensions_left_open_by_export():
    n = jax.export.symbolic_shape("n")
    shapes = jax.ShapeDtypeStruct((*n, 4), X.dtype), jax.ShapeDtypeStruct(n, Y.dtype)
    exported = jax.export.export(jax.jit(jax.value_and_grad(sparse)))(*shapes)
    assert_close(exported.call(X, Y), jax.value_and_grad(sparse)(X, jnp.asarray(Y)))


def test_smoothing_weights_that_differ_by_batch():
    """One vector of class weights is all that a kernel knows."""
    tables = jnp.asarray([[1.0, 2.0, 0.5, 0.1], [0.0, 1.0, 1.0, 3.0]])

    def f(table):
        return jax.value_and_grad(
            lambda x: xent.sparse_ce(x, jnp.asarray(Y), class_weight=table, label_smoothing=0.2, z_loss=0.1)
        )(jnp.asarray(X))

    alone = quick(f)
    for i, got in enumerate(zip(*jax.vmap(f)(tables), strict=True)):
        assert_close(got, alone(tables[i]))


def test_without_jit():
    x, y = jnp.asarray(X), jnp.asarray(Y)
    want = quick(jax.value_and_grad(sparse))(x, y)
    with jax.disable_jit():
        got = jax.value_and_grad(sparse)(x, y)
    assert_close(got, want)


def test_donated_logits():
    y = jnp.arange(64) % 10
    step = lambda x: x - jax.grad(xent.sparse_ce)(x, y)  # noqa: E731
    x = jnp.cos(jnp.arange(640.0)).reshape(64, 10)
    want = np.asarray(jax.jit(step)(x))
    np.testing.assert_array_equal(jax.jit(step, donate_argnums=0)(x), want)


@pytest.mark.parametrize("shape", [(0, 5), (3, 0, 5), (0, 2, 5)])
def test_no_rows(shape):
    x, y = jnp.zeros(shape), jnp.zeros(shape[:-1], int)
    losses = (sparse, y), (each, y), (xent.softmax_ce, x), (sigmoid, x)
    grads = quick(lambda x: [g(x, labels) for f, labels in losses for g in (jax.grad(f), jax.vmap(jax.grad(f)))])(x)
    assert {grad.shape for grad in grads} == {shape}


# ---- in processes of their own


def test_switched_off():
    code = """
import jax, jax.numpy as jnp, xent
f = jax.jit(jax.value_and_grad(xent.sparse_ce))
print("xent_" in f.lower(jnp.zeros((2, 3)), jnp.zeros(2, int)).as_text())
"""
    assert printed("-c", code, XENT_NATIVE="0") == "False\n"


def test_sharded():
    full = ["--full"] if cases.FULL else []
    printed(
        Path(__file__).with_name("sharded_jax.py"),
        *full,
        timeout=None,
        XLA_FLAGS="--xla_force_host_platform_device_count=4",
    )


# ---- the head's loop


def shapes_in(jaxpr):
    """Of every value, inside loops and calls too."""
    for equation in jaxpr.eqns:
        yield from (out.aval.shape for out in equation.outvars)
        for inner in jaxprs_in_params(equation.params):
            yield from shapes_in(inner)


@pytest.mark.parametrize("transform", [lambda f: f, jax.grad, jax.vmap], ids=["loss", "grad", "vmap"])
def test_head_is_a_scan(transform):
    """Not unrolled, with all rows' logits nowhere in it."""
    h = jnp.ones((64, 4) if transform is not jax.vmap else (2, 64, 4))
    f = transform(lambda h: xent.linear_ce(h, jnp.ones((11, 4)), np.arange(64) % 11, chunk_rows=4))
    jaxpr = jax.make_jaxpr(f)(h)
    assert str(jaxpr).count(" scan[") == 1
    found = set(shapes_in(jaxpr.jaxpr))
    assert {(4, 11), (2, 4, 11)} & found
    assert not {shape for shape in found if np.prod(shape) >= 64 * 11}


@pytest.mark.parametrize("axis", [0, 1, pytest.param(2, marks=pytest.mark.full)])
def test_second_derivatives_of_each_entropy(axis):
    """As of their sum. XLA gets those of xent's formula wrong where classes were moved to the end."""
    x = jnp.asarray(np.random.default_rng(0).normal(size=(3, 5, 8)), "float32")
    entropy = functools.partial(xent.entropy, axis=axis)
    each = jax.jit(jax.jacfwd(jax.jacrev(entropy)))(x)
    np.testing.assert_allclose(each.sum((0, 1)), quick(jax.hessian(lambda x: entropy(x).sum()))(x), atol=1e-6)
