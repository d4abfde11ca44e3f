"""Logits worth trying, as data, and how close to the truth a loss has to come on each (tests and `xent compare`).

A batch stacks the rows of all regimes, so that one call, compiled once, goes through every one of them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from xent import oracle

Array = NDArray[Any]
Rng = np.random.Generator
LOSSES = ("sparse_ce", "softmax_ce", "sigmoid_ce")
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

# ---- regimes: rows of logits and their labels. A comment says what each stands for.


def _random(rng: Rng, c: int) -> tuple[Array, Array]:
    """What an untrained and a trained model give."""
    x = np.concatenate([rng.normal(size=(6, c)), 10 * rng.normal(size=(6, c))])
    return x, rng.integers(0, c, 12)


def _offset(rng: Rng, c: int) -> tuple[Array, Array]:
    """A common offset, which a loss must not see: lse - x loses every digit to it."""
    offsets = [-1e8, -1e4, 1e3, 1e4, 1e6, 1e8]
    spread = [64.0, 1.0, 1.0, 1.0, 4.0, 64.0]  # a few times the spacing of float32 there
    x = np.stack([offset + s * rng.normal(size=c) for offset, s in zip(offsets, spread, strict=True)])
    return x, rng.integers(0, c, len(x))


def _lead(rng: Rng, c: int) -> tuple[Array, Array]:
    """Confident and right: the loss is tiny, and most frameworks say 0 from a lead of 17 on."""
    leads = np.array([0, 1, 3, 5, 7, 10, 13, 17, 20, 30, 50, 80.0])
    x = rng.normal(size=(len(leads), c)) * 0.5
    y = rng.integers(0, c, len(leads))
    if c > 1:
        rows = np.arange(len(leads))
        x[rows, y] = -np.inf
        x[rows, y] = x.max(axis=1) + leads
    return x, y


def _behind(rng: Rng, c: int) -> tuple[Array, Array]:
    """Confident and wrong: the loss is the gap, the gradient saturates."""
    x, _ = _lead(rng, c)
    return x, np.argmin(x, axis=1)


def _spread(rng: Rng, c: int) -> tuple[Array, Array]:
    """Almost every probability underflows."""
    x = np.stack([scale * rng.uniform(-1, 1, c) for scale in (100, 1e3, 1e4, 1e4)])
    return x, np.array([*rng.integers(0, c, 2), int(x[2].argmax()), int(x[3].argmin())])


def _equal(rng: Rng, c: int) -> tuple[Array, Array]:
    """Ties; and equal terms, whose rounding errors all point the same way when they are added one by one."""
    x = np.zeros((5, c))
    x[1] = 3.7
    x[2:, 0] = [5.3, 9.1, 17.3]
    return x, np.array([0, c - 1, 0, 0, 0])


def _impossible(rng: Rng, c: int) -> tuple[Array, Array]:
    """Classes ruled out by -inf, as decoding masks do; the label is possible, then not."""
    x = rng.normal(size=(3, c))
    x[:, 1::2] = -np.inf
    return x, np.array([0, (c - 1) // 2 * 2, min(1, c - 1)])


REGIMES: dict[str, Callable[[Rng, int], tuple[Array, Array]]] = {
    "random": _random,
    "offset": _offset,
    "lead": _lead,
    "behind": _behind,
    "spread": _spread,
    "equal": _equal,
    "impossible": _impossible,
}
# 1: nothing to choose; 2, 10: smallest real ones; 1000: one block of a sum; 33333: not a multiple of any block;
# 262144: the largest vocabulary in use.
CLASSES = (1, 2, 10, 1000, 33333, 262144)


@dataclass(frozen=True)
class Batch:
    """One call's arguments, exact in float64, and where its rows come from."""

    loss: str
    dtype: str
    logits: Array
    labels: Array
    regimes: tuple[str, ...]  # one a row
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return f"{self.loss} {self.dtype} {'x'.join(map(str, self.logits.shape))}"

    def truth(self) -> oracle.Truth:
        truth: oracle.Truth = getattr(oracle, self.loss)(self.logits, self.labels, reduce="none", **self.options)
        return truth


def rounded(x: Array, dtype: str) -> Array:
    """x as the dtype holds it, in float64; without needing a bfloat16 of anybody's."""
    precision = PRECISION[dtype]
    if dtype in ("float32", "float64", "float16"):
        with np.errstate(over="ignore"):
            return x.astype(dtype).astype(np.float64)
    mantissa, exponent = np.frexp(x)
    bits = (precision.mantissa or 0) + 1
    return np.asarray(np.ldexp(np.round(np.ldexp(mantissa, bits)), exponent - bits))


def batch(loss: str, dtype: str, classes: int = 1000, seed: int = 0, every: int = 1) -> Batch:
    """All regimes that the dtype can hold, stacked; or only every so many of their rows."""
    rng = np.random.default_rng(seed)
    rows, labels, names = [], [], []
    for name, make in REGIMES.items():
        x, y = make(rng, classes)
        fits = np.isfinite(rounded(np.where(np.isneginf(x), 0, x), dtype)).all(axis=1)
        rows.append(rounded(x[fits], dtype)[::every])
        labels.append(y[fits][::every])
        names += [name] * len(labels[-1])
    x, y = np.concatenate(rows), np.concatenate(labels)
    if loss == "softmax_ce":
        y = _soft(rng, x, y, dtype)
    if loss == "sigmoid_ce":
        y = _per_element(rng, x, dtype)
    return Batch(loss, dtype, x, y, tuple(names))


