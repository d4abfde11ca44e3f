"""What the numbers mean: published figures, and the calls that frameworks answer differently, each with one answer."""

import functools
import pickle

import cases
import numpy as np
import pytest
import xent

LOGITS = np.array([[2, 0.5, 6], [0.1, 0, 3]])


def close(live, got, want, rtol=2e-7):
    np.testing.assert_allclose(live.numpy(got), want, rtol=rtol)


@pytest.fixture
def a(live):
    """NumPy values as the framework's float32, ids as they are."""

    def array(values):
        values = np.asarray(values)
        return live.array(values, "float32" if values.dtype.kind == "f" else None, "cpu")

    return array


# ---- published figures


def test_hard_labels(live, a):
    want = [0.02215516, 3.0996735]
    onehot = np.array([[0.0, 0, 1], [0, 1, 0]])
    close(live, xent.softmax_ce(a(LOGITS), a(onehot), reduce="none"), want)
    close(live, xent.sparse_ce(a(LOGITS), a([2, 1]), reduce="none"), want)
    close(live, xent.sparse_ce(a(LOGITS), a([2, 1]), reduce="sum"), 3.1218286)


def test_soft_labels(live, a):
    labels = a([[0.4, 0.1, 0.5], [0.3, 0.6, 0.1]])
    close(live, xent.softmax_ce(a(LOGITS), labels, reduce="none"), [2.1721554, 2.7696736])


def test_softmaxed_logits_by_mistake(live, a):
    p = np.exp(LOGITS) / np.exp(LOGITS).sum(1, keepdims=True)
    close(live, xent.sparse_ce(a(p), a([2, 1]), reduce="none"), [0.56551915, 1.4743223])


def test_one_row(live, a):
    close(live, xent.sparse_ce(a([3.0, 1.0, -3.0]), a(2)), 6.12910890699)
    each = [xent.softmax_ce(a([3.0, 1.0, -3.0]), a(row)) for row in np.eye(3)]
    for got, want in zip(each, [0.1291089167, 2.1291089016, 6.1291089070], strict=True):
        close(live, got, want)


def test_three_equal_rows(live, a):
    onehot = np.eye(3)[[2, 2, 2]]
    close(live, xent.softmax_ce(a([[1.0, 2.0, 3.0]] * 3), a(onehot), reduce="sum"), 1.2228, rtol=1e-4)


def test_batch_and_sequence(live, a):
    x = np.random.default_rng(0).normal(size=(2, 5, 3))
    loss = xent.sparse_ce(a(x), a(np.zeros((2, 5), int)), reduce="none")
    assert live.numpy(loss).shape == (2, 5)


def test_labels_that_are_no_distribution(live, a):
    rng = np.random.default_rng(0)
    x, t = rng.normal(size=(4, 3)).astype("f"), rng.normal(size=(4, 3)).astype("f")
    want = (t.astype("d") * (np.log(np.exp(x.astype("d")).sum(1, keepdims=True)) - x)).sum(1)
    close(live, xent.softmax_ce(a(x), a(t), reduce="none"), want, rtol=2e-6)


def test_mean_all_is_reduce_mean_of_masked_losses(live, a):
    each = live.numpy(xent.sparse_ce(a(LOGITS), a([2, 1]), reduce="none"))
    close(live, xent.sparse_ce(a(LOGITS), a([2, 1]), sample_weight=[1, 0], reduce="mean_all"), (each * [1, 0]).mean())


def test_mean_nonzero_is_tf1s_weighted_loss(live, a):
    each = live.numpy(xent.sparse_ce(a(LOGITS), a([2, 1]), reduce="none"))
    got = xent.sparse_ce(a(LOGITS), a([2, 1]), sample_weight=[0.5, 0], reduce="mean_nonzero")
    close(live, got, (each * [0.5, 0]).sum() / 1)


# ---- the same call, different answers today


def test_label_minus_one(live, a):
    """PyTorch raises, optax trains the last class, TF under XLA gives NaN, Keras on JAX 0."""
    with pytest.raises(xent.LabelError, match=r"the first at \[1\] is -1"):
        xent.sparse_ce(a(LOGITS), a([2, -1]))
    loss, grad = xent.value_and_grad(xent.sparse_ce)(a(LOGITS), a([2, -1]), invalid="nan", reduce="none")
    assert np.isnan(live.numpy(loss)).tolist() == [False, True]
    assert np.isnan(live.numpy(grad)).tolist() == [[False] * 3, [True] * 3]
    loss, grad = xent.value_and_grad(xent.sparse_ce)(a(LOGITS), a([2, -1]), invalid="ignore")
    close(live, loss, 0.02215516)
    assert live.numpy(grad)[1].tolist() == [0, 0, 0]


