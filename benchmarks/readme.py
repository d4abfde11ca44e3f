"""Writes the tables of README.md and docs/performance.md: python -m xent.benchmarks.readme [accuracy]"""

from __future__ import annotations

import datetime
import platform
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import xent
from xent.benchmarks import tables
from xent.benchmarks.result import Case, Result
from xent.verify.comparison import figure

ROOT = Path(__file__).resolve().parents[1]
MEASURED = ROOT / "benchmarks" / "results" / "cpu.json"
OWN = {"numpy": "NumPy", "torch": "F.", "tensorflow": "tf.nn.", "jax": "optax."}  # how its own losses are named
MODES = ("numpy eager", "torch eager", "torch compiled", "tensorflow eager", "tensorflow compiled", "jax compiled")


def markdown(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "".join(f"|{'|'.join(f' {cell} ' if cell else ' ' for cell in cells)}|\n" for cells in lines)


def speed(result: Result) -> str:
    """xent's fastest mode against the fastest right rival of each backend, forward and backward."""
    return (
        f"{_table(result, [*OWN], _best)}\nThe time of the fastest rival that is right, divided by that of xent in its "
        f"fastest mode (below 1 the rival is faster): median of paired rounds.\n\n{_origin(result)}"
    )


def every_mode(result: Result) -> str:
    """The framework's own loss against xent in the same mode."""
    return f"{_table(result, MODES, _same)}\n{_origin(result)}"


def _table(result: Result, columns: Sequence[str], cell: Callable[[Case, str], str]) -> str:
    cases = [case for case in tables.plain(result) if case.workload.by_default and case.dtype in case.workload.dtypes]
    names = [f"{case.workload.use}: {'x'.join(map(str, case.workload.shape))} {case.dtype}" for case in cases]
    rows = [[name, *(cell(case, column) for column in columns)] for name, case in zip(names, cases, strict=True)]
    return markdown(["forward and backward", *columns], rows)


def _best(case: Case, backend: str) -> str:
    rivals = [s for s in case.series if s.backend == backend and s.which == "both"]
    found = [(s.time, s.best) for s in rivals if s.time and s.best]
    return tables.times(min(found)[1].median) if found else "-"


def _same(case: Case, mode: str) -> str:
    own = OWN[mode.split()[0]]
    for series in case.series:
        if f"{series.backend} {series.mode}" == mode and series.which == "both" and series.name.startswith(own):
            return tables.times(series.ratio.median) if series.ratio else series.problem.partition(":")[0] or "-"
    return "-"


def _origin(result: Result) -> str:
    facts = tables.facts(result)
    return f"{'; '.join(facts[name] for name in ('processor', 'versions', 'xent', 'timed'))}.\n"


def accuracy() -> str:
    found = xent.compare([*OWN], losses=["sparse_ce"], dtypes=["float32", "float64"], full=True)
    heads, lines = ["sparse_ce", "dtype", "mode", "xent", "own loss, ordinary logits", "own loss, all logits", ""], []
    for row in found.rows:
        ordinary = row.regimes[0]
        own = [
            f"{figure(value)}, {figure(gradient)}" if row.native else ""
            for value, gradient in (
                (ordinary.native_value, ordinary.native_gradient),
                (row.native_value, row.native_gradient),
            )
        ]
        ours = f"{figure(row.value)}, {figure(row.gradient)}"
        lines.append([row.backend, row.dtype, row.mode, ours, *own, f"`{row.native}`" if row.native else ""])
    versions = ", ".join(f"{name} {number}" for name, number in found.versions.items())
    table = markdown(heads, lines).replace("wrong", "∞")
    where = f"{versions}; {platform.machine()}, CPU; {datetime.date.today()}"
    return f"{table}\nIn each cell: of the loss, of its gradient. {where}.\n"


def marked(name: str, text: str) -> str:
    argument = " accuracy" if name == "accuracy" else ""
    return f"<!-- {name}: python -m xent.benchmarks.readme{argument} -->\n{text}<!-- /{name} -->"


def write(name: str, text: str, page: Path) -> None:
    """Between the two comments of this name."""
    old, pattern = page.read_text(encoding="utf-8"), rf"<!-- {name}: .*?<!-- /{name} -->"
    page.write_text(re.sub(pattern, lambda _: marked(name, text), old, flags=re.DOTALL), encoding="utf-8")


if __name__ == "__main__":
    measured = Result.load(MEASURED)
    write("speed", speed(measured), ROOT / "README.md")
    write("modes", every_mode(measured), ROOT / "docs" / "performance.md")
    if "accuracy" in sys.argv[1:]:
        write("accuracy", accuracy(), ROOT / "README.md")
