"""xent.compat.torch beside PyTorch: the same value and gradients, or a difference that the module's table names."""

import inspect
import itertools
import math

import numpy as np
import pytest
from allpairspy import AllPairs

torch = pytest.importorskip("torch", reason="torch is not installed")

import cases  # noqa: E402
import xent  # noqa: E402
from xent.compat import torch as compat  # noqa: E402

pytestmark = pytest.mark.backend("torch")
F = torch.nn.functional
DTYPES = ("float16", "bfloat16", "float32", "float64")
REDUCTIONS = ("mean", "sum", "none")
ROUNDING = 1e-14  # PyTorch's own in float64, of losses and weights below 10


# ---- results side by side


def result(function, inputs, *args, **options):
    """The value and its gradients in all floating inputs; each element of a loss counts differently."""
    leaves = [x.clone().requires_grad_(x.is_floating_point()) for x in inputs]
    value = function(*leaves, *args, **options)
    upstream = torch.linspace(1, 2, value.numel(), dtype=value.dtype).reshape(value.shape)
    wanted = [x for x in leaves if x.requires_grad]
    return value.detach(), *torch.autograd.grad(value, wanted, upstream, allow_unused=True, materialize_grads=True)


def both(name, inputs, **options):
    return [result(getattr(library, name), inputs, **options) for library in (compat, F)]


def assert_same(ours, theirs, dtype, what):
    for i, (got, want) in enumerate(zip(ours, theirs, strict=True)):
        got, want = got.double().numpy(), want.double().numpy()
        assert got.shape == want.shape, what
        got = np.where(np.abs(got - want) <= ROUNDING, want, got)
        cases.assert_close(got, want, dtype, f"{what}, {'gradient' if i else 'value'}", result=not i)


def assert_agree(name, inputs, what, **options):
    """With PyTorch's result in float64, whose own rounding is then no matter."""
    dtype = inputs[0].dtype
    ours = result(getattr(compat, name), inputs, **options)
    theirs = result(getattr(F, name), [*map(in_float64, inputs)], **{k: in_float64(v) for k, v in options.items()})
    own = getattr(F, name)(*inputs, **options).dtype
    assert own == dtype, what
    assert ours[0].dtype == (torch.float32 if dtype.itemsize == 2 else own), what  # "16-bit input"
    assert all(dx.dtype == x.dtype for dx, x in zip(ours[1:], inputs, strict=False)), what
    assert_same(ours, theirs, str(dtype).removeprefix("torch."), what)


def in_float64(x):
    return x.double() if isinstance(x, torch.Tensor) and x.is_floating_point() else x


def randoms(*shape, dtype="float64", seed=0):
    x = 2 * torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return x.to(getattr(torch, dtype))


def table(values, dtype):
    return None if values is None else torch.tensor(values, dtype=getattr(torch, dtype))


# ---- walks over the functions' arguments


def walk(dtype, *arguments):
    """Any three values meet in float32, any two in the other dtypes; with --full, every combination."""
    return itertools.product(*arguments) if cases.FULL else AllPairs(arguments, n=3 if dtype == "float32" else 2)


SHAPES = ((3,), (4, 3), (4, 3, 2), (2, 3, 2, 2), (0, 3))  # no batch, a batch, K dimensions, an empty batch
WEIGHTS = (None, [1.0, 2.0, 0.5], [0.0, 2.0, 0.5], [0.0, 0.0, 0.0])
SMOOTHING = (0.0, 0.1, 1.0)
IGNORED = {"none": -100, "some": -100, "all": -100, "a class": 1}  # which ids are ignored: the index


