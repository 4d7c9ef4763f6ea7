"""From the uses of a parameter to its axes, or to the reason why they cannot be told."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from .digits import NONE, AxisSet, Shape, long_axes
from .jaxprs import Derivative
from .reasons import Why, priority
from .values import Use

ROLES = {
    "weight": "contracted with data",
    "elementwise": "part of an activation: a bias, a scale, a position, an initial state",
    "scalar": "the same, but not repeated along data, which is evidence of nothing",
    "lookup": "indexed by data",
    "pooled": "summed by itself, then added to data or a scale of it; counts if no data tells more",
    "constant": "contracted with constants; counts if nothing else does",
    "statistic": "reduced over its own axes and not combined with data, such as a penalty",
    "returned": "a result of the function",
    "refused": "something that cannot be told",
}


_SUMMED = "weight", "constant"


class Verdict(NamedTuple):
    """What a parameter is.

    Attributes:
      axes: its fan-in; empty if it is no contracted weight, or if that cannot be told.
      how: what it is used as.
      where: the uses that this was read from.
      outputs: axes that index outputs.
      batch: axes along which there are independent copies: layers, experts, groups. Also those
        that index outputs and copies together.
      candidates: what its axes may be, if that cannot be told.
      refused: why it cannot be told; empty if it can.
    """

    axes: AxisSet = NONE
    how: str = ""
    where: tuple[str, ...] = ()
    outputs: AxisSet = NONE
    batch: AxisSet = NONE
    candidates: tuple[AxisSet, ...] = ()
    refused: str = ""


def verdicts(uses: Iterable[Use], shapes: Sequence[Shape]) -> list[Verdict]:
    """The verdict on each parameter.

    Args:
      uses: of all parameters.
      shapes: of each.
    """
    known: dict[int, list[Use]] = defaultdict(list)
    for use in sorted(uses, key=lambda u: (u.param, u.role, u.where, sorted(u.axes), u.why)):
        known[use.param].append(use)
    of = [_as_such(known[p]) for p in range(len(shapes))]
    fan_in = {
        p: {u.axes & long_axes(s) for u in of[p] if u.role == "weight"}
        for p, s in enumerate(shapes)
    }
    decided = {(p, axes) for p, found in fan_in.items() if len(found) == 1 for axes in found}
    return [_verdict(of[p], shape, decided) for p, shape in enumerate(shapes)]


def _as_such(uses: Sequence[Use]) -> Sequence[Use]:
    """The uses of a weight, without what derivatives of those make of its elements or outputs.

    A forward derivative contracts a weight as the function does, with data or constants. One that
    does not is of another function.
    """
    weights = {u.axes for u in uses if u.role == "weight"}
    least = min([u.derivative for u in uses if u.role == "weight"], default=Derivative.BACKWARD)
    contracted = {u.derivative for u in uses if u.role in _SUMMED and u.axes in weights}

    def counts(u: Use) -> bool:
        of_others = u.derivative not in contracted or u.role in ("weight", "lookup")
        return u.derivative <= least or (of_others and not u.is_backward)

    return [u for u in uses if counts(u)]


def _verdict(uses: Sequence[Use], shape: Shape, decided: set[tuple[int, AxisSet]]) -> Verdict:
    by: dict[str, list[Use]] = {role: [] for role in ROLES}
    for u in uses:
        by[u.role].append(u)
    long = long_axes(shape)

    def refuse(why: str, because: Sequence[Use]) -> Verdict:
        at = [*because, *by["weight"]]
        axes = {u.axes & long for u in at if not u.is_backward} - {NONE}  # a gradient's are others
        candidates = tuple(sorted(axes, key=sorted))
        return Verdict(candidates=candidates, refused=why, where=_where(at))

    def answer(because: Sequence[Use], how: str) -> Verdict:
        axes = frozenset().union(*(u.axes for u in because))
        # What is a batch in part, as the outputs of a grouped convolution are, is a batch.
        batch = frozenset().union(*(u.batch for u in because)) - axes
        outputs = frozenset().union(*(u.outputs for u in because)) - axes - batch
        # Of what constants are contracted with, all else are outputs.
        outputs |= long - axes - batch
        return Verdict(axes, how, _where(because), outputs, batch)

    if uses and not long:
        return Verdict(how="elementwise only", where=_where(uses))
    weights, none = by["weight"], [*by["lookup"], *by["elementwise"]]
    fan_in = {u.axes & long for u in weights}
    for use in sorted(by["refused"], key=lambda u: priority(u.why)):
        activation = not weights and use.partners & decided
        # A scale inside a nonlinear function is one, wherever else it may be a weight, and what is
        # left of an einsum depends on its order.
        firm = use.why in (Why.BENT_PRODUCT, Why.APART)
        agrees = not firm and {use.axes & long} == fan_in
        if not (activation or agrees):
            return refuse(use.why, by["refused"])
    if not weights and by["refused"]:
        return Verdict(how="activation", where=_where(by["refused"]))
    if weights:
        if all(u.is_backward for u in weights):
            return refuse(Why.BACKWARD, weights)
        if len(fan_in) > 1:
            texts = " and ".join(sorted(str(tuple(sorted(axes))) for axes in fan_in))
            return refuse(f"conflict: contracted over axes {texts}", weights)
        # Rows that are contracted as the weight is are units of it, unless the table feeds itself.
        fed = any(u.fed for u in [*weights, *by["lookup"]])
        rows = [u for u in by["lookup"] if fed or {u.axes & long} != fan_in]
        if rows and not all(u.chosen for u in weights):
            at = _where([*weights, *by["lookup"]])
            return Verdict(how="tied", where=at, candidates=(answer(weights, "tied").axes,))
        # Chosen rows of members' tables look like weights, but the table meets what they feed.
        if rows or by["elementwise"] or (fed and len({u.chosen for u in weights}) > 1):
            return refuse(Why.BOTH, none)
        how = "conv" if all("conv" in u.where for u in weights) else "dense"
        return answer(weights, how)
    if (at := [*none, *by["scalar"], *by["pooled"]]) and all(u.is_backward for u in at):
        return refuse(Why.BACKWARD, at)
    if none:
        how = "lookup" if by["lookup"] else "elementwise only"
        return Verdict(how=how, where=_where(none))
    # Equal constants pool a table, or are the input of a layer: what they meet next tells.
    if by["constant"] and not by["pooled"]:
        if len({u.axes & long for u in by["constant"]}) > 1:
            return refuse(Why.CONSTANTS, by["constant"])
        return answer(by["constant"], "dense")
    if by["returned"] and not (by["scalar"] or by["pooled"]) and len(long) > 1:
        return refuse(Why.RETURNED, by["returned"])
    if alone := [*by["scalar"], *by["pooled"], *by["statistic"], *by["returned"]]:
        return Verdict(how="elementwise only", where=_where(alone))
    return Verdict(how="no gradient reaches it")


def _where(uses: Iterable[Use]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(u.where for u in uses))
