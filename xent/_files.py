"""Arrays in the files that users have: .npy, .npz and .safetensors."""

from __future__ import annotations

import contextlib
import importlib
from pathlib import Path
from typing import Any

import numpy as np


def load(path: Path | None, name: str) -> Any:
    """The array in a file; of an archive, the one of this name, or its only one."""
    if path is None:
        return None
    if path.suffix not in (".npy", ".npz", ".safetensors"):
        raise ValueError(f"{path}: expected .npy, .npz or .safetensors")
    if not path.exists():
        raise ValueError(f"{path}: no such file")
    try:
        arrays = _arrays(path, name)
    except ImportError:
        raise ValueError(f"{path}: reading .safetensors needs: pip install safetensors") from None
    except Exception as error:  # each reader has its own exceptions
        raise ValueError(f"{path}: not a readable {path.suffix} file ({type(error).__name__})") from None
    if name not in arrays and len(arrays) != 1:
        raise ValueError(f"{path}: expected one array or one named {name!r}, found {', '.join(arrays) or 'none'}")
    key = name if name in arrays else next(iter(arrays))
    array = arrays[key]
    if isinstance(array, str):
        raise ValueError(f"{path}: {key} is {array}, which NumPy {HOW_TO_READ.get(array, 'does not have')}")
    check_dtype(path, key, array.dtype)
    return array


def check_dtype(path: Path, key: str, dtype: np.dtype[Any]) -> None:
    if dtype.name.startswith("void"):  # what np.save makes of bfloat16, whose name .npy cannot hold
        raise ValueError(
            f"{path}: {key} has the dtype {dtype.str}, raw bytes; save bfloat16 as .safetensors or as float32"
        )


HOW_TO_READ = {"BF16": "reads with: pip install ml_dtypes"}


def _arrays(path: Path, name: str) -> dict[str, Any]:
    """By name; for an array whose dtype NumPy does not have, that dtype's name."""
    if path.suffix == ".npy":
        return {name: np.load(path, allow_pickle=False)}
    if path.suffix == ".npz":
        with np.load(path, allow_pickle=False) as archive:
            return {member: archive[member] for member in archive.files}
    from safetensors import safe_open

    with contextlib.suppress(ImportError):
        importlib.import_module("ml_dtypes")  # which makes bfloat16 known to NumPy
    with safe_open(path, "numpy") as archive:
        return {key: _tensor(archive, key) for key in archive.keys()}  # noqa: SIM118 (no dict)


def _tensor(archive: Any, key: str) -> Any:
    try:
        return archive.get_tensor(key)
    except (TypeError, AttributeError):
        return archive.get_slice(key).get_dtype()
