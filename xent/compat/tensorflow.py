"""TensorFlow's names for the losses: `nn` in place of `tf.nn`, `losses` of `tf.compat.v1.losses`; see
docs/migrating/tensorflow.md.

Signatures, argument order, class axis, weights and denominators are those of TensorFlow 2.21. The numbers, masks,
infinities and errors are xent's, in TensorFlow's names; class ids out of range are its InvalidArgumentError, too. The
softmax losses' gradient in the logits is TensorFlow's: softmax - labels, also where the labels do not add up to 1 and
that is not the loss's derivative, which `xent.softmax_ce` gives. Where the two differ, with
x = [[2, 0.5, 6], [0.1, 0, 3]] in float32, x16 the same in float16, ids = [2, 1],
eye = [[1, 0, 0], [0, 1, 0]], eye16 in float16, column = [[1], [2]], huge = [[1e39, 0]] in float64:

| call | TensorFlow | xent |
| --- | --- | --- |
| `nn.softmax_cross_entropy_with_logits([[0, 1, 0]], [[1.0, 2.0, -inf]])` | nan | 0.3133 |
| `nn.softmax_cross_entropy_with_logits([[1, 0]], [[20.0, 0.0]])` | 0 | 2.061e-09 |
| `nn.softmax_cross_entropy_with_logits(eye16, x16).dtype` | float16 | float32 |
| `nn.softmax_cross_entropy_with_logits([0, 1, 0], x)` | 5.522, 3.1 | ValueError |
| `nn.softmax_cross_entropy_with_logits(ones((1, 6, 3)), ones((2, 3, 3)))[0, 0]` | 3.296 | ValueError |
| `nn.softmax_cross_entropy_with_logits(ones((1, 3, 3)), ones((2, 3, 3)))[0, 0]` | InvalidArgumentError | 3.296 |
| `gradient(lambda x: nn.softmax_cross_entropy_with_logits([[inf, 0]], x), [[0, 0]])` | -inf, 0.5 | nan, nan |
| `gradient(lambda t: nn.softmax_cross_entropy_with_logits(t, x), [[1]])` | InvalidArgumentError | 15.77 |
| `nn.softmax_cross_entropy_with_logits(eye, x, axis=-2)` | InvalidArgumentError | 0.1394, 0.9741, 0 |
| `nn.softmax_cross_entropy_with_logits(eye, x, axis=2)` | InvalidArgumentError | ValueError |
| `nn.softmax_cross_entropy_with_logits(eye, [[1, 2, 3], [4, 5, 6]])` | InvalidArgumentError | TypeError |
| `nn.sparse_softmax_cross_entropy_with_logits([2, -1], x)` | InvalidArgumentError | LabelError |
| `graph(lambda t: nn.sparse_softmax_cross_entropy_with_logits(t, x), [2, -1])` | InvalidArgumentError | 0.02216, nan |
| `nn.sparse_softmax_cross_entropy_with_logits([0], [[20.0, 0.0]])` | 0 | 2.061e-09 |
| `nn.sparse_softmax_cross_entropy_with_logits(ids, x16).dtype` | float16 | float32 |
| `nn.sparse_softmax_cross_entropy_with_logits([True, False], x)` | InvalidArgumentError | 5.522, 3 |
| `nn.sparse_softmax_cross_entropy_with_logits([2.0, 1.0], x)` | InvalidArgumentError | TypeError |
| `nn.sigmoid_cross_entropy_with_logits([0.0], [-inf])` | nan | 0 |
| `nn.sigmoid_cross_entropy_with_logits([0, 1], [0.5, 0.5])` | InvalidArgumentError | 0.9741, 0.4741 |
| `nn.sigmoid_cross_entropy_with_logits(eye16, x16).dtype` | float16 | float32 |
| `nn.weighted_cross_entropy_with_logits([0.0], [-inf], 2.0)` | nan | 0 |
| `nn.weighted_cross_entropy_with_logits([1.0], [0.0], column)` | 0.6931, 1.386 | ValueError |
| `gradient(lambda q: nn.weighted_cross_entropy_with_logits([1.0], [0.0], q), 2)` | 0.6931 | 0 |
| `losses.sparse_softmax_cross_entropy(ids, [[nan, 1, 2], [0.1, 0, 3]], weights=[0, 1])` | nan | 3.1 |
| `losses.sparse_softmax_cross_entropy([7, 1], x, weights=[0, 1])` | InvalidArgumentError | 3.1 |
| `gradient(lambda w: losses.sparse_softmax_cross_entropy(ids, x, w), [0, 1])` | 0.02216, 3.1 | 0, 3.1 |
| `losses.sparse_softmax_cross_entropy(ids, x16).dtype` | float16 | float32 |
| `losses.sparse_softmax_cross_entropy([1], huge)` | inf | 1e+39 |
| `losses.softmax_cross_entropy(eye, x, label_smoothing=-0.5)` | 3.561 | ValueError |
| `losses.softmax_cross_entropy(eye, x, label_smoothing=2)` | 1.694 | ValueError |

Labels of a rank that a graph does not know are not squeezed. TF1's own optimizers are not told the reduction, by which
they divide among the replicas of a distribution strategy.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import tensorflow as tf
import xent
from xent import _rules
from xent._shapes import fitted, ranked, shape_of
from xent.backends.tensorflow import ADAPTER
from xent.backends.tensorflow.shapes import UNKNOWN
from xent.compat._tensorflow_errors import reworded
from xent.compat._tensorflow_softmax import softmax_ce

Reduction = tf.compat.v1.losses.Reduction
LOSSES = tf.compat.v1.GraphKeys.LOSSES
REDUCE = {
    Reduction.NONE: "none",
    Reduction.SUM: "sum",
    Reduction.MEAN: "mean",
    Reduction.SUM_OVER_BATCH_SIZE: "mean_all",
    Reduction.SUM_BY_NONZERO_WEIGHTS: "mean_nonzero",
}
LABELS = _rules.DISTRIBUTIONS._replace(after=" (the logits'), or that with 1s; got", ones=True)
# What errors say in the place of xent's own words.
NN_WORDS = {
    "sparse_ce": "sparse_softmax_cross_entropy_with_logits",
    "softmax_ce": "softmax_cross_entropy_with_logits",
    "without axis": "without the last axis",
    r"; they fit axis=\d+": "",
    "; ignore_index=-100 leaves it out": "",
}
LOSS_WORDS = {
    **NN_WORDS,
    "sparse_ce": "sparse_softmax_cross_entropy",
    "softmax_ce": "softmax_cross_entropy",
    "; ignore_index=-100 leaves it out": "; a weight of 0 leaves it out",
    "sample_weight": "weights",
}


class LabelError(xent.LabelError, tf.errors.InvalidArgumentError):
    """A class id is out of range: for those who catch xent's error, and for those who catch TensorFlow's."""

    __init__ = tf.errors.InvalidArgumentError.__init__


# ---- tf.nn: a loss for each example


def softmax_cross_entropy_with_logits(labels: Any, logits: Any, axis: int = -1, name: str | None = None) -> Any:
    """Cross-entropy against distributions over the classes: `xent.softmax_ce` with reduce="none".

    Args:
        labels: of the logits' shape or that with 1s, any real dtype. The loss is differentiable in them, too.
        logits: [..., C, ...], floating.
        axis: where the classes are.
        name: of the operations in a graph.

    Returns:
        The losses, of the logits' shape without `axis`.

    Raises:
        TypeError, ValueError: as `xent.softmax_ce`.
    """
    with tf.name_scope(name or "softmax_cross_entropy_with_logits"):
        logits = _tensor(logits)
        labels = reworded(NN_WORDS, _broadcast, _required("labels", labels), logits)
        return softmax_ce(NN_WORDS, logits, labels, axis=axis, reduce="none")


def sparse_softmax_cross_entropy_with_logits(labels: Any, logits: Any, name: str | None = None) -> Any:
    """Cross-entropy against class ids: `xent.sparse_ce` with reduce="none".

    Args:
        labels: class ids, of the logits' shape without the last axis, any integer or bool dtype.
        logits: [..., C], floating.
        name: of the operations in a graph.

    Returns:
        The losses, of the labels' shape.

    Raises:
        xent.LabelError: class ids out of range that can be read; those of a graph make their loss NaN.
        TypeError, ValueError: as `xent.sparse_ce`.
    """
    with tf.name_scope(name or "sparse_softmax_cross_entropy_with_logits"):
        return _sparse_ce(NN_WORDS, _tensor(logits), _required("labels", labels), reduce="none")


def sigmoid_cross_entropy_with_logits(labels: Any = None, logits: Any = None, name: str | None = None) -> Any:
    """Binary cross-entropy of each element: `xent.sigmoid_ce` with reduce="none".

    Args:
        labels: of the logits' shape, from 0 to 1, any real dtype.
        logits: log-odds of any shape, floating.
        name: of the operations in a graph.

    Returns:
        The losses, of the logits' shape.

    Raises:
        TypeError, ValueError: as `xent.sigmoid_ce`.
    """
    with tf.name_scope(name or "sigmoid_cross_entropy_with_logits"):
        return reworded(NN_WORDS, xent.sigmoid_ce, _tensor(logits), _required("labels", labels), reduce="none")


def weighted_cross_entropy_with_logits(labels: Any, logits: Any, pos_weight: Any, name: str | None = None) -> Any:
    """Binary cross-entropy of each element, positives weighted: `xent.sigmoid_ce` with pos_weight and reduce="none".

    Args:
        labels: of the logits' shape, from 0 to 1, any real dtype.
        logits: log-odds of any shape, floating.
        pos_weight: broadcasting to the logits' shape; a constant.
        name: of the operations in a graph.

    Returns:
        The losses, of the logits' shape.

    Raises:
        TypeError, ValueError: as `xent.sigmoid_ce`.
    """
    with tf.name_scope(name or "weighted_cross_entropy_with_logits"):
        options = {"pos_weight": _required("pos_weight", pos_weight), "reduce": "none"}
        return reworded(NN_WORDS, xent.sigmoid_ce, _tensor(logits), _required("labels", labels), **options)


# ---- tf.compat.v1.losses: a loss for all examples, weighted and reduced


def softmax_cross_entropy(
    onehot_labels: Any,
    logits: Any,
    weights: Any = 1.0,
    label_smoothing: float = 0,
    scope: Any = None,
    loss_collection: Any = LOSSES,
    reduction: str = Reduction.SUM_BY_NONZERO_WEIGHTS,
) -> Any:
    """Cross-entropy against distributions over the classes: `xent.softmax_ce`.

    Args:
        onehot_labels: of the logits' shape, any real dtype; constants.
        logits: [..., C], floating.
        weights: a scalar, or of the loss's shape or that with 1s.
        label_smoothing: e from 0 to 1: labels become (1 - e) t + e / C.
        scope: of the operations in a graph.
        loss_collection: where a graph collects its losses.
        reduction: one of `losses.Reduction`.

    Returns:
        The loss; of the logits' shape without the last axis for `Reduction.NONE`.

    Raises:
        TypeError, ValueError: as `xent.softmax_ce`.
    """
    reduce, labels = _reduce(reduction), _required("onehot_labels", onehot_labels)
    with tf.name_scope(scope or "softmax_cross_entropy_loss"):
        if tf.is_tensor(labels) or isinstance(labels, tf.Variable):
            labels = tf.stop_gradient(labels)
        options = {"sample_weight": _sample_weight(weights), "label_smoothing": label_smoothing, "reduce": reduce}
        words = LOSS_WORDS | {"labels": "onehot_labels"}
        return _collected(softmax_ce(words, _tensor(logits), labels, **options), loss_collection)


def sparse_softmax_cross_entropy(
    labels: Any,
    logits: Any,
    weights: Any = 1.0,
    scope: Any = None,
    loss_collection: Any = LOSSES,
    reduction: str = Reduction.SUM_BY_NONZERO_WEIGHTS,
) -> Any:
    """Cross-entropy against class ids: `xent.sparse_ce`.

    Args:
        labels: class ids, of the logits' shape without the last axis, which may be there with a length of 1.
        logits: [..., C], floating.
        weights: a scalar, or of the loss's shape or that with 1s; a last axis of length 1 may be there, too.
        scope: of the operations in a graph.
        loss_collection: where a graph collects its losses.
        reduction: one of `losses.Reduction`.

    Returns:
        The loss; of the labels' shape for `Reduction.NONE`.

    Raises:
        xent.LabelError: class ids out of range that can be read; those of a graph make their loss NaN.
        TypeError, ValueError: as `xent.sparse_ce`.
    """
    reduce = _reduce(reduction)
    with tf.name_scope(scope or "sparse_softmax_cross_entropy_loss"):
        given = tf.TensorShape(np.shape(_required("labels", labels))).rank
        logits = _without_last(_tensor(logits), None if given is None else given + 2)
        labels = _without_last(labels, logits.shape.rank)
        weights = _without_last(_sample_weight(weights), logits.shape.rank)
        loss = _sparse_ce(LOSS_WORDS, logits, labels, sample_weight=weights, reduce=reduce)
        return _collected(loss, loss_collection)


def sigmoid_cross_entropy(
    multi_class_labels: Any,
    logits: Any,
    weights: Any = 1.0,
    label_smoothing: float = 0,
    scope: Any = None,
    loss_collection: Any = LOSSES,
    reduction: str = Reduction.SUM_BY_NONZERO_WEIGHTS,
) -> Any:
    """Binary cross-entropy: `xent.sigmoid_ce`.

    Args:
        multi_class_labels: of the logits' shape, from 0 to 1, any real dtype.
        logits: log-odds of any shape, floating.
        weights: a scalar, or of the logits' shape or that with 1s.
        label_smoothing: e from 0 to 1: labels become (1 - e) z + e / 2.
        scope: of the operations in a graph.
        loss_collection: where a graph collects its losses.
        reduction: one of `losses.Reduction`.

    Returns:
        The loss; of the logits' shape for `Reduction.NONE`.

    Raises:
        TypeError, ValueError: as `xent.sigmoid_ce`.
    """
    reduce = _reduce(reduction)
    with tf.name_scope(scope or "sigmoid_cross_entropy_loss"):
        options = {"sample_weight": _sample_weight(weights), "label_smoothing": label_smoothing, "reduce": reduce}
        labels = _required("multi_class_labels", multi_class_labels)
        words = LOSS_WORDS | {"labels": "multi_class_labels"}
        return _collected(reworded(words, xent.sigmoid_ce, _tensor(logits), labels, **options), loss_collection)


# ---- what they share


def _required(argument: str, value: Any) -> Any:
    if value is None:
        raise ValueError(f"{argument}: expected an array, got None")
    return value


def _tensor(logits: Any) -> Any:
    """As TensorFlow takes them: NumPy arrays and lists become tensors, and so does the result."""
    return tf.convert_to_tensor(_required("logits", logits))


def _broadcast(labels: Any, logits: Any) -> Any:
    """Labels in the logits' shape, along whose axes they may have a length of 1."""
    own = tf.TensorShape(np.shape(labels))
    if own.is_fully_defined() and own == logits.shape:
        return labels
    labels = tf.convert_to_tensor(labels)
    if ranked(ADAPTER, logits):
        labels = fitted(ADAPTER, LABELS, labels, shape_of(ADAPTER, logits), tuple(logits.shape))
    else:
        labels = UNKNOWN.fit(labels, UNKNOWN.lengths(logits), None, LABELS)
    return tf.broadcast_to(labels, tf.shape(logits))


