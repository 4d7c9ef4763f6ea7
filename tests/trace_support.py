"""Shared by the tests of the tracer: abstract models, answers by path, and the oracle."""

import contextlib
from typing import NamedTuple

import equinox as eqx
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from optax_gc._match import names
from optax_gc._trace import _trace
from optax_gc._trace.roles import roles

REFUSED = "refused"
KEY = jax.random.key(0)


class Untold(NamedTuple):
    """What is expected of a parameter that the tracer refuses and whose axes people know.

    The other expectations are a tuple of axes, and REFUSED where nobody can tell.
    """

    axes: tuple[int, ...]


def outcomes(expected):
    """{path: what the tracer gives, exactly} for {path: expectation}."""
    return {path: REFUSED if isinstance(e, Untold) else e for path, e in expected.items()}


def f32(*shape):
    return jax.ShapeDtypeStruct(shape, jnp.float32)


def i32(*shape):
    return jax.ShapeDtypeStruct(shape, jnp.int32)


@contextlib.contextmanager
def promoting():
    """Some frameworks' own layers need looser promotion than the tests run under."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


def values_of(tree):
    """Non-uniform numbers of the shapes of a tree; arrays, keys among them, as they are."""
    rng = np.random.default_rng(0)

    def value(leaf):
        if isinstance(leaf, np.ndarray | jax.Array):
            return leaf
        if jnp.issubdtype(leaf.dtype, jnp.inexact):
            return jnp.asarray(rng.normal(size=leaf.shape), leaf.dtype)
        return jnp.asarray(rng.integers(0, 2, leaf.shape), leaf.dtype)

    return jax.tree.map(value, tree)


def named(params):
    """{name: leaf} of a tree of parameters."""
    leaves = jax.tree_util.tree_leaves_with_path(params)
    return dict(zip(names(leaves), (leaf for _, leaf in leaves), strict=True))


def answers(fn, params, *args, **kwargs):
    """{path: axes, or REFUSED} for every parameter."""
    with promoting():
        trace = _trace(fn, params, args, kwargs)
    assert_roles_partition(trace)
    return {
        name: REFUSED if verdict.refused else tuple(sorted(verdict.axes))
        for name, verdict in zip(trace.call.names, trace.found, strict=True)
    }


def assert_roles_partition(trace):
    """The roles of a weight are disjoint and name each of its axes that is longer than 1."""
    tree = roles(list, trace.found)
    shapes = [jnp.shape(array) for array in trace.call.params]
    for name, shape, verdict, *parts in zip(
        trace.call.names, shapes, trace.found, *tree, strict=True
    ):
        named = [axis for part in parts for axis in part]
        assert len(named) == len(set(named)), (name, parts)
        if verdict.refused or not verdict.axes:
            assert parts == [(), (), ()], (name, parts)
        else:
            long = {axis for axis, n in enumerate(shape) if n > 1}
            assert long <= set(named) <= set(range(len(shape))), (name, shape, parts)


def verdicts_of(fn, params, *args):
    """{path: verdict} for every parameter."""
    with promoting():
        trace = _trace(fn, params, args, {})
    return dict(zip(trace.call.names, trace.found, strict=True))


def linen(module, *args, collection="params", **kwargs):
    """A linen module as (fn, abstract parameters, inputs)."""
    rngs = {"params": KEY, "dropout": KEY}
    variables = jax.eval_shape(lambda *a: module.init(rngs, *a, **kwargs), *args)
    rest = {name: tree for name, tree in variables.items() if name != collection}
    rest = jax.tree.map(lambda s: np.ones(s.shape, s.dtype), rest)

    def fn(params, *args):
        return module.apply(
            {collection: params, **rest}, *args, rngs={"dropout": KEY}, mutable=list(rest), **kwargs
        )[0]

    return fn, variables[collection], *args


def nnx_(build, *args, call=lambda model, *args: model(*args)):
    """An nnx module as (fn, abstract state, inputs)."""
    graphdef, params, rest = nnx.split(nnx.eval_shape(build), nnx.Param, ...)
    rest = jax.tree.map(
        lambda s: (
            KEY if jnp.issubdtype(s.dtype, jax.dtypes.prng_key) else np.ones(s.shape, s.dtype)
        ),
        rest,
    )

    def fn(params, *args):
        fresh = jax.tree.map(lambda x: x, rest)  # variables of this trace
        return call(nnx.merge(graphdef, params, fresh), *args)

    return fn, params, *args


def haiku(build, *args):
    """A function of Haiku modules as (fn, abstract parameters, inputs)."""
    with promoting():
        transformed = hk.transform_with_state(build)
        params, state = jax.eval_shape(transformed.init, jax.random.PRNGKey(0), *args)
    state = jax.tree.map(lambda s: np.ones(s.shape, s.dtype), state)

    def fn(params, *args):
        return transformed.apply(params, state, jax.random.PRNGKey(0), *args)[0]

    return fn, params, *args


def equinox(build, *args, call=lambda model, *args: jax.vmap(model)(*args)):
    """An Equinox module as (fn, abstract arrays, inputs)."""
    model = eqx.filter_eval_shape(build, KEY)
    params, static = eqx.partition(model, lambda x: isinstance(x, jax.ShapeDtypeStruct))
    return (lambda params, *args: call(eqx.combine(params, static), *args)), params, *args


def keras_(layer, *args, **kwargs):
    """A Keras layer or model, built, as (fn, list of abstract parameters, inputs)."""
    trainable = [f32(*v.shape) for v in layer.trainable_variables]
    rest = [np.ones(v.shape, v.dtype) for v in layer.non_trainable_variables]

    def fn(params, *args):
        return layer.stateless_call(params, rest, *args, **kwargs)[0]

    return fn, trainable, *args


def fan_in_by_oracle(fn, params, *args, varying=None):
    """The axes that the definition gives, computed: {path: axes} for a single layer.

    With all activations equal to one, the gradient of a weight under a random cotangent is
    constant along exactly its fan-in axes, since every input to an output unit is the same. The
    window of a transposed convolution reaches each output at most once, so that this needs a
    cotangent that varies along the axes `varying` of the output only.
    """
    with promoting():
        ones = [jax.tree.map(lambda s: np.ones(s.shape, s.dtype), arg) for arg in args]
        rng = np.random.default_rng(0)
        values = jax.tree.map(
            lambda s: (
                rng.normal(size=s.shape).astype(np.float32)
                if jnp.issubdtype(s.dtype, jnp.inexact)
                else np.zeros(s.shape, s.dtype)
            ),
            params,
        )
        out, vjp = jax.vjp(lambda p: fn(p, *ones), values)
        along = range(out.ndim) if varying is None else {axis % out.ndim for axis in varying}
        sizes = [n if axis in along else 1 for axis, n in enumerate(out.shape)]
        cotangent = np.broadcast_to(rng.normal(size=sizes), out.shape).astype(out.dtype)
        (grads,) = vjp(cotangent)
    found = {}
    leaves = jax.tree_util.tree_leaves_with_path(grads)
    for name, (_, g) in zip(names(leaves), leaves, strict=True):
        g = np.asarray(g)
        scale = np.abs(g).max()
        found[name] = tuple(
            axis for axis in range(g.ndim) if np.ptp(g, axis=axis).max() <= 1e-4 * scale
        )
    return found
