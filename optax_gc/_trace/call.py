"""What is traced: the call that a user wrote, as a function of parameter arrays and input arrays.

Users write ``fn, params, x``, or ``model, x`` where the model itself holds its arrays: an Equinox
module, a Flax NNX module, a vmap or partial or method of one. Frameworks are told by the names of
their classes, so that none is imported.
"""

import dataclasses
import functools
import inspect
import re
import types
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from .._axes import check_params
from .._match import KeyPath, entry_key, is_a, names, nnx_places

_KERAS = (
    "fn = lambda params, x: model.stateless_call(params, model.non_trainable_variables, x)[0]; "
    "axes_from_trace(fn, model.trainable_variables, x)"
)
_LINEN = "axes_from_trace(lambda params, x: model.apply({'params': params}, x), params, x)"
_SPLIT = (
    "graphdef, params, rest = nnx.split(model, nnx.Param, ...); "
    "axes_from_trace(lambda params, x: nnx.merge(graphdef, params, rest)(x), params, x)"
)
_PENZAI = (
    "model, variables = pz.unbind_params(model); params = [v.freeze() for v in variables]; "
    "axes_from_trace(lambda params, x: pz.bind_variables(model, params)(x), params, x)"
)
# What a message of a failure means, and what to do.
_MENDS = (
    (
        "TracerArrayConversionError|TracerBoolConversionError|TracerIntegerConversionError|"
        "ConcretizationTypeError",
        "fn has to run under jax.jit: write jnp for np, jax.lax.cond for if, and leave out float "
        "and print.",
    ),
    (
        "transform_with_state",
        "Haiku's apply after hk.transform_with_state takes params, state, rng, x: "
        "axes_from_trace(model.apply, params, state, None, x).",
    ),
    ("returned a value of type", "fn has to return arrays: leave out what is none."),
    (
        "unbound axis name",
        "fn names a mesh axis outside of what binds it. Bind it in fn, as in jax.vmap(forward, "
        "axis_name=...), or trace a model made without axis_name: its axes are the same.",
    ),
    (
        "different trace level",
        "fn changes a model from outside of it (BatchNorm, Dropout). Pass the model itself, "
        "axes_from_trace(model, x), or make it in fn: " + _SPLIT,
    ),
    (
        "Expected to merge with|Missing variable|Unexpected number of flat states|"
        "flat state is missing|Incorrect number of",
        "nnx.merge needs all of the state (BatchNorm's statistics, Dropout's keys). "
        "Pass the model itself, axes_from_trace(model, x), or write: " + _SPLIT,
    ),
    (
        "immutable|Cannot update variable",
        "Linen's BatchNorm updates its statistics: pass mutable=['batch_stats'] to model.apply in "
        "fn, or train=False.",
    ),
    (
        "needs PRNG for|must be called with an RNG|non-None RNG|valid JAX RNG key",
        "fn needs a random key: pass one in fn, rngs={'dropout': jax.random.key(0)} to Linen's "
        "apply, jax.random.PRNGKey(0) after the params to Haiku's (or hk.without_apply_rng).",
    ),
    (
        "ScopeParamNotFoundError|ScopeCollectionNotFound|ApplyScopeInvalidVariables|InvalidScopeError",
        "Linen's apply takes all variables, {'params': params}, not the inner ones: " + _LINEN,
    ),
)


_BATCH = (
    " An Equinox model is called on one sample; for a batch write axes_from_trace(jax.vmap(model), "
    "x)."
)
# Packages whose functions hold what they wrap in their closures.
_WRAPPERS = ("jax", "flax", "equinox")


OUT_OF_REACH = (
    "Write axes_from_trace(lambda model, x: jax.vmap(model)(x), model, x), with what wraps the "
    "model in place of jax.vmap."
)


class OutOfReachError(ValueError):
    """A model is held where it cannot be replaced."""


class Call(NamedTuple):
    """A call to trace."""

    run: Callable[[Sequence[Any], Sequence[Any]], Any]  # of the arrays of params and of inputs
    given: Any  # the tree of parameters, or the model that holds them
    name: str  # what a user calls that: "params" or "model"
    paths: list[KeyPath]
    params: list[Any]
    inputs: list[Any]
    is_data: list[bool]  # of each input; random keys and a model's own state are constants
    tree: Callable[[Sequence[Any]], Any]  # an axes tree like the params, of one label for each
    ones: list[str]  # arguments with an axis of length 1
    got: str  # the inputs, in words

    @property
    def names(self) -> list[str]:
        """What a user calls each parameter."""
        return names(list(zip(self.paths, self.params, strict=True)))


