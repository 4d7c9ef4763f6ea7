"""Fan-in axes, and the other roles of axes, read from the model's own computation.

`walk` follows each parameter through the jaxpr with the `rules` for its primitives, which track
where axes come from (`provenance`, `mixing`, `summing`) and record uses, most of them in
contractions (`contraction` of two `sides`, an `operand` at a time); `verdict` reads the axes from
them, `roles` makes axes trees of those, and `report` says so to people.
"""

import warnings
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from .._axes import AxesTree, path_name
from .report import explanation, unresolved
from .roles import Roles as Roles
from .roles import roles
from .verdict import Verdict, verdicts
from .walk import walk


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

    Args:
      fn: the forward pass, such as ``lambda params, x: model.apply({"params": params}, x)``. It
        returns predictions or a loss, not gradients.
      params: pytree of arrays or ``jax.ShapeDtypeStruct``: a dict, an ``nnx.State``, an Equinox
        module filtered to its arrays, a list.
      *args: inputs of ``fn``: arrays or ``jax.ShapeDtypeStruct`` of any shapes and dtypes, with a
        batch and a length of 2 or more; whatever else is in there is passed on as it is. They count
        as data, so weights that are frozen belong in ``params`` under ``jax.lax.stop_gradient``.
      on_unresolved: "raise" an error that lists what cannot be told, or "skip" it: warn and leave
        those parameters alone.
      **kwargs: keyword inputs of ``fn``.

    Returns:
      A tree like ``params`` with a tuple of ascending, non-negative ints at each leaf.

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
      fn: the forward pass, as for `axes_from_trace`.
      params: pytree of arrays or ``jax.ShapeDtypeStruct``.
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
    message = unresolved(params, trace.paths, trace.shapes, trace.found, trace.ones)
    if message and on_unresolved == "raise":
        raise ValueError(message)
    if message:
        warnings.warn(message, UserWarning, stacklevel=3)
    unflatten = jax.tree_util.tree_structure(params).unflatten
    return roles(unflatten, trace.found)


def explain(fn: Callable[..., Any], params: Any, *args: Any, **kwargs: Any) -> str:
    """Lists, a line each, how ``fn`` uses every parameter, and the roles that its axes have.

    Args:
      fn: the forward pass, as for `axes_from_trace`.
      params: pytree of arrays or ``jax.ShapeDtypeStruct``.
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
    """
    trace = _trace(fn, params, args, kwargs)
    return explanation(trace.paths, trace.shapes, trace.found)


class _Trace(NamedTuple):
    """What a trace found."""

    paths: list[Any]
    shapes: list[tuple[int, ...]]
    found: list[Verdict]
    ones: list[str]  # arguments with an axis of length 1


def _trace(fn: Callable[..., Any], params: Any, args: Any, kwargs: Any) -> _Trace:
    if not callable(fn):
        raise TypeError(
            f"fn is {fn!r}, which cannot be called. Pass the forward pass, such as "
            "lambda params, x: model.apply({'params': params}, x)."
        )
    with_paths, treedef = jax.tree_util.tree_flatten_with_path(params)
    paths, leaves = [path for path, _ in with_paths], [_array(p, leaf) for p, leaf in with_paths]
    named, args_treedef = jax.tree_util.tree_flatten_with_path((args, kwargs))
    others = [leaf for _, leaf in named]
    traced = [i for i, leaf in enumerate(others) if _is_array(leaf)]

    def flat(leaves: Sequence[Any], inputs: Sequence[Any]) -> Any:
        filled = list(others)
        for i, leaf in zip(traced, inputs, strict=True):
            filled[i] = leaf
        args, kwargs = jax.tree_util.tree_unflatten(args_treedef, filled)
        return fn(jax.tree_util.tree_unflatten(treedef, leaves), *args, **kwargs)

    inputs = [others[i] for i in traced]
    try:
        closed, out = jax.make_jaxpr(flat, return_shape=True)(leaves, inputs)
    except Exception as error:
        raise ValueError(
            f"fn(params, *args, **kwargs) failed while it was traced: {type(error).__name__}: "
            f"{error}\nPass fn the arguments that it is called with in training."
        ) from error
    _check_output(out, params)
    shapes = [tuple(v.aval.shape) for v in closed.jaxpr.invars[: len(leaves)]]
    uses = walk(closed, len(leaves), [not _is_key(leaf) for leaf in inputs])
    ones = [
        f"{_argument_name(path)} of shape {leaf.shape}"
        for path, leaf in named
        if _is_array(leaf) and 1 in leaf.shape
    ]
    return _Trace(paths, shapes, verdicts(uses, shapes), ones)


def _is_array(leaf: Any) -> bool:
    return hasattr(leaf, "shape") and hasattr(leaf, "dtype")


def _is_key(leaf: Any) -> bool:
    """Whether an input is a random key, new style or old."""
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return True
    return leaf.dtype == jnp.uint32 and leaf.shape in ((2,), (4,))


def _array(path: Any, leaf: Any) -> Any:
    if not _is_array(leaf) and not isinstance(leaf, bool | int | float | complex):
        raise TypeError(
            f"{path_name(path)!r} in params is {leaf!r}, which is no array. Split the arrays off "
            "first: params, static = eqx.partition(model, eqx.is_inexact_array) for Equinox, "
            "graphdef, params = nnx.split(model) for nnx."
        )
    # Keras variables know how to become arrays, but not while they are traced.
    return getattr(leaf, "value", leaf) if isinstance(getattr(leaf, "path", None), str) else leaf


def _argument_name(path: Any) -> str:
    of, *rest = path
    steps = "".join(jax.tree_util.keystr((key,)) for key in rest)
    return ("args" if of.idx == 0 else "kwargs") + steps


def _check_output(out: Any, params: Any) -> None:
    leaves = jax.tree_util.tree_leaves(out)
    if not any(jnp.issubdtype(leaf.dtype, jnp.inexact) for leaf in leaves):
        types = ", ".join(sorted({str(leaf.dtype) for leaf in leaves})) or "nothing"
        raise ValueError(
            f"fn returns {types}, which has no gradient, so that no parameter has a use. "
            "Return the model's predictions or its loss."
        )
    treedef = jax.tree_util.tree_structure(params)
    shapes = [jnp.shape(leaf) for leaf in jax.tree_util.tree_leaves(params)]
    if jax.tree_util.treedef_is_leaf(treedef):
        return
    candidates = [out, *(out if isinstance(out, tuple | list) else ())]
    for tree in candidates:
        same = jax.tree_util.tree_structure(tree) == treedef
        if same and [leaf.shape for leaf in jax.tree_util.tree_leaves(tree)] == shapes:
            raise ValueError(
                "fn returns a tree of the structure and shapes of params, which looks like "
                "gradients or updated parameters. Return the model's predictions or its loss: "
                "pass the function that is differentiated, not its gradient."
            )
