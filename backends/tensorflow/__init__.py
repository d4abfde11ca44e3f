"""TensorFlow."""

from __future__ import annotations

import tensorflow as tf
from xent.adapter import Adapter

from . import graph, kernels
from .linear import LINEAR
from .ops import OPS

ADAPTER = Adapter(
    name="tensorflow",
    types=(tf.Tensor, tf.Variable),
    ops=OPS,
    rows=graph.rows,
    sigmoid=graph.sigmoid,
    sigmoid_sum=graph.sigmoid_sum,
    rows_both=graph.rows_both,
    sigmoid_both=graph.sigmoid_both,
    value_and_grad=kernels.value_and_grad,
    watched=kernels.watched,
    fuse=graph.fuse,
    linear=LINEAR,
    run=kernels.run,
    narrow=True,
)
