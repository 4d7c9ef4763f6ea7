"""The geometry of the weights: on the zero-sum hyperplane from the start, on a sphere ever after.

Gradient Centralization moves each unit's weights along a hyperplane 1ᵀw = const, and rescaling
along a sphere ‖w‖ = const. Centred weights make the two agree: the hyperplane then passes through
the centre of the sphere, and neither constraint disturbs the other.
"""

import math
import warnings
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jax.core import Tracer

from ._axes import (
    Axes,
    AxesLike,
    Leaf,
    axes_from_rank,
    check_axes,
    check_params,
    is_axes,
    not_called,
    reasons,
    resolve,
    warn_of_biases,
)
from ._match import check_names
from ._project import cast, root, subtract_mean, wide
from ._shards import over_shards, resolve_sharded

Params = TypeVar("Params")


def center_weights(params: Params, axes: AxesLike = axes_from_rank) -> Params:
    """Subtracts from each output unit's weights their mean over the fan-in.

    For initial weights. SGD with `centralize` keeps the sum of each unit's weights at what it was
    at the start; from a sum of zero, the unit's output never depends on a constant added to all its
    inputs. A small mean is not enough for that: fan-in initialisers give a sum of order one at any
    width.

    Args:
      params: pytree of arrays, ``nnx.State`` or Equinox module (any shapes and dtypes).
      axes: axes tree, prefix tree or label function, as for `centralize`.

    Returns:
      A tree like ``params``; structure, shapes, dtypes, weak types and shardings are kept. The mean
      is taken and subtracted in at least float32, and the result cast once. What `centralize`
      leaves alone is returned as it is.

    Raises:
      ValueError: if the axes do not match ``params``, or some do not fit their shape. Warns if
        nothing at all is selected, unless ``axes`` is ``()``, and as `axes_from_rank` does.
      TypeError: if ``params`` holds a ``jax.ShapeDtypeStruct``.

    Example:
      >>> import jax.numpy as jnp
      >>> params = {"kernel": jnp.array([[1.0, 0.0], [2.0, 0.0], [6.0, 3.0]]), "bias": jnp.ones(2)}
      >>> params = center_weights(params)
      >>> print(params["kernel"])
      [[-2. -1.]
       [-1. -1.]
       [ 3.  2.]]

    References:
      Yong et al., Gradient Centralization, https://arxiv.org/abs/2004.01461, theorem 4.1.
    """
    check_params(params, "center_weights")
    if any(isinstance(x, jax.ShapeDtypeStruct) for x in jax.tree_util.tree_leaves(params)):
        raise TypeError(
            "center_weights: params are shapes, and weights are needed. For the shapes of what it "
            "returns, write jax.eval_shape(center_weights, params)."
        )
    leaves = resolve(axes, params)
    warn_of_biases(axes, params)
    given_nothing = is_axes(axes) and not axes
    if leaves and not given_nothing and not any(leaf.axes for leaf in leaves):
        warnings.warn(
            "center_weights() selects nothing, so all weights stay as they are. Parameters are "
            f"left alone for: {reasons(leaves)}. Give axes that select some, or axes=() for none.",
            stacklevel=2,
        )
    centred = [subtract_mean(leaf.value, leaf.axes) if leaf.axes else leaf.value for leaf in leaves]
    return jax.tree_util.tree_unflatten(jax.tree_util.tree_structure(params), centred)


class RescaleWeightsState(NamedTuple):
    """The norms at which `rescale_weights` left the weights, or found them in ``init``."""

    norms: Any  # like the parameters: fan-in axes of size one, or a scalar 0 where left alone


