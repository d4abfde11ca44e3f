"""The native kernels on a device's part of arrays that the compiler has split over a mesh (partition.py).

Rows and elements do not know of each other, so a part of them is a call like any other. Where classes are split, the
parts' statistics are combined by one gather, as for `sharded=`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from xent.adapter import ABSENT, Layout, RowResults, Slopes
from xent.formulas import sharding
from xent.formulas.sharding import Row, Shard

from . import sharded
from .ops import OPS, promoting
from .partition import Split

Array = Any
Kernel = Callable[..., Any]


@promoting
def forward(kernel: Kernel, split: Split, static: Any, x: Array, t: Any, u: Any, ids: Any) -> tuple[Any, ...]:
    (layout,) = static
    ids = possible(split, layout, ids)
    if not split.names[layout.axis]:
        return tuple(kernel(static, x, t, u, ids))
    row = _row(kernel, split, layout, x, t, u, ids)
    return flat_results(layout, sharding.results(OPS, layout, row, ids))


@promoting
def backward(
    kernel: Kernel, split: Split, static: Any, x: Array, t: Any, u: Any, ids: Any, m: Array, s: Array, *up: Any
) -> tuple[Any, Any]:
    """Where classes are split, soft labels and smoothing weights are added up over the devices once more."""
    layout, ids = static[0], possible(split, static[0], ids)
    if not split.names[layout.axis]:
        dx, dt = kernel(static, x, t, u, ids, m, s, *up)
        return dx, dt
    shard = sharded.along(split.names[layout.axis], x.shape[layout.axis])
    own = None if t is None else jnp.sum(t, layout.axis, keepdims=True), None if u is None else jnp.sum(u)
    given = tuple(k for k in own if k is not None)
    # one collective: XLA gives those of a placeholder one channel
    every = iter(shard.gather(given) if given else ())
    targets, smoothing = (
        None if k is None else jnp.tensordot(jnp.where(shard.is_own, 0, 1).astype(k.dtype), next(every), 1) for k in own
    )
    row = Row(m, s, None, None, None, None, targets, smoothing)
    return _pull(kernel, shard, static, x, t, u, ids, row, *up)


@promoting
def both(
    forward_kernel: Kernel,
    backward_kernel: Kernel,
    kernel: Kernel,
    split: Split,
    static: Any,
    x: Array,
    t: Any,
    u: Any,
    ids: Any,
    *slopes: Any,
) -> tuple[Any, ...]:
    layout, ids = static[0], possible(split, static[0], ids)
    if not split.names[layout.axis]:
        return tuple(kernel(static, x, t, u, ids, *slopes))
    row = _row(forward_kernel, split, layout, x, t, u, ids)
    results = flat_results(layout, sharding.results(OPS, layout, row, ids))
    m, s, _, lse, *_ = results
    up = Slopes(*slopes).coefficients(lse)
    shard = sharded.along(split.names[layout.axis], x.shape[layout.axis])
    dx, _ = _pull(backward_kernel, shard, (layout, True, False), x, t, u, ids, row.for_derivatives(m, s), *up)
    return *results, dx


def _row(kernel: Kernel, split: Split, layout: Layout, x: Array, t: Any, u: Any, ids: Any) -> Row:
    def rows(layout: Layout, *operands: Any) -> RowResults:
        return row_results(layout, *kernel((layout,), *operands))

    shard = sharded.along(split.names[layout.axis], x.shape[layout.axis])
    return sharding.combine(OPS, shard, sharding.statistics(OPS, rows, layout, shard, x, t, u, ids))


def flat_results(layout: Layout, results: RowResults) -> tuple[Any, ...]:
    """As the kernels have them: m and s first, and nothing with the class axis."""
    nll, lse, smooth, *kept = results
    m, s, *for_stats = (None if k is None else jnp.squeeze(k, layout.axis) for k in kept)
    return m, s, nll, lse, smooth, *for_stats


def row_results(layout: Layout, m: Array, s: Array, nll: Array, lse: Any, smooth: Any, *for_stats: Any) -> RowResults:
    """The inverse of `flat_results`."""
    kept = (None if k is None else jnp.expand_dims(k, layout.axis) for k in (m, s, *for_stats))
    return RowResults(nll, lse, smooth, *kept)


def _pull(
    kernel: Kernel, shard: Shard, static: Any, x: Array, t: Any, u: Any, ids: Any, row: Row, *up: Any
) -> tuple[Any, Any]:
    layout, *wanted = static
    own_ids, held = shard.own_labels(OPS, layout, ids)
    scaled = sharding.coefficients(OPS, layout, row, held, *up)
    dx, dt = kernel((layout._replace(lse=True), *wanted), x, t, u, own_ids, row.m, row.s, *scaled)
    return dx, dt


def possible(split: Split, layout: Layout, ids: Any) -> Any:
    """ids that a kernel may read a logit at, where a part may have rows that are none. They stay as they are in rows
    that are some."""
    return None if ids is None else jnp.clip(ids, ABSENT if layout.masked else 0, split.shape[layout.axis] - 1)


@promoting
def elements(kernel: Kernel, split: Split, static: Any, x: Array, *operands: Any) -> tuple[Any, ...]:
    """With sums over all parts."""
    smoothing, lead, each = static
    names = tuple(name for some in split.names[lead:] for name in some)
    loss, total, *dx = kernel(static, x, *operands)
    real = inside(split, x)
    if real is not None:
        weight = operands[2]
        every = loss if each else kernel((smoothing, lead, True), x, *operands)[0]
        every = jnp.where(real, every if weight is None else weight * every, 0.0)
        total = jnp.sum(every, tuple(range(lead, x.ndim)))
    return loss, jax.lax.psum(total, names) if names else total, *dx


def elements_backward(kernel: Kernel, split: Split, static: Any, *operands: Any) -> tuple[Any, ...]:
    return tuple(kernel(static, *operands))


def inside(split: Split, x: Array) -> Any:
    """Which elements of a part are elements of the whole; None if all are."""
    real = None
    for axis, (names, length) in enumerate(zip(split.names, split.shape, strict=True)):
        if names and x.shape[axis] * jax.lax.axis_size(names) != length:
            place = jax.lax.axis_index(names) * x.shape[axis] + jax.lax.broadcasted_iota("int32", x.shape, axis)
            real = place < length if real is None else real & (place < length)
    return real
