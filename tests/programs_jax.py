"""Programs as users of JAX write them: (a loss of x and more arguments, the problem) -> value and gradient in x.

They want two devices (XLA_FLAGS=--xla_force_host_platform_device_count=2). Where the kernels stay out, as in half of a
mesh, XLA compiles xent's formulas together with what comes before the loss.
"""

import jax
import jax.numpy as jnp
import xent
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from programs import PROBLEMS

EACH, SPLIT = PartitionSpec(), PartitionSpec("devices")
CLASSES = PartitionSpec(None, "devices")
BY_NAME = {problem.name: problem for problem in PROBLEMS}


def loss(problem):
    return lambda x, *rest, **more: getattr(xent, problem.loss)(x, *rest, **problem.options, **more)


def arguments(problem):
    return tuple(map(jnp.asarray, (problem.x, *problem.rest)))


def by_rows(problem):
    """How the arguments are split by examples: all but the weight of a linear layer."""
    return (SPLIT, *(EACH for _ in problem.rest[:-1]), SPLIT)


def by_classes(problem):
    if problem.loss == "linear_ce":
        return EACH, SPLIT, EACH
    return CLASSES, EACH if problem.loss == "sparse_ce" else CLASSES


def jitted(f, problem):
    return jax.jit(jax.value_and_grad(f))(*arguments(problem))


def eager(f, problem):
    return jax.value_and_grad(f)(*arguments(problem))


def numpy_arguments(f, problem):
    return jax.jit(jax.value_and_grad(f))(problem.x, *problem.rest)


def closed_over_labels(f, problem):
    return jax.jit(jax.value_and_grad(lambda x: f(x, *problem.rest)))(jnp.asarray(problem.x))


def static_options(f, problem):
    step = jax.jit(lambda *args, **options: jax.value_and_grad(f)(*args, **options), static_argnames="reduce")
    return step(*arguments(problem), reduce="mean_all")


def forbidden_promotion(f, problem):
    with jax.numpy_rank_promotion("raise"):
        return jitted(f, problem)


def donated(f, problem):
    x, *rest = arguments(problem)
    return jax.jit(jax.value_and_grad(f), donate_argnums=0)(x + 0, *rest)


def checkpointed(f, problem):
    return jitted(jax.checkpoint(f), problem)


def linearized(f, problem):
    x, *rest = arguments(problem)
    value, push = jax.linearize(lambda x: f(x, *rest), x)
    return value, jax.linear_transpose(push, x)(jnp.ones_like(value))[0]


def own_derivative(f, problem):
    """A custom_vjp around the loss, as gradient scaling does it."""

    @jax.custom_vjp
    def g(x, *rest):
        return f(x, *rest)

    g.defvjp(lambda *args: jax.vjp(f, *args), lambda pull, cotangent: pull(cotangent))
    return jitted(g, problem)


def at_once(f, problem):
    return jax.jit(xent.value_and_grad(f))(*arguments(problem))


def in_a_branch(f, problem):
    return jitted(lambda x, *rest: jax.lax.cond(x[0, 0] < 1e9, f, lambda x, *_: x.sum(), x, *rest), problem)


def halves(problem):
    """The examples in two batches, and how to call a function of all arguments with those of a batch."""
    x, *others, labels = arguments(problem)
    batches = x.reshape(2, -1, *x.shape[1:]), labels.reshape(2, -1, *labels.shape[1:])
    return batches, lambda f, batch: f(batch[0], *others, batch[1])


def joined(problem, values, grads):
    return jnp.sum(values), jnp.reshape(grads, problem.x.shape)


def scanned(f, problem):
    batches, call = halves(problem)

    def step(total, batch):
        value, grad = call(jax.value_and_grad(f), batch)
        return total + value, grad

    total, grads = jax.jit(lambda batches: jax.lax.scan(step, 0.0, batches))(batches)
    return joined(problem, total, grads)


def mapped(f, problem):
    batches, call = halves(problem)
    return joined(problem, *jax.lax.map(lambda batch: call(jax.value_and_grad(f), batch), batches))


def accumulated(f, problem):
    """Micro-batches with the denominator of all of them."""
    batches, call = halves(problem)
    step = jax.jit(lambda batch, denom: call(jax.value_and_grad(lambda *args: f(*args, denom=denom)), batch))
    values, grads = zip(*(step(jax.tree.map(lambda k, i=i: k[i], batches), 8.0) for i in range(2)), strict=True)
    return joined(problem, jnp.stack(values), jnp.stack(grads))


