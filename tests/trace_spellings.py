"""Programs in many spellings: (name, build, the one expectation of each parameter).

The answers are thought through by the definition: a weight's fan-in is the axes of it that index
the layer's input and are summed against it; biases, scales, embeddings and positions have none.
What is the same expression for two readings is REFUSED. Untold is what people know and the trace
does not tell from others: a bias of a mixture from a weight with gated updates, a readout of states
from what made them, blocks of a fan-in that are summed one by one.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from trace_support import REFUSED, Untold, f32, i32

CASES = []
P = jax.sharding.PartitionSpec

# Before JAX 0.8, pmap is an operation without a rule, and jnp.diag repeats a vector along the rows
# of its matrix, not along the columns.
since_0_8 = tuple if jax.__version_info__ >= (0, 8) else Untold


def case(name, fn, params, *args, **expected):
    """Adds a program with the expectation of each parameter."""
    assert all(name != other for other, *_ in CASES), name
    CASES.append((name, lambda: (fn, params, *args), expected))


# Spellings of one contraction.
def product_and_sum(spec, a, b):
    """An einsum of two operands as a broadcast product and one sum."""
    (first, second), out = spec.split("->")[0].split(","), spec.split("->")[1]
    letters = out + "".join(sorted(set(first + second) - set(out)))

    def placed(x, of):
        x = x.transpose([of.index(c) for c in letters if c in of])
        return x.reshape(
            [x.shape[[d for d in letters if d in of].index(c)] if c in of else 1 for c in letters]
        )

    return (placed(a, first) * placed(b, second)).sum(range(len(out), len(letters)))


def swapped(spec, a, b):
    (first, second), out = spec.split("->")[0].split(","), spec.split("->")[1]
    return jnp.einsum(f"{second},{first}->{out}", b, a)


def vmapped(spec, a, b):
    """Over the first letter of the output, where an operand begins with it."""
    (first, second), out = spec.split("->")[0].split(","), spec.split("->")[1]
    axes = [0 if of[0] == out[:1] else None for of in (first, second)]
    if any(out[:1] in of[1:] for of in (first, second)) or axes == [None, None] or not out:
        return jnp.einsum(spec, a, b)
    inner = ",".join(of[axis == 0 :] for of, axis in zip((first, second), axes, strict=True))
    return jax.vmap(lambda a, b: jnp.einsum(f"{inner}->{out[1:]}", a, b), axes)(a, b)


DOTS = {
    "dot_general": jnp.einsum,
    "product and sum": product_and_sum,
    "swapped": swapped,
    "jitted helper": jax.jit(lambda spec, a, b: jnp.einsum(spec, a, b), static_argnums=0),
    "jitted product and sum": jax.jit(product_and_sum, static_argnums=0),
    "inlined": jax.jit(lambda spec, a, b: jnp.einsum(spec, a, b), static_argnums=0, inline=True),
    "vmapped": vmapped,
    "remat": lambda spec, a, b: jax.checkpoint(lambda a, b: jnp.einsum(spec, a, b))(a, b),
    "composite": lambda spec, a, b: lax.composite(
        lambda a, b: jnp.einsum(spec, a, b), name="test.dot"
    )(a, b),
}


def dots(name, fn, params, *args, spellings=tuple(DOTS), sums=None, **expected):
    """Adds fn(dot, params, *args) in every spelling of its contractions.

    `sums` is what else is expected where they are products and sums.
    """
    for spelling in spellings:
        case(
            f"{name}: {spelling}",
            lambda p, *args, dot=DOTS[spelling]: fn(dot, p, *args),
            params,
            *args,
            **expected | (sums or {} if "product and sum" in spelling else {}),
        )


# Spellings of one row of a table.
@jax.jit
def _row(w, k):
    return w[k]


ROWS = {
    "w[k]": lambda w, k: w[k],
    "take": lambda w, k: jnp.take(w, k, axis=0),
    "dynamic_index_in_dim": lambda w, k: lax.dynamic_index_in_dim(w, k, keepdims=False),
    "index_in_dim": lambda w, k: lax.index_in_dim(w, k, keepdims=False),
    "split": lambda w, k: jnp.split(w, len(w))[k][0],
    "jitted helper": _row,
    "jitted static helper": jax.jit(lambda w, k: w[k], static_argnums=1),
    "vmapped over channels": lambda w, k: jax.vmap(lambda w: w[k], 1)(w),
}


def rows(name, fn, params, *args, **expected):
    """Adds fn(row, params, *args) in every spelling of a row."""
    for spelling, row in ROWS.items():
        case(
            f"{name}: {spelling}",
            lambda p, *args, row=row: fn(row, p, *args),
            params,
            *args,
            **expected,
        )


# Loops.
def rolled(step, carry, xs):
    return lax.scan(step, carry, xs)


def unrolled(step, carry, xs):
    return lax.scan(step, carry, xs, unroll=True)


def python_loop(step, carry, xs):
    ys = []
    for t in range(jax.tree.leaves(xs)[0].shape[0]):
        carry, y = step(carry, jax.tree.map(lambda x, t=t: x[t], xs))
        ys.append(y)
    return carry, jax.tree.map(lambda *ys: jnp.stack(ys), *ys)


def jitted_loop(step, carry, xs):
    return python_loop(jax.jit(step), carry, xs)


def jitted_scan(step, carry, xs):
    return jax.jit(lambda carry, xs: lax.scan(step, carry, xs))(carry, xs)


def remat_scan(step, carry, xs):
    return lax.scan(jax.checkpoint(step), carry, xs)


LOOPS = {
    "rolled": rolled,
    "unrolled": unrolled,
    "in Python": python_loop,
    "in Python, jitted": jitted_loop,
    "rolled under jit": jitted_scan,
    "rolled, remat": remat_scan,
}

# fmt: off
X, W = f32(3, 8), f32(8, 6)

# A product and a sum is the contraction that it is.
dots("dense", lambda dot, p, x: dot("bi,io->bo", x, p["w"]) + p["b"],
     {"w": W, "b": f32(6)}, X, w=(0,), b=())
dots("dense of an output first", lambda dot, p, x: dot("bi,oi->bo", x, p["w"]), {"w": W}, f32(3, 6),
     w=(1,))
dots("dense of a vector", lambda dot, p, x: dot("i,io->o", x, p["w"]), {"w": W}, f32(8), w=(0,))
dots("two layers", lambda dot, p, x: dot("bf,fo->bo", jnp.tanh(dot("bi,if->bf", x, p["u"])), p[
    "w"]),
     {"u": f32(5, 8), "w": W}, f32(3, 5), u=(0,), w=(0,))
dots("two layers with nothing between",
     lambda dot, p, x: dot("bf,fo->bo", dot("bi,if->bf", x, p["u"]), p["w"]),
     {"u": f32(5, 8), "w": W}, f32(3, 5), u=(0,), w=(0,))
dots("heads", lambda dot, p, x: dot("bthk,hkd->btd", jnp.tanh(dot("btd,dhk->bthk", x, p["q"])),
    p["o"]),
     {"q": f32(8, 2, 4), "o": f32(2, 4, 6)}, f32(3, 7, 8), q=(0,), o=(0, 1))
dots("independent copies", lambda dot, p, x: dot("gbi,gio->gbo", x, p["w"]),
     {"w": f32(5, 8, 6)}, f32(5, 3, 8), w=(1,))


def self_attention(dot, p, x):
    q, k, v = (dot("btd,dhk->bthk", x, p[n]) + p["b" + n] for n in "qkv")
    a = jax.nn.softmax(dot("bthk,bshk->bhts", q, k))
    return dot("bthk,hkd->btd", dot("bhts,bshk->bthk", a, v), p["o"])


dots("self-attention", self_attention,
     {n: f32(8, 2, 4) for n in "qkv"} | {"b" + n: f32(2, 4) for n in "qkv"} | {"o": f32(2, 4, 6)},
     f32(3, 7, 8), q=(0,), k=(0,), v=(0,), bq=(), bk=(), bv=(), o=(0, 1))

# Recurrences from a state of zeros.
RNN = {"wx": f32(5, 6), "wh": f32(6, 6), "b": f32(6)}


def rnn(dot, loop):
    def fn(p, x):
        def step(h, x):
            h = jnp.tanh(dot("bi,io->bo", x, p["wx"]) + dot("bi,io->bo", h, p["wh"]) + p["b"])
            return h, h

        return loop(step, jnp.zeros((x.shape[0], 6)), x.swapaxes(0, 1))[1]

    return fn


def lstm(dot, loop):
    def fn(p, x):
        def step(carry, x):
            c, h = carry
            gates = dot("bi,io->bo", x, p["wx"]) + dot("bi,io->bo", h, p["wh"]) + p["b"]
            i, f, g, o = jnp.split(gates, 4, -1)
            c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
            h = jax.nn.sigmoid(o) * jnp.tanh(c)
            return (c, h), h

        zeros = jnp.zeros((x.shape[0], 6))
        return loop(step, (zeros, zeros), x.swapaxes(0, 1))[1]

    return fn


def gru(dot, loop):
    def fn(p, x):
        def step(h, x):
            xs = jnp.split(dot("bi,io->bo", x, p["wx"]) + p["b"], 3, -1)
            hs = jnp.split(dot("bi,io->bo", h, p["wh"]), 3, -1)
            r, z = jax.nn.sigmoid(xs[0] + hs[0]), jax.nn.sigmoid(xs[1] + hs[1])
            h = (1 - z) * jnp.tanh(xs[2] + r * (hs[2] + p["bn"])) + z * h
            return h, h

        return loop(step, jnp.zeros((x.shape[0], 6)), x.swapaxes(0, 1))[1]

    return fn


LSTM = {"wx": f32(5, 24), "wh": f32(6, 24), "b": f32(24)}
GRU = {"wx": f32(5, 18), "wh": f32(6, 18), "b": f32(18), "bn": f32(6)}
for spelling, dot in DOTS.items():
    for how, loop in LOOPS.items():
        if spelling in ("dot_general", "product and sum") or how in ("rolled", "in Python"):
            of = f": {spelling}, {how}"
            case("an RNN" + of, rnn(dot, loop), RNN, f32(3, 4, 5), wx=(0,), wh=(0,), b=())
            case("an LSTM" + of, lstm(dot, loop), LSTM, f32(3, 4, 5), wx=(0,), wh=(0,), b=())
            case("a GRU" + of, gru(dot, loop), GRU, f32(3, 4, 5), wx=(0,), wh=(0,), b=(), bn=())
case("a recurrence from zeros by a product and a sum",
     lambda p, x: lax.scan(lambda h, x: (jnp.tanh(x + (h[:, :, None] * p["w"]).sum(1)), None),
                           jnp.zeros((3, 6)), x)[0],
     {"w": f32(6, 6)}, f32(4, 3, 6), w=(0,))
case("a recurrence from zeros by a product and a sum, output first",
     lambda p, x: lax.scan(lambda h, x: (jnp.tanh(x + (h[:, None] * p["w"]).sum(-1)), None),
                           jnp.zeros((3, 6)), x)[0],
     {"w": f32(6, 6)}, f32(4, 3, 6), w=(1,))
case("a recurrence for one sequence",
     lambda p, x: lax.scan(lambda h, x: (jnp.tanh(x + (h[:, None] * p["w"]).sum(0)), None),
                           jnp.zeros(6), x)[0],
     {"w": f32(6, 6)}, f32(4, 6), w=(0,))

# Low-rank weights and linear networks of parameters, oriented by the data.
LOW = {"a": f32(8, 2), "b": f32(2, 6)}
case("low-rank by a product and a sum", lambda p, x: x @ (p["a"][:, :, None] * p["b"]).sum(1), LOW,
     X, a=(0,), b=(0,))
dots("a low-rank weight", lambda dot, p, x: dot("bi,io->bo", x, dot("ir,ro->io", p["a"], p["b"])),
     LOW, X, a=(0,), b=(0,))
dots("merged LoRA",
     lambda dot, p, x: dot("bi,io->bo", x, p["w"] + 0.5 * dot("ir,ro->io", p["a"], p["b"])),
     {"w": W, **LOW}, X, w=(0,), a=(0,), b=(0,))
dots("merged LoRA of an output first",
     lambda dot, p, x: dot("bi,oi->bo", x, p["w"] + 0.5 * dot("or,ri->oi", p["b"], p["a"])),
     {"w": f32(6, 8), "b": f32(6, 2), "a": f32(2, 8)}, X, w=(1,), a=(1,), b=(1,))
dots("a deep linear weight",
     lambda dot, p, x: dot("bi,io->bo", x,
                           dot("ir,ro->io", p["a"], dot("rs,so->ro", p["b"], p["c"]))),
     {"a": f32(8, 4), "b": f32(4, 3), "c": f32(3, 6)}, X, a=(0,), b=(0,), c=(0,))
dots("a deep linear weight, multiplied from the left",
     lambda dot, p, x: dot("bi,io->bo", x,
                           dot("is,so->io", dot("ir,rs->is", p["a"], p["b"]), p["c"])),
     {"a": f32(8, 4), "b": f32(4, 3), "c": f32(3, 6)}, X, a=(0,), b=(0,), c=(0,))
Q = np.random.default_rng(0).normal(size=(6, 7)).astype(np.float32)
C = np.random.default_rng(0).normal(size=(8, 5)).astype(np.float32)
dots("a weight times a constant",
     lambda dot, p, x: dot("bi,io->bo", x, dot("ir,ro->io", p["w"], jnp.asarray(Q))), {"w": W}, X,
     w=(0,))
dots("a constant basis times a weight",
     lambda dot, p, x: dot("bi,io->bo", x, dot("ir,ro->io", jnp.asarray(C), p["w"])),
     {"w": f32(5, 6)}, X, w=(0,))
case("LoRA of a convolution",
     lambda p, x: conv2d(x, p["w"] + jnp.einsum("hwir,ro->hwio", p["a"], p["b"])),
     {"w": f32(3, 3, 4, 6), "a": f32(3, 3, 4, 2), "b": f32(2, 6)}, f32(2, 9, 8, 4),
     w=(0, 1, 2), a=(0, 1, 2), b=(0,))
case("LoRA for every head",
     lambda p, x: jnp.einsum("btd,dhk->bthk", x, p["w"] + jnp.einsum("dr,rhk->dhk", p["a"], p[
         "b"])),
     {"w": f32(8, 2, 4), "a": f32(8, 3), "b": f32(3, 2, 4)}, f32(3, 7, 8),
     w=(0,), a=(0,), b=(0,))
case("DoRA",
     lambda p, x: (lambda v: x @ (v / jnp.linalg.norm(v, axis=0) * p["m"]))(
         p["w"] + p["a"] @ p["b"]),
     {"w": W, **LOW, "m": f32(6)}, X, w=(0,), a=(0,), b=(0,), m=())
case("a product of a weight and its transpose", lambda p, x: x @ (p["a"] @ p["a"].T),
    LOW | {"a": f32(8, 2)},
     X, a=REFUSED, b=())
case("a bilinear form of two weights between data",
     lambda p, x, y: jnp.einsum("bi,ij,cj->bc", x, p["q"] @ p["k"].T, y),
     {"q": f32(8, 4), "k": f32(5, 4)}, X, f32(7, 5), q=REFUSED, k=REFUSED)


def conv2d(x, w, **kwargs):
    numbers = ("NHWC", "HWIO", "NHWC")
    return lax.conv_general_dilated(x, w, (1, 1), "SAME", dimension_numbers=numbers, **kwargs)


# S4D: y = Σ_n C_n Ā^k B_n as a kernel that is convolved with the input, and as a recurrence.
def s4d_recurrent(dot):
    def fn(p, u):
        a, b = jnp.exp(-jnp.exp(p["log_a"])), p["b"]

        def step(h, u):  # h (batch, channels, states)
            h = a * h + b * u[..., None]
            return h, dot("bdn,dn->bd", h, p["c"])

        return lax.scan(step, jnp.zeros((u.shape[1], 8, 4)), u)[1]

    return fn


for spelling, dot in DOTS.items():
    case(f"S4D as a recurrence: {spelling}", s4d_recurrent(dot),
         {"log_a": f32(8, 4), "b": f32(8, 4), "c": f32(8, 4)}, f32(5, 3, 8),
         log_a=Untold(()), b=Untold(()), c=Untold((1,)))
case("S4D's readout by a product and a sum",
     lambda p, h: (h * p["c"]).sum(-1) + p["d"] * h[..., 0],
     {"c": f32(8, 4), "d": f32(8)}, f32(3, 8, 4), c=(1,), d=())


# Short convolutions as shifted products.
def shifted(x, k):
    return jnp.pad(x, ((0, 0), (k, 0), (0, 0)))[:, : x.shape[1]]


jitted_shifted = jax.jit(shifted, static_argnums=1)


@jax.jit
def tap_of(x, taps, k):
    return x * lax.dynamic_index_in_dim(taps, k, keepdims=False)


TAPS, SEQUENCE = {"taps": f32(4, 8), "out": W}, f32(2, 7, 8)
for how, shift in (("", shifted), (", shifts jitted", jitted_shifted)):
    rows("a short convolution" + how,
         lambda row, p, x, shift=shift: (
             sum(shift(x, k) * row(p["taps"], k) for k in range(4)) @ p["out"]),
         TAPS, SEQUENCE, taps=(0,), out=(0,))
    rows("a short convolution with a bias, then a nonlinearity" + how,
         lambda row, p, x, shift=shift: jax.nn.silu(
             sum(shift(x, k) * row(p["taps"], k) for k in range(4)) + p["bias"]) @ p["out"],
         TAPS | {"bias": f32(8)}, SEQUENCE, taps=(0,), out=(0,), bias=())
    rows("a short convolution, stacked" + how,
         lambda row, p, x, shift=shift: (
             jnp.stack([shift(x, k) * row(p["taps"], k) for k in range(4)]).sum(0) @ p["out"]),
         TAPS, SEQUENCE, taps=(0,), out=(0,))
    rows("a short convolution with a residual" + how,
         lambda row, p, x, shift=shift: (
             (x + sum(shift(x, k) * row(p["taps"], k) for k in range(4))) @ p["out"]),
         TAPS, SEQUENCE, taps=(0,), out=(0,))
rows("a dense layer unrolled over its inputs",
     lambda row, p, x: sum(x[:, i : i + 1] * row(p["w"], i) for i in range(8)), {"w": W}, X,
     w=(0,))
rows("a dense layer unrolled over rows of both",
     lambda row, p, x: sum(row(x.T, i)[:, None] * row(p["w"], i) for i in range(8)), {"w": W}, X,
     w=(0,))
rows("scales of one input for each of several branches",
     lambda row, p, x: [jnp.tanh(x * row(p["mu"], i)) for i in range(3)], {"mu": f32(3, 8)},
     SEQUENCE, mu=())
rows("token shift",
     lambda row, p, x: [jnp.tanh((x + (shifted(x, 1) - x) * row(p["mu"], i)) @ row(p["w"], i))
                        for i in range(3)],
     {"mu": f32(3, 8), "w": f32(3, 8, 6)}, SEQUENCE, mu=(), w=(1,))
case("token shift by a weighted mean",
     lambda p, x: jnp.tanh((x * p["mu"] + shifted(x, 1) * (1 - p["mu"])) @ p["w"]),
     {"mu": f32(8), "w": W}, SEQUENCE, mu=(), w=(0,))
rows("layers of a stack",
     lambda row, p, x: jnp.tanh(jnp.tanh(x @ row(p["w"], 0)) @ row(p["w"], 1)), {"w": f32(2, 8, 8)},
     X, w=(1,))
rows("layers of a stack with residuals",
     lambda row, p, x: (lambda h: h + jnp.tanh(h @ row(p["w"], 1)))(
         x + jnp.tanh(x @ row(p["w"], 0))),
     {"w": f32(2, 8, 8)}, X, w=(1,))
rows("blocks of a fan-in",
     lambda row, p, x: sum(row(x.reshape(3, 2, 4).swapaxes(0, 1), i)
                           @ row(p["w"].reshape(2, 4, 6), i) for i in range(2)),
     {"w": W}, X, w=Untold((0,)))
rows("blocks of a fan-in, each bent",
     lambda row, p, x: sum(jnp.tanh(row(x.reshape(3, 2, 4).swapaxes(0, 1), i)
                                    @ row(p["w"].reshape(2, 4, 6), i)) for i in range(2)),
     {"w": W}, X, w=REFUSED)
rows("experts added up",
     lambda row, p, x: sum(x @ row(p["w"], i) + row(p["b"], i) for i in range(3)),
     {"w": f32(3, 8, 6), "b": f32(3, 6)}, X, w=Untold((1,)), b=())
rows("heads whose outputs are added, each its own part of the input",
     lambda row, p, x: sum(row(x.reshape(3, 2, 4).swapaxes(0, 1), i) @ row(p["w"], i)
                           for i in range(2)),
     {"w": f32(2, 4, 6)}, X, w=Untold((0, 1)))
case("a short convolution by a helper of product and tap",
     lambda p, x: sum(tap_of(shifted(x, k), p["taps"], k) for k in range(4)) @ p["out"],
     TAPS, SEQUENCE, taps=(0,), out=(0,))
case("a short convolution over rows that are iterated",
     lambda p, x: sum(shifted(x, k) * tap for k, tap in enumerate(p["taps"])) @ p["out"],
     TAPS, SEQUENCE, taps=(0,), out=(0,))
case("a short convolution over stacked shifts",
     lambda p, x: jnp.einsum("kbtc,kc->btc", jnp.stack([shifted(x, k) for k in range(4)]),
         p["taps"])
     @ p["out"], TAPS, SEQUENCE, taps=(0,), out=(0,))
case("a short convolution over stacked shifts by a product and a sum",
     lambda p, x: (jnp.stack([shifted(x, k) for k in range(4)]) * p["taps"][:, None, None]).sum(0)
     @ p["out"], TAPS, SEQUENCE, taps=(0,), out=(0,))


def scanned_taps(x, taps):
    def step(carry, tap):
        y, x = carry
        return (y + x * tap, shifted(x, 1)), None

    return lax.scan(step, (jnp.zeros_like(x), x), taps)[0][0]


def looped_taps(x, taps):
    return lax.fori_loop(
        0, len(taps),
        lambda k, y: y + jnp.roll(x, k, 1) * lax.dynamic_index_in_dim(taps, k, keepdims=False),
        jnp.zeros_like(x),
    )


TWO = {"a": f32(4, 8), "b": f32(5, 8), "out": W}
for loop_name, conv in (("a scan", scanned_taps), ("a fori_loop", looped_taps)):
    answer = Untold if loop_name == "a fori_loop" else tuple
    for how, helper in (("", conv), (", jitted", jax.jit(conv))):
        name = f"taps in {loop_name} of a helper{how}"
        case(name, lambda p, x, h=helper: h(x, p["taps"]) @ p["out"], TAPS, SEQUENCE,
             taps=answer((0,)), out=(0,))
        case(name + ", twice",
             lambda p, x, h=helper: jnp.tanh(h(jnp.tanh(h(x, p["a"])), p["b"])) @ p["out"],
             TWO, SEQUENCE, a=answer((0,)), b=answer((0,)), out=(0,))
        case(name + ", twice with one shape",
             lambda p, x, h=helper: jnp.tanh(h(jnp.tanh(h(x, p["a"])), p["b"])) @ p["out"],
             TWO | {"b": f32(4, 8)}, SEQUENCE, a=answer((0,)), b=answer((0,)), out=(0,))
        case(name + ", twice under jit",
             jax.jit(lambda p, x, h=helper: jnp.tanh(h(jnp.tanh(h(x, p["a"])), p["b"])) @ p["out"]),
             TWO | {"b": f32(4, 8)}, SEQUENCE, a=answer((0,)), b=answer((0,)), out=(0,))
        case(name + ", twice with the same taps",
             lambda p, x, h=helper: jnp.tanh(h(jnp.tanh(h(x, p["taps"])), p["taps"])) @ p["out"],
             TAPS, SEQUENCE, taps=Untold((0,)), out=(0,))

# A matmul blocked over its fan-in.
for how, loop in LOOPS.items():
    case(f"blocks of a fan-in in a loop: {how}",
         lambda p, x, loop=loop: loop(
             lambda c, wx: (c + wx[1] @ wx[0], 0.0), jnp.zeros((3, 6)),
             (p["w"].reshape(2, 4, 6), x.reshape(3, 2, 4).swapaxes(0, 1)))[0],
         {"w": W}, X, w=Untold((0,)))
    case(f"blocks of a fan-in in a loop, then a nonlinearity: {how}",
         lambda p, x, loop=loop: jnp.tanh(loop(
             lambda c, wx: (c + wx[1] @ wx[0], 0.0), jnp.zeros((3, 6)),
             (p["w"].reshape(2, 4, 6), x.reshape(3, 2, 4).swapaxes(0, 1)))[0] + p["b"]),
         {"w": W, "b": f32(6)}, X, w=Untold((0,)), b=())
    case(f"layers in a loop: {how}",
         lambda p, x, loop=loop: loop(lambda h, w: (jnp.tanh(h @ w), 0.0), x, p["w"])[0],
         {"w": f32(3, 8, 8)}, X, w=(1,))
    case(f"residual layers in a loop: {how}",
         lambda p, x, loop=loop: loop(
             lambda h, p: (h + jnp.tanh(h @ p["w"] + p["b"]) * p["s"], 0.0), x, p)[0],
         {"w": f32(3, 8, 8), "b": f32(3, 8), "s": f32(3)}, X, w=(1,), b=(), s=())
    case(f"blocks of outputs in a loop: {how}",
         lambda p, x, loop=loop: loop(
             lambda c, w: (c, jnp.tanh(x @ w)), 0.0, p["w"].reshape(8, 2, 3).swapaxes(0, 1))[1],
         {"w": W}, X, w=(0,))


# One-hots: a lookup only where exactly what they are one along is contracted.
ONE_HOTS = {
    "one_hot": jax.nn.one_hot,
    "comparison": lambda i, n: (i[..., None] == jnp.arange(n)).astype(jnp.float32),
    "comparison with NumPy": lambda i, n: (i[..., None] == np.arange(n)).astype(np.float32),
    "comparison, arange first": lambda i, n: (jnp.arange(n) == i[..., None]).astype(jnp.float32),
    "where": lambda i, n: jnp.where(i[..., None] == jnp.arange(n), 1.0, 0.0),
    "eye": lambda i, n: jnp.eye(n)[i],
    "NumPy's eye": lambda i, n: jnp.asarray(np.eye(n, dtype=np.float32))[i],
    "take of eye": lambda i, n: jnp.take(jnp.eye(n), i, axis=0),
    "jitted one_hot": jax.jit(lambda i, n: jax.nn.one_hot(i, n), static_argnums=1),
    "vmapped one_hot": lambda i, n: jax.vmap(lambda i: jax.nn.one_hot(i, n))(i),
    "one_hot on another axis": lambda i, n: jnp.moveaxis(jax.nn.one_hot(i, n, axis=0), 0, -1),
}
for how, hot in ONE_HOTS.items():
    case(f"a lookup by one-hots: {how}", lambda p, i, hot=hot: jnp.tanh(hot(i, 11) @ p["e"]) @ p[
        "w"],
         {"e": f32(11, 8), "w": W}, i32(3, 7), e=(), w=(0,))
    case(f"a lookup by one-hots and a product and a sum: {how}",
         lambda p, i, hot=hot: jnp.tanh((hot(i, 11)[..., None] * p["e"]).sum(-2)) @ p["w"],
         {"e": f32(11, 8), "w": W}, i32(3, 7), e=(), w=(0,))
    case(f"a lookup by one-hots of a table with its entries last: {how}",
         lambda p, i, hot=hot: jnp.tanh(jnp.einsum("btv,dv->btd", hot(i, 11), p["e"])) @ p["w"],
         {"e": f32(8, 11), "w": W}, i32(3, 7), e=(), w=(0,))
    case(f"a convolution over one-hots: {how}",
         lambda p, i, hot=hot: lax.conv_general_dilated(
             hot(i, 4), p["k"], (1,), "SAME", dimension_numbers=("NWC", "WIO", "NWC")) + p["b"],
         {"k": f32(5, 4, 7), "b": f32(7)}, i32(2, 9), k=(0, 1), b=())
    case(f"one-hots reshaped together: {how}",
         lambda p, i, hot=hot: hot(i, 3).reshape(len(i), 48) @ p["w"] + p["b"],
         {"w": f32(48, 6), "b": f32(6)}, i32(5, 16), w=(0,), b=())
    case(f"one-hots contracted with their positions: {how}",
         lambda p, i, hot=hot: jnp.einsum("btv,tvo->bo", hot(i, 3), p["w"]),
         {"w": f32(16, 3, 6)}, i32(5, 16), w=(0, 1))
    case(f"patches of class maps: {how}",
         lambda p, i, hot=hot: lax.conv_general_dilated(
             hot(i, 5), p["k"], (4, 4), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")),
         {"k": f32(4, 4, 5, 12)}, i32(2, 8, 12), k=(0, 1, 2))
    case(f"patches of class maps, reshaped: {how}",
         lambda p, i, hot=hot: hot(i, 5).reshape(2, 2, 4, 3, 4, 5).swapaxes(2, 3)
         .reshape(2, 6, 80) @ p["w"],
         {"w": f32(80, 12)}, i32(2, 8, 12), w=(0,))
    case(f"a convolution of width one over one-hots: {how}",
         lambda p, i, hot=hot: lax.conv_general_dilated(
             hot(i, 11), p["k"], (1,), "SAME", dimension_numbers=("NWC", "WIO", "NWC")),
         {"k": f32(1, 11, 7)}, i32(2, 9), k=())
    case(f"one-hots beside features: {how}",
         lambda p, i, x, hot=hot: jnp.concatenate([hot(i, 5), x], -1) @ p["w"],
         {"w": f32(13, 6)}, i32(3), X, w=(0,))
    case(f"an expert chosen by one-hots: {how}",
         lambda p, i, x, hot=hot: jnp.einsum("bi,bio->bo", x,
             jnp.einsum("be,eio->bio", hot(i, 4), p["w"])),
         {"w": f32(4, 8, 6)}, i32(3), X, w=(1,))
    case(f"a bias chosen by one-hots: {how}",
         lambda p, i, x, hot=hot: jnp.tanh(x @ p["w"] + hot(i, 4) @ p["b"]),
         {"w": W, "b": f32(4, 6)}, i32(3), X, w=(0,), b=())
    case(f"a pair looked up by one-hots: {how}",
         lambda p, i, j, hot=hot: jnp.einsum(
             "bw,bwd->bd", hot(j, 7), jnp.einsum("bv,vwd->bwd", hot(i, 5), p["e"])),
         {"e": f32(5, 7, 8)}, i32(3), i32(3), e=())
case("positions of constants by one-hots", lambda p, x: x + jax.nn.one_hot(np.arange(7), 9) @ p[
    "e"],
     {"e": f32(9, 8)}, SEQUENCE, e=())
case("a comparison of features is no one-hot",
     lambda p, i, x: (i[:, None] == x).astype(jnp.float32) @ p["w"], {"w": W}, i32(3), i32(3, 8),
     w=(0,))
case("a thermometer is no one-hot",
     lambda p, i: (i[:, None] >= jnp.arange(8)).astype(jnp.float32) @ p["w"], {"w": W}, i32(3),
     w=(0,))
case("many-hots are no one-hot",
     lambda p, i: (i[..., None] == jnp.arange(8)).any(1).astype(jnp.float32) @ p["w"], {"w": W},
     i32(3, 5), w=(0,))
case("thresholds of features are no one-hot",
     lambda p, x: (x[..., None] > jnp.linspace(0, 1, 4)).astype(jnp.float32).reshape(3,
         32) @ p["w"],
     {"w": f32(32, 6)}, X, w=(0,))
case("an autoregressive network of spins",
     lambda p, s: jnp.einsum("bil,iljf->bjf", jax.nn.one_hot(s, 2), p["w"]
                             * np.tri(7, k=-1, dtype=np.float32).T[:, None, :, None]) + p["b"],
     {"w": f32(7, 2, 7, 5), "b": f32(7, 5)}, i32(3, 7), w=(0, 1), b=())
case("a dense network of spins",
     lambda p, s: jnp.tanh(jax.nn.one_hot((s + 1) // 2, 2).reshape(len(s),
         -1) @ p["w"] + p["b"]) @ p["v"],
     {"w": f32(14, 6), "b": f32(6), "v": f32(6, 5)}, i32(3, 7), w=(0,), b=(), v=(0,))

# Positions, resized and looked up.
GRID = f32(2, 6, 7, 12)


def resized(method):
    return lambda p: jax.image.resize(p, (1, 6, 7, 12), method)


for method in ("nearest", "bilinear", "bicubic", "lanczos3"):
    for antialias in (True, False):
        case(f"positions resized: {method}{'' if antialias else ', no antialias'}",
             lambda p, x, m=method, a=antialias: jnp.tanh(
                 x + jax.image.resize(p["pos"], (1, 6, 7, 12), m, antialias=a)) @ p["w"],
             {"pos": f32(1, 5, 5, 12), "w": f32(12, 8)}, GRID, pos=(), w=(0,))
case("positions resized to tokens",
     lambda p, x: (x + jax.image.resize(p["pos"].reshape(1, 5, 5, 12), (1, 6, 7, 12), "bicubic")
                   .reshape(1, 42, 12)) @ p["w"],
     {"pos": f32(1, 25, 12), "w": f32(12, 8)}, f32(2, 42, 12), pos=(), w=(0,))
case("positions resized, with a class token's",
     lambda p, x: jnp.concatenate([jnp.broadcast_to(p["cls"], (2, 1, 12)) + p["pos"][:, :1],
                                   x + jax.image.resize(p["pos"][:, 1:].reshape(1, 5, 5, 12),
                                                        (1, 6, 7, 12), "bicubic").reshape(1, 42,
                                                            12)],
                                  1) @ p["w"],
     {"cls": f32(1, 1, 12), "pos": f32(1, 26, 12), "w": f32(12, 8)}, f32(2, 42, 12),
     cls=(), pos=(), w=(0,))
M = np.random.default_rng(1).normal(size=(7, 4)).astype(np.float32)
dots("positions resampled by a constant matrix",
     lambda dot, p, x: jnp.tanh(x + dot("ts,sd->td", jnp.asarray(M), p["pos"])) @ p["w"],
     {"pos": f32(4, 8), "w": W}, SEQUENCE, pos=(), w=(0,))
dots("positions resampled along both axes of a grid",
     lambda dot, p, x: (x + dot("th,hwd->twd", jnp.asarray(M[:6]),
                                dot("sw,hwd->hsd", jnp.asarray(M), p["pos"]))) @ p["w"],
     {"pos": f32(4, 4, 12), "w": f32(12, 8)}, GRID, pos=(), w=(0,))
case("windows of positions beside a table for all, as in Hiera",
     lambda p, x: (x + jax.image.resize(p["all"], (1, 6, 8, 12), "bicubic")
                   + jnp.tile(p["window"], (1, 3, 2, 1))) @ p["w"],
     {"all": f32(1, 5, 5, 12), "window": f32(1, 2, 4, 12), "w": f32(12, 8)}, f32(2, 6, 8, 12),
     all=(), window=(), w=(0,))
case("positions scaled and translated by constants",
     lambda p, x: (x + jax.image.scale_and_translate(
         p["pos"], (6, 7, 12), (0, 1), jnp.array([1.2, 1.4]), jnp.array([0.1, 0.2]), "linear")) @ p[
             "w"],
     {"pos": f32(5, 5, 12), "w": f32(12, 8)}, GRID, pos=(), w=(0,))
case("positions scaled and translated by inputs",
     lambda p, x, scale: (x + jax.image.scale_and_translate(
         p["pos"], (6, 7, 12), (0, 1), scale, jnp.zeros(2), "linear")) @ p["w"],
     {"pos": f32(5, 5, 12), "w": f32(12, 8)}, GRID, f32(2), pos=Untold(()), w=(0,))
case("positions scaled and translated by inputs for each image",
     lambda p, x, scale: jax.vmap(lambda x, scale: jnp.tanh(x + jax.image.scale_and_translate(
         p["pos"], (6, 7, 12), (0, 1), scale, jnp.zeros(2), "linear")) @ p["w"])(x, scale),
     {"pos": f32(5, 5, 12), "w": f32(12, 8)}, GRID, f32(2, 2), pos=Untold(()), w=(0,))
dots("positions interpolated at coordinates that are inputs",
     lambda dot, p, x, a, b: jnp.tanh(
         x + dot("btw,btwc->btc", b, dot("bth,hwc->btwc", a, p["pos"]))) @ p["w"],
     {"pos": f32(6, 5, 24), "w": f32(24, 8)}, f32(2, 7, 24), f32(2, 7, 6), f32(2, 7, 5),
     pos=Untold(()), w=(0,))
case("positions gathered at corners and mixed by weights that are inputs",
     lambda p, x, i, f: jnp.tanh(x + (1 - f)[..., None] * p["pos"][i]
                                 + f[..., None] * p["pos"][i + 1]) @ p["w"],
     {"pos": f32(9, 8), "w": W}, SEQUENCE, i32(2, 7), f32(2, 7), pos=(), w=(0,))
FLEX = np.random.default_rng(2).normal(size=(16, 9)).astype(np.float32)
case("a patch kernel resized by a constant pseudo-inverse",
     lambda p, x: lax.conv_general_dilated(
         x, jnp.einsum("ab,bio->aio", FLEX, p["k"].reshape(9, 3, 6)).reshape(4, 4, 3, 6), (4, 4),
         "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")),
     {"k": f32(3, 3, 3, 6)}, f32(2, 8, 12, 3), k=Untold((0, 1, 2)))

# Relative positions.
OFFSETS = np.arange(7)[:, None] - np.arange(7) + 6


def pairs(lookup):
    """Queries against a table of relative positions, as SAM, ViTDet and axial attention have it."""
    return lambda p, x: jax.nn.softmax(
        jnp.einsum("bthk,tsk->bhts", jnp.einsum("btd,dhk->bthk", x, p["q"]), lookup(p["rel"]))
    )


for how, lookup in {
    "w[i]": lambda r: r[OFFSETS],
    "take": lambda r: jnp.take(r, OFFSETS, axis=0),
    "flat": lambda r: r[OFFSETS.reshape(-1)].reshape(7, 7, 4),
    "jitted take": jax.jit(lambda r: jnp.take(r, OFFSETS, axis=0)),
    "one-hots": lambda r: jax.nn.one_hot(OFFSETS, 13) @ r,
}.items():
    case(f"relative positions of pairs: {how}", pairs(lookup),
        {"q": f32(8, 2, 4), "rel": f32(13, 4)},
         SEQUENCE, q=(0,), rel=Untold(()) if how == "one-hots" else ())
case("relative positions of pairs, of a table resized",
     pairs(lambda r: jax.image.resize(r, (13, 4), "linear")[OFFSETS]),
     {"q": f32(8, 2, 4), "rel": f32(9, 4)}, SEQUENCE, q=(0,), rel=Untold(()))


def axial(p, x):  # x (batch, height, width, features)
    q = jnp.einsum("byxd,dhk->byxhk", x, p["q"]) + p["bias"]
    rows = jnp.einsum("byxhk,yjk->bhyxj", q, p["rows"][OFFSETS[:5, :5]])
    columns = jnp.einsum("byxhk,xik->bhyxi", q, p["columns"][OFFSETS])
    logits = rows[..., :, None] + columns[..., None, :]
    return jax.nn.softmax(logits.reshape(*logits.shape[:-2], -1))


case("axial relative positions, as SAM decomposes them", axial,
     {"q": f32(8, 2, 4), "bias": f32(2, 4), "rows": f32(13, 4), "columns": f32(13, 4)},
     f32(3, 5, 7, 8), q=(0,), bias=(), rows=(), columns=())
case("axial biases of attention",
     lambda p, x, v: jnp.einsum(
         "bhts,bshk->bthk",
         jax.nn.softmax(x + (p["rows"][OFFSETS[:5, :5]][:, None, :, None]
                             + p["columns"][OFFSETS[:3, :3]][None, :, None]).reshape(15, 15, 2)
                        .transpose(2, 0, 1)), v),
     {"rows": f32(13, 2), "columns": f32(13, 2)}, f32(3, 2, 15, 15), f32(3, 15, 2, 4),
     rows=(), columns=())
case("axial position embeddings side by side",
     lambda p, x: (x + jnp.concatenate([jnp.broadcast_to(p["rows"][:, None], (6, 7, 4)),
                                        jnp.broadcast_to(p["columns"], (6, 7, 8))], -1)) @ p["w"],
     {"rows": f32(6, 4), "columns": f32(7, 8), "w": f32(12, 8)}, GRID,
     rows=(), columns=(), w=(0,))


# Networks on constants.
COORDINATES = np.stack(np.meshgrid(np.arange(-3, 4), np.arange(-2, 3), indexing="ij"), -1) / 3
COORDINATES = COORDINATES.astype(np.float32)
CPB = {"w1": f32(2, 16), "b1": f32(16), "w2": f32(16, 3)}
INDEX = np.arange(12 * 12).reshape(12, 12) % 35


def position_bias(dot, p):
    hidden = jax.nn.relu(dot("yxc,cf->yxf", jnp.asarray(COORDINATES), p["w1"]) + p["b1"])
    table = dot("yxf,fh->yxh", hidden, p["w2"]).reshape(35, 3)
    return 16 * jax.nn.sigmoid(table[INDEX].transpose(2, 0, 1))


dots("a continuous position bias",
     lambda dot, p, x, v: jnp.einsum("bhts,bshk->bthk", jax.nn.softmax(x + position_bias(dot, p)),
         v),
     CPB, f32(2, 3, 12, 12), f32(2, 12, 3, 4), w1=(0,), b1=(), w2=(0,))


def implicit_filter(p):  # (length, channels)
    t = np.linspace(0, 1, 7, dtype=np.float32)[:, None]
    z = np.concatenate([t, np.cos(9 * t), np.sin(9 * t)], -1)
    h = jnp.sin(p["f1"] * (z @ p["w1"] + p["b1"]))
    h = jnp.sin(p["f2"] * (h @ p["w2"] + p["b2"]))
    return (h @ p["w3"]) * jnp.exp(-t * np.linspace(1, 2, 8, dtype=np.float32))


def fft_convolved(p, x):
    h = implicit_filter(p)
    y = jnp.fft.irfft(jnp.fft.rfft(x, 14, axis=1) * jnp.fft.rfft(h, 14, axis=0), 14, axis=1)[:, :7]
    return (y + x * p["skip"]) @ p["out"]


def toeplitz_convolved(p, x):
    h = implicit_filter(p)
    i = np.arange(7)[:, None] - np.arange(7)
    kernel = jnp.where(i[..., None] >= 0, h[np.maximum(i, 0)], 0)  # (t, s, channels)
    return (jnp.einsum("tsc,bsc->btc", kernel, x) + x * p["skip"]) @ p["out"]


IMPLICIT = {"w1": f32(3, 5), "b1": f32(5), "f1": f32(5), "w2": f32(5, 4), "b2": f32(4),
            "f2": f32(4), "w3": f32(4, 8), "skip": f32(8), "out": W}
for how, conv in (("an FFT", fft_convolved), ("a Toeplitz matrix", toeplitz_convolved)):
    case(f"an implicit filter, convolved by {how}", conv, IMPLICIT, SEQUENCE,
         w1=(0,), b1=(), f1=(), w2=(0,), b2=(), f2=(), w3=(0,), skip=(),
         out=(0,))


# Learned latents, inducing points, queries.
def layer_norm(x, scale=None, bias=None):
    x = x - x.mean(-1, keepdims=True)
    x = x * lax.rsqrt((x**2).mean(-1, keepdims=True) + 1e-6)
    return x if scale is None else x * scale + bias


def cross(dot, q, p, x):
    k, v = dot("btd,dk->btk", x, p["k"]), dot("btd,dk->btk", x, p["v"])
    of = "qk" if q.ndim == 2 else "bqk"
    return dot("bqt,btk->bqk", jax.nn.softmax(dot(f"{of},btk->bqt", q, k)), v)


LATENTS = {"latents": f32(5, 6), "q": f32(6, 4), "k": f32(8, 4), "v": f32(8, 4)}
LATENT = {"latents": (), "q": (0,), "k": (0,), "v": (0,)}
UNTOLD = {"latents": Untold(()), "q": Untold((0,))}  # which is the weight, the trace does not tell
dots("raw latents and their projection", lambda dot, p, x: cross(dot, dot("ld,dk->lk", p["latents"],
    p["q"]), p, x),
     LATENTS, SEQUENCE, **LATENT | {"latents": REFUSED, "q": REFUSED})
dots("latents with a bias after their projection",
     lambda dot, p, x: cross(dot, dot("ld,dk->lk", p["latents"], p["q"]) + p["bias"], p, x),
     LATENTS | {"bias": f32(4)}, SEQUENCE, **LATENT, bias=())
dots("latents with a normalization before their projection",
     lambda dot, p, x: cross(dot, dot("ld,dk->lk", layer_norm(p["latents"]), p["q"]), p, x),
     LATENTS, SEQUENCE, **LATENT | UNTOLD)
dots("latents with a layer norm before their projection",
     lambda dot, p, x: cross(
         dot, dot("ld,dk->lk", layer_norm(p["latents"], p["scale"], p["bias"]), p["q"]), p, x),
     LATENTS | {"scale": f32(6), "bias": f32(6)}, SEQUENCE, **LATENT, scale=(), bias=())
dots("latents with a nonlinearity before their projection",
     lambda dot, p, x: cross(dot, dot("ld,dk->lk", jnp.tanh(p["latents"]), p["q"]), p, x),
     LATENTS, SEQUENCE, **LATENT | UNTOLD)
dots("latents with a norm of queries after their projection",
     lambda dot, p, x: cross(dot, layer_norm(dot("ld,dk->lk", p["latents"], p["q"]), p["scale"], p[
         "bias"]), p, x),
     LATENTS | {"scale": f32(4), "bias": f32(4)}, SEQUENCE, **LATENT, scale=(), bias=())
dots("latents in a batch",
     lambda dot, p, x: cross(
         dot, dot("bld,dk->blk", jnp.broadcast_to(p["latents"], (2, 5, 6)), p["q"]), p, x),
     LATENTS, SEQUENCE, sums=UNTOLD, **LATENT)
dots("latents with positions of constants",
     lambda dot, p, x: cross(
         dot, dot("ld,dk->lk", p["latents"] + np.ones((5, 6), np.float32), p["q"]), p, x),
     LATENTS, SEQUENCE, **LATENT | UNTOLD)


def set_attention(p, x):
    """Lee et al.'s pooling by attention, with its residual, norms and biases."""
    q = p["latents"] @ p["q"] + p["bq"]
    h = layer_norm(q + cross(jnp.einsum, q, p, x), p["scale"], p["bias"])
    return h + jax.nn.relu(h @ p["ff"] + p["bf"])


