"""What the programs of PyTorch's users are built from (test_programs_torch*.py)."""

import numpy as np
import pytest
import torch
import xent
from programs import WEIGHT, assert_close


@pytest.fixture(autouse=True)
def fresh():
    torch._dynamo.reset()
    xent.sparse_ce(torch.zeros(1, 2), [0])  # a first call that is compiled is compiled again for the second


def backend_for(problem):
    """Autograd is traced for some; it takes longer than all the rest."""
    return "aot_eager" if problem.name in ("sparse", "linear") else "eager"


def keeping(graphs):
    """A backend for torch.compile that appends to a list what a compiler would get, and runs it as it is."""
    from torch._dynamo.backends.common import aot_autograd
    from torch._functorch.aot_autograd import make_boxed_func

    def keep(graph, _):
        graphs.append(graph)
        return make_boxed_func(graph)

    return aot_autograd(fw_compiler=keep)


def tensors(arrays):
    return tuple(torch.tensor(k) for k in arrays)


def loss_of(problem, **more):
    """f(x, *rest), with the problem's options."""
    options = {name: torch.tensor(k) if isinstance(k, np.ndarray) else k for name, k in problem.options.items()}
    return lambda x, *rest: getattr(xent, problem.loss)(x, *rest, **options, **more)


def of_x(problem, **more):
    loss, rest = loss_of(problem, **more), tensors(problem.rest)
    return lambda x: loss(x, *rest)


def backward(f, x, *rest):
    x = x.detach().requires_grad_()
    loss = f(x, *rest)
    loss.backward()
    return loss, x.grad


def check(problem, found, what, truth=None):
    for got, want, name in zip(found, truth or problem.truth(), ("loss", "gradient"), strict=True):
        assert_close(got.detach(), want, problem, f"{what}: {name}")


def with_rows(problem, n):
    """The problem's rows again and again, until there are n."""

    def rows(k):
        return np.resize(k, (n, *k.shape[1:]))

    rest = tuple(k if k is WEIGHT else rows(k) for k in problem.rest)
    return problem._replace(x=rows(problem.x), rest=rest)
