"""Every notebook runs from top to bottom in a small mode, and is committed with its outputs."""

import re
import runpy
import subprocess
import sys
import tomllib
from pathlib import Path

import nbformat
import pytest
from jupyter_client.kernelspec import KernelSpec
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
URLS = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["urls"]
ADDRESS = URLS["Repository"].removeprefix("https://github.com/")
BADGE = (
    "[![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)]"
    f"(https://colab.research.google.com/github/{ADDRESS}/blob/main/notebooks/{{}})"
)
MACHINE_PATHS = re.compile(
    r"/(?:home|root|tmp|work|Users|content|opt|usr|var|mnt)/\w|[A-Z]:\\\w|site-packages"
)

every_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


class ThisPython(AsyncKernelManager):
    """Starts kernels with the interpreter that runs the tests, whatever kernels are installed."""

    @property
    def kernel_spec(self):
        command = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
        return KernelSpec(argv=command, display_name="this Python", language="python")


def texts(notebook):
    """What a reader sees: the sources, and the outputs but for their pictures."""
    for cell in notebook.cells:
        yield cell.source
        for output in cell.get("outputs", []):
            yield output.get("text", "")
            yield from (v for k, v in output.get("data", {}).items() if k.startswith("text/"))


def code(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def test_there_are_notebooks_and_an_index_that_names_each():
    index = (FOLDER / "README.md").read_text()
    assert NOTEBOOKS
    assert [p.name for p in NOTEBOOKS if BADGE.format(p.name) not in index] == []
    linked = re.findall(r"\]\((\w+\.ipynb)\)", index)
    assert sorted(set(linked)) == [p.name for p in NOTEBOOKS]


@every_notebook
def test_a_notebook_runs_from_top_to_bottom(path, tmp_path, monkeypatch):
    settings = {
        "OPTAX_GC_SMALL": "1",
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": "",
        # Small runs take longer to compile than to compute.
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
        # No files outside the temporary folder.
        "IPYTHONDIR": str(tmp_path / "ipython"),
    }
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    notebook = nbformat.read(path, as_version=4)
    folder = tmp_path / "run"
    folder.mkdir()
    client = NotebookClient(
        notebook,
        timeout=300,
        kernel_manager_class=ThisPython,
        resources={"metadata": {"path": str(folder)}},
    )
    client.execute()
    # Not all that is written to stderr: on a busy machine XLA reports there that it is slow.
    written = [o.text for c in code(notebook) for o in c.outputs if o.get("name") == "stderr"]
    assert [text for text in written if re.search(r"\w*Warning: ", text)] == []


@every_notebook
def test_a_notebook_is_committed_with_outputs_that_state_device_versions_and_time(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    *_, last = printed = ["".join(o.get("text", "") for o in c.outputs) for c in code(notebook)]
    header = "".join(printed[:2]).strip()
    for library in ("jax", "flax", "optax"):
        assert re.search(rf"\b{library} \d+\.\d+", header), header
    device = re.fullmatch(r"\d+ s on (.+)", last.strip())
    assert device and header.startswith(device[1]), (header, last)
    counts = [cell.execution_count for cell in code(notebook)]
    assert counts == list(range(1, len(counts) + 1)), "run all cells in order before committing"
    outputs = [output for cell in code(notebook) for output in cell.outputs]
    assert [o for o in outputs if o.output_type == "error" or o.get("name") == "stderr"] == []
    assert any("image/png" in output.get("data", {}) for output in outputs)
    assert path.stat().st_size < 600_000


@every_notebook
def test_a_notebook_opens_and_installs_on_colab(path):
    notebook = nbformat.read(path, as_version=4)
    title, install, header = notebook.cells[:3]
    assert title.source.startswith("# ") and BADGE.format(path.name) in title.source
    assert f'"git+https://github.com/{ADDRESS}"' in install.source
    # Colab comes with the jaxlib for its accelerator.
    assert not re.search(r"jax\[|jaxlib|jax==|--upgrade|-U\b", install.source)
    assert 'os.environ.get("OPTAX_GC_SMALL")' in install.source + header.source


@every_notebook
@pytest.mark.parametrize("in_a_checkout", [True, False])
def test_the_install_cell_prefers_the_checkout_it_lies_in(
    path, in_a_checkout, tmp_path, monkeypatch
):
    (tmp_path / "notebooks").mkdir()
    if in_a_checkout:
        (tmp_path / "optax_gc").mkdir()
    cell = tmp_path / "cell.py"
    cell.write_text(nbformat.read(path, as_version=4).cells[1].source)
    commands = []
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setattr(subprocess, "run", lambda command, **_: commands.append(command))
    monkeypatch.chdir(tmp_path / "notebooks")
    runpy.run_path(str(cell))
    source = str(tmp_path.resolve()) if in_a_checkout else f"git+https://github.com/{ADDRESS}"
    assert commands[0][:4] == [sys.executable, "-m", "pip", "install"] and source in commands[0]


@every_notebook
def test_a_notebook_names_no_path_of_the_machine_it_ran_on(path):
    found = [MACHINE_PATHS.search(text) for text in texts(nbformat.read(path, as_version=4))]
    assert [match.group() for match in found if match] == []


@every_notebook
def test_the_links_between_notebooks_lead_somewhere(path):
    notebook = nbformat.read(path, as_version=4)
    prose = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    targets = re.findall(r"\]\((?!https?:|#)([^)#]+)\)", prose)
    assert [target for target in targets if not (FOLDER / target).exists()] == []
