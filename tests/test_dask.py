"""Dask's arrays, in chunks of rows and of classes: against the same arrays whole, and against the truth."""

import gc
import itertools
import pickle
import re
import weakref

import numpy as np
import pytest
import xent
from xent.verify import regimes
from xent.verify.tolerance import errors

da = pytest.importorskip("dask.array", reason="dask is not installed")
dask = pytest.importorskip("dask")

RNG = np.random.default_rng(0)
ROWS, CLASSES = 11, 8
X = 3 * RNG.normal(size=(ROWS, CLASSES)).astype("f")
Y = np.where(np.arange(ROWS) == 3, -100, RNG.integers(0, CLASSES, ROWS))
T = RNG.dirichlet(np.ones(CLASSES), ROWS)
WEIGHT = RNG.integers(0, 3, ROWS) / 2
CLASS_WEIGHT = np.where(np.arange(CLASSES) == 2, 0, RNG.random(CLASSES))
# Whole; cut both ways; an empty chunk of classes; single rows.
CHUNKS = ((ROWS, CLASSES), (4, 3), (6, (0, 2, 6)), (1, 5))
REDUCTIONS = ("none", "sum", "mean", "mean_nonzero", "mean_all")
OPTIONS = (
    {},
    {"sample_weight": WEIGHT},
    {"class_weight": CLASS_WEIGHT, "z_loss": 0.01},
    {"sample_weight": WEIGHT, "class_weight": CLASS_WEIGHT, "label_smoothing": 0.1},
    {"label_smoothing": 1.0},
    {"sample_weight": WEIGHT, "softcap": 2.0, "logit_scale": 0.5, "label_smoothing": 0.2},
)
OF_SIGMOID = ({}, {"sample_weight": T, "label_smoothing": 0.1}, {"pos_weight": CLASS_WEIGHT})


@pytest.fixture(autouse=True)
def in_this_thread():
    with dask.config.set(scheduler="synchronous"):
        yield


def leaves(result):
    return [leaf for k in result for leaf in leaves(k)] if isinstance(result, tuple) else [result]


def chunked(x, *chunks):
    return da.from_array(x, chunks=chunks[: x.ndim] or "auto")


def same(lazy, whole, rtol):
    """In shape, dtype and value, also before it is computed."""
    lazy, whole = leaves(lazy), leaves(whole)
    assert len(lazy) == len(whole)
    for got, found, want in zip(lazy, dask.compute(*lazy), whole, strict=True):
        assert isinstance(got, da.Array)
        assert got.shape == found.shape == want.shape
        assert got.dtype == found.dtype == want.dtype
        np.testing.assert_allclose(found, want, rtol=rtol, atol=rtol * np.abs(want).max(initial=0))


def both_ways(loss, x, labels, lazy_x, lazy_labels, rtol=2e-6, **options):
    """Loss, statistics and gradient; the gradient in the logits' chunks."""
    call = xent.value_and_grad(loss)
    lazy = call(lazy_x, lazy_labels, **options)
    same(lazy, call(x, labels, **options), rtol)
    assert lazy[1].chunks == lazy_x.chunks
    return lazy


# ---- the same


@pytest.mark.parametrize(
    ("name", "labels"), [("sparse_ce", Y), ("softmax_ce", T), ("sigmoid_ce", T)], ids=["sparse", "softmax", "sigmoid"]
)
def test_the_same_as_whole(name, labels):
    """Every reduction with every cut, options in turn. Labels are cut in another way than the logits."""
    options = itertools.cycle(OF_SIGMOID if name == "sigmoid_ce" else OPTIONS)
    for number, (chunks, reduce) in enumerate(itertools.product(CHUNKS, REDUCTIONS)):
        own = {**next(options), "reduce": reduce}
        if name == "sparse_ce":
            own |= {"ignore_index": -100, "stats": number % 2 == 0}
        if number % 3 == 0:
            own = {key: da.from_array(k, chunks=5) if isinstance(k, np.ndarray) else k for key, k in own.items()}
        whole = {key: k.compute() if isinstance(k, da.Array) else k for key, k in own.items()}
        x, lazy = chunked(X, *chunks), chunked(labels, 7, 2)
        got = xent.value_and_grad(getattr(xent, name))(x, lazy, **own)
        same(got, xent.value_and_grad(getattr(xent, name))(X, labels, **whole), 2e-6)
        assert got[1].chunks == x.chunks


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("loss", ["sparse_ce", "softmax_ce", "sigmoid_ce"])
def test_as_accurate_as_of_whole_rows(loss, dtype):
    """Leads to 80, offsets to 1e8, -inf, ties across chunks."""
    batch = regimes.batch(loss, dtype, 10)
    labels = batch.labels if loss == "sparse_ce" else batch.labels.astype(dtype)
    x = chunked(batch.logits.astype(dtype), 64, 4)
    off = errors(
        batch, batch.truth(), *dask.compute(*xent.value_and_grad(getattr(xent, loss))(x, labels, reduce="none"))
    )
    assert off.loss_share.max() <= 1
    assert off.grad_share.max() <= 1


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_any_rank_and_axis(axis):
    x, y = RNG.normal(size=(4, 3, 5)), RNG.integers(0, 3, np.delete((4, 3, 5), axis))
    weight = RNG.random((1, y.shape[1]))
    both_ways(xent.sparse_ce, x, y, chunked(x, 2, 2, 3), chunked(y, 2, 2), 1e-13, axis=axis, sample_weight=weight)
    t = RNG.random(x.shape)
    both_ways(xent.softmax_ce, x, t, chunked(x, 2, 2, 3), t, 1e-13, axis=axis, sample_weight=weight)