case("inducing points of a set transformer", set_attention,
     LATENTS | {"bq": f32(4), "scale": f32(4), "bias": f32(4), "ff": f32(4, 4), "bf": f32(4)},
     SEQUENCE, **LATENT, bq=(), scale=(), bias=(), ff=(0,), bf=())


def heads(p, name, q, kv):
    q, k, v = (
        jnp.einsum("btd,dhk->bthk", of, p[f"{name}_{n}"]) + p[f"{name}_b{n}"]
        for n, of in (("q", q), ("k", kv), ("v", kv))
    )
    a = jax.nn.softmax(jnp.einsum("bqhk,bshk->bhqs", q, k) / 2)
    out = jnp.einsum("bhqs,bshk->bqhk", a, v)
    return jnp.einsum("bqhk,hkd->bqd", out, p[f"{name}_o"]) + p[f"{name}_bo"]


def attention_params(name, features):
    shapes = {n: f32(features, 2, 4) for n in "qkv"} | {"b" + n: f32(2, 4) for n in "qkv"}
    shapes |= {"o": f32(2, 4, features), "bo": f32(features)}
    answer = dict.fromkeys("qkv", (0,)) | {"bq": (), "bk": (), "bv": (), "o": (0, 1), "bo": ()}
    named = lambda tree: {f"{name}_{n}": v for n, v in tree.items()}  # noqa: E731
    return named(shapes), named(answer)


