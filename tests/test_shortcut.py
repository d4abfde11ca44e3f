"""`sparse_ce` with no option but `axis` and `ignore_index` takes one native call: numbers and errors are the same."""

import functools
from types import MappingProxyType

import numpy as np
import pytest
import xent
from xent import oracle
from xent._dispatch import load
from xent._execute import _again
from xent._options import Options

WIDE = 30 * np.random.default_rng(7).normal(size=(33, 17))
SHAPES = {"rows": (33, 17), "sequence": (2, 3, 17), "one row": (17,), "no rows": (0, 17), "one class": (4, 1)}
AXES = {"classes first": ((17, 33), 0), "pixels": ((2, 17, 3, 5), 1), "before the last": ((2, 17, 3), -2)}
# what sparse_ce may or may not be given, made of logits [2, 3] and ids [2]
DECLINED = {
    "a negative id": lambda x, y: (x, y - 1),
    "an id past the classes": lambda x, y: (x, y + 2),
    "ids of another width": lambda x, y: (x, y.astype("int16")),
    "unsigned ids": lambda x, y: (x, y.astype("uint64")),
    "ids of another shape": lambda x, y: (x, y[:, None]),
    "fewer ids": lambda x, y: (x, y[:1]),
    "no classes": lambda x, y: (x[:, :0], y),
    "integer logits": lambda x, y: (x.astype("int64"), y),
    "a scalar": lambda x, y: (x[0, 0], y),
}
# of logits [2, 3] and ids [0, 1]
DECLINED_OPTIONS = (
    {"axis": 2},
    {"axis": -3},
    {"axis": 0},
    {"ignore_index": 2**63},
    {"ignore_index": -(2**63) - 1},
)


@pytest.fixture
def shortcut(live):
    found = load(live.name).shortcut
    if found is None:
        pytest.skip(f"{live.name} takes no shortcut here")
    return found


def outcome(function, x, y, options=MappingProxyType({})):
    """The result, or the error's type and sentence."""
    try:
        return function(x, y, **options)
    except (TypeError, ValueError) as error:
        return type(error), str(error)


def assert_same_numbers(shortcut, live, monkeypatch, x, y, **options):
    """The shortcut is taken, and the general way has the same loss and gradient."""
    axis, ignored = options.get("axis", -1), options.get("ignore_index")
    # TensorFlow hands out a 0-d array as a scalar of NumPy's, which has no address; no gradient of 16 bits is kept
    if str(x.dtype).endswith(("32", "64")) and len(x.shape) > 1:
        assert shortcut.value(axis, ignored, x, y, _again) is not None
        assert shortcut.value_and_grad(axis, ignored, x, y) is not None
    loss, dx = xent.value_and_grad(xent.sparse_ce)(x, y, **options)
    value = xent.sparse_ce(x, y, **options)
    with monkeypatch.context() as general:
        general.setattr(Options, "untouched", False)
        wanted, slope = xent.value_and_grad(xent.sparse_ce)(x, y, **options)
    unit = 2.0**-52 if str(x.dtype).endswith("float64") else 2.0**-23
    for got in (loss, value):
        assert got.dtype == wanted.dtype
        assert tuple(got.shape) == ()
        np.testing.assert_allclose(live.numpy(got), live.numpy(wanted), rtol=2 * unit, err_msg=str(x.dtype))
    assert dx.dtype == x.dtype
    np.testing.assert_array_equal(live.numpy(dx), live.numpy(slope), str(x.dtype))


@pytest.mark.parametrize("ids", ["int64", "int32"])
@pytest.mark.parametrize(
    ("shape", "axis"), [*((shape, -1) for shape in SHAPES.values()), *AXES.values()], ids=[*SHAPES, *AXES]
)
def test_same_numbers(shortcut, live, monkeypatch, shape, axis, ids):
    classes = shape[axis]
    y = live.array(np.resize([0, classes - 1, 1 % classes], np.delete(shape, axis)), ids, "cpu")
    for dtype in live.dtypes:
        x = live.array(np.resize(WIDE, shape), dtype, "cpu")
        assert_same_numbers(shortcut, live, monkeypatch, x, y, axis=axis)


