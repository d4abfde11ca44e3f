"""xent.compat.transformers beside Transformers' own loss, row by row of its table, and in its Trainer."""

import functools
import importlib.util
import itertools

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")

import xent  # noqa: E402
from cases import traced_by_torch  # noqa: E402
from compat_rows import on_its_page, subjects  # noqa: E402
from xent.backends import cpu  # noqa: E402
from xent.compat import transformers as compat  # noqa: E402

pytestmark = pytest.mark.backend("torch")
a, pad = torch.tensor, torch.nn.functional.pad
needs_transformers = pytest.mark.skipif(
    importlib.util.find_spec("transformers") is None, reason="transformers is not installed"
)
X = (3 * torch.linspace(0, 20, 2 * 5 * 7, dtype=torch.float64).sin()).reshape(2, 5, 7)
Y = a([[0, 6, -100, 3, 1], [2, 2, 5, -100, -100]])
NONE = torch.full_like(Y, -100)


def reference(logits, labels, vocab_size, num_items_in_batch=None, ignore_index=-100, shift_labels=None, **_):
    """Transformers 5.24's, in its own steps, where that is not installed."""
    logits = logits.float() if logits.dtype.itemsize == 2 else logits
    shift_labels = pad(labels, (0, 1), value=ignore_index)[..., 1:] if shift_labels is None else shift_labels
    loss = torch.nn.functional.cross_entropy(
        logits.view(-1, vocab_size),
        shift_labels.reshape(-1),
        ignore_index=ignore_index,
        reduction="mean" if num_items_in_batch is None else "sum",
    )
    return loss if num_items_in_batch is None else loss / num_items_in_batch


ARGUMENTS = [
    {"num_items_in_batch": count, "ignore_index": index, **shifted}
    for count, index, shifted in itertools.product(
        (None, 7, a(7), a(3.5)), (-100, 2), ({}, {"labels": None, "shift_labels": Y.roll(-1)}, {"unknown": 1})
    )
]


def with_gradient(loss, x, **arguments):
    x = x.clone().requires_grad_()
    labels, shifted = arguments.pop("labels", Y), arguments.pop("shift_labels", None)
    if arguments["ignore_index"] != -100:
        labels, shifted = (None if k is None else k.clamp(0) for k in (labels, shifted))
    value = loss(x, labels, 7, shift_labels=shifted, **arguments)
    value.backward()
    return value.detach(), x.grad


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_loss(dtype):
    for arguments in ARGUMENTS:
        got, want = (with_gradient(loss, X.to(dtype), **arguments) for loss in (compat.ForCausalLMLoss, reference))
        torch.testing.assert_close(got, want)


@needs_transformers
def test_reference_is_transformers_own():
    from transformers.loss.loss_utils import ForCausalLMLoss

    for arguments in ARGUMENTS:
        for dtype in (torch.bfloat16, torch.float32):
            got, want = (with_gradient(loss, X.to(dtype), **arguments) for loss in (reference, ForCausalLMLoss))
            torch.testing.assert_close(got, want, rtol=0, atol=0)


@pytest.mark.parametrize("cap", [None, 2.0])
def test_loss_of_hidden_states(cap):
    hidden, weight, bias = X[..., :4], X.reshape(-1)[:28].reshape(7, 4), X[0, 0]
    logits = hidden @ weight.T + bias
    logits = logits if cap is None else cap * torch.tanh(logits / cap)
    for arguments in ARGUMENTS:

        def linear(x, labels, _, **rest):
            return compat.linear_causal_lm_loss(
                x, weight, labels, lm_head_bias=bias, final_logit_softcapping=cap, **rest
            )

        value, _ = with_gradient(linear, hidden, **arguments)
        torch.testing.assert_close(value, with_gradient(reference, logits, **arguments)[0])


def test_loss_of_hidden_states_under_autocast():
    """The head's product has autocast's dtype, as nn.Linear's."""
    hidden, weight = X[..., :4].float(), X.reshape(-1)[:28].reshape(7, 4).float()
    with torch.autocast("cpu", torch.bfloat16):
        got = compat.linear_causal_lm_loss(hidden.bfloat16(), weight, Y)
    exact = reference(hidden.bfloat16().double() @ weight.bfloat16().double().T, Y, 7)
    assert got.item() == pytest.approx(exact.item(), rel=1e-6)


