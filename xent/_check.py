"""Rules about arguments, and their error sentences: what was given, what was expected, the same for all backends.

_rules.py has those about shapes.
"""

from __future__ import annotations

import inspect
import numbers
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from xent.adapter import Adapter, Array, Collectives, Ops

FLOATS = ("float16", "bfloat16", "float32", "float64")
REDUCTIONS = ("none", "sum", "mean", "mean_nonzero", "mean_all")
INVALID_MODES = ("auto", "raise", "nan", "ignore")
HOW_TO_CONVERT = {
    "torch": "tensor.detach().cpu().numpy()",
    "tensorflow": "tensor.numpy()",
    "jax": "numpy.asarray(array)",
    "torch.distributed.tensor": "tensor.full_tensor()",
    "dask": "array.compute()",
}
# Arrays of another layout, by their package and class: how to make them dense.
HOW_TO_MAKE_DENSE = {
    ("tensorflow", "SparseTensor"): "tf.sparse.to_dense(tensor)",
    ("tensorflow", "RaggedTensor"): "tensor.to_tensor(), with weights of 0 for the padding",
    ("tensorflow", "IndexedSlices"): "tf.convert_to_tensor(slices)",
    ("jax", "BCOO"): "array.todense()",
    ("jax", "BCSR"): "array.todense()",
    ("torch", "sparse"): "tensor.to_dense()",
    ("torch", "nested"): "tensor.to_padded_tensor(0.0), with weights of 0 for the padding",
    ("torch", "masked"): "tensor.get_data(), with weights of 0 for what is masked",
    ("torch", "mkldnn"): "tensor.to_dense()",
}
LARGEST = 1e15  # of options that logits are multiplied by: float32 holds products of two of them and ordinary logits
REAL, INTEGRAL = (float, numbers.Real), (int, numbers.Integral)  # the usual type first: abstract classes are slow
UNSIGNED = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}


# Argument names of other libraries, and xent's names for the same thing.
HABITS = {
    "reduction": ("reduce",),
    "size_average": ("reduce",),
    "dim": ("axis",),
    "weight": ("class_weight", "sample_weight"),
    "weights": ("sample_weight", "class_weight"),
    "class_weights": ("class_weight", "pos_weight"),
    "sample_weights": ("sample_weight",),
    "where": ("sample_weight",),
    "mask": ("sample_weight",),
    "ignore_class": ("ignore_index",),
    "num_items_in_batch": ("denom",),
}
LOGITS = "; logits are what it takes"


class LabelError(ValueError):
    """A class id is neither a class nor the ignored one."""

    __init__ = Exception.__init__  # AutoGraph re-raises only errors that have this constructor


# ---- arrays and their frameworks


def array(x: Any, argument: str) -> None:
    if isinstance(x, np.ma.MaskedArray):
        raise TypeError(f"{argument}: a MaskedArray's mask would be lost; pass the data, and weights of 0 and 1")


def given(argument: str, x: Any) -> Any:
    """An argument that may not be None."""
    if x is None:
        raise not_an_array(x, argument)
    return x


def not_an_array(x: Any, argument: str) -> TypeError:
    module, name = type(x).__module__, type(x).__qualname__
    package = module.partition(".")[0]
    if (package, name) in HOW_TO_MAKE_DENSE:
        return not_dense(argument, f"{package}'s {name}", HOW_TO_MAKE_DENSE[package, name])
    kind = f"{module}.{name}".removeprefix("builtins.")
    return TypeError(f"{argument}: expected an array of NumPy, PyTorch, TensorFlow or JAX, got {kind}")


def not_dense(argument: str, kind: str, how: str) -> TypeError:
    return TypeError(f"{argument}: expected a dense array, got {kind}; convert it, for example with {how}")


def dense(argument: str, own: Adapter, x: Any) -> None:
    """Raises for an array that is not dense, which its type does not show."""
    layout = own.ops.layout(x)
    if layout is not None:
        raise not_dense(argument, f"a {layout} tensor", HOW_TO_MAKE_DENSE[own.name, layout])


def class_ids(labels: Any) -> Any:
    """A list of no labels is a list of ids; NumPy would make it floating."""
    first = labels
    while isinstance(first, list | tuple):
        if not first:
            return np.zeros(np.shape(labels), np.int64)
        first = first[0]
    return labels


def no_backend(name: str, known: Iterable[str]) -> ValueError:
    return ValueError(f"backend {name!r}: expected one of {', '.join(map(repr, known))}")


def same_framework(argument: str, own: Adapter, first: Adapter) -> None:
    if own is not first and own.name != "numpy":
        how = HOW_TO_CONVERT.get(own.name)
        advice = f"; convert it, for example with {how}" if how else ""
        raise TypeError(f"{argument}: a {own.name} array beside {first.name} arrays{advice}")


def floating(argument: str, dtype: str) -> None:
    if dtype not in FLOATS:
        hint = " (are logits and labels swapped?)" if argument == "logits" and is_integral(dtype) else ""
        raise TypeError(f"{argument}: expected {one_of(FLOATS)}, got {dtype}{hint}")


