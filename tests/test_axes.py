"""axes_from_rank, the reading of axes trees, and summary."""

import dataclasses
import functools
import re
from typing import Any

import equinox as eqx
import flax.core
import haiku as hk
import jax
import jax.numpy as jnp
import optax
import pytest
from flax import linen as nn

from optax_gc import (
    axes_from_rank,
    center_weights,
    centralize,
    rescale_weights,
    scale_by_trust_ratio,
    summary,
)
from optax_gc._axes import resolve


def shape(*dimensions, dtype=jnp.float32):
    return jax.ShapeDtypeStruct(dimensions, dtype)


def axes_of(tree, axes):
    return {leaf.path: leaf.axes for leaf in resolve(axes, tree)}


@pytest.mark.parametrize(
    ("leaf", "expected"),
    [
        (shape(), ()),
        (shape(5), ()),
        (shape(8, 5), (0,)),
        (shape(3, 2, 6), (0, 1)),
        (shape(3, 3, 2, 6), (0, 1, 2)),
        (shape(3, 3, 3, 2, 6), (0, 1, 2, 3)),
    ],
)
def test_rank_answers_all_axes_but_the_last(leaf, expected):
    assert axes_from_rank({"kernel": leaf}) == {"kernel": expected}


@pytest.mark.parametrize("name", ["bias", "embedding", "embeddings"])
def test_leaves_named_as_no_kernel_are_left_alone_at_any_rank(name):
    assert axes_from_rank({"layer": {name: shape(3, 4)}}) == {"layer": {name: ()}}


@pytest.mark.parametrize("name", ["query", "key", "value"])
def test_attention_projections_are_averaged_over_features_alone(name):
    assert axes_from_rank({name: {"kernel": shape(8, 2, 4)}}) == {name: {"kernel": (0,)}}


@pytest.mark.parametrize(
    "params",
    [
        {"query": {"other": {"kernel": shape(8, 2, 4)}}},
        {"query": {"w": shape(8, 2, 4)}},
        {"query": {"kernel": shape(2, 8, 2, 4)}},
    ],
    ids=["not under it", "no kernel", "of rank 4"],
)
def test_only_a_rank_three_kernel_right_under_query_is_taken_for_a_projection(params):
    axes = jax.tree.leaves(axes_from_rank(params), is_leaf=lambda x: isinstance(x, tuple))
    rank = len(jax.tree.leaves(params)[0].shape)
    assert axes == [tuple(range(rank - 1))]


def test_an_output_axis_that_is_asked_for_holds_for_attention_too():
    params = {"query": {"kernel": shape(8, 2, 4)}}
    assert axes_from_rank(params, output_axis=0) == {"query": {"kernel": (1, 2)}}


def test_rank_agrees_with_the_definition_on_every_parameter_of_flax_attention():
    layer = nn.MultiHeadDotProductAttention(num_heads=2, qkv_features=6)
    params = jax.eval_shape(layer.init, jax.random.key(0), jnp.ones((3, 5, 8)))["params"]
    assert {leaf.path: leaf.axes for leaf in resolve(axes_from_rank, params)} == {
        "query/kernel": (0,),
        "query/bias": (),
        "key/kernel": (0,),
        "key/bias": (),
        "value/kernel": (0,),
        "value/bias": (),
        "out/kernel": (0, 1),
        "out/bias": (),
    }


def test_output_axis_zero_is_the_layout_of_pytorch():
    params = {"conv": shape(6, 3, 2, 2), "linear": shape(5, 8)}
    assert axes_from_rank(params, output_axis=0) == {"conv": (1, 2, 3), "linear": (1,)}


def test_conv_only_keeps_rank_above_three_only():
    params = {"conv": shape(3, 3, 2, 6), "conv1d": shape(3, 2, 6), "dense": shape(8, 5)}
    only = {"conv": (0, 1, 2), "conv1d": (), "dense": ()}
    assert axes_from_rank(params, conv_only=True) == only


