"""One framework's process: builds the contenders, checks them, and times them one call at a time as the driver asks.

Speaks JSON, a line a message, on the standard output it was started with; whatever the frameworks print goes to
standard error.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import itertools
import json
import os
import sys
import time
import traceback
from collections.abc import Iterator
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from xent import _live

from . import clock, frameworks, inputs, memory_traffic, truth
from .frameworks import Contender, Framework
from .workloads import PASSES, Workload

SLOW = 0.1  # seconds: what takes so long has not come back early
MOVES = 4  # of the memory in a sample
LOOKS, SIGHT = 4, 1 << 27  # reads at it, bytes
GROWING = 6  # samples at most until the heap has all that its calls take: what is fresh takes ten times as long
LITTLE = 1 << 22  # bytes


class Server:
    """The state between messages."""

    framework: Framework

    def __init__(self) -> None:
        self.taken: dict[tuple[int, str], int] = {}  # by contenders and passes, bytes from the system
        self.grown: set[tuple[int, str]] = set()  # for whom they are there from the last time

    def start(self, backend: str, device: str, threads: int) -> dict[str, Any]:
        """Imports the framework; answers with what it is, and with what cannot be run here."""
        name, _, keras = backend.partition("-")
        if name == "memory":
            self.threads, self.device = threads, device
            if device == "cpu":
                self.sight = memory_traffic.host(SIGHT, threads)
            return {"versions": {}, "absent": []}
        live = _live.live(keras or name)
        self.dtypes, self.device = live.dtypes, _live.device(live.devices(), device)
        if not self.device:
            return {"problem": f"no {device} here, only {', '.join(live.devices())}"}
        _limit(keras or name, threads)
        module = importlib.import_module(f"xent.benchmarks.frameworks.{name}")
        self.framework = module.make(self.device, keras) if keras else module.make(self.device)
        return {"versions": {name: _version(name) for name in self.framework.versions}, "absent": self.framework.absent}

    def case(self, workload: dict[str, Any], dtype: str, seed: int, folder: str) -> dict[str, Any]:
        """Makes the arrays; answers with the contenders' names and modes."""
        self.end()
        workload["shape"] = tuple(workload["shape"])
        self.workload, self.dtype = Workload(**workload), dtype
        if dtype not in self.dtypes:
            return {"contenders": [], "buffers": 0, "absent": f"no {dtype} without ml_dtypes"}
        self.framework.begin(dtype)
        self.contenders = self.framework.contenders(self.workload)
        if not self.contenders:
            return {"contenders": [], "buffers": 0}
        clock.keep_freed(False)  # others are checked meanwhile; and it would leave the heap in pieces
        self.x, y, self.true = inputs.known(folder, self.workload, dtype, seed)
        self.labels = self.framework.array(y, dtype)
        self.inputs = [self._input() for _ in range(self.workload.copies(dtype))]
        self.turns = itertools.cycle(range(len(self.inputs)))
        self.grown.clear()
        named = [{"name": c.name, "mode": c.mode, "ours": c.ours} for c in self.contenders]
        return {"contenders": named, "buffers": len(self.inputs)}

    def check(self, index: int, which: str, again: bool = False) -> dict[str, Any]:
        """First call, correctness, whether it waits, memory, and about how long a call takes. Again: what is right and
        waits need not be looked at."""
        try:
            with clock.within_memory():
                return self._checked(index, which, again)
        except Exception as error:  # whatever a framework raises is what the report is to say
            return {"problem": f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0][:200]}"}

    def _checked(self, index: int, which: str, again: bool) -> dict[str, Any]:
        contender, wait = self.contenders[index], self.framework.wait
        self._restore(contender)
        start = time.perf_counter()
        result = next(self._calls(contender, which))()
        wait(result)
        first = time.perf_counter() - start
        errors = {} if again else self._errors(result, which)
        del result
        self._restore(contender)
        call = next(self._calls(contender, which))
        peak, self.taken[index, which], once = self._memory_and_time(call)
        self._restore(contender)
        waits = again or once > SLOW or not clock.late(call, wait, partial(_fetch, self.framework))
        return {"first": first, "waits": waits, "memory": peak, "seconds": once, **errors}

    def _memory_and_time(self, call: partial[Any]) -> tuple[int | None, int, float]:
        """Of the second call, which compiles nothing: its peak, what of that the system had to give, seconds."""
        times: list[float] = []

        def timed() -> None:
            times.append(clock.seconds(iter([call]), self.framework.wait, 1))

        stop = self.framework.peak() if self.framework.peak else lambda: 0
        of_process = clock.peak_memory(timed)
        counted, planned = stop(), self.framework.planned(call.func, *call.args)
        if counted is None:  # JAX's allocator on a GPU does not forget the first call's
            counted = planned or None
        elif self.device == "cpu":  # TensorFlow's count knows nothing of memory it was lent
            counted = max(counted, of_process, planned)
        return counted, of_process, times[0]

    def checked(self) -> dict[str, Any]:
        """Gives back what only checks need: every process holds its own arrays."""
        if not any(contender.overwrites for contender in self.contenders):
            self.__dict__.pop("x", None)  # not there where there are no contenders
            self.true = None
        clock.give_back()
        clock.keep_freed(True)
        return {}

    def time(self, index: int, which: str, repeat: int) -> dict[str, Any]:
        contender, grown = self.contenders[index], (index, which) in self.grown
        kept = max((self.taken.get(one, 0) for one in self.grown), default=0)
        with clock.within_memory(self.taken.get((index, which), 0) - kept):
            self._restore(contender)
            calls = self._calls(contender, which)
            first = repeat // 10 + (repeat > 1 or not grown)  # caches, threads and memory wake up
            if first:
                clock.seconds(calls, self.framework.wait, first)
            found = self._sample(calls, repeat)
        self.grown.add((index, which))
        if self.device == "cpu":  # elsewhere the host's threads matter to nobody
            clock.rest()
        return {"seconds": found}

    def _sample(self, calls: Iterator[partial[Any]], repeat: int) -> float:
        """Seconds a call, in memory that was there before as far as there is enough: a heap in pieces may take as much
        again as the last time, and what it takes back in a hole no limit of the system's counts."""
        held = clock.held()
        found = clock.seconds(calls, self.framework.wait, repeat)
        with contextlib.suppress(Exception):  # whatever is raised for want of memory: a slow sample is better than none
            for _ in range(GROWING - 1):
                before, held = held, clock.held()
                if held - before <= LITTLE or not clock.room(held - before):
                    break
                found = clock.seconds(calls, self.framework.wait, repeat)
        return found

    def give_back(self) -> dict[str, Any]:
        clock.give_back()
        self.grown.clear()
        return {}

    def memory(self, size: int) -> dict[str, Any]:
        self.traffic = memory_traffic.make(size, self.device, self.threads)
        for what in ("read", "write", "copy"):
            getattr(self.traffic, what)()
        return {"size": self.traffic.size}

    def move(self, what: str) -> dict[str, Any]:
        calls = itertools.repeat(getattr(self.traffic, what))
        clock.seconds(calls, _done, 1)
        return {"seconds": clock.seconds(calls, _done, MOVES)}

    def look(self) -> dict[str, Any]:
        """The fastest of some reads of the host's memory: what interrupts one of them is no slow memory."""
        return {"seconds": min(clock.seconds(iter([self.sight.read]), _done, 1) for _ in range(LOOKS))}

    def end(self) -> dict[str, Any]:
        for name in ("x", "labels", "inputs", "contenders", "true", "traffic"):
            self.__dict__.pop(name, None)
        clock.give_back()
        return {}

    def _calls(self, contender: Contender, which: str) -> Iterator[partial[Any]]:
        """Each with the next of the inputs, which all contenders take turns on."""
        function = contender.forward if which == PASSES[0] else contender.both
        return map([partial(function, x, self.labels) for x in self.inputs].__getitem__, self.turns)

    def _restore(self, contender: Contender) -> None:
        if contender.overwrites:
            self.inputs = [self._input() for _ in self.inputs]

    def _input(self) -> Any:
        """The framework's logits, or its hidden states and weight."""
        return frameworks.each(lambda k: self.framework.array(k, self.dtype), self.x)

    def _errors(self, result: Any, which: str) -> dict[str, Any]:
        loss, gradient = (result, None) if which == PASSES[0] else result
        found = {"value_error": truth.value_error(self.true, self.framework.numpy(loss)), "returns": _dtype(loss)}
        if gradient is not None:
            for part in frameworks.parts(gradient):
                if _dtype(part) != self.dtype:
                    raise TypeError(f"gradient: expected {self.dtype}, got {_dtype(part)}")
            values = frameworks.each(self.framework.numpy, gradient)
            found["gradient_error"] = truth.gradient_error(self.true, values, self.dtype)
        return found


