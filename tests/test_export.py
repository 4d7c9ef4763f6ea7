"""Programs for TPU, CUDA and ROCm, exported from a CPU and read: what they hold, and what not."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import export

from optax_gc import centralize, rescale_weights

try:
    from jax import enable_x64
except ImportError:  # jax 0.6.0
    from jax.experimental import enable_x64

SHAPES = {
    "conv": {"kernel": (3, 3, 8, 16), "bias": (16,)},
    "query": {"kernel": (24, 2, 5), "bias": (2, 5)},
    "stacked": {"kernel": (4, 24, 10)},
    "probe": {"kernel": (1, 32)},
}
# The stacked kernel is on one sphere here, as some may want it.
pytestmark = pytest.mark.filterwarnings("ignore:.*stacks of layers")
AXES = {
    "conv": {"kernel": (0, 1, 2), "bias": ()},
    "query": {"kernel": (0,), "bias": ()},
    "stacked": {"kernel": (1,)},
    "probe": {"kernel": (0,)},
}
CHAINS = {
    "centralize": centralize(AXES),
    "sgd": optax.chain(centralize(AXES), optax.sgd(0.1, momentum=0.9)),
    "adam": optax.chain(centralize(AXES), optax.adam(1e-3)),
    "adam, then centralize": optax.chain(
        optax.scale_by_adam(), centralize(AXES), optax.scale_by_learning_rate(1e-3)
    ),
    "sgd, rescaled": optax.chain(centralize(AXES), optax.sgd(0.1), rescale_weights(AXES)),
    "adam, rescaled by layer": optax.chain(
        centralize(AXES), optax.adam(1e-3), rescale_weights(AXES, per="layer")
    ),
}
OUTSIDE = {"custom_call", "infeed", "outfeed", "send", "recv"}
REDUCTION = re.compile(r"stablehlo\.reduce\(.*?\) (?:applies .*?)?: \(tensor<([^>]*)>")


@pytest.fixture(autouse=True)
def promotion_as_users_have_it():
    """Optax's Adam does not run under the strict one."""
    with jax.numpy_dtype_promotion("standard"):
        yield


def structs(dtype):
    return jax.tree.map(
        lambda shape: jax.ShapeDtypeStruct(shape, dtype), SHAPES, is_leaf=lambda x: type(x) is tuple
    )


@functools.cache
def exported(chain, platforms, dtype):
    tx, params = CHAINS[chain], structs(dtype)
    step = export.export(jax.jit(tx.update), platforms=platforms)
    return step(params, jax.eval_shape(tx.init, params), params)


# What XLA for CPU needs and others do not: barriers, roundings, integers.
FOR_CPU = {"optimization_barrier", "reduce_precision", "bitcast_convert"}

EVERY_CHAIN = pytest.mark.parametrize("chain", CHAINS)
EVERY_PLATFORM = pytest.mark.parametrize("platform", ["tpu", "cuda", "rocm"])
EVERY_DTYPE = pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])


@EVERY_CHAIN
@EVERY_PLATFORM
@EVERY_DTYPE
def test_programs_for_accelerators_call_nothing_outside(chain, platform, dtype):
    program = exported(chain, (platform,), dtype)
    assert program.platforms == (platform,)
    operations = set(re.findall(r"stablehlo\.(\w+)", program.mlir_module()))
    assert "reduce" in operations
    assert not operations & OUTSIDE
    assert not program.ordered_effects and not program.unordered_effects


@EVERY_CHAIN
@EVERY_PLATFORM
@EVERY_DTYPE
def test_programs_for_accelerators_reduce_in_float32(chain, platform, dtype):
    module = exported(chain, (platform,), dtype).mlir_module()
    reduced = REDUCTION.findall(module)
    assert len(reduced) == module.count("stablehlo.reduce(")
    assert len(reduced) >= 3
    assert all(tensor.endswith("xf32") for tensor in reduced), reduced


def operations_of(program):
    return set(re.findall(r"stablehlo\.(\w+)", program.mlir_module()))


@EVERY_CHAIN
@EVERY_PLATFORM
@EVERY_DTYPE
def test_programs_for_accelerators_hold_nothing_that_is_for_the_cpu(chain, platform, dtype):
    assert not operations_of(exported(chain, (platform,), dtype)) & FOR_CPU


@pytest.mark.parametrize(
    ("dtype", "found"),
    [
        (jnp.float32, {"optimization_barrier", "reduce_precision"}),  # the barrier for (3, 3, 8)
        (jnp.bfloat16, FOR_CPU),
        (jnp.float16, {"optimization_barrier", "reduce_precision"}),
    ],
)
def test_programs_for_the_cpu_hold_what_it_needs(dtype, found):
    assert operations_of(exported("centralize", ("cpu",), dtype)) & FOR_CPU == found


def test_one_program_for_two_platforms_chooses_where_it_runs():
    program = exported("centralize", ("cpu", "tpu"), jnp.float32)
    assert operations_of(program) >= {"case", "reduce_precision"}


@EVERY_PLATFORM
@EVERY_DTYPE
@pytest.mark.parametrize("chain", ["centralize", "sgd"])
def test_float64_being_enabled_brings_none_into_the_program(chain, platform, dtype):
    with enable_x64(True):
        program = export.export(jax.jit(CHAINS[chain].update), platforms=(platform,))
        params = structs(dtype)
        module = program(params, jax.eval_shape(CHAINS[chain].init, params)).mlir_module()
    assert not re.search(r"\bf64>|xf64\b", module)


@EVERY_CHAIN
def test_one_program_for_all_platforms_computes_on_this_one_what_is_run_here(chain):
    tx, rng = CHAINS[chain], np.random.default_rng(0)
    params, grads = (
        jax.tree.map(lambda x: jnp.asarray(rng.normal(0.5, 1, x.shape), x.dtype), structs("f4"))
        for _ in range(2)
    )
    state = tx.init(params)
    portable = exported(chain, ("cpu", "tpu", "cuda", "rocm"), jnp.float32)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7),
        portable.call(grads, state, params),
        jax.jit(tx.update)(grads, state, params),
    )
