"""`sharded=` on JAX: classes that are split over an axis of jax.shard_map or jax.pmap, in order of the axis's indices.

The forward pass has one collective, an all-gather of the rows' statistics. What it returns is the same on all devices,
and where shard_map tracks that (`check_vma`), so is the loss's type.

A tangent is the sum of what the shards add to it, by `jax.lax.psum`. So JAX transposes it: where it tracks what is the
same on all devices, to nothing, and elsewhere to another psum, since there the derivative of one device's loss is also
asked for on the others.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero
from xent import _check, formulas
from xent.adapter import Collectives, Layout, RowResults
from xent.formulas import linear_sharded, sharding
from xent.formulas.linear import LoopOperands, LoopSpec
from xent.formulas.sharding import Row, Shard

from .kernels import still
from .mesh import vary, varying, varying_alike
from .ops import OPS, promoting

Array = Any
Names = tuple[str, ...]
# push(layout, dx, dt, x, t, u, ids, m, s) -> `formulas.push`'s results, by a function that is linear in dx and dt and
#   can be transposed; a tangent may be None
Push = Callable[..., Any]


def axes(argument: str, given: Any) -> Names:
    return _check.axis_names(argument, given, jax.sharding.get_abstract_mesh().manual_axes)


def shard(group: Any, length: int, rows: int, _like: Array) -> Shard:
    """All shards of an axis have as many classes as this one."""
    names = axes("sharded", group)
    _check.shards((length,), (rows,))
    return along(names, length)


def along(names: Names, length: int) -> Shard:
    count, place = jax.lax.axis_size(names), jax.lax.axis_index(names)
    start = place * length
    to = "invarying" if varying(place) else "varying"  # by default, where JAX does not track it

    def gather(arrays: tuple[Array, ...]) -> tuple[Array, ...]:
        flat: Any = varying_alike(*map(jnp.ravel, arrays))
        every, found, end = jax.lax.all_gather(jnp.concatenate(flat), names, to=to), [], 0
        for k in arrays:
            found.append(jnp.reshape(every[:, end : end + k.size], (count, *k.shape)))
            end += k.size
        return tuple(found)

    def part(k: Array) -> Array:
        return jax.lax.dynamic_slice_in_dim(jnp.asarray(k), start, length)

    return Shard(start, length, length * count, jnp.arange(count) == place, gather, part)


# ---- of logits


def attach(
    push: Push, group: Any, layout: Layout, shard: Shard, x: Array, t: Any, u: Any, ids: Any, row: Row
) -> RowResults:
    own = shard.own_labels(OPS, layout, ids)
    results: RowResults = _attached((push, axes("sharded", group)), layout, x, t, u, ids, own, row)
    return results


@partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def _attached(how: Any, layout: Layout, x: Array, t: Any, u: Any, ids: Any, own: Any, row: Row) -> Any:
    return promoting(sharding.results)(OPS, layout, row, ids)


@partial(_attached.defjvp, symbolic_zeros=True)
@promoting
def _attached_jvp(how: Any, layout: Layout, primals: Any, tangents: Any) -> Any:
    (push, names), (x, t, u, _, (own_ids, held), row) = how, primals
    dx, dt = (None if isinstance(d, SymbolicZero) else d for d in tangents[:2])
    results = _attached(how, layout, *primals)
    arrays = varying_alike(dx, dt, *once(x, t, u, own_ids, results.m, results.s))
    moved = push(layout._replace(lse=True), *arrays)
    return results, _moved(names, layout, row, held, results, moved)


def _moved(names: Names, layout: Layout, row: Row, held: Any, results: RowResults, own: Any) -> Any:
    """The results' tangents; all but nll, lse and smooth are constants."""
    nll, lse, smooth = jax.lax.psum(sharding.tangents(OPS, layout, row, held, *own), names)
    moved = nll, lse if layout.lse else None, smooth
    typed = jax.tree.map(lambda d, k: vary(d, varying(k)), moved, tuple(results[:3]))
    return RowResults(*typed, *still(results[3:]))


