"""A result as plain cells, which the terminal, the page and the picture show alike."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from decimal import Decimal
from functools import partial
from itertools import groupby
from typing import NamedTuple

from xent.benchmarks.result import Case, Result, Series, speed
from xent.benchmarks.workloads import PASSES, WIDTH

LONGEST = 28  # characters of a contender's name
SMALL = 1e6  # bytes of logits: from here on memory is told as their multiple


class Column(NamedTuple):
    heading: str
    meaning: str = ""
    left: bool = False
    spare: bool = False  # left out where the window is narrow


class Row(NamedTuple):
    cells: tuple[str, ...]
    kind: str = ""  # "ours", "win" or "loss" (xent's), "bad"


@dataclass(frozen=True)
class Table:
    title: str
    note: str
    columns: tuple[Column, ...]
    groups: dict[str, list[Row]]  # by backend
    troubles: tuple[str, ...] = ()


FLOOR = Column("floor", "the share of the time that the least memory traffic takes; above 100% is in a cache")
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
    """One for each case and pass that belongs to no sweep."""
    for case in plain(result):
        yield from (_table(case, which) for which in passes(case))


def passes(*cases: Case) -> list[str]:
    """Those that were timed."""
    return [which for which in PASSES if any(series.which == which for case in cases for series in case.series)]


def plain(result: Result) -> list[Case]:
    return [case for case in result.cases if case.value is None]


def _table(case: Case, which: str) -> Table:
    work, floor, note = case.workload, case.floor(which), PASSES[which]
    columns = tuple(RATE if work.linear and column is FLOOR else column for column in COLUMNS)
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
    cells = (
        "1x" if series.ours else times(ratio.median) if ratio else "-",
        f"{times(ratio.low)[:-1]}-{times(ratio.high)[:-1]}" if ratio else "",
        *name,
        duration(seconds),
        duration(series.first or 0, 2),
        rate if case.workload.linear else f"{floor.median:.0%}" if floor else "-",
        size(extra, 2) if logits < SMALL or math.isnan(extra) else f"{extra / logits:.2f}x",
        f"{error or 0:.0e}",
    )
    return Row(cells, "ours" if series.ours else series.verdict)


def troubles(case: Case, which: str) -> tuple[str, ...]:
    """A line for each contender without times."""
    return tuple(f"{s.label}: {s.problem}" for s in case.series if s.which == which and s.problem)


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
    """What tells it from the others: the framework and the kind of labels are said elsewhere."""
    name = name.removeprefix("tf.nn.").split("_with_")[0]
    return name if len(name) <= LONGEST else name.replace("cross_entropy", "ce")


def digits(x: float, n: int = 3) -> str:
    """n significant ones, never an exponent."""
    if math.isnan(x):
        return "-"
    return f"{Decimal(f'{x:.{n - 1}e}'):f}" if x else "0"


def times(x: float) -> str:
    return f"{digits(x, 2 if x < 0.1 else 3) if x < 0.1 or x >= 10 else f'{x:.2f}'}x"


def _in_units(units: dict[str, float], x: float, n: int = 3) -> str:
    """In the largest unit that there is at least one of, when it is rounded to n digits."""
    unit = next((unit for unit, scale in units.items() if float(f"{x / scale:.{n - 1}e}") >= 1), [*units][-1])
    return f"{digits(x / units[unit], n)} {unit}" if x > 0 else digits(x)


duration = partial(_in_units, {"s": 1.0, "ms": 1e-3, "µs": 1e-6, "ns": 1e-9})
size = partial(_in_units, {"GB": 1e9, "MB": 1e6, "kB": 1e3, "B": 1.0})
