"""Axes of arrays that are shards: over which manual mesh axes their sums go on.

Inside ``jax.shard_map`` an array is one device's shard, and a sum over its axes is that shard's
alone. The `jax.sharding.PartitionSpec` of each array tells which mesh axes the rest lies along.
"""

from typing import Any

import jax
from jax import lax
from jax.sharding import PartitionSpec

from ._axes import AxesLike, Leaf, resolve
from ._match import match


def resolve_sharded(axes: AxesLike, specs: Any, tree: Any, *, inside: bool = False) -> list[Leaf]:
    """Resolves `axes` against the whole shapes of leaves that may be shards.

    Args:
      axes: axes tree, prefix tree or label function.
      specs: tree or prefix tree of PartitionSpecs; None for whole arrays.
      tree: gradients or parameters.
      inside: whether `tree` is known to hold shards. Otherwise, where the mesh axes are not bound,
        it holds whole arrays.

    Raises:
      ValueError: if axes or specs do not match the tree, do not fit a shape, or name no mesh axis.
    """
    if specs is None:
        return resolve(axes, tree)
    mesh_axes, shapes = [], []
    for path, leaf, spec, _ in match(
        specs,
        tree,
        lambda x: isinstance(x, PartitionSpec),
        name="specs",
        hint="Give each parameter a jax.sharding.PartitionSpec, P() if it is not sharded.",
        default=PartitionSpec(),
    ):
        shape = tuple(getattr(leaf, "shape", ()))
        if len(spec) > len(shape):
            raise ValueError(
                f"specs {spec} for {path!r} do not fit its shape {shape}. "
                f"Use a PartitionSpec of at most {len(shape)} entries."
            )
        if PartitionSpec.UNCONSTRAINED in spec:
            raise ValueError(
                f"specs {spec} for {path!r}: inside jax.shard_map no dimension can be "
                "UNCONSTRAINED. Use None or mesh axes."
            )
        by_dimension = tuple(
            _manual(() if e is None else e if isinstance(e, tuple) else (e,), inside)
            for e in (*spec, *[None] * (len(shape) - len(spec)))
        )
        shards = [lax.psum(1, names) for names in by_dimension]
        shapes.append(tuple(n * k for n, k in zip(shape, shards, strict=True)))
        mesh_axes.append(by_dimension)
    leaves = resolve(axes, tree, shapes)
    return [leaf._replace(mesh_axes=m) for leaf, m in zip(leaves, mesh_axes, strict=True)]


def _manual(mesh_axes: tuple[str, ...], inside: bool) -> tuple[str, ...]:
    """Those of the mesh axes over which arrays are shards; along others they are whole."""
    manual = tuple(filter(_is_manual, mesh_axes))
    if manual == mesh_axes:
        return manual
    mesh = jax.sharding.get_abstract_mesh().axis_names
    # In a shard_map over some axes of a mesh, arrays are whole along the others.
    known = mesh if not inside or any(map(_is_manual, mesh)) else ()
    unknown = tuple(name for name in mesh_axes if name not in (*manual, *known))
    if unknown and (inside or mesh or manual):
        raise ValueError(
            f"specs name the mesh axes {unknown}, which are not manual here. "
            "Call it inside jax.shard_map over them, or leave out specs under jax.jit."
        )
    return manual


def _is_manual(mesh_axis: str) -> bool:
    try:
        lax.psum(1, mesh_axis)
    except NameError:
        return False
    return True


def over_shards(x: jax.Array, mesh_axes: tuple[str, ...]) -> jax.Array:
    """The sum of `x` over all shards."""
    return lax.psum(x, mesh_axes) if mesh_axes else x
