"""The axes tree: over which axes the gradient of each parameter is averaged.

An axes tree is shaped like the parameters, or like a prefix of them, with a tuple of ints at each
leaf: the parameter's fan-in axes, as ``jnp.mean(axis=...)`` takes them. ``()`` leaves a parameter
alone. A function from parameters to such a tree (a label function, as for ``optax.partition``)
stands for the tree it returns. Everything that takes axes reads them through `resolve`.
"""

import dataclasses
import functools
import html
import inspect
import math
import operator
import re
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import zip_longest
from numbers import Integral
from typing import Any, NamedTuple, Protocol, overload

import jax
import jax.numpy as jnp
import optax

from ._match import entry_key, is_a, match, names, nnx_places
from ._match import path_name as path_name

Axes = tuple[int, ...]
AxesTree = Any  # a pytree of Axes, or a prefix of one


class _Module(Protocol):
    """A pytree that is a dataclass, such as an Equinox module of axes."""

    __dataclass_fields__: dict[str, dataclasses.Field[Any]]


AxesLike = tuple[Any, ...] | Mapping[Any, Any] | list[Any] | _Module | Callable[[Any], AxesTree]

# What Flax, Keras and Equinox call leaves of rank 2 and more that are no kernels: biases with a
# head axis or of a convolution, and what is looked up rather than contracted.
_NOT_KERNELS = frozenset({"bias", "embedding", "embeddings"})
# What Haiku calls biases and norms, and others may call a kernel.
_MAY_BE_BIAS = frozenset({"b", "scale", "offset"})
# A kernel by name, wherever it is: a vision transformer's "embedding/kernel" is a convolution.
_KERNELS = frozenset({"kernel", "w", "weights"})
# Words of the names of tables: "wte", "pos_embedding", "token_embedder", "tok_emb", "bias_table".
_TABLES = re.compile(
    r"wte|wpe|emb|embed|embeds|embedding|embeddings|embedder|codebook|vocab|tables?|lookup"
)
# Names of learned tokens and positions themselves.
_TOKENS = re.compile(
    r"(.*_)?(tokens?|pos|positions?|position_ids|positional|registers?|latents?|prompts?)"
)
_NORMS = re.compile(r".*(norm|^ln|_ln|^bn|_bn|^gn|_gn).*")
# Flax's attention projects (features) to (heads, head_dim): one input axis, two output axes.
_SPLIT_INTO_HEADS = frozenset({"query", "key", "value"})
# The names of a kernel and of its bias: kernel, bias; W1, b1; in_proj_weight, in_proj_bias.
_KERNEL_OF_BIAS = re.compile(r"(.*_)?(kernel|weights?|w|W)(?![a-z])(.*)")
# Boxes around an array, of Penzai, Haliax and others.
_BOXES = frozenset({"value", "data_array", "array"})


@overload
def axes_from_rank(
    params: None = None, *, output_axis: int | None = None, conv_only: bool = False
) -> Callable[[Any], AxesTree]: ...


@overload
def axes_from_rank(
    params: Any, *, output_axis: int | None = None, conv_only: bool = False
) -> AxesTree: ...


