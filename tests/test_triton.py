"""The Triton kernels without a GPU: their numbers in Triton's interpreter, what is launched and dispatched to on fake
CUDA tensors, and that it compiles for real devices."""

import contextlib
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")
triton = pytest.importorskip("triton", reason="triton is not installed")

import xent  # noqa: E402
from processes import python, run_tests  # noqa: E402
from torch._subclasses.fake_tensor import FakeTensorMode  # noqa: E402
from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.compiler import ASTSource  # noqa: E402
from xent.adapter import Layout, Slopes  # noqa: E402
from xent.backends import triton as kernels_on_cuda  # noqa: E402
from xent.backends.torch import native as adapter  # noqa: E402

pytestmark = pytest.mark.backend("torch")
if kernels_on_cuda.why_not:
    pytest.skip(f"Triton kernels: {kernels_on_cuda.why_not}", allow_module_level=True)
calls = kernels_on_cuda.load()
HERE = Path(__file__).parent
FULL = pytest.mark.full


def test_numbers(pytestconfig):
    """The interpreter warns of NaN and infinities, which rows may hold."""
    quiet = "-W", "ignore::RuntimeWarning"
    run_tests(pytestconfig, *quiet, HERE / "triton_interpreted.py", timeout=600, TRITON_INTERPRET="1")


# ---- what is launched


class Launches(list):
    """In the place of the kernels: notes calls, and whether they were made with the logits' device current."""

    def __init__(self):
        self.current = []

    @contextlib.contextmanager
    def device_of(self, x):
        self.current.append(x.device)
        yield
        self.current.pop()

    def __getattr__(self, name):
        launches = self

        class Kernel:
            def __getitem__(self, grid):
                def launch(*arguments, **options):
                    assert launches.current == [arguments[1 if name == "merge" else 0].device]
                    launches.append((name, grid, arguments, options))

                return launch

        return Kernel()


@pytest.fixture
def launches(monkeypatch):
    found = Launches()
    monkeypatch.setattr(calls, "kernels", found)
    monkeypatch.setattr(torch.cuda, "device_of", found.device_of)
    return found


def everything(dtype, outer, classes, inner, hard):
    """All kernels on one shape of fake tensors, which have no values: to wait for one would raise."""
    kernels = calls.Kernels(adapter.OPS, adapter.dense, adapter.new)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    with FakeTensorMode():
        x = torch.empty(outer, classes, inner, device="cuda:1", dtype=dtype)
        rows = torch.empty(outer, inner, device="cuda:1", dtype=wide)
        t = None if hard else x.to(wide)
        u = None if hard else t.select(0, 0).select(1, 0)
        lay = Layout(1, hard, True, not hard, hard)
        given = lay, x, t, u, rows.to(torch.int64)
        results = kernels.rows(*given)
        dx, dt = kernels.rows_backward(
            *given, (results.m, results.s), (rows, None if hard else rows, None), (True, not hard)
        )
        both, slope = kernels.rows_value_and_grad(*given, Slopes(0.5, None if hard else rows))
        z, one_row = x.to(wide), rows.select(0, 0)
        each = kernels.sigmoid(0.1, x, z, None, None, True)
        total = kernels.sigmoid(0.0, x, z, z.select(0, 0), one_row, False)
        kernels.sigmoid_backward(0.0, x, z, None, None, one_row.select(0, 0), (True, True))
        kernels.sigmoid_value_and_grad(0.0, x, z, None, None, 0.5, False)
    for k in (results[0], both[0]):
        assert (k.shape, k.dtype) == (rows.shape, wide)
    for k in (dx, slope):
        assert (k.shape, k.dtype, k.device) == (x.shape, dtype, x.device)
    assert (each.shape, total.shape) == (x.shape, ())
    assert hard or dt.dtype == wide


def test_launches(launches):
    everything(torch.bfloat16, 4096, 32000, 1, True)
    names = [name for name, *_ in launches]
    assert names == ["statistics", "merge", "gradient", "statistics", "merge", "gradient", *["elements"] * 4]
    launches.clear()
    everything(torch.float32, 4096, 1000, 1, False)
    assert [name for name, *_ in launches] == ["statistics", "gradient", "statistics", *["elements"] * 4]


# ---- that it compiles, which the interpreter does not tell

SHAPES = {
    "a language model": (4096, 32000, 1),
    "few classes": (65536, 10, 1),
    "segmentation": (8, 21, 65536),
    "one row": (1, 128256, 1),  # a size of 1 is a constant to Triton, not a tensor
    "one of everything": (1, 1, 1),
}


