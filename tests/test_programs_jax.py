"""The programs of JAX's users (programs_jax.py) around every loss, against the oracle.

test_compiled.py runs all of this with the kernels, and with --full once more without them.
"""

import functools

import numpy as np
import pytest

jax = pytest.importorskip("jax", reason="jax is not installed")
jnp = jax.numpy
import xent  # noqa: E402
from cases import quick  # noqa: E402
from jax.sharding import AxisType, NamedSharding  # noqa: E402
from programs import CLASS_WEIGHT, HIDDEN, IDS, LOGITS, PROBLEMS, WEIGHT, assert_close, cover, name  # noqa: E402
from programs_jax import (  # noqa: E402
    BY_NAME,
    CLASSES,
    EACH,
    GIVEN_BY_THE_PROGRAM,
    PROGRAMS,
    SPLIT,
    SUM,
    by_rows,
    exported,
    loss,
    mesh,
    over,
    put,
    replicated,
    shard_mapped_in_part,
    split_by_rows,
)

pytestmark = [pytest.mark.backend("jax"), pytest.mark.compiled]


def test_there_are_two_devices():
    """Without a second one, nothing below would be split."""
    assert len(jax.devices()) == 2


@pytest.mark.parametrize(("program", "problem"), cover(PROGRAMS, each=1))
def test_program(program, problem):
    asked = problem._replace(options={**problem.options, **PROGRAMS[program]})
    inside = problem if program in GIVEN_BY_THE_PROGRAM else asked
    value, grad = program(loss(inside), problem)
    want, slope = asked.truth()
    assert_close(value, want, asked, f"{program.__name__}: value")
    assert_close(grad, slope, asked, f"{program.__name__}: gradient")


# ---- a product before the loss, which XLA computes again, in another precision, inside the loss


STEPS = {
    "temperature": lambda x: x / 0.7,
    "scale": lambda x: x * 1.7,
    "softcap": lambda x: 30 * jnp.tanh(x / 30),
    "cosine": lambda x: 16 * x * jax.lax.rsqrt(jnp.sum(x * x, -1, keepdims=True)),
}
PLACES = (replicated, split_by_rows, shard_mapped_in_part, exported)


def after(step, problem):
    """The loss and its gradient after a step, in float64."""
    x = np.asarray(problem.x, np.float64)
    with jax.enable_x64(True):
        value, slope = problem.truth(np.asarray(step_and_pull(step)[0](x)))
        return value, np.asarray(step_and_pull(step)[1](x, slope))


@functools.cache
def step_and_pull(step):
    return quick(step), quick(lambda x, slope: jax.vjp(step, x)[1](slope)[0])


def check_after(step, program, problem):
    asked = problem._replace(options={**problem.options, **PROGRAMS[program]})
    f = loss(asked)
    value, grad = program(lambda x, *rest: f(STEPS[step](x), *rest), asked)
    assert value >= 0
    want, slope = after(STEPS[step], asked)
    assert_close(value, want, asked, f"{step} and {program.__name__}: value")
    assert_close(grad, slope, asked, f"{step} and {program.__name__}: gradient")


@pytest.mark.parametrize(("step", "program"), cover(STEPS, PLACES))
def test_product_before_confident_labels(step, program):
    check_after(step, program, BY_NAME["sparse_leading"])


@pytest.mark.parametrize("problem", [problem for problem in PROBLEMS if problem.x is LOGITS], ids=name)
def test_product_before_any_loss(problem):
    check_after("temperature", replicated, problem)


@pytest.mark.parametrize("step", STEPS)
def test_product_before_a_vmap_over_class_weight(step):
    """One vector of them is all that a kernel takes, so that vmap runs the formulas, on one device too."""
    tables = np.stack([CLASS_WEIGHT, CLASS_WEIGHT[::-1]])
    x, ids = jnp.asarray(LOGITS), jnp.asarray(IDS)

    def f(x, table):
        return xent.sparse_ce(STEPS[step](x), ids, class_weight=table, label_smoothing=0.1)

    values, grads = jax.jit(jax.vmap(jax.value_and_grad(f), (None, 0)))(x, tables)
    for table, value, grad in zip(tables, values, grads, strict=True):
        problem = BY_NAME["sparse"]._replace(options={"class_weight": table, "label_smoothing": 0.1})
        want, slope = after(STEPS[step], problem)
        assert_close(value, want, problem, f"{step}: value")
        assert_close(grad, slope, problem, f"{step}: gradient")


# ---- meshes: what differs between devices and what does not


def both_halves(f, *args):
    """The sum over both halves of the rows of all arguments but the first."""
    return sum(f(args[0], *(k.reshape(2, -1, *k.shape[1:])[i] for k in args[1:])) for i in range(2))


def close(got, want):
    jax.tree.map(lambda g, w: np.testing.assert_allclose(g, w, rtol=2e-5, atol=2e-6), got, want)


