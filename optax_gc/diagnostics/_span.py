"""Weight noise: the part of a layer's weights that its inputs cannot see."""

import math
from collections.abc import Sequence
from numbers import Integral
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from .._axes import Axes, axes_from_rank, resolve
from .._project import wide


def span_residual(
    weight: jax.Array,
    inputs: jax.Array,
    *,
    axes: Axes | None = None,
    padding: str | Sequence[tuple[int, int]] | None = None,
    strides: int | Sequence[int] = 1,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
    rtol: float | None = None,
) -> jax.Array:
    """Subtracts from each unit's weights their projection onto the span of the layer's inputs.

    What remains has no effect on the output for any of these inputs. Gradients lie in the span, so
    SGD, with momentum or without, never changes it, and weight decay shrinks it by 1 - ηλ a step.
    Adam leaves the span, and so does GC, which adds a constant vector to it.

    Args:
      weight: a dense kernel (any layout, see ``axes``), or a convolution's ``(*window,
        in / groups, out)``, as Flax, Haiku and Keras have it.
      inputs: what the layer was fed, dense: ``(*batch, *fan_in)``; convolution:
        ``(*batch, *space, in)``. The span is that of all of them.
      axes: the fan-in axes of a dense kernel; None for all but the last.
      padding: the convolution's: ``"SAME"``, ``"SAME_LOWER"``, ``"VALID"``, or (low, high) for
        each dimension of space; None for a dense layer.
      strides: the convolution's, as ``dilation`` of its window and ``groups`` of its features.
      dilation: see ``strides``.
      groups: see ``strides``.
      rtol: directions in which the inputs' singular value is at most this fraction of the largest
        count as outside; None for the fan-in times the machine epsilon.

    Returns:
      The residual, like ``weight`` in shape, in at least float32; complex if the inputs are. Its
      norm over that of ``weight`` is the fraction of noise. Inputs that are not finite make it NaN.

    Raises:
      TypeError: if weight or inputs are no array.
      ValueError: if the shapes of weight and inputs do not fit, or the padding is another.

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> import optax
      >>> from optax_gc import diagnostics
      >>> x = jnp.array([[1.0, 0.0, 0.0], [1.0, 1.0, 0.0]])
      >>> params = {"kernel": jnp.array([[1.0], [2.0], [3.0]])}
      >>> noise = diagnostics.span_residual(params["kernel"], x)
      >>> print([f"{abs(n):.3f}" for n in noise[:, 0]])
      ['0.000', '0.000', '3.000']

      Of updates, it is zero as long as they stay in the span:

      >>> outside = optax.snapshot("noise", lambda u: diagnostics.span_residual(u["kernel"], x))
      >>> tx = optax.chain(optax.sgd(0.5), optax.add_decayed_weights(-0.1), outside)
      >>> grads = jax.grad(lambda p: (x @ p["kernel"]).sum())(params)
      >>> _, state = tx.update(grads, tx.init(params), params)
      >>> print([f"{abs(n):.3f}" for n in optax.tree.get(state, "noise")[:, 0]])
      ['0.000', '0.000', '0.300']
    """
    for name, x in (("weight", weight), ("inputs", inputs)):
        if not hasattr(x, "shape") or not hasattr(x, "dtype"):
            raise TypeError(
                f"{name} is a {type(x).__name__}. Give one array: span_residual(kernel, inputs)."
            )
    (leaf,) = resolve(axes_from_rank if axes is None else axes, weight)
    shape = tuple(weight.shape)
    if leaf.reason not in ("", "fan-in of one"):
        raise ValueError(
            f"weight of shape {shape} has no fan-in: {leaf.reason}. Give a kernel and its axes."
        )
    given = range(len(shape) - 1) if axes is None else axes
    fan_in = tuple(sorted(axis % len(shape) for axis in given))
    if padding is None:
        expected = tuple(shape[axis] for axis in fan_in)
        if tuple(inputs.shape[inputs.ndim - len(expected) :]) != expected:
            raise ValueError(
                f"inputs of shape {tuple(inputs.shape)} do not end in the fan-in {expected} of a "
                f"weight of shape {shape}. Give a convolution's padding, or a dense kernel's axes."
            )
        if (strides, dilation, groups) != (1, 1, 1):
            raise ValueError(
                f"strides={strides}, dilation={dilation} and groups={groups} without padding. Give "
                "a convolution's padding."
            )
        rows = inputs.reshape(1, -1, math.prod(expected))
    else:
        if axes is not None or not 3 <= len(shape) <= 5:
            raise ValueError(
                f"weight of shape {shape} with axes={axes} and padding={padding!r}. A kernel of a "
                "convolution is (*window, in / groups, out), with a window of at most three "
                "dimensions, and its axes need not be given."
            )
        rows = _patches(inputs, shape, padding, strides, dilation, groups)

    w = wide(weight)
    if jnp.iscomplexobj(rows) and not jnp.iscomplexobj(w):
        w = lax.complex(w, jnp.zeros_like(w))
    rows = lax.convert_element_type(rows, w.dtype)
    first = jnp.moveaxis(w, fan_in, range(len(fan_in)))
    # (groups, fan-in, units of one group)
    columns = first.reshape(rows.shape[-1], groups, -1).swapaxes(0, 1)
    # The triangle has the singular values and right vectors of the rows, in at most fan-in rows.
    triangle = jnp.linalg.qr(rows, mode="r")
    _, values, right = jnp.linalg.svd(triangle, full_matrices=False)
    if rtol is None:
        rtol = rows.shape[-1] * float(jnp.finfo(w.dtype).eps)
    unseen = values <= rtol * values[:, :1]  # false for NaN, which stays
    right = jnp.where(unseen[..., None], 0, right)
    residual = columns - right.conj().swapaxes(1, 2) @ (right @ columns)
    residual = residual.swapaxes(0, 1).reshape(first.shape)
    return jnp.moveaxis(residual, range(len(fan_in)), fan_in)


