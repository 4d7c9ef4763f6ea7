"""Centred initial weights, rescaled weights, and what the two make of each other and of GC."""

import re
from collections import OrderedDict

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from flax import nnx
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from optax_gc import axes_from_rank, centralize
from optax_gc._weights import center_weights, rescale_weights

UNIT_ROUNDOFF = {"float32": 2.0**-24, "bfloat16": 2.0**-8, "float16": 2.0**-11}


def dense(shape=(7, 5), dtype="float32", seed=0):
    rng = np.random.default_rng(seed)
    params = {"kernel": rng.normal(0.7, 1, shape), "bias": rng.normal(0, 1, shape[-1:])}
    return {name: jnp.asarray(w.astype(jnp.dtype(dtype))) for name, w in params.items()}


def float64(x):
    return np.asarray(x, np.float64)


def steps(tx, params, n):
    """`n` compiled steps with random gradients that have a mean; all the kernels passed through."""
    rng = np.random.default_rng(1)
    grads = {
        name: jnp.asarray(rng.normal(0.3, 1, (n, *w.shape)).astype("float32"))
        for name, w in params.items()
    }

    def step(carry, grads):
        params, state = carry
        updates, state = tx.update(grads, state, params)
        params = optax.apply_updates(params, updates)
        return (params, state), params["kernel"]

    return jax.jit(lambda p, g: jax.lax.scan(step, (p, tx.init(p)), g))(params, grads)


# center_weights


@pytest.mark.parametrize("dtype", UNIT_ROUNDOFF)
def test_centred_units_have_mean_zero_to_the_accuracy_of_their_dtype(dtype):
    params = dense((4096, 5), dtype)
    centred = center_weights(params)
    mean = np.abs(float64(centred["kernel"]).mean(0)).max()
    bound = 4 if dtype == "float32" else 0.2
    assert mean <= bound * UNIT_ROUNDOFF[dtype] * np.abs(float64(params["kernel"])).max()


@pytest.mark.parametrize("axes", [(0, 1), (1, 2), (-3, -1)])
def test_centring_subtracts_the_mean_over_the_given_axes(axes):
    w = dense((3, 4, 5))["kernel"]
    expected = float64(w) - float64(w).mean(axes, keepdims=True)
    np.testing.assert_allclose(center_weights({"w": w}, {"w": axes})["w"], expected, atol=1e-6)


def test_centring_leaves_biases_and_a_fan_in_of_one_alone():
    params = {"kernel": jnp.full((1, 4), 3.0), "other": jnp.ones((2, 3)), "bias": jnp.full(4, 2.0)}
    centred = center_weights(params)
    assert centred["kernel"] is params["kernel"]
    assert centred["bias"] is params["bias"]


def test_centring_takes_and_returns_nnx_state():
    model = nnx.Linear(7, 5, rngs=nnx.Rngs(0))
    nnx.update(model, center_weights(nnx.state(model, nnx.Param)))
    assert np.abs(float64(model.kernel[...]).sum(0)).max() < 1e-6
    assert center_weights(nnx.state(model), {"kernel": (0,), "bias": ()}).keys() == {
        "kernel",
        "bias",
    }


def test_centring_takes_and_returns_an_equinox_module():
    model = eqx.nn.MLP(7, 3, 6, 1, key=jax.random.key(0))
    centred = center_weights(
        eqx.filter(model, eqx.is_array), lambda p: axes_from_rank(p, output_axis=0)
    )
    assert isinstance(centred, eqx.nn.MLP)
    assert np.abs(float64(centred.layers[0].weight).sum(1)).max() < 1e-6


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.float32, jnp.complex64])
def test_centring_keeps_dtype_and_structure(dtype):
    params = {"kernel": jnp.ones((3, 4), dtype), "step": jnp.ones((3, 4), jnp.int32), "none": None}
    centred = center_weights(params, (0,))
    assert jax.tree.map(lambda x: x.dtype, centred) == jax.tree.map(lambda x: x.dtype, params)
    assert centred["step"] is params["step"]


