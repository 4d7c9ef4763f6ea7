"""Chains of centralize against the paper's algorithms, written out in NumPy float64.

The reference has a network and a backward pass of its own, so that nothing is shared with the
chains but the initial weights and the data.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from optax_gc import axes_from_rank, centralize

STEPS = 50
LR, WD, MOMENTUM, B1, B2, EPS = 0.05, 0.01, 0.9, 0.9, 0.999, 1e-8

RANDOM = np.random.default_rng(0)
X = RANDOM.uniform(0, 1, (16, 7))
Y = RANDOM.normal(size=(16, 2))
INITIAL = {
    "kernel1": RANDOM.normal(size=(7, 5)) / 2,
    "bias1": RANDOM.normal(size=5) / 2,
    "kernel2": RANDOM.normal(size=(5, 2)) / 2,
}


def loss(p):
    hidden = jnp.tanh(X @ p["kernel1"] + p["bias1"][None])
    return jnp.mean((hidden @ p["kernel2"] - Y) ** 2)


def numpy_gradient(p):
    hidden = np.tanh(X @ p["kernel1"] + p["bias1"])
    d_out = 2 * (hidden @ p["kernel2"] - Y) / Y.size
    d_hidden = d_out @ p["kernel2"].T * (1 - hidden**2)
    return {"kernel1": X.T @ d_hidden, "bias1": d_hidden.sum(0), "kernel2": hidden.T @ d_out}


def gc(g):
    """Φ_GC of the paper: each column less its mean."""
    return g - g.mean(0, keepdims=True) if g.ndim == 2 else g


def run_numpy(make_rule):
    """50 steps, with a rule of its own state for each parameter: (w, g, t) to the new w."""
    p = {name: w.copy() for name, w in INITIAL.items()}
    rules = {name: (make_rule if callable(make_rule) else make_rule[name])() for name in p}
    for t in range(1, STEPS + 1):
        g = numpy_gradient(p)
        p = {name: rules[name](p[name], g[name], t) for name in p}
    return p


def run_optax(tx):
    p = jax.tree.map(jnp.asarray, INITIAL)

    def step(carry, _):
        p, state = carry
        updates, state = tx.update(jax.grad(loss)(p), state, p)
        return (optax.apply_updates(p, updates), state), None

    (p, _), _ = jax.lax.scan(step, (p, tx.init(p)), length=STEPS)
    return p


def adam_direction():
    """Adam's m̂ / (√v̂ + ε)."""
    m = v = 0.0

    def direction(g, t):
        nonlocal m, v
        m, v = B1 * m + (1 - B1) * g, B2 * v + (1 - B2) * g**2
        return m / (1 - B1**t) / (np.sqrt(v / (1 - B2**t)) + EPS)

    return direction


def radam_direction():
    """RAdam (Liu et al., arXiv 1908.03265, algorithm 2): unrectified until ρ_t reaches 5."""
    m = v = 0.0

    def direction(g, t):
        nonlocal m, v
        m, v = B1 * m + (1 - B1) * g, B2 * v + (1 - B2) * g**2
        limit = 2 / (1 - B2) - 1
        rho = limit - 2 * t * B2**t / (1 - B2**t)
        if rho < 5:
            return m / (1 - B1**t)
        r = np.sqrt((rho - 4) * (rho - 2) * limit / ((limit - 4) * (limit - 2) * rho))
        return r * m / (1 - B1**t) / (np.sqrt(v / (1 - B2**t)) + EPS)

    return direction


def momentum_sum():
    m = 0.0

    def accumulate(g):
        nonlocal m
        m = MOMENTUM * m + g
        return m

    return accumulate


def paper_sgdm():
    """Algorithm 1: m = β m + (1 - β) Φ_GC(g); w = w - α m."""
    m = 0.0

    def rule(w, g, t):
        nonlocal m
        m = MOMENTUM * m + (1 - MOMENTUM) * gc(g)
        return w - LR * m

    return rule


def paper_adam():
    """Algorithm 2: Adam on Φ_GC(g)."""
    direction = adam_direction()
    return lambda w, g, t: w - LR * direction(gc(g), t)


def sgd_gc():
    accumulate = momentum_sum()
    return lambda w, g, t: w - LR * accumulate(gc(g + WD * w))


def sgdw_gc():
    accumulate = momentum_sum()
    return lambda w, g, t: w - LR * (accumulate(gc(g)) + WD * w)


def adam_gc():
    direction = adam_direction()
    return lambda w, g, t: w - LR * direction(gc(g + WD * w), t)


def adam_gc2():
    direction = adam_direction()
    return lambda w, g, t: w - LR * gc(direction(g + WD * w, t))


def adam_without_gc():
    direction = adam_direction()
    return lambda w, g, t: w - LR * direction(g + WD * w, t)


def radam_gc2():
    direction = radam_direction()
    return lambda w, g, t: w - LR * gc(direction(g, t) + WD * w)


def adamw_gc():
    direction = adam_direction()
    return lambda w, g, t: w - LR * (direction(gc(g), t) + WD * w)


def adamw_gc2():
    direction = adam_direction()
    return lambda w, g, t: w - LR * gc(direction(g, t) + WD * w)


