"""The walk through a jaxpr: from the parameters to every use that a gradient reaches."""

import math
from collections.abc import Collection, Hashable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from jax.core import Tracer

from . import jaxprs
from .digits import NONE, AxisSet, Shape, axes_of, foreign, has_axes, own, varying
from .jaxprs import Derivative, is_inexact, is_literal, shape_of
from .liveness import Flags, Liveness
from .products import axes, check_slices
from .reasons import Why
from .rules import RULES
from .uses import could_be_weight, settle_network, settle_scale, with_slices_joined
from .values import Echo, Kind, Node, Part, Rest, Term, Use, Value, constant, nothing, regrouped


class Walk:
    """The state of one walk: where it is, and the uses seen so far."""

    def __init__(self, shapes: Sequence[Shape], constants_are_data: bool) -> None:
        self.shapes = shapes
        self.constants_are_data = constants_are_data
        self.liveness = Liveness()
        self.everything = False
        self.derivative = Derivative.NONE
        self.uses: set[Use] = set()
        self.at = "the function's arguments"  # or the primitive
        self.path: tuple[int, ...] = ()  # the equations that this one is in, and itself
        self.outs: Flags = ()  # which results of this equation a gradient reaches
        self._stack: tuple[str, ...] = ()
        self._bits: dict[tuple[int, frozenset[Part]], int] = {}
        self._settled: list[int] = []  # parameters, in the order in which they were
        self._recording = True

    def run(self, body: jaxprs.Body, values: Sequence[Value], outs: Flags) -> list[Value]:
        """The results of a jaxpr, of which those in `outs` are live."""
        jaxpr, consts = body
        live = self.liveness.of(jaxpr, outs, self.everything)
        known = dict(zip(jaxpr.constvars, consts, strict=False))
        env = {var: self._constant(var, known.get(var)) for var in jaxpr.constvars}
        env.update(
            (var, value if var in live.variables else value.without_gradient())
            for var, value in zip(jaxpr.invars, values, strict=True)
        )
        outer, outer_derivative, outer_path = self._stack, self.derivative, self.path
        stack: Any = None
        last = jaxprs.last_uses([eqn for eqn, *_ in live.equations], jaxpr.outvars)
        for i, (eqn, reached, flags) in enumerate(live.equations):
            operands = [
                _read(atom, env) if flag else _read(atom, env).without_gradient()
                for atom, flag in zip(eqn.invars, reached, strict=True)
            ]
            for var in last[i]:
                del env[var]  # or the collector of garbage takes as long as the walk
            if jaxprs.name_stack(eqn) is not stack:
                stack = jaxprs.name_stack(eqn)
                self._stack = (*outer, str(stack))
                self.derivative = max(outer_derivative, jaxprs.derivative(stack))
            self.path, self.outs = (*outer_path, i), flags
            self.at = eqn.primitive.name
            before = len(self._settled)
            rule = None if jaxprs.unknown(eqn) else RULES.get(eqn.primitive.name)
            results = rule(self, eqn, *operands) if rule else self.opaque(eqn, operands)
            results = [results] if isinstance(results, Value) else results
            if went_in := {n.param for v in operands for t in v.terms for n in t.nodes}:
                self._account(went_in.difference(self._settled[before:]), results)
            for var, flag, value in zip(eqn.outvars, flags, results, strict=True):
                env[var] = value if flag else value.without_gradient()
        self._stack, self.derivative, self.path = outer, outer_derivative, outer_path
        return [
            _read(atom, env) if flag else _read(atom, env).without_gradient()
            for atom, flag in zip(jaxpr.outvars, outs, strict=True)
        ]

    def _account(self, params: set[int], results: Sequence[Value]) -> None:
        """Refuses parameters that went into an equation and are not in its results any more."""
        for v in results:
            params = params.difference(*(t.params for t in v.terms), *(e.params for e in v.echoes))
        if params:
            self.refuse(params, Why.LOST)

    def _constant(self, var: Any, array: Any) -> Value:
        shape = shape_of(var)
        kind = Kind.DATA if self.constants_are_data and shape else Kind.CONSTANT
        value = constant(shape, kind)
        if array is None or not 1 < math.prod(shape) < _MOST_ELEMENTS:
            return value
        if isinstance(array, Tracer) or array.dtype.kind not in "biuf":
            return value
        array = np.asarray(array)
        if kind == Kind.CONSTANT:
            same = [bool((array == array.take([0], d)).all()) for d in range(len(shape))]
            dims = zip(value.varies, foreign(shape), same, strict=True)
            value = value._replace(varies=tuple(there if s else dim for dim, there, s in dims))
        if len(shape) == 1:
            return value._replace(counts=value.varies) if _counts(array) else value
        if len(shape) != 2:
            return value
        hot = tuple(
            dim if _single_ones(array, d) else foreign((n,))[0]
            for d, (dim, n) in enumerate(zip(value.varies, shape, strict=True))
        )
        return value._replace(one_hot=hot) if any(map(has_axes, hot)) else value

    @contextmanager
    def not_recording(self) -> Iterator[None]:
        """While a loop is brought to its fixed point, uses are not final."""
        before, self._recording = self._recording, False
        yield
        self._recording = before

    @contextmanager
    def counting_everything(self) -> Iterator[None]:
        """Within a custom derivative, values of any dtype may carry gradients."""
        before, self.everything = self.everything, True
        yield
        self.everything = before

    def settle(self, params: Iterable[int]) -> None:
        """Notes that parameters may end in this equation; all others have to be in its results."""
        self._settled.extend(params)

    def use(
        self,
        params: Collection[int],
        role: str,
        axes: AxisSet = NONE,
        outputs: AxisSet = NONE,
        batch: AxisSet = NONE,
        why: str = "",
        chosen: bool = False,
        fed: bool = False,
        partners: frozenset[tuple[int, AxisSet]] = frozenset(),
    ) -> None:
        """Notes what parameters are used for."""
        self.settle(params)
        if self._recording:
            module = "/".join(filter(None, self._stack))
            where = f"{self.at} in {module}" if module else self.at
            how = role, where, axes, outputs, batch, why, chosen, fed, self.derivative, partners
            self.uses.update(Use(p, *how) for p in params)

    def refuse(
        self,
        params: Collection[int],
        why: str,
        axes: AxisSet = NONE,
        partners: frozenset[tuple[int, AxisSet]] = frozenset(),
    ) -> None:
        """Notes that uses of parameters cannot be told, and over which axes of a weight."""
        self.use(params, "refused", axes, why=why, partners=partners)

    def bit(self, p: int, parts: frozenset[Part]) -> int:
        """The bit that stands for some slices of a parameter where it is noted what was seen."""
        key = p, parts
        return 1 << self._bits.setdefault(key, len(self.shapes) + len(self._bits))

    def is_seen(self, node: Node, seen: int) -> bool:
        """Whether data was computed from just these slices of a parameter, or from all of it."""
        return bool(seen & self.bit(node.param, node.parts))

    def is_seen_of(self, loop: Hashable, seen: int) -> bool:
        """Whether data was computed from slices of any parameter that a loop takes."""
        return any(
            seen >> i & 1 and any(part.key == loop for part in parts)
            for (_, parts), i in self._bits.items()
        )

    def seen_with_parts(self, value: Value) -> int:
        """What went into a value, with the slices of parameters that it is."""
        seen = value.seen
        for t in value.terms:
            for n in t.nodes if t.data is None else ():
                seen |= self.bit(n.param, n.parts) if n.parts else 0
        return seen

    def refuse_all(self, value: Value, why: str) -> None:
        """Notes that no parameter can be told that is in `value` with its use still to come."""
        for t in value.terms:
            self.refuse(t.params, why)

    def opaque(self, eqn: Any, values: Sequence[Value]) -> list[Value]:
        """What is known after an operation that nothing is known about."""
        kind = max((v.kind for v in values), default=Kind.CONSTANT)
        made = [
            v.kind == Kind.PARAMETER
            or (v.is_in_terms and not any(t.data and axes_of(t.data) for t in v.terms))
            for v in values
        ]
        others = [v for v, of_parameters in zip(values, made, strict=True) if not of_parameters]
        if any(made) and not any(v.kind == Kind.DATA and axes_of(v.support) for v in others):
            kind = Kind.PARAMETER  # the inputs are numbers
        name = eqn.primitive.name
        why = (name in RULES and jaxprs.unknown(eqn)) or f"there is no rule for {name}"
        seen = 0
        for v in values:
            seen |= v.seen
            self.refuse_all(v, why)
            beside = any(o.kind == Kind.DATA for o in values if o is not v)
            for e in v.echoes:
                if could_be_weight(e, beside):
                    self.refuse(e.params, why)
        check_slices(self, values)
        loops = frozenset().union(*(v.loops for v in values))
        # One axis alone is no weight, whatever is done to it.
        echoes = [
            e for v in values for e in v.echoes if e.how == "used" or len(axes(e) | e.cut) > 1
        ]
        # It might be a one-hot, which looks rows up instead of being summed with a weight.
        hot = any(v.blurred or (v.one_hot and v.kind == Kind.DATA) for v in values)
        blurred = why if hot or not seen else ""
        return [
            constant(shape_of(v), kind)._replace(
                echoes=regrouped(_anywhere(e, shape_of(v), why) for e in echoes),
                loops=loops,
                seen=seen,
                blurred=blurred,
                unknown=seen > 0,
            )
            for v in eqn.outvars
        ]

    def finish(self, outputs: Sequence[Value]) -> None:
        """Notes what the function's results hold of each parameter."""
        self.at = "the function's results"
        for value in outputs:
            for t in with_slices_joined(self, value).terms:
                if t.data is not None:
                    settle_scale(self, t)
                elif t.edges:
                    settle_network(self, t)
                else:
                    self.use(t.params, "returned")
            for e in value.echoes:
                if e.pending:
                    self.refuse(e.params, e.pending, e.fan_in)
                elif e.how == "added" and not e.repeated:
                    self.use(e.params, "elementwise")


