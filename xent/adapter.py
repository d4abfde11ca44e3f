"""The contract: what a framework must bring so that xent's losses run on its arrays.

An adapter is a frozen record of groups of functions. Each group is there as a whole or not at all, and a missing
function is a `TypeError` when the adapter's module is imported. docs/backends.md walks through an adapter.

    Ops             facts about arrays, array glue, pieces of formulas, in the spelling of the array API standard
    SoftmaxKernels  the losses over classes, row by row    } `xent.formulas` makes both groups for any `Ops`
    SigmoidKernels  the loss of each element by itself     }
    Autodiff        the framework's own differentiation; None where it has none
    EntropyKernels  the entropy of rows; None: `xent.formulas` makes it of `Ops`
    LinearKernels   what `linear_ce` takes; None: the framework has no `linear_ce`

Names, here and in `xent.formulas`. A row is one example: its logits lie along the class axis.

    axis            where the classes are, never negative
    compute dtype   float64 for logits of float64, else float32
    x, logits       of any rank; in the compute dtype, or in 16 bits where an adapter `takes_16bit`
    t, targets      soft labels, like the logits; sigmoid's labels
    ids             a class id for each row, ABSENT or INVALID
    u               smoothing weights, one a class
    m, s            a row's largest logit; sum of exp(x - m) over all other classes. They keep the class axis
    nll             the loss of the row: lse - x at its label, or sum_j t_j (lse - x_j)
    lse             m + log1p(s)
    smooth          sum_j u_j (lse - x_j)
    a, b, c         what nll, lse and smooth are multiplied by in a sum that is differentiated
    lse2            what lse^2 is multiplied by in such a sum
    smoothing       label smoothing, a Python number
    pos_weight      sigmoid's weight of the positive term, broadcasting against the logits
    weight          weights of the logits' rank that broadcast against them; where one is 0, its elements add exactly 0
    g               what a sum is multiplied by that is differentiated: an upstream gradient
    dx, dt, dz      derivatives in logits, targets, sigmoid's targets
    h, weight, bias of a linear layer: hidden states [rows, D], [C, D], [C]
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
    #   `_rules.ShapeRule`. `shape` is `lengths` as far as they are known, and value comes back with so many axes, or
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
    following: Callable[[Array, int], Array]  # (x, last): each entry becomes the next along the last axis, or `last`
    zeros_like: Callable[[Array], Array]
    full: Callable[[tuple[int, ...], float, str, Array], Array]  # (shape, value, dtype, like): on like's device
    take: Callable[[Array, Array], Array]  # table[ids]: 1-d table, ids of any shape, all in range
    size: Callable[[Array], Scalar]  # how many elements; a 0-d array of any real dtype where that is not known
    stop_gradient: Callable[[Array], Array]

    # mathematics, elementwise
    exp: Callable[[Array], Array]
    log1p: Callable[[Array], Array]
    tanh: Callable[[Array], Array]
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


# ---- softmax


class Layout(NamedTuple):
    """Static description of a call of a softmax kernel. Hashable: compilers specialise on it."""

    axis: int
    hard: bool  # labels are class ids, not distributions
    masked: bool  # ids may be negative: ABSENT or INVALID
    lse: bool  # the log-sum-exp itself is asked for


class RowResults(NamedTuple):
    """What a softmax kernel finds out about every row: shards of the class axis can be put together from these."""

    nll: Array
    lse: Array | None  # None where the layout does not ask for it
    smooth: Array | None  # None where there are no smoothing weights
    m: Array  # a constant that keeps the class axis, as s does; anything in rows that are masked
    s: Array


@dataclass(frozen=True, eq=False)
class SoftmaxKernels:
    """Results are in the compute dtype, without the class axis.

    Arguments: a `Layout`; logits; targets, or None where labels are hard; u, or None; ids, without the class axis.
    Where labels are hard, ids are class ids, else 0 for a row that counts; negative for one that is masked; None where
    labels are soft and no row is masked. Where labels are soft, ids may have 1s in place of the loss's lengths.
    """

    # rows(layout, logits, targets, u, ids) -> RowResults. Differentiable in logits and targets under every
    #   transform of the framework; u is a constant.
    rows: Callable[[Layout, Array, Array | None, Array | None, Array | None], RowResults]
    # rows_value_and_grad(layout, logits, targets, u, ids, a, lse2, c) -> (RowResults,
    #   d/dlogits of sum(a nll + lse2 lse^2 + c smooth)), in one visit of the logits. The derivative is like the logits,
    #   in their dtype or the compute dtype. a, lse2, c: numbers, or arrays of the loss's rank that broadcast against
    #   it; lse2 and c are None where `rows` has no such result.
    rows_value_and_grad: Callable[..., tuple[RowResults, Array]]
    # mean_value_and_grad(layout, logits, targets, ids, n) -> (sum(nll) / n, 0-d; its derivative in the logits)
    mean_value_and_grad: Callable[[Layout, Array, Array | None, Array | None, int], tuple[Array, Array]]


@dataclass(frozen=True, eq=False)
class EntropyKernels:
    """H = -sum_j p_j log p_j of each row, in the compute dtype, without the class axis; 0 where its weight is 0.

    Arguments: the class axis; logits; weight, of the loss's rank, which broadcasts against it, or None.
    """

    # value(axis, logits, weight) -> H, not multiplied by the weight. Differentiable in logits under every transform of
    #   the framework.
    value: Callable[[int, Array, Array | None], Array]
    # value_and_grad(axis, logits, weight) -> (H, d/dlogits of sum(weight H))
    value_and_grad: Callable[[int, Array, Array | None], tuple[Array, Array]]


# ---- sigmoid


@dataclass(frozen=True, eq=False)
class SigmoidKernels:
    """With t = (1 - smoothing) targets + smoothing / 2, the loss of an element is
    pos_weight t log(1 + exp(-x)) + (1 - t) log(1 + exp(x)). pos_weight may be None, and is a constant."""

    # losses(smoothing, logits, targets, pos_weight, absent) -> shaped like the logits. absent: a mask that broadcasts
    #   against them, or None. Differentiable in logits and targets under every transform of the framework.
    losses: Callable[[float, Array, Array, Array | None, Array | None], Array]
    # total(smoothing, logits, targets, pos_weight, weight) -> sum(weight loss), 0-d; differentiable in weight, too
    total: Callable[[float, Array, Array, Array | None, Array | None], Array]
    # value_and_grad(smoothing, logits, targets, pos_weight, weight, g, each) -> (weight loss, shaped like the logits,
    #   where `each`, else sum(weight loss); d/dlogits of g sum(weight loss)). g: a number or a 0-d array
    value_and_grad: Callable[..., tuple[Array, Array]]


# ---- differentiation


@dataclass(frozen=True, eq=False)
class Autodiff:
    """The framework's own differentiation."""

    # value_and_grad(f, x) -> (f(x), d sum(f(x)) / dx). x may be a tuple of arrays, and then so is the derivative.
    #   f may return (value, constants) in place of the value.
    value_and_grad: Callable[[Callable[[Any], Any], Any], tuple[Any, Any]]
    # whether a derivative in x has to be the framework's own work, since an outer transform may differentiate or map
    # through it; where not, xent.value_and_grad of a loss of xent's own is `rows_value_and_grad` or its like
    needs_framework_autodiff: Callable[[Array], bool]
    # fuse_value_and_grad(value, value_and_grad, plan, *operands) = value(plan, *operands), a scalar. Where only the
    #   first operand is to be differentiated, and to first order, an adapter may take the derivative along:
    #   value_and_grad(plan, *operands) = (value, d value / d first operand).
    fuse_value_and_grad: Callable[..., Array]