SELF, SELF_AXES = attention_params("self", 6)
CROSS, CROSS_AXES = attention_params("cross", 6)


def detr_decoder(batched):
    def fn(p, memory):
        query = jnp.broadcast_to(p["query"], (len(memory) if batched else 1, 5, 6))
        target = jnp.zeros_like(query)
        q = jnp.einsum("btd,dhk->bthk", target + query, p["self_q"]) + p["self_bq"]
        k = jnp.einsum("btd,dhk->bthk", target + query, p["self_k"]) + p["self_bk"]
        v = jnp.einsum("btd,dhk->bthk", target, p["self_v"]) + p["self_bv"]
        a = jax.nn.softmax(jnp.einsum("bqhk,bshk->bhqs", q, k))
        out = jnp.einsum("bhqs,bshk->bqhk", a, v)
        out = jnp.einsum("bqhk,hkd->bqd", out, p["self_o"]) + p["self_bo"]
        target = layer_norm(target + out, p["scale"], p["bias"])
        q = jnp.broadcast_to(target + query, (len(memory), 5, 6))
        return target + heads(p, "cross", q, memory)

    return fn


for batched in (True, False):
    case(f"DETR's queries, {'' if batched else 'un'}batched in self-attention",
        detr_decoder(batched),
         SELF | CROSS | {"query": f32(5, 6), "scale": f32(6), "bias": f32(6)}, f32(2, 7, 6),
         **SELF_AXES, **CROSS_AXES, query=(), scale=(), bias=())


