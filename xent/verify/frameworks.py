"""The frameworks, one record each: how to make an array, compile a function, and call the framework's own losses.

`xent compare`, the tests and the benchmarks share them.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from xent import _dispatch
from xent._gradient import value_and_grad

Array = Any
Loss = Callable[[Array, Array], Array]


@dataclass(frozen=True)
class BuiltinLoss:
    """A framework's own loss, one value a row with its derivative in the logits, and what it is called."""

    name: str
    value_and_grad: Callable[..., tuple[Array, Any]]  # of logits and labels; of hidden states, weight and labels
    ignoring: Callable[[int], Callable[..., tuple[Array, Any]]] | None = None  # the same, if it has an `ignore_index`


def _builtin(name: str, function: Loss) -> BuiltinLoss:
    return BuiltinLoss(name, value_and_grad(function))


def _of_products(framework: str, own: str, loss: Loss, product: Loss) -> BuiltinLoss:
    """What `linear_ce` replaces: a loss of all logits at once, and its gradients in hidden states and weight."""
    autodiff = _dispatch.load(framework).autodiff
    assert autodiff is not None

    def value_and_grads(hidden: Array, weight: Array, y: Array) -> tuple[Array, Any]:
        return autodiff.value_and_grad(lambda factors: loss(product(*factors), y), (hidden, weight))

    return BuiltinLoss(f"{own}, of hidden @ weight.T", value_and_grads)


@dataclass(frozen=True)
class Framework:
    """One framework, imported."""

    name: str
    array: Callable[[Any, str | None, str], Array]  # (NumPy values, dtype or None for their own, device)
    numpy: Callable[[Array], Any]  # back, as float64 where it is floating
    compilers: dict[str, Callable[[Callable[..., Any]], Callable[..., Any]]]
    devices: Callable[[], list[str]]
    builtin_losses: Callable[[], dict[str, BuiltinLoss]]  # by the name of xent's loss
    dtypes: tuple[str, ...] = ("float32", "float64", "float16", "bfloat16")
    unavailable: dict[str, str] = field(default_factory=dict)  # a mode that cannot be run here, and why
    double: Callable[[], AbstractContextManager[Any]] = contextlib.nullcontext  # float64 is possible inside

    def within(self, dtype: str) -> AbstractContextManager[Any]:
        """Where arrays of the dtype can be made: JAX has float64 only inside of a switch."""
        return self.double() if dtype == "float64" else contextlib.nullcontext()


def eager(f: Callable[..., Any]) -> Callable[..., Any]:
    return f


def _wide(x: Any) -> Any:
    x = np.asarray(x)
    return x.astype(np.float64) if x.dtype.kind == "f" or x.dtype.name == "bfloat16" else x


# ---- NumPy


def _numpy() -> Framework:
    bfloat16 = None
    with contextlib.suppress(ImportError):
        bfloat16 = importlib.import_module("ml_dtypes").bfloat16

    def array(value: Any, dtype: str | None, device: str) -> Array:
        x = np.asarray(value)
        return x if dtype is None else x.astype(bfloat16 if dtype == "bfloat16" else dtype)

    def sparse(x: Array, y: Array) -> tuple[Array, Array]:
        return soft(x, (np.arange(x.shape[-1]) == y[..., None]).astype(x.dtype))

    def soft(x: Array, t: Array) -> tuple[Array, Array]:
        with np.errstate(all="ignore"):
            top = x.max(-1, keepdims=True)
            total = np.exp(x - top).sum(-1, keepdims=True)
            return (t * (top + np.log(total) - x)).sum(-1), np.exp(x - top) / total * t.sum(-1, keepdims=True) - t

    def sigmoid(x: Array, z: Array) -> tuple[Array, Array]:
        with np.errstate(all="ignore"):
            return np.maximum(x, 0) - x * z + np.log1p(np.exp(-np.abs(x))), 1 / (1 + np.exp(-x)) - z

    def linear(hidden: Array, weight: Array, y: Array) -> tuple[Array, tuple[Array, Array]]:
        h, w = (k.astype(np.float32) if k.dtype.itemsize == 2 else k for k in (hidden, weight))
        loss, dx = sparse(h @ w.T, y)
        return loss, ((dx @ w).astype(hidden.dtype), (dx.T @ h).astype(hidden.dtype))

    return Framework(
        "numpy",
        array,
        _wide,
        {"eager": eager},
        lambda: ["cpu"],
        lambda: {
            "linear_ce": BuiltinLoss("textbook: hidden @ weight.T, one-hot, log(sum(exp))", linear),
            "sparse_ce": BuiltinLoss("textbook: one-hot, log(sum(exp))", sparse),
            "softmax_ce": BuiltinLoss("textbook: log(sum(exp))", soft),
            "sigmoid_ce": BuiltinLoss("textbook: max(x, 0) - xz + log1p", sigmoid),
        },
        ("float32", "float64", "float16", *(("bfloat16",) if bfloat16 else ())),
    )


