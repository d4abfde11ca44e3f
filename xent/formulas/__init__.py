"""The mathematics of the kernels, written once over an adapter's `Ops`; adapters attach derivative rules to it.

With m = max_j x_j and s = sum of exp(x_j - m) over all j but one maximal one:

    nll  = (m - x_y) + log1p(s)                           both terms >= 0: nothing cancels
    soft = sum_j t_j (m - x_j) + (sum_j t_j) log1p(s)
    p_j  = exp(x_j - m) / (1 + s)
    p_y - 1 = -s / (1 + s) at the maximum, (exp(x_y - m) - (1 + s)) / (1 + s) elsewhere, where p_y <= 1/2

The textbook's logsumexp(x) - x_y rounds to 0 once the label leads by 17 (float32), and loses every digit under a
common offset. The last line is -expm1(-nll), written without expm1, which Inductor rounds to 0 below 6e-8.
"""

from .entropy import entropy, entropy_kernels, entropy_value_and_grad
from .logits import capped_and_scaled, slope
from .sigmoid import sigmoid, sigmoid_kernels, sigmoid_pull, sigmoid_total, sigmoid_value_and_grad
from .softmax import (
    Pieces,
    behind,
    finite_or_nan,
    mean_value_and_grad,
    pieces,
    pull,
    pull_labels,
    push,
    rows,
    rows_value_and_grad,
    smooth_pieces,
    softmax_kernels,
    top,
    where_present,
)
from .sums import add_pairs, compute_dtype, times, tree_sum, widened

__all__ = [
    "Pieces",
    "add_pairs",
    "behind",
    "capped_and_scaled",
    "compute_dtype",
    "entropy",
    "entropy_kernels",
    "entropy_value_and_grad",
    "finite_or_nan",
    "mean_value_and_grad",
    "pieces",
    "pull",
    "pull_labels",
    "push",
    "rows",
    "rows_value_and_grad",
    "sigmoid",
    "sigmoid_kernels",
    "sigmoid_pull",
    "sigmoid_total",
    "sigmoid_value_and_grad",
    "slope",
    "smooth_pieces",
    "softmax_kernels",
    "times",
    "top",
    "tree_sum",
    "where_present",
    "widened",
]
