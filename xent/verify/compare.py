"""`xent compare`: check every installed framework against float64, and beside its own losses."""

from __future__ import annotations

import itertools
import json
import os
import pickle
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import xent
from xent import _check, _dispatch
from xent.verify import comparison, frameworks, regimes
from xent.verify.comparison import Comparison
from xent.verify.precision import DTYPES, PRECISION, rounded
from xent.verify.regimes import Batch
from xent.verify.worker import Answer, Task

MODES = ("eager", "compiled")
CLASSES = {"eager": regimes.CLASSES[:5], "compiled": (1000,)}  # compiling takes seconds for each shape
WIDE = regimes.CLASSES[5]  # only for ids in float32 and float64, since the oracle takes seconds, too
Progress = Callable[[str, int, int], None]  # (what was done, steps done, steps in all)


def compare(
    backends: Sequence[str] | None = None,
    *,
    losses: Sequence[str] | None = None,
    dtypes: Sequence[str] | None = None,
    modes: Sequence[str] = MODES,
    device: str = "cpu",
    logits: Any = None,
    labels: Any = None,
    ignore_index: int | None = None,
    progress: Progress | None = None,
) -> Comparison:
    """Runs every installed framework, each in a process of its own, against the truth in float64.

    Args:
        backends: names such as "torch", or one (here as below); all that are installed if not given.
        losses: "sparse_ce", "softmax_ce", "sigmoid_ce"; all, or with your own arrays the one that fits the labels.
        dtypes: "float32", "float64", "float16", "bfloat16"; all, or with your own arrays the logits' own.
        modes: "eager", "compiled" (torch.compile, tf.function with XLA, jax.jit); both.
        device: "cpu", "cuda:0" (PyTorch), "gpu:0" (TensorFlow, JAX).
        logits: your own array instead of xent's regimes, classes last: float [..., C].
        labels: beside your own logits: class ids [...], or distributions like the logits.
        ignore_index: a class id that marks your own labels to be left out.
        progress: called as (what, done, of) after each step.

    Returns:
        A `Comparison`: worst relative errors in value and gradient for xent and for the framework's own loss, and the
        differences between backends. It is true if all are within what the dtype allows.

    Raises:
        ValueError: an unknown name, a device that no backend has, arrays that do not fit together.

    Example:
        >>> import xent
        >>> xent.compare("numpy", losses=["sparse_ce", "softmax_ce"], dtypes="float32").agrees
        True
    """
    losses = _check.chosen("loss", losses, regimes.LOSSES)
    dtypes = _check.chosen("dtype", dtypes, DTYPES)
    modes = _check.chosen("mode", modes, MODES) or list(MODES)
    if (logits is None) != (labels is None):
        given, other = ("labels", "logits") if logits is None else ("logits", "labels")
        raise ValueError(f"{other}: expected beside {given}, got None")
    batches = _batches(losses, dtypes) if logits is None else _own(logits, labels, losses, dtypes, ignore_index)
    names, skipped = _installed(backends)
    tasks, versions = [], {}
    for name, known in facts(names).items():
        versions[name] = known["version"]
        found, reasons = _tasks(name, known, modes, device, batches)
        tasks += found
        skipped += reasons
    if not tasks:
        raise ValueError(f"nothing to compare: {'; '.join(skipped) or 'no framework is installed'}")
    with ThreadPoolExecutor(1) as pool:  # the oracle works meanwhile
        running = pool.submit(_run, tasks, progress)
        truths = {key: batch.truth() for key, batch in {id(task.batch): task.batch for task in tasks}.items()}
        answers = running.result()
    rows = comparison.rows(tasks, answers, truths)
    return Comparison(rows, comparison.pairs(tasks, answers, truths), skipped, versions)


def _batches(losses: list[str], dtypes: list[str]) -> list[tuple[str, Batch]]:
    """Each with the mode it is for."""
    combinations = itertools.product(losses or regimes.LOSSES, dtypes or DTYPES)
    made: dict[tuple[str, str, int], Batch] = {}
    found = []
    for (loss, dtype), mode in itertools.product(combinations, MODES):
        wide = loss == "sparse_ce" and PRECISION[dtype].compute == dtype
        for classes in (*CLASSES[mode], WIDE) if wide else CLASSES[mode]:
            key = (loss, dtype, classes)
            made[key] = made.get(key) or regimes.batch(*key, every=3 if classes == WIDE else 1)
            found.append((mode, made[key]))
    return found


def _own(
    logits: Any, labels: Any, losses: list[str], dtypes: list[str], ignore_index: int | None
) -> list[tuple[str, Batch]]:
    """The caller's arrays, flattened to rows."""
    given, x = _values(logits, "logits")
    y = _values(labels, "labels")[1]
    hard = y.ndim == x.ndim - 1
    options = {} if ignore_index is None else {"ignore_index": ignore_index}
    found = []
    for loss in losses or ["sparse_ce" if hard else "softmax_ce"]:
        ids = {**options, "invalid": "raise"} if loss == "sparse_ce" else {}
        getattr(xent, loss)(logits, labels, **ids)  # as they came: the checks and sentences of any call
        for dtype in dtypes or [given]:
            own = rounded(_rows_of(x), dtype)
            _check_range(_rows_of(x), own, dtype)
            shaped = y.reshape(-1) if hard else y.reshape(own.shape)
            shaped = shaped if hard else rounded(shaped.astype(np.float64), PRECISION[dtype].compute)
            batch = Batch(loss, dtype, own, shaped, ("yours",) * len(own), options if loss == "sparse_ce" else {})
            found += [(mode, batch) for mode in MODES]
    return found


