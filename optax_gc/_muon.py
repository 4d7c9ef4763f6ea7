"""What Optax's Muon wants to know of each parameter, from the roles of its axes."""

from collections.abc import Sequence
from typing import Any

import jax

from ._axes import is_axes
from ._match import is_box, names, path_name
from ._trace import Roles
from ._trace.call import brief


def muon_dimension_numbers(roles: Roles, *, adam: str | Sequence[str] = ()) -> Any:
    """Answers the dimension numbers of each parameter for Muon, and None for what Adam is to train.

    A matrix has fan-in and fan-out, of any number of axes each; the axes that are left count
    matrices, which Muon takes one by one. Whatever lacks either has no matrix, and is None: biases,
    scales, embeddings, a single output, and kernels of depthwise and grouped convolutions. So is
    what ``adam`` names, which should be the output layer: that it is one cannot be told from its
    axes. By default Optax gives Muon to every array of rank 2 and to nothing else.

    A fused kernel of queries, keys and values, such as one of shape (features, 3, heads, head_dim),
    is one matrix. To take the three one by one: ``roles.fan_out["qkv"] = (2, 3)``.

    Args:
      roles: as from `roles_from_trace`, perhaps corrected.
      adam: names of further parameters for Adam, or of modules that hold them, as `explain` shows
        them: ``("head", "layers/router")``.

    Returns:
      A tree like the parameters of ``optax.contrib.MuonDimensionNumbers`` and None, for the
      ``muon_weight_dimension_numbers`` of ``optax.contrib.muon``; boxes around single arrays, such
      as ``nnx.Param``, are left out. Where the tree can itself be called, as an Equinox module,
      pass ``lambda params: numbers``. ``optax.contrib.galore`` takes it too, as
      ``weight_dimension_numbers``, for parameters without boxes, where no matrix has copies.

    Raises:
      ValueError: if ``adam`` names no parameter, or an axis is in both fan-in and fan-out.
      TypeError: if ``roles`` are not roles, or ``adam`` is no name or names.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> def forward(params, x):
      ...     h = jax.lax.scan(lambda h, w: (jnp.tanh(h @ w), None), x, params["layers"])[0]
      ...     return h @ params["head"]
      >>> params = {"head": jnp.ones((5, 3)), "layers": jnp.ones((2, 5, 5))}
      >>> from optax_gc import roles_from_trace
      >>> roles = roles_from_trace(forward, params, jnp.ones((4, 5)))
      >>> numbers = muon_dimension_numbers(roles, adam="head")
      >>> numbers["layers"]
      MuonDimensionNumbers(reduction_axis=(1,), output_axis=(2,))
      >>> print(numbers["head"])
      None

    References:
      Jordan et al., Muon: An optimizer for hidden layers in neural networks, 2024,
      https://kellerjordan.github.io/posts/muon/.
    """
    # contrib makes no promise of stability: the rest of the package is to load without it.
    from optax.contrib import MuonDimensionNumbers

    if not isinstance(roles, Roles):
        raise TypeError(
            f"roles is a {type(roles).__name__}. Pass what roles_from_trace(...) returns: it has "
            "fan_out too."
        )
    given = (adam,) if isinstance(adam, str) else adam
    if not isinstance(given, list | tuple | set) or not all(isinstance(x, str) for x in given):
        raise TypeError(
            f"adam is {brief(adam)}. Give names of parameters, such as adam=('head', 'router')."
        )
    paths = names(jax.tree_util.tree_leaves_with_path(roles.fan_in, is_leaf=is_axes))
    for name in given:
        if not any(map(lambda path: _is_in(path, name), paths)):
            raise ValueError(
                f"adam has {name!r}, which names no parameter. The parameters are "
                f"{', '.join(map(repr, paths))}; a part of a name up to a slash names all in it."
            )

    def numbers(path: Any, *boxes: Any) -> MuonDimensionNumbers | None:
        fan_in, fan_out = (
            axes for box in boxes for axes in jax.tree_util.tree_leaves(box, is_leaf=is_axes)
        )
        name = path_name(path)
        if both := set(fan_in) & set(fan_out):
            raise ValueError(
                f"axes {tuple(sorted(both))} of {name!r} are in both its fan-in {fan_in} and its "
                f"fan-out {fan_out}. Leave them in one."
            )
        if not fan_in or not fan_out or any(_is_in(name, part) for part in given):
            return None
        return MuonDimensionNumbers(fan_in, fan_out)

    # Around nnx variables there are boxes in nnx.State, and none in what nnx.Optimizer makes of it.
    return jax.tree_util.tree_map_with_path(
        numbers, roles.fan_in, roles.fan_out, is_leaf=lambda x: is_axes(x) or is_box(x)
    )


def _is_in(path: str, name: str) -> bool:
    return f"{path}/".startswith(f"{name.strip('/')}/")