def test_centring_keeps_weak_types():
    params = {"kernel": jnp.full((3, 4), 2.0)}
    assert params["kernel"].weak_type
    assert center_weights(params)["kernel"].weak_type


def test_centring_nothing_warns_unless_it_is_asked_for():
    with pytest.warns(UserWarning, match=r"center_weights\(\) selects nothing.*1 × rank 1"):
        center_weights({"bias": jnp.ones(3)})
    center_weights({"kernel": jnp.ones((3, 2))}, ())


@pytest.mark.parametrize("start", [dense((9, 4)), center_weights(dense((9, 4)))])
def test_what_gc_keeps_of_a_constant_added_to_the_input_is_what_it_was_at_the_start(
    start, standard_promotion
):
    """Theorem 4.1: wᵀ(x + γ1) - wᵀx = γ 1ᵀw⁰ at every step: zero, exactly, for a centred start."""
    tx = optax.chain(centralize(), optax.sgd(0.03, momentum=0.9))
    params, kernels = steps(tx, start, 100)
    x = np.random.default_rng(5).uniform(size=(6, 9))
    for kernel in float64(kernels[::10]):
        change = (x + 10) @ kernel - x @ kernel
        expected = np.broadcast_to(10 * float64(start["kernel"]).sum(0), change.shape)
        np.testing.assert_allclose(change, expected, atol=1e-4)
    assert np.abs(float64(params[0]["kernel"] - start["kernel"])).max() > 1


def test_numpy_weights_become_arrays_of_the_precision_in_use():
    params = {"kernel": np.arange(6.0).reshape(3, 2)}
    assert center_weights(params)["kernel"].dtype == jnp.float32
    tx = rescale_weights()
    updates, _ = tx.update(params, tx.init(params), params)
    assert updates["kernel"].dtype == jnp.float32


# rescale_weights

OPTIMIZERS = {
    "sgdm": lambda: optax.sgd(0.1, momentum=0.9),
    "adam": lambda: optax.adam(0.01),
    "adam, centralized last": lambda: optax.chain(optax.adam(0.01), centralize()),
    "centralize, sgdm": lambda: optax.chain(centralize(), optax.sgd(0.1, momentum=0.9)),
}


@pytest.mark.parametrize(
    ("name", "per"), [*[(name, "unit") for name in OPTIMIZERS], ("sgdm", "layer")]
)
def test_rescaled_weights_keep_their_norm_over_1000_steps(name, per, standard_promotion):
    start = dense()
    tx = optax.chain(OPTIMIZERS[name](), rescale_weights(per=per))
    _, kernels = steps(tx, start, 1000)
    axes = (0,) if per == "unit" else (0, 1)
    norms = np.sqrt((float64(kernels) ** 2).sum(tuple(axis + 1 for axis in axes)))
    expected = np.sqrt((float64(start["kernel"]) ** 2).sum(axes))
    assert np.abs(float64(kernels[-1]) - float64(start["kernel"])).max() > 0.1
    np.testing.assert_allclose(norms, np.broadcast_to(expected, norms.shape), rtol=1e-6)


def test_centred_weights_with_gc_and_rescaling_stay_on_sphere_and_hyperplane(standard_promotion):
    start = center_weights(dense())
    tx = optax.chain(optax.scale_by_adam(), centralize(), optax.scale(-0.02), rescale_weights())
    _, kernels = steps(tx, start, 300)
    norms = np.sqrt((float64(kernels) ** 2).sum(1))
    np.testing.assert_allclose(norms, np.broadcast_to(norms[:1], norms.shape), rtol=1e-6)
    assert np.abs(float64(kernels).sum(1)).max() < 1e-5
    assert np.abs(float64(kernels[-1] - kernels[0])).max() > 0.2


