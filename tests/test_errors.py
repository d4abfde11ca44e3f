"""The same bad call gives the same exception and the same sentence on every backend."""

import numpy as np
import pytest
import xent
from xent import _dispatch
from xent.verify import frameworks

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
        "labels: expected class ids of an integer or bool dtype, got float32 (for distributions over the classes use "
        "softmax_ce)",
    ),
    "labels [N, 1] for [N]": (
        sparse(y=Y[:, None]),
        ValueError,
        "labels: expected shape (2,) (the logits' without axis), got (2, 1)",
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


def test_an_array_of_no_framework():
    with pytest.raises(TypeError, match=r"^logits: expected an array of NumPy, .* got dict$"):
        xent.sparse_ce({}, [0])


@pytest.mark.parametrize("derive", [False, True], ids=["loss", "value_and_grad"])
@pytest.mark.parametrize("name", BAD)
def test_sentence(live, name, derive):
    (loss, x, y, options), kind, sentence = BAD[name]
    missing = loss == "linear_ce" and _dispatch.load(live.name).linear is None
    if missing:
        kind, sentence = TypeError, f"hidden: the adapter of {live.name} brings no linear_ce; see docs/backends.md"
    arrays = [live.array(x, None, "cpu"), y if y is None else live.array(y, None, "cpu")]
    options = {**options}
    if loss == "linear_ce" and not missing:  # it may have no such dtype either
        options |= {name: live.array(options[name], None, "cpu") for name in ("weight", "bias") if name in options}
    if loss == "linear_ce":
        arrays.insert(1, options.pop("weight"))
    function = xent.value_and_grad(getattr(xent, loss)) if derive else getattr(xent, loss)
    with pytest.raises(kind) as caught:
        function(*arrays, **options)
    assert type(caught.value) is kind
    assert str(caught.value) == sentence


def test_foreign_labels(live):
    """Another framework's array beside the logits; NumPy's are moved."""
    torch = pytest.importorskip("torch", reason="torch is not installed")
    labels = torch.tensor([0, 2])
    if live.name == "torch":
        live = frameworks.load("numpy")
    with pytest.raises(TypeError) as caught:
        xent.sparse_ce(live.array(X, None, "cpu"), labels)
    how = "convert it, for example with tensor.detach().cpu().numpy()"
    assert str(caught.value) == f"labels: a torch array beside {live.name} arrays; {how}"


@pytest.mark.backend("tensorflow")
@pytest.mark.parametrize(
    ("kind", "how"),
    [
        ("SparseTensor", "tf.sparse.to_dense(tensor)"),
        ("RaggedTensor", "tensor.to_tensor(), with weights of 0 for the padding"),
        ("IndexedSlices", "tf.convert_to_tensor(slices)"),
    ],
)
def test_tensorflows_tensors_of_other_layouts(kind, how):
    tf = pytest.importorskip("tensorflow", reason="tensorflow is not installed")
    x = {
        "SparseTensor": tf.sparse.from_dense(X),
        "RaggedTensor": tf.RaggedTensor.from_tensor(X),
        "IndexedSlices": tf.IndexedSlices(tf.constant(X), tf.constant([0, 1])),
    }[kind]
    calls = {
        "logits": lambda: xent.sparse_ce(x, Y),
        "labels": lambda: xent.softmax_ce(tf.constant(X), x),
        "sample_weight": lambda: xent.sigmoid_ce(tf.constant(X), T, sample_weight=x),
        "hidden": lambda: xent.value_and_grad(xent.linear_ce)(x, W, Y),
        "weight": lambda: tf.function(lambda h: xent.linear_ce(h, x, Y))(tf.constant(X)),
    }
    for argument, call in calls.items():
        with pytest.raises(TypeError) as caught:
            call()
        sentence = f"{argument}: expected a dense array, got tensorflow's {kind}; convert it, for example with {how}"
        assert sentence in str(caught.value)  # AutoGraph puts the user's lines before it


def test_masked_array():
    with pytest.raises(TypeError, match="MaskedArray's mask would be lost"):
        xent.sparse_ce(np.ma.masked_array(X), Y)


@pytest.mark.parametrize("loss", [None, 3])
def test_value_and_grad_wants_a_function(loss):
    with pytest.raises(TypeError, match=r"^loss: expected a function of logits and labels, got"):
        xent.value_and_grad(loss)


def test_value_and_grad_of_anything_on_numpy():
    with pytest.raises(TypeError, match=r"^loss: numpy cannot differentiate .* sparse_ce, .*functools.partial"):
        xent.value_and_grad(lambda x, y: xent.sparse_ce(x, y))(X, Y)


@pytest.mark.backend("torch")
@pytest.mark.filterwarnings("ignore:The PyTorch API of MaskedTensors", "ignore:The PyTorch API of nested tensors")
@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support")
@pytest.mark.parametrize(
    ("kind", "layout", "how"),
    [
        ("coo", "sparse", "tensor.to_dense()"),
        ("csr", "sparse", "tensor.to_dense()"),
        ("nested", "nested", "tensor.to_padded_tensor(0.0), with weights of 0 for the padding"),
        ("jagged", "nested", "tensor.to_padded_tensor(0.0), with weights of 0 for the padding"),
        ("masked", "masked", "tensor.get_data(), with weights of 0 for what is masked"),
    ],
)
def test_torchs_tensors_of_other_layouts(kind, layout, how):
    torch = pytest.importorskip("torch", reason="torch is not installed")
    dense = torch.ones(2, 3)
    x = {
        "coo": dense.to_sparse,
        "csr": dense.to_sparse_csr,
        "nested": lambda: torch.nested.nested_tensor([dense[0], dense[1]]),
        "jagged": lambda: torch.nested.nested_tensor([dense[0], dense[1]], layout=torch.jagged),
        "masked": lambda: torch.masked.masked_tensor(dense, dense > 0),
    }[kind]()
    calls = {
        "logits": lambda: xent.sparse_ce(x, Y),
        "labels": lambda: xent.softmax_ce(dense, x),
        "sample_weight": lambda: xent.sigmoid_ce(dense, T, sample_weight=x),
        "hidden": lambda: xent.value_and_grad(xent.linear_ce)(x, W, Y),
        "weight": lambda: xent.linear_ce(dense, x, Y),
    }
    for argument, call in calls.items():
        with pytest.raises(TypeError) as caught:
            call()
        sentence = f"{argument}: expected a dense array, got a {layout} tensor; convert it, for example with {how}"
        assert str(caught.value) == sentence


@pytest.mark.parametrize(("loss", "name"), [("sparse_ce", "logits"), ("linear_ce", "hidden")])
def test_value_and_grad_of_nothing(loss, name):
    with pytest.raises(TypeError, match=f"^{name}: expected an array, as the first argument or by name; got none$"):
        xent.value_and_grad(getattr(xent, loss))(labels=Y)


@pytest.mark.parametrize(("dtype", "classes"), [("int8", 129), ("int8", 300), ("int16", 40_000), ("int32", 300)])
def test_negative_ids_that_are_classes_as_unsigned_ones(live, dtype, classes):
    """-7 of 8 bits is 249 without its sign."""
    x = live.array(np.zeros((2, classes)), "float32", "cpu")
    for labels in (np.array([0, -7], dtype), live.array(np.array([0, -7]), dtype, "cpu")):
        with pytest.raises(xent.LabelError, match=r"1 of 2 class ids out of range, the first at \[1\] is -7"):
            xent.sparse_ce(x, labels)
