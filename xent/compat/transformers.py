"""Hugging Face Transformers' loss of causal language models, computed by xent.

`model.loss_function = ForCausalLMLoss`, or `Trainer(model, compute_loss_func=causal_lm_loss)`. Arguments and meaning
are Transformers': each position's label is the next token. `linear_causal_lm_loss` starts from the hidden states and
never holds all logits. Where Transformers and xent disagree:

| subject | Transformers | xent.compat.transformers |
| --- | --- | --- |
| 16-bit logits | copied to float32 | read as they are; the loss is float32 |
| float64 logits | rounded to float32 | stay float64 |
| no label that counts, or num_items_in_batch=0 | NaN | 0, and the gradient 0 |
| NaN in the logits of ignored labels | gradient NaN | exactly 0 |
| labels out of range | IndexError; on CUDA an assertion | `xent.LabelError`; on CUDA and compiled the loss is NaN |
| labels of another dtype than int64 and uint8 | RuntimeError | any integer dtype that holds ignore_index |
| vocab_size that is not the number of logits | RuntimeError, or logits that are cut anew | ValueError |
| shift_labels of another shape than the logits' rows | any with as many elements | ValueError |
| num_items_in_batch that is no scalar, as in DataParallel | a loss of its shape | ValueError |
"""

from __future__ import annotations

from typing import Any

import xent
from torch import Tensor
from xent.compat._errors import reworded
from xent.compat.torch import IGNORE_INDEX, in_autocast_dtype

__all__ = ["ForCausalLMLoss", "causal_lm_loss", "linear_causal_lm_loss"]
# What errors say in the place of xent's own words.
WORDS = {
    "denom": "num_items_in_batch",
    "hidden's": "hidden_states'",
    "hidden": "hidden_states",
    "weight": "lm_head_weight",
    "bias": "lm_head_bias",
    "softcap": "final_logit_softcapping",
    "without axis": "without the vocabulary",
    r"; they fit axis=(?:\d+)": "",
    "sparse_ce": "ForCausalLMLoss",
}


def ForCausalLMLoss(
    logits: Tensor,
    labels: Tensor | None,
    vocab_size: int,
    num_items_in_batch: Tensor | int | None = None,
    ignore_index: int = IGNORE_INDEX,
    shift_labels: Tensor | None = None,
    **_: Any,
) -> Tensor:
    """`transformers.loss.loss_utils.ForCausalLMLoss`, which models call as `self.loss_function`.

    Args:
        logits: [batch, length, vocab_size].
        labels: [batch, length]: token ids, `ignore_index` where there is nothing to predict.
        vocab_size: the number of logits.
        num_items_in_batch: what the sum is divided by; None: the number of labels that count.
        ignore_index: the label that leaves its position out.
        shift_labels: labels that are shifted already, in place of `labels`.
        _: what else a model passes on, which this loss has no use for.
    """
    if logits.shape[-1] != vocab_size:
        raise ValueError(f"vocab_size: expected the logits' {logits.shape[-1]}, got {vocab_size}")
    loss: Tensor = reworded(
        _words(shift_labels),
        xent.sparse_ce,
        logits,
        _shifted(labels, shift_labels, ignore_index).to(logits.device),
        ignore_index=ignore_index,
        denom=num_items_in_batch,
    )
    return loss


def causal_lm_loss(outputs: Any, labels: Tensor, num_items_in_batch: Tensor | int | None = None) -> Tensor:
    """What `Trainer(compute_loss_func=causal_lm_loss)` calls: `ForCausalLMLoss` of the model's outputs."""
    logits = outputs["logits"] if isinstance(outputs, dict) else outputs[0]
    return ForCausalLMLoss(logits, labels, logits.shape[-1], num_items_in_batch)


def linear_causal_lm_loss(
    hidden_states: Tensor,
    lm_head_weight: Tensor,
    labels: Tensor | None,
    *,
    lm_head_bias: Tensor | None = None,
    num_items_in_batch: Tensor | int | None = None,
    ignore_index: int = IGNORE_INDEX,
    shift_labels: Tensor | None = None,
    final_logit_softcapping: float | None = None,
    **_: Any,
) -> Tensor:
    """`ForCausalLMLoss` of the logits hidden_states @ lm_head_weight.T + lm_head_bias, never held all at once.

    Args:
        hidden_states: [batch, length, features], the body's last.
        lm_head_weight: [vocab_size, features]: `model.get_output_embeddings().weight`.
        labels: [batch, length].
        lm_head_bias: [vocab_size].
        num_items_in_batch, ignore_index, shift_labels: as in `ForCausalLMLoss`.
        final_logit_softcapping: the cap of models that have one in their configuration, as Gemma 2.
        _: what else a model passes on.
    """
    hidden, weight, bias = in_autocast_dtype(hidden_states, lm_head_weight, lm_head_bias)
    loss: Tensor = reworded(
        _words(shift_labels),
        xent.linear_ce,
        hidden,
        weight,
        _shifted(labels, shift_labels, ignore_index).to(hidden.device),
        bias=bias,
        softcap=final_logit_softcapping,
        ignore_index=ignore_index,
        denom=num_items_in_batch,
    )
    return loss


def _words(shift_labels: Tensor | None) -> dict[str, str]:
    return WORDS if shift_labels is None else WORDS | {"labels": "shift_labels"}


def _shifted(labels: Tensor | None, shift_labels: Tensor | None, ignore_index: int) -> Tensor:
    """Each position's label is the next token; the last one's is `ignore_index`."""
    if shift_labels is not None:
        return shift_labels
    if labels is None:
        raise TypeError("labels: expected a tensor where shift_labels is not given, got None")
    shifted: Tensor = xent.next_token(labels, ignore_index)
    return shifted
