"""A result as a picture: times with their quartiles beside the bandwidth's floor, and sweeps as lines."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Callable
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

from . import rows
from .result import Case, Result, Series
from .sweeps import Line, Sweep, base, plain, sweeps

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

OURS, RIVAL, WRONG, FLOOR = "#0b62c4", "#8a8a8a", "#c0392b", "#d98200"
BACKENDS = {"numpy": "#4c72b0", "torch": "#dd5f32", "tensorflow": "#7d4fa8", "jax": "#2a8f5b"}
MODES = {"eager": "-", "compiled": "--", "graph": ":"}
# Inches: each row of panels is as high as it has contenders, so that twenty cases read like one.
WIDTH, LEFT, BETWEEN, RIGHT, LINE, HEAD, FOOT = 13.0, 2.9, 0.35, 0.25, 0.19, 0.62, 0.36
SWEEP, INDENT, KEYS, TOP = 3.8, 0.75, 0.155, 0.35


class Band(NamedTuple):
    """One row of panels: forward at the left, forward and backward at the right."""

    height: float  # of the panels alone
    below: float
    left: float
    panels: tuple[Callable[[Axes], None], ...]


def png(result: Result, path: Path | str) -> None:
    """Raises ValueError without matplotlib."""
    _figure(result).savefig(path, format="png", dpi=130)


def svg(result: Result) -> str:
    """To be put into a page: without the namespaces and addresses that a file of its own would need."""
    figure, out = _figure(result), io.StringIO()
    import matplotlib

    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "xent"}):
        figure.savefig(out, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    text = out.getvalue()
    return re.sub(r' xmlns(:\w+)?="[^"]*"', "", text[text.index("<svg") :])


def figure_type() -> type[Figure]:
    """Raises ValueError without matplotlib, which nothing but plots needs."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise ValueError("png: plots need matplotlib (pip install matplotlib)") from None
    return Figure


def _figure(result: Result) -> Figure:
    Figure = figure_type()
    bands = [_case_band(case) for case in plain(result)] + _sweep_bands(list(sweeps(result)))
    height = TOP + sum(HEAD + band.height + band.below for band in bands)
    figure = Figure(figsize=(WIDTH, height), facecolor="white")
    if plain(result):
        _key(figure, height)
    top = height - TOP
    for band in bands:
        top -= HEAD + band.height
        between = min(band.left, 2 * BETWEEN)
        room = (WIDTH - band.left - between - RIGHT) / 2
        for column, draw in enumerate(band.panels):
            x = band.left + column * (room + between)
            draw(figure.add_axes((x / WIDTH, top / height, room / WIDTH, band.height / height)))
        top -= band.below
    return figure


def _key(figure: Figure, height: float) -> None:
    """What the colours say, once."""
    from matplotlib.lines import Line2D

    def dot(colour: str, marker: str, name: str) -> Line2D:
        return Line2D([], [], color=colour, marker=marker, linestyle="", label=name)

    figure.legend(
        handles=[
            dot(OURS, "o", "xent"),
            dot(RIVAL, "o", "rival (whiskers: quartiles of the rounds)"),
            dot(WRONG, "x", "wrong result"),
            Line2D([], [], color=FLOOR, linestyle="--", label="floor: the fewest bytes at the measured bandwidth"),
        ],
        loc="upper center",
        bbox_to_anchor=(0.5, 1 - 0.08 / height),
        ncol=4,
        frameon=False,
        fontsize=9,
    )


# ---- a case


def _case_band(case: Case) -> Band:
    """Both panels share their lines, in the order of the pass that matters more."""
    order = [row.series for which in ("both", "forward") for row in rows.rows(case, which)]
    names = list(dict.fromkeys((s.backend, s.name, s.mode, s.ours) for s in order))
    names.sort(key=lambda name: name[0])  # a contender of one pass alone goes to its backend
    lines: list[tuple[str, tuple[str, str, str] | None]] = []
    for backend, group in groupby(names, key=lambda name: name[0]):
        lines.append((backend, None))
        lines += [(f"{rows.short(name)}  {mode}", (name, backend, mode)) for _, name, mode, _ in group]
    present = [which for which in rows.PASS if any(s.which == which for s in case.series)]
    panels = tuple(_panel(case, which, lines, first=which == present[0]) for which in present)
    return Band(LINE * len(lines), FOOT, LEFT, panels)


def _panel(
    case: Case, which: str, lines: list[tuple[str, tuple[str, str, str] | None]], first: bool
) -> Callable[[Axes], None]:
    def draw(axes: Axes) -> None:
        for y, (_, name) in enumerate(lines):
            found = None if name is None else case.find(*name, which)
            if found is not None:
                _dot(axes, y, case, found)
        _floor(axes, rows.floor(case, which))
        axes.set_ylim(len(lines) - 0.4, -0.6)
        axes.set_yticks(range(len(lines)), [text if first else "" for text, _ in lines], fontsize=8)
        for label, (_, name) in zip(axes.get_yticklabels(), lines, strict=True):
            label.set_parse_math(False)
            label.set_fontweight("bold" if name is None or name[0] == "xent" else "normal")
            label.set_color(OURS if name and name[0] == "xent" else "black" if name is None else "#444444")
        _frame(axes, "x")
        _title(axes, case.title if first else "", rows.PASS[which])

    return draw


