"""PyTorch programs as users write them, around every loss: values and gradients are the oracle's."""

import contextlib
import copy
import io
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")

import xent  # noqa: E402
from programs import (  # noqa: E402
    CLASS_WEIGHT,
    HIDDEN,
    IDS,
    WEIGHT,
    assert_close,
    cover,
    each_problem,
)
from programs_torch import backend_for, backward, check, fresh, loss_of, of_x, tensors, with_rows  # noqa: E402, F401
from torch.fx.experimental.proxy_tensor import make_fx  # noqa: E402
from torch.utils.checkpoint import checkpoint  # noqa: E402

pytestmark = [pytest.mark.backend("torch"), pytest.mark.compiled]
func = torch.func


# ---- programs that hand over a loss's value and gradient: program(f, x) = f(x), f'(x)


class Subclass(torch.Tensor):
    pass


class Module(torch.nn.Module):
    def __init__(self, f, x):
        super().__init__()
        self.f, self.x = f, torch.nn.Parameter(x.clone())

    def forward(self):
        return self.f(self.x)


def of_parameter(f, x):
    model = copy.deepcopy(Module(f, x)).share_memory()
    loss = model()
    loss.backward()
    return loss, model.x.grad


def functional_call(f, x):
    model = Module(f, torch.zeros_like(x))
    return func.grad_and_value(lambda x: func.functional_call(model, {"x": x}, ()))(x)[::-1]


def on_saved_copies(f, x):
    """As offloading does it."""
    with torch.autograd.graph.saved_tensors_hooks(lambda k: k.numpy(force=True).copy(), torch.from_numpy):
        loss = f(leaf := x.detach().requires_grad_())
    return loss, torch.autograd.grad(loss, leaf)[0]


def twice(f, x):
    """The second derivative of one graph, after the first was changed in place."""
    x = x.detach().requires_grad_()
    loss = f(x)
    torch.autograd.grad(loss, x, retain_graph=True)[0].zero_()
    return loss, torch.autograd.grad(loss, x)[0]


def scaled(f, x):
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    x = torch.nn.Parameter(x.clone())
    optimizer = torch.optim.SGD([x], 1.0)
    before = x.detach().clone()
    loss = f(x)
    scaler.scale(loss).backward()
    scaler.unscale_(optimizer)
    gradient = x.grad.clone()
    scaler.step(optimizer)
    np.testing.assert_allclose((before - x).detach(), gradient, rtol=0, atol=1e-6)
    return loss, gradient


def in_threads(f, x):
    """As DataParallel has it: every replica in a thread."""
    with ThreadPoolExecutor(4) as pool:
        found = [*pool.map(lambda _: backward(f, x), range(4))]
    for other in found[1:]:
        assert torch.equal(found[0][1], other[1])
    return found[0]


@contextlib.contextmanager
def default_dtype(dtype):
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def inside(context):
    def program(f, x):
        with context():
            return backward(f, x)

    return program


def view(change):
    """change(x) has x's values in another layout."""
    return lambda f, x: backward(f, change(x))


def as_view_in_graph(f, x):
    """A slice of a larger leaf, expanded and transposed on the way."""
    leaf = torch.stack([x, x]).mT.contiguous().requires_grad_()
    loss = f(leaf.mT[0])
    gradient = torch.autograd.grad(loss, leaf)[0].mT
    assert not gradient[1].any()
    return loss, gradient[0]


def batched_backward(f, x):
    x = x.detach().requires_grad_()
    loss = f(x)
    gradients = torch.autograd.grad(loss, x, torch.tensor([1.0, 3.0]), is_grads_batched=True)[0]
    np.testing.assert_allclose(gradients[1], 3 * gradients[0], rtol=1e-5, atol=1e-7)
    return loss, gradients[0]


def traced(f, x):
    """Recorded on other values, written and read."""
    file = io.BytesIO()
    torch.jit.save(torch.jit.trace(f, (x.flip(0).clone().requires_grad_(),)), file)
    file.seek(0)
    return backward(torch.jit.load(file), x)


