"""Rules for operations that move whole dimensions: reshapes, transposes, repetition."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ..digits import VARYING, Dims, Factor, Shape, foreign, reshape
from ..jaxprs import shape_of
from ..values import Value

if TYPE_CHECKING:
    from ..walk import Walk


def moves(by: Callable[[Any, Shape], Callable[[Dims], Dims]]) -> Callable[..., Value]:
    """The rule for an operation whose result is its operand with elements moved.

    Args:
      by: from an equation and the shape of its result to a function of dimensions.
    """

    def rule(trace: "Walk", eqn: Any, value: Value, *sizes: Value) -> Value:
        shape = shape_of(eqn.outvars[0])
        return value.moved(by(eqn, shape), shape)

    rule.__doc__ = by.__doc__
    return rule


@moves
def transpose(eqn: Any, shape: Shape) -> Callable[[Dims], Dims]:
    """Permutes dimensions."""
    return lambda dims: tuple(dims[i] for i in eqn.params["permutation"])


@moves
def reshape_(eqn: Any, shape: Shape) -> Callable[[Dims], Dims]:
    """Splits and merges dimensions, after permuting them where `dimensions` says so."""
    order = eqn.params["dimensions"]
    return lambda dims: reshape(tuple(dims[i] for i in order) if order else dims, shape)


@moves
def squeeze(eqn: Any, shape: Shape) -> Callable[[Dims], Dims]:
    """Drops dimensions of length 1."""
    gone = eqn.params["dimensions"]
    return lambda dims: tuple(dim for i, dim in enumerate(dims) if i not in gone)


@moves
def broadcast_in_dim(eqn: Any, shape: Shape) -> Callable[[Dims], Dims]:
    """Repeats the value along new dimensions and along those of length 1."""
    onto, old = eqn.params["broadcast_dimensions"], shape_of(eqn.invars[0])

    def spread(dims: Dims) -> Dims:
        result = list(foreign(shape))
        for d, i in enumerate(onto):
            if old[d] == shape[i]:
                result[i] = dims[d]
        return tuple(result)

    return spread


@moves
def tile(eqn: Any, shape: Shape) -> Callable[[Dims], Dims]:
    """Repeats the value end to end."""
    reps = eqn.params["reps"]
    return lambda dims: tuple((*foreign((n,))[0], *dim) for dim, n in zip(dims, reps, strict=True))


@moves
def rev(eqn: Any, shape: Shape) -> Callable[[Dims], Dims]:
    """Flips dimensions: each digit is flipped in its place, so that all of them stay."""

    def flipped(f: Factor) -> Factor:
        return f._replace(stride=-f.stride) if f.axes and f.stride else f

    turned = eqn.params["dimensions"]
    return lambda dims: tuple(
        tuple(map(flipped, dim)) if d in turned else dim for d, dim in enumerate(dims)
    )


def iota(trace: "Walk", eqn: Any, *sizes: Value) -> Value:
    """Counts along one dimension."""
    shape = shape_of(eqn.outvars[0])
    along = tuple(
        (Factor(n, VARYING, None),) if i == eqn.params["dimension"] and n > 1 else foreign((n,))[0]
        for i, n in enumerate(shape)
    )
    return Value(shape, varies=along, counts=along)


RULES = {
    "transpose": transpose,
    "reshape": reshape_,
    "squeeze": squeeze,
    "broadcast_in_dim": broadcast_in_dim,
    "tile": tile,
    "rev": rev,
    "iota": iota,
}
