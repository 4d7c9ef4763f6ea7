"""Compiles steps for TPUs and GPUs that are not here, and writes what their programs move.

    python benchmarks/compiled.py [--csv FILE] [--chips NAME ...] [--minutes N]

A step is update and apply, with parameters and optimizer state donated; a training step has the
forward and the backward pass before it. Rows that the file holds are kept, so a run that was
stopped goes on where it was. Chips for which no compiler is installed are left out: ``pip install
"jax[tpu]"`` brings the one for TPUs, ``pip install "jax[cuda12]"`` the one for NVIDIA's GPUs.
"""

import argparse
import csv
import functools
import itertools
import pathlib
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
import targets
import trees
from jax.sharding import PartitionSpec
from tables import NAIVE, OPTAX, OURS, WITHOUT
from tqdm import tqdm

from optax_gc import centralize

FILE = pathlib.Path(__file__).with_name("compiled.csv")
OPTIMIZERS = {"adam": optax.adam(1e-3), "sgd, momentum": optax.sgd(1e-3, momentum=0.9)}
DTYPES = ("float32", "bfloat16")
MESHES = ("FSDP", "tensor parallel")
STACKED, UNROLLED = "the same, stacked", "transformer, 24 layers"


class Job(NamedTuple):
    """One row: what identifies it in the file."""

    chip: str
    mesh: str
    step: str
    dtype: str
    optimizer: str
    variant: str


FIELDS = (
    *Job._fields,
    "gradients",  # bytes, of all chips together
    "shard",  # bytes of them on one chip, as is all that follows
    "moved",  # bytes that the entry computation reads from main memory and writes there
    "temporaries",  # bytes; on a TPU the gaps between arrays count twice
    "peak",  # bytes, arguments and results included
    "collectives",  # how many
    "collective_bytes",
    "jax",
)


def naive(axes: Any) -> optax.GradientTransformation:
    """What one would write: ``g - mean(g)``, with the mean in float32."""

    def subtract(g: jax.Array, axes: tuple[int, ...]) -> jax.Array:
        if not axes:
            return g
        mean = jnp.mean(g, axes, keepdims=True, dtype=jnp.float32)
        return (g.astype(jnp.float32) - mean).astype(g.dtype)

    return optax.stateless(lambda updates, _: jax.tree.map(subtract, updates, axes))


VARIANTS: dict[str, Callable[[Any], optax.GradientTransformation]] = {
    WITHOUT: lambda axes: optax.identity(),  # so that all states are alike
    OURS: centralize,
    NAIVE: naive,
    OPTAX: lambda axes: optax.centralize(),
}


def compile_step(job: Job) -> tuple[Any, Any]:
    """The program of one row, and the gradients as structs."""
    target = targets.target(job.chip, many=bool(job.mesh))
    tree = trees.TREES[job.step.removeprefix("training, ")]()
    tx = optax.chain(VARIANTS[job.variant](trees.axes(tree)), OPTIMIZERS[job.optimizer])
    structs = trees.structs(tree, job.dtype)
    specs = None if not job.mesh else layout(tree, job.mesh, dict(target.mesh.shape))
    params = target.structs(structs, specs)
    # The moments lie as their parameters do.
    state = optax.tree_map_params(
        tx, lambda _, p: p, jax.eval_shape(tx.init, structs), params,
        transform_non_params=lambda x: target.structs(x),
    )  # fmt: skip
    if job.step.startswith("training, "):
        batch = target.structs(batch_of(job.step))
        return target.compile(training_step(tx, job.step), params, state, batch), params
    return target.compile(optimizer_step(tx), params, state, params), params


def optimizer_step(tx: optax.GradientTransformation) -> Any:
    """What a training loop runs after the backward pass."""

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def step(params: Any, state: Any, grads: Any) -> tuple[Any, Any]:
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    return step


# ---- training steps


def batch_of(step: str) -> tuple[Any, ...]:
    """The inputs: 32 images with labels, or 4 sequences of 512 tokens."""
    integers = functools.partial(jax.ShapeDtypeStruct, dtype=jnp.int32)
    if "ViT" in step:
        return jax.ShapeDtypeStruct((32, 224, 224, 3), jnp.bfloat16), integers((32,))
    return integers((4, 512)), integers((4, 512))