def test_rank_reports_an_output_axis_that_a_kernel_does_not_have():
    with pytest.raises(ValueError, match=r"output_axis=2 .*'dense/kernel' of shape \(8, 5\)"):
        axes_from_rank({"dense": {"kernel": shape(8, 5)}}, output_axis=2)


def test_negative_axes_count_from_the_end():
    assert axes_of({"w": shape(3, 4, 5)}, {"w": (-1, 0)}) == {"w": (0, 2)}


def test_axes_of_numpy_integers_are_axes():
    axis = jnp.argmax(jnp.array([0, 1])).item()
    import numpy as np

    assert axes_of({"w": shape(3, 4)}, {"w": (np.int64(axis),)}) == {"w": (1,)}


def test_a_prefix_reaches_the_kernels_below_it_and_not_their_biases():
    params = {"encoder": {"kernel": shape(8, 5), "bias": shape(5)}, "head": shape(5, 3)}
    assert axes_of(params, {"encoder": (0,), "head": ()}) == {
        "encoder/kernel": (0,),
        "encoder/bias": (),
        "head": (),
    }


def test_a_tuple_given_at_a_vector_itself_is_obeyed():
    assert axes_of({"w": shape(5)}, {"w": (0,)}) == {"w": (0,)}


def test_a_tuple_given_at_a_box_around_a_vector_is_obeyed():
    boxed = {"w": nn.Partitioned(jnp.ones(5), names=("x",)), "v": jnp.ones(2)}
    assert axes_of(boxed, {"w": (0,), "v": ()}) == {"w": (0,), "v": ()}


@pytest.mark.parametrize(
    "axes",
    [
        {"cls": (0, 1)},
        (0, 1),
        lambda params: jax.tree.map(lambda p: (0, 1), params),
        axes_from_rank,
    ],
    ids=["tree", "prefix", "function", "rank"],
)
def test_a_fan_in_of_one_is_left_alone_for_every_way_of_giving_axes(axes):
    assert axes_of({"cls": shape(1, 1, 8)}, axes) == {"cls": ()}


@pytest.mark.parametrize("dtype", [jnp.int32, jnp.bool_, jax.dtypes.float0])
def test_leaves_that_are_no_floats_are_left_alone(dtype):
    assert axes_of({"count": shape(3, 4, dtype=dtype)}, {"count": (0,)}) == {"count": ()}


def test_an_empty_array_is_left_alone():
    assert axes_of({"w": shape(0, 4)}, {"w": (0,)}) == {"w": ()}


PARAMS = {"body": {"bias": shape(8), "kernel": shape(3, 8)}, "head": {"kernel": shape(8, 10)}}


@pytest.mark.parametrize(
    ("axes", "facts"),
    [
        (
            {"body": (0,), "head": {"kernel": (0, 5)}},
            ["axes (0, 5)", "'head/kernel'", "(8, 10)", "-2 to 1", "()"],
        ),
        (
            {"body": (0,), "head": {"kernel": (-3,)}},
            ["axes (-3,)", "'head/kernel'", "(8, 10)"],
        ),
        (
            {"body": (0,), "head": {"kernel": (0, -2)}},
            ["axes (0, -2)", "'head/kernel'", "(8, 10)", "twice", "Use (0,)"],
        ),
        ({"body": {"bias": (1,), "kernel": ()}, "head": ()}, ["'body/bias'", "(8,)", "-1 to 0"]),
        ({"body": (0,)}, ["no entry for 'head/kernel' of shape (8, 10)", "()"]),
        ({"body": (0,), "haed": (0,)}, ["'head/kernel'", "'haed'", "'body', 'head'"]),
        ({"body": (0,), "head": (0,), "x": ()}, ["'x'", "name no parameter"]),
        ({"body": (0,), "head": {"kernel": 0}}, ["'head/kernel' of shape (8, 10) is 0", "(0,)"]),
        ({"body": (0,), "head": {"kernel": [0]}}, ["'head/kernel' of shape (8, 10) is [0]"]),
        ({"body": (0,), "head": {"kernel": None}}, ["'head/kernel'", "is None", "()"]),
        ({"body": (0,), "head": {"kernel": (True,)}}, ["'head/kernel'", "(True,)"]),
        ({"body": (0,), "head": {"kernel": (0.5,)}}, ["'head/kernel'", "(0.5,)"]),
        ("kernel", ["is 'kernel'", "(0,)"]),
        (None, ["is None", "(0,)"]),
        (lambda params: None, ["<lambda> returned", "None", "(0,)"]),
        (lambda params: {"body": "kernel", "head": ()}, ["<lambda> returned", "'kernel'"]),
    ],
)
def test_init_reports_the_parameter_both_facts_and_the_mend(axes, facts):
    with pytest.raises(ValueError) as error:
        centralize(axes).init(PARAMS)
    assert [fact for fact in facts if fact not in str(error.value)] == []


