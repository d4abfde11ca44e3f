"""One cross-entropy loss for NumPy, PyTorch, TensorFlow and JAX: the same meaning, numbers and errors everywhere."""

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
    "compare",
    "sigmoid_ce",
    "softmax_ce",
    "sparse_ce",
    "value_and_grad",
]
__version__ = "0.1.0"
