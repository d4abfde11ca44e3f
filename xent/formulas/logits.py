"""What may be done with logits before a loss, element by element: a soft cap, then a scale.

    x' = scale cap tanh(x / cap)

The slope is taken from (1 - e) / (1 + e) with e = exp(-2 |x / cap|), in whose derivative, 4 e / (1 + e)^2, nothing
cancels. The textbook's 1 - tanh^2 has no digit left where tanh rounds to 1.
"""

from __future__ import annotations

from xent.adapter import Array, Ops


def capped_and_scaled(ops: Ops, x: Array, cap: float | None, scale: float | None) -> Array:
    """x', of logits in the compute dtype. Automatic differentiation of any kind is as accurate as `slope`."""
    if cap is None:
        return x * scale
    y = x / cap
    e = _decay(ops, y)
    size = (1 - e) / (1 + e)
    smooth = ops.where(y > 0, size, -size)
    # tanh has the relative accuracy near 0 that `smooth` has not; their difference is a matter of rounding alone
    capped = smooth + ops.stop_gradient(ops.tanh(y) - smooth)
    return capped * (cap if scale is None else cap * scale)


def slope(ops: Ops, x: Array, cap: float | None, scale: float | None) -> Array:
    """dx' / dx; a number where it is the same everywhere."""
    if cap is None:
        return scale
    e = _decay(ops, x / cap)
    return e / ((1 + e) * (1 + e)) * (4.0 if scale is None else 4 * scale)


def _decay(ops: Ops, y: Array) -> Array:
    """exp(-2 |y|), smooth on both sides of 0, where abs has no derivative."""
    return ops.exp(ops.where(y > 0, y, -y) * -2.0)
