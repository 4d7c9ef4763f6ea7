"""Sums: where a product becomes a contraction.

`dot_general`, `ragged_dot` and convolutions are products of their operands followed by a sum, and
are read as that, so that one rule decides every contraction however it is spelled.
"""

import functools
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from .digits import (
    NONE,
    AxisSet,
    Dim,
    Dims,
    Shape,
    axes_of,
    besides,
    foreign,
    has_axes,
    lost,
    met,
    vary,
    without,
)
from .products import multiply
from .reasons import Why
from .uses import (
    as_activation,
    directed,
    goes_beyond,
    has_open_ends,
    is_all,
    of_numbers,
    of_shards,
    of_windows,
    record_weight,
    settle_lookup,
    summed_axes,
    used,
    with_slices_joined,
    without_numbers,
)
from .values import CONSTANT, Echo, Edge, Kind, Node, Rest, Term, Value, own_axes, regrouped

if TYPE_CHECKING:
    from .walk import Walk

Onto = Sequence[int | None]


def contract(
    trace: "Walk", a: Value, b: Value, a_onto: Onto, b_onto: Onto, shape: Shape, n: int
) -> Value:
    """The product of two values, summed over all but its first dimensions.

    Args:
      trace: the walk, which records uses.
      a: the left operand.
      b: the right operand.
      a_onto: for each dimension of the product, the one of `a`; None where it repeats.
      b_onto: the same for `b`.
      shape: of the product.
      n: how many of its dimensions stay.
    """
    if a.kind == b.kind == Kind.PARAMETER:
        a, b = _with_rows(trace, a, a_onto, b, b_onto, shape, n)
    return contract_all(trace, [(a, a_onto), (b, b_onto)], shape, n)


def contract_all(
    trace: "Walk", operands: Sequence[tuple[Value, Onto]], shape: Shape, n: int
) -> Value:
    """The product of values, each along some of its dimensions, summed over all but the first."""
    operands = [(with_slices_joined(trace, v), onto) for v, onto in operands]
    factors = [project(v, onto, shape) for v, onto in operands]
    product = functools.reduce(lambda a, b: multiply(trace, a, b, shape), factors)
    weights = [v for v, _ in operands if v.kind == Kind.PARAMETER and v.terms]
    return summed(trace, product, range(n, len(shape)), dot=len(weights) == 1)


def project(value: Value, onto: Onto, shape: Shape) -> Value:
    """The value as it is repeated along the dimensions of a product."""

    sizes = [size if d is None else value.shape[d] for size, d in zip(shape, onto, strict=True)]
    repeated = foreign(shape)
    windows = [d for d, (size, n) in enumerate(zip(shape, sizes, strict=True)) if size != n]

    def projected(dims: Dims) -> Dims:
        result = [r if d is None else dims[d] for r, d in zip(repeated, onto, strict=True)]
        for d in windows:  # one slides along it
            result[d] = lost(shape[d], axes_of((result[d],)))
        return tuple(result)

    return value.moved(projected, shape)


def _with_rows(
    trace: "Walk", a: Value, a_onto: Onto, b: Value, b_onto: Onto, shape: Shape, n: int
) -> tuple[Value, Value]:
    """Which of two values made of parameters is an activation, if one shows it."""

    def shows(v: Value, onto: Onto, other: Onto) -> bool:
        free = [d for d, e in zip(onto[:n], other[:n], strict=True) if d is not None and e is None]
        rows = any(v.shape[d] > 1 and not has_axes(v.support[d]) for d in free)
        return rows or (bool(v.terms) and all(t.curved for t in v.terms))

    of_a, of_b = shows(a, a_onto, b_onto), shows(b, b_onto, a_onto)
    if of_a and not of_b and _could_be_weight(b):
        a = as_activation(trace, a)
    elif of_b and not of_a and _could_be_weight(a):
        b = as_activation(trace, b)
    return a, b


def _could_be_weight(value: Value) -> bool:
    """Whether it is no statistic, and no constants are where an activation may begin instead."""
    met_constants = any(CONSTANT in dict(edge) for t in value.terms for edge in t.edges)
    return bool(value.terms) and not met_constants


