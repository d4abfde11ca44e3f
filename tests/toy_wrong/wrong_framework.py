"""A third party's adapter that is slightly wrong: its losses are off by one part in ten thousand."""

from dataclasses import replace

import toy_adapter
import toy_framework


class Array(toy_framework.Array):
    pass


SOFTMAX = toy_adapter.ADAPTER.softmax


def off(*args):
    results, dx = SOFTMAX.rows_value_and_grad(*args)
    return results._replace(nll=results.nll * 1.0001), dx


def mean_off(*args):
    value, dx = SOFTMAX.mean_value_and_grad(*args)
    return value * 1.0001, dx


ADAPTER = replace(
    toy_adapter.ADAPTER,
    name="wrong_framework",
    types=(Array,),
    ops=replace(
        toy_adapter.OPS,
        asarray=lambda value, _: value if hasattr(value, "_values") else Array(value),
        astype=lambda x, dtype: Array(x._values.astype(dtype)),
    ),
    softmax=replace(SOFTMAX, rows_value_and_grad=off, mean_value_and_grad=mean_off),
)
