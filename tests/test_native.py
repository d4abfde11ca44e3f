"""The native kernels in their own right: numbers against the oracle and the formulas, memory, threads, forks."""

import os
import subprocess
import sys
import threading

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

CODES = {"float32": native.F32, "float64": native.F64, "float16": native.F16, "bfloat16": native.BF16}
DTYPES = list(CODES)
# 1, 2, 3: less than a vector; 15, 16, 17: around one; 64: rows are turned up to here; 1000: one block of a sum; 33333:
# many, and a rest.
SIZES = [1, 2, 3, 15, 16, 17, 64, 65, 1000, 33333]
CANARY = 0xA5
NOISE = np.random.default_rng(0)


# ---- the kernels on NumPy arrays


def compute(dtype):
    return np.float64 if dtype == "float64" else np.float32


def stored(x, dtype):
    """x, which the dtype holds exactly, as it lies in memory."""
    if dtype == "bfloat16":
        return (np.asarray(x, np.float32).view(np.uint32) >> 16).astype(np.uint16)
    with np.errstate(over="ignore"):
        return np.asarray(x, dtype)


def loaded(x, dtype):
    if dtype == "bfloat16":
        return (x.astype(np.uint32) << 16).view(np.float32)
    return x.astype(compute(dtype))


class Memory:
    """Buffers at any offset, with canaries around them."""

    def __init__(self, offset=0, unit=64):
        self.offset, self.unit, self.buffers = offset, unit, []

    def new(self, shape, dtype, value=None):
        dtype = np.dtype(dtype)
        size = int(np.prod(shape)) * dtype.itemsize
        raw = np.full(size + 4 * self.unit, CANARY, np.uint8)
        start = 2 * self.unit - raw.ctypes.data % self.unit + self.offset
        self.buffers.append((raw, start, size))
        array = np.ndarray(shape, dtype, raw.data, start)
        if value is not None:
            array[...] = value
        return array

    def check(self):
        for raw, start, size in self.buffers:
            assert (raw[:start] == CANARY).all(), "written before a buffer"
            assert (raw[start + size :] == CANARY).all(), "written past a buffer"


def address(array):
    return 0 if array is None else array.ctypes.data


class Rows:
    """Arguments of the rows kernels; x is [outer, classes, inner] in float64, exact in the dtype."""

    def __init__(self, dtype, x, *, ids=None, t=None, u=None, wide=True, offset=0, threads=0):
        self.dtype, self.shape, self.memory, self.threads = dtype, x.shape, Memory(offset), threads
        self.T, self.X = compute(dtype), np.uint16 if dtype == "bfloat16" else np.dtype(dtype)
        self.rows = x.shape[0] * x.shape[2]
        self.x = self.put(stored(x, dtype))
        self.t = None if t is None else self.put(np.asarray(t, self.T))
        self.u = None if u is None else self.put(np.asarray(u, self.T))
        self.ids = None if ids is None else self.put(np.asarray(ids, np.int64 if wide else np.int32))
        self.sizes = CODES[dtype], *x.shape, wide
        self.given = self.x, self.t, self.u, self.ids

    def put(self, value):
        return self.memory.new(value.shape, value.dtype, value)

    def vector(self, value=None):
        return self.memory.new(self.rows, self.T, value)

    def run(self, kernel, *arrays, sizes=()):
        found = kernel(*self.sizes, *sizes, self.threads, *map(address, (*self.given, *arrays)))
        self.memory.check()
        return found

    def forward(self, lse=True):
        self.m, self.s, loss = self.vector(), self.vector(), self.vector()
        lse = self.vector() if lse else None
        smooth = None if self.u is None else self.vector()
        self.run(native.rows_forward, self.m, self.s, loss, lse, smooth)
        return loss, lse, smooth

    def mean(self, n):
        dx = self.memory.new(self.shape, self.X)
        value = self.run(native.mean_both, dx, sizes=(n,))
        return value, loaded(dx, self.dtype)

    def backward(self, a, b=None, c=None, labels=False):
        a, b, c = (None if k is None else self.vector(k) for k in (a, b, c))
        dx = self.memory.new(self.shape, self.X)
        dt = self.memory.new(self.shape, self.T) if labels else None
        self.run(native.rows_backward, self.m, self.s, a, b, c, dx, dt)
        return loaded(dx, self.dtype), dt

    def both(self, a, z=None, c=None):
        a, z, c = (None if k is None else self.vector(k) for k in (a, z, c))
        results = loss, lse, smooth, m, s = [self.vector() for _ in range(5)]
        dx = self.memory.new(self.shape, self.X)
        if self.u is None:
            results[2] = smooth = None
        self.run(native.rows_both, a, z, c, loss, lse, smooth, m, s, dx)
        self.m, self.s = m, s
        return (loss, lse, smooth), loaded(dx, self.dtype)


