"""An array library that knows next to nothing: no indexing, no methods, no NumPy underneath that xent could reach."""

import numpy as np


class Array:
    __array_ufunc__ = None  # NumPy does not mix with it
    __hash__ = None

    def __init__(self, values):
        self._values = values

    def __repr__(self):
        return f"toy({self._values!r})"

    def __bool__(self):
        raise TypeError("a toy array has no truth value")


def _operator(name):
    def apply(self, other):
        if not isinstance(other, Array | int | float):
            raise TypeError(f"toy array {name} {type(other)}")
        return Array(getattr(np.asarray(self._values), name)(other._values if isinstance(other, Array) else other))

    return apply


_ARITHMETIC = ("add", "sub", "mul", "truediv", "radd", "rsub", "rmul", "rtruediv")
_COMPARISONS = ("eq", "ne", "lt", "le", "gt", "ge", "and")
for _name in (*_ARITHMETIC, *_COMPARISONS):
    setattr(Array, f"__{_name}__", _operator(f"__{_name}__"))
Array.__neg__ = lambda self: Array(-self._values)


def array(values):
    return Array(np.array(values))


def values(x):
    return x._values.copy()


def lift(function):
    """A NumPy function as one of toy arrays."""

    def lifted(*args, **kwargs):
        return Array(function(*(a._values if isinstance(a, Array) else a for a in args), **kwargs))

    return lifted
