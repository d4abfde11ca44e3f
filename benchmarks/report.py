"""`xent bench --html`: one page that needs nothing else."""

from __future__ import annotations

from html import escape
from itertools import groupby

from xent._report import STYLE

from . import plot, rows
from .result import Case, Result
from .rows import COLUMNS, Row
from .sweeps import Line, Sweep, plain, sweeps

MORE = """
table.facts th,table.facts td{padding:.05rem .6rem;vertical-align:top} table.facts th{color:#666;font-weight:400}
table.rows td,table.rows th{padding:.1rem .7rem;text-align:right;white-space:nowrap} table.rows .name{text-align:left}
table.rows thead th{color:#666;font-weight:400;border-bottom:1px solid #ddd;cursor:help}
table.rows tr.backend th{text-align:left;padding-top:.6rem} tr.ours td{font-weight:700} tr.wrong td{color:#b00020}
tbody tr:hover td{background:#f0f4fa} tbody td.win{background:#d9f0e0} tbody td.loss{background:#fbdcdc}
svg{max-width:100%;height:auto} p{margin:.3rem 0}
"""


def page(result: Result) -> str:
    """The machine, the summary, the plot, then every table; hover over a row or a heading for more."""
    blocks = [(case, which) for case in plain(result) for which in rows.PASS if rows.rows(case, which)]
    tables = "".join(_block(*block) for block in blocks) + "".join(_sweep(sweep) for sweep in sweeps(result))
    facts = "".join(f"<tr><th>{name}</th><td>{escape(text)}</td></tr>" for name, text in rows.facts(result).items())
    lines = "".join(f"<p><strong>{escape(line)}</strong></p>" for line in rows.summary(result))
    absent = "".join(f"<li>{escape(reason)}</li>" for reason in result.absent)
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>xent bench</title><style>{STYLE}{MORE}</style></head><body>
<h1>xent bench</h1>
<table class="facts">{facts}</table>
{"<p class='bad'>Interrupted: what follows is whole, the rest is missing.</p>" if result.interrupted else ""}
<h2>in short</h2>{lines}
{f"<h2>absent</h2><ul>{absent}</ul>" if absent else ""}
<h2>times</h2>{_picture(result)}
<p class="note">ratio: how many times as long as xent a contender takes, on the same backend in the same mode. Green:
xent is faster; red: xent is slower; no colour: the quartiles lie on both sides of 1. Hover over a heading for what it
means and over a row for the quartiles of its time, its first call and its errors.</p>
{tables}
<footer><p>Made by <code>xent bench --html</code>.</p></footer>
</body></html>
"""


def _picture(result: Result) -> str:
    try:
        return plot.svg(result)
    except ValueError as error:
        return f'<p class="note">{escape(str(error))}</p>'


def _titles(title: str, note: str) -> str:
    return f'<h2>{escape(title)}</h2><p class="note">{escape(note)}</p>'


def _block(case: Case, which: str) -> str:
    columns = enumerate(rows.columns(case))
    heads = "".join(f'<th{_left(i)} title="{escape(c.meaning)}">{c.heading}</th>' for i, c in columns)
    body = ""
    for backend, group in groupby(rows.rows(case, which), key=lambda row: row.series.backend):
        body += _backend(backend, len(COLUMNS)) + "".join(_row(case, row) for row in group)
    return _titles(*rows.heading(case, which)) + _table(heads, body) + _troubles([case], which)


def _left(position: int) -> str:
    return ' class="name"' if COLUMNS[position].left else ""


def _row(case: Case, row: Row) -> str:
    kind = "wrong" if row.trouble else "ours" if row.series.ours else ""
    cells = "".join(f"<td{_left(i)}>{escape(text)}</td>" for i, text in enumerate(row.cells) if i)
    first = f'<td class="{row.verdict}">{row.cells[0]}</td>'
    return f'<tr class="{kind}" title="{escape(rows.hover(case, row))}">{first}{cells}</tr>'


def _backend(name: str, columns: int) -> str:
    return f'<tr class="backend"><th colspan="{columns}">{escape(name)}</th></tr>'


def _table(heads: str, body: str) -> str:
    return (
        f'<div class="scroll"><table class="rows"><thead><tr>{heads}</tr></thead><tbody>{body}</tbody></table></div>\n'
    )


def _troubles(cases: list[Case], which: str) -> str:
    lines = dict.fromkeys(line for case in cases for line in rows.troubles(case, which))
    return "".join(f'<p class="bad">{escape(line)}</p>' for line in lines)


def _sweep(sweep: Sweep) -> str:
    names = '<th class="name">contender</th><th class="name">mode</th>'
    slope = f'<th title="k in {sweep.measure} ~ {sweep.varied}^k, over the upper half of the values">slope</th>'
    heads = names + "".join(f"<th>{value}</th>" for value in sweep.values) + slope
    least = "".join(f"<td>{sweep.shown(seconds)}</td>" for seconds in sweep.floor)
    body = f'<tr><td class="name">floor</td><td></td>{least}<td></td></tr>' if least else ""
    for backend, group in groupby(sweep.lines, key=lambda line: line.series.backend):
        body += _backend(backend, len(sweep.values) + 3) + "".join(_line(line) for line in group)
    return _titles(sweep.title, sweep.note) + _table(heads, body) + _troubles([*sweep.cases], sweep.which)


def _line(line: Line) -> str:
    kind = "wrong" if any(line.wrong) else "ours" if line.series.ours else ""
    names = f'<td class="name">{escape(line.name)}</td><td class="name">{line.series.mode}</td>'
    cells = "".join(f"<td>{text}</td>" for text in (*line.cells, line.exponent))
    return f'<tr class="{kind}" title="{escape(line.series.label)}">{names}{cells}</tr>'
