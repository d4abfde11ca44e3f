"""From PyTorch's tensors to launches of the Triton kernels: what `backends.cpu.calls.Kernels` is to the native ones.

Nothing here waits for the device or reads from it, so that CUDA graphs can hold all of it. Launches go to the current
stream of the logits' own device. How rows are cut up follows from shapes alone: the same call, the same bits.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import triton.language as tl
from xent import formulas
from xent.adapter import Array, Layout, RowResults, Scalar, Slopes
from xent.backends.dense import DenseArrays, Shape

from . import kernels

# Elements of a tile: 16 for each thread of 16 warps, so that several tiles share a multiprocessor and the loads of one
# overlap the sums of another. A row of up to twice as many classes is still one tile, with 32 elements a thread.
TILE = 8192
SMALL = 2048  # elements of a tile of short rows, which do not need many threads for one row
BESIDE = 64  # rows side by side in a tile where the class axis is not the last: 128 bytes of 16-bit logits
PART = 4096  # elements of a part of a row, where there are too few rows for the whole device
FEW = 256  # a grid of fewer programs is refined: this is about two for each multiprocessor of a large device
ELEMENTS = 4096  # elements for each program of the sigmoid kernel


class Cut(NamedTuple):
    """How [outer, classes, inner] is cut: `rows` x `classes` a tile, as powers of 2, and `parts` to a row."""

    sizes: tuple[int, int, int]
    rows: int
    classes: int

    @property
    def total(self) -> int:
        """How many rows there are."""
        return self.sizes[0] * self.sizes[2]

    @property
    def columns(self) -> bool:
        """A tile's rows have one `outer` in common."""
        return self.sizes[2] >= self.rows > 1

    @property
    def tiles(self) -> int:
        """How many for each `outer`, where they are `columns`."""
        return quotient(self.sizes[2], self.rows)

    @property
    def parts(self) -> int:
        return quotient(self.sizes[1], self.classes)

    @property
    def grid(self) -> tuple[int, int]:
        rows = self.sizes[0] * self.tiles if self.columns else quotient(self.total, self.rows)
        return rows, self.parts