def fx(mode):
    def program(f, x):
        example = x.flip(0).clone()
        graph = make_fx(func.grad_and_value(f), tracing_mode=mode, _allow_non_fake_inputs=True)(example)
        return graph(x)[::-1]

    return program


def wholly_in_inference_mode(f, x):
    loss, gradient = backward(f, x)
    with torch.inference_mode():
        assert f(x.clone()).item() == pytest.approx(loss.item(), rel=1e-6)
    with torch.no_grad():
        assert not f(x.clone().requires_grad_()).requires_grad
    return loss, gradient


class Passing(torch.utils._python_dispatch.TorchDispatchMode):
    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        return function(*args, **(kwargs or {}))


PROGRAMS = {
    "backward": backward,
    "grad_and_value": lambda f, x: func.grad_and_value(f)(x)[::-1],
    "vjp": lambda f, x: (f(x), func.vjp(f, x)[1](torch.tensor(1.0))[0]),
    "jacrev": lambda f, x: (f(x), func.jacrev(f)(x)),
    "jacfwd": lambda f, x: (f(x), func.jacfwd(f)(x)),
    "functionalize": lambda f, x: func.functionalize(func.grad_and_value(f))(x)[::-1],
    "value_and_grad_by_name": lambda f, x: xent.value_and_grad(f)(x=x),
    "parameter": of_parameter,
    "functional_call": functional_call,
    "subclass": lambda f, x: backward(f, x.as_subclass(Subclass)),
    "checkpoint": lambda f, x: backward(lambda x: checkpoint(f, x, use_reentrant=False), x),
    "reentrant_checkpoint": lambda f, x: backward(lambda x: checkpoint(f, x, use_reentrant=True), x),
    "saved_tensor_hooks": on_saved_copies,
    "retain_graph": twice,
    "is_grads_batched": batched_backward,
    "grad_scaler": scaled,
    "threads": in_threads,
    "inference_mode": wholly_in_inference_mode,
    "default_device": inside(lambda: torch.device("meta")),
    "default_float64": inside(lambda: default_dtype(torch.float64)),
    "default_bfloat16": inside(lambda: default_dtype(torch.bfloat16)),
    "autocast": inside(lambda: torch.autocast("cpu", dtype=torch.bfloat16)),
    "dispatch_mode": inside(Passing),
    "transposed": view(lambda x: x.mT.contiguous().mT),
    "sliced": view(lambda x: torch.stack([x, -x], -1)[..., 0]),
    "reversed": view(lambda x: x.flip(1).flip(1)),
    "negated": view(lambda x: torch._neg_view(-x)),
    "imaginary": view(lambda x: torch.complex(x, -x).conj().imag),
    "view_in_graph": as_view_in_graph,
    "jit_trace": traced,
    "make_fx": fx("real"),
    "make_fx_symbolic": fx("symbolic"),
}


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
@pytest.mark.parametrize(("program", "problem"), cover(PROGRAMS))
def test_program(problem, program):
    check(problem, PROGRAMS[program](of_x(problem), torch.tensor(problem.x)), program)


# ---- batches and mapped axes


@each_problem
def test_single_examples(problem):
    """vmap over them, and over their gradients, as per-example clipping has it."""
    loss, rest = loss_of(problem, reduce="sum"), tensors(problem.rest)
    axes = tuple(None if k.shape == WEIGHT.shape and problem.loss == "linear_ce" else 0 for k in rest)
    both = func.vmap(func.grad_and_value(loss), (0, *axes))
    gradients, losses = both(torch.tensor(problem.x), *rest)
    total = problem._replace(options={**problem.options, "reduce": "sum"})
    check(total, (losses.sum(), gradients), "vmap(grad)")


@each_problem
def test_single_examples_by_mean(problem):
    """The mean of one example is its loss, whatever its class weight, except for soft labels' weights."""
    loss, rest = loss_of(problem), tensors(problem.rest)
    axes = tuple(None if k.shape == WEIGHT.shape and problem.loss == "linear_ce" else 0 for k in rest)
    gradients = func.vmap(func.grad(loss), (0, *axes))(torch.tensor(problem.x), *rest)
    for i in range(len(problem.x)):
        one = problem._replace(
            x=problem.x[i : i + 1], rest=tuple(k if k is WEIGHT else k[i : i + 1] for k in problem.rest)
        )
        assert_close(gradients[i : i + 1], one.truth()[1], problem, f"vmap(grad), example {i}")


