"""PyTorch's names for the losses, computed by xent: `from xent.compat.torch import cross_entropy, CrossEntropyLoss`.

Signatures, argument order, defaults, class axis, shapes, denominators, buffers and state dicts are PyTorch's. The dtype
of `target` says what it holds: integers are class ids, floating numbers probabilities. Where PyTorch and xent disagree:

| subject | PyTorch | xent.compat.torch |
| --- | --- | --- |
| 16-bit input | returns 16 bits | computes and returns float32 |
| a confident, right prediction | loss and gradient 0 beyond the dtype's digits | relative accuracy, however small |
| logits of -inf without label; of +-inf for sigmoid | NaN | their limits: 0 log 0 = 0 |
| NaN in ignored rows, or at weight 0 | loss or gradient NaN | exactly 0 |
| label smoothing where the label's class weight is 0 | the smoothing's share counts | the example does not count |
| a mean over nothing | NaN | 0, and the gradient 0 |
| class ids out of range | IndexError; on CUDA an assertion | `xent.LabelError`; on CUDA and compiled NaN in that row |
| other errors | RuntimeError | TypeError, ValueError |
| integer targets | int64 and uint8; none for binary_cross_entropy_with_logits | any integer dtype, and bool |
| targets or weights wider than the input | RuntimeError, or a wider loss | the loss has the input's dtype |
| label_smoothing below 0 | as 0 | ValueError |
| reduction="elementwise_mean" | "mean", with a warning | ValueError |
| target of shape (1,) for unbatched input | taken for a scalar | ValueError |
| cross_entropy's weight that needs a gradient | has one for probabilities | ValueError: class weights are constants |
| binary_cross_entropy_with_logits's weight that needs a gradient | RuntimeError | has one |
| linear_cross_entropy of class ids, without options | all logits at once, in the input's dtype | chunks, in float32 |
| linear_cross_entropy of 16 bits, its weight of float32 | RuntimeError; with options 16 bits | a loss of float32 |
| linear_cross_entropy's options | chunks, accumulation, one backward pass | only batch_chunk_size has an effect |
"""

from __future__ import annotations

from typing import Any

import torch
import xent
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn import LinearCrossEntropyOptions, _reduction
from xent import _check, _rules
from xent.compat._errors import reworded

__all__ = [
    "BCEWithLogitsLoss",
    "CrossEntropyLoss",
    "LinearCrossEntropyLoss",
    "LinearCrossEntropyOptions",
    "binary_cross_entropy_with_logits",
    "cross_entropy",
    "linear_cross_entropy",
]
IGNORE_INDEX = -100
# What errors say in the place of xent's own words. A target's dtype says what it is, and its place what axis.
WORDS = {
    "logits'": "input's",
    "logits": "input",
    "labels": "target",
    "class_weight": "weight",
    "sample_weight": "weight",
    "without axis": "without the classes",
    r"; they fit axis=(?:\d+)": "; the classes are taken from axis 1",
    "; for class ids use sparse_ce": "; class ids are of an integer dtype",
}
LINEAR_WORDS = {
    "hidden's": "input's",
    "hidden": "input",
    "labels": "target",
    "weight": "linear_weight",
    "bias": "linear_bias",
    "class_weight": "weight",
    "without axis": "without the classes",
}


def cross_entropy(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    size_average: bool | None = None,
    ignore_index: int = IGNORE_INDEX,
    reduce: bool | None = None,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
) -> Tensor:
    """`torch.nn.functional.cross_entropy`: `xent.sparse_ce` of class ids, `xent.softmax_ce` of probabilities.

    The mean of class ids is over their weights, that of probabilities over the number of examples, weighted or not.
    """
    _tensors(input=input, target=target)
    reduction = _resolved(reduction, size_average, reduce)
    ignore_index = _integer("ignore_index", ignore_index)
    label_smoothing = _number("label_smoothing", label_smoothing)
    options: dict[str, Any] = {
        "axis": 0 if input.ndim == 1 else 1,
        "class_weight": _constant("weight", weight),
        "label_smoothing": label_smoothing,
    }
    loss: Tensor
    if target.is_floating_point():
        if ignore_index >= 0:
            raise ValueError(f"ignore_index: expected none where target holds probabilities, got {ignore_index}")
        loss = reworded(WORDS, xent.softmax_ce, input, target, reduce=_over_examples(reduction), **options)
    else:
        loss = reworded(WORDS, xent.sparse_ce, input, target, reduce=reduction, ignore_index=ignore_index, **options)
    return loss


