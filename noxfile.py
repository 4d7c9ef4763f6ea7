"""Tests on every supported Python, and on the floor and the newest of JAX, Optax and Flax.

nox -l                       # what there is
nox -s "tests(floor)"        # all of it on the oldest versions, but what is named below
nox -s newest                # all of it on the newest versions and Python, but the notebooks
nox -s pythons-3.12          # the library on another Python
nox -s mutants -- optax_gc/_axes.py --every 3    # changes of a file that no test notices
"""

import nox

nox.options.default_venv_backend = "uv|virtualenv"
nox.options.reuse_existing_virtualenvs = True
nox.options.sessions = ["tests", "newest", "pythons"]

PYTHONS = ["3.11", "3.12", "3.13"]
FLOOR = ["jax==0.7.2", "jaxlib==0.7.2", "optax==0.2.6", "flax==0.12.0"]
NEWEST = ["jax", "jaxlib", "optax", "flax"]
# Run once, on README's Python: they are measurements of learning, long, and say nothing of JAX.
LONG = ["tests/test_notebooks.py", "tests/test_examples.py", "tests/test_language_model.py"]
# Bounds on what one compiler makes of the library, measured with the newest XLA.
COMPILED = ["tests/test_overhead.py"]
# Its examples use what newer versions of Optax have.
EXAMPLES = ["tests/test_documentation.py"]
# What the library says without its trace.
LIBRARY = [
    "tests/test_axes.py",
    "tests/test_centralize.py",
    "tests/test_checkpoints.py",
    "tests/test_containers.py",
    "tests/test_export.py",
    "tests/test_jaxprs.py",
    "tests/test_meshes.py",
    "tests/test_weights.py",
]


def _run(session: nox.Session, versions: list[str], *selection: str) -> None:
    session.install("--upgrade", *versions, "-e", ".[test]")
    session.run("python", "-m", "pytest", *(session.posargs or selection))


def _without(paths: list[str]) -> list[str]:
    return [f"--ignore={path}" for path in paths]


@nox.session(python=PYTHONS[0])
@nox.parametrize("versions", [nox.param(FLOOR, id="floor"), nox.param(NEWEST, id="newest")])
def tests(session: nox.Session, versions: list[str]) -> None:
    """Everything on the newest versions; on the floor, what is neither long nor of one compiler."""
    left_out = LONG + COMPILED + EXAMPLES if versions is FLOOR else []
    _run(session, versions, *_without(left_out))


@nox.session(python=PYTHONS[-1])
def newest(session: nox.Session) -> None:
    """Everything but what is long, on the newest Python and the newest JAX, which needs it."""
    _run(session, NEWEST, *_without(LONG))


@nox.session(python=PYTHONS)
def pythons(session: nox.Session) -> None:
    """The library on the newest versions that each Python has."""
    _run(session, NEWEST, *LIBRARY)


@nox.session(python=PYTHONS[0])
def mutants(session: nox.Session) -> None:
    """Changes the files given, one place at a time, and lists the changes that no test notices."""
    session.install("--upgrade", *NEWEST, "-e", ".[test]")
    session.run("python", "tests/mutants.py", *session.posargs)


@nox.session(python=PYTHONS[0])
def tpu(session: nox.Session) -> None:
    """Programs for TPUs, compiled without one; 1.5 GB to install."""
    session.install("jax[tpu]", "-e", ".[notebooks]", "pytest", "pytest-xdist")
    session.run("python", "-m", "pytest", *(session.posargs or ["tests/test_compiled.py"]))


@nox.session(python=PYTHONS[0])
def gpu(session: nox.Session) -> None:
    """Programs for NVIDIA's GPUs, compiled without one or its driver; 4 GB to install."""
    session.install("jax[cuda12]", "-e", ".[notebooks]", "pytest", "pytest-xdist")
    session.run("python", "-m", "pytest", *(session.posargs or ["tests/test_compiled.py"]))
