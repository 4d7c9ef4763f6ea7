"""Where each axis of a value comes from: digits.

Every dimension of a value is a product of digits, most significant first, as in a mixed-radix
number. A digit runs over an axis of the parameter with some stride, or over none of them. So
reshaping (8, 6) to (2, 4, 6) splits axis 0 into the digits (stride 4, size 2) and (stride 1, size
4), and transposing and merging them back shows what became of axis 0. Where an operation shuffles
a dimension, the digit remembers only which axes are somewhere in there.
"""

import functools
import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

Shape = tuple[int, ...]
AxisSet = frozenset[int]
NONE: AxisSet = frozenset()


class Factor(NamedTuple):
    """One digit of a dimension."""

    size: int
    axes: AxisSet = NONE  # of the parameter; empty if the parameter is repeated along the digit
    # Along the one axis, less than 0 if it runs backwards; None if positions were shuffled, 0 if
    # constants chose them (some twice).
    stride: int | None = 1
    whole: bool = False  # shuffled or padded, but each index of `axes` occurs exactly once


Dim = tuple[Factor, ...]
Dims = tuple[Dim, ...]


@functools.lru_cache(maxsize=4096)
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


def chosen(size: int, axes: AxisSet) -> Dim:
    """A dimension of positions of `axes` that constants chose, such as rows of a table."""
    return (Factor(size, axes, 0),) if axes else foreign((size,))[0]


def axes_of(dims: Iterable[Sequence[Factor]]) -> AxisSet:
    """The parameter axes longer than 1 that occur in `dims`."""
    found = [f.axes for dim in dims for f in dim if f.size > 1 and f.axes]
    return found[0] if len(found) == 1 else NONE.union(*found)


def without_dim(dims: Dims, d: int) -> Dims:
    """All dimensions but one."""
    return (*dims[:d], *dims[d + 1 :])


def with_dim(dims: Dims, d: int, dim: Dim) -> Dims:
    """The dimensions, of which one is another."""
    return (*dims[:d], dim, *dims[d + 1 :])


def long_axes(shape: Shape) -> AxisSet:
    """The axes that have a role: those longer than 1."""
    return frozenset(axis for axis, size in enumerate(shape) if size > 1)


def has_axes(dim: Sequence[Factor]) -> bool:
    """Whether a parameter axis longer than 1 occurs in `dim`."""
    for f in dim:  # much of a trace's time is spent here, and any() takes twice as long
        if f.axes and f.size > 1:
            return True
    return False


def repeats(dims: Iterable[Sequence[Factor]]) -> bool:
    """Whether the parameter is repeated along a digit of `dims`."""
    return any(f.size > 1 and not f.axes for dim in dims for f in dim)


def is_whole(dims: Iterable[Dim], axis: int, extent: int) -> bool:
    """Whether `dims` together run over every index of `axis`, which has `extent` of them."""
    found = [f for dim in dims for f in dim if axis in f.axes and f.size > 1]
    if len(found) == 1 and found[0].size == extent:
        return found[0].whole or found[0].stride in (1, -1)
    if any([f.whole for f in found]):
        return len(found) == 1
    covered = 1
    for f in sorted(found, key=lambda f: abs(f.stride or 0)):
        if abs(f.stride or 0) != covered:
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


# What a value varies along for other reasons than one parameter is written in the same digits;
# which axes those are does not matter there.
VARYING: AxisSet = frozenset({0})


@functools.lru_cache(maxsize=4096)
def varying(shape: Shape) -> Dims:
    """Dimensions that a value varies along."""
    return tuple((Factor(size, VARYING, None),) if size != 1 else () for size in shape)


def _paired(x: Dim, y: Dim) -> list[tuple[Factor, Factor]] | None:
    """Two readings of one dimension, split into common digits; None where they interleave."""
    xs, ys = [f for f in x if f.size > 1], [f for f in y if f.size > 1]
    result = []
    while xs and ys:
        f, g = xs.pop(), ys.pop()
        if f.size > g.size:
            outer, rest = divmod(f.size, g.size)
            xs.append(_digit(f, outer, g.size))
            f = _digit(f, g.size, 1)
        elif g.size > f.size:
            outer, rest = divmod(g.size, f.size)
            ys.append(_digit(g, outer, f.size))
            g = _digit(g, f.size, 1)
        else:
            rest = 0
        if rest:
            return None
        result.append((f, g))
    return None if xs or ys else result[::-1]


def vary(a: Dims, b: Dims) -> Dims:
    """The dimensions that either of two values varies along."""
    if a == b:
        return a
    return tuple([x if x == y else _vary(x, y) for x, y in zip(a, b, strict=True)])


@functools.lru_cache(maxsize=16384)
def _vary(x: Dim, y: Dim) -> Dim:
    size = math.prod(f.size for f in x)
    if size == 1:
        return ()
    pairs = _paired(x, y)
    if pairs is None:
        return (Factor(size, VARYING, None),)
    result: list[Factor] = []
    for f, g in pairs:
        axes = VARYING if f.axes or g.axes else NONE
        if result and result[-1].axes == axes:
            result[-1] = result[-1]._replace(size=result[-1].size * f.size)
        else:
            result.append(Factor(f.size, axes, None if axes else 1))
    return tuple(result)


@functools.lru_cache(maxsize=16384)
def _met(x: Dim, y: Dim) -> AxisSet:
    if not has_axes(x) or not has_axes(y):
        return NONE
    pairs = _paired(x, y)
    if pairs is None:
        return axes_of((x,))
    return axes_of([[f for f, g in pairs if g.axes]])


def met(image: Dims, others: Dims) -> AxisSet:
    """The axes of a parameter that something else varies along too, as `others` tells."""
    return NONE.union(*[_met(x, y) for x, y in zip(image, others, strict=True) if x and y])


@functools.lru_cache(maxsize=16384)
def _besides(x: Dim, y: Dim) -> bool:
    if not has_axes(x):
        return False
    pairs = _paired(x, y)
    return pairs is not None and any(f.axes and not g.axes for f, g in pairs)


@functools.lru_cache(maxsize=16384)
def _without(x: Dim, y: Dim) -> Dim:
    pairs = _paired(x, y) if has_axes(y) else None
    if pairs is None:
        return foreign((math.prod(f.size for f in x),))[0] if has_axes(y) else x
    return tuple([Factor(f.size) if g.axes else f for f, g in pairs])


def without(image: Dims, others: Dims) -> Dims:
    """The digits of a parameter that something else does not vary along; the rest repeat."""
    return tuple([_without(x, y) for x, y in zip(image, others, strict=True)])


def besides(a: Dims, b: Dims) -> bool:
    """Whether one value varies along a digit that another does not vary along."""
    return any([_besides(x, y) for x, y in zip(a, b, strict=True) if x])
