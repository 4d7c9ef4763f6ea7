"""axes_from_trace on programs in many spellings: one answer for all of them."""

import pytest
from trace_spellings import CASES
from trace_support import answers, outcomes


@pytest.mark.parametrize(("name", "build", "expected"), CASES, ids=[name for name, *_ in CASES])
def test_every_spelling_of_a_program_gets_the_answer_of_its_definition(name, build, expected):
    fn, params, *args = build()
    assert answers(fn, params, *args) == outcomes(expected)