class _Split(NamedTuple):
    """A tree of parameters taken apart."""

    paths: list[KeyPath]
    params: list[Any]
    state: list[Any]  # a model's arrays that are not trained
    join: Callable[[Sequence[Any], Sequence[Any]], Any]
    tree: Callable[[Sequence[Any]], Any]


def prepare(fn: Any, params: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call:
    """Finds the parameters of a call of `fn`, and makes a function of their arrays.

    Raises:
      TypeError: if `fn` cannot be called, or `params` holds something that is no array.
      ValueError: if `params` is plainly an input.
    """
    _check_callable(fn, params)
    model = _held(fn)
    if model is not None:
        if callable(params) and not _leaves(params):
            raise TypeError(
                f"fn is {brief(fn)} and params is {brief(params)}: they are swapped. "
                "Write axes_from_trace(fn, model, x)."
            )
        own = {id(leaf) for leaf in jax.tree_util.tree_leaves(model) if is_array(leaf)}
        if any(id(leaf) in own for leaf in jax.tree_util.tree_leaves(params)):
            raise ValueError(
                "params are those that fn holds already. Write axes_from_trace(model, x), "
                "or axes_from_trace(lambda model, x: model(x), model, x)."
            )
        call, params, args = functools.partial(_call_with, fn, model), model, (params, *args)
    else:
        _check_fn(fn, params)
        if is_array(params):
            _check_array(params, args, kwargs)
        call = fn
    split = _split(params)
    check_params(params, "axes_from_trace")
    named, treedef = jax.tree_util.tree_flatten_with_path((args, kwargs))
    others = [leaf for _, leaf in named]
    traced = [i for i, leaf in enumerate(others) if is_array(leaf)]
    inputs = [others[i] for i in traced]

    def run(leaves: Sequence[Any], inputs: Sequence[Any]) -> Any:
        filled = list(others)
        for i, leaf in zip(traced, inputs[: len(traced)], strict=True):
            filled[i] = leaf
        args, kwargs = jax.tree_util.tree_unflatten(treedef, filled)
        return call(split.join(leaves, inputs[len(traced) :]), *args, **kwargs)

    ones = [
        f"{_argument_name(path)} of shape {tuple(leaf.shape)}"
        for path, leaf in named
        if is_array(leaf) and 1 in leaf.shape
    ]
    got = [brief(x) for x in args] + [f"{key}={brief(x)}" for key, x in kwargs.items()]
    is_data = [not _is_key(leaf) for leaf in inputs] + [False] * len(split.state)
    name = "params" if model is None else "model"
    return Call(
        run,
        params,
        name,
        split.paths,
        split.params,
        [*inputs, *split.state],
        is_data,
        split.tree,
        ones,
        ", ".join(got[:5]) or "no inputs",
    )


def make_jaxpr(call: Call) -> tuple[Any, Any]:
    """The jaxpr of a call, and the shapes of what it returns."""
    try:
        return jax.make_jaxpr(call.run, return_shape=True)(call.params, call.inputs)
    except OutOfReachError:
        raise
    except Exception as error:
        text = f"{type(error).__name__}: {error}"
        mend = next(
            (
                mend
                for of, mend in _MENDS
                if any(part.lower() in text.lower() for part in of.split("|"))
            ),
            f"Pass fn the arguments that it is called with in training. It got {call.got}."
            + ("" if call.inputs else " Inputs are arrays, or jax.ShapeDtypeStruct for shapes.")
            + (_BATCH if call.name == "model" and _is_module(call.given, "equinox") else ""),
        )
        called = "model(" if call.name == "model" else "fn(params, "
        raise ValueError(
            f"{called}*args, **kwargs) failed while it was traced: {_short(text)}\n{mend}"
        ) from error


def brief(x: Any) -> str:
    """What something is, without its numbers."""
    arrays = len(_leaves(x))
    if is_array(x):
        return f"an array of shape {tuple(x.shape)}"
    if arrays:
        return f"a {type(x).__name__} of {arrays} array{'s' * (arrays > 1)}"
    if inspect.isroutine(x):
        return f"the function {getattr(x, '__name__', '')}"
    return f"a {type(x).__name__}" if len(repr(x)) > 60 else repr(x)


def is_array(leaf: Any) -> bool:
    """Whether something has a shape and a dtype."""
    return hasattr(leaf, "shape") and hasattr(leaf, "dtype")


def _is_inexact(leaf: Any) -> bool:
    return is_array(leaf) and jnp.issubdtype(leaf.dtype, jnp.inexact)


def _is_key(leaf: Any) -> bool:
    """Whether an input is a random key, new style or old."""
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return True
    return leaf.dtype == jnp.uint32 and leaf.shape in ((2,), (4,))


def _leaves(tree: Any) -> list[Any]:
    return [leaf for leaf in jax.tree_util.tree_leaves(tree) if is_array(leaf)]


def _check_callable(fn: Any, params: Any) -> None:
    if callable(fn):
        return
    if callable(params):
        raise TypeError(
            f"fn is {brief(fn)}, which cannot be called, and params is {brief(params)}: they are "
            "swapped. Write axes_from_trace(fn, params, x)."
        )
    if callable(getattr(fn, "apply", None)):
        raise TypeError(
            f"fn is {brief(fn)}, which cannot be called. "
            "Write axes_from_trace(fn.apply, params, x)."
        )
    raise TypeError(
        f"fn is {brief(fn)}, which cannot be called. Pass the forward pass, such as "
        "lambda params, x: model.apply({'params': params}, x)."
    )


def _check_fn(fn: Any, params: Any) -> None:
    """Refuses functions that hold parameters which are out of reach."""
    owner = getattr(fn, "__self__", fn)
    if is_a(owner, "flax.linen", "Module"):
        applied = getattr(fn, "__name__", "") == "apply"
        if applied and isinstance(params, Mapping) and "params" in params:
            return
        raise ValueError(
            f"fn is {'model.apply' if applied else 'a Linen module'}, and params are not the "
            "variables {'params': params} that Linen's model.apply takes. Write " + _LINEN
        )
    if is_a(owner, "flax.nnx", "Module"):
        raise ValueError(f"fn is {brief(owner)}, an NNX module that is no pytree. Write {_SPLIT}")
    if is_a(owner, "keras", "Layer"):
        raise ValueError(f"fn is a Keras model, whose variables are out of reach. Write {_KERAS}")
    leaves = [x for x in jax.tree_util.tree_leaves(fn) if x is not fn]
    if any(_leaves(getattr(x, "value", None)) for x in leaves):
        raise ValueError(
            f"fn is {brief(fn)} that holds its parameters in variables, which cannot be traced. "
            f"Write {_PENZAI}"
        )
    inner = getattr(fn, "__wrapped__", None)
    if inner is not None and inner is not fn:
        _check_fn(inner, params)
    if isinstance(fn, functools.partial):
        _check_fn(fn.func, params)
        # A key or a mask may be bound by name; a tree by name, or what stands first, may not.
        by_name = [x for x in fn.keywords.values() if not is_array(x)]
        if any(map(_is_inexact, jax.tree_util.tree_leaves((fn.args, by_name)))):
            raise ValueError(
                "fn is a partial that holds arrays, and which are the parameters cannot be told. "
                "Write axes_from_trace(lambda params, x: ..., params, x)."
            )


def _check_array(params: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Refuses one array for params that is plainly something else."""
    if _is_key(params):
        raise ValueError(
            "params is a random key, as a model's init takes it. Give the function of params and "
            "what init returns: axes_from_trace(model.apply, params, x)."
        )
    got = f"params is one array, of shape {tuple(params.shape)}, and "
    if not jax.tree_util.tree_leaves((args, kwargs)):
        raise ValueError(
            got + "there are no inputs: it looks like a batch. Write axes_from_trace(fn, params, "
            "x); with a model, axes_from_trace(lambda model, x: model(x), model, x). If it is a "
            "parameter, put it into a dict."
        )
    if swapped := [x for x in (*args, *kwargs.values()) if _may_be_params(x)]:
        raise ValueError(
            got + f"an input is {brief(swapped[0])}. If those are the parameters, put them first: "
            "axes_from_trace(lambda params, x: fn(x, params), params, x). If the array is a "
            "parameter, put it into a dict."
        )


def _may_be_params(x: Any) -> bool:
    """Whether an input has the form of parameters: a model, a dict, or nested lists of arrays."""
    nested = isinstance(x, list | tuple) and any(isinstance(y, Mapping | list | tuple) for y in x)
    return bool(_leaves(x)) and (nested or isinstance(x, Mapping) or callable(x))


def _held(fn: Any) -> Any:
    """The model that a call of `fn` runs, if it is a tree that holds arrays; otherwise None."""
    if isinstance(fn, functools.partial):  # and jax.tree_util.Partial
        return next(
            (m for x in (fn.func, *fn.args) if callable(x) and (m := _held(x)) is not None), None
        )
    owner = fn.__self__ if isinstance(fn, types.MethodType) else fn
    if (inner := getattr(owner, "__wrapped__", None)) is not None and (held := _held(inner)):
        return held
    if isinstance(owner, types.FunctionType):
        # What wraps need not tell what it wraps: jax.vmap forgets it for some modules.
        package = owner.__globals__.get("__name__", "").split(".")[0]
        cells = owner.__closure__ or () if package in _WRAPPERS else ()
        inside = (c.cell_contents for c in cells if _is_set(c))
        return next((m for x in inside if callable(x) and (m := _held(x)) is not None), None)
    structure = jax.tree_util.tree_structure(owner)
    is_leaf = jax.tree_util.treedef_is_leaf(structure) and structure.num_leaves == 1
    if is_leaf or inspect.isclass(owner) or isinstance(owner, Mapping | list | tuple):
        return None
    return owner if _leaves(owner) else None


def _call_with(fn: Any, model: Any, new: Any, *args: Any, **kwargs: Any) -> Any:
    """Calls `fn` with `new` in the place of `model`."""
    changed = _with(fn, model, new)
    if changed is fn:
        raise OutOfReachError(
            f"fn is {brief(fn)} and holds the model where it cannot be replaced. {OUT_OF_REACH}"
        )
    return changed(*args, **kwargs)


def _with(fn: Any, model: Any, new: Any) -> Any:
    """`fn` with `new` for `model`; `fn` itself if it does not hold it."""
    if _same(fn, model):
        return new
    if isinstance(fn, functools.partial):
        parts = fn.func, *fn.args
        changed = [_with(x, model, new) for x in parts]
        kept = all(a is b for a, b in zip(changed, parts, strict=True))
        return fn if kept else type(fn)(*changed, **fn.keywords)
    if isinstance(fn, types.MethodType):
        owner = _with(fn.__self__, model, new)
        return fn if owner is fn.__self__ else types.MethodType(fn.__func__, owner)
    if isinstance(fn, types.FunctionType):
        cells = fn.__closure__ or ()
        held = [c.cell_contents if _is_set(c) else None for c in cells]
        changed = [_with(x, model, new) if callable(x) else x for x in held]
        if all(a is b for a, b in zip(changed, held, strict=True)):
            return fn
        closure = tuple(
            c if a is b else types.CellType(_hashable(a))
            for a, b, c in zip(changed, held, cells, strict=True)
        )
        copy = types.FunctionType(
            fn.__code__, fn.__globals__, fn.__name__, fn.__defaults__, closure
        )
        copy.__kwdefaults__ = fn.__kwdefaults__
        return copy
    # nnx.vmap keeps the model in a dataclass that is no pytree.
    if is_a(fn, "flax.nnx", "VmapFn"):
        inner = _with(fn.f, model, new)
        return fn if inner is fn.f else dataclasses.replace(fn, f=inner)
    # To jit or not to jit makes no difference to what is computed.
    if "jit" in type(fn).__name__.lower() and hasattr(fn, "__wrapped__"):
        inner = fn.__wrapped__
        changed = _with(inner, model, new)
        return fn if changed is inner else changed
    if not callable(fn) or not _leaves(fn):
        return fn
    nodes, structure = jax.tree_util.tree_flatten(fn, is_leaf=lambda x: _same(x, model))
    changed = [new if _same(x, model) else x for x in nodes]
    kept = all(a is b for a, b in zip(changed, nodes, strict=True))
    return fn if kept else jax.tree_util.tree_unflatten(structure, changed)


def _hashable(fn: Any) -> Any:
    """`fn`, or a function of the same values: jax.checkpoint hashes what it wraps."""
    try:
        hash(fn)
    except TypeError:
        return functools.wraps(fn)(lambda *args, **kwargs: fn(*args, **kwargs))
    return fn


def _same(x: Any, model: Any) -> bool:
    """Whether `x` is the model, or one made of its arrays, as Equinox's wrappers hand out."""
    if x is model or type(x) is not type(model):
        return x is model
    (ours, our_tree), (theirs, their_tree) = map(jax.tree_util.tree_flatten, (x, model))
    return our_tree == their_tree and all(a is b for a, b in zip(ours, theirs, strict=True))


def _is_set(cell: Any) -> bool:
    try:
        cell.cell_contents  # noqa: B018
    except ValueError:
        return False
    return True


def _split(tree: Any) -> _Split:
    """Takes a tree of parameters, or a model, apart into arrays to trace."""
    with_paths, treedef = jax.tree_util.tree_flatten_with_path(tree)
    if hidden := [leaf for _, leaf in with_paths if is_a(leaf, "flax.nnx", "Module")]:
        raise TypeError(
            f"params holds {brief(hidden[0])}, an NNX module that is no pytree. Write {_SPLIT}"
        )
    is_nnx = _is_module(tree, "flax.nnx")
    is_model = is_nnx or callable(tree) or _is_module(tree, "equinox")
    places_of = nnx_places(tree) or {}
    first: dict[Any, int] = {}
    paths, params, rest, places = [], [], [], []
    for i, (path, leaf) in enumerate(with_paths):
        if is_model and (not is_array(leaf)):
            continue
        if is_model and (places_of.get(path, path) is None or not _is_inexact(leaf)):
            # Numbers may be read as such; what is abstract or a key can only be traced.
            if _is_inexact(leaf) or not isinstance(leaf, jax.Array) or _is_key(leaf):
                places.append((i, "state", len(rest)))
                rest.append(leaf)
            continue
        key = places_of.get(path, path)
        if key not in first:
            first[key] = len(params)
            paths.append(path)
            params.append(_array(path, leaf))
        places.append((i, "params", first[key]))
    if is_model and not params:
        raise ValueError(
            f"{brief(tree)} holds no parameters that are trained. Pass those that are."
        )
    leaves = [leaf for _, leaf in with_paths]

    def join(params: Sequence[Any], rest: Sequence[Any]) -> Any:
        filled = list(leaves)
        for i, kind, j in places:
            filled[i] = params[j] if kind == "params" else rest[j]
        return jax.tree_util.tree_unflatten(treedef, filled)

    def labels(values: Sequence[Any]) -> Any:
        if is_nnx:
            return _nested(paths, values)
        filled: list[Any] = [()] * len(leaves)
        for i, kind, j in places:
            filled[i] = values[j] if kind == "params" else ()
        return jax.tree_util.tree_unflatten(treedef, filled)

    return _Split(paths, params, rest, join, labels)


def _is_module(tree: Any, package: str) -> bool:
    return is_a(tree, package, "Module")


def _nested(paths: Sequence[KeyPath], values: Sequence[Any]) -> dict[Any, Any]:
    """Dicts of the keys that ``nnx.state(model, nnx.Param)`` has."""
    tree: dict[Any, Any] = {}
    for path, value in zip(paths, values, strict=True):
        *above, last = [entry_key(entry) for entry in path[:-1]]
        node = tree
        for key in above:
            node = node.setdefault(key, {})
        node[last] = value
    return tree


def _array(path: Any, leaf: Any) -> Any:
    if not is_array(leaf) and not isinstance(leaf, bool | int | float | complex):
        raise TypeError(
            f"{names([(path, leaf)])[0]!r} in params is {brief(leaf)}, which is no array. Split "
            "the arrays off first: params, static = eqx.partition(model, eqx.is_inexact_array) for "
            "Equinox, graphdef, params = nnx.split(model) for nnx."
        )
    # Keras variables know how to become arrays, but not while they are traced.
    return getattr(leaf, "value", leaf) if isinstance(getattr(leaf, "path", None), str) else leaf


def _argument_name(path: Any) -> str:
    of, *rest = path
    steps = "".join(jax.tree_util.keystr((key,)) for key in rest)
    return ("args" if of.idx == 0 else "kwargs") + steps


def _short(text: str) -> str:
    # Where this package called fn is of no use to who wrote it.
    text = re.sub(rf"\w+ at {re.escape(__file__)}:\d+", "fn", text)
    lines = [line[:300] for line in text.splitlines() if line.strip() and __file__ not in line][:6]
    return "\n".join(lines)[:900]
