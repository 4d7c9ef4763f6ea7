"""Rules for operations that work element by element."""

import operator
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ..digits import foreign, has_axes
from ..jaxprs import shape_of
from ..products import add, aligned, bend, bent, multiply
from ..values import Kind, Value, constant

if TYPE_CHECKING:
    from ..walk import Walk


def unary(trace: "Walk", eqn: Any, value: Value) -> Value:
    """A linear operation on one value: every axis, and a one-hot, stays what it is."""
    return value


def nonlinear(trace: "Walk", eqn: Any, *values: Value) -> Value:
    """Anything else position by position: axes stay, but products are activations from here on."""
    return _with_number(eqn, bend(trace, values, shape_of(eqn.outvars[0])), values)


def add_(trace: "Walk", eqn: Any, *values: Value) -> Value:
    """A sum: a bias, a residual, a low-rank update, noise."""
    return _with_number(eqn, add(trace, values, shape_of(eqn.outvars[0]), is_sum=True), values)


def mul(trace: "Walk", eqn: Any, a: Value, b: Value) -> Value:
    """A product: a scale, a gate, a mask, modulation, or half of a contraction."""
    return _with_number(eqn, multiply(trace, a, b, shape_of(eqn.outvars[0])), (a, b))


def div(trace: "Walk", eqn: Any, a: Value, b: Value) -> Value:
    """A quotient, linear in the numerator alone."""
    shape = shape_of(eqn.outvars[0])
    below = b if b.kind == Kind.CONSTANT or not (b.terms or b.echoes) else bent(trace, b)
    return _with_number(eqn, multiply(trace, a, below, shape), (a, b))


def select_n(trace: "Walk", eqn: Any, which: Value, *cases: Value) -> Value:
    """A choice: a mask where the cases are no data, else one value put in the place of another."""
    shape = shape_of(eqn.outvars[0])
    if which.number is not None:
        return aligned(cases[which.number], shape)
    chosen = add(trace, cases, shape)
    choice = which.without_gradient()
    if choice.kind == Kind.DATA or any(has_axes(d) for d in choice.varies):
        return multiply(trace, chosen, choice, shape)
    return chosen


def equal(trace: "Walk", eqn: Any, a: Value, b: Value) -> Value:
    """A comparison; with an iota along an axis where the other repeats, a one-hot."""
    shape = shape_of(eqn.outvars[0])
    result = nonlinear(trace, eqn, a, b)
    for counter, other in ((a, b), (b, a)):
        if counter.counts is None or len(counter.shape) != len(shape):
            continue
        other = aligned(other, shape)
        along = []
        for d, dim in enumerate(aligned(counter, shape).counts or ()):
            repeated = not has_axes(other.varies[d]) or (
                other.counts is not None and not has_axes(other.counts[d])
            )
            along.append(dim if has_axes(dim) and repeated else foreign((shape[d],))[0])
        if any(has_axes(dim) for dim in along):
            return result._replace(one_hot=tuple(along))
    return result


def identity(trace: "Walk", eqn: Any, *values: Value) -> list[Value]:
    """Several values, each unchanged: barriers, and collectives over replicated parameters."""
    return list(values)


def random_bits(trace: "Walk", eqn: Any, *values: Value) -> Value:
    """Randomness: a constant, whatever its key, or the data of a model that has no other."""
    shape = shape_of(eqn.outvars[0])
    kind = Kind.DATA if trace.constants_are_data else Kind.CONSTANT
    return constant(shape, kind)


def random_key(trace: "Walk", eqn: Any, *values: Value) -> list[Value]:
    """Random keys, which are constants."""
    return [constant(shape_of(v)) for v in eqn.outvars]


def _with_number(eqn: Any, result: Value, values: tuple[Value, ...]) -> Value:
    numbers = [v.number for v in values]
    fold = _NUMBERS.get(eqn.primitive.name)
    if fold is None or None in numbers:
        return result.plain() if result.number is not None else result
    return result._replace(number=int(fold(*numbers)))


_NUMBERS: dict[str, Callable[..., Any]] = {
    "add": operator.add, "sub": operator.sub, "mul": operator.mul, "neg": operator.neg,
    "lt": operator.lt, "le": operator.le, "gt": operator.gt, "ge": operator.ge,
    "eq": operator.eq, "ne": operator.ne, "max": max, "min": min,
    "clamp": lambda low, x, high: max(low, min(x, high)),
}  # fmt: skip

_MOVES_NOTHING = """
    neg convert_element_type bitcast_convert_type copy real imag conj reduce_precision
    sharding_constraint layout_constraint mesh_cast reshard name
"""
_IDENTITIES = """
    optimization_barrier device_put pmax pmin pvary
"""
_KEYS = "random_wrap random_unwrap random_seed random_split random_fold_in random_clone"
_NONLINEAR = """
    abs acos acosh asin asinh atan atan2 atanh bessel_i0e bessel_i1e cbrt ceil clamp cos cosh
    digamma erf erf_inv erfc exp exp2 expm1 floor igamma igammac integer_pow is_finite lgamma
    log log1p log2 logistic max min nextafter one_minus_square polygamma polynomial pow
    reciprocal rem round rsqrt regularized_incomplete_beta sign sin sinh sqrt square tan tanh
    and or xor not ge gt le lt ne eq_to le_to lt_to clz population_count shift_left
    shift_right_logical shift_right_arithmetic
"""

RULES: dict[str, Callable[..., Any]] = {
    **dict.fromkeys(_MOVES_NOTHING.split(), unary),
    **dict.fromkeys(("add", "add_any", "sub", "complex"), add_),
    "mul": mul,
    "div": div,
    "select_n": select_n,
    "select_if_vmap": lambda trace, eqn, which, yes, no: select_n(trace, eqn, which, no, yes),
    "eq": equal,
    **dict.fromkeys(_NONLINEAR.split(), nonlinear),
    **dict.fromkeys(_IDENTITIES.split(), identity),
    "stop_gradient": unary,  # no gradient reaches its operand, as liveness tells
    "random_bits": random_bits,
    **dict.fromkeys(_KEYS.split(), random_key),
}
