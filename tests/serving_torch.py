"""PyTorch's files with a loss in them. Knows nothing of xent."""

from types import SimpleNamespace

import torch


class Exported(torch.nn.Module):
    def __init__(self, loss):
        super().__init__()
        self.loss = loss

    def forward(self, x, *rest):
        return self.loss(x, *rest)


def tensors(x, rest):
    return torch.tensor(x, requires_grad=True), *map(torch.tensor, rest)


def save_program(loss, x, rest, path):
    torch.export.save(torch.export.export(Exported(loss), tensors(x, rest)), path.with_suffix(".pt2"))


def save_trace(loss, x, rest, path):
    torch.jit.save(torch.jit.trace(Exported(loss), tensors(x, rest)), path)


def run(loss, x, rest):
    x, *rest = tensors(x, rest)
    value = loss(x, *rest)
    value.backward()
    return value.detach(), x.grad


FORMATS = {
    "export": SimpleNamespace(
        save=save_program, load=lambda path, *given: run(torch.export.load(path.with_suffix(".pt2")).module(), *given)
    ),
    "trace": SimpleNamespace(save=save_trace, load=lambda path, *given: run(torch.jit.load(path), *given)),
}
