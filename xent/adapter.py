"""The contract: what a framework must bring so that xent's losses run on its arrays.

An adapter is two frozen records of functions. `Ops` is array glue and a few formulas' worth of mathematics, in
array-API spelling; `Adapter` adds the two losses' kernels, which carry the framework's own derivative rules. A
missing field is a `TypeError` when the adapter's module is imported. docs/backends.md walks through a whole one.

Conventions: `axis` is never negative. "The compute dtype" is float64 for logits of float64, else float32.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

Array = Any  # an array of the adapter's framework
Scalar = Any  # a Python number or a 0-d array

ABSENT = -2  # in `ids`: the row is masked, its loss and its gradient are exactly 0
INVALID = -1  # in `ids`: the row's class id is out of range, its loss and its gradient are NaN


def computed_in(dtype: str) -> str:
    """What logits of a dtype are computed in: 16 bits are read and written as they are, and 32 in between."""
    return "float64" if dtype == "float64" else "float32"


@dataclass(frozen=True, eq=False)
class UnknownShapes:
    """How shapes are checked when a graph runs, for frameworks that trace graphs before shapes or ranks are known.

    "Lengths" are a shape as the graph has it: a tuple of ints, and of 0-d arrays of int64 where `Ops.shape` has None;
    of an array of unknown rank, one 1-d array of int64.
    """

    ranked: Callable[[Array], bool]  # whether the rank is known; `Ops.shape` may be asked of no other array
    lengths: Callable[[Array], Any]
    # (value, condition, words, shape) -> value, made to fail when it runs if the 0-d bool `condition` is False, with a
    #   message of `words`: strings and lengths; shape: as far as it is known if the condition holds
    require: Callable[[Array, Array, list[Any], Any], Array]
    # (value, lengths, shape, rule) -> value, made to fail when it runs if its shape beside `lengths` is against the
    #   `_check.ShapeRule`. `shape` is `lengths` as far as they are known, and value comes back with so many axes, or
    #   fewer if it had; None where not even their number is known, and value comes back as it was.
    fit: Callable[[Array, Any, tuple[int | None, ...] | None, Any], Array]
    # (x, axis) -> (x as [before, classes, after], or as [before, classes] for an axis of -1, or as [elements] for None;
    #   lengths of x; lengths of x without the axis). x is of unknown rank.
    flatten: Callable[[Array, int | None], tuple[Array, Any, Any]]
    # (value, lengths, flat) -> value, broadcast to `lengths`, in an array of the lengths `flat`
    spread: Callable[[Array, Any, Any], Array]
    reshape: Callable[[Array, Any], Array]  # (x, lengths)


@dataclass(frozen=True, eq=False)
class Ops:
    """Facts about arrays, array glue, and the pieces of xent's formulas that a framework has a best way to do."""

    # facts
    dtype: Callable[[Array], str]  # the dtype's NumPy name: "float32", "bfloat16", "int64", "bool"
    shape: Callable[[Array], tuple[int | None, ...]]  # None: a dimension that is not known while a graph is traced
    device: Callable[[Array], str]  # for people: "cpu", "cuda:0"
    host: Callable[[Array], Any]  # the values as a NumPy array if they are concrete and in host memory, else None
    fetch: Callable[[Array], Any]  # the same from any device, copying and waiting where it must

    # arrays
    asarray: Callable[[Any, Array], Array]  # (value, like): a NumPy array or this framework's, on like's device
    astype: Callable[[Array, str], Array]  # the same array where the dtype is the same
    integer: Callable[[Array], Array]  # ids, comparable with 0, with any class count and any int their dtype holds;
    #   what does not fit may be negative, as uint64 is in int64
    where: Callable[[Array, Any, Any], Array]
    expand_dims: Callable[[Array, int], Array]
    squeeze: Callable[[Array, int], Array]
    zeros_like: Callable[[Array], Array]
    full: Callable[[tuple[int, ...], float, str, Array], Array]  # (shape, value, dtype, like): on like's device
    take: Callable[[Array, Array], Array]  # table[ids]: 1-d table, ids of any shape, all in range
    size: Callable[[Array], Scalar]  # how many elements; a 0-d array of any real dtype where that is not known
    stop_gradient: Callable[[Array], Array]

    # mathematics, elementwise
    exp: Callable[[Array], Array]
    log1p: Callable[[Array], Array]
    abs: Callable[[Array], Array]

    # mathematics along an axis; every result keeps the axis, with length 1
    max: Callable[[Array, int], Array]
    sum: Callable[[Array, int | None], Array]  # blocked or pairwise; None: over everything, to a 0-d array
    top: Callable[[Array, int], tuple[Array, Array]]  # max m; sum of exp(x - m) over all but *one* place of m
    pick: Callable[[Array, Array, int], Array]  # (x, ids, axis): x at ids; ids keeps the axis
    put: Callable[[Array, Array, Array, int], Array]
    #   (x, ids, values, axis): x with values at ids; may be x itself where the framework has no differentiation

    unknown: UnknownShapes | None = None  # for frameworks that trace graphs whose shapes are not known
    # whether a compiler is tracing that turns NumPy's arrays into this framework's too (torch.compile does)
    adopts_numpy: Callable[[], bool] = lambda: False
    # what an array is that is not dense, if its type does not say so: "sparse", "nested", "masked"; else None
    layout: Callable[[Array], str | None] = lambda _x: None
    index_dtype: str = "int64"  # what `take`, `pick` and `put` want their ids in


