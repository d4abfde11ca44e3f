"""A result as a picture: each contender's time between its quartiles, beside the floor; and sweeps as lines."""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from typing import TYPE_CHECKING

from xent.benchmarks import tables
from xent.benchmarks.result import Case, Result, Series
from xent.benchmarks.sweeps import Sweep, slope, sweeps
from xent.benchmarks.workloads import PASSES

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

OURS, RIVAL, FLOOR, BAD = "#0b62c4", "#8a8a8a", "#d98200", "#c0392b"
BACKENDS = {"numpy": "#4c72b0", "torch": "#dd5f32", "tensorflow": "#7d4fa8", "jax": "#2a8f5b"}
DASHES = {"eager": "-", "compiled": "--", "graph": ":"}
ACROSS, WIDTH, LINE, MARGINS = 3, 5.2, 0.17, 0.9  # panels; inches of a panel, of a line, of title and axis

Panel = tuple[int, Callable[["Axes"], None]]  # (lines that it has, what draws it)


def figure_type() -> type[Figure]:
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise ValueError("png: plots need matplotlib (pip install matplotlib)") from None
    return Figure


def png(result: Result) -> bytes:
    """Raises ValueError without matplotlib."""
    Figure, panels = figure_type(), [*map(_sweep_panel, sweeps(result))]
    for case in tables.plain(result):
        panels += [_case_panel(case, which) for which in PASSES if any(s.which == which for s in case.series)]
    bands = [panels[start : start + ACROSS] for start in range(0, len(panels), ACROSS)]
    across, heights = min(ACROSS, len(panels)), [MARGINS + LINE * max(n for n, _ in band) for band in bands]
    figure = Figure(figsize=(WIDTH * across, sum(heights)), facecolor="white", layout="constrained")
    grid = figure.subplots(len(bands), across, squeeze=False, height_ratios=heights)
    for place, axes in enumerate(grid.flat):
        if place < len(panels):
            panels[place][1](axes)
        else:
            axes.set_axis_off()
    out = io.BytesIO()
    figure.savefig(out, format="png", dpi=66)
    return out.getvalue()


def _case_panel(case: Case, which: str) -> Panel:
    lines: list[Series | str] = []
    for backend, found in tables.by_backend(case, which):
        lines += [backend, *found]

    def draw(axes: Axes) -> None:
        names = [line if isinstance(line, str) else f"{tables.short(line.name)}  {line.mode}" for line in lines]
        axes.set_yticks(range(len(lines)), names)
        for y, (label, line) in enumerate(zip(axes.get_yticklabels(), lines, strict=True)):
            label.set_parse_math(False)
            if isinstance(line, Series):
                label.set_color(OURS if line.ours else "#555555")
                _dot(axes, y, line)
        axes.set_ylim(len(lines) - 0.4, -0.6)
        axes.set_xscale("log")
        floor = case.floor(which)
        if floor is not None:
            axes.axvline(floor, color=FLOOR, linestyle="--", linewidth=1, zorder=1)
        note = "" if floor is None else f", floor {tables.duration(floor)} (dashed)"
        _frame(axes, axes.xaxis, tables.duration, f"{case.title}\n{PASSES[which]}{note}")

    return len(lines), draw


def _dot(axes: Axes, y: int, series: Series) -> None:
    if series.time is None:
        said = series.problem.partition(":")[0]
        axes.text(0.01, y, said, transform=axes.get_yaxis_transform(), color=BAD, fontsize=7, va="center")
        return
    colour = OURS if series.ours else RIVAL
    axes.plot([series.time.low, series.time.high], [y, y], color=colour, linewidth=1.3, alpha=0.7)
    axes.plot([series.time.median], [y], "o", color=colour, markersize=5)


def _sweep_panel(sweep: Sweep) -> Panel:
    def draw(axes: Axes) -> None:
        for series, figures in (line for lines in sweep.lines.values() for line in lines):
            exponent = tables.digits(slope(sweep.values, figures), 2)
            axes.plot(
                sweep.values,
                [figure or math.nan for figure in figures],  # a log scale has no 0
                color=BACKENDS.get(series.backend, RIVAL),
                linestyle=DASHES.get(series.mode, "-"),
                linewidth=2 if series.ours else 0.9,
                label=f"{tables.short(series.name)}, {series.backend} {series.mode}: {exponent}",
            )
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.set_xticks(sweep.values, [str(value) for value in sweep.values])
        axes.legend(frameon=False, fontsize=5, ncol=2)
        _frame(axes, axes.yaxis, sweep.shown, sweep.title)

    return 30, draw


def _frame(axes: Axes, axis: object, shown: Callable[[float, int], str], title: str) -> None:
    """A log scale whose ticks say ns, µs, ms and s, or MB."""
    from matplotlib.axis import Axis
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    assert isinstance(axis, Axis)
    axis.set_major_locator(LogLocator(base=10, subs=(1.0, 3.0)))
    axis.set_major_formatter(FuncFormatter(lambda figure, _: shown(figure, 1)))
    axis.set_minor_formatter(NullFormatter())
    axis.grid(color="#e6e6e6")
    axes.tick_params(length=0, labelsize=7)
    axes.set_title(title, fontsize=8, loc="left", parse_math=False)
