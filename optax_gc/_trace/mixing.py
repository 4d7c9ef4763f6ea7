"""What becomes of a parameter's image when it is combined element by element with others.

The heart of it is `combine`: whether a parameter that meets data there stays a weight (a gate,
a mask, modulation) or is a bias or a scale depends on which axes each of the two is repeated along,
so that is what gets written into the parameter's tag.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

from .provenance import (
    NONE,
    Dims,
    Kind,
    Shape,
    Spent,
    Tag,
    Use,
    Value,
    axes_of,
    foreign,
    has_axes,
    lost,
    overlay,
    repeats,
)


def shape_of(var: Any) -> Shape:
    """The shape of a variable; empty for what has none, such as a token."""
    return tuple(getattr(var.aval, "shape", ()))


def aligned(value: Value, shape: Shape) -> Value:
    """Repeats a scalar, or axes of length 1, up to `shape`."""
    if value.shape == shape:
        return value

    def stretch(dims: Dims) -> Dims:
        if len(value.shape) != len(shape):
            return foreign(shape)
        sizes = zip(dims, value.shape, shape, strict=True)
        return tuple(dim if old == new else foreign((new,))[0] for dim, old, new in sizes)

    return value.moved(stretch, shape)


def mix(tag: Tag, how: Iterable[str], data: Dims, loops: frozenset[int] = frozenset()) -> Tag:
    """Notes that data varying along `data`, carried by `loops`, met the parameter."""
    shared, repeated = set(tag.shared), tag.repeated
    for dim, with_data in zip(tag.dims, data, strict=True):
        if not has_axes(with_data):
            continue
        if len(dim) == len(with_data) and all(
            f.size == g.size for f, g in zip(dim, with_data, strict=True)
        ):
            met = [f for f, g in zip(dim, with_data, strict=True) if g.axes]
        else:
            met = list(dim)
            # Unless the data varies along every digit, it is not known to repeat the parameter.
            if repeats((with_data,)):
                met = [f for f in dim if f.axes]
        shared |= axes_of((met,))
        repeated |= repeats((met,))
    return replace(
        tag,
        mixed=tag.mixed | frozenset(how),
        shared=frozenset(shared),
        repeated=repeated,
        loops=tag.loops | loops,
    )


def merge(trace: Any, p: int, a: Tag, b: Tag, product: bool) -> Tag:
    """One image of a parameter from two that are combined position by position.

    A statistic of the parameter (a mean, a norm) leaves the image as it is: dividing a weight by
    its own norm does not change what it is contracted over.
    """
    dims, axes = overlay(a.dims, b.dims), a.axes | b.axes
    unexplained = (axes - a.axes - a.reduced) | (axes - b.axes - b.reduced)
    a_is_stat, b_is_stat = (bool(t.reduced & o.axes) for t, o in ((a, b), (b, a)))
    if a.parts != b.parts:
        if "mul" in a.mixed & b.mixed:
            why = "several of its slices are multiplied by data and added up"
            trace.record(Use(p, "refused", trace.where, why=why))
        elif not (a.mixed and b.mixed):
            unexplained |= axes
    if unexplained:
        dims = tuple(lost(math.prod(f.size for f in dim), axes_of((dim,))) for dim in dims)
    absorbed_a = not a.reduced or a.reduced <= b.axes - b.reduced
    absorbed_b = not b.reduced or b.reduced <= a.axes - a.reduced
    none: frozenset[Use] = frozenset()
    pending = (none if absorbed_a else a.pending) | (none if absorbed_b else b.pending)
    squared = product and bool(a.mixed or b.mixed) and not (a_is_stat or b_is_stat)
    return Tag(
        dims=dims,
        mixed=a.mixed | b.mixed,
        shared=a.shared | b.shared,
        repeated=a.repeated and b.repeated if a.mixed and b.mixed else a.repeated or b.repeated,
        nonlinear=squared or (a.nonlinear and not a_is_stat) or (b.nonlinear and not b_is_stat),
        parts=a.parts | b.parts,
        reduced=(NONE if absorbed_a else a.reduced) | (NONE if absorbed_b else b.reduced),
        pending=pending,
        lookup=a.lookup or b.lookup,
        loops=a.loops & b.loops if a.mixed and b.mixed else a.loops | b.loops,
    )


def combine(
    trace: Any, values: Sequence[Value], shape: Shape, how: Sequence[str], linear: Sequence[bool]
) -> Value:
    """Combines values position by position.

    Args:
      trace: the walk, which records uses.
      values: the operands.
      shape: of the result.
      how: what each operand does to a parameter in another: "mul", "add" or "select" it.
      linear: whether the result is linear in each operand.
    """
    values = [aligned(v, shape) for v in values]
    product = "mul" in how
    kind = max((v.kind for v in values), default=Kind.CONST)
    tags: dict[int, Tag] = {}
    for p in sorted({p for v in values for p in v.tags}):
        tag, bent = None, False
        for v, is_linear in zip(values, linear, strict=True):
            if p in v.tags:
                t = v.tags[p]
                bent = bent or not is_linear
                tag = t if tag is None else merge(trace, p, tag, t, product or not all(linear))
        assert tag is not None
        for v, effect in zip(values, how, strict=True):
            if v.kind == Kind.DATA and p not in v.tags:
                effects = (effect, "backward") if trace.backward else (effect,)
                tag = mix(tag, effects, v.variation(p), v.loops)
        if "add" in how and not tag.reduced and any(p in v.spent for v in values):
            trace.record(Use(p, "elementwise", trace.where))  # added to a product of its own
        if tag.mixed and bent and not tag.nonlinear:
            tag = replace(tag, nonlinear=True)
        if _is_settled(trace, p, tag):
            trace.settle(p, tag, values[0])
        else:
            tags[p] = tag
    varies = foreign(shape)
    for v in values:
        varies = overlay(varies, v.varies)
    made_of = [v for v in values if v.kind == Kind.PARAM and not _is_vector(v)]
    # A weight that a product is added to, or divided by, is no product.
    product_only = bool(made_of) and all(v.product for v in made_of)
    spent = _spent(values, shape, product, linear)
    return Value(
        shape,
        kind,
        tags,
        spent,
        varies,
        product=product_only,
        with_product=any(v.with_product for v in values),
        loops=frozenset().union(*(v.loops for v in values)),
        active=product_only and _is_active(values, product, linear),
    )


def _is_settled(trace: Any, p: int, tag: Tag) -> bool:
    """Whether this is a vector added to many rows, which can be nothing but a bias."""
    return (
        tag.mixed == {"add"}
        and tag.repeated
        and not (tag.reduced or tag.lookup)
        and sum(size > 1 for size in trace.shapes[p]) <= 1
    )


def _is_vector(value: Value) -> bool:
    """Whether a parameter is repeated along some dimension, as a bias or a scale is along rows."""
    return value.kind == Kind.PARAM and not value.product and bool(value.tags) and not _fills(value)


def _fills(value: Value) -> bool:
    """Whether a value varies along all its dimensions; a statistic of it does not."""
    dims = zip(value.shape, value.variation(), strict=True)
    return all(size == 1 or has_axes(dim) for size, dim in dims)


def _is_active(values: Sequence[Value], product: bool, linear: Sequence[bool]) -> bool:
    """Whether a product of parameters has been bent or biased here, or before.

    Being divided by its own norm does not count.
    """
    if not product and any(_is_vector(v) for v in values):
        return True
    return any(
        v.product and (v.active or not is_linear) and _fills(v)
        for v, is_linear in zip(values, linear, strict=True)
    )


def _spent(
    values: Sequence[Value], shape: Shape, product: bool, linear: Sequence[bool]
) -> dict[int, Spent]:
    result: dict[int, Spent] = {}
    through = [v for v, is_linear in zip(values, linear, strict=True) if not is_linear]
    bent = {p for v in through if v.spent and _fills(v) for p in v.spent}
    for p in {p for v in values for p in v.spent} - bent:
        # Scaled by its own statistic, a weight made from the parameter is still one.
        found = [v.spent[p] for v in values if p in v.spent and (not product or _fills(v))]
        if not found or (product and len(found) > 1):
            continue  # quadratic in the parameter: no longer such a weight
        dims, gated = found[0].dims, any(s.gated for s in found)
        for s in found[1:]:
            dims = overlay(dims, s.dims)
        for v in values:
            if product and v.kind == Kind.DATA and p not in v.spent:
                met = mix(Tag(dims), (), v.variation(p)).shared
                gated = gated or bool(met and axes_of(dims) - met)
        fan_in = frozenset().union(*(s.fan_in for s in found))
        result[p] = Spent(dims, fan_in, gated, any(s.repeated for s in found))
    return result