def call(function: Callable[..., Any], static: Any, *arrays: Any) -> Any:
    """`Adapter.run` for a framework with nothing better."""
    return function(static, *arrays)


class Layout(NamedTuple):
    """What a softmax kernel knows before it sees a number; hashable, so that a compiler may specialise on it."""

    axis: int  # the class axis, never negative
    hard: bool  # labels are class ids, not distributions
    masked: bool  # ids may be negative: ABSENT or INVALID
    lse: bool  # the log-sum-exp itself is asked for


@dataclass(frozen=True, eq=False)
class Linear:
    """What `linear_ce` takes: products of matrices, a loop over chunks of rows, and a derivative rule around both.

    N rows, R of them in a chunk, D features, C classes. Where arrays can be changed, `tanh`, `rows_both` and
    `accumulate` may write over their first array.
    """

    ops: Ops
    rows: Callable[..., tuple[Array, ...]]  # `Adapter.rows`, for logits [R, C] in the compute dtype
    rows_both: Callable[..., tuple[tuple[Array, ...], Array]]  # `Adapter.rows_both`, for the same
    tanh: Callable[[Array], Array]
    # the same, changing nothing, and a product of matrices h @ weight.T, for every transform of the framework
    smooth_tanh: Callable[[Array], Array]
    matmul: Callable[[Array, Array], Array]
    flat: Callable[[Array, int], Array]  # (x, kept): all axes in one, but the last `kept`
    shaped: Callable[[Array, Array], Array]  # (x, like): x in like's shape
    # The products take and sum float64 in float64; for 16 bits and float32 sums and results are float32.
    # (h [R, D], weight [C, D], over) -> h @ weight.T, in `over` where that is not None
    project: Callable[[Array, Array, Array | None], Array]
    # (R, C, dtype, like) -> memory that every chunk's logits go to; None where they have to be new each time
    buffer: Callable[[int, int, str, Array], Array | None]
    pull: Callable[[Array, Array], Array]  # (dx [R, C], weight [C, D]) -> dx @ weight
    accumulate: Callable[[Array, Array, Array], Array]  # (total [C, D], dx [R, C], h [R, D]) -> total + dx.T @ h
    # scan(step, carry, rows, chunk, keep) -> (carry, outputs): step(carry, *rows of a chunk) -> (carry, outputs of a
    #   chunk), None standing for what is not there; `rows` and outputs have N rows; of these only `keep`, ids in a
    #   NumPy array, are visited where that is not None, and the others' outputs are 0.
    scan: Callable[..., tuple[Any, tuple[Array | None, ...]]]
    # head(static, *operands) -> (value, results): `_linear.forward`, and what `_linear.value` makes of it, which is
    #   differentiable under every transform of the framework in h, weight, bias, a, z and c. Results are constants.
    head: Callable[..., tuple[Array, tuple[Array | None, ...]]]
    memory: Callable[[Array], int]  # bytes that a chunk of logits may take, on the array's device


