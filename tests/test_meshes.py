"""Sharded gradients: the numbers of one device, and programs that move next to nothing.

The network has eight kernels, of Flax's own layers. Numbers are compared on a narrow one, programs
are compiled for a wide one without allocating it.
"""

import functools
import math
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from optax_gc import axes_from_rank, centralize

try:
    from jax import shard_map
except ImportError:  # jax 0.6.0
    from jax.experimental.shard_map import shard_map


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


def update(grads, **options):
    return centralize(AXES, **options).update(grads, centralize(AXES).init(grads))[0]


def assert_are_centred(updates, grads):
    """Compares with NumPy in float64: an ulp or so of what is subtracted may differ."""

    def check(path, u, g, axes):
        exact = np.asarray(g, np.float64)
        if axes:
            exact = exact - exact.mean(axes, keepdims=True)
        bound = 4 * np.finfo(np.float32).eps / 2 * np.abs(g).max()
        np.testing.assert_allclose(u, exact, rtol=0, atol=bound, err_msg=str(path))

    jax.tree_util.tree_map_with_path(check, updates, grads, AXES)


def test_one_device_agrees_with_numpy():
    grads = gradients()
    assert_are_centred(jax.jit(update)(grads), grads)


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_sharded_arrays_under_jit_are_centred_as_on_one_device(layout, kind):
    grads = gradients()
    sharded = placed(grads, specs_of(layout, grads), mesh_of(kind))
    assert_are_centred(jax.jit(update)(sharded), grads)


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_updates_are_sharded_as_their_gradients(layout, kind):
    grads = gradients()
    sharded = placed(grads, specs_of(layout, grads), mesh_of(kind))
    for before, after in zip(
        jax.tree.leaves(sharded), jax.tree.leaves(jax.jit(update)(sharded)), strict=True
    ):
        assert after.sharding.is_equivalent_to(before.sharding, before.ndim)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_shards_inside_shard_map_are_centred_over_the_whole_fan_in(layout):
    grads = gradients()
    specs = specs_of(layout, grads)
    mapped = shard_map(
        functools.partial(update, specs=specs),
        mesh=mesh_of(AxisType.Auto),
        in_specs=(specs,),
        out_specs=specs,
    )
    assert_are_centred(jax.jit(mapped)(grads), grads)


def test_shards_inside_pmap_are_centred_over_the_whole_fan_in():
    grads = {"kernel": np.random.default_rng(1).normal(0.5, 1.0, (24, 5)).astype(np.float32)}
    tx = centralize({"kernel": (0,)}, specs={"kernel": P("devices")})
    shards = {"kernel": grads["kernel"].reshape(8, 3, 5)}
    updates = jax.pmap(lambda g: tx.update(g, tx.init(g))[0], axis_name="devices")(shards)
    exact = grads["kernel"] - grads["kernel"].mean(0, dtype=np.float64, keepdims=True)
    np.testing.assert_allclose(updates["kernel"].reshape(24, 5), exact, rtol=0, atol=1e-6)


def test_replicas_inside_pmap_are_centred_each_by_itself():
    grads = gradients()
    per_device = jax.tree.map(lambda g: np.stack([(i + 1) * g for i in range(8)]), grads)
    updates = jax.pmap(update)(per_device)
    for i in range(8):
        assert_are_centred(
            jax.tree.map(lambda u, i=i: np.asarray(u[i]), updates),
            jax.tree.map(lambda g, i=i: g[i], per_device),
        )


# ---- the compiled program


def program_of(layout, way, dtype=jnp.float32):
    """The HLO for kernels of a thousand features and more."""
    wide = shapes(1024, dtype)
    specs = specs_of(layout, wide)
    mesh = mesh_of(AxisType.Explicit if way == "explicit" else AxisType.Auto)
    structs = jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, dtype, sharding=NamedSharding(mesh, s)),
        wide,
        specs,
    )
    function = update
    if way == "shard_map":
        function = shard_map(
            functools.partial(update, specs=specs), mesh=mesh, in_specs=(specs,), out_specs=specs
        )
    return jax.jit(function).lower(structs).compile().as_text()


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


@pytest.mark.parametrize(("way", "dtype"), WAYS)
@pytest.mark.parametrize("layout", [replicated, output])
def test_whole_fan_ins_need_no_collective(layout, way, dtype):
    assert collectives(program_of(layout, way, dtype)) == []


@pytest.mark.parametrize(("way", "dtype"), WAYS)
@pytest.mark.parametrize("layout", [fan_in, both, fully_sharded])
def test_split_fan_ins_need_one_small_all_reduce_for_all_kernels(layout, way, dtype):
    found = collectives(program_of(layout, way, dtype))
    assert {name for name, _ in found} == {"all-reduce"}
    assert sum(size for _, size in found) <= 0.002 * kernel_bytes(dtype)
    assert len(found) == 1 or jax.__version_info__ < COMBINES_ON_CPU


def test_an_all_gather_would_be_seen():
    """The search for collectives finds one that is there."""
    mesh = mesh_of(AxisType.Auto)
    split, whole = NamedSharding(mesh, P("x")), NamedSharding(mesh, P())
    x = jax.ShapeDtypeStruct((24, 5), jnp.float32, sharding=split)
    program = jax.jit(lambda x: x + 1, out_shardings=whole).lower(x).compile().as_text()
    assert ("all-gather", 4 * 24 * 5) in collectives(program)
