"""Identities that hold for any logits: they catch a mistake without a reference or a rival's tolerance."""

import importlib
from importlib.util import find_spec

import numpy as np
import pytest
import xent
from cases import needs_installed
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from xent.verify import frameworks

identity = settings(derandomize=True, deadline=None, max_examples=25)
ROWS, CLASSES = 4, 5
# A relative error that both sides may have where the loss is tiny: (8 + lead) roundoffs each, the lead up to 100.
RTOL = 2 * 108 * 2.0**-53
OPTIONS = {"class_weight": np.array([0.5, 2, 1, 0, 1.25]), "label_smoothing": 0.1, "z_loss": 0.01}


@pytest.fixture(scope="module", params=["numpy", "torch", "tensorflow", "jax"])
def framework(request):
    needs_installed(request.param)
    if request.param == "tensorflow" and find_spec("torch"):
        importlib.import_module("torch")  # after TensorFlow its compiler aborts the process
    return frameworks.load(request.param)


# Eighths, so that sums and differences are exact; with ties, and leads up to 100.
def eighths(*shape):
    return hnp.arrays(np.float64, shape, elements=st.integers(-400, 400).map(lambda k: k / 8))


def ids(*shape):
    return hnp.arrays(np.int64, shape, elements=st.integers(0, CLASSES - 1))


def between(low, high, *shape):
    return hnp.arrays(np.float64, shape, elements=st.integers(low * 8, high * 8).map(lambda k: k / 8))


def run(framework, loss, logits, *labels, **options):
    """The loss and its gradient in the logits as NumPy arrays, the arguments given as the framework's."""
    with framework.double():
        x, y = framework.array(logits, "float64", "cpu"), [framework.array(k, None, "cpu") for k in labels]
        return [framework.numpy(result) for result in xent.value_and_grad(loss)(x, *y, **options)]


def assert_same(got, want, rtol=RTOL):
    """The loss relatively; the gradient relatively to 1, what its terms are at most (times the weights)."""
    np.testing.assert_allclose(got[0], want[0], rtol=rtol, atol=0)
    np.testing.assert_allclose(got[1], want[1], rtol=rtol, atol=rtol)


@identity
@given(x=eighths(2, 3, 4), axis=st.integers(-3, 2), data=st.data())
def test_axis_is_moveaxis(framework, x, axis, data):
    y, t = data.draw(hnp.arrays(np.int64, (2, 3), elements=st.integers(0, 3))), data.draw(between(0, 1, 2, 3, 4))
    moved = np.moveaxis(x, -1, axis)
    for loss, labels, moved_labels, options in (
        (xent.sparse_ce, (y,), (y,), {"reduce": "none"}),
        (xent.softmax_ce, (t,), (np.moveaxis(t, -1, axis),), {"reduce": "none"}),
        (xent.entropy, (), (), {}),
    ):
        want = run(framework, loss, x, *labels, **options)
        got = run(framework, loss, moved, *moved_labels, axis=axis, **options)
        assert_same((got[0], np.moveaxis(got[1], axis, -1)), want)


@pytest.mark.parametrize("reduce", ["none", "mean"])
@identity
@given(x=eighths(ROWS, CLASSES), y=ids(ROWS), w=between(0, 3, ROWS))
def test_sparse_is_softmax_of_one_hot(framework, reduce, x, y, w):
    got = run(framework, xent.sparse_ce, x, y, sample_weight=w, reduce=reduce, **OPTIONS)
    want = run(framework, xent.softmax_ce, x, np.eye(CLASSES)[y], sample_weight=w, reduce=reduce, **OPTIONS)
    assert_same(got, want, 4 * RTOL)  # the gradient has terms up to 2 z_loss lse = 1, and weights up to 6


@pytest.mark.parametrize("reduce", ["sum", "mean", "mean_nonzero"])
@identity
@given(x=eighths(ROWS, CLASSES), y=ids(ROWS), kept=hnp.arrays(bool, ROWS))
def test_masked_is_dropped(framework, reduce, x, y, kept):
    want = run(framework, xent.sparse_ce, x[kept], y[kept], reduce=reduce, **OPTIONS)
    x[~kept] = np.nan  # whatever the row holds
    masks = ({"sample_weight": kept.astype(float)}, y), ({"ignore_index": -100}, np.where(kept, y, -100))
    for options, labels in masks:
        loss, grad = run(framework, xent.sparse_ce, x, labels, reduce=reduce, **options, **OPTIONS)
        assert_same((loss, grad[kept]), want)
        assert not grad[~kept].any()


@identity
@given(x=eighths(ROWS, CLASSES), y=ids(ROWS), order=st.permutations(range(CLASSES)))
def test_order_of_classes_is_nothing(framework, x, y, order):
    want = run(framework, xent.sparse_ce, x, y, **OPTIONS)
    options = {**OPTIONS, "class_weight": OPTIONS["class_weight"][order]}
    got = run(framework, xent.sparse_ce, x[:, order], np.argsort(order)[y], **options)
    assert_same(got, (want[0], want[1][:, order]))


@identity
@given(
    x=eighths(ROWS, CLASSES), y=ids(ROWS), t=between(0, 1, ROWS, CLASSES), constant=between(-(10**8), 10**8, ROWS, 1)
)
def test_constant_is_nothing(framework, x, y, t, constant):
    """Not even in the last digit: the sums are exact, and only differences count."""
    smoothing = {"label_smoothing": 0.1}
    for loss, labels, options in (
        (xent.sparse_ce, (y,), smoothing),
        (xent.softmax_ce, (t,), smoothing),
        (xent.entropy, (), {}),
    ):
        got, want = (run(framework, loss, logits, *labels, **options) for logits in (x + constant, x))
        np.testing.assert_array_equal(got[0], want[0])
        np.testing.assert_array_equal(got[1], want[1])


