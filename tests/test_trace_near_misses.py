"""Programs one step from another that means something else: answered exactly, or refused.

A single output hides which axis is the output, a lookup which axis is selected, inputs that are
closed over what is data, and a second use that the first is not all.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from trace_support import REFUSED, Untold, answers, f32, i32, linen, outcomes

W, X, IDS = f32(8, 6), f32(3, 8), i32(3)
ONES = np.ones((3, 8), np.float32)
einsum = jnp.einsum


def conv(x, kernel, **options):
    numbers = ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(
        x[None], kernel, (1, 1), "SAME", dimension_numbers=numbers, **options
    )[0]


def mixture_of_convolutions(p, x, gates):
    def one(x, gates):
        kernel = einsum("e,ehwio->hwio", gates, p)
        return conv(x, kernel, feature_group_count=x.shape[-1] // p.shape[3])

    return jax.vmap(one)(x, gates)


def grouped_attention(p, x, k):
    q = einsum("btd,dhk->bthk", x, p["q"]) + p["bias"]
    q = q * jax.lax.rsqrt((q**2).mean(-1, keepdims=True)) * p["scale"]
    return jax.nn.softmax(einsum("bthk,bsk->bhts", q, k))


QUERIES = {"q": f32(8, 2, 4), "bias": f32(2, 4), "scale": f32(2, 4)}

# name: (fn, parameters, arguments, the expectation)
CASES = {
    # One output.
    "a mixture of dense layers with one output": (
        lambda p, x, g: einsum("bi,bio->bo", x, einsum("be,eio->bio", g, p)),
        f32(4, 8, 1), (X, f32(3, 4)), Untold((1,)),
    ),
    "a mixture of depthwise convolutions": (
        mixture_of_convolutions, f32(4, 3, 3, 1, 5), (f32(2, 9, 8, 5), f32(2, 4)),
        Untold((1, 2, 3)),
    ),
    "a mixture of convolutions with one output": (
        mixture_of_convolutions, f32(4, 3, 3, 5, 1), (f32(2, 9, 8, 5), f32(2, 4)),
        Untold((1, 2, 3)),
    ),
    "a modulated convolution with one output": (
        lambda p, x, s: jax.vmap(lambda x, s: conv(x, p * s[:, None]))(x, s),
        f32(3, 3, 4, 1), (f32(2, 9, 8, 4), f32(2, 4)), Untold((0, 1, 2)),
    ),
    "an expert with one output": (
        lambda p, x, t: einsum("bi,bio->bo", x, p[t]), f32(4, 8, 1), (X, IDS), Untold((1,)),
    ),
    "a fan-in of one before attention with shared keys": (
        lambda p, x, k: einsum("bthk,bsk->bhts", einsum("btd,dhk->bthk", x, p), k),
        f32(1, 2, 4), (f32(3, 7, 1), f32(3, 5, 4)), (),
    ),
    "a fan-in of one, then a sum": (lambda p, x: (x @ p).sum(), f32(1, 5), (f32(3, 1),), ()),
    # Lookups.
    "an output layer of which data chose some units": (
        lambda p, x, t: x @ p[:, t], f32(8, 50), (X, i32(9)), Untold((0,)),
    ),
    "the same in the layout of an embedding": (
        lambda p, x, t: x @ p[t].T, f32(50, 8), (X, i32(9)), Untold((1,)),
    ),
    "a weight whose rows constants permute by a product": (
        lambda p, x: x @ (jax.nn.one_hot(np.arange(8)[::-1], 8) @ p), W, (X,), (0,),
    ),
    "a loss that labels choose, of inputs that are closed over": (
        lambda p, y: -jnp.take_along_axis(jax.nn.log_softmax(ONES @ p), y[:, None], 1).mean(),
        W, (IDS,), Untold((0,)),
    ),
    # Constants.
    "two constants around a weight": (
        lambda p: ONES @ (p["params"] @ np.ones((6, 5), np.float32)), {"params": W}, (),
        Untold((0,)),
    ),
    # A second use.
    "embeddings of nodes with a residual": (
        lambda p, a: ((p + a @ p) ** 2).sum(), f32(11, 8), (f32(11, 11),), Untold(()),
    ),
    "distances to prototypes by expansion": (
        lambda p, x: 2 * x @ p.T - (p**2).sum(-1), f32(6, 8), (X,), (1,),
    ),
    "a penalty on the distance from where training began": (
        lambda p, x, start: jnp.tanh(x @ p).mean() + ((p - start) ** 2).sum(), W, (X, W), (0,),
    ),
    "a penalty added to a linear loss": (
        lambda p, x: (x @ p).mean() + (p**2).sum(), W, (X,), (0,),
    ),
    # Scalars have no fan-in, whatever becomes of them.
    "a variance that goes into eigenvalues": (
        lambda p, x: jnp.linalg.eigh(x.T @ x * p)[0], f32(), (X,), (),
    ),
}  # fmt: skip


@pytest.mark.parametrize(("fn", "params", "args", "expectation"), CASES.values(), ids=CASES)
def test_each_is_answered_exactly_or_refused(fn, params, args, expectation):
    assert answers(fn, params, *args) == outcomes({"params": expectation})


LOW_RANK = {"a": f32(8, 2), "b": f32(2, 4)}
MIXING = np.random.default_rng(0).normal(size=(4, 5)).astype(np.float32)


@pytest.mark.parametrize(
    "fn",
    [
        lambda p, x: x @ (p["a"] @ (p["b"] @ MIXING)),
        lambda p, x: x @ (p["a"] @ (p["b"] @ MIXING)) * 2 + 1,
    ],
    ids=["mixed by constants", "and scaled"],
)
def test_a_product_of_two_weights_is_told_apart_through_a_constant(fn):
    assert answers(fn, LOW_RANK, X) == {"a": (0,), "b": (0,)}


HEADS = lambda b: jnp.broadcast_to(b[:, None], (2, 3, 4))  # noqa: E731
NORMED = lambda w: w / jnp.linalg.norm(w, axis=0)  # noqa: E731


@pytest.mark.parametrize(
    ("fn", "refused"),
    [
        (lambda p, x: x @ (p["a"] @ NORMED(p["b"])), "ab"),
        (lambda p, x: x @ (p["a"] @ jnp.tanh(p["b"])), "ab"),
        (lambda p, x: jnp.tanh(x) @ (p["a"] @ NORMED(p["b"])), "ab"),
        (lambda p, x: x @ (p["w"] + p["a"] @ NORMED(p["b"])), "abw"),
        (lambda p, x: x @ (NORMED(p["a"]) @ p["b"]), "a"),
        (lambda p, x: x @ (NORMED(p["a"]) @ NORMED(p["b"])), ""),
        (lambda p, x: x @ (p["w"] + NORMED(p["a"]) @ p["b"]), "aw"),
        (
            lambda p, x: einsum("td,dhk->thk", x, einsum("dr,rhk->dhk", p["a"], HEADS(p["b"]))),
            "ab",
        ),
        (
            lambda p, x: einsum(
                "td,dhk->thk",
                x,
                p["w"][:, None] + einsum("dr,rhk->dhk", p["a"], HEADS(p["b"])),
            ),
            "abw",
        ),
    ],
)
def test_a_low_rank_weight_of_which_a_factor_looks_like_latents_is_not_taken_for_those(fn, refused):
    found = answers(fn, LOW_RANK | {"w": f32(8, 4)} if "w" in refused else LOW_RANK, X)
    assert {name for name, axes in found.items() if axes == REFUSED} == set(refused)
    assert all(axes == (0,) for axes in found.values() if axes != REFUSED)


def test_a_vector_that_scales_constants_beside_a_weight_is_a_scale():
    fn = lambda p, x: x @ (p["a"] @ (p["s"][:, None] * MIXING))  # noqa: E731
    assert answers(fn, {"a": f32(8, 4), "s": f32(4)}, X) == {"a": (0,), "s": ()}


def test_learned_queries_repeated_along_a_batch_leave_their_projection_its_axes():
    def fn(p, x):
        q = einsum("btd,dhk->bthk", jnp.broadcast_to(p["probe"], (3, 2, 8)), p["q"])
        k = einsum("bsd,dhk->bshk", x, p["k"])
        return jax.nn.softmax(einsum("bthk,bshk->bhts", q, k))

    params = {"probe": f32(1, 2, 8), "q": f32(8, 2, 4), "k": f32(8, 2, 4)}
    assert answers(fn, params, f32(3, 7, 8)) == {"probe": (), "q": (0,), "k": (0,)}


def test_embeddings_multiplied_pair_by_pair_are_lookups():
    def fn(p, ids, x):
        rows = jnp.stack([p["a"][ids[:, 0]], p["b"][ids[:, 1]], x], axis=1)
        return einsum("bid,bjd->bij", rows, rows)

    found = answers(fn, {"a": f32(11, 8), "b": f32(13, 8)}, i32(3, 2), X)
    assert found == {"a": (), "b": ()}


def test_two_lookups_of_one_table_are_lookups():
    def fn(p, x, liked, other):
        return jax.nn.softplus((x * p[other]).sum(-1) - (x * p[liked]).sum(-1)).mean()

    assert answers(fn, f32(11, 8), X, IDS, IDS) == {"params": ()}


def test_a_spectrally_normalised_layer_of_one_output_has_its_axes():
    class Critic(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.SpectralNorm(nn.Dense(1))(x, update_stats=True)

    found = answers(*linen(Critic(), X))
    assert {path: axes for path, axes in found.items() if "kernel" in path} == {
        "Dense_0/kernel": (0,)
    }


def test_grouped_queries_keep_their_axes_and_their_bias_and_scale_have_none():
    found = answers(grouped_attention, QUERIES, f32(3, 7, 8), f32(3, 5, 4))
    assert found == {"q": (0,), "bias": (), "scale": ()}


def test_grouped_queries_of_jax_itself_keep_their_axes():
    def fn(p, x, k):
        return jax.nn.dot_product_attention(einsum("btd,dhk->bthk", x, p), k, k)

    assert answers(fn, f32(8, 4, 6), f32(3, 7, 8), f32(3, 5, 2, 6)) == {"params": (0,)}


def test_a_scale_repeated_along_outputs_is_no_weight_of_closed_over_inputs():
    def fn(p, y):
        hidden = jnp.sin(ONES @ (p["w"] * p["s"][:, None]) + p["b"])
        return y + hidden @ p["v"]

    params = {"w": W, "s": f32(8), "b": f32(6), "v": f32(6, 5)}
    expected = {"w": Untold((0,)), "s": Untold(()), "b": Untold(()), "v": (0,)}
    assert answers(fn, params, f32(7, 3, 5)) == outcomes(expected)


def test_tokens_of_any_unsigned_dtype_are_no_random_keys():
    params = {"table": f32(11, 8), "kernel": W}
    tokens = jax.ShapeDtypeStruct((3, 2), jnp.uint32)
    found = answers(lambda p, t: jnp.tanh(p["table"][t]) @ p["kernel"], params, tokens)
    assert found == {"table": (), "kernel": (0,)}


def test_a_gradient_of_one_parameter_is_told_from_predictions():
    gradient = jax.grad(lambda p, x: (x @ p["w"]).sum())
    with pytest.raises(ValueError, match="looks like gradients"):
        answers(gradient, {"w": W}, X)
