"""Bad calls, each with its exception and the sentence that all backends say."""

import numpy as np
import xent

X = np.zeros((2, 3), np.float32)
Y = np.array([0, 2])
T = np.full((2, 3), 1 / 3, np.float32)
W = np.zeros((4, 3), np.float32)


def sparse(x=X, y=Y, **options):
    return "sparse_ce", x, y, options


def softmax(x=X, y=T, **options):
    return "softmax_ce", x, y, options


def sigmoid(x=X, y=T, **options):
    return "sigmoid_ce", x, y, options


def log_prob(x=X, y=Y, **options):
    return "log_prob", x, y, options


def entropy(x=X, **options):
    return "entropy", x, None, options


def linear(x=X, weight=W, y=Y, **options):
    return "linear_ce", x, y, {"weight": weight, **options}


REDUCE = "expected 'none', 'sum', 'mean', 'mean_nonzero' or 'mean_all'"
FLOATS = "expected 'float16', 'bfloat16', 'float32' or 'float64'"
BAD = {
    "swapped": (
        sparse(np.array([0, 2], np.int32), X),
        TypeError,
        f"logits: {FLOATS}, got int32 (are logits and labels swapped?)",
    ),
    "integer logits": (
        softmax(np.ones((2, 3), np.int32)),
        TypeError,
        f"logits: {FLOATS}, got int32 (are logits and labels swapped?)",
    ),
    "float labels": (
        sparse(y=np.array([0.0, 2.0], np.float32)),
        TypeError,
        "labels: expected class ids of an integer or bool dtype, got float32 (cast ids that are whole numbers; for "
        "distributions over the classes use softmax_ce)",
    ),
    "labels [N, 1] for [N]": (
        sparse(y=Y[:, None]),
        ValueError,
        "labels: expected shape (2,) (the logits' without axis), got (2, 1)",
    ),
    "ids along the logits' last axis": (
        sparse(y=np.zeros(3, int)),
        ValueError,
        "labels: expected shape (2,) (the logits' without axis), got (3,); they fit axis=0",
    ),
    "reduction, as in PyTorch": (
        sparse(reduction="sum"),
        TypeError,
        "reduction: sparse_ce has no such argument; use reduce",
    ),
    "weight, as in PyTorch": (
        softmax(weight=[1, 2, 3]),
        TypeError,
        "weight: softmax_ce has no such argument; use class_weight or sample_weight",
    ),
    "from_logits, as in Keras": (
        sigmoid(from_logits=True),
        TypeError,
        "from_logits: sigmoid_ce has no such argument; logits are what it takes",
    ),
    "no soft labels": (
        softmax(y=None),
        TypeError,
        "labels: expected an array of NumPy, PyTorch, TensorFlow or JAX, got NoneType",
    ),
    "no binary labels": (
        sigmoid(y=None),
        TypeError,
        "labels: expected an array of NumPy, PyTorch, TensorFlow or JAX, got NoneType",
    ),
    "no ids": (
        sparse(y=None),
        TypeError,
        "labels: expected an array of NumPy, PyTorch, TensorFlow or JAX, got NoneType",
    ),
    "weight, where only positives have one": (
        sigmoid(class_weights=[1, 2, 3]),
        TypeError,
        "class_weights: sigmoid_ce has no such argument; use pos_weight",
    ),
    "an axis where there is none": (
        sigmoid(dim=1),
        TypeError,
        "dim: sigmoid_ce has no such argument",
    ),
    "an argument of no library": (
        sigmoid(colour="red"),
        TypeError,
        "colour: sigmoid_ce has no such argument",
    ),
    "-100 without ignore_index": (
        sparse(y=np.array([0, -100])),
        xent.LabelError,
        "labels: 1 of 2 class ids out of range, the first at [1] is -100; expected 0 to 2; "
        "ignore_index=-100 leaves it out",
    ),
    "labels one short": (
        sparse(y=Y[:1]),
        ValueError,
        "labels: expected shape (2,) (the logits' without axis), got (1,)",
    ),
    "soft labels (1, C) for (N, C)": (
        softmax(y=T[:1]),
        ValueError,
        "labels: expected shape (2, 3) (the logits'), got (1, 3)",
    ),
    "sigmoid [N] for [N, C]": (
        sigmoid(y=T[0]),
        ValueError,
        "labels: expected shape (2, 3) (the logits'), got (3,)",
    ),
    "scalar logits": (
        sparse(x=np.float32(1), y=np.array(0)),
        ValueError,
        "logits: expected at least one dimension, the classes; got a scalar",
    ),
    "no classes": (
        sparse(x=np.zeros((2, 0), np.float32)),
        ValueError,
        "logits: expected at least one class, got shape (2, 0) with none along axis 1",
    ),
    "axis too large": (
        sparse(axis=2),
        ValueError,
        "axis: expected -2 to 1 for logits of shape (2, 3), got 2",
    ),
    "axis no int": (sparse(axis=0.5), TypeError, "axis: expected an int, got 0.5"),
    "unknown reduce": (sparse(reduce="avg"), ValueError, f"reduce: {REDUCE}, got 'avg'"),
    "reduce=None": (sigmoid(reduce=None), ValueError, f"reduce: {REDUCE}, got None"),
    "smoothing 1.5": (
        sparse(label_smoothing=1.5),
        ValueError,
        "label_smoothing: expected a number from 0 to 1, got 1.5",
    ),
    "smoothing NaN": (
        sigmoid(label_smoothing=float("nan")),
        ValueError,
        "label_smoothing: expected a number from 0 to 1, got nan",
    ),
    "smoothing a string": (
        softmax(label_smoothing="0.1"),
        TypeError,
        "label_smoothing: expected a number, got '0.1'",
    ),
    "z_loss infinite": (
        sparse(z_loss=float("inf")),
        ValueError,
        "z_loss: expected a finite number, got inf",
    ),
    "weights [C] for [N]": (
        sparse(sample_weight=np.ones(3)),
        ValueError,
        "sample_weight: expected a scalar, shape (2,) (the loss's), or that with 1s; got (3,)",
    ),
    "weights of strings": (
        sparse(sample_weight=np.array(["a", "b"])),
        TypeError,
        "sample_weight: expected real numbers, got str32",
    ),
    "complex weights": (
        sparse(sample_weight=np.ones(2, complex)),
        TypeError,
        "sample_weight: expected real numbers, got complex128",
    ),
    "class weights too few": (
        sparse(class_weight=[1.0, 2.0]),
        ValueError,
        "class_weight: expected shape (3,) (one for each class), got (2,)",
    ),
    "pos_weight too many": (
        sigmoid(pos_weight=[1.0, 2.0]),
        ValueError,
        "pos_weight: expected a shape that broadcasts to the logits' (2, 3), got (2,)",
    ),
    "denom a vector": (
        sparse(denom=np.ones(2)),
        ValueError,
        "denom: expected shape () (a number or a 0-d array), got (2,)",
    ),
    "denom without mean": (
        sparse(reduce="sum", denom=3),
        ValueError,
        "denom: it replaces the denominator of reduce='mean', but reduce is 'sum'",
    ),
    "invalid unknown": (
        sparse(invalid="clip"),
        ValueError,
        "invalid: expected 'auto', 'raise', 'nan' or 'ignore', got 'clip'",
    ),
    "ignore_index a float": (
        sparse(ignore_index=-100.0),
        TypeError,
        "ignore_index: expected an int or None, got -100.0",
    ),
    "id too large": (
        sparse(y=np.array([0, 3])),
        xent.LabelError,
        "labels: 1 of 2 class ids out of range, the first at [1] is 3; expected 0 to 2",
    ),
    "ids negative": (
        sparse(y=np.array([-1, -2])),
        xent.LabelError,
        "labels: 2 of 2 class ids out of range, the first at [0] is -1; expected 0 to 2",
    ),
    "id out of range beside ignored ones": (
        sparse(y=np.array([-100, 7]), ignore_index=-100),
        xent.LabelError,
        "labels: 1 of 2 class ids out of range, the first at [1] is 7; expected 0 to 2, or ignore_index=-100",
    ),
    "one logit row": (
        sparse(x=X[0], y=np.array(5)),
        xent.LabelError,
        "labels: 1 of 1 class ids out of range, the first is 5; expected 0 to 2",
    ),
    "hidden of integers": (
        linear(x=np.ones((2, 3), np.int32)),
        TypeError,
        f"hidden: {FLOATS}, got int32",
    ),
    "weight of another dtype": (
        linear(weight=np.zeros((4, 3), np.float16)),
        TypeError,
        "weight: expected float32, as hidden is, got float16",
    ),
    "bias of another dtype": (
        linear(bias=np.zeros(4, np.float16)),
        TypeError,
        "bias: expected float32, as hidden is, got float16",
    ),
    "weight [D, C]": (
        linear(weight=W.T),
        ValueError,
        "weight: expected shape (classes, 3) (hidden's features), got (3, 4)",
    ),
    "weight of one class": (
        linear(weight=W[0]),
        ValueError,
        "weight: expected shape (classes, 3) (hidden's features), got (3,)",
    ),
    "weight of no class": (
        linear(weight=W[:0]),
        ValueError,
        "weight: expected at least one class, got shape (0, 3)",
    ),
    "scalar hidden": (
        linear(x=np.float32(1)),
        ValueError,
        "hidden: expected at least one dimension, the features; got a scalar",
    ),
    "hidden without features": (
        linear(x=np.zeros((2, 0), np.float32)),
        ValueError,
        "hidden: expected at least one feature, got shape (2, 0)",
    ),
    "bias too short": (
        linear(bias=np.zeros(3, np.float32)),
        ValueError,
        "bias: expected shape (4,) (one for each class), got (3,)",
    ),
    "labels of another length than hidden": (
        linear(y=Y[:1]),
        ValueError,
        "labels: expected shape (2,) (the logits' without axis), got (1,)",
    ),
    "softcap 0": (linear(softcap=0), ValueError, "softcap: expected a number above 0, got 0.0"),
    "softcap a string": (linear(softcap="30"), TypeError, "softcap: expected a number, got '30'"),
    "softcap of soft labels below 0": (
        softmax(softcap=-1.0),
        ValueError,
        "softcap: expected a number above 0, got -1.0",
    ),
    "logit_scale 0": (sparse(logit_scale=0), ValueError, "logit_scale: expected a number above 0, got 0.0"),
    "logit_scale an array": (
        entropy(logit_scale=[0.5]),
        TypeError,
        "logit_scale: expected a number, got [0.5]",
    ),
    "log-probabilities of float labels": (
        log_prob(y=np.array([0.0, 2.0], np.float32)),
        TypeError,
        "labels: expected class ids of an integer or bool dtype, got float32 (cast ids that are whole numbers; for "
        "distributions over the classes use softmax_ce)",
    ),
    "log-probability of no class": (
        log_prob(y=np.array([0, 3])),
        xent.LabelError,
        "labels: 1 of 2 class ids out of range, the first at [1] is 3; expected 0 to 2",
    ),
    "log-probabilities, reduced": (log_prob(reduce="sum"), TypeError, "reduce: log_prob has no such argument"),
    "entropy of integers": (
        entropy(x=np.ones((2, 3), np.int32)),
        TypeError,
        f"logits: {FLOATS}, got int32 (are logits and labels swapped?)",
    ),
    "entropy of no classes": (
        entropy(x=np.zeros((2, 0), np.float32)),
        ValueError,
        "logits: expected at least one class, got shape (2, 0) with none along axis 1",
    ),
    "entropy's weights [C] for [N]": (
        entropy(sample_weight=np.ones(3)),
        ValueError,
        "sample_weight: expected a scalar, shape (2,) (the loss's), or that with 1s; got (3,)",
    ),
    "entropy under a mask": (
        entropy(mask=[1, 0]),
        TypeError,
        "mask: entropy has no such argument; use sample_weight",
    ),
    "chunk_rows 0": (linear(chunk_rows=0), ValueError, "chunk_rows: expected 1 or more, got 0"),
    "chunk_rows a float": (linear(chunk_rows=8.0), TypeError, "chunk_rows: expected an int or None, got 8.0"),
    "stats a number": (sparse(stats=1), TypeError, "stats: expected True or False, got 1"),
    "id beyond the weight": (
        linear(y=np.array([0, 4])),
        xent.LabelError,
        "labels: 1 of 2 class ids out of range, the first at [1] is 4; expected 0 to 3",
    ),
    "no array": (
        sparse(y=None),
        TypeError,
        "labels: expected an array of NumPy, PyTorch, TensorFlow or JAX, got NoneType",
    ),
}
