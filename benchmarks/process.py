"""One framework's process: builds the contenders, checks them, and lets them take turns.

It reads its job as one line of JSON from standard input and writes JSON, a line a message, to the standard output it
was started with; what the frameworks print goes to standard error.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import itertools
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from importlib.metadata import version
from typing import Any

import numpy as np
from xent.benchmarks import clock, frameworks, memory, truth
from xent.benchmarks.frameworks import Call, Contender
from xent.benchmarks.result import ENOUGH, Series, Spread, to_json
from xent.benchmarks.workloads import Workload, from_dict
from xent.verify.frameworks import device, load

SAMPLE = 0.02  # seconds: shorter calls are repeated until a sample takes about so long
SLOW = 0.1  # seconds: what takes so long has not come back early
MANY = 25  # rounds at most, if it is not said how many
SEED = 0  # of the inputs

Tell = Callable[[dict[str, Any]], None]


@dataclass(eq=False)
class Entry:
    """A contender in one pass, what is found out about it, and its times."""

    contender: Contender
    series: Series
    each: float = 0.0  # seconds of a call, about
    samples: list[float] = field(default_factory=list)  # seconds of a call, by round

    @property
    def call(self) -> Call:
        return self.contender.forward if self.series.which == "forward" else self.contender.both

    def note(self, **found: Any) -> None:
        self.series = replace(self.series, **found)

    @contextlib.contextmanager
    def guarded(self) -> Iterator[None]:
        """Whatever a framework raises is what the report is to say."""
        try:
            yield
        except Exception as error:
            said = (str(error).strip().splitlines() or [""])[0][:200]
            self.note(problem=f"failed: {type(error).__name__}: {said}")


class Session:
    """One framework, and the case it is at."""

    def __init__(self, job: dict[str, Any], tell: Tell) -> None:
        """Imports the framework. Raises ValueError where it has no such device."""
        self.job, self.tell, self.backend = job, tell, job["backend"]
        live = load(self.backend)
        self.dtypes, self.device = live.dtypes, device(live.devices(), job["device"])
        if not self.device:
            raise ValueError(f"no {job['device']} here, only {', '.join(live.devices())}")
        _limit(self.backend, job["threads"])
        self.framework = importlib.import_module(f"xent.benchmarks.frameworks.{self.backend}").make(self.device)
        self.rng = np.random.default_rng(job["seed"])
        absent = [f"{name}: not installed (pip install {name})" for name in self.framework.missing]
        tell({"versions": {name: version(name) for name in self.framework.versions}})
        tell({"absent": absent if job["rivals"] else []})

    def case(self, workload: Workload, dtype: str) -> dict[str, Any]:
        """Checks, then times every contender: its series, and the bandwidth beside them."""
        self.workload, self.dtype = workload, dtype
        self.inputs: list[Any] = []  # the last case's go first
        self.framework.begin(dtype)
        x, y = workload.arrays(SEED)
        self.x = frameworks.each(lambda k: truth.rounded(k, dtype), x)
        y = y if workload.ids else truth.rounded(y, dtype)
        self.labels = self.framework.array(y, dtype)
        self._make_inputs()
        true = truth.truth(workload, self.x, y)
        entries = list(self._entries(self.framework.contenders(workload)))
        for entry in entries:
            self.tell({"doing": f"checking {entry.contender.name} {entry.contender.mode}"})
            with entry.guarded():
                self._check(entry, true)
            if entry.contender.overwrites:
                self._make_inputs()
        del true
        reads, writes = self._rounds(entries)
        bandwidth = [1 / Spread.of(reads).median, 1 / Spread.of(writes).median] if reads else None
        series = [to_json(self._finished(entry, entries, reads, writes)) for entry in entries]
        return {"series": series, "bandwidth": bandwidth}

    def _make_inputs(self) -> None:
        copies = range(self.workload.copies(self.dtype))
        self.inputs = [frameworks.each(lambda k: self.framework.array(k, self.dtype), self.x) for _ in copies]
        self.turns = itertools.cycle(self.inputs)

    def _entries(self, contenders: list[Contender]) -> Iterator[Entry]:
        for contender in contenders:
            if contender.mode in self.job["modes"] and (contender.ours or self.job["rivals"]):
                for which in self.job["passes"]:
                    name, mode, ours, *_ = contender
                    yield Entry(contender, Series(name, self.backend, mode, ours, which))

    def _calls(self, entry: Entry) -> Iterator[partial[Any]]:
        """Each with the next of the inputs."""
        return (partial(entry.call, x, self.labels) for x in self.turns)

    # ---- correct first

    def _check(self, entry: Entry, true: truth.Truth) -> None:
        """The first call, whether its result is right, a second call's memory and time, whether it waits."""
        calls, wait = self._calls(entry), self.framework.wait
        start = time.perf_counter()
        result = next(calls)()
        wait(result)
        entry.note(first=time.perf_counter() - start)
        self._judge(entry, result, true)
        del result
        if entry.series.problem:
            return
        call, times = next(calls), []
        counted = self.framework.peak()
        of_process = memory.peak(lambda: times.append(clock.seconds(iter([call]), wait, 1)))
        on_host = of_process if self.device == "cpu" else None
        told = (counted(), self.framework.planned(call.func, *call.args), on_host)
        entry.note(memory=max((size for size in told if size is not None), default=None))
        entry.each = times[0]
        if entry.each <= SLOW and clock.late(next(calls), wait, self._fetch):
            entry.note(problem="not synchronised: the clock stopped before the result was there")

    def _judge(self, entry: Entry, result: Any, true: truth.Truth) -> None:
        numpy, (loss, *gradient) = self.framework.numpy, result if isinstance(result, tuple) else (result,)
        entry.note(value_error=truth.value_error(true, numpy(loss)))
        for part in frameworks.arrays(tuple(gradient)):
            if _dtype(part) != self.dtype:
                entry.note(problem=f"wrong: gradient in {_dtype(part)}, expected {self.dtype}")
                return
        if gradient:
            error = truth.gradient_error(true, frameworks.each(numpy, gradient[0]), self.dtype)
            entry.note(gradient_error=error)
        entry.note(problem=truth.wrong(self.workload, self.dtype, _dtype(loss) or self.dtype, entry.series))

    def _fetch(self, result: Any) -> None:
        """A number of each array: it is there no sooner than the array, and takes no time to bring over."""
        for array in frameworks.arrays(result):
            self.framework.numpy(array[(0,) * array.ndim] if getattr(array, "ndim", 0) else array)

    # ---- then side by side

    def _rounds(self, entries: list[Entry]) -> tuple[list[float], list[float]]:
        """Each contender has its turn in each round, in another order each time; so have memory's read and write,
        whose seconds a byte are the answer."""
        traffic = None
        if not self.workload.linear and self.device == "cpu":
            traffic = memory.host_traffic(memory.SIZE, self.job["threads"])
        elif not self.workload.linear and self.framework.traffic:
            traffic = self.framework.traffic(4 * memory.SIZE)
        reads: list[float] = []
        writes: list[float] = []
        for number in self._numbers():
            self.tell({"doing": f"round {number + 1}"})
            if traffic:
                for move, taken in ((traffic.read, reads), (traffic.write, writes)):
                    taken.append(clock.seconds(iter([move]), lambda _: None, 1) / traffic.size)
            for place in self.rng.permutation(len(entries)):
                if not entries[place].series.problem:
                    with entries[place].guarded():
                        entries[place].samples.append(self._sample(entries[place]))
        return reads, writes

    def _numbers(self) -> Iterator[int]:
        """As many rounds as were asked for; or as fit into the time for a case, but enough of them."""
        end = time.monotonic() + self.job["seconds"]
        for number in range(self.job["rounds"] or MANY):
            if not self.job["rounds"] and number >= ENOUGH and time.monotonic() > end:
                return
            yield number

    def _sample(self, entry: Entry) -> float:
        """Seconds of a call; of short ones the mean of many, after one that is not timed and wakes up what sleeps."""
        calls, wait = self._calls(entry), self.framework.wait
        repeat = int(min(max(SAMPLE / max(entry.each, 1e-9), 1), 10_000))
        if repeat > 1:
            clock.seconds(calls, wait, 1)
        taken = clock.seconds(calls, wait, repeat)
        entry.each = min(entry.each, taken)
        return taken

    def _finished(self, entry: Entry, entries: list[Entry], reads: list[float], writes: list[float]) -> Series:
        """With its times, beside those of xent in the same mode and in its fastest, and beside the floor."""
        series, samples = entry.series, entry.samples
        if series.problem:
            return series
        least, gradient = self.workload.read(self.dtype), self.workload.written(self.dtype, series.which)
        floor = [least * read + gradient * write for read, write in zip(reads, writes, strict=True)]
        series = replace(series, time=Spread.of(samples), floor=Spread.ratio(floor, samples) if floor else None)
        ours = [e for e in entries if e.series.ours and e.series.which == series.which and not e.series.problem]
        if series.ours or not ours:
            return series
        best = min(ours, key=lambda e: Spread.of(e.samples).median)
        series = replace(series, best=Spread.ratio(samples, best.samples))
        same = next((e for e in ours if e.series.mode == series.mode), None)
        return replace(series, ratio=Spread.ratio(samples, same.samples)) if same else series


