"""The call that everyone tries first: a model that holds its arrays, and an input."""

import functools
from typing import Any

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
from trace_support import f32

from optax_gc import axes_from_trace, center_weights, centralize, explain, roles_from_trace, summary

X = f32(3, 8)


class Net(nnx.Module):
    """With statistics, a random stream, a list, and a layer in two places."""

    def __init__(self, rngs):
        self.first = nnx.Linear(8, 5, rngs=rngs)
        self.norm = nnx.BatchNorm(5, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)
        self.layers = nnx.List([nnx.Linear(5, 5, rngs=rngs), nnx.Linear(5, 4, rngs=rngs)])
        self.shared = self.layers[0]

    def __call__(self, x):
        h = self.dropout(self.norm(self.first(x)))
        return self.layers[1](self.shared(jnp.tanh(self.layers[0](h))))


NET_AXES = {
    "first": {"bias": (), "kernel": (0,)},
    "norm": {"bias": (), "scale": ()},
    "layers": {0: {"bias": (), "kernel": (0,)}, 1: {"bias": (), "kernel": (0,)}},
}


def net():
    return Net(nnx.Rngs(0))


def mlp():
    return eqx.nn.MLP(8, 4, 6, 1, key=jax.random.key(0))


def weights(axes):
    """The axes of an MLP's two weights."""
    return [layer.weight for layer in axes.layers]


@pytest.mark.parametrize(
    "call",
    [
        lambda m: axes_from_trace(m, X),
        lambda m: axes_from_trace(m.__call__, X),
        lambda m: axes_from_trace(nnx.jit(m), X),
        lambda m: axes_from_trace(functools.partial(m), X),
        lambda m: axes_from_trace(jax.tree_util.Partial(m), X),
        lambda m: axes_from_trace(lambda model, x: model(x).sum(), m, X),
        lambda m: roles_from_trace(m, X).fan_in,
    ],
    ids=["model", "method", "jit", "partial", "Partial", "loss", "roles"],
)
def test_the_parameters_of_an_nnx_model_are_its_own(call, standard_promotion):
    assert call(net()) == NET_AXES


def test_an_abstract_nnx_model_is_traced_as_a_concrete_one(standard_promotion):
    assert axes_from_trace(nnx.eval_shape(net), X) == NET_AXES


def test_a_traced_nnx_model_is_as_it_was(standard_promotion):
    model = net()
    before = jax.tree.map(jnp.asarray, nnx.state(model, nnx.BatchStat))
    axes_from_trace(model, X)
    jax.tree.map(np.testing.assert_array_equal, before, nnx.state(model, nnx.BatchStat))
    assert int(model.dropout.rngs.count[...]) == 0


def test_an_nnx_model_trains_with_the_answer(standard_promotion):
    model, x = net(), jax.random.normal(jax.random.key(1), (3, 8))
    axes = axes_from_trace(model, x)
    optimizer = nnx.Optimizer(model, optax.chain(centralize(axes), optax.sgd(0.1)), wrt=nnx.Param)
    sums = model.layers[1].kernel[...].sum(0)
    before = model.layers[1].kernel[...]
    optimizer.update(model, nnx.grad(lambda m: (m(x) ** 2).sum())(model))
    after = model.layers[1].kernel[...]
    assert float(abs(after - before).max()) > 1e-3
    np.testing.assert_allclose(after.sum(0), sums, atol=1e-5)


def test_summary_of_an_nnx_model_lists_each_parameter_once(standard_promotion):
    model = net()
    rows = summary(model, axes_from_trace(model, X)).splitlines()[1:-1]
    assert sorted(row.split()[0] for row in rows) == [
        "first/bias",
        "first/kernel",
        "layers/0/bias",
        "layers/0/kernel",
        "layers/1/bias",
        "layers/1/kernel",
        "norm/bias",
        "norm/scale",
    ]


def test_a_layer_in_two_places_is_centred_in_both(standard_promotion):
    model = net()
    centred = center_weights(model, axes_from_trace(model, X))
    np.testing.assert_array_equal(centred.shared.kernel[...], centred.layers[0].kernel[...])
    np.testing.assert_allclose(centred.shared.kernel[...].mean(0), np.zeros(5), atol=1e-6)


