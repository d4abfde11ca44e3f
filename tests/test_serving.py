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
FORMATS = {"torch": ("export", "trace"), "tensorflow": ("saved_model", "graph_def"), "jax": ("export",)}


@pytest.mark.parametrize("framework", backends(*FORMATS))
def test_files_run_without_xent(framework, tmp_path):
    """With the oracle's value and gradient."""
    needs_installed(framework)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PyTorch's of tracing
        serving.save(framework, tmp_path)
    printed(HERE / "serving.py", framework, tmp_path)
    for problem in ONE_OF_EACH_LOSS:
        for name in FORMATS[framework]:
            found = np.load(tmp_path / f"{problem.name}.{name}.found.npz")
            for what, want in zip(("loss", "gradient"), problem.truth(), strict=True):
                assert_close(found[what], want, problem, f"{what} of {name}")


SAVE_KERAS = """
import sys
import keras
from xent.compat.keras import SparseCategoricalCrossentropy

keras.utils.set_random_seed(0)
model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
model.compile("sgd", SparseCategoricalCrossentropy(from_logits=True))
model.save(sys.argv[1])
print(model.evaluate(keras.ops.ones((2, 4)), keras.ops.array([0, 2]), verbose=0))
"""
LOAD_KERAS = """
import sys
import keras

sys.modules["xent"] = None
try:
    keras.saving.load_model(sys.argv[1])
except TypeError as error:
    assert "Could not locate class" in str(error) and "'module': 'xent.compat.keras'" in str(error), error
print(keras.saving.load_model(sys.argv[1], compile=False).predict(keras.ops.ones((2, 4)), verbose=0).shape)
del sys.modules["xent"]
import xent.compat.keras
model = keras.saving.load_model(sys.argv[1])
print(model.evaluate(keras.ops.ones((2, 4)), keras.ops.array([0, 2]), verbose=0))
"""


@pytest.mark.backend("tensorflow")
def test_keras_file(tmp_path):
    """Keras's error names the import that a compiled model needs; predicting needs none."""
    needs_installed("keras", "tensorflow")
    path = tmp_path / "model.keras"
    (saved,) = printed("-c", SAVE_KERAS, path, KERAS_BACKEND="tensorflow").splitlines()
    shape, loaded = printed("-c", LOAD_KERAS, path, KERAS_BACKEND="tensorflow").splitlines()
    assert shape == "(2, 3)"
    assert float(loaded) == pytest.approx(float(saved), rel=1e-6)
