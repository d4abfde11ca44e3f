"""What the page on tf.distribute says, run on two replicas of two processes: `python tests/distribute.py`.

On two of one process compat_keras_fit.py runs it. Loss and gradients have to be those of the whole batch.
"""

import json
import linecache
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

PAGE = Path(__file__).parents[1] / "docs" / "trainers" / "distribute.md"
PARTS = (slice(0, 2), slice(2, 7))  # of other lengths, and with other shares of ignored tokens
LABELS = [1, 3, -100, 0, 2, -100, 3]


def worker():
    import tensorflow as tf

    check(tf.distribute.MultiWorkerMirroredStrategy())


def check(strategy):
    import keras
    import numpy as np
    import tensorflow as tf
    import xent

    assert strategy.num_replicas_in_sync == len(PARTS)
    x, labels = np.random.default_rng(0).normal(size=(len(LABELS), 3)).astype(np.float32), np.int32(LABELS)
    with strategy.scope():
        keras.utils.set_random_seed(0)
        model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(5), keras.layers.Dense(4)])
        optimizer = keras.optimizers.SGD(1.0)
    before = model.get_weights()
    with tf.GradientTape() as tape:
        want = xent.sparse_ce(model(x), labels, ignore_index=-100)
    gradients = [gradient.numpy() for gradient in tape.gradient(want, model.trainable_variables)]

    given = {"tf": tf, "xent": xent, "strategy": strategy, "model": model, "optimizer": optimizer}
    (block,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    linecache.cache["page"] = (len(block), None, block.splitlines(keepends=True), "page")  # AutoGraph reads the source
    exec(compile(block, "page", "exec"), given)
    of_replica = strategy.experimental_distribute_values_from_function
    parts = (
        of_replica(lambda context, k=k: tf.constant(k[PARTS[context.replica_id_in_sync_group]])) for k in (x, labels)
    )
    loss = given["step"](*parts)
    np.testing.assert_allclose(loss, want, rtol=1e-6)
    for old, new, gradient in zip(before, model.get_weights(), gradients, strict=True):
        np.testing.assert_allclose(old - new, gradient, rtol=1e-6, atol=1e-6)


def main():
    free = [socket.create_server(("localhost", 0)) for _ in PARTS]
    workers = [f"localhost:{server.getsockname()[1]}" for server in free]
    for server in free:
        server.close()
    configs = [{"cluster": {"worker": workers}, "task": {"type": "worker", "index": k}} for k in range(len(PARTS))]
    environments = [os.environ | {"TF_CONFIG": json.dumps(config)} for config in configs]
    started = [subprocess.Popen([sys.executable, __file__, "worker"], env=each) for each in environments]
    try:
        return max(process.wait() for process in started)
    finally:
        for process in started:
            process.kill()


if __name__ == "__main__":
    sys.exit(worker() if sys.argv[1:] else main())
