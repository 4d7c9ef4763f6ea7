"""The study is paired, tuned fairly and resumable, and README says what its results say."""

import importlib
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from jax import lax
from scipy import stats

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "examples"))
study, study_arms, study_table, study_tasks = (
    importlib.import_module(name) for name in ("study", "study_arms", "study_table", "study_tasks")
)
CELL = study.CELLS[0]
FULL, QUICK = (of["MLP", "SGDM"] for of in (study.FULL, study.QUICK))


@pytest.fixture(autouse=True)
def _promotion(standard_promotion):
    """Under strict dtype promotion Optax's Adam fails inside vmap."""


def run(folder, *flags):
    with pytest.MonkeyPatch.context() as patch:
        paths = ["--csv", str(folder / "study.csv"), "--figure", str(folder / "study.png")]
        patch.setattr(sys, "argv", ["study.py", "--quick", *paths, *flags])
        study.main()
    return folder / "study.csv"


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        return run(tmp_path_factory.mktemp("study"))


@pytest.fixture
def copied(finished, tmp_path, monkeypatch):
    monkeypatch.setattr(study_table, "draw", lambda rows, path: None)  # slow, and drawn before
    (tmp_path / finished.name).write_bytes(finished.read_bytes())
    return tmp_path / finished.name


def test_quick_study_has_a_row_for_every_cell_and_arm_and_a_figure(finished):
    rows = study_table.read(finished)
    found = [(study_table.cell_of(row), row["arm"]) for row in rows]
    assert found == [(study.name_of(c), arm) for c in study.QUICK_CELLS for arm in study.ARMS]
    for row in rows:
        if row["arm"] == "GC, conv only":  # an MLP has no convolution
            assert "not applicable" in row["note"] and row["nll_mean"] == ""
        else:
            assert row["nll_seeds"].shape == (QUICK.seeds,) and np.isfinite(row["nll_seeds"]).all()
    for outcome in study_table.OUTCOMES:
        figure = (finished.parent / f"study_{outcome}.png").read_bytes()
        assert figure.startswith(b"\x89PNG\r\n\x1a\n") and len(figure) > 10_000


def test_recorded_statistics_follow_from_the_recorded_seeds(finished):
    for path in (finished, ROOT / "examples" / "study.csv"):
        rows = [row for row in study_table.read(path) if not row["note"]]
        of = {(study_table.cell_of(row), row["arm"]): row for row in rows}
        for row in rows:
            for outcome in ("nll", "accuracy"):
                values = row[f"{outcome}_seeds"]
                base = of[study_table.cell_of(row), "no GC"][f"{outcome}_seeds"]
                np.testing.assert_allclose(float(row[f"{outcome}_mean"]), values.mean(), rtol=1e-3)
                if row["arm"] == "no GC" or (values == base).all():
                    continue
                test = stats.ttest_rel(values, base)
                low, high = test.confidence_interval()
                for name, value in (
                    ("effect", np.subtract(values, base).mean()),
                    ("ci_low", low),
                    ("ci_high", high),
                    ("p", test.pvalue),
                ):
                    np.testing.assert_allclose(float(row[f"{outcome}_{name}"]), value, rtol=1e-3)


def test_a_finished_study_trains_nothing_again(copied, monkeypatch, capsys):
    before = copied.read_bytes()
    monkeypatch.setattr(study, "measure", lambda *_, **__: pytest.fail("it trains"))
    run(copied.parent)
    assert copied.read_bytes() == before
    assert "0 of 14 rows to run; 14 are in" in capsys.readouterr().out


def test_an_interrupted_study_runs_what_is_missing_and_ends_the_same(copied, monkeypatch):
    def without_seconds(path):
        return [{**row, "seconds": 0} for row in study_table.read(path)]

    before = without_seconds(copied)
    *kept, _, _ = copied.read_text().splitlines(keepends=True)
    copied.write_text("".join(kept))
    ran, run_arm = [], study.run_arm
    monkeypatch.setattr(study, "run_arm", lambda *args: ran.append(args[1]) or run_arm(*args))
    run(copied.parent)
    assert ran == list(study.ARMS)[-2:]
    for row, expected in zip(without_seconds(copied), before, strict=True):
        np.testing.assert_equal(row, expected)


@pytest.mark.parametrize("column", ["settings", "versions", "device"])
def test_rows_of_another_study_are_refused_and_kept(copied, column):
    rows = study_table.read(copied)
    rows[3][column] = "other"
    study_table.write(copied, rows)
    before = copied.read_bytes()
    with pytest.raises(SystemExit, match=f"{column} 'other'.*Give another --csv"):
        run(copied.parent)
    assert copied.read_bytes() == before


def outcomes(arm, lr, seeds=(0, 1, 2), cell=CELL):
    lanes = seeds, [lr] * len(seeds), [0.0] * len(seeds)
    return study.measure(cell, arm, QUICK, *lanes, test=True)[0]


