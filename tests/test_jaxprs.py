"""What is read off JAX's jaxprs is what this version of JAX writes there.

When a new JAX changes it, these tests fail first, and say which primitive and which parameter.
"""

import functools
from collections.abc import Callable, Iterator
from typing import Any

import equinox.internal as eqxi
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.ad_checkpoint import checkpoint_name
from jax.experimental import checkify
from jax.experimental import pallas as pl
from jax.experimental.layout import Layout, with_layout_constraint
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from optax_gc import axes_from_trace
from optax_gc._trace import jaxprs
from optax_gc._trace.jaxprs import Derivative
from optax_gc._trace.rules import RULES

# In the table for versions, meshes or libraries that this environment cannot bring about.
ELSEWHERE = set(
    """
    closed_call core_call custom_lin custom_vjp_call_jaxpr pjit psum2 ragged_dot reciprocal
    reduced_vary_cast pbroadcast preduced vary_unreduced_cast vary_unreduced_cast_p
    all_gather_reduced unreduced_psum unreduced_pmax unreduced_pmin unreduced_reduce_scatter
    addupdate householder_product nontraceable announce_jaxpr nondifferentiable_backward empty
    mesh_cast platform_index random_gamma_grad threefry2x32 one_minus_square polynomial log2 stack
    unstack tile xla_pmap eq_to le_to lt_to empty2 erf_inv maybe_set noinline call_exported
    all_gather_invariant reduce_xor run_state select_if_vmap
    """.split()
) | {"einsum", "einsum_part"}  # which stand for several of JAX's

X, W, V = jnp.ones((4, 6)), jnp.ones((6, 8)), jnp.ones(4)
INDICES, KEY = jnp.arange(4), jax.random.key(0)
SQUARE = jnp.eye(4) + 1
PROGRAMS: list[tuple[Callable[..., Any], tuple[Any, ...]]] = []


def add(f: Callable[..., Any], *args: Any) -> None:
    PROGRAMS.append((f, args))


for name in """
    abs acos acosh asin asinh atan atanh bessel_i0e bessel_i1e cbrt ceil conj cos cosh digamma erf
    erf_inv erfc exp exp2 expm1 floor is_finite lgamma log log1p logistic neg reciprocal rsqrt sign
    sin sinh sqrt square tan tanh round stop_gradient cummax cummin cumlogsumexp cumsum cumprod
""".split():
    add(getattr(lax, name), X)
for name in """
    atan2 add sub mul div max min nextafter pow rem eq ge gt le lt ne igamma igammac complex zeta
    polygamma random_gamma_grad
""".split():
    add(getattr(lax, name), X, X)
for name in """
    bitwise_and bitwise_or bitwise_xor shift_left shift_right_logical shift_right_arithmetic
""".split():
    add(getattr(lax, name), INDICES, INDICES)
for name in ("bitwise_not", "clz", "population_count"):
    add(getattr(lax, name), INDICES)
for name in ("inv", "cholesky", "qr", "eigh", "svd", "eig"):
    add(getattr(jnp.linalg, name), SQUARE)
for name in ("lu", "hessenberg", "tridiagonal", "schur"):
    add(getattr(lax.linalg, name), SQUARE)
for name in ("sum", "max", "min", "prod", "all", "any", "argmax", "argmin"):
    add(functools.partial(getattr(jnp, name), axis=0), X)
for name in ("set", "add", "subtract", "multiply", "min", "max"):
    add(lambda x, i, name=name: getattr(x.at[i], name)(x), X, INDICES)
for operator, start in ((lax.add, 0.0), (lax.max, -jnp.inf), (lax.min, jnp.inf)):
    add(lambda x, f=operator, a=start: lax.reduce_window(x, a, f, (2, 2), (1, 1), "SAME"), X)


def pool(x: jax.Array) -> jax.Array:
    return lax.reduce_window(x, -jnp.inf, lax.max, (2, 2), (1, 1), "SAME").sum()


def bent(a: jax.Array, b: jax.Array) -> jax.Array:
    return jnp.tanh(a) + b


