"""What the documentation shows is what the code does: docstrings, README, the public names."""

import contextlib
import csv
import doctest
import importlib.util
import inspect
import io
import json
import os
import pkgutil
import posixpath
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import keras
import pytest
import yaml
from sphinx.util.inventory import InventoryFile

import optax_gc

ROOT = Path(__file__).parent.parent
_spec = importlib.util.spec_from_file_location("address", ROOT / "docs" / "address.py")
address = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(address)
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


PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
PAGES += sorted((ROOT / "docs" / "guides").glob("*.md"))
FENCE = re.compile(r"```python\n(.*?)```(?:\s*```text\n(.*?)```)?", re.DOTALL)
SNIPPETS = [
    pytest.param(*fence.groups(""), id=f"{page.stem}-{i}")
    for page in PAGES
    for i, fence in enumerate(FENCE.finditer(page.read_text(encoding="utf-8")))
]


@pytest.mark.parametrize(("code", "expected"), SNIPPETS)
def test_a_snippet_runs_by_itself_and_prints_what_is_below_it(code, expected, standard_promotion):
    keras.utils.clear_session()  # which counts the names of layers
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), pytest.MonkeyPatch.context() as patch:
        patch.setattr("os.environ", dict(os.environ))  # a snippet may set some, of itself alone
        exec(compile(code, "a snippet", "exec"), {"__name__": "__main__"})
    assert printed.getvalue().rstrip() == expected.rstrip()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_all_python_in_the_guides_is_in_fences_that_are_run(page):
    languages = set(re.findall(r"^```(\S+)", page.read_text(encoding="utf-8"), re.M))
    assert languages <= {
        *("python", "text", "sh", "diff"),
        *("{toctree}", "{include}", "{figure}", "{image}", "{eval-rst}"),
    }


def test_the_readme_fits_on_a_screen_or_two():
    prose = re.sub(r"```.*?```", "", (ROOT / "README.md").read_text(encoding="utf-8"), flags=re.S)
    words = " ".join(line for line in prose.splitlines() if not line.startswith("|")).split()
    assert len(words) <= 900


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_and_pictures_lead_somewhere(page):
    text = page.read_text(encoding="utf-8")
    targets = re.findall(
        r"\]\((?!https?:|#)([^)#\s]+)", re.sub(r"```py.*?```", "", text, flags=re.S)
    )
    targets += re.findall(r"^```\{(?:image|figure|include)\} (\S+)", text, re.M)
    assert [target for target in targets if not (page.parent / target).exists()] == []