def axes_from_rank(
    params: Any = None, *, output_axis: int | None = None, conv_only: bool = False
) -> AxesTree:
    """Answers all axes but the output axis for each kernel, and ``()`` for everything else.

    The output axis is the last, as in Flax, Haiku and Keras, but the first of a ``weight``, as in
    PyTorch and Equinox. What else is decided by name:

    * no kernel: leaves of rank below 2; ``bias`` and ``..._bias``; ``b``, ``scale`` or ``offset``
      beside a kernel of higher rank, ``scale`` and ``offset`` beside each other or in a norm, and a
      ``weight`` beside a ``bias`` of its own shape (a norm's);
    * tables: ``embedding``, ``embed``, ``wte``, ``wpe``, ``pos_embedding``, ``cls_token`` and the
      like, as the leaf's own name or anywhere above it, unless the leaf is a ``kernel`` or ``w``,
      or a ``weight`` with a bias or of rank above 2;
    * a rank-3 ``kernel`` under ``query``, ``key`` or ``value`` is an attention projection
      (features, heads, head_dim), averaged over its features.

    `summary` shows what is done. Where the bias of a kernel does not have the shape of its outputs,
    as in stacked layers, a warning names it, here and when an optimizer is initialised. Without
    biases, rank and names cannot see layers stacked for a scan, ensembles stacked by vmap, experts,
    depthwise convolutions, or kernels in another layout, such as Haiku's, Keras's and PyTorch's
    transposed convolutions: for those, give the axes, or read them from the model's own computation
    with `axes_from_trace`. Where gradients have no names, as Keras's lists of arrays, make the axes
    from the variables: ``centralize(axes_from_rank(model.trainable_variables))``.

    Args:
      params: pytree of arrays (any shapes and dtypes; ``jax.ShapeDtypeStruct`` will do), a model
        that is one, or Keras variables, whose own paths are then their names. Without it, the
        answer is a function of params: ``centralize(axes_from_rank(output_axis=0))``.
      output_axis: which axis of every kernel indexes output units, whatever its name: -1 for Flax,
        Haiku and Keras, 0 for PyTorch's layout and Equinox; None for 0 of a ``weight`` (and
        ``weight_ih``, ``in_proj_weight``), -1 of others.
      conv_only: keep kernels of rank above 3 only, as the authors' conv-only optimizers do.

    Returns:
      A tree like ``params`` with a tuple of non-negative ints at each leaf, or such a function.

    Raises:
      TypeError: if ``output_axis`` is no int.
      ValueError: if ``output_axis`` is not an axis of some kernel, or ``params`` are none, such as
        a step count, a shape or a function.

    Warns:
      UserWarning: if a bias does not fit its kernel's outputs, unless ``output_axis`` is given.

    Example:
      >>> import jax.numpy as jnp
      >>> params = {"conv": {"kernel": jnp.ones((3, 3, 8, 16)), "bias": jnp.ones(16)}}
      >>> axes_from_rank(params)
      {'conv': {'bias': (), 'kernel': (0, 1, 2)}}
      >>> axes_from_rank({"linear": {"weight": jnp.ones((5, 8)), "bias": jnp.ones(5)}})
      {'linear': {'bias': (), 'weight': (1,)}}

    References:
      Yong et al., Gradient Centralization, https://arxiv.org/abs/2004.01461, section 3.1.
    """
    _check_output_axis(output_axis)
    if params is None:
        return functools.partial(axes_from_rank, output_axis=output_axis, conv_only=conv_only)
    if (
        isinstance(params, jax.Array)
        and params.ndim == 0
        and jnp.issubdtype(params.dtype, jnp.integer)
    ):
        raise ValueError(
            f"axes_from_rank got the integer {params} instead of parameters. If optax.inject_"
            "hyperparams took it for a schedule, pass static_args=('axes',) to that."
        )
    check_params(params, "axes_from_rank")
    if output_axis is None:
        warn_of_biases(axes_from_rank, params)
    return _from_rank(params, output_axis=output_axis, conv_only=conv_only)


def _from_rank(params: Any, *, output_axis: int | None = None, conv_only: bool = False) -> AxesTree:
    """What `axes_from_rank` answers."""
    _check_output_axis(output_axis)
    named, structure = _named(params)
    beside = _by_place(named)
    least = 4 if conv_only else 2
    return jax.tree_util.tree_unflatten(
        structure,
        [
            _by_rank(leaf, output_axis)
            if len(leaf.shape) >= least and _is_kernel(leaf, beside[leaf.words[:-1]])
            else ()
            for leaf in named
        ],
    )


def _check_output_axis(output_axis: Any) -> None:
    if output_axis is not None and (
        not isinstance(output_axis, Integral) or isinstance(output_axis, bool)
    ):
        raise TypeError(
            f"output_axis is {output_axis!r}. Use one int: -1 for Flax, Haiku and Keras, 0 for "
            "PyTorch's layout and Equinox, None to tell by name."
        )


def warn_of_biases(axes: Any, params: Any) -> None:
    """Warns if `axes` are told by rank, and a bias says otherwise."""
    if text := biases_that_do_not_fit(axes, params):
        warnings.warn(text, UserWarning, stacklevel=3)


