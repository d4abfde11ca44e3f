"""PyTorch. The kernels are `autograd.Function`s that save the row statistics (m, s), never the probabilities."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch._subclasses.fake_tensor import FakeTensor
from torch.autograd import forward_ad
from xent import formulas
from xent._adapter import Adapter, Layout, Ops, UnknownShapes

from . import cuda
from .cpu import calls, torch_operators

Array = Any


# ---- under which transform


def traced() -> bool:
    """Inside torch.compile or a torch.func transform, where in-place work and a list of places do not go well."""
    return torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active()


def plain() -> bool:
    """Where an autograd.Function will not do, formulas with right derivatives of their own take its place.

    Forward mode loses its outer levels in a Function's jvp. torch.compile forgets a Function's vmap rule. What
    torch.export and torch.jit.trace record has lost its Functions, and shall run where xent is not installed.
    torch.func.functionalize takes no Function.
    """
    if torch.compiler.is_compiling():
        return torch.compiler.is_exporting() or torch._C._are_functorch_transforms_active()
    return forward_ad._current_level >= 0 or torch._C._get_tracing_state() is not None or functionalizing()


def functionalizing() -> bool:
    if not torch._C._are_functorch_transforms_active():
        return False
    levels = torch._C._functorch.get_interpreter_stack()
    return any(level.key() == torch._C._functorch.TransformType.Functionalize for level in levels)


def recording() -> bool:
    """Operations are taken down, for any shapes or values, instead of run. A mode of the user's, which counts or
    prints them, sees them run."""
    if torch.compiler.is_compiling() or torch._C._get_tracing_state():
        return True
    return torch._C._len_torch_dispatch_stack() > 0 and any(map(torch._C._get_dispatch_mode, TRACERS))


TRACERS = torch._C._TorchDispatchModeKey.PROXY, torch._C._TorchDispatchModeKey.FAKE


# ---- arrays


def host(x: Array) -> Any:
    return fetch(x) if x.is_cpu else None


def fetch(x: Array) -> Any:
    """Tensors under torch.compile and under vmap have no values to look at; those that a graph is recorded with are
    not the ones that it will run on."""
    if recording() or isinstance(x, FakeTensor) or x.is_meta:
        return None
    if torch._C._functorch.is_functorch_wrapped_tensor(x):
        return None
    with torch._C._DisableFuncTorch():  # inside a transform, detach would wrap even what takes no part in it
        return x.numpy(force=True)


def asarray(value: Any, like: Array) -> Array:
    if torch.compiler.is_compiling():
        if isinstance(value, float):  # not in the default dtype, float32; and one graph for all numbers
            return torch.zeros((), dtype=torch.float64, device=like.device) + value
        return torch.as_tensor(np.asarray(value) if isinstance(value, list | tuple) else value, device=like.device)
    if isinstance(value, torch.Tensor) and value.device == like.device:
        return value  # not wrapped anew by a torch.func transform
    if isinstance(value, np.ndarray) and not (value.flags.writeable and all(s >= 0 for s in value.strides)):
        value = value.copy()  # torch shares memory, warns where it must not write, and knows no negative strides
    return torch.as_tensor(value, device=like.device)


def astype(x: Array, dtype: str) -> Array:
    kind = getattr(torch, dtype)
    return x if x.dtype is kind else x.to(kind)


def shape(x: Array) -> tuple[Any, ...]:
    """None for lengths that come out of data."""
    if torch.compiler.is_compiling() and torch.fx.experimental.symbolic_shapes.has_free_unbacked_symbols(x):
        return tuple([n if torch.fx.experimental.symbolic_shapes.has_static_value(n) else None for n in x.shape])
    if not torch.compiler.is_compiling() and torch._C._get_tracing_state():
        return untraced_shape(x)
    return tuple(x.shape)  # quicker to cut and join than a torch.Size


def untraced_shape(x: Array) -> tuple[int, ...]:
    """torch.jit.trace takes a length for a tensor, and warns of every comparison."""
    tracer: Any = torch._C
    state = tracer._get_tracing_state()
    tracer._set_tracing_state(None)
    try:
        return tuple(x.shape)
    finally:
        tracer._set_tracing_state(state)


class Length(NamedTuple):
    """One that comes out of data, like that of x[mask] in a compiled function."""

    value: Any


def lengths(x: Array) -> tuple[Any, ...]:
    return tuple([Length(n) if known is None else n for n, known in zip(x.shape, shape(x), strict=True)])


def require(value: Array, condition: Any, _words: list[Any], _shape: Any) -> Array:
    torch._check(condition)
    return value


def fit(value: Array, lengths: Any, _shape: Any, rule: Any) -> Array:
    """torch.compile is told which lengths are equal, and finds out when the graph runs."""
    own = value.shape
    for n, wanted in zip(own, lengths[len(lengths) - len(own) :], strict=True):
        expected = wanted.value if isinstance(wanted, Length) else wanted
        if not (rule.ones and torch.fx.experimental.symbolic_shapes.has_static_value(n) and n == 1):
            torch._check(n == expected)
    return value


def unranked(*_: Any) -> Any:
    raise AssertionError("PyTorch knows every array's rank")


UNKNOWN = UnknownShapes(lambda _x: True, lengths, require, fit, unranked, unranked, unranked)


def size(x: Array) -> Any:
    """An array where a graph is traced for any batch: what is computed from a number would be the graph's for good."""
    count = x.numel()
    return torch.full((), count, device=x.device) if recording() and not isinstance(count, torch.Tensor) else count


