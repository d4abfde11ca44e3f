"""The contract: what a framework must bring so that xent's losses run on its arrays.

An adapter is a frozen record of groups of functions. Each group is there as a whole or not at all, and a missing
function is a `TypeError` when the adapter's module is imported. docs/backends.md walks through an adapter.

    Ops             facts about arrays, array glue, pieces of formulas, in the spelling of the array API standard
    SoftmaxKernels  the losses over classes, row by row    } `xent.formulas` makes both groups for any `Ops`
    SigmoidKernels  the loss of each element by itself     }
    Autodiff        the framework's own differentiation; None where it has none
    EntropyKernels  the entropy of rows; None: `xent.formulas` makes it of `Ops`
    LinearKernels   what `linear_ce` needs; None: the framework has no `linear_ce`
    Shortcut        the most frequent call in one; None: it goes the general way
    Collectives     what `sharded=` takes, classes that are split over processes or devices; None: it is an error

Names, here and in `xent.formulas`. A row is one example: its logits lie along the class axis.

    axis               where the classes are, never negative
    compute dtype      float64 for logits of float64, else float32
    x, logits          of any rank; in the compute dtype, or in 16 bits where an adapter `takes_16bit`
    t, targets         soft labels, like the logits; sigmoid's labels
    ids                a class id for each row, ABSENT or INVALID
    smoothing_weights  u [C]: what label smoothing adds to each class
    m, s               a row's largest logit; sum of exp(x - m) over all other classes. They keep the class axis
    nll                the loss of the row: lse - x at its label, or sum_j t_j (lse - x_j)
    lse                m + log1p(s)
    smooth             sum_j u_j (lse - x_j)
    gap_sum            sum of exp(x - m) (m - x) over all classes, where a logit of -inf adds 0: the row's entropy is
                       log1p(s) + gap_sum / (1 + s)
    argmax             the first class with the largest logit
    slopes             what nll, lse^2 and smooth are multiplied by in a sum that is differentiated: a `Slopes`
    a, b, c            coefficients of nll, lse and smooth in the formulas of a backward pass
    smoothing          label smoothing, a Python number
    pos_weight         sigmoid's weight of the positive term, broadcasting against the logits
    weight             weights of the logits' rank that broadcast against them; elements of weight 0 add exactly 0
    upstream           the derivative of the final result in this sum
    dx, dt, dz         derivatives in logits, targets, sigmoid's targets
    hidden, weight, bias
                       of a linear layer: [rows, D], [C, D], [C]
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
    """The dtype that logits of `dtype` are computed in. 16 bits are widened to 32 on the way in, not before."""
    return "float64" if dtype == "float64" else "float32"


@dataclass(frozen=True, eq=False)
class UnknownShapes:
    """How shapes are checked when a graph runs, for frameworks that trace graphs before shapes or ranks are known.

    "Lengths" are a shape that may be known only when the graph runs: a tuple of ints, with a 0-d int64 array wherever
    `Ops.shape` has None; for an array of unknown rank, one 1-d int64 array.
    """

    ranked: Callable[[Array], bool]  # whether the rank is known; `Ops.shape` may be asked of no other array
    lengths: Callable[[Array], Any]
    # (value, condition, words, shape) -> value, which fails when it runs if the 0-d bool `condition` is False, with a
    #   message of `words`, strings and lengths. `shape` is value's shape, as far as known, if the condition holds
    require: Callable[[Array, Array, list[Any], Any], Array]
    # (value, lengths, shape, rule) -> value, which fails when it runs if its shape breaks the `_rules.ShapeRule` for
    #   `lengths`. `shape` is the known part of `lengths`: value gets as many axes, or keeps fewer. It is None where not
    #   even the rank is known: value keeps its shape
    fit: Callable[[Array, Any, tuple[int | None, ...] | None, Any], Array]
    # (x, axis) -> (x as [before, classes, after], or as [before, classes] for an axis of -1, or as [elements] for None;
    #   lengths of x; lengths of x without the axis). x is of unknown rank.
    flatten: Callable[[Array, int | None], tuple[Array, Any, Any]]
    # (value, lengths, flat) -> value broadcast to `lengths`, then reshaped to the lengths `flat`
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
    # ids in a dtype that compares correctly with 0, with any number of classes and with any id that their own dtype
    #   holds. Ids too large for it may become negative, as those of uint64 do in int64
    integer: Callable[[Array], Array]
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
    argmax: Callable[[Array, int], Array]  # the first place of the maximum, in `index_dtype`; any where there is NaN
    sum: Callable[[Array, int | None], Array]  # blocked or pairwise; None: over everything, to a 0-d array
    top: Callable[[Array, int], tuple[Array, Array]]  # max m; sum of exp(x - m) over all but *one* place of m
    pick: Callable[[Array, Array, int], Array]  # (x, ids, axis): x at ids; ids keeps the axis
    put: Callable[[Array, Array, Array, int], Array]
    #   (x, ids, values, axis): x with values at ids; may be x itself where the framework has no differentiation

    unknown: UnknownShapes | None = None  # for frameworks that trace graphs whose shapes are not known
    # whether a compiler is tracing that turns NumPy arrays into this framework's arrays, as torch.compile does
    adopts_numpy: Callable[[], bool] = lambda: False
    # "sparse", "nested" or "masked" for an array that is not dense although its type does not say so; else None
    layout: Callable[[Array], str | None] = lambda _x: None
    index_dtype: str = "int64"  # the dtype of ids for `take`, `pick` and `put`


# ---- softmax


class Layout(NamedTuple):
    """Static description of a call of a softmax kernel. Hashable: compilers specialise on it."""

    axis: int
    hard: bool  # labels are class ids, not distributions
    masked: bool  # ids may be negative: ABSENT or INVALID
    lse: bool  # the log-sum-exp itself is asked for
    stats: bool = False  # gap_sum and argmax are asked for; only where labels are hard


class RowResults(NamedTuple):
    """What a softmax kernel returns for each row. The results of shards of the class axis can be combined."""

    nll: Array
    lse: Array | None  # None where the layout does not ask for it
    smooth: Array | None  # None where there are no smoothing weights
    # constants that keep the class axis; of any value in masked rows, as argmax is where the row has no softmax
    m: Array
    s: Array
    gap_sum: Array | None = None  # None where the layout does not ask for it
    argmax: Array | None = None  # as gap_sum; in the dtype of ids


class Slopes(NamedTuple):
    """A sum's derivatives in each row's nll, lse^2 and smooth: numbers, or arrays of the loss's rank that broadcast
    against it. None: the sum has no such term."""

    nll_scale: Scalar
    lse2: Scalar | None = None
    smooth_scale: Scalar | None = None

    def coefficients(self, lse: Array | None) -> tuple[Scalar, Scalar | None, Scalar | None]:
        """a, b, c: those of nll, lse and smooth in the sum's derivative."""
        return self.nll_scale, None if self.lse2 is None else 2 * self.lse2 * lse, self.smooth_scale


