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
    ):
        shape = tuple(getattr(leaf, "shape", ()))
        if len(spec) > len(shape):
            raise ValueError(
                f"specs {spec} for {path!r} do not fit its shape {shape}. "
                f"Use a PartitionSpec of at most {len(shape)} entries."
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
    """These mesh axes, or none where arrays are whole."""
    try:
        lax.psum(1, mesh_axes)
        return mesh_axes
    except NameError as error:
        known = jax.sharding.get_abstract_mesh().axis_names
        if inside or (known and not set(mesh_axes) <= set(known)):
            raise ValueError(
                f"specs name the mesh axes {mesh_axes}, which are not manual here: {error}. "
                "Call it inside jax.shard_map over them, or leave out specs under jax.jit."
            ) from error
        return ()
