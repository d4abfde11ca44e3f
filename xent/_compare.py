"""`xent compare`: check every installed framework against float64, and beside its own losses."""

from __future__ import annotations

import itertools
import json
import math
import os
import pickle
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import xent
from xent import _check, _dispatch, _live, _regimes, oracle
from xent._regimes import Batch
from xent._worker import Answer, Outcome, Task

MODES = ("eager", "compiled")
CLASSES = {"eager": _regimes.CLASSES[:5], "compiled": (1000,)}  # compiling takes seconds for each shape
WIDE = _regimes.CLASSES[5]  # only for ids in float32 and float64, since the oracle takes seconds, too
Progress = Callable[[str, int, int], None]  # (what was done, steps done, steps in all)


@dataclass(frozen=True)
class Row:
    """One backend, loss, dtype and mode: how far from the truth, at worst, over all regimes."""

    backend: str
    loss: str
    dtype: str
    mode: str
    value: float  # relative error of the loss
    value_regime: str  # where it is worst
    gradient: float
    gradient_regime: str
    share: float  # of what is allowed; above 1 it disagrees
    native: str = ""  # the framework's own loss, and the same figures for it
    native_value: float = math.nan
    native_gradient: float = math.nan
    native_share: float = math.nan
    problem: str = ""  # what it raised

    @property
    def agrees(self) -> bool:
        return self.share <= 1


@dataclass(frozen=True)
class Pair:
    """Two backends beside each other: the largest relative difference where both are finite."""

    backends: tuple[str, str]
    loss: str
    dtype: str
    value: float
    gradient: float


@dataclass
class Comparison:
    """What `compare` found. It is true if everything agrees with float64."""

    rows: list[Row]
    pairs: list[Pair]
    skipped: list[str]  # what was not run, and why
    versions: dict[str, str] = field(default_factory=dict)

    @property
    def agrees(self) -> bool:
        return bool(self.rows) and all(row.agrees for row in self.rows)

    def __bool__(self) -> bool:
        return self.agrees

    def to_dict(self) -> dict[str, Any]:
        return {
            "agrees": self.agrees,
            "versions": self.versions,
            "skipped": self.skipped,
            "rows": [{**asdict(row), "agrees": row.agrees} for row in self.rows],
            "pairs": [asdict(pair) for pair in self.pairs],
        }

    def __repr__(self) -> str:
        head = f"{'backend':11}{'loss':11}{'dtype':9}{'mode':9}{'value':>9} {'gradient':>9} {'limit':>7}   own loss"
        lines = [
            f"{r.backend:11}{r.loss:11}{r.dtype:9}{r.mode:9}{figure(r.value):>9} {figure(r.gradient):>9} "
            f"{r.share:>6.0%}{' ' if r.agrees else '!'}   {r.problem or native_text(r)}"
            for r in self.rows
        ]
        return "\n".join([head, *lines, self.summary()])

    def summary(self) -> str:
        wrong = [row for row in self.rows if not row.agrees]
        if not self.rows:
            return "nothing was compared"
        if wrong:
            return f"{len(wrong)} of {len(self.rows)} disagree with the truth"
        names = ", ".join(f"{name} {version}" for name, version in self.versions.items())
        return f"all {len(self.rows)} agree with the truth ({names})"


def figure(x: float) -> str:
    return "-" if math.isnan(x) else "wrong" if math.isinf(x) else "0" if x == 0 else f"{x:.0e}"


def native_text(row: Row) -> str:
    return f"{figure(row.native_value)} {figure(row.native_gradient)}  {row.native}" if row.native else "-"


# ---- doing it


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
        logits, labels: your own arrays instead of xent's regimes, classes last: float [..., C], and class ids [...] or
            distributions like the logits.
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
    losses = _check.chosen("loss", losses, _regimes.LOSSES)
    dtypes = _check.chosen("dtype", dtypes, _regimes.DTYPES)
    modes = _check.chosen("mode", modes, MODES) or list(MODES)
    if (logits is None) != (labels is None):
        given, other = ("labels", "logits") if logits is None else ("logits", "labels")
        raise ValueError(f"{other}: expected beside {given}, got None")
    batches = _batches(losses, dtypes) if logits is None else _own(logits, labels, losses, dtypes, ignore_index)
    names, skipped = _present(backends)
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
    rows = _rows(tasks, answers, truths)
    return Comparison(rows, _pairs(tasks, answers, truths), skipped, versions)


def _batches(losses: list[str], dtypes: list[str]) -> list[tuple[str, Batch]]:
    """Each with the mode it is for."""
    combinations = itertools.product(losses or _regimes.LOSSES, dtypes or _regimes.DTYPES)
    made: dict[tuple[str, str, int], Batch] = {}
    found = []
    for (loss, dtype), mode in itertools.product(combinations, MODES):
        wide = loss == "sparse_ce" and _regimes.PRECISION[dtype].compute == dtype
        for classes in (*CLASSES[mode], WIDE) if wide else CLASSES[mode]:
            key = (loss, dtype, classes)
            made[key] = made.get(key) or _regimes.batch(*key, every=3 if classes == WIDE else 1)
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
            own = _regimes.rounded(_rows_of(x), dtype)
            _check_range(_rows_of(x), own, dtype)
            shaped = y.reshape(-1) if hard else y.reshape(own.shape)
            shaped = shaped if hard else _regimes.rounded(shaped.astype(np.float64), _regimes.PRECISION[dtype].compute)
            batch = Batch(loss, dtype, own, shaped, ("yours",) * len(own), options if loss == "sparse_ce" else {})
            found += [(mode, batch) for mode in MODES]
    return found


