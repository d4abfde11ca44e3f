"""Dask: logits in chunks of rows and of classes, of NumPy's arrays. Losses and derivatives are lazy, as they are.

A Dask array says what will be computed, not with what; so the contract's kernels are NumPy's, on each chunk, and what a
loss is of all chunks is said by `Adapter.of_parts`, as for tensors that are spread over a mesh.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NoReturn

import dask.array
from xent import _check
from xent.backends import numpy

from .graph import of_chunks


def refused(value: Any, like: Any) -> NoReturn:
    """By whatever would have to read a Dask array."""
    raise _check.no_dask("labels" if value is like else "logits")


ADAPTER = replace(
    numpy.ADAPTER,
    name="dask",
    types=(dask.array.Array,),
    ops=replace(numpy.OPS, asarray=refused),
    linear=None,
    shortcut=None,
    of_parts=of_chunks,
)
