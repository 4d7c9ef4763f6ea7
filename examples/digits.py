"""Trains a small Flax network on real handwritten digits, with and without Gradient Centralization.

Six arms: SGD with momentum and Adam, each on the plain gradient, after optax.centralize and after
optax_gc.centralize. optax.centralize shows what the wrong axes do: it averages over all axes but
the first, which for a Flax kernel of shape (in, out) are the outputs. A seed draws the split into
training and test images, the initial weights and the batches, and every arm gets the same seeds, so
that arms are compared in pairs. Inputs are raw pixels in [0, 1], unless standardized.
"""

import argparse
import time
from pathlib import Path

import flax
import jax
import numpy as np
import optax
from flax import nnx
from matplotlib.figure import Figure
from sklearn.datasets import load_digits
from tqdm import tqdm

import optax_gc

IMAGES, TEST_IMAGES = 1797, 797
GRADIENTS = {  # what the gradient goes through first, and a colour that the colour-blind can tell
    "plain": (optax.identity(), "#000000"),
    "optax.centralize": (optax.centralize(), "#D55E00"),
    "optax_gc.centralize": (optax_gc.centralize(), "#0072B2"),
}


class Net(nnx.Module):
    """64 pixels, one hidden layer, 10 classes."""

    def __init__(self, rngs: nnx.Rngs):
        """Draws the initial weights."""
        self.hidden = nnx.Linear(64, 64, rngs=rngs)
        self.head = nnx.Linear(64, 10, rngs=rngs)

    def __call__(self, x):
        """Returns logits."""
        return self.head(nnx.relu(self.hidden(x)))


GRAPH = nnx.graphdef(Net(nnx.Rngs(0)))


def init(key):
    """Draws the parameters of one seed."""
    return nnx.state(Net(nnx.Rngs(key)), nnx.Param)


def loss_fn(params, x, y):
    """Returns the mean negative log-likelihood (NLL), in nats, and the accuracy."""
    logits = nnx.merge(GRAPH, params)(x)
    nll = optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()
    return nll, (logits.argmax(axis=-1) == y).mean()


@jax.jit
@jax.vmap
def evaluate(params, train_set, test_set):
    """Returns each seed's NLL on its training images, NLL and accuracy on its test images."""
    return loss_fn(params, *train_set)[0], *loss_fn(params, *test_set)


def batches(x, y, size):
    """Yields random batches for every seed at once, the same ones whenever it is started anew."""
    rng, ids = np.random.default_rng(0), np.tile(np.arange(y.shape[1]), (len(y), 1))
    while True:
        batch = rng.permuted(ids, axis=1)[:, :size]
        yield np.take_along_axis(x, batch[..., None], 1), np.take_along_axis(y, batch, 1)


def train(tx, params, train_set, test_set, args, name):
    """Trains all seeds at once; returns an array (points, seeds, 3) of what `evaluate` returns."""

    # Written for one seed and mapped over seeds, tx included: inside vmap a kernel has its own two
    # axes. Outside it has a third, and a rule that goes by rank would average over seeds.
    @jax.jit
    @jax.vmap
    def step(params, opt_state, x, y):
        grads, _ = jax.grad(loss_fn, has_aux=True)(params, x, y)
        updates, opt_state = tx.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state

    opt_state = jax.vmap(tx.init)(params)
    points = [evaluate(params, train_set, test_set)]
    progress = tqdm(range(1, args.steps + 1), name)
    for i, (x, y) in zip(progress, batches(*train_set, args.batch_size), strict=False):
        params, opt_state = step(params, opt_state, x, y)
        if i in args.evaluated:
            points.append(evaluate(params, train_set, test_set))
    return np.array(points).swapaxes(1, 2)


def mean_and_error(values):
    """Returns the mean over seeds, which are the last axis, and its standard error."""
    return values.mean(axis=-1), values.std(axis=-1, ddof=1) / np.sqrt(values.shape[-1])


def table(curves):
    """Lays out where each arm ends, and seed by seed how far from the plain arm."""
    rows = [("", "gradients", "test accuracy %", "test NLL", "accuracy - plain", "NLL - plain")]
    for (optimizer, gradients), curve in curves.items():
        (_, nll, accuracy), (_, nll0, accuracy0) = curve[-1].T, curves[optimizer, "plain"][-1].T
        numbers = [(2, 100 * accuracy), (4, nll)]
        if gradients != "plain":
            numbers += [(2, 100 * (accuracy - accuracy0)), (4, nll - nll0)]
        cells = ["{1:.{0}f} ± {2:.{0}f}".format(n, *mean_and_error(v)) for n, v in numbers]
        rows.append((optimizer, gradients, *cells, "", "")[:6])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)


