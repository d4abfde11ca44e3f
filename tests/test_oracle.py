"""The oracle judges every backend, so it is judged itself: by the definitions, in mpmath, which need no care there."""

import functools
import itertools
from typing import NamedTuple

import numpy as np
import pytest
from mpmath import mp, mpf
from xent import oracle

# Derivatives are central differences of the definition, so that none is worked out by hand twice. float64 goes down
# to 1e-323: 400 digits hold such a loss beside a sum of 1, with 60 digits left after a step of 1e-15, whose own error
# is step^2 = 1e-30, relative.
DIGITS, STEP = 400, mpf(10) ** -15
# Stands for an infinite logit: what has a limit reaches it, and what becomes infinite overflows float64.
INFINITE = mpf(10) ** 330
# The longest path rounds 15 times (exp 2, its correction 1, sum 1, division 1, smoothed label 4, class weight 1,
# 1 - p 1, product 1, difference 1, weight 2), by half a unit at most and not all in one direction.
TOLERANCE = 8 * 2.0**-53
TINY = 2.0**-1022  # the smallest normal number; below it digits go missing one by one

rng = np.random.default_rng(0)
ROWS, CLASSES = 3, 4
NOISE = rng.normal(size=(ROWS, CLASSES))
Y = np.array([1, 0, 3])
T = np.array([[0.5, 0.25, 0.25, 0.0], [1.0, 0.0, 0.0, 0.0], [0.1, 0.7, 0.0, 0.4]])  # the last does not add up to 1
Z = np.array([[0.0, 1.0, 0.25, 0.9], [1.0, 0.0, 0.5, 0.125], [0.75, 1.0, 0.0, 1.0]])
W = np.array([0.75, 0.0, 3.0])
K = np.array([0.5, 2.0, 0.0, 1.25])  # class weights; the 0 is no row's only label


def leading(lead):
    x = 0.5 * NOISE
    x[range(ROWS), Y] = -np.inf
    x[range(ROWS), Y] = x.max(axis=1) + lead
    return x


REGIMES = {
    "random": 3 * NOISE,
    "offset": 1e8 + NOISE,  # a common offset must not cost digits
    "offset_down": -1e8 + NOISE,
    "lead_20": leading(20),  # the loss is 1 - p, and p is 1
    "lead_80": leading(80),
    "behind": leading(-80),  # the loss is the gap
    "spread": 1e4 * NOISE,  # almost every probability underflows
    "spread_350": 350 * NOISE,  # and here only just
    "impossible": np.where([True, True, False, True], NOISE, -np.inf),  # a class that no row has for a label
}
SHAPING = {"class_weight": K, "label_smoothing": 0.3, "z_loss": 0.2}
SOFTMAX_OPTIONS = {
    "plain": {},
    "sample_weight": {"sample_weight": W},
    "class_weight": {"class_weight": K},
    "label_smoothing": {"label_smoothing": 0.1},
    "little_smoothing": {"label_smoothing": 1e-6},
    "all_smooth": {"label_smoothing": 1.0},
    "z_loss": {"z_loss": 0.01},
    "everything": {"sample_weight": W, **SHAPING},
}
SIGMOID_OPTIONS = {
    "plain": {},
    "sample_weight": {"sample_weight": np.abs(NOISE).round()},
    "label_smoothing": {"label_smoothing": 0.1},
    "little_smoothing": {"label_smoothing": 1e-6},
    "all_smooth": {"label_smoothing": 1.0},
    "pos_weight": {"pos_weight": K},
    "everything": {"sample_weight": W[:, None], "pos_weight": 2.5, "label_smoothing": 0.3},
}
REDUCTIONS = {
    "sum": {"reduce": "sum"},
    "mean": {"reduce": "mean"},
    "mean_nonzero": {"reduce": "mean_nonzero"},
    "mean_all": {"reduce": "mean_all"},
    "denom": {"denom": 7.0},
    "denom_of_0": {"denom": 0.0},
}
WEIGHTS = {
    "none": None,
    "scalar": 0.3,
    "ones": np.full((1, 1), 0.3),
    "rows": W[:, None],
    "all_zero": np.zeros((ROWS, 1)),
}

LABELS = {"softmax_ce": T, "sparse_ce": Y, "sigmoid_ce": Z}


def marked(number, *case):
    """The definitions take time: what is not in its turn is for --full alone."""
    return pytest.param(*case, id="-".join(case), marks=pytest.mark.full if number else ())


def cases():
    """Each regime with each option: of ids, or of distributions."""
    for name in LABELS:
        every = SIGMOID_OPTIONS if name == "sigmoid_ce" else SOFTMAX_OPTIONS
        for (i, regime), (j, options) in itertools.product(enumerate(REGIMES), enumerate(every)):
            turn = i + j + (name == "sparse_ce")
            yield marked(turn % 2 if name != "sigmoid_ce" else 0, name, regime, options)


