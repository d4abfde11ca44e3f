"""Checks of sharded_torch.py: DTensors as logits, and the code of docs/sharding.md."""

import re
from pathlib import Path

import cases
import linear_cases
import numpy as np
import pytest
import torch
import xent
from sharded_parts import group, own, places
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import Replicate, distribute_tensor
from torch.distributed.tensor import Shard as DShard


def code():
    """The page's, block after block."""
    page = Path(__file__).parents[1] / "docs" / "sharding.md"
    return re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)


def arithmetic():
    names = {}
    exec(code()[-1], names)
    return names


def page():
    """Its calls give every rank the loss of all classes, and its part of the gradient."""
    h, weight, y = linear_cases.arguments("float64", {"ignore_index": -100})
    h[np.isnan(h)] = 0
    truth = xent.oracle.linear_ce(h, weight, y, ignore_index=-100)
    place = next(iter(places(len(weight))))
    for block in code()[:2]:
        names = {"xent": xent, "group": group(), "targets": torch.tensor(y), "hidden": torch.tensor(h)}
        names["weight"] = torch.tensor(own(weight, place, 0)).requires_grad_()
        exec(block, names)
        np.testing.assert_allclose(names["loss"].item(), truth.loss, rtol=1e-12)
        np.testing.assert_allclose(names["weight"].grad, own(truth.weight, place, 0), rtol=1e-10, atol=1e-12)
    names = {"xent": xent, "torch": torch, "targets": torch.tensor(y), "data_group": group()}
    exec(code()[2], names)
    assert names["denom"] == (y != -100).sum()
    x, ids = torch.randn(4, 6), torch.tensor([0, 5, 2, 3])
    mesh = init_device_mesh("cpu", (torch.distributed.get_world_size() // 2, 2))
    names = {"xent": xent, "whole": x, "targets": ids, "mesh": mesh}
    exec(code()[3], names | {"distribute_tensor": distribute_tensor, "Shard": DShard}, names)
    torch.testing.assert_close(names["loss"].full_tensor(), xent.sparse_ce(x, ids))
    names |= {"states": x, "weight": torch.randn(5, 6), "targets": ids % 5}
    exec(code()[4], names | {"distribute_tensor": distribute_tensor, "Shard": DShard, "Replicate": Replicate}, names)
    torch.testing.assert_close(names["loss"].full_tensor(), xent.linear_ce(x, names["weight"], ids % 5))


def meshes():
    """On one dimension and on two: how logits of three axes, classes in the middle, may be spread over them."""
    count = torch.distributed.get_world_size()
    line = init_device_mesh("cpu", (count,))
    for placement in (Replicate(), DShard(0), DShard(1), DShard(2)):
        yield line, [placement]
    plane = init_device_mesh("cpu", (count // 2, 2))
    for first, second in ((0, 1), (1, 0), (2, 0), (0, 0), (1, 1)):
        yield plane, [DShard(first), DShard(second)]
    yield plane, [Replicate(), DShard(1)]


def dtensors():
    """The loss of the whole, on every rank, and a gradient that is spread as the logits are."""
    for mesh, placements in meshes():
        for loss in ("sparse_ce", "softmax_ce", "sigmoid_ce"):
            for case in cases.few(loss):
                check_dtensor(loss, case, mesh, placements)


def check_dtensor(loss, case, mesh, placements):
    x, y = cases.arguments(loss, "float32", case.options)
    want = cases.truth(loss, x, y, cases.held(case.options, "float32"))
    logits = distribute_tensor(torch.tensor(x, dtype=torch.float32), mesh, placements).requires_grad_()
    labels = torch.tensor(y) if loss == "sparse_ce" else torch.tensor(y, dtype=torch.float32)
    if case.options["reduce"] in ("mean", "none"):  # labels are DTensors, too, spread as they come
        labels = distribute_tensor(labels, mesh, [Replicate()] * mesh.ndim)
    got = getattr(xent, loss)(logits, labels, **case.options)
    assert type(got) is type(logits)
    got.sum().backward()
    what = f"{loss} {case} {placements}"
    cases.assert_close(got.full_tensor().detach().numpy(), want.loss, "float32", f"{what} loss", result=True)
    assert logits.grad.placements == logits.placements
    cases.assert_close(logits.grad.full_tensor().numpy(), want.logits, "float32", f"{what} gradient")


def dtensor_calls():
    """Statistics and value_and_grad, weights that are learned, ids out of range, and what is an error."""
    line = init_device_mesh("cpu", (torch.distributed.get_world_size(),))
    data = np.random.default_rng(0)
    x, y, w = data.normal(size=(5, 6)), np.array([0, 5, -100, 3, 2]), data.uniform(0.5, 2, 5)
    options = {"ignore_index": -100, "label_smoothing": 0.1, "z_loss": 0.01}
    want = xent.oracle.sparse_ce(x, y, sample_weight=w, **options)
    for placement in (Replicate(), DShard(0), DShard(1)):
        logits = distribute_tensor(torch.tensor(x), line, [placement])
        weight = torch.tensor(w, requires_grad=True)
        both = xent.value_and_grad(xent.sparse_ce)
        (loss, stats), grad = both(logits, y, sample_weight=w, stats=True, **options)
        np.testing.assert_allclose(loss.full_tensor(), want.loss, rtol=1e-13)
        np.testing.assert_allclose(grad.full_tensor(), want.logits, rtol=1e-11, atol=1e-14)
        assert stats.nll.full_tensor().shape == (5,)
        xent.sparse_ce(logits, y, sample_weight=weight, **options).backward()
        np.testing.assert_allclose(weight.grad, want.sample_weight, rtol=1e-12, atol=1e-14)
        if placement == DShard(0):
            assert xent.sparse_ce(logits, y).isnan().full_tensor()
            with pytest.raises(ValueError, match="invalid: 'raise' has to read all"):
                xent.sparse_ce(logits, y, invalid="raise")
        else:
            with pytest.raises(xent.LabelError, match=r"the first at \[2\] is -100"):
                xent.sparse_ce(logits, y)
    ranks = torch.arange(torch.distributed.get_world_size())
    backwards = distribute_tensor(torch.tensor(x), DeviceMesh("cpu", ranks.flip(0)), [DShard(1)])
    for words, call in {
        "logits: expected a mesh whose ranks ascend": lambda: xent.sparse_ce(backwards, y),
        "labels: a torch.distributed.tensor array": lambda: xent.softmax_ce(logits.full_tensor(), logits),
        "sharded: the adapter of torch.distributed": lambda: xent.sparse_ce(logits, y, sharded=group()),
        r"labels: expected shape \(5,\)": lambda: xent.sparse_ce(logits, y[:4]),
        "logits: DTensors go to softmax_ce, sparse_ce and sigmoid_ce only": lambda: xent.log_prob(logits, y),
        "logits: DTensors go to .* only; use to_local": lambda: xent.entropy(logits),
    }.items():
        with pytest.raises((TypeError, ValueError), match=words):
            call()


def dtensor_edges():
    """An infinite loss among one process's rows; a learned weight of all rows, also one of length 1 that is sharded."""
    line = init_device_mesh("cpu", (torch.distributed.get_world_size(),))
    data = np.random.default_rng(0)
    x, y = data.normal(size=(5, 6)), np.array([0, 5, 1, 3, 2])
    x[0, 0] = -np.inf
    for placement in (DShard(0), DShard(1)):
        logits = distribute_tensor(torch.tensor(x), line, [placement])
        loss, grad = xent.value_and_grad(xent.sparse_ce)(logits, y)
        assert loss.full_tensor() == np.inf
        torch.testing.assert_close(grad.full_tensor(), xent.value_and_grad(xent.sparse_ce)(torch.tensor(x), y)[1])
        each = xent.sparse_ce(torch.tensor(x), torch.tensor(y), reduce="none")[1:].sum()
        for weight in (torch.tensor(1.5), distribute_tensor(torch.tensor([1.5]), line, [DShard(0)])):
            learned = weight.double().requires_grad_()
            finite = distribute_tensor(torch.tensor(x[1:]), line, [placement])
            xent.sparse_ce(finite, y[1:], sample_weight=learned, reduce="sum").backward()
            got = learned.grad.full_tensor() if learned.ndim else learned.grad
            torch.testing.assert_close(got.squeeze(), each)
