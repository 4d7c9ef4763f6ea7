"""Centred initial weights, rescaled weights, and what the two make of each other and of GC."""

import equinox as eqx
import flax.linen as nn
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


class ConvNet(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(6, (3, 2), name="stem")(x)).mean((1, 2))
        return nn.Dense(4, name="head")(x)


def dense(shape=(7, 5), dtype=jnp.float32, seed=0):
    keys = jax.random.split(jax.random.key(seed), 2)
    return {
        "kernel": (jax.random.normal(keys[0], shape) + 0.7).astype(dtype),
        "bias": jax.random.normal(keys[1], shape[-1:]).astype(dtype),
    }


def float64(x):
    return np.asarray(x, np.float64)


def steps(tx, params, n, *, seed=1):
    """`n` compiled steps with random gradients that have a mean; all the kernels passed through."""

    def step(carry, key):
        params, state = carry
        noise = optax.tree_utils.tree_random_like(key, params, jax.random.normal)
        grads = jax.tree.map(lambda g: g + jnp.asarray(0.3, g.dtype), noise)
        updates, state = tx.update(grads, state, params)
        params = optax.apply_updates(params, updates)
        return (params, state), params["kernel"]

    keys = jax.random.split(jax.random.key(seed), n)
    return jax.jit(lambda p: jax.lax.scan(step, (p, tx.init(p)), keys))(params)


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
    w = jax.random.normal(jax.random.key(0), (3, 4, 5)) + 2
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
    x = float64(jax.random.uniform(jax.random.key(5), (6, 9)))
    for kernel in float64(kernels[::10]):
        change = (x + 10) @ kernel - x @ kernel
        expected = np.broadcast_to(10 * float64(start["kernel"]).sum(0), change.shape)
        np.testing.assert_allclose(change, expected, atol=1e-4)
    assert np.abs(float64(params[0]["kernel"] - start["kernel"])).max() > 1


# rescale_weights

OPTIMIZERS = {
    "sgdm": lambda: optax.sgd(0.1, momentum=0.9),
    "adam": lambda: optax.adam(0.01),
    "adam, centralized last": lambda: optax.chain(optax.adam(0.01), centralize()),
    "centralize, sgdm": lambda: optax.chain(centralize(), optax.sgd(0.1, momentum=0.9)),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("per", ["unit", "layer"])
def test_rescaled_weights_keep_their_norm_over_1000_steps(name, per, standard_promotion):
    start = dense()
    tx = optax.chain(OPTIMIZERS[name](), rescale_weights(per=per))
    _, kernels = steps(tx, start, 1000)
    axes = (0,) if per == "unit" else (0, 1)
    norms = np.sqrt((float64(kernels) ** 2).sum(tuple(axis + 1 for axis in axes)))
    expected = np.sqrt((float64(start["kernel"]) ** 2).sum(axes))
    assert np.abs(float64(kernels[-1]) - float64(start["kernel"])).max() > 0.1
    np.testing.assert_allclose(norms, np.broadcast_to(expected, norms.shape), rtol=1e-6)
