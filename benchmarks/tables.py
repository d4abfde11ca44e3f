"""A result as plain cells, which the terminal, the page and the picture show alike."""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from decimal import Decimal
from functools import partial
from itertools import groupby, product
from typing import NamedTuple

from xent.benchmarks.result import Case, Result, Series, speed
from xent.benchmarks.workloads import PASSES, WIDTH

LONGEST = 28  # characters of a contender's name
SMALL = 1e6  # bytes of logits from which on memory is shown as a multiple of them


class Column(NamedTuple):
    heading: str
    meaning: str = ""
    left: bool = False
    spare: bool = False  # left out where the window is narrow


class Row(NamedTuple):
    cells: tuple[str, ...]
    kind: str = ""  # "ours", "win" or "loss" (xent's), "bad"


class Table(NamedTuple):
    title: str
    note: str
    columns: tuple[Column, ...]
    groups: dict[str, list[Row]]  # by backend
    troubles: tuple[str, ...] = ()


FLOOR = Column("floor", "the share of the time that the least memory traffic takes; above 100% is in a cache")
SENT = Column("sent", "by each process to the others, as if they formed a ring")
RATE = Column("GFLOP/s", "2 (with gradients 6) x rows x features x classes operations, in that time")
COLUMNS = (
    Column("ratio", "times as long as xent on the same backend in the same mode: median of paired rounds"),
    Column("quartiles", "of that ratio; coloured where both are on one side of 1", spare=True),
    Column("contender", "", True),
    Column("mode", "compiled: torch.compile, XLA, jax.jit; graph: tf.function without XLA", True),
    Column("time", "of a call, median of the rounds"),
    Column("first", "the first call, compilation included", spare=True),
    FLOOR,
    Column("memory", "peak beyond what was held before: x the logits' size, or bytes if few"),
    Column("error", "worst relative error against float64: of the gradient, or of the loss alone", spare=True),
)


def tables(result: Result) -> Iterator[Table]:
    """One for each case and pass; of the cases of a sweep, one for all."""
    for case in plain(result):
        yield from (_table(case, which) for which in passes(case))
    yield from map(sweep_table, sweeps(result))


def passes(*cases: Case) -> list[str]:
    """The passes that were timed."""
    return [which for which in PASSES if any(series.which == which for case in cases for series in case.series)]


def plain(result: Result) -> list[Case]:
    return [case for case in result.cases if case.value is None]


def _table(case: Case, which: str) -> Table:
    work, floor, note = case.workload, case.floor(which), PASSES[which]
    instead = RATE if work.linear else SENT if work.ranks > 1 else FLOOR
    columns = tuple(instead if column is FLOOR else column for column in COLUMNS)
    if work.linear:
        note += "; memory: beyond the gradients; error: of a gradient as a whole"
    if floor is not None:
        least = size(work.read(case.dtype) + work.written(case.dtype, which))
        note += f"; floor {duration(floor)} for {least} at the measured bandwidth"
    groups = {backend: [_row(case, series) for series in same] for backend, same in by_backend(case, which).items()}
    return Table(f"{case.title}: {work.use}", note, columns, groups, troubles(case, which))


def by_backend(case: Case, which: str) -> dict[str, list[Series]]:
    """xent first, then the fastest."""
    found = [series for series in case.series if series.which == which]
    found.sort(key=lambda s: (s.backend, not s.ours, s.time.median if s.time else math.inf))
    return {backend: list(same) for backend, same in groupby(found, key=lambda s: s.backend)}


def _row(case: Case, series: Series) -> Row:
    name = (short(series.name), series.mode)
    if series.time is None:
        return Row((series.problem.partition(":")[0], "", *name, *"-----"), "bad")
    seconds, ratio, floor, extra = series.time.median, series.ratio, series.floor, case.extra(series)
    error = series.gradient_error if series.which == "both" else series.value_error
    logits = case.workload.logits * WIDTH[case.dtype]
    rate = digits(case.workload.operations(series.which) / seconds / 1e9, 2)
    sent = "-" if series.sent is None else size(series.sent)
    cells = (
        "1x" if series.ours else times(ratio.median) if ratio else "-",
        f"{times(ratio.low)[:-1]}-{times(ratio.high)[:-1]}" if ratio else "",
        *name,
        duration(seconds),
        duration(series.first or 0, 2),
        rate if case.workload.linear else f"{floor.median:.0%}" if floor else sent,
        size(extra, 2) if logits < SMALL or math.isnan(extra) else f"{extra / logits:.2f}x",
        f"{error or 0:.0e}",
    )
    return Row(cells, "ours" if series.ours else series.verdict)


