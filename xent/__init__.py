"""One cross-entropy loss for NumPy, PyTorch, TensorFlow and JAX: the same meaning, numbers and errors everywhere."""

import importlib
from typing import Any

from xent._check import LabelError
from xent._gradient import value_and_grad
from xent._labels import next_token, total_weight
from xent._linear import Grads
from xent._log_prob import entropy, log_prob
from xent._losses import linear_ce, sigmoid_ce, softmax_ce, sparse_ce
from xent._reduce import Stats
from xent.adapter import Adapter, Layout, LinearKernels, Ops

__all__ = [
    "Adapter",
    "Grads",
    "LabelError",
    "Layout",
    "LinearKernels",
    "Ops",
    "Stats",
    "bench",
    "compare",
    "doctor",
    "entropy",
    "linear_ce",
    "log_prob",
    "next_token",
    "sigmoid_ce",
    "softmax_ce",
    "sparse_ce",
    "total_weight",
    "value_and_grad",
]
__version__ = "0.1.0"


# Tools and their modules. No loss needs them, so they are imported when they are first used.
_LAZY = {"bench": "xent.benchmarks.run", "compare": "xent.verify.compare", "doctor": "xent.verify.doctor"}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY})
