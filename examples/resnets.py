"""Measures weight rescaling and Gradient Centralization (GC) on pictures, in small ResNets.

A ResNet with BatchNorm (BN) and the same with GroupNorm (GN) tell apart the pictures of
`drawings.py`, trained by SGD with momentum. Arms differ in what happens to the kernels that a norm
follows, which are those that `scale_invariant` finds: weight decay, `rescale_weights` in its place,
neither; and decay with GC, and with the control of GC. The head decays in every arm. Learning rate
and decay are tuned for each arm, on the same grid with the same seeds, by the negative
log-likelihood (NLL) of validation pictures: all points on one seed, the best three on two more.
Fresh seeds are then tested. A seed draws the training pictures, the initial weights and the
batches, the same for every arm.

Along the way it measures two claims of the paper on weight rescaling (arXiv 2102.03497): that such
kernels grow where nothing holds them, and that what the inputs of a layer do not span stays in its
weights.

Results go to a CSV file, a row for each run, as soon as it is done; what it already has is not run
again. `resnets_table.py` makes the tables and the figure of docs/resnets.md from it.
"""

import argparse
import itertools
import os
import time
from collections.abc import Iterator
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import flax
import jax
import jax.numpy as jnp
import numpy as np
import optax
import resnets_table
from drawings import FIGURES, draw
from flax import nnx
from resnets_table import ARMS, BASELINE, CAP, MARKS, NORMS
from study_arms import choose, project_out_random
from study_table import check_folders, check_same, versions_of
from tqdm import tqdm

import optax_gc
from optax_gc import axes_from_rank, centralize, diagnostics, rescale_weights, scale_invariant


class Size(NamedTuple):
    """How large, how long, how often, and over which grid."""

    pixels: int  # height and width of a picture
    blocks: int  # of each of three stages
    width: int  # of the first stage; it doubles from stage to stage
    train: int  # pictures, as the next two
    validation: int
    test: int
    batch: int
    steps: int
    rates: tuple[float, ...]  # of learning, at the first step; they fall to 0 as a cosine
    decays: tuple[float, ...]  # decoupled
    seeds: int
    tuning_seeds: int


SIZES = {
    "tiny": Size(8, 1, 4, 40, 20, 20, 10, 10, (0.1, 0.3), (0.01,), 2, 2),
    "cpu": Size(16, 1, 8, 2000, 1000, 2000, 64, 400, (0.05, 0.15, 0.45), (0.003, 0.02, 0.1), 8, 3),
    "gpu": Size(
        *(32, 3, 16, 10_000, 2000, 10_000, 128, 6000),
        *((0.03, 0.1, 0.3, 1.0), (0.0003, 0.002, 0.01), 8, 3),
    ),
}
TUNING = 1000  # the first of the seeds that tune, apart from those that test
FINALISTS = 3  # points of the grid, the best on the first of those seeds, that go on to the others


class Block(nnx.Module):
    """Two convolutions and a way around them."""

    def __init__(self, norm, inputs: int, width: int, stride: int, rngs: nnx.Rngs):
        """Draws the initial weights."""
        conv = partial(nnx.Conv, use_bias=False, rngs=rngs)
        self.conv1 = conv(inputs, width, (3, 3), strides=stride, padding=1)
        self.conv2 = conv(width, width, (3, 3), padding=1)
        self.norm1, self.norm2 = norm(width), norm(width)
        changes = inputs != width
        self.around = conv(inputs, width, (1, 1), strides=stride) if changes else None
        self.norm3 = norm(width) if changes else None

    def __call__(self, x):
        """Returns activations of shape (batch, height / stride, width / stride, width)."""
        y = self.norm2(self.conv2(nnx.relu(self.norm1(self.conv1(x)))))
        if self.around is not None and self.norm3 is not None:
            x = self.norm3(self.around(x))
        return nnx.relu(y + x)