def class_ids(shape, ignored):
    rows = shape[2:] if len(shape) == 1 else shape[:1] + shape[2:]
    ids = torch.arange(math.prod(rows)).reshape(rows) % 3
    if ignored == "all":
        return torch.full_like(ids, -100)
    return torch.where(ids == 1, -100, ids) if ignored == "some" else ids


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("ignored", IGNORED)
def test_cross_entropy_of_class_ids(ignored, dtype):
    index = IGNORED[ignored]
    for shape, weights, reduction, smoothing in walk(dtype, SHAPES, WEIGHTS, REDUCTIONS, SMOOTHING):
        what = f"shape {shape}, weight {weights}, {reduction}, smoothing {smoothing}"
        x, y = randoms(*shape, dtype=dtype), class_ids(shape, ignored)
        options = {"reduction": reduction, "label_smoothing": smoothing, "ignore_index": index}
        options["weight"] = table(weights, dtype)
        present = y != index
        counts = present if weights is None else present & (torch.tensor(weights)[y.clamp(0)] != 0)
        ours, theirs = both("cross_entropy", [x, y], **options)
        if reduction == "mean" and not counts.any():  # "a mean over nothing"
            assert not theirs[0].isfinite(), what
            assert not any(k.any() for k in ours), what
        elif (
            smoothing and any(weights or ()) and not torch.equal(present, counts)
        ):  # "label smoothing where the label's class weight is 0"
            assert not torch.allclose(ours[0].double(), theirs[0].double()), what
            without = torch.where(counts, y, index)
            assert_same(ours, result(compat.cross_entropy, [x, without], **options), dtype, what)
            assert_agree("cross_entropy", [x, without], what, **options)
        else:
            assert_agree("cross_entropy", [x, y], what, **options)


@pytest.mark.parametrize("dtype", DTYPES)
def test_cross_entropy_of_probabilities(dtype):
    for shape, weights, reduction, smoothing, summed in walk(
        dtype, SHAPES, WEIGHTS[:-1], REDUCTIONS, SMOOTHING, (True, False)
    ):
        what = f"shape {shape}, weight {weights}, {reduction}, smoothing {smoothing}, add up to 1: {summed}"
        t = randoms(*shape, seed=1)
        t = (t.softmax(min(1, t.ndim - 1)) if summed else t.abs()).to(getattr(torch, dtype))
        inputs = randoms(*shape, dtype=dtype), t
        options = {"reduction": reduction, "label_smoothing": smoothing, "weight": table(weights, dtype)}
        if reduction == "mean" and not t.numel():  # "a mean over nothing"
            ours, theirs = both("cross_entropy", inputs, **options)
            assert theirs[0].isnan(), what
            assert not ours[0], what
        else:
            assert_agree("cross_entropy", inputs, what, **options)


@pytest.mark.parametrize("dtype", DTYPES)
def test_binary_cross_entropy_with_logits(dtype):
    """A weight and pos_weight of any shape that broadcasts; of others both raise."""
    shapes, weights = ((), (3,), (4, 3), (2, 4, 3), (0, 3)), (None, (), (3,), (4, 1), (4, 3))
    raised = 0
    for shape, weight, positive, reduction in walk(dtype, shapes, weights, weights, REDUCTIONS):
        what = f"shape {shape}, weight {weight}, pos_weight {positive}, {reduction}"
        inputs = randoms(*shape, dtype=dtype), randoms(*shape, dtype=dtype, seed=1).sigmoid()
        options = {"reduction": reduction}
        options["weight"] = None if weight is None else randoms(*weight, dtype=dtype, seed=2).exp()
        options["pos_weight"] = None if positive is None else randoms(*positive, dtype=dtype, seed=3).exp()
        if any(k is not None and not broadcasts(k, shape) for k in (weight, positive)):
            raised += 1
            with pytest.raises(ValueError, match=r"^(pos_)?weight: "):
                compat.binary_cross_entropy_with_logits(*inputs, **options)
            with pytest.raises(RuntimeError):
                F.binary_cross_entropy_with_logits(*inputs, **options)
        elif reduction == "mean" and not inputs[0].numel():  # "a mean over nothing"
            ours, theirs = both("binary_cross_entropy_with_logits", inputs, **options)
            assert theirs[0].isnan(), what
            assert not ours[0], what
        else:
            assert_agree("binary_cross_entropy_with_logits", inputs, what, **options)
    assert raised


def broadcasts(small, shape):
    try:
        return np.broadcast_shapes(small, shape) == shape
    except ValueError:
        return False


