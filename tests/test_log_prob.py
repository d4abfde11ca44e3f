"""Log-probabilities and entropy of rows, on every framework, against the oracle; and the oracle against mpmath."""

from functools import partial

import cases
import numpy as np
import pytest
import xent
from entropy_bound import assert_accurate
from mpmath import mp, mpf
from xent import _dispatch, formulas, oracle
from xent.verify import regimes
from xent.verify.precision import DTYPES, PRECISION, rounded

LEADS = np.linspace(0, 80, 41)
W = np.array([0.5, 0.0, 2.0])


def leading(leads, classes=7):
    """Rows of float32 in which class 2 leads."""
    x = 0.5 * np.random.default_rng(1).normal(size=(len(leads), classes))
    x[:, 2] = -np.inf
    x[:, 2] = x.max(axis=1) + leads
    return x.astype(np.float32)


def both(function):
    return xent.value_and_grad(function)


# ---- the oracle


def test_the_oracle_is_what_the_definition_says():
    """Derivatives by differences, in so many digits that those of a tiny entropy are left."""
    x = leading([0, 0.5, 20, 80], 4)
    truth = oracle.entropy(x)
    with mp.workdps(200):
        for row, values in enumerate(x):
            exact = [mpf(float(k)) for k in values]

            def entropy(moved):
                total = mp.fsum(map(mp.exp, moved))
                return mp.fsum(mp.exp(k) / total * (mp.log(total) - k) for k in moved)

            assert abs(truth.loss[row] / entropy(exact) - 1) < 8 * 2.0**-53
            for j in range(len(exact)):
                step = mpf(10) ** -40
                up, down = ([k + sign * step * (i == j) for i, k in enumerate(exact)] for sign in (1, -1))
                slope = (entropy(up) - entropy(down)) / (2 * step)
                assert abs(truth.logits[row, j] - slope) <= 16 * 2.0**-53 * abs(slope) + 2.0**-54 * truth.loss[row]


# ---- accuracy


def check_entropy(live, x, dtype, what, compiler=lambda f: f):
    with live.within(dtype):
        value, grad = compiler(lambda x: both(xent.entropy)(x))(live.array(x, dtype, "cpu"))
        ops = _dispatch.find(value).ops
        assert (ops.dtype(value), ops.dtype(grad)) == (PRECISION[dtype].compute, dtype)
        value, grad = live.numpy(value), live.numpy(grad)
    assert_accurate(x, oracle.entropy(x), value, grad, dtype, f"{dtype} {what}")


def check_stats(live, x, dtype, what):
    """Entropy and argmax beside a loss: of its value alone, and with its gradient."""
    truth, ids = oracle.entropy(x), np.zeros(len(x), int)
    argmax = np.where(np.isnan(truth.loss), -1, x.argmax(1))
    for run in (partial(xent.sparse_ce, reduce="none"), lambda *given, **more: both(xent.sparse_ce)(*given, **more)[0]):
        with live.within(dtype):
            stats = run(live.array(x, dtype, "cpu"), ids, stats=True)[1]
            assert _dispatch.find(stats.entropy).ops.dtype(stats.entropy) == PRECISION[dtype].compute
            entropy, found = live.numpy(stats.entropy), live.numpy(stats.argmax)
        assert_accurate(x, truth, entropy, truth.logits, dtype, f"{dtype} {what}")
        np.testing.assert_array_equal(found, argmax, err_msg=what)


