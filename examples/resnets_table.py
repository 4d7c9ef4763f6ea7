"""Turns the runs that `resnets.py` recorded into two tables and a figure.

A script of its own, without JAX: `python examples/resnets_table.py` puts the tables between the two
markers in docs/resnets.md and draws the figure, all from the committed CSV alone.
"""

import csv
import itertools

import numpy as np
from matplotlib.figure import Figure
from study_table import half_width, lay_out, paired, parse_args, write_page, write_whole

NORMS = {"BN": "BatchNorm", "GN": "GroupNorm"}
BASELINE, CONTROL = "decay", "random direction"
ARMS = {  # what happens to the kernels that a norm follows, and the colour of it
    BASELINE: "#000000",
    "rescaling": "#0072B2",
    "neither": "#D55E00",
    "GC": "#009E73",
    CONTROL: "#999999",
}
AS_GC = f"{BASELINE} as GC"  # tested at the learning rate and decay that tuning chose for GC
PAIRS = (("GC", CONTROL), ("GC", AS_GC), ("rescaling", "neither"))  # shown beside the baseline
MARKS = tuple(range(0, 101, 10))  # percent of the training, at which the traces are taken
CAP = 10.0  # nats: the NLL of a run that diverged, and the most that any run counts
KEY = ("norm", "arm", "split", "lr", "decay", "seed")  # split: validation or test
OUTCOMES = ("nll", "accuracy", "misprinted")
TRACES = ("growth", "outside", "share")
SHARED = ("settings", "versions", "device")
COLUMNS = (*KEY, *OUTCOMES, *TRACES, "seconds", *SHARED)


