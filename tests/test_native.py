"""The native kernels in their own right: numbers against the oracle and the formulas."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from xent import formulas
from xent.adapter import ABSENT, INVALID, Layout
from xent.backends.cpu import native, why_not
from xent.backends.numpy import OPS
from xent.verify import regimes, tolerance
from xent.verify.precision import rounded

if native is None:
    pytest.skip(f"native kernels: {why_not}", allow_module_level=True)

from native_arrays import DTYPES, NOISE, ONE_MORE_ISA, Elements, Rows, close, combinations, compute, loaded

# 1, 2, 3: less than a vector; 15, 16, 17: around one; 64: rows are turned up to here; 1000: one block of a sum; 33333:
# many, and a rest.
SIZES = [1, 2, 3, 15, 16, 17, 64, 65, 1000, 33333]


# ---- against the truth


def share(batch, truth, loss, grad):
    with np.errstate(over="ignore"):
        errors = tolerance.errors(batch, truth, loss, grad)
    return errors.loss_share.max(), errors.grad_share.max()


@pytest.mark.parametrize(("loss", "dtype", "classes"), combinations(("sparse_ce", "softmax_ce"), DTYPES, SIZES))
def test_rows_are_as_accurate_as_promised(loss, dtype, classes):
    """The class axis last, and in the middle."""
    batch = regimes.batch(loss, dtype, classes, every=4 if classes > 1000 else 1)
    truth, n = batch.truth(), len(batch.logits)
    for place, back in (
        (lambda k: k[:, :, None], lambda k: k[..., 0]),
        (lambda k: k.T[None], lambda k: k[0].T),
    ):
        labels = {"ids": batch.labels} if loss == "sparse_ce" else {"t": place(batch.labels)}
        rows = Rows(dtype, place(batch.logits), **labels)
        results = [(rows.forward()[0], rows.backward(np.ones(n))[0])]
        (value, *_), dx = rows.both(np.ones(n))
        results.append((value, dx))
        for value, dx in results:
            in_loss, in_grad = share(batch, truth, value.astype(np.float64), back(dx).astype(np.float64))
            assert in_loss <= 1
            assert in_grad <= 1


@pytest.mark.parametrize("classes", [1, 17, 1000])
@pytest.mark.parametrize("dtype", DTYPES)
def test_sigmoid_is_as_accurate_as_promised(dtype, classes):
    batch = regimes.batch("sigmoid_ce", dtype, classes)
    call = Elements(dtype, batch.logits, batch.labels)
    (_, loss), (dx, _) = call.forward(), call.backward()
    in_loss, in_grad = share(batch, batch.truth(), loss.astype(np.float64), dx.astype(np.float64))
    assert in_loss <= 1
    assert in_grad <= 1


def test_equal_terms_do_not_pile_up_errors():
    for c in (262144, 1_000_003):
        rows = Rows("float32", np.zeros((1, c, 1)), ids=[5])
        assert rows.forward()[0][0] == pytest.approx(np.log(c), rel=2e-7)


@pytest.mark.parametrize("inner", [1, 3])
@pytest.mark.parametrize("classes", [2, 100])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_no_more_than_rounding(dtype, classes, inner):
    """Gaps that the dtype holds exactly: what is left are the roundings of exp and of the loss, at any gap."""
    gaps = np.arange(1, 80 * 8) / 8.0
    x = np.full((len(gaps), classes, inner), -np.inf)
    x[:, 0], x[:, 1] = 0, -gaps[:, None]
    loss = Rows(dtype, x, ids=np.zeros((len(gaps), inner))).forward()[0].reshape(len(gaps), inner)
    exact = np.log1p(np.exp(-gaps.astype(np.longdouble)))
    error = np.abs(loss / exact[:, None] - 1).max()
    assert error <= 2.5 * np.finfo(dtype).epsneg


def test_an_older_maximum_far_below():
    """All earlier terms are rescaled by one factor, whose rounding error would be an error of the whole sum."""
    rng = np.random.default_rng(0)
    for lead in rng.uniform(16, 32, 20):
        x = rng.normal(size=5000)
        x[-1] = x.max() + lead
        loss = Rows("float64", x[None, :, None], ids=[4999]).forward()[0][0]
        exact = np.log1p(np.exp(x[:-1].astype(np.longdouble) - np.longdouble(x[-1])).sum())
        assert loss == pytest.approx(float(exact), rel=4e-16)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("rising", [True, False])
def test_sorted_logits(dtype, rising):
    """The maximum moves in every block."""
    x = np.linspace(-3, 3, 100_000).astype(dtype).astype(np.float64)
    x = x if rising else x[::-1]
    rows = Rows(dtype, x[None, :, None], ids=[500])
    exact = np.log(np.exp(x - 3).sum(dtype=np.longdouble)) + 3
    loss, lse, _ = rows.forward()
    tolerance = 3e-7 if dtype == "float32" else 4e-15
    assert lse[0] == pytest.approx(float(exact), rel=tolerance)
    assert loss[0] == pytest.approx(float(exact - x[500]), rel=tolerance)


# ---- against the formulas: every option


def by_formulas(dtype, x, ids, t, u, a, b, c, z=None):
    """(loss, lse, smooth), dx and dt by xent.formulas, for logits [outer, classes, inner]."""
    T = compute(dtype)
    x, t, u = (None if k is None else np.asarray(k, T) for k in (x, t, u))
    row = (x.shape[0], x.shape[2])
    a, b, c, z = (None if k is None else np.asarray(k, T).reshape(row) for k in (a, b, c, z))
    ids = None if ids is None else np.asarray(ids, np.int64).reshape(row)
    lay = Layout(1, t is None, ids is not None, True, t is None)
    with np.errstate(all="ignore"):
        results = formulas.rows(OPS, lay, x, t, u, ids)
        b = b if z is None else 2 * z * results.lse
        parts = formulas.pieces(OPS, lay, x, ids, results.m, results.s)
        dx = formulas.pull(OPS, lay, parts, x, t, u, ids, (a, b, c))
        dt = None if t is None else formulas.pull_labels(OPS, lay, parts, ids, (a,))
    return formulas_results(lay, results, ids), dx, dt


def formulas_results(lay, results, ids):
    """loss, lse, smooth, gap_sum and argmax. Without a softmax, and in masked rows, argmax is negative."""
    argmax = results.argmax
    if lay.stats:
        argmax = np.where((ids < 0)[:, None] | np.isnan(results.m), -1, argmax)
    return [None if k is None else k.ravel() for k in (*results[:3], results.gap_sum, argmax)]


@given(data=st.data())
@settings(derandomize=True, max_examples=100 if ONE_MORE_ISA else 300, deadline=None)
def test_like_the_formulas(data):
    draw = data.draw
    dtype = draw(st.sampled_from(DTYPES))
    outer, inner = draw(st.integers(0, 4)), draw(st.sampled_from([1, 1, 2, 7, 16, 33, 100]))
    classes = draw(st.sampled_from([1, 2, 3, 15, 16, 17, 63, 64, 65, 300, 1023, 1024, 1025, 2100]))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    n = outer * inner
    x = rounded(draw(st.sampled_from([1.0, 10.0, 300.0])) * rng.normal(size=(outer, classes, inner)), dtype)
    kind = draw(st.sampled_from(["plain", "ties", "impossible", "nan", "inf", "all impossible"]))
    strange = rng.random(x.shape) < draw(st.sampled_from([0.01, 0.3, 1.0]))
    if kind == "ties":
        x = np.round(x)
    elif kind == "all impossible":
        x[:] = -np.inf
    elif kind != "plain":
        x[strange] = {"impossible": -np.inf, "nan": np.nan, "inf": np.inf}[kind]
    ids = t = u = b = c = z = None
    hard, masked = draw(st.booleans()), draw(st.booleans())
    if hard or masked:
        ids = rng.integers(0, classes, n) if hard else np.zeros(n, int)
        if masked:
            marks = [ABSENT, INVALID] if hard else [ABSENT]
            ids = np.where(rng.random(n) < 0.3, rng.choice(marks, n), ids)
    if not hard:
        t = rng.random((outer, classes, inner)) * (rng.random((outer, classes, inner)) < 0.5)
    if draw(st.booleans()):
        u, c = rng.random(classes) * (rng.random(classes) < 0.8) / classes, rng.normal(size=n)
    both = draw(st.booleans())
    if draw(st.booleans()):
        b, z = (None, rng.normal(size=n)) if both else (rng.normal(size=n), None)
    a = rng.normal(size=n)
    offset = draw(st.sampled_from([0, 0, 4, 1, 8, 32]))
    rows = Rows(dtype, x, ids=ids, t=t, u=u, wide=draw(st.booleans()), offset=offset)
    if both:
        results, dx = rows.both(a, z, c, stats=hard)
        dt = None
    else:
        results = rows.forward(stats=hard)
        dx, dt = rows.backward(a, b, c, labels=not hard)
    want_results, want_dx, want_dt = by_formulas(dtype, x, ids, t, u, a, b, c, z)
    T = np.dtype(compute(dtype)).name
    finite = np.abs(np.where(np.isfinite(x), x, 0)).max(initial=1)
    weights = max(classes, 1) if t is not None else 1
    for got, want in zip((*results, rows.gap_sum), want_results[:4], strict=True):
        if want is not None:
            close(got, want, T, finite * weights)
    if hard:
        np.testing.assert_array_equal(np.maximum(rows.argmax, -1), want_results[4])
    size = max(1.0, np.abs(b if b is not None else 0.0).max(initial=0))
    if z is not None:
        size = max(size, 2 * np.nan_to_num(np.abs(z * want_results[1])).max(initial=0))
    with np.errstate(over="ignore"):
        close(dx, want_dx, dtype, size * weights * 4)
    if dt is not None:
        close(dt, want_dt, T, finite * 4)


@given(data=st.data())
@settings(derandomize=True, max_examples=80 if ONE_MORE_ISA else 200, deadline=None)
def test_sigmoid_like_the_formulas(data):
    draw = data.draw
    dtype = draw(st.sampled_from(DTYPES))
    n, c = draw(st.integers(0, 40)), draw(st.sampled_from([1, 2, 3, 16, 17, 300, 5000]))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    x = rounded(draw(st.sampled_from([1.0, 30.0])) * rng.normal(size=(n, c)), dtype)
    odd = draw(st.sampled_from([0.0, np.inf, -np.inf, np.nan]))
    x[rng.random(x.shape) < 0.05] = odd
    z = rng.choice([0.0, 1.0, 0.25], x.shape)
    e = draw(st.sampled_from([0.0, 0.1, 1.0]))
    shapes = {"none": None, "scalar": (1, 1), "class": (1, c), "row": (n, 1), "full": (n, c)}
    given = {}
    for name in ("p", "w"):
        shape = shapes[draw(st.sampled_from(list(shapes)))]
        if shape is None or not n:
            given[name] = None
            continue
        values = np.asarray(rng.random(shape) * (rng.random(shape) < 0.7), compute(dtype))
        given[name] = values, (c if shape == (n, 1) and n > 1 else 1)
    T = np.dtype(compute(dtype)).name
    p, w = (None if k is None else k[0] for k in (given["p"], given["w"]))
    absent = None if w is None else w == 0
    xs, zs = np.asarray(x, T), np.asarray(z, T)
    weight = np.ones((), T) if w is None else w
    with np.errstate(all="ignore"):
        want = formulas.sigmoid(OPS, e, xs, zs, p, absent)
        want_dx, want_dz = formulas.sigmoid_pull(OPS, e, xs, zs, p, absent, np.asarray(weight * np.asarray(0.5, T)))
        want_total = np.where(weight == 0, 0, weight * want).sum(dtype=np.float64)
    call = Elements(dtype, x, z, e, given["p"], given["w"], draw(st.sampled_from([0, 4, 1])))
    total, loss = call.forward()
    assert call.forward(write=False)[0] == total or np.isnan(total)
    dx, dz = call.backward(0.5)
    both = np.asarray(call.both(0.5)[2], np.float64)  # below the smallest normal number nothing is promised
    np.testing.assert_allclose(both, np.asarray(dx, np.float64), rtol=0, atol=float(np.finfo(T).tiny))
    np.testing.assert_array_equal(call.both(0.5)[:1], total)
    close(loss, want, T, 0)
    finite = np.abs(np.where(np.isfinite(want), want, 0)).sum()
    close(total, want_total, T, finite)
    close(dx, want_dx, dtype, 1.0)
    close(dz, want_dz, T, 1.0)


@pytest.mark.parametrize("inner", [1, 40])
@pytest.mark.parametrize("task", ["forward", "both"])
def test_masked_rows_are_not_seen(task, inner):
    """Whatever they hold; and the others do not notice."""
    x = NOISE.normal(size=(3, 50, inner))
    ids = np.full((3, inner), 7)
    ids[1] = ABSENT
    ids[2, 0] = INVALID
    for junk in (np.nan, np.inf, -np.inf):
        x[1] = junk
        rows = Rows("float32", x, ids=ids.ravel(), u=np.full(50, 0.02))
        if task == "both":
            results, dx = rows.both(np.ones(3 * inner), np.ones(3 * inner), np.ones(3 * inner))
        else:
            results, (dx, _) = rows.forward(), rows.backward(*np.ones((3, 3 * inner)))
        for k in results:
            k = k.reshape(3, inner)
            assert (k[1] == 0).all()
            assert np.isnan(k[2, 0])
            assert np.isfinite(k[0]).all()
            assert np.isfinite(k[2, 1:]).all()
        assert (dx[1] == 0).all()
        assert np.isnan(dx[2, :, 0]).all()
        assert np.isfinite(dx[0]).all()
        assert np.isfinite(dx[2, :, 1:]).all()


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_every_16_bit_number_survives(dtype):
    """Widened exactly: dt = -(x - m) where one class of probability 1 is far ahead; narrowed to the nearest."""
    bits = np.arange(65536, dtype=np.uint16)
    x = loaded(bits if dtype == "bfloat16" else bits.view(np.float16), dtype)
    x = x[np.isfinite(x)].astype(np.float64)
    rows = Rows(dtype, x[:, None, None], ids=np.zeros(len(x), int))
    _, lse, _ = rows.forward()
    np.testing.assert_array_equal(lse, x)  # log-sum-exp of one class
    values = np.float32(10.0) ** np.linspace(-9, 5, 40_001).astype(np.float32) * NOISE.choice([-1, 1], 40_001)
    values = values.astype(np.float32)
    dx, _ = Elements(dtype, np.zeros(values.shape), np.ones(values.shape), w=(values, 1)).backward(-2.0)
    with np.errstate(over="ignore"):
        if dtype == "float16":
            want = values.astype(np.float16).astype(np.float32)
        else:
            want = rounded(values.astype(np.float64), dtype).astype(np.float32)
    np.testing.assert_array_equal(dx, want)


def test_a_thread_that_flushes_subnormal_numbers():
    """XLA's and TensorFlow's threads do, and threads that they start inherit it; 8 threads make the pool start some."""
    torch = pytest.importorskip("torch")
    small = np.float32(2.0**-130)
    many, few = (Rows("float32", np.full((n, 1, 1), 2.0**-130), ids=np.zeros(n, int), threads=8) for n in (90_000, 9))
    torch.set_flush_denormal(True)
    try:
        flushes = small * np.float32(1) == 0
        found = [rows.forward()[1] for rows in (many, few)]
    finally:
        torch.set_flush_denormal(False)
    assert flushes
    for lse in found:
        np.testing.assert_array_equal(lse, small)


@pytest.mark.parametrize(
    ("dtype", "sizes"), combinations(DTYPES, [(2, 1), (10, 1), (700, 1), (5000, 1), (3, 5), (300, 40)])
)
def test_one_hot_labels_have_the_gradient_of_ids(dtype, sizes):
    """Entry by entry, where the label is far behind and where it leads by far, in whatever block of the row it is."""
    classes, inner = sizes
    x = NOISE.normal(size=(102, classes, inner))
    ids = NOISE.integers(0, classes, (102, inner))
    hot = np.arange(classes)[:, None] == ids[:, None]
    x = rounded(np.where(hot, x.max(axis=1, keepdims=True) + np.arange(-20, 82)[:, None, None], x), dtype)
    hard, soft = Rows(dtype, x, ids=ids.ravel()), Rows(dtype, x, t=hot)
    a, units = NOISE.normal(size=102 * inner), 4 * float(np.finfo(compute(dtype)).eps)
    for call in (lambda rows: rows.both(a)[1], lambda rows: (rows.forward(), rows.backward(a)[0])[1]):
        want, got = call(hard), call(soft)
        assert (want[hot] != 0).all() or dtype == "float16"
        np.testing.assert_array_equal(got[~hot & (want == 0)], 0)
        if compute(dtype) == got.dtype and dtype in ("float32", "float64"):
            np.testing.assert_allclose(got, want, rtol=units, atol=0)
        else:
            close(got, want, dtype, 0)


@pytest.mark.parametrize("classes", [3, 700, 5000])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("soft", [False, True])
def test_a_mean_is_that_of_the_rows(dtype, classes, soft):
    x = rounded(NOISE.normal(size=(40, classes, 1)), dtype)
    labels = {"t": NOISE.random(x.shape)} if soft else {"ids": NOISE.integers(0, classes, 40)}
    rows = Rows(dtype, x, **labels)
    value, dx = rows.mean(64.0)
    (loss, *_), want = rows.both(np.full(40, 1 / 64))
    np.testing.assert_allclose(value, loss.sum(dtype=np.float64) / 64, rtol=1e-15)
    np.testing.assert_array_equal(dx, want)


def test_a_mean_of_many_rows():
    n = 1_000_003
    value, _ = Rows("float64", np.zeros((n, 2, 1)), ids=np.zeros(n, int)).mean(float(n))
    # a loss, 7 additions in a lane, 3 of the lanes, the division: each rounds
    np.testing.assert_allclose(value, np.log(2), rtol=12 * 2.0**-53)


def test_an_infinite_mean():
    x = np.zeros((9, 3, 1))
    x[4, 1] = -np.inf
    assert Rows("float32", x, ids=np.ones(9, int)).mean(9.0)[0] == np.inf


# By how much the last block raises the maximum: earlier exponentials are kept and scaled, or computed again.
@pytest.mark.parametrize("spike", [0, 1, 20, 41, 42, 60, 87, 95, 500])
@pytest.mark.parametrize("dtype", DTYPES)
def test_exponentials_that_are_kept(dtype, spike):
    x = NOISE.normal(size=(3, 9000, 1))
    x[1, :2100] = -np.inf
    x[:2, 8500] = x[:2].max(axis=1) + spike
    x = rounded(x, dtype)
    labels = [8500, 7, 0]
    rows = Rows(dtype, x, ids=np.array(labels))
    gap = x[..., 0] - x[..., 0].max(axis=1, keepdims=True)
    want = np.exp(gap)
    others = [row.sum() - row[y] for row, y in zip(want, labels, strict=True)]
    others[0] = np.delete(want[0], labels[0]).sum()  # the maximum itself: not as a difference
    want /= want.sum(axis=1, keepdims=True)
    want[range(3), labels] = -np.array(others) / np.exp(gap).sum(axis=1)
    T, eps = np.finfo(compute(dtype)), 2.0**-8 if dtype == "bfloat16" else np.finfo(dtype).eps
    least = np.finfo(np.float16).smallest_subnormal if dtype == "float16" else 2 * T.tiny  # about there an exp is 0
    allowed = np.abs(want) * (eps + T.eps * (4 - np.where(gap == -np.inf, 0, gap))) + least
    allowed[range(3), labels] += 9000 * T.tiny
    both = rows.both(np.ones(3))[1]
    rows.forward()
    for got in (both, rows.backward(np.ones(3))[0]):
        assert (np.abs(got[..., 0] - want) <= allowed).all()


@pytest.mark.parametrize("classes", [3000, 140_000])
@pytest.mark.parametrize("dtype", DTYPES)
def test_where_exponentials_are_kept_makes_no_difference(dtype, classes):
    """In the gradient's memory, in the thread's own where the gradient takes the logits' place, or nowhere."""
    rows = Rows(dtype, rounded(NOISE.normal(size=(3, classes, 1)), dtype), ids=np.array([0, 1, classes - 1]))
    want = rows.both(np.ones(3))[1]
    np.testing.assert_array_equal(rows.both(np.ones(3), in_place=True)[1], want)


@pytest.mark.parametrize("end", [np.inf, np.nan])
def test_a_block_is_no_number(end):
    x = NOISE.normal(size=(1, 9000, 1))
    x[0, 8500] = end
    assert np.isnan(Rows("float32", x, ids=np.zeros(1, int)).both(np.ones(1))[1]).all()
