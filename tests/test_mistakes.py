"""Typical mistakes with each public function, each of which ends in an error that says what to do.

What the trace is called with wrongly is in ``test_first_call.py`` and ``test_trace_errors.py`` too.
"""

import functools
import warnings

import equinox as eqx
import haiku as hk
import jax
import jax.numpy as jnp
import keras
import numpy as np
import optax
import pytest
from flax import linen as nn
from flax import nnx
from jax.sharding import PartitionSpec
from trace_support import f32

from optax_gc import (
    axes_from_rank,
    axes_from_trace,
    center_weights,
    centralize,
    diagnostics,
    explain,
    muon_dimension_numbers,
    rescale_weights,
    roles_from_trace,
    scale_by_trust_ratio,
    scale_invariant,
    summary,
)

PARAMS = {"w": jnp.arange(40.0).reshape(8, 5), "b": jnp.ones(5)}
GRADS = {"w": jnp.ones((8, 5)), "b": jnp.ones(5)}
KEY = jax.random.key(0)


def loss(params):
    return jnp.square(params["w"]).sum()


class NoPytree(nnx.Module, pytree=False):
    def __init__(self):
        self.layer = nnx.Linear(8, 5, rngs=nnx.Rngs(0))


def of(init, *arguments):
    return lambda value: init(value).init(*arguments)


TAKES_PARAMS = {
    "axes_from_rank": axes_from_rank,
    "summary": summary,
    "center_weights": center_weights,
    "scale_invariant": lambda params: scale_invariant(params, GRADS),
    "scale_invariant's grads": lambda grads: scale_invariant(PARAMS, grads),
    "removed_fraction": diagnostics.removed_fraction,
    "norms": diagnostics.norms,
    "unit_sums": diagnostics.unit_sums,
    "radial_component": lambda params: diagnostics.radial_component(GRADS, params),
    "radial_component's grads": lambda grads: diagnostics.radial_component(grads, PARAMS),
    "sharpness": lambda params: diagnostics.sharpness(loss, params, key=KEY),
}
NO_PARAMS = {
    "a function": (lambda: loss, "Give a tree of arrays"),
    "a method": (lambda: nn.Dense(5).apply, "Give a tree of arrays"),
    "a gradient function": (lambda: jax.grad(loss), "Give a tree of arrays"),
    "a class": (lambda: nnx.Linear, "Give a tree of arrays"),
    "a Keras model": (
        lambda: keras.Sequential([keras.Input((8,)), keras.layers.Dense(5)]),
        "model.trainable_variables",
    ),
    "a Linen model": (lambda: nn.Dense(5), r"model.init\(key, x\)\['params'\]"),
    "an NNX model that is no pytree": (NoPytree, r"nnx.state\(model, nnx.Param\)"),
    "Haiku's pair": (lambda: hk.transform(lambda x: x), "Give a tree of arrays"),
    "an optimizer": (lambda: optax.adam(1e-3), "Give a tree of arrays"),
    "a shape": (lambda: (8, 5), "jax.ShapeDtypeStruct"),
    "a tree of shapes": (lambda: {"w": (8, 5), "b": (5,)}, "jax.ShapeDtypeStruct"),
    "an axes tree": (lambda: {"w": (0,), "b": ()}, "Give arrays"),
    "an int": (lambda: 3, "Give arrays"),
    "a name": (lambda: "kernel", "Give a tree of arrays"),
    "names": (lambda: ["kernel", "bias"], "Give a tree of arrays"),
    "dtypes": (lambda: {"w": jnp.dtype("float32")}, "Give a tree of arrays"),
    "an axis": (lambda: -1, "Give arrays"),
}


@pytest.mark.parametrize(("value", "mend"), NO_PARAMS.values(), ids=NO_PARAMS)
@pytest.mark.parametrize("take", TAKES_PARAMS.values(), ids=TAKES_PARAMS)
def test_what_is_plainly_no_tree_of_parameters_is_refused(take, value, mend):
    with pytest.raises(ValueError, match=mend):
        take(value())


@pytest.mark.parametrize(
    "take",
    [take for name, take in TAKES_PARAMS.items() if name != "axes_from_rank"],
    ids=[name for name in TAKES_PARAMS if name != "axes_from_rank"],
)
def test_none_is_no_tree_of_parameters(take):
    with pytest.raises(ValueError, match="is None"):
        take(None)


