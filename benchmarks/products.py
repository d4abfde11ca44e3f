"""What linear_ce's three matrix products reach: the kernels' for a chunk of rows, beside NumPy's for a chunk and for
all rows at once, in turns in one process.

    python benchmarks/products.py
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from xent import _dispatch, _linear
from xent.benchmarks.clock import seconds as timed
from xent.benchmarks.process import REST_OF_PRODUCTS

ROUNDS = 15
ROWS, FEATURES, CLASSES = 2048, 1024, 32000
CHUNK = _linear.fitting(_linear.MEMORY, 4 * CLASSES)


def seconds(function: Callable[[], Any]) -> float:
    time.sleep(REST_OF_PRODUCTS)
    elapsed: float = timed(iter([function]), lambda result: None, 1)
    return elapsed


def products(h: Any, w: Any, x: Any, dh: Any, dw: Any) -> dict[str, tuple[Callable[[], Any], Callable[[], Any]]]:
    """xent's and NumPy's: logits, the hidden states' derivative, and the weight's, to which xent's adds."""
    kit = _dispatch.find(h).linear
    assert kit is not None
    return {
        "x = h w^T": (lambda: kit.project(h, w, x), lambda: np.matmul(h, w.T, out=x)),
        "dh = dx w": (lambda: kit.pull(x, w), lambda: np.matmul(x, w, out=dh)),
        "dw += dx^T h": (lambda: kit.accumulate(dw, x, h), lambda: np.matmul(x.T, h, out=dw)),
    }


def main() -> None:
    rng = np.random.default_rng(0)
    h, w = (rng.standard_normal((n, FEATURES), np.float32) for n in (ROWS, CLASSES))
    x, dh, dw = np.zeros((ROWS, CLASSES), np.float32), np.zeros_like(h), np.zeros_like(w)
    whole = products(h, w, x, dh, dw)
    chunk = products(h[:CHUNK], w, x[:CHUNK], dh[:CHUNK], dw)
    print(f"float32, GFLOP/s; a chunk: {CHUNK} x {FEATURES} x {CLASSES}, all rows: {ROWS}")
    for name, (ours, theirs) in chunk.items():
        runs = {"xent, a chunk": (CHUNK, ours), "NumPy, a chunk": (CHUNK, theirs), "NumPy, all": (ROWS, whole[name][1])}
        rounds = [{what: seconds(run) / rows for what, (rows, run) in runs.items()} for _ in range(ROUNDS)]
        for what in runs:
            rate = statistics.median(2e-9 * FEATURES * CLASSES / r[what] for r in rounds)
            ratio = statistics.median(r["xent, a chunk"] / r[what] for r in rounds)
            print(f"{name:14} {what:16} {rate:7.0f}   xent takes {ratio:5.2f} of its time")


if __name__ == "__main__":
    main()
