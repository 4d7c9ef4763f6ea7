"""The layers whose answers are known: (name, expected answers, how to build them).

An expected answer is a tuple of axes, REFUSED where nobody can tell, or Untold.
"""

import equinox as eqx
import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import keras
import numpy as np
from flax import nnx
from trace_support import REFUSED, Untold, equinox, f32, haiku, i32, keras_, linen, nnx_

CASES = []
NHWC = ("NHWC", "HWIO", "NHWC")


def case(name, build, **expected):
    """Adds a case; `__` in a keyword stands for `/` in a path."""
    CASES.append((name, build, {path.replace("__", "/"): v for path, v in expected.items()}))


def raw(name, fn, params, *args, **expected):
    """Adds a case of raw jax.numpy."""
    case(name, lambda: (fn, params, *args), **expected)


def conv2d(x, w, **kwargs):
    return jax.lax.conv_general_dilated(x, w, (1, 1), "SAME", dimension_numbers=NHWC, **kwargs)


def built(layer, *shape):
    with keras.StatelessScope(initialize_variables=False):  # shapes are enough
        layer.build(shape)
    return keras_(layer, f32(*shape))


def projections(prefix, expected, kernel="kernel", bias="bias"):
    """Expected answers of several projections, which all have a bias."""
    return {f"{prefix}{name}__{kernel}": axes for name, axes in expected.items()} | {
        f"{prefix}{name}__{bias}": () for name in expected
    }


DENSE = {"kernel": (0,), "bias": ()}
ATTENTION = projections("", {"query": (0,), "key": (0,), "value": (0,), "out": (0, 1)})

# 1-2: dense layers and convolutions of every layout.
case("row 1: linen Dense", lambda: linen(nn.Dense(5), f32(3, 8)), **DENSE)
case(
    "row 1: nnx Linear",
    lambda: nnx_(lambda: nnx.Linear(8, 5, rngs=nnx.Rngs(0)), f32(3, 8)),
    **DENSE,
)
case(
    "row 1: haiku Linear",
    lambda: haiku(lambda x: hk.Linear(5)(x), f32(3, 8)),
    linear__w=(0,),
    linear__b=(),
)
case("row 1: keras Dense", lambda: built(keras.layers.Dense(5), 3, 8), **{"0": (0,), "1": ()})
case(
    "row 2: equinox Linear",
    lambda: equinox(lambda key: eqx.nn.Linear(8, 5, key=key), f32(3, 8)),
    weight=(1,),
    bias=(),
)
case(
    "row 2: equinox Linear without a batch",
    lambda: equinox(
        lambda key: eqx.nn.Linear(8, 5, key=key), f32(8), call=lambda model, x: model(x)
    ),
    weight=(1,),
    bias=(),
)
case(
    "row 2: equinox Conv2d",
    lambda: equinox(lambda key: eqx.nn.Conv2d(3, 6, 3, key=key), f32(2, 3, 9, 8)),
    weight=(1, 2, 3),
    bias=(),
)

# 3-4: attention projections, with head axes in kernels and biases.
case(
    "rows 3 and 4: linen attention",
    lambda: linen(nn.MultiHeadDotProductAttention(2, qkv_features=8, out_features=6), f32(3, 7, 8)),
    **ATTENTION,
)
case(
    "rows 3 and 4: linen attention without a batch",
    lambda: linen(nn.MultiHeadDotProductAttention(2, qkv_features=8, out_features=6), f32(7, 8)),
    **ATTENTION,
)
case(
    "rows 3 and 21: linen attention with normalized queries and keys",
    lambda: linen(nn.MultiHeadDotProductAttention(2, normalize_qk=True), f32(3, 7, 8)),
    **ATTENTION,
    query_ln__scale=(),
    key_ln__scale=(),
)
case(
    "rows 3 and 4: nnx attention",
    lambda: nnx_(
        lambda: nnx.MultiHeadAttention(
            num_heads=2,
            in_features=8,
            qkv_features=8,
            out_features=6,
            decode=False,
            rngs=nnx.Rngs(0),
        ),
        f32(3, 7, 8),
    ),
    **ATTENTION,
)
case(
    "row 3: haiku attention",
    lambda: haiku(
        lambda x: hk.MultiHeadAttention(
            2, 4, w_init=hk.initializers.Constant(1.0), model_size=6, name="attn"
        )(x, x, x),
        f32(3, 7, 8),
    ),
    **projections("attn__", {"query": (0,), "key": (0,), "value": (0,), "linear": (0,)}, "w", "b"),
)
case(
    "row 3: equinox attention",
    lambda: equinox(
        lambda key: eqx.nn.MultiheadAttention(2, 8, output_size=6, key=key),
        f32(3, 7, 8),
        call=lambda model, x: jax.vmap(lambda x: model(x, x, x))(x),
    ),
    query_proj__weight=(1,),
    key_proj__weight=(1,),
    value_proj__weight=(1,),
    output_proj__weight=(1,),
)