def test_explain_lists_the_parameters_of_an_nnx_model(standard_promotion):
    text = explain(net(), X)
    assert "first/kernel" in text and "rngs" not in text and "mean" not in text


def test_weights_of_an_nnx_model_that_are_not_trained_are_constants():
    class Lora(nnx.Module):
        def __init__(self, rngs):
            self.frozen = nnx.Variable(jnp.ones((8, 6)))
            self.a = nnx.Param(jnp.ones((8, 5)))

        def __call__(self, x):
            return x @ self.frozen[...] + (x @ self.a[...]) @ jnp.ones((5, 6))

    assert axes_from_trace(Lora(nnx.Rngs(0)), X) == {"a": (0,)}


@pytest.mark.parametrize(
    ("wrap", "x"),
    [
        (lambda m: m, f32(8)),
        (lambda m: m.__call__, f32(8)),
        (jax.vmap, X),
        (lambda m: jax.jit(jax.vmap(m)), X),
        (lambda m: jax.vmap(jax.jit(m)), X),
        (eqx.filter_vmap, X),
        (eqx.filter_jit, f32(8)),
        (lambda m: jax.vmap(eqx.filter_jit(m)), X),
        (lambda m: jax.tree_util.Partial(jax.vmap(m)), X),
        (lambda m: functools.partial(m, key=jax.random.key(0)), f32(8)),
        (lambda m: jax.vmap(jax.vmap(m)), f32(2, 3, 8)),
        (jax.checkpoint, f32(8)),
        (lambda m: jax.vmap(jax.checkpoint(m)), X),
        (lambda m: jax.checkpoint(jax.vmap(m)), X),
        (eqx.filter_checkpoint, f32(8)),
    ],
    ids=[
        "model",
        "method",
        "vmap",
        "jit of vmap",
        "vmap of jit",
        "filter_vmap",
        "filter_jit",
        "vmap of filter_jit",
        "Partial",
        "partial",
        "vmap of vmap",
        "checkpoint",
        "vmap of checkpoint",
        "checkpoint of vmap",
        "filter_checkpoint",
    ],
)
def test_the_parameters_of_an_equinox_model_are_its_own(wrap, x):
    axes = axes_from_trace(wrap(mlp()), x)
    assert weights(axes) == [(1,), (1,)]
    assert [layer.bias for layer in axes.layers] == [(), ()]


@pytest.mark.parametrize(
    "wrap",
    [jax.vmap, nnx.vmap, lambda m: nnx.jit(nnx.vmap(m)), jax.checkpoint, nnx.remat],
    ids=["jax.vmap", "nnx.vmap", "jit of vmap", "jax.checkpoint", "nnx.remat"],
)
def test_a_wrapped_nnx_layer_is_traced(wrap):
    assert axes_from_trace(wrap(nnx.Linear(8, 5, rngs=nnx.Rngs(0))), X) == {
        "bias": (),
        "kernel": (0,),
    }


def test_an_equinox_model_may_be_the_params_of_a_function():
    axes = axes_from_trace(lambda model, x: jax.vmap(model)(x).sum(), mlp(), X)
    assert weights(axes) == [(1,), (1,)]


def test_an_equinox_model_trains_with_the_answer():
    model, x = mlp(), jax.random.normal(jax.random.key(1), (3, 8))
    tx = optax.chain(centralize(axes_from_trace(jax.vmap(model), x)), optax.sgd(0.1))
    params = eqx.filter(model, eqx.is_inexact_array)
    grads = eqx.filter_grad(lambda m: (jax.vmap(m)(x) ** 2).sum())(model)
    updates, _ = tx.update(grads, tx.init(params), params)
    np.testing.assert_allclose(updates.layers[1].weight.mean(1), np.zeros(4), atol=1e-6)
    assert float(abs(updates.layers[1].weight).max()) > 1e-3


