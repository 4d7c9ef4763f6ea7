"""Other spellings of a program: the same numbers from another jaxpr.

`respelled(name, fn, params, *args)` is a function like `fn`. Most spellings interpret the jaxpr of
`fn` again, loops and calls inside included, with another expression for some primitive; the rest
wrap all of `fn`. `python tests/respell.py` counts what becomes of the tracer's answers; with
`--models`, of those on whole models too.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax._src import source_info_util

LONGEST = 12  # steps of a loop, positions of a window, that are written out


def body(inner):
    """A jaxpr and its constants, of a closed or an open one."""
    return getattr(inner, "jaxpr", inner), list(getattr(inner, "consts", ()))


def is_jaxpr(value):
    return hasattr(value, "eqns") or hasattr(getattr(value, "jaxpr", None), "eqns")


class Respeller:
    """Evaluates jaxprs with some primitives spelled otherwise, sharing what was shared."""

    def __init__(self, rules):
        self.rules = rules
        self.inner: dict[int, Any] = {}  # by identity: calls of one jaxpr share the new one too
        self.helpers: dict[str, Any] = {}

    def run(self, jaxpr, consts, args):
        env = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*consts, *args], strict=True))
        read = lambda atom: atom.val if hasattr(atom, "val") else env[atom]  # noqa: E731
        for eqn in jaxpr.eqns:
            # The name stack says what belongs to a gradient that the function itself takes.
            stack = source_info_util.current_name_stack() + eqn.source_info.name_stack
            with source_info_util.user_context(eqn.source_info.traceback, name_stack=stack):
                outs = self.equation(eqn, [read(atom) for atom in eqn.invars])
            env.update(zip(eqn.outvars, outs, strict=True))
        return [read(atom) for atom in jaxpr.outvars]

    def equation(self, eqn, values):
        name = eqn.primitive.name
        for rule in (self.rules.get(name), self.rules.get("*")):
            outs = rule(self, eqn, *values) if rule else None
            if outs is not None:
                return outs if isinstance(outs, list) else [outs]
        params = eqn.params if name in ("shard_map", "xla_pmap") else self.with_inner(eqn.params)
        params = eqn.primitive.get_bind_params(params)
        functions, params = params if isinstance(params, tuple) else ((), params)
        outs = eqn.primitive.bind(*functions, *values, **params)
        return list(outs) if eqn.primitive.multiple_results else [outs]

    def with_inner(self, params):
        new = {}
        for key, value in params.items():
            if is_jaxpr(value):
                value = self.again(value)
            elif isinstance(value, tuple) and value and all(map(is_jaxpr, value)):
                value = tuple(map(self.again, value))
            new[key] = value
        return new

    def again(self, inner):
        """The jaxpr inside an equation, respelled."""
        if id(inner) not in self.inner:
            jaxpr, consts = body(inner)
            avals = [
                jax.ShapeDtypeStruct(v.aval.shape, v.aval.dtype, weak_type=v.aval.weak_type)
                for v in jaxpr.invars
            ]
            new = jax.make_jaxpr(lambda *args: self.run(jaxpr, consts, args))(*avals)
            if not isinstance(new, type(inner)):  # an open jaxpr, which holds no constants
                new = inner if new.consts else new.jaxpr
            self.inner[id(inner)] = (new, inner)
        return self.inner[id(inner)][0]


# Contractions as products and sums, loops, and each other.
def total(x, axes):
    return lax.reduce(x, np.zeros((), x.dtype), lax.add, axes)


def dot_axes(eqn, a, b):
    """Contracted, batch and free axes of both operands."""
    (ac, bc), (ab, bb) = eqn.params["dimension_numbers"]
    free = lambda x, used: tuple(i for i in range(x.ndim) if i not in used)  # noqa: E731
    return ac, bc, ab, bb, free(a, (*ac, *ab)), free(b, (*bc, *bb))


def dot(a, b, contracted, batch, dtype):
    return lax.dot_general(a, b, (contracted, batch), preferred_element_type=dtype)


def dot_as_product_and_sum(_, eqn, a, b):
    ac, bc, ab, bb, af, bf = dot_axes(eqn, a, b)
    dtype = eqn.outvars[0].aval.dtype
    a = lax.transpose(a, (*ab, *af, *ac)).astype(dtype)
    b = lax.transpose(b, (*bb, *bc, *bf)).astype(dtype)
    n, m, k = len(ab), len(af), len(ac)
    shape = (*a.shape, *b.shape[n + k :])
    a = lax.broadcast_in_dim(a, shape, tuple(range(n + m + k)))
    b = lax.broadcast_in_dim(b, shape, (*range(n), *range(n + m, len(shape))))
    return total(a * b, tuple(range(n + m, n + m + k)))


def dot_with_operands_swapped(_, eqn, a, b):
    ac, bc, ab, bb, af, bf = dot_axes(eqn, a, b)
    y = dot(b, a, (bc, ac), (bb, ab), eqn.outvars[0].aval.dtype)
    n, m, k = len(ab), len(bf), len(af)
    return lax.transpose(y, (*range(n), *range(n + m, n + m + k), *range(n, n + m)))


def fewer(axes, gone):
    """Axes of an array of which one axis is gone."""
    return tuple(i - (i > gone) for i in axes if i != gone)


def dot_scanned_over_what_is_contracted(_, eqn, a, b):
    ac, bc, ab, bb, *_ = dot_axes(eqn, a, b)
    if not ac or a.shape[ac[0]] == 1:  # a loop of one step has nothing to add up
        return None
    i, j = ac[0], bc[0]
    rest = (fewer(ac, i), fewer(bc, j)), (fewer(ab, i), fewer(bb, j))
    dtype, out = eqn.outvars[0].aval.dtype, eqn.outvars[0].aval
    step = lambda c, ab: (c + dot(*ab, *rest, dtype), None)  # noqa: E731
    zero = jnp.zeros(out.shape, out.dtype)
    return lax.scan(step, zero, (jnp.moveaxis(a, i, 0), jnp.moveaxis(b, j, 0)))[0]


def dot_mapped_over_columns(_, eqn, a, b):
    ac, bc, ab, bb, _, bf = dot_axes(eqn, a, b)
    if not bf:
        return None
    j = bf[-1]
    numbers, dtype = ((ac, fewer(bc, j)), (ab, fewer(bb, j))), eqn.outvars[0].aval.dtype
    y = lax.map(lambda column: dot(a, column, *numbers, dtype), jnp.moveaxis(b, j, 0))
    return jnp.moveaxis(y, 0, -1)


def dot_mapped_over_its_batch(_, eqn, a, b):
    ac, bc, ab, bb, *_ = dot_axes(eqn, a, b)
    if not ab:
        return None
    i, j = ab[0], bb[0]
    numbers = (fewer(ac, i), fewer(bc, j)), (fewer(ab, i), fewer(bb, j))
    dtype = eqn.outvars[0].aval.dtype
    pairs = (jnp.moveaxis(a, i, 0), jnp.moveaxis(b, j, 0))
    return lax.map(lambda ab: dot(*ab, *numbers, dtype), pairs)


def window(eqn, x, w):
    """A convolution's operands in one layout, (N, groups, C, *space) and (groups, O, C, *window),
    with what selects the part of x that each position of the window sees.
    """
    p = eqn.params
    lhs, rhs, out = p["dimension_numbers"]
    x, w = lax.transpose(x, lhs), lax.transpose(w, rhs)
    if (groups := p["batch_group_count"]) > 1:
        x = x.reshape(groups, -1, *x.shape[1:]).swapaxes(0, 1)
        x = x.reshape(len(x), -1, *x.shape[3:])
    else:
        groups = p["feature_group_count"]
    space = [(lo, hi, d - 1) for (lo, hi), d in zip(p["padding"], p["lhs_dilation"], strict=True)]
    x = lax.pad(x, np.zeros((), x.dtype), [(0, 0, 0), (0, 0, 0), *space])
    sizes = [eqn.outvars[0].aval.shape[i] for i in out[2:]]

    def seen(position):
        start = [k * d for k, d in zip(position, p["rhs_dilation"], strict=True)]
        steps = p["window_strides"]
        stop = [s + (n - 1) * t + 1 for s, n, t in zip(start, sizes, steps, strict=True)]
        return lax.slice(x, (0, 0, *start), (*x.shape[:2], *stop), (1, 1, *steps)).reshape(
            len(x), groups, -1, *sizes
        )

    w = w.reshape(groups, -1, *w.shape[1:])

    def whole(y):  # (groups, N, *space, O)
        y = jnp.moveaxis(y, (0, -1), (1, 2))
        y = y.reshape(len(y), -1, *sizes)
        return lax.transpose(y, np.argsort(out))

    return seen, w, list(np.ndindex(*w.shape[3:])), whole


def conv_as_patches(_, eqn, x, w):
    dtype = eqn.outvars[0].aval.dtype
    seen, w, positions, whole = window(eqn, x, w)
    if len(positions) > 64:
        return None
    patches = jnp.stack([seen(k) for k in positions], -1)
    w = w.reshape(*w.shape[:3], -1)
    n = patches.ndim - 1
    return whole(dot(patches, w, ((2, n), (2, 3)), ((1,), (0,)), dtype))


def conv_as_shifted_products(_, eqn, x, w):
    dtype = eqn.outvars[0].aval.dtype
    seen, w, positions, whole = window(eqn, x, w)
    if len(positions) > LONGEST:
        return None
    parts = [dot(seen(k), w[(..., *k)], ((2,), (2,)), ((1,), (0,)), dtype) for k in positions]
    return whole(sum(parts[1:], parts[0]))


# Calls and loops.
def inlined(self, eqn, *values):
    (inner,) = (v for v in eqn.params.values() if is_jaxpr(v))
    return self.run(*body(inner), values)


def shared(self, eqn, *values):
    """Every operation by a jitted helper, one for all operations that are equal."""
    if eqn.primitive.multiple_results or any(map(is_jaxpr, eqn.params.values())):
        return None
    key = f"{eqn.primitive} {eqn.params}"
    if key not in self.helpers:
        primitive, params = eqn.primitive, eqn.params
        self.helpers[key] = jax.jit(lambda *values: primitive.bind(*values, **params))
    return self.helpers[key](*values)


def scan_counts(params):
    """How many constants and carried values a scan has."""
    if "ft_in" in params:  # since JAX 0.11
        consts, carry, _ = params["ft_in"].unpack()
        return len(list(consts)), len(list(carry))
    return params["num_consts"], params["num_carry"]


def unrolled(self, eqn, *values):
    length = eqn.params["length"]
    if length > LONGEST:
        return None
    n, m = scan_counts(eqn.params)
    consts, carry, xs = values[:n], list(values[n : n + m]), values[n + m :]
    jaxpr, own = body(eqn.params["jaxpr"])
    steps, ys = range(length), [None] * length
    for i in reversed(steps) if eqn.params["reverse"] else steps:
        now = [lax.index_in_dim(x, i, keepdims=False) for x in xs]
        outs = self.run(jaxpr, own, [*consts, *carry, *now])
        carry, ys[i] = outs[:m], outs[m:]
    return [*carry, *(jnp.stack(y) for y in zip(*ys, strict=True))]


# Elementwise operations and sums.
def commuted(_, eqn, a, b):
    return eqn.primitive.bind(b, a, **eqn.params)


def difference_as_sum(_, eqn, a, b):
    inexact = jnp.issubdtype(eqn.outvars[0].aval.dtype, jnp.inexact)
    return lax.add(a, lax.neg(jnp.asarray(b))) if inexact else None


def quotient_as_product(_, eqn, a, b):
    dtype = eqn.outvars[0].aval.dtype
    ones = np.ones(np.shape(b), dtype)
    return lax.mul(a, lax.div(ones, b)) if jnp.issubdtype(dtype, jnp.inexact) else None


def slice_as_dynamic_slice(_, eqn, x):
    p = eqn.params
    if p["strides"] is not None:
        return None
    sizes = [
        stop - start for start, stop in zip(p["start_indices"], p["limit_indices"], strict=True)
    ]
    return lax.dynamic_slice(x, p["start_indices"], sizes)


def sum_axis_by_axis(_, eqn, x):
    for axis in sorted(eqn.params["axes"], reverse=True):
        x = total(x, (axis,))
    return x


def sum_as_product_with_ones(_, eqn, x):
    axes = eqn.params["axes"]
    if not axes or not jnp.issubdtype(x.dtype, jnp.inexact):
        return None
    ones = jnp.ones([x.shape[i] for i in axes], x.dtype)
    return dot(x, ones, (axes, tuple(range(len(axes)))), ((), ()), x.dtype)


CALLS = dict.fromkeys(("jit", "pjit", "closed_call", "core_call"), inlined)
RULES = {
    "dots as products and sums": {"dot_general": dot_as_product_and_sum},
    "operands of dots swapped": {"dot_general": dot_with_operands_swapped},
    "dots scanned over what they contract": {"dot_general": dot_scanned_over_what_is_contracted},
    "dots mapped over columns": {"dot_general": dot_mapped_over_columns},
    "dots mapped over their batch": {"dot_general": dot_mapped_over_its_batch},
    "convolutions as patches and dots": {"conv_general_dilated": conv_as_patches},
    "convolutions as shifted products": {"conv_general_dilated": conv_as_shifted_products},
    "calls inlined": CALLS,
    "every operation in one helper for all": {"*": shared},
    "scans unrolled": {"scan": unrolled},
    "operands swapped": dict.fromkeys(("add", "mul", "max", "min", "add_any"), commuted),
    "differences as sums": {"sub": difference_as_sum},
    "quotients as products": {"div": quotient_as_product},
    "slices as dynamic slices": {"slice": slice_as_dynamic_slice},
    "sums axis by axis": {"reduce_sum": sum_axis_by_axis},
    "sums as products with ones": {"reduce_sum": sum_as_product_with_ones},
}


# Wrappers around all of a function of flat arguments.
def custom_jvp(fn):
    wrapped = jax.custom_jvp(fn)
    wrapped.defjvp(lambda primals, tangents: jax.jvp(fn, primals, tangents))
    return wrapped


def custom_vjp(fn):
    wrapped = jax.custom_vjp(fn)
    wrapped.defvjp(lambda *leaves: jax.vjp(fn, *leaves), lambda vjp, g: vjp(g))
    return wrapped


WRAPPERS = {
    "a jit around everything": jax.jit,
    "a remat around everything": jax.checkpoint,
    "a composite around everything": lambda fn: lax.composite(fn, "test.everything"),
    "a custom_jvp around everything": custom_jvp,
    "a custom_vjp around everything": custom_vjp,
}
BATCH = "a vmap for another batch dimension"
SPELLINGS = [*RULES, *WRAPPERS, BATCH]


def respelled(name, fn, params, *args):
    """A function of (params, *args) of the same shapes that computes what `fn` does, otherwise.

    It has new outputs where `name` is BATCH: those of two equal inputs.
    """
    leaves, treedef = jax.tree.flatten((params, args))
    closed, out = jax.make_jaxpr(
        lambda *leaves: (lambda p, a: fn(p, *a))(*jax.tree.unflatten(treedef, leaves)),
        return_shape=True,
    )(*leaves)
    again = Respeller(RULES.get(name, {}))
    outdef = jax.tree.structure(out)

    def run(*leaves):
        return tuple(again.run(closed.jaxpr, closed.consts, leaves))

    def new(params, *args):
        leaves = jax.tree.leaves((params, args))
        if name in WRAPPERS:
            outs = WRAPPERS[name](run)(*leaves)
        elif name == BATCH and args:
            n = len(jax.tree.leaves(params))
            twice = [jnp.stack([x, x]) for x in leaves[n:]]
            axes = [None] * n + [0] * len(twice)
            outs = jax.vmap(run, in_axes=tuple(axes))(*leaves[:n], *twice)
        else:
            outs = run(*leaves)
        return jax.tree.unflatten(outdef, outs)

    return new


def changed(name, program):
    """Whether a spelling changes anything in a program: its jaxpr has what the spelling is of."""
    rules = RULES.get(name)
    if rules is None or "*" in rules:
        return True
    return bool(rules.keys() & primitives(jaxpr_of(program)))


def primitives(jaxpr):
    """The names of all primitives in a jaxpr and the jaxprs inside it."""
    names = set()
    for eqn in jaxpr.eqns:
        names.add(eqn.primitive.name)
        for value in eqn.params.values():
            inner = value if isinstance(value, tuple) else (value,)
            for one in inner:
                names |= primitives(body(one)[0]) if is_jaxpr(one) else set()
    return names


def reasons(name, program, original):
    """Why a spelling means something else for some parameters of a program: {path: why}."""
    if "custom_" in name and "stop_gradient" in primitives(jaxpr_of(program)):
        why = "a custom derivative may pass gradients that its body stops"
        return {path: why for path, axes in original.items() if axes == ()}
    return {}


def jaxpr_of(program):
    fn, params, *args = program
    return jax.make_jaxpr(fn)(params, *args).jaxpr


def judge(name, program, original, expected):
    """What becomes of the answers under another spelling, as `judged` says, with the new ones."""
    from trace_everything import judged
    from trace_support import answers, promoting

    with promoting():
        if not changed(name, program) or (name == BATCH and vmap_fails(program)):
            return None
        new = respelled(name, *program)
        found = answers(new, *program[1:])
        why = reasons(name, program, original)
    kept = {path: axes for path, axes in original.items() if path not in why}
    return judged(found, kept, expected, program[1]), found


def vmap_fails(program):
    """JAX itself cannot batch some operations."""
    return bool({"ragged_dot_general", "composite"} & primitives(jaxpr_of(program)))


if __name__ == "__main__":
    import sys
    from collections import Counter

    import conftest  # noqa: F401  (the settings that tests run under)
    from trace_everything import built, everything
    from trace_support import answers

    columns = ("same", "refused", "answered", "different", "error")
    counts = {name: Counter() for name in SPELLINGS}
    for program, build, expected in everything(models="--models" in sys.argv):
        case = built(build)
        original = answers(*case)
        for name in SPELLINGS:
            try:
                verdicts, found = judge(name, case, original, expected) or ({}, {})
            except Exception as error:
                print(f"{name}: {program}: {type(error).__name__}: {str(error)[:300]}")
                verdicts, found = {"error": ["all"]}, {}
            for verdict, paths in verdicts.items():
                counts[name][verdict] += len(paths)
                for p in paths if verdict == "different" else ():
                    print(f"{name}: {program}: {p}: {original[p]} -> {found[p]}", flush=True)
    print(f"{'':40}", *(f"{c:>9}" for c in columns))
    counts["all"] = sum(counts.values(), Counter())
    for name, count in counts.items():
        print(f"{name:40}", *(f"{count[c]:9}" for c in columns))