TAKES_AXES = {
    "centralize": of(centralize, PARAMS),
    "rescale_weights": of(rescale_weights, PARAMS),
    "scale_by_trust_ratio": of(scale_by_trust_ratio, PARAMS),
    "center_weights": lambda axes: center_weights(PARAMS, axes),
    "summary": lambda axes: summary(PARAMS, axes),
    "scale_invariant": lambda axes: scale_invariant(PARAMS, GRADS, axes),
    "removed_fraction": lambda axes: diagnostics.removed_fraction(GRADS, axes),
    "unit_sums": lambda axes: diagnostics.unit_sums(PARAMS, axes),
    "radial_component": lambda axes: diagnostics.radial_component(GRADS, PARAMS, axes),
    "sharpness": lambda axes: diagnostics.sharpness(loss, PARAMS, axes=axes, key=KEY),
}
NO_AXES = {
    "axes_from_trace": (lambda: axes_from_trace, r"axes_from_trace\(model, x\)"),
    "a function of two": (lambda: lambda params, x: (0,), "function from params to axes"),
    "a function that returns nothing": (lambda: lambda params: None, r"\(0,\)"),
    "a maker of optimizers": (lambda: optax.adam, r"optax.chain"),
    "an optimizer": (lambda: optax.adam(1e-3), r"optax.chain\(centralize\(\)"),
    "gradients": (lambda: GRADS, r"axes_from_rank\(params\)"),
    "an array": (lambda: np.array([0]), r"axes_from_rank\(params\)"),
    "an Equinox model": (lambda: eqx.nn.Linear(8, 5, key=KEY), r"axes_from_trace\(model, x\)"),
    "an NNX model": (lambda: nnx.Linear(8, 5, rngs=nnx.Rngs(0)), r"axes_from_trace\(model, x\)"),
    "a Linen model": (lambda: nn.Dense(5), r"axes_from_trace\(model, x\)"),
    "all roles": (lambda: roles_from_trace(fn, PARAMS, X), r"Give one: roles.fan_in"),
    "a summary": (lambda: summary(PARAMS), r"axes_from_rank\(params\)"),
    "an explanation": (lambda: explain(fn, PARAMS, X), r"axes_from_trace\(model, x\)"),
    "a spec": (lambda: PartitionSpec("x"), "specs="),
    "a name": (lambda: "kernel", r"\(0,\)"),
    "a set": (lambda: {0}, r"\(0,\)"),
    "a list": (lambda: [0, 1], r"Use \(0, 1\)"),
    "an int in a tree": (lambda: {"w": 0, "b": ()}, r"\(0,\)"),
    "a list in a tree": (lambda: {"w": [0], "b": ()}, r"\(0,\)"),
    "a name in a tree": (lambda: {"w": "in", "b": ()}, r"\(0,\)"),
    "None in a tree": (lambda: {"w": None, "b": ()}, r"\(0,\)"),
    "floats": (lambda: {"w": (0.5,), "b": ()}, r"\(0,\)"),
    "booleans": (lambda: {"w": (True,), "b": ()}, r"\(0,\)"),
    "too large": (lambda: {"w": (2,), "b": ()}, "Use axes from -2 to 1"),
    "twice": (lambda: {"w": (0, -2), "b": ()}, r"Use \(0,\)"),
    "a misspelling": (lambda: {"W": (0,), "b": ()}, "parameters there are 'b', 'w'"),
    "nested too deep": (lambda: {"params": {"w": (0,)}}, "parameters there are 'b', 'w'"),
    "empty": (dict, r"\(0,\)"),
}


@pytest.mark.parametrize(("value", "mend"), NO_AXES.values(), ids=NO_AXES)
@pytest.mark.parametrize("take", TAKES_AXES.values(), ids=TAKES_AXES)
def test_what_is_plainly_no_axes_tree_is_refused(take, value, mend):
    with pytest.raises(ValueError, match=mend):
        take(value())


@pytest.mark.parametrize("axes", [3, True, None], ids=str)
@pytest.mark.parametrize(
    "take",
    [take for name, take in TAKES_AXES.items() if name not in ("rescale_weights", "sharpness")],
)
def test_a_number_or_nothing_is_no_axes_tree(take, axes):
    with pytest.raises(ValueError, match=r"axes is .* such as \(0,\)"):
        take(axes)


