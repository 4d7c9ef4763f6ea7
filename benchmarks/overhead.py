"""Times an optimizer step with Gradient Centralization over the same step without, on any device.

    python benchmarks/overhead.py [--quick] [--csv FILE] [--chart FILE] [--trees NAME ...]

A step is update and apply, with parameters and optimizer state donated, all in the row's dtype.
The variants of a row take turns on the same arrays; a ratio is the median over the rounds of a
variant's time over the time without GC in the same round, with the least and the greatest in
brackets. The formula and Optax's take turns by themselves: what they free, up to a gigabyte, slows
down whatever comes next. The step without GC is timed twice a round: a row in which it differs from
itself by over 5 % is void. Two bounds stand beside them. The floor counts passes over memory, one
more read of each kernel's gradient among them. "read" is the step without GC and then a program
that does nothing but that read. A row takes at most 50 rounds of each, and begins none after 15
seconds: some 12 minutes in all on two cores.
"""

import argparse
import csv
import functools
import os
import pathlib
import random
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
import trees
from tables import AGAIN, NAIVE, OPTAX, OURS, READ, WITHOUT, chart, lines
from tqdm import tqdm

from optax_gc import axes_from_rank, centralize

Step = Callable[..., Any]

OPTIMIZERS = {
    "sgd, momentum": optax.sgd(1e-6, momentum=0.9),
    "adam": optax.adam(1e-6),
}
# Passes over memory: parameter and moments are read and written, and the gradient is read.
PASSES = {"sgd, momentum": 5, "adam": 7}
VOID = 0.05
SECONDS, LEAST_ROUNDS = 15, 5  # for the rounds of a turn
TURNS = ((WITHOUT, AGAIN, OURS, READ), (WITHOUT, NAIVE, OPTAX))


def naive(axes: Any) -> optax.GradientTransformation:
    """What one would write: ``g - jnp.mean(g, axes, keepdims=True)``."""

    def subtract(g: jax.Array, axes: tuple[int, ...]) -> jax.Array:
        return g - jnp.mean(g, axes, keepdims=True) if axes else g

    return optax.stateless(lambda updates, _: jax.tree.map(subtract, updates, axes))


def steps(axes: Any, optimizer: optax.GradientTransformation) -> dict[str, Step]:
    """Each variant's step; identity() stands for no GC, so that all states are alike."""

    def step_of(first: optax.GradientTransformation) -> Step:
        tx = optax.chain(first, optimizer)

        def step(params: Any, state: Any, grads: Any) -> tuple[Any, Any]:
            updates, state = tx.update(grads, state, params)
            return optax.apply_updates(params, updates), state

        return jax.jit(step, donate_argnums=(0, 1))

    return {
        WITHOUT: step_of(optax.identity()),
        OPTAX: step_of(optax.centralize()),
        NAIVE: step_of(naive(axes)),
        OURS: step_of(centralize(axes)),
    }


def read(axes: Any, structs: Any) -> Step:
    """A step that does nothing but add up each kernel's gradient, all of it to one number."""

    @jax.jit
    def totals(grads: Any) -> Any:
        return jax.tree.map(lambda g, axes: jnp.sum(g) if axes else 0.0, grads, axes)

    program = totals.lower(structs).compile()

    def step(params: Any, state: Any, grads: Any) -> tuple[Any, Any]:
        jax.block_until_ready(program(grads))
        return params, state

    return step


def compiled(step: Step, *args: Any) -> tuple[Any, dict[str, float]]:
    """The compiled step with the seconds that tracing and compiling took, and its bytes."""
    start = time.perf_counter()
    lowered = step.lower(*args)  # type: ignore[attr-defined]
    traced = time.perf_counter()
    program = lowered.compile()
    done = time.perf_counter()
    memory, cost = program.memory_analysis(), program.cost_analysis() or {}
    return program, {
        "trace_s": traced - start,
        "compile_s": done - traced,
        "temporaries": getattr(memory, "temp_size_in_bytes", float("nan")),
        "accessed": cost.get("bytes accessed", float("nan")),
    }


def interleaved(programs: dict[str, Step], args: tuple[Any, ...], rounds: int) -> dict[str, list]:
    """Seconds of every program in every round; donated results go on.

    The order is another in every round: a program that frees gigabytes slows the next one down.
    """
    *carry, last = args
    seconds: dict[str, list[float]] = {name: [] for name in programs}
    names, order = list(programs), random.Random(0)
    end = time.monotonic() + SECONDS
    for i in range(rounds + 1):
        if i > LEAST_ROUNDS and time.monotonic() > end:
            break
        for name in order.sample(names, len(names)):
            start = time.perf_counter()
            carry = jax.block_until_ready(programs[name](*carry, last))
            if i:  # the first round warms up
                seconds[name].append(time.perf_counter() - start)
    return seconds


