"""Checks of sharded_jax.py: classes that are split over devices, by `sharded=` and by the compiler."""

import itertools
import re
from functools import partial
from pathlib import Path

import cases
import jax
import jax.numpy as jnp
import linear_cases
import numpy as np
import pytest
import xent
from cases import quick
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from xent.verify import regimes
from xent.verify.tolerance import errors

rng = np.random.default_rng(0)
ROWS, CLASSES, FEATURES = 4, 12, 6
X = rng.normal(size=(ROWS, CLASSES)).astype("f")
T = rng.dirichlet(np.ones(CLASSES), ROWS).astype("f")
Y = np.array([0, 11, -100, 5])
H = rng.normal(size=(ROWS, FEATURES)).astype("f")
V = rng.normal(size=(CLASSES, FEATURES)).astype("f")
W = np.array([0.5, 1.0, 2.0, 0.0], "f")
U = rng.uniform(0.5, 2, CLASSES).astype("f")
SOME = {"label_smoothing": 0.1, "z_loss": 0.01, "class_weight": U}
OF_IDS = SOME | {"ignore_index": -100}
OF_X, OF_V = P(None, "classes"), P("classes")


def devices(*counts, names=("rows", "classes"), kind=AxisType.Auto):
    names = names[-len(counts) :]
    return jax.make_mesh(counts, names, (kind,) * len(counts), devices=jax.devices()[: int(np.prod(counts))])


def mapped(f, count, inputs, outputs, **options):
    return jax.shard_map(f, mesh=devices(count), in_specs=inputs, out_specs=outputs, **options)


def close(got, want):
    jax.tree.map(lambda g, w: np.testing.assert_allclose(g, w, rtol=2e-6, atol=2e-7), got, want)


# ---- options and accuracy


def derivative(f, count, inputs, at, inside, jit=quick):
    """Value and derivative of f's sum in its first arguments, taken inside of the shard_map or outside of it."""
    given = inputs[:at] if at > 1 else inputs[0]
    places = tuple(range(at)) if at > 1 else 0
    both = partial(jax.value_and_grad, argnums=places, has_aux=True)

    def summed(*arrays):
        value = f(*arrays)
        return value.sum(), value

    if inside:
        g = mapped(both(summed), count, inputs, ((P(), P()), given))
    else:
        g = both(mapped(summed, count, inputs, (P(), P())))

    def run(*arrays):
        (_, value), grads = jit(g)(*arrays)
        return value, grads

    return run


def options_of_logits():
    """A class on each of three devices, the class axis in the middle. Each option and reduction, not each pair."""
    for loss in ("sparse_ce", "softmax_ce"):
        others = [case for case in cases.singles(loss, "none", "mean_all") if case.names == ("sample_weight",)]
        for turn, case in enumerate(cases.few(loss) + others):
            x, y = cases.arguments(loss, "float32", case.options)
            want = cases.truth(loss, x, y, cases.held(case.options, "float32"))
            f = partial(getattr(xent, loss), sharded="classes", **case.options)
            soft = loss == "softmax_ce"
            g = derivative(f, 3, (OF_X, OF_X if soft else P()), 1, turn % 2)
            value, grad = g(x.astype("f"), y.astype("f") if soft else y)
            cases.assert_close(np.asarray(value), want.loss, "float32", f"{case} loss", result=True)
            cases.assert_close(np.asarray(grad), want.logits, "float32", f"{case} gradient")


def options_of_a_head():
    """In chunks of five rows, of 16 bits too. What follows the loop is the same as for logits."""
    every = linear_cases.matrix(cases.combinations(linear_cases.OPTIONS) if cases.FULL else linear_cases.FEW)
    few = linear_cases.matrix(linear_cases.FEW if cases.FULL else linear_cases.FEW[:1])
    for turn, (case, dtype) in enumerate([*((k, "float32") for k in every), *((k, "bfloat16") for k in few)]):
        h, weight, y = linear_cases.arguments(dtype, case.options)
        want = xent.oracle.linear_ce(h, weight, y, **linear_cases.held(case.options, dtype))
        options = {name: value for name, value in case.options.items() if name != "bias"}
        biased = "bias" in case.options

        def f(h, weight, bias, y, options=options, biased=biased):
            bias = bias if biased else None
            return xent.linear_ce(h, weight, y, bias=bias, chunk_rows=5, sharded="classes", **options)

        g = derivative(f, 3, (P(), OF_V, OF_V, P()), 3, turn % 2)
        value, grads = g(*(jnp.asarray(k, dtype) for k in (h, weight, linear_cases.BIAS)), y)
        linear_cases.assert_close(value, want.loss, linear_cases.LOSS_BARS[dtype], f"{case.name} {dtype}")
        wants = want.hidden, want.weight, want.bias if biased else np.zeros(len(weight))
        for got, wanted in zip(grads, wants, strict=True):
            linear_cases.assert_close(got.astype("f"), wanted, linear_cases.BARS[dtype], f"{case.name} {dtype}")


