"""Samples while a machine is as it usually is, which its memory's speed tells."""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median
from typing import TypeVar

from .workers import Worker

T = TypeVar("T")
ALIKE = 1.2  # times as fast or slow as usual
FIRST, PAUSE = 20, 0.1  # looks before the first sample, and seconds to wait before the next one
FRESH = 0.02  # seconds that a look is good for


class Steady:
    """A virtual machine's memory may have two speeds, in turns of seconds to minutes, as if the host put its processors
    beside each other (two read 34 GB/s) or apart (52, and threads wait longer for each other). A loss that waits for
    memory and one that computes then have another ratio, and a run another result than the next one."""

    def __init__(self) -> None:
        self.seen: list[float] = []  # seconds for the same bytes, in the whole run
        self.at = -FRESH  # of the last look

    def begin(self, memory: Worker, patience: float) -> None:
        """With this process; waiting, and samples that are taken again, may take so many seconds."""
        self.memory, self.left = memory, patience
        while len(self.seen) < FIRST:
            self.seen.append(self._look())
            time.sleep(PAUSE)

    def take(self, sample: Callable[[], T]) -> T:
        """A sample before and after which the memory is as fast as usual; any, when there is no patience left."""
        while True:
            self._wait()
            start = time.monotonic()
            found = sample()
            self.seen.append(self._look())
            if self._usual() or self.left <= 0:
                return found
            self.left -= time.monotonic() - start

    def _wait(self) -> None:
        start = time.monotonic()
        if start - self.at > FRESH:
            self._look()
        while self.left > 0 and not self._usual():
            time.sleep(PAUSE)
            self._look()
            self.left -= time.monotonic() - start
            start = time.monotonic()

    def _look(self) -> float:
        seconds: float = self.memory.ask("look")["seconds"]
        self.last, self.at = seconds, time.monotonic()
        return seconds

    def _usual(self) -> bool:
        usual = median(self.seen)
        return usual / ALIKE <= self.last <= usual * ALIKE
