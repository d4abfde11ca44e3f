"""xent on arrays that are spread over four devices. Run by test_jax.py, in a process that has so many."""

import re
import sys
import unittest.mock
from functools import partial

import cases
import jax
import jax.numpy as jnp
import numpy as np
import sharded_jax_classes
import xent
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from xent.backends.jax import partition

cases.FULL = "--full" in sys.argv
rng = np.random.default_rng(0)
x = rng.normal(size=(8, 12)).astype("f")
y = rng.integers(0, 12, 8)
y[3] = -7


def loss(x, y):
    return xent.sparse_ce(x, y, ignore_index=-7, label_smoothing=0.1, z_loss=0.1)


f = jax.value_and_grad(loss)
at_once = xent.value_and_grad(xent.sparse_ce)
want = f(jnp.asarray(x), jnp.asarray(y))


def check(got, want=want):
    jax.tree.map(lambda g, w: np.testing.assert_allclose(g, w, rtol=3e-6, atol=1e-7), got, want)


def ran(f, *args):
    """What the compiled function returns, and its program; both of one compilation."""
    program = jax.jit(f).lower(*args).compile()
    return program(*args), re.sub("metadata={.*}", "", program.as_text())


def calls(text):
    return len(re.findall('custom_call_target="xent', text))


def reference(f, arrays):
    """In float64, where what comes before the loss is as good as exact."""
    with jax.enable_x64(True):
        wide = [k.astype("d" if k.dtype == "float32" else "int32") for k in arrays]
        return cases.quick(f)(*wide)


native = calls(ran(f, jnp.asarray(x), jnp.asarray(y))[1]) > 0

# arrays that are spread over devices, by rows, classes, both: kernels on each one's part; nobody has all logits
mesh = jax.make_mesh((2, 2), ("a", "b"), axis_types=(AxisType.Auto, AxisType.Auto))
eagerly = f, partial(at_once, ignore_index=-7, label_smoothing=0.1, z_loss=0.1)
for spec, rows, others in (
    (P(("a", "b")), P(("a", "b")), eagerly[:1]),
    (P(None, "a"), P(), eagerly[1:]),
    (P("a", "b"), P("a"), eagerly),
):
    here, labels = (jax.device_put(k, NamedSharding(mesh, s)) for k, s in ((x, spec), (y, rows)))
    compiled, text = ran(f, here, labels)
    for value, grad in (compiled, *(g(here, labels) for g in others)):
        check((value, grad))
        assert grad.sharding.is_equivalent_to(here.sharding, 2), grad.sharding
    assert ("xent_rows" in text) == native
    assert "f32[8,12]" not in text
    assert "all-gather(" not in text or spec[1]
    channels = re.findall(r"channel_id=(\d+)", text)
    assert len(set(channels)) == len(channels)  # collectives of one channel might meet


# every loss after a product, and on rows that are not split evenly
soft, cut, weight = rng.dirichlet(np.ones(12), 8).astype("f"), P(("a", "b")), rng.normal(size=(12, 5)).astype("f")
h, cube = rng.normal(size=(8, 5)).astype("f"), rng.normal(size=(2, 4, 12)).astype("f")
OF_ROWS = (
    (lambda x, y: loss(x * 1.7, y), (x, y), (cut, cut)),
    (lambda x, t: xent.softmax_ce(x * 1.7, t, label_smoothing=0.1), (x, soft), (cut, cut)),
    (lambda x, t: xent.sigmoid_ce(x * 1.7, t, reduce="none").sum(), (x, soft), (cut, cut)),
    (lambda x, t: xent.sigmoid_ce(x * 1.7, t, sample_weight=t), (x, soft), (cut, cut)),
    (lambda h, w, y: xent.linear_ce(h * 1.7, w, y, ignore_index=-7), (h, weight, y), (cut, P(), cut)),
    (lambda x, y: xent.sparse_ce(x[:, :-1], y[:, 1:]), (cube, np.abs(y.reshape(2, 4))), (P("a", "b"), P("a", "b"))),
    (lambda x, t: xent.sigmoid_ce(x[:, :-1], t[:, 1:]), (cube, soft.reshape(2, 4, 12)), (P("a", "b"), P("a", "b"))),
)
for g, arrays, specs in OF_ROWS:
    given = [jax.device_put(k, NamedSharding(mesh, s)) for k, s in zip(arrays, specs, strict=True)]
    g = jax.value_and_grad(g)
    got, text = ran(g, *given)
    check(got, reference(g, arrays))
    assert ("xent_" in text) == native
    assert "f32[2,12]" in text or "f32[1,2,12]" in text
    assert "all-gather(" not in text

