"""Which frameworks the tests run on, and in what order they may be imported."""

import atexit
import contextlib
import ctypes
import dataclasses
import gc
import importlib
import os
import sys

import cases
import pytest

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ["COLUMNS"] = "100"  # what the commands print is checked

HAVE_LINEAR_CE = ("numpy", "torch", "tensorflow", "jax")
# Run first: with several workers, a long file at the end would keep only one of them busy.
LONGEST = ("test_compiled.py", "test_fuzz.py", "test_compat_keras.py", "test_serving.py", "test_triton.py")
# About derivatives, errors and shapes: XLA leaves its optimizations out, which saves a fifth of the time. Users run
# with them, and so do the tests of accuracy and of compiled programs, and --full.
QUICKLY_COMPILED = (
    "test_jax.py",
    "test_compat_optax.py",
    "test_linear_edges.py",
    "test_boundary.py",
    "test_labels.py",
    "test_empty_mean.py",
)
M_MMAP_THRESHOLD = -3  # in malloc.h
BACKENDS = (*HAVE_LINEAR_CE, "array_api_strict", "toy_framework")


def pytest_addoption(parser):
    parser.addoption("--backend", action="append", choices=BACKENDS, help="only these backends; repeat for more")
    parser.addoption("--device", default="cpu", help="where `live` puts its arrays: cuda, gpu, cuda:1")
    parser.addoption(
        "--full", action="store_true", help="every combination of options and programs, and an hour of random calls"
    )
    parser.addoption("--fuzz-seed", metavar="SEED[:NUMBER]", help="other random calls of the fuzz, or one of them")
    parser.addoption("--fuzz-seconds", type=float, help="how long the fuzz runs: 10, or 3600 with --full")
    parser.addoption("--compiled", action="store_true", help="the compiled tests, which want a process a framework")


def pytest_report_header():
    """Which xent is tested: another project of this name may be installed."""
    import xent

    where = f"xent {getattr(xent, '__version__', '?')}: {xent.__file__ or list(xent.__path__)}"
    if not hasattr(xent, "sparse_ce"):
        return f"{where}, which is another project's; set PYTHONPATH to this checkout, or install it: pip install -e ."
    cpu = importlib.import_module("xent.backends.cpu")
    return f"{where}; native CPU kernels: {cpu.why_not or cpu.native.isa()}"


def pytest_terminal_summary(terminalreporter):
    """Which random calls the fuzz made, and how to repeat them."""
    for report in terminalreporter.getreports("passed"):
        for name, value in report.user_properties:
            if name == "fuzz" and report.when == "call":
                terminalreporter.write_line(f"fuzz: {value}")


def pytest_configure(config):
    if sys.platform == "linux":
        with contextlib.suppress(AttributeError):  # not every C library has it
            ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, 1 << 22)  # large arrays of all threads go back when freed
    cases.FULL = config.getoption("--full")
    config.addinivalue_line("markers", "compiled: runs a framework's compiler; test_compiled.py gives it a process")
    config.addinivalue_line("markers", "full: a combination that only --full tries")
    config.addinivalue_line("markers", "backend(name): needs this framework")
    config.addinivalue_line("markers", "chosen_backends: one test for all backends, which heeds --backend itself")


def pytest_collection(session):
    """Before any file, but not where pytest-xdist only hands out the tests: TensorFlow before Triton aborts."""
    gc.disable()  # imports leave a million objects, hardly any of them garbage
    folders = any(os.path.isdir(argument) for argument in session.config.args)  # some of their files import PyTorch
    if folders or "torch" in (session.config.getoption("--backend") or BACKENDS):
        for name in ("torch", "triton"):
            with contextlib.suppress(ImportError):
                importlib.import_module(name)


def pytest_ignore_collect(collection_path, config):
    """Files whose tests are all compiled import compilers."""
    programs = collection_path.name.startswith("test_programs_")
    return True if programs and not config.getoption("--compiled") else None


def pytest_collection_finish():
    """What was imported stays: a million objects, which no garbage collection has to visit from here on."""
    gc.freeze()
    gc.enable()
    atexit.register(gc.unfreeze)  # else nanobind would find leaks


def pytest_generate_tests(metafunc):
    if "live" in metafunc.fixturenames:
        chosen = HAVE_LINEAR_CE if "linear" in metafunc.fixturenames else BACKENDS
        metafunc.parametrize("live", chosen, indirect=True, scope="session")


def pytest_collection_modifyitems(config, items):
    """Leaves out what was not asked for; what is asked for and missing is skipped with its reason."""
    chosen = config.getoption("--backend")
    compiled = config.getoption("--compiled")
    full = config.getoption("--full")

    def wanted(item):
        heeded = not chosen or _backend(item) in chosen or item.get_closest_marker("chosen_backends")
        mark = item.get_closest_marker
        return heeded and compiled == (mark("compiled") is not None) and (full or mark("full") is None)

    items.sort(key=lambda item: item.path.name not in LONGEST)
    dropped = [item for item in items if not wanted(item)]
    if dropped:
        config.hook.pytest_deselected(items=dropped)
        items[:] = [item for item in items if wanted(item)]


def _backend(item):
    marker = item.get_closest_marker("backend")
    if marker:
        return marker.args[0]
    return item.callspec.params.get("live") if hasattr(item, "callspec") else None


@pytest.fixture(autouse=True, scope="module")
def compiled_quickly(request):
    if "jax" in sys.modules:
        chosen = request.config.getoption
        quick = request.path.name in QUICKLY_COMPILED and not chosen("--compiled") and not chosen("--full")
        sys.modules["jax"].config.update("jax_disable_most_optimizations", quick)


@pytest.fixture(autouse=True, scope="module")
def memory_is_given_back():
    """JAX keeps all functions that it has compiled, graphs are in cycles, and the C library keeps what was freed. What
    is left then was imported, and stays."""
    yield
    if "jax" in sys.modules:
        sys.modules["jax"].clear_caches()
    gc.collect()
    gc.freeze()
    if sys.platform == "linux":
        with contextlib.suppress(AttributeError):  # not every C library has it
            ctypes.CDLL(None).malloc_trim(0)


@pytest.fixture(scope="session")
def live(request):
    """Each framework in turn, with its arrays on --device."""
    from xent.verify import frameworks

    cases.needs_installed(request.param)
    found = frameworks.load(request.param)
    wanted = request.config.getoption("--device")
    device = frameworks.device(found.devices(), wanted)
    if not device:
        pytest.skip(f"{found.name} has no {wanted}, only {', '.join(found.devices())}")
    return dataclasses.replace(found, array=lambda value, dtype, _: found.array(value, dtype, device))


@pytest.fixture
def linear(live):
    """Each framework that has linear_ce, in turn."""
    return live
