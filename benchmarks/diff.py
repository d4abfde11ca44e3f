"""`xent bench --diff OLD NEW`: what got faster or slower beyond the noise.

Times of two runs cannot be compared: the machine may have been busier during one. What is compared is xent's ratio to
others in the same rounds: to each rival of its backend and mode, and to the memory's floor.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from typing import NamedTuple

from xent.benchmarks.result import ENOUGH, Case, Result, Series, Spread
from xent.benchmarks.tables import Column, Row, Table, times

NOISE = 0.1  # smaller changes are not reported
COLUMNS = (
    Column("", f"faster, slower: against most others by more than {NOISE:.0%}, and beyond both runs' quartiles", True),
    Column("now", "xent's speed as a multiple of what it was"),
    *(Column(heading, left=True) for heading in ("workload", "pass", "xent on")),
    Column("against", "how many others: the memory, and the rivals on its backend in its mode"),
)


class Verdict(NamedTuple):
    """How one of xent's times has changed against each other one."""

    case: Case
    series: Series
    changes: list[tuple[Spread, Spread]]  # how many times as long as xent the other one takes, then and now

    @property
    def factors(self) -> list[float]:
        """Above 1: xent got faster."""
        return [new.median / old.median for old, new in self.changes]

    @property
    def factor(self) -> float:
        return statistics.median(self.factors)

    @property
    def word(self) -> str:
        """Whether xent got faster or slower against most of the others, since one rival may itself have changed."""
        clear = [factor > 1 for factor, (old, new) in zip(self.factors, self.changes, strict=True) if _clear(old, new)]
        for word, agreed in (("faster", clear.count(True)), ("slower", clear.count(False))):
            if 2 * agreed > len(self.changes):
                return word
        return "same"


def _clear(old: Spread, new: Spread) -> bool:
    """More than the noise, beyond both runs' quartiles, in enough rounds."""
    apart = new.low > old.high or new.high < old.low
    enough = min(old.rounds, new.rounds) >= ENOUGH
    return enough and apart and not 1 / (1 + NOISE) <= new.median / old.median <= 1 + NOISE


def diff(old: Result, new: Result) -> list[Verdict]:
    """For each of xent's times that are in both. ValueError where there are none, or where they cannot be compared."""
    for name in ("device", "threads"):
        then, now = old.settings.get(name), new.settings.get(name)
        if then != now:
            raise ValueError(f"diff: expected runs with the same {name}, got {then} and {now}")
    before = {case.key: case for case in old.cases}
    both = [(before[case.key], case) for case in new.cases if case.key in before]
    found = [Verdict(now, series, [*_changes(then, now, series)]) for then, now in both for series in now.series]
    if not any(verdict.changes for verdict in found):
        raise ValueError("diff: expected two runs of the same workloads, found nothing that is in both")
    return [verdict for verdict in found if verdict.changes]


def _changes(then: Case, now: Case, series: Series) -> Iterator[tuple[Spread, Spread]]:
    """Of xent against each rival, and against the memory's floor: a share of xent's time, it grows as a ratio does."""
    for other in now.series if series.ours else ():
        earlier = then.find(other.key)
        old, new = (one and (one.floor if one.key == series.key else one.ratio) for one in (earlier, other))
        if old and new and other.key[1:] == series.key[1:]:
            yield old, new


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
