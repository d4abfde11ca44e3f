"""PyTorch: its fused losses, eager and compiled; on CUDA also Liger-Kernel and cut-cross-entropy."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import torch
from xent.benchmarks import frameworks
from xent.benchmarks.frameworks import Call, Contender, Framework, Inputs, Loss, Mode, Traffic
from xent.benchmarks.workloads import Workload
from xent.verify.frameworks import load

Array = Any
functional = torch.nn.functional
LINEAR_ON_CUDA = {
    "liger-kernel": ("liger_kernel.transformers.functional", "liger_fused_linear_cross_entropy"),
    "cut-cross-entropy": ("cut_cross_entropy", "linear_cross_entropy"),
}


def make(device: str) -> Framework:
    live = load("torch")
    cuda = device != "cpu"
    if cuda:
        torch.cuda.set_device(device)
    modes = {mode: wrap for mode, wrap in MODES.items() if mode in live.compilers}
    return Framework(
        array=lambda x, dtype: live.array(x, dtype if x.dtype.kind == "f" else None, device),
        numpy=lambda x: np.asarray((x.float() if x.dtype.itemsize == 2 else x).detach().cpu()),
        contenders=lambda workload: contenders(workload, modes, cuda),
        distributions=("torch", "keras", *(LINEAR_ON_CUDA if cuda else ())),
        wait=(lambda _: torch.cuda.synchronize()) if cuda else (lambda _: None),
        begin=lambda _: torch._dynamo.reset(),  # the limit on recompilations is meant for one program
        limit=torch.set_num_threads,
        peak=peak if cuda else (lambda: lambda: None),
        modes=modes,
        of_ranks=of_ranks,
        traffic=lambda size: traffic(size, device),
    )


def contenders(workload: Workload, modes: dict[str, Mode], cuda: bool) -> Iterator[Contender]:
    """Classes are on axis 1, where PyTorch wants them, or last of two."""
    not_compiled = {"eager": modes["eager"]}
    yield from frameworks.in_modes(modes, "xent", frameworks.ours(workload))
    yield from frameworks.keras(workload, not_compiled)
    name = "binary_cross_entropy_with_logits" if workload.loss == "sigmoid_ce" else "cross_entropy"
    yield from frameworks.in_modes(modes, f"F.{name}", frameworks.held(workload, getattr(functional, name)))
    for name, fused in (linear_rivals(cuda) if workload.linear else {}).items():
        yield from frameworks.in_modes(not_compiled, name, frameworks.paired(fused))
    if cuda and workload.loss == "sparse_ce" and workload.axis == -1 and frameworks.installed("liger-kernel"):
        # The last, because it writes its gradient over the logits, which the others have used by then.
        liger = importlib.import_module("liger_kernel.transformers.functional").liger_cross_entropy
        yield from frameworks.in_modes(not_compiled, "liger-kernel", liger)


def of_ranks(*case: Any) -> list[Any]:
    """Imports torch.distributed, which not every PyTorch has."""
    found: list[Any] = importlib.import_module("xent.benchmarks.frameworks.torch_sharded").measured(*case)
    return found


def linear_rivals(cuda: bool) -> dict[str, Callable[..., Array]]:
    """Losses that hold a part of the logits at a time, or none."""
    found: dict[str, Callable[..., Array]] = {}
    if hasattr(torch.nn, "LinearCrossEntropyOptions"):
        options = torch.nn.LinearCrossEntropyOptions()
        found["F.linear_cross_entropy"] = partial(functional.linear_cross_entropy, options=options)
    for name, (module, function) in LINEAR_ON_CUDA.items() if cuda else ():
        if frameworks.installed(name):
            found[name] = getattr(importlib.import_module(module), function)
    return found


def eager(loss: Loss) -> tuple[Call, Call]:
    def forward(x: Inputs, y: Array) -> Array:
        with torch.no_grad():
            return loss(x, y)

    def both(x: Inputs, y: Array) -> tuple[Array, Inputs]:
        leaf = frameworks.each(lambda k: k.detach().requires_grad_(), x)
        value = loss(leaf, y)
        gradient = torch.autograd.grad(value, leaf)
        return value.detach(), gradient if isinstance(x, tuple) else gradient[0]

    return forward, both


def compiled(loss: Loss) -> tuple[Call, Call]:
    return eager(torch.compile(loss, fullgraph=True, dynamic=False))


MODES: dict[str, Mode] = {"eager": eager, "compiled": compiled}


def peak() -> Callable[[], int | None]:
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    return lambda: torch.cuda.max_memory_allocated() - before


def traffic(size: int, device: str) -> Traffic:
    source = torch.ones(size // 4, device=device)
    return source.sum, lambda: torch.empty_like(source).fill_(1)