@pytest.mark.parametrize("big", [2**32, 2**32 + 1, -(2**32), 2**63 - 1])
def test_label_beyond_32_bits(live, a, big):
    """JAX wraps 2**32 to 0."""
    with pytest.raises(xent.LabelError, match=rf"is {big};"):
        xent.sparse_ce(a(LOGITS), np.array([2, big]))
    loss = xent.sparse_ce(a(LOGITS), np.array([2, big]), invalid="nan", reduce="none")
    assert np.isnan(live.numpy(loss)).tolist() == [False, True]


def test_uint64_labels(live, a):
    ids = np.array([2, 2**64 - 1], np.uint64)
    with pytest.raises(xent.LabelError, match=rf"is {2**64 - 1};"):
        xent.sparse_ce(a(LOGITS), ids)
    with pytest.raises(xent.LabelError):  # -1 is no uint64: it ignores nothing
        xent.sparse_ce(a(LOGITS), ids, ignore_index=-1)
    close(live, xent.sparse_ce(a(LOGITS), ids, ignore_index=2**64 - 1), 0.02215516)


def test_narrow_labels_against_many_classes(live, a):
    """1000 is no uint8; comparing with it must not wrap."""
    x = np.zeros((2, 1000))
    close(live, xent.sparse_ce(a(x), a(np.array([0, 255], np.uint8)), ignore_index=-100), np.log(1000))


def test_class_weights_with_mean(live, a):
    """0.245 for ids, 0.491 for the same labels one-hot in torch."""
    x = np.log([[0.7, 0.2, 0.1], [0.1, 0.8, 0.1], [0.15, 0.05, 0.8]])
    hard = xent.sparse_ce(a(x), a([0, 1, 2]), class_weight=[1, 2, 3])
    soft = xent.softmax_ce(a(x), a(np.eye(3)), class_weight=[1, 2, 3])
    want = -(np.log(0.7) + 2 * np.log(0.8) + 3 * np.log(0.8)) / 6
    close(live, hard, want, rtol=1e-6)
    close(live, soft, want, rtol=1e-6)


@pytest.mark.parametrize(
    "options", [{"ignore_index": 1}, {"sample_weight": 0}, {"invalid": "ignore", "ignore_index": 1}]
)
@pytest.mark.parametrize("reduce", ["mean", "mean_nonzero", "mean_all", "sum"])
def test_everything_masked(live, a, options, reduce):
    """NaN in torch, 0 in TF1."""
    loss, grad = xent.value_and_grad(xent.sparse_ce)(a(LOGITS), a([1, 1]), reduce=reduce, **options)
    assert live.numpy(loss) == 0
    assert not live.numpy(grad).any()


@pytest.mark.parametrize("reduce", ["none", "mean", "mean_nonzero", "mean_all", "sum"])
def test_empty_batch(live, a, reduce):
    empty = np.zeros((0, 3))
    for loss, labels in ((xent.sparse_ce, np.zeros(0, int)), (xent.softmax_ce, empty), (xent.sigmoid_ce, empty)):
        value, grad = xent.value_and_grad(loss)(a(empty), a(labels), reduce=reduce)
        assert live.numpy(value).sum() == 0
        assert live.numpy(grad).shape == (0, 3)


def test_one_hot_with_impossible_classes(live, a):
    """0 * -inf is NaN in torch, TF and optax."""
    loss, grad = xent.value_and_grad(xent.softmax_ce)(a([[1.0, 2.0, -np.inf]]), a([[0.0, 1.0, 0.0]]))
    close(live, loss, 0.31326168751822286)
    close(live, grad, [[0.2689414213699951, -0.2689414213699951, 0]], rtol=1e-6)


def test_sigmoid_at_infinity(live, a):
    x, z = [-np.inf, -np.inf, np.inf, np.inf], [0.0, 1.0, 0.0, 1.0]
    loss, grad = xent.value_and_grad(xent.sigmoid_ce)(a(x), a(z), reduce="none")
    assert live.numpy(loss).tolist() == [0, np.inf, np.inf, 0]
    assert live.numpy(grad).tolist() == [0, -1, 1, 0]


