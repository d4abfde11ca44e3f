"""What the diagnoses of `xent doctor` are made of: a name, how bad it is, and a function that looks for it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from xent.verify.measured import Batch, first

FAULT, REMARK = "fault", "remark"


class Found(NamedTuple):
    sentence: str  # what was found, where, and what to do
    figures: dict[str, Any]


class Diagnosis(NamedTuple):
    name: str
    severity: str
    look: Callable[[Batch], Found | None]


def where(mask: Any, what: str, sentence: str, **figures: Any) -> Found | None:
    """The sentence, if the mask is true anywhere; {where} in it says how many of `what`, and the first one's place."""
    count, size = int(np.count_nonzero(mask)), int(np.size(mask))
    if not count:
        return None
    place = first(mask)
    shown = f" (the first: [{', '.join(map(str, place))}])" if place else ""
    said = sentence.format(where=f"{count} of {size} {what}{shown}", **figures)
    return Found(said, {"count": count, "of": size, "first": list(place), **figures})
