"""axes_from_trace where a weight looks like something else.

A scale, a diagonal, a frozen matrix or a column beside a weight are no bias; slices of a table are
no taps; what inputs scale, choose or bend is not told apart by who comes last.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from trace_support import REFUSED, Untold, answers, f32, i32, outcomes

K = lambda *s: np.random.default_rng(0).normal(size=s).astype(np.float32)  # noqa: E731
X, W, SQUARE, SEQUENCE = f32(3, 8), f32(8, 6), f32(8, 8), f32(2, 4, 8)
AB = {"a": f32(8, 2), "b": f32(2, 6)}
IMAGE = f32(2, 9, 10, 4)
CASES = []


def told_before_0_8(axes):
    """What JAX's diag no longer tells: before 0.8 it was a vector that is repeated and masked."""
    return axes if jax.__version_info__ < (0, 8) else Untold(axes)


def conv(x, k):
    numbers = ("NHWC", "HWIO", "NHWC")
    return lax.conv_general_dilated(x, k, (1, 1), "SAME", dimension_numbers=numbers)


def case(build):
    """Notes a program: its function, parameters, inputs and the outcome of each parameter."""
    CASES.append(build)
    return build


# ---- Beside a weight, what is no bias of rows.


@case
def one_wide_weight_concatenated():
    """Policy and value head, depth and colour head, fused qkv of MQA."""
    return (
        lambda p, x: x @ jnp.concatenate([p["w"], p["v"]], 1),
        {"w": W, "v": f32(8, 1)},
        (X,),
        {"w": (0,), "v": (0,)},
    )


@case
def bias_folded_into_the_weight():
    return (
        lambda p, x: (
            jnp.concatenate([x, jnp.ones((3, 1))], 1) @ jnp.concatenate([p["w"], p["b"][None]])
        ),
        {"w": W, "b": f32(6)},
        (X,),
        {"w": (0,), "b": ()},
    )


@case
def bayesian_weight_with_one_scale():
    """Reparametrization, evolution strategies: w + sigma * noise."""
    return (
        lambda p, x: (
            x @ (p["mu"] + jax.nn.softplus(p["rho"]) * jax.random.normal(jax.random.key(0), (8, 6)))
        ),
        {"mu": W, "rho": f32()},
        (X,),
        {"mu": (0,), "rho": ()},
    )


@case
def weight_plus_a_diagonal():
    """Glow's 1x1 convolution (PLU), Cayley, leaky recurrences, A + diag(s)."""
    return (
        lambda p, x: x @ (jnp.triu(p["u"], 1) + jnp.diag(jnp.exp(p["s"]))),
        {"u": SQUARE, "s": f32(8)},
        (X,),
        {"u": (0,), "s": told_before_0_8(())},
    )


@case
def weight_plus_scaled_identity():
    """DiracNets, AntisymmetricRNN, skip init."""
    return (
        lambda p, x: x @ (p["w"] + p["g"] * jnp.eye(8)),
        {"w": SQUARE, "g": f32()},
        (X,),
        {"w": (0,), "g": ()},
    )


@case
def vera():
    """VeRA: frozen random A and B, trained vectors."""
    return (
        lambda p, x: x @ (p["w"] + K(8, 4) @ (K(4, 6) * p["b"])),
        {"w": W, "b": f32(6)},
        (X,),
        {"w": (0,), "b": ()},
    )


@case
def lora_on_a_dequantized_weight():
    """QLoRA merged, trained scales: s * (int weights) + a @ b."""
    return (
        lambda p, x: x @ (p["s"] * K(8, 6) + p["a"] @ p["b"]),
        AB | {"s": f32(6)},
        (X,),
        {"a": (0,), "b": (0,), "s": ()},
    )


@case
def the_same_with_scales_of_rows():
    """Answers a: (1,) and b: (): wrong axes, not only none."""
    return (
        lambda p, x: x @ (p["s"] * K(8, 6) + p["a"] @ p["b"]),
        AB | {"s": f32(8, 1)},
        (X,),
        {"a": (0,), "b": (0,), "s": Untold(())},
    )


@case
def learned_clipping_range():
    """PACT, LSQ+, learned bounds."""
    return (
        lambda p, x: x @ jnp.clip(p["w"], -p["c"], p["c"]),
        {"w": W, "c": f32()},
        (X,),
        {"w": (0,), "c": ()},
    )


@case
def quantization_with_an_offset():
    """LSQ+; a binary weight with a threshold: sign(w - t) * s."""
    return (
        lambda p, x: x @ (jnp.sign(p["w"] - p["t"]) * p["s"]),
        {"w": W, "t": f32(6), "s": f32(6)},
        (X,),
        {"w": (0,), "t": (), "s": ()},
    )


@case
def non_centered_prior():
    """Numpyro's reparametrization of coefficients; scalars only."""
    return (
        lambda p, x: x @ (p["mu"] + p["sd"] * p["z"]),
        {"mu": f32(), "sd": f32(), "z": f32(8)},
        (X,),
        {"z": Untold((0,)), "mu": (), "sd": ()},
    )


@case
def kernels_of_two_sizes():
    """RepVGG, ACNet, DBB: k3x3 + pad(k1x1)."""
    return (
        lambda p, x: conv(x, p["k"] + jnp.pad(p["c"], ((1, 1), (1, 1), (0, 0), (0, 0)))),
        {"k": f32(3, 3, 4, 6), "c": f32(1, 1, 4, 6)},
        (IMAGE,),
        {"k": (0, 1, 2), "c": (2,)},
    )


@case
def central_difference_convolution():
    """CDCN with a trained theta; also x @ (w - t * w.mean(0))."""
    return (
        lambda p, x: conv(x, p["k"] - p["t"] * p["k"].mean((0, 1), keepdims=True)),
        {"k": f32(3, 3, 4, 6), "t": f32()},
        (IMAGE,),
        {"k": (0, 1, 2), "t": ()},
    )


@case
def shared_weight_plus_one_for_each_member():
    """Ensembles, multi-task; a matrix as the "vector"."""
    return (
        lambda p, x: jax.vmap(lambda d: jnp.tanh(x @ (p["w"] + d)))(p["d"]),
        {"w": W, "d": f32(4, 8, 6)},
        (X,),
        {"w": (0,), "d": (1,)},
    )


@case
def shared_weight_plus_one_for_each_head():
    return (
        lambda p, x: jnp.einsum("td,dhk->thk", x, p["w"] + p["s"][:, None]),
        {"w": f32(8, 2, 4), "s": f32(8, 4)},
        (X,),
        {"w": (0,), "s": (0,)},
    )


@case
def fused_multi_query_projection():
    """Q, k, v in one product, with one head of keys and values."""
    return (
        lambda p, x: jnp.einsum("td,dhk->thk", x, jnp.concatenate([p["q"], p["k"], p["v"]], 1)),
        {"q": f32(8, 4, 3), "k": f32(8, 1, 3), "v": f32(8, 1, 3)},
        (f32(7, 8),),
        {n: (0,) for n in "qkv"},
    )


@case
def antisymmetric_rnn():
    """W - w.T alone is refused; with the diffusion term it is ()."""
    return (
        lambda p, h: jnp.tanh(h @ (p["w"] - p["w"].T - p["g"] * jnp.eye(8))),
        {"w": SQUARE, "g": f32()},
        (X,),
        {"w": REFUSED, "g": ()},
    )


@case
def output_table_with_one_more_row():
    """A class "none", a null key, a mask token's row: p is (1, d)."""
    return (
        lambda p, x: x @ jnp.concatenate([p["k"], p["none"]], 0).T,
        {"k": f32(5, 8), "none": f32(1, 8)},
        (X,),
        {"k": (1,), "none": (1,)},
    )


@case
def gumbel_softmax_weight_with_a_learned_temperature():
    """Noise / t is "a vector"."""
    return (
        lambda p, x: (
            x @ jax.nn.softmax((p["w"] + jax.random.gumbel(jax.random.key(0), (8, 6))) / p["t"], 0)
        ),
        {"w": W, "t": f32()},
        (X,),
        {"w": (0,), "t": ()},
    )


# ---- Scales of different values, in one table.


@case
def uncertainty_weighting_of_losses():
    """Kendall et al.; log variances, also added up themselves."""
    return (
        lambda p, x: (
            jnp.exp(-p["s"][0]) * ((x @ p["w"]) ** 2).mean()
            + jnp.exp(-p["s"][1]) * jnp.abs(x @ p["u"]).mean()
            + p["s"].sum()
        ),
        {"s": f32(2), "w": W, "u": W},
        (X,),
        {"s": Untold(()), "w": (0,), "u": (0,)},
    )


