"""The projection P = I - e eᵀ of Gradient Centralization, for one array."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import lax

from ._axes import Axes


def subtract_mean(g: jax.Array, axes: Axes, mesh_axes: Sequence[str] = ()) -> jax.Array:
    """P g = g - e (eᵀ g), where e is constant along the fan-in and of norm one.

    In at least float32, cast once; shape, dtype, weak type and sharding are kept.

    Args:
      g: array of any floating or complex dtype.
      axes: its fan-in axes, non-negative.
      mesh_axes: the manual mesh axes of a `jax.shard_map` that shard the fan-in.
    """
    wide = g.dtype if jnp.finfo(g.dtype).bits >= 32 else jnp.float32
    x = lax.convert_element_type(g, wide) if g.dtype != wide else jnp.asarray(g)
    mean = x
    # A mean of means, the longest axis first: XLA on CPU adds short axes up in one sequence, which
    # left means of 8.9 units of roundoff on (3, 3, 3, 8, 16) where this leaves 2.9 (gradients of
    # offset 10, jax 0.10.2). lax, since jnp.mean loses the weak type.
    for axis in sorted(axes, key=lambda axis: -g.shape[axis]):
        mean = lax.expand_dims(lax.reduce_sum(mean, (axis,)), (axis,)) / g.shape[axis]
        if not jnp.iscomplexobj(mean):
            # Changes no value. It keeps XLA from fusing the reduction and the subtraction into one
            # loop, which for wide kernels writes a centred copy of the whole gradient.
            mean = lax.clamp(-jnp.inf, mean, jnp.inf)
    if mesh_axes:
        mean = lax.pmean(mean, tuple(mesh_axes))
    centred = x - mean
    return lax.convert_element_type(centred, g.dtype) if g.dtype != wide else centred