def _soft(rng: Rng, x: Array, y: Array, dtype: str) -> Array:
    """Of every three rows: a distribution, a one-hot, two classes."""
    t = rng.dirichlet(np.ones(x.shape[1]), len(x))
    onehot = np.zeros_like(x)
    onehot[np.arange(len(x)), y] = 1
    t[1::3] = onehot[1::3]
    t[2::3] = 0.75 * onehot[2::3] + 0.25 * np.roll(onehot[2::3], 1, axis=1)
    return rounded(t, PRECISION[dtype].compute)


def _per_element(rng: Rng, x: Array, dtype: str) -> Array:
    """0, 1 and in between."""
    z = rng.choice([0.0, 1.0, 0.25, 0.9], x.shape)
    return rounded(z, PRECISION[dtype].compute)


# ---- how close


class Errors(NamedTuple):
    """Row by row, relative: in the loss, and in the worst entry of the gradient; each also as a share of what is
    allowed, so that 1 is the limit."""

    loss: Array
    loss_share: Array
    grad: Array
    grad_share: Array


def errors(batch: Batch, truth: oracle.Truth, loss: Array, grad: Array) -> Errors:
    """How far results are from the truth.

    Allowed in the loss: the dtype's bar where it is at least 1e-3, (8 + lead) roundoffs below, lead being how far the
    label is ahead: the rounding of m - x_j itself. In the gradient the same, entry by entry, with the entry's own gap;
    for soft labels relative to the larger of the two terms that are subtracted. Where the gradient has 16 bits, one
    unit in its last place (for soft labels, on top of those roundoffs).
    """
    precision = PRECISION[batch.dtype]
    lead, gap, scale = _geometry(batch, truth)
    size = np.abs(truth.loss)
    allowed = np.where(size >= 1e-3, precision.bar, (8 + lead) * precision.unit)
    in_loss = _relative(loss, truth.loss, size, precision.tiny)
    in_grad = _relative(grad, truth.logits, scale, precision.tiny)
    if precision.mantissa is not None:  # subnormal results have fewer digits, down to none
        in_grad = np.where(np.abs(truth.logits) < 2.0**precision.smallest, 0.0, in_grad)
    if precision.mantissa is None:
        allowed_grad = np.where(scale >= 1e-3, precision.bar, (8 + gap) * precision.unit)
        share = in_grad / allowed_grad
    else:
        soft = 0.0 if batch.loss == "sparse_ce" else (8 + gap) * precision.unit * scale
        share = _relative(grad, truth.logits, _ulp(truth.logits, precision) + soft, precision.tiny)
    flat = (len(in_grad), -1)
    return Errors(
        _per_row(in_loss), _per_row(in_loss / allowed), in_grad.reshape(flat).max(1), share.reshape(flat).max(1)
    )


def _per_row(x: Array) -> Array:
    return np.asarray(x.reshape(len(x), -1).max(axis=1))


def _geometry(batch: Batch, truth: oracle.Truth) -> tuple[Array, Array, Array]:
    """The label's lead; each entry's distance from the maximum (the label's: its lead); the gradient's terms' size."""
    x = batch.logits
    if batch.loss == "sigmoid_ce":
        gap = np.where(np.isfinite(x), np.abs(x), 0.0)
        return gap, gap, np.maximum((1 - batch.labels) * oracle.logistic(x), batch.labels * oracle.logistic(-x))
    rows = np.arange(len(x))
    hard = batch.loss == "sparse_ce"
    y = batch.labels.clip(0, x.shape[1] - 1) if hard else batch.labels.argmax(axis=1)  # ignored ids can be anything
    others = x.copy()
    others[rows, y] = -np.inf
    best = np.where(np.isfinite(others.max(axis=1)), others.max(axis=1), x[rows, y])
    with np.errstate(invalid="ignore"):
        lead = np.nan_to_num(np.maximum(x[rows, y] - best, 0), nan=0, posinf=0)
        gap = np.nan_to_num(x.max(axis=1, keepdims=True) - x, posinf=0)
    if hard:
        gap[rows, y] = lead
        return lead, gap, np.abs(truth.logits)
    return lead, gap, np.maximum(np.abs(truth.logits + batch.labels), batch.labels)


def _relative(got: Array, want: Array, scale: Array, tiny: float) -> Array:
    """|got - want| / scale; 0 where they agree or what is left is below the smallest normal number."""
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        difference = np.abs(got - want)
        same = (got == want) | (np.isnan(got) & np.isnan(want)) | (difference <= tiny)
        error = np.where(same, 0.0, difference / scale)
    return np.where(np.isnan(error), np.inf, error)


def _ulp(x: Array, precision: Precision) -> Array:
    """The spacing of a 16-bit dtype at x."""
    _, exponent = np.frexp(x)
    return np.asarray(np.ldexp(1.0, np.maximum(exponent - 1, precision.smallest) - (precision.mantissa or 0)))
