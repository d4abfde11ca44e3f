"""Losses in files: one process writes them, another one runs them: `python tests/serving.py save torch FOLDER`; `load`.

The one that loads cannot import xent: it has the framework, the files and the arguments.
"""

import importlib
import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np


def save(formats: Any, folder: Path) -> None:
    """Every loss in every format, and the arguments beside them."""
    import xent
    from programs import ONE_OF_EACH_LOSS

    for problem in ONE_OF_EACH_LOSS:
        np.savez(folder / f"{problem.name}.npz", problem.x, *problem.rest)
        loss = partial(getattr(xent, problem.loss), **problem.options)
        for name, each in formats.items():
            each.save(loss, problem.x, problem.rest, folder / f"{problem.name}.{name}")


def load(formats: Any, folder: Path) -> None:
    """Loss and gradient of every file, in an .npz of its name."""
    for arguments in [*folder.glob("*.npz")]:
        x, *rest = np.load(arguments).values()
        for name, each in formats.items():
            path = folder / f"{arguments.stem}.{name}"
            loss, gradient = each.load(path, x, rest)
            np.savez(f"{path}.found", loss=loss, gradient=gradient)


def main(command: str, framework: str, folder: str) -> None:
    if command == "load":
        sys.modules["xent"] = None  # `import xent` raises ImportError
    formats = importlib.import_module(f"serving_{framework}").FORMATS
    {"save": save, "load": load}[command](formats, Path(folder))
    if command == "load":
        assert [name for name in sys.modules if name.split(".")[0] == "xent"] == ["xent"]


if __name__ == "__main__":
    main(*sys.argv[1:])
