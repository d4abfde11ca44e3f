"""PyTorch programs that are compiled or exported as a whole: a graph for all batches, lengths that data decide."""

import math
import operator

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")

import xent  # noqa: E402
from programs import IDS, KERNELS, LOGITS, ONE_OF_EACH_LOSS, PROBLEMS, WEIGHT, each_loss, name  # noqa: E402
from programs_torch import (  # noqa: E402
    backend_for,
    backward,
    check,
    fresh,  # noqa: F401
    keeping,
    loss_of,
    tensors,
    with_rows,
)
from torch._dynamo.testing import CompileCounterWithBackend  # noqa: E402

pytestmark = [pytest.mark.backend("torch"), pytest.mark.compiled]


def capped(f):
    """A temperature and a softcap before the loss: products, which compilers contract with a later subtraction."""
    return lambda x, *rest: f(30 * torch.tanh(x / 0.7 / 30), *rest)


@pytest.mark.full
@pytest.mark.parametrize("problem", ONE_OF_EACH_LOSS[:1] if KERNELS else ONE_OF_EACH_LOSS, ids=name)
def test_product_before(problem):
    """By Inductor, which generates code: of the formulas; a kernel is one call for it, as in test_log_prob.py."""
    f, rest = capped(loss_of(problem)), tensors(problem.rest)
    compiled = torch.compile(f, fullgraph=True)
    x = problem.x.astype(float)
    y = 30 * np.tanh(x / 0.7 / 30)
    loss, slope = problem.truth(y)
    problem = problem._replace(bar=3 * problem.bar)  # three steps before the loss
    truth = loss, slope * (1 - (y / 30) ** 2) / 0.7
    check(problem, backward(compiled, torch.tensor(problem.x), *rest), "compiled", truth)
    check(problem, backward(f, torch.tensor(problem.x), *rest), "eager", truth)


def assert_graphs_after(first, problem, counter, compiled, batches):
    """The last batches have no graphs of their own. One graph may take two attempts, so only new ones count."""
    counts = []
    for n in batches:
        grown = with_rows(problem, n)
        found = backward(compiled, torch.tensor(grown.x), *tensors(grown.rest))
        check(grown, found, f"{n} rows")
        counts.append(counter.frame_count)
    assert counts[first - 1 :] == [counts[first - 1]] * (len(batches) - first + 1)


@each_loss
def test_one_graph_for_all_batches(problem):
    """After the first one, which is for its batch alone, as with every function."""
    counter = CompileCounterWithBackend(backend_for(problem))
    compiled = torch.compile(loss_of(problem), fullgraph=True, backend=counter)
    assert_graphs_after(2, problem, counter, compiled, (4, 5, 16, 17, 130, 1100))


@each_loss
def test_dynamic(problem):
    counter = CompileCounterWithBackend(backend_for(problem))
    compiled = torch.compile(loss_of(problem), fullgraph=True, dynamic=True, backend=counter)
    assert_graphs_after(1, problem, counter, compiled, (4, 9, 200))


def test_one_graph_for_all_numbers():
    names = ("label_smoothing", "z_loss", "denom", "sample_weight")
    counter = CompileCounterWithBackend("eager")
    f = torch.compile(
        lambda *args: xent.sparse_ce(*args[:2], **dict(zip(names, args[2:], strict=True))),
        fullgraph=True,
        backend=counter,
    )
    x, y, counts = torch.tensor(LOGITS), torch.tensor(IDS), []
    for k in (0.1, 0.3, 0.4, 0.7):
        numbers = k, k / 2, k * 3, k * 5
        problem = PROBLEMS[0]._replace(options=dict(zip(names, numbers, strict=True)))
        check(problem, backward(f, x, y, *numbers), f"{k}")
        counts.append(counter.frame_count)
    assert counts[1:] == [counts[1]] * 3


def test_one_graph_for_all_ignored_ids():
    """Also for one that data decide, as a tensor's item."""
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(
        lambda x, y, k: xent.sparse_ce(x, y, ignore_index=k if isinstance(k, int) else k.item()),
        fullgraph=True,
        backend=counter,
    )
    x, y, counts = torch.tensor(LOGITS), torch.tensor(IDS), []
    with torch._dynamo.config.patch(capture_scalar_outputs=True):
        for k in (-100, 0, 2, 2**40, -5, torch.tensor(2), torch.tensor(-7)):
            problem = PROBLEMS[0]._replace(options={"ignore_index": int(k)})
            check(problem, backward(compiled, x, y, k), f"{k}")
            counts.append(counter.frame_count)
    assert counts[1:] == [counts[1]] * 4 + [counts[-1]] * 2