def test_an_empty_container_among_the_axes_names_no_parameter_and_is_no_mistake():
    assert axes_of({"w": shape(3, 4)}, {"w": (0,), "unused": {}}) == {"w": (0,)}


def test_a_long_list_of_missing_entries_is_cut_short():
    params = {f"layer{i}": {"kernel": shape(3, 4)} for i in range(9)}
    with pytest.raises(ValueError, match="and 5 more"):
        centralize({"layer0": ()}).init(params)


def test_summary_lists_each_parameter_and_the_reason_it_is_left_alone_for():
    params = {
        "bias": shape(5),
        "cls": shape(1, 1, 8),
        "count": shape(2, 3, dtype=jnp.int32),
        "embedding": shape(7, 5),
        "kernel": shape(3, 8, 5),
    }
    assert summary(params).splitlines() == [
        "parameter  shape      axes    fan-in  why left alone",
        "bias       (5,)       ()      -       rank 1",
        "cls        (1, 1, 8)  ()      -       fan-in of one",
        "count      (2, 3)     ()      -       dtype int32",
        "embedding  (7, 5)     ()      -       name",
        "kernel     (3, 8, 5)  (0, 1)  24",
        "120 of 174 parameters (69.0 %) are centralized, in 1 of 5 arrays.",
    ]


def test_summary_tells_what_was_given_as_nothing():
    last_row = summary({"w": shape(3, 4)}, {"w": ()}).splitlines()[-2]
    assert last_row == "w          (3, 4)  ()    -       ()"


def test_summary_shows_its_lines_at_a_prompt_and_in_a_notebook():
    text = summary({"w": shape(3, 4)})
    assert repr(text) == str(text)


def test_summary_takes_a_partial_of_the_rank_rule():
    text = summary({"w": shape(5, 8)}, functools.partial(axes_from_rank, output_axis=0))
    assert "(1,)" in text


def test_a_partial_registered_as_a_tree_is_still_a_function():
    axes = jax.tree_util.Partial(axes_from_rank, output_axis=0)
    assert axes_of(flax.core.freeze({"w": shape(5, 8)}), axes) == {"w": (1,)}


@pytest.mark.parametrize(
    ("params", "expected"),
    [
        ({"a": shape(8, 5), "b": shape(5, 3)}, {"a": (0,), "b": (0,)}),
        ({"b": shape(5, 3)}, {"b": (0,)}),
        ({"w": shape(8, 2, 4), "b": shape(2, 4)}, {"w": (0, 1), "b": ()}),
        ({"w": shape(7, 8, 4), "b": shape(7, 4)}, {"w": (0, 1), "b": ()}),
        ({"w": shape(3, 3, 2, 6), "b": shape(6, 1, 1)}, {"w": (0, 1, 2), "b": ()}),
        ({"w": shape(3, 3, 2, 6), "b": shape(6, 5)}, {"w": (0, 1, 2), "b": (0,)}),
        ({"norm": {"scale": shape(7, 8)}}, {"norm": {"scale": ()}}),
        ({"ln_1": {"scale": shape(7, 8)}}, {"ln_1": {"scale": ()}}),
        (
            {"x": {"scale": shape(7, 8), "offset": shape(7, 8)}},
            {"x": {"scale": (), "offset": ()}},
        ),
        ({"x": {"scale": shape(7, 8), "bias": shape(7, 8)}}, {"x": {"scale": (), "bias": ()}}),
        ({"scale": shape(7, 8)}, {"scale": (0,)}),
    ],
    ids=str,
)
def test_b_scale_and_offset_are_no_kernels_only_beside_what_they_belong_to(params, expected):
    assert axes_from_rank(params, output_axis=-1) == expected


