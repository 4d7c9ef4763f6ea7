"""Fan-in axes, and the other roles of axes, read from the model's own computation.

`call` makes a function of arrays of what a user calls. `walk` follows each parameter through its
jaxpr with the `rules` for its primitives, all that JAX may change being read in `jaxprs`. What a
value can be is in `values`, written in `digits`; `products` and `sums` are its arithmetic, which
finds the `uses` of parameters. `verdict` reads the axes from them, `roles` makes axes trees of
those, and `report` says so to people.
"""

import warnings
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from .._axes import AxesTree
from .._match import is_a
from .call import OUT_OF_REACH, Call, make_jaxpr, prepare
from .report import explanation, unresolved
from .roles import Roles as Roles
from .roles import roles
from .verdict import Verdict, verdicts


def axes_from_trace(
    fn: Callable[..., Any],
    params: Any,
    *args: Any,
    on_unresolved: Literal["raise", "skip"] = "raise",
    **kwargs: Any,
) -> AxesTree:
    """Answers, for each parameter, the axes that ``fn`` contracts it over with its input.

    Traces ``fn(params, *args, **kwargs)`` to a jaxpr, which runs and allocates nothing, and follows
    every parameter to the dense layer or convolution that consumes it, through reshapes, scans,
    vmaps and the like. Parameters that are no weights (biases, scales, embeddings, positions, and
    what no gradient reaches) get ``()``. What cannot be told is refused, never guessed.

    Where ``fn`` holds its parameters, as a Flax NNX or Equinox model does, leave ``params`` out:
    ``axes_from_trace(model, x)``. Such a model may be wrapped, as in ``jax.vmap(model)``, be a
    method, or be the first input of a loss: ``axes_from_trace(loss, model, x, y)``.

    Args:
      fn: the forward pass, such as ``lambda params, x: model.apply({"params": params}, x)``, or a
        model that holds its arrays. It returns predictions or a loss, not gradients.
      params: pytree of arrays or ``jax.ShapeDtypeStruct``: a dict, an ``nnx.State``, an NNX or
        Equinox model, a list. Of a model only the floating-point arrays, and in NNX only
        ``nnx.Param``, are parameters. If ``fn`` is a model, this is its first input.
      *args: inputs of ``fn``: arrays or ``jax.ShapeDtypeStruct`` of any shapes and dtypes, with a
        batch and a length of 2 or more; whatever else is in there is passed on as it is. They count
        as data, so weights that are frozen belong in ``params`` under ``jax.lax.stop_gradient``.
      on_unresolved: "raise" an error that lists what cannot be told, or "skip" it: warn and leave
        those parameters alone.
      **kwargs: keyword inputs of ``fn``.

    Returns:
      A tree like ``params`` with a tuple of ascending, non-negative ints at each leaf; for an NNX
      model, nested dicts with the keys of ``nnx.state(model, nnx.Param)``.

    Raises:
      ValueError: if some parameters cannot be told, with a line for each that settles it; if
        ``fn`` fails on these arguments, or returns gradients or nothing of floating type.
      TypeError: if ``fn`` cannot be called, or ``params`` holds something that is no array.

    Warns:
      UserWarning: with on_unresolved="skip", naming what is left alone because it cannot be told.

    Example:
      A kernel in the layout of PyTorch, and one stacked for two layers of a scan:

      >>> import jax, jax.numpy as jnp
      >>> def forward(params, x):
      ...     h = x @ params["embed"].T
      ...     return jax.lax.scan(lambda h, w: (jnp.tanh(h @ w), None), h, params["layers"])[0]
      >>> params = {"embed": jnp.ones((5, 8)), "layers": jnp.ones((2, 5, 5))}
      >>> axes_from_trace(forward, params, jnp.ones((3, 8)))
      {'embed': (1,), 'layers': (1,)}

      A model that holds its arrays:

      >>> from flax import nnx
      >>> model = nnx.Linear(8, 5, rngs=nnx.Rngs(0))
      >>> axes_from_trace(model, jnp.ones((3, 8)))
      {'bias': (), 'kernel': (0,)}

    References:
      Yong et al., Gradient Centralization, https://arxiv.org/abs/2004.01461, section 3.1, for what
      is averaged over: the incoming weights of each output unit.
    """
    return _roles(fn, params, args, kwargs, on_unresolved).fan_in