def biases_that_do_not_fit(axes: Any, params: Any) -> str:
    """Says which kernels have biases of another shape than the mean leaves; "" for none."""
    rule = axes.func if isinstance(axes, functools.partial) else axes
    options = axes.keywords if isinstance(axes, functools.partial) else {}
    if rule is not axes_from_rank or options.get("output_axis") is not None:
        return ""
    named, structure = _named(params)
    of = structure.flatten_up_to(_from_rank(params, **options))
    by_words = {leaf.words: leaf for leaf in named}
    found = []
    for leaf, over in zip(named, of, strict=True):
        outputs = tuple(n for axis, n in enumerate(leaf.shape) if axis not in over)
        for bias in (by_words[x] for x in _bias_names(leaf.words) if over and x in by_words):
            of_bias, of_outputs = ([n for n in x if n != 1] for x in (bias.shape, outputs))
            if of_bias and of_bias != of_outputs and _biases(bias.shape, leaf.shape):
                found.append(
                    f"  {leaf.name!r} of shape {leaf.shape}: averaged over {over}, which leaves "
                    f"{outputs}, and its bias is {bias.shape}"
                )
    if not found:
        return ""
    more = [f"  and {len(found) - 3} more"] if len(found) > 3 else []
    return "\n".join(
        [
            "Axes told by rank and name, where biases say otherwise:",
            *found[:3],
            *more,
            "Read the axes from the model: axes_from_trace(model, x).",
            "If nothing is stacked, say where outputs are: axes_from_rank(output_axis=0) if first, "
            "-1 if last.",
        ]
    )


def _bias_names(words: tuple[str, ...]) -> list[tuple[str, ...]]:
    """What the bias of a kernel of this name would be called."""
    *above, last = words
    if last.isdigit():  # in a list or a tuple, it comes next
        return [(*above, str(int(last) + 1))]
    if not (parts := _KERNEL_OF_BIAS.fullmatch(last)):
        return []
    before, _, after = (part or "" for part in parts.groups())
    return [(*above, f"{before}{name}{after}") for name in ("bias", "b")]


class _Named(NamedTuple):
    """A leaf with the names that lead to it."""

    name: str
    words: tuple[str, ...]
    shape: tuple[int, ...]


def _named(params: Any) -> tuple[list[_Named], Any]:
    """The leaves of a tree, and its structure."""
    with_paths, structure = jax.tree_util.tree_flatten_with_path(params)
    tables = {
        path
        for path, node in jax.tree_util.tree_leaves_with_path(params, is_leaf=_is_table_module)
        if _is_table_module(node)
    }
    named = [
        _Named(
            name,
            # Equinox calls this one a weight too, but not its class.
            (*path_name(path).split("/"), "embedding")
            if path[:-1] in tables
            else _words(path, leaf),
            tuple(getattr(leaf, "shape", ())),
        )
        for name, (path, leaf) in zip(names(with_paths), with_paths, strict=True)
    ]
    return named, structure


def _is_table_module(node: Any) -> bool:
    return is_a(node, "equinox", "Embedding")


def _by_place(named: Sequence[_Named]) -> dict[tuple[str, ...], list[_Named]]:
    """The leaves by what they stand in."""
    beside: dict[tuple[str, ...], list[_Named]] = defaultdict(list)
    for leaf in named:
        beside[leaf.words[:-1]].append(leaf)
    return beside


def _words(path: tuple[Any, ...], leaf: Any) -> tuple[str, ...]:
    """The names that lead to a leaf, without those of boxes around its array."""
    if isinstance(own := getattr(leaf, "path", None), str):
        return tuple(own.split("/"))
    entries = list(path)
    # An array in a box is reached by an attribute, "value" as a key is a name.
    while len(entries) > 1 and getattr(entries[-1], "name", None) in _BOXES:
        entries.pop()
    # Haiku's and Optax's keys are paths themselves, and those of PyTorch's state dicts.
    return tuple(re.split(r"[/.]", "/".join(str(entry_key(entry)) for entry in entries)))


