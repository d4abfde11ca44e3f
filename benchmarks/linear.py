"""linear_ce against logits that are held: time, memory and error of loss and gradients, forward and backward.

    python benchmarks/linear.py --shape 2048x1024x32000 --dtype float32 --framework torch
    python benchmarks/linear.py --sweep                       # eight times the rows

A process a framework; contenders take turns, and what counts is the median of the ratios to the framework's own loss of
logits that are held, within a round. Memory is the peak of a process of its own beyond what was there before the call,
less the gradients. Errors are relative to the norm, against float64, of the float64 values of the same inputs.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from xent.benchmarks import clock, truth
from xent.benchmarks.workloads import WIDTH

FRAMEWORKS = ("numpy", "torch", "jax", "tensorflow")
Step = Callable[[], tuple[Any, Any, Any]]


def problem(rows: int, features: int, classes: int) -> tuple[Any, Any, Any]:
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((classes, features), np.float32) / np.float32(np.sqrt(features))
    return rng.standard_normal((rows, features), np.float32), weight, rng.integers(0, classes, rows)


# ---- contenders: (hidden, weight, labels as NumPy has them, dtype) -> by name, a step; the first is the one to beat


def numpy_steps(h: Any, w: Any, y: Any, dtype: str) -> dict[str, Step]:
    import xent

    def held() -> tuple[Any, Any, Any]:
        x, rows = h @ w.T, np.arange(len(y))
        x -= x.max(1, keepdims=True)
        at_label = x[rows, y]
        np.exp(x, out=x)
        total = x.sum(1, keepdims=True)
        x /= total
        x[rows, y] -= 1
        x /= len(y)
        return (np.log(total[:, 0]) - at_label).mean(), x @ w, x.T @ h

    def ours() -> tuple[Any, Any, Any]:
        loss, grads = xent.value_and_grad(xent.linear_ce)(h, w, y)
        return loss, grads.hidden, grads.weight

    return {"NumPy, in place": held, "xent": ours}


def torch_steps(h: Any, w: Any, y: Any, dtype: str) -> dict[str, Step]:
    import torch
    import xent

    functional: Any = torch.nn.functional
    hidden, weight = (torch.tensor(k, dtype=getattr(torch, dtype), requires_grad=True) for k in (h, w))
    labels = torch.tensor(y)

    def step(loss: Any) -> Step:
        def run() -> tuple[Any, Any, Any]:
            value = loss(hidden, weight, labels)
            return value.detach(), *torch.autograd.grad(value, (hidden, weight))

        return run

    def held(h: Any, w: Any, y: Any) -> Any:
        return functional.cross_entropy(h @ w.T, y)

    steps = {"F.cross_entropy": step(held), "F.cross_entropy, compiled": step(torch.compile(held))}
    if hasattr(torch.nn, "LinearCrossEntropyOptions"):
        options = torch.nn.LinearCrossEntropyOptions()
        steps["F.linear_cross_entropy, options"] = step(
            lambda h, w, y: functional.linear_cross_entropy(h, w, y, options=options)
        )
    return {
        **steps,
        "xent": step(xent.linear_ce),
        "xent, compiled": step(torch.compile(xent.linear_ce, fullgraph=True)),
    }


def jax_steps(h: Any, w: Any, y: Any, dtype: str) -> dict[str, Step]:
    import jax
    import jax.numpy as jnp
    import optax
    import xent

    hidden, weight, labels = jnp.asarray(h, dtype), jnp.asarray(w, dtype), jnp.asarray(y)
    optax_loss = optax.softmax_cross_entropy_with_integer_labels

    def step(loss: Any) -> Step:
        both = jax.jit(jax.value_and_grad(loss, (0, 1)))

        def run() -> tuple[Any, Any, Any]:
            value, grads = jax.block_until_ready(both(hidden, weight))
            return value, *grads

        return run

    def by_hand(h: Any, w: Any) -> Any:
        @jax.checkpoint
        def chunk(total: Any, rows: Any) -> Any:
            h, y = rows
            return total + optax_loss((h @ w.T).astype(jnp.float32), y).sum(), None

        size = 128 if len(h) % 128 == 0 else len(h)
        rows = h.reshape(-1, size, h.shape[1]), labels.reshape(-1, size)
        return jax.lax.scan(chunk, jnp.float32(0), rows)[0] / len(h)

    return {
        "optax": step(lambda h, w: optax_loss(h @ w.T, labels).mean()),
        "lax.scan by hand": step(by_hand),
        "xent": step(lambda h, w: xent.linear_ce(h, w, labels)),
    }


def tensorflow_steps(h: Any, w: Any, y: Any, dtype: str) -> dict[str, Step]:
    import tensorflow as tf
    import xent

    hidden, weight, labels = tf.cast(h, dtype), tf.cast(w, dtype), tf.constant(y)

    def step(loss: Any, graph: bool) -> Step:
        def both(h: Any, w: Any) -> Any:
            with tf.GradientTape() as tape:
                tape.watch((h, w))
                value = loss(h, w)
            return value, tape.gradient(value, (h, w))

        compiled = tf.function(both) if graph else both

        def run() -> tuple[Any, Any, Any]:
            value, grads = compiled(hidden, weight)
            return float(value), *grads  # waits

        return run

    def held(h: Any, w: Any) -> Any:
        logits = tf.matmul(h, w, transpose_b=True)
        return tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits))

    def ours(h: Any, w: Any) -> Any:
        return xent.linear_ce(h, w, labels)

    return {"tf.nn, tf.function": step(held, True), "xent": step(ours, False), "xent, tf.function": step(ours, True)}


STEPS = {"numpy": numpy_steps, "torch": torch_steps, "jax": jax_steps, "tensorflow": tensorflow_steps}


# ---- one process: times of all, or the memory of one


def times(framework: str, shape: tuple[int, ...], dtype: str, rounds: int) -> dict[str, Any]:
    h, w, y = problem(*shape)
    steps = STEPS[framework](h, w, y, dtype)
    right = exact(widened(h, dtype), widened(w, dtype), y)
    found: dict[str, Any] = {}
    for name, step in steps.items():
        errors = [error(got, want) for got, want in zip(step(), right, strict=True)]
        found[name] = {"errors": errors, "times": []}
    for turn in range(rounds):
        for name in list(steps) if turn % 2 else reversed(list(steps)):
            start = time.perf_counter()
            result = steps[name]()
            found[name]["times"].append(time.perf_counter() - start)
            del result
    return found


def memory(framework: str, shape: tuple[int, ...], dtype: str, name: str) -> int:
    """After a first call."""
    step = STEPS[framework](*problem(*shape), dtype)[name]
    step()
    rows, features, classes = shape
    return clock.peak_memory(step) - (rows + classes) * features * WIDTH[dtype]


def widened(k: Any, dtype: str) -> Any:
    return truth.rounded(k, dtype).astype(np.float64)


def exact(h: Any, w: Any, y: Any) -> tuple[Any, Any, Any]:
    loss, dh, dw = 0.0, np.empty_like(h), np.zeros_like(w)
    for start in range(0, len(y), 256):
        part = slice(start, start + 256)
        x, rows = h[part] @ w.T, np.arange(len(y[part]))
        x -= x.max(1, keepdims=True)
        at_label = x[rows, y[part]]
        np.exp(x, out=x)
        total = x.sum(1, keepdims=True)
        loss += float((np.log(total[:, 0]) - at_label).sum())
        x /= total
        x[rows, y[part]] -= 1
        dh[part], dw[:] = x @ w, dw + x.T @ h[part]
    return np.asarray(loss / len(y)), dh / len(y), dw / len(y)


def error(got: Any, want: Any) -> float:
    values = np.asarray(got.float() if hasattr(got, "float") else got, np.float64)
    return float(np.linalg.norm(values - want) / np.linalg.norm(want))


# ---- all of them


def ask(*arguments: str) -> Any:
    """In a process of its own; None where it did not live to answer."""
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"}
    command = [sys.executable, __file__, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    return json.loads(done.stdout.splitlines()[-1]) if done.returncode == 0 else None


def report(framework: str, shape: str, dtype: str, rounds: int) -> None:
    found = ask("--framework", framework, "--shape", shape, "--dtype", dtype, "--rounds", str(rounds), "--worker", "")
    if found is None:
        print(f"| {shape} {dtype} | {framework} | failed | | | | |", flush=True)
        return
    first = next(iter(found.values()))["times"]
    rows, _, classes = map(int, shape.split("x"))
    for name, one in found.items():
        extra = ask("--framework", framework, "--shape", shape, "--dtype", dtype, "--worker", name)
        ratio = statistics.median(mine / theirs for mine, theirs in zip(one["times"], first, strict=True))
        share = "-" if extra is None else f"{extra / 1e6:.0f} MB, {100 * extra / (4 * rows * classes):.1f} %"
        errors = ", ".join(f"{e:.0e}" for e in one["errors"])
        median = statistics.median(one["times"])
        print(
            f"| {shape} {dtype} | {framework} | {name} | {median:.2f} s | {ratio:.2f}x | {share} | {errors} |",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--framework", choices=FRAMEWORKS, action="append")
    parser.add_argument("--shape", default="2048x1024x32000", help="rows x features x classes")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--sweep", action="store_true", help="also with eight times the rows")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    given = parser.parse_args()
    shape = tuple(map(int, given.shape.split("x")))
    if given.worker is not None:
        one = given.framework[0]
        answer = memory(one, shape, given.dtype, given.worker) if given.worker else None
        print(json.dumps(answer if given.worker else times(one, shape, given.dtype, given.rounds)))
        return
    columns = (
        "rows x features x classes",
        "on",
        "contender",
        "time",
        "of the first",
        "memory, of the logits'",
        "errors",
    )
    print("| " + " | ".join(columns) + " |\n" + "| --- " * len(columns) + "|")
    rows, *rest = shape
    for n in (rows, 8 * rows) if given.sweep else (rows,):
        for framework in given.framework or FRAMEWORKS:
            report(framework, "x".join(map(str, (n, *rest))), given.dtype, given.rounds)


if __name__ == "__main__":
    main()
