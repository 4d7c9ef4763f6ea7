"""Matching a prefix tree to a parameter tree, by the names of the children.

`jax.tree` compares node types, so that a plain dict never matches an ``nnx.State``, nor a full tree
the ``optax.MaskedNode`` that ``optax.masked`` and ``optax.partition`` put in place of parameters.
Names are what a user means, and they are the same whatever the containers are.
"""

from collections.abc import Callable
from itertools import zip_longest
from typing import Any, NamedTuple

import jax

KeyPath = tuple[Any, ...]


class Match(NamedTuple):
    """A leaf of the parameter tree with the label that the prefix tree has for it."""

    path: str
    leaf: Any
    label: Any
    through_prefix: bool  # the label stands higher up than at the leaf itself


def match(
    prefix: Any, tree: Any, is_label: Callable[[Any], bool], *, name: str, hint: str
) -> list[Match]:
    """Pairs each leaf of `tree`, in order, with the label that `prefix` has for it.

    What holds no leaves (None, MaskedNode, an empty module) matches anything.

    Args:
      prefix: tree of labels, like `tree` or a prefix of it. Its containers may be of other types.
      tree: the parameters, gradients or updates.
      is_label: tells labels from containers.
      name: the argument that `prefix` was given as, for errors.
      hint: what a label looks like, for errors.

    Raises:
      ValueError: if a leaf has no label, or something in `prefix` is no label or has no leaf.
    """
    matches: list[Match] = []

    def walk(prefix: Any, node: Any, path: KeyPath) -> None:
        below = jax.tree_util.tree_leaves_with_path(node)
        if not below:
            return
        if is_label(prefix):
            direct = len(below) == 1 and all(map(_is_value, below[0][0]))
            matches.extend(
                Match(path_name(path + rest, leaf), leaf, prefix, not direct)
                for rest, leaf in below
            )
            return
        labels, children = _children(prefix), _children(node)
        if (box := _boxed(labels)) and "value" not in (children or ()):
            return walk(box[1], node, path)
        if (box := _boxed(children)) and "value" not in (labels or ()):
            return walk(prefix, box[1], (*path, box[0]))
        if not labels or not children:
            raise ValueError(
                f"{name} for {_described(path + below[0][0], below[0][1])} is {prefix!r}. {hint}"
            )
        missing = [(path + rest, leaf) for rest, leaf in below if _key(rest[0]) not in labels]
        unknown = [
            repr(path_name((*path, entry)))
            for key, (entry, label) in labels.items()
            if key not in children and jax.tree_util.tree_leaves(label, is_leaf=is_label)
        ]
        if missing or unknown:
            raise ValueError(
                f"{name} does not match the parameters."
                + (f" It has no entry for {_listed(missing)}." if missing else "")
                + (f" It has {', '.join(unknown)}, which name no parameter." if unknown else "")
                + f" The parameters there are {', '.join(map(repr, children))}."
                + f" {hint}"
            )
        for key, (entry, child) in children.items():
            if key in labels:
                walk(labels[key][1], child, (*path, entry))

    walk(prefix, tree, ())
    return matches


def check_names(
    name: str, tree: Any, params: Any, counts: Callable[[Any], bool] = lambda leaf: True
) -> None:
    """Raises a ValueError unless the leaves that count have the same names, in the same order."""
    theirs, ours = (
        [path_name(path) for path, x in jax.tree_util.tree_leaves_with_path(t) if counts(x)]
        for t in (tree, params)
    )
    for pair in zip_longest(theirs, ours):
        if pair[0] != pair[1]:
            found, expected = ("nothing" if x is None else repr(x) for x in pair)
            raise ValueError(
                f"{name} have {found} where params have {expected}. "
                "Give trees of the same structure."
            )


def path_name(path: KeyPath, leaf: Any = None) -> str:
    """The names along a key path, as ``'head/kernel'``; a Keras variable knows its own path."""
    if isinstance(own := getattr(leaf, "path", None), str):
        return own
    while len(path) > 1 and _is_value(path[-1]):
        path = path[:-1]
    return "/".join(str(_key(entry)) for entry in path) or "params"


def _key(entry: Any) -> Any:
    """The dict key, attribute name or index that one entry of a key path holds."""
    return next((getattr(entry, a) for a in ("key", "name", "idx") if hasattr(entry, a)), entry)


def _children(node: Any) -> dict[Any, tuple[Any, Any]] | None:
    """One level of a tree as {key: (path entry, child)}; None for a leaf."""
    level = jax.tree_util.tree_leaves_with_path(node, is_leaf=lambda x: x is not node)
    return (
        None if level and level[0][0] == () else {_key(p[0]): (p[0], child) for p, child in level}
    )


def _is_value(entry: Any) -> bool:
    return getattr(entry, "name", None) == "value"


def _boxed(children: dict[Any, tuple[Any, Any]] | None) -> tuple[Any, Any] | None:
    """The one child of a box around one array, such as nnx.Variable and linen.Partitioned."""
    child = next(iter(children.values())) if children and len(children) == 1 else None
    return child if child and _is_value(child[0]) else None


def is_box(node: Any) -> bool:
    """Tells a box around one array, such as nnx.Variable, from other containers."""
    return _boxed(_children(node)) is not None


def _listed(leaves: list[tuple[KeyPath, Any]]) -> str:
    shown = ", ".join(_described(path, leaf) for path, leaf in leaves[:3])
    return shown + (f" and {len(leaves) - 3} more" if len(leaves) > 3 else "")


def _described(path: KeyPath, leaf: Any) -> str:
    shape = f" of shape {tuple(leaf.shape)}" if hasattr(leaf, "shape") else ""
    return f"{path_name(path, leaf)!r}{shape}"
