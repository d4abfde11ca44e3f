"""The rounds in which all contenders take turns."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from statistics import median
from typing import TypeVar

import numpy as np

from . import machine
from .clock import SPARE
from .result import ENOUGH, Series, ratio
from .steady import Steady
from .workers import Died, Failed, Worker

T = TypeVar("T")
SLOW = 0.25  # seconds a call: longer samples are steadier, and are taken in every other one of the first rounds only
CALLS, SAMPLES = 4, 25  # so many calls in a sample, unless they take as long as so many samples
APART = 0.03  # seconds a call: of longer ones, which need nothing to wake up before, each is a turn of its own
FEW, MANY = 7, 99  # rounds, if it is not said how many: more than few for those whose ratios to xent are not known
KNOWN = 12  # from so many pairs of samples: of fewer, some look calm by chance
SETTLED = 0.02  # and so well (the standard error of its logarithm),
PATIENCE = 50.0  # as long as they fit into so many seconds a case; as long again for a machine to be as usual


@dataclass
class Entry:
    """A contender in one pass, and the process it is in."""

    worker: Worker
    index: int
    series: Series
    each: float = 0.0  # seconds a call
    samples: list[float | None] = field(default_factory=list)


class Rounds:
    """Of one case, and their samples so far."""

    def __init__(
        self,
        memory: Worker,
        workers: list[Worker],
        entries: list[Entry],
        sample: float,
        seed: int,
        steady: Steady | None,
    ) -> None:
        self.memory, self.workers, self.sample, self.steady = memory, workers, sample, steady
        self.moves: dict[str, list[float | None]] = {"read": [], "write": [], "copy": []}
        self.timed = [entry for entry in entries if not entry.series.problem]
        self.rng = np.random.default_rng(seed)
        self.number = 0
        self.keeps = memory if _crowded(self.timed) else None  # the one process that keeps what it frees; None: all do

    def take(self, count: int | None, lives: int, parts: int) -> Iterator[float]:
        """Before each round, the part of them that is done. If it is not said how many: some of all contenders, then
        more of those whose ratios are not settled.

        lives: how many such series of rounds each contender has. parts: how many times as many the case has.
        """
        few, patience = count or (FEW if lives == 1 else ENOUGH), PATIENCE / lives / parts
        if self.steady:
            self.steady.begin(self.memory, patience)
        for number in range(few):
            yield number / few if count else number / few / 2
            self._round([entry for entry in self.timed if number % 2 == 0 or entry.each <= SLOW])
        start, here = time.monotonic(), self.timed
        for _ in range(few, few if count else MANY):
            here, spent = self._unsettled(here, SETTLED * lives**0.5), time.monotonic() - start
            if not here or spent > patience:
                return
            yield (1 + spent / patience) / 2
            self._round(here)

    def whole(self) -> int:
        """Rounds that nobody missed the end of."""
        return min(map(len, [*self.moves.values(), *(entry.samples for entry in self.timed)]))

    def _round(self, entries: list[Entry]) -> None:
        for what, column in self.moves.items():
            column.append(self.memory.ask("move", what=what)["seconds"])
        going = [entry for entry in entries if not entry.series.problem]
        for batch in _turns(self.rng, going, apart=self.keeps is not None):
            self._turn(batch)
        self.number += 1
        for entry in self.timed:
            entry.samples += [None] * (self.number - len(entry.samples))

    def _turn(self, batch: list[Entry]) -> None:
        """A sample of each. What a machine does while long calls are taken, it does to all of them."""
        if self.keeps and self.keeps is not batch[0].worker:
            _give_back(self.keeps)
            self.keeps = batch[0].worker
        calls = [self._calls(entry.each) for entry in batch]
        turns = [count if entry.each > APART else 1 for entry, count in zip(batch, calls, strict=True)]
        alone = any(entry.each > APART for entry in batch)
        taken: list[list[float]] = [[] for _ in batch]
        for turn in range(max(turns)):
            here = _shuffled(self.rng, [place for place, count in enumerate(turns) if turn < count])
            for places in [[place] for place in here] if alone else [here]:
                asked = [(batch[place], calls[place] // turns[place]) for place in places]
                for place, seconds in zip(places, self._times(asked), strict=True):
                    taken[place] += [] if seconds is None else [seconds]
        for entry, found in zip(batch, taken, strict=True):
            entry.samples.append(None if entry.series.problem else median(found))

    def _times(self, asked: list[tuple[Entry, int]]) -> list[float | None]:
        def times() -> list[float | None]:
            return [self._time(entry, repeat) for entry, repeat in asked]

        return self.steady.take(times) if self.steady else times()

    def _time(self, entry: Entry, repeat: int) -> float | None:
        if entry.series.problem:
            return None
        ask = partial(entry.worker.ask, "time", index=entry.index, which=entry.series.which, repeat=repeat)
        try:
            try:
                seconds: float = ask()["seconds"]
            except Failed:  # for want of memory, it may be, that others keep
                for worker in self.workers:
                    _give_back(worker)
                seconds = ask()["seconds"]
        except Died as died:  # the driver sees to the process
            entry.series = replace(entry.series, problem=str(died))
            return None
        entry.each = min(entry.each, seconds)
        return seconds

    def _unsettled(self, entries: list[Entry], error: float) -> list[Entry]:
        """All of those that are compared with each other, in any mode, where a ratio to xent is not known so well: a
        rival's, or the memory's where there is no rival."""
        found = []
        for compared in _compared([entry for entry in entries if not entry.series.problem]):
            ours = [entry.samples for entry in compared if entry.series.ours]
            others = [entry.samples for entry in compared if not entry.series.ours] or [self.moves["read"]]
            ratios = [ratio(other, our) for our in ours for other in others]
            if any(spread.rounds < KNOWN or spread.error > error for spread in ratios):
                found += compared
        return found

    def _calls(self, each: float) -> int:
        """In a sample. One call of 40 ms alone is at the mercy of what happens in it; one of 400 ms is not."""
        fit = self.sample / max(each, 1e-9)
        return int(min(max(fit, min(CALLS, SAMPLES * fit), 1), 10_000))


def _turns(rng: np.random.Generator, entries: list[Entry], apart: bool) -> Iterator[list[Entry]]:
    """In another order each time, those that are compared, whatever framework's process they are in: what a machine
    does in a second is the same for them, what it does in a round is not. apart: those of one process at once."""
    for compared in _shuffled(rng, _compared(entries)):
        yield from _shuffled(rng, _grouped(compared, lambda entry: entry.worker)) if apart else [compared]


def _compared(entries: list[Entry]) -> list[list[Entry]]:
    return _grouped(entries, lambda entry: (entry.series.backend, entry.series.which))


def _grouped(entries: list[Entry], of: Callable[[Entry], Hashable]) -> list[list[Entry]]:
    groups: dict[Hashable, list[Entry]] = {}
    for entry in entries:
        groups.setdefault(of(entry), []).append(entry)
    return list(groups.values())


def _shuffled(rng: np.random.Generator, items: list[T]) -> list[T]:
    return [items[place] for place in rng.permutation(len(items))]


def _crowded(entries: list[Entry]) -> bool:
    """Whether processes cannot all keep what their calls take. Then only the one that is timed does: whoever has to
    take what others have just lacked is timed in fresh memory."""
    most: dict[Worker, int] = {}
    for entry in entries:
        most[entry.worker] = max(most.get(entry.worker, 0), entry.series.memory or 0)
    return sum(most.values()) > machine.memory("available") - SPARE


def _give_back(worker: Worker) -> None:
    with contextlib.suppress(Died):  # its own entries say so
        worker.ask("give_back")
