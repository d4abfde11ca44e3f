"""Every backend, loss, option, dtype and regime: value and gradient against the oracle."""

import contextlib
import functools
from dataclasses import replace
from typing import Any, NamedTuple

import cases
import numpy as np
import pytest
import xent
from cases import needs_dtype
from programs import cover
from xent import _dispatch, formulas
from xent.adapter import Layout, Slopes
from xent.verify import frameworks, regimes, tolerance
from xent.verify.precision import DTYPES, PRECISION
from xent.verify.regimes import CLASSES, LOSSES

# ---- running one


def labels_of(live, y, dtype):
    return live.array(y, None if y.dtype.kind in "iub" else PRECISION[dtype].compute, "cpu")


def check_options(live, chosen, dtype, compiler=None, subtests=None):
    """Value, gradient, dtype, shape and device of many calls, which a compiler gets as one program."""
    subtest = subtests.test if subtests else contextlib.nullcontext
    with live.within(dtype):
        asked = [asked_for(live, case, dtype, arrays=compiler is not None) for case in chosen]

        def program(arrays):
            return [call.both(x, y) for call, (x, y) in zip(asked, arrays, strict=True)]

        results = (compiler or (lambda f: f))(program)([(call.x, call.labels) for call in asked])
        for call, (loss, grad) in zip(asked, results, strict=True):
            with subtest(f"{call.case.name} {dtype}"):
                check_result(live, call, loss, grad, dtype)


def check_result(live, call, loss, grad, dtype):
    ops = _dispatch.find(call.x).ops
    assert ops.dtype(loss) == PRECISION[dtype].compute
    assert ops.dtype(grad) == dtype
    assert ops.device(grad) == ops.device(call.x)
    loss, grad = live.numpy(loss), live.numpy(grad)
    assert loss.shape == call.want.loss.shape
    cases.assert_close(loss, call.want.loss, dtype, f"{call.case} {dtype} loss", result=True)
    cases.assert_close(grad, call.want.logits, dtype, f"{call.case} {dtype} gradient")


class Call(NamedTuple):
    """A framework's arrays, the function of them, and the oracle's answer."""

    case: cases.Case
    x: Any
    labels: Any
    both: Any
    want: Any


def asked_for(live, case, dtype, arrays):
    options = cases.held(case.options, dtype)
    x, y = cases.arguments(case.loss, dtype, options)
    want = cases.truth(case.loss, x, y, options)
    if arrays:  # NumPy arrays that a compiled torch.func.grad closes over trip torch's own guards
        compute = PRECISION[dtype].compute
        options = {k: live.array(v, compute, "cpu") if k in cases.ROUNDED else v for k, v in options.items()}
    both = functools.partial(xent.value_and_grad(getattr(xent, case.loss)), **options)
    return Call(case, live.array(x, dtype, "cpu"), labels_of(live, y, dtype), both, want)


def check_regimes(live, loss, dtype, classes, compiler=None, function=None):
    """All regimes in one call; the worst share of what is allowed has to be at most 1."""
    batch, truth = solved(loss, dtype, classes)
    with live.within(dtype):
        x, y = live.array(batch.logits, dtype, "cpu"), labels_of(live, batch.labels, dtype)
        run = (compiler or (lambda f: f))(lambda x, y: function(x, y) if function else default(loss, x, y))
        value, grad = run(x, y)
        value, grad = live.numpy(value), live.numpy(grad)
    errors = tolerance.errors(batch, truth, value, grad)
    for name, share in (("value", errors.loss_share), ("gradient", errors.grad_share)):
        worst = int(share.argmax())
        assert share[worst] <= 1, f"{batch.name}: {name} in {batch.regimes[worst]} at {share[worst]:.2f} of the limit"


@functools.cache
def solved(loss, dtype, classes):
    """Of many classes, whose truth takes seconds, a quarter of each regime's rows, or one. --full: all."""
    every = 1 if classes <= 1000 or cases.FULL else 4 if classes < 100_000 else 16
    batch = regimes.batch(loss, dtype, classes, every=every)
    return batch, batch.truth()


