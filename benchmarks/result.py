"""What a run found: every sample, the statistics that are made of them, and their file."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import chain, repeat
from pathlib import Path
from typing import Any, NamedTuple

from . import truth
from .workloads import WIDTH

FORMAT = 1  # of the file
ENOUGH = 4  # rounds to say that something is faster or slower


class Spread(NamedTuple):
    """A median between its quartiles."""

    median: float
    low: float
    high: float
    rounds: int = 0  # of which

    @classmethod
    def of(cls, samples: Sequence[float]) -> Spread:
        if len(samples) < 2:
            value = samples[0] if samples else math.nan
            return cls(value, value, value, len(samples))
        low, middle, high = statistics.quantiles(samples, n=4, method="inclusive")
        return cls(middle, low, high, len(samples))

    @property
    def error(self) -> float:
        """The standard error of the median's logarithm, of rounds that scatter normally: it is 1.2533 times a mean's.
        How many standard deviations lie between the quartiles of so few is by Blom's formula."""
        if self.rounds < 2:
            return math.inf
        place = 1 + (self.rounds - 1) / 4
        between = -2 * statistics.NormalDist().inv_cdf((place - 0.375) / (self.rounds + 0.25))
        return 1.2533 * math.log(self.high / self.low) / between / math.sqrt(self.rounds)


@dataclass(frozen=True)
class Series:
    """One contender on one case in one pass: a time for each round it took part in."""

    name: str
    backend: str
    mode: str
    ours: bool
    which: str  # "forward", or "both": forward and backward
    seconds: tuple[float | None, ...] = ()  # by round, per call
    first: float = math.nan  # the first call's, compilation included
    memory: int | None = None  # bytes at the peak beyond those before the call, result included; None: not known
    returns: str = ""  # the loss's dtype
    value_error: float = math.nan  # relative, against float64
    gradient_error: float = math.nan
    waits: bool = True  # the clock stopped when the result was there, not before
    problem: str = ""  # why there are no times

    @property
    def label(self) -> str:
        return f"{self.name}, {self.backend} {self.mode}"

    @property
    def time(self) -> Spread:
        return Spread.of([s for s in self.seconds if s is not None])


@dataclass
class Case:
    """One workload in one dtype, and everything that took part in its rounds."""

    workload: str
    why: str
    loss: str
    shape: tuple[int, ...]  # the logits'; of linear_ce rows, features, classes
    axis: int
    dtype: str
    buffers: int  # how many inputs the calls took turns on
    read: int  # bytes of inputs and labels
    write: int  # bytes of a gradient, or of both gradients
    moved: int  # bytes of each memory measurement
    memory: dict[str, tuple[float | None, ...]]  # seconds of "read", "write" (a new array), "copy", by round
    series: list[Series] = field(default_factory=list)
    value: int | None = None  # what a sweep varies

    @property
    def linear(self) -> bool:
        return self.loss == "linear_ce"

    @property
    def logits(self) -> int:
        """Bytes of the logits, whether they are there or not."""
        return self.shape[0] * self.shape[-1] * WIDTH[self.dtype] if self.linear else self.write

    def extra(self, series: Series) -> int | None:
        """Bytes at the peak beyond those before the call; of linear_ce, also beyond its gradients, which are not of the
        logits' size. None: not known."""
        if series.memory is None or not self.linear or series.which == "forward":
            return series.memory
        return max(0, series.memory - self.write)

    def operations(self, which: str) -> int:
        """Of linear_ce's products, one forward and two more for the gradients; 0 of other losses."""
        return (6 if which == "both" else 2) * math.prod(self.shape) if self.linear else 0

    @property
    def title(self) -> str:
        shape = "x".join(map(str, self.shape)) + (f" axis={self.axis}" if self.axis != -1 else "")
        return f"{self.workload}  {shape}  {self.dtype}"

    @property
    def identity(self) -> tuple[object, ...]:
        """What is the same in another run."""
        return self.workload, self.shape, self.dtype, self.value

    def joined(self, other: Case) -> Case:
        """With the rounds of another one of the same identity behind its own. Who failed in one of them only has not
        failed."""
        before, after = len(self.memory["read"]), len(other.memory["read"])
        mine, theirs = ({key(s): s for s in case.series} for case in (self, other))
        series = []
        for name in dict.fromkeys((*mine, *theirs)):
            found = [s for s in (mine.get(name), theirs.get(name)) if s and s.seconds]
            one = min(found, key=lambda s: bool(s.problem), default=mine.get(name) or theirs[name])
            seconds = [_rounds(mine.get(name), before), _rounds(theirs.get(name), after)]
            series.append(replace(one, seconds=tuple(chain(*seconds)) if found else ()))
        memory = {what: (*column, *other.memory[what]) for what, column in self.memory.items()}
        return replace(self, memory=memory, series=series)

    def wrong(self, series: Series) -> str:
        """What is wrong with its numbers, or "": errors beyond what the dtype excuses, or a clock stopped too early."""
        narrow = WIDTH[self.dtype] == 2  # of which a loss in float32 is promised to 1e-5
        of_loss = truth.tolerance(series.returns or self.dtype, series.ours, self.linear and not narrow)
        of_gradient = truth.tolerance(self.dtype, series.ours, self.linear)
        for what, error, most in (
            ("loss", series.value_error, of_loss),
            ("gradient", series.gradient_error, of_gradient),
        ):
            missing = not math.isfinite(error) and (what == "loss" or series.which == "both")
            if not series.problem and (missing or error > most):
                return f"{what} wrong: {'not finite' if missing else f'{error:.0e}'}"
        return "" if series.waits else "not synchronised"

    def floor(self, which: str) -> list[float | None]:
        """By round, the seconds that the least traffic takes at the bandwidth measured in it. None of linear_ce, which
        is not limited by that."""
        return [
            None
            if self.linear or read is None or write is None
            else (self.read * read + (self.write * write if which == "both" else 0)) / self.moved
            for read, write in zip(self.memory["read"], self.memory["write"], strict=True)
        ]

    def bandwidth(self, what: str) -> float:
        """Bytes a second; a copy counts what it reads and what it writes."""
        return self.moved * (2 if what == "copy" else 1) / Spread.of(_present(self.memory[what])).median

    def baseline(self, series: Series) -> Series | None:
        """xent on the same backend in the same mode and pass: what a contender is compared with."""
        same = (s for s in self.series if s.ours and not s.problem)
        return next((s for s in same if key(s)[1:] == key(series)[1:]), None)

    def find(self, name: str, backend: str, mode: str, which: str) -> Series | None:
        wanted = (name, backend, mode, which)
        return next((s for s in self.series if key(s) == wanted), None)


