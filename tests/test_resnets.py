"""The drawings are what they say, the study is paired and resumable, its page is its CSV."""

import importlib
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from scipy import stats

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "examples"))
drawings, resnets, resnets_table, study_table = (
    importlib.import_module(name)
    for name in ("drawings", "resnets", "resnets_table", "study_table")
)
TINY = resnets.SIZES["tiny"]


@pytest.fixture(autouse=True)
def _promotion(standard_promotion):
    """Optax's own code is not for strict promotion."""


@pytest.fixture(scope="module", autouse=True)
def _quick_to_compile():
    """Tiny runs take longer to compile than to compute."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


def run(folder, *flags):
    with pytest.MonkeyPatch.context() as patch:
        paths = ["--csv", str(folder / "resnets.csv"), "--figure", str(folder / "resnets.png")]
        few = ["--size", "tiny", "--norms", "GN", "--arms", "decay", "rescaling"]
        patch.setattr(sys, "argv", ["resnets.py", *few, *paths, *flags])
        resnets.main()
    return folder / "resnets.csv"


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        return run(tmp_path_factory.mktemp("resnets"))


@pytest.fixture
def copied(finished, tmp_path, monkeypatch):
    monkeypatch.setattr(resnets_table, "draw", lambda rows, path: None)  # drawn before
    (tmp_path / finished.name).write_bytes(finished.read_bytes())
    return tmp_path / finished.name


def test_drawings_have_their_shapes_and_types():
    images, labels = drawings.draw(7, seed=0, size=12)
    assert images.shape == (7, 12, 12, 3) and images.dtype == np.uint8
    assert labels.shape == (7,) and labels.dtype == np.int32


def test_drawings_are_the_same_for_a_seed_and_others_for_another():
    (images, labels), (again, labels_again), (other, _) = (drawings.draw(30, s) for s in (5, 5, 6))
    np.testing.assert_array_equal(images, again)
    np.testing.assert_array_equal(labels, labels_again)
    assert (images != other).mean() > 0.9


@pytest.mark.parametrize(("count", "least", "most"), [(200, 20, 20), (37, 3, 4)])
def test_classes_of_drawings_are_balanced_and_in_no_order(count, least, most):
    _, labels = drawings.draw(count, seed=1)
    found = np.bincount(labels, minlength=len(drawings.FIGURES))
    assert len(found) == 10 and found.min() == least and found.max() == most
    assert (np.diff(labels) < 0).any()


def test_green_equals_blue_in_every_drawing_and_red_does_not():
    images, _ = drawings.draw(20, seed=2)
    np.testing.assert_array_equal(images[..., 1], images[..., 2])
    assert (images[..., 0] != images[..., 1]).mean() > 0.9


def test_a_figure_is_inside_the_unit_circle_and_no_two_are_the_same():
    u, v = np.meshgrid(np.linspace(-1.5, 1.5, 61), np.linspace(-1.5, 1.5, 61))
    inside = {name: figure(u, v) < 0 for name, figure in drawings.FIGURES.items()}
    for name, shape in inside.items():
        assert 0.2 < shape.sum() * 0.05**2 < np.pi + 0.1, name
        assert not shape[np.hypot(u, v) > 1.03].any(), name
        others = [(shape ^ other).sum() for key, other in inside.items() if key != name]
        assert min(others) * 0.05**2 > 0.2, name


@pytest.mark.parametrize(("count", "size"), [(0, 16), (3, 7)])
def test_impossible_drawings_are_refused_with_the_fix(count, size):
    with pytest.raises(ValueError, match=f"count={count} and size={size}. Use"):
        drawings.draw(count, seed=0, size=size)


def test_a_tiny_study_has_all_runs_of_an_arm_and_a_figure(finished):
    rows = resnets_table.read(finished)
    for arm in ("decay", "rescaling"):
        of = [row for row in rows if row["arm"] == arm]
        tuning, tests = of[:4], of[4:]  # two points, two seeds
        assert [row["split"] for row in of] == ["validation"] * 4 + ["test"] * TINY.seeds
        losses = {lr: np.mean([r["nll"] for r in tuning if r["lr"] == lr]) for lr in TINY.rates}
        assert {row["lr"] for row in tests} == {min(losses, key=losses.get)}
        assert {row["seed"] for row in tuning} & {row["seed"] for row in tests} == set()
        assert all(np.isfinite([row["nll"], row["accuracy"]]).all() for row in of)
    figure = (finished.parent / "resnets.png").read_bytes()
    assert figure.startswith(b"\x89PNG\r\n\x1a\n") and len(figure) > 10_000


def test_rescaling_keeps_norms_and_what_inputs_do_not_span_stays_without_decay(finished):
    for row in resnets_table.read(finished):
        if row["arm"] == "rescaling":
            np.testing.assert_allclose(row["growth"], 1, rtol=1e-3)
        else:
            # The first kernel decays by η λ a step, with η on a cosine; nothing else moves it.
            step = np.arange(TINY.steps)
            rates = row["lr"] * (1 + np.cos(np.pi * step / TINY.steps)) / 2
            left = np.prod(1 - rates * row["decay"])
            np.testing.assert_allclose(row["outside"][-1], left, rtol=1e-3)
            assert 0 < row["share"][0] < 1 and row["share"][-1] != row["share"][0]


def test_a_finished_study_of_resnets_trains_nothing_again(copied, monkeypatch):
    before = copied.read_bytes()
    monkeypatch.setattr(resnets, "run", lambda *_: pytest.fail("it trains"))
    run(copied.parent)
    assert copied.read_bytes() == before


def test_an_interrupted_study_of_resnets_runs_what_is_missing_and_ends_the_same(
    copied, monkeypatch
):
    def outcomes():
        return [
            {name: row[name] for name in (*resnets_table.KEY, "nll", "accuracy", "growth")}
            for row in resnets_table.read(copied)
        ]

    before, lines = outcomes(), copied.read_text().splitlines(keepends=True)
    copied.write_text("".join(lines[:-1]))
    ran, once = [], resnets.run
    monkeypatch.setattr(resnets, "run", lambda *args: ran.append(args[1:]) or once(*args))
    run(copied.parent)
    assert len(ran) == 1
    for row, expected in zip(outcomes(), before, strict=True):
        np.testing.assert_equal(row, expected)


@pytest.mark.parametrize("column", resnets_table.SHARED)
def test_rows_of_another_study_of_resnets_are_refused_and_kept(copied, column):
    rows = resnets_table.read(copied)
    rows[1][column] = "other"
    resnets_table.write(copied, rows)
    before = copied.read_bytes()
    with pytest.raises(SystemExit, match=f"{column} 'other'.*Give another --csv"):
        run(copied.parent)
    assert copied.read_bytes() == before


def test_a_seed_trains_on_other_drawings_than_it_validates_on():
    size = resnets.SIZES["cpu"]._replace(pixels=8, batch=50, steps=100)
    validation, batches = resnets.sample(size, 3)
    assert batches.shape == (size.steps, size.batch)
    assert len(set(validation)) == size.validation
    assert len(set(batches.ravel())) == size.train
    assert not set(validation) & set(batches.ravel())


def test_kernels_before_a_norm_are_held_and_the_head_is_not():
    axes = resnets.net_of("GN", TINY).axes
    kept = [key for key, leaf in jax.tree.leaves_with_path(axes, is_leaf=is_axes) if leaf]
    names = [jax.tree_util.keystr(key) for key in kept]
    assert len(names) == 1 + 3 * 2 + 2  # the stem, three blocks, two ways around
    assert not [name for name in names if "head" in name or "norm" in name]


def is_axes(x):
    return isinstance(x, tuple)


def made_up(nll_of_arm):
    """Rows of one norm, whose NLL differs between arms as given, and by little between seeds."""
    trace = np.ones(len(resnets_table.MARKS))
    shared = dict(lr=0.1, decay=0.1, growth=trace, outside=trace, share=trace, seconds=1.0)
    shared |= dict(settings="steps=10", versions="", device="")
    tuning = [
        dict(norm="BN", arm=arm, split="validation", seed=1, nll=1, **shared) for arm in nll_of_arm
    ]
    return tuning + [
        dict(norm="BN", arm=arm, split="test", seed=seed, nll=nll + noise + seed, **shared)
        | dict(accuracy=0.5, misprinted=0.5)
        for arm, nll in nll_of_arm.items()
        for seed, noise in enumerate(np.random.default_rng(len(arm)).normal(scale=0.01, size=8))
    ]


@pytest.mark.parametrize(
    ("rescaling", "control", "word"),
    [(-0.1, 0.0, "gain"), (0.1, 0.0, "loss"), (-0.1, 0.3, "noise"), (0.0005, 0.0, "noise")],
)
def test_a_difference_within_its_interval_or_the_control_is_noise(rescaling, control, word):
    arms = {"decay": 0.0, "rescaling": rescaling, resnets_table.CONTROL: control}
    runs = resnets_table.tested(made_up(arms))
    assert word in resnets_table.effect(runs, "BN", "rescaling", "nll")


def test_the_tuned_point_has_the_lowest_mean_of_those_with_the_most_tuning_seeds():
    outcomes = {0.1: [3.0, 1.0], 0.2: [2.0, 2.2], 0.3: [0.5]}
    rows = [
        dict(norm="BN", arm="GC", split="validation", lr=lr, decay=0.0, seed=seed, nll=nll)
        for lr, of in outcomes.items()
        for seed, nll in enumerate(of)
    ]
    others = [
        dict(row, **other, nll=0.0) for row in rows for other in ({"norm": "GN"}, {"split": "test"})
    ]
    assert resnets_table.chosen([*others, *rows], "BN", "GC") == (0.1, 0.0)


def test_decay_is_compared_with_gc_at_the_point_of_gc_too():
    at = {"decay": 0.1, "GC": 0.2}
    rows = [dict(row, lr=at[row["arm"]]) for row in made_up({"decay": 0.0, "GC": 0.1})]
    moved = [
        dict(row, lr=at["GC"], nll=row["nll"] + 5)
        for row in rows
        if (row["arm"], row["split"]) == ("decay", "test")
    ]
    runs = resnets_table.tested(rows + moved)
    assert resnets_table.difference(runs, "BN", "GC", "nll")[0] > 0
    assert resnets_table.difference(runs, "BN", "GC", "nll", resnets_table.AS_GC)[0] < -4


def test_a_difference_from_decay_is_that_of_the_paired_t_test():
    runs = resnets_table.tested(made_up({"decay": 0.0, "GC": 0.1}))
    mean, half = resnets_table.difference(runs, "BN", "GC", "nll")
    of, base = ([r["nll"] for r in runs["BN", arm]] for arm in ("GC", "decay"))
    low, high = stats.ttest_rel(of, base).confidence_interval()
    np.testing.assert_allclose([mean - half, mean + half], [low, high], rtol=1e-9)


def test_the_page_of_resnets_has_the_tables_of_the_committed_results():
    page = (ROOT / "docs" / "resnets.md").read_text(encoding="utf-8")
    rows = resnets_table.read(ROOT / "examples" / "resnets.csv")
    assert study_table.insert(page, resnets_table.markdown(rows)) == page


def test_committed_runs_of_resnets_are_whole_and_of_one_study():
    rows = resnets_table.read(ROOT / "examples" / "resnets.csv")
    keys = [tuple(row[name] for name in resnets_table.KEY) for row in rows]
    assert len(set(keys)) == len(keys)
    assert len({tuple(row[name] for name in resnets_table.SHARED) for row in rows}) == 1
    size = resnets.SIZES["cpu"]
    assert rows[0]["settings"] == resnets.provenance(size)["settings"]
    runs = resnets_table.tested(rows)
    assert {("BN", arm) for arm in resnets_table.ARMS} <= set(runs)
    for norm, arm in runs:
        assert [row["seed"] for row in runs[norm, arm]] == list(range(size.seeds))


def test_impossible_folders_for_the_study_of_resnets_are_refused(tmp_path, capsys):
    with pytest.raises(SystemExit, match="2"):
        run(tmp_path, "--csv", "no/such/folder/resnets.csv")
    assert "use a folder that exists" in capsys.readouterr().err