def _values(x: Any, argument: str) -> tuple[str, Any]:
    """The dtype's name, and the values as NumPy has them, floating ones as float64."""
    adapter = _dispatch.find(x, argument)
    x = np.asarray(x) if adapter.name == "numpy" else x
    return adapter.ops.dtype(x), _live.live(adapter.name).numpy(x)


def _rows_of(x: Any) -> Any:
    if not x.size:
        raise ValueError(f"logits: expected at least one row to compare, got shape {x.shape}")
    return x.reshape(-1, x.shape[-1])


def _check_range(x: Any, as_dtype: Any, dtype: str) -> None:
    """Raises where logits overflow in this dtype: NaN in every result would count as agreement."""
    lost = int((np.isfinite(x) & ~np.isfinite(as_dtype)).sum())
    if lost:
        raise ValueError(f"logits: {lost} of {x.size} values are beyond {dtype}'s largest number")


def _present(backends: Sequence[str] | None) -> tuple[list[str], list[str]]:
    installed = list(_live.available())
    known = [*dict.fromkeys([*_live.KNOWN, *installed])]
    wanted = _check.names(backends) or known
    for name in wanted:
        if name not in known:
            raise _check.no_backend(name, known)
    return [n for n in wanted if n in installed], [f"{n}: not installed" for n in wanted if n not in installed]


def facts(names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Each framework's version, devices, dtypes and modes, asked in a process of its own."""
    return dict(zip(names, _each(_facts, names), strict=True))


def _facts(name: str) -> dict[str, Any]:
    code = f"import json; from xent import _worker; print(json.dumps(_worker.facts({name!r})))"
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
            code = f"from xent import _worker; _worker.main({str(job)!r})"
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


# ---- judging it


def _rows(tasks: list[Task], answers: list[Answer], truths: dict[int, oracle.Truth]) -> list[Row]:
    groups: dict[tuple[str, str, str, str], list[tuple[Task, Answer]]] = {}
    for task, answer in zip(tasks, answers, strict=True):
        groups.setdefault((task.backend, task.batch.loss, task.batch.dtype, task.mode), []).append((task, answer))
    return [Row(*key, **_worst(group, truths)) for key, group in groups.items()]


def _worst(group: list[tuple[Task, Answer]], truths: dict[int, oracle.Truth]) -> dict[str, Any]:
    ours = [_judge(task.batch, truths[id(task.batch)], answer.ours) for task, answer in group]
    result: dict[str, Any] = {
        "value": max(v.value for v in ours),
        "value_regime": max(ours, key=lambda v: v.value).value_regime,
        "gradient": max(v.gradient for v in ours),
        "gradient_regime": max(ours, key=lambda v: v.gradient).gradient_regime,
        "share": max(v.share for v in ours),
        "problem": next((answer.ours.problem for _, answer in group if answer.ours.problem), ""),
    }
    theirs = [_judge(t.batch, truths[id(t.batch)], a.native) for t, a in group if a.native is not None]
    if theirs:
        result |= {
            "native": group[0][1].native_name,
            "native_value": max(v.value for v in theirs),
            "native_gradient": max(v.gradient for v in theirs),
            "native_share": max(v.share for v in theirs),
        }
    return result


@dataclass(frozen=True)
class _Verdict:
    value: float
    value_regime: str
    gradient: float
    gradient_regime: str
    share: float


def _judge(batch: Batch, truth: oracle.Truth, outcome: Outcome) -> _Verdict:
    if outcome.problem:
        return _Verdict(math.inf, "", math.inf, "", math.inf)
    if outcome.loss.shape != truth.loss.shape or outcome.grad.shape != truth.logits.shape:
        return _Verdict(math.inf, "shape", math.inf, "shape", math.inf)
    e = _regimes.errors(batch, truth, outcome.loss, outcome.grad)
    value, gradient = int(e.loss.argmax()), int(e.grad.argmax())
    share = max(float(e.loss_share.max()), float(e.grad_share.max()))
    return _Verdict(float(e.loss[value]), batch.regimes[value], float(e.grad[gradient]), batch.regimes[gradient], share)


def _pairs(tasks: list[Task], answers: list[Answer], truths: dict[int, oracle.Truth]) -> list[Pair]:
    """Eager results beside each other."""
    found: dict[tuple[str, str, str, str], tuple[float, float]] = {}
    by_batch: dict[int, list[tuple[Task, Outcome]]] = {}
    for task, answer in zip(tasks, answers, strict=True):
        if task.mode == "eager" and not answer.ours.problem:
            by_batch.setdefault(id(task.batch), []).append((task, answer.ours))
    for key, results in by_batch.items():
        for (a, one), (b, other) in itertools.combinations(results, 2):
            truth = truths[key]._replace(loss=other.loss, logits=other.grad)
            e = _regimes.errors(a.batch, truth, one.loss, one.grad)
            name = (a.backend, b.backend, a.batch.loss, a.batch.dtype)
            value, gradient = found.get(name, (0.0, 0.0))
            found[name] = (max(value, float(e.loss.max())), max(gradient, float(e.grad.max())))
    return [Pair((a, b), loss, dtype, *worst) for (a, b, loss, dtype), worst in found.items()]