def ratios(seconds: dict[str, list[float]]) -> dict[str, tuple[float, float, float]]:
    """Median, least and greatest of the ratios to the step without, round by round."""
    of = {n: [a / b for a, b in zip(s, seconds[WITHOUT], strict=True)] for n, s in seconds.items()}
    if READ in of:
        of[READ] = [1 + ratio for ratio in of[READ]]
    return {n: (statistics.median(r), min(r), max(r)) for n, r in of.items() if n != WITHOUT}


def row(name: str, make: Callable[[], Any], dtype: Any, optimizer: str, rounds: int) -> dict:
    """Measures one tree, dtype and optimizer."""
    tree = make()
    structs, tx = trees.structs(tree, dtype), OPTIMIZERS[optimizer]
    gradients = trees.nbytes(structs)
    state = jax.eval_shape(optax.chain(optax.identity(), tx).init, structs)
    programs, numbers = {}, {}
    for variant, step in steps(trees.axes(tree), tx).items():
        programs[variant], numbers[variant] = compiled(step, structs, state, structs)
    programs[AGAIN] = programs[WITHOUT]
    programs[READ] = read(trees.axes(tree), structs)
    init = jax.jit(lambda key: trees.arrays(tree, key, dtype))
    zeros = jax.jit(lambda: jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), state))
    seconds, measured = {}, {}
    for turn in TURNS:
        chosen = {variant: programs[variant] for variant in turn}
        # No name keeps what the first turn is done with.
        found = interleaved(
            chosen, (init(jax.random.key(0)), zeros(), init(jax.random.key(1))), rounds
        )
        measured |= ratios(found)
        seconds = found | seconds
    return {
        "tree": name,
        "dtype": jnp.dtype(dtype).name,
        "optimizer": optimizer,
        "gradients": gradients,
        "seconds": {v: statistics.median(s) for v, s in seconds.items()},
        "ratios": measured,
        "void": abs(measured[AGAIN][0] - 1) > VOID,
        "rounds": len(seconds[WITHOUT]),
        "floor": 1 + trees.share(tree) / PASSES[optimizer],
        **{
            key: {v: (n[key] - numbers[WITHOUT][key]) / gradients for v, n in numbers.items()}
            for key in ("temporaries", "accessed")
        },
    }


def compile_row(leaves: int) -> dict:
    """Seconds to trace and to compile an Adam step of `leaves` small arrays."""
    tree = trees.many_layers(leaves)
    structs, adam = trees.structs(tree), OPTIMIZERS["adam"]
    state = jax.eval_shape(optax.chain(optax.identity(), adam).init, structs)
    found = {}
    for variant, step in steps(trees.axes(tree), adam).items():
        if variant in (WITHOUT, NAIVE, OURS):
            numbers = compiled(step, structs, state, structs)[1]
            found[variant] = {key: numbers[key] for key in ("trace_s", "compile_s")}
    return {"leaves": leaves, **found}


class SmallViT(nn.Module):
    """A vision transformer for 32×32 images in patches of 4×4."""

    layers: int
    width: int = 192

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        """Logits of 100 classes."""
        x = nn.Conv(self.width, (4, 4), strides=(4, 4), padding="VALID")(images)
        x = x.reshape(x.shape[0], -1, self.width)
        x = x + self.param("positions", nn.initializers.normal(0.02), (1, x.shape[1], self.width))
        for _ in range(self.layers):
            x = x + nn.MultiHeadDotProductAttention(num_heads=3)(nn.LayerNorm()(x))
            x = x + nn.Dense(self.width)(nn.gelu(nn.Dense(4 * self.width)(nn.LayerNorm()(x))))
        return nn.Dense(100)(nn.LayerNorm()(x).mean(1))


