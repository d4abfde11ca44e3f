"""From a framework's arrays to the addresses that the native kernels take, once for all adapters.

Every array is made dense first: of its full shape, C-contiguous, in the machine's byte order. Nearly all are already,
and then nothing is copied.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from xent._adapter import Array, Layout, Ops, Scalar, computed_in

from . import native as _native

native: Any = _native  # None: there are none
CODES = {"float32": 0, "float64": 1, "float16": 2, "bfloat16": 3}  # _native's F32, F64, F16, BF16
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
class Fitting:
    """What kernels need of one framework's arrays, whatever device they run on."""

    ops: Ops
    dense: Callable[[Array, Any], Array]  # (array, shape): broadcast to shape, C-contiguous; itself if it is so
    empty: Callable[[Any, str, Array], Array]  # (shape, dtype, like)
    in_place: bool = field(default=False, kw_only=True)  # `rows_both` writes the derivative over dense logits

    def _pattern(self, k: Array | None, shape: Any) -> tuple[Array | None, int, int]:
        """k as (array, length, inner): element i of the logits has array[(i // inner) % length]."""
        if k is None:
            return None, 1, 1
        whole, inner = pattern(self.ops.shape(k), shape)
        return self.dense(k, whole), max(math.prod(whole), 1), inner

    def _results(self, lay: Layout, x: Array, u: Array | None, shape: Shape, dtype: str) -> Any:
        return (
            self.empty(shape, dtype, x),
            self.empty(shape, dtype, x) if lay.lse else None,
            None if u is None else self.empty(shape, dtype, x),
        )

    def _kept(self, lay: Layout, shape: Shape, dtype: str, x: Array) -> Array:
        """For one value a row, keeping the class axis."""
        return self.empty((*shape[: lay.axis], 1, *shape[lay.axis :]), dtype, x)

    def _per_row(self, k: Scalar | None, shape: Shape, dtype: str, x: Array) -> Array | None:
        if k is None:
            return None
        return self.ops.full(shape, k, dtype, x) if isinstance(k, float) else self.dense(k, shape)


