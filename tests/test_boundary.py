"""What native code gets from the public API at the edges: no elements, one example, numbers in every guise, memory of
every kind. Small, so that native_sanitized.sh can run it under sanitizers on NumPy and PyTorch."""

from concurrent.futures import ThreadPoolExecutor

import cases
import ml_dtypes
import numpy as np
import pytest
import xent
from cases import needs_dtype, needs_loss
from xent import oracle
from xent.backends import numpy as host
from xent.verify.precision import DTYPES, PRECISION, rounded

LOSSES = ("sparse_ce", "softmax_ce", "sigmoid_ce", "linear_ce")
FEATURES = 4


def arguments(loss, shape, axis, dtype="float64"):
    """A loss's positional arguments, rounded to the dtype; the first one, logits or hidden states, has this shape."""
    data = np.random.default_rng(len(shape) + sum(shape))
    x, rows = rounded(2 * data.normal(size=shape), dtype), shape[:axis] + shape[axis:][1:]
    if loss == "linear_ce":
        weight = rounded(data.normal(size=(5, shape[-1])), dtype)
        return x, weight, data.integers(0, 5, shape[:-1])
    if loss == "sparse_ce":
        return x, data.integers(0, shape[axis], rows)
    if loss == "sigmoid_ce":
        return x, np.asarray(data.integers(0, 2, shape) * 1.0)  # an element's two terms do not cancel
    labels = data.random(shape)
    return x, rounded(labels / labels.sum(axis, keepdims=True), PRECISION[dtype].compute)


def options(live, loss, classes):
    """Each option alone, and all of them together, with and without a mean; JAX, which compiles every call, has a mean
    of none and the losses of all."""
    each = {"sample_weight": 2.0}
    if loss != "sigmoid_ce":
        each |= {"z_loss": 0.1, "class_weight": np.arange(1.0, classes + 1)}
    each |= {"label_smoothing": 0.1, "denom": 3.0}
    if loss == "sigmoid_ce":
        each |= {"pos_weight": 3.0}
    if loss in ("sparse_ce", "linear_ce"):
        each |= {"ignore_index": -100, "stats": True}
    chosen = [{}, *({name: value} for name, value in each.items()), each]
    means = [k | {"reduce": "mean"} for k in chosen]
    others = [{name: value for name, value in k.items() if name != "denom"} | {"reduce": "none"} for k in chosen]
    return [means[0], others[-1]] if live.name == "jax" and not cases.FULL else means + others


def placed(loss, axis):
    return {"axis": axis} if loss in ("sparse_ce", "softmax_ce") else {}


def moved(live, loss, given, dtype):
    """Arguments as arrays of the framework, in the dtypes that the loss takes them in."""
    x, *rest = given
    *weight, labels = rest
    kind = None if labels.dtype.kind in "iub" else PRECISION[dtype].compute
    return live.array(x, dtype, "cpu"), *(live.array(k, dtype, "cpu") for k in weight), live.array(labels, kind, "cpu")


def solved(live, loss, given, chosen):
    """(value, gradient in the first argument, the stats' nll or None) in NumPy, from a value alone and from a value
    with its gradient, which have to agree."""
    function = getattr(xent, loss)
    value, (again, grad) = function(*given, **chosen), xent.value_and_grad(function)(*given, **chosen)
    nll = None
    if chosen.get("stats"):
        (value, stats), (again, _) = value, again
        nll = live.numpy(stats.nll)
    grad = grad.hidden if loss == "linear_ce" else grad
    value, again, grad = map(live.numpy, (value, again, grad))
    np.testing.assert_allclose(value, again, rtol=1e-5)
    return value, grad, nll


def truth(loss, given, chosen):
    chosen = {name: value for name, value in chosen.items() if name != "stats"}
    found = getattr(oracle, loss)(*given, **chosen)
    return found.loss, found.hidden if loss == "linear_ce" else found.logits


# ---- no elements

EMPTY = [((3, 128, 0), 1), ((0, 5), 1), ((0, 70), 1), ((2, 0, 5), 2), ((0, 5, 3), 1), ((2, 5, 0, 3), 1), ((0, 5, 0), 1)]