@case
def lambdas_of_residuals():
    """Modded-nanogpt: x = l[0] * x + l[1] * x0; v = l[0] * v + l[1] * ve."""
    return (
        lambda p, x: (lambda h: (p["l"][0] * h + p["l"][1] * x) @ p["v"])(jnp.tanh(x @ p["w"])),
        {"l": f32(2), "w": SQUARE, "v": W},
        (X,),
        {"l": Untold(()), "w": (0,), "v": (0,)},
    )


@case
def the_same_for_each_channel():
    """A table of two scales; "scales of residual branches of one table" is ()."""
    return (
        lambda p, x: p["s"][0] * x + p["s"][1] * jnp.tanh(x @ p["w"]),
        {"s": f32(2, 8), "w": SQUARE},
        (X,),
        {"s": Untold(()), "w": (0,)},
    )


@case
def rational_activation():
    """Pade units, polynomial activations: coefficients of powers."""
    return (
        lambda p, x: sum(p["a"][k] * x**k for k in range(4)),
        {"a": f32(4)},
        (X,),
        {"a": Untold(())},
    )


# ---- A weight and another one that inputs scale.


@case
def weights_of_time():
    """Neural ODEs, w(t) = w0 + t * w1; interpolation; LoRA-like scale as an input."""
    return (
        lambda p, x, t: x @ (p["w0"] + t * p["w1"]),
        {"w0": W, "w1": W},
        (X, f32()),
        {"w0": (0,), "w1": (0,)},
    )


@case
def weights_gated_by_the_input():
    return (
        lambda p, x: jax.vmap(lambda x: x @ (p["w"] + jax.nn.sigmoid(x.mean()) * p["v"]))(x),
        {"w": W, "v": W},
        (X,),
        {"w": (0,), "v": (0,)},
    )


# ---- Factors that inputs choose or scale.


@case
def lora_of_a_task():
    """X @ (a[i] @ b[i]) answers a: (2,), b: ()/(1,); (x @ a[i]) @ b[i] is right."""
    return (
        lambda p, x, i: x @ (p["a"][i] @ p["b"][i]),
        {"a": f32(4, 8, 2), "b": f32(4, 2, 6)},
        (X, i32()),
        {"a": Untold((1,)), "b": Untold((1,))},
    )


@case
def lora_of_a_task_for_each_example():
    """Merged with w, vmapped: w is refused, a is (2,)."""
    return (
        lambda p, x, i: jax.vmap(lambda x, i: x @ (p["w"] + p["a"][i] @ p["b"][i]))(x, i),
        {"w": W, "a": f32(4, 8, 2), "b": f32(4, 2, 6)},
        (X, i32(3)),
        {"w": Untold((0,)), "a": Untold((1,)), "b": Untold((1,))},
    )


@case
def tensor_train_embedding():
    """TT-Rec: both factors answered as the weight of the other."""
    return (
        lambda p, i, j: (
            jnp.tanh(jnp.einsum("bir,brj->bij", p["a"][i], p["b"][j])).reshape(3, 8) @ p["w"]
        ),
        {"a": f32(9, 2, 3), "b": f32(7, 3, 4), "w": W},
        (i32(3), i32(3)),
        {"a": REFUSED, "b": REFUSED, "w": (0,)},
    )


@case
def low_rank_update_by_an_example():
    """W is refused, b is refused, a is (1,): the rank."""
    return (
        lambda p, x, z: jnp.einsum(
            "bi,bio->bo", x, p["w"] + jnp.einsum("ir,br,ro->bio", p["a"], z, p["b"])
        ),
        {"w": W} | AB,
        (X, f32(3, 2)),
        {"w": Untold((0,)), "a": Untold((0,)), "b": Untold((0,))},
    )


# ---- A nonlinear function of a product of parameters.


@case
def adaptive_adjacency():
    """Graph WaveNet, MTGNN, AGCRN: symmetric in e1 and e2, answered (), (1,)."""
    return (
        lambda p, x: jax.nn.softmax(jax.nn.relu(p["e1"] @ p["e2"].T), -1) @ x,
        {"e1": f32(7, 3), "e2": f32(7, 3)},
        (f32(7, 8),),
        {"e1": REFUSED, "e2": REFUSED},
    )


@case
def factorized_attention_weights():
    """AFT-full's w = u v^T in exp; Synthesizer's factorized random."""
    return (
        lambda p, x: jnp.exp(p["u"] @ p["v"]) @ x,
        {"u": f32(7, 3), "v": f32(3, 7)},
        (f32(7, 8),),
        {"u": REFUSED, "v": REFUSED},
    )


@case
def positive_low_rank_weight():
    """Answers a: (1,), b: (); x @ (w * exp(a @ b)) is refused."""
    return lambda p, x: x @ jnp.exp(p["a"] @ p["b"]), AB, (X,), {"a": REFUSED, "b": REFUSED}


@case
def clipped_low_rank_weight():
    return lambda p, x: x @ jnp.clip(p["a"] @ p["b"], -1, 1), AB, (X,), {"a": REFUSED, "b": REFUSED}


# ---- A kernel made of two parameters.


def convolved(p, u, c):
    """A state-space kernel of states that decay by `a`, convolved with the inputs."""
    k = jnp.einsum("hn,hnl->hl", c, jnp.exp(p["a"][:, :, None] * np.arange(7)))
    return jnp.fft.irfft(jnp.fft.rfft(k, 14) * jnp.fft.rfft(u, 14), 14)[..., :7]


S4D, SIGNAL = {"a": f32(8, 4), "c": f32(8, 4)}, f32(2, 8, 7)


@case
def state_space_kernel():
    return lambda p, u: convolved(p, u, p["c"]), S4D, (SIGNAL,), {"a": (), "c": (1,)}


@case
def state_space_kernel_with_zero_order_hold():
    return (
        lambda p, u: convolved(p, u, p["c"] * (jnp.exp(p["a"]) - 1) / p["a"]),
        S4D,
        (SIGNAL,),
        {"a": Untold(()), "c": Untold((1,))},
    )


MAMBA = {"a": f32(8, 4), "dt": f32(8, 8), "bc": f32(8, 8), "out": f32(8, 5)}


def selective(states):
    """Mamba's layer: decays `a` that inputs set the step of, and a gate after the readout."""

    def fn(p, u):
        step = jax.nn.softplus(u @ p["dt"])
        b, c = jnp.split(u @ p["bc"], 2, -1)
        decay = jnp.exp(step[..., None] * -jnp.exp(p["a"]))
        h = states(decay, (step * u)[..., None] * b[..., None, :])
        return (jnp.einsum("bldn,bln->bld", h, c) * jax.nn.silu(u)) @ p["out"]

    return fn, MAMBA, (SEQUENCE,), {"a": (), "dt": (0,), "bc": (0,), "out": (0,)}


@case
def selective_state_space_by_a_scan():
    def states(decay, inputs):
        def step(h, of):
            h = of[0] * h + of[1]
            return h, h

        along = jnp.moveaxis(decay, 1, 0), jnp.moveaxis(inputs, 1, 0)
        return jnp.moveaxis(lax.scan(step, jnp.zeros_like(along[0][0]), along)[1], 0, 1)

    return selective(states)


@case
def selective_state_space_by_an_associative_scan():
    def combined(x, y):
        return x[0] * y[0], y[0] * x[1] + y[1]

    return selective(lambda *of: lax.associative_scan(combined, of, axis=1)[1])


# ---- A product of parameters as a scale, or as a table.


@case
def low_rank_gate():
    """X + e @ g is refused, x * (e @ g) is () and ()."""
    return (
        lambda p, x: jnp.tanh(x * (p["e"] @ p["g"])),
        {"e": f32(7, 5), "g": f32(5, 8)},
        (f32(2, 7, 8),),
        {"e": REFUSED, "g": REFUSED},
    )


@case
def projected_table_then_looked_up():
    """E[i] @ w is (0,); (e @ w)[i] and jnp.tanh(e @ w)[i] are ()."""
    return (
        lambda p, i: (p["e"] @ p["w"])[i],
        {"e": f32(11, 5), "w": f32(5, 8)},
        (i32(3),),
        {"e": (), "w": (0,)},
    )


@case
def projected_table_then_chosen_by_one_hots():
    return (
        lambda p, i: jnp.tanh(jax.nn.one_hot(i, 11) @ (p["e"] @ p["w"])),
        {"e": f32(11, 5), "w": f32(5, 8)},
        (i32(3),),
        {"e": (), "w": (0,)},
    )