def default(loss, x, y):
    return xent.value_and_grad(getattr(xent, loss))(x, y, reduce="none")


# ---- eager


@pytest.mark.parametrize("reduce", cases.REDUCES)
@pytest.mark.parametrize("loss", LOSSES)
def test_options_in_float64(live, loss, reduce, subtests):
    every = cases.unless_compiled(live, cases.cases(loss))
    chosen = [case for case in every if case.options["reduce"] == reduce]
    check_options(live, chosen, "float64", subtests=subtests)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("loss", LOSSES)
def test_options_in_other_dtypes(live, loss, dtype, subtests):
    needs_dtype(live, dtype)
    chosen = cases.few(loss) if live.name == "jax" else cases.singles(loss, "mean")  # JAX compiles each
    chosen = chosen if dtype == "float32" else cases.first_on_jax(live, chosen)
    check_options(live, chosen, dtype, subtests=subtests)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("loss", LOSSES)
def test_regimes(live, loss, dtype):
    needs_dtype(live, dtype)
    for classes in CLASSES[:4]:
        check_regimes(live, loss, dtype, classes)


@pytest.mark.parametrize(
    ("loss", "classes"),
    [
        ("sparse_ce", 262144),
        ("softmax_ce", 33333),
        pytest.param("sparse_ce", 33333, marks=pytest.mark.full),
        pytest.param("softmax_ce", 262144, marks=pytest.mark.full),
    ],
)
def test_many_classes(live, loss, classes):
    check_regimes(live, loss, "float32", classes)


def test_million_classes(live):
    """Equal terms, whose rounding errors add up where a sum is one long chain."""
    classes = 1_000_003
    x = np.zeros((3, classes), np.float32)
    x[:, 0] = 5.3, 9.1, 20.7
    for axis, logits in ((1, x), (0, x.T)):
        loss = live.numpy(xent.sparse_ce(live.array(logits, "float32", "cpu"), [0, 0, 0], axis=axis, reduce="none"))
        want = np.log1p((classes - 1) * np.exp(-np.float64(x[:, 0])))
        np.testing.assert_allclose(loss, want, rtol=1e-6)


def test_many_rows(live):
    """A mean over a million equal losses: the sum over examples is blocked as well."""
    x = np.zeros((1_000_003, 2), np.float32)
    x[:, 0] = 0.3
    loss = live.numpy(xent.sparse_ce(live.array(x, "float32", "cpu"), np.zeros(len(x), int), reduce="mean"))
    np.testing.assert_allclose(loss, np.log1p(np.exp(-np.float64(np.float32(0.3)))), rtol=1e-6)


@pytest.mark.parametrize("hard", [True, False])
def test_statistics_of_rows(live, hard):
    """Both kernels keep what shards of the class axis are put together from: m, s of all other classes, gap_sum."""
    values = np.random.default_rng(2).normal(size=(4, 7, 3)).astype(np.float32)
    x = live.array(values, "float32", "cpu")
    adapter = _dispatch.find(x)
    ids = adapter.ops.asarray(np.full((4, 3), 2 if hard else 0, adapter.ops.index_dtype), x)
    targets = None if hard else live.array(np.full(values.shape, 1 / 7, np.float32), "float32", "cpu")
    given = Layout(1, hard, masked=True, lse=True, stats=hard), x, targets, None, ids
    with_gradient, _ = adapter.softmax.rows_value_and_grad(*given, Slopes(1.0, 0.5))
    top = values.max(1, keepdims=True)
    gap = top - np.float64(values)
    others = np.exp(-gap).sum(1, keepdims=True) - 1
    for results in (adapter.softmax.rows(*given), with_gradient):
        np.testing.assert_array_equal(live.numpy(results.m), top)
        np.testing.assert_allclose(live.numpy(results.s), others, rtol=1e-6)
        if not hard:
            assert results.gap_sum is results.argmax is None
            continue
        np.testing.assert_allclose(live.numpy(results.gap_sum), (np.exp(-gap) * gap).sum(1, keepdims=True), rtol=1e-6)
        np.testing.assert_array_equal(live.numpy(results.argmax), values.argmax(1, keepdims=True))
        assert adapter.ops.dtype(results.argmax) == adapter.ops.index_dtype