def _sparse_ce(words: dict[str, str], logits: Any, labels: Any, **options: Any) -> Any:
    try:
        return reworded(words, xent.sparse_ce, logits, labels, **options)
    except xent.LabelError as error:
        raise LabelError(None, None, str(error)) from None


def _sample_weight(weights: Any) -> Any:
    return None if isinstance(weights, float) and weights == 1 else _required("weights", weights)


def _reduce(reduction: Any) -> str:
    if reduction not in REDUCE:
        raise ValueError(f"reduction: expected one of {', '.join(map(repr, REDUCE))}, got {reduction!r}")
    return REDUCE[reduction]


def _without_last(array: Any, rank: int | None) -> Any:
    """An array of this rank whose last length is 1, without it; anything else as it is."""
    shape = tf.TensorShape(np.shape(array))
    if rank is None or shape.rank != rank or shape[-1] not in (1, None):
        return array
    return tf.squeeze(array, -1) if tf.is_tensor(array) else np.squeeze(array, -1)


def _collected(loss: Any, collection: Any) -> Any:
    tf.compat.v1.losses.add_loss(loss, collection)
    return loss


nn = SimpleNamespace(
    softmax_cross_entropy_with_logits=softmax_cross_entropy_with_logits,
    sparse_softmax_cross_entropy_with_logits=sparse_softmax_cross_entropy_with_logits,
    sigmoid_cross_entropy_with_logits=sigmoid_cross_entropy_with_logits,
    weighted_cross_entropy_with_logits=weighted_cross_entropy_with_logits,
)
losses = SimpleNamespace(
    Reduction=Reduction,
    softmax_cross_entropy=softmax_cross_entropy,
    sparse_softmax_cross_entropy=sparse_softmax_cross_entropy,
    sigmoid_cross_entropy=sigmoid_cross_entropy,
)