def _done(result: Any) -> None:
    """The memory's functions wait by themselves."""


def _dtype(array: Any) -> str:
    """Its NumPy name, whatever the framework; "" for what is no array."""
    dtype = getattr(array, "dtype", "")
    return str(getattr(dtype, "name", None) or str(dtype).removeprefix("torch."))


def _fetch(framework: Framework, result: Any) -> None:
    """A number of each array: it is not there before the array is, and takes no time to bring over."""
    for array in frameworks.parts(result):
        framework.numpy(array[(0,) * array.ndim] if getattr(array, "ndim", 0) else array)


def _limit(backend: str, threads: int) -> None:
    """The affinity this process was given does it where the system knows one; these two have a setting."""
    if backend == "torch":
        importlib.import_module("torch").set_num_threads(threads)
    if backend == "tensorflow":
        threading = importlib.import_module("tensorflow").config.threading
        threading.set_intra_op_parallelism_threads(threads)


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "?"


def main() -> None:
    with contextlib.suppress(AttributeError):  # frameworks count the processors that they may use
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: int(sys.argv[1])])
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    server = Server()
    for line in sys.stdin:
        message = json.loads(line)
        do = message.pop("do")
        try:
            answer = getattr(server, do)(**message)
            if do in ("start", "checked", "end"):
                gc.unfreeze()
                gc.collect()
                gc.freeze()  # a framework's million objects take a quarter of a second to look through
        except Exception:
            answer = {"crash": traceback.format_exc()}
        print(json.dumps(answer), file=answers, flush=True)
