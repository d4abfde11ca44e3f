"""linear_ce's matrix, as data."""

import cases
import numpy as np
from cases import Case
from xent.verify.precision import rounded

SHAPE = (4, 5)  # rows, in two dimensions
FEATURES, CLASSES = 6, 9
rng = np.random.default_rng(23)
BIAS = rng.normal(size=CLASSES)
Y = np.array([[3, 0, 8, 1, 1], [2, 2, 7, 4, 0], [5, 6, 1, 0, 2], [8, 8, 3, 2, 1]])
H, V = np.asarray(rng.normal(size=(*SHAPE, FEATURES))), np.asarray(rng.normal(size=(CLASSES, FEATURES)))
OPTIONS = {
    "plain": {},
    "bias": {"bias": BIAS},
    "softcap": {"softcap": 2.0},  # of the logits' size, so that it bends
    "sample_weight": {"sample_weight": cases.WEIGHTS},
    "weights_broadcast": {"sample_weight": np.array([[0.5], [0.0], [2.0], [1.0]])},
    "weights_scalar": {"sample_weight": 2.5},
    "class_weight": {"class_weight": rng.uniform(0.5, 2, CLASSES) * (np.arange(CLASSES) != 2)},
    "label_smoothing": {"label_smoothing": 0.1},
    "smoothed_away": {"label_smoothing": 1.0},
    "z_loss": {"z_loss": 0.01},
    "ignore_index": {"ignore_index": -100},
    "denom": {"denom": 7.5},
}
# What goes into the loop beside hidden states, weight and ids.
FEW = (
    (("bias", "softcap"), "mean"),
    (("sample_weight", "label_smoothing"), "mean"),
    (("z_loss", "ignore_index", "class_weight"), "none"),
)


def matrix(combinations):
    for names, reduce in combinations:
        options = {option: value for name in names for option, value in OPTIONS[name].items()}
        yield Case("linear_ce", names, {"reduce": reduce, **options})


def arguments(dtype, options):
    """Hidden states, weight and labels as the dtype holds them, in float64."""
    data = np.random.default_rng(5)
    h, weight = (
        rounded(data.normal(size=(*SHAPE, FEATURES)), dtype),
        rounded(data.normal(size=(CLASSES, FEATURES)), dtype),
    )
    y = data.integers(0, CLASSES, SHAPE)
    if "ignore_index" in options:
        y[0, 1] = y[3, 3] = -100
        h[0, 1] = np.nan  # an ignored row may hold anything
    if "sample_weight" in options and np.ndim(options["sample_weight"]):
        h[1, 3] = np.inf, np.nan, *[1] * (FEATURES - 2)  # so may one of weight 0
    return h, weight, y


def held(options, dtype):
    """Options rounded to what the computation holds."""
    options = cases.held(options, dtype)
    return {**options, "bias": rounded(options["bias"], dtype)} if "bias" in options else options


def given(live, options, dtype):
    return {**options, "bias": live.array(options["bias"], dtype, "cpu")} if "bias" in options else options


# Relative to the norm; 16-bit gradients are rounded in the end.
BARS = {"float64": 1e-13, "float32": 1e-6, "float16": 1e-3, "bfloat16": 8e-3}
LOSS_BARS = {**BARS, "float16": 1e-5, "bfloat16": 1e-5}


def assert_close(got, want, bar, what):
    got, want = np.asarray(got, np.float64), np.asarray(want, np.float64)
    assert got.shape == want.shape, what
    size = np.linalg.norm(want.ravel()) + 1e-300
    error = np.linalg.norm((got - want).ravel()) / size
    assert error <= bar, f"{what}: off by {error}, allowed {bar}"
