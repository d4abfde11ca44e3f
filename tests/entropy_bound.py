"""How close an entropy and its gradient have to come to the truth: the bound of the losses.

(8 + lead) roundoffs of an entropy below 1e-3; the gradient entry by entry, relative to the larger of the two terms that
are subtracted.
"""

import numpy as np
from xent.verify.precision import PRECISION


def assert_accurate(x, truth, value, grad, dtype, what):
    precision = PRECISION[dtype]
    with np.errstate(invalid="ignore"):
        gap = np.nan_to_num(x.max(axis=-1, keepdims=True) - x, nan=0, posinf=0)
    ordered = np.sort(x, axis=-1)
    with np.errstate(invalid="ignore"):
        lead = ordered[:, -1] - ordered[:, -2] if x.shape[1] > 1 else np.zeros(len(x))
    lead = np.nan_to_num(lead, nan=0, posinf=0)
    size = np.abs(truth.loss)
    allowed = np.where(size >= 1e-3, precision.bar, (8 + lead) * precision.unit) * size + precision.tiny * (1 + lead)
    np.testing.assert_array_equal(np.isnan(value), np.isnan(truth.loss), err_msg=what)
    assert np.nanmax((np.abs(value - truth.loss) / allowed), initial=0) <= 1, what
    p, spread = terms(x)
    larger = np.maximum(gap, spread)  # of the two that are subtracted
    roundoffs = np.where(p * larger >= 1e-3, precision.bar, (8 + np.maximum(gap, lead[:, None])) * precision.unit)
    flushed = precision.tiny * (1 + np.maximum(larger, lead[:, None]))  # a p below the smallest normal number may be 0
    allowed = roundoffs * p * larger + flushed
    if precision.mantissa is not None:
        with np.errstate(invalid="ignore"):
            exponent = np.frexp(np.nan_to_num(truth.logits))[1]
        allowed = allowed + np.ldexp(1.0, np.maximum(exponent - 1, precision.smallest) - precision.mantissa)
    np.testing.assert_array_equal(np.isnan(grad), np.isnan(truth.logits), err_msg=what)
    assert np.nanmax((np.abs(grad - truth.logits) / allowed), initial=0) <= 1, what


def terms(x):
    """Probabilities, and the mean distance from the maximum, in float64."""
    with np.errstate(invalid="ignore", over="ignore"):
        gap = x.max(axis=-1, keepdims=True) - x
        p = np.exp(-gap)
        p = p / p.sum(axis=-1, keepdims=True)
        return p, np.where(p == 0, 0.0, p * gap).sum(axis=-1, keepdims=True)
