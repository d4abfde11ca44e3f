"""What is computed of one chunk, or of one chunk of rows: on NumPy's arrays, as for `sharded=`, chunks being shards."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from xent import _execute_sharded, _plan, _reduce, formulas
from xent._execute import SIGMOID, Rows, capped_and_scaled, elements, visible
from xent._options import Operands, Options
from xent._plan import Plan
from xent._plan_sharded import (
    Logits,
    class_weight,
    of_ids,
    of_soft_labels,
    prepared,
    smoothing_weights,
    soft_labels,
)
from xent.adapter import Layout, Slopes
from xent.backends import numpy
from xent.formulas import sharding
from xent.formulas.sharding import Row, Shard, Statistics

Array = Any
ADAPTER = numpy.ADAPTER
OPS = ADAPTER.ops


class Call(NamedTuple):
    """What all chunks know."""

    options: Options
    dtype: str  # what is computed in
    axis: int = 0
    soft: bool = False
    lengths: tuple[int, ...] = ()  # of the chunks of classes

    def shard(self, place: int, every: Statistics | None = None) -> Shard:
        """The chunk of classes at this place. `every`: the statistics of all, stacked."""
        start, length = sum(self.lengths[:place]), self.lengths[place]
        return Shard(
            start,
            length,
            sum(self.lengths),
            np.arange(len(self.lengths)) == place,
            lambda _: tuple(k for k in every or () if k is not None),
            lambda k: k[start : start + length],
        )

    def logits(self, x: Array, shard: Shard) -> Logits:
        return Logits(ADAPTER, x, self.dtype, x.shape, self.axis, shard)

    def summed(self) -> Call:
        """With the sum in the place of what other rows have a part in."""
        return self if self.options.reduce == "none" else self._replace(options=self.options._replace(reduce="sum"))

    def for_gradient(self) -> Call:
        """Where the denominator of all rows is given, if there is one."""
        reduce = self.options.reduce if self.options.reduce in ("none", "sum") else "mean"
        return self._replace(options=self.options._replace(reduce=reduce, stats=False))


class Part(NamedTuple):
    """Of a chunk of rows: their losses or these losses' sum, their part of the denominator, their statistics."""

    value: Array
    divisor: Array
    rank: int  # of the rows
    stats: Any = None


# ---- results


def value(part: Part) -> Array:
    return part.value


def divisor(part: Part) -> Array:
    return part.divisor


def stat(name: str, part: Part) -> Array:
    return getattr(part.stats, name)


def number(of_part: Any, part: Any) -> Array:
    """In float64, with as many axes as the rows have."""
    return np.asarray(of_part(part), float).reshape((1,) * part.rank)


@np.errstate(all="ignore")
def quotient(dtype: str, value: Array, divisor: Array | None) -> Array:
    divisor = None if divisor is None else np.asarray(divisor, float)
    return np.asarray(_reduce.divided(OPS, np.asarray(value), divisor), dtype)


# ---- softmax


@np.errstate(all="ignore")
def statistics(call: Call, x: Array, labels: Array, place: Array, table: Array | None) -> Statistics:
    """Of one chunk; `place`, [1], is that of its classes."""
    logits, options = call.logits(x, call.shard(int(place[0]))), call.options
    given = Operands(x, labels, class_weight=only(table))
    t = extra = ids = None
    if call.soft:
        t, u, _, extra, _ = soft_labels(logits, given, options)
        layout = Layout(call.axis, False, False, options.takes_lse)
    else:
        plan, checked = of_ids(logits, given, options)
        assert plan.layout is not None
        layout, ids = plan.layout, checked.labels
        u = smoothing_weights(logits, options, checked.class_weight)
    if options.cap_and_scale:
        x = formulas.capped_and_scaled(OPS, OPS.astype(x, call.dtype), *options.cap_and_scale)
    elif not ADAPTER.takes_16bit:
        x = OPS.astype(x, call.dtype)
    return sharding.statistics(OPS, ADAPTER.softmax.rows, layout, logits.shard, x, t, u, ids, extra)


def only(table: Any) -> Array | None:
    """A Dask array of one block comes as a list of it."""
    return table[0] if isinstance(table, list) else table


def gathered(every: list[Statistics]) -> Statistics:
    """All chunks' of the same rows, in the order of their classes."""
    return Statistics(*(None if k[0] is None else np.stack(k) for k in zip(*every, strict=True)))


