"""Measures what Gradient Centralization (GC) changes in a language model, in pairs of seeds.

The model reads bytes of Python's standard library: a transformer as large models have it, without
biases, RMSNorm before each part, layers stacked for nn.scan. AdamW and Muon train it, and in each
the arms differ in nothing but what the gradient, or the update after the optimizer, goes through.
The axes, and the matrices that Muon takes, are read from the model by roles_from_trace.

Learning rate and decay are tuned for each arm on the same grid, on seeds and bytes that the test
does not have. A seed draws the initial weights and the batches, the same for every arm.

Results go to a CSV file, a row for each run. What it already has is not run again.
`language_model_table.py` makes the table and the figure of docs/language_model.md from it.
"""

import argparse
import itertools
import time
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import language_model_table
import numpy as np
import optax
from jax import lax
from language_model_table import POINTS, REMOVED, key_of
from muon import BYTES, source_code
from study_arms import choose, project_out_random
from study_table import check_folders, check_same, versions_of
from tqdm import tqdm

import optax_gc
from optax_gc import centralize, diagnostics


class Size(NamedTuple):
    """The model, how long it is trained, and on how many seeds."""

    width: int
    heads: int
    layers: int
    context: int  # bytes
    batch: int  # windows of the context's length
    steps: int  # a multiple of POINTS
    windows: int  # to evaluate on
    seeds: int
    rates: tuple[float, ...]  # of learning, at their highest
    decays: tuple[float, ...]  # of all weights, decoupled
    tuning_seeds: int = 1
    tuning_points: int = POINTS // 2  # tuning runs are shorter, with a whole schedule each


GRID = (0.001, 0.003, 0.01), (0.0, 1.0)
SIZES = {
    "tiny": Size(16, 2, 2, 8, 2, 2 * POINTS, 4, 2, (0.003, 0.01), (0.0,)),  # to see that it runs
    "1M": Size(128, 4, 5, 64, 8, 160, 64, 8, *GRID),
    "10M": Size(384, 6, 6, 256, 32, 2000, 128, 8, *GRID),  # for a GPU
}
OPTIMIZERS = ("AdamW", "Muon")
FIRST_TUNING_SEED, EVALUATION_SEED = 1000, 2000  # no test seed is as high


class Block(nn.Module):
    """Causal attention and a feed-forward layer, each on the normalised residual stream."""

    size: Size

    @nn.compact
    def __call__(self, x, _):
        """Returns the stream, and nothing to collect from each layer."""
        size, dense = self.size, lambda n, name: nn.Dense(n, use_bias=False, name=name)
        h, mask = nn.RMSNorm(name="norm1")(x), nn.make_causal_mask(x[..., 0])
        attention = nn.MultiHeadDotProductAttention(size.heads, use_bias=False, name="attention")
        x = x + attention(h, mask=mask)
        h = nn.gelu(dense(4 * size.width, "up")(nn.RMSNorm(name="norm2")(x)))
        return x + dense(size.width, "down")(h), None


class Transformer(nn.Module):
    """Bytes in, logits of the next byte out."""

    size: Size

    @nn.compact
    def __call__(self, tokens):
        """Returns logits (batch, context, bytes)."""
        size = self.size
        x = nn.Embed(BYTES, size.width, name="embed")(tokens)
        normal = nn.initializers.normal(0.02)
        x = x + self.param("positions", normal, (size.context, size.width))[None]
        layers = nn.scan(
            Block, variable_axes={"params": 0}, split_rngs={"params": True}, length=size.layers
        )
        x, _ = layers(size, name="layers")(x, None)
        return nn.Dense(BYTES, use_bias=False, name="head")(nn.RMSNorm(name="norm")(x))


class Arm(NamedTuple):
    """What the gradient goes through before the optimizer, and the update after it."""

    before: Callable[[jax.Array, Any], optax.GradientTransformation] = lambda *_: optax.identity()
    after: Callable[[jax.Array, Any], optax.GradientTransformation] = lambda *_: optax.identity()


def gc(key: jax.Array, axes: Any) -> optax.GradientTransformation:
    """Removes the mean over the fan-in."""
    del key
    return centralize(axes)


def head_over_outputs(key: jax.Array, axes: Any) -> optax.GradientTransformation:
    """Removes the mean over the head's outputs, which a softmax cannot see, and no other."""
    del key
    return centralize(head_axes(axes))


def head_axes(axes: Any) -> Any:
    """Returns axes that select the outputs of the head alone."""
    nothing = jax.tree.map(lambda _: (), axes, is_leaf=lambda x: isinstance(x, tuple))
    return {**nothing, "head": {"kernel": (1,)}}


