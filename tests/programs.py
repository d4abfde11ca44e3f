"""What programs around the losses are tried on (test_programs_*.py): small data, every loss, and the oracle's answer.

A call that is right alone can be wrong inside a program: a compiler moves the arithmetic before it into the loss, a
transform adds axes, a mesh splits arrays. So each framework has a table of programs as its users write them.
"""

import itertools
import os
from typing import Any, NamedTuple

import numpy as np
import pytest
from xent import oracle

rng = np.random.default_rng(0)
LOGITS = rng.normal(size=(4, 64)).astype(np.float32)
IDS = np.array([1, 63, 0, 2])
LEADING = (LOGITS + 20 * (np.arange(64) == IDS[:, None])).astype(np.float32)  # confident and right: losses near 1e-7
SOFT = rng.dirichlet(np.ones(64), 4).astype(np.float32)
POSITIVE = (rng.random((4, 64)) < 0.3).astype(np.float32)
WEIGHT = rng.normal(size=(64, 8)).astype(np.float32)
HIDDEN = rng.normal(size=(4, 8)).astype(np.float32)
CLASS_WEIGHT = rng.uniform(0.5, 2, 64).astype(np.float32)


class Problem(NamedTuple):
    """A loss with its arguments: `x` is what a program computes first (logits or hidden states), `rest` follows it."""

    name: str
    loss: str
    x: Any
    rest: tuple[Any, ...]
    options: dict[str, Any]
    bar: float = 2e-6  # relative to the largest entry; a step before the loss rounds each logit once

    def truth(self, x=None):
        """The loss and its gradient in x (by default the problem's own), in float64."""
        x = self.x if x is None else x
        found = getattr(oracle, self.loss)(np.asarray(x, np.float64), *self.rest, **self.options)
        return found.loss, found.hidden if self.loss == "linear_ce" else found.logits


PROBLEMS = (
    Problem("sparse", "sparse_ce", LOGITS, (IDS,), {}),
    Problem("sparse_options", "sparse_ce", LOGITS, (IDS,), {"label_smoothing": 0.1, "z_loss": 0.01}),
    Problem("sparse_class_weight", "sparse_ce", LOGITS, (IDS,), {"class_weight": CLASS_WEIGHT}),
    Problem("sparse_leading", "sparse_ce", LEADING, (IDS,), {}, bar=6e-6),  # a unit in the last place of 20 is 2e-6
    Problem("softmax", "softmax_ce", LOGITS, (SOFT,), {}),
    Problem("softmax_options", "softmax_ce", LOGITS, (SOFT,), {"label_smoothing": 0.1, "class_weight": CLASS_WEIGHT}),
    Problem("sigmoid", "sigmoid_ce", LOGITS, (POSITIVE,), {}),
    Problem("linear", "linear_ce", HIDDEN, (WEIGHT, IDS), {}),
)

ONE_OF_EACH_LOSS = tuple({problem.loss: problem for problem in reversed(PROBLEMS)}.values())[::-1]
each_problem = pytest.mark.parametrize("problem", PROBLEMS, ids=lambda problem: problem.name)
KERNELS = os.environ.get("XENT_NATIVE") != "0"
turns = itertools.count()


def each_loss(test):
    """Parametrizes a test that compiles for seconds by two of the four losses: by the other two without the kernels,
    and in the next test the other way round. --full: by every problem."""
    tried = ONE_OF_EACH_LOSS[(next(turns) + KERNELS) % 2 :: 2]
    chosen = [pytest.param(k, id=k.name, marks=() if k in tried else pytest.mark.full) for k in PROBLEMS]
    return pytest.mark.parametrize("problem", chosen)(test)


def name(value):
    if type(value) is tuple:
        return "-".join(map(name, value))
    return getattr(value, "__name__", None) or getattr(value, "name", None) or str(value)


def cover(programs, problems=PROBLEMS, each=2):
    """Pairs of each program with `each` of the problems; --full: with all of them.

    All programs run a second time without the kernels, then with half as many, other problems.
    """
    every = -(-len(problems) // (each if KERNELS else max(each // 2, 1)))
    turn = 0 if KERNELS else 1

    def pair(i, program, j, problem):
        marks = () if (i + j + turn) % every == 0 else pytest.mark.full
        return pytest.param(program, problem, id=f"{name(program)}-{name(problem)}", marks=marks)

    return [pair(i, a, j, b) for i, a in enumerate(programs) for j, b in enumerate(problems)]


def assert_close(got, want, problem, what):
    got, want = np.asarray(got, np.float64), np.asarray(want, np.float64)
    what = f"{problem.name}, {what}"
    assert got.shape == want.shape, f"{what}: shape {got.shape}, expected {want.shape}"
    largest = np.abs(want).max(initial=0)
    np.testing.assert_allclose(got, want, rtol=0, atol=problem.bar * largest, err_msg=what)
