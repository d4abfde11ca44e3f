"""Puts a table that a command made into a page, between the two comments that name the command."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

README = Path(__file__).parents[1] / "README.md"
PERFORMANCE = README.parent / "docs" / "performance.md"


def markdown(heads: Sequence[str], rows: Iterable[Iterable[str]]) -> str:
    """A table."""
    lines = [heads, ["---"] * len(heads), *rows]
    return "".join(f"|{'|'.join(f' {cell} ' if cell else ' ' for cell in cells)}|\n" for cells in lines)


def marked(name: str, text: str, script: str = "") -> str:
    """By the script of that name, if it is not another one's."""
    return f"<!-- {name}: python benchmarks/{script or name}.py -->\n{text}<!-- /{name} -->"


def write(name: str, text: str, page: Path = README, script: str = "") -> None:
    pattern = marked(re.escape(name), ".*?", script)
    old = page.read_text(encoding="utf-8")
    page.write_text(re.sub(pattern, lambda _: marked(name, text, script), old, flags=re.DOTALL), encoding="utf-8")
