"""What the tracer says of the values of a program, held against their numbers.

Each rule says what its result does not vary along, and of which entries of a parameter it is made.
Both are seen when the program is run, once more with one entry changed.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
from respell import RULES as SPELLED
from respell import Respeller
from trace_support import promoting

from optax_gc._trace import rules, walk
from optax_gc._trace.digits import axes_of
from optax_gc._trace.values import CONSTANT, Kind


class Watched(Respeller):
    """Runs a jaxpr, and keeps what its equations make."""

    def __init__(self):
        super().__init__({})
        self.made = {}

    def equation(self, eqn, values):
        outs = super().equation(eqn, values)
        self.made[id(eqn)] = outs
        return outs


def numbers(leaf, rng):
    """Some numbers of a shape and dtype; small whole ones for integers."""
    if isinstance(leaf, np.ndarray | jax.Array):
        return leaf
    if jnp.issubdtype(leaf.dtype, jnp.inexact):
        return jnp.asarray(rng.normal(size=leaf.shape), leaf.dtype)
    return jnp.asarray(rng.integers(0, 2, leaf.shape), leaf.dtype)


def flat(fn, params, *args):
    """The jaxpr of a program without its calls, and how many of its inputs are parameters."""
    leaves, treedef = jax.tree.flatten((params, args))
    run = lambda *leaves: (lambda p, a: fn(p, *a))(*jax.tree.unflatten(treedef, leaves))  # noqa: E731
    with promoting():
        closed = jax.make_jaxpr(run)(*leaves)
        inlined = Respeller(SPELLED["calls inlined"])
        closed = jax.make_jaxpr(lambda *xs: inlined.run(closed.jaxpr, closed.consts, xs))(*leaves)
    return closed, len(jax.tree.leaves(params)), leaves


def said(closed, n_params, n_inputs):
    """{id of an equation: what the tracer says of its results}."""
    found = {}

    def watched(rule):
        def watching(trace, eqn, *values):
            results = rule(trace, eqn, *values)
            listed = [results] if not isinstance(results, list | tuple) or hasattr(results, "kind") else results
            found[id(eqn)] = list(listed)
            return results

        return watching

    kept = dict(rules.RULES)
    rules.RULES.update({name: watched(rule) for name, rule in kept.items()})
    try:
        walk.walk(closed, n_params, [True] * n_inputs)
    finally:
        rules.RULES.update(kept)
    return found


def digits(dims):
    return [f for dim in dims for f in dim if f.size > 1]


def false_claims(fn, params, *args, seed=0):
    """What the tracer says of a program's values that is not so."""
    closed, n, leaves = flat(fn, params, *args)
    found = said(closed, n, len(leaves) - n)
    rng = np.random.default_rng(seed)
    values = [numbers(leaf, rng) for leaf in leaves]

    def run(values):
        watched = Watched()
        with promoting():
            watched.run(closed.jaxpr, closed.consts, values)
        return watched.made

    made = run(values)
    wrong = []
    for eqn in closed.jaxpr.eqns:
        for value, array in zip(found.get(id(eqn), ()), made[id(eqn)], strict=False):
            wrong += [(str(eqn.primitive), claim) for claim in constancy(value, array)]
    return wrong


def constancy(value, array):
    """Dimensions that a value varies along, against what is said."""
    if array.dtype == jax.dtypes.float0 or jnp.issubdtype(array.dtype, jax.dtypes.extended):
        return
    array = np.asarray(array)
    if value.number is not None and (array != value.number).any():
        yield "another number"
    if not array.size:
        return
    found = digits(value.support)
    if math.prod(f.size for f in found) != array.size:
        yield f"digits {value.support} of an array of shape {array.shape}"
        return
    parts = array.reshape([f.size for f in found])
    for i, f in enumerate(found):
        if not f.axes:
            first = np.take(parts, [0], i)
            if not np.allclose(parts, first, rtol=1e-3, atol=1e-4 * np.nanmax(np.abs(parts), initial=1), equal_nan=True):
                yield f"varies along a digit of size {f.size}: {value.support}"
    hot = digits(value.one_hot or ())
    parts = (array != 0).reshape([f.size for f in hot] or array.shape)
    if any(f.axes and (parts.sum(i) > 1).any() for i, f in enumerate(hot)):
        yield "not one-hot"