@pytest.mark.parametrize("loss", LOSSES)
def test_a_length_of_0_at_every_place(live, loss):
    """An inner length of 0 used to be taken for 1, so that foreign memory was read and written."""
    needs_loss(live, loss)
    for shape, axis in EMPTY[:2] if live.name == "jax" else EMPTY:
        if loss == "linear_ce":
            shape = (*shape[:axis], *shape[axis + 1 :], FEATURES)
        given = arguments(loss, shape, axis)
        arrays = moved(live, loss, given, "float32")
        for chosen in options(live, loss, 5 if loss == "linear_ce" else shape[axis]):
            chosen = chosen | placed(loss, axis)
            value, grad, _ = solved(live, loss, arrays, chosen)
            assert value.shape == truth(loss, given, chosen)[0].shape
            assert not value.any()  # 0, where there is one
            assert grad.shape == shape


# ---- one example


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("loss", LOSSES)
def test_one_example(live, loss, dtype):
    """Results and coefficients are then 0-d; NumPy makes scalars of them, whose address is that of a temporary."""
    needs_loss(live, loss)
    needs_dtype(live, dtype)
    if dtype != "float32":
        cases.only_full_on_jax(live)
    shape = () if loss == "sigmoid_ce" else (FEATURES,)
    with live.within(dtype):
        given = arguments(loss, shape, 0, dtype)
        arrays = moved(live, loss, given, dtype)
        for chosen in options(live, loss, 5 if loss == "linear_ce" else 4):
            value, grad, nll = solved(live, loss, arrays, chosen)
            want, slope = truth(loss, given, chosen)
            cases.assert_close(value, want, dtype, f"{chosen}", result=True)
            cases.assert_close(grad, slope, dtype, f"{chosen}, gradient")
            if nll is not None:
                cases.assert_close(nll, truth(loss, given, {})[0], dtype, f"{chosen}, nll", result=True)


def guises(live, value):
    array = live.array(np.asarray(value), None, "cpu")
    return [value, np.asarray(value)[()], np.asarray(value), array]


@pytest.mark.parametrize("loss", LOSSES)
def test_a_number_in_every_guise(live, loss):
    """A Python number, a NumPy scalar, a 0-d array of NumPy's and of the framework's."""
    needs_loss(live, loss)
    x, *rest = moved(live, loss, arguments(loss, (3, FEATURES), 1), "float32")
    want = solved(live, loss, (x, *rest), {"sample_weight": 2.0, "denom": 3.0})
    for chosen in ({"sample_weight": 2.0}, {"denom": 3.0}):
        (name, value), others = next(iter(chosen.items())), {"sample_weight": 2.0, "denom": 3.0}
        for guise in guises(live, value):
            got = solved(live, loss, (x, *rest), {**others, name: guise})
            np.testing.assert_array_equal(got[0], want[0])
            np.testing.assert_array_equal(got[1], want[1])
    if loss == "sparse_ce":
        one = live.array(np.arange(4.0), "float32", "cpu")
        want = solved(live, loss, (one, 2), {"reduce": "none"})
        for guise in guises(live, 2):
            np.testing.assert_array_equal(solved(live, loss, (one, guise), {"reduce": "none"})[1], want[1])
    if loss == "sigmoid_ce":
        want = solved(live, loss, (x, *rest), {"pos_weight": 3.0})
        for guise in guises(live, 3.0):
            np.testing.assert_array_equal(solved(live, loss, (x, *rest), {"pos_weight": guise})[1], want[1])


def test_a_total_beyond_float32(live):
    """Infinite, as a sum is in every framework; the gradient is none the worse."""
    logits, labels = (live.array(np.full(4, k), "float32", "cpu") for k in (3e38, 0))
    loss, grad = xent.value_and_grad(xent.sigmoid_ce)(logits, labels, reduce="sum")
    for total in (loss, xent.sigmoid_ce(logits, labels, reduce="sum")):
        assert live.numpy(total) == np.inf
    np.testing.assert_array_equal(live.numpy(grad), 1)


@pytest.mark.parametrize("number", [np.float32(1), np.float64(1), np.int64(1), np.bool_(True), 1.0])
def test_only_arrays_have_addresses(number):
    """A scalar's `__array_interface__` is that of a copy, which is gone before anything is read from it."""
    with pytest.raises(AttributeError):
        host.address(number)
    array = host.dense(np.asarray(number), ())
    assert host.address(array) == array.__array_interface__["data"][0]