def test_rescaling_moves_an_uncentred_start_off_its_hyperplane(standard_promotion):
    """Why the start is centred: otherwise scaling changes the sum that GC keeps."""
    tx = optax.chain(centralize(), optax.sgd(0.1), rescale_weights())
    _, kernels = steps(tx, dense(), 300)
    assert np.abs(float64(kernels).sum(1) - float64(kernels[0]).sum(0)).max() > 1


@pytest.mark.filterwarnings("ignore:.*stacks of layers")
@pytest.mark.parametrize("norm", [None, 2.5])
@pytest.mark.parametrize("per", ["unit", "layer"])
@pytest.mark.parametrize("axes", [(0, 1), (1,), (-1, 0)])
def test_an_update_leads_to_the_sphere_through_where_it_would_have_led(axes, per, norm):
    w, u = (dense((3, 4, 5), seed=seed)["kernel"] for seed in (0, 1))
    tx = rescale_weights({"w": axes}, norm=norm, per=per)
    updates, _ = jax.jit(tx.update)({"w": u}, jax.jit(tx.init)({"w": w}), {"w": w})
    within = axes if per == "unit" else None
    v, w = float64(w) + float64(u), float64(w)
    tau = norm or np.sqrt((w**2).sum(within, keepdims=True))
    expected = tau * v / np.sqrt((v**2).sum(within, keepdims=True)) - w
    np.testing.assert_allclose(updates["w"], expected, atol=2e-6)


@pytest.mark.parametrize("dtype", [*UNIT_ROUNDOFF, "complex64"])
def test_weights_land_on_the_sphere_as_nearly_as_their_dtype_allows(dtype):
    """Rounding the entries of a point of the sphere, in f32, moves it no further than this."""
    unit = UNIT_ROUNDOFF.get(dtype, UNIT_ROUNDOFF["float32"])
    params = {"w": dense((300, 5), dtype)["kernel"]}
    tx = rescale_weights(norm=3.0)
    state, update = tx.init(params), jax.jit(tx.update)
    for seed in range(5):
        grads = {"w": dense((300, 5), dtype, seed)["kernel"] / 8}
        updates, state = update(grads, state, params)
        assert updates["w"].dtype == params["w"].dtype
        params = optax.apply_updates(params, updates)
    norms = np.sqrt((np.abs(np.asarray(params["w"]).astype("complex128")) ** 2).sum(0))
    np.testing.assert_allclose(norms, 3.0, rtol=2 * unit + 2e-7)


def test_norms_of_half_precision_weights_are_taken_in_float32():
    """The squares of these add up to more than float16 holds, and to no finer than bfloat16."""
    for dtype in (jnp.float16, jnp.bfloat16):
        state = rescale_weights().init({"w": jnp.full((600, 2), 20.0, dtype)})
        assert state.norms["w"].dtype == jnp.float32
        np.testing.assert_allclose(state.norms["w"], 20 * np.sqrt(600), rtol=1e-6)


def test_float64_weights_keep_their_norm_in_float64(x64):
    params = {"w": jnp.arange(1.0, 15).reshape(7, 2)}
    tx = rescale_weights()
    state = tx.init(params)
    updates, _ = tx.update({"w": jnp.cos(params["w"])}, state, params)
    after = optax.apply_updates(params, updates)
    assert state.norms["w"].dtype == after["w"].dtype == jnp.float64
    np.testing.assert_allclose(
        np.linalg.norm(after["w"], axis=0), np.linalg.norm(params["w"], axis=0), rtol=1e-15
    )


def test_rescaling_keeps_weak_types_and_structure():
    params = {"kernel": jnp.full((3, 4), 2.0), "bias": jnp.full(4, 1.0), "none": None}
    tx = rescale_weights()
    updates, _ = tx.update(params, tx.init(params), params)
    assert jax.tree.structure(updates) == jax.tree.structure(params)
    assert updates["kernel"].weak_type