# ---- linear_ce


@dataclass(frozen=True, eq=False)
class LinearKernels:
    """What `linear_ce` takes: products of matrices, a loop over chunks of rows, and a derivative rule around both.

    N rows, R of them in a chunk, D features, C classes. Where arrays can be changed, `tanh`, `rows_value_and_grad` and
    `accumulate` may write over their first array.
    """

    ops: Ops
    # as in `SoftmaxKernels`, for logits [R, C] in the compute dtype
    rows: Callable[..., RowResults]
    rows_value_and_grad: Callable[..., tuple[RowResults, Array]]
    tanh: Callable[[Array], Array]
    # a product of matrices h @ weight.T, for every transform of the framework
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
    # head(spec, operands) -> (value, results): `formulas.linear.forward`, and what `formulas.linear.value` makes of it,
    #   which is differentiable under every transform of the framework in all operands but u and ids. Results are
    #   constants. Types are those of `formulas.linear`: LoopSpec, LoopOperands, LoopResults.
    head: Callable[..., tuple[Array, tuple[Array | None, ...]]]
    memory: Callable[[Array], int]  # bytes that a chunk of logits may take, on the array's device


# ---- the adapter


def call(function: Callable[..., Any], plan: Any, *operands: Any) -> Any:
    """`Adapter.run` for a framework with nothing better."""
    return function(plan, *operands)


@dataclass(frozen=True, eq=False)
class Adapter:
    """One framework. `name` is the name it is imported by."""

    name: str
    types: tuple[type, ...]  # what its arrays are instances of
    ops: Ops
    softmax: SoftmaxKernels
    sigmoid: SigmoidKernels
    autodiff: Autodiff | None = None
    linear: LinearKernels | None = None
    entropy: EntropyKernels | None = None
    takes_16bit: bool = False  # the kernels take 16-bit logits as they are
    # run(f, plan, *operands) = f(plan, *operands): how a loss is best executed (JAX compiles it; others just call)
    run: Callable[..., Any] = call