@pytest.mark.parametrize(
    "maker",
    [centralize, rescale_weights, scale_by_trust_ratio],
    ids=lambda maker: maker.__name__,
)
@pytest.mark.parametrize(
    "build",
    [
        lambda maker: optax.chain(maker, optax.adam(1e-3)),
        lambda maker: optax.chain(optax.scale_by_adam(), maker, optax.scale(-1.0)),
        lambda maker: optax.masked(maker, {"w": True, "b": False}),
        lambda maker: optax.partition({"a": maker}, {"w": "a", "b": "a"}),
        lambda maker: optax.named_chain(("gc", maker)),
    ],
    ids=["first", "between", "masked", "partition", "named_chain"],
)
def test_a_transformation_that_was_not_made_says_what_is_missing(build, maker):
    with pytest.raises(TypeError, match=rf"Call it: {maker.__name__}\(\)"):
        build(maker).init(PARAMS)


def fn(params, x):
    return x @ params["w"] + params["b"][None]


TRACES = {
    "axes_from_trace": axes_from_trace,
    "roles_from_trace": roles_from_trace,
    "explain": explain,
}
X = f32(3, 8)
NO_CALLS = {
    "nothing but a batch": (lambda t: t(lambda x: x, X), "fn, params, x"),
    "swapped": (lambda t: t(PARAMS, fn, X), "swapped"),
    "params called": (lambda t: t(fn(PARAMS, jnp.ones((3, 8))), PARAMS, X), "Pass the forward"),
    "no inputs": (lambda t: t(fn, PARAMS), "called with in training"),
    "inputs first": (lambda t: t(fn, X, PARAMS), "put them first"),
    "inputs as a tuple": (lambda t: t(fn, PARAMS, (X,)), "called with in training"),
    "inputs that do not fit": (lambda t: t(fn, PARAMS, f32(3, 7)), "called with in training"),
    "a shape for an input": (lambda t: t(fn, PARAMS, (3, 8)), "jax.ShapeDtypeStruct"),
    "too many inputs": (lambda t: t(fn, PARAMS, X, X), "called with in training"),
    "an unknown keyword": (lambda t: t(fn, PARAMS, X, train=True), "called with in training"),
    "shapes for params": (lambda t: t(fn, {"w": (8, 5), "b": (5,)}, X), "jax.ShapeDtypeStruct"),
    "names for params": (lambda t: t(fn, {"w": "kernel"}, X), "Split the arrays off"),
    "a gradient function": (lambda t: t(jax.grad(lambda p, x: fn(p, x).sum()), PARAMS, X), "loss"),
    "an update": (lambda t: t(lambda p, x: (fn(p, x), p), PARAMS, X), "loss"),
    "a function of no gradient": (lambda t: t(lambda p, x: fn(p, x) > 0, PARAMS, X), "loss"),
    "a function of nothing": (lambda t: t(lambda p, x: None, PARAMS, X), "loss"),
    "params unused": (lambda t: t(lambda p, x: fn(PARAMS, x), PARAMS, X), "first argument"),
    "partial with params": (
        lambda t: t(functools.partial(fn, PARAMS), {"x": X}),
        "lambda params, x",
    ),
    "a model and its own": (
        lambda t: t(m := eqx.nn.Linear(8, 5, key=KEY), m, f32(8)),
        r"axes_from_trace\(model, x\)",
    ),
    "a model without its batch axis": (
        lambda t: t(eqx.nn.Linear(8, 5, key=KEY), X),
        r"jax.vmap\(model\)",
    ),
    "Linen's apply": (lambda t: t(nn.Dense(5).apply, PARAMS, X), "{'params': params}"),
    "a name": (lambda t: t("model", PARAMS, X), "Pass the forward pass"),
    "None": (lambda t: t(None, PARAMS, X), "Pass the forward pass"),
}


@pytest.mark.parametrize(("call", "mend"), NO_CALLS.values(), ids=NO_CALLS)
@pytest.mark.parametrize("trace", TRACES.values(), ids=TRACES)
def test_a_trace_of_what_cannot_be_called_so_is_refused(trace, call, mend):
    with pytest.raises((TypeError, ValueError), match=mend) as error:
        call(trace)
    assert len(str(error.value)) < 1000


