"""The matrix, as data."""

import importlib.util
import itertools
from typing import NamedTuple

import numpy as np
import pytest
from allpairspy import AllPairs
from xent import _dispatch, oracle
from xent.verify import frameworks
from xent.verify.precision import PRECISION, rounded

# ---- what a test needs


def backends(*names):
    """A parameter for each framework, which `--backend` chooses among."""
    return [pytest.param(name, marks=pytest.mark.backend(name)) for name in names]


def needs_installed(*names):
    for name in names:
        if importlib.util.find_spec(name) is None:
            pytest.skip(f"{name} is not installed")


def needs_dtype(live, dtype):
    if dtype not in live.dtypes:
        pytest.skip(f"{live.name} has no {dtype}")


def needs_loss(live, loss):
    if loss == "linear_ce" and _dispatch.load(live.name).linear is None:
        pytest.skip(f"{live.name}'s adapter brings no linear_ce")


def only_full_on_jax(live):
    if live.name == "jax" and not FULL:
        pytest.skip("jax compiles every call: only with --full")


def first_on_jax(live, values):
    """All values, but on JAX, which compiles every call, only the first. --full: all."""
    return values[:1] if live.name == "jax" and not FULL else values


def quick(f):
    """jax.jit in half the time to compile, but not as users run it: for derivatives, options and references, not where
    the last digits or the program itself are looked at. --full: as users run it."""
    import jax

    options = {
        "xla_backend_optimization_level": 0,
        "xla_llvm_disable_expensive_passes": True,
        "xla_cpu_use_fusion_emitters": False,
    }
    return jax.jit(f, compiler_options=None if FULL else options)


def framework(name, dtype):
    """Loaded, or a skip with its reason."""
    needs_installed(name)
    found = frameworks.load(name)
    needs_dtype(found, dtype)
    return found


# ---- what the transforms are tried on

rng = np.random.default_rng(3)
X = rng.normal(size=(3, 4))
X[0] = 0  # ties, where the derivative of a maximum is no help
Y = np.array([1, 0, 3])
T = rng.dirichlet(np.ones(4), 3)
Z = rng.random((3, 4))
W = np.array([0.5, 0.0, 2.0])
V = rng.normal(size=(4, 4))  # the weight of a head with X's features

# ---- options

REDUCES = ("none", "sum", "mean", "mean_nonzero", "mean_all")
SHAPE = (4, 3, 5)  # examples, classes, positions: the class axis in the middle
ROWS = (4, 5)
WEIGHTS = rng.uniform(0.5, 2, ROWS)
WEIGHTS[1, 2:4] = 0

OPTIONS = {
    "plain": {},
    "sample_weight": {"sample_weight": WEIGHTS},
    "weights_broadcast": {"sample_weight": np.array([[0.5], [0.0], [2.0], [1.0]])},
    "weights_scalar": {"sample_weight": 2.5},
    "class_weight": {"class_weight": np.array([0.5, 2.0, 0.0])},  # a class of weight 0 is masked
    "label_smoothing": {"label_smoothing": 0.1},
    "z_loss": {"z_loss": 0.01},
    "ignore_index": {"ignore_index": -100},
    "denom": {"denom": 7.5},
    "softcap": {"softcap": 2.0},  # of the logits' size, so that it bends
    "logit_scale": {"logit_scale": 0.75},
    "pos_weight": {"pos_weight": np.array([3.0, 1.0, 0.5, 2.0, 0.0])},
}
TAKES = {
    "sparse_ce": set(OPTIONS) - {"pos_weight"},
    "softmax_ce": set(OPTIONS) - {"pos_weight", "ignore_index"},
    "sigmoid_ce": {
        "plain",
        "sample_weight",
        "weights_broadcast",
        "weights_scalar",
        "label_smoothing",
        "denom",
        "pos_weight",
    },
}


class Case(NamedTuple):
    loss: str
    names: tuple  # of OPTIONS
    options: dict

    @property
    def name(self):
        return f"{'+'.join(self.names) or 'plain'}-{self.options['reduce']}"


FULL = False  # --full


def combinations(options):
    """Names of options with a reduction: any two options meet in one, and every option meets every reduction.

    --full: every option alone with every reduction, and every pair of options alone.
    """
    if FULL:
        yield from alone(options, REDUCES)
        turn = itertools.cycle(REDUCES)
        for pair in itertools.combinations(list(options)[1:], 2):
            if not options[pair[0]].keys() & options[pair[1]].keys():
                yield pair, "mean" if "denom" in pair else next(turn)
        return
    levels = {}  # of each argument
    for name, arguments in options.items():
        for argument in arguments:
            levels.setdefault(argument, [None]).append(name)
    for reduce, *chosen in AllPairs([REDUCES, *levels.values()], filter_func=possible):
        yield tuple(filter(None, chosen)), reduce


