"""A character-level language model, trained through the same loss in PyTorch, JAX, TensorFlow and by hand in NumPy.

    pip install ".[all]" optax && python docs/examples/char_lm.py

About a minute for each. The text is Python's standard library. Initial parameters and batches are the same everywhere,
so the curves should be, too. Each framework uses its own optimiser and its own way to differentiate and compile a step.
"""

from __future__ import annotations

import argparse
import inspect
import time
import typing
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
import xent

CONTEXT, WIDTH, FEATURES, BATCH = 16, 32, 256, 512  # characters seen; an embedding's and the hidden size; rows
RATE, MOMENTUM = 0.1, 0.9
Array = Any
Parameters = dict[str, Any]
Step = Callable[[Any, Any], float]  # (the characters before, the one after) -> the loss


# ---- the same for all frameworks


def loss(p: Parameters, seen: Array, after: Array, tanh: Callable[[Array], Array]) -> Array:
    """In nats a character; `seen`: the embeddings of the characters before it, side by side."""
    hidden = tanh(seen @ p["mixer"])
    return xent.linear_ce(hidden, p["head"], after, bias=p["bias"])


def start(classes: int) -> Parameters:
    rng = np.random.default_rng(0)
    inputs = CONTEXT * WIDTH
    drawn = {
        "embedding": rng.standard_normal((classes, WIDTH)),
        "mixer": rng.standard_normal((inputs, FEATURES)) / inputs**0.5,
        "head": rng.standard_normal((classes, FEATURES)) / FEATURES**0.5,
        "bias": np.zeros(classes),
    }
    return {name: value.astype(np.float32) for name, value in drawn.items()}


def corpus() -> tuple[Any, int]:
    """The text as numbers, and how many characters there are to choose from."""
    text = inspect.getsource(argparse) + inspect.getsource(typing)
    letters, ids = np.unique(list(text), return_inverse=True)
    return ids.astype(np.int64), len(letters)


def batches(ids: Any, steps: int) -> Iterator[tuple[Any, Any]]:
    rng = np.random.default_rng(1)
    for _ in range(steps):
        places = rng.integers(0, len(ids) - CONTEXT, BATCH)
        windows = ids[places[:, None] + np.arange(CONTEXT + 1)]
        yield windows[:, :-1], windows[:, -1]


# ---- each framework's own step


def with_torch(initial: Parameters) -> Step:
    import torch

    p = {name: torch.tensor(value, requires_grad=True) for name, value in initial.items()}
    optimiser = torch.optim.SGD(p.values(), lr=RATE, momentum=MOMENTUM)

    def step(before: Any, after: Any) -> float:
        optimiser.zero_grad()
        seen = p["embedding"][torch.from_numpy(before)].flatten(1)
        value = loss(p, seen, torch.from_numpy(after), torch.tanh)
        value.backward()
        optimiser.step()
        return value.item()

    return step


def with_jax(initial: Parameters) -> Step:
    import jax
    import jax.numpy as jnp
    import optax

    optimiser = optax.sgd(RATE, MOMENTUM)
    state = [initial, optimiser.init(initial)]

    @jax.jit
    def update(p: Any, moments: Any, before: Array, after: Array) -> Any:
        def of(p: Any) -> Array:
            return loss(p, p["embedding"][before].reshape(BATCH, -1), after, jnp.tanh)

        value, gradients = jax.value_and_grad(of)(p)
        changes, moments = optimiser.update(gradients, moments)
        return optax.apply_updates(p, changes), moments, value

    def step(before: Any, after: Any) -> float:
        state[0], state[1], value = update(*state, before.astype(np.int32), after.astype(np.int32))
        return float(value)

    return step


def with_tensorflow(initial: Parameters) -> Step:
    import tensorflow as tf

    p = {name: tf.Variable(value, name=name) for name, value in initial.items()}
    optimiser = tf.keras.optimizers.SGD(RATE, MOMENTUM)

    @tf.function
    def update(before: Array, after: Array) -> Array:
        with tf.GradientTape() as tape:
            seen = tf.reshape(tf.gather(p["embedding"], before), [BATCH, -1])
            value = loss(p, seen, after, tf.tanh)
        gradients = tape.gradient(value, list(p.values()))
        optimiser.apply_gradients(zip(gradients, p.values(), strict=True))
        return value

    return lambda before, after: float(update(tf.constant(before), tf.constant(after)))


def with_numpy(initial: Parameters) -> Step:
    """No framework to differentiate: the loss brings its own derivatives, the two layers below it are by hand."""
    p = {name: value.copy() for name, value in initial.items()}
    moments = {name: np.zeros_like(value) for name, value in p.items()}
    value_and_grad = xent.value_and_grad(xent.linear_ce)

    def step(before: Any, after: Any) -> float:
        seen = p["embedding"][before].reshape(BATCH, -1)
        hidden = np.tanh(seen @ p["mixer"])
        value, of = value_and_grad(hidden, p["head"], after, bias=p["bias"])
        of_sum = of.hidden * (1 - hidden * hidden)
        of_embedding = np.zeros_like(p["embedding"])
        np.add.at(of_embedding, before, (of_sum @ p["mixer"].T).reshape(BATCH, CONTEXT, WIDTH))
        gradients = {"embedding": of_embedding, "mixer": seen.T @ of_sum, "head": of.weight, "bias": of.bias}
        for name, gradient in gradients.items():
            moments[name] = MOMENTUM * moments[name] + gradient
            p[name] -= RATE * moments[name]
        return float(value)

    return step


FRAMEWORKS = {"torch": with_torch, "jax": with_jax, "tensorflow": with_tensorflow, "numpy": with_numpy}


# ---- the program


def train(framework: str, steps: int) -> list[float]:
    ids, classes = corpus()
    step = FRAMEWORKS[framework](start(classes))
    return [step(*batch) for batch in batches(ids, steps)]


def draw(curves: dict[str, list[float]], file: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for (name, losses), style in zip(curves.items(), ("-", "--", ":", "-."), strict=False):
        axes.plot(losses, style, label=f"{name}: {np.mean(losses[-50:]):.4f} nats in the end", linewidth=1.5)
    axes.set(xlabel="step", ylabel="loss, nats a character", ylim=(0, None))
    axes.legend()
    figure.savefig(file, dpi=150)


def main(
    framework: Annotated[list[str] | None, typer.Option(help="Only this one; repeat for more.")] = None,
    steps: int = 2000,
    png: Path = Path("char_lm.png"),
) -> None:
    curves = {}
    for name in framework or FRAMEWORKS:
        begun = time.perf_counter()
        curves[name] = train(name, steps)
        typer.echo(f"{name}: {np.mean(curves[name][-50:]):.4f} nats after {time.perf_counter() - begun:.0f} s")
    apart = np.ptp([*curves.values()], axis=0).max()
    typer.echo(f"the curves are at most {apart:.1e} nats apart")
    draw(curves, png)


if __name__ == "__main__":
    typer.run(main)
