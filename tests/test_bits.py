"""docs/bits.md: a row has the same bits alone and in any batch, on any number of threads, on all four frameworks."""

import json
from pathlib import Path

import cases
import numpy as np
import processes
import pytest
import xent
from typer.testing import CliRunner
from xent import cli
from xent.backends import cpu
from xent.verify import bits, frameworks, worker
from xent.verify.regimes import LOSSES
from xent.verify.task import Outcome, Task

pytestmark = pytest.mark.skipif(cpu.native is None, reason="without the native kernels, bits are the frameworks' own")
ON = cases.backends("numpy", "torch", "tensorflow", "jax")
DTYPES = ("float32", "float64", "bfloat16")
PLACES = [slice(i, j) for i, j in ((0, 1), (18, 19), (36, 37), (17, 20), (0, 19), (18, 37))]


def computed(backend, batch):
    framework = cases.framework(backend, batch.dtype)
    with framework.within(batch.dtype):
        found = worker.xents(framework, Task(backend, "eager", "cpu", batch))
    assert not found.problem
    return found.loss, found.grad


def assert_same_bits(got, want):
    for one, other in zip(got, want, strict=True):
        assert one.tobytes() == other.tobytes()


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("backend", ON)
def test_rows_alone_and_in_any_batch(backend, dtype, loss):
    """All of them, at several places, in every repetition, with NumPy's bits."""
    for classes in bits.CLASSES:
        batch = bits.batch(loss, dtype, classes)
        every = computed(backend, batch)
        assert_same_bits(computed(backend, batch), every)
        for place in PLACES:
            assert_same_bits(computed(backend, bits.of_rows(batch, place)), [part[place] for part in every])
        if backend != "numpy" and dtype in frameworks.load("numpy").dtypes:
            assert_same_bits(every, computed("numpy", batch))


@pytest.mark.parametrize("backend", ON)
def test_log_probabilities_and_entropies(backend):
    """By themselves and with their gradients, of all rows and of some, as NumPy has them."""
    framework, batch = cases.framework(backend, "float32"), bits.batch("sparse_ce", "float32", 1003)

    def found(framework, x, y):
        x = framework.array(x, "float32", "cpu")
        pairs = xent.value_and_grad(xent.log_prob)(x, y), xent.value_and_grad(xent.entropy)(x)
        alone = xent.log_prob(x, y), xent.entropy(x)
        return [framework.numpy(k) for k in (*alone, *pairs[0], *pairs[1])]

    every = found(framework, batch.logits, batch.labels)
    assert_same_bits(every, found(frameworks.load("numpy"), batch.logits, batch.labels))
    place = slice(17, 20)
    assert_same_bits(found(framework, batch.logits[place], batch.labels[place]), [k[place] for k in every])


@pytest.mark.backend("numpy")
@pytest.mark.parametrize("classes", [3, 100])
@pytest.mark.parametrize("loss", [xent.sparse_ce, xent.softmax_ce], ids=lambda loss: loss.__name__)
def test_classes_that_come_first(loss, classes):
    """Two rows at several places, by themselves and in the batch, with the kernel's full vectors and its last ones."""
    batch = bits.batch(loss.__name__, "float32", classes)
    x, y = batch.logits.T.astype(np.float32).copy(), batch.labels.T.copy()
    options = {"axis": 0, "reduce": "none", "label_smoothing": 0.1, "z_loss": 0.1}
    value, grad = xent.value_and_grad(loss)(x, y, **options)
    for place in (slice(first, first + 2) for first in (0, 15, 20, 35)):
        some = x[:, place].copy(), y[..., place].copy()
        assert_same_bits(xent.value_and_grad(loss)(*some, **options), (value[place], grad[:, place]))


@pytest.mark.parametrize("backend", ON)
def test_losses_of_linear_ce(backend):
    batch = bits.batch("linear_ce", "float32", 1003)
    loss, grad = computed(backend, batch)
    for place in PLACES[2:4] if backend == "jax" and not cases.FULL else PLACES:  # each is a shape that JAX compiles
        its_loss, its_grad = computed(backend, bits.of_rows(batch, place))
        assert_same_bits([its_loss], [loss[place]])
        if backend != "jax":
            hidden = its_grad[: place.stop - place.start]
            assert_same_bits([hidden], [grad[place]])
    assert_same_bits([loss], [computed("numpy", batch)[0]])


