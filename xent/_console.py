"""The commands' output and progress bars.

Names of files, errors and versions are printed as they are, as `Text`: in a string rich takes [brackets] for markup and
:colons: for emoji.
"""

from __future__ import annotations

import json
import math
import os
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn
from rich.text import Text

out = Console(emoji=False)
err = Console(stderr=True, emoji=False)


def say(*parts: str | tuple[str, str], to: Console = out) -> None:
    """Prints one line of plain texts and of pairs (text, style)."""
    to.print(Text.assemble(*parts), soft_wrap=True)


def fail(error: BaseException) -> None:
    say((f"xent: {error}", "red"), to=err)


def json_text(value: Any) -> str:
    return json.dumps(_finite(value), indent=2, allow_nan=False)


def _finite(value: Any) -> Any:
    """With NaN as null and infinities as strings: JSON has neither."""
    if isinstance(value, dict):
        return {k: _finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(v) for v in value]
    if not isinstance(value, float) or math.isfinite(value):
        return value
    return None if math.isnan(value) else str(value)


def writable(file: Path | None) -> None:
    """Raises ValueError if the file could not be written: before minutes are spent on its content."""
    if file is None:
        return
    folder = file.absolute().parent
    if not folder.is_dir():
        raise ValueError(f"{file}: no such folder")
    if file.is_dir() or not os.access(folder, os.W_OK):
        raise ValueError(f"{file}: expected a file that can be written")


class Steps:
    """A progress bar, if standard error and standard output are terminals; else, if wanted, a line for each step."""

    def __init__(self, first: str, lines: bool = False) -> None:
        what = TextColumn("{task.description:42.42}", markup=False)
        columns = (what, BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
        live = err.is_terminal and out.is_terminal
        self.first, self.lines, self.began = first, lines and not live, time.monotonic()
        self.bar = Progress(*columns, console=err, transient=True, disable=not live)

    def __enter__(self) -> Any:
        self.bar.start()
        self.task = self.bar.add_task(self.first, total=None)
        return self._step

    def _step(self, what: str, done: int, of: int) -> None:
        self.bar.update(self.task, description=what, completed=done, total=of)
        if self.lines:
            say(f"{time.monotonic() - self.began:4.0f} s  {done:{len(str(of))}} of {of}: {what}", to=err)

    def __exit__(self, *_: object) -> None:
        self.bar.stop()