@case
def scaled_table_chosen_by_one_hots():
    return (
        lambda p, i: jnp.tanh(jax.nn.one_hot(i, 11) @ (p["e"] * p["g"])),
        {"e": f32(11, 5), "g": f32(5)},
        (i32(3),),
        {"e": (), "g": ()},
    )


@case
def product_of_tables_chosen_by_one_hots():
    return (
        lambda p, i: jax.nn.one_hot(i, 11) @ (p["e"] * jax.nn.softmax(p["f"], 0)),
        {"e": f32(11, 5), "f": f32(11, 5)},
        (i32(3),),
        {"e": (), "f": ()},
    )


@case
def table_times_constants_then_looked_up():
    """E[i] @ K of a table, or of a layer on the inputs K the units that labels choose."""
    return lambda p, i: (p["e"] @ K(5, 8))[i], {"e": f32(11, 5)}, (i32(3),), {"e": REFUSED}


@case
def sum_of_a_layer_on_looked_up_constants():
    return lambda p, i: (K(11, 5) @ p["w"])[i].sum(1), {"w": f32(5, 8)}, (i32(3),), {"w": (0,)}


@case
def experts_made_of_constants_then_chosen():
    """tanh(K @ w) is a nonlinear function of a product, chosen or not."""
    return (
        lambda p, x, i: jnp.einsum("nd,ndf->nf", x, jnp.tanh(K(8, 6) @ p["w"])[i]),
        {"w": f32(2, 6, 5)},
        (X, i32(3)),
        {"w": REFUSED},
    )


@case
def layer_over_units_that_refused_centres_tell_apart():
    """x varies along the batch alone, and x - e * f along the units too."""
    return (
        lambda p, x: ((x[:, None] - p["e"] * p["f"]) ** 2).sum(-1) @ p["w"],
        {"e": f32(7, 8), "f": f32(7, 8), "w": f32(7, 5)},
        (X,),
        {"e": REFUSED, "f": REFUSED, "w": (0,)},
    )


@case
def mean_of_learned_tokens_added_to_inputs():
    """Centring a layer whose inputs are all equal would stop its training."""
    return lambda p, x: jnp.tanh(x + p["e"].mean(0)), {"e": f32(5, 8)}, (X,), {"e": ()}


@case
def mean_of_learned_tokens_that_scales_inputs():
    return lambda p, x: jnp.tanh(x * p["e"].mean(0)), {"e": f32(5, 8)}, (X,), {"e": ()}


@case
def sum_of_learned_tokens_as_a_product_with_ones():
    return lambda p, x: jnp.tanh(x + jnp.ones((3, 5)) @ p["e"]), {"e": f32(5, 8)}, (X,), {"e": ()}


@case
def layer_on_inputs_less_one_multiplied_out():
    return lambda p, x: x @ p["w"] - p["w"].sum(0), {"w": W}, (X,), {"w": (0,)}


@case
def mean_of_kernels_that_multiplies_a_weight():
    return (
        lambda p, x: x @ (p["w"] * p["v"].mean(0)),
        {"w": W, "v": f32(3, 8, 6)},
        (X,),
        {"w": (0,), "v": Untold((1,))},
    )


@case
def mean_of_tables_of_which_rows_are_chosen():
    """Or the units that labels choose of a layer on equal inputs."""
    return lambda p, i: p["e"].mean(0)[i], {"e": f32(3, 11, 5)}, (i32(3),), {"e": Untold(())}


@case
def scale_before_a_mean_of_kernels():
    """The mean has outputs of its own, as a constant has: the scale is no unit."""
    return (
        lambda p, x: jnp.tanh((x * p["s"]) @ p["w"].mean(0)),
        {"s": f32(8), "w": f32(3, 8, 5)},
        (X,),
        {"s": Untold(()), "w": Untold((1,))},
    )


@case
def constants_projected_then_looked_up():
    """Sinusoids @ w, indexed by time; with a bias it is (0,)."""
    return lambda p, i: (K(11, 5) @ p["w"])[i], {"w": f32(5, 8)}, (i32(3),), {"w": (0,)}


# ---- Vectors that speak of both sides of a product.


FACTORS = {"u": f32(7, 5), "v": f32(5, 8), "bu": f32(7), "bv": f32(8)}
NEITHER = {"u": REFUSED, "v": REFUSED, "bu": (), "bv": ()}


@case
def factors_with_biases_of_users_and_of_items():
    """Users' bias alone makes u the weight, and items' alone makes it v."""
    return (
        lambda p, r: ((p["u"] @ p["v"] + p["bu"][:, None] + p["bv"] - r) ** 2).sum(),
        FACTORS,
        (f32(7, 8),),
        NEITHER,
    )


@case
def factors_with_biases_that_came_after_the_data():
    return (
        lambda p, r: ((p["u"] @ p["v"] - r + p["bu"][:, None] + p["bv"]) ** 2).sum(),
        FACTORS,
        (f32(7, 8),),
        NEITHER,
    )


@case
def projected_table_with_a_bias_and_a_level_for_each_row():
    return (
        lambda p, x: jnp.tanh(x + (p["u"] @ p["v"] + p["bv"] + p["bu"][:, None])),
        FACTORS,
        (f32(2, 7, 8),),
        {"u": Untold(()), "v": Untold((0,)), "bu": (), "bv": ()},
    )


@case
def projected_table_with_a_part_of_its_features():
    """Columns of u and rows of v that are left out may be used elsewhere."""
    return (
        lambda p, x: jnp.tanh(x + (p["u"][:, :3] @ p["v"][:3] + p["bv"])),
        {"u": f32(7, 5), "v": f32(5, 8), "bv": f32(8)},
        (f32(2, 7, 8),),
        {"u": REFUSED, "v": REFUSED, "bv": ()},
    )


# ---- A norm of a product of parameters.


def rms_norm(x):
    return x * lax.rsqrt((x**2).mean(-1, keepdims=True) + 1e-5)


@case
def norm_of_a_projected_table_meets_inputs():
    """Queries made of learned latents, or a factorized weight with a norm for each unit."""
    return (
        lambda p, x: jax.nn.softmax(x @ rms_norm(p["e"] @ p["w"]).T),
        {"e": f32(7, 5), "w": f32(5, 8)},
        (X,),
        {"e": REFUSED, "w": REFUSED},
    )


@case
def norm_between_two_projections_of_a_table():
    return (
        lambda p, x: jnp.tanh(x + rms_norm(p["e"] @ p["w"]) @ p["v"]),
        {"e": f32(7, 5), "w": f32(5, 6), "v": f32(6, 8)},
        (f32(2, 7, 8),),
        {"e": Untold(()), "w": Untold((0,)), "v": (0,)},
    )


@case
def self_attention_of_a_table():
    """Queries and keys without biases: their product runs from the table to the table."""
    return (
        lambda p, x: (
            jnp.tanh(x) + jax.nn.softmax((p["e"] @ p["q"]) @ (p["e"] @ p["k"]).T) @ (x @ p["v"])
        ),
        {"e": f32(7, 8), "q": f32(8, 5), "k": f32(8, 5), "v": SQUARE},
        (f32(3, 7, 8),),
        {"e": Untold(()), "q": Untold((0,)), "k": Untold((0,)), "v": (0,)},
    )


@case
def attention_between_two_tables():
    return (
        lambda p, x: x + jax.nn.softmax((p["e"] @ p["q"]) @ p["f"].T) @ (p["f"] @ p["v"]),
        {"e": f32(7, 8), "q": f32(8, 5), "f": f32(9, 5), "v": f32(5, 8)},
        (f32(3, 7, 8),),
        {"e": Untold(()), "q": Untold((0,)), "f": Untold(()), "v": (0,)},
    )


@case
def graph_learned_from_two_tables():
    """As MTGNN learns one: tanh(e @ a) @ tanh(f @ b).T."""
    return (
        lambda p, x: jnp.einsum(
            "nm,bmd->bnd", jnp.tanh(p["e"] @ p["a"]) @ jnp.tanh(p["f"] @ p["b"]).T, x
        ),
        {"e": f32(7, 5), "a": f32(5, 6), "f": f32(7, 5), "b": f32(5, 6)},
        (f32(3, 7, 8),),
        {"e": Untold(()), "a": Untold((0,)), "f": Untold(()), "b": Untold((0,))},
    )


@case
def nonlinear_functions_of_both_factors():
    return (
        lambda p, x: x @ (jnp.tanh(p["e"] @ p["a"]) @ p["b"] ** 2),
        {"e": f32(8, 3), "a": f32(3, 4), "b": f32(4, 6)},
        (X,),
        {"e": REFUSED, "a": REFUSED, "b": REFUSED},
    )


