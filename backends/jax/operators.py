"""A kernel as a JAX primitive: a custom call where a program is compiled for CPUs, xent's formulas everywhere else.

Not `jax.ffi.ffi_call` alone, because two decisions come late. Platform and number of devices are known only when a
program is lowered: on several devices each one's part has a custom call of its own (partition.py). And where `vmap`
adds an axis, the batch joins the rows.

A formula is a function (static, *operands) -> results; None stands for an operand or a result that is absent.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir, partial_eval
from xent.adapter import computed_in
from xent.backends.cpu import native

from . import partition
from .mesh import varying_alike
from .partition import Axes, Parts

Array = Any
Formula = Callable[..., Any]

for _name, _handler in native.ffi_handlers().items() if native is not None else ():
    jax.ffi.register_ffi_target(f"xent_{_name}", _handler, platform="cpu")

_PRIMITIVES: dict[str, Primitive] = {}


class Family(NamedTuple):
    """What kernels on the same operands have in common."""

    # (static, operands, dims, size) -> (static, operands) with the batch axis first; None: the kernel cannot batch
    batched: Callable[..., Any]
    attributes: Callable[..., dict[str, Any]]  # (static, avals of all operands) -> the FFI handler's attributes
    # (static, shape of the logits, the operand's place or None for a result, its shape) -> `partition.Axes`; None: on
    #   several devices there are the formulas
    axes: Callable[..., Axes] | None = None
    ids: int | None = None  # the place of the operand that has an integer dtype


def kernel(
    name: str,
    family: Family,
    formula: Formula,
    slots: Callable[..., tuple[bool, ...]],
    on_parts: Callable[..., Any] | None = None,
    over: bool = False,
) -> Any:
    """The primitive that stands for a formula, as a `jax.custom_jvp` that is called like it. Its derivatives are the
    formula's, unless `defjvp` gives it others: rule(static, operands, tangents).

    slots(static, present) -> which results there are, `present` being which operands there are. The custom call gets
    empty arrays for those that are absent. on_parts(kernel, split, static, *parts of the operands) -> parts of the
    results, of a family with `axes`; `split` is a `partition.Split`. `over`: the last result goes into the first
    operand's memory; XLA copies that operand first if it is used elsewhere.
    """
    primitive, call = _primitive(f"{name}_over" if over else name, family, formula, slots)

    def lower(ctx: Any, *operands: Any, static: Any, present: tuple[bool, ...]) -> Any:
        run = partial(_flat, formula, static=static, present=present)
        module = ctx.module_context
        if not _here(module) or any(0 in aval.shape for aval in ctx.avals_in):
            return mlir.lower_fun(run)(ctx, *operands)
        if not _whole(module):
            spread = partition.context(module)
            if spread is None or on_parts is None or family.axes is None:
                return mlir.lower_fun(run)(ctx, *operands)
            parts = Parts(
                *_places(partial(family.axes, static, ctx.avals_in[0].shape), ctx, present),
                lambda split, *operands: on_parts(call, split, static, *_full(operands, present)),
                None if family is ELEMENTS else static[0].axis,
            )
            identity = f"{name} {static} {present}"
            return partition.lower(ctx.replace(module_context=spread), run, parts, identity, *operands)
        compute = np.dtype(computed_in(ctx.avals_in[0].dtype.name))
        wanted = slots(static, present)
        avals = [
            _nothing(np.dtype("int32") if i == family.ids else compute) if aval is None else aval
            for i, aval in enumerate(_full(ctx.avals_in, present))
        ]
        values = [
            mlir.ir_constant(np.zeros(0, aval.dtype)) if value is None else value
            for value, aval in zip(_full(operands, present), avals, strict=True)
        ]
        results = [_nothing(compute) if aval is None else aval for aval in _full(ctx.avals_out, wanted)]
        rule = jax.ffi.ffi_lowering(f"xent_{name}", operand_output_aliases={0: len(wanted) - 1} if over else None)
        ctx = ctx.replace(avals_in=avals, avals_out=results)
        out = rule(ctx, *values, **family.attributes(static, avals))
        return [result for result, is_wanted in zip(out, wanted, strict=True) if is_wanted]

    with_rule = jax.custom_jvp(call, nondiff_argnums=(0,))

    @with_rule.defjvp
    def of_formula(static: Any, operands: Any, tangents: Any) -> Any:
        return call(static, *operands), jax.jvp(partial(formula, static), operands, tangents)[1]

    def jvp(operands: Any, tangents: Any, **params: Any) -> Any:
        """In a loop's body the first derivative uses up every `custom_jvp`; the second one comes to the primitive."""
        return jax.jvp(partial(_flat, with_rule, **params), operands, _instantiated(tangents))

    ad.primitive_jvps[primitive] = jvp
    mlir.register_lowering(primitive, lower, platform="cpu")
    return with_rule


