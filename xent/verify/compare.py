"""`xent compare`: check every installed framework against float64, and beside its own losses."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from xent import _check
from xent.verify import batches, comparison, frameworks, judge, linear, processes, regimes
from xent.verify.batches import MODES
from xent.verify.comparison import Comparison
from xent.verify.precision import DTYPES
from xent.verify.processes import Progress
from xent.verify.regimes import Batch
from xent.verify.task import Contender, Function, Task

# Seconds on two cores, about: until a framework has started, and for one loss in one dtype, eager and compiled.
ABOUT = {"numpy": (1.0, 0.5, 0.0), "torch": (5.0, 0.5, 3.0), "tensorflow": (7.0, 0.5, 1.0), "jax": (3.0, 0.5, 1.5)}
FULL = 1.0  # and one more, for the larger numbers of classes


def compare(
    backends: Sequence[str] | None = None,
    *,
    losses: Sequence[str] | None = None,
    dtypes: Sequence[str] | None = None,
    modes: Sequence[str] = MODES,
    device: str = "cpu",
    logits: Any = None,
    labels: Any = None,
    axis: int = -1,
    ignore_index: int | None = None,
    full: bool = False,
    contenders: Mapping[str, Function | str] | None = None,
    options: Mapping[str, float] | None = None,
    progress: Progress | None = None,
    announce: Callable[[str], None] = lambda text: None,
) -> Comparison:
    """Runs every installed framework, each in a process of its own, against the truth in float64.

    Args:
        backends: names such as "torch", or one (here as below); all that are installed if not given.
        losses: "sparse_ce", "softmax_ce", "sigmoid_ce", "linear_ce"; all, or with your own arrays the one that fits
            the labels.
        dtypes: "float32", "float64", "float16", "bfloat16"; all, or with your own arrays the logits' own.
        modes: "eager", "compiled" (torch.compile, tf.function with XLA, jax.jit); both.
        device: "cpu", "cuda:0" (PyTorch), "gpu:0" (TensorFlow, JAX).
        logits: your own array instead of xent's own kinds of logits: float [..., C, ...].
        labels: beside your own logits: class ids, or distributions like the logits.
        axis: where the classes are in your own logits; of xent's, where `sparse_ce` and `softmax_ce` get them: 0 or
            -1. The framework's own losses and contenders always get rows [N, C].
        ignore_index: a class id that marks your own labels to be left out.
        full: also 33,333 and 262,144 classes.
        contenders: your own losses by name, functions of (logits, labels) that return the mean, or one loss a row (of
            "sigmoid_ce" one an element); or "package.module:function", which is imported in a process of its own. They
            are judged by what xent is judged by, in value and in the gradient that the framework derives; on NumPy
            in the gradient where they return (loss, gradient). Needs `backends`, and one of `losses`.
        options: what the contenders compute besides: "label_smoothing", "z_loss" or "ignore_index" of `losses`.
        progress: called as (what, done, of) after each step.
        announce: called at the start with what will be done, and about how long it takes.

    Returns:
        A `Comparison`: worst relative errors in value and gradient for xent and for the framework's own loss, over all
        and in each kind of logits, and the differences between backends. It is true if all of xent's and the
        contenders' are within what the dtype allows.

    Raises:
        ValueError: an unknown name, a device that no backend has, arrays that do not fit together, contenders without
            their backend or loss.

    Example:
        >>> import xent
        >>> xent.compare("numpy", losses=["sparse_ce", "softmax_ce"], dtypes="float32").agrees
        True
    """
    rivals = [Contender(name, function) for name, function in (contenders or {}).items()]
    losses = _check.chosen("loss", losses, linear.LOSSES)
    dtypes = _check.chosen("dtype", dtypes, DTYPES)
    modes = _check.chosen("mode", modes, MODES) or list(MODES)
    if (logits is None) != (labels is None):
        given, other = ("labels", "logits") if logits is None else ("logits", "labels")
        raise ValueError(f"{other}: expected beside {given}, got None")
    if ignore_index is not None and logits is None:
        raise ValueError("ignore_index: expected beside your own logits and labels; for contenders it is an option")
    _check_contenders(rivals, _check.names(backends), losses)
    asked = batches.checked_options(options or {}, losses)
    if logits is None:
        given_out = batches.of_regimes(losses, dtypes, asked, axis, full)
    else:
        asked |= {} if ignore_index is None else {"ignore_index": ignore_index}
        given_out = batches.own(logits, labels, losses, dtypes, asked, axis)
    names, skipped = installed(backends)
    announce(_announced(names, modes, given_out, logits is None, full))
    tasks, versions = [], {}
    for name, known in processes.facts(names).items():
        versions[name] = known["version"]
        found, reasons = _tasks(name, known, modes, device, given_out)
        tasks += found
        tasks += [task._replace(contender=rival) for rival in rivals for task in found]
        skipped += reasons
    if not tasks:
        raise ValueError(f"nothing to compare: {'; '.join(skipped) or 'no framework is installed'}")
    with ThreadPoolExecutor(1) as pool:  # the oracle works meanwhile
        running = pool.submit(processes.answers, tasks, progress)
        truths = {key: judge.truth_of(batch) for key, batch in {id(task.batch): task.batch for task in tasks}.items()}
        answers = running.result()
    rows = comparison.rows(tasks, answers, truths)
    return Comparison(rows, comparison.pairs(tasks, answers, truths), skipped, versions)


def _announced(
    names: Sequence[str], modes: Sequence[str], found: list[tuple[str, Batch]], ours: bool, full: bool
) -> str:
    losses, dtypes = (list(dict.fromkeys(getattr(batch, what) for _, batch in found)) for what in ("loss", "dtype"))
    over = f"{len(regimes.REGIMES)} kinds of logits" if ours else "your logits"
    seconds = 0.0
    for name in names:
        start, eager, compiled = ABOUT.get(name, ABOUT["numpy"])
        each = ("eager" in modes) * (eager + FULL * full) + ("compiled" in modes) * compiled
        seconds += start + len(losses) * len(dtypes) * each
    long = f"{max(5, round(seconds / 5) * 5)} s" if seconds < 90 else f"{round(seconds / 60)} min"
    return (
        f"checking {', '.join(names)}: {', '.join(losses)} in {', '.join(dtypes)},\n"
        f"{' and '.join(modes)}, over {over}, against float64; about {long} on two cores"
    )


def _check_contenders(contenders: list[Contender], backends: list[str], losses: list[str]) -> None:
    """A function knows its own framework's arrays, and one kind of labels."""
    for name, function in contenders:
        if not isinstance(name, str) or not name:
            raise ValueError(f"contenders: expected names, got {name!r}")
        if not callable(function) and (not isinstance(function, str) or not all(function.partition(":")[::2])):
            raise ValueError(f"contender {name!r}: expected a function or 'package.module:function', got {function!r}")
    if contenders and not backends:
        raise ValueError("backends: expected the contenders' framework, got None")
    if contenders and (len(losses) != 1 or losses[0] not in regimes.LOSSES):
        got = ", ".join(losses) or None
        raise ValueError(
            f"losses: expected the one that the contenders compute, of {', '.join(regimes.LOSSES)}, got {got}"
        )


