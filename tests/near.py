"""Numbers in long double, and how far a computation in the working precision may be from each.

Sums, products and quotients pass errors on and add their own rounding, so that a bound is as tight as the question is
well put.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

Long = np.longdouble
EXACT_ENOUGH = np.finfo(Long).nmant >= 63  # elsewhere long double is float64, and no reference for it
SMALL = 1e-3  # results below it are as accurate as their logits' distance from the maximum lets them be


class Work(NamedTuple):
    """The precision that is computed in."""

    unit: float  # roundoff
    bar: float  # relative, for what is not small
    tiny: float  # smallest normal number; what is below may be flushed to 0


WORK = {"float32": Work(2.0**-24, 1e-6, 2.0**-126), "float64": Work(2.0**-53, 1e-14, 2.0**-1022)}


class Near:
    """Numbers, and how far each may be off."""

    def __init__(self, value: Any, error: Any, work: Work) -> None:
        self.value, self.work = np.asarray(value, Long), work
        self.error = np.where(np.isfinite(self.value), np.asarray(error, Long), 0)  # an infinity is exact, or NaN

    def _rounded(self, value: Any, error: Any) -> Near:
        return Near(value, error + self.work.unit * np.abs(value), self.work)

    def _near(self, other: Any) -> Near:
        return other if isinstance(other, Near) else Near(other, 0, self.work)

    def __add__(self, other: Any) -> Near:
        other = self._near(other)
        return self._rounded(self.value + other.value, self.error + other.error)

    def __sub__(self, other: Any) -> Near:
        other = self._near(other)
        return self._rounded(self.value - other.value, self.error + other.error)

    def __mul__(self, other: Any) -> Near:
        other = self._near(other)
        crossed = np.abs(self.value) * other.error + np.abs(other.value) * self.error + self.error * other.error
        return self._rounded(self.value * other.value, crossed)

    def __truediv__(self, other: Any) -> Near:
        other = self._near(other)
        value = self.value / other.value
        least = np.maximum(np.abs(other.value) - other.error, 0)  # that the divisor may be
        return self._rounded(value, (self.error + np.abs(value) * other.error) / least)

    def __neg__(self) -> Near:
        return Near(-self.value, self.error, self.work)

    def sum(self, axis: int | None = None) -> Near:
        """Added in any order that puts no more than 16 terms into one running total."""
        count = self.value.size if axis is None else self.value.shape[axis]
        roundings = min(count, 16) + np.log2(max(count, 1))
        size = np.abs(self.value).sum(axis)
        return Near(self.value.sum(axis), self.error.sum(axis) + roundings * self.work.unit * size, self.work)

    def product(self, other: Near) -> Near:
        """Of matrices, whose terms are added one after the other."""
        left, right = np.abs(self.value), np.abs(other.value)
        roundings = (self.value.shape[-1] + 2) * self.work.unit
        crossed = left @ other.error + self.error @ right + roundings * (left @ right)
        return Near(self.value @ other.value, crossed, self.work)

    def where(self, condition: Any, otherwise: Any = 0) -> Near:
        other = self._near(otherwise)
        return Near(
            np.where(condition, self.value, other.value), np.where(condition, self.error, other.error), self.work
        )

    def of(self, other: Near) -> Near:
        """The product where 0 * inf is 0."""
        return (self * other).where((self.value != 0) | ~np.isinf(other.value))

    def mapped(self, function: Any) -> Near:
        """Moved, reshaped, picked from."""
        return Near(function(self.value), function(self.error), self.work)

    def __getitem__(self, key: Any) -> Near:
        return self.mapped(lambda k: k[key])


def accurate(value: Any, distance: Any, work: Work) -> Near:
    """With the promised accuracy: the bar, or for what is small 8 roundoffs and one for each unit of distance."""
    relative = np.where(np.abs(value) >= SMALL, work.bar, (8 + distance) * work.unit)
    return Near(value, np.where(np.isinf(value), 0, np.abs(value) * relative + work.tiny), work)