LINEAR = (
    # input, linear_weight: no batch, a batch, K dimensions, an empty batch
    ((5,), (3, 5)),
    ((4, 5), (3, 5)),
    ((4, 5), (3, 2, 5)),
    ((4, 5), (3, 2, 2, 5)),
    ((0, 5), (3, 5)),
)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_linear_cross_entropy(dtype):
    chunks = compat.LinearCrossEntropyOptions(batch_chunk_size=2)
    for (shape, linear), hard, bias, weights, reduction, smoothing, options in walk(
        dtype, LINEAR, (True, False), (True, False), WEIGHTS[:2], REDUCTIONS, SMOOTHING[:2], (None, chunks)
    ):
        what = f"{shape}, {linear}, ids: {hard}, bias: {bias}, weight {weights}, {reduction}, {smoothing}, {options}"
        logits = shape[:-1] + linear[:-1]
        target = class_ids(logits, "some") if hard else randoms(*logits, seed=1, dtype=dtype).softmax(len(shape) - 1)
        inputs = randoms(*shape, dtype=dtype), randoms(*linear, dtype=dtype, seed=2), target
        given = {"weight": table(weights, dtype), "reduction": reduction, "label_smoothing": smoothing}
        given["linear_bias"] = randoms(*linear[:-1], dtype=dtype, seed=3) if bias else None
        if reduction == "mean" and not logits[0]:  # "a mean over nothing"
            ours, theirs = both("linear_cross_entropy", inputs, **given)
            assert theirs[0].isnan(), what
            assert not ours[0], what
            continue
        assert_agree("linear_cross_entropy", inputs, what, **given)
        if options is not None:
            ours = result(compat.linear_cross_entropy, inputs, options=options, **given)
            assert_same(ours, both("linear_cross_entropy", inputs, **given)[1], dtype, what)


NAMES = ("cross_entropy", "binary_cross_entropy_with_logits", "linear_cross_entropy")


@pytest.mark.parametrize("name", NAMES)
def test_signatures(name):
    """The same arguments, in the same order, of the same kinds and defaults."""
    ours, theirs = (inspect.signature(getattr(library, name)).parameters.values() for library in (compat, F))
    assert [(p.name, p.kind, p.default) for p in ours] == [(p.name, p.kind, p.default) for p in theirs]


@pytest.mark.parametrize("size_average", [None, True, False])
@pytest.mark.parametrize("reduce", [None, True, False])
@pytest.mark.parametrize("name", NAMES[:2])
def test_deprecated_arguments(name, size_average, reduce):
    """They override `reduction`, with PyTorch's warning."""
    inputs = randoms(4, 3), randoms(4, 3, seed=1).sigmoid()
    options = {"size_average": size_average, "reduce": reduce, "reduction": "none"}
    if size_average is reduce is None:
        assert_agree(name, inputs, "not given", **options)
        return
    with pytest.warns(UserWarning, match="please use reduction="):
        assert_agree(name, inputs, "given", **options)
    with pytest.warns(UserWarning, match="please use reduction="):
        module = compat.CrossEntropyLoss(size_average=size_average, reduce=reduce)
    with pytest.warns(UserWarning, match="please use reduction="):
        assert module.reduction == torch.nn.CrossEntropyLoss(size_average=size_average, reduce=reduce).reduction


