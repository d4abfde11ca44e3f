"""The frameworks' processes of `xent compare`: some frameworks cannot share one, and a contender may end its own."""

from __future__ import annotations

import itertools
import json
import os
import pickle
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from xent.verify import frameworks, worker
from xent.verify.task import Answer, Contender, Outcome, Task

Progress = Callable[[str, int, int], None]  # (what was done, steps done, steps in all)


def facts(names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Each framework's version, devices, dtypes and modes, asked in a process of its own."""
    return dict(zip(names, each(_facts, names), strict=True))


def _facts(name: str) -> dict[str, Any]:
    try:
        found: dict[str, Any] = ask(f"from xent.verify import processes, worker; processes.say(worker.facts({name!r}))")
        return found
    except RuntimeError as error:  # installed, but it does not import
        nothing: dict[str, Any] = {"version": "?", "devices": [], "dtypes": [], "modes": {}, "losses": []}
        return {**nothing, "problem": str(error).splitlines()[-1]}


def ask(code: str) -> Any:
    """What the code says in a process of its own. Raises RuntimeError where that fails."""
    return json.loads(_python(["-c", code]).splitlines()[-1])


def say(answer: Any) -> None:
    """In such a process: the last line is the answer, whatever a framework prints before."""
    print(json.dumps(answer), flush=True)


def each(function: Callable[[Any], Any], items: Sequence[Any]) -> list[Any]:
    """Side by side, as many as there are processors."""
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        return list(pool.map(function, items))


def answers(tasks: list[Task], progress: Progress | None) -> list[Answer]:
    """Each task's. A step is all tasks of one loss in one dtype."""
    groups: dict[tuple[str, str], list[Task]] = {}
    for task in tasks:
        groups.setdefault((task.backend, _contender(task)), []).append(task)
    left = Counter(map(_step, tasks))
    done, of = itertools.count(1), len(left)

    def report(task: Task) -> None:
        step = _step(task)
        left[step] -= 1
        if progress and not left[step]:
            progress(" ".join(filter(None, step)), next(done), of)

    def sent(mine: list[Task]) -> list[Answer]:
        """By a process of its own."""
        with tempfile.TemporaryDirectory() as folder:
            job = Path(folder) / "job"
            job.write_bytes(pickle.dumps(mine))
            code = f"from xent.verify import worker; worker.main({str(job)!r})"
            try:
                _python(["-c", code], lambda number: report(mine[number]))
            except RuntimeError as error:
                if mine[0].contender is None:
                    raise
                lost = Answer(Outcome(problem=f"its process ended: {str(error).splitlines()[-1]}"))
                return [lost] * len(mine)
            return [pickle.loads(Path(f"{job}.{i}").read_bytes()) for i in range(len(mine))]

    def here(task: Task) -> Answer:
        """A function cannot be sent to another process, unless by name."""
        found = worker.answer(frameworks.load(task.backend), task)
        report(task)
        return found

    away = {key: mine for key, mine in groups.items() if mine[0].contender is None or _is_name(mine[0].contender)}
    found = dict(zip(away, each(sent, list(away.values())), strict=True))
    return [answer for key, mine in groups.items() for answer in found.get(key) or map(here, mine)]


def _contender(task: Task) -> str:
    return task.contender.name if task.contender else ""


def _step(task: Task) -> tuple[str, ...]:
    return task.backend, _contender(task), task.batch.loss, task.batch.dtype


def _is_name(contender: Contender) -> bool:
    return isinstance(contender.function, str)


def _python(arguments: list[str], on_done: Callable[[int], None] | None = None) -> str:
    """What this interpreter prints when run anew, with the modules that are importable here."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "TF_CPP_MIN_LOG_LEVEL": "3"}
    lines = []
    with tempfile.TemporaryFile("w+") as errors:
        command = [sys.executable, *arguments]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True, env=environment) as process:
            for line in process.stdout or ():
                lines.append(line)
                if on_done and line.startswith("done "):
                    on_done(int(line.removeprefix("done ")))
        if process.returncode:
            errors.seek(0)
            said = errors.read()[-2000:].strip() or f"status {process.returncode}"
            raise RuntimeError(f"{arguments[-1]} failed:\n{said}")
    return "".join(lines)
