"""What axes_from_trace says when it cannot tell, and when it is used wrongly; and explain."""

import re
import warnings
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from flax.core import FrozenDict
from trace_support import f32, i32

from optax_gc._axes import resolve
from optax_gc._trace import axes_from_trace, explain

X = f32(3, 8)
MERGED = {"w": f32(8, 6), "lora": {"a": f32(6, 2), "b": f32(2, 4)}, "bias": f32(6)}


def merged(params, x):
    with jax.named_scope("Merged"):
        h = x @ params["w"] + params["bias"][None]
        # Three layers in a row, or scores of queries that are learned.
        return h @ (params["lora"]["a"] @ params["lora"]["b"])


def message_of(fn, params, *args):
    with pytest.raises(ValueError) as error:
        axes_from_trace(fn, params, *args)
    return str(error.value)


def skipped(fn, params, *args):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        axes = axes_from_trace(fn, params, *args, on_unresolved="skip")
    return axes, [str(w.message) for w in caught]


def pasted(message, axes, params=None, *, alternative=False):
    """Runs the lines that a message offers, or the first alternative that they name."""
    lines = [line for line in message.splitlines() if line.startswith("  axes")]
    if alternative:
        lines = [
            re.sub(r"(= |old: )\(\)", rf"\1{re.search('# or (.*?[)])', line)[1]}", line)
            for line in lines
        ]
    scope = {"axes": axes, "jax": jax, "params": params}
    exec("\n".join(line.strip() for line in lines), scope)
    return scope["axes"]


def test_all_unresolved_parameters_are_listed_at_once_and_no_others():
    message = message_of(merged, MERGED, X)
    assert "2 of 4 parameters" in message
    assert re.findall(r"'(.*)' of shape", message) == ["lora/a", "lora/b"]


def test_an_unresolved_parameter_is_shown_with_shape_reason_place_and_candidates():
    message = message_of(merged, MERGED, X)
    assert "'lora/a' of shape (6, 2): contracted with another parameter" in message
    assert "dot_general in Merged" in message
    assert "candidates (0,)" in message


def test_the_lines_to_paste_leave_alone_what_cannot_be_told():
    axes, _ = skipped(merged, MERGED, X)
    axes = pasted(message_of(merged, MERGED, X), axes)
    assert axes == {"w": (0,), "lora": {"a": (), "b": ()}, "bias": ()}


def test_the_error_ends_with_lines_that_settle_it():
    axes, _ = skipped(merged, MERGED, X)
    axes = pasted(message_of(merged, MERGED, X), axes, alternative=True)
    assert axes == {"w": (0,), "lora": {"a": (0,), "b": (0,)}, "bias": ()}


def test_a_line_to_paste_names_the_other_candidates_too():
    fn = lambda p, x: jnp.tanh(x @ p["w"]) @ p["w"].T  # noqa: E731
    lines = message_of(fn, {"w": f32(8, 6)}, X).splitlines()
    assert "  axes['w'] = ()  # or (0,) or (1,), if that is its fan-in" in lines


def test_the_lines_settle_an_nnx_state():
    class Tied(nnx.Module):
        def __init__(self, rngs):
            self.layer = nnx.Linear(8, 5, rngs=rngs)

        def __call__(self, x):
            return self.layer(x) @ self.layer.kernel[...].T

    graphdef, state = nnx.split(nnx.eval_shape(lambda: Tied(nnx.Rngs(0))))
    fn = lambda state, x: nnx.merge(graphdef, state)(x)  # noqa: E731
    axes, _ = skipped(fn, state, X)
    axes = pasted(message_of(fn, state, X), axes, alternative=True)
    assert [(leaf.path, leaf.axes) for leaf in resolve(axes, state)] == [
        ("layer/bias", ()),
        ("layer/kernel", (0,)),
    ]


def test_the_lines_settle_an_equinox_module():
    module = eqx.filter_eval_shape(eqx.nn.MLP, 8, 8, 8, 1, key=jax.random.key(0))
    params, static = eqx.partition(module, lambda x: isinstance(x, jax.ShapeDtypeStruct))
    fn = lambda params, x: eqx.combine(params, static)(x) @ params.layers[0].weight  # noqa: E731
    axes, _ = skipped(fn, params, f32(8))
    axes = pasted(message_of(fn, params, f32(8)), axes, params, alternative=True)
    assert axes.layers[0].weight == (0,)
    assert axes.layers[1].weight == (1,)


def test_the_lines_settle_a_list():
    fn = lambda params, x: jnp.tanh(x @ params[0]) @ params[0].T  # noqa: E731
    axes, _ = skipped(fn, [f32(8, 5)], X)
    assert pasted(message_of(fn, [f32(8, 5)], X), axes, alternative=True) == [(0,)]


