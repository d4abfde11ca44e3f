"""NumPy and SciPy: what their users write, at its best: in place, without one-hot labels."""

from __future__ import annotations

import importlib.util
from typing import Any

import numpy as np
import xent
from xent import _live

from ..workloads import Workload
from . import Contender, Framework, Inputs, Loss, ours

Array = Any


def make(device: str) -> Framework:
    live = _live.live("numpy")
    scipy = importlib.util.find_spec("scipy") is not None
    return Framework(
        array=lambda x, dtype: live.array(x, dtype if x.dtype.kind == "f" else None, device),
        numpy=wide,
        wait=lambda result: None,
        contenders=contenders,
        versions=("numpy", *(("scipy",) if scipy else ())),
        absent=[] if scipy else ["scipy: not installed (pip install scipy)"],
    )


def contenders(workload: Workload) -> list[Contender]:
    loss = ours(workload)
    if workload.linear:
        return linear_contenders(loss)
    found = [Contender("xent", "eager", True, loss, xent.value_and_grad(loss))]
    if workload.loss == "sigmoid_ce":
        return [*found, Contender("NumPy, in place", "eager", False, sigmoid, sigmoid_both)]
    rivals = {"NumPy, in place": in_place}
    if importlib.util.find_spec("scipy"):
        rivals["SciPy logsumexp, softmax"] = scipy_special
    for name, make_pair in rivals.items():
        found.append(Contender(name, "eager", False, *make_pair(workload)))
    return found


def linear_contenders(loss: Loss) -> list[Contender]:
    value_and_grad = xent.value_and_grad(xent.linear_ce)

    def both(x: Inputs, y: Array) -> tuple[Array, Inputs]:
        value, grads = value_and_grad(*x, y)
        return value, (grads.hidden, grads.weight)

    return [
        Contender("xent", "eager", True, loss, both),
        Contender("NumPy, in place", "eager", False, lambda x, y: linear(wide(x[0]), wide(x[1]), y)[0], linear_both),
    ]


def wide(x: Array) -> Array:
    """NumPy computes 16-bit floats one by one, in software."""
    x = np.asarray(x)
    return x.astype(np.float32) if x.dtype.itemsize == 2 else x


def at(workload: Workload, y: Array) -> Any:
    """Where the labels' entries are."""
    if workload.axis == -1:
        return np.arange(len(y)), y
    batch, *places = np.indices(y.shape, sparse=True)
    return (batch, y, *places)


def in_place(workload: Workload) -> Any:
    axis, sparse = workload.axis, workload.loss == "sparse_ce"

    def parts(x: Array, y: Array) -> tuple[Array, Array, Array]:
        x = wide(x)
        top = x.max(axis, keepdims=True)
        e = x - top
        np.exp(e, out=e)
        total = e.sum(axis, keepdims=True)
        lse = (np.log(total) + top).squeeze(axis)
        if sparse:
            return np.mean(lse - x[at(workload, y)]), e, total
        return np.mean(y.sum(axis) * lse - np.einsum("nc,nc->n", y, x)), e, total

    def both(x: Array, y: Array) -> tuple[Array, Array]:
        loss, e, total = parts(x, y)
        if sparse:
            e *= 1 / (total * workload.rows)
            e[at(workload, y)] -= 1 / workload.rows
        else:
            e *= y.sum(axis, keepdims=True) / total
            e -= y
            e *= 1 / workload.rows
        return loss, e.astype(x.dtype, copy=False)

    return lambda x, y: parts(x, y)[0], both


def linear(h: Array, w: Array, y: Array) -> tuple[Array, Array, Array]:
    """The loss; exp of the logits beneath their rows' maxima, over the logits; and its sums."""
    x = h @ w.T
    x -= x.max(1, keepdims=True)
    at_label = x[np.arange(len(y)), y]
    np.exp(x, out=x)
    total = x.sum(1, keepdims=True)
    return np.mean(np.log(total[:, 0]) - at_label), x, total


def linear_both(inputs: Inputs, y: Array) -> tuple[Array, Inputs]:
    dtype, (h, w) = inputs[0].dtype, map(wide, inputs)
    loss, dx, total = linear(h, w, y)
    dx *= 1 / (total * len(y))
    dx[np.arange(len(y)), y] -= 1 / len(y)
    return loss, ((dx @ w).astype(dtype, copy=False), (dx.T @ h).astype(dtype, copy=False))


def scipy_special(workload: Workload) -> Any:
    from scipy.special import logsumexp, softmax

    axis, sparse = workload.axis, workload.loss == "sparse_ce"

    def forward(x: Array, y: Array) -> Array:
        x = wide(x)
        lse = logsumexp(x, axis=axis)
        if sparse:
            return np.mean(lse - x[at(workload, y)])
        return np.mean(y.sum(axis) * lse - np.einsum("nc,nc->n", y, x))

    def both(x: Array, y: Array) -> tuple[Array, Array]:
        grad = softmax(wide(x), axis=axis)
        if sparse:
            grad[at(workload, y)] -= 1
        else:
            grad *= y.sum(axis, keepdims=True)
            grad -= y
        grad /= workload.rows
        return forward(x, y), grad.astype(x.dtype, copy=False)

    return forward, both


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