def real(argument: str, dtype: str) -> None:
    if not (dtype.startswith(("float", "bfloat")) or is_integral(dtype)):
        raise TypeError(f"{argument}: expected real numbers, got {dtype}")


def is_integral(dtype: str) -> bool:
    return dtype.startswith(("int", "uint", "bool"))


def integral(argument: str, dtype: str) -> None:
    if not is_integral(dtype):
        hint = " (cast ids that are whole numbers; for distributions over the classes use softmax_ce)"
        hint = hint if "float" in dtype else ""
        raise TypeError(f"{argument}: expected class ids of an integer or bool dtype, got {dtype}{hint}")


def parameter_dtype(argument: str, dtype: str, hidden: str) -> None:
    """The hidden states', or float32 beside 16 bits: what a mixed-precision layer has."""
    mixed = hidden in ("float16", "bfloat16")
    if dtype != hidden and not (mixed and dtype == "float32"):
        raise TypeError(f"{argument}: expected {hidden}, as hidden is{', or float32' if mixed else ''}, got {dtype}")


# ---- options


def number(argument: str, value: Any, low: float, high: float) -> float:
    if type(value) is float and low <= value <= high:
        return value
    if isinstance(value, bool) or not isinstance(value, REAL):
        raise TypeError(f"{argument}: expected a number, got {value!r}")
    # NumPy would round the bounds to a float16; a long int does not fit into a float
    given: Any = float(value) if isinstance(value, np.floating) else value
    if not low <= given <= high:
        raise ValueError(f"{argument}: expected a number from {low:g} to {high:g}, got {given}")
    return float(given)


def factor(argument: str, value: Any) -> float | None:
    """A number above 0 whose reciprocal float32 holds as well: compilers multiply by it instead of dividing."""
    return None if value is None else number(argument, value, 1 / LARGEST, LARGEST)


def count(argument: str, value: Any) -> int | None:
    given = index(argument, value)
    if given is not None and given < 1:
        raise ValueError(f"{argument}: expected 1 or more, got {given}")
    return given


def flag(argument: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise TypeError(f"{argument}: expected True or False, got {value!r}")
    return value


def reduction(value: Any, denom: Any) -> str:
    chosen = choice("reduce", value, REDUCTIONS)
    if denom is not None and chosen != "mean":
        raise ValueError(f"denom: it replaces the denominator of reduce='mean', but reduce is {value!r}")
    return chosen


def choice(argument: str, value: Any, choices: Sequence[str]) -> str:
    if not isinstance(value, str) or value not in choices:
        raise ValueError(f"{argument}: expected {one_of(choices)}, got {value!r}")
    return value


def names(given: Sequence[str] | None) -> list[str]:
    """The names as a list without repetitions; a string is one name."""
    return list(dict.fromkeys([given] if isinstance(given, str) else given or ()))


def chosen(argument: str, given: Sequence[str] | None, choices: Sequence[str]) -> list[str]:
    given = names(given)
    for name in given:
        choice(argument, name, choices)
    return given


def index(argument: str, value: Any) -> int | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, INTEGRAL):
        raise TypeError(f"{argument}: expected an int or None, got {value!r}")
    return int(value)


def one_of(choices: Sequence[str]) -> str:
    return ", ".join(map(repr, choices[:-1])) + f" or {choices[-1]!r}"


def unexpected(function: Any, given: Iterable[str]) -> TypeError:
    """Arguments that the function does not have."""
    name = next(iter(given))
    there = [known for known in HABITS.get(name, ()) if known in inspect.signature(function).parameters]
    advice = f"; use {' or '.join(there)}" if there else LOGITS if name == "from_logits" else ""
    return TypeError(f"{name}: {function.__name__} has no such argument{advice}")


# ---- class ids


def ids_in_range(ids: Any, classes: int, ignored: int | None, sample_weight: Array | None, ops: Ops) -> None:
    """Raises unless every id, in a NumPy array, is a class, ignored, or of weight 0."""
    if not ids.size or _largest(ids, classes) < classes:
        return
    bad = (ids < 0) | (ids >= classes)
    if ignored is not None:
        bad &= ids != ignored
    known = None if sample_weight is None else ops.fetch(sample_weight)
    if known is not None:
        bad &= known != 0
    count = int(bad.sum())
    if not count:
        return
    first = np.unravel_index(int(bad.argmax()), bad.shape)
    place = ", ".join(map(str, map(int, first)))
    expected = f"0 to {classes - 1}" + ("" if ignored is None else f", or ignore_index={ignored}")
    hint = "; ignore_index=-100 leaves it out" if ignored is None and ids[first] == -100 else ""
    raise LabelError(
        f"labels: {count} of {ids.size} class ids out of range, the first {'at [' + place + '] ' if place else ''}"
        f"is {ids[first]}; expected {expected}{hint}"
    )


def _largest(ids: Any, classes: int) -> Any:
    """The largest id, or a number of at least `classes` if any id is negative.

    One visit is enough where ids can be read as unsigned integers, in which -7 of 8 bits is 249. With more classes than
    the signed integers hold, 249 could be a class.
    """
    bits = 8 * ids.dtype.itemsize
    if ids.dtype.kind == "i" and classes <= 1 << (bits - 1):
        return ids.view(UNSIGNED[ids.dtype.itemsize]).max()
    return classes if ids.min() < 0 else ids.max()


