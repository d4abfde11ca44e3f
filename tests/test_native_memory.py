"""The native kernels' bounds, memory, threads and processes; and their settings."""

import itertools
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from processes import printed, python
from xent.adapter import ABSENT, INVALID
from xent.backends.cpu import native, why_not
from xent.verify.precision import rounded

if native is None:
    pytest.skip(f"native kernels: {why_not}", allow_module_level=True)

from native_arrays import (
    DTYPES,
    NOISE,
    ONE_MORE_ISA,
    Elements,
    Memory,
    Products,
    Rows,
    address,
    close,
    combinations,
    loaded,
    stored,
)

HERE = Path(__file__).parent


# ---- impossible arguments are refused before anything is read or written

ROOM = np.zeros(64)
PLACE = address(ROOM)
LAYOUT = {"dtype": 0, "outer": 2, "classes": 3, "inner": 1, "wide": True, "threads": 1, "x": PLACE, "t": 0, "u": PLACE}
LAYOUT |= {"ids": PLACE}
GOOD = {
    "rows_forward": LAYOUT | dict.fromkeys(("m", "s", "loss", "lse", "smooth", "gap_sum", "argmax"), PLACE),
    "rows_backward": LAYOUT | dict.fromkeys(("m", "s", "a", "b", "c", "dx"), PLACE) | {"dt": 0},
    "rows_both": LAYOUT
    | dict.fromkeys(("a", "z", "c", "loss", "lse", "smooth", "m", "s", "gap_sum", "argmax", "dx"), PLACE),
    "mean_of_ids": {"dtype": 0, "outer": 2, "classes": 3, "inner": 1, "wide": True, "ignored": None}
    | {"invalid_is_nan": True, "threads": 1, "x": PLACE, "ids": PLACE, "dx": PLACE},
    "sigmoid_forward": {"dtype": 0, "n": 6, "smoothing": 0.0}
    | {"pos_weight_length": 6, "pos_weight_inner": 1, "weight_length": 1, "weight_inner": 1, "threads": 1}
    | dict.fromkeys(("x", "targets", "pos_weight", "weight", "loss"), PLACE),
    "entropy": {"dtype": 0, "rows": 2, "classes": 3, "threads": 1}
    | dict.fromkeys(("x", "weight", "entropy"), PLACE)
    | {"dx": 0},
    "project": {"dtype": 0, "rows": 2, "features": 3, "classes": 4, "threads": 1}
    | dict.fromkeys(("hidden", "weight", "x"), PLACE),
}
IMPOSSIBLE = [
    *(("rows_forward", {name: value}) for name in ("dtype", "outer", "classes", "inner") for value in (-1, -(2**31))),
    *(("rows_forward", {"dtype": dtype}) for dtype in (4, 2**31 - 1)),
    *(("rows_forward", {"classes": 0, "outer": outer}) for outer in (0, 2)),
    *(("rows_forward", sizes) for sizes in ({"outer": 2**40, "inner": 2**40}, {"classes": 2**62})),
    *(("rows_forward", {name: 0}) for name in ("x", "ids", "m", "s", "loss")),
    *((kernel, given) for kernel in ("rows_forward", "rows_both") for given in ({"gap_sum": 0}, {"argmax": 0})),
    ("rows_forward", {"t": PLACE}),  # gap_sum and argmax are of hard labels
    *(("rows_backward", {name: 0}) for name in ("x", "ids", "m", "s", "a", "u")),  # c is of no use without u
    ("rows_backward", {"dt": PLACE}),  # labels are hard
    *(("rows_both", {name: 0}) for name in ("x", "ids", "a", "dx")),
    *(("mean_of_ids", {name: value}) for name in ("outer", "classes", "inner") for value in (-1, 2**60)),
    *(("mean_of_ids", {name: 0}) for name in ("classes", "x", "ids")),
    *(("sigmoid_forward", {name: value}) for name in ("n", "dtype") for value in (-1, -(2**31))),
    *(("sigmoid_forward", {name: 0}) for name in ("x", "targets", "pos_weight_length", "pos_weight_inner")),
    *(("sigmoid_forward", {name: 0}) for name in ("weight_length", "weight_inner")),
    ("sigmoid_forward", {"n": 2**62}),
    *(("entropy", {name: value}) for name in ("rows", "classes") for value in (-1, 2**60)),
    *(("entropy", {"dtype": dtype}) for dtype in (-1, 4)),
    *(("entropy", {name: 0}) for name in ("classes", "x", "entropy")),
    *(("project", {name: value}) for name in ("rows", "features", "classes") for value in (-1, 2**60)),
    *(("project", {name: 0}) for name in ("features", "classes", "hidden", "weight", "x")),
]


