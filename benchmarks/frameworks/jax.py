"""JAX: optax under jax.jit."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import jax
import numpy as np
from xent.benchmarks import frameworks
from xent.benchmarks.frameworks import Contender, Framework, Inputs, Loss, Mode, Traffic
from xent.benchmarks.workloads import Workload
from xent.verify.frameworks import load

Array = Any
ROWS = 128  # of a chunk in the loop by hand; they divide the workloads' rows
OPTAX = {
    "sparse_ce": "softmax_cross_entropy_with_integer_labels",
    "softmax_ce": "softmax_cross_entropy",
    "sigmoid_ce": "sigmoid_binary_cross_entropy",
    "linear_ce": "softmax_cross_entropy_with_integer_labels",
}
MODES: dict[str, Mode] = {
    "eager": lambda loss: (loss, jax.value_and_grad(loss)),
    "compiled": lambda loss: (jax.jit(loss), jax.jit(jax.value_and_grad(loss))),
}


def make(device: str) -> Framework:
    live = load("jax")
    return Framework(
        # A copy, because JAX may use a NumPy array's memory: then all copies of the inputs would share it.
        array=lambda x, dtype: live.array(x.copy(), dtype if x.dtype.kind == "f" else "int32", device),
        numpy=lambda x: np.asarray(x).astype(np.float32) if x.dtype.itemsize == 2 else np.asarray(x),
        contenders=contenders,
        distributions=("jax", "jaxlib", "optax", "keras"),
        wait=jax.block_until_ready,
        begin=lambda dtype: jax.config.update("jax_enable_x64", dtype == "float64"),
        planned=planned,
        modes=MODES,
        traffic=lambda size: traffic(size, device),
    )


def contenders(workload: Workload) -> Iterator[Contender]:
    jitted = {"compiled": MODES["compiled"]}
    yield from frameworks.in_modes(MODES, "xent", frameworks.ours(workload))
    yield from frameworks.keras(workload, jitted)
    if frameworks.installed("optax"):
        name = OPTAX[workload.loss]
        function = getattr(importlib.import_module("optax"), name)
        options = {} if workload.loss == "sigmoid_ce" else {"axis": workload.axis}

        def mean(x: Array, y: Array) -> Array:
            return function(x, y, **options).mean()

        yield from frameworks.in_modes(jitted, f"optax.{name}", frameworks.held(workload, mean))
        if workload.linear:
            yield from frameworks.in_modes(jitted, "lax.scan by hand", by_hand(mean))


def by_hand(loss: Loss) -> Loss:
    """The loss from the logits of some rows at a time, which the backward pass computes again."""

    @jax.checkpoint
    def of_rows(weight: Array, h: Array, y: Array) -> Array:
        return loss((h @ weight.T).astype(jax.numpy.promote_types(h.dtype, "float32")), y)

    def whole(x: Inputs, y: Array) -> Array:
        h, weight = x
        rows = min(ROWS, len(h))
        chunks = h.reshape(-1, rows, h.shape[1]), y.reshape(-1, rows)
        return jax.lax.map(lambda chunk: of_rows(weight, *chunk), chunks).mean()

    return whole


def planned(function: Callable[..., Any], *arguments: Any) -> int | None:
    if not hasattr(function, "lower"):  # not compiled as a whole
        return None
    plan = function.lower(*arguments).compile().memory_analysis()
    return int(plan.temp_size_in_bytes + plan.output_size_in_bytes)


def traffic(size: int, device: str) -> Traffic:
    source = load("jax").array(np.ones(size // 4, np.float32), None, device)
    return partial(jax.jit(jax.numpy.sum), source), partial(jax.jit(lambda x: jax.numpy.full_like(x, 1.0)), source)
