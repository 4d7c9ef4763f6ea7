"""Rules for functions of shards and for what the shards exchange.

A shard shows a part of a parameter, as a step of a loop does: which part, its node remembers. What
is contracted over a part of the fan-in is whole once it is summed over the shards.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from .. import jaxprs
from ..digits import NONE, VARYING, Dims, Factor, axes_of, lost, with_dim
from ..jaxprs import Names, shape_of
from ..reasons import Why
from ..values import Node, Part, Value, regrouped

if TYPE_CHECKING:
    from ..walk import Walk


def shard_map(trace: "Walk", eqn: Any, *values: Value) -> list[Value]:
    """A function of shards, which puts them together in the end."""
    body, shards = jaxprs.body(eqn), jaxprs.shards(eqn)
    inside = [
        _shard(v, shape_of(var), names)
        for v, var, names in zip(values, body.jaxpr.invars, shards.operands, strict=True)
    ]
    results = trace.run(body, inside, trace.outs)
    return [
        _whole(trace, v, shape_of(var), names)
        for v, var, names in zip(results, eqn.outvars, shards.results, strict=True)
    ]


def _shard(value: Value, shape: tuple[int, ...], split: tuple[Names, ...]) -> Value:
    """What a shard sees of a value."""

    def cut(dims: Dims) -> Dims:
        return tuple(
            dim if old == new else _halves(dim, old, new)[1]
            for dim, old, new in zip(dims, value.shape, shape, strict=True)
        )

    def node(n: Node) -> Node:
        parts = set(n.parts)
        for dim, old, new, names in zip(n.dims, value.shape, shape, split, strict=True):
            if old != new and axes_of((dim,)):
                parts.add(Part(("mesh", names), axes_of((dim,)), _halves(dim, old, new)[0]))
        return n._replace(dims=cut(n.dims), parts=frozenset(parts))

    return value.plain().moved(cut, shape, lambda t: t.moved(cut, node=node))


def _halves(dim: tuple[Factor, ...], old: int, new: int) -> tuple[Any, Any]:
    """The digits of a dimension that tell which shard, and those within it."""
    only = dim[0] if len(dim) == 1 else None
    if only is not None and only.axes and only.stride is not None:
        outer = only._replace(size=old // new, stride=only.stride * new, whole=False)
        inner = only._replace(size=new, whole=False)
        return (outer,), (inner,) if new > 1 else ()
    axes = axes_of((dim,))
    return lost(old // new, axes), lost(new, axes)


def _whole(trace: "Walk", value: Value, shape: tuple[int, ...], split: tuple[Names, ...]) -> Value:
    """What the shards make together."""
    for d, names in enumerate(split):
        if names:
            value = _joined(value, d, names, shape[d])
    for e in value.echoes:
        if e.pending and any(_is_mesh(part) for part in e.parts):
            trace.refuse(e.params, e.pending)
    return value


def _is_mesh(part: Part, *names: Any) -> bool:
    return part.is_shard and (not names or set(part.key[1]) <= set(names))


def _joined(value: Value, d: int, names: Names, size: int) -> Value:
    """The shards of a value, side by side along dimension `d`."""
    shape = (*value.shape[:d], size, *value.shape[d + 1 :])
    if shape == value.shape:
        return value

    def spread(dims: Dims) -> Dims:
        return with_dim(dims, d, lost(size, axes_of((dims[d],))))

    def varied(dims: Dims) -> Dims:
        return with_dim(dims, d, lost(size, VARYING))

    def node(n: Node) -> Node:
        here = [part for part in n.parts if _is_mesh(part, *names)]
        inner, axes = n.dims[d], NONE.union(*[part.axes for part in here])
        if len(here) == 1 and axes == axes_of((inner, here[0].dim)) and _fits(here[0].dim, inner):
            dim: Any = (_glued(here[0].dim, inner),)
        else:
            dim = lost(size, axes_of((inner,)) | axes)
        return n._replace(dims=with_dim(n.dims, d, dim), parts=n.parts - set(here))

    moved = value.plain().moved(spread, shape, lambda t: t.moved(spread, varied, node))
    return moved._replace(varies=varied(moved.varies)) if moved.kind and not value.terms else moved


def _fits(outer: Any, inner: Any) -> bool:
    digits = [f for dim in (outer, inner) for f in dim]
    return len(outer) == 1 and len(inner) <= 1 and all(f.stride for f in digits)


def _glued(outer: Any, inner: Any) -> Factor:
    if not inner:
        return outer[0]
    return inner[0]._replace(size=outer[0].size * inner[0].size)


def psum(trace: "Walk", eqn: Any, *values: Value) -> list[Value]:
    """A sum over shards: of activations, and of the parts of a contraction."""
    how = jaxprs.collective(eqn)
    if how.grouped or any(isinstance(axis, int) for axis in how.axes) or _shows(values):
        return trace.opaque(eqn, values)
    return [_summed(trace, v, how.axes) for v in values]


def _shows(values: tuple[Value, ...]) -> bool:
    """Whether a parameter itself differs from shard to shard."""
    return any(_is_mesh(part) for v in values for t in v.terms for n in t.nodes for part in n.parts)


def _summed(trace: "Walk", value: Value, names: tuple[Any, ...]) -> Value:
    echoes = []
    for e in value.echoes:
        done = frozenset(part for part in e.parts if _is_mesh(part, *names))
        left = e.parts - done
        if done and not e.pending:  # slices that were not contracted, as one for each expert
            trace.refuse(e.params, Why.SLICES)
        pending = e.pending if any(map(_is_mesh, left)) or not done else ""
        echoes.append(e._replace(parts=left, pending=pending))
    return value._replace(echoes=regrouped(echoes))


def all_gather(trace: "Walk", eqn: Any, value: Value) -> Value:
    """Every shard gets those of all others."""
    how = jaxprs.collective(eqn)
    if how.grouped or how.dimension is None:
        return trace.opaque(eqn, (value,))[0]
    d, shape = how.dimension, shape_of(eqn.outvars[0])
    if not how.tiled:  # along a new dimension
        thin = (*value.shape[:d], 1, *value.shape[d:])
        value = value.moved(lambda dims: (*dims[:d], (), *dims[d:]), thin)
    return _joined(value, d, tuple(how.axes), shape[d])


def reduce_scatter(trace: "Walk", eqn: Any, value: Value) -> Value:
    """A sum over shards, of which each keeps a part."""
    how, shape = jaxprs.collective(eqn), shape_of(eqn.outvars[0])
    if how.grouped or not how.tiled or how.dimension is None or _shows((value,)):
        return trace.opaque(eqn, (value,))[0]
    split = tuple(tuple(how.axes) if d == how.dimension else () for d in range(len(shape)))
    return _shard(_summed(trace, value, how.axes), shape, split)


def exchanged(trace: "Walk", eqn: Any, value: Value) -> Value:
    """Shards change places: activations do, which are as before."""
    if _shows((value,)):
        return trace.opaque(eqn, (value,))[0]
    return value


def all_to_all(trace: "Walk", eqn: Any, value: Value) -> Value:
    """Shards are split along one dimension and put together along another."""
    how, shape = jaxprs.collective(eqn), shape_of(eqn.outvars[0])
    if how.grouped or any(t.data is None for t in value.terms) or len(shape) != len(value.shape):
        return trace.opaque(eqn, (value,))[0]

    def shuffle(dims: Dims) -> Dims:
        moved = (how.dimension, how.onto)
        return tuple(
            lost(shape[d], axes_of((dim,))) if d in moved else dim for d, dim in enumerate(dims)
        )

    return value.plain().moved(shuffle, shape)


RULES: dict[str, Callable[..., Any]] = {
    "shard_map": shard_map,
    **dict.fromkeys(("psum", "psum2", "psum_invariant"), psum),
    **dict.fromkeys(("all_gather", "all_gather_invariant"), all_gather),
    "reduce_scatter": reduce_scatter,
    **dict.fromkeys(("ppermute", "pbroadcast"), exchanged),
    "all_to_all": all_to_all,
}
