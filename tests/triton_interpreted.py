"""The Triton kernels on CPU tensors, in Triton's interpreter, which has to be chosen before Triton is imported:
test_triton.py runs this file, in a process of its own, with TRITON_INTERPRET=1."""

import functools
import itertools
import types
from dataclasses import replace

import cases
import numpy as np
import pytest
import test_matrix
import torch
import triton
import triton.language as tl
import xent
from programs import cover
from triton.runtime import interpreter
from xent import formulas, oracle
from xent.adapter import ABSENT, INVALID, Layout, Slopes
from xent.backends import triton as kernels_on_cuda
from xent.backends.torch import ADAPTER
from xent.backends.torch import native as adapter
from xent.verify import frameworks, regimes, tolerance
from xent.verify.precision import PRECISION, rounded

calls = kernels_on_cuda.load()
TRITON = calls.Kernels(adapter.OPS, adapter.dense, adapter.new)
# As it is on a device; and with tiles so small that a few classes are already cut into parts.
TILES = {"whole": {}, "cut": {"TILE": 16, "SMALL": 4, "PART": 8, "BESIDE": 8, "ELEMENTS": 32}}
DTYPES = ("float32", "float64", "float16", "bfloat16")
LIVE = frameworks.load("torch")


patched = set()


def patch_once(function, patch=interpreter._patch_lang):
    """The interpreter exchanges all of Triton's language whenever one function calls another: most of its time."""
    modules = frozenset(id(k) for k in function.__globals__.values() if k is tl or k is tl.core)
    if modules not in patched:
        patched.add(modules)
        patch(function)
    return types.SimpleNamespace(restore=lambda: None)


interpreter._patch_lang = patch_once


@pytest.fixture(params=TILES)
def tiles(request, monkeypatch):
    for name, value in TILES[request.param].items():
        monkeypatch.setattr(calls, name, value)
    return request.param


@pytest.fixture(autouse=True)
def counts(monkeypatch):
    """The adapter takes these kernels for CPU tensors; how often each is launched."""
    found = dict.fromkeys(("statistics", "merge", "gradient", "elements"), 0)

    class Counted:
        def __init__(self, name):
            self.name, self.kernel = name, getattr(calls.kernels, name)

        def __getitem__(self, grid):
            found[self.name] += 1
            return self.kernel[grid]

    monkeypatch.setattr(calls, "kernels", types.SimpleNamespace(**{name: Counted(name) for name in found}))
    monkeypatch.setattr(adapter, "ON_CPU", TRITON)
    return found


# ---- the matrix


@pytest.mark.parametrize("loss", cases.TAKES)
def test_options(loss, tiles, counts):
    chosen = cases.cases(loss) if tiles == "whole" else cases.few(loss)
    test_matrix.check_options(LIVE, chosen, "float64")
    if loss != "sigmoid_ce":
        assert counts["statistics"] >= len(chosen)
        assert (counts["merge"] > 0) == (tiles == "cut")


@pytest.mark.parametrize(("dtype", "loss"), cover(DTYPES[:1] + DTYPES[2:], tuple(cases.TAKES), each=1))
def test_options_in_other_dtypes(loss, dtype):
    test_matrix.check_options(LIVE, cases.singles(loss, "mean"), dtype)


@pytest.mark.parametrize(("dtype", "loss"), cover(DTYPES, tuple(cases.TAKES), each=1))
def test_regimes(dtype, loss):
    for classes in (1, 10, 1000):
        for function in (None, by_autograd(loss)) if classes == 10 else in_turn(loss):
            test_matrix.check_regimes(LIVE, loss, dtype, classes, function=function)


@pytest.mark.parametrize("tiles", ["cut"], indirect=True)
@pytest.mark.parametrize("loss", ["sparse_ce", "softmax_ce"])
def test_regimes_in_parts(loss, tiles):
    for function in in_turn(loss):
        test_matrix.check_regimes(LIVE, loss, "float32", 21, function=function)