H, V, IDS, SOFT = torch.ones(4, 5), torch.ones(3, 5), torch.zeros(4, dtype=torch.long), torch.ones(4, 3)
LEARNED = torch.ones(3, requires_grad=True)
IMAGE = torch.ones(2, 3, 4, 5)  # with the classes first, as PyTorch has them
PIXELS = torch.zeros(2, 4, 5, dtype=torch.long)
ERRORS = (
    (
        "cross_entropy",
        (IMAGE.movedim(1, -1), PIXELS),
        {},
        ValueError,
        "target: expected shape (2, 5, 3) (the input's without the classes), got (2, 4, 5); "
        "the classes are taken from axis 1",
    ),
    ("cross_entropy", (IDS, SOFT), {}, TypeError, "input: expected 'float16', 'bfloat16', 'float32' or 'float64', got"),
    (
        "cross_entropy",
        (SOFT, IDS.float()),
        {},
        ValueError,
        "target: expected shape (4, 3) (the input's), got (4,); class",
    ),
    ("cross_entropy", (SOFT, IDS + 3), {}, xent.LabelError, "target: 4 of 4 class ids out of range, the first at [0]"),
    ("cross_entropy", (SOFT, IDS), {"weight": torch.ones(2)}, ValueError, "weight: expected shape (3,) (one for each"),
    ("cross_entropy", (SOFT, IDS), {"ignore_index": None}, TypeError, "ignore_index: expected an int, got None"),
    (
        "cross_entropy",
        (SOFT, IDS),
        {"label_smoothing": LEARNED[0]},
        TypeError,
        "label_smoothing: expected a number, or",
    ),
    (
        "binary_cross_entropy_with_logits",
        (SOFT, SOFT),
        {"pos_weight": torch.ones(2)},
        ValueError,
        "pos_weight: expected a shape that broadcasts to the input's (4, 3), got (2,)",
    ),
    ("linear_cross_entropy", (H, V.half(), IDS), {}, TypeError, "linear_weight: expected float32, as input is, got"),
    ("linear_cross_entropy", (H, V, IDS[:2]), {}, ValueError, "target: expected shape (4,) (the logits' without the c"),
    (
        "linear_cross_entropy",
        (H, V, IDS),
        {"weight": torch.ones(2)},
        ValueError,
        "weight: expected shape (3,) (one for each",
    ),
    ("linear_cross_entropy", (IDS[:, None], V[:, :1], IDS), {}, TypeError, "input: expected 'float16', 'bfloat16', "),
    ("cross_entropy", (SOFT.tolist(), IDS), {}, TypeError, "input: expected a torch.Tensor, got list"),
    ("cross_entropy", (SOFT, IDS.numpy()), {}, TypeError, "target: expected a torch.Tensor, got ndarray"),
    ("cross_entropy", (SOFT, SOFT), {"ignore_index": 1}, ValueError, "ignore_index: expected none where target holds"),
    (
        "cross_entropy",
        (SOFT, IDS),
        {"reduction": "all"},
        ValueError,
        "reduction: expected 'none', 'mean' or 'sum', got",
    ),
    ("cross_entropy", (SOFT, IDS), {"label_smoothing": 2.0}, ValueError, "label_smoothing: expected a number from 0"),
    ("cross_entropy", (torch.tensor(1.0), IDS[0]), {}, ValueError, "input: expected at least one dimension"),
    (
        "binary_cross_entropy_with_logits",
        (SOFT, SOFT[0]),
        {},
        ValueError,
        "target: expected shape (4, 3) (the input's), got (3,)",
    ),
    ("linear_cross_entropy", (H, V, IDS), {"weight": LEARNED}, ValueError, "weight: xent takes it for a constant and"),
    ("linear_cross_entropy", (H, V, SOFT), {"ignore_index": -100}, ValueError, "ignore_index: expected None where"),
    (
        "linear_cross_entropy",
        (H[None], V, IDS[None]),
        {},
        ValueError,
        "input: expected 1 or 2 dimensions, got shape (1,",
    ),
    (
        "linear_cross_entropy",
        (H[0], V[:, None], IDS[:1]),
        {},
        ValueError,
        "input: expected 2 dimensions, got shape (5,",
    ),
    (
        "linear_cross_entropy",
        (H, V[0], IDS),
        {},
        ValueError,
        "linear_weight: expected shape (classes, ..., 5), got (5,)",
    ),
    (
        "linear_cross_entropy",
        (H, V, IDS),
        {"linear_bias": H[0]},
        ValueError,
        "linear_bias: expected shape (3,), got (5",
    ),
    (
        "linear_cross_entropy",
        (H, V, SOFT),
        {"linear_bias": V},
        ValueError,
        "linear_bias: expected shape (3,), got (3, 5)",
    ),
)


@pytest.mark.parametrize("dtype", [torch.float32, torch.long])
def test_options_that_are_tensors(dtype):
    """Numbers of no dimensions, as PyTorch takes them."""
    smoothing, index = torch.tensor(0.25 if dtype.is_floating_point else 1, dtype=dtype), torch.tensor(1)
    assert_agree("cross_entropy", (SOFT, IDS), "smoothing", label_smoothing=smoothing)
    assert_agree("linear_cross_entropy", (H, V, IDS), "smoothing", label_smoothing=smoothing)
    assert_agree("cross_entropy", (SOFT, class_ids((4, 3), "a class")), "index", ignore_index=index)


@pytest.mark.parametrize(("name", "args", "options", "error", "sentence"), ERRORS)
def test_both_raise(name, args, options, error, sentence):
    with pytest.raises(error) as caught:
        getattr(compat, name)(*args, **options)
    assert str(caught.value).startswith(sentence)
    with pytest.raises((RuntimeError, ValueError, TypeError, IndexError)):
        getattr(F, name)(*args, **options)