@pytest.mark.parametrize("dtype", DTYPES)
def test_entropy_of_all_regimes(live, dtype):
    if dtype not in live.dtypes:
        pytest.skip(f"{live.name} has no {dtype}")
    few = live.name == "jax" and dtype != "float32" and not cases.FULL  # JAX compiles each
    for classes in regimes.CLASSES[2 if few else 0 : 4]:
        x = np.concatenate(
            [regimes.batch("sparse_ce", dtype, classes).logits, rounded(leading(LEADS, classes), dtype)]
            if classes > 2
            else [regimes.batch("sparse_ce", dtype, classes).logits]
        )
        check_entropy(live, x, dtype, f"{classes} classes")
        check_stats(live, x, dtype, f"{classes} classes")


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_formula_by_automatic_differentiation(live, dtype):
    """As accurate as the derivative that the kernels write down; also where maxima are tied, far ahead, or logits are
    nearly equal, so that terms much larger than the derivative have to cancel before they meet it."""
    adapter = _dispatch.load(live.name)
    if adapter.autodiff is None:
        pytest.skip(f"{live.name} has no differentiation of its own")
    formula = partial(formulas.entropy, adapter.ops, 1, weight=None)
    compiled = live.compilers["compiled" if live.name == "jax" else "eager"]  # op by op, JAX compiles each
    tied = np.where(np.arange(10) < 4, 0.0, -np.arange(10.0) * 10)
    few = rounded(np.stack([tied, tied / 4, np.linspace(1, 1.0001, 10)]), dtype)
    for x in (regimes.batch("sparse_ce", dtype, 1000, every=2).logits, few):
        with live.within(dtype):
            given = live.array(x, dtype, "cpu")
            value, grad = map(live.numpy, compiled(partial(adapter.autodiff.value_and_grad, formula))(given))
        assert_accurate(x, oracle.entropy(x), value, grad, dtype, f"{dtype} {x.shape}")


def test_entropy_of_many_classes(live):
    x = np.concatenate([regimes.batch("sparse_ce", "float32", 33333, every=3).logits, np.zeros((1, 33333))])
    check_entropy(live, x, "float32", "33333 classes")
    check_stats(live, x, "float32", "33333 classes")
    if "float64" in live.dtypes:  # masked by its lowest number: a sum of such gaps is infinite
        x = np.append(np.full(1200, np.finfo("float64").min), [0.0, 1.0, 1.0])[None]
        check_entropy(live, x, "float64", "masked classes")
        check_stats(live, x, "float64", "masked classes")


def test_log_prob_of_leading_labels(live):
    """Also the row's own bound: relative to what is left of 0."""
    x, y = leading(LEADS), np.full(len(LEADS), 2)
    given = live.array(x, None, "cpu")
    value, grad = map(live.numpy, both(xent.log_prob)(given, y))
    want = oracle.log_prob(x, y)
    allowed = np.where(want.loss < -1e-3, 1e-6, (8 + LEADS) * 2.0**-24)
    for got in (value, live.numpy(xent.log_prob(given, y))):
        assert (np.abs(got / want.loss - 1) <= allowed).all()
    entropies = live.numpy(xent.entropy(given)) / oracle.entropy(x).loss  # without a gradient, it has a way of its own
    assert (np.abs(entropies - 1) <= np.maximum(allowed, 1e-6)).all()
    assert (np.abs(grad / want.logits - 1) <= np.maximum(allowed, 1e-6)[:, None]).all()


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_options(live, axis):
    """Against the oracle: the class axis, weights, ignored ids, a cap and a scale; NaN in what is left out."""
    data = np.random.default_rng(5)
    x = 3 * data.normal(size=(3, 4, 5))
    rows = np.delete(x.shape, axis)
    y, w = data.integers(0, 3, rows), data.uniform(0.5, 2, rows)
    w.flat[::3], y.flat[1::3] = 0, -100
    every = {}, {"softcap": 2.0}, {"logit_scale": 0.25}, {"softcap": 4.0, "logit_scale": 2.0}
    for options in every[axis::2] if live.name == "jax" else every:  # JAX compiles each
        for name, labels, more, gone in (
            ("log_prob", (y,), {"ignore_index": -100}, y == -100),
            ("entropy", (), {"sample_weight": w}, w == 0),
        ):
            given = np.where(np.expand_dims(gone, axis), np.nan, x)
            want = getattr(oracle, name)(given, *labels, axis=axis, **options, **more)
            with live.double():
                found = both(getattr(xent, name))(
                    live.array(given, "float64", "cpu"), *labels, axis=axis, **options, **more
                )
                value, grad = (live.numpy(k) for k in found)
            np.testing.assert_allclose(value, want.loss, rtol=1e-13, err_msg=f"{name} {options}")
            np.testing.assert_allclose(grad, want.logits, rtol=1e-11, atol=1e-15, err_msg=f"{name} {options}")
            assert not np.signbit(value[gone]).any()
            assert not value[gone].any()
            assert not np.moveaxis(grad, axis, -1)[gone].any()
        given, gone = np.where(np.expand_dims(y == -100, axis), np.nan, x), y == -100
        want = oracle.entropy(given, sample_weight=~gone, axis=axis, **options).loss
        with live.double():
            given, labels = live.array(given, "float64", "cpu"), np.where(y == 0, 99, y)
            _, stats = xent.sparse_ce(given, labels, axis=axis, stats=True, ignore_index=-100, invalid="nan", **options)
            entropy, argmax = live.numpy(stats.entropy), live.numpy(stats.argmax)
        np.testing.assert_allclose(entropy, np.where(y == 0, np.nan, want), rtol=1e-13, err_msg=f"stats {options}")
        np.testing.assert_array_equal(argmax, np.where(gone | (y == 0), -1, x.argmax(axis)))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("name", ["sparse_ce", "log_prob", "entropy"])