def _by_rank(leaf: _Named, output_axis: int | None) -> Axes:
    rank = len(leaf.shape)
    if output_axis is None:
        output = 0 if _is_weight(leaf.words[-1]) else -1
    else:
        output = output_axis
    if not -rank <= output < rank:
        raise ValueError(
            f"output_axis={output} is not an axis of {leaf.name!r} of shape {leaf.shape}. "
            "Use -1 for Flax, Haiku and Keras, 0 for PyTorch's layout and Equinox."
        )
    output %= rank
    split = leaf.words[-1] == "kernel" and bool(_SPLIT_INTO_HEADS.intersection(leaf.words[-2:-1]))
    if (rank, output) == (3, 2) and split:
        return (0,)
    return tuple(axis for axis in range(rank) if axis != output)


def _is_weight(last: str) -> bool:
    """Whether a name is PyTorch's or Equinox's for a kernel: weight, weight_ih, in_proj_weight."""
    return (last.startswith("weight") and last != "weights") or last.endswith("_weight")


def _is_kernel(leaf: _Named, beside: Sequence[_Named]) -> bool:
    """Whether a leaf of rank 2 and more is a kernel, by its name and those beside it."""
    *above, last = leaf.words
    if last in _NOT_KERNELS or last.endswith("_bias"):
        return False
    if last in _MAY_BE_BIAS:
        others = {"scale": ("offset", "bias"), "offset": ("scale",)}.get(last, ())
        norm = last != "b" and any(_NORMS.fullmatch(word.lower()) for word in above[-1:])
        return not norm and not any(
            (x.words[-1] in others and x.shape == leaf.shape)
            or (x.words[-1] not in _MAY_BE_BIAS | _NOT_KERNELS and _biases(leaf.shape, x.shape))
            for x in beside
        )
    if last in _KERNELS:
        return True
    biases = [x for x in beside if x.words[-1] == "bias"]
    if _is_weight(last):
        if any(x.shape == leaf.shape for x in biases):
            return False
        return bool(biases) or len(leaf.shape) > 2 or not _is_table(above[-1:])
    return not _is_table(leaf.words) and not _TOKENS.fullmatch(last.lower())


def _biases(bias: tuple[int, ...], kernel: tuple[int, ...]) -> bool:
    """Whether a bias of one shape may belong to a kernel of another, of higher rank."""
    dims = iter(kernel)
    return len(bias) < len(kernel) and all(n in dims for n in bias if n != 1)


def _is_table(words: Sequence[str]) -> bool:
    """Whether one of the names is a table's; a patch embedding is a convolution."""
    split = [re.findall(r"[A-Z]?[a-z]+|[A-Z]+", word) for word in words]
    return any(
        any(_TABLES.fullmatch(part.lower()) for part in parts)
        and not any(part.lower() in ("patch", "patches") for part in parts)
        for parts in split
    )


class Leaf(NamedTuple):
    """A parameter and what is done with it."""

    path: str
    value: Any
    axes: Axes  # non-negative and ascending; () if it is left alone
    fan_in: int  # how many numbers are averaged into one; 1 if it is left alone
    reason: str  # why it is left alone; "" if it is not
    mesh_axes: tuple[tuple[str, ...], ...] = ()  # by dimension; () if the value is no shard

    def sharded_along(self, axes: Axes | None = None) -> tuple[str, ...]:
        """The mesh axes along which these axes of the value, or all, lie in shards."""
        dimensions = range(len(self.mesh_axes)) if axes is None else axes
        return tuple(name for i in dimensions if self.mesh_axes for name in self.mesh_axes[i])


