"""Sweeps: the cases that differ in one number, a line for each contender, and how steep it is.

A line tells the time; for linear_ce, in a table of its own, also the memory.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from xent.benchmarks import tables
from xent.benchmarks.result import Case, Result, Series
from xent.benchmarks.tables import Column, Row, Table
from xent.benchmarks.workloads import PASSES


class Line(NamedTuple):
    series: Series  # whose contender it is
    figures: list[float]  # at each value; NaN: not known
    slope: float


@dataclass(frozen=True)
class Sweep:
    cases: list[Case]  # the values ascending
    which: str
    varied: str
    measure: str  # "time", or "memory" beyond the gradients

    @property
    def values(self) -> list[int]:
        return [case.value or 0 for case in self.cases]

    @property
    def title(self) -> str:
        first = self.cases[0]
        return f"{first.workload.name}  {first.dtype}  {PASSES[self.which]}: {self.measure} by {self.varied}"

    @property
    def shown(self) -> Callable[[float, int], str]:
        return tables.size if self.measure == "memory" else tables.duration

    @property
    def lines(self) -> dict[str, list[Line]]:
        """By backend, xent first."""
        series = {s.key: s for case in self.cases for s in case.series if s.which == self.which}
        found: dict[str, list[Line]] = {}
        for one in sorted(series.values(), key=lambda s: (s.backend, not s.ours)):
            figures = [self._figure(case, case.find(one.key)) for case in self.cases]
            found.setdefault(one.backend, []).append(Line(one, figures, slope(self.values, figures)))
        return found

    def _figure(self, case: Case, series: Series | None) -> float:
        if self.measure == "memory":
            return case.extra(series)
        return series.time.median if series and series.time else math.nan


def slope(values: Sequence[float], figures: Sequence[float]) -> float:
    """Exponent k of figure ~ value^k, by least squares in logarithms over the upper half of the values: in the lower
    half a call's own cost hides it. NaN where fewer than two figures are known."""
    lower = min(len(values) // 2, max(len(values) - 2, 0))
    points = [(math.log(v), math.log(f)) for v, f in list(zip(values, figures, strict=True))[lower:] if f > 0]
    return statistics.linear_regression(*zip(*points, strict=True)).slope if len(points) > 1 else math.nan


def sweeps(result: Result) -> Iterator[Sweep]:
    """One for each workload, dtype, measure and pass."""
    swept: dict[tuple[str, str], list[Case]] = {}
    for case in sorted((case for case in result.cases if case.value), key=lambda case: case.value or 0):
        swept.setdefault((case.workload.name, case.dtype), []).append(case)
    for cases in swept.values():
        for measure in ("time", "memory") if cases[0].workload.linear else ("time",):
            for which in tables.passes(*cases):
                yield Sweep(cases, which, result.settings["sweep"], measure)


def table(sweep: Sweep) -> Table:
    columns = (
        Column("contender", left=True),
        Column("mode", left=True),
        *(Column(str(value), spare=value not in sweep.values[-5:]) for value in sweep.values),
        Column("slope", f"k in {sweep.measure} ~ value^k, over the upper half of the values"),
    )
    groups = {backend: [_row(sweep, line) for line in lines] for backend, lines in sweep.lines.items()}
    troubles = dict.fromkeys(trouble for case in sweep.cases for trouble in tables.troubles(case, sweep.which))
    shapes = ("x".join(map(str, case.workload.shape)) for case in (sweep.cases[0], sweep.cases[-1]))
    note = f"from {' to '.join(shapes)}" + ("; memory beyond the gradients" if sweep.measure == "memory" else "")
    return Table(sweep.title, note, columns, groups, tuple(troubles))


def _row(sweep: Sweep, line: Line) -> Row:
    series, figures, slope = line
    exponent = "-" if math.isnan(slope) else f"{slope:.2f}".replace("-0.00", "0.00")
    cells = (tables.short(series.name), series.mode, *(sweep.shown(figure, 2) for figure in figures), exponent)
    return Row(cells, "ours" if series.ours else "")
