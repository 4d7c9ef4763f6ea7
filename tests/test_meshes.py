"""Sharded gradients: the numbers of one device, and programs that move next to nothing.

The network has eight kernels, of Flax's own layers. Numbers are compared on a narrow one, programs
are compiled for a wide one without allocating it.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from mesh_support import (
    AXES,
    COMBINES_ON_CPU,
    LAYOUTS,
    WAYS,
    both,
    collectives,
    fan_in,
    fully_sharded,
    gradients,
    kernel_bytes,
    mesh_of,
    output,
    placed,
    program_of,
    replicated,
    shard_map,
    specs_of,
)

from optax_gc import centralize


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


def centralize_program(layout, way, dtype):
    return program_of(lambda grads, specs: update(grads, specs=specs), layout, way, dtype)


@pytest.mark.parametrize(("way", "dtype"), WAYS)
@pytest.mark.parametrize("layout", [replicated, output])
def test_whole_fan_ins_need_no_collective(layout, way, dtype):
    assert collectives(centralize_program(layout, way, dtype)) == []


@pytest.mark.parametrize(("way", "dtype"), WAYS)
@pytest.mark.parametrize("layout", [fan_in, both, fully_sharded])
def test_split_fan_ins_need_one_small_all_reduce_for_all_kernels(layout, way, dtype):
    found = collectives(centralize_program(layout, way, dtype))
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
