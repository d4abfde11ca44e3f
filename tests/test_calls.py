"""That the adapters call the native kernels, on whatever memory they are given, and hand out memory of their own."""

import collections
import importlib
import tracemalloc
from functools import partial

import ml_dtypes
import numpy as np
import pytest
import xent
from cases import backends, needs_installed
from test_boundary import NUMPY_VIEWS
from xent import oracle
from xent.backends.cpu import native, why_not

if native is None:
    pytest.skip(f"native kernels: {why_not}", allow_module_level=True)

rng = np.random.default_rng(5)
X = rng.normal(size=(6, 5, 4)).astype(np.float32)
Y = rng.integers(0, 5, (6, 4))
T = np.moveaxis(rng.dirichlet(np.ones(5), (6, 4)), -1, 1).astype(np.float32)
Z = rng.random(X.shape).astype(np.float32)
LOSSES = {
    "sparse_ce": (partial(xent.sparse_ce, axis=1), Y, partial(oracle.sparse_ce, axis=1)),
    "softmax_ce": (partial(xent.softmax_ce, axis=1), T, partial(oracle.softmax_ce, axis=1)),
    "sigmoid_ce": (xent.sigmoid_ce, Z, oracle.sigmoid_ce),
}
each_framework = pytest.mark.parametrize("framework", backends("numpy", "torch", "tensorflow"))


@pytest.fixture
def calls(monkeypatch):
    """How often each kernel has been called; `mean_of_ids` as the one that it comes to."""
    counts = collections.Counter()

    def counting(name):
        kernel = getattr(native, name)

        def call(**arguments):
            counts[name if name != "mean_of_ids" else "mean_both" if arguments["dx"] else "rows_forward"] += 1
            return kernel(**arguments)

        return call

    of_rows = "rows_forward", "rows_backward", "rows_both", "mean_both", "mean_of_ids"
    for name in (*of_rows, "sigmoid_forward", "sigmoid_backward", "sigmoid_both"):
        monkeypatch.setattr(native, name, counting(name))
    return counts


def taken(calls):
    """The counts, which start anew."""
    counts = dict(calls)
    calls.clear()
    return counts


def close(got, want):
    np.testing.assert_allclose(np.asarray(got, np.float64), want, rtol=2e-6, atol=1e-7)


def array(framework, x):
    if framework == "numpy":
        return x
    module = pytest.importorskip(framework)
    return module.from_numpy(x) if framework == "torch" else module.constant(x)


# ---- used, and right


@pytest.mark.parametrize("loss", LOSSES)
@each_framework
def test_values_and_gradients_come_from_the_kernels(framework, loss, calls):
    ours, labels, truth = LOSSES[loss]
    x, y, want = array(framework, X), array(framework, labels), truth(X, labels)
    kind = "sigmoid" if loss == "sigmoid_ce" else "rows"
    for reduce, value in (("mean", want.loss), ("none", truth(X, labels, reduce="none").loss)):
        close(ours(x, y, reduce=reduce), value)
        assert taken(calls) == {f"{kind}_forward": 1}
    value, grad = xent.value_and_grad(ours)(x, y)
    assert taken(calls) == {"sigmoid_both" if kind == "sigmoid" else "mean_both": 1}
    close(value, want.loss)
    close(grad, want.logits)


@pytest.mark.parametrize("options", [{}, {"label_smoothing": 0.1}, {"z_loss": 0.1}, {"sample_weight": 2.0}], ids=str)
@pytest.mark.parametrize("reduce", ["sum", "mean", "mean_all", "none"])
@each_framework
def test_a_plain_mean_is_added_up_in_the_kernel(framework, reduce, options, calls):
    x, y = array(framework, X), array(framework, Y)
    value, grad = xent.value_and_grad(xent.sparse_ce)(x, y, axis=1, reduce=reduce, **options)
    assert taken(calls) == {"rows_both" if options or reduce == "none" else "mean_both": 1}
    want = oracle.sparse_ce(X, Y, axis=1, reduce=reduce, **options)
    close(value, want.loss)
    close(grad, want.logits)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@each_framework
def test_narrow_logits_go_in_as_they_are(framework, dtype, calls):
    needs_installed(framework)
    module = importlib.import_module(framework)
    x = array(framework, X)
    kind = getattr(ml_dtypes if framework == "numpy" and dtype == "bfloat16" else module, dtype)
    x = module.cast(x, kind) if framework == "tensorflow" else x.astype(kind) if framework == "numpy" else x.to(kind)
    value, grad = xent.value_and_grad(xent.sparse_ce)(x, Y, axis=1)
    assert taken(calls) == {"mean_both": 1}
    assert "float32" in str(value.dtype)
    assert grad.dtype == x.dtype
    want = oracle.sparse_ce(X, Y, axis=1)
    np.testing.assert_allclose(float(value), want.loss, rtol=1e-2)


