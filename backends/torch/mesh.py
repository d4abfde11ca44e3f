"""DTensors: logits, or hidden states and a head, that are spread over a mesh of devices, by rows, by classes, or both.

Every rank computes with what it has of them, as it does for `sharded=`, and the other arguments are cut to match. All
ranks compute the same loss.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard
from xent import _check, _execute_sharded, _rules
from xent._execute import SIGMOID, SOFTMAX, SPARSE, Loss, WithGradient
from xent._linear import LINEAR, Grads
from xent._options import Operands, Options
from xent._reduce import Stats

from .kernels import value_and_grad
from .ops import OPS
from .sharded import OnMesh, summed_over
from .sharded_linear import Copied

Array = Any
Placements = Sequence[Any]


class Placed(NamedTuple):
    """The shape of a whole array, and how the mesh has it."""

    shape: tuple[int, ...]
    placements: Placements


def on_mesh(loss: Loss, operands: Operands, options: Options) -> Any:
    if loss is LINEAR:
        return linear(operands, options)
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
        value = _execute_sharded.of_rows(SIGMOID, local, options, partial(summed_over, tuple(groups.values())))
        return to_dtensor(mesh, value, whole)
    axis = _rules.class_axis(whole.shape, options.axis)
    classes = of_classes("logits", x, axis)
    group = OnMesh(tuple(groups.pop(dim) for dim in classes), tuple(groups.values()))
    rows = Placed(whole.shape[:axis] + whole.shape[axis + 1 :], [without(k, axis) for k in placements])
    if loss is SPARSE:
        local = cut(mesh, x, operands, _rules.IDS, rows, rows)
        options = options._replace(invalid=_check.unread_ids(options.invalid)) if groups else options
        result = _execute_sharded.sparse(local, options, group)
    else:
        local = cut(mesh, x, operands, _rules.DISTRIBUTIONS, whole, rows)
        result = _execute_sharded.softmax(local, options, group)
    return to_dtensors(mesh, result, rows, options)


def linear(given: Operands, options: Options) -> Any:
    """A dimension of the mesh over which the hidden states' rows are sharded has all classes; the weight is gathered
    there, as FSDP does it, and its gradient added up. Over another one, the classes stay sharded as the weight is."""
    h = given.inputs
    if type(h) is WithGradient:
        return linear_value_and_grads(given._replace(inputs=h.inputs), options)
    placements = [k if type(k) is Shard and k.dim < h.ndim - 1 else Replicate() for k in h.placements]
    h, mesh = h.redistribute(placements=placements), h.device_mesh
    weight, bias = on_this(h, "weight", given.weight), on_this(h, "bias", given.bias)
    _rules.head_shapes(tuple(h.shape), tuple(weight.shape))
    if bias is not None:
        _rules.BIAS.check(tuple(bias.shape), tuple(weight.shape[:1]))
    groups = {dim: mesh.get_group(dim) for dim, k in enumerate(placements) if isinstance(k, Shard)}
    classes = [dim for dim in of_classes("weight", weight, 0) if dim not in groups]
    rows = Placed(tuple(h.shape[:-1]), placements)
    local = cut(mesh, h, given, _rules.IDS, rows, rows)
    weight, bias = (None if k is None else own_classes(k, classes, groups) for k in (weight, bias))
    local = local._replace(weight=weight, bias=bias)
    options = options._replace(invalid=_check.unread_ids(options.invalid)) if groups else options
    over_rows = tuple(groups.values())
    if classes:
        group = OnMesh(tuple(map(mesh.get_group, classes)), over_rows)
        result = _execute_sharded.linear(local, options, group)
    else:
        result = _execute_sharded.of_rows(LINEAR, local, options, partial(summed_over, over_rows))
    return to_dtensors(mesh, result, rows, options)


def linear_value_and_grads(given: Operands, options: Options) -> Any:
    own = given.inputs.to_local()
    weight, bias = (None if k is None else dense(k, own) for k in (given.weight, given.bias))

    def at(parameters: tuple[Array, ...]) -> Any:
        h, weight, *bias = parameters
        return linear(given._replace(inputs=h, weight=weight, bias=bias[0] if bias else None), options)

    value, (dh, dw, *db) = value_and_grad(at, tuple(k for k in (given.inputs, weight, bias) if k is not None))
    return value, Grads(dh, dw, db[0] if db else None)


def of_classes(argument: str, x: Array, axis: int) -> list[int]:
    """Over which dimensions of the mesh they are sharded."""
    mesh, found = x.device_mesh, [dim for dim, k in enumerate(x.placements) if type(k) is Shard and k.dim == axis]
    for dim in found:
        if not ascending(mesh, dim):
            raise ValueError(f"{argument}: expected a mesh whose ranks ascend along dimension {dim}, got {mesh}")
    return found


def ascending(mesh: Any, dim: int) -> bool:
    """A group's ranks are in ascending order, whatever their order in the mesh."""
    return torch.equal(mesh.mesh, mesh.mesh.sort(dim)[0])