ZERO = jnp.float32(0)
add(lambda x: lax.reduce(x, ZERO, bent, (0,)), X)
add(lambda i: lax.reduce(i, jnp.int32(0), lax.bitwise_xor, (0,)), INDICES)
add(lambda x: lax.reduce_window(x, ZERO, bent, (2, 2), (1, 1), "SAME"), X)
add(jax.grad(pool), X)
add(lambda x: jax.jvp(pool, (x,), (x,)), X)
add(lax.betainc, X, X, X)
add(lambda a, x: jax.grad(lambda a: lax.igamma(a, x).sum())(a), X, X)
add(lambda x: (lax.integer_pow(x, 3), lax.clamp(0.0, x, 1.0), lax.reduce_precision(x, 5, 3)), X)
add(lambda x: (x.astype(jnp.bfloat16), lax.bitcast_convert_type(x, jnp.int32)), X)
add(lambda x: lax.real(lax.complex(x, x)) + lax.imag(lax.conj(lax.complex(x, x))), X)
add(lambda x: (jnp.where(x > 0, x, 0), jnp.array(x, copy=True), jnp.fft.rfft(x)), X)
add(lambda x: (lax.sort((x, x), num_keys=1), lax.top_k(x, 2), lax.approx_max_k(x, 2)), X)
add(lambda x: (lax.rev(lax.transpose(x, (1, 0)), (0,)).reshape(3, 8)[None], x[:, :1].squeeze(1)), X)
add(lambda x: (jnp.tile(x, (2, 3)), jnp.concatenate((x, x)), jnp.pad(x, 1), jnp.stack((x, x))), X)
add(lambda x: (lax.split(x, (2, 2)), jnp.unstack(x), lax.iota(jnp.int32, 4)), X)
add(lambda x, i: (x[1:3, ::2], x[i], lax.dynamic_index_in_dim(x, i[0])), X, INDICES)
add(lambda x, i: lax.dynamic_update_slice(x, x[:2], (i[0], jnp.int32(0))), X, INDICES)
add(jnp.matmul, X, W)
add(
    lambda x, w: lax.conv_general_dilated(x, w, (1,), "SAME"),
    jnp.ones((2, 3, 8)),
    jnp.ones((5, 3, 2)),
)
add(lax.ragged_dot, X, jnp.ones((2, 6, 8)), jnp.array([1, 3]))
add(lambda a, b: lax.linalg.triangular_solve(a, b, left_side=True), SQUARE, SQUARE)
add(lambda a, v: lax.linalg.cholesky_update(a, v), SQUARE, V)
add(lambda a: lax.linalg.symmetric_product(a, a), SQUARE)
add(lambda v: lax.linalg.tridiagonal_solve(v, v, v, v[:, None]), V)


def step(c: jax.Array, y: jax.Array) -> Any:
    return jnp.tanh(c + y), c @ W


@jax.custom_jvp
def jvp_of_its_own(x: jax.Array) -> jax.Array:
    return jnp.sin(x)


jvp_of_its_own.defjvp(lambda p, t: (jvp_of_its_own(*p), t[0]))


@jax.custom_vjp
def vjp_of_its_own(x: jax.Array) -> jax.Array:
    return jnp.sin(x)


vjp_of_its_own.defvjp(lambda x: (vjp_of_its_own(x), None), lambda _, g: (g,))


@jax.custom_batching.custom_vmap
def vmap_of_its_own(x: jax.Array) -> jax.Array:
    return jnp.sin(x)


vmap_of_its_own.def_vmap(lambda n, batched, x: (jnp.sin(x), batched[0]))


def solve(a: jax.Array, b: jax.Array) -> jax.Array:
    return lax.custom_linear_solve(lambda x: a @ x, b, lambda _, b: a.T @ b, lambda _, b: a @ b)


def kernel(x: Any, out: Any) -> None:
    out[...] = x[...] * 2


def checked(x: jax.Array) -> jax.Array:
    checkify.check(jnp.all(x > 0), "not positive")
    return x