def _patches(
    inputs: jax.Array,
    shape: tuple[int, ...],
    padding: Any,
    strides: Any,
    dilation: Any,
    groups: int,
) -> jax.Array:
    """What the windows see: (groups, patches, fan-in), fan-in ordered as in the kernel."""
    *window, width, units = shape
    space = len(window)
    if inputs.ndim < space + 1 or inputs.shape[-1] != width * groups or units % groups:
        raise ValueError(
            f"inputs of shape {tuple(inputs.shape)} do not fit a convolution's weight of shape "
            f"{shape} with groups={groups}. They end in {space} dimensions of space and "
            f"{width * groups} features."
        )
    if not _is_padding(padding, space):
        raise ValueError(
            f"padding={padding!r}. Give 'SAME', 'VALID' or 'SAME_LOWER', or a pair of ints (low, "
            f"high) for each of {space} dimensions of space. Pad the inputs for any other."
        )
    letters = "DHW"[-space:]
    patches = lax.conv_general_dilated_patches(
        inputs.reshape(-1, *inputs.shape[inputs.ndim - space - 1 :]),
        window,
        (strides,) * space if isinstance(strides, int) else tuple(strides),
        padding,
        rhs_dilation=(dilation,) * space if isinstance(dilation, int) else tuple(dilation),
        dimension_numbers=(f"N{letters}C", f"{letters}IO", f"N{letters}C"),
    )
    # It puts features before the window; a kernel has them after.
    patches = patches.reshape(-1, groups, width, math.prod(window))
    return patches.transpose(1, 0, 3, 2).reshape(groups, -1, math.prod(window) * width)


def _is_padding(padding: Any, space: int) -> bool:
    if isinstance(padding, str):
        return padding.upper() in ("SAME", "VALID", "SAME_LOWER")
    return (
        isinstance(padding, Sequence)
        and len(padding) == space
        and all(isinstance(pair, Sequence) and len(pair) == 2 for pair in padding)
        and all(isinstance(n, Integral) for pair in padding for n in pair)
    )
