"""PyTorch: its fused losses, eager and compiled; on CUDA also Liger-Kernel."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from xent import _live

from ..workloads import Workload
from . import Contender, Framework, Loss, ours

Array = Any
Call = Callable[[Array, Array], Any]


def make(device: str) -> Framework:
    live = _live.live("torch")
    cuda = device != "cpu"
    absent = [f"torch, compiled: {why}" for why in live.unavailable.values()]
    if cuda:
        absent.append("cut-cross-entropy: takes hidden states and a weight, not logits")
        if not liger():
            absent.append("Liger-Kernel: not installed (pip install liger-kernel)")
    return Framework(
        array=lambda x, dtype: live.array(x, dtype if x.dtype.kind == "f" else None, device),
        numpy=to_numpy,
        wait=(lambda result: torch.cuda.synchronize()) if cuda else (lambda result: None),
        contenders=lambda workload: contenders(workload, cuda),
        versions=("torch", *(("liger-kernel",) if cuda and liger() else ())),
        absent=absent,
        peak=peak if cuda else None,
    )


def contenders(workload: Workload, cuda: bool) -> list[Contender]:
    torch._dynamo.reset()  # the limit on recompilations is for one program's life
    name, theirs = rival(workload)
    found = []
    for mode, wrap in modes().items():
        found.append(Contender("xent", mode, True, *wrap(ours(workload))))
        found.append(Contender(name, mode, False, *wrap(theirs)))
    if cuda and workload.loss == "sparse_ce" and workload.axis == -1 and liger():
        functional = importlib.import_module("liger_kernel.transformers.functional")
        forward, both = eager(functional.liger_cross_entropy)
        found.append(Contender("Liger-Kernel", "eager", False, forward, both, overwrites=True))
    return found


def rival(workload: Workload) -> tuple[str, Loss]:
    """Classes on axis 1, where PyTorch wants them, or last of two."""
    functional = torch.nn.functional
    if workload.loss == "sigmoid_ce":
        return "F.binary_cross_entropy_with_logits", functional.binary_cross_entropy_with_logits
    return "F.cross_entropy", functional.cross_entropy


def modes() -> dict[str, Callable[[Loss], tuple[Call, Call]]]:
    return {"eager": eager, **({} if _live.live("torch").unavailable else {"compiled": compiled})}


def eager(loss: Loss) -> tuple[Call, Call]:
    def forward(x: Array, y: Array) -> Array:
        with torch.no_grad():
            return loss(x, y)

    def both(x: Array, y: Array) -> tuple[Array, Array]:
        leaf = x.detach().requires_grad_()  # x stays what `forward` knows: torch.compile guards on requires_grad
        value = loss(leaf, y)
        (gradient,) = torch.autograd.grad(value, leaf)
        return value.detach(), gradient

    return forward, both


def compiled(loss: Loss) -> tuple[Call, Call]:
    return eager(torch.compile(loss, fullgraph=True, dynamic=False))


def to_numpy(x: Array) -> Any:
    x = x.detach()
    return np.asarray((x.float() if x.dtype.itemsize == 2 else x).cpu())


def peak() -> Callable[[], int | None]:
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()

    def stop() -> int:
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before

    return stop


def liger() -> bool:
    return importlib.util.find_spec("liger_kernel") is not None
