"""What `summary` and `explain` answer is text at a prompt and a table in a notebook."""

import re
from html.parser import HTMLParser

import jax.numpy as jnp
import pytest

from optax_gc import explain, summary

RED, GREY, BLUE = "#d02020", "#808080", "#0072b2"


def model(params, x):
    hidden = x @ params["a & <b>"] + params["bias"][None]
    return hidden @ params["both ways"] @ params["both ways"].T


PARAMS = {
    "a & <b>": jnp.ones((3, 5)),
    "bias": jnp.ones(5),
    "both ways": jnp.ones((5, 4)),
}


class Rows(HTMLParser):
    """Collects the cells of each row, and its colour; refuses tags that do not close."""

    def __init__(self, text):
        super().__init__()
        self.rows, self.open = [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.open.append(tag)
        if tag == "tr":
            colour = re.search(r"#\w{6}", dict(attrs).get("style", ""))
            self.rows.append((colour and colour.group(), []))
        elif tag in ("td", "th"):
            self.rows[-1][1].append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open[-1] in ("td", "th"):
            self.rows[-1][1][-1] += data


@pytest.fixture
def shown():
    return explain(model, PARAMS, jnp.ones((2, 3)))


def test_a_notebook_shows_the_cells_that_the_text_has(shown):
    _, *lines = shown.splitlines()
    _, *rows = Rows(shown._repr_html_()).rows
    assert [" ".join(filter(None, cells)) for _, cells in rows] == [
        re.sub(" {2,}", " ", line) for line in lines
    ]


def test_a_notebook_tints_rows_by_what_becomes_of_them(shown):
    _, *rows = Rows(shown._repr_html_()).rows
    assert {cells[0]: colour for colour, cells in rows} == {
        "a & <b>": BLUE,
        "bias": GREY,
        "both ways": RED,
    }


def test_the_line_below_a_summary_is_below_its_table_too():
    text = summary(PARAMS)
    *_, last = text.splitlines()
    assert f"</table><p>{last}</p>" in text._repr_html_()


def test_a_prompt_shows_a_table_as_aligned_text(shown):
    assert repr(shown) == str(shown) and shown.startswith("parameter  shape")
