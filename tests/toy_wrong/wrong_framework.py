"""A third party's adapter that is slightly wrong: its losses are off by one part in ten thousand."""

from dataclasses import replace

import toy_adapter
import toy_framework


class Array(toy_framework.Array):
    pass


def off(lay, x, t, u, ids):
    results, pull = toy_adapter.rows_vjp(lay, x, t, u, ids)
    return (results[0] * 1.0001, *results[1:]), pull


ADAPTER = replace(
    toy_adapter.ADAPTER,
    name="wrong_framework",
    types=(Array,),
    ops=replace(toy_adapter.OPS, asarray=lambda value, _: value if hasattr(value, "_values") else Array(value)),
    rows_vjp=off,
)
