"""linear_ce on PyTorch where every rank has a part of the weight's rows: one more collective, which adds up what each
rank's classes contribute to the hidden states' gradient."""

from __future__ import annotations

import contextlib
from typing import Any

import torch
from torch.autograd.function import once_differentiable
from xent import formulas
from xent.adapter import RowResults
from xent.formulas import linear as chunks
from xent.formulas import linear_sharded, sharding
from xent.formulas.linear import LoopOperands, LoopSpec
from xent.formulas.sharding import Row, Shard

from .linear import autocast
from .ops import OPS
from .sharded import all_reduce, attach, pulled
from .transforms import recording

Array = Any


def linear(group: Any, spec: LoopSpec, shard: Shard, operands: LoopOperands) -> tuple[Row, RowResults]:
    """The rows, and their results, differentiable in hidden states, weight and bias."""
    if recording():
        return at_once(group, spec, shard, operands)
    own_ids, held = shard.own_labels(OPS, spec.layout, operands.ids)
    with torch.no_grad(), without_autocast(operands.hidden):
        row = sharding.combine(OPS, shard, linear_sharded.statistics(spec, shard, operands))
    nll, lse, smooth = AttachedHead.apply(group, spec, held, *operands._replace(ids=own_ids), *row)
    return row, RowResults(nll, lse, smooth, row.m, row.s, row.gap_sum, row.argmax)


def at_once(group: Any, spec: LoopSpec, shard: Shard, operands: LoopOperands) -> tuple[Row, RowResults]:
    """The same from the shard's logits of all rows, for tracers, which would write down every chunk."""
    ids, u = operands.ids, operands.smoothing_weights
    operands = chunks.with_rounded_values(spec, operands)
    hidden = Copied.apply(group, formulas.widened(OPS, operands.hidden))  # whose sum is not one of 16 bits
    x = chunks.all_logits(spec, operands._replace(hidden=hidden))
    own = sharding.statistics(OPS, spec.linear.rows, spec.layout, shard, x.detach(), None, u, ids)
    row = sharding.combine(OPS, shard, own)
    return row, attach(group, spec.layout, shard, x, None, u, ids, row)


def without_autocast(h: Array) -> Any:
    return torch.autocast(h.device.type, enabled=False) if autocast(h) else contextlib.nullcontext()


class Copied(torch.autograd.Function):
    """The same array on every rank; its derivative is the sum over the ranks."""

    @staticmethod
    def forward(ctx: Any, group: Any, x: Array) -> Array:
        ctx.group = group
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, g: Array) -> Any:
        return None, all_reduce(g.clone(), ctx.group)


class AttachedHead(torch.autograd.Function):
    """The results of all classes, as a function of the hidden states and of the rank's own weight and bias."""

    @staticmethod
    def forward(ctx: Any, group: Any, spec: LoopSpec, held: Any, *arrays: Array | None) -> Any:
        count = len(LoopOperands._fields)
        operands, row = LoopOperands(*arrays[:count]), Row(*arrays[count:])
        results = sharding.results(OPS, spec.layout, row, operands.ids)
        ctx.group, ctx.spec = group, spec
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(held, *operands, *row.for_derivatives(results.m, results.s))
        return results.nll, results.lse, results.smooth

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, a: Array, b: Array, c: Array) -> Any:
        held, *arrays = ctx.saved_tensors
        count = len(LoopOperands._fields)
        operands, row, spec = LoopOperands(*arrays[:count]), Row(*arrays[count:]), ctx.spec
        a = torch.zeros_like(row.m).squeeze(1) if a is None else a
        up = sharding.coefficients(OPS, spec.layout, row, held, a, b, c)

        def pull(x: Array, u: Array, ids: Array, m: Array, s: Array, up: Any) -> Array:
            return pulled(spec.layout, x, None, u, ids, row._replace(m=m, s=s), up, (True, False))[0]

        wanted = tuple(ctx.needs_input_grad[3:6])
        with without_autocast(operands.hidden):
            dh, *rest = linear_sharded.gradients(spec, pull, wanted, operands, row, up)
        grads = (None if dh is None else all_reduce(dh, ctx.group), *rest)
        typed = (None if d is None else d.to(k.dtype) for d, k in zip(grads, operands.parameters, strict=True))
        return None, None, None, *typed, *(None for _ in range(len(arrays) - 3))