@pytest.mark.parametrize(
    ("dtype", "target", "shapes"),
    [
        pytest.param(torch.bfloat16, 90, list(SHAPES), id="bfloat16 on Hopper"),
        pytest.param(torch.float64, 80, ["a language model", "few classes"], id="float64 on Ampere", marks=FULL),
    ],
)
def test_compiles(dtype, target, shapes, launches, tmp_path, monkeypatch):
    """Without spills, whose memory traffic would be the kernels' own once more."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    for place, shape in enumerate(shapes):
        everything(dtype, *SHAPES[shape], place % 2 == 0)
    from xent.backends.triton import kernels

    seen = set()
    for name, _, arguments, options in launches:
        source, key = as_source(getattr(kernels, name), arguments, options)
        if key in seen:
            continue
        seen.add(key)
        compiled = triton.compile(
            source,
            target=GPUTarget("cuda", target, 32),
            options={k: options[k] for k in ("num_warps", "enable_fp_fusion")},
        )
        assert ".local" not in compiled.asm["ptx"]
    assert len({name for name, *_ in seen}) == 4


def as_source(kernel, arguments, options):
    """As a launch specialises it: None and 1 are constants; what 16 divides is known to be so."""
    given = dict(zip(kernel.arg_names, arguments, strict=False)) | {
        k: v for k, v in options.items() if k in kernel.arg_names
    }
    signature, constants, attributes = {}, {}, {}
    for i, name in enumerate(kernel.arg_names):
        value, parameter = given[name], kernel.params[i]
        if parameter.is_constexpr or value is None or (type(value) is int and value == 1):
            signature[name], constants[(i,)] = "constexpr", value
        else:
            signature[name] = triton.runtime.jit.mangle_type(value)
            if not isinstance(value, int) or value % 16 == 0:
                attributes[(i,)] = [["tt.divisibility", 16]]
    return ASTSource(kernel, signature, constants, attributes), (
        kernel.__name__,
        tuple(signature.items()),
        tuple(map(str, constants.values())),
    )


# ---- how rows are cut


@pytest.mark.parametrize(
    ("shape", "wide", "rows", "classes", "parts"),
    [
        ((4096, 32000, 1), False, 1, 8192, 4),  # a language model: parts of a tile
        ((4096, 16384, 1), False, 1, 16384, 1),  # the largest row that goes in whole
        ((4096, 16384, 1), True, 1, 4096, 4),
        ((1, 128256, 1), False, 1, 4096, 32),  # one row: smaller parts, for more of the device
        ((65536, 10, 1), False, 128, 16, 1),  # short rows, many to a tile
        ((32, 10, 1), False, 32, 16, 1),
        ((8, 21, 65536), False, 64, 32, 1),  # segmentation
        ((1, 1_000_003, 3), False, 4, 2048, 489),  # classes first
    ],
)
def test_cut(shape, wide, rows, classes, parts):
    found = calls.cut(*shape, wide)
    assert (found.rows, found.classes, found.parts) == (rows, classes, parts)


def test_every_element_is_in_a_tile():
    for outer, classes, inner in [(1, 1, 1), (7, 10, 1), (3, 70_000, 1), (5, 3, 63), (2, 9000, 64), (2, 2, 100_000)]:
        found = calls.cut(outer, classes, inner, False)
        programs, parts = found.grid
        assert found.rows * found.classes <= 2 * calls.TILE
        assert parts * found.classes >= classes
        assert programs * found.rows >= outer * inner
        assert not found.columns or programs == outer * found.tiles


# ---- dispatch


def test_fake_cuda_tensors_go_to_the_operators():
    from torch.fx.experimental.proxy_tensor import make_fx

    def both(x):
        return xent.value_and_grad(xent.sparse_ce)(x, torch.zeros(6, dtype=torch.int64, device=x.device))

    with FakeTensorMode():
        x = torch.empty(6, 5, device="cuda", dtype=torch.bfloat16)
        loss, grad = both(x)
        assert (loss.dtype, grad.dtype, grad.device) == (torch.float32, torch.bfloat16, x.device)
        assert xent.sigmoid_ce(x, torch.rand(6, 5, device="cuda")).shape == ()
        head = torch.empty(7, 5, device="cuda", dtype=torch.bfloat16)
        assert xent.linear_ce(x, head, torch.zeros(6, dtype=torch.int64, device="cuda")).dtype == torch.float32
        assert "xent.rows_both" in make_fx(both)(x).code
        assert adapter.kernels(x, torch.empty(6, device="cpu")) is None
        assert adapter.kernels(x, torch.empty(6, device="cuda:1")) is None


def test_both_kinds_of_kernels_are_registered():
    for name in ("rows", "rows_backward", "rows_both", "sigmoid", "sigmoid_backward", "sigmoid_both"):
        assert torch._C._dispatch_has_kernel_for_dispatch_key(f"xent::{name}", "CUDA")


# PyTorch is imported once, xent and Triton in a fork for each setup.
SETUPS = """
import importlib.util, os, sys, types
import torch

for setup in sys.argv[1:]:
    if os.fork() == 0:
        exec(setup)
        import xent
        assert xent.sparse_ce(torch.zeros(2, 3), [0, 1]) > 1
        imported = "triton" in sys.modules
        from xent.backends import torch, triton
        print(imported, torch.native.ON_CUDA.kernels, triton.why_not, flush=True)
        os._exit(0)
    os.wait()
"""
WITHOUT_TRITON = {
    "sys.modules['tensorflow'] = types.ModuleType('tensorflow')": "before Triton",
    "sys.modules['triton.language'] = None": "Triton does not load",
    "os.environ['XENT_NATIVE'] = '0'": "switched off by XENT_NATIVE=0",
    "importlib.util.find_spec = lambda name: None": "not installed",
}


def test_without_triton():
    """The formulas, and a reason; with it, it is not imported for CPU tensors."""
    run = python("-c", SETUPS, "", *WITHOUT_TRITON)
    with_it, *without = run.stdout.splitlines()
    assert with_it.startswith("False "), run.stderr
    assert not with_it.startswith("False None "), run.stderr
    for line, why in zip(without, WITHOUT_TRITON.values(), strict=True):
        assert " None " in line, run.stderr
        assert why in line