def test_outputs_of_models():
    """Most return a dictionary that may hold other things first, and a tuple with return_dict=False."""
    want = reference(X, Y, 7, 9)
    for outputs in ({"state": None, "logits": X}, (X, None)):
        torch.testing.assert_close(compat.causal_lm_loss(outputs, Y, num_items_in_batch=9), want)


def test_labels_go_to_the_logits_device():
    hidden, weight = (k.to("meta") for k in (X[..., :4], X[0, :, :4]))
    for labels in ({"labels": Y}, {"labels": None, "shift_labels": Y}):
        assert compat.ForCausalLMLoss(X.to("meta"), vocab_size=7, **labels).is_meta
        assert compat.linear_causal_lm_loss(hidden, weight, **labels).is_meta


@pytest.mark.compiled
def test_compiled():
    loss = traced_by_torch(compat.ForCausalLMLoss)
    torch.testing.assert_close(loss(X, Y, 7, a(7)), reference(X, Y, 7, a(7)))


# ---- the table


def logits_of_16_bits():
    if cpu.why_not:
        pytest.skip(f"there are no native kernels: {cpu.why_not}")
    x = X.bfloat16().requires_grad_()
    assert wide_copies(reference, x)
    assert not wide_copies(compat.ForCausalLMLoss, x)
    assert compat.ForCausalLMLoss(x, Y, 7).dtype == torch.float32


def wide_copies(loss, x):
    """How many float32 tensors of the logits' size an evaluation makes, the backward pass included."""
    found = []

    class Mode(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
            made = operation(*args, **(kwargs or {}))
            tensors = [k for k in torch.utils._pytree.tree_leaves(made) if isinstance(k, torch.Tensor)]
            found.extend(k for k in tensors if k.numel() == x.numel() and k.dtype == torch.float32)
            return made

    with Mode():
        torch.autograd.grad(loss(x, Y, 7), x)
    return len(found)


def logits_of_64_bits():
    assert compat.ForCausalLMLoss(X, Y, 7).dtype == torch.float64
    if importlib.util.find_spec("transformers"):
        from transformers.loss.loss_utils import ForCausalLMLoss

        assert ForCausalLMLoss(X, Y, 7).dtype == torch.float32


def nothing_counts():
    for labels, count in ((NONE, None), (NONE, 0), (NONE, a(0))):
        x = X.clone().requires_grad_()
        assert reference(x, labels, 7, count).isnan()
        loss = compat.ForCausalLMLoss(x, labels, 7, count)
        assert loss == 0
        assert not torch.autograd.grad(loss, x)[0].any()


def ignored_rows():
    x = X.clone()
    x[0, 1] = torch.nan  # whose label is the next token's, ignored
    x.requires_grad_()
    assert torch.autograd.grad(reference(x, Y, 7), x)[0][0, 1].isnan().all()
    assert not torch.autograd.grad(compat.ForCausalLMLoss(x, Y, 7), x)[0][0, 1].any()


def out_of_range():
    with pytest.raises(IndexError):
        reference(X, Y + 7, 7)
    with pytest.raises(xent.LabelError):
        compat.ForCausalLMLoss(X, Y + 7, 7)


def narrow_labels():
    for dtype in (torch.int32, torch.int16):
        with pytest.raises(RuntimeError, match="Long or Byte"):
            reference(X, Y.to(dtype), 7)
        assert compat.ForCausalLMLoss(X, Y.to(dtype), 7) == compat.ForCausalLMLoss(X, Y, 7)


def vocabulary():
    with pytest.raises(RuntimeError):
        reference(X, Y, 6)
    assert reference(X, None, 14, shift_labels=torch.zeros(5, dtype=torch.long)).isfinite()
    for size in (6, 14):
        with pytest.raises(ValueError, match=r"^vocab_size: expected the logits' 7, got "):
            compat.ForCausalLMLoss(X, Y, size)


def shifted_shape():
    flat = Y.reshape(-1)
    assert reference(X, None, 7, shift_labels=flat).isfinite()
    with pytest.raises(
        ValueError, match=r"^shift_labels: expected shape \(2, 5\) \(the logits' without the vocabulary\), got \(10,\)$"
    ):
        compat.ForCausalLMLoss(X, None, 7, shift_labels=flat)


def count_of_each_device():
    count = a([[7], [7]])
    assert reference(X, Y, 7, count).shape == count.shape
    with pytest.raises(ValueError, match=r"^num_items_in_batch: expected shape \(\) "):
        compat.ForCausalLMLoss(X, Y, 7, count)


CHECKS = {
    "16-bit logits": logits_of_16_bits,
    "float64 logits": logits_of_64_bits,
    "no label that counts, or num_items_in_batch=0": nothing_counts,
    "NaN in the logits of ignored labels": ignored_rows,
    "labels out of range": out_of_range,
    "labels of another dtype than int64 and uint8": narrow_labels,
    "vocab_size that is not the number of logits": vocabulary,
    "shift_labels of another shape than the logits' rows": shifted_shape,
    "num_items_in_batch that is no scalar, as in DataParallel": count_of_each_device,
}


def test_every_row_has_its_check():
    assert subjects(compat) == list(CHECKS)


def test_the_page_has_the_table():
    assert on_its_page(compat, "transformers.md")


@pytest.mark.parametrize("row", CHECKS)
def test_row(row):
    CHECKS[row]()


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (
            lambda: compat.ForCausalLMLoss(X, Y[:1], 7),
            "labels: expected shape (2, 5) (the logits' without the vocabulary",
        ),
        (
            lambda: compat.linear_causal_lm_loss(X, X[0, :, :7], Y[:1] % 5),
            "labels: expected shape (2, 5) (the logits' without",
        ),
        (
            lambda: compat.linear_causal_lm_loss(X, X[0, :, :3], Y),
            "lm_head_weight: expected shape (classes, 7) (hidden_st",
        ),
        (lambda: compat.linear_causal_lm_loss(Y, X[0], Y), "hidden_states: expected 'float16', 'bfloat16', 'float32'"),
        (
            lambda: compat.linear_causal_lm_loss(X, X[0], Y, final_logit_softcapping=-1.0),
            "final_logit_softcapping: expected a number from 1e-15 to 1e+15, got -1.0",
        ),
        (
            lambda: compat.linear_causal_lm_loss(X, X[0], None, shift_labels=Y + 7),
            "shift_labels: 10 of 10 class ids out of range",
        ),
    ],
)
def test_errors_have_transformers_names(call, words):
    with pytest.raises((TypeError, ValueError)) as caught:
        call()
    assert str(caught.value).startswith(words)


