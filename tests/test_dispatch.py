"""Every kind of array finds its framework's adapter, and nothing that is not needed is imported."""

import ast
import importlib.util
import itertools
import sys
import textwrap
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import xent
import xent.backends
from processes import printed, python
from xent import _dispatch
from xent.adapter import SoftmaxKernels

# NumPy itself imports some of these, so only what xent adds counts.
LIGHT = """
import sys
import numpy
before = set(sys.modules)
import xent
xent.sparse_ce([[1.0, 2.0]], [1])
loaded = set(sys.modules) - before
frameworks = {"torch", "tensorflow", "jax", "keras", "ml_dtypes", "dask"} & loaded
tools = {"typer", "rich", "psutil", "matplotlib", "subprocess", "pickle", "tempfile", "concurrent", "json"} & loaded
tools |= {"importlib.metadata", "email", "zipfile", "numpy.random", "numpy.typing"} & loaded
ours = {"verify", "_console", "cli", "oracle", "benchmarks", "compat", "evaluation"}
heavy = frameworks | tools | {f"xent.{name}" for name in ours} & loaded
assert not heavy, heavy
"""


def test_importing_xent_imports_no_framework_and_no_tool():
    printed("-c", LIGHT)


@pytest.mark.parametrize("module", ["ml_dtypes", "rich", "xent.oracle", "xent.compat"])
def test_that_test_can_fail(module):
    """An import of these anywhere in xent would be noticed."""
    pytest.importorskip(module.partition(".")[0], reason=f"{module} is not installed")
    done = python("-c", LIGHT.replace("import xent\n", f"import xent, {module}\n"))
    assert done.returncode != 0
    assert f"'{module}'" in done.stderr


def test_tools_are_found_where_they_are_asked_for():
    """Lazily, without the module of the same name in place of the function."""
    printed(
        "-c", "import xent, xent.cli; assert callable(xent.compare) and callable(xent.bench) and 'compare' in dir(xent)"
    )
    with pytest.raises(AttributeError, match="module 'xent' has no attribute 'comparison'"):
        _ = xent.comparison


def test_the_header_says_which_xent_is_tested(request, monkeypatch):
    def header():
        found = request.config.hook.pytest_report_header(config=request.config, start_path=Path())
        return str(found)

    assert f"xent {xent.__version__}: {xent.__file__}; native CPU kernels: " in header()
    other = ModuleType("xent")
    other.__file__ = "/site-packages/xent/__init__.py"
    monkeypatch.setitem(sys.modules, "xent", other)
    assert "xent ?: /site-packages/xent/__init__.py, which is another project's; " in header()


def test_lists_and_numpy_scalars_mean_numpy():
    assert xent.sparse_ce([[1.0, 2.0]], [1]).dtype == np.float64
    assert isinstance(xent.sigmoid_ce(np.float32(1), 1.0), np.float32)


class Subclass(np.ndarray):
    pass


def test_numpy_subclass():
    assert _dispatch.find(np.zeros(2).view(Subclass)).name == "numpy"


@pytest.mark.backend("torch")
def test_torch_kinds():
    torch = pytest.importorskip("torch", reason="torch is not installed")

    class Tagged(torch.Tensor):
        pass

    x = torch.randn(2, 3)
    want = xent.sparse_ce(x, [0, 2])
    for kind in (torch.nn.Parameter(x), x.as_subclass(Tagged)):
        torch.testing.assert_close(xent.sparse_ce(kind, [0, 2]).as_subclass(torch.Tensor), want)


@pytest.mark.backend("torch")
def test_first_dispatch_under_torch_compile():
    """The adapter is imported while the compiler traces the call."""
    pytest.importorskip("torch", reason="torch is not installed")
    code = """
        import torch, xent
        f = torch.compile(lambda x, y: xent.sparse_ce(x, y), fullgraph=True, backend="aot_eager")
        x, y = torch.randn(2, 3), torch.tensor([0, 2])
        torch.testing.assert_close(f(x, y), torch.nn.functional.cross_entropy(x, y))
    """
    printed("-c", textwrap.dedent(code))


@pytest.mark.backend("torch")
def test_numpy_and_lists_under_torch_compile():
    torch = pytest.importorskip("torch", reason="torch is not installed")
    x = torch.randn(3, 4, dtype=torch.float64)
    sample_weight = [0.1, 0.2, 0.3]
    weights = sample_weight, np.array(sample_weight), torch.tensor(sample_weight, dtype=torch.float64), 0.5
    ids = [0, 1, 2], np.array([0, 1, 2]), torch.tensor([0, 1, 2], dtype=torch.uint8)

    def losses(x):
        """With every kind of labels beside every kind of weights."""
        options = {"reduce": "sum", "ignore_index": -100}
        return [xent.sparse_ce(x, y, sample_weight=w, **options) for w, y in itertools.product(weights, ids)]

    torch._dynamo.reset()
    compiled = torch.compile(losses, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), losses(x))


