"""Log-probabilities and entropy of each row: what policies are trained with."""

from __future__ import annotations

from typing import Any, NoReturn

from xent import _plan, formulas
from xent._check import unexpected
from xent._execute import Loss, ranked, run, softmax_value, softmax_value_and_grad
from xent._options import Operands, Options
from xent._plan import Plan
from xent.adapter import Array, EntropyKernels


def log_prob(
    logits: Array,
    labels: Array,
    *,
    axis: int = -1,
    ignore_index: int | None = None,
    invalid: str = "auto",
    softcap: float | None = None,
    logit_scale: float | None = None,
    **unknown: NoReturn,
) -> Array:
    """log softmax(logits) at each row's label: of the action taken, of the token written.

    For each row, x_y - lse, where lse = log(sum_j exp(x_j)), in nats: `sparse_ce` of the same arguments with
    reduce="none", negated. Accurate relative to its value however close to 0 it is. Differentiable in `logits`.

    Args:
        logits: unnormalised log-probabilities [..., C, ...], float16, bfloat16, float32 or float64, of NumPy, PyTorch,
            TensorFlow or JAX. Their type decides where it is computed.
        labels: y, of the logits' shape without `axis`, any integer or bool dtype; of the same framework, or NumPy's,
            or lists.
        axis: where the classes are.
        ignore_index: a class id that leaves the row out: its result and its gradient are exactly 0.
        invalid: what an id does that is no class and not ignored, as in `sparse_ce`.
        softcap: a cap s from 1e-15 to 1e15: the result is that of s tanh(x / s).
        logit_scale: a factor k from 1e-15 to 1e15, after the cap: a temperature is 1 / k.

    Returns:
        An array of the logits' framework, on their device, of the labels' shape. float32 for 16-bit logits, else of
        the logits' dtype.

    Raises:
        LabelError: class ids out of range; says how many, the first one's position and value, and the range.
        TypeError: logits that are not floating, labels that are, arrays of two frameworks.
        ValueError: shapes that do not fit, options out of range.

    Source:
        docs/policies.md; numerics in xent/formulas/.

    Example:
        >>> import numpy as np, xent
        >>> print(xent.log_prob(np.array([[2.0, 0.5, 6.0], [0.1, 0.0, 3.0]]), [2, 1]).round(4))
        [-0.0222 -3.0997]
    """
    if unknown:
        raise unexpected(log_prob, unknown)
    rest = invalid, False, softcap, None, logit_scale
    return run(LOG_PROB, Operands(logits, labels), Options(axis, ignore_index, "none", 0.0, 0.0, *rest))


def entropy(
    logits: Array,
    *,
    axis: int = -1,
    sample_weight: Any = None,
    softcap: float | None = None,
    logit_scale: float | None = None,
    **unknown: NoReturn,
) -> Array:
    """The entropy of each row's softmax(logits), in nats.

    For each row, H = -sum_j p_j log p_j, where 0 log 0 = 0: from 0, where one class has all the probability, to
    log(C), where all have the same. Accurate relative to its value, also where that is next to nothing.
    Differentiable in `logits` and `sample_weight`.

    Args:
        logits: unnormalised log-probabilities [..., C, ...], float16, bfloat16, float32 or float64, of NumPy, PyTorch,
            TensorFlow or JAX. Their type decides where it is computed.
        axis: where the classes are.
        sample_weight: w, a scalar, or of the logits' shape without `axis` or that with 1s; the result is w H. A weight
            of 0 leaves the row out: result and gradients are exactly 0, whatever it holds.
        softcap: a cap s from 1e-15 to 1e15: the entropy is that of s tanh(x / s).
        logit_scale: a factor k from 1e-15 to 1e15, after the cap: a temperature is 1 / k.

    Returns:
        An array of the logits' framework, on their device, of the logits' shape without `axis`. float32 for 16-bit
        logits, else of the logits' dtype.

    Raises:
        TypeError: logits that are not floating, weights of another framework.
        ValueError: shapes that do not fit, options out of range.

    Source:
        docs/policies.md; numerics in xent/formulas/entropy.py.

    Example:
        >>> import numpy as np, xent
        >>> print(xent.entropy(np.array([[2.0, 0.5, 6.0], [0.0, 0.0, 0.0]])).round(4))
        [0.1158 1.0986]
    """
    if unknown:
        raise unexpected(entropy, unknown)
    options = Options(axis, None, "none", softcap=softcap, logit_scale=logit_scale)
    return run(ENTROPY, Operands(logits, None, sample_weight), options)


# ---- from a checked call: log-probabilities are the losses of the rows, negated


def log_prob_value(plan: Plan, *operands: Any) -> Array:
    return 0.0 - softmax_value(plan, *operands)  # of rows that are left out 0, not -0


def log_prob_value_and_grad(plan: Plan, *operands: Any) -> tuple[Array, Array]:
    ops = plan.adapter.ops
    loss, dx = softmax_value_and_grad(plan, *operands)
    return 0.0 - loss, ops.astype(0.0 - dx, ops.dtype(dx))  # NumPy widens bfloat16


# ---- entropy, from a checked call


def entropy_value(plan: Plan, *operands: Any) -> Array:
    ops, cap_and_scale = plan.adapter.ops, plan.options.cap_and_scale
    x, w = _weighted_logits(plan, Operands(*operands))
    x = formulas.capped_and_scaled(ops, x, *cap_and_scale) if cap_and_scale else x
    entropy = _entropy_kernels(plan).value(_axis(plan), x, w)
    return entropy if w is None else w * entropy


def entropy_value_and_grad(plan: Plan, *operands: Any) -> tuple[Array, Array]:
    ops, cap_and_scale = plan.adapter.ops, plan.options.cap_and_scale
    given, w = _weighted_logits(plan, Operands(*operands))
    x = formulas.capped_and_scaled(ops, given, *cap_and_scale) if cap_and_scale else given
    entropy, dx = _entropy_kernels(plan).value_and_grad(_axis(plan), x, w)
    dx = dx * formulas.slope(ops, given, *cap_and_scale) if cap_and_scale else dx
    return entropy if w is None else w * entropy, ops.astype(dx, ops.dtype(operands[0]))


def _weighted_logits(plan: Plan, operands: Operands) -> tuple[Array, Array | None]:
    """And the rows' weights. Logits that are to be capped or scaled are 0 in rows that are left out."""
    ops, x = plan.adapter.ops, operands.inputs
    if plan.options.cap_and_scale or not plan.adapter.takes_16bit:
        x = ops.astype(x, plan.dtype)
    w = ranked(ops, operands.sample_weight, x, 1)
    w = None if w is None else ops.where(w == 0, 0.0, w)
    if w is not None and plan.options.cap_and_scale:
        x = ops.where(ops.expand_dims(w == 0, _axis(plan)), 0.0, x)
    return x, w


def _entropy_kernels(plan: Plan) -> EntropyKernels:
    return plan.adapter.entropy or formulas.entropy_kernels(plan.adapter.ops)


def _axis(plan: Plan) -> int:
    assert plan.layout is not None
    return plan.layout.axis


LOG_PROB = Loss("logits", _plan.sparse, log_prob_value, log_prob_value_and_grad)
ENTROPY = Loss("logits", _plan.entropy, entropy_value, entropy_value_and_grad)