def training_step(tx: optax.GradientTransformation, step: str) -> Any:
    """Forward and backward pass, then the optimizer."""
    model = vit if "ViT" in step else decoder

    def loss(params: Any, inputs: jax.Array, labels: jax.Array) -> jax.Array:
        logits = model(params, inputs).astype(jnp.float32)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def train(params: Any, state: Any, batch: Any) -> tuple[Any, Any, jax.Array]:
        value, grads = jax.value_and_grad(loss)(params, *batch)
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state, value

    return train


def vit(params: Any, images: jax.Array) -> jax.Array:
    """ViT-B/16, of the parameters of `trees.vit_b16`."""
    patches = jax.lax.conv_general_dilated(
        images, params["patches"]["kernel"], (16, 16), "VALID",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )  # fmt: skip
    patches = (patches + params["patches"]["bias"]).reshape(len(images), 196, -1)
    cls = jnp.broadcast_to(params["cls"], (len(images), 1, patches.shape[-1]))
    x = jnp.concatenate([cls, patches], 1) + params["positions"]
    for i in range(12):
        x = block(x, params[f"block{i}"], causal=False)
    return norm(x, params["norm"])[:, 0] @ params["head"]["kernel"] + params["head"]["bias"]


def decoder(params: Any, tokens: jax.Array) -> jax.Array:
    """A decoder of the parameters of `trees.transformer`, its layers in a scan."""
    one = jax.checkpoint(lambda x, p: (block(x, p, causal=True), None))  # type: ignore[arg-type]
    x, _ = jax.lax.scan(one, params["embedding"][tokens], params["blocks"])
    return norm(x, params["norm"]) @ params["embedding"].T


def block(x: jax.Array, p: Any, *, causal: bool) -> jax.Array:
    """Attention and a feed-forward network, each behind a norm."""
    a, h = p["attention"], norm(x, p["norm1"])
    query, key, value = (
        jnp.einsum("btd,dhk->bthk", h, a[name]["kernel"]) + a[name]["bias"]
        for name in ("query", "key", "value")
    )
    mixed = jax.nn.dot_product_attention(query, key, value, is_causal=causal)
    x = x + jnp.einsum("bthk,hkd->btd", mixed, a["out"]["kernel"]) + a["out"]["bias"]
    up, down = p["mlp"]["up"], p["mlp"]["down"]
    h = jax.nn.gelu(norm(x, p["norm2"]) @ up["kernel"] + up["bias"])
    return x + h @ down["kernel"] + down["bias"]


def norm(x: jax.Array, p: Any) -> jax.Array:
    """Layer normalization, in float32."""
    wide = x.astype(jnp.float32)
    wide = wide - wide.mean(-1, keepdims=True)
    wide = wide * jax.lax.rsqrt((wide**2).mean(-1, keepdims=True) + 1e-6)
    return wide.astype(x.dtype) * p["scale"] + p["bias"]


# ---- meshes


def layout(tree: Any, name: str, mesh: dict[str, int]) -> Any:
    """The PartitionSpec of every parameter."""
    every = tuple(mesh)
    count = mesh["x"] * mesh["y"]

    def fully(p: trees.Parameter) -> PartitionSpec:
        """A slice of the longest axis that can be cut, on every chip."""
        fitting = [n if n % count == 0 else 0 for n in p.shape]
        at = fitting.index(max(fitting))
        return PartitionSpec(*(every if i == at and max(fitting) else None for i in range(at + 1)))

    def tensor(path: Any, p: trees.Parameter) -> PartitionSpec:
        """Heads and hidden features on chips (Shoeybi et al., arXiv 1909.08053)."""
        names = [key.key for key in path]
        at = {("out", "kernel"): 1, ("down", "kernel"): 1, ("up", "bias"): 1}
        at |= {(role, leaf): 2 for role in ("query", "key", "value", "up") for leaf in ("kernel",)}
        at |= {(role, "bias"): 1 for role in ("query", "key", "value")}
        if (axis := at.get(tuple(names[-2:]))) is None:
            return PartitionSpec(every) if names == ["embedding"] else PartitionSpec()
        return PartitionSpec(*(None,) * axis, every)

    if name == "FSDP":
        return jax.tree.map(fully, tree, is_leaf=trees.is_parameter)
    return jax.tree_util.tree_map_with_path(tensor, tree, is_leaf=trees.is_parameter)