# ---- NumPy's memory


@pytest.mark.parametrize("view", NUMPY_VIEWS, ids=lambda view: view.__name__)
def test_any_memory(view, calls):
    for ours, labels, truth in LOSSES.values():
        value, grad = xent.value_and_grad(ours)(view(X), labels)
        want = truth(X, labels)
        close(value, want.loss)
        close(grad, want.logits)
    assert taken(calls) == {"mean_both": 2, "sigmoid_both": 1}


def test_no_rows_and_one_row(calls):
    value, grad = xent.value_and_grad(xent.sparse_ce)(np.zeros((0, 3), np.float32), np.zeros(0, int))
    assert value == 0
    assert grad.shape == (0, 3)
    value, grad = xent.value_and_grad(xent.sparse_ce)(X[0, :, 0], 2)
    close(grad, oracle.sparse_ce(X[:1, :, 0], [2]).logits[0])
    assert grad.shape == (5,)


PATTERNS = {
    "scalar": (),
    "classes": (4,),
    "rows": (6, 1, 1),
    "middle": (1, 5, 1),
    "holes": (6, 1, 4),
    "full": (6, 5, 4),
}


@pytest.mark.parametrize("sample_weight", [name for name in PATTERNS if name != "classes"])
@pytest.mark.parametrize("pos_weight", PATTERNS)
def test_sigmoid_weights_of_any_shape(sample_weight, pos_weight):
    w, p = (rng.uniform(0.5, 2, PATTERNS[name]) for name in (sample_weight, pos_weight))
    if w.ndim:
        w.flat[0] = 0
    options = {"sample_weight": w.astype(np.float32), "pos_weight": p.astype(np.float32)}
    for reduce in ("mean", "mean_nonzero", "sum", "none"):
        value, grad = xent.value_and_grad(xent.sigmoid_ce)(X, Z, reduce=reduce, **options)
        want = oracle.sigmoid_ce(X, Z, reduce=reduce, **options)
        np.testing.assert_allclose(value, want.loss, rtol=3e-6, atol=1e-6)
        np.testing.assert_allclose(grad, want.logits, rtol=3e-6, atol=1e-6)


def test_a_reduced_sigmoid_stores_no_losses():
    x = np.zeros((512, 2048), np.float32)
    xent.sigmoid_ce(x, x)
    tracemalloc.start()
    try:
        xent.sigmoid_ce(x, x, sample_weight=np.ones((512, 1)), pos_weight=np.ones(2048))
        assert tracemalloc.get_traced_memory()[1] < x.nbytes / 20
    finally:
        tracemalloc.stop()


# ---- PyTorch's


