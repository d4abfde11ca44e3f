"""Sweeps: the cases that differ in one size alone, a line for each contender, and how steep it is."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from .result import Case, Result, Series, key
from .rows import PASS, duration, floor, short


def slope(values: Sequence[float], seconds: Sequence[float]) -> float:
    """Exponent k of time ~ value^k, by least squares in logarithms over the upper half of the values.

    The lower half is left out because a call's own cost hides the trend there. 1: in proportion; 0: no change;
    -1: twice the threads, half the time. NaN where fewer than two times are known (NaN: not known).
    """
    upper = sorted(values)[min(len(values) // 2, max(len(values) - 2, 0)) :]
    known = zip(values, seconds, strict=True)
    points = [(math.log(v), math.log(s)) for v, s in known if v in upper and s > 0]
    if len(points) < 2:
        return math.nan
    x, y = (sum(part) / len(points) for part in zip(*points, strict=True))
    steepness: float = sum((a - x) * (b - y) for a, b in points) / sum((a - x) ** 2 for a, _ in points)
    return steepness


@dataclass(frozen=True)
class Line:
    """One contender at every value; NaN where it has no time."""

    series: Series
    seconds: tuple[float, ...]
    wrong: tuple[bool, ...]
    slope: float

    @property
    def name(self) -> str:
        return short(self.series.name)

    @property
    def cells(self) -> list[str]:
        shown = zip(self.seconds, self.wrong, strict=True)
        return [duration(s, 2, "") + ("!" if wrong else "") for s, wrong in shown]


@dataclass(frozen=True)
class Sweep:
    cases: tuple[Case, ...]  # the values ascending
    which: str
    varied: str  # "classes", "rows" or "threads"

    @property
    def values(self) -> list[int]:
        return [case.value for case in self.cases if case.value is not None]

    @property
    def title(self) -> str:
        case, varied = self.cases[0], self.varied
        rows, *_, classes = case.shape
        whole = "x".join(map(str, case.shape))
        fixed = {"rows": f"{classes} classes", "classes": f"{rows} rows", "threads": whole}[varied]
        return f"{base(case)}  {fixed}  {case.dtype}  {PASS[self.which]}: time by {varied}"

    @property
    def floor(self) -> tuple[float, ...]:
        return tuple(floor(case, self.which) for case in self.cases)

    @property
    def lines(self) -> list[Line]:
        """By backend: xent first, then the fastest at the largest value."""
        names = dict.fromkeys(key(s) for case in self.cases for s in case.series if s.which == self.which)
        return sorted((self._line(name) for name in names), key=_order)

    def _line(self, name: tuple[str, str, str, str]) -> Line:
        found = [case.find(*name) for case in self.cases]
        seconds = tuple(math.nan if s is None or s.problem else s.time.median for s in found)
        wrong = tuple(s is not None and bool(case.wrong(s)) for case, s in zip(self.cases, found, strict=True))
        series = next(s for s in found if s is not None)
        return Line(series, seconds, wrong, slope(self.values, seconds))


def _order(line: Line) -> tuple[str, bool, float]:
    last = line.seconds[-1]
    return line.series.backend, not line.series.ours, math.inf if math.isnan(last) else last


def base(case: Case) -> str:
    """The workload's name without the size that a sweep puts behind it."""
    return case.workload.split()[0]


def sweeps(result: Result) -> Iterator[Sweep]:
    """One for each workload, dtype and pass."""
    swept = [case for case in result.cases if case.value is not None]
    for name, dtype in dict.fromkeys((base(case), case.dtype) for case in swept):
        cases = sorted(
            (case for case in swept if (base(case), case.dtype) == (name, dtype)), key=lambda case: case.value or 0
        )
        for which in PASS:
            if any(s.which == which for case in cases for s in case.series):
                yield Sweep(tuple(cases), which, result.settings["sweep"])


def plain(result: Result) -> list[Case]:
    """The cases that belong to no sweep."""
    return [case for case in result.cases if case.value is None]
