"""Shapes that a TensorFlow graph does not know while it is traced, checked when it runs, by XLA too."""

from __future__ import annotations

import re
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any

import tensorflow as tf
from xent.adapter import Array, UnknownShapes

Dimension = tf.compat.v1.Dimension
# How assertions say a sentence: a graph raises them after the call, which may have been by another library's names
WORDING: ContextVar[Callable[[str], str]] = ContextVar("WORDING", default=str)


def of(x: Array) -> tuple[int | None, ...]:
    """The shape. TensorFlow may have been switched back to its version 1 at any time."""
    shape = tuple(x.shape)
    if not tf.Tensor._USE_EQUALITY or (shape and isinstance(shape[0], Dimension)):  # the former has no public name
        raise RuntimeError(
            "TensorFlow: xent needs tensors that are compared by value and shapes of ints; after "
            "tf.compat.v1.disable_v2_behavior() call tf.compat.v1.enable_tensor_equality() and "
            "tf.compat.v1.enable_v2_tensorshape()"
        )
    return shape


def ranked(x: Array) -> bool:
    return x.shape.rank is not None


def lengths(x: Array) -> Any:
    whole = tf.shape(x, tf.int64)
    return tuple(whole[i] if n is None else n for i, n in enumerate(x.shape)) if ranked(x) else whole


def vector(lengths: Any) -> Array:
    return tf.convert_to_tensor(lengths, tf.int64)


def require(value: Array, condition: Array, words: list[Any], shape: Any) -> Array:
    """An assertion, which says the sentence, and a reshape that is impossible if the condition fails.

    XLA drops assertions; its error about the reshape has the operation's name, which is made from the sentence.
    """
    said = [WORDING.get()(word) if isinstance(word, str) else vector(word) for word in words]
    name = re.sub(r"\W+", "_", " ".join(word for word in said if isinstance(word, str)))
    assertion = tf.debugging.Assert(condition, said)
    with tf.control_dependencies([assertion]):
        impossible = tf.fill([tf.where(condition, 0, 1)], -2)
        checked = tf.reshape(value, tf.concat([tf.shape(value), impossible], 0), name)
    if tf.compat.v1.executing_eagerly_outside_functions():
        checked.set_shape(shape)
        return checked
    # In a graph of TF1 only what follows holds the assertion. Its optimizer drops the first of two reshapes in a row,
    # and any tf.identity, but no tf.ensure_shape, which forward mode does not take elsewhere.
    with tf.control_dependencies([assertion]):
        return tf.ensure_shape(checked, shape)


def fit(value: Array, lengths: Any, shape: tuple[int | None, ...] | None, rule: Any) -> Array:
    own, wanted = tf.shape(value, tf.int64), vector(lengths)
    has, wants = tf.size(own), tf.size(wanted)
    common = tf.minimum(has, wants)
    tail = own[has - common :]
    equal = tf.equal(tail, wanted[wants - common :])
    if rule.ones:
        equal |= tf.equal(tail, 1)
    rank = tf.less_equal(has, wants) if rule.broadcasts else tf.equal(has, wants)
    if rule.scalar:
        rank |= tf.equal(has, 0)
    value = require(value, rank & tf.reduce_all(equal), rule.words(wanted, own), value.shape)
    if shape is None:
        return value
    if not ranked(value):
        before = tf.ones([tf.maximum(wants - has, 0)], tf.int64)
        value = tf.reshape(value, tf.concat([before, own], 0))
        value.set_shape([None] * len(shape))
    if not rule.ones:
        value.set_shape(shape)
    return value


def flatten(x: Array, axis: int | None) -> tuple[Array, Any, Any]:
    if axis is None:
        whole = tf.shape(x, tf.int64)
        return tf.reshape(x, [-1]), whole, whole
    whole = tf.shape(x, tf.int64)
    exists = tf.less_equal(-tf.size(whole), axis) & tf.less(axis, tf.size(whole))
    x = require(x, exists, ["axis: expected one of an array of shape", whole, f"got {axis}"], x.shape)
    whole = tf.shape(x, tf.int64)
    before, after = whole[:axis], whole[axis:][1:]
    flat = [tf.reduce_prod(before), whole[axis], *([] if axis == -1 else [tf.reduce_prod(after)])]
    return tf.reshape(x, flat), whole, tf.concat([before, after], 0)


def spread(value: Array, lengths: Any, flat: Any) -> Array:
    return tf.reshape(tf.broadcast_to(value, lengths), vector(flat))


UNKNOWN = UnknownShapes(ranked, lengths, require, fit, flatten, spread, reshape=tf.reshape)
