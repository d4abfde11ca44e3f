"""What docs/migrating/scikit_learn.md says of scikit-learn's log_loss and xent's losses on the same examples."""

import re
from pathlib import Path

import numpy as np
import pytest
import xent

pytestmark = pytest.mark.backend("numpy")
PAGE = (Path(__file__).parents[1] / "docs" / "migrating" / "scikit_learn.md").read_text(encoding="utf-8")
SUBJECTS = re.findall(r"^\| (\w[^|]*) \|", PAGE.partition("| subject |")[2], re.MULTILINE)
P = np.array([[0.7, 0.2, 0.1], [0.1, 0.6, 0.3]])
LOST = [[np.nan] * 3, P[1]]
ZERO = np.array([[0.0, 1.0], [1.0, 0.0]])


# For each row of the table: labels, probabilities, options; what log_loss returns, or raises; what xent does.
DIFFERENCES = {
    "a label of probability 0": ([0, 1], ZERO, {}, -np.log(np.finfo(float).eps), np.inf),
    "a sure, right prediction": ([0, 1], [[1.0, 1e-20], [1e-20, 1.0]], {}, np.finfo(float).eps, 1e-20),
    "rows that do not add up to 1": ([0, 1], P / 2, {}, UserWarning, -np.log([0.7, 0.6]).mean()),
    "an unknown label": ([0, 3], P, {}, ValueError, xent.LabelError),
    "NaN in an example of weight 0": ([0, 1], LOST, {"sample_weight": [0, 1]}, ValueError, -np.log(0.6)),
    "no example": ([], P[:0], {}, ValueError, 0.0),
    "weights that are all 0": ([0, 1], P, {"sample_weight": [0, 0]}, ValueError, 0.0),
}


def test_table_is_complete():
    assert [*DIFFERENCES, "what comes back"] == SUBJECTS


@pytest.mark.parametrize("subject", DIFFERENCES)
def test_difference(subject):
    labels, probabilities, options, theirs, ours = DIFFERENCES[subject]
    with np.errstate(divide="ignore"):
        logits = np.log(probabilities)
    expect(ours, lambda: xent.sparse_ce(logits, np.array(labels, int), **options))
    metrics = pytest.importorskip("sklearn.metrics", reason="scikit-learn is not installed")
    classes = [*range(np.shape(probabilities)[1])]
    expect(theirs, lambda: metrics.log_loss(labels, probabilities, labels=classes, **options))


def expect(answer, call):
    if isinstance(answer, type):
        with pytest.raises(answer):  # warnings are errors
            call()
    else:
        assert call() == pytest.approx(answer, rel=1e-6, abs=0)
