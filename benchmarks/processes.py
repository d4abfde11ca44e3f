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
from typing import Any

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
    progress: Progress | None
    of: int  # cases on backends
    done: int = 0

    def do(self, job: Job) -> None:
        left = job.cases
        while left:  # a process that dies takes only the case it was at with it
            left = left[self._process(replace(job, cases=left)) :]

    def _process(self, job: Job) -> int:
        """How many of the cases need no other process."""
        self._say(f"starting {job.backend}")
        with tempfile.TemporaryFile("w+") as errors:
            process = subprocess.Popen(
                [sys.executable, "-c", START],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                env=environment(job.backend, job.device, job.threads),
                start_new_session=True,  # Ctrl-C is for this process, which ends the other one itself
            )
            try:
                begun = 0
                for kind, *said in _messages(process, replace(job, device=job.device.partition(":")[0])):
                    begun += kind == "case"
                    self._hear(job, job.cases[begun - 1], kind, *said)
                status = process.wait()
            finally:
                process.kill()
                process.communicate()
            if status:
                errors.seek(0)
                last = (errors.read().strip().splitlines() or [f"status {status}"])[-1]
                where = f"at {job.cases[begun - 1].title}" if begun else "at its start"
                self.result.broken.append(f"{job.backend}: lost {where}: {last}")
        return begun if status and begun else len(job.cases)

    def _hear(self, job: Job, case: Case, kind: str, *said: Any) -> None:
        if kind == "version":
            self.result.machine["versions"][said[0]] = said[1]
        elif kind == "absent" and said[0] not in self.result.absent:
            self.result.absent.append(said[0])
        elif kind == "doing":
            self._say(f"{job.backend}, {case.title}: {said[0]}")
        elif kind == "broken":
            self.result.broken.append(f"{job.backend}: {case.title}: {said[0]}")
        elif kind == "done":
            self._add(case, job.backend, *said)
        self.done += kind in ("broken", "done")

    def _add(self, case: Case, backend: str, series: list[Any], bandwidth: tuple[float, float] | None) -> None:
        if not any(case is known for known in self.result.cases):
            self.result.cases.append(case)
        case.series += series
        if bandwidth:
            case.bandwidth[backend] = bandwidth
        if self.save is not None:
            self.result.save(self.save)

    def _say(self, what: str) -> None:
        if self.progress:
            self.progress(what, self.done, self.of)


def _messages(process: subprocess.Popen[bytes], job: Job) -> Iterator[Any]:
    """What the process says about its job, until it ends or dies."""
    assert process.stdin is not None
    assert process.stdout is not None
    pickle.dump(job, process.stdin)
    process.stdin.flush()
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
