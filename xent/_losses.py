"""The losses: signature and meaning."""

from __future__ import annotations

from typing import Any, NoReturn

from xent import _execute_sharded
from xent._check import unexpected
from xent._execute import SIGMOID, SOFTMAX, SPARSE, run
from xent._linear import LINEAR
from xent._options import Operands, Options
from xent.adapter import Array, Scalar


def softmax_ce(
    logits: Array,
    labels: Array,
    *,
    axis: int = -1,
    reduce: str = "mean",
    sample_weight: Any = None,
    class_weight: Any = None,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    softcap: float | None = None,
    logit_scale: float | None = None,
    denom: Scalar | None = None,
    sharded: Any = None,
    **unknown: NoReturn,
) -> Array:
    """Cross-entropy of softmax(logits) against labels that are distributions over the classes.

    For each example, l = sum_j t_j (lse - x_j), where lse = log(sum_j exp(x_j)), in nats. Labels that do not add up
    to 1 follow the formula as written; a class without label adds nothing, even at a logit of -inf. Differentiable in
    `logits`, `labels` and `sample_weight`.

    Args:
        logits: unnormalised log-probabilities [..., C, ...], float16, bfloat16, float32 or float64, of NumPy, PyTorch,
            TensorFlow or JAX. Their type decides where the loss is computed.
        labels: t, of the logits' shape, any real dtype; of the same framework, or NumPy's, or lists.
        axis: where the classes are.
        reduce: "none" w l of each example; "sum"; "mean" sum(w l) / sum(w); "mean_nonzero" sum(w l) / count(w != 0);
            "mean_all" sum(w l) / number of examples. An empty denominator gives 0.
        sample_weight: a scalar, or of the loss's shape or that with 1s. A weight of 0 leaves the example out: loss and
            gradients are exactly 0, whatever it holds.
        class_weight: [C]. They weight the terms of the sum; an example's weight w is multiplied by their average over
            its label.
        label_smoothing: e from 0 to 1: labels become (1 - e) t + e / C.
        z_loss: a number from -1e15 to 1e15: adds z_loss * lse^2 to each example, weighted like the loss.
        softcap: a cap s from 1e-15 to 1e15: the loss is that of s tanh(x / s).
        logit_scale: a factor k from 1e-15 to 1e15, after the cap: a temperature is 1 / k.
        denom: a number or 0-d array in place of the denominator of "mean".
        sharded: a process group of `torch.distributed` whose ranks hold consecutive classes, of logits and labels, or
            the name of such an axis inside of `jax.shard_map`; the loss is that of all of them. See docs/sharding.md.

    Returns:
        An array of the logits' framework, on their device; 0-d, or of the logits' shape without `axis` for "none".
        float32 for 16-bit logits, else of the logits' dtype.

    Raises:
        TypeError: logits that are not floating, labels of another framework, a dtype that makes no sense.
        ValueError: shapes that do not fit, options out of range.

    Source:
        docs/semantics.md; numerics in xent/formulas/.

    Example:
        >>> import numpy as np, xent
        >>> logits = np.array([[2.0, 0.5, 6.0], [0.1, 0.0, 3.0]])
        >>> print(xent.softmax_ce(logits, [[0.4, 0.1, 0.5], [0.3, 0.6, 0.1]], reduce="none").round(4))
        [2.1722 2.7697]
    """
    if unknown:
        raise unexpected(softmax_ce, unknown)
    operands = Operands(logits, labels, sample_weight, class_weight, denom)
    options = Options(axis, None, reduce, label_smoothing, z_loss, softcap=softcap, logit_scale=logit_scale)
    if sharded is not None:
        return _execute_sharded.softmax(operands, options, sharded)
    return run(SOFTMAX, operands, options)


