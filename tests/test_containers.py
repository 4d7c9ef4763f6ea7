"""Axes trees over the parameter containers of the frameworks, and inside Optax's masks."""

import dataclasses
from typing import Any, NamedTuple

import equinox as eqx
import haiku as hk
import jax
import jax.numpy as jnp
import keras
import numpy as np
import optax
import pytest
from flax import nnx
from flax.core import freeze

from optax_gc import axes_from_rank, centralize, summary

KERNEL = np.array([[1.0, 0.0], [2.0, -4.0], [6.0, 1.0]], np.float32)
BIAS = np.array([5.0, 7.0], np.float32)
AXES = {"kernel": (0,), "bias": ()}


class Pair(NamedTuple):
    kernel: Any
    bias: Any


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Layer:
    kernel: Any
    bias: Any


class Module(eqx.Module):
    kernel: Any
    bias: Any
    activation: Any = None

    def __call__(self, x):
        return x @ self.kernel + self.bias


def nnx_state():
    return nnx.state(nnx.Linear(3, 2, rngs=nnx.Rngs(0)), nnx.Param)


CONTAINERS = {
    "dict": {"kernel": KERNEL, "bias": BIAS},
    "FrozenDict": freeze({"kernel": KERNEL, "bias": BIAS}),
    "NamedTuple": Pair(KERNEL, BIAS),
    "dataclass": Layer(KERNEL, BIAS),
    "Equinox module": Module(KERNEL, BIAS),
    "nnx.State": jax.tree.map(lambda p: KERNEL if p.ndim == 2 else BIAS, nnx_state()),
}


def leaves(tree):
    """The kernel and the bias of any of the containers."""
    return sorted(jax.tree.leaves(tree), key=np.ndim, reverse=True)


def assert_centralized(updates, container):
    kernel, bias = leaves(updates)
    np.testing.assert_allclose(kernel, KERNEL - KERNEL.mean(0), rtol=1e-6)
    np.testing.assert_array_equal(bias, BIAS)
    assert jax.tree.structure(updates) == jax.tree.structure(container)


def same_kind(container):
    return jax.tree.map(lambda leaf: (0,) if np.ndim(leaf) == 2 else (), container)


@pytest.mark.parametrize("container", CONTAINERS.values(), ids=CONTAINERS)
@pytest.mark.parametrize(
    "axes_for",
    [lambda _: AXES, same_kind, lambda _: (0,), lambda _: axes_from_rank, lambda _: same_kind],
    ids=["plain dict", "tree of the same kind", "prefix", "rank", "function"],
)
def test_every_way_of_giving_axes_works_over_every_container(container, axes_for):
    tx = centralize(axes_for(container))
    updates, _ = tx.update(container, tx.init(container))
    assert_centralized(updates, container)


def test_lists_match_by_position():
    grads = [KERNEL, BIAS]
    updates, _ = centralize([(0,), ()]).update(grads, optax.EmptyState())
    assert_centralized(updates, grads)


def test_keras_variables_give_their_own_names_and_their_gradients_a_list():
    layers = [keras.layers.Embedding(7, 3), keras.layers.Dense(2)]
    model = keras.Sequential([keras.Input((4,), dtype="int32"), *layers])
    assert "embedding/embeddings" in summary(model.trainable_variables)
    with pytest.raises(ValueError, match=r"axes_from_rank\(model.trainable_variables\)"):
        centralize().init(model.trainable_variables)
    axes = axes_from_rank(model.trainable_variables)
    assert axes == [(), (0,), ()]
    grads = [jnp.asarray(variable.value) + 1 for variable in model.trainable_variables]
    updates, _ = centralize(axes).update(grads, optax.EmptyState())
    np.testing.assert_array_equal(updates[0], grads[0])
    np.testing.assert_allclose(jnp.mean(updates[1], 0), 0, atol=1e-6)


def test_haiku_parameters_are_matched_by_module_and_name():
    network = hk.without_apply_rng(hk.transform(lambda x: hk.nets.MLP([5, 2])(x)))
    params = network.init(jax.random.key(0), jnp.ones((4, 3)))
    axes = {"mlp/~/linear_0": {"w": (0,), "b": ()}, "mlp/~/linear_1": ()}
    updates, _ = centralize(axes).update(params, optax.EmptyState())
    np.testing.assert_allclose(jnp.mean(updates["mlp/~/linear_0"]["w"], 0), 0, atol=1e-6)
    np.testing.assert_array_equal(updates["mlp/~/linear_1"]["w"], params["mlp/~/linear_1"]["w"])