@identity
@given(x=eighths(ROWS, CLASSES), y=ids(ROWS))
def test_a_scale_is_a_product(framework, x, y):
    """Of a power of two, which rounds nowhere; a temperature of 4 is a scale of 1/4."""
    for loss, labels in ((xent.sparse_ce, (y,)), (xent.log_prob, (y,)), (xent.entropy, ())):
        loss_of_scaled, grad = run(framework, loss, x / 4, *labels)
        assert_same(run(framework, loss, x, *labels, logit_scale=0.25), (loss_of_scaled, grad / 4))


@identity
@given(x=eighths(ROWS, CLASSES), y=ids(ROWS))
def test_log_prob_is_the_loss_negated(framework, x, y):
    options = {"softcap": 30.0, "ignore_index": 2}
    value, grad = run(framework, xent.sparse_ce, x, y, reduce="none", **options)
    assert_same(run(framework, xent.log_prob, x, y, **options), (-value, -grad))


@identity
@given(x=eighths(ROWS, CLASSES), order=st.permutations(range(CLASSES)))
def test_probabilities_add_up_to_1_and_make_the_entropy(framework, x, order):
    """Entropy relatively to itself: it is a sum of terms that are not negative."""
    log_p = np.stack([run(framework, xent.log_prob, x, np.full(ROWS, y))[0] for y in range(CLASSES)], axis=1)
    p, (entropy, grad) = np.exp(log_p), run(framework, xent.entropy, x)
    np.testing.assert_allclose(p.sum(axis=1), 1, rtol=RTOL)
    np.testing.assert_allclose(entropy, -(p * log_p).sum(axis=1), rtol=RTOL)
    assert (entropy <= np.log(CLASSES) * (1 + RTOL)).all()
    assert (np.abs(grad.sum(axis=1)) <= RTOL * np.abs(grad).sum(axis=1)).all()  # more of one class is less of others
    assert_same(run(framework, xent.entropy, x[:, order]), (entropy, grad[:, order]))


@identity
@given(x=eighths(ROWS, CLASSES), y=ids(ROWS), w=between(0, 3, ROWS))
def test_mean_is_sum_over_its_denominator(framework, x, y, w):
    weight = w * OPTIONS["class_weight"][y]
    total = run(framework, xent.sparse_ce, x, y, sample_weight=w, reduce="sum", **OPTIONS)
    counts = {"mean": weight.sum(), "mean_nonzero": np.count_nonzero(weight), "mean_all": ROWS}
    for reduce, count in counts.items():
        mean = run(framework, xent.sparse_ce, x, y, sample_weight=w, reduce=reduce, **OPTIONS)
        assert_same([part * count for part in mean], total, 10 * RTOL)  # weights add up to 24 at most


@identity
@given(x=eighths(ROWS, CLASSES), y=ids(ROWS), w=between(1, 3, ROWS), cut=st.sampled_from([1, 2]))
def test_denom_accumulates(framework, x, y, w, cut):
    want = run(framework, xent.sparse_ce, x, y, sample_weight=w)
    denom = float(w.sum())
    parts = [
        run(framework, xent.sparse_ce, x[part], y[part], sample_weight=w[part], denom=denom)
        for part in (slice(cut), slice(cut, None))
    ]
    assert_same((sum(loss for loss, _ in parts), np.concatenate([grad for _, grad in parts])), want)


@identity
@given(x=eighths(ROWS, 2), z=between(0, 1, ROWS))
def test_two_classes_are_sigmoid_of_the_difference(framework, x, z):
    loss, grad = run(framework, xent.softmax_ce, x, np.stack([1 - z, z], axis=1), reduce="none")
    assert_same((loss, grad[:, 1]), run(framework, xent.sigmoid_ce, x[:, 1] - x[:, 0], z, reduce="none"))


@identity
@given(x=eighths(ROWS, CLASSES), y=ids(ROWS))
def test_gradient_rows_add_up_to_0(framework, x, y):
    """Relatively, however confident the row: the label's entry is not 1 rounded minus p."""
    _, grad = run(framework, xent.sparse_ce, x, y, reduce="none")
    assert (np.abs(grad.sum(axis=1)) <= RTOL * np.abs(grad).sum(axis=1)).all()
    assert (grad[range(ROWS), y] < 0).all()


@pytest.mark.parametrize("dtype", ["bool", "uint8", "int8", "int32", "uint64"])
@identity
@given(x=eighths(ROWS, CLASSES), y=hnp.arrays(np.int64, ROWS, elements=st.integers(0, 1)))
def test_integers_of_any_width_are_ids(framework, dtype, x, y):
    want, got = (run(framework, xent.sparse_ce, x, labels, **OPTIONS) for labels in (y, y.astype(dtype)))
    # not to the bit: for another dtype JAX compiles another program, which may add up in another order
    np.testing.assert_allclose(got[0], want[0], rtol=8 * 2.0**-53)
    np.testing.assert_allclose(got[1], want[1], rtol=8 * 2.0**-53, atol=8 * 2.0**-53 * np.abs(want[1]).max())