def printed(x: jax.Array) -> jax.Array:
    jax.debug.print("{x}", x=x)
    jax.debug.callback(lambda x: None, x)
    return x


add(jax.jit(jnp.sin), X)
add(jax.checkpoint(lambda x: jnp.sin(jnp.sin(x))), X)
add(jvp_of_its_own, X)
add(vjp_of_its_own, X)
add(vmap_of_its_own, X)
add(solve, SQUARE, V)
add(lambda x: lax.composite(lambda x, *, a: jnp.sin(x) * a, "my.f")(x, a=2.0), X)
add(lambda x: jax.custom_derivatives.linear_call(jnp.multiply, jnp.multiply, x, x), X)
add(lambda x: lax.scan(step, x[0], x, reverse=True), X)
add(jax.grad(lambda x: lax.scan(step, x[0], x)[1].sum()), X)
add(
    lambda x, n: lax.while_loop(lambda c: c[0] < n, lambda c: (c[0] + 1, c[1] * V[0]), (0, x)), X, 3
)
add(lambda x: lax.cond(x[0, 0] > 0, jnp.sin, jnp.cos, x), X)
add(lambda x: lax.platform_dependent(x, cpu=jnp.sin, default=jnp.cos), X)
add(lambda x: jax.checkpoint(lambda x: checkpoint_name(x, "h"))(x), X)
add(lambda x: lax.optimization_barrier(x), X)
add(lambda x: jax.device_put(x, jax.devices()[0]), X)
add(lambda x: with_layout_constraint(x, Layout((0, 1))), X)
add(lambda x: jax.pure_callback(np.sin, x, x), X)
add(lambda x: jax.experimental.io_callback(np.sin, x, x), X)
add(printed, X)
add(checked, X)
add(pl.pallas_call(kernel, out_shape=jax.ShapeDtypeStruct((4, 6), jnp.float32), interpret=True), X)
add(lambda x: jax.vjp(lambda x: x + x * x, x)[1](x), X)
add(lambda k: (jax.random.split(k), jax.random.fold_in(k, 1), jax.random.clone(k)), KEY)
add(lambda k: (jax.random.key_data(k), jax.random.wrap_key_data(jax.random.key_data(k))), KEY)
add(lambda k: (jax.random.key(3), jax.random.normal(k, (3,)), jax.random.gamma(k, 2.0)), KEY)
add(lambda k: lax.rng_bit_generator(k, (3,)), jnp.zeros(4, jnp.uint32))
add(lambda: lax.rng_uniform(0.0, 1.0, (3,)))
add(lambda x: eqxi.nonbatchable(eqxi.unvmap_any(x > 0) & eqxi.unvmap_all(x > 0)), X)
add(lambda i: eqxi.unvmap_max(i), INDICES)


def loop_of_equinox(x: jax.Array) -> Any:
    def body(c: Any) -> Any:
        return c[0] + 1, jnp.sin(c[1])

    return eqxi.while_loop(lambda c: c[0] < 3, body, (0, x), max_steps=8, kind="bounded")


add(loop_of_equinox, X)


def mesh_of(kind: Any) -> jax.sharding.Mesh:
    return jax.make_mesh((2, 2), ("i", "j"), axis_types=(kind,) * 2, devices=jax.devices()[:4])


MESH = mesh_of(jax.sharding.AxisType.Auto)


def sharded(f: Callable[..., Any], *, into: Any, out: Any, vma: bool) -> Callable[..., Any]:
    return jax.shard_map(f, mesh=MESH, in_specs=into, out_specs=out, check_vma=vma)


BETWEEN_SHARDS: list[tuple[Callable[[Any], Any], P]] = [
    (lambda x: lax.psum(x, "i"), P(None, "j")),
    (lambda x: lax.pmax(x, "i"), P(None, "j")),
    (lambda x: lax.pmin(x, "i"), P(None, "j")),
    (lambda x: lax.all_gather(x, "i", tiled=True), P("i", "j")),
    (lambda x: lax.psum_scatter(x, "i", tiled=True), P("i", "j")),
    (lambda x: lax.ppermute(x, "i", [(0, 1), (1, 0)]), P("i", "j")),
    (lambda x: lax.all_to_all(x, "i", 0, 0, tiled=True), P("i", "j")),
    (lambda x: x * lax.axis_index("i").astype(x.dtype), P("i", "j")),
]
for f, out in BETWEEN_SHARDS:
    for vma in (True, False):
        add(sharded(f, into=P("i", "j"), out=out, vma=vma), SQUARE)
