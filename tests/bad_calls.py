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
FACTOR = "expected a number from 1e-15 to 1e+15"
FLOATS = "expected 'float16', 'bfloat16', 'float32' or 'float64'"

TYPE_ERRORS = {
    "swapped": (sparse(np.array([0, 2], np.int32), X), f"logits: {FLOATS}, got int32 (are logits and labels swapped?)"),
    "integer logits": (
        softmax(np.ones((2, 3), np.int32)),
        f"logits: {FLOATS}, got int32 (are logits and labels swapped?)",
    ),
    "float labels": (
        sparse(y=np.array([0.0, 2.0], np.float32)),
        "labels: expected class ids of an integer or bool dtype, got float32 (cast ids that are whole numbers; "
        "for distributions over the classes use softmax_ce)",
    ),
    "reduction, as in PyTorch": (sparse(reduction="sum"), "reduction: sparse_ce has no such argument; use reduce"),
    "weight, as in PyTorch": (
        softmax(weight=[1, 2, 3]),
        "weight: softmax_ce has no such argument; use class_weight or sample_weight",
    ),
    "from_logits, as in Keras": (
        sigmoid(from_logits=True),
        "from_logits: sigmoid_ce has no such argument; logits are what it takes",
    ),
    "no soft labels": (softmax(y=None), "labels: expected an array of NumPy, PyTorch, TensorFlow or JAX, got NoneType"),
    "no binary labels": (
        sigmoid(y=None),
        "labels: expected an array of NumPy, PyTorch, TensorFlow or JAX, got NoneType",
    ),
    "no ids": (sparse(y=None), "labels: expected an array of NumPy, PyTorch, TensorFlow or JAX, got NoneType"),
    "weight, where only positives have one": (
        sigmoid(class_weights=[1, 2, 3]),
        "class_weights: sigmoid_ce has no such argument; use pos_weight",
    ),
    "an axis where there is none": (sigmoid(dim=1), "dim: sigmoid_ce has no such argument"),
    "an argument of no library": (sigmoid(colour="red"), "colour: sigmoid_ce has no such argument"),
    "axis no int": (sparse(axis=0.5), "axis: expected an int, got 0.5"),
    "smoothing a string": (softmax(label_smoothing="0.1"), "label_smoothing: expected a number, got '0.1'"),
    "weights of strings": (
        sparse(sample_weight=np.array(["a", "b"])),
        "sample_weight: expected real numbers, got str32",
    ),
    "complex weights": (
        sparse(sample_weight=np.ones(2, complex)),
        "sample_weight: expected real numbers, got complex128",
    ),
    "ignore_index a float": (sparse(ignore_index=-100.0), "ignore_index: expected an int or None, got -100.0"),
    "hidden of integers": (linear(x=np.ones((2, 3), np.int32)), f"hidden: {FLOATS}, got int32"),
    "weight of another dtype": (
        linear(weight=np.zeros((4, 3), np.float16)),
        "weight: expected float32, as hidden is, got float16",
    ),
    "bias of another dtype": (
        linear(bias=np.zeros(4, np.float16)),
        "bias: expected float32, as hidden is, got float16",
    ),
    "softcap a string": (linear(softcap="30"), "softcap: expected a number, got '30'"),
    "chunk_rows a float": (linear(chunk_rows=8.0), "chunk_rows: expected an int or None, got 8.0"),
    "stats a number": (sparse(stats=1), "stats: expected True or False, got 1"),
    "logit_scale an array": (
        entropy(logit_scale=[0.5]),
        "logit_scale: expected a number, got [0.5]",
    ),
    "log-probabilities of float labels": (
        log_prob(y=np.array([0.0, 2.0], np.float32)),
        "labels: expected class ids of an integer or bool dtype, got float32 (cast ids that are whole numbers; "
        "for distributions over the classes use softmax_ce)",
    ),
    "log-probabilities, reduced": (log_prob(reduce="sum"), "reduce: log_prob has no such argument"),
    "entropy of integers": (
        entropy(x=np.ones((2, 3), np.int32)),
        f"logits: {FLOATS}, got int32 (are logits and labels swapped?)",
    ),
    "entropy under a mask": (
        entropy(mask=[1, 0]),
        "mask: entropy has no such argument; use sample_weight",
    ),
}
VALUE_ERRORS = {
    "labels [N, 1] for [N]": (
        sparse(y=Y[:, None]),
        "labels: expected shape (2,) (the logits' without axis), got (2, 1)",
    ),
    "ids along the logits' last axis": (
        sparse(y=np.zeros(3, int)),
        "labels: expected shape (2,) (the logits' without axis), got (3,); they fit axis=0",
    ),
    "labels one short": (sparse(y=Y[:1]), "labels: expected shape (2,) (the logits' without axis), got (1,)"),
    "soft labels (1, C) for (N, C)": (softmax(y=T[:1]), "labels: expected shape (2, 3) (the logits'), got (1, 3)"),
    "sigmoid [N] for [N, C]": (sigmoid(y=T[0]), "labels: expected shape (2, 3) (the logits'), got (3,)"),
    "scalar logits": (
        sparse(x=np.float32(1), y=np.array(0)),
        "logits: expected at least one dimension, the classes; got a scalar",
    ),
    "no classes": (
        sparse(x=np.zeros((2, 0), np.float32)),
        "logits: expected at least one class, got shape (2, 0) with none along axis 1",
    ),
    "axis too large": (sparse(axis=2), "axis: expected -2 to 1 for logits of shape (2, 3), got 2"),
    "unknown reduce": (sparse(reduce="avg"), f"reduce: {REDUCE}, got 'avg'"),
    "reduce=None": (sigmoid(reduce=None), f"reduce: {REDUCE}, got None"),
    "smoothing 1.5": (sparse(label_smoothing=1.5), "label_smoothing: expected a number from 0 to 1, got 1.5"),
    "smoothing NaN": (sigmoid(label_smoothing=float("nan")), "label_smoothing: expected a number from 0 to 1, got nan"),
    "z_loss infinite": (sparse(z_loss=float("inf")), "z_loss: expected a number from -1e+15 to 1e+15, got inf"),
    "weights [C] for [N]": (
        sparse(sample_weight=np.ones(3)),
        "sample_weight: expected a scalar, shape (2,) (the loss's), or that with 1s; got (3,)",
    ),
    "class weights too few": (
        sparse(class_weight=[1.0, 2.0]),
        "class_weight: expected shape (3,) (one for each class), got (2,)",
    ),
    "pos_weight too many": (
        sigmoid(pos_weight=[1.0, 2.0]),
        "pos_weight: expected a shape that broadcasts to the logits' (2, 3), got (2,)",
    ),
    "denom a vector": (sparse(denom=np.ones(2)), "denom: expected shape () (a number or a 0-d array), got (2,)"),
    "denom without mean": (
        sparse(reduce="sum", denom=3),
        "denom: it replaces the denominator of reduce='mean', but reduce is 'sum'",
    ),
    "invalid unknown": (sparse(invalid="clip"), "invalid: expected 'auto', 'raise', 'nan' or 'ignore', got 'clip'"),
    "weight [D, C]": (linear(weight=W.T), "weight: expected shape (classes, 3) (hidden's features), got (3, 4)"),
    "weight of one class": (linear(weight=W[0]), "weight: expected shape (classes, 3) (hidden's features), got (3,)"),
    "weight of no class": (linear(weight=W[:0]), "weight: expected at least one class, got shape (0, 3)"),
    "scalar hidden": (linear(x=np.float32(1)), "hidden: expected at least one dimension, the features; got a scalar"),
    "hidden without features": (
        linear(x=np.zeros((2, 0), np.float32)),
        "hidden: expected at least one feature, got shape (2, 0)",
    ),
    "bias too short": (
        linear(bias=np.zeros(3, np.float32)),
        "bias: expected shape (4,) (one for each class), got (3,)",
    ),
    "labels of another length than hidden": (
        linear(y=Y[:1]),
        "labels: expected shape (2,) (the logits' without axis), got (1,)",
    ),
    "softcap 0": (linear(softcap=0), f"softcap: {FACTOR}, got 0"),
    "chunk_rows 0": (linear(chunk_rows=0), "chunk_rows: expected 1 or more, got 0"),
    "softcap of soft labels below 0": (
        softmax(softcap=-1.0),
        f"softcap: {FACTOR}, got -1.0",
    ),
    "logit_scale 0": (sparse(logit_scale=0), f"logit_scale: {FACTOR}, got 0"),
    "softcap that float32 does not hold": (linear(softcap=1e50), f"softcap: {FACTOR}, got 1e+50"),
    "softcap of infinity in float16": (sparse(softcap=np.float16(np.inf)), f"softcap: {FACTOR}, got inf"),
    "softcap that float32 takes for 0": (softmax(softcap=1e-50), f"softcap: {FACTOR}, got 1e-50"),
    "softcap whose reciprocal float32 does not hold": (entropy(softcap=3e38), f"softcap: {FACTOR}, got 3e+38"),
    "logit_scale that float32 does not hold": (log_prob(logit_scale=1e50), f"logit_scale: {FACTOR}, got 1e+50"),
    "logit_scale that float32 takes for 0": (sparse(logit_scale=1e-50), f"logit_scale: {FACTOR}, got 1e-50"),
    "z_loss that float32 does not hold": (
        linear(z_loss=-1e50),
        "z_loss: expected a number from -1e+15 to 1e+15, got -1e+50",
    ),
    "entropy of no classes": (
        entropy(x=np.zeros((2, 0), np.float32)),
        "logits: expected at least one class, got shape (2, 0) with none along axis 1",
    ),
    "entropy's weights [C] for [N]": (
        entropy(sample_weight=np.ones(3)),
        "sample_weight: expected a scalar, shape (2,) (the loss's), or that with 1s; got (3,)",
    ),
}
LABEL_ERRORS = {
    "-100 without ignore_index": (
        sparse(y=np.array([0, -100])),
        "labels: 1 of 2 class ids out of range, the first at [1] is -100; expected 0 to 2; "
        "ignore_index=-100 leaves it out",
    ),
    "id too large": (
        sparse(y=np.array([0, 3])),
        "labels: 1 of 2 class ids out of range, the first at [1] is 3; expected 0 to 2",
    ),
    "ids negative": (
        sparse(y=np.array([-1, -2])),
        "labels: 2 of 2 class ids out of range, the first at [0] is -1; expected 0 to 2",
    ),
    "id out of range beside ignored ones": (
        sparse(y=np.array([-100, 7]), ignore_index=-100),
        "labels: 1 of 2 class ids out of range, the first at [1] is 7; expected 0 to 2, or ignore_index=-100",
    ),
    "one logit row": (
        sparse(x=X[0], y=np.array(5)),
        "labels: 1 of 1 class ids out of range, the first is 5; expected 0 to 2",
    ),
    "id beyond the weight": (
        linear(y=np.array([0, 4])),
        "labels: 1 of 2 class ids out of range, the first at [1] is 4; expected 0 to 3",
    ),
    "log-probability of no class": (
        log_prob(y=np.array([0, 3])),
        "labels: 1 of 2 class ids out of range, the first at [1] is 3; expected 0 to 2",
    ),
}
BAD = {
    name: (call, error, sentence)
    for error, calls in ((TypeError, TYPE_ERRORS), (ValueError, VALUE_ERRORS), (xent.LabelError, LABEL_ERRORS))
    for name, (call, sentence) in calls.items()
}
