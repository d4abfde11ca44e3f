"""A result as a picture: each contender's time between its quartiles, beside the floor; and sweeps as lines."""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from xent.benchmarks import tables
from xent.benchmarks.result import Case, Result, Series
from xent.benchmarks.workloads import PASSES

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

OURS, RIVAL, FLOOR, BAD = "#0b62c4", "#8a8a8a", "#d98200", "#c0392b"
BACKENDS = {"numpy": "#4c72b0", "torch": "#dd5f32", "tensorflow": "#7d4fa8", "jax": "#2a8f5b"}
DASHES = {"eager": "-", "compiled": "--", "graph": ":"}
ACROSS, WIDTH, LINE, MARGINS = 3, 5.2, 0.17, 0.9  # panels; inches of a panel, of a line, of title and axis
SWEEP = 30  # a sweep's height in lines

Panel = tuple[int, Callable[["Axes"], None]]  # its height in lines, and what draws it


def figure_type() -> type[Figure]:
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise ValueError("png: plots need matplotlib (pip install matplotlib)") from None
    return Figure


def png(result: Result) -> bytes:
    """Raises ValueError without matplotlib."""
    panels: list[Panel] = [(SWEEP, partial(_sweep, sweep)) for sweep in tables.sweeps(result)]
    for case in tables.plain(result):
        for which in tables.passes(case):
            groups = tables.by_backend(case, which)
            panels.append((len(groups) + sum(map(len, groups.values())), partial(_case, case, which, groups)))
    rows, across, tallest = -(-len(panels) // ACROSS), min(ACROSS, len(panels)), max(lines for lines, _ in panels)
    size = (WIDTH * across, (MARGINS + LINE * tallest) * rows)
    figure = figure_type()(figsize=size, facecolor="white", layout="constrained")
    for place, (_, draw) in enumerate(panels, 1):
        draw(figure.add_subplot(rows, across, place))
    out = io.BytesIO()
    figure.savefig(out, format="png", dpi=66)
    return out.getvalue()


def _case(case: Case, which: str, groups: dict[str, list[Series]], axes: Axes) -> None:
    """A line for each backend's name and each of its contenders."""
    names: list[str] = []
    axes.set_xscale("log")
    for backend, found in groups.items():
        names.append(backend)
        for series in found:
            _dot(axes, len(names), series)
            names.append(f"{tables.short(series.name)}  {series.mode}")
    axes.set_yticks(range(len(names)), names)
    for label in axes.get_yticklabels():
        text = label.get_text()
        colour = "black" if text in groups else OURS if text.startswith("xent ") else "#555555"
        label.set(parse_math=False, color=colour)
    axes.set_ylim(len(names) - 0.4, -0.6)
    floor, title = case.floor(which), f"{case.title}\n{PASSES[which]}"
    if floor is not None:
        axes.axvline(floor, color=FLOOR, linestyle="--", linewidth=1, zorder=1)
        title += f", floor {tables.duration(floor)} (dashed)"
    _frame(axes, axes.xaxis, tables.duration, title)


def _dot(axes: Axes, y: int, series: Series) -> None:
    if series.time is None:
        said = series.problem.partition(":")[0]
        axes.text(0.01, y, said, transform=axes.get_yaxis_transform(), color=BAD, fontsize=7, va="center")
        return
    colour = OURS if series.ours else RIVAL
    middle, low, high, _ = series.time
    axes.errorbar(middle, y, xerr=[[middle - low], [high - middle]], fmt="o", color=colour, markersize=5)


def _sweep(sweep: tables.Sweep, axes: Axes) -> None:
    for series, figures, slope in sweep.lines():
        axes.plot(
            sweep.values,
            [figure or math.nan for figure in figures],  # a log scale has no 0
            color=BACKENDS.get(series.backend, RIVAL),
            linestyle=DASHES.get(series.mode, "-"),
            linewidth=2 if series.ours else 0.9,
            label=f"{tables.short(series.name)}, {series.backend} {series.mode}: {tables.digits(slope, 2)}",
        )
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xticks(sweep.values, [str(value) for value in sweep.values])
    axes.legend(frameon=False, fontsize=5, ncol=2)
    _frame(axes, axes.yaxis, sweep.shown, sweep.title)


def _frame(axes: Axes, axis: Axis, shown: Callable[[float, int], str], title: str) -> None:
    """A log scale whose ticks say ns, µs, ms and s, or MB."""
    from matplotlib.ticker import LogLocator, NullFormatter

    low, high = axis.get_view_interval()
    axis.set_major_locator(LogLocator(subs=(1.0, 3.0) if high < 1000 * low else (1.0,)))
    axis.set_major_formatter(lambda figure, _: shown(figure, 2))
    axis.set_minor_formatter(NullFormatter())
    axis.grid(color="#e6e6e6")
    axes.tick_params(length=0, labelsize=7)
    axes.set_title(title, fontsize=8, loc="left", parse_math=False)