@each_problem
def test_accumulation(problem):
    """Micro-batches with the whole batch's denominator add up to the whole batch's gradient, before a clipped step."""
    whole, rest = of_x(problem), problem.rest
    if "class_weight" in problem.options:
        weight = CLASS_WEIGHT[IDS].sum() if problem.loss == "sparse_ce" else (rest[0] @ CLASS_WEIGHT).sum()
    else:
        weight = problem.x.size if problem.loss == "sigmoid_ce" else len(problem.x)
    x = torch.tensor(problem.x).requires_grad_()
    total = 0.0
    for part in (slice(0, 1), slice(1, 4)):
        micro = tuple(torch.tensor(k if k is WEIGHT else k[part]) for k in rest)
        loss = loss_of(problem, denom=float(weight))(x[part], *micro)
        loss.backward()
        total += loss.detach()
    check(problem, (total, x.grad), "accumulation")
    np.testing.assert_allclose(whole(x).detach(), total, rtol=1e-6)


# ---- higher derivatives


@each_problem
def test_double_backward(problem):
    """A gradient penalty: the second derivative against differences of the oracle's gradient."""
    direction = np.random.default_rng(5).normal(size=problem.x.shape)
    x = torch.tensor(problem.x, dtype=torch.float64)
    rest = tuple(k.double() if k.is_floating_point() else k for k in tensors(problem.rest))
    f = loss_of(problem)
    step = 1e-5
    ahead, behind = (problem.truth(problem.x.astype(float) + sign * step * direction)[1] for sign in (1, -1))
    want = (ahead - behind) / (2 * step)
    leaf = x.requires_grad_()
    (slope,) = torch.autograd.grad(f(leaf, *rest), leaf, create_graph=True)
    (got,) = torch.autograd.grad((slope * torch.tensor(direction)).sum(), leaf)
    assert_close(got, want, problem, "double backward")


# ---- what a program must not do


@each_problem
def test_logits_changed_before_backward(problem):
    """The gradient of the old values or PyTorch's error, never the new values' gradient."""
    leaf = torch.tensor(problem.x).requires_grad_()
    x = leaf * 1
    loss = of_x(problem)(x)
    with torch.no_grad():
        x.mul_(3)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_training():
    """Ten steps of a head with Adam, beside the same steps on F.cross_entropy in float64."""
    x, y = torch.tensor(HIDDEN), torch.tensor(IDS)

    def train(head, loss):
        optimizer = torch.optim.Adam([head], 0.1)
        for _ in range(10):
            optimizer.zero_grad()
            value = loss(head)
            value.backward()
            torch.nn.utils.clip_grad_norm_([head], 1.0)
            optimizer.step()
        return value.item()

    def head(dtype):
        return torch.nn.Parameter(torch.tensor(WEIGHT, dtype=dtype))

    reference = train(head(torch.float64), lambda w: torch.nn.functional.cross_entropy(x.double() @ w.T, y))
    assert train(head(torch.float32), lambda w: xent.sparse_ce(x @ w.T, y)) == pytest.approx(reference, rel=1e-4)
    assert train(head(torch.float32), lambda w: xent.linear_ce(x, w, y)) == pytest.approx(reference, rel=1e-4)


def test_flops_of_linear_ce():
    from torch.utils.flop_counter import FlopCounterMode

    y, product = torch.tensor(IDS), 2 * HIDDEN.shape[0] * WEIGHT.size
    for trained, products in ((False, 1), (True, 3)):
        h, w = torch.tensor(HIDDEN).requires_grad_(trained), torch.tensor(WEIGHT).requires_grad_(trained)
        with FlopCounterMode(display=False) as counter:
            loss = xent.linear_ce(h, w, y)
            if trained:
                loss.backward()
        assert counter.get_total_flops() == products * product
