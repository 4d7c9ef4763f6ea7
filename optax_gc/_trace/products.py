"""Products, sums and nonlinear functions of values, element by element.

A product of values multiplies every term of one with those of the other; a sum joins their terms.
A parameter that is added to inputs is part of an activation: a bias, a position, an initial state.
Something nonlinear settles what a product with inputs was: a scale, unless the parameter has digits
that the inputs do not vary along, so that it may still turn out to be summed with them.
"""

import functools
import itertools
import math
import operator
from collections.abc import Hashable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

from .digits import (
    NONE,
    AxisSet,
    Dims,
    Shape,
    axes_of,
    besides,
    foreign,
    has_axes,
    lost,
    met,
    repeats,
    vary,
    with_dim,
    without,
)
from .reasons import Why
from .uses import (
    has_factors,
    has_open_ends,
    is_mixed,
    is_scaled,
    oriented_by_rows,
    refuse_network,
    settle_lookup,
    settle_scale,
    summed_axes,
    with_slices_joined,
)
from .values import (
    CONSTANT,
    Echo,
    Kind,
    Node,
    Part,
    Rest,
    Term,
    Value,
    both,
    constant,
    once,
    own_axes,
    regrouped,
    shuffled_axes,
)

if TYPE_CHECKING:
    from .walk import Walk

MOST_TERMS = 24


def aligned(value: Value, shape: Shape) -> Value:
    """Repeats a scalar, or dimensions of length 1, up to `shape`."""
    if value.shape == shape:
        return value

    def stretch(dims: Dims) -> Dims:
        if len(value.shape) != len(shape):
            return foreign(shape)
        sizes = zip(dims, value.shape, shape, strict=True)
        return tuple([dim if old == new else foreign((new,))[0] for dim, old, new in sizes])

    return value.moved(stretch, shape)


def multiply(trace: "Walk", a: Value, b: Value, shape: Shape) -> Value:
    """The product of two values."""
    if a is b and (a.terms or a.echoes):
        return bend(trace, (a,), shape)
    numbers = not (a.shape and b.shape)
    a, b = aligned(a, shape), aligned(b, shape)
    kind = max(a.kind, b.kind)
    varies = vary(a.varies, b.varies)
    a = with_slices_joined(trace, a, final=b.kind == Kind.PARAMETER)
    b = with_slices_joined(trace, b, final=a.kind == Kind.PARAMETER)
    if not (a.terms or b.terms or a.echoes or b.echoes):
        hot = _hot(a, b)
        if any([_is_unknown(x) and not axes_of(y.support) for x, y in ((a, b), (b, a))]):
            kind = Kind.PARAMETER  # times a number
        return Value(
            shape,
            kind,
            varies,
            seen=a.seen | b.seen,
            loops=a.loops | b.loops,
            one_hot=hot,
            blurred=a.blurred or b.blurred,
            unknown=a.unknown or b.unknown,
        )
    a, b = _without_own_sums(a, (b,)), _without_own_sums(b, (a,))
    doubtful = _is_unknown(a) or _is_unknown(b)
    if _is_factor(a) and _is_factor(b):
        terms = [_product(s, t) for s, t in itertools.product(a.terms, b.terms)]
        terms += [*_times_constants(a, b, numbers), *_times_constants(b, a, numbers)]
        if kind == Kind.DATA:  # where it is not there, times the number one
            none = foreign(shape)
            terms = [t._replace(data=none) if t.data is None else t for t in terms]
    elif kind == Kind.DATA and is_mixed(a) and is_mixed(b) and (doubtful or _are_open(a, b)):
        return _unknown(trace, (a, b), shape)
    else:
        terms = [*_times(a, b, numbers), *_times(b, a, numbers)]
        in_terms = a.is_in_terms and b.is_in_terms
        doubtful |= a.kind == b.kind == Kind.DATA and not in_terms and _are_open(a, b)
    if doubtful:
        terms = [t._replace(unsure=t.unsure or Why.EITHER) for t in terms]
    for x, y in ((a, b), (b, a)):
        if x.kind == Kind.PARAMETER and y.kind == Kind.DATA:
            _note_pooled(trace, x, y)
    echoes = regrouped([*_gated(a, b), *_gated(b, a)])
    return tidied(trace, Value(
        shape, kind, varies, tuple(terms), echoes, seen=a.seen | b.seen, loops=a.loops | b.loops,
        blurred=a.blurred or b.blurred, unknown=a.unknown or b.unknown, one_hot=_hot(a, b),
        rest=_rest_of_product(a, b),
    ), product=True)  # fmt: skip