@pytest.mark.parametrize("ids", ["int64", "int32"])
@pytest.mark.parametrize("ignored", [-100, -2, -1, 255, 0, 16, -(2**63), 2**31], ids=str)
def test_ignored_ids(shortcut, live, monkeypatch, ignored, ids):
    """In rows of NaN; whether a class or not, whether ids can hold it or not."""
    x, y = np.resize(WIDE, (2, 17, 5)), np.resize([3, 9, 1], (2, 5))
    if np.can_cast(np.min_scalar_type(ignored), ids):
        y[0, :2] = ignored
        x[0, :, 0] = np.nan
    for dtype in live.dtypes:
        given = live.array(x, dtype, "cpu"), live.array(y, ids, "cpu")
        assert_same_numbers(shortcut, live, monkeypatch, *given, axis=1, ignore_index=ignored)
    none_left = live.array(np.full(3, 2), ids, "cpu")
    logits = live.array(np.full((3, 17), np.nan), "float32", "cpu")
    assert_same_numbers(shortcut, live, monkeypatch, logits, none_left, ignore_index=2)


@pytest.mark.parametrize("change", DECLINED.values(), ids=DECLINED)
def test_declined(shortcut, live, monkeypatch, change):
    """What needs a change, or a word of advice, goes the general way."""
    x, y = (live.array(k, None, "cpu") for k in change(WIDE[:2, :3].astype("float32"), np.array([0, 1])))
    assert shortcut.value(-1, None, x, y, _again) is None
    assert shortcut.value_and_grad(-1, None, x, y) is None
    got = outcome(xent.sparse_ce, x, y)
    monkeypatch.setattr(Options, "untouched", False)
    assert str(got) == str(outcome(xent.sparse_ce, x, y))


@pytest.mark.parametrize("options", DECLINED_OPTIONS, ids=str)
def test_declined_options(shortcut, live, monkeypatch, options):
    x, y = live.array(WIDE[:2, :3], "float32", "cpu"), live.array([0, 1], "int64", "cpu")
    axis, ignored = options.get("axis", -1), options.get("ignore_index")
    assert shortcut.value(axis, ignored, x, y, _again) is None
    got = outcome(xent.sparse_ce, x, y, options)
    monkeypatch.setattr(Options, "untouched", False)
    assert str(got) == str(outcome(xent.sparse_ce, x, y, options))


OTHERS = [
    {"axis": -1.0},
    {"axis": True},
    {"ignore_index": 2.0},
    {"ignore_index": True},
    {"label_smoothing": False},
    {"z_loss": np.zeros(2)},
    {"reduce": ["mean"]},
]


@pytest.mark.parametrize("given", OTHERS, ids=str)
def test_options_like_the_defaults(live, given):
    """Equal to them, or not to be compared: checked all the same."""
    x, y = live.array(WIDE[:2, :3], "float32", "cpu"), live.array([0, 1], "int32", "cpu")
    with pytest.raises((TypeError, ValueError), match=f"^{next(iter(given))}: expected "):
        xent.sparse_ce(x, y, **given)