def binary_cross_entropy_with_logits(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
    pos_weight: Tensor | None = None,
) -> Tensor:
    """`torch.nn.functional.binary_cross_entropy_with_logits`: `xent.sigmoid_ce`, its mean over the number of elements.

    `weight` broadcasts to the input's shape.
    """
    _tensors(input=input, target=target)
    if weight is not None and weight.ndim < input.ndim:
        weight = weight[(None,) * (input.ndim - weight.ndim)]
    loss: Tensor = reworded(
        WORDS,
        xent.sigmoid_ce,
        input,
        target,
        reduce=_over_examples(_resolved(reduction, size_average, reduce)),
        sample_weight=weight,
        pos_weight=_constant("pos_weight", pos_weight),
    )
    return loss


def linear_cross_entropy(
    input: Tensor,
    linear_weight: Tensor,
    target: Tensor,
    *,
    linear_bias: Tensor | None = None,
    weight: Tensor | None = None,
    reduction: str = "mean",
    ignore_index: int | None = None,
    label_smoothing: float = 0.0,
    options: LinearCrossEntropyOptions | None = None,
) -> Tensor:
    """`torch.nn.functional.linear_cross_entropy`: `xent.linear_ce` of class ids, a chunk of rows at a time.

    Where `target` holds probabilities or `linear_weight` has more than two dimensions, it is `cross_entropy` of logits
    that are held.
    """
    _tensors(input=input, linear_weight=linear_weight, target=target)
    _linear_shapes(input, linear_weight, linear_bias)
    probabilities = target.is_floating_point()
    if probabilities and ignore_index is not None:
        raise ValueError(f"ignore_index: expected None where target holds probabilities, got {ignore_index}")
    ignore_index = IGNORE_INDEX if ignore_index is None else _integer("ignore_index", ignore_index)
    label_smoothing = _number("label_smoothing", label_smoothing)
    if probabilities or linear_weight.ndim != 2:
        logits = _logits(input, linear_weight, linear_bias)
        return cross_entropy(logits, target, weight, None, ignore_index, None, reduction, label_smoothing)
    input, linear_weight, linear_bias = in_autocast_dtype(input, linear_weight, linear_bias)
    loss: Tensor = reworded(
        LINEAR_WORDS,
        xent.linear_ce,
        input,
        linear_weight,
        target,
        bias=linear_bias,
        reduce=_resolved(reduction),
        class_weight=_constant("weight", weight),
        label_smoothing=label_smoothing,
        ignore_index=ignore_index,
        chunk_rows=None if options is None else options.batch_chunk_size,
    )
    return loss


class CrossEntropyLoss(torch.nn.CrossEntropyLoss):
    """`torch.nn.CrossEntropyLoss`, by `cross_entropy`."""

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        return cross_entropy(
            input,
            target,
            self.weight,
            ignore_index=self.ignore_index,
            reduction=self.reduction,
            label_smoothing=self.label_smoothing,
        )


class BCEWithLogitsLoss(torch.nn.BCEWithLogitsLoss):
    """`torch.nn.BCEWithLogitsLoss`, by `binary_cross_entropy_with_logits`."""

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        return binary_cross_entropy_with_logits(
            input, target, self.weight, reduction=self.reduction, pos_weight=self.pos_weight
        )