def _note_pooled(trace: "Walk", value: Value, data: Value) -> None:
    """Notes that sums of parameters over their own axes scale data, which has all other axes."""
    for e in value.echoes:
        if e.how != "statistic" or not axes(e):
            continue
        if len(e.params) > 1:
            trace.refuse(e.params, Why.BENT_NETWORK)
        elif axes(e) <= met(e.dims, data.support):
            trace.use(e.params, "pooled")


def _without_own_sums(value: Value, others: Sequence[Value]) -> Value:
    """Forgets that an activation was summed where the sum meets what it is of, as in a norm."""
    if not any([e.pending == Why.LATER for e in value.echoes]):
        return value
    whole = frozenset().union(*(e.params for v in others for e in v.echoes if e.whole is not None))
    kept = [e for e in value.echoes if not (e.pending == Why.LATER and e.params <= whole)]
    return value._replace(echoes=tuple(kept))


def _blurred(values: Sequence[Value]) -> str:
    """What is not known in a sum of inputs; with a parameter among them, it is no one-hot."""
    if any(v.seen for v in values):
        return ""
    return next((v.blurred for v in values if v.blurred), "")


def _hot(a: Value, b: Value) -> Dims | None:
    """Where a product has one element that is not zero: where a factor that data chose has.

    A constant has others in other places, as an identity matrix, unless it is only repeated.
    """
    if a.one_hot and b.one_hot:
        return vary(a.one_hot, b.one_hot)
    for x, y in ((a, b), (b, a)):
        if x.one_hot and (x.kind == Kind.DATA or not any(has_axes(dim) for dim in y.support)):
            return x.one_hot
    return None


def _times(a: Value, b: Value, number: bool) -> list[Term]:
    """The terms of `a`, times what is no parameter in `b`, which may be a number."""
    if b.kind == Kind.DATA:
        support = b.support
        return [_with_data(t, b, support) for t in a.terms]
    if a.terms and b.terms:
        return [_product(s, t) for s, t in itertools.product(a.terms, b.terms)]
    return _times_constants(a, b, number)


def _times_constants(a: Value, b: Value, number: bool) -> list[Term]:
    """The terms of `a`, times the constants in `b` that are no factors of its parameters."""
    if not a.terms:
        return []
    varies = b.varies
    for e in () if b.terms else b.echoes:  # a statistic of other parameters is like a constant
        if not _is_statistic_of(e, a.terms):
            varies = vary(varies, e.dims)
    constant = bool(axes_of(varies))
    if b.terms and not (constant and b.rest == Rest.CONSTANT):
        return []
    if number and not constant:
        return list(a.terms)
    return [t.with_constants(varies) for t in a.terms]


def _is_factor(value: Value) -> bool:
    """Whether it is made of parameters, and of data that does not vary along all of their axes.

    Constants may be added to it, if what it is multiplied by are single numbers.
    """
    if value.kind != Kind.DATA:
        return value.kind == Kind.PARAMETER and bool(value.terms)
    numbers = not any(t.data and axes_of(t.data) for t in value.terms)
    return is_mixed(value) and (numbers or value.is_in_terms)


def _are_open(a: Value, b: Value) -> bool:
    """Whether both have factors with axes that the other lacks."""
    return all(
        any(
            [
                n.parts or besides(n.dims, y.support)
                for t in filter(has_factors, x.terms)
                for n in t.nodes
            ]
        )
        for x, y in ((a, b), (b, a))
    )


