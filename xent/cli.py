"""The `xent` command."""

from __future__ import annotations

import contextlib
import importlib
import json
from collections.abc import Iterable
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
import xent
from rich.table import Table
from rich.text import Text
from xent._console import Steps, fail, out, say, writable
from xent.benchmarks.command import bench_command
from xent.verify import frameworks, page, precision, regimes
from xent.verify.compare import MODES, compare, facts
from xent.verify.comparison import Comparison, Row, contender_text, figure, limit
from xent.verify.diagnosis import FAULT
from xent.verify.doctor import doctor

Loss = Enum("Loss", {name: name for name in regimes.LOSSES})  # type: ignore[misc]
Dtype = Enum("Dtype", {name: name for name in precision.DTYPES})  # type: ignore[misc]
Mode = Enum("Mode", {name: name for name in MODES})  # type: ignore[misc]

app = typer.Typer(
    help="One cross-entropy loss for NumPy, PyTorch, TensorFlow and JAX: see what is installed, check it, time it.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command(name="bench")(bench_command)


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


@app.command(name="compare")
def compare_command(
    backend: Annotated[list[str] | None, typer.Option(help="Only this one; repeat for more.")] = None,
    dtype: Annotated[list[Dtype] | None, typer.Option(help="Only this one; repeat for more.")] = None,
    loss: Annotated[list[Loss] | None, typer.Option(help="Only this one; repeat for more.")] = None,
    mode: Annotated[list[Mode] | None, typer.Option(help="Eagerly, or through the framework's compiler.")] = None,
    device: Annotated[str, typer.Option(help="As the framework names it: cpu, cuda:0, gpu:0.")] = "cpu",
    logits: Annotated[Path | None, typer.Option(help="Your logits: .npy, .npz or .safetensors, classes last.")] = None,
    labels: Annotated[Path | None, typer.Option(help="Your labels: class ids, or distributions.")] = None,
    ignore_index: Annotated[int | None, typer.Option(help="Class id to ignore in your labels.")] = None,
    contender: Annotated[list[str] | None, typer.Option(help=CONTENDER)] = None,
    option: Annotated[list[str] | None, typer.Option(help="Its option: label_smoothing=0.1; repeat for more.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="As JSON, to standard output.")] = False,
    html: Annotated[Path | None, typer.Option(help="Also write one self-contained page with heatmaps.")] = None,
) -> None:
    """Check every installed framework against float64, against each other, and beside the framework's own losses.

    Shows the worst relative errors over hard and easy logits: common offsets to 1e8, labels that lead by up to 80,
    spreads to 1e4, ties, ruled-out classes.

    Exit status: 0 all agree, 1 something disagrees, 2 nothing could be run.
    """
    try:
        writable(html)
        with Steps("starting the frameworks", quiet=as_json) as step:
            result = compare(
                backend,
                losses=[choice.value for choice in loss or ()],
                dtypes=[choice.value for choice in dtype or ()],
                modes=[choice.value for choice in mode or ()] or MODES,
                device=device,
                logits=_load(logits, "logits"),
                labels=_load(labels, "labels"),
                ignore_index=ignore_index,
                contenders={name: name for name in contender or ()},
                options=dict(map(_option, option or ())),
                progress=step,
            )
        if html is not None:
            html.write_text(page.page(result), encoding="utf-8")
    except (ValueError, TypeError, OSError) as error:
        fail(error)
        raise typer.Exit(2) from None
    if as_json:
        print(json.dumps(_finite(result.to_dict()), indent=2))
    else:
        _print(result)
        if html is not None:
            say((f"wrote {html}", "dim"))
    raise typer.Exit(0 if result.agrees else 1)


def _option(given: str) -> tuple[str, float]:
    name, _, value = given.partition("=")
    with contextlib.suppress(ValueError):
        return name, int(value) if name == "ignore_index" else float(value)
    raise ValueError(f"--option {given}: expected name=number, such as label_smoothing=0.1")


def _print(result: Comparison) -> None:
    table = Table(box=None, padding=(0, 1, 0, 0), header_style="bold")  # fits 80 columns
    for heading in ("backend", "loss", "dtype", "mode"):
        table.add_column(heading, no_wrap=True)
    for heading in ("value", "gradient", "limit", "own value", "gradient"):
        table.add_column(heading, justify="right", no_wrap=True)
    previous: tuple[str, str] | None = None
    for row in result.rows:
        who = (row.contender.rpartition(":")[2] or row.backend, row.loss)
        if previous and who[0] != previous[0]:
            table.add_section()
        first = ("", "") if previous == who else who
        table.add_row(*map(Text, (*first, row.dtype, row.mode)), *_cells(row))
        previous = who
    out.print(table)
    say((LEGEND, "dim"))
    for backend in dict.fromkeys(row.backend for row in result.rows):
        names = dict.fromkeys(row.native for row in result.rows if row.backend == backend and row.native)
        for name in names:
            say((f"own: {backend:12}{name}", "dim"))
    _print_pairs(result)
    for row in result.contenders():
        say((contender_text(row), "" if row.agrees else "red"))
    for row in result.rows:
        if row.problem and not row.contender:
            say((f"{row.backend} {row.loss} {row.dtype} {row.mode}", "red"), f": {row.problem}")
    for reason in result.skipped:
        say((f"skipped {reason}", "dim"))
    say((result.summary(), "green" if result.agrees else "bold red"))


LEGEND = """
value, gradient  worst relative error against float64 truth
limit            the worse of them as a share of what the dtype allows
own              the same errors of the framework's own loss, named below:
                 1 is no digit right, wrong is NaN, infinity or an error"""


def _cells(row: Row) -> Iterable[Text]:
    if row.problem:
        return (Text("failed" if row.contender else "raised", "red"), Text(), Text())
    return (
        Text(figure(row.value)),
        Text(figure(row.gradient)),
        Text(limit(row), "green" if row.agrees else "bold red"),
        _against(row.native_value, row.value),
        _against(row.native_gradient, row.gradient),
    )


def _against(theirs: float, ours: float) -> Text:
    """Their figure, marked where it is more than ten times ours."""
    return Text(figure(theirs), "yellow" if theirs > 10 * max(ours, 1e-16) else "")


def _print_pairs(result: Comparison) -> None:
    """The largest difference between any two backends, a line a dtype."""
    if not result.pairs:
        return
    say(("\nlargest difference between two backends", "bold"), (" (relative)", "dim"))
    for dtype in dict.fromkeys(pair.dtype for pair in result.pairs):
        pairs = [pair for pair in result.pairs if pair.dtype == dtype]
        value, gradient = max(pairs, key=lambda p: p.value), max(pairs, key=lambda p: p.gradient)
        for what, size, pair in (("value", value.value, value), ("gradient", gradient.gradient, gradient)):
            where = f"{' - '.join(pair.backends)}, {pair.loss}"
            say(f"{dtype:9} {what:9}{figure(size):>6}  ", (where, "dim"))
    out.print()


@app.command(name="doctor")
def doctor_command(
    logits: Annotated[Path, typer.Option(help="Your logits: .npy, .npz or .safetensors.")],
    labels: Annotated[Path, typer.Option(help="Your labels: class ids, or labels of the logits' shape.")],
    axis: Annotated[int, typer.Option(help="Where the classes are.")] = -1,
    ignore_index: Annotated[int | None, typer.Option(help="Class id to ignore in your labels.")] = None,
    loss: Annotated[Loss | None, typer.Option(help="Which loss they are for; else the labels' dtype tells.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False,
) -> None:
    """Say what is wrong or odd about one batch: probabilities as logits, ids from 1 to C, NaN and where.

    Exit status: 0 nothing is wrong, though remarks may be made, 1 a fault was found, 2 bad input.
    """
    try:
        arrays = _load(logits, "logits"), _load(labels, "labels")
        report = doctor(*arrays, axis=axis, ignore_index=ignore_index, loss=None if loss is None else loss.value)
    except (ValueError, TypeError, OSError) as error:
        fail(error)
        raise typer.Exit(2) from None
    if as_json:
        print(json.dumps(_finite(report.to_dict()), indent=2))
    else:
        say((report.summary(), "dim"))
        for finding in report.findings:
            say((f"{finding.severity}: ", "bold red" if finding.severity == FAULT else "yellow"), finding.sentence)
        say((report.verdict(), "green" if report else "bold red"))
    raise typer.Exit(0 if report else 1)


def _load(path: Path | None, name: str) -> Any:
    """The array in a file; of an archive, the one of this name, or its only one."""
    if path is None:
        return None
    if path.suffix not in (".npy", ".npz", ".safetensors"):
        raise ValueError(f"{path}: expected .npy, .npz or .safetensors")
    if not path.exists():
        raise ValueError(f"{path}: no such file")
    try:
        arrays = _arrays(path, name)
    except ImportError:
        raise ValueError(f"{path}: reading .safetensors needs: pip install safetensors") from None
    except Exception as error:  # each reader has its own exceptions
        raise ValueError(f"{path}: not a readable {path.suffix} file ({type(error).__name__})") from None
    if name not in arrays and len(arrays) != 1:
        raise ValueError(f"{path}: expected one array or one named {name!r}, found {', '.join(arrays) or 'none'}")
    key = name if name in arrays else next(iter(arrays))
    array = arrays[key]
    if isinstance(array, str):
        raise ValueError(f"{path}: {key} is {array}, which NumPy {HOW_TO_READ.get(array, 'does not have')}")
    if array.dtype.name.startswith("void"):  # what np.save makes of bfloat16, whose name .npy cannot hold
        raise ValueError(
            f"{path}: {key} has the dtype {array.dtype.str}, raw bytes; save bfloat16 as .safetensors or as float32"
        )
    return array


HOW_TO_READ = {"BF16": "reads with: pip install ml_dtypes"}


def _arrays(path: Path, name: str) -> dict[str, Any]:
    """By name; for an array whose dtype NumPy does not have, that dtype's name."""
    if path.suffix == ".npy":
        return {name: np.load(path, allow_pickle=False)}
    if path.suffix == ".npz":
        with np.load(path, allow_pickle=False) as archive:
            return {member: archive[member] for member in archive.files}
    from safetensors import safe_open

    with contextlib.suppress(ImportError):
        importlib.import_module("ml_dtypes")  # which makes bfloat16 known to NumPy
    with safe_open(path, "numpy") as archive:
        return {key: _tensor(archive, key) for key in archive.keys()}  # noqa: SIM118 (no dict)


def _tensor(archive: Any, key: str) -> Any:
    try:
        return archive.get_tensor(key)
    except (TypeError, AttributeError):
        return archive.get_slice(key).get_dtype()


def _finite(value: Any) -> Any:
    """With NaN as null and infinities as strings: JSON has neither."""
    if isinstance(value, dict):
        return {k: _finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(v) for v in value]
    return None if isinstance(value, float) and value != value else str(value) if value in (np.inf, -np.inf) else value


def _version(show: bool) -> None:
    if show:
        print(f"xent {xent.__version__}")
        raise typer.Exit


Version = typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")


@app.callback()
def _options(version: Annotated[bool, Version] = False) -> None:
    pass
