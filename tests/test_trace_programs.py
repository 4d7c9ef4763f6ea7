"""axes_from_trace on random programs, whose axes are known by construction.

A program stores one weight in a random layout: each axis of the parameter is a product of letters,
as in an einsum. It is brought into shape by a random route of axis-preserving operations, and
contracted with data by an einsum or a convolution, perhaps in a scan, a vmap or a remat. Half of
the programs have all sizes equal, which hides every mistake of a shape-matching rule.

Other programs are networks of layers, and expressions of layers and of parameters. Every program
is also spelled in other ways, which must not change an answer, and read a second time from its
gradient. OPTAX_GC_PROGRAMS=10000 runs that many, and different ones each time:

OPTAX_GC_PROGRAMS=10000 pytest tests/test_trace_programs.py -k random
"""

import math
import os

import jax
import jax.numpy as jnp
import numpy as np
import random_expressions
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st
from random_expressions import UNCLEAR
from respell import SPELLINGS, judge
from second_opinion import second_opinion
from trace_everything import long
from trace_support import REFUSED, answers, f32, fan_in_by_oracle

PROGRAMS = int(os.environ.get("OPTAX_GC_PROGRAMS", "0"))


def programs(n):
    """Runs n programs, or as many as are asked for."""
    return settings(
        max_examples=PROGRAMS or n,
        derandomize=not PROGRAMS,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )


def draw_sizes(draw, letters):
    """A size for each letter: all equal, or all different."""
    if draw(st.booleans()):
        return dict.fromkeys(letters, draw(st.integers(2, 3)))
    return dict(
        zip(letters, draw(st.permutations([2, 3, 4, 5, 6, 7][: len(letters)])), strict=True)
    )


def draw_layout(draw, letters):
    """Letters in random order, cut into axes."""
    letters = list(draw(st.permutations(letters)))
    layout = []
    while letters:
        n = draw(st.integers(1, min(2, len(letters))))
        layout.append("".join(letters[:n]))
        letters = letters[n:]
    return layout


def identity_steps(draw):
    """Functions of an array that keep every axis what it is, and whether they are linear."""
    n = draw(st.integers(0, 4))
    return [draw(st.sampled_from(sorted(STEPS))) for _ in range(n)]


def through_scan(w, axis):
    return jnp.moveaxis(
        jax.lax.scan(lambda c, v: (c, v * 2), 0, jnp.moveaxis(w, axis, 0))[1], 0, axis
    )


def halves(w, axis):
    middle = (w.shape[axis] + 1) // 2
    return [
        jax.lax.slice_in_dim(w, 0, middle, axis=axis),
        jax.lax.slice_in_dim(w, middle, w.shape[axis], axis=axis),
    ]


STEPS = {
    "scale": lambda w, free: w * jnp.float32(0.5),
    "cast": lambda w, free: w.astype(jnp.bfloat16).astype(jnp.float32),
    "flip": lambda w, free: jnp.flip(w, -1),
    "pass through a vmap": lambda w, free: jax.vmap(lambda v: -v, 1, 1)(w),
    "swap and swap back": lambda w, free: jnp.swapaxes(jnp.swapaxes(w, 0, -1) * 2, 0, -1),
    "flatten and unflatten": lambda w, free: (w.reshape(-1) + 1).reshape(w.shape),
    "add an axis and remove it": lambda w, free: (w[:, None] * 2)[:, 0],
    "remat": lambda w, free: jax.checkpoint(lambda v: v * 3)(w),
    "jit": lambda w, free: jax.jit(lambda v: v * 3)(w),
    "add zeros": lambda w, free: w + jnp.zeros(w.shape[1:])[None],
    "mask": lambda w, free: jnp.where(np.arange(w.size).reshape(w.shape) >= 0, w, 0.0),
    "halve outputs and join": lambda w, free: jnp.concatenate(halves(w, free), free),
    "tanh": lambda w, free: jnp.tanh(w),
    "centre": lambda w, free: w - w.mean(tuple(range(w.ndim)), keepdims=True),
    "normalize": lambda w, free: w / jnp.sqrt((w**2).sum(0, keepdims=True) + 1),
}
NONLINEAR = {"tanh", "centre", "normalize"}


