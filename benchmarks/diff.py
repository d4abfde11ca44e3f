"""`xent bench --diff OLD NEW`: what got faster or slower beyond the noise.

Times of two runs cannot be compared, the machine may have been busier in one. What can be is how xent stood to others
in the same rounds: to each rival of its backend and mode, and to the memory's floor.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from typing import NamedTuple

from xent.benchmarks.result import ENOUGH, Case, Result, Series, Spread
from xent.benchmarks.tables import Column, Row, Table, times

NOISE = 0.1  # changes up to this are not told
COLUMNS = (
    Column("", f"faster, slower: against most others by more than {NOISE:.0%}, and beyond both runs' quartiles", True),
    Column("now", "xent's speed as a multiple of what it was"),
    *(Column(heading, left=True) for heading in ("workload", "pass", "xent on")),
    Column("against", "how many others: the memory, and the rivals on its backend in its mode"),
)


class Change(NamedTuple):
    """How many times as long as xent one other takes, then and now."""

    against: str
    old: Spread
    new: Spread

    @property
    def factor(self) -> float:
        """Above 1: xent got faster."""
        return self.new.median / self.old.median

    @property
    def clear(self) -> bool:
        """More than the noise, beyond both runs' quartiles, in enough rounds."""
        apart = self.new.low > self.old.high or self.new.high < self.old.low
        enough = min(self.old.rounds, self.new.rounds) >= ENOUGH
        return enough and apart and not 1 / (1 + NOISE) <= self.factor <= 1 + NOISE


class Verdict(NamedTuple):
    """All that is known about one of xent's times."""

    case: Case
    series: Series
    changes: list[Change]

    @property
    def factor(self) -> float:
        return statistics.median(change.factor for change in self.changes)

    @property
    def word(self) -> str:
        """Faster or slower if it is so against more than half of the others: one rival's own change is not xent's."""
        clear = [change.factor > 1 for change in self.changes if change.clear]
        for word, agreed in (("faster", clear.count(True)), ("slower", clear.count(False))):
            if 2 * agreed > len(self.changes):
                return word
        return "same"


def diff(old: Result, new: Result) -> list[Verdict]:
    """For each of xent's times that are in both. ValueError where there are none, or where they cannot be compared."""
    for name in ("device", "threads"):
        then, now = old.settings.get(name), new.settings.get(name)
        if then != now:
            raise ValueError(f"diff: expected runs with the same {name}, got {then} and {now}")
    before = {case.key: case for case in old.cases}
    found = []
    for case in new.cases:
        for series in case.series if case.key in before else ():
            changes = list(_changes(before[case.key], case, series))
            found += [Verdict(case, series, changes)] if changes else []
    if not found:
        raise ValueError("diff: expected two runs of the same workloads, found nothing that is in both")
    return found


def _changes(then: Case, now: Case, series: Series) -> Iterator[Change]:
    earlier = then.find(series.key)
    if not series.ours or earlier is None:
        return
    for rival in now.series:
        previous = then.find(rival.key)
        if previous and previous.ratio and rival.ratio and rival.key[1:] == series.key[1:]:
            yield Change(rival.name, previous.ratio, rival.ratio)
    if series.floor and earlier.floor:
        # The floor is a share of xent's time, so it grows as xent gets faster: like a rival's ratio.
        yield Change("memory", earlier.floor, series.floor)


def table(verdicts: list[Verdict]) -> Table:
    """A line for each of xent's times, what changed most first."""
    rows = []
    for verdict in sorted(verdicts, key=lambda v: (v.word == "same", v.factor)):
        case, series, changes = verdict
        what = f"{case.workload.name} {case.dtype}" + (f" {case.value}" if case.value else "")
        on = f"{series.backend} {series.mode}"
        cells = (verdict.word, times(verdict.factor), what, series.which, on, str(len(changes)))
        rows.append(Row(cells, verdict.word))
    return Table("what changed", "in xent's speed, measured against others in the same rounds", COLUMNS, {"": rows})
