"""What a contraction uses the parameters in its operands for.

`contract` decides which of the two operands is the weight, if that can be told, and `_Operand` what
that makes of each parameter: a weight with its fan-in, part of an activation, or something that has
to be refused.
"""

from dataclasses import dataclass, replace
from typing import Any

from .mixing import combine, merge, mix
from .provenance import (
    NONE,
    AxisSet,
    Dims,
    Kind,
    Shape,
    Spent,
    Tag,
    Use,
    Value,
    axes_of,
    foreign,
    is_whole,
    lost,
    overlay,
    own,
    repeats,
)
from .summing import axes_text, generated


@dataclass(frozen=True)
class Side:
    """One operand of a contraction."""

    value: Value
    contracted: tuple[int, ...]
    batch: tuple[int, ...]  # those that the other operand has too
    onto: tuple[int | None, ...]  # for each dimension of the result, the operand's

    @property
    def free(self) -> tuple[int, ...]:
        """The dimensions that only the result shares."""
        used = {*self.contracted, *self.batch}
        return tuple(d for d in range(len(self.value.shape)) if d not in used)

    def project(self, dims: Dims, shape: Shape) -> Dims:
        """The dimensions of the result, of `shape`, as this operand has them."""
        result = []
        for size, d in zip(shape, self.onto, strict=True):
            if d is None:
                result.append(foreign((size,))[0])
            elif self.value.shape[d] == size:
                result.append(dims[d])
            else:  # a convolution slides along it
                result.append(lost(size, axes_of((dims[d],))))
        return tuple(result)

    def roles(self, dims: Dims) -> tuple[AxisSet, AxisSet, AxisSet]:
        """Axes that are contracted, free, and batch."""
        of = (self.contracted, self.free, self.batch)
        contracted, free, batch = (axes_of(dims[d] for d in part) for part in of)
        return contracted, free, batch


def contract(trace: Any, a: Side, b: Side, shape: Shape) -> Value:
    """The product of two operands, and the uses that it makes of parameters in them."""
    if all(s.value.shape[d] == 1 for s in (a, b) for d in s.contracted):
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
        _Operand(trace, side, other, shape, role).result()
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


def _roles(a: Side, b: Side) -> tuple[str, str]:
    """What each operand is to the parameters in it.

    weight: contracted with an activation; activation: contracted with a weight; data: contracted
    with data; constant: contracted with constants; pair: contracted with another parameter, and it
    cannot be told which of the two is the weight.
    """
    hot = [_is_one_hot(s) for s in (a, b)]
    if any(hot):
        return ("lookup", "lookup")
    kinds = a.value.kind, b.value.kind
    if kinds == (Kind.PARAM, Kind.PARAM):
        active = _is_activation(a), _is_activation(b)
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


def _is_one_hot(side: Side) -> bool:
    dims = side.value.one_hot
    return dims is not None and all(axes_of((dims[d],)) for d in side.contracted)


def _is_activation(side: Side) -> bool:
    """Whether a value made of parameters alone is surely no weight.

    It is not if it is a product that went through a nonlinearity or had a bias vector added, nor
    if it is repeated along a free axis that no parameter owns: the batch.
    """
    images = [t.dims for t in side.value.tags.values()]
    images += [s.dims for s in side.value.spent.values()]
    return side.value.active or any(
        images and side.value.shape[d] > 1 and not axes_of(dims[d] for dims in images)
        for d in side.free
    )