def by_autograd(loss):
    """Statistics that are saved, and the derivative that starts from them."""

    def run(x, y):
        x = x.clone().requires_grad_()
        value = getattr(xent, loss)(x, y, reduce="none")
        return value.detach(), torch.autograd.grad(value.sum(), x)[0]

    return run


def in_turn(loss):
    """`check_regimes`'s own function of ids, autograd of distributions; --full: both of both."""
    both = [None, by_autograd(loss)]
    return both if cases.FULL else both[loss == "softmax_ce" :][:1]


@pytest.mark.parametrize("loss", ["sparse_ce", "softmax_ce"])
def test_many_classes(loss):
    """More than a tile holds."""
    batch = regimes.batch(loss, "float32", 33333, every=8)
    y = torch.tensor(batch.labels) if loss == "sparse_ce" else torch.tensor(batch.labels).float()
    for run in in_turn(loss):
        run = run or functools.partial(test_matrix.default, loss)
        value, grad = run(torch.tensor(batch.logits).float(), y)
        errors = tolerance.errors(batch, batch.truth(), value.double().numpy(), grad.double().numpy())
        assert errors.loss_share.max() <= 1
        assert errors.grad_share.max() <= 1


@pytest.mark.parametrize("axis", [pytest.param(0, marks=pytest.mark.full), 1])
def test_million_classes(axis):
    x = np.zeros((1, 1_000_003), np.float32)
    x[:, 0] = 9.1
    loss = xent.sparse_ce(torch.tensor(x if axis else x.T), [0], axis=axis, reduce="none")
    np.testing.assert_allclose(loss, np.log1p((x.shape[1] - 1) * np.exp(-np.float64(x[:, 0]))), rtol=1e-6)


# ---- whatever rows hold


@pytest.mark.parametrize(
    ("dtype", "tiles"),
    [*((k, "whole") for k in DTYPES), pytest.param("float64", "cut", marks=pytest.mark.full), ("bfloat16", "cut")],
    indirect=["tiles"],
)
def test_like_the_formulas(dtype, tiles):
    """Forward, backward and both; ids or distributions, masked or not, smoothed or not; class axes anywhere. Cut, every
    second of these, where any two meet as well."""
    rng = np.random.default_rng(DTYPES.index(dtype))
    wide = getattr(torch, PRECISION[dtype].compute)
    shapes = itertools.cycle([((7, 21), 1), ((2, 11, 3), 1), ((9, 8), 0)])
    every = itertools.product((True, False), repeat=3)
    chosen = every if tiles == "whole" or cases.FULL else (k for k in every if sum(k) % 2)
    for hard, masked, smooth in chosen:
        shape, axis = next(shapes)
        x = strange(rng, shape, axis)
        x = torch.tensor(x).to(getattr(torch, dtype))
        per_row = x.select(axis, 0).shape
        ids = rng.integers(0, shape[axis], per_row) * hard
        if masked:
            marks = [ABSENT, INVALID] if hard else [ABSENT]
            ids = np.where(rng.random(per_row) < 0.3, rng.choice(marks, per_row), ids)
        t = None if hard else torch.tensor(rng.random(shape) * (rng.random(shape) < 0.5), dtype=wide)
        u = torch.tensor(rng.random(shape[axis]) * (rng.random(shape[axis]) < 0.8), dtype=wide) if smooth else None
        a, b, c = torch.tensor(rng.normal(size=(3, *per_row)), dtype=wide)
        given = Layout(axis, hard, masked, True, hard), x, t, u, torch.tensor(ids) if hard or masked else None
        check(given, (a, b, c if smooth else None), dtype)


def strange(rng, shape, axis):
    """Logits of which every second row holds ties, impossible classes, none but those, NaN, or infinity."""
    x = np.moveaxis(10 * rng.normal(size=shape), axis, -1)
    for row, kind in zip(x.reshape(-1, shape[axis])[::2], itertools.cycle(range(5)), strict=False):
        some = rng.random(len(row)) < 0.2
        some[rng.integers(len(row))] = True
        if kind == 0:
            row[:] = np.round(row / 10)
        else:
            row[some if kind != 2 else slice(None)] = (-np.inf, -np.inf, np.nan, np.inf)[kind - 1]
    return np.moveaxis(x, -1, axis)


