"""axes_from_rank, the reading of axes trees, and summary."""

import functools

import flax.core
import jax
import jax.numpy as jnp
import pytest
from flax import linen as nn

from optax_gc import axes_from_rank, centralize, summary
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


@pytest.mark.parametrize("name", ["bias", "b", "scale", "offset", "embedding", "embeddings"])
def test_leaves_named_as_no_kernel_are_left_alone_at_any_rank(name):
    assert axes_from_rank({"layer": {name: shape(3, 4)}}) == {"layer": {name: ()}}


@pytest.mark.parametrize("name", ["query", "key", "value"])
def test_attention_projections_are_averaged_over_features_alone(name):
    assert axes_from_rank({name: {"kernel": shape(8, 2, 4)}}) == {name: {"kernel": (0,)}}


@pytest.mark.parametrize(
    "params",
    [
        {"query": {"other": {"kernel": shape(8, 2, 4)}}},
        {"query": {"weight": shape(8, 2, 4)}},
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