def unreadable_ids() -> ValueError:
    return ValueError(
        "invalid: 'raise' has to read the labels, which have no values while a function is traced or batched; "
        "use 'nan' or 'ignore', or check them outside"
    )


def unknown_classes() -> ValueError:
    return ValueError(
        "invalid: 'raise' needs the number of classes, which is not known while this graph is traced; "
        "use 'nan' or 'ignore', or check the labels outside"
    )


def representable(ignored: int | None, dtype: str) -> int | None:
    """The ignored id, or None where no label of this dtype can be equal to it."""
    if ignored is None:
        return None
    bits = 1 if dtype == "bool" else int(dtype.removeprefix("u").removeprefix("int"))
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1)) if dtype.startswith("int") else (0, 2**bits)
    return ignored if low <= ignored < high else None


# ---- what an adapter has not, and arrays that are in parts


def no_linear(framework: str) -> TypeError:
    return TypeError(f"hidden: the adapter of {framework} brings no linear_ce; see docs/backends.md")


def parameter_in_parts(argument: str, framework: str) -> TypeError:
    """Beside hidden states that are plain arrays."""
    if framework == "dask":
        return no_dask(argument)
    return TypeError(
        f"{argument}: a DTensor beside plain hidden states; make those a DTensor too, of Shard(0) where each rank has "
        "rows of its own, of Replicate() where all have the same, or call unshard() of FSDP's module first"
    )


def unread_ids(invalid: str, why: str = "and their rows are sharded") -> str:
    """What is done about ids that are no class where nothing reads those of all rows before the loss is computed."""
    if invalid == "raise":
        raise ValueError(
            f"invalid: 'raise' has to read all labels, {why}; use 'nan' or 'ignore', or check them outside"
        )
    return "nan" if invalid == "auto" else invalid


def no_dask(argument: str) -> TypeError:
    return TypeError(f"{argument}: Dask's arrays go to softmax_ce, sparse_ce and sigmoid_ce only; use compute()")


def unknown_chunks(argument: str) -> ValueError:
    return ValueError(
        f"{argument}: expected a Dask array of NumPy's arrays, in chunks of known sizes; see compute_chunk_sizes()"
    )


def no_dtensor() -> TypeError:
    return TypeError("logits: DTensors go to softmax_ce, sparse_ce and sigmoid_ce only; use to_local()")


def collectives(argument: str, adapter: Adapter) -> Collectives:
    if adapter.collectives is None:
        expected = "expected plain tensors of PyTorch or arrays of JAX"
        raise TypeError(f"{argument}: the adapter of {adapter.name} brings no collectives; {expected}")
    return adapter.collectives


def shards(lengths: Iterable[int], rows: Iterable[int]) -> None:
    """Of how many classes and of how many rows the shards are."""
    if not sum(lengths):
        raise ValueError("sharded: expected at least one class on one of the ranks, got none on all of them")
    if len(set(rows)) > 1:
        raise ValueError(f"sharded: expected the same rows on all ranks, got {', '.join(map(str, rows))} of them")


def axis_names(argument: str, given: Any, mapped: Sequence[str]) -> tuple[str, ...]:
    """The names of one axis of a mesh, or of several; `mapped`: the axes over which this program is mapped."""
    names = given if isinstance(given, tuple) and given else (given,)
    expected = "expected the name of an axis of jax.shard_map or jax.pmap"
    if not all(isinstance(name, str) for name in names):
        raise TypeError(f"{argument}: {expected}, got {type(given).__name__}")
    if not set(names) <= set(mapped):
        known = f"of {', '.join(map(repr, mapped))}" if mapped else "and this call is inside of neither"
        raise ValueError(f"{argument}: {expected}, {known}, got {given!r}")
    return names


# ---- value_and_grad


def not_a_loss(loss: Any) -> TypeError:
    return TypeError(f"loss: expected a function of logits and labels, got {loss!r}")


def missing(argument: str) -> TypeError:
    return TypeError(f"{argument}: expected an array, as the first argument or by name; got none")


def not_differentiable(framework: str, loss: Any, known: Iterable[str]) -> TypeError:
    return TypeError(
        f"loss: {framework} cannot differentiate {loss!r}; there value_and_grad takes {', '.join(known)}, "
        "or functools.partial of one with keywords"
    )


# ---- settings in the environment, where "" means not set


def switch(name: str, given: str) -> str:
    if given not in ("", "0", "1"):
        raise ValueError(f"{name}: expected 0 or 1, got {given!r}")
    return given


def threads(name: str, given: str) -> None:
    if given and not (given.isascii() and given.isdigit() and int(given) > 0):
        raise ValueError(f"{name}: expected a number of threads, 1 or more, got {given!r}")


def instruction_set(name: str, given: str, available: Sequence[str]) -> None:
    if given and given not in available:
        raise ValueError(f"{name}: expected {' or '.join(available)} (what this processor has), got {given!r}")
