"""What a sum over a parameter's own axes is: a contraction spelled as a product, or a statistic."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

from .provenance import (
    NONE,
    AxisSet,
    Dims,
    Shape,
    Spent,
    Use,
    Value,
    axes_of,
    is_whole,
)


def reduced(
    trace: Any,
    value: Value,
    over: Sequence[int],
    keep: Callable[[Dims], Dims],
    shape: Shape,
    linear: bool,
) -> Value:
    """Sums (or otherwise reduces, or shuffles) along the dimensions `over`.

    Args:
      trace: the walk, which records uses.
      value: what is reduced.
      over: the dimensions.
      keep: what remains of the dimensions.
      shape: of the result.
      linear: whether it is a sum.
    """
    tags, spent = {}, {}
    for p, s in value.spent.items():
        gone = axes_of(s.dims[d] for d in over)
        stay = axes_of(d for i, d in enumerate(s.dims) if i not in over)
        if s.gated and gone and stay:
            trace.record(generated(trace, p, s.fan_in, gone))
        elif linear:
            spent[p] = replace(s, dims=keep(s.dims))
    for p, tag in value.tags.items():
        gone = axes_of(tag.dims[d] for d in over)
        stay = axes_of(d for i, d in enumerate(tag.dims) if i not in over)
        image = replace(tag, dims=keep(tag.dims))
        if not gone:
            tags[p] = image
            continue
        alone = stay - gone - tag.shared
        whole = all(is_whole([tag.dims[d] for d in over], a, trace.shapes[p][a]) for a in gone)
        use = Use(
            p,
            "ambiguous",
            trace.where,
            gone if whole else NONE,
            stay,
            why="its product with data is summed: a dense layer, or a scale followed by a sum",
        )
        pending: frozenset[Use] = frozenset()
        if not tag.mixed:
            why = "reduced over its own axes and not combined with data"
            pending = frozenset({Use(p, "statistic", trace.where, gone, why=why)})
        elif "mul" in tag.mixed and linear and not tag.nonlinear:
            if alone and whole and not tag.reduced and tag.mixed <= {"mul", "select"}:
                trace.record(replace(use, role="weight", why="", batch=_rest(trace, p, gone, stay)))
                spent[p] = Spent(keep(tag.dims), gone)
                continue
            pending = frozenset({use})
        elif alone and ("mul" in tag.mixed or tag.nonlinear or not linear):
            pending = frozenset({use})
        tags[p] = replace(image, reduced=tag.reduced | gone, pending=tag.pending | pending)
    moved = replace(value, tags={}, spent={}, counts=None, one_hot=None).moved(keep, shape)
    return replace(moved, tags=tags, spent=spent)


def _rest(trace: Any, p: int, *used: AxisSet) -> AxisSet:
    axes = {a for a, n in enumerate(trace.shapes[p]) if n > 1}
    return frozenset(axes.difference(*used))


def generated(trace: Any, p: int, fan_in: AxisSet, again: AxisSet) -> Use:
    """The use of a parameter whose product is itself contracted as a weight is."""
    over, then = axes_text(fan_in), axes_text(again)
    why = f"its product over axes {over} is itself used as a weight, over {then}"
    return Use(p, "refused", trace.where, again, why=why)


def axes_text(axes: Iterable[int]) -> str:
    """Axes as people write them."""
    return str(tuple(sorted(axes)))
