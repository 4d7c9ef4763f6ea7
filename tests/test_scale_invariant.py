"""Which weights are scale-invariant in real Flax networks, and what that means for training."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from optax_gc._axes import resolve
from optax_gc._scale_invariant import scale_invariant
from optax_gc._weights import rescale_weights

BODY, NOTHING = {"conv": (0, 1, 2), "dense": (0,)}, {"conv": (), "dense": ()}


class Net(nn.Module):
    norm: str
    dtype: type = jnp.float32
    epsilon: float = 1e-5

    @nn.compact
    def __call__(self, x):
        def norm(x, name):
            options = {"dtype": self.dtype, "epsilon": self.epsilon, "name": name}
            if self.norm == "batch":
                return nn.BatchNorm(use_running_average=False, **options)(x)
            if self.norm == "group":
                return nn.GroupNorm(num_groups=4, **options)(x)
            return nn.LayerNorm(**options)(x) if self.norm == "layer" else x

        x = nn.Conv(8, (3, 2), use_bias=False, dtype=self.dtype, name="conv")(x)
        # Times 8, for a variance well above ε. Not .max(): jax 0.6.0 on CPU compiles its gradient
        # together with group norm's to other values than it computes uncompiled.
        x = 8 * nn.relu(norm(x, "norm0")).mean((1, 2))
        x = nn.Dense(12, use_bias=False, dtype=self.dtype, name="dense")(x)
        return nn.Dense(5, dtype=self.dtype, name="head")(nn.relu(norm(x, "norm1")))


class WithBias(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.LayerNorm(name="norm")(nn.Dense(6, name="body")(x)))
        return nn.Dense(4, name="head")(x)


def random_batches(seed=1):
    rng = np.random.default_rng(seed)
    return normal(rng, 4, 8, 6, 5, 3), jnp.asarray(rng.integers(0, 5, (4, 8)))


def normal(rng, *shape):
    return jnp.asarray(rng.normal(size=shape).astype("float32"))


@functools.cache
def network(norm, dtype=jnp.float32, epsilon=1e-5):
    """Outputs in training mode, the gradient, and params with the gradients of four batches."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        model, (x, y) = Net(norm, dtype, epsilon), random_batches()
        params = jax.jit(model.init)(jax.random.key(0), x[0])["params"]

        def outputs(params, x):
            logits = model.apply({"params": params}, x, mutable="batch_stats")[0]
            return logits.astype(jnp.float32) if dtype == jnp.bfloat16 else logits

        def loss(params, x, y):
            logits = outputs(params, x)
            return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()

        gradient = jax.jit(jax.grad(loss))
        grads = [gradient(params, *batch) for batch in zip(x, y, strict=True)]
        return outputs, gradient, params, jax.tree.map(lambda *g: np.stack(g), *grads)


def kernels(axes):
    return {name: layer["kernel"] for name, layer in axes.items() if "kernel" in layer}


@pytest.mark.parametrize(
    ("norm", "dtype", "by_unit", "by_layer"),
    [
        ("batch", jnp.float32, BODY, BODY),
        ("batch", jnp.bfloat16, BODY, BODY),
        ("group", jnp.float32, NOTHING, BODY),
        ("layer", jnp.float32, NOTHING, BODY),
        ("none", jnp.float32, NOTHING, NOTHING),
    ],
)
def test_kernels_before_a_norm_are_kept_and_the_head_never(norm, dtype, by_unit, by_layer):
    _, _, params, grads = network(norm, dtype)
    tolerance = 0.01 if dtype == jnp.float32 else 0.2
    for per, body in {"unit": by_unit, "layer": by_layer}.items():
        axes = scale_invariant(params, grads, per=per, tolerance=tolerance)
        assert kernels(axes) == {**body, "head": ()}
        assert jax.tree.structure(axes, is_leaf=lambda x: type(x) is tuple) == jax.tree.structure(
            params
        )


@pytest.mark.parametrize(("norm", "per"), [("batch", "unit"), ("group", "layer")])
def test_scaling_what_is_kept_changes_no_output(norm, per, standard_promotion):
    outputs, _, params, grads = network(norm)
    axes = scale_invariant(params, grads, per=per)

    def scaled(path, w):
        layer, leaf = (entry.key for entry in path)
        if not axes[layer][leaf]:
            return w
        factors = jnp.linspace(0.5, 2, w.shape[-1])
        return w * (factors if per == "unit" else factors[0])

    x = random_batches(seed=2)[0][0]
    before = jax.jit(outputs)(params, x)
    after = jax.jit(outputs)(jax.tree_util.tree_map_with_path(scaled, params), x)
    np.testing.assert_allclose(after, before, atol=2e-4)
    assert np.abs(before).max() > 0.1


