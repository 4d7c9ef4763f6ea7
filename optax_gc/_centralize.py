"""Gradient Centralization: subtract from each unit's gradient its mean over the fan-in."""

import warnings
from typing import Any

import jax
import optax

from ._axes import (
    AxesLike,
    axes_from_rank,
    check_axes,
    is_axes,
    not_called,
    reasons,
    warn_of_biases,
)
from ._project import subtract_mean
from ._shards import resolve_sharded


def centralize(
    axes: AxesLike = axes_from_rank, *, specs: Any = None
) -> optax.GradientTransformation:
    """Subtracts from each output unit's gradient its mean over the fan-in.

    For a gradient g of a parameter with fan-in axes A, the update is ``g - mean(g, A)``. Put it
    before an optimizer, ``optax.chain(centralize(), optax.adam(lr))``, or between its parts:
    ``optax.chain(optax.scale_by_adam(), centralize(), optax.scale_by_learning_rate(lr))`` keeps the
    mean of each unit's weights.

    The mean is taken and subtracted in float32, in float64 and complex for those, and the result
    cast once to the gradient's dtype. Structure, shapes, dtypes, weak types and shardings are kept.
    Integer, boolean and float0 leaves, None and ``optax.MaskedNode`` pass through untouched, as
    does every parameter with a fan-in of one, whose gradient the subtraction would erase.

    Args:
      axes: over which axes each parameter's gradient is averaged: a tree like the parameters, or a
        prefix of it, with a tuple of ints at each leaf; or a function from parameters to such a
        tree. ``()`` leaves a parameter alone. A tuple that reaches a parameter of rank below 2
        through a prefix leaves it alone. Containers match by their keys: a plain dict does for an
        ``nnx.State`` or an Equinox module. Inside ``optax.inject_hyperparams``, which takes any
        function for a schedule, name it in ``static_args``.
      specs: tree, or prefix tree, of the ``jax.sharding.PartitionSpec`` under which the gradients
        are manual inside ``jax.shard_map``. Means are then also taken over the mesh axes that shard
        a parameter's fan-in. Not needed under ``jax.jit`` with sharded arrays.

    Returns:
      A stateless transformation: its state is always ``optax.EmptyState``.

    Raises:
      ValueError: if ``axes`` is plainly something else; from ``init``, if the axes or specs do
        not match the parameters, or some do not fit their parameter's shape. ``init`` warns if
        nothing at all is selected, unless ``axes`` is ``()``, and as `axes_from_rank` does.

    Example:
      >>> import jax.numpy as jnp
      >>> import optax
      >>> from optax_gc import centralize
      >>> params = {"kernel": jnp.zeros((3, 2)), "bias": jnp.zeros(2)}
      >>> grads = {"kernel": jnp.array([[1.0, 0.0], [2.0, 0.0], [6.0, 3.0]]), "bias": jnp.ones(2)}
      >>> tx = optax.chain(centralize(), optax.sgd(1.0))
      >>> updates, _ = tx.update(grads, tx.init(params))
      >>> print(updates["kernel"])
      [[ 2.  1.]
       [ 1.  1.]
       [-3. -2.]]
      >>> print(updates["bias"])
      [-1. -1.]

    References:
      Yong, Huang, Hua, Zhang, Gradient Centralization: A New Optimization Technique for Deep Neural
      Networks, ECCV 2020, https://arxiv.org/abs/2004.01461, equation 1 and algorithms 1 and 2.
    """

    check_axes(axes)

    def init(params: optax.Params) -> optax.EmptyState:
        leaves = resolve_sharded(axes, specs, params)
        if callable(axes) and any(isinstance(getattr(x.value, "path", None), str) for x in leaves):
            raise ValueError(
                f"axes is a function, and params are variables that know their names, such as "
                f"{leaves[0].path!r}, which their gradients do not. Make axes from those: "
                "centralize(axes_from_rank(model.trainable_variables))."
            )
        if specs is None:
            warn_of_biases(axes, params)
        given_nothing = is_axes(axes) and not axes
        if leaves and not given_nothing and not any(leaf.axes for leaf in leaves):
            warnings.warn(
                "centralize() selects nothing, so every gradient will pass unchanged. Parameters "
                f"are left alone for: {reasons(leaves)}. Give axes that select some, put it before "
                "optax.flatten, or pass axes=() if nothing is meant.",
                stacklevel=2,
            )
        return optax.EmptyState()

    def update(
        updates: optax.Updates, state: optax.OptState, params: optax.Params | None = None
    ) -> tuple[optax.Updates, optax.OptState]:
        del params
        centred = [
            subtract_mean(leaf.value, leaf.axes, leaf.sharded_along(leaf.axes))
            if leaf.axes
            else leaf.value
            for leaf in resolve_sharded(axes, specs, updates, inside=True)
        ]
        return jax.tree_util.tree_unflatten(jax.tree_util.tree_structure(updates), centred), state

    return optax.GradientTransformation(init, update)


not_called(centralize)
