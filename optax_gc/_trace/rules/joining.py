"""Rules for operations that put values together: concatenation, padding, updates."""

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from ..digits import (
    NONE,
    VARYING,
    Dims,
    Shape,
    axes_of,
    besides,
    foreign,
    has_axes,
    is_whole,
    lost,
    vary,
    with_dim,
)
from ..jaxprs import shape_of
from ..products import add, aligned, multiply
from ..reasons import Why
from ..values import Echo, Kind, Node, Term, Value, constant, shuffled_axes
from .slicing import whole_hot

if TYPE_CHECKING:
    from ..walk import Walk


def concatenate(trace: "Walk", eqn: Any, *values: Value) -> Value:
    """Values one after another: each keeps its axes whole, at an offset."""
    return join_along(trace, values, eqn.params["dimension"], shape_of(eqn.outvars[0]))


def stack(trace: "Walk", eqn: Any, *values: Value) -> Value:
    """Values one after another along a new dimension."""
    d, shape = eqn.params["axis"], shape_of(eqn.outvars[0])

    def expand(dims: Dims) -> Dims:
        return (*dims[:d], (), *dims[d:])

    thin = (*shape[:d], 1, *shape[d + 1 :])
    return join_along(trace, tuple(v.moved(expand, thin) for v in values), d, shape)


def in_part(value: Value, along: Iterable[int]) -> Value:
    """A value put into some part of a larger one: from there to elsewhere it varies."""
    along = frozenset(along)
    mask = tuple(
        lost(size, VARYING) if d in along else foreign((size,))[0]
        for d, size in enumerate(value.shape)
    )

    def term(t: Term) -> Term:
        if t.data is not None:
            return t._replace(data=vary(t.data, mask))
        if not besides(mask, t.support):
            return t
        return t.with_constants(mask)

    varies = value.varies
    if value.kind == Kind.DATA or not value.terms:
        varies = vary(varies, mask)
    return value._replace(varies=varies, terms=tuple(map(term, value.terms)))


def _put(value: Value, along: Sequence[int], single: bool = False) -> Value:
    """What is written into a part of something larger, along some of its dimensions.

    Slices times data that does not vary there are put side by side, and not added up.

    Args:
      value: what is written.
      along: the dimensions along which it is smaller.
      single: whether it is written at a single position of another one.
    """

    def term(t: Term) -> Term:
        aside = t.data is not None and (single or not all([has_axes(t.data[d]) for d in along]))
        return t._replace(put=True) if aside else t

    return value._replace(terms=tuple(map(term, value.terms)))


def join_along(trace: "Walk", values: tuple[Value, ...], d: int, shape: Shape) -> Value:
    """Puts values side by side along dimension `d`, and joins what they have in common."""
    if len(values) == 1:
        return values[0]
    nodes = [n for v in values for t in v.terms for n in t.nodes]
    counts = {p: sum(n.param == p for n in nodes) for p in {n.param for n in nodes}}

    def place(node: Node) -> Node:
        # Side by side, slices are not added up: the axis they were taken from is now here.
        axes = axes_of((node.dims[d],))
        sliced = NONE.union(*[part.axes for part in node.parts if part.place is not None])
        mine = [n for n in nodes if n.param == node.param]
        indices = {part.place for n in mine for part in n.parts}
        p = node.param
        every = len(sliced) == 1 and not axes and all(len(n.parts) == 1 for n in mine)
        whole = (
            indices == set(range(trace.shapes[p][min(sliced)])) and len(mine) == len(indices)
            if every
            else counts[p] == 1
            and not node.parts
            and all(is_whole((node.dims[d],), a, trace.shapes[p][a]) for a in axes)
        )
        unknown = NONE.union(*[part.axes for part in node.parts])
        shuffled = shuffled_axes(mine) if len(mine) > 1 else NONE  # in another order each
        dim = lost(shape[d], axes | unknown | shuffled, whole and not shuffled)
        return node._replace(dims=with_dim(node.dims, d, dim), parts=frozenset())

    def widen(dims: Dims) -> Dims:
        return with_dim(dims, d, lost(shape[d], axes_of((dims[d],))))

    node_parts: dict[int, set[Any]] = defaultdict(set)
    echo_parts: dict[int, set[Any]] = defaultdict(set)
    for n in nodes:
        node_parts[n.param].add(n.parts)
    for v in values:
        for e in v.echoes:
            for p in e.params:
                echo_parts[p].add(e.parts)

    def same(node: Node) -> Node:
        return node._replace(dims=widen(node.dims))

    def term(t: Term) -> Term:
        # Pieces of one product, put together in another order, are still that of one slice.
        mine = set().union(*(node_parts[p] for p in t.params))
        return t.moved(widen, node=same if t.data is not None and len(mine) == 1 else place)

    def echo(e: Echo) -> Echo:
        mine = set().union(*(echo_parts[p] for p in e.params))
        moved = e.moved(widen)
        if len(mine) == 1:
            return moved
        sliced = NONE.union(*[part.axes for part in e.parts])

        def joined(dims: Dims) -> Dims:
            return with_dim(dims, d, lost(shape[d], axes_of((dims[d],)) | sliced))

        whole = None if moved.whole is None else joined(moved.whole)
        return moved._replace(dims=joined(moved.dims), whole=whole, parts=frozenset())

    moved = [v.plain().moved(widen, shape, term, echo) for v in values]
    return add(trace, [in_part(v, [d]) for v in moved], shape)


