"""One cross-entropy loss for NumPy, PyTorch, TensorFlow and JAX: the same meaning, numbers and errors everywhere."""

from typing import Any

from xent._adapter import Adapter, Layout, Ops
from xent._check import LabelError
from xent._gradient import value_and_grad
from xent._losses import sigmoid_ce, softmax_ce, sparse_ce
from xent.compare import compare

__all__ = [
    "Adapter",
    "LabelError",
    "Layout",
    "Ops",
    "bench",
    "compare",
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
