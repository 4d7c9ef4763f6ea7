"""Which weights may be rescaled: those that their own gradient is orthogonal to."""

import math
from typing import Any, Literal

import jax
import numpy as np
from jax.core import Tracer

from ._axes import AxesLike, AxesTree, Leaf, axes_from_rank, check_params, resolve
from ._match import check_names


def scale_invariant(
    params: Any,
    grads: Any,
    axes: AxesLike = axes_from_rank,
    *,
    per: Literal["unit", "layer"] = "unit",
    tolerance: float = 0.01,
) -> AxesTree:
    """Keeps the axes of weights orthogonal to their gradients, and answers ``()`` for the rest.

    A loss that does not change with the length of w has wᵀ∇L = 0 (Euler), whatever the data. That
    is so for weights followed by normalisation: for each unit's before batch or instance norm,
    for a layer's together before group or layer norm. Weights and gradients of several batches
    show it; where they do, `rescale_weights` changes no output of the network.

    A parameter is kept if ``|wᵀg| ≤ tolerance ‖w‖ ‖g‖ / √n`` for all its units and batches, n the
    size of w. Two random directions of n numbers have a cosine of about 1/√n, so it is small by
    that measure only if it is no chance. Units whose weights or gradients are zero in some batch
    show nothing there (dead units, a head that starts at zero, whatever is below it), and a
    parameter that never shows anything is not kept, nor is one with numbers that are not finite.

    Evidence is of where it was taken. Weights with a bias between them and a group or layer norm
    are scale-invariant while that bias is zero, and no longer: take params and gradients from after
    some steps, and in training mode of batch norm.

    Args:
      params: pytree of arrays (any shapes and dtypes).
      grads: gradients of several batches, in a tree like ``params``, stacked along a leading axis
        as ``jax.vmap(jax.grad(loss), (None, 0))(params, batches)`` gives them. A tree without that
        axis counts as one batch, where orthogonality may be an accident.
      axes: axes tree, prefix tree or label function: the candidates, and what a unit is.
      per: ``"unit"`` if each unit's weights must be orthogonal to their gradient; ``"layer"`` if
        only each whole array. Use the same for `rescale_weights`.
      tolerance: how large the cosine may be, as a fraction of what chance would give. Measured
        through batch, instance, group and layer norm: below 0.001 for float32, below 0.1 where a
        network computes in bfloat16; from 0.5 upwards where there is no norm.

    Returns:
      An axes tree like ``params``.

    Raises:
      ValueError: if ``grads`` do not match ``params``, hold no batch, ``axes`` do not fit,
        ``tolerance`` is negative or ``per`` unknown, or under ``jax.jit``, where there are no
        values to decide on.

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> def loss(params, x):
      ...     h = x @ params["body"]
      ...     h = (h - h.mean(0, keepdims=True)) / h.std(0, keepdims=True)
      ...     return jnp.square(jnp.tanh(h) @ params["head"] - 1).mean()
      >>> params = {"body": jnp.sin(jnp.arange(15.0)).reshape(5, 3), "head": jnp.ones((3, 2))}
      >>> batches = jax.random.normal(jax.random.key(0), (4, 9, 5))
      >>> grads = jax.vmap(jax.grad(loss), (None, 0))(params, batches)
      >>> scale_invariant(params, grads)
      {'body': (0,), 'head': ()}

    References:
      Liu et al., https://arxiv.org/abs/2102.03497, section 3. van Laarhoven, L2 Regularization
      versus Batch and Weight Normalization, https://arxiv.org/abs/1706.05350.
    """
    check_params(params, "scale_invariant(params, grads)")
    check_params(grads, "scale_invariant(params, grads)", "grads")
    if per not in ("unit", "layer"):
        raise ValueError(f"per is {per!r}. Use 'unit' or 'layer'.")
    if isinstance(tolerance, str) or not tolerance >= 0:
        raise ValueError(f"tolerance is {tolerance!r}. Use a number such as 0.01.")
    leaves = resolve(axes, params)
    stacks = jax.tree_util.tree_leaves(grads)
    if len(stacks) != len(leaves):
        raise ValueError(
            f"grads hold {len(stacks)} arrays and params {len(leaves)}. Give gradients of these "
            "params, several batches stacked along a leading axis of each array."
        )
    check_names("grads", grads, params)
    kept = [
        leaf.axes if leaf.axes and _orthogonal(leaf, stack, per, tolerance) else ()
        for leaf, stack in zip(leaves, stacks, strict=True)
    ]
    return jax.tree_util.tree_unflatten(jax.tree_util.tree_structure(params), kept)


def _orthogonal(leaf: Leaf, stack: Any, per: str, tolerance: float) -> bool:
    """Whether wᵀg = 0 for all units and batches of `stack`, where there is anything to see."""
    w, shape = leaf.value, tuple(leaf.value.shape)
    batched = stack.shape[1:] == shape and stack.ndim == len(shape) + 1
    if (stack.shape != shape and not batched) or (batched and not stack.shape[0]):
        raise ValueError(
            f"grads for {leaf.path!r} of shape {shape} have the shape {tuple(stack.shape)}. Stack "
            f"those of several batches along one leading axis, to {('batches', *shape)}."
        )
    if isinstance(w, Tracer) or isinstance(stack, Tracer):
        raise ValueError(
            "scale_invariant() decides by values, and under jax.jit there are none. Call it "
            "outside, and give rescale_weights what it answers."
        )
    within = leaf.axes if per == "unit" else tuple(range(len(shape)))
    chance = 1 / math.sqrt(math.prod(shape[axis] for axis in within))
    weights, shown = _float64(w), False
    for g in map(_float64, stack if batched else [stack]):
        with np.errstate(over="ignore", invalid="ignore"):
            # For complex weights jax.grad's convention makes this the derivative along w too.
            radial = np.abs(np.real(weights * g).sum(within))
            lengths = [np.sqrt((np.abs(x) ** 2).sum(within)) for x in (weights, g)]
            largest = lengths[0] * lengths[1]
            small = radial <= tolerance * chance * largest
        if not (small & np.isfinite(largest)).all():
            return False
        shown = shown or bool(largest.any())
    return shown


def _float64(x: Any) -> np.ndarray:
    x = np.asarray(x)
    return x.astype(np.complex128 if np.iscomplexobj(x) else np.float64)
