"""Rules for operations with jaxprs inside: calls, loops, branches, custom derivatives."""

import functools
import operator
from collections.abc import Callable, Hashable, Sequence
from typing import TYPE_CHECKING, Any

from .. import jaxprs
from ..digits import (
    NONE,
    VARYING,
    Dims,
    Factor,
    Shape,
    axes_of,
    foreign,
    has_axes,
    lost,
    met,
    varying,
)
from ..jaxprs import shape_of
from ..liveness import CALLS, CUSTOM_CALLS
from ..products import join, multiply
from ..reasons import Why
from ..sums import summed
from ..uses import of_numbers
from ..values import Echo, Kind, Node, Part, Rest, Term, Value, once, own_axes, regrouped
from .slicing import whole_hot

if TYPE_CHECKING:
    from ..walk import Walk

_MOST_PASSES = 50


def call(trace: "Walk", eqn: Any, *values: Value) -> list[Value]:
    """A function called as it is: jit, remat."""
    return trace.run(jaxprs.body(eqn), values, trace.outs)


def custom(trace: "Walk", eqn: Any, *values: Value) -> list[Value]:
    """A function with a derivative rule of its own, taken for what it computes.

    The rule may pass gradients where the body would not (rounding, integers), so all of the body
    counts.
    """
    body, outs = jaxprs.body(eqn), trace.outs
    reached = trace.liveness.inputs(body.jaxpr, outs, True)
    seen = functools.reduce(
        operator.or_, [v.seen for v, f in zip(values, reached, strict=True) if f], 0
    )
    for value, flag in zip(values, reached, strict=True):
        # What the body ignores, but passes on values computed from, gets the gradient of those.
        if not flag and value.seen & ~seen:
            trace.refuse_all(value, Why.CUSTOM)
        elif not flag:
            trace.settle(p for t in value.terms for p in t.params)
    with trace.counting_everything():
        return trace.run(body, values, outs)


def scan(trace: "Walk", eqn: Any, *values: Value) -> list[Value]:
    """A loop over the leading axis: layers, or time. What it slices there is a batch axis."""
    loop, key = jaxprs.loop(eqn), ("loop", trace.path)
    consts, init = values[: loop.n_consts], values[loop.carry]
    slices = [_sliced(trace, x, key) for x in values[loop.carry.stop :]]
    jaxpr, m = loop.body.jaxpr, loop.n_carry
    outs = trace.liveness.carried(jaxpr, trace.outs, loop.carry, m, trace.everything)

    def step(carry: Sequence[Value]) -> list[Value]:
        return trace.run(loop.body, (*consts, *carry, *slices), outs)

    carry, results = _fixpoint(trace, step, init, key, loop.length)
    ys = [
        _stacked(y, shape_of(v), key, loop.length)
        for y, v in zip(results[m:], eqn.outvars[m:], strict=True)
    ]
    return [*carry, *ys]


def _sliced(trace: "Walk", x: Value, key: Hashable) -> Value:
    """What a loop sees of a value: a slice, and of a parameter's digits there which it is."""

    def part(dims: Dims, parts: frozenset[Part]) -> frozenset[Part]:
        axes = axes_of(dims[:1])
        return parts | {Part(key, axes, dims[0])} if axes else parts

    def drop(dims: Dims) -> Dims:
        return dims[1:]

    def node(n: Node) -> Node:
        return n._replace(dims=n.dims[1:], parts=part(n.dims, n.parts))

    def term(t: Term) -> Term:
        unsure = t.unsure or (Why.CUT_PRODUCT if _of_constants(t) else "")
        return t.moved(drop, node=node)._replace(unsure=unsure)

    def echo(e: Echo) -> Echo:
        sliced = part(e.dims, e.sliced)
        return e.moved(drop)._replace(cut=e.cut | axes_of(e.dims[:1]), sliced=sliced)

    result = whole_hot(x, (0,)).moved(drop, x.shape[1:], term, echo)
    return result._replace(seen=trace.seen_with_parts(result))


