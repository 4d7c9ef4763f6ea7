"""Theorem 4.1 of the paper along real training runs, with its failure and its return."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

from optax_gc import axes_from_rank, centralize

STEPS = 60
GAMMA = 0.7


class Network(nn.Module):
    """A convolution, an attention layer and dense layers, none of which sees centred inputs."""

    @nn.compact
    def __call__(self, images):
        x = nn.relu(nn.Conv(6, (3, 3))(images))
        x = x.reshape(x.shape[0], -1, x.shape[-1])
        x = x + nn.MultiHeadDotProductAttention(num_heads=2)(x)
        hidden = nn.relu(nn.Dense(5)(jnp.mean(x, 1)))
        return nn.Dense(3)(hidden)


def unit_sums(params):
    """1ᵀw of every unit: how far γ1 added to a layer's input moves its output, over γ."""
    axes = axes_from_rank(params)
    return jax.tree.map(
        lambda w, a: np.sum(np.asarray(w, np.float64), a) if a else None, params, axes
    )


def train(tx):
    """The initial parameters and those after some steps on data that favours a constant."""
    key = jax.random.key(0)
    images = jax.random.uniform(key, (16, 5, 4, 2)) + 0.5
    labels = jax.random.randint(key, (16,), 0, 3)
    model = Network()
    initial = model.init(jax.random.key(1), images)["params"]

    def loss(params):
        logits = model.apply({"params": params}, images)
        return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, labels))

    def step(carry, _):
        params, state = carry
        updates, state = tx.update(jax.grad(loss)(params), state, params)
        return (optax.apply_updates(params, updates), state), None

    (params, _), _ = jax.lax.scan(step, (initial, tx.init(initial)), length=STEPS)
    return initial, params


def drift(tx):
    """The largest change of a unit's sum of weights, over all kernels of the network."""
    initial, params = train(tx)
    changes = jax.tree.map(lambda a, b: np.max(np.abs(a - b)), *map(unit_sums, (initial, params)))
    return max(jax.tree.leaves(changes))


C = centralize()


def adam():
    return optax.scale_by_adam()


def learning_rate():
    return optax.scale_by_learning_rate(0.01)


@pytest.mark.parametrize(
    "tx",
    [
        optax.chain(C, optax.sgd(0.1)),
        optax.chain(C, optax.sgd(0.1, momentum=0.9)),
        optax.chain(C, optax.sgd(0.1, momentum=0.9, nesterov=True)),
        optax.chain(optax.clip_by_global_norm(0.5), C, optax.sgd(0.1, momentum=0.9)),
        optax.chain(C, optax.clip_by_global_norm(0.5), optax.sgd(0.1, momentum=0.9)),
        optax.chain(optax.scale_by_adam(), C, optax.scale_by_learning_rate(0.01)),
        optax.chain(optax.scale_by_lion(), C, optax.scale_by_learning_rate(0.01)),
    ],
    ids=["SGD", "SGDM", "Nesterov", "clipped", "then clipped", "after Adam", "after Lion"],
)
def test_the_sum_of_each_units_weights_stays_what_it_was_at_the_start(tx, standard_promotion):
    assert drift(tx) < 2e-5


@pytest.mark.parametrize(
    "tx",
    [
        optax.sgd(0.1, momentum=0.9),
        optax.chain(optax.centralize(), optax.sgd(0.1, momentum=0.9)),
        optax.chain(C, optax.adam(0.01)),
        optax.chain(C, optax.scale_by_lion(), optax.scale_by_learning_rate(0.01)),
        optax.chain(C, optax.clip(1e-3), optax.sgd(0.1, momentum=0.9)),
        optax.chain(C, optax.add_decayed_weights(0.1), optax.sgd(0.1)),
    ],
    ids=["plain", "optax's axes", "before Adam", "before Lion", "before clip", "before decay"],
)
def test_the_sum_of_each_units_weights_drifts_where_it_is_documented_to(tx, standard_promotion):
    assert drift(tx) > 1e-2


def test_a_constant_added_to_the_input_moves_the_output_by_what_it_did_at_the_start(
    standard_promotion,
):
    initial, params = train(optax.chain(C, optax.sgd(0.1, momentum=0.9)))
    x = jax.random.normal(jax.random.key(2), (7, 6))
    layer = nn.Dense(5)

    def moved(params):
        before, after = (layer.apply({"params": params["Dense_0"]}, x + c) for c in (0.0, GAMMA))
        return after - before

    assert np.max(np.abs(params["Dense_0"]["kernel"] - initial["Dense_0"]["kernel"])) > 0.01
    sums = np.sum(np.asarray(initial["Dense_0"]["kernel"]), 0)
    np.testing.assert_allclose(moved(params), np.tile(GAMMA * sums, (7, 1)), atol=1e-5)