def _rounds(series: Series | None, count: int) -> Iterable[float | None]:
    """Its times in so many rounds; None where it was not there."""
    return series.seconds if series and series.seconds else repeat(None, count)


def key(series: Series) -> tuple[str, str, str, str]:
    return series.name, series.backend, series.mode, series.which


def ratio(slow: Sequence[float | None], fast: Sequence[float | None]) -> Spread:
    """How many times as long, over the rounds that both were in."""
    pairs = zip(slow, fast, strict=True)
    return Spread.of([a / b for a, b in pairs if a is not None and b is not None])


def _present(samples: Sequence[float | None]) -> list[float]:
    return [s for s in samples if s is not None]


@dataclass
class Result:
    """What `xent.bench` returns."""

    machine: dict[str, Any]
    settings: dict[str, Any]
    cases: list[Case] = field(default_factory=list)
    absent: list[str] = field(default_factory=list)  # what could not be run here, and why
    interrupted: bool = False

    def ratio(
        self, workload: str, dtype: str, slow: tuple[str, ...], fast: tuple[str, ...], value: int | None = None
    ) -> Spread:
        """How many times as long one contender takes as another, each named (name, backend, mode, which); of a sweep
        at this value."""
        case = self.find(workload, dtype, value)
        if case is None:
            raise ValueError(f"workload: expected one that was measured, got {workload!r} in {dtype}")
        found = []
        for argument, name in (("slow", slow), ("fast", fast)):
            series = case.find(*name)
            if series is None:
                raise ValueError(f"{argument}: expected (name, backend, mode, which) as measured, got {name!r}")
            found.append(series.seconds)
        return ratio(*found)

    def find(self, workload: str, dtype: str, value: int | None = None) -> Case | None:
        return next((c for c in self.cases if (c.workload, c.dtype, c.value) == (workload, dtype, value)), None)

    def add(self, case: Case) -> None:
        """Behind the rounds of the same case, if there are some already."""
        for place, there in enumerate(self.cases):
            if there.identity == case.identity:
                self.cases[place] = there.joined(case)
                return
        self.cases.append(case)

    def to_dict(self) -> dict[str, Any]:
        return {"format": FORMAT, **asdict(self)}

    def save(self, path: Path | str) -> None:
        """In one step, so that an interruption leaves a whole file."""
        path = Path(path)
        part = path.with_name(path.name + ".part")
        try:
            part.write_text(json.dumps(_plain(self.to_dict()), indent=None) + "\n", encoding="utf-8")
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)

    @classmethod
    def load(cls, path: Path | str) -> Result:
        """Raises ValueError where the file is not one of ours."""
        path = Path(path)
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise ValueError(f"{path}: {error.strerror or error}") from None
        except ValueError:
            raise ValueError(f"{path}: expected JSON written by xent bench, got something else") from None
        if not isinstance(found, dict) or found.pop("format", None) != FORMAT:
            raise ValueError(f"{path}: expected JSON written by xent bench (format {FORMAT}), got other JSON")
        try:
            cases = [_case(case) for case in found.pop("cases")]
            return cls(cases=cases, **found)
        except (KeyError, TypeError, ValueError, AttributeError):
            raise ValueError(f"{path}: expected JSON written by xent bench, but parts are missing or unknown") from None


def _case(found: dict[str, Any]) -> Case:
    series = [Series(**{**_numbers(s), "seconds": tuple(s["seconds"])}) for s in found.pop("series")]
    memory = {what: tuple(samples) for what, samples in found.pop("memory").items()}
    return Case(**{**found, "shape": tuple(found["shape"]), "memory": memory, "series": series})


def _numbers(series: dict[str, Any]) -> dict[str, Any]:
    """JSON has no NaN."""
    return {name: math.nan if value is None and name != "memory" else value for name, value in series.items()}


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def passes(case: Case) -> Iterator[tuple[str, list[Series]]]:
    """The forward pass, then forward and backward; each backend's xent first, then the fastest."""
    for which in ("forward", "both"):
        found = [s for s in case.series if s.which == which]
        if found:
            yield which, sorted(found, key=_order)


def _order(series: Series) -> tuple[str, bool, float]:
    middle = series.time.median
    return series.backend, not series.ours, math.inf if math.isnan(middle) else middle
