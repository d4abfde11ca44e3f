"""What was measured on: processor, caches, memory, GPU, versions, commit."""

from __future__ import annotations

import importlib
import os
import platform
import re
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any


def machine() -> dict[str, Any]:
    return {
        "cpu": _cpu(),
        "cores": cores(),
        "caches": _caches(),
        "memory": memory("total"),
        "pages": _pages(),
        "heap": _heap(),
        "gpus": _gpus(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "python": platform.python_version(),
        "xent": xent_version(),
        "kernels": kernels(),
        "commit": _commit(),
    }


def xent_version() -> str:
    try:
        return version("xent-loss")
    except PackageNotFoundError:  # a checkout that is not installed
        return "checkout"


def kernels() -> str:
    """The native kernels' instruction set, or why there are none."""
    cpu = importlib.import_module("xent.backends.cpu")
    return str(cpu.why_not or cpu.native.isa())


def memory(which: str) -> int:
    """Bytes, "total" or "available"."""
    try:
        import psutil
    except ModuleNotFoundError:
        raise ValueError("bench: measuring needs psutil (pip install psutil)") from None
    return int(getattr(psutil.virtual_memory(), which))


def cores() -> int:
    """Those this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _cpu() -> str:
    """Its model, and the widest vectors it knows."""
    info = Path("/proc/cpuinfo")
    if not info.exists():
        return _output("sysctl", "-n", "machdep.cpu.brand_string") or platform.processor() or platform.machine()
    text = info.read_text()
    name = re.search(r"model name\s*:\s*(.*)", text)
    family = re.search(r"cpu family\s*:\s*(\d+)\n\s*model\s*:\s*(\d+)", text.replace("\t", " "))
    widest = next((flag for flag in ("avx512f", "avx2", "asimd") if re.search(rf"\b{flag}\b", text)), "")
    kind = f" (family {family[1]} model {family[2]})" if family else ""
    return f"{name[1] if name else platform.machine()}{kind}{', ' + widest if widest else ''}"


def _caches() -> dict[str, str]:
    """One core's, as Linux tells them: {"L1d": "48K", "L2": "2048K"}."""
    found = {}
    for index in sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*")):
        kind, level = (index / "type").read_text().strip(), (index / "level").read_text().strip()
        if kind != "Instruction":
            found[f"L{level}{'d' if kind == 'Data' else ''}"] = (index / "size").read_text().strip()
    return found


def _pages() -> str:
    """What memory gets Linux's large pages: all ("always"), that for which it is asked ("madvise"), or none; and what
    glibc asks for beyond that."""
    rule = Path("/sys/kernel/mm/transparent_hugepage/enabled")
    chosen = re.search(r"\[(\w+)\]", rule.read_text()) if rule.exists() else None
    asked = re.search(r"glibc\.malloc\.hugetlb=\d+", os.environ.get("GLIBC_TUNABLES", ""))
    return ", ".join(found for found in (chosen and chosen[1], asked and asked[0]) if found)


def _heap() -> str:
    """What glibc does with memory that is freed in the processes that are timed."""
    if platform.libc_ver()[0] != "glibc":
        return ""
    return "kept" if os.environ.get("MALLOC_MMAP_MAX_", "0") == "0" else "given back"


def _gpus() -> list[str]:
    found = _output("nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader")
    return found.splitlines()


def _commit() -> str:
    """Of the checkout this runs from, if it does."""
    root = Path(__file__).resolve().parents[1]
    if not (root / ".git").exists():
        return ""
    changed = "+" if _output("git", "-C", str(root), "status", "--porcelain", "--untracked-files=no") else ""
    return _output("git", "-C", str(root), "rev-parse", "--short", "HEAD") + changed


def _output(*command: str) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip()
