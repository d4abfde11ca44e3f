"""What the README and the docstrings show runs, and everything public is documented."""

import doctest
import importlib.util
import inspect
import os
import re
import sys
from decimal import Decimal
from pathlib import Path

import numpy as np
import pytest
import xent
from cases import needs_installed
from processes import ROOT, printed
from typer.main import get_command
from xent import cli, oracle

README = (ROOT / "README.md").read_text(encoding="utf-8")
(EXAMPLE,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
IMPORTS, *PARTS = EXAMPLE.strip().split("\n\n")  # one a framework; all use the first one's arrays
ANSWERS = re.findall(r"^\| `(\w+_ce\(.*?\))`.*\| `?(\w*Error|[\d.e-]+)[^|]*\|$", README, re.MULTILINE)


@pytest.mark.parametrize(("framework", "part"), [*zip(("numpy", "torch", "tensorflow", "jax"), PARTS, strict=True)])
def test_readme_code(framework, part, capsys):
    """It runs, each framework's loss is the one that NumPy's line says, and what is printed is what is said."""
    (line,) = re.findall(rf"\b({framework}(?: as \w+)?)\b", IMPORTS)
    needs_installed(framework)
    names = {}
    exec(f"import numpy as np, xent, {line}", names)
    exec(PARTS[0], names)
    capsys.readouterr()
    exec(part, names)
    assert capsys.readouterr().out.splitlines() == re.findall(r"^print\(.*  # (.*)$", part, re.MULTILINE)
    loss = names["loss"].detach() if framework == "torch" else names["loss"]
    assert abs(float(loss) - 1.5609144) < 1e-6


DOCS = ROOT / "docs"
TEXTS = {str(path.relative_to(DOCS)): path.read_text(encoding="utf-8") for path in sorted(DOCS.rglob("*.md"))}
PROGRAMS_BY_BLOCK = ("index.md", "policies.md")  # each block is a program, for one framework
# Names in them are the reader's.
PARTS_OF_PROGRAMS = (
    "backends.md",
    "language_models.md",
    "sharding.md",
    "trainers/data_parallel.md",
    "trainers/distribute.md",
)
OTHER_IMPORTS = {
    "flax": "jax",
    "keras": "tensorflow",
    "lightning": "torch",
    "optax": "jax",
    "sklearn": "numpy",
    "transformers": "torch",
}
NOT_OURS = ("ignore:`isinstance.treespec, LeafSpec.` is deprecated:FutureWarning",)  # what Lightning warns of


def programs():
    """The code of each page, block after block."""
    for page in sorted(TEXTS.keys() - PARTS_OF_PROGRAMS):
        blocks = re.findall(r"```python\n(.*?)```", TEXTS[page], re.DOTALL)
        for code in blocks if page in PROGRAMS_BY_BLOCK else ["\n".join(blocks)] if blocks else []:
            needed = set(re.findall(r"^(?:import|from) (?:xent\.compat\.)?(\w+)", code, re.MULTILINE)) - {"xent"}
            framework = next((OTHER_IMPORTS[name] for name in sorted(needed & OTHER_IMPORTS.keys())), None)
            framework = framework or next(name for name in ("torch", "tensorflow", "jax", "numpy") if name in needed)
            yield pytest.param(code, needed, marks=pytest.mark.backend(framework), id=f"{page}-{framework}")


@pytest.mark.filterwarnings(*NOT_OURS)
@pytest.mark.parametrize(("code", "needed"), [*programs()])
def test_pages(code, needed, capsys):
    """Their code runs and prints what is said, whatever a trainer prints in between."""
    needs_installed(*sorted(needed))
    exec(code, {"__name__": "page"})
    said = re.findall(r"^ *print\(.*  # (.*)$", code, re.MULTILINE)
    assert said
    printed = capsys.readouterr().out.splitlines()
    if needed & {"lightning", "transformers"}:
        printed = [line for line in printed if line in said]
    assert printed == said


REPOSITORY = "https://github.com/xent-loss/xent/blob/main/"


def anchors(text):
    """As GitHub and MkDocs make them of the headings outside of code."""
    headings = re.findall(r"^#+ (.*)$", re.sub(r"```.*?```", "", text, flags=re.DOTALL), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading).strip().lower().replace(" ", "-") for heading in headings}


