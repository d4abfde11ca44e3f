"""Triton kernels for PyTorch's CUDA tensors. Triton comes with PyTorch's CUDA builds; nothing here imports it until
such a tensor arrives, and nothing at all where it would abort the process."""

from __future__ import annotations

import os
import sys
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType

why_not: str | None = None

if os.environ.get("XENT_NATIVE") == "0":
    why_not = "switched off by XENT_NATIVE=0"
elif find_spec("triton") is None:
    why_not = "Triton is not installed"


def load() -> ModuleType | None:
    """The module that launches the kernels, or None, and `why_not` says why."""
    global why_not
    if why_not is None and "tensorflow" in sys.modules and "triton" not in sys.modules:
        why_not = "TensorFlow was imported before Triton, which would abort the process: import triton first"
    if why_not is not None:
        return None
    try:
        return import_module(".launch", __name__)
    except ImportError as error:
        why_not = f"Triton does not load: {error}"
        return None
