"""linear_ce: values and gradients against the oracle, whatever the chunks; what it does not compute; its statistics."""

import functools
from dataclasses import replace

import cases
import numpy as np
import pytest
import xent
from linear_cases import (
    BARS,
    BIAS,
    FEW,
    LOSS_BARS,
    OPTIONS,
    SHAPE,
    H,
    V,
    Y,
    arguments,
    assert_close,
    given,
    held,
    matrix,
    rng,
)
from xent import _dispatch, _linear, _plan, oracle
from xent._options import Operands, Options
from xent.backends.cpu import calls, native
from xent.formulas import linear as loop
from xent.verify import frameworks
from xent.verify.precision import PRECISION, rounded


def test_numpy_parameters_in_the_other_byte_order(linear):
    """As files have them."""
    h, weight, y = arguments("float32", {})
    hidden, *native = linear.array(h, "float32", "cpu"), weight.astype(np.float32), BIAS.astype(np.float32), y
    swapped = (k.astype(k.dtype.newbyteorder()) for k in native)
    losses = (xent.linear_ce(hidden, weight, labels, bias=bias) for weight, bias, labels in (native, swapped))
    np.testing.assert_allclose(*map(linear.numpy, losses), rtol=1e-6)


def check(live, case, dtype, chunk_rows, compiler=lambda f: f):
    options = held(case.options, dtype)
    h, weight, y = arguments(dtype, options)
    want = oracle.linear_ce(h, weight, y, **options)
    with live.within(dtype):
        arrays = (live.array(k, dtype, "cpu") for k in (h, weight))
        options = given(live, options, dtype)
        loss = functools.partial(xent.linear_ce, chunk_rows=chunk_rows, **options)
        value, grads = compiler(lambda h, w, y: xent.value_and_grad(loss)(h, w, y))(*arrays, live.array(y, None, "cpu"))
        ops = _dispatch.load(live.name).ops
        assert ops.dtype(value) == PRECISION[dtype].compute
        assert {ops.dtype(k) for k in grads if k is not None} == {dtype}
        value, *found = (None if k is None else live.numpy(k) for k in (value, *grads))
    what = f"{case.name} {dtype} chunks of {chunk_rows}"
    assert_close(value, want.loss, LOSS_BARS[dtype], f"{what}: loss")
    for name, got in zip(xent.Grads._fields, found, strict=True):
        if got is not None:
            assert_close(got, getattr(want, name), BARS[dtype], f"{what}: {name}")
    assert (found[2] is None) == ("bias" not in options)


@pytest.mark.parametrize("reduce", cases.REDUCES)
def test_options_in_float64(linear, reduce, subtests):
    for case in cases.unless_compiled(linear, list(matrix(cases.combinations(OPTIONS)))):
        if case.options["reduce"] == reduce:
            with subtests.test(case.name):
                check(linear, case, "float64", 3)


def test_all_rows_in_one_chunk(linear, subtests):
    chosen = FEW if linear.name == "jax" else cases.alone(OPTIONS, ["mean"])
    for case in matrix(cases.alone(OPTIONS, cases.REDUCES) if cases.FULL else chosen):
        with subtests.test(case.name):
            check(linear, case, "float64", None)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_options_in_other_dtypes(linear, dtype, subtests):
    cases.needs_dtype(linear, dtype)
    chosen = cases.alone(OPTIONS, ["mean", "none"]) if cases.FULL else FEW[:1] if linear.name == "jax" else FEW
    for case in matrix(chosen):
        with subtests.test(case.name):
            check(linear, case, dtype, 3)


@pytest.mark.compiled
def test_compiled_linear(linear):
    (one, reduce), (other, _), last = FEW
    few = FEW if cases.FULL else ((one + other, reduce), last)  # TensorFlow traces a loop for seconds
    tried = zip(matrix(few), ("bfloat16", "float32", "float32")[: len(few)], strict=True)
    for compile, chosen in cases.shares(cases.compilers(linear, code=False), [*tried]):
        for case, dtype in chosen:
            check(linear, case, dtype, 3, compile)


# ---- the derivative in the weights, and under upstream gradients that are not 1


@pytest.fixture
def differentiating(linear):
    if _dispatch.load(linear.name).autodiff is None:
        pytest.skip(f"{linear.name} has no differentiation of its own")
    return linear


@pytest.mark.parametrize("reduce", cases.REDUCES)
def test_weights(differentiating, reduce):
    live = differentiating
    if reduce not in ("none", "mean"):
        cases.only_full_on_jax(live)
    want = oracle.linear_ce(H, V, Y, sample_weight=cases.WEIGHTS, z_loss=0.1, label_smoothing=0.2, reduce=reduce)
    with live.double():
        h, v, w = (live.array(k, "float64", "cpu") for k in (H, V, cases.WEIGHTS))
        options = {"z_loss": 0.1, "label_smoothing": 0.2, "reduce": reduce, "chunk_rows": 3}
        _, grad = xent.value_and_grad(lambda w: xent.linear_ce(h, v, Y, sample_weight=w, **options))(w)
        assert_close(live.numpy(grad), want.sample_weight, 1e-13, reduce)


