"""Keras's names for the losses, in place of `keras.losses`, on its TensorFlow, JAX and PyTorch backends; see
docs/migrating/keras.md.

Signatures, class axis, reductions, masks and the classes' configurations are those of Keras 3.15. The numbers,
infinities, empty means and errors are xent's. `from_logits=False`, Keras's default, is an error: xent takes logits.
Where the two differ, with `categorical(y, x, w, ...)` for `CategoricalCrossentropy(from_logits=True, ...)(y, x, w)`,
sparse and binary likewise, x = [[2, 0.5, 6], [0.1, 0, 3]], ids = [2, 1], eye = [[1, 0, 0], [0, 1, 0]]; what Keras says
on TensorFlow / JAX / PyTorch where its backends differ from each other:

| call | Keras | xent |
| --- | --- | --- |
| `losses.CategoricalCrossentropy()(eye, eye)` | 1.192e-07 | ValueError |
| `losses.SparseCategoricalCrossentropy(from_logits=False)(ids, eye)` | 8.059 | ValueError |
| `losses.BinaryCrossentropy()(eye, eye)` | 1.192e-07 / 1.192e-07 / 1.064e-07 | ValueError |
| `"axis" in losses.SparseCategoricalCrossentropy(from_logits=True).get_config()` | 0 | 1 |
| `categorical([[0, 1, 0]], [[1, 2, -inf]])` | nan | 0.3133 |
| `categorical([[1, 0]], [[20, 0]])` | 0 | 2.061e-09 |
| `categorical(eye, [[nan, 1, 2], [0.1, 0, 3]], [0, 1])` | nan | 1.55 |
| `dtype(categorical(eye, x, dtype="float16"))` | float16 | float32 |
| `categorical(eye, x, label_smoothing=2)` | 1.694 | ValueError |
| `categorical(ones((2, 3, 4)) / 3, ones((2, 3, 4)), axis=1, label_smoothing=0.5)` | 0.9613 | 1.099 |
| `categorical(ones((2, 2, 3)), ones((2, 2, 3)), [0, 1])` | 1.648 | ValueError |
| `categorical(eye, x, [2], reduction="mean_with_sample_weight")` | 7.122 | 3.561 |
| `shape(categorical(eye, x, [[1], [2]], reduction=None))` | 2, 1 | 2 |
| `len(shape(categorical(ones((0, 3)), ones((0, 3)))))` | 1 | 0 |
| `sparse([1], [[1, 2, -inf]])` | 0.3133 / nan / 0.3133 | 0.3133 |
| `sparse([2, -1], x)` | InvalidArgumentError / 0.01108 / IndexError | LabelError |
| `sparse([2, -100], x)` | InvalidArgumentError / 0.01108 / 0.01108 | LabelError |
| `sparse([2, 3], x)` | InvalidArgumentError / 0.01108 / IndexError | LabelError |
| `sparse([2, -1], x, [1, 0])` | InvalidArgumentError / 0.01108 / IndexError | 0.01108 |
| `sparse([2.5, 1], x)` | 1.561 | LabelError |
| `sparse(ids, x, mask=[[True], [False]], ignore_class=2)` | 3.1 | 0 |
| `sparse(ones((2, 4)), ones((2, 3, 4)), axis=1)` | ValueError / ValueError / 1.099 | 1.099 |
| `binary([[0.0]], [[-inf]])` | nan | 0 |
| `binary(ones((2, 0)), ones((2, 0)))` | nan | ValueError |
| `binary([0.0, 1.0], [1.0, 2.0], [0.5, 2.0])` | 0.9001 | ValueError |
"""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import xent

# Keras's own, which it exports nowhere: masks of arrays that take no attributes, its rule for ranks that differ by 1,
# and the share of a replica of TensorFlow's distribution strategies.
from keras.src.backend import get_keras_mask
from keras.src.losses.loss import scale_loss_for_distribution, squeeze_or_expand_to_same_rank
from xent import _check, _rules
from xent.compat._errors import reworded

REDUCE = {
    None: "none",
    "none": "none",
    "sum": "sum",
    "sum_over_batch_size": "mean_all",
    "mean": "mean_all",
    "mean_with_sample_weight": "mean",
}
# What errors say in the place of xent's own words.
WORDS = {
    "logits'": "y_pred's",
    "logits": "y_pred",
    "labels": "y_true",
    "ignore_index": "ignore_class",
    "sparse_ce": "SparseCategoricalCrossentropy",
    "softmax_ce": "CategoricalCrossentropy",
}