def _anywhere(e: Echo, shape: Shape, why: str) -> Echo:
    """What is left of a parameter after an operation that nothing is known about."""
    left = Echo(e.params, e.how, varying(shape), foreign(shape), twice=e.twice, unknown=why)
    return left._replace(parts=e.parts, seen=e.seen, loops=e.loops)


_MOST_ELEMENTS = 1 << 16  # a constant larger than that is not looked into


def _counts(array: np.ndarray) -> bool:
    return array.dtype.kind in "iuf" and np.array_equal(array, np.arange(len(array)))


def _single_ones(array: np.ndarray, axis: int) -> bool:
    """Whether an array has a single one along an axis, and zeros."""
    numbers = array.dtype.kind in "biuf" and ((array == 0) | (array == 1)).all()
    return bool(numbers and (array.sum(axis) == 1).all())


def _read(atom: Any, env: dict[Any, Value]) -> Value:
    if not is_literal(atom):
        return env[atom]
    value = nothing(shape_of(atom))
    known = shape_of(atom) == () and np.asarray(atom.val).dtype.kind in "biu"
    return value._replace(number=int(atom.val)) if known else value


def walk(closed: Any, n_params: int, data: Sequence[bool]) -> set[Use]:
    """Follows every parameter through a closed jaxpr.

    Args:
      closed: the jaxpr, whose first `n_params` inputs are the parameters.
      n_params: how many.
      data: which of the other inputs are data, and not random keys. If none is, the constants
        that the function closes over stand for it.
    """
    body = jaxprs.opened(closed)
    jaxpr = body.jaxpr
    shapes = [shape_of(v) for v in jaxpr.invars[:n_params]]
    trace = Walk(shapes, constants_are_data=not any(data))
    values = [
        Value(
            shape,
            Kind.PARAMETER,
            foreign(shape),
            (Term((Node(p, own(shape)),)),),
            seen=1 << p,
            rest=Rest.NONE,
        )
        for p, shape in enumerate(shapes)
    ]
    for var, is_data in zip(jaxpr.invars[n_params:], data, strict=True):
        values.append(constant(shape_of(var), Kind.DATA if is_data else Kind.CONSTANT))
    outs = tuple(is_inexact(v) and not is_literal(v) for v in jaxpr.outvars)
    trace.finish(trace.run(body, values, outs))
    return trace.uses
