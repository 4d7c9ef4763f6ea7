"""Rules for operations with jaxprs inside: calls, loops, branches, custom derivatives."""

import functools
import operator
from collections.abc import Callable, Hashable, Sequence
from dataclasses import replace
from typing import Any

from .. import jaxprs
from ..digits import NONE, VARYING, Dims, Factor, Shape, axes_of, foreign, lost, met
from ..jaxprs import shape_of
from ..liveness import CALLS, CUSTOM_CALLS
from ..products import join, multiply
from ..uses import contracted, is_all
from ..values import Kind, Node, Part, Value, own_axes, regrouped

_MOST_PASSES = 50


def call(trace: Any, eqn: Any, *values: Value) -> list[Value]:
    """A function called as it is: jit, remat."""
    return trace.run(jaxprs.body(eqn), values, trace.live_outputs(eqn))


def custom(trace: Any, eqn: Any, *values: Value) -> list[Value]:
    """A function with a derivative rule of its own, taken for what it computes.

    The rule may pass gradients where the body would not (rounding, integers), so all of the body
    counts.
    """
    body, outs = jaxprs.body(eqn), trace.live_outputs(eqn)
    reached = trace.liveness.inputs(body.jaxpr, outs, True)
    seen = functools.reduce(
        operator.or_, [v.seen for v, f in zip(values, reached, strict=True) if f], 0
    )
    for value, flag in zip(values, reached, strict=True):
        # What the body ignores, but passes on values computed from, gets the gradient of those.
        if any(outs) and not flag and value.seen & ~seen:
            trace.refuse_all(value, "a custom derivative may give it a gradient that its use hides")
    with trace.counting_everything():
        return trace.run(body, values, outs)


def scan(trace: Any, eqn: Any, *values: Value) -> list[Value]:
    """A loop over the leading axis: layers, or time. What it slices there is a batch axis."""
    loop, key = jaxprs.loop(eqn), ("loop", trace.path)
    consts, init = values[: loop.n_consts], values[loop.carry]
    slices = [_sliced(x, key) for x in values[loop.carry.stop :]]
    jaxpr, m = loop.body.jaxpr, loop.n_carry
    outs = trace.liveness.carried(jaxpr, trace.live_outputs(eqn), loop.carry, m, trace.everything)

    def step(carry: Sequence[Value]) -> list[Value]:
        return trace.run(loop.body, (*consts, *carry, *slices), outs)

    carry, results = _fixpoint(trace, step, init, key)
    ys = [
        _stacked(y, shape_of(v), key, loop.length)
        for y, v in zip(results[m:], eqn.outvars[m:], strict=True)
    ]
    return [*carry, *ys]


def _sliced(x: Value, key: Hashable) -> Value:
    """What a loop sees of a value: a slice, and of a parameter's digits there which it is."""

    def part(node: Node) -> frozenset[Part]:
        axes = axes_of(node.dims[:1])
        return node.parts | {Part(key, axes, node.dims[0])} if axes else node.parts

    moved = x.plain().moved(lambda dims: dims[1:], x.shape[1:])
    terms = tuple(
        t._replace(
            nodes=tuple(
                n._replace(parts=part(m)) for n, m in zip(t.nodes, before.nodes, strict=True)
            )
        )
        for t, before in zip(moved.terms, x.terms, strict=True)
    )
    echoes = regrouped(
        (
            e._replace(
                dims=e.dims[1:],
                rows=e.rows[1:],
                data=None if e.data is None else e.data[1:],
                others=None if e.others is None else e.others[1:],
                cut=e.cut | axes_of(e.dims[:1]),
                parts=e.parts
                | ({Part(key, axes_of(e.dims[:1]))} if axes_of(e.dims[:1]) else set()),
            ),
            params,
        )
        for e, params in x.echoes.items()
    )
    return replace(moved, terms=terms, echoes=echoes)


def _fixpoint(
    trace: Any, step: Any, init: Sequence[Value], key: Hashable
) -> tuple[list[Value], list[Value]]:
    """What is known of carried values after any number of steps; uses are those of the last pass.

    Args:
      trace: the walk, which records uses.
      step: from the carried values to the results of the body, of which they are the first.
      init: the carried values before the first step.
      key: identifies the loop.

    Returns:
      The carried values before or after any step, and the results of one more step.
    """
    n = len(init)
    init = carry = [replace(v, loops=v.loops | {key}) for v in init]
    for _ in range(_MOST_PASSES):
        with trace.not_recording():
            after = step(carry)[:n]
            again = [join(trace, pair) for pair in zip(carry, after, strict=True)]
        if _equal(again, carry):
            results = step(carry)
            for pair in zip(init, results[:n], strict=True):
                join(trace, pair)  # records what becomes of parameters that are carried
            before = [{part for t in v.terms for m in t.nodes for part in m.parts} for v in init]
            seen = functools.reduce(operator.or_, [v.seen for v in init], 0)
            summed = [
                _summed_by_loop(trace, value, parts, key, seen)
                for value, parts in zip(carry, before, strict=True)
            ]
            return summed, results
        carry = again
    for value in carry:
        trace.refuse_all(value, "it is changed in every step of a loop")
    return [v.without_gradient() for v in carry], [v.without_gradient() for v in step(carry)]


