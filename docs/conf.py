"""The documentation site: README, API reference and the notebooks as committed.

Build it from the repository root: sphinx-build -W -b html -c docs . site
"""

project = "optax_gc"
author = "The optax_gc authors"
extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.intersphinx",
    "sphinx.ext.mathjax",
    "sphinx.ext.napoleon",
]
# The sources are where a reader of the repository finds them.
root_doc = "docs/index"
include_patterns = ["CHANGELOG.md", "docs/*.md", "notebooks/*"]
nb_execution_mode = "off"  # the tests execute the notebooks; the site shows what was committed
myst_enable_extensions = ["dollarmath", "amsmath"]
myst_heading_anchors = 3
autodoc_typehints = "signature"
autodoc_member_order = "bysource"
autodoc_type_aliases = {"AxesLike": "AxesLike", "AxesTree": "AxesTree"}
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 80
napoleon_use_rtype = False
default_role = "code"
html_theme = "furo"
html_title = "optax_gc"
