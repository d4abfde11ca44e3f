"""`xent compare --bits`: digests of results, to hold against another backend's or another machine's. docs/bits.md says
what has to be the same."""

from __future__ import annotations

import hashlib
import itertools
import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from xent import _check
from xent.backends import cpu
from xent.verify import frameworks, linear, processes, worker
from xent.verify.compare import installed
from xent.verify.precision import DTYPES, PRECISION, rounded
from xent.verify.regimes import Batch
from xent.verify.task import Outcome, Task

Array = NDArray[Any]
ROWS, FEATURES = 37, 24
CLASSES = (10, 1003)  # few of them go side by side, many in blocks with a rest
ALONE = (0, ROWS // 2, ROWS - 1)  # rows that are also asked for one by one
DIGITS = 12


class Digest(NamedTuple):
    """Of one backend's losses or gradients."""

    backend: str
    loss: str
    dtype: str
    what: str  # "loss", "gradient"
    digest: str


@dataclass(frozen=True)
class Bits:
    """What `bits` found. It is true if all backends have the same digests, and no row has other bits alone."""

    instruction_set: str  # of the native kernels; "" where they are not in use
    versions: dict[str, str]
    digests: tuple[Digest, ...]
    problems: tuple[str, ...]
    skipped: tuple[str, ...]

    def __bool__(self) -> bool:
        return bool(self.digests) and not self.problems and all(len(found) == 1 for found in self.groups().values())

    def groups(self) -> dict[tuple[str, str, str], dict[str, list[str]]]:
        """(loss, dtype, what) -> the backends that have each digest."""
        found: dict[tuple[str, str, str], dict[str, list[str]]] = {}
        for backend, loss, dtype, what, digest in self.digests:
            found.setdefault((loss, dtype, what), {}).setdefault(digest, []).append(backend)
        return found

    def of_all(self) -> dict[str, str]:
        """One digest a backend, of all its digests."""
        backends = dict.fromkeys(digest.backend for digest in self.digests)
        return {name: _digest("".join(d.digest for d in self.digests if d.backend == name)) for name in backends}

    def kernels(self) -> str:
        return f"{self.instruction_set} kernels" if self.instruction_set else "without the native kernels"

    def to_dict(self) -> dict[str, Any]:
        found = {"agrees": bool(self), "machine": platform.machine(), **asdict(self), "all": self.of_all()}
        return {**found, "digests": [digest._asdict() for digest in self.digests]}

    def summary(self) -> str:
        where = f"{platform.machine()}, {self.kernels()}"
        if self:
            return f"the same bits on {', '.join(self.of_all())} ({where})"
        return f"the bits differ ({where})"


def bits(
    backends: Sequence[str] | None = None,
    *,
    losses: Sequence[str] | None = None,
    dtypes: Sequence[str] | None = None,
    device: str = "cpu",
) -> Bits:
    """Digests of every loss and gradient on fixed inputs, eagerly, from each backend in a process of its own.

    Args:
        backends: names such as "torch", or one (here as below); those of the four frameworks that are installed if not
            given.
        losses: "sparse_ce", "softmax_ce", "sigmoid_ce", "linear_ce" (whose gradients have no digest); all.
        dtypes: "float32", "float64", "float16", "bfloat16"; all.
        device: as the framework names it.
    """
    losses = _check.chosen("loss", losses, linear.LOSSES) or list(linear.LOSSES)
    dtypes = _check.chosen("dtype", dtypes, DTYPES) or list(DTYPES)
    names, skipped = installed(_check.names(backends) or frameworks.KNOWN)
    known = processes.facts(names)
    digests: list[Digest] = []
    problems: list[str] = []
    asked = []
    for name, facts in known.items():
        if "problem" in facts or device not in facts["devices"]:
            skipped.append(f"{name}: {facts.get('problem') or f'no device {device!r}'}")
            continue
        its = [loss for loss in losses if loss in facts["losses"]], [d for d in dtypes if d in facts["dtypes"]]
        skipped += [frameworks.without(name, dtype) for dtype in dtypes if dtype not in facts["dtypes"]]
        asked.append(f"from xent.verify.bits import answer; answer({name!r}, {its[0]!r}, {its[1]!r}, {device!r})")
    for found in processes.each(processes.ask, asked):
        digests += [Digest(*digest) for digest in found["digests"]]
        problems += found["problems"]
    if not digests:
        raise ValueError(f"nothing to compare: {'; '.join(problems + skipped) or 'no framework is installed'}")
    isa = "" if cpu.native is None else cpu.native.isa()
    versions = {name: facts["version"] for name, facts in known.items()}
    return Bits(isa, versions, tuple(digests), tuple(problems), tuple(skipped))


# ---- fixed inputs


def batch(loss: str, dtype: str, classes: int, rows: int = ROWS) -> Batch:
    """Made of whole numbers, so that no version of any library makes others."""
    x = _sixteenths(rows, classes, 1)
    names = ("bits",) * rows
    if loss == "sparse_ce":
        return Batch(loss, dtype, x, _whole(rows, 1, 2)[:, 0] % classes, names)
    if loss == "softmax_ce":
        t = 1.0 + _whole(rows, classes, 3)
        return Batch(loss, dtype, x, rounded(t / t.sum(axis=1, keepdims=True), PRECISION[dtype].compute), names)
    if loss == "sigmoid_ce":
        return Batch(loss, dtype, x, (_whole(rows, classes, 4) % 5) / 4, names)
    hidden, weight = _sixteenths(rows, FEATURES, 5), _sixteenths(classes, FEATURES, 6) / 4
    ids = _whole(rows, 1, 7)[:, 0] % classes
    return Batch(loss, dtype, hidden @ weight.T, ids, names, hidden=hidden, weight=weight)


def _whole(rows: int, columns: int, seed: int) -> Array:
    """From 0 to 255, by a multiplication modulo 2^32 and two exclusive ors."""
    x = np.arange(rows * columns, dtype=np.uint64) + np.uint64(1_000_003 * seed)
    for _ in range(2):
        x ^= x >> np.uint64(15)
        x = (x * np.uint64(2654435769)) & np.uint64(0xFFFFFFFF)
    return (x >> np.uint64(24)).astype(np.int64).reshape(rows, columns)


def _sixteenths(rows: int, columns: int, seed: int) -> Array:
    """From -8 up to 8: exact in every dtype."""
    return (_whole(rows, columns, seed) - 128) / 16


# ---- in a backend's process


def answer(name: str, losses: Sequence[str], dtypes: Sequence[str], device: str) -> None:
    """Says the digests."""
    framework = frameworks.load(name)
    digests: list[Digest] = []
    problems: list[str] = []
    for loss, dtype in itertools.product(losses, dtypes):
        found = [_results(framework, Task(name, "eager", device, batch(loss, dtype, c))) for c in CLASSES]
        raised = sorted({outcome.problem for results in found for outcome in results if outcome.problem})
        problems += [f"{name} {loss} {dtype}: {problem}" for problem in raised]
        for what in () if raised else ("loss",) if loss == "linear_ce" else ("loss", "gradient"):
            values = [[outcome.loss if what == "loss" else outcome.grad for outcome in results] for results in found]
            digests.append(Digest(name, loss, dtype, what, _digest(*(whole for whole, *_ in values))))
            if not all(_same(whole[list(ALONE)], np.concatenate(alone)) for whole, *alone in values):
                problems.append(f"{name} {loss} {dtype}: a row alone has another {what} than among others")
    processes.say({"digests": digests, "problems": problems})


def _results(framework: frameworks.Framework, task: Task) -> list[Outcome]:
    """Of all rows, then of some by themselves."""
    rows = [slice(None), *(slice(row, row + 1) for row in ALONE)]
    with framework.within(task.batch.dtype):
        return [worker.xents(framework, task._replace(batch=of_rows(task.batch, some))) for some in rows]


def of_rows(whole: Batch, rows: slice) -> Batch:
    logits, labels = whole.logits[rows], whole.labels[rows]
    hidden = None if whole.hidden is None else whole.hidden[rows]
    return replace(whole, logits=logits, labels=labels, regimes=whole.regimes[rows], hidden=hidden)


def _same(one: Array, other: Array) -> bool:
    return np.asarray(one).tobytes() == np.asarray(other).tobytes()


def _digest(*values: Any) -> str:
    """The first digits of the sha256 of text, or of values as float64, which holds every dtype exactly."""
    found = hashlib.sha256()
    for value in values:
        found.update(value.encode() if isinstance(value, str) else np.ascontiguousarray(value, "<f8").tobytes())
    return found.hexdigest()[:DIGITS]
