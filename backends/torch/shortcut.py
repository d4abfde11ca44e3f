"""`sparse_ce` without options on plain tensors in one native call."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from xent.adapter import Shortcut

from .kernels import Fused
from .native import DIRECT, ON_CPU, direct, kernels
from .ops import PLAIN
from .transforms import plain

Array = Any


def value(x: Array, ids: Array, again: Callable[[Array, Array], Array]) -> Array | None:
    if not dense_tensors(x, ids):
        return None
    recorded = torch.is_grad_enabled() and x.requires_grad
    if recorded and x.dtype is torch.float16:  # as in `fuse_value_and_grad`
        return None
    found = DIRECT.mean_of_ids(x, ids, recorded)
    if found is None or not recorded:
        return None if found is None else found[0]
    return direct(Fused)(x, lambda _plan, x, ids: again(x, ids), lambda *_: found, None, (ids,))


def value_and_grad(x: Array, ids: Array) -> Any:
    return DIRECT.mean_of_ids(x, ids, True) if dense_tensors(x, ids) else None


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