def pad(trace: "Walk", eqn: Any, value: Value, filler: Value) -> Value:
    """Puts the value into a larger one; what is padded stays whole unless padding is negative."""
    shape, config = shape_of(eqn.outvars[0]), eqn.params["padding_config"]

    def widen(dims: Dims, p: int | None = None) -> Dims:
        result: list[Any] = []
        for dim, new, (low, high, _) in zip(dims, shape, config, strict=True):
            size, axes = math.prod(f.size for f in dim), axes_of((dim,))
            whole = (
                low >= 0
                and high >= 0
                and p is not None
                and all(is_whole((dim,), a, trace.shapes[p][a]) for a in axes)
            )
            result.append(dim if size == new and low == high == 0 else lost(new, axes, whole))
        return tuple(result)

    zero = filler.kind == Kind.CONSTANT  # rows of zeros are no other row
    cuts = [d for d, (m, n) in enumerate(zip(value.shape, shape, strict=True)) if m != n]

    def node(n: Node) -> Node:
        return n._replace(dims=widen(n.dims, n.param))

    before = whole_hot(value, cuts) if zero else value.plain()
    moved = in_part(
        _put(before, cuts).moved(widen, shape, lambda t: t.moved(widen, node=node)), cuts
    )
    padded = add(trace, (moved, aligned(filler, shape)), shape)
    return padded._replace(one_hot=moved.one_hot)


def dynamic_update_slice(
    trace: "Walk", eqn: Any, value: Value, update: Value, *starts: Value
) -> Value:
    """Writes a window, as into a cache: the two are side by side afterwards."""
    for s in starts:
        trace.refuse_all(s, Why.INDEX)
    shape = shape_of(eqn.outvars[0])

    def place(dims: Dims) -> Dims:
        sizes = zip(dims, update.shape, shape, strict=True)
        return tuple(dim if old == new else lost(new, axes_of((dim,))) for dim, old, new in sizes)

    along = [d for d, (m, n) in enumerate(zip(update.shape, shape, strict=True)) if m != n]
    written = in_part(_put(update.plain(), along).moved(place, shape), along)
    return add(trace, (value, written), shape)


def scatter(trace: "Walk", eqn: Any, value: Value, indices: Value, updates: Value) -> Value:
    """Writes or adds at indices: positions of what is written are no longer known."""
    shape = shape_of(eqn.outvars[0])
    trace.refuse_all(indices, Why.INDEX)
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

    for t in updates.terms:
        for n in t.nodes:
            scattered = axes_of(n.dims) - axes_of(n.dims[i] for i in kept.values())
            if scattered and t.data is not None:
                trace.refuse([n.param], Why.SCATTERED)
    along = [d for d, n in enumerate(shape) if d not in kept or updates.shape[kept[d]] != n]
    smaller = [kept[d] for d in along if d in kept]
    rows = [i for i in range(len(updates.shape)) if i not in kept.values()]
    single = not rows and any(d not in kept for d in along)
    put = _put(updates.plain(), [*smaller, *rows], single)
    spread = in_part(put.moved(place, shape), along)
    if indices.kind == Kind.DATA and value.kind == updates.kind == Kind.CONSTANT:
        return constant(shape, Kind.DATA)
    if eqn.primitive.name == "scatter-mul":
        return multiply(trace, value.plain(), spread, shape)
    return add(trace, (value, spread), shape)


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
