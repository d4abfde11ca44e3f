"""Writes docs/performance.md's tables of every workload, and of two runs: python benchmarks/details.py"""

from __future__ import annotations

from xent.benchmarks.diff import NOISE, agreement, diff, of_rivals
from xent.benchmarks.readme import PERFORMANCE, markdown, write
from xent.benchmarks.result import Case, Result, Series, ratio
from xent.benchmarks.rows import BRIEFLY, duration, times
from xent.benchmarks.speed import MEASURED
from xent.benchmarks.sweeps import plain

OWN = {"numpy": "NumPy", "torch": "F.", "tensorflow": "tf.nn.", "jax": "optax."}  # how its own losses are named
MODES = {
    "torch": (("torch", "eager"), ("torch", "compiled")),
    "tensorflow": (("tensorflow", "eager"), ("tensorflow", "graph"), ("tensorflow", "compiled")),
    "numpy-jax": (("numpy", "eager"), ("jax", "compiled")),
}
HEAD = ("linear", "float32")
AGAIN = MEASURED.with_name("cpu-again.json")  # the same commit, the same machine, right after


def every(result: Result, name: str) -> str:
    """The framework's own loss against xent in the same mode, of each workload."""
    columns = [(backend, mode, which) for backend, mode in MODES[name] for which in BRIEFLY]
    heads = [f"{backend} {mode}, {BRIEFLY[which]}" for backend, mode, which in columns]
    lines = [
        [f"{case.workload} {case.dtype}", *(_against(case, *column) for column in columns)] for case in plain(result)
    ]
    table: str = markdown(["", *heads], lines)
    return table


def head(result: Result) -> str:
    """What the head of a language model takes, on each backend in each mode."""
    case = result.find(*HEAD)
    assert case is not None
    heads = ["", "time", "GFLOP/s", "the reference's", "extra memory, of the logits", "error: loss, gradients"]
    ours = (s for s in case.series if s.ours and s.which == "both" and not s.problem)
    table: str = markdown(heads, [_of_head(case, series) for series in ours])
    return table


def _of_head(case: Case, series: Series) -> list[str]:
    own = _own(case, series.backend, series.mode, "both")
    return [
        f"{series.backend} {series.mode}",
        duration(series.time.median),
        _speed(case, series),
        f"{_speed(case, own)}; {ratio(series.seconds, own.seconds).median:.2f} of its time" if own else "",
        f"{(case.extra(series) or 0) / case.logits:.1%}",
        f"{series.value_error:.0e}, {series.gradient_error:.0e}",
    ]


def _speed(case: Case, series: Series) -> str:
    return f"{case.operations('both') / series.time.median / 1e9:.0f}"


def _against(case: Case, backend: str, mode: str, which: str) -> str:
    ours, own = case.find("xent", backend, mode, which), _own(case, backend, mode, which)
    if not (ours and own) or ours.problem:
        return "-"
    return f"{times(ratio(own.seconds, ours.seconds).median)}{' (wrong)' if case.wrong(own) else ''}"


def _own(case: Case, backend: str, mode: str, which: str) -> Series | None:
    """The fastest, if there are several."""
    same = [s for s in case.series if (s.backend, s.mode, s.which) == (backend, mode, which) and not s.problem]
    return min((s for s in same if s.name.startswith(OWN[backend])), key=lambda s: s.time.median, default=None)


def apart(first: Result, second: Result) -> str:
    """Where two runs do not agree."""
    changes = of_rivals(diff(first, second))
    found = sorted((change for change in changes if change.apart > NOISE), key=lambda c: -c.apart)
    lines = [
        [
            f"{c.case.workload} {c.case.dtype}, {BRIEFLY[c.series.which]}",
            f"{c.series.backend} {c.series.mode}",
            f"`{c.against}`",
            times(c.old.median),
            times(c.new.median),
        ]
        for c in found
    ]
    table: str = markdown(["", "xent on", "against", "first run", "second run"], lines)
    return f"{table}\n{agreement(changes)}.\n"


if __name__ == "__main__":
    measured = Result.load(MEASURED)
    for name in MODES:
        write(name, every(measured, name), PERFORMANCE, "details")
    write("head", head(measured), PERFORMANCE, "details")
    write("apart", apart(measured, Result.load(AGAIN)), PERFORMANCE, "details")