def test_infinite_logit_in_a_softmax(live, a):
    """No softmax has a +inf logit, or only -inf ones: overflow must show."""
    x = [[np.inf, 0.0, 1.0], [-np.inf] * 3]
    loss, grad = xent.value_and_grad(xent.sparse_ce)(a(x), a([0, 0]), reduce="none")
    assert np.isnan(live.numpy(loss)).all()
    assert np.isnan(live.numpy(grad)).all()


def test_ignored_row_of_nan(live, a):
    """Its gradient is NaN in torch."""
    x = np.array([[np.nan, 1, 2], [0.1, 0, 3]])
    for options in ({"ignore_index": 0}, {"sample_weight": [0, 1], "ignore_index": 0}):
        loss, grad = xent.value_and_grad(xent.sparse_ce)(a(x), a([0, 1]), **options)
        close(live, loss, 3.0996735)
        assert live.numpy(grad)[0].tolist() == [0, 0, 0]
    soft, grad = xent.value_and_grad(xent.softmax_ce)(a(x), a([[1.0, 0, 0], [0, 1.0, 0]]), sample_weight=[0, 1])
    close(live, soft, 3.0996735)
    assert live.numpy(grad)[0].tolist() == [0, 0, 0]
    each, grad = xent.value_and_grad(xent.sigmoid_ce)(
        a(x), a(np.zeros((2, 3))), sample_weight=[[0], [1]], reduce="none"
    )
    assert live.numpy(each)[0].tolist() == live.numpy(grad)[0].tolist() == [0, 0, 0]


def test_label_row_that_sums_to_less(live, a):
    """TF's gradient is five times off."""
    x, t = np.array([[1.0, 2.0, 3.0]]), np.array([[0.3, 0.4, 0.1]])
    p = np.exp(x) / np.exp(x).sum()
    _, grad = xent.value_and_grad(xent.softmax_ce)(a(x), a(t))
    close(live, grad, t.sum() * p - t, rtol=1e-5)


def test_mean_of_float16(live):
    """10,000 rows of ln 1000 overflow a float16 sum."""
    x = live.array(np.zeros((10_000, 1000), np.float32), "float16" if "float16" in live.dtypes else "float32", "cpu")
    close(live, xent.sparse_ce(x, np.zeros(10_000, int)), np.log(1000), rtol=1e-6)


def test_confident_prediction(live, a):
    """Exactly 0, and no gradient, everywhere."""
    loss, grad = xent.value_and_grad(xent.sparse_ce)(a([[20.0, 0.0]]), a([0]))
    close(live, loss, np.log1p(np.exp(-20.0)), rtol=1e-6)
    close(live, grad, [[-1 / (1 + np.exp(20.0)), 1 / (1 + np.exp(20.0))]], rtol=1e-6)


def test_common_offset(live, a):
    """optax is 34 % off."""
    close(live, xent.sparse_ce(a([[1010.0, 1000.0]]), a([0])), np.log1p(np.exp(-10.0)), rtol=1e-6)


# ---- what else the rules say


def test_masked_row_with_an_invalid_label(live, a):
    """A row of weight 0 is not looked at, its label no more than its logits."""
    for bad, options in ((-7, {}), (-7, {"invalid": "nan"}), (100, {"class_weight": [1, 2, 3]})):
        close(live, xent.sparse_ce(a(LOGITS), a([2, bad]), sample_weight=[1, 0], **options), 0.02215516)


def in_the_other_byte_order(value):
    value = np.asarray(value)
    return value.astype(value.dtype.newbyteorder())


@pytest.mark.parametrize(
    ("loss", "labels", "options"),
    [
        (
            xent.sparse_ce,
            np.array([2, 1]),
            {"sample_weight": np.array([2.0, 0.5]), "class_weight": np.array([0.5, 2, 1])},
        ),
        (xent.softmax_ce, np.full((2, 3), 0.25, np.float32), {"sample_weight": np.array(2.0), "denom": np.array(3.0)}),
        (xent.sigmoid_ce, np.full((2, 3), 0.25), {"pos_weight": np.array([0.5, 2, 1], np.float32)}),
    ],
)
def test_numpy_arguments_in_the_other_byte_order(live, a, loss, labels, options):
    """As files have them."""
    swapped = {name: in_the_other_byte_order(value) for name, value in options.items()}
    got = loss(a(LOGITS), in_the_other_byte_order(labels), **swapped)
    close(live, got, live.numpy(loss(a(LOGITS), labels, **options)))


