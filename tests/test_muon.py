"""muon_dimension_numbers: against numbers written by hand, and Muon of every matrix by hand."""

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from mesh_support import mesh_of
from trace_support import f32, i32, linen, nnx_, promoting

from optax_gc import muon_dimension_numbers, roles_from_trace
from optax_gc._match import names, path_name

WIDTH, HEADS, SIZE = 8, 2, 4
LAYERS, VOCABULARY, HIDDEN, EXPERTS = 3, 11, 12, 5


class Block(nnx.Module):
    def __init__(self, rngs):
        self.norm = nnx.LayerNorm(WIDTH, rngs=rngs)
        self.attention = nnx.MultiHeadAttention(HEADS, WIDTH, decode=False, rngs=rngs)
        self.up = nnx.Linear(WIDTH, HIDDEN, rngs=rngs)
        self.down = nnx.Linear(HIDDEN, WIDTH, rngs=rngs)

    def __call__(self, x):
        x = x + self.attention(self.norm(x))
        return x + self.down(nnx.gelu(self.up(x)))


class Transformer(nnx.Module):
    def __init__(self, rngs):
        self.embed = nnx.Embed(VOCABULARY, WIDTH, rngs=rngs)
        self.block = Block(rngs)
        self.head = nnx.Linear(WIDTH, VOCABULARY, rngs=rngs)

    def __call__(self, tokens):
        return self.head(self.block(self.embed(tokens)))


class LinenBlock(nn.Module):
    @nn.compact
    def __call__(self, x, _):
        x = x + nn.MultiHeadDotProductAttention(HEADS, name="attention")(
            nn.LayerNorm(name="norm")(x)
        )
        return x + nn.Dense(WIDTH, name="down")(nn.gelu(nn.Dense(HIDDEN, name="up")(x))), None


class Stacked(nn.Module):
    @nn.compact
    def __call__(self, tokens):
        x = nn.Embed(VOCABULARY, WIDTH, name="embed")(tokens)
        layers = nn.scan(
            LinenBlock, variable_axes={"params": 0}, split_rngs={"params": True}, length=LAYERS
        )
        return nn.Dense(VOCABULARY, name="head")(layers(name="layers")(x, None)[0])


class ConvNet(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(8, (3, 5), name="conv")(x))
        x = nn.relu(nn.Conv(6, (3, 3), feature_group_count=2, name="grouped")(x))
        x = nn.relu(nn.Conv(6, (3, 3), feature_group_count=6, name="depthwise")(x))
        x = nn.relu(nn.Conv(10, (1, 1), name="pointwise")(x))
        return nn.Dense(1, name="value")(nn.BatchNorm(True, name="norm")(x).mean((1, 2)))


def mixture(params, x):
    """Two of the experts for each token, chosen by index."""
    gates, chosen = jax.lax.top_k(jax.nn.softmax(x @ params["router"]), 2)
    h = jax.nn.gelu(jnp.einsum("td,tkdf->tkf", x, params["up"][chosen]))
    y = jnp.einsum("tkf,tkfd->tkd", h, params["down"][chosen])
    return jnp.einsum("tkd,tk->td", y, gates) @ params["head"]


MIXTURE = {
    "router": f32(WIDTH, EXPERTS),
    "up": f32(EXPERTS, WIDTH, HIDDEN),
    "down": f32(EXPERTS, HIDDEN, WIDTH),
    "head": f32(WIDTH, 3),
}

# By hand: (reduction, output) of each matrix in the model; what is not here is for Adam.
MODELS = {
    "nnx transformer": (
        lambda: nnx_(lambda: Transformer(nnx.Rngs(0)), i32(3, 7)),
        ["head"],
        {f"block/attention/{name}/kernel": ((0,), (1, 2)) for name in ("query", "key", "value")}
        | {"block/attention/out/kernel": ((0, 1), (2,))}
        | {f"block/{name}/kernel": ((0,), (1,)) for name in ("up", "down")},
    ),
    "linen stack": (
        lambda: linen(Stacked(), i32(3, 7)),
        ["head"],
        {f"layers/attention/{name}/kernel": ((1,), (2, 3)) for name in ("query", "key", "value")}
        | {"layers/attention/out/kernel": ((1, 2), (3,))}
        | {f"layers/{name}/kernel": ((1,), (2,)) for name in ("up", "down")},
    ),
    "conv net": (
        lambda: linen(ConvNet(), f32(2, 9, 8, 3)),
        [],
        {"conv/kernel": ((0, 1, 2), (3,)), "pointwise/kernel": ((0, 1, 2), (3,))},
    ),
    "mixture of experts": (
        lambda: (mixture, MIXTURE, f32(7, WIDTH)),
        ["router", "head"],
        {"up": ((1,), (2,)), "down": ((1,), (2,))},
    ),
}


