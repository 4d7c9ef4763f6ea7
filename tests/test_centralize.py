"""centralize: exactness, dtypes, what passes through, and life inside Optax's wrappers."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from optax_gc import axes_from_rank, centralize
from optax_gc._project import cast

UNIT_ROUNDOFF = {"float32": 2.0**-24, "bfloat16": 2.0**-8, "float16": 2.0**-11, "float64": 2.0**-53}


def centred(g, axes):
    """The update that centralize makes of one gradient."""
    return centralize({"w": axes}).update({"w": g}, optax.EmptyState())[0]["w"]


def offset_gradient(shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape) + 3.0


@pytest.mark.parametrize(
    "shape, axes", [((40, 7), (0,)), ((7, 40), (1,)), ((3, 5, 8, 6), (0, 1, 2))]
)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_updates_are_the_gradient_less_its_mean_rounded_once(shape, axes, dtype):
    g = jnp.asarray(offset_gradient(shape), dtype)
    exact = np.asarray(g, np.float64)
    exact = exact - exact.mean(axes, keepdims=True)
    error = np.abs(np.asarray(centred(g, axes), np.float64) - exact)
    half_an_ulp = UNIT_ROUNDOFF[dtype] * np.abs(exact)
    in_float32 = 4 * UNIT_ROUNDOFF["float32"] * np.max(np.abs(np.asarray(g, np.float64)))
    assert np.all(error <= half_an_ulp + in_float32)


def test_float64_gradients_are_centred_in_float64(x64):
    g = jnp.asarray(offset_gradient((40, 7)))
    updates = centred(g, (0,))
    assert updates.dtype == jnp.float64
    assert np.max(np.abs(np.mean(np.asarray(updates), 0))) <= 4 * 2.0**-53 * np.max(np.abs(g))


@pytest.mark.parametrize(
    "shape, axes", [((1000, 48), (0,)), ((48, 1000), (1,)), ((3, 3, 200, 9), (0, 1, 2))]
)
@pytest.mark.parametrize("dtype, bound", [("float32", 4), ("bfloat16", 0.2), ("float16", 0.2)])
def test_residual_means_stay_within_their_bound(shape, axes, dtype, bound):
    g = jnp.asarray(offset_gradient(shape), dtype)
    residual = np.mean(np.asarray(centred(g, axes), np.float64), axes)
    assert np.max(np.abs(residual)) <= bound * UNIT_ROUNDOFF[dtype] * np.max(np.abs(g))


def test_half_precision_sums_that_overflow_do_not_overflow_the_mean():
    g = jnp.full((4096, 3), 100.0, jnp.float16)
    assert jnp.max(jnp.abs(centred(g, (0,)))) == 0.0


def test_complex_gradients_lose_their_complex_mean():
    g = (offset_gradient((6, 5)) + 1j * offset_gradient((6, 5), seed=1)).astype(np.complex64)
    np.testing.assert_allclose(centred(g, (0,)), g - g.mean(0), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "complex64", "float8_e4m3fn"])
def test_shape_and_dtype_are_kept(dtype):
    g = jnp.asarray(offset_gradient((6, 5)), dtype)
    updates = centred(g, (0,))
    assert (updates.shape, updates.dtype, updates.weak_type) == ((6, 5), g.dtype, False)


@pytest.mark.parametrize("value", [1.0, 1.0j])
def test_weak_types_are_kept(value):
    g = jnp.broadcast_to(jnp.asarray(value), (3, 2))
    assert g.weak_type
    assert centred(g, (0,)).weak_type


@pytest.mark.parametrize("transform", [lambda f: f, jax.jit], ids=["eager", "jit"])
def test_sharding_is_kept(transform):
    mesh = jax.make_mesh((4, 2), ("data", "model"))
    sharding = NamedSharding(mesh, PartitionSpec("data", "model"))
    g = jax.device_put(jnp.asarray(offset_gradient((8, 6)), jnp.float32), sharding)
    updates = transform(lambda g: centred(g, (0,)))(g)
    assert updates.sharding.is_equivalent_to(sharding, ndim=2)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_stays_in_its_own_unit(value):
    g = offset_gradient((6, 5)).astype(np.float32)
    g[2, 3] = value
    updates = centred(g, (0,))
    finite = np.all(np.isfinite(updates), axis=0)
    np.testing.assert_array_equal(finite, [True, True, True, False, True])
    others = np.delete(g, 3, axis=1)
    np.testing.assert_allclose(
        np.delete(updates, 3, axis=1), others - others.mean(0), rtol=1e-5, atol=1e-6
    )


def test_what_is_no_float_array_passes_through_as_the_same_object():
    grads = {
        "step": jnp.arange(6).reshape(2, 3),
        "mask": jnp.ones((2, 3), bool),
        "float0": np.zeros((2, 3), jax.dtypes.float0),
        "none": None,
        "masked": optax.MaskedNode(),
        "w": jnp.ones((2, 3)),
    }
    axes = {"step": (0,), "mask": (0,), "float0": (0,), "none": (0,), "masked": (0,), "w": (0,)}
    updates, _ = centralize(axes).update(grads, optax.EmptyState())
    for name in ("step", "mask", "float0", "none"):
        assert updates[name] is grads[name]
    assert updates["masked"] == optax.MaskedNode()
    np.testing.assert_array_equal(updates["w"], jnp.zeros((2, 3)))


def test_gradients_of_integer_parameters_pass_through():
    params = {"count": jnp.arange(6).reshape(2, 3), "w": jnp.ones((2, 3))}
    loss = lambda p: jnp.sum(jnp.sin(p["w"]) * p["count"])  # noqa: E731
    with jax.numpy_dtype_promotion("standard"):
        grads = jax.grad(loss, allow_int=True)(params)
    updates, _ = centralize().update(grads, optax.EmptyState())
    assert updates["count"].dtype == jax.dtypes.float0


@pytest.mark.parametrize("axes", [(0, 1), axes_from_rank], ids=["given", "rank"])
def test_the_gradient_of_a_fan_in_of_one_is_not_erased(axes):
    g = jnp.asarray(offset_gradient((1, 1, 8)), jnp.float32)
    updates, _ = centralize(axes).update({"cls": g}, optax.EmptyState())
    np.testing.assert_array_equal(updates["cls"], g)


def test_a_value_head_of_one_output_trains_where_optax_erases_its_gradient():
    g = {"kernel": jnp.asarray(offset_gradient((6, 1)), jnp.float32)}
    theirs, _ = optax.centralize().update(g, optax.EmptyState())
    ours, _ = centralize().update(g, optax.EmptyState())
    assert jnp.max(jnp.abs(theirs["kernel"])) == 0
    assert jnp.max(jnp.abs(ours["kernel"])) > 0.5


@pytest.mark.parametrize(
    ("tx", "params", "reason"),
    [
        (optax.flatten(centralize()), {"w": jnp.ones((3, 2)), "b": jnp.ones(2)}, "1 × rank 1"),
        (centralize(), {"a": jnp.ones(3), "b": jnp.ones(2)}, "2 × rank 1"),
        (centralize(), {"embedding": jnp.ones((3, 2))}, "1 × name"),
        (centralize((0,)), {"w": jnp.ones((1, 2))}, "1 × fan-in of one"),
        (centralize({"w": ()}), {"w": jnp.ones((3, 2))}, "1 × ()"),
    ],
)
def test_init_warns_once_with_the_reason_when_nothing_is_selected(tx, params, reason):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        tx.init(params)
    assert len(caught) == 1
    assert "selects nothing" in str(caught[0].message) and reason in str(caught[0].message)


def test_an_explicit_nothing_is_silent_and_changes_nothing():
    params = {"w": jnp.asarray(offset_gradient((3, 2)), jnp.float32)}
    tx = centralize(())
    updates, _ = tx.update(params, tx.init(params))
    assert updates["w"] is params["w"]


@pytest.mark.parametrize("axes", [axes_from_rank, {"w": (1,), "b": ()}, ()])
def test_the_state_is_empty_whatever_is_selected(axes):
    params = {"w": jnp.ones((3, 2)), "b": jnp.ones(2)}
    tx = centralize(axes)
    state = tx.init(params)
    assert state == optax.EmptyState()
    assert tx.update(params, state)[1] == optax.EmptyState()


PARAMS = {"w": jnp.asarray(offset_gradient((4, 3), seed=1), jnp.float32), "b": jnp.ones(3)}
GRADS = {"w": jnp.asarray(offset_gradient((4, 3)), jnp.float32), "b": jnp.ones(3)}


@pytest.mark.parametrize("make", [centralize, optax.centralize], ids=["ours", "optax's"])
def test_instances_made_alike_retrace_a_step_as_often_as_those_of_optax(make, standard_promotion):
    traces = []

    @jax.jit
    def step(params, state, grads):
        traces.append(None)
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    for _ in range(2):
        tx = optax.chain(make(), optax.adam(0.1))
        state = tx.init(PARAMS)
        for _ in range(2):
            _, state = step(PARAMS, state, GRADS)
    assert len(traces) == 1


def sgd():
    return optax.chain(centralize(), optax.sgd(0.1))


WRAPPERS = {
    "chain": lambda: sgd(),
    "inject_hyperparams": lambda: optax.inject_hyperparams(
        lambda learning_rate: optax.chain(centralize(), optax.sgd(learning_rate))
    )(0.1),
    "inject_hyperparams itself": lambda: optax.chain(
        optax.inject_hyperparams(centralize, static_args="axes")(), optax.sgd(0.1)
    ),
    "inject_hyperparams of a dict": lambda: optax.chain(
        optax.inject_hyperparams(centralize, static_args="axes")({"w": (0,), "b": ()}),
        optax.sgd(0.1),
    ),
    "MultiSteps": lambda: optax.MultiSteps(sgd(), every_k_schedule=1),
    "masked": lambda: optax.masked(sgd(), {"w": True, "b": True}),
    "apply_if_finite": lambda: optax.apply_if_finite(sgd(), max_consecutive_errors=3),
    "partition inside": lambda: optax.chain(
        centralize(), optax.partition({"a": optax.sgd(0.1)}, {"w": "a", "b": "a"})
    ),
    "partition outside": lambda: optax.partition(
        {"a": sgd(), "b": optax.sgd(0.1)}, {"w": "a", "b": "b"}
    ),
    "multi_transform with an unused group": lambda: optax.multi_transform(
        {"a": sgd(), "unused": sgd()}, {"w": "a", "b": "a"}
    ),
    "flatten after": lambda: optax.chain(centralize(), optax.flatten(optax.sgd(0.1))),
}


@pytest.mark.parametrize("make", WRAPPERS.values(), ids=WRAPPERS)
def test_the_update_is_the_same_inside_every_wrapper(make, standard_promotion):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # multi_transform is the old name
        tx = make()
    state = tx.init(PARAMS)
    updates, state = jax.jit(tx.update)(GRADS, state, PARAMS)
    g = np.asarray(GRADS["w"])
    np.testing.assert_allclose(updates["w"], -0.1 * (g - g.mean(0)), rtol=1e-5)
    np.testing.assert_allclose(updates["b"], -0.1 * np.ones(3), rtol=1e-6)


def test_the_fast_weights_of_lookahead_are_centralized(standard_promotion):
    params = optax.LookaheadParams.init_synced(PARAMS)
    tx = optax.lookahead(sgd(), sync_period=6, slow_step_size=0.5)
    updates, _ = tx.update(GRADS, tx.init(params), params)
    np.testing.assert_allclose(jnp.sum(updates.fast["w"], 0), 0, atol=1e-6)


def test_inject_hyperparams_that_took_the_axes_for_a_schedule_is_told_so():
    with pytest.raises(ValueError, match=r"static_args=\('axes',\)"):
        optax.inject_hyperparams(centralize)().init(PARAMS)


@pytest.mark.parametrize("axes", [axes_from_rank, {"w": (0,), "b": ()}])
def test_tree_map_params_reaches_the_parameters_in_the_state(axes):
    tx = optax.chain(centralize(axes), optax.adam(0.1))
    doubled = optax.tree_map_params(tx, lambda x: x + 2, tx.init(PARAMS))
    np.testing.assert_array_equal(doubled[1][0].mu["w"], 2 * jnp.ones((4, 3)))


def test_an_optimizer_state_goes_through_orbax_and_trains_on(tmp_path, standard_promotion):
    tx = optax.chain(centralize(), optax.adam(0.1))
    _, state = tx.update(GRADS, tx.init(PARAMS), PARAMS)
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "state", state)
        checkpointer.wait_until_finished()
        restored = checkpointer.restore(tmp_path / "state", tx.init(PARAMS))
    assert jax.tree.structure(restored) == jax.tree.structure(state)
    ours, _ = tx.update(GRADS, restored, PARAMS)
    uninterrupted, _ = tx.update(GRADS, state, PARAMS)
    np.testing.assert_array_equal(ours["w"], uninterrupted["w"])


def test_specs_outside_a_shard_map_are_told_where_they_belong():
    tx = centralize(specs={"w": PartitionSpec("data"), "b": PartitionSpec()})
    with pytest.raises(ValueError, match="shard_map"):
        tx.update(GRADS, tx.init(PARAMS))


def test_narrow_gradients_are_centred_with_float64_enabled(x64):
    for dtype in ("float32", "bfloat16", "float16"):
        g = jnp.asarray(offset_gradient((6, 5)), dtype)
        assert centred(g, (0,)).dtype == g.dtype


def test_rounding_to_bfloat16_is_that_of_the_conversion():
    bits = np.random.default_rng(0).integers(0, 2**32, 200_000, dtype=np.uint32)
    special = np.array([np.inf, -np.inf, np.nan, 0.0, -0.0, 3.4e38, 1e-40], np.float32)
    x = jnp.asarray(np.concatenate([bits.view(np.float32), special]))
    ours = np.asarray(cast(x, jnp.bfloat16)).astype(np.float32)
    conversion = np.asarray(x.astype(jnp.bfloat16)).astype(np.float32)
    np.testing.assert_array_equal(ours, conversion)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_the_update_is_differentiated_as_the_projection_it_is(dtype):
    g = jnp.asarray([[0.0, 1.0], [2.0, 3.0], [4.0, 8.0]], dtype)
    gradient = jax.grad(lambda g: jnp.sum(centred(g, (0,)).astype(jnp.float32) ** 2))(g)
    np.testing.assert_array_equal(gradient, 2 * np.asarray(centred(g, (0,))))


def test_gradients_constant_along_a_long_fan_in_leave_a_mean_of_few_roundings():
    g = np.tile(np.random.default_rng(0).uniform(0.5, 1, (1, 3)), (1023, 1)).astype(np.float32)
    residual = np.mean(np.asarray(centred(g, (0,)), np.float64), 0)
    # XLA on CPU adds up 32 equal numbers in sequence, whose rounding errors are all alike.
    assert np.max(np.abs(residual)) <= 16 * UNIT_ROUNDOFF["float32"] * np.max(g)


def test_specs_with_more_entries_than_the_parameter_has_axes_are_reported():
    tx = centralize(specs={"w": PartitionSpec(), "b": PartitionSpec(None, "data")})
    with pytest.raises(ValueError, match=r"specs .*'b'.*\(3,\).*at most 1"):
        tx.init(PARAMS)


def test_a_fan_in_of_one_row_a_shard_is_centralized_over_all_shards():
    mesh = jax.make_mesh((8,), ("data",))
    spec = PartitionSpec("data")
    tx = centralize(specs={"w": spec})
    g = jnp.asarray(offset_gradient((8, 3)), jnp.float32)
    try:
        shard_map = jax.shard_map
    except AttributeError:  # before jax 0.8
        from jax.experimental.shard_map import shard_map
    update = shard_map(
        lambda g: tx.update(g, optax.EmptyState())[0],
        mesh=mesh,
        in_specs=({"w": spec},),
        out_specs={"w": spec},
    )
    sharded = jax.device_put({"w": g}, NamedSharding(mesh, spec))
    expected = np.asarray(g) - np.asarray(g).mean(0)
    np.testing.assert_allclose(update(sharded)["w"], expected, rtol=1e-5, atol=1e-6)


def program_of(shape):
    g = jax.ShapeDtypeStruct(shape, jnp.float32)
    return jax.jit(lambda g: centralize((0,)).update(g, optax.EmptyState())[0]).lower(g).as_text()


def test_a_large_kernel_is_added_up_in_blocks_of_rows_that_no_shard_cuts():
    assert "tensor<32x128x1100xf32>" in program_of((4096, 1100))  # 4 blocks for each of 8 devices
    assert "x128x" not in program_of((4096 + 128, 1100))


def test_a_large_kernel_is_centred_to_a_few_roundings():
    g = offset_gradient((4096, 1100)).astype(np.float32)
    residual = np.asarray(centred(jnp.asarray(g), (0,)), np.float64).mean(0)
    assert np.abs(residual).max() <= 4 * UNIT_ROUNDOFF["float32"] * np.abs(g).max()


def test_of_large_constant_columns_forty_roundings_are_left():
    # 128 equal rows added up one by one are at most 129 / 2 roundings off, and 32 such sums 33 / 2.
    g = np.broadcast_to(np.random.default_rng(0).uniform(1, 2, 1100), (4096, 1100))
    residual = np.asarray(centred(jnp.asarray(g, jnp.float32), (0,)), np.float64).mean(0)
    assert np.abs(residual / g[0]).max() <= 40 * UNIT_ROUNDOFF["float32"]