def keras_attention():
    layer = keras.layers.MultiHeadAttention(2, 4)
    with keras.StatelessScope(initialize_variables=False):
        layer.build((3, 7, 8), (3, 7, 8))
    fn, params, x = keras_(layer, f32(3, 7, 8))
    return lambda params, x: fn(params, x, x), params, x


case(
    "row 3: keras attention",
    keras_attention,
    **{"0": (0,), "1": (), "2": (0,), "3": (), "4": (0,), "5": (), "6": (0, 1), "7": ()},
)

# 5-6: general dense layers.
case(
    "row 5: linen DenseGeneral with a batch axis",
    lambda: linen(nn.DenseGeneral(6, batch_dims=(0,)), f32(3, 4, 2)),
    kernel=(1,),
    bias=(),
)
case(
    "row 5: nnx LinearGeneral over two axes",
    lambda: nnx_(
        lambda: nnx.LinearGeneral((2, 4), 6, axis=(-2, -1), rngs=nnx.Rngs(0)), f32(3, 2, 4)
    ),
    kernel=(0, 1),
    bias=(),
)
case(
    "row 6: linen Einsum",
    lambda: linen(nn.Einsum((2, 3, 8), "...i,hki->...hk", use_bias=False), f32(5, 8)),
    kernel=(2,),
)
case(
    "row 6: nnx Einsum",
    lambda: nnx_(lambda: nnx.Einsum("...i,hki->...hk", (2, 3, 8), rngs=nnx.Rngs(0)), f32(5, 8)),
    kernel=(2,),
)

# 7-10: convolutions.
for window, image in (((5,), (2, 11, 4)), ((3, 3), (2, 9, 8, 4)), ((3, 3, 2), (2, 5, 6, 7, 4))):
    for groups in (1, 2, 4):
        fan_in = tuple(range(len(window) + 1))
        name = f"row 7: {{}} {len(window)}-D convolution in {groups} groups"
        case(
            name.format("linen"),
            lambda w=window, x=image, g=groups: linen(
                nn.Conv(8, w, feature_group_count=g, padding="VALID"), f32(*x)
            ),
            kernel=fan_in,
            bias=(),
        )
        case(
            name.format("nnx"),
            lambda w=window, x=image, g=groups: nnx_(
                lambda: nnx.Conv(4, 8, w, feature_group_count=g, padding="VALID", rngs=nnx.Rngs(0)),
                f32(*x),
            ),
            kernel=fan_in,
            bias=(),
        )
for layout in ("NHWC", "NCHW"):
    case(
        f"row 7: haiku Conv2D of {layout} images",
        lambda layout=layout: haiku(
            lambda x: hk.Conv2D(6, 3, data_format=layout, padding="VALID")(x),
            f32(*((2, 9, 8, 4) if layout == "NHWC" else (2, 4, 9, 8))),
        ),
        conv2_d__w=(0, 1, 2),
        conv2_d__b=(),
    )
