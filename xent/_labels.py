"""What a training loop does with labels before the loss: shift them to the next token, add up their weights."""

from __future__ import annotations

from typing import Any, NoReturn

from xent import _check, _plan, _rules
from xent._dispatch import contents, find
from xent._execute import prepare
from xent._options import Operands, Options
from xent._shapes import fitted, flattened, ranked, shape_of
from xent.adapter import Adapter, Array, Scalar

ANY_CLASS = 2**31 - 1  # stands for the number of classes where no class weight tells it


def next_token(labels: Array, ignore_index: int = -100, *, segment_ids: Array | None = None) -> Array:
    """Each position's label becomes the next one's: what a causal language model is to predict there.

    The last position of a sequence has no next one and gets `ignore_index`. The logits stay whole: nothing is sliced
    off them, and so nothing is copied.

    Args:
        labels: token ids [..., T], any integer dtype that holds `ignore_index`, of NumPy, PyTorch, TensorFlow or JAX,
            or lists; no bool.
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
    known = ranked(adapter, ids)
    ignore_index = _rules.token_ids(ops.shape(ids) if known else (None,), ops.dtype(ids), ignore_index)
    shifted = ops.following(ids, ignore_index)
    if segment_ids is None:
        return shifted
    if not known:
        raise _rules.unknown_rank("segment_ids")
    goes_on = fitted(adapter, _rules.SEGMENTS, _goes_on(adapter, segment_ids, ids), shape_of(adapter, ids))
    return ops.where(goes_on, shifted, ops.full((), ignore_index, ops.dtype(ids), ids))


def _goes_on(adapter: Adapter, segment_ids: Array, ids: Array) -> Array:
    """Whether the next position is in the same segment, compared in the segments' own framework and dtype."""
    own, segments = _plan.with_adapter(adapter, "segment_ids", segment_ids, ids)
    _check.real("segment_ids", own.ops.dtype(segments))
    _rules.sequence("segment_ids", own.ops.shape(segments) if ranked(own, segments) else (None,))
    return adapter.ops.asarray(own.ops.following(segments, 0) == segments, ids)


def total_weight(
    labels: Array,
    *,
    sample_weight: Any = None,
    class_weight: Any = None,
    ignore_index: int | None = None,
    group: Any = None,
    **unknown: NoReturn,
) -> Scalar:
    """sum(w) over the labels that count: what `sparse_ce` and `linear_ce` divide by for `reduce="mean"`.

    Where a batch is computed in parts, the loss of each part takes the whole batch's denominator, `denom=`: the sum of
    all parts' `total_weight`. Where the parts' gradients are averaged in the end, as by PyTorch's DDP and FSDP and by
    `jax.lax.pmean`, it is divided by the number of parts: denom = total / world_size.

    Args:
        labels: class ids of any shape, any integer or bool dtype, of NumPy, PyTorch, TensorFlow or JAX, or lists.
        sample_weight: a scalar, or of the labels' shape or that with 1s.
        class_weight: [C]. A label's weight is multiplied by that of its class.
        ignore_index: a class id that does not count.
        group: a process group of `torch.distributed`, each of whose ranks has a part of the batch and calls this
            function, or the name of an axis inside of `jax.shard_map`, over which the batch is split: the result is the
            sum over all parts. None: of these labels alone; on TensorFlow the context of a replica adds them up
            (docs/trainers/distribute.md).

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
    if unknown:
        raise _check.unexpected(total_weight, unknown)
    adapter, ids = _own_ids(labels)
    ops = adapter.ops
    dtype = "float64" if any(_is_float64(adapter, k) for k in (sample_weight, class_weight)) else "float32"
    sample_weight, table = (
        _plan.real(adapter, name, k, ids, None)
        for name, k in (("sample_weight", sample_weight), ("class_weight", class_weight))
    )
    if not ranked(adapter, ids):
        rules = ((_rules.WEIGHTS, sample_weight),)
        ids, _, _, (sample_weight,) = flattened(adapter, ids, None, rules)
    classes = ANY_CLASS if table is None else _rules.class_weights(shape_of(adapter, table))
    shape = (*shape_of(adapter, ids), classes)
    inputs = ops.expand_dims(ids, -1)  # in the place of logits: of their shape but for the classes
    given = Operands(inputs, ids, sample_weight, table)
    options = Options(ignore_index=ignore_index, invalid="nan").checked(None)
    plan, operands = _plan.of_rows(adapter, inputs, dtype, shape, len(shape) - 1, given, options, None)
    total = prepare(plan, operands).divisor
    return total if group is None else _check.collectives("group", adapter).total(group, total)


def _is_float64(adapter: Adapter, value: Any) -> bool:
    """Whether this is a float64 array of the adapter's framework. NumPy arrays beside it are float64 by default."""
    if value is None or find(value) is not adapter:
        return False
    return adapter.ops.dtype(adapter.ops.asarray(contents(value), value)) == "float64"


def _own_ids(labels: Array) -> tuple[Adapter, Array]:
    return _plan.class_ids(find(labels, "labels"), labels, labels)
