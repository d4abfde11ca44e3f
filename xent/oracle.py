"""The truth in float64: `xent.oracle.sparse_ce`, the other losses, `log_prob` and `entropy`, with every derivative."""

from xent.verify.oracle import LinearTruth, Truth, entropy, linear_ce, log_prob, sigmoid_ce, softmax_ce, sparse_ce

__all__ = ["LinearTruth", "Truth", "entropy", "linear_ce", "log_prob", "sigmoid_ce", "softmax_ce", "sparse_ce"]