case(
    "row 7: haiku DepthwiseConv2D",
    lambda: haiku(lambda x: hk.DepthwiseConv2D(2, 3, padding="VALID")(x), f32(2, 9, 8, 4)),
    depthwise_conv2_d__w=(0, 1, 2),
    depthwise_conv2_d__b=(),
)
case(
    "row 7: keras Conv2D",
    lambda: built(keras.layers.Conv2D(6, 3), 2, 9, 8, 4),
    **{"0": (0, 1, 2), "1": ()},
)
case(
    "row 8: keras DepthwiseConv2D",
    lambda: built(keras.layers.DepthwiseConv2D(3, depth_multiplier=2), 2, 9, 8, 4),
    **{"0": (0, 1), "1": ()},
)
case(
    "row 8: keras SeparableConv2D",
    lambda: built(keras.layers.SeparableConv2D(6, 3, depth_multiplier=2), 2, 9, 8, 4),
    **{"0": (0, 1), "1": (0, 1, 2), "2": ()},
)
case(
    "row 9: linen ConvTranspose",
    lambda: linen(nn.ConvTranspose(6, (3, 3), padding="VALID"), f32(2, 9, 8, 4)),
    kernel=(0, 1, 2),
    bias=(),
)
case(
    "row 9: linen ConvTranspose with a transposed kernel",
    lambda: linen(
        nn.ConvTranspose(6, (3, 3), strides=(2, 2), padding="VALID", transpose_kernel=True),
        f32(2, 9, 8, 4),
    ),
    kernel=(0, 1, 3),
    bias=(),
)
case(
    "row 9: nnx ConvTranspose with a transposed kernel",
    lambda: nnx_(
        lambda: nnx.ConvTranspose(
            4, 6, (3, 3), strides=(2, 2), padding="VALID", transpose_kernel=True, rngs=nnx.Rngs(0)
        ),
        f32(2, 9, 8, 4),
    ),
    kernel=(0, 1, 3),
    bias=(),
)
case(
    "row 9: keras Conv2DTranspose",
    lambda: built(keras.layers.Conv2DTranspose(6, 3, strides=2), 2, 9, 8, 4),
    **{"0": (0, 1, 3), "1": ()},
)
case(
    "row 9: haiku Conv2DTranspose",
    lambda: haiku(
        lambda x: hk.Conv2DTranspose(6, 3, stride=2, padding="VALID")(x), f32(2, 9, 8, 4)
    ),
    conv2_d_transpose__w=(0, 1, 3),
    conv2_d_transpose__b=(),
)
case(
    "row 9: equinox ConvTranspose2d",
    lambda: equinox(
        lambda key: eqx.nn.ConvTranspose2d(4, 6, 3, stride=2, key=key), f32(2, 4, 9, 8)
    ),
    weight=(1, 2, 3),
    bias=(),
)
case(
    "row 10: linen ConvLocal",
    lambda: linen(nn.ConvLocal(6, (3, 3), padding="VALID"), f32(2, 8, 8, 4)),
    kernel=(2,),
    bias=(),
)


# 11-14: stacks, ensembles, fused and folded projections.
class Residual(nn.Module):
    @nn.compact
    def __call__(self, x, _):
        return x + nn.Dense(8, name="dense")(jnp.tanh(x)), None


class SelfAttention(nn.Module):
    @nn.compact
    def __call__(self, x, _):
        return x + nn.MultiHeadDotProductAttention(2, name="attn")(x), None


class Stack(nn.Module):
    block: type
    axis: int

    @nn.compact
    def __call__(self, x):
        layers = nn.scan(
            self.block,
            variable_axes={"params": self.axis},
            split_rngs={"params": True},
            length=3,
        )
        return layers(name="layers")(x, None)[0]


case(
    "row 11: linen scan stacked on axis 0",
    lambda: linen(Stack(Residual, 0), f32(2, 8)),
    layers__dense__kernel=(1,),
    layers__dense__bias=(),
)
case(
    "row 11: linen scan stacked on axis 1",
    lambda: linen(Stack(SelfAttention, 1), f32(2, 7, 8)),
    **projections("layers__attn__", {"query": (0,), "key": (0,), "value": (0,), "out": (0, 2)}),
)
for batched, image in ((0, f32(2, 4, 9, 8, 4)), (None, f32(4, 9, 8, 4))):
    case(
        f"row 12: linen vmap of a grouped Conv over images batched on {batched}",
        lambda batched=batched, image=image: linen(
            nn.vmap(
                nn.Conv,
                variable_axes={"params": 0},
                split_rngs={"params": True},
                in_axes=batched,
                axis_size=2,
            )(6, (3, 3), feature_group_count=2, padding="VALID"),
            image,
        ),
        kernel=(1, 2, 3),
        bias=(),
    )


