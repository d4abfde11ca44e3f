"""`xent compare`: every backend here against the truth, against each other, and beside the framework's own loss."""

from __future__ import annotations

import contextlib
import itertools
import math
import pickle
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from xent import _check, _live, _regimes, oracle
from xent._regimes import Batch

MODES = ("eager", "compiled")
SHAPES = {"eager": (10, 1000, 33333), "compiled": (1000,)}  # classes; compiling costs seconds a shape


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
    problem: str = ""  # what it raised, or why it was not run

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
    """What `compare` found. True if everything agrees with the truth."""

    rows: list[Row]
    pairs: list[Pair]
    missing: list[str]  # frameworks that are not installed
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
            "missing": self.missing,
            "rows": [{**asdict(row), "agrees": row.agrees} for row in self.rows],
            "pairs": [asdict(pair) for pair in self.pairs],
        }

    def __repr__(self) -> str:
        head = f"{'backend':11}{'loss':11}{'dtype':9}{'mode':9}{'loss err':>9} {'grad err':>9} {'of allowed':>10}   own loss"
        lines = [
            f"{r.backend:11}{r.loss:11}{r.dtype:9}{r.mode:9}{figure(r.value):>9} {figure(r.gradient):>9} "
            f"{r.share:>9.0%}{' ' if r.agrees else '!'}   {r.problem or native_text(r)}"
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
