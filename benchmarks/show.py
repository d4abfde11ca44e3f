"""`xent bench`: a result in the terminal, from 80 columns up."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby

from rich.console import Console
from rich.table import Table
from rich.text import Text

from . import rows
from .result import Case, Result
from .rows import COLUMNS, Row
from .sweeps import Line, Sweep, plain, sweeps

COLOURS = {"win": "green", "loss": "red", "level": "", "": ""}
SPARE = ("quartiles", "GB/s", "memory")  # left out in this order where the window is narrow
GAP = "  "


def show(result: Result, console: Console) -> None:
    """Prints the machine, every case and sweep, what was absent, a legend and the summary."""
    _facts(result, console)
    for case in plain(result):
        for which in rows.PASS:
            _block(case, which, console)
    for sweep in sweeps(result):
        _sweep(sweep, console)
    for reason in result.absent:
        console.print(f"absent: {reason}", style="yellow", markup=False, highlight=False)
    if result.interrupted:
        console.print("interrupted: the cases above are whole, the others are missing", style="yellow")
    _legend(result, console)
    for line in rows.summary(result):
        console.print(line, style="bold", highlight=False)


def _facts(result: Result, console: Console) -> None:
    table = Table.grid(padding=(0, 2))
    for name, text in rows.facts(result).items():
        table.add_row(Text(name, "dim"), Text(text))
    console.print(table)
    console.print()


def _block(case: Case, which: str, console: Console) -> None:
    found = rows.rows(case, which)
    if not found:
        return
    _titles(rows.heading(case, which), console)
    headings = [column.heading for column in rows.columns(case)]
    kept, widths = _fitting(headings, [row.cells for row in found], console.width)
    console.print(_line([headings[i] for i in kept], [widths[i] for i in kept], kept, "dim"), soft_wrap=True)
    for backend, group in groupby(found, key=lambda row: row.series.backend):
        console.print(Text(backend, "cyan"))
        for row in group:
            console.print(_shown(row, kept, widths), soft_wrap=True)
    _troubles(rows.troubles(case, which), console)


def _titles(titles: tuple[str, str], console: Console) -> None:
    console.print(Text(titles[0], "bold"))
    console.print(Text(titles[1], "dim"))


def _troubles(lines: Iterator[str], console: Console) -> None:
    for line in dict.fromkeys(lines):
        console.print(Text(line, "red"))
    console.print()


def _fitting(headings: list[str], cells: Sequence[tuple[str, ...]], width: int) -> tuple[list[int], list[int]]:
    """The columns there is room for, and how wide each is."""
    columns = zip(headings, zip(*cells, strict=True), strict=True)
    widths = [max(map(len, (heading, *texts))) for heading, texts in columns]
    kept = list(range(len(COLUMNS)))
    for heading in SPARE:
        if sum(widths[i] + len(GAP) for i in kept) <= width:
            break
        kept = [i for i in kept if COLUMNS[i].heading != heading]
    return kept, widths


def _shown(row: Row, kept: list[int], widths: list[int]) -> Text:
    style = "red" if row.trouble else "bold" if row.series.ours else ""
    text = _line([row.cells[i] for i in kept], [widths[i] for i in kept], kept, style)
    text.stylize(COLOURS[row.verdict], 0, len(GAP) + widths[0])
    return text


def _line(cells: list[str], widths: list[int], kept: list[int], style: str) -> Text:
    padded = [
        cell.ljust(width) if COLUMNS[i].left else cell.rjust(width)
        for cell, width, i in zip(cells, widths, kept, strict=True)
    ]
    return Text(GAP + GAP.join(padded).rstrip(), style)


# ---- sweeps


def _sweep(sweep: Sweep, console: Console) -> None:
    _titles((sweep.title, sweep.note), console)
    lines = sweep.lines
    names = [f"{line.name} {line.series.mode}" for line in lines]
    first = max(map(len, names)) + 2
    table = [line.cells for line in lines]
    heads, least = [str(value) for value in sweep.values], [sweep.shown(s) for s in sweep.floor]
    widths = [max(map(len, column)) + 1 for column in zip(heads, least or heads, *table, strict=True)]
    start = _first_shown(widths, console.width - first - 7)

    def text(name: str, cells: Sequence[str], last: str) -> str:
        shown = zip(cells[start:], widths[start:], strict=True)
        return name.ljust(first) + "".join(cell.rjust(width) for cell, width in shown) + last.rjust(7)

    console.print(Text(text("", heads, "slope"), "dim"), soft_wrap=True)
    if least:
        console.print(Text(text("  floor", least, ""), "dim"), soft_wrap=True)
    for backend, group in groupby(zip(lines, names, table, strict=True), key=lambda item: item[0].series.backend):
        console.print(Text(backend, "cyan"))
        for line, name, cells in group:
            console.print(Text(text(f"  {name}", cells, line.exponent), _style(line)), soft_wrap=True)
    if start:
        console.print(Text(f"{sweep.varied} below {heads[start]} left out: the window is narrow", "dim"))
    _troubles((trouble for case in sweep.cases for trouble in rows.troubles(case, sweep.which)), console)


def _first_shown(widths: list[int], room: int) -> int:
    """The smallest values are the least telling, so they give way."""
    return next(start for start in range(len(widths)) if sum(widths[start:]) <= room or start == len(widths) - 1)


def _style(line: Line) -> str:
    return "red" if any(line.wrong) else "bold" if line.series.ours else ""


# ---- what it means


def _legend(result: Result, console: Console) -> None:
    table = Table.grid(padding=(0, 2))
    meanings = {column.heading: column.meaning for case in plain(result) for column in rows.columns(case)}
    if any(True for _ in sweeps(result)):
        meanings["slope"] = "k in time or memory ~ size^k, over the upper half of the sizes; ! marks a wrong result"
    for name, meaning in meanings.items():
        table.add_row(Text(name, "dim"), Text(meaning, "dim"))
    console.print(table)
    for name, whole in rows.shortened(result).items():
        console.print(Text(f"{name}: {whole}", "dim"))
    console.print()
