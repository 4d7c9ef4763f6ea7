"""Programs in which a wrong answer is near: each is answered exactly or refused, never guessed."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from trace_support import REFUSED, Untold, answers, f32, i32, outcomes

HAZARDS = []
W, X = f32(8, 6), f32(3, 8)
UNUSED = {"w": W, "s": f32()}
KEY = jax.random.key(0)


def hazard(name, fn, params, *args, **expected):
    """Adds a program with the expectation of each parameter."""
    HAZARDS.append(pytest.param(fn, params, args, expected, id=name))


def conv2d(x, w, **kwargs):
    numbers = ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(x, w, (1, 1), "SAME", dimension_numbers=numbers, **kwargs)


def layer_norm(x, scale, bias):
    x = x - x.mean(-1, keepdims=True)
    return x * jax.lax.rsqrt((x**2).mean(-1, keepdims=True) + 1e-6) * scale + bias


# A product and a sum in place of dot_general.
hazard(
    "a dense layer spelled as a product and a sum",
    lambda p, x: (x[:, :, None] * p["w"]).sum(1),
    {"w": W},
    X,
    w=(0,),
)
hazard("a vector of weights", lambda p, x: x @ p["w"], {"w": f32(8)}, X, w=(0,))
hazard(
    "a vector of weights, or a scale followed by a sum",
    lambda p, x: (x * p["w"]).sum(-1),
    {"w": f32(8)},
    X,
    w=Untold((0,)),
)
hazard(
    "a dense layer unrolled over its inputs",
    lambda p, x: sum(x[:, i : i + 1] * p["w"][i] for i in range(8)),
    {"w": W},
    X,
    w=(0,),
)
hazard(
    "a dense layer scanned over its inputs",
    lambda p, x: jax.lax.scan(
        lambda c, xw: (c + xw[0][:, None] * xw[1], None), jnp.zeros((3, 6)), (x.T, p["w"])
    )[0],
    {"w": W},
    X,
    w=(0,),
)
hazard(
    "a dense layer scanned over blocks of its inputs",
    lambda p, x: jax.lax.scan(
        lambda c, wx: (c + wx[1] @ wx[0], None),
        jnp.zeros((3, 6)),
        (p["w"].reshape(2, 4, 6), x.reshape(3, 2, 4).swapaxes(0, 1)),
    )[0],
    {"w": W},
    X,
    w=Untold((0,)),
)


def shifted(x, k):
    return jnp.pad(x, ((0, 0), (k, 0), (0, 0)))[:, : x.shape[1]]


def temporal_conv(params, x):
    y = jnp.zeros_like(x)
    for k in range(4):
        y = y + shifted(x, k) * params["taps"][k]
    return y @ params["out"]


TAPS = {"taps": f32(4, 8), "out": W}
hazard("a depthwise convolution unrolled", temporal_conv, TAPS, f32(2, 7, 8), taps=(0,), out=(0,))
hazard(
    "a depthwise convolution stacked and summed",
    lambda p, x: jnp.stack([shifted(x, k) * p["taps"][k] for k in range(4)]).sum(0) @ p["out"],
    TAPS,
    f32(2, 7, 8),
    taps=(0,),
    out=(0,),
)
hazard(
    "a depthwise convolution as a product with stacked shifts",
    lambda p, x: (
        (jnp.stack([shifted(x, k) for k in range(4)]) * p["taps"][:, None, None]).sum(0) @ p["out"]
    ),
    TAPS,
    f32(2, 7, 8),
    taps=(0,),
    out=(0,),
)
hazard(
    "a depthwise convolution scanned over its taps",
    lambda p, x: jax.lax.scan(lambda c, w: (c + x * w, None), x, p["taps"])[0] @ p["out"],
    TAPS,
    f32(2, 7, 8),
    taps=(0,),
    out=(0,),
)
for name, loop in (
    ("fori_loop", lambda step, x: jax.lax.fori_loop(0, 4, lambda i, c: step(i, c), x * 0)),
    (
        "while_loop",
        lambda step, x: jax.lax.while_loop(
            lambda c: c[0] < 4, lambda c: (c[0] + 1, step(*c)), (0, x * 0)
        )[1],
    ),
):
    hazard(
        f"a depthwise convolution in a {name}",
        lambda p, x, loop=loop: (
            loop(lambda i, c: c + jnp.roll(x, i, 1) * p["taps"][i], x) @ p["out"]
        ),
        TAPS,
        f32(2, 7, 8),
        taps=Untold((0,)),
        out=(0,),
    )
hazard(
    "additive kernels reduced by a maximum",
    lambda p, x: (x[:, :, None] + p["w"]).max(1),
    {"w": W},
    X,
    w=REFUSED,
)
hazard(
    "radial basis functions",
    lambda p, x: jnp.exp(-((x[:, None] - p["w"]) ** 2).sum(-1)),
    {"w": f32(6, 8)},
    X,
    w=Untold((1,)),
)
hazard(
    "graph attention's vectors",
    lambda p, x: (jnp.einsum("nd,dhf->nhf", x, p["w"]) * p["a"]).sum(-1),
    {"w": f32(8, 2, 4), "a": f32(2, 4)},
    X,
    w=(0,),
    a=(1,),
)

hazard(
    "weights made for each example, contracted by a product and a sum",
    lambda p, x, g: (jnp.einsum("be,eio->bio", g, p["w"]) * x[:, :, None]).sum(1),
    {"w": f32(4, 8, 6)},
    X,
    f32(3, 4),
    w=Untold((1,)),
)
hazard(
    "a weight scaled for each example",
    lambda p, x, g: jnp.einsum("bi,bio->bo", x, jnp.einsum("b,io->bio", g, p["w"])),
    {"w": W},
    X,
    f32(3),
    w=(0,),
)

# Data that is added to weights, or multiplies them.
hazard("noise given as data", lambda p, x, n: x @ (p["w"] + n), {"w": W}, X, W, w=Untold((0,)))
hazard(
    "noise before a nonlinearity",
    lambda p, x, n: x @ jnp.tanh(p["w"] + n),
    {"w": W},
    X,
    W,
    w=Untold((0,)),
)
hazard(
    "a weight that is also a bias",
    lambda p, x, z: (x @ p["w"], jnp.tanh(z + p["w"])),
    {"w": W},
    X,
    f32(3, 8, 6),
    w=REFUSED,
)
hazard(
    "noise for each example",
    lambda p, x, n: jnp.einsum("bi,bio->bo", x, p["w"] + n),
    {"w": W},
    X,
    f32(3, 8, 6),
    w=Untold((0,)),
)
hazard(
    "noise drawn from a key",
    lambda p, x, key: x @ (p["w"] + jax.random.normal(key, (8, 6))),
    {"w": W},
    X,
    KEY,
    w=(0,),
)
hazard(
    "dropout of weights",
    lambda p, x, key: x @ jnp.where(jax.random.bernoulli(key, 0.5, (8, 6)), p["w"], 0.0),
    {"w": W},
    X,
    KEY,
    w=(0,),
)
hazard("a mask given as data", lambda p, x, m: x @ (p["w"] * m), {"w": W}, X, W, w=Untold((0,)))


def adapted(params, x, y):
    def loss(params, x):
        return ((jnp.tanh(x @ params["w"] + params["b"]) - y) ** 2).mean()

    grads = jax.grad(loss)(params, x)
    return loss(jax.tree.map(lambda p, g: p - 0.1 * g, params, grads), x)


hazard(
    "weights adapted by an inner gradient step",
    adapted,
    {"w": W, "b": f32(6)},
    X,
    f32(3, 6),
    w=(0,),
    b=(),
)
hazard(
    "weights adapted for each task",
    lambda p, x, y: jax.vmap(lambda x, y: adapted(p, x, y))(x, y),
    {"w": W, "b": f32(6)},
    f32(2, 3, 8),
    f32(2, 3, 6),
    w=Untold((0,)),
    b=(),
)
hazard(
    "a force: the gradient of an energy",
    lambda p, x: jax.grad(lambda x: (jnp.tanh(x @ p["w"]) @ p["v"]).sum())(x),
    {"w": W, "v": f32(6)},
    X,
    w=(0,),
    v=REFUSED,
)
hazard(
    "a prediction and its derivative, as in a physics-informed network",
    lambda p, x: jax.vmap(jax.value_and_grad(lambda x: jnp.tanh(x @ p["w"]) @ p["v"]))(x),
    {"w": W, "v": f32(6)},
    X,
    w=(0,),
    v=(0,),
)
hazard(
    "a forward derivative",
    lambda p, x, t: jax.jvp(lambda x: jnp.tanh(x @ p["w"]), (x,), (t,)),
    {"w": W},
    X,
    X,
    w=(0,),
)

# Weights made from data.
hazard(
    "weights generated by a dense layer",
    lambda p, x, c: jnp.einsum("bi,bio->bo", x, (c @ p["w"]).reshape(3, 8, 5)),
    {"w": f32(4, 40)},
    X,
    f32(3, 4),
    w=Untold((0,)),
)
hazard(
    "weights generated through a nonlinearity",
    lambda p, x, c: jnp.einsum("bi,bio->bo", x, jnp.tanh(c @ p["w"]).reshape(3, 8, 5)),
    {"w": f32(4, 40)},
    X,
    f32(3, 4),
    w=(0,),
)
hazard(
    "a weight plus gated updates of it",
    lambda p, x, g: jnp.einsum(
        "bi,bio->bo", x, jnp.einsum("be,eio->bio", g, p["experts"]) + p["w"]
    ),
    {"experts": f32(4, 8, 6), "w": W},
    X,
    f32(3, 4),
    experts=Untold((1,)),
    w=Untold((0,)),
)
for name, mixed in (
    ("product", lambda g, y: jnp.einsum("be,beo->bo", g, y)),
    ("sum", lambda g, y: (g[..., None] * y).sum(1)),
):
    hazard(
        f"experts' outputs gated, by a {name}",
        lambda p, x, g, mixed=mixed: mixed(g, jnp.einsum("bi,eio->beo", x, p["w"])),
        {"w": f32(4, 8, 6)},
        X,
        f32(3, 4),
        w=Untold((1,)),
    )
hazard(
    "experts with a capacity",
    lambda p, x, d: jnp.einsum(
        "tec,ecd->td",
        d,
        jnp.einsum(
            "ecf,efd->ecd",
            jax.nn.relu(jnp.einsum("ecd,edf->ecf", jnp.einsum("tec,td->ecd", d, x), p["in"])),
            p["out"],
        ),
    ),
    {"in": f32(4, 8, 6), "out": f32(4, 6, 8)},
    f32(10, 8),
    f32(10, 4, 5),
    **{"in": (1,), "out": (1,)},
)

for name, norm in (
    ("norm", lambda w: jnp.sqrt((w**2).sum(1, keepdims=True))),
    ("sum", lambda w: w.sum(1, keepdims=True)),
):
    hazard(
        f"experts mixed and divided by their {name}",
        lambda p, x, g, norm=norm: (lambda w: jnp.einsum("bi,bio->bo", x, w / norm(w)))(
            jnp.einsum("be,eio->bio", g, p["w"])
        ),
        {"w": f32(3, 8, 5)},
        X,
        f32(3, 3),
        w=Untold((1,)),
    )

# Weights cut up, put together, shuffled.
hazard(
    "weights side by side along outputs",
    lambda p, x: x @ jnp.concatenate([p["a"], p["b"]], 1),
    {"a": W, "b": f32(8, 5)},
    X,
    a=(0,),
    b=(0,),
)
hazard(
    "weights side by side along inputs",
    lambda p, x: x @ jnp.concatenate([p["a"], p["b"]], 0),
    {"a": f32(3, 6), "b": f32(5, 6)},
    X,
    a=(0,),
    b=(0,),
)
hazard(
    "slices of outputs",
    lambda p, x: sum(jnp.tanh(x @ w) for w in jnp.split(p["w"], 2, 1)),
    {"w": W},
    X,
    w=(0,),
)
hazard(
    "slices of inputs",
    lambda p, x: jnp.tanh(x[:, :4] @ p["w"][:4]) + jnp.sin(x[:, 4:] @ p["w"][4:]),
    {"w": W},
    X,
    w=REFUSED,
)
hazard(
    "a weight padded",
    lambda p, x: x @ jnp.pad(p["w"], ((1, 2), (0, 1))),
    {"w": f32(5, 6)},
    X,
    w=(0,),
)
hazard("a weight flipped", lambda p, x: x @ p["w"][::-1], {"w": W}, X, w=(0,))
hazard("a weight rolled", lambda p, x: x @ jnp.roll(p["w"], 1, 0), {"w": W}, X, w=Untold((0,)))
hazard("a weight accumulated", lambda p, x: x @ jnp.cumsum(p["w"], 0), {"w": W}, X, w=REFUSED)
hazard("a weight sorted", lambda p, x: x @ jnp.sort(p["w"], 0), {"w": W}, X, w=Untold((0,)))
hazard(
    "a weight in Fourier space",
    lambda p, x: x @ jnp.fft.rfft(p["w"], axis=0).real,
    {"w": f32(14, 6)},
    X,
    w=REFUSED,
)
hazard(
    "rows of a weight permuted by constants",
    lambda p, x: x @ jnp.take(p["w"], np.array([1, 0, 3, 2, 5, 4, 7, 6]), axis=0),
    {"w": W},
    X,
    w=Untold((0,)),
)
hazard("a weight times a column", lambda p, x: x @ (p["w"] * p["w"][:1]), {"w": W}, X, w=REFUSED)
hazard(
    "layers added up",
    lambda p, x: x @ (p["w"][0] + p["w"][1]),
    {"w": f32(2, 8, 6)},
    X,
    w=(1,),
)
hazard(
    "a weight written into a larger one",
    lambda p, x, i: x @ jnp.zeros((8, 6)).at[i].set(p["w"]),
    {"w": f32(5, 6)},
    X,
    i32(5),
    w=Untold((0,)),
)
hazard(
    "a weight repeated for each group",
    lambda p, x: jnp.einsum("gbi,gio->gbo", x, jnp.tile(p["w"], (2, 1)).reshape(2, 8, 6)),
    {"w": W},
    f32(2, 3, 8),
    w=(0,),
)
hazard("a symmetrized weight", lambda p, x: x @ (p["w"] + p["w"].T), {"w": f32(8, 8)}, X, w=REFUSED)
hazard("a Gram matrix", lambda p, x: x @ (p["w"].T @ p["w"]), {"w": f32(6, 8)}, X, w=REFUSED)
hazard(
    "a Kronecker product",
    lambda p, x: x @ jnp.kron(p["a"], p["b"]),
    {"a": f32(2, 3), "b": f32(4, 2)},
    X,
    a=REFUSED,
    b=REFUSED,
)
hazard(
    "a block-diagonal weight",
    lambda p, x: x @ jax.scipy.linalg.block_diag(p["w"][0], p["w"][1]),
    {"w": f32(2, 4, 3)},
    X,
    w=Untold((1,)),
)
hazard(
    "a kernel padded",
    lambda p, x: conv2d(x, jnp.pad(p["w"], ((1, 1), (1, 1), (0, 0), (0, 0)))),
    {"w": f32(3, 3, 4, 6)},
    f32(2, 9, 8, 4),
    w=(0, 1, 2),
)
hazard(
    "a kernel resized",
    lambda p, x: conv2d(x, jax.image.resize(p["w"], (5, 5, 4, 6), "bilinear")),
    {"w": f32(3, 3, 4, 6)},
    f32(2, 9, 8, 4),
    w=Untold((0, 1, 2)),
)
hazard(
    "a filter longer than its input, which jnp.convolve puts in the input's place",
    lambda p, x: jax.vmap(lambda x: jnp.convolve(x, p["w"]))(x),
    {"w": f32(7)},
    f32(2, 3),
    w=Untold((0,)),
)
hazard(
    "positions mixed by constants without a batch",
    lambda p, x: np.ones((5, 7), np.float32) @ (x + p["positions"]) @ p["w"],
    {"positions": f32(7, 8), "w": W},
    f32(7, 8),
    positions=(),
    w=(0,),
)
hazard(
    "complex weights in two halves",
    lambda p, x: jnp.abs(x @ jax.lax.complex(p["w"][0], p["w"][1])),
    {"w": f32(2, 8, 6)},
    jax.ShapeDtypeStruct((3, 8), jnp.complex64),
    w=(1,),
)

# Products of parameters, or with constants.
Q = np.ones((6, 7), np.float32)
hazard(
    "a product with constants, halved",
    lambda p, x: x @ (p["w"] @ Q / 2),
    {"w": W},
    X,
    w=Untold((0,)),
)
hazard(
    "a product with constants, normalized",
    lambda p, x: x @ ((p["w"] @ Q) / jnp.linalg.norm(p["w"] @ Q, axis=0)),
    {"w": W},
    X,
    w=Untold((0,)),
)
hazard(
    "experts mixed and divided by a temperature",
    lambda p, x, g: jnp.einsum("bi,bio->bo", x, jnp.einsum("be,eio->bio", g, p["w"]) / 2),
    {"w": f32(3, 8, 5)},
    X,
    f32(3, 3),
    w=Untold((1,)),
)
AB = {"a": f32(8, 2), "b": f32(2, 6)}
hazard("low-rank weights", lambda p, x: x @ (p["a"] @ p["b"]), AB, X, a=(0,), b=(0,))
hazard("low-rank layers", lambda p, x: (x @ p["a"]) @ p["b"], AB, X, a=(0,), b=(0,))
hazard(
    "low-rank weights of which one is a weight elsewhere",
    lambda p, x, z: x @ (p["a"] @ p["b"]) + z @ p["b"],
    AB,
    X,
    f32(3, 2),
    a=(0,),
    b=(0,),
)
for name, weight, factors, merge in (
    ("masked by", Untold((0,)), REFUSED, lambda w, r: w * jax.nn.sigmoid(r)),
    ("rectified with", (0,), REFUSED, lambda w, r: jax.nn.relu(w + r)),
    ("normalized with", (0,), (0,), lambda w, r: (w + r) / jnp.linalg.norm(w + r, axis=0)),
):
    hazard(
        f"a weight {name} a low-rank product",
        lambda p, x, merge=merge: x @ merge(p["w"], p["a"] @ p["b"]),
        {"w": W, **AB},
        X,
        w=weight,
        a=factors,
        b=factors,
    )
hazard(
    "a weight scaled along its inputs",
    lambda p, x: x @ (p["w"] * p["s"][:, None]),
    {"w": W, "s": f32(8)},
    X,
    w=(0,),
    s=(),
)
hazard(
    "learned latents with a batch",
    lambda p, x: jnp.einsum(
        "bqd,btd->bqt", jnp.broadcast_to(p["latents"], (3, 5, 8)) @ p["q"], x @ p["k"]
    ),
    {"latents": f32(5, 8), "q": f32(8, 4), "k": f32(8, 4)},
    f32(3, 7, 8),
    latents=(),
    q=(0,),
    k=(0,),
)
hazard(
    "a bias of learned queries without a batch",
    lambda p, x: jnp.einsum(
        "hk,shk->hs",
        jnp.einsum("d,dhk->hk", p["probe"], p["q"]) + p["bias"],
        jnp.einsum("sd,dhk->shk", x, p["k"]),
    ),
    {"probe": f32(8), "q": f32(8, 2, 4), "bias": f32(2, 4), "k": f32(8, 2, 4)},
    f32(7, 8),
    probe=Untold(()),
    q=Untold((0,)),
    bias=Untold(()),
    k=(0,),
)
hazard(
    "a product with data over one axis and with constants over the other",
    lambda p, x: (x @ p["w"].T, np.ones(8, np.float32) @ p["w"]),
    {"w": W},
    f32(3, 6),
    w=(1,),
)
hazard(
    "positions computed by a network",
    lambda p, x: (
        (x + jax.nn.relu(np.ones((7, 2), np.float32) @ p["w1"] + p["b1"]) @ p["w2"]) @ p["q"]
    ),
    {"w1": f32(2, 5), "b1": f32(5), "w2": f32(5, 8), "q": W},
    f32(3, 7, 8),
    w1=(0,),
    b1=(),
    w2=(0,),
    q=(0,),
)
hazard(
    "positions resized",
    lambda p, x: (x + jax.image.resize(p["positions"], (7, 8), "bilinear")) @ p["q"],
    {"positions": f32(4, 8), "q": W},
    f32(3, 7, 8),
    positions=(),
    q=(0,),
)


# Derivative rules, penalties, and what no gradient reaches.
@jax.custom_vjp
def rounded(w):
    return (w * 10).astype(jnp.int8).astype(jnp.float32) / 10


rounded.defvjp(lambda w: (rounded(w), None), lambda _, g: (g,))
hazard("a straight-through estimator", lambda p, x: x @ rounded(p["w"]), {"w": W}, X, w=(0,))
hazard(
    "a straight-through estimator by stop_gradient",
    lambda p, x: x @ (p["w"] + jax.lax.stop_gradient(jnp.round(p["w"]) - p["w"])),
    {"w": W},
    X,
    w=(0,),
)


@jax.custom_vjp
def injected(x, w):
    return x


injected.defvjp(lambda x, w: (x, x), lambda x, g: (g, x.T @ g))
hazard("a gradient from nowhere", lambda p, x: injected(x, p["w"]), {"w": f32(8, 8)}, X, w=REFUSED)
hazard(
    "a penalty",
    lambda p, x: (x @ p["w"] + p["b"]).mean() + sum((v**2).sum() for v in p.values()),
    {"w": W, "b": f32(6)},
    X,
    w=(0,),
    b=(),
)
hazard("a parameter that is returned", lambda p, x: (x, p["w"]), {"w": W}, X, w=REFUSED)
hazard("a parameter that is not used", lambda p, x: x * p["s"], UNUSED, X, w=(), s=())
hazard(
    "a product that is not used",
    lambda p, x: (x @ p["w"], x * p["s"])[1],
    UNUSED,
    X,
    w=(),
    s=(),
)
hazard(
    "a chain that is not used",
    lambda p, x: (jnp.tanh(x @ p["w"]), x * p["s"])[1],
    UNUSED,
    X,
    w=(),
    s=(),
)
hazard(
    "a target that no gradient reaches",
    lambda p, x: x[:, :6] * p["s"] - jax.lax.stop_gradient(jnp.tanh(x @ p["w"])),
    UNUSED,
    X,
    w=(),
    s=(),
)
hazard(
    "a soft lookup and its inverse",
    lambda p, x: jnp.tanh(jax.nn.softmax(x) @ p["e"]) @ p["e"].T,
    {"e": W},
    X,
    e=REFUSED,
)
hazard(
    "either of two weights",
    lambda p, x: x @ jax.lax.cond(x.sum() > 0, lambda: p["a"], lambda: p["b"]),
    {"a": W, "b": W},
    X,
    a=(0,),
    b=(0,),
)


# Biases, scales and tables that are contracted as part of activations.
def rotated(q):
    angles = np.outer(np.arange(q.shape[1]), np.ones(q.shape[-1] // 2))[:, None]
    cos, sin = np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)
    a, b = jnp.split(q, 2, -1)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], -1)


def rotary_attention(params, x):
    def rms(t):
        return t * jax.lax.rsqrt((t**2).mean(-1, keepdims=True) + 1e-6)

    q = jnp.einsum("btd,dhk->bthk", x, params["q"]) + params["bias"]
    k = jnp.einsum("btd,dhk->bthk", x, params["k"])
    q, k = rotated(rms(q) * params["scale"]), rotated(rms(k) * params["scales"])
    return jnp.einsum("bthk,bshk->bhts", q, k)


hazard(
    "rotary attention with scaled queries and keys",
    rotary_attention,
    {"q": f32(8, 2, 4), "k": f32(8, 2, 4), "scale": f32(4), "scales": f32(2, 4), "bias": f32(2, 4)},
    f32(3, 7, 8),
    q=(0,),
    k=(0,),
    scale=(),
    scales=(),
    bias=(),
)
hazard(
    "a bias of attention",
    lambda p, x, v: jnp.einsum("bhts,bshk->bthk", jax.nn.softmax(x + p["b"]), v),
    {"b": f32(2, 7, 5)},
    f32(3, 2, 7, 5),
    f32(3, 5, 2, 4),
    b=(),
)
hazard(
    "attention that is learned",
    lambda p, v: jnp.einsum("hts,bshk->bthk", jax.nn.softmax(p["b"]), v),
    {"b": f32(2, 7, 5)},
    f32(3, 5, 2, 4),
    b=(2,),
)
hazard(
    "a table of relative positions",
    lambda p, x, v: jnp.einsum(
        "bhts,bshk->bthk",
        jax.nn.softmax(x + p["t"][np.arange(49).reshape(7, 7) % 13].transpose(2, 0, 1)),
        v,
    ),
    {"t": f32(13, 2)},
    f32(3, 2, 7, 7),
    f32(3, 7, 2, 4),
    t=(),
)
hazard(
    "embeddings of relative positions",
    lambda p, q, i: jnp.einsum("bthd,tsd->bhts", q, p["t"][i]),
    {"t": f32(13, 4)},
    f32(3, 7, 2, 4),
    i32(7, 7),
    t=(),
)
hazard(
    "two embeddings compared",
    lambda p, i, j: jnp.einsum("bd,bnd->bn", p["u"][i], p["v"][j]),
    {"u": f32(11, 8), "v": f32(11, 8)},
    i32(5),
    i32(5, 3),
    u=(),
    v=(),
)
hazard(
    "embeddings averaged",
    lambda p, i, a: jnp.einsum("bn,bnd->bd", a, p["u"][i]) @ p["w"],
    {"u": f32(11, 8), "w": W},
    i32(5, 3),
    f32(5, 3),
    u=(),
    w=(0,),
)
hazard(
    "a token in place of masked ones",
    lambda p, x, m: jnp.where(m[..., None], p["token"], x) @ p["w"],
    {"token": f32(8), "w": W},
    f32(2, 7, 8),
    jax.ShapeDtypeStruct((2, 7), bool),
    token=(),
    w=(0,),
)
hazard(
    "an embedding of each feature",
    lambda p, x: (x[..., None] * p["w"] + p["b"]) @ p["q"],
    {"w": f32(5, 8), "b": f32(5, 8), "q": W},
    f32(3, 5),
    w=(),
    b=(),
    q=(0,),
)
for name, shape in (("for each channel", f32(3, 8)), ("for each layer", f32(3))):
    hazard(
        f"scales of residual branches {name}",
        lambda p, x: jax.lax.scan(lambda h, q: (h + q["scale"] * jnp.tanh(h @ q["w"]), None), x, p)[
            0
        ],
        {"w": f32(3, 8, 8), "scale": shape},
        f32(2, 8),
        w=(1,),
        scale=(),
    )
NORM = {"w1": f32(8, 8), "b1": f32(8), "scale": f32(8), "bias": f32(8), "w2": W, "b2": f32(6)}
for name, x in (("with a batch", X), ("without a batch", f32(8))):
    hazard(
        f"a normalized residual network {name}",
        lambda p, x: (
            layer_norm(x + jnp.tanh(x @ p["w1"] + p["b1"]), p["scale"], p["bias"]) @ p["w2"]
            + p["b2"]
        ),
        NORM,
        x,
        w1=(0,),
        b1=(),
        scale=(),
        bias=(),
        w2=(0,),
        b2=(),
    )
hazard(
    "linear attention from one fused projection",
    lambda p, x: (lambda q, k, v: jnp.einsum("btk,bkv->btv", q, jnp.einsum("btk,btv->bkv", k, v)))(
        *jnp.split(x @ p["w"], 3, -1)
    ),
    {"w": f32(8, 12)},
    f32(2, 7, 8),
    w=(0,),
)
hazard(
    "decay rates of a state space model",
    lambda p, u, dt, b, c: jnp.einsum(
        "bdn,bn->bd", jnp.exp(dt[..., None] * -jnp.exp(p["a"])) * u[..., None] * b[:, None], c
    ),
    {"a": f32(8, 4)},
    X,
    X,
    f32(3, 4),
    f32(3, 4),
    a=(),
)

# Inputs that are not arguments.
hazard(
    "an input that fn closes over",
    lambda p: jnp.tanh(np.ones((3, 8), np.float32) @ p["w"] + p["b"]),
    {"w": W, "b": f32(6)},
    w=(0,),
    b=(),
)
hazard(
    "attention over an input that fn closes over",
    lambda p: (lambda q, k: jax.nn.softmax(jnp.einsum("bthk,bshk->bhts", q + p["b"], k)))(
        *(jnp.einsum("btd,dhk->bthk", np.ones((3, 7, 8), np.float32), p[n]) for n in "qk")
    ),
    {"q": f32(8, 2, 4), "k": f32(8, 2, 4), "b": f32(2, 4)},
    q=(0,),
    k=(0,),
    b=(),
)
hazard(
    "a generator of random inputs",
    lambda p, key: conv2d(
        jax.nn.relu(jax.random.normal(key, (3, 8)) @ p["w"] + p["b"]).reshape(3, 2, 3, 1), p["k"]
    ),
    {"w": W, "b": f32(6), "k": f32(2, 2, 1, 4)},
    KEY,
    w=(0,),
    b=(),
    k=(0, 1, 2),
)


@pytest.mark.parametrize(("fn", "params", "args", "expected"), HAZARDS)
def test_near_misses_are_answered_exactly_or_refused(fn, params, args, expected):
    assert answers(fn, params, *args) == outcomes(expected)
