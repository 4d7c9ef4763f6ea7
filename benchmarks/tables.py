"""The results of the benchmarks as tables and as a bar chart.

python benchmarks/tables.py benchmarks/compiled.csv  # or overhead.csv, tracing.csv: Markdown
"""

import csv
import pathlib
import sys
from collections.abc import Callable, Iterator

import trees

WITHOUT, AGAIN, READ = "without", "A/A", "read"
OPTAX, NAIVE, OURS = "optax", "naive", "ours"
VARIANTS = (OURS, NAIVE, OPTAX)


def spread(ratio: tuple[float, float, float]) -> str:
    """A median with its range."""
    return "{:.2f} [{:.2f}, {:.2f}]".format(*ratio)


def lines(result: dict) -> Iterator[str]:
    """The tables, as people read them."""
    yield "{device}, jax {jax}, load {load}".format(**result)
    layout = "{:24} {:9} {:14} {:>9}" + 5 * " {:>18}" + " {:>6} {:>12} {:>12}  {}"
    yield layout.format(
        "tree", "dtype", "optimizer", WITHOUT, AGAIN, OPTAX, NAIVE, OURS, READ, "floor",
        "temporaries", "accessed", "",
    )  # fmt: skip
    for r in result["rows"]:
        yield layout.format(
            r["tree"], r["dtype"], r["optimizer"], f"{r['seconds'][WITHOUT] * 1e3:.2f} ms",
            *(spread(r["ratios"][v]) for v in (AGAIN, OPTAX, NAIVE, OURS, READ)),
            f"{r['floor']:.2f}",
            *(f"{r[key][NAIVE]:.3f} {r[key][OURS]:.3f}" for key in ("temporaries", "accessed")),
            "void" if r["void"] else "",
        )  # fmt: skip
    yield "temporaries, accessed: naive and ours, more than without, over the gradients' bytes"
    yield ""
    for r in result["compile"]:
        times = (
            f"{v} {r[v]['trace_s']:.2f} + {r[v]['compile_s']:.2f} s" for v in (WITHOUT, NAIVE, OURS)
        )
        yield f"trace + compile, {r['leaves']} leaves: " + ", ".join(times)
    r = result["training"]
    yield (
        f"full training step of a small ViT: {r['seconds'][WITHOUT] * 1e3:.1f} ms without, "
        f"A/A {spread(r['ratios'][AGAIN])}, ours {spread(r['ratios'][OURS])}"
        + (", void" if r["void"] else "")
    )


