"""Arrays on a mesh of devices: under explicit sharding, and inside jax.shard_map.

Under explicit sharding every operation has to say how its result is split, which some operations of a loss cannot, such
as picking the label's logit out of classes that are split. A loss knows it as a whole, so its inside is left to the
compiler. Inside shard_map, JAX knows of each array over which axes of the mesh its shards differ ("varying"), and loops
and primitives want operands that agree.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import NamedSharding, PartitionSpec

Array = Any


def automatic(function: Callable[..., Any], plan: Any, *arrays: Any) -> Any:
    """function(plan, *arrays), left to the compiler where the arrays are explicitly sharded.

    The results are split as the first array is: those of its rank alike, those without the class axis in what remains.
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
