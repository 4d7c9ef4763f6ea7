"""Whatever rule the tracer does without, every answer stays or is refused.

OPTAX_GC_EVERYTHING=1 forgets every rule in whole models, too.
"""

import functools
import os
import random

import pytest
from mutants import traced
from random_expressions import UNCLEAR, program
from respell import primitives
from trace_everything import built, everything, is_known, judged
from trace_support import REFUSED, named, promoting

from optax_gc._trace.rules import RULES
from optax_gc._trace.verdict import verdicts as read
from optax_gc._trace.walk import walk

EVERYTHING = bool(os.environ.get("OPTAX_GC_EVERYTHING"))
EXPRESSIONS = 300
# A weight for each example and each step of a loop has as many rows as an activation, and is taken
# for one by what has no rule.
ROWS = "experts mixed in one step of a scan"


def answers(case, params):
    """{path: axes, or REFUSED} for every parameter of a jaxpr."""
    closed, n, is_data, shapes = case
    found = read(walk(closed, n, is_data), shapes)
    return {
        path: REFUSED if v.refused else tuple(sorted(v.axes))
        for path, v in zip(named(params), found, strict=True)
    }


@functools.cache
def originals():
    """(name, parameters, jaxpr, answers, right answers, primitives) of every program."""
    programs = [(name, built(build), right) for name, build, right in everything(models=EVERYTHING)]
    for seed in range(EXPRESSIONS):
        rng = random.Random(seed)
        text, fn, params, inputs, right = program(rng.choice, rng.choice([2, 3, 4]))
        clear = {path: axes for path, axes in right.items() if UNCLEAR not in axes}
        programs += [(text, (fn, params, inputs), clear)] if clear else []
    found = []
    for name, case, right in programs:
        if is_known(name) or name == ROWS:
            continue
        with promoting():
            jaxpr = traced(*case)
        names = primitives(jaxpr[0].jaxpr)
        original = answers(jaxpr, case[1])
        original = {path: original[path] for path in right or original}
        found.append((name, case[1], jaxpr, original, right, names))
    return found


@pytest.mark.parametrize("rule", sorted(RULES))
def test_an_answer_without_a_rule_is_the_same_or_a_refusal(rule, monkeypatch):
    primitive = "dot_general" if "einsum" in rule else rule  # of several of which it is made
    programs = [p for p in originals() if primitive in p[-1]]
    if not programs:
        pytest.skip(f"no program uses {rule}")
    monkeypatch.delitem(RULES, rule)
    wrong = []
    for name, params, jaxpr, original, right, _ in programs:
        found = answers(jaxpr, params)
        verdicts = judged(found, original, right, params)
        wrong += [(name, p, original[p], found[p]) for p in verdicts["different"]]
    assert not wrong, "\n".join(map(str, wrong))
