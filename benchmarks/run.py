"""`xent.bench`: chooses the cases, estimates their time, and runs the frameworks' processes one after the other."""

from __future__ import annotations

import contextlib
import math
import os
import pickle
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import IO, Any

from xent import _check
from xent.benchmarks import machine
from xent.benchmarks.process import SAMPLE, Job
from xent.benchmarks.result import ENOUGH, Case, Result
from xent.benchmarks.workloads import PASSES, QUICK, SWEEPS, WIDTH, WORKLOADS
from xent.benchmarks.workloads import sweep as variants
from xent.verify import frameworks

MODES = ("eager", "graph", "compiled")
MANY, SECONDS = 25, 4.0  # without `rounds`: the most rounds, and after how many seconds no more begin
# About how many seconds on two cores a framework takes to start, and to compile and check a case's contenders.
ABOUT = {"numpy": (1, 2), "torch": (10, 15), "tensorflow": (12, 5), "jax": (6, 4)}
BYTES, OPERATIONS = 5e9, 5e10  # about how many a core moves and computes in a second
# Without the current folder on the path, where a file may have the name of a module.
START = "import sys; sys.path.pop(0); from xent.benchmarks.process import main; main()"


def bench(
    workloads: Sequence[str] | None = None,
    *,
    backends: Sequence[str] | None = None,
    dtypes: Sequence[str] | None = None,
    modes: Sequence[str] | None = None,
    passes: Sequence[str] | None = None,
    device: str = "cpu",
    rivals: bool = True,
    contenders: Sequence[str] | None = None,
    threads: int | None = None,
    rounds: int | None = None,
    quick: bool = False,
    sweep: str | None = None,
    save: Path | str | None = None,
    progress: Callable[[str, int, int], None] = lambda what, done, of: None,
    announce: Callable[[str], None] = lambda text: None,
) -> Result:
    """Times xent against every framework's own best loss on the hardware here.

    Each framework runs in a process of its own, one after the other. Before a contender is timed its loss and gradient
    are checked against float64; one that is wrong is not timed. All contenders of a framework take turns, round by
    round, and are compared by the ratios of their times in the same round.

    Args:
        workloads: names from `xent.benchmarks.workloads.WORKLOADS`, or one (here as below), such as "lm"; if not given
            those that end within ten minutes on two cores.
        backends: "numpy", "torch", "tensorflow", "jax"; all that are installed if not given.
        dtypes: "float32", "float64", "float16", "bfloat16"; each workload's own if not given.
        modes: "eager", "graph" (tf.function), "compiled" (torch.compile, XLA, jax.jit); all if not given.
        passes: "both" (the loss and its gradient), "forward" (the loss alone); "both" if not given.
        device: "cpu", "cuda", "gpu", or a framework's own name for one, such as "cuda:1".
        rivals: whether the frameworks' own losses and Keras's are timed, too.
        contenders: your own losses of (logits, labels), "package.module:function", timed among the rivals. Workloads
            whose classes are not last or that have no logits leave them out, and `absent` says so.
        threads: processors that each framework may use; all if not given.
        rounds: how often each contender has its turn; if not given 5 times, and up to 25 within some seconds.
        quick: two small workloads, without torch.compile, within a minute.
        sweep: "classes", "rows" or "threads": how the cost grows with it, on "lm" if no workload is given.
        save: where to write the result as JSON, anew after each case.
        progress: called as (what is being done, how much is done, of how much).
        announce: called before anything is started, with about how long it will take.

    Returns:
        A `Result`: the machine; medians, quartiles, errors and memory of each contender; `failures`, what of xent
        failed or was wrong. After Ctrl-C, with `interrupted` set, what was finished.

    Raises:
        ValueError: an unknown name, a count out of range, a device that no framework has, psutil missing.

    Example:
        >>> import xent
        >>> found = xent.bench("tiny", backends="numpy", rivals=False, rounds=2)
        >>> [series.label for series in found.cases[0].series]
        ['xent, numpy eager']
    """
    chosen = _check.chosen("backend", backends, frameworks.KNOWN) or frameworks.KNOWN
    here = [name for name in chosen if name in frameworks.available()]
    _check.chosen("sweep", sweep, SWEEPS)
    threads = _count("threads", threads, machine.cores()) or machine.cores()
    at_most = _count("rounds", rounds, 10_000) or (ENOUGH if quick else MANY)
    modes = _check.chosen("mode", modes, MODES)
    passes = sorted(_check.chosen("pass", passes, [*PASSES]) or ["both"], key=[*PASSES].index)
    names, dtypes = _check.chosen("workload", workloads, [*WORKLOADS]), _check.chosen("dtype", dtypes, [*WIDTH])
    cases = list(_cases(names, dtypes, threads, quick, sweep))
    result = Result(machine.machine(), {"device": device, "threads": threads, "sweep": sweep, "quick": quick})
    result.absent += [f"{name}: not installed (pip install {name})" for name in chosen if name not in here]
    free = machine.memory("available")
    result.absent += [
        f"{case.title}: needs {case.memory / 1e9:.1f} GB of memory, {free / 1e9:.1f} are free"
        for case in cases
        if case.memory > free
    ]
    fitting = [case for case in cases if case.memory <= free]
    jobs = [
        Job(
            backend=backend,
            device=device,
            threads=count,
            modes=tuple(modes or (("eager",) if quick and backend == "torch" else MODES)),
            passes=tuple(passes),
            rivals=rivals,
            contenders=tuple(_check.names(contenders)),
            rounds=at_most,
            seconds=math.inf if rounds else SECONDS,
            cases=list(group),
        )
        for backend in here
        for count, group in groupby((case for case in fitting if case.runs_on(backend)), key=lambda case: case.threads)
    ]
    announce(f"about {max(1, round(sum(map(estimate, jobs)) / 60))} min")
    done, of = 0, sum(len(job.cases) for job in jobs)
    try:
        for job in jobs:
            progress(f"starting {job.backend}", done, of)
            for case, kind, *said in messages(job):
                if kind == "doing":
                    progress(f"{job.backend}, {case.title}: {said[0]}", done, of)
                done += kind in ("broken", "done")
                _note(result, job, case, kind, *said)
                if save is not None and kind == "done":
                    result.save(save)
    except KeyboardInterrupt:
        result.interrupted = True
    if save is not None and result.cases:
        result.save(save)
    if not (result.cases or result.interrupted):
        reasons = "; ".join([*result.broken, *result.absent]) or "no contender has such a mode"
        raise ValueError(f"nothing was timed: {reasons}")
    return result


