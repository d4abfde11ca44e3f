"""`xent bench --html`: one page that needs nothing else."""

from __future__ import annotations

from base64 import b64encode
from html import escape

from xent.benchmarks import plot, sweeps, tables
from xent.benchmarks.result import Result
from xent.benchmarks.tables import Column, Row, Table
from xent.verify.page import document


def page(result: Result) -> str:
    """The machine, the summary, the picture, then every table; hover over a heading for what it means."""
    shown = [*tables.tables(result), *map(sweeps.table, sweeps.sweeps(result))]
    facts = "".join(f"<tr><th>{name}</th><td>{escape(text)}</td></tr>" for name, text in tables.facts(result).items())
    said = [*tables.summary(result), *(f"absent: {reason}" for reason in result.absent)]
    said += ["interrupted: what follows is whole, the rest is missing"] if result.interrupted else []
    body = f'<table class="facts">{facts}</table><h2>in short</h2>{_lines(said)}<h2>times</h2>{_picture(result)}'
    note = "Green: xent is faster; red: xent is slower; no colour: the quartiles lie on both sides of 1."
    return document("xent bench", f'{body}\n<p class="note">{note}</p>\n{"".join(map(_table, shown))}')


def _lines(lines: list[str]) -> str:
    bad = {True: ' class="bad"', False: ""}
    return "".join(f"<p{bad[line.startswith('failed')]}>{escape(line)}</p>" for line in lines)


def _picture(result: Result) -> str:
    try:
        return f'<img alt="times" src="data:image/png;base64,{b64encode(plot.png(result)).decode()}">'
    except ValueError as error:
        return f'<p class="note">{escape(str(error))}</p>'


def _table(table: Table) -> str:
    heads = "".join(f'<th title="{escape(c.meaning)}"{_left(c)}>{escape(c.heading)}</th>' for c in table.columns)
    body = ""
    for backend, rows in table.groups.items():
        body += f'<tr><th class="name" colspan="{len(table.columns)}">{escape(backend)}</th></tr>'
        body += "".join(_row(row, table.columns) for row in rows)
    troubles = "".join(f'<p class="bad">{escape(line)}</p>' for line in table.troubles)
    return (
        f'<h2>{escape(table.title)}</h2><p class="note">{escape(table.note)}</p><div class="scroll">'
        f'<table class="rows"><thead><tr>{heads}</tr></thead><tbody>{body}</tbody></table></div>{troubles}\n'
    )


def _row(row: Row, columns: tuple[Column, ...]) -> str:
    cells = "".join(f"<td{_left(c)}>{escape(text)}</td>" for c, text in zip(columns, row.cells, strict=True))
    return f'<tr class="{row.kind}">{cells}</tr>'


def _left(column: Column) -> str:
    return ' class="name"' if column.left else ""
