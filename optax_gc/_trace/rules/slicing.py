"""Rules for operations that take parts of values: slices and lookups."""

from collections.abc import Callable, Hashable, Sequence
from typing import TYPE_CHECKING, Any

from ..digits import (
    NONE,
    Dims,
    Factor,
    Shape,
    axes_of,
    besides,
    chosen,
    foreign,
    has_axes,
    is_whole,
    lost,
    vary,
    without_dim,
)
from ..jaxprs import shape_of
from ..reasons import Why
from ..uses import with_slices_joined
from ..values import Echo, Kind, Node, Part, Term, Value

if TYPE_CHECKING:
    from ..walk import Walk


def cut(trace: "Walk", value: Value, shape: Shape, starts: Sequence[Hashable]) -> Value:
    """A window of `value`: of a parameter's axis that is cut, only a part is left.

    Args:
      trace: the walk.
      value: what is cut.
      shape: of the window.
      starts: where it begins along each dimension: a number, or what stands for an unknown one.
    """
    cuts = [d for d, (n, m) in enumerate(zip(value.shape, shape, strict=True)) if n != m]
    value = with_slices_joined(trace, value, final=False)

    def window(dims: Dims) -> Dims:
        return tuple([_window(dim, shape[d]) if d in cuts else dim for d, dim in enumerate(dims)])

    def part(node: Node) -> Node:
        found = set(node.parts)
        for d in cuts:
            if axes := axes_of((node.dims[d],)):
                start, dim = starts[d], node.dims[d]
                part = Part((start, shape[d], dim), axes)
                place = part.window[0] if part.window and shape[d] == 1 else None
                found.add(part._replace(place=place))
        return node._replace(dims=window(node.dims), parts=frozenset(found))

    def echo(e: Echo) -> Echo:
        ones = axes_of(e.dims[d] for d in cuts if shape[d] == 1)
        parts = set(e.parts)
        for d in cuts:
            axes = axes_of((e.dims[d],))
            if e.how == "statistic" and axes:
                parts.add(Part((starts[d], shape[d], e.dims[d]), axes))
            if e.whole is not None and (shared := axes_of((e.whole[d],)) - axes):
                parts.add(Part((starts[d], shape[d], e.whole[d]), shared))
        return e._replace(cut=e.cut | ones, parts=frozenset(parts)).moved(window)

    def part_of_product(t: Term, data: Dims) -> Callable[[Node], Node]:
        factors = [n.dims for n in t.nodes] + ([] if t.constants is None else [t.constants])
        outputs = any(besides(window(dims), window(data)) for dims in factors)

        def node(n: Node) -> Node:
            of_node = [d for d in cuts if axes_of((n.dims[d],))]
            index = all(shape[d] == 1 and _is_axis(trace, n, d) for d in of_node)
            return part(n) if index or outputs else n._replace(dims=window(n.dims))

        return node

    def term(t: Term) -> Term:
        moved = t.moved(window, node=part if t.data is None else part_of_product(t, t.data))
        if (
            t.edges
            and t.constants is not None
            and any(
                has_axes(t.constants[d]) and not any(has_axes(n.dims[d]) for n in t.nodes)
                for d in cuts
            )
        ):
            return moved._replace(unsure=t.unsure or Why.CUT_PRODUCT)
        return moved

    result = whole_hot(value, cuts).moved(window, shape, term, echo)
    return result._replace(seen=trace.seen_with_parts(result))


def _is_axis(trace: "Walk", node: Node, d: int) -> bool:
    """Whether a dimension is an axis of the node, and nothing else."""
    dim = node.dims[d]
    axes = axes_of((dim,))
    return len(axes) == 1 and is_whole((dim,), min(axes), trace.shapes[node.param][min(axes)])


