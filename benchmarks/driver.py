"""The driver: the processes, and what they are asked: to make arrays, to check contenders, to time them."""

from __future__ import annotations

import importlib.util
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from . import machine
from .result import Case, Result, Series
from .rounds import Entry, Rounds
from .rows import size
from .steady import Steady
from .workers import Died, Failed, Worker, each
from .workloads import PASSES, WIDTH, Workload

SEED = 0
LIVES, SMALL = 5, 1 << 25  # so often cases of so few logits have new processes, if it is not said how many rounds
Progress = Callable[[str, int, int], None]  # (what is being done, how much is done, of how much)


def _small(workload: Workload) -> bool:
    return workload.size <= SMALL


@dataclass(frozen=True)
class Settings:
    backends: tuple[str, ...]
    modes: tuple[str, ...]
    device: str
    rivals: bool
    threads: int
    rounds: int | None  # None: until ratios are known
    sample: float
    sweep: str | None
    seed: int  # of the order of turns

    @property
    def kind(self) -> str:
        """What a process calls the one device that it sees."""
        return self.device.partition(":")[0]


class Driver:
    """One run: its settings, its result so far, and the processes that are alive."""

    def __init__(self, settings: Settings, result: Result, save: Path | str | None, progress: Progress | None) -> None:
        self.settings, self.result, self.file, self.progress = settings, result, save, progress
        self.workers: list[Worker] = []
        self.steady = Steady()
        self.started = 0
        self.done, self.of = 0, 1

    def all(self, cases: list[tuple[int | None, Workload, str]], times: int = 1) -> None:
        """How a process lies in memory decides on some short calls' times, however often they are repeated in it; and
        a machine has its hours. So small cases come again, in other processes."""
        again = [case for case in cases if _small(case[1])]
        lives = [cases] + (LIVES - 1) * [again] if self.settings.rounds is None else [cases]
        self.of = sum(len(self._parts(workload)) for life in lives for _, workload, _ in life) * times
        for life in lives:
            self._live(life)

    def _parts(self, workload: Workload) -> list[tuple[str, ...]]:
        """The backends whose processes are there together: all, if that does not take much of the system's memory."""
        backends = self.settings.backends
        return [(name,) for name in backends] if self._crowds(workload) else [backends]

    def _crowds(self, workload: Workload) -> bool:
        return self.settings.kind == "cpu" and not _small(workload)

    def _live(self, cases: list[tuple[int | None, Workload, str]]) -> None:
        self.end()
        for value, workload, dtype in cases:
            parts = self._parts(workload)
            with tempfile.TemporaryDirectory() as folder:
                for backends in parts:
                    try:
                        if self._ready(backends, workload, dtype):
                            self._case(value, workload, dtype, folder, len(parts))
                    except Died as died:  # the memory's
                        self._absent(f"memory: lost at {workload.name} {dtype}: {died}")
                        return
                    finally:
                        self.save()
                    self.done += 1

    def _ready(self, backends: tuple[str, ...], workload: Workload, dtype: str) -> bool:
        """Whether processes of these backends are there, and memory for what they will be asked. What crowds has new
        ones: what the processes had once, some of them keep."""
        need, lost = workload.memory(dtype, len(self.workers), 1), len(self.workers) < self.started
        if not self.workers or lost or self._crowds(workload) or need > machine.memory("available"):
            self.end()
            self._start(backends)
            need = workload.memory(dtype, len(self.workers), 1)
        here = machine.memory("available")
        if need > here:
            on = "" if backends == self.settings.backends else f" on {' '.join(backends)}"
            self._absent(f"{workload.name} {dtype}{on}: needs {size(need, 2)} of free memory, {size(here, 2)} are")
        return need <= here and len(self.workers) > 1

    def save(self) -> None:
        if self.file is not None and self.result.cases:
            self.result.save(self.file)

    def end(self) -> None:
        for worker in self.workers:
            worker.end()
        self.workers = []

    # ---- processes

    def _start(self, backends: tuple[str, ...]) -> None:
        """The memory's first, then a process for each framework and for Keras on each."""
        names = ["memory", *backends]
        if self.settings.rivals:
            if importlib.util.find_spec("keras"):
                names += [f"keras-{name}" for name in backends if name != "numpy"]
            else:
                self._absent("keras: not installed (pip install keras)")
        self._say("starting the frameworks", 0)
        self.workers = [Worker(name, self.settings.device, self.settings.threads) for name in names]
        started = each(self._started, self.workers)
        for worker, fine in zip(list(self.workers), started, strict=True):
            if not fine:
                worker.end()
                self.workers.remove(worker)
        if not started[0]:
            self.end()
        self.started = len(self.workers)

    def _started(self, worker: Worker) -> bool:
        try:
            found = worker.ask(
                "start", backend=worker.backend, device=self.settings.kind, threads=self.settings.threads
            )
        except Died as died:
            found = {"problem": str(died)}
        if "problem" in found:
            self._absent(f"{worker.backend}: {found['problem']}")
            return False
        self.result.machine.setdefault("versions", {}).update(found["versions"])
        for reason in found["absent"] if self.settings.rivals else ():
            self._absent(reason)
        return True

    def _absent(self, reason: str) -> None:
        if reason not in self.result.absent:
            self.result.absent.append(reason)

    def _lost(self, worker: Worker, died: Died, what: str) -> None:
        self._absent(f"{worker.backend}: lost at {what}: {died}")
        worker.end()
        self.workers.remove(worker)

    # ---- one case

    def _case(self, value: int | None, workload: Workload, dtype: str, folder: str, parts: int) -> None:
        """With the processes that are there, whose inputs and truths are in this folder; one of so many parts."""
        memory, *workers = self.workers
        self._say(f"preparing {workload.name} {dtype}", 0)
        moved = memory.ask("memory", size=workload.size * WIDTH[dtype])["size"]
        room = workload.memory(dtype, len(self.workers), machine.cores()) < machine.memory("available")
        room = room and not workload.linear  # products keep all processors busy, and some wait for each other spinning
        prepared = each(lambda worker: self._prepare(worker, value, workload, dtype, folder), workers, room)
        entries = [entry for found, _ in prepared for entry in found]
        steady = self.steady if self.settings.rounds is None and self.settings.kind == "cpu" else None
        rounds = Rounds(memory, self.workers, entries, self.settings.sample, self.settings.seed, steady)
        try:
            for part in rounds.take(self.settings.rounds, LIVES if _small(workload) else 1, parts):
                self._say(f"timing {workload.name} {dtype}, round {rounds.number + 1}", (1 + part) / 2)
        finally:  # after Ctrl-C, with the rounds that are whole
            whole = rounds.whole()
            read, write = workload.traffic(dtype, "both")
            case = Case(
                workload.name,
                workload.why,
                workload.loss,
                workload.shape,
                workload.axis,
                dtype,
                buffers=max((buffers for _, buffers in prepared), default=0),
                read=read,
                write=write,
                moved=moved,
                memory={what: tuple(column[:whole]) for what, column in rounds.moves.items()},
                series=[replace(entry.series, seconds=tuple(entry.samples[:whole])) for entry in entries],
                value=value,
            )
            if whole:
                self.result.add(case)
        for worker in list(self.workers):
            self._clear(worker, f"{workload.name} {dtype}")

    def _clear(self, worker: Worker, what: str) -> None:
        try:
            worker.ask("end")
        except Died as died:
            self._lost(worker, died, what)

    def _prepare(
        self, worker: Worker, value: int | None, workload: Workload, dtype: str, folder: str
    ) -> tuple[list[Entry], int]:
        """Makes the arrays and checks every contender, or what is left to do in another life."""
        try:
            found = worker.ask("case", workload=asdict(workload), dtype=dtype, seed=SEED, folder=folder)
            before = self.result.find(workload.name, dtype, value)
            entries = [self._check(worker, before, *wanted) for wanted in self._wanted(found["contenders"])]
            if "absent" in found:
                self._absent(f"{worker.backend}: {found['absent']}")
                return [], 0
            worker.ask("checked")
            return entries, found["buffers"]
        except Failed as failed:
            self._absent(f"{worker.backend}: left out at {workload.name} {dtype}: {failed}")
            return [], 0
        except Died as died:
            self._lost(worker, died, f"{workload.name} {dtype}")
            return [], 0

    def _wanted(self, contenders: list[dict[str, Any]]) -> Iterator[tuple[int, dict[str, Any], str]]:
        modes = {*self.settings.modes, *(("graph",) if "compiled" in self.settings.modes else ())}
        for index, contender in enumerate(contenders):
            if contender["mode"] in modes and (contender["ours"] or self.settings.rivals):
                for which in PASSES:
                    yield index, contender, which

    def _check(self, worker: Worker, before: Case | None, index: int, contender: dict[str, Any], which: str) -> Entry:
        """What an earlier process has found out about it is not asked again."""
        name, backend, mode = contender["name"], worker.backend.removeprefix("keras-"), contender["mode"]
        self._say(f"checking {name}, {backend} {mode}", 0)
        known = before.find(name, backend, mode, which) if before else None
        again = known is not None and not known.problem
        found = worker.ask("check", index=index, which=which, again=again)
        each_call = found.pop("seconds", 0.0)
        if known and again:
            return Entry(worker, index, replace(known, seconds=(), problem=found.get("problem", "")), each_call)
        return Entry(worker, index, Series(name, backend, mode, contender["ours"], which, **found), each_call)

    def _say(self, what: str, part: float) -> None:
        if self.progress:
            self.progress(what, int(100 * (self.done + part) / self.of), 100)
