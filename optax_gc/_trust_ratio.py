"""Steps in proportion to the weights they are for: the other half of training on spheres."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from ._axes import AxesLike, Leaf, axes_from_rank, check_axes, not_called, reasons, warn_of_biases
from ._match import check_names
from ._project import cast, wide
from ._shards import resolve_sharded
from ._weights import length


def scale_by_trust_ratio(
    axes: AxesLike = axes_from_rank, *, specs: Any = None
) -> optax.GradientTransformation:
    """Scales each update to the norm of its weights, both over the given axes.

    An update u of the weights w becomes u' = ‖w‖ u / ‖u‖, so that the learning rate after it is the
    size of a step relative to the weights. Over ``roles.matrix`` each layer's or expert's matrix
    has a ratio of its own, and over fan-in axes each output unit; `optax.scale_by_trust_ratio` has
    one for each array, which may be a stack of layers. With `rescale_weights` it makes the update
    of Hyperball: ``optax.chain(optax.scale_by_adam(), scale_by_trust_ratio(roles.matrix),
    optax.scale_by_learning_rate(lr), rescale_weights(roles.matrix))``.

    Norms are computed in at least float32 and u' is cast once to the update's dtype. Weights of
    norm zero get their update as it is, as in LARS, and an update of zero stays zero.

    Args:
      axes: axes tree, prefix tree or label function, as for `centralize`. ``()`` leaves an update
        as it is. A label function sees the parameters.
      specs: tree, or prefix tree, of the ``jax.sharding.PartitionSpec`` under which parameters and
        updates are manual inside ``jax.shard_map``, as for `centralize`.

    Returns:
      A stateless transformation: its state is always ``optax.EmptyState``.

    Raises:
      ValueError: if ``axes`` is plainly something else; from ``init``, if nothing is selected, the
        axes do not match the parameters, or some do not fit their shape; from ``update``, if
        ``params`` are missing or do not match the updates.

    Example:
      >>> import jax.numpy as jnp
      >>> params = {"kernel": jnp.array([[3.0, 0.0], [4.0, 1.0]]), "bias": jnp.ones(2)}
      >>> updates = {"kernel": jnp.array([[0.0, 8.0], [2.0, 6.0]]), "bias": jnp.ones(2)}
      >>> tx = scale_by_trust_ratio({"kernel": (0,), "bias": ()})
      >>> print(tx.update(updates, tx.init(params), params)[0]["kernel"])
      [[0.  0.8]
       [5.  0.6]]

    References:
      You, Gitman, Ginsburg, Large Batch Training of Convolutional Networks (LARS),
      https://arxiv.org/abs/1708.03888, equation 6, for the ratio. Wen, Dang, Lyu, Ma, Liang,
      Fantastic Pretraining Optimizers and Where to Find Them II: Hyperball Optimization,
      https://arxiv.org/abs/2606.16899, for updates and weights of a fixed Frobenius norm.
    """

    check_axes(axes)

    def init(params: optax.Params) -> optax.EmptyState:
        leaves = resolve_sharded(axes, specs, params)
        if specs is None:
            warn_of_biases(axes, params)
        if leaves and not any(leaf.axes for leaf in leaves):
            raise ValueError(
                "scale_by_trust_ratio() selects nothing. Parameters are left alone for: "
                f"{reasons(leaves)}. Give axes that select some, or leave it out."
            )
        return optax.EmptyState()

    def update(
        updates: optax.Updates, state: optax.OptState, params: optax.Params | None = None
    ) -> tuple[optax.Updates, optax.OptState]:
        if params is None:
            raise ValueError(
                "scale_by_trust_ratio() needs the weights, and update got params=None. "
                "Call tx.update(grads, state, params)."
            )
        leaves = resolve_sharded(axes, specs, params, inside=True)
        check_names("updates", updates, params)
        moves, structure = jax.tree_util.tree_flatten(updates)
        scaled = [
            _to_norm_of(leaf, u) if leaf.axes else u for leaf, u in zip(leaves, moves, strict=True)
        ]
        return jax.tree_util.tree_unflatten(structure, scaled), state

    return optax.GradientTransformation(init, update)


not_called(scale_by_trust_ratio)


def _to_norm_of(leaf: Leaf, u: jax.Array) -> jax.Array:
    """u' = ‖w‖ u / ‖u‖."""
    w, u = jnp.asarray(leaf.value), jnp.asarray(u)
    if w.shape != u.shape:
        raise ValueError(
            f"updates of shape {u.shape} for {leaf.path!r} do not match params of shape {w.shape}. "
            "Give update the params that its updates are for."
        )
    over = leaf.axes, leaf.sharded_along(leaf.axes)
    of_w, of_u = length(wide(w), *over), length(wide(u), *over)
    nothing = (of_w == 0) | (of_u == 0)
    of_w = cast(of_w, of_u.dtype)
    ratio = jnp.where(nothing, 1, of_w / jnp.where(nothing, 1, of_u))
    x = wide(u)
    return cast(x * cast(ratio, x.dtype), u.dtype)
