"""What a contraction uses the parameters in one operand for.

Each is a weight with its fan-in, part of an activation, or something that has to be refused.
"""

from dataclasses import replace
from typing import Any

from .mixing import mix
from .provenance import (
    NONE,
    AxisSet,
    Dims,
    Kind,
    Shape,
    Spent,
    Tag,
    Use,
    axes_of,
    foreign,
    is_whole,
    lost,
    repeats,
)
from .sides import Side, is_one_hot
from .summing import axes_text, generated


class Operand:
    """One operand's parameters: what the contraction uses them for, and what is left of them."""

    def __init__(self, trace: Any, side: Side, other: Side, shape: Shape, role: str) -> None:
        self.trace, self.side, self.other, self.shape, self.role = trace, side, other, shape, role
        self.tags: dict[int, Tag] = {}
        self.spent: dict[int, Spent] = {}

    def result(self) -> tuple[dict[int, Tag], dict[int, Spent]]:
        """The parameters still to be used in the product, and those that it has used."""
        for p, spent in self.side.value.spent.items():
            gone, free, _ = self.side.roles(spent.dims)
            other = self.other.value
            output = (free or self._one_output(p)) and not self._has_rows(
                spent.dims, self.side.free
            )
            # Where constants stand for data, the first of two that it meets may be part of it.
            constant = self.trace.constants_are_data and not (other.tags or other.spent)
            # What a learned activation was taken to be repeated along was no batch after all.
            no_batch = spent.repeated and not self._has_rows(spent.dims, self.side.batch)
            unclear = output or constant or no_batch
            if gone and unclear and self.role == "data" and p not in other.spent:
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

    def _one_output(self, p: int) -> bool:
        """Whether a free dimension of length 1 may be an axis of the parameter: a single output."""
        free = [self.side.value.shape[d] for d in self.side.free]
        return 1 in free and 1 in self.trace.shapes[p]

    def _has_rows(self, dims: Dims, among: tuple[int, ...]) -> bool:
        """Whether the parameter is repeated along one of some dimensions: a batch."""
        return any(self.side.value.shape[d] > 1 and not axes_of((dims[d],)) for d in among)

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
        learned = self.other.value.kind == Kind.PARAM and not self.other.value.active
        self.spent[p] = Spent(self.side.project(tuple(dims), self.shape), gone, repeated=learned)

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
        elif self.side.value.with_product and (
            not (free or self._one_output(p)) or repeats(tag.dims)
        ):
            why = "added to a product of parameters: a bias, or a weight and an update of it"
            self.trace.record(self._use(p, tag, "ambiguous", gone, why))
        elif tag.lookup and free & self.side.roles(tag.dims)[2]:
            why = "its rows are chosen for each pair of positions: a table, or many weights"
            self.trace.record(self._use(p, tag, "ambiguous", gone, why))
        elif repeats(tag.dims[d] for d in (*self.side.contracted, *self.side.free)):
            why = "it is repeated along another axis of the weight that it is part of"
            self.trace.record(self._use(p, tag, "ambiguous", gone, why))
        else:
            self._spend(p, tag, gone)

    def _activation(self, p: int, tag: Tag, gone: AxisSet, free: AxisSet) -> None:
        if self.side.value.kind == Kind.PARAM and not self.side.value.active:
            why = "contracted with constants or parameters, then with a weight"
            pending = {replace(use, role="ambiguous", why=why) for use in tag.pending}
            tag = replace(tag, pending=frozenset(pending))
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
        elif tag.repeated and self._has_rows(tag.dims, self.side.free):
            self.trace.settle(p, tag, self.side.value)  # a bias or a scale of grouped queries
        elif not (free or self._one_output(p)) and (tag.repeated or self._is_embedding(tag)):
            self.trace.settle(p, tag, self.side.value)
        else:
            why = "combined with data, then contracted with data: a gated weight or an activation"
            self.trace.record(self._use(p, tag, "ambiguous", gone, why))
            self.trace.expose(p, tag, self.side.value)

    def _is_embedding(self, tag: Tag) -> bool:
        """Whether what was looked up is no output layer of which data chose units for all rows."""
        plain = tag.mixed == {"select"} and not self.other.value.tags
        return tag.lookup and not (plain and not self.side.batch)

    def _lookup(self, p: int, tag: Tag, gone: AxisSet, free: AxisSet) -> None:
        if is_one_hot(self.side):
            self.trace.settle(p, tag, self.side.value)
            return
        how = {"select"} if self.other.value.kind == Kind.DATA else set()
        dims = self.side.project(tag.dims, self.shape)
        if not how:  # positions that constants chose could still be contracted over
            onto = zip(dims, self.shape, self.other.onto, self.side.onto, strict=True)
            dims = tuple(
                lost(n, gone) if there is not None and here is None else dim
                for dim, n, there, here in onto
            )
        image = mix(replace(tag, dims=dims), how, foreign(self.shape))
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
            rows = repeats(tag.dims[d] for d in (*self.side.contracted, *self.side.free))
            alone = not (tag.mixed or rows) and self._is_whole(p, tag, gone)
            role = "constant" if alone else "ambiguous"
            use = self._use(p, tag, role, gone, "contracted with constants")
            self._keep(p, tag, reduced=tag.reduced | gone, pending=tag.pending | {use})

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