def linear(
    name: str, family: Family, push: Formula, pull: Callable[..., Any], slots: Callable[..., tuple[bool, ...]]
) -> Formula:
    """The primitive of push(static, dx, dt, *rest), which is linear in dx and dt. Its transpose is
    pull(static, wrt, *rest, *cotangents) -> the cotangents of dx and dt, as far as `wrt` asks for them."""
    primitive, call = _primitive(name, family, push, slots, linear=2)

    def jvp(primals: Any, tangents: Any, **params: Any) -> Any:
        return jax.jvp(partial(_flat, push, **params), primals, _instantiated(tangents))

    def transpose(cotangents: Any, *operands: Any, static: Any, present: tuple[bool, ...]) -> Any:
        unknown = [ad.is_undefined_primal(k) for k in operands]
        up = [None if isinstance(g, ad.Zero) else g for g in _full(cotangents, slots(static, present))]
        wrt = tuple(bool(k) for k in _full(unknown, present)[:2])
        grads = iter(pull(static, wrt, *_full(operands, present)[2:], *up))
        return [next(grads) if k else None for k in unknown]

    ad.primitive_jvps[primitive] = jvp
    ad.primitive_transposes[primitive] = transpose
    return call


def spare(both: str, forward: str, operands: int) -> None:
    """Replaces the kernel `both` by `forward` where its last result is unused, as in jax.checkpoint's first pass.

    `forward` takes the first `operands` operands, and returns all the other results.
    """

    def eliminate(used: list[bool], eqn: Any) -> Any:
        if used[-1]:
            return [True] * len(eqn.invars), eqn
        if not any(used):
            return [False] * len(eqn.invars), None
        present = eqn.params["present"][:operands]
        count, all_of_them = sum(present), len(eqn.invars)
        eqn = eqn.replace(
            primitive=_PRIMITIVES[forward],
            invars=eqn.invars[:count],
            outvars=eqn.outvars[:-1],
            params={**eqn.params, "present": present},
        )
        return [i < count for i in range(all_of_them)], eqn

    partial_eval.dce_rules[_PRIMITIVES[both]] = eliminate


def _primitive(
    name: str, family: Family, formula: Formula, slots: Callable[..., tuple[bool, ...]], linear: int = 0
) -> tuple[Primitive, Formula]:
    primitive = _PRIMITIVES[name] = Primitive(f"xent_{name}")
    primitive.multiple_results = True
    run = partial(_flat, formula)
    primitive.def_impl(run)  # only under jax.disable_jit
    # tracing the formula gives shapes, and shardings and varying axes where there are such
    primitive.def_abstract_eval(lambda *avals, **params: jax.make_jaxpr(partial(run, **params))(*avals).out_avals)
    mlir.register_lowering(primitive, mlir.lower_fun(run))

    def call(static: Any, *operands: Array | None) -> tuple[Array | None, ...]:
        present = tuple(k is not None for k in operands)
        given = (k for k in varying_alike(*operands) if k is not None)
        results = primitive.bind(*given, static=static, present=present)
        return tuple(_full(results, slots(static, present)))

    def batch(operands: Any, dims: Any, *, static: Any, present: tuple[bool, ...]) -> Any:
        size = next(k.shape[d] for k, d in zip(operands, dims, strict=True) if d is not None)
        tangents, rest = _full(operands, present)[:linear], _full(operands, present)[linear:]
        tangent_dims, rest_dims = _full(dims, present)[:linear], _full(dims, present)[linear:]
        moved = family.batched(static, rest, rest_dims, size)
        if moved is None:
            results = jax.vmap(partial(run, static=static, present=present), tuple(dims))(*operands)
        else:
            static, rest = moved
            tangents = [batch_first(k, d, size) for k, d in zip(tangents, tangent_dims, strict=True)]
            results = primitive.bind(*(k for k in (*tangents, *rest) if k is not None), static=static, present=present)
        return results, [0] * len(results)

    batching.primitive_batchers[primitive] = batch
    return primitive, call


def batch_first(k: Array | None, dim: int | None, size: int) -> Array | None:
    if k is None:
        return None
    return jnp.broadcast_to(k, (size, *k.shape)) if dim is None else jnp.moveaxis(k, dim, 0)


def _flat(formula: Formula, *operands: Array, static: Any, present: tuple[bool, ...]) -> list[Array]:
    return [result for result in formula(static, *_full(operands, present)) if result is not None]


def _instantiated(tangents: Any) -> tuple[Array, ...]:
    return tuple(map(ad.instantiate_zeros, tangents))