def read(path):
    """Reads the rows of a CSV file that `write` wrote: numbers as numbers, traces as arrays."""
    with open(path, newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        row.update({name: float(row[name]) for name in ("lr", "decay", *OUTCOMES, "seconds")})
        row.update(
            {name: np.array(row[name].split(), float) for name in TRACES}, seed=int(row["seed"])
        )
    return rows


def write(path, rows):
    """Writes rows, whole or not at all."""

    def text(value):
        if isinstance(value, np.ndarray):
            return " ".join(f"{v:.4g}" for v in value)
        return f"{value:.6g}" if isinstance(value, float) else value

    write_whole(path, COLUMNS, [{name: text(row[name]) for name in COLUMNS} for row in rows])


def chosen(rows, norm, arm):
    """Returns the learning rate and decay with the lowest mean NLL on the most tuning seeds."""
    losses = {}
    for row in rows:
        if (row["norm"], row["arm"], row["split"]) == (norm, arm, "validation"):
            losses.setdefault((row["lr"], row["decay"]), []).append(row["nll"])
    most = max(map(len, losses.values()))
    return min((p for p in losses if len(losses[p]) == most), key=lambda p: np.mean(losses[p]))


def tested(rows):
    """Returns the tests of each (norm, arm) at its tuned point, in order of their seeds."""
    tuned = {(row["norm"], row["arm"]) for row in rows if row["split"] == "validation"}
    points = {(*key, key[1]): chosen(rows, *key) for key in tuned}
    for norm in NORMS:
        point = points.get((norm, "GC", "GC"))
        if point != points.get((norm, BASELINE, BASELINE)):
            points[norm, BASELINE, AS_GC] = point
    runs = {(norm, arm): [] for norm in NORMS for arm in (*ARMS, AS_GC)}
    for row in sorted(rows, key=lambda row: row["seed"]):
        for name in (row["arm"], AS_GC) if row["split"] == "test" else ():
            point = points.get((row["norm"], row["arm"], name))
            if point == (row["lr"], row["decay"]):
                runs[row["norm"], name].append(row)
    return {key: of for key, of in runs.items() if len(of) > 1}


def difference(runs, norm, arm, outcome, base=BASELINE):
    """Returns the mean difference of two arms at equal seeds, and its half-width."""
    of, base = ({r["seed"]: r[outcome] for r in runs[norm, a]} for a in (arm, base))
    seeds = sorted(of.keys() & base.keys())
    mean, low, high, _ = paired([of[s] for s in seeds], [base[s] for s in seeds])
    return mean, (high - low) / 2


def verdict(mean, half, outcome, control):
    """Says in a word what a difference is, given how far the control moves."""
    if not abs(mean) > max(half, abs(control)):
        return "noise"
    return "gain" if (mean < 0) == (outcome == "nll") else "loss"


def show(mean, half, outcome):
    """Formats a difference, of NLL in nats, of accuracy in points."""
    scale, digits = (1, 3) if outcome == "nll" else (100, 1)
    return f"{scale * mean:+.{digits}f} ± {scale * half:.{digits}f}".replace("-", "−")


def effect(runs, norm, arm, outcome):
    """Formats a difference from the baseline with its word, which controls have not."""
    if arm == BASELINE or (norm, BASELINE) not in runs:
        return ""
    mean, half = difference(runs, norm, arm, outcome)
    if arm in (CONTROL, AS_GC):
        return show(mean, half, outcome)
    control = difference(runs, norm, CONTROL, outcome)[0] if (norm, CONTROL) in runs else 0.0
    word = verdict(mean, half, outcome, control)
    shown = f"{show(mean, half, outcome)} {word}"
    return shown if word == "noise" else f"**{shown}**"


def level(runs, name, scale=1.0, digits=3):
    """Formats the mean of an outcome, or of the end of a trace, and its half-width."""
    values = scale * np.array([np.ravel(run[name])[-1] for run in runs])
    return f"{values.mean():.{digits}f} ± {half_width(values):.{digits}f}"


def tuned(rows, run):
    """Formats the tuned learning rate and decay; † if one lies on the edge of its grid."""
    grid = [row for row in rows if row["split"] == "validation"]

    def shown(name):
        values = {row[name] for row in grid}
        edge = values and run[name] in (min(values), max(values))
        return f"{run[name]:g}{' †' if edge else ''}"

    return shown("lr"), shown("decay")


def markdown(rows):
    """Lays out the table of outcomes, the table of weights, and what their numbers are."""
    runs = tested(rows)
    if not runs:
        raise SystemExit("There are no test runs yet. Run examples/resnets.py.")
    outcomes = [["norm, arm", "rate", "decay", "NLL", "minus decay", "accuracy", "minus decay"]]
    weights = [["norm, arm", "norms grow to", "noise is left", "share of noise", "misprinted"]]
    for (norm, arm), of in runs.items():
        differences = [effect(runs, norm, arm, outcome) for outcome in OUTCOMES]
        name = f"{norm}, {arm}"
        outcomes.append([name, *tuned(rows, of[0]), level(of, "nll"), differences[0]])
        outcomes[-1] += [level(of, "accuracy", 100, 1), differences[1]]
        weights.append([name, level(of, "growth", 1, 2), level(of, "outside", 100, 1)])
        weights[-1] += [level(of, "share", 100, 1)]
        weights[-1] += [f"{level(of, 'misprinted', 100, 1)} ({differences[2]})".replace(" ()", "")]
    pairs = [["norm, pair", "NLL", "accuracy", "misprinted"]]
    for norm, (arm, base) in itertools.product(NORMS, PAIRS):
        if {(norm, arm), (norm, base)} <= set(runs):
            differences = [show(*difference(runs, norm, arm, o, base), o) for o in OUTCOMES]
            pairs.append([f"{norm}, {arm} minus {base}", *differences])
    tables = (lay_out(lines) for lines in (outcomes, pairs, weights) if len(lines) > 1)
    return "\n\n".join([*tables, caption(rows, runs)])


def caption(rows, runs):
    """Says what the numbers are."""
    numbers = sorted({len(of) for of in runs.values()})
    start = 100 * np.mean([run["share"][0] for of in runs.values() for run in of])
    compared = sum(arm in ("rescaling", "neither", "GC") for _, arm in runs) * len(OUTCOMES)
    capped = sum(run["nll"] >= CAP for of in runs.values() for run in of)
    minutes = sum(row["seconds"] for row in rows) / 60
    at_gc = f"*{AS_GC}*: decay, at the rate and decay that tuning chose for GC. "
    at_gc = at_gc if any(arm == AS_GC for _, arm in runs) else ""
    without = [norm for norm, arm in runs if arm == BASELINE and (norm, CONTROL) not in runs]
    missing = "".join(f"The control of {norm} was not run. " for norm in without)
    return (
        "NLL in nats, accuracy in % of the test pictures; differences in nats and points, at equal "
        "seeds. ± is half the width of the 95 % interval over "
        f"{' or '.join(map(str, numbers))} seeds. A difference is *noise* if its interval includes "
        f"zero, or if it is no larger than that of the control, {CONTROL}. {missing}Intervals are "
        f"not corrected for their number: {compared} differences have a word, and one in twenty "
        "that are nothing has an interval without zero. Rate and decay are the tuned ones; "
        f"† on the edge of the grid. {at_gc}*Norms grow to*: the Frobenius norms of the kernels "
        "before a norm, after training, in those at the start (geometric mean). *Noise*: the part "
        "of the first kernel outside the span of its inputs, in % of what it was at the start, and "
        f"as a share of the kernel in % ({start:.1f} at the start). *Misprinted*: accuracy on test "
        "pictures of which noise has set green and blue apart; in brackets minus decay. "
        f"{capped} tested runs diverged. {len(rows)} runs, {minutes:.0f} minutes of CPU time "
        f"on one thread; {rows[0]['device']}; {rows[0]['versions']}."
    )


PANELS = {
    "growth": ("norms, in those at the start", 1),
    "share": ("noise, % of the first kernel", 100),
}


def draw(rows, path):
    """Draws the traces of the test runs: a row for each norm, a column for each trace."""
    runs = tested(rows)
    norms = [norm for norm in NORMS if any(norm == key[0] for key in runs)]
    steps = int(dict(pair.split("=") for pair in rows[0]["settings"].split("; "))["steps"])
    figure = Figure(figsize=(4.9, 1.1 + 2.1 * len(norms)), layout="constrained")
    grid = figure.subplots(len(norms), len(PANELS), squeeze=False, sharex=True, sharey="col")
    for norm, line in zip(norms, grid, strict=True):
        for ax, (trace, (label, scale)) in zip(line, PANELS.items(), strict=True):
            for arm, colour in ARMS.items():
                if (norm, arm) not in runs:
                    continue
                values = scale * np.array([run[trace] for run in runs[norm, arm]])
                x, mean, half = np.array(MARKS) * steps / 100, values.mean(0), half_width(values)
                # Dashed, so that what lies underneath is seen.
                style = dict(ls="--" if arm in ("GC", CONTROL) else "-")
                ax.plot(x, mean, color=colour, lw=1.6, label=arm, **style)
                ax.fill_between(x, mean - half, mean + half, color=colour, alpha=0.2, lw=0)
            ax.set_title(f"{norm}: {label}", fontsize=9)
            ax.tick_params(labelsize=8)
            ax.grid(color="#e0e0e0", lw=0.6)
            ax.spines[["top", "right"]].set_visible(False)
    for ax in grid[-1]:
        ax.set_xlabel("step", fontsize=9)
    handles = dict(zip(*grid[0, 0].get_legend_handles_labels()[::-1], strict=True))
    figure.legend(
        handles.values(), handles, loc="outside lower center", ncols=3, fontsize=9, frameon=False
    )
    figure.suptitle("Mean and 95 % interval over seeds, at each arm's tuned rate", fontsize=9)
    figure.savefig(path, dpi=200)


def main():
    """Puts the tables into their page and draws the figure."""
    args = parse_args(__doc__, "resnets", "to draw")
    rows = read(args.csv)
    draw(rows, args.figure)
    write_page(args.page, markdown(rows))
    print(f"Wrote {args.page} and {args.figure} from {args.csv}.")


if __name__ == "__main__":
    main()
