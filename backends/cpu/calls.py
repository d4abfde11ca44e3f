"""From a framework's arrays to the addresses that the native kernels take, once for all adapters.

Every array is made dense first: of its full shape, C-contiguous, in the machine's byte order. Nearly all are already,
and then nothing is copied. Arrays become addresses in one place, `Kernels._run`, which keeps them alive meanwhile.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from xent.adapter import Array, Layout, RowResults, Scalar, computed_in
from xent.backends.dense import DenseArrays, Shape

from . import native as _native

native: Any = _native  # None: there are none
CODES = {"float32": 0, "float64": 1, "float16": 2, "bfloat16": 3}  # _native's F32, F64, F16, BF16


@dataclass(frozen=True, eq=False)
class Kernels(DenseArrays):
    """The kernels on one framework's arrays, which the caller knows to lie in this process's memory."""

    address: Callable[[Array], int]
    threads: Callable[[], int]  # how many at most; 0: the kernels' own choice

    def rows(self, layout: Layout, x: Array, t: Array | None, u: Array | None, ids: Array | None) -> RowResults:
        """`SoftmaxKernels.rows`, but for the derivatives."""
        sizes, given, shape, dtype = self._problem(layout, x, t, u, ids)
        nll, lse, smooth = self._results(layout, x, u, shape, dtype)
        m, s = (self._kept(layout, shape, dtype, x) for _ in range(2))
        self._run(native.rows_forward, sizes, *given, m, s, nll, lse, smooth)
        return RowResults(nll, lse, smooth, m, s)

    def rows_backward(
        self,
        layout: Layout,
        x: Array,
        t: Array | None,
        u: Array | None,
        ids: Array | None,
        stats: tuple[Array, ...],
        coefficients: tuple[Scalar | None, ...],
        wanted: tuple[bool, ...],
    ) -> tuple[Array | None, Array | None]:
        """The derivatives of sum(a loss + b lse + c smooth) in x and t, those that are wanted."""
        sizes, given, shape, dtype = self._problem(layout, x, t, u, ids)
        kept = (self.dense(k, (*shape[: layout.axis], 1, *shape[layout.axis :])) for k in stats)
        per_row = (self._per_row(k, shape, dtype, x) for k in coefficients)
        dx = self.empty(self.ops.shape(x), self.ops.dtype(x), x) if wanted[0] else None
        dt = self.empty(self.ops.shape(x), dtype, x) if wanted[1] else None
        self._run(native.rows_backward, sizes, *given, *kept, *per_row, dx, dt)
        return dx, dt

    def rows_value_and_grad(
        self,
        layout: Layout,
        x: Array,
        t: Array | None,
        u: Array | None,
        ids: Array | None,
        a: Scalar,
        lse2: Scalar | None,
        c: Scalar | None,
    ) -> tuple[RowResults, Array]:
        """`SoftmaxKernels.rows_value_and_grad`, without s."""
        sizes, given, shape, dtype = self._problem(layout, x, t, u, ids)
        per_row = (self._per_row(k, shape, dtype, x) for k in (a, lse2, c))
        nll, lse, smooth = self._results(layout, x, u, shape, dtype)
        m = self._kept(layout, shape, dtype, x)
        dx = given[0] if self.in_place else self.empty(self.ops.shape(x), self.ops.dtype(x), x)
        self._run(native.rows_both, sizes, *given, *per_row, nll, lse, smooth, m, None, dx)
        return RowResults(nll, lse, smooth, m), dx

    def mean_value_and_grad(
        self, layout: Layout, x: Array, t: Array | None, ids: Array | None, n: int
    ) -> tuple[Array, Array]:
        """`SoftmaxKernels.mean_value_and_grad`."""
        sizes, given, _, dtype = self._problem(layout, x, t, None, ids)
        dx = self.empty(self.ops.shape(x), self.ops.dtype(x), x)
        mean = self._run(native.mean_both, (*sizes, n), *given, dx)
        return self.ops.full((), mean, dtype, x), dx

    def sigmoid(self, e: float, x: Array, z: Array, p: Array | None, w: Array | None, each: bool) -> Array:
        """The elementwise loss, without w and 0 where that is, or sum(w loss), 0-d."""
        sizes, given, dtype = self._elements(e, x, z, p, w)
        loss = self.empty(self.ops.shape(x), dtype, x) if each else None
        total = self._run(native.sigmoid_forward, sizes, *given, loss)
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
        sizes, given, dtype = self._elements(e, x, z, p, w)
        dx = self.empty(self.ops.shape(x), self.ops.dtype(x), x) if wanted[0] else None
        dz = self.empty(self.ops.shape(x), dtype, x) if wanted[1] else None
        self._run(native.sigmoid_backward, (*sizes, float(scale)), *given, dx, dz)
        return dx, dz

    def sigmoid_value_and_grad(
        self, e: float, x: Array, z: Array, p: Array | None, w: Array | None, g: Scalar, each: bool
    ) -> tuple[Array, Array]:
        """`SigmoidKernels.value_and_grad`."""
        sizes, given, dtype = self._elements(e, x, z, p, w)
        loss = self.empty(self.ops.shape(x), dtype, x) if each else None
        dx = self.empty(self.ops.shape(x), self.ops.dtype(x), x)
        total = self._run(native.sigmoid_both, (*sizes, float(g)), *given, loss, dx)
        if loss is None:
            return self.ops.full((), total, dtype, x), dx
        return loss if w is None else w * loss, dx

    def project(self, h: Array, weight: Array, x: Array) -> None:
        """x = h @ weight.T, in the compute dtype. Here and below, all arrays are dense and have elements."""
        sizes = CODES[self.ops.dtype(h)], *self.ops.shape(h), self.ops.shape(weight)[0]
        self._run(native.project, sizes, h, weight, x)

    def pull(self, dx: Array, weight: Array, dh: Array) -> None:
        """dh = dx @ weight."""
        sizes = CODES[self.ops.dtype(weight)], *self.ops.shape(dh), self.ops.shape(weight)[0]
        self._run(native.pull, sizes, dx, weight, dh)

    def accumulate(self, dx: Array, h: Array, dw: Array) -> None:
        """dw += dx.T @ h."""
        sizes = CODES[self.ops.dtype(h)], *self.ops.shape(h), self.ops.shape(dw)[0]
        self._run(native.accumulate, sizes, dx, h, dw)

    def _problem(
        self, layout: Layout, x: Array, t: Array | None, u: Array | None, ids: Array | None
    ) -> tuple[tuple[Any, ...], tuple[Array | None, ...], Shape, str]:
        """What every kernel on rows starts with: numbers, and arrays; the rows' shape; the compute dtype."""
        name = self.ops.dtype(x)
        whole: Any = self.ops.shape(x)
        before, after = whole[: layout.axis], whole[layout.axis + 1 :]
        rows, dense = before + after, self.dense
        given = (
            dense(x, whole),
            None if t is None else dense(t, whole),
            None if u is None else dense(u, whole[layout.axis : layout.axis + 1]),
            None if ids is None else dense(ids, rows),
        )
        wide = ids is not None and self.ops.dtype(ids) == "int64"
        sizes = CODES[name], math.prod(before), whole[layout.axis], math.prod(after), wide
        return sizes, given, rows, computed_in(name)

    def _elements(
        self, e: float, x: Array, z: Array, p: Array | None, w: Array | None
    ) -> tuple[tuple[Any, ...], tuple[Array | None, ...], str]:
        """What every sigmoid kernel starts with: numbers, and arrays; the compute dtype."""
        name = self.ops.dtype(x)
        shape: Any = self.ops.shape(x)
        (p, *p_sizes), (w, *w_sizes) = self._pattern(p, shape), self._pattern(w, shape)
        sizes = CODES[name], math.prod(shape), e, *p_sizes, *w_sizes
        return sizes, (self.dense(x, shape), self.dense(z, shape), p, w), computed_in(name)

    def _run(self, kernel: Callable[..., Any], sizes: tuple[Any, ...], *arrays: Array | None) -> Any:
        """kernel(*sizes, threads, the arrays' addresses). `arrays` holds them while native code uses the addresses."""
        address = self.address
        return kernel(*sizes, self.threads(), *[0 if k is None else address(k) for k in arrays])