class Elements:
    """Arguments of the sigmoid kernels; p and w are (values, inner) or None."""

    def __init__(self, dtype, x, z, e=0.0, p=None, w=None, offset=0, threads=0):
        self.dtype, self.shape, self.memory, self.threads = dtype, x.shape, Memory(offset), threads
        self.T, self.X = compute(dtype), np.uint16 if dtype == "bfloat16" else np.dtype(dtype)
        self.x, self.z = self.put(stored(x, dtype)), self.put(np.asarray(z, self.T))
        self.sizes, self.given = (CODES[dtype], x.size, e), (self.x, self.z)
        for values, inner in (k or (None, 1) for k in (p, w)):
            array = None if values is None else self.put(np.asarray(values, self.T))
            self.sizes += 1 if array is None else array.size, inner
            self.given += (array,)

    put, run = Rows.put, Rows.run

    def forward(self, write=True):
        loss = self.memory.new(self.shape, self.T) if write else None
        total = self.run(native.sigmoid_forward, loss)
        return total, loss

    def both(self, scale):
        loss, dx = self.memory.new(self.shape, self.T), self.memory.new(self.shape, self.X)
        total = self.run(native.sigmoid_both, loss, dx, sizes=(scale,))
        return total, loss, loaded(dx, self.dtype)

    def backward(self, scale=1.0):
        dx, dz = self.memory.new(self.shape, self.X), self.memory.new(self.shape, self.T)
        self.run(native.sigmoid_backward, dx, dz, sizes=(scale,))
        return loaded(dx, self.dtype), dz


class Products:
    """Arguments of the products' kernels; what they compute, from numbers that are exact in the dtype."""

    def __init__(self, dtype, rows, features, classes, offset=0, threads=0):
        self.memory, self.threads = Memory(offset), threads
        self.sizes, self.T = (CODES[dtype], rows, features, classes), compute(dtype)
        rng = np.random.default_rng(rows + features + classes)
        typed = [
            stored(rng.normal(size=size).astype(np.float16 if dtype == "float16" else self.T), dtype)
            for size in ((rows, features), (classes, features))
        ]
        self.h, self.w = (loaded(k, dtype).astype(float) for k in typed)
        self.dx = rng.normal(size=(rows, classes)).astype(self.T)
        self.places = dict(zip("hwx", map(self.put, (*typed, self.dx)), strict=True))

    put = Rows.put

    def run(self, kernel, operands, out):
        operands = [address(self.places[k]) for k in operands]
        kernel(*self.sizes, self.threads, *operands, address(out))
        self.memory.check()
        return out

    def project(self):
        out = self.memory.new((self.sizes[1], self.sizes[3]), self.T)
        return self.run(native.project, "hw", out), (self.h, self.w.T)

    def pull(self):
        out = self.memory.new(self.sizes[1:3], self.T)
        return self.run(native.pull, "xw", out), (self.dx.astype(float), self.w)

    def accumulate(self):
        out = self.memory.new((self.sizes[3], self.sizes[2]), self.T, 0)
        return self.run(native.accumulate, "xh", out), (self.dx.T.astype(float), self.h)

    def all(self):
        return self.project(), self.pull(), self.accumulate()


# ---- against the truth


def share(batch, loss, grad):
    with np.errstate(over="ignore"):
        errors = tolerance.errors(batch, batch.truth(), loss, grad)
    return errors.loss_share.max(), errors.grad_share.max()