# ---- Constants between parameters.


@case
def frozen_matrix_between_two_factors():
    return (
        lambda p, x: x @ (p["a"] @ K(2, 2) @ p["b"]),
        AB,
        (X,),
        {"a": Untold((0,)), "b": Untold((0,))},
    )


@case
def learned_singular_values():
    """As AdaLoRA has them, on a diagonal."""
    return (
        lambda p, x: x @ (p["w"] + (p["a"] * p["s"]) @ p["b"]),
        AB | {"w": W, "s": f32(2)},
        (X,),
        {"a": (0,), "b": (0,), "s": (), "w": (0,)},
    )


@case
def learned_singular_values_as_a_matrix():
    return (
        lambda p, x: x @ (p["a"] @ (jnp.eye(2) * p["s"]) @ p["b"]),
        AB | {"s": f32(2)},
        (X,),
        {"a": Untold((0,)), "b": Untold((0,)), "s": Untold(())},
    )


# ---- Rows that inputs choose, and noise, before something nonlinear.


@case
def chosen_expert_of_which_something_nonlinear_is_taken():
    return (
        lambda p, i, x: jnp.einsum("nd,nde->ne", x, jnp.tanh(p[i])),
        f32(5, 8, 6),
        (i32(3), X),
        {"params": Untold((1,))},
    )


@case
def weight_with_multiplied_noise_inside_a_nonlinearity():
    return lambda p, x, n: x @ jnp.tanh(p * n), W, (X, W), {"params": Untold((0,))}


# ---- A gain before a weight of which a factor is constant, and a bias beside it.

AFFINE = {"g": f32(8), "b": f32(8), "w": W}
ROWS = np.arange(1, 9, dtype=np.float32)[:, None]
GAINED = {
    "frozen_inputs": lambda w: ROWS * w,
    "masked_inputs": lambda w: jnp.where(ROWS % 2 > 0, w, 0),
    "dropped_weights": lambda w: jnp.where(
        jax.random.bernoulli(jax.random.key(0), 0.5, (8, 6)), w / 0.5, 0
    ),
    "a_causal_mask": lambda w: jnp.where(jnp.arange(8)[:, None] <= jnp.arange(6), w, 0),
    "a_softmax": lambda w: jax.nn.softmax(w, 1),
    "quantized_rows": lambda w: w / jax.lax.stop_gradient(jnp.abs(w).max(1, keepdims=True)),
}


def gain_before(name, of):
    def build():
        fn = lambda p, x: jnp.tanh((x * p["g"] + p["b"]) @ of(p["w"]))  # noqa: E731
        return fn, AFFINE, (X,), {"g": (), "b": (), "w": (0,)}

    build.__name__ = f"gain_before_{name}"
    case(build)


for name, of in GAINED.items():
    gain_before(name, of)


@case
def gain_before_a_convolution_of_masked_inputs():
    def fn(p, x):
        dims = ("NWC", "WIO", "NWC")
        kernel = ROWS * p["w"]
        return jax.lax.conv_general_dilated(
            x * p["g"], kernel, (1,), "SAME", dimension_numbers=dims
        )

    return fn, {"g": f32(8), "w": f32(3, 8, 6)}, (SEQUENCE,), {"g": (), "w": (0, 1)}


# ---- A product with inputs, taken apart after it was made.


def slices_added(x, w):
    z = x[..., None] * w
    return jnp.tanh(sum(z[..., j, :] for j in range(len(w))))


@case
def product_of_which_slices_are_added():
    return lambda p, x: slices_added(x, p["w"]), {"w": W}, (X,), {"w": (0,)}


@case
def taps_that_are_rolled_after_the_product():
    return (
        lambda p, x: jnp.tanh(sum(jnp.roll(x * p["w"][k], k, 1) for k in range(3))),
        {"w": f32(3, 8)},
        (SEQUENCE,),
        {"w": (0,)},
    )


@case
def matrices_whose_outputs_are_rolled():
    """A convolution of width 3, which the sum of products of slices is, or three layers."""
    return (
        lambda p, x: jnp.tanh(sum(jnp.roll(x @ p["w"][k], k, 1) for k in range(3))),
        {"w": f32(3, 8, 6)},
        (SEQUENCE,),
        {"w": Untold((0, 1))},
    )


@case
def halves_of_gained_features_that_are_rotated():
    """The gain of a query before its rotation is cut in two, and the parts are added."""

    def fn(p, x):
        a, b = jnp.split(x * p["g"], 2, -1)
        c, s = jnp.cos(ROWS[:4, 0]), jnp.sin(ROWS[:4, 0])
        return jnp.tanh(jnp.concatenate([a * c - b * s, b * c + a * s], -1) @ p["w"])

    return fn, {"g": f32(8), "w": W}, (X,), {"g": (), "w": (0,)}


@case
def product_of_which_slices_are_added_then_cut():
    """What the sum varies along is there for the next layer."""
    return (
        lambda p, x: slices_added(x, p["a"])[:, :5] @ p["b"],
        {"a": W, "b": f32(5, 4)},
        (X,),
        {"a": (0,), "b": (0,)},
    )


@case
def product_of_two_weights_of_which_slices_are_added():
    return (
        lambda p, x: slices_added(x, p["a"] * p["b"]),
        {"a": W, "b": W},
        (X,),
        {"a": Untold((0,)), "b": Untold((0,))},
    )


@case
def mean_of_kernels_of_which_slices_are_added():
    return (
        lambda p, x: slices_added(x, p["w"].mean(0)),
        {"w": f32(3, 8, 6)},
        (X,),
        {"w": Untold((1,))},
    )


@case
def taps_made_of_constants():
    return (
        lambda p, x: jnp.tanh(sum(jnp.roll(x, j, 1) * (K(3, 7) @ p["w"])[j] for j in range(3))),
        {"w": f32(7, 8)},
        (SEQUENCE,),
        {"w": Untold((0,))},
    )


@case
def number_made_of_parameters():
    """The weight of the second map of differential attention."""
    return (
        lambda p, x: (x * (1 - jnp.exp(p["a"] @ p["b"]))) @ p["w"],
        {"a": f32(5), "b": f32(5), "w": W},
        (X,),
        {"a": (), "b": (), "w": (0,)},
    )


@case
def weight_between_two_constants_of_which_inputs_choose_rows():
    return (
        lambda p, i: (K(11, 5) @ p["w"] @ K(6, 4))[i],
        {"w": f32(5, 6)},
        (i32(3),),
        {"w": Untold((0,))},
    )


# ---- Nonlinear functions on both sides of a product; spectra; gains with positions.


@case
def shared_scale_on_both_sides():
    def fn(p, x):
        scale = jnp.exp(p["b"] * p["d"])
        return x @ ((p["w"] * scale) @ (scale[:, None] * p["v"]))

    params = {"b": f32(4), "d": f32(4), "w": f32(8, 4), "v": f32(4, 5)}
    return fn, params, (X,), dict.fromkeys(params, REFUSED)


@case
def state_space_kernel_with_learned_steps():
    """S4D's, discretized by zero-order hold."""

    def fn(p, u):
        step = jnp.exp(p["step"])[:, None]
        c = p["c"] * jnp.expm1(p["a"] * step)
        k = jnp.einsum("hn,hnl->hl", c, jnp.exp((p["a"] * step)[..., None] * np.arange(7)))
        return jnp.fft.irfft(jnp.fft.rfft(k, 14) * jnp.fft.rfft(u, 14), 14)[..., :7]

    params = S4D | {"step": f32(8)}
    return fn, params, (SIGNAL,), dict.fromkeys(params, REFUSED)


def convolved_by_spectra(p, x):
    y = jnp.einsum("bit,iot->bot", jnp.fft.rfft(x, 16), jnp.fft.rfft(p["w"], 16))
    return jnp.fft.irfft(y, 16)[..., :7]


@case
def convolution_of_channels_by_spectra():
    return convolved_by_spectra, {"w": f32(8, 5, 3)}, (SIGNAL,), {"w": Untold((0, 2))}


@case
def convolution_of_one_channel_by_spectra():
    return convolved_by_spectra, {"w": f32(1, 5, 3)}, (f32(2, 1, 7),), {"w": Untold((2,))}


@case
def gain_and_bias_of_positions_before_a_mean():
    """Without the bias it is what reads out a state-space model."""
    return (
        lambda p, x: (x * p["g"] + p["b"]).mean(1),
        {"g": f32(4, 8), "b": f32(4, 8)},
        (SEQUENCE,),
        {"g": Untold(()), "b": ()},
    )