@pytest.mark.backend("tensorflow")
def test_tensorflow_kinds():
    tf = pytest.importorskip("tensorflow", reason="tensorflow is not installed")
    x = tf.random.stateless_normal([2, 3], seed=[1, 2])
    variable = tf.Variable(x)
    with tf.GradientTape() as tape:
        loss = xent.sparse_ce(variable, [0, 2])
    np.testing.assert_allclose(loss, xent.sparse_ce(x, [0, 2]))
    np.testing.assert_allclose(tape.gradient(loss, variable), xent.value_and_grad(xent.sparse_ce)(x, [0, 2])[1])


@pytest.mark.backend("jax")
def test_tracers_have_no_values():
    jax = pytest.importorskip("jax", reason="jax is not installed")
    x, y = jax.numpy.zeros((2, 3)), jax.numpy.array([0, 7])
    with pytest.raises(xent.LabelError):
        xent.sparse_ce(x, y)
    with pytest.raises(xent.LabelError):  # the labels are concrete here
        jax.grad(lambda x: xent.sparse_ce(x, y))(x)
    assert np.isnan(jax.jit(xent.sparse_ce)(x, y))
    with pytest.raises(ValueError, match=r"^invalid: 'raise' has to read the labels"):
        jax.jit(lambda x, y: xent.sparse_ce(x, y, invalid="raise"))(x, y)


# ---- third parties


def test_entry_point():
    """A backend that xent has never heard of, through nothing but its entry point and the contract."""
    import toy_framework

    x = toy_framework.array(np.array([[1.0, 2.0]]))
    assert _dispatch.find(x).name == "toy_framework"
    assert "toy_framework" in [entry.name for entry in _dispatch.installed()]


def test_array_api_standard():
    """A library that xent does not know by name: its namespace tells, and one adapter serves all its arrays."""
    strict = pytest.importorskip("array_api_strict", reason="array_api_strict is not installed")

    class Namespace:
        __name__ = "unheard_of.arrays"

        def __getattr__(self, name):
            return getattr(strict, name)

    class Array:
        def __array_namespace__(self):
            return Namespace()

    adapter = _dispatch.find(Array())
    assert adapter.name == "unheard_of"
    assert adapter is _dispatch.find(type("Other", (Array,), {})())
    x = strict.asarray([[1.0, 2.0]])
    assert _dispatch.find(x) is _dispatch.load("array_api_strict")


def test_array_api_devices():
    """What is not in host memory is neither read nor moved: its labels are checked as in a compiler."""
    strict = pytest.importorskip("array_api_strict", reason="array_api_strict is not installed")

    class OnDevice:
        def __dlpack_device__(self):
            return 2, 1

    ops = _dispatch.load("array_api_strict").ops
    assert ops.device(OnDevice()) == "cuda:1"
    assert ops.host(OnDevice()) is None
    other = strict.Device("device1")
    x = strict.zeros((2, 3), device=other)
    assert xent.sparse_ce(x, strict.asarray([0, 1], device=other)).device == other
    assert xent.sparse_ce(x, np.array([0, 1]), sample_weight=[1.0, 2.0]).device == other


def test_unknown_backend():
    with pytest.raises(ValueError, match=r"^backend 'mxnet': expected one of 'numpy', 'torch'"):
        _dispatch.load("mxnet")


def test_entry_point_that_is_no_adapter(monkeypatch):
    class Entry:
        name, value = "odd_framework", "odd:ADAPTER"

        @staticmethod
        def load():
            return 3

    monkeypatch.setattr(_dispatch, "installed", lambda: iter([Entry]))
    with pytest.raises(
        TypeError, match=r"^entry point 'odd_framework' of 'xent.backends': expected an Adapter, got int$"
    ):
        _dispatch.load("odd_framework")


def test_adapter_with_a_field_missing():
    ops = _dispatch.load("numpy").ops
    with pytest.raises(TypeError, match="missing"):
        xent.Adapter(name="half", types=(), ops=ops)
    with pytest.raises(TypeError, match="missing"):
        SoftmaxKernels(rows=None)


def test_adapters_look_alike():
    """The functions that adapters have in common are in the same order in all of them."""
    order = ("fetch", "asarray", "integer", "total", "top", "put", "OPS", "rows", "sigmoid", "value_and_grad")
    for name in ("numpy", "torch", "tensorflow", "jax"):
        path = Path(importlib.util.find_spec(f"xent.backends.{name}").origin)
        files = [path.with_name("ops.py"), path.with_name("kernels.py")] if path.name == "__init__.py" else [path]
        nodes = [node for file in files for node in ast.parse(file.read_text(encoding="utf-8")).body]
        names = [getattr(node, "name", None) or ast.unparse(getattr(node, "targets", [node])[0]) for node in nodes]
        shared = [n for n in names if n in order]
        assert shared == [n for n in order if n in shared], name
