"""`sharded=` on PyTorch, in processes that each hold some of the classes: `python tests/sharded_torch.py 2 [names]`.

Every check runs in all processes. It compares with the truth, which each works out for itself from whole rows.
"""

import itertools
import sys
import tempfile
import warnings
from functools import partial

import cases
import linear_cases
import numpy as np
import pytest
import torch
import xent
from sharded_heads import dtensors_compiled, linear_dtensor_calls, linear_dtensors
from sharded_meshes import arithmetic, dtensor_calls, dtensor_edges, dtensors, page
from sharded_parts import GATHER, REDUCE, Counted, group, linear_given, own, places, rank, tensors
from xent.benchmarks.frameworks.torch_sharded import Part, side_by_side
from xent.benchmarks.process import Job
from xent.benchmarks.result import Series
from xent.benchmarks.workloads import Workload
from xent.verify import regimes
from xent.verify.tolerance import errors

# ---- checks


def every_option(loss):
    for case in cases.cases(loss):
        x, y = cases.arguments(loss, "float32", case.options)
        want = cases.truth(loss, x, y, cases.held(case.options, "float32"))
        for place in places(x.shape[1]):
            leaf, labels = tensors(x, y, "float32", place)
            got = getattr(xent, loss)(leaf, labels, sharded=group(), **case.options)
            got.sum().backward()
            cases.assert_close(got.detach().numpy(), want.loss, "float32", f"{case} {place} loss", result=True)
            whole = want.logits.copy()  # right where other processes hold it
            whole[:, place] = leaf.grad.numpy()
            cases.assert_close(whole, want.logits, "float32", f"{case} {place} gradient")


def sparse_options():
    every_option("sparse_ce")


def softmax_options():
    every_option("softmax_ce")


def hard_regimes():
    """Leads to 80, offsets to 1e8, -inf, ties: as accurate as of whole rows."""
    for loss, dtype, classes in (
        ("sparse_ce", "float32", 10),
        ("softmax_ce", "float32", 10),
        ("sparse_ce", "float64", 1000),
        ("softmax_ce", "float64", 10),
        ("sparse_ce", "bfloat16", 10),
    ):
        batch = regimes.batch(loss, dtype, classes)
        truth = batch.truth()
        for place in places(classes):
            leaf, labels = tensors(batch.logits, batch.labels, dtype, place)
            got = getattr(xent, loss)(leaf, labels, reduce="none", sharded=group())
            got.sum().backward()
            whole = truth.logits.copy()
            whole[:, place] = leaf.grad.double().numpy()
            off = errors(batch, truth, got.detach().double().numpy(), whole)
            assert off.loss_share.max() <= 1, (loss, dtype, place, batch.regimes[int(off.loss_share.argmax())])
            assert off.grad_share.max() <= 1, (loss, dtype, place, batch.regimes[int(off.grad_share.argmax())])


def in_labels_and_weights():
    """Derivatives in soft labels, also through the class weights' average, and in sample_weight."""
    data = np.random.default_rng(0)
    x, t = data.normal(size=(4, 6)), data.dirichlet(np.ones(6), 4)
    options = {"class_weight": data.uniform(0.5, 2, 6), "z_loss": 0.01, "label_smoothing": 0.1}
    weight = data.uniform(0.5, 2, 4)
    want = xent.oracle.softmax_ce(x, t, sample_weight=weight, **options)
    for place in places(6):
        logits, labels = tensors(x, t, "float64", place)
        w = torch.tensor(weight, requires_grad=True)
        labels.requires_grad_()
        xent.softmax_ce(logits, labels, sample_weight=w, sharded=group(), **options).backward()
        np.testing.assert_allclose(labels.grad, own(want.labels, place), rtol=1e-12, atol=1e-14)
        np.testing.assert_allclose(w.grad, want.sample_weight, rtol=1e-12, atol=1e-14)


def statistics_of_rows():
    """stats=True, and value_and_grad of it, with an id that is left out and one that is no class."""
    x = np.random.default_rng(0).normal(size=(5, 6)).astype("f")
    y = np.array([0, 5, -100, 9, x[4].argmax()])
    options = {"ignore_index": -100, "invalid": "nan", "stats": True, "reduce": "sum"}
    (_, want), grad = xent.value_and_grad(xent.sparse_ce)(torch.tensor(x), torch.tensor(y), **options)
    for place in places(6):
        given = torch.tensor(own(x, place)), torch.tensor(y)
        (loss, stats), dx = xent.value_and_grad(xent.sparse_ce)(*given, sharded=group(), **options)
        assert loss.isnan()
        for got, expected in zip(stats, want, strict=True):
            torch.testing.assert_close(got, expected, equal_nan=True)
        torch.testing.assert_close(dx, grad[:, place], equal_nan=True)


