"""`xent bench`: a result in a terminal of at least 80 columns, and as one self-contained page."""

from __future__ import annotations

import io
from base64 import b64encode
from html import escape

from rich.console import Console
from rich.table import Table as Grid
from rich.text import Text
from xent.benchmarks import plot, tables
from xent.benchmarks.result import Result
from xent.benchmarks.tables import Table
from xent.verify.page import document

STYLES = {"ours": "bold", "bad": "red"}
COLOURS = {"win": "green", "loss": "red", "faster": "green", "slower": "red"}  # of the first cell
WIDE = 100


def show(result: Result, console: Console) -> None:
    """Prints the machine, every case and sweep, what was absent, a legend and the summary."""
    pairs(tables.facts(result), console)
    show_tables([*tables.tables(result)], console)
    for reason in result.absent:
        console.print(Text(f"absent: {reason}", "yellow"))
    if result.interrupted:
        console.print(Text("interrupted: what is above is whole, the rest is missing", "yellow"))
    for line in tables.summary(result):
        console.print(Text(line, "bold red" if line.startswith("failed") else "bold"))


def page(result: Result) -> str:
    """The picture, and what the terminal shows."""
    try:
        picture = f'<img alt="times" src="data:image/png;base64,{b64encode(plot.png(result)).decode()}">'
    except ValueError as error:
        picture = f'<p class="note">{escape(str(error))}</p>'
    console = Console(file=io.StringIO(), record=True, emoji=False, width=140)
    show(result, console)
    text = console.export_html(code_format='<pre class="scroll">{code}</pre>', inline_styles=True)
    return document("xent bench", f"{text}\n{picture}")


def show_tables(shown: list[Table], console: Console) -> None:
    """Prints the tables, and then what their headings mean."""
    for one in shown:
        _table(one, console)
    pairs({column.heading: column.meaning for one in shown for column in one.columns if column.meaning}, console)


def pairs(found: dict[str, str], console: Console) -> None:
    grid = Grid.grid(padding=(0, 2))
    for name, text in found.items():
        grid.add_row(Text(name, "dim"), Text(text))
    console.print(grid, "")


def _table(one: Table, console: Console) -> None:
    console.print(Text(one.title, "bold"), Text(one.note, "dim"), sep="\n")
    kept = [place for place, column in enumerate(one.columns) if console.width >= WIDE or not column.spare]
    grid = Grid(box=None, padding=(0, 1, 0, 0), header_style="dim")
    for column in (one.columns[place] for place in kept):
        grid.add_column(column.heading, justify="left" if column.left else "right", no_wrap=True)
    name = next(i for i, place in enumerate(kept) if one.columns[place].left)  # the first column of names
    for backend, rows in one.groups.items():
        grid.add_row(*[""] * name, Text(backend, "cyan"))
        for row in rows:
            first, *rest = (row.cells[place] for place in kept)
            grid.add_row(Text(first, COLOURS.get(row.kind, "")), *map(Text, rest), style=STYLES.get(row.kind, ""))
    console.print(grid)
    for line in one.troubles:
        console.print(Text(line, "red"))
    console.print()