def take(table: Array, ids: Array) -> Array:
    return table[ids] if ids.ndim else table[ids.unsqueeze(0)].squeeze(0)  # table[a number] would be read under vmap


def layout(x: Any) -> str | None:
    if not isinstance(x, torch.Tensor):
        return None
    if x.is_nested:
        return "nested"
    if x.layout is not torch.strided:
        return "mkldnn" if x.is_mkldnn else "sparse"
    return "masked" if type(x) not in PLAIN and isinstance(x, torch.masked.MaskedTensor) else None


# ---- mathematics along an axis


def total(x: Array, axis: int | None) -> Array:
    """Eager torch adds in cascades. Compiled code has long running totals: those get digits to spare.

    In float64, and on devices that have none, blocks are added up first; their number must not depend on a length.
    """
    if not torch.compiler.is_compiling():
        return x.sum() if axis is None else x.sum(axis, keepdim=True)
    if axis is None:
        return total(x.reshape(-1), 0).squeeze(0)
    if x.dtype == torch.float32 and (x.is_cpu or x.is_cuda):
        return x.sum(axis, keepdim=True, dtype=torch.float64).to(x.dtype)
    for _ in range(3):
        if not short(x.shape[axis]):
            x = add_eighths(x, axis)
    return x.sum(axis, keepdim=True)


def short(length: Any) -> bool:
    return torch.fx.experimental.symbolic_shapes.has_static_value(length) and length <= 16


