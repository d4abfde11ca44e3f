"""Native kernels on arrays that `jax.jit` spreads over CPU devices by itself: each device runs them on its own part.

XLA cannot partition a custom call, and would gather its operands. So the program gets a placeholder instead, whose rule
says which axes of the results are which of the operands'. When XLA partitions the program, and it is known how the
logits are split, each device's part takes the placeholder's place.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
from jax.interpreters import mlir
from jax.sharding import AbstractMesh, NamedSharding, PartitionSpec

try:
    from jax.experimental.custom_partitioning import ArrayMapping, SdyShardingRule, custom_partitioning
except ImportError:  # of another JAX: several devices have the formulas
    custom_partitioning = None  # type: ignore[assignment,misc]

Array = Any
Axes = tuple[int | None, ...]
Names = tuple[str, ...]
CONFIG: Any = jax.config


class Split(NamedTuple):
    """How the logits are split."""

    names: tuple[Names, ...]  # of the mesh's axes, for each axis of the logits
    shape: tuple[int, ...]  # of all logits; the last parts of an axis may end in numbers that are none of them


class Parts(NamedTuple):
    """A kernel's operands, the first being the logits, and its results, and how it runs on parts of them."""

    operands: tuple[Axes, ...]  # for each axis of each operand: which of the logits' it is; None: of length 1
    results: tuple[Axes, ...]
    run: Callable[..., Sequence[Array | None]]  # (split, *parts of the operands) -> parts of the results, and None
    even: int | None  # the axis of the logits whose parts have to be of equal length; it is gathered if they are not


def context(module: Any) -> Any:
    """The module's context with a mesh, where it is known how XLA can have split arrays in it; else None."""
    axes = module.axis_context
    count = getattr(axes, "num_devices", None)
    if custom_partitioning is None or count is None or not getattr(CONFIG, "jax_use_shardy_partitioner", False):
        return None
    if len(jax.devices("cpu")) < count or not (hasattr(axes, "device_assignment") and hasattr(axes, "abstract_mesh")):
        return None
    sizes = _factors(count)
    if len(set(sizes)) > 1:  # a mesh of 6 may be one of 2 and 3 or one of 3 and 2
        return None
    # a part of a mesh's axis is one of these axes, too, which XLA makes where a reshape splits an axis of an array
    mesh = AbstractMesh(sizes, tuple(f"part{i}" for i in range(len(sizes))))
    devices = tuple(jax.devices("cpu")[:count])  # only their places count
    return module.replace(axis_context=dataclasses.replace(axes, device_assignment=devices, abstract_mesh=mesh))


def lower(ctx: Any, whole: Callable[..., list[Array]], parts: Parts, identity: str, *operands: Any) -> Any:
    """The placeholder for `whole`, in `context(ctx.module_context)`."""
    x64 = CONFIG.jax_enable_x64  # XLA asks from a thread that has no such settings

    def partition(mesh: Any, given: Any, results: Any) -> Any:
        x = given[0]
        names = tuple(map(_names, (*x.sharding.spec, *(None,) * len(x.shape))[: len(x.shape)]))
        count = [math.prod(mesh.shape[name] for name in some) for some in names]
        kept = [n % k == 0 or i != parts.even for i, (n, k) in enumerate(zip(x.shape, count, strict=True))]
        split = Split(tuple(some if is_kept else () for some, is_kept in zip(names, kept, strict=True)), x.shape)

        def placed(axes: Axes) -> NamedSharding:
            return NamedSharding(mesh, PartitionSpec(*(None if i is None else split.names[i] or None for i in axes)))

        def run(*operands: Array) -> list[Array]:
            with jax.enable_x64(x64):
                return [k for k in parts.run(split, *operands) if k is not None]

        return mesh, run, [placed(axes) for axes in parts.results], tuple(placed(axes) for axes in parts.operands)

    placeholder = custom_partitioning(lambda *operands: whole(*operands))  # JAX asks for its signature
    rule = SdyShardingRule(_factored("one", parts.operands), _factored("another", parts.results))
    placeholder.def_partition(partition, sharding_rule=rule)
    out = mlir.lower_fun(lambda *operands: placeholder(*operands))(ctx, *operands)
    # two programs that differ in this alone are two programs to JAX's cache of compiled ones
    attributes: dict[str, Any] = {"xent": mlir.ir.StringAttr.get(identity)}
    out[0].owner.attributes["mhlo.frontend_attributes"] = mlir.ir.DictAttr.get(attributes)
    return out


def _factored(of_length_1: str, arrays: tuple[Axes, ...]) -> tuple[ArrayMapping, ...]:
    new = (f"{of_length_1}{i}" for i in itertools.count())
    return tuple(ArrayMapping(*(next(new) if i is None else f"x{i}" for i in axes)) for axes in arrays)


def _names(entry: Any) -> Names:
    return () if entry is None else (entry,) if isinstance(entry, str) else tuple(entry)


def _factors(count: int) -> tuple[int, ...]:
    found = []
    while count > 1:
        found.append(next(k for k in range(2, count + 1) if count % k == 0))
        count //= found[-1]
    return tuple(found)
