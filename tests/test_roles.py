"""roles_from_trace: fan-in, fan-out and batch of the axes of each weight."""

import equinox as eqx
import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import pytest
from flax import nnx
from trace_cases import CASES, SelfAttention, Stack
from trace_support import (
    assert_roles_partition,
    equinox,
    f32,
    haiku,
    i32,
    linen,
    nnx_,
    promoting,
)

from optax_gc import Roles, axes_from_trace, centralize, explain, roles_from_trace
from optax_gc._axes import is_axes
from optax_gc._match import names
from optax_gc._trace import _trace

BUILDS = {name: build for name, build, _ in CASES}


def roles_of(fn, params, *args, **kwargs):
    with promoting():
        return roles_from_trace(fn, params, *args, **kwargs)


def by_path(tree):
    leaves = jax.tree_util.tree_leaves_with_path(tree, is_leaf=is_axes)
    return dict(zip(names(leaves), (axes for _, axes in leaves), strict=True))


def of(roles, path):
    """(fan-in, fan-out, batch) of one parameter."""
    return tuple(by_path(tree)[path] for tree in roles)


@pytest.mark.parametrize("name", BUILDS)
def test_roles_of_a_weight_are_disjoint_and_name_every_axis_longer_than_one(name):
    with promoting():
        fn, params, *args = BUILDS[name]()
        assert_roles_partition(_trace(fn, params, args, {}))


@pytest.mark.parametrize(
    ("build", "path", "expected"),
    [
        (BUILDS["row 1: linen Dense"], "kernel", ((0,), (1,), ())),
        (BUILDS["row 1: linen Dense"], "bias", ((), (), ())),
        (BUILDS["row 2: equinox Linear"], "weight", ((1,), (0,), ())),
        (BUILDS["rows 3 and 4: linen attention"], "query/kernel", ((0,), (1, 2), ())),
        (BUILDS["rows 3 and 4: linen attention"], "query/bias", ((), (), ())),
        (BUILDS["rows 3 and 4: linen attention"], "out/kernel", ((0, 1), (2,), ())),
        (BUILDS["row 15: linen Embed"], "embedding", ((), (), ())),
        (BUILDS["row 16: linen tied embedding"], "embed/embedding", ((), (), ())),
        (BUILDS["row 8: keras DepthwiseConv2D"], "0", ((0, 1), (3,), (2,))),
        (BUILDS["row 10: linen ConvLocal"], "kernel", ((2,), (3,), (0, 1))),
        (BUILDS["row 11: linen scan stacked on axis 0"], "layers/dense/kernel", ((1,), (2,), (0,))),
        (
            BUILDS["row 11: linen scan stacked on axis 1"],
            "layers/attn/out/kernel",
            ((0, 2), (3,), (1,)),
        ),
        (BUILDS["row 18: the top experts chosen by index"], "w", ((1,), (2,), (0,))),
        (BUILDS["row 18: ragged_dot"], "w", ((1,), (2,), (0,))),
        (BUILDS["row 18: a combine fused into one contraction"], "w", ((0, 1), (2,), ())),
        (BUILDS["row 13: fused projections in a scan"], "qkv", ((1,), (2, 3, 4), (0,))),
    ],
)
def test_roles_are_those_of_the_layers_definition(build, path, expected):
    with promoting():
        case = build()
    assert of(roles_of(*case, on_unresolved="skip"), path) == expected


@pytest.mark.parametrize("groups", [2, 8])
def test_the_axis_in_which_groups_and_their_outputs_are_folded_together_is_batch(groups):
    conv = nn.Conv(8, (3, 5), feature_group_count=groups)
    roles = roles_of(*linen(conv, f32(2, 9, 7, 8)))
    assert of(roles, "kernel") == ((0, 1, 2), (), (3,))


def test_an_axis_that_counts_copies_in_a_part_of_it_is_batch():
    """A head axis folded into the outputs: each head has inputs of its own."""
    fn = lambda p, x: jnp.einsum("bhi,ihk->bhk", x, p["w"].reshape(5, 2, 3))  # noqa: E731
    roles = roles_of(fn, {"w": f32(5, 6)}, f32(4, 2, 5))
    assert of(roles, "w") == ((0,), (), (1,))


def test_an_axis_of_length_one_has_no_role():
    roles = roles_of(lambda p, x: x @ p["w"], {"w": f32(8, 1)}, f32(3, 8))
    assert of(roles, "w") == ((0,), (), ())


def test_a_weight_with_one_input_has_no_roles():
    roles = roles_of(lambda p, x: x @ p["w"], {"w": f32(1, 8)}, f32(3, 1))
    assert of(roles, "w") == ((), (), ())


def test_what_is_refused_has_no_roles_at_all():
    fn = lambda p, x: jnp.tanh(x @ p["w"]) @ p["w"].T @ p["v"]  # noqa: E731
    params = {"w": f32(8, 5), "v": f32(8, 4)}
    with pytest.raises(ValueError, match="'w' of shape"):
        roles_of(fn, params, f32(3, 8))
    with pytest.warns(UserWarning, match="'w' of shape") as warned:
        roles = roles_of(fn, params, f32(3, 8), on_unresolved="skip")
    assert of(roles, "w") == ((), (), ())
    assert of(roles, "v") == ((0,), (1,), ())
    assert warned[0].filename == __file__