def without_addresses(value):
    return str(value).replace(str(PLACE), "PLACE")  # a worker of pytest-xdist has its own


@pytest.mark.parametrize(("kernel", "bad"), IMPOSSIBLE, ids=without_addresses)
def test_impossible_arguments(kernel, bad):
    with pytest.raises(ValueError, match="xent: "):
        getattr(native, kernel)(*(GOOD[kernel] | bad).values())


@pytest.mark.parametrize("sizes", [{"outer": 0}, {"inner": 0}, {"outer": 0, "inner": 0}], ids=str)
def test_nothing_to_do(sizes):
    """Addresses may be null where there are no elements, and memory is left alone."""
    before = ROOM.copy()
    for kernel in ("rows_forward", "rows_backward", "rows_both"):
        arguments = GOOD[kernel] | sizes
        getattr(native, kernel)(*arguments.values())
        getattr(native, kernel)(*(arguments | {"x": 0, "ids": 0, "m": 0}).values())
    assert native.sigmoid_forward(*(GOOD["sigmoid_forward"] | {"n": 0, "x": 0}).values()) == 0
    native.entropy(*(GOOD["entropy"] | {"rows": 0, "x": 0, "entropy": 0}).values())
    native.project(*(GOOD["project"] | {"rows": 0, "hidden": 0}).values())
    np.testing.assert_array_equal(ROOM, before)


@pytest.mark.parametrize("inner", [1, 3])
@pytest.mark.parametrize("classes", [5, 700])
@pytest.mark.parametrize("wide", [True, False])
def test_ids_past_the_classes_are_not_looked_up(classes, inner, wide):
    """The caller has checked them, but another thread may have changed them since."""
    x = NOISE.normal(size=(2, classes, inner))
    ids = np.zeros((2, inner), int)
    ids[0, -1] = 2**31 - 1
    rows = Rows("float32", x, ids=ids.ravel(), wide=wide)
    results, dx = rows.both(np.ones(2 * inner))
    (loss, *_), (backward, _) = rows.forward(), rows.backward(np.ones(2 * inner))
    for k in (results[0], loss):
        np.testing.assert_array_equal(np.isnan(k.reshape(2, inner)), ids > 0)
    for k in (dx, backward):
        np.testing.assert_array_equal(np.isnan(k).all(axis=1), ids > 0)
        assert np.isnan(k).any(axis=1).sum() == 1


# ---- memory and threads


THREADS = (3,) if ONE_MORE_ISA else (2, 3, 8)


def big(threads, inner=1):
    rng = np.random.default_rng(1)
    x = rng.normal(size=(600, 1000, inner))  # enough for several threads
    rows = Rows("float32", x, ids=rng.integers(0, 1000, 600 * inner), u=rng.random(1000), threads=threads)
    ones = np.ones(600 * inner)
    forward = [*rows.forward(), rows.backward(ones, ones, ones)[0]]
    results, dx = rows.both(ones, ones, ones)
    elements = Elements("float32", x, rng.random(x.shape), threads=threads)
    return [*forward, *results, dx, *elements.forward(), *elements.backward()]


