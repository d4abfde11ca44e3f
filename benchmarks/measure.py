"""The time and memory of a call, the speed of memory, and a check that the clock did not stop too early."""

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

LATE = 0.25  # a share of a call's time: by how much a fetch at once may take longer than one after a pause
STATUS, FORGET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def seconds(calls: Iterator[Call], wait: Wait, least: float = 0.0) -> float:
    """Seconds of a call, over as many calls as take at least `least` seconds; freeing the results is included."""
    count, taken, start = 0, -1.0, time.perf_counter()
    while taken < least:
        result = next(calls)()
        wait(result)
        del result
        count += 1
        taken = time.perf_counter() - start
    return taken / count


def late(call: Call, wait: Wait, fetch: Callable[[Any], Any]) -> bool:
    """Whether the result is unfinished when `wait` returns: fetched at once, it takes longer than after a pause.

    That needs no knowledge of the framework, so a wrong `wait` is found as well. It has to happen three times: on a
    busy machine a fetch may be interrupted.
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
    """What a call returns, and by how many bytes the process's memory grew at its peak, result included.

    None where that is not known: only Linux keeps the peak and can reset it.
    """
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)  # the call could use memory that the C library has kept
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
    """What reads and what writes host memory: NumPy's loops, which release the GIL, on several threads."""
    source = np.ones(size // 4, np.float32)
    pool = ThreadPoolExecutor(threads)

    def read() -> None:
        list(pool.map(np.max, np.array_split(source, threads)))

    def write() -> None:
        list(pool.map(lambda part: part.fill(1), np.array_split(np.empty_like(source), threads)))

    return read, write
