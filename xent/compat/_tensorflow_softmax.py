"""TensorFlow's gradient of the softmax cross-entropy: softmax - labels, whatever the labels add up to.

With T their sum, the derivative of the loss is T softmax - labels. Where T is 1 that is the same, and the gradient is
xent's own; elsewhere (1 - T) softmax is added to it, T being a constant.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import tensorflow as tf
import xent
from xent import _plan
from xent._execute import Loss, prepare, run, softmax_loss
from xent._options import Operands, Options
from xent.adapter import computed_in
from xent.backends.tensorflow.kernels import needs_framework_autodiff
from xent.compat._tensorflow_errors import reworded

EPSILON = {"bfloat16": 2.0**-7, "float16": 2.0**-10, "float32": 2.0**-23, "float64": 2.0**-52}
SUM_EPSILONS = 16  # the most that the sum of a float32 softmax over 50,257 classes was found to be off


@tf.autograph.experimental.do_not_convert
def softmax_ce(
    words: Mapping[str, str], logits: Any, labels: Any, axis: int = -1, sample_weight: Any = None, **options: Any
) -> Any:
    """`xent.softmax_ce` with TensorFlow's gradient in the logits. `words`: those of `reworded`."""
    dtype = computed_in(logits.dtype.name)
    try:
        rounding = EPSILON.get(tf.convert_to_tensor(labels).dtype.name, 0.0) + SUM_EPSILONS * EPSILON[dtype]
        # Not asked in graphs: a tf.cond lacks forward mode there, and gradients once it is loaded or TensorFlow 1 has
        # run it
        theirs = needs_framework_autodiff(logits) and (
            not tf.executing_eagerly() or tf.reduce_any(_missing(tf.cast(labels, dtype), axis, rounding) != 0)
        )
    except (TypeError, ValueError, tf.errors.InvalidArgumentError):
        theirs = False  # the error of xent.softmax_ce says what is wrong
    if not theirs:
        return reworded(words, xent.softmax_ce, logits, labels, axis=axis, sample_weight=sample_weight, **options)
    loss = Loss("logits", _plan.softmax, partial(_value, rounding), None)
    return reworded(words, run, loss, Operands(logits, labels, sample_weight), Options(axis, **options))


def _value(rounding: float, plan: Any, *operands: Any) -> Any:
    rows = prepare(plan, Operands(*operands))
    results = plan.adapter.softmax.rows(rows.layout._replace(lse=True), rows.x, rows.t, rows.u, rows.ids)
    added = _missing(rows.t, rows.layout.axis, rounding) * results.lse
    nothing = tf.where(tf.math.is_finite(added), added - tf.stop_gradient(added), tf.zeros_like(added))
    return softmax_loss(plan, rows, results._replace(nll=results.nll + nothing))


def _missing(labels: Any, axis: int, rounding: float) -> Any:
    """1 - T of each example, a constant: 0 where it is within `rounding`, one epsilon of the dtype that the labels came
    in and `SUM_EPSILONS` of the sum's."""
    missing = tf.stop_gradient(1 - tf.reduce_sum(labels, axis))
    return tf.where(tf.abs(missing) > rounding, missing, tf.zeros_like(missing))