def test_impossible_label(live, a):
    loss, grad = xent.value_and_grad(xent.sparse_ce)(a([[0.0, -np.inf]]), a([1]))
    assert live.numpy(loss) == np.inf
    assert live.numpy(grad).tolist() == [[1, -1]]


def test_soft_labels_agree_with_ids_under_class_weight(live, a):
    rng = np.random.default_rng(1)
    x, y = rng.normal(size=(6, 3)), rng.integers(0, 3, 6)
    options = {"class_weight": [0.5, 2, 0], "label_smoothing": 0.2, "z_loss": 0.1, "sample_weight": rng.random(6)}
    for reduce in cases.first_on_jax(live, ("none", "mean", "mean_nonzero", "mean_all", "sum")):
        soft = xent.softmax_ce(a(x), a(np.eye(3)[y]), reduce=reduce, **options)
        close(live, xent.sparse_ce(a(x), a(y), reduce=reduce, **options), live.numpy(soft), rtol=2e-6)


def test_labels_of_another_kind(live, a):
    """Lists, scalars and NumPy arrays go to the logits' framework; bools and any width of ids will do."""
    want = live.numpy(xent.sparse_ce(a(LOGITS), a([1, 1])))
    for labels in ([1, 1], np.array([1, 1], np.int8), np.array([True, True]), a(np.array([True, True]))):
        close(live, xent.sparse_ce(a(LOGITS), labels), want)
    close(live, xent.softmax_ce(a(LOGITS), np.array([[0, 1, 0], [0, 1, 0]])), want)


def test_value_and_grad_of_a_partial(live, a):
    smooth = functools.partial(xent.sparse_ce, label_smoothing=0.1, reduce="sum")
    loss, grad = xent.value_and_grad(smooth)(a(LOGITS), a([2, 1]))
    want, slope = xent.value_and_grad(xent.sparse_ce)(a(LOGITS), a([2, 1]), label_smoothing=0.1, reduce="sum")
    close(live, loss, live.numpy(want))
    close(live, grad, live.numpy(slope))


def test_inputs_are_left_alone(live, a):
    """Neither the framework's arrays are written to nor NumPy's, which may be read-only."""
    t, table, w = (np.array(k, np.float32) for k in (np.full((2, 3), 0.3), [0.5, 2, 1], [1, 0]))  # so no cast copies
    values = np.array(LOGITS, np.float32), t, np.array([2, 1]), table, w, w[:, None]

    def every_loss(x, t, y, table, w, column):
        options = {"sample_weight": w, "class_weight": table, "label_smoothing": 0.1}
        xent.value_and_grad(xent.sparse_ce)(x, y, ignore_index=2, **options)
        xent.value_and_grad(xent.softmax_ce)(x, t, **options)
        xent.value_and_grad(xent.sigmoid_ce)(x, t, sample_weight=column, pos_weight=table)
        for loss in (xent.softmax_ce, xent.sigmoid_ce):  # without a mask, which copies labels
            xent.value_and_grad(loss)(x, t)

    arrays = [live.array(value, None, "cpu") for value in values]
    every_loss(*arrays)
    for array, value in zip(arrays, values, strict=True):
        np.testing.assert_array_equal(live.numpy(array), value)
    for value in values:
        value.setflags(write=False)
    every_loss(*values)
    every_loss(arrays[0], *values[1:])


@pytest.mark.parametrize("smoothing", [0.1, 1e-3, 1e-6])
def test_little_smoothing_of_a_confident_element(live, a, smoothing):
    """1 - ((1 - e) z + e/2) would round away a small e; both complements are smoothed by themselves."""
    loss, grad = xent.value_and_grad(xent.sigmoid_ce)(a([20.0]), a([1.0]), label_smoothing=smoothing)
    close(live, loss, smoothing / 2 * 20 + np.log1p(np.exp(-20.0)), rtol=1e-6)
    sigmoid = 1 / (1 + np.exp(-20.0))
    close(live, grad, [smoothing / 2 * sigmoid - (1 - smoothing / 2) * (1 - sigmoid)], rtol=1e-6)


