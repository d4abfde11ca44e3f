"""PyTorch's own transforms: every derivative, batched, compiled, against log_softmax in float64."""

import contextlib
import re

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")

import cases  # noqa: E402
import xent  # noqa: E402
from cases import T, V, W, X, Y, Z, traced_by_torch  # noqa: E402
from programs import HIDDEN, IDS, PROBLEMS, WEIGHT, assert_close, cover  # noqa: E402
from programs_torch import keeping  # noqa: E402
from xent.backends.torch import OPS  # noqa: E402

Y1, W1 = torch.tensor(Y), torch.tensor(W)
F = torch.nn.functional
pytestmark = pytest.mark.backend("torch")
func = torch.func


def softmax_reference(x, t, z_loss=0.0):
    lse, w = torch.logsumexp(x, -1), W1
    return (w * ((t * (lse[:, None] - x)).sum(-1) + z_loss * lse**2)).sum() / w.sum()


def sparse_reference(x, t):
    return softmax_reference(x, 0.9 * F.one_hot(Y1, 4).to(x.dtype) + 0.1 / 4, 0.3)


def linear_reference(x, v):
    return sparse_reference(2 * torch.tanh(x @ v.T / 2), None)


def each_reference(x, v):
    return torch.linspace(-1, 2, 3, dtype=x.dtype) @ (W1 * F.cross_entropy(x @ v.T, Y1, reduction="none"))


def each_linear(x, v):
    return torch.linspace(-1, 2, 3, dtype=x.dtype) @ xent.linear_ce(
        x, v, Y1, sample_weight=W1, reduce="none", chunk_rows=2
    )


def sigmoid_reference(x, z):
    return (2 * z * F.softplus(-x, threshold=1e3) + (1 - z) * F.softplus(x, threshold=1e3)).mean()


PAIRS = {
    "sparse": (
        lambda x, t: xent.sparse_ce(x, Y1, sample_weight=W1, label_smoothing=0.1, z_loss=0.3),
        sparse_reference,
        T,
    ),
    "softmax": (lambda x, t: xent.softmax_ce(x, t, sample_weight=W1), softmax_reference, T),
    "linear": (
        lambda x, v: xent.linear_ce(
            x, v, Y1, softcap=2.0, sample_weight=W1, label_smoothing=0.1, z_loss=0.3, chunk_rows=2
        ),
        linear_reference,
        V,
    ),
    "linear_each": (each_linear, each_reference, V),
    "sigmoid": (lambda x, z: xent.sigmoid_ce(x, z, pos_weight=2.0), sigmoid_reference, Z),
}


def reverse(f):
    def run(x, t):
        x, t = x.clone().requires_grad_(), t.clone().requires_grad_()
        return torch.autograd.grad(f(x, t), (x, t), allow_unused=True, materialize_grads=True)

    return run


def twice(f):
    def run(x, t):
        x, t = x.clone().requires_grad_(), t.clone().requires_grad_()
        first = torch.autograd.grad(f(x, t), (x, t), create_graph=True, allow_unused=True, materialize_grads=True)
        return torch.autograd.grad(
            (first[0] * x.detach().cos()).sum(), (x, t), allow_unused=True, materialize_grads=True
        )

    return run


TRANSFORMS = {
    "value": lambda f: f,
    "backward": reverse,
    "double_backward": twice,
    "func_grad": lambda f: func.grad(f, (0, 1)),
    "jvp": lambda f: lambda x, t: func.jvp(f, (x, t), (x.cos(), t.sin())),
    "hessian": lambda f: func.hessian(f, (0, 1)),
    "rev_over_rev": lambda f: func.jacrev(func.jacrev(f)),
    "fwd_over_fwd": lambda f: func.jacfwd(func.jacfwd(f, 1)),
    "rev_over_fwd": lambda f: func.jacrev(func.jacfwd(f)),
    "third_order": lambda f: func.jacfwd(func.hessian(f)),
    "vmap_grad": lambda f: lambda x, t: func.vmap(func.grad(f), (0, None))(torch.stack([x, 2 * x]), t),
    "grad_of_vmap": lambda f: (
        lambda x, t: func.grad(lambda xs: func.vmap(f, (0, None))(xs, t).sum())(torch.stack([x, 2 * x]))
    ),
}