@st.composite
def einsum_programs(draw):
    """A weight of axes made of letters, contracted with data by an einsum."""
    fan_in = "ab"[: draw(st.integers(1, 2))]
    outputs = "yz"[: draw(st.integers(1, 2))]
    batch = "k"[: draw(st.integers(0, 1))]
    sizes = draw_sizes(draw, fan_in + outputs + batch + "n")
    layout = draw_layout(draw, fan_in + outputs + batch)
    order = draw(st.permutations(fan_in + outputs + batch))
    steps = identity_steps(draw)
    swapped = draw(st.booleans())
    wrapper = draw(st.sampled_from(["none", "jit", "remat", "scan", "vmap", "loop"]))
    x_letters = "".join(draw(st.permutations("n" + batch + fan_in)))
    out_letters = "".join(draw(st.permutations("n" + batch + outputs)))
    roles = {
        letter: role
        for role, text in (("in", fan_in), ("out", outputs), ("k", batch))
        for letter in text
    }
    stored = [{roles[letter] for letter in axis} for axis in layout]
    shape = tuple(math.prod(sizes[letter] for letter in axis) for axis in layout)
    if any("in" in axis and len(axis) > 1 for axis in stored):
        expected = REFUSED
    else:
        expected = tuple(i for i, axis in enumerate(stored) if axis == {"in"})

    def unfold(w):
        flat = "".join(layout)
        w = w.reshape([sizes[letter] for letter in flat])
        w = w.transpose([flat.index(letter) for letter in order])
        free = list(order).index(outputs[0])
        for step in steps:
            w = STEPS[step](w, free)
        return w

    def apply(params, x):
        w, w_letters = unfold(params["w"]), "".join(order)
        if wrapper in ("scan", "vmap", "loop") and batch:
            w = jnp.moveaxis(w, w_letters.index("k"), 0)
            x = jnp.moveaxis(x, x_letters.index("k"), 0)
            spec = f"{x_letters.replace('k', '')},{w_letters.replace('k', '')}->" + (
                out_letters.replace("k", "")
            )
            one = lambda x, w: jnp.einsum(spec, x, w)  # noqa: E731
            if wrapper == "vmap":
                y = jax.vmap(one)(x, w)
            elif wrapper == "scan":
                y = jax.lax.scan(lambda c, xw: (c, one(*xw)), 0, (x, w))[1]
            else:
                y = jnp.stack([one(x[i], w[i]) for i in range(len(w))])
            return jnp.moveaxis(y, 0, out_letters.index("k"))
        operands = [(x_letters, x), (w_letters, w)]
        if swapped:
            operands.reverse()
        spec = f"{operands[0][0]},{operands[1][0]}->{out_letters}"
        return jnp.einsum(spec, operands[0][1], operands[1][1])

    fn = {"jit": jax.jit, "remat": jax.checkpoint}.get(wrapper, lambda f: f)(apply)
    x = f32(*(sizes[letter] for letter in x_letters))
    linear = not NONLINEAR.intersection(steps)
    event(f"wrapped in {wrapper}")
    event("refused" if expected == REFUSED else "answered")
    return fn, {"w": f32(*shape)}, x, expected, linear


@given(einsum_programs())
@programs(150)
def test_einsums_of_stored_weights_get_the_axes_they_were_built_with(program):
    fn, params, x, expected, _ = program
    assert answers(fn, params, x) == {"w": expected}


@given(einsum_programs())
@programs(25)
def test_einsums_of_stored_weights_get_the_axes_of_the_oracle(program):
    fn, params, x, expected, linear = program
    if linear and expected != REFUSED:
        assert answers(fn, params, x) == fan_in_by_oracle(fn, params, x)


@st.composite
def convolution_programs(draw):
    """A kernel of any layout, with groups, perhaps one for each of several images."""
    rank = draw(st.integers(1, 2))
    equal = draw(st.booleans())
    groups = draw(st.sampled_from([1, 1, 2]))
    size_in, size_out = (2, 2) if equal else (3, 5)
    window = [2] * rank if equal else [3, 4][:rank]
    image = [6, 5][:rank]
    lhs, rhs, out = ("".join(draw(st.permutations(s + "hw"[:rank]))) for s in ("NC", "OI", "NC"))
    sizes = {"O": size_out * groups, "I": size_in, **dict(zip("hw", window, strict=False))}
    data = {"N": 2, "C": size_in * groups, **dict(zip("hw", image, strict=False))}
    ensemble = draw(st.sampled_from(["none", "kernels", "both"]))
    steps = identity_steps(draw)
    stored = draw(st.permutations(rhs + ("E" if ensemble != "none" else "")))
    sizes["E"] = data["E"] = 2 if equal else 3

    def conv(x, w):
        for step in steps:
            w = STEPS[step](w, rhs.index("O"))
        return jax.lax.conv_general_dilated(
            x,
            w,
            [1] * rank,
            "VALID",
            dimension_numbers=(lhs, rhs, out),
            feature_group_count=groups,
        )

    def fn(params, x):
        # Bring the kernel to the order of its specification, behind the ensemble's axis if any.
        order = ("E" if ensemble != "none" else "") + rhs
        w = params["w"].transpose([stored.index(letter) for letter in order])
        if ensemble == "none":
            return conv(x, w)
        return jax.vmap(conv, (None if ensemble == "kernels" else 0, 0))(x, w)

    shape = [sizes[letter] for letter in stored]
    x_shape = ([data["E"]] if ensemble == "both" else []) + [data[letter] for letter in lhs]
    expected = tuple(i for i, letter in enumerate(stored) if letter not in "OE")
    event(f"ensemble: {ensemble}, groups: {groups}")
    linear = not NONLINEAR.intersection(steps)
    return fn, {"w": f32(*shape)}, f32(*x_shape), expected, linear