def perceiver(p, x):
    latents = jnp.broadcast_to(p["latents"], (len(x), 5, 6))
    q = layer_norm(latents, p["scale"], p["bias"])
    h = latents + heads(p, "cross", q, x)
    return h + heads(p, "self", h, h)


case("Perceiver's cross-attention", perceiver,
     SELF | CROSS | {"latents": f32(5, 6), "scale": f32(6), "bias": f32(6)}, f32(2, 7, 6),
     **SELF_AXES, **CROSS_AXES, latents=(), scale=(), bias=())


def tabpfn(p, x, y):  # x (rows, columns), y (rows,)
    cells = x[..., None] * p["value"] + p["b"]
    target = y[:, None, None] * p["target"]
    h = jnp.concatenate([cells, target], 1) + p["column"] @ p["up"] + p["bu"]
    return heads(p, "self", h, h)


case("tables of cells with learned columns", tabpfn,
     SELF | {"value": f32(6), "b": f32(6), "target": f32(6), "column": f32(5, 3), "up": f32(3, 6),
             "bu": f32(6)}, f32(7, 4), f32(7),
     **SELF_AXES, value=(), b=(), target=(), column=Untold(()), up=Untold((0,)), bu=())


# Attention that the trace cannot look into.
def softmax_attention(q, k, v):
    a = jax.nn.softmax(jnp.einsum("bthk,bshk->bhts", q, k))
    return jnp.einsum("bhts,bshk->bthk", a, v)


