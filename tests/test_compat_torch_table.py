"""Every row of xent.compat.torch's table: what it says of PyTorch, and what it says of xent, are true."""

import functools
import math

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")

import xent  # noqa: E402
from compat_rows import on_its_page, subjects  # noqa: E402
from xent.compat import torch as compat  # noqa: E402

pytestmark = pytest.mark.backend("torch")
F, a = torch.nn.functional, torch.tensor
X = a([[2.0, 0.5, 6.0], [0.1, 0.0, 3.0]])
IDS, ONE_HOT = a([2, 1]), a([[0.0, 0.0, 1.0], [0.0, 1.0, 0.0]])
ONES = torch.ones(2, 3)


def grad(function, x, *args, **options):
    x = x.clone().requires_grad_()
    return torch.autograd.grad(function(x, *args, **options).sum(), x)[0]


def raises(error, function, *args, match=None, **options):
    with pytest.raises(error, match=match) as caught:
        function(*args, **options)
    return type(caught.value) is error


def dtypes():
    for dtype in (torch.float16, torch.bfloat16):
        assert F.cross_entropy(X.to(dtype), IDS).dtype == dtype
        assert compat.cross_entropy(X.to(dtype), IDS).dtype == torch.float32
        assert grad(compat.cross_entropy, X.to(dtype), IDS).dtype == dtype
    zeros, ids = torch.zeros(10_000, 1000, dtype=torch.float16), torch.zeros(10_000, dtype=torch.long)
    assert F.cross_entropy(zeros, ids, reduction="sum").isinf()
    assert compat.cross_entropy(zeros, ids, reduction="sum").item() == pytest.approx(10_000 * math.log(1000))


def confident():
    x, exact = a([[20.0, 0.0]]), math.log1p(math.exp(-20))
    assert F.cross_entropy(x, a([0])) == 0
    assert not grad(F.cross_entropy, x, a([0]))[0, 0]
    assert compat.cross_entropy(x, a([0])).item() == pytest.approx(exact, rel=1e-6)
    assert grad(compat.cross_entropy, x, a([0]))[0, 0].item() == pytest.approx(-exact, rel=1e-6)


def infinities():
    x, t = a([[1.0, 2.0, -math.inf]]), a([[0.0, 1.0, 0.0]])
    assert F.cross_entropy(x, t).isnan()
    assert compat.cross_entropy(x, t).item() == pytest.approx(math.log1p(math.exp(-1)))
    assert compat.cross_entropy(x, t) == compat.cross_entropy(x, a([1]))
    for logit, label in ((-math.inf, 0.0), (math.inf, 1.0)):
        assert F.binary_cross_entropy_with_logits(a(logit), a(label)).isnan()
        assert compat.binary_cross_entropy_with_logits(a(logit), a(label)) == 0


def masks():
    x = a([[math.nan, 1.0, 2.0], [0.1, 0.0, 3.0]])
    assert grad(F.cross_entropy, x, a([-100, 1]))[0].isnan().all()
    assert not grad(compat.cross_entropy, x, a([-100, 1]))[0].any()
    assert compat.cross_entropy(x, a([-100, 1])) == compat.cross_entropy(x[1:], a([1]))
    weight = a([0.0, 1.0, 1.0])
    assert F.cross_entropy(x, a([0, 1]), weight).isnan()
    assert compat.cross_entropy(x, a([0, 1]), weight) == compat.cross_entropy(x[1:], a([1]))
    weight = a([[0.0, 1.0, 1.0], [1.0, 1.0, 1.0]])
    assert F.binary_cross_entropy_with_logits(x, ONE_HOT, weight).isnan()
    assert compat.binary_cross_entropy_with_logits(x, ONE_HOT, weight).isfinite()


def smoothed_away():
    options = {"weight": a([1.0, 0.0, 2.0]), "label_smoothing": 0.1, "reduction": "none"}
    for target in (IDS, ONE_HOT):
        theirs, ours = F.cross_entropy(X, target, **options), compat.cross_entropy(X, target, **options)
        torch.testing.assert_close(ours[0], theirs[0])
        assert theirs[1] > 0
        assert ours[1] == 0


def nothing():
    none = (X, a([-100, -100]), None), (X[:0], IDS[:0], None), (X[:0], ONE_HOT[:0], None), (X, IDS, torch.zeros(3))
    for args in none:
        assert F.cross_entropy(*args).isnan()
        assert compat.cross_entropy(*args) == 0
        assert not grad(compat.cross_entropy, *args).any()
    assert F.binary_cross_entropy_with_logits(X[:0], ONES[:0]).isnan()
    assert compat.binary_cross_entropy_with_logits(X[:0], ONES[:0]) == 0


