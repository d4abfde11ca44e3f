"""Errors in TensorFlow's words, also those of a graph that runs after the call."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from xent.backends.tensorflow.shapes import WORDING
from xent.compat import _errors


def reworded(words: Mapping[str, str], function: Callable[..., Any], *args: Any, **options: Any) -> Any:
    """As `xent.compat._errors.reworded`, and in the assertions that the call puts into a graph."""
    token = WORDING.set(partial(_errors.in_words, words))
    try:
        return _errors.reworded(words, function, *args, **options)
    finally:
        WORDING.reset(token)