def sparse_ce(
    logits: Array,
    labels: Array,
    *,
    axis: int = -1,
    reduce: str = "mean",
    sample_weight: Any = None,
    class_weight: Any = None,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    softcap: float | None = None,
    logit_scale: float | None = None,
    ignore_index: int | None = None,
    invalid: str = "auto",
    denom: Scalar | None = None,
    stats: bool = False,
    sharded: Any = None,
    **unknown: NoReturn,
) -> Any:
    """Cross-entropy of softmax(logits) against labels that are class ids.

    For each example, l = lse - x_y, where lse = log(sum_j exp(x_j)), in nats: `softmax_ce` of the one-hot labels, with
    the same options. Accurate relative to its value however small it is. Differentiable in `logits` and
    `sample_weight`.

    Args:
        logits: unnormalised log-probabilities [..., C, ...], float16, bfloat16, float32 or float64, of NumPy, PyTorch,
            TensorFlow or JAX. Their type decides where the loss is computed.
        labels: y, of the logits' shape without `axis`, any integer or bool dtype; of the same framework, or NumPy's,
            or lists.
        axis: where the classes are.
        reduce: "none" w l of each example; "sum"; "mean" sum(w l) / sum(w); "mean_nonzero" sum(w l) / count(w != 0);
            "mean_all" sum(w l) / number of examples. An empty denominator gives 0.
        sample_weight: a scalar, or of the loss's shape or that with 1s. A weight of 0 leaves the example out: loss and
            gradients are exactly 0, whatever it holds.
        class_weight: [C]. An example's weight w is multiplied by that of its label.
        label_smoothing: e from 0 to 1: labels become (1 - e) one-hot + e / C, class weights acting class by class.
        z_loss: a number from -1e15 to 1e15: adds z_loss * lse^2 to each example, weighted like the loss.
        softcap: a cap s from 1e-15 to 1e15: the loss is that of s tanh(x / s).
        logit_scale: a factor k from 1e-15 to 1e15, after the cap: a temperature is 1 / k.
        ignore_index: a class id that leaves the example out, as a weight of 0 does.
        invalid: what an id does that is no class and not ignored. "raise" a `LabelError`; "nan" makes the example's
            loss and gradient NaN; "ignore" leaves it out; "auto" raises where ids are concrete and in host memory and
            is "nan" elsewhere: inside a compiler, on a GPU.
        denom: a number or 0-d array in place of the denominator of "mean".
        stats: also return every row's `xent.Stats`: nll, lse, correct, sample_weight, entropy, argmax.
        sharded: a process group of `torch.distributed` whose ranks hold consecutive classes of the logits, or the name
            of such an axis inside of `jax.shard_map`; the loss is that of all of them. See docs/sharding.md.

    Returns:
        An array of the logits' framework, on their device; 0-d, or of the labels' shape for "none". float32 for
        16-bit logits, else of the logits' dtype. With `stats`, (that array, `xent.Stats`).

    Raises:
        LabelError: class ids out of range; says how many, the first one's position and value, and the range.
        TypeError: logits that are not floating, labels that are, arrays of two frameworks.
        ValueError: shapes that do not fit, options out of range.

    Source:
        docs/semantics.md; numerics in xent/formulas/.

    Example:
        >>> import numpy as np, xent
        >>> logits = np.array([[2.0, 0.5, 6.0], [0.1, 0.0, 3.0]])
        >>> print(xent.sparse_ce(logits, [2, 1], reduce="none").round(4))
        [0.0222 3.0997]
    """
    if unknown:
        raise unexpected(sparse_ce, unknown)
    operands = Operands(logits, labels, sample_weight, class_weight, denom)
    rest = invalid, stats, softcap, None, logit_scale
    options = Options(axis, ignore_index, reduce, label_smoothing, z_loss, *rest)
    if sharded is not None:
        return _execute_sharded.sparse(operands, options, sharded)
    return run(SPARSE, operands, options)


