"""Turns the outcomes that `study.py` recorded into statistics, a table and two figures.

A script of its own, without JAX: `python examples/study_table.py` puts the table between the two
markers in docs/study.md and draws the figures, all from the committed CSV alone. The other studies
keep their rows and write their pages with what is here too.
"""

import argparse
import csv
import os
import platform
from collections import Counter
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.transforms import blended_transform_factory
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
# The control stands beside the baseline, before whatever is to be read against it.
SHOWN = (CONTROL, "GC", "GC after", "centred start + GC", "optax.centralize")


def paired(values, baseline):
    """Returns the mean difference of pairs, its 95 % t-interval and the p of the paired t-test."""
    differences = np.asarray(values) - np.asarray(baseline)
    mean = differences.mean()
    if not differences.std() > 1e-12 * np.abs(differences).max():  # t is 0/0, or infinite
        return mean, mean, mean, float(mean == 0)
    low, high = stats.t.interval(0.95, len(differences) - 1, mean, stats.sem(differences))
    _, p = stats.ttest_rel(values, baseline)
    return mean, low, high, p


def half_width(values):
    """Half the width of the 95 % interval of the mean over seeds, which come first."""
    return stats.t.ppf(0.975, len(values) - 1) * stats.sem(values, axis=0)


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

    rows = [{name: text(value) for name, value in row.items()} for row in with_statistics(rows)]
    write_whole(path, COLUMNS, rows)


