"""The loss together with its derivative in the logits, on every framework."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

from xent import _check, _plan
from xent._adapter import Adapter, Array
from xent._dispatch import find
from xent._losses import sigmoid_ce, softmax_ce, sparse_ce

_LOSSES: dict[Any, _plan.Loss] = {softmax_ce: _plan.SOFTMAX, sparse_ce: _plan.SPARSE, sigmoid_ce: _plan.SIGMOID}

_DEFAULTS = {
    loss: {p.name: p.default for p in inspect.signature(loss).parameters.values() if p.kind is p.KEYWORD_ONLY}
    for loss in _LOSSES
}


def value_and_grad(loss: Callable[..., Array]) -> Callable[..., tuple[Array, Array]]:
    """A function of the same arguments that returns the loss and its derivative in the logits.

    Works alike on every framework, NumPy included, eager or inside its compiler, without marking anything for
    differentiation first.

    Args:
        loss: one of xent's losses, or a `functools.partial` of one. Where the framework can differentiate (PyTorch,
            TensorFlow, JAX), any function of logits and further arguments.

    Returns:
        f(logits, ...) -> (loss(logits, ...), gradient). The gradient has the logits' shape, dtype and device. With
        reduce="none" it is the derivative of the losses' sum.

    Raises:
        TypeError: `loss` is not callable, or is not xent's own and the logits are NumPy's.

    Example:
        >>> import numpy as np, xent
        >>> loss, grad = xent.value_and_grad(xent.sparse_ce)(np.array([[2.0, 0.5, 6.0], [0.1, 0.0, 3.0]]), [2, 1])
        >>> print(loss.round(4), grad.round(4).tolist())
        1.5609 [[0.009, 0.002, -0.011], [0.0249, -0.4775, 0.4526]]
    """
    if not callable(loss):
        raise _check.not_a_loss(loss)

    def loss_and_grad(logits: Array, *args: Any, **kwargs: Any) -> tuple[Array, Array]:
        xp = find(logits)
        if xp.value_and_grad is None or (xp.rows_both is not None and _own(loss) and not xp.watched(logits)):
            return _by_kernel(xp, loss, (logits, *args), kwargs)
        x = xp.ops.asarray(logits, logits)
        _check.floating("logits", xp.ops.dtype(x))
        return xp.value_and_grad(lambda x: loss(x, *args, **kwargs), x)

    return loss_and_grad


def _own(loss: Any) -> Any:
    """xent's own loss inside keyword partials, or None."""
    while isinstance(loss, functools.partial) and not loss.args:
        loss = loss.func
    return loss if loss in _LOSSES else None


def _by_kernel(xp: Adapter, loss: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Array, Array]:
    """xent knows its own losses' derivatives, and the framework runs loss and derivative in one go."""
    own = _own(loss)
    if own is None:
        raise _check.not_differentiable(xp.name, loss, [known.__name__ for known in _LOSSES])
    while isinstance(loss, functools.partial):
        kwargs, loss = {**loss.keywords, **kwargs}, loss.func
    return _LOSSES[own].with_gradient(xp, *args, **{**_DEFAULTS[own], **kwargs})