# ---- What is written into a part of an array, and multiplied after.


def case_of_writing(write):
    """A dense layer on what is written into zeros."""

    def build():
        zeros = jnp.zeros((3, 8))
        return lambda p, x: write(zeros, x) @ p["w"], {"w": W}, (X,), {"w": (0,)}

    build.__name__ = f"dense_layer_after_{write.__name__}"
    CASES.append(build)


@case_of_writing
def padding_one_feature(zeros, x):
    return jnp.pad(x[:, :1], ((0, 0), (2, 5)))


@case_of_writing
def setting_one_feature(zeros, x):
    return zeros.at[:, 2].set(x[:, 0])


@case_of_writing
def adding_to_some_features(zeros, x):
    return zeros.at[:, np.array([1, 3])].add(x[:, :2])


@case_of_writing
def updating_a_slice_of_one(zeros, x):
    return lax.dynamic_update_slice(zeros, x[:, :1], (0, 3))


@case_of_writing
def setting_and_adding(zeros, x):
    return zeros.at[:, 1].set(x.mean(1)).at[:, 4].add(x[:, 0])


@case
def pooled_segments():
    """Nodes that edges were added up in differ, so that their mean is none of the weight."""
    return (
        lambda p, x, i: jax.ops.segment_sum(x, i, 5).T @ p["w"],
        {"w": f32(5, 6)},
        (f32(7, 8), i32(7)),
        {"w": (0,)},
    )


@case
def rows_stacked_to_a_weight():
    return (
        lambda p, x: x @ (jnp.stack([p["a"], p["b"]]) @ p["w"]),
        {"a": f32(5), "b": f32(5), "w": f32(5, 6)},
        (f32(3, 2),),
        {"a": REFUSED, "b": REFUSED, "w": REFUSED},
    )


# ---- Members, heads and experts with factors of their own.


def members(f):
    return lambda p, x: jax.vmap(f, (0, None))(p, x)


@case
def gains_of_members_before_their_weights():
    return (
        members(lambda p, x: (x * p["g"]) @ p["w"]),
        {"g": f32(4, 8), "w": f32(4, 8, 6)},
        (X,),
        {"g": (), "w": (1,)},
    )


@case
def normalized_inputs_of_members():
    """Heads, experts or seeds of an ensemble that begin with a norm of the same inputs."""

    def head(p, x):
        x = x - x.mean(-1, keepdims=True)
        x = x * lax.rsqrt((x**2).mean(-1, keepdims=True) + 1e-6) * p["g"] + p["b"]
        return x @ p["w"]

    params = {"g": f32(4, 8), "b": f32(4, 8), "w": f32(4, 8, 6)}
    return members(head), params, (X,), {"g": (), "b": (), "w": (1,)}


@case
def gains_of_members_before_products():
    return (
        members(lambda p, x: (x * p["g"]) @ (p["a"] @ p["b"])),
        {"g": f32(4, 8), "a": f32(4, 8, 2), "b": f32(4, 2, 6)},
        (X,),
        {"g": (), "a": (1,), "b": (1,)},
    )


@case
def scales_of_members_before_frozen_weights():
    """VeRA; a scale of inputs, or of a mask."""
    return (
        members(lambda p, x: (x * p["g"]) @ K(8, 6)),
        {"g": f32(4, 8)},
        (X,),
        {"g": Untold(())},
    )


@case
def diagonals_of_members_between_factors():
    """SVD layers, AdaLoRA: beside the members' axis a diagonal has no outputs."""
    return (
        members(lambda p, x: x @ (p["w"] + (p["u"] * p["d"]) @ p["v"])),
        {"w": f32(4, 8, 6), "u": f32(4, 8, 2), "d": f32(4, 2), "v": f32(4, 2, 6)},
        (X,),
        {"w": (1,), "u": (1,), "d": (), "v": (1,)},
    )


@case
def features_of_members_added_up_by_index():
    def fn(p, x):
        step = lambda i, a: a + x[:, i, None] * p["w"][i]  # noqa: E731
        return lax.fori_loop(0, 8, step, jnp.zeros((3, 6)))

    return members(fn), {"w": f32(4, 8, 6)}, (X,), {"w": Untold((1,))}


@case
def one_factor_of_members_made_positive():
    """The members' axis of their inputs is no batch that a factor could be an activation along."""
    return (
        lambda p, x: x @ (p["a"] @ jax.nn.softmax(p["b"])),
        {"a": f32(4, 8, 2), "b": f32(4, 2, 6)},
        (f32(4, 3, 8),),
        {"a": Untold((1,)), "b": Untold((1,))},
    )


@case
def other_factor_of_members_made_positive():
    return (
        lambda p, x: x @ (jnp.abs(p["a"]) @ p["b"]),
        {"a": f32(4, 8, 2), "b": f32(4, 2, 6)},
        (f32(4, 3, 8),),
        {"a": Untold((1,)), "b": (1,)},
    )


@case
def bases_of_members_relations():
    """R-GCN: what data chose rows of is no factor of the weight."""

    def fn(p, x, r):
        w = jnp.einsum("rb,bio->rio", p["c"], p["v"])[r]
        return jnp.einsum("ei,eio->eo", x, w)

    return (
        lambda p, x, r: jax.vmap(fn, (0, None, None))(p, x, r),
        {"c": f32(3, 4, 5), "v": f32(3, 5, 8, 2)},
        (f32(20, 8), i32(20)),
        {"c": Untold(()), "v": Untold((2,))},
    )


@case
def masked_bias_of_latents():
    def fn(p, x):
        q = p["q"] @ p["w"] + p["b"] * np.float32([1, 0, 1, 0, 1])
        return jax.nn.softmax(q @ (x @ p["k"]).swapaxes(1, 2))

    params = {"q": f32(4, 6), "w": f32(6, 5), "b": f32(5), "k": f32(8, 5)}
    return fn, params, (SEQUENCE,), {"q": (), "w": (0,), "b": (), "k": (0,)}


@case
def skips_of_layers_with_gains():
    """What a loop adds up are scales, if the layers of that loop went into it."""

    def layer(carry, p):
        h = jnp.tanh(carry[0] @ p["w"])
        return (h, carry[1] + p["g"] * h), None

    return (
        lambda p, x: lax.scan(layer, (x, jnp.zeros((3, 8))), p)[0][1],
        {"g": f32(4, 8), "w": f32(4, 8, 8)},
        (X,),
        {"g": Untold(()), "w": (1,)},
    )


@case
def dropout_of_members_inputs():
    """What is dropped differs from example to example, and is no weight."""
    kept = jax.random.bernoulli(jax.random.key(0), 0.5, (3, 8))
    return (
        members(lambda p, x: jnp.where(kept, x / 0.5, 0) @ p["w"]),
        {"w": f32(4, 8, 6)},
        (X,),
        {"w": (1,)},
    )


@case
def batch_ensemble_for_two_seeds():
    return (
        members(lambda p, x: (x[:, None] * p["r"]) @ p["w"]),
        {"r": f32(2, 3, 8), "w": f32(2, 8, 6)},
        (X,),
        {"r": Untold(()), "w": Untold((1,))},
    )


@case
def gains_of_members_inside_a_nonlinear_function():
    return (
        members(lambda p, x: jnp.tanh(x * p["g"]) @ p["w"]),
        {"g": f32(4, 8), "w": f32(4, 8, 6)},
        (X,),
        {"g": Untold(()), "w": (1,)},
    )


@case
def isotropic_envelopes():
    """FermiNet: of distances to atoms, a sum of exponentials."""
    return (
        lambda p, r: (jnp.exp(-r[..., None] * p["decay"]) * p["scale"]).sum(1),
        {"decay": f32(4, 6), "scale": f32(4, 6)},
        (f32(3, 4),),
        {"decay": Untold(()), "scale": (0,)},
    )


@case
def sines_on_edges():
    """A Kolmogorov-Arnold network of sines."""
    return (
        lambda p, x: jnp.einsum("bio,io->bo", jnp.sin(x[:, :, None] * p["s"] + p["t"]), p["w"]),
        {"s": W, "t": W, "w": W},
        (X,),
        {"s": Untold(()), "t": (), "w": (0,)},
    )


@case
def learned_frequencies():
    return (
        lambda p, t: jnp.sin(t[:, None] * p["s"]) @ p["w"],
        {"s": f32(7), "w": f32(7, 6)},
        (f32(3),),
        {"s": (), "w": (0,)},
    )