def plot(curves, args):
    """Draws loss curves; the third column's paired difference is what the means' bands hide."""
    optimizers = list(dict.fromkeys(optimizer for optimizer, _ in curves))
    figure = Figure(figsize=(11, 6), layout="constrained")
    grid = figure.subplots(len(optimizers), 3, sharex=True)
    for (optimizer, gradients), curve in curves.items():
        (train_nll, nll, _), (_, nll0, _) = (
            np.moveaxis(c, -1, 0) for c in (curve, curves[optimizer, "plain"])
        )
        color = GRADIENTS[gradients][1]
        row = grid[optimizers.index(optimizer)]
        for ax, values in zip(row, (train_nll, nll, nll - nll0), strict=True):
            mean, error = mean_and_error(values)
            ax.plot(args.evaluated, mean, color=color, label=gradients)
            ax.fill_between(
                args.evaluated, mean - error, mean + error, color=color, alpha=0.2, lw=0
            )
    for row, optimizer in zip(grid, optimizers, strict=True):
        row[0].set(title=optimizer, ylabel="training NLL", yscale="log")
        row[1].set(ylabel="test NLL")
        row[2].set(ylabel="test NLL minus plain's")
        for ax in row:
            ax.spines[["top", "right"]].set_visible(False)
            ax.set_xlabel("step")
    figure.legend(*grid[0, 0].get_legend_handles_labels(), loc="outside upper center", ncols=3)
    figure.savefig(args.figure, dpi=120)


def parse_args():
    """Reads the command line and refuses what cannot be run."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    add = parser.add_argument
    add("--seeds", type=int, default=20, help="how many, trained at once under jax.vmap")
    add("--train-size", type=int, default=50, help="training images")
    add("--batch-size", type=int, default=50, help="or all training images if they are fewer")
    add("--steps", type=int, default=400, help="optimizer steps")
    add("--sgd-lr", type=float, default=0.03, help="learning rate of SGD with momentum 0.9")
    add("--adam-lr", type=float, default=0.003, help="learning rate of Adam")
    add("--standardize", action="store_true", help="give each pixel mean 0 and variance 1")
    add("--figure", type=Path, default=Path("digits.png"), help="where to save the loss curves")
    args = parser.parse_args()
    counts = {"seeds": (2, 1000), "train_size": (1, IMAGES - TEST_IMAGES)}
    counts |= {"batch_size": (1, IMAGES), "steps": (1, 10**6)}
    rates = {"sgd_lr": (1e-6, 100), "adam_lr": (1e-6, 100)}
    for name, (low, high) in (counts | rates).items():
        if not low <= (value := getattr(args, name)) <= high:
            parser.error(f"--{name.replace('_', '-')} is {value}: use {low} to {high}")
    if not args.figure.absolute().parent.is_dir():
        parser.error(f"--figure is {args.figure}: make the folder {args.figure.parent} first")
    args.evaluated = np.unique(np.linspace(0, args.steps, min(args.steps, 100) + 1, dtype=int))
    return args


def main():
    """Trains the six arms, prints how they end and saves the figure."""
    args, start = parse_args(), time.perf_counter()
    images, labels = load_digits(return_X_y=True)
    images = (images / 16).astype(np.float32)
    if args.standardize:
        images = (images - images.mean(0)) / np.maximum(images.std(0), 1e-3)
    order = np.stack([np.random.default_rng(s).permutation(IMAGES) for s in range(args.seeds)])
    test_ids, train_ids = np.split(order, [TEST_IMAGES], axis=1)
    train_ids = train_ids[:, : args.train_size]
    train_set, test_set = ((images[ids], labels[ids]) for ids in (train_ids, test_ids))
    params = jax.jit(jax.vmap(init))(jax.vmap(jax.random.key)(np.arange(args.seeds)))
    print(optax_gc.summary(init(jax.random.key(0))), flush=True)

    curves = {}
    for optimizer, transform in {
        f"SGD, lr {args.sgd_lr:g}": optax.sgd(args.sgd_lr, momentum=0.9),
        f"Adam, lr {args.adam_lr:g}": optax.adam(args.adam_lr),
    }.items():
        for gradients, (first, _) in GRADIENTS.items():
            tx, name = optax.chain(first, transform), f"{optimizer}, {gradients}"
            curves[optimizer, gradients] = train(tx, params, train_set, test_set, args, name)
    plot(curves, args)
    print(f"\n{table(curves)}\n")
    print(
        f"Mean ± standard error over seeds 0 to {args.seeds - 1}, after {args.steps} steps on "
        f"{args.train_size} training images, {TEST_IMAGES} test images.\n"
        f"{time.perf_counter() - start:.0f} s on {jax.devices()[0].device_kind}, jax "
        f"{jax.__version__}, flax {flax.__version__}, optax {optax.__version__}. "
        f"Figure: {args.figure}"
    )


if __name__ == "__main__":
    main()
