"""What a term is used for, once data has come to it from one side.

A term is a network: its nodes are parameters, its edges are sums between them. Data that is
contracted with it, or rows that turn one end of it into an activation, direct every edge away from
where they come in: on that side of a parameter lies its fan-in, on the others its outputs.
"""

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from .digits import (
    NONE,
    AxisSet,
    Dims,
    axes_of,
    besides,
    has_axes,
    is_whole,
    long_axes,
    met,
    varying,
    without,
)
from .reasons import Why
from .values import CONSTANT, Echo, Edge, Kind, Node, Rest, Term, Value, own_axes, regrouped

if TYPE_CHECKING:
    from .walk import Walk


def summed_axes(t: Term, i: int) -> AxisSet:
    """The axes of a node that its term is already summed over."""
    return NONE.union(*[axes for edge in t.edges for j, axes in edge if i == j])


def directed(t: Term, sources: Mapping[int, AxisSet]) -> dict[int, AxisSet] | None:
    """The fan-in of every node that edges connect to the sources; None if not all have one way.

    Args:
      t: the term.
      sources: where data comes in: places of nodes, and their axes that it meets.
    """
    fan_in, frontier, left = dict(sources), list(sources), set(t.edges)
    while frontier:
        i = frontier.pop()
        for edge in [e for e in left if any(j == i for j, _ in e)]:
            left.remove(edge)
            for j, axes in edge:
                if j in (i, CONSTANT):
                    continue
                if j in fan_in:
                    return None
                fan_in[j] = axes
                frontier.append(j)
    connected = {j for edge in t.edges for j, _ in edge} - {CONSTANT}
    return fan_in if connected <= fan_in.keys() else None


def record_weight(
    trace: "Walk", t: Term, i: int, fan_in: AxisSet, alone: AxisSet, shared: AxisSet = NONE
) -> None:
    """Notes that a node is a weight.

    Args:
      trace: the walk.
      t: the term.
      i: the place of the node.
      fan_in: its axes that meet data.
      alone: those that stay in the product, without data.
      shared: those that stay in the product, and that data varies along too.
    """
    p = t.nodes[i].param
    outputs = (alone | summed_axes(t, i)) - fan_in
    batch = long_axes(trace.shapes[p]) - fan_in - (outputs - shared)
    fed = bool(t.seen >> p & 1)
    trace.use([p], "weight", fan_in, outputs, batch, chosen=bool(t.nodes[i].chosen), fed=fed)


def is_all(trace: "Walk", node: Node, dims: Dims, axes: Iterable[int]) -> bool:
    """Whether `dims` run over every index of each of some axes."""
    return all(is_whole(dims, a, trace.shapes[node.param][a]) for a in axes)


def of_shards(trace: "Walk", node: Node, dims: Dims, axes: AxisSet) -> bool:
    """Whether other shards have just what `dims` lack to run over every index of some axes."""
    parts = [part.dim for part in node.parts if part.axes & axes and part.is_shard]
    return bool(parts) and is_all(trace, node, (*dims, *parts), axes)


def of_windows(node: Node, dims: Dims, axes: AxisSet) -> bool:
    """Whether `dims` run over all of a window of one axis, from one index to another."""
    window = len(node.parts) == 1 and all(p.window and p.axes == axes for p in node.parts)
    there = [f for dim in dims for f in dim if f.axes & axes]
    return window and len(there) == 1 and there[0].stride in (1, -1)


def oriented_by_rows(trace: "Walk", t: Term, vectors: Dims) -> bool:
    """Reads a product of parameters as an activation, if vectors that are added to it say so.

    A vector is the same for all rows, so that what the rows belong to is no weight.

    Args:
      trace: the walk, which records uses.
      t: the product.
      vectors: along which dimensions the vectors vary.
    """
    with_rows = [i for i, n in enumerate(t.nodes) if besides(n.dims, vectors)]
    if any(CONSTANT in dict(edge) for edge in t.edges):
        # An activation may begin with the constants, or with copies of a parameter.
        if with_rows or t.constants is None or not besides(t.constants, vectors):
            return False
        with_rows = [CONSTANT]
    fan_in = directed(t, dict.fromkeys(with_rows, NONE))
    if len(with_rows) != 1 or fan_in is None:
        return False
    trace.use([p for i, p in enumerate(t.params) if i not in fan_in], "elementwise")
    sources = dict.fromkeys(with_rows, NONE)
    record_directed(trace, t, fan_in | sources)
    return True


def record_directed(trace: "Walk", t: Term, fan_in: Mapping[int, AxisSet]) -> None:
    """Notes the weights of a product of parameters that makes an activation.

    Args:
      trace: the walk.
      t: the product.
      fan_in: of each node; empty for those that the activation begins with.
    """
    if t.unsure:
        trace.refuse(t.params, t.unsure)
        return
    weights = [
        i
        for i, axes in fan_in.items()
        if axes and (own_axes(t.nodes[i]) or t.nodes[i].parts or summed_axes(t, i) - axes)
    ]
    for i, axes in fan_in.items():
        if i in weights:
            record_weight(trace, t, i, axes, own_axes(t.nodes[i]))
        elif i != CONSTANT and axes and not weights:
            trace.refuse([t.nodes[i].param], Why.EITHER, axes)
        elif i != CONSTANT:
            trace.use([t.nodes[i].param], "elementwise")


