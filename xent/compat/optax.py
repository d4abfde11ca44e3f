"""optax's names for the losses: `from xent.compat.optax import softmax_cross_entropy`; see docs/migrating/optax.md.

Signatures, argument order, class axis, `where` and shapes of the results are those of optax 0.2.8. The numbers, masks,
infinities and errors are xent's. Where the two differ, with x = [[2, 0.5, 6], [0.1, 0, 3]] in float32, x16 the same in
float16, ids = [2, 1], eye = [[1, 0, 0], [0, 1, 0]], and eye16 in float16:

| call | optax | xent |
| --- | --- | --- |
| `softmax_cross_entropy([[1, 2, -inf]], [[0, 1, 0]])` | nan | 0.3133 |
| `labels_gradient(softmax_cross_entropy, x, eye, where=[True, False])[1]` | nan, nan, nan | 0, 0, 0 |
| `softmax_cross_entropy([[20, 0]], [[1, 0]])` | 0 | 2.061e-09 |
| `softmax_cross_entropy(x16, eye16).dtype` | float16 | float32 |
| `softmax_cross_entropy(x, [[0, 1, 0]])` | 5.522, 3.1 | ValueError |
| `softmax_cross_entropy([[]], [[]])` | 0 | ValueError |
| `softmax_cross_entropy_with_integer_labels(x, [2, -1])` | 0.02216, 0.09967 | LabelError |
| `softmax_cross_entropy_with_integer_labels(x, [2, 3])` | 0.02216, nan | LabelError |
| `softmax_cross_entropy_with_integer_labels([[0.1, 0, 3]], [0], where=[[False, True, True]])` | 2.949 | inf |
| `softmax_cross_entropy_with_integer_labels([[20, 0]], [0])` | 0 | 2.061e-09 |
| `softmax_cross_entropy_with_integer_labels(x16, ids).dtype` | float16 | float32 |
| `softmax_cross_entropy_with_integer_labels(x, [True, False])` | TypeError | 5.522, 3 |
| `safe_softmax_cross_entropy([[20, 0]], [[1, 0]])` | 0 | 2.061e-09 |
| `safe_softmax_cross_entropy(x16, eye16).dtype` | float16 | float32 |
| `safe_softmax_cross_entropy(x, [[0, 1, 0]])` | 5.522, 3.1 | ValueError |
| `sigmoid_binary_cross_entropy([-inf], [0.0])` | nan | 0 |
| `sigmoid_binary_cross_entropy(x16, eye16).dtype` | float16 | float32 |
| `sigmoid_binary_cross_entropy([0, 0], [[0], [1]])` | 0.6931, 0.6931, 0.6931, 0.6931 | ValueError |
"""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import xent
from xent import _check
from xent.compat._errors import reworded

Axes = int | tuple[int, ...] | None
# What errors say in the place of xent's own words.
WORDS = {
    "sparse_ce": "softmax_cross_entropy_with_integer_labels",
    "softmax_ce": "softmax_cross_entropy",
    "ignore_index=-100 leaves it out": "where=False leaves it out",
}


def softmax_cross_entropy(logits: Any, labels: Any, axis: Axes = -1, where: Any = None) -> jax.Array:
    """Cross-entropy against distributions over the classes, of each example: `xent.softmax_ce` with reduce="none".

    Args:
        logits: [..., C, ...], floating.
        labels: of the logits' shape.
        axis: the axes that the classes are along; None: all.
        where: which examples, or which of their classes, are there; an example without any has a loss of 0.

    Returns:
        The losses, of the logits' shape without `axis`.

    Raises:
        TypeError, ValueError: as `xent.softmax_ce`.
    """
    logits = jnp.asarray(logits)
    mask = _mask(where, logits, axis)
    if mask is not None:
        labels = jnp.where(mask, labels, 0)
    return _rows(xent.softmax_ce, logits, _classes_last(jnp.asarray(labels), axis), axis, mask)


def softmax_cross_entropy_with_integer_labels(
    logits: Any, labels: Any, axis: int | tuple[int, ...] = -1, where: Any = None
) -> jax.Array:
    """Cross-entropy against class ids, of each example: `xent.sparse_ce` with reduce="none".

    Args:
        logits: [..., C, ...], floating.
        labels: class ids, of the logits' shape without `axis`. Of several axes they count along the last one first.
        axis: the axes that the classes are along.
        where: which examples, or which of their classes, are there; an example without any has a loss of 0, and one
            without its label's class has a loss of +inf.

    Returns:
        The losses, of the labels' shape.

    Raises:
        xent.LabelError: class ids out of range that can be read; inside `jit` their loss is NaN.
        TypeError, ValueError: as `xent.sparse_ce`.
    """
    if axis is None:
        raise ValueError("axis: expected an int or a tuple of ints, got None")
    logits = jnp.asarray(logits)
    return _rows(xent.sparse_ce, logits, labels, axis, _mask(where, logits, axis))


def safe_softmax_cross_entropy(logits: Any, labels: Any) -> jax.Array:
    """`softmax_cross_entropy` along the last axis: every loss of xent's takes 0 * log 0 as 0."""
    return softmax_cross_entropy(logits, labels)


def sigmoid_binary_cross_entropy(logits: Any, labels: Any) -> jax.Array:
    """Binary cross-entropy of each element: `xent.sigmoid_ce` with reduce="none".

    Args:
        logits: log-odds of any shape, floating.
        labels: of the logits' shape, from 0 to 1.

    Returns:
        The losses, of the logits' shape.

    Raises:
        TypeError, ValueError: as `xent.sigmoid_ce`.
    """
    loss: jax.Array = reworded(WORDS, xent.sigmoid_ce, jnp.asarray(logits), labels, reduce="none")
    return loss


def _rows(loss: Any, logits: jax.Array, labels: Any, axis: Axes, mask: jax.Array | None) -> jax.Array:
    """Labels have their classes along one axis already. What `mask` leaves out has probability 0."""
    there = None
    if mask is not None:
        logits = jnp.where(mask, logits, -jnp.inf)
        there = jnp.any(mask, axis)
    along = axis if isinstance(axis, int) else -1
    logits = _classes_last(logits, axis)
    losses: jax.Array = reworded(WORDS, loss, logits, labels, axis=along, reduce="none", sample_weight=there)
    return losses


def _mask(where: Any, logits: jax.Array, axis: Axes) -> jax.Array | None:
    """`where` in the logits' shape."""
    if where is None:
        return None
    _check.floating("logits", logits.dtype.name)  # integer ones cannot hold the -inf of what is left out
    mask = jnp.asarray(where)
    if mask.dtype != bool:
        raise TypeError(f"where: expected booleans, got {mask.dtype}")
    if mask.ndim != logits.ndim and axis is not None:
        mask = jnp.expand_dims(mask, axis)
    return jnp.broadcast_to(mask, logits.shape)


def _classes_last(array: jax.Array, axis: Axes) -> jax.Array:
    """Several class axes become one, the last; a single one stays where it is."""
    if isinstance(axis, int):
        return array
    rank = array.ndim
    given = range(rank) if axis is None else axis
    classes = tuple(place % rank for place in given)
    rows = tuple(place for place in range(rank) if place not in classes)
    moved = jnp.transpose(array, rows + classes)
    lengths = moved.shape[: len(rows)]
    return moved.reshape(*lengths, math.prod(moved.shape[len(rows) :]))
