"""xent.compat.torch's modules in PyTorch's place, and its functions under PyTorch's transforms and compiler."""

import contextlib
import copy
import doctest
import importlib.util
import io
import pickle
import re

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")

from cases import traced_by_torch  # noqa: E402
from xent.compat import torch as compat  # noqa: E402

needs_lightning = pytest.mark.skipif(importlib.util.find_spec("lightning") is None, reason="lightning is not installed")
pytestmark = pytest.mark.backend("torch")
nn, a = torch.nn, torch.tensor
X = torch.linspace(-2, 3, 12, dtype=torch.float64).reshape(4, 3).sin()
Y, T, W = a([0, 2, -100, 1]), (3 * X).softmax(1), a([1.0, 2.0, 0.5], dtype=torch.float64)
HEAD = {"in_features": 3, "num_classes": 5, "dtype": torch.float64}

MODULES = {
    "CrossEntropyLoss": ({}, {"weight": W, "ignore_index": 1, "reduction": "sum", "label_smoothing": 0.1}),
    "BCEWithLogitsLoss": ({}, {"weight": W, "pos_weight": 2 * W, "reduction": "none"}),
    "LinearCrossEntropyLoss": (
        HEAD,
        HEAD | {"bias": True, "weight": torch.arange(5.0, dtype=torch.float64) + 1, "ignore_index": 1},
        HEAD | {"bias": True, "out_features": (2,), "label_smoothing": 0.1, "reduction": "sum"},
    ),
}
EACH = [pytest.param(name, options, id=f"{name}-{i}") for name, all in MODULES.items() for i, options in enumerate(all)]


def target_of(name, options):
    if name == "BCEWithLogitsLoss":
        return T
    ids = Y.clamp(0) if "ignore_index" in options else Y
    return torch.stack([ids, ids], 1) if "out_features" in options else ids


def pair(name, options):
    torch.manual_seed(0)
    theirs = getattr(nn, name)(**options)
    torch.manual_seed(0)
    return getattr(compat, name)(**options), theirs


@pytest.mark.parametrize(("name", "options"), EACH)
def test_modules(name, options):
    ours, theirs = pair(name, options)
    target = target_of(name, options)
    assert repr(ours) == repr(theirs)
    assert isinstance(ours, getattr(nn, name))
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    torch.testing.assert_close(ours(X, target), theirs(X, target))
    torch.testing.assert_close(copy.deepcopy(ours)(X, target), theirs(X, target))
    torch.testing.assert_close(pickle.loads(pickle.dumps(ours))(X, target), theirs(X, target))


@pytest.mark.parametrize(("name", "options"), EACH)
def test_modules_load_what_pytorch_saved(name, options):
    """A file of a model whose loss has other numbers than the one that loads it."""
    target = target_of(name, options)
    saved = nn.Sequential(getattr(nn, name)(**options))
    file = io.BytesIO()
    torch.save(saved.state_dict(), file)
    ones = {key: torch.ones_like(k) for key, k in options.items() if isinstance(k, torch.Tensor)}
    loading = nn.Sequential(getattr(compat, name)(**{**options, **ones}))
    file.seek(0)
    assert str(loading.load_state_dict(torch.load(file))) == "<All keys matched successfully>"
    torch.testing.assert_close(loading[0](X, target), saved[0](X, target))


EXAMPLES = [
    (name, example) for name in MODULES for example in re.split(r"(?m)^ *Examples?:+\n", getattr(nn, name).__doc__)[1:]
]


@pytest.mark.parametrize(("name", "example"), EXAMPLES)
def test_examples_of_pytorch_s_documentation(name, example):
    """Only the import of `nn` changes; what they print, their losses and their gradients do not."""
    examples = doctest.DocTestParser().get_examples(example.replace("torch.nn.", "nn."))
    assert any(name in part.source for part in examples)
    ours, theirs = (executed(examples, library) for library in (compat, nn))
    assert len(ours) == len(theirs) > 1
    for got, want in zip(ours, theirs, strict=True):
        torch.testing.assert_close(got, want)


def executed(examples, library):
    """Every number that is shown, and in the end every tensor by name and its gradient."""
    names, found = {"torch": torch, "nn": library}, []
    torch.manual_seed(0)
    for part in examples:
        code = compile(part.source, "an example", "single")
        with contextlib.redirect_stdout(io.StringIO()) as shown:
            exec(code, names)
        found += [torch.tensor([float(k) for k in re.findall(r"-?\d+\.\d*", shown.getvalue())])]
    tensors = [k for _, k in sorted(names.items()) if isinstance(k, torch.Tensor)]
    return [*found, *tensors, *(k.grad for k in tensors if k.is_leaf and k.grad is not None)]


# ---- transforms


