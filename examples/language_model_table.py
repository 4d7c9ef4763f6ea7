"""Turns the runs that `language_model.py` recorded into statistics, a table and a figure.

A script of its own, without JAX: `python examples/language_model_table.py` puts the table between
the two markers in docs/language_model.md and draws the figure, from the committed CSV alone.
"""

import csv
import os

import numpy as np

POINTS = 10  # of each curve
KEY = ("optimizer", "arm", "phase", "seed", "lr", "decay")
# The fractions of the gradient, and of the update after the optimizer, that GC would remove; and
# of the head's alone, what its mean over outputs is of them.
REMOVED = ("gradient", "gradient_head", "update", "update_head")
CURVES = ("loss", *REMOVED)
COLUMNS = (*KEY, *CURVES, "ms", "size", "settings", "versions", "device")


def key_of(row):
    """What tells a run from all others."""
    return tuple(str(row[name]) for name in KEY)


def read(path):
    """Reads the rows of a CSV file that `write` wrote, the curves as arrays."""
    with open(path, newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        row.update({name: np.array(row[name].split(), float) for name in CURVES})
    return rows


def write(path, rows):
    """Writes rows, whole or not at all."""

    def text(name, value):
        if name not in CURVES:
            return value
        return " ".join(f"{v:.6f}" if name == "loss" else f"{v:.3g}" for v in value)

    partial = path.with_name(path.name + ".partial")
    with open(partial, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        for row in rows:
            writer.writerow({name: text(name, row[name]) for name in COLUMNS})
    os.replace(partial, path)
