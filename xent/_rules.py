"""Every rule about shapes and its sentence, the same for all backends: what was given, what was expected."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from xent._check import INTEGRAL, index, representable

Shape = tuple[int | None, ...]


class ShapeRule(NamedTuple):
    """What shape an argument has to have. The error says: `before`, the expected shape, `after`, the given shape."""

    argument: str
    before: str
    after: str
    ones: bool = False  # a length may be 1 instead
    scalar: bool = False  # a scalar will do
    broadcasts: bool = False  # leading axes may be missing
    advice: Callable[[Shape, Shape], str] | None = None  # (this shape, the logits') -> more to say

    def check(self, got: Shape, expected: Shape, logits: Shape = ()) -> None:
        """Raises if the shapes contradict the rule, as far as they are known."""
        tail = expected[len(expected) - len(got) :] if self.broadcasts and len(got) < len(expected) else expected
        if not ((self.scalar and not got) or (len(got) == len(tail) and self._lengths_fit(got, tail))):
            more = self.advice(got, logits) if self.advice and logits else ""
            raise ValueError(f"{self.argument}: {self.before} {text(expected)}{self.after} {text(got)}{more}")

    def words(self, expected: Any, got: Any) -> list[Any]:
        """The sentence, for a graph that finds the two shapes when it runs."""
        return [f"{self.argument}: {self.before}", expected, self.after.strip(), got]

    def _lengths_fit(self, got: Shape, expected: Shape) -> bool:
        return fits(got, expected) or (
            self.ones and all(g == 1 or fits((g,), (e,)) for g, e in zip(got, expected, strict=True))
        )


def class_axes(logits: Shape, ids: Shape) -> list[int]:
    """The axes without which the logits have the ids' shape."""
    return [axis for axis in range(len(logits)) if logits[:axis] + logits[axis + 1 :] == ids]


def other_axis(got: Shape, logits: Shape) -> str:
    fitting = class_axes(logits, got)
    return f"; they fit axis={fitting[0]}" if len(fitting) == 1 else ""


def for_class_ids(got: Shape, logits: Shape) -> str:
    return "; for class ids use sparse_ce" if len(got) + 1 == len(logits) else ""


IDS = ShapeRule("labels", "expected shape", " (the logits' without axis), got", advice=other_axis)
SOFT_LABELS = ShapeRule("labels", "expected shape", " (the logits'), got")
DISTRIBUTIONS = SOFT_LABELS._replace(advice=for_class_ids)
WEIGHTS = ShapeRule(
    "sample_weight", "expected a scalar, shape", " (the loss's), or that with 1s; got", ones=True, scalar=True
)
CLASS_WEIGHT = ShapeRule("class_weight", "expected shape", " (one for each class), got")
POS_WEIGHT = ShapeRule(
    "pos_weight", "expected a shape that broadcasts to the logits'", ", got", ones=True, broadcasts=True
)
DENOM = ShapeRule("denom", "expected shape", " (a number or a 0-d array), got")
HEAD = ShapeRule(
    "weight", "expected shape", " (hidden's features), got"
)  # for shapes known only at run time; else head_shapes
SEGMENTS = ShapeRule("segment_ids", "expected shape", " (the labels'), got")
BIAS = ShapeRule("bias", "expected shape", " (one for each class), got")


def class_axis(shape: Shape, axis: Any) -> int:
    """The class axis, counted from the front, of logits that have a class."""
    place = place_of_classes(shape, axis)
    if shape[place] == 0:
        raise ValueError(f"logits: expected at least one class, got shape {text(shape)} with none along axis {place}")
    return place


def place_of_classes(shape: Shape, axis: Any) -> int:
    """The class axis, counted from the front."""
    place, rank = axis_number(axis), len(shape)
    if not shape:
        raise ValueError("logits: expected at least one dimension, the classes; got a scalar")
    if not -rank <= place < rank:
        raise ValueError(f"axis: expected {-rank} to {rank - 1} for logits of shape {text(shape)}, got {place}")
    return place % rank


def axis_number(axis: Any) -> int:
    if not isinstance(axis, INTEGRAL) or isinstance(axis, bool):
        raise TypeError(f"axis: expected an int, got {axis!r}")
    return int(axis)


def no_class(shape: Any, axis: int) -> list[Any]:
    """The sentence of logits without a class, for a graph that finds it when it runs."""
    return ["logits: expected at least one class, got shape", shape, f"with none along axis {axis}"]


def head_shapes(hidden: Shape, weight: Shape) -> None:
    """Raises unless hidden is [..., D] and weight [C, D]."""
    if not hidden:
        raise ValueError("hidden: expected at least one dimension, the features; got a scalar")
    if hidden[-1] == 0:
        raise ValueError(f"hidden: expected at least one feature, got shape {text(hidden)}")
    if len(weight) != 2 or not fits(weight[1:], hidden[-1:]):
        features = "?" if hidden[-1] is None else hidden[-1]
        raise ValueError(f"weight: expected shape (classes, {features}) (hidden's features), got {text(weight)}")
    if weight[0] is None or weight[1] is hidden[-1] is None:
        raise unknown_head(text(weight))
    if weight[0] == 0:
        raise ValueError(f"weight: expected at least one class, got shape {text(weight)}")


def token_ids(shape: Shape, dtype: str, ignore_index: Any) -> int:
    """Checks `next_token`'s labels, and returns `ignore_index` as an int that their dtype can hold."""
    sequence("labels", shape)
    if dtype == "bool":
        raise TypeError("labels: expected token ids of an integer dtype, got bool")
    held = representable(index("ignore_index", ignore_index), dtype)
    if held is None:
        raise ValueError(f"ignore_index: expected a number that labels of {dtype} can hold, got {ignore_index!r}")
    return held


def sequence(argument: str, shape: Shape) -> None:
    if not shape:
        raise ValueError(f"{argument}: expected at least one dimension, the tokens; got a scalar")


def unknown_rank(argument: str) -> ValueError:
    return ValueError(f"{argument}: expected labels whose rank is known while a graph is traced, got one of any rank")


def class_weights(shape: Shape) -> Any:
    """The number of classes, from the shape of class_weight alone."""
    if len(shape) != 1 or shape[0] == 0:
        raise ValueError(f"class_weight: expected shape (classes,), got {text(shape)}")
    return shape[0]


def unknown_head(got: str) -> ValueError:
    return ValueError(
        f"weight: the numbers of classes and features have to be known while a graph is traced, got {got}"
    )


def fits(got: Shape, expected: Shape) -> bool:
    """Equal as far as a graph under construction knows."""
    return got == expected or (
        len(got) == len(expected) and all(g is None or e is None or g == e for g, e in zip(got, expected, strict=True))
    )


def text(shape: Shape) -> str:
    return "(" + ", ".join("?" if n is None else str(n) for n in shape) + ("," if len(shape) == 1 else "") + ")"
