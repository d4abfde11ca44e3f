"""`tf.custom_gradient` without its leak: in a graph TensorFlow registers each rule by a new name and keeps it for ever,
and with it the graph, whose tensors the rule holds."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import tensorflow as tf
from tensorflow.python.framework.ops import gradient_registry  # no public name forgets a rule


def custom_gradient(function: Callable[..., Any]) -> Callable[..., Any]:
    """As `tf.custom_gradient`, but a graph's rule lives as long as the graph."""
    with_rule = tf.custom_gradient(function)

    def call(*operands: Any) -> Any:
        results = with_rule(*operands)
        if not tf.executing_eagerly():
            _keep_with_graph(tf.nest.flatten(results)[0].op)
        return results

    return call


def _keep_with_graph(operation: Any) -> None:
    """Hands the rule that was registered for the operation to the operation's graph."""
    name, graph = operation.get_attr("_gradient_op_type").decode(), operation.graph
    entry = gradient_registry._registry[name]
    rule = entry["type"]
    weak = weakref.ref(rule)
    entry["type"] = lambda *given: weak()(*given)  # type: ignore[misc]
    graph.xent_rules = [*getattr(graph, "xent_rules", ()), rule]
    weakref.finalize(graph, gradient_registry._registry.pop, name, None).atexit = False
