"""A second reader of fan-in axes: of the backward program, where the tracer reads the forward one.

`opinion(fn, params, *args)` differentiates `fn` and follows each parameter's gradient from the
result upwards, through what is linear in the output's cotangent, to the data that it meets. The
gradient of a weight is a contraction of the layer's input (forward) with a cotangent: the
parameter's axes that only the input has are its fan-in; those that the cotangent has are not.
Nothing of this is the tracer's, and what is not understood has no opinion.

Axes of the gradient are followed as factors (size, labels) of the axes of the value that it is made
of. A label is an axis of the parameter, or how an axis came into a sum: ROW, the parameter is
repeated along it; SUM, the contraction's own. A way upwards is marked BENT where it was multiplied
by what varies with rows and the parameter alike, such as the derivative of an activation, and
NETWORK where it was contracted with parameters.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from trace_support import REFUSED, answers, promoting

from optax_gc._match import names

ROW, SUM = "row", "sum"
BENT, NETWORK, TABLE = "bent", "network", "table"
STEPS = 200_000  # of one parameter's reading
CALLS = {"jit", "pjit", "remat2", "remat", "checkpoint", "closed_call", "core_call", "composite"}
CALLS |= {"custom_jvp_call", "custom_vjp_call", "custom_vjp_call_jaxpr"}
LOCAL = {"neg", "convert_element_type", "copy", "copy_p", "real", "imag", "rev", "cumsum"}
LOCAL |= {"reduce_precision", "optimization_barrier", "pvary", "sharding_constraint", "conj"}
LOCAL |= {"reduce_window_sum", "slice", "split", "mul", "div", "select_n", "complex", "copysign"}


class DontKnow(Exception):  # noqa: N818
    """This reader cannot tell."""


class Node:
    """A value of the program: how it was made, and whether data or the cotangent are in it."""

    def __init__(self, op, inputs, aval, params=None, data=False, linear=False, zero=False):
        self.op, self.inputs, self.params = op, inputs, params or {}
        self.shape = tuple(aval.shape)
        self.data = data or any(n.data for n in inputs)
        self.linear = linear or any(n.linear for n in inputs)  # in the cotangent
        self.zero = zero
        self.param = op == "parameter" or any(n.param for n in inputs)


def body(inner):
    return getattr(inner, "jaxpr", inner), getattr(inner, "consts", ())


def constant(value, data=False):
    value = value if isinstance(value, jax.Array) else np.asarray(value)
    zero = value.size < 1000 and jnp.issubdtype(value.dtype, jnp.inexact) and not np.any(value)
    return Node("constant", [], value, data=data, zero=bool(zero))


class Graph:
    """A jaxpr as nodes, calls inlined; the body of a loop is there once."""

    def __init__(self, constants_are_data):
        self.constants_are_data = constants_are_data

    def run(self, jaxpr, consts, args):
        env = dict(zip(jaxpr.invars, args, strict=True))
        for var, value in zip(jaxpr.constvars, consts, strict=True):
            data = self.constants_are_data and bool(np.shape(value))
            env[var] = value if isinstance(value, Node) else constant(value, data)
        read = lambda a: constant(a.val) if hasattr(a, "val") else env[a]  # noqa: E731
        for eqn in jaxpr.eqns:
            outs = self.equation(eqn, [read(atom) for atom in eqn.invars])
            env.update(zip(eqn.outvars, outs, strict=True))
        return [read(atom) for atom in jaxpr.outvars]

    def equation(self, eqn, inputs):
        name, params = eqn.primitive.name, eqn.params
        if name in CALLS:
            (inner,) = (params[k] for k in ("jaxpr", "call_jaxpr", "fun_jaxpr") if k in params)
            return self.run(*body(inner), inputs)
        if name == "scan":
            return self.scan(eqn, inputs)
        if name == "cond":
            branches = [self.run(*body(b), inputs[1:]) for b in params["branches"]]
            return [
                Node("join", list(values), v.aval, data=inputs[0].data)
                for v, values in zip(eqn.outvars, zip(*branches, strict=True), strict=True)
            ]
        keeps = ("broadcast_in_dim", "convert_element_type", "reshape", "transpose", "neg")
        zero = name in (*keeps, "add_any") and all(n.zero for n in inputs)
        return [Node(name, inputs, v.aval, params, zero=zero) for v in eqn.outvars]

    def scan(self, eqn, inputs):
        params = eqn.params
        if "ft_in" in params:  # since JAX 0.11
            n, m = (len(list(part)) for part in list(params["ft_in"].unpack())[:2])
        else:
            n, m = params["num_consts"], params["num_carry"]
        jaxpr, consts = body(params["jaxpr"])
        init, loop = inputs[n : n + m], object()
        known = [(v.data, v.linear, v.zero) for v in init]
        while True:  # until what is carried stays what it is
            carry = []
            for var, node, (data, linear, zero) in zip(jaxpr.invars[n:], init, known, strict=False):
                carry.append(Node("carry", [node], var.aval, {"loop": loop}, data, linear, zero))
            slices = [
                Node("step", [x], v.aval, {"loop": loop})
                for x, v in zip(inputs[n + m :], jaxpr.invars[n + m :], strict=True)
            ]
            outs = self.run(jaxpr, consts, [*inputs[:n], *carry, *slices])
            new = [
                (a.data or b.data, a.linear or b.linear, a.zero and b.zero)
                for a, b in zip(carry, outs[:m], strict=True)
            ]
            if new == known:
                break
            known = new
        for node, after in zip(carry, outs[:m], strict=True):
            node.inputs.append(after)
        results = [
            Node("join", [a, b], v.aval, zero=a.zero and b.zero)
            for a, b, v in zip(init, outs[:m], eqn.outvars, strict=False)
        ]
        stacked = zip(outs[m:], eqn.outvars[m:], strict=True)
        return results + [
            Node("steps", [y], v.aval, {"loop": loop}, zero=y.zero) for y, v in stacked
        ]


class Factor(NamedTuple):
    size: int
    labels: frozenset


def merged(axis, size):
    """An axis of another size, of the same labels."""
    if size == 1:
        return ()
    if math.prod(f.size for f in axis) == size:
        return axis
    return (Factor(size, frozenset().union(*(f.labels for f in axis))),)


def regrouped(view, shape):
    """The factors of a view as axes of another shape."""
    factors, axes = [f for axis in view for f in axis], []
    for n in shape:
        axis, left = [], n
        while left > 1:
            size, labels = factors.pop(0)
            if left % size == 0:
                taken = size
            elif size % left == 0:
                taken = left
                factors.insert(0, Factor(size // left, labels))
            else:
                raise DontKnow("an axis is cut across")
            axis.append(Factor(taken, labels))
            left //= taken
        axes.append(tuple(axis))
    return tuple(axes)


def labels_of(axis):
    return frozenset().union(*(f.labels for f in axis))


def own(axis):
    """The parameter's axes in an axis."""
    return {label for label in labels_of(axis) if isinstance(label, int)}


