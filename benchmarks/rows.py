"""A result as plain cells: what `show`, `report` and `plot` all print, worked out once."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator
from typing import NamedTuple

from xent._compare import figure

from .result import ENOUGH, Case, Result, Series, Spread, passes, ratio

PASS = {"forward": "forward", "both": "forward and backward"}
BRIEFLY = {"forward": "forward", "both": "with gradient"}
UNITS = ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs"), (1e-9, "ns"))
SIZES = ((1e9, "GB"), (1e6, "MB"), (1e3, "kB"), (1.0, "B"))
LONGEST = 28  # a contender's name, for a line to fit into 100 columns
SMALL = 1e6  # bytes of logits: memory is told as their multiple from here on


class Column(NamedTuple):
    heading: str
    meaning: str
    left: bool = False


BYTES = Column("GB/s", "the fewest bytes that any implementation must move, in that time")
OPERATIONS = Column("GFLOP/s", "linear_ce: 2 (with gradients 6) x rows x features x classes operations, in that time")
COLUMNS = (
    Column("ratio", "times as long as xent, same backend and mode: median of paired rounds"),
    Column("quartiles", "of that ratio: green above 1, red below, no colour across it"),
    Column("contender", "keras.losses: Keras running on that backend", True),
    Column("mode", "compiled: torch.compile, jit_compile or jax.jit; graph: tf.function without XLA", True),
    Column("time", "of a call, median of the rounds"),
    BYTES,
    Column("floor", "the floor as a share of the time, of the same round; above 100% is in cache"),
    Column("memory", "peak beyond what was held before: x the logits' size, or bytes if few"),
    Column("error", "worst relative error against float64: of the loss, or of its gradient"),
)


def columns(case: Case) -> list[Column]:
    return [OPERATIONS if case.linear and column is BYTES else column for column in COLUMNS]


class Row(NamedTuple):
    series: Series
    cells: tuple[str, ...]  # one for each of COLUMNS
    verdict: str  # "win" and "loss" are xent's; "level"; "" where there is nothing to compare with
    trouble: str  # why it has no times, or why they do not count


def rows(case: Case, which: str) -> list[Row]:
    """One case in one pass: by backend, xent first, then the fastest."""
    return [_row(case, series) for found, present in passes(case) if found == which for series in present]


def _row(case: Case, series: Series) -> Row:
    trouble = series.problem or case.wrong(series)
    against = compared(case, series)
    mark = "failed" if series.problem else "wrong" if trouble else "1x" if series.ours else times(against.median)
    apart = "" if trouble or series.ours or math.isnan(against.median) else f"{_two(against.low)}-{_two(against.high)}"
    name = (mark, apart, short(series.name), series.mode)
    if series.problem:
        return Row(series, (*name, "-", "-", "-", "-", "-"), "", trouble)
    seconds = series.time.median
    error = series.gradient_error if series.which == "both" else series.value_error
    numbers = (
        duration(seconds),
        _rate((case.operations(series.which) or fewest(case, series.which)) / seconds / 1e9),
        _share(ratio(case.floor(series.which), series.seconds).median),
        _memory(case, case.extra(series)),
        figure(error),
    )
    return Row(series, (*name, *numbers), "" if trouble or series.ours else _verdict(against), trouble)


def _memory(case: Case, extra: int | None) -> str:
    if extra is None:
        return "-"
    return f"{extra / case.logits:.2f}x" if case.logits >= SMALL else size(extra, 2)


def compared(case: Case, series: Series) -> Spread:
    """Its ratio to xent; NaN where one of the two has no times or is wrong."""
    base = case.baseline(series)
    if base is None or series.problem or case.wrong(base) or case.wrong(series):
        return Spread.of([])
    return ratio(series.seconds, base.seconds)


def _verdict(against: Spread) -> str:
    if math.isnan(against.median):
        return ""
    if against.rounds < ENOUGH:
        return "level"
    return "win" if against.low > 1 else "loss" if against.high < 1 else "level"


def fewest(case: Case, which: str) -> int:
    """Bytes that every implementation has to move."""
    return case.read + (case.write if which == "both" else 0)


def floor(case: Case, which: str) -> float:
    """Seconds, the median over the rounds."""
    return Spread.of([x for x in case.floor(which) if x is not None]).median


def heading(case: Case, which: str) -> tuple[str, str]:
    """What it is, and what its best time could be, or what its figures mean."""
    if case.linear:
        billions = digits(case.operations(which) / 1e9)
        meaning = "; memory: beyond the gradients; error: of a gradient as a whole" if which == "both" else ""
        return f"{case.title}: {case.why}", f"{PASS[which]}; {billions} GFLOP{meaning}"
    least = f"{duration(floor(case, which))} for {size(fewest(case, which))} at the bandwidth measured beside it"
    return f"{case.title}: {case.why}", f"{PASS[which]}; floor {least}"


def hover(case: Case, row: Row) -> str:
    """What a table has no room for."""
    series = row.series
    if series.problem:
        return f"{series.label}: {row.trouble}"
    middle, low, high, _ = series.time
    rounds = sum(s is not None for s in series.seconds)
    parts = [
        f"{series.label}: {duration(middle)}, quartiles {duration(low)} and {duration(high)} over {rounds} rounds",
        f"first call {duration(series.first)}, compilation included, while others prepared, too",
        "extra memory at the peak not known"
        if series.memory is None
        else f"{size(series.memory)} of extra memory at the peak{_beyond(case, series)}",
        f"error of the loss {figure(series.value_error)}, of the gradient {figure(series.gradient_error)}",
    ]
    return "; ".join([*parts, row.trouble] if row.trouble else parts)


def _beyond(case: Case, series: Series) -> str:
    extra = case.extra(series)
    return "" if extra in (None, series.memory) else f", {size(extra)} beyond the gradients"


def troubles(case: Case, which: str) -> Iterator[str]:
    """A line for each contender that is wrong or has no times."""
    for row in rows(case, which):
        if row.trouble:
            yield f"{row.cells[0]}: {row.series.label}: {row.trouble}"


# ---- the whole result


def summary(result: Result) -> list[str]:
    """A line for each pass; losses count as wins do."""
    lines = []
    for which, name in PASS.items():
        found = [row for case in result.cases for row in rows(case, which) if not row.series.ours]
        verdicts = [row.verdict for row in found if row.verdict]
        if verdicts:
            counts = {verdict: verdicts.count(verdict) for verdict in ("win", "loss", "level")}
            left = f"; {len(found) - len(verdicts)} wrong or failed, left out" if len(found) > len(verdicts) else ""
            lines.append(
                f"{name}: xent is faster in {counts['win']} of {len(verdicts)} comparisons with a rival, "
                f"slower in {counts['loss']}, level in {counts['level']}{left}"
            )
    return lines


def facts(result: Result) -> dict[str, str]:
    """The machine, a line each."""
    machine, settings = result.machine, result.settings
    found = {
        "processor": machine["cpu"],
        "cores": f"{machine['cores']}, {settings['threads']} threads used",
        "caches": ", ".join(f"{name} {_cache(kept)}" for name, kept in machine["caches"].items()),
        "memory": f"{machine['memory'] / 1e9:.0f} GB",
        "huge pages": machine.get("pages", ""),
        "freed memory": machine.get("heap", ""),
        "bandwidth": bandwidth(result),
        "GPU": "; ".join(machine["gpus"]),
        "system": f"{machine['system']}, Python {machine['python']}",
        "versions": versions(result),
        "xent": f"{version(result)}; native kernels: {machine['kernels']}",
        "timed": f"on {settings['device']}, {_rounds(result)} rounds",
    }
    return {name: text for name, text in found.items() if text}


def _rounds(result: Result) -> str:
    """Of those that were timed in them."""
    counts = sorted({series.time.rounds for case in result.cases for series in case.series} - {0})
    return f"{counts[0]} to {counts[-1]}" if counts[1:] else "".join(map(str, counts))


def origin(result: Result) -> str:
    """A line: the machine, its bandwidth, all versions."""
    machine = f"{result.machine['cpu']}, {result.settings['threads']} threads; {bandwidth(result)}"
    pages = f"; huge pages: {result.machine['pages']}" if result.machine.get("pages") else ""
    heap = f"; freed memory: {result.machine['heap']}" if result.machine.get("heap") else ""
    return f"{machine}{pages}{heap}; {versions(result)}; xent {version(result)}."


def versions(result: Result) -> str:
    return ", ".join(f"{name} {number}" for name, number in result.machine.get("versions", {}).items())


def version(result: Result) -> str:
    """Its version and commit."""
    number, commit = result.machine["xent"], result.machine["commit"].replace("+", " with changes")
    return f"{number}, commit {commit}" if commit else f"{number}"


def bandwidth(result: Result) -> str:
    """What was measured in the rounds; the median over the cases."""
    shown = {"read": "read", "write": "write", "copy": "copy"}
    found = {name: [case.bandwidth(what) for case in result.cases] for what, name in shown.items()}
    known = {name: [x / 1e9 for x in values if math.isfinite(x)] for name, values in found.items()}
    parts = [f"{name} {digits(statistics.median(values), 2)}" for name, values in known.items() if values]
    return f"{', '.join(parts)} GB/s" if parts else ""


def shortened(result: Result) -> dict[str, str]:
    """Names that the tables shorten."""
    names = {series.name for case in result.cases for series in case.series}
    return {short(name): name for name in sorted(names) if short(name) != name}


# ---- figures


def short(name: str) -> str:
    """What tells it from the others: the framework and the kind of labels are said elsewhere."""
    name = name.removeprefix("tf.nn.").split("_with_")[0]
    return name if len(name) <= LONGEST else name.replace("cross_entropy", "ce")


def digits(x: float, n: int = 3) -> str:
    """n significant ones, never an exponent."""
    if math.isnan(x):
        return "-"
    x = float(f"{x:.{n - 1}e}")
    return f"{x:.{max(n - 1 - math.floor(math.log10(x)), 0)}f}" if x > 0 else "0"


def duration(seconds: float, n: int = 3, gap: str = " ") -> str:
    return _in(UNITS, seconds, n, gap)


def size(count: float, n: int = 3, gap: str = " ") -> str:
    return _in(SIZES, count, n, gap) if count else "0"


def _in(units: tuple[tuple[float, str], ...], x: float, n: int, gap: str) -> str:
    if math.isnan(x):
        return "-"
    scale, unit = next((u for u in units if float(f"{x / u[0]:.{n - 1}e}") >= 1), units[-1])
    return f"{digits(x / scale, n)}{gap}{unit}"


def times(x: float) -> str:
    return "-" if math.isnan(x) else f"{_two(x)}x"


def _two(x: float) -> str:
    return digits(x, 2 if x < 0.1 else 3) if x < 0.1 or x >= 10 else f"{x:.2f}"


def _share(x: float) -> str:
    return "-" if math.isnan(x) else "<1%" if x < 0.005 else f"{x:.0%}"


def _rate(x: float) -> str:
    return f"{x:.2f}" if x < 1 else digits(x, 2)


def _cache(kept: str) -> str:
    """491520K is 480 MB."""
    kilobytes = int(kept.removesuffix("K")) if kept.endswith("K") else 0
    return f"{kilobytes / 1024:g} MB" if kilobytes >= 1024 else kept
