"""The axes tree: over which axes the gradient of each parameter is averaged.

An axes tree is shaped like the parameters, or like a prefix of them, with a tuple of ints at each
leaf: the parameter's fan-in axes, as ``jnp.mean(axis=...)`` takes them. ``()`` leaves a parameter
alone. A function from parameters to such a tree (a label function, as for ``optax.partition``)
stands for the tree it returns. Everything that takes axes reads them through `resolve`.
"""

import math
import operator
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from numbers import Integral
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ._match import match
from ._match import path_name as path_name

Axes = tuple[int, ...]
AxesTree = Any  # a pytree of Axes, or a prefix of one
AxesLike = AxesTree | Callable[[Any], AxesTree]

# What Flax, Haiku and Keras call leaves of rank 2 and more that are no kernels: biases and norm
# scales with a head or layer axis, and tables that are looked up rather than contracted.
_NOT_KERNELS = frozenset({"bias", "b", "scale", "offset", "embedding", "embeddings"})
# Flax's attention projects (features) to (heads, head_dim): one input axis, two output axes.
_SPLIT_INTO_HEADS = frozenset({"query", "key", "value"})


def axes_from_rank(params: Any, *, output_axis: int = -1, conv_only: bool = False) -> AxesTree:
    """Answers all axes but the output axis for each kernel, and ``()`` for everything else.

    A leaf of rank below 2 is no kernel, nor is one that Flax, Haiku or Keras name ``bias``, ``b``,
    ``scale``, ``offset``, ``embedding`` or ``embeddings``. A rank-3 ``kernel`` under ``query``,
    ``key`` or ``value`` is an attention projection (features, heads, head_dim), averaged over its
    features. Rank and names cannot see layers stacked for a scan, ensembles stacked by vmap,
    experts, depthwise convolutions, or kernels in another layout, such as Haiku's and Keras's
    transposed convolutions: for those, give the axes, or read them from the model's own computation
    with `axes_from_trace`. Where gradients have no names, as Keras's lists of arrays, make the axes
    from the variables: ``centralize(axes_from_rank(model.trainable_variables))``.

    Args:
      params: pytree of arrays (any shapes and dtypes; ``jax.ShapeDtypeStruct`` will do) or of
        Keras variables, whose own paths are then their names.
      output_axis: which axis of a kernel indexes output units: -1 for Flax, Haiku and Keras,
        0 for PyTorch's layout and Equinox.
      conv_only: keep kernels of rank above 3 only, as the authors' conv-only optimizers do.

    Returns:
      A tree like ``params`` with a tuple of non-negative ints at each leaf.

    Raises:
      ValueError: if ``output_axis`` is not an axis of some kernel, or ``params`` is a step count.

    Example:
      >>> import jax.numpy as jnp
      >>> params = {"conv": {"kernel": jnp.ones((3, 3, 8, 16)), "bias": jnp.ones(16)}}
      >>> axes_from_rank(params)
      {'conv': {'bias': (), 'kernel': (0, 1, 2)}}

    References:
      Yong et al., Gradient Centralization, https://arxiv.org/abs/2004.01461, section 3.1.
    """
    if (
        isinstance(params, jax.Array)
        and params.ndim == 0
        and jnp.issubdtype(params.dtype, jnp.integer)
    ):
        raise ValueError(
            f"axes_from_rank got the integer {params} instead of parameters. If optax.inject_"
            "hyperparams took it for a schedule, pass static_args=('axes',) to that."
        )

    def label(path: tuple[Any, ...], leaf: Any) -> Axes:
        name, shape = path_name(path, leaf), tuple(getattr(leaf, "shape", ()))
        *parents, last = name.split("/")
        rank = len(shape)
        if rank < (4 if conv_only else 2) or last in _NOT_KERNELS:
            return ()
        if not -rank <= output_axis < rank:
            raise ValueError(
                f"output_axis={output_axis} is not an axis of {name!r} of shape {shape}. "
                "Use -1 for Flax, Haiku and Keras, 0 for PyTorch's layout and Equinox."
            )
        output = output_axis % rank
        if (rank, output, last) == (3, 2, "kernel") and _SPLIT_INTO_HEADS.intersection(
            parents[-1:]
        ):
            return (0,)
        return tuple(axis for axis in range(rank) if axis != output)

    return jax.tree_util.tree_map_with_path(label, params)


class Leaf(NamedTuple):
    """A parameter and what is done with it."""

    path: str
    value: Any
    axes: Axes  # non-negative and ascending; () if it is left alone
    fan_in: int  # how many numbers are averaged into one; 1 if it is left alone
    reason: str  # why it is left alone; "" if it is not
    mesh_axes: tuple[tuple[str, ...], ...] = ()  # by dimension; () if the value is no shard

    def sharded_along(self, axes: Axes | None = None) -> tuple[str, ...]:
        """The mesh axes along which these axes of the value, or all, lie in shards."""
        dimensions = range(len(self.mesh_axes)) if axes is None else axes
        return tuple(name for i in dimensions if self.mesh_axes for name in self.mesh_axes[i])


