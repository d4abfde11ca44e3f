"""JAX: optax under jax.jit."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from xent.benchmarks.frameworks import (
    Call,
    Contender,
    Framework,
    Inputs,
    Loss,
    Traffic,
    held,
    installed,
    keras,
    missing,
    ours,
)
from xent.benchmarks.workloads import Workload
from xent.verify.frameworks import load

Array = Any
ROWS = 128  # of a chunk in the loop by hand; they divide the workloads' rows


def make(device: str) -> Framework:
    live = load("jax")
    return Framework(
        # Of a copy, for JAX may take a NumPy array's memory for its own, and the inputs would be one and the same.
        array=lambda x, dtype: live.array(x.copy(), dtype if x.dtype.kind == "f" else "int32", device),
        numpy=lambda x: np.asarray(x).astype(np.float32) if x.dtype.itemsize == 2 else np.asarray(x),
        contenders=contenders,
        versions=("jax", "jaxlib", *filter(installed, ("optax", "keras"))),
        missing=missing("optax", "keras"),
        wait=jax.block_until_ready,
        begin=lambda dtype: jax.config.update("jax_enable_x64", dtype == "float64"),
        planned=planned,
        traffic=lambda size: traffic(size, device),
    )


def contenders(workload: Workload) -> list[Contender]:
    rivals = keras.rivals(workload)
    if installed("optax"):
        name, theirs = rival(workload)
        rivals |= {name: held(theirs), "lax.scan by hand": by_hand(theirs)} if workload.linear else {name: theirs}
    return [
        Contender("xent", "eager", True, *eager(ours(workload))),
        Contender("xent", "compiled", True, *compiled(ours(workload))),
        *(Contender(name, "compiled", False, *compiled(loss)) for name, loss in rivals.items()),
    ]


def rival(workload: Workload) -> tuple[str, Loss]:
    """Of logits, by optax."""
    optax, axis = importlib.import_module("optax"), workload.axis
    if workload.loss == "sigmoid_ce":
        name = "sigmoid_binary_cross_entropy"
        return f"optax.{name}", lambda x, z: optax.sigmoid_binary_cross_entropy(x, z).mean()
    name = "softmax_cross_entropy_with_integer_labels" if workload.ids else "softmax_cross_entropy"
    return f"optax.{name}", lambda x, y: getattr(optax, name)(x, y, axis=axis).mean()


def by_hand(loss: Loss) -> Loss:
    """The logits of some rows at a time, computed once more in the backward pass."""

    def by_rows(x: Inputs, y: Array) -> Array:
        h, weight = x

        @jax.checkpoint
        def step(total: Array, rows: tuple[Array, Array]) -> tuple[Array, None]:
            h, y = rows
            return total + loss((h @ weight.T).astype(total.dtype), y), None

        chunks = max(len(h) // ROWS, 1)
        rows = h.reshape(chunks, -1, h.shape[1]), y.reshape(chunks, -1)
        wide = jax.numpy.promote_types(h.dtype, "float32")
        return jax.lax.scan(step, jax.numpy.zeros((), wide), rows)[0] / chunks

    return by_rows


def eager(loss: Loss) -> tuple[Call, Call]:
    return loss, jax.value_and_grad(loss)


def compiled(loss: Loss) -> tuple[Call, Call]:
    return jax.jit(loss), jax.jit(jax.value_and_grad(loss))


def planned(function: Callable[..., Any], *arguments: Any) -> int | None:
    if not hasattr(function, "lower"):  # not compiled as a whole
        return None
    plan = function.lower(*arguments).compile().memory_analysis()
    return int(plan.temp_size_in_bytes + plan.output_size_in_bytes)


def traffic(size: int, device: str) -> Traffic:
    source = load("jax").array(np.ones(size // 4, np.float32), None, device)
    read, write = jax.jit(jax.numpy.sum), jax.jit(lambda x: jax.numpy.full_like(x, 1.0))
    return Traffic(size, lambda: read(source).block_until_ready(), lambda: write(source).block_until_ready())
