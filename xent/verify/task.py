"""What one process is asked and what it answers: the records of `xent compare`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from xent.verify.frameworks import Framework
from xent.verify.precision import PRECISION
from xent.verify.regimes import Batch

Array = Any
Function = Callable[[Array, Array], Any]


class Contender(NamedTuple):
    """A user's own loss: a function of (logits, labels), or "package.module:function", which a process imports."""

    name: str
    function: Function | str


class Task(NamedTuple):
    backend: str
    mode: str
    device: str
    batch: Batch
    contender: Contender | None = None  # who computes: xent, if not given


class Outcome(NamedTuple):
    """Values and gradients in float64; `problem` instead of them where there are none."""

    loss: Any = None
    grad: Any = None  # None where a contender has no gradient
    problem: str = ""
    together: tuple[int, float] | None = None  # of a contender that gives means: so many first rows, and their mean


class Answer(NamedTuple):
    ours: Outcome
    native: Outcome | None = None
    native_name: str = ""


def arguments(framework: Framework, task: Task, rows: slice = slice(None)) -> tuple[Array, Array]:
    """The framework's logits and labels, which share no memory with the batch."""
    batch = task.batch
    x = framework.array(batch.logits[rows].copy(), batch.dtype, task.device)
    dtype = None if batch.labels.dtype.kind in "iub" else PRECISION[batch.dtype].compute
    return x, framework.array(batch.labels[rows].copy(), dtype, task.device)


def raised(error: BaseException) -> Outcome:
    """Its type and its first line."""
    text = str(error).strip()
    return Outcome(problem=f"{type(error).__name__}: {text.splitlines()[0] if text else ''}")
