"""How long a call takes and how much memory; how fast memory is; and how a clock that stopped early is found out."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from xent.benchmarks.frameworks import Traffic

Call = Callable[[], Any]
Wait = Callable[[Any], None]

LATE = 0.25  # of a call's time: a result's first fetch may take so much longer than a later one's
STATUS, FORGET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def seconds(calls: Iterator[Call], wait: Wait, least: float = 0.0) -> float:
    """Per call, over as many as take so long together, one at least; freeing the results is part of it."""
    count, taken, start = 0, -1.0, time.perf_counter()
    while taken < least:
        result = next(calls)()
        wait(result)
        del result
        count += 1
        taken = time.perf_counter() - start
    return taken / count


def late(call: Call, wait: Wait, fetch: Callable[[Any], Any]) -> bool:
    """Whether the result is not there yet when `wait` returns: fetched at once, it takes longer than after a pause.

    Knows nothing of any framework, so it also finds out a `wait` that is wrong. Three times over, since on a busy
    machine a fetch may be interrupted.
    """

    def fetching(pause: float) -> float:
        result = call()
        wait(result)
        time.sleep(pause)
        start = time.perf_counter()
        fetch(result)
        return time.perf_counter() - start

    def seems_late() -> bool:
        start = time.perf_counter()
        at_once = median(fetching(0) for _ in range(3))
        whole = (time.perf_counter() - start) / 3
        rested = median(fetching(min(1.0, 0.001 + 4 * whole)) for _ in range(3))
        return at_once - rested > max(LATE * whole, 20e-6)

    return all(seems_late() for _ in range(3))


def peak(call: Callable[[], float]) -> tuple[float, int | None]:
    """What a call returns, and the bytes of host memory at its peak beyond those before it, its result included.

    None where the system does not tell: it is Linux that keeps the peak, and forgets it on demand.
    """
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)  # what the C library keeps for later would hide what the call takes
    try:
        FORGET.write_text("5")
        before = _status("VmRSS")
    except OSError:
        return call(), None
    return call(), max(0, _status("VmHWM") - before)


def _status(name: str) -> int:
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith(name))
    return 1024 * int(line.split()[1])


def host_traffic(size: int, threads: int) -> Traffic:
    """By NumPy's loops, which let each other run."""
    source = np.ones(size // 4, np.float32)
    pool = ThreadPoolExecutor(threads)

    def read() -> None:
        list(pool.map(np.max, np.array_split(source, threads)))

    def write() -> None:
        list(pool.map(lambda part: part.fill(1), np.array_split(np.empty_like(source), threads)))

    return read, write