DIGESTS = """
import sys
from xent.backends import cpu
from xent.verify import bits, frameworks, worker
from xent.verify.task import Task

for loss in sys.argv[1:]:
    task = Task("numpy", "eager", "cpu", bits.batch(loss, "float32", 20011))  # large enough to be shared out
    found = worker.xents(frameworks.load("numpy"), task)
    print(cpu.native.max_threads(), bits._digest(found.loss, found.grad))
"""


def test_any_number_of_threads():
    used, found = [], []
    for threads in ("1", "2"):
        lines = processes.printed("-c", DIGESTS, *LOSSES, XENT_NUM_THREADS=threads).split()
        used.append(set(lines[::2]))
        found.append(lines[1::2])
    assert used == [{"1"}, {"2"}]
    assert found[0] == found[1]


@pytest.mark.backend("torch")
def test_any_number_of_pytorch_s_threads():
    torch = pytest.importorskip("torch", reason="torch is not installed")
    before, found = torch.get_num_threads(), []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        try:
            found.append(computed("torch", bits.batch("sparse_ce", "float32", 20011)))
        finally:
            torch.set_num_threads(before)
    assert_same_bits(*found)


def test_inputs_are_fixed():
    """Another release of NumPy or xent has the same ones."""
    made = [bits.batch(loss, "float32", 10) for loss in (*LOSSES, "linear_ce")]
    found = [bits._digest(batch.logits, batch.labels) for batch in made]
    assert found == ["913aa39f510d", "1d5bad61a6be", "eb57e24925b5", "c816616ef103"]
    assert all(np.array_equal(batch.logits.astype("f"), batch.logits) for batch in made)


# ---- the command


def invoke(*arguments):
    return CliRunner().invoke(cli.app, ["compare", "--bits", "--dtype", "float32", "--loss", "sparse_ce", *arguments])


def test_command():
    shown = invoke("--backend", "numpy")
    assert shown.exit_code == 0, shown.output
    assert f"{cpu.native.isa()} kernels" in shown.stdout
    found = json.loads(invoke("--backend", "numpy", "--json").stdout)
    assert (found["agrees"], found["instruction_set"]) == (True, cpu.native.isa())
    assert [digest["what"] for digest in found["digests"]] == ["loss", "gradient"]
    assert all(len(digest["digest"]) == 12 and digest["digest"] in shown.stdout for digest in found["digests"])
    assert f"{found['all']['numpy']}  all of numpy" in shown.stdout


def test_command_where_bits_differ(monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parent / "toy_wrong")
    shown = invoke("--backend", "numpy", "--backend", "wrong_framework")
    assert shown.exit_code == 1, shown.output
    assert "the bits differ" in shown.stdout
    lines = [line.split()[-3:] for line in shown.stdout.splitlines() if " loss " in line]
    assert [(what, backend) for what, _, backend in lines] == [("loss", "numpy"), ("loss", "wrong_framework")]


def test_command_with_nothing_to_run():
    assert invoke("--backend", "numpy", "--device", "cuda:9").exit_code == 2
    refused = invoke("--backend", "numpy", "--full")
    assert refused.exit_code == 2
    assert "--bits: goes with --backend, --dtype, --loss, --device and --json only" in refused.stderr.replace("\n", " ")


def test_rows_that_differ_alone(monkeypatch, capsys):
    def depends_on_the_batch(framework, task):
        rows = len(task.batch.logits)
        return Outcome(np.full(rows, 1.0 + rows), np.zeros(task.batch.logits.shape))

    monkeypatch.setattr(bits.worker, "xents", depends_on_the_batch)
    bits.answer("numpy", ["sparse_ce"], ["float32"], "cpu")
    said = json.loads(capsys.readouterr().out)
    assert said["problems"] == ["numpy sparse_ce float32: a row alone has another loss than among others"]
    found = bits.Bits("", {}, tuple(bits.Digest(*digest) for digest in said["digests"]), tuple(said["problems"]), ())
    assert not found
