"""From an array to its framework's adapter, importing nothing that the caller has not imported."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from xent import _check
from xent.adapter import Adapter

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

# A framework's import name: what its arrays are instances of. A new framework is a line here and a file in backends/.
FRAMEWORKS = {
    "numpy": ("ndarray", "generic"),
    "torch": ("Tensor",),
    "tensorflow": ("Tensor", "Variable"),
    "jax": ("Array",),
}
# Arrays of another library's arrays, by the module that has them. They are no framework of their own to the commands.
CHUNKED = {"dask.array": ("Array",)}
# Libraries that follow the array API standard and are known by name to the commands; others are found by their arrays.
ARRAY_API = ("cupy", "array_api_strict")
GROUP = "xent.backends"  # entry points "framework = module:ADAPTER", for adapters that live elsewhere

_by_type: dict[type, Adapter] = {}
_variables: dict[type, bool] = {}  # types of Keras variables
_adapters = SimpleNamespace()  # by name


def find(x: Any, argument: str = "logits") -> Adapter:
    """The adapter for x; the type alone decides once one of its arrays has been seen."""
    adapter = _by_type.get(type(x))
    return _look_up(x, argument) if adapter is None else adapter


def contents(x: Any) -> Any:
    """What a Keras variable holds, which is a tensor of the framework that Keras runs on; anything else is itself.

    To be called after `find`, which knows the types.
    """
    return x.value if type(x) in _variables else x


def _look_up(x: Any, argument: str) -> Adapter:
    """By instance: JAX's tracers are instances of jax.Array, but their classes are no subclasses of it."""
    if isinstance(x, list | tuple | int | float):
        return load("numpy")
    if isinstance(x, getattr(sys.modules.get("keras"), "Variable", ())):
        _variables[type(x)] = True
        _by_type[type(x)] = find(contents(x), argument)
        return _by_type[type(x)]
    name = _framework(x)
    adapter = _third_party(x, argument) if name is None else load(name)
    _check.array(x, argument)
    adapter = adapter if adapter.of_type is None else adapter.of_type(type(x))
    _by_type[type(x)] = adapter
    return adapter


def _framework(x: Any) -> str | None:
    for name, types in (FRAMEWORKS | CHUNKED).items():
        module = sys.modules.get(name)
        if isinstance(x, tuple([getattr(module, t, ()) for t in types])):  # () where it is not, or not fully, imported
            return name
    return None


def _third_party(x: Any, argument: str) -> Adapter:
    for entry in installed():
        if entry.name in sys.modules:
            adapter = load(entry.name)
            if isinstance(x, adapter.types):
                return adapter
    if hasattr(x, "__array_namespace__"):
        return _standard(x.__array_namespace__())
    if hasattr(x, "__array__"):  # such as a pandas Series, which counts as NumPy's
        return load("numpy")
    raise _check.not_an_array(x, argument)


def _standard(namespace: Any) -> Adapter:
    """The adapter for a library of the array API standard, one for all its namespaces."""
    name = namespace.__name__.partition(".")[0]
    if not hasattr(_adapters, name):
        setattr(_adapters, name, importlib.import_module("xent.backends.array_api").adapter(namespace))
    adapter: Adapter = getattr(_adapters, name)
    return adapter


def installed() -> Iterator[EntryPoint]:
    """The third parties' adapters."""
    from importlib.metadata import entry_points  # takes a third as long as the rest of `import xent`

    return (entry for entry in entry_points(group=GROUP) if entry.name not in FRAMEWORKS)


def load(name: str) -> Adapter:
    """The adapter of the framework that is imported by this name, importing both."""
    _import(name)
    adapter: Adapter = getattr(_adapters, name)
    return adapter


def _import(name: str) -> None:
    if hasattr(_adapters, name):
        return
    if name in FRAMEWORKS or name in CHUNKED:
        adapter = importlib.import_module(f"xent.backends.{name.partition('.')[0]}").ADAPTER
    elif name in ARRAY_API:
        adapter = _standard(importlib.import_module(name))
    else:
        entries = {entry.name: entry for entry in installed()}
        if name not in entries:
            raise _check.no_backend(name, [*FRAMEWORKS, *entries])
        adapter = entries[name].load()
        if not isinstance(adapter, Adapter):
            raise TypeError(f"entry point {name!r} of {GROUP!r}: expected an Adapter, got {type(adapter).__qualname__}")
    setattr(_adapters, name, adapter)


# Where a first dispatch is traced, torch.compile and AutoGraph then call this for real instead of tracing an import.
_import._dynamo_marked_constant = True  # type: ignore[attr-defined]
_import.autograph_info__ = {}  # type: ignore[attr-defined]
