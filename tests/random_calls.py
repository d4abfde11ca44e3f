"""Random calls, as data: what is drawn depends on a seed and the call's number alone, so that any call can be repeated.

A call's numbers are what it means; beside them stands how each argument is passed: as whose array, of which dtype, in
what memory. Every option meets every other.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from arguments import FLOATS, INTEGERS, Argument, Passing, computed_in, rounded
from spoiled_calls import spoiled

LENGTHS = (0, 1, 2, 3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37)
CLASSES = (1, 2, 3, 5, 7, 10, 16, 31, 37, 64, 131, 1021)
MOST = (50, 50, 300, 300, 2500)  # elements of the logits: the reference takes its time
# How many of a hundred calls each framework gets. JAX compiles nearly every one.
SHARES = {"numpy": 36, "torch": 36, "tensorflow": 17, "array_api_strict": 9, "jax": 2}
JAX_SHAPES = ((5,), (3, 7), (0, 3), (2, 5, 3), (1, 131), (2, 1, 3, 2))


class Call(NamedTuple):
    framework: str
    loss: str
    dtype: str
    arguments: dict[str, Argument]  # arrays and numbers alike, by name, the positional ones first
    options: dict[str, Any]  # the others, as they are passed
    how: str  # value, value_and_grad, own: the framework's own differentiation
    wanted: tuple[str, ...] = ()  # in which arguments `own` differentiates
    upstream: Any = 1.0
    spoiled: str = ""  # what is wrong with the call

    def __str__(self) -> str:
        given = [f"{name}=<{argument}>" for name, argument in self.arguments.items()]
        given += [f"{name}={value!r}" for name, value in self.options.items()]
        asked = f"{self.how} in {', '.join(self.wanted)}" if self.wanted else self.how
        spoiled = f", spoiled: {self.spoiled}" if self.spoiled else ""
        return f"{self.framework} {self.loss} {self.dtype} ({', '.join(given)}), {asked}{spoiled}"


class Draw(Passing):
    """One call's random choices."""

    def __init__(self, seed: int, number: int) -> None:
        self.rng = np.random.default_rng([seed, number])
        self.framework = str(self.rng.choice(list(SHARES), p=np.array(list(SHARES.values())) / sum(SHARES.values())))

    # ---- whole calls

    def call(self) -> Call:
        losses = ["sparse_ce", "sparse_ce", "softmax_ce", "sigmoid_ce", "log_prob", "entropy", "linear_ce"]
        self.loss = self.pick(losses[:-1] if self.framework == "array_api_strict" else losses)
        floats = FLOATS[:2] if self.framework == "array_api_strict" else FLOATS
        self.dtype = self.pick(floats)
        self.work = computed_in(self.dtype)
        make = {"sparse_ce": self.sparse, "softmax_ce": self.softmax, "sigmoid_ce": self.sigmoid}
        make |= {"log_prob": self.log_prob, "entropy": self.entropy, "linear_ce": self.linear}
        self.sample_weight = self.denom = None
        arguments, options = make[self.loss]()
        call = Call(self.framework, self.loss, self.dtype, arguments, options, "value")
        return spoiled(self, call) if self.chance(0.06) else self.asked(call)

    def asked(self, call: Call) -> Call:
        """The call, with a choice of what to differentiate and how."""
        if call.framework in ("numpy", "array_api_strict"):
            return call._replace(how=self.pick(("value", "value_and_grad", "value_and_grad", "value_and_grad")))
        how = self.pick(("value", "value_and_grad", "value_and_grad", "own", "own", "own"))
        if how != "own":
            return call._replace(how=how)
        can = [
            name
            for name in ("logits", "labels", "hidden", "weight", "bias", "sample_weight")
            if name in call.arguments
            and call.arguments[name].kind in ("own", "variable")
            and call.arguments[name].dtype in FLOATS
            and not (name == "labels" and call.options.get("label_smoothing") == 1)  # they are no part of the loss
        ]
        wanted = tuple(name for name in can if self.chance(0.6)) or tuple(can[:1])
        traced = call.framework == "jax" and "sample_weight" in wanted and call.loss in ("sparse_ce", "linear_ce")
        if traced and call.options.get("invalid", "auto") in ("auto", "raise"):
            call.options["invalid"] = "nan"  # weights that cannot be read do not excuse an id
        each = call.options.get("reduce", "none") == "none"
        upstream = self.rng.choice([1.0, 0.5, -2.0, 3.0], self.rows if each else ())
        return call._replace(how=how, wanted=wanted, upstream=upstream)

    def softmax(self) -> tuple[dict[str, Argument], dict[str, Any]]:
        x, axis = self.logits()
        classes = x.shape[axis]
        table = self.class_weight(classes)
        options = self.row_options(exact=table is None)
        t = np.moveaxis(self.distributions(x, axis), -1, axis)
        labels = self.real(t)
        self.garbage(x, self.is_masked(), axis)
        arguments = {"logits": self.as_logits(x), "labels": labels} | self.given(class_weight=table)
        return arguments, options | self.cap_and_scale(0.15) | {"axis": self.spelled(axis, x.ndim)}

    def sparse(self) -> tuple[dict[str, Argument], dict[str, Any]]:
        x, axis = self.logits()
        labels, table, options = self.ids_and_options(x.shape[axis])
        self.garbage(x, self.left_out(labels.values, table, options), axis)
        self.hard_rows(x)
        arguments = {"logits": self.as_logits(x), "labels": labels} | self.given(class_weight=table)
        return arguments, options | self.cap_and_scale(0.15) | {"axis": self.spelled(axis, x.ndim)}

    def log_prob(self) -> tuple[dict[str, Argument], dict[str, Any]]:
        (x, axis), options = self.logits(), self.cap_and_scale(0.3)
        labels = self.ids(x.shape[axis], options)
        self.garbage(x, self.left_out(labels.values, None, options), axis)
        self.hard_rows(x)
        return {"logits": self.as_logits(x), "labels": labels}, options | {"axis": self.spelled(axis, x.ndim)}

    def entropy(self) -> tuple[dict[str, Argument], dict[str, Any]]:
        (x, axis), options = self.logits(), self.cap_and_scale(0.3)
        self.sample_weight = self.draw_weights(exact=True) if self.chance(0.5) else None
        self.garbage(x, self.is_masked(), axis)
        self.hard_rows(x)
        return {"logits": self.as_logits(x)} | self.given(), options | {"axis": self.spelled(axis, x.ndim)}

    def linear(self) -> tuple[dict[str, Argument], dict[str, Any]]:
        self.rows = self.shape(self.pick(MOST) // 10)[: self.rng.integers(5)]
        features, classes = self.pick((1, 2, 3, 5, 8, 13, 17)), self.pick(CLASSES[:-1])
        h = self.rng.normal(size=(*self.rows, features))
        w = self.rng.normal(size=(classes, features)) * self.pick((0.3, 1.0, 3.0)) / np.sqrt(features)
        h, w = rounded(h, self.dtype), rounded(w, self.dtype)
        labels, table, options = self.ids_and_options(classes)
        self.garbage(h, self.left_out(labels.values, table, options), h.ndim - 1)
        arguments = {
            "hidden": self.as_logits(h),
            "weight": self.array(w, self.dtype, ("own", "own", "numpy")),
            "labels": labels,
        }
        if self.chance(0.4):
            b = rounded(self.rng.normal(size=classes), self.dtype)
            if classes > 1 and self.chance(0.1):
                b[self.rng.integers(classes)] = -np.inf  # ruled out
            arguments["bias"] = self.array(b, self.dtype, ("own", "own", "numpy"))
        if self.chance(0.3):
            options["softcap"] = self.pick((2.0, 30, np.float32(5)))
        if self.chance(0.3):
            options["chunk_rows"] = self.pick((1, 3, np.int64(5), 1000))
        return arguments | self.given(class_weight=table), options

    def sigmoid(self) -> tuple[dict[str, Argument], dict[str, Any]]:
        self.rows = shape = self.shape(self.pick(MOST))
        scale = self.pick((1.0, 1.0, 10.0, 80.0))
        x = rounded(self.rng.normal(size=shape) * scale, self.dtype)
        options = self.row_options(exact=True)
        z = self.rng.choice([0.0, 1.0, 0.25, 0.9], shape) if self.chance(0.7) else self.rng.random(shape)
        labels = self.real(z)
        p = None
        if self.chance(0.4):
            tail = shape[self.rng.integers(len(shape) + 1) :]
            ones = tuple(1 if self.chance(0.2) else n for n in tail)
            p = self.real(self.rng.choice([0.0, 0.5, 1.0, 3.0], ones))
        if self.chance(0.05) and x.size:
            x.flat[self.rng.integers(x.size)] = self.pick((np.inf, -np.inf, np.nan))
        self.garbage(x, self.is_masked(), None)
        return {"logits": self.as_logits(x), "labels": labels} | self.given(pos_weight=p), options

    # ---- logits and labels

    def shape(self, most: int) -> tuple[int, ...]:
        """Of examples: most elements at the most."""
        if self.framework == "jax":
            return self.pick(JAX_SHAPES)
        shape: list[int] = []
        for _ in range(self.rng.integers(1, 6)):
            left = most // max(int(np.prod(shape)), 1)
            shape.append(self.pick([n for n in LENGTHS if n <= max(left, 1) and (n or self.chance(0.3))] or [1]))
        self.rng.shuffle(shape)
        return tuple(map(int, shape))

    def logits(self) -> tuple[Any, int]:
        """Of a mixture of rows, ordinary and hard ones, and their class axis; `rows` is the loss's shape."""
        if self.framework == "jax":
            whole = self.pick(JAX_SHAPES)
            axis = int(self.rng.choice([i for i, n in enumerate(whole) if n]))
            self.rows, classes = whole[:axis] + whole[axis + 1 :], whole[axis]
        else:
            classes = self.pick(CLASSES)
            self.rows = self.shape(max(self.pick(MOST) // classes, 1))[: self.rng.integers(5)]
            axis = int(self.rng.integers(len(self.rows) + 1))
        count = int(np.prod(self.rows))
        x = rounded(self.mixture(count, classes) if count else np.zeros((0, classes)), self.dtype)
        return np.ascontiguousarray(np.moveaxis(x.reshape(*self.rows, classes), -1, axis)), axis

    def mixture(self, count: int, classes: int) -> Any:
        """Rows [count, classes], each of some kind."""
        rng = self.rng
        x, kind = rng.normal(size=(count, classes)), rng.integers(12, size=(count, 1))
        place = np.arange(classes) == rng.integers(classes, size=(count, 1))
        far, top, bottom = rng.uniform(0, 80, (count, 1)), x.max(-1, keepdims=True), x.min(-1, keepdims=True)
        ruled_out = (rng.random((count, classes)) < 0.5) & (np.arange(classes) < classes - 1)
        kinds = (
            (kind == 0, x + rng.choice([1e4, -1e4, 1e3], (count, 1))),  # a common offset
            ((kind == 1) & place, top + far),  # a class that leads
            ((kind == 2) & place, bottom - far),  # or is far behind
            (kind == 3, np.round(x)),  # ties
            (kind == 4, 300 * x),  # most probabilities underflow
            ((kind == 5) & ruled_out, np.full_like(x, -np.inf)),
            ((kind == 6) | (kind == 7), 10 * x),
        )
        for where, values in kinds:
            x = np.where(where, values, x)
        return x

    def distributions(self, x: Any, axis: int) -> Any:
        """[..., C]: distributions, one-hot rows, rows that add up to something else."""
        classes = x.shape[axis]
        x = np.moveaxis(x, axis, -1)
        possible = np.isfinite(x) if self.chance(0.9) else np.ones(x.shape, bool)
        t = self.rng.gamma(0.5, size=x.shape) * possible
        t /= np.maximum(t.sum(-1, keepdims=True), 1e-30)
        last = np.arange(classes) == classes - 1
        kind = self.rng.integers(6, size=(*self.rows, 1))
        place = np.argmax(np.where(possible, self.rng.random(x.shape), -1), -1)[..., None]
        hot = np.arange(classes) == place
        t = np.where(kind == 0, hot, np.where(kind == 1, 0.75 * hot + 0.25 * last, t))
        return np.where(kind == 2, t * self.rng.choice([0.0, 0.8, 2.0], kind.shape), t)

    def ids_and_options(self, classes: int) -> tuple[Argument, Argument | None, dict[str, Any]]:
        table = self.class_weight(classes)
        options = self.row_options(exact=table is None or is_coarse(table.values))
        labels = self.ids(classes, options)
        if self.chance(0.3):
            options["stats"] = self.pick((True, False))
        return labels, table, options

    def ids(self, classes: int, options: dict[str, Any]) -> Argument:
        """Class ids, some of them ignored or out of range; adds the options that go with them."""
        y = self.rng.integers(0, classes, self.rows).astype(object)
        dtype = self.pick(INTEGERS)
        if self.chance(0.4):
            index = self.pick((-100, -1, 0, classes - 1, classes, 255))
            options["ignore_index"] = self.pick((int, np.int64, np.int32))(index)
            y = np.where(self.rng.random(self.rows) < 0.3, index, y)
        if self.chance(0.15):
            y = np.where(self.rng.random(self.rows) < 0.2, self.pick((-1, -7, classes, 2**31, 2**32, 2**63)), y)
            options["invalid"] = self.pick(("nan", "ignore", "raise", "auto"))
        elif self.chance(0.2):
            options["invalid"] = self.pick(("nan", "ignore", "raise", "auto"))
        low, high = (0, 1) if dtype == "bool" else (np.iinfo(dtype).min, np.iinfo(dtype).max)
        # what the dtype cannot hold is some other id
        y = np.array([min(max(int(k), low), high) for k in y.ravel()], dtype).reshape(self.rows)
        return self.as_ids(y, dtype)

    # ---- rows that are left out, and what they hold

    def left_out(self, y: Any, table: Argument | None, options: dict[str, Any]) -> Any:
        gone = self.is_masked() | (y == options.get("ignore_index"))
        if table is not None:
            inside = (y >= 0) & (y < table.values.size)
            gone = gone | (inside & (table.values[np.where(inside, y, 0).astype(int)] == 0))
        return gone.astype(bool)

    def is_masked(self) -> Any:
        return np.broadcast_to(False if self.sample_weight is None else self.sample_weight.values == 0, self.rows)

    def garbage(self, x: Any, gone: Any, axis: int | None) -> None:
        """Fills masked rows with anything, which must not matter."""
        if self.chance(0.5):
            return
        gone = np.broadcast_to(gone if axis is None else np.expand_dims(gone, axis), x.shape)
        junk = self.rng.choice([np.nan, np.inf, -np.inf, 0.0, 6e4], x.shape)
        x[gone] = junk[gone]

    def hard_rows(self, x: Any) -> None:
        """Sometimes an infinity or NaN in a row, which may be one that counts."""
        if x.size and self.chance(0.04):
            x.flat[self.rng.integers(x.size)] = self.pick((-np.inf, -np.inf, np.inf, np.nan))

    # ---- options

    def row_options(self, exact: bool) -> dict[str, Any]:
        """Those of every loss; `sample_weight`, `denom` and the smoothing's kinds of numbers. exact: weights may
        have both signs, since their sum rounds nowhere, so that 0 is 0."""
        options: dict[str, Any] = {"reduce": self.pick(("none", "sum", "mean", "mean", "mean_nonzero", "mean_all"))}
        self.sample_weight = self.draw_weights(exact) if self.chance(0.5) else None
        if options["reduce"] == "mean" and self.chance(0.3):
            self.denom = self.real(np.array(self.pick((0.0, 1.0, 7.0, 7.5, -2.0, 1000.0))))
        if self.chance(0.35):
            options["label_smoothing"] = self.number((0.1, 0.5, 1e-3, 1.0, 0.0))
        if self.loss != "sigmoid_ce" and self.chance(0.3):
            options["z_loss"] = self.number((1e-4, 0.01, 0.5, -0.125))
        return options

    def cap_and_scale(self, share: float) -> dict[str, Any]:
        options: dict[str, Any] = {}
        if self.chance(share):
            options["softcap"] = self.pick((2.0, 30, np.float32(5), 1e4))
        if self.chance(share):
            options["logit_scale"] = self.pick((0.5, 3, np.float64(0.7), 0.01, 20.0))
        return options

    def number(self, choices: tuple[float, ...]) -> Any:
        kind = self.pick((float, float, float, np.float32, np.float64, np.float16, int))
        value = self.pick(choices)
        return kind(value) if kind is not int or value == int(value) else value

    def draw_weights(self, exact: bool) -> Argument:
        shape = self.pick((self.rows, self.rows, tuple(1 if self.chance(0.5) else n for n in self.rows), ()))
        if self.chance(0.6):
            values = self.rng.choice([0.0, 0.5, 1.0, 2.0], shape)
            values = values * self.rng.choice([1.0, -1.0], shape) if exact and self.chance(0.15) else values
        else:
            values = self.rng.uniform(0.5, 2, shape) * (self.rng.random(shape) > 0.2)
        return self.real(values)

    def class_weight(self, classes: int) -> Argument | None:
        if not self.chance(0.3):
            return None
        coarse = self.rng.choice([0.0, 0.5, 1.0, 2.0], classes)
        return self.real(coarse if self.chance(0.6) else self.rng.uniform(0.5, 2, classes))

    def given(self, **others: Argument | None) -> dict[str, Argument]:
        others |= {"sample_weight": self.sample_weight, "denom": self.denom}
        return {name: argument for name, argument in others.items() if argument is not None}

    def spelled(self, axis: int, rank: int) -> Any:
        return self.pick((int, int, np.int64))(axis - rank if self.chance(0.5) else axis)


def is_coarse(values: Any) -> bool:
    """Sums of them round nowhere."""
    return bool((2 * values == np.round(2 * values)).all())
