"""The same bad call gives the same exception and the same sentence on every backend."""

import numpy as np
import pytest
import xent
from bad_calls import BAD, T, W, X, Y
from xent import _dispatch
from xent.verify import frameworks


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
    arrays = arrays[:1] if loss == "entropy" else arrays
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


def assert_only_dense_arrays(x, dense, sentence):
    """x, in the place of each argument."""
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
        assert str(caught.value) == f"{argument}: expected a dense array, {sentence}"


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
    assert_only_dense_arrays(x, tf.constant(X), f"got tensorflow's {kind}; convert it, for example with {how}")
    with pytest.raises(TypeError, match="weight: expected a dense array, got tensorflow's"):
        tf.function(lambda h: xent.linear_ce(h, x, Y))(tf.constant(X))


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
    assert_only_dense_arrays(x, dense, f"got a {layout} tensor; convert it, for example with {how}")


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
