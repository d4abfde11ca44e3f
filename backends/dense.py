"""Dense arguments and results for the native kernels, C++ and Triton, out of any framework's arrays."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from xent.adapter import Array, Layout, Ops, Scalar

Shape = tuple[int, ...]


def pattern(given: Any, shape: Any) -> tuple[Any, int]:
    """What shape an array that broadcasts against `shape` has to have, so that element i of that is the array's
    (i // inner)-th, round and round; and inner."""
    padded = (1,) * (len(shape) - len(given)) + given
    varies = [place for place, n in enumerate(padded) if n != 1]
    if not varies:
        return given, 1
    first, end = varies[0], varies[-1] + 1
    if padded[first:end] == shape[first:end]:
        return given, max(math.prod(shape[end:]), 1)
    return shape, 1


@dataclass(frozen=True, eq=False)
class DenseArrays:
    """What native kernels need of one framework's arrays, whatever device they run on."""

    ops: Ops
    # (array, shape): broadcast to shape, C-contiguous, in memory of its own; itself if it is all that
    dense: Callable[[Array, Any], Array]
    empty: Callable[[Any, str, Array], Array]  # (shape, dtype, like)
    in_place: bool = field(default=False, kw_only=True)  # `rows_value_and_grad` writes the derivative over dense logits

    def _dense_rows(
        self, layout: Layout, x: Array, t: Array | None, u: Array | None, ids: Array | None
    ) -> tuple[dict[str, Array | None], Shape, int, Shape]:
        """A softmax kernel's arrays, by name; the lengths before the class axis, the classes, the lengths after."""
        whole: Any = self.ops.shape(x)
        before, classes, after = whole[: layout.axis], whole[layout.axis], whole[layout.axis + 1 :]
        given = {
            "x": self.dense(x, whole),
            "t": None if t is None else self.dense(t, whole),
            "u": None if u is None else self.dense(u, (classes,)),
            "ids": None if ids is None else self.dense(ids, before + after),
        }
        return given, before, classes, after

    def _pattern(self, k: Array | None, shape: Any) -> tuple[Array | None, int, int]:
        """k as (array, length, inner): element i of the logits has array[(i // inner) % length]."""
        if k is None:
            return None, 1, 1
        whole, inner = pattern(self.ops.shape(k), shape)
        return self.dense(k, whole), max(math.prod(whole), 1), inner

    def _results(self, layout: Layout, x: Array, u: Array | None, shape: Shape, dtype: str) -> Any:
        return (
            self.empty(shape, dtype, x),
            self.empty(shape, dtype, x) if layout.lse else None,
            None if u is None else self.empty(shape, dtype, x),
        )

    def _kept(self, layout: Layout, shape: Shape, dtype: str, x: Array) -> Array:
        """For one value a row, keeping the class axis."""
        return self.empty((*shape[: layout.axis], 1, *shape[layout.axis :]), dtype, x)

    def _per_row(self, k: Scalar | None, shape: Shape, dtype: str, x: Array) -> Array | None:
        if k is None:
            return None
        return self.dense(self.ops.full(shape, k, dtype, x) if isinstance(k, float) else k, shape)