def _full(given: Any, present: tuple[bool, ...]) -> list[Any]:
    left = iter(given)
    return [next(left) if is_there else None for is_there in present]


def _nothing(dtype: Any) -> Any:
    return jax.core.ShapedArray((0,), dtype)


def _here(module: Any) -> bool:
    """Whether the program runs in this process."""
    return not module.lowering_parameters.for_export and len(module.platforms) == 1


def _whole(module: Any) -> bool:
    """Whether a custom call in the program would see whole arrays."""
    context = module.axis_context
    manual = getattr(context, "manual_axes", None)
    if manual:  # inside shard_map, over every axis of the mesh?
        return set(manual) == set(context.mesh.axis_names)
    return getattr(context, "num_devices", None) == 1


def _places(
    axes: Callable[..., Axes], ctx: Any, present: tuple[bool, ...]
) -> tuple[tuple[Axes, ...], tuple[Axes, ...]]:
    """`Parts.operands` and `Parts.results`."""
    places = [i for i, is_there in enumerate(present) if is_there]
    shapes = [k.shape for k in ctx.avals_in]
    return tuple(map(axes, places, shapes)), tuple(axes(None, k.shape) for k in ctx.avals_out)


# Products of two matrices, with operands as in _native.pyi; vmap uses the formula instead

PRODUCTS = Family(batched=lambda *_: None, attributes=lambda *_: {})


# Entropy: operands are x with the classes last, and then arrays of the rows' shape


def _entropy_batched(static: Any, operands: Any, dims: Any, size: int) -> Any:
    return static, [batch_first(k, d, size) for k, d in zip(operands, dims, strict=True)]


ENTROPY = Family(_entropy_batched, attributes=lambda *_: {})


# Rows: static is (Layout, ...), operands are x, t, u, ids and then arrays of the rows' shape


def _rows_batched(static: Any, operands: Any, dims: Any, size: int) -> Any:
    if dims[2] is not None:  # the handler knows one vector u
        return None
    layout, *rest = static
    moved = [k if i == 2 else batch_first(k, d, size) for i, (k, d) in enumerate(zip(operands, dims, strict=True))]
    return (layout._replace(axis=layout.axis + 1), *rest), moved


def _rows_axes(static: Any, x: Any, place: int | None, shape: Any) -> Axes:
    axis = static[0].axis
    every = tuple(range(len(x)))
    return (axis,) if place == 2 else every if len(shape) == len(x) else every[:axis] + every[axis + 1 :]


ROWS = Family(
    batched=_rows_batched,
    attributes=lambda static, avals: {"trailing": np.int64(avals[0].ndim - 1 - static[0].axis)},
    axes=_rows_axes,
    ids=3,
)


# Elements: static is (smoothing, the number of leading axes that vmap added, ...); operands are x, targets, pos_weight,
# weight and maybe a scale. Both weights have x's rank and broadcast as patterns: a run of x's axes between axes of 1.


def pattern(k: Array | None, x: Array) -> Array | None:
    """The array as a pattern: unchanged but for leading axes, or broadcast to x's shape."""
    if k is None:
        return None
    k = jnp.reshape(k, (1,) * (x.ndim - k.ndim) + k.shape)
    kept = [i for i, n in enumerate(k.shape) if n != 1] or [0]
    run = slice(kept[0], kept[-1] + 1)
    return k if len(kept) < 2 or k.shape[run] == x.shape[run] else jnp.broadcast_to(k, x.shape)


def _elements_batched(static: Any, operands: Any, dims: Any, size: int) -> Any:
    smoothing, lead, *rest = static
    return (smoothing, lead + 1, *rest), [batch_first(k, d, size) for k, d in zip(operands, dims, strict=True)]


def _elements_attributes(static: Any, avals: Any) -> dict[str, Any]:
    smoothing, lead, *_ = static
    shape = avals[0].shape[lead:]

    def length(k: Any) -> tuple[np.int64, np.int64]:
        own = k.shape[lead:]
        last = max((i for i, n in enumerate(own) if n != 1), default=len(shape) - 1)
        return np.int64(math.prod(own)), np.int64(math.prod(shape[last + 1 :]))

    attributes: dict[str, Any] = {"smoothing": np.float64(smoothing)}
    for argument, aval in (("pos_weight", avals[2]), ("weight", avals[3])):
        attributes[f"{argument}_length"], attributes[f"{argument}_inner"] = length(aval)
    return attributes


def _elements_axes(static: Any, x: Any, place: int | None, shape: Any) -> Axes:
    return tuple(i if n == x[i] else None for i, n in enumerate(shape))


ELEMENTS = Family(_elements_batched, _elements_attributes, _elements_axes)
