"""DTensors: logits that are spread over a mesh of devices, by rows, by classes, or both.

Every rank computes with what it has of them, as it does for `sharded=`, and the other arguments are cut to match. All
ranks compute the same loss.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch.distributed.tensor import DTensor, Replicate, Shard
from xent import _check, _execute_sharded, _rules
from xent._execute import SIGMOID, SOFTMAX, SPARSE, Loss
from xent._options import Operands, Options
from xent._reduce import Stats

from .ops import OPS
from .sharded import OnMesh, summed_over

Array = Any
Placements = Sequence[Any]


def on_mesh(loss: Loss, operands: Operands, options: Options) -> Any:
    if loss not in (SOFTMAX, SPARSE, SIGMOID):
        raise _check.no_linear("torch.distributed.tensor")
    x = operands.inputs
    # Nothing is left to be added up, and shards are consecutive, unlike those of Shard's subclass.
    whole = [k if type(k) is Shard else Replicate() for k in x.placements]
    x, mesh, shape = x.redistribute(placements=whole), x.device_mesh, tuple(x.shape)
    groups = {dim: mesh.get_group(dim) for dim, k in enumerate(whole) if isinstance(k, Shard)}
    if loss is SIGMOID:
        local = cut(mesh, x, operands, shape, whole, shape, whole)
        value = _execute_sharded.sigmoid(local, options, partial(summed_over, tuple(groups.values())))
        return spread(mesh, value, shape, whole)
    axis = _rules.class_axis(shape, options.axis)
    over = [dim for dim, k in enumerate(whole) if isinstance(k, Shard) and k.dim == axis]
    if len(over) > 1:
        raise ValueError(f"logits: expected classes that are sharded over one dimension of the mesh, got {whole}")
    if over and not torch.equal(mesh.mesh, mesh.mesh.sort(over[0])[0]):  # a group's ranks are in ascending order
        raise ValueError(f"logits: expected a mesh whose ranks ascend along dimension {over[0]}, got {mesh}")
    classes = groups.pop(over[0]) if over else None
    rows, of_rows = shape[:axis] + shape[axis + 1 :], [without(k, axis) for k in whole]
    hard = loss is SPARSE
    local = cut(mesh, x, operands, rows if hard else shape, of_rows if hard else whole, rows, of_rows, shape)
    group = OnMesh(classes, tuple(groups.values()))
    if groups and hard:
        options = options._replace(invalid=of_other_rows(options.invalid))
    result = (_execute_sharded.sparse if hard else _execute_sharded.softmax)(local, options, group)
    if not options.stats:
        return spread(mesh, result, rows, of_rows)
    return spread(mesh, result[0], rows, of_rows), Stats(*(spread(mesh, k, rows, of_rows) for k in result[1]))


def of_other_rows(invalid: str) -> str:
    """No rank reads the ids of all rows, and an error has to be one of all ranks."""
    if invalid == "raise":
        raise ValueError("invalid: 'raise' has to read all labels, and their rows are sharded; use 'nan' or 'ignore'")
    return "nan" if invalid == "auto" else invalid


def without(placement: Any, axis: int) -> Any:
    """The placement of an array that has no class axis."""
    if not isinstance(placement, Shard) or placement.dim == axis:
        return Replicate()
    return placement if placement.dim < axis else Shard(placement.dim - 1)


# ---- arguments


def cut(
    mesh: Any,
    x: Array,
    given: Operands,
    of_labels: Any,
    labels_at: Placements,
    rows: Any,
    rows_at: Placements,
    logits: Any = (),
) -> Operands:
    """The rank's own part of everything."""
    sigmoid = not logits
    hard = of_labels == rows and not sigmoid
    rule = _rules.IDS if hard else _rules.SOFT_LABELS if sigmoid else _rules.DISTRIBUTIONS
    own = x.to_local()
    labels = _check.class_ids(given.labels) if hard else _check.given("labels", given.labels)
    labels = dense(labels, own)
    rule.check(tuple(labels.shape), of_labels, logits)
    weight, positive = (None if k is None else dense(k, own) for k in (given.sample_weight, given.pos_weight))
    for k, rule in ((weight, _rules.WEIGHTS), (positive, _rules.POS_WEIGHT)):
        if k is not None:
            rule.check(tuple(k.shape), rows)
    return given._replace(
        inputs=own,
        labels=part(mesh, labels, labels_at, of_labels),
        sample_weight=part(mesh, weight, rows_at, rows),
        class_weight=full(given.class_weight),
        denom=full(given.denom),
        pos_weight=part(mesh, positive, rows_at, rows),
    )


def dense(k: Any, like: Array) -> Array:
    return k if isinstance(k, torch.Tensor) else OPS.asarray(np.asarray(k), like)


def full(k: Any) -> Any:
    return k.full_tensor() if isinstance(k, DTensor) else k


def part(mesh: Any, k: Array | None, placements: Placements, shape: Any) -> Array | None:
    """Of an array that every rank has as a whole, or that is spread in another way; scalars stay."""
    if k is None or not k.ndim:
        return full(k)
    k = k.expand(shape)
    if not isinstance(k, DTensor):
        k = DTensor.from_local(k.to(mesh.device_type), mesh, [Replicate()] * mesh.ndim, run_check=False)
    return k.redistribute(mesh, placements).to_local()


def spread(mesh: Any, own: Array, shape: Any, placements: Placements) -> Array:
    """What is the same on all ranks, or every rank's part of the rows, as a DTensor."""
    if not own.ndim and shape:
        return DTensor.from_local(own, mesh, [Replicate()] * mesh.ndim, run_check=False)
    stride = torch.empty(shape, device="meta").stride()
    return DTensor.from_local(own, mesh, placements, run_check=False, shape=torch.Size(shape), stride=stride)