def ids_out_of_range():
    """An error, or NaN, in all processes alike, also in those that hold no class."""
    x = np.random.default_rng(0).normal(size=(3, 4)).astype("f")
    for place in places(4):
        leaf = torch.tensor(own(x, place)).requires_grad_()
        for bad in (4, -1, 2**32):
            y = torch.tensor([0, bad, 1])
            for invalid in ("auto", "raise"):
                with pytest.raises(xent.LabelError, match=rf"the first at \[1\] is {bad}; expected 0 to 3"):
                    xent.sparse_ce(leaf, y, invalid=invalid, sharded=group())
            leaf.grad = None
            each = xent.sparse_ce(leaf, y, invalid="nan", reduce="none", sharded=group())
            each.sum().backward()
            assert each.isnan().tolist() == [False, True, False]
            assert leaf.grad.isnan().all(1).tolist() == [place.stop == place.start, True, place.stop == place.start]


def bad_calls():
    x, y = torch.zeros(3, 2), torch.zeros(3, dtype=torch.int64)
    all_of_them, none, uneven = group(), x[:, :0], slice(rank() + 1)
    for words, call in {
        "sharded: expected a process group": lambda: xent.sparse_ce(x, y, sharded="tp"),
        "sharded: the adapter of numpy": lambda: xent.sparse_ce(x.numpy(), y.numpy(), sharded=all_of_them),
        "sharded: .* torch.func": lambda: torch.func.grad(lambda x: xent.sparse_ce(x, y, sharded=all_of_them))(x),
        "sharded: expected the same rows": lambda: xent.sparse_ce(x[uneven], y[uneven], sharded=all_of_them),
        "sharded: expected at least one class on": lambda: xent.sparse_ce(none, y, sharded=all_of_them),
        "class_weight: expected shape": lambda: xent.sparse_ce(x, y, class_weight=[1.0, 2.0], sharded=all_of_them),
        r"labels: expected shape \(3, 2\)": lambda: xent.softmax_ce(x, torch.zeros(3, 4), sharded=all_of_them),
    }.items():
        with pytest.raises((TypeError, ValueError), match=words):
            call()


def collectives():
    """Forward two gathers, of two numbers a process and of the rows' statistics; backward none.

    What is moved and held is what docs/sharding.md says.
    """
    bytes_of, count = arithmetic(), torch.distributed.get_world_size()
    n, length = 50, 8 // count
    y, t = torch.zeros(n, dtype=torch.int64), torch.rand(n, length)
    for smoothing, class_weight, soft in itertools.product((False, True), repeat=3):
        plain = not (smoothing or class_weight)
        options = {"z_loss": 0.0 if plain else 0.1, "label_smoothing": 0.1 if smoothing else 0.0}
        options["class_weight"] = np.ones(8) if class_weight else None
        leaf, kept = torch.randn(n, length).requires_grad_(), {}
        given = leaf, t if soft else y
        with Counted() as forward, torch.autograd.graph.saved_tensors_hooks(partial(keep, kept), lambda k: k):
            value = (xent.softmax_ce if soft else xent.sparse_ce)(*given, reduce="none", sharded=group(), **options)
        with Counted() as backward:
            value.sum().backward()
        assert forward.get_comm_counts() == {GATHER: 2}, forward.get_comm_counts()
        assert backward.get_total_counts() == 0
        a_row = bytes_of["handed_out"](soft, smoothing, class_weight)
        assert a_row <= (24 if soft or smoothing else 16)
        moved = bytes_of["sent"](n, count, a_row, smoothing)
        assert sum(forward.sizes) * (count - 1) == moved, (forward.sizes, moved)
        if plain:
            beside = {place: size for place, size in kept.items() if place not in (leaf.data_ptr(), t.data_ptr())}
            assert sum(beside.values()) == bytes_of["held"](n, soft), beside


def keep(kept, k):
    """What autograd saves, by where it is."""
    kept[k.data_ptr()] = k.numel() * k.element_size()
    return k