def _equal(a: Sequence[Value], b: Sequence[Value]) -> bool:
    return all(
        replace(x, terms=()) == replace(y, terms=()) and set(x.terms) == set(y.terms)
        for x, y in zip(a, b, strict=True)
    )


def _summed_by_loop(trace: Any, value: Value, before: set[Part], key: Any, seen: int) -> Value:
    """A product of data and a slice that is added up by the loop is a contraction in disguise.

    In a residual network with a scale for each layer the product is one with what is carried.

    Args:
      trace: the walk, which records uses.
      value: what is carried.
      before: the slices that were in it before the loop.
      key: identifies the loop.
      seen: the parameters that anything carried was computed from before the loop.
    """
    terms, echoes = [], list(value.echoes.items())
    for e, params in value.echoes.items():
        if any(part.key == key or _within(part.key, key) for part in e.parts):
            for p in params:
                if not (e.seen & ~seen) >> p & 1 or key not in e.loops:
                    why = "products of several of its slices with data are added up by a loop"
                    trace.refuse(p, why)
    for t in value.terms:
        new = {
            part
            for n in t.nodes
            for part in n.parts - before
            if part.key == key or _within(part.key, key)
        }
        if new and t.data is None:
            t = t._replace(unsure="its slices are added up by a loop")
        if not new or t.data is None:
            terms.append(t)
            continue
        alone = NONE.union(*[own_axes(n) - met(n.dims, t.data) for n in t.nodes])
        sliced = [n for n in t.nodes if n.parts & new]
        residual = all((t.seen & ~seen) >> n.param & 1 for n in sliced)
        if key in t.loops and residual and not alone:
            for n in t.nodes:
                trace.use(n.param, "elementwise")
            continue
        (part, *others), (node, *more) = new, t.nodes
        whole = not more and is_all(trace, node, (part.dim,), part.axes) and part.key == key
        itself = t.seen >> node.param & 1
        if others or more or not whole or t.bent or itself or t.rows is not None:
            for n in t.nodes:
                trace.refuse(n.param, "its slices are multiplied by data and added up by a loop")
        else:
            echoes.append(contracted(trace, t, part.axes))
    return replace(value, terms=tuple(terms), echoes=regrouped(echoes))


def _within(key: Any, loop: Any) -> bool:
    """Whether a slice at an unknown place was taken inside a loop."""
    start = key[0] if isinstance(key, tuple) else None
    path = start[1] if isinstance(start, tuple) and start[0] == "slice" else None
    return path is not None and path[: len(loop[1])] == loop[1]


def _stacked(y: Value, shape: Shape, key: Hashable, length: int) -> Value:
    """The results of all steps, one after another."""
    along = (Factor(length, VARYING, None),) if length > 1 else ()

    def repeated(dims: Dims) -> Dims:
        return (*foreign((length,)), *dims)

    def node(before: Node) -> Node:
        here = [part for part in before.parts if part.key == key]
        dim = here[0].dim if len(here) == 1 else lost(length, NONE.union(*[p.axes for p in here]))
        return Node(before.param, (dim, *before.dims), before.parts - set(here))

    def varied(dims: Dims | None) -> Dims | None:
        return None if dims is None else (along, *dims)

    moved = y.plain().moved(repeated, shape)
    terms = tuple(
        t._replace(
            nodes=tuple(node(n) for n in before.nodes),
            data=varied(before.data),
            rows=varied(before.rows),
            last=varied(before.last),
            picked=varied(before.picked),
        )
        for t, before in zip(moved.terms, y.terms, strict=True)
    )
    echoes = regrouped(
        (
            e._replace(
                dims=repeated(e.dims),
                rows=(along, *e.rows),
                data=varied(e.data),
                others=varied(e.others),
                parts=frozenset(part for part in e.parts if part.key != key),
            ),
            params,
        )
        for e, params in y.echoes.items()
    )
    return replace(moved, varies=(along, *y.varies), terms=terms, echoes=echoes)


def while_(trace: Any, eqn: Any, *values: Value) -> list[Value]:
    """A loop that ends on a condition, through which no gradient flows."""
    loop = jaxprs.while_loop(eqn)
    n, m = loop.n_cond, loop.n_body
    consts, init = values[n : n + m], values[n + m :]
    outs = trace.liveness.carried(
        loop.body.jaxpr, trace.live_outputs(eqn), slice(m, None), len(init), trace.everything
    )

    def step(carry: Sequence[Value]) -> list[Value]:
        return trace.run(loop.body, (*consts, *carry), outs)

    return _fixpoint(trace, step, init, ("loop", trace.path))[0]


def cond(trace: Any, eqn: Any, which: Value, *values: Value) -> list[Value]:
    """A choice of branch; a parameter that data chooses is gated by it."""
    outer, results = trace.path, []
    for i, branch in enumerate(jaxprs.branches(eqn)):
        trace.path = (*outer, i)
        results.append(trace.run(branch, values, trace.live_outputs(eqn)))
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