def out_of_range():
    for ids in ([2, -1], [3, 0]):
        assert raises(IndexError, F.cross_entropy, X, a(ids))
        assert raises(xent.LabelError, compat.cross_entropy, X, a(ids))
    rows = torch.func.vmap(compat.cross_entropy)(X, a([2, 3]))  # where ids have no values, as under a compiler
    assert rows.isnan().tolist() == [False, True]


def other_errors():
    for args in ((X, a([0])), (X, IDS, torch.ones(2)), (X, IDS[:, None])):
        with pytest.raises((RuntimeError, ValueError)):
            F.cross_entropy(*args)
        raises(ValueError, compat.cross_entropy, *args, match="^(target|weight): ")
    assert raises(NotImplementedError, F.cross_entropy, X.long(), IDS)
    raises(TypeError, compat.cross_entropy, X.long(), IDS, match="^input: ")
    assert raises(RuntimeError, F.linear_cross_entropy, X, torch.ones(2, 4), IDS)
    raises(ValueError, compat.linear_cross_entropy, X, torch.ones(2, 4), IDS, match="^linear_weight: ")


def integer_targets():
    for dtype in (torch.int8, torch.int16, torch.int32, torch.bool):
        assert raises(RuntimeError, F.cross_entropy, X, IDS.to(dtype))
        assert compat.cross_entropy(X, IDS.to(dtype)) == compat.cross_entropy(X, IDS.to(dtype).long())
    for dtype in (torch.uint8, torch.long):
        torch.testing.assert_close(F.cross_entropy(X, IDS.to(dtype)), compat.cross_entropy(X, IDS.to(dtype)))
    assert raises(RuntimeError, F.binary_cross_entropy_with_logits, X, ONE_HOT.long())
    want = compat.binary_cross_entropy_with_logits(X, ONE_HOT)
    assert compat.binary_cross_entropy_with_logits(X, ONE_HOT.long()) == want


def wider():
    assert raises(RuntimeError, F.cross_entropy, X, IDS, torch.ones(3).double())
    assert F.cross_entropy(X, ONE_HOT.double()).dtype == torch.float64
    assert F.binary_cross_entropy_with_logits(X, ONE_HOT.double()).dtype == torch.float64
    assert compat.cross_entropy(X, IDS, torch.ones(3).double()).dtype == X.dtype
    assert compat.cross_entropy(X, ONE_HOT.double()).dtype == X.dtype
    assert compat.binary_cross_entropy_with_logits(X, ONE_HOT.double(), ONES.double()).dtype == X.dtype


def smoothing_below_0():
    for target in (IDS, ONE_HOT):
        assert F.cross_entropy(X, target, label_smoothing=-0.1) == F.cross_entropy(X, target)
        raises(ValueError, compat.cross_entropy, X, target, label_smoothing=-0.1, match="^label_smoothing: ")


def elementwise_mean():
    with pytest.warns(UserWarning, match="deprecated"):
        assert F.cross_entropy(X, IDS, reduction="elementwise_mean") == F.cross_entropy(X, IDS)
    raises(ValueError, compat.cross_entropy, X, IDS, reduction="elementwise_mean", match="^reduction: ")


def one_for_a_scalar():
    assert F.cross_entropy(X[0], IDS[:1]) == F.cross_entropy(X[0], IDS[0])
    raises(ValueError, compat.cross_entropy, X[0], IDS[:1], match="^target: ")


def learned_class_weight():
    weight = a([1.0, 2.0, 3.0], requires_grad=True)
    assert grad(lambda w: F.cross_entropy(X, ONE_HOT, w), weight).any()
    assert raises(RuntimeError, F.cross_entropy, X, IDS, weight)
    for target in (IDS, ONE_HOT):
        raises(ValueError, compat.cross_entropy, X, target, weight, match="^weight: ")
        for derivative in (torch.func.grad, torch.func.jacfwd):
            loss = functools.partial(compat.cross_entropy, X, target)
            raises(ValueError, derivative(loss), weight.detach(), match="^weight: ")
        with torch.no_grad():
            assert compat.cross_entropy(X, target, weight).isfinite()
    for library, error in ((F, RuntimeError), (compat, ValueError)):  # no difference
        raises(error, library.binary_cross_entropy_with_logits, X, ONE_HOT, pos_weight=weight, match="pos_weight")


def learned_weight():
    weight = ONES.clone().requires_grad_()
    assert raises(RuntimeError, F.binary_cross_entropy_with_logits, X, ONE_HOT, weight)
    dw = grad(lambda w: compat.binary_cross_entropy_with_logits(X, ONE_HOT, w), weight)
    torch.testing.assert_close(dw, F.binary_cross_entropy_with_logits(X, ONE_HOT, reduction="none") / 6)


