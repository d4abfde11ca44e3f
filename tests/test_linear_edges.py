"""linear_ce at its edges, and the rows' statistics."""

import functools

import cases
import numpy as np
import pytest
import xent
from linear_cases import BARS, BIAS, LOSS_BARS, OPTIONS, H, V, Y, assert_close
from xent import _dispatch, oracle
from xent.verify.precision import rounded

# ---- edges


@pytest.mark.parametrize("reduce", cases.REDUCES)
def test_no_rows(linear, reduce):
    if reduce not in ("none", "mean"):
        cases.only_full_on_jax(linear)
    h, v = linear.array(np.zeros((0, 3)), "float32", "cpu"), linear.array(np.ones((4, 3)), "float32", "cpu")
    loss, grads = xent.value_and_grad(xent.linear_ce)(h, v, np.zeros(0, int), reduce=reduce)
    assert linear.numpy(loss).sum() == 0
    assert linear.numpy(grads.hidden).shape == (0, 3)
    assert not linear.numpy(grads.weight).any()


@pytest.mark.parametrize("reduce", cases.REDUCES)
def test_everything_ignored(linear, reduce):
    if reduce not in ("none", "mean"):
        cases.only_full_on_jax(linear)
    h, v = (linear.array(k, "float32", "cpu") for k in (H * np.nan, V))
    loss, grads = xent.value_and_grad(xent.linear_ce)(h, v, 0 * Y, ignore_index=0, reduce=reduce)
    assert not linear.numpy(loss).any()
    assert not linear.numpy(grads.hidden).any()
    assert not linear.numpy(grads.weight).any()


def test_one_row(linear):
    h, v = linear.array(H[0, 0], "float32", "cpu"), linear.array(V, "float32", "cpu")
    loss, grads = xent.value_and_grad(xent.linear_ce)(h, v, 3)
    want = oracle.linear_ce(H[0, 0], V, 3)
    assert_close(linear.numpy(loss), want.loss, 1e-6, "loss")
    assert_close(linear.numpy(grads.hidden), want.hidden, 1e-6, "hidden")


def test_invalid_ids(linear):
    """One row's loss and gradient are NaN, and with it what all rows have in common."""
    h, v = (linear.array(k, "float32", "cpu") for k in (H, V))
    y = Y.copy()
    y[1, 2] = 9
    loss, grads = xent.value_and_grad(xent.linear_ce)(h, v, y, invalid="nan", reduce="none", chunk_rows=3)
    bad = np.isnan(linear.numpy(loss))
    assert bad.sum() == 1
    assert bad[1, 2]
    np.testing.assert_array_equal(np.isnan(linear.numpy(grads.hidden)).all(-1), bad)
    assert np.isnan(linear.numpy(grads.weight)).all()


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("reduce", ["mean", "none"])
def test_float32_parameters_beside_16_bits(linear, reduce, dtype):
    """A mixed-precision layer's: they are rounded to the hidden states' dtype, and their gradients are not."""
    cases.needs_dtype(linear, dtype)
    if (reduce == "mean") != (dtype == "bfloat16"):
        cases.only_full_on_jax(linear)
    exact = [rounded(k, dtype) for k in (H, V, BIAS)]
    want = oracle.linear_ce(*exact[:2], Y, bias=exact[2], reduce=reduce)
    h, v, bias = (linear.array(k, of, "cpu") for k, of in ((H, dtype), (V, "float32"), (BIAS, "float32")))
    loss, grads = xent.value_and_grad(xent.linear_ce)(h, v, Y, bias=bias, reduce=reduce)
    assert_close(linear.numpy(loss), want.loss, LOSS_BARS[dtype], "loss")
    ops = _dispatch.load(linear.name).ops
    assert [ops.dtype(k) for k in grads] == [dtype, "float32", "float32"]
    for name, grad in zip(xent.Grads._fields, grads, strict=True):
        assert_close(linear.numpy(grad), getattr(want, name), BARS[dtype] if name == "hidden" else 2e-6, name)
    with pytest.raises(TypeError, match=f"^weight: expected {dtype}, as hidden is, or float32, got float64$"):
        xent.linear_ce(h, np.asarray(V, np.float64), Y)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("reduce", ["none", "sum"])
