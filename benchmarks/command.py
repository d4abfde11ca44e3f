"""`xent bench`."""

from __future__ import annotations

import os
import signal
from enum import Enum
from pathlib import Path
from typing import Annotated

import typer
from xent import _live
from xent._console import Steps, err, out

from . import diff as differences
from . import plot, report, show
from .result import Result
from .run import MODES, bench
from .workers import Died
from .workloads import SWEEPS, WIDTH, WORKLOADS

INTERRUPTED = Path("xent-bench-interrupted.json")
Name = Enum("Name", {name: name for name in WORKLOADS})  # type: ignore[misc]
Backend = Enum("Backend", {name: name for name in _live.KNOWN})  # type: ignore[misc]
Dtype = Enum("Dtype", {name: name for name in WIDTH})  # type: ignore[misc]
Mode = Enum("Mode", {name: name for name in MODES})  # type: ignore[misc]
Sweep = Enum("Sweep", {name: name for name in SWEEPS})  # type: ignore[misc]


def bench_command(
    workload: Annotated[
        list[Name] | None,
        typer.Option(
            help="Only this one; repeat for more. On a CPU only if named: lm-large in float16, linear in bfloat16, "
            "linear-large."
        ),
    ] = None,
    backend: Annotated[list[Backend] | None, typer.Option(help="Only this one; repeat for more.")] = None,
    dtype: Annotated[list[Dtype] | None, typer.Option(help="Instead of the workload's own; repeat for more.")] = None,
    mode: Annotated[list[Mode] | None, typer.Option(help="Eagerly, or through the framework's compiler.")] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda, gpu, or as the framework names it: cuda:1.")] = "cpu",
    rivals: Annotated[bool, typer.Option(help="Whether to time the frameworks' own losses, too.")] = True,
    threads: Annotated[int | None, typer.Option(help="Processors for each framework; all if not given.")] = None,
    rounds: Annotated[int | None, typer.Option(help="How often each contender has its turn.")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Two small workloads, in about a minute.")] = False,
    sweep: Annotated[Sweep | None, typer.Option(help="How the cost grows with it, on lm or --workload.")] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write every sample, after each workload.")] = None,
    html: Annotated[Path | None, typer.Option(help="Also write one self-contained page.")] = None,
    png: Annotated[Path | None, typer.Option(help="Also draw the times beside the memory's limit.")] = None,
    diff: Annotated[
        tuple[Path, Path] | None, typer.Option(help="Time nothing: what changed between two --json files.")
    ] = None,
) -> None:
    """Time xent against every framework's own best loss, forward and with the gradient, on the hardware here.

    Each contender is checked against float64 first, and all take turns, round by round. Exit status: 0 done, 1 --diff
    found something slower, 2 it could not be run, 130 interrupted (what was finished is on disk).
    """
    try:
        if diff is not None:
            raise typer.Exit(_diff(*diff))
        for file in (json_file, html, png):
            _writable(file)
        if png is not None:
            plot.figure_type()  # before minutes are spent, too
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # a time limit's, say: what is finished is kept, too
        with Steps("starting the frameworks") as step:
            result = bench(
                [choice.value for choice in workload or ()],
                backends=[choice.value for choice in backend or ()],
                dtypes=[choice.value for choice in dtype or ()],
                modes=[choice.value for choice in mode or ()],
                device=device,
                rivals=rivals,
                threads=threads,
                rounds=rounds,
                quick=quick,
                sweep=sweep.value if sweep else None,
                save=json_file,
                progress=step,
            )
        _write(result, json_file, html, png)
    except (ValueError, OSError, Died) as error:
        err.print(f"xent: {error}", style="red", markup=False, highlight=False, soft_wrap=True)
        raise typer.Exit(2) from None
    raise typer.Exit(130 if result.interrupted else 0)


def _writable(file: Path | None) -> None:
    """Before minutes are spent on it."""
    if file is None:
        return
    folder = file.absolute().parent
    if not folder.is_dir():
        raise ValueError(f"{file}: no such folder")
    if file.is_dir() or not os.access(folder, os.W_OK):
        raise ValueError(f"{file}: expected a file that can be written")


def _write(result: Result, json_file: Path | None, html: Path | None, png: Path | None) -> None:
    if not result.cases:
        return  # interrupted before there was anything
    show.show(result, out)
    if result.interrupted and json_file is None:
        json_file = INTERRUPTED
        result.save(json_file)
    if html is not None:
        html.write_text(report.page(result), encoding="utf-8")
    if png is not None:
        plot.png(result, png)
    for file in (json_file, html, png):
        if file is not None and file.exists():
            out.print(f"wrote {file}", style="dim", markup=False, highlight=False)


def _diff(old: Path, new: Path) -> int:
    verdicts = differences.diff(Result.load(old), Result.load(new))
    differences.show(verdicts, out)
    return int(any(verdict.word == "slower" for verdict in verdicts))