def summed(trace: "Walk", value: Value, over: Sequence[int], dot: bool = False) -> Value:
    """The sum of a value along dimensions, which go.

    Args:
      trace: the walk, which records uses.
      value: what is summed.
      over: the dimensions.
      dot: whether the program says that this is a contraction.
    """
    stay = [d for d in range(len(value.shape)) if d not in over]

    def keep(dims: Dims) -> Dims:
        return tuple([dims[d] for d in stay])

    shape = tuple([value.shape[d] for d in stay])
    if not (value.terms or value.echoes):
        return value.plain().moved(keep, shape)
    value = with_slices_joined(trace, value)
    terms: list[Term] = []
    echoes: list[Echo] = []
    refused = False
    varies = value.support if value.kind == Kind.DATA else value.varies
    for t in value.terms:
        by_data = [
            d for d in over if t.data is not None and (has_axes(t.data[d]) or value.shape[d] == 1)
        ]
        alone = [d for d in over if d not in by_data]
        if any(_in(n.dims, by_data) and _in(n.dims, alone) for n in t.nodes):
            by_data, alone = [*over], []
        left, before = [t], len(echoes)
        for dims, rule in ((alone, _sum_without_data), (by_data, _sum_with_data)):
            if not dims:
                continue
            summands, left = left, []
            for one in summands:
                s = _Sum(trace, value, one, dims, dot)
                more, found = rule(s)
                left += more
                refused = refused or bool(s.unclear)
                echoes += [*found, *s.left()] if s.unclear else found
        if not left and len(echoes) == before:  # the result varies as what was refused or settled
            varies = vary(varies, t.support)
        terms += left
    blank = _blank(over)
    # Contracted with a weight, all else is an activation, whatever it was made by.
    weighted = any(
        axes_of(n.dims[d] for d in over)
        and axes_of(blank(n.dims)) - met(blank(n.dims), blank(t.data))
        for t in value.terms
        if t.data is not None and t.rows is None and not t.bent and t.picked is None
        for n in t.nodes
    )
    echoes += [_sum_echo(trace, value, e, over, weighted, dot) for e in value.echoes]
    rest = value.rest if len(terms) == len(value.terms) else Rest.DATA
    result = value.plain()._replace(varies=varies, terms=tuple(terms), echoes=(), rest=rest)
    left = [e for e in echoes if e.sliced or e.pending or e.parts or _in(e.dims, stay)]
    moved = regrouped([e.moved(keep) for e in left])
    result = result.moved(keep, shape)._replace(echoes=moved)
    return without_numbers(value, result) if refused else result


def _chosen(dims: Iterable[Dim]) -> AxisSet:
    """The axes of which constants chose positions."""
    return frozenset([a for dim in dims for f in dim if f.stride == 0 for a in f.axes])


def _in(dims: Dims, over: Sequence[int]) -> bool:
    return any([has_axes(dims[d]) for d in over])


def _blank(over: Sequence[int]) -> Callable[[Dims], Dims]:
    return lambda dims: tuple([() if d in over else dim for d, dim in enumerate(dims)])


