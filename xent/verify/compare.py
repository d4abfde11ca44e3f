"""`xent compare`: check every installed framework against float64, and beside its own losses."""

from __future__ import annotations

import itertools
import json
import os
import pickle
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import xent
from xent import _check, _dispatch
from xent.verify import comparison, frameworks, regimes, worker
from xent.verify.comparison import Comparison
from xent.verify.precision import DTYPES, PRECISION, rounded
from xent.verify.regimes import Batch
from xent.verify.task import Answer, Contender, Function, Outcome, Task

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
    contenders: Mapping[str, Function | str] | None = None,
    options: Mapping[str, float] | None = None,
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
        contenders: your own losses by name, functions of (logits, labels) that return the mean, or one loss a row (of
            "sigmoid_ce" one an element); or "package.module:function", which is imported in a process of its own. They
            are judged by what xent is judged by, in value and in the gradient that the framework derives; on NumPy
            in the gradient where they return (loss, gradient). Needs `backends`, and one of `losses`.
        options: what the contenders compute besides: "label_smoothing", "z_loss" or "ignore_index" of `losses`.
        progress: called as (what, done, of) after each step.

    Returns:
        A `Comparison`: worst relative errors in value and gradient for xent and for the framework's own loss, and the
        differences between backends. It is true if all are within what the dtype allows.

    Raises:
        ValueError: an unknown name, a device that no backend has, arrays that do not fit together, contenders without
            their backend or loss.

    Example:
        >>> import xent
        >>> xent.compare("numpy", losses=["sparse_ce", "softmax_ce"], dtypes="float32").agrees
        True
    """
    rivals = [Contender(name, function) for name, function in (contenders or {}).items()]
    losses = _check.chosen("loss", losses, regimes.LOSSES)
    dtypes = _check.chosen("dtype", dtypes, DTYPES)
    modes = _check.chosen("mode", modes, MODES) or list(MODES)
    if (logits is None) != (labels is None):
        given, other = ("labels", "logits") if logits is None else ("logits", "labels")
        raise ValueError(f"{other}: expected beside {given}, got None")
    _check_contenders(rivals, _check.names(backends), losses)
    asked = _options(options or {}, losses)
    batches = (
        _batches(losses, dtypes, asked)
        if logits is None
        else _own(
            logits, labels, losses, dtypes, asked if ignore_index is None else asked | {"ignore_index": ignore_index}
        )
    )
    names, skipped = _installed(backends)
    tasks, versions = [], {}
    for name, known in facts(names).items():
        versions[name] = known["version"]
        found, reasons = _tasks(name, known, modes, device, batches)
        tasks += found
        tasks += [task._replace(contender=rival) for rival in rivals for task in found]
        skipped += reasons
    if not tasks:
        raise ValueError(f"nothing to compare: {'; '.join(skipped) or 'no framework is installed'}")
    with ThreadPoolExecutor(1) as pool:  # the oracle works meanwhile
        running = pool.submit(_run, tasks, progress)
        truths = {key: batch.truth() for key, batch in {id(task.batch): task.batch for task in tasks}.items()}
        answers = running.result()
    rows = comparison.rows(tasks, answers, truths)
    return Comparison(rows, comparison.pairs(tasks, answers, truths), skipped, versions)


def _check_contenders(contenders: list[Contender], backends: list[str], losses: list[str]) -> None:
    """A function knows its own framework's arrays, and one kind of labels."""
    for name, function in contenders:
        if not isinstance(name, str) or not name:
            raise ValueError(f"contenders: expected names, got {name!r}")
        if not callable(function) and (not isinstance(function, str) or not all(function.partition(":")[::2])):
            raise ValueError(f"contender {name!r}: expected a function or 'package.module:function', got {function!r}")
    if contenders and not backends:
        raise ValueError("backends: expected the contenders' framework, got None")
    if contenders and len(losses) != 1:
        got = ", ".join(losses) or None
        raise ValueError(
            f"losses: expected the one that the contenders compute, of {', '.join(regimes.LOSSES)}, got {got}"
        )


OPTIONS: dict[str, tuple[str, ...]] = {
    "sparse_ce": ("label_smoothing", "z_loss", "ignore_index"),
    "softmax_ce": ("label_smoothing", "z_loss"),
    "sigmoid_ce": ("label_smoothing",),
}