@pytest.mark.parametrize(
    ("reduce", "problem"), cover(["sum", "none"], [p for p in PROBLEMS if p.loss != "linear_ce"], each=4)
)
def test_logits_of_all_devices_beside_labels_of_each(reduce, problem):
    """The gradients of all devices add up, in JAX's transposition."""
    f = loss(problem._replace(options={**problem.options, "reduce": reduce}))
    x, labels = jnp.asarray(problem.x[:2]), jnp.asarray(problem.rest[0])
    g = jax.value_and_grad(lambda x, labels: jnp.sum(f(x, labels)))

    def local(x, labels):
        value, grad = g(x, labels)
        return jax.lax.psum(value, "devices"), grad

    got = jax.jit(jax.shard_map(local, mesh=mesh(), in_specs=(EACH, SPLIT), out_specs=(EACH, EACH)))(x, labels)
    close(got, quick(jax.value_and_grad(lambda x: both_halves(lambda *args: jnp.sum(f(*args)), x, labels)))(x))


HEADS = {
    "shared_weight": (SPLIT, EACH, EACH),
    "weight_of_each": (SPLIT, SPLIT, SPLIT),
    "shared_hidden": (EACH, SPLIT, EACH),
    "bias_of_each": (EACH, EACH, SPLIT),
}
HEAD_OPTIONS = {
    "all": {"reduce": "none", "softcap": 3.0, "label_smoothing": 0.1, "z_loss": 0.1, "chunk_rows": 1},
    "stats": {"reduce": "sum", "stats": True},
}


@pytest.mark.parametrize(
    ("head", "options"),
    [("shared_weight", options) for options in HEAD_OPTIONS] + [(head, "all") for head in list(HEADS)[1:]],
)
def test_head_over_devices(head, options):
    """linear_ce and its three gradients, each argument being every device's or one for each device."""
    arrays = [jnp.stack([k, 2 * k]) for k in (HIDDEN[:2], WEIGHT, CLASS_WEIGHT)]
    specs = HEADS[head]
    given = [k if spec == SPLIT else k[0] for k, spec in zip(arrays, specs, strict=True)]

    def f(h, w, b):
        found = xent.linear_ce(h, w, jnp.asarray(IDS[:2]), bias=b, **HEAD_OPTIONS[options])
        return jnp.sum(found[0] + jnp.sum(found[1].nll * found[1].correct) if isinstance(found, tuple) else found)

    def local(*args):
        h, w, b = args
        value, grads = jax.value_and_grad(
            lambda *args: f(*(k[0] if spec == SPLIT else k for k, spec in zip(args, specs, strict=True))), (0, 1, 2)
        )(h, w, b)
        return jax.lax.psum(value, "devices"), grads

    def whole(*args):
        return sum(f(*(k[i] if spec == SPLIT else k for k, spec in zip(args, specs, strict=True))) for i in range(2))

    got = jax.jit(jax.shard_map(local, mesh=mesh(), in_specs=specs, out_specs=(EACH, specs)))(*given)
    close(got, jax.value_and_grad(whole, (0, 1, 2))(*given))


def test_explicit_sharding_of_what_is_not_a_scalar():
    """Every row's loss, statistics and xent's own gradient are split as the logits are."""
    devices = mesh(AxisType.Explicit)
    x, ids = (jax.device_put(k, NamedSharding(devices, SPLIT)) for k in (LOGITS, IDS))
    each = jax.jit(lambda x: xent.sparse_ce(x, ids, reduce="none"))(x)
    _, stats = jax.jit(lambda x: xent.sparse_ce(x, ids, stats=True))(x)
    _, grad = jax.jit(lambda x: xent.value_and_grad(xent.sparse_ce)(x, ids))(x)
    columns = jax.device_put(LOGITS.T, NamedSharding(devices, CLASSES))
    by_axis = jax.jit(lambda x: xent.sparse_ce(x, ids, axis=0, reduce="none"))(columns)
    for result in (each, *stats, grad, by_axis):
        assert jax.typeof(result).sharding.spec[0] == "devices"
    np.testing.assert_allclose(each, by_axis, rtol=2e-6)


@pytest.mark.parametrize("problem", ["sparse_class_weight", "linear"])
def test_explicit_sharding_without_jit(problem):
    problem, devices = BY_NAME[problem], mesh(AxisType.Explicit)
    with jax.set_mesh(devices):
        got = jax.value_and_grad(loss(problem))(*put(problem, by_rows(problem), devices))
    close(got, problem.truth())


def test_explicit_axes_beside_manual_ones():
    """shard_map over one axis of a mesh whose other one is sharded explicitly."""
    devices = mesh(AxisType.Explicit, (2, 1), ("devices", "model"))
    problem = BY_NAME["linear"]._replace(options=SUM)
    with jax.set_mesh(devices):
        got = over(loss(problem), problem, devices, axis_names={"devices"})
    close(got, problem.truth())