@pytest.mark.parametrize("norm", [None, 1.0])
def test_weights_that_are_zero_or_led_to_zero_stay(norm):
    w = jnp.array([[0.0, 3.0, 1.0], [0.0, 4.0, 2.0]])
    u = jnp.array([[0.0, -3.0, 1.0], [0.0, -4.0, 2.0]])
    tx = rescale_weights(norm=norm)
    with jax.debug_nans(True), jax.debug_infs(True):
        updates, state = tx.update({"w": u}, tx.init({"w": w}), {"w": w})
    np.testing.assert_array_equal(updates["w"][:, :2], 0)
    np.testing.assert_allclose(state.norms["w"][:, :2], [[0.0, 5.0]])


@pytest.mark.parametrize("norm", [None, 2.0])
def test_a_unit_that_is_not_a_number_stays_so_and_others_are_rescaled(norm):
    w, u = dense()["kernel"], dense(seed=1)["kernel"]
    tx = rescale_weights(norm=norm)
    state = tx.init({"w": w})
    expected, _ = tx.update({"w": u}, state, {"w": w})
    for bad_w, bad_u in [(w, u.at[2, 1].set(jnp.nan)), (w.at[2, 1].set(jnp.nan), u)]:
        updates, _ = tx.update({"w": bad_u}, state, {"w": bad_w})
        assert np.isnan(updates["w"][:, 1]).all()
        others = np.array([0, 2, 3, 4])
        np.testing.assert_array_equal(updates["w"][:, others], expected["w"][:, others])


def test_the_derivative_of_a_unit_that_stays_zero_is_zero():
    w = jnp.array([[0.0, 3.0], [0.0, 4.0]])

    def moved(u, w):
        tx = rescale_weights()
        return jnp.square(tx.update({"w": u}, tx.init({"w": w}), {"w": w})[0]["w"]).sum()

    for derivative in jax.grad(moved, (0, 1))(jnp.array([[0.0, 1.0], [0.0, 1.0]]), w):
        np.testing.assert_array_equal(derivative[:, 0], 0)
        assert np.isfinite(derivative).all()


def test_initial_zero_weights_never_move():
    params = {"w": jnp.zeros((3, 2))}
    tx = rescale_weights()
    updates, _ = tx.update({"w": jnp.arange(6.0).reshape(3, 2)}, tx.init(params), params)
    np.testing.assert_array_equal(updates["w"], 0)


def test_what_is_left_alone_passes_untouched():
    params = {"kernel": jnp.ones((3, 4)), "bias": jnp.ones(4), "step": jnp.array(3)}
    updates = jax.tree.map(lambda x: x + 1, params)
    tx = rescale_weights()
    after, _ = tx.update(updates, tx.init(params), params)
    assert after["bias"] is updates["bias"]
    assert after["step"] is updates["step"]


def test_the_norm_follows_a_schedule_inside_inject_hyperparams(standard_promotion):
    params = dense()
    schedule = optax.linear_schedule(1.0, 3.0, 2)
    rescale = optax.inject_hyperparams(rescale_weights, static_args=("axes", "per"))
    tx = optax.chain(optax.sgd(0.1), rescale(norm=schedule))
    _, kernels = steps(tx, params, 3)
    expected = np.array([[1.0], [2.0], [3.0]]) * np.ones((3, 5))
    np.testing.assert_allclose(np.sqrt((float64(kernels) ** 2).sum(1)), expected, rtol=1e-6)


@pytest.mark.parametrize("norm", [np.float64(2.0), lambda: jnp.array(2.0, jnp.float64), 2.0])
def test_the_recorded_norms_keep_their_dtype_whatever_that_of_the_norm(norm, x64):
    params = {"w": jnp.arange(1.0, 15, dtype=jnp.float32).reshape(7, 2)}
    tx = rescale_weights(norm=norm() if callable(norm) else norm)
    state = tx.init(params)
    _, after = tx.update(params, state, params)
    assert after.norms["w"].dtype == state.norms["w"].dtype == jnp.float32
    assert after.norms["w"].weak_type == state.norms["w"].weak_type


