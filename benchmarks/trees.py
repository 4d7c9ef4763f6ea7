"""Parameter trees of well-known models, as shapes with the axes to average over.

Only shapes and axes: nothing is allocated until `arrays` is asked for it.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp


class Parameter(NamedTuple):
    """The shape of a parameter, and its fan-in axes: ``()`` for what is no kernel."""

    shape: tuple[int, ...]
    axes: tuple[int, ...] = ()


def resnet50(classes: int = 1000) -> dict[str, Any]:
    """ResNet-50 (He et al., arXiv 1512.03385, table 1): 25.6 M parameters in 161 arrays."""

    def conv(size: int, fan_in: int, out: int) -> dict[str, Any]:
        norm = {"scale": Parameter((out,)), "bias": Parameter((out,))}
        return {"kernel": Parameter((size, size, fan_in, out), (0, 1, 2)), "norm": norm}

    tree, channels = {"stem": conv(7, 3, 64)}, 64
    for stage, blocks in enumerate((3, 4, 6, 3)):
        width = 64 * 2**stage
        for block in range(blocks):
            tree[f"stage{stage}_block{block}"] = {
                "conv1": conv(1, channels, width),
                "conv2": conv(3, width, width),
                "conv3": conv(1, width, 4 * width),
            } | ({} if block else {"shortcut": conv(1, channels, 4 * width)})
            channels = 4 * width
    return tree | {"head": _dense(channels, classes)}


def vit_b16(classes: int = 1000) -> dict[str, Any]:
    """ViT-B/16 (Dosovitskiy et al., arXiv 2010.11929, table 1): 86.6 M parameters in 200 arrays."""
    d = 768
    blocks = {f"block{i}": _transformer_block(d, 12, 3072) for i in range(12)}
    return {
        "patches": {"kernel": Parameter((16, 16, 3, d), (0, 1, 2)), "bias": Parameter((d,))},
        "cls": Parameter((1, 1, d)),
        "positions": Parameter((1, 197, d)),
        **blocks,
        "norm": _norm(d),
        "head": _dense(d, classes),
    }


def transformer(layers: int = 24, *, stacked: bool = False) -> dict[str, Any]:
    """A decoder of GPT-2 medium's widths: 335 M parameters; `stacked` puts layers on axis 0."""
    d = 1024
    block = _transformer_block(d, 16, 4 * d)
    if stacked:
        blocks = jax.tree.map(
            lambda p: Parameter((layers, *p.shape), tuple(a + 1 for a in p.axes)),
            block,
            is_leaf=is_parameter,
        )
    else:
        blocks = {f"block{i}": block for i in range(layers)}
    return {"embedding": Parameter((32000, d)), "blocks": blocks, "norm": _norm(d)}


def one_wide_kernel() -> dict[str, Any]:
    """A single dense kernel from 4096 to 16384 features, the worst case met so far."""
    return {"kernel": Parameter((4096, 16384), (0,))}


def many_layers(leaves: int) -> dict[str, Any]:
    """Small dense layers of slightly differing widths, `leaves` arrays in all."""
    return {f"layer{i:04}": _dense(24 + i % 7, 16 + i % 5) for i in range(leaves // 2)}


TREES: dict[str, Callable[[], dict[str, Any]]] = {
    "ResNet-50": resnet50,
    "ViT-B/16": vit_b16,
    "transformer, 24 layers": transformer,
    "the same, stacked": lambda: transformer(stacked=True),
    "4096 × 16384": one_wide_kernel,
}


def is_parameter(x: Any) -> bool:
    """Tells a parameter from a container of them."""
    return isinstance(x, Parameter)


def axes(tree: Any) -> Any:
    """The axes tree, as `centralize` takes it."""
    return jax.tree.map(lambda p: p.axes, tree, is_leaf=is_parameter)


def structs(tree: Any, dtype: Any = jnp.float32) -> Any:
    """The parameters as ``jax.ShapeDtypeStruct``, for compiling without allocating."""
    return jax.tree.map(lambda p: jax.ShapeDtypeStruct(p.shape, dtype), tree, is_leaf=is_parameter)


def arrays(tree: Any, key: jax.Array, dtype: Any = jnp.float32) -> Any:
    """Normal random numbers off zero by a third of their spread, which is what ReLU makes."""
    leaves, structure = jax.tree.flatten(tree, is_leaf=is_parameter)
    keys = jax.random.split(key, len(leaves))
    values = [
        jax.random.normal(k, p.shape, dtype) + jnp.asarray(0.3, dtype)
        for k, p in zip(keys, leaves, strict=True)
    ]
    return jax.tree.unflatten(structure, values)


def nbytes(structs: Any) -> int:
    """The size of a tree of arrays or structs."""
    return sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(structs))


def share(tree: Any) -> float:
    """Which part of the parameters is kernels, whose gradients have a mean to subtract."""
    leaves = jax.tree.leaves(tree, is_leaf=is_parameter)
    kernels = sum(math.prod(p.shape) for p in leaves if p.axes)
    return kernels / sum(math.prod(p.shape) for p in leaves)


def _dense(fan_in: int, out: int) -> dict[str, Any]:
    return {"kernel": Parameter((fan_in, out), (0,)), "bias": Parameter((out,))}


def _norm(d: int) -> dict[str, Any]:
    return {"scale": Parameter((d,)), "bias": Parameter((d,))}


def _transformer_block(d: int, heads: int, hidden: int) -> dict[str, Any]:
    """Flax's names and layouts: projections to (heads, d // heads) and back."""
    split = {
        "kernel": Parameter((d, heads, d // heads), (0,)),
        "bias": Parameter((heads, d // heads)),
    }
    join = {"kernel": Parameter((heads, d // heads, d), (0, 1)), "bias": Parameter((d,))}
    return {
        "attention": {"query": split, "key": split, "value": split, "out": join},
        "mlp": {"up": _dense(d, hidden), "down": _dense(hidden, d)},
        "norm1": _norm(d),
        "norm2": _norm(d),
    }
