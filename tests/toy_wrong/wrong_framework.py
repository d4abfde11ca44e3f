"""A third party's adapter that is slightly wrong: its losses are off by one part in ten thousand."""

from dataclasses import replace

import toy_adapter
import toy_framework


class Array(toy_framework.Array):
    pass


def off(*args):
    results, dx = toy_adapter.ADAPTER.rows_both(*args)
    return (results[0] * 1.0001, *results[1:]), dx


ADAPTER = replace(
    toy_adapter.ADAPTER,
    name="wrong_framework",
    types=(Array,),
    ops=replace(toy_adapter.OPS, asarray=lambda value, _: value if hasattr(value, "_values") else Array(value)),
    rows_both=off,
)
