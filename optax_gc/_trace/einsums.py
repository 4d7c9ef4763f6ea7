"""Einsums of three operands or more, which JAX computes pair by pair in an order that sizes decide.

Each is one product and one sum, and is read as that, so that no answer depends on the order.
"""

import functools
import itertools
import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from . import jaxprs
from .jaxprs import is_literal, name_stack, shape_of

_EQUATION = re.compile(r"[a-zA-Z.\s]*(,[a-zA-Z.\s]*){2,}(->[a-zA-Z.\s]*)?")
Labels = tuple[int, ...]  # one for each dimension; dimensions that are paired have the same


class Primitive(NamedTuple):
    """What stands for several of JAX's primitives."""

    name: str = "einsum"


class Einsum(NamedTuple):
    """An equation that stands for several, which together are one product and one sum."""

    invars: Sequence[Any]
    outvars: Sequence[Any]
    params: dict[str, Any]  # the labels of the operands and of the result
    source_info: Any
    primitive: Primitive = Primitive()
    effects: Sequence[Any] = ()


def equations(jaxpr: Any) -> list[Any]:
    """The equations of a jaxpr, those of each such einsum as one."""
    found: list[Any] = []
    stack, scope, after = None, "", 0
    for i, eqn in enumerate(jaxpr.eqns):
        if i < after:
            continue
        if name_stack(eqn) is not stack:
            stack = name_stack(eqn)
            scope = jaxprs.scope(stack)
        einsum, after = _einsum(jaxpr, i, scope) if _n_operands(scope) else (None, i + 1)
        found.append(einsum or eqn)
    return found


@functools.lru_cache
def _n_operands(scope: str) -> int:
    """How many operands an equation has that a scope is called; 0 if fewer than three."""
    return scope.split("->")[0].count(",") + 1 if _EQUATION.fullmatch(scope) else 0


@functools.lru_cache
def _is_spelled(scope: str, operands: tuple[Labels, ...], result: Labels) -> bool:
    """Whether this is what a scope's name says, and not by chance the name that a user chose.

    What `vmap` and an ellipsis add stands in the name of no dimension.
    """
    inputs, arrow, out = re.sub(r"[.\s]", "", scope).partition("->")
    letters, labels = {*inputs} - {","}, sorted({x for found in operands for x in found})
    out = out if arrow else "".join(a for a in letters if inputs.count(a) == 1)
    for added in itertools.combinations(labels, max(len(labels) - len(letters), 0)):
        kept = [[x for x in found if x not in added] for found in operands]
        for terms in itertools.permutations(inputs.split(",")):
            if [*map(len, terms)] != [*map(len, kept)]:
                continue
            pairs = {pair for of in zip(terms, kept, strict=True) for pair in zip(*of, strict=True)}
            if len(pairs) == len(letters) and {dict(pairs)[a] for a in out} == {*result} - {*added}:
                return True
    return False


def _einsum(jaxpr: Any, first: int, scope: str) -> tuple[Einsum | None, int]:
    """The einsum that begins with an equation in its scope, if one does; and what comes next."""
    n = _n_operands(scope)
    same: list[int] = []  # for each label, itself or one that it is paired with
    operands: list[tuple[Any, Labels]] = []
    made: dict[Any, Labels] = {}  # what was computed
    used: set[Any] = set()
    stack, nothing = name_stack(jaxpr.eqns[first]), (None, first + 1)

    def root(label: int) -> int:
        while same[label] != label:
            label = same[label]
        return label

    def labels(atom: Any) -> Labels:
        if atom in made:
            used.add(atom)
            return made[atom]
        new = tuple(range(len(same), len(same) + len(shape_of(atom))))
        same.extend(new)
        operands.append((atom, new))
        return new

    for i, eqn in enumerate(jaxpr.eqns[first:], first):  # noqa: B007
        read = _READ.get(eqn.primitive.name)
        if not read or name_stack(eqn) != stack or any(a in used for a in eqn.invars):
            return nothing
        if jaxprs.unknown(eqn) or any(map(is_literal, eqn.invars)):
            return nothing
        (result,) = eqn.outvars
        made[result], pairs = read(eqn, [labels(atom) for atom in eqn.invars])
        for a, b in pairs:
            same[root(a)] = root(b)
        if len(operands) >= n and len(used) == len(made) - 1:
            break
    else:
        return nothing
    after = i + 1
    later = [*jaxpr.outvars, *(a for e in jaxpr.eqns[after:] for a in e.invars)]
    if len(operands) > n or any(not is_literal(a) and a in used for a in later):
        return nothing
    of = [tuple(map(root, found)) for found in (*(x for _, x in operands), made[result])]
    if any(len(set(found)) < len(found) for found in of):
        return nothing
    if not _is_spelled(scope, tuple(of[:-1]), of[-1]):
        return nothing
    params = {"operands": of[:-1], "result": of[-1]}
    return Einsum([a for a, _ in operands], [result], params, eqn.source_info), after


Pairs = Sequence[tuple[int, int]]


def _dot_general(eqn: Any, read: Sequence[Labels]) -> tuple[Labels, Pairs]:
    (a_sum, b_sum), (a_batch, b_batch) = eqn.params["dimension_numbers"]
    a, b = read
    pairs = [(a[d], b[e]) for d, e in zip((*a_sum, *a_batch), (*b_sum, *b_batch), strict=True)]
    free = [x for d, x in enumerate(a) if d not in (*a_sum, *a_batch)]
    free += [x for d, x in enumerate(b) if d not in (*b_sum, *b_batch)]
    return (*(a[d] for d in a_batch), *free), pairs


def _transpose(eqn: Any, read: Sequence[Labels]) -> tuple[Labels, Pairs]:
    return tuple(read[0][d] for d in eqn.params["permutation"]), ()


def _reduce_sum(eqn: Any, read: Sequence[Labels]) -> tuple[Labels, Pairs]:
    return tuple(x for d, x in enumerate(read[0]) if d not in eqn.params["axes"]), ()


_READ: dict[str, Callable[[Any, Sequence[Labels]], tuple[Labels, Pairs]]] = {
    "dot_general": _dot_general,
    "transpose": _transpose,
    "reduce_sum": _reduce_sum,
    "convert_element_type": lambda eqn, read: (read[0], ()),
}
