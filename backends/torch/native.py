"""The native kernels on PyTorch's tensors: whether C++ or Triton kernels can take the tensors of a call."""

from __future__ import annotations

import functools
from typing import Any

import torch
from xent.backends import triton
from xent.backends.cpu import calls

from .operators import define, register
from .ops import KINDS, OPS, PLAIN
from .transforms import recording

Array = Any


def dense(x: Array, shape: tuple[int, ...]) -> Array:
    x = x if x.shape == shape else x.expand(shape)
    return (x.resolve_neg() if x.is_neg() else x).contiguous()


CPU = torch.device("cpu")  # whatever the default device is
DIRECT = calls.Kernels(
    ops=OPS,
    address=torch.Tensor.data_ptr,
    dense=dense,
    empty=lambda shape, dtype, like: torch.empty(  # keywords are parsed faster
        size=shape, dtype=KINDS[dtype], device=CPU
    ),
    turn=torch.movedim,
    threads=torch.get_num_threads,
)
ON_CPU = None if calls.native is None else DIRECT


class OnCuda:
    """The Triton kernels. Looking them up imports Triton; `triton.why_not` is None if that can succeed."""

    @functools.cached_property
    def kernels(self) -> Any:
        found = triton.load()
        return None if found is None else found.Kernels(OPS, dense, new)

    def __getattr__(self, name: str) -> Any:
        if self.kernels is None:
            raise RuntimeError(f"an operator was recorded for Triton kernels that are not there: {triton.why_not}")
        return getattr(self.kernels, name)


def new(shape: Any, dtype: str, like: Array) -> Array:
    return like.new_empty(shape, dtype=KINDS[dtype])


ON_CUDA = OnCuda()
OPERATORS = None
if ON_CPU or triton.why_not is None:
    OPERATORS = define()
if ON_CPU:
    register(DIRECT, "CPU")
if triton.why_not is None:
    register(ON_CUDA, "CUDA")


def kernels(*arrays: Array | None) -> Any:
    """The native kernels for these arrays: as operators where a tracer records, else directly. None: not usable."""
    if OPERATORS is None or torch._C._are_functorch_transforms_active():
        return None
    if recording() or torch._C._len_torch_dispatch_stack():
        return operators(arrays)
    for x in arrays:
        if x is not None and not (type(x) in PLAIN and x.is_cpu and torch._C._has_storage(x)):
            return triton_kernels(arrays)
    return ON_CPU


def operators(arrays: tuple[Array | None, ...]) -> Any:
    """The kernels as operators, or None. Triton is not imported for the answer: a tracer would record the import."""
    if all(x is None or x.is_cpu for x in arrays):
        return OPERATORS if ON_CPU else None
    return OPERATORS if triton.why_not is None and on_one_device(arrays) else None


def triton_kernels(arrays: tuple[Array | None, ...]) -> Any:
    reached = all(x is None or (type(x) in PLAIN and torch._C._has_storage(x)) for x in arrays)
    return ON_CUDA.kernels if reached and on_one_device(arrays) else None


def on_one_device(arrays: tuple[Array | None, ...]) -> bool:
    """Whether all arrays are on the same CUDA device."""
    there = [x for x in arrays if x is not None]
    return all(x.is_cuda and x.device == there[0].device for x in there)


def direct(function: Any) -> Any:
    """function.apply without its search for functorch transforms, which takes as long as a tiny loss.

    Right only where `kernels` has ruled transforms out.
    """
    return super(torch.autograd.Function, function).apply


def apply(function: Any, static: Any, *arrays: Array | None) -> Any:
    """function.apply, but where no derivative is wanted DIRECT runs without a node in the graph."""
    if kernels(*arrays) is not DIRECT:
        return function.apply(static, *arrays)
    recorded = torch.is_grad_enabled() and any(k is not None and k.requires_grad for k in arrays)
    return (direct(function) if recorded else function.forward)(static, *arrays)
