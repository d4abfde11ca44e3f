"""Rows whose classes are cut into shards, put together by what each shard hands out: in NumPy, against the truth."""

import re
from pathlib import Path

import numpy as np
import pytest
from entropy_bound import assert_accurate
from xent import _reduce, formulas, oracle
from xent.adapter import ABSENT, INVALID, Layout
from xent.backends.numpy import ADAPTER
from xent.formulas import sharding
from xent.verify import regimes
from xent.verify.tolerance import errors

OPS, CLASSES, SMOOTHING = ADAPTER.ops, 10, 0.1
# Whole; halves; empty shards in front and at the end; one class; several empty ones in the middle; seven shards; single
# classes beside all others.
CUTS = ([], [5], [0], [10], [1], [4, 4, 4, 7], [0, 0, 9], [1, 2, 3, 4, 5, 6], [0, 3, 3, 9, 10, 10])


def in_shards(x, labels, cuts, u=None, ids=None, slopes=(1.0, None, None), stats=False):
    """nll, lse and smooth, and the derivative of a nll + b lse + c smooth for slopes of (a, b, c); or, with `stats`,
    entropy and argmax."""
    hard = labels.ndim == 1
    layout, ids = Layout(1, hard, ids is not None, True, stats), labels if hard and ids is None else ids
    places = [slice(*k) for k in zip([0, *cuts], [*cuts, x.shape[1]], strict=True)]
    handed_out = []

    def gather(_):
        """Every shard's, in the place of a collective that is called by all of them."""
        return tuple(map(np.stack, zip(*([k for k in own if k is not None] for own in handed_out), strict=True)))

    def shard(index):
        place = places[index]
        is_own = np.arange(len(places)) == index
        return sharding.Shard(place.start, place.stop - place.start, x.shape[1], is_own, gather, lambda k: k[place])

    def own(index):
        place = places[index]
        return x[:, place], None if hard else labels[:, place], None if u is None else u[place]

    for index in range(len(places)):
        known = ids if hard else None
        handed_out.append(sharding.statistics(OPS, ADAPTER.softmax.rows, layout, shard(index), *own(index), known))
    found, dx = [], np.empty_like(x)
    for index, place in enumerate(places):
        this, (x_k, t_k, u_k) = shard(index), own(index)
        row = sharding.combine(OPS, this, handed_out[index])
        results = sharding.results(OPS, layout, row, ids)
        up = [None if k is None else k * np.ones(len(x), x.dtype) for k in slopes]
        up = sharding.coefficients(OPS, layout, row, this.holds(ids) if hard else None, *up)
        found.append((_reduce.entropy(OPS, results)[:, 0], results.argmax[:, 0]) if stats else results[:3])
        if this.length:
            local = this.own_ids(OPS, ids) if hard else ids
            parts = formulas.pieces(OPS, layout, x_k, local, results.m, results.s)
            dx[:, place] = formulas.pull(OPS, layout, parts, x_k, t_k, u_k, local, up)
    for other in found[1:]:
        np.testing.assert_equal(other, found[0])  # every shard knows the same
    return found[0] if stats else (*found[0], dx)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("loss", ["sparse_ce", "softmax_ce"])
@pytest.mark.parametrize("classes", [CLASSES, 1000])
def test_loss_and_gradient_are_as_accurate_as_of_whole_rows(loss, dtype, classes):
    """Leads to 80, offsets to 1e8, -inf, ties: also across shards."""
    batch = regimes.batch(loss, dtype, classes)
    labels = batch.labels if loss == "sparse_ce" else batch.labels.astype(dtype)
    truth = batch.truth()
    with np.errstate(invalid="ignore"):
        for cuts in CUTS:
            nll, _, _, dx = in_shards(batch.logits.astype(dtype), labels, cuts)
            off = errors(batch, truth, nll, dx)
            assert off.loss_share.max() <= 1, (cuts, batch.regimes[int(off.loss_share.argmax())])
            assert off.grad_share.max() <= 1, (cuts, batch.regimes[int(off.grad_share.argmax())])


@pytest.mark.parametrize("loss", ["sparse_ce", "softmax_ce"])
def test_smoothing_and_lse(loss):
    """Weights of 0 beside infinite gaps, and z_loss."""
    batch = regimes.batch(loss, "float64", CLASSES)
    x, labels = batch.logits, batch.labels
    rows = np.array(batch.regimes) != "impossible"
    x, labels = x[rows], labels[rows]
    u, z_loss = np.full(CLASSES, 1 / CLASSES), 0.01
    want = getattr(oracle, loss)(x, labels, reduce="none", label_smoothing=SMOOTHING, z_loss=z_loss)
    for cuts in CUTS:
        nll, lse, smooth, _ = in_shards(x, labels, cuts, u)
        np.testing.assert_allclose((1 - SMOOTHING) * nll + SMOOTHING * smooth + z_loss * lse**2, want.loss, rtol=1e-13)
        for row in range(len(x)):
            one = slice(row, row + 1)
            *_, dx = in_shards(x[one], labels[one], cuts, u, slopes=(1 - SMOOTHING, 2 * z_loss * lse[one], SMOOTHING))
            size = 1 + 2 * z_loss * abs(lse[row])
            np.testing.assert_allclose(dx, want.logits[one], rtol=1e-12, atol=1e-14 * size)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("classes", [CLASSES, 1000])