def rescale_weights(
    axes: AxesLike = axes_from_rank,
    *,
    norm: float | None = None,
    per: Literal["unit", "layer"] = "unit",
    specs: Any = None,
) -> optax.GradientTransformation:
    """Moves the weights that an update would lead to back to a sphere, by scaling them.

    An update u of the weights w becomes u' = τ (w + u) / ‖w + u‖ - w. There are two uses. In place
    of weight decay (Liu et al.), for weights followed by normalisation, whose length has no effect
    but on the effective step: `scale_invariant` finds them, and others, such as those of the head,
    are left to decay. And as a constraint under which hidden matrices are trained (Wen et al.),
    scale-invariant or not: ``rescale_weights(roles.matrix)`` with the roles of `roles_from_trace`
    keeps the Frobenius norm of each layer's and each expert's matrix, stacked or not, and
    `scale_by_trust_ratio` is the other half of that.

    It must come last: ``optax.chain(optax.adam(lr), rescale_weights(axes))``. What follows it in
    the chain, or replaces the parameters, takes the weights off the sphere. ``update`` warns about
    that when it finds the weights elsewhere than it left them, which it can know outside of
    ``jax.jit`` only: run a step without it to see.

    Norms are computed in at least float32 and u' is cast once to the update's dtype. Weights of
    norm zero stay, as do those that an update leads to zero. Squares of weights beyond about 1e-19
    to 1e19 leave float32's range: a smaller norm counts as zero, a larger one as infinite.

    Args:
      axes: axes tree, prefix tree or label function, as for `centralize`. ``()`` leaves a parameter
        alone. A label function sees the parameters.
      norm: τ, positive; None keeps the norms that ``init`` finds. May be a hyperparameter of
        ``optax.inject_hyperparams``, given ``static_args=("axes", "per")``.
      per: ``"unit"`` for a sphere for each output unit, over the given axes; ``"layer"`` for one
        for each whole array, as for weights followed by layer or group normalisation. An array may
        be a stack of layers or experts, about which ``init`` warns: ``roles.matrix`` for axes gives
        each its own.
      specs: tree, or prefix tree, of the ``jax.sharding.PartitionSpec`` under which parameters and
        updates are manual inside ``jax.shard_map``, as for `centralize`.

    Returns:
      A transformation with the norms in its state: a tree like the parameters of arrays in float32
      (float64 for that), of the parameter's shape with fan-in axes (for layers, all) of size one,
      a scalar where left alone. They are sharded as the parameters' output axes are.

    Raises:
      ValueError: if ``axes`` is plainly something else, ``norm`` is not positive or ``per``
        unknown; from ``init``, if nothing is selected, the axes do not match the parameters, or
        some do not fit their shape; from ``update``, if ``params`` are missing or do not match the
        updates, or the norms were recorded for other axes.

    Warns:
      UserWarning: from ``init``, where ``per="layer"`` would put a stack on one sphere; from
        ``update``, where weights are elsewhere than they were left.

    Example:
      >>> import jax.numpy as jnp
      >>> import optax
      >>> params = {"kernel": jnp.array([[3.0, 0.0], [4.0, 1.0]]), "bias": jnp.ones(2)}
      >>> grads = {"kernel": jnp.array([[0.0, -1.0], [4.0, 1.0]]), "bias": jnp.ones(2)}
      >>> tx = optax.chain(optax.sgd(1.0), rescale_weights())
      >>> updates, _ = tx.update(grads, tx.init(params), params)
      >>> print(optax.apply_updates(params, updates)["kernel"])
      [[5. 1.]
       [0. 0.]]

    References:
      Liu et al., The Implicit Biases of Stochastic Gradient Descent on Deep Neural Networks with
      Batch Normalization (later: Weight Rescaling), https://arxiv.org/abs/2102.03497. Wen et al.,
      Fantastic Pretraining Optimizers and Where to Find Them II: Hyperball Optimization,
      https://arxiv.org/abs/2606.16899.
    """
    if isinstance(axes, int | float):
        raise ValueError(f"axes is {axes!r}. Is it the norm? rescale_weights(norm={axes!r}).")
    if axes in ("unit", "layer"):
        raise ValueError(f"axes is {axes!r}. Give it by name: rescale_weights(per={axes!r}).")
    check_axes(axes)
    if per not in ("unit", "layer"):
        raise ValueError(f"per is {per!r}. Use 'unit' or 'layer'.")
    if norm is not None:
        _check_norm(norm)

    def init(params: optax.Params) -> RescaleWeightsState:
        leaves = resolve_sharded(axes, specs, params)
        if specs is None:
            warn_of_biases(axes, params)
        if leaves and not any(leaf.axes for leaf in leaves):
            raise ValueError(
                "rescale_weights() selects nothing. Parameters are left alone for: "
                f"{reasons(leaves)}. Give axes that select some, put it before optax.flatten, or "
                "leave it out."
            )
        if per == "layer":
            _warn_of_stacks(leaves)
        norms = [
            length(wide(leaf.value), *_sphere(leaf, per))
            if leaf.axes
            else jnp.zeros((), jnp.float32)
            for leaf in leaves
        ]
        structure = jax.tree_util.tree_structure(params)
        return RescaleWeightsState(jax.tree_util.tree_unflatten(structure, norms))

    def update(
        updates: optax.Updates, state: Any, params: optax.Params | None = None
    ) -> tuple[optax.Updates, RescaleWeightsState]:
        if params is None:
            raise ValueError(
                "rescale_weights() needs the weights to rescale, and update got params=None. "
                "Call tx.update(grads, state, params)."
            )
        leaves = resolve_sharded(axes, specs, params, inside=True)
        check_names("updates", updates, params)
        check_names("norms", state.norms, params)
        moves, structure = jax.tree_util.tree_flatten(updates)
        radii, norms_structure = jax.tree_util.tree_flatten(state.norms)
        for i, leaf in enumerate(leaves):
            sphere = _sphere(leaf, per)
            _check_shapes(leaf, moves[i], radii[i], sphere)
            if leaf.axes:
                _warn_if_elsewhere(leaf, moves[i], radii[i], norm, sphere)
                moves[i], radii[i] = _to_sphere(leaf.value, moves[i], radii[i], norm, sphere)
        return (
            jax.tree_util.tree_unflatten(structure, moves),
            RescaleWeightsState(jax.tree_util.tree_unflatten(norms_structure, radii)),
        )

    return optax.GradientTransformation(init, update)


not_called(rescale_weights)


