"""One outcome beside the truth: how far off it is, where, and the row that shows it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from xent.verify import linear, oracle, tolerance
from xent.verify.precision import PRECISION
from xent.verify.regimes import Batch
from xent.verify.task import Outcome

Array = Any
Truth = oracle.Truth | linear.Truth
SMALL = 10  # classes that are printed


@dataclass(frozen=True)
class Verdict:
    """The worst relative errors of an outcome, and each row's share of what is allowed in loss and gradient."""

    value: float
    value_regime: str
    gradient: float  # NaN where there is none to judge
    gradient_regime: str
    loss_shares: Array
    grad_shares: Array
    of_rows: tolerance.Errors | None = None  # None: nothing could be judged
    mean_share: float = 0.0  # of the mean of the first rows

    @property
    def shares(self) -> Array:
        return np.maximum(self.loss_shares, self.grad_shares)

    @property
    def share(self) -> float:
        return max(float(self.shares.max()), self.mean_share)

    def worst_regime(self, batch: Batch) -> str:
        return batch.regimes[0 if self.mean_share >= self.share else int(self.shares.argmax())]

    def worst_row(self, batch: Batch, regime: str) -> int | None:
        """Of those of this regime that are beyond what is allowed."""
        among = np.where([name == regime for name in batch.regimes], self.shares, 0.0)
        if self.mean_share > 1 and regime == batch.regimes[0]:
            among[0] = max(among[0], self.mean_share)
        return int(among.argmax()) if among.max() > 1 else None


def truth_of(batch: Batch) -> Truth:
    return batch.truth() if batch.hidden is None else linear.truth(batch)


def errors(batch: Batch, truth: Truth, loss: Array, grad: Array) -> tolerance.Errors:
    if isinstance(truth, linear.Truth):
        return linear.gradient_errors(batch, truth, loss, grad)
    return tolerance.errors(batch, truth, loss, grad)


def judge(batch: Batch, truth: Truth, outcome: Outcome) -> Verdict:
    if outcome.problem:
        return _nothing("")
    if batch.loss == "sigmoid_ce" and outcome.together is not None:  # means over the classes
        truth = truth._replace(loss=truth.loss.mean(axis=1, keepdims=True))
    grad = truth.logits if outcome.grad is None else outcome.grad
    if outcome.loss.shape != truth.loss.shape or grad.shape != truth.logits.shape:
        return _nothing("shape")
    e = errors(batch, truth, outcome.loss, grad)
    value, gradient = int(e.loss.argmax()), int(e.grad.argmax())
    e = e if outcome.grad is not None else e._replace(grad=np.full_like(e.grad, math.nan))
    return Verdict(
        float(e.loss[value]),
        batch.regimes[value],
        math.nan if outcome.grad is None else float(e.grad[gradient]),
        batch.regimes[gradient],
        e.loss_share,
        e.grad_share,
        e,
        _mean_share(batch, outcome),
    )


def _nothing(regime: str) -> Verdict:
    beyond = np.array([math.inf])
    return Verdict(math.inf, regime, math.inf, regime, beyond, beyond)


def in_regime(batch: Batch, verdict: Verdict, regime: str) -> tuple[float, float, float]:
    """The worst relative errors in value and gradient of this regime's rows, and share of what is allowed."""
    if verdict.of_rows is None:
        return math.inf, math.inf, math.inf
    among = np.array([name == regime for name in batch.regimes])
    share = float(verdict.shares[among].max())
    mean = verdict.mean_share if regime == batch.regimes[0] else 0.0
    value, gradient = (float(each[among].max()) for each in (verdict.of_rows.loss, verdict.of_rows.grad))
    return value, gradient, max(share, mean)


def _true_mean(batch: Batch, rows: int) -> float:
    found: Truth = getattr(oracle, batch.loss)(batch.logits[:rows], batch.labels[:rows], reduce="mean", **batch.options)
    return float(found.loss)


def _mean_share(batch: Batch, outcome: Outcome) -> float:
    """The dtype's bar, or where the mean is small the eight roundoffs of a row without a lead."""
    if outcome.together is None:
        return 0.0
    rows, mean = outcome.together
    want, precision = _true_mean(batch, rows), PRECISION[batch.dtype]
    if mean == want or abs(mean - want) <= precision.tiny:
        return 0.0
    allowed = (precision.bar if want >= 1e-3 else 8 * precision.unit) * want
    share = abs(mean - want) / allowed if allowed else math.inf
    return math.inf if math.isnan(share) else share


# ---- the row that shows it


def example(batch: Batch, truth: Truth, outcome: Outcome, verdict: Verdict, row: int) -> str:
    """Its logits and label, as they can be typed in where they are few, and what came and was expected."""
    together = outcome.together[0] if outcome.together and row < outcome.together[0] else 0
    rows = slice(0, together) if together else slice(row, row + 1)
    if batch.logits.shape[1] <= SMALL:
        given = (
            f"logits {_numbers(batch.logits[rows], batch.dtype)}, labels {_numbers(batch.labels[rows], batch.dtype)}"
        )
    else:
        which = f"rows {rows.start} to {rows.stop - 1}" if together else f"row {row}"
        given = f"{which} of {batch.made_by or 'your arrays'}"
    return f"{given}: {_difference(batch, truth, outcome, verdict, row, together)}"


def _difference(batch: Batch, truth: Truth, outcome: Outcome, verdict: Verdict, row: int, together: int) -> str:
    if together and verdict.mean_share >= verdict.shares[row]:
        return f"their mean is {_number(outcome.together[1])}, expected {_number(_true_mean(batch, together))}"  # type: ignore[index]
    if verdict.loss_shares[row] >= verdict.grad_shares[row]:
        got, want, what = outcome.loss[row], truth.loss[row], "loss"
        if np.size(got) < np.size(want):
            got, want = got.reshape(1), np.atleast_1d(want.mean())
    else:
        got, want, what = outcome.grad[row], truth.logits[row], "gradient"
    got, want = np.atleast_1d(got), np.atleast_1d(want)
    distance = np.abs(got - want)
    entry = int(np.where(np.isnan(distance), np.where(np.isnan(got) & np.isnan(want), 0, np.inf), distance).argmax())
    where = f"[{row if together else 0}, {entry}]" if got.size > 1 else ""
    of_sum = " of their sum" if together and what == "gradient" else ""
    return f"{what}{where}{of_sum} is {_number(got[entry])}, expected {_number(want[entry])}"


def _number(x: float) -> str:
    return f"{float(x) + 0.0:.9g}"  # no -0


def _numbers(x: Array, dtype: str) -> str:
    """The fewest digits that give the same numbers in this dtype."""
    short = np.float64 if dtype == "float64" or x.dtype.kind != "f" else np.float32
    kept = x if x.dtype.kind in "iub" else x.astype(short)
    return str([list(map(str, row)) if np.ndim(row) else str(row) for row in kept]).replace("'", "")
