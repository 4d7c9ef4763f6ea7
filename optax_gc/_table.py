"""Tables that are aligned text at a prompt, and coloured tables in a notebook."""

import html
from collections.abc import Iterable, Sequence

# Tints that can be read on white and on black, by what the column "axes" says of a row.
_TINTS = {"?": "#d0202040", "()": "#80808018"}
_AVERAGED = "#0072b228"


class Table(str):
    """Text that shows itself as it is at a prompt; a notebook shows its rows as an HTML table.

    Rows with axes are tinted blue, those that are left alone grey, those that are refused red.
    """

    rows: tuple[tuple[str, ...], ...] = ()
    below: tuple[str, ...] = ()
    __repr__ = str.__str__

    def _repr_html_(self) -> str:
        def cells(row: Sequence[str], tag: str) -> str:
            style = "text-align: left; white-space: pre-wrap; font-family: monospace"
            return "".join(f'<{tag} style="{style}">{html.escape(c)}</{tag}>' for c in row)

        head, *body = self.rows
        axes = head.index("axes")
        tinted = (
            f'<tr style="background: {_TINTS.get(row[axes], _AVERAGED)}">{cells(row, "td")}</tr>'
            for row in body
        )
        below = "".join(f"<p>{html.escape(line)}</p>" for line in self.below)
        return (
            '<div style="overflow-x: auto"><table style="border-collapse: collapse">'
            f"<thead><tr>{cells(head, 'th')}</tr></thead><tbody>{''.join(tinted)}</tbody>"
            f"</table>{below}</div>"
        )


def table(rows: Iterable[Sequence[str]], *below: str) -> Table:
    """Aligns rows of text, a head with a column "axes" first, two spaces apart."""
    rows = tuple(tuple(row) for row in rows)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    aligned = ("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)
    made = Table("\n".join([*aligned, *below]))
    made.rows, made.below = rows, below
    return made
