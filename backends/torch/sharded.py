"""`sharded=` on PyTorch: classes that are split over the ranks of a process group, in the order of their ranks.

The forward pass has two collectives, both all-gathers: of two numbers a rank, and of the rows' statistics. The backward
pass has none.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any, NamedTuple

import torch
from torch.autograd.function import once_differentiable
from xent import _check, formulas
from xent.adapter import Layout, RowResults
from xent.formulas import sharding
from xent.formulas.sharding import Row, Shard

from .native import kernels
from .ops import OPS

Array = Any


class OnMesh(NamedTuple):
    """The process groups that classes and rows are split over, one after the other."""

    classes: tuple[Any, ...]  # none: each rank has all of them
    rows: tuple[Any, ...]

    def rank(self) -> int:
        """Where the rank's classes are among all parts of them."""
        place = 0
        for group in self.classes:
            place = place * torch.distributed.get_world_size(group) + torch.distributed.get_rank(group)
        return place

    def parts(self) -> int:
        """How many there are of them."""
        return math.prod([torch.distributed.get_world_size(group) for group in self.classes])


def mesh_of(group: Any) -> OnMesh:
    """What the caller gave as `sharded=`; a mesh comes from .mesh."""
    return group if isinstance(group, OnMesh) else OnMesh((group,), ())


def shard(group: Any, length: int, rows: int, like: Array) -> Shard:
    """How many classes the others have is asked at every call. Where that waits for no device, numbers are Python's."""
    if not isinstance(group, OnMesh):
        process_group("sharded", group)
    mesh = mesh_of(group)
    if torch._C._are_functorch_transforms_active():
        raise TypeError("sharded: collectives have no rules for the transforms of torch.func; use backward()")
    over_rows = partial(summed_over, mesh.rows) if mesh.rows else None
    if not mesh.classes:
        alone = torch.ones(1, dtype=torch.bool, device=like.device)
        return Shard(0, length, length, alone, stacked, lambda k: k, over_rows)
    rank, count = mesh.rank(), mesh.parts()
    sizes = all_gather(torch.tensor([length, rows], device=like.device), mesh)
    place = torch.arange(count, device=like.device)

    def gather(arrays: tuple[Array, ...]) -> tuple[Array, ...]:
        flat = all_gather(torch.cat([k.reshape(-1) for k in arrays]), mesh)
        parts = flat.split([k.numel() for k in arrays], 1)
        return tuple(part.reshape(count, *k.shape) for part, k in zip(parts, arrays, strict=True))

    if not torch.compiler.is_compiling() and like.is_cpu:
        lengths, others = zip(*sizes.tolist(), strict=True)
        _check.shards(lengths, others)
        start = sum(lengths[:rank])
        return Shard(start, length, sum(lengths), place == rank, gather, lambda k: k[start : start + length], over_rows)
    first = sizes[:rank, 0].sum()
    own = first + torch.arange(length, device=like.device)
    return Shard(first, length, sizes[:, 0].sum(), place == rank, gather, lambda k: k[own], over_rows)


def stacked(arrays: tuple[Array, ...]) -> tuple[Array, ...]:
    """Of one shard alone."""
    return tuple(k.unsqueeze(0) for k in arrays)


def process_group(argument: str, group: Any) -> None:
    if not (torch.distributed.is_available() and isinstance(group, torch.distributed.ProcessGroup)):
        raise TypeError(f"{argument}: expected a process group of torch.distributed, got {type(group).__name__}")


def all_gather(x: Array, mesh: OnMesh) -> Array:
    """[n] -> [parts of the classes, n]"""
    if not torch.compiler.is_compiling() and not x.numel():
        return x.new_empty((mesh.parts(), 0))
    every = x.contiguous()
    for group in reversed(mesh.classes):
        own, every = every, every.new_empty((torch.distributed.get_world_size(group) * every.shape[0],))
        torch.distributed.all_gather_single(every, own, group=group)
    return every.reshape(-1, x.shape[0])


class Attached(torch.autograd.Function):
    """The results of all classes, as a function of the shard's own logits and soft labels."""

    @staticmethod
    def forward(ctx: Any, layout: Layout, x: Array, t: Array, u: Array, ids: Array, held: Array, *arrays: Array) -> Any:
        row = Row(*arrays)
        nll, lse, smooth, m, s, *_ = sharding.results(OPS, layout, row, ids)
        ctx.layout = layout
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(x, t, u, ids, held, *row.for_derivatives(m, s))
        return nll, lse, smooth

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, a: Array, b: Array, c: Array) -> Any:
        x, t, u, ids, held, *arrays = ctx.saved_tensors
        layout, row = ctx.layout, Row(*arrays)
        a = torch.zeros_like(row.m).squeeze(layout.axis) if a is None else a
        up = sharding.coefficients(OPS, layout, row, held, a, b, c)
        dx, dt = pulled(layout, x, t, u, ids, row, up, (ctx.needs_input_grad[1], ctx.needs_input_grad[2]))
        return None, dx, dt, *(None for _ in range(3 + len(arrays)))


def pulled(layout: Layout, x: Array, t: Any, u: Any, ids: Any, row: Row, up: Any, wanted: tuple[bool, bool]) -> Any:
    """The derivatives in a shard's logits and soft labels."""
    if not x.shape[layout.axis]:
        return torch.zeros_like(x), None if t is None else torch.zeros_like(t)
    native = kernels(x, t, u, ids, row.m, *up)
    if native:
        return native.rows_backward(layout, x, t, u, ids, (row.m, row.s), up, wanted)
    wide = formulas.widened(OPS, x)
    parts = formulas.pieces(OPS, layout, wide, ids, row.m, row.s)
    dx = formulas.pull(OPS, layout, parts, wide, t, u, ids, up).to(x.dtype) if wanted[0] else None
    return dx, formulas.pull_labels(OPS, layout, parts, ids, up[:1]) if wanted[1] else None


def attach(_group: Any, layout: Layout, shard: Shard, x: Array, t: Any, u: Any, ids: Any, row: Row) -> RowResults:
    nll, lse, smooth = Attached.apply(layout, x, t, u, *shard.own_labels(OPS, layout, ids), *row)
    return RowResults(nll, lse, smooth, row.m, row.s, row.gap_sum, row.argmax)


def summed(_group: Any, own: Array, total: Array) -> Array:
    return total + torch.where(own.isfinite(), own - own.detach(), own)  # inf - inf would be NaN


def summed_over(groups: tuple[Any, ...], own: Array) -> Array:
    total = own.detach().clone()
    for group in groups:
        all_reduce(total, group)
    return summed(None, own, total)


def total_weight(group: Any, own: Array) -> Array:
    process_group("group", group)
    return all_reduce(own.detach().clone(), group)


def all_reduce(own: Array, group: Any) -> Array:
    """The sum over the ranks that share the classes, which is written over this rank's own."""
    for one in mesh_of(group).classes:
        torch.distributed.all_reduce(own, group=one)
    return own
