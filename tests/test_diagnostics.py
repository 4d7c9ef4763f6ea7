"""The diagnostics, against NumPy in float64, full Hessians and the theorems they show."""

import functools
import sys

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.flatten_util import ravel_pytree
from optax.transforms import masked

from optax_gc import centralize, diagnostics

rng = np.random.default_rng(0)


def normal(*shape, dtype=np.float32):
    return jnp.asarray(rng.normal(size=shape) + 0.4, dtype)


def tree(dtype=np.float32):
    return {
        "conv": {"kernel": normal(3, 2, 4, 5, dtype=dtype), "bias": normal(5, dtype=dtype)},
        "head": {"kernel": normal(5, 7, dtype=dtype)},
    }


def f64(x):
    return np.asarray(x).astype(np.complex128 if np.iscomplexobj(x) else np.float64)


def length(*xs):
    return np.sqrt(sum((np.abs(f64(x)) ** 2).sum() for x in xs))


# removed_fraction, norms, unit_sums, radial_component


@pytest.mark.parametrize("dtype", [np.float32, jnp.bfloat16, np.float16, np.complex64])
def test_the_removed_fraction_is_what_centralize_removes(dtype):
    grads = tree(dtype)
    kernels = {"conv/kernel": grads["conv"]["kernel"], "head/kernel": grads["head"]["kernel"]}
    means = {
        path: np.broadcast_to(f64(g).mean(tuple(range(g.ndim - 1))), g.shape)
        for path, g in kernels.items()
    }
    removed = jax.jit(diagnostics.removed_fraction)(grads)
    assert removed.parameters.keys() == means.keys()
    for path, fraction in removed.parameters.items():
        assert fraction.dtype == jnp.float32
        np.testing.assert_allclose(fraction, length(means[path]) / length(kernels[path]), rtol=1e-5)
    total = length(*means.values()) / length(*jax.tree.leaves(grads))
    np.testing.assert_allclose(removed.total, total, rtol=1e-5)


def test_nothing_is_removed_of_a_centralized_or_zero_gradient(standard_promotion):
    updates, _ = centralize().update(tree(), optax.EmptyState())
    assert diagnostics.removed_fraction(updates).total < 1e-6
    zero = diagnostics.removed_fraction(jax.tree.map(jnp.zeros_like, updates))
    assert jax.tree.leaves(zero) == [0, 0, 0]


@pytest.mark.parametrize("size", [1e-24, 1e20])
def test_sizes_whose_squares_leave_the_range_are_measured(size):
    grads, params = tree(), tree()
    small = jax.tree.map(lambda x: x * size, grads)
    measures = lambda g: (diagnostics.removed_fraction(g), diagnostics.radial_component(g, params))  # noqa: E731
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6),
        measures(small),
        measures(grads),
    )
    turned = diagnostics.radial_component(params, small)
    np.testing.assert_allclose(
        turned["head/kernel"], measures(grads)[1]["head/kernel"], rtol=1e-5, atol=1e-6
    )
    for path, norm in diagnostics.norms(small).items():
        np.testing.assert_allclose(norm.l2, size * diagnostics.norms(grads)[path].l2, rtol=1e-5)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_measure_of_what_is_not_finite_is_not_a_number(bad):
    grads, params = tree(), tree()
    broken = {**grads, "head": {"kernel": grads["head"]["kernel"].at[1, 2].set(bad)}}
    removed = diagnostics.removed_fraction(broken)
    assert np.isnan([removed.total, removed.parameters["head/kernel"]]).all()
    assert np.isfinite(removed.parameters["conv/kernel"])
    for cosines in (
        diagnostics.radial_component(broken, params),
        diagnostics.radial_component(params, broken),
    ):
        np.testing.assert_array_equal(np.isnan(cosines["head/kernel"]), np.arange(7) == 2)
        assert np.isfinite(cosines["conv/kernel"]).all()


def test_the_derivative_of_the_removed_fraction_of_centred_gradients_is_zero():
    grads = {"w": jnp.array([[1.0, -2.0], [-1.0, 2.0]]), "zero": jnp.zeros((3, 2))}
    derivative = jax.grad(lambda g: diagnostics.removed_fraction(g).total)(grads)
    assert all((d == 0).all() for d in jax.tree.leaves(derivative))