def adagrad_gc():
    """Optax's Adagrad: accumulator from 0.1, epsilon under the root."""
    total = 0.1

    def rule(w, g, t):
        nonlocal total
        g = gc(g + WD * w)
        total = total + g**2
        return w - LR * g / np.sqrt(total + 1e-7)

    return rule


def ranger():
    """RAdam's chain in lookahead (Zhang et al., arXiv 1907.08610): every 6 steps half way."""
    fast_rule, slow = radam_gc2(), None

    def rule(w, g, t):
        nonlocal slow
        slow = w if slow is None else slow
        fast = fast_rule(w, g, t)
        if t % 6 == 0:
            slow = fast = slow + 0.5 * (fast - slow)
        return fast

    return rule


C = centralize()
D = optax.add_decayed_weights(WD)
L = optax.scale_by_learning_rate(LR)


def adam():
    return optax.scale_by_adam(B1, B2, EPS)


def radam():
    return optax.scale_by_radam(B1, B2, EPS)


# name: (chain, rule, whether the chain keeps the sum of each unit's weights)
OPTIMIZERS = {
    "algorithm 1": (
        optax.chain(C, optax.ema(MOMENTUM, debias=False), L),
        paper_sgdm,
        True,
    ),
    "algorithm 2": (optax.chain(C, optax.adam(LR, B1, B2, EPS)), paper_adam, False),
    "SGD_GC": (optax.chain(D, C, optax.sgd(LR, MOMENTUM)), sgd_gc, True),
    "SGDW_GC": (optax.chain(C, optax.trace(MOMENTUM), D, L), sgdw_gc, False),
    "Adam_GC": (optax.chain(D, C, optax.adam(LR, B1, B2, EPS)), adam_gc, False),
    "Adam_GC2": (optax.chain(D, adam(), C, L), adam_gc2, True),
    "RAdam": (optax.chain(radam(), D, C, L), radam_gc2, True),
    "AdamW_GC": (optax.chain(C, optax.adamw(LR, B1, B2, EPS, weight_decay=WD)), adamw_gc, False),
    "AdamW_GC2": (optax.chain(adam(), D, C, L), adamw_gc2, True),
    "Adagrad_GC": (optax.chain(D, C, optax.adagrad(LR)), adagrad_gc, False),
}
NAMED = pytest.mark.parametrize("name", OPTIMIZERS)


@NAMED
def test_fifty_steps_agree_with_the_algorithm_in_numpy(name, x64, standard_promotion):
    chain, rule, _ = OPTIMIZERS[name]
    ours, reference = run_optax(chain), run_numpy(rule)
    for parameter, w in reference.items():
        assert np.max(np.abs(w - INITIAL[parameter])) > 1e-3
        np.testing.assert_allclose(ours[parameter], w, rtol=0, atol=1e-12)


@NAMED
def test_the_sum_of_each_units_weights_is_kept_by_the_chains_that_say_so(
    name, x64, standard_promotion
):
    chain, _, keeps = OPTIMIZERS[name]
    sums = np.sum(np.asarray(run_optax(chain)["kernel1"]), 0)
    drift = np.max(np.abs(sums - INITIAL["kernel1"].sum(0)))
    assert drift < 1e-13 if keeps else drift > 1e-4


def test_conv_only_classes_centralize_convolutions_alone(x64, standard_promotion):
    conv_only = centralize(lambda params: axes_from_rank(params, conv_only=True))
    tx = optax.chain(D, adam(), conv_only, L)
    # A 7 × 1 convolution over one channel, at one position, is the dense layer that it was.
    p = jax.tree.map(jnp.asarray, {**INITIAL, "kernel1": INITIAL["kernel1"].reshape(7, 1, 1, 5)})
    state = tx.init(p)
    for _ in range(STEPS):
        grads = jax.grad(lambda p: loss({**p, "kernel1": p["kernel1"].reshape(7, 5)}))(p)
        updates, state = tx.update(grads, state, p)
        p = optax.apply_updates(p, updates)
    reference = run_numpy(
        {"kernel1": adam_gc2, "kernel2": adam_without_gc, "bias1": adam_without_gc}
    )
    for parameter, w in reference.items():
        np.testing.assert_allclose(p[parameter].reshape(w.shape), w, rtol=0, atol=1e-12)


def test_ranger_is_the_chain_of_radam_inside_lookahead(x64, standard_promotion):
    chain, _, _ = OPTIMIZERS["RAdam"]
    tx = optax.lookahead(chain, sync_period=6, slow_step_size=0.5)
    params = optax.LookaheadParams.init_synced(jax.tree.map(jnp.asarray, INITIAL))
    state = tx.init(params)
    for _ in range(STEPS):
        updates, state = tx.update(jax.grad(loss)(params.fast), state, params)
        params = optax.apply_updates(params, updates)
    reference = run_numpy(ranger)
    np.testing.assert_allclose(params.fast["kernel1"], reference["kernel1"], rtol=0, atol=1e-12)
    sums = np.sum(np.asarray(params.fast["kernel1"]), 0)
    np.testing.assert_allclose(sums, INITIAL["kernel1"].sum(0), rtol=0, atol=1e-13)
