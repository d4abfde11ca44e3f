"""The results of a run, medians and quartiles, errors and memory, and their file."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from xent.benchmarks.workloads import WIDTH, Workload

FORMAT = 2  # of the file
ENOUGH = 5  # the fewest rounds for a verdict of faster or slower


class Spread(NamedTuple):
    """A median, its quartiles, and the number of rounds."""

    median: float
    low: float
    high: float
    rounds: int

    @classmethod
    def of(cls, samples: Sequence[float]) -> Spread:
        if len(samples) == 1:
            return cls(samples[0], samples[0], samples[0], 1)
        low, middle, high = statistics.quantiles(samples, n=4, method="inclusive")
        return cls(middle, low, high, len(samples))

    @classmethod
    def ratio(cls, slow: Iterable[float], fast: Iterable[float]) -> Spread:
        """Of the ratios of two times in the same round."""
        return cls.of([a / b for a, b in zip(slow, fast, strict=True)])


@dataclass
class Series:
    """One contender on one case in one pass. None: not known, or nothing to compare with."""

    name: str
    backend: str
    mode: str
    ours: bool
    which: str  # "forward", or "both": forward and backward
    time: Spread | None = None  # seconds a call
    ratio: Spread | None = None  # of a rival: how many times as long as xent in the same mode, by paired rounds
    best: Spread | None = None  # of a rival: how many times as long as xent in its fastest mode
    floor: Spread | None = None  # the share of its time that the least traffic takes
    first: float | None = None  # seconds of the first call, compilation included
    sent: int | None = None  # bytes that each of several processes sends to others
    memory: int | None = None  # bytes at the peak beyond those before the call, result included
    value_error: float | None = None  # relative, against float64
    gradient_error: float | None = None
    problem: str = ""  # why it has no times: it failed, is wrong, or its clock stopped early

    @property
    def key(self) -> tuple[str, str, str, str]:
        """Identifies the series in other cases and runs."""
        return self.name, self.backend, self.mode, self.which

    @property
    def label(self) -> str:
        return f"{self.name}, {self.backend} {self.mode}"

    @property
    def verdict(self) -> str:
        """Of a rival: "win" or "loss" of xent's if both quartiles agree, else "level"; "" without a comparison."""
        if self.ratio is None:
            return ""
        if self.ratio.rounds < ENOUGH or self.ratio.low <= 1 <= self.ratio.high:
            return "level"
        return "win" if self.ratio.low > 1 else "loss"


def compare(timed: Sequence[tuple[Series, Sequence[float]]]) -> None:
    """Sets each contender's times, and their ratios to xent's in the same mode and to xent's fastest, by round."""
    for series, samples in timed:
        series.time = Spread.of(samples)
        ours = [(s, own) for s, own in timed if s.ours and s.which == series.which]
        if ours and not series.ours:
            _, fastest = min(ours, key=lambda one: statistics.median(one[1]))
            series.best = Spread.ratio(samples, fastest)
            for _, own in ((s, own) for s, own in ours if s.mode == series.mode):
                series.ratio = Spread.ratio(samples, own)