class _Operand:
    """One operand's parameters: what the contraction uses them for, and what is left of them."""

    def __init__(self, trace: Any, side: Side, other: Side, shape: Shape, role: str) -> None:
        self.trace, self.side, self.other, self.shape, self.role = trace, side, other, shape, role
        self.tags: dict[int, Tag] = {}
        self.spent: dict[int, Spent] = {}

    def result(self) -> tuple[dict[int, Tag], dict[int, Spent]]:
        """The parameters still to be used in the product, and those that it has used."""
        for p, spent in self.side.value.spent.items():
            gone, free, _ = self.side.roles(spent.dims)
            if gone and free and self.role == "data" and p not in self.other.value.spent:
                self.trace.record(generated(self.trace, p, spent.fan_in, gone))
            else:
                self.spent[p] = replace(spent, dims=self.side.project(spent.dims, self.shape))
        for p, tag in self.side.value.tags.items():
            gone, free, _ = self.side.roles(tag.dims)
            getattr(self, f"_{self.role}")(p, tag, gone, free)
        return self.tags, self.spent

    def _keep(self, p: int, tag: Tag, **changes: Any) -> None:
        self.tags[p] = replace(tag, dims=self.side.project(tag.dims, self.shape), **changes)

    def _mixed(self, p: int, tag: Tag) -> None:
        """Not contracted over axes of its own: the result is scaled by it, or it by data."""
        image = replace(tag, dims=self.side.project(tag.dims, self.shape))
        for s in (self.side, self.other):
            if s is self.other or self.role == "weight":
                variation = s.project(s.value.variation(p), self.shape)
                image = mix(image, ("mul",), variation, s.value.loops)
        self.tags[p] = image

    def _is_whole(self, p: int, tag: Tag, axes: AxisSet) -> bool:
        dims = [tag.dims[d] for d in self.side.contracted]
        return all(is_whole(dims, a, self.trace.shapes[p][a]) for a in axes)

    def _use(self, p: int, tag: Tag, role: str, gone: AxisSet, why: str = "") -> Use:
        _, free, batch = self.side.roles(tag.dims)
        missing = {a for a, n in enumerate(self.trace.shapes[p]) if n > 1} - tag.axes
        axes = gone if self._is_whole(p, tag, gone) else NONE
        # Axes of length 1 have no role, yet among contracted ones they belong to the fan-in.
        ones = {a for d in self.side.contracted for f in tag.dims[d] for a in f.axes}
        axes = axes and axes | ones
        return Use(p, role, self.trace.where, axes, free, (batch | missing) - gone, why)

    def _spend(self, p: int, tag: Tag, gone: AxisSet) -> None:
        """This is what the parameter is for: of its axes only the outputs are left."""
        self.trace.record(self._use(p, tag, "weight", gone))
        dims = list(foreign(self.side.value.shape))
        for d in self.side.free:
            dims[d] = tag.dims[d]
        self.spent[p] = Spent(self.side.project(tuple(dims), self.shape), gone)

    def _weight(self, p: int, tag: Tag, gone: AxisSet, free: AxisSet) -> None:
        if not gone:
            self._mixed(p, tag)
        elif not self._is_whole(p, tag, gone):
            why = f"only part of axes {axes_text(gone)} is contracted, or in an order that was lost"
            self.trace.record(self._use(p, tag, "refused", gone, why))
        elif tag.reduced or tag.pending:
            why = "contracted with data after it was contracted with constants or parameters"
            self.trace.expose(p, tag, self.side.value)
            self.trace.record(self._use(p, tag, "ambiguous", gone, why))
        elif self.side.value.with_product and (not free or repeats(tag.dims)):
            why = "added to a product of parameters: a bias, or a weight and an update of it"
            self.trace.record(self._use(p, tag, "ambiguous", gone, why))
        elif repeats(tag.dims[d] for d in (*self.side.contracted, *self.side.free)):
            why = "it is repeated along another axis of the weight that it is part of"
            self.trace.record(self._use(p, tag, "ambiguous", gone, why))
        else:
            self._spend(p, tag, gone)

    def _activation(self, p: int, tag: Tag, gone: AxisSet, free: AxisSet) -> None:
        self.trace.settle(p, tag, self.side.value)

    def _scale(self, p: int, tag: Tag, gone: AxisSet, free: AxisSet) -> None:
        self._mixed(p, tag)

    def _data(self, p: int, tag: Tag, gone: AxisSet, free: AxisSet) -> None:
        if not gone:
            self._mixed(p, tag)
            return
        alone = free - tag.shared
        plain = tag.mixed <= {"mul", "select"} and not (tag.nonlinear or tag.reduced)
        if plain and alone and not tag.pending and self._is_whole(p, tag, gone):
            self._spend(p, tag, gone)
        elif tag.repeated and tag.nonlinear and "add" in tag.mixed:
            self.trace.settle(p, tag, self.side.value)  # a bias on attention logits
        elif not free and (tag.repeated or tag.lookup):
            self.trace.settle(p, tag, self.side.value)
        else:
            why = "combined with data, then contracted with data: a gated weight or an activation"
            self.trace.record(self._use(p, tag, "ambiguous", gone, why))
            self.trace.expose(p, tag, self.side.value)

    def _lookup(self, p: int, tag: Tag, gone: AxisSet, free: AxisSet) -> None:
        if _is_one_hot(self.side):
            self.trace.settle(p, tag, self.side.value)
            return
        how = {"select"} if self.other.value.kind == Kind.DATA else set()
        image = mix(
            replace(tag, dims=self.side.project(tag.dims, self.shape)), how, foreign(self.shape)
        )
        self.tags[p] = replace(
            image,
            lookup=bool(gone) or tag.lookup,
            reduced=tag.reduced | (gone if tag.mixed else NONE),
        )

    def _constant(self, p: int, tag: Tag, gone: AxisSet, free: AxisSet) -> None:
        if not gone:
            self._keep(p, tag)
        elif tag.mixed and tag.repeated and not free:
            self.trace.settle(p, tag, self.side.value)
        else:
            role = "ambiguous" if tag.mixed or not self._is_whole(p, tag, gone) else "constant"
            why = "contracted with constants"
            use = self._use(p, tag, role, gone, why)
            pending = tag.pending if tag.reduced else tag.pending | {use}
            self._keep(p, tag, reduced=tag.reduced | gone, pending=pending)

    def _pair(self, p: int, tag: Tag, gone: AxisSet, free: AxisSet) -> None:
        if not gone:
            self._keep(p, tag)
            return
        partners = tuple(
            (q, contracted)
            for q, t in self.other.value.tags.items()
            if (contracted := self.other.roles(t.dims)[0])
        )
        why = "contracted with another parameter, and either may be the weight"
        use = replace(self._use(p, tag, "pair", gone, why), partners=partners)
        pending = tag.pending | {use}
        self._keep(p, tag, reduced=tag.reduced | gone, pending=pending)