@case
def product_of_two_depthwise_kernels():
    """What data varies along too are copies, behind the first factor as in it."""

    def fn(p, x):
        numbers = ("NWC", "WIO", "NWC")
        k = (p["a"] @ p["b"])[:, None]
        return lax.conv_general_dilated(
            x, k, (1,), "SAME", dimension_numbers=numbers, feature_group_count=8
        )

    return fn, {"a": f32(3, 5), "b": f32(5, 8)}, (SEQUENCE,), {"a": (0,), "b": (0,)}


@case
def factors_between_which_a_number_interpolates():
    def fn(p, x):
        t = jax.nn.sigmoid(p["t"])
        return x @ ((t * p["a"] + (1 - t) * p["c"]) @ p["b"])

    return fn, {**AB, "c": f32(8, 2), "t": f32()}, (X,), {"a": (0,), "b": (0,), "c": (0,), "t": ()}


@case
def rows_of_a_product_added_up_one_by_one():
    def fn(p, x):
        product = x[..., None] * (p["w"] @ K(5, 6))[1:-1]
        return jnp.tanh(sum(product[:, i] for i in range(8)))

    return fn, {"w": f32(10, 5)}, (X,), {"w": Untold((0,))}


# ---- Rows of tables, and products of them.


@case
def tables_of_several_fields():
    """DeepFM, DLRM: each field has a table, and a value that its row is multiplied by."""

    def fn(p, ids, values):
        rows = jax.vmap(lambda table, i: table[i], (0, 1), 1)(p["v"], ids)
        return (rows * values[..., None]).sum(1)

    return fn, {"v": f32(4, 11, 5)}, (i32(3, 4), f32(3, 4)), {"v": ()}


@case
def tied_rows_times_rows_of_another_table():
    """DistMult was refused: of the two tables' rows either could be a weight to the other."""
    return (
        lambda p, h, r: (p["e"][h] * p["r"][r]) @ p["e"].T,
        {"e": f32(11, 5), "r": f32(7, 5)},
        (i32(3), i32(3)),
        {"e": (), "r": ()},
    )


# ---- Weights that inputs change in a loop.


@case
def plastic_recurrence():
    """Differentiable plasticity: the state depends on the weight by what it was before alone."""

    def fn(p, xs, trace):
        step = lambda h, x: (  # noqa: E731
            jnp.tanh(x + jnp.einsum("bi,bij->bj", h, p["w"] + trace)),
            None,
        )
        return lax.scan(step, xs[0], xs[1:])[0]

    return fn, {"w": SQUARE}, (f32(4, 3, 8), f32(3, 8, 8)), {"w": Untold((0,))}


@case
def weights_adapted_by_an_inner_loop():
    """MAML, and layers that are trained at test time."""
    apply = lambda p, x: jax.nn.relu(x @ p["a"]) @ p["b"]  # noqa: E731

    def fn(p, x, y, query):
        def task(x, y, query):
            loss = lambda p: ((apply(p, x) - y) ** 2).mean()  # noqa: E731
            step = lambda p, _: (  # noqa: E731
                jax.tree.map(lambda w, g: w - 0.1 * g, p, jax.grad(loss)(p)),
                None,
            )
            return apply(lax.scan(step, p, None, length=2)[0], query)

        return jax.vmap(task)(x, y, query)

    inputs = f32(3, 5, 8), f32(3, 5, 6), f32(3, 7, 8)
    return fn, AB, inputs, {"a": Untold((0,)), "b": Untold((0,))}


@case
def weight_after_a_scale_inside_a_nonlinearity():
    return (
        lambda p, x: (jnp.tanh(x[:, :, None] * p["scale"]) * p["w"]).sum(1),
        {"scale": f32(6), "w": W},
        (X,),
        {"scale": (), "w": (0,)},
    )


@case
def scale_that_is_a_mean():
    return lambda p, x: jnp.tanh(x * p.mean(0)), f32(5, 8), (X,), {"params": ()}


@case
def gain_of_a_norm_before_one_output():
    """A value head."""
    return (
        lambda p, x: (x * p["gain"]) @ p["w"],
        {"gain": f32(8), "w": f32(8, 1)},
        (X,),
        {"gain": (), "w": (0,)},
    )


# ---- Rows that data chose, beside another use of what they are rows of.


@case
def output_layer_of_which_label_rows_are_taken_too():
    """Cross-entropy that saves memory; Q values of actions taken beside those of all."""

    def fn(p, x, labels):
        return jax.nn.logsumexp(x @ p.T, -1) - (x * p[labels]).sum(-1)

    return fn, f32(11, 8), (X, i32(3)), {"params": (1,)}


@case
def the_same_of_one_layer_of_a_stack():
    def fn(p, x, labels):
        return jax.nn.logsumexp(x @ p[1], -1) - (x * p[1][:, labels].T).sum(-1)

    return fn, f32(2, 8, 11), (X, i32(3)), {"params": Untold((1,))}


@case
def output_layer_and_class_activation_maps():
    def fn(p, x, labels):
        return x.mean(1) @ p.T, jnp.einsum("btc,bc->bt", x, p[labels])

    return fn, f32(11, 8), (f32(3, 4, 8), i32(3)), {"params": (1,)}


@case
def embedding_times_a_matrix_of_inputs_that_is_tied():
    def fn(p, i, z):
        return jnp.einsum("bi,bij->bj", p[i], z) @ p.T

    return fn, f32(11, 8), (i32(3), f32(3, 8, 8)), {"params": ()}


@case
def one_table_of_a_stack_that_is_tied():
    def fn(p, i, z):
        return jnp.einsum("bi,bij->bj", p[0][i], z) @ p[0].T

    return fn, f32(2, 11, 8), (i32(3), f32(3, 8, 8)), {"params": Untold(())}


@case
def chosen_weight_with_a_penalty_on_it():
    fn = lambda p, x, i: (x @ p[i]).mean() + (p[i] ** 2).sum()  # noqa: E731
    return fn, f32(3, 8, 6), (X, i32()), {"params": Untold((1,))}


@case
def features_and_their_rows_that_data_chose():
    return lambda p, x, i: x[:, i] @ p[i], W, (X, i32(4)), {"params": Untold((0,))}


@case
def pair_of_one_hots_that_are_multiplied_before_they_are_summed():
    def fn(p, i, j):
        first, second = jax.nn.one_hot(i, 4), jax.nn.one_hot(j, 5)
        return (first[:, :, None, None] * p * second[:, None, :, None]).sum((1, 2))

    return fn, f32(4, 5, 6), (i32(3), i32(3)), {"params": ()}


@case
def mean_of_kernels_of_which_halves_change_places():
    return (
        lambda p, x: x @ jnp.roll(p.mean(0), 1, 0),
        f32(7, 2, 6),
        (f32(3, 2),),
        {"params": Untold((1,))},
    )


@case
def mean_of_kernels_of_which_rows_are_written_anew():
    def fn(p, x):
        mean = p.mean(0)
        return x @ jnp.zeros((2, 6)).at[0].set(mean[1]).at[1].set(mean[0])

    return fn, f32(7, 2, 6), (f32(3, 2),), {"params": Untold((1,))}


@case
def rows_of_a_layer_on_constants_that_are_scaled_before_the_next_layer():
    return (
        lambda p, i, x: (((K(9, 6) @ p["a"])[i] * x)[..., None] * p["w"]).sum(-2),
        {"a": f32(6, 7), "w": f32(7, 5)},
        (i32(3), f32(3, 7)),
        {"a": Untold((0,)), "w": Untold((0,))},
    )


# ---- Scales that look like weights.


def gained(h, gain, w):
    return (h * gain) @ w


@case
def gains_of_members_that_are_factors_times_each_other():
    return (
        lambda p, x: jax.vmap(gained, (None, 0, 0))(x, p["a"] @ p["b"], p["w"]),
        {"a": f32(3, 2), "b": f32(2, 8), "w": f32(3, 8, 6)},
        (X,),
        {"a": REFUSED, "b": REFUSED, "w": (1,)},
    )


@case
def gains_and_weights_of_members_on_constants():
    return (
        lambda p, x: jax.vmap(gained, (None, 0, 0))(x, p["gain"] @ K(5, 8), K(8, 7) @ p["w"]),
        {"gain": f32(3, 5), "w": f32(3, 7, 6)},
        (X,),
        {"gain": (), "w": (1,)},
    )


@case
def weight_with_noise_of_members_before_what_its_norm_scales():
    fn = lambda p, x, d: (x * jnp.linalg.norm(p)) @ (p + d)  # noqa: E731
    return (
        lambda p, x, d: jax.vmap(fn, (None, 0, 0))(p, x, d),
        W,
        (f32(3, 5, 8), f32(3, 8, 6)),
        {"params": Untold((0,))},
    )


