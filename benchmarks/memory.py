"""Memory: how much a call takes at its peak, and how fast it is read and written."""

from __future__ import annotations

import contextlib
import ctypes
import gc
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import numpy as np
from xent.benchmarks.frameworks import Traffic

STATUS, FORGET = Path("/proc/self/status"), Path("/proc/self/clear_refs")
Returned = TypeVar("Returned")


def peak(call: Callable[[], Returned]) -> tuple[Returned, int | None]:
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
    source = np.ones(size // 8, np.int64)
    pool = ThreadPoolExecutor(threads)
    step = -(-len(source) // threads)
    parts = [slice(start, start + step) for start in range(0, len(source), step)]

    def write() -> None:
        new = np.empty_like(source)
        list(pool.map(lambda part: new[part].fill(1), parts))

    return Traffic(size, lambda: list(pool.map(lambda part: source[part].view(np.float32).max(), parts)), write)