def resolve(axes: Any, tree: Any, shapes: Sequence[tuple[int, ...]] | None = None) -> list[Leaf]:
    """Reads `axes` for every leaf of `tree`, in order, and checks them against its shape.

    Args:
      axes: axes tree, prefix tree or label function.
      tree: parameters, gradients or updates.
      shapes: the whole shape of each leaf, where the leaves themselves are shards.

    Raises:
      ValueError: if the axes do not match the tree, or some do not fit their parameter's shape.
    """
    if not jax.tree_util.tree_leaves(tree):  # optax.tree_map_params asks with a placeholder
        return []
    check_params(tree)
    check_axes(axes)
    if _is_label_function(axes):
        rule = axes if isinstance(axes, functools.partial) else functools.partial(axes)
        by_name = rule.func is axes_from_rank
        least = 4 if by_name and rule.keywords.get("conv_only") else 2
        name = f"what {getattr(rule.func, '__name__', rule.func)} returned"
        # An optimizer warns in its init, and not again in each update.
        axes = _from_rank(tree, **rule.keywords) if by_name else axes(tree)
    else:
        name, by_name, least = "axes", False, 2
    hint = "Give each parameter a tuple of ints, such as (0,), or () to leave it alone."
    leaves = []
    for i, (path, leaf, given, through_prefix) in enumerate(
        match(axes, tree, is_axes, name=name, hint=hint, default=())
    ):
        shape = tuple(getattr(leaf, "shape", ())) if shapes is None else shapes[i]
        # Through a prefix a tuple means the kernels below it, not their biases.
        meant = () if through_prefix and len(shape) < 2 else given
        checked = _checked(meant, path, shape)
        fan_in = math.prod(shape[axis] for axis in checked)
        reason = _why_left_alone(leaf, shape, checked, fan_in, by_name, least)
        leaves.append(Leaf(path, leaf, () if reason else checked, 1 if reason else fan_in, reason))
    return leaves


def is_axes(x: Any) -> bool:
    """Tells a tuple of ints from a container of them."""
    return type(x) is tuple and all(isinstance(i, Integral) and not isinstance(i, bool) for i in x)


def check_params(tree: Any, caller: str = "", name: str = "params") -> None:
    """Raises a ValueError if `tree` is plainly no tree of parameters or gradients.

    Args:
      tree: what was given.
      caller: the function that it was given to, if that needs at least one array; "" for an
        optimizer's ``init``, whose parameters may be numbers.
      name: the argument that it was given as.
    """
    leaves = jax.tree_util.tree_leaves(tree)
    # A dtype has a shape, and a Keras model a dtype.
    if any(
        (hasattr(x, "shape") and hasattr(x, "dtype")) or isinstance(x, float | complex)
        for x in leaves
    ):
        return
    if not callable(tree) and not (caller and (leaves or tree is None)):
        return
    if isinstance(tree, optax.GradientTransformation):
        what = "an Optax transformation"
    elif tree is not None and hasattr(tree, "__name__"):
        what = f"the function {tree.__name__}"
    else:
        what = repr(tree) if len(repr(tree)) < 60 else f"a {type(tree).__name__} without arrays"
    got = f"{caller + ': ' if caller else ''}{name} is {what}. "
    if hasattr(tree, "trainable_variables"):
        raise ValueError(got + "Of a Keras model, give model.trainable_variables.")
    if is_a(tree, "flax.linen", "Module"):
        raise ValueError(got + "Of a Linen model, give model.init(key, x)['params'].")
    if is_a(tree, "flax.nnx", "Module"):
        raise ValueError(got + "Of this NNX model, give nnx.state(model, nnx.Param).")
    if leaves and all(type(leaf) is int for leaf in leaves):
        raise ValueError(got + "Give arrays, or jax.ShapeDtypeStruct for shapes; axes come second.")
    raise ValueError(got + "Give a tree of arrays.")


