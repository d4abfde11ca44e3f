"""NumPy: what its users write, at its best: in place, without one-hot labels. In float64 this is the truth."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
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
        modes={"eager": lambda loss: (lambda x, y: of_mean(loss(x, y))[0], lambda x, y: of_mean(loss(x, y)))},
        mean=lambda result: result,  # (loss, gradient), or the loss alone
    )


def contenders(workload: Workload) -> Iterator[Contender]:
    loss = ours(workload)
    yield Contender("xent", "eager", loss, linear_gradients if workload.linear else xent.value_and_grad(loss))
    yield Contender("NumPy, in place", "eager", *in_place(workload))


def of_mean(result: Any) -> tuple[Array, ...]:
    """The mean of a user's loss, which may be one a row, and the mean's gradient if there is one."""
    loss, *grad = result if isinstance(result, tuple) else (result,)
    return (np.mean(loss), *(k / np.size(loss) for k in grad))


def linear_gradients(inputs: Inputs, y: Array) -> tuple[Array, Inputs]:
    value, grads = xent.value_and_grad(xent.linear_ce)(*inputs, y)
    return value, (grads.hidden, grads.weight)


def in_place(workload: Workload) -> tuple[Call, Call]:
    """The mean loss, and the mean loss with its gradient."""
    loss = sigmoid if workload.loss == "sigmoid_ce" else partial(linear if workload.linear else softmax, workload)
    return partial(loss, gradient=False), partial(loss, gradient=True)


def wide(x: Array) -> Array:
    """16-bit floats as float32: NumPy would compute them one by one, in software."""
    x = np.asarray(x)
    return x.astype(np.float32) if x.dtype.itemsize == 2 else x


def softmax(workload: Workload, x: Array, y: Array, *, gradient: bool, out: Array = None) -> Any:
    """`out`, where exp(logits - maximum) goes, may be the logits themselves."""
    dtype, x, axis = x.dtype, wide(x), workload.axis
    if workload.ids:
        places = np.indices(y.shape, sparse=True)
        at_label = (*places, y) if axis == -1 else (places[0], y, *places[1:])
        weight, target = 1, x[at_label]
    else:
        weight, target = y.sum(axis, keepdims=True), np.einsum("nc,nc->n", y, x)
    top = x.max(axis, keepdims=True)
    e = np.subtract(x, top, out=out)
    np.exp(e, out=e)
    total = e.sum(axis, keepdims=True)
    loss = np.mean((weight * (np.log(total) + top)).squeeze(axis) - target)
    if not gradient:
        return loss
    e *= weight / (total * workload.rows)
    if workload.ids:
        e[at_label] -= 1 / workload.rows
    else:
        e -= y / workload.rows
    return loss, e.astype(dtype, copy=False)


def sigmoid(x: Array, z: Array, *, gradient: bool) -> Any:
    dtype, x = x.dtype, wide(x)
    e = np.abs(x)
    np.negative(e, out=e)
    np.exp(e, out=e)
    if gradient:
        grad = np.where(x < 0, e, 1)
        grad /= 1 + e
        grad -= z
        grad /= x.size
    loss = np.log1p(e, out=e)
    loss += np.maximum(x, 0)
    loss -= x * z
    return (loss.mean(), grad.astype(dtype, copy=False)) if gradient else loss.mean()


def linear(workload: Workload, inputs: Inputs, y: Array, *, gradient: bool) -> Any:
    dtype, (h, w) = inputs[0].dtype, map(wide, inputs)
    x = h @ w.T
    found = softmax(workload, x, y, gradient=gradient, out=x)
    if not gradient:
        return found
    loss, dx = found
    return loss, ((dx @ w).astype(dtype, copy=False), (dx.T @ h).astype(dtype, copy=False))
