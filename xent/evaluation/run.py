"""An evaluation part by part: here, or on a cluster's workers; it can be kept, and go on later."""

from __future__ import annotations

import importlib
import json
import os
import zipfile
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import CancelledError
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from xent import _check, _rules
from xent._losses import sparse_ce
from xent.evaluation.stores import Index, Store, parts
from xent.evaluation.tally import Tally, Totals, nothing, tally

PART = 2**26  # bytes of logits


@dataclass(frozen=True)
class Task:
    """What is to be evaluated."""

    logits: Store
    labels: Store
    axis: int  # not negative
    ignore_index: int | None
    part_bytes: int = PART

    @property
    def classes(self) -> int:
        return self.logits.shape[self.axis]

    def parts(self) -> list[Index]:
        """Of the labels, in the order in which they are added up."""
        chunks = self.logits.chunks
        chunks = None if chunks is None else without(chunks, self.axis)
        row = self.classes * np.dtype(self.logits.dtype).itemsize
        return list(parts(self.labels.shape, max(self.part_bytes // row, 1), chunks))

    def tally(self, part: Index) -> Tally:
        whole = (*part, *(slice(None) for _ in self.labels.shape[len(part) :]))
        x = self.logits.read((*whole[: self.axis], slice(None), *whole[self.axis :]))
        ids = self.labels.read(part)
        try:
            _, rows = sparse_ce(
                x, ids, axis=self.axis, reduce="none", ignore_index=self.ignore_index, invalid="raise", stats=True
            )
        except _check.LabelError as error:
            place = ", ".join(f"{k.start}:{k.stop}" for k in part)
            raise _check.LabelError(str(error).replace("labels:", f"labels[{place}]:", 1)) from None
        return tally(ids, rows.sample_weight != 0, rows.nll, rows.correct)

    def identity(self) -> dict[str, Any]:
        about = {name: getattr(self, name) for name in ("axis", "ignore_index", "part_bytes")}
        stores = {"logits": self.logits.identity(), "labels": self.labels.identity()}
        return about | {f"{name}' {key}": value for name, known in stores.items() for key, value in known.items()}


def checked(logits: Store, labels: Store, axis: int, ignore_index: int | None) -> Task:
    """By the losses' own rules, before anything is read."""
    _check.floating("logits", np.dtype(logits.dtype).name)
    _check.integral("labels", np.dtype(labels.dtype).name)
    axis = _rules.class_axis(logits.shape, axis)
    _rules.IDS.check(labels.shape, without(logits.shape, axis), logits.shape)
    return Task(logits, labels, axis, ignore_index)


def without(lengths: tuple[int, ...], axis: int) -> tuple[int, ...]:
    return lengths[:axis] + lengths[axis + 1 :]


class Evaluation:
    """The parts that are done, and those that are to be."""

    def __init__(self, task: Task) -> None:
        self.task, self.parts = task, task.parts()
        self.totals = nothing(task.classes)

    def __str__(self) -> str:
        return f"{self.totals.done} of {len(self.parts)} parts"

    def go_on(
        self,
        progress: Callable[[str, int, int], None] = lambda *_: None,
        tallies: Callable[[Task, list[Index]], Iterable[Tally]] = lambda task, parts: map(task.tally, parts),
    ) -> Totals:
        """To the end. What is done before an exception is in `totals`."""
        for part in tallies(self.task, self.parts[self.totals.done :]):
            self.totals = self.totals.plus(part)
            progress("evaluating", self.totals.done, len(self.parts))
        return self.totals

    def save(self, file: Path) -> None:
        beside = file.with_name(f"{file.name}.part")
        try:
            with beside.open("wb") as target:
                np.savez(target, allow_pickle=False, task=json.dumps(self.task.identity()), **self.totals._asdict())
            os.replace(beside, file)
        except BaseException:
            beside.unlink(missing_ok=True)
            raise

    def load(self, file: Path) -> None:
        """Takes up what `save` wrote for the same stores and options."""
        try:
            with np.load(file, allow_pickle=False) as kept:
                known = json.loads(str(kept["task"]))
                done, rows, *sums = (kept[name] for name in Totals._fields)
        except (ValueError, KeyError, OSError, EOFError, zipfile.BadZipFile) as error:
            raise ValueError(f"{file}: not a file that an evaluation was kept in ({type(error).__name__})") from None
        for key, value in self.task.identity().items():
            if known.get(key) != value:
                raise ValueError(f"{file}: of another evaluation: {key} was {known.get(key)}, is {value}")
        self.totals = Totals(int(done), int(rows), *sums)


def on_cluster(address: str, task: Task, parts: list[Index]) -> Iterator[Tally]:
    """By the workers of the Dask scheduler there, which open the stores themselves."""
    try:
        distributed = importlib.import_module("distributed")
    except ImportError:
        raise ValueError("--cluster: needs: pip install distributed") from None
    with distributed.Client(address) as client:
        try:
            check_imports(client, task)
            futures = deque(client.map(task.tally, parts, pure=False))
            while futures:
                yield futures.popleft().result()
        except (distributed.KilledWorker, CancelledError) as error:  # the latter where the scheduler is lost
            raise OSError(f"--cluster: {' '.join(str(error).split())}") from None


def check_imports(client: Any, task: Task) -> None:
    """An error where one of the cluster's processes lacks what a part needs: Dask ends such a worker when it gets a
    part, and waits for another one for ever."""
    try:
        client.run_on_scheduler(importlib.import_module, __name__)
    except ImportError as error:
        raise ValueError(f"--cluster: the scheduler cannot import {__name__}: {error}") from None
    client.submit(len, (), pure=False).result()  # a cluster may start its workers only when there is something to do
    for module in (__name__, task.logits.library, task.labels.library):
        for worker, found in client.run(importlib.import_module, module, on_error="return").items():
            if isinstance(found, ImportError):
                raise ValueError(f"--cluster: the worker {worker} cannot import {module}: {found}")
