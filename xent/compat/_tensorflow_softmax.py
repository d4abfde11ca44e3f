"""TensorFlow's gradient of the softmax cross-entropy: softmax - labels, whatever the labels add up to.

With T their sum, the derivative of the loss is T softmax - labels. Where T is 1 that is the same, and the gradient is
xent's own; elsewhere (1 - T) softmax is added to it, T being a constant.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import tensorflow as tf
import xent
from xent.adapter import computed_in
from xent.backends.tensorflow.kernels import needs_framework_autodiff
from xent.compat._tensorflow_errors import reworded

EPSILON = {"bfloat16": 2.0**-7, "float16": 2.0**-10, "float32": 2.0**-23, "float64": 2.0**-52}
SUM_EPSILONS = 16  # the most that the sum of a float32 softmax over 50,257 classes was found to be off


@tf.autograph.experimental.do_not_convert
def softmax_ce(
    words: Mapping[str, str],
    logits: Any,
    labels: Any,
    reduced: Callable[[Any], Any] = lambda each: each,
    axis: int = -1,
    **options: Any,
) -> Any:
    """`xent.softmax_ce` with TensorFlow's gradient in the logits.

    Args:
        words: those of `reworded`.
        reduced: what the options make of each example's loss: weighted, and added up or averaged.
    """

    def xents(logits: Any = logits) -> Any:
        return reworded(words, xent.softmax_ce, logits, labels, axis=axis, **options)

    if not needs_framework_autodiff(logits):
        return xents()
    try:
        missing = _missing(labels, axis, computed_in(logits.dtype.name))
    except (TypeError, ValueError, tf.errors.InvalidArgumentError):
        return xents()  # whose error says what is wrong
    differs = tf.not_equal(missing, 0)
    weights = options.get("sample_weight")

    def theirs() -> Any:
        wide = tf.cast(logits, missing.dtype)  # two gradients of 16 bits would be rounded before they are added
        loss, zero = xents(wide), tf.zeros([], missing.dtype)
        with tf.control_dependencies([loss]):  # whose assertions say what does not fit
            counts = differs & tf.not_equal(1 if weights is None else weights, 0)
            added = missing * tf.reduce_logsumexp(tf.where(tf.expand_dims(counts, axis), wide, zero), axis)
            nothing = tf.where(counts & tf.math.is_finite(added), added - tf.stop_gradient(added), zero)
            return loss + tf.cast(reduced(nothing), loss.dtype)

    # In graphs always: a tf.cond lacks forward mode there, and gradients once it is loaded or TensorFlow 1 has run it
    return theirs() if not tf.executing_eagerly() or tf.reduce_any(differs) else xents()


def _missing(labels: Any, axis: int, dtype: str) -> Any:
    """1 - T of each example: 0 where it is within one epsilon of the labels' dtype and `SUM_EPSILONS` of the sum's."""
    labels = tf.stop_gradient(tf.convert_to_tensor(labels))
    missing = 1 - tf.reduce_sum(tf.cast(labels, dtype), axis)
    rounding = EPSILON.get(labels.dtype.name, 0.0) + SUM_EPSILONS * EPSILON[dtype]
    return tf.where(tf.abs(missing) > rounding, missing, tf.zeros([], dtype))
