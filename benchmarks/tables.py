"""The results of overhead.py as tables and as a bar chart."""

import pathlib
from collections.abc import Iterator

WITHOUT, AGAIN, OPTAX, NAIVE, OURS = "without", "A/A", "optax", "naive", "ours"


def spread(ratio: tuple[float, float, float]) -> str:
    """A median with its range."""
    return "{:.2f} [{:.2f}, {:.2f}]".format(*ratio)


def lines(result: dict) -> Iterator[str]:
    """The tables, as people read them."""
    yield "{device}, jax {jax}, load {load}".format(**result)
    layout = "{:24} {:9} {:14} {:>9}" + 4 * " {:>18}" + " {:>6} {:>12} {:>12}  {}"
    yield layout.format(
        "tree", "dtype", "optimizer", WITHOUT, AGAIN, OPTAX, NAIVE, OURS, "floor", "temporaries",
        "accessed", "",
    )  # fmt: skip
    for r in result["rows"]:
        yield layout.format(
            r["tree"], r["dtype"], r["optimizer"], f"{r['seconds'][WITHOUT] * 1e3:.2f} ms",
            *(spread(r["ratios"][v]) for v in (AGAIN, OPTAX, NAIVE, OURS)), f"{r['floor']:.2f}",
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