@pytest.mark.parametrize(
    "params",
    [
        [(shape(5, 8), shape(5)), (shape(3, 5), shape(3))],
        [shape(5, 8), shape(5), shape(3, 5), shape(3)],
        {"W1": shape(5, 8), "b1": shape(5)},
        {"c_attn": {"kernel": shape(24, 8), "bias": shape(24)}},
        {"layers": {"w": shape(3, 8, 5), "b": shape(3, 5)}},
        {"layers": {"weight": shape(3, 5, 8), "bias": shape(3, 5)}},
        {"heads": {"kernel": shape(8, 2, 4), "bias": shape(2, 4)}},
        {"up": {"w": shape(3, 3, 5, 2), "b": shape(5)}},
        {"up": {"weight": shape(5, 2, 3, 3), "bias": shape(2)}},
        {"in_proj_weight": shape(3, 5, 8), "in_proj_bias": shape(3, 5)},
    ],
    ids=[
        "pairs (out, in)",
        "a list (out, in)",
        "numbered",
        "a kernel (out, in)",
        "stacked",
        "a stacked weight",
        "split into heads",
        "transposed",
        "PyTorch's transposed",
        "stacked projections",
    ],
)
@pytest.mark.parametrize(
    "use",
    [
        axes_from_rank,
        lambda params: centralize().init(params),
        lambda params: centralize(axes_from_rank()).init(params),
        lambda params: jax.eval_shape(rescale_weights().init, params),
        lambda params: scale_by_trust_ratio().init(params),
        lambda params: jax.eval_shape(center_weights, params),
    ],
    ids=["rank", "init", "of a rule", "rescale", "trust ratio", "center"],
)
def test_a_bias_that_does_not_fit_the_outputs_told_by_rank_is_warned_of(use, params):
    with pytest.warns(UserWarning, match=r"(?s)its bias is .*axes_from_rank\(output_axis=0\)"):
        use(params)


@pytest.mark.parametrize(
    "params",
    [
        [(shape(8, 5), shape(5)), (), (shape(5, 3), shape(3))],
        {"w": shape(8, 5), "b": shape(4)},
        {"w": shape(8, 5), "b": shape(1)},
        {"w": shape(8, 5), "scale": shape(8)},
        {"query": {"kernel": shape(8, 2, 4), "bias": shape(2, 4)}},
        {"gru": {"kernel": shape(8, 15), "recurrent_kernel": shape(5, 15), "bias": shape(2, 15)}},
        {"conv": {"weight": shape(6, 3, 2, 2), "bias": shape(6, 1, 1)}},
        {"dense": {"kernel": shape(8, 1), "bias": shape(1)}},
    ],
    ids=["pairs", "other", "of one", "scale", "heads", "Keras's GRU", "convolution", "one output"],
)
def test_a_bias_that_fits_or_belongs_elsewhere_is_not_warned_of(params):
    axes_from_rank(params)
    centralize().init(params)


def test_an_update_does_not_warn_again():
    params = {"w": jnp.ones((5, 8)), "b": jnp.ones(5)}
    centralize().update(params, optax.EmptyState())


def test_an_output_axis_that_is_given_settles_what_a_bias_says():
    params = {"w": shape(5, 8), "b": shape(5)}
    assert axes_from_rank(params, output_axis=-1) == {"w": (0,), "b": ()}
    assert axes_from_rank(params, output_axis=0) == {"w": (1,), "b": ()}


def test_summary_says_below_its_table_which_biases_do_not_fit():
    text = summary({"w": shape(5, 8), "b": shape(5)})
    assert "averaged over (0,), which leaves (8,), and its bias is (5,)" in text
    assert "its bias is" in text._repr_html_()
    assert "bias" not in summary({"w": shape(5, 8), "b": shape(5)}, {"w": (1,), "b": ()})