class ResNet(nnx.Module):
    """A convolution, three stages of blocks, the mean over pixels, a head."""

    def __init__(self, kind: str, size: Size, rngs: nnx.Rngs):
        """Draws the initial weights."""
        norm = {
            "BN": partial(nnx.BatchNorm, momentum=0.9, rngs=rngs),
            "GN": partial(nnx.GroupNorm, num_groups=4, rngs=rngs),
        }[kind]
        widths = [size.width * 2**stage for stage in range(3) for _ in range(size.blocks)]
        self.stem = nnx.Conv(3, size.width, (3, 3), padding=1, use_bias=False, rngs=rngs)
        self.norm = norm(size.width)
        self.blocks = nnx.List(
            Block(norm, before, width, 1 if before == width else 2, rngs)
            for before, width in zip([size.width, *widths], widths, strict=False)
        )
        self.head = nnx.Linear(widths[-1], len(FIGURES), rngs=rngs)

    def __call__(self, x):
        """Returns logits."""
        x = nnx.relu(self.norm(self.stem(x)))
        for block in self.blocks:
            x = block(x)
        return self.head(x.mean(axis=(1, 2)))


class Pictures(NamedTuple):
    """Drawings from -1 to 1, with equal scales for all colours, which keeps green equal to blue."""

    x: jax.Array
    y: jax.Array
    test_x: jax.Array
    test_y: jax.Array
    misprinted: jax.Array  # test pictures whose green and blue differ, as they never did before


@cache
def pictures(size: Size) -> Pictures:
    """Draws a pool, of which each seed takes its part, and a test set."""
    x, y = draw(2 * (size.train + size.validation), seed=0, size=size.pixels)
    test_x, test_y = draw(size.test, seed=1, size=size.pixels)
    x, test_x = (np.float32(images / 127.5 - 1) for images in (x, test_x))
    noise = np.random.default_rng(2).normal(scale=0.5, size=(*test_x.shape[:3], 1))
    misprinted = np.float32(test_x + noise * np.array([0, 1, -1]))
    return Pictures(*map(jnp.asarray, (x, y, test_x, test_y, misprinted)))