@pytest.mark.parametrize("file", sorted((ROOT / "benchmarks").glob("*.csv")), ids=lambda f: f.stem)
def test_the_guide_shows_the_tables_of_what_was_measured(file, monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    with open(file, encoding="utf-8", newline="") as lines:
        tables = importlib.import_module("tables").TABLES[file.stem](list(csv.DictReader(lines)))
    page = (ROOT / "docs" / "guides" / "costs.md").read_text(encoding="utf-8")
    assert [table for table in tables.split("\n\n") if table not in page] == []


@pytest.fixture(scope="module")
def api(tmp_path_factory):
    """The folder of the built API reference."""
    folder = tmp_path_factory.mktemp("api")
    only = {"include_patterns": "api.md", "root_doc": "api"}
    only["extensions"] = "myst_nb,sphinx.ext.autodoc,sphinx.ext.napoleon"  # none that fetches
    flags = [word for name, value in only.items() for word in ("-D", f"{name}={value}")]
    build = [sys.executable, "-m", "sphinx", "-q", *flags, ROOT / "docs", folder]
    subprocess.run(build, check=True)
    return folder


def test_the_signatures_in_the_built_api_name_public_types(api):
    text = re.sub(r"<[^>]+>", "", (api / "api.html").read_text(encoding="utf-8"))
    assert "axes: AxesLike" in text
    assert re.findall(r"\b_[A-Z]\w+|\b\w+\._\w+", text) == []


def test_the_built_api_documents_every_public_name(api):
    """What ``from .module import name as name`` makes public, the diagnostics' too."""
    with open(api / "objects.inv", "rb") as file:
        documented = InventoryFile.load(file, "", posixpath.join)
    names = {*documented["py:function"], *documented["py:class"], *documented["py:type"]}
    public = {
        f"{module.__name__}.{name}"
        for module in (optax_gc, optax_gc.diagnostics)
        for name, value in vars(module).items()
        if not name.startswith("_") and not inspect.ismodule(value)
    }
    assert public and public - names == set()


def test_the_workflow_runs_the_sessions_of_nox_on_every_python():
    workflow = yaml.safe_load((ROOT / ".github/workflows/tests.yml").read_text(encoding="utf-8"))
    runs = workflow["jobs"]["tests"]["strategy"]["matrix"]["include"]
    listed = subprocess.run(
        [sys.executable, "-m", "nox", "--list", "--json", "-f", ROOT / "noxfile.py"],
        capture_output=True,
        text=True,
        check=True,
    )
    sessions = {each["session"]: each["python"] for each in json.loads(listed.stdout)}
    assert [run for run in runs if sessions.get(run["session"]) != run["python"]] == []
    assert {run["python"] for run in runs} == set(sessions.values())


def test_importing_the_package_brings_in_nothing_beyond_jax_and_optax():
    code = (
        "import sys, jax, jax.numpy, optax; before = set(sys.modules); import optax_gc;"
        "new = {m.split('.')[0] for m in set(sys.modules) - before};"
        "print(*new - set(sys.stdlib_module_names))"
    )
    new = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    # jax itself loads some of its dependencies late.
    assert set(new.stdout.split()) <= {"optax_gc", "jax"}


def test_importing_the_package_leaves_the_rules_of_the_trace_for_the_first_trace():
    code = "import sys, optax_gc; print(*(m for m in sys.modules if 'rules' in m or 'walk' in m))"
    loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert [name for name in loaded.stdout.split() if name.startswith("optax_gc")] == []


def test_every_link_into_the_repository_has_the_address_that_pyproject_states():
    slug = address.current(ROOT)
    owner, repository = slug.split("/")
    name = rf"(?:{re.escape(repository)}|optax[_-]gc)\b"
    found = {
        (path.name, *match.groups())
        for path in address.files(ROOT)
        for match in re.finditer(
            rf"(?:github\.com|/github|githubusercontent\.com)/([\w.-]+)/({name})"
            rf"|//([\w.-]+)\.github\.io/({name})",
            path.read_text(encoding="utf-8"),
        )
    }
    assert {path for path, *_ in found} >= {"pyproject.toml", "README.md", "CITATION.cff"}
    assert {tuple(filter(None, parts)) for _, *parts in found} == {(owner, repository)}


def test_one_command_gives_every_link_another_address(tmp_path):
    old = address.current(ROOT)
    for path in address.files(ROOT):
        copy = tmp_path / path.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(path.read_bytes())
    before = {path: path.read_text(encoding="utf-8") for path in address.files(tmp_path)}
    address.move(tmp_path, "some-one/else.where")
    assert address.current(tmp_path) == "some-one/else.where"
    assert [p for p in before if old in p.read_text(encoding="utf-8")] == []
    address.move(tmp_path, old)
    assert {path: path.read_text(encoding="utf-8") for path in before} == before


def test_the_readme_that_pypi_shows_has_whole_addresses():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["hatch"]
    shown = (ROOT / "README.md").read_text(encoding="utf-8")
    for rule in settings["metadata"]["hooks"]["fancy-pypi-readme"]["substitutions"]:
        shown = re.sub(rule["pattern"], rule["replacement"], shown)
    base = f"https://github.com/{address.current(ROOT)}"
    assert f"]({base}/raw/main/images/digits.png)" in shown
    assert f"]({base}/blob/main/docs/study.md)" in shown
    assert re.findall(r"\]\((?!https://)[^)]*", shown) == []
