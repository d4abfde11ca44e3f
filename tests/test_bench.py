"""The timing harness: that it checks before it times, that its clock waits, and that nothing finished is lost."""

import dataclasses
import gc
import importlib.util
import itertools
import os
import platform
import signal
import subprocess
import sys
import tempfile
import threading
import time
import types
import weakref
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import xent
from typer.testing import CliRunner
from xent import _live, _regimes, cli, oracle
from xent.benchmarks import (
    clock,
    diff,
    driver,
    inputs,
    machine,
    memory_traffic,
    process,
    rounds,
    rows,
    run,
    steady,
    truth,
    workers,
)
from xent.benchmarks.frameworks import Contender, parts
from xent.benchmarks.frameworks import numpy as with_numpy
from xent.benchmarks.process import GROWING, LITTLE, Server
from xent.benchmarks.result import Case, Result, Series, ratio
from xent.benchmarks.workloads import HEADS, WORKLOADS, Traffic, Workload, sweep

SMALL = {
    "rows": Workload("rows", "classes last", "sparse_ce", (6, 11)),
    "pixels": Workload("pixels", "classes in the middle", "sparse_ce", (2, 5, 3, 4), axis=1),
    "soft": Workload("soft", "distributions", "softmax_ce", (6, 11)),
    "tags": Workload("tags", "elementwise", "sigmoid_ce", (6, 11)),
    "head": Workload("head", "hidden states and a weight", "linear_ce", (6, 4, 11)),
}
NEVER = Path(__file__).parent / "toy"  # any folder that holds no results


def invoke(*arguments):
    return CliRunner().invoke(cli.app, [str(a) for a in arguments], env={"COLUMNS": "100"})


# ---- workloads


def test_traffic():
    """Each array once: logits and labels in, a gradient out."""
    lm = WORKLOADS["lm"]
    logits, ids = 4096 * 32000, 4 * 4096
    assert lm.traffic("float32", "forward") == Traffic(4 * logits + ids, 0)
    assert lm.traffic("bfloat16", "both") == Traffic(2 * logits + ids, 2 * logits)
    assert WORKLOADS["soft-large"].traffic("float32", "both") == Traffic(8 * logits, 4 * logits)
    assert WORKLOADS["segmentation"].rows == 8 * 256 * 256
    inputs = (2048 + 32000) * 1024
    assert WORKLOADS["linear"].traffic("float32", "both") == Traffic(4 * inputs + 4 * 2048, 4 * inputs)
    assert (WORKLOADS["linear"].rows, WORKLOADS["linear"].size) == (2048, 2048 * 32000)


@pytest.mark.parametrize("workload", SMALL.values(), ids=SMALL)
def test_arrays_are_the_same_everywhere(workload):
    """Every process makes its own."""
    (x, y), (x2, y2) = workload.arrays(0), workload.arrays(0)
    for one, other in zip(parts((x, y)), parts((x2, y2)), strict=True):
        np.testing.assert_array_equal(one, other)
    assert [k.shape for k in parts(x)] == ([(6, 4), (11, 4)] if workload.linear else [workload.shape])
    assert {k.dtype for k in parts(x)} == {np.dtype("float32")}
    if workload.loss == "softmax_ce":
        np.testing.assert_allclose(y.sum(workload.axis), 1, rtol=1e-5)


def test_sweeps():
    found = list(sweep(WORKLOADS["lm"], "classes"))
    assert [value for value, _ in found][:3] == [16, 64, 256]
    assert all(w.shape == (256, value) and w.classes == value for value, w in found)
    assert [w.shape for _, w in sweep(SMALL["rows"], "rows", largest=50_000)] == [(256, 11), (1024, 11), (4096, 11)]
    with pytest.raises(ValueError, match=r"sweep: expected a workload of shape \(rows, classes\)"):
        list(sweep(SMALL["pixels"], "rows"))


def test_sweeps_of_a_head():
    """Sixteen times the rows; the features stay."""
    assert [w.shape for _, w in sweep(WORKLOADS["linear"], "rows")] == [(n, 1024, 32000) for n in (256, 1024, 4096)]
    values, swept = zip(*sweep(WORKLOADS["linear"], "classes"), strict=True)
    assert values[:2] == (16, 64)
    assert all(
        w.shape == (256, 1024, value) and w.copies("float32") == 1 for value, w in zip(values, swept, strict=True)
    )


# ---- the truth


@pytest.mark.parametrize("workload", SMALL.values(), ids=SMALL)
def test_truth_is_the_oracle(workload, monkeypatch):
    monkeypatch.setattr(truth, "BLOCK", 22)  # more than one block
    x, y = workload.arrays(1)
    monkeypatch.setattr(truth, "HELD", 22)
    monkeypatch.setattr(truth, "WIDENED", 12)
    axis = {"axis": workload.axis} if workload.loss in ("sparse_ce", "softmax_ce") else {}
    want = getattr(oracle, workload.loss)(*(k.astype(np.float64) for k in parts(x)), y, **axis)
    true = truth.truth(workload, x, y)
    assert truth.value_error(true, want.loss) < 1e-14
    gradient = (want.hidden, want.weight) if workload.linear else want.logits
    assert truth.gradient_error(true, gradient, "float64") < 1e-13


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_rounded(dtype):
    x = np.concatenate([np.random.default_rng(0).normal(size=1000), [0, -0.0, 1, 1 + 2**-9, 1 + 3 * 2**-9]])
    np.testing.assert_array_equal(truth.rounded(x.astype(np.float32), dtype), _regimes.rounded(x, dtype))


# ---- checking contenders


def test_inputs_and_truth_are_worked_out_once(tmp_path, monkeypatch):
    """The second process reads what the first has left."""
    workload = SMALL["pixels"]
    worked_out = []
    truth_of = truth.truth
    monkeypatch.setattr(truth, "truth", lambda *args: (worked_out.append(1), truth_of(*args))[1])
    first, second = (inputs.known(tmp_path, workload, "bfloat16", 0) for _ in range(2))
    assert len(worked_out) == 1
    assert [file.name for file in tmp_path.iterdir()] == ["bfloat16"]
    for one, two in zip(first[:2], second[:2], strict=True):
        np.testing.assert_array_equal(one, two)
        assert two.flags.writeable
    assert first[2].loss == second[2].loss
    np.testing.assert_array_equal(first[2].lse, second[2].lse)
    inputs.known(tmp_path / "missing", workload, "bfloat16", 0)  # nowhere to leave it
    assert len(worked_out) == 2


def serve(workload, framework, contender=None, dtype="float32"):
    """The process's server, in this one, with the contender in the place of the framework's own."""
    server = Server()
    server.framework, server.dtypes, server.device = framework, ("float32", "bfloat16"), "cpu"
    with tempfile.TemporaryDirectory() as folder:
        server.case(dataclasses.asdict(workload), dtype, 0, folder)
    if contender:
        server.contenders = [contender]
    return server


def verdict(answer, which="both", dtype="float32", workload=SMALL["rows"], ours=False):
    """What the report says of an answer."""
    answer = {name: value for name, value in answer.items() if name != "seconds"}
    series = Series("planted", "numpy", "eager", ours, which, seconds=(1.0,), **answer)
    return Case("w", "", workload.loss, workload.shape, -1, dtype, 1, 1, 1, 1, {}, [series]).wrong(series)


def planted(change):
    """xent, with something done to its gradient."""

    def both(x, y):
        loss, gradient = xent.value_and_grad(xent.sparse_ce)(x, y)
        return loss, change(gradient.copy())

    return Contender("planted", "eager", False, xent.sparse_ce, both)


def scaled_entry(gradient):
    gradient[3, 2] *= 1 + 1e-3
    return gradient


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda g: g, ""),
        (scaled_entry, "gradient wrong: 1e-03"),
        (lambda g: g * np.nan, "gradient wrong: not finite"),
        (lambda g: g * 6, "gradient wrong: 5e+00"),  # a sum for a mean
    ],
    ids=["right", "one entry", "nan", "sum"],
)
def test_a_planted_error_is_caught(change, says):
    server = serve(SMALL["rows"], with_numpy.make("cpu"), planted(change))
    assert verdict(server.check(0, "both")) == says


