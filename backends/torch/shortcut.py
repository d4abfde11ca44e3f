"""`sparse_ce` without options on plain tensors in one native call."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from xent.adapter import Shortcut
from xent.backends.cpu.calls import CODES, native

from .kernels import Fused
from .native import CPU, DIRECT, direct, kernels
from .ops import NAMES, PLAIN
from .transforms import plain

Array = Any
DTYPES = {kind: CODES[name] for kind, name in NAMES.items() if name in CODES}
WIDE = {torch.int64: True, torch.int32: False}


def value(x: Array, ids: Array, again: Callable[[Array, Array], Array]) -> Array | None:
    if not fits(x, ids):
        return None
    recorded = torch.is_grad_enabled() and x.requires_grad
    if recorded and x.dtype is torch.float16:  # as in `fuse_value_and_grad`
        return None
    dx = torch.empty_like(x) if recorded else None
    mean = of(x, ids, dx)
    if mean is None or dx is None:
        return mean
    return direct(Fused)(x, lambda _plan, x, ids: again(x, ids), lambda *_: (mean, dx), None, (ids,))


def value_and_grad(x: Array, ids: Array) -> tuple[Array, Array] | None:
    if not fits(x, ids):
        return None
    dx = torch.empty_like(x)
    mean = of(x, ids, dx)
    return None if mean is None else (mean, dx)


def of(x: Array, ids: Array, dx: Array | None) -> Array | None:
    """The mean; None where an id is no class."""
    kind = x.dtype
    mean = native.mean_of_ids(
        dtype=DTYPES[kind],
        outer=ids.numel(),
        classes=x.shape[-1],
        wide=WIDE[ids.dtype],
        threads=torch.get_num_threads(),
        x=x.data_ptr(),
        ids=ids.data_ptr(),
        dx=0 if dx is None else dx.data_ptr(),
    )
    wide = kind if kind is torch.float64 else torch.float32
    return None if mean is None else torch.scalar_tensor(mean, dtype=wide, device=CPU)


def fits(x: Array, ids: Array) -> bool:
    """Dense tensors in this process's memory, with values to read, of shapes and dtypes that need no change."""
    return (
        type(x) in PLAIN
        and type(ids) in PLAIN
        and kernels(x, ids) is DIRECT
        and not plain()
        and x.dtype in DTYPES
        and ids.dtype in WIDE
        and x.is_contiguous()
        and ids.is_contiguous()
        and not x.is_neg()
        and x.ndim > 0
        and ids.shape == x.shape[:-1]
        and x.shape[-1] > 0
    )


SHORTCUT = None if native is None else Shortcut(value, value_and_grad)