def resolve(
    axes: AxesLike, tree: Any, shapes: Sequence[tuple[int, ...]] | None = None
) -> list[Leaf]:
    """Reads `axes` for every leaf of `tree`, in order, and checks them against its shape.

    Args:
      axes: axes tree, prefix tree or label function.
      tree: parameters, gradients or updates.
      shapes: the whole shape of each leaf, where the leaves themselves are shards.

    Raises:
      ValueError: if the axes do not match the tree, or some do not fit their parameter's shape.
    """
    if not jax.tree_util.tree_leaves(tree):  # optax.tree_map_params asks with a placeholder
        return []
    if named := _is_label_function(axes):
        name, axes = f"what {getattr(axes, '__name__', axes)} returned", axes(tree)
    else:
        name = "axes"
    hint = "Give each parameter a tuple of ints, such as (0,), or () to leave it alone."
    leaves = []
    for i, (path, leaf, given, through_prefix) in enumerate(
        match(axes, tree, is_axes, name=name, hint=hint)
    ):
        shape = tuple(getattr(leaf, "shape", ())) if shapes is None else shapes[i]
        # Through a prefix a tuple means the kernels below it, not their biases.
        meant = () if through_prefix and len(shape) < 2 else given
        checked = _checked(meant, path, shape)
        fan_in = math.prod(shape[axis] for axis in checked)
        reason = _why_left_alone(leaf, path, shape, checked, fan_in, named)
        leaves.append(Leaf(path, leaf, () if reason else checked, 1 if reason else fan_in, reason))
    return leaves


def is_axes(x: Any) -> bool:
    """Tells a tuple of ints from a container of them."""
    return type(x) is tuple and all(isinstance(i, Integral) and not isinstance(i, bool) for i in x)


def _is_label_function(axes: AxesLike) -> bool:
    # A Partial is a tree too, and an Equinox module of tuples is callable too.
    if not callable(axes) or isinstance(axes, jax.tree_util.Partial):
        return callable(axes)
    return not any(map(is_axes, jax.tree_util.tree_leaves(axes, is_leaf=is_axes)))


def _checked(axes: Axes, path: str, shape: tuple[int, ...]) -> Axes:
    rank = len(shape)
    if not all(-rank <= axis < rank for axis in axes):
        raise ValueError(
            f"axes {axes} for {path!r} do not fit its shape {shape}. Use axes from {-rank} to "
            f"{rank - 1}, or () to leave it alone."
            if rank
            else f"axes {axes} for {path!r} do not fit its shape (). Use () to leave it alone."
        )
    checked = tuple(sorted(operator.index(axis) % rank for axis in axes))
    if len(set(checked)) < len(checked):
        raise ValueError(
            f"axes {axes} for {path!r} of shape {shape} name an axis twice. "
            f"Use {tuple(sorted(set(checked)))}."
        )
    return checked


def _why_left_alone(
    leaf: Any, path: str, shape: tuple[int, ...], axes: Axes, fan_in: int, by_name: bool
) -> str:
    dtype = getattr(leaf, "dtype", None)
    if dtype is None or not jnp.issubdtype(dtype, jnp.inexact):
        return f"dtype {dtype}" if dtype is not None else "no array"
    if not axes:
        if len(shape) < 2:
            return f"rank {len(shape)}"
        return "name" if by_name and path.split("/")[-1] in _NOT_KERNELS else "()"
    if 0 in shape:
        return "empty"
    # The mean of one number is the number: subtracting it would erase the gradient.
    return "fan-in of one" if fan_in == 1 else ""


def reasons(leaves: Sequence[Leaf]) -> str:
    """The reasons for which `leaves` are left alone, counted: ``'2 × rank 1, 1 × name'``."""
    counts = Counter(leaf.reason for leaf in leaves)
    return ", ".join(f"{n} × {reason}" for reason, n in counts.items())


class Table(str):
    """Text that shows itself as it is, at a prompt and in a notebook too."""

    __slots__ = ()
    __repr__ = str.__str__


def table(rows: Iterable[Sequence[str]], *lines_below: str) -> Table:
    """Aligns rows of text into columns, two spaces apart."""
    rows = [tuple(row) for row in rows]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    aligned = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
    return Table("\n".join([*aligned, *lines_below]))


def summary(params: Any, axes: AxesLike = axes_from_rank) -> str:
    """Lists, a line each, over which axes the gradient of each parameter is averaged, or why not.

    Args:
      params: pytree of arrays, ``jax.ShapeDtypeStruct`` or Keras variables.
      axes: axes tree, prefix tree or label function, as for `centralize`.

    Returns:
      A text of aligned columns: path, shape, axes averaged over, fan-in (how many numbers one mean
      is over), and for what is left alone the reason: its rank, its name, its dtype, a fan-in of
      one, or ``()`` given for it. Last line: the share of parameters centralized.

    Raises:
      ValueError: if the axes do not match ``params``, or some do not fit their shape.

    Example:
      >>> import jax.numpy as jnp
      >>> params = {"dense": {"kernel": jnp.ones((8, 5)), "bias": jnp.ones(5)}}
      >>> print(summary(params))
      parameter     shape   axes  fan-in  why left alone
      dense/bias    (5,)    ()    -       rank 1
      dense/kernel  (8, 5)  (0,)  8
      40 of 45 parameters (88.9 %) are centralized, in 1 of 2 arrays.
    """
    leaves = resolve(axes, params)
    rows = [("parameter", "shape", "axes", "fan-in", "why left alone")]
    size = {True: 0, False: 0}
    for leaf in leaves:
        shape = tuple(getattr(leaf.value, "shape", ()))
        size[bool(leaf.axes)] += math.prod(shape)
        fan_in = str(leaf.fan_in) if leaf.axes else "-"
        rows.append((leaf.path, str(shape), str(leaf.axes), fan_in, leaf.reason))
    total = sum(size.values())
    share = f"{size[True]:,} of {total:,} parameters ({size[True] / max(total, 1):.1%})".replace(
        "%", " %"
    )
    arrays = f"in {sum(bool(leaf.axes) for leaf in leaves)} of {len(leaves)} arrays"
    return table(rows, f"{share} are centralized, {arrays}.")