class _Crossentropy(keras.losses.Loss):
    """What the three share: Keras's reductions in xent's words, with its masks as weights of 0."""

    def __init__(self, from_logits: bool, axis: int, reduction: str | None, name: str | None, dtype: Any) -> None:
        super().__init__(name=name, reduction=reduction, dtype=dtype)
        if from_logits is not True:
            raise ValueError(
                f"from_logits: expected True, got {from_logits!r}; xent takes logits, so give the model's last layer "
                "no activation (no softmax or sigmoid) and the loss from_logits=True"
            )
        self.from_logits = from_logits
        self.axis = axis

    def __call__(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> Any:
        mask = get_keras_mask(y_pred)
        with keras.name_scope(self.name):
            loss = self._loss(y_true, self._array(y_pred), sample_weight, mask, REDUCE[self.reduction])
            return scale_loss_for_distribution(loss) if REDUCE[self.reduction].startswith("mean") else loss

    def call(self, y_true: Any, y_pred: Any) -> Any:
        """The losses themselves."""
        return self._loss(y_true, self._array(y_pred), None, None, "none")

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "from_logits": self.from_logits, "axis": self.axis}

    def _loss(self, y_true: Any, y_pred: Any, sample_weight: Any, mask: Any, reduce: str) -> Any:
        raise NotImplementedError

    def _array(self, values: Any) -> Any:
        return keras.ops.convert_to_tensor(values, dtype=self.dtype)

    def _class_axis(self, y_pred: Any) -> int:
        axis: int = reworded(WORDS, _rules.class_axis, tuple(y_pred.shape), self.axis)
        return axis

    def _lengths(self, y_pred: Any) -> list[Any]:
        """The losses' shape."""
        lengths = list(keras.ops.shape(y_pred))
        del lengths[self._class_axis(y_pred)]
        return lengths

    def _weighted(self, y_pred: Any, sample_weight: Any, mask: Any, reduce: str) -> dict[str, Any]:
        """xent's options. A mean is one over all examples, or over those that the mask leaves."""
        lengths = self._lengths(y_pred)
        weight = None if sample_weight is None else _of_rank(self._array(sample_weight), lengths)
        if mask is None:
            return {"reduce": reduce, "sample_weight": weight}
        mask = keras.ops.broadcast_to(_of_rank(keras.ops.cast(mask, "bool"), lengths), lengths)
        weight = keras.ops.where(mask, 1.0 if weight is None else weight, 0.0)
        if reduce != "mean_all":
            return {"reduce": reduce, "sample_weight": weight}
        return {"reduce": "mean", "sample_weight": weight, "denom": keras.ops.sum(keras.ops.cast(mask, "int32"))}


class _Smoothed(_Crossentropy):
    """What the two share whose labels are like the logits."""

    def __init__(self, label_smoothing: float, *shared: Any) -> None:
        super().__init__(*shared)
        self.label_smoothing = label_smoothing

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "label_smoothing": self.label_smoothing}

    def _loss(self, y_true: Any, y_pred: Any, sample_weight: Any, mask: Any, reduce: str) -> Any:
        y_true, y_pred = squeeze_or_expand_to_same_rank(self._array(y_true), y_pred)
        return self._of_one_rank(y_true, y_pred, self._weighted(y_pred, sample_weight, mask, reduce))

    def _of_one_rank(self, y_true: Any, y_pred: Any, weighted: dict[str, Any]) -> Any:
        raise NotImplementedError


@keras.saving.register_keras_serializable("xent")
class CategoricalCrossentropy(_Smoothed):
    """Cross-entropy against distributions over the classes: `xent.softmax_ce`.

    Args:
        from_logits: True; anything else is a ValueError.
        label_smoothing: e from 0 to 1: labels become (1 - e) t + e / C.
        axis: where the classes are.
        reduction: "sum_over_batch_size" or "mean" sum(w l) / number of examples, without masked ones; "sum";
            "mean_with_sample_weight" sum(w l) / sum(w); "none" or None the losses themselves.
        name: of the loss.
        dtype: that logits and labels are cast to; Keras's floatx where None.
    """

    def __init__(
        self,
        from_logits: bool = False,
        label_smoothing: float = 0.0,
        axis: int = -1,
        reduction: str | None = "sum_over_batch_size",
        name: str | None = "categorical_crossentropy",
        dtype: Any = None,
    ) -> None:
        super().__init__(label_smoothing, from_logits, axis, reduction, name, dtype)

    def _of_one_rank(self, y_true: Any, y_pred: Any, weighted: dict[str, Any]) -> Any:
        options = {"axis": self.axis, "label_smoothing": self.label_smoothing, **weighted}
        return reworded(WORDS, xent.softmax_ce, y_pred, y_true, **options)