def check(given, slopes, dtype):
    lay, x, *rest = given
    before, wide = x.clone(), x.to(getattr(torch, PRECISION[dtype].compute))
    results = known(lay, rest[-1], formulas.rows(adapter.OPS, lay, wide, *rest))
    parts = formulas.pieces(adapter.OPS, lay, wide, rest[-1], results.m, results.s)
    a, _, c = slopes
    dx = formulas.pull(adapter.OPS, lay, parts, wide, *rest, slopes)
    dt = None if lay.hard else formulas.pull_labels(adapter.OPS, lay, parts, rest[-1], (a,))
    got = TRITON.rows(*given)
    own = got.m, got.s
    close(known(lay, rest[-1], got), results, "float64" if dtype == "float64" else "float32", x.shape[lay.axis])
    for wanted in ((True, not lay.hard), (not lay.hard, True)) if not lay.hard else ((True, False),):
        found = TRITON.rows_backward(*given, own, slopes, wanted)
        expected = [k if there else None for k, there in zip((dx, dt), wanted, strict=True)]
        close(found[:1], expected[:1], dtype, 50)
        close(found[1:], expected[1:], "float64" if dtype == "float64" else "float32", x.shape[lay.axis])
    with_z = Slopes(a, torch.full_like(a, 0.3), c)
    both, slope = TRITON.rows_value_and_grad(*given, with_z)
    close(known(lay, rest[-1], both), results, "float64" if dtype == "float64" else "float32", x.shape[lay.axis])
    want = formulas.rows_value_and_grad(adapter.OPS, lay, wide, *rest, with_z)[1]
    size = torch.nan_to_num(results[1], posinf=0, neginf=0).abs().max().item()
    close((slope,), (want,), dtype, 50 * (1 + size))
    memory = torch.full((x.numel() + 64,), 1e4, dtype=x.dtype)  # nothing reads or writes it beyond x
    over = memory[32:-32].view(x.shape).copy_(x)
    replace(TRITON, in_place=True).rows_value_and_grad(lay, over, *rest, with_z)
    assert torch.equal(over.contiguous().view(torch.uint8), slope.view(torch.uint8))
    assert (memory[:32] == memory[0]).all()
    assert (memory[-32:] == memory[0]).all()
    assert torch.equal(x.view(torch.uint8), before.view(torch.uint8)), "the caller's logits"


def known(lay, ids, results):
    """The results with -1 where argmax is of any value: in masked rows, and in those without a softmax."""
    if not lay.stats:
        return results
    unknown = (ids < 0).unsqueeze(lay.axis) | results.m.isnan()
    return results._replace(argmax=results.argmax.masked_fill(unknown, -1))


def close(got, want, dtype, scale):
    unit = {"float64": 2.0**-53, "float32": 2.0**-24, "float16": 2.0**-11, "bfloat16": 2.0**-8}[dtype]
    for g, w in zip(got, want, strict=True):
        assert (g is None) == (w is None)
        if g is not None:
            np.testing.assert_allclose(g.double(), w.double(), rtol=40 * unit, atol=40 * unit * scale)


def test_masked_rows_are_not_seen(tiles):
    x = np.random.default_rng(1).normal(size=(3, 50)).astype(np.float32)
    want = xent.value_and_grad(xent.sparse_ce)(torch.tensor(x), [7, -100, -100], ignore_index=-100)
    for junk in (np.inf, -np.inf, np.nan):
        x[1] = junk
        x[2, 3] = np.nan
        loss, grad = xent.value_and_grad(xent.sparse_ce)(torch.tensor(x), [7, -100, -100], ignore_index=-100)
        assert loss == want[0]
        assert torch.equal(grad, want[1])
        assert not grad[1:].any()
    value = xent.sparse_ce(torch.tensor(x), torch.tensor([7, 50, 2**32]), invalid="nan", reduce="none")
    assert value.isnan().tolist() == [False, True, True]


