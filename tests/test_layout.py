"""How the sources hang together: imports go one way, and files are short."""

import ast
import graphlib
from pathlib import Path

import pytest
import xent

PACKAGE = Path(xent.__file__).parent


def sources(package):
    """Each module's name and file; `xent/backends` and `xent/benchmarks` may be links."""
    return {
        ".".join(("xent", *file.relative_to(package).with_suffix("").parts)).removesuffix(".__init__"): file
        for folder in (package, package / "backends", package / "benchmarks")
        for file in folder.rglob("*.py")
    }


def imported(tree, module, is_package, known):
    """The modules among `known` that this one names in an import, at its top or in a function.

    That a module's packages are imported before it is no import of its own.
    """
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in known)
        elif isinstance(node, ast.ImportFrom):
            parts = module.split(".")
            base = parts[: len(parts) - node.level + is_package] if node.level else []
            origin = ".".join([*base, *([node.module] if node.module else [])])
            for alias in node.names:
                name = f"{origin}.{alias.name}"
                if name in known or origin in known:
                    yield name if name in known else origin


def circle(files):
    """One circle of imports, as a list of modules; empty where there is none."""
    graph = {}
    for module, file in files.items():
        tree = ast.parse(file.read_text(encoding="utf-8"))
        graph[module] = {*imported(tree, module, file.name == "__init__.py", files)} - {module}
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        return error.args[1]
    return []


def test_imports_go_one_way():
    """Imports inside functions count: they only hide a circle."""
    files = sources(PACKAGE)
    assert {"xent", "xent.backends.torch.kernels", "xent.benchmarks.run", "xent.verify.compare"} <= files.keys()
    assert circle(files) == []


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("from xent import b", "import xent.a"),
        ("from .b import x", "def f():\n    from xent.a import y"),
        ("from . import b", "from xent.a import y"),
    ],
)
def test_that_test_can_fail(tmp_path, first, second):
    (tmp_path / "a.py").write_text(first)
    (tmp_path / "b.py").write_text(second)
    assert set(circle(sources(tmp_path))) == {"xent.a", "xent.b"}


def test_adapters_build_on_public_names():
    """As other libraries' adapters have to: `xent.adapter` and `xent.formulas`, and `xent._check`, where all sentences
    of errors are. What `Adapter.of_parts` names calls losses as a whole."""
    files = sources(PACKAGE)
    private = {
        module
        for module, file in files.items()
        if module.startswith("xent.backends.")
        for name in imported(ast.parse(file.read_text(encoding="utf-8")), module, file.name == "__init__.py", files)
        if name.startswith("xent._") and name != "xent._check"
    }
    assert private == {"xent.backends.dask.blocks", "xent.backends.dask.graph", "xent.backends.torch.mesh"}


def test_files_are_short():
    """A file that does not fit in the head is split along its meaning."""
    ours = [
        file
        for folder in (PACKAGE, PACKAGE / "backends", PACKAGE / "benchmarks", Path(__file__).parent)
        for file in folder.rglob("*")
        if file.suffix in (".py", ".cpp", ".h") and "third_party" not in file.parts
    ]
    lengths = {file.name: len(file.read_text(encoding="utf-8").splitlines()) for file in ours}
    assert {name: length for name, length in lengths.items() if length > 400} == {}
