"""How close to the truth a loss and its gradient have to come: the one tolerance of the tests and `xent compare`."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from xent.verify import oracle
from xent.verify.precision import PRECISION, Precision
from xent.verify.regimes import Batch

Array = NDArray[Any]


class Errors(NamedTuple):
    """Row by row, relative: in the loss, and in the worst entry of the gradient; each also as a share of what is
    allowed, so that 1 is the limit."""

    loss: Array
    loss_share: Array
    grad: Array
    grad_share: Array


def errors(batch: Batch, truth: oracle.Truth, loss: Array, grad: Array) -> Errors:
    """How far results are from the truth.

    Allowed in the loss: the dtype's bar where it is at least 1e-3, (8 + lead) roundoffs below, lead being how far the
    label is ahead: the rounding of m - x_j itself. In the gradient the same, entry by entry, with the entry's own gap;
    for soft or smoothed labels relative to the larger of the two terms that are subtracted. Where the gradient has 16
    bits, one unit in its last place (for soft labels, on top of those roundoffs).
    """
    precision = PRECISION[batch.dtype]
    lead, _, scale = _geometry(batch, truth)
    size = np.abs(truth.loss)
    allowed = np.where(size >= 1e-3, precision.bar, (8 + lead) * precision.unit)
    in_loss = relative(loss, truth.loss, size, precision.tiny)
    in_grad = relative(grad, truth.logits, scale, precision.tiny)
    if precision.mantissa is not None:  # subnormal results have fewer digits, down to none
        in_grad = np.where(np.abs(truth.logits) < 2.0**precision.smallest, 0.0, in_grad)
    share = relative(grad, truth.logits, allowed_in_gradient(batch, truth), precision.tiny)
    return Errors(per_row(in_loss), per_row(in_loss / allowed), per_row(in_grad), per_row(share))


def allowed_in_gradient(batch: Batch, truth: oracle.Truth) -> Array:
    """How far off each entry may be."""
    precision = PRECISION[batch.dtype]
    _, gap, scale = _geometry(batch, truth)
    if precision.mantissa is None:
        return np.asarray(np.where(scale >= 1e-3, precision.bar, (8 + gap) * precision.unit) * scale)
    exact = batch.loss == "sparse_ce" and not batch.options.get("label_smoothing")
    soft = 0.0 if exact else (8 + gap) * precision.unit * scale
    return np.asarray(of_rounding(truth.logits, precision) + soft)


def per_row(x: Array) -> Array:
    return np.asarray(x.reshape(len(x), -1).max(axis=1))


def _geometry(batch: Batch, truth: oracle.Truth) -> tuple[Array, Array, Array]:
    """The label's lead; each entry's distance from the maximum (the label's: its lead); the gradient's terms' size."""
    x, smoothing = batch.logits, batch.options.get("label_smoothing", 0.0)
    if batch.loss == "sigmoid_ce":
        gap = np.where(np.isfinite(x), np.abs(x), 0.0)
        z = (1 - smoothing) * batch.labels + smoothing / 2
        return gap, gap, np.maximum((1 - z) * oracle.logistic(x), z * oracle.logistic(-x))
    rows = np.arange(len(x))
    hard = batch.loss == "sparse_ce"
    y = batch.labels.clip(0, x.shape[1] - 1) if hard else batch.labels.argmax(axis=1)  # ignored ids can be anything
    others = x.copy()
    others[rows, y] = -np.inf
    best = np.where(np.isfinite(others.max(axis=1)), others.max(axis=1), x[rows, y])
    with np.errstate(invalid="ignore"):
        lead = np.nan_to_num(np.maximum(x[rows, y] - best, 0), nan=0, posinf=0)
        gap = np.nan_to_num(x.max(axis=1, keepdims=True) - x, posinf=0)
    if hard:
        gap[rows, y] = lead
        if not smoothing:
            return lead, gap, np.abs(truth.logits)
    t = (1 - smoothing) * (np.arange(x.shape[1]) == y[:, None] if hard else batch.labels) + smoothing / x.shape[1]
    return lead, gap, np.maximum(np.abs(truth.logits + t), t)


def relative(got: Array, want: Array, scale: Array, tiny: float) -> Array:
    """|got - want| / scale; 0 where they agree or what is left is below the smallest normal number."""
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        difference = np.abs(got - want)
        same = (got == want) | (np.isnan(got) & np.isnan(want)) | (difference <= tiny)
        error = np.where(same, 0.0, difference / scale)
    return np.where(np.isnan(error), np.inf, error)


def of_rounding(x: Array, precision: Precision) -> Array:
    """The spacing of a 16-bit dtype at x; 0 where results are not rounded to 16 bits."""
    if precision.mantissa is None:
        return np.zeros_like(x)
    _, exponent = np.frexp(x)
    return np.asarray(np.ldexp(1.0, np.maximum(exponent - 1, precision.smallest) - precision.mantissa))
