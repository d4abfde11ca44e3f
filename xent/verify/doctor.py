"""`xent doctor`: what is wrong or odd about one batch of logits and labels, in sentences."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from xent import _check
from xent.verify import regimes
from xent.verify.diagnosis import FAULT, REMARK, Diagnosis
from xent.verify.faults import OF_FIGURES, OF_FORM
from xent.verify.measured import Batch
from xent.verify.remarks import REMARKS


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong (a fault) or odd (a remark)."""

    name: str
    severity: str
    sentence: str  # what was found, where, and what to do
    figures: dict[str, Any]


@dataclass(frozen=True)
class Report:
    """What `doctor` found. It is false if there is a fault; remarks leave it true."""

    loss: str  # which loss was looked at
    logits: str  # dtype and shape
    labels: str
    mean: float | None  # of the losses that are finite, weighted; None where there are none
    findings: tuple[Finding, ...]

    @property
    def faults(self) -> tuple[Finding, ...]:
        return tuple(finding for finding in self.findings if finding.severity == FAULT)

    @property
    def remarks(self) -> tuple[Finding, ...]:
        return tuple(finding for finding in self.findings if finding.severity == REMARK)

    def __bool__(self) -> bool:
        return not self.faults

    def to_dict(self) -> dict[str, Any]:
        return {"healthy": bool(self), **asdict(self), "findings": [asdict(finding) for finding in self.findings]}

    def summary(self) -> str:
        mean = "no finite loss" if self.mean is None else f"mean loss {self.mean:.6g}"
        return f"{self.loss}, logits {self.logits}, labels {self.labels}: {mean}"

    def verdict(self) -> str:
        if not self.findings:
            return "nothing found"
        return f"{_number(self.faults, FAULT)}, {_number(self.remarks, REMARK)}"

    def __repr__(self) -> str:
        lines = [f"{finding.severity}: {finding.sentence}" for finding in self.findings]
        return "\n".join([self.summary(), *lines, self.verdict()])


def _number(findings: tuple[Finding, ...], severity: str) -> str:
    return f"{len(findings)} {severity}{'' if len(findings) == 1 else 's'}"


def doctor(
    logits: Any,
    labels: Any,
    *,
    axis: int = -1,
    ignore_index: int | None = None,
    sample_weight: Any = None,
    loss: str | None = None,
) -> Report:
    """Looks at one batch and says what is wrong or odd about it: probabilities passed as logits, ids from 1 to C, NaN.

    Args:
        logits: as for the losses, of NumPy, PyTorch, TensorFlow or JAX. They are read, never changed.
        labels: class ids, or labels of the logits' shape.
        axis: where the classes are.
        ignore_index: a class id that leaves an example out.
        sample_weight: as for the losses; examples of weight 0 are left out, too, and the report's mean is weighted.
        loss: "sparse_ce", "softmax_ce" or "sigmoid_ce", which the batch is for; if not given, "sparse_ce" for labels of
            an integer dtype, and "softmax_ce" for others.

    Returns:
        A `Report`: its `findings` have a name, a severity ("fault" or "remark"), a sentence and figures. It is false
        where there is a fault.

    Raises:
        TypeError: what is no array, a dtype that makes no sense, arrays of two frameworks.
        ValueError: shapes that do not fit, an unknown loss, arrays without values, as inside `jit`.

    Example:
        >>> import numpy as np, xent
        >>> probabilities = np.array([[0.2, 0.1, 0.7], [0.5, 0.2, 0.3]])
        >>> report = xent.doctor(probabilities, np.array([2, 0]))
        >>> bool(report), [finding.name for finding in report.findings]
        (False, ['probabilities'])
    """
    if loss is not None:
        _check.choice("loss", loss, regimes.LOSSES)
    batch = Batch(logits, labels, loss, axis, ignore_index, sample_weight)
    with np.errstate(all="ignore"):
        findings = _found(OF_FORM, batch)
        mean = None
        if not findings:  # otherwise there is no loss
            mean = batch.mean
            findings = _found(OF_FIGURES + REMARKS, batch)
    return Report(batch.loss, str(batch.logits), str(batch.labels), mean, findings)


def _found(table: tuple[Diagnosis, ...], batch: Batch) -> tuple[Finding, ...]:
    answers = ((diagnosis, diagnosis.look(batch)) for diagnosis in table)
    return tuple(Finding(d.name, d.severity, a.sentence, a.figures) for d, a in answers if a is not None)
