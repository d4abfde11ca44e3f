"""The processes that time the frameworks, one after the other, as `xent.bench` sees them."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any

from xent.benchmarks.process import Job
from xent.benchmarks.result import Case, Result

# Not from the current folder, where a file may have the name of a module.
START = "import sys; sys.path.pop(0); from xent.benchmarks.process import main; main()"

Progress = Callable[[str, int, int], None]  # (what is being done, how much is done, of how much)


@dataclass
class Run:
    """One job after the other; what their processes say goes into the result."""

    result: Result
    save: Path | str | None
    progress: Progress
    of: int  # cases on backends
    done: int = 0

    def do(self, job: Job) -> None:
        """In a process of its own; one that dies takes only the case it was at with it, the next one does the rest."""
        self._say(f"starting {job.backend}")
        begun: list[Case] = []
        with tempfile.TemporaryFile("w+") as errors:
            process = _start(job, errors)
            try:
                for kind, *said in _messages(process):
                    if kind == "case":
                        begun.append(job.cases[len(begun)])
                    else:
                        self._hear(job.backend, begun[-1:], kind, *said)
                status = process.wait()
            finally:
                process.kill()
                process.communicate()
            if status:
                errors.seek(0)
                last = (errors.read().strip().splitlines() or [f"status {status}"])[-1]
                where = f"at {begun[-1].title}" if begun else "at its start"
                self.result.broken.append(f"{job.backend}: lost {where}: {last}")
        left = job.cases[len(begun) :]
        if begun and left:
            self.do(replace(job, cases=left))

    def _hear(self, backend: str, at: list[Case], kind: str, *said: Any) -> None:
        """A message, and the case that it is about, if it is about one."""
        if kind == "version":
            name, number = said
            self.result.machine["versions"][name] = number
        elif kind == "absent":
            self.result.absent += [reason for reason in said if reason not in self.result.absent]
        elif kind == "doing":
            self._say(f"{backend}, {at[0].title}: {said[0]}")
        elif kind == "broken":
            self.result.broken.append(f"{backend}: {at[0].title}: {said[0]}")
        elif kind == "done":
            self._add(backend, at[0], *said)
        self.done += kind in ("broken", "done")

    def _add(self, backend: str, case: Case, series: list[Any], bandwidth: tuple[float, float] | None) -> None:
        if series and not case.series:
            self.result.cases.append(case)
        case.series += series
        if bandwidth:
            case.bandwidth[backend] = bandwidth
        if self.save is not None:
            self.result.save(self.save)

    def _say(self, what: str) -> None:
        self.progress(what, self.done, self.of)


def _start(job: Job, errors: IO[str]) -> subprocess.Popen[bytes]:
    process = subprocess.Popen(
        [sys.executable, "-c", START],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=errors,
        env=environment(job.backend, job.device, job.threads),
        start_new_session=True,  # Ctrl-C is for this process, which ends the other one itself
    )
    assert process.stdin is not None
    pickle.dump(job, process.stdin)
    process.stdin.flush()
    return process


def _messages(process: subprocess.Popen[bytes]) -> Iterator[Any]:
    """What the process says, until it ends or dies."""
    assert process.stdout is not None
    try:
        while True:
            yield pickle.load(process.stdout)
    except (EOFError, pickle.UnpicklingError):
        return


def environment(backend: str, device: str, threads: int) -> dict[str, str]:
    """What a framework reads when it starts: its threads; the GPU it sees, if any, without hoarding its memory. What
    is set about memory stays as it is."""
    kind, _, index = device.partition(":")
    seen = os.environ.get("CUDA_VISIBLE_DEVICES")
    known = seen.split(",") if seen else []
    if kind == "cpu":
        seen = ""  # some would rather use it than what they are given
    elif index.isdigit():
        seen = known[int(index)] if int(index) < len(known) else index
    return {
        **os.environ,
        **({} if seen is None else {"CUDA_VISIBLE_DEVICES": seen}),
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
        "KERAS_BACKEND": backend,
        **dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "XENT_NUM_THREADS"), str(threads)),
        "TF_CPP_MIN_LOG_LEVEL": "3",
        "TF_FORCE_GPU_ALLOW_GROWTH": "true",
        "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
    }
