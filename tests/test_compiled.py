"""What XLA makes of centralize for TPUs and GPUs that are not here, read from its programs.

`nox -s tpu` and `nox -s gpu` bring the compilers; without them, these tests are skipped.
"""

import functools
import itertools
import sys
from pathlib import Path

import jax
import nbformat
import numpy as np
import pytest

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))

import compiled
import targets
import trees
from tables import NAIVE, OURS, WITHOUT

# A chip of each kind; the file of the benchmark has more.
CHIPS = [chip for chip in ("v5e", "H100") if chip in targets.installed()]
MISSING = "no compiler for a TPU or a GPU is installed: nox -s tpu or nox -s gpu brings one"
NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))
# One wide kernel; and kernels of every kind, with a layer axis, in few arrays.
STEPS = ("4096 × 16384", compiled.STACKED)
NOTHING = 0.001  # of the gradients: a mean for each output, and what a GPU's blocks exchange


def cases(*values):
    """Parameters of a fixture; skipped, with how to run them, if no compiler for them is here."""
    found = [pytest.param(case, id=", ".join(case)) for case in itertools.product(*values)]
    return found or [pytest.param((), marks=pytest.mark.skip(reason=MISSING))]


def rows(chip, mesh, step, dtype, *variants):
    """What `benchmarks/compiled.py` writes, variant by variant."""
    # Optax's Adam does not run under the strict promotion of the other tests.
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        return [compiled.row(compiled.Job(chip, mesh, step, dtype, "adam", v)) for v in variants]


# For a module: pytest keeps the tests of one case together, and its programs are compiled once.
@pytest.fixture(scope="module", params=cases(CHIPS, STEPS, compiled.DTYPES))
def step(request):
    """The bytes of a tree's kernels, and the rows of a step with ours, the formula, and without."""
    chip, step, dtype = request.param
    ours, naive, without = rows(chip, "", step, dtype, OURS, NAIVE, WITHOUT)
    return trees.share(trees.TREES[step]()) * ours["gradients"], ours, naive, without


@pytest.fixture(scope="module", params=cases(CHIPS, compiled.MESHES, compiled.DTYPES))
def sharded(request):
    """The rows of a step of shards with ours, and without."""
    chip, mesh, dtype = request.param
    return rows(chip, mesh, compiled.STACKED, dtype, OURS, WITHOUT)


def test_a_step_moves_no_more_than_with_the_formula_as_one_would_write_it(step):
    _, ours, naive, _ = step
    assert ours["moved"] <= naive["moved"]


def test_a_step_moves_little_more_than_one_more_read_of_each_gradient(step):
    kernels, ours, _, without = step
    assert ours["moved"] <= 1.01 * (without["moved"] + kernels)


def test_a_step_needs_no_temporaries_for_it(step):
    _, ours, _, without = step
    assert ours["temporaries"] - without["temporaries"] <= NOTHING * ours["gradients"]
    assert ours["peak"] - without["peak"] <= NOTHING * ours["gradients"]


def test_shards_of_a_fan_in_exchange_one_small_all_reduce(sharded):
    ours, without = sharded
    assert without["collectives"] == 0
    assert ours["collectives"] == 1
    assert ours["collective_bytes"] <= 0.002 * ours["gradients"]
    # Room for what is sent and what comes back.
    assert ours["temporaries"] - without["temporaries"] <= 3 * ours["collective_bytes"]


def test_bytes_moved_are_those_of_the_entry_computation_without_its_parameters():
    program = """
%inner (p: f32[4,8]) -> f32[8] {
  ROOT %sum = f32[8]{0} reduce(%p), dimensions={0}
}
ENTRY %main (g: bf16[4,8], w: f32[4,8]) -> (f32[8], f32[4,8]) {
  %g = bf16[4,8]{1,0:T(8,128)(2,1)} parameter(0)
  %w = f32[4,8]{1,0} parameter(1)
  %b = f32[32]{0} bitcast(%w)
  %s = (f32[8]{0}, pred[]) fusion(%g, /*index=1*/%w), kind=kLoop, calls=%inner
  %t = f32[8]{0} get-tuple-element(%s), index=0
  ROOT %r = (f32[8]{0}, f32[4,8]{1,0}) tuple(%t, %w)
}
"""
    assert targets.moved(program) == (8 * 4 + 1) + 32 * 2 + 32 * 4


