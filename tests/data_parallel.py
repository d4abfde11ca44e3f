"""What docs/language_models.md says of DDP, run on two processes: `python tests/data_parallel.py`.

The gradients that DDP leaves on every rank have to be the whole batch's.
"""

import re
import sys
import tempfile
from pathlib import Path

import torch
import xent
from torch.nn.parallel import DistributedDataParallel

PAGE = Path(__file__).parents[1] / "docs" / "language_models.md"
PARTS = (slice(0, 2), slice(2, 7))  # of other lengths, and with other shares of ignored tokens
TARGETS = torch.tensor([1, 3, -100, 0, 2, -100, 3])


class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.head = torch.nn.Linear(3, 5), torch.nn.Linear(5, 4, bias=False)

    def forward(self, x):
        return self.body(x)


def gradients(model):
    return [parameter.grad.clone() for parameter in model.parameters()]


def check(rank, rendezvous, block):
    torch.distributed.init_process_group("gloo", init_method=rendezvous, rank=rank, world_size=len(PARTS))
    torch.manual_seed(0)
    model, x = Model(), torch.randn(len(TARGETS), 3)
    xent.linear_ce(model(x), model.head.weight, TARGETS, ignore_index=-100).backward()
    whole = gradients(model)
    model.zero_grad()
    part = PARTS[rank]
    parallel = DistributedDataParallel(model)
    hidden = parallel(x[part])
    exec(block, {"torch": torch, "xent": xent, "hidden": hidden, "weight": model.head.weight, "targets": TARGETS[part]})
    torch.testing.assert_close(gradients(model), whole)
    torch.distributed.destroy_process_group()


def main():
    torch.set_num_threads(1)  # no threads before the fork
    section = PAGE.read_text(encoding="utf-8").partition("## Gradient accumulation and data parallel")[2]
    block = re.search(r"```python\n(.*?)```", section, re.DOTALL)[1]
    with tempfile.TemporaryDirectory() as folder:
        arguments = (f"file://{folder}/rendezvous", block)
        torch.multiprocessing.start_processes(check, arguments, nprocs=len(PARTS), start_method="fork")


if __name__ == "__main__":
    sys.exit(main())
