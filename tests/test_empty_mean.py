"""A mean whose denominator is 0 is 0, and so is every derivative of it, whatever the rows hold: never NaN."""

import cases
import numpy as np
import pytest
import xent
from xent import _dispatch, _execute, _plan
from xent._options import Operands, Options

LOGITS = np.array([[np.nan, 1.0, 2.0], [0.1, 0.0, 3.0]])
HIDDEN, WEIGHT = np.array([[np.nan, 1.0], [0.5, 2.0]]), np.array([[0.1, 0.2], [0.3, -0.4], [-0.5, 0.6]])
IDS, SOFT = np.array([0, 1]), np.eye(3)[:2]
BALANCED = np.array([1.0, -1.0])

# Each denominator that can be 0 although rows are there: given, or a sum of weights of both signs.
CALLS = {
    "sparse denom": ("sparse_ce", (LOGITS, IDS), {"denom": 0.0}),
    "sparse weights": ("sparse_ce", (LOGITS, IDS), {"sample_weight": BALANCED}),
    "sparse class weights": ("sparse_ce", (LOGITS, IDS), {"class_weight": np.array([2.0, -2.0, 1.0])}),
    "sparse options": ("sparse_ce", (LOGITS, IDS), {"denom": 0, "z_loss": 0.1, "label_smoothing": 0.1}),
    "softmax denom": ("softmax_ce", (LOGITS, SOFT), {"denom": 0.0}),
    "softmax weights": ("softmax_ce", (LOGITS, SOFT), {"sample_weight": BALANCED, "label_smoothing": 0.1}),
    "sigmoid denom": ("sigmoid_ce", (LOGITS, SOFT), {"denom": 0.0}),
    "sigmoid weights": ("sigmoid_ce", (LOGITS, SOFT), {"sample_weight": BALANCED[:, None]}),
    "sigmoid both": ("sigmoid_ce", (LOGITS, SOFT), {"sample_weight": 2.0, "denom": 0.0}),
    "linear denom": ("linear_ce", (HIDDEN, WEIGHT, IDS), {"denom": 0.0}),
    "linear weights": ("linear_ce", (HIDDEN, WEIGHT, IDS), {"sample_weight": BALANCED, "softcap": 2.0}),
}
each_call = pytest.mark.parametrize("name", CALLS)


def check(live, name, compiler=lambda f: f, **stats):
    """Value and gradient of one call; with stats, the rows' own numbers, which do not depend on the mean."""
    loss, given, options = CALLS[name]
    given = [as_float32(live, k) for k in given]
    arrays = {key: as_float32(live, k) for key, k in options.items() if key not in ("z_loss", "label_smoothing")}
    if "softcap" in arrays:
        arrays["softcap"] = options["softcap"]
    run = compiler(lambda *given: xent.value_and_grad(getattr(xent, loss))(*given, **(options | arrays), **stats))
    value, grads = run(*given)
    if stats:
        value, found = value
        assert np.isnan(live.numpy(found.nll)).tolist() == [True, False]
    assert live.numpy(value) == 0
    for grad in grads if loss == "linear_ce" else [grads]:
        assert grad is None or not live.numpy(grad).any(), live.numpy(grad)  # NaN is true, too


def as_float32(live, values):
    values = np.asarray(values)
    return live.array(values, None if values is IDS else "float32", "cpu")


@each_call
def test_value_and_gradient(live, name):
    cases.needs_loss(live, CALLS[name][0])
    check(live, name)


@pytest.mark.parametrize("name", [name for name in CALLS if name.startswith(("sparse", "linear"))])
def test_beside_statistics(live, name):
    cases.needs_loss(live, CALLS[name][0])
    check(live, name, stats=True)


@each_call
def test_in_weights_and_labels(live, name):
    """By the framework's own differentiation, in all arguments that have a derivative."""
    adapter = _dispatch.load(live.name)
    if adapter.autodiff is None:
        pytest.skip(f"{live.name} does not differentiate")
    loss, given, options = CALLS[name]
    sample_weight = options.get("sample_weight", np.ones((2, 1)) if loss == "sigmoid_ce" else np.ones(2))
    moving = [as_float32(live, k) for k in (*given, sample_weight) if k is not IDS]

    def f(moving):
        *arrays, w = moving
        labels = [as_float32(live, IDS)] if len(arrays) < len(given) else []
        return getattr(xent, loss)(*arrays, *labels, **(options | {"sample_weight": w}))

    value, grads = adapter.autodiff.value_and_grad(f, tuple(moving))
    assert live.numpy(value) == 0
    for grad in grads:
        assert not live.numpy(grad).any(), live.numpy(grad)


@pytest.mark.compiled
def test_compiled(live):
    """Where the denominator has no value to look at; beside statistics, too."""
    tried = (
        ("sparse weights", {"stats": True}),
        ("softmax denom", {}),
        ("sigmoid denom", {}),
        ("linear denom", {"stats": True}),
    )
    for compile, chosen in cases.shares(cases.compilers(live, code=False), tried):
        for name, stats in chosen:
            check(live, name, compile, **stats)


@pytest.mark.parametrize("denom", [None, 3.0])
def test_no_mask_where_none_is_needed(denom):
    """A count, or a denominator that can be read: the rows stay as they are."""
    plan, operands = _plan.sparse(_dispatch.load("numpy"), Operands(LOGITS, IDS, denom=denom), Options())
    assert not _execute.prepare(plan, operands).layout.masked
