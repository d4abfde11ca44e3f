"""PyTorch's kernels: `autograd.Function`s that save the row statistics (m, s), never the probabilities."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from xent import formulas
from xent.adapter import Layout, RowResults, Slopes

from .native import DIRECT, OPERATORS, apply, direct, kernels
from .ops import OPS
from .transforms import plain, traced

Array = Any


class Rows(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(layout: Layout, x: Array, t: Array, u: Array, ids: Array) -> Any:
        native = kernels(x, t, u, ids)
        if native:
            return tuple(native.rows(layout, x, t, u, ids))  # vmap's rule takes no named one
        return tuple(formulas.rows(OPS, layout, formulas.widened(OPS, x), t, u, ids))

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.layout, *saved = inputs
        m, s, *for_stats = output[3:]
        ctx.mark_non_differentiable(m, s, *(k for k in for_stats if k is not None))
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*saved, m, s)

    @staticmethod
    def backward(ctx: Any, a: Array, b: Array, c: Array, *_: Any) -> Any:
        x, t, u, ids, m, s = ctx.saved_tensors
        layout, up = ctx.layout, (torch.zeros_like(m).squeeze(ctx.layout.axis) if a is None else a, b, c)
        wanted = ctx.needs_input_grad[1], ctx.needs_input_grad[2]
        native = None if torch.is_grad_enabled() else kernels(x, t, u, ids, m, *up)
        if native:
            return None, *native.rows_backward(layout, x, t, u, ids, (m, s), up, wanted), None, None
        make = formulas.smooth_pieces if torch.is_grad_enabled() else formulas.pieces
        wide = formulas.widened(OPS, x)
        parts = make(OPS, layout, wide, ids, m, s)
        dx = formulas.pull(OPS, layout, parts, wide, t, u, ids, up).to(x.dtype) if wanted[0] else None
        dt = formulas.pull_labels(OPS, layout, parts, ids, up[:1]) if wanted[1] else None
        return None, dx, dt, None, None


class Sigmoid(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(smoothing: float, x: Array, targets: Array, pos_weight: Array, absent: Array) -> Array:
        native = kernels(x, targets, pos_weight, absent)
        if native:
            return native.sigmoid(
                smoothing, x, targets, pos_weight, None if absent is None else (~absent).to(targets.dtype), True
            )
        return formulas.sigmoid(OPS, smoothing, formulas.widened(OPS, x), targets, pos_weight, absent)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.smoothing, *saved = inputs
        ctx.save_for_backward(*saved)

    @staticmethod
    def backward(ctx: Any, g: Array) -> Any:
        x, targets, pos_weight, absent = ctx.saved_tensors
        native = None if torch.is_grad_enabled() else kernels(x, targets, pos_weight, absent, g)
        if native:
            g = g if absent is None else g.masked_fill(absent, 0)
            return (
                None,
                *native.sigmoid_backward(ctx.smoothing, x, targets, pos_weight, g, 1.0, ctx.needs_input_grad[1:3]),
                None,
                None,
            )
        dx, dz = formulas.sigmoid_pull(OPS, ctx.smoothing, formulas.widened(OPS, x), targets, pos_weight, absent, g)
        return None, dx.to(x.dtype), dz, None, None


class SigmoidSum(torch.autograd.Function):
    """Where there are kernels."""

    @staticmethod
    def forward(smoothing: float, x: Array, targets: Array, pos_weight: Array, weight: Array) -> Array:
        return kernels(x, targets, pos_weight, weight).sigmoid(smoothing, x, targets, pos_weight, weight, False)

    setup_context = Sigmoid.setup_context

    @staticmethod
    def backward(ctx: Any, g: Array) -> Any:
        x, targets, pos_weight, weight = ctx.saved_tensors
        native = None if torch.is_grad_enabled() else kernels(x, targets, pos_weight, weight, g)
        if native:
            return (
                None,
                *native.sigmoid_backward(ctx.smoothing, x, targets, pos_weight, weight, g, ctx.needs_input_grad[1:3]),
                None,
                None,
            )
        slope = g.expand(x.shape) if weight is None else g * weight
        absent = None if weight is None else weight == 0
        dx, dz = formulas.sigmoid_pull(OPS, ctx.smoothing, formulas.widened(OPS, x), targets, pos_weight, absent, slope)
        return None, dx.to(x.dtype), dz, None, None


def rows(layout: Layout, x: Array, t: Array | None, u: Array | None, ids: Array | None) -> RowResults:
    if plain():
        return formulas.rows(OPS, layout, formulas.widened(OPS, x), t, u, ids, differentiable=True)
    return RowResults(*apply(Rows, layout, x, t, u, ids))


def sigmoid(smoothing: float, x: Array, targets: Array, pos_weight: Array | None, absent: Array | None) -> Array:
    if plain():
        return formulas.sigmoid(OPS, smoothing, formulas.widened(OPS, x), targets, pos_weight, absent)
    return apply(Sigmoid, smoothing, x, targets, pos_weight, absent)


def sigmoid_total(smoothing: float, x: Array, targets: Array, pos_weight: Array | None, weight: Array | None) -> Array:
    if plain() or (weight is not None and weight.requires_grad) or kernels(x, targets, pos_weight, weight) is None:
        return formulas.sigmoid_total(OPS, sigmoid, smoothing, x, targets, pos_weight, weight)
    return apply(SigmoidSum, smoothing, x, targets, pos_weight, weight)


# ---- loss and derivative in one visit


def rows_value_and_grad(
    layout: Layout, x: Array, t: Array | None, u: Array | None, ids: Array | None, slopes: Slopes
) -> Any:
    native = kernels(x, t, u, ids, *(k for k in slopes if not isinstance(k, float)))
    if native:
        return native.rows_value_and_grad(layout, x, t, u, ids, slopes)
    with torch.no_grad():
        return formulas.rows_value_and_grad(OPS, layout, formulas.widened(OPS, x), t, u, ids, slopes)


def mean_value_and_grad(layout: Layout, x: Array, t: Array | None, ids: Array | None, n: int) -> Any:
    if kernels(x, t, ids) is DIRECT:
        return DIRECT.mean_value_and_grad(layout, x, t, ids, n)
    return formulas.mean_value_and_grad(OPS, rows_value_and_grad, layout, x, t, ids, n)


def sigmoid_value_and_grad(
    smoothing: float, x: Array, targets: Array, pos_weight: Array | None, weight: Array | None, g: Any, each: bool
) -> Any:
    with torch.no_grad():
        native = kernels(x, targets, pos_weight, weight)
        if native:
            return native.sigmoid_value_and_grad(smoothing, x, targets, pos_weight, weight, g, each)
        return formulas.sigmoid_value_and_grad(
            OPS, smoothing, formulas.widened(OPS, x), targets, pos_weight, weight, g, each
        )


class Fused(torch.autograd.Function):
    """A whole loss, whose derivative in the logits is computed along with it.

    It is handed out once, times the upstream gradient. Asked again, or in a way that wants to be differentiated
    further, the loss is computed anew by the functions above.
    """

    @staticmethod
    def forward(ctx: Any, x: Array, loss: Any, both: Any, static: Any, arrays: Any) -> Array:
        value, dx = both(static, x, *arrays)
        ctx.loss, ctx.static, ctx.spent = loss, static, False
        ctx.save_for_backward(x, *arrays, dx)  # so that hooks on saved tensors, checkpointing among them, see it
        return value

    @staticmethod
    def backward(ctx: Any, g: Array) -> Any:
        x, *arrays, dx = ctx.saved_tensors
        further = torch.is_grad_enabled()
        reached = kernels(g) is DIRECT  # otherwise g is traced or batched, and has no value to look at
        if further or ctx.spent or (reached and not _exact(dx, g)):
            with torch.enable_grad():
                x = x if further else x.detach().requires_grad_()
                value = ctx.loss(ctx.static, x, *arrays)
            (dx,) = torch.autograd.grad(value, x, g, create_graph=further)
        elif not reached:
            dx = dx * g
        else:
            ctx.spent = True
            dx = dx.data  # the caller's to change, without a trace in what is saved
            dx = dx if g.item() == 1 else dx.mul_(g)
        return dx, None, None, None, None


def _exact(dx: Array, g: Array) -> bool:
    """16 bits are not rounded twice, unless the second time is by a power of two."""
    return dx.element_size() > 2 or abs(math.frexp(g.item())[0]) == 0.5


class Compiled(torch.autograd.Function):
    """`Fused` as torch.compile records it: its graphs can be differentiated once, and say so when asked for more."""

    @staticmethod
    def forward(ctx: Any, x: Array, both: Any, static: Any, *arrays: Any) -> Array:
        value, dx = both(static, x, *arrays)
        ctx.others = 2 + len(arrays)
        ctx.save_for_backward(x, dx)
        return value

    @staticmethod
    def backward(ctx: Any, g: Array) -> Any:
        x, dx = ctx.saved_tensors
        return (dx * torch.ops.xent.factor(g, x), *[None] * ctx.others)  # of x, too: else dx would pass for a constant


IN_CACHE = 1 << 20  # logits; of more, scaling their gradient takes longer than visiting them a second time


def scaled(x: Array) -> bool:
    """Whether a compiled function's gradient is taken along with the loss and scaled later, not rounded before."""
    return bool(x.element_size() > 2 and x.numel() <= IN_CACHE)


