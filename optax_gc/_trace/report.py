"""What people read: the table of `explain`, and errors that end with a line to paste."""

from collections.abc import Iterable, MutableMapping, MutableSequence, Sequence
from typing import Any

import jax

from .._axes import Axes, path_name, table
from .provenance import AxisSet
from .verdict import Verdict


def as_axes(axes: Iterable[int]) -> Axes:
    """A set of axes as an axes tree has it."""
    return tuple(sorted(axes))


def explanation(paths: Sequence[Any], shapes: Sequence[Any], found: Sequence[Verdict]) -> str:
    """One aligned line a parameter."""
    rows: list[Sequence[str]] = [
        ("parameter", "shape", "fan-in", "fan-out", "batch", "use", "where")
    ]
    for path, shape, verdict in zip(paths, shapes, found, strict=True):
        parts = (verdict.axes, verdict.outputs, verdict.batch) if verdict.axes else ((), (), ())
        roles = ["?" if verdict.refused else str(as_axes(part)) for part in parts]
        where = ", ".join(verdict.where[:2]) + (", ..." if len(verdict.where) > 2 else "")
        rows.append((path_name(path), str(shape), *roles, _use(verdict), where))
    return table(rows)


def _use(verdict: Verdict) -> str:
    if verdict.refused:
        return f"refused: {verdict.refused}{_candidates(verdict)}"
    if verdict.how == "tied":
        return f"tied: a lookup, and a dense layer over {_texts(verdict.candidates)}"
    return verdict.how


def _candidates(verdict: Verdict) -> str:
    return f"; candidates {_texts(verdict.candidates)}" if verdict.candidates else ""


def _texts(candidates: Sequence[AxisSet]) -> str:
    return " or ".join(str(as_axes(axes)) for axes in candidates)


def unresolved(
    params: Any,
    paths: Sequence[Any],
    shapes: Sequence[Any],
    found: Sequence[Verdict],
    ones: Sequence[str],
) -> str:
    """All parameters that were refused, and how to settle each; empty if there are none.

    Args:
      params: the tree of parameters.
      paths: their key paths.
      shapes: their shapes.
      found: their verdicts.
      ones: names and shapes of the arguments that have an axis of length 1.
    """
    refused = [(p, s, v) for p, s, v in zip(paths, shapes, found, strict=True) if v.refused]
    if not refused:
        return ""
    lines = [
        f"the fan-in axes of {len(refused)} of {len(found)} parameters cannot be told from the "
        "computation:"
    ]
    for path, shape, verdict in refused:
        lines.append(f"  {path_name(path)!r} of shape {shape}: {verdict.refused}")
        lines.append(f"    at {', '.join(verdict.where)}{_candidates(verdict)}")
    if ones:
        lines.append(
            f"An axis of length 1, as in {', '.join(ones)}, hides what is repeated along it: "
            "trace with a batch and a length of 2 or more."
        )
    lines.append(
        'Settle each by hand, after axes = axes_from_trace(..., on_unresolved="skip"), which leaves'
        " them alone:"
    )
    for path, _, verdict in refused:
        axes, *others = [*map(as_axes, verdict.candidates), ()]
        instead = (
            " or ".join(map(str, others)) + " to leave it alone" if axes else "its fan-in axes"
        )
        lines.append(f"  {assignment(path, axes, params)}  # or {instead}")
    return "\n".join(lines)


def assignment(path: Sequence[Any], axes: Axes, params: Any) -> str:
    """The line of Python that sets one leaf of a tree named ``axes``, made for ``params``."""
    place, mutable = "axes", True
    node: Any = params
    # The box around an nnx variable is replaced with its axes.
    for key in path[:-1] if getattr(path[-1] if path else None, "name", None) == "value" else path:
        step: Any = getattr(key, "key", getattr(key, "idx", None))
        mutable = mutable and isinstance(node, MutableMapping | MutableSequence)
        place += f"[{step!r}]"
        node = node[step] if mutable else node
    if mutable:
        return f"{place} = {axes}"
    where = jax.tree_util.keystr(tuple(path))
    return (
        "axes = jax.tree_util.tree_map_with_path(lambda path, _, old: "
        f"{axes} if jax.tree_util.keystr(path) == {where!r} else old, params, axes)"
    )