class _Sum:
    """A sum of one term along some dimensions."""

    def __init__(
        self, trace: "Walk", value: Value, t: Term, over: Sequence[int], dot: bool
    ) -> None:
        self.trace, self.value, self.t, self.over, self.dot = trace, value, t, over, dot
        self.stay = [d for d in range(len(value.shape)) if d not in over]
        self.blank = _blank(over)
        self.gone = [axes_of(self.at(n.dims)) for n in t.nodes]
        self.unclear = ""  # why nodes were refused

    def left(self) -> list[Echo]:
        """What is left of nodes that were refused, as if each had been a weight."""
        t = self.t
        assert t.data is not None
        rows = self.blank(t.data)
        return [
            used(self.trace, t, n._replace(dims=without(self.blank(n.dims), rows)), rows)
            for n in t.nodes
        ]

    def at(self, dims: Dims) -> Dims:
        """The dimensions that are summed."""
        return tuple([dims[d] for d in self.over])

    @functools.cached_property
    def alone(self) -> list[AxisSet]:
        """For each node, the axes that stay, and that data shares no more than a part of."""
        return [self._alone(n) for n in self.t.nodes]

    def _alone(self, node: Node) -> AxisSet:
        assert self.t.data is not None
        dims, data = self.blank(node.dims), self.blank(self.t.data)
        alone, rows = axes_of(without(dims, data)), _chosen(dims)
        if not rows:
            return alone
        # Rows of a table that are chosen for pairs of positions are in both, and no outputs.
        return alone - (rows & (met(dims, data) | _chosen([part.dim for part in node.parts])))

    def connected(self, i: int) -> set[int]:
        """A node, and what edges lead to from it."""
        found, frontier = {i}, [i]
        while frontier:
            j = frontier.pop()
            near = {k for edge in self.t.edges if j in dict(edge) for k, _ in edge} - found
            found |= near
            frontier += near - {CONSTANT}
        return found

    def outputs(self, i: int) -> "_Outputs":
        """Those of a node, and of what edges lead to from it."""
        found = self.connected(i)
        there = [(self.gone[j], n) for j, n in enumerate(self.t.nodes) if j in found]
        slices = frozenset(
            part.key
            for gone, n in there
            for part in n.parts
            if part.place is None and not part.axes & gone
        )
        dims = [n.dims for _, n in there]
        if CONSTANT in found and self.t.constants is not None:
            dims.append(self.t.constants)
        ones = any(f.size == 1 for n in dims for dim in self.blank(n) for f in dim)
        return _Outputs(self.apart(functools.reduce(vary, dims)), ones, slices)

    def has_outputs(self, i: int) -> bool:
        """Whether a node has axes that stay, or is seen in slices that no data chose of such."""
        if self.alone[i] or (self.t.edges and axes_of(self.outputs(i).dims)):
            return True
        return self.t.picked is None and bool(self.outputs(i).slices)

    def _scales_others(self, i: int) -> bool:
        """Whether a node has fewer outputs than another, or fewer of its slices are seen."""
        mine = self.outputs(i)
        others = [self.outputs(j) for j in range(len(self.t.nodes)) if j != i]
        seen = [o for o in others if mine.slices < o.slices and not besides(mine.dims, o.dims)]
        return bool(seen) or any(map(mine.are_fewer, others))

    def apart(self, dims: Dims) -> Dims:
        """The dimensions that stay, where data does not vary along them too."""
        assert self.t.data is not None
        return without(self.blank(dims), self.blank(self.t.data))

    def shared(self, i: int) -> AxisSet:
        """The axes of a node that stay and that data varies along too."""
        assert self.t.data is not None
        return met(self.blank(self.t.nodes[i].dims), self.blank(self.t.data))

    def rest(self) -> Term:
        """The term where nothing of it is summed."""
        return self.t.moved(self.blank)

    def refuse(self, nodes: Sequence[int], why: str, fan_in: dict[int, AxisSet]) -> None:
        """Refuses some of the nodes: all of them in a network, else the others are scales.

        With them goes an activation made of parameters, of which nothing else tells that it is one.
        """
        self.unclear = why
        self.trace.refuse(self.t.learned, why)
        for i, node in enumerate(self.t.nodes):
            if i in nodes or self.t.edges:
                scale = len(nodes) > 1 and not self.t.edges and self._scales_others(i)
                lookup = self.t.picked is not None
                axes = NONE if scale or lookup else fan_in.get(i, NONE)
                self.trace.refuse([node.param], why, axes)
            else:
                self.trace.use([node.param], "elementwise")


class _Outputs(NamedTuple):
    """What a factor varies along that stays, and that data does not vary along."""

    dims: Dims
    ones: bool  # whether it has an axis of length 1 too
    slices: frozenset[Any]  # that a loop or a shard takes of axes that are not summed

    def are_fewer(self, others: "_Outputs") -> bool:
        """Whether another factor has all of these and more, so that this scales its inputs."""
        more = besides(others.dims, self.dims) or (others.ones and not self.ones)
        return more and not besides(self.dims, others.dims) and self.slices <= others.slices

    def are_others(self, others: "_Outputs") -> bool:
        """Whether another factor has not all of these, or is seen in other slices."""
        return self.slices != others.slices or besides(self.dims, others.dims)


Result = tuple[list[Term], list[Echo]]


def _sum_without_data(s: _Sum) -> Result:
    """Parameters summed with each other or with constants, or one by itself."""
    t, trace = s.t, s.trace
    summed_nodes = [i for i, gone in enumerate(s.gone) if gone]
    if not summed_nodes:
        return [s.rest()], []
    constant = t.constants is not None and any(has_axes(d) for d in s.at(t.constants))
    factors = of_numbers(t) and (constant or sum(map(s.has_outputs, summed_nodes)) > 1)
    if t.data is not None and not factors:
        return _sum_beside_data(s, summed_nodes, constant)
    if t.bent and t.edges and any(sum(has_axes(n.dims[d]) for n in t.nodes) > 1 for d in s.over):
        trace.refuse(t.params, Why.BENT_NETWORK)
        return [], []
    if t.bent or (len(t.nodes) == 1 and not t.edges and not constant):
        echoes = []
        for i, n in enumerate(t.nodes):
            axes = s.gone[i] | summed_axes(t, i)
            layer = not (t.bent or t.curved or t.constants is None)
            layer = layer and bool(axes_of(s.blank(n.dims)) or n.parts)
            trace.use([n.param], "constant" if layer else "statistic", axes=axes)
            echoes.append(_statistic(s, n, axes))
        return [], echoes
    edges, partial = _edges(s)
    unsure = Why.PARTLY if partial else t.unsure
    curved = t.curved and bool(t.edges)  # that is the product, whatever its factors are
    rest = s.rest()._replace(edges=t.edges | edges, unsure=unsure, curved=curved)
    vectors = all(len(trace.shapes[n.param]) == 1 for n in rest.nodes)
    if vectors and not axes_of(rest.support):
        trace.use(t.params, "scalar")  # a number, whatever it is multiplied with
        return [], []
    return [rest], []


