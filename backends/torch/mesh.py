"""DTensors: logits that are spread over a mesh of devices, by rows, by classes, or both.

Every rank computes with what it has of them, as it does for `sharded=`, and the other arguments are cut to match. All
ranks compute the same loss.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.distributed.tensor import DTensor, Replicate, Shard
from xent import _check, _execute_sharded, _rules
from xent._execute import SIGMOID, SOFTMAX, SPARSE, Loss
from xent._linear import LINEAR
from xent._options import Operands, Options
from xent._reduce import Stats

from .ops import OPS
from .sharded import OnMesh, summed_over

Array = Any
Placements = Sequence[Any]


class Placed(NamedTuple):
    """The shape of a whole array, and how the mesh has it."""

    shape: tuple[int, ...]
    placements: Placements


def on_mesh(loss: Loss, operands: Operands, options: Options) -> Any:
    if loss is LINEAR:
        raise _check.no_linear("torch.distributed.tensor")
    if loss not in (SOFTMAX, SPARSE, SIGMOID):
        raise _check.no_dtensor()
    x = operands.inputs
    # Nothing is left to be added up, and shards are consecutive, unlike those of Shard's subclass.
    placements = [k if type(k) is Shard else Replicate() for k in x.placements]
    x, mesh = x.redistribute(placements=placements), x.device_mesh
    whole = Placed(tuple(x.shape), placements)
    groups = {dim: mesh.get_group(dim) for dim, k in enumerate(placements) if isinstance(k, Shard)}
    if loss is SIGMOID:
        local = cut(mesh, x, operands, _rules.SOFT_LABELS, whole, whole)
        value = _execute_sharded.sigmoid(local, options, partial(summed_over, tuple(groups.values())))
        return to_dtensor(mesh, value, whole)
    axis = _rules.class_axis(whole.shape, options.axis)
    over = [dim for dim, k in enumerate(placements) if isinstance(k, Shard) and k.dim == axis]
    if len(over) > 1:
        raise ValueError(f"logits: expected classes that are sharded over one dimension of the mesh, got {placements}")
    if over and not torch.equal(mesh.mesh, mesh.mesh.sort(over[0])[0]):  # a group's ranks are in ascending order
        raise ValueError(f"logits: expected a mesh whose ranks ascend along dimension {over[0]}, got {mesh}")
    classes = groups.pop(over[0]) if over else None
    group = OnMesh(classes, tuple(groups.values()))
    rows = Placed(whole.shape[:axis] + whole.shape[axis + 1 :], [without(k, axis) for k in placements])
    if loss is SPARSE:
        local = cut(mesh, x, operands, _rules.IDS, rows, rows)
        options = options._replace(invalid=_check.not_of_other_rows(options.invalid)) if groups else options
        result = _execute_sharded.sparse(local, options, group)
    else:
        local = cut(mesh, x, operands, _rules.DISTRIBUTIONS, whole, rows)
        result = _execute_sharded.softmax(local, options, group)
    if not options.stats:
        return to_dtensor(mesh, result, rows)
    value, stats = result
    return to_dtensor(mesh, value, rows), Stats(*(to_dtensor(mesh, k, rows) for k in stats))


def without(placement: Any, axis: int) -> Any:
    """The placement of an array that has no class axis."""
    if not isinstance(placement, Shard) or placement.dim == axis:
        return Replicate()
    return placement if placement.dim < axis else Shard(placement.dim - 1)


# ---- arguments


def cut(mesh: Any, x: Array, given: Operands, rule: _rules.ShapeRule, at: Placed, rows: Placed) -> Operands:
    """The rank's own part of everything. `rule` is that of the labels, which lie as `at` says, the loss as `rows`."""
    own = x.to_local()
    hard = rule is _rules.IDS
    labels = dense(_check.class_ids(given.labels) if hard else _check.given("labels", given.labels), own)
    rule.check(tuple(labels.shape), at.shape, tuple(x.shape))
    weight, positive = (None if k is None else dense(k, own) for k in (given.sample_weight, given.pos_weight))
    for k, of_weight in ((weight, _rules.WEIGHTS), (positive, _rules.POS_WEIGHT)):
        if k is not None:
            of_weight.check(tuple(k.shape), rows.shape)
    return given._replace(
        inputs=own,
        labels=part(mesh, labels, at),
        sample_weight=part(mesh, weight, rows),
        class_weight=full(given.class_weight),
        denom=full(given.denom),
        pos_weight=part(mesh, positive, rows),
    )


def dense(k: Any, like: Array) -> Array:
    return k if isinstance(k, torch.Tensor) else OPS.asarray(np.asarray(k), like)


def full(k: Any) -> Any:
    return k.full_tensor() if isinstance(k, DTensor) else k


def part(mesh: Any, k: Array | None, at: Placed) -> Array | None:
    """Of an array that every rank has as a whole, or that the mesh has in another way; scalars stay."""
    if k is None or not k.ndim:
        return full(k)
    k = k.expand(at.shape)
    if not isinstance(k, DTensor):
        k = replicated(mesh, k.to(mesh.device_type))
    return k.redistribute(mesh, at.placements).to_local()


def to_dtensor(mesh: Any, own: Array, rows: Placed) -> Array:
    """A number that is the same on all ranks, or every rank's part of the rows."""
    if not own.ndim and rows.shape:
        return replicated(mesh, own)
    stride = torch.empty(rows.shape, device="meta").stride()
    shape = torch.Size(rows.shape)
    return DTensor.from_local(own, mesh, rows.placements, run_check=False, shape=shape, stride=stride)


def replicated(mesh: Any, k: Array) -> Array:
    return DTensor.from_local(k, mesh, [Replicate()] * mesh.ndim, run_check=False)
