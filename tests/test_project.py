"""P as a linear map: its transpose, its derivatives, and its rounding on the CPU."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import PartitionSpec as P

from optax_gc import _project, centralize
from optax_gc._project import _cast_on_cpu, subtract_mean

DTYPES = ["float32", "bfloat16", "float16", "complex64"]
# A kernel summed at once, one summed over its short axes in turn, and one in blocks.
CASES = [((40, 7), (0,)), ((3, 5, 8, 6), (0, 1, 2)), ((4096, 1100), (0,))]
every_dtype = pytest.mark.parametrize("dtype", DTYPES)
every_case = pytest.mark.parametrize(("shape", "axes"), CASES)


def array(shape, dtype="float32", seed=0):
    rng = np.random.default_rng(seed)
    x = rng.normal(0.5, 1, shape) + (1j * rng.normal(size=shape) if dtype == "complex64" else 0)
    return jnp.asarray(x, dtype)


@every_dtype
@every_case
def test_the_projection_is_its_own_transpose(shape, axes, dtype):
    g = array(shape, dtype)
    (transposed,) = jax.linear_transpose(lambda g: subtract_mean(g, axes), g)(g)
    np.testing.assert_array_equal(transposed, subtract_mean(g, axes))


def test_centralize_is_transposed_as_a_whole():
    grads = {"kernel": array((6, 5)), "bias": array((5,), seed=1)}
    tx = centralize()
    update = lambda g: tx.update(g, tx.init(g))[0]  # noqa: E731
    (transposed,) = jax.linear_transpose(update, grads)(grads)
    jax.tree.map(np.testing.assert_array_equal, transposed, update(grads))


@every_dtype
@every_case
def test_the_derivative_of_the_projection_is_the_projection(shape, axes, dtype):
    g, v = array(shape, dtype), array(shape, dtype, seed=1)
    value, tangent = jax.jvp(lambda g: subtract_mean(g, axes), (g,), (v,))
    np.testing.assert_array_equal(value, subtract_mean(g, axes))
    np.testing.assert_array_equal(tangent, subtract_mean(v, axes))


@every_dtype
def test_mapped_kernels_are_projected_each_by_itself(dtype):
    stack = array((3, 40, 7), dtype)
    mapped = jax.vmap(lambda g: subtract_mean(g, (0,)))(stack)
    for one, g in zip(mapped, stack, strict=True):
        exact = np.asarray(g).astype("complex128" if dtype == "complex64" else "float64")
        exact = exact - exact.mean(0)
        u = float(jnp.finfo(dtype).eps) / 2
        np.testing.assert_allclose(np.asarray(one).astype(exact.dtype), exact, rtol=u, atol=2e-6)


def test_shards_of_a_fan_in_are_transposed_over_the_whole_of_it():
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    mapped = jax.shard_map(
        lambda g: subtract_mean(g, (0,), ("data",)),
        mesh=mesh,
        in_specs=P("data"),
        out_specs=P("data"),
    )
    g, c = array((24, 5)), array((24, 5), seed=1)
    (transposed,) = jax.linear_transpose(jax.jit(mapped), g)(c)
    np.testing.assert_allclose(
        transposed, c - np.asarray(c).mean(0, keepdims=True), rtol=0, atol=1e-6
    )


def test_rounding_in_integers_is_the_conversion_to_the_last_bit_and_sign():
    bits = np.random.default_rng(0).integers(0, 2**32, 200_000, dtype=np.uint32)
    x = np.concatenate([bits.view(np.float32), np.float32([np.inf, -0.0, 3.4e38, 1e-40, np.nan])])
    x = np.concatenate([x, -x])
    ours, conversion = (
        np.asarray(cast(jnp.asarray(x), jnp.bfloat16)).view(np.uint16)
        for cast in (_cast_on_cpu, lax.convert_element_type)
    )
    np.testing.assert_array_equal(ours, conversion)


def test_not_a_number_keeps_its_sign_in_bfloat16():
    g = jnp.asarray([[-np.nan], [1.0]], jnp.bfloat16)
    assert np.signbit(g)[0, 0]
    assert np.signbit(subtract_mean(g, (0,)))[0, 0]


def test_kernels_of_one_shape_are_traced_once(monkeypatch):
    """A model has many kernels of few shapes."""
    traces, total = [], _project._total
    monkeypatch.setattr(_project, "_total", lambda g, axes: traces.append(g) or total(g, axes))
    tx = centralize((0,))

    def traces_of(count, shape):
        del traces[:]
        grads = {f"layer{i}": jax.ShapeDtypeStruct(shape, jnp.float32) for i in range(count)}
        jax.eval_shape(lambda g: tx.update(g, tx.init(g))[0], grads)
        return len(traces)

    assert traces_of(20, (13, 11)) == traces_of(1, (11, 13)) > 0
