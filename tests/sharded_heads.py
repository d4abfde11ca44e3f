"""Checks of sharded_torch.py: `linear_ce` of DTensors, and of weights that FSDP has cut into shards."""

from functools import partial

import linear_cases
import numpy as np
import pytest
import torch
import xent
from sharded_parts import DTYPE
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Replicate, distribute_tensor
from torch.distributed.tensor import Shard as DShard
from torch.distributed.tensor.debug import CommDebugMode

C10D, FUNCTIONAL = torch.ops.c10d, torch.ops.c10d_functional


def layouts():
    """Meshes, and how hidden states [rows, rows, features] and the weight lie on them; of None it is a plain tensor."""
    count = torch.distributed.get_world_size()
    line = init_device_mesh("cpu", (count,))
    same, rows, classes = [Replicate()], [DShard(0)], [DShard(0)]
    yield line, same, classes  # tensor parallel
    yield line, rows, classes  # as FSDP keeps a weight
    yield line, rows, same
    yield line, rows, None
    yield line, [DShard(2)], [DShard(1)]  # features, which have to be gathered
    plane = init_device_mesh("cpu", (count // 2, 2))
    yield plane, [DShard(0), Replicate()], [Replicate(), DShard(0)]  # rows over one dimension, classes over the other
    yield plane, [DShard(1), Replicate()], [DShard(0), DShard(0)]  # FSDP and tensor parallel
    yield plane, [Replicate(), Replicate()], [DShard(0), DShard(0)]  # classes over both


def spread(k, mesh, placements, dtype):
    k = torch.tensor(k, dtype=DTYPE[dtype])
    return (k if placements is None else distribute_tensor(k, mesh, placements)).requires_grad_()


def whole(k):
    return k.full_tensor() if isinstance(k, DTensor) else k


def linear_dtensors():
    """The loss of the whole on every rank, and gradients that are spread as the arguments are."""
    for mesh, of_hidden, of_weight in layouts():
        for case in linear_cases.matrix(linear_cases.FEW):
            h, weight, y = linear_cases.arguments("float32", case.options)
            truth = xent.oracle.linear_ce(h, weight, y, **linear_cases.held(case.options, "float32"))
            of_bias = of_weight and [k if k == DShard(0) else Replicate() for k in of_weight]
            leaves = [spread(h, mesh, of_hidden, "float32"), spread(weight, mesh, of_weight, "float32")]
            options = case.options
            if "bias" in options:
                leaves.append(spread(options["bias"], mesh, of_bias, "float32"))
                options = options | {"bias": leaves[2]}
            value = xent.linear_ce(*leaves[:2], torch.tensor(y), **options)
            value.sum().backward()
            what = f"{case.name} {mesh} {of_hidden} {of_weight}"
            linear_cases.assert_close(whole(value).detach(), truth.loss, linear_cases.LOSS_BARS["float32"], what)
            for leaf, want in zip(leaves, (truth.hidden, truth.weight, truth.bias), strict=False):
                assert getattr(leaf.grad, "placements", None) == getattr(leaf, "placements", None), what
                linear_cases.assert_close(whole(leaf.grad), want, linear_cases.BARS["float32"], what)


def linear_dtensor_calls():
    """Statistics, value_and_grad, learned weights, plain parameters, ids out of range, what is moved, and errors."""
    count = torch.distributed.get_world_size()
    line = init_device_mesh("cpu", (count,))
    h, weight, y = linear_cases.arguments("float64", {})
    options = {"ignore_index": 3, "bias": linear_cases.BIAS}
    want = xent.oracle.linear_ce(h, weight, y, **options)
    w = np.random.default_rng(0).uniform(0.5, 2, y.shape)
    weighted = xent.oracle.linear_ce(h, weight, y, sample_weight=w, **options)
    for of_hidden, of_weight in ((Replicate(), DShard(0)), (DShard(0), DShard(0)), (DShard(0), None)):
        hidden = distribute_tensor(torch.tensor(h), line, [of_hidden])
        head = torch.tensor(weight) if of_weight is None else distribute_tensor(torch.tensor(weight), line, [of_weight])
        (loss, stats), grads = xent.value_and_grad(xent.linear_ce)(hidden, head, y, stats=True, **options)
        np.testing.assert_allclose(loss.full_tensor(), want.loss, rtol=1e-13)
        for grad, like in zip(grads, (want.hidden, want.weight, want.bias), strict=True):
            np.testing.assert_allclose(whole(grad), like, rtol=1e-11, atol=1e-14)
        assert stats.nll.full_tensor().shape == y.shape
        learned = torch.tensor(w, requires_grad=True)
        xent.linear_ce(hidden, head, y, sample_weight=learned, **options).backward()
        np.testing.assert_allclose(learned.grad, weighted.sample_weight, rtol=1e-11, atol=1e-14)
        bad = np.where(y == 2, 9, y)
        if of_hidden == Replicate():
            with pytest.raises(xent.LabelError, match="is 9; expected 0 to 8"):
                xent.linear_ce(hidden, head, bad)
        else:
            assert xent.linear_ce(hidden, head, bad).isnan().full_tensor()
    fsdp = distribute_tensor(torch.tensor(weight), line, [DShard(0)]).requires_grad_()
    with CommDebugMode() as forward:
        loss = xent.linear_ce(hidden, fsdp, torch.tensor(y))
    with CommDebugMode() as backward:
        loss.backward()
    assert forward.get_comm_counts() == {FUNCTIONAL.all_gather_into_tensor: 1, C10D.allreduce_: 2}  # denominator, loss
    assert backward.get_comm_counts() == {FUNCTIONAL.reduce_scatter_tensor: 1}
    plane = init_device_mesh("cpu", (count // 2, 2))
    elsewhere = distribute_tensor(torch.tensor(weight), plane, [Replicate(), DShard(0)])
    plain = torch.tensor(h)
    for words, call in {
        "weight: a DTensor beside plain hidden states": lambda: xent.linear_ce(plain, fsdp, y),
        "bias: a DTensor beside": lambda: xent.linear_ce(plain, torch.tensor(weight), y, bias=fsdp[:, 0]),
        "weight: expected a DTensor on the mesh of hidden": lambda: xent.linear_ce(hidden, elsewhere, y),
        r"weight: expected shape \(classes, 6\)": lambda: xent.linear_ce(hidden, fsdp[:, 1:], y),
        r"bias: expected shape \(9,\)": lambda: xent.linear_ce(hidden, fsdp, y, bias=torch.ones(8)),
        r"labels: expected shape \(4, 5\)": lambda: xent.linear_ce(hidden, fsdp, y[:2]),
        "invalid: 'raise' has to read": lambda: xent.linear_ce(hidden, fsdp, y, invalid="raise"),
    }.items():
        with pytest.raises((TypeError, ValueError), match=words):
            call()


def dtensors_compiled():
    """As one graph, which is also the first call with a DTensor. On two processes only hidden states whose rows are
    spread: with the same on each, the classes' collectives are those that the logits' loss compiles."""
    count = torch.distributed.get_world_size()
    line = init_device_mesh("cpu", (count,))
    h, weight, y = linear_cases.arguments("float64", {})
    x = h @ weight.T
    logits = spread(x, line, [DShard(2)], "float64")
    fsdp, ids = spread(weight, line, [DShard(0)], "float64"), torch.tensor(y)
    every = [spread(h, line, [how], "float64") for how in (DShard(0), Replicate())[: count - 1]]

    @partial(torch.compile, fullgraph=True, backend="aot_eager")
    def losses(logits, every, fsdp):
        options = {"z_loss": 0.01, "invalid": "ignore"}
        return xent.sparse_ce(logits, ids, **options), *(xent.linear_ce(k, fsdp, ids, **options) for k in every)

    values = losses(logits, every, fsdp)
    want = xent.oracle.linear_ce(h, weight, y, z_loss=0.01)
    for value in values:
        np.testing.assert_allclose(value.full_tensor().item(), want.loss, rtol=1e-12)
    sum(values).backward()
    np.testing.assert_allclose(whole(fsdp.grad), len(every) * want.weight, rtol=1e-10, atol=1e-13)
    of_logits = xent.oracle.sparse_ce(x, y, z_loss=0.01).logits
    for leaf, like in ((logits, of_logits), *((hidden, want.hidden) for hidden in every)):
        np.testing.assert_allclose(whole(leaf.grad), like, rtol=1e-10, atol=1e-13)
