"""The loss together with its derivative in the logits, on every framework."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

from xent import _check
from xent._dispatch import contents, find
from xent._execute import WithGradient
from xent._log_prob import entropy, log_prob
from xent._losses import linear_ce, sigmoid_ce, softmax_ce, sparse_ce

_LOSSES: tuple[Any, ...] = (softmax_ce, sparse_ce, sigmoid_ce, linear_ce, log_prob, entropy)


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

    return functools.partial(_value_and_grad, loss, _own(loss))  # a partial can be pickled, a nested function not


def _value_and_grad(loss: Any, own: Any, /, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
    name = "hidden" if own is linear_ce else "logits" if own or args else _first_argument(loss)
    if not args and name not in kwargs:
        raise _check.missing(name)
    given = args[0] if args else kwargs[name]

    def at(x: Any) -> Any:
        return loss(x, *args[1:], **kwargs) if args else loss(**{**kwargs, name: x})

    adapter, logits = find(given, name), contents(given)
    autodiff = adapter.autodiff
    sharded = {**getattr(loss, "keywords", {}), **kwargs}.get("sharded") is not None
    if own is linear_ce or (own and (sharded or autodiff is None or not autodiff.needs_framework_autodiff(logits))):
        result: tuple[Any, Any] = at(WithGradient(given))
        return result
    if autodiff is None:
        raise _check.not_differentiable(adapter.name, loss, [known.__name__ for known in _LOSSES])
    x = adapter.ops.asarray(logits, logits)
    _check.floating(name, adapter.ops.dtype(x))
    return autodiff.value_and_grad(at, x)


def _first_argument(loss: Any) -> str:
    return next(iter(inspect.signature(loss).parameters), "logits")


def _own(loss: Any) -> Any:
    """xent's own loss inside keyword partials, or None."""
    while isinstance(loss, functools.partial) and not loss.args:
        loss = loss.func
    return loss if loss in _LOSSES else None
