"""linear_ce on PyTorch: products, and an `autograd.Function` that computes the gradients along with the loss.

They are handed out once, times the upstream gradient. Asked again, they are computed anew; asked in a way that wants to
be differentiated further, by `chunks.composite`, which knows every transform.
"""

from __future__ import annotations

import contextlib
from dataclasses import replace
from typing import Any

import torch
from xent import formulas
from xent.adapter import Layout, LinearKernels
from xent.formulas import linear as chunks
from xent.formulas.linear import LoopOperands, LoopResults, LoopSpec

from .kernels import rows
from .native import ON_CPU, OPERATORS, kernels
from .ops import KINDS, OPS, PLAIN
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
    return like.new_empty((rows, classes), dtype=KINDS[dtype]) if like.is_cpu else None


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
    for part in chunks.blocks(*weight.shape):
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
    for part in chunks.blocks(*weight.shape):
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


def rows_value_and_grad(
    layout: Layout, x: Array, t: None, u: Array | None, ids: Array, a: Any, lse2: Any, c: Any
) -> Any:
    native = kernels(x, u, ids)
    if native not in (None, OPERATORS):
        return replace(native, in_place=True).rows_value_and_grad(layout, x, t, u, ids, a, lse2, c)
    return formulas.rows_value_and_grad(OPS, layout, x, t, u, ids, a, lse2, c)


def new(shape: Any, like: Array, zeros: bool) -> Array:
    return (like.new_zeros if zeros else like.new_empty)(shape)


def scan(step: Any, carry: Any, rows: Any, chunk: int, keep: Any) -> Any:
    keep = None if keep is None else torch.from_numpy(keep).to(rows[0].device)
    return chunks.scan(new, step, carry, rows, chunk, keep)


# ---- the loop: as it is, and as one operator for tracers


def loop(spec: LoopSpec, wanted: tuple[bool, ...], operands: LoopOperands) -> tuple[LoopResults, Any]:
    """Results and the gradients that are wanted."""
    if not recording():
        return run(spec, wanted, operands)
    layout = spec.layout
    flags = (spec.softcap, spec.chunk, layout.masked, layout.lse, spec.stats, *wanted)
    found = torch.ops.xent.linear(*operands, *flags)
    there = (True, layout.lse, operands.u is not None, spec.stats, *wanted)
    nll, lse, smooth, correct, *grads = (k if is_there else None for k, is_there in zip(found, there, strict=True))
    return LoopResults(nll, lse, smooth, correct), tuple(grads)


def run(spec: LoopSpec, wanted: tuple[bool, ...], operands: LoopOperands) -> tuple[LoopResults, Any]:
    """Without autocast: the loss is computed in float32 at least, whichever products are the native kernels'."""
    h = operands.hidden
    with torch.autocast(h.device.type, enabled=False) if autocast(h) else contextlib.nullcontext():
        return chunks.run(spec, wanted, operands)


def autocast(x: Array) -> bool:
    device = x.device.type
    return torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)  # meta tensors know none


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
    count = len(LoopOperands._fields)
    operands, (softcap, chunk, masked, lse, stats, *wanted) = LoopOperands(*arguments[:count]), arguments[count:]
    rows = min(chunk, max(len(operands.hidden), 1))
    spec = LoopSpec(LINEAR, Layout(1, True, masked, lse), softcap, rows, False, stats)
    results, grads = run(spec, tuple(wanted), operands)
    return tuple(operands.hidden.new_empty(0) if k is None else k for k in (*results, *grads))


def shapes(*arguments: Any) -> tuple[Array, ...]:
    """The operator's results, for tracers."""
    h, weight, _, u, ids, _, _, _, _softcap, _chunk, _masked, lse, stats, *wanted = arguments
    dtype = KINDS[formulas.compute_dtype(OPS, h)]

    def result(there: bool, like: Array, dtype: Any = dtype) -> Array:
        return like.new_empty(like.shape, dtype=dtype) if there else h.new_empty(0)

    sums = (result(is_wanted, like) for is_wanted, like in zip(wanted, (h, weight, weight.select(1, 0)), strict=True))
    return result(True, ids), result(lse, ids), result(u is not None, ids), result(stats, ids, torch.bool), *sums


