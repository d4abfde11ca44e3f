"""Parts of the other formulas: the dtype to compute in, sums of bounded error, products in which 0 * inf is 0."""

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
    """A sum whose error grows with log n: eighths of the array are added to each other until 16 terms are left.

    Compilers turn a plain sum into one running total for each vector lane, with an error of 1e-4 after 262,144 equal
    terms. They also merge a sum of sums into one sum, but not elementwise additions.
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