def most_memory(function, *args, **options):
    """The largest tensor that an operation makes, in elements."""
    sizes = []

    class Mode(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
            made = operation(*args, **(kwargs or {}))
            sizes.extend(x.numel() for x in torch.utils._pytree.tree_leaves(made) if isinstance(x, torch.Tensor))
            return made

    with Mode():
        function(*args, **options)
    return max(sizes)


LONG = torch.linspace(-1, 1, 4096 * 2).reshape(-1, 2), torch.linspace(-2, 2, 4000).reshape(-1, 2)
CLASSES, LONG_IDS = 2000, torch.arange(4096) % 2000


def rows_at_once(count):
    return compat.LinearCrossEntropyOptions(batch_chunk_size=count)


def chunks():
    assert most_memory(F.linear_cross_entropy, *LONG, LONG_IDS) == len(LONG_IDS) * CLASSES
    assert most_memory(compat.linear_cross_entropy, *LONG, LONG_IDS) < len(LONG_IDS) * CLASSES
    torch.testing.assert_close(compat.linear_cross_entropy(*LONG, LONG_IDS), F.linear_cross_entropy(*LONG, LONG_IDS))
    half = [x.bfloat16() for x in LONG]
    exact = F.linear_cross_entropy(*(x.double() for x in half), LONG_IDS).item()
    assert compat.linear_cross_entropy(*half, LONG_IDS).item() == pytest.approx(exact, rel=1e-6)
    assert F.linear_cross_entropy(*half, LONG_IDS).item() != pytest.approx(exact, rel=1e-6)


def mixed_precision():
    """As autocast makes hidden states."""
    h, w = LONG[0].bfloat16(), LONG[1]
    assert raises(RuntimeError, F.linear_cross_entropy, h, w, LONG_IDS)
    assert F.linear_cross_entropy(h, w, LONG_IDS, options=rows_at_once(64)).dtype == torch.bfloat16
    exact = F.linear_cross_entropy(h.double(), w.bfloat16().double(), LONG_IDS).item()
    assert compat.linear_cross_entropy(h, w, LONG_IDS).item() == pytest.approx(exact, rel=1e-6)
    assert compat.linear_cross_entropy(h, w, LONG_IDS).dtype == torch.float32
    assert grad(lambda w: compat.linear_cross_entropy(h, w, LONG_IDS), w).dtype == torch.float32


def chunk_options():
    assert most_memory(compat.linear_cross_entropy, *LONG, LONG_IDS, options=rows_at_once(64)) == 64 * CLASSES
    h, w = torch.linspace(-1, 1, 8).reshape(4, 2), torch.linspace(-2, 2, 6).reshape(3, 2).requires_grad_()
    y, options = a([0, 1, 2, 0]), rows_at_once(2)
    theirs, ours = (library.linear_cross_entropy(h, w, y, options=options) for library in (F, compat))
    torch.testing.assert_close(ours, theirs)
    theirs.backward(retain_graph=True)
    assert raises(RuntimeError, theirs.backward)
    w.grad = None
    ours.backward(retain_graph=True)
    once = w.grad.clone()
    ours.backward()
    torch.testing.assert_close(w.grad, 2 * once)


CHECKS = {
    "16-bit input": dtypes,
    "a confident, right prediction": confident,
    "logits of -inf without label; of +-inf for sigmoid": infinities,
    "NaN in ignored rows, or at weight 0": masks,
    "label smoothing where the label's class weight is 0": smoothed_away,
    "a mean over nothing": nothing,
    "class ids out of range": out_of_range,
    "other errors": other_errors,
    "integer targets": integer_targets,
    "targets or weights wider than the input": wider,
    "label_smoothing below 0": smoothing_below_0,
    'reduction="elementwise_mean"': elementwise_mean,
    "target of shape (1,) for unbatched input": one_for_a_scalar,
    "cross_entropy's weight that needs a gradient": learned_class_weight,
    "binary_cross_entropy_with_logits's weight that needs a gradient": learned_weight,
    "linear_cross_entropy of class ids, without options": chunks,
    "linear_cross_entropy of 16 bits, its weight of float32": mixed_precision,
    "linear_cross_entropy's options": chunk_options,
}


def test_every_row_has_its_check():
    assert subjects(compat) == list(CHECKS)


def test_the_page_has_the_table():
    assert on_its_page(compat, "pytorch.md")


@pytest.mark.parametrize("row", CHECKS)
def test_row(row):
    CHECKS[row]()
