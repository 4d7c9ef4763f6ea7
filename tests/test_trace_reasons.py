"""Every reason for a refusal is that of some program, and of several the first is reported."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from trace_support import f32, i32, verdicts_of

from optax_gc._trace.reasons import Why, priority
from optax_gc._trace.rules import RULES, control
from optax_gc._trace.values import Kind, Use, constant
from optax_gc._trace.verdict import verdicts

X, SEQUENCE, W = f32(3, 8), f32(3, 4, 8), f32(8, 6)
BASIS = np.random.default_rng(0).normal(size=(5, 8)).astype(np.float32)


@jax.custom_jvp
def rows_at(w, table):
    """What is rounded has no gradient but the one that its rule gives it."""
    return table[jnp.abs(w).astype(int) % 3]


@rows_at.defjvp
def _rows_at_jvp(primals, tangents):
    return rows_at(*primals), jnp.zeros_like(rows_at(*primals)) + tangents[0].sum()


@jax.custom_vjp
def ignored(x, w):
    """The body leaves `w` out, and the derivative rule gives it a gradient."""
    return jnp.tanh(x)


ignored.defvjp(lambda x, w: (ignored(x, w), x), lambda x, g: (g, x.T @ g))


def interpolated(p, x, rows, columns):
    """A table of positions, read at coordinates that are inputs."""
    return jnp.tanh(x + jnp.einsum("sw,twc->tsc", columns, jnp.einsum("th,hwc->twc", rows, p)))


def einsum_with_a_part_before_a_loop(w, x, y):
    def loss(x):
        bilinear = lambda x: jnp.einsum("btd,de,bse->bts", x, w, y)  # noqa: E731
        step = lambda c, _: (c + (bilinear(x * c) ** 2).mean(), None)  # noqa: E731
        return lax.scan(step, 1.0, None, length=3)[0]

    return jax.value_and_grad(loss)(x)


REASONS = {
    Why.INDEX: (lambda p, x: x + rows_at(p, x).sum(), f32(8), (X,)),
    Why.CUSTOM: (lambda p, x: ignored(x, p), f32(8, 8), (X,)),
    Why.MANY: (
        lambda p, x: x @ (sum(p[:5]) * sum(p[5:])), [W] * 10, (X,),
    ),
    Why.TWO_SIDES: (
        lambda p, x: jnp.einsum("nrd,rdf->nf", x, jnp.einsum("rk,kdf->rdf", BASIS, p)),
        f32(8, 7, 6), (f32(3, 5, 7),),
    ),
    Why.EITHER: (lambda p, x: p["a"] @ p["b"], {"a": f32(5, 8), "b": W}, (X,)),
    Why.APART: (einsum_with_a_part_before_a_loop, f32(6, 8), (f32(2, 7, 6), f32(2, 9, 8))),
    Why.BESIDE_DATA: (
        lambda p, x: (x[:, :1] * p["a"] * p["b"]).sum(1), {"a": f32(8), "b": f32(8)}, (X,),
    ),
    Why.BEYOND_DATA: (
        lambda p, x: (x[:, :, None, None] * p).sum((1, 3)), f32(8, 6, 5), (X,),
    ),
    Why.BENT_NETWORK: (
        lambda p, x: x @ (p["w"] * jax.nn.sigmoid(p["a"] @ p["b"])),
        {"w": W, "a": f32(8, 2), "b": f32(2, 6)}, (X,),
    ),
    Why.BENT_PRODUCT: (lambda p, x: jnp.tanh(x[:, :, None] * p).sum(1), W, (X,)),
    Why.BENT_SUM: (lambda p, x: jnp.tanh(x[:, :, None] + p).sum(1), W, (X,)),
    Why.SCALE: (lambda p, x: (x * p).sum(-1), f32(8), (X,)),
    Why.PARTLY: (
        lambda p, x: jnp.einsum("nhd,hdf->nhf", x, p.reshape(2, 4, 6)), W, (f32(3, 2, 4),),
    ),
    Why.DIAGONAL: (
        lambda p, x: x @ jnp.broadcast_to(p[:, None], (4, 2, 6)).reshape(8, 6), f32(4, 6), (X,),
    ),
    Why.SLICES: (lambda p, x: x @ p[0] + x @ p[1], f32(2, 8, 6), (X,)),
    Why.SCATTERED: (
        lambda p, x: jnp.zeros((5, 6)).at[jnp.arange(8) % 5].add(x[0][:, None] * p), W, (X,),
    ),
    Why.ONE_HOTS: (
        lambda p, i, j: jax.nn.one_hot(i, 4) @ p[:4] + jax.nn.one_hot(j, 7) @ p[4:],
        f32(11, 6), (i32(3), i32(3)),
    ),
    Why.CUT_ONE_HOT: (lambda p, i: jax.nn.one_hot(i, 11)[:, :8] @ p, W, (i32(3),)),
    Why.CUT_PRODUCT: (
        lambda p, x: lax.scan(lambda c, m: (c, x @ m), 0.0, BASIS[:, :, None] * p)[1], W, (X,),
    ),
    Why.LATER: (
        lambda p, x: (x[..., None] * p).sum(2).sum(1), f32(4, 8, 6), (SEQUENCE,),
    ),
    Why.TWICE: (interpolated, f32(6, 5, 24), (f32(2, 3, 7, 24), f32(3, 6), f32(7, 5))),
    Why.STATISTIC: (lambda p, x: x @ p.sum(0), f32(5, 8, 6), (X,)),
    Why.MADE: (
        lambda p, x: jnp.einsum("nd,ndf->nf", x, (x @ p).reshape(3, 8, 6)), f32(8, 48), (X,),
    ),
    Why.GATED: (lambda p, x, noise: x @ (p + noise), W, (X, W)),
    Why.BOTH: (lambda p, x: (x @ p) + p[0], f32(8, 8), (X,)),
    Why.BACKWARD: (
        lambda p, x: jax.grad(lambda x: (jnp.tanh(x @ p["w"]) @ p["v"]).sum())(x),
        {"w": W, "v": f32(6)}, (X,),
    ),
    Why.CONSTANTS: (lambda p, x: (x, BASIS @ p, p @ BASIS[:, :6].T), W, (X,)),
    Why.RETURNED: (lambda p, x: (x, p), W, (X,)),
}  # fmt: skip


@pytest.mark.parametrize("why", REASONS, ids=[why.name for why in REASONS])
def test_a_program_is_refused_for_its_reason(why):
    fn, params, args = REASONS[why]
    assert why in {found.refused for found in verdicts_of(fn, params, *args).values()}


def test_a_loop_that_does_not_settle_is_refused(monkeypatch):
    monkeypatch.setattr(control, "_MOST_PASSES", 1)
    scale = np.arange(1.0, 49, dtype=np.float32).reshape(8, 6)
    found = verdicts_of(lambda p, x: x @ lax.fori_loop(0, 3, lambda i, w: w * scale, p), W, X)
    assert found["params"].refused == Why.ENDLESS


@pytest.mark.parametrize("rule", ["tanh", "transpose", "jit", "scan", "dot_general", "add"])
def test_a_parameter_that_a_rule_loses_is_refused(rule, monkeypatch):
    """Whatever a rule does: of what goes into it, it notes a use, or has it in its results."""

    def lose(trace, eqn, *values):
        return [constant(v.aval.shape, Kind.DATA) for v in eqn.outvars]

    def fn(p, x):
        w = jax.jit(lambda w: jnp.tanh(w + 1).T)(p["w"])
        return lax.scan(lambda h, v: (jnp.tanh(h @ v), None), x @ w, p["v"])[0]

    monkeypatch.setitem(RULES, rule, lose)
    found = verdicts_of(fn, {"w": f32(6, 8), "v": f32(2, 6, 6)}, X)
    assert Why.LOST in {verdict.refused for verdict in found.values()}


def test_no_reason_is_without_a_program():
    assert {*REASONS, Why.ENDLESS, Why.LOST} == set(Why)


@pytest.mark.parametrize("uses", [(Why.PARTLY, Why.INDEX), (Why.INDEX, Why.PARTLY)])
def test_of_several_reasons_the_first_in_the_list_is_reported(uses):
    found = verdicts(
        [Use(0, "refused", f"use {i}", why=why) for i, why in enumerate(uses)], [(8, 6)]
    )
    assert found[0].refused == Why.INDEX


def test_an_operation_without_a_rule_is_reported_before_any_reason():
    whys = [*Why, "there is no rule for qr"]
    assert min(whys, key=priority) == "there is no rule for qr"