def _dtype(array: Any) -> str:
    """Its NumPy name, whatever the framework; "" for what is no array."""
    dtype = getattr(array, "dtype", "")
    return str(getattr(dtype, "name", None) or str(dtype).removeprefix("torch."))


def _limit(backend: str, threads: int) -> None:
    """The process's affinity does it where the system knows one; these two have a setting of their own."""
    if backend == "torch":
        importlib.import_module("torch").set_num_threads(threads)
    if backend == "tensorflow":
        importlib.import_module("tensorflow").config.threading.set_intra_op_parallelism_threads(threads)


def main() -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    job = json.loads(sys.stdin.readline())
    with contextlib.suppress(AttributeError):  # frameworks count the processors that they may use
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: job["threads"]])

    def tell(message: dict[str, Any]) -> None:
        print(json.dumps(message), file=answers, flush=True)

    try:
        session = Session(job, tell)
    except ValueError as error:
        tell({"absent": [f"{job['backend']}: {error}"]})
        return
    gc.collect()
    gc.freeze()  # a framework's million objects take a quarter of a second to look through
    for index, (workload, dtype) in enumerate(job["cases"]):
        tell({"case": index})
        if dtype not in session.dtypes:
            tell({"absent": [f"{session.backend}: no {dtype} without ml_dtypes"]})
            continue
        try:
            tell({"done": session.case(from_dict(workload), dtype)})
        except Exception as error:  # for want of memory, it may be; the next case may do
            tell({"broken": f"{type(error).__name__}: {error}"})