@pytest.mark.parametrize(
    "params",
    [lambda m: m, lambda m: eqx.filter(m, eqx.is_inexact_array)],
    ids=["model", "filtered"],
)
def test_summary_takes_the_answer_for_an_equinox_model(params):
    model = mlp()
    assert "(6, 8)  (1,)" in summary(params(model), axes_from_trace(model, f32(8)))


def test_integers_and_functions_in_an_equinox_model_are_no_parameters():
    class Gather(eqx.Module):
        index: jax.Array
        w: jax.Array
        activation: Any

        def __call__(self, x):
            return self.activation(x[self.index] @ self.w)

    model = Gather(jnp.array([2, 0, 1]), jnp.ones((3, 5)), jnp.tanh)
    axes = axes_from_trace(model, f32(8))
    assert (axes.index, axes.w, axes.activation) == ((), (0,), ())


linen = nn.Dense(5)
variables = {"params": {"kernel": jnp.ones((8, 5)), "bias": jnp.ones(5)}}
transformed = hk.transform(lambda x: hk.Linear(5)(x))
with_state = hk.transform_with_state(lambda x: hk.Linear(5)(x))
haiku_params = {"linear": {"w": jnp.ones((8, 5)), "b": jnp.ones(5)}}
W = {"w": jnp.ones((8, 5))}


class NoPytree(nnx.Module, pytree=False):
    def __init__(self):
        self.layer = nnx.Linear(8, 5, rngs=nnx.Rngs(0))

    def __call__(self, x):
        return self.layer(x)


def keras_model():
    return keras.Sequential([keras.Input((8,)), keras.layers.Dense(5)])


def merged_without_statistics():
    graphdef, params, _ = nnx.split(net(), nnx.Param, ...)
    return axes_from_trace(lambda params, x: nnx.merge(graphdef, params)(x), params, X)


def updated_from_outside():
    model = net()

    def fn(params, x):
        nnx.update(model, params)
        return model(x)

    return axes_from_trace(fn, nnx.state(model, nnx.Param), X)


def with_an_axis_name():
    norm = nn.BatchNorm(False, axis_name="batch")
    fn = lambda p, x: norm.apply({"params": {}}, x @ p["w"], mutable=True)[0]  # noqa: E731
    return axes_from_trace(fn, W, X)


