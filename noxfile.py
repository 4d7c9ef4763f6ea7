"""Tests on every supported Python, and on the floor and the newest of JAX, Optax and Flax.

nox -l                      # what there is
nox -s "tests(newest)"      # everything, on the default Python
nox -s "tests(floor)"       # the library without the compiler's gates, on the oldest versions
nox -s pythons-3.13         # the library on another Python
"""

import nox

nox.options.default_venv_backend = "uv|virtualenv"
nox.options.reuse_existing_virtualenvs = True
nox.options.sessions = ["tests", "pythons"]

PYTHONS = ["3.11", "3.12", "3.13"]
FLOOR = ["jax==0.7.2", "jaxlib==0.7.2", "optax==0.2.6", "flax==0.12.0"]
NEWEST = ["jax", "jaxlib", "optax", "flax"]
# What the library says, without documents, notebooks and what is measured on one XLA only.
LIBRARY = [
    "tests/test_axes.py",
    "tests/test_centralize.py",
    "tests/test_checkpoints.py",
    "tests/test_containers.py",
    "tests/test_export.py",
    "tests/test_meshes.py",
    "tests/test_weights.py",
]


@nox.session(python=PYTHONS[0])
@nox.parametrize("versions", [nox.param(FLOOR, id="floor"), nox.param(NEWEST, id="newest")])
def tests(session: nox.Session, versions: list[str]) -> None:
    """Everything on the newest versions, the library on the floor; or the paths given."""
    session.install("--upgrade", *versions, "-e", ".[test]")
    default = LIBRARY if versions is FLOOR else []
    session.run("python", "-m", "pytest", *(session.posargs or default))


@nox.session(python=PYTHONS)
def pythons(session: nox.Session) -> None:
    """The library on the newest versions that each Python has."""
    session.install("--upgrade", *NEWEST, "-e", ".[test]")
    session.run("python", "-m", "pytest", *(session.posargs or LIBRARY))


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
