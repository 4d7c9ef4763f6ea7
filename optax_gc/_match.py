"""Matching a prefix tree to a parameter tree, by the names of the children.

`jax.tree` compares node types, so that a plain dict never matches an ``nnx.State``, nor a full tree
the ``optax.MaskedNode`` that ``optax.masked`` and ``optax.partition`` put in place of parameters.
Names are what a user means, and they are the same whatever the containers are.
"""

from collections import Counter
from collections.abc import Callable, Sequence
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
    prefix: Any,
    tree: Any,
    is_label: Callable[[Any], bool],
    *,
    name: str,
    hint: str,
    default: Any,
) -> list[Match]:
    """Pairs each leaf of `tree`, in order, with the label that `prefix` has for it.

    What holds no leaves (None, MaskedNode, an empty module) matches anything. In an NNX module,
    what is not trained (statistics, random keys) needs no label, and a layer that stands in several
    places has that of the first.

    Args:
      prefix: tree of labels, like `tree` or a prefix of it. Its containers may be of other types.
      tree: the parameters, gradients or updates.
      is_label: tells labels from containers.
      name: the argument that `prefix` was given as, for errors.
      hint: what a label looks like, for errors.
      default: the label of what needs none.

    Raises:
      ValueError: if a leaf has no label, or something in `prefix` is no label or has no leaf.
    """
    matches: list[Match] = []
    places = nnx_places(tree) or {}
    flat = jax.tree_util.tree_leaves_with_path(tree)
    name_of = dict(zip((path for path, _ in flat), names(flat), strict=True))

    def walk(prefix: Any, node: Any, path: KeyPath) -> None:
        below = jax.tree_util.tree_leaves_with_path(node)
        if not below:
            return
        if is_label(prefix):
            direct = len(below) == 1 and all(map(_is_value, below[0][0]))
            matches.extend(
                Match(name_of[path + rest], leaf, prefix, not direct) for rest, leaf in below
            )
            return
        labels, children = _children(prefix), _children(node)
        if (box := _boxed(labels)) and "value" not in (children or ()):
            return walk(box[1], node, path)
        if (box := _boxed(children)) and "value" not in (labels or ()):
            return walk(prefix, box[1], (*path, box[0]))
        if not labels or not children:
            shown = repr(prefix) if len(repr(prefix)) < 200 else f"a {type(prefix).__name__}"
            raise ValueError(
                f"{name} for {described(name_of[path + below[0][0]], below[0][1])} is {shown}. "
                f"{hint}"
            )
        missing = [
            described(name_of[path + rest], leaf)
            for rest, leaf in below
            if entry_key(rest[0]) not in labels
            and places.get(path + rest, path + rest) == path + rest
        ]
        unknown = [
            repr(path_name((*path, entry)))
            for key, (entry, label) in labels.items()
            if key not in children and jax.tree_util.tree_leaves(label, is_leaf=is_label)
        ]
        if missing or unknown:
            raise ValueError(
                f"{name} does not match the parameters."
                + (f" It has no entry for {_listed(missing)}." if missing else "")
                + (f" It has {_listed(unknown)}, which name no parameter." if unknown else "")
                + f" The parameters there are {_listed([repr(key) for key in children], 9)}."
                + f" {hint}"
            )
        for key, (entry, child) in children.items():
            walk(labels[key][1] if key in labels else default, child, (*path, entry))

    walk(prefix, tree, ())
    label_of = dict(zip(name_of, (m.label for m in matches), strict=False))
    return [
        m._replace(label=label_of[first]) if (first := places.get(path)) else m
        for m, path in zip(matches, name_of, strict=True)
    ]


def check_names(
    name: str, tree: Any, params: Any, counts: Callable[[Any], bool] = lambda leaf: True
) -> None:
    """Raises a ValueError unless the leaves that count have the same names, in the same order."""
    theirs, ours = (
        names([(path, None) for path, x in jax.tree_util.tree_leaves_with_path(t) if counts(x)])
        for t in (tree, params)
    )
    for pair in zip_longest(theirs, ours):
        if pair[0] != pair[1]:
            found, expected = ("nothing" if x is None else repr(x) for x in pair)
            raise ValueError(
                f"{name} have {found} where params have {expected}. "
                "Give trees of the same structure."
            )


def names(with_paths: Sequence[tuple[KeyPath, Any]]) -> list[str]:
    """The name of each leaf of a tree, as ``'head/kernel'``; a Keras variable knows its own path.

    The ``.value`` of a box around one array, as nnx.Variable, is no part of its name; that of a
    module which has others beside it is.
    """
    paths = [path for path, _ in with_paths]
    for _ in range(2):  # a box may lie in a box
        beside = Counter(path[:-1] for path in paths)
        paths = [
            path[:-1] if len(path) > 1 and _is_value(path[-1]) and beside[path[:-1]] == 1 else path
            for path in paths
        ]
    return [path_name(path, x) for path, (_, x) in zip(paths, with_paths, strict=True)]


def path_name(path: KeyPath, leaf: Any = None) -> str:
    """The names along a key path, as ``'head/kernel'``; a Keras variable knows its own path."""
    if isinstance(own := getattr(leaf, "path", None), str):
        return own
    return "/".join(str(entry_key(entry)) for entry in path) or "params"


def is_a(x: Any, package: str, name: str) -> bool:
    """Whether `x` is an instance of a framework's class, without an import of the framework."""
    return any(
        c.__name__ == name and f"{c.__module__}.".startswith(f"{package}.") for c in type(x).__mro__
    )


def nnx_places(tree: Any) -> dict[KeyPath, KeyPath | None] | None:
    """Where the parameter of each array of an NNX module stands first; None for anything else.

    The answer holds None for arrays that are in no ``nnx.Param``, such as statistics and keys.
    One variable may stand in several places, as shared layers do; ``nnx.state`` has the first.
    """
    if not is_a(tree, "flax.nnx", "Module"):
        return None
    first: dict[int, KeyPath] = {}
    places: dict[KeyPath, KeyPath | None] = {}
    for path, node in jax.tree_util.tree_leaves_with_path(
        tree, is_leaf=lambda x: is_a(x, "flax.nnx", "Variable")
    ):
        trained = is_a(node, "flax.nnx", "Param")
        start = first.setdefault(id(node), path)
        for below, _ in jax.tree_util.tree_leaves_with_path(node):
            places[(*path, *below)] = (*start, *below) if trained else None
    return places


def entry_key(entry: Any) -> Any:
    """The dict key, attribute name or index that one entry of a key path holds."""
    return next((getattr(entry, a) for a in ("key", "name", "idx") if hasattr(entry, a)), entry)


def _children(node: Any) -> dict[Any, tuple[Any, Any]] | None:
    """One level of a tree as {key: (path entry, child)}; None for a leaf."""
    level = jax.tree_util.tree_leaves_with_path(node, is_leaf=lambda x: x is not node)
    return (
        None
        if level and level[0][0] == ()
        else {entry_key(p[0]): (p[0], child) for p, child in level}
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


def _listed(shown: Sequence[str], most: int = 3) -> str:
    more = f" and {len(shown) - most} more" if len(shown) > most else ""
    return ", ".join(shown[:most]) + more


def described(name: str, leaf: Any) -> str:
    """The name of a leaf, with its shape."""
    shape = f" of shape {tuple(leaf.shape)}" if hasattr(leaf, "shape") else ""
    return f"{name!r}{shape}"