@dataclass(frozen=True, eq=False)
class SoftmaxKernels:
    """Results are in the compute dtype, without the class axis.

    Arguments: a `Layout`; logits; targets, or None where labels are hard; smoothing_weights, or None; ids, without the
    class axis. An id is negative in a masked row; in others it is the class id, or 0 where labels are soft. ids are
    None where labels are soft and no row is masked; beside soft labels they may have length 1 along any axis.
    """

    # rows(layout, logits, targets, smoothing_weights, ids) -> RowResults. Differentiable in logits and targets under
    #   every transform of the framework; smoothing_weights are constants.
    rows: Callable[[Layout, Array, Array | None, Array | None, Array | None], RowResults]
    # rows_value_and_grad(layout, logits, targets, smoothing_weights, ids, slopes) -> (RowResults, d/dlogits of
    #   sum(nll_scale nll + lse2 lse^2 + smooth_scale smooth)), in one visit of the logits. The derivative is like the
    #   logits, in their dtype or the compute dtype. lse2 and smooth_scale are None where `rows` has no such result.
    rows_value_and_grad: Callable[..., tuple[RowResults, Array]]
    # mean_value_and_grad(layout, logits, targets, ids, count) -> (sum(nll) / count, 0-d; its derivative in the logits)
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
    # value_and_grad(smoothing, logits, targets, pos_weight, weight, upstream, each) -> (weight loss, shaped like the
    #   logits, where `each`, else sum(weight loss); d/dlogits of upstream sum(weight loss)). upstream: a number or a
    #   0-d array
    value_and_grad: Callable[..., tuple[Array, Array]]


