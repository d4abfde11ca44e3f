"""What the README and the docstrings show runs, and everything public is documented."""

import doctest
import importlib.util
import inspect
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import xent
from typer.main import get_command
from xent import cli, oracle

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


@pytest.mark.parametrize("block", BLOCKS, ids=["numpy", "torch", "tensorflow", "jax"])
def test_readme_code(block):
    framework = re.match(r"import (\w+)", block)[1]
    if importlib.util.find_spec(framework) is None:
        pytest.skip(f"{framework} is not installed")
    names = {}
    exec(compile(block, "README.md", "exec"), names)
    loss = names["loss"].detach() if framework == "torch" else names["loss"]
    assert abs(float(loss) - 1.5609143) < 1e-6


def test_readme_is_short():
    assert len(README.splitlines()) < 150


def test_readme_signatures():
    """Every option of every loss is in the README's list."""
    shown = README[README.index("## The losses") :]
    for loss in (xent.softmax_ce, xent.sparse_ce, xent.sigmoid_ce, xent.linear_ce):
        missing = [name for name in inspect.signature(loss).parameters if not re.search(rf"\b{name}\b", shown)]
        assert not missing, loss.__name__


@pytest.mark.parametrize("name", xent.__all__)
def test_docstrings(name):
    """Public functions explain their arguments, results and errors, with an example that runs."""
    thing = getattr(xent, name)
    assert inspect.getdoc(thing)
    if inspect.isfunction(thing):
        text = inspect.getdoc(thing)
        for part in ("Args:", "Returns:", "Raises:", "Example:"):
            assert part in text, part
        finder = doctest.DocTestFinder(recurse=False)
        for test in finder.find(thing, name, globs={}):
            assert test.examples
            assert doctest.DocTestRunner().run(test).failed == 0


@pytest.fixture(scope="module")
def char_lm():
    spec = importlib.util.spec_from_file_location("char_lm", ROOT / "docs" / "examples" / "char_lm.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module, module.train("numpy", 6)


@pytest.mark.parametrize("framework", ["torch", "jax", "tensorflow"])
def test_example_learns_the_same_everywhere(framework, char_lm):
    for needed in (framework, *(["optax"] if framework == "jax" else [])):
        if importlib.util.find_spec(needed) is None:
            pytest.skip(f"{needed} is not installed")
    module, by_hand = char_lm
    losses = module.train(framework, 6)
    assert losses == pytest.approx(by_hand, rel=1e-5)
    assert losses[-1] < losses[0] - 0.3


# The distributions that a `pip install` or `uv add` names, up to where the command or the sentence around it ends.
INSTALL = re.compile(r"\b(?:pip3? install|uv add) ([^\n`;&|()#]*)")
UNPUBLISHED = re.compile(r"xent(-loss)?\b(?!\.)", re.IGNORECASE)
SUFFIXES = {".py", ".pyi", ".md", ".toml", ".txt", ".sh", ".yml", ".yaml", ".cpp", ".h", ""}


def unpublished(text):
    """What `text` tells its reader to install although no index has it from us: `xent` there is another project."""
    words = [word.strip("\"'.,") for command in INSTALL.findall(text) for word in command.split()]
    return [word for word in words if UNPUBLISHED.match(word)]


def test_hints_install_what_is_published():
    tops = [path for path in ROOT.iterdir() if path.name in (".ci", "xent", "backends", "benchmarks", "docs", "tests")]
    files = [*ROOT.glob("*.md"), ROOT / "pyproject.toml", *(file for top in tops for file in top.rglob("*"))]
    texts = {file: file.read_text(encoding="utf-8") for file in files if file.is_file() and file.suffix in SUFFIXES}
    assert any("pip install" in text for text in texts.values())
    assert not {str(file.relative_to(ROOT)): found for file, text in texts.items() if (found := unpublished(text))}


@pytest.mark.parametrize("name", ["{}", "'{}[jax]'", '"{}[cli,plot]"', "{}-loss", "numpy {}==0.1", "-U {}"])
def test_hints_check_finds(name):
    assert unpublished("run pip install " + name.format("xent") + " first")
    assert not unpublished('pip install ".[cli]" && xent compare; pip install jax  # for xent')


@pytest.mark.backend("torch")
def test_data_parallel_gradients_are_the_whole_batch_s():
    """On two processes, as docs/language_models.md has it: a denominator that forgets DDP's average halves them."""
    torch = pytest.importorskip("torch", reason="torch is not installed")
    if not (torch.distributed.is_available() and torch.distributed.is_gloo_available() and hasattr(os, "fork")):
        pytest.skip("there is no gloo here")
    path = os.pathsep.join(filter(None, sys.path))
    environment = os.environ | {"PYTHONPATH": path, "GLOO_SOCKET_IFNAME": "lo" if sys.platform == "linux" else "lo0"}
    command = [sys.executable, ROOT / "tests" / "data_parallel.py"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr


def test_commands_are_documented():
    for name, command in get_command(cli.app).commands.items():
        assert command.help, name
        assert f"xent {name}" in README


def test_oracle_has_the_losses_signatures():
    """The same names in the same order; only `invalid` knows no "auto" there, and there is one way to a result."""
    for name in ("softmax_ce", "sparse_ce", "sigmoid_ce", "linear_ce"):
        ours, theirs = (list(inspect.signature(getattr(m, name)).parameters) for m in (xent, oracle))
        assert [parameter for parameter in ours if parameter not in ("stats", "chunk_rows")] == theirs
