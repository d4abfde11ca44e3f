"""linear_ce on PyTorch: products, and an `autograd.Function` whose gradients are there before anybody asks for them.

They are handed out once, times the upstream gradient. Asked again, they are computed anew; asked in a way that wants to
be differentiated further, by `_linear.composite`, which knows every transform.
"""

from __future__ import annotations

import contextlib
from dataclasses import replace
from typing import Any

import torch
from xent import formulas
from xent.adapter import Layout, Linear
from xent.formulas import linear as _linear

from .kernels import rows
from .native import ON_CPU, OPERATORS, kernels
from .ops import OPS, PLAIN
from .transforms import plain, recording

Array = Any


# ---- products


def native_16(weight: Array) -> bool:
    """Whether there are products of 16 bits with results of 32. Float16 has no room for a mean's small derivatives."""
    return bool(weight.dtype == torch.bfloat16 and weight.is_cuda)


def direct(*operands: Array) -> Any:
    """The native kernels where they take these as they are, or None; a weight may be a view of anything."""
    found = kernels(*operands)
    usable = found is ON_CPU and all(k.is_contiguous() and k.numel() and not k.is_neg() for k in operands)
    return found if usable else None


def buffer(rows: int, classes: int, dtype: str, like: Array) -> Array | None:
    """On a CPU, whose allocator gives chunk after chunk another place and so takes twice the memory."""
    return like.new_empty((rows, classes), dtype=getattr(torch, dtype)) if like.is_cpu else None


def project(h: Array, weight: Array, over: Array | None) -> Array:
    if native_16(weight):
        return torch.mm(h, weight.mT, out_dtype=torch.float32)
    if over is None:
        return formulas.widened(OPS, h) @ formulas.widened(OPS, weight).mT
    x = over[: len(h)]
    if native := direct(h, weight):
        native.project(h, weight, x)
        return x
    h = formulas.widened(OPS, h)
    for part in _linear.blocks(*weight.shape):
        x[:, part] = h @ formulas.widened(OPS, weight[part]).mT
    return x


def pull(dx: Array, weight: Array) -> Array:
    if native := direct(dx, weight):
        dh = dx.new_empty((len(dx), weight.shape[1]))
        native.pull(dx, weight, dh)
        return dh
    if weight.dtype == dx.dtype:
        return dx @ weight
    if native_16(weight):
        return torch.mm(dx.to(weight.dtype), weight, out_dtype=dx.dtype)
    dh = dx.new_zeros((len(dx), weight.shape[1]))
    for part in _linear.blocks(*weight.shape):
        torch.addmm(dh, dx[:, part], weight[part].to(dx.dtype), out=dh)
    return dh


def accumulate(sums: Array, dx: Array, h: Array) -> Array:
    if native := direct(sums, dx, h):
        native.accumulate(dx, h, sums)
        return sums
    if native_16(h):
        return torch.addmm(sums, dx.mT.to(h.dtype), h, out_dtype=sums.dtype, out=sums)
    return torch.addmm(sums, dx.mT, h.to(sums.dtype), out=sums)  # which FlopCounterMode counts; addmm_ it does not


# ---- a chunk's derivative, over its logits


def rows_both(lay: Layout, x: Array, t: None, u: Array | None, ids: Array, a: Any, z: Any, c: Any) -> Any:
    native = kernels(x, u, ids)
    if native not in (None, OPERATORS):
        return replace(native, in_place=True).rows_both(lay, x, t, u, ids, a, z, c)
    return formulas.rows_both(OPS, lay, x, t, u, ids, a, z, c)


def new(shape: Any, like: Array, zeros: bool) -> Array:
    return (like.new_zeros if zeros else like.new_empty)(shape)


def scan(step: Any, carry: Any, rows: Any, chunk: int, keep: Any) -> Any:
    keep = None if keep is None else torch.from_numpy(keep).to(rows[0].device)
    return _linear.scan(new, step, carry, rows, chunk, keep)


# ---- the loop: as it is, and as one operator for tracers


def loop(static: Any, wanted: tuple[bool, ...], *operands: Array | None) -> tuple[Any, Any]:
    """Results and the gradients that are wanted, for sum(a loss + z lse^2 + c smooth)."""
    if not recording():
        return run(static, wanted, *operands)
    lay = static.lay
    flags = (static.softcap, static.chunk, lay.masked, lay.lse, static.stats, *wanted)
    found = torch.ops.xent.linear(*operands, *flags)
    there = (True, lay.lse, operands[3] is not None, static.stats, *wanted)
    loss, lse, smooth, correct, *grads = (k if is_there else None for k, is_there in zip(found, there, strict=True))
    return (loss, lse, smooth, correct), tuple(grads)


def run(static: Any, wanted: tuple[bool, ...], h: Array, *operands: Array | None) -> tuple[Any, Any]:
    """Without autocast: the loss is computed in float32 at least, whichever products are the native kernels'."""
    with torch.autocast(h.device.type, enabled=False) if autocast(h) else contextlib.nullcontext():
        return _linear.run(static, wanted, h, *operands)


def autocast(x: Array) -> bool:
    return torch.is_autocast_enabled(x.device.type)


def matmul(h: Array, weight: Array) -> Array:
    """Here a derivative is a product of PyTorch's own, wherever it is taken: autocast leaves float64 alone."""
    if autocast(h):
        return (h.double() @ weight.double().mT).to(h.dtype)
    return h @ weight.mT


LIBRARY = torch.library.Library("xent", "FRAGMENT")
LIBRARY.define(
    "linear(Tensor h, Tensor weight, Tensor? bias, Tensor? u, Tensor ids, Tensor? a, Tensor? z, Tensor? c,"
    " float? softcap, int chunk, bool masked, bool lse, bool stats, bool dh, bool dweight, bool dbias)"
    " -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)"
)


