"""linear_ce on PyTorch: products, and an `autograd.Function` that computes the gradients along with the loss.

The first backward pass takes these gradients, times the upstream one; a later one computes them anew. A backward pass
that will itself be differentiated goes by `chunks.composite`, which every transform can pass through.
"""

from __future__ import annotations

import contextlib
from dataclasses import replace
from typing import Any

import torch
from xent import formulas
from xent.adapter import Layout, LinearKernels, Slopes
from xent.formulas import linear as chunks
from xent.formulas.linear import LoopOperands, LoopResults, LoopSpec

from .kernels import rows
from .native import ON_CPU, OPERATORS, kernels
from .ops import KINDS, OPS, PLAIN
from .transforms import plain, recording

Array = Any


# ---- products


def native_16(weight: Array) -> bool:
    """Whether 16-bit products with 32-bit results are used. Not for float16: a mean's small derivatives underflow."""
    return bool(weight.dtype == torch.bfloat16 and weight.is_cuda)


def direct(*operands: Array) -> Any:
    """The native kernels if they take all operands without a copy, else None; a weight may be any view."""
    found = kernels(*operands)
    usable = found is ON_CPU and all(k.is_contiguous() and k.numel() and not k.is_neg() for k in operands)
    return found if usable else None


def buffer(rows: int, classes: int, dtype: str, like: Array) -> Array | None:
    """On a CPU only: there the allocator would give each chunk a new place, and take twice the memory."""
    return like.new_empty((rows, classes), dtype=KINDS[dtype]) if like.is_cpu else None


def project(hidden: Array, weight: Array, over: Array | None) -> Array:
    if native_16(weight):
        return torch.mm(hidden, weight.mT, out_dtype=torch.float32)
    if over is None:
        return formulas.widened(OPS, hidden) @ formulas.widened(OPS, weight).mT
    x = over[: len(hidden)]
    if native := direct(hidden, weight):
        native.project(hidden, weight, x)
        return x
    hidden = formulas.widened(OPS, hidden)
    for part in chunks.blocks(*weight.shape):
        x[:, part] = hidden @ formulas.widened(OPS, weight[part]).mT
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


def accumulate(sums: Array, dx: Array, hidden: Array) -> Array:
    if native := direct(sums, dx, hidden):
        native.accumulate(dx, hidden, sums)
        return sums
    if native_16(hidden):
        return torch.addmm(sums, dx.mT.to(hidden.dtype), hidden, out_dtype=sums.dtype, out=sums)
    return torch.addmm(sums, dx.mT, hidden.to(sums.dtype), out=sums)  # FlopCounterMode does not count addmm_


# ---- a chunk's derivative, over its logits


def rows_value_and_grad(
    layout: Layout, x: Array, t: None, smoothing_weights: Array | None, ids: Array, slopes: Slopes
) -> Any:
    native = kernels(x, smoothing_weights, ids)
    if native not in (None, OPERATORS):
        return replace(native, in_place=True).rows_value_and_grad(layout, x, t, smoothing_weights, ids, slopes)
    return formulas.rows_value_and_grad(OPS, layout, x, t, smoothing_weights, ids, slopes)


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
    flags = (spec.softcap, spec.chunk, layout.masked, layout.lse, layout.stats, *wanted)
    found = torch.ops.xent.linear(*operands, *flags)
    there = (True, layout.lse, operands.smoothing_weights is not None, *[layout.stats] * 3, *wanted)
    results = tuple(k if is_there else None for k, is_there in zip(found, there, strict=True))
    count = len(LoopResults._fields)
    return LoopResults(*results[:count]), results[count:]


def run(spec: LoopSpec, wanted: tuple[bool, ...], operands: LoopOperands) -> tuple[LoopResults, Any]:
    """The loop without autocast: the loss is computed in float32 at least, as in the native kernels."""
    h = operands.hidden
    with torch.autocast(h.device.type, enabled=False) if autocast(h) else contextlib.nullcontext():
        return chunks.run(spec, wanted, operands)


def autocast(x: Array) -> bool:
    device = x.device.type
    return torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)  # meta tensors know none


def matmul(hidden: Array, weight: Array) -> Array:
    """In float64 under autocast, which leaves that alone: the derivative is then not rounded to 16 bits either."""
    if autocast(hidden):
        return (hidden.double() @ weight.double().mT).to(hidden.dtype)
    return hidden @ weight.mT


