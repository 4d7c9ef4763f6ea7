"""Turns the runs that `language_model.py` recorded into statistics, a table and a figure.

A script of its own, without JAX: `python examples/language_model_table.py` puts the table between
the two markers in docs/language_model.md and draws a figure for each optimizer, all from the
committed CSV alone.
"""

import csv
import re
from functools import reduce

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from study_table import (
    LEVEL,
    group,
    half_width,
    holm,
    lay_out,
    paired,
    parse_args,
    write_page,
    write_whole,
)

POINTS = 10  # of each curve
KEY = ("optimizer", "arm", "phase", "seed", "lr", "decay")
# The fractions of the gradient, and of the update after the optimizer, that GC would remove; and
# of the head's alone, what its mean over outputs is of them.
REMOVED = ("gradient", "gradient_head", "update", "update_head")
CURVES = ("loss", *REMOVED)
COLUMNS = (*KEY, *CURVES, "ms", "size", "settings", "versions", "device")
BASELINE = "no GC"
# What each arm is to be read against. A softmax cannot see the mean over its inputs: what is done
# to the head over its outputs changes rounding alone, and so is a control itself.
CONTROL_OF = {"GC before": "random before", "GC after": "random after"}
CONTROLS = (*CONTROL_OF.values(), "head over outputs")
COLOURS = {"no GC": "#000000", "GC": "#0072B2", "random": "#D55E00", "head": "#777777"}


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

    write_whole(path, COLUMNS, [{name: text(name, row[name]) for name in COLUMNS} for row in rows])


def tested(rows):
    """Groups the test runs by optimizer and arm, in the order of the seeds that all arms have."""
    found = {}
    for optimizer, of in group(
        [row for row in rows if row["phase"] == "test"], "optimizer"
    ).items():
        arms = {
            arm: {int(row["seed"]): row for row in some} for arm, some in group(of, "arm").items()
        }
        seeds = sorted(reduce(set.__and__, map(set, arms.values())))
        if {BASELINE, *CONTROL_OF, *CONTROLS} == set(arms) and len(seeds) >= 2:
            found[optimizer] = {arm: [some[seed] for seed in seeds] for arm, some in arms.items()}
    if not found:
        raise SystemExit("No optimizer has all arms on two seeds. Run examples/language_model.py.")
    return found


def curves(rows, name="loss"):
    """Returns the curves of an arm, an array (seeds, points)."""
    return np.array([row[name] for row in rows])


def effects(arms):
    """Returns the final loss of each arm minus that of no GC, seed by seed."""
    final = {arm: curves(rows)[:, -1] for arm, rows in arms.items()}
    return {arm: loss - final[BASELINE] for arm, loss in final.items() if arm != BASELINE}


def control_moves(arms):
    """Returns the largest mean effect of a control, of either sign."""
    return max(abs(effects(arms)[arm].mean()) for arm in CONTROLS)


def verdicts(found):
    """Says in a word what each arm's effect is, Holm's correction being over all that are there."""
    tests = [(opt, arm, e) for opt, arms in found.items() for arm, e in effects(arms).items()]
    corrected = holm([paired(e, np.zeros_like(e))[3] for *_, e in tests])
    words = {}
    for (optimizer, arm, effect), p in zip(tests, corrected, strict=True):
        sure = ("gain" if effect.mean() < 0 else "loss") if p < LEVEL else "open"
        small = abs(effect.mean()) <= control_moves(found[optimizer])
        words[optimizer, arm] = "control" if arm in CONTROLS else "noise" if small else sure
    return words


def shown(values, scale=1, digits=3, sign=""):
    """Formats a mean and half the width of its 95 % interval."""
    mean, half = scale * np.mean(values), scale * half_width(values)
    return f"{mean:{sign}.{digits}f} ± {half:.{digits}f}".replace("-", "−")


def edge(row):
    """Marks a tuned learning rate that might have been better beyond the grid."""
    rates = setting(row, r"rates=\((.*?)\)").split(", ")
    return " †" if row["lr"] in (rates[0], rates[-1]) else ""


def setting(row, pattern):
    """Reads one of the settings that a row was run with."""
    return re.search(pattern, row["settings"]).group(1)


def markdown(rows):
    """Lays out how the arms end, how much there is to remove, and what a step takes."""
    found = tested(rows)
    words = verdicts(found)
    ends = [["optimizer", "arm", "rate, decay", "loss", "minus no GC", "minus its control", "is"]]
    inside = [["optimizer", "arm", "of gradient", "of update", "ms a step", "times no GC's"]]
    for optimizer, arms in found.items():
        effect = effects(arms)
        base_ms = np.array([float(row["ms"]) for row in arms[BASELINE]])
        for arm, some in arms.items():
            line = [optimizer, arm, f"{some[0]['lr']}, {some[0]['decay']}{edge(some[0])}"]
            line.append(shown(curves(some)[:, -1]))
            line.append(shown(effect[arm], 1000, 1, "+") if arm != BASELINE else "")
            control = CONTROL_OF.get(arm)
            line.append(shown(effect[arm] - effect[control], 1000, 1, "+") if control else "")
            word = words.get((optimizer, arm), "")
            ends.append([*line, f"**{word}**" if word in ("gain", "loss") else word])
            line = [optimizer, arm]
            for name in ("gradient", "update"):
                first, last = curves(some, name).mean(axis=0)[[0, -1]]
                line.append(f"{first:.2f} → {last:.2f}")
            ms = np.array([float(row["ms"]) for row in some])
            times = "" if arm == BASELINE else shown(ms / base_ms, digits=2)
            inside.append([*line, f"{np.median(ms):.0f}", times])
    return "\n\n".join([lay_out(ends, left=2), lay_out(inside, left=2), caption(found)])