@jax.custom_jvp
def once(*arrays: Array | None) -> tuple[Array | None, ...]:
    """The arrays, for a tangent whose own derivative is not known: statistics of other shards would have one, too."""
    return arrays


@once.defjvp
def _once_jvp(_primals: Any, _tangents: Any) -> Any:
    raise TypeError("sharded: expected a first derivative; there are no second ones of classes that are split")


# ---- of a head


def linear(push: Push, group: Any, spec: LoopSpec, shard: Shard, operands: LoopOperands) -> tuple[Row, RowResults]:
    names = axes("sharded", group)
    ids, own = operands.ids, shard.own_labels(OPS, spec.layout, operands.ids)
    # the sum over the devices, and over the chunks, is one of the compute dtype
    moving = varying_alike(*(None if k is None else formulas.widened(OPS, k) for k in operands.parameters), own[1])[:3]
    operands = LoopOperands(*varying_alike(*operands, own[1])[: len(operands)])
    constant = jax.tree.map(jax.lax.stop_gradient, operands)
    row = sharding.combine(OPS, shard, linear_sharded.statistics(spec, shard, constant))
    return row, _attached_head((push, names), spec, operands._replace(ids=own[0]), tuple(moving), ids, own[1], row)


@partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def _attached_head(
    how: Any, spec: LoopSpec, operands: LoopOperands, moving: Any, ids: Array, held: Array, row: Row
) -> Any:
    """As a function of `moving`: hidden states, weight and bias once more."""
    return promoting(sharding.results)(OPS, spec.layout, row, ids)


@partial(_attached_head.defjvp, symbolic_zeros=True)
@promoting
def _attached_head_jvp(how: Any, spec: LoopSpec, primals: Any, tangents: Any) -> Any:
    (push, names), (operands, _, _, held, row) = how, primals
    moving = tuple(None if d is None or isinstance(d, SymbolicZero) else d for d in tangents[1])
    results, layout = _attached_head(how, spec, *primals), spec.layout._replace(lse=True)
    *arrays, m, s = varying_alike(*once(*operands, results.m, results.s))
    moving = tuple(varying_alike(*moving, m)[:3])

    def scan(step: Callable[..., Any], *rest: Any) -> Any:
        return spec.linear.scan(jax.checkpoint(step), *rest)

    def of_a_chunk(dx: Array, x: Array, u: Any, ids: Array, m: Array, s: Array) -> Any:
        return push(layout, dx, None, x, None, u, ids, m, s)

    chunks, known = spec._replace(linear=replace(spec.linear, scan=scan)), row.for_derivatives(m, s)
    own = linear_sharded.tangents(chunks, of_a_chunk, LoopOperands(*arrays), known, moving)
    return results, _moved(names, spec.layout, row, held, results, own)


# ---- numbers


def summed(group: Any, own: Array, total: Array) -> Array:
    return _summed(axes("sharded", group), own, total)


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def _summed(names: Names, own: Array, total: Array) -> Array:
    return total


@partial(_summed.defjvp, symbolic_zeros=True)
def _summed_jvp(names: Names, primals: Any, tangents: Any) -> Any:
    _, total = primals
    moved = jnp.zeros_like(total) if isinstance(tangents[0], SymbolicZero) else jax.lax.psum(tangents[0], names)
    return total, vary(moved, varying(total))


def total(group: Any, own: Array) -> Array:
    return jax.lax.psum(jax.lax.stop_gradient(own), axes("group", group))


def gradients(group: Any, alike: tuple[Array, ...], own: tuple[Array, ...]) -> tuple[Any, Any]:
    """Where JAX does not track what is the same on all devices, they are those of the sum of all devices' losses, and
    of each device's own copy of what is alike."""
    names = axes("sharded", group)
    if varying(jax.lax.axis_index(names)):
        return alike, own
    count = jax.lax.axis_size(names)
    return jax.lax.pmean(alike, names), tuple(d / count for d in own)


def collectives(push: Push) -> Collectives:
    return Collectives(
        shard, partial(attach, push), summed, partial(linear, push), total, gradients, promoting(lambda f, *a: f(*a))
    )
