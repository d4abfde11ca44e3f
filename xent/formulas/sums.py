"""What the other formulas are made of: the dtype to compute in, sums whose error does not grow with their length,
products in which 0 * inf is 0."""

from __future__ import annotations

from collections.abc import Callable

from xent.adapter import Array, Ops, computed_in

INF, NAN = float("inf"), float("nan")


def compute_dtype(ops: Ops, x: Array) -> str:
    return computed_in(ops.dtype(x))


def widened(ops: Ops, x: Array) -> Array:
    """Logits in the compute dtype."""
    return ops.astype(x, compute_dtype(ops, x))


def tree_sum(
    x: Array, n: int | None, add_eighths: Callable[[Array, int], Array], total: Callable[[Array], Array]
) -> Array:
    """Sum in blocks, so that the error grows with log n: add eighths onto each other until 16 terms are left.

    Compilers turn a plain sum into one running total per vector lane: 1e-4 relative after 262,144 equal terms. They
    also join sums of sums into one; they cannot do that to elementwise additions.
    """
    while n is not None and n > 16:
        n = -(-n // 8)
        x = add_eighths(x, n)
    return total(x)


def add_pairs(parts: list[Array]) -> Array:
    """Eight arrays added as a tree."""
    while len(parts) > 1:
        parts = [left + right for left, right in zip(parts[::2], parts[1::2], strict=True)]
    return parts[0]


def times(ops: Ops, weight: Array, gap: Array) -> Array:
    """weight * gap with 0 * inf = 0: a class that has no weight adds nothing, however impossible it is.

    Only the infinite gap is replaced: the derivative in a weight of 0 is the gap.
    """
    return weight * ops.where((weight == 0) & (gap == INF), 0.0, gap)
