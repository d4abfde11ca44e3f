"""Writes docs/performance.md's tables of targets, met or not: python benchmarks/targets.py"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from xent.benchmarks.readme import PERFORMANCE, markdown, write
from xent.benchmarks.result import Case, Result, Series, ratio
from xent.benchmarks.rows import BRIEFLY, origin, times
from xent.benchmarks.speed import MEASURED


class Target(NamedTuple):
    """How many times as long a rival takes as xent, at least."""

    least: float
    workload: str
    dtype: str
    which: str
    backend: str
    mode: str  # xent's
    rival: str  # its mode; "best": the fastest of all
    name: str = ""  # which it is; otherwise any


FRESH, LARGE = MEASURED.with_name("cpu-fresh.json"), 1 << 25  # bytes of arrays that were in fresh memory
OPTAX = "optax.softmax_cross_entropy_with_integer_labels"
TARGETS = (
    Target(4, "lm", "float32", "both", "torch", "eager", "eager"),
    Target(2.5, "lm", "float32", "both", "torch", "eager", "compiled"),
    Target(2, "lm", "float32", "both", "jax", "compiled", "compiled"),
    Target(5, "lm", "float32", "both", "tensorflow", "eager", "eager"),
    Target(1.7, "lm", "float32", "both", "tensorflow", "eager", "compiled"),
    Target(4, "lm", "float32", "both", "numpy", "eager", "best"),
    Target(4, "lm", "float32", "forward", "torch", "eager", "eager"),
    Target(1.3, "lm", "float32", "forward", "torch", "eager", "compiled"),
    Target(1.8, "lm", "float32", "forward", "jax", "compiled", "compiled"),
    Target(8, "lm", "float32", "forward", "numpy", "eager", "best"),
    Target(4, "lm-large", "bfloat16", "both", "torch", "eager", "eager"),
    Target(3, "images", "float32", "both", "torch", "eager", "eager"),
    Target(2, "segmentation", "float32", "both", "torch", "eager", "eager"),
    Target(3, "soft-large", "float32", "both", "torch", "eager", "eager"),
    Target(4, "multilabel", "float32", "both", "torch", "eager", "eager"),
    Target(1 / 1.3, "tiny", "float32", "both", "torch", "eager", "eager"),
    Target(1 / 0.85, "linear", "float32", "both", "numpy", "eager", "eager"),
    Target(1 / 0.85, "linear", "float32", "both", "torch", "eager", "eager", "F.cross_entropy"),
    Target(1 / 0.85, "linear", "float32", "both", "jax", "compiled", "compiled", OPTAX),
    Target(1 / 0.85, "linear", "float32", "both", "tensorflow", "graph", "graph"),
)
FLOOR = 1.3  # times the floor, at most, of lm in float32 with its gradient
EXTRA, EXTRA_LINEAR = 0.02, 0.1  # of the logits, beyond the gradients


def table(result: Result, targets: Sequence[Target] = TARGETS) -> str:
    lines = [_against(result, target) for target in targets]
    for backend, mode in (("numpy", "eager"), ("torch", "eager"), ("tensorflow", "eager"), ("jax", "compiled")):
        case = result.find("lm", "float32")
        series = case and case.find("xent", backend, mode, "both")
        if case and series:
            distance = ratio(series.seconds, case.floor("both")).median
            wanted, found = f"at most {FLOOR}x", (times(distance), _met(distance <= FLOOR))
            lines.append([_pass(case, "both"), f"{backend} {mode}", "the floor", wanted, *found])
            lines.append(_memory(case, series, EXTRA))
    for target in (t for t in TARGETS if t.workload == "linear"):
        head = result.find(target.workload, target.dtype)
        series = head and head.find("xent", target.backend, target.mode, "both")
        if head and series:
            lines.append(_memory(head, series, EXTRA_LINEAR))
    heads = ["workload", "xent on", "against", "target", "measured", ""]
    return "\n".join([markdown(heads, lines), origin(result), ""])


def of_whole_run() -> str:
    return table(Result.load(MEASURED))


def of_fresh_memory() -> str:
    """Of the run in which large arrays were in fresh memory, those that had such."""
    result = Result.load(FRESH)
    cases = [(t, result.find(t.workload, t.dtype)) for t in TARGETS]
    return table(result, [target for target, case in cases if case and case.logits > LARGE])


def _pass(of: Case | Target, which: str) -> str:
    return f"{of.workload} {of.dtype}, {BRIEFLY[which]}"


def _memory(case: Case, series: Series, most: float) -> list[str]:
    """Beyond the gradients, of the logits."""
    extra = max(0, (series.memory or 0) - case.write) / case.logits
    what = [_pass(case, "both"), f"{series.backend} {series.mode}", "extra memory"]
    return [*what, f"at most {most:.0%}", f"{extra:.1%}", _met(extra <= most)]


def _against(result: Result, target: Target) -> list[str]:
    what = [_pass(target, target.which), f"{target.backend} {target.mode}"]
    case = result.find(target.workload, target.dtype)
    wanted = f"at least {times(target.least)}"
    ours = case and case.find("xent", target.backend, target.mode, target.which)
    rivals = [s for s in case.series if _is(s, target) and not s.problem] if case else []
    if not (case and ours and rivals):
        return [*what, target.rival, wanted, "", "not measured"]
    rival = min(rivals, key=lambda s: (bool(case.wrong(s)), s.time.median))
    found = ratio(rival.seconds, ours.seconds)
    wrong = case.wrong(rival)
    name = f"`{rival.name}` {rival.mode}" + (f" ({wrong})" if wrong else "")
    measured = f"{times(found.median)} ({times(found.low)} to {times(found.high)})"
    return [*what, name, wanted, measured, _met(found.median >= target.least)]


def _is(series: Series, target: Target) -> bool:
    """The framework's own, not Keras on it."""
    same = (series.backend, series.which, series.ours) == (target.backend, target.which, False)
    named = target.name in (series.name, "") and not series.name.startswith("keras")
    return same and named and target.rival in (series.mode, "best")


def _met(met: bool) -> str:
    return "met" if met else "**missed**"


if __name__ == "__main__":
    write("targets", of_whole_run(), PERFORMANCE)
    write("fresh", of_fresh_memory(), PERFORMANCE, "targets")