# ---- compiled, in a process of their own (test_compiled.py)


@pytest.mark.compiled
@pytest.mark.parametrize("loss", LOSSES)
def test_compiled_options(live, loss, subtests):
    for compile, chosen in cases.shares(cases.compilers(live, code=False), cases.few(loss)):
        check_options(live, chosen, "float32", compile, subtests)


@pytest.mark.compiled
@pytest.mark.parametrize(("dtype", "loss"), cover(DTYPES, LOSSES, each=1))
def test_compiled_regimes(live, loss, dtype):
    for compile in cases.compilers(live):
        check_regimes(live, loss, dtype, 1000, compile)


@pytest.mark.compiled
def test_compiled_many_classes(live):
    for compile in cases.compilers(live, code=False):
        check_regimes(live, "sparse_ce", "float32", 262144, compile)


# ---- the matrix itself: adapters that are wrong must fail it


def with_kernel(adapter, both):
    return replace(adapter, softmax=replace(adapter.softmax, rows_value_and_grad=both))


def off(factor):
    """Kernels whose loss is wrong by a factor."""

    def wrap(adapter):
        def both(*args):
            results, dx = adapter.softmax.rows_value_and_grad(*args)
            return results._replace(nll=results.nll * factor), dx

        return with_kernel(adapter, both)

    return wrap


def bent_gradient(adapter):
    """One entry of the gradient is off by 1e-4 of itself."""

    def both(*args):
        results, dx = adapter.softmax.rows_value_and_grad(*args)
        dx.reshape(-1)[dx.size // 2] *= 1 + 1e-4
        return results, dx

    return with_kernel(adapter, both)


def no_mask(adapter):
    """Masked rows are computed like any other."""

    def both(layout, x, t, u, ids, slopes):
        ids = None if ids is None else np.maximum(ids, 0)
        return adapter.softmax.rows_value_and_grad(layout._replace(masked=False), x, t, u, ids, slopes)

    return with_kernel(adapter, both)


def wrong_size(adapter):
    """The mean divides by twice as many."""
    return replace(adapter, ops=replace(adapter.ops, size=lambda x: 2 * np.size(x)))


def textbook(adapter):
    """logsumexp(x) - x_y, and p - 1: fine for easy logits, no digit right for confident ones."""

    def top(x, axis):
        m = x.max(axis, keepdims=True)
        return m, np.exp(x - m).sum(axis, keepdims=True) - 1

    ops = replace(adapter.ops, top=top)
    return replace(adapter, ops=ops, softmax=formulas.softmax_kernels(ops))


WRONG = {
    "value off by 1e-4": (off(1 + 1e-4), "options"),
    "value off by 3e-6": (off(1 + 3e-6), "regimes"),
    "gradient entry off by 1e-4": (bent_gradient, "regimes"),
    "forgets the mask": (no_mask, "options"),
    "wrong denominator": (wrong_size, "options"),
    "textbook formula": (textbook, "regimes"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_adapters_fail(name, monkeypatch):
    wrong, matrix = WRONG[name]
    live = frameworks.load("numpy")

    def run():
        if matrix == "options":
            check_options(live, cases.cases("sparse_ce"), "float32")
        else:
            check_regimes(live, "sparse_ce", "float32", 10)

    run()
    monkeypatch.setitem(_dispatch._by_type, np.ndarray, wrong(_dispatch.load("numpy")))
    with pytest.raises(AssertionError):
        run()
