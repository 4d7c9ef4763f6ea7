"""Trains a Flax transformer on Python's own source code with Muon, over the right axes.

Its layers are stacked for nn.scan, as those of most large models are. Muon makes the momentum of
each matrix orthogonal, and has to be told which axes of an array are the matrix. By default Optax
takes every array of rank 2 for one: here the embedding, the head, and the biases and norm scales of
all layers stacked. It leaves the stacked kernels, which Muon is for, to Adam. roles_from_trace
reads the axes from the model itself, and muon_dimension_numbers hands them on; the head is named,
so that it stays with Adam.

Three arms: Adam alone, and Muon both ways. A seed draws the initial weights and the windows of text
that are trained on, the same for all arms, so that arms are compared in pairs. The learning rates
are those with which each arm ended lowest on two other seeds after 200 steps: 0.003, not 0.01, for
Adam, and 0.01, not 0.03, for Muon.
"""

import argparse
import sysconfig
import time
from pathlib import Path
from typing import Any

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.tree_util import keystr, tree_leaves_with_path
from matplotlib.figure import Figure
from scipy import stats

from optax_gc import muon_dimension_numbers, roles_from_trace

BYTES, CONTEXT, WIDTH, HEADS, LAYERS = 128, 48, 48, 3, 3
COLORS = {"Adam": "#000000", "Muon, Optax's default": "#D55E00", "Muon, roles": "#0072B2"}


class Block(nn.Module):
    """Causal attention and a feed-forward layer, each on the normalized residual stream."""

    @nn.compact
    def __call__(self, x, _):
        """Returns the stream, and nothing to collect from each layer."""
        h, mask = nn.LayerNorm(name="norm1")(x), nn.make_causal_mask(x[..., 0])
        x = x + nn.MultiHeadDotProductAttention(HEADS, name="attention")(h, mask=mask)
        h = nn.gelu(nn.Dense(4 * WIDTH, name="up")(nn.LayerNorm(name="norm2")(x)))
        return x + nn.Dense(WIDTH, name="down")(h), None


class Transformer(nn.Module):
    """Bytes in, logits of the next byte out."""

    @nn.compact
    def __call__(self, tokens):
        """Returns logits (batch, length, bytes)."""
        x = nn.Embed(BYTES, WIDTH, name="embed")(tokens)
        positions = self.param("positions", nn.initializers.normal(0.02), (CONTEXT, WIDTH))
        x = x + positions[None]
        layers = nn.scan(
            Block,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            length=LAYERS,
        )
        x, _ = layers(name="layers")(x, None)
        return nn.Dense(BYTES, name="head")(nn.LayerNorm(name="norm")(x))


MODEL = Transformer()


def apply(params, tokens) -> Any:
    """Returns the logits of the model with these parameters."""
    return MODEL.apply({"params": params}, tokens)


def init(key):
    """Draws the parameters of one seed."""
    return MODEL.init(key, jnp.zeros((2, CONTEXT), jnp.int32))["params"]


def loss_fn(params, windows):
    """Returns the mean negative log-likelihood (NLL) of the next byte, in nats."""
    logits = apply(params, windows[:, :-1])
    return optax.softmax_cross_entropy_with_integer_labels(logits, windows[:, 1:]).mean()


def source_code():
    """Returns the bytes of the standard library's modules, and of every fifth one to test on."""
    modules = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))
    texts = [np.frombuffer(module.read_bytes(), np.uint8) for module in modules]
    texts = [np.where(text < BYTES, text, ord("?")).astype(np.int32) for text in texts]
    test = np.concatenate(texts[::5])
    return np.concatenate([t for i, t in enumerate(texts) if i % 5]), test


def windows(text, rng, n):
    """Returns n random windows of the text, each one byte longer than the context."""
    starts = rng.integers(0, len(text) - CONTEXT, n)
    return text[starts[:, None] + np.arange(CONTEXT + 1)]


def arms(args, numbers):
    """Returns the optimizer of each arm."""
    muon = lambda **kwargs: optax.contrib.muon(  # noqa: E731
        args.muon_lr, adam_learning_rate=args.adam_lr, **kwargs
    )
    optimizers = [
        optax.nadam(args.adam_lr),  # what Muon gives to Adam has Nesterov's momentum
        muon(),
        muon(muon_weight_dimension_numbers=numbers),
    ]
    return dict(zip(COLORS, optimizers, strict=True))


def train(tx, params, train_set, test_set, args):
    """Trains all seeds at once; returns their test NLL at each point, an array (points, seeds)."""

    # Written for one seed and mapped over seeds: inside vmap an array has its own axes alone.
    def step(carry, batch):
        params, state = carry
        updates, state = tx.update(jax.grad(loss_fn)(params, batch), state, params)
        return (optax.apply_updates(params, updates), state), None

    chunk = jax.jit(jax.vmap(lambda carry, batches: jax.lax.scan(step, carry, batches)[0]))
    evaluate = jax.jit(jax.vmap(loss_fn, in_axes=(0, None)))
    carry = params, jax.jit(jax.vmap(tx.init))(params)
    points = [evaluate(params, test_set)]
    rngs = [np.random.default_rng(seed) for seed in range(args.seeds)]
    for steps in np.diff(args.evaluated):
        batches = [windows(train_set, rng, steps * args.batch_size) for rng in rngs]
        shape = args.seeds, steps, args.batch_size, CONTEXT + 1
        carry = chunk(carry, np.stack(batches).reshape(shape))
        points.append(evaluate(carry[0], test_set))
    return np.array(points)


