"""Trains a small Flax network on real handwritten digits, with and without Gradient Centralization.

Six arms: SGD with momentum 0.9 (SGDM) and Adam, each on the plain gradient, after optax.centralize
and after optax_gc.centralize. optax.centralize shows what the wrong axes do: it averages over all
axes but the first, which for a Flax kernel of shape (in, out) are the outputs. A seed draws the
split into training and test images, the initial weights and the batches. Every arm gets the same
seeds, so that arms are compared in pairs, and the learning rate with which the plain gradient ends
at the lowest test NLL (of 0.003 to 0.1 for SGDM, 0.0003 to 0.01 for Adam). Inputs are raw pixels
in [0, 1]. With --standardize, or another rate, the order of the arms can change.
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
from matplotlib.ticker import LogLocator
from scipy import stats
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


GRAPH = nnx.graphdef(nnx.eval_shape(lambda: Net(nnx.Rngs(0))))


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


def batches(data, args):
    """Yields a random batch per step for all seeds at once, the same ones to every arm."""
    rng, (x, y) = np.random.default_rng(0), data
    ids = np.tile(np.arange(args.train_size), (args.seeds, 1))
    for _ in range(args.steps):
        batch = rng.permuted(ids, axis=1)[:, : args.batch_size]
        yield np.take_along_axis(x, batch[..., None], 1), np.take_along_axis(y, batch, 1)


def train(tx, params, train_set, test_set, args, name):
    """Trains all seeds at once; returns an array (points, 3, seeds) of what `evaluate` returns."""

    # Written for one seed and mapped over seeds, tx included: inside vmap a kernel has its own two
    # axes. Outside it has a third, and a rule that goes by rank would average over seeds.
    def step(params, opt_state, x, y):
        grads, _ = jax.grad(loss_fn, has_aux=True)(params, x, y)
        updates, opt_state = tx.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state

    step, opt_state = jax.jit(jax.vmap(step)), jax.jit(jax.vmap(tx.init))(params)
    points = [evaluate(params, train_set, test_set)]
    for i, (x, y) in enumerate(tqdm(batches(train_set, args), name, args.steps), 1):
        params, opt_state = step(params, opt_state, x, y)
        if i in args.evaluated:
            points.append(evaluate(params, train_set, test_set))
    return np.array(points)


def mean_and_half_width(values):
    """Returns the mean over seeds, the last axis, and half the width of its 95 % interval."""
    quantile = stats.t.ppf(0.975, values.shape[-1] - 1)
    return values.mean(axis=-1), quantile * stats.sem(values, axis=-1)


def table(curves):
    """Lays out where each arm ends, and seed by seed how far from the plain arm."""
    rows = [["", "gradients", "accuracy, %", "test NLL, nats", "accuracy - plain", "NLL - plain"]]
    for (optimizer, gradients), curve in curves.items():
        (_, nll, accuracy), (_, nll0, accuracy0) = curve[-1], curves[optimizer, "plain"][-1]
        numbers = [(2, 100 * accuracy), (4, nll)]
        if gradients != "plain":
            numbers += [(2, 100 * (accuracy - accuracy0)), (4, nll - nll0)]
        cells = ["{1:.{0}f} ± {2:.{0}f}".format(n, *mean_and_half_width(v)) for n, v in numbers]
        rows.append([optimizer, gradients, *cells, "", ""][:6])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)


def plot(curves, args):
    """Draws loss curves; the third column shows the differences that the bands of means hide."""
    figure = Figure(figsize=(8, 5), layout="constrained")
    grid = figure.subplots(2, 3, sharex=True, sharey="col", width_ratios=(1, 1, 1.4))
    rows = dict(zip(dict.fromkeys(optimizer for optimizer, _ in curves), grid, strict=True))
    for (optimizer, gradients), curve in curves.items():
        (train_nll, nll, _), nll0 = curve.swapaxes(0, 1), curves[optimizer, "plain"][:, 1]
        for ax, values in zip(rows[optimizer], (train_nll, nll, nll - nll0), strict=True):
            (mean, half), color = mean_and_half_width(values), GRADIENTS[gradients][1]
            steps, band = args.evaluated, (mean - half, mean + half)
            ax.plot(steps, mean, color=color, label=gradients)
            ax.fill_between(steps, *band, color=color, alpha=0.2, lw=0)
            ax.spines[["top", "right"]].set_visible(False)
        rows[optimizer][0].set_ylabel(f"{optimizer}\nNLL in nats")
    for column, title in enumerate(["training NLL", "test NLL", "test NLL minus plain's"]):
        grid[0, column].set_title(title)
        grid[1, column].set_xlabel("optimizer step")
    for ax in grid[0, :2]:
        ax.set_yscale("log")
        ax.yaxis.set(major_locator=LogLocator(subs=(1, 2, 3, 6)), major_formatter="{x:g}")
        ax.minorticks_off()
    figure.suptitle(
        f"{args.train_size} training images; mean and 95 % interval, {args.seeds} seeds"
    )
    names = grid[0, 0].get_legend_handles_labels()
    figure.legend(*names, frameon=False, loc="outside lower center", ncols=len(GRADIENTS))
    figure.savefig(args.figure, dpi=165)


def parse_args():
    """Reads the command line and refuses what cannot be run."""
    with_defaults = argparse.ArgumentDefaultsHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=with_defaults)
    add = parser.add_argument
    add("--seeds", type=int, default=40, help="how many, trained at once under jax.vmap")
    add("--train-size", type=int, default=50, help="training images")
    add("--batch-size", type=int, default=50, help="or all training images if they are fewer")
    add("--steps", type=int, default=400, help="optimizer steps")
    add("--sgd-lr", type=float, default=0.01, help="learning rate of SGDM")
    add("--adam-lr", type=float, default=0.001, help="learning rate of Adam")
    add("--standardize", action="store_true", help="give each pixel mean 0 and variance 1")
    add("--figure", type=Path, default=Path("digits.png"), help="where to save the loss curves")
    args = parser.parse_args()
    ranges = {"seeds": (2, 1000), "train_size": (1, IMAGES - TEST_IMAGES), "steps": (1, 10**6)}
    ranges |= {"batch_size": (1, IMAGES), "sgd_lr": (1e-6, 100), "adam_lr": (1e-6, 100)}
    for name, (low, high) in ranges.items():
        if not low <= (value := getattr(args, name)) <= high:
            parser.error(f"--{name.replace('_', '-')} is {value}: use {low} to {high}")
    if not args.figure.parent.is_dir() or args.figure.suffix not in (".png", ".svg", ".pdf"):
        parser.error(f"--figure is {args.figure}: use a .png, .svg or .pdf in a folder that exists")
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
    test_ids, train_ids = order[:, :TEST_IMAGES], order[:, TEST_IMAGES:][:, : args.train_size]
    train_set, test_set = ((images[ids], labels[ids]) for ids in (train_ids, test_ids))
    params = jax.jit(jax.vmap(init))(jax.vmap(jax.random.key)(np.arange(args.seeds)))
    print(optax_gc.summary(jax.eval_shape(init, jax.random.key(0))), flush=True)

    curves = {}
    sgdm = f"SGDM, lr {args.sgd_lr:g}", optax.sgd(args.sgd_lr, momentum=0.9)
    adam = f"Adam, lr {args.adam_lr:g}", optax.adam(args.adam_lr)
    for optimizer, transform in (sgdm, adam):
        for gradients, (first, _) in GRADIENTS.items():
            arm, tx = (optimizer, gradients), optax.chain(first, transform)
            curves[arm] = train(tx, params, train_set, test_set, args, ", ".join(arm))
    plot(curves, args)
    versions = ", ".join(f"{lib.__name__} {lib.__version__}" for lib in (jax, flax, optax))
    print(
        f"\n{table(curves)}\n\nMean ± half the width of its 95 % interval over seeds 0 to "
        f"{args.seeds - 1}, after {args.steps} steps on {args.train_size} training images; "
        f"{TEST_IMAGES} test images.\nThe loss curves are in {args.figure}.\n"
        f"{time.perf_counter() - start:.0f} s on {jax.devices()[0].device_kind}, {versions}."
    )


if __name__ == "__main__":
    main()
