"""Lengths of arrays of any size: ‖x‖ = 2ᵏ ‖2⁻ᵏ x‖, of numbers whose squares are in range."""

from collections.abc import Iterable

import jax
import jax.numpy as jnp
from jax import lax

from .._axes import Axes
from .._project import root
from .._shards import over_shards


def length(x: jax.Array, axes: Axes | None = None, mesh_axes: tuple[str, ...] = ()) -> jax.Array:
    """‖x‖ over `axes`, or all, of which `mesh_axes` hold shards."""
    x, power = _in_range(x, axes, mesh_axes)
    size = _root_of_squares(x, axes, mesh_axes)
    return size * power.reshape(size.shape)


def direction(x: jax.Array, axes: Axes, mesh_axes: tuple[str, ...]) -> jax.Array:
    """x / ‖x‖, or 0."""
    x, _ = _in_range(x, axes, mesh_axes)
    size = jnp.expand_dims(_root_of_squares(x, axes, mesh_axes), axes)
    return x * lax.convert_element_type(ratio(jnp.ones_like(size), size), x.dtype)


def _in_range(
    x: jax.Array, axes: Axes | None, mesh_axes: tuple[str, ...]
) -> tuple[jax.Array, jax.Array]:
    """2⁻ᵏ x of which the largest is from 1 to 2, and 2ᵏ."""
    tiny = float(jnp.finfo(x.dtype).tiny)
    top = jnp.clip(largest(lax.stop_gradient(x), axes, mesh_axes), tiny, 1 / tiny)
    power = top / (2 * jnp.frexp(top)[0])
    return x * lax.convert_element_type(1 / power, x.dtype), power


def _root_of_squares(x: jax.Array, axes: Axes | None, mesh_axes: tuple[str, ...]) -> jax.Array:
    return root(over_shards(jnp.sum(jnp.real(x * jnp.conj(x)), axes), mesh_axes))


def together(lengths: Iterable[jax.Array]) -> jax.Array:
    """The length of the whole, from those of its parts, in float32 and float64 alike."""
    lengths = list(lengths)
    widest = max((x.dtype for x in lengths), key=lambda t: t.itemsize, default=jnp.float32)
    return length(jnp.array(lengths, widest))


def ratio(part: jax.Array, whole: jax.Array) -> jax.Array:
    """part / whole; 0 where the whole is 0, NaN where it is infinite."""
    part = lax.convert_element_type(part, whole.dtype)
    quotient = jnp.where(whole == 0, 0, part / jnp.where(whole == 0, 1, whole))
    return jnp.where(jnp.isinf(whole), jnp.nan, quotient)


def largest(x: jax.Array, axes: Axes | None, mesh_axes: tuple[str, ...]) -> jax.Array:
    """max |x|, with axes of size one."""
    top = jnp.max(jnp.abs(x), axes, keepdims=True, initial=0.0)
    return lax.pmax(top, mesh_axes) if mesh_axes else top
