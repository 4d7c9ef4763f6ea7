"""Einsums of three operands or more, which JAX computes pair by pair in an order that sizes decide.

Each is one product and one sum, and is read as that, so that no answer depends on the order.
"""

import functools
import itertools
import re
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from typing import Any, NamedTuple

from . import jaxprs
from .jaxprs import Derivative, is_literal, name_stack, shape_of

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


def equations(jaxpr: Any) -> Sequence[Any]:
    """The equations of a jaxpr, those of each such einsum as one.

    A product of some of its operands that a gradient uses again is taken for a part of the
    gradient. What a derivative or a loop leaves of an einsum is an `einsum_part`.
    """
    groups: dict[Any, list[int]] = defaultdict(list)
    stack, known = None, False
    for i, eqn in enumerate(jaxpr.eqns):
        if name_stack(eqn) is not stack:
            stack = name_stack(eqn)
            known = _n_operands(jaxprs.scope(stack)) > 0
        if known and eqn.primitive.name in _READ and not jaxprs.unknown(eqn):
            groups[stack].append(i)
    found = [*jaxpr.eqns]
    if groups:
        users = jaxprs.users(jaxpr)
        for stack, group in groups.items():
            _read_group(jaxpr.eqns, stack, group, users, found)
    return [eqn for eqn in found if eqn is not None]


def _read_group(
    eqns: Sequence[Any],
    stack: Any,
    group: Sequence[int],
    users: Mapping[Any, Sequence[int]],
    found: list[Any],
) -> None:
    """Puts the einsums among the equations of one scope in their places."""
    scope = jaxprs.scope(stack)
    n = _n_operands(scope)
    made: dict[Any, Any] = {}
    inner, done, parts = set[Any](), set[int](), set[int]()
    for i in group:
        (result,) = eqns[i].outvars
        made[result] = eqns[i]
        operands, labels, within = _factors(result, made, n)
        if len(operands) > n or not _is_spelled(scope, labels[:-1], labels[-1]):
            continue
        if len(operands) < n:
            parts |= {i} if len(operands) > 1 else set()
            continue
        params = {"operands": labels[:-1], "result": labels[-1]}
        found[i] = Einsum(operands, [result], params, eqns[i].source_info)
        del made[result]
        inner |= within
        done.add(i)
    for i in reversed([i for i in group if i not in done]):
        (result,) = eqns[i].outvars
        if result not in inner and i not in parts:
            continue
        again = [j for j in users[result] if j not in done]
        if result in inner and not again:
            done.add(i)
            found[i] = None
        elif again and all(j >= 0 and _is_backward(found[j]) for j in again):
            found[i] = jaxprs.as_part_of(eqns[i], found[again[0]])
        elif eqns[i].primitive.name == "dot_general" and not _is_backward(eqns[i]):
            params, part = {"equation": eqns[i]}, Primitive("einsum_part")
            found[i] = Einsum(eqns[i].invars, [result], params, eqns[i].source_info, part)


def _is_backward(eqn: Any) -> bool:
    return jaxprs.derivative(name_stack(eqn)) == Derivative.BACKWARD


@functools.lru_cache
def _n_operands(scope: str) -> int:
    """How many operands an equation has that a scope is called; 0 if fewer than three."""
    return scope.split("->")[0].count(",") + 1 if _EQUATION.fullmatch(scope) else 0


@functools.lru_cache
def _is_spelled(scope: str, operands: tuple[Labels, ...], result: Labels) -> bool:
    """Whether this is what a scope's name says, or a part of it.

    It may be the name that a user chose by chance. What `vmap` and an ellipsis add stands in the
    name of no dimension, and stays.
    """
    inputs, arrow, out = re.sub(r"[.\s]", "", scope).partition("->")
    if not arrow:
        out = "".join(a for a in {*inputs} - {","} if inputs.count(a) == 1)
    labels = sorted({x for found in operands for x in found})
    terms = inputs.split(",")
    for chosen in itertools.permutations(range(len(terms)), len(operands)):
        here = [terms[i] for i in chosen]
        needed = {*out}.union(*(terms[i] for i in range(len(terms)) if i not in chosen))
        letters = {*"".join(here)}
        for added in itertools.combinations(labels, max(len(labels) - len(letters), 0)):
            kept = [[x for x in found if x not in added] for found in operands]
            if [*map(len, here)] != [*map(len, kept)]:
                continue
            pairs = {pair for of in zip(here, kept, strict=True) for pair in zip(*of, strict=True)}
            stay = {dict(pairs)[a] for a in letters & needed}
            if len(pairs) == len(letters) and {*result} == stay | {*added}:
                return True
    return False


def _factors(
    result: Any, made: Mapping[Any, Any], most: int
) -> tuple[list[Any], tuple[Labels, ...], AbstractSet[Any]]:
    """What a value is a product of, and what is computed on the way.

    Args:
      result: the value.
      made: equations of its scope, by their results.
      most: how many operands it may have.

    Returns:
      The operands, the labels of their dimensions and those of the result, and what else was read.
    """
    same: list[int] = []  # for each label, itself or one that it is paired with
    operands: list[tuple[Any, Labels]] = []
    inner: set[Any] = set()

    def root(label: int) -> int:
        while same[label] != label:
            label = same[label]
        return label

    def labels(atom: Any) -> Labels:
        if not is_literal(atom) and atom in made and len(operands) <= most:
            inner.add(atom)
            eqn = made[atom]
            found, pairs = _READ[eqn.primitive.name](eqn, [labels(a) for a in eqn.invars])
            for a, b in pairs:
                same[root(a)] = root(b)
            return found
        new = tuple(range(len(same), len(same) + len(shape_of(atom))))
        same.extend(new)
        operands.append((atom, new))
        return new

    out = labels(result)
    every = tuple([tuple(map(root, found)) for found in (*(x for _, x in operands), out)])
    return [atom for atom, _ in operands], every, inner - {result}


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