def test_one_example_on_many_threads(live):
    x = live.array(np.arange(4.0), "float32", "cpu")
    want = solved(live, "sparse_ce", (x, 0), {"reduce": "none"})
    with ThreadPoolExecutor(4) as pool:
        for got in pool.map(lambda _: solved(live, "sparse_ce", (x, 0), {"reduce": "none"}), range(160)):
            np.testing.assert_array_equal(got[0], want[0])
            np.testing.assert_array_equal(got[1], want[1])


# ---- memory of every kind. NumPy's arrays go to all frameworks as labels and weights; PyTorch has views of its own.


def swapped(x):
    return x.astype(x.dtype.newbyteorder())


def locked(x):
    x = x.copy()
    x.flags.writeable = False
    return x


def strided(x):
    wide = np.zeros([2 * n + 1 for n in x.shape], x.dtype)
    view = wide[tuple(slice(1, None, 2) for _ in x.shape)]
    view[...] = x
    return view


def misaligned(x):
    return np.frombuffer(b"\0" + x.tobytes(), np.uint8)[1:].view(x.dtype).reshape(x.shape)


def backwards(x):
    return np.flip(np.flip(x).copy())


def broadcast(x):
    """With stride 0 along the first axis, if x is constant along it."""
    return np.broadcast_to(x[:1], x.shape) if x.ndim and (x == x[:1]).all() else x


NUMPY_VIEWS = (swapped, locked, strided, misaligned, backwards, broadcast, np.asfortranarray)
MEMORY = {
    "sparse_ce": {"sample_weight": np.full((2, 3), 2.0), "class_weight": np.arange(1.0, 6)},
    "softmax_ce": {"sample_weight": np.full((2, 1), 2.0), "class_weight": np.arange(1.0, 6)},
    "sigmoid_ce": {"sample_weight": np.full((2, 5, 1), 2.0), "pos_weight": np.full((5, 3), 2.0)},
    "linear_ce": {"sample_weight": np.full(2, 2.0), "class_weight": np.arange(1.0, 6), "bias": np.arange(5.0)},
}


def problem(loss, dtype):
    """Arrays of two equal examples, by name, in the dtypes that nothing has to be converted from."""
    shape, axis = ((2, FEATURES), 1) if loss == "linear_ce" else ((2, 5, 3), 1)
    given = dict(zip(names(loss), arguments(loss, shape, axis, dtype), strict=True), **MEMORY[loss])
    for name in ("logits", "hidden", "labels"):
        if name in given:
            given[name][1] = given[name][0]
    compute = PRECISION[dtype].compute
    kinds = {name: dtype if name in ("logits", "hidden", "weight", "bias") else compute for name in given}
    kinds |= {"labels": "int64"} if loss in ("sparse_ce", "linear_ce") else {}
    return {name: value.astype(kind(kinds[name])) for name, value in given.items()}, placed(loss, axis)


def kind(dtype):
    return ml_dtypes.bfloat16 if dtype == "bfloat16" else np.dtype(dtype)


def results(loss, given, chosen):
    """All that a loss hands out, the gradients last."""
    (x, *rest), options = (given[name] for name in names(loss)), {**given, **chosen}
    for name in names(loss):
        del options[name]
    function = getattr(xent, loss)
    value, grad = xent.value_and_grad(function)(x, *rest, **options)
    grads = [grad] if loss != "linear_ce" else [k for k in grad if k is not None]
    return [function(x, *rest, **options, reduce="none"), function(x, *rest, **options), value, *grads]


def names(loss):
    return ("hidden", "weight", "labels") if loss == "linear_ce" else ("logits", "labels")


@pytest.mark.parametrize("view", NUMPY_VIEWS, ids=lambda view: view.__name__)
@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "bfloat16"])
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.backend("numpy")
def test_memory_of_numpy(loss, dtype, view):
    given, chosen = problem(loss, dtype)
    if view is swapped and dtype == "bfloat16":
        pytest.skip("ml_dtypes has no other byte order")
    want = results(loss, given, chosen)
    changed = [dict(given, **{name: view(k)}) for name, k in given.items()]
    for arrays in [*changed, {name: view(k) for name, k in given.items()}]:
        before = {name: k.copy() for name, k in arrays.items()}
        got = results(loss, arrays, chosen)
        for one, known in zip(got, want, strict=True):
            cases.assert_close(*(np.asarray(k, np.float64) for k in (one, known)), dtype, view.__name__)
            assert not any(np.shares_memory(one, k) for k in arrays.values())
        for name, k in arrays.items():
            np.testing.assert_array_equal(k, before[name])


