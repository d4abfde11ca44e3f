"""`xent bench`."""

from __future__ import annotations

import signal
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

import typer
from xent._console import Steps, err, fail, out, say, writable
from xent.benchmarks import diff as differences
from xent.benchmarks import plot, show
from xent.benchmarks.result import Result
from xent.benchmarks.run import MODES, bench
from xent.benchmarks.workloads import PASSES, SWEEPS, WIDTH, WORKLOADS
from xent.verify.frameworks import KNOWN


def _several(names: Iterable[str], default: str, *option: str) -> Any:
    """An option that may be repeated; `bench` checks the names."""
    return typer.Option(*option, help=f"{', '.join(names)}; repeat for more.", show_default=default)


def bench_command(
    workload: Annotated[list[str] | None, _several(WORKLOADS, "what takes ten minutes")] = None,
    backend: Annotated[list[str] | None, _several(KNOWN, "all that are installed")] = None,
    dtype: Annotated[list[str] | None, _several(WIDTH, "each workload's own")] = None,
    mode: Annotated[list[str] | None, _several(MODES, "all")] = None,
    passes: Annotated[list[str] | None, _several(PASSES, "both, loss and gradient", "--pass")] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda, gpu, or as the framework names it: cuda:1.")] = "cpu",
    rivals: Annotated[bool, typer.Option(help="Whether to time the frameworks' own losses, too.")] = True,
    contender: Annotated[list[str] | None, typer.Option(help="Your own loss: package.module:function.")] = None,
    threads: Annotated[int | None, typer.Option(help="Processors for each framework; all if not given.")] = None,
    rounds: Annotated[int | None, typer.Option(help="How often each contender has its turn.")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Two small workloads, within a minute.")] = False,
    sweep: Annotated[
        str | None, typer.Option(help=f"{', '.join(SWEEPS)}: how the cost grows with it, on lm or --workload.")
    ] = None,
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
    interrupted (what was finished is shown).
    """
    try:
        if diff is not None:
            verdicts = differences.diff(*map(Result.load, diff))
            show.show_tables([differences.table(verdicts)], out)
            raise typer.Exit(int(any(verdict.word == "slower" for verdict in verdicts)))
        for file in (json_file, html, png):
            writable(file)
        if png is not None:
            plot.figure_type()  # raises without matplotlib, before minutes are spent
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # as sent by a time limit: finished cases are kept
        with Steps("starting") as step:
            result = bench(
                workload,
                backends=backend,
                dtypes=dtype,
                modes=mode,
                passes=passes,
                device=device,
                rivals=rivals,
                contenders=contender,
                threads=threads,
                rounds=rounds,
                quick=quick,
                sweep=sweep,
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
    if html is not None:
        html.write_text(show.page(result), encoding="utf-8")
    if png is not None:
        png.write_bytes(plot.png(result))
    for file in filter(None, (json_file, html, png)):
        say((f"wrote {file}", "dim"))
