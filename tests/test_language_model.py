"""The language model's arms are paired and tuned alike, and its page says what its rows say."""

import importlib
import inspect
import sys
from functools import cache
from pathlib import Path

import jax
import numpy as np
import optax
import pytest
from scipy import stats

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "examples"))
language_model, language_model_table, study_table = (
    importlib.import_module(name)
    for name in ("language_model", "language_model_table", "study_table")
)
TINY = language_model.SIZES["tiny"]
COMMITTED = ROOT / "examples" / "language_model.csv"
needs_consistent_rms = pytest.mark.skipif(
    "consistent_rms" not in inspect.signature(optax.contrib.muon).parameters,
    reason="this Optax cannot make Muon's updates as large as Adam's",
)
program = cache(language_model.Program)  # each is compiled once, for all tests


@pytest.fixture(autouse=True)
def _fast(standard_promotion):
    """Compiles in half the time; nothing here depends on the generator or on XLA's speed."""
    jax.config.update("jax_disable_most_optimizations", True)
    with jax.default_prng_impl("rbg"):
        yield
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture
def study(monkeypatch, tmp_path):
    """Answers a function that runs the tiny study of one optimizer, and the file of its rows."""
    monkeypatch.setattr(language_model, "OPTIMIZERS", ("Muon",))
    monkeypatch.setattr(language_model, "Program", program)
    path = tmp_path / "rows.csv"
    monkeypatch.setattr(sys, "argv", ["", "--size", "tiny", "--csv", str(path)])
    return language_model.main, path


def rows_without_times(path):
    return [{**row, "ms": ""} for row in language_model_table.read(path)]


@needs_consistent_rms
def test_an_interrupted_study_runs_what_is_missing_and_ends_the_same(study, monkeypatch):
    run, path = study
    run()
    before = rows_without_times(path)
    points = len(TINY.rates) * len(TINY.decays)
    assert len(before) == len(language_model.ARMS) * (points + TINY.seeds)
    for row in before:
        of_test = row["phase"] == "test"
        assert row["loss"].shape == ((language_model.POINTS,) if of_test else (1,))
        assert np.isfinite(row["loss"]).all() and 0 < row["gradient"].min() < 1

    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-2]))
    ran, train = [], language_model.train
    monkeypatch.setattr(
        language_model, "train", lambda *args: ran.append(args[-1].arm) or train(*args)
    )
    run()
    assert ran == list(language_model.ARMS)[-2:]
    for row, expected in zip(rows_without_times(path), before, strict=True):
        np.testing.assert_equal(row, expected)

    ran.clear()
    run()
    assert not ran

    page = path.with_name("page.md")
    page.write_text(f"{study_table.BEGIN}\n{study_table.END}\n")
    figure = path.with_name("figure.png")
    flags = ["--csv", str(path), "--page", str(page), "--figure", str(figure)]
    monkeypatch.setattr(sys, "argv", ["", *flags])
    language_model_table.main()
    assert page.read_text().count("| Muon | GC after |") == 2
    assert path.with_name("figure_muon.png").read_bytes().startswith(b"\x89PNG\r\n\x1a\n")


@pytest.mark.parametrize("column", ["settings", "versions", "device"])
def test_rows_of_another_study_are_refused_and_kept(study, column):
    run, path = study
    shared = {**language_model.provenance("tiny"), column: "other"}
    outcomes = dict.fromkeys(language_model_table.CURVES, np.ones(10)) | {"ms": 1.0}
    language_model_table.write(
        path,
        [
            {**language_model.Run("Muon", "no GC", "test", 0, 0.1, 0.0)._asdict()}
            | outcomes
            | shared
        ],
    )
    before = path.read_bytes()
    with pytest.raises(SystemExit, match=f"{column} 'other'.*Give another --csv"):
        run()
    assert path.read_bytes() == before


def losses(arm, lr=0.01, seed=0):
    run = language_model.Run("AdamW", arm, "test", seed, lr, 1.0)
    return language_model.train(program(TINY, "AdamW"), TINY, run)


def test_arms_start_from_the_same_weights_and_see_the_same_bytes():
    plain, *others = (losses(arm, lr=0.0) for arm in language_model.ARMS)
    for other in others:
        np.testing.assert_array_equal(other["loss"], plain["loss"])
        np.testing.assert_allclose(other["gradient"], plain["gradient"], rtol=1e-5)
    assert np.abs(losses("no GC", lr=0.0, seed=1)["loss"] - plain["loss"]).min() > 1e-3


