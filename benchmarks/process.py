"""One framework's process: builds the contenders, checks them, and lets them take turns.

It reads its job as a pickle from standard input and writes pickled messages to the standard output it was started
with; what the frameworks print goes to standard error.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import itertools
import os
import pickle
import random
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property, partial
from importlib.metadata import version
from statistics import median
from typing import Any

from xent.benchmarks import frameworks, measure
from xent.benchmarks.frameworks import Call, Contender
from xent.benchmarks.result import ENOUGH, Case, Series, Spread, compare
from xent.benchmarks.truth import Truth, truth, wrong
from xent.benchmarks.workloads import UNCACHED, Workload
from xent.verify.frameworks import device, load

SAMPLE = 0.02  # seconds: shorter calls are repeated until a sample takes so long
SLOW = 0.1  # seconds: a call that takes longer is not checked for returning early
SEED = 0  # of the inputs' random numbers

Tell = Callable[..., None]  # sends a message: its kind, and its content


@dataclass(frozen=True)
class Job:
    """What a framework's process has to do."""

    backend: str
    device: str
    threads: int
    modes: tuple[str, ...]
    passes: tuple[str, ...]
    rivals: bool
    rounds: int  # at most
    seconds: float  # after so long no round begins, but for the first five
    cases: list[Case]
    contenders: tuple[str, ...] = ()  # users' own


@dataclass(eq=False)
class Entry:
    """A contender in one pass, with what was measured of it."""

    series: Series
    call: Call
    each: float = 0.0  # seconds of a call, about
    samples: list[float] = field(default_factory=list)  # seconds of a call, by round

    @contextlib.contextmanager
    def guarded(self) -> Iterator[None]:
        """Puts whatever a framework raises into the report."""
        try:
            yield
        except Exception as error:
            said = (str(error).strip().splitlines() or [""])[0][:200]
            self.series.problem = f"failed: {type(error).__name__}: {said}"