def _unknown(trace: "Walk", values: Sequence[Value], shape: Shape) -> Value:
    """What is made of parameters, constants and numbers, if it is not told of which it is made."""
    for v in values:
        trace.refuse_all(v, Why.EITHER)
    seen = functools.reduce(operator.or_, [v.seen for v in values])
    loops = frozenset().union(*(v.loops for v in values))
    made = constant(shape, Kind.PARAMETER)
    return made._replace(seen=seen, loops=loops, unknown=True)


def _rest_of_product(a: Value, b: Value) -> Rest:
    """What is added to the terms of a product."""

    def rest(v: Value, other: Value) -> Rest:
        if v.terms or v.echoes:
            return v.beside
        constants = other.varies
        for t in other.terms:
            constants = constants if t.data is None else without(constants, t.data)
        return Rest.DATA if v.kind == Kind.DATA and met(constants, v.support) else Rest.CONSTANT

    each = rest(a, b), rest(b, a)
    return Rest.NONE if Rest.NONE in each else max(each)


def _with_data(t: Term, b: Value, support: Dims) -> Term:
    """A term times data, of which the support is given."""
    if _is_own_statistic(t, b, support):
        return t
    if any([n.bent for n in t.nodes]):
        return t._replace(last=support if t.last is None else vary(t.last, support))
    chosen = t.is_rows
    return t._replace(
        paired=t.paired or (chosen and any([u.is_rows for u in b.terms])),
        data=support if chosen or t.data is None else vary(t.data, support),
        rows=None if chosen else t.data,
        last=support,
        hot=b.one_hot if chosen else both(t.hot, b.one_hot),
        loops=t.loops | b.loops,
        seen=t.seen | b.seen,
        learned=t.learned | b.learned,
        blurred=t.blurred or b.blurred,
    )


def _is_own_statistic(t: Term, data: Value, support: Dims) -> bool:
    """Whether a product with data is scaled by what was summed from that product."""
    if t.data is None or t.is_rows or besides(support, t.support):
        return False
    summed = frozenset().union(*(e.params for e in data.echoes if e.how == "statistic"))
    return all(n.param in summed and besides(n.dims, support) for n in t.nodes)


def _gated(a: Value, b: Value) -> Sequence[Echo]:
    if b.kind != Kind.DATA or not a.echoes:
        return a.echoes
    found: list[Echo] = []
    # A one-hot chooses outputs, and weighs none.
    support = b.support if b.one_hot is None else without(b.support, b.one_hot)
    raw = not b.seen
    for e in a.echoes:
        data = support if e.data is None else vary(e.data, support)
        # In a loop, what is carried is another activation than what is computed anew.
        same = e.how != "added" or b.loops <= e.loops
        itself = frozenset(p for p in e.params if b.seen >> p & 1) if same else frozenset()
        if itself and e.how == "added" and besides(support, a.support):
            # Positions may meet themselves, but a weight may meet what it scales too.
            itself &= frozenset(p for f in b.echoes if f.how == "added" for p in f.params)
        unknown = e.unknown or (b.blurred if e.how == "used" else "")
        if itself:
            found.append(e._replace(params=itself, data=data, raw=raw, unknown=unknown))
        if rest := e.params - itself:
            others = support if e.others is None else vary(e.others, support)
            found.append(
                e._replace(params=rest, data=data, raw=raw, others=others, unknown=unknown)
            )
    return found


