"""Optimizer states saved and restored by Orbax while the chain, the axes or the mesh change.

`centralize` has no arrays in its state, so the arrays of a chain are the same with and without it,
in the same order: `moved` is all that adding or removing it takes.
"""

import functools
import gc

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from optax_gc import centralize, rescale_weights

pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")

ADAM = optax.adam(1e-2)
BEFORE = optax.chain(centralize(), ADAM)
PARTS = optax.chain(optax.scale_by_adam(), optax.scale_by_learning_rate(1e-2))
BETWEEN = optax.chain(optax.scale_by_adam(), centralize(), optax.scale_by_learning_rate(1e-2))
HIDDEN = {"hidden": {"kernel": (0,), "bias": ()}, "head": {"kernel": (), "bias": ()}}


@pytest.fixture(autouse=True)
def promotion_as_users_have_it():
    """Neither Flax's Dense nor Optax's Adam runs under the strict one."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


class Network(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(3, name="head")(nn.relu(nn.Dense(16, name="hidden")(x)))


@functools.cache
def first_params():
    return jax.jit(Network().init)(jax.random.key(0), jnp.zeros((1, 24)))["params"]


@functools.partial(jax.jit, static_argnums=0)
def step(tx, params, state, x, y):
    grads = jax.grad(lambda p: ((Network().apply({"params": p}, x) - y) ** 2).mean())(params)
    updates, state = tx.update(grads, state, params)
    return optax.apply_updates(params, updates), state


def train(tx, params, state, seeds):
    for seed in seeds:
        x = np.random.default_rng(seed).random((32, 24), np.float32)
        y = np.stack([x[:, :8].sum(1), x[:, 3] * x[:, 5], x[:, 20]], 1)
        params, state = step(tx, params, state, x, y)
    return params, state


def started(tx):
    """Three steps from the beginning."""
    params = first_params()
    return train(tx, params, tx.init(params), range(3))


@pytest.fixture
def restored(tmp_path):
    """Saves a state, and restores it for an optimizer."""

    def save_and_restore(state, tx, like=None):
        with ocp.StandardCheckpointer() as checkpointer:
            checkpointer.save(tmp_path / "state", state)
            checkpointer.wait_until_finished()
            target = jax.eval_shape(tx.init, first_params()) if like is None else like
            return checkpointer.restore(tmp_path / "state", target)

    yield save_and_restore
    gc.collect()  # reads that Orbax abandons complain now, and in no later test


def moved(state, tx, params):
    """The arrays of `state` in the structure that `tx` has; as the README says it."""
    structure = jax.tree.structure(jax.eval_shape(tx.init, params))
    return jax.tree.unflatten(structure, jax.tree.leaves(state))


def assert_same(a, b, rtol=0.0):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=rtol, atol=rtol), a, b)


CHAINS = {
    "before": BEFORE,
    "between": BETWEEN,
    "rescaled": optax.chain(BEFORE, rescale_weights(HIDDEN)),
}


@pytest.mark.parametrize("tx", CHAINS.values(), ids=CHAINS)
def test_a_restored_run_is_the_uninterrupted_one(tx, restored):
    params, state = started(tx)
    uninterrupted = train(tx, params, state, range(3, 6))
    assert_same(train(tx, params, restored(state, tx), range(3, 6)), uninterrupted)


@pytest.mark.parametrize("axes", [(), HIDDEN, lambda params: HIDDEN], ids=["none", "some", "fn"])
def test_axes_may_change_between_saving_and_restoring(axes, restored):
    params, state = started(BEFORE)
    other = optax.chain(centralize(axes), ADAM)
    resumed = train(other, params, restored(state, other), range(3, 6))
    assert_same(resumed, train(other, params, state, range(3, 6)))


def test_centralize_that_selects_nothing_keeps_its_place_in_a_checkpoint(restored):
    nothing = optax.chain(centralize(axes=()), ADAM)
    params, state = started(nothing)
    resumed = train(BEFORE, params, restored(state, BEFORE), range(3, 6))
    adam_state = state[1]
    by_hand = train(BEFORE, params, (optax.EmptyState(), adam_state), range(3, 6))
    assert_same(resumed, by_hand)


SWITCHES = {
    "added before": (ADAM, BEFORE, lambda s: (optax.EmptyState(), s)),
    "removed before": (BEFORE, ADAM, lambda s: s[1]),
    "added between": (PARTS, BETWEEN, lambda s: (s[0], optax.EmptyState(), s[1])),
    "removed between": (BETWEEN, PARTS, lambda s: (s[0], s[2])),
}


@pytest.mark.parametrize(("old", "new", "by_hand"), SWITCHES.values(), ids=SWITCHES)
def test_centralize_may_be_added_and_removed(old, new, by_hand, restored):
    params, state = started(old)
    resumed = train(new, params, moved(restored(state, old), new, params), range(3, 6))
    assert_same(resumed, train(new, params, by_hand(state), range(3, 6)))


@pytest.mark.parametrize(("old", "new"), [(ADAM, BEFORE), (BEFORE, ADAM)])
def test_orbax_refuses_the_state_of_another_chain(old, new, restored):
    _, state = started(old)
    with pytest.raises(ValueError, match="Structure mismatch"):
        restored(state, new)


def test_optax_refuses_the_state_of_another_chain():
    params, state = started(PARTS)
    with pytest.raises(ValueError, match="number of updates and states"):
        BETWEEN.update(params, state, params)


def test_rescale_weights_may_be_added_with_the_norms_it_finds(restored):
    params, state = started(BEFORE)
    rescale = rescale_weights(HIDDEN)
    longer = optax.chain(centralize(), ADAM, rescale)
    resumed, _ = train(
        longer, params, (*restored(state, BEFORE), rescale.init(params)), range(3, 6)
    )
    np.testing.assert_allclose(
        np.linalg.norm(resumed["hidden"]["kernel"], axis=0),
        np.linalg.norm(params["hidden"]["kernel"], axis=0),
        rtol=1e-6,
    )


def test_orbax_refuses_norms_recorded_for_other_axes(restored):
    per_unit = optax.chain(ADAM, rescale_weights(HIDDEN))
    per_layer = optax.chain(ADAM, rescale_weights(HIDDEN, per="layer"))
    _, state = started(per_unit)
    with pytest.raises(ValueError, match=r"[Ss]hape"):
        restored(state, per_layer)


def one_device():
    return lambda x: jax.sharding.SingleDeviceSharding(jax.devices()[3])


def over(devices, *spec):
    mesh = jax.make_mesh(devices, ("x", "y"), axis_types=(AxisType.Auto,) * 2)
    split = NamedSharding(mesh, P(*spec))
    return lambda x: split if x.shape == (24, 16) else NamedSharding(mesh, P())


MESHES = {
    "one device": one_device(),
    "fan-in": over((8, 1), "x"),
    "output": over((2, 4), None, "y"),
    "both": over((4, 2), "x", "y"),
}


@pytest.mark.parametrize(
    ("source", "target"),
    [
        ("one device", "both"),
        ("both", "fan-in"),
        ("fan-in", "output"),
        ("output", "one device"),
    ],
)
def test_a_state_saved_on_one_mesh_is_restored_on_another(source, target, restored):
    params, state = started(BEFORE)
    saved = jax.tree.map(lambda x: jax.device_put(x, MESHES[source](x)), state)
    abstract = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=MESHES[target](x)), state
    )
    found = restored(saved, BEFORE, like=abstract)
    for x, wanted in zip(jax.tree.leaves(found), jax.tree.leaves(abstract), strict=True):
        assert x.sharding.is_equivalent_to(wanted.sharding, x.ndim)
    there = jax.tree.map(lambda x: jax.device_put(x, MESHES[target](x)), params)
    resumed = train(BEFORE, there, found, range(3, 6))
    assert_same(resumed, train(BEFORE, params, state, range(3, 6)), rtol=1e-5)
