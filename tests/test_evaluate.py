"""Stores on disk, evaluated part by part, against the loss of the whole arrays."""

import os

import numpy as np
import pytest
from stores import RNG, X, evaluation, judge, stored
from xent.evaluation.stores import open_store, parts
from xent.evaluation.tally import report

# ---- the digits


@pytest.mark.parametrize("part_bytes", [1, 100, 10**6])
@pytest.mark.parametrize("dtype", ["float16", "float32", ">f8"])
def test_digits(tmp_path, dtype, part_bytes):
    x = X.astype(dtype)
    stored(tmp_path, x)
    judge(report(evaluation(tmp_path, part_bytes=part_bytes).go_on()), x)


@pytest.mark.parametrize("shape", [(5, 8, 7), (1, 40, 7), (5, 0, 7), (7,)])
@pytest.mark.parametrize("axis", [-1, 0])
@pytest.mark.parametrize("order", ["C", "F"])
def test_shapes(tmp_path, shape, axis, order):
    """Rows of any rank; the classes first; what `np.save` makes of transposed arrays."""
    x = RNG.normal(size=shape)
    y = RNG.integers(0, 7, shape[:-1])
    stored(tmp_path, np.asarray(np.moveaxis(x, -1, axis), order=order), y)
    found = report(evaluation(tmp_path, axis).go_on())
    if y.size:
        judge(found, x, y)
    else:
        assert (found.rows, found.loss, found.perplexity) == (0, 0, 1)
        assert np.isnan(found.accuracy)


@pytest.mark.parametrize("chunks", [(3, 2), (40, 7), (1, 7)])
def test_zarr(tmp_path, chunks):
    stored(tmp_path, kind="zarr", chunks=chunks)
    judge(report(evaluation(tmp_path).go_on()))


def test_parts_cover_everything_once():
    for shape, chunks in (((7, 3, 5), (2, 3, 5)), ((4,), None), ((2, 3), (1, 2)), ((), None), ((0, 3), None)):
        for most in (1, 4, 15, 31, 1000):
            seen = np.zeros(shape, int)
            for part in parts(shape, most, chunks):
                seen[part] += 1
                assert np.size(seen[part]) <= most
            assert (seen == 1).all()


def test_whole_chunks_are_read_once():
    assert [part[0] for part in parts((20, 2), 15, (3, 2))] == [slice(k, min(k + 6, 20)) for k in range(0, 20, 6)]


def test_a_part_alone_is_mapped(tmp_path):
    """A mapping of the whole file would not fit where its address space is limited."""
    stored(tmp_path)
    part = open_store(tmp_path / "logits.npy", "logits").read((slice(4, 6),))
    np.testing.assert_array_equal(part, X[4:6])
    assert part.base.size == part.size


# ---- kept


def test_only_the_same_evaluation_goes_on(tmp_path):
    stored(tmp_path)
    kept = tmp_path / "kept.npz"
    evaluation(tmp_path).save(kept)
    with pytest.raises(ValueError, match=r"kept\.npz: of another evaluation: ignore_index was -100, is 3"):
        evaluation(tmp_path, ignore_index=3).load(kept)
    np.save(tmp_path / "logits.npy", X.astype(float))
    with pytest.raises(ValueError, match="of another evaluation: logits' dtype was <f4, is <f8"):
        evaluation(tmp_path).load(kept)
    np.save(tmp_path / "logits.npy", X)
    os.utime(tmp_path / "logits.npy", (1, 1))
    with pytest.raises(ValueError, match="of another evaluation: logits' changed was"):
        evaluation(tmp_path).load(kept)


def test_what_cannot_be_kept_leaves_nothing(tmp_path, monkeypatch):
    stored(tmp_path)
    kept = tmp_path / "kept.npz"
    evaluation(tmp_path).save(kept)
    before = kept.read_bytes()

    def full(target, **_):
        target.write(b"a part")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez", full)
    with pytest.raises(OSError, match="No space left"):
        evaluation(tmp_path).save(kept)
    assert kept.read_bytes() == before
    assert not list(tmp_path.glob("*.part"))
