"""Random expressions of layers, whose parameters are expressions of parameters themselves.

An expression is built from the outside in: a layer asks for inputs, which are layers again, and for
parameters of some shape in some part, which are made of others. So the axes of each parameter that
it is made of follow from the rules of matrices, and not from a reading of the program.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh, PartitionSpec
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


def depthwise(h, w):
    return lax.conv_general_dilated(
        h, w[:, None], (1,), "SAME", dimension_numbers=("NWC", "WIO", "NWC"),
        feature_group_count=h.shape[-1],
    )  # fmt: skip


def upsampled(h, w):
    return lax.conv_transpose(h, w, (1,), "SAME", dimension_numbers=("NWC", "WIO", "NWC"))


def recurrent(h, start, w, again):
    def step(c, x):
        c = jnp.tanh(x @ w + c @ again)
        return c, c

    start = jnp.broadcast_to(start, (h.shape[0], w.shape[1]))
    return lax.scan(step, start, h.swapaxes(0, 1))[1].swapaxes(0, 1)


def decaying(h, rate):
    rate = jnp.broadcast_to(jax.nn.sigmoid(rate), h.shape)

    def combine(a, b):
        return a[0] * b[0], b[0] * a[1] + b[1]

    return lax.associative_scan(combine, (rate, h), axis=1)[1]


def blocked(h, w):
    k, f = w.shape
    h = jnp.moveaxis(h.reshape(*h.shape[:-1], 2, k // 2), -2, 0)
    start = jnp.zeros((*h.shape[1:-1], f))
    return lax.scan(lambda c, of: (c + of[0] @ of[1], None), start, (h, w.reshape(2, k // 2, f)))[0]


def sharded(h, w):
    mesh = Mesh(jax.devices()[:2], ("m",))
    specs = PartitionSpec(*[None] * (h.ndim - 1), "m"), PartitionSpec("m")
    product = lambda h, w: lax.psum(h @ w, "m")  # noqa: E731
    return jax.shard_map(product, mesh=mesh, in_specs=specs, out_specs=PartitionSpec())(h, w)


def by_vmap(h, w):
    return jax.vmap(lambda h, w: jnp.tanh(h @ w), (None, 0))(h, w)


def of_members(h, gain, w):
    return jax.vmap(lambda gain, w: normalized(h) * gain @ w)(gain, w)


def written(h):
    """Features put into zeros one after another."""
    zeros = jnp.zeros(h.shape).at[..., 0].add(h.mean(-1))
    zeros = zeros.at[..., 1:-1].set(h[..., 1:-1])
    return lax.dynamic_update_slice(zeros, h[..., -1:], (0,) * (h.ndim - 1) + (h.shape[-1] - 1,))


def row_by_row(w):
    """Rows written from the last to the first."""
    rows = jnp.zeros(w.shape)
    for i in range(len(w)):
        rows = rows.at[i].set(w[len(w) - 1 - i])
    return rows


def in_a_loop(w):
    start = jnp.zeros(w.shape)
    return lax.fori_loop(0, len(w), lambda i, rows: rows.at[i].set(w[len(w) - 1 - i]), start)


def by_inputs(h, w):
    return sum(h[..., j, None] * w[j] for j in range(len(w)))


def by_outputs(h, w):
    return jnp.stack([h @ w[:, j] for j in range(w.shape[1])], -1)


def mapped_outputs(h, w):
    return jnp.moveaxis(lax.map(lambda column: h @ column, w.T), 0, -1)


def looped_inputs(h, w):
    start = jnp.zeros((*h.shape[:-1], w.shape[1]))
    return lax.fori_loop(0, len(w), lambda j, c: c + h[..., j, None] * w[j], start)


def fields(tables, ids, values):
    rows = jax.vmap(lambda table, i: table[i], (0, 1), 1)(tables, ids)
    return (rows * values[..., None]).sum(1)


@jax.jit
def dense(h, w):
    return h @ w


HELPERS = (
    normalized, over_norm, convolved, depthwise, upsampled, recurrent, decaying, blocked, sharded,
    by_vmap, of_members, written, fields, dense, row_by_row, in_a_loop, by_inputs, by_outputs,
    mapped_outputs, looped_inputs,
)  # fmt: skip
NAMES = {"jax": jax, "jnp": jnp, "lax": lax, "np": np, "K": constant}
NAMES |= {f.__name__: f for f in HELPERS}
BATCH, ROWS = 3, 9
ADDED = ()  # the part of a bias, a scale or a position
TABLE = "table"  # of which inputs choose rows
UNCLEAR = "unclear"
NONLINEAR = {"tanh", "normalized", "softmax", "product", "centred", "over its length", "mapped"}


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
        self.axes.setdefault(name, set()).add(part)
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
            "times a number": lambda: f"({self.given(())} * {make(shape)})",
            "sum": lambda: f"({make(shape)} + {make(shape)})",
            "product": lambda: f"({make(shape)} * {make(shape)})",
            "normalized": lambda: f"over_norm({make(shape)}, {axis})",
            "softmax": lambda: f"jax.nn.softmax({make(shape)}, {axis})",
            "masked": lambda: f"(K{shape} * {make(shape)})",
            "beside constants": lambda: f"(K{shape} + {make(shape)})",
            # Added to inputs, a mean says less than another use as a weight.
            "mean": lambda: (
                f"{make((k, *shape), UNCLEAR if part == ADDED else shifted(part))}.mean(0)"
            ),
            "one of several": lambda: f"{make((k, *shape), shifted(part))}[1]",
            "a slice": lambda: f"{make((shape[0] + 2, *shape[1:]))}[1:-1]",
            "centred": lambda: f"(lambda w: w - w.mean({axis}, keepdims=True))({make(shape)})",
            "over its length": lambda: f"(lambda w: w / (1 + jnp.linalg.norm(w)))({make(shape)})",
            "rounded": lambda: (
                f"(lambda w: w + lax.stop_gradient(jnp.round(w) - w))({make(shape)})"
            ),
            "mixed": lambda: (
                f"(lambda t: t * {make(shape)} + (1 - t) * {make(shape)})"
                f"(jax.nn.sigmoid({self.leaf((), ADDED)}))"
            ),
            "kept where": lambda: f"jnp.where(K{shape} > 0, {make(shape)}, {make(shape)})",
            "written": lambda: (
                f"jnp.zeros({shape}).at[1:].set({make((shape[0] - 1, *shape[1:]))})"
                if shape[0] > 2
                else make(shape)
            ),
            "mapped": lambda: f"lax.map(jnp.tanh, {make(shape)})",
            "turned over": lambda: f"jnp.flip({make(shape)}, {axis})",
            "rolled": lambda: f"jnp.roll({make(shape)}, 1, {axis})",
            "row by row": lambda: f"row_by_row({make(shape)})",
            "in a loop": lambda: f"in_a_loop({make(shape)})",
            "stacked": lambda: f"jnp.stack({make(shape)}[::-1])",
            "taken": lambda: f"jnp.take({make(shape)}, np.arange({shape[axis]})[::-1], {axis})",
            "every other": lambda: f"{make((*shape[:-1], 2 * shape[-1]))}[..., ::2]",
            "exchanged": lambda: f"(lambda w: jnp.concatenate([w[1:], w[:1]]))({make(shape)})",
            "padded": lambda: (
                f"jnp.pad({make((shape[0] - 1, *shape[1:]))}, ((1, 0), *[(0, 0)] * {last}))"
                if shape[0] > 2
                else make(shape)
            ),
        }
        if len(shape) > 1 and weight and part == (last - 1,):
            ways |= {
                "scaled inputs": lambda: f"({make(shape)} * {make(shape[-2:-1], ADDED)}[:, None])",
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

    def shuffled(self, items):
        items = list(items)
        return [items.pop(self.draw(list(range(len(items))))) for _ in range(len(items))]

    def chain(self, shape, make):
        """Factors each of which contracts some of what is there, in one einsum or one by one.

        A factor that contracts nothing is a scale.
        """
        *lead, f = shape
        batch, new = "nt"[: len(lead)], iter("abcdefghijkl")
        size = {"z": f, **dict(zip(batch, lead, strict=True))}

        def letters(n):
            names = [next(new) for _ in range(n)]
            size.update((name, self.draw([2, 3, 4, 5])) for name in names)
            return names

        def dims(names):
            return [size[name] for name in names]

        live = letters(self.draw([1, 2]))
        there = [*batch, *live]
        data = f"{make(*lead, math.prod(dims(live)))}.reshape({dims(there)})"
        operands = [("".join(there), data)]
        one_by_one = self.draw([True, False])
        factors = self.draw([2, 3, 4])
        for i in range(factors):
            last = i == factors - 1
            met = live if last else [c for c in live if self.draw([True, True, False])]
            kept = [c for c in live if c not in met and (not met or self.draw([True, False]))]
            made = ["z"] if last else letters(self.draw([1, 1, 2])) if met else []
            live = [c for c in live if c not in met] + made
            names = self.shuffled(met + kept + made)
            part = tuple([i for i, name in enumerate(names) if name in met])
            factor = self.leaf(tuple(dims(names)), part)
            factor = self.draw([factor, factor, f"({self.given(())} * {factor})"])
            operands.append(("".join(names), factor))
            if one_by_one:
                there = [*batch, *live] if last else self.shuffled([*batch, *live])
                operands = [("".join(there), einsum(operands, there))]
        return operands[0][1] if one_by_one else einsum(self.shuffled(operands), [*batch, "z"])

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
            "chain of factors": lambda: self.chain(shape, make),
            "by inputs": lambda: f"by_inputs({make(*lead, k)}, {weight((0,), k, f)})",
            "by outputs": lambda: f"by_outputs({make(*lead, k)}, {weight((0,), k, f)})",
            "mapped outputs": lambda: f"mapped_outputs({make(*lead, k)}, {weight((0,), k, f)})",
            "looped inputs": lambda: f"looped_inputs({make(*lead, k)}, {weight((0,), k, f)})",
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
            "gain and bias": lambda: (
                f"(normalized({make(*shape)}) * {weight(ADDED, f)} + {weight(ADDED, f)})"
            ),
            "layers by index": lambda: (
                f"(lambda h, w: lax.fori_loop(0, 2, lambda i, h: jnp.tanh(h @ w[i]), h))"
                f"({make(*lead, f)}, {weight((1,), 2, f, f)})"
            ),
            "layers one by one": lambda: (
                f"(lambda h, w: jnp.tanh(jnp.tanh(h @ w[0]) @ w[1]))"
                f"({make(*lead, f)}, {weight((1,), 2, f, f)})"
            ),
            "a weight twice": lambda: (
                f"(lambda h, w: jnp.tanh(jnp.tanh(h @ w) @ w))"
                f"({make(*lead, f)}, {weight((0,), f, f)})"
            ),
            "blocks of the inputs": lambda: (
                f"jnp.einsum('...gk,gkf->...gf', {make(*lead, 2 * k)}.reshape(*{lead}, 2, {k}), "
                f"{weight((1,), 2, k, f)}).sum(-2)"
            ),
            "heads": lambda: (
                f"jnp.einsum('...k,khf->...hf', {make(*lead, k)}, {weight((0,), k, 2, f)})"
                + self.draw([".max(-2)", "[..., 1, :]", f".reshape(*{lead}, {2 * f})[..., {f}:]"])
            ),
            "heads joined": lambda: (
                f"jnp.einsum('...hd,hdf->...f', {make(*lead, 2 * k)}.reshape(*{lead}, 2, {k}), "
                f"{weight((0, 1), 2, k, f)})"
            ),
            "groups": lambda: (
                f"jnp.einsum('...gk,gkf->...gf', {make(*lead, 2 * k)}.reshape(*{lead}, 2, {k}), "
                f"{weight((1,), 2, k, f)}).max(-2)"
            ),
            "memory": lambda: (
                f"(jax.nn.softmax({make(*lead, k)} @ {weight((1,), 3, k)}.T) @ "
                f"{weight((0,), 3, f)})"
            ),
            "blocked": lambda: f"blocked({make(*lead, 2 * k)}, {weight((0,), 2 * k, f)})",
            "sharded": lambda: f"sharded({make(*lead, 2 * k)}, {weight((0,), 2 * k, f)})",
            "by vmap": lambda: (
                f"by_vmap({make(*lead, k)}, {weight((1,), 3, k, f)})"
                + self.draw([".sum(0)", ".max(0)", "[1]"])
            ),
            "of members": lambda: (
                f"of_members({make(*lead, k)}, {weight(ADDED, 3, k)}, {weight((1,), 3, k, f)})"
                + self.draw([".sum(0)", ".max(0)", "[1]"])
            ),
            "written": lambda: f"written({make(*shape)})",
            "one feature": lambda: (
                f"jnp.pad({make(*lead, k)}[..., :1], (*[(0, 0)] * {len(lead)}, (1, {f - 2})))"
            ),
            "dropped": lambda: f"({make(*shape)} * (K{tuple(shape)} > 0))",
            "edges": lambda: (
                f"jnp.einsum('...io,io->...o', jnp.sin({make(*lead, k)}[..., None] * "
                f"{weight(UNCLEAR, k, f)}), {weight((0,), k, f)})"
            ),
            "jitted": lambda: f"dense({make(*lead, k)}, {weight((0,), k, f)})",
            "remat": lambda: f"jax.checkpoint(dense)({make(*lead, k)}, {weight((0,), k, f)})",
            "branches": lambda: (
                f"lax.cond({self.given((n,))}.mean() > 0, "
                f"lambda h, w, v: h @ w, lambda h, w, v: h @ v, "
                f"{make(*lead, k)}, {weight((0,), k, f)}, {weight((0,), k, f)})"
            ),
            "modulated": lambda: (
                f"({make(*shape)} * (1 + {make(n, k)} @ {weight((0,), k, f)})"
                + ("[:, None])" if len(lead) > 1 else ")")
            ),
            "generated": lambda: (
                f"jnp.einsum('n...k,nkf->n...f', {make(*lead, k)}, "
                f"({make(n, 3)} @ {weight((0,), 3, k * f)}).reshape({n}, {k}, {f}))"
            ),
            "side by side": lambda: (
                f"jnp.concatenate([{make(*lead, f)}, {make(*lead, k)} @ {weight((0,), k, 3)}], -1)"
                f"[..., 3:]"
            ),
            "permuted": lambda: f"{make(*shape)}[..., np.arange({f})[::-1]]",
            "the largest": lambda: f"lax.top_k({make(*lead, f + 2)}, {f})[0]",
            "spectrum": lambda: f"jnp.fft.fft({make(*shape)}).real",
            "relu": lambda: f"jax.nn.{self.draw(['relu', 'gelu', 'silu'])}({make(*shape)})",
            "two of a product": lambda: (
                f"(lambda a, b: a * jax.nn.silu(b))(*jnp.split({make(*lead, k)} @ "
                f"{weight((0,), k, 2 * f)}, 2, -1))"
            ),
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
                "depthwise": lambda: f"depthwise({make(*shape)}, {weight((0,), 3, f)})",
                "upsampled": lambda: f"upsampled({make(n, t, k)}, {weight((0, 1), 3, k, f)})",
                "recurrent": lambda: (
                    f"recurrent({make(n, t, k)}, {weight(ADDED, f)}, {weight((0,), k, f)}, "
                    f"{weight((0,), f, f)})"
                ),
                "decaying": lambda: f"decaying({make(*shape)}, {weight(ADDED, f)})",
                "multi-head": lambda: (
                    f"(lambda h: jnp.einsum('nhts,nshd->nthd', jax.nn.softmax(jnp.einsum("
                    f"'nthd,nshd->nhts', jnp.einsum('ntk,khd->nthd', h, {weight((0,), k, 2, 3)}), "
                    f"jnp.einsum('ntk,khd->nthd', h, {weight((0,), k, 2, 3)}))), "
                    f"jnp.einsum('ntk,khd->nthd', h, {weight((0,), k, 2, f)})))"
                    f"({make(n, t, k)}).max(2)"
                ),
                "linear attention": lambda: (
                    f"(lambda h: jnp.einsum('ntd,nsd,nsf->ntf', jax.nn.elu(h @ "
                    f"{weight((0,), k, 3)}), jax.nn.elu(h @ {weight((0,), k, 3)}), "
                    f"h @ {weight((0,), k, f)}))({make(n, t, k)})"
                ),
                "chosen tokens": lambda: (
                    f"jnp.take_along_axis({make(*shape)}, ({self.given(lead, t)})[..., None], 1)"
                ),
                "pairs": lambda: (
                    f"(lambda h: jnp.tanh(h[:, :, None] - h[:, None])"
                    f".sum(2))({make(*shape)} @ {weight((0,), f, f)})"
                ),
                "scales of positions": lambda: f"({make(*shape)} * {weight(ADDED, t)}[:, None])",
                "maximum of neighbours": lambda: (
                    f"lax.reduce_window({make(*shape)}, -jnp.inf, lax.max, (1, 2, 1), "
                    f"(1, 1, 1), 'SAME')"
                ),
                "running sums": lambda: f"jnp.cumsum({make(*shape)}, 1)",
                "shifted": lambda: f"jnp.pad({make(*shape)}, ((0, 0), (1, 0), (0, 0)))[:, :-1]",
                "turned": lambda: f"{make(n, f, t)}.swapaxes(1, 2)",
                "of examples": lambda: f"({make(*shape)} + {make(n, f)}[:, None])",
            }
        else:
            ways |= {
                "pooled": lambda: f"{make(n, k, f)}.mean(1)",
                "fields": lambda: (
                    f"fields({weight(TABLE, 3, ROWS, f)}, {self.given((n, 3), ROWS)}, {make(n, 3)})"
                ),
                "of segments": lambda: (
                    f"jax.ops.segment_sum({make(k, f)}, {self.given((k,), n)}, {n})"
                ),
                "flattened": lambda: (
                    f"({make(n, 2, k)}.reshape({n}, -1) @ {weight((0,), 2 * k, f)})"
                ),
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


def einsum(operands, out):
    equation = ",".join(names for names, _ in operands) + "->" + "".join(out)
    return f"jnp.einsum('{equation}', {', '.join(text for _, text in operands)})"


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
    # A table that is contracted too is tied.
    axes = {name: {()} if TABLE in parts else parts for name, parts in builder.axes.items()}
    return Program(text, fn, params, used, axes)
