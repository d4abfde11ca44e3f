"""Errors in the words of the library whose names a call has."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from xent import LabelError


def reworded(words: Mapping[str, str], function: Callable[..., Any], *args: Any, **options: Any) -> Any:
    """function(*args, **options), a loss or a rule of xent's, with `words` in its errors.

    Args:
        words: those of `in_words`.
    """
    try:
        return function(*args, **options)
    except (TypeError, ValueError) as error:
        if type(error) not in (TypeError, ValueError, LabelError):  # a framework's own
            raise
        raise type(error)(in_words(words, str(error))) from None


def in_words(words: Mapping[str, str], sentence: str) -> str:
    """A sentence of xent's in other words.

    Args:
        words: from what xent's sentences say to what the library's users say: whole words, or advice that begins with
            ";", as regular expressions without groups. Where two fit, the first one counts. "" leaves advice out.
    """
    said, before = list(words.values()), r"(?<!\w)"
    either = "|".join(rf"({'' if phrase[0] == ';' else before}{phrase}(?!\w))" for phrase in words)
    return re.sub(either, lambda match: said[(match.lastindex or 0) - 1], sentence)
