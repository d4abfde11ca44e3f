"""PyTorch's tensors: facts about them, glue, and mathematics along an axis."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from torch._subclasses.fake_tensor import FakeTensor
from xent import formulas
from xent.adapter import Ops, UnknownShapes

from .transforms import recording, traced

Array = Any
# PyTorch's dtypes by NumPy's names, and the other way round: quicker to look up than to spell.
KINDS = {str(k).removeprefix("torch."): k for k in vars(torch).values() if isinstance(k, torch.dtype)}
NAMES = {kind: name for name, kind in KINDS.items()}
PLAIN = {torch.Tensor, torch.nn.Parameter, torch.nn.Buffer}  # others may hold no memory of their own


# ---- arrays


def host(x: Array) -> Any:
    return fetch(x) if x.is_cpu else None


def fetch(x: Array) -> Any:
    """Tensors under torch.compile and under vmap have no values to look at; those that a graph is recorded with are
    not the ones that it will run on."""
    if recording() or isinstance(x, FakeTensor) or x.is_meta:
        return None
    if torch._C._functorch.is_functorch_wrapped_tensor(x):
        return None
    with torch._C._DisableFuncTorch():  # inside a transform, detach would wrap even what takes no part in it
        return x.numpy(force=True)


def asarray(value: Any, like: Array) -> Array:
    if torch.compiler.is_compiling():
        if isinstance(value, float):  # not in the default dtype, float32; and one graph for all numbers
            return torch.zeros((), dtype=torch.float64, device=like.device) + value
        return torch.as_tensor(np.asarray(value) if isinstance(value, list | tuple) else value, device=like.device)
    if isinstance(value, torch.Tensor) and value.device == like.device:
        return value  # not wrapped anew by a torch.func transform
    if isinstance(value, np.ndarray) and not (value.flags.writeable and all(s >= 0 for s in value.strides)):
        value = value.copy()  # torch shares memory, warns where it must not write, and knows no negative strides
    return torch.as_tensor(value, device=like.device)


def astype(x: Array, dtype: str) -> Array:
    kind = KINDS[dtype]
    return x if x.dtype is kind else x.to(kind)


def shape(x: Array) -> tuple[Any, ...]:
    """None for lengths that come out of data."""
    if torch.compiler.is_compiling():
        if torch.fx.experimental.symbolic_shapes.has_free_unbacked_symbols(x):
            return tuple([n if torch.fx.experimental.symbolic_shapes.has_static_value(n) else None for n in x.shape])
    elif torch._C._get_tracing_state():
        return untraced_shape(x)
    return tuple(x.shape)  # quicker to cut and join than a torch.Size


def untraced_shape(x: Array) -> tuple[int, ...]:
    """torch.jit.trace takes a length for a tensor, and warns of every comparison."""
    tracer: Any = torch._C
    state = tracer._get_tracing_state()
    tracer._set_tracing_state(None)
    try:
        return tuple(x.shape)
    finally:
        tracer._set_tracing_state(state)


class Length(NamedTuple):
    """One that comes out of data, like that of x[mask] in a compiled function."""

    value: Any


def lengths(x: Array) -> tuple[Any, ...]:
    return tuple([Length(n) if known is None else n for n, known in zip(x.shape, shape(x), strict=True)])


def require(value: Array, condition: Any, _words: list[Any], _shape: Any) -> Array:
    torch._check(condition)
    return value


def fit(value: Array, lengths: Any, _shape: Any, rule: Any) -> Array:
    """torch.compile is told which lengths are equal, and finds out when the graph runs."""
    own = value.shape
    for n, wanted in zip(own, lengths[len(lengths) - len(own) :], strict=True):
        expected = wanted.value if isinstance(wanted, Length) else wanted
        if not (rule.ones and torch.fx.experimental.symbolic_shapes.has_static_value(n) and n == 1):
            torch._check(n == expected)
    return value


def unranked(*_: Any) -> Any:
    raise AssertionError("PyTorch knows every array's rank")


UNKNOWN = UnknownShapes(lambda _x: True, lengths, require, fit, unranked, unranked, unranked)


def size(x: Array) -> Any:
    """An array where a graph is traced for any batch: what is computed from a number would be the graph's for good."""
    count = x.numel()
    return torch.full((), count, device=x.device) if recording() and not isinstance(count, torch.Tensor) else count


