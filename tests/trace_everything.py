"""Every program of the tracer's tests with the answers that are right, for referees that judge all.

A program is (name, how to build it, {path: right answers}), or None where no test says what is
right. `build()` gives (fn, abstract parameters, *abstract inputs).
"""

from typing import Any

import keras
import test_trace_after_loops as after_loops
import test_trace_conditions as conditions
import test_trace_evidence as evidence
import test_trace_near_misses as near_misses
import trace_spellings
from flax import nnx
from test_trace_hazards import HAZARDS
from test_trace_models import MODELS
from trace_cases import CASES
from trace_support import REFUSED, Untold, answers, haiku, keras_, linen, named, nnx_, promoting


def right(expectation: Any) -> set[Any]:
    """The answers that are right; of what the tracer refuses and people know, both are."""
    return {REFUSED, expectation.axes} if isinstance(expectation, Untold) else {expectation}


def keras_after_rnn():
    model = keras.Sequential(
        [
            keras.layers.LSTM(10, return_sequences=True),
            keras.layers.Flatten(),
            keras.layers.Dense(5),
        ]
    )
    model.build((None, 7, 8))
    return keras_(model, after_loops.X)


def model_expectation(build, rule):
    _, params, *_ = build()
    return {name: {rule(name, leaf.shape)} for name, leaf in named(params).items()}


def everything(models: bool = True) -> list[tuple[str, Any, dict[str, set[Any]] | None]]:
    """All programs, or all but whole models."""
    programs = [(n, b, {p: right(a) for p, a in e.items()}) for n, b, e in CASES]
    for hazard in HAZARDS:
        fn, params, args, expected = hazard.values
        build = lambda case=(fn, params, *args): case  # noqa: E731
        programs.append((hazard.id, build, {p: right(a) for p, a in expected.items()}))
    for name, (fn, params, args, expectation) in near_misses.CASES.items():
        build = lambda case=(fn, params, *args): case  # noqa: E731
        programs.append((name, build, {"params": right(expectation)}))
    for name, build, expected in trace_spellings.CASES:
        programs.append((name, build, {p: right(a) for p, a in expected.items()}))
    for name, (fn, params, args, expected) in conditions.CASES.items():
        if "one einsum" in name:  # computed pair by pair, these are other sums
            continue
        build = lambda case=(fn, params, *args): case  # noqa: E731
        programs.append((name, build, {p: right(a) for p, a in expected.items()}))
    for case in evidence.CASES:
        fn, params, args, expected = case()
        build = lambda case=(fn, params, *args): case  # noqa: E731
        programs.append((case.__name__, build, {p: right(a) for p, a in expected.items()}))
    x = after_loops.X
    for name, build in {
        "linen layers after an RNN": lambda: linen(after_loops.LinenAfterRNN(), x),
        "nnx layers after an RNN": lambda: nnx_(lambda: after_loops.NnxAfterRNN(nnx.Rngs(0)), x),
        "haiku layers after an RNN": lambda: haiku(after_loops.haiku_after_rnn, x),
        "keras layers after an RNN": keras_after_rnn,
    }.items():
        programs.append((name, build, None))
    for name, (build, rule) in MODELS.items() if models else ():
        programs.append((name, build, model_expectation(build, rule)))
    return programs


# Operations that JAX does not evaluate again from their equations alone.
WHOLE = {"pallas_call", "custom_linear_solve", "pure_callback"}
# Programs of which another spelling is another program to the tracer: weights made for each example
# and then taken apart could be activations, a loop over the columns of frozen weights sees one that
# scales inputs, what `noinline` hides has no rule, and rows that a loop adds up are a bag of rows.
KNOWN = (
    "a mixture of depthwise convolutions",
    "scales_of_members_before_frozen_weights",
    "noinline",
    "features_and_their_rows_that_data_chose",
)
# The backward program of a lookup by one-hots is that of a dense layer.
LOOKUPS = ("one-hots", "one_hots", "labels choose", "then_looked_up")
# Backwards, what is added to a weight looks like what is added to activations.
ADDED = ("quantization_with_an_offset", "shared_weight_plus_one")
# Backwards, a factor times inputs is what the other factor meets.
FACTORS = ("both times a number",)
# The backward program of what has a gradient in it is that of second derivatives.
DERIVATIVES = ("a force: the gradient", "a prediction and its derivative")
# Inputs that are the same for all examples: with one for each, they are rows, not weights.
SHARED = (
    "noise before a nonlinearity",
    "weight_with_multiplied_noise_inside_a_nonlinearity",
    "an output layer of which data chose some units",
    "the same in the layout of an embedding",
    "a weight and an activation that a loop swaps",
    "noise on a weight, unrolled",
    "noise on a weight, in an associative scan",
)

# Programs that are others for several members: rows that data chose are weights to members with the
# same inputs, numbers are vectors, and what made one scale makes several outputs.
OTHERS_TO_MEMBERS = (
    *SHARED,
    "embeddings of relative positions",
    "non_centered_prior",
    "rational_activation",
    "gain_and_bias_of_positions_before_a_mean",
)


def is_known(name: str) -> bool:
    """Whether another spelling of a program may be answered differently."""
    return any(known in name for known in KNOWN)


def built(build: Any) -> Any:
    with promoting():
        return build()


def long(answer: Any, shape: tuple[int, ...]) -> Any:
    """An answer without the axes of length 1, along which there is nothing to average."""
    return answer if answer == REFUSED else tuple(axis for axis in answer if shape[axis] > 1)


def judged(
    found: dict[str, Any], original: dict[str, Any], expected: Any, params: Any
) -> dict[str, list[str]]:
    """{"same", "refused", "answered" (and right), "different": the paths}.

    What was answered stays as it is or is refused. What was refused may be answered, if rightly.
    """
    verdicts: dict[str, list[str]] = {k: [] for k in ("same", "refused", "answered", "different")}
    shapes = {name: leaf.shape for name, leaf in named(params).items()}
    for path, before in original.items():
        before, after = long(before, shapes[path]), long(found[path], shapes[path])
        allowed = {long(a, shapes[path]) for a in expected[path]} if expected else set()
        if after == before:
            verdict = "same"
        elif after == REFUSED:
            verdict = "refused"
        elif before == REFUSED and after in allowed:
            verdict = "answered"
        else:
            verdict = "different"
        verdicts[verdict].append(path)
    return verdicts


if __name__ == "__main__":
    import time

    total = 0.0
    for name, build, expected in everything():
        case = built(build)
        start = time.time()
        found = answers(*case)
        seconds = time.time() - start
        total += seconds
        wrong = {p: a for p, a in found.items() if expected and a not in expected[p]}
        if seconds > 1 or wrong:
            print(f"{seconds:6.2f} s  {name}: {wrong or 'right'}")
    print(f"{total:.1f} s")