# ---- an open batch, and ids of every kind


def test_export_of_a_head_with_any_number_of_rows():
    """One program for fewer rows than a chunk and for chunks that the rows do not fill; weight's gradient too."""

    def f(h, w, ids):
        return jax.value_and_grad(
            lambda h, w: xent.linear_ce(h, w, ids, chunk_rows=4, label_smoothing=0.1, softcap=3.0), (0, 1)
        )(h, w)

    b, t = jax.export.symbolic_shape("b, t")
    shapes = (b, t, HIDDEN.shape[1]), WEIGHT.shape, (b, t)
    kinds = HIDDEN.dtype, WEIGHT.dtype, "int32"
    open_ended = jax.export.export(jax.jit(f))(*map(jax.ShapeDtypeStruct, shapes, kinds))
    rng = np.random.default_rng(1)
    reference = quick(f)
    for rows in ((1, 2), (3, 5)):
        h = rng.normal(size=(*rows, HIDDEN.shape[1])).astype("f")
        ids = rng.integers(0, len(WEIGHT), rows).astype("int32")
        close(open_ended.call(h, WEIGHT, ids), reference(h, WEIGHT, ids))


def test_export_of_shifted_logits():
    """JAX cannot prove that open lengths less 1 are above 0, and need not."""

    def f(x, ids):
        return jax.value_and_grad(lambda x: xent.sparse_ce(x[:, :-1], ids[:, 1:]))(x)

    b, t = jax.export.symbolic_shape("b, t")
    shapes = jax.ShapeDtypeStruct((b, t, 64), "float32"), jax.ShapeDtypeStruct((b, t), "int32")
    x, ids = LOGITS.reshape(2, 2, 64), IDS.reshape(2, 2).astype("int32")
    close(jax.export.export(jax.jit(f))(*shapes).call(x, ids), quick(f)(x, ids))


@pytest.mark.parametrize("ignored", [2**31, 2**32 - 1, 2**32 - 100])
def test_unsigned_ids_that_32_bits_cannot_hold_signed(ignored):
    """With 64 bits off: an ignored id above 2**31, and another one, which is no class."""
    ids = np.array([1, ignored, 0, 2], np.uint32)
    want = xent.sparse_ce(LOGITS, ids, ignore_index=ignored, reduce="none")
    for f in (jax.jit(xent.sparse_ce, static_argnames=("ignore_index", "reduce")), xent.sparse_ce):
        got = f(jnp.asarray(LOGITS), jnp.asarray(ids), ignore_index=ignored, reduce="none")
        np.testing.assert_allclose(got, want, rtol=2e-6)
    nan = xent.sparse_ce(jnp.asarray(LOGITS), jnp.asarray(ids), invalid="nan", reduce="none")
    np.testing.assert_array_equal(np.isnan(nan), ids == ignored)


def test_numpy_arrays_of_the_other_byte_order():
    """Beside JAX's arrays, which have only the machine's."""

    def foreign(k):
        return k.astype(k.dtype.newbyteorder())

    def both(problem, x):
        options = {key: foreign(k) if isinstance(k, np.ndarray) else k for key, k in problem.options.items()}
        return jax.value_and_grad(loss(problem._replace(options=options)))(x, *map(foreign, problem.rest))

    results = jax.jit(lambda *xs: list(map(both, PROBLEMS, xs)))(*(problem.x for problem in PROBLEMS))
    for problem, (value, grad) in zip(PROBLEMS, results, strict=True):
        want, slope = problem.truth()
        assert_close(value, want, problem, "foreign byte order: value")
        assert_close(grad, slope, problem, "foreign byte order: gradient")
    bias = xent.linear_ce(jnp.asarray(HIDDEN), WEIGHT, IDS, bias=foreign(CLASS_WEIGHT))
    np.testing.assert_array_equal(bias, xent.linear_ce(jnp.asarray(HIDDEN), WEIGHT, IDS, bias=CLASS_WEIGHT))


# ---- a training loop


def test_training_takes_the_steps_of_the_reference():
    """A linear classifier under lax.scan, in three steps of gradient descent with momentum."""
    x, ids = jnp.asarray(HIDDEN), jnp.asarray(IDS)

    def train(cross_entropy):
        def step(state, _):
            weight, velocity = state
            value, grad = jax.value_and_grad(lambda w: cross_entropy(x @ w.T, ids))(weight)
            velocity = 0.9 * velocity - 0.1 * grad
            return (weight + velocity, velocity), value

        start = jnp.asarray(WEIGHT), jnp.zeros(WEIGHT.shape)
        return jax.jit(lambda start: jax.lax.scan(step, start, None, 3))(start)

    def reference(x, ids):
        return -jnp.take_along_axis(jax.nn.log_softmax(x), ids[:, None], -1).mean()

    close(train(functools.partial(xent.sparse_ce, invalid="nan")), train(reference))
