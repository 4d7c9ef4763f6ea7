"""The algebra of P = I - e eᵀ, for generated gradients and under every variant of chex."""

import functools

import chex
import hypothesis
import hypothesis.extra.numpy
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl.testing import parameterized

from optax_gc import centralize

UNIT_ROUNDOFF = {
    "float32": 2.0**-24,
    "bfloat16": 2.0**-8,
    "float16": 2.0**-11,
    "complex64": 2.0**-24,
}

hypothesis.settings.register_profile("tests", deadline=None, derandomize=True, max_examples=40)
hypothesis.settings.load_profile("tests")


@functools.partial(jax.jit, static_argnums=1)
def project(g, axes):
    """P g."""
    return centralize({"w": axes}).update({"w": g}, optax.EmptyState())[0]["w"]


def exact(x):
    return np.asarray(x, np.complex128 if np.iscomplexobj(x) else np.float64)


def scale(*gradients):
    """What rounding errors are proportional to."""
    return max((float(np.max(np.abs(exact(g)))) for g in gradients), default=0.0)


@st.composite
def gradients(draw, number=1, dtypes=tuple(UNIT_ROUNDOFF)):
    """`number` gradients of one shape and dtype, and fan-in axes with more than one entry."""
    shape = draw(hypothesis.extra.numpy.array_shapes(min_dims=1, max_dims=4, max_side=6))
    axes = draw(st.sets(st.integers(0, len(shape) - 1), min_size=1))
    hypothesis.assume(np.prod([shape[axis] for axis in axes]) > 1)
    dtype = draw(st.sampled_from(dtypes))
    # Multiples of 1/8, so that no float16 is subnormal and rounding errors are relative.
    elements = st.integers(-8000, 8000).map(lambda i: i / 8)

    def draw_one():
        real = draw(hypothesis.extra.numpy.arrays(np.float32, shape, elements=elements))
        if dtype == "complex64":
            imaginary = draw(hypothesis.extra.numpy.arrays(np.float32, shape, elements=elements))
            return jnp.asarray(real + 1j * imaginary, dtype)
        return jnp.asarray(real, dtype)

    return tuple(sorted(axes)), *(draw_one() for _ in range(number))


@hypothesis.given(gradients())
def test_every_unit_has_zero_mean(case):
    axes, g = case
    u, updates = UNIT_ROUNDOFF[g.dtype.name], exact(project(g, axes))
    # Each entry is rounded once to the gradient's dtype; the mean itself is known to float32.
    bound = u * np.mean(np.abs(updates), axes) + 4 * 2.0**-24 * scale(g)
    assert np.all(np.abs(np.mean(updates, axes)) <= bound)


@hypothesis.given(gradients())
def test_projecting_twice_is_projecting_once(case):
    axes, g = case
    once = project(g, axes)
    tolerance = (2 * UNIT_ROUNDOFF[g.dtype.name] + 8 * 2.0**-24) * scale(g)
    np.testing.assert_allclose(exact(project(once, axes)), exact(once), rtol=0, atol=tolerance)


@hypothesis.given(gradients(number=2, dtypes=("float32", "complex64")), st.integers(-3, 3))
def test_projection_is_linear(case, factor):
    axes, g, h = case
    both = exact(project(g + factor * h, axes))
    apart = exact(project(g, axes)) + factor * exact(project(h, axes))
    tolerance = 40 * 2.0**-24 * scale(g, h)
    np.testing.assert_allclose(both, apart, rtol=0, atol=tolerance)


@hypothesis.given(gradients(number=2))
def test_projection_is_self_adjoint(case):
    axes, g, h = case
    left = np.vdot(exact(g), exact(project(h, axes)))
    right = np.vdot(exact(project(g, axes)), exact(h))
    u = UNIT_ROUNDOFF[g.dtype.name] + 4 * 2.0**-24
    np.testing.assert_allclose(left, right, rtol=0, atol=4 * u * g.size * scale(g) * scale(h))


@hypothesis.given(gradients())
def test_no_unit_gets_longer(case):
    axes, g = case
    before = np.linalg.norm(np.abs(exact(g)).ravel())
    after = np.linalg.norm(np.abs(exact(project(g, axes))).ravel())
    assert after <= before * (1 + UNIT_ROUNDOFF[g.dtype.name]) + 4 * 2.0**-24 * g.size * scale(g)


