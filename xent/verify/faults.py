"""What is wrong with a batch, a row of a table each. A sentence says what was found, where, and what to do."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import xent
from xent import _rules
from xent.verify.diagnosis import FAULT, Diagnosis, Found, where
from xent.verify.measured import Batch, first, zeros_and_ones

# ---- of form: there is no loss to compute


def swapped_by_dtype(batch: Batch) -> Found | None:
    if not batch.swapped:
        return None
    x, y = batch.logits, batch.labels
    sentence = f"the logits are of {x.dtype} and the labels of {y.dtype}: they are swapped; logits come before labels"
    return Found(sentence, {"logits": x.dtype, "labels": y.dtype})


def one_hot_as_ids(batch: Batch) -> Found | None:
    if not batch.hard or batch.y.shape != batch.x.shape or not zeros_and_ones(batch.y):
        return None
    sums = batch.y.sum(batch.axis)
    advice = "use softmax_ce, or labels.argmax" if (sums == 1).all() else "several are positive: use sigmoid_ce"
    sentence = f"the labels are rows of 0 and 1 of shape {batch.y.shape}, where ids have {batch.without_axis}; {advice}"
    return Found(sentence, {"shape": list(batch.y.shape), "expected": list(batch.without_axis)})


def ids_as_soft_labels(batch: Batch) -> Found | None:
    wrong = not batch.hard or not batch.labels.integral
    if not wrong or batch.y.shape != batch.without_axis or not _whole(batch.y):
        return None
    cast = "" if batch.labels.integral else ", with labels cast to an integer dtype"
    sentence = (
        f"the labels are class ids of {batch.labels.dtype} and shape {batch.y.shape}, where {batch.loss} has "
        f"{_expected(batch)}; use sparse_ce{cast}"
    )
    return Found(sentence, {"dtype": batch.labels.dtype, "shape": list(batch.y.shape)})


def _expected(batch: Batch) -> str:
    return "an integer dtype" if batch.hard else f"labels of the logits' shape {batch.x.shape}"


def ids_of_another_axis(batch: Batch) -> Found | None:
    shape = batch.x.shape
    if not (batch.hard and batch.labels.integral) or batch.y.shape == batch.without_axis:
        return None
    fitting = _rules.class_axes(shape, batch.y.shape)
    if not fitting:
        return None
    sentence = (
        f"the labels' shape {batch.y.shape} fits the logits' {shape} with the classes along axis {fitting[0]}, not "
        f"along {batch.axis}; pass axis={fitting[0]}"
    )
    return Found(sentence, {"axis": batch.axis, "fitting": fitting})


def _whole(array: Any) -> bool:
    return bool(array.size and np.isfinite(array).all() and (array == np.trunc(array)).all())


# ---- of figures


def nothing_counts(batch: Batch) -> Found | None:
    if batch.counts.any():
        return None
    count = int(batch.counts.size)
    left_out = f"are ignore_index={batch.ignore_index}" if batch.weights is None else "are ignored or have weight 0"
    why = f"all {count} labels {left_out}" if count else "there are no rows"
    return Found(f"{why}: the mean is 0, and so are all gradients", {"count": count})


def swapped_by_values(batch: Batch) -> Found | None:
    if not batch.swapped_values:
        return None
    sentence = (
        "the logits are probabilities that add up to 1, and the labels are below 0 in {where}: they are swapped; "
        "logits come before labels"
    )
    return where(batch.negative_labels, "rows", sentence)


def probabilities(batch: Batch) -> Found | None:
    if not batch.are_probabilities or batch.swapped_values:
        return None
    start = "every row of the logits lies in [0, 1] and adds up to 1: they are probabilities already"
    if batch.loss == "sigmoid_ce":
        return Found(f"{start}; pass what came before the softmax or sigmoid", {"classes": batch.classes})
    floor = math.log(1 + (batch.classes - 1) / math.e)
    sentence = f"{start}, and softmax is taken twice: the loss cannot fall below {floor:.4g}"
    some = [tuple(map(int, place)) for place in np.argwhere(batch.valid)[:3]]
    if not some:
        return Found(f"{sentence}; pass logits", {"floor": floor})
    losses = [float(batch.losses[place]) for place in some]
    logs = np.log(np.stack([batch.row(batch.x, place) for place in some]))
    labels = np.stack([batch.y[place] if batch.hard else batch.row(batch.y, place) for place in some])
    instead = [float(loss) for loss in getattr(xent, batch.loss)(logs, labels, reduce="none")]
    shown, better = (", ".join(f"{loss:.8g}" for loss in row) for row in (losses, instead))
    sentence += f" (the first losses are {shown} instead of {better}); pass what came before the softmax"
    return Found(sentence, {"floor": floor, "losses": losses, "instead": instead})


def _minus_100(batch: Batch) -> Any:
    return batch.invalid & (batch.y == -100)


def minus_100(batch: Batch) -> Found | None:
    if not batch.hard or batch.ignore_index is not None:
        return None
    return where(_minus_100(batch), "labels", "{where} are -100, which is no class; pass ignore_index=-100")


def _from_1(batch: Batch) -> bool:
    """Of ids but -100."""
    ids = batch.y[batch.counts & (batch.y != -100)]
    return bool(ids.size) and int(ids.min()) >= 1 and int(ids.max()) == batch.classes


def ids_from_1(batch: Batch) -> Found | None:
    if not batch.hard or not _from_1(batch):
        return None
    sentence = "the ids run from 1 to {classes}, where {classes} classes are 0 to {last}: {where} are too large; "
    sentence += "subtract 1 from all"
    return where(
        batch.counts & (batch.y == batch.classes), "labels", sentence, classes=batch.classes, last=batch.classes - 1
    )


def ids_out_of_range(batch: Batch) -> Found | None:
    if not batch.hard or _from_1(batch):
        return None
    bad = batch.invalid if batch.ignore_index is not None else batch.invalid & ~_minus_100(batch)
    value = int(batch.y[first(bad)]) if bad.any() else 0
    sentence = "{where} are no classes: that one is {value}, where {classes} classes are 0 to {last}; mend the ids"
    return where(bad, "labels", sentence, value=value, classes=batch.classes, last=batch.classes - 1)


def several_positives(batch: Batch) -> Found | None:
    if batch.loss != "softmax_ce":
        return None
    sentence = "{where} have several positives, and softmax_ce wants one distribution a row; use sigmoid_ce"
    return where(batch.multi_hot, "rows", sentence)


def logits_not_finite(batch: Batch) -> Found | None:
    """Of softmax; sigmoid has limits at infinities. A row of nothing but -inf has no softmax either."""
    high = batch.of_logits.high
    odd = np.isnan(high) if batch.loss == "sigmoid_ce" else ~np.isfinite(high)
    return _not_finite("logits", batch, batch.x, batch.counts & odd)


def labels_not_finite(batch: Batch) -> Found | None:
    if batch.hard:
        return None
    odd = ~(np.isfinite(batch.of_labels.low) & np.isfinite(batch.of_labels.high))
    return _not_finite("labels", batch, batch.y, batch.counts & odd)


def _not_finite(argument: str, batch: Batch, array: Any, mask: Any) -> Found | None:
    if not mask.any():
        return None
    row = batch.row(batch.weighed(array), first(mask)).astype(np.float64)
    place = int(np.argmax(np.isnan(row))) if np.isnan(row).any() else int(np.argmax(~np.isfinite(row)))
    sentence = (
        "the {argument} hold NaN or infinity in {where}: it has {value} at class {place}; look at what computes them"
    )
    return where(mask, "rows", sentence, argument=argument, value=str(row[place]), place=place)


def impossible_labels(batch: Batch) -> Found | None:
    if batch.loss == "sigmoid_ce" and batch.mean is not None:
        return None
    sentence = "a label stands on a logit that rules it out in {where}: the loss is inf; mend the mask"
    return where(batch.losses == np.inf, "losses", sentence)


OF_FORM = (
    Diagnosis("swapped", FAULT, swapped_by_dtype),
    Diagnosis("one_hot_as_ids", FAULT, one_hot_as_ids),
    Diagnosis("ids_as_soft_labels", FAULT, ids_as_soft_labels),
    Diagnosis("ids_of_another_axis", FAULT, ids_of_another_axis),
)
OF_FIGURES = (
    Diagnosis("swapped", FAULT, swapped_by_values),
    Diagnosis("probabilities", FAULT, probabilities),
    Diagnosis("nothing_counts", FAULT, nothing_counts),
    Diagnosis("minus_100", FAULT, minus_100),
    Diagnosis("ids_from_1", FAULT, ids_from_1),
    Diagnosis("ids_out_of_range", FAULT, ids_out_of_range),
    Diagnosis("several_positives", FAULT, several_positives),
    Diagnosis("logits_not_finite", FAULT, logits_not_finite),
    Diagnosis("labels_not_finite", FAULT, labels_not_finite),
    Diagnosis("impossible_labels", FAULT, impossible_labels),
)