def _values(x: Any, argument: str) -> tuple[str, Any]:
    """The dtype's name, and the values as NumPy has them, floating ones as float64."""
    adapter = _dispatch.find(x, argument)
    x = np.asarray(x) if adapter.name == "numpy" else x
    return adapter.ops.dtype(x), frameworks.load(adapter.name).numpy(x)


def _rows_of(x: Any) -> Any:
    if not x.size:
        raise ValueError(f"logits: expected at least one row to compare, got shape {x.shape}")
    return x.reshape(-1, x.shape[-1])


def _check_range(x: Any, as_dtype: Any, dtype: str) -> None:
    """Raises where logits overflow in this dtype: NaN in every result would count as agreement."""
    lost = int((np.isfinite(x) & ~np.isfinite(as_dtype)).sum())
    if lost:
        raise ValueError(f"logits: {lost} of {x.size} values are beyond {dtype}'s largest number")


def _installed(backends: Sequence[str] | None) -> tuple[list[str], list[str]]:
    installed = list(frameworks.available())
    known = [*dict.fromkeys([*frameworks.KNOWN, *installed])]
    wanted = _check.names(backends) or known
    for name in wanted:
        if name not in known:
            raise _check.no_backend(name, known)
    return [n for n in wanted if n in installed], [f"{n}: not installed" for n in wanted if n not in installed]


def facts(names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Each framework's version, devices, dtypes and modes, asked in a process of its own."""
    return dict(zip(names, _each(_facts, names), strict=True))


def _facts(name: str) -> dict[str, Any]:
    code = f"import json; from xent.verify import worker; print(json.dumps(worker.facts({name!r})))"
    try:
        return json.loads(_python(["-c", code]).splitlines()[-1])  # type: ignore[no-any-return]
    except RuntimeError as error:  # installed, but it does not import
        return {"version": "?", "devices": [], "dtypes": [], "modes": {}, "problem": str(error).splitlines()[-1]}


def _tasks(
    name: str, known: dict[str, Any], modes: Iterable[str], device: str, batches: list[tuple[str, Batch]]
) -> tuple[list[Task], list[str]]:
    if "problem" in known:
        return [], [f"{name}: {known['problem']}"]
    if device not in known["devices"]:
        return [], [f"{name}: no device {device!r}, only {', '.join(known['devices'])}"]
    why = {
        mode: known["modes"].get(mode) for mode in modes
    }  # "" where it runs, None where the framework has no such mode
    absent = sorted({batch.dtype for _, batch in batches} - set(known["dtypes"]))
    skipped = [f"{name} {mode}: {reason}" for mode, reason in why.items() if reason]
    skipped += [f"{name} {dtype}: needs ml_dtypes" for dtype in absent]
    tasks = [
        Task(name, mode, device, batch)
        for mode, batch in batches
        if why.get(mode) == "" and batch.dtype in known["dtypes"]
    ]
    return tasks, skipped


def _each(function: Callable[[Any], Any], items: Sequence[Any]) -> list[Any]:
    """Side by side, as many as there are processors."""
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        return list(pool.map(function, items))


def _run(tasks: list[Task], progress: Progress | None) -> list[Answer]:
    done = itertools.count(1)

    def report(what: str) -> None:
        if progress:
            progress(what, next(done), len(tasks))

    def backend(name: str) -> list[Answer]:
        with tempfile.TemporaryDirectory() as folder:
            job, mine = Path(folder) / "job", [task for task in tasks if task.backend == name]
            job.write_bytes(pickle.dumps(mine))
            code = f"from xent.verify import worker; worker.main({str(job)!r})"
            _python(["-c", code], lambda line: report(f"{name} {line}"))
            return [pickle.loads(Path(f"{job}.{i}").read_bytes()) for i in range(len(mine))]

    names = list(dict.fromkeys(task.backend for task in tasks))
    return [answer for answers in _each(backend, names) for answer in answers]


def _python(arguments: list[str], on_line: Callable[[str], None] | None = None) -> str:
    """What this interpreter prints when run anew, with the modules that are importable here."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "TF_CPP_MIN_LOG_LEVEL": "3"}
    lines = []
    with tempfile.TemporaryFile("w+") as errors:
        command = [sys.executable, *arguments]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True, env=environment) as process:
            for line in process.stdout or ():
                lines.append(line)
                if on_line and line.startswith("done "):
                    on_line(line.removeprefix("done ").strip())
        if process.returncode:
            errors.seek(0)
            raise RuntimeError(f"{arguments[-1]} failed:\n{errors.read()[-2000:]}")
    return "".join(lines)