def _edges(s: _Sum) -> tuple[frozenset[Edge], bool]:
    """Which nodes a sum of parameters connects, and whether by a part of an axis.

    In a chain of products, each is connected with the next.
    """
    along: dict[frozenset[int], list[int]] = defaultdict(list)
    for d in s.over:
        there = {i for i, n in enumerate(s.t.nodes) if has_axes(n.dims[d])}
        if s.t.constants is not None and has_axes(s.t.constants[d]):
            there.add(CONSTANT)
        along[frozenset(there if len(there) > 1 else there | {CONSTANT})].append(d)
    edges, partial = [], False
    for there, dims in along.items():
        images = {i: tuple([s.t.nodes[i].dims[d] for d in dims]) for i in there - {CONSTANT}}
        edges.append(frozenset((i, axes_of(images.get(i, ()))) for i in there))
        partial |= any(
            not is_all(s.trace, s.t.nodes[i], image, axes_of(image)) for i, image in images.items()
        )
    return frozenset(edge for edge in edges if edge != {(CONSTANT, NONE)}), partial


def _statistic(s: _Sum, n: Node, axes: AxisSet, why: str = "") -> Echo:
    """What is left of a parameter that was summed over some axes, with all of its product."""
    rows = foreign(s.value.shape)
    params = frozenset(s.t.params if s.t.data is None else [n.param])
    return Echo(
        params, "statistic", s.blank(n.dims), rows, bent=n.bent,
        network=bool(s.t.edges), pending=why, fan_in=axes, sliced=n.parts,
    )  # fmt: skip


def _sum_bent(s: _Sum) -> Result:
    """Something nonlinear of a parameter and data, summed: fine, but for sums over what they share.

    With outputs that they do not share, that is a dense layer with a nonlinearity for each weight.
    """
    t = s.t
    node = t.nodes[0]
    assert t.data is not None
    shared = met(node.dims, t.data)
    if not (axes_of(s.blank(node.dims)) - shared or node.parts):
        s.trace.use(t.params, "elementwise")
        return [], []
    return [], [_statistic(s, node, s.gone[0], Why.BENT_PRODUCT)]


def _bent_weights(s: _Sum) -> dict[int, AxisSet]:
    """What something nonlinear was done to with data, and then is contracted with other data."""
    t, found = s.t, {}
    assert t.data is not None
    for i, n in enumerate(t.nodes):
        shared = met(n.dims, t.data)
        stay = axes_of(s.blank(n.dims)) - shared
        if n.bent and t.last is not None and (stay or n.parts or not axes_of(t.data)):
            found[i] = s.gone[i] & met(s.at(n.dims), s.at(t.last)) - shared
    return {i: axes for i, axes in found.items() if axes}


def _sum_beside_data(s: _Sum, nodes: Sequence[int], constant: bool) -> Result:
    """Parameters summed with each other in a product with data that does not vary along the sum."""
    t, trace = s.t, s.trace
    if weights := _bent_weights(s):
        s.refuse(list(weights), Why.BENT_PRODUCT, weights)
        return [], []
    if len(nodes) == 1 and not constant and (t.is_rows or not (t.edges or t.unsure)):
        (i,) = nodes
        left = [_statistic(s, t.nodes[i], s.gone[i])]
        if t.is_rows:
            settle_lookup(trace, t)
            return [], left
        trace.use([t.nodes[i].param], "scalar")
        rest = s.rest()
        others = tuple(n for j, n in enumerate(rest.nodes) if j != i)
        return [rest._replace(nodes=others)] if others else [], left
    weights = [i for i in nodes if s.has_outputs(i)]
    assert t.data is not None
    refusal = _why_unclear(s, weights, s.at(t.data))
    if len(weights) != 1 or constant or t.edges or refusal:
        s.refuse(nodes, refusal or Why.BESIDE_DATA, {})
        return [], []
    _, echoes = _settled(s, {weights[0]: s.gone[weights[0]]}, weights)
    others = frozenset(n.param for i, n in enumerate(t.nodes) if i not in weights)
    echoes = [e._replace(learned=e.learned | others) for e in echoes]
    if of_numbers(t):  # which are no rows
        echoes = [e._replace(rows=foreign(s.value.shape)) for e in echoes]
    return [], echoes


