"""Where the commands print, and how they show that they are at work."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

out = Console()
err = Console(stderr=True)


class Steps:
    """A bar on standard error while there is somebody to look at it."""

    def __init__(self, first: str, quiet: bool = False) -> None:
        columns = (TextColumn("{task.description:42.42}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
        self.first = first
        self.bar = Progress(*columns, console=err, transient=True, disable=quiet or not err.is_terminal)

    def __enter__(self) -> Any:
        self.bar.start()
        task = self.bar.add_task(self.first, total=None)
        return lambda what, done, of: self.bar.update(task, description=what, completed=done, total=of)

    def __exit__(self, *_: object) -> None:
        self.bar.stop()