def linear_options():
    """Also in chunks of three rows, and hidden states and weights of 16 bits."""
    every = linear_cases.matrix(cases.combinations(linear_cases.OPTIONS))
    few = linear_cases.matrix(linear_cases.FEW)
    for case, dtype in (*((case, "float32") for case in every), *((case, "bfloat16") for case in few)):
        h, weight, y = linear_cases.arguments(dtype, case.options)
        truth = xent.oracle.linear_ce(h, weight, y, **linear_cases.held(case.options, dtype))
        for place, chunk in zip(places(len(weight)), (None, 3, 3, None, 3, None), strict=True):
            leaves, loss = linear_given(h, weight, y, case.options | {"chunk_rows": chunk}, dtype, place)
            value = loss()
            value.sum().backward()
            what = f"{case.name} {dtype} {place}"
            linear_cases.assert_close(value.detach(), truth.loss, linear_cases.LOSS_BARS[dtype], what)
            wants = truth.hidden, own(truth.weight, place, 0), own(truth.bias, place, 0)
            for leaf, want in zip(leaves, wants, strict=False):
                linear_cases.assert_close(leaf.grad.float(), want, linear_cases.BARS[dtype], what)


def linear_statistics():
    """stats=True, value_and_grad, and a mean over nothing although rows are there."""
    h, weight, y = linear_cases.arguments("float64", {})
    y[0, 0] = -100
    options = {"ignore_index": -100, "stats": True}
    both = xent.value_and_grad(xent.linear_ce)
    (want, stats), grads = both(*map(torch.tensor, (h, weight, y)), bias=torch.tensor(linear_cases.BIAS), **options)
    for place in places(len(weight)):
        part, bias = torch.tensor(own(weight, place, 0)), torch.tensor(own(linear_cases.BIAS, place, 0))
        (loss, found), got = both(torch.tensor(h), part, torch.tensor(y), bias=bias, sharded=group(), **options)
        torch.testing.assert_close((loss, *found), (want, *stats))
        torch.testing.assert_close(got, xent.Grads(grads.hidden, grads.weight[place], grads.bias[place]))
        leaves, nothing = linear_given(h * np.inf, weight, y, options | {"denom": 0}, "float64", place)
        value, _ = nothing()
        value.backward()
        assert not any(k.any() for k in (value, *(leaf.grad for leaf in leaves)))


def linear_collectives():
    """The hidden states' gradient is added up once, in float32, and it is what docs/sharding.md says."""
    bytes_of, count = arithmetic(), torch.distributed.get_world_size()
    for dtype in ("float32", "bfloat16"):
        h, weight, y = linear_cases.arguments(dtype, {})
        _, loss = linear_given(h, weight, y, {}, dtype, next(iter(places(len(weight)))))
        with Counted() as forward:
            value = loss()
        with Counted() as backward:
            value.backward()
        assert forward.get_comm_counts() == {GATHER: 2}
        assert sum(forward.sizes) * (count - 1) == bytes_of["sent"](y.size, count, bytes_of["handed_out"]())
        assert backward.get_comm_counts() == {REDUCE: 1}
        assert backward.sizes == [bytes_of["reduced"](y.size, linear_cases.FEATURES)]


def total_of_all_ranks():
    """Of other labels on each rank."""
    labels = torch.tensor([[1, -100, 2], [-100, -100, 0]][rank() % 2])
    given = {"ignore_index": -100, "class_weight": [1.0, 2.0, 4.0]}
    want = sum((6.0, 1.0)[k % 2] for k in range(torch.distributed.get_world_size()))
    assert xent.total_weight(labels, group=group(), **given) == want
    assert xent.total_weight(labels, **given) == (6.0, 1.0)[rank() % 2]
    with pytest.raises(TypeError, match="group: expected a process group"):
        xent.total_weight(labels, group="dp")
    with pytest.raises(TypeError, match="group: the adapter of numpy"):
        xent.total_weight(labels.numpy(), group=group())


