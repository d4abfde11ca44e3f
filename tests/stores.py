"""Small stores of logits and labels on disk, for the tests of `xent evaluate`."""

import dataclasses

import numpy as np
import pytest
import xent
from xent.evaluation.run import Evaluation, checked
from xent.evaluation.stores import open_store

RNG = np.random.default_rng(0)
X = RNG.normal(size=(40, 7)).astype("f")
Y = np.where(np.arange(40) % 9, RNG.integers(0, 6, 40), -100)  # no row has the label 6


def stored(folder, x=X, y=Y, kind="npy", chunks=(3, 2)):
    """The options that name the stores."""
    paths = [folder / f"{name}.{kind}" for name in ("logits", "labels")]
    for path, array in zip(paths, (x, y), strict=True):
        if kind == "npy":
            np.save(path, array)
        else:
            zarr = pytest.importorskip("zarr", reason="zarr is not installed")
            lengths = chunks[: array.ndim]
            zarr.create_array(path, shape=array.shape, dtype=array.dtype, chunks=lengths)[:] = array
    return "--logits", paths[0], "--labels", paths[1]


def evaluation(folder, axis=-1, ignore_index=-100, part_bytes=100):
    suffix = "npy" if (folder / "logits.npy").exists() else "zarr"
    stores = (open_store(folder / f"{name}.{suffix}", name) for name in ("logits", "labels"))
    return Evaluation(dataclasses.replace(checked(*stores, axis, ignore_index), part_bytes=part_bytes))


def judge(found, x=X, y=Y, axis=-1):
    """The report against the whole arrays; sums are float64, each row's loss the kernel's own."""
    _, rows = xent.sparse_ce(x, y, axis=axis, reduce="none", ignore_index=-100, stats=True)
    nll, there = rows.nll.astype(float), y != -100
    assert (found.rows, found.ignored) == (y.size, y.size - there.sum())
    np.testing.assert_allclose(found.loss, nll.sum() / there.sum(), rtol=1e-14)
    np.testing.assert_allclose(found.perplexity, np.exp(found.loss), rtol=1e-15)
    assert found.accuracy == rows.correct.sum() / there.sum()
    for k in range(x.shape[axis]):
        own = y == k
        assert found.class_count[k] == own.sum()
        if own.any():
            np.testing.assert_allclose(found.class_loss[k], nll[own].mean(), rtol=1e-14)
            assert found.class_accuracy[k] == rows.correct[own].mean()
        else:
            assert np.isnan(found.class_loss[k])
            assert np.isnan(found.class_accuracy[k])
