"""`xent bench --diff OLD NEW`: what got faster or slower beyond the noise.

Times of two runs cannot be compared, the machine may have been busier in one. What can be is how xent stood to
others in the same rounds: each rival of its backend and mode, and the memory, where that is what limits.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator
from typing import NamedTuple

from rich.console import Console
from rich.table import Table

from .result import ENOUGH, Case, Result, Series, Spread, key, ratio
from .rows import BRIEFLY

NOISE = 0.1  # changes up to this are not told


class Change(NamedTuple):
    """One of xent's times against one other contender's: how many times as long the other one takes, then and now."""

    case: Case
    series: Series
    against: str
    old: Spread
    new: Spread

    @property
    def factor(self) -> float:
        """Above 1: xent got faster."""
        return self.new.median / self.old.median

    @property
    def apart(self) -> float:
        """How much larger one median is than the other, less one."""
        return max(self.factor, 1 / self.factor) - 1

    @property
    def chance(self) -> float:
        """That the scatter of their rounds alone puts two medians of the same ratio further apart than the noise."""
        return math.erfc(math.log(1 + NOISE) / math.hypot(1e-9, self.old.error, self.new.error) / math.sqrt(2))

    @property
    def clear(self) -> bool:
        """More than the noise, beyond both runs' middle halves, in enough rounds."""
        apart = self.new.low > self.old.high or self.new.high < self.old.low
        enough = min(self.old.rounds, self.new.rounds) >= ENOUGH
        return enough and apart and not 1 / (1 + NOISE) <= self.factor <= 1 + NOISE


class Verdict(NamedTuple):
    """All that is known about one of xent's times."""

    changes: list[Change]

    @property
    def factor(self) -> float:
        return statistics.median(change.factor for change in self.changes)

    @property
    def word(self) -> str:
        """Faster or slower if it is so against more than half of the others: one rival's own change is none of ours."""
        for word, direction in (("faster", 1), ("slower", -1)):
            agreed = [c for c in self.changes if c.clear and (c.factor - 1) * direction > 0]
            if 2 * len(agreed) > len(self.changes):
                return word
        return "same"


def diff(old: Result, new: Result) -> list[Verdict]:
    """For each of xent's times that are in both. ValueError where there are none, or where they cannot be compared."""
    for name in ("device", "threads"):
        then, now = old.settings.get(name), new.settings.get(name)
        if then != now:
            raise ValueError(f"diff: expected runs with the same {name}, got {then} and {now}")
    found = [Verdict(list(changes)) for changes in _each(old, new)]
    if not found:
        raise ValueError("diff: expected two runs of the same workloads, found nothing that is in both")
    return found


def _each(old: Result, new: Result) -> Iterator[list[Change]]:
    before = {case.identity: case for case in old.cases}
    for case in new.cases:
        then = before.get(case.identity)
        for series in case.series if then else ():
            changes = list(_changes(then, case, series)) if then and series.ours and series.seconds else []
            both = [change for change in changes if change.old.rounds and change.new.rounds]  # nobody has failed
            if both:
                yield both


def _changes(then: Case, now: Case, series: Series) -> Iterator[Change]:
    earlier = then.find(*key(series))
    if earlier is None or not earlier.seconds:
        return
    for rival in now.series:
        previous = then.find(*key(rival))
        if not rival.ours and rival.seconds and previous and previous.seconds and now.baseline(rival) is series:
            old, new = ratio(previous.seconds, earlier.seconds), ratio(rival.seconds, series.seconds)
            yield Change(now, series, rival.name, old, new)
    if not now.linear:
        floors = then.floor(series.which), now.floor(series.which)
        yield Change(now, series, "memory", ratio(floors[0], earlier.seconds), ratio(floors[1], series.seconds))


def of_rivals(verdicts: list[Verdict]) -> list[Change]:
    """Without the memory's."""
    return [change for verdict in verdicts for change in verdict.changes if change.against != "memory"]


def agreement(changes: list[Change]) -> str:
    """How far the paired ratios agree at all."""
    apart = [change.apart for change in changes]
    return (
        f"{len(apart)} paired ratios of rivals to xent: medians differ by {statistics.median(apart):.1%} in the "
        f"middle, {max(apart):.1%} at most; {sum(a > NOISE for a in apart)} by more than {NOISE:.0%}, where the "
        f"scatter of their rounds alone makes one expect {sum(change.chance for change in changes):.0f}"
    )


def show(verdicts: list[Verdict], console: Console) -> None:
    """A line for each of xent's times, what changed first; then how far the paired ratios agree at all."""
    table = Table(box=None, padding=(0, 1, 0, 0), header_style="bold")
    for heading in ("", "now", "workload", "pass", "xent on", "against"):
        table.add_column(heading, no_wrap=True, justify="right" if heading == "now" else "left")
    colour = {"faster": "green", "slower": "red", "same": "dim"}
    for verdict in sorted(verdicts, key=lambda v: (v.word == "same", v.factor)):
        change = verdict.changes[0]
        table.add_row(
            f"[{colour[verdict.word]}]{verdict.word}[/]",
            f"{verdict.factor:.2f}x",
            f"{change.case.workload} {change.case.dtype}" + (f" {change.case.value}" if change.case.value else ""),
            BRIEFLY[change.series.which],
            f"{change.series.backend} {change.series.mode}",
            f"{len(verdict.changes)}",
        )
    console.print(table)
    console.print(
        "\n[dim]now      xent's speed as a multiple of what it was, measured against others in the same rounds"
        "\nagainst  how many others: the memory, and the rivals on its backend in its mode"
        f"\nfaster, slower  against most of them by more than {NOISE:.0%}, and beyond both runs' quartiles[/]"
    )
    changes = of_rivals(verdicts)
    if changes:
        console.print(agreement(changes), highlight=False)