def test_smoothed_away(live, a):
    """Smoothing of 1 leaves the uniform labels alone, whatever the label's own loss is."""
    x = np.array([[1.0, 2.0, -np.inf]])
    loss = xent.sparse_ce(a(x), a([1]), label_smoothing=1.0, class_weight=[1, 1, 0])
    close(live, loss, ((np.log1p(np.exp(1.0)) + np.log1p(np.exp(-1.0))) / 3), rtol=1e-6)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("weight", [0.5, -1.5])
def test_weights_that_add_up_to_less_than_one(live, dtype, weight):
    """A weighted mean does not depend on the weights' scale, however small or negative their sum."""
    with live.double():
        x = live.array(LOGITS, dtype, "cpu")
        want = [live.numpy(k) for k in xent.value_and_grad(xent.sparse_ce)(x, [2, 1])]
        got = xent.value_and_grad(xent.sparse_ce)(x, [2, 1], sample_weight=[weight / 4, weight / 4])
        for one, other in zip(got, want, strict=True):
            np.testing.assert_allclose(live.numpy(one), other, rtol=1e-6)
        each = xent.sigmoid_ce(x, np.ones((2, 3)), sample_weight=0.1)
        np.testing.assert_allclose(live.numpy(each), live.numpy(xent.sigmoid_ce(x, np.ones((2, 3)))), rtol=1e-6)


def test_reversed_views(live, a):
    """NumPy views that run backwards are labels and weights like any other."""
    ids, sample_weight = np.array([1, 2]), np.array([1.0, 3.0])
    loss = xent.sparse_ce(a(LOGITS), ids[::-1], sample_weight=sample_weight[::-1])
    close(live, loss, (3 * 0.02215516 + 3.0996735) / 4)


class Column:
    """A column of a data frame: NumPy can have its values, and it is no array itself."""

    def __init__(self, values):
        self.values = np.asarray(values)

    def __array__(self, dtype=None, copy=None):
        return self.values


def test_columns_of_data_frames(live, a):
    loss = xent.sparse_ce(a(LOGITS), Column([2, 1]), sample_weight=Column([1.0, 3.0]))
    close(live, loss, (0.02215516 + 3 * 3.0996735) / 4)
    np.testing.assert_allclose(xent.sparse_ce(Column(LOGITS), Column([2, 1]), reduce="sum"), 3.1218286)


def test_an_empty_list_of_labels(live, a):
    """It has no dtype that could be wrong; an empty array has one."""
    assert live.numpy(xent.sparse_ce(a(LOGITS[:0]), [])) == 0
    assert live.numpy(xent.sparse_ce(a(np.zeros((2, 0, 3))), [[], []])) == 0
    with pytest.raises(TypeError, match=r"^labels: expected class ids of"):
        xent.sparse_ce(a(LOGITS[:0]), np.array([]))


@pytest.mark.parametrize("loss", ["sparse_ce", "softmax_ce", "sigmoid_ce", "linear_ce"])
def test_value_and_grad_by_name_and_pickled(live, a, loss):
    """A worker gets it from another process."""
    cases.needs_loss(live, loss)
    x, soft = a(np.arange(6.0).reshape(2, 3)), a(np.full((2, 3), 0.5))
    arguments = {"hidden": x, "weight": a(np.eye(3))} if loss == "linear_ce" else {"logits": x}
    arguments["labels"] = soft if loss in ("softmax_ce", "sigmoid_ce") else [2, 1]
    function = xent.value_and_grad(getattr(xent, loss))
    want = function(*arguments.values())
    for found in function(**arguments), pickle.loads(pickle.dumps(function))(**arguments):
        for got, expected in zip(flat(found), flat(want), strict=True):
            np.testing.assert_array_equal(live.numpy(got), live.numpy(expected))


def flat(found):
    loss, gradient = found
    return [loss, *(k for k in gradient if k is not None)] if isinstance(gradient, tuple) else [loss, gradient]


@pytest.mark.backend("torch")
def test_value_and_grad_of_a_users_loss_by_name():
    torch = pytest.importorskip("torch", reason="torch is not installed")

    def doubled(scores, labels):
        return 2 * xent.sparse_ce(scores, labels)

    x, y = torch.arange(6.0).reshape(2, 3), torch.tensor([2, 1])
    _, want = xent.value_and_grad(doubled)(x, y)
    _, got = xent.value_and_grad(doubled)(labels=y, scores=x)
    assert torch.equal(got, want)
