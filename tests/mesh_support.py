"""A network of eight kernels laid out over eight devices, and what programs on it move."""

import functools
import math
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import shard_map
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from optax_gc import axes_from_rank


class Network(nn.Module):
    width: int

    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(self.width // 2, (3, 3), name="stem")(x))
        x = nn.relu(nn.Conv(self.width, (3, 3), name="conv")(x))
        x = x.reshape(x.shape[0], -1, self.width)
        x = x + nn.MultiHeadDotProductAttention(8, name="attention")(x)
        x = x + nn.Dense(self.width, name="down")(nn.relu(nn.Dense(4 * self.width, name="up")(x)))
        return x.mean(1)


@functools.cache
def shapes(width, dtype=jnp.float32):
    """The kernels and biases of the network, as structs."""
    image = jnp.zeros((1, 4, 4, width // 4))
    with jax.numpy_rank_promotion("allow"):  # Flax's Dense adds its bias so
        variables = jax.eval_shape(Network(width).init, jax.random.key(0), image)
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, dtype), variables["params"])


AXES = axes_from_rank(shapes(64))
EVERY_AXIS = ("x", "y")


def fan_in(shape, axes):
    return [("x", "y") if i == axes[-1] else None for i in range(len(shape))]


def output(shape, axes):
    out = max(set(range(len(shape))) - set(axes))
    return [("x", "y") if i == out else None for i in range(len(shape))]


def both(shape, axes):
    """One mesh axis over the fan-in, the other over the outputs."""
    out = max(set(range(len(shape))) - set(axes))
    return [{axes[-1]: "x", out: "y"}.get(i) for i in range(len(shape))]


def fully_sharded(shape, axes):
    """FSDP: every device keeps a slice of the longest dimension, biases included."""
    return [("x", "y") if i == int(np.argmax(shape)) else None for i in range(len(shape))]


def replicated(shape, axes):
    return []


LAYOUTS = (replicated, fan_in, output, both, fully_sharded)


def specs_of(layout, tree):
    """The PartitionSpec of every leaf; only a fully sharded bias is not replicated."""
    return jax.tree.map(
        lambda x, axes: P(*layout(x.shape, axes)) if axes or layout is fully_sharded else P(),
        tree,
        AXES,
    )


def mesh_of(kind):
    return jax.make_mesh((4, 2), EVERY_AXIS, axis_types=(kind, kind))


@functools.cache
def gradients(dtype=np.float32):
    rng = np.random.default_rng(0)
    return jax.tree.map(
        lambda x: (rng.normal(size=x.shape) * rng.uniform(0.1, 2, x.shape[-1:]) + 0.7).astype(
            dtype
        ),
        shapes(64),
    )


def placed(tree, specs, mesh):
    return jax.tree.map(lambda x, s: jax.device_put(x, NamedSharding(mesh, s)), tree, specs)


# ---- the compiled program


def program_of(function, layout, way, dtype=jnp.float32, out_specs=None):
    """The HLO of `function` of a tree of kernels of a thousand features and more, and of its specs.

    Specs are None but inside shard_map.
    """
    wide = shapes(1024, dtype)
    specs = specs_of(layout, wide)
    mesh = mesh_of(AxisType.Explicit if way == "explicit" else AxisType.Auto)
    structs = jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, dtype, sharding=NamedSharding(mesh, s)),
        wide,
        specs,
    )
    if way == "shard_map":
        mapped = shard_map(
            lambda tree: function(tree, specs),
            mesh=mesh,
            in_specs=(specs,),
            out_specs=specs if out_specs is None else out_specs,
        )
    else:
        mapped = lambda tree: function(tree, None)  # noqa: E731
    return jax.jit(mapped).lower(structs).compile().as_text()


COLLECTIVE = re.compile(
    r" = (?P<result>.*?) (?P<name>all-gather|all-reduce|all-to-all|reduce-scatter|"
    r"collective-permute|collective-broadcast)(-start)?\("
)
COMBINES_ON_CPU = (0, 7, 2)  # before that, XLA for CPU left an all-reduce for each kernel
BYTES = {"f32": 4, "bf16": 2}


def collectives(program):
    """The name and the size in bytes of every collective."""
    return [
        (
            found["name"],
            sum(
                BYTES[dtype] * math.prod(map(int, filter(None, dims.split(","))))
                for dtype, dims in re.findall(r"(f32|bf16)\[([\d,]*)\]", found["result"])
            ),
        )
        for found in COLLECTIVE.finditer(program)
    ]


def kernel_bytes(dtype):
    sizes = jax.tree.map(
        lambda x, axes: math.prod(x.shape) * x.dtype.itemsize if axes else 0,
        shapes(1024, dtype),
        AXES,
    )
    return sum(jax.tree.leaves(sizes))


WAYS = [
    ("jit", jnp.float32),
    ("jit", jnp.bfloat16),
    ("explicit", jnp.float32),
    ("shard_map", jnp.float32),
]
