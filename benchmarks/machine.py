"""The machine that was measured on: processor, memory and its settings, GPU, versions, commit."""

from __future__ import annotations

import datetime
import importlib.util
import os
import platform
import re
import subprocess
from pathlib import Path
from typing import Any

import xent

HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")
MEMORY_SETTINGS = ("MALLOC_", "GLIBC_TUNABLES", "LD_PRELOAD", "DYLD_INSERT_LIBRARIES")


def machine() -> dict[str, Any]:
    cpu = importlib.import_module("xent.backends.cpu")
    return {
        "cpu": _cpu(),
        "cores": cores(),
        "date": str(datetime.date.today()),
        "memory": memory("total"),
        "memory settings": memory_settings(),
        "gpus": _output("nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "python": platform.python_version(),
        "xent": _xent(),
        "kernels": cpu.why_not or cpu.native.isa(),
        "versions": {},  # each framework's process adds its own
    }


def memory(which: str) -> int:
    """Bytes, "total" or "available"."""
    if importlib.util.find_spec("psutil") is None:
        raise ValueError("bench: measuring needs psutil (pip install psutil)")
    return int(getattr(importlib.import_module("psutil").virtual_memory(), which))


def cores() -> int:
    """The number of processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def memory_settings() -> str:
    """Which memory gets Linux's large pages ("always", "madvise": where it is asked for, "never"), and what the
    environment tells the allocator."""
    chosen = re.search(r"\[(\w+)\]", HUGE_PAGES.read_text()) if HUGE_PAGES.exists() else None
    found = [f"huge pages: {chosen[1]}"] if chosen else []
    found += [f"{name}={value}" for name, value in sorted(os.environ.items()) if name.startswith(MEMORY_SETTINGS)]
    return ", ".join(found)


def _xent() -> str:
    """Its version, and the commit of the checkout that it runs from, if it does."""
    root = str(Path(__file__).resolve().parents[1])
    commit = _output("git", "-C", root, "rev-parse", "--short", "HEAD") if (Path(root) / ".git").exists() else ""
    changed = commit and _output("git", "-C", root, "status", "--porcelain", "--untracked-files=no")
    return xent.__version__ + (f", commit {commit}" if commit else "") + (" with changes" if changed else "")


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    name = re.search(r"model name\s*:\s*(.*)", info.read_text()) if info.exists() else None
    return name[1] if name else _output("sysctl", "-n", "machdep.cpu.brand_string") or platform.machine()


def _output(*command: str) -> str:
    """What a command prints, its lines as one; "" where it fails or does not exist."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return ""
    return "; ".join(done.stdout.strip().splitlines())
