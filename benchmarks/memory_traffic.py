"""What the memory can do, by the best code at hand: read, write a new array, copy into one that is there."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
from xent import _live

Array = Any
LEAST = {"cpu": 1 << 26, "cuda": 1 << 30}  # bytes: with fewer the calls themselves would be measured


class Memory(NamedTuple):
    """Functions of no arguments that move `size` bytes each (a copy reads and writes as many), and wait for it."""

    size: int
    read: Callable[[], Any]
    write: Callable[[], Any]
    copy: Callable[[], Any]


def make(size: int, device: str, threads: int) -> Memory:
    """device: "cpu", or anything else for the first GPU that torch or JAX has."""
    if device == "cpu":
        return host(max(size, LEAST["cpu"]) // 64 * 64, threads)
    size = max(size, LEAST["cuda"]) // 64 * 64
    for name, move in (("torch", torch_device), ("jax", jax_device)):
        if name in _live.available():
            found = _live.device(_live.live(name).devices(), device)
            if found:
                return move(size, found)
    raise ValueError(f"device: no {device} that torch or JAX could measure the bandwidth of")


def host(size: int, threads: int) -> Memory:
    """NumPy's loops let the others run; it asks for huge pages by itself."""
    there, source = np.ones(size // 8, np.int64), np.ones(size // 8, np.int64)
    pool = ThreadPoolExecutor(threads)
    step = -(-len(source) // threads)
    parts = [slice(start, start + step) for start in range(0, len(source), step)]

    def write() -> None:
        new = np.empty_like(source)
        list(pool.map(lambda part: new[part].fill(1), parts))

    return Memory(
        size,
        read=lambda: list(pool.map(lambda part: source[part].view(np.float32).max(), parts)),
        write=write,
        copy=lambda: list(pool.map(lambda part: np.copyto(there[part], source[part]), parts)),
    )


def torch_device(size: int, device: str) -> Memory:
    import torch

    source = torch.ones(size // 4, device=device)
    there = torch.empty_like(source)

    def done(x: Array) -> None:
        torch.cuda.synchronize()

    return Memory(
        size,
        read=lambda: done(source.sum()),
        write=lambda: done(torch.empty_like(source).fill_(1)),
        copy=lambda: done(there.copy_(source)),
    )


def jax_device(size: int, device: str) -> Memory:
    import jax

    jnp = jax.numpy
    source = _live.live("jax").array(np.ones(size // 4, np.float32), None, device)
    read, write, copy = jax.jit(jnp.sum), jax.jit(lambda: jnp.full(size // 4, 1.0)), jax.jit(lambda x: x * 2)
    return Memory(
        size,
        read=lambda: jax.block_until_ready(read(source)),
        write=lambda: jax.block_until_ready(write()),
        copy=lambda: jax.block_until_ready(copy(source)),
    )