@given(convolution_programs())
@programs(80)
def test_convolutions_of_any_layout_get_the_axes_they_were_built_with(program):
    fn, params, x, expected, _ = program
    assert answers(fn, params, x) == {"w": expected}


@given(convolution_programs())
@programs(15)
def test_convolutions_of_any_layout_get_the_axes_of_the_oracle(program):
    fn, params, x, _, linear = program
    if linear:
        assert answers(fn, params, x) == fan_in_by_oracle(fn, params, x)


def attention(draw, name, width):
    heads, head = draw(st.sampled_from([(2, 3), (2, 2)]))
    transposed = draw(st.booleans())
    shape = (heads, width, head) if transposed else (width, heads, head)
    letters = "hdk" if transposed else "dhk"
    params = {f"{name}{i}": f32(*shape) for i in "qkv"}
    axes = {f"{name}{i}": (1,) if transposed else (0,) for i in "qkv"}
    params |= {f"{name}bias": f32(heads, head), f"{name}o": f32(heads, head, width)}
    axes |= {f"{name}bias": (), f"{name}o": (0, 1)}

    def apply(p, x):
        q, k, v = (jnp.einsum(f"ntd,{letters}->nthk", x, p[f"{name}{i}"]) for i in "qkv")
        logits = jnp.einsum("nthk,nshk->nhts", q + p[f"{name}bias"][None, None], k)
        y = jnp.einsum("nhts,nshk->nthk", jax.nn.softmax(logits), v)
        return x + jnp.einsum("nthk,hkd->ntd", y, p[f"{name}o"])

    return params, axes, apply


def dense(draw, name, width):
    transposed, unbiased = draw(st.booleans()), draw(st.booleans())
    hidden = draw(st.sampled_from([width, width + 1]))
    params = {f"{name}up": f32(*((hidden, width) if transposed else (width, hidden)))}
    params |= {f"{name}down": f32(hidden, width), f"{name}b": f32(hidden)}
    axes = {f"{name}up": (1,) if transposed else (0,), f"{name}down": (0,), f"{name}b": ()}

    def apply(p, x):
        w = p[f"{name}up"].T if transposed else p[f"{name}up"]
        h = x @ w
        h = h if unbiased else h + p[f"{name}b"][None, None]
        return x + jax.nn.gelu(h) @ p[f"{name}down"]

    return params, axes, apply


def norm(draw, name, width):
    centred = draw(st.booleans())
    params = {f"{name}scale": f32(width), f"{name}offset": f32(width)}

    def apply(p, x):
        x = x - x.mean(-1, keepdims=True) if centred else x
        x = x * jax.lax.rsqrt((x**2).mean(-1, keepdims=True) + 1e-6)
        x = x * p[f"{name}scale"][None, None]
        return x + p[f"{name}offset"][None, None] if centred else x

    return params, dict.fromkeys(params, ()), apply


def mixer(draw, name, width):
    params = {f"{name}w": f32(LENGTH, LENGTH), f"{name}gamma": f32(width)}

    def apply(p, x):
        y = jnp.einsum("ntd,ts->nsd", x, p[f"{name}w"])
        return x + jnp.tanh(y) * p[f"{name}gamma"][None, None]

    return params, {f"{name}w": (0,), f"{name}gamma": ()}, apply


def gated(draw, name, width):
    params = {f"{name}w": f32(width, 2, width), f"{name}o": f32(width, width)}

    def apply(p, x):
        a, b = jnp.moveaxis(jnp.einsum("ntd,dzf->ntzf", x, p[f"{name}w"]), 2, 0)
        return x + (jax.nn.silu(a) * b) @ p[f"{name}o"]

    return params, {f"{name}w": (0,), f"{name}o": (0,)}, apply


