"""`linear_ce` among the other losses: hidden states and a weight whose products are known exactly, and how far off
the gradients in both may be."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from xent.verify import oracle, regimes
from xent.verify.precision import PRECISION
from xent.verify.regimes import Batch
from xent.verify.tolerance import Errors, allowed_in_gradient, errors, of_rounding, per_row, relative

Array = NDArray[Any]
LOSSES = (*regimes.LOSSES, "linear_ce")
FEATURES = 64  # that the ordinary rows' logits are sums over


class Truth(NamedTuple):
    """As `oracle.Truth`; `logits` has the gradients in hidden states and weight, one below the other."""

    loss: Array
    logits: Array
    of_logits: oracle.Truth  # of the losses as functions of the products


def batch(dtype: str, classes: int) -> Batch:
    """The same kinds of logits as for `sparse_ce`, but for -inf: 0 times it is NaN.

    Ordinary rows are products of whole numbers from -2 to 2 with such numbers / 16, exact in every dtype and order of
    summation. Each of the others picks its logits out of the weight by a hidden state of one 1 and 0s.
    """
    hard = regimes.batch("sparse_ce", dtype, classes)
    kept = np.array([name not in ("ordinary", "-inf") for name in hard.regimes])
    rng, rows = np.random.default_rng(1), regimes.REGIMES["ordinary"](np.random.default_rng(0), classes)[1]
    count, others = len(rows), int(kept.sum())
    hidden = np.zeros((count + others, others + FEATURES))
    hidden[:count, others:] = rng.integers(-2, 3, (count, FEATURES))
    hidden[count:, :others] = np.eye(others)
    weight = np.concatenate([hard.logits[kept].T, rng.integers(-2, 3, (classes, FEATURES)) / 16], axis=1)
    names = ("ordinary",) * count + tuple(np.array(hard.regimes)[kept])
    labels = np.concatenate([rows, hard.labels[kept]])
    return Batch("linear_ce", dtype, hidden @ weight.T, labels, names, hidden=hidden, weight=weight)


def truth(batch: Batch) -> Truth:
    of_logits = _of_logits(batch).truth()
    return Truth(of_logits.loss, _through(batch, of_logits.logits, batch.weight, batch.hidden), of_logits)


def _of_logits(batch: Batch) -> Batch:
    return replace(batch, loss="sparse_ce")


def _through(batch: Batch, dx: Array, weight: Array, hidden: Array) -> Array:
    """A gradient in the logits, taken on to hidden states and weight, one below the other."""
    return np.concatenate([np.matmul(dx, weight, dtype=np.float64), np.matmul(dx.T, hidden, dtype=np.float64)])


def gradient_errors(batch: Batch, truth: Truth, loss: Array, grad: Array) -> Errors:
    """Losses as for `sparse_ce`. Each entry of a gradient is a sum. It may be off by what its terms may be, and by a
    roundoff of the sizes of its terms for each of them that is added: products of matrices add up term by term. Each
    term may lose what is below the smallest normal number, and where the entry has 16 bits, one unit in its last place
    comes on top.
    """
    precision, dx = PRECISION[batch.dtype], truth.of_logits.logits
    of_loss = errors(_of_logits(batch), truth.of_logits, loss, dx)
    sizes = np.abs(batch.weight), np.abs(batch.hidden)
    size = _through(batch, np.abs(dx), *sizes)
    allowed = _through(batch, allowed_in_gradient(_of_logits(batch), truth.of_logits), *sizes)
    terms = _through(batch, dx != 0, *(each != 0 for each in sizes))
    flushed = precision.tiny * (terms + _through(batch, dx != 0, *sizes))
    allowed += terms * precision.unit * size + flushed + of_rounding(truth.logits, precision)
    found = relative(grad, truth.logits, size, precision.tiny)
    found = np.where(np.abs(grad - truth.logits) <= flushed, 0.0, found)
    if precision.mantissa is not None:  # subnormal results have fewer digits, down to none
        found = np.where(np.abs(truth.logits) < 2.0**precision.smallest, 0.0, found)
    shares = relative(grad, truth.logits, allowed, precision.tiny)
    return Errors(of_loss.loss, of_loss.loss_share, *(_by_row(batch, each) for each in (found, shares)))


def _by_row(batch: Batch, entries: Array) -> Array:
    """The worst in a row's hidden state, and in the features of the weight that it has a share in."""
    rows = len(batch.hidden)
    of_weight = np.where(batch.hidden != 0, entries[rows:].max(axis=0), 0.0)
    return np.asarray(np.maximum(per_row(entries[:rows]), of_weight.max(axis=1)))