def with_slices_joined(trace: "Walk", value: Value, final: bool = True) -> Value:
    """Reads a sum of products of different slices with data as the contraction that it is.

    Args:
      trace: the walk, which records uses.
      value: the sum.
      final: whether no slice can follow, so that a sum that lacks some has to be refused.
    """
    groups: dict[int, list[Term]] = {}
    for t in value.terms:
        if t.unrolled:
            groups.setdefault(t.nodes[0].param, []).append(t)
    gone: list[Term] = []
    echoes = list(value.echoes)
    for p, group in groups.items():
        parts = {t.nodes[0].parts for t in group}
        axes = NONE.union(*[part.axes for some in parts for part in some])
        indices = {part.place for some in parts for part in some}
        covered = len(axes) == 1 and indices == set(range(trace.shapes[p][min(axes)]))
        if not (covered or final):
            continue
        gone += group
        after = [t for t in group if t.seen >> p & 1]
        own = any(trace.is_seen(t.nodes[0], t.seen) for t in group)
        if 0 < len(after) < len(group) and not own:
            trace.use([p], "elementwise")  # each scales what the ones before it went into
            continue
        several = len({t.seen for t in group}) > 1  # not shifts of one value, as a convolution's
        if not covered or after or any(t.bent or t.unsure for t in group):
            trace.refuse([p], Why.SLICES, NONE if after else axes)
            continue
        if not own_axes(group[0].nodes[0]) or several:
            trace.refuse([p], Why.SCALE)
            continue
        for t in group:
            echoes.append(contracted(trace, t, axes))
    if not gone:
        return value
    terms = tuple(t for t in value.terms if t not in gone)
    return value._replace(
        varies=value.support, terms=terms, echoes=regrouped(echoes), rest=Rest.DATA
    )


def contracted(trace: "Walk", t: Term, fan_in: AxisSet) -> Echo:
    """Notes that a product of one parameter and data is summed over axes it does not show."""
    node = t.nodes[0]
    assert t.data is not None
    record_weight(trace, t, 0, fan_in, own_axes(node) - met(node.dims, t.data))
    node = node._replace(parts=frozenset(), dims=without(node.dims, t.data))
    return used(trace, t, node, t.data)


def used(trace: "Walk", t: Term, node: Node, rows: Dims) -> Echo:
    """What is left of a weight in the product of a contraction."""
    network = bool(t.edges) and not t.merged
    return Echo(
        frozenset(t.params if network else [node.param]),
        "used",
        node.dims,
        rows,
        hidden=1 in trace.shapes[node.param] or bool(t.edges),
        network=network,
        learned=t.learned,
        cut=NONE.union(*[part.axes for part in node.parts]),
        parts=node.parts,
        seen=t.seen,
        loops=t.loops,
    )


def could_be_weight(e: Echo, beside_data: bool) -> bool:
    """Whether an operation that is not known may use as a weight what parameters are in.

    Args:
      e: what is left of them.
      beside_data: whether another of its operands is data.
    """
    if e.pending or e.how == "statistic" or e.whole is not None:
        return True
    if any(part.is_shard for part in e.parts):  # it may add up what the devices have
        return True
    shared = met(e.dims, e.rows)
    if e.how == "added" and (not e.repeated or (shared and (axes_of(e.dims) | e.cut) - shared)):
        return True
    # One made from data, for each example.
    count = sum(map(has_axes, e.dims))
    rows = sum(besides((r,), (d,)) for r, d in zip(e.rows, e.dims, strict=True))
    return (beside_data or e.others is not None) and count > 1 and rows < 2


def settle_lookup(trace: "Walk", t: Term) -> None:
    """Notes that rows that data chose are part of an activation.

    What they were chosen of, a table or constants, is where a network begins.
    """
    if len(t.nodes) == 1 and not t.edges:
        trace.use(t.params, "lookup")
        return
    tables = [i for i, n in enumerate(t.nodes) if n.chosen]
    begins = t.constants is not None and not axes_of(t.constants)
    both = any(CONSTANT in dict(edge) for edge in t.edges) and (tables or not begins)
    fan_in = directed(t, dict.fromkeys(tables or [CONSTANT], NONE))
    if both or fan_in is None or (t.edges and t.curved):
        refuse_network(trace, t)
        return
    weights = {i: axes for i, axes in fan_in.items() if axes}
    for i, p in enumerate(t.params):
        if i not in weights:
            trace.use([p], "lookup" if i in tables else "elementwise")
    if weights:
        record_directed(trace, t, weights)