def test_16_bit_gradients_of_many_chunks_are_rounded_once(linear, reduce, dtype):
    cases.needs_dtype(linear, dtype)
    if (reduce == "sum") != (dtype == "bfloat16"):
        cases.only_full_on_jax(linear)
    data = np.random.default_rng(0)
    h, v, bias = (rounded(data.normal(size=size), dtype) for size in ((131, 1), (9, 1), 9))
    y = data.integers(0, 9, 131)
    want = oracle.linear_ce(h, v, y, bias=bias, reduce=reduce)
    given = [linear.array(k, dtype, "cpu") for k in (h, v, bias)]
    _, grads = xent.value_and_grad(xent.linear_ce)(*given[:2], y, bias=given[2], reduce=reduce, chunk_rows=1)
    half = 2.0 ** (-11 if dtype == "float16" else -8)  # of a unit in the last place, and a little for the sums
    for name in ("weight", "bias"):
        np.testing.assert_allclose(linear.numpy(getattr(grads, name)), getattr(want, name), rtol=1.01 * half, atol=1e-4)


def test_inputs_are_left_alone(linear):
    values = H.astype(np.float32), V.astype(np.float32), BIAS.astype(np.float32), Y
    arrays = [linear.array(k, None, "cpu") for k in values]
    xent.value_and_grad(xent.linear_ce)(*arrays[:2], arrays[3], bias=arrays[2], softcap=1.0, ignore_index=2)
    for array, value in zip(arrays, values, strict=True):
        np.testing.assert_array_equal(linear.numpy(array), value)
    for value in values:
        value.setflags(write=False)
    xent.value_and_grad(xent.linear_ce)(arrays[0], *values[1:2], values[3], bias=values[2], softcap=1.0)


def test_value_and_grad_of_a_partial(linear):
    h, v = (linear.array(k, "float32", "cpu") for k in (H, V))
    capped = functools.partial(xent.linear_ce, softcap=1.0, reduce="sum")
    loss, grads = xent.value_and_grad(capped)(h, v, Y)
    want = oracle.linear_ce(H, V, Y, softcap=1.0, reduce="sum")
    assert_close(linear.numpy(loss), want.loss, 1e-6, "loss")
    assert_close(linear.numpy(grads.weight), want.weight, 1e-6, "weight")


# ---- the rows' statistics

MASKED = {"ignore_index": 8, "sample_weight": cases.WEIGHTS, "class_weight": OPTIONS["class_weight"]["class_weight"]}
STATS = {"plain": {}, "masked": MASKED, "smoothed": {"label_smoothing": 0.3, "z_loss": 0.1, "reduce": "none"}}


@pytest.mark.parametrize("derive", [False, True], ids=["loss", "value_and_grad"])
@pytest.mark.parametrize("options", STATS)
@pytest.mark.parametrize("loss", ["sparse_ce", "linear_ce"])
def test_stats(live, loss, options, derive):
    """Against their definitions; the loss stays what it is without them."""
    cases.needs_loss(live, loss)
    if options == "plain" or (options == "smoothed" and not derive):
        cases.only_full_on_jax(live)
    options = STATS[options]
    x = H @ V.T
    with live.double():
        arrays = (H, V) if loss == "linear_ce" else (x,)
        given = [live.array(k, "float64", "cpu") for k in arrays]
        function = functools.partial(getattr(xent, loss), **options)
        run = xent.value_and_grad(function) if derive else function
        result = run(*given, Y, stats=True)
        value, stats = result[0] if derive else result
        plain = run(*given, Y)
        found = [live.numpy(k) for k in (value, plain[0] if derive else plain, *stats)]
    np.testing.assert_allclose(found[0], found[1], rtol=1e-14)
    there = options.get("ignore_index", -1) != Y
    weight = np.where(there, options.get("sample_weight", 1.0), 0)
    weight = weight * options["class_weight"][Y] if "class_weight" in options else weight
    there &= weight != 0
    lse = np.log(np.exp(x).sum(-1))
    nll, entropy = lse - np.take_along_axis(x, Y[..., None], -1)[..., 0], oracle.entropy(x).loss
    want = (nll, lse, x.argmax(-1) == Y, weight, entropy, x.argmax(-1))
    assert want[2].any()
    for name, got, expected in zip(stats._fields, found[2:], want, strict=True):
        masked = -1 if name == "argmax" else 0
        np.testing.assert_allclose(got, np.where(there, expected, masked), rtol=1e-13, err_msg=name)
    assert found[4].dtype == bool
    assert found[7].dtype == _dispatch.find(stats.argmax).ops.index_dtype


def test_stats_of_one_class(linear):
    """Maxima have the chunk's own shape, but not its place, which the derivative takes."""
    h, v = (linear.array(k, "float32", "cpu") for k in (H[0], V[:1]))
    (loss, stats), _ = xent.value_and_grad(xent.linear_ce)(h, v, np.zeros(len(H[0]), int), stats=True)
    assert linear.numpy(loss) == 0
    assert linear.numpy(stats.correct).all()