LIBRARY = torch.library.Library("xent", "FRAGMENT")
LIBRARY.define(
    "linear(Tensor hidden, Tensor weight, Tensor? bias, Tensor? smoothing_weights, Tensor ids, Tensor? nll_scale,"
    " Tensor? lse2, Tensor? smooth_scale, float? softcap, int chunk, bool masked, bool lse, bool stats,"
    " bool d_hidden, bool d_weight, bool d_bias)"
    " -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)"
)


def operator(*arguments: Any) -> tuple[Array, ...]:
    count = len(LoopOperands._fields)
    operands, (softcap, chunk, masked, lse, stats, *wanted) = LoopOperands(*arguments[:count]), arguments[count:]
    rows = min(chunk, max(len(operands.hidden), 1))
    spec = LoopSpec(LINEAR, Layout(1, True, masked, lse, stats), softcap, rows, False)
    results, grads = run(spec, tuple(wanted), operands)
    return tuple(operands.hidden.new_empty(0) if k is None else k for k in (*results, *grads))


def shapes(*arguments: Any) -> tuple[Array, ...]:
    """The operator's results, for tracers."""
    count = len(LoopOperands._fields)
    operands, (_softcap, _chunk, _masked, lse, stats, *wanted) = LoopOperands(*arguments[:count]), arguments[count:]
    hidden, weight, ids = operands.hidden, operands.weight, operands.ids
    dtype = KINDS[formulas.compute_dtype(OPS, hidden)]

    def result(there: bool, like: Array, dtype: Any = dtype) -> Array:
        return like.new_empty(like.shape, dtype=dtype) if there else hidden.new_empty(0)

    sums = (
        result(is_wanted, like) for is_wanted, like in zip(wanted, (hidden, weight, weight.select(1, 0)), strict=True)
    )
    smooth = result(operands.smoothing_weights is not None, ids)
    for_stats = result(stats, ids, torch.bool), result(stats, ids), result(stats, ids, ids.dtype)
    return result(True, ids), result(lse, ids), smooth, *for_stats, *sums


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
    def backward(ctx: Any, upstream: Array | None, *_: Any) -> Any:
        operands, results, grads = _three(ctx.saved_tensors)
        if upstream is None:
            return None, None, *(None for _ in operands)
        if torch.is_grad_enabled() or batched(upstream):
            return None, None, *_further(ctx, operands, upstream)
        if ctx.spec.each or ctx.spent:
            scaled = operands.with_slopes(*(None if k is None else k * upstream for k in operands.slopes))
            grads, scale = loop(ctx.spec, ctx.wanted, scaled)[1], None
        elif recording():
            grads, scale = [None if d is None else d * upstream for d in grads], None
        else:
            ctx.spent, scale = True, upstream
        typed = (_handed_out(d, k, scale) for d, k in zip(grads, operands.parameters, strict=True))
        along = (
            upstream * k if needed else None
            for k, needed in zip(chunks.in_slopes(results), ctx.needs_input_grad[-len(Slopes._fields) :], strict=True)
        )
        return None, None, *typed, None, None, *along


def batched(upstream: Array) -> bool:
    """Whether a transform or torch.autograd.grad(..., is_grads_batched=True) maps over it: then it has no memory."""
    return torch._C._are_functorch_transforms_active() or not (recording() or torch._C._has_storage(upstream))


def _three(saved: Any) -> Any:
    count = len(LoopOperands._fields)
    nll, lse, smooth, *grads = saved[count:]
    return LoopOperands(*saved[:count]), LoopResults(nll, lse, smooth), grads


def _handed_out(d: Array | None, like: Array, upstream: Array | None) -> Array | None:
    """A gradient that the caller may change without changing what is saved."""
    if d is None:
        return None
    if upstream is not None:
        d = d.data
        d = d if upstream.is_cpu and upstream.item() == 1 else d.mul_(upstream)
    return d.to(like.dtype)


def _further(ctx: Any, operands: Any, upstream: Array) -> list[Array | None]:
    """Gradients by operations that can be differentiated and batched again."""
    needed = ctx.needs_input_grad[2:]
    further = torch.is_grad_enabled()
    with torch.enable_grad():
        if not further:
            moved = (k.detach().requires_grad_() if n else k for k, n in zip(operands, needed, strict=True))
            operands = LoopOperands(*moved)
        value = chunks.composite(ctx.spec, operands)[0]
        chosen = [k for k, n in zip(operands, needed, strict=True) if n]
        found = iter(torch.autograd.grad(value, chosen, upstream, create_graph=further))
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
