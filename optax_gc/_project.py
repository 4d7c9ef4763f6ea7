"""The projection P = I - e eᵀ of Gradient Centralization, for one array."""

import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from ._axes import Axes

_BLOCK = 128  # rows: few enough to stay in cache while they are added up


def subtract_mean(g: Any, axes: Axes, mesh_axes: tuple[str, ...] = ()) -> jax.Array:
    """P g = g - e (eᵀ g), where e is constant along the fan-in and of norm one.

    In at least float32, cast once; shape, dtype, weak type and sharding are kept.

    Args:
      g: array of any floating or complex dtype.
      axes: its fan-in axes, non-negative.
      mesh_axes: the manual mesh axes of a `jax.shard_map` that shard the fan-in.
    """
    g = jnp.asarray(g)
    x = wide(g)
    # Without the barrier XLA shares one conversion of a 16-bit gradient between the mean and the
    # subtraction, and writes it out: a copy of twice the gradient's size.
    mean = wide(lax.optimization_barrier(g)) if x.dtype != g.dtype else x
    for together in _in_turn(axes, g.shape):
        fan_in = math.prod(g.shape[axis] for axis in together)
        blocks = _in_blocks(mean, together) if x.dtype == g.dtype else mean
        # lax, since jnp.mean loses the weak type.
        total = lax.expand_dims(lax.reduce_sum(blocks, together), together)
        mean = _kept_apart(total / fan_in)
    if mesh_axes:
        mean = lax.pmean(mean, mesh_axes)
    return cast(x - mean, g.dtype)


def wide(x: Any) -> jax.Array:
    """`x` in at least float32."""
    narrow = jnp.finfo(x.dtype).bits < 32
    return lax.convert_element_type(x, jnp.float32) if narrow else jnp.asarray(x)


def root(squares: jax.Array) -> jax.Array:
    """The square root, with a derivative of 0 at 0, where it would come out as not a number."""
    return jnp.where(squares == 0, 0, lax.sqrt(jnp.where(squares == 0, 1, squares)))


def _in_turn(axes: Axes, shape: tuple[int, ...]) -> list[Axes]:
    """Which axes to average over together, one group after the other.

    XLA on CPU adds up in blocks of 32 along an axis, but short axes together in one sequence, whose
    rounding errors grow with its length: means of 8.9 units of roundoff were left on (3, 3, 3, 8,
    16), and 2.8 by a mean of means (gradients of offset 10, jax 0.10.2).
    """
    if len(axes) == 1 or max(shape[axis] for axis in axes) > 32:
        return [axes]
    return [axes[1:], axes[:1]]


def _in_blocks(x: jax.Array, axes: Axes) -> jax.Array:
    """`x` added up in blocks along the last of `axes`, where that makes its sum faster.

    XLA on CPU adds up a large kernel column by column, a cache line for every row: 84 ms for
    (4096, 16384) and 185 ms for (1024, 32000), where block by block takes 24 and 20 ms (2 cores,
    jax 0.10.2). Shards keep whole blocks, or the partitioner would move the kernel.
    """
    along = axes[-1]
    rows = x.shape[along]
    if (
        jax.default_backend() != "cpu"
        or x.size < 2**19
        or along == x.ndim - 1
        or rows <= _BLOCK
        or rows % (_BLOCK * jax.device_count())
        or any(jax.typeof(x).sharding.spec)  # in explicit mode, where a split axis may not be cut
    ):
        return x
    shape = (*x.shape[:along], rows // _BLOCK, _BLOCK, *x.shape[along + 1 :])
    blocks = lax.reduce_sum(lax.reshape(x, shape), (along + 1,))
    return lax.optimization_barrier(blocks)  # or XLA makes one sum of two


def _kept_apart(mean: jax.Array) -> jax.Array:
    """`mean` itself, which XLA does not fuse with what reads it.

    It would fuse the reduction and the subtraction into one loop, which for wide kernels writes a
    centred copy of the whole gradient.
    """
    if jnp.iscomplexobj(mean):
        return mean
    low, high = (lax.full_like(mean, bound, shape=()) for bound in (-jnp.inf, jnp.inf))
    return lax.clamp(low, mean, high)


def cast(x: jax.Array, dtype: Any) -> jax.Array:
    """`x` in `dtype`, rounded to the nearest and ties to even."""
    if x.dtype == dtype:
        return x  # converting would lose the weak type
    if (x.dtype, dtype) == (jnp.float32, jnp.bfloat16):
        return _to_bfloat16(x)
    return lax.convert_element_type(x, dtype)


@jax.custom_jvp
def _to_bfloat16(x: jax.Array) -> jax.Array:
    """Rounds float32 as a conversion does, but in integers.

    XLA writes out a conversion that two readers share, as Adam's moments do, and does not write out
    this.
    """
    bits = lax.bitcast_convert_type(x, jnp.uint32)
    rounded = (bits + (0x7FFF + ((bits >> 16) & 1))) >> 16
    rounded = jnp.where(jnp.isnan(x), jnp.uint32(0x7FC0), rounded)
    return lax.bitcast_convert_type(rounded.astype(jnp.uint16), jnp.bfloat16)


@_to_bfloat16.defjvp
def _to_bfloat16_jvp(primals: Any, tangents: Any) -> Any:
    # Integers have no derivative; that of rounding is taken as one, as for a conversion.
    return _to_bfloat16(*primals), lax.convert_element_type(tangents[0], jnp.bfloat16)
