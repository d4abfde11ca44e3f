"""The timing harness: it checks before it times, its clock waits for results, and finished cases are never lost."""

import dataclasses
import gc
import importlib
import itertools
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from unittest import mock

import numpy as np
import pytest
import xent
from cases import needs_installed
from xent import oracle
from xent.benchmarks import machine, measure, run, truth
from xent.benchmarks import process as process_module
from xent.benchmarks.frameworks import Contender, arrays
from xent.benchmarks.frameworks import numpy as with_numpy
from xent.benchmarks.process import Job, Session
from xent.benchmarks.result import Result
from xent.benchmarks.workloads import WORKLOADS, Workload, sweep
from xent.verify.precision import rounded

SMALL = {  # but for one they are not cold: from memory, the many copies take longer than all else here
    "image": dataclasses.replace(WORKLOADS["image"], cold=False),  # first, in memory that no other has used
    "rows": Workload("rows", "classes last", "sparse_ce", (6, 11)),
    "pixels": Workload("pixels", "classes in the middle", "sparse_ce", (2, 5, 3, 4), axis=1, cold=False),
    "soft": Workload("soft", "distributions", "softmax_ce", (6, 11), cold=False),
    "tags": Workload("tags", "elementwise", "sigmoid_ce", (6, 11), cold=False),
    "head": Workload("head", "hidden states and a weight", "linear_ce", (6, 4, 11)),
}


# ---- workloads and the truth


def test_least_traffic():
    """Each array once: logits and labels in, a gradient out."""
    lm, head, logits = WORKLOADS["lm"], SMALL["head"], 4096 * 32000
    assert (lm.read("float32"), lm.written("float32", "both")) == (4 * logits + 4 * 4096, 4 * logits)
    assert (lm.read("bfloat16"), lm.written("bfloat16", "forward")) == (2 * logits + 4 * 4096, 0)
    assert WORKLOADS["soft-large"].read("float32") == 8 * logits
    assert head.read("float32") == 4 * (6 * 4 + 11 * 4) + 4 * 6
    assert (head.operations("forward"), head.operations("both")) == (2 * 6 * 4 * 11, 6 * 6 * 4 * 11)
    assert WORKLOADS["segmentation"].rows == 8 * 256 * 256


def test_sweeps():
    found = list(sweep(WORKLOADS["lm"], "classes"))
    assert [value for value, _ in found][:3] == [16, 64, 256]
    assert [w.shape for _, w in sweep(SMALL["rows"], "rows", largest=50_000)] == [(256, 11), (1024, 11), (4096, 11)]
    with pytest.raises(ValueError, match=r"sweep: expected a workload of shape \(rows, classes\)"):
        list(sweep(SMALL["pixels"], "rows"))


@pytest.mark.parametrize("workload", SMALL.values(), ids=SMALL)
def test_truth_is_the_oracle(workload, monkeypatch):
    monkeypatch.setattr(truth, "BLOCK", 22)  # more than one block
    x, y = workload.arrays(1)
    axis = {"axis": workload.axis} if workload.loss in ("sparse_ce", "softmax_ce") else {}
    want = getattr(oracle, workload.loss)(*(k.astype(np.float64) for k in arrays(x)), y, **axis)
    true = truth.truth(workload, x, y)
    assert true.value_error(want.loss) < 1e-14
    gradient = (want.hidden, want.weight) if workload.linear else want.logits
    assert true.gradient_error(gradient, "float64") < 1e-13
    largest = np.argmax(np.abs(gradient[0]))
    arrays(gradient)[0].flat[largest] *= 1 + 1e-3
    assert true.gradient_error(gradient, "float64") > 1e-5


# ---- one process, in this one


def serve(framework, *contenders, workload=SMALL["rows"], rounds=2, which="both", dtype="float32", users=()):
    """What a process answers about these contenders, in the place of the framework's own."""
    given = {"rivals": True, "rounds": rounds, "seconds": 60, "cases": [], "contenders": users}
    job = Job("numpy", "cpu", 1, run.MODES, (which,), **given)
    session = Session(job, lambda *message: None)
    session.moved = 1 << 12
    session.framework = dataclasses.replace(framework, contenders=lambda workload: contenders)
    with mock.patch.object(gc, "freeze"):  # this process lives on
        return session.case(workload, dtype)[0]


