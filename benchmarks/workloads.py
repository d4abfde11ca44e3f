"""What is timed, as data: shapes that stand for real uses, and the least work that each of them takes."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

Array = Any
WIDTH = {"float64": 8, "float32": 4, "float16": 2, "bfloat16": 2}
PASSES = {"forward": "forward", "both": "forward and backward"}
UNCACHED = 1 << 28  # bytes: more than most processors' caches hold


@dataclass(frozen=True)
class Workload:
    name: str
    use: str  # what it stands for
    loss: str
    shape: tuple[int, ...]  # the logits'; of linear_ce: rows, features, classes
    axis: int = -1
    dtypes: tuple[str, ...] = ("float32",)  # that are timed if none is asked for
    by_default: bool = True  # also timed if no workload is asked for
    ranks: int = 1  # processes over which the classes are split, on PyTorch
    cold: bool = True  # the logits come from memory, not from a cache that still has them from the last call

    @property
    def linear(self) -> bool:
        """The inputs are hidden states and a weight, not logits."""
        return self.loss == "linear_ce"

    @property
    def ids(self) -> bool:
        """Labels are class ids, not distributions."""
        return self.loss in ("linear_ce", "sparse_ce")

    @property
    def classes(self) -> int:
        return self.shape[self.axis]

    @property
    def rows(self) -> int:
        return self.shape[0] if self.linear else math.prod(self.shape) // self.classes

    @property
    def logits(self) -> int:
        """How many there are, whether an implementation holds them or not."""
        return self.rows * self.classes

    @property
    def inputs(self) -> int:
        """Elements that the gradient is taken in."""
        return (self.rows + self.classes) * self.shape[1] if self.linear else self.logits

    @property
    def from_memory(self) -> bool:
        """Whether memory decides the time: for cold logits, but not linear_ce, which reads its inputs many times."""
        return self.cold and not self.linear and self.ranks == 1

    def copies(self, dtype: str) -> int:
        """How many copies of the inputs the calls take turns on, so that no call finds its inputs in a cache."""
        return min(-(-UNCACHED // (self.inputs * WIDTH[dtype])), 256) if self.from_memory else 1

    def read(self, dtype: str) -> int:
        """Bytes that every implementation reads: inputs once, labels once (class ids in 32 bits)."""
        labels = 4 * self.rows if self.ids else self.logits * WIDTH[dtype]
        return self.inputs * WIDTH[dtype] + labels

    def written(self, dtype: str, which: str) -> int:
        """Bytes of the gradient, if there is one."""
        return self.inputs * WIDTH[dtype] if which == "both" else 0

    def operations(self, which: str) -> int:
        """Of linear_ce's matrix products: one forward, two more for the gradients. Other losses have none."""
        return (6 if which == "both" else 2) * math.prod(self.shape) if self.linear else 0

    def arrays(self, seed: int) -> tuple[Array | tuple[Array, Array], Array]:
        """Inputs in float32 (logits, or a pair of hidden states and weight) and labels, as of an untrained model."""
        rng = np.random.default_rng(seed)
        if self.linear:
            rows, features, classes = self.shape
            weight = rng.standard_normal((classes, features), np.float32) / np.float32(math.sqrt(features))
            return (rng.standard_normal((rows, features), np.float32), weight), rng.integers(0, classes, rows)
        x = rng.standard_normal(self.shape, np.float32)
        if self.ids:
            return x, rng.integers(0, self.classes, np.delete(self.shape, self.axis))
        if self.loss == "sigmoid_ce":
            return x, (rng.random(self.shape, np.float32) < 0.1).astype(np.float32)
        t = rng.random(self.shape, np.float32)
        return x, t / t.sum(self.axis, keepdims=True)


WORKLOADS = {
    w.name: w
    for w in (
        Workload("tiny", "the cost of a call itself", "sparse_ce", (32, 10), cold=False),
        Workload("image", "ImageNet classifier", "sparse_ce", (1024, 1000)),
        Workload("segmentation", "21 classes for each pixel", "sparse_ce", (8, 21, 256, 256), axis=1),
        Workload("lm", "language model, 32,000 tokens", "sparse_ce", (4096, 32000), dtypes=("float32", "bfloat16")),
        Workload("multilabel", "5,000 tags", "sigmoid_ce", (4096, 5000)),
        Workload("soft", "distillation, mixup", "softmax_ce", (1024, 1000)),
        Workload("linear", "language model's head", "linear_ce", (512, 768, 32000)),
        Workload("batch", "many small rows", "sparse_ce", (65536, 10), by_default=False),
        Workload("lm-large", "128,256 tokens", "sparse_ce", (2048, 128256), by_default=False),
        Workload("soft-large", "distillation of a language model", "softmax_ce", (4096, 32000), by_default=False),
        Workload("linear-small", "classifier's head", "linear_ce", (256, 64, 1000), by_default=False),
        Workload("linear-large", "head for 128,256 tokens", "linear_ce", (1024, 2048, 128256), by_default=False),
        Workload(
            "lm-sharded", "32,000 tokens over two processes", "sparse_ce", (2048, 32000), by_default=False, ranks=2
        ),
    )
}
QUICK = ("tiny", "image")

SWEEPS = ("classes", "rows", "threads")
LARGEST = 1 << 27  # logits


def sweep(base: Workload, varied: str, largest: int = LARGEST) -> Iterator[tuple[int, Workload]]:
    """Variants of a workload in steps of four, up to `largest` logits, each with the number that is varied."""
    if len(base.shape) != 2 and not base.linear:
        raise ValueError(f"sweep: expected a workload of shape (rows, classes), got {base.name} {base.shape}")
    for value in (16 * 4**step for step in range(16)):
        rows, classes = (16 * value, base.classes) if varied == "rows" else (256, value)
        if rows * classes <= largest:
            yield (rows if varied == "rows" else classes), replace(base, shape=(rows, *base.shape[1:-1], classes))