def test_arms_start_from_the_same_weights_and_see_the_same_test_set():
    plain = outcomes("no GC", 0.0)
    assert len(set(plain)) == len(plain)
    for arm in study.net_of(CELL).arms:
        if arm != "centred start + GC":
            np.testing.assert_array_equal(outcomes(arm, 0.0), plain)


def test_arms_see_the_same_batches():
    # With SGDM and no decay, GC before and after the momentum are the same algorithm.
    before, after = outcomes("GC", 0.1), outcomes("GC after", 0.1)
    np.testing.assert_allclose(before, after, rtol=1e-5)
    assert np.abs(before - outcomes("no GC", 0.1)).min() > 1e-3
    assert np.abs(before - outcomes("GC", 0.1, seeds=(3, 4, 5))).min() > 1e-4


def test_a_seed_draws_training_samples_apart_from_its_validation_samples():
    for seed in range(5):
        validation, batches = study.draw(CELL, seed, FULL)
        assert len(set(validation)) == 200 and len(set(batches.ravel())) == CELL.n
        assert not set(validation) & set(batches.ravel())


def test_diverged_runs_count_as_the_cap_and_as_chance():
    lanes = [0, 1, 2], [1e30] * 3, [0.0] * 3
    nll, accuracy = study.measure(CELL, "no GC", QUICK, *lanes, test=True)
    np.testing.assert_array_equal(nll, [study.CAP] * 3)
    np.testing.assert_array_equal(accuracy, [0.1] * 3)


def test_tuning_takes_the_best_mean_of_validation_on_seeds_that_test_none(monkeypatch):
    best, calls = (0.03, 0.01), []

    def measure(cell, arm, settings, seeds, rates, decays, *, test):
        calls.append((test, set(seeds)))
        # Each seed alone prefers something else; only the mean over seeds prefers `best`.
        off = np.abs(np.log(rates) - np.log(best[0])) + np.abs(np.subtract(decays, best[1]))
        tilt = 2 * (np.mod(seeds, 4) - 1.5) * np.log(rates)
        return off + tilt, np.zeros(len(off))

    monkeypatch.setattr(study, "measure", measure)
    row = study.run_arm(CELL, "GC", FULL)
    assert (row["lr"], row["decay"], row["lr_at_edge"]) == (*best, False)
    tuned = set().union(*(seeds for test, seeds in calls if not test))
    (tested,) = (seeds for test, seeds in calls if test)
    assert len(tuned) == 4 and len(tested) == 48 and not tuned & tested


def test_the_control_removes_one_direction_of_each_unit_and_no_other():
    rng = np.random.default_rng(0)
    shapes = {"conv": {"kernel": (3, 3, 4, 6)}, "dense": {"kernel": (7, 5), "bias": (5,)}}
    is_shape = dict(is_leaf=lambda x: isinstance(x, tuple))
    first, second = (
        jax.tree.map(lambda s: np.float32(rng.normal(size=s)), shapes, **is_shape) for _ in range(2)
    )
    tx = study_arms.project_out_random(jax.random.key(0))
    state = jax.jit(tx.init)(first)
    (kept, _), (kept_too, _) = (jax.jit(tx.update)(g, state) for g in (first, second))
    np.testing.assert_array_equal(kept["dense"]["bias"], first["dense"]["bias"])
    for name in ("conv", "dense"):
        units = first[name]["kernel"].shape[-1]
        g, h, pg, ph = (
            np.float64(tree[name]["kernel"]).reshape(-1, units)
            for tree in (first, second, kept, kept_too)
        )
        gone, gone_too = g - pg, h - ph
        unit = gone / np.linalg.norm(gone, axis=0)
        # Of both gradients the same line is gone, and all of it: nothing is left along it.
        np.testing.assert_allclose(unit * (unit * gone_too).sum(0), gone_too, atol=1e-5)
        np.testing.assert_allclose((unit * pg).sum(0), 0, atol=1e-5)
        np.testing.assert_allclose((unit * g).sum(0) * unit, gone, atol=1e-5)
        overlap = np.abs(unit.T @ unit - np.eye(units))
        assert 0.05 < overlap.max() < 0.999  # neither the same for all units, nor chosen apart


def test_paired_statistics_are_those_of_the_paired_t_test():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=24), rng.normal(size=24) + 0.2
    effect, low, high, p = study_table.paired(a, b)
    error = np.std(a - b, ddof=1) / np.sqrt(24)
    np.testing.assert_allclose(effect, a.mean() - b.mean(), rtol=1e-12)
    # 2.0686576 is the 97.5 % quantile of Student's t at 23 degrees of freedom.
    np.testing.assert_allclose([low, high], effect + 2.0686576 * error * np.array([-1, 1]), 1e-6)
    np.testing.assert_allclose(p, 2 * stats.t.sf(abs(effect) / error, 23), rtol=1e-10)


