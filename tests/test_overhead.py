"""What centralize costs, read from compiled programs: no clock is involved.

A step is what a training loop runs after the backward pass: update, then apply, with parameters and
optimizer state donated and the gradients kept, as gradients of one microbatch are while they are
accumulated or logged. A buffer of the gradients' size can therefore not hide in a donated one.
"""

import functools

import jax
import optax
import pytest

from benchmarks import trees
from optax_gc import centralize


def step_of(tx):
    def step(params, state, grads):
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    return step


@functools.cache
def costs(name, dtype, centralized):
    tree = trees.TREES[name]()
    params = trees.structs(tree, dtype)
    adam = optax.adam(1e-3)
    tx = optax.chain(centralize(trees.axes(tree)), adam) if centralized else adam
    state = jax.eval_shape(tx.init, params)
    step = jax.jit(step_of(tx), donate_argnums=(0, 1))
    with jax.numpy_dtype_promotion("standard"):  # Optax's Adam counts steps in int32
        lowered = step.lower(params, state, params)
    compiled = lowered.compile()
    return (
        compiled.memory_analysis().temp_size_in_bytes,
        compiled.cost_analysis()["bytes accessed"],
        trees.nbytes(params),
    )


CASES = [(name, "float32") for name in trees.TREES]
CASES += [(name, "bfloat16") for name in list(trees.TREES)[-2:]]


@pytest.mark.parametrize("name, dtype", CASES)
def test_centralize_before_adam_needs_no_temporaries(name, dtype):
    with_gc, _, gradients = costs(name, dtype, True)
    without, _, _ = costs(name, dtype, False)
    assert with_gc - without <= 0.01 * gradients


@pytest.mark.parametrize("name, dtype", CASES)
def test_centralize_before_adam_reads_each_gradient_once_more(name, dtype):
    _, with_gc, gradients = costs(name, dtype, True)
    _, without, _ = costs(name, dtype, False)
    assert with_gc - without <= 1.02 * gradients