class Session:
    """One framework, and the case that it is working on."""

    def __init__(self, job: Job, tell: Tell) -> None:
        """Imports the framework. Raises ValueError where it has no such device."""
        self.job, self.tell = job, tell
        live = load(job.backend)
        self.dtypes, self.device = live.dtypes, device(live.devices(), job.device)
        if not self.device:
            raise ValueError(f"no {job.device} here, only {', '.join(live.devices())}")
        self.framework = importlib.import_module(f"xent.benchmarks.frameworks.{job.backend}").make(self.device)
        self.framework.limit(job.threads)
        self.moved = UNCACHED if self.device == "cpu" else 4 * UNCACHED  # bytes, to measure the bandwidth
        for name in self.framework.distributions:
            if frameworks.installed(name):
                tell("version", name, version(name))
            elif job.rivals:
                tell("absent", f"{name}: not installed (pip install {name})")

    @cached_property
    def traffic(self) -> frameworks.Traffic | None:
        """What reads and writes the memory that holds the logits; None where that cannot be measured."""
        if self.device == "cpu":
            return measure.host_traffic(self.moved, self.job.threads)
        return self.framework.traffic(self.moved) if self.framework.traffic else None

    def case(self, workload: Workload, dtype: str) -> tuple[list[Series], tuple[float, float] | None]:
        """Checks, then times every contender. Returns their series and the measured bandwidth."""
        self.workload, self.dtype = workload, dtype
        self.turns: Iterator[Any] = iter(())  # frees the last case's inputs
        if reason := frameworks.why_not_users(workload):
            for name in self.job.contenders:
                self.tell("absent", f"{name} on {workload.name}: {reason}")
        if workload.ranks > 1:
            self.tell("doing", f"in {workload.ranks} processes")
            return self.framework.of_ranks(workload, dtype, self.job, SEED), None
        self.framework.begin(dtype)
        x, y = workload.arrays(SEED)
        self.x = frameworks.each(self._as_seen, x)
        self.labels = self.framework.array(y, dtype)
        copies = range(workload.copies(dtype))
        inputs = [frameworks.each(lambda k: self.framework.array(k, dtype), self.x) for _ in copies]
        self.turns = itertools.cycle(inputs)
        users = frameworks.of_users(self.framework, workload, self.job.contenders)
        entries = list(self._entries(itertools.chain(self.framework.contenders(workload), users)))
        gc.collect()
        gc.freeze()  # else each collection would take 0.25 s for a framework's million objects
        true = truth(workload, self.x, y if workload.ids else self._as_seen(y))
        for entry in entries:
            self.tell("doing", f"checking {entry.series.name} {entry.series.mode}")
            with entry.guarded():
                self._check(entry, true)
        del true
        reads, writes = self._rounds(entries)
        self._compare(entries, reads, writes)
        bandwidth = (1 / median(reads), 1 / median(writes)) if reads else None
        return [entry.series for entry in entries], bandwidth

    def _as_seen(self, array: Any) -> Any:
        """NumPy values after a round trip through the framework's dtype."""
        return self.framework.numpy(self.framework.array(array, self.dtype))

    def _entries(self, contenders: Iterable[Contender]) -> Iterator[Entry]:
        for contender in contenders:
            ours = contender.name == "xent"
            if contender.mode in self.job.modes and (ours or self.job.rivals or contender.name in self.job.contenders):
                for which in self.job.passes:
                    series = Series(contender.name, self.job.backend, contender.mode, ours, which)
                    yield Entry(series, contender.forward if which == "forward" else contender.both)

    def _calls(self, entry: Entry) -> Iterator[partial[Any]]:
        """Calls of a contender, each on the next copy of the inputs."""
        return (partial(entry.call, x, self.labels) for x in self.turns)

    # ---- correct first

    def _check(self, entry: Entry, true: Truth) -> None:
        """Times the first call and checks its result; then measures a second one, and whether it waits."""
        series, calls, wait = entry.series, self._calls(entry), self.framework.wait
        start = time.perf_counter()
        result = next(calls)()
        wait(result)
        series.first = time.perf_counter() - start
        self._judge(series, result, true)
        del result
        if series.problem:
            return
        call = next(calls)
        counted = self.framework.peak()
        entry.each, of_process = measure.peak(lambda: measure.seconds(iter([call]), wait))
        told = [counted(), self.framework.planned(call.func, *call.args), *[of_process] * (self.device == "cpu")]
        series.memory = max((size for size in told if size is not None), default=None)
        if entry.each <= SLOW and measure.late(next(calls), wait, self._fetch):
            series.problem = "not synchronised: the clock stopped before the result was there"

    def _judge(self, series: Series, result: Any, true: Truth) -> None:
        loss, *gradients = result if isinstance(result, tuple) else (result,)
        series.value_error = true.value_error(self.framework.numpy(loss))
        for gradient in gradients:
            found = [(_dtype(part), tuple(part.shape)) for part in frameworks.arrays(gradient)]
            expected = [(self.dtype, x.shape) for x in frameworks.arrays(self.x)]
            if found != expected:
                series.problem = f"wrong: gradient of {found}, expected {expected}"
                return
            series.gradient_error = true.gradient_error(frameworks.each(self.framework.numpy, gradient), self.dtype)
        series.problem = wrong(self.workload, self.dtype, _dtype(loss) or self.dtype, series)

    def _fetch(self, result: Any) -> None:
        """Fetches one number of each array: that has to wait for the array, but takes no time to copy."""
        for array in frameworks.arrays(result):
            self.framework.numpy(array[(0,) * array.ndim] if getattr(array, "ndim", 0) else array)

    # ---- then side by side

    def _rounds(self, entries: list[Entry]) -> tuple[list[float], list[float]]:
        """Times each contender once a round, in random order. Returns each round's seconds a byte to read and write."""
        reads: list[float] = []
        writes: list[float] = []
        end = time.monotonic() + self.job.seconds
        for number in range(self.job.rounds):
            if number >= ENOUGH and time.monotonic() > end:
                break
            self.tell("doing", f"round {number + 1}")
            gc.collect()
            if self.workload.from_memory and self.traffic:
                for move, taken in zip(self.traffic, (reads, writes), strict=True):
                    taken.append(measure.seconds(iter([move]), self.framework.wait) / self.moved)
            for entry in random.sample(entries, len(entries)):
                if not entry.series.problem:
                    with entry.guarded():
                        entry.samples.append(self._sample(entry))
        return reads, writes

    def _sample(self, entry: Entry) -> float:
        """Seconds of a call. Of short calls the mean of many, after an untimed one, since threads may be asleep."""
        calls, wait = self._calls(entry), self.framework.wait
        if entry.each < SAMPLE:
            measure.seconds(calls, wait)
        return measure.seconds(calls, wait, SAMPLE)

    def _compare(self, entries: list[Entry], reads: list[float], writes: list[float]) -> None:
        """Sets each contender's times, and their ratios to xent's and to the floor."""
        timed = [(entry.series, entry.samples) for entry in entries if not entry.series.problem]
        compare(timed)
        for series, samples in timed if reads else ():
            read, written = self.workload.read(self.dtype), self.workload.written(self.dtype, series.which)
            floor = [read * a + written * b for a, b in zip(reads, writes, strict=True)]
            series.floor = Spread.ratio(floor, samples)


def _dtype(array: Any) -> str:
    """The NumPy name of any framework's dtype; "" for what is not an array."""
    dtype = getattr(array, "dtype", "")
    return str(getattr(dtype, "name", None) or str(dtype).removeprefix("torch."))


def main() -> None:
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    job: Job = pickle.load(sys.stdin.buffer)
    with contextlib.suppress(AttributeError):  # frameworks count the processors that they may use
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: job.threads])

    def tell(*message: Any) -> None:
        answers.write(pickle.dumps(message))
        answers.flush()

    try:
        session = Session(job, tell)
    except ValueError as error:
        tell("absent", f"{job.backend}: {error}")
        return
    gc.disable()  # no call pays for objects that others have left
    for case in job.cases:
        tell("case")
        if case.dtype not in session.dtypes:
            tell("absent", f"{job.backend}: no {case.dtype} without ml_dtypes")
            continue
        try:
            tell("done", *session.case(case.workload, case.dtype))
        except Exception as error:  # perhaps there was not enough memory; the next case may work
            tell("broken", f"{type(error).__name__}: {error}")