def test_norms_are_those_of_each_array_and_of_nothing_else():
    grads = {**tree(), "step": jnp.array(3), "none": None, "empty": jnp.zeros((0, 3))}
    sizes = jax.jit(diagnostics.norms)(grads)
    assert sizes.keys() == {"conv/kernel", "conv/bias", "head/kernel", "empty"}
    np.testing.assert_allclose(sizes["conv/kernel"].l2, length(grads["conv"]["kernel"]), rtol=1e-6)
    np.testing.assert_allclose(
        sizes["head/kernel"].max, np.abs(f64(grads["head"]["kernel"])).max(), rtol=1e-6
    )
    assert sizes["empty"] == (0, 0)


def test_half_precision_is_summed_in_float32():
    ones = {"w": jnp.full((4096, 2), 30.0, jnp.float16)}
    np.testing.assert_allclose(diagnostics.norms(ones)["w"].l2, 30 * np.sqrt(8192), rtol=1e-5)
    np.testing.assert_allclose(diagnostics.unit_sums(ones)["w"], 30 * 4096)
    np.testing.assert_allclose(diagnostics.removed_fraction(ones).total, 1, rtol=1e-6)


def test_gc_shortens_gradients_and_may_raise_their_maximum():
    """Theorem 4.2 is about norms; there is none about maxima."""
    grads = {"w": jnp.array([[-2.0], [1.0], [1.5]])}
    updates, _ = centralize().update(grads, optax.EmptyState())
    before, after = diagnostics.norms(grads)["w"], diagnostics.norms(updates)["w"]
    assert after.l2 < before.l2
    assert after.max > before.max


def test_unit_sums_are_over_the_fan_in():
    params = tree()
    sums = diagnostics.unit_sums(params, {"conv": {"kernel": (0, 2), "bias": ()}, "head": (-1,)})
    assert sums.keys() == {"conv/kernel", "head/kernel"}
    np.testing.assert_allclose(
        sums["conv/kernel"], f64(params["conv"]["kernel"]).sum((0, 2)), rtol=1e-5, atol=1e-5
    )
    np.testing.assert_allclose(sums["head/kernel"], f64(params["head"]["kernel"]).sum(1), rtol=1e-5)


@pytest.mark.parametrize("dtype", [np.float32, jnp.bfloat16, np.complex64])
@pytest.mark.parametrize("per", ["unit", "layer"])
def test_the_radial_component_is_the_cosine_of_gradient_and_weights(per, dtype):
    grads, params = tree(dtype), tree(dtype)
    cosines = diagnostics.radial_component(grads, params, per=per)
    assert cosines.keys() == {"conv/kernel", "head/kernel"}
    g, w = f64(grads["conv"]["kernel"]), f64(params["conv"]["kernel"])
    axes = (0, 1, 2) if per == "unit" else (0, 1, 2, 3)
    lengths = [np.sqrt((np.abs(x) ** 2).sum(axes)) for x in (g, w)]
    expected = np.real((g * w).sum(axes)) / lengths[0] / lengths[1]
    assert cosines["conv/kernel"].shape == expected.shape
    np.testing.assert_allclose(cosines["conv/kernel"], expected, atol=1e-6)


def test_the_radial_component_of_nothing_is_zero():
    w = {"w": jnp.array([[1.0, 0.0], [2.0, 0.0]])}
    g = {"w": jnp.array([[0.0, 1.0], [0.0, 2.0]])}
    np.testing.assert_array_equal(diagnostics.radial_component(g, w)["w"], 0)


def test_gc_gives_uncentred_weights_a_radial_component():
    w = {"w": normal(9, 4)}
    g = normal(9, 4)
    g = g - (g * w["w"]).sum(0, keepdims=True) / (w["w"] ** 2).sum(0, keepdims=True) * w["w"]
    assert np.abs(diagnostics.radial_component({"w": g}, w)["w"]).max() < 1e-6
    updates, _ = centralize().update({"w": g}, optax.EmptyState())
    assert np.abs(diagnostics.radial_component(updates, w)["w"]).max() > 0.02


def test_params_that_the_gradients_are_not_of_are_refused():
    with pytest.raises(ValueError, match=r"grads of shapes .* do not match params of shapes"):
        diagnostics.radial_component({"w": normal(3, 4)}, {"w": normal(4, 3)})
    with pytest.raises(ValueError, match="params is None"):
        diagnostics.radial_component({"w": normal(3, 4)}, None)
    with pytest.raises(ValueError, match="grads have 'v' where params have 'w'"):
        diagnostics.radial_component({"v": normal(3, 4)}, {"w": normal(3, 4)})
    with pytest.raises(ValueError, match=r"per is 'output'\."):
        diagnostics.radial_component(tree(), tree(), per="output")