def check_axes(axes: Any) -> None:
    """Raises a ValueError if `axes` is plainly something else, and says what was meant."""
    maker = str(getattr(axes, "__module__", "")).startswith("optax.")
    if isinstance(axes, optax.GradientTransformation) or maker:
        raise ValueError(
            "axes is an Optax transformation. Chain the two: optax.chain(centralize(), ...)."
        )
    if isinstance(axes, jax.sharding.PartitionSpec):
        raise ValueError(f"axes is {axes}. Give it by name: specs={axes}.")
    if callable(axes) and _is_label_function(axes):
        name = getattr(axes, "__name__", type(axes).__name__)
        if is_a(axes, "flax.nnx", "Module") or is_a(axes, "flax.linen", "Module"):
            raise ValueError(
                f"axes is the model {name}. Give a tree of tuples, such as axes_from_rank(params) "
                "or axes_from_trace(model, x)."
            )
        try:
            inspect.signature(axes).bind(None)
        except TypeError:
            raise ValueError(
                f"axes is the function {name}, which cannot be called with params alone. Give what "
                "it returns, as axes_from_trace(model, x), or a function from params to axes."
            ) from None
        except ValueError:  # one that does not tell what it takes
            pass
        return
    leaves = jax.tree_util.tree_leaves(axes, is_leaf=is_axes)
    if any(hasattr(leaf, "shape") and hasattr(leaf, "dtype") for leaf in leaves):
        raise ValueError(
            "axes holds arrays: parameters, gradients or a model. Give the axes of each parameter, "
            "as axes_from_rank(params) or axes_from_trace(model, x)."
        )
    if isinstance(axes, Table):
        raise ValueError(
            "axes is the text of summary or explain. Give what that is of, such as "
            "axes_from_rank(params) or axes_from_trace(model, x)."
        )
    if hasattr(axes, "fan_in") and hasattr(axes, "fan_out"):
        raise ValueError("axes is Roles, which has several axes trees. Give one: roles.fan_in.")
    if axes is None or isinstance(axes, str | bytes | bool | int | float | complex | set):
        raise ValueError(
            f"axes is {axes!r}. Give a tuple of ints for all parameters, such as (0,), a tree of "
            "them, or () for none."
        )
    if isinstance(axes, list) and axes and all(isinstance(i, Integral) for i in axes):
        raise ValueError(f"axes is {axes!r}, and axes are tuples. Use {tuple(axes)}.")


def not_called(maker: Callable[..., Any]) -> None:
    """Makes ``optax.chain(maker, ...)``, in place of ``maker()``, say what is missing."""
    name = maker.__name__

    def init(params: Any) -> Any:
        del params
        raise TypeError(f"{name} is a function that makes a transformation. Call it: {name}().")

    def update(updates: Any, state: Any = None, params: Any = None) -> Any:
        del updates, state
        init(params)

    vars(maker).update(init=init, update=update)


def _is_label_function(axes: Any) -> bool:
    # A Partial is a tree too, and an Equinox module of tuples is callable too.
    if not callable(axes) or isinstance(axes, jax.tree_util.Partial):
        return callable(axes)
    leaves = jax.tree_util.tree_leaves(axes, is_leaf=is_axes)
    return not any(is_axes(leaf) or hasattr(leaf, "shape") for leaf in leaves)


def _checked(axes: Axes, path: str, shape: tuple[int, ...]) -> Axes:
    rank = len(shape)
    if not all(-rank <= axis < rank for axis in axes):
        raise ValueError(
            f"axes {axes} for {path!r} do not fit its shape {shape}. Use axes from {-rank} to "
            f"{rank - 1}, or () to leave it alone."
            if rank
            else f"axes {axes} for {path!r} do not fit its shape (). Use () to leave it alone."
        )
    checked = tuple(sorted(operator.index(axis) % rank for axis in axes))
    if len(set(checked)) < len(checked):
        raise ValueError(
            f"axes {axes} for {path!r} of shape {shape} name an axis twice. "
            f"Use {tuple(sorted(set(checked)))}."
        )
    return checked


def _why_left_alone(
    leaf: Any, shape: tuple[int, ...], axes: Axes, fan_in: int, by_name: bool, least_rank: int
) -> str:
    dtype = getattr(leaf, "dtype", None)
    if dtype is None or not jnp.issubdtype(dtype, jnp.inexact):
        return f"dtype {dtype}" if dtype is not None else "no array"
    if not axes:
        if len(shape) < least_rank:
            return f"rank {len(shape)}"
        return "name" if by_name else "()"
    if 0 in shape:
        return "empty"
    # The mean of one number is the number: subtracting it would erase the gradient.
    return "fan-in of one" if fan_in == 1 else ""


def reasons(leaves: Sequence[Leaf]) -> str:
    """The reasons for which `leaves` are left alone, counted: ``'2 × rank 1, 1 × name'``."""
    counts = Counter(leaf.reason for leaf in leaves)
    return ", ".join(f"{n} × {reason}" for reason, n in counts.items())


class Table(str):
    """Text that shows itself as it is at a prompt, and as a table in a notebook."""

    html: str = ""

    __repr__ = str.__str__

    def _repr_html_(self) -> str:
        return self.html


# Of the text, so that both a light and a dark notebook can be read.
_COLOURS = {"weight": "#2e8b57", "alone": "#888888", "refused": "#d62728"}