# single elements, each with a loss of its own
each = jax.vmap(jax.vmap(jax.grad(xent.sigmoid_ce, (0, 1))))
uneven = jax.jit(lambda x, t: each(x[:-1], t[:-1]))
derivatives = (1 / (1 + np.exp(-x)) - soft)[:-1], -x[:-1]
check(uneven(*(jax.device_put(k, NamedSharding(mesh, cut)) for k in (x, soft))), derivatives)

# in 64 bits, which the compiler's threads do not know of; JAX's own transfer of int64 may lose them, too
with jax.enable_x64(True):
    for spec in (cut, P("a", "b")):
        here = jax.block_until_ready(jax.device_put(x.astype("d"), NamedSharding(mesh, spec)))
        value, grad = jax.jit(f)(here, y.astype("int32"))
        assert value.dtype == grad.dtype == "float64"
        check((value, grad), want)

# a JAX that cannot partition calls
with unittest.mock.patch.object(partition, "custom_partitioning", None):
    given = [jax.device_put(k, NamedSharding(mesh, cut)) for k in (x, y)]
    got, text = ran(lambda x, y: f(x, y), *given)
    check(got)
    assert calls(text) == 0

# whole arrays on one device, wherever it is
here = jax.device_put(x, jax.devices()[2])
check(jax.jit(f)(here, jax.device_put(y, jax.devices()[2])))


# shards by hand: kernels, on each
def local(x, y):
    return xent.sparse_ce(x, y, ignore_index=-7, reduce="none", label_smoothing=0.1)


def whole(x, y):
    return jax.lax.psum(xent.sparse_ce(x, y, ignore_index=-7, reduce="sum", label_smoothing=0.1), ("a", "b"))


every = P(("a", "b"))
mapped = jax.shard_map(local, mesh=mesh, in_specs=(every, every), out_specs=every)
summed = jax.shard_map(whole, mesh=mesh, in_specs=(every, every), out_specs=P())
partly = jax.shard_map(local, mesh=mesh, in_specs=(P("a"), P("a")), out_specs=P("a"), axis_names={"a"})
sum_of = jax.value_and_grad(lambda x, y: local(x, y).sum())
want = sum_of(jnp.asarray(x), jnp.asarray(y))
for g, kernels in ((lambda *k: mapped(*k).sum(), native), (lambda *k: partly(*k).sum(), False), (summed, native)):
    got, text = ran(jax.value_and_grad(g), x, y)
    check(got, want)
    assert (calls(text) > 0) == kernels
check(jax.value_and_grad(summed)(jnp.asarray(x), jnp.asarray(y)), want)

# logits that every shard has, labels that each has its own of: their gradients add up
shared = jax.shard_map(whole, mesh=mesh, in_specs=(P(), every), out_specs=P())
four = np.concatenate([y, y, y, y])
check(jax.jit(jax.grad(shared))(x, four), 4 * want[1])

values, grads = jax.pmap(jax.value_and_grad(lambda x, y: local(x, y).sum()))(x.reshape(4, 2, 12), y.reshape(4, 2))
check((np.sum(values), np.reshape(grads, x.shape)), want)

sharded_jax_classes.check(native)