add(
    jax.grad(
        lambda x: sharded(BETWEEN_SHARDS[3][0], into=P("i", "j"), out=P("i", "j"), vma=True)(
            x
        ).sum()
    ),
    SQUARE,
)
add(
    jax.grad(lambda x: sharded(lambda x: x * 2, into=P("i"), out=P("i"), vma=True)(x).sum()), SQUARE
)
add(
    lambda x: sharded(lambda x, y: x * y, into=(P("i"), P()), out=P("i"), vma=True)(x, x[:2]),
    SQUARE,
)
add(
    lambda x, i: sharded(
        lambda x, i: lax.ragged_all_to_all(x, x, i, i, i, i, axis_name="i"),
        into=(P("i"), P("i")),
        out=P("i"),
        vma=False,
    )(x, i),
    jnp.ones(8),
    INDICES,
)
add(jax.pmap(lambda x: lax.psum(x * 2, "b"), axis_name="b"), SQUARE)
add(lambda x: lax.with_sharding_constraint(x, NamedSharding(MESH, P("i"))), SQUARE)


def equations(jaxpr: Any) -> Iterator[Any]:
    """Every equation of a jaxpr and of those within it, found in any parameter of any name."""
    for eqn in jaxprs.opened(jaxpr).jaxpr.eqns:
        yield eqn
        for leaf in jax.tree_util.tree_leaves(list(eqn.params.values())):
            if hasattr(leaf, "eqns") or hasattr(getattr(leaf, "jaxpr", None), "eqns"):
                yield from equations(leaf)


@functools.cache
def occurring() -> dict[str, list[Any]]:
    found: dict[str, list[Any]] = {}
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        for f, args in PROGRAMS:
            for eqn in equations(jax.make_jaxpr(f)(*args)):
                found.setdefault(eqn.primitive.name, []).append(eqn)
        with jax.set_mesh(mesh_of(jax.sharding.AxisType.Explicit)):
            for eqn in equations(jax.make_jaxpr(lambda x: jax.sharding.reshard(x, P("i")))(SQUARE)):
                found.setdefault(eqn.primitive.name, []).append(eqn)

            def written(x: jax.Array) -> jax.Array:
                ref = jax.new_ref(x)
                ref[0] = ref[1]
                return ref[...]

    if hasattr(jax, "new_ref"):
        for eqn in equations(jax.make_jaxpr(written)(X)):
            found.setdefault(eqn.primitive.name, []).append(eqn)
    return found


def only(name: str, f: Callable[..., Any], *args: Any) -> Any:
    (eqn,) = [e for e in equations(jax.make_jaxpr(f)(*args)) if e.primitive.name == name]
    return eqn


def test_every_parameter_that_this_jax_gives_to_a_primitive_is_known():
    known = {name: eqns for name, eqns in occurring().items() if name in jaxprs.PARAMETERS}
    reasons = {why for eqns in known.values() for eqn in eqns if (why := jaxprs.unknown(eqn))}
    assert not reasons, f"this JAX changed: {sorted(reasons)}"


def test_every_primitive_that_is_written_down_occurs_in_this_jax():
    missing = set(jaxprs.PARAMETERS) - set(occurring()) - ELSEWHERE
    assert not missing, f"jax {jax.__version__} has renamed or removed {sorted(missing)}"


def test_every_primitive_that_has_a_rule_has_its_parameters_written_down():
    assert not set(RULES) - set(jaxprs.PARAMETERS)


