"""Numbers about gradients and weights, parameter by parameter."""

import math
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from .._axes import AxesLike, Leaf, axes_from_rank, check_params
from .._match import check_names
from .._project import wide
from .._shards import over_shards, resolve_sharded
from ._lengths import direction, largest, length, ratio, together


class Removed(NamedTuple):
    """How much of a gradient is its mean over the fan-in, from 0 to 1."""

    total: jax.Array  #: of all parameters together, those left alone included
    parameters: dict[str, jax.Array]  #: of each parameter that is centralized


class Norms(NamedTuple):
    """The size of one array."""

    l2: jax.Array  #: the root of the sum of squares
    max: jax.Array  #: of absolute values


def removed_fraction(grads: Any, axes: AxesLike = axes_from_rank, *, specs: Any = None) -> Removed:
    """Divides the norm of what `centralize` would remove by the norm of the gradient.

    That is ‖g - Pg‖ / ‖g‖ in at least float32; 0 for a gradient of zero. Where it is near 0, GC has
    no effect (a layer fed by LayerNorm without affine); near 1, it removes almost everything.

    Args:
      grads: gradients, or updates (pytree of any shapes and dtypes).
      axes: axes tree, prefix tree or label function, as for `centralize`.
      specs: tree, or prefix tree, of the ``jax.sharding.PartitionSpec`` under which the arrays are
        manual inside ``jax.shard_map``, as for `centralize`.

    Returns:
      `Removed`: scalars, ``total`` and a dict ``parameters``.

    Raises:
      ValueError: if the axes do not match ``grads``, or some do not fit their shape.

    Example:
      >>> import jax.numpy as jnp
      >>> import optax
      >>> from optax_gc import centralize, diagnostics
      >>> params = {"kernel": jnp.ones((3, 2)), "bias": jnp.ones(2)}
      >>> grads = {"kernel": jnp.array([[1.0, 0.0], [2.0, 1.0], [3.0, -1.0]]), "bias": jnp.ones(2)}
      >>> watch = optax.snapshot("removed", diagnostics.removed_fraction)
      >>> tx = optax.chain(watch, centralize(), optax.adam(0.1))
      >>> _, state = tx.update(grads, tx.init(params), params)
      >>> removed = optax.tree.get(state, "removed")
      >>> print(f"{removed.total:.3f}", f"{removed.parameters['kernel']:.3f}")
      0.816 0.866

    References:
      Yong et al., Gradient Centralization, https://arxiv.org/abs/2004.01461, theorem 4.2.
    """
    check_params(grads, "removed_fraction(grads)", "grads")
    removed, whole = {}, {}
    for leaf in _arrays(grads, axes, specs):
        g = wide(leaf.value)
        whole[leaf.path] = length(g, mesh_axes=leaf.sharded_along())
        if leaf.axes:
            mean = _total(g, leaf) / leaf.fan_in
            outputs = leaf.sharded_along(tuple(set(range(g.ndim)) - set(leaf.axes)))
            removed[leaf.path] = length(mean, mesh_axes=outputs) * math.sqrt(leaf.fan_in)
    return Removed(
        ratio(together(removed.values()), together(whole.values())),
        {path: ratio(part, whole[path]) for path, part in removed.items()},
    )


def norms(tree: Any, *, specs: Any = None) -> dict[str, Norms]:
    """Takes the L2 norm and the largest absolute value of each array.

    Of gradients before and after `centralize`, these are the paper's figure of gradients. GC never
    enlarges the norm; it can enlarge the maximum.

    Args:
      tree: gradients, updates or weights (pytree of any shapes and dtypes).
      specs: tree, or prefix tree, of the ``jax.sharding.PartitionSpec`` under which the arrays are
        manual inside ``jax.shard_map``, as for `centralize`.

    Returns:
      For the path of each floating-point or complex array, `Norms` of scalars in at least float32.

    Raises:
      ValueError: if two arrays have one path, or the specs do not match or do not fit.

    Example:
      >>> import jax.numpy as jnp
      >>> import optax
      >>> from optax_gc import centralize, diagnostics
      >>> params = {"kernel": jnp.ones((2, 1)), "bias": jnp.ones(1)}
      >>> grads = {"kernel": jnp.array([[3.0], [4.0]]), "bias": jnp.array([-2.0])}
      >>> watch = optax.snapshot("after", diagnostics.norms)
      >>> tx = optax.chain(centralize(), watch, optax.sgd(0.1))
      >>> _, state = tx.update(grads, tx.init(params), params)
      >>> for path, norm in optax.tree.get(state, "after").items():
      ...     print(path, f"{norm.l2:.3f} {norm.max:.3f}")
      bias 2.000 2.000
      kernel 0.707 0.500

    References:
      Yong et al., Gradient Centralization, https://arxiv.org/abs/2004.01461, section 4.2.
    """
    check_params(tree, "norms(tree)", "tree")
    found = {}
    for leaf in _arrays(tree, (), specs):
        x, mesh_axes = wide(leaf.value), leaf.sharded_along()
        top = largest(x, None, mesh_axes).reshape(())
        found[leaf.path] = Norms(length(x, mesh_axes=mesh_axes), top)
    return found