def fresh(size, *labels):
    return (Factor(size, frozenset(labels)),) if size > 1 else ()


def varies(node, axis):
    """Whether a value may differ along an axis."""
    while node.shape[axis] > 1:
        p, x = node.params, node.inputs[0] if node.inputs else None
        if node.op == "broadcast_in_dim":
            if axis not in p["broadcast_dimensions"]:
                return False
            axis, node = p["broadcast_dimensions"].index(axis), x
        elif node.op == "transpose":
            axis, node = p["permutation"][axis], x
        elif node.op == "reshape" and [n for n in x.shape if n > 1] == [
            n for n in node.shape if n > 1
        ]:
            rank = sum(n > 1 for n in node.shape[:axis])
            axis, node = [i for i, n in enumerate(x.shape) if n > 1][rank], x
        elif node.op == "squeeze":
            axis, node = [i for i in range(len(x.shape)) if i not in p["dimensions"]][axis], x
        elif node.op in LOCAL | {
            "exp",
            "tanh",
            "rsqrt",
            "integer_pow",
            "add",
            "sub",
            "max",
            "sqrt",
        }:
            same = [n for n in node.inputs if len(n.shape) == len(node.shape)]
            return any(varies(n, axis) for n in same)
        else:
            return True
    return False


def one_hot(node):
    """The axes along which a value marks which of several constants data equals."""
    p, x = node.params, node.inputs[0] if node.inputs else None
    if node.op == "convert_element_type":
        return one_hot(x)
    if node.op == "broadcast_in_dim":
        return frozenset(p["broadcast_dimensions"][i] for i in one_hot(x))
    if node.op == "transpose":
        return frozenset(i for i, j in enumerate(p["permutation"]) if j in one_hot(x))
    if node.op == "mul" and all(len(n.shape) == len(node.shape) for n in node.inputs):
        one, other = map(one_hot, node.inputs)
        return one | other if one and other else frozenset()
    if node.op == "eq" and len([n for n in node.inputs if n.data]) == 1:
        constants = next(n for n in node.inputs if not n.data)
        return frozenset(i for i in range(len(constants.shape)) if varies(constants, i))
    if node.op == "gather" and x is not None and not x.data:
        raise DontKnow("data chooses constants, which may be one-hots")
    if node.op in ("reshape", "dot_general", "squeeze"):
        for one in node.inputs:
            if one_hot(one):
                raise DontKnow("one-hots joined")
    return frozenset()