def fused_transformer(params, x):
    def layer(h, w):
        q, k, v = jnp.einsum("btd,dzhk->zbthk", h, w["qkv"])
        attention = jax.nn.softmax(jnp.einsum("bthk,bshk->bhts", q, k))
        o = jnp.einsum("bhts,bshk->bthk", attention, v)
        return h + o.reshape(*o.shape[:2], -1) @ w["out"], None

    return jax.lax.scan(layer, x, params)[0]


raw(
    "row 13: fused projections in a scan",
    fused_transformer,
    {"qkv": f32(3, 8, 3, 2, 4), "out": f32(3, 8, 8)},
    f32(2, 7, 8),
    qkv=(1,),
    out=(1,),
)
raw(
    "row 14: an out-projection reshaped to heads",
    lambda p, x: jnp.einsum("bthk,hkd->btd", x, p["w"].reshape(2, 4, 6)),
    {"w": f32(8, 6)},
    f32(3, 7, 2, 4),
    w=(0,),
)

# 15-17: embeddings, tied embeddings, learned queries.
case("row 15: linen Embed", lambda: linen(nn.Embed(11, 8), i32(3, 7)), embedding=())
for style in ("ARRAY_INDEX", "ONE_HOT"):
    case(
        f"row 15: haiku Embed by {style}",
        lambda style=style: haiku(lambda x: hk.Embed(11, 8, lookup_style=style)(x), i32(3, 7)),
        embed__embeddings=(),
    )
raw(
    "row 15: one-hot matrix product",
    lambda p, x: jax.nn.one_hot(x, 11) @ p["e"],
    {"e": f32(11, 8)},
    i32(3, 7),
    e=(),
)


class Tied(nn.Module):
    @nn.compact
    def __call__(self, x):
        embed = nn.Embed(11, 8, name="embed")
        return embed.attend(jnp.tanh(nn.Dense(8, name="dense")(embed(x))))


case(
    "row 16: linen tied embedding",
    lambda: linen(Tied(), i32(3, 7)),
    embed__embedding=(),
    dense__kernel=(0,),
    dense__bias=(),
)


class AttentionPooling(nn.Module):
    @nn.compact
    def __call__(self, x):
        probe = self.param("probe", nn.initializers.ones, (1, 1, x.shape[-1]))
        probe = jnp.tile(probe, [len(x), 1, 1])
        return nn.MultiHeadDotProductAttention(2, name="attn")(probe, x)[:, 0]


case(
    "row 17: linen attention pooling",
    lambda: linen(AttentionPooling(), f32(3, 7, 8)),
    probe=(),
    **projections("attn__", {"query": (0,), "key": (0,), "value": (0,), "out": (0, 1)}),
)


# 18: experts.
def top_k_experts(params, x):
    gates, chosen = jax.lax.top_k(jax.nn.softmax(x @ params["router"]), 2)
    h = jnp.einsum("td,tkdf->tkf", x, params["w"][chosen])
    return jnp.einsum("tkf,tk->tf", h, gates)


raw(
    "row 18: the top experts chosen by index",
    top_k_experts,
    {"router": f32(8, 4), "w": f32(4, 8, 16)},
    f32(5, 8),
    router=(0,),
    w=(1,),
)
raw(
    "row 18: ragged_dot",
    lambda p, x, sizes: jax.lax.ragged_dot(x, p["w"], sizes),
    {"w": f32(3, 8, 5)},
    f32(6, 8),
    i32(3),
    w=(1,),
)
raw(
    "row 18: a combine fused into one contraction",
    lambda p, h: jnp.einsum("tef,efd->td", h, p["w"]),
    {"w": f32(4, 16, 8)},
    f32(5, 4, 16),
    w=(0, 1),
)


