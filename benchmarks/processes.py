"""The processes that time the frameworks, and what they say."""

from __future__ import annotations

import contextlib
import os
import pickle
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from typing import IO, Any

from xent.benchmarks.process import Job

# Not from the current folder, where a file may have the name of a module.
START = "import sys; sys.path.pop(0); from xent.benchmarks.process import main; main()"

Message = tuple[Any, ...]  # the case that the process is at, if it is at one; the kind; what it says


def messages(job: Job) -> Iterator[Message]:
    """What a process says about its job. One that dies takes only the case it was at with it: another does the rest."""
    case, left = None, iter(job.cases)
    with tempfile.TemporaryFile("w+") as errors:
        process = _start(job, errors)
        try:
            with contextlib.suppress(EOFError, pickle.UnpicklingError):  # it has ended or died
                while process.stdout is not None:
                    kind, *said = pickle.load(process.stdout)
                    case = next(left) if kind == "case" else case
                    yield case, kind, *said
            status = process.wait()
        finally:
            process.kill()
            process.communicate()
        errors.seek(0)
        last = (errors.read().strip().splitlines() or [f"status {status}"])[-1]
    if status:
        yield case, "broken", f"the process died: {last}"
    if status and case is not None:
        yield from messages(replace(job, cases=[*left]))


def _start(job: Job, errors: IO[str]) -> subprocess.Popen[bytes]:
    process = subprocess.Popen(
        [sys.executable, "-c", START],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=errors,
        env=environment(job.backend, job.device, job.threads),
        start_new_session=True,  # Ctrl-C is for this process, which ends the other one itself
    )
    assert process.stdin is not None
    pickle.dump(job, process.stdin)
    process.stdin.flush()
    return process


def environment(backend: str, device: str, threads: int) -> dict[str, str]:
    """What a framework reads when it starts: its threads, and not to hoard a GPU's memory. What is set about memory
    stays as it is."""
    return {
        **os.environ,
        **(
            {"CUDA_VISIBLE_DEVICES": ""} if device == "cpu" else {}
        ),  # some would rather use it than what they are given
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
        "KERAS_BACKEND": backend,
        **dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "XENT_NUM_THREADS"), str(threads)),
        "TF_CPP_MIN_LOG_LEVEL": "3",
        "TF_FORCE_GPU_ALLOW_GROWTH": "true",
        "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
    }
