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
        why_not = "not built: xent was installed without a C++ compiler, or with XENT_NATIVE=0"
    except ImportError as error:
        why_not = f"does not load: {error}"