def test_one_row():
    both_ways(xent.sparse_ce, X[0], Y[0], chunked(X[0], 3), Y[0])
    both_ways(xent.sparse_ce, X[0], Y[0], chunked(X[0], 3), Y[0], reduce="none")


@pytest.mark.parametrize("dtype", ["float16", "float64"])
def test_dtypes(dtype):
    x = X.astype(dtype)
    both_ways(
        xent.sparse_ce, x, abs(Y) % 8, chunked(x, 4, 3), chunked(abs(Y) % 8, 4), 1e-3 if dtype == "float16" else 1e-13
    )


def test_formulas_where_there_are_no_kernels(monkeypatch):
    blocks = pytest.importorskip("xent.backends.dask.blocks")
    monkeypatch.setattr(blocks.numpy, "NATIVE", False)
    for softcap in (None, 2.0):
        both_ways(xent.softmax_ce, X, T, chunked(X, 4, 3), T, softcap=softcap, z_loss=0.1)


def test_labels_and_weights_that_are_no_dask_arrays():
    x = chunked(X, 4, 3)
    for y, weight in ((list(abs(Y) % 8), 0.5), (abs(Y) % 8, np.ones(1)), (abs(Y) % 8, WEIGHT[:, None].T[0])):
        both_ways(xent.sparse_ce, X, y, x, y, sample_weight=weight)


@pytest.mark.parametrize("denom", [7.0, np.float32(7), 0])
def test_denom(denom):
    x, y = chunked(X, 4, 3), abs(Y) % 8
    both_ways(xent.sparse_ce, X, y, x, y, denom=denom)
    same(xent.sparse_ce(x, y, denom=da.asarray(denom)), xent.sparse_ce(X, y, denom=denom), 1e-6)


def test_weights_that_cancel_in_a_chunk():
    """Its part of the denominator is 0, which masks nothing."""
    weight = np.resize([1.0, -1.0, 3.0, 1.0], ROWS)
    both_ways(xent.sparse_ce, X, abs(Y) % 8, chunked(X, 2, 3), abs(Y) % 8, sample_weight=weight)


def test_nothing_counts():
    x, y = np.full_like(X, np.nan), np.full(ROWS, -100)
    loss, dx = dask.compute(*xent.value_and_grad(xent.sparse_ce)(chunked(x, 4, 3), y, ignore_index=-100))
    assert loss == 0
    assert not dx.any()
    (loss, _), dx = dask.compute(
        *xent.value_and_grad(xent.sparse_ce)(chunked(x, 4, 3), abs(Y) % 8, denom=0, stats=True)
    )
    assert loss == 0
    assert not dx.any()
    weight = np.where(np.arange(ROWS) % 2, 1.0, 0.0)
    spoiled = np.where(weight[:, None] == 0, np.nan, X)
    for loss, labels in ((xent.sparse_ce, abs(Y) % 8), (xent.softmax_ce, T)):
        both_ways(loss, spoiled, labels, chunked(spoiled, 4, 3), labels, sample_weight=weight, softcap=3.0)


def test_no_rows():
    both_ways(xent.sparse_ce, X[:0], Y[:0], chunked(X[:0], 4, 3), Y[:0])


def test_invalid_ids():
    """No chunk reads the others' ids: they are NaN by default."""
    x, y = chunked(X, 4, 3), np.where(np.arange(ROWS) == 5, CLASSES, abs(Y) % 8)
    lazy = xent.value_and_grad(xent.sparse_ce)(x, y, reduce="none")
    loss, dx = dask.compute(*lazy)
    np.testing.assert_array_equal(np.isnan(loss), y == CLASSES)
    np.testing.assert_array_equal(np.isnan(dx).all(1), y == CLASSES)
    both_ways(xent.sparse_ce, X, y, x, y, invalid="ignore")


# ---- lazy


def fails(block):
    raise AssertionError("computed")