@pytest.mark.parametrize("kind", [torch.int32, torch.int64], ids=str)
@pytest.mark.parametrize(("shape", "axis"), [((4, 5), -1), ((2, 5, 3), 1), ((5,), 0), ((0, 5), -1)], ids=str)
def test_ids_that_are_no_class(shape, axis, kind):
    """Each makes its own row NaN, and no other; also one that marks a row elsewhere, such as -2. -3 is ignored."""
    compiled = torch.compile(
        lambda x, y: xent.sparse_ce(x, y, axis=axis, ignore_index=-3), backend="aot_eager", fullgraph=True
    )
    x = torch.linspace(-3, 3, math.prod(shape)).reshape(shape)
    y = torch.arange(math.prod(shape) // 5).reshape(x.sum(axis).shape).to(kind) % 5
    y.view(-1)[:-1:3] = -3
    truth = xent.oracle.sparse_ce(x.double().numpy(), y.numpy(), axis=axis, ignore_index=-3)
    loss, gradient = backward(compiled, x, y)
    torch.testing.assert_close(loss.double(), torch.tensor(truth.loss), rtol=1e-6, atol=0)
    torch.testing.assert_close(gradient.double(), torch.tensor(truth.logits), rtol=1e-6, atol=1e-9)
    for wrong in (-2, -1, 5, 1 << 30) if y.numel() else ():
        spoiled = y.clone()
        spoiled.view(-1)[-1] = wrong
        loss, found = backward(compiled, x, spoiled)
        assert loss.isnan()
        wanted, rows = gradient.movedim(axis, -1).reshape(-1, 5).clone(), found.movedim(axis, -1).reshape(-1, 5)
        wanted[-1] = torch.nan
        torch.testing.assert_close(rows, wanted, rtol=1e-6, atol=0, equal_nan=True)


def test_logits_and_ids_in_any_strides():
    compiled = torch.compile(lambda x, y: xent.sparse_ce(x, y, axis=1), backend="aot_eager", fullgraph=True)
    x, y = torch.linspace(-3, 3, 30).reshape(3, 5, 2).sin(), torch.arange(12).reshape(3, 4) % 5
    truth = xent.oracle.sparse_ce(x.double().numpy(), y[:, ::2].numpy(), axis=1)
    loss, gradient = backward(compiled, x.movedim(1, -1).contiguous().movedim(-1, 1), y[:, ::2])
    torch.testing.assert_close(loss.double(), torch.tensor(truth.loss), rtol=1e-6, atol=0)
    torch.testing.assert_close(gradient.double(), torch.tensor(truth.logits), rtol=1e-6, atol=1e-9)


def test_the_mean_of_ids_is_one_operator():
    """No loop is before it that prepares ids, or counts them. Without kernels there is no operator."""
    graphs = []
    backend = keeping(graphs)
    options = {"axis": 1, "ignore_index": 3}
    compiled = torch.compile(lambda x, y: xent.sparse_ce(x, y, **options), backend=backend)
    x, y = torch.zeros(2, 5, 3), torch.zeros(2, 3, dtype=torch.int64)
    compiled(x, y)
    backward(compiled, x, y)
    torch.compile(lambda x, y: xent.value_and_grad(xent.sparse_ce)(x, y, **options), backend=backend)(x, y)
    called = [[node.target for node in graph.graph.nodes if node.op == "call_function"] for graph in graphs]
    if KERNELS:
        alone = [torch.ops.xent.mean_of_ids.default, operator.getitem]
        both = [*alone, operator.getitem]
        assert called == [alone, both, [torch.ops.xent.factor.default, torch.ops.aten.mul.Tensor], both]
    else:
        assert "xent" not in str(called)


def chosen(f):
    """The loss of rows that data choose, so that their number is known only when the graph runs."""
    return lambda x, keep, *rest: f(x[keep], *(k if len(k) != len(keep) else k[keep] for k in rest))


@each_loss
@torch._dynamo.config.patch(capture_dynamic_output_shape_ops=True)
def test_lengths_that_data_decide(problem):
    compiled = torch.compile(chosen(loss_of(problem)), fullgraph=True, backend=backend_for(problem))
    rest = tensors(problem.rest)
    for keep in ([True, True, False, True], [False, True, False, True]):
        part = problem._replace(x=problem.x[keep], rest=tuple(k if k is WEIGHT else k[keep] for k in problem.rest))
        keep = torch.tensor(keep)
        loss, gradient = backward(compiled, torch.tensor(problem.x), keep, *rest)
        check(part, (loss, gradient[keep]), f"{keep}")
        assert not gradient[~keep].any()


@torch._dynamo.config.patch(capture_dynamic_output_shape_ops=True)
def test_lengths_that_data_decide_are_compared_when_the_graph_runs():
    compiled = torch.compile(lambda x, y, one, two: xent.sparse_ce(x[one], y[two]), fullgraph=True, backend="aot_eager")
    x, y = torch.tensor(LOGITS), torch.tensor(IDS)
    one, two = torch.tensor([True, True, False, True]), torch.tensor([True, False, False, True])
    compiled(x, y, one, one)
    with pytest.raises(RuntimeError, match="u1"):
        compiled(x, y, one, two)


class Exported(torch.nn.Module):
    def __init__(self, f):
        super().__init__()
        self.f = f

    def forward(self, x, rest):
        return self.f(x, *rest)


@pytest.mark.parametrize("strict", [True, False])
def test_an_exported_mean_of_ids(strict):
    """Though torch.compile has an operator for it."""
    given = torch.tensor(LOGITS), (torch.tensor(IDS),)
    program = torch.export.export(Exported(lambda x, y: xent.sparse_ce(x, y)), given, strict=strict)
    assert not [node for node in program.graph.nodes if "xent" in str(node.target)]
    torch.testing.assert_close(program.module()(*given), xent.sparse_ce(given[0], *given[1]))


@each_loss
def test_export_with_an_open_batch(problem):
    """To be trained on, and of PyTorch's own operations, so that it runs where xent is not."""
    batch = torch.export.Dim("batch")
    rest = tensors(problem.rest)
    shapes = {"x": {0: batch}, "rest": tuple({} if k is WEIGHT else {0: batch} for k in problem.rest)}
    program = torch.export.export(Exported(loss_of(problem)), (torch.tensor(problem.x), rest), dynamic_shapes=shapes)
    assert not [node for node in program.graph.nodes if "xent" in str(node.target)]
    for n in (2, 5, 40):
        grown = with_rows(problem, n)
        found = backward(program.module(), torch.tensor(grown.x), tensors(grown.rest))
        check(grown, found, f"{n} rows")