def _note(result: Result, job: Job, case: Case, kind: str, *said: Any) -> None:
    """Puts a process's message into the result."""
    if kind == "version":
        name, number = said
        result.machine["versions"][name] = number
    elif kind == "absent":
        result.absent += [reason for reason in said if reason not in result.absent]
    elif kind == "broken":
        result.broken.append(f"{job.backend}{f', {case.title}' if case else ''}: {said[0]}")
    elif kind == "done":
        series, bandwidth = said
        if series and not case.series:
            result.cases.append(case)
        case.series += series
        case.bandwidth |= {job.backend: bandwidth} if bandwidth else {}


def _count(argument: str, given: int | None, most: int) -> int | None:
    if given is not None and not 1 <= given <= most:
        raise ValueError(f"{argument}: expected 1 to {most}, got {given}")
    return given


def _cases(names: Sequence[str], dtypes: Sequence[str], threads: int, quick: bool, sweep: str | None) -> Iterator[Case]:
    usual = ["lm"] if sweep else QUICK if quick else [w.name for w in WORKLOADS.values() if w.by_default]
    for workload in (WORKLOADS[name] for name in names or usual):
        for dtype in dtypes or (workload.dtypes[:1] if sweep else workload.dtypes):
            if sweep is None:
                yield Case(workload, dtype, threads)
            elif sweep == "threads":
                counts = [2**i for i in range(16) if 2**i < threads]
                yield from (Case(workload, dtype, count, count) for count in (*counts, threads))
            else:
                yield from (Case(variant, dtype, threads, value) for value, variant in variants(workload, sweep))


def estimate(job: Job) -> float:
    """About how many seconds the job takes on two cores."""
    start, prepare = ABOUT[job.backend] if "compiled" in job.modes else (ABOUT[job.backend][0], 2)
    total = float(start)
    for case in job.cases:
        moved, computed = 2 * case.workload.read(case.dtype), case.workload.operations("both")
        call = max(SAMPLE, (moved / BYTES + computed / OPERATIONS) / case.threads)
        turns = call * len(job.passes) * (4 if job.rivals else 2)
        total += prepare * len(job.passes) + 5 * turns
        total += max(turns * min(job.rounds, ENOUGH), min(turns * job.rounds, job.seconds))
    return total


# ---- the processes


def messages(job: Job) -> Iterator[tuple[Any, ...]]:
    """The messages of a process about its job: the case that it is working on, the kind of message, and its content.

    If the process dies, another one goes on after that case.
    """
    case, left = None, iter(job.cases)
    with tempfile.TemporaryFile("w+") as errors:
        process = _start(job, errors)
        try:
            with contextlib.suppress(EOFError, pickle.UnpicklingError):  # the process has ended
                while process.stdout is not None:
                    kind, *said = pickle.load(process.stdout)
                    case = next(left) if kind == "case" else case
                    yield case, kind, *said
            status = process.wait()
        finally:
            _kill(process)
            process.communicate()
        errors.seek(0)
        last = (errors.read().strip().splitlines() or [f"status {status}"])[-1]
    if status:
        yield case, "broken", f"the process died: {last}"
    others = [*left]
    if status and case and others:
        yield from messages(replace(job, cases=others))


def _start(job: Job, errors: IO[str]) -> subprocess.Popen[bytes]:
    process = subprocess.Popen(
        [sys.executable, "-c", START],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=errors,
        env=environment(job.backend, job.device, job.threads),
        start_new_session=True,  # Ctrl-C reaches only this process, which ends the other one
    )
    assert process.stdin is not None
    pickle.dump(job, process.stdin)
    process.stdin.flush()
    return process


def _kill(process: subprocess.Popen[bytes]) -> None:
    """With the processes that it has started."""
    with contextlib.suppress(AttributeError, ProcessLookupError):  # on Windows; or all have ended
        os.killpg(process.pid, signal.SIGKILL)
    process.kill()


def environment(backend: str, device: str, threads: int) -> dict[str, str]:
    """Environment variables for a framework's process: its threads, and not to reserve a GPU's whole memory.

    Settings of the memory allocator stay as they are.
    """
    hidden = {"CUDA_VISIBLE_DEVICES": ""}  # else some frameworks would use a GPU anyway
    return {
        **os.environ,
        **(hidden if device == "cpu" else {}),
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
        "KERAS_BACKEND": backend,
        **dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "XENT_NUM_THREADS"), str(threads)),
        "TF_CPP_MIN_LOG_LEVEL": "3",
        "TF_FORCE_GPU_ALLOW_GROWTH": "true",
        "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
    }