def goes_where(params, numbers):
    """Lays out which arrays go to Muon by default and by roles, and as what matrices."""
    rows = [("parameter", "shape", "Optax's default", "roles")]
    is_number = lambda x: x is None or isinstance(x, optax.contrib.MuonDimensionNumbers)  # noqa: E731
    leaves = jax.tree_util.tree_leaves(numbers, is_leaf=is_number)
    for (path, leaf), number in zip(tree_leaves_with_path(params), leaves, strict=True):
        default = f"Muon, {leaf.shape[0]} x {leaf.shape[1]}" if leaf.ndim == 2 else "Adam"
        ours = "Adam"
        if number:
            rows_in, columns, copies = (
                int(np.prod([leaf.shape[axis] for axis in axes]))
                for axes in (*number, set(range(leaf.ndim)) - {*number[0], *number[1]})
            )
            ours = f"Muon, {copies} of {rows_in} x {columns}"
        rows.append((keystr(path, simple=True, separator="/"), str(leaf.shape), default, ours))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)


def mean_and_half_width(values):
    """Returns the mean over seeds, the last axis, and half the width of its 95 % interval."""
    quantile = stats.t.ppf(0.975, values.shape[-1] - 1)
    return values.mean(axis=-1), quantile * stats.sem(values, axis=-1)


def table(curves):
    """Lays out where each arm ends, and seed by seed how far from Muon over the right axes."""
    *_, roles = (curve[-1] for curve in curves.values())
    lines = []
    for arm, curve in curves.items():
        mean, half = mean_and_half_width(curve[-1])
        line = f"{arm:{max(map(len, curves))}}  test NLL {mean:.3f} ± {half:.3f} nats a byte"
        if arm != list(curves)[-1]:
            line += ", {:+.3f} ± {:.3f} from that of roles".format(
                *mean_and_half_width(curve[-1] - roles)
            )
        lines.append(line)
    return "\n".join(lines)


def plot(curves, args):
    """Draws the loss curves, and beside them how far each arm is from Muon over the right axes."""
    figure = Figure(figsize=(8, 3.4), layout="constrained")
    *_, roles = curves.values()
    later = args.evaluated >= args.steps / 10  # the first steps would hide what comes after
    for ax, title, less in zip(
        figure.subplots(1, 2), ("test NLL", "test NLL minus that of roles"), (0, roles), strict=True
    ):
        for arm, curve in curves.items():
            mean, half = mean_and_half_width((curve - less)[later])
            ax.plot(args.evaluated[later], mean, color=COLORS[arm], label=arm)
            band = mean - half, mean + half
            ax.fill_between(args.evaluated[later], *band, color=COLORS[arm], alpha=0.2, lw=0)
        ax.set(title=title, xlabel="optimizer step", ylabel="nats a byte")
        ax.spines[["top", "right"]].set_visible(False)
    names = figure.axes[0].get_legend_handles_labels()
    figure.legend(*names, frameon=False, loc="outside lower center", ncols=len(curves))
    figure.suptitle(f"mean and 95 % interval, {args.seeds} seeds")
    figure.savefig(args.figure, dpi=165)


def parse_args():
    """Reads the command line and refuses what cannot be run."""
    with_defaults = argparse.ArgumentDefaultsHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=with_defaults)
    add = parser.add_argument
    add("--seeds", type=int, default=4, help="how many, trained at once under jax.vmap")
    add("--steps", type=int, default=300, help="optimizer steps")
    add("--batch-size", type=int, default=8, help="windows of text a step")
    add("--muon-lr", type=float, default=0.01, help="learning rate of Muon")
    add("--adam-lr", type=float, default=0.003, help="learning rate of Adam")
    add("--figure", type=Path, default=Path("muon.png"), help="where to save the loss curves")
    args = parser.parse_args()
    ranges = {"seeds": (2, 100), "steps": (1, 10**6), "batch_size": (1, 10**4)}
    ranges |= {"muon_lr": (1e-6, 100), "adam_lr": (1e-6, 100)}
    for name, (low, high) in ranges.items():
        if not low <= (value := getattr(args, name)) <= high:
            parser.error(f"--{name.replace('_', '-')} is {value}: use {low} to {high}")
    if not args.figure.parent.is_dir() or args.figure.suffix not in (".png", ".svg", ".pdf"):
        parser.error(f"--figure is {args.figure}: use a .png, .svg or .pdf in a folder that exists")
    args.evaluated = np.unique(np.linspace(0, args.steps, min(args.steps, 20) + 1, dtype=int))
    return args


def main():
    """Says which arrays go where, trains the three arms, prints how they end, saves the figure."""
    args, start = parse_args(), time.perf_counter()
    train_set, test_text = source_code()
    test_set = windows(test_text, np.random.default_rng(0), 64)
    params = jax.jit(jax.vmap(init))(jax.vmap(jax.random.key)(np.arange(args.seeds)))

    shapes = jax.eval_shape(init, jax.random.key(0))
    roles = roles_from_trace(apply, shapes, np.zeros((2, CONTEXT), np.int32))
    numbers = muon_dimension_numbers(roles, adam="head")
    print(f"{goes_where(shapes, numbers)}\n", flush=True)

    curves = {}
    for arm, tx in arms(args, numbers).items():
        curves[arm] = train(tx, params, train_set, test_set, args)
    plot(curves, args)
    versions = ", ".join(f"{lib.__name__} {lib.__version__}" for lib in (jax, flax, optax))
    print(
        f"{table(curves)}\n\nMean ± half the width of its 95 % interval over seeds 0 to "
        f"{args.seeds - 1}, after {args.steps} steps of {args.batch_size} x {CONTEXT} bytes.\n"
        f"The loss curves are in {args.figure}.\n"
        f"{time.perf_counter() - start:.0f} s on {jax.devices()[0].device_kind}, {versions}."
    )


if __name__ == "__main__":
    main()