class Two(NamedTuple):
    w: Any
    b: Any


@pytest.mark.parametrize(
    "params",
    [FrozenDict({"w": f32(8, 5)}), (f32(8, 5),), Two(f32(8, 5), None), {"in": (f32(8, 5),)}],
    ids=["FrozenDict", "tuple", "NamedTuple", "tuple in a dict"],
)
def test_the_line_settles_what_cannot_be_assigned_to(params):
    def fn(params, x):
        (w,) = jax.tree.leaves(params)
        return jnp.tanh(x @ w) @ w.T

    axes, _ = skipped(fn, params, X)
    axes = pasted(message_of(fn, params, X), axes, params, alternative=True)
    assert jax.tree.structure(axes, is_leaf=lambda x: x == (0,)) == jax.tree.structure(params)


def test_the_line_settles_a_single_array():
    fn = lambda w, x: jnp.tanh(x @ w) @ w.T  # noqa: E731
    assert message_of(fn, f32(8, 5), X).splitlines()[-1].startswith("  axes = ()  # or (0,)")


def test_of_a_whole_model_refused_ten_are_shown_and_the_rest_counted():
    params = {f"w{i:02}": f32(8, 8) for i in range(31)}
    fn = lambda p, x: x @ sum(jnp.linalg.cholesky(w) for w in p.values())  # noqa: E731
    message = message_of(fn, params, X)
    assert re.findall(r"'(w\d+)' of shape", message) == [f"w{i:02}" for i in range(10)]
    assert len(re.findall(r"^  axes", message, re.MULTILINE)) == 10
    assert message.count("and 21 more") == 2


def test_skip_warns_once_and_names_what_it_leaves_alone():
    axes, messages = skipped(merged, MERGED, X)
    assert axes == {"w": (0,), "lora": {"a": (), "b": ()}, "bias": ()}
    assert len(messages) == 1
    assert "'lora/a'" in messages[0] and "'lora/b'" in messages[0]


def test_nothing_is_said_when_everything_is_resolved():
    _, messages = skipped(lambda p, x: x @ p["w"], {"w": f32(8, 5)}, X)
    assert messages == []


def test_a_batch_of_one_is_named_where_it_hides_what_is_repeated():
    fn = lambda p, x: jnp.broadcast_to(p["probe"], (len(x), 4, 8)) @ p["w"] + x[:, None]  # noqa: E731
    params = {"probe": f32(4, 8), "w": f32(8, 6)}
    assert "args[0] of shape (1, 6)" in message_of(fn, params, f32(1, 6))
    assert axes_from_trace(fn, params, f32(2, 6)) == {"probe": (), "w": (0,)}


def test_the_answer_is_shaped_like_the_parameters():
    params = FrozenDict({"a": f32(8, 5), "b": None, "c": optax.MaskedNode(), "d": [f32(5)]})
    axes = axes_from_trace(lambda p, x: x @ p["a"] + p["d"][0][None], params, X)
    assert axes == FrozenDict({"a": (0,), "b": None, "c": optax.MaskedNode(), "d": [()]})


def test_an_nnx_state_of_axes_fits_the_state_of_parameters():
    graphdef, state = nnx.split(nnx.eval_shape(lambda: nnx.Linear(8, 5, rngs=nnx.Rngs(0))))
    axes = axes_from_trace(lambda state, x: nnx.merge(graphdef, state)(x), state, X)
    assert isinstance(axes, nnx.State)
    assert [(leaf.path, leaf.axes) for leaf in resolve(axes, state)] == [
        ("bias", ()),
        ("kernel", (0,)),
    ]


def test_integer_and_scalar_parameters_are_left_alone():
    params = {"w": f32(8, 5), "count": i32(), "scale": 2.0}
    axes = axes_from_trace(lambda p, x: x @ p["w"] * p["scale"], params, X)
    assert axes == {"w": (0,), "count": (), "scale": ()}


def test_keyword_arguments_and_what_is_no_array_go_to_fn():
    def fn(params, x, activation, *, train, mask):
        assert train is True
        return activation(x @ params["w"]) * mask

    axes = axes_from_trace(fn, {"w": f32(8, 5)}, X, jnp.tanh, train=True, mask=f32(3, 5))
    assert axes == {"w": (0,)}


def test_nothing_is_computed_and_nothing_allocated():
    fn = lambda p, x: x @ p["w"]  # noqa: E731
    assert axes_from_trace(fn, {"w": f32(10**6, 10**7)}, f32(10**6, 10**6)) == {"w": (0,)}