def _fixpoint(
    trace: "Walk", step: Any, init: Sequence[Value], key: Hashable, length: int = 0
) -> tuple[list[Value], list[Value]]:
    """What is known of carried values after any number of steps; uses are those of the last pass.

    Args:
      trace: the walk, which records uses.
      step: from the carried values to the results of the body, of which they are the first.
      init: the carried values before the first step.
      key: identifies the loop.
      length: how many steps it has; 0 if that is not known.

    Returns:
      The carried values before or after any step, and the results of one more step.
    """
    n = len(init)
    init = carry = [_carried(v, key) for v in init]
    for _ in range(_MOST_PASSES):
        with trace.not_recording():
            after = step(carry)[:n]
            again = [
                _begun(join(trace, (before, now)), start)
                for before, now, start in zip(carry, after, init, strict=True)
            ]
        if _equal(again, carry):
            results = step(carry)
            for pair in zip(init, results[:n], strict=True):
                join(trace, pair)  # records what becomes of parameters that are carried
            before = [{part for t in v.terms for m in t.nodes for part in m.parts} for v in init]
            seen = functools.reduce(operator.or_, [v.seen for v in init], 0)
            after = [
                _summed_by_loop(trace, value, parts, key, length, seen)
                for value, parts in zip(carry, before, strict=True)
            ]
            return [v._replace(loops=v.loops - {key}) for v in after], results
        carry = again
    for value in carry:
        trace.refuse_all(value, Why.ENDLESS)
    return [v.without_gradient() for v in carry], [v.without_gradient() for v in step(carry)]


def _carried(value: Value, key: Hashable) -> Value:
    """The value as a loop begins with it."""
    echoes = [e._replace(loops=e.loops | {key}) if e.how == "added" else e for e in value.echoes]
    return value._replace(loops=value.loops | {key}, echoes=tuple(echoes))


def _begun(value: Value, start: Value) -> Value:
    """What is carried, of which a parameter is the start: a state, or a weight that is adapted."""
    params = frozenset(p for t in start.terms for p in t.params if start.kind != Kind.DATA)
    echoes = [
        e._replace(rows=e.dims) if e.how == "added" and e.params <= params else e
        for e in value.echoes
    ]
    return value._replace(echoes=tuple(echoes))


def _equal(a: Sequence[Value], b: Sequence[Value]) -> bool:
    return all(
        x._replace(terms=(), echoes=()) == y._replace(terms=(), echoes=())
        and (set(x.terms), set(x.echoes)) == (set(y.terms), set(y.echoes))
        for x, y in zip(a, b, strict=True)
    )


def _summed_by_loop(
    trace: "Walk", value: Value, before: set[Part], key: Any, length: int, seen: int
) -> Value:
    """A product of data and a slice that is added up by the loop is a contraction in disguise.

    In a residual network with a scale for each layer the product is one with what is carried.

    Args:
      trace: the walk, which records uses.
      value: what is carried.
      before: the slices that were in it before the loop.
      key: identifies the loop.
      length: how many steps it has; 0 if that is not known.
      seen: the parameters that anything carried was computed from before the loop.
    """
    terms, slices = [], []
    sliced = tuple(e for e in value.echoes if any(part.key == key for part in e.sliced))
    echoes = [e for e in value.echoes if e not in sliced]

    for e in value.echoes:
        if any(part.key == key or _within(part, key) for part in e.parts):
            carried = key in e.loops
            unseen = [p for p in e.params if not (carried and (e.seen & ~seen) >> p & 1)]
            trace.refuse(unseen, Why.SLICES)
    for t in value.terms:
        new = {
            part
            for n in t.nodes
            for part in n.parts - before
            if part.key == key or _within(part, key)
        }
        if not new:
            terms.append(t)
            continue
        scale = t.data is not None and all(own_axes(n) <= met(n.dims, t.data) for n in t.nodes)
        if t.data is not None and key in t.loops:
            of_step = [n for n in t.nodes if n.parts & new]
            residual = all((t.seen & ~seen) >> n.param & 1 for n in of_step)
            if residual and scale:
                trace.use(t.params, "elementwise")
                continue
            if any(t.seen >> n.param & 1 for n in of_step):
                trace.refuse(t.params, Why.SLICES)
                continue
        if any(part.key != key for part in new):
            trace.refuse(t.params, Why.SLICES)
        elif scale and trace.is_seen_of(key, t.seen):
            trace.refuse(t.params, Why.SCALE)
        elif sum(bool(n.parts & new) for n in t.nodes) > 1 and of_numbers(t) and not t.edges:
            trace.refuse(t.params, Why.EITHER)  # the numbers may be others in each step
        elif t.picked is not None and not t.is_rows:  # by other indices in each step, or the same
            trace.refuse(t.params, Why.SLICES)
        else:
            slices.append(t._replace(residual=False))  # the loop's sum begins with that data
    refused = len(terms) + len(slices) < len(value.terms)  # but for scales of data
    if slices or sliced:
        steps = value._replace(terms=tuple(slices), echoes=sliced)
        steps = _stacked(steps, (length, *value.shape), key, length)
        total = summed(trace, steps, (0,))
        terms += total.terms
        echoes += total.echoes
    # What was refused or settled leaves the terms, and the value varies as before.
    varies = value.support if value.kind == Kind.DATA else value.varies
    rest = value.rest if len(terms) == len(value.terms) else Rest.DATA
    total = value._replace(varies=varies, terms=once(terms), echoes=regrouped(echoes), rest=rest)
    if refused and value.kind == Kind.PARAMETER:
        return total._replace(varies=varying(value.shape), unknown=True)
    return total