@dataclass(frozen=True, eq=False)
class Kernels(Fitting):
    """The kernels on one framework's arrays, which the caller knows to lie in this process's memory."""

    address: Callable[[Array], int]
    threads: Callable[[], int]  # how many at most; 0: the kernels' own choice

    def rows(self, lay: Layout, x: Array, t: Array | None, u: Array | None, ids: Array | None) -> Any:
        """The results of `Adapter.rows`, and the statistics (m, s), keeping the axis."""
        problem, held, shape, dtype = self._problem(lay, x, t, u, ids)
        loss, lse, smooth = self._results(lay, x, u, shape, dtype)
        m, s = (self._kept(lay, shape, dtype, x) for _ in range(2))
        native.rows_forward(*problem, *self._at(m, s, loss, lse, smooth), self.threads())
        del held
        return (loss, lse, smooth, m), (m, s)

    def rows_backward(
        self,
        lay: Layout,
        x: Array,
        t: Array | None,
        u: Array | None,
        ids: Array | None,
        stats: tuple[Array, ...],
        coefficients: tuple[Scalar | None, ...],
        wanted: tuple[bool, ...],
    ) -> tuple[Array | None, Array | None]:
        """The derivatives of sum(a loss + b lse + c smooth) in x and t, those that are wanted."""
        problem, held, shape, dtype = self._problem(lay, x, t, u, ids)
        per_row = [self._per_row(k, shape, dtype, x) for k in coefficients]
        dx = self.empty(self.ops.shape(x), self.ops.dtype(x), x) if wanted[0] else None
        dt = self.empty(self.ops.shape(x), dtype, x) if wanted[1] else None
        native.rows_backward(*problem, *self._at(*stats, *per_row, dx, dt), self.threads())
        del held
        return dx, dt

    def rows_both(
        self,
        lay: Layout,
        x: Array,
        t: Array | None,
        u: Array | None,
        ids: Array | None,
        a: Scalar,
        z: Scalar | None,
        c: Scalar | None,
    ) -> tuple[tuple[Array, Array | None, Array | None, Array], Array]:
        """`Adapter.rows_both`."""
        problem, held, shape, dtype = self._problem(lay, x, t, u, ids)
        per_row = [self._per_row(k, shape, dtype, x) for k in (a, z, c)]
        results = self._results(lay, x, u, shape, dtype)
        m = self._kept(lay, shape, dtype, x)
        dx = held[0] if self.in_place else self.empty(self.ops.shape(x), self.ops.dtype(x), x)
        native.rows_both(*problem, *self._at(*per_row, *results, m, None, dx), self.threads())
        del held
        return (*results, m), dx

    def mean_both(self, lay: Layout, x: Array, t: Array | None, ids: Array | None, n: int) -> tuple[Array, Array]:
        """`Adapter.mean_both`."""
        problem, held, _, dtype = self._problem(lay, x, t, None, ids)
        dx = self.empty(self.ops.shape(x), self.ops.dtype(x), x)
        mean = native.mean_both(*problem, n, *self._at(dx), self.threads())
        del held
        return self.ops.full((), mean, dtype, x), dx

    def sigmoid(self, e: float, x: Array, z: Array, p: Array | None, w: Array | None, each: bool) -> Array:
        """The elementwise loss, without w and 0 where that is, or sum(w loss), 0-d."""
        problem, held, dtype = self._elements(e, x, z, p, w)
        loss = self.empty(self.ops.shape(x), dtype, x) if each else None
        total = native.sigmoid_forward(*problem, *self._at(loss), self.threads())
        del held
        return self.ops.full((), total, dtype, x) if loss is None else loss

    def sigmoid_backward(
        self,
        e: float,
        x: Array,
        z: Array,
        p: Array | None,
        w: Array | None,
        scale: Scalar,
        wanted: tuple[bool, ...],
    ) -> tuple[Array | None, Array | None]:
        """The derivatives of scale * sum(w loss) in x and z, those that are wanted."""
        problem, held, dtype = self._elements(e, x, z, p, w)
        dx = self.empty(self.ops.shape(x), self.ops.dtype(x), x) if wanted[0] else None
        dz = self.empty(self.ops.shape(x), dtype, x) if wanted[1] else None
        native.sigmoid_backward(*problem, float(scale), *self._at(dx, dz), self.threads())
        del held
        return dx, dz

    def sigmoid_both(
        self, e: float, x: Array, z: Array, p: Array | None, w: Array | None, g: Scalar, each: bool
    ) -> tuple[Array, Array]:
        """`Adapter.sigmoid_both`."""
        problem, held, dtype = self._elements(e, x, z, p, w)
        loss = self.empty(self.ops.shape(x), dtype, x) if each else None
        dx = self.empty(self.ops.shape(x), self.ops.dtype(x), x)
        total = native.sigmoid_both(*problem, float(g), *self._at(loss, dx), self.threads())
        del held
        if loss is None:
            return self.ops.full((), total, dtype, x), dx
        return loss if w is None else w * loss, dx

    def project(self, h: Array, weight: Array, x: Array) -> None:
        """x = h @ weight.T, in the compute dtype. Here and below, all arrays are dense and have elements."""
        sizes = *self.ops.shape(h), self.ops.shape(weight)[0]
        native.project(CODES[self.ops.dtype(h)], *sizes, *self._at(h, weight, x), self.threads())

    def pull(self, dx: Array, weight: Array, dh: Array) -> None:
        """dh = dx @ weight."""
        sizes = *self.ops.shape(dh), self.ops.shape(weight)[0]
        native.pull(CODES[self.ops.dtype(weight)], *sizes, *self._at(dx, weight, dh), self.threads())

    def accumulate(self, dx: Array, h: Array, dw: Array) -> None:
        """dw += dx.T @ h."""
        sizes = *self.ops.shape(h), self.ops.shape(dw)[0]
        native.accumulate(CODES[self.ops.dtype(h)], *sizes, *self._at(dx, h, dw), self.threads())

    # Each problem comes with the arrays whose addresses it holds: they have to outlive the call.

    def _problem(
        self, lay: Layout, x: Array, t: Array | None, u: Array | None, ids: Array | None
    ) -> tuple[tuple[Any, ...], Any, Shape, str]:
        """What every kernel on rows starts with; the rows' shape; the compute dtype."""
        name = self.ops.dtype(x)
        whole: Any = self.ops.shape(x)
        before, after = whole[: lay.axis], whole[lay.axis + 1 :]
        rows, dense = before + after, self.dense
        held = (
            dense(x, whole),
            None if t is None else dense(t, whole),
            None if u is None else dense(u, whole[lay.axis : lay.axis + 1]),
            None if ids is None else dense(ids, rows),
        )
        sizes = math.prod(before), whole[lay.axis], math.prod(after)
        wide = ids is not None and self.ops.dtype(ids) == "int64"
        return (CODES[name], *sizes, *self._at(*held), wide), held, rows, computed_in(name)

    def _elements(
        self, e: float, x: Array, z: Array, p: Array | None, w: Array | None
    ) -> tuple[tuple[Any, ...], Any, str]:
        """What every sigmoid kernel starts with; the compute dtype."""
        name, shape = self.ops.dtype(x), self.ops.shape(x)
        held = self.dense(x, shape), self.dense(z, shape)
        patterns = self._pattern(p, shape), self._pattern(w, shape)
        flat = (k for array, *sizes in patterns for k in (*self._at(array), *sizes))
        return (CODES[name], math.prod(shape), e, *self._at(*held), *flat), (held, patterns), computed_in(name)

    def _at(self, *arrays: Array | None) -> list[int]:
        address = self.address
        return [0 if array is None else address(array) for array in arrays]