def test_16_bits_are_capped_in_float32(live, name, dtype):
    if dtype not in live.dtypes:
        pytest.skip(f"{live.name} has no {dtype}")
    x = rounded(20 * np.random.default_rng(2).normal(size=(6, 5)), dtype)
    options = {"softcap": 10.0, "logit_scale": 0.7}
    labels = () if name == "entropy" else (np.arange(6) % 5,)
    more = {"reduce": "none"} if name == "sparse_ce" else {}
    want = getattr(oracle, name)(x, *labels, **options, **more)
    value, grad = both(getattr(xent, name))(live.array(x, dtype, "cpu"), *labels, **options, **more)
    ops = _dispatch.find(grad).ops
    assert (ops.dtype(value), ops.dtype(grad)) == ("float32", dtype)
    np.testing.assert_allclose(live.numpy(value), want.loss, rtol=2e-6)
    unit = 2.0 ** (-10 if dtype == "float16" else -7)
    np.testing.assert_allclose(live.numpy(grad), want.logits, rtol=unit, atol=2.0**-24)


def test_a_cap_far_away_has_its_slope(live):
    """Where tanh rounds to 1, 1 - tanh^2 has no digit left."""
    x = np.array([[0.5, 80.0, -90.0], [1e-6, 2e-6, 0.0]], np.float32)
    want = oracle.sparse_ce(x, [0, 0], reduce="none", softcap=10.0)
    value, grad = both(xent.sparse_ce)(live.array(x, None, "cpu"), [0, 0], reduce="none", softcap=10.0)
    np.testing.assert_allclose(live.numpy(value), want.loss, rtol=1e-6)
    np.testing.assert_allclose(live.numpy(grad), want.logits, rtol=4e-6)


def test_caps_and_scales_as_large_and_small_as_they_may_be(live):
    """No product or quotient on the way leaves float32."""
    x, y = np.array([[2.0, 0.0, -3.0], [1e-3, 2e-3, 0.0]], np.float32), np.array([1, 0])
    for softcap, logit_scale in ((1e15, 1e-15), (1e-15, 1e15), (1e15, 1e15)):
        options = {"reduce": "none", "softcap": softcap, "logit_scale": logit_scale}
        want = oracle.sparse_ce(x, y, **options)
        value, grad = both(xent.sparse_ce)(live.array(x, None, "cpu"), y, **options)
        np.testing.assert_allclose(live.numpy(value), want.loss, rtol=2e-6)
        np.testing.assert_allclose(live.numpy(grad), want.logits, rtol=2e-6)


def test_scale_before_the_cap_is_a_cap_that_is_scaled(live):
    """As docs/semantics.md says: s tanh(k x / s) is k times the cap s / k."""
    x, y = np.random.default_rng(3).normal(size=(4, 5)).astype(np.float32), [0, 1, 2, 3]
    got = xent.sparse_ce(live.array(x, None, "cpu"), y, softcap=3.0 / 2.0, logit_scale=2.0)
    want = oracle.sparse_ce(3.0 * np.tanh(2.0 * np.float64(x) / 3.0), y)
    np.testing.assert_allclose(live.numpy(got), want.loss, rtol=1e-6)