def torch_views(torch):
    def strided(x):
        wide = x.new_zeros([2 * n for n in x.shape])
        view = wide[tuple(slice(1, None, 2) for _ in x.shape)]
        return view.copy_(x)

    def expanded(x):
        return x[:1].expand(x.shape) if x.ndim and bool((x == x[:1]).all()) else x

    def offset(x):
        return torch.cat([x.new_zeros(1), x.flatten()])[1:].view(x.shape)

    def negative(x):
        return torch._neg_view(-x) if x.is_floating_point() else x

    def turned(x):
        return x.permute(*reversed(range(x.ndim))).contiguous().permute(*reversed(range(x.ndim)))

    return strided, expanded, offset, negative, turned


@pytest.mark.parametrize("view", range(5))
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.backend("torch")
def test_memory_of_torch(loss, dtype, view):
    torch = pytest.importorskip("torch")
    given, chosen = problem(loss, dtype)

    def tensor(name, x):
        return torch.tensor(x.astype("f4" if dtype == "bfloat16" else x.dtype) if x.dtype.kind != "i" else x).to(
            getattr(torch, x.dtype.name)
        )

    given = {name: tensor(name, x) for name, x in given.items()}
    want, make = results(loss, given, chosen), torch_views(torch)[view]
    changed = [dict(given, **{name: make(k)}) for name, k in given.items()]
    for arrays in [*changed, {name: make(k) for name, k in given.items()}]:
        before = {name: k.clone() for name, k in arrays.items()}
        for one, known in zip(results(loss, arrays, chosen), want, strict=True):
            cases.assert_close(*(k.double().numpy() for k in (one, known)), dtype, make.__name__)
            held = {k.untyped_storage().data_ptr() for k in arrays.values()}
            assert one.untyped_storage().data_ptr() not in held
        for name, k in arrays.items():
            assert torch.equal(k, before[name])
    leaves = {
        name: make(k).detach().requires_grad_() for name, k in given.items() if name in ("logits", "hidden", "weight")
    }
    value = getattr(xent, loss)(**{**given, **leaves}, **chosen)
    for one, known in zip(torch.autograd.grad(value, list(leaves.values())), want[3:], strict=False):
        cases.assert_close(*(k.double().numpy() for k in (one, known)), dtype, make.__name__)


# ---- soft labels that are hard


@pytest.mark.parametrize(("shape", "axis"), [((81, 3), 1), ((81, 300), 1), ((81, 5, 3), 1)], ids=str)
@pytest.mark.parametrize("dtype", DTYPES)
def test_one_hot_labels_have_the_gradient_of_ids(live, dtype, shape, axis):
    """Also where the label leads by far, and its probability rounds to 1."""
    needs_dtype(live, dtype)
    data = np.random.default_rng(0)
    ids = data.integers(0, shape[axis], shape[:axis] + shape[axis + 1 :])
    hot = np.expand_dims(ids, axis) == np.arange(shape[axis]).reshape(
        [-1 if i == axis else 1 for i in range(len(shape))]
    )
    lead = np.arange(81.0).reshape([81] + [1] * (len(shape) - 1))
    x = rounded(data.normal(size=shape), dtype)
    x = rounded(np.where(hot, x.max(axis, keepdims=True) + lead, x), dtype)
    with live.within(dtype):
        logits, one_hot = live.array(x, dtype, "cpu"), live.array(hot * 1.0, PRECISION[dtype].compute, "cpu")
        for reduce in cases.first_on_jax(live, ("none", "mean")):
            ours = xent.value_and_grad(xent.softmax_ce)(logits, one_hot, axis=axis, reduce=reduce)[1]
            want = xent.value_and_grad(xent.sparse_ce)(logits, live.array(ids, None, "cpu"), axis=axis, reduce=reduce)[
                1
            ]
            ours, want = live.numpy(ours), live.numpy(want)
            np.testing.assert_allclose(ours, want, rtol=2 * float(ml_dtypes.finfo(kind(dtype)).eps), atol=0)
