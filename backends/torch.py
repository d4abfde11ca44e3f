"""PyTorch. The kernels are `autograd.Function`s that save the row statistics (m, s), never the probabilities."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch._subclasses.fake_tensor import FakeTensor
from torch.autograd import forward_ad
from xent import formulas
from xent._adapter import Adapter, Layout, Ops

Array = Any


# ---- under which transform


def traced() -> bool:
    """Inside torch.compile or a torch.func transform, where in-place work and a list of places do not go well."""
    return torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active()


def plain() -> bool:
    """Where an autograd.Function will not do, formulas with right derivatives of their own take its place.

    Forward mode loses its outer levels in a Function's jvp. torch.compile forgets a Function's vmap rule.
    """
    if torch.compiler.is_compiling():
        return torch._C._are_functorch_transforms_active()
    return forward_ad._current_level >= 0


# ---- arrays


def host(x: Array) -> Any:
    return fetch(x) if x.device.type == "cpu" else None


def fetch(x: Array) -> Any:
    """Tensors under torch.compile and under vmap have no values to look at."""
    if torch.compiler.is_compiling() or isinstance(x, FakeTensor) or x.is_meta:
        return None
    if torch._C._functorch.is_functorch_wrapped_tensor(x):
        return None
    return x.detach().cpu().numpy()


def asarray(value: Any, like: Array) -> Array:
    if torch.compiler.is_compiling():
        if isinstance(value, list | tuple):
            value = np.asarray(value)
        dtype = torch.float64 if isinstance(value, float) else None  # not the default dtype, float32
        return torch.as_tensor(value, dtype=dtype, device=like.device)
    if isinstance(value, torch.Tensor) and value.device == like.device:
        return value  # not wrapped anew by a torch.func transform
    if isinstance(value, np.ndarray) and not (value.flags.writeable and all(s >= 0 for s in value.strides)):
        value = value.copy()  # torch shares memory, warns where it must not write, and knows no negative strides
    return torch.as_tensor(value, device=like.device)


def astype(x: Array, dtype: str) -> Array:
    return x.to(getattr(torch, dtype))


# ---- mathematics along an axis


def total(x: Array, axis: int | None) -> Array:
    """Eager torch adds in cascades; compiled code does not."""
    if not torch.compiler.is_compiling():
        return x.sum() if axis is None else x.sum(axis, keepdim=True)
    if axis is None:
        return total(x.reshape(-1), 0).squeeze(0)

    def add_eighths(x: Array, n: int) -> Array:
        short = 8 * n - x.shape[axis]
        if short:
            x = torch.nn.functional.pad(x, [0, 0] * (x.ndim - 1 - axis) + [0, short])
        return formulas.add_pairs(list(x.split(n, axis)))

    return formulas.tree_sum(x, x.shape[axis], add_eighths, lambda x: x.sum(axis, keepdim=True))


def top(x: Array, axis: int) -> tuple[Array, Array]:
    if traced():
        return formulas.top(OPS, x, axis)
    m, place = x.max(axis, keepdim=True)
    m = formulas.finite_or_nan(OPS, m)
    return m, total((x - m).exp_().scatter_(axis, place, 0), axis)


OPS = Ops(
    dtype=lambda x: str(x.dtype).removeprefix("torch."),
    shape=lambda x: tuple(x.shape),
    device=lambda x: str(x.device),
    host=host,
    fetch=fetch,
    asarray=asarray,
    astype=astype,
    integer=lambda x: x.to(torch.int64),
    where=torch.where,
    expand_dims=torch.unsqueeze,
    squeeze=torch.squeeze,
    zeros_like=torch.zeros_like,
    full=lambda n, value, like: torch.full((n,), value, dtype=like.dtype, device=like.device),
    take=lambda table, ids: table[ids],
    size=lambda x: x.numel(),
    stop_gradient=torch.Tensor.detach,
    exp=torch.exp,
    log1p=torch.log1p,
    abs=torch.abs,
    minimum=lambda x, most: x.clamp(max=most),
    sigmoid=torch.sigmoid,
    max=lambda x, axis: x.amax(axis, keepdim=True),
    sum=total,
    top=top,
    pick=lambda x, ids, axis: x.gather(axis, ids),
    put=lambda x, ids, values, axis: x.scatter(axis, ids, values),
    adopts_numpy=torch.compiler.is_compiling,
)


# ---- kernels


class Rows(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(lay: Layout, x: Array, t: Array, u: Array, ids: Array) -> Any:
        results, stats = formulas.rows(OPS, lay, x, t, u, ids)
        return (*results, *stats)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.lay, *saved = inputs
        m, s = output[3:]
        ctx.mark_non_differentiable(m, s)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*saved, m, s)

    @staticmethod
    def backward(ctx: Any, a: Array, b: Array, c: Array, *_: Any) -> Any:
        x, t, u, ids, m, s = ctx.saved_tensors
        lay = ctx.lay
        a = torch.zeros_like(m).squeeze(lay.axis) if a is None else a
        make = formulas.smooth_pieces if torch.is_grad_enabled() else formulas.pieces
        parts = make(OPS, lay, x, ids, m, s)
        dt = formulas.pull_labels(OPS, lay, parts, x, m, ids, (a,)) if ctx.needs_input_grad[2] else None
        return None, formulas.pull(OPS, lay, parts, x, t, u, ids, (a, b, c)), dt, None, None


class Sigmoid(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(e: float, x: Array, z: Array, p: Array, absent: Array) -> Array:
        return formulas.sigmoid(OPS, e, x, z, p, absent)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.e, *saved = inputs
        ctx.save_for_backward(*saved)

    @staticmethod
    def backward(ctx: Any, g: Array) -> Any:
        x, z, p, absent = ctx.saved_tensors
        return (None, *formulas.sigmoid_pull(OPS, ctx.e, x, z, p, absent, g), None, None)


def rows(lay: Layout, x: Array, t: Array | None, u: Array | None, ids: Array | None) -> Any:
    if plain():
        return formulas.rows(OPS, lay, x, t, u, ids, differentiable=True)[0]
    return Rows.apply(lay, x, t, u, ids)[:3]


def sigmoid(e: float, x: Array, z: Array, p: Array | None, absent: Array | None) -> Array:
    if plain():
        return formulas.sigmoid(OPS, e, x, z, p, absent)
    return Sigmoid.apply(e, x, z, p, absent)


def value_and_grad(f: Callable[[Array], Array], x: Array) -> tuple[Array, Array]:
    """Stays connected to the caller's graph where x is part of one."""
    if traced():
        grad, value = torch.func.grad_and_value(lambda x: _summed(f(x)), has_aux=True)(x)
        return value[1], grad
    live = torch.is_grad_enabled() and x.requires_grad
    with torch.enable_grad():
        x = x.view_as(x) if live else x.detach().requires_grad_()
        value = f(x)
        (grad,) = torch.autograd.grad(value.sum(), x, create_graph=live)
    return value if live else value.detach(), grad


def _summed(value: Array) -> tuple[Array, Array]:
    return value.sum(), value


ADAPTER = Adapter(
    name="torch", types=(torch.Tensor,), ops=OPS, rows=rows, sigmoid=sigmoid, value_and_grad=value_and_grad
)
