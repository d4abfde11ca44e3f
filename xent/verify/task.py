"""What one process is asked and what it answers: the records of `xent compare`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
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


def arguments(framework: Framework, task: Task, rows: Any = slice(None)) -> tuple[Array, ...]:
    """The framework's logits and labels, which share no memory with the batch; of `linear_ce` hidden states, weight
    and labels."""
    batch = task.batch
    inputs = [batch.logits[rows]] if batch.hidden is None else [batch.hidden[rows], batch.weight]
    dtype = None if batch.labels.dtype.kind in "iub" else PRECISION[batch.dtype].compute
    labels = framework.array(batch.labels[rows].copy(), dtype, task.device)
    return (*(framework.array(x.copy(), batch.dtype, task.device) for x in inputs), labels)


def laid_out(batch: Batch) -> Batch:
    """With the classes on the axis where xent is to get them."""

    def place(x: Array) -> Array:
        return np.moveaxis(x.reshape(*batch.shape, -1), -1, batch.axis) if x.ndim == 2 else x.reshape(batch.shape)

    return replace(batch, logits=place(batch.logits), labels=place(batch.labels)) if batch.shape else batch


def in_rows(batch: Batch, x: Array) -> Array:
    """Losses, or a gradient with the classes on the batch's axis, row by row."""
    if not batch.shape:
        return x
    losses = x.ndim == len(batch.shape)
    return x.reshape(-1) if losses else np.moveaxis(x, batch.axis, -1).reshape(batch.logits.shape)


def raised(error: BaseException) -> Outcome:
    """Its type and its first line."""
    text = str(error).strip()
    return Outcome(problem=f"{type(error).__name__}: {text.splitlines()[0] if text else ''}")