def traced(name):
    build, adam, by_hand = MODELS[name]
    with promoting():
        fn, params, *args = build()
        roles = roles_from_trace(fn, params, *args)
    return params, muon_dimension_numbers(roles, adam=adam), by_hand


def by_path(tree):
    leaves = jax.tree_util.tree_leaves_with_path(
        tree, is_leaf=lambda x: x is None or isinstance(x, optax.contrib.MuonDimensionNumbers)
    )
    return dict(zip(names(leaves), (leaf for _, leaf in leaves), strict=True))


def random_like(params, seed):
    leaves, treedef = jax.tree.flatten(params)
    rng = np.random.default_rng(seed)
    return treedef.unflatten([jnp.asarray(rng.normal(size=x.shape), x.dtype) for x in leaves])


def first_update(tx, gradients, params):
    return jax.jit(lambda g, p: tx.update(g, tx.init(p), p)[0])(gradients, params)


def muon(numbers, **kwargs):
    return optax.contrib.muon(0.1, nesterov=False, muon_weight_dimension_numbers=numbers, **kwargs)


def orthogonalized(x):
    """Five Newton-Schulz steps with the coefficients of Jordan et al."""
    transposed = x.shape[0] > x.shape[1]
    x = (x.T if transposed else x) / np.linalg.norm(x)
    for _ in range(5):
        a = x @ x.T
        x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
    return x.T if transposed else x


def muon_by_hand(gradients, reduction, output):
    """The updates of one array: the momentum of each matrix in it, orthogonalized and scaled."""
    shape = gradients[0].shape
    batch = [axis for axis in range(len(shape)) if axis not in reduction + output]
    order = [*batch, *reduction, *output]
    rows, columns = (int(np.prod([shape[a] for a in axes])) for axes in (reduction, output))
    momentum, updates = np.zeros(shape), []
    for g in gradients:
        momentum = 0.95 * momentum + 0.05 * np.asarray(g, np.float64)
        moved = momentum.transpose(order)
        update = np.empty(moved.shape)
        for index in np.ndindex(*(shape[a] for a in batch)):
            matrix = moved[index].reshape(rows, columns)
            step = -0.1 * np.sqrt(max(1, columns / rows)) * orthogonalized(matrix)
            update[index] = step.reshape(moved[index].shape)
        updates.append(update.transpose(np.argsort(order)))
    return updates


@pytest.mark.parametrize("name", MODELS)
def test_the_numbers_are_those_written_by_hand(name):
    params, numbers, by_hand = traced(name)
    found = {path: n and tuple(n) for path, n in by_path(numbers).items()}
    assert found == {path: by_hand.get(path) for path in by_path(params)}


@pytest.mark.parametrize("name", MODELS)
def test_the_updates_of_muon_are_those_of_each_matrix_by_hand(name, standard_promotion):
    params, numbers, by_hand = traced(name)
    params = random_like(params, 0)
    gradients = [random_like(params, seed) for seed in (1, 2, 3)]
    tx = muon(numbers)
    state, update = tx.init(params), jax.jit(tx.update)
    found = []
    for g in gradients:
        updates, state = update(g, state, params)
        found.append(by_path(updates))
    for path, (reduction, output) in by_hand.items():
        exact = muon_by_hand([by_path(g)[path] for g in gradients], reduction, output)
        np.testing.assert_allclose([step[path] for step in found], exact, rtol=0, atol=2e-5)


@pytest.mark.parametrize("name", MODELS)
def test_what_has_no_numbers_is_trained_by_adam(name, standard_promotion):
    params, numbers, by_hand = traced(name)
    params, gradients = random_like(params, 0), random_like(params, 1)
    tx, adam = muon(numbers), optax.adam(0.1)
    found, exact = (by_path(first_update(tx, gradients, params)) for tx in (tx, adam))
    rest = [path for path in found if path not in by_hand]
    assert rest
    for path in rest:
        np.testing.assert_allclose(found[path], exact[path], rtol=1e-5)


def test_updates_on_a_mesh_are_those_of_one_device(standard_promotion):
    params, numbers, _ = traced("mixture of experts")
    params, gradients = random_like(params, 0), random_like(params, 1)
    tx = muon(numbers)
    alone = first_update(tx, gradients, params)
    mesh = mesh_of(jax.sharding.AxisType.Auto)
    sharding = NamedSharding(mesh, P(None, mesh.axis_names[0]))
    params, gradients = (
        jax.tree.map(lambda x: jax.device_put(x, sharding) if x.ndim == 3 else x, tree)
        for tree in (params, gradients)
    )
    found = first_update(tx, gradients, params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), found, alone)


