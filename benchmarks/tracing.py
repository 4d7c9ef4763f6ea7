"""Times axes_from_trace over jax.make_jaxpr of the same model, for models of hundreds of arrays.

    python benchmarks/tracing.py [--csv FILE] [--models NAME ...] [--rounds N]

Models are unrolled and are only shapes. The two take turns, on a fresh function each time, so that
no trace is found in a cache, and with the collector of garbage off, as in timeit. A ratio is the
median over the rounds of one's seconds over the other's in the same round, with the least and the
greatest beside it.
"""

import argparse
import csv
import gc
import pathlib
import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from tqdm import tqdm

from optax_gc import axes_from_trace

FILE = pathlib.Path(__file__).with_name("tracing.csv")
FIELDS: tuple[str, ...] = (
    "model", "arrays", "rounds", "make_jaxpr", "axes_from_trace", "ratio", "least", "greatest",
    "jax",
)  # fmt: skip


class Model(NamedTuple):
    """A function of parameters and tokens, with the shapes of both."""

    apply: Callable[..., jax.Array]
    params: Any
    inputs: tuple[jax.ShapeDtypeStruct, ...]


def struct(*shape: int) -> jax.ShapeDtypeStruct:
    """A parameter of float32."""
    return jax.ShapeDtypeStruct(shape, jnp.float32)


def tokens(length: int) -> jax.ShapeDtypeStruct:
    """A batch of two sequences."""
    return jax.ShapeDtypeStruct((2, length), jnp.int32)


def attention_params(d: int, heads: int, size: int, *, biases: bool) -> dict[str, Any]:
    """Projections to heads of a size, and back."""
    names = ("query", "key", "value")
    layers = {name: {"kernel": struct(d, heads, size)} for name in names}
    layers["out"] = {"kernel": struct(heads, size, d)}
    if biases:
        for name in names:
            layers[name]["bias"] = struct(heads, size)
        layers["out"]["bias"] = struct(d)
    return layers


def dense_params(fan_in: int, out: int, *, biases: bool) -> dict[str, Any]:
    """A kernel, with a bias or without."""
    kernel = {"kernel": struct(fan_in, out)}
    return kernel | {"bias": struct(out)} if biases else kernel


def norm_params(d: int, *, biases: bool) -> dict[str, Any]:
    """A scale; with a bias for LayerNorm, without for RMSNorm."""
    return {"scale": struct(d)} | ({"bias": struct(d)} if biases else {})


def norm(p: Any, x: jax.Array) -> jax.Array:
    """LayerNorm where there is a bias, else RMSNorm."""
    if "bias" in p:
        x = x - x.mean(-1, keepdims=True)
    x = x * jax.lax.rsqrt((x**2).mean(-1, keepdims=True) + 1e-6) * p["scale"]
    return x + p["bias"] if "bias" in p else x


def dense(p: Any, x: jax.Array, equation: str = "btd,df->btf") -> jax.Array:
    """A contraction, and the bias where there is one."""
    y = jnp.einsum(equation, x, p["kernel"])
    return y + p["bias"] if "bias" in p else y


def attend(p: Any, x: jax.Array, memory: jax.Array, bias: Any = 0.0, *, causal: bool) -> jax.Array:
    """Attention of `x` to `memory`."""
    query, key, value = (
        dense(p[name], source, "btd,dhk->bthk")
        for name, source in (("query", x), ("key", memory), ("value", memory))
    )
    scores = jnp.einsum("bqhk,bshk->bhqs", query, key) * key.shape[-1] ** -0.5 + bias
    if causal:
        scores = jnp.where(jnp.tri(*scores.shape[-2:], dtype=bool), scores, -1e9)
    mixed = jnp.einsum("bhqs,bshk->bqhk", jax.nn.softmax(scores), value)
    return dense(p["out"], mixed, "bthk,hkd->btd")


def feed_forward(p: Any, x: jax.Array) -> jax.Array:
    """One hidden layer, gated where there is a gate."""
    hidden = jax.nn.gelu(dense(p["up"], x))
    if "gate" in p:
        hidden = hidden * dense(p["gate"], x)
    return dense(p["down"], hidden)


def gpt2_xl() -> Model:
    """GPT-2 XL (Radford et al., 2019): 48 layers of width 1600, query, key and value in one."""
    d, heads, length = 1600, 25, 256
    biases = True

    def block() -> dict[str, Any]:
        return {
            "norm1": norm_params(d, biases=biases),
            "attention": {
                "qkv": {"kernel": struct(d, 3, heads, 64), "bias": struct(3, heads, 64)},
                "out": {"kernel": struct(heads, 64, d), "bias": struct(d)},
            },
            "norm2": norm_params(d, biases=biases),
            "mlp": {
                "up": dense_params(d, 4 * d, biases=biases),
                "down": dense_params(4 * d, d, biases=biases),
            },
        }

    params = {
        "wte": struct(50257, d),
        "wpe": struct(1024, d),
        "blocks": [block() for _ in range(48)],
        "norm": norm_params(d, biases=biases),
    }

    def apply(params: Any, ids: jax.Array) -> jax.Array:
        x = params["wte"][ids] + params["wpe"][: ids.shape[1]]
        for p in params["blocks"]:
            a, h = p["attention"], norm(p["norm1"], x)
            query, key, value = jnp.moveaxis(dense(a["qkv"], h, "btd,dnhk->btnhk"), 2, 0)
            scores = jnp.einsum("bqhk,bshk->bhqs", query, key) / 8
            scores = jnp.where(jnp.tri(ids.shape[1], dtype=bool), scores, -1e9)
            mixed = jnp.einsum("bhqs,bshk->bqhk", jax.nn.softmax(scores), value)
            x = x + dense(a["out"], mixed, "bthk,hkd->btd")
            x = x + feed_forward(p["mlp"], norm(p["norm2"], x))
        return norm(params["norm"], x) @ params["wte"].T

    return Model(apply, params, (tokens(length),))


