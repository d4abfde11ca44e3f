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

from native_arrays import DTYPES, NOISE, Entropies

# As in test_native.py; 1024, 1025: one block of float32, and one more.
SIZES = [1, 2, 3, 15, 16, 17, 65, 1000, 1024, 1025, 33333]


@pytest.mark.parametrize("classes", SIZES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_it_is_as_accurate_as_promised(dtype, classes):
    x = regimes.batch("sparse_ce", dtype, classes, every=4 if classes > 1025 else 1).logits
    call = Entropies(dtype, x)
    h, dx = call.run()
    assert_accurate(x, oracle.entropy(x), np.float64(h), np.float64(dx), dtype, f"{dtype} {classes} classes")
    np.testing.assert_array_equal(call.run(derive=False)[0], h)
    np.testing.assert_array_equal(call.run(value=False)[1], dx)


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
    assert_accurate(x, oracle.entropy(x), *map(np.float64, Entropies(dtype, x).run()), dtype, dtype)


def test_rows_without_an_entropy():
    for size in (5, 3000):
        x = NOISE.normal(size=(5, size))
        x[0, -1], x[1, 0], x[2], x[3, :-1], x[3, -1] = np.nan, np.inf, -np.inf, -np.inf, np.nan
        h, dx = Entropies("float32", x.astype(np.float32)).run()
        np.testing.assert_array_equal(np.isnan(h), [True] * 4 + [False])
        np.testing.assert_array_equal(np.isnan(dx), np.isnan(h)[:, None] & np.ones(dx.shape, bool))


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
