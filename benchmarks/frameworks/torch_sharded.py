"""Classes that are split over processes: xent's `sharded=` beside PyTorch's `loss_parallel`.

All processes take the same turns, which begin together and end with the last of them.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import random
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import torch
import xent
from torch import distributed
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard
from torch.distributed.tensor.debug import CommDebugMode
from torch.distributed.tensor.parallel import loss_parallel
from torch.multiprocessing.spawn import start_processes
from xent.benchmarks import measure
from xent.benchmarks.result import ENOUGH, Series, compare
from xent.benchmarks.truth import truth, wrong
from xent.benchmarks.workloads import Workload

Array = Any
# Where a collective's arguments have what a process brings, and how often that goes round a ring, piece by piece.
MOVED = {"_allgather_base_": (1, 1), "all_gather_into_tensor": (0, 1), "allreduce_": (0, 2), "all_reduce": (0, 2)}


def measured(workload: Workload, dtype: str, job: Any, seed: int) -> list[Series]:
    """Starts the processes. `job` is a `process.Job`."""
    with tempfile.TemporaryDirectory() as folder:
        start_processes(of_rank, (folder, workload, dtype, job, seed), workload.ranks, start_method="spawn")
        found: list[Series] = pickle.loads((Path(folder) / "series").read_bytes())
    return found


def of_rank(rank: int, folder: str, workload: Workload, dtype: str, job: Any, seed: int) -> None:
    if sys.platform == "linux":
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    torch.set_num_threads(max(1, job.threads // workload.ranks))
    where = f"file://{folder}/rendezvous"
    distributed.init_process_group("gloo", init_method=where, rank=rank, world_size=workload.ranks)
    names = ["xent", *(["loss_parallel"] if job.rivals else [])] if "eager" in job.modes else []
    every = [Series(name, "torch", "eager", name == "xent", which) for name in names for which in job.passes]
    side_by_side(Part(rank, workload, dtype, seed), job, every)
    if rank == 0:
        (Path(folder) / "series").write_bytes(pickle.dumps(every))
    distributed.destroy_process_group()


class Part:
    """A process's own part of the logits, and the losses of all of them."""

    def __init__(self, rank: int, workload: Workload, dtype: str, seed: int) -> None:
        self.workload, self.dtype = workload, dtype
        x, y = workload.arrays(seed)
        whole, self.ids = torch.tensor(x).to(getattr(torch, dtype)), torch.tensor(y)
        own = whole.chunk(workload.ranks, 1)[rank].contiguous()
        self.mesh = init_device_mesh("cpu", (workload.ranks,))
        self.given = {"xent": own, "loss_parallel": DTensor.from_local(own, self.mesh, [Shard(1)])}
        self.true = truth(workload, wide(whole).numpy(), y) if rank == 0 else None

    def call(self, name: str, which: str) -> tuple[Array, Array | None]:
        x = self.given[name].detach().requires_grad_(which == "both")
        with loss_parallel() if name == "loss_parallel" else contextlib.nullcontext():
            if name == "xent":
                value = xent.sparse_ce(x, self.ids, sharded=distributed.group.WORLD)
            else:
                value = torch.nn.functional.cross_entropy(x, self.ids)
            if which == "both":
                value.backward()
        return value.detach(), x.grad

    def seconds(self, series: Series) -> float:
        return measure.seconds(iter([partial(self.call, series.name, series.which)]), lambda _: None)

    def check(self, series: Series) -> None:
        """The first call, what it sends, and whether a second one is right."""
        with Sent() as sent:
            series.first = self.seconds(series)
        assert sent.calls == sent.get_total_counts()
        series.sent = sent.bytes
        loss, gradient = self.call(series.name, series.which)
        loss = loss.full_tensor() if isinstance(loss, DTensor) else loss
        if gradient is not None:
            own = gradient.to_local() if isinstance(gradient, DTensor) else gradient
            gradient = DTensor.from_local(wide(own), self.mesh, [Shard(1)]).full_tensor().numpy()
        if self.true is not None:
            series.value_error = self.true.value_error(wide(loss).numpy())
            series.gradient_error = None if gradient is None else self.true.gradient_error(gradient, self.dtype)
            series.problem = wrong(self.workload, self.dtype, str(loss.dtype).removeprefix("torch."), series)
        series.problem = of_first(series.problem)


def side_by_side(part: Part, job: Any, every: list[Series]) -> None:
    """Sets what is measured of each."""
    for series in every:
        part.check(series)
    timed = [(series, list[float]()) for series in every if not series.problem]
    for series, _ in timed:
        _, own = measure.peak(partial(part.seconds, series))
        series.memory = None if own is None else int(most(own))
    end = time.monotonic() + job.seconds
    for number in range(job.rounds):
        if of_first(number >= ENOUGH and time.monotonic() > end):
            break
        for series, samples in random.Random(number).sample(timed, len(timed)):
            distributed.barrier()
            samples.append(most(part.seconds(series)))
    compare(timed)


class Sent(CommDebugMode):
    """Counts the bytes that a process sends where all of them form a ring."""

    bytes = calls = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.overloadpacket.__name__ in MOVED:
            place, times = MOVED[func.overloadpacket.__name__]
            k, ranks = args[place], distributed.get_world_size()
            k = k[0] if isinstance(k, list) else k
            self.bytes += times * (ranks - 1) * k.numel() * k.element_size() // (ranks if times == 2 else 1)
            self.calls += 1
        return super().__torch_dispatch__(func, types, args, kwargs)


def wide(k: Array) -> Array:
    """NumPy has no bfloat16."""
    return k.float() if k.dtype.itemsize == 2 else k


def most(own: float) -> float:
    """Of all processes."""
    largest = torch.tensor(own, dtype=torch.float64)
    distributed.all_reduce(largest, distributed.ReduceOp.MAX)
    return largest.item()


def of_first(own: Any) -> Any:
    """What the first process has."""
    known = [own]
    distributed.broadcast_object_list(known)
    return known[0]
