"""JAX's exported functions with a loss in them. Knows nothing of xent."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp


def save(loss, x, rest, path):
    exported = jax.export.export(jax.jit(loss))(*map(jnp.asarray, (x, *rest)))
    path.write_bytes(exported.serialize(vjp_order=1))


def load(path, x, rest):
    exported = jax.export.deserialize(path.read_bytes())
    return jax.value_and_grad(exported.call)(*map(jnp.asarray, (x, *rest)))


FORMATS = {"export": SimpleNamespace(save=save, load=load)}