def caption(found):
    """Says what the numbers are."""
    some = next(iter(found.values()))[BASELINE][0]
    steps, batch, context, n = (
        int(setting(some, rf"{name}=(\d+)")) for name in ("steps", "batch", "context", "windows")
    )
    seeds = " and ".join(f"{len(arms[BASELINE])} with {opt}" for opt, arms in found.items())
    moves = " and ".join(
        f"{1000 * control_moves(arms):.1f} with {optimizer}" for optimizer, arms in found.items()
    )
    rows = [row for arms in found.values() for of in arms.values() for row in of]
    gradient = curves(rows, "gradient_head").max()
    update = curves(rows, "update_head").mean(axis=0)
    return (
        f"Loss: mean over {n * context} held-out bytes, in nats a byte, after {steps} steps of "
        f"{batch} x {context} bytes. Differences: seed by seed, in thousandths of a nat a byte "
        "(below 0 is better). ± is half the width of the 95 % interval over seeds, of which there "
        f"are {seeds}. The largest effect of a control is {moves}. An effect no larger is *noise*, "
        f"whatever its p; a larger one is a *gain* or a *loss* if p < {LEVEL} after Holm's "
        f"correction over {sum(len(arms) - 1 for arms in found.values())} tests, and *open* if "
        "not. † the learning rate lies on the edge of its grid. The second table has the share of "
        "the norm that GC removes, or would: of the gradient and of the update after the "
        "optimizer, from the first tenth of the steps to the last. The mean over outputs is at "
        f"most {gradient:.0e} of the head's gradient; of its update it is {update[0]:.2f} in the "
        f"first tenth and {update[-1]:.2f} in the last. Times are medians on a machine that did "
        f"other work: read them as noise. {some['device']}; {some['versions']}."
    )


def look_of(arm):
    """Returns the colour and line of an arm."""
    style = "--" if arm.endswith("after") else ":" if arm.startswith("head") else "-"
    return dict(color=next(c for name, c in COLOURS.items() if arm.startswith(name)), ls=style)


def draw(rows, path):
    """Draws for each optimizer the loss curves and, below, how far arms are from no GC."""
    for optimizer, arms in tested(rows).items():
        figure = Figure(figsize=(3.9, 6.4), layout="constrained")  # for a page 390 pixels wide
        top, *below = figure.subplots(3, 1, sharex=True, height_ratios=(1.2, 1, 1))
        some = arms[BASELINE][0]
        at = int(setting(some, r"steps=(\d+)")) * np.arange(1, POINTS + 1) / POINTS
        for arm, of in arms.items():
            top.plot(at, curves(of).mean(axis=0), label=arm, lw=1.2, **look_of(arm))
        top.set_title(f"{optimizer}: loss, means of {len(arms[BASELINE])} seeds", fontsize=9)
        top.set_ylabel("nats a byte", fontsize=8)
        top.legend(fontsize=7.5, frameon=False)
        before = [arm for arm in arms if arm.endswith("before")]
        after = [arm for arm in arms if arm not in (BASELINE, *before)]
        for ax, those, place in zip(below, (before, after), ("before", "after"), strict=True):
            for arm in those:
                difference = 1000 * (curves(arms[arm]) - curves(arms[BASELINE]))
                mean, half = difference.mean(axis=0), half_width(difference)
                ax.plot(at, mean, lw=1.2, **look_of(arm))
                band = dict(color=look_of(arm)["color"], alpha=0.2, lw=0)
                ax.fill_between(at, mean - half, mean + half, **band)
            ax.axhline(0, color="black", lw=0.8)
            ax.set_title(f"{place} the optimizer: minus no GC, 95 % intervals", fontsize=9)
            ax.set_ylabel("thousandths of a nat a byte", fontsize=8)
        for ax in (top, *below):
            ax.tick_params(labelsize=8)
            ax.yaxis.set_major_locator(MaxNLocator(5))
            ax.spines[["top", "right"]].set_visible(False)
        below[-1].set_xlabel("optimizer step", fontsize=8)
        figure.savefig(figure_of(path, optimizer), dpi=200)


def figure_of(path, optimizer):
    """Returns where the figure of an optimizer goes."""
    return path.with_stem(f"{path.stem}_{optimizer.lower()}")


def main():
    """Puts the table into its page and draws the figures."""
    args = parse_args(__doc__, "language_model", "stem of what to draw")
    rows = read(args.csv)
    draw(rows, args.figure)
    write_page(args.page, markdown(rows))
    figures = " and ".join(str(figure_of(args.figure, optimizer)) for optimizer in tested(rows))
    print(f"Wrote {args.page}, {figures} from {args.csv}.")


if __name__ == "__main__":
    main()