def broken_links(texts):
    """(page, link) of each link in `texts`, by path, that leads to no file or heading, or out of the site's folder."""
    for path, text in texts.items():
        for link in re.findall(r"\]\(([^)\s]+)\)", re.sub(r"```.*?```|`[^`\n]*`", "", text, flags=re.DOTALL)):
            name, _, anchor = link.removeprefix(REPOSITORY).partition("#")
            if re.match(r"\w+:", name):
                continue  # another site's
            folder = ROOT if link.startswith(REPOSITORY) else path.parent
            target = Path(os.path.normpath(folder / name)) if name else path
            leaves = DOCS in path.parents and DOCS not in target.parents and not link.startswith(REPOSITORY)
            there = texts.get(target, "") if target.exists() or target in texts else None
            if there is None or leaves or (anchor and anchor not in anchors(there)):
                yield str(path.relative_to(ROOT)), link


def test_links():
    pages = [*ROOT.glob("*.md"), *DOCS.rglob("*.md"), *(ROOT / "backends").rglob("*.md"), ROOT / "benchmarks/README.md"]
    assert not list(broken_links({page: page.read_text(encoding="utf-8") for page in pages}))


@pytest.mark.parametrize("link", ["gone.md", "semantics.md#gone", "#gone", "../README.md", REPOSITORY + "gone.md"])
def test_links_check_finds(link):
    good = "[a](semantics.md#class-ids) [b](#a-b) [c](https://example.org) ![d](cpu.png)\n\n## `A`, b?\n"
    texts = {DOCS / "page.md": f"{good}[e]({link})", DOCS / "semantics.md": TEXTS["semantics.md"]}
    assert list(broken_links(texts)) == [("docs/page.md", link)]


def test_site(tmp_path):
    """MkDocs builds it without a warning, and every page is in its navigation."""
    pytest.importorskip("mkdocs", reason="mkdocs is not installed: pip install -e '.[docs]'")
    command = "-m", "mkdocs", "build", "--strict", "-f", "docs/mkdocs.yml", "-d", tmp_path
    printed(*command, cwd=ROOT, NO_MKDOCS_2_WARNING="1")
    assert (tmp_path / "api" / "index.html").exists()


def test_navigation():
    """Every page is in it, and every public name on the API page."""
    listed = re.findall(r"[\w/]+\.md", (DOCS / "mkdocs.yml").read_text(encoding="utf-8").partition("nav:")[2])
    assert sorted(listed) == sorted(TEXTS)
    shown = set(re.findall(r"^::: xent[\w.]*\.(\w+)$", TEXTS["api.md"], re.MULTILINE))
    assert shown - {"oracle"} == set(xent.__all__)


@pytest.mark.parametrize(("call", "answer"), ANSWERS)
def test_readme_answers(call, answer):
    """The last column of the table: a number or an error. What the frameworks answer is checked in test_rivals.py."""

    def in_float32(loss):
        def call(logits, *rest, **options):
            wide = getattr(logits, "dtype", None) != np.float16
            return loss(np.asarray(logits, np.float32) if wide else logits, *rest, **options)

        return call

    names = {name: in_float32(getattr(xent, name)) for name in ("sparse_ce", "softmax_ce", "sigmoid_ce")}
    names |= {"x": [[2, 0.5, 6], [0.1, 0, 3]], "log_p": np.log([[0.7, 0.2, 0.1], [0.1, 0.8, 0.1], [0.15, 0.05, 0.8]])}
    names |= {name: getattr(np, name) for name in ("zeros", "float16", "nan", "inf")}
    if answer.endswith("Error"):
        with pytest.raises(getattr(xent, answer, ValueError)) as caught:
            eval(call, names)
        assert type(caught.value).__name__ == answer
    else:
        last_digit = 10.0 ** Decimal(answer).as_tuple().exponent
        assert abs(float(eval(call, names)) - float(answer)) <= 0.501 * last_digit