@pytest.mark.parametrize("name", ["rel_pos_bias", "in_proj_bias", "relative_attention_bias"])
def test_a_name_that_ends_in_bias_is_a_bias_at_any_rank(name):
    assert axes_from_rank({"layer": {name: shape(3, 4)}}) == {"layer": {name: ()}}


def test_names_of_a_state_dict_of_pytorch_are_paths():
    params = {"conv.weight": shape(6, 3, 2, 2), "ln.weight": shape(4, 2), "ln.bias": shape(4, 2)}
    params |= {"wte.weight": shape(11, 8), "head.weight": shape(11, 8), "head.bias": shape(11)}
    assert {name: axes for name, axes in axes_from_rank(params).items() if axes} == {
        "conv.weight": (1, 2, 3),
        "head.weight": (1,),
    }


@pytest.mark.parametrize("use", [lambda model: model, eqx.filter_jit(lambda model: model)])
def test_a_table_of_equinox_is_known_by_its_class_whatever_its_name(use):
    class Model(eqx.Module):
        words: eqx.nn.Embedding
        out: eqx.nn.Linear

    key = jax.random.key(0)
    model = Model(eqx.nn.Embedding(11, 8, key=key), eqx.nn.Linear(8, 5, use_bias=False, key=key))
    axes = axes_from_rank(use(model))
    assert (axes.words.weight, axes.out.weight) == ((), (1,))


@pytest.mark.parametrize(
    "path",
    [
        "wte",
        "wpe",
        "embed",
        "pos_embedding",
        "pos_embed",
        "token_embed/table",
        "tok_emb",
        "embedder/input_embedding",
        "position_embeddings/0",
        "posEmbed",
        "cls_token",
        "mask_tokens",
        "positions",
        "codebook",
        "relative_position_bias_table",
        "registers",
        "embed/weight",
        "wte/weight",
        "transformer/wte/embedding",
    ],
)
def test_tables_are_known_by_the_names_that_libraries_give_them(path):
    params = shape(11, 8)
    for name in reversed(path.split("/")):
        params = {name: params}
    assert list(axes_of(params, axes_from_rank).values()) == [()]


@pytest.mark.parametrize(
    ("path", "rank"),
    [
        ("embedding/kernel", 4),
        ("time_embed/linear/kernel", 2),
        ("embed/w", 2),
        ("patch_embed/weight", 4),
        ("patch_embed/weight", 2),
        ("embed/weight", 4),
        ("token_mixing/dense/kernel", 2),
        ("tokens_mixer/layers/weight", 2),
        ("member/w1", 2),
    ],
)
def test_kernels_near_such_names_are_kernels(path, rank):
    params = shape(*range(3, 3 + rank))
    for name in reversed(path.split("/")):
        params = {name: params}
    assert len(*axes_of(params, axes_from_rank).values()) == rank - 1


def test_a_weight_beside_a_bias_in_something_called_embedding_is_dense():
    params = {"embed": {"weight": shape(6, 8), "bias": shape(6)}}
    assert axes_from_rank(params) == {"embed": {"weight": (1,), "bias": ()}}


def test_a_table_is_left_alone_for_its_name():
    last_row = summary({"wte": shape(11, 8)}).splitlines()[-2]
    assert last_row.split() == ["wte", "(11,", "8)", "()", "-", "name"]


@pytest.mark.parametrize("name", ["weight", "weight_ih", "weight_hh", "in_proj_weight"])
def test_a_weight_is_in_the_layout_of_pytorch(name):
    assert axes_from_rank({"layer": {name: shape(6, 3, 2)}}) == {"layer": {name: (1, 2)}}


def test_the_weight_of_a_norm_over_several_axes_is_left_alone():
    params = {"norm": {"weight": shape(8, 4), "bias": shape(8, 4)}}
    assert axes_from_rank(params) == {"norm": {"weight": (), "bias": ()}}


def test_an_output_axis_that_is_given_holds_for_a_weight_too():
    assert axes_from_rank({"weight": shape(6, 3, 2)}, output_axis=-1) == {"weight": (0, 1)}


