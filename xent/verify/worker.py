"""One backend's share of `xent compare`, in a process of its own: some frameworks cannot share one.

`main(JOB)` reads a pickled list of tasks, answers each with a pickle beside it, and prints its number as each is done.
"""

from __future__ import annotations

import pickle
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import xent
from xent import _dispatch
from xent.verify import contender, frameworks
from xent.verify.frameworks import BuiltinLoss, Framework
from xent.verify.linear import LOSSES
from xent.verify.task import Answer, Array, Outcome, Task, arguments, in_rows, laid_out, raised


def facts(name: str) -> dict[str, Any]:
    """The framework's version, devices, dtypes and modes, from which compare makes its tasks."""
    framework = frameworks.load(name)
    try:
        number = version(name)
    except PackageNotFoundError:
        number = "?"
    modes = dict.fromkeys(framework.compilers, "") | framework.unavailable
    losses = [loss for loss in LOSSES if loss != "linear_ce" or _dispatch.load(name).linear is not None]
    known = {"version": number, "devices": framework.devices(), "dtypes": framework.dtypes, "modes": modes}
    return {**known, "losses": losses}


def answer(framework: Framework, task: Task) -> Answer:
    if task.contender is not None:
        return Answer(contender.outcome(framework, task, task.contender.function))
    with framework.within(task.batch.dtype):
        native = framework.builtin_losses().get(task.batch.loss) if task.mode == "eager" else None
        if native is None or task.batch.options.keys() - {"ignore_index"}:
            return Answer(xents(framework, task))
        return Answer(xents(framework, task), _natives(framework, task, native), native.name)


def xents(framework: Framework, task: Task) -> Outcome:
    """Of xent's own loss and gradient."""
    batch = task.batch
    options = {"reduce": "none", **batch.options, **({"axis": batch.axis} if batch.shape else {})}
    function = xent.value_and_grad(getattr(xent, batch.loss))

    def call(*arrays: Array) -> Any:
        loss, grad = function(*arrays, **options)
        return loss, tuple(grad)[:2] if isinstance(grad, xent.Grads) else grad

    found = _try(framework, task._replace(batch=laid_out(batch)), framework.compilers[task.mode](call))
    return found if found.problem else Outcome(in_rows(batch, found.loss), in_rows(batch, found.grad))


def _natives(framework: Framework, task: Task, native: BuiltinLoss) -> Outcome:
    """Of the framework's own loss; where it has no `ignore_index`, of the rows that count."""
    ignored = task.batch.options.get("ignore_index")
    if ignored is None:
        return _try(framework, task, native.value_and_grad)
    if native.ignoring is not None:
        return _try(framework, task, native.ignoring(ignored))
    counts = task.batch.labels != ignored
    found = _try(framework, task, native.value_and_grad, counts)
    if found.problem:
        return found
    loss, grad = np.zeros(counts.shape), np.zeros(task.batch.logits.shape)
    loss[counts], grad[counts] = found.loss, found.grad
    return Outcome(loss, grad)


def _try(framework: Framework, task: Task, function: Any, rows: Any = slice(None)) -> Outcome:
    try:
        loss, grad = function(*arguments(framework, task, rows))
        numpy = framework.numpy
        grad = np.concatenate([numpy(part) for part in grad]) if isinstance(grad, tuple) else numpy(grad)
        return Outcome(numpy(loss), grad)
    except Exception as error:  # reported, whatever it is
        return raised(error)


def main(job: str) -> None:
    tasks: list[Task] = pickle.loads(Path(job).read_bytes())
    framework = frameworks.load(tasks[0].backend)
    for i, task in enumerate(tasks):
        Path(f"{job}.{i}").write_bytes(pickle.dumps(answer(framework, task)))
        print(f"done {i}", flush=True)
