"""What each process holds of a batch whose classes are split, for the checks of `sharded=`."""

import numpy as np
import torch
import xent
from torch.distributed.tensor.debug import CommDebugMode

GATHER, REDUCE = torch.ops.c10d._allgather_base_, torch.ops.c10d.allreduce_
DTYPE = {"float32": torch.float32, "float64": torch.float64, "bfloat16": torch.bfloat16, "float16": torch.float16}


class Counted(CommDebugMode):
    """The collectives, and the bytes that this process brings to gathers and reductions."""

    def __init__(self):
        super().__init__()
        self.sizes = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.overloadpacket in (GATHER, REDUCE):
            given = args[1] if func.overloadpacket is GATHER else args[0][0]
            self.sizes.append(given.numel() * given.element_size())
        return super().__torch_dispatch__(func, types, args, kwargs)


def rank():
    return torch.distributed.get_rank()


def group():
    return torch.distributed.group.WORLD


def places(classes):
    """Which classes the process holds: evenly many, others, none in the first, in the last, in all but one of them."""
    count = torch.distributed.get_world_size()
    even = [classes * k // count for k in range(count + 1)]
    ends = [0] * count + [classes], [0] + [classes] * count
    for cuts in (even, [0, 1, *even[2:]], [0, 0, *even[2:]], [*even[:-2], classes, classes], *ends):
        yield slice(cuts[rank()], cuts[rank() + 1])


def own(x, place, axis=1):
    return np.take(x, range(place.start, place.stop), axis)


def tensors(x, labels, dtype, place, axis=1):
    """The process's own part of the logits, which asks for a gradient, and of labels that are soft."""
    leaf = torch.tensor(own(x, place, axis), dtype=DTYPE[dtype]).requires_grad_()
    if labels.dtype.kind in "iu":
        return leaf, torch.tensor(labels)
    wide = torch.float64 if dtype == "float64" else torch.float32
    return leaf, torch.tensor(own(labels, place, axis), dtype=wide)


def linear_given(h, weight, y, options, dtype, place):
    """The process's own part of weight and bias; all three ask for gradients."""
    leaves = [torch.tensor(k, dtype=DTYPE[dtype]).requires_grad_() for k in (h, own(weight, place, 0))]
    if "bias" in options:
        leaves.append(torch.tensor(own(options["bias"], place, 0), dtype=DTYPE[dtype]).requires_grad_())
        options = options | {"bias": leaves[2]}
    ids = torch.tensor(y)
    return leaves, lambda: xent.linear_ce(*leaves[:2], ids, sharded=group(), **options)
