"""A contraction: which of its two operands is the weight, if that can be told."""

from dataclasses import replace
from typing import Any

from .mixing import combine, merge
from .operand import Operand
from .provenance import Kind, Shape, Spent, Tag, Value, foreign, overlay, own
from .sides import Side, is_activation, is_one_hot


def contract(trace: Any, a: Side, b: Side, shape: Shape) -> Value:
    """The product of two operands, and the uses that it makes of parameters in them."""
    if all(s.value.shape[d] == 1 for s in (a, b) for d in s.contracted):
        a, b = _without_fan_in(trace, a, b), _without_fan_in(trace, b, a)
        both = [s.value.moved(lambda dims, s=s: s.project(dims, shape), shape) for s in (a, b)]
        return replace(
            combine(trace, both, shape, ("mul", "mul"), (True, True)),
            product=True,
            with_product=True,
        )
    kind = max(a.value.kind, b.value.kind)
    roles = _roles(a, b)
    if "weight" in roles:
        kind = Kind.DATA
    results = [
        Operand(trace, side, other, shape, role).result()
        for side, other, role in ((a, b, roles[0]), (b, a, roles[1]))
    ]
    tags: dict[int, Tag] = {}
    spent: dict[int, Spent] = {}
    for result_tags, result_spent in results:
        for p, tag in result_tags.items():
            tags[p] = merge(trace, p, tags[p], tag, product=True) if p in tags else tag
        for p, s in result_spent.items():
            if p in spent:
                del spent[p]  # quadratic in the parameter: no longer a weight made from it
            else:
                spent[p] = s
    varies, loops = foreign(shape), a.value.loops | b.value.loops
    for side, role in zip((a, b), roles, strict=True):
        # A learned activation that is repeated along the batch stands for data there.
        learned = role == "activation" and side.value.kind == Kind.PARAM
        dims = own(side.value.shape) if learned else side.value.variation()
        varies = overlay(varies, side.project(dims, shape))
    return Value(shape, kind, tags, spent, varies, product=True, with_product=True, loops=loops)


def _without_fan_in(trace: Any, side: Side, other: Side) -> Side:
    """A side less the weights in it that are contracted with data over axes of length 1."""
    if other.value.kind != Kind.DATA or side.value.kind != Kind.PARAM:
        return side
    tags = dict(side.value.tags)
    for p, tag in side.value.tags.items():
        if any(f.axes for d in side.contracted for f in tag.dims[d]):
            trace.settle(p, tags.pop(p), side.value)
    return replace(side, value=replace(side.value, tags=tags))


def _roles(a: Side, b: Side) -> tuple[str, str]:
    """What each operand is to the parameters in it.

    weight: contracted with an activation; activation: contracted with a weight; data: contracted
    with data; constant: contracted with constants; pair: contracted with another parameter, and it
    cannot be told which of the two is the weight.
    """
    hot = [is_one_hot(s) for s in (a, b)]
    if any(hot):
        return ("lookup", "lookup")
    kinds = a.value.kind, b.value.kind
    if kinds == (Kind.PARAM, Kind.PARAM):
        active = is_activation(a), is_activation(b)
        if active[0] == active[1]:
            return ("pair", "pair")
        return ("activation", "weight") if active[0] else ("weight", "activation")
    if set(kinds) == {Kind.PARAM, Kind.DATA}:
        weight = a if kinds[0] == Kind.PARAM else b
        if weight.value.active:
            return ("activation", "data") if weight is a else ("data", "activation")
        if any(weight.roles(t.dims)[0] for t in weight.value.tags.values()):
            return ("weight", "activation") if weight is a else ("activation", "weight")
        return ("scale", "data") if weight is a else ("data", "scale")
    if kinds == (Kind.DATA, Kind.DATA):
        return ("data", "data")
    return ("constant", "constant")
