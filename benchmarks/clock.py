"""How a call is timed, and how a clock that stopped before the result was there is found out."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator
from statistics import median
from typing import Any

Call = Callable[[], Any]
Wait = Callable[[Any], None]
LATE = 0.25  # of a call's time: a result's first fetch may take so much longer than a later one's
TRIES = 3


def seconds(calls: Iterator[Call], wait: Wait, repeat: int) -> float:
    """Per call, over the next `repeat` of them; freeing the results is part of it."""
    collecting = gc.isenabled()
    gc.disable()
    try:
        start = time.perf_counter()
        for _ in range(repeat):
            result = next(calls)()
            wait(result)
            del result
        return (time.perf_counter() - start) / repeat
    finally:
        if collecting:
            gc.enable()


def late(call: Call, wait: Wait, fetch: Callable[[Any], Any]) -> bool:
    """Whether the result is not there yet when `wait` returns.

    Knows nothing of any framework, so it also finds out a `wait` that is wrong. Three times over, since on a busy
    machine a fetch may be interrupted.
    """
    return all(_seems_late(call, wait, fetch) for _ in range(3))


def _seems_late(call: Call, wait: Wait, fetch: Callable[[Any], Any]) -> bool:
    """Whether a result that is fetched at once takes longer to fetch than after a pause."""
    whole: list[float] = []
    at_once: list[float] = []
    rested: list[float] = []
    for _ in range(TRIES):
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
