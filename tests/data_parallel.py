"""What the pages say of DDP and FSDP, run on two processes: `python tests/data_parallel.py`.

The gradients that each block of code leaves on every rank have to be the whole batch's.
"""

import re
import sys
import tempfile
from pathlib import Path

import torch
import xent
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

DOCS = Path(__file__).parents[1] / "docs"
PARTS = (slice(0, 2), slice(2, 7))  # of other lengths, and with other shares of ignored tokens
LABELS = torch.tensor([1, 3, -100, 0, 2, -100, 3])


class Model(torch.nn.Module):
    """Up to the logits, or only to the hidden states."""

    def __init__(self, has_logits):
        super().__init__()
        self.body, self.head = torch.nn.Linear(3, 5), torch.nn.Linear(5, 4, bias=False)
        self.has_logits = has_logits

    def forward(self, x):
        return self.head(self.body(x)) if self.has_logits else self.body(x)


def gradients(model):
    """Whole, also of parameters that FSDP has cut into shards."""
    found = [parameter.grad for parameter in model.parameters()]
    return [grad.full_tensor() if hasattr(grad, "full_tensor") else grad.clone() for grad in found]


def code(page):
    return re.findall(r"```python\n(.*?)```", (DOCS / page).read_text(encoding="utf-8"), re.DOTALL)


def check(rank, rendezvous, of_hidden, of_models):
    torch.distributed.init_process_group("gloo", init_method=rendezvous, rank=rank, world_size=len(PARTS))
    x, part = torch.randn(len(LABELS), 3, generator=torch.Generator().manual_seed(0)), PARTS[rank]
    for block in (of_hidden, *of_models):
        torch.manual_seed(0)
        model = Model(has_logits=block in of_models and "linear_ce" not in block)
        logits = model(x) if model.has_logits else model.head(model(x))
        xent.sparse_ce(logits, LABELS, ignore_index=-100).backward()
        whole = gradients(model)
        model.zero_grad()
        given = {"torch": torch, "xent": xent, "fully_shard": fully_shard}
        if block in of_models:
            given |= {"model": model, "inputs": x[part], "labels": LABELS[part]}
        else:
            parallel = DistributedDataParallel(model)  # it has to live until the backward pass
            given |= {"hidden": parallel(x[part]), "weight": model.head.weight, "targets": LABELS[part]}
        exec(block, given)
        torch.testing.assert_close(gradients(model), whole)
    torch.distributed.destroy_process_group()


def main():
    torch.set_num_threads(1)  # no threads before the fork
    (of_hidden,) = [block for block in code("language_models.md") if "group=" in block]
    of_models = code("trainers/data_parallel.md")
    assert len(of_models) == 3
    with tempfile.TemporaryDirectory() as folder:
        arguments = (f"file://{folder}/rendezvous", of_hidden, of_models)
        torch.multiprocessing.start_processes(check, arguments, nprocs=len(PARTS), start_method="fork")


if __name__ == "__main__":
    sys.exit(main())