# ---- differentiation


@dataclass(frozen=True, eq=False)
class Autodiff:
    """The framework's own differentiation."""

    # value_and_grad(f, x) -> (f(x), d sum(f(x)) / dx). x may be a tuple of arrays, and then so is the derivative.
    #   f may return (value, constants) in place of the value.
    value_and_grad: Callable[[Callable[[Any], Any], Any], tuple[Any, Any]]
    # (x) -> whether only the framework may differentiate in x, since an outer transform may differentiate or map the
    #   result; where not, xent.value_and_grad of xent's own losses calls `rows_value_and_grad` or its like
    needs_framework_autodiff: Callable[[Array], bool]
    # fuse_value_and_grad(value, value_and_grad, plan, *operands) = value(plan, *operands), a scalar. Where only a first
    #   derivative in the first operand is wanted, an adapter may compute it together with the value:
    #   value_and_grad(plan, *operands) = (value, d value / d first operand).
    fuse_value_and_grad: Callable[..., Array]


# ---- linear_ce


@dataclass(frozen=True, eq=False)
class LinearKernels:
    """What `linear_ce` needs: matrix products, a loop over chunks of rows, and a derivative rule around both.

    N rows, R of them in a chunk, D features, C classes. Where arrays can be changed, `tanh`, `rows_value_and_grad` and
    `accumulate` may write over their first array.
    """

    ops: Ops
    # as in `SoftmaxKernels`, for logits [R, C] in the compute dtype
    rows: Callable[..., RowResults]
    rows_value_and_grad: Callable[..., tuple[RowResults, Array]]
    tanh: Callable[[Array], Array]
    # the matrix product hidden @ weight.T, which changes nothing and which every transform can pass through
    matmul: Callable[[Array, Array], Array]
    flat: Callable[[Array, int], Array]  # (x, kept): all axes in one, but the last `kept`
    shaped: Callable[[Array, Array], Array]  # (x, like): x in like's shape
    # The products take and sum float64 in float64; for 16 bits and float32 sums and results are float32.
    # (hidden [R, D], weight [C, D], over) -> hidden @ weight.T, in the memory of `over` where that is not None
    project: Callable[[Array, Array, Array | None], Array]
    # (R, C, dtype, like) -> memory that all chunks' logits share, in turn; None where each chunk needs new memory
    buffer: Callable[[int, int, str, Array], Array | None]
    pull: Callable[[Array, Array], Array]  # (dx [R, C], weight [C, D]) -> dx @ weight
    # (total [C, D], dx [R, C], hidden [R, D]) -> total + dx.T @ hidden
    accumulate: Callable[[Array, Array, Array], Array]
    # scan(step, carry, rows, chunk, keep) -> (carry, outputs), where step(carry, *rows of a chunk) -> (carry, outputs
    #   of the chunk). `rows` and outputs are tuples of arrays of N rows; any of them may be None. Where `keep`, row
    #   numbers in a NumPy array, is not None, only those rows are visited, and the others' outputs are 0.
    scan: Callable[..., tuple[Any, tuple[Array | None, ...]]]
    # head(spec, operands) -> (value, results): `formulas.linear.forward`, and what `formulas.linear.value` makes of it,
    #   which is differentiable under every transform of the framework in all operands but smoothing_weights and ids.
    #   Results are constants. Types are those of `formulas.linear`: LoopSpec, LoopOperands, LoopResults.
    head: Callable[..., tuple[Array, tuple[Array | None, ...]]]
    memory: Callable[[Array], int]  # bytes that a chunk of logits may take, on the array's device