# 19-20: weights that are normalized, standardized or modulated.
class Wrapped(nn.Module):
    norm: type

    @nn.compact
    def __call__(self, x):
        update = {"update_stats": True} if self.norm is nn.SpectralNorm else {}
        conv = nn.Conv(6, (3, 3), name="conv")
        return self.norm(conv, name="norm")(x, **update)


case(
    "row 19: linen SpectralNorm",
    lambda: linen(Wrapped(nn.SpectralNorm), f32(2, 9, 8, 4)),
    conv__kernel=(0, 1, 2),
    conv__bias=(),
)
case(
    "row 19: linen WeightNorm",
    lambda: linen(Wrapped(nn.WeightNorm), f32(2, 9, 8, 4)),
    conv__kernel=(0, 1, 2),
    conv__bias=(),
    **{"norm__conv/kernel/scale": ()},
)
case(
    "row 19: equinox WeightNorm",
    lambda: equinox(lambda key: eqx.nn.WeightNorm(eqx.nn.Linear(8, 5, key=key)), f32(3, 8)),
    layer__weight=(1,),
    layer__bias=(),
    g=(),
)


def standardized(params, x):
    w = params["w"]
    w = (w - w.mean((0, 1, 2))) / jnp.sqrt(w.var((0, 1, 2)) + 1e-5)
    return conv2d(x, w * params["gain"])


raw(
    "row 19: a convolution with standardized weights",
    standardized,
    {"w": f32(3, 3, 4, 6), "gain": f32(6)},
    f32(2, 9, 8, 4),
    w=(0, 1, 2),
    gain=(),
)


def modulated(params, x, style):
    def one(x, scale):
        w = params["w"] * scale[:, None]
        w = w * jax.lax.rsqrt((w**2).sum((0, 1, 2)) + 1e-8)
        return conv2d(x[None], w)[0]

    return jax.vmap(one)(x, style @ params["affine"] + params["bias"])


raw(
    "row 20: StyleGAN2's modulated convolution",
    modulated,
    {"affine": f32(8, 4), "bias": f32(4), "w": f32(3, 3, 4, 7)},
    f32(2, 9, 8, 4),
    f32(2, 8),
    affine=(0,),
    bias=(),
    w=(0, 1, 2),
)


# 21-23: scales, codebooks, initial states, positions.
def scaled_attention(params, x):
    def rms(t):
        return t * jax.lax.rsqrt((t**2).mean(-1, keepdims=True) + 1e-6)

    q = rms(jnp.einsum("btd,dhk->bthk", x, params["q"])) * params["scale"]
    k = rms(jnp.einsum("btd,dhk->bthk", x, params["k"]))
    return jax.nn.softmax(jnp.einsum("bthk,bshk->bhts", q, k))


raw(
    "row 21: a scale of queries for each head",
    scaled_attention,
    {"q": f32(8, 2, 4), "k": f32(8, 2, 4), "scale": f32(2, 4)},
    f32(3, 7, 8),
    q=(0,),
    k=(0,),
    scale=(),
)


def quantized(params, x):
    distances = ((x[:, None] - params["codes"]) ** 2).sum(-1)
    code = params["codes"][jnp.argmin(distances, -1)]
    passed = x + jax.lax.stop_gradient(code - x)
    return passed, ((code - jax.lax.stop_gradient(x)) ** 2).mean()


raw("row 22: a VQ codebook", quantized, {"codes": f32(12, 8)}, f32(5, 8), codes=())
raw(
    "row 22: a VQ codebook searched by a product",
    lambda p, x: x + p["c"][jnp.argmin((p["c"] ** 2).sum(-1) - 2 * x @ p["c"].T, -1)],
    {"c": f32(12, 8)},
    f32(5, 8),
    c=(),
)
raw(
    "row 22: a frozen weight",
    lambda p, x: x @ jax.lax.stop_gradient(p["frozen"]) @ p["w"],
    {"frozen": f32(8, 6), "w": f32(6, 5)},
    f32(3, 8),
    frozen=(),
    w=(0,),
)


def unrolled_rnn(params, x):
    h = params["h0"]
    for t in range(x.shape[1]):
        h = jnp.tanh(x[:, t] @ params["wx"] + h @ params["wh"])
    return h


