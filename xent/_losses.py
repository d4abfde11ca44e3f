"""The losses: signature and meaning, then find the adapter, check, run the kernel, reduce."""

from __future__ import annotations

from typing import Any

from xent import _plan
from xent._adapter import Array, Scalar
from xent._dispatch import find


def softmax_ce(
    logits: Array,
    labels: Array,
    *,
    axis: int = -1,
    reduce: str = "mean",
    weights: Any = None,
    class_weights: Any = None,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    denom: Scalar | None = None,
) -> Array:
    xp = find(logits)
    plan, arrays = _plan.softmax(
        xp, logits, labels, axis, reduce, weights, class_weights, label_smoothing, z_loss, denom
    )
    return xp.run(_plan.softmax_loss, plan, *arrays)


def sparse_ce(
    logits: Array,
    labels: Array,
    *,
    axis: int = -1,
    reduce: str = "mean",
    weights: Any = None,
    class_weights: Any = None,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    ignore_index: int | None = None,
    invalid: str = "auto",
    denom: Scalar | None = None,
) -> Array:
    xp = find(logits)
    plan, arrays = _plan.sparse(
        xp, logits, labels, axis, reduce, weights, class_weights, label_smoothing, z_loss, ignore_index, invalid, denom
    )
    return xp.run(_plan.softmax_loss, plan, *arrays)


def sigmoid_ce(
    logits: Array,
    labels: Array,
    *,
    reduce: str = "mean",
    weights: Any = None,
    pos_weight: Any = None,
    label_smoothing: float = 0.0,
    denom: Scalar | None = None,
) -> Array:
    xp = find(logits)
    plan, arrays = _plan.sigmoid(xp, logits, labels, reduce, weights, pos_weight, label_smoothing, denom)
    return xp.run(_plan.sigmoid_loss, plan, *arrays)
