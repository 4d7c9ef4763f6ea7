"""An einsum of several operands is one sum, in whatever order JAX computes it for their sizes."""

import random

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_trace_reasons import einsum_with_a_part_before_a_loop
from trace_support import REFUSED, answers, f32, i32

from optax_gc._trace.einsums import equations

# The equation, which operands are parameters, and their axes.
EINSUMS = {
    "a biaffine parser": ("bti,ijo,bsj->btso", {1: (0, 1)}),
    "a bilinear form": ("bi,bo,io->b", {2: (0, 1)}),
    "bilinear attention": ("btd,de,bse->bts", {1: (0, 1)}),
    "bilinear attention of several heads": ("bti,hij,bsj->bhts", {1: (1, 2)}),
    "a neural tensor network": ("bi,kij,bj->bk", {1: (1, 2)}),
    "a kernel for each hop of a graph": ("knm,bmi,kio->bno", {2: (0, 1)}),
    "a kernel for each part of a skeleton": ("ntvc,kvw,kcd->ntwd", {2: (0, 1)}),
    "attention and its output": ("bhqk,bkhd,hdo->bqo", {2: (0, 1)}),
    "linear attention and its output": ("ntd,nsd,nsf,fo->nto", {3: (0,)}),
    "a tensor product": ("zui,zvj,uvw,ijk->zwk", {2: (0, 1)}),
    "mixed experts": ("bi,be,eio->bo", {2: (0, 1)}),
    "a weight of low rank": ("bd,dk,kf->bf", {1: (0,), 2: (0,)}),
    "a gain of inputs": ("bi,i,io->bo", {1: (), 2: (0,)}),
    "a gain of outputs": ("bi,io,o->bo", {1: (0,), 2: ()}),
    "a chain of three": ("bi,ir,rs,so->bo", {1: (0,), 2: (0,), 3: (0,)}),
    "a chain of three, the last first": ("or,rs,si,bi->bo", {0: (1,), 1: (1,), 2: (1,)}),
    "a chain of four": ("bi,ij,jk,kl,lo->bo", {1: (0,), 2: (0,), 3: (0,), 4: (0,)}),
    "a chain that meets in two axes": ("bi,ijk,jkl,lo->bo", {1: (0,), 2: (0, 1), 3: (0,)}),
    "a gain, then a chain": ("bc,c,cd,edf,gf->beg", {1: (), 2: (0,), 3: (1,), 4: (1,)}),
    "a gain in a chain": ("bc,edc,ed,gef->bdfg", {1: (2,), 2: (), 3: (1,)}),
    "block terms": ("bi,ikr,krs,kso->bo", {1: REFUSED, 2: REFUSED, 3: REFUSED}),
    "queries and keys": ("btd,dk,ek,bse->bts", {1: REFUSED, 2: REFUSED}),
    "a basis of kernels": ("rnm,mi,rb,bio->no", {2: REFUSED, 3: REFUSED}),
    "a tensor train": ("bij,iar,rjc->bac", {1: REFUSED, 2: REFUSED}),
}


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("name", EINSUMS)
def test_the_answer_does_not_depend_on_sizes(name, seed):
    equation, expected = EINSUMS[name]
    rng = random.Random(seed)
    size = {label: rng.choice([2, 3, 5, 8, 16, 32]) for label in sorted({*equation} - {*",->"})}
    shapes = [f32(*map(size.get, labels)) for labels in equation.split("->")[0].split(",")]
    params = {f"w{i}": shapes[i] for i in expected}
    inputs = [shape for i, shape in enumerate(shapes) if i not in expected]

    def fn(p, *x):
        x = iter(x)
        operands = [p[f"w{i}"] if i in expected else next(x) for i in range(len(shapes))]
        return jnp.tanh(jnp.einsum(equation, *operands))

    assert answers(fn, params, *inputs) == {f"w{i}": axes for i, axes in expected.items()}


@pytest.mark.parametrize("sizes", [(7, 4, 5, 6), (7, 2, 16, 3), (7, 16, 2, 32)])
def test_one_hots_choose_an_expert(sizes):
    t, e, i, o = sizes
    equation = "te,t,ti,eio->to"
    fn = lambda p, ids, g, x: jnp.einsum(equation, jax.nn.one_hot(ids, e), g, x, p)  # noqa: E731
    assert answers(fn, f32(e, i, o), i32(t), f32(t), f32(t, i)) == {"params": (1,)}


def test_one_hots_choose_an_expert_of_weights_times_a_number():
    fn = lambda w, x, i, s: jnp.einsum(  # noqa: E731
        "bi,be,eio->bo", x, jax.nn.one_hot(i, 4), s * w
    )
    assert answers(fn, f32(4, 8, 6), f32(3, 8), i32(3), f32()) == {"params": (1,)}


