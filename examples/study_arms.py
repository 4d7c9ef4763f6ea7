"""The arms of the study, and the training that they share.

Arms differ in what the gradient goes through. Everything else, from the initial weights to the
order of the chain, is common to them by construction: one program trains all, told by a number
which arm it is.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax import lax
from study_tasks import MODELS

import optax_gc

CONV_ONLY = partial(optax_gc.axes_from_rank, conv_only=True)


class Arm(NamedTuple):
    """What the gradient goes through before the optimizer's moments, and the update after them."""

    before: Callable[[jax.Array], optax.GradientTransformation] = lambda key: optax.identity()
    after: Callable[[jax.Array], optax.GradientTransformation] = lambda key: optax.identity()
    start: Callable[[Any], Any] = lambda params: params  # applied to the initial weights
    applies: Callable[[Any], bool] = lambda params: True


def project_out_random(
    key: jax.Array, axes: Any = optax_gc.axes_from_rank
) -> optax.GradientTransformation:
    """Removes from each unit's gradient what lies along a random direction of its fan-in.

    GC removes what lies along e = 1/√M. This is the control: as much is removed, elsewhere. The
    directions are drawn in ``init`` and stay.
    """

    def init(params):
        labels = axes(params) if callable(axes) else axes
        leaves, structure = jax.tree.flatten(params)
        keys = jax.tree.unflatten(structure, list(jax.random.split(key, len(leaves))))

        def direction(w, axes, key):
            r = jax.random.normal(key, w.shape, w.dtype)
            return r / jnp.sqrt((r * r).sum(axes, keepdims=True)) if axes else jnp.zeros_like(w)

        return jax.tree.map(direction, params, labels, keys)

    def update(updates, state, params=None):
        labels = axes(updates) if callable(axes) else axes

        def project(g, axes, r):
            return g - r * (r * g).sum(axes, keepdims=True) if axes else g

        return jax.tree.map(project, updates, labels, state), state

    return optax.GradientTransformation(init, update)


def selects_something(params: Any) -> bool:
    """Whether the conv-only rule selects anything, so that the arm differs from no GC."""
    labels = jax.tree.leaves(CONV_ONLY(params), is_leaf=lambda x: isinstance(x, tuple))
    return any(labels)


ARMS = {
    "no GC": Arm(),
    "optax.centralize": Arm(before=lambda key: optax.centralize()),
    "GC": Arm(before=lambda key: optax_gc.centralize()),
    "GC, conv only": Arm(
        before=lambda key: optax_gc.centralize(CONV_ONLY), applies=selects_something
    ),
    "GC after": Arm(after=lambda key: optax_gc.centralize()),
    "centred start + GC": Arm(
        before=lambda key: optax_gc.centralize(), start=optax_gc.center_weights
    ),
    "random direction": Arm(before=project_out_random),
}


def choose(index: jax.Array, transforms: list[optax.GradientTransformation]):
    """Runs one of several transformations, so that one compilation serves all arms.

    Outside of vmap over seeds the index is one number, and the others cost nothing.
    """

    def init(params):
        return tuple(tx.init(params) for tx in transforms)

    def update(updates, state, params=None):
        def branch(i, updates):
            updates, new = transforms[i].update(updates, state[i], params)
            return updates, (*state[:i], new, *state[i + 1 :])

        branches = [partial(branch, i) for i in range(len(transforms))]
        return lax.switch(index, branches, updates)

    return optax.GradientTransformation(init, update)


def optimizer(
    name: str, arms: list[Arm], index: Any, lr: Any, decay: Any, steps: int, key: jax.Array
):
    """Chains an arm with the optimizer; decoupled decay, ahead of what comes after the moments."""
    moments = {"SGDM": optax.trace(0.9), "AdamW": optax.scale_by_adam()}[name]
    return optax.chain(
        choose(index, [arm.before(key) for arm in arms]),
        moments,
        optax.add_decayed_weights(decay),
        choose(index, [arm.after(key) for arm in arms]),
        optax.scale_by_learning_rate(optax.cosine_decay_schedule(lr, steps)),
    )


class Net:
    """One model of one task: what to train, how, and how to evaluate it."""

    def __init__(self, model: str, optimizer_name: str, features: int, classes: int):
        """Sets up one compilation for all arms and cells of this model, optimizer and shape."""
        make = partial(MODELS[model], features, classes)
        graph = nnx.graphdef(nnx.eval_shape(lambda: make(nnx.Rngs(0))))

        def init(key):
            return nnx.split(make(nnx.Rngs(key)), nnx.Param, nnx.BatchStat)[1:]

        params = jax.eval_shape(init, jax.random.key(0))[0]
        self.arms = [name for name, arm in ARMS.items() if arm.applies(params)]
        arms = [ARMS[name] for name in self.arms]

        def loss(params, stats, x, y):
            # Variables made in this trace, which the network may then change.
            net = nnx.merge(graph, params, jax.tree.map(jnp.asarray, stats))
            nll = optax.softmax_cross_entropy_with_integer_labels(net(x, train=True), y).mean()
            return nll, nnx.state(net, nnx.BatchStat)

        # Written for one seed and mapped over seeds, the optimizer included: inside vmap a kernel
        # has its own axes. Outside it has one more, and what goes by rank would average over seeds.
        def train(arm, seed, lr, decay, batches, x, y):
            key = jax.random.key(seed)
            params, stats = init(key)
            params = lax.switch(arm, [a.start for a in arms], params)
            key, steps = jax.random.fold_in(key, 1), len(batches)
            tx = optimizer(optimizer_name, arms, arm, lr, decay, steps, key)

            def step(carry, ids):
                params, stats, state = carry
                grads, stats = jax.grad(loss, has_aux=True)(params, stats, x[ids], y[ids])
                updates, state = tx.update(grads, state, params)
                return (optax.apply_updates(params, updates), stats, state), None

            carry, _ = lax.scan(step, (params, stats, tx.init(params)), batches)
            return carry[:2]

        def evaluate(trained):
            net, x, y = nnx.merge(graph, *trained[0]), *trained[1:]
            logits = net(x, train=False)
            nll = optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()
            return nll, (logits.argmax(axis=-1) == y).mean()

        self.train = jax.jit(jax.vmap(train, in_axes=(None, 0, 0, 0, 0, None, None)))
        self.evaluate = jax.jit(partial(lax.map, evaluate))
