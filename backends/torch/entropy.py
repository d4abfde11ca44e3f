"""The entropy of rows on PyTorch: the native kernels on eager CPU tensors, xent's formula everywhere else."""

from __future__ import annotations

from typing import Any

import torch
from xent import formulas

from .native import DIRECT, apply, kernels
from .ops import OPS
from .transforms import plain

Array = Any


class Entropy(torch.autograd.Function):
    """Keeps nothing but its arguments: the backward pass is the kernel that gives both."""

    @staticmethod
    def forward(axis: int, x: Array, weight: Array | None) -> Array:
        return DIRECT.entropy(axis, x, weight, False)[0]

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.axis, *saved = inputs
        ctx.save_for_backward(*saved)

    @staticmethod
    def backward(ctx: Any, g: Array) -> Any:
        x, weight = ctx.saved_tensors
        further = torch.is_grad_enabled()
        if not further and kernels(x, weight, g) is DIRECT:
            g = g if weight is None else torch.where(weight == 0, 0.0, g)
            return None, DIRECT.entropy(ctx.axis, x, g, True)[1], None
        with torch.enable_grad():
            x = x if further else x.detach().requires_grad_()
            value = formulas.entropy(OPS, ctx.axis, x, weight)
        return None, *torch.autograd.grad(value, x, g, create_graph=further), None


def value(axis: int, x: Array, weight: Array | None) -> Array:
    if plain() or kernels(x, weight) is not DIRECT:
        return formulas.entropy(OPS, axis, x, weight)
    weight = None if weight is None else weight.detach()  # it only says which rows are there
    return apply(Entropy, axis, x, weight)


def value_and_grad(axis: int, x: Array, weight: Array | None) -> tuple[Array, Array]:
    with torch.no_grad():
        if kernels(x, weight) is DIRECT:
            entropy, dx = DIRECT.entropy(axis, x, weight, True)
            return entropy, dx
        return formulas.entropy_value_and_grad(OPS, axis, x, weight)
