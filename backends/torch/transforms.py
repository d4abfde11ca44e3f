"""Under which of PyTorch's transforms and tracers the adapter is running."""

from __future__ import annotations

import torch
from torch.autograd import forward_ad


def traced() -> bool:
    """Inside torch.compile or a torch.func transform, where in-place work and a list of places do not go well."""
    return torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active()


def plain() -> bool:
    """Where an autograd.Function will not do, formulas with right derivatives of their own take its place.

    Forward mode loses its outer levels in a Function's jvp. torch.compile forgets a Function's vmap rule. What
    torch.export and torch.jit.trace record has lost its Functions, and shall run where xent is not installed.
    torch.func.functionalize takes no Function.
    """
    if torch.compiler.is_compiling():
        return torch.compiler.is_exporting() or torch._C._are_functorch_transforms_active()
    return forward_ad._current_level >= 0 or torch._C._get_tracing_state() is not None or functionalizing()


def functionalizing() -> bool:
    if not torch._C._are_functorch_transforms_active():
        return False
    levels = torch._C._functorch.get_interpreter_stack()
    return any(level.key() == torch._C._functorch.TransformType.Functionalize for level in levels)


def recording() -> bool:
    """Operations are taken down, for any shapes or values, instead of run. A mode of the user's, which counts or
    prints them, sees them run."""
    if torch.compiler.is_compiling() or torch._C._get_tracing_state():
        return True
    return torch._C._len_torch_dispatch_stack() > 0 and any(map(torch._C._get_dispatch_mode, TRACERS))


TRACERS = torch._C._TorchDispatchModeKey.PROXY, torch._C._TorchDispatchModeKey.FAKE
