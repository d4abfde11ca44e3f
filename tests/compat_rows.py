"""The tables of what differs in the docstrings of `xent.compat`: each row is a call, and what both sides make of it."""

import inspect
import re
from pathlib import Path

import numpy as np

PAGES = Path(__file__).parents[1] / "docs" / "migrating"


def rows(module):
    """(call, what the library makes of it, what xent makes of it), of the table in a module's docstring."""
    found = re.findall(r"^\| `(.*)` \| (.*?) \| (.*?) \|$", module.__doc__, re.MULTILINE)
    assert found, module.__name__
    return found


def outcome(call, names):
    """What a call comes to, as the tables have it: the numbers in order, a dtype's name or an error's."""
    try:
        result = eval(call, {"nan": np.nan, "inf": np.inf, **names})
    except Exception as error:  # which one is what is asked
        return type(error).__name__
    if hasattr(result, "as_numpy_dtype") or isinstance(result, np.dtype):
        return result.name
    if isinstance(result, str):
        return result
    return ", ".join(f"{number:.4g}" for number in np.asarray(result, np.float64).ravel() + 0.0)  # no -0


def subjects(module):
    """The first column of a table whose rows are not calls."""
    _, _, *found = re.findall(r"^\| (.*?) \|", module.__doc__, re.MULTILINE)
    return found


def on_its_page(module, page):
    """Whether the page has the table word by word."""
    return module.__doc__[module.__doc__.index("| subject") :] in (PAGES / page).read_text(encoding="utf-8")


def agree(theirs, xents, tolerance, numbers):
    """The same arrays or the same kind of error; numbers(array) gives NumPy's."""
    if isinstance(theirs, type) or isinstance(xents, type):
        return theirs is xents
    return all(
        a.dtype == b.dtype
        and a.shape == b.shape
        and np.allclose(numbers(a), numbers(b), tolerance, tolerance, equal_nan=True)
        for a, b in zip(theirs, xents, strict=True)
    )


def undocumented(page, functions):
    """The parameters that no table of a page names."""
    tables = re.findall(r"^\|.*\|$", (PAGES / page).read_text(encoding="utf-8"), re.MULTILINE)
    names = {name for function in functions for name in inspect.signature(function).parameters}
    return sorted(name for name in names if not re.search(rf"\b{name}\b", "\n".join(tables)))
