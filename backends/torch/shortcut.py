"""`sparse_ce` with no option but `axis` and `ignore_index`, on plain tensors, in one native call: eager or under
torch.compile."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from xent.adapter import Shortcut
from xent.backends.cpu.calls import axis_if_taken

from .kernels import Compiled, Fused, scaled
from .native import DIRECT, ON_CPU, OPERATORS, direct, kernels
from .ops import OPS, PLAIN
from .transforms import plain

Array = Any
Options = tuple[int, "int | None"]  # axis and ignored


def value(axis: int, ignored: int | None, x: Array, ids: Array, again: Callable[..., Array]) -> Array | None:
    options = axis, ignored
    if torch.compiler.is_compiling():
        if not traceable(options, x, ids):
            return None
        if not differentiated(x):
            return both(options, x, ids, derive=False)[0]
        return Compiled.apply(x, both, options, ids) if scaled(x) else None
    if not dense_tensors(x, ids):
        return None
    derive = differentiated(x)
    if derive and x.dtype is torch.float16:  # as in `fuse_value_and_grad`
        return None
    found = DIRECT.mean_of_ids(axis, ignored, x, ids, derive)
    if found is None or not derive:
        return None if found is None else found[0]
    return direct(Fused)(x, lambda options, x, ids: again(*options, x, ids), lambda *_: found, options, (ids,))


def differentiated(x: Array) -> bool:
    return torch.is_grad_enabled() and x.requires_grad


def value_and_grad(axis: int, ignored: int | None, x: Array, ids: Array) -> Any:
    if torch.compiler.is_compiling():
        options = axis, ignored
        return both(options, x, ids) if traceable(options, x, ids) else None
    return DIRECT.mean_of_ids(axis, ignored, x, ids, True) if dense_tensors(x, ids) else None


def both(options: Options, x: Array, ids: Array, derive: bool = True) -> tuple[Array, Array]:
    assert OPERATORS is not None
    return OPERATORS.mean_of_ids(*options, x, ids, derive)


def traceable(options: Options, x: Array, ids: Array) -> bool:
    """Whether a graph can have the operator. It takes ids as they are: a loop that prepares them in the graph leaves
    PyTorch's threads waiting busily, in the way of the kernel's own."""
    return (
        type(x) in PLAIN
        and type(ids) in PLAIN
        and OPS.layout(x) is OPS.layout(ids) is None
        and kernels(x, ids) is not None
        and x.is_cpu
        and not plain()
        and None not in OPS.shape(x)
        and axis_if_taken(OPS, *options, x, ids) is not None
    )


def dense_tensors(x: Array, ids: Array) -> bool:
    """In this process's memory, with values to read."""
    return (
        type(x) in PLAIN
        and type(ids) in PLAIN
        and kernels(x, ids) is DIRECT
        and not plain()
        and x.is_contiguous()
        and ids.is_contiguous()
        and not x.is_neg()
    )


SHORTCUT = None if ON_CPU is None else Shortcut(value, value_and_grad)