@pytest.mark.parametrize("reduce", ["none", "mean"])
def test_upstream_gradients(differentiating, reduce):
    """One for each row, and a single factor for a mean."""
    live = differentiating
    up = rng.normal(size=SHAPE) if reduce == "none" else np.float64(-1.75)
    each = oracle.linear_ce(H, V, Y, sample_weight=up if reduce == "none" else None, reduce=reduce)
    with live.double():
        h, v, g = (live.array(k, "float64", "cpu") for k in (H, V, up))
        for function, x, want in (
            (lambda h: xent.linear_ce(h, v, Y, reduce=reduce, chunk_rows=3) * g, h, each.hidden),
            (lambda v: xent.linear_ce(h, v, Y, reduce=reduce, chunk_rows=3) * g, v, each.weight),
        ):
            _, grad = xent.value_and_grad(function)(x)
            assert_close(live.numpy(grad), want * (1 if reduce == "none" else up), 1e-13, reduce)


@pytest.mark.compiled
def test_upstream_gradient_of_a_compiled_mean(differentiating):
    """The factor is outside of what is compiled."""
    live, want = differentiating, oracle.linear_ce(H, V, Y)

    def gradient(side, mean, h, v):
        if side == "hidden":
            return xent.value_and_grad(lambda h: mean(h, v) * -1.75)(h)[1]
        return xent.value_and_grad(lambda v: mean(h, v) * -1.75)(v)[1]

    for compile, sides in cases.shares(cases.compilers(live, code=False), ("hidden", "weight")):
        with live.double():
            h, v = (live.array(k, "float64", "cpu") for k in (H, V))
            mean = compile(lambda h, v: xent.linear_ce(h, v, Y, chunk_rows=3))
            for side in sides:
                assert_close(live.numpy(gradient(side, mean, h, v)), -1.75 * getattr(want, side), 1e-13, side)


@pytest.mark.parametrize("factor", [1.0, 0.25, -3.0])
@pytest.mark.backend("torch")
def test_backward_again(factor):
    """The same each time, whatever becomes of the gradients that were handed out."""
    torch = pytest.importorskip("torch", reason="torch is not installed")
    h, v = (torch.tensor(k, requires_grad=True) for k in (H, V))
    loss = factor * xent.linear_ce(h, v, Y, chunk_rows=3)
    first = torch.autograd.grad(loss, (h, v), retain_graph=True)
    kept = [k.clone() for k in first]
    for k in first:
        k.zero_()
    for again in (torch.autograd.grad(loss, (h, v), retain_graph=True), torch.autograd.grad(loss, (h, v))):
        for got, want in zip(again, kept, strict=True):
            assert_close(got, want, 1e-13, "again")
    want = oracle.linear_ce(H, V, Y)
    assert_close(kept[0], factor * want.hidden, 1e-13, "hidden")
    assert_close(kept[1], factor * want.weight, 1e-13, "weight")


# ---- what is not computed


def watched(live, undo, *names):
    """Makes functions of the adapter, and of NumPy's where that is used, note the shapes of their arguments."""
    calls = {name: [] for name in names}

    def spy(name, function):
        def run(*args):
            calls[name].append([getattr(k, "shape", None) for k in args])
            return function(*args)

        return run

    adapter = _dispatch.load(live.name)
    kits = [(adapter, "linear")]
    if live.name == "tensorflow":
        from xent.backends.tensorflow import linear, native

        kits += [(native.HOST, "linear"), (linear, "HOST")]
    for owner, attribute in kits:
        kit = getattr(owner, attribute)
        undo.append((owner, attribute, kit))
        object.__setattr__(owner, attribute, replace(kit, **{name: spy(name, getattr(kit, name)) for name in names}))
    return calls


@pytest.fixture
def spied(linear):
    undo = []
    yield linear, functools.partial(watched, linear, undo)
    for owner, attribute, kit in undo:
        object.__setattr__(owner, attribute, kit)


def test_no_gradient_unless_wanted(spied):
    live, start = spied
    calls = start("pull", "accumulate")
    xent.linear_ce(live.array(H, "float32", "cpu"), live.array(V, "float32", "cpu"), Y, chunk_rows=3)
    assert calls == {"pull": [], "accumulate": []}


def test_masked_rows_are_not_multiplied(spied):
    """Where ids are values in host memory."""
    live, start = spied
    if live.name == "jax":
        pytest.skip("jax compiles every loss")
    if live.name == "tensorflow" and native is None:
        pytest.skip("tensorflow's loop without kernels is that of its graphs")
    calls = start("project")
    y = Y.copy()
    y[:, 1:] = -100
    h, v = live.array(H, "float32", "cpu"), live.array(V, "float32", "cpu")
    loss, grads = xent.value_and_grad(xent.linear_ce)(h, v, y, ignore_index=-100, chunk_rows=3)
    assert sum(shapes[0][0] for shapes in calls["project"]) == 4
    want = oracle.linear_ce(H, V, y, ignore_index=-100)
    assert_close(live.numpy(loss), want.loss, 1e-6, "loss")
    assert_close(live.numpy(grads.hidden), want.hidden, 1e-6, "hidden")
    assert_close(live.numpy(grads.weight), want.weight, 1e-6, "weight")