ARMS = {
    "no GC": Arm(),
    "GC before": Arm(before=gc),
    "random before": Arm(before=project_out_random),
    "GC after": Arm(after=gc),
    "random after": Arm(after=project_out_random),
    "head over outputs": Arm(after=head_over_outputs),
}


class Program:
    """The training of one size with one optimizer: compiled once, for all arms, rates and seeds."""

    def __init__(self, size: Size, optimizer: str):
        """Reads the axes from the model and sets up what is compiled."""
        model = Transformer(size)
        tokens = np.zeros((2, size.context), np.int32)

        def forward(params, tokens) -> Any:
            return model.apply({"params": params}, tokens)

        def init(key):
            return model.init(key, tokens)["params"]

        self.shapes = jax.eval_shape(init, jax.random.key(0))
        self.roles = optax_gc.roles_from_trace(forward, self.shapes, tokens)
        axes = self.roles.fan_in
        numbers = optax_gc.muon_dimension_numbers(self.roles, adam="head")
        # The learning rate rises in a tenth of the steps, then falls to 0 as a cosine.
        shape = optax.warmup_cosine_decay_schedule(0, 1, size.steps // 10, size.steps)

        def loss(params, windows):
            logits = forward(params, windows[:, :-1])
            return optax.softmax_cross_entropy_with_integer_labels(logits, windows[:, 1:]).mean()

        def removed(updates):
            """The fraction of all that GC would remove, and of the head its mean over outputs."""
            over_outputs = diagnostics.removed_fraction(updates, head_axes(axes)).parameters
            return diagnostics.removed_fraction(updates, axes).total, over_outputs["head/kernel"]

        def transformation(arm, lr, decay, stretch, key):
            schedule = lambda step: lr * shape(stretch * step)  # noqa: E731
            if optimizer == "AdamW":
                inner = optax.adamw(schedule, weight_decay=decay)
            else:
                inner = optax.contrib.muon(
                    schedule,
                    weight_decay=decay,
                    adam_weight_decay=decay,
                    muon_weight_dimension_numbers=numbers,
                    consistent_rms=0.2,  # so that Muon's updates are as large as Adam's
                )
            return optax.chain(
                optax.snapshot("gradient", removed),
                choose(arm, [a.before(key, axes) for a in ARMS.values()]),
                inner,
                optax.snapshot("update", removed),
                choose(arm, [a.after(key, axes) for a in ARMS.values()]),
            )

        @jax.jit
        def start(arm, lr, decay, stretch, seed):
            key = jax.random.key(seed)
            params = init(key)
            tx = transformation(arm, lr, decay, stretch, jax.random.fold_in(key, 1))
            return params, tx.init(params)

        @jax.jit
        def train(arm, lr, decay, stretch, carry, batches):
            """Takes a step for each batch; returns the mean fractions that GC would remove."""
            # The random directions are in the state: the key is for init alone.
            tx = transformation(arm, lr, decay, stretch, jax.random.key(0))

            def step(carry, batch):
                params, state = carry
                updates, state = tx.update(jax.grad(loss)(params, batch), state, params)
                fractions = (optax.tree.get(state, name) for name in ("gradient", "update"))
                return (optax.apply_updates(params, updates), state), tuple(fractions)

            carry, fractions = lax.scan(step, carry, batches)
            return carry, jax.tree.map(jnp.mean, fractions)

        self.start, self.train, self.loss = start, train, jax.jit(loss)


@cache
def texts() -> dict[str, np.ndarray]:
    """Returns the bytes to train, tune and test on."""
    train, test = source_code()
    train, tune = np.split(train, [len(train) * 9 // 10])
    return {"train": train, "tune": tune, "test": test}


def windows(text: np.ndarray, seed: int, n: int, context: int) -> np.ndarray:
    """Returns n random windows of the text, each one byte longer than the context."""
    starts = np.random.default_rng(seed).integers(0, len(text) - context, n)
    return text[starts[:, None] + np.arange(context + 1)]


class Run(NamedTuple):
    """What one training run is, apart from its size."""

    optimizer: str
    arm: str
    phase: str  # "tune" or "test"
    seed: int
    lr: float
    decay: float


def train(program: Program, size: Size, run: Run) -> dict[str, Any]:
    """Trains once; returns the outcomes of a row, a value for each tenth of the steps."""
    points = POINTS if run.phase == "test" else size.tuning_points
    steps = size.steps // POINTS
    given = list(ARMS).index(run.arm), np.float32(run.lr), np.float32(run.decay), POINTS / points
    held_out = windows(texts()[run.phase], EVALUATION_SEED, size.windows, size.context)
    n = points * steps * size.batch
    batches = windows(texts()["train"], run.seed, n, size.context)
    batches = batches.reshape(points, steps, size.batch, size.context + 1)
    carry = program.start(*given, run.seed)
    losses, fractions, times = [], [], []
    for i, some in enumerate(batches):
        start = time.perf_counter()
        carry, removed = jax.block_until_ready(program.train(*given, carry, some))
        times.append((time.perf_counter() - start) / steps)
        fractions.append(jax.tree.leaves(removed))
        if run.phase == "test" or i == points - 1:
            losses.append(program.loss(carry[0], held_out))
    columns = zip(*fractions, strict=True)
    return {
        "loss": np.array(losses, float),
        **dict(zip(REMOVED, (np.array(c, float) for c in columns), strict=True)),
        "ms": round(1000 * float(np.median(times)), 1),
    }


def tuned(rows: list[dict[str, Any]], optimizer: str, arm: str) -> tuple[float, float]:
    """Returns the learning rate and decay with which the arm's tuning runs ended lowest."""
    ends: dict[tuple[float, float], list[float]] = {}
    for row in rows:
        if (row["optimizer"], row["arm"], row["phase"]) == (optimizer, arm, "tune"):
            # What diverged loses against whatever did not.
            end = float(np.nan_to_num(row["loss"][-1], nan=np.inf))
            ends.setdefault((float(row["lr"]), float(row["decay"])), []).append(end)
    return min(ends, key=lambda point: float(np.mean(ends[point])))


def runs(size: Size, rows: list[dict[str, Any]]) -> Iterator[Run]:
    """Goes through all runs in order; test runs take what `rows` says of the tuning by then."""
    for optimizer in OPTIMIZERS:
        repeats = range(FIRST_TUNING_SEED, FIRST_TUNING_SEED + size.tuning_seeds)
        for seed, arm, lr, decay in itertools.product(repeats, ARMS, size.rates, size.decays):
            yield Run(optimizer, arm, "tune", seed, lr, decay)
        for seed, arm in itertools.product(range(size.seeds), ARMS):
            yield Run(optimizer, arm, "test", seed, *tuned(rows, optimizer, arm))


def provenance(name: str) -> dict[str, str]:
    """What rows must share to be compared."""
    settings = [f"{key}={value}" for key, value in SIZES[name]._asdict().items()]
    return {
        "size": name,
        "settings": " ".join(settings),
        "versions": versions_of(jax, flax, optax),
        "device": jax.devices()[0].device_kind,
    }


def finished(path: Path, shared: dict[str, str]) -> list[dict[str, Any]]:
    """Reads the rows that need not be run again; refuses those of another study."""
    rows = language_model_table.read(path) if path.exists() else []
    for row in rows:
        mend = "Give another --csv, or delete that file to run it anew."
        check_same(path, row, shared, mend=mend)
    return rows


def parse_args() -> argparse.Namespace:
    """Reads the command line and refuses what cannot be run."""
    with_defaults = argparse.ArgumentDefaultsHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=with_defaults)
    add, here = parser.add_argument, Path(__file__).parent
    add("--size", choices=SIZES, default="1M", help="parameters; 10M is for a GPU")
    add("--csv", type=Path, default=here / "language_model.csv", help="results; rows are kept")
    args = parser.parse_args()
    check_folders(parser, csv=args.csv)
    return args


def main():
    """Runs what is missing, row by row."""
    args = parse_args()
    size, shared = SIZES[args.size], provenance(args.size)
    rows = finished(args.csv, shared)
    done = {key_of(row) for row in rows}
    program = cache(lambda optimizer: Program(size, optimizer))
    tuning = len(size.rates) * len(size.decays) * size.tuning_seeds
    total = len(OPTIMIZERS) * len(ARMS) * (tuning + size.seeds)
    with tqdm(runs(size, rows), total=total, unit="run") as bar:
        for run in bar:
            if key_of(run._asdict()) in done:
                continue
            bar.set_description(f"{run.optimizer}, {run.arm}, {run.phase} {run.seed}")
            rows.append({**run._asdict(), **train(program(run.optimizer), size, run), **shared})
            language_model_table.write(args.csv, rows)
    print(f"Results: {args.csv}. Next: python examples/language_model_table.py")


if __name__ == "__main__":
    main()
