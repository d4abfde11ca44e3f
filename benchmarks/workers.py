"""The processes that do the work, one a framework, as the driver sees them."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

T = TypeVar("T")


class Died(RuntimeError):
    """A process that is no more, and its last words."""


class Failed(Died):
    """It lives, but could not do what it was asked."""


START = "import sys; sys.path.pop(0); from xent.benchmarks.process import main; main()"  # not from the current folder


class Worker:
    def __init__(self, backend: str, device: str, threads: int) -> None:
        self.backend = backend
        self.errors = tempfile.TemporaryFile("w+")  # noqa: SIM115 (open as long as the process is)
        self.process = subprocess.Popen(
            [sys.executable, "-c", START, str(threads)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            text=True,
            env=_environment(device, threads),
            start_new_session=True,  # Ctrl-C is for the driver, which ends the processes itself
        )

    def ask(self, do: str, **message: Any) -> dict[str, Any]:
        """Send a message and wait for its answer; raises Died where there is none."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        try:
            self.process.stdin.write(json.dumps({"do": do, **message}) + "\n")
            self.process.stdin.flush()
            line = self.process.stdout.readline()
        except (BrokenPipeError, ValueError):
            line = ""
        if not line:
            raise Died(f"its process died ({self._last_words()})")
        answer: dict[str, Any] = json.loads(line)
        if "crash" in answer:
            raise Failed(answer["crash"].strip().splitlines()[-1])
        return answer

    def _last_words(self) -> str:
        self.process.kill()
        status = self.process.wait()
        self.errors.seek(0)
        said = self.errors.read().strip().splitlines()
        return said[-1] if said else f"status {status}"

    def end(self) -> None:
        self.process.kill()
        self.process.wait()
        for stream in (self.process.stdin, self.process.stdout, self.errors):
            if stream is not None:
                with contextlib.suppress(BrokenPipeError):  # of what it was not there to read
                    stream.close()


def _environment(device: str, threads: int) -> dict[str, str]:
    """What frameworks read when they start: the GPU they see, if any; their threads; no hoarding of a GPU's memory."""
    kind, _, index = device.partition(":")
    seen = os.environ.get("CUDA_VISIBLE_DEVICES")
    known = seen.split(",") if seen else []
    if kind == "cpu":
        seen = ""  # some would rather use it than what they are given
    elif index.isdigit():
        seen = known[int(index)] if int(index) < len(known) else index
    return {
        # A virtual machine may put two threads on one core. OpenMP's wait for each other by spinning, so that the one
        # keeps the other from working: a call of 10 us took 10 ms.
        "OMP_PROC_BIND": "true",
        # Left to itself, glibc gives large results back to the system and gets them again in pages of 4 KB, which in a
        # virtual machine takes several times as long as the loss, and never as long as the last time.
        "MALLOC_MMAP_MAX_": "0",
        "MALLOC_TRIM_THRESHOLD_": str(1 << 40),
        "MALLOC_ARENA_MAX": "1",  # the other threads' arenas cannot grow so large
        **os.environ,
        **({} if seen is None else {"CUDA_VISIBLE_DEVICES": seen}),
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
        "OMP_NUM_THREADS": str(threads),
        "MKL_NUM_THREADS": str(threads),
        "XENT_NUM_THREADS": str(threads),
        "TF_CPP_MIN_LOG_LEVEL": "3",
        "TF_FORCE_GPU_ALLOW_GROWTH": "true",
        "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
    }


def each(function: Callable[[Any], T], items: Iterable[Any], side_by_side: bool = True) -> list[T]:
    """For each item, in order or, as long as nothing is timed, as many at once as there are processors."""
    pool = ThreadPoolExecutor(max_workers=os.cpu_count() if side_by_side else 1)
    try:
        return list(pool.map(function, items))
    finally:
        pool.shutdown(wait=False, cancel_futures=True)  # after Ctrl-C nobody waits for answers