def test_one_hot_labels_have_the_gradient_of_ids(tiles):
    """Entry by entry, also where the label leads by so far that its probability rounds to 1."""
    x = torch.tensor(np.random.default_rng(3).normal(size=(4, 21)), dtype=torch.float32)
    ids = torch.tensor([0, 20, 7, 9])
    hot = torch.nn.functional.one_hot(ids, 21)
    x = torch.where(hot > 0, torch.tensor([[3.0], [20.0], [60.0], [-20.0]]), x)
    for run in (test_matrix.default, lambda loss, *given: by_autograd(loss)(*given)):
        (_, got), (_, want) = run("softmax_ce", x, hot.float()), run("sparse_ce", x, ids)
        np.testing.assert_allclose(got, want, rtol=4 * 2.0**-23)


def test_no_rows():
    x = torch.zeros(0, 3, requires_grad=True)
    xent.sparse_ce(x, torch.zeros(0, dtype=torch.int64)).backward()
    assert x.grad.shape == (0, 3)
    assert xent.sigmoid_ce(x, torch.zeros(0, 3)) == 0


def test_memory_of_any_layout(tiles):
    x = np.random.default_rng(2).normal(size=(6, 5, 4)).astype(np.float32)
    y = np.random.default_rng(2).integers(0, 5, (6, 4))
    want = oracle.sparse_ce(x, y, axis=1)
    for tensor in (torch.tensor(x).mT.contiguous().mT, torch.tensor(np.repeat(x, 2, 1))[:, ::2]):
        loss, grad = xent.value_and_grad(xent.sparse_ce)(tensor, y, axis=1)
        np.testing.assert_allclose(loss, want.loss, rtol=1e-6)
        np.testing.assert_allclose(grad, want.logits, rtol=1e-5, atol=1e-7)


# ---- sigmoid


PATTERNS = {"none": None, "scalar": (), "classes": (7,), "rows": (9, 1), "full": (9, 7)}


@pytest.mark.parametrize("tiles", ["cut"], indirect=True)
@pytest.mark.parametrize("dtype", DTYPES)
def test_sigmoid_like_the_formulas(dtype, tiles):
    rng = np.random.default_rng(4)
    wide = getattr(torch, PRECISION[dtype].compute)
    x = 20 * rng.normal(size=(9, 7))
    x[0, :3] = np.inf, -np.inf, np.nan
    x = torch.tensor(x).to(getattr(torch, dtype))
    z = torch.tensor(rng.choice([0.0, 1.0, 0.25], (9, 7)), dtype=wide)
    g = torch.tensor(0.3, dtype=wide)
    pairs = itertools.product(PATTERNS.values(), repeat=2)
    tried = list(zip(pairs, itertools.cycle((0.0, 0.1, 1.0)), strict=False))
    for (p, w), e in tried if dtype == "float32" or cases.FULL else tried[:: len(PATTERNS) + 1] + tried[1::7]:
        p, w = (None if k is None else torch.tensor(rng.random(k) * (rng.random(k) < 0.7), dtype=wide) for k in (p, w))
        absent = None if w is None else w == 0
        weight = torch.ones((), dtype=wide) if w is None else w
        loss = formulas.sigmoid(adapter.OPS, e, x.to(wide), z, p, absent)
        dx, dz = formulas.sigmoid_pull(adapter.OPS, e, x.to(wide), z, p, absent, g * weight)
        name = "float64" if dtype == "float64" else "float32"
        close((TRITON.sigmoid(e, x, z, p, w, True),), (loss,), name, 1)
        close((TRITON.sigmoid(e, x, z, p, w, False),), ((weight * loss).sum(),), name, 1000)
        got = TRITON.sigmoid_backward(e, x, z, p, w, g, (True, True))
        close(got[:1], (dx,), dtype, 1)
        close(got[1:], (dz,), name, 40)
        both = TRITON.sigmoid_value_and_grad(e, x, z, p, w, 0.3, True)
        close(both[:1], (weight * loss,), name, 1)
        close(both[1:], (dx,), dtype, 1)


