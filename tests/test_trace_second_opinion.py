"""Two readers of different programs, the forward and the backward one, find the same axes."""

import contextlib
import functools
import os
from collections import Counter

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import test_trace_conditions as conditions
import test_trace_evidence as evidence
import trace_spellings
from second_opinion import DontKnow, opinion, reached, second_opinion
from trace_everything import ADDED, DERIVATIVES, FACTORS, LOOKUPS, built, everything, is_known
from trace_support import answers, f32, linen, promoting, verdicts_of

UNREACHED = "no gradient reaches it"
EVERYTHING = bool(os.environ.get("OPTAX_GC_EVERYTHING"))


@functools.cache
def opinions():
    """(program, path, axes, how they compare, what the second reader says) of all parameters."""
    found = []
    for name, build, _ in everything(models=EVERYTHING):
        if is_known(name) or any(of in name for of in (*LOOKUPS, *ADDED, *FACTORS, *DERIVATIVES)):
            continue
        program = built(build)
        theirs = answers(*program)
        compared, said = second_opinion(program, theirs)
        found += [(name, path, theirs[path], compared[path], said[path]) for path in theirs]
    return found


def test_no_answer_has_a_second_opinion_against_it():
    against = [o for o in opinions() if o[3] == "disagrees"]
    assert not against, "\n".join(map(str, against))


def test_what_has_a_gradient_has_a_use():
    for name, build, _ in everything(models=False):
        program = built(build)
        unused = {p for p, v in verdicts_of(*program).items() if v.how == UNREACHED}
        if unused:
            with contextlib.suppress(DontKnow):  # it has no backward program
                assert not unused & reached(program), name


def test_seven_answers_in_eight_have_a_second_opinion():
    corners = {name for name, *_ in trace_spellings.CASES} | {f.__name__ for f in evidence.CASES}
    corners |= {*conditions.CASES}
    count = Counter(how for name, _, _, how, _ in opinions() if name not in corners)
    with_opinion = count["agrees"] + count["agrees in part"]
    assert with_opinion >= 7 * count["unknown"]


X = f32(3, 7, 8)
BASIS = np.arange(10, dtype=np.float32).reshape(2, 5)
LAYERS = {
    "a dense layer": (lambda p, x: jnp.tanh(x @ p), f32(8, 5), {0: True, 1: False}),
    "a transposed one": (lambda p, x: jnp.tanh(x @ p.T), f32(5, 8), {0: False, 1: True}),
    "one spelled as a product and a sum": (
        lambda p, x: jnp.tanh((x[..., None] * p).sum(-2)), f32(8, 5), {0: True, 1: False},
    ),
    "layers in a scan": (
        lambda p, x: jax.lax.scan(lambda h, w: (jnp.tanh(h @ w), None), x, p)[0],
        f32(2, 8, 8), {0: False, 1: True, 2: False},
    ),
    "a convolution": (
        lambda p, x: jax.lax.conv_general_dilated(
            x, p, (1,), "VALID", dimension_numbers=("NHC", "HIO", "NHC")
        ),
        f32(3, 8, 5), {0: True, 1: True, 2: False},
    ),
    "a low-rank factor": (
        lambda p, x: jnp.tanh(x @ (p @ BASIS)), f32(8, 2), {0: True, 1: False},
    ),
    "a bias": (lambda p, x: jnp.tanh(x + p), f32(7, 8), {0: False, 1: False}),
    "a scale": (lambda p, x: jnp.tanh(x) * p, f32(7, 8), {0: False, 1: False}),
}  # fmt: skip


@pytest.mark.parametrize(("fn", "params", "expected"), LAYERS.values(), ids=LAYERS)
def test_the_second_reader_finds_the_axes_of(fn, params, expected):
    with promoting():
        (found,) = opinion(fn, params, X).values()
    assert found == expected


def test_the_second_reader_is_against_a_wrong_answer():
    program = linen(nn.MultiHeadDotProductAttention(2, qkv_features=8, out_features=6), X)
    right = answers(*program)
    assert set(second_opinion(program, right)[0].values()) == {"agrees"}
    for path, axes in right.items():
        wrong = right | {path: axes[1:] if axes else (0,)}
        assert second_opinion(program, wrong)[0][path] == "disagrees"