def fuse_value_and_grad(loss: Any, both: Any, static: Any, x: Array, *arrays: Array) -> Array:
    if (
        torch.is_grad_enabled()
        and x.requires_grad
        and x.dtype != torch.float16  # GradScaler's factor has to go in before rounding: what is left may be 0
        and not any(k is not None and k.requires_grad for k in arrays)
        and not plain()
    ):
        if kernels(x, *arrays) is DIRECT:
            return direct(Fused)(x, loss, both, static, arrays)
        if torch.compiler.is_compiling() and kernels(x, *arrays) is not None and scaled(x):
            return Compiled.apply(x, both, static, *arrays)
    return loss(static, x, *arrays)


def needs_framework_autodiff(x: Array) -> bool:
    if OPERATORS is None:
        return True
    return torch._C._are_functorch_transforms_active() or plain() or (torch.is_grad_enabled() and x.requires_grad)


def value_and_grad(f: Callable[[Any], Any], x: Any) -> tuple[Any, Any]:
    """Stays connected to the caller's graph where x is part of one."""
    if traced():
        grad, value = torch.func.grad_and_value(lambda x: _summed(f(x)), has_aux=True)(x)
        return value[1], grad
    arrays = x if isinstance(x, tuple) else (x,)
    live = torch.is_grad_enabled() and any(k.requires_grad for k in arrays)
    with torch.enable_grad():
        arrays = tuple(k.view_as(k) if live and k.requires_grad else k.detach().requires_grad_() for k in arrays)
        value = f(arrays if isinstance(x, tuple) else arrays[0])
        total, _ = _summed(value)
        grads = torch.autograd.grad(total, arrays, create_graph=live)
    return value if live else detached(value), grads if isinstance(x, tuple) else grads[0]


def _summed(value: Any) -> tuple[Array, Any]:
    return (value[0] if isinstance(value, tuple) else value).sum(), value


def detached(value: Any) -> Any:
    """Constants beside it are that already."""
    return (value[0].detach(), *value[1:]) if isinstance(value, tuple) else value.detach()
