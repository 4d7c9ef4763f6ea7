"""The documentation site: guides, API reference, the study and the notebooks as committed.

Build it from the repository root: sphinx-build -W -b html docs site
"""

import shutil
import sys
from pathlib import Path

from sphinx.util.typing import stringify_annotation

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))  # the package of this checkout
from optax_gc._axes import AxesLike  # noqa: E402

# Sphinx reads one folder; the notebooks lie where a reader of the repository finds them.
shutil.rmtree(HERE / "notebooks", ignore_errors=True)
shutil.copytree(
    HERE.parent / "notebooks",
    HERE / "notebooks",
    ignore=shutil.ignore_patterns(".*"),
)

project = "optax_gc"
author = "The optax_gc authors"
extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.intersphinx",
    "sphinx.ext.mathjax",
    "sphinx.ext.napoleon",
]
exclude_patterns = ["jupyter_execute", "**/.*"]
nb_merge_streams = True
nb_execution_mode = "off"  # the tests execute the notebooks; the site shows what was committed
myst_enable_extensions = ["dollarmath", "amsmath"]
myst_heading_anchors = 3
# A site is tried first; without a network, the names that are linked from here are in a file.
intersphinx_mapping = {
    name: (url, (None, f"inventories/{name}.inv"))
    for name, url in {
        "python": "https://docs.python.org/3/",
        "jax": "https://docs.jax.dev/en/latest/",
        "optax": "https://optax.readthedocs.io/en/latest/",
        "flax": "https://flax.readthedocs.io/en/latest/",
    }.items()
}
intersphinx_timeout = 10
autodoc_typehints = "signature"
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 80
napoleon_use_rtype = False
default_role = "py:obj"  # a link where there is something to link to, code elsewhere
html_theme = "furo"
html_title = "optax_gc"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_show_copyright = False
pygments_style = "friendly"  # shows what a diff adds
pygments_dark_style = "monokai"

# Where autodoc finds what is known by a shorter name.
PUBLIC = {
    stringify_annotation(AxesLike, "smart"): "~optax_gc.AxesLike",
    "~jax.jaxlib._jax.Array": "~jax.Array",
    "~optax._src.base.": "~optax.",
    "~optax_gc._weights.Params": "~optax.Params",
    "~optax_gc.diagnostics._trees.": "~optax_gc.diagnostics.",
    "~optax_gc.diagnostics._sharpness.": "~optax_gc.diagnostics.",
}


def public(text):
    """Replaces the places where types are defined by the names under which they are documented."""
    for defined, known in PUBLIC.items():
        text = text and text.replace(defined, known)
    return text


def beside(app, name, source):
    """Points links to the notebooks at the copies of them beside the pages."""
    source[0] = source[0].replace("../notebooks/", "notebooks/")


def whole(app, what, name, obj, options, lines):
    """Keeps napoleon from taking what is before a colon under Returns for a type."""
    for i, line in enumerate(lines):
        if i and lines[i - 1].strip() == "Returns:":
            lines[i] = line.replace(line.strip(), f": {line.strip()}", 1)


def setup(app):
    """Registers what conf.py adds to Sphinx."""
    app.connect("source-read", beside)
    app.connect("autodoc-process-docstring", whole, priority=400)  # before napoleon, at 500
    app.connect("autodoc-process-signature", lambda *args: tuple(map(public, args[-2:])))