@dataclass
class Case:
    """One workload in one dtype."""

    workload: Workload
    dtype: str
    threads: int
    value: int | None = None  # what a sweep varies
    bandwidth: dict[str, tuple[float, float]] = field(default_factory=dict)  # by backend, bytes/s read and written
    series: list[Series] = field(default_factory=list)

    @property
    def title(self) -> str:
        axis = f" axis={self.workload.axis}" if self.workload.axis != -1 else ""
        return f"{self.workload.name}  {'x'.join(map(str, self.workload.shape))}{axis}  {self.dtype}"

    @property
    def key(self) -> tuple[object, ...]:
        """Identifies the case in other runs."""
        return self.workload.name, self.workload.shape, self.dtype, self.value

    def runs_on(self, backend: str) -> bool:
        return self.workload.ranks == 1 or backend == "torch"

    @property
    def memory(self) -> int:
        """About how many bytes have to be free: for the inputs, and for the check or the largest contender."""
        work = self.workload
        held = work.inputs * (work.copies(self.dtype) + (not work.ids)) * WIDTH[self.dtype]
        return held + 4 * (8 * work.logits + 6 * work.inputs * work.linear)

    def floor(self, which: str) -> float | None:
        """Seconds of the least memory traffic at the measured bandwidth; None for linear_ce."""
        read, write = speed(self.bandwidth.values())
        least = self.workload.read(self.dtype), self.workload.written(self.dtype, which)
        return least[0] / read + least[1] / write if read else None

    def extra(self, series: Series | None) -> float:
        """`Series.memory`, or NaN; for linear_ce without its gradients, which are not of the logits' size."""
        if series is None or series.memory is None:
            return math.nan
        results = self.workload.written(self.dtype, series.which) if self.workload.linear else 0
        return max(0, series.memory - results)

    def find(self, key: tuple[str, str, str, str]) -> Series | None:
        return next((series for series in self.series if series.key == key), None)


def speed(bandwidths: Iterable[tuple[float, float]]) -> tuple[float, float]:
    """The fastest bandwidths that were measured, since a floor is a lower bound; 0 if none was."""
    read, write = map(max, zip(*(list(bandwidths) or [(0.0, 0.0)]), strict=True))
    return float(read), float(write)


@dataclass
class Result:
    """What `xent.bench` returns."""

    machine: dict[str, Any]
    settings: dict[str, Any]
    cases: list[Case] = field(default_factory=list)
    absent: list[str] = field(default_factory=list)  # what cannot run on this machine, and why
    broken: list[str] = field(default_factory=list)  # processes and cases that failed
    interrupted: bool = False

    @property
    def failures(self) -> list[str]:
        """Where xent failed or was wrong, and all processes that died, for whatever reason."""
        ours = [(case, s) for case in self.cases for s in case.series if s.ours and s.problem]
        return [*self.broken, *(f"{case.title}: {s.label}: {s.problem}" for case, s in ours)]

    def save(self, path: Path | str) -> None:
        """Replaces the file at once, so that an interruption leaves a complete one. Floats have four digits."""
        path = Path(path)
        part = path.with_name(path.name + ".part")
        exact = json.dumps({"format": FORMAT, **asdict(self, dict_factory=_known)})
        short = json.loads(exact, parse_float=lambda text: float(f"{float(text):.4g}"))
        try:
            part.write_text(json.dumps(short) + "\n", encoding="utf-8")
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)

    @classmethod
    def load(cls, path: Path | str) -> Result:
        """Raises ValueError for a file that `save` did not write."""
        try:
            found = json.loads(Path(path).read_text(encoding="utf-8"))
            if found.pop("format") != FORMAT:
                raise ValueError
            return cls(**found | {"cases": [_case(**case) for case in found["cases"]]})
        except OSError as error:
            raise ValueError(f"{path}: {error.strerror or error}") from None
        except (KeyError, TypeError, ValueError, AttributeError):
            raise ValueError(f"{path}: expected JSON written by xent bench (format {FORMAT}), got other") from None


def _known(fields: list[tuple[str, Any]]) -> dict[str, Any]:
    """The fields without those that are not known or NaN."""
    return {name: value for name, value in fields if value not in (None, "") and value == value}


def _case(workload: dict[str, Any], series: list[dict[str, Any]], **rest: Any) -> Case:
    """JSON has lists where a workload has tuples and a series has spreads."""
    each = [Series(**_from_lists(one, Spread._make)) for one in series]
    return Case(Workload(**_from_lists(workload, tuple)), series=each, **rest)


def _from_lists(found: dict[str, Any], convert: Callable[[list[Any]], Any]) -> dict[str, Any]:
    return {name: convert(value) if isinstance(value, list) else value for name, value in found.items()}
