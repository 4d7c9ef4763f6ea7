"""The data and the models of the study: nothing to download, nothing that trains for minutes.

A task has a pool of samples, from which each seed draws those to train on and those to tune on, and
a test set that is no part of the pool: no test sample is ever seen before the test.
"""

import sysconfig
from functools import cache, partial
from pathlib import Path
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax
from sklearn.datasets import load_digits

CONTEXT = 32  # bytes that the language model sees


class Task(NamedTuple):
    """Inputs and integer labels; for the language model, bytes and the bytes that follow them."""

    x: np.ndarray
    y: np.ndarray
    test_x: np.ndarray
    test_y: np.ndarray
    classes: int


def digits(standardised: bool) -> Task:
    """8x8 pixels in [0, 1], or each pixel at mean 0 and variance 1; 1200 in the pool, 597 tests."""
    x, y = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(y))
    x, y = (x[order] / 16).astype(np.float32), y[order].astype(np.int32)
    if standardised:
        x = (x - x[:1200].mean(0)) / np.maximum(x[:1200].std(0), 1e-3)
    return Task(x[:1200], y[:1200], x[1200:], y[1200:], 10)


def synthetic(label_is_mean: bool) -> Task:
    """32 numbers, most of whose variance is in their common mean, and which side they are on.

    x = z + 3 m e with e = 1/√32, where z is standard normal with its mean over the 32 removed and m
    is standard normal. The label is the sign of m, or that of z along a fixed direction, to which
    the mean is then a nuisance. One label in ten is flipped.
    """
    rng, size = np.random.default_rng(0), 1200 + 2000
    z, m, u = rng.normal(size=(size, 32)), rng.normal(size=(size, 1)), rng.normal(size=32)
    z, u = z - z.mean(axis=1, keepdims=True), u - u.mean()
    y = (m[:, 0] if label_is_mean else z @ u) > 0
    x = (z + 3 * m / np.sqrt(32)).astype(np.float32)
    y = (y ^ (rng.random(size) < 0.1)).astype(np.int32)
    return Task(x[:1200], y[:1200], x[1200:], y[1200:], 2)


def source_code() -> Task:
    """Windows of bytes of the Python standard library's modules; every fifth module is a test."""
    modules = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))

    def windows(modules):
        text = np.frombuffer(b"".join(path.read_bytes() for path in modules), np.uint8)
        size = len(text) // (CONTEXT + 1)
        cut = text[: size * (CONTEXT + 1)].reshape(size, CONTEXT + 1).astype(np.int32)
        return cut[:, :-1], cut[:, 1:]

    x, y = windows([path for i, path in enumerate(modules) if i % 5])
    test_x, test_y = windows(modules[::5])
    some = np.linspace(0, len(test_x) - 1, 512, dtype=int)
    return Task(x, y, test_x[some], test_y[some], 256)


LOADERS = {
    "digits, raw": partial(digits, standardised=False),
    "digits, standardised": partial(digits, standardised=True),
    "mean is a nuisance": partial(synthetic, label_is_mean=False),
    "mean is the label": partial(synthetic, label_is_mean=True),
    "source code": source_code,
}


@cache
def load(name: str) -> Task:
    """Returns a task, made once."""
    return LOADERS[name]()


class MLP(nnx.Module):
    """One hidden layer."""

    def __init__(self, features: int, classes: int, rngs: nnx.Rngs):
        """Draws the initial weights."""
        self.hidden = nnx.Linear(features, 64, rngs=rngs)
        self.head = nnx.Linear(64, classes, rngs=rngs)

    def __call__(self, x, train):
        """Returns logits."""
        return self.head(nnx.relu(self.hidden(x)))


def conv_as_matmul(x, kernel, strides, padding, **_):
    """Convolves by gathering 3x3 patches.

    Under vmap over seeds each seed has its own kernel, and XLA's grouped convolutions are slow.
    """
    high, wide = ((n - 1) // s + 1 for n, s in zip(x.shape[1:3], strides, strict=True))
    x = jnp.pad(x, ((0, 0), *padding, (0, 0)))
    patches = [
        x[:, i : i + (high - 1) * strides[0] + 1 : strides[0]][
            :, :, j : j + (wide - 1) * strides[1] + 1 : strides[1]
        ]
        for i in range(3)
        for j in range(3)
    ]
    return lax.dot_general(
        jnp.concatenate(patches, axis=-1),
        kernel.reshape(-1, kernel.shape[-1]),
        (((3,), (0,)), ((), ())),
    )


class CNN(nnx.Module):
    """Two 3x3 convolutions, each followed by batch normalisation, the mean over pixels, a head."""

    def __init__(self, features: int, classes: int, rngs: nnx.Rngs):
        """Draws the initial weights."""
        conv = partial(
            nnx.Conv, kernel_size=(3, 3), padding=1, conv_general_dilated=conv_as_matmul, rngs=rngs
        )
        self.first, self.norm1 = conv(1, 8), nnx.BatchNorm(8, momentum=0.9, rngs=rngs)
        self.second, self.norm2 = conv(8, 24, strides=2), nnx.BatchNorm(24, momentum=0.9, rngs=rngs)
        self.head = nnx.Linear(24, classes, rngs=rngs)

    def __call__(self, x, train):
        """Returns logits; updates the running statistics if `train`, uses them if not."""
        x = x.reshape(-1, 8, 8, 1)
        x = nnx.relu(self.norm1(self.first(x), use_running_average=not train))
        x = nnx.relu(self.norm2(self.second(x), use_running_average=not train))
        return self.head(x.mean(axis=(1, 2)))


class Transformer(nnx.Module):
    """One block of causal attention and an MLP, each after a LayerNorm; width 32."""

    def __init__(self, features: int, classes: int, rngs: nnx.Rngs):
        """Draws the initial weights."""
        self.bytes = nnx.Embed(256, 32, rngs=rngs)
        self.positions = nnx.Embed(CONTEXT, 32, rngs=rngs)
        self.attention = nnx.MultiHeadAttention(2, 32, decode=False, rngs=rngs)
        self.wide, self.narrow = nnx.Linear(32, 128, rngs=rngs), nnx.Linear(128, 32, rngs=rngs)
        self.norm1, self.norm2, self.norm3 = (nnx.LayerNorm(32, rngs=rngs) for _ in range(3))
        self.head = nnx.Linear(32, classes, rngs=rngs)

    def __call__(self, x, train):
        """Returns logits of the byte after each."""
        causal = jnp.tril(jnp.ones((CONTEXT, CONTEXT), bool))[None, None]
        h = self.bytes(x) + self.positions(jnp.arange(CONTEXT))[None]
        h += self.attention(self.norm1(h), mask=causal)
        h += self.narrow(nnx.relu(self.wide(self.norm2(h))))
        return self.head(self.norm3(h))


MODELS = {"MLP": MLP, "BN-CNN": CNN, "LN-transformer": Transformer}