def operator(*arguments: Any) -> tuple[Array, ...]:
    operands, (softcap, chunk, masked, lse, stats), wanted = arguments[:8], arguments[8:13], arguments[13:]
    rows = min(chunk, max(len(operands[0]), 1))
    static = _linear.Head(LINEAR, Layout(1, True, masked, lse), softcap, rows, False, stats)
    results, grads = run(static, wanted, *operands)
    return tuple(operands[0].new_empty(0) if k is None else k for k in (*results, *grads))


def shapes(*arguments: Any) -> tuple[Array, ...]:
    """The operator's results, for tracers."""
    h, weight, _, u, ids = arguments[:5]
    lse, stats, *wanted = arguments[11:]
    dtype = getattr(torch, formulas.compute_dtype(OPS, h))

    def result(there: bool, like: Array, dtype: Any = dtype) -> Array:
        return like.new_empty(like.shape, dtype=dtype) if there else h.new_empty(0)

    sums = (result(is_wanted, like) for is_wanted, like in zip(wanted, (h, weight, weight.select(1, 0)), strict=True))
    return result(True, ids), result(lse, ids), result(u is not None, ids), result(stats, ids, torch.bool), *sums


LIBRARY.impl("linear", operator, "CompositeExplicitAutograd")
torch.library.register_fake("xent::linear", shapes, lib=LIBRARY)


# ---- the derivative rule


class Head(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, static: Any, wanted: tuple[bool, ...], *operands: Array | None) -> Any:
        results, grads = loop(static, (False, False, False) if static.each else wanted, *operands)
        ctx.static, ctx.wanted, ctx.spent = static, wanted, False
        ctx.save_for_backward(*operands, *results[:3], *grads)  # so that hooks on saved tensors see them
        ctx.mark_non_differentiable(*(k for k in results if k is not None))
        ctx.set_materialize_grads(False)
        return _linear.value(static, results, *operands[-3:]), *results

    @staticmethod
    def backward(ctx: Any, g: Array | None, *_: Any) -> Any:
        operands, (loss, lse, smooth), grads = _three(ctx.saved_tensors)
        if g is None:
            return (None,) * 10
        if torch.is_grad_enabled() or batched(g):
            return None, None, *_further(ctx, operands, g)
        if ctx.static.each or ctx.spent:
            slopes = (None if k is None else k * g for k in operands[-3:])
            grads, g_ = loop(ctx.static, ctx.wanted, *operands[:5], *slopes)[1], None
        elif recording():
            grads, g_ = [None if d is None else d * g for d in grads], None
        else:
            ctx.spent, g_ = True, g
        typed = (_handed_out(d, k, g_) for d, k in zip(grads, operands[:3], strict=True))
        squares = None if lse is None else lse * lse
        along = (
            g * k if needed else None
            for k, needed in zip((loss, squares, smooth), ctx.needs_input_grad[-3:], strict=True)
        )
        return None, None, *typed, None, None, *along


def batched(g: Array) -> bool:
    """By a transform, or by torch.autograd.grad(..., is_grads_batched=True), whose arrays have no memory."""
    return torch._C._are_functorch_transforms_active() or not (recording() or torch._C._has_storage(g))


def _three(saved: Any) -> Any:
    return saved[:8], saved[8:11], saved[11:]


def _handed_out(d: Array | None, like: Array, g: Array | None) -> Array | None:
    """The caller's to change, without a trace in what is saved."""
    if d is None:
        return None
    if g is not None:
        d = d.data
        d = d if g.is_cpu and g.item() == 1 else d.mul_(g)
    return d.to(like.dtype)


def _further(ctx: Any, operands: Any, g: Array) -> list[Array | None]:
    """By operations that can be differentiated and batched again."""
    needed = ctx.needs_input_grad[2:]
    further = torch.is_grad_enabled()
    with torch.enable_grad():
        if not further:
            operands = [k.detach().requires_grad_() if n else k for k, n in zip(operands, needed, strict=True)]
        value = _linear.composite(ctx.static, *operands)[0]
        chosen = [k for k, n in zip(operands, needed, strict=True) if n]
        found = iter(torch.autograd.grad(value, chosen, g, create_graph=further))
    return [next(found) if n else None for n in needed]


def head(static: Any, *operands: Array | None) -> Any:
    inside = torch._C._are_functorch_transforms_active()
    if plain() or inside or not all(k is None or type(k) in PLAIN or recording() for k in operands):
        value, results = _linear.composite(static, *operands)
        return value, tuple(None if k is None else k.detach() for k in results)
    needed = [torch.is_grad_enabled() and k is not None and k.requires_grad for k in operands]
    if any(needed):
        value, *results = Head.apply(static, tuple(needed[:3]), *operands)
        return value, tuple(results)
    results = loop(static, (False, False, False), *operands)[0]
    return _linear.value(static, results, *operands[-3:]), results


LINEAR = Linear(
    ops=OPS,
    rows=rows,
    rows_both=rows_both,
    tanh=torch.tanh_,
    smooth_tanh=torch.tanh,
    matmul=matmul,
    flat=lambda x, kept: x.reshape(-1, *x.shape[x.ndim - kept :]),
    shaped=lambda x, like: x.reshape(like.shape),
    project=project,
    buffer=buffer,
    pull=pull,
    accumulate=accumulate,
    scan=scan,
    head=head,
    memory=lambda x: _linear.MEMORY if x.is_cpu else _linear.MEMORY_ON_A_GPU,
)