def _product(s: Term, t: Term) -> Term:
    """The product of two terms. Of a parameter that is scaled by a statistic, it is itself."""
    for x, y in ((s, t), (t, s)):
        if absorbs(x, y):
            return x._replace(curved=True)
    offset = len(s.nodes)
    edges = s.edges | {
        frozenset((i if i == CONSTANT else i + offset, axes) for i, axes in edge)
        for edge in t.edges
    }

    nodes = (*s.nodes, *t.nodes)
    if not t.edges:  # a power of a parameter is the parameter, element by element
        nodes = (*s.nodes, *(n for n in t.nodes if n not in s.nodes))
    return Term(
        nodes,
        edges,
        both(s.constants, t.constants),
        both(s.data, t.data),
        both(s.rows, t.rows),
        both(s.last, t.last),
        s.bent or t.bent,
        _is_curved(s) or _is_curved(t) or len(nodes) < len(s.nodes) + len(t.nodes),
        picked := both(s.picked, t.picked),
        s.paired or t.paired,
        both(s.hot, t.hot) if picked is None else None,
        loops=s.loops | t.loops,
        seen=s.seen | t.seen,
        blurred=s.blurred or t.blurred,
        merged=s.merged or t.merged,
        unsure=s.unsure or t.unsure,
        put=s.put or t.put,
        learned=s.learned | t.learned,
    )


def _is_curved(factor: Term) -> bool:
    """Whether a factor shows that something nonlinear was done, which a number does not."""
    return factor.curved and bool(axes_of(factor.support))


def absorbs(t: Term, statistic: Term) -> bool:
    """Whether one term stays what it is when the other, made of the same parameters, scales it.

    The other is a statistic of it: its elements mixed by constants, or summed.
    """
    if t.data is not None or statistic.data is not None or not statistic.edges:
        return False
    if besides(statistic.support, t.support):  # a layer of constants, or the weight transposed
        return False
    params = {n.param for n in t.nodes}
    if not {n.param for n in statistic.nodes} <= params:
        return False
    if t.edges:
        return len(statistic.edges) > len(t.edges)
    mixed = NONE.union(*[axes for edge in statistic.edges for i, axes in edge if i != CONSTANT])
    return len(t.nodes) == 1 and mixed <= own_axes(t.nodes[0])


def add(trace: "Walk", values: Sequence[Value], shape: Shape, is_sum: bool = False) -> Value:
    """The sum of values, or one value made of parts of several.

    Args:
      trace: the walk, which records uses.
      values: the values.
      shape: of the result.
      is_sum: whether the program adds them up.
    """
    values = [aligned(v, shape) for v in values]
    # Few echoes have any of these: one look instead of four.
    checked = any([e.pending or e.parts or e.twice for v in values for e in v.echoes])
    if checked:
        values = _with_windows_joined(values) if is_sum else values
        values = [_without_own_sums(v, [o for o in values if o is not v]) for v in values]
    kind = max(v.kind for v in values)
    joining = _joining(values, is_sum)
    # Of parameters that become part of an activation, not all that they vary along is remembered.
    along = [v.support if j else v.varies for v, j in zip(values, joining, strict=True)]
    varies = functools.reduce(vary, along)
    loops = frozenset().union(*(v.loops for v in values))
    seen = functools.reduce(operator.or_, [v.seen for v in values])
    terms: list[Term] = []
    echoes: list[Echo] = []
    for v, joins in zip(values, joining, strict=True):
        rows = foreign(shape)
        if joins and (v.terms or v.echoes):
            for other in values:
                if other is not v:
                    rows = vary(rows, other.support)
        settled = any([_shows_rows(e, v, values) for e in v.echoes if e.learned])
        for e in v.echoes:
            if joins and e.how == "statistic":
                trace.use(e.params, "pooled" if axes(e) else "scalar")
                e = Echo(e.params, "added", e.dims, rows)
            echoes.append(e._replace(learned=frozenset()) if settled else e)
        if joins and v.terms:
            of_data = [e for other in values if other is not v for e in other.echoes]
            for t in v.terms:
                of_term = rows if t.data is None else vary(rows, t.data)
                echoes += added(trace, t, of_term, of_data, loops)
        else:
            for t in v.terms:
                if t.is_rows and len(values) > 1:
                    assert t.picked is not None
                    if t.hot is not None and any(n.parts for n in t.nodes):
                        trace.refuse(t.params, Why.ONE_HOTS)
                    echoes += added(trace, t, vary(rows, t.picked), loops=loops)
                elif kind == Kind.DATA and t.data is None:
                    terms.append(t._replace(data=foreign(shape)))  # times the number one
                else:
                    terms.append(t)
    terms = _side_by_side(_unrolled(values, terms)) if terms else terms
    if checked:
        _check_twice(trace, values)
        check_slices(trace, values)
    if is_sum:
        _check_noise(trace, values)
        _check_products(trace, values)
        if any(v.kind == Kind.DATA and not v.terms for v in values):
            terms = [t._replace(residual=True) for t in terms]
    blurred = _blurred(values)
    unknown = kind == Kind.PARAMETER and any(map(_is_unknown, values))
    joined = any([j and bool(v.terms or v.echoes) for v, j in zip(values, joining, strict=True)])
    rest = Rest.DATA if joined else max([v.beside for v in values])
    result = Value(
        shape, kind, varies, tuple(terms), regrouped(echoes), seen, loops, blurred, unknown=unknown,
        rest=rest,
    )  # fmt: skip
    if unknown:
        result = result.in_doubt(Why.EITHER)
    elif is_sum and kind == Kind.PARAMETER and len(result.terms) > 1:
        result = _with_evidence(trace, result)
    return tidied(trace, result)