@pytest.mark.backend("torch")
@pytest.mark.parametrize("options", [{}, {"axis": 0, "ignore_index": 2}], ids=str)
def test_torch_derivatives_of_all_kinds(options):
    """The gradient is taken along; asked for again, or for a derivative of it, the general way computes it."""
    torch = pytest.importorskip("torch", reason="torch is not installed")
    x, y = torch.tensor(WIDE[:5, :5], requires_grad=True), torch.tensor([0, 4, 2, 1, 2])
    f = functools.partial(xent.sparse_ce, **options)
    loss = f(x, y)
    (first,) = torch.autograd.grad(loss, x, retain_graph=True)
    (again,) = torch.autograd.grad(loss, x, create_graph=True)
    torch.testing.assert_close(first, again, rtol=1e-14, atol=0)
    assert torch.autograd.gradgradcheck(lambda x: f(x, y), x)
    torch.testing.assert_close(f(torch._neg_view(x), y), f(-x, y), rtol=1e-14, atol=0)
    with torch.no_grad():
        assert not f(x, y).requires_grad
    doubled = torch.func.vmap(f)(torch.stack([x.detach(), 2 * x.detach()]), torch.stack([y, y]))
    torch.testing.assert_close(doubled[0], loss.detach(), rtol=1e-14, atol=0)


@pytest.mark.backend("torch")
def test_torch_fortran_order():
    torch = pytest.importorskip("torch", reason="torch is not installed")
    if load("torch").shortcut is None:
        pytest.skip("there are no kernels")
    x, y = torch.tensor(WIDE[:4, :5]).T.contiguous().T, torch.tensor([0, 4, 2, 1])
    assert load("torch").shortcut.value(-1, None, x, y, _again) is None
    torch.testing.assert_close(xent.sparse_ce(x, y), xent.sparse_ce(x.contiguous(), y), rtol=1e-14, atol=0)


@pytest.mark.backend("torch")
@pytest.mark.parametrize(("dtype", "rtol"), [("float16", 2.0**-11), ("bfloat16", 2.0**-8)])
def test_torch_upstream_gradients(dtype, rtol):
    """GradScaler's factor goes in before the gradient is rounded to 16 bits, where it may be 0."""
    torch = pytest.importorskip("torch", reason="torch is not installed")
    x, y = torch.tensor([[16.0, 0, -1]], dtype=getattr(torch, dtype), requires_grad=True), torch.tensor([0])
    (2.0**16 * xent.sparse_ce(x, y)).backward()
    want = 2.0**16 * oracle.sparse_ce(x.detach().double().numpy(), y.numpy()).logits
    np.testing.assert_allclose(x.grad.double(), want, rtol=rtol)


@pytest.mark.backend("tensorflow")
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_tensorflow_upstream_gradients(dtype):
    """Loss scaling, and a jacobian: the gradient is not rounded to 16 bits before it is multiplied."""
    tf = pytest.importorskip("tensorflow", reason="tensorflow is not installed")
    x, y = tf.constant([[0.0, 2, -1], [1, 2, 3]], dtype), tf.constant([1, 2])
    want = oracle.sparse_ce(np.array([[0.0, 2, -1], [1, 2, 3]]), np.array([1, 2])).logits
    rtol = {"float16": 2.0**-11, "bfloat16": 2.0**-8, "float32": 1e-6, "float64": 1e-14}[dtype]
    for factor, derivative in ((1024, tf.GradientTape.gradient), (1, tf.GradientTape.jacobian)):
        with tf.GradientTape() as tape:  # a persistent one would be asked for a derivative of any order
            tape.watch(x)
            loss = factor * xent.sparse_ce(x, y)
        got = derivative(tape, loss, x)
        assert got.dtype == x.dtype
        np.testing.assert_allclose(tf.cast(got, "float64"), factor * want, rtol=rtol)


@pytest.mark.backend("torch")
def test_cross_entropy_by_its_own_name_takes_it(monkeypatch):
    """`ignore_index` is -100 there."""
    torch = pytest.importorskip("torch", reason="torch is not installed")
    from xent.backends.cpu import calls, native
    from xent.compat.torch import cross_entropy

    if native is None:
        pytest.skip("there are no kernels")
    taken, whole = [], calls.Kernels.mean_of_ids
    monkeypatch.setattr(calls.Kernels, "mean_of_ids", lambda *args: taken.append(args) or whole(*args))
    cross_entropy(torch.zeros(2, 5, 3), torch.tensor([[0, -100, 4], [1, 2, 3]]))
    assert len(taken) == 1
