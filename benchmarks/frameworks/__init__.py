"""The contenders, one file a framework, all of the same shape: `make(device)` gives a `Framework`."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import xent

from ..workloads import Workload

Array = Any
Inputs = Any  # logits; of linear_ce a pair, hidden states and weight, as is the gradient
Loss = Callable[[Inputs, Array], Array]  # (inputs, labels) -> mean


class Contender(NamedTuple):
    """One way to get a mean loss and its gradient in the inputs, as its users would write it."""

    name: str
    mode: str  # "eager"; "compiled"; "graph": tf.function without XLA
    ours: bool
    forward: Callable[[Inputs, Array], Any]  # (inputs, labels) -> loss
    both: Callable[[Inputs, Array], Any]  # -> (loss, gradient)
    overwrites: bool = False  # it destroys its inputs, and wants them restored before each call


@dataclass(frozen=True)
class Framework:
    array: Callable[[Any, str], Array]  # (NumPy float32 values or ids, dtype): the contenders' argument
    numpy: Callable[[Array], Any]  # back, 16-bit floats as float32
    wait: Callable[[Any], None]  # until a result is there
    contenders: Callable[[Workload], list[Contender]]  # none: it has no such loss
    versions: tuple[str, ...]  # distributions to name in the report
    absent: list[str] = field(default_factory=list)  # rivals that cannot be run here, and why
    # start() -> stop() -> extra bytes at the peak, where the framework counts its memory (None: not known); else the
    # process's is taken
    peak: Callable[[], Callable[[], int | None]] | None = None
    # (function, its arguments) -> bytes for results and what comes between, where a compiler has laid them out
    planned: Callable[..., int] = lambda _function, *_arguments: 0
    begin: Callable[[str], None] = lambda _dtype: None  # a case in this dtype is about to begin


def ours(workload: Workload) -> Loss:
    """xent's loss, called as users call it."""
    loss: Callable[..., Array] = getattr(xent, workload.loss)
    if workload.linear:
        return paired(loss)
    return loss if workload.axis == -1 else functools.partial(loss, axis=workload.axis)


def paired(loss: Callable[..., Array]) -> Loss:
    """A loss of (hidden, weight, labels) as a contender has it."""
    return lambda x, y: loss(*x, y)


def held(loss: Loss) -> Loss:
    """A loss of logits as one of hidden states and a weight: all the logits are there at once."""
    return lambda x, y: loss(x[0] @ x[1].T, y)


def each(function: Callable[[Array], Any], inputs: Inputs) -> Any:
    """Of one array, or of each in a tuple."""
    return tuple(map(function, inputs)) if isinstance(inputs, tuple) else function(inputs)


def parts(result: Any) -> Iterator[Array]:
    """The arrays of a loss, a gradient, or both."""
    if not isinstance(result, tuple):
        yield result
    else:
        for part in result:
            yield from parts(part)