def _sum_with_data(s: _Sum) -> Result:
    """Parameters contracted with data."""
    t, trace = s.t, s.trace
    assert t.data is not None
    data = s.at(t.data)
    roots = {i: gone for i, gone in enumerate(s.gone) if gone}
    if not roots and not t.unsure and _has_fan_in_of_one(s):
        node = t.nodes[0]
        trace.use(t.params, "elementwise")
        left = used(
            trace,
            t,
            node._replace(dims=without(s.blank(node.dims), s.blank(t.data))),
            s.blank(t.data),
        )
        return [], [left]
    by_constants = t.constants is not None and any(has_axes(d) for d in s.at(t.constants))
    through = by_constants and any(CONSTANT in dict(edge) for edge in t.edges)
    if roots and through:
        s.refuse(list(roots), Why.TWO_SIDES, roots)
        return [], []
    if not roots:
        if _contracts_rows(s):
            s.refuse(range(len(t.nodes)), Why.SCALE, {})
            return [], []
        if not through:
            return [s.rest()], []
        roots = {CONSTANT: NONE}
    if t.hot is not None and not besides(data, s.at(t.hot)):
        rest = s.rest()
        of = zip(rest.nodes, s.gone, strict=True)
        nodes = tuple([n._replace(chosen=n.chosen | gone) for n, gone in of])
        return [rest._replace(nodes=nodes, picked=rest.data, last=None)], []
    if _adds_up_rows(s):
        settle_lookup(trace, t)
        return [], []
    if t.unsure and t.picked is None:
        s.refuse(list(roots), t.unsure, directed(t, roots) or {})
        return [], []
    if t.bent and len(t.nodes) == 1 and not t.edges:
        return _sum_bent(s)
    if any([n.bent for n in t.nodes]) and not t.edges:
        return _sum_with_bent(s)
    if t.picked is not None and t.edges and (len(roots) > 1 or not any(n.chosen for n in t.nodes)):
        # A network begins with these rows.
        s.refuse(list(roots), Why.TWO_SIDES, {})
        return [], []
    if _is_scale(s, roots):
        if s.alone[0]:  # of several members, or a weight that is multiplied by data first
            s.refuse([0], Why.SCALE, {})
        else:
            trace.use(t.params, "elementwise")
        return [], []
    fan_in = directed(t, roots)
    weights = _with_outputs(s, roots, fan_in or {}) or _with_one_output(s, roots)
    refusal = _why_unclear(s, _without_fewer_outputs(s, roots, weights), data)
    if t.paired and any(t.picked is None or t.nodes[i].chosen for i in weights):
        refusal = refusal or Why.EITHER
    if fan_in is None or refusal or _is_sliced_otherwise(s, roots, weights):
        s.refuse(list(roots), refusal or Why.TWO_SIDES, fan_in or {})
        return [], []
    behind = {i for edge in t.edges if CONSTANT in dict(edge) for i, _ in edge}
    ends = [i for i in weights if i in (behind if through else roots)]
    directly = not t.edges or any(s.alone[i] for i in roots)
    if ends and not (through or t.picked is not None or directly):
        ends = [*roots]  # a weight's outputs may be beyond an edge, and a scale may be a weight
    if len(ends) > 1 or by_constants:
        told = _without_scales(s, ends, weights, by_constants)
        if told is None:
            return [], []
        weights = told
    if t.bent and any(t.edges):
        trace.refuse(t.params, Why.BENT_NETWORK)
        return [], []
    if not weights:
        return _without_outputs(s, fan_in)
    if t.residual and not s.dot:
        s.refuse(weights, Why.SCALE, fan_in)
        return [], []
    return _settled(s, fan_in, weights)


def _without_fewer_outputs(s: _Sum, roots: Iterable[int], weights: Sequence[int]) -> Sequence[int]:
    """The factors that data meets, but for those that scale the inputs of another."""
    met_by_data = [i for i in roots if i in weights or not weights]
    if len(met_by_data) == 1 or not weights or s.t.edges:
        return met_by_data
    outputs = {i: s.outputs(i) for i in met_by_data}
    return [i for i, o in outputs.items() if not any(map(o.are_fewer, outputs.values()))]