def test_axes_from_trace_is_the_fan_in_of_the_roles():
    case = linen(Stack(SelfAttention, 1), f32(2, 7, 8))
    assert axes_from_trace(*case) == roles_of(*case).fan_in


def test_the_matrix_is_fan_in_and_fan_out_together():
    roles = roles_of(*linen(Stack(SelfAttention, 1), f32(2, 7, 8)))
    assert by_path(roles.matrix)["layers/attn/query/kernel"] == (0, 2, 3)
    assert by_path(roles.matrix)["layers/attn/out/kernel"] == (0, 2, 3)
    assert by_path(roles.matrix)["layers/attn/out/bias"] == ()


def test_the_matrix_follows_a_correction():
    roles = roles_of(dense_routed, EXPERTS, f32(5, 8))
    roles.fan_out["up"], roles.batch["up"] = (2,), (0,)
    assert roles.matrix["up"] == (1, 2)


@pytest.mark.parametrize(
    "case",
    [
        lambda: nnx_(lambda: nnx.Linear(8, 5, rngs=nnx.Rngs(0)), f32(3, 8)),
        lambda: haiku(lambda x: hk.Linear(5)(x), f32(3, 8)),
        lambda: equinox(lambda key: eqx.nn.Linear(8, 5, key=key), X),
        lambda: (lambda p, x: x @ p[0][0] + p[1][None], ([f32(8, 5)], f32(5)), f32(3, 8)),
        lambda: (lambda p, x: x @ p["w"] + 0, {"w": f32(8, 5), "none": None, "empty": ()}, X),
    ],
    ids=["nnx", "haiku", "equinox", "tuple", "empty subtrees"],
)
def test_whatever_takes_axes_takes_each_of_the_roles(case):
    fn, params, *args = case()
    roles = roles_of(fn, params, *args)
    values = jax.tree.map(lambda s: jnp.arange(s.size, dtype=s.dtype).reshape(s.shape), params)
    for tree in (roles.fan_in, roles.fan_out, roles.matrix):
        tx = centralize(tree)
        centred, _ = tx.update(values, tx.init(values))
        (kernel,) = [x for x in jax.tree.leaves(centred) if x.ndim == 2]
        (axes,) = [a for a in by_path(tree).values() if a]
        assert jnp.abs(kernel.mean(axes)).max() < 1e-5


def test_explain_shows_the_three_roles_of_each_parameter():
    text = explain(*linen(Stack(SelfAttention, 1), f32(2, 7, 8)))
    header, *lines = (line.split("  ") for line in str(text).splitlines())
    columns = [cell.strip() for cell in header if cell.strip()]
    assert columns == ["parameter", "shape", "fan-in", "fan-out", "batch", "use", "where"]
    (query,) = [line for line in lines if line[0] == "layers/attn/query/kernel"]
    cells = [cell.strip() for cell in query if cell.strip()]
    assert cells[1:6] == ["(8, 3, 2, 4)", "(0,)", "(2, 3)", "(1,)", "dense"]


def test_explain_shows_no_role_of_what_is_refused():
    fn = lambda p, x: jnp.tanh(x @ p["w"]) @ p["w"].T  # noqa: E731
    line = explain(fn, {"w": f32(8, 5)}, f32(3, 8)).splitlines()[1]
    assert line.split()[3:6] == ["?", "?", "?"]


EXPERTS = {"up": f32(3, 8, 6), "down": f32(3, 6, 8)}
X = f32(3, 8)


def dense_routed(params, x):
    """Every expert sees every token; their outputs are averaged."""
    h = jax.nn.gelu(jnp.einsum("td,edf->tef", x, params["up"]))
    return jnp.einsum("tef,efd->ted", h, params["down"]).mean(1)


def routed(params, x):
    """Every expert sees the tokens that it was given, x (experts, tokens, features)."""
    h = jax.nn.gelu(jnp.einsum("etd,edf->etf", x, params["up"]))
    return jnp.einsum("etf,efd->etd", h, params["down"])


def test_experts_that_see_every_token_are_outputs_of_the_kernel_they_meet_first():
    roles = roles_of(dense_routed, EXPERTS, f32(5, 8))
    assert of(roles, "up") == ((1,), (0, 2), ())
    assert of(roles, "down") == ((1,), (2,), (0,))


def test_experts_that_see_tokens_of_their_own_are_copies():
    roles = roles_of(routed, EXPERTS, f32(3, 5, 8))
    assert of(roles, "up") == ((1,), (2,), (0,))
    assert of(roles, "down") == ((1,), (2,), (0,))


def test_roles_of_a_function_of_keyword_arguments():
    fn = lambda p, *, tokens: p["e"][tokens] @ p["w"]  # noqa: E731
    roles = roles_of(fn, {"e": f32(11, 8), "w": f32(8, 5)}, tokens=i32(3, 7))
    assert isinstance(roles, Roles)
    assert (of(roles, "e"), of(roles, "w")) == (((), (), ()), ((0,), (1,), ()))