def assert_trees_close(got, want, rtol=1e-11):
    got, want = (torch.utils._pytree.tree_leaves(tree) for tree in (got, want))
    assert len(got) == len(want)
    for g, w in zip(got, want, strict=True):
        np.testing.assert_allclose(g.detach(), w.detach(), rtol=rtol, atol=1e-13)


@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("loss", PAIRS)
def test_transform(loss, transform):
    ours, reference, second = PAIRS[loss]
    x, t = torch.tensor(X), torch.tensor(second)
    assert_trees_close(TRANSFORMS[transform](ours)(x, t), TRANSFORMS[transform](reference)(x, t))


@pytest.mark.parametrize("transform", ["jvp", "func_grad"])
@pytest.mark.parametrize("loss", ["softmax", "sigmoid"])
def test_labels_of_exactly_zero(loss, transform):
    """The derivative in a label of 0 is the gap, lse - x, not 0."""
    ours, reference, second = PAIRS[loss]
    x, t = torch.tensor(X), torch.tensor(np.round(second))
    assert_trees_close(TRANSFORMS[transform](ours)(x, t), TRANSFORMS[transform](reference)(x, t))


@pytest.mark.parametrize("transform", [func.grad, func.jacfwd, func.hessian])
def test_labels_that_take_no_part_in_a_transform_are_read(transform):
    """Inside it too they are concrete and in host memory."""
    x, beyond = torch.tensor(X), Y1 + 4
    got, want = (transform(f)(x) for f in (lambda x: xent.sparse_ce(x, Y1), lambda x: F.cross_entropy(x, Y1)))
    assert_trees_close(got, want)
    with pytest.raises(xent.LabelError, match="out of range"):
        transform(lambda x: xent.sparse_ce(x, beyond))(x)


@pytest.mark.compiled
@pytest.mark.parametrize(("transform", "loss"), cover(["value", "backward", "func_grad", "vmap_grad"], PAIRS, each=1))
def test_compiled(loss, transform):
    ours, reference, second = PAIRS[loss]
    x, t = torch.tensor(X), torch.tensor(second)
    if transform == "backward":
        compiled = reverse(traced_by_torch(ours))
    else:
        compiled = traced_by_torch(TRANSFORMS[transform](ours))
    assert_trees_close(compiled(x, t), TRANSFORMS[transform](reference)(x, t))


CODE_CALLS = {
    "value_and_grad": {"rows_both"},
    "backward": {"rows_both", "factor"},  # the logits are visited once
    "backward of many logits": {"rows", "rows_backward"},
}


def code_of(run, f, generated=cases.FULL):
    """What run(compiled f) returns, and the code of the graphs that Inductor gets, or of what it generates of them."""
    from torch._inductor.utils import run_and_get_code

    torch._dynamo.reset()
    if generated:
        result, code = run_and_get_code(run, torch.compile(f, fullgraph=True))
        return result, "".join(code)
    graphs = []
    result = run(torch.compile(f, fullgraph=True, backend=keeping(graphs)))
    return result, "".join(graph.print_readable(print_output=False) for graph in graphs)


@pytest.mark.compiled
@pytest.mark.parametrize("run", CODE_CALLS)
def test_compiled_code_calls_the_kernels(run, monkeypatch):
    """As operators that torch.compile leaves as they are, where they are installed; with an option, that is: a plain
    mean is one operator, in test_programs_torch_compiled.py."""
    from xent.backends.cpu import native
    from xent.backends.torch import kernels

    if run == "backward of many logits":
        monkeypatch.setattr(kernels, "IN_CACHE", 0)

    x = torch.tensor(X, dtype=torch.float32, requires_grad=run != "value_and_grad")
    loss = xent.value_and_grad(xent.sparse_ce) if run == "value_and_grad" else xent.sparse_ce

    def gradient(compiled):
        return compiled(x)[1] if run == "value_and_grad" else torch.autograd.grad(compiled(x), x)[0]

    grad, code = code_of(gradient, lambda x: loss(x, Y1, reduce="mean_all"), generated=run == "backward" or cases.FULL)
    called = set(re.findall(r"torch\.ops\.xent\.(\w+)\.default\(", code))
    assert called == (CODE_CALLS[run] if native else set())
    np.testing.assert_allclose(grad, reverse(sparse_plain)(torch.tensor(X), torch.tensor(T))[0], rtol=1e-5, atol=1e-7)


