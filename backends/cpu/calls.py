"""From a framework's arrays to the addresses that the native kernels take, once for all adapters.

Every array is made dense first: of its full shape, C-contiguous, in the machine's byte order. Nearly all are already,
and then nothing is copied. Only `Kernels._run` turns arrays into addresses; it keeps the arrays alive during the call.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from xent.adapter import Array, Layout, Ops, RowResults, Scalar, Slopes, computed_in
from xent.backends.dense import DenseArrays, Shape

from . import native as _native

native: Any = _native  # None: there are none
CODES = {"float32": 0, "float64": 1, "float16": 2, "bfloat16": 3}  # _native's F32, F64, F16, BF16
FLOAT32_MAX = (2 - 2.0**-23) * 2.0**127


@dataclass(frozen=True, eq=False)
class Kernels(DenseArrays):
    """The kernels on one framework's arrays. The caller has checked that they are in host memory."""

    address: Callable[[Array], int]
    turn: Callable[[Array, int, int], Array]  # a view with an axis moved to another place
    threads: Callable[[], int]  # the largest number of threads; 0: the kernels choose

    def rows(
        self, layout: Layout, x: Array, t: Array | None, smoothing_weights: Array | None, ids: Array | None
    ) -> RowResults:
        """`SoftmaxKernels.rows`, without derivatives."""
        sizes, given, shape, dtype = self._problem(layout, x, t, smoothing_weights, ids)
        results = self._row_results(layout, x, smoothing_weights, ids, shape, dtype)
        self._run(native.rows_forward, sizes, **given, **_outputs(results))
        return results

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
        sizes, given, shape, dtype = self._problem(layout, x, t, smoothing_weights, ids)
        m, s = (self.dense(k, (*shape[: layout.axis], 1, *shape[layout.axis :])) for k in stats)
        a, b, c = (self._per_row(k, shape, dtype, x) for k in coefficients)
        dx = self.empty(self.ops.shape(x), self.ops.dtype(x), x) if wanted[0] else None
        dt = self.empty(self.ops.shape(x), dtype, x) if wanted[1] else None
        self._run(native.rows_backward, sizes, **given, m=m, s=s, a=a, b=b, c=c, dx=dx, dt=dt)
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
        sizes, given, shape, dtype = self._problem(layout, x, t, smoothing_weights, ids)
        a, z, c = (self._per_row(k, shape, dtype, x) for k in slopes)
        results = self._row_results(layout, x, smoothing_weights, ids, shape, dtype)
        dx = given["x"] if self.in_place else self.empty(self.ops.shape(x), self.ops.dtype(x), x)
        self._run(native.rows_both, sizes, **given, a=a, z=z, c=c, **_outputs(results), dx=dx)
        return results, dx

    def mean_value_and_grad(
        self, layout: Layout, x: Array, t: Array | None, ids: Array | None, count: int
    ) -> tuple[Array, Array]:
        """`SoftmaxKernels.mean_value_and_grad`."""
        sizes, given, _, dtype = self._problem(layout, x, t, None, ids)
        dx = self.empty(self.ops.shape(x), self.ops.dtype(x), x)
        mean = self._run(native.mean_both, {**sizes, "n": count}, **given, dx=dx)
        return self.ops.full((), mean, dtype, x), dx

    def mean_of_ids(
        self, axis: int, ignored: int | None, x: Array, ids: Array, derive: bool, invalid_is_nan: bool = False
    ) -> tuple[Array, Array | None] | None:
        """The mean loss of dense logits with dense class ids, and its derivative where that is asked for.

        None where a dtype or shape needs a change, or an error sentence, or an id is no class and not ignored.
        """
        place = axis_if_taken(self.ops, axis, ignored, x, ids)
        if place is None:
            return None
        name = self.ops.dtype(x)
        dx = self.empty(self.ops.shape(x), name, x) if derive else None
        sizes = self._row_sizes(place, x, ids)
        options = {"ignored": ignored, "invalid_is_nan": invalid_is_nan}
        mean = self._run(native.mean_of_ids, {**sizes, **options}, x=x, ids=ids, dx=dx)
        return None if mean is None else (self.ops.full((), mean, computed_in(name), x), dx)

    def sigmoid(
        self, smoothing: float, x: Array, targets: Array, pos_weight: Array | None, weight: Array | None, each: bool
    ) -> Array:
        """Where `each`, every element's unweighted loss, 0 where the weight is 0; else sum(weight loss), 0-d."""
        sizes, given, dtype = self._elements(smoothing, x, targets, pos_weight, weight)
        loss = self.empty(self.ops.shape(x), dtype, x) if each else None
        total = self._run(native.sigmoid_forward, sizes, **given, loss=loss)
        return self._total(total, dtype, x) if loss is None else loss

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
        sizes, given, dtype = self._elements(smoothing, x, targets, pos_weight, weight)
        dx = self.empty(self.ops.shape(x), self.ops.dtype(x), x) if wanted[0] else None
        dz = self.empty(self.ops.shape(x), dtype, x) if wanted[1] else None
        self._run(native.sigmoid_backward, {**sizes, "scale": float(scale)}, **given, dx=dx, dz=dz)
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
        sizes, given, dtype = self._elements(smoothing, x, targets, pos_weight, weight)
        loss = self.empty(self.ops.shape(x), dtype, x) if each else None
        dx = self.empty(self.ops.shape(x), self.ops.dtype(x), x)
        total = self._run(native.sigmoid_both, {**sizes, "scale": float(upstream)}, **given, loss=loss, dx=dx)
        if loss is None:
            return self._total(total, dtype, x), dx
        return loss if weight is None else weight * loss, dx

    def _total(self, total: float, dtype: str, x: Array) -> Array:
        """0-d. The kernels add up in float64; PyTorch makes no float32 of a number beyond its range."""
        overflows = dtype == "float32" and abs(total) > FLOAT32_MAX
        return self.ops.full((), math.copysign(math.inf, total) if overflows else total, dtype, x)

    def entropy(self, axis: int, x: Array, weight: Array | None, derive: bool) -> tuple[Array, Array | None]:
        """`EntropyKernels.value_and_grad`, without the derivative where that is not asked for.

        The kernel wants the classes side by side; other logits are turned, and their derivative is turned back.
        """
        turned = self.turn(x, axis, -1)
        shape: Any = self.ops.shape(turned)
        dtype = computed_in(self.ops.dtype(x))
        given = {"x": self.dense(turned, shape), "weight": self._per_row(weight, shape[:-1], dtype, x)}
        sizes = {"dtype": CODES[self.ops.dtype(x)], "rows": math.prod(shape[:-1]), "classes": shape[-1]}
        entropy = self.empty(shape[:-1], dtype, x)
        dx = self.empty(shape, self.ops.dtype(x), x) if derive else None
        self._run(native.entropy, sizes, **given, entropy=entropy, dx=dx)
        return entropy, None if dx is None else self.dense(self.turn(dx, -1, axis), self.ops.shape(x))

    def project(self, hidden: Array, weight: Array, x: Array) -> None:
        """x = hidden @ weight.T, in the compute dtype. Here and below, all arrays are dense and have elements."""
        sizes = self._matrices(hidden, self.ops.shape(hidden), self.ops.shape(weight)[0])
        self._run(native.project, sizes, hidden=hidden, weight=weight, x=x)

    def pull(self, dx: Array, weight: Array, dhidden: Array) -> None:
        """dhidden = dx @ weight."""
        sizes = self._matrices(weight, self.ops.shape(dhidden), self.ops.shape(weight)[0])
        self._run(native.pull, sizes, dx=dx, weight=weight, dhidden=dhidden)

    def accumulate(self, dx: Array, hidden: Array, dweight: Array) -> None:
        """dweight += dx.T @ hidden."""
        sizes = self._matrices(hidden, self.ops.shape(hidden), self.ops.shape(dweight)[0])
        self._run(native.accumulate, sizes, dx=dx, hidden=hidden, dweight=dweight)

    def _matrices(self, typed: Array, rows: Any, classes: Any) -> dict[str, Any]:
        return {"dtype": CODES[self.ops.dtype(typed)], "rows": rows[0], "features": rows[1], "classes": classes}

    def _problem(
        self, layout: Layout, x: Array, t: Array | None, smoothing_weights: Array | None, ids: Array | None
    ) -> tuple[dict[str, Any], dict[str, Array | None], Shape, str]:
        """Arguments of all kernels on rows, numbers and arrays by name; the rows' shape; the compute dtype."""
        given, before, _, after = self._dense_rows(layout, x, t, smoothing_weights, ids)
        return self._row_sizes(layout.axis, x, ids), given, before + after, computed_in(self.ops.dtype(x))

    def _row_sizes(self, axis: int, x: Array, ids: Array | None) -> dict[str, Any]:
        shape: Any = self.ops.shape(x)
        return {
            "dtype": CODES[self.ops.dtype(x)],
            "outer": math.prod(shape[:axis]),
            "classes": shape[axis],
            "inner": math.prod(shape[axis + 1 :]),
            "wide": ids is not None and self.ops.dtype(ids) == "int64",
        }

    def _elements(
        self, smoothing: float, x: Array, targets: Array, pos_weight: Array | None, weight: Array | None
    ) -> tuple[dict[str, Any], dict[str, Array | None], str]:
        """Arguments of all sigmoid kernels, numbers and arrays by name; the compute dtype."""
        name = self.ops.dtype(x)
        shape: Any = self.ops.shape(x)
        sizes = {"dtype": CODES[name], "n": math.prod(shape), "smoothing": smoothing}
        given = {"x": self.dense(x, shape), "targets": self.dense(targets, shape)}
        for argument, array in (("pos_weight", pos_weight), ("weight", weight)):
            given[argument], sizes[f"{argument}_length"], sizes[f"{argument}_inner"] = self._pattern(array, shape)
        return sizes, given, computed_in(name)

    def _run(self, kernel: Callable[..., Any], sizes: dict[str, Any], **arrays: Array | None) -> Any:
        """Calls a kernel with the arrays' addresses; `arrays` keeps them alive until it returns."""
        address = self.address
        addresses = {name: 0 if k is None else address(k) for name, k in arrays.items()}
        return kernel(**sizes, threads=self.threads(), **addresses)


def axis_if_taken(ops: Ops, axis: int, ignored: int | None, x: Array, ids: Array) -> int | None:
    """Where the classes are, counted from the front, if `mean_of_ids` takes such arguments."""
    shape: Any = ops.shape(x)
    rank = len(shape)
    if not -rank <= axis < rank or ops.dtype(x) not in CODES or ops.dtype(ids) not in ("int32", "int64"):
        return None
    if ignored is not None and not -(2**63) <= ignored < 2**63:
        return None
    place = axis % rank
    return place if shape[place] and ops.shape(ids) == shape[:place] + shape[place + 1 :] else None


def _outputs(results: RowResults) -> dict[str, Array | None]:
    """By the kernels' names."""
    nll, *others = results
    return {"loss": nll, **dict(zip(RowResults._fields[1:], others, strict=True))}