@pytest.mark.parametrize("inner", [1, 3])
def test_results_do_not_depend_on_the_thread_count(inner):
    one = big(1, inner)
    for threads in THREADS:
        for a, b in zip(one, big(threads, inner), strict=True):
            np.testing.assert_array_equal(a, b)


# Around a vector, a tile, what a tile adds at a time (1024) and what pull holds of a weight (256 x 512)
PRODUCTS = [(1, 1, 1), (5, 3, 7), (12, 16, 24), (13, 33, 25), (65, 100, 257), (31, 1100, 600), (1030, 40, 50)]


@pytest.mark.parametrize(("dtype", "sizes", "offset"), combinations(DTYPES, PRODUCTS, (0, 1)))
def test_products(dtype, sizes, offset):
    for got, (left, right) in Products(dtype, *sizes, offset=offset).all():
        rounding = (left.shape[1] + 1) * np.finfo(got.dtype).eps * (np.abs(left) @ np.abs(right))
        assert (np.abs(got - left @ right) <= rounding).all()


def test_accumulate_adds():
    case = Products("float32", 40, 50, 60)
    out = case.memory.new((60, 50), np.float32, 1000)
    got = case.run(native.accumulate, "xh", out)
    np.testing.assert_allclose(got, 1000 + case.dx.T.astype(float) @ case.h, rtol=1e-6)


def test_products_do_not_mix_rows_or_classes():
    case = Products("float32", 20, 50, 60)
    case.places["x"][3, 5] = np.inf
    case.places["h"][4, 6] = np.nan
    (x, _), (dh, _), (dw, _) = case.all()  # project writes no operand
    assert np.isfinite(np.delete(x, 4, 0)).all()
    assert np.isnan(x[4]).all()
    assert np.isfinite(np.delete(dh, 3, 0)).all()
    assert np.isfinite(np.delete(np.delete(dw, 5, 0), 6, 1)).all()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_products_do_not_depend_on_the_thread_count(dtype):
    one = Products(dtype, 150, 1100, 600, threads=1).all()
    for threads in THREADS:
        for (a, _), (b, _) in zip(one, Products(dtype, 150, 1100, 600, threads=threads).all(), strict=True):
            np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    ("classes", "offset"),
    [(1001, 0), (3001, 1)]
    if ONE_MORE_ISA
    else [*itertools.product([1000, 1001], [0, 4, 16, 2, 1]), (3001, 0), (3001, 1)],
)
def test_large_output_at_any_address(offset, classes):
    """10 MB, more than what is written past the caches; canaries are in Memory."""
    n = 2_500_000 // classes
    x = NOISE.normal(size=(n, classes, 1))
    ids = NOISE.integers(0, classes, n)
    a = np.ones(n)
    rows = Rows("float32", x, ids=ids, offset=offset)
    got = rows.both(a)[1]
    few = Rows("float32", x[:100], ids=ids[:100])
    np.testing.assert_array_equal(got[:100], few.both(a[:100])[1])
    assert np.abs(got.sum(axis=1)).max() < 1e-5
    middle = Rows("float32", x.reshape(1, n, classes), ids=np.zeros(classes, int), offset=offset)
    got = middle.both(np.ones(classes))[1]
    assert np.abs(got.sum(axis=1)).max() < 1e-5


@pytest.mark.parametrize("dtype", DTYPES[:1] if ONE_MORE_ISA else DTYPES)
def test_large_output_just_ahead_of_the_logits(dtype):
    """In the last 12 bits of its address: loads would wait for the stores, so such rows are written backwards."""
    n = 500 // stored(0, dtype).itemsize  # 10 MB
    x = NOISE.normal(size=(n, 20001, 1)).astype(np.float16)
    rows = Rows(dtype, loaded(stored(x, dtype), dtype), ids=NOISE.integers(0, 20001, n))
    a = np.ones(n)

    def written(apart):
        rows.memory = Memory((address(rows.x) + apart) % 4096, unit=4096)
        return rows.both(a)[1], rows.backward(a)[0]

    want = written(2048)
    for apart in (16, 48, 320):
        for got, there in zip(written(apart), want, strict=True):
            np.testing.assert_array_equal(got, there)