def _without_scales(
    s: _Sum, ends: Sequence[int], weights: Sequence[int], by_constants: bool
) -> list[int] | None:
    """The weights but for those that scale the inputs of others; None if that cannot be told.

    Args:
      s: the sum.
      ends: the factors, of which those with fewer outputs are scales.
      weights: they, and the others in their networks.
      by_constants: whether constants are another factor.
    """
    outputs = {i: s.outputs(i) for i in ends}
    scales = [i for i in outputs if any(outputs[i].are_fewer(o) for o in outputs.values())]
    networks = [s.connected(i) - {CONSTANT} for i in scales]
    for i, network in zip(scales, networks, strict=True):
        # Of several, one may be the input of the others; what is between constants, of others too.
        if len(network) > 1 or sum(i in dict(edge) for edge in s.t.edges) > 1:
            s.trace.refuse([s.t.nodes[i].param for i in network], Why.EITHER)
    factors = {i: o for i, o in outputs.items() if i not in scales}
    if any(a.are_others(b) for a in factors.values() for b in factors.values()):
        s.refuse(ends, Why.TWO_SIDES, {})
        return None
    frozen = s.t.constants if by_constants and not s.t.edges else None
    if frozen is not None:  # what has rows in any term of the sum, as noise has, is no weight
        assert s.t.data is not None
        apart = [u for u in s.value.terms if not any(u.seen >> p & 1 for p in s.t.params)]
        others = [u.data for u in apart if u.data is not None]
        frozen = without(s.blank(frozen), s.blank(functools.reduce(vary, others, s.t.data)))
    beside = frozen is not None and any(besides(frozen, o.dims) for o in factors.values())
    if beside or not factors.keys() <= {*weights}:  # or data varies along their equal outputs too
        s.refuse(ends, Why.SCALE, {})
        return None
    return [i for i in weights if not any(i in network for network in networks)]


def _adds_up_rows(s: _Sum) -> bool:
    """Whether rows of a table are added up, or each of several tables' rows that data chose."""
    t = s.t
    if t.picked is None or not any(s.gone):
        return False
    picked = s.at(t.picked)
    return all(gone <= met(s.at(n.dims), picked) for n, gone in zip(t.nodes, s.gone, strict=True))


def _contracts_rows(s: _Sum) -> bool:
    """Whether rows are summed that data chose once for all examples: features, or a bag of rows."""
    picked = s.t.picked
    if picked is None or s.t.is_rows or not any(map(has_axes, s.at(picked))):
        return False
    assert s.t.data is not None
    return not any(map(has_axes, s.blank(picked))) and any(map(has_axes, s.blank(s.t.data)))


def _sum_with_bent(s: _Sum) -> Result:
    """Something nonlinear of parameters and data, times others: it is data to those."""
    t = s.t
    assert t.data is not None
    data = t.data
    for i, n in enumerate(t.nodes):
        if not n.bent:
            continue
        data = vary(data, n.dims)
        shared = met(n.dims, t.data)
        if s.gone[i] & shared and (own_axes(n) - shared or n.parts):
            s.trace.refuse([n.param], Why.BENT_PRODUCT, s.gone[i])
        else:
            s.trace.use([n.param], "elementwise")
    nodes = tuple([n for n in t.nodes if not n.bent])
    rest = t._replace(nodes=nodes, data=data, last=data, bent=False)
    return _sum_with_data(_Sum(s.trace, s.value, rest, s.over, s.dot)) if rest.nodes else ([], [])


def _has_fan_in_of_one(s: _Sum) -> bool:
    """Whether a parameter is contracted over axes of length 1, which leaves outputs."""
    at = s.at(s.t.nodes[0].dims)
    ones = any(f.axes for dim in at for f in dim)
    return len(s.t.nodes) == 1 and not s.t.edges and s.t.rows is None and ones and bool(s.alone[0])


def _with_outputs(s: _Sum, roots: dict[int, AxisSet], fan_in: dict[int, AxisSet]) -> list[int]:
    """The nodes with a fan-in that have outputs: free axes, or sums away from the data.

    Beyond the first node, axes that the data varies along too are copies of a weight.
    """

    def has_outputs(i: int, axes: AxisSet) -> bool:
        if i in roots:
            return bool(s.alone[i] or summed_axes(s.t, i))
        return goes_beyond(s.t, i) or bool(summed_axes(s.t, i) - axes)

    return [i for i, axes in fan_in.items() if i != CONSTANT and has_outputs(i, axes)]


def _is_sliced_otherwise(s: _Sum, roots: Iterable[int], weights: Sequence[int]) -> bool:
    """Whether beside weights a factor without outputs is seen in slices that they are not."""
    others = [i for i in roots if weights and i not in weights and i != CONSTANT]
    if not others:
        return False
    slices = frozenset().union(*(s.outputs(i).slices for i in weights))
    return any(not s.outputs(i).slices <= slices for i in others)


def _with_one_output(s: _Sum, roots: dict[int, AxisSet]) -> list[int]:
    """Of several factors without outputs, the one that has an axis of length 1 left, if one has."""
    if not s.dot or len(s.t.nodes) == 1 or s.t.edges or s.t.bent:
        return []
    left = {i: s.blank(s.t.nodes[i].dims) for i in roots if i != CONSTANT}
    single = [i for i, dims in left.items() if any(f.size == 1 for dim in dims for f in dim)]
    return single if len(single) == 1 else []