def planted(change, name="planted"):
    """xent, with something done to its gradient."""

    def both(x, y):
        loss, gradient = xent.value_and_grad(xent.sparse_ce)(x, y)
        return loss, change(gradient.copy())

    return Contender(name, "eager", xent.sparse_ce, both)


def scaled_entry(gradient):
    gradient[3, 2] *= 1 + 1e-3
    return gradient


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda g: g, ""),
        (scaled_entry, "wrong: gradient off by 1e-03"),
        (lambda g: g * np.nan, "wrong: gradient not finite"),
        (lambda g: g * 6, "wrong: gradient off by 5e+00"),  # a sum for a mean
        (lambda g: g.astype(np.float64), "wrong: gradient of [('float64', (6, 11))], expected [('float32', (6, 11))]"),
        (lambda g: g.T, "wrong: gradient of [('float32', (11, 6))], expected [('float32', (6, 11))]"),
    ],
    ids=["right", "one entry", "nan", "sum", "dtype", "shape"],
)
def test_a_wrong_gradient_is_refused(change, says):
    """It is not timed."""
    (series,) = serve(with_numpy.make("cpu"), planted(change))
    assert series.problem == says
    assert (series.time is None) == bool(says)


@pytest.mark.parametrize(("name", "says"), [("xent", "wrong: gradient off by 1e-05"), ("another", "")])
def test_a_head_is_held_to_its_norm(name, says):
    """xent to 1e-6, rivals may be coarser."""

    def both(x, y):
        loss, grads = xent.value_and_grad(xent.linear_ce)(*x, y)
        return loss, (grads.hidden, grads.weight * np.float32(1 + 1e-5))

    contender = Contender(name, "eager", None, both)
    (series,) = serve(with_numpy.make("cpu"), contender, workload=SMALL["head"])
    assert series.problem == says


def test_a_wrong_loss_is_refused():
    wrong = Contender("planted", "eager", lambda x, y: xent.sparse_ce(x, y) * 1.001, None)
    (series,) = serve(with_numpy.make("cpu"), wrong, which="forward")
    assert series.problem == "wrong: loss off by 1e-03"


def test_what_a_contender_raises_is_reported():
    def broken(x, y):
        raise RuntimeError("no such kernel\nat line 3")

    (series,) = serve(with_numpy.make("cpu"), Contender("broken", "eager", broken, broken))
    assert series.problem == "failed: RuntimeError: no such kernel"


def test_rounds_are_interleaved(monkeypatch):
    """Each contender once a round, in orders that differ, and compared round by round with xent."""
    turns = []
    monkeypatch.setattr(process_module, "SLOW", 0)  # calls for the clock alone
    monkeypatch.setattr(
        Session, "_sample", lambda self, entry: turns.append(entry.series.name) or 1.0 + len(turns) * 1e-9
    )
    names = ("xent", "first", "second")
    found = serve(with_numpy.make("cpu"), *(planted(lambda g: g, name) for name in names), rounds=20)
    rounds = [tuple(turns[start : start + 3]) for start in range(0, 60, 3)]
    assert {frozenset(order) for order in rounds} == {frozenset(names)}
    assert len(set(rounds)) > 1
    assert [s.time.rounds for s in found] == [20, 20, 20]
    assert found[0].ratio is None
    assert found[1].ratio.median == pytest.approx(1)
    assert found[1].best == found[1].ratio


def test_the_truth_is_of_the_rounded_inputs():
    """A loss of what 16 bits hold is right within 1e-5, one of the unrounded logits is not."""
    x, _ = SMALL["rows"].arrays(process_module.SEED)
    logits = {"rounded": rounded(x, "bfloat16").astype(np.float32), "xent": x}
    contenders = [Contender(name, "eager", lambda x, y, z=z: xent.sparse_ce(z, y), None) for name, z in logits.items()]
    found = serve(with_numpy.make("cpu"), *contenders, which="forward", dtype="bfloat16")
    assert [series.problem[:14] for series in found] == ["", "wrong: loss of"]