# ---- rows


def jobs(chips: list[str]) -> Iterator[Job]:
    """Every row, those first that are quick and say most.

    Not all combinations, which would take hours: everything is compiled with Adam for a TPU and a
    GPU. Their relatives differ from them in sizes alone, and momentum from Adam in how much more
    there is to move, so that these rows are fewer.
    """
    main = [chip for chip in ("v5e", "H100") if chip in chips]
    rest = [chip for chip in chips if chip not in main]
    quick, slow = ["4096 × 16384", STACKED], ["ViT-B/16", "ResNet-50"]
    three = (WITHOUT, OURS, NAIVE)
    momentum = functools.partial(
        steps, optimizer="sgd, momentum", dtypes=DTYPES[:1], variants=three
    )

    yield from steps(main, quick, "adam")
    for mesh in MESHES:
        yield from steps(main, [STACKED], "adam", mesh=mesh)
    yield from steps(rest, quick, "adam", variants=three)
    yield from momentum(chips, quick)
    yield from steps(main, slow, "adam")
    yield from training(main, STACKED)
    yield from momentum(main, slow)
    yield from training(main, "ViT-B/16")
    yield from steps(main, [UNROLLED], "adam", variants=three)
    yield from momentum(main, [UNROLLED])


def steps(
    chips: list[str],
    names: list[str],
    optimizer: str,
    *,
    mesh: str = "",
    dtypes: Iterable[str] = DTYPES,
    variants: Iterable[str] = tuple(VARIANTS),
) -> Iterator[Job]:
    """Optimizer steps in every dtype and variant."""
    for name, chip, dtype, variant in itertools.product(names, chips, dtypes, variants):
        yield Job(chip, mesh, name, dtype, optimizer, variant)


def training(chips: list[str], name: str) -> Iterator[Job]:
    """Training steps with and without."""
    for chip, variant in itertools.product(chips, (WITHOUT, OURS)):
        yield Job(chip, "", f"training, {name}", "bfloat16", "adam", variant)


def row(job: Job) -> dict[str, Any]:
    """Compiles, and reads the program."""
    program, gradients = compile_step(job)
    text, memory = program.as_text(), program.memory_analysis()
    exchanged = targets.collectives(text)
    shards = [
        jax.ShapeDtypeStruct(g.sharding.shard_shape(g.shape), g.dtype)
        for g in jax.tree.leaves(gradients)
    ]
    return {
        **job._asdict(),
        "gradients": trees.nbytes(gradients),
        "shard": trees.nbytes(shards),
        "moved": targets.moved(text),
        "temporaries": memory.temp_size_in_bytes,
        "peak": memory.argument_size_in_bytes
        + memory.output_size_in_bytes
        - memory.alias_size_in_bytes
        + memory.temp_size_in_bytes,
        "collectives": len(exchanged),
        "collective_bytes": sum(exchanged),
        "jax": jax.__version__,
    }


def main() -> None:
    """Appends the rows that are missing."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--csv", type=pathlib.Path, default=FILE, help="the file to add rows to")
    parser.add_argument("--chips", nargs="+", choices=targets.CHIPS, help="only these")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="then start no more")
    options = parser.parse_args()
    end = time.monotonic() + 60 * options.minutes
    chips = [chip for chip in options.chips or targets.CHIPS if chip in targets.installed()]
    done = set()
    if options.csv.exists():
        with options.csv.open() as file:
            done = {tuple(r[field] for field in Job._fields) for r in csv.DictReader(file)}
    missing = [job for job in jobs(chips) if tuple(job) not in done]
    with options.csv.open("a", newline="") as file:
        writer = csv.DictWriter(file, FIELDS, lineterminator="\n")
        if not file.tell():
            writer.writeheader()
        for job in (bar := tqdm(missing, disable=None)):
            if time.monotonic() > end:
                break
            bar.set_postfix_str(" ".join(job))
            writer.writerow(row(job))
            file.flush()


if __name__ == "__main__":
    main()