def take(table: Array, ids: Array) -> Array:
    return table[ids] if ids.ndim else table[ids.unsqueeze(0)].squeeze(0)  # table[a number] would be read under vmap


def layout(x: Any) -> str | None:
    if not isinstance(x, torch.Tensor):
        return None
    if x.is_nested:
        return "nested"
    if x.layout is not torch.strided:
        return "mkldnn" if x.is_mkldnn else "sparse"
    return "masked" if type(x) not in PLAIN and isinstance(x, torch.masked.MaskedTensor) else None


# ---- mathematics along an axis


def total(x: Array, axis: int | None) -> Array:
    """Eager torch adds in cascades. Compiled code has long running totals: those get digits to spare.

    In float64, and on devices that have none, blocks are added up first; their number must not depend on a length.
    """
    if not torch.compiler.is_compiling():
        return x.sum() if axis is None else x.sum(axis, keepdim=True)
    if axis is None:
        return total(x.reshape(-1), 0).squeeze(0)
    if x.dtype == torch.float32 and (x.is_cpu or x.is_cuda):
        return x.sum(axis, keepdim=True, dtype=torch.float64).to(x.dtype)
    for _ in range(3):
        if not short(x.shape[axis]):
            x = add_eighths(x, axis)
    return x.sum(axis, keepdim=True)


def short(length: Any) -> bool:
    return torch.fx.experimental.symbolic_shapes.has_static_value(length) and length <= 16


def add_eighths(x: Array, axis: int) -> Array:
    length = x.shape[axis]
    eighth = -(-length // 8)
    x = torch.nn.functional.pad(x, [0, 0] * (x.ndim - 1 - axis) + [0, 8 * eighth - length])
    return formulas.add_pairs(list(x.reshape(*x.shape[:axis], 8, eighth, *x.shape[axis + 1 :]).unbind(axis)))


def top(x: Array, axis: int) -> tuple[Array, Array]:
    if traced():
        return formulas.top(OPS, x, axis)
    m, place = x.max(axis, keepdim=True)
    m = formulas.finite_or_nan(OPS, m)
    return m, total((x - m).exp_().scatter_(axis, place, 0), axis)


OPS = Ops(
    dtype=lambda x: NAMES[x.dtype],
    shape=shape,
    device=lambda x: str(x.device),
    host=host,
    fetch=fetch,
    asarray=asarray,
    astype=astype,
    integer=lambda x: astype(x, "int64"),
    where=torch.where,
    expand_dims=torch.unsqueeze,
    following=lambda x, last: torch.cat([x[..., 1:], torch.full_like(x[..., :1], last)], -1),
    squeeze=torch.squeeze,
    zeros_like=torch.zeros_like,
    full=lambda shape, value, dtype, like: torch.full(shape, value, dtype=KINDS[dtype], device=like.device),
    take=take,
    size=size,
    stop_gradient=lambda x: x.detach(),
    exp=torch.exp,
    log1p=torch.log1p,
    tanh=torch.tanh,
    abs=torch.abs,
    max=lambda x, axis: x.amax(axis, keepdim=True),
    sum=total,
    top=top,
    argmax=lambda x, axis: torch.argmax(x, axis, keepdim=True),
    pick=lambda x, ids, axis: x.gather(axis, ids),
    put=lambda x, ids, values, axis: x.scatter(axis, ids, values),
    unknown=UNKNOWN,
    layout=layout,
    adopts_numpy=torch.compiler.is_compiling,
)