class LinearCrossEntropyLoss(torch.nn.LinearCrossEntropyLoss):
    """`torch.nn.LinearCrossEntropyLoss`, by `linear_cross_entropy`."""

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        linear, shape = self.linear, (self.num_classes, *self.out_features)
        return linear_cross_entropy(
            input,
            linear.weight.reshape(*shape, linear.in_features),
            target,
            linear_bias=None if linear.bias is None else linear.bias.reshape(shape),
            weight=self.weight,
            reduction=self.reduction,
            ignore_index=self.ignore_index,
            label_smoothing=self.label_smoothing,
            options=self.options,
        )


def in_autocast_dtype(input: Tensor, *parameters: Tensor | None) -> tuple[Any, ...]:
    """The operands of a linear layer, cast as torch.autocast casts them: all but float64."""
    tensors, device = (input, *parameters), input.device.type
    if not (torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)):
        return tensors
    dtype = torch.get_autocast_dtype(device)
    return tuple(x if x is None or x.dtype is torch.float64 else x.to(dtype) for x in tensors)


def _linear_shapes(input: Tensor, linear_weight: Tensor, linear_bias: Tensor | None) -> None:
    features, shape = input.shape[-1:], linear_weight.shape
    ranks = (1, 2) if len(shape) <= 2 else (2,)
    if input.ndim not in ranks:
        expected = " or ".join(map(str, ranks))
        raise ValueError(f"input: expected {expected} dimensions, got shape {_rules.text(input.shape)}")
    if len(shape) < 2 or shape[-1:] != features:
        raise ValueError(f"linear_weight: expected shape (classes, ..., {features[0]}), got {_rules.text(shape)}")
    if linear_bias is not None and linear_bias.shape != shape[:-1]:
        expected = _rules.text(shape[:-1])
        raise ValueError(f"linear_bias: expected shape {expected}, got {_rules.text(linear_bias.shape)}")


def _logits(input: Tensor, linear_weight: Tensor, linear_bias: Tensor | None) -> Tensor:
    """[N, C, d1, ...], for a weight [C, d1, ..., in_features]."""
    shape = linear_weight.shape[:-1]
    bias = None if linear_bias is None else linear_bias.flatten()
    flat = torch.nn.functional.linear(input, linear_weight.flatten(0, -2), bias)
    return flat.reshape(*input.shape[:-1], *shape)


def _resolved(reduction: str, size_average: bool | None = None, reduce: bool | None = None) -> str:
    """The reduction, which the deprecated arguments override, with PyTorch's warning."""
    if size_average is not None or reduce is not None:
        if torch.compiler.is_compiling():  # where PyTorch's own function, which warns, cannot be called
            return "none" if reduce is False else "sum" if size_average is False else "mean"
        return _reduction.legacy_get_string(size_average, reduce)
    return _check.choice("reduction", reduction, ("none", "mean", "sum"))


def _over_examples(reduction: str) -> str:
    return "mean_all" if reduction == "mean" else reduction


def _number(argument: str, value: Any) -> Any:
    """Of a tensor that is a number, its value; PyTorch takes such for options."""
    if not isinstance(value, Tensor):
        return value
    if value.ndim or _is_differentiated(value):
        raise TypeError(f"{argument}: expected a number, or a tensor of one that needs no gradient")
    return value.item()


def _integer(argument: str, value: Any) -> Any:
    if value is None:
        raise TypeError(f"{argument}: expected an int, got None")
    return _number(argument, value)


def _constant(argument: str, weight: Tensor | None) -> Tensor | None:
    if weight is not None and _is_differentiated(weight):
        raise ValueError(f"{argument}: xent takes it for a constant and has no gradient for it; pass it detached")
    return weight


def _is_differentiated(x: Tensor) -> bool:
    """In reverse mode or in forward mode."""
    dual: Any = forward_ad
    return (x.requires_grad and torch.is_grad_enabled()) or dual.unpack_dual(x).tangent is not None


def _tensors(**arguments: Any) -> None:
    for name, value in arguments.items():
        if not isinstance(value, Tensor):
            raise TypeError(f"{name}: expected a torch.Tensor, got {type(value).__name__}")