@pytest.mark.parametrize("call", [axes_from_trace, explain])
@pytest.mark.parametrize(
    ("fn", "params", "args", "error", "says"),
    [
        ({"w": 1}, {"w": f32(8, 5)}, (X,), TypeError, "cannot be called"),
        (lambda p: p["w"], {"w": f32(8, 5)}, (X,), ValueError, "failed while it was traced"),
        (lambda p, x: x @ p["w"], {"w": f32(7, 5)}, (X,), ValueError, "failed while it was traced"),
        (
            lambda p, x: (x @ p["w"], "logits"),
            {"w": f32(8, 5)},
            (X,),
            ValueError,
            "(?s)returned a value of type <class 'str'>.*has to return arrays",
        ),
        (lambda p, x: jnp.argmax(x @ p["w"], -1), {"w": f32(8, 5)}, (X,), ValueError, "int32"),
        (lambda p, x: None, {"w": f32(8, 5)}, (X,), ValueError, "nothing"),
        (lambda p, x: x, {"w": f32(8, 5), "act": jnp.tanh}, (X,), TypeError, "'act' in params"),
        (
            jax.grad(lambda p, x: (x @ p["w"] + p["b"][None]).sum()),
            {"w": f32(8, 5), "b": f32(5)},
            (X,),
            ValueError,
            "looks like gradients",
        ),
        (
            jax.value_and_grad(lambda p, x: (x @ p["w"] + p["b"][None]).sum()),
            {"w": f32(8, 5), "b": f32(5)},
            (X,),
            ValueError,
            "looks like gradients",
        ),
    ],
    ids=[
        "no function",
        "arity",
        "shapes",
        "text",
        "integers",
        "nothing",
        "no array",
        "grad",
        "value",
    ],
)
def test_wrong_use_is_said_to_be_wrong(call, fn, params, args, error, says):
    with pytest.raises(error, match=says):
        call(fn, params, *args)


def test_an_unknown_choice_for_what_is_unresolved_is_said_to_be_wrong():
    with pytest.raises(ValueError, match="neither 'raise' nor 'skip'"):
        axes_from_trace(lambda p, x: x @ p, f32(8, 5), X, on_unresolved="ignore")


def test_explain_has_a_line_for_each_use():
    def fn(params, tokens, image):
        h = jnp.tanh(params["table"][tokens] @ params["dense"] + params["bias"][None, None])
        w = jax.lax.conv_general_dilated(image, params["kernel"], (1, 1), "VALID")
        return h @ params["table"].T + w.sum() + (params["a"] @ params["b"]).sum()

    params = {
        "table": f32(11, 8),
        "dense": f32(8, 8),
        "bias": f32(8),
        "kernel": f32(6, 3, 2, 2),
        "a": f32(4, 3),
        "b": f32(3, 4),
        "unused": f32(2),
    }
    lines = explain(fn, params, i32(3, 7), f32(2, 3, 9, 8)).splitlines()
    assert lines[0].split() == ["parameter", "shape", "fan-in", "fan-out", "batch", "use", "where"]
    uses = {line.split()[0]: " ".join(line.split()[1:]) for line in lines[1:]}
    assert uses["dense"].startswith("(8, 8) (0,) (1,) () dense")
    assert uses["kernel"].startswith("(6, 3, 2, 2) (1, 2, 3) (0,) () conv")
    assert uses["table"].startswith("(11, 8) () () () tied: a lookup, and a dense layer over (1,)")
    assert uses["bias"].startswith("(8,) () () () elementwise only")
    assert uses["unused"].startswith("(2,) () () () no gradient reaches it")
    assert uses["a"].startswith("(4, 3) ? ? ? refused: ")
    assert "dot_general" in uses["dense"] and "conv_general_dilated" in uses["kernel"]


def test_explain_shows_a_lookup():
    text = explain(lambda p, i: p["table"][i], {"table": f32(11, 8)}, i32(3))
    assert "lookup" in text.splitlines()[1]


def test_an_operation_without_a_rule_is_named():
    fn = lambda p, x: x @ jnp.linalg.cholesky(p["w"])  # noqa: E731
    assert "no rule for cholesky" in message_of(fn, {"w": f32(8, 8)}, X)


def test_numpy_arrays_and_concrete_arrays_are_traced_as_shapes_are():
    fn = lambda p, x: x @ p["w"]  # noqa: E731
    params = {"w": np.ones((8, 5), np.float32)}
    assert axes_from_trace(fn, params, jnp.ones((3, 8))) == {"w": (0,)}
