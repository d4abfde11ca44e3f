"""Random calls of every loss on every framework, against the reference in long double.

Fifteen seconds of them by default, always the same ones; an hour of new ones with --full. What fails is named by a
seed and a number, which make the same call again: pytest tests/test_fuzz.py --fuzz-seed=SEED:NUMBER
"""

import collections
import contextlib
import dataclasses
import functools
import importlib.util
import itertools
import secrets
import time

import numpy as np
import pytest
import reference
import xent
from arguments import computed_in, rounded
from fuzz_frameworks import FRAMEWORKS, passed
from near import EXACT_ENOUGH
from random_calls import Draw
from xent import _dispatch, _reduce, formulas

POSITIONAL = {"linear_ce": ("hidden", "weight", "labels"), "entropy": ("logits",)}
HELD = ("labels", "sample_weight", "class_weight", "pos_weight", "denom")  # as the computation's dtype holds them
FLUSHED = {"float32": 2.0**-126, "bfloat16": 2.0**-126}  # below it TensorFlow's cast from float64 gives 0
FORGET_COMPILED = 200  # calls of JAX, each of which leaves a compiled function behind

pytestmark = pytest.mark.skipif(not EXACT_ENOUGH, reason="long double is no wider than float64 here")


class Wrong(AssertionError):
    """What xent got wrong."""


# ---- what xent says


def run(call, framework):
    """xent's result, the gradients by name, and the arguments' memory."""
    given = {name: passed(framework, argument) for name, argument in call.arguments.items()}
    memory = [(name, k, k.tobytes()) for name, (_, k) in given.items() if k is not None]
    values = {name: value for name, (value, _) in given.items()}
    loss = getattr(xent, call.loss)

    def evaluate(function, values):
        first = POSITIONAL.get(call.loss, ("logits", "labels"))
        rest = {name: value for name, value in values.items() if name not in first}
        return function(*(values[name] for name in first), **rest, **call.options)

    if call.how == "value":
        result, grads = evaluate(loss, values), {}
    elif call.how == "value_and_grad":
        result, grads = evaluate(xent.value_and_grad(loss), values)
        grads = grads._asdict() if call.loss == "linear_ce" else {"logits": grads}
        if grads.get("bias", 0) is None:
            del grads["bias"]
    else:
        wanted = [values[name] for name in call.wanted]
        again = lambda *wanted: evaluate(loss, values | dict(zip(call.wanted, wanted, strict=True)))  # noqa: E731
        result, found = framework.gradient(again, wanted, call.upstream)
        grads = dict(zip(call.wanted, found, strict=True))
    return result, grads, memory


# ---- what is right


def expected(call):
    work = computed_in(call.dtype)
    given = {name: k.values for name, k in call.arguments.items()}
    for name in HELD:
        if name in given and not (name == "labels" and is_hard(call)):
            given[name] = rounded(given[name], work)
    options = {name: value for name, value in call.options.items() if name not in ("stats", "chunk_rows", "invalid")}
    for name in ("label_smoothing", "z_loss", "softcap", "logit_scale"):
        if name in options:
            options[name] = float(options[name])
    if is_hard(call):
        options["invalid"] = {"ignore": "ignore"}.get(call.options.get("invalid"), "nan")
    return getattr(reference, call.loss)(**given, **options, work=work, upstream=call.upstream)


def is_hard(call):
    return call.loss in ("sparse_ce", "log_prob", "linear_ce")


def has_to_raise(call):
    """Ids out of range that are to be reported."""
    if not is_hard(call) or call.options.get("invalid", "auto") not in ("auto", "raise"):
        return False
    y = call.arguments["labels"].values
    bad = np.array([not 0 <= int(k) < classes(call) and k != call.options.get("ignore_index") for k in y.ravel()], bool)
    if "sample_weight" in call.arguments:
        bad &= (
            np.broadcast_to(rounded(call.arguments["sample_weight"].values, computed_in(call.dtype)), y.shape).ravel()
            != 0
        )
    return bool(bad.any())


def classes(call):
    if call.loss == "linear_ce":
        return call.arguments["weight"].values.shape[0]
    return call.arguments["logits"].values.shape[call.options["axis"]]


# ---- whether they agree


