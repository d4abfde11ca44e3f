"""The kernels as PyTorch operators, `torch.ops.xent.*`: what a tracer (torch.compile, make_fx, torch.jit.trace) records
in place of their arithmetic. They have no derivatives of their own; the adapter's autograd.Functions call them.

`OPERATORS` has each operator's schema and result shapes; `register` binds the kernels of one kind of device to them.
"""

from __future__ import annotations

from typing import Any

import torch
from xent.adapter import Layout, RowResults, Slopes

Array = Any
LIBRARY = torch.library.Library("xent", "DEF")
FLAGS = len(Layout._fields)
_LAYOUT = "int axis, bool hard, bool masked, bool lse, bool stats"
_ROWS = f"Tensor x, Tensor? t, Tensor? smoothing_weights, Tensor? ids, {_LAYOUT}"
_ELEMENTS = "float smoothing, Tensor x, Tensor targets, Tensor? pos_weight, Tensor? weight"


class Operators:
    """The methods of `Kernels`, through PyTorch's dispatcher, where an empty tensor stands for None."""

    def rows(
        self, layout: Layout, x: Array, t: Array | None, smoothing_weights: Array | None, ids: Array | None
    ) -> Any:
        return _row_results(layout, smoothing_weights, *torch.ops.xent.rows(x, t, smoothing_weights, ids, *layout))

    def rows_backward(
        self, layout: Layout, x: Array, t: Any, smoothing_weights: Any, ids: Any, stats: Any, up: Any, wanted: Any
    ) -> Any:
        dx, dt = torch.ops.xent.rows_backward(x, t, smoothing_weights, ids, *layout, *stats, *up, *wanted)
        return dx if wanted[0] else None, dt if wanted[1] else None

    def rows_value_and_grad(
        self, layout: Layout, x: Array, t: Any, smoothing_weights: Any, ids: Any, slopes: Slopes
    ) -> Any:
        like = torch.empty((), dtype=_compute(x), device=x.device)
        with torch.no_grad():
            given = (like.new_full((), k) if isinstance(k, float) else k for k in slopes)
            *results, dx = torch.ops.xent.rows_both(x, t, smoothing_weights, ids, *layout, *given)
        return _row_results(layout, smoothing_weights, *results), dx

    def mean_of_ids(self, axis: int, ignored: int | None, x: Array, ids: Array, derive: bool) -> tuple[Array, Array]:
        """An id that is no class makes its row NaN. On the CPU only."""
        both: tuple[Array, Array] = torch.ops.xent.mean_of_ids(axis, ignored, x, ids, derive)
        return both

    def sigmoid(self, smoothing: float, x: Array, targets: Array, pos_weight: Any, weight: Any, each: bool) -> Array:
        return torch.ops.xent.sigmoid(smoothing, x, targets, pos_weight, weight, each)

    def sigmoid_backward(
        self, smoothing: float, x: Array, targets: Array, pos_weight: Any, weight: Any, scale: Any, wanted: Any
    ) -> Any:
        dx, dz = torch.ops.xent.sigmoid_backward(smoothing, x, targets, pos_weight, weight, _scale(scale, x), *wanted)
        return dx if wanted[0] else None, dz if wanted[1] else None

    def sigmoid_value_and_grad(
        self, smoothing: float, x: Array, targets: Array, pos_weight: Any, weight: Any, upstream: Any, each: bool
    ) -> tuple[Array, Array]:
        both: tuple[Array, Array] = torch.ops.xent.sigmoid_both(
            smoothing, x, targets, pos_weight, weight, _scale(upstream, x), each
        )
        return both


def _row_results(
    layout: Layout, smoothing_weights: Any, nll: Array, lse: Any, smooth: Any, m: Array, s: Array, *for_stats: Array
) -> RowResults:
    lse, smooth = lse if layout.lse else None, None if smoothing_weights is None else smooth
    return RowResults(nll, lse, smooth, m, s, *(for_stats if layout.stats else ()))


def _compute(x: Array) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def _scale(upstream: Any, x: Array) -> Array:
    return torch.full((), upstream, dtype=torch.float64, device=x.device) if isinstance(upstream, float) else upstream


def _there(x: Array, *results: Any) -> Any:
    """The results with an empty tensor in the place of each None."""
    return tuple(x.new_empty(0, dtype=_compute(x)) if result is None else result for result in results)


# ---- shapes, for tracers


def _rows(x: Array, t: Any, smoothing_weights: Any, ids: Any, *flags: Any) -> Any:
    layout, shape, dtype = Layout(*flags), list(x.shape), _compute(x)
    axis = layout.axis
    flat, kept = shape[:axis] + shape[axis + 1 :], [*shape[:axis], 1, *shape[axis + 1 :]]
    gap_sum = kept if layout.stats else [0]
    sizes = (flat, flat if layout.lse else [0], [0] if smoothing_weights is None else flat, kept, kept, gap_sum)
    argmax = x.new_empty(gap_sum, dtype=ids.dtype if layout.stats else dtype)
    return *(x.new_empty(size, dtype=dtype) for size in sizes), argmax