@dataclass(frozen=True, eq=False)
class Adapter:
    """One framework. `name` is the name it is imported by."""

    name: str
    types: tuple[type, ...]  # what its arrays are instances of
    ops: Ops

    # The kernels: differentiable functions, correct under every transform of the framework. Logits x are in the compute
    # dtype (in 16 bits too where `narrow`), everything else is, and so are the results; ids are of `index_dtype`.
    #   rows(lay, x, t, u, ids) -> (loss, lse, smooth, m)                each without the class axis, None if not asked
    #     t: soft labels like x, or None; u: smoothing weights [C], or None; ids, without the axis: class ids where
    #     labels are hard, else 0 for a row that is there; negative for one that is not; None where soft and unmasked.
    #     Where labels are soft, ids may have 1s in place of the loss's lengths.
    #     loss = sum_j t_j (lse - x_j), t one-hot at ids where it is None;  smooth = sum_j u_j (lse - x_j)
    #     m: the row's maximum, keeping the axis, a constant; anything in rows that are not there.
    #     Differentiable in x and t; u is a constant.
    #   sigmoid(e, x, z, p, absent) -> loss                               elementwise, shaped like x
    #     e: label smoothing, a Python number: t = (1 - e) z + e / 2; z: labels like x; p: weight of the positive term,
    #     broadcasting against x, or None; absent: mask, broadcasting against x, or None.
    #     loss = p t log(1 + exp(-x)) + (1 - t) log(1 + exp(x)).  Differentiable in x and z; p is a constant.
    rows: Callable[..., tuple[Array, Array | None, Array | None, Array]]
    sigmoid: Callable[..., Array]

    # sigmoid_sum(e, x, z, p, w) -> sum(w loss), 0-d, where that can be had without storing every element's loss.
    #   w: weights of x's rank that broadcast against it, or None for 1s; where one is 0, its elements add exactly 0.
    #   Differentiable in x, z and w.
    sigmoid_sum: Callable[..., Array] | None = None

    # Loss and derivative in one visit of the logits; the derivative is like x, in x's dtype or the compute dtype.
    #   rows_both(lay, x, t, u, ids, a, z, c) -> (the results of `rows`, d/dx of sum(a loss + z lse^2 + c smooth))
    #     a, z, c: numbers, or arrays of the loss's rank that broadcast against it; z and c None where `rows` has no
    #     such result.
    #   mean_both(lay, x, t, ids, n) -> (sum(loss) / n, 0-d; its derivative in x), where that can be had without storing
    #     every row's loss
    #   sigmoid_both(e, x, z, p, w, g, each) -> (w loss, shaped like x, where `each`, else sum(w loss);
    #                                            d/dx of g sum(w loss))   g: a number or a 0-d array
    rows_both: Callable[..., tuple[tuple[Array, Array | None, Array | None, Array], Array]] | None = None
    mean_both: Callable[..., tuple[Array, Array]] | None = None
    sigmoid_both: Callable[..., tuple[Array, Array]] | None = None

    # value_and_grad(f, x) -> (f(x), d sum(f(x)) / dx), by the framework's own differentiation; None where it has none.
    # x may be a tuple of arrays, and then so is the derivative. f may return (value, constants) in place of the value.
    value_and_grad: Callable[[Callable[[Any], Any], Any], tuple[Any, Any]] | None = None
    # whether a derivative in x has to be the framework's own work, since somebody differentiates or maps through it;
    # where not, xent.value_and_grad of a loss of xent's own is rows_both or sigmoid_both
    watched: Callable[[Array], bool] = lambda _x: False

    # fuse(loss, both, static, x, *arrays) = loss(static, x, *arrays), a scalar. Where only x is to be differentiated,
    # and to first order, an adapter may take the derivative along: both(static, x, *arrays) = (loss, d loss / dx).
    fuse: Callable[..., Array] | None = None

    linear: Linear | None = None  # what linear_ce takes; without it, the framework has no linear_ce

    narrow: bool = False  # the kernels take 16-bit logits as they are

    # run(f, static, *arrays) = f(static, *arrays): how a loss is best executed (JAX compiles it; others just call).
    run: Callable[..., Any] = call

    def __post_init__(self) -> None:
        if self.value_and_grad is None and (self.rows_both is None or self.sigmoid_both is None):
            raise TypeError(f"adapter {self.name!r}: give value_and_grad, or both rows_both and sigmoid_both")