def test_inputs_take_turns():
    """So that no call finds its own in a cache."""
    seen = []

    def forward(x, y):
        seen.append(x.ctypes.data)
        return xent.sparse_ce(x, y)

    serve(with_numpy.make("cpu"), Contender("planted", "eager", forward, None), which="forward")
    assert len(set(seen)) == SMALL["rows"].copies("float32") == 256


@pytest.mark.backend("jax")
def test_jax_gets_memory_of_its_own():
    """Not the caller's, where JAX would take it for all copies: NumPy memory that is aligned as its own is."""
    pytest.importorskip("jax")
    room = np.zeros(1024 + 16, np.float32)
    x = room[-(room.ctypes.data // 4) % 16 :][:1024]
    make = importlib.import_module("xent.benchmarks.frameworks.jax").make("cpu").array
    assert make(x, "float32").unsafe_buffer_pointer() != make(x, "float32").unsafe_buffer_pointer()


@pytest.mark.full
@pytest.mark.backend("torch")
def test_classes_over_processes():
    """In processes of its own; sharded_torch.py checks in its processes what they find."""
    torch = pytest.importorskip("torch")
    if not (torch.distributed.is_available() and torch.distributed.is_gloo_available()):
        pytest.skip("there is no gloo here")
    of_ranks = importlib.import_module("xent.benchmarks.frameworks.torch").of_ranks
    workload = Workload("sharded", "classes over two processes", "sparse_ce", (64, 30), ranks=2)
    found = serve(dataclasses.replace(with_numpy.make("cpu"), of_ranks=of_ranks), workload=workload)
    assert [(series.name, series.problem, series.time.rounds) for series in found] == [
        ("xent", "", 2),
        ("loss_parallel", "", 2),
    ]


# ---- the clock and the memory


def later(pool, seconds):
    """A contender that hands over its result before it is there."""

    def forward(x, y):
        return pool.submit(lambda: (time.sleep(seconds), xent.sparse_ce(x, y))[1])

    return Contender("in the background", "eager", forward, None)


def test_missing_synchronisation_is_caught():
    read = lambda x: np.asarray(x.result() if hasattr(x, "result") else x)  # noqa: E731
    with ThreadPoolExecutor(1) as pool:
        for wait, says in ((lambda result: None, "not synchronised"), (lambda result: result and result.result(), "")):
            framework = dataclasses.replace(with_numpy.make("cpu"), numpy=read, wait=wait)
            (series,) = serve(framework, later(pool, 0.005), which="forward")
            assert series.problem.partition(":")[0] == says


def test_seconds_are_for_one_call(monkeypatch):
    done, waited, now = [], [], itertools.count(step=3)
    monkeypatch.setattr(measure.time, "perf_counter", lambda: next(now))
    assert measure.seconds(iter([lambda: done.append(1) or len(done)] * 9), waited.append, least=10) == 3
    assert waited == [1, 2, 3, 4]  # for each result, until 10 seconds are over
    assert measure.seconds(iter([lambda: 5]), waited.append) == 3


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the peak is not known")
def test_peak_memory():
    size = 1 << 26
    _, peak = measure.peak(lambda: np.ones(size // 8)[:10].sum())
    assert 0.9 * size < peak < 1.3 * size


def test_memory_that_xla_has_planned():
    """Results, and what comes between: 4 MB that are multiplied again."""
    jax = pytest.importorskip("jax")
    planned = importlib.import_module("xent.benchmarks.frameworks.jax").planned
    x = jax.numpy.ones((1000, 2), "float32")
    assert 4_000_000 <= planned(jax.jit(lambda x: jax.numpy.cos(x @ x.T) @ x), x) < 4_100_000
    assert planned(lambda x: x @ x.T, x) is None


def test_memory_settings_are_told_not_changed(monkeypatch):
    monkeypatch.setenv("MALLOC_ARENA_MAX", "1")
    assert "MALLOC_ARENA_MAX=1" in machine.memory_settings()
    monkeypatch.delenv("MALLOC_ARENA_MAX")
    assert not [name for name in run.environment("torch", "cpu", 2) if name.startswith("MALLOC")]


# ---- whole runs


@pytest.fixture(scope="module")
def everyone():
    """Every contender of every framework, eager, on every kind of workload: one round, with little memory moved.
    TensorFlow as it is on processors without AVX-512: it does not count its memory."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run, "WORKLOADS", SMALL)
        start = "import sys; sys.path.pop(0); from xent.benchmarks import process; process.UNCACHED = 1 << 20"
        patch.setattr(run, "START", f"{start}; process.main()")
        patch.setenv("TF_ENABLE_ONEDNN_OPTS", "0")
        return run.bench(list(SMALL), modes=["eager"], rounds=1)


def test_everyone_is_right(everyone):
    """The harness calls no contender wrong that is right."""
    assert everyone.failures == []
    assert [case.workload for case in everyone.cases] == list(SMALL.values())
    for case in everyone.cases:
        for series in case.series:
            assert not series.problem, series
            assert series.time.rounds == 1


@pytest.mark.backend("tensorflow")
def test_memory_where_tensorflow_does_not_count_it(everyone):
    """The process's peak tells: a gradient of 4 MB."""
    needs_installed("tensorflow")
    (series,) = (series for series in everyone.cases[0].series if series.ours and series.backend == "tensorflow")
    assert series.memory > 3_500_000  # some of its pages were there


RIVALS = {
    ("numpy", "rows"): {"NumPy, in place"},
    ("torch", "pixels"): {"F.cross_entropy", "keras.losses"},
    ("torch", "tags"): {"F.binary_cross_entropy_with_logits", "keras.losses"},
    ("torch", "head"): {"F.cross_entropy", "F.linear_cross_entropy"},
    ("tensorflow", "soft"): {"tf.nn.softmax_cross_entropy_with_logits"},
}


@pytest.mark.parametrize(("backend", "workload"), RIVALS, ids=lambda part: part)
def test_rivals(everyone, backend, workload):
    needs_installed(backend)
    (case,) = (case for case in everyone.cases if case.workload.name == workload)
    assert {s.name for s in case.series if s.backend == backend} == RIVALS[backend, workload] | {"xent"}


def test_a_result_survives_its_file(everyone, tmp_path):
    for name in ("once", "twice"):
        everyone.save(tmp_path / name)
        again = Result.load(tmp_path / name)
        assert [s.label for case in again.cases for s in case.series] == [
            s.label for case in everyone.cases for s in case.series
        ]
        everyone = again
    assert (tmp_path / "once").read_text() == (tmp_path / "twice").read_text()


def test_too_large_for_the_memory(monkeypatch):
    monkeypatch.setattr(machine, "memory", lambda which: 1 << 20)
    with pytest.raises(ValueError, match=r"nothing was timed: image .* needs .* GB of memory, 0.0 are free"):
        run.bench(["image"], backends=["numpy"], rivals=False, rounds=1)


def test_only_torch_has_classes_over_processes():
    with pytest.raises(ValueError, match="nothing was timed"):
        run.bench("lm-sharded", backends=["numpy"])


def test_a_process_that_dies(monkeypatch):
    """The next case has a new one, and the run has failed."""
    start = "import os, sys; sys.path.pop(0); from xent.benchmarks import process; case = process.Session.case\n"
    start += "process.Session.case = lambda self, w, d: os._exit(3) if w.name == 'tiny' else case(self, w, d)\n"
    monkeypatch.setattr(run, "START", start + "process.main()")
    found = run.bench(["tiny", "image"], backends=["numpy"], rivals=False, rounds=1)
    assert [case.workload.name for case in found.cases] == ["image"]
    assert found.failures == [found.broken[0]]
    assert found.broken[0] == "numpy, tiny  32x10  float32: the process died: status 3"


def test_a_sweep_of_threads(monkeypatch):
    monkeypatch.setattr(run.machine, "cores", lambda: 2)
    found = run.bench(["tiny"], backends=["numpy"], sweep="threads", rivals=False, rounds=1)
    assert [case.value for case in found.cases] == [1, 2]


def test_about_how_long(capsys):
    """Said before anything starts; more for more."""
    said = []
    run.bench(["tiny"], backends=["numpy"], rivals=False, rounds=1, announce=said.append)
    assert said == ["about 1 min"]
    cases = list(run._cases([], [], 2, quick=False, sweep=None))
    job = Job("torch", "cpu", 2, run.MODES, ("both",), rivals=True, rounds=25, seconds=4, cases=cases)
    assert run.estimate(dataclasses.replace(job, cases=cases[:1])) < run.estimate(job) < 300
