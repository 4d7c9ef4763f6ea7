"""Weights rescaled and measured on a mesh: the numbers of one device, and nothing gathered."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType
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

from optax_gc import diagnostics, rescale_weights

KINDS = [AxisType.Auto, AxisType.Explicit]
PER = ["unit", "layer"]


@functools.cache
def weights():
    return jax.tree.map(lambda g: 2 * g[::-1] + 1, gradients())


def rescaled(params, updates, specs=None, per="unit"):
    tx = rescale_weights(AXES, per=per, specs=specs)
    return tx.update(updates, tx.init(params), params)[0]


def measures(grads, params, specs=None):
    """Every diagnostic that is a function of trees alone."""
    return {
        "removed": diagnostics.removed_fraction(grads, AXES, specs=specs),
        "norms": diagnostics.norms(grads, specs=specs),
        "sums": diagnostics.unit_sums(params, AXES, specs=specs),
        "cosines": diagnostics.radial_component(grads, params, AXES, specs=specs),
        "of layers": diagnostics.radial_component(grads, params, AXES, per="layer", specs=specs),
    }


def exactly_rescaled(w, u, axes, per):
    """Theirs in NumPy, in float64."""
    w, u = np.asarray(w, np.float64), np.asarray(u, np.float64)
    over = axes if per == "unit" else tuple(range(w.ndim))
    tau, length = (np.sqrt((x * x).sum(over, keepdims=True)) for x in (w, w + u))
    return tau * (w + u) / length - w if axes else u


def assert_are_rescaled(updates, params, moves, per):
    def check(path, found, w, u, axes):
        exact = exactly_rescaled(w, u, axes, per)
        np.testing.assert_allclose(found, exact, rtol=0, atol=1e-5, err_msg=str(path))

    jax.tree_util.tree_map_with_path(check, updates, params, moves, AXES)


@pytest.mark.parametrize("per", PER)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_sharded_weights_under_jit_are_rescaled_as_on_one_device(layout, kind, per):
    params, moves = weights(), gradients()
    specs, mesh = specs_of(layout, params), mesh_of(kind)
    updates = jax.jit(functools.partial(rescaled, per=per))(
        placed(params, specs, mesh), placed(moves, specs, mesh)
    )
    assert_are_rescaled(updates, params, moves, per)


@pytest.mark.parametrize("per", PER)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_shards_inside_shard_map_are_rescaled_as_whole_weights(layout, per):
    params, moves = weights(), gradients()
    specs = specs_of(layout, params)
    mapped = shard_map(
        functools.partial(rescaled, specs=specs, per=per),
        mesh=mesh_of(AxisType.Auto),
        in_specs=(specs, specs),
        out_specs=specs,
    )
    assert_are_rescaled(jax.jit(mapped)(params, moves), params, moves, per)


def test_norms_recorded_outside_of_shard_map_serve_inside():
    params, moves = weights(), gradients()
    specs = specs_of(fan_in, params)
    tx = rescale_weights(AXES, specs=specs)
    mapped = shard_map(
        lambda params, moves, state: tx.update(moves, state, params)[0],
        mesh=mesh_of(AxisType.Auto),
        in_specs=(specs, specs, P()),
        out_specs=specs,
    )
    updates = jax.jit(mapped)(params, moves, tx.init(params))
    assert_are_rescaled(updates, params, moves, "unit")


@pytest.mark.parametrize("per", PER)
def test_replicas_inside_pmap_are_rescaled_each_by_itself(per):
    params, moves = weights(), gradients()
    stacked = [jax.tree.map(lambda x: np.stack([x] * 8), tree) for tree in (params, moves)]
    updates = jax.pmap(functools.partial(rescaled, per=per))(*stacked)
    assert_are_rescaled(jax.tree.map(lambda u: np.asarray(u[5]), updates), params, moves, per)


@functools.cache
def measures_on_one_device():
    return jax.jit(measures)(gradients(), weights())


def assert_measure_as_one_device(found):
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-4),
        found,
        measures_on_one_device(),
    )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_diagnostics_of_sharded_arrays_are_those_of_one_device(layout, kind):
    params, grads = weights(), gradients()
    specs, mesh = specs_of(layout, params), mesh_of(kind)
    found = jax.jit(measures)(placed(grads, specs, mesh), placed(params, specs, mesh))
    assert_measure_as_one_device(found)


def specs_of_measures(grads, params, specs):
    """Numbers for each unit are sharded as the units are, all others replicated."""
    by_path = {
        jax.tree_util.keystr(path, simple=True, separator="/"): (
            *spec,
            *[None] * (g.ndim - len(spec)),
        )
        for (path, g), spec in zip(
            jax.tree_util.tree_leaves_with_path(grads), jax.tree.leaves(specs), strict=True
        )
    }
    averaged = dict(
        zip(by_path, jax.tree.leaves(AXES, is_leaf=lambda x: type(x) is tuple), strict=True)
    )

    def spec(path, _):
        if path[0].key not in ("sums", "cosines"):
            return P()
        name = path[1].key
        return P(*(by for i, by in enumerate(by_path[name]) if i not in averaged[name]))

    return jax.tree_util.tree_map_with_path(spec, jax.eval_shape(measures, grads, params))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_diagnostics_of_shards_inside_shard_map_are_those_of_the_whole(layout):
    params, grads = weights(), gradients()
    specs = specs_of(layout, params)
    mapped = shard_map(
        functools.partial(measures, specs=specs),
        mesh=mesh_of(AxisType.Auto),
        in_specs=(specs, specs),
        out_specs=specs_of_measures(grads, params, specs),
    )
    assert_measure_as_one_device(jax.jit(mapped)(grads, params))


def test_specs_that_name_no_mesh_axis_are_told_by_diagnostics():
    mapped = shard_map(
        functools.partial(diagnostics.norms, specs=P("typo")),
        mesh=mesh_of(AxisType.Auto),
        in_specs=(P("x"),),
        out_specs=P(),
    )
    with pytest.raises(ValueError, match=r"specs name the mesh axes \('typo',\)"):
        mapped({"kernel": np.ones((8, 3), np.float32)})


@pytest.mark.parametrize("kind", KINDS)
def test_arrays_are_whole_along_mesh_axes_that_are_left_to_the_compiler(kind):
    if kind == AxisType.Explicit and jax.__version_info__ < (0, 8):
        pytest.skip("JAX 0.7 shards no dimension over a manual and an explicit axis")
    w, u = (np.asarray(tree["down"]["kernel"]) for tree in (weights(), gradients()))
    spec, tx = P(("x", "y")), rescale_weights((0,), specs=P(("x", "y")))

    def measured(w, u):
        return (
            diagnostics.unit_sums(w, (0,), specs=spec)["params"],
            tx.init(w).norms,
            tx.update(u, tx.init(w), w)[0],
        )

    mesh = mesh_of(kind)
    mapped = jax.jit(
        shard_map(
            measured,
            mesh=mesh,
            in_specs=(P("x"), P("x")),
            out_specs=(P(), P(), P("x")),
            axis_names={"x"},
        )
    )
    sums, lengths, updates = mapped(*placed((w, u), (spec, spec), mesh))
    np.testing.assert_allclose(sums, w.sum(0), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(lengths[0], np.linalg.norm(w, axis=0), rtol=1e-5)
    np.testing.assert_allclose(updates, exactly_rescaled(w, u, (0,), "unit"), atol=1e-5)


def test_of_several_mesh_axes_only_those_that_are_not_manual_are_told():
    x = np.ones((8, 3), np.float32)
    measure = functools.partial(diagnostics.norms, specs=P(("x", "typo")))
    with pytest.raises(ValueError, match=r"name the mesh axes \('typo',\), which are not manual"):
        jax.vmap(measure, axis_name="x")({"kernel": np.stack([x, x])})


def test_a_spec_that_leaves_an_axis_open_is_refused():
    with pytest.raises(ValueError, match=r"'kernel'.*UNCONSTRAINED.*Use None"):
        diagnostics.norms({"kernel": np.ones((8, 3))}, specs=P(P.UNCONSTRAINED))


# ---- the compiled program


def rescaled_program(layout, way, dtype):
    return program_of(
        lambda tree, specs: rescaled(tree, jax.tree.map(lambda x: x * x, tree), specs),
        layout,
        way,
        dtype,
    )


@pytest.mark.parametrize(("way", "dtype"), WAYS)
@pytest.mark.parametrize("layout", [replicated, output])
def test_rescaling_whole_fan_ins_needs_no_collective(layout, way, dtype):
    assert collectives(rescaled_program(layout, way, dtype)) == []


@pytest.mark.parametrize(("way", "dtype"), WAYS)
@pytest.mark.parametrize("layout", [fan_in, both, fully_sharded])
def test_rescaling_split_fan_ins_needs_small_all_reduces_alone(layout, way, dtype):
    found = collectives(rescaled_program(layout, way, dtype))
    assert {name for name, _ in found} == {"all-reduce"}
    # Two: the norms of init, and those of the update.
    assert sum(size for _, size in found) <= 2 * 0.002 * kernel_bytes(dtype)
    assert len(found) <= 2 or jax.__version_info__ < COMBINES_ON_CPU


@pytest.mark.parametrize("way", ["jit", "explicit"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_diagnostics_gather_nothing(layout, way):
    found = collectives(program_of(lambda tree, _: measures(tree, tree), layout, way))
    assert {name for name, _ in found} <= {"all-reduce"}
    assert sum(size for _, size in found) <= 0.005 * kernel_bytes(jnp.float32)
