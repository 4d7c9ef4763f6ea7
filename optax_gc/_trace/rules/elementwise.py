"""Rules for operations that work element by element."""

from typing import Any

from ..mixing import combine, shape_of
from ..provenance import Kind, Value, axes_of, constant, foreign


def unary(trace: Any, eqn: Any, value: Value) -> Value:
    """A linear operation on one value: every axis, and a one-hot, stays what it is."""
    return value


def nonlinear(trace: Any, eqn: Any, *values: Value) -> Value:
    """Anything else position by position: axes stay, but products are activations from here on."""
    n = len(values)
    return combine(trace, values, shape_of(eqn.outvars[0]), ("other",) * n, (False,) * n)


def add(trace: Any, eqn: Any, *values: Value) -> Value:
    """A sum: a bias, a residual, a low-rank update, noise."""
    n = len(values)
    return combine(trace, values, shape_of(eqn.outvars[0]), ("add",) * n, (True,) * n)


def mul(trace: Any, eqn: Any, a: Value, b: Value) -> Value:
    """A product: a scale, a gate, a mask, modulation, or half of a contraction."""
    return combine(trace, (a, b), shape_of(eqn.outvars[0]), ("mul", "mul"), (True, True))


def div(trace: Any, eqn: Any, a: Value, b: Value) -> Value:
    """A quotient, linear in the numerator alone."""
    return combine(trace, (a, b), shape_of(eqn.outvars[0]), ("mul", "mul"), (True, False))


def select_n(trace: Any, eqn: Any, which: Value, *cases: Value) -> Value:
    """A choice: a mask where the cases are no data, else one value put in the place of another."""
    how = ("mul",) + ("add",) * len(cases)
    shape = shape_of(eqn.outvars[0])
    return combine(trace, (which, *cases), shape, how, (True,) * len(how))


def equal(trace: Any, eqn: Any, a: Value, b: Value) -> Value:
    """A comparison; with an iota along an axis where the other repeats, a one-hot."""
    shape = shape_of(eqn.outvars[0])
    result = nonlinear(trace, eqn, a, b)
    for counter, other in ((a, b), (b, a)):
        if counter.counts is None or (counter.shape != shape and len(counter.shape) != len(shape)):
            continue
        along = []
        for d, dim in enumerate(counter.counts):
            repeated = not other.shape or other.shape[d] == 1 or not axes_of((other.varies[d],))
            hot = bool(axes_of((dim,))) and repeated
            along.append(dim if hot else foreign((shape[d],))[0])
        if axes_of(along):
            return Value(
                shape, result.kind, result.tags, varies=result.varies, one_hot=tuple(along)
            )
    return result


def identity(trace: Any, eqn: Any, *values: Value) -> list[Value]:
    """Several values, each unchanged: barriers, and collectives over replicated parameters."""
    return list(values)


def stop_gradient(trace: Any, eqn: Any, value: Value) -> Value:
    """A constant from here on, unless a custom derivative rule is free to ignore it."""
    return value if trace.everything else value.without_gradient()


def random_bits(trace: Any, eqn: Any, *values: Value) -> Value:
    """Randomness: a constant, whatever its key, or the data of a model that has no other."""
    shape = shape_of(eqn.outvars[0])
    kind = Kind.DATA if trace.constants_are_data else Kind.CONST
    return constant(shape, kind)


_MOVES_NOTHING = """
    neg convert_element_type copy real imag conj reduce_precision
    sharding_constraint layout_constraint mesh_cast reshard name
"""
_IDENTITIES = """
    optimization_barrier device_put psum psum_invariant pmax pmin pvary pbroadcast
"""
_NONLINEAR = """
    abs acos acosh asin asinh atan atan2 atanh bessel_i0e bessel_i1e cbrt ceil clamp cos cosh
    digamma erf erf_inv erfc exp exp2 expm1 floor igamma igammac integer_pow is_finite lgamma
    log log1p logistic max min nextafter polygamma pow reciprocal rem round rsqrt
    regularized_incomplete_beta sign sin sinh sqrt square tan tanh
    and or xor not ge gt le lt ne eq_to le_to lt_to clz population_count
    shift_left shift_right_logical shift_right_arithmetic
"""

RULES = {
    **dict.fromkeys(_MOVES_NOTHING.split(), unary),
    **dict.fromkeys(("add", "add_any", "sub", "complex"), add),
    "mul": mul,
    "div": div,
    "select_n": select_n,
    "eq": equal,
    **dict.fromkeys(_NONLINEAR.split(), nonlinear),
    **dict.fromkeys(_IDENTITIES.split(), identity),
    "stop_gradient": stop_gradient,
    "random_bits": random_bits,
}
