"""Arrays on a mesh of devices: under explicit sharding, and inside jax.shard_map.

Under explicit sharding, JAX needs to know how every operation's result is split. Some operations of a loss cannot say
so, such as picking the label's logit out of split classes. The whole loss can, so only its result is specified and the
rest is left to the compiler. Inside shard_map, JAX tracks for each array over which axes of the mesh its shards differ
("varying"), and the operands of a loop or a primitive have to agree in that.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import NamedSharding, PartitionSpec

Array = Any


def automatic(function: Callable[..., Any], plan: Any, *arrays: Any) -> Any:
    """function(plan, *arrays), whose inside the compiler shards where the arrays are explicitly sharded.

    Results are split like the first array; those without the class axis, along the other axes.
    """
    mesh = next((m for m in map(_explicit_mesh, arrays) if m is not None), None)
    if mesh is None:
        return function(plan, *arrays)

    def run(*arrays: Any) -> Any:
        return function(plan, *arrays)

    like = jax.typeof(arrays[0])
    spec = list(like.sharding.spec) + [None] * (like.ndim - len(like.sharding.spec))
    without = spec.copy()
    del without[-1 if plan.layout is None else plan.layout.axis]

    def sharding(result: Any) -> NamedSharding:
        return NamedSharding(mesh, PartitionSpec(*{like.ndim: spec, like.ndim - 1: without}.get(result.ndim, ())))

    shapes = [None if k is None else jax.ShapeDtypeStruct(k.shape, k.dtype) for k in arrays]
    shardings = jax.tree.map(sharding, jax.eval_shape(run, *shapes))
    return jax.sharding.auto_axes(run, axes=mesh.explicit_axes, out_sharding=shardings)(*arrays)


def _explicit_mesh(k: Array | None) -> Any:
    mesh = None if k is None else jax.typeof(k).sharding.mesh
    return mesh if mesh is not None and mesh.explicit_axes else None


def varying_alike(*arrays: Array | None) -> list[Array | None]:
    """The arrays, varying over the mesh axes that any of them varies over; outside of shard_map as they are."""
    axes = frozenset().union(*(varying(k) for k in arrays if k is not None))
    return [None if k is None else vary(k, axes) for k in arrays]


def vary(k: Array, axes: frozenset[str]) -> Array:
    missing = tuple(sorted(axes - varying(k)))
    return jax.lax.pcast(k, missing, to="varying") if missing else k


def varying(k: Array) -> frozenset[str]:
    axes: frozenset[str] = jax.typeof(k).manual_axis_type.varying
    return axes