# ---- small calls


@dataclass(frozen=True, eq=False)
class Shortcut:
    """`sparse_ce(logits, ids, axis=axis, ignore_index=ignored)` with every other option as it is by default, on arrays
    that kernels take as they are: all checks and the loss in one native call. None: the general way has to be taken,
    which also words the errors."""

    # value(axis, ignored, logits, ids, again) -> the mean, 0-d. again(axis, ignored, logits, ids): the same by the
    #   general way, differentiable
    value: Callable[[int, int | None, Array, Array, Callable[..., Array]], Array | None]
    # value_and_grad(axis, ignored, logits, ids) -> (the mean, its derivative in the logits), as `xent.value_and_grad`
    #   has them
    value_and_grad: Callable[[int, int | None, Array, Array], tuple[Array, Array] | None]


# ---- classes that are split over processes or devices


def call(function: Callable[..., Any], *arguments: Any) -> Any:
    """`run` for a framework with nothing better."""
    return function(*arguments)


@dataclass(frozen=True, eq=False)
class Collectives:
    """What `sharded=` and `group=` take. Types are those of `xent.formulas.sharding`: Shard, Row.

    All shards compute the same loss. A derivative is that of this one loss, in the arrays that a shard holds.
    """

    # shard(group, length, rows, like) -> Shard, for a shard of so many classes whose arrays have so many rows; `group`
    #   is what the caller gave as `sharded=`. An error where it makes no sense, on all shards alike
    shard: Callable[[Any, int, int, Array], Any]
    # attach(group, layout, shard, x, t, u, ids, row) -> RowResults: `sharding.results`, differentiable in x and t by
    #   `sharding.coefficients` or `sharding.tangents`. ids are those of all classes
    attach: Callable[..., RowResults]
    summed: Callable[[Any, Array, Array], Array]  # (group, own, total) -> total, whose derivative in own is 1
    # linear(group, spec, shard, operands) -> (Row, RowResults), for LoopSpec and LoopOperands of `formulas.linear` with
    #   the shard's weight and bias; differentiable in hidden, weight and bias
    linear: Callable[..., tuple[Any, RowResults]]
    total: Callable[[Any, Array], Array]  # (group, own) -> the sum over the group, a constant; for `total_weight`
    # gradients(group, alike, own): derivatives that were taken where the loss is called, in arrays that are the same in
    #   all shards, and in those that each has its own of -> those of this one loss
    gradients: Callable[..., Any] = lambda _group, alike, own: (alike, own)
    run: Callable[..., Any] = call  # run(f, *arguments) = f(*arguments): how a call with `sharded=` is best executed


# ---- the adapter


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
    shortcut: Shortcut | None = None
    collectives: Collectives | None = None
    entropy: EntropyKernels | None = None
    takes_16bit: bool = False  # the kernels take 16-bit logits as they are
    # of_type(type) -> the adapter for a subclass of `types` whose arrays want another one; None: all are alike
    of_type: Callable[[type], Adapter] | None = None
    # of_parts(loss, operands, options) -> the loss of arrays that are in parts themselves: spread over a mesh of
    #   devices, or cut into chunks. The arguments are those of `xent._execute.run`. Of `linear_ce`, and where a
    #   framework has no differentiation, operands.inputs may be a WithGradient, and then (loss, derivative) is wanted
    of_parts: Callable[..., Any] | None = None
    # run(f, plan, *operands) = f(plan, *operands): how a loss is best executed (JAX compiles it; others just call)
    run: Callable[..., Any] = call
