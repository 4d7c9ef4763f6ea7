"""What the tracer says of the values of a program, held against their numbers.

Each rule says what its result does not vary along, where it is one-hot and which number it is. All
of that shows when the program is run.
"""

import jax
import jax.numpy as jnp
import numpy as np
from respell import Respeller, respelled
from trace_support import promoting, values_of

from optax_gc._trace import rules, walk
from optax_gc._trace.values import Value


class Watched(Respeller):
    """Runs a jaxpr, and keeps what its equations make."""

    def __init__(self):
        super().__init__({})
        self.made = {}

    def equation(self, eqn, values):
        outs = super().equation(eqn, values)
        self.made[id(eqn)] = outs
        return outs


def said(closed, n_params, n_inputs):
    """{id of an equation: what the tracer says of its results}."""
    found = {}

    def watched(rule):
        def watching(trace, eqn, *values):
            results = rule(trace, eqn, *values)
            found[id(eqn)] = [results] if isinstance(results, Value) else results
            return results

        return watching

    kept = dict(rules.RULES)
    rules.RULES.update({name: watched(rule) for name, rule in kept.items()})
    try:
        walk.walk(closed, n_params, [True] * n_inputs)
    finally:
        rules.RULES.update(kept)
    return found


def false_claims(fn, params, *args):
    """(primitive, what is said of its result) of all that is not so."""
    with promoting():
        inlined = respelled("calls inlined", fn, params, *args)
        closed = jax.make_jaxpr(inlined)(params, *args)
        inputs = jax.tree.leaves(values_of((params, args)))
        n = len(jax.tree.leaves(params))
        found = said(closed, n, len(inputs) - n)
        watched = Watched()
        watched.run(closed.jaxpr, closed.consts, inputs)
    return [
        (eqn.primitive.name, claim)
        for eqn in closed.jaxpr.eqns
        for value, array in zip(found.get(id(eqn), ()), watched.made[id(eqn)], strict=False)
        if not jnp.issubdtype(array.dtype, jax.dtypes.extended) and array.size
        for claim in false_of(value, np.asarray(array))
    ]


def by_digits(dims, array):
    """An array with a dimension for each digit, and the digits."""
    digits = [f for dim in dims for f in dim if f.size > 1]
    return array.reshape([f.size for f in digits]), digits


def false_of(value, array):
    """What is said of one value that is not so."""
    if value.number is not None and (array != value.number).any():
        yield "another number"
    parts, digits = by_digits(value.support, array)
    close = {"rtol": 1e-3, "atol": 1e-4 * np.nanmax(np.abs(parts), initial=1), "equal_nan": True}
    for i, f in enumerate(digits):
        if not f.axes and not np.allclose(parts, parts.take([0], i), **close):
            yield f"varies along a digit of size {f.size}: {value.support}"
    if value.one_hot is not None:
        parts, digits = by_digits(value.one_hot, array != 0)
        if any(f.axes and (parts.sum(i) > 1).any() for i, f in enumerate(digits)):
            yield "not one-hot"
