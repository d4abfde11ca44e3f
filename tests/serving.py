"""Losses in files: test_serving.py writes them, a process of its own runs them: `python tests/serving.py torch FOLDER`.

It cannot import xent: it has the framework, the files and the arguments.
"""

import importlib
import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np


def save(framework: str, folder: Path) -> None:
    """Every loss in its formats, and the arguments beside them."""
    import xent
    from programs import ONE_OF_EACH_LOSS

    for problem in ONE_OF_EACH_LOSS:
        np.savez(folder / f"{problem.name}.npz", problem.x, *problem.rest)
        loss = partial(getattr(xent, problem.loss), **problem.options)
        for name in tried(framework, problem):
            formats(framework)[name].save(loss, problem.x, problem.rest, folder / f"{problem.name}.{name}")


def tried(framework: str, problem: Any) -> list[str]:
    """The formats that a loss is written in: one of TensorFlow's, which take seconds, elsewhere all. --full: all."""
    import cases

    if cases.FULL or framework != "tensorflow":
        return list(formats(framework))
    return ["saved_model" if problem.loss == "softmax_ce" else "graph_def"]


def load(framework: str, folder: Path) -> None:
    """Loss and gradient of every file, in an .npz of its name."""
    for arguments in [*folder.glob("*.npz")]:
        x, *rest = np.load(arguments).values()
        for name, each in formats(framework).items():
            path = folder / f"{arguments.stem}.{name}"
            if framework == "tensorflow" and not path.exists():
                continue
            loss, gradient = each.load(path, x, rest)
            np.savez(f"{path}.found", loss=loss, gradient=gradient)


def formats(framework: str) -> Any:
    return importlib.import_module(f"serving_{framework}").FORMATS


if __name__ == "__main__":
    sys.modules["xent"] = None  # type: ignore[assignment]  # `import xent` raises ImportError
    load(sys.argv[1], Path(sys.argv[2]))
    for model in Path(sys.argv[2]).glob("*.keras"):
        importlib.import_module("serving_tensorflow").check_keras(model)
    assert [name for name in sys.modules if name.split(".")[0] == "xent"] == ["xent"]