def called_back(q, k, v):
    @jax.custom_vjp
    def attend(q, k, v):
        return jax.pure_callback(
            lambda *qkv: np.asarray(qkv[0]), jax.ShapeDtypeStruct(q.shape, q.dtype), q, k, v
        )

    attend.defvjp(lambda *qkv: (attend(*qkv), qkv), lambda qkv, g: (g, g, g))
    return attend(q, k, v)


def in_pallas(q, k, v):
    from jax.experimental import pallas as pl

    def kernel(q, k, v, o):
        o[...] = softmax_attention(q[...], k[...], v[...])

    out = jax.ShapeDtypeStruct(q.shape, q.dtype)
    return pl.pallas_call(kernel, out_shape=out, interpret=True)(q, k, v)


def custom_vmapped(fn):
    """With a rule of its own for vmap, which is not what the trace reads."""
    custom = jax.custom_batching.custom_vmap(lambda *args: fn(*args))

    @custom.def_vmap
    def rule(size, batched, *args):
        axes = [0 if b else None for b in batched]
        return jax.vmap(fn, axes, axis_size=size)(*args), True

    return custom


def opaque_attention(attend):
    def fn(p, x):
        q, k, v = (jnp.einsum("btd,dhk->bthk", x, p[n]) + p["b" + n] for n in "qkv")
        return jnp.einsum("bthk,hkd->btd", attend(q, k, v), p["o"]) + p["bo"]

    return fn


ATTENTION, ATTENTION_AXES = (
    {k.removeprefix("self_"): v for k, v in tree.items()} for tree in (SELF, SELF_AXES)
)
for how, attend in {
    "written out": softmax_attention,
    "pure_callback": called_back,
    "pallas_call": in_pallas,
    "composite": lambda *qkv: lax.composite(softmax_attention, name="test.attention")(*qkv),
    "jax.nn": jax.nn.dot_product_attention,
    "checkpoint": jax.checkpoint(softmax_attention),
    "custom_vmap": custom_vmapped(softmax_attention),
}.items():
    case(f"biases of heads before attention: {how}", opaque_attention(attend), ATTENTION,
         f32(3, 7, 6), **ATTENTION_AXES)

# Biases and gains.
case("biases of mixed experts",
     lambda p, x, g: jnp.einsum("bke,bk->be", jnp.einsum("bi,kie->bke", x, p["w"]) + p["b"], g),
     {"w": f32(4, 8, 6), "b": f32(4, 6)}, X, f32(3, 4), w=Untold((1,)), b=Untold(()))
case("biases of mixed experts by a product and a sum",
     lambda p, x, g: ((jnp.einsum("bi,kie->bke", x, p["w"]) + p["b"]) * g[..., None]).sum(1),
     {"w": f32(4, 8, 6), "b": f32(4, 6)}, X, f32(3, 4), w=Untold((1,)), b=Untold(()))
case("biases of mixed experts with a router",
     lambda p, x: jnp.einsum("bke,bk->be", jax.nn.relu(jnp.einsum("bi,kie->bke", x, p["w"]) + p[
         "b"]),
                             jax.nn.softmax(x @ p["r"])),
     {"w": f32(4, 8, 6), "b": f32(4, 6), "r": f32(8, 4)}, X, w=(1,), b=(), r=(0,))
case("weight norm with a gain of (1, 1, n)",
     lambda p, x: lax.conv_general_dilated(
         x, p["g"] * p["v"] / jnp.sqrt((p["v"] ** 2).sum((0, 1), keepdims=True)), (1,), "SAME",
         dimension_numbers=("NWC", "WIO", "NWC")) + p["b"],
     {"v": f32(5, 8, 6), "g": f32(1, 1, 6), "b": f32(6)}, SEQUENCE, v=(0, 1), g=(), b=())
case("weight norm of a dense layer",
     lambda p, x: x @ (p["v"] / jnp.linalg.norm(p["v"], axis=0, keepdims=True) * p["g"]),
     {"v": W, "g": f32(1, 6)}, X, v=(0,), g=())


def modulated(p, x, style):
    s = style @ p["affine"] + p["b"]
    w = p["w"] * s[:, None, None, :, None]
    w = w * lax.rsqrt((w**2).sum((1, 2, 3), keepdims=True) + 1e-8)
    return jax.vmap(lambda x, w: conv2d(x[None], w)[0])(x, w) + p["bias"]


case("a modulated convolution's biases", modulated,
     {"affine": f32(5, 4), "b": f32(4), "w": f32(3, 3, 4, 7), "bias": f32(7)}, f32(2, 9, 8, 4),
     f32(2, 5), affine=(0,), b=(), w=(0, 1, 2), bias=())
case("a modulated convolution by groups",
     lambda p, x, s: lax.conv_general_dilated(
         x.transpose(1, 2, 0, 3).reshape(1, 9, 8, 8),
         (p["w"] * s[:, None, None, :, None]).transpose(1, 2, 3, 0, 4).reshape(3, 3, 4, 14),
         (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"), feature_group_count=2)
     .reshape(9, 8, 2, 7) + p["bias"],
     {"w": f32(3, 3, 4, 7), "bias": f32(7)}, f32(2, 9, 8, 4), f32(2, 4),
     w=(0, 1, 2), bias=())

# Experts chosen by index, and ragged products.
case("experts chosen by index", lambda p, x, i: jnp.einsum("bi,bio->bo", x, p["w"][i]) + p["b"][i],
     {"w": f32(4, 8, 6), "b": f32(4, 6)}, X, i32(3), w=(1,), b=())
case("experts chosen by index, by a product and a sum",
     lambda p, x, i: (x[..., None] * jnp.take(p["w"], i, axis=0)).sum(1),
     {"w": f32(4, 8, 6)}, X, i32(3), w=(1,))
case("the experts with the highest gates",
     lambda p, x: (lambda g, i: jnp.einsum("bk,bko->bo", jax.nn.softmax(g), jax.nn.relu(
         jnp.einsum("bi,bkio->bko", x, p["w"][i]) + p["b"][i])))(*lax.top_k(x @ p["r"], 2)),
     {"r": f32(8, 4), "w": f32(4, 8, 6), "b": f32(4, 6)}, X, r=(0,), w=(1,), b=())
case("experts chosen by vmap over examples",
     lambda p, x, i: jax.vmap(lambda x, i: jnp.tanh(x @ p["w"][i]))(x, i),
     {"w": f32(4, 8, 6)}, X, i32(3), w=(1,))
case("ragged_dot", lambda p, x, n: jnp.tanh(lax.ragged_dot(x, p["w"], n)), {"w": f32(4, 8, 6)},
     f32(10, 8), i32(4), w=(1,))
RAGGED_BATCH = lax.RaggedDotDimensionNumbers(
    dot_dimension_numbers=(((2,), (1,)), ((0,), (0,))), lhs_ragged_dimensions=[0],
    rhs_group_dimensions=[])
RAGGED_CONTRACTING = lax.RaggedDotDimensionNumbers(
    dot_dimension_numbers=(((1,), (0,)), ((), ())), lhs_ragged_dimensions=[1],
    rhs_group_dimensions=[])
RAGGED = lax.RaggedDotDimensionNumbers(
    dot_dimension_numbers=(((1,), (2,)), ((), ())), lhs_ragged_dimensions=[0],
    rhs_group_dimensions=[0])
case("ragged_dot_general with outputs first",
     lambda p, x, n: jnp.tanh(lax.ragged_dot_general(x, p["w"], n, RAGGED)), {"w": f32(4, 6, 8)},
     f32(10, 8), i32(4), w=(2,))
case("ragged_dot_general of a ragged batch",
     lambda p, x, n: jnp.tanh(lax.ragged_dot_general(x, p["w"], n, RAGGED_BATCH)),
     {"w": f32(5, 8, 6)}, f32(5, 3, 8), i32(4), w=(1,))
case("ragged_dot_general of ragged sums, in which every group has a part of the fan-in",
     lambda p, x, n: jnp.tanh(lax.ragged_dot_general(x, p["w"], n, RAGGED_CONTRACTING)),
     {"w": W}, X, i32(4), w=REFUSED)
case("ragged_dot_general of activations",
     lambda p, x, n: jnp.tanh(lax.ragged_dot_general(jnp.tanh(x @ p["u"]).T, x @ p["w"], n,
                                                     RAGGED_CONTRACTING)),
     {"u": f32(8, 5), "w": W}, f32(10, 8), i32(4), u=(0,), w=(0,))


# Inside shard_map and pmap.
def on_mesh(fn, in_specs, out_specs):
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:2]), ("d",))
    return jax.shard_map(fn, mesh=mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False)


BATCH = f32(4, 8)


def meshed(name, fn, w_spec, x_spec, out_spec, w=W, x=BATCH, axes=(0,)):
    """A layer fn(w, x) inside shard_map, alone and between a layer and a nonlinearity."""
    case(f"shard_map: {name}", lambda p, x: on_mesh(fn, (w_spec, x_spec), out_spec)(p["w"], x),
         {"w": w}, x, w=axes)
    case(f"shard_map: {name}, jitted",
         jax.jit(lambda p, x: jnp.tanh(on_mesh(jax.jit(fn), (w_spec, x_spec), out_spec)(p["w"],
             x))),
         {"w": w}, x, w=axes)
    if axes == REFUSED:
        return
    case(f"shard_map: {name}, between layers",
         lambda p, x: jnp.tanh(
             on_mesh(fn, (w_spec, x_spec), out_spec)(p["w"], jnp.tanh(x @ p["u"])) + p["b"]),
         {"u": f32(5, 8), "w": w, "b": f32(w.shape[-1])}, f32(*x.shape[:-1], 5),
         u=(0,), w=axes, b=())


