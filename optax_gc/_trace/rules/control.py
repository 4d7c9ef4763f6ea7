"""Rules for operations with jaxprs inside: calls, loops, branches, custom derivatives."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from ..jaxprs import body, branches, loop, while_loop
from ..liveness import CALLS, CUSTOM_CALLS
from ..mixing import combine, mix, shape_of
from ..provenance import NONE, AxisSet, Dims, Factor, Kind, Shape, Value, axes_of, foreign, lost

_MOST_PASSES = 50


def call(trace: Any, eqn: Any, *values: Value) -> list[Value]:
    """A function called as it is: jit, remat."""
    jaxpr, consts = body(eqn)
    return trace.run(jaxpr, consts, values, trace.live_outputs(eqn))


def custom(trace: Any, eqn: Any, *values: Value) -> list[Value]:
    """A function with a derivative rule of its own, taken for what it computes.

    The rule may pass gradients where the body would not (rounding, integers), so all of the body
    counts.
    """
    jaxpr, consts = body(eqn)
    outs = trace.live_outputs(eqn)
    reached = trace.liveness.inputs(jaxpr, outs, True)
    for value, flag in zip(values, reached, strict=True):
        if any(outs) and not flag:
            trace.refuse_all(value, "a custom derivative may give it a gradient that its use hides")
    with trace.counting_everything():
        return trace.run(jaxpr, consts, values, outs)


def joined(trace: Any, values: Sequence[Value]) -> Value:
    """What is known of a value that may be any of `values`."""
    first, *others = values
    for other in others:
        if other == first:
            continue
        parts = {p: t.parts | other.tags[p].parts for p, t in first.tags.items() if p in other.tags}
        pair = [
            replace(v, tags={p: replace(t, parts=parts.get(p, t.parts)) for p, t in v.tags.items()})
            for v in (first, other)
        ]
        first = replace(
            combine(trace, pair, first.shape, ("add", "add"), (True, True)),
            product=first.product and other.product,
            active=first.active and other.active,
        )
    return first


def scan(trace: Any, eqn: Any, *values: Value) -> list[Value]:
    """A loop over the leading axis: layers, or time. What it slices there is a batch axis."""
    (jaxpr, constants), n, m, length, _ = loop(eqn)
    consts, init, xs = values[:n], values[n : n + m], values[n + m :]
    slices = [x.moved(lambda dims: dims[1:], x.shape[1:]) for x in xs]
    taken: dict[int, AxisSet] = {}
    for x in xs:
        for p, tag in x.tags.items():
            taken[p] = taken.get(p, NONE) | axes_of(tag.dims[:1])
    outs = trace.liveness.carried(
        jaxpr, trace.live_outputs(eqn), slice(n, n + m), m, trace.everything
    )

    def step(carry: Sequence[Value]) -> list[Value]:
        return trace.run(jaxpr, constants, (*consts, *carry, *slices), outs)

    carry, results = _fixpoint(trace, step, init, id(eqn), taken)
    ys = [
        _stacked(y, shape_of(v), taken, length)
        for y, v in zip(results[m:], eqn.outvars[m:], strict=True)
    ]
    return [*carry, *ys]


def _fixpoint(
    trace: Any, step: Any, init: Sequence[Value], loop: int, taken: dict[int, AxisSet]
) -> tuple[list[Value], list[Value]]:
    """What is known of carried values after any number of steps; uses are those of the last pass.

    Args:
      trace: the walk, which records uses.
      step: from the carried values to the results of the body, of which they are the first.
      init: the carried values before the first step.
      loop: identifies the loop.
      taken: the axes that the loop slices parameters along.

    Returns:
      The carried values before or after any step, and the results of one more step.
    """
    n = len(init)
    init = carry = [replace(v, loops=v.loops | {loop}) for v in init]
    for _ in range(_MOST_PASSES):
        with trace.not_recording():
            after = step(carry)[:n]
            again = [joined(trace, pair) for pair in zip(carry, after, strict=True)]
        if again == carry:
            results = step(carry)
            for pair in zip(init, results[:n], strict=True):
                joined(trace, pair)  # records what becomes of parameters that are carried
            for value in results[:n]:
                _refuse_sums_over_the_loop(trace, value, taken, loop)
            return carry, results
        carry = again
    for value in carry:
        trace.refuse_all(value, "it is changed in every step of a loop")
    return [v.without_gradient() for v in carry], [v.without_gradient() for v in step(carry)]


def _refuse_sums_over_the_loop(
    trace: Any, value: Value, taken: dict[int, AxisSet], loop: int
) -> None:
    """A product of data and a slice that is added up by the loop is a contraction in disguise.

    In a residual network with a scale for each layer the product is one with what is carried.
    """
    for p, tag in value.tags.items():
        residual = loop in tag.loops and not tag.axes - tag.shared
        sliced = taken.get(p) or tag.parts
        if sliced and "mul" in tag.mixed and not tag.nonlinear and not residual:
            trace.refuse(p, "its slices are multiplied by data and added up by a loop")


def _stacked(y: Value, shape: Shape, taken: dict[int, AxisSet], length: int) -> Value:
    def stack(dims: Dims) -> Dims:
        return (lost(length, axes_of(y.varies) and frozenset({0})), *dims)

    tags = {
        p: replace(t, dims=(lost(length, taken.get(p, NONE)), *t.dims)) for p, t in y.tags.items()
    }
    spent = {p: replace(s, dims=(*foreign((length,)), *s.dims)) for p, s in y.spent.items()}
    varies = ((Factor(length, frozenset({0})),), *y.varies)
    return replace(y, shape=shape, tags=tags, spent=spent, varies=varies, counts=None, one_hot=None)


def while_(trace: Any, eqn: Any, *values: Value) -> list[Value]:
    """A loop that ends on a condition, through which no gradient flows."""
    _, n, (jaxpr, constants), m = while_loop(eqn)
    consts, init = values[n : n + m], values[n + m :]
    outs = trace.liveness.carried(
        jaxpr, trace.live_outputs(eqn), slice(m, None), len(init), trace.everything
    )

    def step(carry: Sequence[Value]) -> list[Value]:
        return trace.run(jaxpr, constants, (*consts, *carry), outs)

    return _fixpoint(trace, step, init, id(eqn), {})[0]


def cond(trace: Any, eqn: Any, which: Value, *values: Value) -> list[Value]:
    """A choice of branch; a parameter that data chooses is gated by it."""
    results = [trace.run(b.jaxpr, b.consts, values, trace.live_outputs(eqn)) for b in branches(eqn)]
    chosen = [joined(trace, outs) for outs in zip(*results, strict=True)]
    if which.kind != Kind.DATA:
        return chosen
    return [
        replace(
            v,
            kind=Kind.DATA,
            tags={p: mix(t, ("mul",), foreign(v.shape)) for p, t in v.tags.items()},
        )
        for v in chosen
    ]


def shard_map(trace: Any, eqn: Any, *values: Value) -> list[Value]:
    """A function of shards. Of an axis that is sharded only a part is seen at a time."""
    jaxpr, consts = body(eqn)

    def local(value: Value, shape: Shape) -> Value:
        def shard(dims: Dims) -> Dims:
            sizes = zip(dims, value.shape, shape, strict=True)
            return tuple(dim if old == new else _shard(dim, new) for dim, old, new in sizes)

        return value.moved(shard, shape)

    inside = [local(v, shape_of(var)) for v, var in zip(values, jaxpr.invars, strict=True)]
    results = trace.run(jaxpr, consts, inside, trace.live_outputs(eqn))

    def whole(value: Value, shape: Shape) -> Value:
        def gather(dims: Dims) -> Dims:
            sizes = zip(dims, value.shape, shape, strict=True)
            return tuple(
                dim if old == new else lost(new, axes_of((dim,))) for dim, old, new in sizes
            )

        return value.moved(gather, shape)

    return [whole(v, shape_of(var)) for v, var in zip(results, eqn.outvars, strict=True)]


def _shard(dim: tuple[Factor, ...], size: int) -> tuple[Factor, ...]:
    if len(dim) == 1 and dim[0].stride is not None and size > 1:
        return (dim[0]._replace(size=size, whole=False),)
    return lost(size, axes_of((dim,)))


RULES = {
    **dict.fromkeys((name for name in CALLS if name != "shard_map"), call),
    **dict.fromkeys(CUSTOM_CALLS, custom),
    "scan": scan,
    "while": while_,
    "cond": cond,
    "shard_map": shard_map,
}
