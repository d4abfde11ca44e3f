"""The `xent` command."""

from __future__ import annotations

import importlib
import json
from collections.abc import Iterable
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
import xent
from rich.markup import escape
from rich.table import Table
from xent import _live, _regimes, _report
from xent._console import Steps, err, out
from xent.benchmarks.command import bench_command
from xent.compare import MODES, Comparison, Row, compare, facts, figure

Loss = Enum("Loss", {name: name for name in _regimes.LOSSES})  # type: ignore[misc]
Dtype = Enum("Dtype", {name: name for name in _regimes.DTYPES})  # type: ignore[misc]
Mode = Enum("Mode", {name: name for name in MODES})  # type: ignore[misc]

app = typer.Typer(
    help="One cross-entropy loss for NumPy, PyTorch, TensorFlow and JAX: see what is here, and prove that it agrees.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command(name="bench")(bench_command)


@app.command()
def backends(as_json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False) -> None:
    """Which frameworks are here, their versions and devices, what installs the missing ones; the kernels."""
    here = set(_live.available())
    names = [*dict.fromkeys([*_live.KNOWN, *sorted(here)])]
    found = {**dict.fromkeys(names), **facts([name for name in names if name in here])}
    kernels = {"native": native(), "triton": triton((found["torch"] or {}).get("devices", ()))}
    if as_json:
        print(json.dumps({**found, **kernels}, indent=2))
        return
    table = Table(box=None, pad_edge=False)
    for heading in ("backend", "version", "devices", "runs", "dtypes"):
        table.add_column(heading)
    for name, known in found.items():
        if known is None:
            table.add_row(name, "[dim]not installed[/]", f"[dim]pip install {name}[/]")
        elif "problem" in known:
            table.add_row(name, "[red]broken[/]", escape(known["problem"]))
        else:
            modes = (f"{mode} [dim]({why})[/]" if why else mode for mode, why in known["modes"].items())
            table.add_row(
                name, known["version"], ", ".join(known["devices"]), ", ".join(modes), ", ".join(known["dtypes"])
            )
    out.print(table)
    out.print()
    _print_kernels("native CPU kernels", "{isa}, up to {threads} threads", kernels["native"])
    _print_kernels("Triton kernels for PyTorch on CUDA", "in use", kernels["triton"])


def _print_kernels(name: str, text: str, known: dict[str, Any]) -> None:
    text = ("not in use: {problem}" if "problem" in known else text).format(**known)
    out.print(f"{name}: {escape(text)}", highlight=False, soft_wrap=True)


def native() -> dict[str, Any]:
    """Whether the kernels that all frameworks share on a CPU are in use: how, or why not."""
    cpu = importlib.import_module("xent.backends.cpu")
    if cpu.native is None:
        return {"problem": cpu.why_not}
    return {"isa": cpu.native.isa(), "threads": cpu.native.max_threads()}


def triton(devices: Iterable[str]) -> dict[str, Any]:
    """The same of the kernels for PyTorch's CUDA tensors, without importing Triton."""
    cuda = importlib.import_module("xent.backends.cuda")
    if cuda.why_not is not None:
        return {"problem": cuda.why_not}
    if not any(device.startswith("cuda") for device in devices):
        return {"problem": "PyTorch has no CUDA device here"}
    return {"in_use": True}


@app.command(name="compare")
def compare_command(
    backend: Annotated[list[str] | None, typer.Option(help="Only this one; repeat for more.")] = None,
    dtype: Annotated[list[Dtype] | None, typer.Option(help="Only this one; repeat for more.")] = None,
    loss: Annotated[list[Loss] | None, typer.Option(help="Only this one; repeat for more.")] = None,
    mode: Annotated[list[Mode] | None, typer.Option(help="Eagerly, or through the framework's compiler.")] = None,
    device: Annotated[str, typer.Option(help="As the framework names it: cpu, cuda:0, gpu:0.")] = "cpu",
    logits: Annotated[Path | None, typer.Option(help="Your logits: .npy, .npz or .safetensors, classes last.")] = None,
    labels: Annotated[Path | None, typer.Option(help="Your labels: class ids, or distributions.")] = None,
    ignore_index: Annotated[int | None, typer.Option(help="A class id in your labels that is to be left out.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="As JSON, to standard output.")] = False,
    html: Annotated[Path | None, typer.Option(help="Also write one self-contained page with heatmaps.")] = None,
) -> None:
    """Every installed backend against the truth, against each other, and beside the framework's own loss.

    Relative errors, the worst over hard and easy logits: common offsets to 1e8, labels that lead by up to 80, spreads
    to 1e4, ties, ruled-out classes. Exit status: 0 all agree, 1 something does not, 2 it could not be run.
    """
    try:
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
                progress=step,
            )
        if html is not None:
            html.write_text(_report.page(result), encoding="utf-8")
    except (ValueError, TypeError, OSError) as error:
        err.print(f"xent: {error}", style="red", markup=False, highlight=False, soft_wrap=True)
        raise typer.Exit(2) from None
    if as_json:
        print(json.dumps(_finite(result.to_dict()), indent=2))
    else:
        _print(result)
        if html is not None:
            out.print(f"[dim]wrote {html}[/]")
    raise typer.Exit(0 if result.agrees else 1)


def _print(result: Comparison) -> None:
    table = Table(box=None, padding=(0, 1, 0, 0), header_style="bold")  # fits 80 columns
    for heading in ("backend", "loss", "dtype", "mode"):
        table.add_column(heading, no_wrap=True)
    for heading in ("value", "gradient", "limit", "own value", "gradient"):
        table.add_column(heading, justify="right", no_wrap=True)
    previous: tuple[str, str] | None = None
    for row in result.rows:
        if previous and row.backend != previous[0]:
            table.add_section()
        same = previous == (row.backend, row.loss)
        table.add_row("" if same else row.backend, "" if same else row.loss, row.dtype, row.mode, *_cells(row))
        previous = (row.backend, row.loss)
    out.print(table)
    out.print(
        "\n[dim]value, gradient  xent's worst relative error against float64 truth"
        "\nlimit            the worse of them as a share of what the dtype allows"
        "\nown              the same errors of the framework's own loss, named below:"
        "\n                 1 is no digit right, wrong is NaN, infinity or an error[/]"
    )
    for backend in dict.fromkeys(row.backend for row in result.rows):
        names = dict.fromkeys(row.native for row in result.rows if row.backend == backend and row.native)
        for name in names:
            out.print(f"[dim]own: {backend:12}{name}[/]", highlight=False)
    _print_pairs(result)
    for row in result.rows:
        if row.problem:
            out.print(f"[red]{row.backend} {row.loss} {row.dtype} {row.mode}[/]: {row.problem}", highlight=False)
    for reason in result.skipped:
        out.print(f"[dim]skipped {reason}[/]", highlight=False)
    out.print(result.summary(), style="green" if result.agrees else "bold red", highlight=False)


def _cells(row: Row) -> Iterable[str]:
    if row.problem:
        return ("[red]raised[/]", "", "")
    limit = f"{row.share:.0%}"
    return (
        figure(row.value),
        figure(row.gradient),
        f"[green]{limit}[/]" if row.agrees else f"[bold red]{limit}[/]",
        _against(row.native_value, row.value),
        _against(row.native_gradient, row.gradient),
    )


def _against(theirs: float, ours: float) -> str:
    """Their figure, marked where it is more than ten times ours."""
    return f"[yellow]{figure(theirs)}[/]" if theirs > 10 * max(ours, 1e-16) else figure(theirs)


def _print_pairs(result: Comparison) -> None:
    """The largest difference between any two backends, a line a dtype."""
    if not result.pairs:
        return
    out.print("\n[bold]largest difference between two backends[/] [dim](relative)[/]")
    for dtype in dict.fromkeys(pair.dtype for pair in result.pairs):
        pairs = [pair for pair in result.pairs if pair.dtype == dtype]
        value, gradient = max(pairs, key=lambda p: p.value), max(pairs, key=lambda p: p.gradient)
        for what, size, pair in (("value", value.value, value), ("gradient", gradient.gradient, gradient)):
            where = f"[dim]{' - '.join(pair.backends)}, {pair.loss}[/]"
            out.print(f"{dtype:9} {what:9}{figure(size):>6}  {where}", highlight=False)
    out.print()


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
    except Exception as error:  # whatever a reader makes of a file that is not one
        raise ValueError(f"{path}: not a readable {path.suffix} file ({type(error).__name__})") from None
    if name not in arrays and len(arrays) != 1:
        raise ValueError(f"{path}: expected one array or one named {name!r}, found {', '.join(arrays) or 'none'}")
    return arrays.get(name, next(iter(arrays.values())))


def _arrays(path: Path, name: str) -> dict[str, Any]:
    if path.suffix == ".npy":
        return {name: np.load(path, allow_pickle=False)}
    if path.suffix == ".npz":
        with np.load(path, allow_pickle=False) as archive:
            return {member: archive[member] for member in archive.files}
    from safetensors.numpy import load_file

    return dict(load_file(path))


def _finite(value: Any) -> Any:
    """JSON has no NaN and no infinity."""
    if isinstance(value, dict):
        return {k: _finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(v) for v in value]
    return None if isinstance(value, float) and value != value else str(value) if value in (np.inf, -np.inf) else value


def _version(show: bool) -> None:
    if show:
        print(f"xent {xent.__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Say which.")] = False,
) -> None:
    pass