def troubles(case: Case, which: str) -> tuple[str, ...]:
    """A line for each contender without times."""
    return tuple(f"{s.label}: {s.problem}" for s in case.series if s.which == which and s.problem)


# ---- sweeps: a line for each contender, in a table for its time and, of linear_ce, in one for its memory


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
        measures = {"time": duration} | ({"memory": size} if cases[0].workload.linear else {})
        for (measure, shown), which in product(measures.items(), passes(*cases)):
            title = f"{name}  {dtype}  {PASSES[which]}: {measure} by {result.settings['sweep']}"
            yield Sweep(title, measure, shown, which, cases)


def sweep_table(sweep: Sweep) -> Table:
    columns = (
        Column("contender", left=True),
        Column("mode", left=True),
        *(Column(str(value), spare=value not in sweep.values[-5:]) for value in sweep.values),
        Column("slope", "k where a figure grows as value^k, over the upper half of the values"),
    )
    groups: dict[str, list[Row]] = {}
    for series, figures, slope in sweep.lines():
        exponent = "-" if math.isnan(slope) else f"{slope:.2f}".replace("-0.00", "0.00")
        cells = (short(series.name), series.mode, *(sweep.shown(figure, 2) for figure in figures), exponent)
        groups.setdefault(series.backend, []).append(Row(cells, "ours" if series.ours else ""))
    problems = dict.fromkeys(trouble for case in sweep.cases for trouble in troubles(case, sweep.which))
    shapes = ("x".join(map(str, case.workload.shape)) for case in (sweep.cases[0], sweep.cases[-1]))
    note = f"from {' to '.join(shapes)}" + ("; memory beyond the gradients" if sweep.measure == "memory" else "")
    return Table(sweep.title, note, columns, groups, tuple(problems))


# ---- the whole result


def summary(result: Result) -> list[str]:
    """A line for each pass, losses counted as wins are; and one for each failure of xent's."""
    lines = []
    for which, name in PASSES.items():
        rivals = [s for case in result.cases for s in case.series if s.which == which and not s.ours]
        verdicts = Counter(series.verdict for series in rivals)
        left_out = verdicts.pop("", 0)
        if verdicts:
            lines.append(
                f"{name}: of {verdicts.total()} comparisons with a rival xent is faster in {verdicts['win']}, "
                f"slower in {verdicts['loss']}, level in {verdicts['level']}"
                + (f"; {left_out} wrong, failed or without xent, left out" if left_out else "")
            )
    return [*lines, *(f"failed: {failure}" for failure in result.failures)]


def facts(result: Result) -> dict[str, str]:
    """The machine and the settings, a line each."""
    machine, settings = result.machine, result.settings
    read, write = speed(both for case in result.cases for both in case.bandwidth.values())
    found = {
        "processor": machine["cpu"],
        "cores": str(machine["cores"]),
        "memory": f"{machine['memory'] / 1e9:.0f} GB; {machine['memory settings']}",
        "bandwidth": f"read {digits(read / 1e9, 2)}, write {digits(write / 1e9, 2)} GB/s" if read else "",
        "GPU": machine["gpus"],
        "system": f"{machine['system']}, Python {machine['python']}",
        "versions": ", ".join(f"{name} {number}" for name, number in machine["versions"].items()),
        "xent": f"{machine['xent']}; native kernels: {machine['kernels']}",
        "timed": f"on {settings['device']}, {settings['threads']} threads, {machine['date']}",
    }
    return {name: text for name, text in found.items() if text}


# ---- figures


def short(name: str) -> str:
    """A contender's name without the framework and the kind of labels, which the table shows elsewhere."""
    name = name.removeprefix("tf.nn.").split("_with_")[0]
    return name if len(name) <= LONGEST else name.replace("cross_entropy", "ce")


def digits(x: float, n: int = 3) -> str:
    """x with n significant digits, never with an exponent."""
    if math.isnan(x):
        return "-"
    return f"{Decimal(f'{x:.{n - 1}e}'):f}" if x else "0"


def times(x: float) -> str:
    return f"{digits(x, 2 if x < 0.1 else 3) if x < 0.1 or x >= 10 else f'{x:.2f}'}x"


def _in_units(units: dict[str, float], x: float, n: int = 3) -> str:
    """x with n digits in the largest unit of which it is at least 1 after rounding."""
    unit = next((unit for unit, scale in units.items() if float(f"{x / scale:.{n - 1}e}") >= 1), [*units][-1])
    return f"{digits(x / units[unit], n)} {unit}" if x > 0 else digits(x)


duration = partial(_in_units, {"s": 1.0, "ms": 1e-3, "µs": 1e-6, "ns": 1e-9})
size = partial(_in_units, {"GB": 1e9, "MB": 1e6, "kB": 1e3, "B": 1.0})
