"""From an array to its framework's adapter, importing nothing that the caller has not imported."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from xent import _check
from xent._adapter import Adapter

# A framework's import name: what its arrays are instances of. A new framework is a line here and a file in backends/.
FRAMEWORKS = {
    "numpy": ("ndarray", "generic"),
    "torch": ("Tensor",),
    "tensorflow": ("Tensor", "Variable"),
    "jax": ("Array",),
}
GROUP = "xent.backends"  # entry points "framework = module:ADAPTER", for adapters that live elsewhere

_by_type: dict[type, Adapter] = {}


def find(x: Any, argument: str = "logits") -> Adapter:
    """The adapter for x; the type alone decides once one of its arrays has been seen."""
    adapter = _by_type.get(type(x))
    return _look_up(x, argument) if adapter is None else adapter


def _look_up(x: Any, argument: str) -> Adapter:
    """By instance: JAX's tracers are instances of jax.Array, but their classes are no subclasses of it."""
    if isinstance(x, list | tuple | int | float):
        return load("numpy")
    for name, types in FRAMEWORKS.items():
        module = sys.modules.get(name)
        if module is not None and any(isinstance(x, getattr(module, t, ())) for t in types):
            adapter = load(name)
            break
    else:
        adapter = _third_party(x, argument)
    _check.array(x, argument)
    _by_type[type(x)] = adapter
    return adapter


def _third_party(x: Any, argument: str) -> Adapter:
    for entry in installed():
        if entry.name in sys.modules:
            adapter = load(entry.name)
            if isinstance(x, adapter.types):
                return adapter
    raise _check.not_an_array(x, argument)


def installed() -> Iterator[EntryPoint]:
    """The third parties' adapters."""
    return (entry for entry in entry_points(group=GROUP) if entry.name not in FRAMEWORKS)


def load(name: str) -> Adapter:
    """The adapter of the framework that is imported by this name, importing both."""
    if name in FRAMEWORKS:
        adapter: Adapter = importlib.import_module(f"xent.backends.{name}").ADAPTER
        return adapter
    for entry in installed():
        if entry.name == name:
            adapter = entry.load()
            if not isinstance(adapter, Adapter):
                raise TypeError(f"entry point {entry.value!r} of {GROUP!r} is no xent.Adapter, but {type(adapter)}")
            return adapter
    raise _check.no_backend(name, [*FRAMEWORKS, *(entry.name for entry in installed())])