def test_rank_agrees_with_the_definition_on_a_model_of_equinox():
    key = jax.random.key(0)
    model = {
        "embed": eqx.nn.Embedding(11, 8, key=key),
        "conv": eqx.nn.Conv2d(3, 6, 2, key=key),
        "attention": eqx.nn.MultiheadAttention(2, 8, key=key),
        "norm": eqx.nn.LayerNorm((4, 8)),
        "cell": eqx.nn.GRUCell(8, 5, key=key),
        "head": eqx.nn.Linear(8, 3, use_bias=False, key=key),
    }
    params = eqx.filter(model, eqx.is_inexact_array)
    assert {path: axes for path, axes in axes_of(params, axes_from_rank).items() if axes} == {
        "attention/query_proj/weight": (1,),
        "attention/key_proj/weight": (1,),
        "attention/value_proj/weight": (1,),
        "attention/output_proj/weight": (1,),
        "cell/weight_ih": (1,),
        "cell/weight_hh": (1,),
        "conv/weight": (1, 2, 3),
        "head/weight": (1,),
    }


def test_rank_agrees_with_the_definition_on_a_model_of_haiku(standard_promotion):
    def forward(tokens, image):
        h = hk.Embed(11, 8)(tokens)
        attention = hk.MultiHeadAttention(2, 4, w_init=hk.initializers.VarianceScaling())
        h = hk.LayerNorm(-1, True, True)(attention(h, h, h))
        image = hk.BatchNorm(True, True, 0.9)(hk.Conv2D(6, 3, data_format="NCHW")(image), True)
        return hk.Linear(3)(h), image

    arguments = jnp.ones((2, 5), int), jnp.ones((2, 3, 9, 9))
    params, _ = jax.eval_shape(
        hk.transform_with_state(forward).init, jax.random.PRNGKey(0), *arguments
    )
    assert {path: axes for path, axes in axes_of(params, axes_from_rank).items() if axes} == {
        "multi_head_attention/query/w": (0,),
        "multi_head_attention/key/w": (0,),
        "multi_head_attention/value/w": (0,),
        "multi_head_attention/linear/w": (0,),
        "conv2_d/w": (0, 1, 2),
        "linear/w": (0,),
    }


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Named:
    """An array in a box, as Penzai's and Haliax's named arrays are."""

    data_array: Any


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Variable:
    """A variable, as Penzai's parameters are."""

    value: Any


def test_names_of_boxes_around_an_array_are_not_its_name():
    def boxed(x):
        return Variable(Named(x))

    params = {"bias": boxed(shape(7, 5)), "weights": boxed(shape(8, 5))}
    axes = axes_from_rank(params)
    assert axes == {"bias": boxed(()), "weights": boxed((0,))}


def test_without_params_the_rank_rule_is_a_function_of_them():
    params = {"kernel": shape(3, 8, 5)}
    assert axes_of(params, axes_from_rank(output_axis=0)) == {"kernel": (1, 2)}
    assert axes_of(params, axes_from_rank(conv_only=True)) == {"kernel": ()}


def test_what_conv_only_leaves_alone_is_left_alone_for_its_rank():
    text = summary({"kernel": shape(3, 8, 5)}, axes_from_rank(conv_only=True))
    assert text.splitlines()[1].endswith("rank 3")


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Attention:
    query: Any
    value: Any


def test_a_parameter_called_value_keeps_its_name():
    params = {"layer": Attention(shape(8, 5), shape(8, 4))}
    assert axes_of(params, (0,)) == {"layer/query": (0,), "layer/value": (0,)}


def test_summary_is_a_table_in_a_notebook():
    html = summary({"w<1>": shape(3, 4), "b": shape(4)})._repr_html_()
    rows = re.findall("<tr.*?</tr>", html)
    assert [re.sub("<.*?>", " ", row).split()[0] for row in rows] == [
        "parameter",
        "b",
        "w&lt;1&gt;",
    ]
    assert "color" not in rows[0]
    assert len({*re.findall("color:#[0-9a-f]+", html)}) == 2
    assert "12 of 16 parameters" in html
