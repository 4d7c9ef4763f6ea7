"""Weights and updates of fixed norms, matrix by matrix: roles.matrix in the two that take it."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec as P
from mesh_support import mesh_of, shard_map
from trace_support import f32

from optax_gc import rescale_weights, roles_from_trace, scale_by_trust_ratio

LR, B1, B2, EPS = 0.05, 0.9, 0.999, 1e-8


def forward(params, x):
    """Scanned layers with heads, then experts that have tokens of their own."""

    def layer(h, w):
        heads = jnp.einsum("etd,dhk->ethk", h, w["in"])
        return h + jnp.einsum("ethk,hkd->etd", jnp.tanh(heads), w["out"]), None

    h = jax.lax.scan(layer, x, params["layers"])[0]
    return jnp.einsum("etd,edf->etf", h, params["experts"]) + params["bias"][None, None]


SHAPES = {
    "layers": {"in": f32(3, 5, 2, 4), "out": f32(3, 2, 4, 5)},
    "experts": f32(6, 5, 7),
    "bias": f32(7),
}
ROLES = roles_from_trace(forward, SHAPES, f32(6, 8, 5))
MATRICES = {"in": (1, 2, 3), "out": (1, 2, 3), "experts": (1, 2)}  # by hand


def random_like(tree, seed, scale=1.0):
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda s: jnp.asarray(rng.normal(0.1, scale, s.shape), s.dtype), tree)


def flat(tree):
    return {"in": tree["layers"]["in"], "out": tree["layers"]["out"], "experts": tree["experts"]}


def norms(w, axes):
    return np.sqrt((np.asarray(w, np.float64) ** 2).sum(axes, keepdims=True))


def test_each_matrix_of_scanned_layers_and_experts_keeps_its_norm(standard_promotion):
    params = random_like(SHAPES, 0)
    start = {name: norms(w, MATRICES[name]) for name, w in flat(params).items()}
    tx = optax.chain(optax.adam(0.1), rescale_weights(ROLES.matrix))

    def step(carry, gradients):
        params, state = carry
        updates, state = tx.update(gradients, state, params)
        return (optax.apply_updates(params, updates), state), None

    gradients = random_like(jax.tree.map(lambda s: f32(200, *s.shape), SHAPES), 1)
    (params, _), _ = jax.lax.scan(step, (params, tx.init(params)), gradients)
    for name, w in flat(params).items():
        assert start[name].size == (6 if name == "experts" else 3)
        assert np.ptp(start[name]) > 0.1
        np.testing.assert_allclose(norms(w, MATRICES[name]), start[name], rtol=2e-6)


def hyperball(matrix, gradients):
    """Adam with Hyperball on one matrix, as published: both Frobenius norms are ‖W₀‖."""
    w = np.asarray(matrix, np.float64)
    radius, m, v = np.linalg.norm(w), 0.0, 0.0
    for t, g in enumerate(np.asarray(gradients, np.float64), start=1):
        m, v = B1 * m + (1 - B1) * g, B2 * v + (1 - B2) * g**2
        u = (m / (1 - B1**t)) / (np.sqrt(v / (1 - B2**t)) + EPS)
        w = w - LR * radius * u / np.linalg.norm(u)
        w = radius * w / np.linalg.norm(w)
    return w


def test_the_chain_of_both_is_hyperball_on_every_matrix(standard_promotion):
    params = start = random_like(SHAPES, 0)
    gradients = [random_like(SHAPES, seed, scale=seed) for seed in range(1, 7)]
    tx = optax.chain(
        optax.scale_by_adam(B1, B2, EPS),
        scale_by_trust_ratio(ROLES.matrix),
        optax.scale_by_learning_rate(LR),
        rescale_weights(ROLES.matrix),
    )
    state, update = tx.init(params), jax.jit(tx.update)
    for g in gradients:
        updates, state = update(g, state, params)
        params = optax.apply_updates(params, updates)
    for name, found in flat(params).items():
        for i, matrix in enumerate(flat(start)[name]):
            exact = hyperball(matrix, [flat(g)[name][i] for g in gradients])
            np.testing.assert_allclose(found[i], exact, rtol=0, atol=1e-5)


@pytest.mark.parametrize("axes", [(0,), (1,), (0, 2), (0, 1, 2)])
def test_an_update_has_the_norm_of_its_weights_over_the_axes(axes):
    w, u = random_like({"w": f32(4, 3, 5)}, 0), random_like({"w": f32(4, 3, 5)}, 1)
    tx = scale_by_trust_ratio({"w": axes})
    found = tx.update(u, tx.init(w), w)[0]["w"]
    exact = np.asarray(u["w"], np.float64) * norms(w["w"], axes) / norms(u["w"], axes)
    np.testing.assert_allclose(found, exact, rtol=1e-5)


def test_what_has_no_axes_gets_its_update_as_it_is():
    params, updates = random_like(SHAPES, 0), random_like(SHAPES, 1)
    tx = scale_by_trust_ratio(ROLES.matrix)
    assert tx.update(updates, tx.init(params), params)[0]["bias"] is updates["bias"]


def test_weights_of_zero_get_their_update_as_it_is():
    w = {"w": jnp.zeros((4, 3)).at[:, 0].set(2.0)}
    u = random_like({"w": f32(4, 3)}, 1)
    tx = scale_by_trust_ratio({"w": (0,)})
    found = tx.update(u, tx.init(w), w)[0]["w"]
    np.testing.assert_array_equal(found[:, 1:], u["w"][:, 1:])
    np.testing.assert_allclose(np.linalg.norm(found[:, 0]), 4, rtol=1e-6)


def test_an_update_of_zero_stays_zero():
    w, u = random_like({"w": f32(4, 3)}, 0), {"w": jnp.zeros((4, 3)).at[:, 0].set(1.0)}
    tx = scale_by_trust_ratio({"w": (0,)})
    found = tx.update(u, tx.init(w), w)[0]["w"]
    np.testing.assert_array_equal(found[:, 1:], 0)


def test_norms_of_half_precision_are_taken_in_float32():
    w = {"w": jnp.full((4096, 3), 0.75, jnp.bfloat16)}
    u = {"w": jnp.full((4096, 3), 0.5, jnp.bfloat16)}
    tx = scale_by_trust_ratio({"w": (0,)})
    found = tx.update(u, tx.init(w), w)[0]["w"]
    assert found.dtype == jnp.bfloat16
    np.testing.assert_array_equal(np.asarray(found, np.float32), 0.75)


def test_updates_keep_their_dtype_beside_weights_of_another():
    w = {"w": jnp.ones((4, 3), jnp.float32)}
    u = {"w": jnp.full((4, 3), 2.0, jnp.bfloat16)}
    tx = scale_by_trust_ratio({"w": (0,)})
    found = tx.update(u, tx.init(w), w)[0]["w"]
    assert found.dtype == jnp.bfloat16


def test_norms_go_on_over_the_shards_that_specs_name():
    w, u = random_like({"w": f32(16, 6)}, 0), random_like({"w": f32(16, 6)}, 1)
    mesh = mesh_of(jax.sharding.AxisType.Auto)
    specs = {"w": P(mesh.axis_names[0], None)}
    tx = scale_by_trust_ratio({"w": (0,)}, specs=specs)
    inside = shard_map(
        lambda u, w: tx.update(u, optax.EmptyState(), w)[0],
        mesh=mesh,
        in_specs=(specs, specs),
        out_specs=specs,
    )
    exact = np.asarray(u["w"]) * norms(w["w"], (0,)) / norms(u["w"], (0,))
    np.testing.assert_allclose(jax.jit(inside)(u, w)["w"], exact, rtol=1e-5)


def test_the_state_is_empty_whatever_is_selected():
    params = random_like(SHAPES, 0)
    assert scale_by_trust_ratio(ROLES.matrix).init(params) == optax.EmptyState()


def test_missing_params_are_asked_for():
    tx = scale_by_trust_ratio({"w": (0,)})
    with pytest.raises(ValueError, match=r"needs the weights.*update\(grads, state, params\)"):
        tx.update({"w": jnp.ones((4, 3))}, optax.EmptyState())


def test_updates_of_another_shape_are_refused():
    tx = scale_by_trust_ratio({"w": (0,)})
    with pytest.raises(ValueError, match=r"updates of shape \(4, 1\) for 'w' do not match"):
        tx.update({"w": jnp.ones((4, 1))}, optax.EmptyState(), {"w": jnp.ones((4, 3))})


def test_selecting_nothing_is_an_error():
    with pytest.raises(ValueError, match=r"selects nothing.*1 × rank 1"):
        scale_by_trust_ratio().init({"bias": jnp.ones(3)})


@pytest.mark.parametrize(
    ("shape", "axes"),
    [((3, 8, 5), (1,)), ((3, 2, 8, 5, 4), (2,)), ((3, 3, 3, 8, 5), (1, 2, 3))],
    ids=["layers", "layers of experts", "layers of convolutions"],
)
def test_a_sphere_for_a_whole_stack_is_warned_of(shape, axes):
    tx = rescale_weights({"w": axes}, per="layer")
    with pytest.warns(
        UserWarning, match=r"stacks of layers or experts: 'w' of shape .*\.matrix"
    ) as warned:
        tx.init({"w": jnp.ones(shape)})
    assert warned[0].filename == __file__


@pytest.mark.parametrize(
    ("shape", "axes"),
    [((8, 2, 4), (0,)), ((2, 4, 8), (0, 1)), ((5, 8), (1,)), ((6, 4, 3, 3), (1, 2, 3))],
    ids=["queries", "attention out", "PyTorch's dense", "PyTorch's convolution"],
)
def test_a_sphere_for_one_layer_is_not_warned_of(shape, axes):
    rescale_weights({"w": axes}, per="layer").init({"w": jnp.ones(shape)})


def test_a_sphere_for_each_matrix_is_not_warned_of():
    rescale_weights(ROLES.matrix, per="unit").init(random_like(SHAPES, 0))