def roles_from_trace(
    fn: Callable[..., Any],
    params: Any,
    *args: Any,
    on_unresolved: Literal["raise", "skip"] = "raise",
    **kwargs: Any,
) -> Roles:
    """Answers, for each parameter, which axes are fan-in, which fan-out, and which count copies.

    `axes_from_trace` is its ``fan_in``. The three are disjoint, and together they are all axes of
    a weight that are longer than 1. ``fan_out`` index the outputs that share one input: the units
    of a dense layer, heads and their features. ``batch`` count copies that have inputs of their
    own: layers of a scan, experts, members of an ensemble, channels of a depthwise convolution. An
    axis that is both, as the last of a grouped convolution's kernel, is in ``batch``: not all of
    it shares an input.

    The roles are those of the computation. Where every expert sees every token, the kernel that
    they meet first is one matrix to all experts' units, and the expert axis, 0 here, indexes
    outputs. To treat experts as copies none the less:
    ``roles.fan_out["up"], roles.batch["up"] = (2,), (0,)``.

    Args:
      fn: the forward pass, or a model that holds its arrays, as for `axes_from_trace`.
      params: pytree of arrays or ``jax.ShapeDtypeStruct``; if ``fn`` is a model, its first input.
      *args: inputs of ``fn``.
      on_unresolved: "raise" an error that lists what cannot be told, or "skip" it: warn and leave
        those parameters alone.
      **kwargs: keyword inputs of ``fn``.

    Returns:
      A NamedTuple of axes trees like ``params``: ``fan_in``, ``fan_out``, ``batch``, and as a
      property ``matrix``, fan-in and fan-out together. Whatever takes axes takes each of them.

    Raises:
      ValueError: as `axes_from_trace`: a parameter whose fan-in cannot be told has no other roles.
      TypeError: if ``fn`` cannot be called, or ``params`` holds something that is no array.

    Warns:
      UserWarning: with on_unresolved="skip", naming what is left alone because it cannot be told.

    Example:
      Two layers of a scan, and a head:

      >>> import jax, jax.numpy as jnp
      >>> def forward(params, x):
      ...     h = jax.lax.scan(lambda h, w: (jnp.tanh(h @ w), None), x, params["layers"])[0]
      ...     return h @ params["head"]
      >>> params = {"head": jnp.ones((5, 3)), "layers": jnp.ones((2, 5, 5))}
      >>> roles = roles_from_trace(forward, params, jnp.ones((4, 5)))
      >>> roles.fan_out
      {'head': (1,), 'layers': (2,)}
      >>> roles.batch
      {'head': (), 'layers': (0,)}
      >>> roles.matrix
      {'head': (0, 1), 'layers': (1, 2)}

      A model that holds its arrays:

      >>> from flax import nnx
      >>> attention = nnx.MultiHeadAttention(2, 8, decode=False, rngs=nnx.Rngs(0))
      >>> roles_from_trace(attention, jnp.ones((3, 4, 8))).fan_out["query"]["kernel"]
      (1, 2)
    """
    return _roles(fn, params, args, kwargs, on_unresolved)


def _roles(
    fn: Callable[..., Any], params: Any, args: Any, kwargs: Any, on_unresolved: str
) -> Roles:
    if on_unresolved not in ("raise", "skip"):
        raise ValueError(
            f"on_unresolved={on_unresolved!r} is neither 'raise' nor 'skip'. "
            "Use 'skip' to leave what cannot be told alone."
        )
    trace = _trace(fn, params, args, kwargs)
    message = unresolved(trace.call, trace.found)
    if message and on_unresolved == "raise":
        raise ValueError(message)
    if message:
        warnings.warn(message, UserWarning, stacklevel=3)
    return roles(trace.call.tree, trace.found)