@case
def scales_of_members_before_a_frozen_weight_that_is_an_input():
    return (
        lambda p, x, w: jax.vmap(lambda s: (x * s) @ w)(p),
        f32(3, 8),
        (X, W),
        {"params": Untold(())},
    )


@case
def slopes_of_a_rectifier_before_a_mean():
    """Keras's PReLU: a slope for each position and channel."""
    rectified = lambda p, x: jax.nn.relu(x) - p * jax.nn.relu(-x)  # noqa: E731
    return (
        lambda p, x: rectified(p["slope"], x).mean(1) @ p["w"],
        {"slope": f32(4, 8), "w": W},
        (SEQUENCE,),
        {"slope": Untold(()), "w": (0,)},
    )


@case
def bilinear_form_with_an_update_of_low_rank():
    """Its last axis is an output of `a` too, though it has none of it."""
    return (
        lambda p, x, y: jnp.einsum(
            "naf,na->nf", jnp.einsum("abf,nb->naf", p["w"] + p["a"] @ p["b"], y), x
        ),
        {"w": f32(8, 5, 6), "a": f32(8, 5, 2), "b": f32(2, 6)},
        (X, f32(3, 5)),
        {"w": Untold((0, 1)), "a": Untold((0, 1)), "b": (0,)},
    )


@case
def layers_chosen_for_each_member():
    """A cond under vmap: the weight that is not chosen is a constant there."""
    fn = lambda c, w, v, x: lax.cond(c, lambda w, v, x: x @ w, lambda w, v, x: x @ v, w, v, x)  # noqa: E731
    return (
        lambda p, c, x: jax.vmap(fn, (0, None, None, 0))(c, p["w"], jnp.tanh(K(8, 5) @ p["v"]), x),
        {"w": W, "v": f32(5, 6)},
        (jax.ShapeDtypeStruct((2,), bool), f32(2, 3, 8)),
        {"w": (0,), "v": Untold((0,))},
    )


@case
def nonlinear_edges_column_by_column():
    """sin(x * w) of each edge of a layer, as in a network of Kolmogorov and Arnold."""

    def fn(p, x):
        edges = jnp.moveaxis(jnp.sin(x[:, :, None] * p["w"]), -1, 0)
        return lax.map(lambda column: column[0] @ column[1], (edges, p["v"].T))

    return fn, {"w": W, "v": W}, (X,), {"w": REFUSED, "v": (0,)}


@case
def sum_of_scales_of_low_rank():
    """What is summed beside the inputs is a product of parameters, of which either is a weight."""
    return (
        lambda p, x: (x[:, :, None] * (p["a"] @ p["b"])).sum(-1),
        AB,
        (X,),
        {"a": REFUSED, "b": REFUSED},
    )


@case
def depthwise_weight_times_another_of_low_rank():
    return (
        lambda p, x: (x * (p["w"] * (p["a"] @ p["b"]))).sum(1),
        AB | {"w": W},
        (f32(3, 8, 6),),
        {"w": Untold((0,)), "a": Untold((0,)), "b": Untold((0,))},
    )


@case
def columns_of_a_weight_times_a_layer_on_constants():
    """The columns of one are a slice of the parameter, of the other one of the constants."""

    def fn(p, x):
        w = (p["v"] @ K(5, 6)) * p["w"]
        return lax.map(lambda column: x @ column, w.T)

    return fn, {"w": W, "v": f32(8, 5)}, (X,), {"w": Untold((0,)), "v": Untold((0,))}


@case
def rows_of_a_layer_on_constants_in_a_loop():
    """The loop adds up its products with inputs, one row of the constants at a time."""

    def fn(p, x):
        step = lambda h, row: (h + row[0][:, None] * row[1][:, None], None)  # noqa: E731
        h = lax.scan(step, jnp.zeros((4, 3, 6)), (x.T, jnp.moveaxis(K(8, 5) @ p, 1, 0)))
        return h[0].sum(0)

    return fn, f32(4, 5, 6), (X,), {"params": Untold((1,))}


@case
def rows_of_a_layer_on_constants_with_weights_made_from_inputs():
    """A network that begins with rows of constants; the inputs make the weights of the next."""
    return (
        lambda p, i, x: jnp.einsum("nk,nkf->nf", (K(9, 7) @ p)[i], x),
        f32(7, 6),
        (i32(3), f32(3, 6, 5)),
        {"params": Untold((0,))},
    )


@case
def rows_of_a_layer_on_constants_as_taps_in_what_data_chooses():
    def fn(p, x, w, some):
        taps = K(3, 2) @ p
        h = sum(jnp.roll(x, j, 1) * taps[j] for j in range(3))
        return jnp.where(some[:, None, None], h, 0.0) @ w

    return (
        fn,
        f32(2, 8),
        (SEQUENCE, W, jax.ShapeDtypeStruct((2,), bool)),
        {"params": Untold((0,))},
    )


@case
def norm_with_gains_of_positions_before_a_convolution():
    """As Keras writes it, x * s - mean * s, of which the second part has positions of s alone."""

    def fn(p, x):
        mean, var = x.mean((1, 2, 3), keepdims=True), x.var((1, 2, 3), keepdims=True)
        s = p["g"] * lax.rsqrt(var + 1e-3)
        return conv(x * s + (p["b"] - mean * s), p["k"])

    gains = f32(1, 9, 10, 4)
    return fn, {"g": gains, "b": gains, "k": f32(3, 3, 4, 5)}, (IMAGE,), {
        "g": (), "b": (), "k": (0, 1, 2),
    }  # fmt: skip


@case
def batch_norm_then_flattened_then_dropped():
    """Of mean * s nothing varies along the batch but the noise."""

    def fn(p, x):
        mean, var = x.mean((0, 1), keepdims=True), x.var((0, 1), keepdims=True)
        s = p["g"][None, None] * lax.rsqrt(var + 1e-3)
        h = (x * s + (p["b"][None, None] - mean * s)).reshape(2, -1)
        kept = jax.random.bernoulli(jax.random.key(0), 0.5, h.shape)
        return jnp.where(kept, h / 0.5, 0.0) @ p["w"]

    return fn, {"g": f32(8), "b": f32(8), "w": f32(32, 6)}, (SEQUENCE,), {
        "g": (), "b": (), "w": (0,),
    }  # fmt: skip


@case
def factors_of_each_input_between_constants():
    """The constants lead from one factor to the other, which is no scale of its inputs."""

    def fn(p, x):
        w = (p["a"] @ K(4, 7)) @ (p["b"] @ K(2, 3))
        return jnp.einsum("ntk,khd->nthd", x, w)

    return fn, {"a": f32(8, 2, 4), "b": f32(8, 7, 2)}, (SEQUENCE,), {"a": (0,), "b": Untold((0,))}


@case
def one_feature_of_a_network_on_constants():
    """What is left of the outputs is a slice of them."""
    return (
        lambda p, i: jnp.tanh(((K(9, 6) @ p["a"]) @ p["b"])[i][:, :1]),
        {"a": f32(6, 7), "b": f32(7, 2)},
        (i32(3),),
        {"a": (0,), "b": (0,)},
    )


@case
def frequencies_of_edges_that_are_weights_elsewhere():
    return (
        lambda p, x, y: (jnp.einsum("nio,io->no", jnp.sin(x[:, :, None] * p), K(8, 6)), y @ p),
        W,
        (X, X),
        {"params": REFUSED},
    )


@case
def masked_factor_column_by_column():
    """A mask of one column has no outputs of its own, as little as that column."""
    return (
        lambda p, x: lax.map(lambda column: x @ (p["a"] @ column), (p["b"] * (K(2, 6) > 0)).T),
        AB,
        (X,),
        {"a": Untold((0,)), "b": Untold((0,))},
    )


@case
def weights_made_for_each_example_then_gated():
    """Whatever multiplies them last, they are still contracted with data."""

    def fn(p, x, z, gate):
        w = (z @ p).reshape(3, 8, 6) * x[:, :, None]
        return (w * gate[:, None, None]).sum(1)

    return fn, f32(5, 48), (X, f32(3, 5), f32(3)), {"params": Untold((0,))}


@case
def factors_that_are_one_parameter_twice():
    """Neither is a statistic of the other, which would leave it what it is."""
    return (
        lambda p, x: x @ ((K(3, 6) @ p) @ p.T),
        f32(6, 4),
        (f32(2, 3),),
        {"params": REFUSED},
    )