def encoder_decoder(
    layers: int, d: int, heads: int, hidden: int, *, biases: bool, gated: bool, relative: bool
) -> Model:
    """An encoder and a decoder, with norms first; learned or relative positions."""
    size, length, vocabulary = d // heads, 128, 32128

    def mlp() -> dict[str, Any]:
        made = {
            "up": dense_params(d, hidden, biases=biases),
            "down": dense_params(hidden, d, biases=biases),
        }
        return made | ({"gate": dense_params(d, hidden, biases=biases)} if gated else {})

    def block(*, cross: bool) -> dict[str, Any]:
        made: dict[str, Any] = {}
        for name in ("self", "cross")[: 1 + cross]:
            made[name] = attention_params(d, heads, size, biases=biases)
            made[f"norm_{name}"] = norm_params(d, biases=biases)
        return made | {"mlp": mlp(), "norm_mlp": norm_params(d, biases=biases)}

    def stack(*, cross: bool) -> dict[str, Any]:
        return {
            "positions": struct(32, heads) if relative else struct(length, d),
            "blocks": [block(cross=cross) for _ in range(layers)],
            "norm": norm_params(d, biases=biases),
        }

    params = {
        "embedding": struct(vocabulary, d),
        "encoder": stack(cross=False),
        "decoder": stack(cross=True),
        "head": dense_params(d, vocabulary, biases=biases),
    }

    def run(p: Any, x: jax.Array, memory: jax.Array | None) -> jax.Array:
        bias: Any = 0.0
        if relative:
            steps = jnp.arange(x.shape[1])
            distance = jnp.clip(steps[:, None] - steps[None], -16, 15) + 16
            bias = jnp.moveaxis(p["positions"][distance], -1, 0)
        else:
            x = x + p["positions"]
        for q in p["blocks"]:
            h = norm(q["norm_self"], x)
            x = x + attend(q["self"], h, h, bias, causal=memory is not None)
            if memory is not None:
                x = x + attend(q["cross"], norm(q["norm_cross"], x), memory, causal=False)
            x = x + feed_forward(q["mlp"], norm(q["norm_mlp"], x))
        return norm(p["norm"], x)

    def apply(params: Any, source: jax.Array, target: jax.Array) -> jax.Array:
        memory = run(params["encoder"], params["embedding"][source], None)
        x = run(params["decoder"], params["embedding"][target], memory)
        return dense(params["head"], x)

    return Model(apply, params, (tokens(length), tokens(length)))


MODELS: dict[str, Callable[[], Model]] = {
    # Raffel et al., arXiv 1910.10683, with the gate of version 1.1.
    "T5-large": lambda: encoder_decoder(
        24, 1024, 16, 2816, biases=False, gated=True, relative=True
    ),
    "GPT-2 XL": gpt2_xl,
    # Biases everywhere, as in NLLB and M2M-100.
    "encoder-decoder": lambda: encoder_decoder(
        30, 1024, 16, 4096, biases=True, gated=False, relative=False
    ),
}


def seconds(run: Callable[[], Any]) -> float:
    """The time of one run, before and during which no garbage is collected."""
    gc.collect()
    gc.disable()
    start = time.perf_counter()
    run()
    elapsed = time.perf_counter() - start
    gc.enable()
    return elapsed


def row(name: str, rounds: int) -> dict[str, Any]:
    """Measures one model."""
    model = MODELS[name]()

    def fresh() -> Callable[..., jax.Array]:
        return lambda params, *inputs: model.apply(params, *inputs)

    contestants: list[Callable[[], Any]] = [
        lambda: jax.make_jaxpr(fresh())(model.params, *model.inputs),
        lambda: axes_from_trace(fresh(), model.params, *model.inputs),
    ]
    times: list[tuple[float, float]] = []
    for i in range(rounds + 1):
        order = (0, 1) if i % 2 else (1, 0)
        found = {which: seconds(contestants[which]) for which in order}
        if i:  # the first round warms up
            times.append((found[0], found[1]))
    ratios = [ours / plain for plain, ours in times]
    plain, ours = (statistics.median(column) for column in zip(*times, strict=True))
    return {
        "model": name,
        "arrays": len(jax.tree.leaves(model.params)),
        "rounds": rounds,
        "make_jaxpr": f"{plain:.3f}",
        "axes_from_trace": f"{ours:.3f}",
        "ratio": f"{statistics.median(ratios):.2f}",
        "least": f"{min(ratios):.2f}",
        "greatest": f"{max(ratios):.2f}",
        "jax": jax.__version__,
    }


def main() -> None:
    """Measures, prints and writes."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--csv", type=pathlib.Path, default=FILE, help="the file to write")
    parser.add_argument("--models", nargs="+", choices=list(MODELS), default=list(MODELS))
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    found = [row(name, options.rounds) for name in tqdm(options.models, disable=None)]
    with options.csv.open("w", newline="") as file:
        writer = csv.DictWriter(file, FIELDS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(found)
    for r in found:
        print("{model}: {arrays} arrays, {make_jaxpr} s and {axes_from_trace} s, {ratio} times "
              "[{least}, {greatest}]".format(**r))  # fmt: skip


if __name__ == "__main__":
    main()
