"""The native kernel of the entropy: against the oracle, whatever the rows hold, in memory whose ends are watched."""

import numpy as np
import pytest
from entropy_bound import assert_accurate
from xent import oracle
from xent.backends.cpu import native, why_not
from xent.verify import regimes
from xent.verify.precision import rounded

if native is None:
    pytest.skip(f"native kernels: {why_not}", allow_module_level=True)

from native_arrays import DTYPES, NOISE, Entropies, Rows, combinations


def statistics(dtype, x):
    """The entropies and argmax that the losses' kernels give, of classes side by side and of rows beside each other."""
    ids = np.zeros(len(x), int)
    for wide, logits in enumerate((x[:, :, None], x.T[None])):
        rows = Rows(dtype, logits, ids=ids, wide=bool(wide))
        rows.forward(stats=True)
        yield np.float64(rows.entropy()), rows.argmax
        rows.both(np.ones(len(x)), stats=True)
        yield np.float64(rows.entropy()), rows.argmax


def check_statistics(dtype, x, truth, dx, what):
    """dx: a derivative that is right."""
    for h, argmax in statistics(dtype, x):
        assert_accurate(x, truth, h, dx, dtype, what)
        known = ~np.isnan(truth.loss)
        np.testing.assert_array_equal(argmax[known], x.argmax(1)[known], err_msg=what)
        assert (argmax[~known] == -1).all()


# As in test_native.py; 1024, 1025: one block of float32, and one more.
SIZES = [1, 2, 3, 15, 16, 17, 65, 1000, 1024, 1025, 33333]


@pytest.mark.parametrize(("dtype", "classes"), combinations(DTYPES, SIZES))
def test_it_is_as_accurate_as_promised(dtype, classes):
    x = regimes.batch("sparse_ce", dtype, classes, every=4 if classes > 1025 else 1).logits
    call = Entropies(dtype, x)
    h, dx = call.run()
    truth, dx, what = oracle.entropy(x), np.float64(dx), f"{dtype} {classes} classes"
    assert_accurate(x, truth, np.float64(h), dx, dtype, what)
    check_statistics(dtype, x, truth, dx, what)
    np.testing.assert_array_equal(call.run(derive=False)[0], h)
    np.testing.assert_array_equal(np.float64(call.run(value=False)[1]), dx)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_maxima_that_rise(dtype):
    """A new maximum in every block, or in some; ties across blocks; blocks of nothing but -inf before and after."""
    x = NOISE.normal(size=(6, 5000))
    x[1] = np.sort(3 * x[1])
    x[2] = np.sort(200 * x[2])
    x[3, ::1100] = 9.0
    x[4, :2048], x[4, 4096:] = -np.inf, -np.inf
    x[5] = np.where(np.arange(5000) < 4500, -60.0, 20.0)
    x = rounded(x, dtype)
    truth, (h, dx) = oracle.entropy(x), map(np.float64, Entropies(dtype, x).run())
    assert_accurate(x, truth, h, dx, dtype, dtype)
    check_statistics(dtype, x, truth, dx, dtype)


def test_rows_without_an_entropy():
    for size in (5, 3000):
        x = NOISE.normal(size=(5, size))
        x[0, -1], x[1, 0], x[2], x[3, :-1], x[3, -1] = np.nan, np.inf, -np.inf, -np.inf, np.nan
        h, dx = Entropies("float32", x.astype(np.float32)).run()
        np.testing.assert_array_equal(np.isnan(h), [True] * 4 + [False])
        np.testing.assert_array_equal(np.isnan(dx), np.isnan(h)[:, None] & np.ones(dx.shape, bool))
        for entropy, argmax in statistics("float32", x.astype(np.float32).astype(float)):
            np.testing.assert_array_equal(np.isnan(entropy), np.isnan(h))
            np.testing.assert_array_equal(argmax, np.where(np.isnan(h), -1, x.argmax(1)))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("offset", [0, 2, 4, 40])
def test_weights_and_any_place_in_memory(dtype, offset):
    """Rows of weight 0 are not read; the others' derivatives are multiplied by the weight, and h is not."""
    x, w = rounded(NOISE.normal(size=(4, 77)), dtype), np.array([0.5, 0.0, -2.0, 1.0])
    want = oracle.entropy(x, sample_weight=w)
    spoiled = np.where(w[:, None] == 0, np.nan, x)
    h, dx = Entropies(dtype, spoiled, w, offset).run()
    np.testing.assert_allclose(w * h, want.loss, rtol=1e-6)
    unit = {"float16": 2.0**-10, "bfloat16": 2.0**-7}.get(dtype, 1e-6)
    np.testing.assert_allclose(dx, want.logits, rtol=unit, atol=1e-7)
    assert h[1] == 0
    assert not dx[1].any()


def test_threads_do_not_matter():
    x = NOISE.normal(size=(1000, 1000)).astype(np.float32)
    first = Entropies("float32", x, threads=1).run()
    for threads in (2, 3):
        for one, other in zip(first, Entropies("float32", x, threads=threads).run(), strict=True):
            np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("dtype", DTYPES)
def test_statistics_change_no_bits(dtype):
    """Rows side by side, turned and beside each other, of one block and of several, whose maxima rise."""
    for shape in ((9, 33, 1), (5, 5000, 1), (2, 300, 21)):
        x = rounded(np.sort(NOISE.normal(size=shape) * 9, 1), dtype)
        n = shape[0] * shape[2]
        ids, u, a = NOISE.integers(-2, shape[1], n), NOISE.random(shape[1]), NOISE.normal(size=n)
        for wide in (True, False):
            plain, more = (Rows(dtype, x, ids=ids, u=u, wide=wide) for _ in range(2))
            loss, dx = zip(plain.both(a, a, a), more.both(a, a, a, stats=True), strict=True)
            for one, other in (dx, *zip(*loss, strict=True), (plain.m, more.m), (plain.s, more.s)):
                np.testing.assert_array_equal(one, other)
            for one, other in zip(plain.forward(), more.forward(stats=True), strict=True):
                np.testing.assert_array_equal(one, other)