@pytest.mark.parametrize("classes", [1, 10, 64])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("soft", [False, True])
def test_a_row_of_few_classes_does_not_depend_on_its_neighbours(classes, dtype, soft):
    """Tiles of rows are turned; the last is not full, and a masked or an impossible row does not touch the others."""
    n = 1100
    x = rounded(NOISE.normal(size=(n, classes, 1)), dtype)
    x[7] = np.nan
    ids = NOISE.integers(0, classes, n)
    ids[5::9], ids[6::9] = ABSENT, INVALID
    t, u = NOISE.random(x.shape) if soft else None, NOISE.random(classes)
    vectors = NOISE.normal(size=(3, n))

    def everything(rows):
        one = Rows(dtype, x[rows], ids=ids[rows], t=t if t is None else t[rows], u=u)
        a, b, c = vectors[:, rows]
        results, dx = one.both(a, b, c)
        return [*results, dx, *one.forward(), *(k for k in one.backward(a, b, c, labels=soft) if k is not None)]

    for rows in (slice(0, 20), slice(505, 520), slice(n - 3, n)):
        for got, want in zip(everything(slice(n)), everything(rows), strict=True):
            close(got[rows], want, dtype)


def test_many_python_threads_at_once():
    want = big(0)

    def same(_):
        for a, b in zip(big(0), want, strict=True):
            np.testing.assert_array_equal(a, b)

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(same, range(12)))


FORK = """
import os, sys, threading, warnings
import numpy as np
from xent.backends.cpu import native
warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12 warns of forks beside threads: that is the point

x, ids = np.random.default_rng(0).normal(size=(1000, 1000)).astype("f"), np.arange(1000)

def loss():
    m, s, loss = np.empty((3, 1000), "f")
    at = lambda k: k.ctypes.data
    native.rows_forward(0, 1000, 1000, 1, True, 2, at(x), 0, 0, at(ids), at(m), at(s), at(loss), 0, 0, 0, 0)
    return loss

want = loss()
busy = sys.argv[1] == "busy"
stop = threading.Event()
def work():
    while not stop.is_set():
        loss()
workers = [threading.Thread(target=work) for _ in range(2)] if busy else []
for worker in workers:
    worker.start()
for _ in range(30 if busy else 3):
    child = os.fork()
    if child == 0:
        os._exit(0 if all(np.array_equal(loss(), want) for _ in range(3)) else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert np.array_equal(loss(), want)
stop.set()
for worker in workers:
    worker.join()
print("done")
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
@pytest.mark.parametrize("how", ["idle", "busy"])
def test_fork(how):
    """A child forked after use, also while other threads are inside a kernel, computes on threads of its own."""
    run = python("-c", FORK, how, XENT_NUM_THREADS="2")
    assert run.stdout == "done\n", run.stderr


BIND = "os.sched_setaffinity(0, {min(usable)})"
LOAD = "from xent.backends.cpu import native"


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="no affinity on this system")
@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="one processor")
@pytest.mark.parametrize(
    ("setup", "turn"),  # PyTorch takes its time: one number of threads each
    [((LOAD, BIND), slice(2)), ((LOAD, "import torch"), slice(1)), (("import torch", LOAD), slice(1, 2))],
    ids=["by the program", "by torch, afterwards", "by torch, before"],
)
def test_threads_of_a_bound_one(setup, turn):
    """OpenMP, also PyTorch's, binds the thread that loads it; the kernels' threads must not share its processor."""
    if "import torch" in setup:
        pytest.importorskip("torch")
    code = """
