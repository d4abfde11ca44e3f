"""What is timed, as data: shapes that stand for real uses, and the least that each has to do: bytes moved, products."""

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
HEADS = ("float32", "bfloat16")
ROTATED = 500_000_000  # bytes of logits: more than a processor's caches hold
PASSES = ("forward", "both")  # the loss; the loss and its gradient in the inputs


class Traffic(NamedTuple):
    """Bytes that no implementation can do without: each array once."""

    read: int
    write: int


@dataclass(frozen=True)
class Workload:
    name: str
    why: str  # which use it stands for
    loss: str
    shape: tuple[int, ...]  # the logits'; of linear_ce rows, features, classes
    axis: int = -1
    dtypes: tuple[str, ...] = ("float32",)
    cold: bool = True  # the logits come from memory, not from a cache that held the last call's
    usual: tuple[str, ...] = tuple(WIDTH)  # dtypes that a CPU has time for if the workload is not asked for by name

    @property
    def linear(self) -> bool:
        """The inputs are hidden states and a weight, not logits."""
        return self.loss == "linear_ce"

    @property
    def ids(self) -> bool:
        """Labels are class ids."""
        return self.linear or self.loss == "sparse_ce"

    @property
    def classes(self) -> int:
        return self.shape[self.axis]

    @property
    def size(self) -> int:
        """Of the logits."""
        return self.rows * self.classes

    @property
    def rows(self) -> int:
        return self.shape[0] if self.linear else math.prod(self.shape) // self.classes

    @property
    def inputs(self) -> int:
        """Elements that the gradient is in."""
        return (self.rows + self.classes) * self.shape[1] if self.linear else self.size

    def label_bytes(self, dtype: str) -> int:
        """Class ids in 32 bits, the narrowest that a framework here asks for."""
        return 4 * self.rows if self.ids else self.size * WIDTH[dtype]

    def copies(self, dtype: str) -> int:
        """How many inputs the calls take turns on, so that none finds its own in a cache. Those of linear_ce are
        multiplied so often that it does not matter."""
        cold = self.cold and not self.linear
        return min(-(-ROTATED // (self.inputs * WIDTH[dtype])), 256) if cold else 1

    def traffic(self, dtype: str, which: str) -> Traffic:
        """Both: statistics and gradient in one visit of each row, so that the logits are read once."""
        inputs = self.inputs * WIDTH[dtype]
        return Traffic(inputs + self.label_bytes(dtype), inputs if which == "both" else 0)

    def memory(self, dtype: str, processes: int, at_once: int) -> int:
        """Bytes that have to be free: what each process holds, and what those take that prepare at once.

        One that prepares takes some seven times its logits in float32, with SciPy's temporaries ten; of linear_ce four
        times the logits, where they are held, and the inputs and their gradients in up to float64.
        """
        held = self.inputs * (self.copies(dtype) + (not self.ids)) * WIDTH[dtype] * processes
        one = 4 * self.size + 6 * self.inputs if self.linear else 7 * self.size
        return held + (one * at_once + 3 * self.size) * WIDTH["float32"]

    def arrays(self, seed: int) -> tuple[Any, Array]:
        """Inputs in float32, logits or a pair of hidden states and weight, and labels: of an untrained model."""
        rng = np.random.default_rng(seed)
        if self.linear:
            rows, features, classes = self.shape
            weight = rng.standard_normal((classes, features), np.float32) / np.float32(math.sqrt(features))
            return (rng.standard_normal((rows, features), np.float32), weight), rng.integers(0, classes, rows)
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
        Workload(
            "lm-large", "language model, 128,256 tokens", "sparse_ce", (2048, 128256), dtypes=NARROW, usual=NARROW[:2]
        ),
        Workload("multilabel", "5,000 tags", "sigmoid_ce", (4096, 5000)),
        Workload("soft", "distillation, mixup", "softmax_ce", (1024, 1000)),
        Workload("soft-large", "distillation of a language model", "softmax_ce", (4096, 32000)),
        Workload("linear-small", "a classifier's head", "linear_ce", (256, 64, 1000)),
        Workload("linear", "language model's head", "linear_ce", (2048, 1024, 32000), dtypes=HEADS, usual=HEADS[:1]),
        Workload("linear-large", "head of 128,256 tokens", "linear_ce", (1024, 2048, 128256), dtypes=HEADS, usual=()),
    )
}
QUICK = ("tiny", "image")

SWEEPS = ("classes", "rows", "threads")
LARGEST, LARGEST_LINEAR = 1 << 26, 1 << 27  # logits: of 32,000 classes 1024 rows, 4096 rows


def sweep(base: Workload, kind: str, largest: int | None = None) -> Iterator[tuple[int, Workload]]:
    """Variants of a workload of rows, classes and, if it is linear_ce's, features, in steps of four, up to `largest`
    logits; and what is varied."""
    if len(base.shape) != 2 and not base.linear:
        raise ValueError(f"sweep: expected a workload of shape (rows, classes), got {base.name} {base.shape}")
    largest = largest or (LARGEST_LINEAR if base.linear else LARGEST)
    rows, classes = (256, base.classes) if kind == "rows" else (256, 16)
    while rows * classes <= largest:
        shape = (rows, *base.shape[1:-1], classes)
        name = f"{base.name} {'x'.join(map(str, shape))}"
        yield (rows if kind == "rows" else classes), replace(base, name=name, shape=shape, cold=True)
        rows, classes = (4 * rows, classes) if kind == "rows" else (rows, 4 * classes)