def test_a_softmax_cannot_see_the_mean_that_is_taken_over_its_inputs():
    plain, head = losses("no GC"), losses("head over outputs")
    np.testing.assert_allclose(head["loss"], plain["loss"], atol=1e-4)
    assert plain["gradient_head"].max() < 1e-5  # and its gradient has none
    assert head["update_head"].min() > 0.1  # but Adam's update has
    for arm in set(language_model.ARMS) - {"no GC", "head over outputs"}:
        assert np.abs(losses(arm)["loss"] - plain["loss"]).max() > 1e-3, arm


def test_axes_and_muons_matrices_are_those_of_the_model():
    made = program(TINY, "AdamW")
    fan_in = made.roles.fan_in
    attention = fan_in["layers"]["attention"]
    assert {name: attention[name]["kernel"] for name in attention} == {
        "query": (1,), "key": (1,), "value": (1,), "out": (1, 2)
    }  # fmt: skip
    assert [fan_in["layers"][name]["kernel"] for name in ("up", "down")] == [(1,), (1,)]
    assert fan_in["head"]["kernel"] == (0,) and fan_in["embed"]["embedding"] == ()
    assert language_model.head_axes(fan_in)["head"]["kernel"] == (1,)


@pytest.mark.parametrize(("name", "least"), [("1M", 1e6), ("10M", 1e7)])
def test_a_size_has_as_many_parameters_as_its_name_says(name, least):
    size = language_model.SIZES[name]
    shapes = language_model.Program(size, "AdamW").shapes
    assert least <= sum(leaf.size for leaf in jax.tree.leaves(shapes)) < 1.1 * least
    assert size.steps % language_model.POINTS == 0 and size.seeds >= 8


def test_tuning_takes_the_lowest_end_and_nothing_that_diverged():
    ends = {(0.1, 0.0): 2.0, (0.1, 1.0): np.nan, (0.2, 0.0): 1.5, (0.2, 1.0): 1.6}
    rows = [
        dict(optimizer="AdamW", arm="no GC", phase="tune", lr=lr, decay=decay, loss=[0.0, end])
        for (lr, decay), end in ends.items()
    ]
    rows.append({**rows[0], "arm": "GC before", "loss": [0.0]})
    rows.append({**rows[0], "phase": "test", "loss": [0.0]})
    assert language_model.tuned(rows, "AdamW", "no GC") == (0.2, 0.0)


def test_no_module_is_both_trained_and_tested_on():
    texts = language_model.texts()
    train, test = language_model.source_code()
    np.testing.assert_array_equal(np.concatenate([texts["train"], texts["tune"]]), train)
    np.testing.assert_array_equal(texts["test"], test)
    assert language_model.FIRST_TUNING_SEED > max(s.seeds for s in language_model.SIZES.values())


def made_rows(final, seeds=8):
    """Rows of one optimizer whose arms end at the given losses, each with some noise."""
    rng = np.random.default_rng(0)
    common = dict(optimizer="AdamW", phase="test", lr="0.1", decay="0.0", ms="1.0", device="d")
    settings = "batch=8 context=8 steps=10 windows=2 rates=(0.01, 0.1, 1.0) decays=(0.0,)"
    return [
        common
        | {name: np.ones(10) for name in language_model_table.REMOVED}
        | dict(arm=arm, seed=str(seed), settings=settings, versions="v")
        | dict(loss=np.full(10, end + seed + 1e-3 * rng.normal()))
        for arm, end in final.items()
        for seed in range(seeds)
    ]


FINAL = dict.fromkeys(language_model.ARMS, 1.0) | {"random after": 1.02, "GC before": 0.95}


@pytest.mark.parametrize(
    ("ends_at", "word"), [(0.95, "gain"), (1.05, "loss"), (1.015, "noise"), (0.985, "noise")]
)
def test_what_a_control_also_moves_is_noise_however_sure(ends_at, word):
    found = language_model_table.tested(made_rows(FINAL | {"GC after": ends_at}))
    words = language_model_table.verdicts(found)
    assert words["AdamW", "GC after"] == word
    assert words["AdamW", "GC before"] == "gain"
    assert words["AdamW", "random after"] == words["AdamW", "head over outputs"] == "control"


