"""`xent compare` in the terminal, from 80 columns up."""

from __future__ import annotations

from collections.abc import Iterator

from rich.console import Console
from rich.table import Table
from rich.text import Text
from xent._console import say
from xent.verify import regimes
from xent.verify.bits import Bits
from xent.verify.comparison import Comparison, InRegime, Row, contender_text, figure, limit

NAME = 11  # columns for the name of a kind of logits


def show(result: Comparison, to: Console) -> None:
    """Every row's worst, each kind of logits beside the framework's own loss, backends beside each other, verdicts."""
    to.print(_worst(result))
    say(("\nvalue, gradient: worst relative error against float64", "dim"), to=to)
    say(("limit: the worse of the two, as a share of what the dtype allows", "dim"), to=to)
    _show_regimes(result, to)
    _show_pairs(result, to)
    for row in result.contenders():
        say((contender_text(row), "" if row.agrees else "red"), to=to)
    for row in result.rows:
        if row.problem and not row.contender:
            say((f"{row.backend} {row.loss} {row.dtype} {row.mode}", "red"), f": {row.problem}", to=to)
    for reason in result.skipped:
        say((f"skipped {reason}", "dim"), to=to)
    say((result.summary(), "green" if result.agrees else "bold red"), to=to)


def _table() -> Table:
    return Table(box=None, padding=(0, 1, 0, 0), header_style="bold")


def _worst(result: Comparison) -> Table:
    table = _table()
    for heading in ("backend", "loss", "dtype", "mode"):
        table.add_column(heading, no_wrap=True)
    for heading in ("value", "gradient", "limit"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("worst at", no_wrap=True)
    previous: tuple[str, str] | None = None
    for row in result.rows:
        who = (_who(row), row.loss)
        if previous and who[0] != previous[0]:
            table.add_section()
        first = ("", "") if previous == who else who
        table.add_row(*map(Text, (*first, row.dtype, row.mode)), *_figures(row))
        previous = who
    return table


def _who(row: Row) -> str:
    return row.contender.rpartition(":")[2] or row.backend


def _figures(row: Row) -> Iterator[Text]:
    if row.problem:
        yield Text("failed" if row.contender else "raised", "red")
        return
    yield Text(figure(row.value))
    yield Text(figure(row.gradient))
    yield Text(limit(row), "green" if row.agrees else "bold red")
    yield Text(max(row.regimes, key=lambda found: found.share).regime if row.regimes else "", "dim")


# ---- each kind of logits by itself


def _show_regimes(result: Comparison, to: Console) -> None:
    """Of one dtype, and eagerly where that was run: the rest is in the JSON and on the page."""
    rows = [row for row in result.rows if row.regimes and not row.problem]
    if not rows:
        return
    dtype = rows[0].dtype
    chosen: dict[tuple[str, str], Row] = {}
    for row in rows:
        if row.dtype == dtype:
            chosen.setdefault((_who(row), row.loss), row)
    names = [name for name in (*regimes.REGIMES, "yours") if any(_found(row, name) for row in chosen.values())]
    say(("\neach kind of logits by itself", "bold"), (f", {dtype}{_more(result)}", "dim"), to=to)
    for name in names:
        if name in regimes.REGIMES:
            say((f"{name:{NAME}}{regimes.about(name)}", "dim"), to=to)
    say(("own: the framework's own loss. 1: no digit right. wrong: NaN, infinity, an error", "dim"), to=to)
    for (who, loss), row in chosen.items():
        own = f", own: {row.native}" if row.native else ""
        say("\n", (f"{row.contender or who} {loss}", "bold"), (own, "dim"), to=to)
        to.print(_of_kinds(row, names))


def _of_kinds(row: Row, names: list[str]) -> Table:
    table = _table()
    for width in (len("gradient"), len("xent")):
        table.add_column("", no_wrap=True, min_width=width)
    for name in names:
        table.add_column(name, justify="right", no_wrap=True, min_width=len("1e-07"))
    for what, whose, cells in _lines(row, names):
        table.add_row(Text(what), Text(whose), *cells)
    return table


def _more(result: Comparison) -> str:
    several = len({(row.dtype, row.mode) for row in result.rows}) > 1
    return "; other dtypes and modes: --html, --json" if several else ""


def _found(row: Row, name: str) -> InRegime | None:
    return next((found for found in row.regimes if found.regime == name), None)


def _lines(row: Row, names: list[str]) -> Iterator[tuple[str, str, list[Text]]]:
    found = [_found(row, name) for name in names]
    for what in ("value", "gradient"):
        ours = [getattr(each, what, None) for each in found]
        theirs = [getattr(each, f"native_{what}", None) for each in found]
        whose = "you" if row.contender else "xent"
        yield what, whose, [Text("-" if x is None else figure(x)) for x in ours]
        if row.native:
            pairs = zip(theirs, ours, strict=True)
            yield "", "own", [Text("-") if x is None or y is None else _against(x, y) for x, y in pairs]


def _against(theirs: float, ours: float) -> Text:
    """Their figure, marked where it is more than ten times ours."""
    return Text(figure(theirs), "yellow" if theirs > 10 * max(ours, 1e-16) else "")


# ---- backends beside each other


def _show_pairs(result: Comparison, to: Console) -> None:
    """The largest difference between any two backends, a line a dtype."""
    if not result.pairs:
        return
    say(("\nlargest difference between two backends", "bold"), (" (relative)", "dim"), to=to)
    for dtype in dict.fromkeys(pair.dtype for pair in result.pairs):
        pairs = [pair for pair in result.pairs if pair.dtype == dtype]
        value, gradient = max(pairs, key=lambda p: p.value), max(pairs, key=lambda p: p.gradient)
        for what, size, pair in (("value", value.value, value), ("gradient", gradient.gradient, gradient)):
            where = f"{' - '.join(pair.backends)}, {pair.loss}"
            say(f"{dtype:9} {what:9}{figure(size):>6}  ", (where, "dim"), to=to)
    say("", to=to)


# ---- bits


def show_bits(found: Bits, to: Console) -> None:
    """A digest a line, and who has it."""
    table = _table()
    for heading in ("loss", "dtype", "of the", "digest", "backends"):
        table.add_column(heading, no_wrap=True)
    previous = ""
    for (loss, dtype, what), digests in found.groups().items():
        for digest, backends in digests.items():
            style = "" if len(digests) == 1 else "bold red"
            first = "" if loss == previous else loss
            table.add_row(*map(Text, (first, dtype, what)), Text(digest, style), Text(" ".join(backends)))
            previous = loss
    to.print(table)
    say("", to=to)
    for backend, digest in found.of_all().items():
        say(f"{digest}  all of {backend} {found.versions[backend]}", to=to)
    for problem in found.problems:
        say((problem, "red"), to=to)
    for reason in found.skipped:
        say((f"skipped {reason}", "dim"), to=to)
    say((found.summary(), "green" if found else "bold red"), to=to)
