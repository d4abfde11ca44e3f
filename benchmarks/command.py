"""`xent bench`."""

from __future__ import annotations

import signal
from enum import Enum
from pathlib import Path
from typing import Annotated

import typer
from xent._console import Steps, err, fail, out, say, writable
from xent.benchmarks import diff as differences
from xent.benchmarks import page, plot, show
from xent.benchmarks.processes import MODES
from xent.benchmarks.result import Result
from xent.benchmarks.run import bench
from xent.benchmarks.workloads import PASSES, SWEEPS, WIDTH, WORKLOADS
from xent.verify.frameworks import KNOWN

INTERRUPTED = Path("xent-bench-interrupted.json")
Name = Enum("Name", {name: name for name in WORKLOADS})  # type: ignore[misc]
Backend = Enum("Backend", {name: name for name in KNOWN})  # type: ignore[misc]
Dtype = Enum("Dtype", {name: name for name in WIDTH})  # type: ignore[misc]
Mode = Enum("Mode", {name: name for name in MODES})  # type: ignore[misc]
Pass = Enum("Pass", {name: name for name in PASSES})  # type: ignore[misc]
Sweep = Enum("Sweep", {name: name for name in SWEEPS})  # type: ignore[misc]


def bench_command(
    workload: Annotated[list[Name] | None, typer.Option(help="Only this one; repeat for more.")] = None,
    backend: Annotated[list[Backend] | None, typer.Option(help="Only this one; repeat for more.")] = None,
    dtype: Annotated[list[Dtype] | None, typer.Option(help="Instead of the workload's own; repeat for more.")] = None,
    mode: Annotated[list[Mode] | None, typer.Option(help="Only this one; repeat for more.")] = None,
    passes: Annotated[
        list[Pass] | None,
        typer.Option("--pass", help="forward: the loss alone; both (if not given): its gradient, too."),
    ] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda, gpu, or as the framework names it: cuda:1.")] = "cpu",
    rivals: Annotated[bool, typer.Option(help="Whether to time the frameworks' own losses, too.")] = True,
    threads: Annotated[int | None, typer.Option(help="Processors for each framework; all if not given.")] = None,
    rounds: Annotated[int | None, typer.Option(help="How often each contender has its turn.")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Two small workloads, within a minute.")] = False,
    sweep: Annotated[Sweep | None, typer.Option(help="How the cost grows with it, on lm or --workload.")] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the result, after each workload.")] = None,
    html: Annotated[Path | None, typer.Option(help="Also write one self-contained page.")] = None,
    png: Annotated[Path | None, typer.Option(help="Also draw the times beside the memory's limit.")] = None,
    diff: Annotated[
        tuple[Path, Path] | None, typer.Option(help="Time nothing: what changed between two --json files.")
    ] = None,
) -> None:
    """Time xent against every framework's own best loss on the hardware here, in less than ten minutes.

    Each contender is checked against float64 first, and all of a framework take turns, round by round. Exit status: 0
    done, 1 a loss of xent's failed or was wrong, or --diff found something slower, 2 it could not be run, 130
    interrupted (what was finished is on disk).
    """
    try:
        if diff is not None:
            raise typer.Exit(_diff(*diff))
        for file in (json_file, html, png):
            writable(file)
        if png is not None:
            plot.figure_type()  # before minutes are spent, too
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # a time limit's: what is finished is kept
        with Steps("starting") as step:
            result = bench(
                [choice.value for choice in workload or ()],
                backends=[choice.value for choice in backend or ()],
                dtypes=[choice.value for choice in dtype or ()],
                modes=[choice.value for choice in mode or ()],
                passes=[choice.value for choice in passes or ()],
                device=device,
                rivals=rivals,
                threads=threads,
                rounds=rounds,
                quick=quick,
                sweep=sweep.value if sweep else None,
                save=json_file,
                progress=step,
                announce=lambda text: say((f"takes {text} on two cores", "dim"), to=err),
            )
        _write(result, json_file, html, png)
    except (ValueError, OSError) as error:
        fail(error)
        raise typer.Exit(2) from None
    raise typer.Exit(130 if result.interrupted else int(bool(result.failures)))


def _write(result: Result, json_file: Path | None, html: Path | None, png: Path | None) -> None:
    if not result.cases:
        return  # interrupted before there was anything
    show.show(result, out)
    if result.interrupted and json_file is None:
        json_file = INTERRUPTED
        result.save(json_file)
    if html is not None:
        html.write_text(page.page(result), encoding="utf-8")
    if png is not None:
        png.write_bytes(plot.png(result))
    for file in (json_file, html, png):
        if file is not None and file.exists():
            say((f"wrote {file}", "dim"))


def _diff(old: Path, new: Path) -> int:
    verdicts = differences.diff(Result.load(old), Result.load(new))
    table = differences.table(verdicts)
    show.table(table, out)
    show.pairs({column.heading: column.meaning for column in table.columns if column.meaning}, out)
    return int(any(verdict.word == "slower" for verdict in verdicts))