def hard_regimes():
    """Leads to 80, offsets to 1e8, -inf, ties: as accurate as of whole rows."""
    for loss, dtype, classes, count in (
        ("sparse_ce", "float32", 10, 2),
        ("softmax_ce", "float32", 10, 2),
        ("sparse_ce", "float32", 1000, 4),
        ("sparse_ce", "bfloat16", 10, 2),
    ):
        batch = regimes.batch(loss, dtype, classes)
        soft = loss == "softmax_ce"
        f = partial(getattr(xent, loss), reduce="none", sharded="classes")
        g = derivative(f, count, (OF_X, OF_X if soft else P()), 1, inside=True, jit=jax.jit)
        value, grad = g(jnp.asarray(batch.logits, dtype), batch.labels.astype("f") if soft else batch.labels)
        off = errors(batch, batch.truth(), np.asarray(value, float), np.asarray(grad.astype("f"), float))
        assert off.loss_share.max() <= 1, (loss, dtype, batch.regimes[int(off.loss_share.argmax())])
        assert off.grad_share.max() <= 1, (loss, dtype, batch.regimes[int(off.grad_share.argmax())])


# ---- derivatives


def where_derivatives_are_taken():
    """Inside or outside, tracked by JAX or not: those of one loss, but for JAX's own factor of k, which
    docs/sharding.md names."""
    want = quick(jax.value_and_grad(lambda x: xent.sparse_ce(x, Y, invalid="nan", **OF_IDS)))(X)
    f = partial(xent.sparse_ce, labels=Y, sharded="classes", **OF_IDS)
    own = partial(xent.value_and_grad(xent.sparse_ce), labels=Y, sharded="classes", **OF_IDS)
    for tracked in (True, False):
        outside = jax.value_and_grad(mapped(f, 4, OF_X, P(), check_vma=tracked))
        both = outside, mapped(own, 4, OF_X, (P(), OF_X), check_vma=tracked)
        close(quick(lambda x, both=both: [g(x) for g in both])(X), [want, want])
    inside = mapped(jax.grad(f), 4, OF_X, OF_X, check_vma=False)
    close(quick(inside)(X) / 4, want[1])
    parts = X.reshape(ROWS, 4, -1).swapaxes(0, 1)
    losses, grads = jax.pmap(own, axis_name="classes")(parts)
    close((losses, grads.swapaxes(0, 1).reshape(X.shape)), (want[0].repeat(4), want[1]))
    head = partial(xent.value_and_grad(xent.linear_ce), labels=Y, sharded="classes", **OF_IDS)
    spread = P(), xent.Grads(P(), OF_V, None)
    g = quick(mapped(lambda h, v: head(h, weight=v), 4, (P(), OF_V), spread, check_vma=False))
    truth = quick(lambda h, v: xent.value_and_grad(xent.linear_ce)(h, v, Y, **OF_IDS))(H, V)
    close(jax.tree.leaves(g(H, V)), jax.tree.leaves(truth))


