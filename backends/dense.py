"""Dense arguments and results for the native kernels, C++ and Triton, out of any framework's arrays."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from xent.adapter import Array, Layout, Ops, RowResults, Scalar

Shape = tuple[int, ...]


def pattern(given: Any, shape: Any) -> tuple[Any, int]:
    """(dense, inner) for an array of shape `given` that broadcasts against `shape`: in an array of the shape `dense`,
    the value for element i of `shape` is at [(i // inner) % size]."""
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
    # (array, shape) -> the array, broadcast to shape and C-contiguous; itself if it is that already
    dense: Callable[[Array, Any], Array]
    empty: Callable[[Any, str, Array], Array]  # (shape, dtype, like)
    in_place: bool = field(default=False, kw_only=True)  # `rows_value_and_grad` writes the derivative over dense logits

    def _dense_rows(
        self, layout: Layout, x: Array, t: Array | None, smoothing_weights: Array | None, ids: Array | None
    ) -> tuple[dict[str, Array | None], Shape, int, Shape]:
        """A softmax kernel's arrays, by name; the lengths before the class axis, the classes, the lengths after."""
        whole: Any = self.ops.shape(x)
        before, classes, after = whole[: layout.axis], whole[layout.axis], whole[layout.axis + 1 :]
        given = {
            "x": self.dense(x, whole),
            "t": None if t is None else self.dense(t, whole),
            "u": None if smoothing_weights is None else self.dense(smoothing_weights, (classes,)),
            "ids": None if ids is None else self.dense(ids, before + after),
        }
        return given, before, classes, after

    def _pattern(self, array: Array | None, shape: Any) -> tuple[Array | None, int, int]:
        """(dense array, length, inner): the value for element i of the logits is at [(i // inner) % length]."""
        if array is None:
            return None, 1, 1
        whole, inner = pattern(self.ops.shape(array), shape)
        return self.dense(array, whole), max(math.prod(whole), 1), inner

    def _row_results(
        self, layout: Layout, x: Array, smoothing_weights: Array | None, ids: Array | None, shape: Shape, dtype: str
    ) -> RowResults:
        """Memory for what a softmax kernel returns for each row; shape: the rows'."""

        def memory(wanted: bool, shape: Shape, dtype: str = dtype) -> Array | None:
            return self.empty(shape, dtype, x) if wanted else None

        kept = (*shape[: layout.axis], 1, *shape[layout.axis :])  # with the class axis
        return RowResults(
            nll=memory(True, shape),
            lse=memory(layout.lse, shape),
            smooth=memory(smoothing_weights is not None, shape),
            m=memory(True, kept),
            s=memory(True, kept),
            gap_sum=memory(layout.stats, kept),
            argmax=memory(True, kept, self.ops.dtype(ids)) if layout.stats else None,
        )

    def _per_row(self, array: Scalar | None, shape: Shape, dtype: str, x: Array) -> Array | None:
        if array is None:
            return None
        return self.dense(self.ops.full(shape, array, dtype, x) if isinstance(array, float) else array, shape)
