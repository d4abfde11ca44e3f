"""Arrays on disk of which a part is read at a time: .npy files and zarr arrays.

A store is a small record, so that it can be sent to another process, which opens the file itself.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from xent import _files

Index = tuple[slice, ...]


@dataclass(frozen=True)
class Store:
    """An array on disk. `read` gives a part of it; an index may leave out the last axes."""

    library: ClassVar[str] = "numpy"  # what reads it

    path: str
    shape: tuple[int, ...]
    dtype: str  # as NumPy spells it, byte order included
    changed: int  # when the file was, in nanoseconds
    chunks: tuple[int, ...] | None = None  # the lengths of what can be read at once; None: of any length

    def read(self, index: Index) -> np.ndarray[Any, Any]:
        raise NotImplementedError

    def identity(self) -> dict[str, Any]:
        """What has to be the same where an interrupted evaluation goes on."""
        return {"path": self.path, "shape": list(self.shape), "dtype": self.dtype, "changed": self.changed}


@dataclass(frozen=True)
class Npy(Store):
    """Only the part that is read is mapped into memory: so a mapping fits where the file does not."""

    offset: int = 0
    fortran: bool = False

    def read(self, index: Index) -> np.ndarray[Any, Any]:
        if self.fortran or not index:
            return self._mapped(0, self.shape)[index]
        start, stop, _ = index[0].indices(self.shape[0])
        return self._mapped(start, (stop - start, *self.shape[1:]))[(slice(None), *index[1:])]

    def _mapped(self, start: int, shape: tuple[int, ...]) -> np.ndarray[Any, Any]:
        dtype = np.dtype(self.dtype)
        offset = self.offset + start * math.prod(self.shape[1:]) * dtype.itemsize
        order = "F" if self.fortran else "C"
        return np.asarray(np.memmap(self.path, dtype, "r", offset, shape, order))  # type: ignore[call-overload]


@dataclass(frozen=True)
class Zarr(Store):
    library: ClassVar[str] = "zarr"

    def read(self, index: Index) -> np.ndarray[Any, Any]:
        return np.asarray(_zarr(Path(self.path))[index])


def open_store(path: Path, name: str) -> Npy | Zarr:
    """The array that `path` holds, opened to see what it is, but not read."""
    if path.suffix != ".npy" and not path.is_dir():
        kind = "expected a .npy file or the folder of a zarr array" if path.exists() else "no such file or folder"
        raise ValueError(f"{path}: {kind}")
    store = _open_zarr(path) if path.is_dir() else _open_npy(path)
    _files.check_dtype(path, name, np.dtype(store.dtype))
    return store


def _open_npy(path: Path) -> Npy:
    if not path.exists():
        raise ValueError(f"{path}: no such file or folder")
    with path.open("rb") as file:
        try:
            version = np.lib.format.read_magic(file)
            read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
            shape, fortran, dtype = read[version](file)
        except (ValueError, KeyError) as error:
            raise ValueError(f"{path}: not a readable .npy file ({type(error).__name__})") from None
        offset = file.tell()
    state = path.stat()
    expected = offset + math.prod(shape) * dtype.itemsize
    if state.st_size < expected and not dtype.hasobject:  # objects are pickled; no loss takes them
        raise ValueError(f"{path}: expected {expected} bytes, as it says itself, got {state.st_size}")
    place = str(path.absolute())
    return Npy(place, shape, dtype.str, state.st_mtime_ns, offset=offset, fortran=fortran and len(shape) > 1)


def _open_zarr(path: Path) -> Zarr:
    array = _zarr(path)
    about = next(file for file in (path / "zarr.json", path / ".zarray") if file.exists())
    return Zarr(str(path.absolute()), array.shape, array.dtype.str, about.stat().st_mtime_ns, array.chunks)


def _zarr(path: Path) -> Any:
    try:
        zarr = importlib.import_module("zarr")
    except ImportError:
        raise ValueError(f"{path}: reading a zarr array needs: pip install zarr") from None
    try:
        return zarr.open_array(str(path), mode="r")
    except Exception as error:  # zarr has its own exceptions
        raise ValueError(f"{path}: not a readable zarr array ({type(error).__name__})") from None


def parts(shape: tuple[int, ...], most: int, chunks: tuple[int, ...] | None) -> Iterator[Index]:
    """Indices of the parts of an array that have at most so many elements, or one; whole chunks where they fit."""
    if not shape:
        yield ()
        return
    inner = math.prod(shape[1:])
    step = most // inner if inner else shape[0]
    if step < 1:
        for i in range(shape[0]):
            for rest in parts(shape[1:], most, None if chunks is None else chunks[1:]):
                yield slice(i, i + 1), *rest
        return
    if chunks is not None and step > chunks[0]:
        step -= step % chunks[0]
    for start in range(0, shape[0], step):
        yield (slice(start, min(start + step, shape[0])),)