def in_labels_and_weights():
    """Also through the class weights' average, and in forward mode; second derivatives are an error."""
    f = mapped(
        lambda x, t, w: xent.softmax_ce(x, t, sample_weight=w, sharded="classes", **SOME), 4, (OF_X, OF_X, P()), P()
    )
    whole = lambda x, t, w: xent.softmax_ce(x, t, sample_weight=w, **SOME)  # noqa: E731
    arrays = tuple(map(jnp.asarray, (X, T, W)))
    close(*(quick(jax.value_and_grad(g, (0, 1, 2)))(*arrays) for g in (f, whole)))
    close(*(quick(partial(jax.jvp, g))(arrays, arrays) for g in (f, whole)))
    head = mapped(lambda h, v: xent.linear_ce(h, v, Y, sharded="classes", **OF_IDS), 4, (P(), OF_V), P())
    of_head = lambda h, v: xent.linear_ce(h, v, Y, **OF_IDS)  # noqa: E731
    arrays = jnp.stack([H, 2 * H]), jnp.stack([V, V + 1])
    close(*(quick(jax.vmap(jax.jacfwd(g)))(*arrays) for g in (head, of_head)))
    for g, given in ((f, (X, T, W)), (head, (H, V))):
        for place in (0, 1):
            with pytest.raises(TypeError, match="sharded: expected a first derivative"):
                jax.eval_shape(partial(jax.jvp, jax.grad(g, place)), given, given)


# ---- what is known of the rows


def statistics_of_rows():
    """stats=True, with an id that is left out and one that is no class: NaN on all devices."""
    y = np.array([0, 99, -100, X[3].argmax()])
    options = {"ignore_index": -100, "invalid": "nan", "stats": True, "reduce": "none"}
    both = partial(xent.value_and_grad(xent.sparse_ce), labels=y, **options)
    got = quick(mapped(partial(both, sharded="classes"), 4, OF_X, ((P(), P()), OF_X)))(X)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=2e-6, atol=2e-7), got, quick(both)(X))
    assert np.isnan(got[1]).all(1).tolist() == [False, True, False, False]


def bad_calls():
    ids = np.abs(Y) % CLASSES
    call = partial(xent.sparse_ce, labels=ids)
    for words, f in {
        "sharded: expected the name of an axis of .*, of 'classes', got 'rows'": partial(call, sharded="rows"),
        "sharded: expected the name of an axis of .*, got int": partial(call, sharded=3),
        "sharded: expected the name of an axis of .*, got list": partial(call, sharded=["classes"]),
        r"class_weight: expected shape \(12,\)": partial(call, sharded="classes", class_weight=U[:3]),
        "labels: 3 of 4 class ids .* 0 to 11": partial(xent.sparse_ce, labels=ids + 11, sharded="classes"),
        "sharded: expected at least one class on one": lambda x: call(x[:, :0], sharded="classes"),
        "group: expected the name of an axis": lambda x: xent.total_weight(jnp.asarray(ids), group="rows"),
    }.items():
        with pytest.raises((TypeError, ValueError), match=words):
            jax.eval_shape(mapped(f, 4, OF_X, P()), X)
    with pytest.raises(ValueError, match=r"sharded: .* and this call is inside of neither, got 'classes'"):
        call(jnp.asarray(X), sharded="classes")


# ---- what is moved


def program(f, *arrays):
    return jax.jit(f).lower(*arrays).compile().as_text()


def moved(text):
    """The collectives of a compiled program, each by its name and how many numbers it returns, and its kernels."""
    found = re.findall(
        r"= (.*?) (all-gather|all-reduce|all-to-all|reduce-scatter|collective-permute)(?:-start)?\(", text
    )
    sizes = [
        (name, [np.prod(eval(f"[{k}]"), dtype=int) for k in re.findall(r"\[([\d,]*)\]", of)]) for of, name in found
    ]
    return sizes, len(re.findall('custom_call_target="xent', text))


def page(place):
    """A block of code of docs/sharding.md."""
    text = (Path(__file__).parents[1] / "docs" / "sharding.md").read_text(encoding="utf-8")
    return re.findall(r"```python\n(.*?)```", text, re.DOTALL)[place]