def _joining(values: Sequence[Value], is_sum: bool) -> list[bool]:
    """Which of several values become part of the activation that the others are.

    In a sum, a parameter times numbers, one for all or one for each example, is a parameter.
    """
    parameters = [v.kind != Kind.DATA for v in values]
    if all(parameters) or not any([v.terms or v.echoes for v in values]):
        return [False] * len(values)
    joining = [p or (is_sum and is_scaled(v)) for p, v in zip(parameters, values, strict=True)]
    if not all(joining):
        return joining
    # With a number for each of the positions that another has, the sum is an activation.
    terms = [t for v in values for t in v.terms]
    shared = any([s.data and met(n.dims, s.data) for s in terms for t in terms for n in t.nodes])
    statistics = any(v.echoes for v in values)
    return parameters if shared or statistics else [False] * len(values)


def _with_windows_joined(values: Sequence[Value]) -> Sequence[Value]:
    """Values of which some are contractions over windows of an axis; all windows are the axis."""
    groups: dict[Any, list[Echo]] = {}
    for v in values:
        for e in v.echoes:
            linear = e.pending == Why.PARTLY and e.data is None and not e.bent
            unseen = not any(e.seen >> p & 1 for p in e.params)
            if linear and unseen and axes(e) and all(part.window for part in e.parts):
                groups.setdefault((e.params, e.dims), []).append(e)
    joined: dict[int, Echo] = {}
    for found in groups.values():
        parts = frozenset().union(*(e.parts for e in found))
        windows = sorted(part.window for part in parts if part.window)
        side_by_side = all((a[1], a[2]) == (b[0], b[2]) for a, b in itertools.pairwise(windows))
        if side_by_side and len({part.axes for part in parts}) == 1:
            whole = windows[0][0] == 0 and windows[-1][1] == windows[-1][2]
            left = {"parts": frozenset(), "pending": "", "seen": 0} if whole else {"parts": parts}
            joined.update((id(e), e._replace(**left)) for e in found)
    if not joined:
        return values
    return [v._replace(echoes=regrouped([joined.get(id(e), e) for e in v.echoes])) for v in values]


def _shows_rows(e: Echo, v: Value, values: Sequence[Value]) -> bool:
    """Whether what is added to a product of parameters says that it is an activation.

    That is a vector, the same for all its rows, or something for each example.
    """
    vectors = [o.support for o in values if o.kind == Kind.PARAMETER]
    examples = [o.support for o in values if o.kind == Kind.DATA and o is not v]
    of_layer = e.how == "used" and any(not met(dims, e.rows) for dims in vectors)
    return of_layer or any(besides(dims, v.support) for dims in examples)


def _is_unknown(value: Value) -> bool:
    """Whether it is made of parameters by an operation that nothing is known about."""
    return value.kind == Kind.PARAMETER and value.unknown


