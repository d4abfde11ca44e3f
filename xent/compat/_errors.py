"""Errors in the words of the library whose names a call has."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from xent import LabelError


def reworded(words: Mapping[str, str], loss: Callable[..., Any], *args: Any, **options: Any) -> Any:
    """loss(*args, **options), one of xent's losses, with `words` in its errors.

    Args:
        words: from what xent's sentences say, whole words or regular expressions without groups, to what the library's
            users say. Where two fit, the first one counts. "" is for advice that the library has no argument for.
    """
    try:
        return loss(*args, **options)
    except (TypeError, ValueError) as error:
        raise _in_words(words, error) from None


def _in_words(words: Mapping[str, str], error: Exception) -> Exception:
    if type(error) not in (TypeError, ValueError, LabelError):  # a framework's own
        return error
    said = list(words.values())
    either = "|".join(rf"((?<!\w){phrase}(?!\w))" for phrase in words)
    return type(error)(re.sub(either, lambda match: said[(match.lastindex or 0) - 1], str(error)))
