"""The contenders, one file a framework, all of the same shape: `make(device)` gives a `Framework`."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import xent

from ..workloads import Workload

Array = Any
Loss = Callable[[Array, Array], Array]  # (logits, labels) -> mean


class Contender(NamedTuple):
    """One way to get a mean loss and its gradient, as its users would write it."""

    name: str
    mode: str  # "eager"; "compiled"; "graph": tf.function without XLA
    ours: bool
    forward: Callable[[Array, Array], Any]  # (logits, labels) -> loss
    both: Callable[[Array, Array], Any]  # -> (loss, gradient)
    overwrites: bool = False  # it destroys its logits, and wants them restored before each call


@dataclass(frozen=True)
class Framework:
    array: Callable[[Any, str], Array]  # (NumPy float32 values or ids, dtype): the contenders' argument
    numpy: Callable[[Array], Any]  # back, 16-bit floats as float32
    wait: Callable[[Any], None]  # until a result is there
    contenders: Callable[[Workload], list[Contender]]
    versions: tuple[str, ...]  # distributions to name in the report
    absent: list[str] = field(default_factory=list)  # rivals that cannot be run here, and why
    # start() -> stop() -> extra bytes at the peak, where the framework counts its memory (None: not known); else the
    # process's is taken
    peak: Callable[[], Callable[[], int | None]] | None = None
    begin: Callable[[str], None] = lambda _dtype: None  # a case in this dtype is about to begin


def ours(workload: Workload) -> Loss:
    """xent's loss, called as users call it."""
    loss: Callable[..., Array] = getattr(xent, workload.loss)
    return loss if workload.axis == -1 else functools.partial(loss, axis=workload.axis)
