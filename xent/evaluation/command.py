"""`xent evaluate`, as a command."""

from __future__ import annotations

import contextlib
import math
import signal
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table
from xent._console import Steps, err, fail, json_text, out, say, writable
from xent.evaluation.run import Evaluation, checked, on_cluster
from xent.evaluation.stores import open_store
from xent.evaluation.tally import Report, report

WORST = 10  # classes that are shown


def evaluate_command(
    logits: Annotated[Path, typer.Option(help="Your logits: a .npy file, or the folder of a zarr array.")],
    labels: Annotated[Path, typer.Option(help="Your class ids, of the logits' shape without the classes.")],
    axis: Annotated[int, typer.Option(help="Where the classes are.")] = -1,
    ignore_index: Annotated[int | None, typer.Option(help="Class id to ignore in your labels.")] = None,
    resume: Annotated[
        Path | None, typer.Option(help="Where to keep what is done if interrupted, and to go on from.")
    ] = None,
    cluster: Annotated[str | None, typer.Option(help="The address of a Dask scheduler whose workers compute.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="As JSON, with all classes.")] = False,
) -> None:
    """Mean loss, perplexity and accuracy of logits that may be larger than the memory, also class by class.

    A part of the rows is read at a time. Interrupted, it keeps what is done in a file to go on from.

    Exit status: 0 done, 2 bad input or a failure, 130 interrupted.
    """
    evaluation = None
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as sent by a time limit
    try:
        writable(resume)
        stores = open_store(logits, "logits"), open_store(labels, "labels")
        evaluation = Evaluation(checked(*stores, axis, ignore_index))
        if resume is not None and resume.exists():
            evaluation.load(resume)
            say((f"going on after {evaluation}", "dim"), to=err)
        elif resume is not None:
            say((f"{resume} is not there yet: from the beginning", "dim"), to=err)
        with Steps("opening", lines=True) as step:
            options: dict[str, Any] = {} if cluster is None else {"tallies": partial(on_cluster, cluster)}
            totals = evaluation.go_on(percent_by_percent(step), **options)
    except (KeyboardInterrupt, OSError) as error:
        interrupted = isinstance(error, KeyboardInterrupt)
        with uninterrupted():
            fail(InterruptedError("interrupted") if interrupted else error)
            if evaluation is not None and evaluation.totals.done:
                _keep(evaluation, resume)
        raise typer.Exit(130 if interrupted else 2) from None
    except (ValueError, TypeError) as error:
        fail(error)
        raise typer.Exit(2) from None
    found = report(totals)
    if as_json:
        print(json_text(found.to_dict()))
    else:
        show(found)


def percent_by_percent(step: Any) -> Any:
    """Of thousands of parts, a line for each would be too many."""
    shown = -1

    def progress(what: str, done: int, of: int) -> None:
        nonlocal shown
        if done * 100 // of != shown:
            shown = done * 100 // of
            step(what, done, of)

    return progress


@contextlib.contextmanager
def uninterrupted() -> Iterator[None]:
    """A second Ctrl-C does not keep what is done from being written."""
    before = {kind: signal.signal(kind, signal.SIG_IGN) for kind in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for kind, handler in before.items():
            signal.signal(kind, handler)


def _keep(evaluation: Evaluation, file: Path | None) -> None:
    file = file or Path(time.strftime("xent-evaluate-%Y%m%d-%H%M%S.npz"))
    try:
        evaluation.save(file)
    except OSError as error:
        fail(OSError(f"{file}: what is done could not be kept: {error}"))
        return
    say(f"{evaluation} are done, kept in {file}: go on with the same command and --resume {file}", to=err)


def show(found: Report) -> None:
    ignored = f", {found.ignored:,} ignored" if found.ignored else ""
    say(f"rows        {found.rows:,}{ignored}")
    say(f"loss        {found.loss:.9g}")
    say(f"perplexity  {found.perplexity:.9g}")
    say(f"accuracy    {'-' if math.isnan(found.accuracy) else f'{found.accuracy:.4%}'}")
    worst = found.worst(WORST)
    if not len(worst):
        return
    every, labelled = len(found.class_count), int((found.class_count > 0).sum())
    say(f"\nclasses of the largest mean loss, {len(worst)} of {labelled:,} with labels, {every:,} in all\n")
    table = Table(box=None, pad_edge=False)
    for heading in ("class", "rows", "mean loss", "accuracy"):
        table.add_column(heading, justify="right")
    for k in worst:
        table.add_row(
            str(k), f"{found.class_count[k]:,}", f"{found.class_loss[k]:.6g}", f"{found.class_accuracy[k]:.2%}"
        )
    out.print(table)