def chart(result: dict, file: pathlib.Path) -> None:
    """Draws a bar a variant for each row that is not void."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    rows = [r for r in result["rows"] if not r["void"]]
    figure, axes = plt.subplots(figsize=(9, 1 + 0.6 * max(len(rows), 1)), layout="constrained")
    for i, variant in enumerate((OPTAX, NAIVE, OURS)):
        widths = [r["ratios"][variant][0] for r in rows]
        axes.barh([y + 0.25 * i for y in range(len(rows))], widths, 0.25, label=variant)
    axes.set_yticks(
        [y + 0.25 for y in range(len(rows))],
        [f"{r['tree']}, {r['dtype']}, {r['optimizer']}" for r in rows],
    )
    axes.invert_yaxis()
    axes.axvline(1, color="black", linewidth=0.8)
    axes.set(xlabel="step time over the step without GC", title=result["device"])
    axes.legend()
    figure.savefig(file)


# ---- Markdown, of the files that the benchmarks write

Record = dict[str, str]


def markdown(header: list[str], rows: list[list[str]]) -> str:
    """A table whose columns but the first are numbers."""
    lines = [header, ["---", *["--:"] * (len(header) - 1)], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def compiled(records: list[Record]) -> str:
    """What steps move over the same steps without GC; their temporaries; meshes; training steps."""
    found: dict[tuple[str, ...], dict[str, Record]] = {}
    for r in records:
        case = (r["optimizer"], r["mesh"], r["step"], r["dtype"], r["chip"])
        found.setdefault(case, {})[r["variant"]] = r
    found = {case: of for case, of in found.items() if {WITHOUT, OURS} <= of.keys()}
    chips = list(dict.fromkeys(case[-1] for case in found))
    steps = {case: of for case, of in found.items() if not case[1] and NAIVE in of}
    tables = [moved(steps, chips, optimizer) for optimizer in dict.fromkeys(c[0] for c in steps)]
    worst = [
        [v, *(percent(max((wasted(of, v) for c, of in steps.items() if c[-1] == chip and v in of),
                        default=None)) for chip in chips)]
        for v in VARIANTS
    ]  # fmt: skip
    tables.append(markdown(["temporaries", *chips], worst))
    meshes = [
        [
            f"{chip}, {mesh}, {dtype}",
            *(r["collectives"] if (r := of.get(v)) else "" for v in (WITHOUT, *VARIANTS)),
            percent(int(of[OURS]["collective_bytes"]) / int(of[OURS]["gradients"])),
            percent(wasted(of, OURS)),
        ]
        for (_, mesh, _, dtype, chip), of in found.items()
        if mesh
    ]
    head = [f"collectives: {WITHOUT}", OURS, NAIVE, "optax", "bytes of ours", "temporaries of ours"]
    tables.append(markdown(["mesh", *head], meshes))
    training = [
        [
            f"{chip}, {named(step.removeprefix('training, '))}, {dtype}",
            *(f"{int(of[v]['peak']) / 2**30:.3f}" for v in (WITHOUT, OURS)),
            f"{(int(of[OURS]['moved']) - int(of[WITHOUT]['moved'])) / int(of[OURS]['shard']):.2f}",
        ]
        for (_, _, step, dtype, chip), of in found.items()
        if step.startswith("training")
    ]
    head = [f"peak GiB: {WITHOUT}", OURS, "bytes more, over the gradients'"]
    tables.append(markdown(["training step", *head], training))
    return "\n\n".join(tables)


def moved(found: dict[tuple[str, ...], dict[str, Record]], chips: list[str], optimizer: str) -> str:
    """Of each tree and dtype the floor, and for each chip ours (the formula, Optax's)."""
    rows: dict[tuple[str, str], dict[str, str]] = {}
    floors = {}
    for (its, _, step, dtype, chip), of in found.items():
        if its == optimizer:
            without = int(of[WITHOUT]["moved"])
            ours, *others = (f"{int(of[v]['moved']) / without:.3f}" for v in VARIANTS if v in of)
            rows.setdefault((step, dtype), {})[chip] = f"{ours} ({', '.join(others)})"
            kernels = trees.share(trees.TREES[step]()) * int(of[OURS]["shard"])
            floors[step, dtype] = f"{1 + kernels / without:.3f}"
    return markdown(
        [optimizer, "floor", *chips],
        [
            [f"{named(step)}, {dtype}", floors[step, dtype], *(of.get(chip, "") for chip in chips)]
            for (step, dtype), of in rows.items()
        ],
    )


def wasted(of: dict[str, Record], variant: str) -> float:
    """Temporaries beyond those of the step without GC, over a chip's bytes of gradients."""
    more = int(of[variant]["temporaries"]) - int(of[WITHOUT]["temporaries"])
    return more / int(of[variant]["shard"])


def percent(x: float | None) -> str:
    """A share in percent, and nothing of what was not compiled."""
    return "" if x is None else f"{100 * x:z.2f} %"


def overhead(records: list[Record]) -> str:
    """Ratios of times with their ranges; "read" is one more read, A/A the step over itself."""
    found: dict[tuple[str, str], dict[str, dict[str, Record]]] = {}
    for r in records:
        steps = found.setdefault((r["optimizer"], r["dtype"]), {})
        steps.setdefault(r["step"], {})[r["variant"]] = r
    columns = (READ, OURS, AGAIN, NAIVE, OPTAX)
    head = [f"ms {WITHOUT}", "floor", *columns]
    tables = []
    for (optimizer, dtype), steps in found.items():
        rows = []
        for step, of in steps.items():
            if AGAIN not in of:  # times to trace and to compile
                continue
            cells = [
                spread((float(r["ratio"]), float(r["least"]), float(r["greatest"])))
                if (r := of.get(v))
                else ""
                for v in columns
            ]
            void = " (void)" if of[AGAIN]["void"] == "True" else ""
            floor = f"{float(f):.2f}" if (f := of[WITHOUT]["floor"]) else ""
            milliseconds = f"{1e3 * float(of[WITHOUT]['seconds']):.0f}"
            rows.append([f"{named(step)}{void}", milliseconds, floor, *cells])
        if rows:
            tables.append(markdown([f"{optimizer}, {dtype}", *head], rows))
    return "\n\n".join(tables)


def tracing(records: list[Record]) -> str:
    """Seconds to trace, and the ratio with its range."""
    rows = [
        [
            f"{r['model']}, {r['arrays']} arrays",
            r["make_jaxpr"],
            r["axes_from_trace"],
            f"{r['ratio']} [{r['least']}, {r['greatest']}]",
        ]
        for r in records
    ]
    return markdown(["model", "make_jaxpr (s)", "axes_from_trace (s)", "ratio"], rows)


def named(step: str) -> str:
    """The name of a step for who has not read the one before."""
    return step.replace("the same, stacked", "24 layers, stacked")


TABLES: dict[str, Callable[[list[Record]], str]] = {
    "compiled": compiled,
    "overhead": overhead,
    "tracing": tracing,
}


if __name__ == "__main__":
    path = pathlib.Path(sys.argv[1])
    with path.open() as file:
        print(TABLES[path.stem](list(csv.DictReader(file))))
