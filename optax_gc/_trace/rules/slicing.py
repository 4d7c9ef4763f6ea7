"""Rules for operations that take parts of values: slices and lookups."""

from dataclasses import replace
from typing import Any

from ..jaxprs import is_literal
from ..mixing import mix, shape_of
from ..provenance import (
    NONE,
    Dims,
    Factor,
    Kind,
    Shape,
    Value,
    axes_of,
    foreign,
    lost,
    overlay,
)


def cut(value: Value, shape: Shape, part: Any) -> Value:
    """A window of `value`: of a parameter's axis that is cut, only a part is left.

    Args:
      value: what is cut.
      shape: of the window.
      part: identifies the window, so that different ones of one parameter are told apart.
    """

    def window(dims: Dims) -> Dims:
        sizes = zip(dims, value.shape, shape, strict=True)
        return tuple(dim if old == new else _window(dim, new) for dim, old, new in sizes)

    result = value.moved(window, shape)
    tags = {}
    for p, tag in result.tags.items():
        before = value.tags[p]
        touched = axes_of(
            d for d, n, m in zip(before.dims, value.shape, shape, strict=True) if n != m
        )
        parts = tag.parts | {(a, part) for a in touched} if not tag.mixed else tag.parts
        # Selecting from an activation is no reduction, yet less than the whole axis is left.
        gone = (touched - tag.axes) if tag.mixed else NONE
        tags[p] = replace(tag, parts=parts, reduced=tag.reduced | gone)
    return replace(result, tags=tags)


def _window(dim: tuple[Factor, ...], size: int) -> tuple[Factor, ...]:
    if size == 1 or not axes_of((dim,)):
        return foreign((size,))[0]
    only = dim[0]
    if len(dim) == 1 and only.stride is not None:
        return (Factor(size, only.axes, only.stride),)
    return lost(size, axes_of((dim,)))


def slice_(trace: Any, eqn: Any, value: Value) -> Value:
    """A static slice."""
    part = eqn.params["start_indices"], eqn.params["limit_indices"], eqn.params["strides"]
    return cut(value, shape_of(eqn.outvars[0]), part)


def split(trace: Any, eqn: Any, value: Value) -> list[Value]:
    """Slices that cover a dimension."""
    return [cut(value, shape_of(v), (id(eqn), i)) for i, v in enumerate(eqn.outvars)]


def dynamic_slice(trace: Any, eqn: Any, value: Value, *starts: Value) -> Value:
    """A slice that starts where other values say; a lookup if those are data."""
    shape = shape_of(eqn.outvars[0])
    at = tuple(int(a.val) if is_literal(a) else id(a) for a in eqn.invars[1:])
    result = cut(value, shape, at)
    if any(trace.refuse_all(s, "a parameter is an index") for s in starts):
        return result
    if shape != value.shape and max(s.kind for s in starts) == Kind.DATA:
        cut_axes = {p: t.axes - result.tags[p].axes for p, t in value.tags.items()}
        return selected(result, cut_axes)
    return result


def selected(value: Value, axes: dict[int, frozenset[int]]) -> Value:
    """Marks what data has chosen from each parameter, along which of its axes."""
    tags = {
        p: replace(mix(t, ("select",), foreign(value.shape)), lookup=t.lookup or bool(axes.get(p)))
        for p, t in value.tags.items()
    }
    return replace(value, tags=tags, kind=Kind.DATA)


def gather(trace: Any, eqn: Any, value: Value, indices: Value) -> Value:
    """A lookup by indices, such as an embedding: rows of the axes that are indexed."""
    shape, numbers = shape_of(eqn.outvars[0]), eqn.params["dimension_numbers"]
    trace.refuse_all(indices, "a parameter is an index")
    gone = set(numbers.collapsed_slice_dims) | set(numbers.operand_batching_dims)
    offsets = dict(
        zip([d for d in range(len(value.shape)) if d not in gone], numbers.offset_dims, strict=True)
    )
    batch = [i for i in range(len(shape)) if i not in numbers.offset_dims]
    paired = dict(
        zip(numbers.operand_batching_dims, numbers.start_indices_batching_dims, strict=True)
    )
    by_data = indices.kind == Kind.DATA
    looked_up = [
        d
        for d in range(len(value.shape))
        if d not in paired and eqn.params["slice_sizes"][d] != value.shape[d]
    ]

    def pick(dims: Dims) -> Dims:
        result = list(foreign(shape))
        axes = axes_of(dims[d] for d in looked_up)
        if not by_data:  # positions that constants chose could still be contracted over
            for i in batch:
                result[i] = lost(shape[i], axes) if shape[i] > 1 else ()
        for d, i in offsets.items():
            result[i] = dims[d] if d not in looked_up else lost(shape[i], axes_of((dims[d],)))
        for d, i in paired.items():
            result[batch[i]] = dims[d]
        return tuple(result)

    result = value.moved(pick, shape)
    varies = overlay(result.varies, _where_indices_vary(indices, shape, batch))
    result = replace(
        result, varies=varies, kind=max(value.kind, indices.kind), one_hot=None, counts=None
    )
    tags = {}
    for p, tag in result.tags.items():
        axes = axes_of(value.tags[p].dims[d] for d in looked_up)
        known = not (tag.mixed or by_data)
        parts = tag.parts | {(a, id(eqn)) for a in axes} if known else tag.parts
        tags[p] = replace(
            tag, lookup=tag.lookup or bool(axes and not (tag.mixed or tag.reduced)), parts=parts
        )
    result = replace(result, tags=tags)
    return selected(result, {}) if by_data and looked_up else result


def _where_indices_vary(indices: Value, shape: Shape, batch: list[int]) -> Dims:
    result = list(foreign(shape))
    for i, dim in zip(batch, indices.varies[:-1], strict=False):
        result[i] = dim if shape[i] > 1 else ()
    return tuple(result)


def unstack(trace: Any, eqn: Any, value: Value) -> list[Value]:
    """Slices along one dimension, which goes."""
    d = eqn.params["axis"]
    thin = (*value.shape[:d], 1, *value.shape[d + 1 :])

    def drop(dims: Dims) -> Dims:
        return (*dims[:d], *dims[d + 1 :])

    return [
        cut(value, thin, (id(eqn), i)).moved(drop, shape_of(v)) for i, v in enumerate(eqn.outvars)
    ]


RULES = {
    "slice": slice_,
    "split": split,
    "unstack": unstack,
    "dynamic_slice": dynamic_slice,
    "gather": gather,
}