def _unrolled(values: Sequence[Value], terms: list[Term]) -> list[Term]:
    """Marks products of different slices of one parameter with data, which are being added up."""
    parts: dict[int, list[frozenset[Any]]] = {}
    for v in values:
        of: dict[int, set[Any]] = {}
        for t in v.terms:
            slices = t.data is not None and t.picked is None and len(t.nodes) == 1
            if slices and t.nodes[0].parts:
                of.setdefault(t.nodes[0].param, set()).add(t.nodes[0].parts)
        for p, found in of.items():
            parts.setdefault(p, []).append(frozenset(found))
    several = {p for p, found in parts.items() if len(set(found)) > 1}
    if not several:
        return terms
    return [
        t._replace(unrolled=True, unsure=t.unsure or (Why.SLICES if t.put else ""))
        if t.data is not None and len(t.nodes) == 1 and t.nodes[0].param in several
        else t
        for t in terms
    ]


def _side_by_side(terms: list[Term]) -> list[Term]:
    """Puts the axis of which constants put slices side by side where they put them."""
    parts: dict[int, set[frozenset[Part]]] = {}
    for t in terms if len(terms) > 1 else ():
        for n in t.nodes if t.data is None else ():
            parts.setdefault(n.param, set()).add(n.parts)
    several = {p for p, found in parts.items() if len(found) > 1}
    if not several:
        return terms

    def placed(t: Term) -> Term:
        if t.data is not None or t.constants is None:
            return t
        masked = [d for d, dim in enumerate(t.constants) if has_axes(dim)]

        def node(n: Node) -> Node:
            if n.param not in several:
                return n
            dims, axes = n.dims, NONE.union(*[part.axes for part in n.parts])
            for d in masked:
                size = math.prod(f.size for f in dims[d])
                dims = with_dim(dims, d, lost(size, axes | axes_of((dims[d],))))
            return n._replace(dims=dims, parts=frozenset())

        return t._replace(nodes=tuple(map(node, t.nodes)))

    return [placed(t) for t in terms]


def _check_twice(trace: "Walk", values: Sequence[Value]) -> None:
    """Refuses what was contracted with data twice, and is added to other data."""
    for v, other in itertools.permutations(values, 2):
        for e in v.echoes:
            if e.twice and other.kind == Kind.DATA and met(e.dims, other.support):
                unseen = [p for p in e.params if not other.seen >> p & 1]
                trace.refuse(unseen, Why.TWICE, e.fan_in)


def _check_noise(trace: "Walk", values: Sequence[Value]) -> None:
    """Refuses what was added to data of its shape, and of which slices times data are added up."""
    found: set[int] = set()
    for v in values:
        noisy = [e for e in v.echoes if e.how == "added" and not (e.repeated or e.bent)]
        here = {p for e in noisy if e.cut and e.others is not None for p in e.params}
        trace.refuse(found & here, Why.GATED)
        found |= here


def check_slices(trace: "Walk", values: Sequence[Value]) -> None:
    """Refuses weights of which the outputs of several slices may be added up."""
    sliced = [echoes for v in values if (echoes := [e for e in v.echoes if e.parts])]
    for of_one, of_other in itertools.combinations(sliced, 2):
        for e, f in itertools.product(of_one, of_other):
            if f.parts == e.parts:
                continue
            for p in e.params & f.params:
                one, two = Node(p, (), e.parts), Node(p, (), f.parts)
                itself = trace.is_seen(one, e.seen) or trace.is_seen(two, f.seen)
                if itself or not (e.seen | f.seen) >> p & 1:
                    trace.refuse([p], Why.SLICES)


