"""What the fuzz needs of each framework: an array in a given memory, its own differentiation, a look at the memory."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import Any

import numpy as np
from arguments import Argument, laid_out


@dataclass(frozen=True)
class NumPy:
    """NumPy itself; the others say what differs."""

    name: str = "numpy"

    def array(self, array: Any, argument: Argument) -> Any:
        """Of an array in memory of its own, sharing that where the framework can."""
        return array

    def seen(self, x: Any) -> Any:
        """A NumPy array that shares x's memory; None where x is a number."""
        return x if isinstance(x, np.ndarray) else None

    def numbers(self, x: Any) -> Any:
        x = np.asarray(x)
        return x if x.dtype.kind in "biu" else x.astype(np.float64)

    def dtype(self, x: Any) -> str:
        return x.dtype.name

    def is_own(self, x: Any) -> bool:
        return isinstance(x, np.ndarray | np.generic)

    def double(self) -> Any:
        """float64 is possible inside."""
        return contextlib.nullcontext()

    def gradient(self, run: Any, wanted: list[Any], upstream: Any) -> tuple[Any, Any]:
        """run(*wanted) -> a value, alone or followed by constants; that, and the gradients of sum(upstream * value)."""
        raise NotImplementedError(self.name)


class ArrayApi(NumPy):
    def array(self, array: Any, argument: Argument) -> Any:
        import array_api_strict

        return array_api_strict.asarray(array)

    def seen(self, x: Any) -> Any:
        return x._array

    def numbers(self, x: Any) -> Any:
        return super().numbers(x._array)

    def dtype(self, x: Any) -> str:
        return x._array.dtype.name

    def is_own(self, x: Any) -> bool:
        import array_api_strict

        return isinstance(x, array_api_strict._array_object.Array)


class Torch(NumPy):
    def array(self, array: Any, argument: Argument) -> Any:
        import torch

        if argument.dtype == "bfloat16":
            return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
        if argument.memory.order == "negated":
            return torch._neg_view(torch.from_numpy(np.negative(array, out=array)))
        return torch.from_numpy(array)

    def seen(self, x: Any) -> Any:
        import torch

        x = x.detach()
        x = torch._neg_view(x) if x.is_neg() else x
        return (x.view(torch.int16) if x.dtype is torch.bfloat16 else x).numpy()

    def numbers(self, x: Any) -> Any:
        x = x.detach().resolve_neg()
        return (x.double() if x.is_floating_point() else x).numpy()

    def dtype(self, x: Any) -> str:
        return str(x.dtype).removeprefix("torch.")

    def is_own(self, x: Any) -> bool:
        import torch

        return isinstance(x, torch.Tensor)

    def gradient(self, run: Any, wanted: list[Any], upstream: Any) -> tuple[Any, Any]:
        import torch

        wanted = [x.requires_grad_() for x in wanted]
        result = run(*wanted)
        value = result[0] if isinstance(result, tuple) else result
        g = torch.tensor(upstream, dtype=value.dtype)
        return result, torch.autograd.grad(value, wanted, g, allow_unused=True, materialize_grads=True)


class TensorFlow(NumPy):
    def array(self, array: Any, argument: Argument) -> Any:
        import tensorflow as tf

        return (tf.Variable if argument.kind == "variable" else tf.constant)(array)

    def seen(self, x: Any) -> Any:
        x = x if hasattr(x, "_numpy_internal") else x.read_value()
        x = x._numpy_internal()
        return x if isinstance(x, np.ndarray) else None

    def numbers(self, x: Any) -> Any:
        return super().numbers(x.numpy())

    def dtype(self, x: Any) -> str:
        return x.dtype.name

    def is_own(self, x: Any) -> bool:
        import tensorflow as tf

        return isinstance(x, tf.Tensor)

    def gradient(self, run: Any, wanted: list[Any], upstream: Any) -> tuple[Any, Any]:
        import tensorflow as tf

        with tf.GradientTape() as tape:
            for x in wanted:
                if isinstance(x, tf.Tensor):
                    tape.watch(x)
            result = run(*wanted)
        value = result[0] if isinstance(result, tuple) else result
        g = tf.constant(upstream, value.dtype)
        return result, tape.gradient(value, wanted, g, unconnected_gradients=tf.UnconnectedGradients.ZERO)


class Jax(NumPy):
    def array(self, array: Any, argument: Argument) -> Any:
        import jax.numpy as jnp

        return jnp.array(array)

    def seen(self, x: Any) -> Any:
        return np.asarray(x)

    def dtype(self, x: Any) -> str:
        return x.dtype.name

    def is_own(self, x: Any) -> bool:
        import jax

        return isinstance(x, jax.Array)

    def double(self) -> Any:
        import jax

        return jax.enable_x64(True)

    def gradient(self, run: Any, wanted: list[Any], upstream: Any) -> tuple[Any, Any]:
        import jax
        import jax.numpy as jnp

        def split(*wanted: Any) -> Any:
            result = run(*wanted)
            return result if isinstance(result, tuple) else (result, None)

        value, pull, constants = jax.vjp(split, *wanted, has_aux=True)
        grads = pull(jnp.asarray(upstream, value.dtype))
        return value if constants is None else (value, constants), grads


FRAMEWORKS = {
    "numpy": NumPy("numpy"),
    "array_api_strict": ArrayApi("array_api_strict"),
    "torch": Torch("torch"),
    "tensorflow": TensorFlow("tensorflow"),
    "jax": Jax("jax"),
}


def passed(framework: NumPy, argument: Argument) -> tuple[Any, Any]:
    """The argument as the call gets it, and the memory of it that must not change, or None."""
    values, kind, dtype, _ = argument
    if kind in ("list", "python"):
        return values.astype(dtype).tolist(), None
    if kind == "scalar":
        return values.astype(dtype)[()], None
    array, owned = laid_out(argument)
    if kind == "numpy":
        return array, owned
    value = framework.array(array, argument)
    return value, owned if framework.name in ("numpy", "torch") else framework.seen(value)
