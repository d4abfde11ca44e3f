"""linear_ce on JAX: a `lax.scan` over chunks of rows, and a tangent that takes the gradients along.

The tangent of a summed loss is the product of its gradients with the tangents of what it is a function of. That is
linear, so that reverse mode transposes it, and the gradients come from the one loop that also gives the value. Their
own derivatives, and those of every row's loss, are a scan's over formulas, its chunks computed anew: every transform
works.
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
from xent.adapter import Array, Linear
from xent.formulas import linear as _linear

from .kernels import rows
from .mesh import varying_alike
from .ops import OPS, promoting


def project(h: Array, weight: Array) -> Array:
    """In 16 bits too, with sums and results of 32."""
    return jax.lax.dot_general(
        h, weight, (((1,), (1,)), ((), ())), preferred_element_type=formulas.compute_dtype(OPS, h)
    )


def pull(dx: Array, weight: Array) -> Array:
    return dx @ weight.astype(dx.dtype)


def accumulate(sums: Array, dx: Array, h: Array) -> Array:
    """Some classes at a time: XLA would put the whole product beside the sums."""
    h = h.astype(sums.dtype)
    classes, features = sums.shape
    step = _linear.blocks(classes, features)[0].stop
    whole = classes // step

    def add(start: Any, size: int, sums: Array) -> Array:
        part = jax.lax.dynamic_slice_in_dim(dx, start, size, 1).T @ h
        return jax.lax.dynamic_update_slice_in_dim(
            sums, jax.lax.dynamic_slice_in_dim(sums, start, size, 0) + part, start, 0
        )

    sums = jax.lax.fori_loop(0, whole, lambda i, sums: add(i * step, step, sums), sums)
    return add(whole * step, classes % step, sums) if classes % step else sums


def scan(step: Any, carry: Any, rows: Any, chunk: int, keep: None) -> Any:
    """In chunks that fill the rows, if there are such; else the last one is filled up, which takes a copy."""
    count = rows[0].shape[0]
    if isinstance(count, int):
        chunk = _linear.even(count, chunk)
        chunks = -(-count // chunk)
    else:  # left open by jax.export, and not 0: as many rows to each chunk, written so that JAX can prove that they fit
        chunks = (count - 1) // chunk + 1
        chunk = (count - 1) // chunks + 1

    def cut(k: Array) -> Array:
        k = jnp.pad(k, [(0, chunks * chunk - count)] + [(0, 0)] * (k.ndim - 1))
        return k.reshape(chunks, chunk, *k.shape[1:])

    carry, outputs = jax.lax.scan(lambda carry, rows: step(carry, *rows), carry, jax.tree.map(cut, rows))
    return carry, jax.tree.map(lambda k: k.reshape(chunks * chunk, *k.shape[2:])[:count], outputs)


# ---- derivatives


still = partial(zero_from_primal, symbolic_zeros=True)  # the tangents of constants


def head(static: Any, *operands: Array | None) -> Any:
    value, results = _head(static, *varying_alike(*operands))
    return value, jax.tree.map(jax.lax.stop_gradient, results)


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def _head(static: Any, *operands: Array | None) -> Any:
    results = promoting(_linear.forward)(static, *operands)
    return _linear.value(static, results, *operands[-3:]), results


@promoting
def _smooth(static: Any, h: Array, weight: Array, bias: Any, u: Any, ids: Array, a: Any, z: Any, c: Any) -> Any:
    """The same from formulas, which keep their derivatives inside a scan, where JAX drops custom ones."""
    kit = replace(static.kit, rows=lambda *rows: formulas.rows(OPS, *rows, differentiable=True)[0])
    each = static._replace(kit=kit, each=True)

    @jax.checkpoint
    def step(carry: None, h: Array, ids: Array, a: Any, z: Any, c: Any) -> Any:
        value, results = _linear.composite(each, h, weight, bias, u, ids, a, z, c)
        return carry, (value, *results)

    value, *results = scan(step, None, (h, ids, a, z, c), static.chunk, None)[1]
    return value if static.each else value.sum(), tuple(results)


@partial(_head.defjvp, symbolic_zeros=True)
def _head_jvp(static: Any, operands: Any, tangents: Any) -> Any:
    moving = [None if d is None or isinstance(d, SymbolicZero) else d for d in tangents]
    if static.each:
        value, results = _head(static, *operands)
        (moved, _) = _moved(partial(_smooth, static), operands, moving)
        return (value, results), (moved, still(results))
    wanted = tuple(d is not None for d in moving[:3])
    results, grads = _both(static, wanted, *operands)
    a, z, c = operands[-3:]
    loss, lse, smooth, _ = results
    slopes = (*grads, None, None, loss, None if lse is None else lse * lse, smooth)
    value = _linear.value(static, results, a, z, c)
    moved = jnp.zeros_like(value)
    for slope, d in zip(slopes, moving, strict=True):
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
def _both(static: Any, wanted: tuple[bool, ...], *operands: Any) -> Any:
    """`_linear.both`, with derivatives of its own."""
    return promoting(_linear.both)(static, wanted, *operands)


@_both.defjvp
def _both_jvp(static: Any, wanted: tuple[bool, ...], operands: Any, tangents: Any) -> Any:
    places = [i for i, is_wanted in enumerate(wanted) if is_wanted]

    def smooth(h: Array, weight: Array, bias: Any, a: Any, z: Any, c: Any) -> Any:
        def value(*chosen: Array) -> Any:
            given = [h, weight, bias]
            for i, k in zip(places, chosen, strict=True):
                given[i] = k
            return _smooth(static, *(*given, u, ids, a, z, c))

        chosen = [(h, weight, bias)[i] for i in places]
        grads, results = jax.grad(value, tuple(range(len(places))), has_aux=True)(*chosen)
        found = iter(grads)
        return results[:3], [formulas.widened(OPS, next(found)) if is_wanted else None for is_wanted in wanted]

    h, weight, bias, u, ids, *slopes = operands
    moved = (*tangents[:3], *tangents[5:])
    (loss, lse, smoothed), grads = jax.jvp(smooth, (h, weight, bias, *slopes), moved)[1]
    results, values = _both(static, wanted, *operands)
    return (results, values), ((loss, lse, smoothed, still(results[3])), tuple(grads))


LINEAR = Linear(
    ops=OPS,
    rows=rows,
    rows_both=partial(formulas.rows_both, OPS),
    tanh=jnp.tanh,
    smooth_tanh=jnp.tanh,
    matmul=project,
    flat=lambda x, kept: jnp.reshape(x, (-1, *x.shape[x.ndim - kept :])),
    shaped=lambda x, like: jnp.reshape(x, like.shape),
    project=lambda h, weight, _over: project(h, weight),
    buffer=lambda rows, classes, dtype, like: None,
    pull=pull,
    accumulate=accumulate,
    scan=scan,
    head=head,
    memory=lambda x: _linear.MEMORY,
)
