"""PyTorch: its fused losses, eager and compiled; on CUDA also Liger-Kernel and cut-cross-entropy."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from xent.benchmarks import frameworks
from xent.benchmarks.frameworks import Call, Contender, Framework, Inputs, Loss, Traffic, installed, keras
from xent.benchmarks.workloads import Workload
from xent.verify.frameworks import load

Array = Any
functional = torch.nn.functional


def make(device: str) -> Framework:
    live = load("torch")
    cuda = device != "cpu"
    rivals = ("keras", "liger-kernel", "cut-cross-entropy") if cuda else ("keras",)
    return Framework(
        array=lambda x, dtype: live.array(x, dtype if x.dtype.kind == "f" else None, device),
        numpy=to_numpy,
        contenders=lambda workload: contenders(workload, cuda),
        versions=("torch", *filter(installed, rivals)),
        missing=frameworks.missing(*rivals),
        wait=(lambda _: torch.cuda.synchronize()) if cuda else (lambda _: None),
        limit=torch.set_num_threads,
        peak=peak if cuda else (lambda: lambda: None),
        traffic=lambda size: traffic(size, device),
    )


def contenders(workload: Workload, cuda: bool) -> list[Contender]:
    torch._dynamo.reset()  # the limit on recompilations is meant for one program
    name, theirs = rival(workload)
    found = []
    for mode, wrap in {"eager": eager, "compiled": compiled}.items():
        if mode in load("torch").compilers:
            found.append(Contender("xent", mode, True, *wrap(frameworks.ours(workload))))
            found.append(Contender(name, mode, False, *wrap(theirs)))
    rivals = keras.rivals(workload) | (linear_rivals(cuda) if workload.linear else {})
    found += [Contender(name, "eager", False, *eager(loss)) for name, loss in rivals.items()]
    if cuda and workload.loss == "sparse_ce" and workload.axis == -1 and installed("liger-kernel"):
        liger = importlib.import_module("liger_kernel.transformers.functional").liger_cross_entropy
        found.append(Contender("Liger-Kernel", "eager", False, *eager(liger), overwrites=True))
    return found


def linear_rivals(cuda: bool) -> dict[str, Loss]:
    """They hold a part of the logits at a time, or none, and are not made for torch.compile."""
    rivals: dict[str, Callable[..., Array]] = {}
    if hasattr(torch.nn, "LinearCrossEntropyOptions"):
        options = torch.nn.LinearCrossEntropyOptions()
        rivals["F.linear_cross_entropy"] = functools.partial(functional.linear_cross_entropy, options=options)
    if cuda and installed("liger-kernel"):
        liger = importlib.import_module("liger_kernel.transformers.functional")
        rivals["Liger-Kernel"] = liger.liger_fused_linear_cross_entropy
    if cuda and installed("cut-cross-entropy"):
        rivals["cut-cross-entropy"] = importlib.import_module("cut_cross_entropy").linear_cross_entropy
    return {name: frameworks.paired(loss) for name, loss in rivals.items()}


def rival(workload: Workload) -> tuple[str, Loss]:
    """Classes on axis 1, where PyTorch wants them, or last of two."""
    if workload.loss == "sigmoid_ce":
        return "F.binary_cross_entropy_with_logits", functional.binary_cross_entropy_with_logits
    return "F.cross_entropy", frameworks.held(functional.cross_entropy) if workload.linear else functional.cross_entropy


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


def to_numpy(x: Array) -> Any:
    x = x.detach()
    return np.asarray((x.float() if x.dtype.itemsize == 2 else x).cpu())


def peak() -> Callable[[], int | None]:
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    return lambda: torch.cuda.max_memory_allocated() - before


def traffic(size: int, device: str) -> Traffic:
    source = torch.ones(size // 4, device=device)

    def done(_: Array) -> None:
        torch.cuda.synchronize()

    return Traffic(size, lambda: done(source.sum()), lambda: done(torch.empty_like(source).fill_(1)))
