"""Measures what Gradient Centralization (GC) changes, in pairs, on several data sets and models.

In each cell of the study (data, model, optimizer, number of training samples) seven arms differ in
nothing but what the gradient goes through. Learning rate and weight decay are tuned for each arm,
on the same grid with the same seeds, by the negative log-likelihood (NLL) of validation samples.
Fresh seeds then train from new initial weights and are measured on the test set. A seed draws the
samples, the initial weights and the batches, the same ones for every arm, so that an effect is a
mean of differences between pairs: arm minus no GC.

Results go to a CSV file, a row for each cell and arm with the outcome of every seed. If it exists,
what it already has is not run again. `study_table.py` makes the tables and figures of docs/study.md
from it.
"""

import argparse
import itertools
import os
import time
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import flax
import jax
import numpy as np
import optax
import sklearn
import study_table
from study_arms import ARMS, Net
from study_table import CAP, check_folders, check_same, versions_of
from study_tasks import load
from tqdm import tqdm

import optax_gc


class Cell(NamedTuple):
    """What the arms have in common."""

    data: str
    model: str
    optimizer: str
    n: int  # training samples


class Settings(NamedTuple):
    """How long, how often, and over which grid."""

    rates: tuple[float, ...]  # of learning, at the first step; they fall to 0 as a cosine
    decays: tuple[float, ...]  # of weights, decoupled
    seeds: int
    tuning_seeds: int
    batch: int
    steps: int = 300
    validation: int = 200  # samples


# Small nets get more seeds and a wider grid for the same time.
FULL = {
    ("MLP", "SGDM"): Settings(
        (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0), (0.0, 0.01, 0.1), 48, 4, 32
    ),
    ("MLP", "AdamW"): Settings(
        (0.0001, 0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3), (0.0, 0.1, 1.0), 48, 4, 32
    ),
    ("BN-CNN", "SGDM"): Settings((0.01, 0.03, 0.1, 0.3, 1.0, 3.0), (0.0, 0.01), 24, 4, 32),
    ("BN-CNN", "AdamW"): Settings((0.001, 0.003, 0.01, 0.03, 0.1, 0.3), (0.0, 0.1), 24, 4, 32),
    ("LN-transformer", "AdamW"): Settings(
        (0.0003, 0.001, 0.003, 0.01, 0.03, 0.1), (0.0, 0.1), 24, 2, 8
    ),
}
QUICK = {
    key: full._replace(rates=(0.01, 0.1, 1.0), seeds=3, tuning_seeds=1, steps=3, validation=20)
    for key, full in FULL.items()
}

CELLS = [
    *(
        Cell(data, "MLP", optimizer, n)
        for data in ("digits, raw", "digits, standardised")
        for optimizer in ("SGDM", "AdamW")
        for n in (50, 1000)
    ),
    *(Cell("digits, raw", "BN-CNN", optimizer, 1000) for optimizer in ("SGDM", "AdamW")),
    *(
        Cell(data, "MLP", optimizer, 200)
        for data in ("mean is a nuisance", "mean is the label")
        for optimizer in ("SGDM", "AdamW")
    ),
    Cell("source code", "LN-transformer", "AdamW", 4000),
]
QUICK_CELLS = CELLS[:2]


def draw(cell: Cell, seed: int, settings: Settings) -> tuple[np.ndarray, np.ndarray]:
    """Returns a seed's validation samples, and the samples of each step's batch: (steps, size)."""
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(load(cell.data).x))
    validation, order = np.split(order, [settings.validation])
    epochs = rng.permuted(np.tile(order[: cell.n], (settings.steps, 1)), axis=1)
    return validation, epochs[:, : settings.batch]


@cache
def _net(model: str, optimizer: str, features: int, classes: int) -> Net:
    return Net(model, optimizer, features, classes)


def net_of(cell: Cell) -> Net:
    """Returns the net of a cell, the same one for all cells that can share its compilation."""
    task = load(cell.data)
    return _net(cell.model, cell.optimizer, task.x.shape[1], task.classes)


def measure(cell: Cell, arm: str, settings: Settings, seeds, rates, decays, *, test: bool):
    """Trains a lane for each seed, rate and decay, all at once.

    Returns:
      NLL (nats) and accuracy of each, on its own validation samples or on the test set. A lane
      that diverged has an NLL of `CAP` and the accuracy of chance.
    """
    task, net = load(cell.data), net_of(cell)
    drawn = {s: draw(cell, s, settings) for s in dict.fromkeys(seeds)}
    batches = np.stack([drawn[s][1] for s in seeds])
    rates, decays = np.float32(rates), np.float32(decays)
    index = net.arms.index(arm)
    trained = net.train(index, np.asarray(seeds), rates, decays, batches, task.x, task.y)
    if test:
        x, y = (np.broadcast_to(v, (len(seeds), *v.shape)) for v in (task.test_x, task.test_y))
    else:
        ids = np.stack([drawn[s][0] for s in seeds])
        x, y = task.x[ids], task.y[ids]
    nll, accuracy = (np.asarray(v, float) for v in net.evaluate((trained, x, y)))
    diverged = ~np.isfinite(nll)
    nll = np.minimum(np.where(diverged, CAP, nll), CAP)
    return nll, np.where(diverged, 1 / task.classes, accuracy)


