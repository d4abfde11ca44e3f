"""A user's own loss, called in such a way that it can be judged as xent's own are: row by row."""

from __future__ import annotations

import importlib
import os
import sys
from typing import Any, NamedTuple

import numpy as np
from xent import _dispatch
from xent._gradient import value_and_grad
from xent.verify.frameworks import Framework
from xent.verify.regimes import Batch
from xent.verify.task import Array, Function, Outcome, Task, arguments, raised

TOGETHER = 3  # rows whose mean is asked for; no number of classes that is tried


class _Wrong(Exception):
    """What a contender does that no figure can say."""


class _Result(NamedTuple):
    loss: Any
    grad: Any  # of the losses' sum; None where there is none


def imported(reference: str) -> Function:
    """The function that "package.module:function" names."""
    module, _, name = reference.partition(":")
    if not module or not name:
        raise ValueError(f"contender {reference!r}: expected package.module:function")
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())  # last: a file there may have the name of a module
    found: Any = importlib.import_module(module)
    for part in name.split("."):
        found = getattr(found, part)
    if not callable(found):
        raise TypeError(f"expected a function, got {type(found).__name__}")
    return found  # type: ignore[no-any-return]


def imported_or_raising(reference: str) -> Function:
    """The function, or one that raises what kept it from being imported: a report says it."""
    try:
        return imported(reference)
    except (Exception, SystemExit) as error:
        problem = ImportError(f"cannot be imported: {raised(error).problem}")

    def function(x: Array, y: Array) -> Any:
        raise problem

    return function


def outcome(framework: Framework, task: Task, function: Function | str) -> Outcome:
    """One loss a row, and each row's gradient, or what kept the contender from giving them."""
    if isinstance(function, str):
        try:
            function = imported(function)
        except (Exception, SystemExit) as error:  # whatever its module does
            return Outcome(problem=f"cannot be imported: {raised(error).problem}")
    try:
        with framework.within(task.batch.dtype), np.errstate(all="ignore"):
            return _outcome(_Calls(framework, task, function))
    except _Wrong as error:
        return Outcome(problem=str(error))
    except Exception as error:  # reported, whatever it is
        return raised(error)


def _outcome(calls: _Calls) -> Outcome:
    """All rows in one call of a function that gives one loss a row.

    A mean hides what is small in it, so it is asked for each row by itself, and then for the first few together,
    which tells a mean from a sum and finds what only one row forgives.
    """
    batch = calls.task.batch
    few = slice(0, batch.regimes[:TOGETHER].count(batch.regimes[0]))
    each = batch.logits[few].shape if batch.loss == "sigmoid_ce" else batch.logits[few].shape[:1]
    shape = calls.shape(few)
    if shape == each:
        every = calls.on(slice(None))
        return Outcome(every.loss, every.grad)
    if shape != ():
        raise _Wrong(f"returns shape {shape} for logits {batch.logits[few].shape}, expected () or {each}")
    width = batch.logits.shape[1] if batch.loss == "sigmoid_ce" else 1
    rows = [calls.on(slice(row, row + 1), width) for row in range(len(batch.logits))]
    first = calls.on(few, width * _counted(batch, few))
    loss = np.stack([row.loss for row in rows]).reshape(-1, *([1] if batch.loss == "sigmoid_ce" else []))
    together = (few.stop, float(first.loss))
    if first.grad is None:
        return Outcome(loss, None, together=together)
    return Outcome(loss, np.concatenate([first.grad, *(row.grad for row in rows[few.stop :])]), together=together)


def _counted(batch: Batch, rows: slice) -> int:
    """How many of the rows are in a mean."""
    labels = batch.labels[rows]
    ignored = batch.options.get("ignore_index")
    return len(labels) if ignored is None else max(1, int((labels != ignored).sum()))


class _Calls:
    """One contender on one framework in one mode."""

    def __init__(self, framework: Framework, task: Task, function: Function) -> None:
        self.framework, self.task, self.function = framework, task, function
        self.compiled = framework.compilers[task.mode](function)
        self.differentiable = _dispatch.load(framework.name).autodiff is not None

    def shape(self, rows: slice) -> tuple[int, ...]:
        """Of its loss."""
        result = self._unchanged(rows, self.function)
        loss = result[0] if isinstance(result, tuple) and not self.differentiable else result
        if isinstance(loss, tuple | list | dict | None):
            raise _Wrong(f"returns {type(loss).__name__}, expected the loss")
        return tuple(map(int, getattr(loss, "shape", ())))

    def on(self, rows: slice, times: int = 1) -> _Result:
        """Its loss, and the gradient of so many times the loss: that of a sum, where the loss is a mean."""
        if self.differentiable:
            # The factor comes before the derivative, for 16 bits may not hold a small share of a gradient.
            scaled = self.compiled if times == 1 else lambda x, y: self.compiled(x, y) * times
            loss, grad = self._unchanged(rows, value_and_grad(scaled))
            if grad is None:
                raise _Wrong("has no gradient: its result does not depend on the logits by the framework's operations")
            found = _Result(self.framework.numpy(loss) / times, self.framework.numpy(grad))
        else:
            result = self._unchanged(rows, self.compiled)
            loss, grad = result if isinstance(result, tuple) else (result, None)
            numpy = self.framework.numpy
            found = _Result(numpy(loss), None if grad is None else numpy(grad) * times)
        expected = self.task.batch.logits[rows].shape
        if found.grad is not None and found.grad.shape != expected:
            raise _Wrong(f"returns a gradient of shape {found.grad.shape} for logits {expected}")
        return found

    def _unchanged(self, rows: slice, function: Function) -> Any:
        """Its result, once it is certain that the arguments are as they were."""
        given: list[Array] = list(arguments(self.framework, self.task, rows))
        result = function(*given)
        batch = self.task.batch
        for name, now, before in zip(("logits", "labels"), given, (batch.logits, batch.labels), strict=True):
            if not np.array_equal(self.framework.numpy(now), before[rows], equal_nan=before.dtype.kind == "f"):
                raise _Wrong(f"changes its argument: {name}")
        return result
