"""Where each axis of a value comes from: the algebra that the rules compute with.

Every dimension of a value is a product of digits, most significant first, as in a mixed-radix
number. A digit runs over an axis of the parameter with some stride, or over none of them. So
reshaping (8, 6) to (2, 4, 6) splits axis 0 into the digits (stride 4, size 2) and (stride 1, size
4), and transposing and merging them back shows what became of axis 0. Where an operation shuffles
a dimension, the digit remembers only which axes are somewhere in there.
"""

import functools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import IntEnum
from typing import Any, NamedTuple

Shape = tuple[int, ...]
AxisSet = frozenset[int]
NONE: AxisSet = frozenset()


class Factor(NamedTuple):
    """One digit of a dimension."""

    size: int
    axes: AxisSet = NONE  # of the parameter; empty if the parameter is repeated along the digit
    stride: int | None = 1  # along the one axis; None if positions were shuffled
    whole: bool = False  # shuffled or padded, but each index of `axes` occurs exactly once


Dim = tuple[Factor, ...]
Dims = tuple[Dim, ...]


def own(shape: Shape) -> Dims:
    """The dimensions of the parameter itself."""
    return tuple((Factor(size, frozenset({axis})),) for axis, size in enumerate(shape))


@functools.lru_cache(maxsize=4096)
def foreign(shape: Shape) -> Dims:
    """Dimensions along which the parameter is repeated."""
    return tuple((Factor(size),) if size != 1 else () for size in shape)


def lost(size: int, axes: AxisSet, whole: bool = False) -> Dim:
    """A dimension that holds `axes` at positions no longer known."""
    return (Factor(size, axes, None, whole),) if axes else foreign((size,))[0]


def axes_of(dims: Iterable[Sequence[Factor]]) -> AxisSet:
    """The parameter axes longer than 1 that occur in `dims`."""
    found = [f.axes for dim in dims for f in dim if f.size > 1 and f.axes]
    return found[0] if len(found) == 1 else NONE.union(*found)


def has_axes(dim: Sequence[Factor]) -> bool:
    """Whether a parameter axis longer than 1 occurs in `dim`."""
    return any([f.axes and f.size > 1 for f in dim])  # a list is faster than a generator here


def repeats(dims: Iterable[Sequence[Factor]]) -> bool:
    """Whether the parameter is repeated along a digit of `dims`."""
    return any(f.size > 1 and not f.axes for dim in dims for f in dim)


def is_whole(dims: Iterable[Dim], axis: int, extent: int) -> bool:
    """Whether `dims` together run over every index of `axis`, which has `extent` of them."""
    found = [f for dim in dims for f in dim if axis in f.axes and f.size > 1]
    if any(f.whole for f in found):
        return len(found) == 1
    covered = 1
    for f in sorted(found, key=lambda f: f.stride or 0):
        if f.stride != covered:
            return False
        covered *= f.size
    return covered == extent


def reshape(dims: Dims, shape: Shape) -> Dims:
    """Regroups the digits for a row-major reshape to `shape`, splitting them where need be."""
    sizes = [math.prod(f.size for f in dim) for dim in dims]
    if 0 in sizes or 0 in shape:
        return tuple(lost(size, axes_of(dims)) for size in shape)
    result: list[Dim] = []
    i = j = 0
    while i < len(dims) or j < len(shape):
        # The smallest runs of old and of new dimensions that hold equally many elements.
        before, after = [dims[i]] if i < len(dims) else [], [shape[j]] if j < len(shape) else []
        n, m = math.prod(sizes[i : i + len(before)]), math.prod(after)
        while n != m:
            if n < m:
                n *= sizes[i + len(before)]
                before.append(dims[i + len(before)])
            else:
                m *= shape[j + len(after)]
                after.append(shape[j + len(after)])
        i, j = i + len(before), j + len(after)
        result.extend([before[0]] if len(before) == len(after) == 1 else _regroup(before, after))
    return tuple(result)


def _regroup(before: Sequence[Dim], after: Sequence[int]) -> list[Dim]:
    digits = [f for dim in reversed(before) for f in reversed(dim) if f.size > 1]
    result: list[Dim] = []
    for size in after:
        dim: list[Factor] = []
        while size > 1:
            f = digits.pop()
            inner, rest = divmod(f.size, size)
            if size % f.size == 0:
                inner, taken = 1, f
            elif rest == 0:
                taken = _digit(f, size, inner)
                digits.append(_digit(f, inner, 1))
            else:  # digits that interleave: no position is known any more
                axes = axes_of(before)
                return [lost(size, axes) for size in after]
            dim.append(taken)
            size //= taken.size
        result.append(_join(dim))
    return result


def _digit(f: Factor, size: int, step: int) -> Factor:
    return f._replace(size=size, stride=f.stride and f.stride * step, whole=False)