WRAPPERS = {
    "masked": lambda tx: optax.masked(tx, {"kernel": True, "bias": False}),
    "partition": lambda tx: optax.partition(
        {"rescaled": tx, "plain": optax.identity()}, {"kernel": "rescaled", "bias": "plain"}
    ),
    "MultiSteps": lambda tx: optax.MultiSteps(tx, 2),
    "apply_if_finite": lambda tx: optax.apply_if_finite(tx, 3),
    "named_chain": lambda tx: optax.named_chain(("rescale", tx)),
}


@pytest.mark.parametrize("name", WRAPPERS)
def test_weights_keep_their_norm_inside_every_wrapper(name, standard_promotion):
    tx = WRAPPERS[name](optax.chain(optax.sgd(0.1, momentum=0.9), rescale_weights()))
    start = dense()
    _, kernels = steps(tx, start, 20)
    norms = np.sqrt((float64(kernels) ** 2).sum(1))
    expected = np.sqrt((float64(start["kernel"]) ** 2).sum(0))
    np.testing.assert_allclose(norms, np.broadcast_to(expected, norms.shape), rtol=1e-6)
    assert np.abs(float64(kernels[-1] - kernels[0])).max() > 0.1


def test_nnx_optimizer_keeps_the_norms_of_a_model(standard_promotion):
    model = nnx.Linear(7, 5, rngs=nnx.Rngs(0))
    before = float64(model.kernel[...])
    tx = optax.chain(optax.adam(0.1), rescale_weights({"kernel": (0,), "bias": ()}))
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)

    @nnx.jit
    def step(model, optimizer, x):
        optimizer.update(model, nnx.grad(lambda m: jnp.square(m(x) - 1).mean())(model))

    for seed in range(3):
        step(model, optimizer, dense((8, 7), seed=seed)["kernel"])
    after = float64(model.kernel[...])
    assert np.abs(after - before).max() > 0.05
    np.testing.assert_allclose(
        np.linalg.norm(after, axis=0), np.linalg.norm(before, axis=0), rtol=1e-6
    )


def test_tree_map_params_reaches_the_recorded_norms():
    params = dense()
    tx = optax.chain(optax.trace(0.9), rescale_weights())
    names = {"kernel": "k", "bias": "b"}
    named = optax.tree_map_params(tx, lambda _, name: name, tx.init(params), names)
    assert named[1].norms == named[0].trace == names


def test_recorded_norms_go_through_orbax_and_train_on(tmp_path, standard_promotion):
    tx = optax.chain(optax.sgd(0.1, momentum=0.9), rescale_weights())
    params, state = jax.device_get(steps(tx, dense(), 5)[0])
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "state", state)
    with ocp.StandardCheckpointer() as checkpointer:
        target = jax.eval_shape(tx.init, params)
        restored = checkpointer.restore(tmp_path / "state", target)
    assert jax.tree.structure(restored) == jax.tree.structure(state)
    expected, _ = tx.update(params, state, params)
    updates, _ = tx.update(params, restored, params)
    jax.tree.map(np.testing.assert_array_equal, updates, expected)


@pytest.mark.parametrize("compiled", [False, True])
def test_recorded_norms_are_sharded_as_the_output_axes_of_their_weights(compiled):
    mesh = Mesh(np.array(jax.devices()).reshape(2, 4), ("data", "model"))
    params = {"fan_in": jnp.ones((6, 5)), "both": jnp.ones((6, 8)), "output": jnp.ones((7, 8))}
    specs = {"fan_in": P("data", None), "both": P("data", "model"), "output": P(None, "model")}
    sharded = {k: jax.device_put(v, NamedSharding(mesh, specs[k])) for k, v in params.items()}
    tx = rescale_weights()
    state = (jax.jit(tx.init) if compiled else tx.init)(sharded)
    for name, spec in {"fan_in": P(), "both": P(None, "model"), "output": P(None, "model")}.items():
        norms = state.norms[name]
        assert norms.sharding.is_equivalent_to(NamedSharding(mesh, spec), 2)
        np.testing.assert_allclose(norms, np.linalg.norm(params[name], axis=0, keepdims=True))


