"""Whichever way a program is spelled, every answer stays or is refused.

The programs are those of the other tests. OPTAX_GC_EVERYTHING=1 respells whole models too.
"""

import functools
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from respell import BATCH, SPELLINGS, changed, judge, primitives, respelled, vmap_fails
from trace_everything import (
    OTHERS_TO_MEMBERS,
    SHARED,
    WHOLE,
    built,
    everything,
    is_known,
    judged,
)
from trace_support import REFUSED, answers, f32, promoting, values_of

EVERYTHING = bool(os.environ.get("OPTAX_GC_EVERYTHING"))


@functools.cache
def programs():
    found = []
    for name, build, expected in everything(models=EVERYTHING):
        program = built(build)
        fn, params, *args = program
        with promoting():
            names = primitives(jax.make_jaxpr(fn)(params, *args).jaxpr)
        if is_known(name) or names & WHOLE:
            continue
        found.append((name, program, answers(*program), expected))
    return found


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_an_answer_under_another_spelling_is_the_same_or_a_refusal(spelling):
    wrong, judged = [], 0
    for name, program, original, expected in programs():
        if spelling == BATCH and name in SHARED:
            continue
        verdicts, found = judge(spelling, program, original, expected) or ({}, {})
        judged += len(found)
        wrong += [(name, p, original[p], found[p]) for p in verdicts.get("different", ())]
    assert not wrong, "\n".join(map(str, wrong))
    assert judged


def stacked(tree):
    return jax.tree.map(lambda s: jax.ShapeDtypeStruct((3, *s.shape), s.dtype), tree)


@pytest.mark.parametrize("inputs", ["shared", "their own"])
def test_members_of_an_ensemble_get_the_axes_of_one_or_are_refused(inputs):
    """The members' axis, which comes first, is none that anything is contracted over."""
    axis = None if inputs == "shared" else 0
    behind = lambda a: a if a == REFUSED else tuple(i + 1 for i in a)  # noqa: E731
    wrong, count = [], 0
    for name, program, one, expected in programs():
        with promoting():
            fails = vmap_fails(program)
        if fails or any(other in name for other in OTHERS_TO_MEMBERS):
            continue
        fn, params, *args = program
        members = jax.vmap(fn, (0, *[axis] * len(args)))
        found = answers(members, stacked(params), *(args if axis is None else stacked(args)))
        right = expected and {path: set(map(behind, of)) for path, of in expected.items()}
        original = {path: behind(axes) for path, axes in one.items()}
        different = judged(found, original, right, stacked(params))["different"]
        wrong += [(name, path, one[path], found[path]) for path in different]
        count += len(found)
    assert not wrong, "\n".join(map(str, wrong))
    assert count > 2000


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_another_spelling_computes_the_same_numbers(spelling):
    compared = 0
    for _, program, *_ in programs()[::-1]:
        with promoting():
            if spelling == BATCH and (vmap_fails(program) or len(program) < 3):
                continue
            if not changed(spelling, program):
                continue
            fn, *rest = program
            params, *args = values_of(rest)
            ours = jax.tree.leaves(jax.jit(respelled(spelling, fn, params, *args))(params, *args))
            theirs = jax.tree.leaves(jax.jit(fn)(params, *args))
        for a, b in zip(ours, theirs, strict=True):
            a = a[1] if spelling == BATCH else a
            np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-4)
        compared += 1
        if compared == 4:
            break
    assert compared


# Layers written one after the other, and rolled into a loop by stacking what they hold.
def residual(p, x):
    return x + jnp.tanh(x @ p["w"] + p["b"]) @ p["v"].T


def recurrent(p, h):
    return jnp.tanh(h @ p["w"] + p["b"] + (h[:, :, None] * p["v"]).sum(1))


def scaled(p, x):
    h = x * jax.lax.rsqrt((x**2).mean(-1, keepdims=True) + 1e-6) * p["b"]
    return x + jax.nn.gelu(h @ p["w"]) @ p["v"]


LAYERS = {"residual": residual, "recurrent": recurrent, "scaled": scaled}


@pytest.mark.parametrize("layer", LAYERS.values(), ids=LAYERS)
@pytest.mark.parametrize("loop", ["scan", "fori_loop", "scan under remat"])
def test_layers_rolled_into_a_loop_get_the_axes_of_layers_in_a_row(layer, loop):
    params = [{"w": f32(8, 8), "b": f32(8), "v": f32(8, 8)} for _ in range(3)]

    def in_a_row(params, x):
        for p in params:
            x = layer(p, x)
        return x

    def rolled(params, x):
        stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *params)
        if loop == "fori_loop":
            at = lambda i: jax.tree.map(lambda leaf: leaf[i], stacked)  # noqa: E731
            return jax.lax.fori_loop(0, 3, lambda i, x: layer(at(i), x), x)
        step = lambda x, p: (layer(p, x), None)  # noqa: E731
        step = jax.checkpoint(step) if "remat" in loop else step
        return jax.lax.scan(step, x, stacked)[0]

    original = answers(in_a_row, params, f32(3, 8))
    assert REFUSED not in original.values()
    assert answers(rolled, params, f32(3, 8)) == original
