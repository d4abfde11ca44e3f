"""One cross-entropy loss for NumPy, PyTorch, TensorFlow and JAX: the same meaning, numbers and errors everywhere."""

from typing import Any

from xent._adapter import Adapter, Layout, Linear, Ops
from xent._check import LabelError
from xent._gradient import value_and_grad
from xent._linear import Grads
from xent._losses import linear_ce, sigmoid_ce, softmax_ce, sparse_ce
from xent._reduce import Stats
from xent.compare import compare

__all__ = [
    "Adapter",
    "Grads",
    "LabelError",
    "Layout",
    "Linear",
    "Ops",
    "Stats",
    "bench",
    "compare",
    "linear_ce",
    "sigmoid_ce",
    "softmax_ce",
    "sparse_ce",
    "value_and_grad",
]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """The timing harness is imported when it is asked for."""
    if name == "bench":
        from xent.benchmarks.run import bench

        return bench
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