def collectives(native):
    """One gather forward, none backward; a head's hidden states' gradient is added up once. Kernels on each device."""
    names = {}
    exec(page(-1), names)
    every = itertools.product(({}, SOME), (True, False))
    for options, soft in every if cases.FULL else (({}, True), (SOME, False)):
        loss, labels = (xent.softmax_ce, T) if soft else (xent.sparse_ce, np.abs(Y) % CLASSES)
        f = partial(loss, sharded="classes", **options)
        g = jax.value_and_grad(mapped(f, 4, (OF_X, OF_X if soft else P()), P()))
        a_row = names["handed_out"](soft, bool(options), bool(options))
        expected = [("all-gather", [4 * (ROWS * a_row // 4 + bool(options))])]
        sizes, kernels = moved(program(g, X, labels))
        assert sizes == expected, sizes
        assert kernels == (2 if native else 0)
    of_head = partial(xent.linear_ce, labels=Y, ignore_index=-100, chunk_rows=1, sharded="classes")
    head = mapped(lambda h, v: of_head(h, v), 4, (P(), OF_V), P())
    text = program(jax.value_and_grad(head, (0, 1)), H, V)
    sizes, _ = moved(text)
    assert sorted(sizes) == [("all-gather", [4 * 3 * ROWS]), ("all-reduce", [H.size])], sizes
    assert "f32[1,3]" in text
    assert not re.search(r"f32\[4,(1,)?3\]", text)  # a device's logits of all rows


# ---- rows and classes


def rows_and_classes():
    """The page's program, and what a training step inside of the shard_map has: the gradients of all rows."""
    labels = np.array([0, 11, -100, 5])
    names = {"hidden": H, "weight": V, "targets": labels}
    exec(page(-2), names)
    want = jax.value_and_grad(partial(xent.linear_ce, ignore_index=-100), (0, 1))(
        jnp.asarray(H), jnp.asarray(V), labels
    )
    close((names["value"], names["gradients"]), want)

    @jax.jit
    @partial(jax.shard_map, mesh=devices(2, 2), in_specs=(P("rows"), OF_V, P("rows")), out_specs=(P("rows"), OF_V))
    def step(h, v, y):
        total = xent.total_weight(y, ignore_index=-100, group="rows")
        return jax.grad(
            lambda *k: jax.lax.psum(xent.linear_ce(*k, y, ignore_index=-100, denom=total, sharded="classes"), "rows"),
            (0, 1),
        )(h, v)

    close(step(H, V, labels), want[1])


# ---- by the compiler


def by_the_compiler():
    """Rows and classes split at once, with all options: explicitly, where JAX checks each operation, and not."""
    ids = {"ignore_index": -100, "softcap": 3.0} | SOME
    x, ids_at, cut = P("rows", "classes"), P("rows"), P("classes")
    calls = (
        (lambda x, y, w: xent.sparse_ce(x, y, sample_weight=w, logit_scale=0.5, **ids), (X, Y, W), (x, ids_at, ids_at)),
        (lambda x, t, w: xent.softmax_ce(x, t, sample_weight=w, softcap=3.0, **SOME), (X, T, W), (x, x, ids_at)),
        (lambda x, t, u: xent.sigmoid_ce(x, t, pos_weight=u, label_smoothing=0.1), (X, T, U), (x, x, cut)),
        (lambda h, v, y, u: xent.linear_ce(h, v, y, bias=u, **ids), (H, V, Y, U), (ids_at, cut, ids_at, cut)),
        (
            lambda x, y: xent.sparse_ce(x, y, stats=True, **ids)[1].nll.sum() + xent.entropy(x).sum(),
            (X, Y),
            (x, ids_at),
        ),
    )
    for turn, (f, arrays, specs) in enumerate(calls):
        places = (0, 1) if f.__code__.co_varnames[0] == "h" else 0
        g = quick(jax.value_and_grad(f, places))
        want = g(*map(jnp.asarray, arrays))
        for kind in (AxisType.Explicit, AxisType.Auto)[: 2 if turn % 2 or cases.FULL else 1]:
            mesh = devices(2, 2, kind=kind)
            with jax.set_mesh(mesh):
                given = [jax.device_put(k, NamedSharding(mesh, spec)) for k, spec in zip(arrays, specs, strict=True)]
                value, grads = g(*given)
            close((value, grads), want)
            for grad, k in zip(jax.tree.leaves(grads), given, strict=False):
                assert grad.sharding.is_equivalent_to(k.sharding, k.ndim)


def check(native):
    jax.config.update("jax_numpy_rank_promotion", "raise")
    options_of_logits()
    options_of_a_head()
    hard_regimes()
    where_derivatives_are_taken()
    in_labels_and_weights()
    statistics_of_rows()
    bad_calls()
    collectives(native)
    rows_and_classes()
    by_the_compiler()
