"""What a call is made of: `Options`, which are no arrays, and `Operands`, which are."""

from __future__ import annotations

from typing import Any, NamedTuple

from xent import _check
from xent.adapter import Array


class Options(NamedTuple):
    """The options of all losses; a loss leaves those that it does not have as they are. Hashable once checked, so that
    a compiler may specialise on it."""

    axis: int = -1
    ignore_index: int | None = None
    reduce: str = "mean"
    label_smoothing: float = 0.0
    z_loss: float = 0.0
    invalid: str = "auto"
    stats: bool = False
    softcap: float | None = None
    chunk_rows: int | None = None
    logit_scale: float | None = None

    @property
    def cap_and_scale(self) -> tuple[float | None, ...]:
        """softcap and logit_scale, where one of them is given."""
        return () if self.softcap is self.logit_scale is None else (self.softcap, self.logit_scale)

    @property
    def takes_lse(self) -> bool:
        """Whether each row's log-sum-exp itself is needed, beside its loss."""
        return bool(self.z_loss or self.stats)

    @property
    def untouched(self) -> bool:
        """Whether all but axis and ignore_index are as they are by default, and all of the same types: then there is
        nothing to check."""
        return tuple(map(type, self)) in TYPES and self[2:] == DEFAULT[2:]

    def checked(self, denom: Any) -> Options:
        """With numbers of Python's, where they were NumPy's."""
        axis, ignore_index, reduce, label_smoothing, z_loss, invalid, stats, softcap, chunk_rows, logit_scale = self
        _check.reduction(reduce, denom)
        _check.choice("invalid", invalid, _check.INVALID_MODES)
        if stats is not False:
            _check.flag("stats", stats)
        smoothing = _check.number("label_smoothing", label_smoothing, 0, 1)
        z_loss = _check.number("z_loss", z_loss, -_check.LARGEST, _check.LARGEST)
        nothing_else = ignore_index is softcap is chunk_rows is logit_scale is None
        if nothing_else and smoothing is label_smoothing and z_loss is self.z_loss:
            return self
        return Options(
            axis,  # `_rules.class_axis` checks it, which knows the shape
            _check.index("ignore_index", ignore_index),
            reduce,
            smoothing,
            z_loss,
            invalid,
            stats,
            _check.factor("softcap", softcap),
            _check.count("chunk_rows", chunk_rows),
            _check.factor("logit_scale", logit_scale),
        )


DEFAULT = Options()
TYPES = tuple(map(type, DEFAULT)), tuple(map(type, Options(ignore_index=0)))


class Operands(NamedTuple):
    """The arrays of all losses: as the caller gives them, later as the framework's, checked. None: not given."""

    inputs: Array  # the logits; for linear_ce, the hidden states
    labels: Array
    sample_weight: Any = None
    class_weight: Any = None
    denom: Any = None
    pos_weight: Any = None
    weight: Array | None = None
    bias: Array | None = None