@pytest.mark.backend("torch")
class TestTorch:
    @pytest.fixture
    def torch(self):
        return pytest.importorskip("torch", reason="torch is not installed")

    def tensors(self, torch, *arrays):
        return tuple(torch.tensor(a).requires_grad_(a.dtype == np.float32) for a in arrays)

    @pytest.mark.parametrize("loss", LOSSES)
    def test_backward_hands_out_what_forward_computed(self, torch, loss, calls):
        ours, labels, truth = LOSSES[loss]
        x, want = torch.tensor(X, requires_grad=True), truth(X, labels).logits
        (3 * ours(x, torch.tensor(labels))).backward()
        assert taken(calls) == {"sigmoid_both" if loss == "sigmoid_ce" else "mean_both": 1}
        close(x.grad, 3 * want)

    def test_each_gradient_is_its_own(self, torch):
        """Asked again, after the caller has overwritten the first."""
        x = torch.tensor(X, requires_grad=True)
        loss, want = xent.sparse_ce(x, torch.tensor(Y), axis=1), oracle.sparse_ce(X, Y, axis=1).logits
        (first,) = torch.autograd.grad(loss, x, retain_graph=True)
        first.zero_()
        (second,) = torch.autograd.grad(loss, x, retain_graph=True)
        close(second, want)
        assert second.data_ptr() != first.data_ptr()
        (batch,) = torch.autograd.grad(loss, x, torch.tensor([1.0, 2.0]), is_grads_batched=True)
        close(batch, np.stack([want, 2 * want]))

    def test_memory_is_the_gradients(self, torch):
        """No copy between forward, backward and .grad."""
        x, y = torch.zeros(64, 4096, requires_grad=True), torch.zeros(64, dtype=torch.int64)
        xent.sparse_ce(x, y).backward()
        x.grad = None
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as seen:
            xent.sparse_ce(x, y).backward()
        taken = sum(
            e.nbytes() for e in seen.profiler.kineto_results.events() if e.name() == "[memory]" if e.nbytes() > 0
        )
        assert taken < 1.02 * x.nbytes

    def test_only_the_derivatives_that_are_asked_for(self, torch, monkeypatch):
        asked = []
        backward = native.rows_backward
        monkeypatch.setattr(
            native, "rows_backward", lambda **k: (asked.append((k["dx"] != 0, k["dt"] != 0)), backward(**k))
        )
        for x_too, t_too in ((False, True), (True, True)):
            x, t = torch.tensor(X, requires_grad=x_too), torch.tensor(T, requires_grad=t_too)
            xent.softmax_ce(x, t, axis=1).backward()
            assert asked.pop() == (x_too, t_too)
            close(t.grad, oracle.softmax_ce(X, T, axis=1).labels)

    @pytest.mark.parametrize("reentrant", [True, False])
    def test_checkpoint(self, torch, reentrant):
        from torch.utils.checkpoint import checkpoint

        x = torch.tensor(X, requires_grad=True)
        checkpoint(lambda x: xent.sparse_ce(x, Y, axis=1), x, use_reentrant=reentrant).backward()
        close(x.grad, oracle.sparse_ce(X, Y, axis=1).logits)

    def test_modes(self, torch):
        x, want = torch.tensor(X, requires_grad=True), oracle.sparse_ce(X, Y, axis=1)
        with torch.inference_mode():
            close(xent.sparse_ce(x, Y, axis=1), want.loss)
        torch.use_deterministic_algorithms(True)
        try:
            with torch.autocast("cpu", dtype=torch.bfloat16):
                xent.sparse_ce(x, Y, axis=1).backward()
        finally:
            torch.use_deterministic_algorithms(False)
        close(x.grad, want.logits)

    def test_views(self, torch, calls):
        want = oracle.sparse_ce(X, Y, axis=1)
        conjugate = torch.complex(torch.zeros(X.shape), torch.tensor(-X)).conj().imag  # negated when it is read
        channels_last = torch.tensor(X)[..., None].to(memory_format=torch.channels_last)[..., 0]
        for x in (conjugate, channels_last, torch.tensor(X[:, None])[:, 0], torch.tensor(X).mT.contiguous().mT):
            value, grad = xent.value_and_grad(xent.sparse_ce)(x, Y, axis=1)
            close(value, want.loss)
            close(grad, want.logits)
        assert taken(calls) == {"mean_both": 4}

    @pytest.mark.parametrize("factor", [65536.0, 3.0])
    @pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
    def test_the_upstream_gradient_goes_in_before_rounding(self, torch, dtype, factor):
        """A GradScaler's saves derivatives that 16 bits would hold as 0."""
        x = torch.zeros(2048, 64).to(getattr(torch, dtype)).requires_grad_()
        y = torch.zeros(2048, dtype=torch.int64)
        (factor * xent.sparse_ce(x, y)).backward()
        want = torch.tensor(factor / 64 / 2048, dtype=torch.float64).to(x.dtype)
        assert (x.grad[:, 1:] == want).all()

    def test_threads_do_not_matter(self, torch):
        x = torch.tensor(rng.normal(size=(300, 4000)).astype(np.float32))
        y = torch.tensor(rng.integers(0, 4000, 300))
        many = torch.get_num_threads()
        results = []
        try:
            for n in (1, 2, 3):
                torch.set_num_threads(n)
                results.append(xent.value_and_grad(xent.sparse_ce)(x, y, reduce="none"))
        finally:
            torch.set_num_threads(many)
        for value, grad in results[1:]:
            assert torch.equal(value, results[0][0])
            assert torch.equal(grad, results[0][1])

    def test_tracers_record_operators(self, torch):
        from torch.fx.experimental.proxy_tensor import make_fx

        graph = make_fx(lambda x: xent.value_and_grad(xent.sparse_ce)(x, torch.tensor(Y), axis=1))(torch.zeros(X.shape))
        assert "xent.rows_both" in graph.code
        close(graph(torch.tensor(X))[1], oracle.sparse_ce(X, Y, axis=1).logits)

    def test_operators(self, torch):
        """Fake tensors, schemas: torch's own checks of what was registered."""
        x, y, t, u = torch.tensor(X), torch.tensor(Y), torch.tensor(T), torch.full((5,), 0.2)
        m, s, a = torch.zeros(6, 1, 4), torch.zeros(6, 1, 4), torch.ones(6, 4)
        lay = (1, True, True, True, True)
        soft = (1, True, True, True, False)
        samples = {
            "rows": [(x, None, u, y, *lay), (x.bfloat16(), t, None, None, 1, False, False, False, False)],
            "rows_backward": [
                (x, None, u, y, *lay, m, s, a, a, a, True, False),
                (x, t, u, y, *soft, m, s, a, a, a, False, True),
            ],
            "rows_both": [(x, None, u, y, *lay, a, a, a), (x.half(), t, None, y, *soft, a, a, None)],
            "mean_of_ids": [(1, None, x, y, True), (-2, 3, x.bfloat16(), y, False)],
            "sigmoid": [(0.1, x, t, None, u[:4], True), (0.1, x, t, None, None, False)],
            "sigmoid_backward": [(0.1, x.half(), t, None, None, torch.tensor(2.0), True, True)],
            "sigmoid_both": [
                (0.1, x, t, None, u[:4], torch.tensor(2.0), True),
                (0.1, x.half(), t, None, None, torch.tensor(2.0), False),
            ],
        }
        for name, arguments in samples.items():
            for given in arguments:
                torch.library.opcheck(getattr(torch.ops.xent, name).default, given)