def _check_products(trace: "Walk", values: Sequence[Value]) -> None:
    """Refuses weights of which several parts are multiplied with data, and added up."""
    found: dict[tuple[int, ...], Term] = {}
    for v in values:
        for t in v.terms:
            node = t.nodes[0]
            if t.data is None or t.is_rows:
                continue
            other = found.setdefault(tuple(t.params), t)
            if len(t.nodes) > 1:
                differ = other.nodes != t.nodes
            else:  # slices are told apart when all are there, but not what is in another order
                same = other.nodes[0].parts == node.parts
                outputs = own_axes(node) - met(node.dims, t.data)
                others = other.nodes != t.nodes or (other is not t and shuffled_axes([node]))
                differ = bool(outputs and others) and same
            if differ:
                trace.refuse(t.params, Why.SLICES)


def _with_evidence(trace: "Walk", value: Value) -> Value:
    """A sum of parameters: a product plus a vector is an activation, plus a matrix an update."""
    vectors = [t for t in value.terms if _is_vector(t)]
    full = [t for t in value.terms if t.is_image and t not in vectors]
    networks = [t for t in value.terms if not t.is_image]
    # A vector that is added to a matrix alone may be part of a weight.
    if vectors and (networks or (full and all(t.curved for t in full))):
        rows = foreign(value.shape)
        for t in vectors:
            rows = vary(rows, t.nodes[0].dims)
        if all(oriented_by_rows(trace, t, rows) for t in (*full, *networks)):
            support = value.support
            told = frozenset(p for t in (*full, *networks) for p in t.params)
            echoes = [e._replace(oriented=told) for t in vectors for e in added(trace, t, support)]
            return Value(value.shape, Kind.DATA, support, (), regrouped(echoes), seen=value.seen)
        if networks:
            return value.in_doubt(Why.EITHER)
    if full and networks:
        updates = all(has_open_ends(t) for t in networks)
        terms = tuple(
            t._replace(merged=updates and bool(t.edges), unsure=t.unsure if updates else Why.EITHER)
            for t in value.terms
        )
        return value._replace(terms=terms)
    return value


def _is_vector(t: Term) -> bool:
    """Whether a term is a parameter that is repeated, such as a bias over the rows of a batch."""
    node = t.nodes[0]
    plain = t.constants is None or not besides(t.constants, node.dims)  # of a mask, no diagonal
    return t.is_image and plain and bool(own_axes(node)) and repeats(node.dims)


def added(
    trace: "Walk",
    t: Term,
    rows: Dims,
    echoes: Sequence[Echo] = (),
    loops: frozenset[Hashable] = frozenset(),
) -> list[Echo]:
    """The echoes of a term of parameters that is added to data.

    Args:
      trace: the walk, which records uses.
      t: the term.
      rows: along which dimensions the data varies.
      echoes: what is left of other parameters in that data.
      loops: that carry the sum.
    """
    if t.picked is not None:
        settle_lookup(trace, t)
    elif t.edges and t.unsure == Why.EITHER:
        trace.refuse(t.params, t.unsure)
        return []
    elif t.edges and len(set(t.params)) > 1:
        refuse_network(trace, t)
        return []
    products = [e for e in echoes if e.how == "used"]
    left = []
    for p, dims, parts, *_ in t.nodes:
        repeated = besides(rows, dims)
        for e in echoes:
            if e.oriented and not e.bent and _are_across(dims, e.dims):
                trace.refuse(e.oriented, Why.EITHER)  # a vector along the rows says the opposite
        learned = frozenset().union(*(e.learned for e in products if met(e.rows, dims)))
        if t.picked is None:
            scalar = not repeated and not any(p in e.params for e in products)
            trace.use([p], "scalar" if scalar else "elementwise")
        itself = frozenset({p})
        cut = NONE.union(*[part.axes for part in parts])
        left.append(
            Echo(
                itself,
                "added",
                dims,
                rows,
                repeated=repeated,
                learned=learned,
                cut=cut,
                sliced=parts,
                loops=loops,
            )
        )
    return left


def _are_across(a: Dims, b: Dims) -> bool:
    """Whether two vectors are along different dimensions, but for copies."""
    return besides(a, b) and besides(b, a)