def linear_ce(
    hidden: Array,
    weight: Array,
    labels: Array,
    *,
    bias: Array | None = None,
    softcap: float | None = None,
    reduce: str = "mean",
    sample_weight: Any = None,
    class_weight: Any = None,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    ignore_index: int | None = None,
    invalid: str = "auto",
    denom: Scalar | None = None,
    chunk_rows: int | None = None,
    stats: bool = False,
    sharded: Any = None,
    **unknown: NoReturn,
) -> Any:
    """`sparse_ce` of the logits hidden @ weight.T + bias, which are never held all at once.

    The loss of a language model's head: for each row x = W h + b, capped x = s tanh(x / s), and l = lse(x) - x_y. A
    chunk of rows at a time is multiplied, reduced to its statistics and, where a scalar loss is to be differentiated,
    turned into its share of the gradients at once. Differentiable in `hidden`, `weight`, `bias` and `sample_weight`.

    Args:
        hidden: h [..., D], float16, bfloat16, float32 or float64, of NumPy, PyTorch, TensorFlow or JAX. Their type
            decides where the loss is computed.
        weight: W [C, D], of the same dtype, or float32 beside 16-bit hidden states, to whose dtype it is rounded; of
            the same framework, or NumPy's.
        labels: y [...], any integer or bool dtype; of the same framework, or NumPy's, or lists.
        bias: b [C], of the same dtypes.
        softcap: s from 1e-15 to 1e15; no cap where None.
        reduce: "none" w l of each example; "sum"; "mean" sum(w l) / sum(w); "mean_nonzero" sum(w l) / count(w != 0);
            "mean_all" sum(w l) / number of examples. An empty denominator gives 0.
        sample_weight: a scalar, or of the labels' shape or that with 1s. A weight of 0 leaves the example out: loss and
            gradients are exactly 0, whatever it holds, and where ids are in host memory it is not multiplied at all.
        class_weight: [C]. An example's weight w is multiplied by that of its label.
        label_smoothing: e from 0 to 1: labels become (1 - e) one-hot + e / C, class weights acting class by class.
        z_loss: a number from -1e15 to 1e15: adds z_loss * lse^2 to each example, weighted like the loss.
        ignore_index: a class id that leaves the example out, as a weight of 0 does.
        invalid: what an id does that is no class and not ignored, as in `sparse_ce`.
        denom: a number or 0-d array in place of the denominator of "mean".
        chunk_rows: how many rows at a time; None: by the memory they take, see docs/performance.md.
        stats: also return every row's `xent.Stats`: nll, lse, correct, sample_weight, entropy, argmax.
        sharded: a process group of `torch.distributed` whose ranks hold consecutive classes of weight and bias, or the
            name of such an axis inside of `jax.shard_map`; the loss is that of all of them. See docs/sharding.md.

    Returns:
        An array of the hidden states' framework, on their device; 0-d, or of the labels' shape for "none". float32 for
        16 bits, else of the hidden states' dtype. With `stats`, (that array, `xent.Stats`).

    Raises:
        LabelError: class ids out of range; says how many, the first one's position and value, and the range.
        TypeError: hidden states that are not floating, a weight or bias of another dtype, labels that are floating,
            arrays of two frameworks.
        ValueError: shapes that do not fit, options out of range.

    Source:
        docs/semantics.md; the loop is in xent/formulas/linear.py.

    Example:
        >>> import numpy as np, xent
        >>> hidden, weight = np.array([[1.0, 2.0], [0.5, -1.0]]), np.array([[0.1, 0.2], [0.3, -0.4], [-0.5, 0.6]])
        >>> print(xent.linear_ce(hidden, weight, [2, 1], reduce="none").round(4))
        [0.7514 0.5557]
        >>> loss, grads = xent.value_and_grad(xent.linear_ce)(hidden, weight, [2, 1])
        >>> print(grads.hidden.shape, grads.weight.shape, grads.bias)
        (2, 2) (3, 2) None
    """
    if unknown:
        raise unexpected(linear_ce, unknown)
    operands = Operands(hidden, labels, sample_weight, class_weight, denom, weight=weight, bias=bias)
    options = Options(-1, ignore_index, reduce, label_smoothing, z_loss, invalid, stats, softcap, chunk_rows)
    if sharded is not None:
        return _execute_sharded.linear(operands, options, sharded)
    return run(LINEAR, operands, options)


def sigmoid_ce(
    logits: Array,
    labels: Array,
    *,
    reduce: str = "mean",
    sample_weight: Any = None,
    pos_weight: Any = None,
    label_smoothing: float = 0.0,
    denom: Scalar | None = None,
    **unknown: NoReturn,
) -> Array:
    """Binary cross-entropy of sigmoid(logits), element by element.

    For each element, l = p z log(1 + exp(-x)) + (1 - z) log(1 + exp(x)), in nats, p being `pos_weight` or 1. At
    logits of +-inf the exact limits. Differentiable in `logits`, `labels` and `sample_weight`.

    Args:
        logits: log-odds x of any shape, float16, bfloat16, float32 or float64, of NumPy, PyTorch, TensorFlow or JAX.
            Their type decides where the loss is computed.
        labels: z, of the logits' shape, from 0 to 1, any real dtype; of the same framework, or NumPy's, or lists.
        reduce: "none" w l of each element; "sum"; "mean" sum(w l) / sum(w); "mean_nonzero" sum(w l) / count(w != 0);
            "mean_all" sum(w l) / number of elements. An empty denominator gives 0.
        sample_weight: w, a scalar, or of the logits' shape or that with 1s. A weight of 0 leaves the element out: loss
            and gradients are exactly 0, whatever it holds.
        pos_weight: p, broadcasting to the logits' shape: [C] weights the positives of each class. Not part of w.
        label_smoothing: e from 0 to 1: labels become (1 - e) z + e / 2.
        denom: a number or 0-d array in place of the denominator of "mean".

    Returns:
        An array of the logits' framework, on their device; 0-d, or of the logits' shape for "none". float32 for
        16-bit logits, else of the logits' dtype.

    Raises:
        TypeError: logits that are not floating, labels of another framework, a dtype that makes no sense.
        ValueError: shapes that do not fit, options out of range.

    Source:
        docs/semantics.md; numerics in xent/formulas/.

    Example:
        >>> import numpy as np, xent
        >>> print(xent.sigmoid_ce(np.array([2.0, -1.0, 40.0]), [1, 0, 1], reduce="none").round(4))
        [0.1269 0.3133 0.    ]
    """
    if unknown:
        raise unexpected(sigmoid_ce, unknown)
    operands = Operands(logits, labels, sample_weight, denom=denom, pos_weight=pos_weight)
    return run(SIGMOID, operands, Options(reduce=reduce, label_smoothing=label_smoothing))