def test_meta_tensors():
    """Losses of tensors without values have a shape, a dtype and gradients, as a model on this device needs."""
    x, v = (torch.tensor(k, device="meta", requires_grad=True) for k in (X, V))
    y, t = Y1.to("meta"), torch.tensor(T, device="meta")
    for loss in (xent.sparse_ce(x, y), xent.softmax_ce(x, t), xent.sigmoid_ce(x, t), xent.linear_ce(x, v, y)):
        assert loss.is_meta
        assert loss.dtype == torch.float64
        assert torch.autograd.grad(loss, x)[0].shape == x.shape


@pytest.mark.compiled
def test_compiled_head_is_one_operator():
    """The loop over the chunks is not unrolled, and the logits are in no buffer of the graph's."""
    h, v = torch.randn(64, 4, requires_grad=True), torch.randn(11, 4, requires_grad=True)
    y = torch.arange(64) % 11
    grads, code = code_of(
        lambda compiled: torch.autograd.grad(compiled(h, v), (h, v)),
        lambda h, v: xent.linear_ce(h, v, y, chunk_rows=4),
    )
    assert code.count("torch.ops.xent.linear.default(") == 1
    assert "64, 4" in code
    assert "64, 11" not in code
    for got, want in zip(grads, torch.autograd.grad(F.cross_entropy(h @ v.T, y), (h, v)), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-6)


def sparse_plain(x, t):
    return F.cross_entropy(x, Y1)


@pytest.mark.compiled
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_compiled_sums_of_many_equal_terms(dtype):
    """Inductor's running totals would lose four digits: a mean over a batch whose losses are all ln 2."""
    each = torch.full((1 << 18,), np.log(2), dtype=dtype)
    compiled = torch.compile(lambda each: OPS.sum(each, None), fullgraph=True, dynamic=True)
    rounded = each[0].double() * len(each)
    np.testing.assert_allclose(compiled(each), rounded, rtol=1e-6 if dtype == torch.float32 else 1e-14)


@pytest.mark.parametrize("inside_autocast", [False, True], ids=["float32", "autocast"])
def test_layout_does_not_decide(inside_autocast):
    """Contiguous products are native kernels, others PyTorch's, which autocast would round to 8 bits."""
    problem = next(problem for problem in PROBLEMS if problem.name == "linear")
    y = torch.tensor(IDS)
    layouts = {
        "contiguous": lambda k: k,
        "transposed": lambda k: k.mT.contiguous().mT,
        "sliced": lambda k: torch.stack([k, -k], -1)[..., 0],
        "negated": lambda k: torch._neg_view(-k),
    }
    for options in ({}, {"reduce": "sum", "denom": None}, {"softcap": 30.0}):
        found = {}
        for one, change_h in layouts.items():
            for two, change_w in layouts.items():
                h, w = torch.tensor(HIDDEN).requires_grad_(), torch.tensor(WEIGHT).requires_grad_()
                with torch.autocast("cpu") if inside_autocast else contextlib.nullcontext():
                    loss = xent.linear_ce(change_h(h), change_w(w), y, **options)
                    second = func.grad(lambda h, w=w, o=options: xent.linear_ce(h, w.detach(), y, **o))(h.detach())
                    loss.backward()  # inside it too, which PyTorch advises against
                found[one, two] = loss, h.grad, w.grad, second
        first = next(iter(found.values()))
        for layout, results in found.items():
            for got, want in zip(results, first, strict=True):
                assert_close(got.detach(), want.detach(), problem, f"{options}, {layout}")
            assert_close(results[3], first[1], problem, f"{options}, {layout}, torch.func.grad")