@pytest.mark.parametrize(
    ("ours", "change", "says"),
    [
        (True, lambda dh, dw: (dh, dw), ""),
        (True, lambda dh, dw: (dh, dw * np.float32(1 + 1e-5)), "gradient wrong: 1e-05"),
        (False, lambda dh, dw: (dh, dw * np.float32(1 + 1e-5)), ""),  # coarse
        (False, lambda dh, dw: (dh, dw * np.float32(1.01)), "gradient wrong: 1e-02"),
        (False, lambda dh, dw: (dh * np.float32(1.01), dw), "gradient wrong: 1e-02"),
        (False, lambda dh, dw: (dh, dw * np.where(np.arange(11) == 3, np.nan, 1)[:, None].astype("f")), "not finite"),
        (False, lambda dh, dw: (dh, dw.T), "gradient: expected shape (11, 4), got (4, 11)"),
        (False, lambda dh, dw: (dh, dw.astype(np.float64)), "gradient: expected float32, got float64"),
    ],
    ids=["right", "ours off", "coarse", "dweight", "dhidden", "nan", "shape", "dtype"],
)
def test_a_planted_error_in_a_head_is_caught(ours, change, says):
    def both(x, y):
        loss, grads = xent.value_and_grad(xent.linear_ce)(*x, y)
        return loss, change(grads.hidden, grads.weight)

    contender = Contender("planted", "eager", ours, None, both)
    answer = serve(SMALL["head"], with_numpy.make("cpu"), contender).check(0, "both")
    said = answer.get("problem") or verdict(answer, workload=SMALL["head"], ours=ours)
    assert said == says or (says and said.endswith(says))


def test_a_wrong_loss_is_caught():
    contender = Contender("planted", "eager", False, lambda x, y: xent.sparse_ce(x, y) * 1.001, None)
    server = serve(SMALL["rows"], with_numpy.make("cpu"), contender)
    assert verdict(server.check(0, "forward"), "forward") == "loss wrong: 1e-03"


def test_what_a_contender_raises_is_reported():
    def broken(x, y):
        raise RuntimeError("no such kernel\nat line 3")

    server = serve(SMALL["rows"], with_numpy.make("cpu"), Contender("broken", "eager", False, broken, broken))
    assert server.check(0, "forward") == {"problem": "RuntimeError: no such kernel"}


def test_logits_that_are_overwritten_are_restored():
    """As Liger-Kernel does to its logits."""

    def both(x, y):
        loss, gradient = xent.value_and_grad(xent.sparse_ce)(x, y)
        x[...] = gradient
        return loss, x

    contender = Contender("in place", "eager", False, None, both, overwrites=True)
    server = serve(SMALL["rows"], with_numpy.make("cpu"), contender)
    assert verdict(server.check(0, "both")) == ""
    server.time(0, "both", 1)
    server._restore(contender)
    np.testing.assert_array_equal(server.inputs[0], server.x)


# ---- the clock


def later(pool, seconds):
    """A contender that hands over its result before it is there."""

    def forward(x, y):
        return pool.submit(lambda: (time.sleep(seconds), xent.sparse_ce(x, y))[1])

    return Contender("in the background", "eager", False, forward, None)


def test_missing_synchronisation_is_caught():
    base = with_numpy.make("cpu")
    read = lambda x: np.asarray(x.result() if hasattr(x, "result") else x)  # noqa: E731
    with ThreadPoolExecutor(1) as pool:
        for wait, says in ((lambda result: None, "not synchronised"), (lambda result: result.result(), "")):
            framework = dataclasses.replace(base, numpy=read, wait=wait)
            server = serve(SMALL["rows"], framework, later(pool, 0.02))
            assert verdict(server.check(0, "forward"), "forward") == says


@pytest.mark.backend("jax")
def test_missing_synchronisation_in_jax():
    jax = pytest.importorskip("jax")
    from xent.benchmarks.frameworks import jax as with_jax

    @jax.jit
    def forward(x, y):  # long enough to be in the background still, however busy the machine is
        return xent.sparse_ce(x, y) + 0 * jax.lax.fori_loop(0, 200, lambda _, x: jax.numpy.sin(x), x)[0, 0]

    slow = Contender("slow", "compiled", False, forward, None)
    workload = Workload("rows", "", "sparse_ce", (256, 1000), cold=False)
    for wait, says in ((lambda result: None, "not synchronised"), (jax.block_until_ready, "")):
        server = serve(workload, dataclasses.replace(with_jax.make("cpu"), wait=wait), slow)
        answer = server.check(0, "forward")
        assert verdict(answer, "forward") == says, answer


def test_a_result_that_takes_long_to_fetch_does_not_hide_it():
    """As a gradient on a GPU does: only a number of it is fetched."""

    def read(x):
        x = np.asarray(x.result() if hasattr(x, "result") else x)
        time.sleep(0.05 if x.ndim else 0)
        return x

    with ThreadPoolExecutor(1) as pool:
        framework = dataclasses.replace(with_numpy.make("cpu"), numpy=read, wait=lambda result: None)
        server = serve(SMALL["rows"], framework, later(pool, 0.01))
        assert not server.check(0, "forward")["waits"]


def test_seconds_are_for_one_call():
    done, waited, collecting = [], [], []

    def call():
        done.append(time.sleep(0.01))
        collecting.append(gc.isenabled())
        return len(done)

    assert 0.01 <= clock.seconds(iter([call] * 4), waited.append, 4) < 0.1
    assert waited == [1, 2, 3, 4]  # for each result
    assert not any(collecting)
    assert gc.isenabled()


def test_buffers_take_turns():
    """Over all samples and contenders; a sample is preceded by a call or more that wake things up."""
    seen = []
    contender = Contender("recorder", "eager", False, lambda x, y: seen.append(id(x)), None)
    server = serve(dataclasses.replace(SMALL["rows"], shape=(512, 1024)), with_numpy.make("cpu"), contender)
    places = {id(x): place for place, x in enumerate(server.inputs)}
    assert len(places) == 239  # 500 MB of them
    server.time(0, "forward", 1)
    server.time(0, "forward", 20)
    assert [places[i] for i in seen] == list(range(1 + 1 + 3 + 20))


def test_calls_before_the_clock_starts():
    """For caches and threads; a single call needs none, if its memory was not given back."""
    called = []
    contender = Contender("recorder", "eager", False, lambda x, y: called.append(1), None)
    server = serve(SMALL["rows"], with_numpy.make("cpu"), contender)
    for kept, repeat, calls in ((False, 4, 1 + 4), (True, 4, 1 + 4), (True, 1, 1), (False, 1, 1 + 1)):
        if not kept:
            server.give_back()
        called.clear()
        server.time(0, "forward", repeat)
        assert len(called) == calls