def _why_unclear(s: _Sum, roots: Sequence[int], data: Dims) -> str:
    """Why a contraction with data does not show the fan-in; empty if it does."""
    t = s.t
    for i in roots:
        if i == CONSTANT:
            continue
        node = t.nodes[i]
        dims = s.at(node.dims)
        activation = data  # data, times what else is in the product
        for j, other in enumerate(t.nodes):
            activation = activation if i == j else vary(activation, s.at(other.dims))
        if s.gone[i] - met(dims, activation):
            return Why.BEYOND_DATA
        if not (
            is_all(s.trace, node, dims, s.gone[i])
            or of_shards(s.trace, node, dims, s.gone[i])
            or (s.alone[i] and not t.edges and of_windows(node, dims, s.gone[i]))
        ):
            return Why.PARTLY
        if any(
            axes_of((dim,)) and besides((d,), (dim,)) for dim, d in zip(dims, data, strict=True)
        ):
            return Why.DIAGONAL
        others = [s.at(n.dims) for j, n in enumerate(t.nodes) if j != i]
        if besides(data, dims) and any(besides(other, dims) for other in others):
            return Why.DIAGONAL
    if t.unsure or t.blurred:
        return t.unsure or t.blurred
    if t.edges and not t.merged:
        from_weight = any(e.how == "used" and met(s.at(e.dims), data) for e in s.value.echoes)
        normed = t.curved and not t.bent  # its rows, or the inputs of each unit
        if from_weight or s.value.unknown or normed:
            return Why.EITHER
    if t.edges and not has_open_ends(t):
        return Why.EITHER
    return ""


def _without_outputs(s: _Sum, fan_in: dict[int, AxisSet]) -> Result:
    """A contraction that leaves no output of the parameter: one unit, a scale, or an activation."""
    t, trace = s.t, s.trace
    if len(t.nodes) == 1 and 0 in fan_in and not t.edges:
        node = t.nodes[0]
        rest = s.blank(node.dims)
        if t.picked is not None:
            assert t.data is not None
            shared = bool(met(t.picked, t.data))
            # A matrix that data chose may be a weight.
            row = len(fan_in[0]) == 1 and not own_axes(node._replace(dims=rest))
            if shared and row and not (node.parts or 1 in trace.shapes[node.param]):
                trace.use(t.params, "lookup", fan_in[0], fed=bool(t.seen >> node.param & 1))
                return [], []
        elif _is_table((*rest, *(part.dim for part in node.parts))):
            trace.use(t.params, "lookup")
            return [], []
        elif (
            t.constants is not None
            and _in(t.constants, s.stay)
            and (_in(t.constants, s.over) or _is_beside_others(s, node))
        ):
            pass  # constants are its outputs, as a diagonal, or are added to what it scales
        elif not s.dot and (
            t.residual or any(_in(e.dims, s.over) for e in s.value.echoes if e.how == "added")
        ):
            pass  # data or a bias that is summed too says that it is a scale
        elif not t.bent and t.rows is None and (s.dot or own_axes(node._replace(dims=rest))):
            return _settled(s, fan_in, [0])
    if not s.dot and not t.edges and t.data is not None and t.picked is None:
        # In a norm, the mean is subtracted from what it is the mean of.
        return [], [_statistic(s, n, s.gone[i], Why.SCALE) for i, n in enumerate(t.nodes)]
    s.refuse(list(fan_in), Why.SCALE, fan_in)
    return [], []


def _is_scale(s: _Sum, fan_in: dict[int, AxisSet]) -> bool:
    """Whether a parameter scales data, of which the other data shares not all rows.

    Such as queries, scaled before they meet keys.
    """
    t = s.t
    if len(t.nodes) != 1 or t.rows is None or t.last is None or 0 not in fan_in:
        return False
    dims = t.nodes[0].dims
    summed_together = s.gone[0] <= met(s.at(dims), s.at(t.last))
    return summed_together and besides(s.blank(t.rows), vary(s.blank(dims), s.blank(t.last)))


def _is_beside_others(s: _Sum, node: Node) -> bool:
    """Whether a parameter is in another product of the sum with other parameters."""
    return any(node.param in t.params and len(t.nodes) > 1 for t in s.value.terms)


def _is_table(dims: Dims) -> bool:
    """Whether some axis occurs in several dimensions: rows of a table, chosen for pairs."""
    axes = [a for dim in dims for f in dim if f.stride == 0 for a in f.axes]
    return len(axes) > len(set(axes))