def test_rows_that_have_no_entropy(live):
    """NaN in value and gradient; -inf logits are classes that are not there."""
    x = np.array([[0.0, np.nan, 1.0], [np.inf, 0.0, 1.0], [-np.inf] * 3, [0.0, 0.0, -np.inf]], np.float32)
    value, grad = (live.numpy(k) for k in both(xent.entropy)(live.array(x, None, "cpu")))
    assert np.isnan(value).tolist() == [True, True, True, False]
    assert np.isnan(grad).all(axis=1).tolist() == [True, True, True, False]
    np.testing.assert_allclose(value[3], np.log(2), rtol=1e-6)
    np.testing.assert_array_equal(grad[3], 0)
    _, stats = xent.sparse_ce(live.array(x, None, "cpu"), np.zeros(4, int), stats=True)
    np.testing.assert_allclose(live.numpy(stats.entropy), value, rtol=1e-6)
    assert live.numpy(stats.argmax).tolist() == [-1, -1, -1, 0]


def test_no_rows_and_one_class(live):
    for shape, rows in (((0, 3), (0,)), ((2, 1), (2,)), ((3,), ())):
        x = live.array(np.zeros(shape, np.float32), None, "cpu")
        value, grad = both(xent.entropy)(x)
        assert live.numpy(value).shape == rows
        np.testing.assert_allclose(live.numpy(value), np.log(shape[-1]), rtol=1e-6)
        np.testing.assert_array_equal(live.numpy(grad), np.zeros(shape))
        assert live.numpy(xent.log_prob(x, np.zeros(rows, int))).shape == rows
        _, stats = xent.sparse_ce(x, np.zeros(rows, int), stats=True)
        np.testing.assert_array_equal(live.numpy(stats.argmax), np.zeros(rows))
        np.testing.assert_allclose(live.numpy(stats.entropy), np.log(shape[-1]), rtol=1e-6)


def test_arguments_are_left_alone(live):
    values = np.random.default_rng(4).normal(size=(3, 4)).astype(np.float32)
    x, w = live.array(values, None, "cpu"), live.array(W.astype(np.float32), None, "cpu")
    both(xent.entropy)(x, sample_weight=w, softcap=2.0, logit_scale=0.5)
    both(xent.log_prob)(x, [1, 0, 3], softcap=2.0, logit_scale=0.5)
    np.testing.assert_array_equal(live.numpy(x), values)
    np.testing.assert_array_equal(live.numpy(w), W)


# ---- forward mode and batches; second derivatives are in test_second_derivatives.py

FRAMEWORKS = [pytest.param(name, marks=pytest.mark.backend(name)) for name in ("torch", "tensorflow", "jax")]


def pushed_and_batched(framework, function, x, dx):
    """The derivative along dx in forward mode, and every row's result with its gradient, mapped over the rows."""
    module = pytest.importorskip(framework, reason=f"{framework} is not installed")
    if framework == "tensorflow":
        x, dx = module.constant(x), module.constant(dx)
        with module.autodiff.ForwardAccumulator(x, dx) as forward:
            value = function(x)
        return forward.jvp(value).numpy(), *(k.numpy() for k in module.vectorized_map(both(function), x))
    x, dx = (module.tensor(k) if framework == "torch" else module.numpy.asarray(k) for k in (x, dx))
    transforms = module.func if framework == "torch" else module
    pushed = transforms.jvp(function, (x,), (dx,))[1]
    return np.asarray(pushed), *map(np.asarray, transforms.vmap(both(function))(x))


@pytest.mark.parametrize("framework", FRAMEWORKS)
@pytest.mark.parametrize("name", ["entropy", "log_prob"])
def test_forward_mode_and_batches(framework, name):
    x = leading(LEADS[::4])
    options = {"softcap": 50.0, "logit_scale": 0.5}
    labels = (np.full(len(x), 2),) if name == "log_prob" else ()
    want = getattr(oracle, name)(x, *labels, **options)

    def function(x):
        """Of all rows, or of one."""
        return getattr(xent, name)(x, *(y if len(x.shape) == 2 else y[0] for y in labels), **options)

    dx = np.random.default_rng(6).normal(size=x.shape).astype(np.float32)
    pushed, value, grad = pushed_and_batched(framework, function, x, dx)
    np.testing.assert_allclose(pushed, (want.logits * dx).sum(axis=1), rtol=2e-5)
    np.testing.assert_allclose(value, want.loss, rtol=1e-5)
    np.testing.assert_allclose(grad, want.logits, rtol=2e-5, atol=1e-37)


