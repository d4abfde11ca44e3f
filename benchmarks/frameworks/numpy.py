"""NumPy: what its users write, at its best: in place, without one-hot labels. In float64 it is the truth."""

from __future__ import annotations

from typing import Any

import numpy as np
import xent
from xent.benchmarks.frameworks import Call, Contender, Framework, Inputs, ours
from xent.benchmarks.workloads import Workload
from xent.verify.frameworks import load

Array = Any


def make(device: str) -> Framework:
    live = load("numpy")
    return Framework(
        array=lambda x, dtype: live.array(x, dtype if x.dtype.kind == "f" else None, device),
        numpy=wide,
        contenders=contenders,
        distributions=("numpy",),
    )


def contenders(workload: Workload) -> list[Contender]:
    loss = ours(workload)
    both = linear_gradients if workload.linear else xent.value_and_grad(loss)
    return [
        Contender("xent", "eager", loss, both),
        Contender("NumPy, in place", "eager", *in_place(workload)),
    ]


def linear_gradients(inputs: Inputs, y: Array) -> tuple[Array, Inputs]:
    value, grads = xent.value_and_grad(xent.linear_ce)(*inputs, y)
    return value, (grads.hidden, grads.weight)


def in_place(workload: Workload) -> tuple[Call, Call]:
    """The mean loss, and the mean loss with its gradient."""
    if workload.linear:
        return (lambda inputs, y: linear(inputs, y)[0]), linear_both
    return (sigmoid, sigmoid_both) if workload.loss == "sigmoid_ce" else softmax(workload)


def wide(x: Array) -> Array:
    """NumPy computes 16-bit floats one by one, in software."""
    x = np.asarray(x)
    return x.astype(np.float32) if x.dtype.itemsize == 2 else x


# ---- softmax_ce, sparse_ce


def at(workload: Workload, y: Array) -> Any:
    """The index of the labels' entries."""
    places = np.indices(y.shape, sparse=True)
    return (*places, y) if workload.axis == -1 else (places[0], y, *places[1:])


def softmax(workload: Workload) -> tuple[Call, Call]:
    axis = workload.axis

    def parts(x: Array, y: Array) -> tuple[Array, Array, Array]:
        top = x.max(axis, keepdims=True)
        e = x - top
        np.exp(e, out=e)
        total = e.sum(axis, keepdims=True)
        lse = (np.log(total) + top).squeeze(axis)
        if workload.ids:
            return np.mean(lse - x[at(workload, y)]), e, total
        return np.mean(y.sum(axis) * lse - np.einsum("nc,nc->n", y, x)), e, total

    def both(x: Array, y: Array) -> tuple[Array, Array]:
        loss, e, total = parts(wide(x), y)
        if workload.ids:
            e *= 1 / (total * workload.rows)
            e[at(workload, y)] -= 1 / workload.rows
        else:
            e *= y.sum(axis, keepdims=True) / total
            e -= y
            e *= 1 / workload.rows
        return loss, e.astype(x.dtype, copy=False)

    return lambda x, y: parts(wide(x), y)[0], both


# ---- sigmoid_ce


def sigmoid(x: Array, z: Array) -> Array:
    x = wide(x)
    return softplus(x, falling(x), z)


def sigmoid_both(x: Array, z: Array) -> tuple[Array, Array]:
    dtype, x = x.dtype, wide(x)
    e = falling(x)
    grad = np.where(x < 0, e, 1)
    grad /= 1 + e
    grad -= z
    grad /= x.size
    return softplus(x, e, z), grad.astype(dtype, copy=False)


def falling(x: Array) -> Array:
    """exp(-|x|)"""
    e = np.abs(x)
    np.negative(e, out=e)
    return np.exp(e, out=e)


def softplus(x: Array, e: Array, z: Array) -> Array:
    loss = np.log1p(e, out=e)
    loss += np.maximum(x, 0)
    loss -= x * z
    return loss.mean()


# ---- linear_ce


def linear(inputs: Inputs, y: Array) -> tuple[Array, Array, Array]:
    """The loss; exp(logits - maximum), in the logits' memory; and its sums."""
    h, w = map(wide, inputs)
    x = h @ w.T
    x -= x.max(1, keepdims=True)
    at_label = x[np.arange(len(y)), y]
    np.exp(x, out=x)
    total = x.sum(1, keepdims=True)
    return np.mean(np.log(total[:, 0]) - at_label), x, total


def linear_both(inputs: Inputs, y: Array) -> tuple[Array, Inputs]:
    dtype, (h, w) = inputs[0].dtype, map(wide, inputs)
    loss, dx, total = linear((h, w), y)
    dx *= 1 / (total * len(y))
    dx[np.arange(len(y)), y] -= 1 / len(y)
    return loss, ((dx @ w).astype(dtype, copy=False), (dx.T @ h).astype(dtype, copy=False))