def test_nnx_optimizer_takes_the_numbers(standard_promotion):
    model = Transformer(nnx.Rngs(0))
    graph, params = nnx.split(model, nnx.Param)
    tokens = jnp.arange(21).reshape(3, 7) % VOCABULARY
    apply = lambda params, tokens: nnx.merge(graph, params)(tokens)  # noqa: E731
    numbers = muon_dimension_numbers(roles_from_trace(apply, params, tokens), adam="head")
    optimizer = nnx.Optimizer(model, muon(numbers), wrt=nnx.Param)
    before = np.asarray(model.block.attention.out.kernel[...])
    grads = nnx.jit(nnx.grad(lambda model: (model(tokens) ** 2).mean()))(model)
    nnx.jit(lambda optimizer, model, grads: optimizer.update(model, grads))(optimizer, model, grads)
    (step,) = muon_by_hand([grads.block.attention.out.kernel[...]], (0, 1), (2,))
    np.testing.assert_allclose(
        model.block.attention.out.kernel[...], before + step, rtol=0, atol=1e-4
    )


def test_an_equinox_module_of_numbers_goes_in_as_a_function(standard_promotion):
    model = eqx.nn.MLP(5, 3, 7, 1, key=jax.random.key(0))
    params, static = eqx.partition(model, eqx.is_inexact_array)
    apply = lambda params, x: jax.vmap(eqx.combine(params, static))(x)  # noqa: E731
    numbers = muon_dimension_numbers(roles_from_trace(apply, params, f32(4, 5)), adam="layers/1")
    assert by_path(numbers)["layers/0/weight"] == ((1,), (0,))
    assert by_path(numbers)["layers/1/weight"] is None
    tx, gradients = muon(lambda params: numbers), random_like(params, 1)
    updates = first_update(tx, gradients, params)
    (exact,) = muon_by_hand([gradients.layers[0].weight], (1,), (0,))
    np.testing.assert_allclose(updates.layers[0].weight, exact, atol=2e-5)


@pytest.mark.skipif(not hasattr(optax.contrib, "galore"), reason="Optax has no galore yet")
def test_galore_takes_the_numbers_of_a_model_without_copies(standard_promotion):
    case = linen(LinenBlock(), f32(3, 7, WIDTH), None)
    numbers = muon_dimension_numbers(roles_from_trace(*case))
    by_hand = {
        path.removeprefix("layers/"): tuple(tuple(a - 1 for a in axes) for axes in pair)
        for path, pair in MODELS["linen stack"][2].items()
    }
    params, gradients = random_like(case[1], 0), random_like(case[1], 1)
    theirs = jax.tree_util.tree_map_with_path(
        lambda path, _: (
            optax.contrib.GaLoreDimensionNumbers(*by_hand[name])
            if (name := path_name(path)) in by_hand
            else None
        ),
        params,
    )
    ours, exact = (
        first_update(tx, gradients, params)
        for n in (numbers, theirs)
        for tx in (optax.contrib.galore(0.1, rank=3, weight_dimension_numbers=n),)
    )
    jax.tree.map(np.testing.assert_array_equal, ours, exact)
    projected = by_path(ours)["attention/out/kernel"].reshape(WIDTH, WIDTH)
    assert np.linalg.matrix_rank(projected) == 3


def test_a_fused_projection_is_split_by_one_line():
    fn = lambda p, x: jnp.einsum("btd,dzhk->zbthk", x, p["qkv"])  # noqa: E731
    roles = roles_from_trace(fn, {"qkv": f32(8, 3, 2, 4)}, f32(2, 7, 8))
    assert muon_dimension_numbers(roles)["qkv"] == ((0,), (1, 2, 3))
    roles.fan_out["qkv"] = (2, 3)
    assert muon_dimension_numbers(roles)["qkv"] == ((0,), (2, 3))


ROLES = roles_from_trace(
    lambda p, x: jnp.tanh(x @ p["up"]) @ p["head"]["w"] + x @ p["header"],
    {"up": f32(5, 7), "head": {"w": f32(7, 3)}, "header": f32(5, 3)},
    f32(4, 5),
)


@pytest.mark.parametrize(
    ("adam", "left"), [("head", "head"), (["head/w"], "head"), (("header",), "header")]
)
def test_names_are_those_of_parameters_or_of_what_holds_them(adam, left):
    numbers = muon_dimension_numbers(ROLES, adam=adam)
    none = {path.split("/")[0] for path, n in by_path(numbers).items() if n is None}
    assert none == {left}


def test_a_name_of_nothing_is_refused_with_the_names_there_are():
    with pytest.raises(ValueError, match=r"adam has 'hea', .*'head/w', 'header', 'up'"):
        muon_dimension_numbers(ROLES, adam=["up", "hea"])


def test_an_axis_that_a_correction_puts_into_two_roles_is_refused():
    roles = jax.tree.map(lambda x: x, ROLES)
    roles.fan_out["up"] = (0, 1)
    with pytest.raises(ValueError, match=r"axes \(0,\) of 'up' are in both"):
        muon_dimension_numbers(roles)


def test_an_axes_tree_in_place_of_roles_is_refused():
    with pytest.raises(TypeError, match=r"roles is a dict\. Pass what roles_from_trace"):
        muon_dimension_numbers(ROLES.fan_in)