REFUSED = {
    "an array for params": (lambda: axes_from_trace(lambda x: x @ W["w"], X), "fn, params, x"),
    "a closure over the model": (
        lambda: axes_from_trace(lambda p, x: mlp()(x), W, f32(8)),
        "lambda model, x: model(x)",
    ),
    "a model and its parameters": (
        lambda: axes_from_trace(m := mlp(), eqx.filter(m, eqx.is_array), f32(8)),
        "axes_from_trace(model, x)",
    ),
    "swapped": (lambda: axes_from_trace(W, lambda p, x: x @ p["w"], X), "swapped"),
    "swapped, of a model": (lambda: axes_from_trace(mlp(), lambda m, x: m(x), f32(8)), "swapped"),
    "no function": (lambda: axes_from_trace(W, X), "cannot be called"),
    "no pytree": (lambda: axes_from_trace(NoPytree(), X), "nnx.split(model, nnx.Param, ...)"),
    "no pytree as params": (
        lambda: axes_from_trace(lambda m, x: m(x), NoPytree(), X),
        "nnx.split(model, nnx.Param, ...)",
    ),
    "a Linen module": (lambda: axes_from_trace(linen, variables, X), "{'params': params}"),
    "a bound Linen module": (
        lambda: axes_from_trace(linen.bind(variables), {"x": X}),
        "{'params': params}",
    ),
    "Linen's apply, inner params": (
        lambda: axes_from_trace(linen.apply, variables["params"], X),
        "model.apply({'params': params}, x)",
    ),
    "Linen's apply, a batch": (
        lambda: axes_from_trace(functools.partial(linen.apply, variables), X),
        "model.apply({'params': params}, x)",
    ),
    "Linen's apply in fn, inner params": (
        lambda: axes_from_trace(lambda p, x: linen.apply(p, x), variables["params"], X),
        "{'params': params}",
    ),
    "statistics of a model in a vmap": (
        lambda: axes_from_trace(nnx.vmap(net()), X),
        "axes_from_trace(model, x)",
    ),
    "a batch for an Equinox model": (lambda: axes_from_trace(mlp(), X), "jax.vmap(model)"),
    "a shape for a batch": (lambda: axes_from_trace(mlp(), (3, 8)), "jax.ShapeDtypeStruct"),
    "a batch of other features": (
        lambda: axes_from_trace(net(), f32(3, 9)),
        "an array of shape (3, 9)",
    ),
    "init and a key": (
        lambda: axes_from_trace(transformed.init, jax.random.key(0), X),
        "axes_from_trace(model.apply, params, x)",
    ),
    "params after the inputs": (
        lambda: axes_from_trace(lambda x, p: x @ p["w"], X, W),
        "axes_from_trace(lambda params, x: fn(x, params), params, x)",
    ),
    "pairs after the inputs": (
        lambda: axes_from_trace(lambda x, p: x @ p[0][0], X, [(W["w"], jnp.ones(5))]),
        "axes_from_trace(lambda params, x: fn(x, params), params, x)",
    ),
    "a model after the inputs": (
        lambda: axes_from_trace(lambda x, m: m(x), f32(8), mlp()),
        "axes_from_trace(lambda params, x: fn(x, params), params, x)",
    ),
    "None for params": (lambda: axes_from_trace(lambda p, x: x, None, X), "Give a tree of arrays"),
    "shapes for params": (
        lambda: axes_from_trace(lambda p, x: x @ p["w"], {"w": (8, 5)}, X),
        "jax.ShapeDtypeStruct",
    ),
    "NumPy in fn": (lambda: axes_from_trace(lambda p, x: np.dot(x, p["w"]), W, X), "jnp for np"),
    "if in fn": (
        lambda: axes_from_trace(lambda p, x: x @ p["w"] if x.sum() > 0 else x, W, X),
        "jax.lax.cond for if",
    ),
    "float in fn": (
        lambda: axes_from_trace(lambda p, x: float((x @ p["w"]).sum()), W, X),
        "leave out float",
    ),
    "Haiku's state": (
        lambda: axes_from_trace(with_state.apply, haiku_params, X),
        "axes_from_trace(model.apply, params, state, None, x)",
    ),
    "Haiku's state among the params": (
        lambda: axes_from_trace(with_state.apply, (haiku_params, {}), None, X),
        "axes_from_trace(model.apply, params, state, None, x)",
    ),
    "Haiku's pair": (lambda: axes_from_trace(transformed, haiku_params, X), "fn.apply"),
    "Haiku's apply without a key": (
        lambda: axes_from_trace(transformed.apply, haiku_params, X),
        "hk.without_apply_rng",
    ),
    "a Keras model": (lambda: axes_from_trace(keras_model(), X), "model.trainable_variables"),
    "a bound array": (
        lambda: axes_from_trace(functools.partial(lambda p, b: b["x"] @ p["w"], W), {"x": X}),
        "lambda params, x",
    ),
    "parameters bound by name": (
        lambda: axes_from_trace(jax.tree_util.Partial(lambda b, p: b["x"] @ p["w"], p=W), {"x": X}),
        "lambda params, x",
    ),
    "merged without its statistics": (merged_without_statistics, "axes_from_trace(model, x)"),
    "updated from outside": (updated_from_outside, "axes_from_trace(model, x)"),
    "an axis name": (with_an_axis_name, "axis_name"),
    "what hides the model": (
        lambda: axes_from_trace(jax.pmap(mlp()), X),
        "lambda model, x: jax.vmap(model)(x)",
    ),
}


@pytest.mark.parametrize(("call", "mend"), REFUSED.values(), ids=REFUSED)
def test_a_call_that_cannot_work_ends_in_a_short_message_with_what_to_write(
    call, mend, standard_promotion
):
    with pytest.raises((TypeError, ValueError)) as error:
        call()
    assert mend in str(error.value)
    assert len(str(error.value)) < 800


def test_summary_of_a_keras_model_says_what_to_give_it():
    with pytest.raises(ValueError, match=r"give model\.trainable_variables"):
        summary(keras_model())