@case
def one_hots_times_a_slice_of_a_table_before_a_network():
    """Of what was sliced before, data chose rows all the same."""

    def fn(p, i):
        h = jax.nn.one_hot(i, 9) @ (p["e"][1:-1] @ K(7, 4))
        return h @ ((K(4, 2) @ p["a"]) @ p["b"])

    weights = {"e": f32(11, 7), "a": f32(2, 7), "b": f32(7, 6)}
    return fn, weights, (i32(3),), {"e": Untold(()), "a": Untold((0,)), "b": (0,)}


@case
def taps_on_what_they_all_scaled_before():
    """They do not scale one after the other, as scales of residual branches do."""

    def fn(p, x):
        h = jnp.tanh((x[:, None] * p[None, :, None]).max(1))
        return jnp.tanh(sum(jnp.roll(h, j, 1) * p[j] for j in range(3)))

    return fn, f32(3, 8), (SEQUENCE,), {"params": REFUSED}


@case
def gain_before_rotated_positions():
    """A norm of queries, then rotations: the gain is there in two orders, a weight in neither."""

    def fn(p, x):
        h = x * p["g"][None, None]
        first, second = jnp.split(h, 2, -1)
        angles = K(1, 4, 8)
        return (h * angles + jnp.concatenate([-second, first], -1) * angles) @ p["w"]

    return fn, {"g": f32(8), "w": W}, (SEQUENCE,), {"g": (), "w": (0,)}


@case
def groups_by_a_product_and_a_sum_then_normalized():
    """The mean over groups meets what it is the mean of."""

    def fn(p, x):
        h = (x[..., None] * p[None]).sum(2)
        return jnp.tanh(h - h.mean(1, keepdims=True))

    return fn, f32(4, 8, 6), (f32(3, 4, 8),), {"params": (1,)}


@case
def rows_written_one_by_one():
    """Each is multiplied with one input, and they are added up."""

    def fn(p, x):
        w = jnp.zeros((3, 6))
        for i in range(3):
            w = w.at[i].set(p[2 - i])
        return jnp.tanh(x @ w)

    return fn, f32(3, 6), (f32(4, 3),), {"params": Untold((0,))}


@case
def rows_padded_and_added():
    return (
        lambda p, x: x @ (jnp.pad(p[:1], ((1, 0), (0, 0))) + jnp.pad(p[1:], ((0, 1), (0, 0)))),
        f32(2, 6),
        (f32(4, 2),),
        {"params": Untold((0,))},
    )


@case
def rows_of_a_product_with_constants_written_one_by_one():
    """The inputs meet the rows, and not the constants that the rows are made with."""

    def fn(p, x):
        rows = jnp.einsum("k,kio->io", K(7), p)
        return x @ jnp.zeros((2, 6)).at[0].set(rows[1]).at[1].set(rows[0])

    return fn, f32(7, 2, 6), (f32(4, 2),), {"params": Untold((1,))}


@case
def circulant_matrix():
    """Each row is the weight in another order, so that the inputs meet all of it."""
    return (
        lambda p, x: x @ jnp.stack([jnp.roll(p, k) for k in range(8)]),
        f32(8),
        (X,),
        {"params": Untold((0,))},
    )


@case
def columns_times_a_weight_rolled():
    return (
        lambda p, x: jnp.tanh(sum(x[:, k : k + 1] * jnp.roll(p, k) for k in range(8))),
        f32(8),
        (X,),
        {"params": Untold((0,))},
    )


@case
def latents_that_meet_keys_of_a_weight_that_is_refused():
    """That the keys are outputs of a weight says nothing about the queries' either."""

    def fn(p, x):
        keys = x @ jnp.concatenate([p["k"], p["k"][::-1]])
        return jax.nn.softmax((p["latents"] @ p["q"]) @ keys.T) @ x

    weights = {"k": f32(4, 5), "latents": f32(3, 6), "q": f32(6, 5)}
    return fn, weights, (f32(7, 8),), {"k": Untold((0,)), "latents": REFUSED, "q": REFUSED}


@case
def log_density():
    """A product of parameters that is added to data is a bias, as each of them is a part of it."""
    return (
        lambda p, x: -(((x / p["scale"] - p["mean"] / p["scale"]) ** 2) / 2).sum(-1),
        {"mean": f32(8), "scale": f32(8)},
        (X,),
        {"mean": (), "scale": ()},
    )


@case
def scale_of_a_weight_whose_rows_are_taken_in_another_order():
    """That the weight is refused makes no weight of its scale."""

    def fn(p, x):
        return jnp.tanh(x @ (jnp.take(p["w"], np.arange(8)[::-1], 0) * p["g"][:, None]))

    return fn, {"w": W, "g": f32(8)}, (X,), {"w": Untold((0,)), "g": Untold(())}


@case
def rows_written_one_by_one_then_rolled_along_another_axis():
    def fn(p, x):
        w = jnp.zeros((2, 2, 5)).at[0].set(p[1]).at[1].set(p[0])
        return jnp.einsum("bgk,gkf->bgf", x, jnp.roll(w, 1, 1)).max(1)

    return fn, f32(2, 2, 5), (f32(4, 2, 2),), {"params": Untold((1,))}


# ---- Parts of a weight that meet different inputs.


@case
def parts_of_the_fan_in_added_up():
    return (
        lambda p, x, y, z: jnp.tanh(x @ p[:3] + p[0, 0] + y @ p[3:5] - z @ p[5:]),
        W,
        (f32(4, 3), f32(4, 2), f32(4, 3)),
        {"params": Untold((0,))},
    )


@case
def parts_of_the_fan_in_and_a_bias_added_up():
    return (
        lambda p, x, y, z: jnp.tanh(x @ p["w"][:3] + p["b"] + y @ p["w"][3:5] - z @ p["w"][5:]),
        {"w": W, "b": f32(6)},
        (f32(4, 3), f32(4, 2), f32(4, 3)),
        {"w": (0,), "b": ()},
    )


@case
def parts_of_the_fan_in_that_lack_one():
    return (
        lambda p, x, y: jnp.tanh(x @ p[:3] + y @ p[3:5]),
        W,
        (f32(4, 3), f32(4, 2)),
        {"params": Untold((0,))},
    )


@case
def parts_of_the_fan_in_with_something_nonlinear_between():
    return (
        lambda p, x, y: jnp.tanh(jnp.tanh(x @ p[:3]) + y @ p[3:]),
        W,
        (f32(4, 3), f32(4, 5)),
        {"params": Untold((0,))},
    )


@case
def parts_of_the_fan_in_of_which_one_is_gated():
    return (
        lambda p, x, y, g: jnp.tanh((x @ p[:3]) * g + y @ p[3:]),
        W,
        (f32(4, 3), f32(4, 5), f32(4, 6)),
        {"params": Untold((0,))},
    )


@case
def parts_of_the_fan_in_with_another_weight_between():
    return (
        lambda p, x, y: jnp.tanh((x @ p["w"][:3]) @ p["v"] + y @ p["w"][3:]),
        {"w": W, "v": f32(6, 6)},
        (f32(4, 3), f32(4, 5)),
        {"w": Untold((0,)), "v": (0,)},
    )


@case
def parts_of_the_fan_in_one_after_the_other():
    """Two layers in one array, with a residual."""

    def fn(p, x):
        h = x @ p[:3]
        return h + jnp.tanh(h) @ p[3:]

    return fn, f32(9, 6), (f32(4, 3),), {"params": Untold((0,))}


@case
def parts_of_the_fan_in_with_the_outputs_of_one_in_another_order():
    return (
        lambda p, x, y: jnp.tanh(x @ p[:3] + (y @ p[3:])[:, ::-1]),
        W,
        (f32(4, 3), f32(4, 5)),
        {"params": Untold((0,))},
    )


@case
def parts_of_a_flipped_weight_that_overlap():
    """The first three rows of a flipped weight are its last three."""
    return (
        lambda p, x, y: jnp.tanh(x @ p[::-1][:3] + y @ p[3:]),
        W,
        (f32(4, 3), f32(4, 5)),
        {"params": Untold((0,))},
    )


@case
def parts_of_a_flipped_weight():
    return (
        lambda p, x, y: jnp.tanh(x @ p[::-1][:5] + y @ p[:3]),
        W,
        (f32(4, 5), f32(4, 3)),
        {"params": (0,)},
    )


@pytest.mark.parametrize("build", CASES, ids=[build.__name__ for build in CASES])
def test_a_weight_is_told_or_refused_by_no_more_than_the_computation_shows(build):
    fn, params, args, expected = build()
    assert answers(fn, params, *args) == outcomes(expected)