def test_paths_that_name_two_arrays_are_refused():
    with pytest.raises(ValueError, match="'a/b' names two arrays"):
        diagnostics.norms({"a/b": jnp.ones(2), "a": {"b": jnp.ones(3)}})


def test_diagnostics_take_nnx_state():
    params = nnx.state(nnx.Linear(7, 5, rngs=nnx.Rngs(0)), nnx.Param)
    assert diagnostics.norms(params).keys() == {"kernel", "bias"}
    assert diagnostics.unit_sums(params, {"kernel": (0,), "bias": ()})["kernel"].shape == (5,)
    assert diagnostics.radial_component(params, params).keys() == {"kernel"}


MEASURES = {
    "removed_fraction": diagnostics.removed_fraction,
    "norms": diagnostics.norms,
    "unit_sums": diagnostics.unit_sums,
}


@pytest.mark.parametrize("name", MEASURES)
def test_what_is_masked_is_not_measured(name):
    """As a transformation that measures, inside the masks that optax.masked makes."""
    seen = []
    watch = optax.stateless(lambda g, _: (seen.append(MEASURES[name](g)), g)[1])
    tx = masked(watch, {"conv": True, "head": False})
    tx.update(tree(), tx.init(tree()))
    paths = seen[0].parameters if name == "removed_fraction" else seen[0]
    assert not any("head" in path for path in paths)
    assert "conv/kernel" in paths


@pytest.mark.parametrize("name", MEASURES)
def test_measures_of_a_placeholder_are_empty_so_that_tree_map_params_works(name):
    init = lambda params: {"trace": params, "seen": MEASURES[name](params)}  # noqa: E731
    state = {"trace": tree(), "seen": MEASURES[name]({})}
    mapped = optax.tree_map_params(init, lambda x: x.shape, state)
    assert mapped["trace"] == jax.tree.map(lambda x: x.shape, tree())


# span_residual


def outside_span(weight, rows):
    """NumPy's least squares, in float64, of weight (fan-in, units) and rows (n, fan-in)."""
    rows, weight = f64(rows), f64(weight)
    return weight - np.linalg.pinv(rows, rcond=1e-5) @ (rows @ weight)


def test_the_residual_of_a_dense_weight_is_what_least_squares_leave():
    w, x = normal(9, 5), normal(2, 3, 9)
    expected = outside_span(w, x.reshape(6, 9))
    np.testing.assert_allclose(diagnostics.span_residual(w, x), expected, atol=1e-5)
    assert length(expected) > 1


def test_an_attention_output_projection_is_given_by_its_axes():
    w, x = normal(2, 4, 5), normal(6, 2, 4)
    residual = diagnostics.span_residual(w, x, axes=(0, 1))
    expected = outside_span(w.reshape(8, 5), x.reshape(6, 8)).reshape(2, 4, 5)
    np.testing.assert_allclose(residual, expected, atol=1e-5)
    transposed = diagnostics.span_residual(w.transpose(2, 0, 1), x, axes=(1, 2))
    np.testing.assert_allclose(transposed, residual.transpose(2, 0, 1), atol=1e-6)


CONVOLUTIONS = [
    {"padding": "VALID"},
    {"padding": "SAME", "strides": (2, 1)},
    {"padding": ((1, 0), (0, 2)), "dilation": 2},
    {"padding": "SAME", "groups": 2},
]


