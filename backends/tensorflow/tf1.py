"""Graphs of TensorFlow 1, where `==` compares tensors by identity, not element by element."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tensorflow as tf
from xent.adapter import Array

from .operators import Traced, derivatives, in_current_graph, of_rank, tensors_in, with_values_at
from .rules import custom_gradient


def with_equality(function: Callable[..., Any], static: Any, *arrays: Any) -> Any:
    """function(static, *arrays). In a graph of TensorFlow 1 it is traced outside and called, and so are derivatives."""
    if tf.executing_eagerly() or tf.compat.v1.executing_eagerly_outside_functions():
        return function(static, *arrays)
    flat = tf.nest.flatten(arrays)
    places = [i for i, k in enumerate(flat) if tf.is_tensor(k) and k.dtype.is_floating]
    results = None

    def of_floats(flat: list[Any], floats: Any) -> Any:
        return function(static, *tf.nest.pack_sequence_as(arrays, with_values_at(flat, places, floats)))

    def pull(_: None, flat: list[Any], up: list[Array]) -> list[Array]:
        return derivatives(lambda floats: _floating(of_floats(flat, floats)), [flat[i] for i in places], up)

    @custom_gradient
    def call(*floats: Array) -> Any:
        nonlocal results
        operands = with_values_at(flat, places, floats)
        results = Traced(lambda *flat: of_floats([*flat], [flat[i] for i in places]), operands).call()
        given = tensors_in(results)

        def backward(*up: Array) -> Any:
            wanted = [of_rank(g, k) for g, k in zip(up, given, strict=True) if k.dtype.is_floating]
            return with_equality(pull, None, in_current_graph(operands), wanted)

        return given, backward

    found = call(*(flat[i] for i in places))
    left = iter(found if isinstance(found, (list, tuple)) else [found])
    return tf.nest.map_structure(lambda k: None if k is None else next(left), results)


def _floating(results: Any) -> list[Array]:
    return [k for k in tensors_in(results) if k.dtype.is_floating]
