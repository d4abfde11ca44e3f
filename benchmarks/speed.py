"""Writes README's speed table: python benchmarks/speed.py"""

from __future__ import annotations

import math
from pathlib import Path
from string import ascii_lowercase

from xent.benchmarks.readme import markdown, write
from xent.benchmarks.result import Case, Result, Series, ratio
from xent.benchmarks.rows import PASS, origin, times
from xent.benchmarks.sweeps import plain

MEASURED = Path(__file__).parent / "results" / "cpu.json"
DTYPES = ("float32", "bfloat16")


def table(result: Result) -> str:
    """xent's fastest mode against the fastest rival that is right, on each backend, forward and backward."""
    cases = [case for case in plain(result) if case.dtype in DTYPES]
    backends = list(dict.fromkeys(s.backend for case in cases for s in case.series))
    marks: dict[str, str] = {}
    lines = [
        [f"{case.workload} {'x'.join(map(str, case.shape))} {case.dtype}", *(_cell(case, b, marks) for b in backends)]
        for case in cases
    ]
    rivals = ", ".join(f"{mark} {name}" for name, mark in marks.items())
    said = [
        markdown([PASS["both"], *backends], lines),
        "How many times as long as xent's fastest mode the fastest right rival takes (the smallest median time of "
        f"all its modes; below 1 it beats xent), median of paired rounds. The rivals: {rivals}.",
        "",
        f"{origin(result)} Made by `xent bench --json benchmarks/results/cpu.json`.",
        "",
    ]
    return "\n".join(said)


def _cell(case: Case, backend: str, marks: dict[str, str]) -> str:
    """Their ratio, and the letter that stands for the rival."""
    ours, rival = (_fastest(case, backend, ours=kind) for kind in (True, False))
    if ours is None or rival is None:
        return "-"
    mark = marks.setdefault(f"`{rival.name}` {rival.mode}", ascii_lowercase[len(marks)])
    return f"{times(ratio(rival.seconds, ours.seconds).median)} {mark}"


def _fastest(case: Case, backend: str, ours: bool) -> Series | None:
    found = [
        s
        for s in case.series
        if (s.backend, s.ours, s.which) == (backend, ours, "both")
        and not (s.problem or case.wrong(s) or math.isnan(s.time.median))
    ]
    return min(found, key=lambda s: s.time.median, default=None)


if __name__ == "__main__":
    write("speed", table(Result.load(MEASURED)))
