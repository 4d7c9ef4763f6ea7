"""The projection P = I - e eᵀ of Gradient Centralization, for one array."""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from ._axes import Axes

_BLOCK = 128  # rows: the more, the less memory for their sums and the greater the errors
_LARGE = 2**22  # elements, more than a cache holds


@functools.partial(jax.jit, static_argnames=("axes", "mesh_axes"), inline=True)
def subtract_mean(g: Any, axes: Axes, mesh_axes: tuple[str, ...] = ()) -> jax.Array:
    """P g = g - e (eᵀ g), where e is constant along the fan-in and of norm one.

    In at least float32, cast once; shape, dtype, weak type and sharding are kept.

    Args:
      g: array of any floating or complex dtype.
      axes: its fan-in axes, non-negative.
      mesh_axes: the manual mesh axes of a `jax.shard_map` that shard the fan-in.
    """

    def less_mean(g: jax.Array, total: Any, rounded: Any) -> jax.Array:
        mean = total(g, axes) / math.prod(g.shape[axis] for axis in axes)
        if mesh_axes:
            mean = lax.pmean(mean, mesh_axes)
        return rounded(wide(g) - mean, g.dtype)

    def project(_: Any, g: jax.Array) -> jax.Array:
        return lax.platform_dependent(
            g,
            cpu=lambda g: less_mean(g, _total_on_cpu, _cast_on_cpu),
            default=lambda g: less_mean(g, _total, cast),
        )

    # Solves nothing, but says that P is linear and its own transpose, whatever it is made of;
    # jax.custom_derivatives.linear_call, which is for that, does not know vmap.
    return lax.custom_linear_solve(lambda x: x, g, project, symmetric=True)


def wide(x: Any) -> jax.Array:
    """`x` in at least float32."""
    narrow = jnp.finfo(x.dtype).bits < 32
    return lax.convert_element_type(x, jnp.float32) if narrow else jnp.asarray(x)


def cast(x: jax.Array, dtype: Any) -> jax.Array:
    """`x` in `dtype`, rounded to the nearest and ties to even."""
    # Converting to the dtype that it has would lose the weak type.
    return x if x.dtype == dtype else lax.convert_element_type(x, dtype)


def root(squares: jax.Array) -> jax.Array:
    """The square root, with a derivative of 0 at 0, where it would come out as not a number."""
    return jnp.where(squares == 0, 0, lax.sqrt(jnp.where(squares == 0, 1, squares)))


def _total(g: jax.Array, axes: Axes) -> jax.Array:
    # lax, since jnp.sum loses the weak type.
    return lax.expand_dims(lax.reduce_sum(wide(g), axes), axes)


# ---- what XLA for CPU needs; elsewhere it would only cost


def _total_on_cpu(g: jax.Array, axes: Axes) -> jax.Array:
    # Without the barrier XLA shares one conversion of a 16-bit gradient between the mean and the
    # subtraction, and writes it out: a copy of twice the gradient's size.
    g = lax.optimization_barrier(g) if jnp.finfo(g.dtype).bits < 32 else _in_part(g, axes)
    total = _total(g, axes)
    if jnp.iscomplexobj(total):
        return total
    # To the precision that it has: nothing changes, but XLA does not fuse the sum and the
    # subtraction into one loop, which for wide kernels writes a centred copy of the gradient.
    real = jnp.finfo(total.dtype)
    return lax.reduce_precision(total, real.nexp, real.nmant)


def _in_part(x: jax.Array, axes: Axes) -> jax.Array:
    """`x` added up over a part of the fan-in, where that makes its sum more exact or faster.

    XLA adds up in blocks of 32 along an axis, but short axes in one sequence, whose errors grow
    with its length: means of 8.9 units of roundoff were left on (3, 3, 3, 8, 16), and 2.8 by a sum
    of sums. A large kernel it adds up column by column, a cache line for every row. Its products
    of matrices read row by row: ones times blocks of 128 rows run at the memory's speed, but add up
    in one sequence (of constant columns up to 37 units of roundoff are left), and their sums take
    1/128 of the kernel's memory. Shards keep whole blocks, else the partitioner moves the kernel.
    """
    along = axes[-1]
    rows = x.shape[along]
    if len(axes) > 1 and max(x.shape[axis] for axis in axes) <= 32:
        part = _total(x, axes[1:])
    elif (
        x.size < _LARGE
        or along == x.ndim - 1
        or rows <= _BLOCK
        or rows % (_BLOCK * jax.device_count())
        or any(jax.typeof(x).sharding.spec)  # in explicit mode, where a split axis may not be cut
    ):
        return x
    else:
        blocks = (*x.shape[:along], rows // _BLOCK)
        x = lax.reshape(x, (*blocks, _BLOCK, *x.shape[along + 1 :]))
        ones = lax.full((*blocks, _BLOCK), 1, x.dtype)
        rows_of, batch = (along + 1,), tuple(range(along + 1))
        numbers = ((rows_of, rows_of), (batch, batch))
        part = lax.dot_general(ones, x, numbers, precision=lax.Precision.HIGHEST)
    return lax.optimization_barrier(part)  # or XLA makes one sum of two


def _cast_on_cpu(x: jax.Array, dtype: Any) -> jax.Array:
    """As `cast`, but to bfloat16 in integers.

    A conversion that two readers share, as Adam's moments do, XLA writes out, and not this.
    """
    if (x.dtype, dtype) != (jnp.float32, jnp.bfloat16):
        return cast(x, dtype)
    bits = lax.bitcast_convert_type(x, jnp.uint32)
    rounded = (bits + (0x7FFF + ((bits >> 16) & 1))) >> 16
    nan = (bits >> 16 & 0x8000) | 0x7FC0
    rounded = jnp.where(jnp.isnan(x), nan, rounded).astype(jnp.uint16)
    return lax.bitcast_convert_type(rounded, jnp.bfloat16)