@pytest.mark.parametrize(
    ("dtype", "accuracy"), [(jnp.float32, 64 * 2.0**-23), (jnp.float64, 1e-11)]
)
def test_the_norms_of_scale_invariant_weights_grow_by_those_of_their_updates(
    dtype, accuracy, x64, standard_promotion
):
    """Pythagoras: ‖w_{t+1}‖² = ‖w_t‖² + η²‖g_t‖² under SGD, unit by unit, and not for the head.

    Up to the rounding of g, and to the ε that batch norm adds to a variance: with Flax's 1e-5
    instead of 1e-12, the error here is 5e-5.
    """
    _, gradient, params, _ = network("batch", dtype, 1e-12)
    params = jax.tree.map(lambda w: w.astype(dtype), params)
    (x, y), eta = random_batches(), 1.0
    furthest = dict.fromkeys(("conv", "dense", "head"), 0.0)
    for t in range(12):
        grads = gradient(params, x[t % 4].astype(dtype), y[t % 4])
        after = jax.tree.map(lambda w, g: w - eta * g, params, grads)
        for name in furthest:
            then, now, g = (squares(tree[name]["kernel"]) for tree in (params, after, grads))
            error = np.abs(now - then - eta**2 * g) / then
            furthest[name] = max(furthest[name], error.max())
        params = after
    assert furthest["conv"] < accuracy
    assert furthest["dense"] < accuracy
    assert furthest["head"] > 0.02


def gradients(model, params, x):
    """Of four batches, for a loss without any symmetry."""
    loss = lambda params, x: jnp.square(model.apply({"params": params}, x) - 1).mean()  # noqa: E731
    return jax.jit(jax.vmap(jax.grad(loss), (None, 0)))(params, x)


def test_a_bias_before_layer_norm_ends_scale_invariance_once_it_is_not_zero(standard_promotion):
    x = normal(np.random.default_rng(0), 4, 8, 7)
    params = jax.jit(WithBias().init)(jax.random.key(1), x[0])["params"]
    at_start = scale_invariant(params, gradients(WithBias(), params, x), per="layer")
    assert at_start["body"]["kernel"] == (0,)
    params["body"]["bias"] = 0.3 * jnp.arange(6.0)
    later = scale_invariant(params, gradients(WithBias(), params, x), per="layer")
    assert later["body"]["kernel"] == later["head"]["kernel"] == ()


def test_batch_norm_takes_nnx_state_and_answers_axes_that_fit_it(standard_promotion):
    class Model(nnx.Module):
        def __init__(self, rngs):
            self.body = nnx.Linear(7, 6, rngs=rngs)
            self.norm = nnx.BatchNorm(6, rngs=rngs)
            self.head = nnx.Linear(6, 4, rngs=rngs)

        def __call__(self, x):
            return self.head(nnx.relu(self.norm(self.body(x))))

    graphdef, params, rest = nnx.split(Model(nnx.Rngs(0)), nnx.Param, ...)
    x = normal(np.random.default_rng(0), 4, 9, 7)

    def loss(params, x):
        fresh = jax.tree.map(lambda statistic: statistic, rest)
        return jnp.square(nnx.merge(graphdef, params, fresh)(x) - 1).mean()

    grads = jax.jit(jax.vmap(jax.grad(loss), (None, 0)))(params, x)
    axes = scale_invariant(params, grads)
    kept = [leaf.path for leaf in resolve(axes, params) if leaf.axes]
    assert kept == ["body/kernel"]
    rescale_weights(axes).init(params)


def weights_and_orthogonal_gradients():
    rng = np.random.default_rng(0)
    w, g = rng.normal(size=(50, 3)), rng.normal(size=(4, 50, 3))
    g = g - (g * w).sum(1, keepdims=True) / (w**2).sum(0) * w
    return w.astype("float32"), g.astype("float32")


