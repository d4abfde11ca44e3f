"""How an argument is passed: as whose array, of which dtype, in what memory."""

from __future__ import annotations

from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

FLOATS = ("float32", "float64", "float16", "bfloat16")
INTEGERS = ("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "bool")


class Memory(NamedTuple):
    """Where an array's elements lie."""

    order: str = "dense"  # or transposed, strided, reversed, broadcast, negated (PyTorch's bit)
    axis: int = 0  # that is strided, reversed or broadcast
    swapped: bool = False  # not in the machine's byte order
    readonly: bool = False
    misaligned: bool = False


class Argument(NamedTuple):
    values: Any  # a NumPy array of float64, or of the ids' own integers
    kind: str  # own: the framework's array; variable: TensorFlow's; numpy; list; python, scalar: a number
    dtype: str
    memory: Memory = Memory()

    def __str__(self) -> str:
        memory = [word if word is not True else name for name, word in self.memory._asdict().items() if word]
        shape = "x".join(map(str, self.values.shape)) or "0-d"
        return " ".join([self.kind, self.dtype, shape, *map(str, memory[1:] if memory[0] == "dense" else memory)])


def computed_in(dtype: str) -> str:
    return "float64" if dtype == "float64" else "float32"


def numpy_dtype(name: str) -> Any:
    return np.dtype(ml_dtypes.bfloat16 if name == "bfloat16" else name)


def rounded(values: Any, dtype: str) -> Any:
    """The values rounded to the dtype, in float64."""
    with np.errstate(over="ignore", invalid="ignore"):
        return np.asarray(values).astype(numpy_dtype(dtype)).astype(np.float64)


# ---- an array in memory of its own


def laid_out(argument: Argument) -> tuple[Any, Any]:
    """An array laid out as `argument.memory` says, and the whole buffer that it is in."""
    values, _, name, memory = argument
    dtype = numpy_dtype(name).newbyteorder() if memory.swapped else numpy_dtype(name)
    shape, size, axis = values.shape, dtype.itemsize, memory.axis
    room = [2 * n if memory.order == "strided" and i == axis else n for i, n in enumerate(shape)]
    order = range(len(shape))[:: -1 if memory.order == "transposed" else 1]
    strides = [0] * len(shape)
    step = size
    for i in reversed(order):
        strides[i], step = step, step * max(room[i], 1)
    start = 64 + (1 if memory.misaligned else 0)
    if memory.order == "strided":
        strides[axis] *= 2
    if memory.order == "reversed" and values.size:
        start, strides[axis] = start + (shape[axis] - 1) * strides[axis], -strides[axis]
    if memory.order == "broadcast":
        strides[axis] = 0
    owned = np.full(step + 128, 0x5A, np.uint8)
    array = np.ndarray(shape, dtype, owned, start, strides)
    array[...] = values
    array.flags.writeable = not memory.readonly
    return array, owned


# ---- choices


class Passing:
    """Random choices of how arguments are passed to a framework's loss."""

    rng: np.random.Generator
    framework: str
    dtype: str  # of the logits
    work: str  # that is computed in

    def chance(self, share: float) -> bool:
        return bool(self.rng.random() < share)

    def pick(self, choices: Any) -> Any:
        return choices[int(self.rng.integers(len(choices)))]

    def as_logits(self, x: Any) -> Argument:
        kinds = ["own"] * 12
        if self.framework == "tensorflow":
            kinds += ["variable"] * 2
        if self.framework == "numpy" and self.dtype == "float64" and x.size:
            kinds += ["list"]
        return self.array(x, self.dtype, kinds)

    def as_ids(self, y: Any, dtype: str) -> Argument:
        kinds = ["numpy"]
        wide = dtype in ("int64", "uint64", "uint32") and self.framework == "jax"  # JAX would narrow them itself
        if not wide:
            kinds += ["own", "own"]
        if y.size and dtype in ("int64", "bool"):
            kinds += ["python" if y.ndim == 0 else "list"]
        if y.ndim == 0:
            kinds += ["scalar"]
        return self.placed(y, self.pick(kinds), dtype)

    def real(self, values: Any) -> Argument:
        """Labels that are distributions, weights, a denominator: of any real dtype that holds them."""
        values = np.asarray(values)
        narrow = self.framework == "jax" and self.dtype != "float64"
        dtype = self.pick(("float32", "float32", "float64", "float16", "bfloat16", self.work))
        if (values == np.round(values)).all() and self.chance(0.4):
            low = values.min(initial=0)
            dtype = self.pick(("int64", "int32", "int8") if low < 0 else (*INTEGERS[:-1], "uint8"))
            dtype = "bool" if self.chance(0.3) and low >= 0 and values.max(initial=0) <= 1 else dtype
        kinds = ["own", "own", "numpy"]
        if dtype in ("float64", "int64", "bool") and values.size:
            kinds += ["python", "python"] if values.ndim == 0 else ["list"]
        if dtype == "bfloat16" or self.framework == "array_api_strict":
            kinds = ["own"] if dtype == "bfloat16" else kinds
            dtype = "float32" if self.framework == "array_api_strict" and dtype[:2] in ("fl", "bf") else dtype
        elif values.ndim == 0:
            kinds += ["scalar"]
        kind = self.pick(kinds)
        if narrow and kind == "own" and dtype.endswith("64"):
            dtype = dtype.replace("64", "32")
        return self.placed(rounded(values, dtype), kind, dtype)

    def array(self, values: Any, dtype: str, kinds: Any) -> Argument:
        kind = self.pick(kinds)
        if kind == "numpy" and dtype == "bfloat16":
            kind = "own"
        return self.placed(values, kind, dtype)

    def placed(self, values: Any, kind: str, dtype: str) -> Argument:
        memory = self.memory(kind, dtype, values.shape)
        if memory.order == "broadcast":  # one row for all, if no garbage comes with it
            if not values.size or not np.isfinite(np.asarray(values, np.float64)).all():
                return Argument(values, kind, dtype)
            values = np.repeat(values.take([0], memory.axis), values.shape[memory.axis], memory.axis)
        return Argument(values, kind, dtype, memory)

    def memory(self, kind: str, dtype: str, shape: tuple[int, ...]) -> Memory:
        owner = self.framework if kind == "own" else kind
        if owner not in ("numpy", "torch", "array_api_strict") or self.chance(0.4):
            return Memory()
        orders = ["dense", "transposed", "strided", "broadcast"]
        if owner != "torch":
            orders += ["reversed"]
        elif dtype in ("float32", "float64"):
            orders += ["negated"]
        order = self.pick(orders) if shape else "dense"
        axis = int(self.rng.integers(max(len(shape), 1)))
        if owner == "torch":
            return Memory(order, axis, misaligned=self.chance(0.1))
        swapped = self.chance(0.15) and owner == "numpy" and dtype not in ("bfloat16", "bool", "int8", "uint8")
        return Memory(order, axis, swapped, self.chance(0.2), self.chance(0.15))