def bend(trace: "Walk", values: Sequence[Value], shape: Shape) -> Value:
    """A nonlinear function of values, position by position."""
    values = [aligned(v, shape) for v in values]
    kind = max(v.kind for v in values)
    if kind == Kind.CONSTANT:
        varies = functools.reduce(vary, [v.varies for v in values])
        loops = frozenset().union(*(v.loops for v in values))
        return Value(shape, kind, varies, loops=loops, blurred=_blurred(values))
    value = add(trace, values, shape) if len(values) > 1 else values[0]
    return bent(trace, value)


def bent(trace: "Walk", value: Value) -> Value:
    """The value after something nonlinear was done to it."""
    value = with_slices_joined(trace, value)
    if value.kind != Kind.DATA:
        terms = tuple([t._replace(bent=not t.is_image, curved=True) for t in value.terms])
        if axes_of(value.varies):  # constants that were added are a summand no more
            terms = tuple([t.with_constants(value.varies) for t in terms])
        return value._replace(terms=terms)
    support = value.support
    terms, echoes = [], []
    for t in value.terms:
        assert t.data is not None
        alone = [n for n in t.nodes if own_axes(n) - met(n.dims, t.data)]
        if t.is_rows:
            settle_lookup(trace, t)
            echoes += [
                Echo(frozenset({n.param}), "added", n.dims, t.data, bent=True) for n in t.nodes
            ]
            continue
        if alone:
            nodes = tuple([n._replace(bent=True) for n in t.nodes])
            terms.append(t._replace(nodes=nodes, bent=True))
            continue
        settle_scale(trace, t)
        for n in t.nodes:
            if not besides(t.data, n.dims):
                itself = frozenset({n.param})
                echoes.append(Echo(itself, "added", n.dims, t.data, bent=True, repeated=False))
    for e in value.echoes:
        outer = bool(axes(e) - met(e.dims, e.rows))
        kept = e.how == "added" and not e.unknown and (outer or not e.repeated)
        if e.how == "statistic" or e.pending or kept:
            echoes.append(e._replace(bent=True))
    return Value(
        value.shape,
        Kind.DATA,
        support,
        tuple(terms),
        regrouped(echoes),
        value.seen,
        value.loops,
        blurred=value.blurred,
    )


def axes(e: Echo) -> frozenset[int]:
    """The axes of the parameter that an echo still has."""
    return own_axes(Node(0, e.dims))


def tidied(trace: "Walk", value: Value, product: bool = False) -> Value:
    """Each term once, and none that is a statistic of another."""
    terms = once(value.terms) if len(value.terms) > 1 else value.terms
    if len(terms) > 1:
        terms = tuple(
            [t for t in terms if not any(absorbs(image, t) for image in terms if image is not t)]
        )
    if len(terms) > MOST_TERMS:
        trace.refuse_all(value, Why.MANY)
        return value._replace(terms=(), kind=Kind.DATA, varies=value.support)
    if value.echoes and terms:
        there = [t for t in terms if product or not t.bent]
        kept = tuple([e for e in value.echoes if not _is_statistic_of(e, there)])
        if len(kept) < len(value.echoes):
            terms = tuple(t._replace(curved=True) for t in terms)
            value = value._replace(echoes=kept)
    return value if terms == value.terms else value._replace(terms=terms)


def _is_statistic_of(e: Echo, terms: Iterable[Term]) -> bool:
    """Whether it is a statistic of parameters that are there with the axes it was taken over."""
    if e.how != "statistic":
        return False
    intact: dict[int, AxisSet] = {}
    for t in terms:
        for i, n in enumerate(t.nodes):
            if not (e.pending and besides(e.dims, n.dims)):  # as in scores of rows with each other
                intact[n.param] = own_axes(n) | (summed_axes(t, i) if e.network else NONE)
    there = [intact[p] for p in e.params if p in intact]
    return len(there) == len(e.params) and any([e.fan_in <= axes for axes in there])


def join(trace: "Walk", values: Sequence[Value]) -> Value:
    """What is known of a value that may be any of `values`."""
    first, *others = values
    for other in others:
        if other != first:
            first = add(trace, (first, other), first.shape)
    return first
