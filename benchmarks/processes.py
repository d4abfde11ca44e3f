"""The processes that time the frameworks, one after the other, as `xent.bench` sees them."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from xent.benchmarks import machine
from xent.benchmarks.result import Case, Result, from_json

MODES = ("eager", "graph", "compiled")
QUICK_MODES = {"torch": ("eager",)}  # torch.compile takes ten seconds a function
SECONDS, SECONDS_QUICK = 4.0, 1.0  # of rounds, a case on a backend
# Not from the current folder, where a file may have the name of a module.
START = "import sys; sys.path.pop(0); from xent.benchmarks.process import main; main()"

Progress = Callable[[str, int, int], None]  # (what is being done, how much is done, of how much)


@dataclass(frozen=True)
class Settings:
    backends: tuple[str, ...]
    modes: tuple[str, ...] | None  # None: all, or with `quick` those that compile quickly
    passes: tuple[str, ...]
    device: str
    rivals: bool
    threads: int
    rounds: int | None
    quick: bool
    sweep: str | None

    def job(self, backend: str) -> dict[str, Any]:
        """What that backend's process has to know, but for the cases."""
        return {
            **asdict(self),
            "backend": backend,
            "modes": self.modes or (QUICK_MODES.get(backend, MODES) if self.quick else MODES),
            "device": self.device.partition(":")[0],  # the process sees one
            "seconds": SECONDS_QUICK if self.quick else SECONDS,
            "seed": int(np.random.default_rng().integers(2**31)),  # of the order of turns
        }


@dataclass
class Run:
    """One backend after the other; what their processes say goes into the result."""

    settings: Settings
    result: Result
    save: Path | str | None
    progress: Progress | None
    of: int  # cases on backends
    done: int = 0

    def all(self, cases: list[Case]) -> None:
        for backend in self.settings.backends:
            for threads, group in itertools.groupby(cases, key=lambda case: case.threads):
                left = list(filter(self._fits, group))
                while left:  # a process that dies takes only the case it was at with it
                    left = left[self._process(backend, threads, left) :]

    def _fits(self, case: Case) -> bool:
        need, free = case.workload.memory(case.dtype), machine.memory("available")
        if need > free:
            self._absent(f"{case.title}: needs {need / 1e9:.1f} GB of memory, {free / 1e9:.1f} are free")
        return need <= free

    def _process(self, backend: str, threads: int, cases: list[Case]) -> int:
        """How many of the cases need no other process."""
        self._say(f"starting {backend}")
        wanted = [(asdict(case.workload), case.dtype) for case in cases]
        job = self.settings.job(backend) | {"threads": threads, "cases": wanted}
        with tempfile.TemporaryFile("w+") as errors:
            process = subprocess.Popen(
                [sys.executable, "-c", START],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                env=environment(backend, self.settings.device, threads),
                start_new_session=True,  # Ctrl-C is for this process, which ends the other one itself
            )
            try:
                return self._listen(process, json.dumps(job), backend, cases, errors)
            finally:
                process.kill()
                process.communicate()

    def _listen(
        self, process: subprocess.Popen[str], job: str, backend: str, cases: list[Case], errors: IO[str]
    ) -> int:
        assert process.stdin is not None
        assert process.stdout is not None
        print(job, file=process.stdin, flush=True)
        at = -1  # the index of its case
        for line in process.stdout:
            message = json.loads(line)
            at = message.get("case", at)
            self._heard(message, backend, cases[at])
        if process.wait() == 0:
            return len(cases)
        errors.seek(0)
        said = (errors.read().strip().splitlines() or [f"status {process.returncode}"])[-1]
        self.result.broken.append(f"{backend}: lost {f'at {cases[at].title}' if at >= 0 else 'at its start'}: {said}")
        return at + 1 if at >= 0 else len(cases)

    def _heard(self, message: dict[str, Any], backend: str, case: Case) -> None:
        self.result.machine.setdefault("versions", {}).update(message.get("versions", {}))
        for reason in message.get("absent", ()):
            self._absent(reason)
        if "doing" in message:
            self._say(f"{backend}, {case.title}: {message['doing']}")
        if "broken" in message:
            self.result.broken.append(f"{backend}: {case.title}: {message['broken']}")
        if "done" in message:
            self._add(case, backend, **message["done"])
        self.done += "done" in message or "broken" in message

    def _add(self, case: Case, backend: str, series: list[dict[str, Any]], bandwidth: list[float] | None) -> None:
        if not any(case is known for known in self.result.cases):
            self.result.cases.append(case)
        case.series += map(from_json, series)
        if bandwidth:
            case.bandwidth[backend] = (bandwidth[0], bandwidth[1])
        if self.save is not None:
            self.result.save(self.save)

    def _absent(self, reason: str) -> None:
        if reason not in self.result.absent:
            self.result.absent.append(reason)

    def _say(self, what: str) -> None:
        if self.progress:
            self.progress(what, self.done, self.of)


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