V, K = X.roll(1)[:3], X[:, None].expand(-1, 2, -1)
CALLS = {
    "ids": lambda x, library: library.cross_entropy(x, Y, W, label_smoothing=0.1),
    "probabilities": lambda x, library: library.cross_entropy(x, T, W, label_smoothing=0.1),
    "sigmoid": lambda x, library: library.binary_cross_entropy_with_logits(x, T, W, pos_weight=2 * W),
    "linear": lambda x, library: library.linear_cross_entropy(x, V, Y, weight=W, label_smoothing=0.1),
    "linear, K": lambda x, library: library.linear_cross_entropy(x, K, torch.stack([Y, Y], 1)),
}
each_call = pytest.mark.parametrize("call", CALLS)


@each_call
@pytest.mark.parametrize("transform", ["grad", "jacfwd", "hessian", "vmap"])
def test_transforms(transform, call):
    def transformed(library):
        def loss(x):
            return CALLS[call](x, library)

        if transform == "vmap":
            return torch.func.vmap(torch.func.grad(loss))(torch.stack([X, X.cos(), 2 * X]))
        return getattr(torch.func, transform)(loss)(X)

    torch.testing.assert_close(transformed(compat), transformed(nn.functional), rtol=1e-10, atol=1e-12)


@pytest.mark.compiled
@each_call
def test_compiled(call):
    function = traced_by_torch(lambda x: CALLS[call](x, compat))
    x, y = (X.clone().requires_grad_() for _ in range(2))
    got, want = function(x), CALLS[call](y, nn.functional)
    torch.testing.assert_close(got, want)
    got.backward()
    want.backward()
    torch.testing.assert_close(x.grad, y.grad)


@pytest.mark.compiled
def test_compiled_modules():
    torch.manual_seed(0)
    loss = traced_by_torch(compat.LinearCrossEntropyLoss(**HEAD, bias=True))
    torch.manual_seed(0)
    want = nn.LinearCrossEntropyLoss(**HEAD, bias=True)(X, Y)
    torch.testing.assert_close(loss(X, Y), want)


@pytest.mark.compiled
@pytest.mark.parametrize(("size_average", "reduce"), [(False, None), (None, False), (True, True), (False, True)])
def test_compiled_deprecated_arguments(size_average, reduce):
    loss = traced_by_torch(compat.cross_entropy)
    with pytest.warns(UserWarning, match="size_average and reduce args will be deprecated"):
        want = nn.functional.cross_entropy(X, Y, size_average=size_average, reduce=reduce)
    torch.testing.assert_close(loss(X, Y, size_average=size_average, reduce=reduce), want)


@pytest.mark.compiled
def test_compiled_ids_out_of_range_are_nan():
    """The table's row; eager ones raise."""
    loss = traced_by_torch(compat.cross_entropy)
    assert loss(X, a([0, 3, 0, 0]), reduction="none").isnan().tolist() == [False, True, False, False]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast(dtype):
    """As in PyTorch: a linear layer's operands are cast, but for float64; the loss is float32."""
    x, v = X.float(), V.float()
    with torch.autocast("cpu", dtype):
        got, want = compat.linear_cross_entropy(x, v, Y), nn.functional.linear_cross_entropy(x, v, Y)
        mixed = compat.linear_cross_entropy(x.to(dtype), v, Y)
        wide = compat.linear_cross_entropy(X, V, Y)
    assert got.dtype == want.dtype == torch.float32
    exact = compat.linear_cross_entropy(x.to(dtype).double(), v.to(dtype).double(), Y)
    assert got.item() == mixed.item() == pytest.approx(exact.item(), rel=1e-6)
    assert wide.item() == pytest.approx(nn.functional.linear_cross_entropy(X, V, Y).item(), rel=1e-14)


@needs_lightning
@pytest.mark.filterwarnings("ignore:`isinstance.treespec, LeafSpec.` is deprecated:FutureWarning")  # Lightning's
def test_lightning_in_bf16_mixed():
    """The losses of every step are those of torch's module."""
    theirs, ours = (trained_by_lightning(library.CrossEntropyLoss) for library in (torch.nn, compat))
    assert len(ours) == 8
    assert ours == pytest.approx(theirs, rel=1e-5)
    assert ours[-1] < ours[0]


def trained_by_lightning(loss):
    import lightning

    losses = []

    class Classifier(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.layer, self.loss = torch.nn.Linear(20, 5), loss(label_smoothing=0.1)

        def training_step(self, batch, _):
            inputs, ids = batch
            logits = self.layer(inputs)
            assert logits.dtype == torch.bfloat16
            value = self.loss(logits, ids)
            losses.append(value.item())
            return value

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.5)

    torch.manual_seed(0)
    inputs = torch.randn(256, 20)
    data = torch.utils.data.TensorDataset(inputs, inputs[:, :5].argmax(1))
    trainer = lightning.Trainer(
        max_epochs=2,
        accelerator="cpu",
        precision="bf16-mixed",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(Classifier(), torch.utils.data.DataLoader(data, batch_size=64))
    return losses