@keras.saving.register_keras_serializable("xent")
class SparseCategoricalCrossentropy(_Crossentropy):
    """Cross-entropy against class ids: `xent.sparse_ce`.

    Ids may be floating, as Keras casts them, if they are whole numbers; others count as out of range.

    Args:
        from_logits: True; anything else is a ValueError.
        ignore_class: a class id that leaves the example out, also out of the mean's denominator.
        reduction: as of `CategoricalCrossentropy`.
        axis: where the classes are.
        name: of the loss.
        dtype: that logits are cast to; Keras's floatx where None.
    """

    def __init__(
        self,
        from_logits: bool = False,
        ignore_class: int | None = None,
        reduction: str | None = "sum_over_batch_size",
        axis: int = -1,
        name: str | None = "sparse_categorical_crossentropy",
        dtype: Any = None,
    ) -> None:
        super().__init__(from_logits, axis, reduction, name, dtype)
        self.ignore_class = _check.index("ignore_class", ignore_class)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "ignore_class": self.ignore_class}

    def _loss(self, y_true: Any, y_pred: Any, sample_weight: Any, mask: Any, reduce: str) -> Any:
        given = y_true if keras.ops.is_tensor(y_true) else np.asarray(_check.class_ids(y_true))
        if isinstance(given, np.ndarray) and given.dtype.kind == "f":
            given = keras.ops.convert_to_tensor(given, dtype="float32")  # the loss's dtype may hold fewer whole numbers
        axis = self._class_axis(y_pred)
        if len(given.shape) == len(y_pred.shape) and given.shape[axis] == 1:
            given = given[(*(slice(None),) * axis, 0)]
        ids = _whole(given, self.ignore_class)
        ignored = _check.representable(self.ignore_class, keras.backend.standardize_dtype(ids.dtype))
        if ignored is not None:
            there = ids != ignored
            mask = there if mask is None else keras.ops.logical_and(_of_rank(mask, self._lengths(y_pred)), there)
        weighted = self._weighted(y_pred, sample_weight, mask, reduce)
        try:
            return reworded(WORDS, xent.sparse_ce, y_pred, ids, axis=self.axis, **weighted)
        except xent.LabelError as error:
            if ids is given:
                raise
            raise xent.LabelError(f"{error} (a floating label that is no whole number counts as negative)") from None


@keras.saving.register_keras_serializable("xent")
class BinaryCrossentropy(_Smoothed):
    """Binary cross-entropy, its mean along an axis: `xent.sigmoid_ce`.

    Args:
        from_logits: True; anything else is a ValueError.
        label_smoothing: e from 0 to 1: labels become (1 - e) z + e / 2.
        axis: what the losses of an example are averaged along.
        reduction: as of `CategoricalCrossentropy`.
        name: of the loss.
        dtype: that logits and labels are cast to; Keras's floatx where None.
    """

    def __init__(
        self,
        from_logits: bool = False,
        label_smoothing: float = 0.0,
        axis: int = -1,
        reduction: str | None = "sum_over_batch_size",
        name: str | None = "binary_crossentropy",
        dtype: Any = None,
    ) -> None:
        super().__init__(label_smoothing, from_logits, axis, reduction, name, dtype)

    def _of_one_rank(self, y_true: Any, y_pred: Any, weighted: dict[str, Any]) -> Any:
        reduce, weight, length = weighted["reduce"], weighted["sample_weight"], keras.ops.shape(y_pred)[self.axis]
        if weight is not None and len(weight.shape):
            weighted["sample_weight"] = keras.ops.expand_dims(weight, self.axis)
        if reduce == "sum":  # of the means along the axis
            weighted |= {"reduce": "mean", "denom": length}
        elif "denom" in weighted:
            weighted["denom"] *= length
        weighted["label_smoothing"] = self.label_smoothing
        losses = reworded(WORDS, xent.sigmoid_ce, y_pred, y_true, **weighted)
        return keras.ops.mean(losses, self.axis) if reduce == "none" else losses


def _of_rank(weight: Any, lengths: list[Any]) -> Any:
    """Of the losses' rank where only a last length of 1 is missing or too many, as Keras has it."""
    if len(weight.shape) == len(lengths) + 1 and weight.shape[-1] == 1:
        return weight[..., 0]
    if 0 < len(weight.shape) == len(lengths) - 1 and lengths[-1] == 1:
        return weight[..., None]
    return weight


def _whole(given: Any, ignore_class: int | None) -> Any:
    """Floating class ids as integers. What is no whole number becomes an id that is no class and is not ignored."""
    dtype = keras.backend.standardize_dtype(given.dtype)
    if "float" not in dtype:
        return given
    ids = keras.ops.cast(given, "int32")
    no_class = -2 if ignore_class == -1 else -1
    return keras.ops.where(keras.ops.equal(keras.ops.cast(ids, dtype), given), ids, no_class)