@pytest.mark.backend("tensorflow")
@pytest.mark.parametrize("ranks", [(None, None), ([None] * 3, [None] * 2)], ids=["ranks", "lengths"])
def test_shapes_that_a_graph_does_not_know(ranks):
    pytest.importorskip("torch", reason="torch is not installed")  # before TensorFlow
    tf = pytest.importorskip("tensorflow", reason="tensorflow is not installed")
    data = np.random.default_rng(0)
    x, y = data.normal(size=(3, 5, 2)).astype(np.float32), data.integers(0, 5, (3, 2))
    options = {"axis": 1, "softcap": 3.0, "logit_scale": 0.5}

    def both_of_them(x, y, w):
        with tf.GradientTape() as tape:
            tape.watch(x)
            found = xent.log_prob(x, y, **options), xent.entropy(x, sample_weight=w, **options)
        return *found, tape.gradient(found, x)

    of_logits, of_rows = ranks
    kinds = (of_logits, tf.float32), (of_rows, tf.int64), (of_rows, tf.float32)
    graph = tf.function(both_of_them, input_signature=[tf.TensorSpec(*kind) for kind in kinds])
    w = np.array([[1.0, 0.0], [2.0, 1.0], [0.5, 0.5]], np.float32)
    log_p, entropy, grad = graph(x, y, w)
    wants = oracle.log_prob(x, y, **options), oracle.entropy(x, sample_weight=w, **options)
    np.testing.assert_allclose(log_p, wants[0].loss, rtol=2e-6)
    np.testing.assert_allclose(entropy, wants[1].loss, rtol=2e-6)
    np.testing.assert_allclose(grad, wants[0].logits + wants[1].logits, atol=1e-6)
    with pytest.raises(tf.errors.InvalidArgumentError, match="sample_weight: expected"):
        graph(x, y, w[:2])


# ---- compiled, in a process of their own (test_compiled.py)


@pytest.mark.compiled
def test_compiled(live):
    """One program for everything."""
    x, y = leading(LEADS), np.full(len(LEADS), 2)
    w = (np.arange(len(LEADS)) % 3).astype(np.float32)
    spoiled = np.where(w[:, None] == 0, np.nan, x)
    wants = (
        oracle.entropy(x),
        oracle.log_prob(x, y),
        oracle.entropy(spoiled, sample_weight=w, softcap=30.0, logit_scale=0.5),
        oracle.sparse_ce(x, y, reduce="none", softcap=30.0, logit_scale=0.5),
    )

    def program(x, spoiled, y, w):
        capped = {"softcap": 30.0, "logit_scale": 0.5}
        return [
            both(lambda x: xent.entropy(x))(x),  # by the framework's own differentiation
            both(xent.log_prob)(x, y),
            both(xent.entropy)(spoiled, sample_weight=w, **capped),
            both(lambda x: xent.sparse_ce(x, y, reduce="none", **capped))(x),
            xent.sparse_ce(x, y, sample_weight=w, stats=True)[1][-2:],
            both(xent.sparse_ce)(x, y, sample_weight=w, stats=True)[0][1][-2:],
        ]

    for compile in cases.compilers(live):
        found = compile(program)(*(live.array(k, None, "cpu") for k in (x, spoiled, y, w)))
        found = [[live.numpy(k) for k in pair] for pair in found]
        assert_accurate(np.float64(x), wants[0], *found[0], "float32", "compiled")
        for entropy, argmax in found[4:]:
            rows = w != 0
            truth = oracle.entropy(x[rows])
            assert_accurate(np.float64(x[rows]), truth, entropy[rows], truth.logits, "float32", "compiled")
            np.testing.assert_array_equal(entropy[~rows], 0)
            np.testing.assert_array_equal(argmax, np.where(rows, 2, -1))
        for got, want, bar in zip(found[1:4], wants[1:], (6e-6, 2e-5, 2e-5), strict=True):
            np.testing.assert_allclose(got[0], want.loss, rtol=bar)
            np.testing.assert_allclose(got[1], want.logits, rtol=bar, atol=1e-37)
