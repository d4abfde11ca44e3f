"""xent.compat.keras in models, beside Keras's own losses; see test_compat_keras.py."""

import itertools

import cases
import distribute
import keras
import numpy as np
import pytest
from compat_keras_backend import BACKEND, BINARY, CATEGORICAL, IDS, MARKS, NAMES, SPARSE, X, in_turn
from xent.compat import keras as ours

pytestmark = MARKS


def trained(losses, name, seed=0, fitted=None, policy=None, sequence=False, **options):
    """A model's losses, step by step."""
    keras.utils.set_random_seed(seed)
    keras.config.set_dtype_policy(policy or "float32")
    try:
        classes = 1 if name == BINARY and not sequence else 3
        first = keras.layers.Embedding(7, 8, mask_zero=True) if sequence else keras.layers.Dense(8, activation="relu")
        model = keras.Sequential([keras.Input((4,)), first, keras.layers.Dense(classes)])
        model.compile(keras.optimizers.SGD(0.1), getattr(losses, name)(from_logits=True, **options))
        random = np.random.default_rng(seed)
        inputs = random.integers(7, size=(32, 4)) if sequence else random.normal(size=(32, 4)).astype(np.float32)
        shape = (32, 4) if sequence else (32,)
        labels = random.integers(classes if classes > 1 else 2, size=shape)
        if name != SPARSE:
            labels = np.eye(3, dtype=np.float32)[labels] if classes == 3 else labels.astype(np.float32)[:, None]
        if options.get("ignore_class") is not None:
            labels[:5] = options["ignore_class"]
        fitted = {key: value(shape) if callable(value) else value for key, value in (fitted or {}).items()}
        history = model.fit(inputs, labels, batch_size=8, epochs=3, verbose=0, shuffle=False, **fitted)
        return model, history.history["loss"], (inputs, labels)
    finally:
        keras.config.set_dtype_policy("float32")


def some_weights(shape):
    weights = np.random.default_rng(1).uniform(0.5, 2, size=shape)
    weights[::5] = 0
    return weights


FITS = {  # in turn of the two losses of distributions, and of ids; --full: all
    "plain": {},
    "sample_weight": {"fitted": {"sample_weight": some_weights}},
    "smoothed": {"label_smoothing": 0.1},
    "class_weight": {"fitted": {"class_weight": {0: 1.0, 1: 3.0, 2: 0.5}}},
    "mean_with_sample_weight": {"reduction": "mean_with_sample_weight", "fitted": {"sample_weight": some_weights}},
    "masked": {"sequence": True},
    "masked and weighted": {"sequence": True, "fitted": {"sample_weight": some_weights}},
    "ignored": {"ignore_class": -1},
    "mixed_bfloat16": {"policy": "mixed_bfloat16"},
}


@pytest.mark.parametrize(
    ("name", "how"),
    in_turn(
        [
            (name, how)
            for name, how in itertools.product(NAMES, FITS)
            if not (how == "smoothed" and name == SPARSE) and not (how == "ignored" and name != SPARSE)
            if cases.FULL or [*FITS].index(how) % 2 == (name == SPARSE)
        ]
    ),
)
def test_fit(name, how):
    """The losses of every epoch are Keras's own to 1e-5."""
    (_, theirs, _), (_, xents, _) = (trained(losses, name, **FITS[how]) for losses in (keras.losses, ours))
    assert xents == pytest.approx(theirs, rel=1e-5)
    assert xents[-1] < xents[0]


@pytest.mark.parametrize(
    ("name", "options"),
    in_turn(
        [
            (CATEGORICAL, {"label_smoothing": 0.1}),
            (SPARSE, {"ignore_class": -1, "reduction": "sum"}),
            (BINARY, {"axis": 1}),
        ]
    ),
)
def test_save_and_load(name, options, tmp_path):
    """Without custom objects: the loss is registered."""
    model, _, data = trained(ours, name, **options)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert type(loaded.loss) is getattr(ours, name)
    assert loaded.loss.get_config() == model.loss.get_config()
    assert {**options, "from_logits": True}.items() <= loaded.loss.get_config().items()
    assert loaded.evaluate(*data, verbose=0) == pytest.approx(model.evaluate(*data, verbose=0), rel=1e-6)
    assert np.isfinite(loaded.fit(*data, verbose=0).history["loss"]).all()


@pytest.mark.skipif(BACKEND != "tensorflow", reason="only TensorFlow's strategies have replicas")
@pytest.mark.parametrize("reduction", ["sum_over_batch_size", "sum", "mean_with_sample_weight"])
def test_replicas_share_a_mean(reduction):
    tf = pytest.importorskip("tensorflow")
    strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
    with strategy.scope():
        theirs, xents = (
            strategy.run(losses.SparseCategoricalCrossentropy(True, reduction=reduction), (IDS, X))
            for losses in (keras.losses, ours)
        )
    for a, b in zip(
        strategy.experimental_local_results(theirs), strategy.experimental_local_results(xents), strict=True
    ):
        assert float(a) == pytest.approx(float(b))


@pytest.mark.skipif(BACKEND != "tensorflow", reason="only TensorFlow's strategies have replicas")
def test_distributed_step_is_the_whole_batch_s():
    """As the page on tf.distribute has it: the loss, and a step of the optimizer."""
    tf = pytest.importorskip("tensorflow")
    distribute.check(tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"]))
