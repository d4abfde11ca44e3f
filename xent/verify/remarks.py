"""What is odd about a batch and need not be wrong, a row of a table each."""

from __future__ import annotations

import math

import numpy as np
from xent.verify.diagnosis import REMARK, Diagnosis, Found, where
from xent.verify.measured import Batch, add_up, first

SPREAD = 1000.0  # beyond 104 a float32's exp is 0, and training seldom leads further than 100
OFFSET = 1000.0  # a float32 is rounded to 6e-5 there
FLOAT16_MAX = 65504.0
MANY = 10  # rows, or labels a class, from which on chance alone is no explanation


def log_probabilities(batch: Batch) -> Found | None:
    tolerance = batch.logits.tolerance
    if batch.loss == "sigmoid_ce" or batch.classes < 2 or not batch.valid.any():
        return None
    if not (batch.of_logits.high[batch.valid] <= tolerance).all():
        return None
    if not (np.abs(batch.lse[batch.valid]) <= tolerance).all():
        return None
    return Found("the logits are log-probabilities, which is harmless: log_softmax can be left out", {})


def one_positive(batch: Batch) -> Found | None:
    if batch.loss != "sigmoid_ce" or batch.x.ndim < 2 or batch.classes < 2 or not batch.counts.any():
        return None
    if not (add_up(batch.of_labels, 0) & (batch.of_labels.high == 1))[batch.counts].all():
        return None
    sentence = "every row has exactly one positive: if the classes exclude each other, use softmax_ce"
    return Found(sentence, {"rows": int(batch.counts.size)})


def unseen_classes(batch: Batch) -> Found | None:
    ids = batch.y[batch.valid].astype(np.int64) if batch.hard else np.zeros(0, np.int64)
    if ids.size < MANY * batch.classes:
        return None
    sentence = f"{{where}} are never seen among {ids.size} labels; look whether they should be"
    return where(np.bincount(ids, minlength=batch.classes) == 0, "classes", sentence)


def mostly_ignored(batch: Batch) -> Found | None:
    share = 1 - float(batch.counts.mean()) if batch.counts.size else 0.0
    if not 0.5 < share < 1:
        return None
    weightless = "" if batch.weights is None else " or have weight 0"
    sentence = f"{{share:.0%}} of the labels are ignored{weightless} ({{where}}): few rows are left to learn from"
    return where(~batch.counts, "labels", sentence, share=share)


def extreme_spread(batch: Batch) -> Found | None:
    spread = batch.of_logits.high - batch.of_logits.low
    mask = batch.counts & np.isfinite(spread) & (spread > SPREAD)
    largest = float(spread[mask].max()) if mask.any() else 0.0
    sentence = "the logits of {where} lie up to {largest:.4g} apart: look at their scale, and mask by -inf"
    return where(mask, "rows", sentence, largest=largest)


def extreme_offset(batch: Batch) -> Found | None:
    low, high = batch.of_logits.low, batch.of_logits.high
    mask = batch.counts & (((low > OFFSET) & (high < np.inf)) | ((high < -OFFSET) & (high > -np.inf)))
    sentence = "all logits of {where} lie beyond {limit:g}, where they are rounded coarsely: look for a common offset"
    return where(mask, "rows", sentence, limit=OFFSET)


def near_overflow(batch: Batch) -> Found | None:
    if batch.logits.dtype != "float16":
        return None
    size = np.maximum(np.abs(batch.of_logits.low), np.abs(batch.of_logits.high))
    mask = batch.counts & (size > FLOAT16_MAX / 2) & np.isfinite(size)
    largest = float(size[mask].max()) if mask.any() else 0.0
    sentence = "logits reach {largest:g} in {where}, and float16 ends at {limit:g}: scale them, or use bfloat16"
    return where(mask, "rows", sentence, largest=largest, limit=FLOAT16_MAX)


def labels_that_do_not_add_up(batch: Batch) -> Found | None:
    if batch.loss != "softmax_ce" or batch.multi_hot.any() or batch.swapped_values:
        return None
    mask = batch.odd_sums
    total = float(batch.row(batch.y, first(mask)).sum(dtype=np.float64)) if mask.any() else 1.0
    sentence = "the labels of {where} are no distribution: that one adds up to {total:.6g}; divide rows by their sums"
    return where(mask, "rows", sentence, total=total)


def loss_beside_chance(batch: Batch) -> Found | None:
    if batch.loss == "sigmoid_ce" or batch.classes < 2 or (not batch.hard and batch.odd_sums.any()):
        return None
    losses, chance = batch.finite_losses, math.log(batch.classes)
    if losses.size < MANY or batch.are_probabilities:  # then the loss says little
        return None
    mean, error = float(losses.mean()), float(losses.std()) / math.sqrt(losses.size)
    name, figures = f"ln {batch.classes} = {chance:.4g}", {"mean": mean, "chance": chance}
    shown = f"the unweighted mean loss {mean:.4g}"
    if abs(mean - chance) < 0.01 * chance:
        return Found(f"{shown} is about {name}: as of equal logits, before anything is learned", figures)
    if mean > chance + 3 * error:
        advice = "worse than equal logits: look whether logits and labels belong together"
        return Found(f"{shown} is above {name}, {advice}", figures)
    return None


def own_loss_is_0(batch: Batch) -> Found | None:
    """log_softmax loses what is below the roundoff of 1, and so do the frameworks' losses."""
    if batch.loss == "sigmoid_ce":
        return None
    sentence = (
        "the framework's own loss, by log_softmax, is exactly 0 in {where}; xent's is above 0, and so is its gradient"
    )
    return where((batch.losses > 0) & (1 + batch.losses == 1), "rows", sentence)


def ruled_out(batch: Batch) -> Found | None:
    mask = batch.counts & (batch.of_logits.low == -np.inf) & np.isfinite(batch.of_logits.high)
    return where(mask, "rows", "classes are ruled out by logits of -inf in {where}: look whether that is meant")


REMARKS = (
    Diagnosis("log_probabilities", REMARK, log_probabilities),
    Diagnosis("one_positive", REMARK, one_positive),
    Diagnosis("unseen_classes", REMARK, unseen_classes),
    Diagnosis("mostly_ignored", REMARK, mostly_ignored),
    Diagnosis("extreme_spread", REMARK, extreme_spread),
    Diagnosis("extreme_offset", REMARK, extreme_offset),
    Diagnosis("near_overflow", REMARK, near_overflow),
    Diagnosis("labels_that_do_not_add_up", REMARK, labels_that_do_not_add_up),
    Diagnosis("loss_beside_chance", REMARK, loss_beside_chance),
    Diagnosis("own_loss_is_0", REMARK, own_loss_is_0),
    Diagnosis("ruled_out", REMARK, ruled_out),
)
