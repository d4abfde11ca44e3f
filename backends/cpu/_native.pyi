"""The native CPU kernels, on raw addresses, whose arrays the caller keeps until a call returns.

The adapters give arguments by name. Impossible sizes, unknown dtypes and missing addresses are a ValueError; the
adapters check the values in the arrays. Where there are no elements, addresses may be anything.

The letters are those of xent/adapter.py: u smoothing weights; a, b, c what loss, lse and smooth are multiplied by; z
what lse^2 is.

An address is an int; 0 stands for an absent argument, and `t|0` means that t may be absent. `dtype` is one of F32, F64,
F16, BF16: that of x and dx; every other array is in the compute dtype: float64 for F64, else float32. Arrays are
contiguous, of any alignment. Logits are [outer, classes, inner]; arrays of rows are [outer * inner]; u is [classes].
ids and argmax are int64 where `wide`, else int32. Rows marked ABSENT (-2) or INVALID (-1) in ids are not read: their
loss, lse, smooth and gradients are 0 (ABSENT) or NaN (INVALID), their m, s and gap_sum 0. Beside soft labels, ids only
carry these marks. argmax is negative where the row has no softmax, too. Outputs must not overlap inputs, but dx may be
x where inner is 1.

threads: the most that are used, the caller's included; 0: XENT_NUM_THREADS, else the CPUs this process may use. Results
do not depend on it. The GIL is released except where the work takes a few microseconds.
"""

from typing import Final

from typing_extensions import CapsuleType

F32: Final = 0
F64: Final = 1
F16: Final = 2
BF16: Final = 3

INTERFACE: Final = 8  # a module compiled from sources with another number is not used

version: str

def isa() -> str:
    """The instruction set in use: "avx512", "avx2" or "baseline". XENT_ISA, read once, forces one; ValueError if this
    machine cannot run it."""

def isas() -> list[str]:
    """The instruction sets that this build has and this machine can run, best first."""

def max_threads() -> int:
    """What `threads=0` means."""

def rows_forward(
    dtype: int,
    outer: int,
    classes: int,
    inner: int,
    wide: bool,
    threads: int,
    x: int,
    t: int,
    u: int,
    ids: int,
    m: int,
    s: int,
    loss: int,
    lse: int,
    smooth: int,
    gap_sum: int,
    argmax: int,
) -> None:
    """Statistics (m, s) and results of every row. In: x, t|0, u|0, ids|0. Out: m, s, loss, lse|0, smooth|0, gap_sum|0,
    argmax|0.

    Labels are soft, t, or if that is 0 hard, ids. gap_sum and argmax come together, and only with hard labels.
    """

def rows_backward(
    dtype: int,
    outer: int,
    classes: int,
    inner: int,
    wide: bool,
    threads: int,
    x: int,
    t: int,
    u: int,
    ids: int,
    m: int,
    s: int,
    a: int,
    b: int,
    c: int,
    dx: int,
    dt: int,
) -> None:
    """Gradient of sum(a loss + b lse + c smooth).

    In: x, t|0, u|0, ids|0, m, s, a, b|0, c|0 (needs u). Out: dx|0, dt|0.
    """

def rows_both(
    dtype: int,
    outer: int,
    classes: int,
    inner: int,
    wide: bool,
    threads: int,
    x: int,
    t: int,
    u: int,
    ids: int,
    a: int,
    z: int,
    c: int,
    loss: int,
    lse: int,
    smooth: int,
    m: int,
    s: int,
    gap_sum: int,
    argmax: int,
    dx: int,
) -> None:
    """Results and the gradient of sum(a loss + z lse^2 + c smooth), in one visit of each row.

    In: x, t|0, u|0, ids|0, a, z|0, c|0 (needs u). Out: loss|0, lse|0, smooth|0, m|0, s|0, gap_sum|0, argmax|0, dx.
    """

def mean_both(
    dtype: int,
    outer: int,
    classes: int,
    inner: int,
    wide: bool,
    n: float,
    threads: int,
    x: int,
    t: int,
    u: int,
    ids: int,
    dx: int,
) -> float:
    """sum(loss) / n, added up in float64, and its gradient, in one visit of each row.

    In: x, t|0, u, not used, ids|0. Out: dx.
    """

def mean_of_ids(
    dtype: int,
    outer: int,
    classes: int,
    inner: int,
    wide: bool,
    ignored: int | None,
    invalid_is_nan: bool,
    threads: int,
    x: int,
    ids: int,
    dx: int,
) -> float | None:
    """The mean of the losses, added up in float64, and its gradient where dx is not 0. ids carry no marks here. Rows
    whose id is `ignored` are left out. If another one is no class: NaN, also in its row of dx, where `invalid_is_nan`,
    else None, and dx holds anything.

    In: x, ids. Out: dx|0.
    """