def run_arm(cell: Cell, arm: str, settings: Settings) -> dict[str, Any]:
    """Tunes an arm and tests it; returns its part of a row."""
    start = time.perf_counter()
    rates, seeds = settings.rates, settings.seeds
    grid = list(itertools.product(rates, settings.decays))
    # Tuning seeds are no test seeds. In chunks as large as the test, so that one compilation does.
    repeats = range(1000, 1000 + settings.tuning_seeds)
    lanes = [(seed, *point) for point in grid for seed in repeats]
    losses = []
    for i in range(0, len(lanes), seeds):
        chunk = [lanes[j % len(lanes)] for j in range(i, i + seeds)]
        losses.extend(measure(cell, arm, settings, *zip(*chunk, strict=True), test=False)[0])
    losses = np.reshape(losses[: len(lanes)], (len(grid), len(repeats)))
    lr, decay = grid[int(losses.mean(axis=1).argmin())]
    tuned = [lr] * seeds, [decay] * seeds
    nll, accuracy = measure(cell, arm, settings, range(seeds), *tuned, test=True)
    return {
        "lr": lr,
        "decay": decay,
        "lr_at_edge": lr in (min(rates), max(rates)),
        "n_seeds": seeds,
        "capped": int((nll >= CAP).sum()),
        "seconds": round(time.perf_counter() - start, 1),
        "nll_seeds": nll.round(5),
        "accuracy_seeds": accuracy.round(5),
    }


def name_of(cell: Cell) -> str:
    """The name of a cell, as in the table."""
    return study_table.cell_of(cell._asdict())


def provenance(settings: Settings) -> dict[str, str]:
    """What rows of one cell must share to be compared."""
    libraries = (jax, flax, optax, optax_gc, sklearn)
    return {
        "settings": " ".join(f"{name}={value}" for name, value in settings._asdict().items()),
        "versions": versions_of(*libraries),
        "device": f"{jax.devices()[0].device_kind}, {os.cpu_count()} cores",
    }


def finished(path: Path, shared: dict[str, dict[str, str]]) -> list[dict[str, Any]]:
    """Reads the rows that need not be run again; refuses those of another study."""
    rows = study_table.read(path) if path.exists() else []
    for row in rows:
        cell = study_table.cell_of(row)
        if cell not in shared:
            raise SystemExit(f"{path} has a row of {cell!r}, which is no cell. Delete it.")
        mend = "Give another --csv, or delete the rows of that cell to run them anew."
        check_same(path, row, shared[cell], f"a row of {cell!r}", mend)
    return rows


def parse_args() -> argparse.Namespace:
    """Reads the command line and refuses what cannot be run."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    add, here = parser.add_argument, Path("examples")
    add("--csv", type=Path, default=here / "study.csv", help="results; finished rows are kept")
    add("--figure", type=Path, default=Path("images/study.png"), help="stem of two figures to draw")
    add("--only", default="", help='cells whose name contains this, such as "digits, raw, MLP"')
    add("--quick", action="store_true", help="two cells, 3 steps, 3 seeds: to see that it runs")
    args = parser.parse_args()
    args.cells = [c for c in (QUICK_CELLS if args.quick else CELLS) if args.only in name_of(c)]
    if not args.cells:
        names = "; ".join(map(name_of, CELLS))
        parser.error(f"--only is {args.only!r}: use a part of one of these: {names}")
    check_folders(parser, csv=args.csv, figure=args.figure)
    return args


def main():
    """Runs what is missing, row by row, then draws the figures."""
    args = parse_args()
    settings = QUICK if args.quick else FULL
    settings = {cell: settings[cell.model, cell.optimizer] for cell in CELLS}
    shared = {name_of(cell): provenance(settings[cell]) for cell in CELLS}
    rows = finished(args.csv, shared)
    done = {(study_table.cell_of(row), row["arm"]) for row in rows}
    todo = [(cell, arm) for cell in args.cells for arm in ARMS if (name_of(cell), arm) not in done]
    order = {(name, arm): i for i, (name, arm) in enumerate(itertools.product(shared, ARMS))}
    kept = len(args.cells) * len(ARMS) - len(todo)
    print(f"{len(todo)} of {len(todo) + kept} rows to run; {kept} are in {args.csv}.", flush=True)
    with tqdm(todo, unit="row") as bar:
        for cell, arm in bar:
            bar.set_description(f"{name_of(cell)}, {arm}")
            row = {**cell._asdict(), "arm": arm, **shared[name_of(cell)]}
            if arm in net_of(cell).arms:
                row |= run_arm(cell, arm, settings[cell])
            else:
                row["note"] = "not applicable: it selects no parameter"
            rows.append(row)
            rows.sort(key=lambda row: order[study_table.cell_of(row), row["arm"]])
            study_table.write(args.csv, rows)
    study_table.draw(study_table.read(args.csv), args.figure)
    figures = (str(study_table.figure_of(args.figure, outcome)) for outcome in study_table.PANELS)
    print(f"Results: {args.csv}. Figures: {', '.join(figures)}.")


if __name__ == "__main__":
    main()
