"""What the documentation shows is what the code does: docstrings, README, the public names."""

import contextlib
import doctest
import importlib
import inspect
import io
import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import pytest

import optax_gc

ROOT = Path(__file__).parent.parent
MODULES = ["optax_gc", *(m.name for m in pkgutil.walk_packages(optax_gc.__path__, "optax_gc."))]
FUNCTIONS = [
    function
    for module in (optax_gc, optax_gc.diagnostics)
    for name, function in vars(module).items()
    if inspect.isfunction(function)
]


@pytest.mark.parametrize("module", MODULES)
def test_the_examples_in_docstrings_print_what_they_say(module, standard_promotion):
    results = doctest.testmod(
        importlib.import_module(module), optionflags=doctest.NORMALIZE_WHITESPACE
    )
    assert results.failed == 0


@pytest.mark.parametrize("function", FUNCTIONS, ids=lambda function: function.__name__)
def test_every_public_function_documents_its_arguments_and_shows_an_example(function):
    doc = function.__doc__
    assert [part for part in ("Args:", "Returns:", "Raises:", ">>> ") if part not in doc] == []


def test_the_snippets_of_the_readme_print_what_it_says(standard_promotion, capsys):
    """Runs the Python fences in order; a text fence right after one is what it prints."""
    readme = (ROOT / "README.md").read_text()
    fences = re.findall(r"```python\n(.*?)```(?:\s*```text\n(.*?)```)?", readme, re.DOTALL)
    assert fences
    namespace = {}
    for code, expected in fences:
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile(code, "README.md", "exec"), namespace)
        assert printed.getvalue().rstrip() == expected.rstrip(), code


GUIDES = sorted((ROOT / "docs" / "guides").glob("*.md"))
SNIPPETS = [
    pytest.param(*fence, id=f"{page.stem}-{i}")
    for page in GUIDES
    for i, fence in enumerate(
        re.findall(r"```python\n(.*?)```(?:\s*```text\n(.*?)```)?", page.read_text(), re.DOTALL)
    )
]


@pytest.mark.parametrize(("code", "expected"), SNIPPETS)
def test_a_snippet_of_a_guide_runs_by_itself_and_prints_what_is_below_it(
    code, expected, standard_promotion
):
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(code, "a snippet", "exec"), {"__name__": "__main__"})
    assert printed.getvalue().rstrip() == expected.rstrip()


def test_the_links_and_pictures_of_the_readme_exist():
    readme = (ROOT / "README.md").read_text()
    targets = re.findall(r"\]\((?!https?:|#)([^)#]+)", readme)
    assert [target for target in targets if not (ROOT / target).exists()] == []


def test_importing_the_package_brings_in_nothing_beyond_jax_and_optax():
    code = (
        "import sys, jax, jax.numpy, optax; before = set(sys.modules); import optax_gc;"
        "new = {m.split('.')[0] for m in set(sys.modules) - before};"
        "print(*new - set(sys.stdlib_module_names))"
    )
    new = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    # jax itself loads some of its dependencies late.
    assert set(new.stdout.split()) <= {"optax_gc", "jax"}