class _Sphere(NamedTuple):
    """The axes along which one sphere extends, and the mesh axes that shard those."""

    axes: Axes
    mesh_axes: tuple[str, ...]


def _sphere(leaf: Leaf, per: str) -> _Sphere:
    axes = leaf.axes if per == "unit" else tuple(range(jnp.ndim(leaf.value)))
    return _Sphere(axes, leaf.sharded_along(axes))


def _to_sphere(
    w: jax.Array, u: jax.Array, radius: jax.Array, norm: Any, sphere: _Sphere
) -> tuple[jax.Array, jax.Array]:
    """u' = τ (w + u) / ‖w + u‖ - w, and τ."""
    w, u = wide(w), jnp.asarray(u)
    v = w + cast(u, w.dtype)
    of_v = length(v, *sphere)
    tau = radius if norm is None else lax.full_like(of_v, norm)
    nowhere = of_v == 0
    moved = v * cast(tau / jnp.where(nowhere, 1, of_v), v.dtype) - w
    return cast(jnp.where(nowhere, 0, moved), u.dtype), jnp.where(nowhere, radius, tau)


def _warn_of_stacks(leaves: Sequence[Leaf]) -> None:
    """Outputs of a layer come after its inputs, or are one axis; layers and experts come before."""
    stacks = []
    for leaf in leaves:
        shape = jnp.shape(leaf.value)
        free = [i for i, n in enumerate(shape) if n > 1 and i not in leaf.axes]
        if leaf.axes and len(free) > 1 and free[0] < leaf.axes[0]:
            stacks.append(f"{leaf.path!r} of shape {shape}")
    if stacks:
        more = f" and {len(stacks) - 3} more" if len(stacks) > 3 else ""
        warnings.warn(
            "rescale_weights(per='layer') gives each whole array one sphere, and some look like "
            f"stacks of layers or experts: {', '.join(stacks[:3])}{more}. Give each layer its own "
            "with rescale_weights(roles_from_trace(...).matrix).",
            stacklevel=3,
        )


def length(x: jax.Array, axes: Axes, mesh_axes: tuple[str, ...]) -> jax.Array:
    squares = jnp.real(x * jnp.conj(x)) if jnp.iscomplexobj(x) else x * x
    # lax, since jnp.sum would lose the weak type.
    total = lax.reduce_sum(squares, axes)
    return root(lax.expand_dims(over_shards(total, mesh_axes), axes))


def _check_shapes(leaf: Leaf, u: Any, radius: Any, sphere: _Sphere) -> None:
    shape = jnp.shape(leaf.value)
    if jnp.shape(u) != shape:
        raise ValueError(
            f"updates of shape {jnp.shape(u)} for {leaf.path!r} do not match params of shape "
            f"{shape}. Give update the params that its updates are for."
        )
    expected = tuple(1 if i in sphere.axes else n for i, n in enumerate(shape) if leaf.axes)
    if jnp.shape(radius) != expected:
        raise ValueError(
            f"norms of shape {jnp.shape(radius)} for {leaf.path!r} do not fit its spheres of shape "
            f"{expected}. Call init again for these axes, or give the axes it was called with."
        )


def _warn_if_elsewhere(leaf: Leaf, u: Any, radius: Any, norm: Any, sphere: _Sphere) -> None:
    w, radius = jnp.asarray(leaf.value), jnp.asarray(radius)
    # Under jit there is nothing to compare, nor where a process sees some shards only.
    if any(isinstance(x, Tracer) or not x.is_fully_addressable for x in (w, radius)):
        return
    found = length(wide(w), *sphere)
    eps = max(float(jnp.finfo(x.dtype).eps) for x in (w, u))
    # Rounding w and u' to their dtypes moves each entry by less. A given norm may be far below the
    # initial ones, and then the rounding of u' is that much larger.
    slack = 8 * eps if norm is None else max(8 * eps, math.sqrt(eps))
    off = jnp.abs(found - radius) > slack * radius
    # Concrete weights may meet operations that are staged, as inside of optax.apply_if_finite.
    if not isinstance(off, Tracer) and bool(off.any()):
        i = jnp.unravel_index(jnp.argmax(off), off.shape)
        warnings.warn(
            f"rescale_weights() left a norm of {float(radius[i]):.6g} in {leaf.path!r} and finds "
            f"{float(found[i]):.6g}. Put it last in the chain, with no learning rate or other "
            "transform after it; after replacing params, call init again.",
            stacklevel=3,
        )


def _check_norm(norm: Any) -> None:
    dtype = getattr(norm, "dtype", type(norm))
    if not any(jnp.issubdtype(dtype, real) for real in (jnp.floating, jnp.integer)):
        raise TypeError(f"norm is {norm!r}. Use a positive number, or None to keep initial norms.")
    if shape := getattr(norm, "shape", ()):
        raise ValueError(
            f"norm has the shape {shape}. Use one number, or None to keep initial norms."
        )
    if not isinstance(norm, Tracer) and not 0 < float(norm) < math.inf:
        raise ValueError(f"norm is {norm}. Use a positive number, or None to keep initial norms.")
