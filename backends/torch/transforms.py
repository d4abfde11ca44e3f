"""Under which of PyTorch's transforms and tracers the adapter is running."""

from __future__ import annotations

import torch
from torch.autograd import forward_ad


def traced() -> bool:
    """Inside torch.compile or a torch.func transform, which handle in-place and index operations badly."""
    return torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active()


def plain() -> bool:
    """Whether an autograd.Function would fail here, so that formulas PyTorch can differentiate itself are needed.

    Forward mode loses its outer levels in a Function's jvp. torch.compile ignores a Function's vmap rule. torch.export
    and torch.jit.trace record no Functions, and what they record has to run where xent is not installed.
    torch.func.functionalize supports no Function.
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
    """Whether operations are recorded for any shapes or values, not run.

    A dispatch mode of the user's own, which counts or prints operations, does run them.
    """
    if torch.compiler.is_compiling() or torch._C._get_tracing_state():
        return True
    return torch._C._len_torch_dispatch_stack() > 0 and any(map(torch._C._get_dispatch_mode, TRACERS))


TRACERS = torch._C._TorchDispatchModeKey.PROXY, torch._C._TorchDispatchModeKey.FAKE
