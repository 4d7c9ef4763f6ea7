"""What people read: the table of `explain`, and errors that end with a line to paste."""

from collections.abc import Iterable, MutableMapping, MutableSequence, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from .._axes import Axes, Table, table
from .._match import described
from .call import Call
from .digits import AxisSet
from .verdict import Verdict


def as_axes(axes: Iterable[int]) -> Axes:
    """A set of axes as an axes tree has it."""
    return tuple(sorted(axes))


def explanation(call: Call, found: Sequence[Verdict]) -> Table:
    """One aligned line a parameter."""
    rows: list[tuple[str, ...]] = [
        ("parameter", "shape", "fan-in", "fan-out", "batch", "use", "where")
    ]
    roles = []
    for name, array, verdict in zip(call.names, call.params, found, strict=True):
        parts = (verdict.axes, verdict.outputs, verdict.batch) if verdict.axes else ((), (), ())
        axes = ["?" if verdict.refused else str(as_axes(part)) for part in parts]
        where = ", ".join(verdict.where[:2]) + (", ..." if len(verdict.where) > 2 else "")
        rows.append((name, str(jnp.shape(array)), *axes, _use(verdict), where))
        roles.append("refused" if verdict.refused else "weight" if verdict.axes else "alone")
    return table(rows, roles=roles)


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


# A whole model that is refused is refused for one cause, which some of it show.
_MOST = 10


def unresolved(call: Call, found: Sequence[Verdict]) -> str:
    """The parameters that were refused, and how to settle each; empty if there are none."""
    if not any(v.refused for v in found):
        return ""
    refused = [
        (path, described(name, array), verdict)
        for path, name, array, verdict in zip(
            call.paths, call.names, call.params, found, strict=True
        )
        if verdict.refused
    ]
    more = f"  and {len(refused) - _MOST} more" if len(refused) > _MOST else ""
    lines = [
        f"the fan-in axes of {len(refused)} of {len(found)} parameters cannot be told from the "
        "computation:"
    ]
    for _, parameter, verdict in refused[:_MOST]:
        lines.append(f"  {parameter}: {verdict.refused}")
        lines.append(f"    at {', '.join(verdict.where)}{_candidates(verdict)}")
    lines.extend([more + "; explain(...) lists them all."] if more else [])
    if call.ones:
        lines.append(
            f"An axis of length 1, as in {', '.join(call.ones)}, hides what is repeated along it: "
            "trace with a batch and a length of 2 or more."
        )
    lines.append(
        'Settle each by hand, after axes = axes_from_trace(..., on_unresolved="skip"), which leaves'
        " them alone:"
    )
    for path, _, verdict in refused[:_MOST]:
        axes = " or ".join(str(as_axes(axes)) for axes in verdict.candidates)
        instead = f"or {axes}, if that is its fan-in" if axes else "or its fan-in axes"
        lines.append(f"  {assignment(path, (), call)}  # {instead}")
    lines.extend([more] if more else [])
    return "\n".join(lines)


def assignment(path: Sequence[Any], axes: Axes, call: Call) -> str:
    """The line of Python that sets one leaf of a tree named ``axes``, made by a call."""
    place, mutable = "axes", True
    node: Any = call.tree(call.params)
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
        f"{axes} if jax.tree_util.keystr(path) == {where!r} else old, {call.name}, axes)"
    )
