"""Native CPU kernels, where they were built: `native` is the extension module, or None, and `why_not` says why."""

from __future__ import annotations

import os
from importlib import import_module
from pathlib import Path
from types import ModuleType

from xent import _check

INTERFACE = 8  # what _native.pyi describes
native: ModuleType | None = None
why_not: str | None = None

if _check.switch("XENT_NATIVE", os.environ.get("XENT_NATIVE", "")) == "0":
    why_not = "switched off by XENT_NATIVE=0"
else:
    try:
        native = import_module("._native", __name__)
    except ModuleNotFoundError:
        why_not = (
            f"not compiled in {Path(__file__).parent}: there was no working C++17 compiler when xent was installed, or "
            "XENT_NATIVE=0 was set, or this is a checkout that Python found first"
        )
    except ImportError as error:
        why_not = f"does not load: {error}"

if native is not None and getattr(native, "INTERFACE", None) != INTERFACE:
    native, why_not = None, "compiled from other sources than these: build it again (backends/cpu/README.md)"
if native is not None:
    _check.threads("XENT_NUM_THREADS", os.environ.get("XENT_NUM_THREADS", ""))
    _check.instruction_set("XENT_ISA", os.environ.get("XENT_ISA", ""), native.isas())
    native.isa()  # read now: what is in the environment later changes nothing