meshed("data parallel", lambda w, x: x @ w, P(), P("d"), P("d"))
meshed("column parallel", lambda w, x: x @ w, P(None, "d"), P(), P(None, "d"))
meshed("row parallel by psum", lambda w, x: lax.psum(x @ w, "d"), P("d"), P(None, "d"), P())
meshed("row parallel by psum of a product and a sum",
       lambda w, x: lax.psum((x[:, :, None] * w).sum(1), "d"), P("d"), P(None, "d"), P())
meshed("row parallel by psum_scatter",
       lambda w, x: lax.psum_scatter(x @ w, "d", scatter_dimension=1, tiled=True), P("d"),
       P(None, "d"), P(None, "d"))
meshed("row parallel by psum_scatter over the batch",
       lambda w, x: lax.psum_scatter(x @ w, "d", scatter_dimension=0, tiled=True), P("d"),
       P(None, "d"), P("d"))
meshed("row parallel by all_gather and sum",
       lambda w, x: lax.all_gather(x @ w, "d").sum(0), P("d"), P(None, "d"), P(),
       axes=Untold((0,)))
meshed("fully sharded, gathered along the inputs",
       lambda w, x: x @ lax.all_gather(w, "d", axis=0, tiled=True), P("d"), P("d"), P("d"))
meshed("fully sharded, gathered along the outputs",
       lambda w, x: x @ lax.all_gather(w, "d", axis=1, tiled=True), P(None, "d"), P("d"),
       P("d"))
meshed("fully sharded, gathered as blocks",
       lambda w, x: jnp.einsum("bsi,sio->bo", x.reshape(-1, 2, 4), lax.all_gather(w, "d")), P("d"),
       P("d"), P("d"))
meshed("a permuted batch", lambda w, x: lax.ppermute(x, "d", [(0, 1), (1, 0)]) @ w, P(), P("d"),
       P("d"))
meshed("a permuted output", lambda w, x: lax.ppermute(x @ w, "d", [(0, 1), (1, 0)]), P(), P("d"),
       P("d"))
meshed("a permuted kernel of other outputs",
       lambda w, x: x @ lax.ppermute(w, "d", [(0, 1), (1, 0)]), P(None, "d"), P(), P(None, "d"),
       axes=Untold((0,)))


def ring(w, x):
    """A collective matmul: the blocks of a kernel go around."""
    y, here = jnp.zeros((x.shape[0], w.shape[1])), lax.axis_index("d")
    for step in range(2):
        block = lax.dynamic_slice_in_dim(x, (here + step) % 2 * 4, 4, axis=1)
        y, w = y + block @ w, lax.ppermute(w, "d", [(1, 0), (0, 1)])
    return y


meshed("a ring of blocks of the fan-in", ring, P("d"), P("d"), P("d"), axes=Untold((0,)))
meshed("features exchanged by all_to_all",
       lambda w, x: lax.all_to_all(x, "d", 1, 0, tiled=True) @ w, P("d"), P("d"), P("d"),
       axes=REFUSED)
meshed("a batch exchanged by all_to_all",
       lambda w, x: lax.all_to_all(x, "d", 0, 1, tiled=True) @ w, P(), P(None, "d"), P("d"))
meshed("a gathered batch", lambda w, x: lax.all_gather(x, "d", tiled=True) @ w, P(None, "d"),
    P("d"),
       P(None, "d"))
meshed("a mean over the batch", lambda w, x: x @ w - lax.pmean((x @ w).mean(0), "d"), P(), P("d"),
       P("d"))
meshed("a maximum over the batch", lambda w, x: x @ w - lax.pmax(lax.stop_gradient(x @ w).max(),
    "d"),
       P(), P("d"), P("d"))
meshed("experts on their own devices by all_to_all",
       lambda w, x: lax.all_to_all(
           jnp.einsum("ebi,eio->ebo", lax.all_to_all(x, "d", 0, 1, tiled=True), w), "d", 1, 0,
           tiled=True), P("d"), P(None, "d"), P(None, "d"), w=f32(4, 8, 6), x=f32(4, 6, 8),
       axes=(1,))
meshed("each shard's partial sum put side by side", lambda w, x: x @ w, P("d"), P(None, "d"),
       P(None, "d"), axes=REFUSED)
case("shard_map: a megatron block",
     lambda p, x: on_mesh(
         lambda p, x: x + lax.psum(jax.nn.gelu(x @ p["up"] + p["bu"]) @ p["down"], "d") + p["bd"],
         ({"up": P(None, "d"), "bu": P("d"), "down": P("d"), "bd": P()}, P()), P())(p, x),
     {"up": f32(8, 12), "bu": f32(12), "down": f32(12, 8), "bd": f32(8)}, X,
     up=(0,), bu=(), down=(0,), bd=())