def _rows_both(x: Array, t: Any, smoothing_weights: Any, ids: Any, *rest: Any) -> Any:
    return (*_rows(x, t, smoothing_weights, ids, *rest[:FLAGS]), x.new_empty(list(x.shape)))


def _gradients(x: Array, dx: bool, dt: bool) -> Any:
    return (x.new_empty(list(x.shape) if dx else [0]), x.new_empty(list(x.shape) if dt else [0], dtype=_compute(x)))


def _elements(x: Array, each: bool) -> Array:
    return x.new_empty(list(x.shape) if each else [], dtype=_compute(x))


OPERATORS: dict[str, Any] = {
    f"rows({_ROWS}) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)": _rows,
    f"rows_backward({_ROWS}, Tensor m, Tensor s, Tensor a, Tensor? b, Tensor? c, bool dx, bool dt)"
    " -> (Tensor, Tensor)": lambda x, *rest: _gradients(x, *rest[-2:]),
    f"rows_both({_ROWS}, Tensor nll_scale, Tensor? lse2, Tensor? smooth_scale)"
    " -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)": _rows_both,
    "mean_of_ids(int axis, SymInt? ignored, Tensor x, Tensor ids, bool derive) -> (Tensor, Tensor)": (
        lambda axis, ignored, x, ids, derive: (_elements(x, False), x.new_empty(list(x.shape) if derive else [0]))
    ),
    "factor(Tensor g, Tensor x) -> Tensor": lambda g, x: g.new_empty(list(g.shape)),
    f"sigmoid({_ELEMENTS}, bool each) -> Tensor": lambda smoothing, x, targets, pos_weight, weight, each: _elements(
        x, each
    ),
    f"sigmoid_backward({_ELEMENTS}, Tensor scale, bool dx, bool dz) -> (Tensor, Tensor)": (
        lambda smoothing, x, targets, pos_weight, weight, scale, dx, dz: _gradients(x, dx, dz)
    ),
    f"sigmoid_both({_ELEMENTS}, Tensor scale, bool each) -> (Tensor, Tensor)": (
        lambda smoothing, x, targets, pos_weight, weight, scale, each: (_elements(x, each), x.new_empty(list(x.shape)))
    ),
}


def define() -> Operators:
    for schema, shapes in OPERATORS.items():
        LIBRARY.define(schema)
        torch.library.register_fake(f"xent::{schema.partition('(')[0]}", shapes, lib=LIBRARY)
    return Operators()


# ---- the kernels behind the operators


def register(kernels: Any, key: str) -> None:
    """Makes the operators run these `Kernels` on tensors of one dispatch key."""

    def gradients(x: Array, dx: Any, dt: Any) -> Any:
        return x.new_empty(0) if dx is None else dx, *_there(x, dt)

    def rows(x: Array, t: Any, smoothing_weights: Any, ids: Any, *layout: Any) -> Any:
        return _there(x, *kernels.rows(Layout(*layout), x, t, smoothing_weights, ids))

    def rows_backward(x: Array, t: Any, smoothing_weights: Any, ids: Any, *rest: Any) -> Any:
        layout, (m, s, a, b, c, *wanted) = Layout(*rest[:FLAGS]), rest[FLAGS:]
        return gradients(x, *kernels.rows_backward(layout, x, t, smoothing_weights, ids, (m, s), (a, b, c), wanted))

    def rows_both(x: Array, t: Any, smoothing_weights: Any, ids: Any, *rest: Any) -> Any:
        layout, slopes = Layout(*rest[:FLAGS]), Slopes(*rest[FLAGS:])
        results, dx = kernels.rows_value_and_grad(layout, x, t, smoothing_weights, ids, slopes)
        return _there(x, *results, dx)

    def factor(g: Array, x: Array) -> Array:
        return g.clone()

    def sigmoid(*arguments: Any) -> Any:
        return kernels.sigmoid(*arguments)

    def sigmoid_backward(
        smoothing: float, x: Array, targets: Array, pos_weight: Any, weight: Any, scale: Array, *wanted: bool
    ) -> Any:
        return gradients(x, *kernels.sigmoid_backward(smoothing, x, targets, pos_weight, weight, scale, wanted))

    def sigmoid_both(*arguments: Any) -> Any:
        return kernels.sigmoid_value_and_grad(*arguments)

    def mean_of_ids(axis: int, ignored: int | None, x: Array, ids: Array, derive: bool) -> Any:
        x, ids = (kernels.dense(k, tuple(k.shape)) for k in (x, ids))
        mean, dx = kernels.mean_of_ids(axis, ignored, x, ids, derive, invalid_is_nan=True)
        return mean, x.new_empty(0) if dx is None else dx

    if key == "CPU":
        LIBRARY.impl("mean_of_ids", mean_of_ids, key)
    for run in (rows, rows_backward, rows_both, factor, sigmoid, sigmoid_backward, sigmoid_both):
        LIBRARY.impl(run.__name__, run, key)