def training_row(rounds: int, layers: int, batch: int) -> dict:
    """A full training step, forward and backward pass included, with Adam."""
    model = SmallViT(layers=layers)
    images = jax.random.uniform(jax.random.key(0), (batch, 32, 32, 3))
    labels = jax.random.randint(jax.random.key(1), (batch,), 0, 100)
    params = model.init(jax.random.key(2), images)["params"]
    adam = OPTIMIZERS["adam"]

    def step_of(first: optax.GradientTransformation) -> Step:
        tx = optax.chain(first, adam)

        @functools.partial(jax.jit, donate_argnums=(0, 1))
        def step(params: Any, state: Any, data: Any) -> tuple[Any, Any]:
            def loss(params: Any) -> jax.Array:
                logits = jnp.asarray(model.apply({"params": params}, data[0]))
                return optax.softmax_cross_entropy_with_integer_labels(logits, data[1]).mean()

            updates, state = tx.update(jax.grad(loss)(params), state, params)
            return optax.apply_updates(params, updates), state

        return step

    state = optax.chain(optax.identity(), adam).init(params)
    firsts = {WITHOUT: optax.identity(), OURS: centralize(axes_from_rank)}
    args = (params, state, (images, labels))
    programs = {v: compiled(step_of(first), *args)[0] for v, first in firsts.items()}
    programs[AGAIN] = programs[WITHOUT]
    seconds = interleaved(programs, args, rounds)
    measured = ratios(seconds)
    return {
        "batch": batch,
        "rounds": len(seconds[WITHOUT]),
        "seconds": {v: statistics.median(s) for v, s in seconds.items()},
        "ratios": measured,
        "void": abs(measured[AGAIN][0] - 1) > VOID,
    }


FIELDS = (
    "step", "dtype", "optimizer", "variant", "seconds", "ratio", "least", "greatest", "floor",
    "void", "temporaries", "accessed", "trace_s", "compile_s", "rounds", "load", "device", "jax",
)  # fmt: skip


def records(result: dict) -> Iterator[dict]:
    """A record for each variant of each row; times to trace and to compile have their own."""
    run = {key: result[key] for key in ("load", "device", "jax")}
    training = {
        "tree": "training, small ViT",
        "dtype": "float32",
        "optimizer": "adam",
        **result["training"],
    }
    for r in [*result["rows"], training]:
        for variant, seconds in r["seconds"].items():
            median, least, greatest = r["ratios"].get(variant, ("", "", ""))
            yield {
                "step": r["tree"],
                "dtype": r["dtype"],
                "optimizer": r["optimizer"],
                "variant": variant,
                "seconds": seconds,
                "ratio": median,
                "least": least,
                "greatest": greatest,
                "floor": r.get("floor", ""),
                "void": r["void"],
                "rounds": r["rounds"],
                **{k: r[k].get(variant, "") for k in ("temporaries", "accessed") if k in r},
                **run,
            }
    for r in result["compile"]:
        for variant in (WITHOUT, NAIVE, OURS):
            yield {"step": f"{r['leaves']} arrays", "variant": variant, **r[variant], **run}


def main() -> None:
    """Measures, prints, and writes what is asked for."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="small trees, under a minute")
    parser.add_argument("--csv", type=pathlib.Path, help="write every number to this file")
    parser.add_argument("--chart", type=pathlib.Path, help="write a bar chart to this file")
    parser.add_argument("--rounds", type=int, help="at most, a row (default 50, quick 5)")
    parser.add_argument("--trees", nargs="+", choices=list(trees.TREES), help="only these")
    options = parser.parse_args()
    rounds = options.rounds or (5 if options.quick else 50)
    names = options.trees or list(trees.TREES)
    chosen = {name: trees.TREES[name] for name in names}
    if options.quick and not options.trees:
        chosen = {"one block": lambda: trees.transformer(1)["blocks"]}
    kinds = [(jnp.float32, "adam"), (jnp.bfloat16, "adam"), (jnp.float32, "sgd, momentum")]
    jobs = [
        ("rows", functools.partial(row, name, make, dtype, optimizer, rounds))
        for dtype, optimizer in kinds[: 2 if options.quick else 3]
        for name, make in chosen.items()
    ]
    jobs += [
        ("compile", functools.partial(compile_row, leaves))
        for leaves in ((50,) if options.quick else (50, 300, 1500))
    ]
    device = jax.devices()[0]
    result: dict[str, Any] = {
        "device": f"{len(jax.devices())} × {device.device_kind}, {os.cpu_count()} CPU cores",
        "jax": jax.__version__,
        "load": " ".join(f"{x:.1f}" for x in os.getloadavg()),
        "rows": [],
        "compile": [],
    }
    with tqdm(total=len(jobs) + 1, desc="rows", disable=None) as bar:
        for table, job in jobs:
            result[table].append(job())
            bar.update()
        result["training"] = training_row(rounds, *((1, 8) if options.quick else (4, 32)))
        bar.update()
    print("\n".join(lines(result)))
    if options.csv:
        with options.csv.open("w", newline="") as file:
            writer = csv.DictWriter(file, FIELDS, lineterminator="\n")
            writer.writeheader()
            writer.writerows(records(result))
    if options.chart:
        chart(result, options.chart)


if __name__ == "__main__":
    main()