def test_an_equinox_model_filtered_to_arrays_trains_with_its_own_layout():
    model = eqx.nn.MLP(3, 2, width_size=5, depth=1, key=jax.random.key(0))
    params = eqx.filter(model, eqx.is_inexact_array)
    axes = axes_from_rank(params, output_axis=0)
    updates, _ = centralize(axes).update(params, optax.EmptyState())
    np.testing.assert_allclose(jnp.mean(updates.layers[0].weight, 1), 0, atol=1e-6)
    assert updates.activation is None


def test_an_axes_tree_that_is_a_callable_module_is_read_as_a_tree():
    axes = Module(kernel=(0,), bias=())
    assert callable(axes)
    container = CONTAINERS["dict"]
    assert_centralized(centralize(axes).update(container, optax.EmptyState())[0], container)


@pytest.mark.parametrize("axes", [AXES, axes_from_rank, (0,)], ids=["dict", "rank", "prefix"])
def test_an_nnx_optimizer_trains_with_plain_dict_axes(axes):
    model = nnx.Linear(3, 2, rngs=nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, optax.chain(centralize(axes), optax.sgd(0.1)), wrt=nnx.Param)
    sums = jnp.sum(model.kernel[...], 0)
    x = jax.random.normal(jax.random.key(1), (4, 3)) + 1

    @nnx.jit
    def step(model, optimizer):
        grads = nnx.grad(lambda model: jnp.sum(jnp.sin(model(x))))(model)
        optimizer.update(model, grads)

    before = model.kernel[...]
    step(model, optimizer)
    assert jnp.max(jnp.abs(model.kernel[...] - before)) > 0.01
    np.testing.assert_allclose(jnp.sum(model.kernel[...], 0), sums, atol=1e-6)


MODEL = {"body": {"kernel": KERNEL, "bias": BIAS}, "head": {"kernel": 2 * KERNEL}}
FULL_AXES = {"body": {"kernel": (0,), "bias": ()}, "head": {"kernel": (1,)}}


@pytest.mark.parametrize(
    "mask",
    [
        {"body": {"kernel": True, "bias": False}, "head": {"kernel": False}},
        {"body": {"kernel": True, "bias": False}, "head": False},
        {"body": True, "head": False},
    ],
    ids=["full", "subtree masked", "prefix"],
)
def test_a_full_axes_tree_works_inside_masked(mask):
    tx = optax.masked(centralize(FULL_AXES), mask)
    updates, _ = tx.update(MODEL, tx.init(MODEL))
    np.testing.assert_allclose(updates["body"]["kernel"], KERNEL - KERNEL.mean(0), rtol=1e-6)
    np.testing.assert_array_equal(updates["head"]["kernel"], MODEL["head"]["kernel"])


def test_a_full_axes_tree_works_inside_partition():
    tx = optax.partition(
        {"centralized": centralize(FULL_AXES), "plain": optax.identity()},
        {"body": "plain", "head": "centralized"},
    )
    updates, _ = tx.update(MODEL, tx.init(MODEL))
    np.testing.assert_array_equal(updates["body"]["kernel"], KERNEL)
    head = MODEL["head"]["kernel"]
    np.testing.assert_allclose(updates["head"]["kernel"], head - head.mean(1, keepdims=True))


def test_axes_made_from_masked_parameters_do_not_stand_for_the_whole():
    masked = {"body": MODEL["body"], "head": optax.MaskedNode()}
    with pytest.raises(ValueError, match="'head/kernel' of shape"):
        centralize(axes_from_rank(masked)).init(MODEL)


class Critic(NamedTuple):
    value: Any


@pytest.mark.parametrize("container", [dict, Critic])
def test_a_parameter_named_value_is_not_taken_for_a_box(container):
    params = container(value={"kernel": KERNEL, "bias": BIAS})
    axes = {"value": {"kernel": (0,), "bias": ()}}
    updates, _ = centralize(axes).update(params, optax.EmptyState())
    assert_centralized(updates, params)
    assert "value/kernel" in summary(params, axes)
