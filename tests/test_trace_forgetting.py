"""Whatever rule the tracer does without, every answer stays or is refused.

OPTAX_GC_EVERYTHING=1 forgets every rule in every program; otherwise a sample of them, the same ones
each time.
"""

import functools
import os
import random

import jax
import pytest
from respell import primitives
from trace_everything import built, everything, is_known, judged
from trace_support import answers, promoting

from optax_gc._trace.rules import RULES

EVERYTHING = bool(os.environ.get("OPTAX_GC_EVERYTHING"))
PER_RULE = 12  # programs in which each rule is forgotten
# A weight for each example and each step of a loop has as many rows as an activation, and is taken
# for one by what has no rule.
ROWS = "experts mixed in one step of a scan"


@functools.cache
def originals():
    """(name, program, answers, right answers, primitives) of every program."""
    found = []
    for name, build, expected in everything(models=EVERYTHING):
        if is_known(name) or name == ROWS:
            continue
        program = built(build)
        fn, params, *args = program
        with promoting():
            names = primitives(jax.make_jaxpr(fn)(params, *args).jaxpr)
        found.append((name, program, answers(*program), expected, names))
    return found


@pytest.mark.parametrize("rule", sorted(RULES))
def test_an_answer_without_a_rule_is_the_same_or_a_refusal(rule, monkeypatch):
    programs = [p for p in originals() if rule in p[-1]]
    if not EVERYTHING:
        programs = random.Random(rule).sample(programs, min(PER_RULE, len(programs)))
    if not programs:
        pytest.skip(f"no program uses {rule}")
    monkeypatch.delitem(RULES, rule)
    wrong = []
    for name, program, original, expected, _ in programs:
        found = answers(*program)
        verdicts = judged(found, original, expected, program[1])
        wrong += [(name, p, original[p], found[p]) for p in verdicts["different"]]
    assert not wrong, "\n".join(map(str, wrong))