def benchmark():
    """`xent bench --workload lm-sharded`: both losses are right, and what they send is what docs/sharding.md says."""
    count, bytes_of = torch.distributed.get_world_size(), arithmetic()
    workload = Workload("sharded", "small", "sparse_ce", (64, 32), ranks=count)
    every = [Series(name, "torch", "eager", name == "xent", "both") for name in ("xent", "loss_parallel")]
    job = Job("torch", "cpu", 1, ("eager",), ("both",), rivals=True, rounds=2, seconds=0, cases=[])
    side_by_side(Part(rank(), workload, "float32", 0), job, every)
    ours, rival = every
    assert ours.sent == bytes_of["sent"](64, count, bytes_of["handed_out"]())
    assert rival.sent == 3 * bytes_of["sent_by_reductions"](64, count, 4)  # maximum, sum, the label's logit
    assert rival.ratio == rival.best
    for series in every:
        assert not series.problem
        assert series.time.rounds == 2
        assert rank() or 0 < series.gradient_error < 1e-5


def compiled():
    """As one graph, which asks for the sizes when it runs: every loss, and every option."""
    data = np.random.default_rng(0)
    x, t, y = data.normal(size=(5, 6)), data.dirichlet(np.ones(6), 5), np.array([0, 5, -100, 3, 9])
    options = {"class_weight": data.uniform(0.5, 2, 6), "z_loss": 0.01, "label_smoothing": 0.1}
    options["sample_weight"] = torch.tensor([1.0, 0.0, 2.0, 0.5, 1.0])
    of_ids = options | {"ignore_index": -100, "invalid": "ignore"}

    h, weight, ids = linear_cases.arguments("float64", {})
    head = {"bias": linear_cases.BIAS, "softcap": 2.0}

    @partial(torch.compile, fullgraph=True, backend="aot_eager")
    def losses(x, t, y, call):
        hard, stats = xent.sparse_ce(x, y, reduce="sum", stats=True, sharded=group(), **of_ids)
        mean = xent.softmax_ce(x, t, sharded=group(), **options)
        return hard, stats.nll, mean, xent.sparse_ce(x.detach(), y, sharded=group()), call()

    place, part = next(iter(places(6))), next(iter(places(len(weight))))
    logits, soft = tensors(x, t, "float64", place)
    leaves, call = linear_given(h, weight, ids, head, "float64", part)
    hard, nll, mean, invalid, of_hidden = losses(logits, soft, torch.tensor(y), call)
    want = xent.oracle.sparse_ce(x, y, reduce="sum", **of_ids)
    want_soft = xent.oracle.softmax_ce(x, t, **options)
    np.testing.assert_allclose((hard.item(), mean.item()), (want.loss, want_soft.loss), rtol=1e-6)
    assert nll[2] == 0
    assert invalid.isnan()
    (hard + mean + of_hidden).backward()
    np.testing.assert_allclose(logits.grad, own(want.logits + want_soft.logits, place), rtol=1e-6, atol=1e-9)
    truth = xent.oracle.linear_ce(h, weight, ids, **head)
    np.testing.assert_allclose(of_hidden.item(), truth.loss, rtol=1e-12)
    for leaf, k in zip(leaves, (truth.hidden, own(truth.weight, part, 0), own(truth.bias, part, 0)), strict=True):
        np.testing.assert_allclose(leaf.grad, k, rtol=1e-11, atol=1e-13)


CHECKS = {
    check.__name__: check
    for check in (
        sparse_options,
        softmax_options,
        hard_regimes,
        in_labels_and_weights,
        statistics_of_rows,
        ids_out_of_range,
        bad_calls,
        collectives,
        dtensors_compiled,
        page,
        linear_options,
        linear_statistics,
        linear_collectives,
        total_of_all_ranks,
        dtensors,
        dtensor_calls,
        dtensor_edges,
        linear_dtensors,
        linear_dtensor_calls,
        benchmark,
        compiled,
    )
}


# ---- processes


def run(index, rendezvous, count, names):
    warnings.simplefilter("error")
    warnings.filterwarnings("ignore", ".*should not be instantiated", DeprecationWarning)  # torch.compile does so
    torch.distributed.init_process_group("gloo", init_method=rendezvous, rank=index, world_size=count)
    for name in names:
        torch.manual_seed(0)
        CHECKS[name]()
        if index == 0:
            print("passed", name, flush=True)
    torch.distributed.destroy_process_group()


def main(count, *names):
    torch.set_num_threads(1)  # no threads before the fork
    torch.compile(lambda x: x + 1, backend="aot_eager")(torch.zeros(1))  # imports the compiler once, for all processes
    with tempfile.TemporaryDirectory() as folder:
        arguments = (f"file://{folder}/rendezvous", int(count), names or tuple(CHECKS))
        torch.multiprocessing.start_processes(run, arguments, nprocs=int(count), start_method="fork")


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
