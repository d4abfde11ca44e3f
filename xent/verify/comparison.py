"""What a comparison found: the worst errors, row by row, and whether they are within what the dtype allows."""

from __future__ import annotations

import itertools
import math
from dataclasses import asdict, dataclass, field
from typing import Any

from xent.verify import regimes
from xent.verify.judge import Truth, Verdict, errors, example, in_regime, judge
from xent.verify.task import Answer, Outcome, Task


@dataclass(frozen=True)
class InRegime:
    """One kind of logits: the worst relative errors, and those of the framework's own loss."""

    regime: str
    value: float
    gradient: float
    share: float  # of what is allowed
    native_value: float = math.nan
    native_gradient: float = math.nan


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
    contender: str = ""  # who was judged, where that is not xent
    worst_regime: str = ""  # where it is furthest beyond what is allowed, if it is
    example: str = ""  # a small input of that regime that shows it
    regimes: tuple[InRegime, ...] = ()  # each kind of logits by itself, ordinary ones first

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
            f"{limit(r):>6}{' ' if r.agrees else '!'}   {r.contender or r.problem or native_text(r)}"
            for r in self.rows
        ]
        return "\n".join([head, *lines, *map(contender_text, self.contenders()), self.summary()])

    def contenders(self) -> list[Row]:
        """The rows of others than xent."""
        return [row for row in self.rows if row.contender]

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


def limit(row: Row) -> str:
    """Its share of what is allowed."""
    return "wrong" if math.isinf(row.share) else f"{row.share:.0%}" if row.share < 100 else f"{row.share:.0e}x"


def contender_text(row: Row) -> str:
    """What a contender did, in one sentence."""
    name = f"{row.contender} on {row.backend}, {row.dtype}, {row.mode}"
    if row.problem:
        return f"{name}: {row.problem}"
    value_only = " in value; it has no gradient to judge" if math.isnan(row.gradient) else ""
    if row.agrees:
        return f"{name}: right{value_only}"
    return f"{name}: wrong{value_only}, worst where logits are {row.worst_regime!r}: {row.example}"


def native_text(row: Row) -> str:
    return f"{figure(row.native_value)} {figure(row.native_gradient)}  {row.native}" if row.native else "-"


# ---- from answers


def rows(tasks: list[Task], answers: list[Answer], truths: dict[int, Truth]) -> list[Row]:
    groups: dict[tuple[str, str, str, str, str], list[tuple[Task, Answer]]] = {}
    for task, answer in zip(tasks, answers, strict=True):
        who = task.contender.name if task.contender else ""
        key = (task.backend, task.batch.loss, task.batch.dtype, task.mode, who)
        groups.setdefault(key, []).append((task, answer))
    return [Row(*key[:4], contender=key[4], **_worst(group, truths)) for key, group in groups.items()]


def _worst(group: list[tuple[Task, Answer]], truths: dict[int, Truth]) -> dict[str, Any]:
    ours = [judge(task.batch, truths[id(task.batch)], answer.ours) for task, answer in group]
    result: dict[str, Any] = {
        "value": max(v.value for v in ours),
        "value_regime": max(ours, key=lambda v: v.value).value_regime,
        "gradient": max(v.gradient for v in ours),
        "gradient_regime": max(ours, key=lambda v: v.gradient).gradient_regime,
        "share": max(v.share for v in ours),
        "problem": next((answer.ours.problem for _, answer in group if answer.ours.problem), ""),
    }
    if group[0][0].contender and not result["problem"] and result["share"] > 1:
        result |= _shown(group, ours, truths)
    theirs = [judge(t.batch, truths[id(t.batch)], a.native) for t, a in group if a.native is not None]
    result["regimes"] = _by_regime([task for task, _ in group], ours, theirs)
    if theirs:
        result |= {
            "native": group[0][1].native_name,
            "native_value": max(v.value for v in theirs),
            "native_gradient": max(v.gradient for v in theirs),
            "native_share": max(v.share for v in theirs),
        }
    return result


def _by_regime(tasks: list[Task], ours: list[Verdict], theirs: list[Verdict]) -> tuple[InRegime, ...]:
    """All batches together."""
    names = {name for task in tasks for name in task.batch.regimes}

    def worst(verdicts: list[Verdict], name: str) -> list[float]:
        pairs = zip(tasks, verdicts, strict=True)
        found = [in_regime(t.batch, verdict, name) for t, verdict in pairs if name in t.batch.regimes]
        return [max(figures) for figures in zip(*found, strict=True)]

    return tuple(
        InRegime(name, *worst(ours, name), *(worst(theirs, name)[:2] if theirs else ()))
        for name in (*regimes.REGIMES, "yours")
        if name in names
    )


def _shown(group: list[tuple[Task, Answer]], verdicts: list[Verdict], truths: dict[int, Truth]) -> dict[str, str]:
    """The regime where a contender is furthest off, and the smallest input that was tried there and shows it."""
    (task, _), worst = max(zip(group, verdicts, strict=True), key=lambda pair: pair[1].share)
    regime = worst.worst_regime(task.batch)
    small_first = sorted(zip(group, verdicts, strict=True), key=lambda pair: pair[0][0].batch.logits.shape[1])
    for (task, answer), verdict in small_first:
        row, batch = verdict.worst_row(task.batch, regime), task.batch
        if row is not None:
            shown = example(batch, truths[id(batch)], answer.ours, verdict, row)
            return {"worst_regime": regime, "example": shown}
    return {}


def pairs(tasks: list[Task], answers: list[Answer], truths: dict[int, Truth]) -> list[Pair]:
    """Eager results beside each other."""
    found: dict[tuple[str, str, str, str], tuple[float, float]] = {}
    by_batch: dict[int, list[tuple[Task, Outcome]]] = {}
    for task, answer in zip(tasks, answers, strict=True):
        if task.mode == "eager" and task.contender is None and not answer.ours.problem:
            by_batch.setdefault(id(task.batch), []).append((task, answer.ours))
    for key, results in by_batch.items():
        for (a, one), (b, other) in itertools.combinations(results, 2):
            truth: Truth = truths[key]._replace(loss=other.loss, logits=other.grad)
            e = errors(a.batch, truth, one.loss, one.grad)
            name = (a.backend, b.backend, a.batch.loss, a.batch.dtype)
            value, gradient = found.get(name, (0.0, 0.0))
            found[name] = (max(value, float(e.loss.max())), max(gradient, float(e.grad.max())))
    return [Pair((a, b), loss, dtype, *worst) for (a, b, loss, dtype), worst in found.items()]
