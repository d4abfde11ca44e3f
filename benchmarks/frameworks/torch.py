"""PyTorch: its fused losses, eager and compiled; on CUDA also Liger-Kernel and cut-cross-entropy."""

from __future__ import annotations

import functools
import importlib
import importlib.util
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from xent import _live

from ..workloads import Workload
from . import Contender, Framework, Inputs, Loss, each, held, ours, paired

Array = Any
Call = Callable[[Inputs, Array], Any]


def make(device: str) -> Framework:
    live = _live.live("torch")
    cuda = device != "cpu"
    absent = [f"torch, compiled: {why}" for why in live.unavailable.values()]
    packages = ("liger-kernel", "cut-cross-entropy") if cuda else ()
    absent += [f"{name}: not installed (pip install {name})" for name in packages if not installed(name)]
    if not chunked():
        absent.append("F.linear_cross_entropy: not in this PyTorch")
    return Framework(
        array=lambda x, dtype: live.array(x, dtype if x.dtype.kind == "f" else None, device),
        numpy=to_numpy,
        wait=(lambda result: torch.cuda.synchronize()) if cuda else (lambda result: None),
        contenders=lambda workload: contenders(workload, cuda),
        versions=("torch", *filter(installed, packages)),
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
    if workload.linear:
        return [*found, *linear_rivals(cuda)]
    if cuda and workload.ids and workload.axis == -1 and installed("liger-kernel"):
        functional = importlib.import_module("liger_kernel.transformers.functional")
        forward, both = eager(functional.liger_cross_entropy)
        found.append(Contender("Liger-Kernel", "eager", False, forward, both, overwrites=True))
    return found


def linear_rivals(cuda: bool) -> Iterator[Contender]:
    """That hold a part of the logits at a time, or none; what they do is not for torch.compile."""
    rivals: dict[str, Callable[..., Array]] = {}
    if chunked():
        options = torch.nn.LinearCrossEntropyOptions()
        rivals["F.linear_cross_entropy"] = functools.partial(torch.nn.functional.linear_cross_entropy, options=options)
    if cuda and installed("liger-kernel"):
        functional = importlib.import_module("liger_kernel.transformers.functional")
        rivals["Liger-Kernel"] = functional.liger_fused_linear_cross_entropy
    if cuda and installed("cut-cross-entropy"):
        rivals["cut-cross-entropy"] = importlib.import_module("cut_cross_entropy").linear_cross_entropy
    for name, loss in rivals.items():
        yield Contender(name, "eager", False, *eager(paired(loss)))


def rival(workload: Workload) -> tuple[str, Loss]:
    """Classes on axis 1, where PyTorch wants them, or last of two."""
    functional = torch.nn.functional
    if workload.loss == "sigmoid_ce":
        return "F.binary_cross_entropy_with_logits", functional.binary_cross_entropy_with_logits
    return "F.cross_entropy", held(functional.cross_entropy) if workload.linear else functional.cross_entropy


def modes() -> dict[str, Callable[[Loss], tuple[Call, Call]]]:
    return {"eager": eager, **({} if _live.live("torch").unavailable else {"compiled": compiled})}


def eager(loss: Loss) -> tuple[Call, Call]:
    def forward(x: Inputs, y: Array) -> Array:
        with torch.no_grad():
            return loss(x, y)

    def both(x: Inputs, y: Array) -> tuple[Array, Inputs]:
        leaf = each(differentiable, x)
        value = loss(leaf, y)
        gradient = torch.autograd.grad(value, leaf)
        return value.detach(), gradient if isinstance(x, tuple) else gradient[0]

    return forward, both


def differentiable(x: Array) -> Array:
    """A leaf; x stays what `forward` knows: torch.compile guards on requires_grad."""
    return x.detach().requires_grad_()


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


def chunked() -> bool:
    """F.linear_cross_entropy is there, and can do without all the logits."""
    return hasattr(torch.nn, "LinearCrossEntropyOptions")


def installed(package: str) -> bool:
    return importlib.util.find_spec(package.replace("-", "_")) is not None
