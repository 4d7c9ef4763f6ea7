"""The two operands of a contraction, and what can be told from each alone."""

from dataclasses import dataclass

from .provenance import AxisSet, Dims, Shape, Value, axes_of, foreign, lost


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


def is_one_hot(side: Side) -> bool:
    """Whether a side has a single one along what is contracted, so that it looks rows up."""
    dims = side.value.one_hot
    return dims is not None and all(axes_of((dims[d],)) for d in side.contracted)


def is_activation(side: Side) -> bool:
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