def table(
    rows: Iterable[Sequence[str]], *lines_below: str, roles: Sequence[str] | None = None
) -> Table:
    """Aligns rows of text into columns, two spaces apart.

    Args:
      rows: a head, and a row for each parameter.
      lines_below: text below it.
      roles: of each parameter, "weight", "alone" or "refused", which colours its row in a notebook.
    """
    rows = [tuple(row) for row in rows]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    aligned = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
    text = Table("\n".join([*aligned, *lines_below]))
    styles = ["", *(f' style="color:{_COLOURS[role]}"' for role in roles or [])]
    cells = [
        "".join(f'<{cell} style="text-align:left">{html.escape(text)}</{cell}>' for text in row)
        for row, cell in zip(rows, ["th", *["td"] * (len(rows) - 1)], strict=True)
    ]
    body = "".join(
        f"<tr{style}>{row}</tr>" for style, row in zip_longest(styles, cells, fillvalue="")
    )
    below = "".join(f"<p>{html.escape(line)}</p>" for line in lines_below)
    text.html = f"<table>{body}</table>{below}"
    return text


def summary(params: Any, axes: AxesLike = axes_from_rank) -> str:
    """Lists, a line each, over which axes the gradient of each parameter is averaged, or why not.

    Args:
      params: pytree of arrays, ``jax.ShapeDtypeStruct`` or Keras variables, or an NNX or Equinox
        model.
      axes: axes tree, prefix tree or label function, as for `centralize`.

    Returns:
      A text, in a notebook a table, of aligned columns: path, shape, axes averaged over, fan-in
      (how many numbers one mean is over), and for what is left alone the reason: its rank, its
      name, its dtype, a fan-in of one, or ``()`` given for it. Below: the share of parameters
      centralized, and kernels whose biases do not fit, as `axes_from_rank` warns of.

    Raises:
      ValueError: if the axes do not match ``params``, or some do not fit their shape.

    Example:
      >>> import jax.numpy as jnp
      >>> params = {"dense": {"kernel": jnp.ones((8, 5)), "bias": jnp.ones(5)}}
      >>> print(summary(params))
      parameter     shape   axes  fan-in  why left alone
      dense/bias    (5,)    ()    -       rank 1
      dense/kernel  (8, 5)  (0,)  8
      40 of 45 parameters (88.9 %) are centralized, in 1 of 2 arrays.

      A model that holds its arrays, and axes from its own computation:

      >>> from flax import nnx
      >>> from optax_gc import axes_from_trace
      >>> model = nnx.Linear(8, 5, rngs=nnx.Rngs(0))
      >>> print(summary(model, axes_from_trace(model, jnp.ones((3, 8)))))
      parameter  shape   axes  fan-in  why left alone
      bias       (5,)    ()    -       rank 1
      kernel     (8, 5)  (0,)  8
      40 of 45 parameters (88.9 %) are centralized, in 1 of 2 arrays.
    """
    check_params(params, "summary")
    leaves = resolve(axes, params)
    if places := nnx_places(params):  # each parameter of a module, where it stands first
        leaves = [leaf for leaf, (p, q) in zip(leaves, places.items(), strict=True) if p == q]
    rows = [("parameter", "shape", "axes", "fan-in", "why left alone")]
    roles = ["weight" if leaf.axes else "alone" for leaf in leaves]
    size = {True: 0, False: 0}
    for leaf in leaves:
        shape = tuple(getattr(leaf.value, "shape", ()))
        size[bool(leaf.axes)] += math.prod(shape)
        fan_in = str(leaf.fan_in) if leaf.axes else "-"
        rows.append((leaf.path, str(shape), str(leaf.axes), fan_in, leaf.reason))
    total = sum(size.values())
    below = biases_that_do_not_fit(axes, params)
    share = f"{size[True]:,} of {total:,} parameters ({size[True] / max(total, 1):.1%})".replace(
        "%", " %"
    )
    arrays = f"in {sum(bool(leaf.axes) for leaf in leaves)} of {len(leaves)} arrays"
    lines = [f"{share} are centralized, {arrays}.", *below.splitlines()]
    return table(rows, *lines, roles=roles)