def _options(options: Mapping[str, float], losses: list[str]) -> dict[str, Any]:
    """Those that every one of the losses has, checked by the losses themselves."""
    for loss in losses or regimes.LOSSES if options else ():
        for name in options:
            if name not in OPTIONS[loss]:
                raise ValueError(f"option {name!r}: expected one that {loss} has, of {', '.join(OPTIONS[loss])}")
        getattr(xent, loss)(np.zeros((1, 2)), [0] if loss == "sparse_ce" else [[0.0, 1.0]], **options)
    return dict(options)


def _batches(losses: list[str], dtypes: list[str], options: dict[str, Any]) -> list[tuple[str, Batch]]:
    """Each with the mode it is for."""
    combinations = itertools.product(losses or regimes.LOSSES, dtypes or DTYPES)
    made: dict[tuple[str, str, int], Batch] = {}
    found = []
    for (loss, dtype), mode in itertools.product(combinations, MODES):
        wide = loss == "sparse_ce" and PRECISION[dtype].compute == dtype
        for classes in (*CLASSES[mode], WIDE) if wide else CLASSES[mode]:
            key = (loss, dtype, classes)
            made[key] = made.get(key) or replace(
                regimes.batch(*key, every=3 if classes == WIDE else 1), options=options
            )
            found.append((mode, made[key]))
    return found


def _own(
    logits: Any, labels: Any, losses: list[str], dtypes: list[str], options: dict[str, Any]
) -> list[tuple[str, Batch]]:
    """The caller's arrays, flattened to rows."""
    given, x = _values(logits, "logits")
    y = _values(labels, "labels")[1]
    hard = y.ndim == x.ndim - 1
    found = []
    for loss in losses or ["sparse_ce" if hard else "softmax_ce"]:
        own_options = {name: value for name, value in options.items() if name in OPTIONS[loss]}
        ids = {"invalid": "raise"} if loss == "sparse_ce" else {}
        getattr(xent, loss)(logits, labels, **own_options, **ids)  # as they came: the checks and sentences of any call
        for dtype in dtypes or [given]:
            own = rounded(_rows_of(x), dtype)
            _check_range(_rows_of(x), own, dtype)
            shaped = y.reshape(-1) if hard else y.reshape(own.shape)
            shaped = shaped if hard else rounded(shaped.astype(np.float64), PRECISION[dtype].compute)
            batch = Batch(loss, dtype, own, shaped, ("yours",) * len(own), own_options)
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

    def answered(mine: list[Task]) -> list[Answer]:
        """By a process of its own: some frameworks cannot share one, and a contender may end its own."""
        who = mine[0].contender
        with tempfile.TemporaryDirectory() as folder:
            job = Path(folder) / "job"
            job.write_bytes(pickle.dumps(mine))
            code = f"from xent.verify import worker; worker.main({str(job)!r})"
            label = f"{mine[0].backend} {who.name}" if who else mine[0].backend
            try:
                _python(["-c", code], lambda line: report(f"{label} {line}"))
            except RuntimeError as error:
                if who is None:
                    raise
                lost = Answer(Outcome(problem=f"its process ended: {str(error).splitlines()[-1]}"))
                return [lost] * len(mine)
            return [pickle.loads(Path(f"{job}.{i}").read_bytes()) for i in range(len(mine))]

    def here(task: Task) -> Answer:
        """A function cannot be sent to another process, unless by name."""
        found = worker.answer(frameworks.load(task.backend), task)
        report(f"{task.backend} {task.contender.name if task.contender else ''} {task.mode} {task.batch.name}")
        return found

    groups: dict[tuple[str, str], list[Task]] = {}
    for task in tasks:
        groups.setdefault((task.backend, task.contender.name if task.contender else ""), []).append(task)
    sent = {key: mine for key, mine in groups.items() if mine[0].contender is None or _is_name(mine[0].contender)}
    found = dict(zip(sent, _each(answered, list(sent.values())), strict=True))
    return [answer for key, mine in groups.items() for answer in found.get(key) or map(here, mine)]


def _is_name(contender: Contender) -> bool:
    return isinstance(contender.function, str)


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
            said = errors.read()[-2000:].strip() or f"status {process.returncode}"
            raise RuntimeError(f"{arguments[-1]} failed:\n{said}")
    return "".join(lines)