def test_an_einsum_is_in_a_scope_that_is_called_as_its_equation():
    equation = "bi,ij,bj->b"
    square = W @ W.T

    def form(x):
        return jnp.einsum(equation, x, square, x)

    for fn, x in ((form, X), (jax.vmap(form), jnp.stack([X, X]))):
        stacks = map(jaxprs.name_stack, jaxprs.opened(jax.make_jaxpr(fn)(x)).jaxpr.eqns)
        scopes = {*map(jaxprs.scope, stacks)}
        assert scopes == {equation}, f"jax {jax.__version__} calls them {scopes}"


def test_a_scan_has_its_constants_then_its_carries_then_its_slices():
    def f(a, b, c, xs, ys):
        def step(carry, x):
            return (carry[0] @ a, carry[1] + b), x[0] * carry[1][0] + x[1][0] * carry[0][0]

        return lax.scan(step, (a[0], c), (xs, ys), reverse=True)

    shapes = [(6, 6), (3,), (3,), (5,), (5, 2)]
    loop = jaxprs.loop(only("scan", f, *map(jnp.ones, shapes)))
    assert (loop.n_consts, loop.n_carry, loop.carry) == (2, 2, slice(2, 4))
    assert loop.length == 5
    inputs = [jaxprs.shape_of(v) for v in loop.body.jaxpr.invars]
    assert inputs == [(6, 6), (3,), (6,), (3,), (), (2,)]


def test_the_gradient_of_a_scan_splits_into_as_many_inputs_as_its_body_has():
    f = jax.grad(lambda x: lax.scan(lambda c, y: (jnp.tanh(c + y), c @ W), x[0], x)[1].sum())
    scans = [e for e in equations(jax.make_jaxpr(f)(X)) if e.primitive.name == "scan"]
    assert len(scans) == 2
    for eqn in scans:
        loop = jaxprs.loop(eqn)
        inputs = [jaxprs.shape_of(v) for v in loop.body.jaxpr.invars]
        outputs = [jaxprs.shape_of(v) for v in loop.body.jaxpr.outvars]
        operands = [jaxprs.shape_of(v) for v in eqn.invars]
        assert inputs[: loop.carry.stop] == operands[: loop.carry.stop]
        assert [(loop.length, *s) for s in inputs[loop.carry.stop :]] == operands[loop.carry.stop :]
        assert inputs[loop.carry] == outputs[: loop.n_carry]


def test_a_while_loop_has_constants_of_its_condition_before_those_of_its_body():
    def f(n, a, b, x):
        return lax.while_loop(lambda c: c.sum() < n, lambda c: c * a + b, x)

    args = [jnp.ones(()), jnp.ones((2, 3)), jnp.ones((1, 3)), jnp.ones((2, 3))]
    with jax.numpy_rank_promotion("allow"):
        loop = jaxprs.while_loop(only("while", f, *args))
    assert (loop.n_cond, loop.n_body) == (1, 2)
    assert [jaxprs.shape_of(v) for v in loop.cond.jaxpr.invars] == [(), (2, 3)]
    assert jaxprs.shape_of(loop.body.jaxpr.outvars[0]) == (2, 3)


@pytest.mark.parametrize(
    "f",
    [
        jax.jit(jnp.sin),
        jax.checkpoint(jnp.sin),
        jvp_of_its_own,
        vjp_of_its_own,
        vmap_of_its_own,
        lax.composite(jnp.sin, "my.sin"),
        jax.shard_map(jnp.sin, mesh=MESH, in_specs=P(), out_specs=P()),
        jax.pmap(jnp.sin),
    ],
)
def test_the_body_of_a_call_is_the_function_that_is_called(f):
    (eqn,) = jaxprs.opened(jax.make_jaxpr(f)(X)).jaxpr.eqns
    inner = jaxprs.body(eqn)
    assert len(inner.jaxpr.invars) == len(eqn.invars)
    assert "sin" in {e.primitive.name for e in equations(inner.jaxpr)}


def test_a_branch_is_each_function_that_a_condition_chooses():
    eqn = only("cond", lambda x: lax.cond(x[0, 0] > 0, jnp.sin, jnp.cos, x), X)
    names = [b.jaxpr.eqns[0].primitive.name for b in jaxprs.branches(eqn)]
    assert names == ["cos", "sin"]