def check(call):
    framework = FRAMEWORKS[call.framework]
    with framework.double() if call.dtype == "float64" else contextlib.nullcontext():
        if call.spoiled or has_to_raise(call):
            return check_sentence(call, framework)
        result, grads, memory = run(call, framework)
        answer = expected(call)
        loss, *more = result if isinstance(result, tuple) else (result,)
        outputs = {"loss": loss, **{f"gradient in {name}": grad for name, grad in grads.items()}}
        close(framework, "loss", loss, answer.value, computed_in(call.dtype))
        moves = np.isfinite(answer.value.value).all()  # else the mean's own derivative is one of infinity
        for name, grad in grads.items():
            if name in ("labels", "sample_weight") and not moves:
                continue
            dtype, factor = call.arguments[name].dtype, np.abs(call.upstream).max(initial=1)
            close(framework, f"gradient in {name}", grad, answer.grads[name], dtype, factor)
        if more:
            outputs |= check_stats(call, framework, more[0], answer.stats)
        for name, seen, before in memory:
            if seen.tobytes() != before:
                raise Wrong(f"{name} was written to")
            for what, output in outputs.items():
                shared = framework.seen(output)
                if shared is not None and np.may_share_memory(shared, seen):
                    raise Wrong(f"{what} shares memory with {name}")
    return None


def check_stats(call, framework, stats, answer):
    work = computed_in(call.dtype)
    for name in ("nll", "lse", "sample_weight", "entropy"):
        close(framework, f"stats.{name}", getattr(stats, name), answer[name], work)
    for name, kind in (("correct", "b"), ("argmax", "i")):
        got = framework.numbers(getattr(stats, name))
        if got.dtype.kind != kind or got.shape != answer[name].shape:
            raise Wrong(f"stats.{name}: {got.dtype} of shape {got.shape}")
        if (answer["known"] & (got != answer[name])).any():
            raise Wrong(f"stats.{name}: {got}, expected {answer[name]}")
    return {f"stats.{name}": k for name, k in stats._asdict().items()}


def close(framework, what, got, want, dtype, factor=1.0):
    """factor: what numbers so small that they are flushed to 0 are multiplied by afterwards."""
    if not framework.is_own(got):
        raise Wrong(f"{what}: {type(got)}")
    if framework.dtype(got) != dtype:
        raise Wrong(f"{what}: {framework.dtype(got)}, expected {dtype}")
    got = framework.numbers(got)
    if got.shape != want.value.shape:
        raise Wrong(f"{what}: shape {got.shape}, expected {want.value.shape}")
    allowed = want.error + spacing(want.value, dtype) + max(want.work.tiny, FLUSHED.get(dtype, 0)) * factor
    with np.errstate(invalid="ignore", over="ignore"):
        held = rounded(want.value, dtype)  # infinite, if that is what the dtype makes of it
        same = (got == held) | (np.isnan(got) & np.isnan(want.value)) | (np.abs(got - want.value) <= allowed)
    if same.all():
        return
    place = np.unravel_index(np.argmin(same), same.shape)
    share = float(np.abs(got[place] - want.value[place]) / allowed[place])
    raise Wrong(
        f"{what}: {np.sum(~same)} of {same.size} are off, the first at {list(map(int, place))}: {got[place]!r}, "
        f"expected {float(want.value[place])!r} within {float(allowed[place]):.2g}, which is {share:.3g} times that"
    )


def spacing(value, dtype):
    """One unit in the last place of a dtype that may be narrower than the computation."""
    bits, least = {"float16": (10, -14), "bfloat16": (7, -126), "float32": (23, -126), "float64": (52, -1022)}[dtype]
    exponent = np.frexp(np.where(np.isfinite(value), value, 0))[1] - 1
    return np.ldexp(np.longdouble(1), np.maximum(exponent, least) - bits)


def check_sentence(call, framework):
    """The call raises, and says the same as NumPy."""
    said = []
    for tried in (framework, FRAMEWORKS["numpy"]):
        moved = call if tried is framework else call._replace(how="value")
        try:
            result = run(moved, tried)[0]
        except (TypeError, ValueError) as error:
            said.append((type(error), str(error)))
        else:
            raise Wrong(f"on {tried.name} nothing was raised, but {result!r} returned")
    if said[0] != said[1]:
        raise Wrong(f"{framework.name} says {said[0]}\nNumPy says {said[1]}")


# ---- the test


SECONDS, MANY_SECONDS = 10, 3600


@pytest.mark.chosen_backends
def test_random_calls(request, capsys, record_property):
    """As many calls as there is time for; on a busy machine there are only fewer."""
    option = request.config.getoption
    seed, number = asked_for(option("--fuzz-seed"), new=option("--full"))
    again = f"pytest tests/test_fuzz.py --fuzz-seed={seed}"
    with capsys.disabled():  # at once, since a call may crash the process
        print(f"\nfuzz: {again}", flush=True)
    frameworks = [name for name in option("--backend") or FRAMEWORKS if installed(name)]
    if number is not None:
        call = Draw(seed, number).call()
        with capsys.disabled():
            print(call, flush=True)
        check(call)
        return
    made = collections.Counter()
    stop = time.monotonic() + (option("--fuzz-seconds") or (MANY_SECONDS if option("--full") else SECONDS))
    for number in itertools.count():
        draw = Draw(seed, number)
        if draw.framework in frameworks:  # by the seed alone, so that a number means one call
            checked(draw.call(), f"{again}:{number}")
            made[draw.framework] += 1
            forget_compiled(draw.framework, made["jax"])
        if time.monotonic() > stop:
            break
    counts = ", ".join(f"{name} {count}" for name, count in made.most_common())
    record_property("fuzz", f"{again}: {made.total()} calls ({counts})")