@pytest.mark.parametrize("middle", [False, True], ids=["last", "middle"])
@pytest.mark.parametrize("classes", SIZES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("loss", ["sparse_ce", "softmax_ce"])
def test_rows_are_as_accurate_as_promised(loss, dtype, classes, middle):
    batch = regimes.batch(loss, dtype, classes, every=3 if classes > 1000 else 1)
    n = len(batch.logits)
    place = (lambda k: k.T[None]) if middle else (lambda k: k[:, :, None])
    labels = {"ids": batch.labels} if loss == "sparse_ce" else {"t": place(batch.labels)}
    rows = Rows(dtype, place(batch.logits), **labels)
    back = (lambda k: k[0].T) if middle else (lambda k: k[..., 0])
    results = [(rows.forward()[0], rows.backward(np.ones(n))[0])]
    (value, *_), dx = rows.both(np.ones(n))
    results.append((value, dx))
    for value, dx in results:
        in_loss, in_grad = share(batch, value.astype(np.float64), back(dx).astype(np.float64))
        assert in_loss <= 1
        assert in_grad <= 1


@pytest.mark.parametrize("classes", [1, 17, 1000])
@pytest.mark.parametrize("dtype", DTYPES)
def test_sigmoid_is_as_accurate_as_promised(dtype, classes):
    batch = regimes.batch("sigmoid_ce", dtype, classes)
    call = Elements(dtype, batch.logits, batch.labels)
    (_, loss), (dx, _) = call.forward(), call.backward()
    in_loss, in_grad = share(batch, loss.astype(np.float64), dx.astype(np.float64))
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
    """All that was added up relative to it moves at once, so what its distance rounds off would be a common error."""
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


def close(got, want, dtype, scale=1.0):
    unit = {"float64": 2.0**-53, "float32": 2.0**-24, "float16": 2.0**-11, "bfloat16": 2.0**-8}[dtype]
    tiny = 2.0**-1022 if dtype == "float64" else 2.0**-125  # below, results are rounded to 0
    np.testing.assert_allclose(got, want, rtol=40 * unit, atol=max(40 * unit * scale, tiny))


def by_formulas(dtype, x, ids, t, u, a, b, c, z=None):
    """(loss, lse, smooth), dx and dt by xent.formulas, for logits [outer, classes, inner]."""
    T = compute(dtype)
    x, t, u = (None if k is None else np.asarray(k, T) for k in (x, t, u))
    row = (x.shape[0], x.shape[2])
    a, b, c, z = (None if k is None else np.asarray(k, T).reshape(row) for k in (a, b, c, z))
    ids = None if ids is None else np.asarray(ids, np.int64).reshape(row)
    lay = Layout(1, t is None, ids is not None, True)
    with np.errstate(all="ignore"):
        results = formulas.rows(OPS, lay, x, t, u, ids)
        b = b if z is None else 2 * z * results.lse
        parts = formulas.pieces(OPS, lay, x, ids, results.m, results.s)
        dx = formulas.pull(OPS, lay, parts, x, t, u, ids, (a, b, c))
        dt = None if t is None else formulas.pull_labels(OPS, lay, parts, ids, (a,))
    return [None if k is None else k.ravel() for k in results[:4]], dx, dt


@given(data=st.data())
@settings(derandomize=True, max_examples=300, deadline=None)
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
        results, dx = rows.both(a, z, c)
        dt = None
    else:
        results = rows.forward()
        dx, dt = rows.backward(a, b, c, labels=not hard)
    want_results, want_dx, want_dt = by_formulas(dtype, x, ids, t, u, a, b, c, z)
    T = np.dtype(compute(dtype)).name
    finite = np.abs(np.where(np.isfinite(x), x, 0)).max(initial=1)
    weights = max(classes, 1) if t is not None else 1
    for got, want in zip(results, want_results[:3], strict=True):
        if want is not None:
            close(got, want, T, finite * weights)
    size = max(1.0, np.abs(b if b is not None else 0.0).max(initial=0))
    if z is not None:
        size = max(size, 2 * np.nan_to_num(np.abs(z * want_results[1])).max(initial=0))
    with np.errstate(over="ignore"):
        close(dx, want_dx, dtype, size * weights * 4)
    if dt is not None:
        close(dt, want_dt, T, finite * 4)


@given(data=st.data())
@settings(derandomize=True, max_examples=200, deadline=None)
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
    """XLA's and TensorFlow's do; the kernels' threads that these start would, too, and 8 are more than there were."""
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


@pytest.mark.parametrize(("classes", "inner"), [(2, 1), (10, 1), (700, 1), (5000, 1), (3, 5), (300, 40)])
@pytest.mark.parametrize("dtype", DTYPES)
def test_one_hot_labels_have_the_gradient_of_ids(dtype, classes, inner):
    """Entry by entry, where the label is far behind and where it leads by far, in whatever block of the row it is."""
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


# How far above all else the maximum is that comes last: what was visited before is kept and scaled, or computed anew.
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


@pytest.mark.parametrize("end", [np.inf, np.nan])
def test_a_block_is_no_number(end):
    x = NOISE.normal(size=(1, 9000, 1))
    x[0, 8500] = end
    assert np.isnan(Rows("float32", x, ids=np.zeros(1, int)).both(np.ones(1))[1]).all()


# ---- what cannot be is refused, before anything is read or written

ROOM = np.zeros(64)
HERE = address(ROOM)
LAYOUT = {"dtype": 0, "outer": 2, "classes": 3, "inner": 1, "wide": True, "threads": 1, "x": HERE, "t": 0, "u": HERE}
LAYOUT |= {"ids": HERE}
GOOD = {
    "rows_forward": LAYOUT | dict.fromkeys(("m", "s", "loss", "lse", "smooth"), HERE),
    "rows_backward": LAYOUT | dict.fromkeys(("m", "s", "a", "b", "c", "dx"), HERE) | {"dt": 0},
    "rows_both": LAYOUT | dict.fromkeys(("a", "z", "c", "loss", "lse", "smooth", "m", "s", "dx"), HERE),
    "sigmoid_forward": {"dtype": 0, "n": 6, "e": 0.0, "p_len": 6, "p_inner": 1, "w_len": 1, "w_inner": 1, "threads": 1}
    | dict.fromkeys(("x", "z", "p", "w", "loss"), HERE),
    "project": {"dtype": 0, "rows": 2, "features": 3, "classes": 4, "threads": 1, "h": HERE, "w": HERE, "x": HERE},
}
IMPOSSIBLE = [
    *(("rows_forward", {name: value}) for name in ("dtype", "outer", "classes", "inner") for value in (-1, -(2**31))),
    *(("rows_forward", {"dtype": dtype}) for dtype in (4, 2**31 - 1)),
    *(("rows_forward", {"classes": 0, "outer": outer}) for outer in (0, 2)),
    *(("rows_forward", sizes) for sizes in ({"outer": 2**40, "inner": 2**40}, {"classes": 2**62})),
    *(("rows_forward", {name: 0}) for name in ("x", "ids", "m", "s", "loss")),
    *(("rows_backward", {name: 0}) for name in ("x", "ids", "m", "s", "a", "u")),  # c is of no use without u
    ("rows_backward", {"dt": HERE}),  # labels are hard
    *(("rows_both", {name: 0}) for name in ("x", "ids", "a", "dx")),
    *(("sigmoid_forward", {name: value}) for name in ("n", "dtype") for value in (-1, -(2**31))),
    *(("sigmoid_forward", {name: 0}) for name in ("x", "z", "p_len", "p_inner", "w_len", "w_inner")),
    ("sigmoid_forward", {"n": 2**62}),
    *(("project", {name: value}) for name in ("rows", "features", "classes") for value in (-1, 2**60)),
    *(("project", {name: 0}) for name in ("features", "classes", "h", "w", "x")),
]


def without_addresses(value):
    return str(value).replace(str(HERE), "HERE")  # a worker of pytest-xdist has its own


@pytest.mark.parametrize(("kernel", "bad"), IMPOSSIBLE, ids=without_addresses)
def test_impossible_arguments(kernel, bad):
    with pytest.raises(ValueError, match="xent: "):
        getattr(native, kernel)(*(GOOD[kernel] | bad).values())


@pytest.mark.parametrize("sizes", [{"outer": 0}, {"inner": 0}, {"outer": 0, "inner": 0}], ids=str)
def test_nothing_to_do(sizes):
    """Addresses of nothing may be null, and what is there is left alone."""
    before = ROOM.copy()
    for kernel in ("rows_forward", "rows_backward", "rows_both"):
        arguments = GOOD[kernel] | sizes
        getattr(native, kernel)(*arguments.values())
        getattr(native, kernel)(*(arguments | {"x": 0, "ids": 0, "m": 0}).values())
    assert native.sigmoid_forward(*(GOOD["sigmoid_forward"] | {"n": 0, "x": 0}).values()) == 0
    native.project(*(GOOD["project"] | {"rows": 0, "h": 0}).values())
    np.testing.assert_array_equal(ROOM, before)


@pytest.mark.parametrize("inner", [1, 3])
@pytest.mark.parametrize("classes", [5, 700])
@pytest.mark.parametrize("wide", [True, False])
def test_ids_past_the_classes_are_not_looked_up(classes, inner, wide):
    """Whoever calls has checked them; another thread may have changed them since."""
    x = NOISE.normal(size=(2, classes, inner))
    ids = np.zeros((2, inner), int)
    ids[0, -1] = 2**31 - 1
    rows = Rows("float32", x, ids=ids.ravel(), wide=wide)
    results, dx = rows.both(np.ones(2 * inner))
    (loss, *_), (backward, _) = rows.forward(), rows.backward(np.ones(2 * inner))
    for k in (results[0], loss):
        np.testing.assert_array_equal(np.isnan(k.reshape(2, inner)), ids > 0)
    for k in (dx, backward):
        np.testing.assert_array_equal(np.isnan(k).all(axis=1), ids > 0)
        assert np.isnan(k).any(axis=1).sum() == 1


# ---- memory and threads


def big(threads, inner=1):
    rng = np.random.default_rng(1)
    x = rng.normal(size=(1000, 1000, inner))  # enough for several threads
    rows = Rows("float32", x, ids=rng.integers(0, 1000, 1000 * inner), u=rng.random(1000), threads=threads)
    ones = np.ones(1000 * inner)
    forward = [*rows.forward(), rows.backward(ones, ones, ones)[0]]
    results, dx = rows.both(ones, ones, ones)
    elements = Elements("float32", x, rng.random(x.shape), threads=threads)
    return [*forward, *results, dx, *elements.forward(), *elements.backward()]


@pytest.mark.parametrize("inner", [1, 3])
def test_results_do_not_depend_on_the_thread_count(inner):
    one = big(1, inner)
    for threads in (2, 3, 8):
        for a, b in zip(one, big(threads, inner), strict=True):
            np.testing.assert_array_equal(a, b)


# Around a vector, a tile, what a tile adds at a time (1024) and what pull holds of a weight (256 x 512)
PRODUCTS = [(1, 1, 1), (5, 3, 7), (12, 16, 24), (13, 33, 25), (65, 100, 257), (31, 1100, 600), (1030, 40, 50)]


@pytest.mark.parametrize("offset", [0, 1])
@pytest.mark.parametrize("sizes", PRODUCTS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_products(dtype, sizes, offset):
    for got, (left, right) in Products(dtype, *sizes, offset=offset).all():
        rounding = (left.shape[1] + 1) * np.finfo(got.dtype).eps * (np.abs(left) @ np.abs(right))
        assert (np.abs(got - left @ right) <= rounding).all()


def test_accumulate_adds():
    case = Products("float32", 40, 50, 60)
    out = case.memory.new((60, 50), np.float32, 1000)
    got = case.run(native.accumulate, "xh", out)
    np.testing.assert_allclose(got, 1000 + case.dx.T.astype(float) @ case.h, rtol=1e-6)


def test_products_do_not_mix_rows_or_classes():
    case = Products("float32", 20, 50, 60)
    case.places["x"][3, 5] = np.inf
    case.places["h"][4, 6] = np.nan
    (x, _), (dh, _), (dw, _) = case.all()  # project writes no operand
    assert np.isfinite(np.delete(x, 4, 0)).all()
    assert np.isnan(x[4]).all()
    assert np.isfinite(np.delete(dh, 3, 0)).all()
    assert np.isfinite(np.delete(np.delete(dw, 5, 0), 6, 1)).all()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_products_do_not_depend_on_the_thread_count(dtype):
    one = Products(dtype, 150, 1100, 600, threads=1).all()
    for threads in (2, 3, 8):
        for (a, _), (b, _) in zip(one, Products(dtype, 150, 1100, 600, threads=threads).all(), strict=True):
            np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("offset", [0, 4, 16, 2, 1])
@pytest.mark.parametrize("classes", [1000, 1001, 3001])
def test_large_output_at_any_address(offset, classes):
    """More than what is written past the caches; canaries are in Memory."""
    x = NOISE.normal(size=(2500, classes, 1))
    ids = NOISE.integers(0, classes, 2500)
    a = np.ones(2500)
    rows = Rows("float32", x, ids=ids, offset=offset)
    got = rows.both(a)[1]
    few = Rows("float32", x[:100], ids=ids[:100])
    np.testing.assert_array_equal(got[:100], few.both(a[:100])[1])
    assert np.abs(got.sum(axis=1)).max() < 1e-5
    middle = Rows("float32", x.reshape(1, 2500, classes), ids=np.zeros(classes, int), offset=offset)
    got = middle.both(np.ones(classes))[1]
    assert np.abs(got.sum(axis=1)).max() < 1e-5


@pytest.mark.parametrize("dtype", DTYPES)
def test_large_output_just_ahead_of_the_logits(dtype):
    """Within a page of 4 KB, that is, where loads going up would run into stores: such rows are written downwards."""
    x = NOISE.normal(size=(300, 20001, 1)).astype(np.float16)
    rows = Rows(dtype, loaded(stored(x, dtype), dtype), ids=NOISE.integers(0, 20001, 300))
    a = np.ones(300)

    def written(apart):
        rows.memory = Memory((address(rows.x) + apart) % 4096, unit=4096)
        return rows.both(a)[1], rows.backward(a)[0]

    want = written(2048)
    for apart in (16, 48, 320):
        for got, there in zip(written(apart), want, strict=True):
            np.testing.assert_array_equal(got, there)


@pytest.mark.parametrize("classes", [1, 10, 64])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("soft", [False, True])
def test_a_row_of_few_classes_does_not_depend_on_its_neighbours(classes, dtype, soft):
    """Tiles of rows are turned; the last is not full, and a masked or an impossible row is nobody else's business."""
    n = 1100
    x = rounded(NOISE.normal(size=(n, classes, 1)), dtype)
    x[7] = np.nan
    ids = NOISE.integers(0, classes, n)
    ids[5::9], ids[6::9] = ABSENT, INVALID
    t, u = NOISE.random(x.shape) if soft else None, NOISE.random(classes)
    vectors = NOISE.normal(size=(3, n))

    def everything(rows):
        one = Rows(dtype, x[rows], ids=ids[rows], t=t if t is None else t[rows], u=u)
        a, b, c = vectors[:, rows]
        results, dx = one.both(a, b, c)
        return [*results, dx, *one.forward(), *(k for k in one.backward(a, b, c, labels=soft) if k is not None)]

    for rows in (slice(0, 20), slice(505, 520), slice(n - 3, n)):
        for got, want in zip(everything(slice(n)), everything(rows), strict=True):
            close(got[rows], want, dtype)


def test_many_python_threads_at_once():
    want = big(0)
    wrong = []

    def work():
        for _ in range(3):
            for a, b in zip(want, big(0), strict=True):
                if not np.array_equal(a, b):
                    wrong.append((a, b))

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


FORK = """
import os, sys, threading, warnings
import numpy as np
from xent.backends.cpu import native
warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12 warns of forks beside threads: that is the point

x, ids = np.random.default_rng(0).normal(size=(1000, 1000)).astype("f"), np.arange(1000)

def loss():
    m, s, loss = np.empty((3, 1000), "f")
    at = lambda k: k.ctypes.data
    native.rows_forward(0, 1000, 1000, 1, True, 2, at(x), 0, 0, at(ids), at(m), at(s), at(loss), 0, 0)
    return loss

want = loss()
busy = sys.argv[1] == "busy"
stop = threading.Event()
def work():
    while not stop.is_set():
        loss()
workers = [threading.Thread(target=work) for _ in range(2)] if busy else []
for worker in workers:
    worker.start()
for _ in range(30 if busy else 3):
    child = os.fork()
    if child == 0:
        os._exit(0 if all(np.array_equal(loss(), want) for _ in range(3)) else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert np.array_equal(loss(), want)
stop.set()
for worker in workers:
    worker.join()
print("done")
"""


def python(*arguments, **environment):
    return subprocess.run(
        [sys.executable, *arguments],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
@pytest.mark.parametrize("how", ["idle", "busy"])
def test_fork(how):
    """A child forked after use, also while other threads are inside a kernel, computes on threads of its own."""
    run = python("-c", FORK, how, XENT_NUM_THREADS="2")
    assert run.stdout == "done\n", run.stderr


BIND = "os.sched_setaffinity(0, {min(usable)})"
LOAD = "from xent.backends.cpu import native"


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="no affinity on this system")
@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="one processor")
@pytest.mark.parametrize(
    "setup",
    [(LOAD, BIND), (LOAD, "import torch"), ("import torch", LOAD)],
    ids=["by anybody", "by torch, afterwards", "by torch, before"],
)
def test_threads_of_a_bound_one(setup):
    """OpenMP, PyTorch's too, binds the thread that loads it; the kernels' own are not to crowd onto its processor."""
    if "import torch" in setup:
        pytest.importorskip("torch")
    code = """
assert len(os.sched_getaffinity(0)) == 1
known = set(os.listdir("/proc/self/task"))
rows = 4096 + 200 * len(usable)  # work for all of them
xent.sparse_ce(np.zeros((rows, 1000), np.float32), np.zeros(rows, int))
new = set(os.listdir("/proc/self/task")) - known
homes = sorted(sorted(os.sched_getaffinity(int(task))) for task in new)
print(homes == [[one] for one in sorted(usable)], len(homes) > 0 and all(set(home) == usable for home in homes))
"""
    first = "import os, numpy as np, xent", "usable = os.sched_getaffinity(0)"
    for threads, want in (("", "True False\n"), (str(len(os.sched_getaffinity(0)) + 1), "False True\n")):
        run = python("-c", "\n".join((*first, *setup)) + code, OMP_PROC_BIND="true", XENT_NUM_THREADS=threads)
        assert run.stdout == want, run.stderr


def test_exit_while_a_kernel_runs():
    work = "threading.Thread(target=lambda: [loss() for _ in range(9999)], daemon=True).start()"
    code = FORK.split("want =")[0] + work
    run = python("-c", code + "\nloss()\nprint('done')")
    assert (run.returncode, run.stdout) == (0, "done\n"), run.stderr


@pytest.mark.skipif("XENT_ISA" in os.environ, reason="runs inside the runs that it starts")
@pytest.mark.parametrize("isa", native.isas()[1:])
def test_the_other_instruction_sets(isa):
    """All of the above once more, but what is about threads and processes alone."""
    others = "not bound and not fork and not exit"
    run = python("-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-k", others, __file__, XENT_ISA=isa)
    assert run.returncode == 0, run.stdout[-4000:]
    assert python("-c", "from xent.backends.cpu import native; print(native.isa())", XENT_ISA=isa).stdout == isa + "\n"


def test_settings():
    assert native.isa() in native.isas()
    code = "from xent.backends.cpu import native; print(native.max_threads())"
    assert python("-c", code, XENT_NUM_THREADS="3").stdout == "3\n"
    code = "from xent.backends import cpu; print(cpu.native, cpu.why_not)"
    assert python("-c", code, XENT_NATIVE="0").stdout == "None switched off by XENT_NATIVE=0\n"
    assert python("-c", code, XENT_NATIVE="0", XENT_ISA="nonsense").stdout.startswith("None switched off")


MISSING = next((isa for isa in ("avx512", "avx2") if isa not in native.isas()), "neon")


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        *(
            ("XENT_ISA", isa, f"{' or '.join(native.isas())} (what this processor has)")
            for isa in ("nonsense", MISSING)
        ),
        *(("XENT_NUM_THREADS", n, "a number of threads, 1 or more") for n in ("all", "0", "-1", "2x", "1.5")),
        ("XENT_NATIVE", "off", "0 or 1"),
    ],
)
def test_settings_that_cannot_be(name, value, expected):
    """Never another setting than the one that was asked for, at every call."""
    code = """
import numpy as np, xent
for _ in range(2):
    try:
        print(xent.sparse_ce(np.zeros((2, 3)), [0, 1]))
    except ValueError as error:
        print(error)
"""
    run = python("-c", code, **{name: value})
    assert run.stdout == 2 * f"{name}: expected {expected}, got {value!r}\n", run.stderr


def test_settings_are_read_once():
    code = "import os; from xent.backends.cpu import native; os.environ['XENT_ISA'] = 'nonsense'; print(native.isa())"
    assert python("-c", code, XENT_ISA="").stdout == native.isas()[0] + "\n"
