"""axes_from_trace on programs in many spellings: one answer for all of them."""

import pytest
from trace_spellings import CASES, may_refuse
from trace_support import REFUSED, answers


@pytest.mark.parametrize(("name", "build", "expected"), CASES, ids=[name for name, *_ in CASES])
def test_every_spelling_of_a_program_gets_the_answer_of_its_definition(name, build, expected):
    fn, params, *args = build()
    found = answers(fn, params, *args)
    assert found.keys() == expected.keys()
    wrong = {
        path: found[path]
        for path, axes in expected.items()
        if found[path] != axes and not (found[path] == REFUSED and may_refuse(name, path))
    }
    assert not wrong
