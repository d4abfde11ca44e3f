"""The truth in float64: `xent.oracle.sparse_ce` and the other losses, with every derivative."""

from xent.verify.oracle import LinearTruth, Truth, linear_ce, sigmoid_ce, softmax_ce, sparse_ce

__all__ = ["LinearTruth", "Truth", "linear_ce", "sigmoid_ce", "softmax_ce", "sparse_ce"]