def sample(size: Size, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns a seed's validation pictures, and those of each step's batch: (steps, batch)."""
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(pictures(size).x))
    validation, train = np.split(order[: size.validation + size.train], [size.validation])
    epochs = -(-size.steps * size.batch // size.train)
    order = rng.permuted(np.tile(train, (epochs, 1)), axis=1).ravel()
    return validation, order[: size.steps * size.batch].reshape(size.steps, size.batch)


class Net:
    """One kind of net: one compilation, for all arms, seeds, rates and decays."""

    def __init__(self, kind: str, size: Size):
        """Finds the scale-invariant kernels, and sets up training and evaluation."""
        graph = nnx.graphdef(nnx.eval_shape(lambda: ResNet(kind, size, nnx.Rngs(0))))
        per = "unit" if kind == "BN" else "layer"  # what is scale-invariant before such a norm

        def init(key):
            return nnx.split(ResNet(kind, size, nnx.Rngs(key)), nnx.Param, nnx.BatchStat)[1:]

        def loss(params, stats, x, y):
            net = nnx.merge(graph, params, jax.tree.map(jnp.asarray, stats))
            net.train()
            nll = optax.softmax_cross_entropy_with_integer_labels(net(x), y).mean()
            return nll, nnx.state(net, nnx.BatchStat)

        params, stats = init(jax.random.key(0))
        some = pictures(size).x[: 2 * size.batch], pictures(size).y[: 2 * size.batch]
        some = [a.reshape(2, size.batch, *a.shape[1:]) for a in some]
        grad = jax.grad(loss, has_aux=True)
        grads = jax.jit(jax.vmap(grad, (None, None, 0, 0)))(params, stats, *some)[0]
        self.axes = scale_invariant(params, grads, per=per)
        is_axes = dict(is_leaf=lambda x: isinstance(x, tuple))
        kernels = jax.tree.map(bool, axes_from_rank(params), **is_axes)
        others = jax.tree.map(lambda all, a: all and not a, kernels, self.axes)

        def optimizer(arm, lr, decay, key):
            gradient = {"GC": centralize(), "random direction": project_out_random(key)}
            held = rescale_weights(self.axes, per=per)
            nothing = optax.identity()
            decayed = [others if a in ("rescaling", "neither") else kernels for a in ARMS]
            return optax.chain(
                choose(arm, [gradient.get(a, nothing) for a in ARMS]),
                optax.trace(0.9),
                choose(arm, [optax.add_decayed_weights(decay, mask) for mask in decayed]),
                optax.scale_by_learning_rate(optax.cosine_decay_schedule(lr, size.steps)),
                choose(arm, [held if a == "rescaling" else nothing for a in ARMS]),
            )

        def watch(params):
            """Of each scale-invariant kernel the norm; and the first kernel."""
            norms = jax.tree.map(lambda w, a: optax.tree.norm(w) if a else None, params, self.axes)
            return jnp.stack(jax.tree.leaves(norms)), params["stem"]["kernel"][...]

        # A call for each step: inside of lax.scan convolutions take ten times as long on CPUs.
        def start(seed, arm):
            params, stats = init(jax.random.key(seed))
            return params, stats, optimizer(arm, 0.0, 0.0, key_of(seed)).init(params)

        def step(carry, ids, seed, arm, lr, decay, x, y):
            params, stats, state = carry
            grads, stats = grad(params, stats, x[ids], y[ids])
            tx = optimizer(arm, lr, decay, key_of(seed))
            updates, state = tx.update(grads, state, params)
            return optax.apply_updates(params, updates), stats, state

        def key_of(seed):
            return jax.random.fold_in(jax.random.key(seed), 1)

        def evaluate(trained, x, y):
            net = nnx.merge(graph, *trained)
            net.eval()
            logits = net(x)
            nll = optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()
            return nll, (logits.argmax(axis=-1) == y).mean()

        self.start, self.step = jax.jit(start), jax.jit(step, donate_argnums=0)
        self.watch, self.evaluate = jax.jit(watch), jax.jit(evaluate)

    def train(self, arm: str, seed: int, lr: float, decay: float, batches: np.ndarray, x, y):
        """Trains on batches of shape (steps, batch) of indices into x and y.

        Returns:
          Parameters and statistics; norms of shape (marks, kernels), and the first kernel at each.
        """
        index = list(ARMS).index(arm)
        carry = self.start(seed, index)
        seen = [self.watch(carry[0])]
        for part in np.split(batches, len(MARKS) - 1):
            for ids in part:
                carry = self.step(carry, ids, seed, index, lr, decay, x, y)
            seen.append(self.watch(carry[0]))
        return carry[:2], [np.stack(values) for values in zip(*seen, strict=True)]


@cache
def net_of(kind: str, size: Size) -> Net:
    """Returns a net, compiled once."""
    return Net(kind, size)


def outside(kernels: np.ndarray, size: Size, batches: np.ndarray) -> np.ndarray:
    """Returns the norm of the part of each first kernel that the training pictures do not span."""
    x = pictures(size).x[batches[: 256 // size.batch + 1].ravel()]
    residual = partial(diagnostics.span_residual, inputs=x, padding=((1, 1), (1, 1)))
    parts = jax.vmap(residual)(jnp.asarray(kernels))
    return np.linalg.norm(parts.reshape(len(kernels), -1), axis=1)


def run(size: Size, norm: str, arm: str, split: str, lr: float, decay: float, seed: int):
    """Trains and measures once; returns its part of a row."""
    start, (data, net) = time.process_time(), (pictures(size), net_of(norm, size))
    validation, batches = sample(size, seed)
    trained, (norms, first) = net.train(arm, seed, lr, decay, batches, data.x, data.y)
    if split != "validation":
        on = [(data.test_x, data.test_y), (data.misprinted, data.test_y)]
    else:
        on = [(data.x[validation], data.y[validation])] * 2
    (nll, accuracy), (_, misprinted) = [np.asarray(net.evaluate(trained, *xy)) for xy in on]
    left = outside(first, size, batches)
    diverged = not np.isfinite(nll)
    return {
        "nll": CAP if diverged else min(float(nll), CAP),
        "accuracy": 1 / len(FIGURES) if diverged else float(accuracy),
        "misprinted": 1 / len(FIGURES) if diverged else float(misprinted),
        "growth": np.exp(np.log(norms / norms[0]).mean(axis=1)),
        "outside": left / left[0],
        "share": left / np.linalg.norm(first.reshape(len(first), -1), axis=1),
        "seconds": time.process_time() - start,
    }


def runs_of(size: Size, norm: str, arm: str, rows: list[dict[str, Any]]) -> Iterator[tuple]:
    """Yields the runs of an arm, each of which may depend on the outcomes of those before it."""
    first, *more = range(TUNING, TUNING + size.tuning_seeds)
    grid = list(itertools.product(size.rates, size.decays))
    for lr, decay in grid:
        yield norm, arm, "validation", lr, decay, first
    losses = {
        (row["lr"], row["decay"]): row["nll"]
        for row in rows
        if (row["norm"], row["arm"], row["split"], row["seed"]) == (norm, arm, "validation", first)
    }
    finalists = sorted(grid, key=lambda point: losses[point])[:FINALISTS]
    for (lr, decay), seed in itertools.product(finalists, more):
        yield norm, arm, "validation", lr, decay, seed
    lr, decay = resnets_table.chosen(rows, norm, arm)
    for seed in range(size.seeds):
        yield norm, arm, "test", lr, decay, seed
    if arm == "GC":  # is it GC, or the rate and the decay that tuning chose for it?
        for seed in range(size.seeds):
            yield norm, BASELINE, "test", lr, decay, seed


def provenance(size: Size) -> dict[str, str]:
    """What rows must share to be compared."""
    libraries = (jax, flax, optax, optax_gc)
    # Not the grid and the seeds: those can grow.
    names = size._fields[: size._fields.index("rates")]
    return {
        "settings": "; ".join(f"{name}={getattr(size, name)}" for name in names),
        "versions": versions_of(*libraries),
        "device": f"{jax.devices()[0].device_kind}, {os.cpu_count()} cores",
    }


def finished(path: Path, shared: dict[str, str]) -> list[dict[str, Any]]:
    """Reads the rows that need not be run again; refuses those of another study."""
    rows = resnets_table.read(path) if path.exists() else []
    for row in rows:
        check_same(path, row, shared)
    return rows


def parse_args() -> argparse.Namespace:
    """Reads the command line and refuses what cannot be run."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    add, here = parser.add_argument, Path("examples")
    default = "cpu" if jax.default_backend() == "cpu" else "gpu"
    add("--csv", type=Path, default=here / "resnets.csv", help="results; finished rows are kept")
    add("--figure", type=Path, default=Path("images/resnets.png"), help="figure to draw")
    add("--size", choices=SIZES, default=default, help="tiny: seconds; gpu: larger nets and grids")
    add("--norms", nargs="+", choices=NORMS, default=list(NORMS), help="which nets")
    add("--arms", nargs="+", choices=ARMS, default=list(ARMS), help="which arms")
    args = parser.parse_args()
    check_folders(parser, csv=args.csv, figure=args.figure)
    return args


def main():
    """Runs what is missing, then draws the figure."""
    args = parse_args()
    size = SIZES[args.size]
    shared = provenance(size)
    rows = finished(args.csv, shared)
    done = {tuple(row[name] for name in resnets_table.KEY) for row in rows}
    points, arms = (
        len(size.rates) * len(size.decays),
        list(itertools.product(args.norms, args.arms)),
    )
    each = points + min(points, FINALISTS) * (size.tuning_seeds - 1) + size.seeds
    total = each * len(arms) + size.seeds * sum(arm == "GC" for _, arm in arms)
    with tqdm(total=total, unit="run") as bar:
        for norm, arm in arms:
            bar.set_description(f"{norm}, {arm}")
            for key in runs_of(size, norm, arm, rows):
                if key not in done:
                    row = dict(zip(resnets_table.KEY, key, strict=True))
                    rows.append(row | run(size, *key) | shared)
                    resnets_table.write(args.csv, rows)
                    done.add(key)
                bar.update()
    resnets_table.draw(resnets_table.read(args.csv), args.figure)
    print(f"Results: {args.csv}. Figure: {args.figure}.")


if __name__ == "__main__":
    main()
