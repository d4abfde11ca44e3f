"""What a training loop does with labels before the loss: shift them to the next token, add up what they weigh."""

from __future__ import annotations

from typing import Any

from xent import _plan, _rules
from xent._dispatch import contents, find
from xent._execute import prepare
from xent._options import Operands, Options
from xent._shapes import shape_of
from xent.adapter import Adapter, Array, Scalar

ANY_CLASS = 2**31 - 1  # more classes than there are, where their number is not known


def next_token(labels: Array, ignore_index: int = -100, *, segment_ids: Array | None = None) -> Array:
    """Each position's label becomes the next one's: what a causal language model is to predict there.

    The last position of a sequence has no next one and gets `ignore_index`. The logits stay whole: nothing is sliced
    off them, and so nothing is copied.

    Args:
        labels: token ids [..., T], any integer dtype that holds `ignore_index`, of NumPy, PyTorch, TensorFlow or JAX,
            or lists.
        ignore_index: what stands where there is no next token; give it to the loss as well.
        segment_ids: [..., T], for sequences that are packed into one row: where the number changes, a sequence ends.

    Returns:
        An array like the labels.

    Raises:
        TypeError: labels that are not integers, arrays of two frameworks.
        ValueError: a scalar, an `ignore_index` that the labels' dtype cannot hold, segments of another shape.

    Source:
        The shift is that of Hugging Face Transformers' ForCausalLMLoss.

    Example:
        >>> import numpy as np, xent
        >>> print(xent.next_token(np.array([[5, 6, 7, 8]])))
        [[   6    7    8 -100]]
        >>> print(xent.next_token(np.array([[5, 6, 7, 8]]), segment_ids=np.array([[0, 0, 1, 1]])))
        [[   6 -100    8 -100]]
    """
    adapter, ids = _own_ids(labels)
    ops = adapter.ops
    _rules.token_ids(ops.shape(ids), ops.dtype(ids), ignore_index)
    shifted = ops.following(ids, ignore_index)
    if segment_ids is None:
        return shifted
    segments = _plan.real(adapter, "segment_ids", segment_ids, ids, None)
    assert segments is not None
    _rules.SEGMENTS.check(ops.shape(segments), ops.shape(ids))
    return ops.where(ops.following(segments, 0) == segments, shifted, ops.zeros_like(ids) + ignore_index)


def total_weight(
    labels: Array,
    *,
    sample_weight: Any = None,
    class_weight: Any = None,
    ignore_index: int | None = None,
) -> Scalar:
    """sum(w) over the labels that count: what `sparse_ce` and `linear_ce` divide by for `reduce="mean"`.

    Where a batch is computed in parts, the loss of each part takes the whole batch's denominator, `denom=`: the sum of
    all parts' `total_weight`. Where the parts' gradients are averaged in the end, as by PyTorch's DDP
    and FSDP and by `jax.lax.pmean`, it is divided by the number of parts: denom = total / world_size.

    Args:
        labels: class ids of any shape, any integer or bool dtype, of NumPy, PyTorch, TensorFlow or JAX, or lists.
        sample_weight: a scalar, or of the labels' shape or that with 1s.
        class_weight: [C]. A label's weight is multiplied by that of its class.
        ignore_index: a class id that does not count.

    Returns:
        A 0-d array of the labels' framework; float64 where its own weights are, else float32.

    Raises:
        TypeError: labels that are not integers, arrays of two frameworks.
        ValueError: shapes that do not fit.

    Source:
        docs/semantics.md, "Weights and masks".

    Example:
        >>> import numpy as np, xent
        >>> print(xent.total_weight(np.array([2, 0, -100]), sample_weight=[1.0, 0.5, 1.0], ignore_index=-100))
        1.5
    """
    adapter, ids = _own_ids(labels)
    ops = adapter.ops
    given = Operands(
        ops.expand_dims(ids, -1),  # in the place of logits: of their shape but for the classes
        ids,
        _plan.real(adapter, "sample_weight", sample_weight, ids, None),
        _plan.real(adapter, "class_weight", class_weight, ids, None),
    )
    table = given.class_weight
    shape = (*shape_of(adapter, ids), ANY_CLASS if table is None else shape_of(adapter, table)[0])
    wide = any(_is_float64(adapter, k) for k in (sample_weight, class_weight))
    options = Options(ignore_index=ignore_index, invalid="nan").checked(None)
    plan, operands = _plan.of_rows(
        adapter, given.inputs, "float64" if wide else "float32", shape, len(shape) - 1, given, options, None
    )
    return prepare(plan, operands).divisor


def _is_float64(adapter: Adapter, value: Any) -> bool:
    """Of the framework's own arrays: NumPy's beside others are float64 by habit."""
    if value is None or find(value) is not adapter:
        return False
    return adapter.ops.dtype(adapter.ops.asarray(contents(value), value)) == "float64"


def _own_ids(labels: Array) -> tuple[Adapter, Array]:
    return _plan.class_ids(find(labels, "labels"), labels, labels)