def test_labels_are_asked_for():
    with pytest.raises(TypeError, match=r"^labels: expected a tensor where shift_labels is not given, got None"):
        compat.ForCausalLMLoss(X, None, 7)


# ---- in Transformers


def trained(folder, prepare=lambda model: {}):
    """The losses of a tiny GPT-2's steps, each accumulated over three batches of unequal numbers of labels."""
    from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments, set_seed

    set_seed(0)
    config = GPT2Config(vocab_size=50, n_positions=16, n_embd=32, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=0)
    model = GPT2LMHeadModel(config)
    data = []
    for n in range(32):
        ids = torch.randint(0, 50, (16,))
        data.append({"input_ids": ids, "labels": torch.where(torch.arange(16) < 2 * (n % 7), -100, ids)})
    arguments = TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=2,
        gradient_accumulation_steps=3,
        max_steps=6,
        learning_rate=1e-2,
        logging_steps=1,
        report_to=[],
        save_strategy="no",
        disable_tqdm=True,
        use_cpu=True,
    )
    trainer = Trainer(model=model, args=arguments, train_dataset=data, **prepare(model))
    trainer.train()
    return [step["loss"] for step in trainer.state.log_history if "loss" in step]


def as_loss_function(model):
    model.loss_function = compat.ForCausalLMLoss
    return {}


def from_hidden_states(model):
    """As docs/migrating/transformers.md has it."""
    model.forward = functools.partial(model.forward, output_hidden_states=True, logits_to_keep=1)

    def loss(outputs, labels, num_items_in_batch=None):
        weight = model.get_output_embeddings().weight
        return compat.linear_causal_lm_loss(
            outputs.hidden_states[-1], weight, labels, num_items_in_batch=num_items_in_batch
        )

    return {"compute_loss_func": loss}


WAYS = {
    "model.loss_function": as_loss_function,
    "compute_loss_func": lambda model: {"compute_loss_func": compat.causal_lm_loss},
    "hidden states": from_hidden_states,
}


@pytest.fixture(scope="module")
def own_history(tmp_path_factory):
    return trained(tmp_path_factory.mktemp("own"))


@needs_transformers
@pytest.mark.parametrize("way", WAYS)
def test_trainer_has_the_same_history(way, own_history, tmp_path):
    losses = trained(tmp_path, WAYS[way])
    assert len(losses) == 6
    assert losses == pytest.approx(own_history, rel=1e-5)
    assert losses[-1] < losses[0]