def add_eighths(x: Array, axis: int) -> Array:
    length = x.shape[axis]
    eighth = -(-length // 8)
    x = torch.nn.functional.pad(x, [0, 0] * (x.ndim - 1 - axis) + [0, 8 * eighth - length])
    return formulas.add_pairs(list(x.reshape(*x.shape[:axis], 8, eighth, *x.shape[axis + 1 :]).unbind(axis)))


def top(x: Array, axis: int) -> tuple[Array, Array]:
    if traced():
        return formulas.top(OPS, x, axis)
    m, place = x.max(axis, keepdim=True)
    m = formulas.finite_or_nan(OPS, m)
    return m, total((x - m).exp_().scatter_(axis, place, 0), axis)


OPS = Ops(
    dtype=lambda x: str(x.dtype).removeprefix("torch."),
    shape=shape,
    device=lambda x: str(x.device),
    host=host,
    fetch=fetch,
    asarray=asarray,
    astype=astype,
    integer=lambda x: astype(x, "int64"),
    where=torch.where,
    expand_dims=torch.unsqueeze,
    squeeze=torch.squeeze,
    zeros_like=torch.zeros_like,
    full=lambda shape, value, dtype, like: torch.full(shape, value, dtype=getattr(torch, dtype), device=like.device),
    take=take,
    size=size,
    stop_gradient=lambda x: x.detach(),
    exp=torch.exp,
    log1p=torch.log1p,
    abs=torch.abs,
    max=lambda x, axis: x.amax(axis, keepdim=True),
    sum=total,
    top=top,
    pick=lambda x, ids, axis: x.gather(axis, ids),
    put=lambda x, ids, values, axis: x.scatter(axis, ids, values),
    unknown=UNKNOWN,
    layout=layout,
    adopts_numpy=torch.compiler.is_compiling,
)


# ---- kernels


def dense(x: Array, shape: tuple[int, ...]) -> Array:
    x = x if x.shape == shape else x.expand(shape)
    return (x.resolve_neg() if x.is_neg() else x).contiguous()


CPU = torch.device("cpu")  # whatever the default device is
DIRECT = calls.Kernels(
    ops=OPS,
    address=torch.Tensor.data_ptr,
    dense=dense,
    empty=lambda shape, dtype, like: torch.empty(  # by name: parsed sooner
        size=shape, dtype=getattr(torch, dtype), device=CPU
    ),
    threads=torch.get_num_threads,
)
ON_CPU = None if calls.native is None else DIRECT


class OnCuda:
    """The Triton kernels. Looking them up imports Triton; `why_not` says whether there is any sense in trying."""

    @functools.cached_property
    def kernels(self) -> Any:
        found = cuda.load()
        return None if found is None else found.Kernels(OPS, dense, new)

    def __getattr__(self, name: str) -> Any:
        if self.kernels is None:
            raise RuntimeError(f"an operator was recorded for Triton kernels that are not there: {cuda.why_not}")
        return getattr(self.kernels, name)


def new(shape: Any, dtype: str, like: Array) -> Array:
    return like.new_empty(shape, dtype=getattr(torch, dtype))


ON_CUDA = OnCuda()
OPERATORS = None
if ON_CPU or cuda.why_not is None:
    OPERATORS = torch_operators.define()
if ON_CPU:
    torch_operators.register(DIRECT, "CPU")
if cuda.why_not is None:
    torch_operators.register(ON_CUDA, "CUDA")
PLAIN = {torch.Tensor, torch.nn.Parameter, torch.nn.Buffer}  # others may hold no memory of their own


def kernels(*arrays: Array | None) -> Any:
    """The native kernels in the form that does here, or None."""
    if OPERATORS is None or torch._C._are_functorch_transforms_active():
        return None
    if recording() or torch._C._len_torch_dispatch_stack():
        return operators(arrays)
    for x in arrays:
        if x is not None and not (type(x) in PLAIN and x.is_cpu and torch._C._has_storage(x)):
            return triton_kernels(arrays)
    return ON_CPU


def operators(arrays: tuple[Array | None, ...]) -> Any:
    """The kernels as a tracer sees them. Whether there are any is known without importing Triton under its eyes."""
    if all(x is None or x.is_cpu for x in arrays):
        return OPERATORS if ON_CPU else None
    return OPERATORS if cuda.why_not is None and on_one_device(arrays) else None


def triton_kernels(arrays: tuple[Array | None, ...]) -> Any:
    reached = all(x is None or (type(x) in PLAIN and torch._C._has_storage(x)) for x in arrays)
    return ON_CUDA.kernels if reached and on_one_device(arrays) else None


def on_one_device(arrays: tuple[Array | None, ...]) -> bool:
    """On one CUDA device, that is."""
    there = [x for x in arrays if x is not None]
    return all(x.is_cuda and x.device == there[0].device for x in there)


def direct(function: Any) -> Any:
    """function.apply for arrays in reach of DIRECT: no transform to look for, which takes as long as a tiny loss."""
    return super(torch.autograd.Function, function).apply


def apply(function: Any, static: Any, *arrays: Array | None) -> Any:
    """function.apply; where DIRECT will do, without a node that nobody asks for."""
    if kernels(*arrays) is not DIRECT:
        return function.apply(static, *arrays)
    recorded = torch.is_grad_enabled() and any(k is not None and k.requires_grad for k in arrays)
    return (direct(function) if recorded else function.forward)(static, *arrays)


class Rows(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(lay: Layout, x: Array, t: Array, u: Array, ids: Array) -> Any:
        native = kernels(x, t, u, ids)
        if native:
            results, stats = native.rows(lay, x, t, u, ids)
        else:
            results, stats = formulas.rows(OPS, lay, formulas.widened(OPS, x), t, u, ids)
        return (*results[:3], *stats)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.lay, *saved = inputs
        m, s = output[3:]
        ctx.mark_non_differentiable(m, s)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*saved, m, s)

    @staticmethod
    def backward(ctx: Any, a: Array, b: Array, c: Array, *_: Any) -> Any:
        x, t, u, ids, m, s = ctx.saved_tensors
        lay, up = ctx.lay, (torch.zeros_like(m).squeeze(ctx.lay.axis) if a is None else a, b, c)
        wanted = ctx.needs_input_grad[1], ctx.needs_input_grad[2]
        native = None if torch.is_grad_enabled() else kernels(x, t, u, ids, m, *up)
        if native:
            return None, *native.rows_backward(lay, x, t, u, ids, (m, s), up, wanted), None, None
        make = formulas.smooth_pieces if torch.is_grad_enabled() else formulas.pieces
        wide = formulas.widened(OPS, x)
        parts = make(OPS, lay, wide, ids, m, s)
        dx = formulas.pull(OPS, lay, parts, wide, t, u, ids, up).to(x.dtype) if wanted[0] else None
        dt = formulas.pull_labels(OPS, lay, parts, ids, up[:1]) if wanted[1] else None
        return None, dx, dt, None, None


class Sigmoid(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(e: float, x: Array, z: Array, p: Array, absent: Array) -> Array:
        native = kernels(x, z, p, absent)
        if native:
            return native.sigmoid(e, x, z, p, None if absent is None else (~absent).to(z.dtype), True)
        return formulas.sigmoid(OPS, e, formulas.widened(OPS, x), z, p, absent)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.e, *saved = inputs
        ctx.save_for_backward(*saved)

    @staticmethod
    def backward(ctx: Any, g: Array) -> Any:
        x, z, p, absent = ctx.saved_tensors
        native = None if torch.is_grad_enabled() else kernels(x, z, p, absent, g)
        if native:
            g = g if absent is None else g.masked_fill(absent, 0)
            return None, *native.sigmoid_backward(ctx.e, x, z, p, g, 1.0, ctx.needs_input_grad[1:3]), None, None
        dx, dz = formulas.sigmoid_pull(OPS, ctx.e, formulas.widened(OPS, x), z, p, absent, g)
        return None, dx.to(x.dtype), dz, None, None


class SigmoidSum(torch.autograd.Function):
    """Where there are kernels."""

    @staticmethod
    def forward(e: float, x: Array, z: Array, p: Array, w: Array) -> Array:
        return kernels(x, z, p, w).sigmoid(e, x, z, p, w, False)

    setup_context = Sigmoid.setup_context

    @staticmethod
    def backward(ctx: Any, g: Array) -> Any:
        x, z, p, w = ctx.saved_tensors
        native = None if torch.is_grad_enabled() else kernels(x, z, p, w, g)
        if native:
            return None, *native.sigmoid_backward(ctx.e, x, z, p, w, g, ctx.needs_input_grad[1:3]), None, None
        slope = g.expand(x.shape) if w is None else g * w
        absent = None if w is None else w == 0
        dx, dz = formulas.sigmoid_pull(OPS, ctx.e, formulas.widened(OPS, x), z, p, absent, slope)
        return None, dx.to(x.dtype), dz, None, None


def rows(lay: Layout, x: Array, t: Array | None, u: Array | None, ids: Array | None) -> Any:
    if plain():
        return formulas.rows(OPS, lay, formulas.widened(OPS, x), t, u, ids, differentiable=True)[0]
    return apply(Rows, lay, x, t, u, ids)[:4]


def sigmoid(e: float, x: Array, z: Array, p: Array | None, absent: Array | None) -> Array:
    if plain():
        return formulas.sigmoid(OPS, e, formulas.widened(OPS, x), z, p, absent)
    return apply(Sigmoid, e, x, z, p, absent)


def sigmoid_sum(e: float, x: Array, z: Array, p: Array | None, w: Array | None) -> Array:
    if plain() or (w is not None and w.requires_grad) or kernels(x, z, p, w) is None:
        loss = sigmoid(e, x, z, p, None if w is None else w == 0)
        return total(loss if w is None else w * loss, None)
    return apply(SigmoidSum, e, x, z, p, w)


# ---- loss and derivative in one visit


def rows_both(
    lay: Layout, x: Array, t: Array | None, u: Array | None, ids: Array | None, a: Any, z: Any, c: Any
) -> Any:
    native = kernels(x, t, u, ids, *(k for k in (a, z, c) if not isinstance(k, float)))
    if native:
        return native.rows_both(lay, x, t, u, ids, a, z, c)
    with torch.no_grad():
        return formulas.rows_both(OPS, lay, formulas.widened(OPS, x), t, u, ids, a, z, c)


def mean_both(lay: Layout, x: Array, t: Array | None, ids: Array | None, n: int) -> Any:
    if kernels(x, t, ids) is DIRECT:
        return DIRECT.mean_both(lay, x, t, ids, n)
    (loss, *_), dx = rows_both(lay, x, t, None, ids, 1 / n, None, None)
    return total(loss, None) / n, dx


def sigmoid_both(e: float, x: Array, z: Array, p: Array | None, w: Array | None, g: Any, each: bool) -> Any:
    with torch.no_grad():
        native = kernels(x, z, p, w)
        if native:
            return native.sigmoid_both(e, x, z, p, w, g, each)
        return formulas.sigmoid_both(OPS, e, formulas.widened(OPS, x), z, p, w, g, each)


class Fused(torch.autograd.Function):
    """A whole loss, whose derivative in the logits is there before anybody asks for it.

    It is handed out once, times the upstream gradient. Asked again, or in a way that wants to be differentiated
    further, the loss is computed anew by the functions above.
    """

    @staticmethod
    def forward(ctx: Any, x: Array, loss: Any, both: Any, static: Any, arrays: Any) -> Array:
        value, dx = both(static, x, *arrays)
        ctx.loss, ctx.static, ctx.spent = loss, static, False
        ctx.save_for_backward(x, *arrays, dx)  # so that hooks on saved tensors, checkpointing among them, see it
        return value

    @staticmethod
    def backward(ctx: Any, g: Array) -> Any:
        x, *arrays, dx = ctx.saved_tensors
        further = torch.is_grad_enabled()
        reached = kernels(g) is DIRECT  # otherwise g is traced or batched, and has no value to look at
        if further or ctx.spent or (reached and not _exact(dx, g)):
            with torch.enable_grad():
                x = x if further else x.detach().requires_grad_()
                value = ctx.loss(ctx.static, x, *arrays)
            (dx,) = torch.autograd.grad(value, x, g, create_graph=further)
        elif not reached:
            dx = dx * g
        else:
            ctx.spent = True
            dx = dx.data  # the caller's to change, without a trace in what is saved
            dx = dx if g.item() == 1 else dx.mul_(g)
        return dx, None, None, None, None


def _exact(dx: Array, g: Array) -> bool:
    """16 bits are not rounded twice, unless the second time is by a power of two."""
    return dx.element_size() > 2 or abs(math.frexp(g.item())[0]) == 0.5


def fuse(loss: Any, both: Any, static: Any, x: Array, *arrays: Any) -> Array:
    if (
        torch.is_grad_enabled()
        and x.requires_grad
        and x.dtype != torch.float16  # GradScaler's factor has to go in before rounding: what is left may be 0
        and not any(k is not None and k.requires_grad for k in arrays)
        and not plain()
        and kernels(x, *arrays) is DIRECT
    ):
        return direct(Fused)(x, loss, both, static, arrays)
    return loss(static, x, *arrays)


def watched(x: Array) -> bool:
    return torch._C._are_functorch_transforms_active() or plain() or (torch.is_grad_enabled() and x.requires_grad)


def value_and_grad(f: Callable[[Any], Any], x: Any) -> tuple[Any, Any]:
    """Stays connected to the caller's graph where x is part of one."""
    if traced():
        grad, value = torch.func.grad_and_value(lambda x: _summed(f(x)), has_aux=True)(x)
        return value[1], grad
    arrays = x if isinstance(x, tuple) else (x,)
    live = torch.is_grad_enabled() and any(k.requires_grad for k in arrays)
    with torch.enable_grad():
        arrays = tuple(k.view_as(k) if live and k.requires_grad else k.detach().requires_grad_() for k in arrays)
        value = f(arrays if isinstance(x, tuple) else arrays[0])
        total, _ = _summed(value)
        grads = torch.autograd.grad(total, arrays, create_graph=live)
    return value if live else detached(value), grads if isinstance(x, tuple) else grads[0]


def _summed(value: Any) -> tuple[Array, Any]:
    return (value[0] if isinstance(value, tuple) else value).sum(), value


def detached(value: Any) -> Any:
    """Constants beside it are that already."""
    return (value[0].detach(), *value[1:]) if isinstance(value, tuple) else value.detach()


def adapter() -> Adapter:
    from ._torch_linear import LINEAR  # which is built from what is above

    native = OPERATORS is not None
    return Adapter(
        name="torch",
        types=(torch.Tensor,),
        ops=OPS,
        rows=rows,
        sigmoid=sigmoid,
        sigmoid_sum=sigmoid_sum if native else None,
        rows_both=rows_both if native else None,
        mean_both=mean_both if native else None,
        sigmoid_both=sigmoid_both if native else None,
        value_and_grad=value_and_grad,
        watched=watched,
        fuse=fuse if native else None,
        linear=LINEAR,
        narrow=True,
    )


ADAPTER = adapter()