def explain(fn: Callable[..., Any], params: Any, *args: Any, **kwargs: Any) -> str:
    """Lists, a line each, how ``fn`` uses every parameter, and the roles that its axes have.

    Args:
      fn: the forward pass, or a model that holds its arrays, as for `axes_from_trace`.
      params: pytree of arrays or ``jax.ShapeDtypeStruct``; if ``fn`` is a model, its first input.
      *args: inputs of ``fn``.
      **kwargs: keyword inputs of ``fn``.

    Returns:
      A text of aligned columns: path, shape, axes of fan-in, fan-out and batch as in
      `roles_from_trace` ("?" where they cannot be told), the use (dense, conv, tied, lookup,
      elementwise only, refused and why), and the operations and modules.

    Raises:
      ValueError: if ``fn`` fails on these arguments, or returns gradients or nothing of floating
        type.
      TypeError: if ``fn`` cannot be called, or ``params`` holds something that is no array.

    Example:
      >>> import jax.numpy as jnp
      >>> params = {"kernel": jnp.ones((8, 5)), "bias": jnp.ones(5)}
      >>> print(explain(lambda p, x: x @ p["kernel"] + p["bias"], params, jnp.ones((3, 8))))
      parameter  shape   fan-in  fan-out  batch  use               where
      bias       (5,)    ()      ()       ()     elementwise only  add
      kernel     (8, 5)  (0,)    (1,)     ()     dense             dot_general

      A model that holds its arrays:

      >>> from flax import nnx
      >>> print(explain(nnx.Linear(8, 5, rngs=nnx.Rngs(0)), jnp.ones((3, 8))))
      parameter  shape   fan-in  fan-out  batch  use               where
      bias       (5,)    ()      ()       ()     elementwise only  add
      kernel     (8, 5)  (0,)    (1,)     ()     dense             dot_general
    """
    trace = _trace(fn, params, args, kwargs)
    return explanation(trace.call, trace.found)


class _Trace(NamedTuple):
    """What a trace found."""

    call: Call
    found: list[Verdict]


def _trace(fn: Callable[..., Any], params: Any, args: Any, kwargs: Any) -> _Trace:
    call = prepare(fn, params, args, kwargs)
    closed, out = make_jaxpr(call)
    _check_output(out, call)
    shapes = [tuple(v.aval.shape) for v in closed.jaxpr.invars[: len(call.params)]]
    # Its rules are most of the package, and of no use to who imports it for `centralize`.
    from .walk import walk

    uses = walk(closed, len(call.params), call.is_data)
    found = verdicts(uses, shapes)
    matrices = any(len(shape) > 1 for shape in shapes)
    if matrices and all(v.how == "no gradient reaches it" for v in found):
        raise ValueError(
            "what is called does not use its params: no gradient reaches any. "
            + (
                OUT_OF_REACH
                if call.name == "model"
                else "It may use a model that it is closed over instead. Use the first argument, "
                "as lambda model, x: model(x) does."
            )
        )
    return _Trace(call, found)


def _check_output(out: Any, call: Call) -> None:
    leaves = jax.tree_util.tree_leaves(out)
    if not any(jnp.issubdtype(leaf.dtype, jnp.inexact) for leaf in leaves):
        types = ", ".join(sorted({str(leaf.dtype) for leaf in leaves})) or "nothing"
        raise ValueError(
            f"fn returns {types}, which has no gradient, so that no parameter has a use. "
            "Return the model's predictions or its loss."
        )
    treedef = jax.tree_util.tree_structure(call.given)
    if jax.tree_util.treedef_is_leaf(treedef):
        return
    shapes = sorted(jnp.shape(leaf) for leaf in call.params)
    candidates = [out, *(out if isinstance(out, tuple | list) else ())]
    for tree in candidates:
        # Gradients of a model leave out its functions, and those of an NNX module are a State.
        alike = type(tree) is type(call.given) or is_a(tree, "flax.nnx", "State")
        if not alike or jax.tree_util.all_leaves([tree]):
            continue
        if sorted(leaf.shape for leaf in jax.tree_util.tree_leaves(tree)) == shapes:
            raise ValueError(
                "fn returns a tree of the structure and shapes of params, which looks like "
                "gradients or updated parameters. Return the model's predictions or its loss: "
                "pass the function that is differentiated, not its gradient."
            )
