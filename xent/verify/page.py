"""Pages that need nothing else: `xent compare --html`, and the frame of `xent bench --html`."""

from __future__ import annotations

import math
from html import escape

from xent.verify import regimes
from xent.verify.comparison import Comparison, InRegime, Row, contender_text, figure, limit

STYLE = """
:root{color-scheme:light dark;--text:#222;--soft:#5c5c5c;--page:#fff;--line:#d5d5d5;--ok:#186a3b;--bad:#b00020}
@media (prefers-color-scheme:dark){:root{--text:#e6e6e6;--soft:#a8a8a8;--page:#16181b;--line:#3a3d42;--ok:#7fd8a4;
--bad:#ff8a8a}}
body{font:15px/1.5 system-ui,sans-serif;margin:2rem auto;max-width:72rem;padding:0 1rem;color:var(--text);
background:var(--page)}
h1{font-size:1.5rem;margin-bottom:.2rem} h2{font-size:1.15rem;margin:2rem 0 .5rem}
h3{font-size:1rem;margin:1.2rem 0 .2rem} .scroll{overflow-x:auto}
table{border-collapse:collapse} th,td{padding:.25rem .55rem;font-variant-numeric:tabular-nums;text-align:left}
th{font-weight:600;white-space:nowrap} tr>th:first-child{position:sticky;left:0;background:var(--page)}
td.cell{text-align:center;min-width:3.4rem;color:#111;border:1px solid var(--page);line-height:1.25}
td.fail{outline:3px solid #b00020;outline-offset:-3px;font-weight:700}
table.plain td,table.plain th{border-bottom:1px solid var(--line)}
.ok{color:var(--ok)} .bad{color:var(--bad)} .note,footer,small{color:var(--soft)} p.note,footer{max-width:48rem}
.key span{display:inline-block;padding:.1rem .6rem;color:#111}
dl{display:grid;grid-template-columns:auto 1fr;gap:.1rem 1rem}
dt{font-weight:600} dd{margin:0} img,svg{max-width:100%;height:auto}
@media (max-width:40rem){body{margin:.5rem auto;padding:0 .6rem;font-size:14px} th,td{padding:.2rem .35rem}
tr>th:first-child{white-space:normal;max-width:6.5rem} td.cell{min-width:3rem}
dl{grid-template-columns:1fr} dd{margin:0 0 .3rem}}
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
    kinds = {found.regime: None for row in result.rows for found in row.regimes}
    return document(
        "xent compare",
        f"""<p class="{verdict}"><strong>{escape(result.summary())}</strong></p>
<p class="note">Worst relative errors against float64, of the loss (value) and of its gradient; the limit is what the
dtype allows, and the worse of the two is a share of it.</p>
<p class="key">{_key()}</p>
<h2>all kinds of logits together</h2>{_worst([row for row in result.rows if not row.contender])}
{_contenders(result)}<h2>each kind of logits by itself</h2>
<p class="note">In each cell the value's error, and below it the gradient's.</p>
{_kinds(list(kinds))}{_by_kind(result.rows)}
<h2>between backends</h2>{_pairs(result)}
{f"<h2>not run</h2><ul>{skipped}</ul>" if skipped else ""}""",
    )


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


def _table(heads: list[str], rows: list[str], style: str = "") -> str:
    if not rows:
        return "<p>none to show</p>"
    head = "".join(f"<th>{escape(name)}</th>" for name in heads)
    return f'<div class="scroll"><table class="{style}"><tr>{head}</tr>{"".join(rows)}</table></div>'


def _cell(*errors: float, fine: bool = True) -> str:
    """Their figures, one below the other, in the colour of the worst."""
    known = [x for x in errors if not math.isnan(x)]
    colour = f' style="background:{_colour(max(known))}"' if known else ""
    return f'<td class="cell{"" if fine else " fail"}"{colour}>{"<br>".join(map(figure, errors))}</td>'


# ---- all kinds together


def _worst(rows: list[Row]) -> str:
    heads = ["", "loss", "dtype", "mode", "value", "worst at", "gradient", "worst at", "of the limit"]
    return _table(heads, [_line(row) for row in rows], "plain")


def _line(row: Row) -> str:
    names = f"<th>{escape(_who(row))}</th>" + "".join(
        f"<td>{escape(part)}</td>" for part in (row.loss, row.dtype, row.mode)
    )
    if row.problem:
        return f'<tr>{names}<td colspan="5" class="bad">{escape(row.problem)}</td></tr>'
    figures = f"{_cell(row.value)}<td>{escape(row.value_regime)}</td>{_cell(row.gradient)}"
    share = f'<td class="{"ok" if row.agrees else "bad"}">{limit(row)}</td>'
    return f"<tr>{names}{figures}<td>{escape(row.gradient_regime)}</td>{share}</tr>"


def _who(row: Row) -> str:
    return f"{row.contender}, {row.backend}" if row.contender else row.backend


def _contenders(result: Comparison) -> str:
    found = result.contenders()
    if not found:
        return ""
    said = "".join(f'<li class="{"ok" if r.agrees else "bad"}">{escape(contender_text(r))}</li>' for r in found)
    return f"<h2>your own</h2>{_worst(found)}<ul>{said}</ul>\n"


# ---- each kind by itself


def _kinds(names: list[str]) -> str:
    known = [(name, regimes.about(name)) for name in names if name in regimes.REGIMES]
    return f"<dl>{''.join(f'<dt>{escape(name)}</dt><dd>{escape(about)}</dd>' for name, about in known)}</dl>"


def _by_kind(rows: list[Row]) -> str:
    """A table for each backend and loss; below xent's figures those of the framework's own loss."""
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        if row.regimes and not row.problem:
            groups.setdefault((_who(row), row.loss), []).append(row)
    return "".join(_group(who, loss, mine) for (who, loss), mine in groups.items())


def _group(who: str, loss: str, rows: list[Row]) -> str:
    kinds = [found.regime for found in rows[0].regimes]
    lines = []
    for row in rows:
        ours = [_cell(found.value, found.gradient, fine=found.share <= 1) for found in row.regimes]
        lines.append(_of_kinds(f"{row.dtype} {row.mode}", ours))
        if row.native:
            lines.append(_of_kinds(f"its own, {row.dtype}", [_theirs(found) for found in row.regimes]))
    native = next((row.native for row in rows if row.native), "")
    note = f" <small>its own: {escape(native)}</small>" if native else ""
    return f"<h3>{escape(who)} {escape(loss)}{note}</h3>{_table(['', *kinds], lines)}"


def _of_kinds(name: str, cells: list[str]) -> str:
    return f"<tr><th>{escape(name)}</th>{''.join(cells)}</tr>"


def _theirs(found: InRegime) -> str:
    return _cell(found.native_value, found.native_gradient)


# ---- between backends


def _pairs(result: Comparison) -> str:
    if not result.pairs:
        return "<p>only one backend</p>"
    names = list(dict.fromkeys((pair.loss, pair.dtype) for pair in result.pairs))
    found = {(*pair.backends, pair.loss, pair.dtype): pair for pair in result.pairs}
    lines = []
    for a, b in dict.fromkeys(pair.backends for pair in result.pairs):
        pairs = (found.get((a, b, *name)) for name in names)
        cells = [_cell(math.nan, math.nan) if p is None else _cell(p.value, p.gradient) for p in pairs]
        lines.append(_of_kinds(f"{a} - {b}", cells))
    return _table(["", *(f"{loss} {dtype}" for loss, dtype in names)], lines)
