"""axes_from_trace on every layer of the table of cases."""

import pytest
from trace_cases import CASES, Tied
from trace_support import answers, fan_in_by_oracle, i32, linen, outcomes, promoting, verdicts_of

BUILDS = {name: build for name, build, _ in CASES}

# One layer, contracted once with its input: what the oracle can see.
SINGLE = [
    (name, build, expected)
    for name, build, expected in CASES
    if (
        name.startswith(tuple(f"row {n}:" for n in (1, 2, 5, 6, 7, 8, 9, 10, 12, 14, 33)))
        and "Separable" not in name
    )
    or name in ("row 18: a combine fused into one contraction", "row 18: ragged_dot")
]


def ids(cases):
    return [name for name, *_ in cases]


@pytest.mark.parametrize(("name", "build", "expected"), CASES, ids=ids(CASES))
def test_traced_axes_are_those_of_the_layers_definition(name, build, expected):
    with promoting():
        fn, params, *args = build()
    assert answers(fn, params, *args) == outcomes(expected)


@pytest.mark.parametrize(("name", "build", "expected"), SINGLE, ids=ids(SINGLE))
def test_traced_axes_are_those_along_which_equal_inputs_give_equal_gradients(name, build, expected):
    with promoting():
        fn, params, *args = build()
    transposed = name.startswith("row 9:")
    varying = ((0, 1) if "equinox" in name else (0, -1)) if transposed else None
    oracle = fan_in_by_oracle(fn, params, *args, varying=varying)
    for path, axes in answers(fn, params, *args).items():
        if axes:
            assert axes == oracle[path]


def test_a_tied_embedding_is_reported_with_the_axes_of_its_dense_use():
    verdict = verdicts_of(*linen(Tied(), i32(3, 7)))["embed/embedding"]
    assert (verdict.how, verdict.candidates) == ("tied", (frozenset({1}),))


def test_candidates_of_learned_latents_are_those_of_a_layer():
    found = verdicts_of(*BUILDS["row 30: learned latents without a batch"]())
    assert found["latents"].candidates == (frozenset({1}),)


@pytest.mark.parametrize(
    ("name", "path", "outputs", "batch"),
    [
        ("rows 3 and 4: linen attention", "query/kernel", {1, 2}, set()),
        ("row 5: linen DenseGeneral with a batch axis", "kernel", {2}, {0}),
        ("row 8: keras DepthwiseConv2D", "0", {3}, {2}),
        ("row 10: linen ConvLocal", "kernel", {3}, {0, 1}),
        ("row 13: fused projections in a scan", "qkv", {2, 3, 4}, {0}),
        ("row 18: ragged_dot", "w", {2}, {0}),
    ],
)
def test_the_other_axes_are_told_apart_into_outputs_and_independent_copies(
    name, path, outputs, batch
):
    with promoting():
        case = BUILDS[name]()
    verdict = verdicts_of(*case)[path]
    assert (set(verdict.outputs), set(verdict.batch)) == (outputs, batch)


def test_no_answer_of_the_table_is_left_out():
    rows = {
        int(word) for name, *_ in CASES for word in name.split(":")[0].split() if word.isdigit()
    }
    assert rows == set(range(1, 36))