def test_readme_is_short():
    assert len(ANSWERS) == 12
    assert len(README.splitlines()) <= 110


def parameters(loss):
    """Their names, without the one that takes in what the loss does not have."""
    given = inspect.signature(loss).parameters.values()
    return [parameter.name for parameter in given if parameter.kind is not parameter.VAR_KEYWORD]


def test_readme_signatures():
    """Every option of every loss is in the README's list."""
    shown = README[README.index("## The losses") :]
    for loss in (xent.softmax_ce, xent.sparse_ce, xent.sigmoid_ce, xent.linear_ce, xent.log_prob, xent.entropy):
        missing = [name for name in parameters(loss) if not re.search(rf"\b{name}\b", shown)]
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
    needs_installed(framework, *(["optax"] if framework == "jax" else []))
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
    """On two processes, as the pages on DDP and FSDP have it: a denominator that forgets the average halves them."""
    torch = pytest.importorskip("torch", reason="torch is not installed")
    if not (torch.distributed.is_available() and torch.distributed.is_gloo_available() and hasattr(os, "fork")):
        pytest.skip("there is no gloo here")
    loopback = "lo" if sys.platform == "linux" else "lo0"
    printed(ROOT / "tests" / "data_parallel.py", GLOO_SOCKET_IFNAME=loopback)


@pytest.mark.full
@pytest.mark.backend("tensorflow")
def test_distributed_steps_are_the_whole_batch_s():
    """Of two replicas in two processes, the loss, and a step of the optimizer. compat_keras_fit.py: always, in one."""
    needs_installed("tensorflow", "keras")
    printed(ROOT / "tests" / "distribute.py", timeout=None, KERAS_BACKEND="tensorflow")


@pytest.fixture(scope="module")
def project():
    return pytest.importorskip("tomllib", reason="Python 3.10 reads no TOML").loads(
        (ROOT / "pyproject.toml").read_text()
    )


def test_distribution(project):
    """It is called xent-loss, for `xent` on the package index is another project, and its extras refer to it."""
    about = project["project"]
    assert (about["name"], about["version"]) == ("xent-loss", xent.__version__)
    assert f"\n## {xent.__version__} (" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    extras = [item for items in about["optional-dependencies"].values() for item in items if item.startswith("xent")]
    assert extras
    assert all(item.startswith("xent-loss[") for item in extras)


def test_installing_without_a_compiler_says_so(project):
    """In one line of `pip install -v`'s log."""
    (failed,) = [o for o in project["tool"]["scikit-build"]["overrides"] if o["if"].get("failed")]
    message = failed["messages"]["after-success"]
    assert "no native CPU kernels: there is no working C++17 compiler" in message
    assert len(message.strip().splitlines()) == 1


def test_vendored_headers_are_what_their_note_says():
    jaxlib = pytest.importorskip("jaxlib", reason="jaxlib is not installed")
    folder = ROOT / "backends" / "jax" / "third_party"
    note = (folder / "README.md").read_text(encoding="utf-8")
    if f"jaxlib {jaxlib.__version__}." not in note and f"jaxlib {jaxlib.__version__}," not in note:
        pytest.skip(f"jaxlib {jaxlib.__version__} is not the one that they come from")
    for file in folder.rglob("*.h"):
        theirs = Path(jaxlib.__file__).parent / "include" / file.relative_to(folder)
        assert file.read_bytes() == theirs.read_bytes()


def test_commands_are_documented():
    for name, command in get_command(cli.app).commands.items():
        assert command.help, name
        assert f"xent {name}" in README


def test_oracle_has_the_losses_signatures():
    """The same names in the same order; only `invalid` knows no "auto" there, and there is one way to a result."""
    for name in ("softmax_ce", "sparse_ce", "sigmoid_ce", "linear_ce", "log_prob", "entropy"):
        ours, theirs = (parameters(getattr(m, name)) for m in (xent, oracle))
        assert [parameter for parameter in ours if parameter not in ("stats", "chunk_rows", "sharded")] == theirs