def test_orthogonality_in_one_batch_of_several_is_not_enough():
    w, g = weights_and_orthogonal_gradients()
    assert scale_invariant({"w": w}, {"w": g}) == {"w": (0,)}
    assert scale_invariant({"w": w}, {"w": g[0]}) == {"w": (0,)}
    g[2] = np.random.default_rng(1).normal(size=(50, 3))
    assert scale_invariant({"w": w}, {"w": g}) == {"w": ()}


def test_one_unit_that_is_not_orthogonal_refuses_its_parameter():
    w, g = weights_and_orthogonal_gradients()
    g[:, :, 1] += w[:, 1]
    assert scale_invariant({"w": w}, {"w": g}) == {"w": ()}


def test_zero_weights_or_gradients_are_no_evidence():
    w, g = weights_and_orthogonal_gradients()
    assert scale_invariant({"w": w}, {"w": 0 * g}) == {"w": ()}
    assert scale_invariant({"w": 0 * w}, {"w": g}) == {"w": ()}
    assert scale_invariant({"w": w}, {"w": g * [0, 1, 1]}) == {"w": (0,)}


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_no_evidence(bad):
    w, g = weights_and_orthogonal_gradients()
    bad_w, bad_g = w.copy(), g.copy()
    bad_w[0, 0] = bad_g[1, 0, 0] = bad
    assert scale_invariant({"w": w}, {"w": bad_g}) == {"w": ()}
    assert scale_invariant({"w": bad_w}, {"w": g}) == {"w": ()}
    assert scale_invariant({"w": bad_w}, {"w": 0 * g}) == {"w": ()}


@pytest.mark.parametrize("n", [60, 6000, 600_000])
def test_random_gradients_of_any_size_are_no_accident(n):
    """A fixed bound on the cosine, 0.01 say, would take random large layers for invariant ones."""
    for seed in range(5):
        rng = np.random.default_rng(seed)
        params = {"w": rng.normal(size=(n // 6, 6))}
        grads = {"w": rng.normal(size=(4, n // 6, 6))}
        for per in ("unit", "layer"):
            assert scale_invariant(params, grads, per=per) == {"w": ()}


def test_only_candidates_are_kept_with_the_axes_they_were_given():
    w, g = weights_and_orthogonal_gradients()
    w, g = {"a": w, "b": w.T}, {"a": g, "b": g.swapaxes(1, 2)}
    assert scale_invariant(w, g, {"a": (0,), "b": (-1,)}) == {"a": (0,), "b": (1,)}
    assert scale_invariant(w, g, {"a": (), "b": (0,)}) == {"a": (), "b": ()}


@pytest.mark.parametrize("shape", [(0, 7, 5), (5, 7), (2, 3, 7, 5)])
def test_gradients_of_other_shapes_are_refused(shape):
    with pytest.raises(
        ValueError, match=r"'w' of shape \(7, 5\) have the shape .* \('batches', 7, 5"
    ):
        scale_invariant({"w": jnp.ones((7, 5))}, {"w": jnp.ones(shape)})


def test_a_list_of_gradient_trees_is_told_to_be_stacked():
    params = {"w": jnp.ones((7, 5))}
    with pytest.raises(ValueError, match="stacked along a leading axis"):
        scale_invariant(params, [params, params])


def test_gradients_of_equal_shapes_and_other_names_are_refused():
    w, g = weights_and_orthogonal_gradients()
    with pytest.raises(ValueError, match=r"grads have 'c' where params have 'b'.*same structure"):
        scale_invariant({"a": w, "b": w}, {"a": g, "c": g})


def test_under_jit_there_is_nothing_to_decide_on():
    def step(params):
        scale_invariant(params, params)

    with pytest.raises(ValueError, match=r"under jax\.jit there are none"):
        jax.jit(step)({"w": jnp.ones((7, 5))})


def test_impossible_options_are_refused():
    params = {"w": jnp.ones((7, 5))}
    with pytest.raises(ValueError, match=r"per is 'output'\. Use 'unit' or 'layer'"):
        scale_invariant(params, params, per="output")
    with pytest.raises(ValueError, match=r"tolerance is -1\."):
        scale_invariant(params, params, tolerance=-1.0)


def squares(w):
    """‖w‖² of each unit, in float64."""
    return (np.asarray(w, np.float64) ** 2).reshape(-1, w.shape[-1]).sum(0)
