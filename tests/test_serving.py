"""What a framework writes to a file with xent's losses in it runs in a process that has no xent."""

import warnings
from pathlib import Path

import numpy as np
import pytest
import serving
from cases import backends, needs_installed
from processes import printed
from programs import ONE_OF_EACH_LOSS, assert_close

HERE = Path(__file__).parent


@pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")  # Keras's
@pytest.mark.parametrize("framework", backends("torch", "tensorflow", "jax"))
def test_files_run_without_xent(framework, tmp_path):
    """With the oracle's value and gradient; and Keras's file beside TensorFlow's."""
    needs_installed(framework)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PyTorch's of tracing
        serving.save(framework, tmp_path)
    evaluate = saved_by_keras(tmp_path / "model.keras") if framework == "tensorflow" else None
    printed(HERE / "serving.py", framework, tmp_path)
    for problem in ONE_OF_EACH_LOSS:
        for name in serving.tried(framework, problem):
            found = np.load(tmp_path / f"{problem.name}.{name}.found.npz")
            for what, want in zip(("loss", "gradient"), problem.truth(), strict=True):
                assert_close(found[what], want, problem, f"{what} of {name}")
    if evaluate:
        before, after = evaluate()
        assert after == pytest.approx(before, rel=1e-6)


def saved_by_keras(path):
    """What gives the losses of a compiled model in a file: before it was written, and loaded."""
    keras = pytest.importorskip("keras", reason="keras is not installed")
    from xent.compat.keras import SparseCategoricalCrossentropy

    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
    model.compile("sgd", SparseCategoricalCrossentropy(from_logits=True))
    model.save(path)
    given = keras.ops.ones((2, 4)), keras.ops.array([0, 2])
    return lambda: [each.evaluate(*given, verbose=0) for each in (model, keras.saving.load_model(path))]
