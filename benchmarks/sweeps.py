"""Sweeps: the cases that differ in one number, a line for each contender, and how steep it is.

A line tells the time; for linear_ce, in a table of its own, also the memory.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterator, Sequence
from itertools import product
from typing import NamedTuple

from xent.benchmarks import tables
from xent.benchmarks.result import Case, Result, Series
from xent.benchmarks.tables import Column, Row, Table
from xent.benchmarks.workloads import PASSES


class Line(NamedTuple):
    series: Series  # whose contender it is
    figures: list[float]  # at each value; NaN: not known
    slope: float


class Sweep(NamedTuple):
    title: str
    measure: str  # "time", or "memory" beyond the gradients
    shown: Callable[[float, int], str]  # a figure, with so many digits
    which: str
    cases: list[Case]  # the values ascending

    @property
    def values(self) -> list[int]:
        return [case.value or 0 for case in self.cases]

    def lines(self) -> Iterator[Line]:
        """By backend, xent first."""
        series = {s.key: s for case in self.cases for s in case.series if s.which == self.which}
        for one in sorted(series.values(), key=lambda s: (s.backend, not s.ours)):
            found = [(case, case.find(one.key)) for case in self.cases]
            if self.measure == "memory":
                figures = [case.extra(s) for case, s in found]
            else:
                figures = [s.time.median if s and s.time else math.nan for _, s in found]
            yield Line(one, figures, slope(self.values, figures))


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
    for (name, dtype), cases in swept.items():
        measures = {"time": tables.duration} | ({"memory": tables.size} if cases[0].workload.linear else {})
        for (measure, shown), which in product(measures.items(), tables.passes(*cases)):
            title = f"{name}  {dtype}  {PASSES[which]}: {measure} by {result.settings['sweep']}"
            yield Sweep(title, measure, shown, which, cases)


def table(sweep: Sweep) -> Table:
    columns = (
        Column("contender", left=True),
        Column("mode", left=True),
        *(Column(str(value), spare=value not in sweep.values[-5:]) for value in sweep.values),
        Column("slope", f"k in {sweep.measure} ~ value^k, over the upper half of the values"),
    )
    groups: dict[str, list[Row]] = {}
    for series, figures, slope in sweep.lines():
        exponent = "-" if math.isnan(slope) else f"{slope:.2f}".replace("-0.00", "0.00")
        cells = (tables.short(series.name), series.mode, *(sweep.shown(figure, 2) for figure in figures), exponent)
        groups.setdefault(series.backend, []).append(Row(cells, "ours" if series.ours else ""))
    troubles = dict.fromkeys(trouble for case in sweep.cases for trouble in tables.troubles(case, sweep.which))
    shapes = ("x".join(map(str, case.workload.shape)) for case in (sweep.cases[0], sweep.cases[-1]))
    note = f"from {' to '.join(shapes)}" + ("; memory beyond the gradients" if sweep.measure == "memory" else "")
    return Table(sweep.title, note, columns, groups, tuple(troubles))
