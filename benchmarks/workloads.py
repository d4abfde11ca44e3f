"""What is timed, as data: shapes that stand for real uses, and the fewest bytes that each has to move."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
WIDTH = {"float64": 8, "float32": 4, "float16": 2, "bfloat16": 2}
NARROW = ("float32", "bfloat16", "float16")
ROTATED = 1 << 29  # bytes of logits: more than a processor's caches hold
PASSES = ("forward", "both")  # the loss; the loss and its gradient in the logits


class Traffic(NamedTuple):
    """Bytes that no implementation can do without: each array once."""

    read: int
    write: int


@dataclass(frozen=True)
class Workload:
    name: str
    why: str  # which use it stands for
    loss: str
    shape: tuple[int, ...]
    axis: int = -1
    dtypes: tuple[str, ...] = ("float32",)
    cold: bool = True  # the logits come from memory, not from a cache that held the last call's

    @property
    def classes(self) -> int:
        return self.shape[self.axis]

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def rows(self) -> int:
        return self.size // self.classes

    def label_bytes(self, dtype: str) -> int:
        """Class ids in 32 bits, the narrowest that a framework here asks for."""
        return 4 * self.rows if self.loss == "sparse_ce" else self.size * WIDTH[dtype]

    def copies(self, dtype: str) -> int:
        """How many logits the calls take turns on, so that none finds its own in a cache."""
        return min(-(-ROTATED // (self.size * WIDTH[dtype])), 256) if self.cold else 1

    def traffic(self, dtype: str, which: str) -> Traffic:
        """Both: statistics and gradient in one visit of each row, so that the logits are read once."""
        logits = self.size * WIDTH[dtype]
        return Traffic(logits + self.label_bytes(dtype), logits if which == "both" else 0)

    def arrays(self, seed: int) -> tuple[Array, Array]:
        """Logits in float32 and labels: what an untrained model gives."""
        rng = np.random.default_rng(seed)
        x = rng.standard_normal(self.shape, np.float32)
        if self.loss == "sparse_ce":
            left = np.delete(np.array(self.shape), self.axis)
            return x, rng.integers(0, self.classes, tuple(left))
        if self.loss == "sigmoid_ce":
            return x, (rng.random(self.shape, np.float32) < 0.1).astype(np.float32)
        t = rng.random(self.shape, np.float32)
        t /= t.sum(self.axis, keepdims=True)
        return x, t


WORKLOADS = {
    w.name: w
    for w in (
        Workload("tiny", "a call's own cost", "sparse_ce", (32, 10), cold=False),
        Workload("image", "ImageNet classifier", "sparse_ce", (1024, 1000)),
        Workload("images", "the same, a large batch", "sparse_ce", (8192, 1000)),
        Workload("segmentation", "21 classes for each pixel, axis=1", "sparse_ce", (8, 21, 256, 256), axis=1),
        Workload("batch", "many small rows", "sparse_ce", (65536, 10)),
        Workload("lm", "language model, 32,000 tokens", "sparse_ce", (4096, 32000), dtypes=NARROW),
        Workload("lm-large", "language model, 128,256 tokens", "sparse_ce", (2048, 128256), dtypes=NARROW),
        Workload("multilabel", "5,000 tags", "sigmoid_ce", (4096, 5000)),
        Workload("soft", "distillation, mixup", "softmax_ce", (1024, 1000)),
        Workload("soft-large", "distillation of a language model", "softmax_ce", (4096, 32000)),
    )
}
QUICK = ("tiny", "image")

SWEEPS = ("classes", "rows", "threads")


def sweep(base: Workload, kind: str, largest: int = 1 << 26) -> Iterator[tuple[int, Workload]]:
    """Variants of a workload with two dimensions, in steps of four, up to `largest` logits; and what is varied."""
    if len(base.shape) != 2:
        raise ValueError(f"sweep: expected a workload of shape (rows, classes), got {base.name} {base.shape}")
    rows, classes = (256, base.classes) if kind == "rows" else (256, 16)
    while rows * classes <= largest:
        shape = (rows, classes)
        yield shape[kind == "classes"], replace(base, name=f"{base.name} {rows}x{classes}", shape=shape, cold=True)
        rows, classes = (4 * rows, classes) if kind == "rows" else (rows, 4 * classes)