def test_sharded_updates_are_the_updates_of_whole_weights():
    mesh = Mesh(np.array(jax.devices()).reshape(2, 4), ("data", "model"))
    w, u = ({"w": dense((6, 8), seed=seed)["kernel"]} for seed in (0, 1))
    tx = rescale_weights()
    expected, _ = tx.update(u, tx.init(w), w)
    w, u = jax.device_put((w, u), NamedSharding(mesh, P("data", "model")))
    updates, state = jax.jit(tx.update)(u, jax.jit(tx.init)(w), w)
    np.testing.assert_allclose(updates["w"], expected["w"], rtol=1e-5, atol=1e-6)
    assert updates["w"].sharding.is_equivalent_to(w["w"].sharding, 2)
    assert state.norms["w"].sharding.is_equivalent_to(NamedSharding(mesh, P(None, "model")), 2)


AFTER = {
    "a learning rate": optax.scale(0.5),
    "weight decay": optax.add_decayed_weights(-0.1),
    "clipping": optax.clip(0.01),
}


@pytest.mark.parametrize("name", AFTER)
@pytest.mark.parametrize("norm", [None, 4.0])
def test_a_transform_after_it_is_told_of_at_the_next_step(name, norm):
    tx = optax.chain(optax.scale(-0.3), rescale_weights(norm=norm), AFTER[name])
    params = dense()
    updates, state = tx.update(dense(seed=1), tx.init(params), params)
    params = optax.apply_updates(params, updates)
    with pytest.warns(UserWarning, match=r"left a norm of .* in 'kernel' and finds .* last in the"):
        tx.update(dense(seed=2), state, params)


def test_weights_replaced_after_init_are_told_of():
    tx = rescale_weights()
    with pytest.warns(UserWarning, match="after replacing params, call init again"):
        tx.update(dense(seed=1), tx.init(dense()), jax.tree.map(lambda x: 2 * x, dense()))


@pytest.mark.parametrize("dtype", UNIT_ROUNDOFF)
@pytest.mark.parametrize("norm", [None, 4.0])
def test_nothing_is_told_when_it_is_last(dtype, norm):
    tx = optax.chain(optax.trace(0.9), optax.scale(-1.0), rescale_weights(norm=norm))
    params = dense((50, 40), dtype)
    state = tx.init(params)
    for seed in range(4):
        updates, state = tx.update(dense((50, 40), dtype, seed), state, params)
        params = optax.apply_updates(params, updates)


STAGING = {
    "apply_if_finite": lambda tx: optax.apply_if_finite(tx, 3),
    "conditionally_transform": lambda tx: optax.conditionally_transform(tx, lambda step: step >= 0),
    "jit": lambda tx: optax.GradientTransformation(
        tx.init, lambda u, state, params: jax.jit(lambda u: tx.update(u, state, params))(u)
    ),
}


@pytest.mark.parametrize("name", STAGING)
def test_concrete_weights_are_rescaled_by_an_update_that_is_staged(name, standard_promotion):
    params, moves = dense(), dense(seed=1)
    tx = STAGING[name](rescale_weights())
    updates, _ = tx.update(moves, tx.init(params), params)
    after = optax.apply_updates(params, updates)
    np.testing.assert_allclose(
        np.linalg.norm(after["kernel"], axis=0), np.linalg.norm(params["kernel"], axis=0), rtol=1e-6
    )


def test_nothing_is_told_when_the_given_norm_is_far_below_the_initial_norms():
    params, tx = jax.tree.map(lambda w: 300 * w, dense((50, 40))), rescale_weights(norm=1.0)
    state = tx.init(params)
    for seed in range(3):
        updates, state = tx.update(dense((50, 40), seed=seed), state, params)
        params = optax.apply_updates(params, updates)