def _settled(s: _Sum, fan_in: dict[int, AxisSet], weights: Sequence[int]) -> Result:
    """Notes the weights of a term; whatever else is in it scales them."""
    t, echoes = s.t, []
    assert t.data is not None
    rows = s.blank(t.data)
    covered = functools.reduce(vary, [s.blank(t.nodes[i].dims) for i in weights], rows)
    # What scales the inputs of a weight makes others of them along each of its own axes.
    scales = [s.blank(n.dims) for i, n in enumerate(t.nodes) if s.gone[i] and i not in weights]
    inputs = functools.reduce(vary, scales, rows)
    for i, n in enumerate(t.nodes):
        if i in weights:
            # Axes of length 1 have no role, yet among contracted ones they belong to the fan-in.
            ones = frozenset(a for dim in s.at(n.dims) for f in dim for a in f.axes if f.size == 1)
            dims = s.blank(n.dims)
            copies = met(dims, inputs)
            record_weight(s.trace, t, i, fan_in[i] | ones, s.alone[i], copies)
            # Copies are no rows, and what they index no outputs.
            left = used(s.trace, t, n._replace(dims=without(dims, rows)), without(rows, dims))
            if not s.dot and s.alone[i] and s.shared(i):  # a dot says itself what a unit is
                left = left._replace(whole=dims, fan_in=fan_in[i])
            at = s.at(n.dims)
            if of_shards(s.trace, n, at, s.gone[i]) or of_windows(n, at, s.gone[i]):
                left = left._replace(pending=Why.PARTLY)  # until it is summed with the others
            echoes.append(left)
        elif t.picked is None and besides(s.blank(n.dims), covered):
            s.trace.refuse([n.param], Why.TWO_SIDES)  # it is met by what the weights make of data
        else:
            s.trace.use([n.param], "elementwise" if t.picked is None else "lookup")
    return [], echoes


def _sum_echo(
    trace: "Walk", value: Value, e: Echo, over: Sequence[int], weighted: bool, dot: bool
) -> Echo:
    """An activation summed over digits of a parameter: refused if it is used as a weight is."""
    blank = _blank(over)
    at = lambda dims: tuple([dims[d] for d in over])  # noqa: E731
    if weighted and e.parts and e.how == "used":  # each slice meets its own of the next weight
        met_next = axes_of(at(e.dims))
        e = e._replace(parts=frozenset(part for part in e.parts if not part.axes <= met_next))
    if e.how == "used" and e.data is None and e.whole is None and not e.unknown:
        return e
    if e.unknown:
        if weighted:
            return e._replace(dims=foreign(value.shape))
        if e.others is not None and met(at(e.dims), at(e.others)):
            trace.refuse(e.params, e.unknown)
    gone = axes_of(at(e.dims))
    more = NONE if e.whole is None else axes_of(at(e.whole)) - gone
    if e.whole is not None and more:
        if not weighted and e.data is None and axes_of(blank(e.whole)):
            e = e._replace(pending=Why.LATER, fan_in=e.fan_in | more)
        e = e._replace(whole=None)
    if not gone:
        # Summed with data over something else, a statistic is part of an activation.
        spent = dot and over and e.how == "statistic" and e.data is not None
        return e._replace(bent=True) if spent else e
    dims = blank(e.dims)
    if e.how == "statistic" and e.data is None and (axes_of(dims) or e.sliced):
        others = [value.varies, *(n.dims for t in value.terms for n in t.nodes)]
        others += [f.dims for f in value.echoes if f is not e]
        if any(_in(o, over) for o in others):
            trace.refuse(e.params, Why.STATISTIC, gone)
    by_data = NONE if e.data is None else met(at(e.dims), at(e.data))
    if e.how == "added" and not e.repeated and (weighted or not by_data):
        # Summed away whole it may be a penalty, which is evidence of nothing.
        over_all = not (weighted or axes_of(dims))
        trace.use(e.params, "scalar" if over_all else "elementwise")
    stay = axes_of(dims) | e.cut
    if e.how == "added" and e.bent:
        shared = met(e.dims, e.rows)
        if gone & shared and stay - shared:
            trace.refuse(e.params, Why.BENT_SUM, gone)
    if by_data:
        assert e.data is not None
        shared = NONE if e.others is None else met(dims, blank(e.others))
        beside = dims if e.others is None else vary(dims, blank(e.others))
        repeated = besides(blank(e.rows), beside)
        noise = e.how == "added" and not e.repeated
        batch = not e.learned or met(blank(e.rows), blank(e.data))
        first = trace.constants_are_data and e.raw
        if e.how == "statistic" and not (weighted and e.bent):
            trace.refuse(e.params, Why.STATISTIC, gone)
        elif weighted:
            pass
        elif e.network:
            trace.refuse(e.params | e.learned, Why.EITHER)
        elif not batch:
            trace.refuse(e.params | e.learned, Why.EITHER, gone)
        elif first or (not repeated and (stay - shared or e.hidden or noise)):
            trace.refuse(e.params, Why.MADE if e.how == "used" else Why.GATED, gone)
        elif e.how == "used" and stay - shared:
            return e._replace(twice=True)
    return e