def checked(call, again):
    try:
        check(call)
    except Exception as error:
        raise Wrong(f"{again}\n{call}\n{type(error).__name__}: {error}") from error


def asked_for(option, new):
    """A seed, and a call's number or None."""
    if option is None:
        return secrets.randbelow(10**6) if new else 0, None
    seed, _, number = option.partition(":")
    return int(seed), int(number) if number else None


def installed(name):
    return name in FRAMEWORKS and importlib.util.find_spec(name) is not None


def forget_compiled(name, count):
    if name == "jax" and count % FORGET_COMPILED == 0:
        import jax

        jax.clear_caches()


# ---- the fuzz itself: what is planted must be found


def bent_entry(monkeypatch):
    """One entry of every gradient is off by 1e-4 of itself."""

    adapter = _dispatch.load("numpy")

    def both(*args):
        results, dx = adapter.softmax.rows_value_and_grad(*args)
        if dx.size:
            dx.reshape(-1)[dx.size // 2] *= np.float32(1 + 1e-4)
        return results, dx

    mean = functools.partial(formulas.mean_value_and_grad, adapter.ops, both)
    softmax = dataclasses.replace(adapter.softmax, rows_value_and_grad=both, mean_value_and_grad=mean)
    monkeypatch.setitem(_dispatch._by_type, np.ndarray, dataclasses.replace(adapter, softmax=softmax))


def bent_entropy(monkeypatch):
    """The largest entry of every entropy's gradient is off by 1e-4 of itself."""
    adapter = _dispatch.load("numpy")

    def both(*args):
        value, dx = adapter.entropy.value_and_grad(*args)
        if dx.size:
            dx.reshape(-1)[np.argmax(np.abs(dx))] *= np.float32(1 + 1e-4)
        return value, dx

    entropy = dataclasses.replace(adapter.entropy, value_and_grad=both)
    monkeypatch.setitem(_dispatch._by_type, np.ndarray, dataclasses.replace(adapter, entropy=entropy))


def forgotten_scale(monkeypatch):
    """In the derivative alone."""
    right = formulas.slope
    monkeypatch.setattr(formulas, "slope", lambda ops, x, cap, scale: right(ops, x, cap, 1.0))


def forgotten_mask(monkeypatch):
    monkeypatch.setattr(
        _reduce, "mark_absent", lambda ops, ids, w: ids if ids is not None else ops.astype(w == 0, ops.index_dtype) * 0
    )


def wrong_denominator(monkeypatch):
    """The mean of weighted examples divides by how many there are."""
    right = _reduce.denominator
    monkeypatch.setattr(
        _reduce,
        "denominator",
        lambda ops, options, *rest: right(
            ops,
            options._replace(reduce="mean_all") if options.reduce == "mean" and rest[-1] is None else options,
            *rest,
        ),
    )


def wrong_axis(monkeypatch):
    """Class weights lie along the axis before."""
    right = _reduce.along
    monkeypatch.setattr(_reduce, "along", lambda ops, table, x, axis: right(ops, table, x, max(axis - 1, 0)))


def wrong_sign(monkeypatch):
    """Smoothing takes away what it should add."""
    right = _reduce.row_weights
    monkeypatch.setattr(
        _reduce,
        "row_weights",
        lambda options, *rest: right(
            options if options.label_smoothing == 1 else options._replace(label_smoothing=-options.label_smoothing),
            *rest,
        ),
    )


def written_input(monkeypatch):
    """Weights of 0 are tidied up in place."""
    right = _reduce.product

    def product(sample_weight, class_weight):
        if isinstance(sample_weight, np.ndarray) and sample_weight.flags.writeable:
            sample_weight *= 2
            sample_weight /= 4
        return right(sample_weight, class_weight)

    monkeypatch.setattr(_reduce, "product", product)


PLANTED = (
    bent_entry,
    bent_entropy,
    forgotten_scale,
    forgotten_mask,
    wrong_denominator,
    wrong_axis,
    wrong_sign,
    written_input,
)


@pytest.mark.backend("numpy")
@pytest.mark.parametrize("plant", PLANTED, ids=lambda plant: plant.__name__)
def test_finds(plant, monkeypatch):
    """Within 400 calls, of which a minute has many times as many."""
    plant(monkeypatch)
    with pytest.raises(Wrong):
        check_numpy(calls=400)


def check_numpy(calls):
    """So many of the calls that NumPy gets."""
    draws = (Draw(0, number) for number in itertools.count())
    for draw in itertools.islice((draw for draw in draws if draw.framework == "numpy"), calls):
        checked(draw.call(), "planted")