def test_arms_that_differ_in_nothing_have_no_effect():
    same = np.random.default_rng(0).normal(size=7)
    assert study_table.paired(same, same) == (0, 0, 0, 1)


def test_holm_rejects_what_stepping_down_rejects():
    np.testing.assert_allclose(
        study_table.holm([0.01, 0.04, 0.03, 0.005]), [0.03, 0.06, 0.06, 0.02]
    )
    rng = np.random.default_rng(0)
    for size in (1, 5, 40):
        p = rng.random(size) ** 4
        for alpha in (0.01, 0.05, 0.3):
            rejected = set()
            for k, i in enumerate(np.argsort(p)):  # Holm's procedure, as he states it
                if p[i] > alpha / (size - k):
                    break
                rejected.add(i)
            assert set(np.flatnonzero(study_table.holm(p) <= alpha)) == rejected


def test_convolution_by_patches_is_convolution():
    rng = np.random.default_rng(0)
    x, kernel = (np.float32(rng.normal(size=s)) for s in ((2, 8, 8, 5), (3, 3, 5, 7)))
    for strides in ((1, 1), (2, 2)):
        args = x, kernel, strides, ((1, 1), (1, 1))
        expected = lax.conv_general_dilated(*args, dimension_numbers=("NHWC", "HWIO", "NHWC"))
        np.testing.assert_allclose(study_tasks.conv_as_matmul(*args), expected, atol=1e-4)


def test_the_mean_is_the_label_or_tells_nothing_about_it():
    for name, expected in (("mean is the label", 0.8), ("mean is a nuisance", 0.0)):
        task = study_tasks.load(name)
        agreement = np.mean(np.sign(task.test_x.mean(axis=1)) * (2 * task.test_y - 1))
        assert abs(agreement - expected) < 0.06, name


@pytest.mark.parametrize(("model", "applies"), [("BN-CNN", True), ("LN-transformer", False)])
def test_conv_only_applies_where_there_are_convolutions(model, applies):
    cell = next(cell for cell in study.CELLS if cell.model == model)
    assert ("GC, conv only" in study.net_of(cell).arms) == applies


def test_committed_results_have_every_arm_of_every_cell():
    rows = study_table.read(ROOT / "examples" / "study.csv")
    found = [(study_table.cell_of(row), row["arm"]) for row in rows]
    assert found == [(study.name_of(cell), arm) for cell in study.CELLS for arm in study.ARMS]
    for row in rows:
        settings = study.FULL[row["model"], row["optimizer"]]
        assert row["settings"] == study.provenance(settings)["settings"]
    assert all(int(row["n_seeds"]) >= 20 for row in rows if not row["note"])


def test_the_page_has_the_table_that_the_script_makes_from_the_committed_results():
    page = (ROOT / "docs" / "study.md").read_text(encoding="utf-8")
    table = study_table.markdown(study_table.read(ROOT / "examples" / "study.csv"))
    assert study_table.insert(page, table) == page


@pytest.mark.parametrize(
    ("effect", "p", "word"),
    [(-0.05, 0.01, "gain"), (0.05, 0.01, "loss"), (-0.05, 0.2, "open"), (-0.02, 1e-9, "noise")],
)
def test_what_the_control_also_moves_is_noise_however_sure(effect, p, word):
    row = dict(arm="GC", nll_effect=effect, nll_p_holm=p)
    controls = [
        dict(arm=study_table.CONTROL, nll_effect=e, nll_ci_low=low, nll_ci_high=high)
        for e, low, high in ((0.03, 0.01, 0.05), (-0.2, -0.5, 0.1), (-0.01, -0.02, -0.005))
    ]
    noise = study_table.control_moves([row, *controls], "nll")
    assert noise == 0.03  # the largest of those whose interval excludes zero
    assert study_table.verdict(row, "nll", noise) == word


def test_inserting_replaces_what_is_between_the_markers_and_nothing_else():
    text = f"above\n{study_table.BEGIN}\nold\n{study_table.END}\nbelow\n"
    once = study_table.insert(text, "| new |")
    assert once == f"above\n{study_table.BEGIN}\n\n| new |\n\n{study_table.END}\nbelow\n"
    assert study_table.insert(once, "| new |") == once
    with pytest.raises(SystemExit, match="Put both where the table goes"):
        study_table.insert("no markers", "| new |")


@pytest.mark.parametrize(
    ("flag", "value", "fix"),
    [
        ("--only", "nothing", "use a part of one of these: digits, raw, MLP, SGDM, 50"),
        ("--csv", "no/such/folder/study.csv", "use a folder that exists"),
        ("--figure", "no/such/folder/study.png", "use a folder that exists"),
    ],
)
def test_impossible_flags_are_refused_with_the_fix(tmp_path, capsys, flag, value, fix):
    with pytest.raises(SystemExit, match="2"):
        run(tmp_path, flag, value)
    assert fix in capsys.readouterr().err