def test_bytes_moved_on_the_chip_are_not_counted():
    program = """
ENTRY %main (g: f32[64,8]) -> f32[64,8] {
  %g = f32[64,8]{1,0:T(8,128)} parameter(0)
  %a = (f32[64,8]{1,0:T(8,128)S(1)}, f32[64,8]{1,0:T(8,128)}, u32[]{:S(2)}) copy-start(%g)
  %b = f32[64,8]{1,0:T(8,128)S(1)} copy-done(%a)
  %c = ((f32[64,8]{1,0:T(8,128)}), f32[16,8]{1,0:T(8,128)S(1)}, s32[]{:S(2)}) slice-start(%g)
  %d = f32[16,8]{1,0:T(8,128)S(1)} slice-done(%c)
  %e = f32[64,8]{1,0:T(8,128)S(1)} fusion(%b, %d), kind=kLoop, calls=%fused
  %f = (f32[64,8]{1,0:T(8,128)}, f32[64,8]{1,0:T(8,128)S(1)}, u32[]{:S(2)}) copy-start(%e)
  ROOT %h = f32[64,8]{1,0:T(8,128)} copy-done(%f)
}
"""
    read, part, written = 64 * 8 * 4, 16 * 8 * 4, 64 * 8 * 4
    assert targets.moved(program) == read + part + written


def test_collectives_are_counted_once_with_their_bytes():
    program = """
  %a = f32[2,8]{1,0} all-reduce(%x), channel_id=1
  %b = bf16[64]{0} all-gather-start(%y), dimensions={0}
  %c = bf16[64]{0} all-gather-done(%b)
  %d = (f32[8]{0}, f32[4]{0}) all-reduce(%x, %z), to_apply=%sum
"""
    assert targets.collectives(program) == [64, 128, 48]


class CompilesElsewhere:
    """Stands for `jax.jit`, and compiles what is called for another target too."""

    def __init__(self, target):
        self.jit, self.target, self.seen = jax.jit, target, set()

    def __call__(self, fun=None, **options):
        if fun is None:
            return functools.partial(self, **options)
        jitted = self.jit(fun, **options)

        @functools.wraps(fun, updated=())
        def call(*args, **kwargs):
            leaves = jax.tree.leaves((args, kwargs))  # NNX makes the structure anew at each call
            signature = (jitted, *((np.shape(x), x if type(x) is str else "") for x in leaves))
            nested = any(isinstance(x, jax.core.Tracer) for x in leaves)
            if not nested and signature not in self.seen:
                self.seen.add(signature)
                # Here and not afterwards, since NNX traces only while its function is called.
                there_args, there_kwargs = jax.tree.map(self.there, (args, kwargs))
                assert self.target.compile(jitted, *there_args, **there_kwargs).as_text()
            return jitted(*args, **kwargs)

        call.lower = jitted.lower
        return call

    def there(self, x):
        if not isinstance(x, jax.Array | np.ndarray):
            return x
        dtype = jax.dtypes.canonicalize_dtype(x.dtype, allow_extended_dtype=True)
        return self.target.structs(jax.ShapeDtypeStruct(x.shape, dtype))


@pytest.fixture
def programs_made_quickly(standard_promotion):
    """Whether they compile is asked here, not what they cost."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.mark.skipif("v5e" not in CHIPS, reason=MISSING)
@pytest.mark.filterwarnings("default")
@pytest.mark.usefixtures("programs_made_quickly")
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_every_program_of_a_notebook_compiles_for_a_tpu(path, tmp_path, monkeypatch):
    """Every jitted function, the training step among them, at the sizes of the small mode."""
    plt = pytest.importorskip("matplotlib.pyplot")
    there = CompilesElsewhere(targets.target("v5e"))
    monkeypatch.setenv("OPTAX_GC_SMALL", "1")
    plt.switch_backend("agg")
    monkeypatch.setattr(plt, "show", plt.close)
    monkeypatch.setattr(jax, "jit", there)
    monkeypatch.chdir(tmp_path)
    names = {"__name__": "notebook"}
    for cell in nbformat.read(path, as_version=4).cells:
        if cell.cell_type == "code":
            exec(compile(cell.source, path.name, "exec"), names)
    assert there.seen