def whole_hot(value: Value, cuts: Sequence[int]) -> Value:
    """The value, of which some dimensions are cut; a one-hot that is cut is not known any more."""
    if value.one_hot is None or not any(has_axes(value.one_hot[d]) for d in cuts):
        return value.plain()._replace(one_hot=value.one_hot)
    terms = [t._replace(blurred=Why.CUT_ONE_HOT) if t.hot is not None else t for t in value.terms]
    return value.plain()._replace(blurred=Why.CUT_ONE_HOT, terms=tuple(terms))


def _window(dim: tuple[Factor, ...], size: int) -> tuple[Factor, ...]:
    if size == 1 or not axes_of((dim,)):
        return foreign((size,))[0]
    only = dim[0]
    if len(dim) == 1 and only.stride is not None:
        return (Factor(size, only.axes, only.stride),)
    return lost(size, axes_of((dim,)))


def slice_(trace: "Walk", eqn: Any, value: Value) -> Value:
    """A static slice."""
    starts, strides = eqn.params["start_indices"], eqn.params["strides"]
    at = starts if strides is None else tuple(zip(starts, strides, strict=True))
    if strides is not None and all(n == 1 for n in strides):
        at = starts
    return cut(trace, value, shape_of(eqn.outvars[0]), at)


def split(trace: "Walk", eqn: Any, value: Value) -> list[Value]:
    """Slices that cover a dimension."""
    axis, results, start = eqn.params["axis"], [], 0
    for var, size in zip(eqn.outvars, eqn.params["sizes"], strict=True):
        starts = [start if d == axis else 0 for d in range(len(value.shape))]
        results.append(cut(trace, value, shape_of(var), starts))
        start += int(size)
    return results


def dynamic_slice(trace: "Walk", eqn: Any, value: Value, *starts: Value) -> Value:
    """A slice that starts where other values say; a lookup if those are data."""
    shape = shape_of(eqn.outvars[0])
    for s in starts:
        trace.refuse_all(s, Why.INDEX)
    at = [
        min(max(s.number if s.number >= 0 else s.number + n, 0), n - m)
        if s.number is not None
        else ("slice", trace.path, d)
        for d, (s, n, m) in enumerate(zip(starts, value.shape, shape, strict=True))
    ]
    result = cut(trace, value, shape, at)
    if shape != value.shape and max(s.kind for s in starts) == Kind.DATA:
        return _picked(result, foreign(shape), trace.path)
    return result


def _picked(value: Value, indices: Dims, path: Hashable = None) -> Value:
    """Marks what indices that are data, and vary along some dimensions, have chosen.

    If they are those of the slice at `path`, they are no slice that could be told from others.
    """
    if value.kind == Kind.DATA:
        return value._replace(varies=vary(value.varies, indices))

    def node(n: Node) -> Node:
        here = frozenset([part for part in n.parts if path is not None and part.path == path])
        chosen = n.chosen.union(*(part.axes for part in here))
        return n._replace(parts=n.parts - here, chosen=chosen)

    terms = tuple(
        t._replace(
            nodes=tuple(map(node, t.nodes)),
            data=indices,
            picked=indices,
            last=None,
        )
        for t in value.terms
    )
    return value._replace(kind=Kind.DATA, varies=vary(value.varies, indices), terms=terms)