def test_nothing_is_computed_at_the_call():
    x = chunked(X, 4, 3).map_blocks(fails, dtype=X.dtype, meta=X[:0])
    y = chunked(Y, 4).map_blocks(fails, dtype=Y.dtype, meta=Y[:0])
    t = chunked(T, 4, 3).map_blocks(fails, dtype=T.dtype, meta=T[:0])
    weight, table = (chunked(k, 4).map_blocks(fails, dtype=float, meta=k[:0]) for k in (WEIGHT, CLASS_WEIGHT))
    for reduce in REDUCTIONS:
        options = {"reduce": reduce, "sample_weight": weight, "class_weight": table}
        lazy = (
            xent.value_and_grad(xent.sparse_ce)(x, y, stats=True, **options),
            xent.value_and_grad(xent.softmax_ce)(x, t, **options),
            xent.value_and_grad(xent.sigmoid_ce)(x, t, reduce=reduce, pos_weight=table),
        )
        for leaf in leaves(lazy):
            with pytest.raises(AssertionError, match="computed"):
                leaf.compute()


@pytest.mark.parametrize("derive", [False, True])
def test_few_chunks_of_logits_are_held_at_once(derive):
    """Of 8 chunks of classes of each of 4 chunks of rows; a given denominator lets the gradient go row by row."""
    held, most = set(), []

    def make():
        x = RNG.normal(size=(2, 1))
        held.add(id(x))
        weakref.finalize(x, held.discard, id(x))
        most.append(len(held))
        return x

    delayed = dask.delayed(make, pure=False)
    x = da.block([[da.from_delayed(delayed(), (2, 1), float) for _ in range(8)] for _ in range(4)])
    y = np.arange(8)
    gc.collect()
    if derive:
        loss, dx = xent.value_and_grad(xent.sparse_ce)(x, y, denom=8)
        dask.compute(loss, abs(dx).sum())
    else:
        dask.compute(xent.sparse_ce(x, y))
    assert len(most) == 32
    assert max(most) <= (16 if derive else 3)


def test_it_can_be_sent_elsewhere():
    lazy = both_ways(xent.sparse_ce, X, abs(Y) % 8, chunked(X, 4, 3), abs(Y) % 8)
    sent = pickle.loads(pickle.dumps(lazy))
    for got, want in zip(dask.compute(*sent), dask.compute(*lazy), strict=True):
        np.testing.assert_array_equal(got, want)


# ---- errors

LAZY = chunked(X, 4, 3)
ERRORS = {
    "logits: expected 'float16'": lambda: xent.sparse_ce(LAZY.astype(int), Y),
    "labels: expected class ids of an integer": lambda: xent.sparse_ce(LAZY, chunked(X[:, 0])),
    "labels: expected real numbers": lambda: xent.softmax_ce(LAZY, LAZY.astype("c8")),
    "labels: expected shape (11,) (the logits' without axis), got (10,)": lambda: xent.sparse_ce(LAZY, chunked(Y[1:])),
    "sample_weight: expected a scalar, shape (11,)": lambda: xent.sparse_ce(LAZY, Y, sample_weight=chunked(Y[1:])),
    "class_weight: expected shape (8,)": lambda: xent.sparse_ce(LAZY, Y, class_weight=chunked(Y)),
    "denom: it replaces": lambda: xent.sparse_ce(LAZY, Y, reduce="sum", denom=1),
    "axis: expected -2 to 1": lambda: xent.sparse_ce(LAZY, Y, axis=2),
    "invalid: 'raise' has to read all labels, which Dask has only": lambda: xent.sparse_ce(LAZY, Y, invalid="raise"),
    "logits: expected a Dask array of NumPy's arrays": lambda: xent.sparse_ce(LAZY[LAZY[:, 0] > 0], Y),
    "labels: expected a Dask array of NumPy's arrays": lambda: xent.sparse_ce(LAZY, LAZY[LAZY[:, 0] > 0][:, 0]),
    "logits: a MaskedArray's mask would be lost": lambda: xent.sparse_ce(dask.array.ma.masked_equal(LAZY, 0), Y),
    "labels: a dask array beside numpy arrays": lambda: xent.sparse_ce(X, chunked(Y)),
    "hidden: the adapter of dask": lambda: xent.linear_ce(LAZY, X, Y),
    "sharded: the adapter of dask": lambda: xent.sparse_ce(LAZY, Y, sharded="x"),
    "logits: Dask's arrays go to softmax_ce": lambda: xent.log_prob(LAZY, Y),
    "labels: Dask's arrays go to softmax_ce": lambda: xent.next_token(chunked(Y)),
}


@pytest.mark.parametrize("sentence", ERRORS)
def test_errors(sentence):
    with pytest.raises((TypeError, ValueError), match="^" + re.escape(sentence)):
        ERRORS[sentence]()


@pytest.mark.parametrize(
    "call",
    [
        lambda: xent.value_and_grad(xent.entropy)(LAZY),
        lambda: xent.value_and_grad(xent.linear_ce)(LAZY, X, Y),
        lambda: xent.value_and_grad(lambda x: x.sum())(LAZY),
        lambda: xent.total_weight(chunked(Y)),
        lambda: xent.doctor(LAZY, Y),
    ],
)
def test_what_takes_no_dask_arrays_reads_none(call):
    with pytest.raises(TypeError, match=r"Dask's arrays|of dask|dask cannot differentiate"):
        call()