LIBRARY.impl("linear", operator, "CompositeExplicitAutograd")
torch.library.register_fake("xent::linear", shapes, lib=LIBRARY)


# ---- the derivative rule


class Head(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, spec: LoopSpec, wanted: tuple[bool, ...], *arrays: Array | None) -> Any:
        operands = LoopOperands(*arrays)
        results, grads = loop(spec, (False, False, False) if spec.each else wanted, operands)
        ctx.spec, ctx.wanted, ctx.spent = spec, wanted, False
        ctx.save_for_backward(*operands, *results[:3], *grads)  # so that hooks on saved tensors see them
        ctx.mark_non_differentiable(*(k for k in results if k is not None))
        ctx.set_materialize_grads(False)
        return chunks.value(spec, results, operands), *results

    @staticmethod
    def backward(ctx: Any, g: Array | None, *_: Any) -> Any:
        operands, results, grads = _three(ctx.saved_tensors)
        if g is None:
            return None, None, *(None for _ in operands)
        if torch.is_grad_enabled() or batched(g):
            return None, None, *_further(ctx, operands, g)
        if ctx.spec.each or ctx.spent:
            a, lse2, c = (None if k is None else k * g for k in operands.slopes)
            grads, g_ = loop(ctx.spec, ctx.wanted, operands._replace(a=a, lse2=lse2, c=c))[1], None
        elif recording():
            grads, g_ = [None if d is None else d * g for d in grads], None
        else:
            ctx.spent, g_ = True, g
        typed = (_handed_out(d, k, g_) for d, k in zip(grads, operands.parameters, strict=True))
        along = (
            g * k if needed else None
            for k, needed in zip(chunks.in_slopes(results), ctx.needs_input_grad[-3:], strict=True)
        )
        return None, None, *typed, None, None, *along


def batched(g: Array) -> bool:
    """By a transform, or by torch.autograd.grad(..., is_grads_batched=True), whose arrays have no memory."""
    return torch._C._are_functorch_transforms_active() or not (recording() or torch._C._has_storage(g))


def _three(saved: Any) -> Any:
    count = len(LoopOperands._fields)
    nll, lse, smooth, *grads = saved[count:]
    return LoopOperands(*saved[:count]), LoopResults(nll, lse, smooth, None), grads


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
            moved = (k.detach().requires_grad_() if n else k for k, n in zip(operands, needed, strict=True))
            operands = LoopOperands(*moved)
        value = chunks.composite(ctx.spec, operands)[0]
        chosen = [k for k, n in zip(operands, needed, strict=True) if n]
        found = iter(torch.autograd.grad(value, chosen, g, create_graph=further))
    return [next(found) if n else None for n in needed]


def head(spec: LoopSpec, operands: LoopOperands) -> tuple[Array, LoopResults]:
    inside = torch._C._are_functorch_transforms_active()
    if plain() or inside or not all(k is None or type(k) in PLAIN or recording() for k in operands):
        value, results = chunks.composite(spec, operands)
        return value, LoopResults(*(None if k is None else k.detach() for k in results))
    needed = [torch.is_grad_enabled() and k is not None and k.requires_grad for k in operands]
    if any(needed):
        value, *found = Head.apply(spec, tuple(needed[:3]), *operands)
        return value, LoopResults(*found)
    results = loop(spec, (False, False, False), operands)[0]
    return chunks.value(spec, results, operands), results


LINEAR = LinearKernels(
    ops=OPS,
    rows=rows,
    rows_value_and_grad=rows_value_and_grad,
    tanh=torch.tanh_,
    matmul=matmul,
    flat=lambda x, kept: x.reshape(-1, *x.shape[x.ndim - kept :]),
    shaped=lambda x, like: x.reshape(like.shape),
    project=project,
    buffer=buffer,
    pull=pull,
    accumulate=accumulate,
    scan=scan,
    head=head,
    memory=lambda x: chunks.MEMORY if x.is_cpu else chunks.MEMORY_ON_A_GPU,
)