def test_chunks_bound_the_memory(spied):
    """No more rows' logits at a time than the memory allows, without chunk_rows too."""
    live, start = spied
    calls = start("project")
    rows, classes = 2 * loop.FEWEST, loop.MEMORY // 4 // loop.FEWEST
    h = live.array(np.zeros((rows, 1), np.float32), "float32", "cpu")
    xent.linear_ce(h, live.array(np.zeros((classes, 1), np.float32), "float32", "cpu"), np.zeros(rows, int))
    assert {shapes[0][0] for shapes in calls["project"]} == {loop.FEWEST}


@pytest.mark.parametrize(("rows", "chunk"), [(10, 10), (128, 128), (130, 96), (300, 128), (2048, 128)])
def test_chunks_are_whole_panels(rows, chunk):
    """As evenly as they go: there is memory for 150 rows."""
    x = np.zeros((rows, 1), np.float32)
    weight = np.zeros((loop.MEMORY // 4 // 150, 1), np.float32)
    plan, _ = _plan.linear(_dispatch.find(x), Operands(x, np.zeros(rows, int), weight=weight), Options())
    assert _linear.rows_of_a_chunk(plan.adapter.linear, x, plan, rows) == chunk


@pytest.mark.parametrize("chunk_rows", [1, 4, 19, 20, 1000])
def test_chunks_do_not_matter(linear, chunk_rows):
    if chunk_rows in (1, 20, 1000):  # 4 divides the rows, 19 does not
        cases.only_full_on_jax(linear)
    with linear.double():
        h, v = (linear.array(k, "float64", "cpu") for k in (H, V))
        want, got = (xent.value_and_grad(xent.linear_ce)(h, v, Y, chunk_rows=n) for n in (None, chunk_rows))
        assert_close(linear.numpy(got[0]), linear.numpy(want[0]), 1e-14, "loss")
        for one, other in zip(got[1][:2], want[1][:2], strict=True):
            assert_close(linear.numpy(one), linear.numpy(other), 1e-14, "gradient")


# ---- which products are native


class Recorded:
    """The native kernels, and the names of those that are called."""

    def __init__(self):
        self.names = set()

    def __getattr__(self, name):
        self.names.add(name)
        return getattr(native, name)


PRODUCTS = {"project", "pull", "accumulate"}
ELSEWHERE = {"jax": "test_jax looks at what its programs call", "tensorflow": "it has no views"}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("view", [False, True])
def test_products_are_native(linear, dtype, view, monkeypatch):
    """Of weights that lie as the kernels read them; others are not copied once a chunk."""
    if native is None:
        pytest.skip("there are no native kernels")
    if linear.name == "jax" or (view and linear.name == "tensorflow"):
        pytest.skip(ELSEWHERE[linear.name])
    monkeypatch.setattr(calls, "native", recorded := Recorded())
    h, weight = (linear.array(rounded(k, dtype), dtype, "cpu") for k in (H, V))
    if view:
        weight = linear.array(rounded(np.ascontiguousarray(V.T), dtype), dtype, "cpu").T
    xent.value_and_grad(xent.linear_ce)(h, weight, Y)
    assert recorded.names & PRODUCTS == (PRODUCTS - {"project", "pull"} if view else PRODUCTS)


# ---- the matrix itself: kits that are wrong must fail it


def forgets_the_mask(kit):
    def both(layout, x, t, u, ids, slopes):
        return kit.rows_value_and_grad(layout._replace(masked=False), x, t, u, np.maximum(ids, 0), slopes)

    return replace(kit, rows_value_and_grad=both)


def loses_a_chunk(kit):
    def accumulate(sums, dx, h):
        sums[:] = 0
        return kit.accumulate(sums, dx, h)

    return replace(kit, accumulate=accumulate)


def off_by_a_little(kit):
    return replace(kit, pull=lambda dx, weight: kit.pull(dx, weight) * np.float32(1 + 3e-6))


WRONG = {"forgets the mask": forgets_the_mask, "loses a chunk": loses_a_chunk, "off by 3e-6": off_by_a_little}


@pytest.mark.parametrize("name", [None, *WRONG])
def test_wrong_kits_fail(name, monkeypatch):
    live, adapter = frameworks.load("numpy"), _dispatch.load("numpy")
    wrong = replace(adapter, linear=WRONG[name](adapter.linear)) if name else adapter
    monkeypatch.setattr(loop, "rows_that_count", lambda spec, ids: None)  # masked rows are there, as in a compiler
    monkeypatch.setitem(_dispatch._by_type, np.ndarray, wrong)
    case = cases.Case("linear_ce", ("ignore_index",), {"reduce": "mean", "ignore_index": -100})
    if name is None:
        check(live, case, "float32", 3)
        return
    with pytest.raises(AssertionError):
        check(live, case, "float32", 3)