def write_whole(path, columns, rows):
    """Writes the rows of a CSV file, all or none."""
    partial = path.with_name(path.name + ".partial")
    with open(partial, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    os.replace(partial, path)


def versions_of(*libraries):
    """Names the versions of Python and of libraries."""
    of = (f"{library.__name__} {library.__version__}" for library in libraries)
    return ", ".join([f"Python {platform.python_version()}", *of])


def check_same(path, row, shared, what="a row", mend="Give another --csv."):
    """Refuses a row of a file that was not run as this run would run it."""
    for name, mine in shared.items():
        if row[name] != mine:
            raise SystemExit(
                f"{path} has {what} with {name} {row[name]!r}, and this run has {mine!r}: the two "
                f"cannot be compared. {mend}"
            )


def check_folders(parser, **paths):
    """Refuses a path on the command line whose folder is not there."""
    for flag, path in paths.items():
        if not path.parent.is_dir():
            parser.error(
                f"--{flag} is {path}: use a folder that exists, or run from the repository"
            )


def control_moves(rows, outcome):
    """Returns the largest effect that the control had with an interval that excludes zero."""
    clear = (
        abs(row[f"{outcome}_effect"])
        for row in rows
        if row["arm"] == CONTROL and row[f"{outcome}_ci_low"] * row[f"{outcome}_ci_high"] > 0
    )
    return max(clear, default=0.0)


def verdict(row, outcome, noise):
    """Says in a word what an effect is, given how much the control moves."""
    if not abs(row[f"{outcome}_effect"]) > noise:
        return "noise"
    if not row[f"{outcome}_p_holm"] < LEVEL:
        return "open"
    lower = row[f"{outcome}_effect"] < 0
    return "gain" if lower == (outcome == "nll") else "loss"


def interval(row, outcome, scale, noise):
    """Formats an effect and half the width of its interval; bold if it is a gain or a loss."""
    half = scale * (row[f"{outcome}_ci_high"] - row[f"{outcome}_ci_low"]) / 2
    digits = 1 if half < 0.95 else 0
    shown = f"{scale * row[f'{outcome}_effect']:+.{digits}f} ± {half:.{digits}f}"
    shown = shown.replace("-", "−")
    sure = row["arm"] != CONTROL and verdict(row, outcome, noise) in ("gain", "loss")
    return (f"**{shown}**" if sure else shown) + edge(row)


def level(row, outcome, scale, digits):
    """Formats a mean and half the width of its 95 % interval."""
    half = stats.t.ppf(0.975, int(row["n_seeds"]) - 1) * row[f"{outcome}_se"]
    return f"{scale * row[f'{outcome}_mean']:.{digits}f} ± {scale * half:.{digits}f}{edge(row)}"


def edge(row):
    """Marks a row whose tuned learning rate might have been better beyond the grid."""
    return " †" if str(row["lr_at_edge"]) == "True" else ""


def markdown(rows):
    """Lays out a table for each outcome: a line for each cell, with what the arms change."""
    rows = with_statistics(rows)
    noise = {outcome: control_moves(rows, outcome) for outcome in OUTCOMES}
    by_cell = {}
    for row in rows:
        by_cell.setdefault(cell_of(row), {})[row["arm"]] = row
    for cell, arms in by_cell.items():
        if missing := {BASELINE, *SHOWN} - set(arms):
            raise SystemExit(f"{cell} has no {min(missing)} yet. Run examples/study.py to its end.")
    tables = []
    for outcome, without, scales, digits in (
        ("nll", "NLL without", (1, 1000), 3),
        ("accuracy", "accuracy without", (100, 100), 1),
    ):
        head = ["data, model, optimizer, samples", "GC is", without, *SHOWN]
        lines = [head]
        for cell, arms in by_cell.items():
            effects = (interval(arms[arm], outcome, scales[1], noise[outcome]) for arm in SHOWN)
            level_without = level(arms[BASELINE], outcome, scales[0], digits)
            word = verdict(arms["GC"], outcome, noise[outcome])
            lines.append([cell, word, level_without, *effects])
        tables.append(lay_out(lines, left=2))
    return "\n\n".join([*tables, caption(rows, noise)])


def lay_out(lines, left=1):
    """Makes a table of Markdown, of which all but some columns on the left go to the right."""
    head, *rest = lines
    marks = [*["---"] * left, *["---:"] * (len(head) - left)]
    return "\n".join(f"| {' | '.join(line)} |" for line in (head, marks, *rest))


def caption(rows, noise):
    """Says what the numbers are, and counts gains and losses."""
    tested = [row for row in rows if not row.get("note") and row["arm"] != BASELINE]
    counts = {
        arm: Counter(verdict(row, "nll", noise["nll"]) for row in of)
        for arm, of in group(tested, "arm").items()
        if arm != CONTROL
    }
    listed = "; ".join(
        f"{arm}: " + ", ".join(f"{c[word]} {word}" for word in ("gain", "loss", "open", "noise"))
        for arm, c in counts.items()
    )
    trained = [row for row in rows if not row.get("note")]
    seconds = sum(float(row["seconds"]) for row in trained)
    capped = sum(int(row["capped"]) for row in trained)
    numbers = sorted({int(row["n_seeds"]) for row in trained}, reverse=True)
    return (
        "Effects: arm minus no GC at the same seeds, in thousandths of a nat of test NLL (below 0 "
        "is better) and in points of test accuracy (above 0 is better). ± is half the width of the "
        f"95 % interval over {' or '.join(map(str, numbers))} seeds, in the columns of levels too. "
        f"The control, {CONTROL}, removes one that means nothing: where its interval excludes zero "
        f"it moves NLL by up to {noise['nll']:.3f} nats and accuracy by up to "
        f"{100 * noise['accuracy']:.1f} points. An effect no larger than that is *noise*, whatever "
        f"its p; a larger one is a *gain* or a *loss*, in bold, if p < {LEVEL} after Holm's "
        f"correction over {len(OUTCOMES) * len(tested)} tests, and *open* if not. By test NLL: "
        f"{listed}. Intervals hold for the learning rate and decay that tuning chose. † the "
        f"learning rate lies on the edge of its grid. {capped} tested runs diverged or reached the "
        f"cap of {CAP:g} nats. {seconds / 60:.0f} minutes on {trained[0]['device']}; "
        f"{trained[0]['versions']}."
    )


def group(rows, name):
    """Groups rows by a column, in order."""
    groups = {}
    for row in rows:
        groups.setdefault(row[name], []).append(row)
    return groups


PANELS = {  # scale, where the axis turns from linear to logarithmic, ticks
    "nll": ("test NLL in nats (left is better)", 1, 0.01, (-0.1, -0.01, 0, 0.01, 0.1)),
    "accuracy": ("test accuracy in points (right is better)", 100, 1, (-10, -1, 0, 1, 10)),
}
TITLES = {  # that fit into a column
    CONTROL: "control:\nrandom",
    "centred start + GC": "centred\n+ GC",
    "optax.centralize": "optax.\ncentralize",
}
COLOURS = {"gain": "#0072B2", "loss": "#D55E00", "open": "#777777", "noise": "#777777"}


def figure_of(path, outcome):
    """Returns where the figure of an outcome goes."""
    return path.with_stem(f"{path.stem}_{outcome}")


def draw(rows, path):
    """Draws a figure for each outcome: an interval for each cell (lines) and arm (columns).

    Narrow, with a line's name above its intervals, so that a phone shows it.
    """
    rows = with_statistics(rows)
    cells = list(dict.fromkeys(map(cell_of, rows)))
    for outcome, (label, scale, linear, ticks) in PANELS.items():
        noise = control_moves(rows, outcome)
        figure = Figure(figsize=(4.9, 1.6 + 0.42 * len(cells)), layout="constrained")
        axes = figure.subplots(1, len(SHOWN), sharey=True, sharex=True)
        for ax, arm in zip(axes, SHOWN, strict=True):
            of = {cell_of(row): row for row in rows if row["arm"] == arm and not row.get("note")}
            ax.axvspan(-scale * noise, scale * noise, color="#eeeeee", lw=0)
            ax.axvline(0, color="black", lw=0.8)
            ax.set_title(TITLES.get(arm, arm), fontsize=8)
            for y, cell in enumerate(cells):
                if not (row := of.get(cell)):
                    continue
                effect, *ends = (
                    scale * row[f"{outcome}_{name}"] for name in ("effect", "ci_low", "ci_high")
                )
                word = verdict(row, outcome, noise)
                sure = word in ("gain", "loss")
                color = COLOURS[word]  # that the colour-blind can tell
                ax.plot(ends, [y, y], color=color, lw=1.8, solid_capstyle="butt")
                ax.plot(effect, y, "o", color=color, ms=4, mfc=color if sure else "white")
            ax.set_xscale("symlog", linthresh=linear, linscale=0.7)
            # Every tick has its line; at this width only the outer ones have room for a label.
            shown = [f"{t:g}".replace("-", "−") if abs(t) != linear else "" for t in ticks]
            ax.set_xticks(ticks, shown, fontsize=7)
            ax.minorticks_off()
            ax.grid(axis="x", color="#e0e0e0", lw=0.6)
            ax.set_axisbelow(True)
            ax.spines[["top", "right", "left"]].set_visible(False)
            ax.tick_params(axis="y", length=0, labelleft=False)
        axes[0].set_ylim(len(cells) - 0.6, -0.75)
        # In the last panel, so that no other panel covers the names; they begin in the first.
        at = blended_transform_factory(axes[0].transAxes, axes[-1].transData)
        for y, cell in enumerate(cells):
            paper = dict(facecolor="white", edgecolor="none", pad=1)
            name = dict(fontsize=8, transform=at, va="bottom", bbox=paper)
            axes[-1].text(0, y - 0.26, cell, **name).set_in_layout(False)
        figure.supxlabel(f"arm minus no GC, {label}", fontsize=9)
        figure.suptitle(
            "Filled: gain (blue) or loss (orange). Grey band: what the control moves.\n"
            f"95 % intervals; axis linear within ±{linear:g}, logarithmic beyond.",
            fontsize=8,
        )
        figure.savefig(figure_of(path, outcome), dpi=200)


def insert(text, table):
    """Puts the table between the markers in the page's text."""
    if text.count(BEGIN) != 1 or text.count(END) != 1 or text.index(END) < text.index(BEGIN):
        raise SystemExit(f"There is no {BEGIN} followed by {END}. Put both where the table goes.")
    before, rest = text.split(BEGIN)
    return f"{before}{BEGIN}\n\n{table}\n\n{END}{rest.split(END)[1]}"


def write_page(page, table):
    """Puts the table into a page."""
    page.write_text(insert(page.read_text(encoding="utf-8"), table), encoding="utf-8")


def parse_args(doc, name, figure):
    """Reads the command line of a script that writes the page and the figures of a study."""
    with_defaults = argparse.ArgumentDefaultsHelpFormatter
    parser = argparse.ArgumentParser(description=doc, formatter_class=with_defaults)
    add, root = parser.add_argument, HERE.parent
    add("--csv", type=Path, default=HERE / f"{name}.csv", help=f"{name}.py's results")
    add("--page", type=Path, default=root / f"docs/{name}.md", help="to edit")
    add("--figure", type=Path, default=root / f"images/{name}.png", help=figure)
    return parser.parse_args()


def main():
    """Puts the table into its page and draws the figures."""
    args = parse_args(__doc__, "study", "stem of what to draw")
    rows = read(args.csv)
    args.figure.parent.mkdir(exist_ok=True)
    draw(rows, args.figure)
    write_page(args.page, markdown(rows))
    figures = " and ".join(str(figure_of(args.figure, outcome)) for outcome in PANELS)
    print(f"Wrote {args.page}, {figures} from {args.csv}.")


if __name__ == "__main__":
    main()