@pytest.mark.parametrize(("growing", "samples"), [(0, 1), (1, 1), (2, 2), (3, 2), (4, 3), (8, 5), (1000, GROWING)])
def test_a_sample_in_which_the_heap_grew_is_taken_again(growing, samples):
    """Fresh memory takes longer than what a call does with it. The first call is not timed."""
    kept = []

    def call(x, y):
        kept.append(np.ones(2 * LITTLE // 8) if len(kept) < growing else None)

    server = serve(SMALL["rows"], with_numpy.make("cpu"), Contender("hoarder", "eager", False, call, None))
    server.time(0, "forward", 2)
    assert len(kept) == 1 + 2 * samples


def test_threads_that_still_work_are_waited_for(monkeypatch):
    """Not for ever; those that rest are not."""
    for worked, slept in ((itertools.repeat(1.0), 1), (iter([0, 3e-4, 3e-4, 6e-4, 6e-4, 6.5e-4]), 3)):
        rests = []
        monkeypatch.setattr(clock, "_worked", lambda worked=worked: next(worked))
        monkeypatch.setattr(clock.time, "sleep", rests.append)
        clock.rest()
        assert len(rests) == slept
    now = itertools.count()
    monkeypatch.setattr(clock.time, "monotonic", lambda: next(now) * clock.LONGEST)
    monkeypatch.setattr(clock, "_worked", itertools.count().__next__)
    clock.rest()
    assert next(now) == 2


def test_only_processors_have_to_be_left(monkeypatch):
    """What threads do after a call on a GPU takes nobody's time."""
    rests = []
    monkeypatch.setattr(clock, "rest", lambda: rests.append(1))
    server = serve(SMALL["rows"], with_numpy.make("cpu"))
    for device, rested in (("cpu", 1), ("cuda:0", 1)):
        server.device = device
        server.time(0, "forward", 1)
        assert len(rests) == rested


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells the time of each thread")
def test_other_threads_work_is_seen():
    done, over = threading.Event(), threading.Event()

    def work():
        while time.thread_time() < 0.02:
            pass
        done.set()
        over.wait()

    before = clock._worked()
    thread = threading.Thread(target=work)
    thread.start()
    done.wait()
    after = clock._worked()
    end = time.thread_time() + 0.01
    while time.thread_time() < end:  # this one's own does not count
        pass
    assert after - before >= 0.02
    assert clock._worked() - after < 0.01
    over.set()
    thread.join()


def test_a_sample_stays_where_there_is_no_memory_for_another_one():
    kept = []

    def call(x, y):
        if len(kept) == 3:
            raise MemoryError
        kept.append(np.ones(2 * LITTLE // 8))

    server = serve(SMALL["rows"], with_numpy.make("cpu"), Contender("hoarder", "eager", False, call, None))
    assert server.time(0, "forward", 2)["seconds"] > 0
    with pytest.raises(MemoryError):
        server.time(0, "forward", 2)


def test_a_sample_stays_where_another_one_might_take_what_the_system_needs(monkeypatch):
    """Linux would end the process: what a heap takes back in its holes counts for no limit."""
    kept, left = [], [10 * LITTLE]

    def call(x, y):
        kept.append(np.ones(2 * LITTLE // 8))
        left[0] -= 2 * LITTLE

    server = serve(SMALL["rows"], with_numpy.make("cpu"), Contender("hoarder", "eager", False, call, None))
    monkeypatch.setattr(clock, "room", lambda taken: taken <= left[0] + LITTLE)  # the heap's own growth is about that
    server.time(0, "forward", 1)
    assert len(kept) == 5  # and not 1 + GROWING


def test_what_slow_calls_leave_in_cycles_is_collected(monkeypatch):
    """It would be as much memory again with each of them; quick ones are not interrupted."""

    class Cycle:
        def __init__(self):
            self.itself = self

    for slow, left in ((0.0, 1), (1.0, 4)):
        monkeypatch.setattr(clock, "SLOW", slow)
        alive, seen = weakref.WeakSet(), []

        def call(alive=alive, seen=seen):
            alive.add(Cycle())
            seen.append(len(alive))

        clock.seconds(iter([call] * 4), lambda result: None, 4)
        assert max(seen) == left


def test_one_slow_call_of_four_does_not_count(monkeypatch):
    """Nor does it in a sample of many calls: a quarter of them is put aside."""
    now, rng = [0.0], np.random.default_rng(0)
    monkeypatch.setattr(clock.time, "perf_counter", lambda: now[0])

    def call(took):
        now[0] += took

    for repeat in (4, 40, 42):
        slow = int(rng.integers(repeat))
        calls = iter([lambda took=1.0 if i == slow else 0.125: call(took) for i in range(repeat)])
        assert clock.seconds(calls, lambda result: None, repeat) == 0.125
        assert next(calls, None) is None  # all were made


@pytest.mark.skipif(sys.platform != "linux", reason="memory has a limit on Linux only")
def test_what_needs_more_memory_than_there_is_fails_alone():
    """It is not used, so nothing but the limit stands in its way: Linux promises more than there is."""

    def greedy(x, y):
        return np.empty(machine.memory("available") + (1 << 28), np.int8)

    server = serve(SMALL["rows"], with_numpy.make("cpu"), Contender("greedy", "eager", False, greedy, None))
    assert "Unable to allocate" in server.check(0, "forward")["problem"]
    with pytest.raises(MemoryError):
        server.time(0, "forward", 1)
    assert server.framework.numpy(np.empty(1 << 20)).size == 1 << 20  # it lives


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="it is glibc that is told what to keep")
def test_freed_memory_is_kept_but_in_checks(monkeypatch):
    """In a process like those that are timed."""
    monkeypatch.delenv("MALLOC_MMAP_MAX_", raising=False)
    script = """if True:
        import psutil
        from xent.benchmarks import clock
        def taken(): return psutil.Process().memory_info().rss - before > 90 << 20
        before = psutil.Process().memory_info().rss
        for keep in (False, True):
            clock.keep_freed(keep)
            large = bytearray(100 << 20)
            del large
            print(taken() == keep)
    """
    environment = workers._environment("cpu", 1)
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["True"] * 2, done.stderr


@pytest.mark.skipif(sys.platform != "linux", reason="a process's memory can be limited on Linux only")
def test_what_a_check_took_is_there_before_it_is_timed(monkeypatch):
    """Nothing is called if it is not, unless the process has kept it."""
    called, told = [], []
    contender = Contender("recorder", "eager", False, lambda x, y: called.append(np.ones(1 << 24)[:0].sum()), None)
    server = serve(SMALL["rows"], with_numpy.make("cpu"), contender)
    monkeypatch.setattr(server, "_errors", lambda result, which: {})
    assert server.check(0, "forward")["memory"] > 100 << 20
    server.time(0, "forward", 1)
    monkeypatch.setattr(clock.machine, "memory", lambda which: told.append(which) or 0)
    called.clear()
    server.give_back()
    with pytest.raises(MemoryError, match="are available"):
        server.time(0, "forward", 1)
    assert told
    assert not called


def test_nothing_is_kept_while_contenders_are_checked(monkeypatch):
    told = []
    monkeypatch.setattr(clock, "keep_freed", told.append)
    server = serve(SMALL["rows"], with_numpy.make("cpu"))
    assert told == [False]
    server.check(0, "forward")
    server.checked()
    assert told == [False, True]


def test_memory_moves_more_than_once(monkeypatch):
    """The time is a move's. Each takes 1/64 s of a clock that nothing else moves: a busy machine changes nothing."""
    server, moved = Server(), []
    monkeypatch.setattr(clock.time, "perf_counter", lambda: len(moved) / 64)
    server.traffic = memory_traffic.Memory(1, read=lambda: moved.append(None), write=None, copy=None)
    assert 0.01 <= server.move("read")["seconds"] < 0.02
    assert len(moved) == 1 + 4


class Sight:
    """A memory's process that takes so long for each look (the last one for all that follow), and a clock that stands
    still but for what is slept or sampled."""

    def __init__(self, monkeypatch, *takes):
        self.takes, self.now = list(takes), 0.0
        monkeypatch.setattr(steady.time, "monotonic", lambda: self.now)
        monkeypatch.setattr(steady.time, "sleep", self.work)

    def ask(self, do):
        assert do == "look"
        return {"seconds": self.takes.pop(0) if len(self.takes) > 1 else self.takes[0]}

    def work(self, seconds=1.0):
        self.now += seconds
        return self.now


@pytest.mark.parametrize("off", [0.8, 1.25])
def test_samples_wait_for_a_machine_as_usual(monkeypatch, off):
    """Usual is what most looks of the run have seen: of the twenty before the first sample, and after each."""
    sight, calm = Sight(monkeypatch, *20 * [1.0], off, off, 1.15, 0.85), steady.Steady()
    calm.begin(sight, 10)
    start = sight.now
    assert calm.take(sight.work) == pytest.approx(start + 2 * steady.PAUSE + 1)
    assert calm.left == pytest.approx(10 - 2 * steady.PAUSE)
    calm.begin(sight, 10)  # the next case's
    assert calm.seen == [*20 * [1.0], 0.85]


@pytest.mark.parametrize("off", [0.8, 1.25])
def test_samples_are_taken_again_if_the_machine_was_not_as_usual_after_them(monkeypatch, off):
    sight, calm = Sight(monkeypatch, *21 * [1.0], off, 1.0), steady.Steady()
    calm.begin(sight, 10)
    start = sight.now
    assert calm.take(sight.work) == pytest.approx(start + 1 + steady.PAUSE + 1)  # a look that is new serves for both
    assert calm.left == pytest.approx(10 - 1 - steady.PAUSE)


def test_patience_with_the_machine_ends(monkeypatch):
    sight, calm = Sight(monkeypatch, *20 * [1.0], 0.5), steady.Steady()
    calm.begin(sight, 3)
    start = sight.now
    assert calm.take(sight.work) == pytest.approx(start + 3 + 1, abs=steady.PAUSE)
    assert calm.take(sight.work) == pytest.approx(start + 3 + 2, abs=steady.PAUSE)


def test_a_machine_may_change_for_good(monkeypatch):
    sight, calm = Sight(monkeypatch, *20 * [1.0], 0.5), steady.Steady()
    for _ in range(21):
        calm.begin(sight, 0)
        calm.take(sight.work)
    calm.begin(sight, 10)
    start = sight.now
    assert calm.take(sight.work) == start + 1


@pytest.mark.parametrize(("takes", "together"), [(1e-3, 3), (0.04, 1)])
def test_what_is_taken_while_the_machine_is_as_usual(asked, monkeypatch, takes, together):
    """Short calls of those that are compared together, long ones one by one."""
    monkeypatch.setattr(rounds, "PATIENCE", 1e-9)
    monkeypatch.setattr(steady, "FRESH", 10.0)  # one look between samples
    monkeypatch.setattr(Recorder, "at_first", 3 * (takes,))
    monkeypatch.setattr(Recorder, "takes", 3 * (takes,))
    run.bench(["tiny"], backends=["numpy"])
    done = [do for _, do, _ in asked if do in {"time", "look"}]
    times = [len(list(same)) for do, same in itertools.groupby(done) if do == "time"]
    assert set(times) == {together}
    assert done.count("look") == steady.FIRST + len(times)  # once a run, and after each


@pytest.mark.parametrize("options", [{"rounds": 3}, {"quick": True}, {"device": "cuda"}])
def test_nobody_looks_whether_the_machine_is_as_usual(asked, monkeypatch, options):
    """Where it is said how many rounds, or the memory is another one."""
    monkeypatch.setattr(rounds, "PATIENCE", 1e-9)
    run.bench(["tiny"], backends=["numpy"], **options)
    assert "look" not in [do for _, do, _ in asked]


def test_a_look_is_the_fastest_of_some_reads(monkeypatch):
    """The first one is interrupted."""
    server, takes = Server(), iter([0.5, 0.25, 0.25, 0.25])
    now = [0.0]
    monkeypatch.setattr(clock.time, "perf_counter", lambda: now[0])
    server.start("memory", "cpu", 1)
    assert server.sight.size == process.SIGHT
    server.sight = server.sight._replace(read=lambda: now.append(now.pop() + next(takes)))
    assert server.look() == {"seconds": 0.25}


def test_limits_on_threads():
    """In a process of its own, for every thread that a framework starts."""
    worker = driver.Worker("torch", "cpu", 1)
    try:
        worker.ask("start", backend="memory", device="cpu", threads=1)
        assert len(os.sched_getaffinity(worker.process.pid)) == 1
        environment = Path(f"/proc/{worker.process.pid}/environ").read_bytes().split(b"\0")
        assert {b"OMP_NUM_THREADS=1", b"XENT_NUM_THREADS=1", b"CUDA_VISIBLE_DEVICES="} <= set(environment)
    finally:
        worker.end()
    assert worker.process.returncode is not None


def test_torch_is_told_its_threads(monkeypatch):
    torch = pytest.importorskip("torch")
    told = []
    monkeypatch.setattr(torch, "set_num_threads", told.append)
    Server().start("torch", "cpu", 3)
    assert told == [3]


class Recorder:
    """A process that answers without doing anything; its first contender takes half a second, the second 1 ms."""

    asked: ClassVar[list] = []
    at_first = takes = (0.5, 1e-3, 1e-3)
    takes_memory = 0
    fails: ClassVar[list] = []  # or not, each time the second one is timed

    def __init__(self, backend, device, threads):
        self.backend = backend

    def scatter(self):
        return 1.0

    def ask(self, do, **message):
        self.asked.append((self.backend, do, message))
        if do == "time" and message["index"] == 1 and self.fails and self.fails.pop(0):
            raise workers.Failed("no memory")
        found = [{"name": name, "mode": "eager", "ours": name == "xent"} for name in ("slow", "xent", "other")]
        return {
            "start": {"versions": {}, "absent": []},
            "memory": {"size": 1 << 26},
            "move": {"seconds": 1e-3},
            "look": {"seconds": 1e-3},
            "case": {"contenders": found, "buffers": 1},
            "check": {"first": 1.0, "waits": True, "value_error": 0.0, "gradient_error": 0.0}
            | {"memory": self.takes_memory, "seconds": self.at_first[message.get("index", 0)]},
            "time": {"seconds": self.takes[message.get("index", 0)] * (self.scatter() if do == "time" else 1)},
        }.get(do, {})

    def end(self):
        self.asked.append((self.backend, "ended", {}))


@pytest.fixture
def asked(monkeypatch):
    monkeypatch.setattr(driver, "Worker", Recorder)
    monkeypatch.setattr(Recorder, "asked", [])
    return Recorder.asked


def test_rounds(asked):
    """All in each, in another order; the slow in every other one; the quick repeated within a sample."""
    found = run.bench(["tiny"], backends=["numpy"], rounds=6)
    times = [(m["index"], m["which"], m["repeat"]) for _, do, m in asked if do == "time"]
    assert {repeat for index, _, repeat in times if index == 0} == {1}
    assert {repeat for index, _, repeat in times if index == 1} == {20}  # of 1 ms each: 20 ms
    assert [sum(t[0] == index for t in times) for index in (0, 1, 2)] == [6, 12, 12]  # two passes
    series = found.cases[0].series
    assert [s is None for s in series[0].seconds] == [False, True] * 3
    whole = [t[:2] for t in times]
    orders = [tuple(whole[start : start + 6]) for start in (0, 10, 20)]  # of the rounds with everybody in them
    assert len(set(orders)) > 1
    assert len({frozenset(order) for order in orders}) == 1
    assert [do for _, do, _ in asked].count("ended") == 2


def test_turns(asked):
    """Those that are compared, of one backend in one pass, have theirs one after the other; Keras is one of them."""
    run.bench(["tiny"], backends=["numpy", "torch"], rounds=40, dtypes=["float32"])
    times = [(name, m["which"], m["index"]) for name, do, m in asked if do == "time" and m["index"] > 0]  # not the slow
    size = len(times) // 40
    rounds = [times[start : start + size] for start in range(0, len(times), size)]
    for turns in rounds:
        groups = [(name.removeprefix("keras-"), which) for name, which, _ in turns]
        assert len(list(itertools.groupby(groups))) == len(set(groups)) == 4
    assert len({tuple(dict.fromkeys(which for _, which, _ in turns)) for turns in rounds}) == 2
    assert len({tuple(turn for turn in turns if turn[:2] == ("numpy", "both")) for turns in rounds}) == 2
    assert any(name == "keras-torch" for name, _, _ in times)


def test_memory_is_given_back_if_there_is_not_enough(asked, monkeypatch):
    """By all, so that there is for the one who asks; who then still fails does so for good."""
    monkeypatch.setattr(Recorder, "fails", [True, False, False, True, True])
    found = run.bench(["tiny"], backends=["numpy", "torch"], rivals=False, rounds=4)
    events = [name if do == "give_back" else do for name, do, _ in asked if do in {"give_back", "time"}]
    given = ["time", "memory", "numpy", "torch", "time"]
    assert events[: len(given)] == given
    assert events.count("memory") == 2
    problems = [s.problem for s in found.cases[0].series]
    assert sorted(problems) == [*(len(problems) - 1) * [""], "no memory"]


@pytest.mark.parametrize(("available", "crowded"), [(14, False), (11, True)])
def test_where_memory_is_short_only_who_is_timed_keeps_it(asked, monkeypatch, available, crowded):
    """Each of the two processes' calls take 6 GB at most, and the system needs one."""
    monkeypatch.setattr(Recorder, "takes_memory", 6 << 30)
    monkeypatch.setattr(driver.machine, "memory", lambda which: available << 30)
    run.bench(["tiny"], backends=["numpy", "torch"], rivals=False, rounds=4)
    events = [(name, do) for name, do, _ in asked if do in {"give_back", "time"}]
    assert any(do == "give_back" for _, do in events) == crowded
    if crowded:
        for (before, _), (name, do), (after, _) in zip(events, events[1:], events[2:], strict=False):
            assert (do == "give_back") == (before == name != after)


@pytest.mark.parametrize(
    ("at_first", "takes", "want"),
    [
        (1e-3, 1e-3, [20, 20]),
        (6e-3, 6e-3, [4, 4]),
        (0.02, 0.02, [4, 4]),
        (0.04, 0.04, [1, 1, 1, 1] * 2),  # one by one
        (0.2, 0.2, [1, 1] * 2),
        (0.4, 0.04, [1, 1, 1, 1, 1]),  # the first one after the check's had other things to wait for
    ],
)
def test_calls_in_a_sample(asked, monkeypatch, at_first, takes, want):
    monkeypatch.setattr(Recorder, "at_first", 3 * (at_first,))
    monkeypatch.setattr(Recorder, "takes", 3 * (takes,))
    run.bench(["tiny"], backends=["numpy"], rounds=2)
    times = [(m["index"], m["repeat"]) for _, do, m in asked if do == "time" and m["which"] == "both"]
    assert [repeat for index, repeat in times if index == 1] == want


def test_long_calls_take_turns_within_a_sample(asked, monkeypatch):
    """In another order each time; what counts is their median."""
    monkeypatch.setattr(Recorder, "at_first", 3 * (0.04,))
    monkeypatch.setattr(Recorder, "takes", 3 * (0.04,))
    scatter = itertools.cycle(3 * [1] + 3 * [2] + 3 * [3] + 3 * [9])
    monkeypatch.setattr(Recorder, "scatter", lambda self: next(scatter))
    found = run.bench(["tiny"], backends=["numpy"], rounds=4)
    turns = [m["index"] for _, do, m in asked if do == "time"]
    orders = [tuple(turns[start : start + 3]) for start in range(0, len(turns), 3)]
    assert len(orders) == 4 * 4 * 2
    assert {frozenset(order) for order in orders} == {frozenset(range(3))}
    assert len(set(orders)) > 1
    assert {seconds for series in found.cases[0].series for seconds in series.seconds} == {0.04 * 2.5}


@pytest.mark.parametrize(
    ("options", "patience", "want"),
    [
        ({}, 100, 5 * 99),
        ({}, 1e-9, 5 * 4),
        ({"rounds": 3}, 1e-9, 3),
        ({"quick": True}, 100, 7),
        ({"sweep": "rows"}, 100, 7),
    ],
)
def test_as_many_rounds_as_there_is_time_for(asked, monkeypatch, options, patience, want):
    monkeypatch.setattr(rounds, "PATIENCE", patience)
    monkeypatch.setattr(rounds, "SETTLED", 0.0)
    rng = np.random.default_rng(0)
    monkeypatch.setattr(Recorder, "scatter", lambda self: rng.lognormal())
    found = run.bench(["tiny"], backends=["numpy"], **options)
    assert len(found.cases[0].series[0].seconds) == want
    assert f" {want} rounds" in rows.facts(found)["timed"]


def _noisy(monkeypatch, *backends, sigma=0.08):
    rng = np.random.default_rng(0)
    monkeypatch.setattr(
        Recorder, "scatter", lambda self: rng.lognormal(sigma=sigma) if self.backend in backends else 1.0
    )


def test_more_rounds_for_those_who_need_them(asked, monkeypatch):
    """Until both ratios to xent are known; the slow one is in all of these."""
    _noisy(monkeypatch, "numpy")
    case = run.bench(["lm"], backends=["numpy", "torch"], dtypes=["float32"]).cases[0]
    ours = [series.seconds for series in case.series if series.backend == "numpy"]
    first = 1 + max(place for seconds in ours for place, each in enumerate(seconds) if each is not None)
    for series in case.series:
        times = [seconds is not None for seconds in series.seconds]
        here, others = (times[:first], times[first:]) if series.backend == "numpy" else (times[first:], times[:first])
        assert not any(others)
        few, more = here[: rounds.FEW], here[rounds.FEW :]
        assert few == [series.name != "slow" or number % 2 == 0 for number in range(rounds.FEW)]
        assert more == sorted(more, reverse=True)
        assert (sum(more) > rounds.KNOWN - 4) == (series.backend == "numpy")  # the slow one had four
        known = ratio(series.seconds, case.baseline(series).seconds)
        assert known.rounds >= rounds.KNOWN
        assert known.error <= rounds.SETTLED


def test_more_rounds_in_all_modes(asked, monkeypatch):
    """What is compared may be: the fastest of xent's modes with the fastest of a rival's."""
    _noisy(monkeypatch, "numpy")
    ask = Recorder.ask

    def modes(self, do, **message):
        found = ask(self, do, **message)
        if do == "case":
            calm = {"name": "xent", "mode": "compiled", "ours": True}
            return found | {"contenders": [*found["contenders"][1:], calm]}
        return found

    monkeypatch.setattr(Recorder, "ask", modes)
    monkeypatch.setattr(Recorder, "at_first", 3 * (1e-3,))
    case = run.bench(["lm"], backends=["numpy"], dtypes=["float32"]).cases[0]
    for which in ("forward", "both"):
        both = [series.time.rounds for series in case.series if series.which == which]
        assert len(both) == 3
        assert len(set(both)) == 1


def test_no_more_rounds_where_xent_has_failed(asked, monkeypatch):
    monkeypatch.setattr(rounds, "SETTLED", 0.0)
    monkeypatch.setattr(Recorder, "fails", [True, True])  # for good
    _noisy(monkeypatch, "numpy")
    case = run.bench(["lm"], backends=["numpy"], dtypes=["float32"]).cases[0]
    failed = {series.which for series in case.series if series.problem}
    assert len(failed) == 1
    for series in case.series:
        assert any(series.seconds[rounds.FEW :]) == (series.which not in failed)


def test_more_rounds_without_rivals(asked, monkeypatch):
    """Until the ratio to the memory is known."""
    _noisy(monkeypatch, "numpy")
    case = run.bench(["lm"], backends=["numpy"], dtypes=["float32"], rivals=False).cases[0]
    for series in case.series:
        known = ratio(case.memory["read"], series.seconds)
        assert known.rounds >= rounds.KNOWN
        assert known.error <= rounds.SETTLED


def test_fewer_rounds_in_each_of_five_parts(asked, monkeypatch):
    _noisy(monkeypatch, "numpy")
    done = []
    found = run.bench(["image", "lm"], backends=["numpy"], dtypes=["float32"], progress=lambda *of: done.append(of[1:]))
    small, large = found.cases
    assert len(small.memory["read"]) < 2 * len(large.memory["read"])
    assert done == sorted(done)
    assert all(0 <= part <= of for part, of in done)


def test_large_cases_have_one_backends_processes_at_a_time(asked):
    """In one case all the same, with the same inputs."""
    (case,) = run.bench(["lm"], backends=["numpy", "torch"], dtypes=["float32"], rounds=2).cases
    alive, timed = set(), set()
    for name, do, _ in asked:
        (alive.discard if do == "ended" else alive.add)(name)
        if do == "time":
            timed.add(frozenset(alive))
    assert timed == {frozenset({"memory", "numpy"}), frozenset({"memory", "torch", "keras-torch"})}
    assert len({m["folder"] for _, do, m in asked if do == "case"}) == 1
    assert len(case.memory["read"]) == 4
    assert {series.time.rounds for series in case.series if series.name == "xent"} == {2}


def test_on_a_gpu_processes_stay(asked):
    """Its memory is its own; and a framework takes longer to start than a case."""
    run.bench(["lm", "lm-large"], backends=["numpy", "torch"], dtypes=["float32"], device="cuda", rounds=1)
    assert sorted(name for name, do, _ in asked if do == "start") == ["keras-torch", "memory", "numpy", "torch"]
    assert sum(do == "case" for _, do, _ in asked) == 2 * 3


def test_small_cases_come_again_in_new_processes(asked, monkeypatch):
    monkeypatch.setattr(rounds, "PATIENCE", 1e-9)
    found = run.bench(["image", "lm"], backends=["numpy"], dtypes=["float32"])
    events = [m["workload"]["name"] if do == "case" else do for name, do, m in asked if name == "numpy"]
    small, large = (["start", name, "ended"] for name in ("image", "lm"))  # what memory there is, is the large one's
    assert [e for e in events if e in {*small, *large}] == small + large + 4 * small
    assert [(case.workload, len(case.memory["read"])) for case in found.cases] == [("image", 20), ("lm", 7)]
    assert [s is None for s in found.cases[0].series[0].seconds] == 5 * [False, True, False, True]


def test_what_is_right_is_not_checked_again(asked, monkeypatch):
    """What the first processes found out stays known, and who failed there is checked as if for the first time."""
    monkeypatch.setattr(rounds, "PATIENCE", 1e-9)
    ask, answers = Recorder.ask, itertools.count()

    def answered(self, do, **message):
        found = ask(self, do, **message)
        if do == "check":
            found |= {"value_error": float(next(answers))}
            return {"problem": "no"} if message["index"] == 2 and not message["again"] else found
        return found

    monkeypatch.setattr(Recorder, "ask", answered)
    (case,) = run.bench(["image"], backends=["numpy"], dtypes=["float32"]).cases
    again = [m["again"] for _, do, m in asked if do == "check" and m["index"] < 2]
    assert again == 4 * [False] + 4 * 4 * [True]
    assert not any(m["again"] for _, do, m in asked if do == "check" and m["index"] == 2)
    assert [(s.value_error, s.time.rounds) for s in case.series if s.name == "xent"] == [(2.0, 20), (3.0, 20)]


def test_what_is_not_asked_again():
    """A loss that is an array would be an error."""
    odd = Contender("odd", "eager", False, lambda x, y: x, None)
    server = serve(SMALL["rows"], with_numpy.make("cpu"), odd)
    assert server.check(0, "forward", again=True).keys() == {"first", "waits", "memory", "seconds"}
    assert "problem" in server.check(0, "forward")


def test_rounds_are_joined():
    """Who was in some of them only has no times in the others, and who failed in all of them none at all."""

    def case(*series):
        memory = dict.fromkeys(("read", "write", "copy"), (1.0, 1.0))
        return Case("w", "", "sparse_ce", (6, 11), -1, "float32", 1, 1, 1, 1, memory, list(series))

    def series(name, *seconds, problem=""):
        return Series(name, "numpy", "eager", False, "both", seconds, problem=problem)

    found = Result({}, {})
    half = series("e", 8.0, None, problem="no")
    found.add(case(series("a", 1.0, 2.0), series("b", 3.0, 4.0), series("c", problem="no"), half))
    again = (series("d", 6.0, 7.0), series("e", 8.0, 9.0))
    found.add(case(series("a", 5.0, None), series("b", problem="no"), series("c", problem="no"), *again))
    (joined,) = found.cases
    assert joined.memory["read"] == (1.0,) * 4
    assert {s.name: s.seconds for s in joined.series} == {
        "a": (1.0, 2.0, 5.0, None),
        "b": (3.0, 4.0, None, None),
        "c": (),
        "e": (8.0, None, 8.0, 9.0),
        "d": (None, None, 6.0, 7.0),
    }
    assert [s.problem for s in joined.series] == ["", "", "no", "", ""]


@pytest.mark.parametrize(
    ("names", "options", "want"),
    [
        (None, {}, ["linear-small float32", "linear float32"]),
        (None, {"dtypes": ["bfloat16"]}, ["linear-small bfloat16"]),
        (["linear"], {}, ["linear float32", "linear bfloat16"]),
        (["linear-large"], {"dtypes": ["bfloat16"]}, ["linear-large bfloat16"]),
        (
            None,
            {"device": "cuda"},
            ["linear-small float32", *(f"{name} {dtype}" for name in ("linear", "linear-large") for dtype in HEADS)],
        ),
    ],
    ids=["all", "all in bfloat16", "named", "named in bfloat16", "GPU"],
)
def test_what_takes_a_cpu_minutes_is_named(asked, monkeypatch, names, options, want):
    heads = {name: w for name, w in WORKLOADS.items() if w.linear}
    monkeypatch.setattr(run, "WORKLOADS", heads)
    monkeypatch.setattr(driver.machine, "memory", lambda which: 1 << 60)
    found = run.bench(names, backends=["numpy"], rivals=False, rounds=1, **options)
    assert [f"{case.workload} {case.dtype}" for case in found.cases] == want


def test_heads_are_checked_one_after_the_other(asked, monkeypatch):
    """Where products run side by side, some wait for their threads at each other's cost."""
    real, found = driver.each, []
    monkeypatch.setattr(driver, "each", lambda *args: found.append(args[2:]) or real(*args))
    monkeypatch.setattr(driver.machine, "memory", lambda which: 1 << 60)
    run.bench(["tiny", "linear-small"], backends=["numpy"], rivals=False, rounds=1)
    assert found == [(), (True,), (False,)]  # the first starts the processes


def test_settings_that_keep_a_process_from_fighting_itself(monkeypatch):
    """Unless somebody said otherwise."""
    for name, value in (("OMP_PROC_BIND", "true"), ("MALLOC_MMAP_MAX_", "0"), ("MALLOC_ARENA_MAX", "1")):
        monkeypatch.delenv(name, raising=False)
        assert workers._environment("cpu", 2)[name] == value
        monkeypatch.setenv(name, "7")
        assert workers._environment("cpu", 2)[name] == "7"


def test_without_rivals_or_modes(asked):
    run.bench(["tiny"], backends=["numpy"], rivals=False, rounds=1)
    assert {m["index"] for _, do, m in asked if do == "check"} == {1}
    with pytest.raises(ValueError, match="mode: expected"):
        run.bench(["tiny"], backends=["numpy"], modes=["fast"], rounds=1)


def test_saved_after_each_workload(asked, tmp_path):
    saved = []

    def progress(what, done, of):
        if "preparing image" in what:
            saved.append(len(Result.load(tmp_path / "f.json").cases))

    run.bench(["tiny", "image"], backends=["numpy"], rounds=1, save=tmp_path / "f.json", progress=progress)
    assert saved == [1]
    assert [p.name for p in tmp_path.iterdir()] == ["f.json"]


@pytest.mark.parametrize("watch", [None, clock._SampledPeak], ids=["kernel", "sampled"])
def test_peak_memory(watch, monkeypatch):
    if watch:
        monkeypatch.setattr(clock._KernelPeak, "works", lambda: False)
    size = 1 << 26

    def call():
        temporary = np.ones(size // 8)
        time.sleep(0.01)
        return temporary[:10].copy()

    assert 0.9 * size < clock.peak_memory(call) < 1.3 * size


def test_memory_that_xla_has_planned():
    """Results, and what comes between: 4 MB that are multiplied again."""
    jax = pytest.importorskip("jax")
    planned = importlib.import_module("xent.benchmarks.frameworks.jax").planned
    x = jax.numpy.ones((1000, 2), "float32")
    assert 4_000_000 <= planned(jax.jit(lambda x: jax.numpy.cos(x @ x.T) @ x), x) < 4_100_000
    assert 4_000_000 <= planned(jax.jit(lambda x: x @ x.T), x) < 4_100_000
    assert planned(lambda x: x @ x.T, x) == 0


@pytest.mark.parametrize(("counted", "planned", "told"), [(5, 7, 5), (None, 7, 7), (None, 0, None)])
def test_memory_of_a_gpu(counted, planned, told):
    """What the allocator counted; where it does not know, what the compiler has laid out."""
    framework = dataclasses.replace(
        with_numpy.make("cpu"), peak=lambda: lambda: counted, planned=lambda function, *arguments: planned
    )
    server = serve(SMALL["rows"], framework)
    server.device = "cuda:0"
    assert server.check(0, "forward")["memory"] == told


@pytest.mark.backend("tensorflow")
def test_memory_where_tensorflow_does_not_count_it(monkeypatch):
    """Without oneDNN, as on processors without AVX-512, the process's peak tells: a gradient of 4 MB."""
    pytest.importorskip("tensorflow")
    monkeypatch.setenv("TF_ENABLE_ONEDNN_OPTS", "0")
    found = run.bench(["image"], backends=["tensorflow"], modes=["eager"], rounds=1)
    for series in found.cases[0].series:
        assert not series.problem, series
        assert series.memory is not None
        assert series.which == "forward" or series.memory > 3_500_000  # some of its pages were there


# ---- contenders


@pytest.fixture(scope="module")
def everyone():
    """Every contender of every framework, eager, on every kind of workload: one round."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run, "WORKLOADS", SMALL)
        return run.bench(list(SMALL), modes=["eager"], rounds=1)


RIVALS = {
    ("numpy", "sparse_ce"): {"NumPy, in place", "SciPy logsumexp, softmax"},
    ("numpy", "softmax_ce"): {"NumPy, in place", "SciPy logsumexp, softmax"},
    ("numpy", "sigmoid_ce"): {"NumPy, in place"},
    ("torch", "sparse_ce"): {"F.cross_entropy", "keras.losses"},
    ("torch", "softmax_ce"): {"F.cross_entropy", "keras.losses"},
    ("torch", "sigmoid_ce"): {"F.binary_cross_entropy_with_logits", "keras.losses"},
    ("tensorflow", "sparse_ce"): {"tf.nn.sparse_softmax_cross_entropy_with_logits"},
    ("tensorflow", "softmax_ce"): {"tf.nn.softmax_cross_entropy_with_logits"},
    ("tensorflow", "sigmoid_ce"): {"tf.nn.sigmoid_cross_entropy_with_logits"},
    ("numpy", "linear_ce"): {"NumPy, in place"},
    ("torch", "linear_ce"): {"F.cross_entropy", "F.linear_cross_entropy"},
    ("tensorflow", "linear_ce"): {"tf.nn.sparse_softmax_cross_entropy_with_logits"},
}


@pytest.mark.parametrize("workload", SMALL)
def test_everyone_is_right(everyone, workload):
    """The harness tells no one wrong who is not."""
    case = next(case for case in everyone.cases if case.workload == workload)
    for series in case.series:
        assert not series.problem, series
        assert series.waits, series
        assert case.wrong(series) == "", series
        assert len(series.seconds) == 1
        assert series.seconds[0] > 0


@pytest.mark.parametrize(("backend", "loss"), RIVALS, ids=lambda part: part)
def test_every_rival_is_there(everyone, backend, loss):
    if importlib.util.find_spec(backend) is None:
        pytest.skip(f"{backend} is not installed")
    for case in everyone.cases:
        if case.loss == loss:
            for which in ("forward", "both"):
                found = {s.name for s in case.series if s.backend == backend and s.which == which}
                assert {name.removesuffix(", transposed") for name in found} == RIVALS[backend, loss] | {"xent"}


@pytest.mark.backend("jax")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_heads_in_jax_are_right(dtype):
    """Its rivals are compiled; the loop by hand goes round twice."""
    pytest.importorskip("jax")
    from xent.benchmarks.frameworks import jax as with_jax

    workload = Workload("head", "", "linear_ce", (256, 4, 11))
    server = serve(workload, with_jax.make("cpu"), dtype=dtype)
    names = [(c.name.partition(".")[0], c.mode) for c in server.contenders]
    assert names == [("xent", "eager"), ("xent", "compiled"), ("optax", "compiled"), ("lax", "compiled")]
    for index, contender in enumerate(server.contenders):
        answer = server.check(index, "both")
        assert verdict(answer, "both", dtype, workload, contender.ours) == "", (contender, answer)


def test_everyone_is_named(everyone):
    assert {"numpy", "scipy"} <= set(everyone.machine["versions"])
    assert everyone.machine["cpu"]
    assert everyone.absent == [] or all("not installed" in reason for reason in everyone.absent)


def test_what_is_not_installed_is_listed(monkeypatch):
    monkeypatch.setattr(_live, "available", lambda: iter(["numpy"]))
    found = run.bench(["tiny"], rounds=1)
    assert {reason.partition(":")[0] for reason in found.absent} >= {"torch", "tensorflow", "jax"}
    assert all("pip install" in reason for reason in found.absent)


def test_too_large_for_the_memory(monkeypatch):
    monkeypatch.setattr(run.machine, "memory", lambda which: 1 << 20)
    with pytest.raises(ValueError, match=r"nothing was timed: image float32: needs .* GB of free memory, 1.0 MB are"):
        run.bench(["image"], backends=["numpy"], rivals=False, rounds=1)


def test_a_process_that_dies(monkeypatch):
    """The others go on, and for the next workload there is a new one."""
    real = driver.Worker.ask

    def ask(worker, do, **message):
        if do == "case" and message["workload"]["name"] == "tiny":
            worker.process.kill()
            worker.process.wait()
        return real(worker, do, **message)

    monkeypatch.setattr(driver.Worker, "ask", ask)
    found = run.bench(["tiny", "image"], backends=["numpy"], rivals=False, rounds=1)
    assert "numpy: lost at tiny float32: its process died" in found.absent[0]
    assert [len(case.series) for case in found.cases] == [0, 2]


# ---- the GPU's part, as far as a CPU goes


@pytest.mark.parametrize(
    ("found", "wanted", "name"),
    [
        (["cpu"], "cuda", ""),
        (["cpu", "cuda:0", "cuda:1"], "cuda", "cuda:0"),
        (["cpu", "gpu:0"], "cuda", "gpu:0"),
        (["cpu", "cuda:0", "cuda:1"], "cuda:1", "cuda:1"),
        (["cpu", "gpu:0"], "cpu", "cpu"),
        (["cpu", "gpu:0"], "tpu", ""),
    ],
)
def test_devices(found, wanted, name):
    assert _live.device(found, wanted) == name


@pytest.mark.backend("torch")
def test_rivals_on_cuda(monkeypatch):
    torch = pytest.importorskip("torch")
    from xent.benchmarks.frameworks import torch as with_torch

    functional = types.ModuleType("liger_kernel.transformers.functional")
    functional.liger_cross_entropy = torch.nn.functional.cross_entropy
    functional.liger_fused_linear_cross_entropy = torch.nn.functional.linear_cross_entropy
    cut = types.ModuleType("cut_cross_entropy")
    cut.linear_cross_entropy = torch.nn.functional.linear_cross_entropy
    monkeypatch.setitem(sys.modules, functional.__name__, functional)
    monkeypatch.setitem(sys.modules, cut.__name__, cut)
    monkeypatch.setattr(with_torch, "installed", lambda package: True)
    found = with_torch.contenders(SMALL["rows"], cuda=True)
    assert [c.name for c in found if c.overwrites] == ["Liger-Kernel"]
    assert not any(c.overwrites for c in with_torch.contenders(SMALL["rows"], cuda=False))
    found = with_torch.contenders(SMALL["head"], cuda=True)
    (h, w), y = SMALL["head"].arrays(0)
    for contender in (c for c in found if c.name in ("Liger-Kernel", "cut-cross-entropy")):
        loss, gradient = contender.both((torch.tensor(h), torch.tensor(w)), torch.tensor(y))
        assert loss.shape == ()
        assert [k.shape for k in gradient] == [(6, 4), (11, 4)]
    assert {"Liger-Kernel", "cut-cross-entropy"} <= {c.name for c in found}
    assert not {"Liger-Kernel", "cut-cross-entropy"} & {
        c.name for c in with_torch.contenders(SMALL["head"], cuda=False)
    }
    monkeypatch.setattr(with_torch, "installed", lambda package: False)
    absent = " ".join(with_torch.make("cuda:0").absent)
    assert "liger-kernel: not installed" in absent
    assert "cut-cross-entropy: not installed" in absent


@pytest.mark.backend("torch")
def test_device_memory_traffic(monkeypatch):
    torch = pytest.importorskip("torch")
    waited = []
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: waited.append(True))
    found = memory_traffic.torch_device(1 << 12, "cpu")
    for move in (found.read, found.write, found.copy):
        move()
    assert len(waited) == 3


@pytest.mark.backend("jax")
def test_device_memory_traffic_by_jax():
    pytest.importorskip("jax")
    found = memory_traffic.jax_device(1 << 12, "cpu")
    assert found.read() == 1024
    assert found.write().shape == found.copy().shape == (1024,)


GPU_SCRIPT = Path(__file__).parents[1] / "benchmarks" / "gpu.sh"


def test_gpu_script_says_what_is_missing(tmp_path):
    torch = pytest.importorskip("torch")
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    done = subprocess.run(["bash", GPU_SCRIPT, tmp_path / "out"], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "expected a GPU that torch or jax can use, found none" in done.stderr


@pytest.mark.parametrize(
    ("fails", "code", "status"),
    [
        ("nothing at all", 1, 0),
        ("jax --compiled", 1, 1),
        ("torch -k options", 124, 1),
        ("bench", 2, 1),
        ("bench", 124, 0),
    ],
)
def test_gpu_script(fails, code, status, tmp_path):
    """With something in Python's place that says what it was called with. 124 is what a time limit leaves."""
    python = tmp_path / "python3"
    python.write_text(
        f'''#!/bin/sh
[ "$1" = - ] && {{ echo torch jax; exit; }}
echo "called with $*"
case "$*" in *"{fails}"*) exit {code};; esac'''
    )
    python.chmod(0o755)
    environment = os.environ | {"PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"}
    command = ["bash", GPU_SCRIPT, tmp_path / "out"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == status
    tests = (tmp_path / "out" / "tests.txt").read_text()
    for framework in ("torch", "jax"):
        for part in ("-k options", "-k not options", "--compiled"):
            assert f"--device cuda --backend {framework} {part}\n" in tests
    bench = (tmp_path / "out" / "gpu.txt").read_text()
    assert "-m xent bench --device cuda --rounds 7 --backend torch --backend jax --json" in bench


# ---- the command


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--workload", "nonesuch"], "nonesuch"),
        (["--dtype", "int8"], "int8"),
        (["--device", "cuda", "--backend", "numpy"], "numpy: no cuda here, only cpu"),
        (["--rounds", "0"], "rounds: expected 1 to"),
        (["--threads", "100000"], "threads: expected 1 to"),
        (["--sweep", "colour"], "colour"),
        (["--sweep", "rows", "--workload", "segmentation"], "sweep: expected a workload of shape (rows, classes)"),
        (["--json", NEVER / "no" / "f.json"], "no such folder"),
        (["--json", NEVER], "expected a file that can be written"),
        (["--diff", "nonesuch.json", "nonesuch.json"], "nonesuch.json: No such file"),
        (["--diff", __file__, __file__], "expected JSON written by xent bench, got something else"),
    ],
)
def test_bad_input(arguments, says):
    shown = invoke("bench", *arguments)
    assert shown.exit_code == 2
    assert says in shown.output.replace("\n", " ")


def test_other_json(tmp_path):
    for text, says in (("[]", "got other JSON"), ('{"format": 1}', "parts are missing")):
        (tmp_path / "f.json").write_text(text)
        with pytest.raises(ValueError, match=says):
            Result.load(tmp_path / "f.json")


def test_command(tmp_path):
    files = {suffix: tmp_path / f"found.{suffix}" for suffix in ("json", "html", "png")}
    options = [part for suffix, file in files.items() for part in (f"--{suffix}", file)]
    shown = invoke("bench", "--workload", "tiny", "--backend", "numpy", "--rounds", 2, *options)
    assert shown.exit_code == 0, shown.output
    assert "NumPy, in place" in shown.stdout
    found = Result.load(files["json"])
    assert [len(series.seconds) for series in found.cases[0].series] == [2] * 6
    assert found.settings["threads"] >= 1
    assert files["html"].read_text(encoding="utf-8").startswith("<!doctype html>")
    assert files["png"].read_bytes().startswith(b"\x89PNG")
    assert invoke("bench", "--diff", files["json"], files["json"]).exit_code == 0


def test_sweep(monkeypatch):
    monkeypatch.setattr(run.machine, "cores", lambda: 2)
    found = run.bench(["tiny"], backends=["numpy"], sweep="threads", rivals=False, rounds=1)
    assert [case.value for case in found.cases] == [1, 2]


def test_a_result_survives_its_file(everyone, tmp_path):
    everyone.save(tmp_path / "f.json")
    again = Result.load(tmp_path / "f.json")
    assert repr(again) == repr(everyone)  # NaN is not equal to itself


def test_interrupted(tmp_path):
    """Ctrl-C in the second workload leaves the first on disk."""

    def progress(what, done, of):
        if "timing image" in what and "round 2" in what:
            raise KeyboardInterrupt

    file = tmp_path / "f.json"
    found = run.bench(["tiny", "image"], backends=["numpy"], rivals=False, rounds=3, save=file, progress=progress)
    assert found.interrupted
    again = Result.load(file)
    assert again.interrupted
    assert [(case.workload, len(case.series[0].seconds)) for case in again.cases] == [("tiny", 3), ("image", 1)]


def test_interrupted_in_a_round(asked, monkeypatch):
    """What is not whole is left out of it."""
    calls = itertools.count()

    def scatter(self):
        if next(calls) == 8:  # the first round has six, the second four
            raise KeyboardInterrupt
        return 1.0

    monkeypatch.setattr(Recorder, "scatter", scatter)
    found = run.bench(["tiny"], backends=["numpy"], rounds=3)
    assert found.interrupted
    (case,) = found.cases
    assert {len(s.seconds) for s in case.series} | {len(column) for column in case.memory.values()} == {1}


def test_interrupted_before_anything(tmp_path):
    """What an earlier run left stays."""

    def progress(what, done, of):
        raise KeyboardInterrupt

    (tmp_path / "f.json").write_text("earlier")
    assert run.bench(["tiny"], backends=["numpy"], save=tmp_path / "f.json", progress=progress).interrupted
    assert (tmp_path / "f.json").read_text() == "earlier"


def test_not_from_the_current_folder(tmp_path):
    """A file of the caller's that is called as a module is."""
    (tmp_path / "platform.py").write_text("raise SystemExit('the wrong one')")
    command = [Path(sys.executable).with_name("xent"), "bench", "--workload", "tiny", "--backend", "numpy"]
    done = subprocess.run(
        [*command, "--rounds", "1", "--no-rivals"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_command(tmp_path, sent):
    """By Ctrl-C, which the children of pytest-xdist's processes would ignore, and by a time limit."""
    listening = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"
    start = [sys.executable, "-c", f"{listening}; from xent.__main__ import main; main()"]
    command = [*start, "bench", "--workload", "tiny", "--workload", "soft", "--backend", "numpy"]
    child = subprocess.Popen(
        [*command, "--rounds", "3", "--json", tmp_path / "f.json"], cwd=tmp_path, stdout=subprocess.PIPE, text=True
    )
    while not (tmp_path / "f.json").exists():
        assert child.poll() is None
        time.sleep(0.05)
    child.send_signal(sent)
    shown, _ = child.communicate(timeout=300)
    assert child.returncode == 130
    assert "f.json" in shown
    assert Result.load(tmp_path / "f.json").cases[0].workload == "tiny"


# ---- two runs beside each other


def case(rival, xent_time, floor=1e-3):
    """xent and one rival on torch, by round."""
    ours = Series("xent", "torch", "eager", True, "both", tuple(xent_time), 1, 1, 0, 0)
    theirs = Series("F.cross_entropy", "torch", "eager", False, "both", tuple(rival), 1, 1, 0, 0)
    memory = {what: (floor,) * len(rival) for what in ("read", "write", "copy")}
    return Case("lm", "", "sparse_ce", (4, 8), -1, "float32", 1, 1, 1, 2, memory, [ours, theirs])


def found(*cases):
    return Result({}, {"device": "cpu", "threads": 2}, list(cases))


STEADY = (1.0, 1.02, 0.98, 1.01, 0.99)


@pytest.mark.parametrize(
    ("factor", "load", "word"),
    [(1, 1, "same"), (1.05, 1, "same"), (0.5, 1, "faster"), (2, 1, "slower"), (1, 3, "same"), (2, 3, "slower")],
)
def test_diff(factor, load, word):
    """A busier machine is no change: everything takes longer, the rivals and the memory, too."""
    old = found(case([3 * s for s in STEADY], STEADY))
    new = found(case([3 * load * s for s in STEADY], [factor * load * s for s in STEADY], load * 1e-3))
    (verdict,) = diff.diff(old, new)
    assert verdict.word == word
    assert verdict.factor == pytest.approx(1 / factor)
    assert [change.against for change in verdict.changes] == ["F.cross_entropy", "memory"]


def test_diff_leaves_out_who_has_failed():
    old, new = found(case([None] * 5, STEADY)), found(case([3 * s for s in STEADY], STEADY))
    (verdict,) = diff.diff(old, new)
    assert [change.against for change in verdict.changes] == ["memory"]


def test_diff_leaves_out_where_xent_has_failed():
    good = case([3 * s for s in STEADY], STEADY)
    failed = dataclasses.replace(case(STEADY, [None] * 5), workload="image")
    fine = dataclasses.replace(good, workload="image")
    (verdict,) = diff.diff(found(good, failed), found(good, fine))
    assert verdict.changes[0].case.workload == "lm"


def test_too_few_rounds_prove_nothing():
    old, new = found(case([3.0] * 3, [1.0] * 3)), found(case([3.0] * 3, [2.0] * 3))
    assert diff.diff(old, new)[0].word == "same"


def test_diff_of_heads_is_with_rivals_alone():
    """Memory is not what limits them."""
    head = dataclasses.replace(case([3 * s for s in STEADY], STEADY), loss="linear_ce", shape=(4, 2, 8))
    (verdict,) = diff.diff(found(head), found(head))
    assert [change.against for change in verdict.changes] == ["F.cross_entropy"]


def test_diff_of_different_machines():
    old, new = found(case(STEADY, STEADY)), found(case(STEADY, STEADY))
    new.settings["device"] = "cuda"
    with pytest.raises(ValueError, match="diff: expected runs with the same device, got cpu and cuda"):
        diff.diff(old, new)


def test_diff_of_noise():
    """Medians far apart, and quartiles that meet."""
    wild = (1.0, 2.0, 0.5, 1.5, 0.7)
    (verdict,) = diff.diff(found(case(wild, STEADY)), found(case([1.3 * s for s in wild], STEADY)))
    assert verdict.word == "same"


@pytest.mark.parametrize(("scatter", "rounds"), [(0.05, 9), (0.2, 25), (0.2, 7)])
def test_diff_knows_how_far_noise_alone_would_put_two_runs(scatter, rounds):
    rng = np.random.default_rng(0)
    times = np.exp(rng.normal(0, scatter, (400, 2, rounds))).tolist()
    runs = [[found(case(rival, [1.0] * rounds)) for rival in pair] for pair in times]
    changes = [diff.diff(*pair)[0].changes[0] for pair in runs]
    far = np.mean([max(change.factor, 1 / change.factor) > 1 + diff.NOISE for change in changes])
    assert np.mean([change.chance for change in changes]) == pytest.approx(far, abs=0.06)


def test_a_rival_that_got_faster_is_no_loss():
    old, new = found(case([3 * s for s in STEADY], STEADY)), found(case(STEADY, STEADY))
    assert diff.diff(old, new)[0].word == "same"


def test_diff_command(tmp_path):
    """Exit status 1 for CI where something got slower."""
    found(case([3 * s for s in STEADY], STEADY)).save(tmp_path / "old.json")
    found(case([3 * s for s in STEADY], [2 * s for s in STEADY])).save(tmp_path / "new.json")
    slower = invoke("bench", "--diff", tmp_path / "old.json", tmp_path / "new.json")
    assert slower.exit_code == 1
    assert "slower" in slower.stdout
    assert "0.50x" in slower.stdout
    assert "medians differ by 100.0% in the middle" in slower.stdout
    assert "the scatter of their rounds alone makes one expect 0" in slower.stdout.replace("\n", " ")
    assert invoke("bench", "--diff", tmp_path / "new.json", tmp_path / "old.json").exit_code == 0
    found(dataclasses.replace(case(STEADY, STEADY), workload="other")).save(tmp_path / "other.json")
    assert "nothing that is in both" in invoke("bench", "--diff", tmp_path / "old.json", tmp_path / "other.json").output


def test_ratio_by_name():
    both = found(case([3 * s for s in STEADY], STEADY))
    slow, fast = ("F.cross_entropy", "torch", "eager", "both"), ("xent", "torch", "eager", "both")
    assert both.ratio("lm", "float32", slow, fast).median == pytest.approx(3)
    with pytest.raises(ValueError, match="workload: expected one that was measured, got 'tiny'"):
        both.ratio("tiny", "float32", slow, fast)
    with pytest.raises(ValueError, match="fast: expected"):
        both.ratio("lm", "float32", slow, ("nobody", "torch", "eager", "both"))
