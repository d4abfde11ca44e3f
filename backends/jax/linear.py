"""linear_ce on JAX: a `lax.scan` over chunks of rows, and a tangent that takes the gradients along.

The tangent of a summed loss is the product of its gradients with its arguments' tangents. That is linear, so reverse
mode can transpose it, and the gradients come from the same loop as the value. Their own derivatives, and those of every
row's loss, are those of a scan over the formulas, which computes each chunk again: every transform works.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero, zero_from_primal
from xent import formulas
from xent.adapter import Array, LinearKernels
from xent.formulas import linear as loop
from xent.formulas.linear import LoopOperands, LoopResults, LoopSpec

from .kernels import rows, still
from .mesh import varying_alike
from .ops import OPS, promoting


def project(hidden: Array, weight: Array) -> Array:
    """In 16 bits too, with sums and results of 32."""
    return jax.lax.dot_general(
        hidden, weight, (((1,), (1,)), ((), ())), preferred_element_type=formulas.compute_dtype(OPS, hidden)
    )


def pull(dx: Array, weight: Array) -> Array:
    return dx @ weight.astype(dx.dtype)


def accumulate(sums: Array, dx: Array, hidden: Array) -> Array:
    """Some classes at a time: XLA would put the whole product beside the sums."""
    hidden = hidden.astype(sums.dtype)
    classes, features = sums.shape
    step = loop.blocks(classes, features)[0].stop
    whole = classes // step

    def add(start: Any, size: int, sums: Array) -> Array:
        part = jax.lax.dynamic_slice_in_dim(dx, start, size, 1).T @ hidden
        return jax.lax.dynamic_update_slice_in_dim(
            sums, jax.lax.dynamic_slice_in_dim(sums, start, size, 0) + part, start, 0
        )

    sums = jax.lax.fori_loop(0, whole, lambda i, sums: add(i * step, step, sums), sums)
    return add(whole * step, classes % step, sums) if classes % step else sums


def scan(step: Any, carry: Any, rows: Any, chunk: int, keep: None) -> Any:
    """In chunks of equal length where the count has such a divisor; else rows are padded, which takes a copy."""
    count = rows[0].shape[0]
    if isinstance(count, int):
        chunk = loop.even(count, chunk)
        chunks = -(-count // chunk)
    else:  # left open by jax.export, and not 0; written so that JAX can prove that the chunks hold all rows
        chunks = (count - 1) // chunk + 1
        chunk = (count - 1) // chunks + 1

    def cut(k: Array) -> Array:
        k = jnp.pad(k, [(0, chunks * chunk - count)] + [(0, 0)] * (k.ndim - 1))
        return k.reshape(chunks, chunk, *k.shape[1:])

    carry, outputs = jax.lax.scan(lambda carry, rows: step(carry, *rows), carry, jax.tree.map(cut, rows))
    return carry, jax.tree.map(lambda k: k.reshape(chunks * chunk, *k.shape[2:])[:count], outputs)


# ---- derivatives

CONSTANT = "correct", "entropy", "argmax"  # of the results


def head(spec: LoopSpec, operands: LoopOperands) -> tuple[Array, LoopResults]:
    value, results = _head(spec, *varying_alike(*operands))
    return value, jax.tree.map(jax.lax.stop_gradient, results)


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def _head(spec: LoopSpec, *arrays: Array | None) -> tuple[Array, LoopResults]:
    operands = LoopOperands(*arrays)
    results = promoting(loop.forward)(spec, operands)
    return loop.value(spec, results, operands), results


@promoting
def _smooth(spec: LoopSpec, *arrays: Array | None) -> tuple[Array, LoopResults]:
    """`_head` from formulas alone: inside a scan JAX drops custom derivatives.

    The weight is widened first, because a scan adds up its derivative in the weight's own dtype.
    """
    operands = loop.with_rounded_values(spec, LoopOperands(*arrays))
    weight, bias = (None if k is None else formulas.widened(OPS, k) for k in operands.parameters[1:])
    operands = operands._replace(weight=weight, bias=bias)
    linear = replace(spec.linear, rows=partial(formulas.rows, OPS, differentiable=True))
    each = spec._replace(linear=linear, each=True)

    @jax.checkpoint
    def step(carry: None, hidden: Array, ids: Array, *slopes: Any) -> Any:
        hidden = formulas.widened(OPS, hidden)
        value, results = loop.composite(each, operands._replace(hidden=hidden, ids=ids).with_slopes(*slopes))
        return carry, (value, *results)

    value, *results = scan(step, None, (operands.hidden, operands.ids, *operands.slopes), spec.chunk, None)[1]
    return value if spec.each else value.sum(), LoopResults(*results)


@partial(_head.defjvp, symbolic_zeros=True)
def _head_jvp(spec: LoopSpec, primals: Any, tangents: Any) -> Any:
    operands = LoopOperands(*primals)
    moving = LoopOperands(*(None if d is None or isinstance(d, SymbolicZero) else d for d in tangents))
    if spec.each:
        value, results = _head(spec, *operands)
        (moved, _) = _moved(partial(_smooth, spec), operands, moving)
        return (value, results), (moved, still(results))
    results, grads = _value_and_grads(spec, tuple(d is not None for d in moving.parameters), *operands)
    value = loop.value(spec, results, operands)
    moved = jnp.zeros_like(value)
    slopes = *grads, *loop.in_slopes(results)
    for slope, d in zip(slopes, (*moving.parameters, *moving.slopes), strict=True):
        if slope is not None and d is not None:
            moved = moved + jnp.sum(slope * d.astype(slope.dtype))
    return (value, results), (moved, still(results))


def _moved(f: Callable[..., Any], operands: Any, tangents: Any) -> Any:
    """The tangents of f's results, in those operands that have tangents."""

    def chosen(*some: Array) -> Any:
        given = iter(some)
        return f(*(k if d is None else next(given) for k, d in zip(operands, tangents, strict=True)))

    pairs = [(k, d) for k, d in zip(operands, tangents, strict=True) if d is not None]
    return jax.jvp(chosen, tuple(k for k, _ in pairs), tuple(d for _, d in pairs))[1]


@partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def _value_and_grads(spec: LoopSpec, wanted: tuple[bool, ...], *arrays: Array | None) -> Any:
    """`loop.value_and_grads`, with derivatives of its own."""
    return promoting(loop.value_and_grads)(spec, wanted, LoopOperands(*arrays))


@_value_and_grads.defjvp
def _value_and_grads_jvp(spec: LoopSpec, wanted: tuple[bool, ...], primals: Any, tangents: Any) -> Any:
    operands, moving = LoopOperands(*primals), LoopOperands(*tangents)
    names = [name for name, is_wanted in zip(LoopOperands._fields, wanted, strict=False) if is_wanted]

    def smooth(parameters: Any, slopes: Any) -> Any:
        hidden, weight, bias = parameters
        given = operands._replace(hidden=hidden, weight=weight, bias=bias).with_slopes(*slopes)

        def value(chosen: tuple[Array, ...]) -> Any:
            return _smooth(spec, *given._replace(**dict(zip(names, chosen, strict=True))))

        grads, results = jax.grad(value, has_aux=True)(tuple(getattr(given, name) for name in names))
        found = iter(grads)
        typed = [formulas.widened(OPS, next(found)) if is_wanted else None for is_wanted in wanted]
        return results._replace(**dict.fromkeys(CONSTANT)), tuple(typed)

    point = operands.parameters, operands.slopes
    moved, grads = jax.jvp(smooth, point, (moving.parameters, moving.slopes))[1]
    results, values = _value_and_grads(spec, wanted, *operands)
    constant = {name: zero_from_primal(getattr(results, name)) for name in CONSTANT}
    return (results, values), (moved._replace(**constant), grads)


LINEAR = LinearKernels(
    ops=OPS,
    rows=rows,
    rows_value_and_grad=partial(formulas.rows_value_and_grad, OPS),
    tanh=jnp.tanh,
    matmul=project,
    flat=lambda x, kept: jnp.reshape(x, (-1, *x.shape[x.ndim - kept :])),
    shaped=lambda x, like: jnp.reshape(x, like.shape),
    project=lambda h, weight, _over: project(h, weight),
    buffer=lambda rows, classes, dtype, like: None,
    pull=pull,
    accumulate=accumulate,
    scan=scan,
    head=head,
    memory=lambda x: loop.MEMORY,
)
