"""Writes README's accuracy table: python benchmarks/accuracy.py"""

from __future__ import annotations

import datetime
import math
import platform

import xent
from xent.benchmarks.readme import markdown, write


def figure(x: float) -> str:
    return "∞" if math.isinf(x) else "-" if math.isnan(x) else f"{x:.0e}"


def table() -> str:
    found = xent.compare(["numpy", "torch", "tensorflow", "jax"], losses=["sparse_ce"], dtypes=["float32", "float64"])
    heads, lines = ["sparse_ce", "dtype", "mode", "xent: loss, gradient", "its own loss: loss, gradient", ""], []
    for row in found.rows:
        own = f"{figure(row.native_value)}, {figure(row.native_gradient)}" if row.native else ""
        name = f"`{row.native}`" if row.native else ""
        ours = f"{figure(row.value)}, {figure(row.gradient)}"
        lines.append([row.backend, row.dtype, row.mode, ours, own, name])
    versions = ", ".join(f"{name} {number}" for name, number in found.versions.items())
    return f"{markdown(heads, lines)}\n{versions}; {platform.machine()}, CPU; {datetime.date.today()}.\n"


if __name__ == "__main__":
    write("accuracy", table())