def settle_scale(trace: "Walk", t: Term) -> None:
    """Notes that a product with data is an activation, and what it is scaled with a part of it."""
    if t.unsure:
        trace.refuse(t.params, t.unsure)
    elif t.picked is not None:
        settle_lookup(trace, t)
    elif t.edges and len(t.nodes) > 1:
        settle_network(trace, t)
    else:
        trace.use(t.params, "elementwise")


def settle_network(trace: "Walk", t: Term) -> None:
    """Notes the parameters of a sum of parameters' products that no data told a direction of."""
    if len(t.nodes) == 1 and len(t.edges) == 1:
        trace.use(t.params, "constant", summed_axes(t, 0))
        return
    refuse_network(trace, t)


def has_open_ends(t: Term) -> bool:
    """Whether each end of a chain of products has axes left, as in an update of a weight."""

    def goes_on(i: int, edge: Edge) -> bool:
        if sum(i in dict(e) for e in t.edges) > 1:
            return True
        if i != CONSTANT:
            return goes_beyond(t, i)
        # Of a mask, as of a single column of a frozen matrix, nothing is beyond the parameters.
        there = [t.nodes[j].dims for j, _ in edge if j != CONSTANT]
        return t.constants is None or any(besides(t.constants, dims) for dims in there)

    # What does not, beside two that do, is a scale: learned singular values.
    return all(sum(goes_on(i, edge) for i, _ in edge) > 1 for edge in t.edges)


def goes_beyond(t: Term, i: int) -> bool:
    """Whether a node varies along more than each factor that it is summed with."""
    dims = t.nodes[i].dims
    near = {j for edge in t.edges if i in dict(edge) for j, _ in edge} - {i}
    others = [t.constants if j == CONSTANT else t.nodes[j].dims for j in near]
    return all(other is None or besides(dims, other) for other in others)


def refuse_network(trace: "Walk", t: Term) -> None:
    """Notes of each node that it is contracted with others, of which any may be the weight."""
    for i, node in enumerate(t.nodes):
        near = [(j, axes) for edge in t.edges if i in dict(edge) for j, axes in edge]
        partners = frozenset((t.nodes[j].param, axes) for j, axes in near if j not in (i, CONSTANT))
        trace.refuse([node.param], Why.EITHER, summed_axes(t, i), partners)


def of_numbers(t: Term) -> bool:
    """Whether it is multiplied by inputs that have none of the axes of its parameters."""
    if t.data is None or t.picked is not None:
        return False
    return not any(met(n.dims, t.data) for n in t.nodes)


def is_mixed(value: Value) -> bool:
    """Whether it is made of parameters, of constants, and of data as factors are."""
    if value.kind == Kind.PARAMETER or value.echoes or value.rest == Rest.DATA:
        return value.kind == Kind.PARAMETER
    return bool(value.terms) and all(map(has_factors, value.terms))


def without_numbers(value: Value, total: Value) -> Value:
    """A sum of a value, of which parameters were refused.

    It is no activation for that, if it is made of parameters, constants and numbers alone.
    """
    numbers = all([t.data is None or of_numbers(t) for t in value.terms])
    if not (numbers and value.kind == Kind.DATA and is_mixed(value)):
        return total
    return total.in_doubt(Why.EITHER)._replace(kind=Kind.PARAMETER, echoes=(), unknown=True)


def has_factors(t: Term) -> bool:
    """Whether a product, if with data at all, is with such that leaves its parameters axes."""
    if t.data is None:
        return True
    if t.is_rows or t.bent:
        return False
    # Between two others, a factor of a network has none.
    ends = [n for n in t.nodes if not t.edges or own_axes(n)]
    return all([n.parts or axes_of(without(n.dims, t.data)) for n in ends])


def is_scaled(value: Value) -> bool:
    """Whether it is made of parameters, and of inputs that have none of their axes."""
    return (
        value.kind == Kind.DATA
        and is_mixed(value)
        and all(
            t.data is not None
            and all(own_axes(n) and not (n.parts or met(n.dims, t.data)) for n in t.nodes)
            for t in value.terms
        )
    )


def as_activation(trace: "Walk", value: Value) -> Value:
    """A value made of parameters alone that is taken for an activation."""
    for t in value.terms:
        if t.unsure:
            trace.refuse(t.params, t.unsure)
        elif t.edges:  # which of them begins with rows, nothing tells
            settle_network(trace, t)
        else:
            trace.use(t.params, "elementwise")
    rows = varying(value.shape)
    made = value._replace(kind=Kind.DATA, varies=rows, terms=())
    nodes = [n for t in value.terms for n in t.nodes]
    left = [
        Echo(p := frozenset({n.param}), "added", n.dims, without(rows, n.dims), learned=p)
        for n in nodes
    ]
    learned = frozenset(n.param for n in nodes)
    return made._replace(echoes=regrouped([*value.echoes, *left]), learned=learned)
