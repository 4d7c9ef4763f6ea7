"""What people read: the table of `explain`, and errors that end with a line to paste."""

from collections.abc import Sequence
from typing import Any

from .._axes import Axes, path_name, table
from .provenance import AxisSet
from .verdict import Verdict


def as_axes(axes: AxisSet) -> Axes:
    """A set of axes as an axes tree has it."""
    return tuple(sorted(axes))


def explanation(paths: Sequence[Any], shapes: Sequence[Any], found: Sequence[Verdict]) -> str:
    """One aligned line a parameter."""
    rows = [("parameter", "shape", "axes", "use", "where")]
    for path, shape, verdict in zip(paths, shapes, found, strict=True):
        axes = "?" if verdict.refused else str(as_axes(verdict.axes))
        where = ", ".join(verdict.where[:2]) + (", ..." if len(verdict.where) > 2 else "")
        rows.append((path_name(path), str(shape), axes, _use(verdict), where))
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
    paths: Sequence[Any], shapes: Sequence[Any], found: Sequence[Verdict], ones: Sequence[str]
) -> str:
    """All parameters that were refused, and how to settle each; empty if there are none.

    Args:
      paths: key paths of the parameters.
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
        lines.append(f"  {assignment(path, axes)}  # or {instead}")
    return "\n".join(lines)


def assignment(path: Sequence[Any], axes: Axes) -> str:
    """The line of Python that sets one leaf of a tree named ``axes``."""
    steps = [
        f"[{getattr(key, 'key', getattr(key, 'idx', None))!r}]"
        if not hasattr(key, "name")
        else f".{key.name}"
        for key in path
    ]
    place = "".join(steps)
    if not place:
        return f"axes = {axes}"
    # The box around an nnx variable is replaced with its axes; other attributes are frozen.
    items = steps[:-1] if steps[-1] == ".value" else steps
    if items and all(step.startswith("[") for step in items):
        return f"axes{''.join(items)} = {axes}"
    return f"axes = eqx.tree_at(lambda tree: tree{place}, axes, {axes})"