NO_ROLES = {
    "params": lambda: PARAMS,
    "axes": lambda: axes_from_rank(PARAMS),
    "fan-in": lambda: roles_from_trace(fn, PARAMS, X).fan_in,
    "matrix": lambda: roles_from_trace(fn, PARAMS, X).matrix,
    "a tuple of trees": lambda: tuple(roles_from_trace(fn, PARAMS, X)),
    "axes of one": lambda: (0,),
    "None": lambda: None,
    "a model": lambda: nnx.Linear(8, 5, rngs=nnx.Rngs(0)),
    "a function": lambda: roles_from_trace,
    "an explanation": lambda: explain(fn, PARAMS, X),
    "a name": lambda: "w",
    "an optimizer": lambda: optax.contrib.muon(0.1),
}
NO_NAMES = {
    "a number": 0,
    "nothing": None,
    "true": True,
    "a mask": {"w": True, "b": False},
    "a function": loss,
    "an optimizer": optax.adam(0.1),
    "an array": np.ones(3),
    "parameters": [np.ones(3)],
}


@pytest.mark.parametrize("value", NO_ROLES.values(), ids=NO_ROLES)
def test_muon_refuses_what_is_no_roles(value):
    with pytest.raises(TypeError, match=r"Pass what roles_from_trace\(...\) returns"):
        muon_dimension_numbers(value())


@pytest.mark.parametrize("adam", NO_NAMES.values(), ids=NO_NAMES)
def test_muon_refuses_what_is_no_names(adam):
    with pytest.raises(TypeError, match="Give names of parameters, such as"):
        muon_dimension_numbers(roles_from_trace(fn, PARAMS, X), adam=adam)


