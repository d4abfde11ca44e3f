"""The entropy of rows on JAX: the native CPU kernel, with xent's formula elsewhere and for all higher derivatives.

Reverse mode is the kernel as well: the tangent is a primitive whose transpose is the kernel, so that nothing is kept
but the logits. Inside this module the classes are last, and `present` has each row's weight, which only says whether
the row is there; None: all are.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from xent import formulas

from .native import tangents_of, wide
from .operators import ENTROPY, kernel, linear
from .ops import OPS, promoting

Array = Any
FORMULAS = formulas.entropy_kernels(OPS)


# The kernel is for classes that are last. Elsewhere the formula stays on its axis: moved to the end, XLA's CPU compiler
# gets second derivatives of it wrong (jax.jit(jax.jacfwd(jax.jacrev(f))) of an f that returns each row's).


def value(axis: int, x: Array, weight: Array | None) -> Array:
    if axis != x.ndim - 1:
        return FORMULAS.value(axis, x, weight)
    return _entropy(x, _of_each_row(x, weight))


def value_and_grad(axis: int, x: Array, weight: Array | None) -> tuple[Array, Array]:
    if axis != x.ndim - 1:
        return FORMULAS.value_and_grad(axis, x, weight)
    return _entropy_and_grad(x, _of_each_row(x, weight))


def _of_each_row(x: Array, weight: Array | None) -> Array | None:
    return None if weight is None else jnp.broadcast_to(weight, x.shape[:-1])


# ---- the formulas


@promoting
def _formula(x: Array, present: Array | None) -> Array:
    return formulas.entropy(OPS, x.ndim - 1, x, present)


@promoting
def _both(static: Any, x: Array, weight: Array | None) -> tuple[Array, Array | None]:
    """The derivative is that of the sum of weight times entropy, where it is asked for."""
    (derive,) = static
    entropy, dx = formulas.entropy_value_and_grad(OPS, x.ndim - 1, x, weight)
    return entropy, dx.astype(x.dtype) if derive else None


def _push(_static: Any, dx: Array, _: None, x: Array, present: Array | None) -> tuple[Array]:
    return (jax.jvp(lambda x: _formula(x, present), (wide(x),), (wide(dx),))[1],)


def _pull(_static: Any, _wrt: tuple[bool, ...], x: Array, present: Array | None, upstream: Array) -> list[Array]:
    return [_slope(x, present, upstream)]


both = kernel("entropy", ENTROPY, _both, lambda static, _present: (True, *static))
push = linear("entropy_push", ENTROPY, _push, _pull, lambda _static, _present: (True,))


# ---- the derivatives


@both.defjvp
def _both_jvp(static: Any, primals: Any, tangents: Any) -> Any:
    (derive,) = static
    return jax.jvp(_entropy_and_grad if derive else lambda *operands: (_entropy(*operands), None), primals, tangents)


@jax.custom_jvp
def _entropy(x: Array, present: Array | None) -> Array:
    return both((False,), x, present)[0]


@partial(_entropy.defjvp, symbolic_zeros=True)
def _entropy_jvp(primals: Any, tangents: Any) -> Any:
    entropy, (dx, *_) = _entropy(*primals), tangents_of(*tangents[:1])
    return entropy, jnp.zeros_like(entropy) if dx is None else push((), dx, None, *primals)[0]


@jax.custom_jvp
def _slope(x: Array, present: Array | None, upstream: Array) -> Array:
    """The derivative of the sum of upstream times entropy."""
    return both((True,), x, upstream if present is None else jnp.where(present == 0, 0.0, upstream))[1]


@_slope.defjvp
def _slope_jvp(primals: Any, tangents: Any) -> Any:
    x, present, upstream = primals

    def smooth(x: Array, upstream: Array) -> Array:
        return jax.vjp(lambda x: _formula(x, present), x)[1](upstream)[0]

    return _slope(*primals), jax.jvp(smooth, (x, upstream), (tangents[0], tangents[2]))[1]


@jax.custom_jvp
def _entropy_and_grad(x: Array, weight: Array | None) -> tuple[Array, Array]:
    entropy, dx = both((True,), x, weight)
    return entropy, dx


@_entropy_and_grad.defjvp
def _entropy_and_grad_jvp(primals: Any, tangents: Any) -> Any:
    def apart(x: Array, weight: Array | None) -> tuple[Array, Array]:
        present = None if weight is None else jax.lax.stop_gradient(weight)
        entropy = _entropy(x, present)
        return entropy, _slope(x, present, jnp.ones_like(entropy) if weight is None else weight)

    return _entropy_and_grad(*primals), jax.jvp(apart, primals, tangents)[1]