def alone(options, reduces):
    for name, reduce in itertools.product(options, reduces):
        if possible((reduce, name)):
            yield (name,), reduce


def possible(row):
    """A denominator is the mean's."""
    return "denom" not in row or row[0] == "mean"


def cases(loss):
    return [case(loss, *chosen) for chosen in combinations(taken(loss))]


def few(loss):
    return covering(cases(loss))


def covering(cases):
    """The first cases that together have every option, since compilers take seconds for each. --full: all cases."""
    shown, found = set(), []
    for case in cases:
        if FULL or not shown.issuperset(case.names):
            shown.update(case.names)
            found.append(case)
    return found


def unless_compiled(live, cases):
    """All cases, but on JAX, which compiles every call, only `covering` ones."""
    return covering(cases) if live.name == "jax" else cases


def singles(loss, *reduces):
    """Each option alone, with these reductions."""
    return [case(loss, *chosen) for chosen in alone(taken(loss), reduces)]


def taken(loss):
    return {name: arguments for name, arguments in OPTIONS.items() if name in TAKES[loss]}


def case(loss, chosen, reduce):
    options = {"reduce": reduce}
    for name in chosen:
        options |= OPTIONS[name]
    if loss != "sigmoid_ce":
        options["axis"] = 1
    elif np.ndim(options.get("sample_weight", 0)):
        options["sample_weight"] = np.asarray(options["sample_weight"])[:, None, :]
    return Case(loss, chosen, options)


def arguments(loss, dtype, options):
    """Logits and labels, rounded to the dtype, in float64."""
    data = np.random.default_rng(11)
    x = rounded(3 * data.normal(size=SHAPE), dtype)
    if loss == "sparse_ce":
        y = data.integers(0, SHAPE[1], ROWS)
        if "ignore_index" in options:
            y[0, 1] = y[3, 3] = -100
            x[0, :, 1] = np.nan  # an ignored row may hold anything
        if "sample_weight" in options and np.ndim(options["sample_weight"]):
            x[1, :, 3] = np.inf, np.nan, 1  # so may one of weight 0
    elif loss == "softmax_ce":
        y = np.moveaxis(data.dirichlet(np.ones(SHAPE[1]), ROWS), -1, 1)
        y[2, :, 1] *= 0.8  # not a distribution
        y = rounded(y, PRECISION[dtype].compute)
    else:
        y = rounded(data.choice([0.0, 1.0, 0.25, 0.9], SHAPE), PRECISION[dtype].compute)
    return x, y


def truth(loss, x, y, options):
    """The oracle's answer, for options that are rounded to the compute dtype."""
    return getattr(oracle, loss)(x, y, **options)


def held(options, dtype):
    """Options rounded to the compute dtype, so that the oracle computes with the same numbers."""
    compute = PRECISION[dtype].compute
    return {
        name: rounded(np.asarray(value, np.float64), compute) if name in ROUNDED else value
        for name, value in options.items()
    }


ROUNDED = ("sample_weight", "class_weight", "pos_weight")


def assert_close(got, want, dtype, what, result=False):
    """Every entry within the dtype's bar, relative to the largest one, since options subtract terms of that size."""
    precision = PRECISION[dtype]
    np.testing.assert_array_equal(np.isnan(got), np.isnan(want), err_msg=what)
    size = np.nanmax(np.abs(want), initial=0)
    allowed = precision.bar * size
    if precision.mantissa is not None and not result:  # a gradient of 16 bits: one unit in its last place
        spacing = np.ldexp(1.0, np.maximum(np.frexp(want)[1] - 1, precision.smallest) - precision.mantissa)
        allowed = np.maximum(allowed, spacing)
    worst = np.nanmax(np.abs(got - want) - allowed, initial=-1)
    assert worst <= 0, f"{what}: off by {np.nanmax(np.abs(got - want))}, allowed {np.max(allowed)}"


# ---- compilers


def compilers(live, code=True):
    """The framework's compilers: tf.function with and without XLA in TensorFlow, one elsewhere.

    Without `code`, PyTorch only traces its graphs, since generating code takes ten seconds each time. With --full it
    generates code all the same.
    """
    found = [compile for mode, compile in live.compilers.items() if mode != "eager"]
    if not found:
        pytest.skip(live.unavailable.get("compiled", f"{live.name} has no compiler"))
    return found if code or FULL or live.name != "torch" else [traced_by_torch]


def shares(compilers, tried):
    """Each compiler with its share of what is tried, in turn. --full: with everything."""
    for i, compile in enumerate(compilers):
        yield compile, tried if FULL else tried[i :: len(compilers)]


def traced_by_torch(f, dynamic=False):
    import torch

    torch._dynamo.reset()
    return torch.compile(f, fullgraph=True, dynamic=dynamic, backend="inductor" if FULL else "aot_eager")
