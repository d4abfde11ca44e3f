"""xent on arrays that are spread over four devices. Run by test_jax.py, in a process that has so many."""

import re
import sys
import unittest.mock

import cases
import jax
import jax.numpy as jnp
import numpy as np
import sharded_jax_classes
import xent
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from xent.backends.jax import partition

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


def program(f, *args):
    return re.sub("metadata={.*}", "", jax.jit(f).lower(*args).compile().as_text())


def calls(f, *args):
    return len(re.findall('custom_call_target="xent', program(f, *args)))


native = calls(f, jnp.asarray(x), jnp.asarray(y)) > 0

# arrays that are spread over devices, by rows, classes, both: kernels on each one's part; nobody has all logits
mesh = jax.make_mesh((2, 2), ("a", "b"), axis_types=(AxisType.Auto, AxisType.Auto))
for spec, rows in ((P(("a", "b")), P(("a", "b"))), (P(None, "a"), P()), (P("a", "b"), P("a"))):
    here, labels = (jax.device_put(k, NamedSharding(mesh, s)) for k, s in ((x, spec), (y, rows)))
    for how in (f, jax.jit(f), lambda x, y: at_once(x, y, ignore_index=-7, label_smoothing=0.1, z_loss=0.1)):
        value, grad = how(here, labels)
        check((value, grad))
        assert grad.sharding.is_equivalent_to(here.sharding, 2), grad.sharding
    text = program(f, here, labels)
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
    check(jax.jit(g)(*given), g(*map(jnp.asarray, arrays)))
    text = program(g, *given)
    assert ("xent_" in text) == native
    assert "f32[2,12]" in text or "f32[1,2,12]" in text
    assert "all-gather(" not in text

# single elements, each with a loss of its own
each = jax.vmap(jax.vmap(jax.grad(xent.sigmoid_ce, (0, 1))))
uneven = jax.jit(lambda x, t: each(x[:-1], t[:-1]))
check(uneven(*(jax.device_put(k, NamedSharding(mesh, cut)) for k in (x, soft))), each(x[:-1], soft[:-1]))

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
    check(jax.jit(lambda x, y: f(x, y))(*given))
    assert calls(lambda x, y: f(x, y), *given) == 0

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
for g in (mapped, partly):
    check(jax.jit(jax.value_and_grad(lambda x, y, g=g: g(x, y).sum()))(x, y), want)
check(jax.jit(jax.value_and_grad(summed))(x, y), want)
check(jax.value_and_grad(summed)(jnp.asarray(x), jnp.asarray(y)), want)
assert (calls(summed, x, y) > 0) == native
assert calls(partly, x, y) == 0

# logits that every shard has, labels that each has its own of: their gradients add up
shared = jax.shard_map(whole, mesh=mesh, in_specs=(P(), every), out_specs=P())
four = np.concatenate([y, y, y, y])
check(jax.jit(jax.grad(shared))(x, four), 4 * want[1])

values, grads = jax.pmap(jax.value_and_grad(lambda x, y: local(x, y).sum()))(x.reshape(4, 2, 12), y.reshape(4, 2))
check((np.sum(values), np.reshape(grads, x.shape)), want)

cases.FULL = "--full" in sys.argv
sharded_jax_classes.check(native)
