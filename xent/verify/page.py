"""Pages that need nothing else: `xent compare --html`, and the frame of `xent bench --html`."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from html import escape

from xent.verify import regimes
from xent.verify.comparison import Comparison, Row, contender_text, figure, limit

STYLE = """
body{font:15px/1.5 system-ui,sans-serif;margin:2rem auto;max-width:72rem;padding:0 1rem;color:#222;background:#fff}
h1{font-size:1.5rem;margin-bottom:.2rem} h2{font-size:1.1rem;margin:2rem 0 .5rem} .scroll{overflow-x:auto}
table{border-collapse:collapse} th,td{padding:.3rem .6rem;font-variant-numeric:tabular-nums;text-align:left}
th{font-weight:600} table.heat td.cell{text-align:center;min-width:3.4rem;color:#111;border:1px solid #fff}
td.fail{outline:3px solid #b00;outline-offset:-3px;font-weight:700} .ok{color:#186a3b} .bad{color:#b00020}
p.note,footer{color:#666;max-width:48rem} .key span{display:inline-block;padding:.1rem .6rem;color:#111}
svg{max-width:100%;height:auto}
"""


def document(command: str, body: str) -> str:
    """The page of this command."""
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>{command}</title><style>{STYLE}</style></head><body>
<h1>{command}</h1>
{body}
<footer><p>Made by <code>{command} --html</code>.</p></footer>
</body></html>
"""


def page(result: Comparison) -> str:
    verdict = "ok" if result.agrees else "bad"
    skipped = "".join(f"<li>{escape(reason)}</li>" for reason in result.skipped)
    return document(
        "xent compare",
        f"""<p class="{verdict}"><strong>{escape(result.summary())}</strong></p>
<p class="note">Worst relative error against float64 truth over {len(regimes.REGIMES)} kinds of logits
({", ".join(regimes.REGIMES)}), or over your own. Hover over a cell for where it is worst.</p>
<p class="key">{_key()}</p>
<h2>xent</h2>{_heat([r for r in result.rows if not r.contender], _ours)}
{_contenders(result)}<h2>the frameworks' own losses</h2>{_heat([r for r in result.rows if r.native], _theirs)}
<h2>between backends</h2>{_pairs(result)}
{f"<h2>not run</h2><ul>{skipped}</ul>" if skipped else ""}""",
    )


def _contenders(result: Comparison) -> str:
    found = result.contenders()
    if not found:
        return ""
    said = "".join(f'<li class="{"ok" if r.agrees else "bad"}">{escape(contender_text(r))}</li>' for r in found)
    return f"<h2>your own</h2>{_heat(found, _ours)}<ul>{said}</ul>\n"


def _key() -> str:
    steps = ((1e-16, "1e-16"), (1e-12, "1e-12"), (1e-7, "1e-7"), (1e-3, "1e-3"), (1.0, "1: no digit right"))
    shown = "".join(f'<span style="background:{_colour(x)}">{name}</span>' for x, name in steps)
    return f'{shown}<span style="background:{_colour(math.inf)}">wrong: NaN, infinity or an error</span>'


def _colour(error: float) -> str:
    """Green at 1e-16 through yellow at 1e-6 to red at 1."""
    if math.isinf(error):
        return "hsl(0 70% 62%)"
    exponent = min(max(math.log10(error) if error > 0 else -16.0, -16.0), 0.0)
    return f"hsl({max(0.0, -exponent / 16 * 140):.0f} 65% 75%)"


Cell = tuple[float, float, bool, str]  # value, gradient, fine, what to say about it


def _ours(row: Row) -> Cell:
    where = f"value worst at {row.value_regime}, gradient at {row.gradient_regime}; {limit(row)} of what is allowed"
    return row.value, row.gradient, row.agrees, row.problem or where


def _theirs(row: Row) -> Cell:
    return row.native_value, row.native_gradient, True, row.native


def _heat(rows: Iterable[Row], cell: Callable[[Row], Cell]) -> str:
    """Backends down, losses and dtypes across; value and gradient in each."""
    rows = list(rows)
    if not rows:
        return "<p>none to show</p>"
    columns = list(dict.fromkeys((row.loss, row.dtype) for row in rows))
    found = {(_who(row), row.mode, row.loss, row.dtype): cell(row) for row in rows}
    losses = list(dict.fromkeys(loss for loss, _ in columns))
    spans = "".join(f'<th colspan="{2 * sum(c[0] == loss for c in columns)}">{escape(loss)}</th>' for loss in losses)
    dtypes = "".join(f'<th colspan="2">{escape(dtype)}</th>' for _, dtype in columns)
    kinds = "<th>value</th><th>gradient</th>" * len(columns)
    lines = [
        f"<tr><th>{escape(who)} <small>{escape(mode)}</small></th>"
        + "".join(_cell(found.get((who, mode, *column))) for column in columns)
        + "</tr>"
        for who, mode in dict.fromkeys((_who(row), row.mode) for row in rows)
    ]
    return (
        f'<div class="scroll"><table class="heat"><tr><th></th>{spans}</tr><tr><th></th>{dtypes}</tr>'
        f"<tr><th></th>{kinds}</tr>{''.join(lines)}</table></div>"
    )


def _who(row: Row) -> str:
    return f"{row.contender}, {row.backend}" if row.contender else row.backend


def _cell(cell: Cell | None) -> str:
    if cell is None:
        return '<td class="cell">-</td>' * 2
    value, gradient, fine, note = cell
    return "".join(
        f'<td class="cell{"" if fine else " fail"}" style="background:{_colour(x)}" title="{escape(note)}">'
        f"{figure(x)}</td>"
        for x in (value, gradient)
    )


def _pairs(result: Comparison) -> str:
    if not result.pairs:
        return "<p>only one backend</p>"
    names = list(dict.fromkeys((pair.loss, pair.dtype) for pair in result.pairs))
    found = {(*pair.backends, pair.loss, pair.dtype): pair for pair in result.pairs}
    head = "".join(f'<th colspan="2">{escape(loss)}<br>{escape(dtype)}</th>' for loss, dtype in names)
    lines = []
    for a, b in dict.fromkeys(pair.backends for pair in result.pairs):
        cells = (found.get((a, b, *name)) for name in names)
        shown = "".join(_cell(None if p is None else (p.value, p.gradient, True, f"{a} and {b}")) for p in cells)
        lines.append(f"<tr><th>{escape(f'{a} - {b}')}</th>{shown}</tr>")
    return f'<div class="scroll"><table class="heat"><tr><th></th>{head}</tr>{"".join(lines)}</table></div>'
