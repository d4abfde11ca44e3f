"""The contenders, one file for each framework, whose `make(device)` returns a `Framework`."""

from __future__ import annotations

import functools
import importlib
import importlib.util
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import xent
from xent.benchmarks.workloads import Workload
from xent.verify.contender import imported_or_raising

Array = Any
Inputs = Any  # logits; of linear_ce a pair, hidden states and weight, as is the gradient
Loss = Callable[[Inputs, Array], Array]  # (inputs, labels) -> mean
Call = Callable[[Inputs, Array], Any]
Traffic = tuple[Callable[[], Any], Callable[[], Any]]  # what reads an array from memory, and what writes a new one
Mode = Callable[[Loss], tuple[Call, Call]]  # a loss -> what computes it, and what computes it with its gradient
KERAS = {"sparse_ce": "sparse_categorical", "softmax_ce": "categorical", "sigmoid_ce": "binary"}


class Contender(NamedTuple):
    """One way to get a mean loss and its gradient in the inputs, as its users write it."""

    name: str
    mode: str  # "eager"; "compiled"; "graph": tf.function without XLA
    forward: Call  # (inputs, labels) -> loss
    both: Call  # (inputs, labels) -> (loss, gradient)


@dataclass(frozen=True)
class Framework:
    array: Callable[[Any, str], Array]  # (NumPy float32 values or ids, dtype) -> a contender's argument
    numpy: Callable[[Array], Any]  # back, 16-bit floats as float32
    contenders: Callable[[Workload], Iterable[Contender]]
    distributions: tuple[str, ...]  # packages whose versions are reported; those of rivals may be missing
    wait: Callable[[Any], None] = lambda _: None  # waits until a result is complete
    begin: Callable[[str], None] = lambda _: None  # called before the first use of a dtype
    limit: Callable[[int], None] = lambda _: None  # sets the number of threads, if the process's processors do not
    # start() -> stop() -> extra bytes at the peak by the framework's own count; None if it has none
    peak: Callable[[], Callable[[], int | None]] = lambda: lambda: None
    # (function, arguments) -> bytes that the compiler has reserved for results and temporaries
    planned: Callable[..., int | None] = lambda *_: None
    modes: dict[str, Mode] = field(default_factory=dict)  # for a user's own loss
    mean: Callable[[Array], Array] = lambda x: x.mean()
    # (workload, dtype, job, seed) -> the series of classes that are split over processes
    of_ranks: Callable[..., list[Any]] = lambda *_: []
    traffic: Callable[[int], Traffic] | None = None  # on a device, by its size; None: not known here


def in_modes(modes: dict[str, Mode], name: str, loss: Loss) -> Iterator[Contender]:
    """A loss in each of the modes."""
    for mode, wrap in modes.items():
        yield Contender(name, mode, *wrap(loss))


def keras(workload: Workload, modes: dict[str, Mode]) -> Iterator[Contender]:
    """Keras's loss on the backend that KERAS_BACKEND names; none for linear_ce, where it would hold all logits as the
    framework's own loss does."""
    if workload.loss in KERAS and installed("keras"):
        library = importlib.import_module("keras")
        own = getattr(library.losses, f"{KERAS[workload.loss]}_crossentropy")

        def loss(x: Array, y: Array) -> Array:
            # Some of Keras's backends take only the last axis.
            x = x if workload.axis == -1 else library.ops.moveaxis(x, workload.axis, -1)
            return library.ops.mean(own(y, x, from_logits=True))

        yield from in_modes(modes, "keras.losses", loss)


def why_not_users(workload: Workload) -> str:
    """Why a user's loss of (logits, labels), classes last, is not timed on this workload; "" where it is."""
    if workload.linear:
        return "its inputs are hidden states and a weight, not logits"
    if workload.ranks > 1:
        return "its classes are split over processes"
    return "" if workload.axis == -1 else f"its classes are on axis {workload.axis}, not on the last one"


def of_users(framework: Framework, workload: Workload, references: Iterable[str]) -> Iterator[Contender]:
    """Losses of (logits, labels) that "package.module:function" names, where the workload has such arguments."""
    for reference in () if why_not_users(workload) else references:
        loss = imported_or_raising(reference)
        yield from in_modes(framework.modes, reference, functools.partial(_mean, framework.mean, loss))


def _mean(mean: Callable[[Array], Array], loss: Loss, x: Array, y: Array) -> Array:
    return mean(loss(x, y))


def installed(distribution: str) -> bool:
    return importlib.util.find_spec(distribution.replace("-", "_")) is not None


def ours(workload: Workload) -> Loss:
    """xent's loss, called as users call it."""
    loss: Callable[..., Array] = getattr(xent, workload.loss)
    if workload.linear:
        return paired(loss)
    return loss if workload.axis == -1 else functools.partial(loss, axis=workload.axis)


def paired(loss: Callable[..., Array]) -> Loss:
    """A loss of (hidden, weight, labels) as a contender takes it."""
    return lambda x, y: loss(*x, y)


def held(workload: Workload, loss: Loss) -> Loss:
    """A loss of logits as a contender takes it: for linear_ce, with all logits in memory at once."""
    return (lambda x, y: loss(x[0] @ x[1].T, y)) if workload.linear else loss


def each(function: Callable[[Array], Any], inputs: Inputs) -> Any:
    """The function of one array, or of each array in a tuple."""
    return tuple(map(function, inputs)) if isinstance(inputs, tuple) else function(inputs)


def arrays(result: Any) -> list[Array]:
    """The arrays of a loss, a gradient, or both."""
    return [array for part in result for array in arrays(part)] if isinstance(result, tuple) else [result]