ascending._dynamo_marked_constant = True  # type: ignore[attr-defined]


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
    rule.check(tuple(labels.shape), at.shape, () if given.weight is not None else tuple(x.shape))
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
    """Of an array that every rank has as a whole, or that the mesh has in another way; scalars stay, unless they are
    learned: their gradient is that of all rows."""
    if k is None or not (k.ndim or k.requires_grad):
        return full(k)
    spread: Any = k if isinstance(k, DTensor) else replicated(mesh, k.to(mesh.device_type))
    if spread.shape != at.shape:
        spread = spread.redistribute(placements=[Replicate()] * spread.device_mesh.ndim)  # a length of 1 may be sharded
    return spread.expand(at.shape).redistribute(mesh, at.placements).to_local()


def on_this(h: Array, argument: str, k: Any) -> Any:
    """A weight or bias as a DTensor on the hidden states' mesh."""
    if k is None:
        return None
    mesh = h.device_mesh
    if not isinstance(k, DTensor):
        return replicated(mesh, dense(k, h.to_local()))
    if k.device_mesh != mesh:
        raise ValueError(f"{argument}: expected a DTensor on the mesh of hidden, {mesh}, got one on {k.device_mesh}")
    return k


def own_classes(k: Array, classes: Sequence[int], rows: Mapping[int, Any]) -> Array:
    """The rank's own part of weight or bias. The ranks that have other rows contribute to its gradient: it is scattered
    where the parameter is sharded itself, and added up on all where each of them has it."""
    mesh, were = k.device_mesh, k.placements
    placements = [Shard(0) if dim in classes else Replicate() for dim in range(mesh.ndim)]
    scattered = [dim for dim in rows if not were[dim].is_replicate()]
    grads = [Partial() if dim in scattered else place for dim, place in enumerate(placements)]
    own = k.redistribute(placements=placements).to_local(grad_placements=grads)
    for dim, group in rows.items():
        own = own if dim in scattered else Copied.apply(group, own)
    return own


# ---- results


def to_dtensors(mesh: Any, result: Any, rows: Placed, options: Options) -> Any:
    if not options.stats:
        return to_dtensor(mesh, result, rows)
    value, stats = result
    return to_dtensor(mesh, value, rows), Stats(*(to_dtensor(mesh, k, rows) for k in stats))


def to_dtensor(mesh: Any, own: Array, rows: Placed) -> Array:
    """A number that is the same on all ranks, or every rank's part of the rows."""
    if not own.ndim and rows.shape:
        return replicated(mesh, own)
    stride = torch.empty(rows.shape, device="meta").stride()
    shape = torch.Size(rows.shape)
    return DTensor.from_local(own, mesh, rows.placements, run_check=False, shape=shape, stride=stride)


def replicated(mesh: Any, k: Array) -> Array:
    return DTensor.from_local(k, mesh, [Replicate()] * mesh.ndim, run_check=False)