raw(
    "row 23: the learned initial state of an unrolled RNN",
    unrolled_rnn,
    {"h0": f32(1, 6), "wx": f32(5, 6), "wh": f32(6, 6)},
    f32(4, 3, 5),
    h0=(),
    wx=(0,),
    wh=(0,),
)


def embedded_patches(params, x):
    cls = jnp.broadcast_to(params["cls"], (len(x), 1, 8))
    x = jnp.concatenate([cls, x + params["positions"]], 1)
    x = x - x.mean(-1, keepdims=True)
    return (x * jax.lax.rsqrt((x**2).mean(-1, keepdims=True) + 1e-6) @ params["w"])[:, 0]


raw(
    "row 23: a class token and positions",
    embedded_patches,
    {"cls": f32(1, 1, 8), "positions": f32(1, 16, 8), "w": f32(8, 5)},
    f32(3, 16, 8),
    cls=(),
    positions=(),
    w=(0,),
)

# 24: recurrent cells.
LSTM = {f"cell__{side}{gate}__kernel": (0,) for side in "hi" for gate in "figo"}
for cell in (nn.LSTMCell, nn.OptimizedLSTMCell):
    case(
        f"row 24: linen RNN of {cell.__name__}",
        lambda cell=cell: linen(nn.RNN(cell(6)), f32(3, 7, 8)),
        **LSTM,
        **{f"cell__h{gate}__bias": () for gate in "figo"},
    )
case(
    "row 24: linen RNN of GRUCell",
    lambda: linen(nn.RNN(nn.GRUCell(6)), f32(3, 7, 8)),
    **{f"cell__{side}{gate}__kernel": (0,) for side in "hi" for gate in "nrz"},
    **{f"cell__{name}__bias": () for name in ("hn", "in", "ir", "iz")},
)
case(
    "row 24: nnx RNN of LSTMCell",
    lambda: nnx_(lambda: nnx.RNN(nnx.LSTMCell(8, 6, rngs=nnx.Rngs(0))), f32(3, 7, 8)),
    **{f"cell/i{gate}/kernel": (0,) for gate in ("f_", "g", "i", "o")},
    **{f"cell__h{gate}__kernel": (0,) for gate in "fgio"},
    **{f"cell__h{gate}__bias": () for gate in "fgio"},
)
case(
    "row 24: nnx RNN of OptimizedLSTMCell",
    lambda: nnx_(lambda: nnx.RNN(nnx.OptimizedLSTMCell(8, 6, rngs=nnx.Rngs(0))), f32(3, 7, 8)),
    cell__dense_h__kernel=(0,),
    cell__dense_h__bias=(),
    cell__dense_i__kernel=(0,),
)
case(
    "row 24: nnx RNN of GRUCell",
    lambda: nnx_(lambda: nnx.RNN(nnx.GRUCell(8, 6, rngs=nnx.Rngs(0))), f32(3, 7, 8)),
    cell__dense_h__kernel=(0,),
    cell__dense_i__kernel=(0,),
    cell__dense_i__bias=(),
)


def haiku_rnn(cell, unroll):
    def run(x):
        core = cell(6)
        return unroll(core, x, core.initial_state(x.shape[1]))[0]

    return lambda: haiku(run, f32(7, 3, 8))


for unroll in (hk.dynamic_unroll, hk.static_unroll):
    case(
        f"row 24: haiku LSTM by {unroll.__name__}",
        haiku_rnn(hk.LSTM, unroll),
        lstm__linear__w=(0,),
        lstm__linear__b=(),
    )
    case(
        f"row 24: haiku GRU by {unroll.__name__}",
        haiku_rnn(hk.GRU, unroll),
        gru__w_i=(0,),
        gru__w_h=(0,),
        gru__b=(),
    )
    case(
        f"row 24: haiku VanillaRNN by {unroll.__name__}",
        haiku_rnn(hk.VanillaRNN, unroll),
        vanilla_rnn__linear__w=(0,),
        vanilla_rnn__linear__b=(),
        vanilla_rnn__linear_1__w=(0,),
        vanilla_rnn__linear_1__b=(),
    )


