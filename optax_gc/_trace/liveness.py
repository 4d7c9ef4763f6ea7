"""Which variables of a jaxpr a gradient from its outputs reaches.

Only uses that a gradient reaches are uses of a parameter: nothing is learned through an argmax, a
comparison, `stop_gradient`, or a value that no output depends on.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from . import jaxprs
from .einsums import equations
from .jaxprs import is_inexact, is_literal

Flags = tuple[bool, ...]


class Live(NamedTuple):
    """What a gradient reaches in a jaxpr."""

    variables: frozenset[Any]
    equations: Sequence[tuple[Any, Flags, Flags]]  # each, and which of its operands and results


class Liveness:
    """Remembers, for each jaxpr and each choice of its live outputs, what is live in it.

    With `everything`, whatever a live output is computed from is live, of any dtype: the gradient
    of a custom derivative rule is not bound to that of the body it stands for.
    """

    def __init__(self) -> None:
        self._known: dict[tuple[int, Flags, bool], tuple[Any, Live]] = {}

    def of(self, jaxpr: Any, outs: Flags, everything: bool) -> Live:
        """What is live in `jaxpr`, given which of its outputs are."""
        key = id(jaxpr), outs, everything
        if key not in self._known:
            live = {
                v for v, flag in zip(jaxpr.outvars, outs, strict=True) if flag and not is_literal(v)
            }
            found: list[tuple[Any, Flags, Flags]] = []
            for eqn in reversed(equations(jaxpr)):
                flags = tuple([v in live for v in eqn.outvars])
                reached = self._into(eqn, flags, everything)
                found.append((eqn, reached, flags))
                for atom, flag in zip(eqn.invars, reached, strict=True):
                    if flag and not is_literal(atom) and (everything or is_inexact(atom)):
                        live.add(atom)
            # The jaxpr is kept too, so that its id stays its own.
            self._known[key] = jaxpr, Live(frozenset(live), found[::-1])
        return self._known[key][1]

    def inputs(self, jaxpr: Any, outs: Flags, everything: bool) -> Flags:
        """Which inputs of `jaxpr` are live."""
        live = self.of(jaxpr, outs, everything).variables
        return tuple(v in live for v in jaxpr.invars)

    def carried(self, jaxpr: Any, outs: Flags, carry: slice, n: int, everything: bool) -> Flags:
        """Which of a loop's outputs are live, counting what the next iteration makes of them.

        Args:
          jaxpr: the body, whose first `n` outputs are its next inputs at `carry`.
          outs: which outputs of the body are live after the last iteration.
          carry: the inputs that the first `n` outputs go back to.
          n: how many values are carried.
          everything: as for the class.
        """
        while True:
            again = self.inputs(jaxpr, outs, everything)[carry]
            grown = tuple(a or b for a, b in zip(outs[:n], again, strict=True)) + outs[n:]
            if grown == outs:
                return outs
            outs = grown

    def _into(self, eqn: Any, outs: Flags, everything: bool) -> Flags:
        name = eqn.primitive.name
        if name not in RULES_OF_LIVENESS or jaxprs.unknown(eqn):
            return (any(outs) or jaxprs.has_effect(eqn),) * len(eqn.invars)
        return RULES_OF_LIVENESS[name](self, eqn, outs, everything)


def _stop_gradient(known: Liveness, eqn: Any, outs: Flags, everything: bool) -> Flags:
    return outs if everything else (False,) * len(eqn.invars)


def _call(known: Liveness, eqn: Any, outs: Flags, everything: bool) -> Flags:
    return known.inputs(jaxprs.body(eqn).jaxpr, outs, everything)


def _custom(known: Liveness, eqn: Any, outs: Flags, everything: bool) -> Flags:
    # An input that the body ignores may still be given a gradient.
    return (any(outs),) * len(eqn.invars)


def _scan(known: Liveness, eqn: Any, outs: Flags, everything: bool) -> Flags:
    loop = jaxprs.loop(eqn)
    outs = known.carried(loop.body.jaxpr, outs, loop.carry, loop.n_carry, everything)
    return known.inputs(loop.body.jaxpr, outs, everything)


def _while(known: Liveness, eqn: Any, outs: Flags, everything: bool) -> Flags:
    loop = jaxprs.while_loop(eqn)
    carry = slice(loop.n_body, None)
    outs = known.carried(loop.body.jaxpr, outs, carry, len(outs), everything)
    flags = known.inputs(loop.body.jaxpr, outs, everything)
    of_carry = tuple(a or b for a, b in zip(flags[carry], outs, strict=True))
    return (everything,) * loop.n_cond + flags[: loop.n_body] + of_carry


def _cond(known: Liveness, eqn: Any, outs: Flags, everything: bool) -> Flags:
    flags = [known.inputs(b.jaxpr, outs, everything) for b in jaxprs.branches(eqn)]
    return (everything, *(any(column) for column in zip(*flags, strict=True)))


CALLS = (
    "jit",
    "pjit",
    "closed_call",
    "remat2",
    "shard_map",
    "composite",
    "custom_vmap_call",
)  # jit is pjit in older JAX
CUSTOM_CALLS = ("custom_jvp_call", "custom_vjp_call", "custom_vjp_call_jaxpr")

RULES_OF_LIVENESS: dict[str, Callable[[Liveness, Any, Flags, bool], Flags]] = {
    "stop_gradient": _stop_gradient,
    **dict.fromkeys(CALLS, _call),
    **dict.fromkeys(CUSTOM_CALLS, _custom),
    "scan": _scan,
    "while": _while,
    "cond": _cond,
}
