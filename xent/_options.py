"""What a call is made of: `Options`, which are no arrays, and `Operands`, which are."""

from __future__ import annotations

from typing import Any, NamedTuple

from xent import _check
from xent.adapter import Array


class Options(NamedTuple):
    """The options of all losses; a loss leaves those that it does not have as they are. Hashable once checked, so that
    a compiler may specialise on it."""

    axis: int = -1
    reduce: str = "mean"
    label_smoothing: float = 0.0
    z_loss: float = 0.0
    ignore_index: int | None = None
    invalid: str = "auto"
    stats: bool = False
    softcap: float | None = None
    chunk_rows: int | None = None

    def checked(self, denom: Any) -> Options:
        return Options(
            self.axis,  # `_check.class_axis` checks it, which knows the shape
            _check.reduction(self.reduce, denom),
            _check.number("label_smoothing", self.label_smoothing, 0, 1),
            _check.number("z_loss", self.z_loss),
            _check.index("ignore_index", self.ignore_index),
            _check.choice("invalid", self.invalid, _check.INVALID_MODES),
            _check.flag("stats", self.stats),
            _check.above_zero("softcap", self.softcap),
            _check.count("chunk_rows", self.chunk_rows),
        )


class Operands(NamedTuple):
    """The arrays of all losses: as the caller gives them, later as the framework's, checked. None: not given."""

    inputs: Array  # the logits; for linear_ce, the hidden states
    labels: Array
    weights: Any = None
    class_weights: Any = None
    denom: Any = None
    pos_weight: Any = None
    weight: Array | None = None
    bias: Array | None = None