def depends(node, loop):
    """Whether a value differs from step to step of a loop."""
    stack, seen = [node], set()
    while stack:
        node = stack.pop()
        if id(node) in seen:
            continue
        seen.add(id(node))
        if node.params.get("loop") is loop:
            if node.op == "step" or (node.op == "carry" and node.inputs[-1] is not node):
                return True
        stack += node.inputs
    return False


class Reader:
    """Reads one parameter's gradient upwards; `found` is what every way there says of its axes."""

    def __init__(self):
        self.found: list[dict[int, str]] = []
        self.seen: set[Any] = set()
        self.selected: frozenset = frozenset()

    def read(self, gradient):
        view = tuple(fresh(n, i) for i, n in enumerate(gradient.shape))
        long = frozenset(i for i, n in enumerate(gradient.shape) if n > 1)
        todo: list[Any] = [(gradient, view, (frozenset(), frozenset(), frozenset(), ()))]
        if gradient.zero:
            return dict.fromkeys(long, False)
        while todo:
            node, view, state = todo.pop()
            if node.zero or not node.linear or (id(node), view, state) in self.seen:
                continue
            self.seen.add((id(node), view, state))
            if len(self.seen) > STEPS:
                raise DontKnow("too many ways")
            todo += self.up(node, view, state, long) or ()
        says: dict[int, set[bool]] = {i: set() for i in long}
        for term in self.found:
            for i, is_fan_in in term.items():
                says[i].add(is_fan_in)
        return {i: (s.pop() if len(s) == 1 else None) for i, s in says.items()}

    def say(self, long, state, fan_in, but=frozenset()):
        """Notes that a way ends here: these axes are fan-in, the others are not, `but` some."""
        unknown, selected, marks, _ = state
        if not fan_in and NETWORK in marks:
            raise DontKnow("contracted with parameters, then part of an activation")
        if fan_in and marks & {NETWORK, TABLE}:
            raise DontKnow("contracted with parameters or taken by constants, then with data")
        if fan_in and BENT in marks:
            raise DontKnow("a weight for each example, or part of an activation")
        if fan_in and selected and not long - selected - fan_in:
            raise DontKnow("selected by data, then contracted: a lookup or a layer")
        self.found.append({i: i in fan_in for i in long - unknown - frozenset(but)})

    def up(self, node, view, state, long):
        """The values that this one is linear in, with the view of each, or None at an end."""
        op, p, inputs = node.op, node.params, node.inputs
        unknown, selected, marks, loops = state
        if op == "cotangent":
            return self.say(long, state, frozenset())
        linear = [n for n in inputs if n.linear]
        x = linear[0] if linear else None
        if op in ("add_any", "add", "sub", "join", "carry"):
            return [(n, view, state) for n in linear]
        if op == "steps":
            if not depends(x, p["loop"]):  # equal in every step, which says nothing
                unknown = unknown | own(view[0])
            return [(x, view[1:], (unknown, selected, marks, (*loops, (p["loop"], view[0]))))]
        if op == "step":
            axes = [axis for loop, axis in loops if loop is p["loop"]]
            return [(x, (axes[-1] if axes else fresh(x.shape[0], ROW), *view), state)]
        if op == "unstack":
            i = p["axis"]
            return [(x, (*view[:i], fresh(x.shape[i], SUM), *view[i:]), state)]
        if op == "transpose":
            axes = sorted(zip(p["permutation"], view, strict=True), key=lambda pair: pair[0])
            return [(x, tuple(axis for _, axis in axes), state)]
        if op in ("reshape", "squeeze", "expand_dims"):
            if p.get("dimensions") is not None and op == "reshape":
                raise DontKnow("a reshape that transposes")
            return [(x, regrouped(view, x.shape), state)]
        if op == "broadcast_in_dim":
            dims = p["broadcast_dimensions"]
            kept = {j for i, j in enumerate(dims) if x.shape[i] == node.shape[j]}
            lost = frozenset().union(*(own(view[j]) for j in range(len(view)) if j not in kept))
            if lost:
                return None  # what the parameter's statistics add, which says nothing
            return [(x, tuple(view[j] if j in kept else () for j in dims), state)]
        if op == "reduce_sum":
            rest = iter(view)
            axes = [fresh(n, ROW) if i in p["axes"] else next(rest) for i, n in enumerate(x.shape)]
            return [(x, tuple(axes), state)]
        if op in ("mul", "div", "select_n", "select_and_scatter_add"):
            others = [n for n in inputs if not n.linear and len(n.shape) == len(view)]
            resized = lambda n: tuple(map(merged, view, n.shape))  # noqa: E731
            for other in others:
                if self.meets(other, linear, view, state, long):
                    return None
                if other.data and self.bends(other, view):
                    state = (unknown, selected, marks | {BENT}, loops)
            return [(n, resized(n), state) for n in linear]
        if op == "dot_general":
            return self.dot(node, view, state, long)
        if op == "conv_general_dilated":
            return self.conv(node, view, state, long)
        if op in ("pad", "concatenate", "dynamic_update_slice", "dynamic_slice"):
            indices = inputs[2:] if op == "dynamic_update_slice" else inputs[1:]
            if op.startswith("dynamic") and any(n.data for n in indices):
                raise DontKnow("data chooses a slice")
            return [self.part(n, node, view, state) for n in linear]
        if op == "scatter-add":
            return self.scatter(node, view, state)
        if op in LOCAL and len(x.shape) == len(view):
            return [self.part(n, node, view, state) for n in linear]
        raise DontKnow(op)

    def part(self, x, node, view, state):
        """Of a value that is longer, shorter, or the same along its axes."""
        axes = []
        unknown, *rest = state
        for axis, n, whole in zip(view, x.shape, node.shape, strict=True):
            if n == 1 < whole:  # one entry of a parameter: its axis may be summed over elsewhere
                unknown = unknown | own(axis)
            axes.append(merged(axis, n))
        return x, tuple(axes), (unknown, *rest)

    def bends(self, other, view):
        theirs = [varies(other, i) for i in range(len(view))]
        rows = any(v and ROW in labels_of(axis) for v, axis in zip(theirs, view, strict=True))
        return rows and all(v for v, axis in zip(theirs, view, strict=True) if own(axis))

    def meets(self, other, linear, view, state, long):
        """Whether this way ends where it is multiplied by `other`, which is broadcast to it."""
        theirs = [varies(other, i) for i in range(len(view))]
        ours = [
            any(varies(n, i) for n in linear if len(n.shape) == len(view)) for i in range(len(view))
        ]
        rows = [i for i, axis in enumerate(view) if ROW in labels_of(axis)]
        if not other.data:
            if any(theirs[i] for i in rows) and other.shape:
                raise DontKnow("repeated, and multiplied by a parameter")
            return False
        fan_in = frozenset().union(
            *(own(a) for a, t, o in zip(view, theirs, ours, strict=True) if t and not o)
        )
        fan_in = fan_in | self.summed_by_loops(state, linear[0], other)
        if not fan_in:
            return False
        if any(ours[i] and not theirs[i] for i in rows):
            fan_in = frozenset()  # repeated along what the data does not have: an activation
        pairs = list(zip(view, ours, theirs, strict=True))
        rest = frozenset().union(*(own(a) for a, o, _ in pairs if o))
        outputs = frozenset().union(*(own(a) for a, o, t in pairs if o and not t))
        return self.ends(long, state, fan_in, rest, outputs)

    def ends(self, long, state, fan_in, rest, outputs):
        """Notes a contraction of `fan_in`; one without outputs may be of an activation."""
        if fan_in and not outputs:
            return True
        copies = frozenset().union(*(own(axis) for _, axis in state[3]))  # of layers, in loops
        self.say(long, state, fan_in, but=long - fan_in - rest - copies if fan_in else ())
        return True

    def summed_by_loops(self, state, ct, other):
        """The parameter's axes that a loop slices with the data, and not with the cotangent."""
        pairs = [(loop, own(axis)) for loop, axis in state[3] if own(axis)]
        pairs = [pair for pair in pairs if depends(other, pair[0]) and not depends(ct, pair[0])]
        return frozenset().union(*(axes for _, axes in pairs))

    def contracted(self, ct, other, theirs, ours, both, private_rows, state, long):
        """Whether a contraction with data or parameters `other` ends this way.

        Args:
          ct: the cotangent.
          other: what the cotangent is contracted with.
          theirs: the parameter's axes that only `other` has.
          ours: those that only the cotangent has.
          both: those that both have.
          private_rows: whether the parameter is repeated along axes that `other` has not.
          state: of this way.
          long: the parameter's axes of length 2 and more.
        """
        if not other.data:
            if private_rows:  # repeated along data, then contracted with parameters
                self.say(long, state, frozenset())
            return private_rows
        theirs = theirs | self.summed_by_loops(state, ct, other)
        if not theirs:
            return False
        if private_rows:
            theirs, ours = frozenset(), long
        return self.ends(long, state, theirs - ours - both, ours | both, ours)

    def dot(self, node, view, state, long):
        a, b = node.inputs
        (ac, bc), (ab, bb) = node.params["dimension_numbers"]
        if b.linear:
            ct, other, cc, oc, cb, ob = b, a, bc, ac, bb, ab
        else:
            ct, other, cc, oc, cb, ob = a, b, ac, bc, ab, bb
        free = [i for i in range(len(ct.shape)) if i not in (*cc, *cb)]
        n, m = len(cb), len(free)
        batch, rest = view[:n], view[n:]
        of_other = len(other.shape) - len(oc) - n
        mine, theirs = (rest[of_other:], rest[:of_other]) if b.linear else (rest[:m], rest[m:])
        gather = lambda axes: frozenset().union(*(own(a) for a in axes))  # noqa: E731
        rows = any(ROW in labels_of(axis) for axis in mine)
        rows |= any(
            ROW in labels_of(axis) and not varies(other, i)
            for axis, i in zip(batch, ob, strict=True)
        )
        if not other.data and any(other.shape[i] > 1 and not varies(other, i) for i in oc):
            raise DontKnow("contracted with a parameter that is repeated")
        of_theirs = [i for i in range(len(other.shape)) if i not in (*oc, *ob)]
        if other.data and (chosen := one_hot(other)):  # a lookup of exactly what is marked
            marked = [axis for axis, i in zip(theirs, of_theirs, strict=True) if i in chosen]
            if gather(marked) == gather(theirs):
                state = (state[0], state[1] | gather(theirs), *state[2:])
                theirs = ()
        found = gather(theirs), gather(mine), gather(batch)
        if self.contracted(ct, other, *found, rows, state, long):
            return None
        links = gather(theirs) if not other.data else ()
        if links and other.param:
            state = (*state[:2], state[2] | {NETWORK}, state[3])
        axes: list[Any] = [None] * len(ct.shape)
        for i, axis in [*zip(cb, batch, strict=True), *zip(free, mine, strict=True)]:
            axes[i] = axis
        for i in cc:
            axes[i] = fresh(ct.shape[i], ROW if other.data else SUM, *links)
        return [(ct, tuple(axes), state)]

    def conv(self, node, view, state, long):
        lhs, rhs = node.inputs
        p = node.params
        x, _, y = p["dimension_numbers"]
        window = frozenset().union(*(own(view[i]) for i in y[2:]))
        if rhs.linear:  # a kernel's gradient: along the window of the result, x is shifted
            theirs, ours = own(view[y[0]]), own(view[y[1]])
            if not lhs.data or not (theirs | window) or (one_hot(lhs) and not window):
                raise DontKnow("a convolution of parameters, or of one-hots one at a time")
            fan_in = frozenset(theirs | window) - ours
            self.ends(long, state, fan_in, frozenset(ours), ours | window)
            return None
        groups = p["feature_group_count"]
        if p["batch_group_count"] > 1:
            raise DontKnow("a convolution in groups of its batch")
        channels = regrouped((view[y[1]],), (groups, node.shape[y[1]] // groups))
        private = any(ROW in labels_of(view[i]) for i in (y[0], *y[2:]))
        theirs, ours = frozenset(own(channels[1])), frozenset(own(view[y[0]]) | window)
        if self.contracted(lhs, rhs, theirs, ours, own(channels[0]), private, state, long):
            return None
        axes: list[Any] = [None] * len(view)
        axes[x[0]] = view[y[0]]
        for i, j in zip(x[2:], y[2:], strict=True):
            axes[i] = merged(view[j], lhs.shape[i])
        links = own(channels[1]) if not rhs.data else ()
        axes[x[1]] = (*channels[0], *fresh(lhs.shape[x[1]] // groups, SUM, *links))
        return [(lhs, tuple(axes), state)]

    def scatter(self, node, view, state):
        """The gradient of a gather, which a lookup is."""
        operand, indices, updates = node.inputs
        d = node.params["dimension_numbers"]
        unknown, selected, marks, loops = state
        taken = {*d.inserted_window_dims, *d.operand_batching_dims}
        kept = iter([i for i in range(len(view)) if i not in taken])
        gone = frozenset().union(*(own(view[i]) for i in taken))
        axes = []
        for i, n in enumerate(updates.shape):
            if i in d.update_window_dims:
                j = next(kept)
                if n == 1 < node.shape[j] or (indices.data and n != node.shape[j]):
                    gone = gone | own(view[j])
                axes.append(merged(view[j], n))
            else:
                axes.append(fresh(n, *(() if indices.data else gone), SUM))
        if indices.data:
            selected = selected | gone
        elif any(updates.shape[i] > 1 for i in range(len(axes)) if i not in d.update_window_dims):
            marks = marks | {TABLE}
        elif all(updates.shape[i] == 1 or i in d.update_window_dims for i in range(len(axes))):
            unknown = unknown | gone
        ways = [(updates, tuple(axes), (unknown, selected, marks, loops))]
        return ways + ([(operand, view, state)] if operand.linear else [])


def gradients(fn, params, *args):
    """{path: its gradient, as a node of the backward program}."""
    flat_params, treedef = jax.tree.flatten(params)
    flat_args, args_treedef = jax.tree.flatten(args)
    is_float = lambda x: jnp.issubdtype(x.dtype, jnp.inexact)  # noqa: E731

    def outputs(leaves, args):
        out = fn(jax.tree.unflatten(treedef, leaves), *jax.tree.unflatten(args_treedef, args))
        return [leaf for leaf in jax.tree.leaves(out) if is_float(leaf)]

    cotangents = jax.eval_shape(outputs, flat_params, flat_args)
    vjp = jax.make_jaxpr(lambda p, a, ct: jax.vjp(lambda p: outputs(p, a), p)[1](ct)[0])
    try:
        closed = vjp(flat_params, flat_args, cotangents)
    except Exception as error:  # while_loop, lax.composite, callbacks
        raise DontKnow(f"no gradient: {error}") from error
    is_key = lambda x: (  # noqa: E731
        jnp.issubdtype(x.dtype, jax.dtypes.prng_key) or (x.dtype, x.shape) == (jnp.uint32, (2,))
    )
    given = any(not is_key(x) for x in flat_args)
    nodes = [Node("parameter", [], x) for x in flat_params]
    nodes += [Node("input", [], x, data=not given or not is_key(x)) for x in flat_args]
    nodes += [Node("cotangent", [], x, linear=True) for x in cotangents]
    paths = [path for path, _ in jax.tree_util.tree_leaves_with_path(params)]
    return dict(zip(paths, Graph(not given).run(*body(closed), nodes), strict=True))


def reached(program):
    """The names of the parameters that a gradient reaches."""
    with promoting():
        found = gradients(*program)
    return {
        name
        for name, node in zip(names(list(found.items())), found.values(), strict=True)
        if not node.zero
    }


def opinion(fn, params, *args):
    """{path: {axis: whether it is fan-in, or None}, or why not} of the axes longer than one."""
    found = {}
    for path, gradient in gradients(fn, params, *args).items():
        try:
            found[path] = Reader().read(gradient)
        except DontKnow as reason:
            found[path] = str(reason)
    return found


def second_opinion(program, theirs):
    """({path: how the axes that were found compare}, {path: what this reader says}).

    "agrees" or "agrees in part", on the axes of which this reader knows; "disagrees"; "refused" by
    the one or "unknown" to the other.
    """
    compared, said = {}, {}
    try:
        with promoting():
            ours = opinion(*program)
    except DontKnow as reason:
        return dict.fromkeys(theirs, "unknown"), dict.fromkeys(theirs, str(reason)[:80])
    for name, says in zip(names(list(ours.items())), ours.values(), strict=True):
        axes, said[name] = theirs[name], says
        known = {} if isinstance(says, str) else {i: s for i, s in says.items() if s is not None}
        if axes == REFUSED:
            compared[name] = "refused"
        elif not known and says != {}:
            compared[name] = "unknown"
        elif any((i in axes) != fan_in for i, fan_in in known.items()):
            compared[name] = "disagrees"
        else:
            compared[name] = "agrees" if len(known) == len(says) else "agrees in part"
    return compared, said


if __name__ == "__main__":
    import sys
    from collections import Counter

    import conftest  # noqa: F401  (the settings that tests run under)
    from trace_everything import built, everything

    count: Counter[str] = Counter()
    for name, build, _ in everything(models="--models" in sys.argv):
        case = built(build)
        theirs = answers(*case)
        compared, said = second_opinion(case, theirs)
        count.update(compared.values())
        for path, how in compared.items():
            if how in ("disagrees", "unknown"):
                print(f"{name}: {path}: {theirs[path]} {how}: {said[path]}", flush=True)
    print(*count.items(), sep="\n")