def test_shards_name_the_axes_of_the_mesh_that_each_dimension_is_split_over():
    f = jax.shard_map(
        lambda x, y: (x.sum() * y, y),
        mesh=MESH,
        in_specs=(P(("i", "j")), P(None, "i")),
        out_specs=(P("j", "i"), P(None, "i")),
        check_vma=False,
    )
    found = jaxprs.shards(only("shard_map", f, jnp.ones((8, 3)), jnp.ones((3, 4))))
    assert found.operands == ((("i", "j"), ()), ((), ("i",)))
    assert found.results == ((("j",), ("i",)), ((), ("i",)))


@pytest.mark.parametrize(
    ("name", "which", "found"),
    [
        ("psum", 0, jaxprs.Collective(("i",))),
        ("all_gather", 3, jaxprs.Collective(("i",), 0)),
        ("reduce_scatter", 4, jaxprs.Collective(("i",), 0)),
        ("ppermute", 5, jaxprs.Collective(("i",))),
        ("all_to_all", 6, jaxprs.Collective(("i",), 0, 0)),
        ("axis_index", 7, jaxprs.Collective(("i",))),
    ],
)
def test_a_collective_names_the_axes_and_the_dimension_it_works_along(name, which, found):
    f, out = BETWEEN_SHARDS[which]
    f = sharded(f, into=P("i", "j"), out=out, vma=False)
    assert jaxprs.collective(only(name, f, SQUARE)) == found


def test_what_a_gradient_within_the_function_computes_is_backward_and_a_scope_so_called_is_not():
    def f(x):
        with jax.named_scope("transpose"), jax.named_scope("jvp"):
            forward = jnp.exp(x)
        return forward, jax.grad(lambda x: jnp.sin(jnp.square(x)))(x)

    found = {
        e.primitive.name: jaxprs.derivative(jaxprs.name_stack(e))
        for e in equations(jax.make_jaxpr(f)(1.0))
    }
    assert found["exp"] == Derivative.NONE
    assert found["square"] == found["cos"] == Derivative.FORWARD
    assert found["mul"] == Derivative.BACKWARD


def test_the_scope_of_an_equation_names_the_modules_it_is_in():
    def f(x):
        with jax.named_scope("encoder"), jax.named_scope("layer"):
            return jnp.exp(x)

    assert str(jaxprs.name_stack(only("exp", f, X))) == "encoder/layer"


def through_a_scan(w, x):
    return lax.scan(lambda c, y: (c + y @ w, None), x[0] @ w, x)[0]


def through_a_loop(w, x):
    body = lambda c: (c[0] + 1, jnp.tanh(c[1] @ w))  # noqa: E731
    return lax.while_loop(lambda c: c[0] < 2, body, (0, x))[1]


@pytest.mark.parametrize(
    ("name", "parameter", "f"),
    [
        ("scan", "jaxpr", through_a_scan),
        ("while", "body_jaxpr", through_a_loop),
        ("dot_general", "dimension_numbers", lambda w, x: x @ w),
        ("transpose", "permutation", lambda w, x: x @ w.T),
        ("jit", "jaxpr", lambda w, x: jax.jit(jnp.matmul)(x, w)),
    ],
)
def test_a_parameter_that_is_not_known_is_refused_by_name(name, parameter, f, monkeypatch):
    known = jaxprs.PARAMETERS[name] - {parameter}
    monkeypatch.setitem(jaxprs.PARAMETERS, name, known)
    with pytest.raises(ValueError, match=f"'s {name} has a parameter '{parameter}'"):
        axes_from_trace(lambda params, x: f(params["w"], x), {"w": jnp.ones((6, 6))}, X)


def test_a_parameter_that_is_gone_is_refused_by_name(monkeypatch):
    monkeypatch.setitem(jaxprs._REQUIRED, "dot_general", {"dimension_numbers", "extent"})
    with pytest.raises(ValueError, match="'s dot_general has no parameter 'extent'"):
        axes_from_trace(lambda params, x: x @ params["w"], {"w": W}, X)
