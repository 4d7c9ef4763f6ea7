"""What a scan stacks is an activation like any other: layers after it are read as layers."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import keras
import pytest
from flax import nnx
from trace_support import answers, f32, haiku, keras_, linen, nnx_, promoting

X = f32(3, 7, 8)


class LinenAfterRNN(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.LayerNorm()(nn.RNN(nn.LSTMCell(10))(x))
        x = x + nn.MultiHeadDotProductAttention(2)(x)
        x = nn.BatchNorm(use_running_average=False)(nn.Dense(12)(x))
        return nn.Dense(5)(x.reshape(x.shape[0], -1))


class NnxAfterRNN(nnx.Module):
    def __init__(self, rngs):
        self.rnn = nnx.RNN(nnx.GRUCell(8, 10, rngs=rngs), rngs=rngs)
        self.head = nnx.Linear(70, 5, rngs=rngs)

    def __call__(self, x):
        return self.head(self.rnn(x).reshape(x.shape[0], -1))


def haiku_after_rnn(x):
    import haiku as hk

    core = hk.VanillaRNN(10)
    ys, _ = hk.dynamic_unroll(core, x, core.initial_state(x.shape[1]))
    return hk.BatchApply(hk.Linear(5))(ys)


def kernels(found):
    return {path: axes for path, axes in found.items() if len(axes)}


def test_linen_layers_after_an_rnn_get_their_axes():
    found = answers(*linen(LinenAfterRNN(), X))
    assert "refused" not in found.values()
    assert found["Dense_0/kernel"] == found["Dense_1/kernel"] == (0,)
    assert found["MultiHeadDotProductAttention_0/query/kernel"] == (0,)
    assert found["MultiHeadDotProductAttention_0/out/kernel"] == (0, 1)
    assert found["LayerNorm_0/scale"] == found["BatchNorm_0/scale"] == ()


def test_nnx_layers_after_an_rnn_get_their_axes():
    found = answers(*nnx_(lambda: NnxAfterRNN(nnx.Rngs(0)), X))
    assert kernels(found).keys() == {path for path in found if path.endswith("kernel")}
    assert set(kernels(found).values()) == {(0,)}


def test_haiku_layers_after_an_unroll_get_their_axes():
    found = answers(*haiku(haiku_after_rnn, X))
    assert kernels(found).keys() == {path for path in found if path.endswith("/w")}
    assert set(kernels(found).values()) == {(0,)}


def test_keras_layers_after_an_rnn_get_their_axes():
    model = keras.Sequential(
        [
            keras.layers.LSTM(10, return_sequences=True),
            keras.layers.Flatten(),
            keras.layers.Dense(5),
        ]
    )
    with promoting():
        model.build((None, 7, 8))
    found = answers(*keras_(model, X))
    assert list(found.values()) == [(0,), (0,), (), (0,), ()]


@pytest.mark.parametrize(
    "after",
    [
        lambda y: y.reshape(-1),
        lambda y: y.swapaxes(0, 1).sum(0),
        lambda y: jnp.einsum("btf,bsf->bts", y, y),
        lambda y: jax.nn.softmax(y, axis=0),
        lambda y: y[::-1],
    ],
    ids=["reshape", "sum", "product", "softmax", "flip"],
)
def test_what_follows_a_map_does_not_hide_the_layer_in_it(after):
    found = answers(lambda p, x: after(jax.lax.map(lambda x: jnp.tanh(x @ p), x)), f32(8, 6), X)
    assert found == {"params": (0,)}