def quotient(a: int, b: int) -> int:
    """Rounded up."""
    return -(-a // b)


def power(n: int) -> int:
    """The smallest power of 2 that is at least n."""
    return 1 << max(n - 1, 0).bit_length()


def options(elements: int) -> dict[str, Any]:
    """Compiler options for tiles of so many elements. Triton is about to change its default for fused products."""
    return {"num_warps": min(max(elements // 512, 1), 16), "enable_fp_fusion": True}


def cut(outer: int, classes: int, inner: int, wide: bool) -> Cut:
    """Whole rows in a tile where they fit, else parts; also parts where there are too few rows for the device."""
    tile = TILE // 2 if wide else TILE
    rows, columns = min(power(inner), BESIDE), power(classes)
    if rows * columns > (2 * tile if inner == 1 else tile):
        columns = tile // rows
    else:
        rows = max(rows, SMALL // columns)
    found = Cut((outer, classes, inner), rows, columns)
    least = 1 if inner == 1 else BESIDE // 2
    while math.prod(found.grid) < FEW and found.rows > least and found.rows * found.classes > SMALL // 4:
        found = found._replace(rows=found.rows // 2)
    while math.prod(found.grid) < FEW and found.rows * found.classes > PART:
        found = found._replace(classes=found.classes // 2)
    return found


class Rows(NamedTuple):
    """Dense arguments of the kernels on rows."""

    x: Array
    t: Array | None
    u: Array | None
    ids: Array | None
    total: Array | None  # sum of u
    cut: Cut
    shape: Shape
    dtype: str

    @property
    def arrays(self) -> tuple[Array | None, ...]:
        return self.x, self.t, self.u, self.ids, self.total

    @property
    def tile(self) -> dict[str, Any]:
        """Arguments that every kernel on tiles ends with."""
        _, classes, inner = self.cut.sizes
        return {
            "classes": classes,
            "inner": inner,
            "count": self.cut.total,
            "tiles": self.cut.tiles,
            "T": KINDS[self.dtype],
            "COLUMNS": self.cut.columns,
            "R": self.cut.rows,
            "B": self.cut.classes,
            **options(self.cut.rows * self.cut.classes),
        }


KINDS = {"float32": tl.float32, "float64": tl.float64}


@dataclass(frozen=True, eq=False)
class Kernels(DenseArrays):
    """The kernels on tensors of one CUDA device."""

    def rows(
        self, layout: Layout, x: Array, t: Array | None, smoothing_weights: Array | None, ids: Array | None
    ) -> RowResults:
        """`SoftmaxKernels.rows`, without derivatives."""
        rows = self._rows(layout, x, t, smoothing_weights, ids)
        results, stats = self._outputs(layout, rows)
        with torch.cuda.device_of(x):
            self._forward(rows, results, stats, Slopes(None))
        return RowResults(*results, *stats)

    def rows_backward(
        self,
        layout: Layout,
        x: Array,
        t: Array | None,
        smoothing_weights: Array | None,
        ids: Array | None,
        stats: tuple[Array, ...],
        coefficients: tuple[Scalar | None, ...],
        wanted: tuple[bool, ...],
    ) -> tuple[Array | None, Array | None]:
        """The derivatives of sum(a loss + b lse + c smooth) in x and t, those that are wanted."""
        rows = self._rows(layout, x, t, smoothing_weights, ids)
        a, b, c = (self._per_row(k, rows.shape, rows.dtype, x) for k in coefficients)
        share = None if rows.t is None or rows.cut.parts == 1 else rows.t.sum(layout.axis)
        dx = torch.empty_like(rows.x) if wanted[0] else None
        dt = torch.empty_like(rows.x, dtype=stats[0].dtype) if wanted[1] else None
        with torch.cuda.device_of(x):
            self._pull(rows, a, b, c, *stats, share, dx, dt)
        return dx, dt

    def rows_value_and_grad(
        self,
        layout: Layout,
        x: Array,
        t: Array | None,
        smoothing_weights: Array | None,
        ids: Array | None,
        slopes: Slopes,
    ) -> tuple[RowResults, Array]:
        """`SoftmaxKernels.rows_value_and_grad`."""
        rows = self._rows(layout, x, t, smoothing_weights, ids)
        slopes = Slopes(*(self._per_row(k, rows.shape, rows.dtype, x) for k in slopes))
        results, stats = self._outputs(layout, rows)
        dx = rows.x if self.in_place else torch.empty_like(rows.x)
        with torch.cuda.device_of(x):
            if rows.cut.parts == 1:
                self._forward(rows, results, stats, slopes, dx)
            else:
                a, lse2, c = slopes
                b = None if lse2 is None else torch.empty_like(a)
                share = None if t is None else torch.empty_like(a)
                self._forward(rows, results, stats, slopes, kept=(b, share))
                self._pull(rows, a, b, c, *stats[:2], share, dx, None)
        return RowResults(*results, *stats), dx

    def _rows(
        self, layout: Layout, x: Array, t: Array | None, smoothing_weights: Array | None, ids: Array | None
    ) -> Rows:
        given, before, classes, after = self._dense_rows(layout, x, t, smoothing_weights, ids)
        return Rows(
            **given,
            total=None if smoothing_weights is None else smoothing_weights.sum(),
            cut=cut(math.prod(before), classes, math.prod(after), x.dtype == torch.float64),
            shape=before + after,
            dtype=formulas.compute_dtype(self.ops, x),
        )

    def _outputs(self, layout: Layout, rows: Rows) -> Any:
        """(nll, lse, smooth) and (m, s, gap_sum, argmax)."""
        found = self._row_results(layout, rows.x, rows.u, rows.ids, rows.shape, rows.dtype)
        return found[:3], found[3:]

    def _forward(
        self, rows: Rows, results: Any, stats: Any, slopes: Slopes, dx: Any = None, kept: Any = (None, None)
    ) -> None:
        cut, count, for_stats = rows.cut, rows.cut.total, stats[-1] is not None
        if not count:
            return
        if cut.parts == 1:
            kernels.statistics[cut.grid](
                *rows.arrays, *slopes, *stats, *results, dx, None, STATS=for_stats, **rows.tile
            )
            return
        numbers = 6 if rows.u is not None else 4 if rows.t is not None or for_stats else 2  # of a part of a row
        parts = stats[0].new_empty((numbers, cut.parts, count))
        nowhere = (None,) * (len(stats) + len(results) + 1)
        kernels.statistics[cut.grid](*rows.arrays, *Slopes(None), *nowhere, parts, STATS=for_stats, **rows.tile)
        _, classes, inner = cut.sizes
        columns = power(cut.parts)
        beside = max(512 // columns, 1)
        kernels.merge[(quotient(count, beside),)](
            parts,
            rows.x,
            rows.ids,
            rows.total,
            slopes.lse2,
            *stats,
            *results,
            *kept,
            cut.parts,
            cut.classes,
            classes,
            inner,
            count,
            T=KINDS[rows.dtype],
            HARD=rows.t is None,
            SMOOTH=rows.u is not None,
            R=beside,
            S=columns,
            **options(beside * columns),
        )

    def _pull(self, rows: Rows, *arrays: Array | None) -> None:
        if rows.cut.total:
            kernels.gradient[rows.cut.grid](*rows.arrays, *arrays, **rows.tile)

    def sigmoid(
        self, smoothing: float, x: Array, targets: Array, pos_weight: Array | None, weight: Array | None, each: bool
    ) -> Array:
        """Where `each`, every element's unweighted loss, 0 where the weight is 0; else sum(weight loss), 0-d."""
        loss, total = self._elements(smoothing, x, targets, pos_weight, weight, None, each, not each)[:2]
        return loss if each else total

    def sigmoid_backward(
        self,
        smoothing: float,
        x: Array,
        targets: Array,
        pos_weight: Array | None,
        weight: Array | None,
        scale: Scalar,
        wanted: tuple[bool, ...],
    ) -> tuple[Array | None, Array | None]:
        """The derivatives of scale * sum(weight loss) in x and targets, those that are wanted."""
        _, _, dx, dz = self._elements(smoothing, x, targets, pos_weight, weight, scale, False, False, *wanted)
        return dx, dz

    def sigmoid_value_and_grad(
        self,
        smoothing: float,
        x: Array,
        targets: Array,
        pos_weight: Array | None,
        weight: Array | None,
        upstream: Scalar,
        each: bool,
    ) -> tuple[Array, Array]:
        """`SigmoidKernels.value_and_grad`."""
        loss, total, dx, _ = self._elements(smoothing, x, targets, pos_weight, weight, upstream, each, not each, True)
        return total if loss is None else loss if weight is None else weight * loss, dx

    def _repeated(self, k: Array | None, shape: Any) -> tuple[Array | None, int | None, int]:
        array, length, inner = self._pattern(k, shape)
        return array, length if length == 1 or length * inner < math.prod(shape) else None, inner

    def _elements(
        self, smoothing: float, x: Array, targets: Array, pos_weight: Any, weight: Any, scale: Any, *wanted: bool
    ) -> tuple[Any, Any, Any, Any]:
        """(loss, its sum, the derivative in x, that in targets), each None unless wanted."""
        shape: Any = self.ops.shape(x)
        kind = formulas.compute_dtype(self.ops, x)
        dtype = getattr(torch, kind)
        x, targets = self.dense(x, shape), self.dense(targets, shape)
        count = x.numel()
        programs = quotient(count, ELEMENTS)
        each, total, dx, dz = (*wanted, False, False)[:4]
        loss = torch.empty_like(x, dtype=dtype) if each else None
        sums = x.new_empty(programs, dtype=dtype) if total else None
        slopes = torch.empty_like(x) if dx else None, torch.empty_like(targets) if dz else None
        if isinstance(scale, float):  # Triton passes Python floats as 32 bits
            scale = None if scale == 1 else torch.full((), scale, dtype=dtype, device=x.device)
        with torch.cuda.device_of(x):
            if count:
                kernels.elements[(programs,)](
                    x,
                    targets,
                    *self._repeated(pos_weight, shape),
                    *self._repeated(weight, shape),
                    scale,
                    loss,
                    sums,
                    *slopes,
                    count,
                    SMOOTHING=float(smoothing),
                    T=KINDS[kind],
                    LONG=count + ELEMENTS >= 2**31,
                    B=ELEMENTS,
                    **options(ELEMENTS),
                )
        return loss, None if sums is None else sums.sum(), *slopes
