"""Turns the outcomes that `study.py` recorded into statistics, README's table and a figure.

A script of its own, without JAX: `python examples/study_table.py` puts the table between the two
markers in README.md and draws the figure, both from the committed CSV alone.
"""

import argparse
import csv
import os
from collections import Counter
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from scipy import stats

HERE = Path(__file__).parent
BEGIN, END = "<!-- study:begin -->", "<!-- study:end -->"
LEVEL = 0.05
CAP = 10.0  # nats: the NLL of a seed that diverged, and the most that any seed counts
OUTCOMES = ("nll", "accuracy")
STATISTICS = ("mean", "se", "effect", "ci_low", "ci_high", "p", "p_holm")
KEY = ("data", "model", "optimizer", "n", "arm")
COLUMNS = (
    *(*KEY, "note", "lr", "decay", "lr_at_edge", "n_seeds", "capped"),
    *(f"{outcome}_{name}" for outcome in OUTCOMES for name in STATISTICS),
    *("seconds", "settings", "versions", "device", "nll_seeds", "accuracy_seeds"),
)
BASELINE, CONTROL = "no GC", "random direction"
IN_README = ("optax.centralize", "GC", "GC after", "centred start + GC", CONTROL)


def paired(values, baseline):
    """Returns the mean difference of pairs, its 95 % t-interval and the p of the paired t-test."""
    differences = np.asarray(values) - np.asarray(baseline)
    mean = differences.mean()
    if not differences.std() > 1e-12 * np.abs(differences).max():  # t is 0/0, or infinite
        return mean, mean, mean, float(mean == 0)
    low, high = stats.t.interval(0.95, len(differences) - 1, mean, stats.sem(differences))
    _, p = stats.ttest_rel(values, baseline)
    return mean, low, high, p


def holm(p):
    """Corrects p-values for their number: rejecting those below α errs anywhere with p ≤ α."""
    p = np.asarray(p, float)
    order, corrected = np.argsort(p), np.empty_like(p)
    steps = p[order] * np.arange(len(p), 0, -1)
    corrected[order] = np.minimum(np.maximum.accumulate(steps), 1)
    return corrected


def with_statistics(rows):
    """Fills in what follows from the seeds' outcomes; p_holm is over all rows and both outcomes."""
    rows = [dict(row) for row in rows]
    baselines = {cell_of(row): row for row in rows if row["arm"] == BASELINE}
    tests = []
    for row in rows:
        for outcome in OUTCOMES if not row.get("note") else ():
            values = np.asarray(row[f"{outcome}_seeds"])
            row[f"{outcome}_mean"] = values.mean()
            row[f"{outcome}_se"] = values.std(ddof=1) / np.sqrt(len(values))
            if row["arm"] == BASELINE:
                continue
            effect = paired(values, baselines[cell_of(row)][f"{outcome}_seeds"])
            names = (f"{outcome}_{name}" for name in ("effect", "ci_low", "ci_high", "p"))
            row.update(zip(names, effect, strict=True))
            tests.append((row, outcome))
    corrected = holm([row[f"{outcome}_p"] for row, outcome in tests])
    for (row, outcome), p in zip(tests, corrected, strict=True):
        row[f"{outcome}_p_holm"] = p
    return rows


def cell_of(row):
    """The name of a row's cell, which its arms share."""
    return ", ".join(str(row[name]) for name in KEY[:-1])


