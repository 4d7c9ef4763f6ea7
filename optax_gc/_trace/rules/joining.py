"""Rules for operations that put values together: concatenation, padding, updates."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from ..mixing import aligned, combine, shape_of
from ..provenance import (
    Dims,
    Shape,
    Value,
    axes_of,
    is_whole,
    lost,
)


def concatenate(trace: Any, eqn: Any, *values: Value) -> Value:
    """Values one after another: each keeps its axes whole, at an offset."""
    d, shape = eqn.params["dimension"], shape_of(eqn.outvars[0])
    return join_along(trace, values, d, shape)


def stack(trace: Any, eqn: Any, *values: Value) -> Value:
    """Values one after another along a new dimension."""
    d, shape = eqn.params["axis"], shape_of(eqn.outvars[0])

    def expand(dims: Dims) -> Dims:
        return (*dims[:d], (), *dims[d:])

    thin = (*shape[:d], 1, *shape[d + 1 :])
    return join_along(trace, tuple(v.moved(expand, thin) for v in values), d, shape)


def join_along(trace: Any, values: tuple[Value, ...], d: int, shape: Shape) -> Value:
    """Puts values side by side along dimension `d`, and combines what they have in common."""
    counts: dict[int, int] = {}
    for v in values:
        for p in v.tags:
            counts[p] = counts.get(p, 0) + 1

    def embed(v: Value) -> Value:
        def widen(dims: Dims) -> Dims:
            return (*dims[:d], lost(shape[d], axes_of((dims[d],))), *dims[d + 1 :])

        tags = {}
        for p, t in v.tags.items():
            # Side by side, slices are not added up: the axis they were taken from is now here.
            axes, sliced = axes_of((t.dims[d],)), frozenset(a for a, _ in t.parts)
            whole = (
                counts[p] == 1
                and not sliced
                and all(is_whole((t.dims[d],), a, trace.shapes[p][a]) for a in axes)
            )
            dims = (*t.dims[:d], lost(shape[d], axes | sliced, whole), *t.dims[d + 1 :])
            tags[p] = replace(t, dims=dims, parts=frozenset())
        moved = replace(v, tags={}, one_hot=None, counts=None).moved(widen, shape)
        return replace(moved, tags=tags)

    n = len(values)
    return combine(trace, [embed(v) for v in values], shape, ("add",) * n, (True,) * n)


def pad(trace: Any, eqn: Any, value: Value, filler: Value) -> Value:
    """Puts the value into a larger one; what is padded stays whole unless padding is negative."""
    shape = shape_of(eqn.outvars[0])
    config = eqn.params["padding_config"]

    def widen(p: int | None) -> Callable[[Dims], Dims]:
        def widened(dims: Dims) -> Dims:
            result: list[Any] = []
            for dim, new, (low, high, _) in zip(dims, shape, config, strict=True):
                size = math.prod(f.size for f in dim)
                axes = axes_of((dim,))
                whole = (
                    low >= 0
                    and high >= 0
                    and p is not None
                    and all(is_whole((dim,), a, trace.shapes[p][a]) for a in axes)
                )
                same = size == new and low == high == 0
                result.append(dim if same else lost(new, axes, whole))
            return tuple(result)

        return widened

    moved = value.moved(widen(None), shape)
    tags = {p: replace(t, dims=widen(p)(t.dims)) for p, t in value.tags.items()}
    moved = replace(moved, tags=tags, one_hot=None, counts=None)
    return combine(trace, (moved, aligned(filler, shape)), shape, ("add", "add"), (True, True))


def dynamic_update_slice(
    trace: Any, eqn: Any, value: Value, update: Value, *starts: Value
) -> Value:
    """Writes a window, as into a cache: the two are side by side afterwards."""
    for s in starts:
        trace.refuse_all(s, "a parameter is an index")
    return _written(trace, value, update, shape_of(eqn.outvars[0]))


def _written(trace: Any, value: Value, update: Value, shape: Shape) -> Value:
    def place(dims: Dims) -> Dims:
        sizes = zip(dims, update.shape, shape, strict=True)
        return tuple(dim if old == new else lost(new, axes_of((dim,))) for dim, old, new in sizes)

    spread = replace(update.moved(place, shape), one_hot=None, counts=None)
    return combine(trace, (value, spread), shape, ("add", "add"), (True, True))


def scatter(trace: Any, eqn: Any, value: Value, indices: Value, updates: Value) -> Value:
    """Writes or adds at indices: positions of what is written are no longer known."""
    shape = shape_of(eqn.outvars[0])
    trace.refuse_all(indices, "a parameter is an index")
    numbers = eqn.params["dimension_numbers"]
    gone = set(numbers.inserted_window_dims) | set(numbers.operand_batching_dims)
    kept = dict(
        zip(
            [d for d in range(len(shape)) if d not in gone], numbers.update_window_dims, strict=True
        )
    )

    def place(dims: Dims) -> Dims:
        inside = axes_of(dims[i] for i in kept.values())
        elsewhere = axes_of(dims) - inside
        result = [lost(n, elsewhere) for n in shape]
        for d, i in kept.items():
            same = updates.shape[i] == shape[d] and not elsewhere
            result[d] = dims[i] if same else lost(shape[d], axes_of((dims[i],)) | elsewhere)
        return tuple(result)

    spread = replace(updates.moved(place, shape), one_hot=None, counts=None)
    for p, tag in updates.tags.items():
        scattered = tag.axes - axes_of(tag.dims[i] for i in kept.values())
        if scattered and "mul" in tag.mixed:
            trace.refuse(p, "its product with data is summed by a scatter")
    how = "mul" if eqn.primitive.name == "scatter-mul" else "add"
    return combine(trace, (value, spread), shape, (how, how), (True, True))


RULES = {
    "concatenate": concatenate,
    "stack": stack,
    "pad": pad,
    "dynamic_update_slice": dynamic_update_slice,
    "scatter": scatter,
    "scatter-add": scatter,
    "scatter-sub": scatter,
    "scatter-mul": scatter,
}