def equinox_rnn(cell):
    def call(model, x):
        h = jnp.zeros(6)
        h = (h, h) if cell is eqx.nn.LSTMCell else h
        step = lambda h, x: (model(x, h), None)  # noqa: E731
        return jax.vmap(lambda x: jax.lax.scan(step, h, x)[0])(x)

    return lambda: equinox(lambda key: cell(8, 6, key=key), f32(3, 7, 8), call=call)


case(
    "row 24: equinox LSTMCell in a scan",
    equinox_rnn(eqx.nn.LSTMCell),
    weight_ih=(1,),
    weight_hh=(1,),
    bias=(),
)
case(
    "row 24: equinox GRUCell in a scan",
    equinox_rnn(eqx.nn.GRUCell),
    weight_ih=(1,),
    weight_hh=(1,),
    bias=(),
    bias_n=(),
)
for layer in (keras.layers.LSTM, keras.layers.GRU):
    for unroll in (False, True):
        case(
            f"row 24: keras {layer.__name__}{' unrolled' if unroll else ''}",
            lambda layer=layer, unroll=unroll: built(layer(6, unroll=unroll), 3, 7, 8),
            **{"0": (0,), "1": (0,), "2": ()},
        )

# 25: what JAX wraps functions in.
W, X = {"w": f32(8, 5)}, f32(3, 8)


@jax.custom_vjp
def product(x, w):
    return x @ w


product.defvjp(lambda x, w: (x @ w, (x, w)), lambda r, g: (g @ r[1].T, r[0].T @ g))
raw("row 25: remat", jax.checkpoint(lambda p, x: jnp.tanh(x @ p["w"])), W, X, w=(0,))
raw("row 25: custom_vjp", lambda p, x: product(x, p["w"]), W, X, w=(0,))
raw(
    "row 25: cond with equal uses",
    lambda p, x: jax.lax.cond(x[0, 0] > 0, lambda w: x @ w, lambda w: jnp.sin(x) @ w, p["w"]),
    W,
    X,
    w=(0,),
)
raw(
    "row 25: while",
    lambda p, x: jax.lax.while_loop(
        lambda c: c[0] < x[0, 0], lambda c: (c[0] + 1, jnp.tanh(c[1] @ p["w"])), (0.0, x)
    )[1],
    {"w": f32(8, 8)},
    X,
    w=(0,),
)
raw(
    "row 25: fori_loop over stacked weights",
    lambda p, x: jax.lax.fori_loop(0, 3, lambda i, h: jnp.tanh(h @ p["w"][i]), x),
    {"w": f32(3, 8, 8)},
    f32(4, 8),
    w=(1,),
)
raw("row 25: nested jit", jax.jit(lambda p, x: jax.jit(jnp.matmul)(x, p["w"])), W, X, w=(0,))


def sharded(params, x, in_specs, out=None):
    spec = jax.sharding.PartitionSpec
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:2]), ("d",))
    if hasattr(jax, "shard_map"):
        from jax import shard_map
    else:
        from jax.experimental.shard_map import shard_map
    f = shard_map(
        lambda w, x: jnp.tanh(x @ w),
        mesh=mesh,
        in_specs=(spec(*in_specs[0]), spec(*in_specs[1])),
        out_specs=spec(*(out or (in_specs[1][0], in_specs[0][1]))),
    )
    return f(params["w"], x)


raw(
    "row 25: shard_map over the batch",
    lambda p, x: sharded(p, x, ((None, None), ("d", None))),
    W,
    f32(4, 8),
    w=(0,),
)
raw(
    "row 25: shard_map over the outputs",
    lambda p, x: sharded(p, x, ((None, "d"), (None, None))),
    {"w": f32(8, 6)},
    f32(4, 8),
    w=(0,),
)

raw(
    "row 25: shard_map over the inputs, and each shard an output of its own",
    lambda p, x: sharded(p, x, (("d", None), (None, "d")), out=(None, "d")),
    W,
    f32(4, 8),
    w=REFUSED,
)

