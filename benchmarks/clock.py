"""How one contender is timed, how its memory is taken, and how a clock that stopped too early is found out."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import psutil

from . import machine

if sys.platform == "linux":
    import resource

Call = Callable[[], Any]
Wait = Callable[[Any], None]
PARTS = 4  # of a sample
SLOW = 0.1  # seconds: such calls may hold so much memory that it is waste before the next one
M_MMAP_MAX, ARRAYS = -4, 1 << 16  # glibc's name for how many have memory of their own; its own number
SPARE = 1 << 30  # bytes that the system needs itself
FEW = 1 << 26  # bytes that are always there
GLANCE, REST = 0.0003, 0.12  # seconds: to see whether threads still work; to wait where that cannot be seen
LONGEST = 0.2  # seconds to wait for them
LATE = 0.25  # of a call's time: so much may a result's first fetch take longer than a later one's


def seconds(calls: Iterator[Call], wait: Wait, repeat: int) -> float:
    """Per call, over the next `repeat` of them; giving back the results' memory is part of it.

    The median of four parts: one call may be interrupted, or have to wait for memory that a virtual machine's host took
    back, and take ten times as long as those before and after it.
    """
    ends = [repeat * part // PARTS for part in range(PARTS + 1)]
    counts = [end - start for start, end in pairwise(ends) if end > start]
    collecting, times = gc.isenabled(), []
    gc.disable()
    try:
        for count in counts:
            times.append(_mean(calls, wait, count))
            if collecting and times[-1] * count > SLOW:
                gc.collect()  # some leave their results in cycles
    finally:
        if collecting:
            gc.enable()
    return median(times)


def _mean(calls: Iterator[Call], wait: Wait, count: int) -> float:
    start = time.perf_counter()
    for _ in range(count):
        result = next(calls)()
        wait(result)
        del result
    return (time.perf_counter() - start) / count


def late(call: Call, wait: Wait, fetch: Callable[[Any], Any]) -> bool:
    """Whether the result is not there yet when `wait` returns.

    Knows nothing of any framework, so it also finds out a framework's own `wait`. A clock that stops too early always
    does; on a busy machine a fetch may be interrupted more often than not, but not three times over.
    """
    return all(_seems_late(call, wait, fetch) for _ in range(3))


def _seems_late(call: Call, wait: Wait, fetch: Callable[[Any], Any], tries: int = 5) -> bool:
    """A result fetched at once, against one fetched after a pause: longer by a part of the call's own time?"""
    whole: list[float] = []
    at_once: list[float] = []
    rested: list[float] = []
    for _ in range(tries):
        for took, pause in ((at_once, 0.0), (rested, min(1.0, 0.01 + 4 * max(whole, default=0.0)))):
            start = time.perf_counter()
            result = call()
            wait(result)
            time.sleep(pause)
            fetched = time.perf_counter()
            fetch(result)
            took.append(time.perf_counter() - fetched)
            if not pause:
                whole.append(time.perf_counter() - start)
            del result
    return median(at_once) - median(rested) > max(LATE * median(whole), 20e-6)


def rest() -> None:
    """Until no other thread of this process works. Some wait for the next call by spinning, GNU OpenMP's for 9 ms,
    OpenBLAS's for 0.1 s, and would keep whoever is timed next from their processor."""
    if sys.platform != "linux":
        time.sleep(REST)
        return
    end = time.monotonic() + LONGEST
    while time.monotonic() < end:
        before = _worked()
        time.sleep(GLANCE)
        if _worked() - before < GLANCE / 3:
            return


def _worked() -> float:
    """Seconds that all threads but this one have been on a processor. Linux counts to the microsecond where a thread is
    asked for by its own clock, and only from tick to tick for the process or in /proc."""
    others = {int(name) for name in os.listdir("/proc/self/task")} - {threading.get_native_id()}
    total = 0.0
    for thread in others:
        with contextlib.suppress(OSError):  # it has ended
            total += time.clock_gettime(~thread << 3 | 6)  # CPUCLOCK_PERTHREAD_MASK | CPUCLOCK_SCHED
    return total


def give_back() -> None:
    """To the system, what the C library keeps for later."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)


def keep_freed(keep: bool) -> None:
    """Whether the C library keeps large arrays' memory when they are freed, if this process was started to do so."""
    with contextlib.suppress(OSError, AttributeError, TypeError, ValueError):
        most = int(os.environ.get("MALLOC_MMAP_MAX_", ARRAYS)) if keep else ARRAYS
        ctypes.CDLL(None).mallopt(M_MMAP_MAX, most)


def held() -> int:
    """Bytes that this process has from the system for itself alone, not for the files of its libraries."""
    found = psutil.Process().memory_info()
    own: int = found.rss - getattr(found, "shared", 0)  # which Linux tells, and may throw out at any time
    return own


def peak_memory(call: Call) -> int:
    """Bytes of host memory at the peak of a call beyond those before it, its result included."""
    give_back()  # what is kept would hide what is used
    before: int = psutil.Process().memory_info().rss
    watch = _KernelPeak() if sys.platform == "linux" and _KernelPeak.works() else _SampledPeak()
    with watch:
        call()
    return max(0, watch.peak - before)


def room(taken: int) -> bool:
    """Whether so many bytes can be had from the system."""
    return taken <= max(_here(), FEW)


def _here() -> int:
    return max(0, machine.memory("available") - SPARE)


@contextlib.contextmanager
def within_memory(taken: int = 0) -> Iterator[None]:
    """To ask for more than there is raises: Linux would end this process, or another one, as soon as it is used.

    taken: bytes that are known to be needed. What a heap has given back it takes again without asking for it.
    """
    if sys.platform != "linux":
        yield
        return
    if not room(taken):
        raise MemoryError(f"takes {taken} bytes, {_here()} are available")
    before = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (psutil.Process().memory_info().data + _here(), before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, before)


class _KernelPeak:
    """Linux keeps the peak, and forgets it on demand."""

    status, forget = Path("/proc/self/status"), Path("/proc/self/clear_refs")
    peak = 0

    @classmethod
    def works(cls) -> bool:
        try:
            cls.forget.write_text("5")
        except OSError:
            return False
        return True

    def __enter__(self) -> None:
        self.forget.write_text("5")

    def __exit__(self, *_: object) -> None:
        line = next(line for line in self.status.read_text().splitlines() if line.startswith("VmHWM"))
        self.peak = 1024 * int(line.split()[1])


class _SampledPeak:
    """Elsewhere a thread looks every half a millisecond."""

    def __init__(self) -> None:
        self.peak, self.stop = 0, threading.Event()
        self.thread = threading.Thread(target=self._look, daemon=True)

    def _look(self) -> None:
        process = psutil.Process()
        while not self.stop.wait(0.0005):
            self.peak = max(self.peak, process.memory_info().rss)

    def __enter__(self) -> None:
        self.thread.start()

    def __exit__(self, *_: object) -> None:
        self.stop.set()
        self.thread.join()