# ---- PyTorch


def _torch() -> Framework:
    torch = importlib.import_module("torch")
    functional = torch.nn.functional

    def array(value: Any, dtype: str | None, device: str) -> Array:
        x = torch.tensor(np.asarray(value), device=device)
        return x if dtype is None else x.to(getattr(torch, dtype))

    def sparse(x: Array, y: Array) -> Array:
        return functional.cross_entropy(x, y, reduction="none")

    def ignoring(index: int) -> Callable[..., tuple[Array, Any]]:
        return value_and_grad(lambda x, y: functional.cross_entropy(x, y, ignore_index=index, reduction="none"))

    def sigmoid(x: Array, z: Array) -> Array:
        return functional.binary_cross_entropy_with_logits(x, z.to(x.dtype), reduction="none")

    def compiled(f: Callable[..., Any]) -> Callable[..., Any]:
        torch._dynamo.reset()  # each case anew: the limit on recompilations is for one program's life
        return torch.compile(f, fullgraph=True, dynamic=False)  # type: ignore[no-any-return]

    has_compiler = any(map(shutil.which, ("c++", "g++", "clang++", "cl")))
    return Framework(
        "torch",
        array,
        lambda x: _wide((x.detach().double() if x.is_floating_point() else x.detach()).cpu().numpy()),
        {"eager": eager, **({"compiled": compiled} if has_compiler else {})},
        lambda: ["cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))],
        lambda: {
            "sparse_ce": BuiltinLoss("F.cross_entropy", value_and_grad(sparse), ignoring),
            "linear_ce": _of_products("torch", "F.cross_entropy", sparse, functional.linear),
            "softmax_ce": _builtin(
                "F.cross_entropy", lambda x, t: functional.cross_entropy(x, t.to(x.dtype), reduction="none")
            ),
            "sigmoid_ce": _builtin("F.binary_cross_entropy_with_logits", sigmoid),
        },
        unavailable={} if has_compiler else {"compiled": "torch.compile needs a C++ compiler"},
    )


# ---- TensorFlow


def _tensorflow() -> Framework:
    tf = importlib.import_module("tensorflow")

    def array(value: Any, dtype: str | None, device: str) -> Array:
        with tf.device(device):
            x = tf.constant(np.asarray(value))
            return x if dtype is None else tf.cast(x, dtype)

    def devices() -> list[str]:
        return ["cpu", *(f"gpu:{i}" for i in range(len(tf.config.list_physical_devices("GPU"))))]

    nn = tf.nn

    def sparse(x: Array, y: Array) -> Array:
        return nn.sparse_softmax_cross_entropy_with_logits(labels=y, logits=x)

    def product(hidden: Array, weight: Array) -> Array:
        return tf.matmul(hidden, weight, transpose_b=True)

    return Framework(
        "tensorflow",
        array,
        lambda x: _wide((tf.cast(x, tf.float64) if x.dtype.is_floating else x).numpy()),
        {"eager": eager, "compiled": lambda f: tf.function(f, jit_compile=True), "graph": tf.function},
        devices,
        lambda: {
            "sparse_ce": _builtin("tf.nn.sparse_softmax_cross_entropy_with_logits", sparse),
            "linear_ce": _of_products("tensorflow", "tf.nn.sparse_softmax_cross_entropy_with_logits", sparse, product),
            "softmax_ce": _builtin(
                "tf.nn.softmax_cross_entropy_with_logits",
                lambda x, t: nn.softmax_cross_entropy_with_logits(labels=tf.cast(t, x.dtype), logits=x),
            ),
            "sigmoid_ce": _builtin(
                "tf.nn.sigmoid_cross_entropy_with_logits",
                lambda x, z: nn.sigmoid_cross_entropy_with_logits(labels=tf.cast(z, x.dtype), logits=x),
            ),
        },
    )


# ---- JAX


def _jax() -> Framework:
    jax = importlib.import_module("jax")
    jnp = jax.numpy

    def array(value: Any, dtype: str | None, device: str) -> Array:
        x = jnp.asarray(value, dtype)
        return x if device in ("cpu", "") and jax.default_backend() == "cpu" else jax.device_put(x, _device(device))

    def _device(name: str) -> Any:
        platform, _, index = name.partition(":")
        return jax.devices(platform)[int(index or 0)]

    def product(hidden: Array, weight: Array) -> Array:
        return hidden @ weight.T

    def builtin_losses() -> dict[str, BuiltinLoss]:
        if importlib.util.find_spec("optax") is None:
            log_softmax = jax.nn.log_softmax

            def sparse(x: Array, y: Array) -> Array:
                return -jnp.take_along_axis(log_softmax(x), y[..., None], -1)[..., 0]

            return {
                "sparse_ce": _builtin("jax.nn.log_softmax", sparse),
                "linear_ce": _of_products("jax", "jax.nn.log_softmax", sparse, product),
                "softmax_ce": _builtin("jax.nn.log_softmax", lambda x, t: -(t * log_softmax(x)).sum(-1)),
                "sigmoid_ce": _builtin(
                    "jax.nn.log_sigmoid",
                    lambda x, z: -z * jax.nn.log_sigmoid(x) - (1 - z) * jax.nn.log_sigmoid(-x),
                ),
            }
        optax = importlib.import_module("optax")
        names = {
            "sparse_ce": "softmax_cross_entropy_with_integer_labels",
            "softmax_ce": "softmax_cross_entropy",
            "sigmoid_ce": "sigmoid_binary_cross_entropy",
        }
        found = {ours: _builtin(f"optax.{theirs}", getattr(optax, theirs)) for ours, theirs in names.items()}
        own = names["sparse_ce"]
        return {**found, "linear_ce": _of_products("jax", f"optax.{own}", getattr(optax, own), product)}

    return Framework(
        "jax",
        array,
        _wide,
        {"eager": eager, "compiled": jax.jit},
        lambda: ["cpu", *(f"{d.platform}:{d.id}" for d in jax.devices() if d.platform != "cpu")],
        builtin_losses,
        double=lambda: jax.enable_x64(True),
    )


# ---- all


_MAKERS: dict[str, Callable[[], Framework]] = {"numpy": _numpy, "torch": _torch, "tensorflow": _tensorflow, "jax": _jax}


KNOWN = tuple(_MAKERS)


def load(name: str) -> Framework:
    """The framework, imported; a third party's adapter by its contract alone."""
    if name in _MAKERS:
        return _MAKERS[name]()
    adapter = _dispatch.load(name)
    ops = adapter.ops

    def array(value: Any, dtype: str | None, device: str) -> Array:
        x = ops.asarray(np.asarray(value), None)
        return x if dtype is None else ops.astype(x, dtype)

    dtypes = ("float32", "float64")
    where = ops.device(array(0.0, None, ""))
    return Framework(name, array, lambda x: _wide(ops.fetch(x)), {"eager": eager}, lambda: [where], dict, dtypes)


def device(found: list[str], wanted: str) -> str:
    """A framework's own name for a device: exactly the one named, for "cuda" or "gpu" its first; "" if not there."""
    accelerators = ("cuda", "gpu")
    kinds = accelerators if wanted in accelerators else ()
    return wanted if wanted in found else next((name for name in found if name.partition(":")[0] in kinds), "")


def without(name: str, dtype: str) -> str:
    """Why a framework is not tried in a dtype."""
    return f"{name} {dtype}: {'needs ml_dtypes' if name == 'numpy' else 'its adapter has none'}"


def available() -> Iterator[str]:
    """The names of the frameworks that are installed, without importing any."""
    third_parties = (entry.name for entry in _dispatch.installed())
    for name in [*_dispatch.FRAMEWORKS, *_dispatch.ARRAY_API, *third_parties]:
        if importlib.util.find_spec(name) is not None:
            yield name
