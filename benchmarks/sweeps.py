"""Sweeps: the cases that differ in one number, a line for each contender, and how steep it is.

A line tells the time; for linear_ce, in a table of its own, also the memory.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from xent.benchmarks import tables
from xent.benchmarks.result import Case, Result, Series
from xent.benchmarks.tables import Column, Row, Table
from xent.benchmarks.workloads import PASSES


@dataclass(frozen=True)
class Sweep:
    cases: tuple[Case, ...]  # the values ascending
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
    def lines(self) -> dict[str, list[tuple[Series, list[float]]]]:
        """By backend, each contender with its figure at every value (NaN: not known), xent first."""
        found: dict[str, dict[tuple[str, ...], tuple[Series, list[float]]]] = {}
        for series in sorted((s for case in self.cases for s in case.series), key=lambda s: (s.backend, not s.ours)):
            if series.which == self.which:
                name = (series.name, series.backend, series.mode, series.which)
                figures = [self._figure(case, case.find(*name)) for case in self.cases]
                found.setdefault(series.backend, {})[name] = series, figures
        return {backend: list(lines.values()) for backend, lines in found.items()}

    def _figure(self, case: Case, series: Series | None) -> float:
        if series is None or series.time is None:
            return math.nan
        extra = case.extra(series)
        return series.time.median if self.measure == "time" else math.nan if extra is None else extra


def slope(values: Sequence[float], figures: Sequence[float]) -> float:
    """Exponent k of figure ~ value^k, by least squares in logarithms over the upper half of the values: in the lower
    half a call's own cost hides it. NaN where fewer than two figures are known."""
    upper = sorted(values)[min(len(values) // 2, max(len(values) - 2, 0)) :]
    points = [(math.log(v), math.log(s)) for v, s in zip(values, figures, strict=True) if v in upper and s > 0]
    if len(points) < 2:
        return math.nan
    x, y = (sum(part) / len(points) for part in zip(*points, strict=True))
    steepness: float = sum((a - x) * (b - y) for a, b in points) / sum((a - x) ** 2 for a, _ in points)
    return steepness


def sweeps(result: Result) -> Iterator[Sweep]:
    """One for each workload, dtype, measure and pass."""
    swept = sorted((case for case in result.cases if case.value), key=lambda case: case.value or 0)
    for name, dtype in dict.fromkeys((case.workload.name, case.dtype) for case in swept):
        cases = tuple(case for case in swept if (case.workload.name, case.dtype) == (name, dtype))
        for measure in ("time", "memory") if cases[0].workload.linear else ("time",):
            for which in PASSES:
                if any(s.which == which for case in cases for s in case.series):
                    yield Sweep(cases, which, result.settings["sweep"], measure)


def table(sweep: Sweep) -> Table:
    few = sweep.values[-5:]
    columns = (
        Column("contender", left=True),
        Column("mode", left=True),
        *(Column(str(value), spare=value not in few) for value in sweep.values),
        Column("slope", f"k in {sweep.measure} ~ value^k, over the upper half of the values"),
    )
    groups: dict[str, list[Row]] = {}
    for backend, lines in sweep.lines.items():
        groups[backend] = rows = []
        for series, figures in lines:
            cells = [sweep.shown(figure, 2) for figure in figures]
            exponent = f"{slope(sweep.values, figures):.2f}".replace("nan", "-").replace("-0.00", "0.00")
            rows.append(Row((tables.short(series.name), series.mode, *cells, exponent), "ours" if series.ours else ""))
    troubles = dict.fromkeys(line for case in sweep.cases for line in tables.troubles(case, sweep.which))
    shapes = ("x".join(map(str, case.workload.shape)) for case in (sweep.cases[0], sweep.cases[-1]))
    note = f"from {' to '.join(shapes)}" + ("; memory beyond the gradients" if sweep.measure == "memory" else "")
    return Table(sweep.title, note, columns, groups, tuple(troubles))
