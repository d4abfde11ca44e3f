"""The kernels as PyTorch operators, `torch.ops.xent.*`: what a tracer (torch.compile, make_fx, torch.jit.trace) records
in place of their arithmetic. They have no derivatives of their own; the adapter's autograd.Functions call them."""

from __future__ import annotations

from typing import Any

import torch
from xent._adapter import Layout

from .calls import Kernels

Array = Any
LIBRARY = torch.library.Library("xent", "DEF")
_ROWS = "Tensor x, Tensor? t, Tensor? u, Tensor? ids, int axis, bool hard, bool masked, bool lse"
_ELEMENTS = "float e, Tensor x, Tensor z, Tensor? p, Tensor? w"


class Operators:
    """`Kernels`, through the dispatcher. What is not there is an empty tensor in between."""

    def rows(self, lay: Layout, x: Array, t: Array | None, u: Array | None, ids: Array | None) -> Any:
        loss, lse, smooth, m, s = torch.ops.xent.rows(x, t, u, ids, *lay)
        return (loss, lse if lay.lse else None, None if u is None else smooth, m), (m, s)

    def rows_backward(self, lay: Layout, x: Array, t: Any, u: Any, ids: Any, stats: Any, up: Any, wanted: Any) -> Any:
        dx, dt = torch.ops.xent.rows_backward(x, t, u, ids, *lay, *stats, *up, *wanted)
        return dx if wanted[0] else None, dt if wanted[1] else None

    def rows_both(self, lay: Layout, x: Array, t: Any, u: Any, ids: Any, *slopes: Any) -> Any:
        like = torch.empty((), dtype=_compute(x), device=x.device)
        with torch.no_grad():
            given = (like.new_full((), k) if isinstance(k, float) else k for k in slopes)
            loss, lse, smooth, m, dx = torch.ops.xent.rows_both(x, t, u, ids, *lay, *given)
        return (loss, lse if lay.lse else None, None if u is None else smooth, m), dx

    def sigmoid(self, e: float, x: Array, z: Array, p: Any, w: Any, each: bool) -> Array:
        return torch.ops.xent.sigmoid(e, x, z, p, w, each)

    def sigmoid_backward(self, e: float, x: Array, z: Array, p: Any, w: Any, scale: Any, wanted: Any) -> Any:
        dx, dz = torch.ops.xent.sigmoid_backward(e, x, z, p, w, _scale(scale), *wanted)
        return dx if wanted[0] else None, dz if wanted[1] else None

    def sigmoid_both(self, e: float, x: Array, z: Array, p: Any, w: Any, g: Any, each: bool) -> tuple[Array, Array]:
        both: tuple[Array, Array] = torch.ops.xent.sigmoid_both(e, x, z, p, w, _scale(g), each)
        return both


def _compute(x: Array) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def _scale(g: Any) -> Array:
    return torch.full((), g, dtype=torch.float64) if isinstance(g, float) else g


def _define(schema: str, run: Any, shapes: Any) -> None:
    name = schema.partition("(")[0]
    LIBRARY.define(schema)
    LIBRARY.impl(name, run, "CPU")
    torch.library.register_fake(f"xent::{name}", shapes, lib=LIBRARY)


def register(kernels: Kernels) -> Operators:
    def there(x: Array, *results: Any) -> Any:
        """A tensor in the place of each None."""
        return tuple(x.new_empty(0, dtype=_compute(x)) if result is None else result for result in results)

    def gradients(x: Array, dx: Any, dt: Any) -> Any:
        return x.new_empty(0) if dx is None else dx, *there(x, dt)

    def rows(x: Array, t: Any, u: Any, ids: Any, *lay: Any) -> Any:
        results, stats = kernels.rows(Layout(*lay), x, t, u, ids)
        return there(x, *results[:3], *stats)

    def rows_shapes(x: Array, t: Any, u: Any, ids: Any, axis: int, hard: bool, masked: bool, lse: bool) -> Any:
        shape, dtype = list(x.shape), _compute(x)
        flat, kept = shape[:axis] + shape[axis + 1 :], [*shape[:axis], 1, *shape[axis + 1 :]]
        sizes = (flat, flat if lse else [0], [0] if u is None else flat, kept, kept)
        return tuple(x.new_empty(size, dtype=dtype) for size in sizes)

    _define(f"rows({_ROWS}) -> (Tensor, Tensor, Tensor, Tensor, Tensor)", rows, rows_shapes)

    def rows_backward(x: Array, t: Any, u: Any, ids: Any, *rest: Any) -> Any:
        lay, stats, up, wanted = Layout(*rest[:4]), rest[4:6], rest[6:9], rest[9:]
        return gradients(x, *kernels.rows_backward(lay, x, t, u, ids, stats, up, wanted))

    def gradient_shapes(x: Array, dx: bool, dt: bool) -> Any:
        return (
            x.new_empty(list(x.shape) if dx else [0]),
            x.new_empty(list(x.shape) if dt else [0], dtype=_compute(x)),
        )

    _define(
        f"rows_backward({_ROWS}, Tensor m, Tensor s, Tensor a, Tensor? b, Tensor? c, bool dx, bool dt)"
        " -> (Tensor, Tensor)",
        rows_backward,
        lambda x, *rest: gradient_shapes(x, *rest[-2:]),
    )

    def rows_both(x: Array, t: Any, u: Any, ids: Any, *rest: Any) -> Any:
        results, dx = kernels.rows_both(Layout(*rest[:4]), x, t, u, ids, *rest[4:])
        return there(x, *results, dx)

    _define(
        f"rows_both({_ROWS}, Tensor a, Tensor? z, Tensor? c) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
        rows_both,
        lambda x, t, u, ids, *rest: (*rows_shapes(x, t, u, ids, *rest[:4])[:4], x.new_empty(list(x.shape))),
    )

    def elements(x: Array, each: bool) -> Array:
        return x.new_empty(list(x.shape) if each else [], dtype=_compute(x))

    _define(
        f"sigmoid({_ELEMENTS}, bool each) -> Tensor", kernels.sigmoid, lambda e, x, z, p, w, each: elements(x, each)
    )

    def sigmoid_backward(e: float, x: Array, z: Array, p: Any, w: Any, scale: Array, *wanted: bool) -> Any:
        return gradients(x, *kernels.sigmoid_backward(e, x, z, p, w, scale, wanted))

    _define(
        f"sigmoid_backward({_ELEMENTS}, Tensor scale, bool dx, bool dz) -> (Tensor, Tensor)",
        sigmoid_backward,
        lambda e, x, z, p, w, scale, dx, dz: gradient_shapes(x, dx, dz),
    )
    _define(
        f"sigmoid_both({_ELEMENTS}, Tensor scale, bool each) -> (Tensor, Tensor)",
        kernels.sigmoid_both,
        lambda e, x, z, p, w, scale, each: (elements(x, each), x.new_empty(list(x.shape))),
    )
    return Operators()