def examples(problem):
    """The axes of vmap that gives each example to a call of its own."""
    return (0, *(None for _ in problem.rest[:-1]), 0)


def single_examples(f, problem):
    return joined(problem, *jax.jit(jax.vmap(jax.value_and_grad(f), examples(problem)))(*arguments(problem)))


def vmapped(f, problem):
    return jitted(lambda *args: jax.vmap(f, examples(problem))(*args).sum(), problem)


def named_axis(f, problem):
    def g(*args):
        return jax.lax.psum(f(*args), "examples")

    return jitted(lambda *args: jax.vmap(g, examples(problem), axis_name="examples")(*args)[0], problem)


def on_each_device(f, problem):
    batches, call = halves(problem)
    return joined(problem, *jax.pmap(lambda *batch: call(jax.value_and_grad(f), batch))(*batches))


def mesh(kind=AxisType.Auto, shape=(2,), names=("devices",)):
    return jax.make_mesh(shape, names, axis_types=(kind,) * len(shape))


def put(problem, specs, devices):
    return [jax.device_put(k, NamedSharding(devices, spec)) for k, spec in zip(arguments(problem), specs, strict=True)]


def placed(f, problem, specs, kind=AxisType.Auto):
    """Arrays that are spread over a mesh; the compiler splits the loss, and the gradient is where the logits are."""
    args = put(problem, specs, mesh(kind))
    value, grad = jax.jit(jax.value_and_grad(f))(*args)
    assert grad.sharding.is_equivalent_to(args[0].sharding, grad.ndim), grad.sharding
    return value, grad


def replicated(f, problem):
    return placed(f, problem, [EACH] * (1 + len(problem.rest)))


def split_by_rows(f, problem):
    return placed(f, problem, by_rows(problem))


def split_by_classes(f, problem):
    return placed(f, problem, by_classes(problem))


def explicit_rows(f, problem):
    return placed(f, problem, by_rows(problem), AxisType.Explicit)


def explicit_classes(f, problem):
    return placed(f, problem, by_classes(problem), AxisType.Explicit)


def over(f, problem, devices, **options):
    specs = by_rows(problem)

    def local(*args):
        value, grad = jax.value_and_grad(f)(*args)
        return jax.lax.psum(value, "devices"), grad

    return jax.jit(jax.shard_map(local, mesh=devices, in_specs=specs, out_specs=(EACH, SPLIT), **options))(
        *arguments(problem)
    )


def shard_mapped(f, problem):
    return over(f, problem, mesh())


def shard_mapped_unchecked(f, problem):
    return over(f, problem, mesh(), check_vma=False)


def shard_mapped_in_part(f, problem):
    """Over one of two axes of a mesh, which keeps the kernels out."""
    return over(f, problem, mesh(shape=(2, 1), names=("devices", "model")), axis_names={"devices"})


def exported(f, problem):
    args = arguments(problem)
    return jax.export.export(jax.jit(jax.value_and_grad(f)))(*args).call(*args)


def exported_open(f, problem):
    """The number of examples is left open."""
    (n,) = jax.export.symbolic_shape("n")
    shapes = [
        jax.ShapeDtypeStruct((n, *k.shape[1:]) if spec == SPLIT else k.shape, k.dtype)
        for k, spec in zip(arguments(problem), by_rows(problem), strict=True)
    ]
    return jax.export.export(jax.jit(jax.value_and_grad(f)))(*shapes).call(*arguments(problem))


SUM = {"reduce": "sum"}
PROGRAMS = {
    jitted: {},
    eager: {},
    numpy_arguments: {},
    closed_over_labels: {},
    static_options: {"reduce": "mean_all"},
    forbidden_promotion: {},
    donated: {},
    checkpointed: {},
    linearized: {},
    own_derivative: {},
    at_once: {},
    in_a_branch: {},
    scanned: SUM,
    mapped: SUM,
    accumulated: {"denom": 8.0},
    single_examples: SUM,
    vmapped: SUM,
    named_axis: SUM,
    on_each_device: SUM,
    replicated: {},
    split_by_rows: {},
    split_by_classes: {},
    explicit_rows: {},
    explicit_classes: {},
    shard_mapped: SUM,
    shard_mapped_unchecked: SUM,
    shard_mapped_in_part: SUM,
    exported: {},
    exported_open: {},
}
GIVEN_BY_THE_PROGRAM = {static_options: "reduce", accumulated: "denom"}
