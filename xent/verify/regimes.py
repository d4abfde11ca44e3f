"""Logits worth trying, as data, for the tests and `xent compare`.

A batch stacks the rows of all regimes, so that one call, compiled once, goes through every one of them.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from xent.verify import oracle
from xent.verify.precision import PRECISION, rounded

Array = NDArray[Any]
Rng = np.random.Generator
LOSSES = ("sparse_ce", "softmax_ce", "sigmoid_ce")


# ---- regimes: rows of logits and their labels. A comment says what each stands for.


def _ordinary(rng: Rng, c: int) -> tuple[Array, Array]:
    """As of a model that begins to learn: a standard deviation of 1."""
    return rng.normal(size=(6, c)), rng.integers(0, c, 6)


def _sharp(rng: Rng, c: int) -> tuple[Array, Array]:
    """As of a trained model: a standard deviation of 10."""
    return 10 * rng.normal(size=(6, c)), rng.integers(0, c, 6)


def _offset(rng: Rng, c: int) -> tuple[Array, Array]:
    """A common offset, which no loss may see; lse - x loses digits to it."""
    offsets = [-1e8, -1e4, 1e3, 1e4, 1e6, 1e8]
    spread = [64.0, 1.0, 1.0, 1.0, 4.0, 64.0]  # a few times the spacing of float32 there
    x = np.stack([offset + s * rng.normal(size=c) for offset, s in zip(offsets, spread, strict=True)])
    return x, rng.integers(0, c, len(x))


def _lead(rng: Rng, c: int) -> tuple[Array, Array]:
    """Confident and right: a tiny loss, 0 by log_softmax from 17 on."""
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
    """Ties; and equal terms, whose rounding errors add up one by one."""
    x = np.zeros((5, c))
    x[1] = 3.7
    x[2:, 0] = [5.3, 9.1, 17.3]
    return x, np.array([0, c - 1, 0, 0, 0])


def _ruled_out(rng: Rng, c: int) -> tuple[Array, Array]:
    """Classes ruled out by -inf, as decoding masks do; at last the label."""
    x = rng.normal(size=(3, c))
    x[:, 1::2] = -np.inf
    return x, np.array([0, (c - 1) // 2 * 2, min(1, c - 1)])


REGIMES: dict[str, Callable[[Rng, int], tuple[Array, Array]]] = {
    "ordinary": _ordinary,
    "sharp": _sharp,
    "offset": _offset,
    "lead": _lead,
    "behind": _behind,
    "spread": _spread,
    "equal": _equal,
    "-inf": _ruled_out,
}


def about(regime: str) -> str:
    """What kind of logits it is, in a sentence."""
    return (inspect.getdoc(REGIMES[regime]) or "").partition("\n")[0]


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
    made_by: str = ""  # the call that makes its logits and labels again
    shape: tuple[int, ...] = ()  # the loss's, where xent's has the classes on another axis than the last; else ()
    axis: int = -1  # that axis
    hidden: Any = None  # of `linear_ce`: what the logits are the products of
    weight: Any = None

    @property
    def name(self) -> str:
        return f"{self.loss} {self.dtype} {'x'.join(map(str, self.logits.shape))}"

    def truth(self) -> oracle.Truth:
        truth: oracle.Truth = getattr(oracle, self.loss)(self.logits, self.labels, reduce="none", **self.options)
        return truth


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
    made_by = f"xent.verify.regimes.batch({loss!r}, {dtype!r}, {classes}, {seed}, {every})"
    return Batch(loss, dtype, x, y, tuple(names), made_by=made_by)


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
