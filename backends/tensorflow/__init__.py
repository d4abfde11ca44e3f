"""TensorFlow."""

from __future__ import annotations

from functools import partial

import tensorflow as tf
from tensorflow.python.eager.context import eager_mode  # no public name leaves a graph of TensorFlow 1
from xent import formulas
from xent.adapter import Adapter, Autodiff, EntropyKernels, SigmoidKernels, SoftmaxKernels

from . import entropy, graph, kernels, shapes
from .linear import LINEAR
from .ops import OPS
from .shortcut import SHORTCUT

with eager_mode():
    shapes.of(tf.zeros([1]))

ADAPTER = Adapter(
    name="tensorflow",
    types=(tf.Tensor, tf.Variable),
    ops=OPS,
    softmax=SoftmaxKernels(
        graph.rows, graph.rows_value_and_grad, partial(formulas.mean_value_and_grad, OPS, graph.rows_value_and_grad)
    ),
    sigmoid=SigmoidKernels(graph.sigmoid, graph.sigmoid_total, graph.sigmoid_value_and_grad),
    autodiff=Autodiff(kernels.value_and_grad, kernels.needs_framework_autodiff, graph.fuse_value_and_grad),
    linear=LINEAR,
    shortcut=SHORTCUT,
    entropy=EntropyKernels(entropy.value, entropy.value_and_grad),
    takes_16bit=True,
    run=kernels.run,
)
