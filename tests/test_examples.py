"""The examples run as a user runs them, in a short mode, with warnings as errors."""

import importlib.util
import inspect
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import matplotlib.image
import numpy as np
import optax
import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"
ARMS = ("plain", "optax.centralize", "optax_gc.centralize")


def run(folder, name, *flags):
    # Not the strict dtype promotion of the other tests: under it Optax's Adam fails inside vmap.
    settings = {"JAX_NUMPY_RANK_PROMOTION": "raise", "JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""}
    done = subprocess.run(
        [sys.executable, "-W", "error", EXAMPLES / name, *flags],
        cwd=folder,
        env=os.environ | settings,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def load(name):
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def numbers(line):
    return [float(n) for n in re.findall(r"-?(?:\d[\d.]*|nan|inf)", line)]


def test_digits_prints_finite_numbers_for_every_arm_and_draws_its_curves(tmp_path):
    printed = run(tmp_path, "digits.py", "--steps", "3", "--seeds", "2")
    for optimizer in ("SGDM, lr", "Adam, lr"):
        for arm in ARMS:
            (line,) = re.findall(rf"^{optimizer} [\d.]+ +{re.escape(arm)} .*", printed, re.M)
            found = numbers(line.replace(arm, ""))
            # The learning rate, then pairs of a mean and half the width of its interval.
            assert len(found) == (5 if arm == "plain" else 9) and all(map(math.isfinite, found))

    assert "The loss curves are in digits.png.\n" in printed
    assert (tmp_path / "digits.png").read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    pixels = np.round(255 * matplotlib.image.imread(tmp_path / "digits.png")[..., :3]).astype(int)
    for _, color in load("digits").GRADIENTS.values():
        rgb = [int(color[i : i + 2], 16) for i in (1, 3, 5)]
        assert (np.abs(pixels - np.array([[rgb]])).max(axis=-1) <= 2).sum() > 100, color


def test_digits_arms_that_differ_in_nothing_differ_by_nothing():
    digits = load("digits")
    curve = np.random.default_rng(0).uniform(0.1, 0.9, (4, 3, 5))
    *_, line = digits.table({("SGD", "plain"): curve, ("SGD", "same"): curve}).splitlines()
    assert re.search(r" 0\.00 ± 0\.00 +0\.0000 ± 0\.0000$", line)


def test_linen_example_lowers_its_loss(tmp_path):
    printed = run(tmp_path, "linen_trainstate.py", "--epochs", "2")
    first, second = (float(loss) for loss in re.findall(r"training loss ([\d.]+)", printed))
    assert second < 0.9 * first


@pytest.mark.parametrize("name", ["digits", "linen_trainstate", "muon"])
def test_help_names_the_flags_and_their_defaults(monkeypatch, capsys, name):
    monkeypatch.setattr(sys, "argv", [name, "--help"])
    with pytest.raises(SystemExit, match="0"):
        load(name).main()
    assert re.search(
        r"--batch-size BATCH_SIZE\n? .*\(default: \d+\)", capsys.readouterr().out, re.S
    )


@pytest.mark.parametrize(
    ("name", "flag", "value", "fix"),
    [
        ("digits", "--seeds", "0", "use 2 to"),
        ("digits", "--seeds", "1", "use 2 to"),
        ("digits", "--train-size", "1001", "to 1000"),
        ("digits", "--steps", "0", "use 1 to"),
        ("digits", "--batch-size", "-1", "use 1 to"),
        ("digits", "--adam-lr", "nan", "use 1e-06 to 100"),
        (
            "digits",
            "--figure",
            "no/such/folder/digits.png",
            "use a .png, .svg or .pdf in a folder that",
        ),
        ("digits", "--figure", "digits.exe", "use a .png"),
        ("muon", "--seeds", "1", "use 2 to"),
        ("muon", "--muon-lr", "inf", "use 1e-06 to 100"),
        ("muon", "--figure", "muon.exe", "use a .png"),
        ("linen_trainstate", "--epochs", "0", "use 1 or more"),
        ("linen_trainstate", "--batch-size", "1438", "use 1 to 1437"),
        ("linen_trainstate", "--lr", "-0.1", "use a number above 0"),
    ],
)
def test_impossible_flags_are_refused_with_the_fix(monkeypatch, capsys, name, flag, value, fix):
    monkeypatch.setattr(sys, "argv", [name, flag, value])
    with pytest.raises(SystemExit, match="2"):
        load(name).main()
    assert re.search(rf"error: {flag} is {value}.*{fix}", capsys.readouterr().err)


@pytest.mark.skipif(
    "adam_learning_rate" not in inspect.signature(optax.contrib.muon).parameters,
    reason="this Optax has one learning rate for Muon and Adam",
)
def test_muon_says_which_arrays_go_where_and_ends_at_finite_losses(tmp_path):
    printed = run(tmp_path, "muon.py", "--steps", "2", "--seeds", "2", "--batch-size", "2")
    (query,) = re.findall(r"^layers/attention/query/kernel .*\) +(.*)", printed, re.M)
    assert re.split("  +", query) == ["Adam", "Muon, 3 of 48 x 48"]
    (bias,) = re.findall(r"^layers/up/bias .*\) +(.*)", printed, re.M)
    assert re.split("  +", bias) == ["Muon, 3 x 192", "Adam"]
    (head,) = re.findall(r"^head/kernel .*\) +(.*)", printed, re.M)
    assert re.split("  +", head) == ["Muon, 48 x 128", "Adam"]
    losses = re.findall(r"test NLL ([\d.]+)", printed)
    assert len(losses) == 3 and all(1 < float(loss) < 8 for loss in losses)
    assert (tmp_path / "muon.png").read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