OPTIONS = {
    "axes_from_rank(output_axis=[0])": (
        lambda: axes_from_rank(PARAMS, output_axis=[0]),
        "Use one int",
    ),
    "axes_from_rank(output_axis=(0,))": (
        lambda: axes_from_rank(output_axis=(0,)),
        "Use one int",
    ),
    "axes_from_rank(output_axis='last')": (
        lambda: axes_from_rank(PARAMS, output_axis="last"),
        "Use one int",
    ),
    "a partial with output_axis='last'": (
        lambda: centralize(functools.partial(axes_from_rank, output_axis="last")).init(PARAMS),
        "Use one int",
    ),
    "axes_from_rank(output_axis=2)": (lambda: axes_from_rank(PARAMS, output_axis=2), "Use -1"),
    "axes_from_trace(on_unresolved)": (
        lambda: axes_from_trace(fn, PARAMS, X, on_unresolved="ignore"),
        "Use 'skip'",
    ),
    "roles_from_trace(on_unresolved)": (
        lambda: roles_from_trace(fn, PARAMS, X, on_unresolved=False),
        "Use 'skip'",
    ),
    "rescale_weights(1.0)": (lambda: rescale_weights(1.0), r"rescale_weights\(norm=1.0\)"),
    "rescale_weights('layer')": (
        lambda: rescale_weights("layer"),
        r"rescale_weights\(per='layer'\)",
    ),
    "rescale_weights(None)": (lambda: rescale_weights(None), r"\(0,\)"),
    "rescale_weights(norm='unit')": (
        lambda: rescale_weights(norm="unit"),
        "Use a positive number",
    ),
    "rescale_weights(norm=0)": (lambda: rescale_weights(norm=0), "Use a positive number"),
    "rescale_weights(norm=-1)": (lambda: rescale_weights(norm=-1), "Use a positive number"),
    "rescale_weights(norm=tree)": (lambda: rescale_weights(norm=PARAMS), "Use a positive number"),
    "rescale_weights(norm=array)": (lambda: rescale_weights(norm=jnp.ones(3)), "Use one number"),
    "rescale_weights(per=units)": (lambda: rescale_weights(per="units"), "Use 'unit' or 'layer'"),
    "rescale_weights without params": (
        lambda: rescale_weights().update(GRADS, rescale_weights().init(PARAMS)),
        r"tx.update\(grads, state, params\)",
    ),
    "rescale_weights with a state of others": (
        lambda: rescale_weights().update(GRADS, rescale_weights((1,)).init(PARAMS), PARAMS),
        "Call init again",
    ),
    "rescale_weights of nothing": (lambda: rescale_weights(()).init(PARAMS), "leave it out"),
    "rescale_weights of other updates": (
        lambda: rescale_weights().update(GRADS["w"], rescale_weights().init(PARAMS), PARAMS),
        "same structure",
    ),
    "scale_invariant(per)": (lambda: scale_invariant(PARAMS, GRADS, per="w"), "Use 'unit'"),
    "scale_invariant(tolerance)": (
        lambda: scale_invariant(PARAMS, GRADS, tolerance="small"),
        "such as 0.01",
    ),
    "scale_invariant(tolerance=-1)": (
        lambda: scale_invariant(PARAMS, GRADS, tolerance=-1),
        "such as 0.01",
    ),
    "scale_invariant of fewer gradients": (
        lambda: scale_invariant(PARAMS, {"w": GRADS["w"]}),
        "several batches",
    ),
    "scale_invariant of a list of gradients": (
        lambda: scale_invariant(PARAMS, [GRADS, GRADS]),
        "several batches",
    ),
    "scale_invariant of gradients of others": (
        lambda: scale_invariant(PARAMS, {"w": GRADS["b"], "b": GRADS["b"]}),
        "one leading axis",
    ),
    "scale_invariant under jit": (
        lambda: jax.jit(lambda p, g: jnp.ones(()) * len(scale_invariant(p, g)))(PARAMS, GRADS),
        "Call it outside",
    ),
    "scale_invariant(loss, params)": (lambda: scale_invariant(loss, PARAMS), "Give a tree"),
    "removed_fraction(params, grads)": (
        lambda: diagnostics.removed_fraction(PARAMS, GRADS),
        r"axes_from_rank\(params\)",
    ),
    "summary(params, grads)": (lambda: summary(PARAMS, GRADS), r"axes_from_rank\(params\)"),
    "center_weights(axes, params)": (lambda: center_weights((0,), PARAMS), "axes come second"),
    "center_weights of shapes": (
        lambda: center_weights(jax.eval_shape(lambda: PARAMS)),
        r"jax.eval_shape\(center_weights, params\)",
    ),
    "radial_component(grads, axes)": (
        lambda: diagnostics.radial_component(GRADS, {"w": (0,), "b": ()}),
        "axes come",
    ),
    "radial_component(per)": (
        lambda: diagnostics.radial_component(GRADS, PARAMS, per="w"),
        "Use 'unit'",
    ),
    "radial_component of others": (
        lambda: diagnostics.radial_component(GRADS, {"w": GRADS["w"]}),
        "same structure",
    ),
    "radial_component of other shapes": (
        lambda: diagnostics.radial_component(GRADS, {"w": jnp.ones((5, 8)), "b": jnp.ones(5)}),
        "params that the gradients are of",
    ),
    "norms with specs that do not fit": (
        lambda: diagnostics.norms(GRADS, specs={"w": "x", "b": PartitionSpec()}),
        "jax.sharding.PartitionSpec",
    ),
    "norms with specs that name a mesh axis": (
        lambda: diagnostics.norms(GRADS, specs="x"),
        "jax.sharding.PartitionSpec",
    ),
    "norms with specs of some": (
        lambda: diagnostics.norms(GRADS, specs={"w": PartitionSpec("x")}),
        "no entry for 'b'",
    ),
    "centralize with specs of too many": (
        lambda: centralize(specs=PartitionSpec("x", "y", "z")).init(PARAMS),
        "at most",
    ),
    "centralize with a name for specs": (
        lambda: centralize(specs="x").init(PARAMS),
        "jax.sharding.PartitionSpec",
    ),
    "inject_hyperparams(centralize)": (
        lambda: optax.inject_hyperparams(centralize)(axes=axes_from_rank).init(PARAMS),
        "static_args",
    ),
    "sharpness(params, loss)": (
        lambda: diagnostics.sharpness(PARAMS, loss, key=KEY),
        r"sharpness\(loss, params, key=key\)",
    ),
    "sharpness(loss value, params)": (
        lambda: diagnostics.sharpness(loss(PARAMS), PARAMS, key=KEY),
        r"sharpness\(loss, params, key=key\)",
    ),
    "sharpness(key=0)": (lambda: diagnostics.sharpness(loss, PARAMS, key=0), "jax.random.key"),
    "sharpness of a vector": (
        lambda: diagnostics.sharpness(lambda p: p["b"], PARAMS, key=KEY),
        "Take the mean",
    ),
    "sharpness with auxiliary outputs": (
        lambda: diagnostics.sharpness(lambda p: (loss(p), p), PARAMS, key=KEY),
        r"loss\(params\)\[0\]",
    ),
    "sharpness of a gradient": (
        lambda: diagnostics.sharpness(jax.grad(loss), PARAMS, key=KEY),
        "one real number",
    ),
    "sharpness(num_matvecs=0)": (
        lambda: diagnostics.sharpness(loss, PARAMS, key=KEY, num_matvecs=0),
        "at least 1",
    ),
    "sharpness of integers": (
        lambda: diagnostics.sharpness(loss, {"w": jnp.ones((2, 2), int)}, key=KEY),
        "at least 1",
    ),
    "span_residual(params, x)": (
        lambda: diagnostics.span_residual(PARAMS, jnp.ones((3, 8))),
        r"span_residual\(kernel, inputs\)",
    ),
    "span_residual(weight, params)": (
        lambda: diagnostics.span_residual(PARAMS["w"], PARAMS),
        r"span_residual\(kernel, inputs\)",
    ),
    "span_residual(weight, None)": (
        lambda: diagnostics.span_residual(PARAMS["w"], None),
        r"span_residual\(kernel, inputs\)",
    ),
    "span_residual of a bias": (
        lambda: diagnostics.span_residual(PARAMS["b"], jnp.ones((3, 5))),
        "Give a kernel",
    ),
    "span_residual swapped": (
        lambda: diagnostics.span_residual(jnp.ones((3, 8)), PARAMS["w"]),
        "do not end in the fan-in",
    ),
    "span_residual of inputs that do not fit": (
        lambda: diagnostics.span_residual(PARAMS["w"], jnp.ones((3, 7))),
        "dense kernel's axes",
    ),
    "span_residual(axes=0)": (
        lambda: diagnostics.span_residual(PARAMS["w"], jnp.ones((3, 8)), axes=0),
        r"\(0,\)",
    ),
    "span_residual(axes=(2,))": (
        lambda: diagnostics.span_residual(PARAMS["w"], jnp.ones((3, 8)), axes=(2,)),
        "from -2 to 1",
    ),
    "span_residual(axes='in')": (
        lambda: diagnostics.span_residual(PARAMS["w"], jnp.ones((3, 8)), axes="in"),
        r"\(0,\)",
    ),
    "span_residual with strides and no padding": (
        lambda: diagnostics.span_residual(PARAMS["w"], jnp.ones((3, 8)), strides=2),
        "Give a convolution's padding",
    ),
    "span_residual(padding='same size')": (
        lambda: diagnostics.span_residual(
            jnp.ones((3, 3, 2, 4)), jnp.ones((1, 6, 6, 2)), padding="same size"
        ),
        "'SAME', 'VALID'",
    ),
    "span_residual(padding=1)": (
        lambda: diagnostics.span_residual(
            jnp.ones((3, 3, 2, 4)), jnp.ones((1, 6, 6, 2)), padding=1
        ),
        "'SAME', 'VALID'",
    ),
    "span_residual of a dense kernel with padding": (
        lambda: diagnostics.span_residual(PARAMS["w"], jnp.ones((3, 8)), padding="SAME"),
        "A kernel of a convolution",
    ),
    "span_residual of a convolution's inputs in NCHW": (
        lambda: diagnostics.span_residual(
            jnp.ones((3, 3, 2, 4)), jnp.ones((1, 2, 6, 6)), padding="SAME"
        ),
        "2 features",
    ),
    "span_residual of groups that do not fit": (
        lambda: diagnostics.span_residual(
            jnp.ones((3, 3, 2, 4)), jnp.ones((1, 6, 6, 2)), padding="SAME", groups=2
        ),
        "groups=2",
    ),
    "span_residual of a rank-7 kernel": (
        lambda: diagnostics.span_residual(
            jnp.ones((1,) * 7), jnp.ones((1,) * 7), padding="SAME", axes=None
        ),
        "window of at most three",
    ),
}


@pytest.mark.parametrize(("call", "mend"), OPTIONS.values(), ids=OPTIONS)
def test_a_mistaken_option_is_refused_with_what_to_write(call, mend):
    with pytest.raises((TypeError, ValueError), match=mend):
        call()


def test_centralizing_a_flattened_tree_warns():
    tx = optax.flatten(optax.chain(centralize(), optax.sgd(0.1)))
    with pytest.warns(UserWarning, match="before optax.flatten"):
        tx.init(PARAMS)


def test_the_right_calls_are_silent():
    model = eqx.nn.Linear(8, 5, key=KEY)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for take in TAKES_PARAMS.values():
            take(PARAMS)
        for take in TAKES_AXES.values():
            take({"w": (0,), "b": ()})
        for trace in TRACES.values():
            trace(fn, PARAMS, X)
            trace(model, f32(8))