@pytest.mark.parametrize("options", CONVOLUTIONS)
def test_the_residual_of_a_convolution_has_no_effect_on_its_output(options):
    """Flax computes the output; the rest of the weight has the shortest length that can give it."""
    groups = options.get("groups", 1)
    w, x = normal(3, 2, 6 // groups, 4), normal(1, 5, 4, 6).at[..., 1].set(0)
    layer = nn.Conv(
        4,
        (3, 2),
        use_bias=False,
        padding=options["padding"],
        strides=options.get("strides", 1),
        kernel_dilation=options.get("dilation", 1),
        feature_group_count=groups,
    )
    residual = diagnostics.span_residual(w, x, **options)
    assert length(residual) > 0.1 * length(w)
    out = layer.apply({"params": {"kernel": residual}}, x)
    assert np.abs(out).max() < 2e-5
    assert np.abs(layer.apply({"params": {"kernel": w}}, x)).max() > 1
    # No gradient of any loss has a part along the residual: it is orthogonal to the whole span.
    g = jax.vjp(lambda w: layer.apply({"params": {"kernel": w}}, x), w)[1](jnp.cos(out * 1e6))[0]
    assert np.abs((f64(g) * f64(residual)).sum((0, 1, 2))).max() < 1e-4 * length(g)
    np.testing.assert_allclose(diagnostics.span_residual(g, x, **options), 0, atol=1e-5 * length(g))


def test_convolutions_of_one_and_three_dimensions_have_residuals():
    line = diagnostics.span_residual(normal(3, 4, 5), normal(1, 6, 4), padding="VALID")
    volume = diagnostics.span_residual(
        normal(2, 1, 2, 3, 5), normal(1, 3, 2, 3, 3), padding="VALID"
    )
    assert line.shape == (3, 4, 5)
    assert length(line) > 0.1
    assert volume.shape == (2, 1, 2, 3, 5)


def train(tx, params, x, steps):
    """Full-batch training of a dense layer by least squares, compiled."""
    y = jnp.sin(jnp.arange(x.shape[0] * 5.0)).reshape(-1, 5)

    def step(carry, _):
        params, state = carry
        grads = jax.grad(lambda p: jnp.square(x @ p["kernel"] - y).mean())(params)
        updates, state = tx.update(grads, state, params)
        return (optax.apply_updates(params, updates), state), None

    run = jax.jit(lambda p: jax.lax.scan(step, (p, tx.init(p)), length=steps)[0][0])
    return run(params)


def test_sgd_with_momentum_never_changes_what_is_outside_the_span(standard_promotion):
    start, x = {"kernel": normal(9, 5)}, normal(6, 9)
    after = train(optax.sgd(0.1, momentum=0.9), start, x, 200)["kernel"]
    noise = [diagnostics.span_residual(w, x) for w in (start["kernel"], after)]
    np.testing.assert_allclose(*noise, atol=1e-5)
    assert np.abs(after - start["kernel"]).max() > 0.1


def test_weight_decay_shrinks_what_is_outside_the_span_by_the_same_factor_each_step(
    standard_promotion,
):
    start, x, eta, decay = {"kernel": normal(9, 5)}, normal(6, 9), 0.1, 0.05
    tx = optax.chain(optax.add_decayed_weights(decay), optax.sgd(eta))
    before = diagnostics.span_residual(start["kernel"], x)
    for t in (1, 100):
        after = diagnostics.span_residual(train(tx, start, x, t)["kernel"], x)
        np.testing.assert_allclose(after, (1 - eta * decay) ** t * before, atol=1e-5)


def test_adam_leaves_the_span_and_gc_leaves_it_by_a_constant(standard_promotion):
    start, x = {"kernel": normal(9, 5)}, normal(6, 9)
    with_ones = jnp.concatenate([x, jnp.ones((1, 9))])
    for tx, rows, moves in [
        (optax.adam(0.01), with_ones, True),
        (optax.chain(centralize(), optax.sgd(0.1)), x, True),
        (optax.chain(centralize(), optax.sgd(0.1)), with_ones, False),
    ]:
        moved = train(tx, start, x, 100)["kernel"] - start["kernel"]
        assert (length(diagnostics.span_residual(moved, rows)) > 0.05 * length(moved)) == moves


def test_the_residual_is_computed_in_float32_or_wider_and_under_jit(x64):
    x = normal(6, 9, dtype=np.float64)
    for dtype, wide in [(jnp.bfloat16, jnp.float32), (np.float64, jnp.float64)]:
        w = normal(9, 5, dtype=dtype)
        residual = jax.jit(diagnostics.span_residual)(w, x)
        assert residual.dtype == wide
        accuracy = 1e-5 if wide == jnp.float32 else 1e-13
        np.testing.assert_allclose(residual, outside_span(w, x), atol=accuracy)


def test_the_residual_of_what_is_not_finite_is_not_a_number():
    w, x = normal(9, 5), normal(6, 9)
    for bad in (jnp.nan, jnp.inf):
        assert np.isnan(diagnostics.span_residual(w, x.at[1, 2].set(bad))).all()
        of_one = np.isnan(diagnostics.span_residual(w.at[1, 2].set(bad), x))
        np.testing.assert_array_equal(of_one, np.broadcast_to(np.arange(5) == 2, (9, 5)))


def test_the_residual_for_complex_inputs_is_complex():
    w, x = normal(9, 5), jax.lax.complex(normal(6, 9), normal(6, 9))
    residual = diagnostics.span_residual(w, x)
    assert residual.dtype == jnp.complex64
    np.testing.assert_allclose(residual, outside_span(w, x), atol=1e-5)


def test_one_weight_a_unit_is_seen_by_any_input_but_zero():
    w = normal(1, 5)
    np.testing.assert_allclose(diagnostics.span_residual(w, normal(6, 1)), 0, atol=1e-6)
    np.testing.assert_array_equal(diagnostics.span_residual(w, jnp.zeros((6, 1))), w)
    turned = diagnostics.span_residual(w.T, jnp.zeros((6, 1)), axes=(-1,))
    np.testing.assert_array_equal(turned, w.T)


@pytest.mark.parametrize("padding", [1, [1, 1], "CIRCULAR", "CAUSAL", [(1, 1)], [(1, 1), (0, 0.5)]])
def test_paddings_that_lax_does_not_have_are_told_which_there_are(padding):
    w, x = normal(3, 2, 4, 5), normal(1, 6, 6, 4)
    with pytest.raises(ValueError, match=r"padding=.*\. Give 'SAME', 'VALID' .* for each"):
        diagnostics.span_residual(w, x, padding=padding)


def test_inputs_that_do_not_fit_the_weight_are_refused():
    with pytest.raises(
        ValueError, match=r"inputs of shape \(6, 5\) do not end in the fan-in \(9,\)"
    ):
        diagnostics.span_residual(jnp.ones((9, 5)), jnp.ones((6, 5)))
    with pytest.raises(ValueError, match="do not fit a convolution's weight"):
        diagnostics.span_residual(jnp.ones((3, 2, 4, 5)), jnp.ones((1, 6, 6, 3)), padding="SAME")
    with pytest.raises(ValueError, match="no fan-in: rank 1"):
        diagnostics.span_residual(jnp.ones(9), jnp.ones((6, 9)))
    with pytest.raises(ValueError, match="Give a convolution's padding"):
        diagnostics.span_residual(jnp.ones((9, 5)), jnp.ones((6, 9)), groups=3)
    with pytest.raises(ValueError, match="Give a convolution's padding"):
        diagnostics.span_residual(jnp.ones((9, 5)), jnp.ones((6, 9)), strides=2)
    with pytest.raises(ValueError, match="Give a convolution's padding"):
        diagnostics.span_residual(jnp.ones((9, 5)), jnp.ones((6, 9)), dilation=(1, 2))
    with pytest.raises(ValueError, match="at most three dimensions"):
        diagnostics.span_residual(jnp.ones((2,) * 6), jnp.ones((1, 3, 3, 3, 3, 2)), padding="SAME")
    with pytest.raises(ValueError, match="axes need not be given"):
        diagnostics.span_residual(jnp.ones((9, 5)), jnp.ones((6, 9)), padding="SAME")


# sharpness


class Network(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(2)(jnp.tanh(nn.Dense(4)(x)))


def problem(scale=1.0):
    """A loss with a Hessian of both signs, its parameters, and the Hessian's projections."""
    x, y = normal(20, 6), normal(20, 2)
    params = Network().init(jax.random.key(0), x)["params"]
    loss = lambda p: scale * jnp.square(Network().apply({"params": p}, x) - y).mean()  # noqa: E731
    return loss, params


@functools.partial(jax.jit, static_argnames=("loss", "num_matvecs"))
def sharpness(loss, params, num_matvecs=32):
    return diagnostics.sharpness(loss, params, key=jax.random.key(0), num_matvecs=num_matvecs)


def full_hessian(loss, params):
    flat, unravel = ravel_pytree(params)
    return f64(jax.jit(jax.hessian(lambda v: loss(unravel(v))))(flat))


def full_projection(params):
    """P as a matrix: centralize applied to every unit vector, in NumPy."""
    flat, unravel = ravel_pytree(params)
    columns = []
    for unit in np.eye(flat.size, dtype=np.float32):
        t = jax.tree.map(f64, unravel(jnp.asarray(unit)))
        t = jax.tree.map(lambda w: w - w.mean(0, keepdims=True) if w.ndim > 1 else w, t)
        columns.append(np.concatenate([w.ravel() for w in jax.tree.leaves(t)]))
    return np.array(columns).T


KERNELS = {"Dense_0": {"kernel": (0,), "bias": ()}, "Dense_1": (0,)}


def test_sharpness_is_the_largest_eigenvalue_of_the_full_hessian(standard_promotion):
    loss, params = problem()
    H, P = full_hessian(loss, params), full_projection(params)
    key = jax.random.key(3)
    for axes, matrix in [(None, H), (KERNELS, P @ H @ P)]:
        found = jax.jit(lambda p: diagnostics.sharpness(loss, p, axes=axes, key=key))(params)  # noqa: B023
        np.testing.assert_allclose(found.value, np.linalg.eigvalsh(matrix)[-1], rtol=1e-5)
        assert found.error < 1e-3 * found.value


def test_gc_never_raises_sharpness_or_gradient(standard_promotion):
    """Theorem 4.2, pointwise: ‖Pg‖ ≤ ‖g‖ and ‖PHP‖ ≤ ‖PH‖ ≤ ‖H‖, here at three points."""
    loss, params = problem()
    P = full_projection(params)
    hessian = jax.jit(jax.hessian(lambda v: loss(ravel_pytree(params)[1](v))))
    measure = jax.jit(
        lambda p, k: [
            diagnostics.sharpness(loss, p, axes=axes, key=k).value for axes in (None, KERNELS)
        ]
    )
    for seed in range(3):
        key = jax.random.key(seed)
        flat, unravel = ravel_pytree(params)
        point = flat + 0.5 * jax.random.normal(key, flat.shape)
        H, g = f64(hessian(point)), f64(ravel_pytree(jax.grad(loss)(unravel(point)))[0])
        norms = [np.linalg.norm(M, 2) for M in (P @ H @ P, P @ H, H)]
        assert norms == sorted(norms)
        assert np.linalg.norm(P @ g) < np.linalg.norm(g)
        plain, centred = measure(unravel(point), key)
        assert 0 < centred < plain
        np.testing.assert_allclose(plain, np.linalg.eigvalsh(H)[-1], rtol=1e-4)
        np.testing.assert_allclose(centred, np.linalg.eigvalsh(P @ H @ P)[-1], rtol=1e-4)


def test_the_largest_eigenvalue_is_signed(standard_promotion):
    loss, params = problem(scale=-1.0)
    H = full_hessian(loss, params)
    top = np.linalg.eigvalsh(H)[-1]
    assert abs(top) < -np.linalg.eigvalsh(H)[0]
    found = sharpness(loss, params)
    np.testing.assert_allclose(found.value, top, atol=1e-4)
    bowl = lambda p: -jnp.square(p["w"] * jnp.arange(1.0, 7.0)).sum()  # noqa: E731
    concave = sharpness(bowl, {"w": jnp.ones(6)})
    np.testing.assert_allclose(concave.value, -2, rtol=1e-4)


def test_the_error_tells_how_far_off_too_few_products_are():
    curvature = jnp.linspace(0.0, 1.0, 400) ** 0.25
    loss = lambda p: jnp.sum(curvature * jnp.square(p["w"])) / 2  # noqa: E731
    few, many = (sharpness(loss, {"w": jnp.ones(400)}, num_matvecs=n) for n in (4, 60))
    assert 0.01 < 1 - few.value <= few.error
    assert abs(1 - many.value) <= many.error < 0.01


@pytest.mark.parametrize("rank", [0, 1, 2])
def test_a_hessian_of_low_rank_is_no_trouble(rank):
    """Its Krylov space ends early, where Lanczos divides by zero."""
    directions = jnp.eye(3)[:rank] * jnp.array([[2.0], [3.0]])[:rank]
    loss = lambda p: jnp.square(directions @ p).sum() / 2 + p.sum()  # noqa: E731
    found = sharpness(loss, jnp.ones(3))
    np.testing.assert_allclose(found.value, [0, 4, 9][rank], atol=1e-5)
    assert found.error < 1e-4


def test_a_multiple_of_the_identity_is_found_in_one_product():
    loss = lambda p: 2 * jnp.square(p["w"]).sum()  # noqa: E731
    found = sharpness(loss, {"w": jnp.ones((4, 8))})
    np.testing.assert_allclose(found.value, 4, rtol=1e-6)
    assert found.error < 1e-5


def test_a_hessian_that_is_not_a_number_is_told():
    found = sharpness(lambda p: jnp.sqrt(p).sum(), jnp.zeros(3))
    assert np.isnan(found.value)


def test_sharpness_of_float64_parameters_is_found_in_float64(x64):
    A = np.cov(rng.normal(size=(12, 40)))
    loss = lambda p: p["w"] @ A @ p["w"] / 2  # noqa: E731
    found = sharpness(loss, {"w": jnp.ones(12)})
    assert found.value.dtype == found.error.dtype == jnp.float64
    np.testing.assert_allclose(found.value, np.linalg.eigvalsh(A)[-1], rtol=1e-13)


def test_sharpness_of_half_precision_and_constant_parameters():
    params = {"w": jnp.ones(6, jnp.bfloat16), "step": jnp.array(2), "none": None}
    loss = lambda p: jnp.square(p["w"]).sum().astype(jnp.float32) * p["step"].astype("float32")  # noqa: E731
    found = sharpness(loss, params)
    assert found.value.dtype == jnp.float32
    np.testing.assert_allclose(found.value, 4, rtol=0.02)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.float32])