@hypothesis.given(gradients())
def test_the_removed_part_is_constant_along_the_fan_in(case):
    axes, g = case
    removed = exact(g) - exact(project(g, axes))
    tolerance = (2 * UNIT_ROUNDOFF[g.dtype.name] + 4 * 2.0**-24) * scale(g)
    assert np.all(np.ptp(removed.real, axes) <= 2 * tolerance)
    assert np.all(np.ptp(removed.imag, axes) <= 2 * tolerance)


@hypothesis.given(gradients(dtypes=("float32", "bfloat16")), st.randoms())
def test_permuting_the_fan_in_permutes_the_update(case, random):
    axes, g = case
    axis = axes[random.randrange(len(axes))]
    order = np.array(random.sample(range(g.shape[axis]), g.shape[axis]))
    tolerance = (2 * UNIT_ROUNDOFF[g.dtype.name] + 8 * 2.0**-24) * scale(g)
    np.testing.assert_allclose(
        exact(project(jnp.take(g, order, axis), axes)),
        np.take(exact(project(g, axes)), order, axis),
        rtol=0,
        atol=tolerance,
    )


@hypothesis.given(gradients(dtypes=("float32", "bfloat16")), st.randoms())
def test_transposing_the_layout_transposes_the_update(case, random):
    axes, g = case
    order = random.sample(range(g.ndim), g.ndim)
    moved = tuple(order.index(axis) for axis in axes)
    tolerance = (2 * UNIT_ROUNDOFF[g.dtype.name] + 8 * 2.0**-24) * scale(g)
    np.testing.assert_allclose(
        exact(project(jnp.transpose(g, order), moved)),
        np.transpose(exact(project(g, axes)), order),
        rtol=0,
        atol=tolerance,
    )


GRADIENTS = {
    "dense": {"kernel": np.random.default_rng(0).normal(2, 1, (8, 5)).astype(np.float32)},
    "conv": {"kernel": np.random.default_rng(1).normal(2, 1, (3, 3, 2, 6)).astype(np.float32)},
    "attention": {
        "query": {"kernel": np.random.default_rng(2).normal(2, 1, (8, 2, 4)).astype(np.float32)}
    },
    "bias": np.random.default_rng(3).normal(2, 1, 5).astype(np.float32),
}
MEANS = {
    "dense": {"kernel": (0,)},
    "conv": {"kernel": (0, 1, 2)},
    "attention": {"query": {"kernel": (0,)}},
}


class VariantsTest(chex.TestCase):
    """The same update with and without jit, on and off the device, and under pmap."""

    @chex.all_variants
    @parameterized.named_parameters(  # by name, since workers must agree on what tests there are
        ("alone", optax.identity),
        ("before_sgd", lambda: optax.sgd(0.1)),
        ("before_adam", lambda: optax.adam(0.1)),
    )
    def test_every_variant_makes_the_update_of_the_definition(self, make):
        tx = optax.chain(centralize(), make())
        reference = make()
        expected = jax.tree.map(
            lambda g, axes: g - g.mean(axes, keepdims=True),
            {name: GRADIENTS[name] for name in MEANS},
            MEANS,
        )
        expected["bias"] = GRADIENTS["bias"]

        def first_update(transformation, grads):
            with jax.numpy_dtype_promotion("standard"):
                return transformation.update(grads, transformation.init(grads), grads)[0]

        updates = self.variant(lambda grads: first_update(tx, grads))(GRADIENTS)
        chex.assert_trees_all_equal_structs(updates, GRADIENTS)
        chex.assert_trees_all_equal_shapes_and_dtypes(updates, GRADIENTS)
        chex.assert_trees_all_close(
            updates, first_update(reference, expected), rtol=1e-4, atol=1e-5
        )

    @chex.all_variants
    def test_every_variant_leaves_zero_mean_per_unit(self):
        tx = centralize()
        updates = self.variant(lambda grads: tx.update(grads, tx.init(grads))[0])(GRADIENTS)
        means = jax.tree.map(
            lambda u, axes: np.mean(u, axes), {name: updates[name] for name in MEANS}, MEANS
        )
        chex.assert_trees_all_close(means, jax.tree.map(np.zeros_like, means), atol=1e-6)