def weighed(call: Call, logits: Logits, row: Row, given: Operands) -> tuple[Plan, Rows]:
    """The rows' weights and denominator, as far as they are known here."""
    if call.soft:
        table = class_weight(logits, given)
        return of_soft_labels(logits, given, call.options, table, row, row.extra, row.targets)
    return prepared(logits, *of_ids(logits, given, call.options))


@np.errstate(all="ignore")
def part(call: Call, every: Statistics, labels: Array, sample_weight: Array, table: Array) -> Part:
    """Of the rows, whose chunks have been heard. The logits are not needed: a column of them stands for all."""
    row = sharding.combine(OPS, call.shard(0, every), every)
    logits = call.logits(row.m, call.shard(0, every))
    given = Operands(row.m, labels, sample_weight, only(table))
    _, rows = weighed(call, logits, row, given)
    divisor = np.asarray(0.0 if rows.divisor is None else rows.divisor, float)
    plan, rows = weighed(call.summed(), logits, row, given)
    results = sharding.results(OPS, rows.layout, row, rows.ids)
    stats = _execute_sharded.unmarked(OPS, rows, results, row) if call.options.stats else None
    found = _execute_sharded.loss(logits.shard, plan, rows, results, stats)
    value, stats = found if call.options.stats else (found, None)
    return Part(value, divisor, results.nll.ndim, stats)


@np.errstate(all="ignore")
def gradient(
    call: Call,
    x: Array,
    labels: Array,
    place: Array,
    every: Statistics,
    sample_weight: Array,
    table: Array,
    denom: Array | None,
) -> Array:
    """Of one chunk, whose rows' chunks have been heard; `denom` is the denominator of all rows."""
    shard = call.shard(int(place[0]), every)
    if not shard.length:
        return np.zeros_like(x)
    row, logits = sharding.combine(OPS, shard, every), call.logits(x, shard)
    given = Operands(x, labels, sample_weight, only(table), denom)
    t = None
    if call.soft:
        t, u, *_ = soft_labels(logits, given, call.options)
    else:
        u = smoothing_weights(logits, call.options, class_weight(logits, given))
    plan, rows = weighed(call, logits, row, given)
    results = sharding.results(OPS, rows.layout, row, rows.ids)
    ones = np.ones_like(results.nll)
    divisor = _reduce.inverse(OPS, rows.divisor, call.dtype)
    slopes = Slopes(*(None if k is None else k * ones for k in rows.scale.slopes(divisor)))
    held, ids = (None, rows.ids) if call.soft else (shard.holds(rows.ids), shard.own_ids(OPS, rows.ids))
    up = sharding.coefficients(OPS, rows.layout, row, held, *slopes.coefficients(results.lse))
    if not call.options.cap_and_scale:
        dx = pulled(call, rows.layout, x, t, u, ids, results, up)
    else:
        seen = visible(plan, rows._replace(x=x))
        capped = capped_and_scaled(plan, seen).x
        dx = pulled(call, rows.layout, capped, t, u, ids, results, up)
        dx = dx * formulas.slope(OPS, seen.x, *call.options.cap_and_scale)
    return dx.astype(x.dtype, copy=False)


def pulled(call: Call, layout: Layout, x: Array, t: Any, u: Any, ids: Any, results: Any, up: Any) -> Array:
    if numpy.NATIVE:
        return numpy.KERNELS.rows_backward(layout, x, t, u, ids, (results.m, results.s), up, (True, False))[0]
    x = x.astype(call.dtype, copy=False)
    parts = formulas.pieces(OPS, layout, x, ids, results.m, results.s)
    return formulas.pull(OPS, layout, parts, x, t, u, ids, up)


# ---- sigmoid


@np.errstate(all="ignore")
def sigmoid_part(call: Call, x: Array, labels: Array, sample_weight: Array, pos_weight: Array) -> Part:
    given = Operands(x, labels, sample_weight, pos_weight=pos_weight)
    divisor = elements(*_plan.sigmoid(ADAPTER, given, call.options)).divisor
    plan, checked = _plan.sigmoid(ADAPTER, given, call.summed().options)
    return Part(SIGMOID.value(plan, *checked), np.asarray(0.0 if divisor is None else divisor, float), x.ndim)


@np.errstate(all="ignore")
def sigmoid_gradient(
    call: Call, x: Array, labels: Array, sample_weight: Array, pos_weight: Array, denom: Array | None
) -> Array:
    given = Operands(x, labels, sample_weight, None, denom, pos_weight)
    plan, checked = _plan.sigmoid(ADAPTER, given, call.options)
    assert SIGMOID.value_and_grad is not None
    return SIGMOID.value_and_grad(plan, *checked)[1]