case("shard_map: a vocabulary in parts",
     lambda p, i: on_mesh(
         lambda e, i: lax.psum(jnp.where(
             (i // 6 == lax.axis_index("d"))[..., None], e[i % 6], 0), "d"),
         (P("d"), P()), P())(p["e"], i), {"e": f32(12, 8)}, i32(3, 7), e=())
case("pmap over examples", lambda p, x: jax.pmap(lambda x: jnp.tanh(x @ p["w"] + p["b"]))(x),
     {"w": W, "b": f32(6)}, f32(2, 3, 8), w=since_0_8((0,)), b=since_0_8(()))
case("pmap of parameters that are passed",
     lambda p, x: jax.pmap(lambda p, x: jnp.tanh(x @ p["w"] + p["b"]), in_axes=(None, 0))(p, x),
     {"w": W, "b": f32(6)}, f32(2, 3, 8), w=since_0_8((0,)), b=since_0_8(()))
case("pmap with a mean over devices",
     lambda p, x: jax.pmap(lambda x: lax.pmean(jnp.tanh(x @ p["w"]), "d"), axis_name="d")(x),
     {"w": W}, f32(2, 3, 8), w=since_0_8((0,)))
case("pmap of replicas of parameters",
     lambda p, x: jax.pmap(lambda p, x: jnp.tanh(x @ p["w"] + p["b"]))(p, x),
     {"w": f32(2, 8, 6), "b": f32(2, 6)}, f32(2, 3, 8), w=since_0_8((1,)), b=since_0_8(()))
case("vmap with a mean over an axis that is named",
     lambda p, x: jax.vmap(lambda x: lax.psum(jnp.tanh(x @ p["w"]), "d"), axis_name="d")(x),
     {"w": W}, f32(2, 3, 8), w=(0,))
case("vmap as a row-parallel layer",
     lambda p, x: jax.vmap(lambda w, x: lax.psum(x @ w, "d"), (0, 1), axis_name="d")(
         p["w"].reshape(2, 4, 6), x.reshape(3, 2, 4))[0],
     {"w": W}, X, w=Untold((0,)))

# Loops of solvers.
CELL = {"w": f32(8, 8), "b": f32(8), "out": W}


def checkpointed(step, x):
    return eqx.internal.while_loop(
        lambda c: c[0] < 3, lambda c: (c[0] + 1, step(c[1])), (0, x), max_steps=5,
        kind="checkpointed",
    )[1]


def bounded(step, x):
    return eqx.internal.while_loop(
        lambda c: c[0] < 3, lambda c: (c[0] + 1, step(c[1])), (0, x), max_steps=5, kind="bounded"
    )[1]


def lax_kind(step, x):
    return eqx.internal.while_loop(
        lambda c: c[0] < 3, lambda c: (c[0] + 1, step(c[1])), (0, x), kind="lax"
    )[1]


def eqx_scan(kind):
    def loop(step, x):
        return eqx.internal.scan(
            lambda x, _: (step(x), None), x, None, length=4, kind=kind,
            checkpoints="all" if kind == "checkpointed" else None,
        )[0]

    return loop


SOLVERS = {
    "fori_loop": lambda step, x: lax.fori_loop(0, 3, lambda i, x: step(x), x),
    "while_loop": lambda step, x: lax.while_loop(
        lambda c: c[0] < 3, lambda c: (c[0] + 1, step(c[1])), (0, x)
    )[1],
    "while_loop that stops by its data": lambda step, x: lax.while_loop(
        lambda x: (x**2).sum() > 1, step, x
    ),
    "associative_scan after": lambda step, x: lax.associative_scan(jnp.add, step(x)),
    "map": lambda step, x: lax.map(step, x),
    "map in batches": lambda step, x: lax.map(step, x, batch_size=2),
    "Equinox, lax": lax_kind,
    "Equinox, checkpointed": checkpointed,
    "Equinox, bounded": bounded,
    "Equinox's scan, lax": eqx_scan("lax"),
    "Equinox's scan, checkpointed": eqx_scan("checkpointed"),
    "switch": lambda step, x: lax.switch(
        jnp.argmax(x[0]) % 3, [step, lambda x: step(step(x)), lambda x: x], x
    ),
    "cond": lambda step, x: lax.cond(x.sum() > 0, step, lambda x: x, x),
    "cond, vmapped": lambda step, x: jax.vmap(
        lambda x: lax.cond(x.sum() > 0, step, lambda x: x, x)
    )(x),
    "while_loop, vmapped": lambda step, x: jax.vmap(
        lambda x: lax.while_loop(lambda x: (x**2).sum() > 1, step, x)
    )(x),
    "Equinox, checkpointed, vmapped": lambda step, x: jax.vmap(lambda x: checkpointed(step, x))(x),
    "Equinox, bounded, vmapped": lambda step, x: jax.vmap(lambda x: bounded(step, x))(x),
    "filter_checkpoint": lambda step, x: eqx.filter_checkpoint(step)(x),
    "filter_jit": lambda step, x: eqx.filter_jit(step)(x),
    "filter_vmap": lambda step, x: eqx.filter_vmap(step)(x),
    "closure_convert": lambda step, x: (lambda f, c: f(x, *c))(*jax.closure_convert(step, x)),
    "named_call": lambda step, x: jax.named_call(step, name="step")(x),
    "linearized": lambda step, x: jax.linearize(step, x)[0],
    "grad_checkpoint of a scan": lambda step, x: jax.checkpoint(
        lambda x: lax.scan(lambda x, _: (step(x), None), x, None, length=2)[0]
    )(x),
    "scan of scans": lambda step, x: lax.scan(
        lambda x, _: (lax.scan(lambda x, _: (step(x), None), x, None, length=2)[0], None), x, None,
        length=2,
    )[0],
    "reverse scan": lambda step, x: lax.scan(
        lambda x, _: (step(x), None), x, None, length=2, reverse=True
    )[0],
    "optimization_barrier": lambda step, x: lax.optimization_barrier(step(x)),
}


for how, loop in SOLVERS.items():
    case(f"a layer in a loop or a wrapper: {how}",
         lambda p, x, loop=loop: loop(lambda x: jnp.tanh(x @ p["w"] + p["b"]), x) @ p["out"],
         CELL, X, w=(0,), b=(), out=(0,))
    case(f"a layer by a product and a sum in a loop or a wrapper: {how}",
         lambda p, x, loop=loop: loop(
             lambda x: jnp.tanh((x[..., None, :] * p["w"]).sum(-1) + p["b"]), x) @ p["out"],
         CELL, X, w=(1,), b=(), out=(0,))
    case(f"a residual in a loop or a wrapper: {how}",
         lambda p, x, loop=loop: loop(lambda x: x + 0.1 * (jnp.tanh(x @ p["w"] + p["b"]) * p["s"]),
             x)
         @ p["out"],
         CELL | {"s": f32(8)}, X, w=(0,), b=(), s=(), out=(0,))


def euler(p, x):
    """A neural ODE that adapts its step, as diffrax's controllers do."""

    def field(t, x):
        return jnp.tanh(x @ p["w"] + p["b"] + t * p["time"])

    def body(c):
        t, x, dt = c
        big = x + dt * field(t, x)
        half = x + dt / 2 * field(t, x)
        small = half + dt / 2 * field(t + dt / 2, half)
        keep = jnp.abs(big - small).max() < 0.1
        return jnp.where(keep, t + dt, t), jnp.where(keep, small, x), jnp.where(keep, dt, dt / 2)

    zero = jnp.zeros(())
    return eqx.internal.while_loop(lambda c: c[0] < 1, body, (zero, x, zero + 0.1), max_steps=16,
                                   kind="checkpointed")[1] @ p["out"]


case("a neural ODE that adapts its step", euler, CELL | {"time": f32(8)}, X,
     w=(0,), b=(), time=(), out=(0,))


# What wraps a function of its parameters.
def custom_vjp_of(fn):
    f = jax.custom_vjp(fn)
    f.defvjp(lambda *a: jax.vjp(fn, *a), lambda pull, g: pull(g))
    return f


def custom_jvp_of(fn):
    f = jax.custom_jvp(fn)
    f.defjvp(lambda x, t: jax.jvp(fn, x, t))
    return f


WRAPPERS = {
    "jit": jax.jit,
    "inlined": lambda f: jax.jit(f, inline=True),
    "remat": jax.checkpoint,
    "remat of everything": lambda f: jax.checkpoint(
        f, policy=jax.checkpoint_policies.nothing_saveable
    ),
    "composite": lambda f: lax.composite(f, name="test.layer"),
    "custom_vjp": custom_vjp_of,
    "custom_jvp": custom_jvp_of,
    "custom_vmap": custom_vmapped,
    "custom_vjp of a jit": lambda f: custom_vjp_of(jax.jit(f)),
    "shard_map, replicated": lambda f: on_mesh(f, P(), P()),
    "one step of a scan": lambda f: (
        lambda *a: lax.scan(lambda c, _: (c, f(*a)), 0, None, length=2)[1][0]
    ),
    "cond of the same": lambda f: lambda *a: lax.cond(a[0].sum() > 0, f, f, *a),
    "a new jit for each call": lambda f: lambda *a: jax.jit(lambda *a: f(*a))(*a),
    "closed_call": lambda f: lambda *a: jax.closure_convert(f, *a)[0](*a),
    "noinline": lambda f: eqx.internal.noinline(f),
    "filter_custom_vjp": lambda f: filter_custom(f),
}


def filter_custom(fn):
    f = eqx.filter_custom_vjp(lambda args: fn(*args))
    f.def_fwd(lambda perturbed, args: (fn(*args), None))
    f.def_bwd(lambda res, g, perturbed, args: jax.vjp(lambda args: fn(*args), args)[1](g)[0])
    return lambda *args: f(args)


for how, wrap in WRAPPERS.items():
    answer = Untold if how == "noinline" else tuple  # which hides what is in it
    case(f"layers in {how}",
         lambda p, x, wrap=wrap: wrap(lambda x, w, b: jnp.tanh(x @ w + b))(
             wrap(lambda x, w, b: jnp.tanh(x @ w + b))(x, p["u"], p["bu"]), p["w"], p["b"]),
         {"u": f32(5, 8), "bu": f32(8), "w": W, "b": f32(6)}, f32(3, 5),
         u=answer((0,)), bu=answer(()), w=answer((0,)), b=answer(()))
    case(f"one helper in {how}, for two layers of one shape",
         lambda p, x, wrap=wrap: (lambda f: f(f(x, p["u"]), p["w"]))(
             wrap(lambda x, w: jnp.tanh((x[..., None] * w).sum(-2)))),
         {"u": f32(8, 8), "w": f32(8, 8)}, X, u=answer((0,)), w=answer((0,)))
    case(f"a helper in {how}, for a weight and for its transpose",
         lambda p, x, wrap=wrap: (lambda f: f(f(x, p["w"]), p["w"].T))(
             wrap(lambda x, w: jnp.tanh(x @ w))),
         {"w": f32(8, 8)}, X, w=REFUSED)
    case(f"experts mixed, then divided by their norm in {how}",
         lambda p, x, g, wrap=wrap: jnp.einsum("bi,bio->bo", x, wrap(
             lambda w: w / jnp.sqrt((w**2).sum(1, keepdims=True)))(
                 jnp.einsum("be,eio->bio", g, p["w"]))),
         {"w": f32(4, 8, 6)}, X, f32(3, 4), w=Untold((1,)))
    case(f"experts mixed in {how}",
         lambda p, x, g, wrap=wrap: jnp.einsum("bi,bio->bo", x, wrap(
             lambda g, w: jnp.einsum("be,eio->bio", g, w))(g, p["w"])),
         {"w": f32(4, 8, 6)}, X, f32(3, 4), w=Untold((1,)))
    case(f"a weight normalized in {how}",
         lambda p, x, wrap=wrap: jnp.tanh(x @ wrap(lambda w: w / jnp.linalg.norm(w, axis=0))(p[
             "w"])),
         {"w": W}, X, w=answer((0,)))
    case(f"a weight transposed in {how}",
         lambda p, x, wrap=wrap: jnp.tanh(x @ wrap(lambda w: w.T)(p["w"])),
         {"w": f32(6, 8)}, X, w=answer((1,)))


# Operations that are seldom seen: exact, or refused for what they touch alone.
AROUND = {"u": f32(5, 8), "bu": f32(8), "w": W, "b": f32(6)}
AFTER = {
    "reduce": lambda h: lax.reduce(h, 1.0, lambda a, b: a + b - a * b, (1,))[:, None],
    "reduce of two": lambda h: lax.reduce(
        (h, h * 2), (0.0, 0.0), lambda a, b: (a[0] + b[0], a[1] * b[1]), (0,)
    )[0][None],
    "reduce_window": lambda h: lax.reduce_window(
        h, 0.5, lambda a, b: a * b + 1, (1, 2), (1, 1), "VALID"
    ),
    "reduce_window_max": lambda h: lax.reduce_window(h, -jnp.inf, lax.max, (1, 2), (1, 2), "VALID"),
    "reduce_window_sum": lambda h: lax.reduce_window(h, 0.0, lax.add, (1, 2), (1, 2), "VALID"),
    "reduce_precision": lambda h: lax.reduce_precision(h, 8, 7),
    "scatter": lambda h: jnp.zeros((9, 6)).at[np.array([1, 3, 4])].set(h),
    "scatter-add": lambda h: jnp.zeros((9, 6)).at[np.array([1, 1, 4])].add(h),
    "scatter-max": lambda h: jnp.zeros((9, 6)).at[np.array([1, 1, 4])].max(h),
    "scatter-min": lambda h: jnp.zeros((9, 6)).at[np.array([1, 1, 4])].min(h),
    "scatter-mul": lambda h: jnp.ones((9, 6)).at[np.array([1, 3, 4])].multiply(h),
    "segment_max": lambda h: jax.ops.segment_max(h, np.array([0, 1, 0]), 2),
    "segment_sum": lambda h: jax.ops.segment_sum(h, np.array([0, 1, 0]), 2),
    "cholesky": lambda h: jnp.linalg.cholesky(h @ h.T + jnp.eye(3)),
    "eigh": lambda h: jnp.linalg.eigh(h @ h.T)[0],
    "qr": lambda h: jnp.linalg.qr(h)[0],
    "svd": lambda h: jnp.linalg.svd(h, compute_uv=False),
    "slogdet": lambda h: jnp.linalg.slogdet(h @ h.T + jnp.eye(3))[1],
    "solve": lambda h: jnp.linalg.solve(h @ h.T + jnp.eye(3), h),
    "cumsum": lambda h: jnp.cumsum(h, 0),
    "cumlogsumexp": lambda h: lax.cumlogsumexp(h, 0),
    "sort": lambda h: jnp.sort(h, -1),
    "top_k": lambda h: lax.top_k(h, 2)[0],
    "fft": lambda h: jnp.abs(jnp.fft.fft(h)),
    "argmax by a straight-through": lambda h: h + lax.stop_gradient(
        jax.nn.one_hot(jnp.argmax(h, -1), 6) - h
    ),
    "pure_callback": lambda h: called_back(h, h, h),
    "conv of itself": lambda h: jax.vmap(lambda h: jnp.convolve(h, h))(h),
    "while_loop by its own size": lambda h: lax.while_loop(
        lambda h: (h**2).sum() > 1, lambda h: h / 2, h
    ),
    "clip, pad, flip": lambda h: jnp.pad(jnp.clip(h, -1, 1), ((0, 0), (1, 2)))[:, ::-1],
    "erf_inv": lambda h: jax.scipy.special.erfinv(jnp.tanh(h)),
    "gamma": lambda h: jax.scipy.special.gammaln(h),
    "bessel": lambda h: jax.scipy.special.i0e(h),
    "expm": lambda h: jax.scipy.linalg.expm(h[:, :3]),
    "triangular_solve": lambda h: jax.scipy.linalg.solve_triangular(
        jnp.tril(h[:, :3]) + jnp.eye(3), h, lower=True
    ),
    "random of its rate": lambda h: jax.random.gamma(jax.random.key(0), jnp.exp(h)),
    "approx_max_k": lambda h: lax.approx_max_k(h, 2)[0],
    "dynamic_update_slice": lambda h: lax.dynamic_update_slice(jnp.zeros((9, 6)), h, (2, 0)),
    "associative_scan": lambda h: lax.associative_scan(
        lambda a, b: (a[0] * b[0], a[1] * b[0] + b[1]), (jax.nn.sigmoid(h), h)
    )[1],
}
for how, after in AFTER.items():
    case(f"layers before an odd operation: {how}",
         lambda p, x, after=after: after(jnp.tanh(jnp.tanh(x @ p["u"] + p["bu"]) @ p["w"] + p[
             "b"])),
         AROUND, f32(3, 5), u=(0,), bu=(), w=(0,), b=())
    case(f"a layer straight before an odd operation: {how}",
         lambda p, x, after=after: after(x @ p["w"] + p["b"]), {"w": W, "b": f32(6)}, X,
         w=(0,), b=())
case("pooling by a generic maximum between convolutions",
     lambda p, x: conv2d(lax.reduce_window(
         jnp.tanh(conv2d(x, p["k"]) + p["b"]), -1.0, lambda a, b: jnp.where(a > b, a, b),
         (1, 2, 2, 1), (1, 2, 2, 1), "VALID"), p["w"]),
     {"k": f32(3, 3, 4, 6), "b": f32(6), "w": f32(3, 3, 6, 5)}, f32(2, 10, 8, 4),
     k=(0, 1, 2), b=(), w=(0, 1, 2))

OF_WEIGHTS = {
    "qr": lambda w: jnp.linalg.qr(w)[0],
    "lu": lambda w: jax.scipy.linalg.lu(w)[2],
    "eigh": lambda w: jnp.linalg.eigh(w + w.T)[1],
    "cholesky": lambda w: jnp.linalg.cholesky(w @ w.T + jnp.eye(8)),
    "svd": lambda w: jnp.linalg.svd(w)[0],
    "inverse": jnp.linalg.inv,
    "expm": lambda w: jax.scipy.linalg.expm(w - w.T),
    "cayley": lambda w: jnp.linalg.solve(jnp.eye(8) + w - w.T, jnp.eye(8) - w + w.T),
    "householder": lambda w: lax.linalg.householder_product(w, w[0]),
    "pure_callback": lambda w: called_back(w, w, w),
    "a generic reduction": lambda w: lax.reduce(
        jnp.broadcast_to(w, (2, 8, 8)), 0.0, lambda a, b: a + b + a * b, (0,)
    ),
    "a generic window": lambda w: lax.reduce_window(
        w, 0.0, lambda a, b: a + b + a * b, (3, 1), (1, 1), "SAME"
    ),
    "scatter-max": lambda w: jnp.zeros((8, 8)).at[np.arange(8) // 2].max(w),
    "cumsum": lambda w: jnp.cumsum(w, 0),
    "fft": lambda w: jnp.fft.fft(w, axis=0).real,
    "sorting of rows": lambda w: w[jnp.argsort(w[:, 0])],
    "a while_loop": lambda w: lax.while_loop(lambda w: (w**2).sum() > 1, lambda w: w @ w / 2, w),
}
SAME_INPUTS = {  # of which axis 0 is in its place
    "a while_loop": (0,), "sorting of rows": Untold((0,)), "a generic reduction": Untold((0,)),
}
for how, of in OF_WEIGHTS.items():
    case(f"a weight made by an odd operation: {how}",
         lambda p, x, of=of: jnp.tanh(jnp.tanh(jnp.tanh(x @ p["u"] + p["bu"]) @ of(p["v"])) @ p[
             "w"] + p["b"]),
         AROUND | {"v": f32(8, 8)}, f32(3, 5),
         u=(0,), bu=(), v=SAME_INPUTS.get(how, REFUSED), w=(0,), b=())
case("an implicit layer solved by custom_linear_solve",
     lambda p, x: jnp.tanh(lax.custom_linear_solve(
         lambda z: z + 0.1 * z @ p["v"], jnp.tanh(x @ p["u"] + p["bu"]), lambda f, b: b - f(b),
         transpose_solve=lambda f, b: b - f(b)) @ p["w"] + p["b"]),
     AROUND | {"v": f32(8, 8)}, f32(3, 5), u=(0,), bu=(), v=Untold((0,)), w=(0,), b=())
case("a conjugate gradient before a layer",
     lambda p, x: jnp.tanh(jax.scipy.sparse.linalg.cg(
         lambda z: z + (x.T @ (x @ z)), jnp.tanh(x.T @ p["u"] + p["bu"]), maxiter=3)[0] @ p["w"]),
     {"u": f32(3, 8), "bu": f32(8), "w": W}, f32(3, 4), u=(0,), bu=(), w=(0,))
case("a kernel machine on features that are learned",
     lambda p, x, y: jax.scipy.linalg.cho_solve(
         (jnp.linalg.cholesky((lambda h: h @ h.T + jnp.eye(7))(
             jnp.tanh(x @ p["w"] + p["b"]))), True), y),
     {"w": W, "b": f32(6)}, f32(7, 8), f32(7, 2), w=(0,), b=())
case("graph attention with a softmax over segments",
     lambda p, x, s, r: (lambda h: (lambda e: jax.ops.segment_sum(
         jnp.exp(e - jax.ops.segment_max(e, r, 5)[r])[:, None] * h[s], r, 5))(
             jax.nn.leaky_relu((h[s] @ p["as"]) + (h[r] @ p["ar"]))))(x @ p["w"] + p["b"]),
     {"w": W, "b": f32(6), "as": f32(6), "ar": f32(6)}, f32(5, 8), i32(9), i32(9),
     w=(0,), b=(), ar=(0,), **{"as": (0,)})

# What no rule may forget: one use refused does not hide another, and order does not matter.
for how, both in {"first": lambda a, b: (a, b), "last": lambda a, b: (b, a)}.items():
    case(f"a weight that is used as it is and as its transpose, {how}",
         lambda p, x, y, both=both: both(jnp.tanh(x @ p["w"]), jnp.tanh(y @ p["w"].T)),
         {"w": W}, X, f32(3, 6), w=REFUSED)
    case(f"a weight that is also decomposed, {how}",
         lambda p, x, both=both: both(jnp.tanh(x @ p["w"]), jnp.linalg.svd(p["w"],
             compute_uv=False)),
         {"w": W}, X, w=REFUSED)
    case(f"a weight used twice, {how}",
         lambda p, x, y, both=both: both(jnp.tanh(x @ p["w"]),
             jnp.tanh((y[:, :, None] * p["w"]).sum(1))),
         {"w": W}, X, X, w=(0,))
    case(f"a weight with a penalty, {how}",
         lambda p, x, both=both: both(jnp.tanh(x @ p["w"]), (p["w"] ** 2).sum()),
         {"w": W}, X, w=(0,))

# One step from a layer: what shares its expression, or only looks like it.
# Before 0.8, jnp.diag repeated it along the rows: as a scale of outputs.
case("a diagonal matrix of a scale", lambda p, x: jnp.tanh(x @ jnp.diag(p["s"])) @ p["w"],
     {"s": f32(8), "w": W}, X, s=Untold(()) if since_0_8 is tuple else (), w=(0,))
case("a weight of which some rows are a bias",
     lambda p, x: (jnp.tanh(x @ p["w"]), jnp.tanh(x[:, :6] + p["w"][np.array([1, 2, 5])])),
     {"w": W}, X, w=REFUSED)
for how, rows_of in {"a slice": lambda w: w[1:4], "a row": lambda w: w[3],
                     "a transposed row": lambda w: w.T[:, 3]}.items():
    case(f"a weight of which {how} is a bias",
         lambda p, x, of=rows_of: (jnp.tanh(x @ p["w"]), jnp.tanh(x[:, :6] + of(p["w"]))),
         {"w": W}, X, w=REFUSED)
for how, penalty in {"vdot": lambda w: jnp.vdot(w, w), "a sum of squares": lambda w: (w**2).sum(),
                     "an einsum": lambda w: jnp.einsum("io,io->", w, w),
                     "a norm": jnp.linalg.norm, "a trace": lambda w: jnp.trace(w.T @ w)}.items():
    case(f"a penalty by {how} beside layers",
         lambda p, x, of=penalty: jnp.tanh(x @ p["w"] + p["b"]).mean() + 0.1 * of(p["w"]),
         {"w": W, "b": f32(6)}, X, w=(0,), b=())
    case(f"a penalty by {how} of what is not used else",
         lambda p, x, of=penalty: jnp.tanh(x @ p["w"]).mean() + 0.1 * of(p["v"]),
         {"w": W, "v": f32(8, 6)}, X, w=(0,), v=())
case("rows of one parameter as a weight and its bias",
     lambda p, x: jnp.tanh(x @ p["w"][:8] + p["w"][8]), {"w": f32(9, 6)}, X, w=REFUSED)
case("ones beside the input in place of a bias",
     lambda p, x: jnp.tanh(jnp.concatenate([x, jnp.ones((3, 1))], 1) @ p["w"]), {"w": f32(9, 6)},
     X, w=(0,))
case("diagonal blocks of a weight in a log-determinant",
     lambda p, x: (jnp.tanh(x @ p["w"]), jnp.log(jnp.abs(jnp.diagonal(p["w"]))).sum()),
     {"w": f32(8, 8)}, X, w=(0,))
case("a weight or its transpose, selected",
     lambda p, x: jnp.tanh(x @ jnp.where(x.sum() > 0, p["w"], p["w"].T)), {"w": f32(8, 8)}, X,
     w=REFUSED)
case("a weight or its transpose in branches",
     lambda p, x: lax.cond(x.sum() > 0, lambda w: jnp.tanh(x @ w), lambda w: jnp.tanh(x @ w.T),
                           p["w"]), {"w": f32(8, 8)}, X, w=REFUSED)
case("a weight and an activation that a loop swaps",
     lambda p, x: lax.scan(lambda c, _: ((c[1], jnp.tanh(c[0] @ c[1])), None), (x, p["w"]), None,
                           length=3)[0][0], {"w": f32(8, 8)}, f32(8, 8), w=REFUSED)
case("a helper that is given a weight and data either way around",
     lambda p, x: (lambda f: (jnp.tanh(f(x, p["w"])), jnp.tanh(f(p["v"], x.T))))(
         jax.jit(lambda a, b: a @ b)), {"w": W, "v": f32(5, 8)}, X, w=(0,), v=(1,))
case("a helper with a scan that is given a weight and data either way around",
     lambda p, x: (lambda f: (jnp.tanh(f(x, p["w"])), jnp.tanh(f(p["v"], x.T))))(
         jax.jit(lambda a, b: lax.scan(lambda c, r: (c, r @ b), 0, a)[1])),
     {"w": W, "v": f32(5, 8)}, X, w=(0,), v=(1,))
case("taps of which one is a scale elsewhere",
     lambda p, x: jnp.tanh(sum(shifted(x, k) * p["taps"][k] for k in range(3))) * p["taps"][3],
     {"taps": f32(4, 8)}, SEQUENCE, taps=REFUSED)
case("taps in two sums, each bent",
     lambda p, x: jnp.tanh(sum(shifted(x, k) * p["taps"][k] for k in range(2)))
     + jnp.tanh(sum(shifted(x, k) * p["taps"][k] for k in range(2, 4))),
     {"taps": f32(4, 8)}, SEQUENCE, taps=REFUSED)
case("a table of a scale, a shift and a gate",
     lambda p, x: jnp.tanh(x * (1 + p["t"][0]) + p["t"][1]) * p["t"][2], {"t": f32(3, 8)},
     SEQUENCE, t=())
case("scales of residual branches of one table",
     lambda p, x: (lambda h: h + jnp.sin(h) * p["t"][1])(x + jnp.cos(x) * p["t"][0]),
     {"t": f32(2, 8)}, SEQUENCE, t=())
dots("a gated linear unit of a stack",
     lambda dot, p, x: jax.nn.sigmoid(dot("bi,io->bo", x, p["w"][0]))
     * dot("bi,io->bo", x, p["w"][1]),
     {"w": f32(2, 8, 6)}, X, w=(1,))
dots("a linear and a bent branch of a stack",
     lambda dot, p, x: dot("bi,io->bo", x, p["w"][0]) + jnp.tanh(dot("bi,io->bo", x, p["w"][1])),
     {"w": f32(2, 8, 6)}, X, w=(1,))
dots("a bilinear layer",
     lambda dot, p, x, y: dot("bj,bjo->bo", y, dot("bi,ijo->bjo", x, p["w"])),
     {"w": f32(8, 5, 6)}, X, f32(3, 5), w=Untold((0, 1)))
dots("memory slots",
     lambda dot, p, x: dot("bn,nd->bd", jax.nn.softmax(dot("bd,nd->bn", x, p["k"])), p["v"]),
     {"k": f32(5, 8), "v": f32(5, 6)}, X, k=(1,), v=(0,))
dots("memory slots that are keys and values",
     lambda dot, p, x: dot("bn,nd->bd", jax.nn.softmax(dot("bd,nd->bn", x, p["k"])), p["k"]),
     {"k": f32(5, 8)}, X, k=REFUSED)
dots("a locally connected layer",
     lambda dot, p, x: dot("bok,okf->bof", x[:, np.arange(6)[:, None] + np.arange(3)], p["w"]),
     {"w": f32(6, 3, 5)}, X, w=(1,))
dots("patches gathered for a kernel that is reshaped",
     lambda dot, p, x: dot("bti,io->bto", x[:, np.arange(5)[:, None] + np.arange(3)]
                           .reshape(2, 5, 24), p["w"].reshape(24, 6)),
     {"w": f32(3, 8, 6)}, SEQUENCE, w=(0, 1))
dots("a batch ensemble",
     lambda dot, p, x: dot("ebi,io->ebo", x * p["r"][:, None], p["w"]) * p["s"][:, None]
     + p["b"][:, None],
     {"r": f32(4, 8), "w": W, "s": f32(4, 6), "b": f32(4, 6)}, f32(4, 3, 8),
     r=(), w=(0,), s=(), b=())
dots("a factorization machine",
     lambda dot, p, x: (dot("bi,ik->bk", x, p["v"]) ** 2 - dot("bi,ik->bk", x**2, p["v"] ** 2)
                        ).sum(-1), {"v": f32(8, 4)}, X, v=(0,))
dots("heads in a stack, vmapped and added",
     lambda dot, p, x: jax.vmap(lambda w, b: jnp.tanh(dot("bi,io->bo", x, w) + b))(
         p["w"], p["b"]).sum(0), {"w": f32(4, 8, 6), "b": f32(4, 6)}, X, w=(1,), b=(),
     spellings=[s for s in DOTS if s != "composite"])
case("a filter in Fourier space",
     lambda p, x: jnp.fft.irfft(jnp.fft.rfft(x, axis=1) * lax.complex(p["re"], p["im"]), 7, axis=1),
     {"re": f32(4, 8), "im": f32(4, 8)}, SEQUENCE, re=Untold(()), im=Untold(()))
case("a spectral layer",
     lambda p, x: jnp.fft.irfft(jnp.einsum(
         "bkd,kdf->bkf", jnp.fft.rfft(x, axis=1), lax.complex(p["re"], p["im"])), 7, axis=1),
     {"re": f32(4, 8, 6), "im": f32(4, 8, 6)}, SEQUENCE, re=(1,), im=(1,))
case("splines with a scale of each edge",
     lambda p, x: jnp.einsum("big,iog->bo", jnp.exp(-((x[..., None] - np.linspace(
         -1, 1, 5, dtype=np.float32)) ** 2)), p["c"] * p["s"][..., None]),
     {"c": f32(8, 6, 5), "s": W}, X, c=Untold((0, 2)), s=Untold((0,)))
for how, over in {"vmap": jax.vmap, "map": lambda f: lambda x: lax.map(f, x)}.items():
    case(f"a convolution of width one in {how}",
         lambda p, x, over=over: jnp.tanh(over(lambda x: lax.conv_general_dilated(
             x[None], p["k"], (1,), "SAME", dimension_numbers=("NWC", "WIO", "NWC"))[0])(x)),
         {"k": f32(1, 8, 6)}, SEQUENCE, k=(0, 1))
