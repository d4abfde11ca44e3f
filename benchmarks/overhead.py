"""What a tiny call (32 rows of 10) costs: finding the adapter, checking the arguments, and the whole loss beside the
framework's own at its best, interleaved in one process.

    python benchmarks/overhead.py torch

For PyTorch also by autograd, and what any loss written in Python takes there: an autograd.Function, and the kernel.
Prints ratios; the machine's speed drifts, so absolute times are only there to give them a scale.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import xent
from xent import _dispatch, _live, _plan

ROUNDS, CALLS = 60, 50


def seconds(function: Callable[[], Any]) -> float:
    start = time.perf_counter()
    for _ in range(CALLS):
        function()
    return (time.perf_counter() - start) / CALLS


def by_autograd(x: Any, y: Any) -> dict[str, Callable[[], Any]]:
    """PyTorch's losses as they are used there, and the least that one of its own takes."""
    import torch
    from xent._adapter import Layout
    from xent.benchmarks.frameworks.torch import eager

    class Nothing(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Any, y: Any) -> Any:
            ctx.save_for_backward(x)
            return x.new_empty(())

        @staticmethod
        def backward(ctx: Any, g: Any) -> Any:
            return ctx.saved_tensors[0], None

    def both(loss: Callable[..., Any]) -> Callable[[], Any]:
        return partial(eager(loss)[1], x, y)

    mean_both, lay = _dispatch.find(x).mean_both, Layout(axis=1, hard=True, masked=False, lse=False)
    assert mean_both is not None
    return {
        "F.cross_entropy, loss and gradient": both(torch.nn.functional.cross_entropy),
        "xent.sparse_ce, by autograd": both(xent.sparse_ce),
        "an autograd.Function that does nothing": both(Nothing.apply),
        "the kernel, loss and gradient": lambda: mean_both(lay, x, None, y, 32),
    }


def main(name: str) -> None:
    live = _live.live(name)
    rng = np.random.default_rng(0)
    x = live.array(rng.normal(size=(32, 10)), "float32", "cpu")
    y = live.array(rng.integers(0, 10, 32), None, "cpu")
    native = live.natives()["sparse_ce"]
    own = live.compilers["compiled"](native.value_and_grad) if name == "jax" else native.value_and_grad
    both = xent.value_and_grad(xent.sparse_ce)
    arguments = (_dispatch.find(x), x, y, -1, "none", None, None, 0.0, 0.0, None, "auto", None)
    runs: dict[str, Callable[[], Any]] = {
        "find the adapter": lambda: _dispatch.find(x),
        "find it and check the arguments": lambda: _plan.sparse(*arguments),
        "xent, loss": lambda: xent.sparse_ce(x, y, reduce="none"),
        "xent, loss and gradient": lambda: both(x, y, reduce="none"),
        f"{native.name}, loss and gradient": lambda: own(x, y),
    }
    if name == "torch":
        runs |= by_autograd(x, y)
    for run in runs.values():  # compile, allocate, import
        seconds(run)
    rounds = [{what: seconds(run) for what, run in runs.items()} for _ in range(ROUNDS)]
    theirs = f"{native.name}, loss and gradient"
    for what in runs:
        times = [r[what] for r in rounds]
        ratio = statistics.median(r[what] / r[theirs] for r in rounds)
        print(f"{name:11} {what:70} {statistics.median(times) * 1e6:8.2f} us  {ratio:6.2f} x the framework's own")


if __name__ == "__main__":
    for name in sys.argv[1:] or list(_live.available()):
        main(name)