def reductions():
    """Any two of a loss, weights and a reduction meet."""
    for places in itertools.product(*map(enumerate, (ROW, WEIGHTS, REDUCTIONS))):
        numbers, case = zip(*places, strict=True)
        yield marked(sum(numbers) % 3, *case)


# A difference quotient moves one logit at a time: the others' exponentials are there already.
exp, log = np.frompyfunc(functools.lru_cache(1000)(mp.exp), 1, 1), np.frompyfunc(mp.log, 1, 1)


@pytest.fixture(autouse=True)
def precision():
    with mp.workdps(DIGITS):
        yield


def exact(x):
    x = np.asarray(x, np.float64)
    return np.array([INFINITE * mpf(np.sign(k)) if np.isinf(k) else mpf(k) for k in x.ravel()], object).reshape(x.shape)


# ---- the definitions


class Row(NamedTuple):
    """Each example's loss and weight, and the terms whose differences the derivatives in logits and labels are."""

    loss: np.ndarray
    weight: np.ndarray
    terms: list
    label_terms: list


def softmax(x, t, class_weight=1.0, label_smoothing=0.0, z_loss=0.0):
    c, e, z = exact(np.broadcast_to(class_weight, CLASSES)), mpf(label_smoothing), mpf(z_loss)
    total = exp(x).sum(-1, keepdims=True)
    lse, p = log(total), exp(x) / total
    nll = lse - x
    smooth, share = ((1 - e) * t + e / CLASSES) * c, t.sum(-1, keepdims=True)
    weight = (t * c).sum(-1, keepdims=True) / share
    common = 0 if e else p * smooth  # in both terms; without it, hard labels leave one term: exact by itself
    return Row(
        (smooth * nll).sum(-1) + (weight * z * lse**2)[..., 0],
        weight[..., 0],
        [p * smooth.sum(-1, keepdims=True) - common, smooth - common, 2 * z * weight * lse * p],
        [(1 - e) * c * nll, c / share * z * lse**2, weight / share * z * lse**2],
    )


def sparse(x, y, **options):
    return softmax(x, exact(np.eye(CLASSES)[y]), **options)


def sigmoid(x, z, pos_weight=1.0, label_smoothing=0.0):
    p, e = exact(np.broadcast_to(pos_weight, x.shape)), mpf(label_smoothing)
    z = (1 - e) * z + e / 2
    down = log(1 + exp(x))
    up = down - x
    return Row(
        p * z * up + (1 - z) * down,
        exact(np.ones(x.shape)),
        [(1 - z) * exp(x) / (1 + exp(x)), p * z / (1 + exp(x))],
        [np.where(p == 1, x, p * up), np.where(p == 1, x, down)],  # p == 1: up - down = -x
    )


ROW = {"softmax_ce": softmax, "sparse_ce": sparse, "sigmoid_ce": sigmoid}


def reduced(row, w, present, reduce, denom=None):
    loss = present * w * row.loss
    if reduce == "none":
        return loss
    total = (present * w * row.weight).sum()
    divisor = {"sum": 1, "mean": total, "mean_nonzero": present.sum(), "mean_all": present.size}[reduce]
    divisor = divisor if denom is None else mpf(denom)
    return loss.sum() / divisor if divisor else mpf(0)


def definition(name, x, labels, *, sample_weight=None, ignored=False, reduce="mean", denom=None, **options):
    """The loss; its derivatives in logits, labels and weights; the size of the terms that these subtract."""
    arguments = [
        exact(x),
        labels if name == "sparse_ce" else exact(labels),
        exact(1.0 if sample_weight is None else sample_weight),
    ]
    row = ROW[name](*arguments[:2], **options)
    present = (arguments[2] * row.weight != 0) & np.logical_not(ignored)  # settled before anything is varied

    def value(x, labels, w):
        return reduced(ROW[name](x, labels, **options), w, present, reduce, denom)

    def derivative(i):
        result = np.empty(arguments[i].shape, object)
        for place in np.ndindex(result.shape):
            ends = [np.sum(value(*moved(arguments, i, place, step))) for step in (STEP, -STEP)]
            result[place] = (ends[0] - ends[1]) / (2 * STEP)
        return result

    labels_too = None if name == "sparse_ce" else derivative(1)
    return oracle.Truth(value(*arguments), derivative(0), labels_too, derivative(2)), row


def moved(arguments, i, place, step):
    arguments = [argument.copy() for argument in arguments]
    arguments[i][place] += step
    return arguments


