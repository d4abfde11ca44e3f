"""The loss together with its derivative in the logits, on every framework."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

from xent import _check, _linear, _plan
from xent._adapter import Adapter
from xent._dispatch import contents, find
from xent._losses import linear_ce, sigmoid_ce, softmax_ce, sparse_ce

_LOSSES: dict[Any, Any] = {
    softmax_ce: _plan.SOFTMAX,
    sparse_ce: _plan.SPARSE,
    sigmoid_ce: _plan.SIGMOID,
    linear_ce: _linear.LINEAR,
}

_DEFAULTS = {
    loss: {p.name: p.default for p in inspect.signature(loss).parameters.values() if p.kind is p.KEYWORD_ONLY}
    for loss in _LOSSES
}


def value_and_grad(loss: Callable[..., Any]) -> Callable[..., tuple[Any, Any]]:
    """A function of the same arguments that returns the loss and its derivative in the logits.

    Works alike on every framework, NumPy included, eager or inside its compiler, without marking anything for
    differentiation first.

    Args:
        loss: one of xent's losses, or a `functools.partial` of one. Where the framework can differentiate (PyTorch,
            TensorFlow, JAX), any function of logits and further arguments.

    Returns:
        f(logits, ...) -> (loss(logits, ...), gradient). The gradient has the logits' shape, dtype and device. With
        reduce="none" it is the derivative of the losses' sum. For `linear_ce`, f(hidden, weight, labels, ...), the
        gradient is `xent.Grads`: (hidden, weight, bias), None for a bias that is not there. f can be pickled where
        `loss` can.

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

    return functools.partial(_value_and_grad, loss, _own(loss))  # which can be pickled, unlike a function in here


def _value_and_grad(loss: Any, own: Any, /, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
    name = "hidden" if own is linear_ce else "logits" if own or args else _first_argument(loss)
    if not args and name not in kwargs:
        raise _check.missing(name)
    given = args[0] if args else kwargs[name]
    xp, logits = find(given, name), contents(given)
    mine = own is linear_ce or (own and xp.rows_both is not None and not xp.watched(logits))
    if xp.value_and_grad is None or mine:
        return _by_own(xp, own, loss, args, kwargs)
    x = xp.ops.asarray(logits, logits)
    _check.floating(name, xp.ops.dtype(x))
    if args:
        return xp.value_and_grad(lambda x: loss(x, *args[1:], **kwargs), x)
    return xp.value_and_grad(lambda x: loss(**{**kwargs, name: x}), x)


def _first_argument(loss: Any) -> str:
    return next(iter(inspect.signature(loss).parameters), "logits")


def _own(loss: Any) -> Any:
    """xent's own loss inside keyword partials, or None."""
    while isinstance(loss, functools.partial) and not loss.args:
        loss = loss.func
    return loss if loss in _LOSSES else None


def _by_own(xp: Adapter, own: Any, loss: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
    """xent knows its own losses' derivatives, and the framework runs loss and derivative in one go."""
    if own is None:
        raise _check.not_differentiable(xp.name, loss, [known.__name__ for known in _LOSSES])
    while isinstance(loss, functools.partial):
        kwargs, loss = {**loss.keywords, **kwargs}, loss.func
    result: tuple[Any, Any] = _LOSSES[own].with_gradient(xp, *args, **{**_DEFAULTS[own], **kwargs})
    return result
