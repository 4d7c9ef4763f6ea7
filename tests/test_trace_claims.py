"""What the tracer says that values vary along is what they vary along when the program runs."""

import pytest
from claims import false_claims
from hypothesis import given
from test_trace_evidence import CASES
from test_trace_programs import expressions, programs


@pytest.mark.parametrize("build", CASES, ids=[build.__name__ for build in CASES])
def test_what_is_said_of_the_values_of_a_program_is_so(build):
    fn, params, args, _ = build()
    assert false_claims(fn, params, *args) == []


@given(expressions())
@programs(40)
def test_what_is_said_of_the_values_of_a_random_expression_is_so(expression):
    assert false_claims(expression.fn, expression.params, expression.inputs) == []