@pytest.mark.parametrize("params", [{"bias": jnp.ones(3)}, {"kernel": jnp.ones((1, 4))}])
def test_selecting_nothing_is_an_error(params):
    with pytest.raises(ValueError, match=r"rescale_weights\(\) selects nothing. .*: 1 × "):
        rescale_weights().init(params)


def test_selecting_nothing_explicitly_is_an_error_too():
    with pytest.raises(ValueError, match="or leave it out"):
        rescale_weights(()).init(dense())


def test_missing_params_are_asked_for():
    tx = rescale_weights()
    with pytest.raises(ValueError, match=r"Call tx.update\(grads, state, params\)"):
        tx.update(dense(), tx.init(dense()))


def test_params_that_are_not_those_of_the_updates_are_refused():
    tx = rescale_weights()
    with pytest.raises(
        ValueError, match=r"updates of shape \(5,\) for 'bias' do not match params of shape \(7,\)"
    ):
        tx.update(dense((7, 5)), tx.init(dense((5, 7))), dense((5, 7)))


@pytest.mark.parametrize(
    ("axes", "per", "shape"), [((1,), "unit", (5, 1)), ((0,), "layer", (1, 1)), ((), "unit", ())]
)
def test_norms_recorded_for_other_spheres_are_refused(axes, per, shape):
    params = {"a": dense((5, 5))["kernel"], "b": dense((5, 4))["kernel"]}
    state = rescale_weights({"a": (0,), "b": (0,)}).init(params)
    tx = rescale_weights({"a": axes, "b": (0,)}, per=per)
    expected = re.escape(f"norms of shape (1, 5) for 'a' do not fit its spheres of shape {shape}")
    with pytest.raises(ValueError, match=expected + ".*init again for these axes"):
        tx.update(params, state, params)


def test_norms_inside_vmap_are_those_of_one_member():
    stack = {"w": dense((3, 7, 5))["kernel"]}
    tx = rescale_weights({"w": (0,)})
    state = jax.vmap(tx.init)(stack)
    updates, after = jax.vmap(tx.update)(stack, state, stack)
    assert state.norms["w"].shape == after.norms["w"].shape == (3, 1, 5)
    np.testing.assert_allclose(updates["w"], 0, atol=1e-6)


def test_trees_of_equal_shapes_and_other_names_are_refused():
    a, b = (dense((3, 3), seed=seed)["kernel"] for seed in (0, 1))
    params, other, tx = {"a": a, "b": b}, {"a": a, "c": b}, rescale_weights()
    with pytest.raises(ValueError, match=r"updates have 'c' where params have 'b'"):
        tx.update(other, tx.init(params), params)
    with pytest.raises(ValueError, match=r"norms have 'c' where params have 'b'.*same structure"):
        tx.update(params, tx.init(other), params)
    turned = OrderedDict(b=b, a=a)
    with pytest.raises(ValueError, match="updates have 'b' where params have 'a'"):
        tx.update(turned, tx.init(params), params)


def test_updates_may_come_in_other_containers():
    state = nnx.state(nnx.Linear(7, 5, rngs=nnx.Rngs(0)), nnx.Param)
    params, tx = nnx.to_pure_dict(state), rescale_weights()
    updates, _ = tx.update(params, tx.init(state), state)
    np.testing.assert_allclose(updates["kernel"], 0, atol=1e-6)


@pytest.mark.parametrize("norm", [0, -1.0, float("nan"), float("inf"), np.ones(3)])
def test_a_norm_that_is_no_radius_is_refused(norm):
    with pytest.raises(ValueError, match=r"norm .* Use (a positive|one) number"):
        rescale_weights(norm=norm)


@pytest.mark.parametrize("norm", [True, "1", 1j, jnp.array(1j), np.array(True)])
def test_a_norm_that_is_no_number_is_refused(norm):
    with pytest.raises(TypeError, match="Use a positive number"):
        rescale_weights(norm=norm)


def test_an_unknown_per_is_refused():
    with pytest.raises(ValueError, match=r"per is 'output'. Use 'unit' or 'layer'"):
        rescale_weights(per="output")
