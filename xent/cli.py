"""The `xent` command."""

from __future__ import annotations

import contextlib
import importlib
import json
from collections.abc import Iterable
from enum import Enum
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
import xent
from rich.table import Table
from rich.text import Text
from xent._console import Steps, err, fail, json_text, out, say, writable
from xent._files import load
from xent.benchmarks.command import bench_command
from xent.evaluation.command import evaluate_command
from xent.verify import frameworks, linear, page, precision, regimes
from xent.verify.batches import MODES
from xent.verify.bits import bits as bits_of
from xent.verify.compare import compare
from xent.verify.diagnosis import FAULT
from xent.verify.doctor import doctor
from xent.verify.processes import facts
from xent.verify.show import show, show_bits

Loss = Enum("Loss", {name: name for name in linear.LOSSES})  # type: ignore[misc]
LogitsLoss = Enum("LogitsLoss", {name: name for name in regimes.LOSSES})  # type: ignore[misc]
Dtype = Enum("Dtype", {name: name for name in precision.DTYPES})  # type: ignore[misc]
Mode = Enum("Mode", {name: name for name in MODES})  # type: ignore[misc]

app = typer.Typer(
    help="One cross-entropy loss for NumPy, PyTorch, TensorFlow and JAX: see what is installed, check it, time it.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command(name="bench")(bench_command)
app.command(name="evaluate")(evaluate_command)


@app.command()
def backends(as_json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False) -> None:
    """Which xent this is, which frameworks are installed, their versions and devices, and which kernels are in use."""
    installed = set(frameworks.available())
    names = [*dict.fromkeys([*frameworks.KNOWN, *sorted(installed)])]
    found = {**dict.fromkeys(names), **facts([name for name in names if name in installed])}
    kernels = {"native": native(), "triton": triton((found["torch"] or {}).get("devices", ()))}
    if as_json:
        print(json.dumps({"xent": {"version": xent.__version__, "file": xent.__file__}, **found, **kernels}, indent=2))
        return
    say(f"xent {xent.__version__}: {xent.__file__}\n")
    table = Table(box=None, pad_edge=False)
    for heading in ("backend", "version", "devices", "runs", "dtypes"):
        table.add_column(heading)
    for name, known in found.items():
        table.add_row(Text(name), *_backend_cells(name, known))
    out.print(table)
    out.print()
    _say_kernels("native CPU kernels", "{isa}, up to {threads} threads", kernels["native"])
    _say_kernels("Triton kernels for PyTorch on CUDA", "in use", kernels["triton"])


def _backend_cells(name: str, known: dict[str, Any] | None) -> tuple[Text, ...]:
    if known is None:
        return Text("not installed", "dim"), Text(f"pip install {name}", "dim")
    if "problem" in known:
        return Text("broken", "red"), Text(known["problem"])
    modes = Text(", ").join(
        Text.assemble(mode, (f" ({why})", "dim")) if why else Text(mode) for mode, why in known["modes"].items()
    )
    return Text(known["version"]), Text(", ".join(known["devices"])), modes, Text(", ".join(known["dtypes"]))


def _say_kernels(name: str, text: str, known: dict[str, Any]) -> None:
    say(f"{name}: {('not in use: {problem}' if 'problem' in known else text).format(**known)}")


def native() -> dict[str, Any]:
    """The instruction set and threads of the CPU kernels, or why they are not in use."""
    try:
        cpu = importlib.import_module("xent.backends.cpu")
    except ValueError as error:  # a setting in the environment
        return {"problem": str(error)}
    if cpu.native is None:
        return {"problem": cpu.why_not}
    return {"isa": cpu.native.isa(), "threads": cpu.native.max_threads()}


def triton(devices: Iterable[str]) -> dict[str, Any]:
    """Whether the kernels for PyTorch's CUDA tensors are in use, or why not, without importing Triton."""
    kernels = importlib.import_module("xent.backends.triton")
    if kernels.why_not is not None:
        return {"problem": kernels.why_not}
    if not any(device.startswith("cuda") for device in devices):
        return {"problem": "PyTorch has no CUDA device here"}
    return {"in_use": True}


CONTENDER = "Also judge your own loss of (logits, labels): package.module:function; needs --backend and --loss."


BITS = "Instead, digests of the results' bits on fixed inputs, to hold against another machine's."


@app.command(name="compare")
def compare_command(
    backend: Annotated[list[str] | None, typer.Option(help="Only this one; repeat for more.")] = None,
    dtype: Annotated[list[Dtype] | None, typer.Option(help="Only this one; repeat for more.")] = None,
    loss: Annotated[list[Loss] | None, typer.Option(help="Only this one; repeat for more.")] = None,
    mode: Annotated[list[Mode] | None, typer.Option(help="Eagerly, or through the framework's compiler.")] = None,
    device: Annotated[str, typer.Option(help="As the framework names it: cpu, cuda:0, gpu:0.")] = "cpu",
    logits: Annotated[Path | None, typer.Option(help="Your logits: .npy, .npz or .safetensors.")] = None,
    labels: Annotated[Path | None, typer.Option(help="Your labels: class ids, or distributions.")] = None,
    axis: Annotated[int, typer.Option(help="Where the classes are in your logits.")] = -1,
    ignore_index: Annotated[int | None, typer.Option(help="Class id to ignore in your labels.")] = None,
    contender: Annotated[list[str] | None, typer.Option(help=CONTENDER)] = None,
    option: Annotated[list[str] | None, typer.Option(help="Its option: label_smoothing=0.1; repeat for more.")] = None,
    full: Annotated[bool, typer.Option("--full", help="Also 33,333 and 262,144 classes.")] = False,
    bits: Annotated[bool, typer.Option("--bits", help=BITS)] = False,
    as_json: Annotated[bool, typer.Option("--json", help="As JSON, to standard output.")] = False,
    html: Annotated[Path | None, typer.Option(help="Also write one self-contained page with heatmaps.")] = None,
) -> None:
    """Check every installed framework against float64, against each other, and beside the framework's own losses.

    Shows the worst relative errors over ordinary logits and hard ones, each kind by itself: common offsets to 1e8,
    labels that lead by up to 80, spreads to 1e4, ties, ruled-out classes. What it will do and how far it is goes to
    standard error.

    Exit status: 0 all agree, 1 something disagrees, 2 nothing could be run.
    """
    losses, dtypes = ([choice.value for choice in chosen or ()] for chosen in (loss, dtype))
    try:
        if bits:
            given = (mode, logits, labels, ignore_index, contender, option, html, full, axis != -1)
            if any(value not in (None, False, []) for value in given):
                raise ValueError("--bits: goes with --backend, --dtype, --loss, --device and --json only")
            _compare_bits(backend, losses, dtypes, device, as_json)
        writable(html)
        with Steps("starting the frameworks", lines=True) as step:
            result = compare(
                backend,
                losses=losses,
                dtypes=dtypes,
                modes=[choice.value for choice in mode or ()] or MODES,
                device=device,
                logits=load(logits, "logits"),
                labels=load(labels, "labels"),
                axis=axis,
                ignore_index=ignore_index,
                full=full,
                contenders={name: name for name in contender or ()},
                options=dict(map(_option, option or ())),
                progress=step,
                announce=lambda text: say((text, "dim"), to=err),
            )
        if html is not None:
            html.write_text(page.page(result), encoding="utf-8")
    except (ValueError, TypeError, OSError) as error:
        fail(error)
        raise typer.Exit(2) from None
    if as_json:
        print(json_text(result.to_dict()))
    else:
        show(result, out)
        if html is not None:
            say((f"wrote {html}", "dim"))
    raise typer.Exit(0 if result.agrees else 1)


def _compare_bits(
    backend: list[str] | None, losses: list[str], dtypes: list[str], device: str, as_json: bool
) -> NoReturn:
    say((f"computing digests on {', '.join(backend or ['every framework'])}", "dim"), to=err)
    found = bits_of(backend, losses=losses, dtypes=dtypes, device=device)
    if as_json:
        print(json.dumps(found.to_dict(), indent=2))
    else:
        show_bits(found, out)
    raise typer.Exit(0 if found else 1)


def _option(given: str) -> tuple[str, float]:
    name, _, value = given.partition("=")
    with contextlib.suppress(ValueError):
        return name, int(value) if name == "ignore_index" else float(value)
    raise ValueError(f"--option {given}: expected name=number, such as label_smoothing=0.1")


@app.command(name="doctor")
def doctor_command(
    logits: Annotated[Path, typer.Option(help="Your logits: .npy, .npz or .safetensors.")],
    labels: Annotated[Path, typer.Option(help="Your labels: class ids, or labels of the logits' shape.")],
    axis: Annotated[int, typer.Option(help="Where the classes are.")] = -1,
    ignore_index: Annotated[int | None, typer.Option(help="Class id to ignore in your labels.")] = None,
    sample_weight: Annotated[Path | None, typer.Option(help="Your weights; examples of weight 0 are left out.")] = None,
    loss: Annotated[LogitsLoss | None, typer.Option(help="Which loss they are for; else by the labels' dtype.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False,
) -> None:
    """Say what is wrong or odd about one batch: probabilities as logits, ids from 1 to C, NaN and where.

    Exit status: 0 nothing is wrong, though remarks may be made, 1 a fault was found, 2 bad input.
    """
    try:
        report = doctor(
            load(logits, "logits"),
            load(labels, "labels"),
            axis=axis,
            ignore_index=ignore_index,
            sample_weight=load(sample_weight, "sample_weight"),
            loss=None if loss is None else loss.value,
        )
    except (ValueError, TypeError, OSError) as error:
        fail(error)
        raise typer.Exit(2) from None
    if as_json:
        print(json_text(report.to_dict()))
    else:
        say((report.summary(), "dim"))
        for finding in report.findings:
            say((f"{finding.severity}: ", "bold red" if finding.severity == FAULT else "yellow"), finding.sentence)
        say((report.verdict(), "green" if report else "bold red"))
    raise typer.Exit(0 if report else 1)


def _version(show: bool) -> None:
    if show:
        print(f"xent {xent.__version__}")
        raise typer.Exit


Version = typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")


@app.callback()
def _options(version: Annotated[bool, Version] = False) -> None:
    pass