def _join(dim: Sequence[Factor]) -> Dim:
    """Adjacent digits that count along one axis are one digit."""
    joined: list[Factor] = []
    for f in dim:
        if joined and f.axes == joined[-1].axes and not (f.whole or joined[-1].whole):
            last = joined[-1]
            if not f.axes or (f.stride and last.stride == f.stride * f.size):
                joined[-1] = f._replace(size=last.size * f.size)
                continue
        joined.append(f)
    return tuple(joined)


def overlay(a: Dims, b: Dims) -> Dims:
    """The dimensions of a value computed position by position from two images of a parameter."""
    if a is b or a == b:
        return a
    return tuple(_overlay(x, y) for x, y in zip(a, b, strict=True))


def _overlay(x: Dim, y: Dim) -> Dim:
    if x is y or x == y or not has_axes(y):
        return x
    if not has_axes(x):
        return y
    return lost(math.prod(f.size for f in x), axes_of((x, y)))


class Kind(IntEnum):
    """What a value depends on, as far as gradients and inputs are concerned."""

    CONST = 0
    PARAM = 1  # parameters and constants only
    DATA = 2


@dataclass(frozen=True)
class Use:
    """Something a parameter is used for."""

    param: int
    role: str  # a key of verdict.ROLES
    where: str  # operation and module
    axes: AxisSet = NONE  # contracted over, or that would be if it is a weight here
    outputs: AxisSet = NONE
    batch: AxisSet = NONE
    why: str = ""
    partners: tuple[tuple[int, AxisSet], ...] = ()  # parameters contracted with, and their axes
    backward: bool = False  # in a gradient that the function itself takes


@dataclass(frozen=True)
class Tag:
    """A parameter's image within a value, while it has not yet been contracted with data."""

    dims: Dims
    # How data came in: "mul", "add", "select", "other", and "backward" if in a gradient.
    mixed: frozenset[str] = frozenset()
    shared: AxisSet = NONE  # axes along which that data varies too
    repeated: bool = False  # along some axis along which that data varies
    nonlinear: bool = False  # since data came in
    parts: frozenset[tuple[int, object]] = frozenset()  # slices taken before data came in
    reduced: AxisSet = NONE  # axes that were summed, selected or shuffled away
    pending: frozenset[Use] = frozenset()  # uses, unless this turns out to be its own statistic
    lookup: bool = False
    loops: frozenset[int] = frozenset()  # that the data it met is carried by

    @property
    def axes(self) -> AxisSet:
        """The axes still there."""
        return axes_of(self.dims)


@dataclass(frozen=True)
class Spent:
    """A parameter's output axes within the product of a contraction that has used it."""

    dims: Dims
    fan_in: AxisSet
    gated: bool = False  # multiplied by data along some of them
    repeated: bool = False  # contracted with a parameter, for a batch that it is repeated along


@dataclass(frozen=True)
class Value:
    """What is known about one variable of the jaxpr."""

    shape: Shape
    kind: Kind = Kind.CONST
    tags: Mapping[int, Tag] = field(default_factory=dict)
    spent: Mapping[int, Spent] = field(default_factory=dict)
    varies: Dims = ()  # which dimensions constants and data vary along
    product: bool = False  # of a contraction, but for constants and biases
    with_product: bool = False  # one went into it
    active: bool = False  # such a product after a nonlinearity or a bias: surely no weight
    loops: frozenset[int] = frozenset()  # that it is carried by, or computed from what is
    counts: Dims | None = None  # an iota, and along which dimensions
    one_hot: Dims | None = None  # along which dimensions it has a single one

    def moved(self, f: Callable[[Dims], Dims], shape: Shape, **changes: Any) -> "Value":
        """The value after an operation that only moves its elements, as `f` moves dimensions."""
        return replace(
            self,
            shape=shape,
            tags={p: replace(t, dims=f(t.dims)) for p, t in self.tags.items()},
            spent={p: replace(s, dims=f(s.dims)) for p, s in self.spent.items()},
            varies=f(self.varies),
            counts=None if self.counts is None else f(self.counts),
            one_hot=None if self.one_hot is None else f(self.one_hot),
            **changes,
        )

    def without_gradient(self) -> "Value":
        """The value where no gradient flows: parameters in it are constants."""
        kind = Kind.CONST if self.kind == Kind.PARAM else self.kind
        return replace(self, kind=kind, tags={}, spent={})

    def variation(self, besides: int | None = None) -> Dims:
        """Which dimensions the value varies along for reasons other than one parameter."""
        if besides is None or not (besides in self.tags or besides in self.spent):
            return self._variation
        return self._variation_besides(besides)

    @functools.cached_property
    def _variation(self) -> Dims:
        return self._variation_besides(None)

    def _variation_besides(self, besides: int | None) -> Dims:
        dims = self.varies
        for images in (self.tags, self.spent):
            for p, image in images.items():
                if p != besides:
                    dims = overlay(dims, image.dims)
        return dims


def constant(shape: Shape, kind: Kind = Kind.CONST) -> Value:
    """A constant, or an input if `kind` is DATA: it varies along all its axes."""
    return Value(shape, kind, varies=own(shape))