def test_entropy_and_argmax(dtype, classes):
    """As accurate as of whole rows, and the first of equal classes, whichever shard has it."""
    batch = regimes.batch("sparse_ce", dtype, classes)
    x = batch.logits.astype(dtype)
    truth, known = oracle.entropy(batch.logits), ~np.isnan(batch.logits.max(1)) & (abs(batch.logits.max(1)) < np.inf)
    for cuts in CUTS:
        with np.errstate(invalid="ignore"):
            h, argmax = in_shards(x, batch.labels, cuts, stats=True)
        assert_accurate(batch.logits, truth, np.float64(h), truth.logits, dtype, cuts)
        np.testing.assert_array_equal(argmax[known], batch.logits.argmax(1)[known])


def test_argmax_of_more_classes_than_float32_counts():
    x, start = np.array([[0.0, 2.0, 1.0], [3.0, 0.0, 3.0]], "f"), 2**26 + 1
    one = sharding.Shard(start, 3, start + 3, np.array([True]), lambda k: tuple(i[None] for i in k), lambda k: k)
    layout, ids = Layout(1, True, True, False, True), np.array([start, start])
    own = sharding.statistics(OPS, ADAPTER.softmax.rows, layout, one, x, None, None, ids)
    assert sharding.combine(OPS, one, own).argmax.ravel().tolist() == [start + 1, start]


def test_impossible_classes_without_a_smoothing_weight():
    x = np.array([[1.0, -np.inf, 2.0, -np.inf]])
    for cuts in ([1], [2], [3], [1, 2, 3]):
        *_, smooth, dx = in_shards(x, np.array([2]), cuts, np.array([0.5, 0.0, 0.5, 0.0]))
        np.testing.assert_allclose(smooth, [np.logaddexp(1, 2) - 1.5], rtol=1e-14)
        np.testing.assert_equal(dx[:, 1::2], 0)


def test_ties_across_shards():
    """Two of four equal classes lead by 80: the other one of the two is all that s has."""
    x = np.array([[80.0, 0.0, 80.0, 0.0]])
    for cuts in ([1], [2], [3], [1, 2, 3], [0, 2, 2]):
        nll, lse, _, dx = in_shards(x, np.array([2]), cuts)
        np.testing.assert_allclose((nll, lse), ([np.log(2)], [80 + np.log(2)]), rtol=1e-15)
        assert in_shards(x, np.array([2]), cuts, stats=True) == (pytest.approx([np.log(2)], rel=1e-15), [0])
        np.testing.assert_allclose(dx[:, ::2], [[0.5, -0.5]], rtol=1e-15)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_one_shard_lacks_is_nan_in_all_of_them(bad):
    x = np.array([[1.0, 2.0, 3.0, bad], [-np.inf] * 4])
    with np.errstate(invalid="ignore"):
        for cuts in ([1], [2], [1, 2, 3], [4]):
            for k in in_shards(x, np.array([0, 1]), cuts):
                assert k is None or np.isnan(k).all()


def test_masked_rows():
    """Absent: exactly 0, whatever they hold. Invalid ids: NaN in every shard."""
    x = np.array([[np.nan, 1, 2], [1, 2, 3], [1, 2, 3], [-np.inf] * 3])
    ids = np.array([ABSENT, INVALID, 1, ABSENT])
    with np.errstate(invalid="ignore"):
        for cuts in ([1], [2], [1, 2], [0, 3]):
            nll, lse, _, dx = in_shards(x, ids, cuts, ids=ids)
            np.testing.assert_equal(np.isnan(nll), [False, True, False, False])
            assert not nll[[0, 3]].any()
            assert not lse[[0, 3]].any()
            assert not dx[[0, 3]].any()
            assert np.isnan(dx[1]).all()
            assert dx[2].all()


def test_arithmetic_of_the_page():
    """docs/sharding.md works its formulas out for 8,192 rows and a million classes."""
    page = (Path(__file__).parents[1] / "docs" / "sharding.md").read_text(encoding="utf-8")
    names = {}
    exec(re.findall(r"```python\n(.*?)```", page, re.DOTALL)[-1], names)
    rows, classes, a_row = 8192, 10**6, names["handed_out"]()
    for ranks in (2, 8, 1024):
        moved = names["sent"](rows, ranks, a_row), names["sent_by_reductions"](rows, ranks, a_row)
        numbers = ranks, *moved, names["held"](rows), 4 * rows * classes // ranks
        assert f"| {' | '.join(f'{k:,}' for k in numbers)} |" in page
    assert f"{ranks * rows * a_row:,} bytes" in page
    assert f"{names['sent_backward'](rows, 4096, ranks):,}\n" in page
