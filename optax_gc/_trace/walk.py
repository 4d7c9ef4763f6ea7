"""The walk through a jaxpr: from the parameters to every use that a gradient reaches."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from .jaxprs import is_backward, is_inexact, is_literal, opened, scope, unknown
from .liveness import Flags, Liveness
from .mixing import shape_of
from .provenance import Kind, Shape, Tag, Use, Value, constant, foreign, own
from .rules import RULES


class Walk:
    """The state of one walk: where it is, and the uses seen so far."""

    def __init__(self, shapes: Sequence[Shape], constants_are_data: bool) -> None:
        self.shapes = shapes
        self.constants_are_data = constants_are_data
        self.liveness = Liveness()
        self.everything = False
        self.backward = False  # in a gradient that the function itself takes
        self.uses: set[Use] = set()
        self.where = "the function's arguments"
        self._stack: tuple[str, ...] = ()
        self._recording = True
        self._live: list[frozenset[Any]] = []

    def run(
        self, jaxpr: Any, consts: Sequence[Any], values: Sequence[Value], outs: Flags
    ) -> list[Value]:
        """The results of a jaxpr, of which those in `outs` are live."""
        live = self.liveness.of(jaxpr, outs, self.everything)
        kind = Kind.DATA if self.constants_are_data else Kind.CONST
        env = {
            var: constant(shape_of(var), kind if shape_of(var) else Kind.CONST)
            for var in jaxpr.constvars
        }
        env.update(
            (var, value if var in live else value.without_gradient())
            for var, value in zip(jaxpr.invars, values, strict=True)
        )

        def read(atom: Any) -> Value:
            return Value(shape_of(atom), varies=own(())) if is_literal(atom) else env[atom]

        self._live.append(live)
        outer, outer_backward = self._stack, self.backward
        for eqn in jaxpr.eqns:
            flags = self.live_outputs(eqn)
            operands = [read(atom) for atom in eqn.invars]
            if not any(flags) and not (eqn.effects and self._reaches(eqn, live)):
                operands = [v.without_gradient() for v in operands]
            here = scope(eqn)
            self._stack = (*outer, here) if here else outer
            self.backward = outer_backward or is_backward(eqn)
            self.where = (
                eqn.primitive.name + (" in " if self._stack else "") + "/".join(self._stack)
            )
            rule = RULES.get(eqn.primitive.name)
            why = unknown(eqn) if rule else ""
            if rule is None or why:
                results = self.opaque(eqn, operands, why)
            else:
                results = rule(self, eqn, *operands)
            results = [results] if isinstance(results, Value) else results
            for var, flag, value in zip(eqn.outvars, flags, results, strict=True):
                env[var] = value if flag else value.without_gradient()
        self._stack, self.backward = outer, outer_backward
        self._live.pop()
        return [
            read(atom) if flag else read(atom).without_gradient()
            for atom, flag in zip(jaxpr.outvars, outs, strict=True)
        ]

    def _reaches(self, eqn: Any, live: frozenset[Any]) -> bool:
        return any(not is_literal(a) and a in live and is_inexact(a) for a in eqn.invars)

    def live_outputs(self, eqn: Any) -> Flags:
        """Which outputs of an equation of the present jaxpr are live."""
        return tuple(v in self._live[-1] for v in eqn.outvars)

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

    def record(self, use: Use) -> None:
        """Notes a use."""
        if self._recording:
            self.uses.add(use)

    def refuse(self, p: int, why: str) -> None:
        """Notes that a parameter's use cannot be told."""
        self.record(Use(p, "refused", self.where, why=why))

    def refuse_all(self, value: Value, why: str) -> bool:
        """Notes that no parameter in `value` can be told; whether there was one."""
        for p in value.tags:
            self.refuse(p, why)
        return bool(value.tags)

    def settle(self, p: int, tag: Tag, value: Value) -> None:
        """Notes that a parameter has become part of an activation."""
        self.expose(p, tag, value)
        role = "lookup" if tag.lookup else "scalar" if tag.reduced else "elementwise"
        backward = self.backward or "backward" in tag.mixed
        self.record(Use(p, role, self.where, backward=backward))

    def expose(self, p: int, tag: Tag, value: Value) -> None:
        """Notes the reductions of a parameter that turned out to be no statistics of it."""
        for use in tag.pending:
            if use.role == "constant" and tag.mixed and not value.active:
                why = "contracted with constants, then combined with data; are inputs closed over?"
                use = replace(use, role="ambiguous", why=why)
            self.record(use)

    def opaque(self, eqn: Any, values: Sequence[Value], why: str = "") -> list[Value]:
        """What is known after an operation that nothing is known about."""
        kind = max((v.kind for v in values), default=Kind.CONST)
        for v in values:
            for p, tag in v.tags.items():
                rows = tag.repeated and len([n for n in self.shapes[p] if n > 1]) == 1
                if rows and tag.mixed:
                    self.settle(p, tag, v)
                else:
                    self.refuse(p, why or f"there is no rule for {eqn.primitive.name}")
        loops = frozenset().union(*(v.loops for v in values))
        return [replace(constant(shape_of(v), kind), loops=loops) for v in eqn.outvars]

    def finish(self, outputs: Sequence[Value]) -> None:
        """Notes what the function's results hold of each parameter."""
        self.where = "the function's results"
        for value in outputs:
            for p, tag in value.tags.items():
                if tag.mixed or tag.pending:
                    self.settle(p, tag, value)
                else:
                    self.record(Use(p, "returned", self.where, why="returned as it is"))


def walk(closed: Any, n_params: int, data: Sequence[bool]) -> set[Use]:
    """Follows every parameter through a closed jaxpr.

    Args:
      closed: the jaxpr, whose first `n_params` inputs are the parameters.
      n_params: how many.
      data: which of the other inputs are data, and not random keys. If none is, the constants
        that the function closes over stand for it.
    """
    jaxpr, consts = opened(closed)
    shapes = [shape_of(v) for v in jaxpr.invars[:n_params]]
    trace = Walk(shapes, constants_are_data=not any(data))
    values = [
        Value(shape, Kind.PARAM, {p: Tag(own(shape))}, varies=foreign(shape))
        for p, shape in enumerate(shapes)
    ]
    for var, is_data in zip(jaxpr.invars[n_params:], data, strict=True):
        values.append(constant(shape_of(var), Kind.DATA if is_data else Kind.CONST))
    outs = tuple(is_inexact(v) and not is_literal(v) for v in jaxpr.outvars)
    trace.finish(trace.run(jaxpr, consts, values, outs))
    return trace.uses