LENGTH = 5


@st.composite
def networks(draw):
    """Residual networks of several kinds of blocks, some of them stacked and scanned."""
    width = draw(st.sampled_from([5, 6]))
    pooled = draw(st.booleans())
    table = "pooled positions" if pooled else "positions"
    params, axes, blocks = {table: f32(LENGTH, width)}, {table: ()}, []
    for i in range(draw(st.integers(1, 3))):
        make = draw(st.sampled_from([attention, dense, norm, mixer, gated]))
        own, own_axes, apply = make(draw, f"{make.__name__}{i}_", width)
        stack = draw(st.sampled_from([0, 0, 1]))
        if draw(st.booleans()):
            own = {
                k: f32(*v.shape[:stack], 2, *v.shape[stack:])
                if len(v.shape) > 1
                else f32(2, *v.shape)
                for k, v in own.items()
            }
            at = {k: stack if len(v.shape) > 2 else 0 for k, v in own.items()}
            own_axes = {k: tuple(a + (a >= at[k]) for a in found) for k, found in own_axes.items()}
            apply = scanned(apply, at, remat=draw(st.booleans()))
        params, axes = params | own, axes | own_axes
        blocks.append(apply)

    def fn(params, x):
        x = x + params[table][None]
        for apply in blocks:
            x = apply(params, x)
        return x.mean(1) if pooled else x

    return fn, params, f32(2, LENGTH, width), axes


def scanned(apply, at, remat):
    def run(params, x):
        layers = {k: jnp.moveaxis(params[k], axis, 0) for k, axis in at.items()}
        step = lambda x, layer: (apply(layer, x), None)  # noqa: E731
        return jax.lax.scan(jax.checkpoint(step) if remat else step, x, layers)[0]

    return run


@given(networks())
@programs(60)
def test_random_networks_get_the_axes_of_their_layers(network):
    fn, params, x, axes = network
    assert answers(fn, params, x) == axes


@st.composite
def expressions(draw):
    """Layers of which the parameters are expressions of parameters."""
    return random_expressions.program(
        lambda options: draw(st.sampled_from(options)), draw(st.integers(2, 4))
    )


@given(expressions())
@programs(300)
def test_parameters_of_random_expressions_get_the_axes_that_follow_or_are_refused(expression):
    text, fn, params, inputs, axes = expression
    for name, found in answers(fn, params, inputs).items():
        event("refused" if found == REFUSED else "answered")
        if found != REFUSED and UNCLEAR not in axes[name]:
            shape = params[name].shape
            expected = {long(part, shape) for part in axes[name]}
            assert {long(found, shape)} == expected, (name, shape, text)


@given(expressions(), st.sampled_from(SPELLINGS))
@programs(120)
def test_random_expressions_respelled_get_the_same_axes_or_are_refused(expression, spelling):
    program = expression.fn, expression.params, expression.inputs
    found = answers(*program)
    # What was refused may be answered, if rightly.
    right = {name: parts - {UNCLEAR} for name, parts in expression.axes.items()}
    judged = judge(spelling, program, found, right)
    if judged is not None:
        assert not judged[0]["different"], (spelling, expression.text, found, judged[1])


def with_answers(program):
    """A program of any kind as (program, its answers by path)."""
    fn, params, x, expected, *_ = program
    return (fn, params, x), expected if isinstance(expected, dict) else {"w": expected}


random_programs = st.one_of(einsum_programs(), convolution_programs(), networks()).map(with_answers)


@given(random_programs, st.sampled_from(SPELLINGS))
@programs(60)
def test_random_programs_respelled_get_the_same_axes_or_are_refused(program, spelling):
    program, expected = program
    judged = judge(spelling, program, expected, None)
    event(f"{spelling}: {'the same program' if judged is None else 'another'}")
    if judged is not None:
        verdicts, found = judged
        for verdict, paths in verdicts.items():
            event(verdict, len(paths))
        assert not verdicts["different"], (spelling, expected, found)


@given(random_programs)
@programs(40)
def test_random_programs_have_no_second_opinion_against_them(program):
    program, expected = program
    compared, said = second_opinion(program, expected)
    # A mean over tokens that are divided by their norms is a layer to what reads it backward.
    compared.pop("pooled positions", None)
    event(f"{sorted(set(compared.values()))}")
    assert "disagrees" not in compared.values(), (expected, said)