# 26-32: what cannot be told.
raw(
    "row 26: a weight and its transpose",
    lambda p, x: jnp.tanh(x @ p["w"]) @ p["w"].T,
    W,
    X,
    w=REFUSED,
)
raw(
    "row 27: heads folded into the fan-in axis",
    lambda p, x: jnp.einsum("bhk,hkd->bhd", x, p["w"].reshape(2, 4, 6)),
    {"w": f32(8, 6)},
    f32(3, 2, 4),
    w=REFUSED,
)
raw(
    "row 28: an orthogonal factor",
    lambda p, x: x @ jnp.linalg.qr(p["w"])[0],
    {"w": f32(8, 8)},
    X,
    w=REFUSED,
)
raw(
    "row 29: merged LoRA",
    lambda p, x: x @ (p["w"] + p["a"] @ p["b"]),
    {"w": f32(8, 6), "a": f32(8, 2), "b": f32(2, 6)},
    X,
    w=(0,),
    a=(0,),
    b=(0,),
)


def keras_lora():
    layer = keras.layers.Dense(6)
    layer.build((3, 8))
    layer.enable_lora(2)
    return keras_(layer, f32(3, 8))


case("row 29: keras enable_lora", keras_lora, **{"0": (), "1": (0,), "2": (0,)})
raw(
    "row 30: learned latents without a batch",
    lambda p, x: jax.nn.softmax((p["latents"] @ p["q"]) @ (x @ p["k"]).T) @ x,
    {"latents": f32(6, 8), "q": f32(8, 4), "k": f32(5, 4)},
    f32(7, 5),
    latents=REFUSED,
    q=REFUSED,
    k=(0,),
)
raw(
    "row 31: a weight times a constant",
    lambda p, x: x @ (p["w"] @ np.ones((6, 7), np.float32)),
    {"w": f32(8, 6)},
    X,
    w=Untold((0,)),
)
raw(
    "row 32: a weight transposed in every step of a scan",
    lambda p, x: jax.lax.scan(
        lambda c, _: ((jnp.tanh(c[0] @ c[1]), c[1].T), None), (x, p["w"]), None, length=3
    )[0][0],
    {"w": f32(8, 8)},
    X,
    w=REFUSED,
)

# 33-35: degenerate and decomposed weights.
case(
    "row 33: a dense layer of one input", lambda: linen(nn.Dense(5), f32(3, 1)), kernel=(), bias=()
)
CONDITIONAL = {"router": f32(8, 3), "w": f32(3, 8, 5)}


def conditional(mixture):
    def fn(params, x):
        gates = jax.nn.softmax(x @ params["router"])
        return jnp.einsum("bi,bio->bo", x, mixture(gates, params["w"]))

    return fn


raw(
    "row 34: gated experts mixed by a product",
    conditional(lambda g, w: jnp.einsum("be,eio->bio", g, w)),
    CONDITIONAL,
    f32(4, 8),
    router=(0,),
    w=Untold((1,)),
)
raw(
    "row 34: gated experts mixed by a sum",
    conditional(lambda g, w: (g[:, :, None, None] * w).sum(1)),
    CONDITIONAL,
    f32(4, 8),
    router=(0,),
    w=Untold((1,)),
)
raw(
    "row 34: gated convolution kernels",
    lambda p, x: jax.vmap(
        lambda x: conv2d(
            x[None], jnp.einsum("e,ehwio->hwio", jax.nn.softmax(x.mean((0, 1)) @ p["r"]), p["w"])
        )[0]
    )(x),
    {"r": f32(4, 3), "w": f32(3, 3, 3, 4, 6)},
    f32(2, 9, 8, 4),
    r=(0,),
    w=REFUSED,
)
raw(
    "row 35: group-wise quantization scales",
    lambda p, x: x @ (np.ones((2, 4, 6), np.float32) * p["s"]).reshape(8, 6),
    {"s": f32(2, 1, 6)},
    X,
    s=Untold(()),
)
raw(
    "row 35: rank-1 CP factors",
    lambda p, x: x @ (p["a"][:, None] * p["b"]),
    {"a": f32(8), "b": f32(5)},
    X,
    a=Untold((0,)),
    b=(),
)
raw(
    "row 35: circulant gathers",
    lambda p, x: x @ p["c"][(np.arange(8)[:, None] - np.arange(8)) % 8],
    {"c": f32(8)},
    X,
    c=Untold((0,)),
)
