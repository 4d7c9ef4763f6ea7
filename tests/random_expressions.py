"""Random expressions of layers, whose parameters are expressions of parameters themselves.

An expression is built from the outside in: a layer asks for inputs, which are layers again, and for
parameters of some shape in some part, which are made of others. So the axes of each parameter that
it is made of follow from the rules of matrices, and not from a reading of the program.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from trace_support import f32, i32


def constant(*shape):
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def normalized(h):
    h = h - h.mean(-1, keepdims=True)
    return h * lax.rsqrt(1 + (h**2).mean(-1, keepdims=True))


def over_norm(w, axis):
    return w / (1 + jnp.sqrt((w**2).sum(axis, keepdims=True)))


def convolved(h, w):
    return lax.conv_general_dilated(h, w, (1,), "SAME", dimension_numbers=("NWC", "WIO", "NWC"))


NAMES = {"jax": jax, "jnp": jnp, "lax": lax, "np": np, "K": constant}
NAMES |= {"normalized": normalized, "over_norm": over_norm, "convolved": convolved}
BATCH, ROWS = 3, 9
ADDED = ()  # the part of a bias, a scale or a position
TABLE = "table"  # of which inputs choose rows
UNCLEAR = "unclear"
NONLINEAR = {"tanh", "normalized", "softmax", "product"}


class Program(NamedTuple):
    """An expression of parameters `p` and inputs `z`, and the axes of the parameters.

    A set of several axes means that parts of it differ, so that there is more than one reading.
    """

    text: str
    fn: Any
    params: dict[str, Any]
    inputs: dict[str, Any]
    axes: dict[str, set[Any]]


class Builder:
    """Draws one expression."""

    def __init__(self, draw):
        self.draw, self.params, self.inputs, self.axes = draw, {}, {}, {}

    def dim(self, shape):
        return self.draw([d for d in (2, 4, 5, 6, 7) if d not in shape])

    def leaf(self, shape, part):
        known = [name for name, s in self.params.items() if s == shape]
        new = f"w{len(self.params)}"
        name = self.draw([new, new, *known])
        self.params[name] = shape
        self.axes.setdefault(name, set()).add(() if part == TABLE else part)
        return f"p['{name}']"

    def given(self, shape, chosen=0):
        name = f"x{len(self.inputs)}"
        self.inputs[name] = i32(*shape) if chosen else f32(*shape)
        return f"z['{name}'] % {chosen}" if chosen else f"z['{name}']"

    def param(self, shape, part, depth, linear=False):
        """A parameter of a shape, in some part: axes of a weight that inputs meet, or others.

        Of two factors the one of which a nonlinear function is taken passes for an activation, so
        that factors have to be linear.
        """
        if not depth:
            return self.leaf(shape, part)

        def make(shape, part=part, linear=linear):
            return self.param(shape, part, depth - 1, linear)

        weight = part not in (ADDED, TABLE, UNCLEAR)
        last = len(shape) - 1
        axis = self.draw(list(range(len(shape))))
        k = self.dim(shape)
        ways = {
            "leaf": lambda: self.leaf(shape, part),
            "tanh": lambda: f"jnp.tanh({make(shape)})",
            "scaled": lambda: f"(2 * {make(shape)})",
            "sum": lambda: f"({make(shape)} + {make(shape)})",
            "product": lambda: f"({make(shape)} * {make(shape)})",
            "normalized": lambda: f"over_norm({make(shape)}, {axis})",
            "softmax": lambda: f"jax.nn.softmax({make(shape)}, {axis})",
            "masked": lambda: f"(K{shape} * {make(shape)})",
            # Added to inputs, a mean says less than another use as a weight.
            "mean": lambda: (
                f"{make((k, *shape), UNCLEAR if part == ADDED else shifted(part))}.mean(0)"
            ),
            "one of several": lambda: f"{make((k, *shape), shifted(part))}[1]",
            "a slice": lambda: f"{make((shape[0] + 2, *shape[1:]))}[1:-1]",
        }
        if len(shape) > 1:
            left, right = (*shape[:-1], k), (*shape[:-2], k, shape[-1])
            swapped = (*shape[:-2], shape[-1], shape[-2])
            of_left = UNCLEAR if part == ADDED else part
            of_right = UNCLEAR if part == ADDED else (last - 1,) if part == TABLE else part
            ways |= {
                "low rank": lambda: (
                    f"({make(left, of_left, linear=True)} @ {make(right, of_right, linear=True)})"
                ),
                "times constants": lambda: f"({make(left)} @ K({k}, {shape[-1]}))",
                "constants times": lambda: f"(K({shape[-2]}, {k}) @ {make(right, of_right)})",
                "scaled outputs": lambda: f"({make(shape)} * {make(shape[-1:], ADDED)})",
                "joined": lambda: (
                    f"jnp.concatenate([{make((2, *shape[1:]))}, {make(shape)}])[1:-1]"
                ),
            }
            if not weight:  # of a weight, a vector that is added says that its rows are inputs
                ways |= {
                    "added to all rows": lambda: f"({make(shape)} + {make(shape[-1:], ADDED)})",
                    "repeated": lambda: f"jnp.broadcast_to({make(shape[1:], ADDED)}, {shape})",
                }
            if part != TABLE:
                swap = {last: last - 1, last - 1: last}
                turned = tuple(sorted(swap.get(a, a) for a in part)) if weight else part
                ways["transposed"] = lambda: f"{make(swapped, turned)}.swapaxes(-1, -2)"
        return ways[
            self.draw(["leaf", *(way for way in ways if not (linear and way in NONLINEAR))])
        ]()

    def data(self, shape, depth):
        """An activation of a shape (batch, ..., features)."""
        if not depth:
            return self.given(shape)
        make = lambda *shape: self.data(shape, depth - 1)  # noqa: E731
        deep = min(depth - 1, 2)
        weight = lambda part, *shape: self.param(shape, part, deep)  # noqa: E731
        *lead, f = shape
        n, k = lead[0], self.dim(shape)
        rows = f"{self.given(lead, ROWS)}"
        ways = {
            "dense": lambda: f"({make(*lead, k)} @ {weight((0,), k, f)})",
            "dense again": lambda: f"({make(*lead, k)} @ {weight((0,), k, f)})",
            "transposed": lambda: f"({make(*lead, k)} @ {weight((1,), f, k)}.T)",
            "product and sum": lambda: (
                f"({make(*lead, k)}[..., None] * {weight((0,), k, f)}).sum(-2)"
            ),
            "product, sliced and summed": lambda: (
                f"(lambda z: sum(z[..., j, :] for j in range({k})))"
                f"({make(*lead, k)}[..., None] * {weight((0,), k, f)})"
            ),
            "half of the outputs": lambda: (
                f"({make(*lead, k)} @ {weight((0,), k, 2 * f)})[..., :{f}]"
            ),
            "halves of the inputs": lambda: (
                f"({make(*lead, 2 * k)}[..., :{k}] @ {weight((0,), k, f)})"
            ),
            "gated": lambda: f"({make(*shape)} * ({make(*lead, k)} @ {weight((0,), k, f)}))",
            "residual": lambda: (
                f"(lambda h: h + jnp.tanh(h @ {weight((0,), f, f)}))({make(*shape)})"
            ),
            "tanh": lambda: f"jnp.tanh({make(*shape)})",
            "softmax": lambda: f"jax.nn.softmax({make(*shape)})",
            "normalized": lambda: f"normalized({make(*shape)})",
            "sum": lambda: f"({make(*shape)} + {make(*shape)})",
            "product": lambda: f"({make(*shape)} * {make(*shape)})",
            "bias": lambda: f"({make(*shape)} + {weight(ADDED, f)})",
            "scale": lambda: f"({make(*shape)} * {weight(ADDED, f)})",
            "lookup": lambda: f"{weight(TABLE, ROWS, f)}[{rows}]",
            "one-hots": lambda: f"(jax.nn.one_hot({rows}, {ROWS}) @ {weight(TABLE, ROWS, f)})",
        }
        if len(lead) > 1:
            t = lead[1]
            ways |= {
                "positions": lambda: f"({make(*shape)} + {weight(ADDED, t, f)})",
                "tokens mixed": lambda: (
                    f"jnp.einsum('nkd,kt->ntd', {make(n, k, f)}, {weight((0,), k, t)})"
                ),
                "layers": lambda: (
                    f"lax.scan(lambda h, w: (jnp.tanh(h @ w), None), {make(*shape)}, "
                    f"{weight((1,), 2, f, f)})[0]"
                ),
                "attention": lambda: (
                    f"(lambda h: jax.nn.softmax((h @ {weight((0,), k, f)}) @ "
                    f"(h @ {weight((0,), k, f)}).swapaxes(1, 2)) @ (h @ {weight((0,), k, f)}))"
                    f"({make(n, t, k)})"
                ),
                "convolution": lambda: f"convolved({make(n, t, k)}, {weight((0, 1), 3, k, f)})",
                "taps": lambda: (
                    f"(lambda h, w: sum(jnp.roll(h, j, 1) * w[j] for j in range(3)))"
                    f"({make(*shape)}, {weight((0,), 3, f)})"
                ),
                "running sums": lambda: f"jnp.cumsum({make(*shape)}, 1)",
                "shifted": lambda: f"jnp.pad({make(*shape)}, ((0, 0), (1, 0), (0, 0)))[:, :-1]",
                "turned": lambda: f"{make(n, f, t)}.swapaxes(1, 2)",
                "of examples": lambda: f"({make(*shape)} + {make(n, f)}[:, None])",
            }
        else:
            ways |= {
                "pooled": lambda: f"{make(n, k, f)}.mean(1)",
                "the greatest": lambda: f"{make(n, k, f)}.max(1)",
                "a chosen expert": lambda: (
                    f"jnp.einsum('nd,nde->ne', {make(n, k)}, "
                    f"{weight((1,), ROWS, k, f)}[{self.given((n,), ROWS)}])"
                ),
                "experts": lambda: (
                    f"jnp.einsum('ne,nef->nf', jax.nn.softmax({make(n, 2)}), "
                    f"jnp.einsum('nd,edf->nef', {make(n, k)}, {weight((1,), 2, k, f)}))"
                ),
                "bilinear": lambda: (
                    f"jnp.einsum('na,abf,nb->nf', {make(n, 2)}, {weight((0, 1), 2, k, f)}, "
                    f"{make(n, k)})"
                ),
            }
        return ways[self.draw([*ways])]()


def shifted(part):
    """The same part, behind one more axis."""
    return tuple(axis + 1 for axis in part) if isinstance(part, tuple) else part


def program(draw, depth):
    """A random program; `draw` chooses from a list."""
    builder = Builder(draw)
    text = f"jnp.tanh({builder.data(draw([(BATCH, 5), (BATCH, 4, 6)]), depth)})"
    used = {name: x for name, x in builder.inputs.items() if f"'{name}'" in text}
    fn = eval(f"lambda p, z: {text}", NAMES)
    params = {name: f32(*shape) for name, shape in builder.params.items()}
    return Program(text, fn, params, used, builder.axes)