def sigmoid_forward(
    dtype: int,
    n: int,
    smoothing: float,
    pos_weight_length: int,
    pos_weight_inner: int,
    weight_length: int,
    weight_inner: int,
    threads: int,
    x: int,
    targets: int,
    pos_weight: int,
    weight: int,
    loss: int,
) -> float:
    """Returns sum(weight loss), added up in a fixed order; writes the elementwise loss, without weight, to loss|0.

    pos_weight and weight are patterns: the value for element i is at [(i // inner) % length]. (length, inner) is (1, 1)
    for a scalar, (C, 1) for one value a class on the last axis, (N, C) for one a row, (n, 1) for a full array. 0 stands
    for ones. Where weight == 0 the loss is 0, whatever x and targets hold.
    """

def sigmoid_backward(
    dtype: int,
    n: int,
    smoothing: float,
    pos_weight_length: int,
    pos_weight_inner: int,
    weight_length: int,
    weight_inner: int,
    scale: float,
    threads: int,
    x: int,
    targets: int,
    pos_weight: int,
    weight: int,
    dx: int,
    dz: int,
) -> None:
    """Gradient of scale * sum(weight loss): dx|0 in x's dtype, dz|0 in the compute dtype. 0 where weight == 0."""

def sigmoid_both(
    dtype: int,
    n: int,
    smoothing: float,
    pos_weight_length: int,
    pos_weight_inner: int,
    weight_length: int,
    weight_inner: int,
    scale: float,
    threads: int,
    x: int,
    targets: int,
    pos_weight: int,
    weight: int,
    loss: int,
    dx: int,
) -> float:
    """sigmoid_forward, and sigmoid_backward's dx, in one visit: returns sum(weight loss); loss|0, dx."""

def entropy(dtype: int, rows: int, classes: int, threads: int, x: int, weight: int, entropy: int, dx: int) -> None:
    """Entropy of each row, and the derivative in x of sum(weight entropy).

    In: x [rows, classes], weight|0 [rows]. Out: entropy|0, dx|0. A row of weight 0 is not read; its results are 0. The
    entropy is not multiplied by the weight.
    """

def project(dtype: int, rows: int, features: int, classes: int, threads: int, hidden: int, weight: int, x: int) -> None:
    """x = hidden weight^T. In: hidden [rows, features], weight [classes, features], of `dtype`. Out: x [rows, classes].

    No size is 0, here and below. Sums are in the compute dtype, a block of terms at a time.
    """

def pull(dtype: int, rows: int, features: int, classes: int, threads: int, dx: int, weight: int, dhidden: int) -> None:
    """dhidden = dx weight. In: dx, and weight of `dtype`. Out: dhidden [rows, features]."""

def accumulate(
    dtype: int, rows: int, features: int, classes: int, threads: int, dx: int, hidden: int, dweight: int
) -> None:
    """dweight += dx^T hidden. In: dx, and hidden of `dtype`. In and out: dweight [classes, features]."""

def runners() -> int:
    """The address of the kernels for the library _tensorflow (runners.h), whose function xent_attach takes it."""

def ffi_handlers() -> dict[str, CapsuleType]:
    """XLA FFI handlers: jax.ffi.register_ffi_target("xent_" + name, capsule, platform="cpu") for each.

    Operands and results are in the order below; one with 0 elements (jnp.zeros(0, dtype)) is absent. Arrays have the
    logits' shape, their shape without the class axis, or are [classes]; attribute `trailing` (np.int64) is how many
    axes follow the class axis. dtypes as above: x's decides; ids int32 or int64.

        rows_forward   (x, t, u, ids)  -> (m, s, loss, lse, smooth, gap_sum, argmax)  trailing
        rows_backward  (x, t, u, ids, m, s, a, b, c)  -> (dx, dt)  trailing
        rows_both      (x, t, u, ids, a, z, c)  -> (m, s, loss, lse, smooth, gap_sum, argmax, dx)  trailing
        sigmoid_forward  (x, targets, pos_weight, weight)         -> (loss, sum)
        sigmoid_backward (x, targets, pos_weight, weight, scale)  -> (dx, dz)
        sigmoid_both     (x, targets, pos_weight, weight, scale)  -> (loss, sum, dx)
            smoothing (np.float64), pos_weight_length, pos_weight_inner, weight_length, weight_inner (np.int64)
        project     (hidden, weight)       -> (x,)
        pull        (dx, weight)           -> (dhidden,)
        accumulate  (dweight, dx, hidden)  -> (dweight,), in the operand's memory

    sum and scale are 0-d, in the compute dtype. All but the products are right under jax.vmap with
    vmap_method="broadcast_all": every array then has the same new leading axes (u, pos_weight, weight, sum and scale
    too), and a handler works through them.

        jax.ffi.ffi_call("xent_rows_forward", result_shape_dtypes, vmap_method="broadcast_all")(
            x, t, u, ids, trailing=np.int64(0))
    """
