"""`xent.bench`: which cases, in what order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
from xent import _check, _live

from . import machine
from .driver import Driver, Progress, Settings
from .result import Result
from .rounds import FEW
from .workloads import QUICK, SWEEPS, WIDTH, WORKLOADS, Workload
from .workloads import sweep as variants

MODES = ("eager", "compiled")
SAMPLE = 0.02  # seconds: shorter calls are repeated until a sample takes so long


def bench(
    workloads: Sequence[str] | None = None,
    *,
    backends: Sequence[str] | None = None,
    dtypes: Sequence[str] | None = None,
    modes: Sequence[str] | None = None,
    device: str = "cpu",
    rivals: bool = True,
    threads: int | None = None,
    rounds: int | None = None,
    quick: bool = False,
    sweep: str | None = None,
    save: Path | str | None = None,
    progress: Progress | None = None,
) -> Result:
    """Times xent against every framework's own best loss on the hardware here, forward and with the gradient.

    Each framework runs in a process of its own, and all contenders take turns, round by round, so that any two of
    them can be compared by paired ratios (of a large workload on a CPU, any two of one backend). Before it is timed,
    each one's loss and gradient are checked against float64.

    Args:
        workloads: names from `xent.benchmarks.workloads.WORKLOADS`, or one (here as below), such as "lm"; all if not
            given, but on a CPU without those of which a call may take half a minute: "lm-large" in float16, "linear" in
            bfloat16, "linear-large".
        backends: "numpy", "torch", "tensorflow", "jax"; all that are installed if not given.
        dtypes: "float32", "float64", "float16", "bfloat16"; each workload's own if not given.
        modes: "eager", "compiled" (torch.compile, tf.function with XLA and without, jax.jit); both if not given.
        device: "cpu", "cuda", "gpu", or a framework's own name for one, such as "cuda:1".
        rivals: whether the frameworks' own losses, Keras, SciPy and others are timed, too.
        threads: processors that each framework may use; all if not given.
        rounds: how often each contender has its turn; if not given, 7 times, and then, for up to 50 s a workload,
            while on its backend a ratio to xent is of fewer than 12 rounds or has a standard error of more than 2 %, at
            most 99 times; where the logits are few in each of five generations of processes, 4 times and after that a
            fifth as long, or as 5 times the variance allows; 7 times for `quick` and `sweep`. Contenders
            that take longer than 0.25 s a call are in every other one of the first rounds only. If not given, a CPU's
            samples are taken while its memory is as fast as usual, which may take as long again.
        quick: two small workloads and shorter samples, in about a minute.
        sweep: "classes", "rows" or "threads": how the cost grows with it, on "lm" if no workload is given.
        save: where to write the result as JSON, anew after each workload.
        progress: called as (what is being done, how much is done, of how much).

    Returns:
        A `Result`: the machine, every sample, errors, memory, and `ratio()` of any two contenders. After Ctrl-C, with
        `interrupted` set, what was finished.

    Raises:
        ValueError: an unknown name, a count out of range, a device that no framework has, psutil missing.

    Example:
        >>> import xent
        >>> found = xent.bench("tiny", backends="numpy", rivals=False, rounds=2)
        >>> [series.label for series in found.cases[0].series]
        ['xent, numpy eager', 'xent, numpy eager']
    """
    usual = ["lm"] if sweep else QUICK if quick else WORKLOADS
    names = _check.chosen("workload", workloads, [*WORKLOADS]) or list(usual)
    dtypes = _check.chosen("dtype", dtypes, [*WIDTH])
    chosen = _check.chosen("backend", backends, [*_live.KNOWN]) or list(_live.KNOWN)
    if sweep is not None:
        _check.choice("sweep", sweep, SWEEPS)
    here = [name for name in chosen if name in _live.available()]
    absent = [f"{name}: not installed (pip install {name})" for name in chosen if name not in here]
    settings = Settings(
        tuple(here),
        tuple(_check.chosen("mode", modes, MODES) or MODES),
        device,
        rivals,
        _count("threads", threads, machine.cores(), machine.cores()),
        _rounds(rounds, quick or sweep is not None),
        SAMPLE / 4 if quick else SAMPLE,
        sweep,
        int(np.random.default_rng().integers(2**31)),
    )
    plain = {name: list(v) if isinstance(v, tuple) else v for name, v in asdict(settings).items()}
    run = Driver(settings, Result(machine.machine(), plain, absent=absent), save, progress)
    try:
        if sweep == "threads":
            _sweep_threads(run, [WORKLOADS[name] for name in names], dtypes)
        else:
            cases: list[tuple[int | None, Workload]] = [(None, WORKLOADS[name]) for name in names]
            if sweep:
                cases = [variant for _, base in cases for variant in variants(base, sweep)]
            every = bool(workloads) or device != "cpu"
            run.all([(value, w, dtype) for value, w in cases for dtype in _dtypes(w, dtypes, sweep, every)])
    except KeyboardInterrupt:
        run.result.interrupted = True
        run.save()
    finally:
        run.end()
    if not run.result.cases and not run.result.interrupted:
        raise ValueError(f"nothing was timed: {'; '.join(run.result.absent)}")
    return run.result


def _count(argument: str, given: int | None, default: int, most: int) -> int:
    if given is None:
        return default
    if not 1 <= given <= most:
        raise ValueError(f"{argument}: expected 1 to {most}, got {given}")
    return given


def _rounds(given: int | None, brief: bool) -> int | None:
    return None if given is None and not brief else _count("rounds", given, FEW, 10_000)


def _dtypes(workload: Workload, given: Sequence[str], sweep: str | None, every: bool = True) -> list[str]:
    """Those given, or the workload's own; not `every`: without those that take a CPU minutes."""
    chosen = given or (workload.dtypes[:1] if sweep else workload.dtypes)
    return [dtype for dtype in chosen if every or dtype in workload.usual]


def _sweep_threads(run: Driver, workloads: list[Workload], dtypes: list[str]) -> None:
    """Fresh processes for each count: frameworks size their pools once."""
    counts = [2**i for i in range(16) if 2**i < machine.cores()] + [machine.cores()]
    for threads in counts:
        run.end()
        run.settings = replace(run.settings, threads=threads)
        run.all([(threads, w, dtype) for w in workloads for dtype in _dtypes(w, dtypes, "threads")], len(counts))
