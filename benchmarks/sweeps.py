"""Sweeps: the cases that differ in one size alone, a line for each contender, and how steep it is.

What a line tells of is time; for linear_ce, in a sweep of its own, memory.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from .result import Case, Result, Series, key
from .rows import PASS, duration, floor, short, size


def slope(values: Sequence[float], figures: Sequence[float]) -> float:
    """Exponent k of figure ~ value^k, by least squares in logarithms over the upper half of the values.

    The lower half is left out because a call's own cost hides the trend there. 1: in proportion; 0: no change;
    -1: twice the threads, half the time. NaN where fewer than two figures are known (NaN: not known).
    """
    upper = sorted(values)[min(len(values) // 2, max(len(values) - 2, 0)) :]
    known = zip(values, figures, strict=True)
    points = [(math.log(v), math.log(s)) for v, s in known if v in upper and s > 0]
    if len(points) < 2:
        return math.nan
    x, y = (sum(part) / len(points) for part in zip(*points, strict=True))
    steepness: float = sum((a - x) * (b - y) for a, b in points) / sum((a - x) ** 2 for a, _ in points)
    return steepness


@dataclass(frozen=True)
class Line:
    """One contender at every value; NaN where it has no figure."""

    series: Series
    figures: tuple[float, ...]
    wrong: tuple[bool, ...]
    slope: float
    shown: Callable[[float], str]

    @property
    def name(self) -> str:
        return short(self.series.name)

    @property
    def exponent(self) -> str:
        """Its slope, to hundredths: what does not grow is 0.00, not so many digits of noise."""
        return "-" if math.isnan(self.slope) else f"{round(self.slope, 2) + 0.0:.2f}"

    @property
    def cells(self) -> list[str]:
        return [self.shown(x) + ("!" if wrong else "") for x, wrong in zip(self.figures, self.wrong, strict=True)]


@dataclass(frozen=True)
class Sweep:
    cases: tuple[Case, ...]  # the values ascending
    which: str
    varied: str  # "classes", "rows" or "threads"
    measure: str  # "time", or "memory" beyond the gradients

    @property
    def values(self) -> list[int]:
        return [case.value for case in self.cases if case.value is not None]

    @property
    def title(self) -> str:
        case, varied = self.cases[0], self.varied
        rows, *features, classes = case.shape
        whole = "x".join(map(str, case.shape))
        fixed = {"rows": f"{classes} classes", "classes": f"{rows} rows", "threads": whole}[varied]
        fixed += f", {features[0]} features" if case.linear and varied != "threads" else ""
        return f"{base(case)}  {fixed}  {case.dtype}  {PASS[self.which]}: {self.measure} by {varied}"

    @property
    def note(self) -> str:
        beyond = self.measure == "memory" and self.which == "both"
        return self.cases[0].why + ("; memory beyond the gradients" if beyond else "")

    @property
    def floor(self) -> tuple[float, ...]:
        """Empty where there is none."""
        if self.cases[0].linear:
            return ()
        return tuple(floor(case, self.which) for case in self.cases)

    @property
    def text(self) -> Callable[..., str]:
        """Of a figure, with so many digits."""
        return size if self.measure == "memory" else duration

    def shown(self, figure: float) -> str:
        return self.text(figure, 2, "")

    @property
    def lines(self) -> list[Line]:
        """By backend: xent first, then the least at the largest value."""
        names = dict.fromkeys(key(s) for case in self.cases for s in case.series if s.which == self.which)
        return sorted((self._line(name) for name in names), key=_order)

    def _line(self, name: tuple[str, str, str, str]) -> Line:
        found = [case.find(*name) for case in self.cases]
        figures = tuple(map(self._figure, self.cases, found))
        wrong = tuple(s is not None and bool(case.wrong(s)) for case, s in zip(self.cases, found, strict=True))
        series = next(s for s in found if s is not None)
        return Line(series, figures, wrong, slope(self.values, figures), self.shown)

    def _figure(self, case: Case, series: Series | None) -> float:
        if series is None or series.problem:
            return math.nan
        if self.measure == "time":
            return series.time.median
        extra = case.extra(series)
        return math.nan if extra is None else extra


def _order(line: Line) -> tuple[str, bool, float]:
    last = line.figures[-1]
    return line.series.backend, not line.series.ours, math.inf if math.isnan(last) else last


def base(case: Case) -> str:
    """The workload's name without the size that a sweep puts behind it."""
    return case.workload.split()[0]


def sweeps(result: Result) -> Iterator[Sweep]:
    """One for each workload, dtype, measure and pass."""
    swept = [case for case in result.cases if case.value is not None]
    for name, dtype in dict.fromkeys((base(case), case.dtype) for case in swept):
        cases = sorted(
            (case for case in swept if (base(case), case.dtype) == (name, dtype)), key=lambda case: case.value or 0
        )
        present = [which for which in PASS if any(s.which == which for case in cases for s in case.series)]
        for measure in ("time", "memory") if cases[0].linear else ("time",):
            for which in present:
                yield Sweep(tuple(cases), which, result.settings["sweep"], measure)


def plain(result: Result) -> list[Case]:
    """The cases that belong to no sweep."""
    return [case for case in result.cases if case.value is None]