def gather(trace: "Walk", eqn: Any, value: Value, indices: Value) -> Value:
    """A lookup by indices, such as an embedding: rows of the axes that are indexed."""
    shape, numbers = shape_of(eqn.outvars[0]), eqn.params["dimension_numbers"]
    trace.refuse_all(indices, Why.INDEX)
    sizes = eqn.params["slice_sizes"]
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
        d for d in range(len(value.shape)) if d not in paired and sizes[d] != value.shape[d]
    ]
    one = all(shape[i] == 1 for i in batch) and len(numbers.start_index_map) == 1
    if one and not by_data and looked_up == list(numbers.start_index_map) and not paired:
        (d,) = looked_up  # one slice: w[k]
        start: Hashable = indices.number
        if start is None:
            start = ("slice", trace.path, d)
        thin = tuple(sizes)
        part = cut(trace, value, thin, [start if i == d else 0 for i in range(len(thin))])

        def take(dims: Dims) -> Dims:
            result: list[Any] = [()] * len(shape)
            for i, o in offsets.items():
                result[o] = dims[i]
            return tuple(result)

        return part.moved(take, shape)

    where = list(foreign(shape))
    for i, dim in zip(batch, indices.varies[:-1], strict=False):
        where[i] = dim if shape[i] > 1 else ()
    rows = tuple(where)

    def pick(dims: Dims) -> Dims:
        result = list(foreign(shape))
        axes = axes_of(dims[d] for d in looked_up)
        if not by_data:  # positions that constants chose could still be contracted over
            for i in batch:
                varies = shape[i] > 1 and has_axes(rows[i])
                result[i] = chosen(shape[i], axes if varies else NONE)
        for d, i in offsets.items():
            result[i] = dims[d] if d not in looked_up else lost(shape[i], axes_of((dims[d],)))
        for d, i in paired.items():
            result[batch[i]] = dims[d]
        return tuple(result)

    def pick_data(dims: Dims) -> Dims:  # different rows of data are so wherever they are chosen to
        result = pick(dims)
        if not (by_data and any(has_axes(dims[d]) for d in looked_up)):
            return result
        return tuple(rows[i] if i in batch else dim for i, dim in enumerate(result))

    for e in value.echoes if by_data else ():
        if axes_of(e.dims[d] for d in looked_up):  # of a table, or the units that labels choose
            if e.learned:
                trace.refuse(e.params | e.learned, Why.EITHER)
            elif e.how == "statistic":
                trace.refuse(e.params, Why.STATISTIC)
    one_hot = value.one_hot

    def node(n: Node) -> Node:  # of an axis at one place, that is all there is
        moved = n._replace(dims=pick(n.dims))
        gone = [d for d in looked_up if axes_of((n.dims[d],)) - axes_of(moved.dims)]
        if by_data:
            return moved._replace(chosen=n.chosen | axes_of(n.dims[d] for d in gone))
        parts = [
            Part((("slice", trace.path, d), sizes[d], n.dims[d]), axes_of((n.dims[d],)))
            for d in gone
        ]
        return moved._replace(parts=n.parts.union(parts))

    result = value.plain().moved(
        pick,
        shape,
        lambda t: t.moved(pick, None if t.data is None else pick_data, node),
        lambda e: e.moved(pick, pick_data),
    )
    if by_data and looked_up:
        result = _picked(result, rows)
    result = result._replace(varies=vary(result.varies, rows), kind=max(result.kind, indices.kind),
                     seen=result.seen | indices.seen)  # fmt: skip
    if one_hot is not None and not any(has_axes(one_hot[d]) for d in looked_up):
        result = result._replace(one_hot=pick(one_hot))
    elif one_hot is not None and len(looked_up) == 1 and len(value.shape) == 2:
        (d,) = (d for d in range(2) if d not in looked_up)
        hot = list(foreign(shape))
        hot[offsets[d]] = one_hot[d]
        result = result._replace(one_hot=tuple(hot))
    return result


def unstack(trace: "Walk", eqn: Any, value: Value) -> list[Value]:
    """Slices along one dimension, which goes."""
    d = eqn.params["axis"]
    thin = (*value.shape[:d], 1, *value.shape[d + 1 :])
    slices = []
    for i, var in enumerate(eqn.outvars):
        part = cut(trace, value, thin, [i if e == d else 0 for e in range(len(thin))])
        slices.append(part.moved(lambda dims: without_dim(dims, d), shape_of(var)))
    return slices


RULES = {
    "slice": slice_,
    "split": split,
    "unstack": unstack,
    "dynamic_slice": dynamic_slice,
    "gather": gather,
}