def _dot(axes: Axes, y: int, case: Case, series: Series) -> None:
    if series.problem:
        axes.text(0.01, y, "failed", transform=axes.get_yaxis_transform(), color=WRONG, fontsize=7.5, va="center")
        return
    middle, low, high, _ = series.time
    wrong = bool(case.wrong(series))
    colour = WRONG if wrong else OURS if series.ours else RIVAL
    axes.plot([low, high], [y, y], color=colour, linewidth=1.4, alpha=0.7, zorder=2)
    axes.plot([middle], [y], "x" if wrong else "o", color=colour, markersize=6.5 if series.ours else 5.5, zorder=3)


def _floor(axes: Axes, seconds: float) -> None:
    if not math.isnan(seconds):
        axes.axvline(seconds, color=FLOOR, linestyle="--", linewidth=1.2, zorder=1)
        name = f" floor {rows.duration(seconds)}"
        axes.text(seconds, 1, name, transform=axes.get_xaxis_transform(), color=FLOOR, fontsize=7.5, va="bottom")


def _title(axes: Axes, left: str, right: str) -> None:
    axes.set_title(left, loc="left", fontsize=10.5, fontweight="bold", pad=16, parse_math=False)
    axes.set_title(right, loc="right", fontsize=9.5, pad=16, color="#444444")


def _frame(axes: Axes, across: Literal["x", "y"], shown: Callable[[float, int], str] = rows.duration) -> None:
    """A log scale whose ticks say ns, µs, ms and s, or MB, and nothing that is not needed."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, NullLocator

    axis = axes.xaxis if across == "x" else axes.yaxis
    axes.set(**{f"{across}scale": "log"})
    low, high = axis.get_view_interval()
    wide = max(high / low, 3.0) / (high / low)  # at least a tick or two
    axes.set(**{f"{across}lim": (low / wide**0.5, high * wide**0.5)})
    steps = (1.0,) if high / low > 1e3 else (1.0, 3.0) if high / low > 10 else (1.0, 2.0, 3.0, 5.0, 7.0)
    axis.set_major_locator(LogLocator(base=10, subs=steps))
    axis.set_major_formatter(FuncFormatter(lambda figure, _: shown(figure, 1)))
    axis.set_minor_locator(NullLocator())
    axis.set_minor_formatter(NullFormatter())
    axes.grid(axis=across, color="#e6e6e6")
    axes.set_axisbelow(True)
    axes.tick_params(length=0, labelsize=8)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)


# ---- sweeps


def _sweep_bands(found: list[Sweep]) -> list[Band]:
    bands = []
    for _, group in groupby(found, key=lambda sweep: (base(sweep.cases[0]), sweep.cases[0].dtype, sweep.measure)):
        same = list(group)
        below = KEYS * (max(len(sweep.lines) for sweep in same) // 2 + 2) + 0.6
        bands.append(Band(SWEEP, below, INDENT, tuple(_sweep_panel(sweep) for sweep in same)))
    return bands


def _sweep_panel(sweep: Sweep) -> Callable[[Axes], None]:
    def draw(axes: Axes) -> None:
        if sweep.floor:
            axes.plot(sweep.values, sweep.floor, color=FLOOR, linestyle="--", linewidth=1.2, label="floor")
        for line in sweep.lines:
            _sweep_line(axes, sweep.values, line)
        _frame(axes, "y", sweep.text)
        axes.set_xscale("log", base=2)
        axes.set_xticks(sweep.values, [str(value) for value in sweep.values])
        axes.minorticks_off()
        title, shown = sweep.title.split(": ")
        axes.set_xlabel(shown, fontsize=9)
        close = {"columnspacing": 1.0, "handletextpad": 0.5, "handlelength": 2.6}
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.13), ncol=2, frameon=False, fontsize=6.5, **close)
        _title(axes, title, "")

    return draw


def _sweep_line(axes: Axes, values: list[int], line: Line) -> None:
    series = line.series
    name = "xent" if series.ours else line.name
    axes.plot(
        values,
        [figure or math.nan for figure in line.figures],  # the scale has no 0
        color=WRONG if any(line.wrong) else BACKENDS.get(series.backend, RIVAL),
        linestyle=MODES.get(series.mode, "-"),
        marker="x" if any(line.wrong) else "o" if series.ours else ".",
        linewidth=2.2 if series.ours else 1.0,
        markersize=5,
        label=f"{name}, {series.backend} {series.mode}: {line.exponent}",
    )
