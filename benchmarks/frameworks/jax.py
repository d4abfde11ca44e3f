"""JAX: optax under jax.jit."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from xent import _live

from ..workloads import Workload
from . import Contender, Framework, Inputs, Loss, held, ours

Array = Any
Call = Callable[[Inputs, Array], Any]
ROWS = 128  # of a chunk in the loop by hand, which divide the workloads' rows


def make(device: str) -> Framework:
    live = _live.live("jax")
    optax = importlib.util.find_spec("optax") is not None
    return Framework(
        array=lambda x, dtype: live.array(x, dtype if x.dtype.kind == "f" else "int32", device),
        numpy=lambda x: np.asarray(x).astype(np.float32) if x.dtype.itemsize == 2 else np.asarray(x),
        wait=jax.block_until_ready,
        contenders=contenders,
        versions=("jax", "jaxlib", *(("optax",) if optax else ())),
        absent=[] if optax else ["optax: not installed (pip install optax)"],
        peak=(lambda: peak(device)) if device != "cpu" else None,
        planned=planned,
        begin=lambda dtype: jax.config.update("jax_enable_x64", dtype == "float64"),
    )


def contenders(workload: Workload) -> list[Contender]:
    found = [Contender("xent", mode, True, *wrap(ours(workload))) for mode, wrap in modes().items()]
    name, theirs = rival(workload)
    rivals = {name: held(theirs), "lax.scan by hand": by_hand(theirs)} if workload.linear else {name: theirs}
    return [*found, *(Contender(name, "compiled", False, *modes()["compiled"](loss)) for name, loss in rivals.items())]


def rival(workload: Workload) -> tuple[str, Loss]:
    """Of logits, by optax, or without it by jax.nn's log_softmax."""
    axis, jnp = workload.axis, jax.numpy
    if importlib.util.find_spec("optax"):
        optax = importlib.import_module("optax")
        if workload.loss == "sigmoid_ce":
            name = "sigmoid_binary_cross_entropy"
            return f"optax.{name}", lambda x, z: optax.sigmoid_binary_cross_entropy(x, z).mean()
        name = "softmax_cross_entropy_with_integer_labels" if workload.ids else "softmax_cross_entropy"
        return f"optax.{name}", lambda x, y: getattr(optax, name)(x, y, axis=axis).mean()
    if workload.loss == "sigmoid_ce":
        return "jax.nn.softplus", lambda x, z: (jax.nn.softplus(x) - x * z).mean()

    def log_softmax(x: Array, y: Array) -> Array:
        logp = jax.nn.log_softmax(x, axis)
        if workload.loss == "softmax_ce":
            return -(y * logp).sum(axis).mean()
        return -jnp.take_along_axis(logp, jnp.expand_dims(y, axis), axis).mean()

    return "jax.nn.log_softmax", log_softmax


def by_hand(loss: Loss) -> Loss:
    """The logits of some rows at a time, and once more in the backward pass."""

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


def modes() -> dict[str, Callable[[Loss], tuple[Call, Call]]]:
    return {
        "eager": lambda loss: (loss, jax.value_and_grad(loss)),
        "compiled": lambda loss: (jax.jit(loss), jax.jit(jax.value_and_grad(loss))),
    }


def peak(device: str) -> Callable[[], int | None]:
    """JAX's allocator does not forget a peak: where there was a higher one before, this one is not known."""
    target = next(d for d in jax.devices() if f"{d.platform}:{d.id}" == device)
    before = target.memory_stats()

    def stop() -> int | None:
        highest = target.memory_stats()["peak_bytes_in_use"]
        return highest - before["bytes_in_use"] if highest > before["peak_bytes_in_use"] else None

    return stop


def planned(function: Callable[..., Any], *arguments: Any) -> int:
    """What XLA has laid out: the process need not grow where memory of an earlier call is still there."""
    if not hasattr(function, "lower"):  # not compiled as a whole
        return 0
    plan = function.lower(*arguments).compile().memory_analysis()
    return int(plan.temp_size_in_bytes + plan.output_size_in_bytes)
