"""axes_from_trace on programs in which a single condition of the tracer decides."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import PartitionSpec as P
from trace_spellings import on_mesh
from trace_support import REFUSED, Untold, answers, f32, i32, outcomes

K = lambda *s: np.random.default_rng(0).normal(size=s).astype(np.float32)  # noqa: E731
X, W, SEQUENCE, TABLE, IDS = f32(3, 8), f32(8, 6), f32(2, 4, 8), f32(11, 6), i32(3)
EXPERTS = f32(5, 8, 6)
CASES = {}


def case(name, fn, params, *args, **expected):
    """Notes a program: its function, parameters and inputs, and the outcome of each parameter."""
    CASES[name] = fn, params, args, expected


def normalized(h):
    h = h - h.mean(-1, keepdims=True)
    return h * lax.rsqrt(1 + (h**2).mean(-1, keepdims=True))


def hot(i, n):
    return jax.nn.one_hot(i, n)


def unknown(x):
    return lax.linalg.lu(x)[0]


# ---- Slices.

case(
    "a nonlinearity for each weight, row by row",
    lambda p, x: sum(jnp.tanh(x[:, i, None] * p["w"][i]) for i in range(8)),
    {"w": W}, X, w=REFUSED,
)  # fmt: skip


def scales_after_what_they_went_into(p, x):
    h = x * p["s"][0]
    for i in range(1, 4):
        h = h + jnp.tanh(x * p["s"][i]) * p["s"][i]
    return h


case("scales after what they went into", scales_after_what_they_went_into,
     {"s": f32(4, 8)}, X, s=Untold(()))  # fmt: skip
case(
    "rows of a part of the fan-in, one of them twice",
    lambda p, x, y: jnp.tanh(x @ p["w"][:3][np.array([0, 0, 2])] + y @ p["w"][3:]),
    {"w": W}, f32(4, 3), f32(4, 5), w=REFUSED,
)  # fmt: skip
case(
    "rows of a part of the fan-in, in another order",
    lambda p, x, y: jnp.tanh(
        x @ p["w"][:4].reshape(2, 2, 6).swapaxes(0, 1).reshape(4, 6) + y @ p["w"][4:]
    ),
    {"w": W}, f32(4, 4), f32(4, 4), w=Untold((0,)),
)  # fmt: skip
case(
    "an additive model of each of several slices",
    lambda p, x: jnp.stack([jnp.tanh(x[:, :, None] * p["w"][i]).sum((1, 2)) for i in range(4)], -1),
    {"w": f32(4, 8, 6)}, X, w=REFUSED,
)  # fmt: skip
case("an additive model", lambda p, x: jnp.tanh(x[:, :, None] * p["w"]).sum((1, 2)),
     {"w": W}, X, w=())  # fmt: skip
case(
    "constants times every slice, summed whole",
    lambda p, x: jnp.stack([(K(8, 6) * p["w"][i]).sum() for i in range(4)]),
    {"w": f32(4, 8, 6)}, X, w=(1, 2),
)  # fmt: skip

case("a weight without its first row, and a row of zeros",
     lambda p, x: x @ lax.pad(p["w"], 0.0, ((-1, 1, 0), (0, 0, 0))), {"w": W}, X,
     w=Untold((0,)))  # fmt: skip
case("a row of zeros, and a weight without its last row",
     lambda p, x: x @ lax.pad(p["w"], 0.0, ((1, -1, 0), (0, 0, 0))), {"w": W}, X,
     w=Untold((0,)))  # fmt: skip
case("the same weight twice, one below the other",
     lambda p, x: jnp.concatenate([x, x], 1) @ jnp.concatenate([p["w"], p["w"]]), {"w": W}, X,
     w=Untold((0,)))  # fmt: skip
case("rows stacked, one of them twice",
     lambda p, x: x @ jnp.stack([p["w"][0], p["w"][0], p["w"][1]]), {"w": f32(2, 6)}, f32(4, 3),
     w=Untold((0,)))  # fmt: skip
case("rows of two axes, stacked",
     lambda p, x: x @ jnp.stack([p["w"][i, j] for i, j in ((1, 0), (0, 0), (0, 1), (1, 1))]),
     {"w": f32(2, 2, 6)}, f32(3, 4), w=Untold((0, 1)))  # fmt: skip
case("products with inputs, summed by segments",
     lambda p, x, i: jax.ops.segment_sum(x[:, None] * p["w"], i, 4), {"w": W}, f32(8), i32(8),
     w=Untold((0,)))  # fmt: skip
case("a count of words, written by a scatter",
     lambda p, i: jnp.zeros((3, 11)).at[jnp.arange(3)[:, None], i].add(1.0) @ p["w"],
     {"w": TABLE}, i32(3, 4), w=(0,))  # fmt: skip

case(
    "units for each head, which are added up head by head",
    lambda p, x: (lambda y: y[:, 0] + y[:, 1] + y[:, 2] + y[:, 3])((x[..., None] * p["w"]).sum(2)),
    {"w": f32(4, 8, 6)}, f32(3, 4, 8), w=REFUSED,
)  # fmt: skip
case(
    "taps of windows, cut along the time and by their index at once",
    lambda p, x: (lambda y: sum(y[:, k : k + 5, :, k] for k in range(4)))(x[..., None] * p["w"]),
    {"w": f32(8, 4)}, f32(3, 9, 8), w=(1,),
)  # fmt: skip
case(
    "halves of a product that are added up, then summed",
    lambda p, x: (lambda y: (y[:, :, 0] + y[:, :, 1]).sum(-1))((x * p["w"]).reshape(3, 8, 2, 3)),
    {"w": f32(8, 6)}, f32(3, 8, 6), w=REFUSED,
)  # fmt: skip
case(
    "rows that constants chose, each of them for several positions",
    lambda p, x: (x[..., None] * p["w"][jnp.broadcast_to(np.array([2, 0, 1])[:, None], (3, 5))])
    .sum((1, 2)),
    {"w": f32(3, 6)}, f32(2, 3, 5), w=REFUSED,
)  # fmt: skip
case("rows of both, one by one", lambda p, x: sum(
        a[:, None] * b for a, b in zip(jnp.unstack(x, axis=1), jnp.unstack(p["w"]), strict=True)),
     {"w": W}, X, w=(0,))  # fmt: skip

# ---- Products of parameters, of which one may be an activation.

PAIR = {"a": f32(7, 8), "b": f32(8, 6), "c": f32(6)}
case("latents through a layer with a bias", lambda p, x: jnp.tanh(p["a"] @ p["b"] + p["c"]) @ x,
     PAIR, f32(6, 3), a=(), b=(0,), c=())  # fmt: skip
case("constants through two layers, with a bias",
     lambda p, x: jnp.tanh(K(4, 7) @ p["a"] @ p["b"] + p["c"]) @ x,
     PAIR, f32(6, 3), a=(0,), b=(0,), c=())  # fmt: skip
case(
    "constants through a layer, scaled row by row, and a column",
    lambda p, x: jnp.tanh(K(4, 7) @ p["a"] * p["d"] + p["b"][:, 0]) @ x,
    {**PAIR, "d": f32(4, 1)}, f32(8, 3), a=REFUSED, b=REFUSED, c=(), d=REFUSED,
)  # fmt: skip
case(
    "latents through one unit, with a bias of others",
    lambda p, x: jnp.tanh((p["a"] @ p["v"])[:, None] + p["c"]) @ x,
    {"a": f32(7, 8), "v": f32(8), "c": f32(6)}, f32(6, 3), a=(), v=Untold((0,)), c=(),
)  # fmt: skip
case(
    "a product of parameters scaled by another, with a bias",
    lambda p, x: jnp.tanh((p["a"] @ p["b"]) * (p["v"] @ p["m"]) + p["c"]) @ x,
    {**PAIR, "v": f32(4), "m": f32(4, 6)}, f32(6, 3), **dict.fromkeys("abcvm", REFUSED),
)  # fmt: skip
case(
    "a scaled latent and a bias, then a layer",
    lambda p, x: jnp.tanh(p["a"] * p["d"] + p["b"][:, 0]) @ p["w"],
    {"a": f32(7, 8), "b": f32(8, 6), "d": f32(7, 8), "w": W}, X,
    a=Untold(()), b=Untold(()), d=Untold(()), w=(0,),
)  # fmt: skip
case("constants on both sides", lambda p, x: K(5, 7) @ p["a"] @ K(8, 3),
     {"a": f32(7, 8)}, X, a=REFUSED)  # fmt: skip
case("constants times the same elements", lambda p, x: (K(8, 6) * p["w"]).sum(),
     {"w": W}, X, w=(0, 1))  # fmt: skip
case(
    "latents for each of several members",
    lambda p, x: jnp.einsum("bqd,bdf->bqf", jnp.broadcast_to(p["q"], (3, 5, 8)), p["w"]) * x,
    {"q": f32(5, 8), "w": f32(3, 8, 6)}, f32(3, 5, 6), q=REFUSED, w=REFUSED,
)  # fmt: skip
case("normalized latents and a sum of a parameter",
     lambda p, x: jnp.tanh(normalized(p["q"]) @ p["w"].sum(-1)) @ x,
     {"q": f32(5, 8), "w": f32(8, 6, 4)}, f32(6, 3), q=REFUSED, w=REFUSED)  # fmt: skip
case("normalized latents and a layer on constants",
     lambda p, x: jnp.tanh(normalized(p["q"]) @ (K(8, 4) @ p["w"])) @ x,
     {"q": f32(5, 8), "w": f32(4, 6)}, f32(6, 3), q=REFUSED, w=REFUSED)  # fmt: skip
case("a layer on constants and normalized latents",
     lambda p, x: jnp.tanh((K(6, 4) @ p["w"]) @ normalized(p["q"])) @ x,
     {"q": f32(5, 8), "w": f32(4, 5)}, f32(8, 3), q=REFUSED, w=REFUSED)  # fmt: skip
case("two vectors multiplied, and one of them summed",
     lambda p, x: x * (p["u"][:, None] * p["v"]).sum(0),
     {"u": f32(5), "v": f32(8)}, X, u=Untold(()), v=Untold(()))  # fmt: skip

CHAIN = {"a": f32(8, 3), "m": f32(3, 2), "b": f32(2, 5)}


def chain(p):
    return p["a"][:, :, None, None] * p["m"][:, :, None] * p["b"]


case("a chain of three, summed at once", lambda p, x: x @ chain(p).sum((1, 2)),
     CHAIN, X, a=(0,), m=(0,), b=(0,))  # fmt: skip
case("a chain of two, then a frozen matrix, summed at once",
     lambda p, x: x @ (p["a"][:, :, None, None] * p["m"][:, :, None] * K(2, 5)).sum((1, 2)),
     {"a": CHAIN["a"], "m": CHAIN["m"]}, X, a=(0,), m=(0,))  # fmt: skip
case("inputs times a chain, summed axis by axis",
     lambda p, x: (x[:, :, None, None, None] * chain(p)).sum(1).sum(1).sum(1),
     CHAIN, X, a=(0,), m=Untold((0,)), b=Untold((0,)))  # fmt: skip

# ---- Sums of several factors with inputs.

case(
    "a factor that is summed beside a layer",
    lambda p, x: (x[:, :, None, None] * p["w"][None, :, :, None] * p["v"]).sum((1, 3)),
    {"w": W, "v": f32(6, 4)}, X, w=(0,), v=(),
)  # fmt: skip
case(
    "the outputs of a scale, contracted with a layer",
    lambda p, x: jnp.einsum("bij,ik->bjk", x[:, :, None] * p["w"], p["g"]),
    {"w": W, "g": f32(8, 5)}, X, w=Untold((0,)), g=Untold((0,)),
)  # fmt: skip
case("a scale with a residual, summed", lambda p, x: (x[:, :, None] * (1 + p["w"])).sum(1) * 2,
     {"w": W}, X, w=(0,))  # fmt: skip
case("inputs and their scaled selves, summed",
     lambda p, x: (x[:, :, None] + x[:, :, None] * p["w"]).sum(1),
     {"w": W}, X, w=Untold((0,)))  # fmt: skip
case("a sum of a parameter as the scale of a unit",
     lambda p, x: ((x * p["s"][:, 0]) @ p["w"]), {"s": f32(8, 1), "w": f32(8, 1)}, X,
     s=(), w=(0,))  # fmt: skip
case(
    "tables and a matrix in one einsum",
    lambda p, i: jnp.einsum("bk,kj,bj->b", p["t"][i], p["w"], p["u"][i]),
    {"t": TABLE, "w": f32(6, 4), "u": f32(11, 4)}, IDS, t=REFUSED, w=REFUSED, u=REFUSED,
)  # fmt: skip
case("rows of a layer on constants, meeting inputs",
     lambda p, i, x: ((K(11, 6) @ p["w"])[i] * x).sum(-1),
     {"w": f32(6, 4)}, IDS, f32(3, 4), w=REFUSED)  # fmt: skip
case(
    "a nonlinearity for each weight, then a layer over all",
    lambda p, x: jnp.einsum("bif,ifo->bo", jnp.tanh(x[:, :, None] * p["w"]), p["v"]),
    {"w": W, "v": f32(8, 6, 5)}, X, w=REFUSED, v=(0, 1),
)  # fmt: skip
RELATIONS = f32(3, 8, 6)
for name, score in {
    "one einsum": lambda p, k, x, y: jnp.einsum("bi,bij,bj->b", x, p["r"][k], y),
    "a product and a sum": lambda p, k, x, y: (x[:, :, None] * y[:, None] * p["r"][k]).sum((1, 2)),
}.items():
    case(f"matrices of relations that data chose: {name}", score, {"r": RELATIONS},
         i32(4), f32(4, 8), f32(4, 6), r=Untold((1, 2)))  # fmt: skip

# ---- Scales of queries.

QUERIES, GAIN = f32(2, 4, 3, 8), f32(3, 8)
case("queries scaled before they meet keys",
     lambda p, x: jnp.einsum("bqhd,bkhd->bhqk", x * p["s"], x), {"s": GAIN}, QUERIES,
     s=())  # fmt: skip
case("queries scaled in one einsum with the keys",
     lambda p, x: jnp.einsum("bqhd,hd,bkhd->bhqk", x, p["s"], x), {"s": GAIN}, QUERIES,
     s=())  # fmt: skip
case("one unit of products of inputs, in one einsum",
     lambda p, x, y: jnp.einsum("bd,d,bd->b", x, p["s"], y), {"s": f32(8)}, X, X,
     s=(0,))  # fmt: skip
case("one unit and a gate, in one einsum",
     lambda p, x, y: jnp.einsum("bti,i,bj->btj", x, p["w"], y), {"w": f32(8)},
     SEQUENCE, f32(2, 5), w=(0,))  # fmt: skip
case("one unit by a product and a sum, gated before the sum",
     lambda p, x, y: ((x * p["w"])[..., None] * y[:, None, None]).sum(2), {"w": f32(8)},
     SEQUENCE, f32(2, 5), w=Untold((0,)))  # fmt: skip


def tokens_that_meet_themselves(p, x):
    h = x[..., None] * p["w"]
    return jax.nn.softmax(h @ h.swapaxes(1, 2)) @ h


case("tokens of features that meet themselves", tokens_that_meet_themselves,
     {"w": W}, X, w=REFUSED)  # fmt: skip

# ---- One-hots times something.

case("scaled one-hots times a table", lambda p, i: (hot(i, 11) * p["s"]) @ p["t"],
     {"s": f32(11), "t": TABLE}, IDS, s=(), t=())  # fmt: skip
case("one-hots times a scaled table", lambda p, i: hot(i, 11) @ (p["s"][:, None] * p["t"]),
     {"s": f32(11), "t": TABLE}, IDS, s=(), t=())  # fmt: skip
case("one-hots times constants, times a table", lambda p, i: (hot(i, 11) * K(3, 11)) @ p["t"],
     {"t": TABLE}, IDS, t=())  # fmt: skip
case("identity times inputs, times a weight",
     lambda p, x: ((x[:, :, None] * jnp.eye(8)) @ p["w"]).sum(1), {"w": W}, X, w=(0,))  # fmt: skip
case("one-hots side by side with inputs, both contracted",
     lambda p, i, x: ((hot(i, 5)[:, :, None] * x[:, None])[..., None] * p["w"]).sum((1, 2)),
     {"w": EXPERTS}, IDS, X, w=(0, 1))  # fmt: skip
case("pairs of one-hots", lambda p, i: (
         (hot(i, 5)[:, :, None] * hot(i, 4)[:, None]).reshape(-1, 20) @ p["t"]),
     {"t": f32(20, 6)}, IDS, t=())  # fmt: skip
case("one-hots between a weight and its inputs",
     lambda p, i, x: (hot(i, 5)[:, :, None] * p["w"] * x[:, None]).sum(1),
     {"w": f32(5, 8)}, IDS, X, w=())  # fmt: skip


case("heads, of which one-hots choose one",
     lambda p, i, x: jnp.einsum("bt,btf->bf", hot(i, 5), jnp.einsum("bd,tdf->btf", x, p["h"])),
     {"h": EXPERTS}, IDS, X, h=(1,))  # fmt: skip
case("heads that one-hots mask, summed",
     lambda p, i, x: (jnp.einsum("bd,tdf->btf", x, p["h"]) * hot(i, 5)[..., None]).sum(1),
     {"h": EXPERTS}, IDS, X, h=(1,))  # fmt: skip
case("heads that inputs weigh",
     lambda p, x, y: jnp.einsum("bt,btf->bf", y, jnp.einsum("bd,tdf->btf", x, p["h"])),
     {"h": EXPERTS}, X, f32(3, 5), h=REFUSED)  # fmt: skip
case("tokens with positions, of which one-hots choose one",
     lambda p, i, x: jnp.einsum("bt,btf->bf", hot(i, 4), x + p["pos"]),
     {"pos": f32(4, 8)}, i32(2), SEQUENCE, pos=())  # fmt: skip


def best(p, x):
    """The gates of the best expert alone."""
    gates = jax.nn.softmax(x @ p["r"])
    return hot(jnp.argmax(gates, -1), 5) * gates


for name, mixed in {
    "one einsum": lambda p, x: jnp.einsum("be,bd,edf->bf", best(p, x), x, p["w"]),
    "weights first": lambda p, x: jnp.einsum(
        "bd,bdf->bf", x, jnp.einsum("be,edf->bdf", best(p, x), p["w"])
    ),
}.items():
    case(f"one-hots of the best expert: {name}", mixed, {"r": f32(8, 5), "w": EXPERTS}, X,
         r=(0,), w=(1,))  # fmt: skip

case(
    "experts that one-hots chose, cut before they are summed",
    lambda p, i, x: (hot(i, 4)[:, :, None, None] * p["w"])[:, :2].sum(1).swapaxes(1, 2) @ x,
    {"w": f32(4, 8, 6)}, IDS, f32(8, 5), w=REFUSED,
)  # fmt: skip
case(
    "a gain of a weight of which columns are taken, which a nonlinearity for each weight meets",
    lambda p, x: jnp.einsum("bio,io->bo", jnp.sin(x[..., None] * p["f"]),
                            jnp.take(p["w"], np.arange(6)[::-1], 1) * p["s"][:, None]),
    {"f": W, "w": W, "s": f32(8)}, X, f=REFUSED, w=REFUSED, s=REFUSED,
)  # fmt: skip

AVERAGES = 0.5 * (np.eye(8) + np.eye(8, k=1) + np.eye(8, k=-7)).astype(np.float32)
case("rows of averages that inputs chose", lambda p, i: jnp.asarray(AVERAGES)[i] @ p["w"],
     {"w": W}, IDS, w=(0,))  # fmt: skip
case(
    "no one-hots: inputs compared with their places",
    lambda p, i: (i == jnp.arange(8)).astype(jnp.float32) @ p["w"],
    {"w": W}, i32(3, 8), w=(0,),
)  # fmt: skip
case(
    "rows for the highest of each input",
    lambda p, x: jax.nn.one_hot(x.argmax(-1), 8) @ p["w"] * x.max(-1, keepdims=True),
    {"w": W}, X, w=(),
)  # fmt: skip
case("a one-hot of which the last are cut off", lambda p, i: hot(i, 12)[:, :8] @ p["w"],
     {"w": W}, IDS, w=REFUSED)  # fmt: skip

# ---- Numbers that are inputs.

NUMBER = f32()
FACTORS = {"a": f32(8, 3), "b": f32(3, 6)}
case("a weight in a nonlinearity with a number", lambda p, x, s: x @ jnp.tanh(s * p["w"]),
     {"w": W}, X, NUMBER, w=Untold((0,)))  # fmt: skip
case("a weight in a softmax with a temperature", lambda p, x, s: x @ jax.nn.softmax(p["w"] / s, 0),
     {"w": W}, X, NUMBER, w=Untold((0,)))  # fmt: skip
case("a weight in a nonlinearity with a number for each example",
     lambda p, x, t: jnp.einsum("bi,bio->bo", x, jnp.tanh(t[:, None, None] * p["w"])),
     {"w": W}, X, f32(3), w=Untold((0,)))  # fmt: skip
case("oscillators with frequencies of their own, and amplitudes",
     lambda p, x, t: (x * jnp.sin(t[:, None] * p["f"])).sum(-1), {"f": f32(8)}, X, f32(3),
     f=())  # fmt: skip
case("factors, both times a number", lambda p, x, s: x @ ((s * p["a"]) @ (s * p["b"])),
     FACTORS, X, NUMBER, a=(0,), b=(0,))  # fmt: skip
case("a product of factors times a number", lambda p, x, s: x @ (s * (p["a"] @ p["b"])),
     FACTORS, X, NUMBER, a=(0,), b=(0,))  # fmt: skip
case("latents and their projection, both times a number",
     lambda p, x, s: jnp.tanh(x @ (s * p["w"]) @ ((s * p["u"]) @ (s * p["w"])).T),
     {"u": f32(9, 8), "w": W}, X, NUMBER, u=Untold(()), w=Untold((0,)))  # fmt: skip
FROZEN = np.random.default_rng(0).normal(size=(8, 3)).astype(np.float32)
case("factors, both times a number, one beside constants",
     lambda p, x, s: x @ ((s * p["a"] + FROZEN) @ (s * p["b"])),
     FACTORS, X, NUMBER, a=(0,), b=(0,))  # fmt: skip
case("a factor before another with constants, both times a number",
     lambda p, x, s: x @ ((s * p["b"].T) @ (s * (p["a"] + FROZEN).T)),
     FACTORS, f32(4, 6), NUMBER, a=(1,), b=(1,))  # fmt: skip
EACH = f32(3, 1, 1)  # a number for each example
case("factors, both times a number of each example",
     lambda p, x, s: jnp.einsum("bi,bio->bo", x, (s * p["a"]) @ (s * p["b"])),
     FACTORS, X, EACH, a=(0,), b=(0,))  # fmt: skip
case("factors, both times a number of each example, one beside constants",
     lambda p, x, s: jnp.einsum(
         "bi,bio->bo", x, (s * p["a"][None] + FROZEN[None]) @ (s * p["b"][None])
     ),
     FACTORS, X, EACH, a=Untold((0,)), b=Untold((0,)))  # fmt: skip
case("a bias times a number of each example, added to inputs without a batch",
     lambda p, x, s: (x[None] + s[:, 0] * p["b"][None]) @ p["w"],
     {"b": f32(8), "w": W}, f32(8), EACH, b=(), w=(0,))  # fmt: skip
case("weights added up, one times a number of each example",
     lambda p, x, s: jnp.einsum("bi,bio->bo", x, p["w"][None] + s * p["v"][None]),
     {"w": W, "v": W}, X, EACH, w=(0,), v=(0,))  # fmt: skip
case("a weight and an update before another, both times a number",
     lambda p, x, s: x @ ((p["w"] + s * p["v"]) @ (s * p["u"])),
     {"w": W, "v": W, "u": f32(6, 5)}, X, NUMBER, w=(0,), v=(0,), u=(0,))  # fmt: skip
case("slices of factors, each times a number, added up",
     lambda p, x, s: x @ sum((s * p["a"])[:, r, None] * (s * p["b"])[r] for r in range(3)),
     FACTORS, X, NUMBER, a=Untold((0,)), b=Untold((0,)))  # fmt: skip
case("a weight and an update of low rank times a number",
     lambda p, x, s: x @ (p["w"] + s * (p["a"] @ p["b"])),
     FACTORS | {"w": W}, X, NUMBER, w=(0,), a=(0,), b=(0,))  # fmt: skip
case("a weight and an update whose factors are both times a number",
     lambda p, x, s: x @ (p["w"] + (s * p["a"]) @ (s * p["b"])),
     FACTORS | {"w": W}, X, NUMBER, w=(0,), a=(0,), b=(0,))  # fmt: skip
case("a frozen weight and another times a number, before a layer",
     lambda p, x, s: x @ ((lax.stop_gradient(p["u"]) + s * p["v"]) @ p["w"]),
     {"u": f32(8, 3), "v": f32(8, 3), "w": f32(3, 6)}, X, NUMBER,
     u=(), v=(0,), w=(0,))  # fmt: skip
case("a weight times a number over the norm of another",
     lambda p, x, s: x @ (s * p["w"] / jnp.linalg.norm(p["v"])), {"w": W, "v": W}, X, NUMBER,
     w=(0,), v=())  # fmt: skip
case("weights between which a number interpolates",
     lambda p, x, s: x @ (s * p["w"] + (1 - s) * p["v"]), {"w": W, "v": W}, X, NUMBER,
     w=(0,), v=(0,))  # fmt: skip
case("a weight between which and another a number of each example interpolates",
     lambda p, x, s: jnp.einsum("bi,bio->bo", x, p["v"] + s * (p["w"] - p["v"])),
     {"w": W, "v": W}, X, EACH, w=(0,), v=(0,))  # fmt: skip
case("a direction times a number of each example, added to inputs",
     lambda p, x, s: (x + s[:, 0] * p["d"]) @ p["w"], {"d": f32(8), "w": W}, X, EACH,
     d=(), w=(0,))  # fmt: skip
case("noise on a weight times a number", lambda p, x, s, n: x @ (s * p["w"] + n),
     {"w": W}, X, NUMBER, W, w=Untold((0,)))  # fmt: skip
case("factors of one output, both times a number",
     lambda p, x, s: x @ ((s * p["a"]) @ (s * p["b"])),
     {"a": f32(8, 3), "b": f32(3)}, X, NUMBER, a=Untold((0,)), b=Untold((0,)))  # fmt: skip
case("factors of each layer, both times a number",
     lambda p, x, s: lax.scan(lambda h, f: (h @ ((s * f[0]) @ (s * f[1])), None), x, p)[0],
     [f32(4, 8, 3), f32(4, 3, 8)], X, NUMBER,
     **{"0": Untold((1,)), "1": Untold((1,))})  # fmt: skip
case("a block-diagonal matrix times a number, behind a gain",
     lambda p, x, s: (x * p["g"]).reshape(3, 8)
     @ jnp.einsum("gio,gh->giho", s * p["w"], np.eye(2)).reshape(8, 10),
     {"g": f32(4), "w": f32(2, 4, 5)}, f32(3, 2, 4), NUMBER, g=(), w=Untold((1,)))  # fmt: skip


def in_columns(p, x, s):
    matrix = jnp.zeros((8, 6))
    for k in range(6):
        matrix = matrix.at[:, k].set(s[k] * p["w"][:, k])
    return jnp.tanh(x @ matrix)


case("columns times numbers, written one by one", in_columns,
     {"w": W}, X, f32(6), w=Untold((0,)))  # fmt: skip

# ---- Noise on a weight, of which slices are multiplied with inputs one after another.

NOISE = f32(8, 6)
for name, noisy in {
    "unrolled": lambda p, x, n: sum(x[:, k, None] * (p["w"] + n)[k] for k in range(8)),
    "in an associative scan": lambda p, x, n: lax.associative_scan(
        jnp.add, x[:, :, None] * (p["w"] + n), axis=1
    )[:, -1],
    "in a scan": lambda p, x, n: lax.scan(
        lambda c, a: (c + a[0][:, None] * (a[1] + a[2]), None), jnp.zeros((3, 6)), (x.T, p["w"], n)
    )[0],
}.items():
    case(f"noise on a weight, {name}", noisy, {"w": W}, X, NOISE, w=Untold((0,)))

# ---- Rows of several tables, times inputs, added up by a loop.

case("rows of tables, times inputs, added up by a scan",
     lambda p, i, v: lax.scan(
         lambda c, a: (c + a[2][:, None] * a[0][a[1]], None), jnp.zeros((5, 6)), (p["t"], i, v)
     )[0],
     {"t": f32(4, 9, 6)}, i32(4, 5), f32(4, 5), t=Untold(()))  # fmt: skip
case("rows of tables, added up by a scan",
     lambda p, i: lax.scan(
         lambda c, a: (c + a[0][a[1]], None), jnp.zeros((5, 6)), (p["t"], i)
     )[0],
     {"t": f32(4, 9, 6)}, i32(4, 5), t=())  # fmt: skip

# ---- Masks that a weight chose.


def chosen_by_itself(p, x):
    """A branch for each example, that the outputs of its own weight choose."""

    def one(x):
        use = (x @ p["w"]).mean() > 0
        return lax.cond(use, lambda x: jax.nn.relu(x @ p["w"]), lambda x: jnp.zeros(6), x)

    return jax.vmap(one)(x)


case("a branch that its own weight chooses", chosen_by_itself, {"w": W}, X, w=(0,))


def masked_by_itself(p, x):
    mask = (x @ p["w"]).mean(-1) > 0
    weights = p["w"] * mask[:, None, None]
    return jnp.einsum("bi,bio->bo", jnp.where(mask[:, None], x, 0.0), weights)


case("inputs and weights, masked by outputs", masked_by_itself, {"w": W}, X, w=(0,))

# ---- Edges that are a part of an axis.

case("an update, of which a factor is flat",
     lambda p, x: x @ (p["w"] + p["a"] @ p["b"].reshape(3, 6)),
     {"w": W, "a": f32(8, 3), "b": f32(18)}, X, w=(0,), a=Untold((0,)), b=REFUSED)  # fmt: skip
case("a flat factor between two others",
     lambda p, x: jnp.einsum("bi,ir,rs,so->bo", x, p["a"], p["m"].reshape(3, 2), p["b"]),
     {"a": f32(8, 3), "m": f32(6), "b": f32(2, 5)}, X,
     a=Untold((0,)), m=REFUSED, b=Untold((0,)))  # fmt: skip

# ---- Shards.

TOKENS, LAST = f32(4, 8), f32(6, 5)
case(
    "columns on each device, then a layer",
    lambda p, x: jnp.tanh(on_mesh(jnp.matmul, (P(), P(None, "d")), P(None, "d"))(x, p["w"]))
    @ p["v"],
    {"w": W, "v": LAST}, TOKENS, w=(0,), v=(0,),
)  # fmt: skip
case(
    "columns on each device, then rows, with nothing between",
    lambda p, x: on_mesh(
        lambda w, v, x: lax.psum(x @ w @ v, "d"), (P(None, "d"), P("d"), P()), P()
    )(p["w"], p["v"], x),
    {"w": W, "v": LAST}, TOKENS, w=(0,), v=(0,),
)  # fmt: skip
case(
    "columns, then rows, in two parts with nothing between",
    lambda p, x: x @ p["w"][:, :2] @ p["v"][:2] + x @ p["w"][:, 2:] @ p["v"][2:],
    {"w": W, "v": LAST}, TOKENS, w=(0,), v=(0,),
)  # fmt: skip
case(
    "a matrix on each device, of which the products are added up",
    lambda p, x: on_mesh(lambda w, x: lax.psum(x @ w[0], "d"), (P("d"), P()), P())(p["w"], x),
    {"w": f32(2, 8, 6)}, TOKENS, w=REFUSED,
)  # fmt: skip
case(
    "columns in the place of rows",
    lambda p, x: x
    @ on_mesh(lambda w: lax.all_gather(w, "d", axis=1, tiled=True), (P("d"),), P())(p["w"]),
    {"w": f32(16, 3)}, TOKENS, w=REFUSED,
)  # fmt: skip
case(
    "parts of the fan-in that devices put side by side, added up later",
    lambda p, x: on_mesh(jnp.matmul, (P(None, "d"), P("d")), P("d"))(x, p["w"])
    .reshape(2, 4, 6).sum(0),
    {"w": W}, TOKENS, w=Untold((0,)),
)  # fmt: skip

# ---- Convolutions.

case(
    "a convolution in groups of the batch",
    lambda p, x: lax.conv_general_dilated(
        x, p["w"], (1, 1), "SAME", batch_group_count=2,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    ),
    {"w": f32(3, 5, 3, 6)}, f32(2, 9, 10, 3), w=(0, 1, 2),
)  # fmt: skip

# ---- What has no rule.

SQUARE = f32(8, 8)
case("a weight times something unknown of another", lambda p, x: x @ (p["c"] * unknown(p["a"])),
     {"a": SQUARE, "c": SQUARE}, X, a=REFUSED, c=REFUSED)  # fmt: skip
case("a weight, inputs and something unknown of another in an einsum",
     lambda p, x: jnp.einsum("bi,jo,ij->bo", x, unknown(p["a"]), p["w"]),
     {"a": SQUARE, "w": SQUARE}, X, a=REFUSED, w=Untold((0,)))  # fmt: skip
case("something unknown of a latent, then a layer with a bias",
     lambda p, x: jnp.tanh(unknown(p["a"]) @ p["b"] + p["c"]) @ x,
     {"a": SQUARE, "b": W, "c": f32(6)}, f32(6, 3), a=REFUSED, b=REFUSED, c=REFUSED)  # fmt: skip
case("inputs times something unknown of them", lambda p, x: (x[:3] * unknown(x)[:3]) @ p["w"],
     {"w": W}, SQUARE, w=REFUSED)  # fmt: skip
case("something unknown of inputs, scaled", lambda p, x: (unknown(x) * p["s"] * x) @ p["w"],
     {"s": f32(8), "w": W}, SQUARE, s=Untold(()), w=Untold((0,)))  # fmt: skip
case("a bias times something unknown of inputs", lambda p, x: ((x + p["v"]) * unknown(x)).sum(1),
     {"v": SQUARE}, SQUARE, v=Untold(()))  # fmt: skip
case("what is added to inputs, times other inputs, summed",
     lambda p, x, y: ((x[:, None] + p["c"]) * y[:, :, None]).sum(1),
     {"c": f32(5, 8)}, X, f32(3, 5), c=REFUSED)  # fmt: skip

# ---- Gradients that the function itself takes.

MLP = {"w": W, "v": f32(6, 3)}


def mlp(p, x):
    return jnp.tanh(x @ p["w"]) @ p["v"]


case("the gradient of one output that inputs choose",
     lambda p, x, i: jax.vmap(lambda x, i: jax.grad(lambda z: mlp(p, z)[i])(x))(x, i),
     MLP, X, IDS, w=(0,), v=Untold((0,)))  # fmt: skip
case("a pullback of inputs", lambda p, x, y: jax.vjp(lambda z: mlp(p, z), x)[1](y)[0],
     MLP, X, f32(3, 3), w=(0,), v=Untold((0,)))  # fmt: skip
case("outputs and the gradient of one that inputs choose",
     lambda p, x, i: (
         mlp(p, x), jax.vmap(lambda x, i: jax.grad(lambda z: mlp(p, z)[i])(x))(x, i)),
     MLP, X, IDS, w=(0,), v=(0,))  # fmt: skip


def slope(p, x):
    """The derivative along a constant direction."""
    return jax.jvp(lambda z: mlp(p, z), (x,), (jnp.ones_like(x),))[1]


def laplacian(p, x):
    second = jax.hessian(lambda z: mlp(p, z).sum())
    return jax.vmap(lambda x: jnp.trace(second(x)))(x)


case("a derivative along a constant direction", slope,
     MLP, X, w=Untold((0,)), v=(0,))  # fmt: skip
case("outputs and their derivative along a constant direction",
     lambda p, x: (mlp(p, x), slope(p, x)), MLP, X, w=(0,), v=(0,))  # fmt: skip
case("outputs and the second derivative along a direction",
     lambda p, x: (mlp(p, x), jax.jvp(lambda x: slope(p, x), (x,), (jnp.ones_like(x),))[1]),
     MLP, X, w=(0,), v=(0,))  # fmt: skip
case("outputs and the trace of their second derivatives",
     lambda p, x: (mlp(p, x), laplacian(p, x)), MLP, X, w=(0,), v=(0,))  # fmt: skip
case("outputs of the transpose, and a derivative",
     lambda p, x, y: (slope(p, x), y @ p["v"].T @ p["w"].T), MLP, X, f32(4, 3),
     w=REFUSED, v=REFUSED)  # fmt: skip
case("inputs of the transpose, and a derivative of a layer of something unknown",
     lambda p, x, y: (
         jax.jvp(lambda z: jnp.tanh(z @ jnp.sort(p["v"], 0)), (x,), (jnp.ones_like(x),))[1],
         y @ p["v"].T,
     ), {"v": f32(6, 3)}, f32(3, 6), f32(4, 3), v=REFUSED)  # fmt: skip

# ---- Rows of two tables.

USERS = {"u": f32(9, 5), "v": f32(11, 5)}
case("rows of two tables, multiplied", lambda p, i, j: jnp.tanh(p["u"][i] * p["v"][j]),
     USERS, IDS, IDS, u=(), v=())  # fmt: skip
case("a layer of rows of two tables", lambda p, i, j: (p["u"][i] * p["v"][j]) @ p["w"],
     USERS | {"w": f32(5, 4)}, IDS, IDS, u=(), v=(), w=(0,))  # fmt: skip
case("one output of rows of two tables, beside inputs",
     lambda p, i, j, x: jnp.concatenate([p["u"][i] * p["v"][j], x], -1) @ p["w"],
     USERS | {"w": f32(13, 1)}, IDS, IDS, X, u=(), v=(), w=(0,))  # fmt: skip
case("rows of three tables, summed",
     lambda p, i, j, k: (p["u"][i] * p["r"][k] * p["v"][j]).sum(-1),
     USERS | {"r": f32(7, 5)}, IDS, IDS, IDS, u=(), v=(), r=())  # fmt: skip
case("bags of rows that rows of another table weigh",
     lambda p, i, j: jnp.einsum("bk,bkd->bd", p["s"][j], p["u"][i]) @ p["w"],
     {"s": f32(9), "u": f32(11, 8), "w": W}, i32(3, 4), i32(3, 4), s=(), u=(), w=(0,))  # fmt: skip
case("matrices that rows of another table meet",
     lambda p, i, j: jnp.einsum("bd,bdk->bk", p["u"][i], p["m"][j]),
     {"u": f32(9, 5), "m": f32(7, 5, 4)}, IDS, IDS, u=(), m=REFUSED)  # fmt: skip
case("inputs with a gain, one output of them and others",
     lambda p, x, y: jnp.concatenate([x * p["g"], y], -1) @ p["w"],
     {"g": f32(8), "w": f32(12, 1)}, X, f32(3, 4), g=(), w=(0,))  # fmt: skip

# ---- Rows that data chose of an activation.


def edges(bend):
    def fn(p, x, src, dst):
        h = jnp.einsum("ni,iho->nho", x, p["w"])
        logits = jnp.einsum("eho,ho->eh", bend(h[src] + h[dst]), p["a"])
        return logits

    return fn


for name, bend in {"leaky": jax.nn.leaky_relu, "tanh": jnp.tanh}.items():
    case(f"graph attention on edges: {name}", edges(bend), {"w": f32(8, 2, 5), "a": f32(2, 5)},
         X, i32(9), i32(9), w=(0,), a=(1,))  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_a_condition_decides_what_a_parameter_is(name):
    fn, params, args, expected = CASES[name]
    assert answers(fn, params, *args) == outcomes(expected)