def unit_sums(
    params: Any, axes: AxesLike = axes_from_rank, *, specs: Any = None
) -> dict[str, jax.Array]:
    """Adds up each output unit's weights over the fan-in: 1ᵀw.

    GC keeps it where its place in the chain is after whatever else would change it, such as decay
    or the scaling of an adaptive method.

    Args:
      params: weights, or updates, whose sums are the drift of those of the weights in that step
        (pytree of any shapes and dtypes).
      axes: axes tree, prefix tree or label function, as for `centralize`.
      specs: tree, or prefix tree, of the ``jax.sharding.PartitionSpec`` under which the arrays are
        manual inside ``jax.shard_map``, as for `centralize`.

    Returns:
      For the path of each parameter with axes, its sums in at least float32, in the shape of the
      axes that are left.

    Raises:
      ValueError: if the axes do not match ``params``, or some do not fit their shape.

    Example:
      >>> import jax.numpy as jnp
      >>> import optax
      >>> from optax_gc import centralize, diagnostics
      >>> params = {"kernel": jnp.ones((3, 2)), "bias": jnp.ones(2)}
      >>> grads = {"kernel": jnp.array([[1.0, 0.0], [2.0, 1.0], [6.0, -1.0]]), "bias": jnp.ones(2)}
      >>> watch = optax.snapshot("drift", diagnostics.unit_sums)
      >>> tx = optax.chain(centralize(), optax.add_decayed_weights(0.1), optax.sgd(0.5), watch)
      >>> _, state = tx.update(grads, tx.init(params), params)
      >>> print(optax.tree.get(state, "drift")["kernel"].round(3))
      [-0.15 -0.15]
    """
    check_params(params, "unit_sums(params)")
    return {
        leaf.path: _total(wide(leaf.value), leaf)
        for leaf in _arrays(params, axes, specs)
        if leaf.axes
    }


def radial_component(
    grads: Any,
    params: Any,
    axes: AxesLike = axes_from_rank,
    *,
    per: Literal["unit", "layer"] = "unit",
    specs: Any = None,
) -> dict[str, jax.Array]:
    """Takes the cosine of each output unit's gradient and weights, wᵀg / (‖w‖ ‖g‖).

    It is 0 for scale-invariant weights, which `scale_invariant` decides on; GC makes it other than
    0 unless the weights are centred. 0 also where gradient or weights are zero.

    Args:
      grads: gradients, or updates (pytree of any shapes and dtypes).
      params: the weights, a tree with arrays of the same names and shapes.
      axes: axes tree, prefix tree or label function, as for `centralize`.
      per: ``"unit"`` for the cosine of each output unit, over the fan-in axes; ``"layer"`` for that
        of each whole array.
      specs: tree, or prefix tree, of the ``jax.sharding.PartitionSpec`` under which the arrays are
        manual inside ``jax.shard_map``, as for `centralize`.

    Returns:
      For the path of each parameter with axes, cosines from -1 to 1 in at least float32, in the
      shape of the axes that are left, or a scalar for a layer.

    Raises:
      ValueError: if ``params`` are missing or do not match ``grads``, if the axes do not match or
        do not fit, or ``per`` is unknown.

    Example:
      >>> import jax.numpy as jnp
      >>> import optax
      >>> from optax_gc import diagnostics
      >>> params = {"kernel": jnp.array([[3.0, 1.0], [4.0, 0.0]]), "bias": jnp.ones(2)}
      >>> grads = {"kernel": jnp.array([[1.0, 0.0], [0.0, 1.0]]), "bias": jnp.ones(2)}
      >>> watch = optax.monitor({"radial": optax.stateless(diagnostics.radial_component)})
      >>> tx = optax.chain(watch, optax.sgd(0.1))
      >>> _, state = tx.update(grads, tx.init(params), params)
      >>> print(optax.tree.get(state, "radial")["kernel"])
      [0.6 0. ]
    """
    if per not in ("unit", "layer"):
        raise ValueError(f"per is {per!r}. Use 'unit' or 'layer'.")
    check_params(grads, "radial_component(grads, params)", "grads")
    check_params(params, "radial_component(grads, params)")
    check_names("grads", grads, params, _is_inexact)
    weights, gradients = _arrays(params, axes, specs), _arrays(grads, (), specs)
    shapes = [[tuple(leaf.value.shape) for leaf in leaves] for leaves in (gradients, weights)]
    if shapes[0] != shapes[1]:
        raise ValueError(
            f"grads of shapes {shapes[0]} do not match params of shapes {shapes[1]}. Give the "
            "params that the gradients are of."
        )
    cosines = {}
    for leaf, gradient in zip(weights, gradients, strict=True):
        if leaf.axes:
            within = leaf.axes if per == "unit" else tuple(range(leaf.value.ndim))
            mesh_axes = leaf.sharded_along(within)
            w, g = (direction(wide(x.value), within, mesh_axes) for x in (leaf, gradient))
            # In the convention of jax.grad for complex weights: the derivative along w.
            along = jnp.real(w * lax.convert_element_type(g, w.dtype))
            cosines[leaf.path] = over_shards(jnp.sum(along, within), mesh_axes)
    return cosines


def _arrays(tree: Any, axes: AxesLike, specs: Any) -> list[Leaf]:
    """The floating-point and complex arrays of `tree`, whose paths must tell them apart."""
    leaves = [leaf for leaf in resolve_sharded(axes, specs, tree) if _is_inexact(leaf.value)]
    paths = [leaf.path for leaf in leaves]
    if len(set(paths)) < len(paths):
        twice = next(path for path in paths if paths.count(path) > 1)
        raise ValueError(f"the path {twice!r} names two arrays. Rename one of them.")
    return leaves


def _is_inexact(x: Any) -> bool:
    return jnp.issubdtype(getattr(x, "dtype", int), jnp.inexact)


def _total(x: jax.Array, leaf: Leaf) -> jax.Array:
    """The sum of `x`, which is sharded as `leaf` is, over the fan-in."""
    return over_shards(jnp.sum(x, leaf.axes), leaf.sharded_along(leaf.axes))
