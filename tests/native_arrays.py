"""The native kernels on NumPy arrays, in memory whose ends are watched."""

import itertools
import os

import numpy as np
from xent.backends.cpu import native

CODES = {"float32": native.F32, "float64": native.F64, "float16": native.F16, "bfloat16": native.BF16}
DTYPES = list(CODES)
CANARY = 0xA5
NOISE = np.random.default_rng(0)
ONE_MORE_ISA = "XENT_ISA" in os.environ  # the tests have run on the best of this processor, or will


def combinations(*values):
    """All; on one more instruction set every second, where any two values meet as well."""
    every = itertools.product(*map(enumerate, values))
    numbered = [tuple(zip(*places, strict=True)) for places in every]
    return [chosen for numbers, chosen in numbered if not (ONE_MORE_ISA and sum(numbers) % 2)]


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

    def for_stats(self, stats):
        """Memory for gap_sum and argmax, or None for both."""
        self.gap_sum = self.vector() if stats else None
        self.argmax = self.memory.new(self.rows, self.ids.dtype) if stats else None
        return self.gap_sum, self.argmax

    def entropy(self):
        with np.errstate(all="ignore"):
            return np.log1p(self.s) + self.gap_sum / (1 + self.s)

    def forward(self, lse=True, stats=False):
        self.m, self.s, loss = self.vector(), self.vector(), self.vector()
        lse = self.vector() if lse else None
        smooth = None if self.u is None else self.vector()
        self.run(native.rows_forward, self.m, self.s, loss, lse, smooth, *self.for_stats(stats))
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

    def both(self, a, z=None, c=None, in_place=False, stats=False):
        a, z, c = (None if k is None else self.vector(k) for k in (a, z, c))
        results = loss, lse, smooth, m, s = [self.vector() for _ in range(5)]
        dx = self.x if in_place else self.memory.new(self.shape, self.X)
        if self.u is None:
            results[2] = smooth = None
        self.run(native.rows_both, a, z, c, loss, lse, smooth, m, s, *self.for_stats(stats), dx)
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


class Entropies:
    """Arguments of the entropy kernel; x is [rows, classes] in float64, exact in the dtype."""

    def __init__(self, dtype, x, w=None, offset=0, threads=0):
        self.dtype, self.shape, self.memory, self.threads = dtype, x.shape, Memory(offset), threads
        self.T, self.X = compute(dtype), np.uint16 if dtype == "bfloat16" else np.dtype(dtype)
        self.x = self.put(stored(x, dtype))
        self.w = None if w is None else self.put(np.asarray(w, self.T))

    put = Rows.put

    def run(self, value=True, derive=True):
        h = self.memory.new(self.shape[:1], self.T) if value else None
        dx = self.memory.new(self.shape, self.X) if derive else None
        native.entropy(CODES[self.dtype], *self.shape, self.threads, *map(address, (self.x, self.w, h, dx)))
        self.memory.check()
        return h, None if dx is None else loaded(dx, self.dtype)


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


def close(got, want, dtype, scale=1.0):
    unit = {"float64": 2.0**-53, "float32": 2.0**-24, "float16": 2.0**-11, "bfloat16": 2.0**-8}[dtype]
    tiny = 2.0**-1022 if dtype == "float64" else 2.0**-125  # below, results are rounded to 0
    np.testing.assert_allclose(got, want, rtol=40 * unit, atol=max(40 * unit * scale, tiny))
