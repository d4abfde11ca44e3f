"""What each dtype of logits can do."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
DTYPES = ("float32", "float64", "float16", "bfloat16")


class Precision(NamedTuple):
    """What a dtype can do. 16-bit logits are computed in float32; only their gradient is rounded to 16 bits."""

    compute: str
    unit: float  # roundoff of the computation
    bar: float  # relative, where the loss is at least 1e-3
    largest: float
    tiny: float  # smallest normal number of the computation; below it nothing is promised
    mantissa: int | None = None  # bits after the point of the gradient's dtype, where that is narrower
    smallest: int = 0  # exponent of the gradient dtype's smallest normal number


PRECISION = {
    "float64": Precision("float64", 2.0**-53, 1e-14, 1.7e308, 2.0**-1022),
    "float32": Precision("float32", 2.0**-24, 1e-6, 3.4e38, 2.0**-126),
    "float16": Precision("float32", 2.0**-24, 1e-6, 65504.0, 2.0**-126, 10, -14),
    "bfloat16": Precision("float32", 2.0**-24, 1e-6, 3.38e38, 2.0**-126, 7, -126),
}


def rounded(x: Array, dtype: str) -> Array:
    """x as the dtype holds it, in float64; no library's bfloat16 is needed."""
    precision = PRECISION[dtype]
    if dtype in ("float32", "float64", "float16"):
        with np.errstate(over="ignore"):
            return x.astype(dtype).astype(np.float64)
    mantissa, exponent = np.frexp(x)
    bits = (precision.mantissa or 0) + 1
    return np.asarray(np.ldexp(np.round(np.ldexp(mantissa, bits)), exponent - bits))