# ---- TensorFlow's


@pytest.mark.backend("tensorflow")
class TestTensorFlow:
    @pytest.fixture
    def tf(self):
        return pytest.importorskip("tensorflow", reason="tensorflow is not installed")

    def gradient(self, tf, f, x, **tape):
        with tf.GradientTape(**tape) as tape:
            tape.watch(x)
            value = f(x)
        return tape.gradient(value, x)

    @pytest.mark.parametrize("persistent", [False, True])
    def test_under_a_tape(self, tf, persistent, calls):
        x = tf.constant(X)
        grad = self.gradient(tf, lambda x: 3 * xent.sparse_ce(x, Y, axis=1), x, persistent=persistent)
        close(grad, 3 * oracle.sparse_ce(X, Y, axis=1).logits)
        assert taken(calls) == ({} if persistent else {"mean_both": 1})

    def test_each_example(self, tf, calls):
        grad = self.gradient(tf, lambda x: xent.sparse_ce(x, Y, axis=1, reduce="none", z_loss=0.1), tf.constant(X))
        close(grad, oracle.sparse_ce(X, Y, axis=1, reduce="sum", z_loss=0.1).logits)
        assert taken(calls) == {"rows_forward": 1, "rows_backward": 1}

    def test_jacobian(self, tf):
        x = tf.constant(X[..., 0])
        with tf.GradientTape() as tape:
            tape.watch(x)
            losses = tf.stack([xent.sparse_ce(x, Y[:, 0]), xent.sparse_ce(x, Y[:, 0], reduce="none")[0]])
        got = tape.jacobian(losses, x)
        close(got[0], oracle.sparse_ce(X[..., 0], Y[:, 0]).logits)
        close(got[1, :1], oracle.sparse_ce(X[:1, :, 0], Y[:1, 0]).logits)

    @pytest.mark.parametrize("reduce", ["mean", "none"])
    def test_a_derivative_in_the_upstream_gradient(self, tf, reduce):
        """Even where that is 1 just now."""
        k, x = tf.constant(1.0), tf.constant(X)
        with tf.GradientTape() as tape:
            tape.watch(k)
            grad = self.gradient(tf, lambda x: k * tf.reduce_sum(xent.sparse_ce(x, Y, axis=1, reduce=reduce)), x)
            value = tf.reduce_sum(grad**2)
        want = oracle.sparse_ce(X, Y, axis=1, reduce="sum" if reduce == "none" else reduce).logits
        close(tape.gradient(value, k), 2 * (want**2).sum())

    def test_labels_too(self, tf, calls):
        x, t = tf.constant(X), tf.constant(T)
        with tf.GradientTape() as tape:
            tape.watch((x, t))
            value = xent.softmax_ce(x, t, axis=1)
        want = oracle.softmax_ce(X, T, axis=1)
        for got, true in zip(tape.gradient(value, (x, t)), (want.logits, want.labels), strict=True):
            close(got, true)
        assert taken(calls) == {"rows_forward": 1, "rows_backward": 1}

    def test_results_outlive_what_they_came_from(self, tf):
        """Tensors adopt the memory that the kernels wrote."""
        kept = [xent.value_and_grad(xent.sparse_ce)(tf.constant(X), Y, axis=1)[1] for _ in range(20)]
        for grad in kept:
            close(grad, oracle.sparse_ce(X, Y, axis=1).logits)