@pytest.mark.parametrize("n", [6, 60])
def test_the_error_covers_the_rounding_of_the_dtype_of_the_parameters(n, dtype):
    A = jnp.asarray(np.cov(np.random.default_rng(n).normal(size=(n, 2 * n))), dtype)
    found = sharpness(lambda p: (p @ (A @ p) / 2).astype(jnp.float32), jnp.ones(n, dtype))
    off = np.abs(np.linalg.eigvalsh(f64(A)) - f64(found.value)).min()
    assert off <= found.error < 8 * float(jnp.finfo(dtype).eps) * found.value


@pytest.mark.parametrize("scale", [1e-30, 1e-20, 1e-15, 1e15, 1e20, 1e30])
def test_the_error_tells_where_squares_leave_the_range(scale):
    curvature = scale * jnp.arange(1.0, 6)
    found = sharpness(lambda p: (curvature * p * p).sum() / 2, jnp.ones(5))
    assert abs(5 * scale - found.value) <= found.error
    assert 1e-15 <= scale <= 1e15 or found.error > 0.1 * found.value


def test_a_loss_over_many_batches_needs_the_memory_of_one():
    batches, params = normal(200, 50, 8), {"w": normal(8, 30)}

    def loss(params, batches):
        one = jax.checkpoint(lambda x: jnp.square(jnp.tanh(x @ params["w"])).mean())
        return jnp.mean(jax.lax.map(one, batches))

    def whole(params, batches):
        return jnp.square(jnp.tanh(batches @ params["w"])).mean()

    def compiled(loss):
        measure = lambda p, b: diagnostics.sharpness(lambda p: loss(p, b), p, key=jax.random.key(0))  # noqa: E731
        return jax.jit(measure).lower(params, batches).compile()

    by_batch, at_once = compiled(loss), compiled(whole)
    np.testing.assert_allclose(
        by_batch(params, batches).value, at_once(params, batches).value, rtol=1e-4
    )
    memory = [c.memory_analysis().temp_size_in_bytes for c in (by_batch, at_once)]
    assert memory[0] < 0.2 * memory[1]


def test_impossible_requests_are_refused(monkeypatch):
    loss, key = lambda p: jnp.square(p["w"]).sum(), jax.random.key(0)
    with pytest.raises(ValueError, match="hold 0 floating-point numbers"):
        diagnostics.sharpness(loss, {"w": jnp.ones(3, int)}, key=key)
    with pytest.raises(ValueError, match="num_matvecs is 0"):
        diagnostics.sharpness(loss, {"w": jnp.ones(3)}, key=key, num_matvecs=0)
    with pytest.raises(TypeError, match=r"\['w'\] are complex"):
        diagnostics.sharpness(loss, {"w": jnp.ones(3, "complex64")}, key=key)
    monkeypatch.setitem(sys.modules, "matfree", None)
    with pytest.raises(ImportError, match=r'pip install "optax-gc\[diagnostics\]"'):
        diagnostics.sharpness(loss, {"w": jnp.ones(3)}, key=key)
