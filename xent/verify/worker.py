"""One backend's share of `xent compare`, in a process of its own: some frameworks cannot share one.

`main(JOB)` reads a pickled list of tasks, answers each with a pickle beside it, and prints a line as each is done.
"""

from __future__ import annotations

import contextlib
import pickle
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import xent
from xent.verify import contender, frameworks
from xent.verify.frameworks import Framework
from xent.verify.task import Answer, Outcome, Task, arguments, raised


def facts(name: str) -> dict[str, Any]:
    """The framework's version, devices, dtypes and modes, from which compare makes its tasks."""
    framework = frameworks.load(name)
    try:
        number = version(name)
    except PackageNotFoundError:
        number = "?"
    modes = dict.fromkeys(framework.compilers, "") | framework.unavailable
    return {"version": number, "devices": framework.devices(), "dtypes": framework.dtypes, "modes": modes}


def answer(framework: Framework, task: Task) -> Answer:
    batch = task.batch
    if task.contender is not None:
        return Answer(contender.outcome(framework, task, task.contender.function))
    with framework.double() if batch.dtype == "float64" else contextlib.nullcontext():
        loss = getattr(xent, batch.loss)
        compiled = framework.compilers[task.mode]
        ours = _try(
            framework, task, compiled(lambda x, y: xent.value_and_grad(loss)(x, y, reduce="none", **batch.options))
        )
        native = framework.builtin_losses().get(batch.loss) if task.mode == "eager" and not batch.options else None
        theirs = None if native is None else _try(framework, task, native.value_and_grad)
    return Answer(ours, theirs, native.name if native else "")


def _try(framework: Framework, task: Task, function: Any) -> Outcome:
    try:
        loss, grad = function(*arguments(framework, task))
        return Outcome(framework.numpy(loss), framework.numpy(grad))
    except Exception as error:  # reported, whatever it is
        return raised(error)


def main(job: str) -> None:
    tasks: list[Task] = pickle.loads(Path(job).read_bytes())
    framework = frameworks.load(tasks[0].backend)
    for i, task in enumerate(tasks):
        Path(f"{job}.{i}").write_bytes(pickle.dumps(answer(framework, task)))
        print(f"done {task.mode} {task.batch.name}", flush=True)