# ---- arithmetic


@triton.jit
def functions(d, s, exp, log1p, exp_of: tl.constexpr, log1p_of: tl.constexpr, T: tl.constexpr, N: tl.constexpr):
    i = tl.arange(0, N)
    tl.store(exp + i, exp_of(tl.load(d + i), T))
    tl.store(log1p + i, log1p_of(tl.load(s + i), T))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_functions(dtype):
    """Within 2 units in the last place over the whole range; the interpreter's own 2^y and log are within one."""
    from xent.backends.triton import arithmetic

    kind, n = np.dtype(dtype), 1 << 16
    d = -np.linspace(0, 87 if dtype == "float32" else 700, n).astype(kind)
    s = np.geomspace(1e-30, 1e30, n).astype(kind)
    exp, log1p = torch.zeros(n, dtype=getattr(torch, dtype)), torch.zeros(n, dtype=getattr(torch, dtype))
    functions[(1,)](
        torch.tensor(d), torch.tensor(s), exp, log1p, arithmetic.exp_of, arithmetic.log1p, calls.KINDS[dtype], n
    )
    for got, want in ((exp, np.exp(d.astype(np.longdouble))), (log1p, np.log1p(s.astype(np.longdouble)))):
        assert np.abs(got.numpy() / want - 1).max() <= 4 * np.finfo(kind).epsneg
    assert exp[0] == 1


# ---- linear_ce


OF_A_HEAD = {"softcap": 3.0, "label_smoothing": 0.1, "z_loss": 0.1, "bias": True}


@pytest.mark.parametrize(
    ("dtype", "options"),
    [
        ("float32", {}),
        ("float32", OF_A_HEAD),
        ("bfloat16", OF_A_HEAD),
        pytest.param("bfloat16", {}, marks=pytest.mark.full),
        pytest.param("float64", OF_A_HEAD, marks=pytest.mark.full),
        ("float64", {}),
    ],
)
def test_linear(dtype, options, tiles, counts):
    """A chunk's derivative is written over its logits."""
    rng = np.random.default_rng(0)
    h, weight = (rounded(rng.normal(size=k), dtype) for k in ((9, 4), (33, 4)))
    y = rng.integers(0, 33, 9)
    y[3] = -100
    options = {**options, "ignore_index": -100}
    if "bias" in options:
        options["bias"] = rounded(rng.normal(size=33), dtype)
    want = oracle.linear_ce(h, weight, y, **options)
    kind = getattr(torch, dtype)
    if "bias" in options:
        options["bias"] = torch.tensor(options["bias"]).to(kind)
    tensors = [torch.tensor(k).to(kind) for k in (h, weight)]
    loss, grads = xent.value_and_grad(xent.linear_ce)(*tensors, torch.tensor(y), chunk_rows=4, **options)
    assert counts["statistics"] == 2  # of 8 rows that are there
    tolerance = {"float32": 2e-6, "float64": 1e-13, "bfloat16": 1e-2}[dtype]
    np.testing.assert_allclose(loss, want.loss, rtol=min(tolerance, 1e-5))
    for got, expected in ((grads.hidden, want.hidden), (grads.weight, want.weight)):
        np.testing.assert_allclose(got.double(), expected, rtol=tolerance, atol=tolerance * np.abs(expected).max())


def test_a_chunk_of_linear_is_overwritten(tiles):
    x, ids = torch.randn(3, 40), torch.tensor([0, 39, 5])
    want = TRITON.rows_value_and_grad(Layout(1, True, False, False), x, None, None, ids, Slopes(0.5))[1]
    dx = ADAPTER.linear.rows_value_and_grad(Layout(1, True, False, False), x, None, None, ids, Slopes(0.5))[1]
    assert dx.data_ptr() == x.data_ptr()
    assert torch.equal(dx, want)