@pytest.mark.parametrize("eye", [jnp.eye, lambda n: np.eye(n, dtype=np.float32)])
def test_an_identity_chooses_the_matrix_of_each_group(eye):
    fn = lambda w, x: jnp.einsum("bgi,gh,hio->bgo", x, eye(4), w)  # noqa: E731
    assert answers(fn, f32(4, 6, 5), f32(2, 4, 6)) == {"params": (1,)}


@pytest.mark.parametrize("sizes", [(7, 4, 5, 6), (2, 16, 3, 9), (16, 2, 32, 3)])
@pytest.mark.parametrize("weight", [1, 2])
def test_a_constant_beside_a_weight_is_an_input_or_a_part_of_it(weight, sizes):
    b, i, j, k = sizes
    shapes = {1: (i, j), 2: (j, k)}
    frozen = np.random.default_rng(0).normal(size=shapes[3 - weight]).astype(np.float32)

    def fn(p, x):
        return jnp.einsum("bi,ij,jk->bk", x, *((p, frozen) if weight == 1 else (frozen, p)))

    assert answers(fn, f32(*shapes[weight]), f32(b, i)) == {"params": (0,)}


def test_a_scope_that_a_user_calls_like_an_einsum_is_none():
    def fn(p, x, y):
        with jax.named_scope("q,k,v"):
            return (x @ p["w"]) @ y.swapaxes(1, 2)

    assert answers(fn, {"w": f32(6, 5)}, f32(2, 7, 6), f32(2, 9, 5)) == {"w": (0,)}


def read(fn, *shapes):
    return [eqn.primitive.name for eqn in equations(jax.make_jaxpr(fn)(*shapes).jaxpr)]


def test_an_einsum_is_one_under_vmap_and_with_an_ellipsis():
    spelled = lambda x, w, v: jnp.einsum("...i,ij,jo->...o", x, w, v)  # noqa: E731
    members = jax.vmap(jax.vmap(spelled, (0, None, None)), (None, 0, 0))
    assert read(spelled, f32(4, 7, 6), f32(6, 5), f32(5, 2)) == ["einsum"]
    assert read(members, f32(4, 7, 6), f32(3, 6, 5), f32(3, 5, 2))[0] == "einsum"


def test_two_einsums_of_one_equation_are_two():
    def twice(x, a, w):
        return jnp.einsum("nm,mi,ij->nj", a, jnp.einsum("nm,mi,ij->nj", a, x, w), w)

    assert read(twice, f32(5, 4), f32(5, 5), f32(4, 4)).count("einsum") == 2


def test_an_einsum_within_vmap_is_one():
    fn = jax.vmap(lambda x, w: jnp.einsum("bi,ij,bj->b", x, w, x), (0, None))
    assert "einsum" in read(fn, f32(3, 4, 6), f32(6, 6))


def test_a_scope_that_is_called_like_an_equation_is_no_einsum():
    def fn(x, w):
        with jax.named_scope("ab,bc,cd->ad"):
            return jnp.tanh(x @ w) @ w

    assert "einsum" not in read(fn, f32(3, 6), f32(6, 6))


BILINEAR = "btd,de,bse->bts"


def by_value_and_grad(w, x, y):
    return jax.value_and_grad(lambda x: (jnp.einsum(BILINEAR, x, w, y) ** 2).mean())(x)


def by_jvp(w, x, y):
    return jax.jvp(lambda x, y: jnp.einsum(BILINEAR, x, w, y), (x, y), (x * x, y * y))


def by_linearize(w, x, y):
    out, tangent = jax.linearize(lambda x: jnp.einsum(BILINEAR, x, w, y), x)
    return out, tangent(x * x)


@pytest.mark.parametrize("sizes", [(6, 8, 9), (8, 2, 30), (2, 8, 3)])
@pytest.mark.parametrize("fn", [by_value_and_grad, by_jvp, by_linearize])
def test_an_einsum_is_one_where_the_function_differentiates_it(fn, sizes):
    d, e, s = sizes
    assert answers(fn, f32(d, e), f32(2, 7, d), f32(2, s, e)) == {"params": (0, 1)}


def test_a_part_of_an_einsum_that_is_computed_outside_of_a_loop_tells_nothing():
    inputs = f32(2, 7, 6), f32(2, 9, 8)
    assert answers(einsum_with_a_part_before_a_loop, f32(6, 8), *inputs) == {"params": REFUSED}


@pytest.mark.parametrize("n", [3, 1])
def test_a_scale_of_queries_for_each_member_is_refused_as_by_two_products(n):
    whole = lambda s, q, k: jnp.einsum("bqd,ed,bkd->ebqk", q, s, k)  # noqa: E731
    apart = lambda s, q, k: jnp.einsum("ebqd,bkd->ebqk", q * s[:, None, None], k)  # noqa: E731
    expected = {"params": REFUSED if n > 1 else ()}
    for fn in (whole, apart):
        assert answers(fn, f32(n, 6), f32(2, 7, 6), f32(2, 9, 6)) == expected
