"""Native CPU kernels, where they were built: `native` is the extension module, or None, and `why_not` says why."""

from __future__ import annotations

import os
from importlib import import_module
from types import ModuleType

native: ModuleType | None = None
why_not: str | None = None

if os.environ.get("XENT_NATIVE") == "0":
    why_not = "switched off by XENT_NATIVE=0"
else:
    try:
        native = import_module("._native", __name__)
    except ModuleNotFoundError:
        why_not = "not compiled: there was no working C++17 compiler when xent was installed, or XENT_NATIVE=0 was set"
    except ImportError as error:
        why_not = f"does not load: {error}"
