"""sigmoid_ce on JAX's native CPU kernels, as native.py has the rows."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from xent import formulas

from . import parts
from .native import tangents_of, wide
from .operators import ELEMENTS, kernel, linear, pattern, spare
from .ops import OPS, promoting

Array = Any


def _total(lead: int, loss: Array, weight: Any) -> Array:
    """The weighted sum, over all axes but those that vmap added."""
    return jnp.sum(loss if weight is None else weight * loss, tuple(range(lead, loss.ndim)))


@promoting
def _elements(static: Any, x: Array, targets: Array, pos_weight: Any, weight: Any) -> tuple[Any, Array]:
    smoothing, lead, each = static
    loss = formulas.sigmoid(OPS, smoothing, wide(x), targets, pos_weight, None if weight is None else weight == 0)
    return loss if each else None, _total(lead, loss, weight)


@promoting
def _elements_backward(
    static: Any, x: Array, targets: Array, pos_weight: Any, weight: Any, scale: Array
) -> tuple[Any, Any]:
    smoothing, lead, wrt_x, wrt_z = static
    g = jnp.broadcast_to(jnp.reshape(scale, scale.shape + (1,) * (x.ndim - scale.ndim)), x.shape)
    g = g if weight is None or scale.ndim > lead else g * weight  # of a scale of each element the weight is the mask
    dx, dz = formulas.sigmoid_pull(
        OPS, smoothing, wide(x), targets, pos_weight, None if weight is None else weight == 0, g
    )
    return dx.astype(x.dtype) if wrt_x else None, dz if wrt_z else None


def _elements_both(
    static: Any, x: Array, targets: Array, pos_weight: Any, weight: Any, scale: Array
) -> tuple[Any, Array, Array]:
    smoothing, lead, _ = static
    loss, total = _elements(static, x, targets, pos_weight, weight)
    return loss, total, _elements_backward((smoothing, lead, True, False), x, targets, pos_weight, weight, scale)[0]


@promoting
def _elements_push(
    static: Any, dx: Any, dz: Any, x: Array, targets: Array, pos_weight: Any, weight: Any
) -> tuple[Array]:
    smoothing, lead, each = static
    absent = None if weight is None else weight == 0
    slope_x, slope_z = formulas.sigmoid_pull(
        OPS, smoothing, wide(x), targets, pos_weight, absent, jnp.ones_like(targets)
    )
    moved = 0 if dx is None else slope_x * wide(dx)
    moved = moved if dz is None else moved + slope_z * dz
    return (moved if each else _total(lead, moved, weight),)


def _elements_transpose(
    static: Any, wrt: tuple[bool, ...], x: Array, targets: Array, pos_weight: Any, weight: Any, upstream: Any
) -> list[Array]:
    smoothing, lead, _ = static
    return [
        d for d in elements_pull((smoothing, lead, *wrt), x, targets, pos_weight, weight, upstream) if d is not None
    ]


elements = kernel("sigmoid_forward", ELEMENTS, _elements, lambda static, _there: (static[2], True), parts.elements)
elements_backward = kernel(
    "sigmoid_backward", ELEMENTS, _elements_backward, lambda static, _there: static[2:], parts.elements_backward
)
elements_both = kernel(
    "sigmoid_both", ELEMENTS, _elements_both, lambda static, _there: (static[2], True, True), parts.elements
)
spare("sigmoid_both", "sigmoid_forward", 4)
elements_push = linear("sigmoid_push", ELEMENTS, _elements_push, _elements_transpose, lambda _static, _there: (True,))


def sigmoid(smoothing: float, x: Array, targets: Array, pos_weight: Any, absent: Any) -> Array:
    there = None if absent is None else 1 - absent.astype(targets.dtype)
    return elements((smoothing, 0, True), x, targets, pattern(pos_weight, x), pattern(there, x))[0]


def sigmoid_total(smoothing: float, x: Array, targets: Array, pos_weight: Any, weight: Any) -> Array:
    return elements((smoothing, 0, False), x, targets, pattern(pos_weight, x), pattern(weight, x))[1]


@partial(elements.defjvp, symbolic_zeros=True)
def _elements_jvp(static: Any, primals: Any, tangents: Any) -> Any:
    smoothing, lead, each = static
    dx, dz, _, dw = tangents_of(*tangents)
    loss, total = elements(static, *primals)
    moved, risen = None if loss is None else jnp.zeros_like(loss), jnp.zeros_like(total)
    if dx is not None or dz is not None:
        (found,) = elements_push(static, dx, dz, *primals)
        moved, risen = (found, _total(lead, found, primals[3])) if each else (None, found)
    if dw is not None:
        risen = risen + _total(lead, loss if each else elements((smoothing, lead, True), *primals)[0], dw)
    return (loss, total), (moved, risen)


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def elements_pull(static: Any, x: Array, targets: Array, pos_weight: Any, weight: Any, scale: Array) -> Any:
    lead = static[1]
    if scale.ndim > lead:  # a scale for each element goes into the kernel as its weight
        weight, scale = (
            scale if weight is None else jnp.where(weight == 0, 0.0, scale),
            jnp.ones(scale.shape[:lead], scale.dtype),
        )
    return elements_backward(static, x, targets, pos_weight, weight, scale)


@elements_pull.defjvp
def _elements_pull_jvp(static: Any, primals: Any, tangents: Any) -> Any:
    return elements_pull(static, *primals), jax.jvp(partial(_elements_backward, static), primals, tangents)[1]


def sigmoid_value_and_grad(
    smoothing: float, x: Array, targets: Array, pos_weight: Any, weight: Any, upstream: Any, each: bool
) -> tuple[Array, Array]:
    operands = x, targets, pattern(pos_weight, x), pattern(weight, x), jnp.asarray(upstream, targets.dtype)
    loss, total, dx = elements_both((smoothing, 0, each), *operands)
    if not each:
        return total, dx
    return loss if weight is None else weight * loss, dx


@elements_both.defjvp
def _elements_both_jvp(static: Any, primals: Any, tangents: Any) -> Any:
    smoothing, lead, _ = static

    def apart(*operands: Any) -> tuple[Any, Array, Array]:
        return *elements(static, *operands[:4]), elements_pull((smoothing, lead, True, False), *operands)[0]

    return elements_both(static, *primals), jax.jvp(apart, primals, tangents)[1]