def assert_close(got, want, scale):
    got, want = np.asarray(got), np.asarray(want, object)
    assert got.shape == want.shape
    same = got == want.astype(np.float64)  # infinities too
    error = np.where(same, mpf(0), abs(np.where(same, 0.0, got) - want))
    allowed = TOLERANCE * abs(scale) + TINY
    share = np.asarray(error / allowed, np.float64)
    assert np.all(share <= 1), f"{share} times the error allowed"


# ---- the tests


@pytest.mark.parametrize(("name", "regime", "options"), [*cases()])
def test_rows(name, regime, options):
    x, labels = REGIMES[regime], LABELS[name]
    options = (SIGMOID_OPTIONS if name == "sigmoid_ce" else SOFTMAX_OPTIONS)[options]
    got = getattr(oracle, name)(x, labels, reduce="none", **options)
    want, row = definition(name, x, labels, reduce="none", **options)

    w = np.broadcast_to(options.get("sample_weight", 1.0), got.loss.shape).reshape(
        *got.loss.shape, *[1] * (2 - got.loss.ndim)
    )
    assert_close(got.loss, want.loss, want.loss)
    assert_close(got.logits, want.logits, largest(row.terms, w))
    assert_close(got.sample_weight, want.sample_weight, want.sample_weight)
    if want.labels is not None:
        assert_close(got.labels, want.labels, largest(row.label_terms, w))


def largest(terms, w):
    return np.max([np.broadcast_to(abs(w * term), (ROWS, CLASSES)) for term in terms], axis=0)


@pytest.mark.parametrize(("name", "sample_weight", "reduction"), [*reductions()])
def test_reductions(name, sample_weight, reduction):
    """The rows are harmless here; all that has to be right is what becomes of them."""
    w = WEIGHTS[sample_weight]
    if w is not None and np.ndim(w) and name != "sigmoid_ce":
        w = w[:, 0]
    labels = LABELS[name]
    options = {**({} if name == "sigmoid_ce" else SHAPING), **REDUCTIONS[reduction], "sample_weight": w}
    got = getattr(oracle, name)(NOISE, labels, **options)
    want, _ = definition(name, NOISE, labels, **options)
    for mine, true in zip(got, want, strict=True):
        if true is not None:
            assert_close(mine, true, 10.0)  # sums of a few terms, which are this large at most


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_ignored(reduction):
    options = {**SHAPING, **REDUCTIONS[reduction]}
    got = oracle.sparse_ce(NOISE, [1, -100, 3], ignore_index=-100, **options)
    want, _ = definition("sparse_ce", NOISE, Y, ignored=[False, True, False], **options)
    for name in ("loss", "logits", "sample_weight"):
        assert_close(getattr(got, name), getattr(want, name), 10.0)


@pytest.mark.parametrize("masked", [{"sample_weight": W}, {"ignore_index": 0}], ids=["sample_weight", "ignore_index"])
@pytest.mark.parametrize("junk", [np.nan, np.inf, -np.inf, 1e300])
def test_masked_rows_may_hold_anything(masked, junk):
    x = NOISE.copy()
    x[1] = junk
    got, want = (oracle.sparse_ce(logits, Y, **masked) for logits in (x, NOISE))
    np.testing.assert_equal(got.loss, want.loss)
    np.testing.assert_equal(got.logits, want.logits)
    assert not got.logits[1].any()


@pytest.mark.parametrize("bad", [-1, CLASSES, 2**32])
def test_invalid_ids(bad):
    x, y = NOISE, np.array([1, bad, 3])
    got = oracle.sparse_ce(x, y, reduce="none")
    np.testing.assert_equal(np.isnan(got.loss), [False, True, False])
    np.testing.assert_equal(np.isnan(got.logits).all(axis=1), [False, True, False])
    ignored = oracle.sparse_ce(x, y, invalid="ignore")
    np.testing.assert_equal(ignored, oracle.sparse_ce(x, y, ignore_index=bad))


@pytest.mark.parametrize(("name", "labels"), [("softmax_ce", T), ("sparse_ce", Y)])
def test_axis(name, labels):
    loss = getattr(oracle, name)
    want, got = loss(NOISE, labels), loss(NOISE.T, labels.T, axis=0)
    np.testing.assert_equal(got.loss, want.loss)
    np.testing.assert_equal(got.logits.T, want.logits)
    if name == "softmax_ce":
        np.testing.assert_equal(got.labels.T, want.labels)


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_empty(reduction):
    got = oracle.sparse_ce(np.zeros((0, CLASSES)), np.zeros(0, int), **REDUCTIONS[reduction])
    np.testing.assert_equal(got.loss, 0.0)
    assert got.logits.shape == (0, CLASSES)