def _of_others(parts: frozenset[Part], key: Any) -> frozenset[Part]:
    return frozenset(part for part in parts if part.key != key)


def _of_constants(t: Term) -> bool:
    """Whether a loop takes constants apart that the term was multiplied by, and not the term.

    What is left of them may be one number for each step, or what selects elements of the term.
    """
    if t.constants is None or not has_axes(t.constants[0]):
        return False
    selects = bool(t.edges) or any(map(has_axes, t.constants[1:]))
    return selects and not any(has_axes(n.dims[0]) for n in t.nodes)


def _within(part: Part, loop: Any) -> bool:
    """Whether a slice at an unknown place was taken inside a loop."""
    return part.path is not None and part.path[: len(loop[1])] == loop[1]


def _stacked(y: Value, shape: Shape, key: Hashable, length: int) -> Value:
    """The results of all steps, one after another."""
    along = (Factor(length, VARYING, None),) if length > 1 else ()

    def repeated(dims: Dims) -> Dims:
        return (*foreign((length,)), *dims)

    def restored(dims: Dims, parts: frozenset[Part]) -> Dims:
        here = [part for part in parts if part.key == key]
        dim = here[0].dim if len(here) == 1 else lost(length, NONE.union(*[p.axes for p in here]))
        return (dim, *dims)

    def varied(dims: Dims) -> Dims:
        return (along, *dims)

    def node(n: Node) -> Node:
        return n._replace(dims=restored(n.dims, n.parts), parts=_of_others(n.parts, key))

    def echo(e: Echo) -> Echo:
        return e.moved(repeated, varied)._replace(
            dims=restored(e.dims, e.parts | e.sliced),
            cut=e.cut - axes_of(part.dim for part in e.sliced if part.key == key),
            parts=_of_others(e.parts, key),
            sliced=_of_others(e.sliced, key),
        )

    stacked = y.plain().moved(repeated, shape, lambda t: t.moved(repeated, varied, node), echo)
    # Of slices that differ from step to step, no constants beside them need to.
    slices = any(part.key == key for t in y.terms for n in t.nodes for part in n.parts)
    plain = slices and y.kind != Kind.DATA and not any(map(has_axes, y.varies))
    varies = stacked.varies if plain else varied(y.varies)
    return stacked._replace(varies=varies, loops=y.loops - {key})


def while_(trace: "Walk", eqn: Any, *values: Value) -> list[Value]:
    """A loop that ends on a condition, through which no gradient flows."""
    loop = jaxprs.while_loop(eqn)
    n, m = loop.n_cond, loop.n_body
    consts, init = values[n : n + m], values[n + m :]
    outs = trace.liveness.carried(
        loop.body.jaxpr, trace.outs, slice(m, None), len(init), trace.everything
    )

    def step(carry: Sequence[Value]) -> list[Value]:
        return trace.run(loop.body, (*consts, *carry), outs)

    return _fixpoint(trace, step, init, ("loop", trace.path))[0]


def cond(trace: "Walk", eqn: Any, which: Value, *values: Value) -> list[Value]:
    """A choice of branch; a parameter that data chooses is gated by it."""
    outer, outs, results = trace.path, trace.outs, []
    for i, branch in enumerate(jaxprs.branches(eqn)):
        trace.path = (*outer, i)
        results.append(trace.run(branch, values, outs))
    trace.path = outer
    chosen = [join(trace, outs) for outs in zip(*results, strict=True)]
    if which.kind != Kind.DATA:
        return chosen
    gate = Value((), Kind.DATA)
    return [multiply(trace, v, gate, v.shape) for v in chosen]


RULES: dict[str, Callable[..., Any]] = {
    **dict.fromkeys((name for name in CALLS if name != "shard_map"), call),
    **dict.fromkeys(CUSTOM_CALLS, custom),
    "scan": scan,
    "while": while_,
    "cond": cond,
}