def read(path):
    """Reads the rows of a CSV file that `write` wrote, the outcomes of the seeds as arrays."""
    with open(path, newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        for outcome in OUTCOMES:
            row[f"{outcome}_seeds"] = np.array(row[f"{outcome}_seeds"].split(), float)
    return rows


def write(path, rows):
    """Writes rows with their statistics, whole or not at all."""

    def text(value):
        if isinstance(value, np.ndarray):
            return " ".join(f"{v:.7g}" for v in value)
        return f"{value:.4g}" if isinstance(value, float) else value

    partial = path.with_name(path.name + ".partial")
    with open(partial, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        for row in with_statistics(rows):
            writer.writerow({name: text(value) for name, value in row.items()})
    os.replace(partial, path)


def interval(row, outcome, scale):
    """Formats an effect and half the width of its interval; bold if it survives the correction."""
    half = scale * (row[f"{outcome}_ci_high"] - row[f"{outcome}_ci_low"]) / 2
    digits = 1 if half < 0.95 else 0
    shown = f"{scale * row[f'{outcome}_effect']:+.{digits}f} ± {half:.{digits}f}"
    shown = shown.replace("-", "−")
    return (f"**{shown}**" if row[f"{outcome}_p_holm"] < LEVEL else shown) + edge(row)


def level(row, outcome, scale, digits):
    """Formats a mean and half the width of its 95 % interval."""
    half = stats.t.ppf(0.975, int(row["n_seeds"]) - 1) * row[f"{outcome}_se"]
    return f"{scale * row[f'{outcome}_mean']:.{digits}f} ± {scale * half:.{digits}f}{edge(row)}"


def edge(row):
    """Marks a row whose tuned learning rate might have been better beyond the grid."""
    return " †" if str(row["lr_at_edge"]) == "True" else ""


def markdown(rows):
    """Lays out README's table: a line for each cell, the effects on NLL and of GC on accuracy."""
    rows = with_statistics(rows)
    by_cell = {}
    for row in rows:
        by_cell.setdefault(cell_of(row), {})[row["arm"]] = row
    for cell, arms in by_cell.items():
        if missing := {BASELINE, *IN_README} - set(arms):
            raise SystemExit(f"{cell} has no {min(missing)} yet. Run examples/study.py to its end.")
    head = ["data, model, optimizer, samples", "NLL without", *IN_README, "accuracy without", "GC"]
    lines = [head, ["---", *["---:"] * (len(head) - 1)]]
    for cell, arms in by_cell.items():
        lines.append(
            [
                cell,
                level(arms[BASELINE], "nll", 1, 3),
                *(interval(arms[arm], "nll", 1000) for arm in IN_README),
                level(arms[BASELINE], "accuracy", 100, 1),
                interval(arms["GC"], "accuracy", 100),
            ]
        )
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return f"{table}\n\n{caption(rows)}"


def caption(rows):
    """Says what the numbers are, and counts wins and losses."""
    tested = [row for row in rows if not row.get("note") and row["arm"] != BASELINE]
    counts = {arm: Counter(map(verdict, of)) for arm, of in group(tested, "arm").items()}
    listed = "; ".join(
        f"{arm}: {c['better']} better, {c['worse']} worse, {c['open']} open"
        for arm, c in counts.items()
    )
    trained = [row for row in rows if not row.get("note")]
    seconds = sum(float(row["seconds"]) for row in trained)
    capped = sum(int(row["capped"]) for row in trained)
    numbers = sorted({int(row["n_seeds"]) for row in trained}, reverse=True)
    return (
        "Effects: arm minus no GC at the same seeds, in thousandths of a nat of test NLL (below 0 "
        "is better) and, in the last column, points of test accuracy (above 0 is better), ± half "
        f"the 95 % interval over {' or '.join(map(str, numbers))} seeds. Bold: p < {LEVEL} after "
        f"Holm's correction over {len(OUTCOMES) * len(tested)} tests. By test NLL, after that "
        f"correction: {listed}. Intervals hold for the learning rate and decay that tuning chose; "
        f"how much that choice alone can move, the control ({CONTROL}) shows. † the learning rate "
        f"lies on the edge of its grid. {capped} tested runs diverged or reached the cap of "
        f"{CAP:g} nats. {seconds / 60:.0f} minutes on {trained[0]['device']}; "
        f"{trained[0]['versions']}."
    )


def group(rows, name):
    """Groups rows by a column, in order."""
    groups = {}
    for row in rows:
        groups.setdefault(row[name], []).append(row)
    return groups


def verdict(row):
    """What a row's test NLL says after the correction."""
    if not row["nll_p_holm"] < LEVEL:
        return "open"
    return "better" if row["nll_effect"] < 0 else "worse"


PANELS = {  # scale, where the axis turns from linear to logarithmic, ticks, sign of an improvement
    "nll": ("test NLL, nats", 1, 0.01, (-0.1, -0.01, 0, 0.01, 0.1), -1),
    "accuracy": ("test accuracy, percentage points", 100, 1, (-10, -1, 0, 1, 10), 1),
}


def draw(rows, path):
    """Draws a forest plot: an effect and its interval for each cell (lines) and arm (columns)."""
    rows = with_statistics(rows)
    cells = list(dict.fromkeys(map(cell_of, rows)))
    columns = {arm: of for arm, of in group(rows, "arm").items() if arm != BASELINE}
    figure = Figure(figsize=(14, 2 + 0.5 * len(cells)), layout="constrained")
    grid = figure.subplots(2, len(columns), sharey=True, sharex="row", squeeze=False)
    for axes, (outcome, (label, scale, linear, ticks, good)) in zip(
        grid, PANELS.items(), strict=True
    ):
        for ax, (arm, of) in zip(axes, columns.items(), strict=True):
            ax.axvline(0, color="black", lw=0.8)
            ax.set_title(arm, fontsize=11)
            for row in of:
                y = cells.index(cell_of(row))
                if row.get("note"):
                    ax.text(0, y, " n/a", va="center", fontsize=8, color="#888888")
                    continue
                effect, *ends = (
                    scale * row[f"{outcome}_{name}"] for name in ("effect", "ci_low", "ci_high")
                )
                sure = row[f"{outcome}_p_holm"] < LEVEL
                # Colours that the colour-blind can tell.
                color = ("#0072B2" if good * effect > 0 else "#D55E00") if sure else "#777777"
                ax.plot(ends, [y, y], color=color, lw=2, solid_capstyle="butt")
                ax.plot(effect, y, "o", color=color, ms=4.5, mfc=color if sure else "white")
            ax.set_xscale("symlog", linthresh=linear, linscale=0.7)
            ax.set_xticks(ticks, [f"{tick:g}".replace("-", "−") for tick in ticks], fontsize=8)
            ax.minorticks_off()
            ax.grid(axis="x", color="#e4e4e4", lw=0.8)
            ax.set_axisbelow(True)
            ax.spines[["top", "right", "left"]].set_visible(False)
            ax.tick_params(axis="y", length=0, labelsize=9)
        axes[0].set_xlabel(label, fontweight="bold")
    grid[0, 0].set_yticks(range(len(cells)), cells)
    grid[0, 0].set_ylim(len(cells) - 0.5, -0.5)
    figure.suptitle(
        "Arm minus no GC at the same seeds, with 95 % intervals; logarithmic beyond inner ticks."
        f"\nFilled: p < {LEVEL} after Holm's correction, blue better, orange worse."
    )
    figure.savefig(path, dpi=110)


def insert(text, table):
    """Puts the table between the markers in README's text."""
    if text.count(BEGIN) != 1 or text.count(END) != 1 or text.index(END) < text.index(BEGIN):
        raise SystemExit(f"README has no {BEGIN} followed by {END}. Put both where the table goes.")
    before, rest = text.split(BEGIN)
    return f"{before}{BEGIN}\n\n{table}\n\n{END}{rest.split(END)[1]}"


def main():
    """Puts the table into README and draws the figure."""
    with_defaults = argparse.ArgumentDefaultsHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=with_defaults)
    parser.add_argument("--csv", type=Path, default=HERE / "study.csv", help="study.py's results")
    parser.add_argument("--readme", type=Path, default=HERE.parent / "README.md", help="to edit")
    parser.add_argument(
        "--figure", type=Path, default=HERE.parent / "images/study.png", help="to draw"
    )
    args = parser.parse_args()
    rows = read(args.csv)
    args.figure.parent.mkdir(exist_ok=True)
    draw(rows, args.figure)
    readme = args.readme.read_text(encoding="utf-8")
    args.readme.write_text(insert(readme, markdown(rows)), encoding="utf-8")
    print(f"Wrote {args.readme} and {args.figure} from {args.csv}.")


if __name__ == "__main__":
    main()
