"""axes_from_trace on whole models: every parameter, against what its layer is defined to contract.

`expected` of each model is a rule for the names and shapes of that model's own layers, written from
their definitions; the tracer sees neither names nor layers.
"""

import equinox as eqx
import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import keras
import numpy as np
import pytest
from flax import nnx
from trace_support import answers, equinox, f32, haiku, i32, linen, named, nnx_, promoting

from optax_gc._axes import path_name
from optax_gc._trace import axes_from_trace


class Bottleneck(nn.Module):
    features: int
    strides: int

    @nn.compact
    def __call__(self, x):
        norm = lambda: nn.BatchNorm(use_running_average=False)  # noqa: E731
        y = nn.relu(norm()(nn.Conv(self.features, (1, 1), use_bias=False)(x)))
        y = nn.Conv(self.features, (3, 3), self.strides, use_bias=False)(y)
        y = norm()(nn.Conv(2 * self.features, (1, 1), use_bias=False)(nn.relu(norm()(y))))
        if x.shape != y.shape:
            x = nn.Conv(2 * self.features, (1, 1), self.strides, name="project")(x)
        return nn.relu(x + y)


class ResNet(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.Conv(6, (7, 7), 2, name="stem")(x)
        x = nn.max_pool(nn.relu(nn.GroupNorm(2)(x)), (3, 3), (2, 2))
        for features, strides in ((4, 1), (4, 1), (5, 2), (5, 1)):
            x = Bottleneck(features, strides)(x)
        return nn.Dense(3, name="head")(x.mean((1, 2)))


class EncoderBlock(nn.Module):
    @nn.compact
    def __call__(self, x):
        y = nn.MultiHeadDotProductAttention(2, name="attn")(nn.LayerNorm()(x))
        x = x + nn.Dropout(0.1, deterministic=False)(y)
        y = nn.Dense(20, name="up")(nn.LayerNorm()(x))
        return x + nn.Dense(x.shape[-1], name="down")(nn.gelu(y))


class ViT(nn.Module):
    """A vision transformer with an attention-pooling (MAP) or a class-token head."""

    pool: str
    depth: int = 3
    width: int = 12
    patch: int = 4

    @nn.compact
    def __call__(self, x):
        patch = (self.patch, self.patch)
        x = nn.Conv(self.width, patch, patch, padding="VALID", name="patches")(x)
        x = x.reshape(len(x), -1, self.width)
        init = nn.initializers.normal(0.02)
        if self.pool == "token":
            token = self.param("token", init, (1, 1, self.width))
            x = jnp.concatenate([jnp.tile(token, (len(x), 1, 1)), x], 1)
        x = x + self.param("positions", init, (1, x.shape[1], self.width))
        for i in range(self.depth):
            x = EncoderBlock(name=f"block{i}")(x)
        x = nn.LayerNorm(name="norm")(x)
        if self.pool == "token":
            return nn.Dense(5, name="head")(x[:, 0])
        probe = jnp.tile(self.param("probe", init, (1, 1, self.width)), (len(x), 1, 1))
        x = nn.MultiHeadDotProductAttention(2, name="map")(probe, x)
        y = nn.Dense(20, name="map_up")(nn.LayerNorm(name="map_norm")(x))
        return nn.Dense(5, name="head")((x + nn.Dense(self.width)(nn.gelu(y)))[:, 0])


def flax_axes(path, shape):
    """Flax's layers: attention projects from (features) and out of (heads, head_dim)."""
    *_, layer, leaf = ["", *path.split("/")]
    if leaf != "kernel":
        return ()
    if layer == "out":
        return (0, 1)
    return (0,) if layer in ("query", "key", "value") else tuple(range(len(shape) - 1))


class Block(nnx.Module):
    def __init__(self, rngs):
        self.norm1, self.norm2 = nnx.RMSNorm(8, rngs=rngs), nnx.LayerNorm(8, rngs=rngs)
        self.attn = nnx.MultiHeadAttention(2, 8, decode=False, rngs=rngs)
        self.up, self.down = nnx.Linear(8, 12, rngs=rngs), nnx.Linear(12, 8, rngs=rngs)

    def __call__(self, x):
        x = x + self.attn(self.norm1(x), mask=nnx.make_causal_mask(x[..., 0]))
        return x + self.down(nnx.gelu(self.up(self.norm2(x))))


class Transformer(nnx.Module):
    """A decoder whose embedding is tied to its head, with its layers in a row or in a scan."""

    def __init__(self, scanned, rngs):
        self.embed, self.scanned = nnx.Embed(11, 8, rngs=rngs), scanned
        self.positions = nnx.Param(jnp.zeros((7, 8)))
        if scanned:
            stack = nnx.split_rngs(splits=3)(nnx.vmap(Block, in_axes=0, out_axes=0))
            self.blocks = stack(rngs)
        else:
            self.block0, self.block1 = Block(rngs), Block(rngs)
        self.norm = nnx.LayerNorm(8, rngs=rngs)

    def __call__(self, tokens):
        x = self.embed(tokens) + self.positions[...]
        if self.scanned:
            x = nnx.scan(
                nnx.remat(lambda x, block: block(x)), in_axes=(nnx.Carry, 0), out_axes=nnx.Carry
            )(x, self.blocks)
        else:
            x = self.block1(self.block0(x))
        return self.embed.attend(self.norm(x))


def nnx_axes(path, shape):
    if path.startswith("blocks"):  # a leading axis of layers
        return tuple(1 + axis for axis in flax_axes(path, shape[1:]))
    return flax_axes(path, shape)


class Mixer(eqx.Module):
    patches: eqx.nn.Conv2d
    blocks: list
    head: eqx.nn.Linear

    def __init__(self, key):
        keys = iter(jax.random.split(key, 20))
        self.patches = eqx.nn.Conv2d(3, 6, 4, 4, key=next(keys))
        self.blocks = [
            {
                "norm": eqx.nn.LayerNorm((6, 8)),
                "tokens": eqx.nn.MLP(8, 8, 10, 1, key=next(keys)),
                "channels": eqx.nn.MLP(6, 6, 10, 1, key=next(keys)),
            }
            for _ in range(3)
        ]
        self.head = eqx.nn.Linear(6, 5, key=next(keys))

    def __call__(self, image):
        x = self.patches(image).reshape(6, 8)
        for block in self.blocks:
            x = x + jax.vmap(block["tokens"])(block["norm"](x))
            x = x + jax.vmap(block["channels"], 1, 1)(block["norm"](x))
        return self.head(x.mean(1))


def equinox_axes(path, shape):
    layer_norm = "norm" in path
    return tuple(range(1, len(shape))) if path.endswith("weight") and not layer_norm else ()


def haiku_axes(path, shape):
    """Kernels are called w, and have their output last."""
    return tuple(range(len(shape) - 1)) if path.endswith("/w") else ()


def keras_axes(path, shape):
    """A depthwise kernel ends in its channels and their multiplier, other kernels in outputs."""
    if not path.endswith("kernel"):
        return ()
    return (0, 1) if "depthwise" in path else tuple(range(len(shape) - 1))


MODELS = {
    "linen ResNet": (lambda: linen(ResNet(), f32(2, 40, 36, 3)), flax_axes),
    "linen ViT with a MAP head": (lambda: linen(ViT("map"), f32(2, 16, 12, 3)), flax_axes),
    "linen ViT with a class token": (lambda: linen(ViT("token"), f32(2, 16, 12, 3)), flax_axes),
    "nnx transformer": (
        lambda: nnx_(lambda: Transformer(False, nnx.Rngs(0)), i32(2, 7)),
        nnx_axes,
    ),
    "nnx transformer in a scan": (
        lambda: nnx_(lambda: Transformer(True, nnx.Rngs(0)), i32(2, 7)),
        nnx_axes,
    ),
    "equinox MLP-Mixer": (lambda: equinox(Mixer, f32(2, 3, 16, 8)), equinox_axes),
    "haiku ResNet50": (
        lambda: haiku(lambda x: hk.nets.ResNet50(10)(x, is_training=True), f32(2, 64, 64, 3)),
        haiku_axes,
    ),
}


@pytest.mark.parametrize("name", MODELS)
def test_every_parameter_of_a_model_gets_its_layers_axes(name):
    build, expected = MODELS[name]
    with promoting():
        fn, params, *args = build()
    found = answers(fn, params, *args)
    assert found == {name: expected(name, leaf.shape) for name, leaf in named(params).items()}


def test_every_parameter_of_keras_mobilenet_gets_its_layers_axes():
    with keras.StatelessScope(initialize_variables=False):  # shapes are enough
        model = keras.applications.MobileNetV2((64, 64, 3), alpha=0.35, weights=None, classes=7)
    state = [np.ones(v.shape, v.dtype) for v in model.non_trainable_variables]

    def fn(params, x):
        return model.stateless_call(params, state, x, training=True)[0]

    variables = model.trainable_variables
    found = answers(fn, [f32(*v.shape) for v in variables], f32(2, 64, 64, 3))
    expected = [keras_axes(f"{v.path}", v.shape) for v in variables]
    assert len(found) == len(variables)
    assert dict(enumerate(expected)) == {int(i): axes for i, axes in found.items()}


def test_a_vit_b_16_is_traced_from_shapes_alone():
    module = ViT("map", depth=12, width=768, patch=16)
    fn, params, image = linen(module, f32(2, 224, 224, 3))
    axes = axes_from_trace(fn, params, image)
    kernels = jax.tree_util.tree_leaves_with_path(axes, is_leaf=lambda x: isinstance(x, tuple))
    shapes = jax.tree_util.tree_leaves(params)
    assert all(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in shapes)
    for (path, found), shape in zip(kernels, shapes, strict=True):
        assert found == flax_axes(path_name(path), shape.shape)


def test_a_loss_answers_as_its_predictions_do():
    fn, params, image = linen(ViT("map"), f32(2, 16, 12, 3))

    def loss(params, image, labels):
        logits = jax.nn.log_softmax(fn(params, image))
        nll = -jnp.take_along_axis(logits, labels[:, None], 1).mean()
        return nll + 1e-4 * sum((p**2).sum() for p in jax.tree_util.tree_leaves(params))

    assert answers(loss, params, image, i32(2)) == answers(fn, params, image)


def test_bfloat16_compute_answers_as_float32_does():
    module = nn.MultiHeadDotProductAttention(2, dtype=jnp.bfloat16)
    in_float32 = nn.MultiHeadDotProductAttention(2)
    assert answers(*linen(module, f32(3, 7, 8))) == answers(*linen(in_float32, f32(3, 7, 8)))