def installed(backends: Sequence[str] | None) -> tuple[list[str], list[str]]:
    installed = list(frameworks.available())
    known = [*dict.fromkeys([*frameworks.KNOWN, *installed])]
    wanted = _check.names(backends) or known
    for name in wanted:
        if name not in known:
            raise _check.no_backend(name, known)
    return [n for n in wanted if n in installed], [f"{n}: not installed" for n in wanted if n not in installed]


def _tasks(
    name: str, known: dict[str, Any], modes: Iterable[str], device: str, found: list[tuple[str, Batch]]
) -> tuple[list[Task], list[str]]:
    if "problem" in known:
        return [], [f"{name}: {known['problem']}"]
    if device not in known["devices"]:
        return [], [f"{name}: no device {device!r}, only {', '.join(known['devices'])}"]
    why = {
        mode: known["modes"].get(mode) for mode in modes
    }  # "" where it runs, None where the framework has no such mode
    absent = sorted({batch.dtype for _, batch in found} - set(known["dtypes"]))
    skipped = [f"{name} {mode}: {reason}" for mode, reason in why.items() if reason]
    skipped += [frameworks.without(name, dtype) for dtype in absent]
    losses = {batch.loss for _, batch in found}
    skipped += [f"{name} {loss}: its adapter has none" for loss in sorted(losses - set(known["losses"]))]
    tasks = [
        Task(name, mode, device, batch)
        for mode, batch in found
        if why.get(mode) == "" and batch.dtype in known["dtypes"] and batch.loss in known["losses"]
    ]
    return tasks, skipped