assert len(os.sched_getaffinity(0)) == 1
known = set(os.listdir("/proc/self/task"))
rows = 4096 + 200 * len(usable)  # work for all of them
xent.sparse_ce(np.zeros((rows, 1000), np.float32), np.zeros(rows, int))
new = set(os.listdir("/proc/self/task")) - known
homes = sorted(sorted(os.sched_getaffinity(int(task))) for task in new)
print(homes == [[one] for one in sorted(usable)], len(homes) > 0 and all(set(home) == usable for home in homes))
"""
    first = "import os, numpy as np, xent", "usable = os.sched_getaffinity(0)"
    expected = {"": "True False\n", str(len(os.sched_getaffinity(0)) + 1): "False True\n"}
    for threads in [*expected][turn]:
        want = expected[threads]
        run = python("-c", "\n".join((*first, *setup)) + code, OMP_PROC_BIND="true", XENT_NUM_THREADS=threads)
        assert run.stdout == want, run.stderr


def test_exit_while_a_kernel_runs():
    work = "threading.Thread(target=lambda: [loss() for _ in range(9999)], daemon=True).start()"
    code = FORK.split("want =")[0] + work
    run = python("-c", code + "\nloss()\nprint('done')")
    assert (run.returncode, run.stdout) == (0, "done\n"), run.stderr


@pytest.mark.skipif(ONE_MORE_ISA, reason="runs inside the runs that it starts")
@pytest.mark.parametrize("isa", native.isas()[1:])
def test_the_other_instruction_sets(isa):
    """All tests of the kernels once more, but what is about arguments, threads and processes alone."""
    left_out = "bound", "fork", "exit", "settings", "impossible", "python_threads", "flushes"
    others = " and ".join(f"not {name}" for name in left_out)
    files = str(HERE / "test_native.py"), str(HERE / "test_native_entropy.py"), __file__
    alone = "-p", "no:cacheprovider", "--noconftest"  # these tests need no framework
    assert " passed" in printed("-m", "pytest", "-q", "-x", *alone, "-k", others, *files, cwd=HERE.parent, XENT_ISA=isa)
    assert python("-c", "from xent.backends.cpu import native; print(native.isa())", XENT_ISA=isa).stdout == isa + "\n"


def test_settings():
    assert native.isa() in native.isas()
    code = "from xent.backends.cpu import native; print(native.max_threads())"
    assert python("-c", code, XENT_NUM_THREADS="3").stdout == "3\n"
    code = "from xent.backends import cpu; print(cpu.native, cpu.why_not)"
    assert python("-c", code, XENT_NATIVE="0").stdout == "None switched off by XENT_NATIVE=0\n"
    assert python("-c", code, XENT_NATIVE="0", XENT_ISA="nonsense").stdout.startswith("None switched off")


MISSING = next((isa for isa in ("avx512", "avx2") if isa not in native.isas()), "neon")


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        *(
            ("XENT_ISA", isa, f"{' or '.join(native.isas())} (what this processor has)")
            for isa in ("nonsense", MISSING)
        ),
        *(("XENT_NUM_THREADS", n, "a number of threads, 1 or more") for n in ("all", "0", "-1", "2x", "1.5")),
        ("XENT_NATIVE", "off", "0 or 1"),
    ],
)
def test_settings_that_cannot_be(name, value, expected):
    """An error at every call, and never another setting than the one that was asked for."""
    code = """
import numpy as np, xent
for _ in range(2):
    try:
        print(xent.sparse_ce(np.zeros((2, 3)), [0, 1]))
    except ValueError as error:
        print(error)
"""
    run = python("-c", code, **{name: value})
    assert run.stdout == 2 * f"{name}: expected {expected}, got {value!r}\n", run.stderr


def test_settings_are_read_once():
    code = "import os; from xent.backends.cpu import native; os.environ['XENT_ISA'] = 'nonsense'; print(native.isa())"
    assert python("-c", code, XENT_ISA="").stdout == native.isas()[0] + "\n"