def test_differences_in_the_table_are_between_pairs_of_seeds():
    rows = made_rows(FINAL)
    end = {arm: [r["loss"][-1] for r in rows if r["arm"] == arm] for arm in language_model.ARMS}
    test = stats.ttest_rel(end["GC before"], end["random before"])
    low, high = 1000 * np.array(test.confidence_interval())
    expected = f"{(low + high) / 2:+.1f} ± {(high - low) / 2:.1f}".replace("-", "−")
    (line,) = (
        line
        for line in language_model_table.markdown(rows).splitlines()
        if line.startswith("| AdamW | GC before | 0.1, 0.0")
    )
    assert f"| {expected} |" in line and high - low < 10  # seeds alone differ by whole nats


def test_seeds_that_an_arm_lacks_count_for_none():
    rows = [r for r in made_rows(FINAL) if (r["arm"], r["seed"]) != ("GC after", "3")]
    for some in language_model_table.tested(rows)["AdamW"].values():
        assert [row["seed"] for row in some] == list("0124567")
    with pytest.raises(SystemExit, match=r"Run examples/language_model\.py"):
        language_model_table.tested([row for row in rows if row["arm"] != "GC after"])


def test_committed_arms_are_tuned_alike_and_tested_as_tuned_on_the_same_seeds():
    rows = language_model_table.read(COMMITTED)
    assert {row["settings"] for row in rows} == {language_model.provenance("1M")["settings"]}
    size = language_model.SIZES["1M"]
    for optimizer, arms in language_model_table.tested(rows).items():
        for arm, some in arms.items():
            of_arm = [r for r in rows if (r["optimizer"], r["arm"]) == (optimizer, arm)]
            tuning = [(float(r["lr"]), float(r["decay"])) for r in of_arm if r["phase"] == "tune"]
            assert tuning == [(lr, decay) for lr in size.rates for decay in size.decays]
            chosen = language_model.tuned(rows, optimizer, arm)
            assert {(float(row["lr"]), float(row["decay"])) for row in some} == {chosen}
            assert [int(row["seed"]) for row in some] == list(range(size.seeds))


def test_the_page_has_the_table_that_the_script_makes_from_the_committed_rows():
    page = (ROOT / "docs" / "language_model.md").read_text(encoding="utf-8")
    table = language_model_table.markdown(language_model_table.read(COMMITTED))
    assert study_table.insert(page, table) == page


def test_the_page_quotes_the_committed_rows():
    page = " ".join((ROOT / "docs" / "language_model.md").read_text(encoding="utf-8").split())
    arms = language_model_table.tested(language_model_table.read(COMMITTED))["AdamW"]
    plain = language_model_table.curves(arms["no GC"])
    for arm, point, before in (
        ("GC after", -1, "After 160 steps the test loss was lower by"),
        ("random after", -1, "(control: higher by"),
        ("GC before", 2, "After 48 steps it was ahead, by"),
        ("random before", 2, "(control: behind by"),
        ("GC before", -1, "At the end its loss was higher by"),
        ("random before", -1, "(control: higher by"),
    ):
        differences = (language_model_table.curves(arms[arm]) - plain)[:, point]
        low, high = stats.ttest_1samp(differences, 0).confidence_interval()
        sign = -1 if "lower" in before or "ahead" in before else 1
        assert sign * (low + high) > -1e-3
        assert f"{before} {sign * (low + high) / 2:.3f} ± {(high - low) / 2:.3f}" in page
    muon = language_model_table.tested(language_model_table.read(COMMITTED))["Muon"]
    for arm, differences in language_model_table.effects(muon).items():
        low, high = stats.ttest_1samp(differences, 0).confidence_interval()
        word = "lower" if low + high < 0 else "higher"
        quoted = f"{word} by {abs(low + high) / 2:.3f} ± {(high - low) / 2:.3f}"
        assert arm == "head over outputs" or quoted in page
    removed = language_model_table.curves(arms["no GC"], "gradient").mean(axis=0)
    assert f"{removed[0]:.2f} of its norm at the start and {removed[-1]:.2f} at the end" in page


def test_a_folder_that_does_not_exist_is_refused_with_the_fix(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["", "--csv", "no/such/folder/rows.csv"])
    with pytest.raises(SystemExit, match="2"):
        language_model.main()
    assert "use a folder that exists" in capsys.readouterr().err
